//! Makes a distribution's base system in an empty folder, with the distribution's own tool.

use std::path::{Path, PathBuf};

use super::build_log::BuildLog;
use super::mirrors::Sources;
use super::tools;
use crate::base::ids::Distro;
use crate::base::{At, Code, Error, Result, limits};
use crate::proc::{Cancel, Ended, Group, Spec};
use crate::store::file;

/// A tool that ended badly, in words.
pub(super) fn outcome(ended: Ended, what: &str, log: &BuildLog) -> Result<()> {
    match ended {
        Ended::Exited(exit) if exit.success() => Ok(()),
        Ended::Exited(exit) => {
            Err(Error::new(Code::BuildFailed, format!("{what} failed ({exit}): {}", log.last_lines())))
        }
        Ended::TimedOut => Err(Error::new(
            Code::BuildFailed,
            format!("{what} took too long and was ended: {}", log.last_lines()),
        )),
        Ended::Cancelled => Err(Error::new(Code::Cancelled, format!("{what} was cancelled"))),
    }
}

/// Bootstraps `distro` into the existing empty folder `root`.
///
/// # Errors
/// `BuildFailed` with the package to install, or with the last meaningful lines of the tool; `Cancelled`.
pub fn bootstrap(
    distro: Distro,
    root: &Path,
    sources: &Sources,
    group: Group,
    log: &mut BuildLog,
    cancel: &Cancel,
) -> Result<()> {
    let (what, args) = match distro {
        Distro::ArchLinux => ("pacstrap", pacstrap(root, sources)?),
        _ => ("debootstrap", debootstrap(distro, root, sources)?),
    };
    log.new_step();
    let spec = Spec::new(tools::require("unshare")?)
        // Both tools mount proc and sys below the root; in a mount namespace of their own nothing is left on the
        // host, however they end.
        .args(["--mount", "--propagation=slave"])
        .args(args)
        .envs(&sources.proxy_env);
    let ended = spec.run(group, log, limits::BOOTSTRAP_TIMEOUT, cancel)?;
    outcome(ended, what, log)?;
    clean(root)
}

fn debootstrap(distro: Distro, root: &Path, sources: &Sources) -> Result<Vec<String>> {
    // (suite, components, keyring file, its package, a script of the same family for a host that has none of this
    // suite's: Debian 12's debootstrap does not know noble, and all Ubuntu suites since gutsy share one.)
    let (suite, components, keyring, package, family_script) = match distro {
        Distro::UbuntuNoble => {
            ("noble", "main,universe", "ubuntu-archive-keyring.gpg", "ubuntu-keyring", "gutsy")
        }
        Distro::UbuntuJammy => {
            ("jammy", "main,universe", "ubuntu-archive-keyring.gpg", "ubuntu-keyring", "gutsy")
        }
        _ => ("bookworm", "main", "debian-archive-keyring.gpg", "debian-archive-keyring", "sid"),
    };
    let program = tools::require("debootstrap")?;
    let keyring = match sources.keyrings.get(&distro) {
        Some(path) => path.clone(),
        None => Path::new("/usr/share/keyrings").join(keyring),
    };
    if !keyring.is_file() {
        return Err(Error::new(
            Code::BuildFailed,
            format!(
                "{} is missing, so the packages of {distro} could not be verified; install the package {package}, or \
                 copy the keyring from a machine that has it and pass --keyring {distro}=FILE",
                keyring.display()
            ),
        ));
    }
    let scripts = Path::new("/usr/share/debootstrap/scripts");
    let mut args = vec![program.to_string_lossy().into_owned(), "--variant=minbase".to_owned()];
    args.push(format!("--components={components}"));
    args.push(format!("--keyring={}", keyring.display()));
    // Without it debootstrap warns and goes on when the archive is not signed.
    args.push("--force-check-gpg".to_owned());
    args.push(suite.to_owned());
    args.push(root.to_string_lossy().into_owned());
    let mirror = sources.mirror(distro);
    let script = (!scripts.join(suite).exists()).then(|| scripts.join(family_script));
    match (mirror, script) {
        (Some(mirror), script) => {
            args.push(mirror);
            args.extend(script.map(|script| script.to_string_lossy().into_owned()));
        }
        // debootstrap(8) takes the script after the mirror only; an empty mirror means the script's own default.
        (None, Some(script)) => args.extend([String::new(), script.to_string_lossy().into_owned()]),
        (None, None) => {}
    }
    Ok(args)
}

fn pacstrap(root: &Path, sources: &Sources) -> Result<Vec<String>> {
    let program = tools::require("pacstrap")?;
    tools::require("pacman")?;
    let Some(mirror) = sources.mirror(Distro::ArchLinux) else {
        return Err(Error::new(
            Code::BuildFailed,
            "No mirror for arch-linux is known on this host; pass --mirror arch-linux=URL, with $repo and $arch in it",
        ));
    };
    let keyring_folder = sources.keyrings.get(&Distro::ArchLinux).cloned();
    let gpg = keyring_folder.unwrap_or_else(|| PathBuf::from("/etc/pacman.d/gnupg"));
    if !gpg.is_dir() {
        return Err(Error::new(
            Code::BuildFailed,
            format!(
                "{} is missing, so the packages of arch-linux could not be verified; install archlinux-keyring and \
                 run `pacman-key --init && pacman-key --populate archlinux`, or pass --keyring arch-linux=FOLDER",
                gpg.display()
            ),
        ));
    }
    let config = root.with_extension("pacman.conf");
    let text = format!(
        "[options]\nArchitecture = auto\nSigLevel = Required DatabaseOptional\nGPGDir = {}\n\
         [core]\nServer = {mirror}\n[extra]\nServer = {mirror}\n",
        gpg.display()
    );
    file::write_atomic(&config, text.as_bytes(), 0o600)?;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    Ok(vec![
        text(&program),
        "-C".into(),
        text(&config),
        "-c".into(),
        "-G".into(),
        "-M".into(),
        text(root),
        "base".into(),
    ])
}

/// Takes out what belongs to one machine or can be fetched again. The folder is fresh from the distribution's own
/// tool; no workload has touched it.
fn clean(root: &Path) -> Result<()> {
    let empty = |folder: &str, keep: &dyn Fn(&str) -> bool| {
        for entry in std::fs::read_dir(root.join(folder)).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if entry.file_type().is_ok_and(|kind| kind.is_file()) && !keep(&name.to_string_lossy()) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    };
    empty("var/cache/apt/archives", &|name| !name.ends_with(".deb"));
    empty("var/cache/pacman/pkg", &|_| false);
    empty("var/lib/apt/lists", &|name| name == "lock");
    for (path, text) in [("etc/machine-id", ""), ("etc/hostname", "workspace\n"), ("etc/resolv.conf", "")] {
        let path = root.join(path);
        // A link (Ubuntu's resolv.conf) would be followed into the host by a plain write.
        match std::fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).at("replace", &path),
        }
        file::write_atomic(&path, text.as_bytes(), 0o644)?;
    }
    // Names resolve to the workspace's own host name, or sudo and others wait for DNS.
    let hosts = root.join("etc/hosts");
    if !hosts.exists() {
        file::write_atomic(&hosts, b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n", 0o644)?;
    }
    Ok(())
}
