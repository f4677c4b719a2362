//! Parses signals by name or number.

use rustix::process::Signal;

use crate::base::{Code, Error, Result};
use crate::proc::sys::real_time_signal;

/// Names in signal(7) whose numbers are the same on all architectures that berth supports, or are defined by libc.
const NAMES: [(&str, Signal); 33] = [
    ("HUP", Signal::HUP),
    ("INT", Signal::INT),
    ("QUIT", Signal::QUIT),
    ("ILL", Signal::ILL),
    ("TRAP", Signal::TRAP),
    ("ABRT", Signal::ABORT),
    ("IOT", Signal::ABORT),
    ("BUS", Signal::BUS),
    ("FPE", Signal::FPE),
    ("KILL", Signal::KILL),
    ("USR1", Signal::USR1),
    ("SEGV", Signal::SEGV),
    ("USR2", Signal::USR2),
    ("PIPE", Signal::PIPE),
    ("ALRM", Signal::ALARM),
    ("TERM", Signal::TERM),
    ("STKFLT", Signal::STKFLT),
    ("CHLD", Signal::CHILD),
    ("CONT", Signal::CONT),
    ("STOP", Signal::STOP),
    ("TSTP", Signal::TSTP),
    ("TTIN", Signal::TTIN),
    ("TTOU", Signal::TTOU),
    ("URG", Signal::URG),
    ("XCPU", Signal::XCPU),
    ("XFSZ", Signal::XFSZ),
    ("VTALRM", Signal::VTALARM),
    ("PROF", Signal::PROF),
    ("WINCH", Signal::WINCH),
    ("IO", Signal::IO),
    ("POLL", Signal::IO),
    ("PWR", Signal::POWER),
    ("SYS", Signal::SYS),
];

/// Parses a signal such as `TERM`, `SIGTERM`, `term`, `15`, `RTMIN+2`, `RTMAX` or `36`.
///
/// # Errors
/// `InvalidPayload` for anything else.
pub fn parse(text: &str) -> Result<Signal> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let named = NAMES.iter().find(|(known, _)| *known == name).map(|(_, signal)| *signal);
    let number = || text.parse().ok().or_else(|| real_time(name));
    let numbered = |number| Signal::from_named_raw(number).or_else(|| real_time_signal(number));
    named.or_else(|| number().and_then(numbered)).ok_or_else(|| {
        Error::new(
            Code::InvalidPayload,
            "signal is a name such as TERM, INT, HUP, USR1, KILL, STOP, CONT, RTMIN+1, or its number: 1 to 31, 34 to 64",
        )
    })
}

/// Returns the number of `RTMIN+n` or `RTMAX-n`, counted as in glibc and bash.
fn real_time(name: &str) -> Option<i32> {
    let distance = |text: &str, sign| match text {
        "" => Some(0),
        text => text.strip_prefix(sign)?.parse::<u8>().ok().map(i32::from),
    };
    match name.strip_prefix("RTMIN") {
        Some(rest) => Some(34 + distance(rest, '+')?),
        None => Some(64 - distance(name.strip_prefix("RTMAX")?, '-')?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for text in ["TERM", "SIGTERM", "sigterm", "Term", "15"] {
            assert_eq!(parse(text).unwrap(), Signal::TERM, "{text}");
        }
        assert_eq!(parse("9").unwrap(), Signal::KILL);
        for (text, number) in [("RTMIN", 34), ("SIGRTMIN+2", 36), ("rtmax-1", 63), ("RTMAX", 64), ("35", 35)]
        {
            assert_eq!(parse(text).unwrap().as_raw(), number, "{text}");
        }
        let wrong = ["", "0", "-1", "SIG", "SIGSIGTERM", "32", "33", "65", "99", "TERM ", "15.0", "RTMIN+31"];
        for text in wrong.into_iter().chain(["RTMAX-31", "RTMIN-1", "RTMIN+", "RTMIN+-1", "RTMAX+1"]) {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
