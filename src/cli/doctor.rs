//! `berth doctor`: reports which features work on this machine and how to enable the others, as a table or as JSON. It
//! takes the flags of `serve`, so that it checks the same folders, mirrors and keyrings. It needs no running server,
//! and it does not disturb a running one. It writes no log; its only output is the report.

use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;

use crate::base::{At, Error, Result, limits, logging, thread};
use crate::config;
use crate::doctor::Doctor;
use crate::doctor::{Check, CheckStatus, DoctorReport, no_threads};
use crate::proc::{Cancel, Cgroups};
use crate::server::{self, Settings};
use crate::store::lock::BinaryLock;

/// Runs `berth doctor`. Returns exit code 1 if a required feature is missing.
///
/// # Errors
/// Fails for invalid settings (exit code 2).
pub fn run(args: &[String]) -> Result<ExitCode> {
    let args = match super::line("doctor", args)? {
        Ok(args) => args,
        Err(code) => return Ok(code),
    };
    let current_dir = std::env::current_dir().map_err(|error| Error::config("current folder", error))?;
    let settings = config::resolve(&args, &config::process_env, &current_dir)?.settings;
    let (report, cancel) = look(&settings)?;
    if cancel.is_cancelled() {
        return Err(Error::internal("interrupted; the trials were cleaned up"));
    }
    super::print(&if args.json { as_json(&report)? } else { table(&report) });
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs the checks with these settings. The returned cancellation is cancelled if a signal interrupted the checks.
pub(super) fn look(settings: &Settings) -> Result<(Arc<DoctorReport>, Cancel)> {
    let lock = BinaryLock::take(limits::PROBE)?;
    // These cgroups are separate from those of a running server. The sweep ends processes that a killed doctor left
    // behind.
    let cgroups = Cgroups::take(&format!("berth-doctor-{}", lock.name()?));
    cgroups.sweep(&[]);
    let cancel = Cancel::new()?;
    // If no threads can be started, the doctor runs no trials, and the report contains the reason.
    if no_threads().is_none() {
        on_interrupt(&cancel)?;
    }
    let doctor = Doctor::new(server::subject(settings, cgroups.clone(), cancel.clone()));
    let report = doctor.report();
    cgroups.release();
    Ok((report, cancel))
}

/// Makes SIGTERM, SIGINT and SIGHUP cancel `cancel`, so that interrupted trials clean up.
pub(super) fn on_interrupt(cancel: &Cancel) -> Result<()> {
    let (mut received, handler_end) = UnixStream::pair().at("open", "a socket pair")?;
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        let end = handler_end.try_clone().at("duplicate", "a socket")?;
        signal_hook::low_level::pipe::register(signal, end)
            .map_err(|error| Error::internal("Signals cannot be handled").with_source(error))?;
    }
    let cancel = cancel.clone();
    let waiting = thread::spawn("interrupt".into(), limits::STACK, move || {
        if received.read_exact(&mut [0]).is_ok() {
            cancel.cancel();
        }
    })?;
    waiting.detach();
    Ok(())
}

fn as_json(report: &DoctorReport) -> Result<String> {
    serde_json::to_string_pretty(report)
        .map(|text| text + "\n")
        .map_err(|error| Error::internal("The report cannot be written as JSON").with_source(error))
}

/// Formats the report as one line per check, followed by the fix if there is one.
fn table(report: &DoctorReport) -> String {
    let width = report.checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for Check { name, status, found, fix } in &report.checks {
        let word = match status {
            CheckStatus::Ok => "ok",
            CheckStatus::Warn => "warn",
            CheckStatus::Fail => "FAIL",
        };
        text += &format!("{word:<4}  {name:<width$}  {}\n", logging::one_line(found));
        if let Some(fix) = fix {
            text += &format!("{:width$}        → {}\n", "", logging::one_line(fix));
        }
    }
    let count = |status| report.checks.iter().filter(|check| check.status == status).count();
    text + &match (count(CheckStatus::Fail), count(CheckStatus::Warn)) {
        (0, 0) => "\nEverything is there.\n".to_owned(),
        (0, warnings) => format!("\nWorkspaces in containers work; {warnings} could be better.\n"),
        (failures, _) => format!("\nWorkspaces in containers do not work: {failures} missing.\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_line_per_check_and_its_fix_below() {
        let check = |name: &str, status, fix: Option<&str>| Check {
            name: name.into(),
            status,
            found: format!("about {name}"),
            fix: fix.map(str::to_owned),
        };
        let checks =
            vec![check("a", CheckStatus::Ok, None), check("longer", CheckStatus::Fail, Some("do\nthis"))];
        let report = DoctorReport { ok: false, version: "1", checked_at: String::new(), checks };
        let text = table(&report);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "ok    a       about a");
        assert_eq!(lines[1], "FAIL  longer  about longer");
        assert!(lines[2].starts_with("              → do") && lines.len() == 5, "{text}");
    }
}
