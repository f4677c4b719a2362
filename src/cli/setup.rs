//! `--setup`: installs packages that container workspaces need and this machine lacks, with its own package manager.
//! berth prints every command before it runs the command, and on a terminal it first asks for confirmation. The setup
//! runs before the server has threads or sockets; if the setup fails, the server does not start.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use log::{info, warn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::base::ids::Distro;
use crate::base::{At, Error, Result, limits};
use crate::proc::tools::{self, Archive, Family};
use crate::server::Settings;

/// A package manager and its commands.
struct PackageManager {
    program: &'static str,
    family: Family,
    /// The command that runs first and refreshes the list of packages.
    refresh: Option<&'static [&'static str]>,
    /// The command that installs packages. Package names are appended to it.
    install: &'static [&'static str],
    /// The command that queries a package. A package name is appended to it. The package exists if the command
    /// succeeds and prints a text.
    query: &'static [&'static str],
}

const MANAGERS: [PackageManager; 3] = [
    PackageManager {
        program: "apt-get",
        family: Family::Debian,
        refresh: Some(&["apt-get", "update"]),
        install: &["apt-get", "install", "--yes", "--no-install-recommends"],
        query: &["apt-cache", "show"],
    },
    PackageManager {
        program: "dnf",
        family: Family::Fedora,
        refresh: None,
        install: &["dnf", "install", "--assumeyes", "--setopt=install_weak_deps=False"],
        query: &["dnf", "--quiet", "repoquery"],
    },
    PackageManager {
        program: "pacman",
        family: Family::Arch,
        // The command is not `pacman -Sy`, because a refresh without an upgrade leaves a partially upgraded system.
        refresh: None,
        install: &["pacman", "-S", "--needed", "--noconfirm"],
        query: &["pacman", "-Si"],
    },
];

/// Installs missing packages: those that all containers need, and those that the builds of single distributions need.
///
/// # Errors
/// Fails if the machine has no known package manager, if the user declines, or if a command fails.
pub fn run(settings: &Settings, assume_yes: bool) -> Result<()> {
    let host = SetupHost::new(settings);
    let missing = MissingDependencies::on_this_host(settings);
    let Some(manager) = MANAGERS.iter().find(|manager| tools::find(manager.program).is_some()) else {
        if tools::missing_tools().is_empty() {
            info!("Setup: there is nothing to install");
            return Ok(());
        }
        let programs: Vec<&str> = tools::missing_tools().iter().map(|tool| tool.program).collect();
        let programs = programs.join(", ");
        return Err(Error::internal(format!(
            "Setup found neither apt-get nor dnf nor pacman; install yourself: {programs}"
        )));
    };
    let required: Vec<&str> =
        tools::missing_tools_of(manager.family).iter().map(|tool| tool.package).collect();
    // If the package sources do not have a missing package, it must not cause a refresh at every start.
    if required.is_empty() && missing.available(&host, manager).is_empty() && !missing.arch_keys() {
        info!("Setup: there is nothing to install");
        return Ok(());
    }
    confirm(manager, &host, &required, &missing, assume_yes)?;

    if let Some(refresh) = manager.refresh {
        host.run_visible(refresh)?;
    }
    let mut packages = required;
    for package in missing.available(&host, manager) {
        if !packages.contains(&package) {
            packages.push(package);
        }
    }
    if !packages.is_empty() {
        host.run_visible(&[manager.install, &packages].concat())?;
    }
    let programs: Vec<&str> = tools::missing_tools().iter().map(|tool| tool.program).collect();
    if !programs.is_empty() {
        let programs = programs.join(", ");
        return Err(Error::internal(format!(
            "Setup: after the installation these are still missing: {programs}"
        )));
    }
    if missing.arch_keys() {
        host.make_pacman_keys();
    }
    missing.warn_of_rest(manager);
    info!("Setup: done");
    Ok(())
}

/// The requirements of single distributions' builds, besides [`tools::missing_tools`]. Without one of them, other
/// distributions can still be built.
struct MissingDependencies {
    /// The archives for which neither the host nor the settings have a keyring.
    keyrings: Vec<Archive>,
    /// Whether pacman's keys are missing and the settings name no other keys for Arch Linux.
    pacman_keys: bool,
}

