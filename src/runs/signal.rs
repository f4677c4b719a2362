//! Signals by name or number, as people write them.

use rustix::process::Signal;

use crate::base::{Code, Error, Result};

/// Names of signal(7) that are the same number on every architecture of Linux that berth runs on, or that libc knows.
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

/// `TERM`, `SIGTERM`, `term` or `15`.
///
/// # Errors
/// `InvalidPayload` for anything else.
pub fn parse(text: &str) -> Result<Signal> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let named = NAMES.iter().find(|(known, _)| *known == name).map(|(_, signal)| *signal);
    named.or_else(|| Signal::from_named_raw(text.parse().ok()?)).ok_or_else(|| {
        Error::new(
            Code::InvalidPayload,
            "signal is a name such as TERM, INT, HUP, USR1, KILL, STOP, CONT, or its number, 1 to 31; real-time \
             signals cannot be sent",
        )
    })
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
        for text in ["", "0", "-1", "SIG", "SIGSIGTERM", "64", "99", "TERM ", "15.0"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
