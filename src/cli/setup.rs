//! `--setup`: installs what container workspaces need and this machine lacks, with its own package manager.
//! Prints every command before it runs it and asks first when somebody sits at the terminal. Runs before the
//! server has a thread or a socket; a failure means that there will be no server.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use log::{info, warn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::base::ids::Distro;
use crate::base::{At, Error, Result, limits};
use crate::containers::tools::{self, Archive, Family};
use crate::server::Settings;

/// What a package manager is called and how it is asked.
struct Manager {
    program: &'static str,
    family: Family,
    /// Run before the rest.
    refresh: Option<&'static [&'static str]>,
    /// Packages follow.
    install: &'static [&'static str],
    /// A package follows; it exists when this succeeds and prints something.
    query: &'static [&'static str],
}

const MANAGERS: [Manager; 3] = [
    Manager {
        program: "apt-get",
        family: Family::Debian,
        refresh: Some(&["apt-get", "update"]),
        install: &["apt-get", "install", "--yes", "--no-install-recommends"],
        query: &["apt-cache", "show"],
    },
    Manager {
        program: "dnf",
        family: Family::Fedora,
        refresh: None,
        install: &["dnf", "install", "--assumeyes", "--setopt=install_weak_deps=False"],
        query: &["dnf", "--quiet", "repoquery"],
    },
    Manager {
        program: "pacman",
        family: Family::Arch,
        // Not -Sy: a refresh without an upgrade leaves a half-upgraded system.
        refresh: None,
        install: &["pacman", "-S", "--needed", "--noconfirm"],
        query: &["pacman", "-Si"],
    },
];

/// Installs what is missing.
///
/// # Errors
/// No known package manager, a "no" at the terminal, or a command that failed.
pub fn run(settings: &Settings, assume_yes: bool) -> Result<()> {
    let keyrings = missing_keyrings(settings);
    let nothing_else = || info!("Setup: there is nothing to install");
    if tools::missing_tools().is_empty() && keyrings.is_empty() {
        nothing_else();
        return Ok(());
    }
    let manager =
        MANAGERS.iter().find(|manager| tools::find(manager.program).is_some()).ok_or_else(|| {
            let programs: Vec<&str> = tools::missing_tools().iter().map(|tool| tool.program).collect();
            let programs = programs.join(", ");
            Error::internal(format!(
                "Setup found neither apt-get nor dnf nor pacman; install yourself: {programs}"
            ))
        })?;
    let host = Host::new(settings);
    let needed: Vec<&str> = tools::missing_tools_of(manager.family).iter().map(|tool| tool.package).collect();
    // A foreign keyring that this machine's sources do not have is no reason to ask them anew at every start.
    if needed.is_empty() && keyrings.iter().all(|archive| host.keyring_package(manager, *archive).is_none()) {
        nothing_else();
        return Ok(());
    }
    confirm(manager, &host, &needed, &keyrings, assume_yes)?;

    if let Some(refresh) = manager.refresh {
        host.run_visible(refresh)?;
    }
    let found = keyrings.iter().filter_map(|archive| host.keyring_package(manager, *archive));
    let packages: Vec<&str> = needed.into_iter().chain(found).collect();
    if packages.is_empty() {
        nothing_else();
        return Ok(());
    }
    host.run_visible(&[manager.install, &packages].concat())?;
    let missing: Vec<&str> = tools::missing_tools().iter().map(|tool| tool.program).collect();
    if !missing.is_empty() {
        let missing = missing.join(", ");
        return Err(Error::internal(format!("Setup: after the installation there is still no {missing}")));
    }
    info!("Setup: done");
    Ok(())
}

/// Archives for which neither the host nor the settings have a keyring.
fn missing_keyrings(settings: &Settings) -> Vec<Archive> {
    let configured = |distros: &[Distro]| distros.iter().all(|distro| settings.keyrings.contains_key(distro));
    [
        (Archive::Debian, &[Distro::DebianBookworm][..]),
        (Archive::Ubuntu, &[Distro::UbuntuNoble, Distro::UbuntuJammy]),
    ]
    .into_iter()
    .filter(|(archive, distros)| tools::keyring(*archive).is_none() && !configured(distros))
    .map(|(archive, _)| archive)
    .collect()
}

/// Shows what would be run and, at a terminal, asks.
fn confirm(
    manager: &Manager,
    host: &Host<'_>,
    needed: &[&str],
    keyrings: &[Archive],
    assume_yes: bool,
) -> Result<()> {
    let alternatives: Vec<String> =
        keyrings.iter().map(|archive| tools::keyring_packages(manager.family, *archive).join("|")).collect();
    let packages: Vec<&str> = needed.iter().copied().chain(alternatives.iter().map(String::as_str)).collect();
    info!("Setup: missing {}", packages.join(" "));
    if assume_yes || !io::stdin().is_terminal() {
        return Ok(());
    }
    let refresh = manager.refresh.map(|refresh| host.line(refresh));
    let install = host.line(&[manager.install, &packages].concat());
    let commands: String =
        refresh.iter().chain([&install]).map(|command| format!("berth would run: {command}\n")).collect();
    io::stderr().write_all(format!("{commands}Go on? [y/N] ").as_bytes()).at("ask at", "the terminal")?;
    if agreed(io::stdin().lock(), limits::SETUP_ANSWER) {
        return Ok(());
    }
    Err(Error::internal("Setup was not confirmed; start without --setup, or with --yes"))
}