impl MissingDependencies {
    fn on_this_host(settings: &Settings) -> MissingDependencies {
        let configured = |distro: &Distro| settings.keyrings.contains_key(distro);
        let keyrings = [
            (Archive::Debian, &[Distro::DebianBookworm][..]),
            (Archive::Ubuntu, &[Distro::UbuntuNoble, Distro::UbuntuJammy]),
        ]
        .into_iter()
        .filter(|(archive, distros)| tools::keyring(*archive).is_none() && !distros.iter().all(configured))
        .map(|(archive, _)| archive)
        .collect();
        let pacman_keys = !Path::new(tools::PACMAN_KEYS).is_dir() && !configured(&Distro::ArchLinux);
        MissingDependencies { keyrings, pacman_keys }
    }

    /// Returns the names of the packages. Alternative names are separated by `|`.
    fn names(&self, family: Family) -> Vec<String> {
        let keyrings =
            self.keyrings.iter().map(|archive| tools::keyring_packages(family, *archive).join("|"));
        keyrings.chain(self.arch_packages(family).into_iter().map(str::to_owned)).collect()
    }

    fn arch_packages(&self, family: Family) -> Vec<&'static str> {
        let mut packages: Vec<&str> = Vec::new();
        for tool in tools::missing_arch_tools(family) {
            if !packages.contains(&tool.package) {
                packages.push(tool.package);
            }
        }
        if self.pacman_keys && !tools::has_arch_keyring() {
            packages.push(tools::ARCH_KEYRING_PACKAGE);
        }
        packages
    }

    /// Returns the missing packages that the host's package sources have.
    fn available(&self, host: &SetupHost<'_>, manager: &PackageManager) -> Vec<&'static str> {
        let known = |package: &&'static str| host.has_package(manager, package);
        let keyring =
            |archive: &Archive| tools::keyring_packages(manager.family, *archive).iter().copied().find(known);
        let arch = self.arch_packages(manager.family).into_iter().filter(known);
        self.keyrings.iter().filter_map(keyring).chain(arch).collect()
    }

    /// Returns whether pacman-key(8) can create the keys now.
    fn arch_keys(&self) -> bool {
        self.pacman_keys
            && tools::has_arch_keyring()
            && !Path::new(tools::PACMAN_KEYS).is_dir()
            && ["pacman-key", "gpg"].iter().all(|program| tools::find(program).is_some())
    }

    /// Logs the distributions that still cannot be built.
    fn warn_of_rest(&self, manager: &PackageManager) {
        if self.keyrings.contains(&Archive::Debian) && tools::keyring(Archive::Debian).is_none() {
            let names = tools::keyring_packages(manager.family, Archive::Debian).join(", ");
            warn!(
                "Setup: the package sources have no keyring of Debian ({names}); its builds need --keyring"
            );
        }
        let arch: Vec<&str> = self.arch_packages(manager.family);
        if !arch.is_empty() {
            let names = arch.join(", ");
            warn!("Setup: the package sources do not have {names}; arch-linux cannot be built");
        }
    }
}

/// Prints the commands and, on a terminal, asks for confirmation.
fn confirm(
    manager: &PackageManager,
    host: &SetupHost<'_>,
    required: &[&str],
    missing: &MissingDependencies,
    assume_yes: bool,
) -> Result<()> {
    let optional = missing.names(manager.family);
    let mut packages: Vec<&str> = required.to_vec();
    for package in optional.iter().map(String::as_str) {
        if !packages.contains(&package) {
            packages.push(package);
        }
    }
    info!("Setup: missing {}", packages.join(" ").replace('|', " or "));
    if assume_yes || !io::stdin().is_terminal() {
        return Ok(());
    }
    let mut lines: Vec<String> = manager.refresh.iter().map(|refresh| host.line(refresh)).collect();
    // The commands are shown before the refresh, which shows which of several alternative names the package sources
    // have.
    let (mut first, mut others) = (Vec::new(), Vec::new());
    for package in packages {
        let mut names = package.split('|');
        first.extend(names.next());
        others.extend(names);
    }
    let mut install = host.line(&[manager.install, &first].concat());
    if !others.is_empty() {
        install += &format!(" (or {}, where the package sources have that)", others.join(", "));
    }
    lines.push(install);
    if missing.pacman_keys {
        lines.extend(PACMAN_KEY.iter().map(|argv| host.line(argv)));
    }
    let commands: String = lines.iter().map(|command| format!("berth would run: {command}\n")).collect();
    io::stderr().write_all(format!("{commands}Go on? [y/N] ").as_bytes()).at("ask at", "the terminal")?;
    if agreed(io::stdin().lock(), limits::SETUP_ANSWER) {
        return Ok(());
    }
    Err(Error::internal("Setup was not confirmed; start without --setup, or with --yes"))
}

