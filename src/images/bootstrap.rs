//! Creates a distribution's base system in an empty directory with the distribution's own tool.

use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::build_log::BuildLog;
use super::mirrors::PackageSources;
use crate::base::ids::Distro;
use crate::base::{Code, Error, Result};
use crate::proc::tools::{self, Archive, Family};
use crate::proc::{Cancel, Group, ProcessOutcome, Spec};
use crate::store::file;

/// The keys that sign Ubuntu's archive (`assets/keyrings/README.md`), for hosts without a package that has them.
const UBUNTU_KEYRING: &[u8] = include_bytes!("../../assets/keyrings/ubuntu-archive-keyring.gpg");

/// If a tool fails and less than this space is free, the disk was full, whatever the tool reports. No package is larger
/// than this, and debootstrap reports a half-written archive as "file already exists".
const LEAST_BYTES: u64 = 16 << 20;

/// Returns the resource of the disk at `folder` that is exhausted; `None` if no resource is.
fn disk_full_reason(folder: &Path) -> Option<String> {
    let room = rustix::fs::statvfs(folder).ok()?;
    let device = |path: &Path| path.metadata().map(|found| found.dev()).ok();
    // The mount point is named, because `folder` is removed when the build fails.
    let same = folder.ancestors().take_while(|above| device(above) == device(folder));
    let disk = same.last().unwrap_or(folder).display();
    let bytes = room.f_bavail.saturating_mul(room.f_frsize);
    if bytes < LEAST_BYTES {
        return Some(format!("the disk at {disk} is full ({} KiB free)", bytes >> 10));
    }
    // Some file systems have no fixed number of files and report 0.
    let no_files = room.f_files > 0 && room.f_favail == 0;
    no_files.then(|| format!("the disk at {disk} is full: it has no room for another file (df -i)"))
}

/// Converts the exit of a tool that wrote into `root` into a result, with an error message that names the step `what`.
pub fn check_outcome(ended: ProcessOutcome, what: &str, root: &Path, log: &BuildLog) -> Result<()> {
    match ended {
        ProcessOutcome::Exited(exit) if exit.success() => Ok(()),
        ProcessOutcome::Exited(exit) => Err(match disk_full_reason(root) {
            None => Error::new(Code::BuildFailed, format!("{what} failed ({exit}): {}", log.last_lines())),
            Some(why) => Error::new(
                Code::DiskFull,
                format!(
                    "{what} failed because {why}; a container needs about 1 GiB: free some space, or choose a larger disk \
                     with --data-dir, and build again. Last output: {}",
                    log.last_lines()
                ),
            ),
        }),
        ProcessOutcome::TimedOut => Err(Error::new(
            Code::BuildFailed,
            format!("{what} timed out and was killed: {}", log.last_lines()),
        )),
        ProcessOutcome::Cancelled => Err(Error::new(Code::Cancelled, format!("{what} was cancelled"))),
    }
}

/// Bootstraps `distro` into the existing empty directory `root`.
///
/// # Errors
/// `BuildFailed` with the name of the package to install or with the last meaningful lines of the tool's output;
/// `DiskFull`; `Cancelled`.
pub fn bootstrap(
    distro: Distro,
    root: &Path,
    sources: &PackageSources,
    group: Group,
    log: &mut BuildLog,
    cancel: &Cancel,
) -> Result<()> {
    let (what, args) = match suite(distro) {
        _ if distro == Distro::Host => {
            return Err(Error::internal("The host's own system needs no bootstrap"));
        }
        Some(suite) => ("debootstrap", debootstrap(distro, &suite, root, sources)?),
        None => ("pacstrap", pacstrap(root, sources)?),
    };
    log.new_step();
    let spec = Spec::new(tools::require("unshare")?)
        // Both tools mount proc and sys below the root. In a separate mount namespace, no mount remains on the host,
        // however the tools end.
        .args(["--mount", "--propagation=slave"])
        .args(args)
        .envs(&sources.proxy_env);
    let ended = spec.run(group, log, sources.deadline, cancel)?;
    if ended == ProcessOutcome::TimedOut {
        let secs = sources.deadline.as_secs();
        let message = format!(
            "{what} took longer than {secs} s (--image-timeout) and was killed: {}",
            log.last_lines()
        );
        return Err(Error::new(Code::BuildFailed, message));
    }
    check_outcome(ended, what, root, log)
}