/// Whether the person says yes in time. Anything else, an end of file and silence too, is a no.
fn agreed(mut terminal: impl Read + AsFd, within: Duration) -> bool {
    let mut answer = [0; 64];
    let length = match readable(terminal.as_fd(), within) {
        // The terminal hands over whole lines.
        true => terminal.read(&mut answer).unwrap_or(0),
        false => 0,
    };
    matches!(std::str::from_utf8(&answer[..length]).unwrap_or_default().trim(), "y" | "Y" | "yes")
}

/// How commands are run here.
struct Host<'a> {
    /// `sudo`, when we are not root.
    prefix: &'static [&'static str],
    proxies: &'a [(String, String)],
    home: &'a std::path::Path,
}

impl<'a> Host<'a> {
    fn new(settings: &'a Settings) -> Host<'a> {
        // sudo cleans the environment, so what matters goes through env.
        let sudo: &[&str] = &["sudo", "env", "DEBIAN_FRONTEND=noninteractive"];
        let prefix = if rustix::process::geteuid().is_root() { &[] } else { sudo };
        Host { prefix, proxies: &settings.proxy_env, home: &settings.home }
    }

    /// The command line as a person would type it.
    fn line(&self, argv: &[&str]) -> String {
        [self.prefix, argv].concat().join(" ")
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "interactive: shares the person's terminal and process group"
    )]
    fn command(&self, argv: &[&str]) -> Result<Command> {
        let program = argv.first().copied().unwrap_or_default();
        let path = tools::find(program).ok_or_else(|| {
            let hint = if program == "sudo" { "; or run berth as root" } else { "" };
            Error::internal(format!("Setup: {program} is missing{hint}"))
        })?;
        let mut command = Command::new(path);
        command
            .args(&argv[1..])
            .env_clear()
            .env("PATH", tools::PATH)
            .env("HOME", self.home)
            .env("LANG", "C.UTF-8")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .envs(self.proxies.iter().map(|(name, value)| (name, value)));
        Ok(command)
    }

    /// Runs a command under the person's eyes.
    fn run_visible(&self, argv: &[&str]) -> Result<()> {
        let line = self.line(argv);
        info!("Setup: {line}");
        let mut command = self.command(&[self.prefix, argv].concat())?;
        // Our stdout is the log, which may be JSON; a package manager's talk goes to stderr.
        command.stdout(Stdio::from(io::stderr()));
        let failed = |how: String| Error::internal(format!("Setup: {how}: {line}"));
        let mut child = command.spawn().map_err(|error| failed(format!("could not start ({error})")))?;
        if !ended(&child, limits::SETUP_TIMEOUT) {
            // KILL would leave a half-written package database; sudo's child cannot be reached at all.
            let pid = Pid::from_child(&child);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let minutes = limits::SETUP_TIMEOUT.as_secs() / 60;
            return Err(failed(format!("gave up after {minutes} minutes")));
        }
        let status = child.wait().map_err(|error| failed(format!("could not be waited for ({error})")))?;
        if !status.success() {
            return Err(failed(format!("failed ({status})")));
        }
        Ok(())
    }

    /// The package with an archive's keyring, or a warning that there is none.
    fn keyring_package(&self, manager: &Manager, archive: Archive) -> Option<&'static str> {
        let candidates = tools::keyring_packages(manager.family, archive);
        let found = candidates.iter().copied().find(|package| self.has_package(manager, package));
        if found.is_none() {
            let names = candidates.join(", ");
            warn!(
                "Setup: the package sources know no keyring of {archive:?} ({names}); its builds need --keyring"
            );
        }
        found
    }

    /// Whether the package sources know a package. Needs no root.
    fn has_package(&self, manager: &Manager, package: &str) -> bool {
        let Ok(mut command) = self.command(&[manager.query, &[package]].concat()) else { return false };
        // apt-cache ends with 0 and says nothing for a name that no package has but some provide.
        let answer = command.stdin(Stdio::null()).stderr(Stdio::null()).output();
        answer.is_ok_and(|answer| answer.status.success() && !answer.stdout.trim_ascii().is_empty())
    }
}

/// Whether the child ends in time.
fn ended(child: &Child, within: Duration) -> bool {
    match pidfd_open(Pid::from_child(child), PidfdFlags::empty()) {
        Ok(pidfd) => readable(pidfd.as_fd(), within),
        // A kernel before 5.3: wait as long as it takes.
        Err(_) => true,
    }
}

/// Whether there is something to read in time.
fn readable(fd: BorrowedFd<'_>, within: Duration) -> bool {
    let timeout = Timespec { tv_sec: i64::try_from(within.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
    loop {
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)) {
            Ok(count) => return count > 0,
            // Before the server there is no signal handler; this is a stop and continue at the terminal.
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_yes_in_time_is_a_yes() {
        use std::os::unix::net::UnixStream;
        let said = |text: Option<&str>, stays: bool| {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(text.unwrap_or_default().as_bytes()).unwrap();
            let theirs = stays.then_some(theirs);
            let yes = agreed(ours, Duration::from_millis(50));
            drop(theirs);
            yes
        };
        for yes in ["y\n", "Y\n", "yes\n", " yes \n"] {
            assert!(said(Some(yes), true), "{yes:?}");
        }
        for no in ["\n", "n\n", "no\n", "yesterday\n", "\u{fc}\n"] {
            assert!(!said(Some(no), true), "{no:?}");
        }
        assert!(!said(None, false), "an end of file");
        assert!(!said(None, true), "silence");
    }

    #[test]
    fn every_manager_knows_its_packages() {
        for manager in &MANAGERS {
            assert_eq!(manager.install.first(), Some(&manager.program));
            for archive in [Archive::Debian, Archive::Ubuntu] {
                assert!(!tools::keyring_packages(manager.family, archive).is_empty());
            }
        }
    }
}