/// The commands that create pacman's keys from the package [`tools::ARCH_KEYRING_PACKAGE`] in a new folder, and then
/// move the complete folder into place.
const PACMAN_KEY: [&[&str]; 4] = [
    &["pacman-key", "--gpgdir", NEW_PACMAN_KEYS, "--init"],
    &["pacman-key", "--gpgdir", NEW_PACMAN_KEYS, "--populate", "archlinux"],
    // This ends GnuPG's agent, which pacman-key leaves running.
    &["gpgconf", "--homedir", NEW_PACMAN_KEYS, "--kill", "all"],
    &["mv", "--no-target-directory", NEW_PACMAN_KEYS, tools::PACMAN_KEYS],
];

const NEW_PACMAN_KEYS: &str = "/etc/pacman.d/gnupg.new";

/// Returns whether the user answers yes in time. Any other answer, EOF and a timeout mean no.
pub(super) fn agreed(mut terminal: impl Read + AsFd, within: Duration) -> bool {
    let mut answer = [0; 64];
    let length = match readable(terminal.as_fd(), within) {
        // One read suffices, because terminals deliver whole lines.
        true => terminal.read(&mut answer).unwrap_or(0),
        false => 0,
    };
    matches!(std::str::from_utf8(&answer[..length]).unwrap_or_default().trim(), "y" | "Y" | "yes")
}

/// The way to run commands on this machine.
struct SetupHost<'a> {
    /// `sudo`, if this process does not run as root.
    prefix: &'static [&'static str],
    proxies: &'a [(String, String)],
    home: &'a std::path::Path,
}

impl<'a> SetupHost<'a> {
    fn new(settings: &'a Settings) -> SetupHost<'a> {
        // sudo clears the environment, so the variables are set with env.
        let sudo: &[&str] = &["sudo", "env", "DEBIAN_FRONTEND=noninteractive"];
        let prefix = if rustix::process::geteuid().is_root() { &[] } else { sudo };
        SetupHost { prefix, proxies: &settings.proxy_env, home: &settings.home }
    }

    /// Returns the command line that is shown to the user.
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

    /// Runs a command whose output the user sees.
    fn run_visible(&self, argv: &[&str]) -> Result<()> {
        let line = self.line(argv);
        info!("Setup: {line}");
        let mut command = self.command(&[self.prefix, argv].concat())?;
        // Stdout is the log, which may be JSON, so the package manager's output goes to stderr.
        command.stdout(Stdio::from(io::stderr()));
        let failed = |how: String| Error::internal(format!("Setup: {how}: {line}"));
        let mut child = command.spawn().map_err(|error| failed(format!("could not start ({error})")))?;
        if !ended(&child, limits::SETUP_TIMEOUT) {
            // SIGKILL would leave a partially written package database, and sudo could not pass it on to its child.
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

    /// Creates pacman's keys. Without them, all distributions except Arch Linux can still be built.
    fn make_pacman_keys(&self) {
        for argv in PACMAN_KEY {
            if let Err(error) = self.run_visible(argv) {
                warn!("{error}; arch-linux cannot be built");
                return;
            }
        }
    }

    /// Returns whether the package sources have a package. Needs no root privileges.
    fn has_package(&self, manager: &PackageManager, package: &str) -> bool {
        let Ok(mut command) = self.command(&[manager.query, &[package]].concat()) else { return false };
        // For a name that only other packages provide, apt-cache succeeds without output.
        let answer = command.stdin(Stdio::null()).stderr(Stdio::null()).output();
        answer.is_ok_and(|answer| answer.status.success() && !answer.stdout.trim_ascii().is_empty())
    }
}

/// Returns whether the child process exits in time.
pub(super) fn ended(child: &Child, within: Duration) -> bool {
    match pidfd_open(Pid::from_child(child), PidfdFlags::empty()) {
        Ok(pidfd) => readable(pidfd.as_fd(), within),
        // Kernels before 5.3 do not have pidfd_open(2), so berth waits for the child without a limit.
        Err(_) => true,
    }
}

/// Returns whether the descriptor becomes readable in time.
fn readable(fd: BorrowedFd<'_>, within: Duration) -> bool {
    let timeout = Timespec { tv_sec: i64::try_from(within.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
    loop {
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)) {
            Ok(count) => return count > 0,
            // No signal handler of the server is installed yet, so the cause is a stop and continue at the terminal.
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
    fn every_manager_has_its_packages() {
        for manager in &MANAGERS {
            assert_eq!(manager.install.first(), Some(&manager.program));
            for archive in [Archive::Debian, Archive::Ubuntu] {
                assert!(!tools::keyring_packages(manager.family, archive).is_empty());
            }
        }
    }
}