/// Host resources that a bootstrap uses.
#[derive(Debug)]
pub struct BootstrapTools {
    /// The path of debootstrap or pacstrap.
    pub program: PathBuf,
    /// The keys that verify the packages.
    pub keyring: Keyring,
    /// The debootstrap script of the suite's family, if debootstrap has no script for the suite itself.
    pub stand_in: Option<PathBuf>,
    /// debootstrap's `--extractor`, if its default cannot unpack the suite's packages.
    pub extractor: Option<&'static str>,
}

/// The keys that verify a distribution's packages.
#[derive(Debug)]
pub enum Keyring {
    /// A file for debootstrap, a GnuPG directory for pacman.
    Host(PathBuf),
    /// Ubuntu's archive keys, embedded in the berth binary.
    Embedded,
}

impl fmt::Display for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Keyring::Host(path) => path.display().fmt(f),
            Keyring::Embedded => f.write_str("Ubuntu's archive keys, which are part of berth"),
        }
    }
}

/// Finds the host resources that a bootstrap of `distro` uses.
///
/// # Errors
/// `Unavailable` or `BuildFailed`, with the missing part and the package to install.
pub fn find_tools(distro: Distro, sources: &PackageSources) -> Result<BootstrapTools> {
    match suite(distro) {
        _ if distro == Distro::Host => Err(Error::internal("The host's own system needs no bootstrap")),
        Some(suite) => debootstrap_needs(distro, &suite, sources),
        None => pacstrap_needs(sources),
    }
}

/// A distribution's parameters for debootstrap.
struct Suite {
    name: &'static str,
    components: &'static str,
    archive: Archive,
    /// Debian 12's debootstrap has no script for noble. All Ubuntu suites since gutsy share one script, as all of
    /// Debian's do.
    family_script: &'static str,
}

fn suite(distro: Distro) -> Option<Suite> {
    let ubuntu =
        |name| Suite { name, components: "main,universe", archive: Archive::Ubuntu, family_script: "gutsy" };
    match distro {
        Distro::UbuntuNoble => Some(ubuntu("noble")),
        Distro::UbuntuJammy => Some(ubuntu("jammy")),
        Distro::DebianBookworm => Some(Suite {
            name: "bookworm",
            components: "main",
            archive: Archive::Debian,
            family_script: "sid",
        }),
        Distro::ArchLinux | Distro::Host => None,
    }
}

fn debootstrap_needs(distro: Distro, suite: &Suite, sources: &PackageSources) -> Result<BootstrapTools> {
    let program = tools::require("debootstrap")?;
    let configured = sources.keyrings.get(&distro);
    if let Some(path) = configured.filter(|path| !path.is_file()) {
        let problem =
            format!("The keyring of {distro}, {}, is not a file that debootstrap can use", path.display());
        return Err(Error::new(Code::BuildFailed, problem));
    }
    let host = configured.cloned().or_else(|| tools::keyring(suite.archive)).map(Keyring::Host);
    let embedded = || (suite.archive == Archive::Ubuntu).then_some(Keyring::Embedded);
    let Some(keyring) = host.or_else(embedded) else {
        let family = tools::family().unwrap_or(Family::Debian);
        return Err(Error::new(
            Code::BuildFailed,
            format!(
                "The keyring of {distro} is missing, so its packages could not be verified; install the package {}, or \
                 copy {} from a machine that has it and pass --keyring {distro}=FILE",
                tools::keyring_packages(family, suite.archive).join(" or "),
                tools::keyring_file(suite.archive).display(),
            ),
        ));
    };
    let scripts = Path::new("/usr/share/debootstrap/scripts");
    let stand_in = (!scripts.join(suite.name).exists()).then(|| scripts.join(suite.family_script));
    if let Some(script) = stand_in.as_ref().filter(|script| !script.exists()) {
        return Err(Error::new(
            Code::BuildFailed,
            format!(
                "debootstrap supports neither {} nor its family ({} is missing); install a newer debootstrap",
                suite.name,
                script.display()
            ),
        ));
    }
    let extractor = extractor(suite)?;
    Ok(BootstrapTools { program, keyring, stand_in, extractor })
}

/// Returns debootstrap's `--extractor`, if its default cannot unpack the suite's packages. Ubuntu compresses its
/// packages with zstd, which dpkg-deb supports since dpkg 1.21.18 (Debian 12) and in every Ubuntu since 2018.
/// debootstrap's other extractor uses ar(1) and zstdcat(1).
fn extractor(suite: &Suite) -> Result<Option<&'static str>> {
    // By default, debootstrap(8) uses dpkg-deb if it is installed, and otherwise ar.
    let dpkg = tools::find("dpkg-deb");
    // The binary of a dpkg-deb with zstd support contains the format's name.
    let reads_zstd = |path: &PathBuf| {
        std::fs::read(path).is_ok_and(|program| memchr::memmem::find(&program, b"zstd").is_some())
    };
    match (suite.archive, &dpkg) {
        (Archive::Debian, _) => Ok(None),
        (Archive::Ubuntu, Some(path)) if reads_zstd(path) => Ok(None),
        (Archive::Ubuntu, _) => {
            for program in ["ar", "zstdcat"] {
                tools::require(program)?;
            }
            Ok(Some("ar"))
        }
    }
}

fn pacstrap_needs(sources: &PackageSources) -> Result<BootstrapTools> {
    let program = tools::require("pacstrap")?;
    tools::require("pacman")?;
    if sources.mirror(Distro::ArchLinux).is_none() {
        return Err(Error::new(
            Code::BuildFailed,
            "No mirror for arch-linux is known on this host; pass --mirror arch-linux=URL, with $repo and $arch in it",
        ));
    }
    let configured = sources.keyrings.get(&Distro::ArchLinux).cloned();
    let keyring = configured.unwrap_or_else(|| PathBuf::from(tools::PACMAN_KEYS));
    if !keyring.is_dir() {
        return Err(Error::new(
            Code::BuildFailed,
            format!(
                "{} is missing, so the packages of arch-linux could not be verified; start berth with --setup, or install \
                 archlinux-keyring and run `pacman-key --init && pacman-key --populate archlinux`, or pass --keyring \
                 arch-linux=FOLDER",
                keyring.display()
            ),
        ));
    }
    Ok(BootstrapTools { program, keyring: Keyring::Host(keyring), stand_in: None, extractor: None })
}

fn debootstrap(distro: Distro, suite: &Suite, root: &Path, sources: &PackageSources) -> Result<Vec<String>> {
    let BootstrapTools { program, keyring, stand_in, extractor } = debootstrap_needs(distro, suite, sources)?;
    let keyring = match keyring {
        Keyring::Host(path) => path,
        Keyring::Embedded => {
            let path = root.with_extension("keyring.gpg");
            file::write_atomic(&path, UBUNTU_KEYRING, 0o600)?;
            path
        }
    };
    let mut args = vec![program.to_string_lossy().into_owned(), "--variant=minbase".to_owned()];
    args.push(format!("--components={}", suite.components));
    args.extend(extractor.map(|extractor| format!("--extractor={extractor}")));
    args.push(format!("--keyring={}", keyring.display()));
    // Without this option, debootstrap only warns if the archive is not signed.
    args.push("--force-check-gpg".to_owned());
    args.push(suite.name.to_owned());
    args.push(root.to_string_lossy().into_owned());
    let mirror = sources.mirror(distro);
    match (mirror, stand_in) {
        (Some(mirror), script) => {
            args.push(mirror);
            args.extend(script.map(|script| script.to_string_lossy().into_owned()));
        }
        // debootstrap(8) accepts the script only after the mirror; an empty mirror selects the script's default.
        (None, Some(script)) => args.extend([String::new(), script.to_string_lossy().into_owned()]),
        (None, None) => {}
    }
    Ok(args)
}

fn pacstrap(root: &Path, sources: &PackageSources) -> Result<Vec<String>> {
    let BootstrapTools { program, keyring, .. } = pacstrap_needs(sources)?;
    let mirror = sources.mirror(Distro::ArchLinux).unwrap_or_default();
    let config = root.with_extension("pacman.conf");
    let text = format!(
        "[options]\nArchitecture = auto\nSigLevel = Required DatabaseOptional\nGPGDir = {keyring}\n\
         [core]\nServer = {mirror}\n[extra]\nServer = {mirror}\n"
    );
    file::write_atomic(&config, text.as_bytes(), 0o600)?;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    Ok(vec![
        text(&program),
        "-C".into(),
        text(&config),
        // Use neither the host's keyring nor its mirror list. The cache is in the root (no -c) and is emptied with it,
        // so a build leaves nothing in the host's own cache.
        "-G".into(),
        "-M".into(),
        text(root),
        "base".into(),
    ])
}
