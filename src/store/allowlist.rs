//! Host folders that containers may mount: a client's request, the file in which the host's owner allows folders
//! (OpenWork's `sandbox-mount-allowlist.json`), and the check of a request against the file. **Invariant:** a source is
//! opened once; the real path of its descriptor is checked and the same descriptor is mounted, so the folder cannot be
//! replaced in between. The file is read again for every check: if a root is removed from the file, this takes effect
//! when the container next starts.
//!
//! This module does not depend on containers. No threads, no locks.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, OFlags, ResolveFlags, Stat, fstat, statat};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::beneath::open_resolved;
use super::file;
use crate::base::{Code, Error, Result};

/// Maximum number of mounts of a container; each mount is an argument of the container's start.
const MOUNTS: usize = 32;
/// Maximum length of a source or target: the kernel's limit (PATH_MAX) without the terminating NUL.
const MOUNT_PATH_BYTES: usize = 4095;
/// Maximum size of the mount allowlist; people write it by hand.
const ALLOWLIST_BYTES: u64 = 1 << 20;

/// A client's request to mount a host folder or file into a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountRequest {
    /// The path on the host; `~` stands for the home folder of berth's user.
    pub source: String,
    /// The path in the container, which is created if it does not exist.
    pub target: String,
    /// Whether the mount is read-only in the container. The default is true.
    #[serde(default = "default_true")]
    pub read_only: bool,
}

fn default_true() -> bool {
    true
}

/// Paths in a container that cannot be mount targets: the kernel's file systems, and berth's own mounts.
const RESERVED_TARGETS: [&str; 5] = ["/proc", "/sys", "/dev", "/run", "/etc/resolv.conf"];

/// Patterns that are blocked in addition to the patterns in the file, as in OpenWork.
const BLOCKED_NAMES: [&str; 18] = [
    ".ssh",
    ".gnupg",
    ".gpg",
    ".aws",
    ".azure",
    ".gcloud",
    ".kube",
    ".docker",
    "credentials",
    ".env",
    ".netrc",
    ".npmrc",
    ".pypirc",
    "id_rsa",
    "id_ed25519",
    "private_key",
    ".secret",
    ".secrets",
];
/// Names of entries that mark a folder as a home or a key ring, which cannot be mounted as a whole. `.env` is not in
/// this list, because a project may have one.
const KEYS: [&str; 11] = [
    ".ssh",
    ".gnupg",
    ".gpg",
    ".aws",
    ".azure",
    ".gcloud",
    ".kube",
    ".docker",
    ".netrc",
    "id_rsa",
    "id_ed25519",
];
/// Host paths that are never mounted: the kernel's file systems and sockets of services.
const SYSTEM_FOLDERS: [&str; 4] = ["/proc", "/sys", "/dev", "/run"];

/// Folders that cannot be mounted, neither directly nor as part of a parent. Folders inside them can be mounted.
const PARENT_ONLY: [&str; 4] = ["/etc", "/home", "/root", "/var"];

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct AllowlistFile {
    allowed_roots: Vec<AllowedRoot>,
    blocked_patterns: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AllowedRoot {
    path: String,
    #[serde(default)]
    allow_read_write: bool,
}

/// The allowlist file, and the rules that apply in addition to it.
#[derive(Clone, Debug)]
pub struct Allowlist {
    /// The file's path, whether or not it exists.
    pub path: PathBuf,
    /// The folder that `~` stands for.
    pub home: PathBuf,
    /// berth's data folder, which is never mounted.
    pub data_dir: PathBuf,
    /// Folders that the server's flags grant to a sandbox, in addition to the file.
    pub granted: Vec<MountGrant>,
}

/// A folder or file that a sandbox may mount although no allowed root contains it.
#[derive(Clone, Debug)]
pub struct MountGrant {
    /// The real path, without links.
    pub path: PathBuf,
    pub writable: bool,
    /// Whether the path may be mounted even if it matches a blocked pattern.
    pub force: bool,
}

/// The reason why a source is refused.
#[derive(Debug)]
pub enum MountRefusal {
    /// The allowlist file does not exist or is invalid.
    NoFile(Error),
    /// The source cannot be opened.
    Missing(&'static str),
    /// The source's real path matches a blocked pattern.
    Pattern(String, PathBuf),
    /// None of these allowed roots contains the source.
    Outside(PathBuf, Vec<PathBuf>),
    /// Write access was requested, but this root is read-only.
    ReadOnly(PathBuf),
    /// The source violates a rule that the file cannot change.
    Other(String, PathBuf),
}

/// A source that was opened and allowed.
#[derive(Debug)]
pub struct AllowedSource {
    /// An `O_PATH` descriptor of the source.
    pub fd: OwnedFd,
    /// The type and the owner of the source.
    pub stat: Stat,
    /// The real path at the time of the check.
    pub real: PathBuf,
}

/// Validates a list of mount requests.
///
/// # Errors
/// `InvalidPayload` with the first invalid mount and the problem.
pub fn check(mounts: &[MountRequest]) -> Result<()> {
    let refuse = |number: usize, field: &str, why: &str| {
        let message = format!("mounts[{number}].{field} {why}");
        Err(Error::new(Code::InvalidPayload, message).detail("field", format!("mounts[{number}].{field}")))
    };
    if mounts.len() > MOUNTS {
        return Err(Error::new(Code::InvalidPayload, format!("At most {} mounts", MOUNTS)));
    }
    let plain = |path: &str| {
        path.len() <= MOUNT_PATH_BYTES
            && !path.chars().any(char::is_control)
            && Path::new(path).components().all(|part| part != Component::ParentDir)
    };
    for (number, mount) in mounts.iter().enumerate() {
        let absolute = mount.source.starts_with('/') || mount.source == "~" || mount.source.starts_with("~/");
        if !absolute || !plain(&mount.source) {
            return refuse(
                number,
                "source",
                "must be an absolute path of the host, or start with ~/, without '..'",
            );
        }
        let target = Path::new(&mount.target);
        if !target.is_absolute() || !plain(&mount.target) || target == Path::new("/") {
            return refuse(
                number,
                "target",
                "must be an absolute path in the container other than /, without '..'",
            );
        }
        if RESERVED_TARGETS.iter().any(|taken| target.starts_with(taken)) {
            return refuse(number, "target", "is inside a path of the container's own mounts");
        }
        if mounts[..number].iter().any(|other| Path::new(&other.target) == target) {
            return refuse(number, "target", "is already the target of another mount");
        }
    }
    Ok(())
}

impl Allowlist {
    /// Opens the sources of all mounts if all of them are allowed.
    ///
    /// # Errors
    /// `MountNotAllowed` with the mount and the reason; if there is no usable file, with an example of one.
    pub fn open(&self, mounts: &[MountRequest]) -> Result<Vec<AllowedSource>> {
        if mounts.is_empty() {
            return Ok(Vec::new());
        }
        mounts.iter().map(|mount| self.look(mount).map_err(|refusal| self.error(mount, refusal))).collect()
    }

    /// Opens the source of a mount, if it is allowed.
    ///
    /// # Errors
    /// The reason why the source is not allowed.
    pub fn look(&self, mount: &MountRequest) -> Result<AllowedSource, MountRefusal> {
        let granted = self.granted.iter().any(|grant| grant.path == Path::new(&mount.source));
        let rules =
            if granted { AllowlistFile::default() } else { self.rules().map_err(MountRefusal::NoFile)? };
        self.open_one(mount, &rules)
    }

    /// Returns the error that clients get for a refusal.
    fn error(&self, mount: &MountRequest, refusal: MountRefusal) -> Error {
        let file = self.path.display();
        let why = match refusal {
            MountRefusal::NoFile(error) => return error,
            MountRefusal::Missing(why) => why.to_owned(),
            MountRefusal::Pattern(pattern, _) => format!("its path has {pattern}, which is blocked"),
            MountRefusal::Outside(real, _) => {
                format!("{} is in none of the allowed roots of {file}", real.display())
            }
            MountRefusal::ReadOnly(root) => format!(
                "{} is allowed for reading only (allowReadWrite in {file}); ask for \"read_only\": true",
                root.display()
            ),
            MountRefusal::Other(why, _) => why,
        };
        let message = format!("{} cannot be mounted: {why}", mount.source);
        Error::new(Code::MountNotAllowed, message).detail("source", mount.source.clone())
    }

    /// Returns the number of roots that the file allows; `None` if the file does not exist.
    ///
    /// # Errors
    /// The same as for [`Allowlist::open`] if the file cannot be used.
    pub fn roots(&self) -> Result<Option<usize>> {
        if !self.path.exists() {
            return Ok(None);
        }
        self.rules().map(|rules| Some(rules.allowed_roots.len()))
    }

    fn rules(&self) -> Result<AllowlistFile> {
        let unusable = |why: String| {
            let example = json!({
                "allowedRoots": [{"path": "~/projects", "allowReadWrite": true, "description": "for agents"}],
                "blockedPatterns": []
            });
            let message = format!(
                "Containers get no folders of this host: the mount allowlist {} {why}. Write one such as {example}",
                self.path.display()
            );
            Error::new(Code::MountNotAllowed, message)
                .detail("allowlist", self.path.to_string_lossy().into_owned())
                .detail("example", example)
        };
        let bytes = file::read_optional(&self.path, ALLOWLIST_BYTES)
            .map_err(|error| unusable(format!("cannot be read ({})", error.message())))?
            .ok_or_else(|| unusable("does not exist".into()))?;
        let value: Value =
            serde_json::from_slice(&bytes).map_err(|error| unusable(format!("is not JSON ({error})")))?;
        if !value["allowedRoots"].is_array() {
            return Err(unusable("has no list allowedRoots".into()));
        }
        serde_json::from_value(value).map_err(|error| unusable(format!("has an invalid entry ({error})")))
    }

    fn expand(&self, path: &str) -> PathBuf {
        match path.strip_prefix('~') {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => {
                self.home.join(rest.trim_start_matches('/'))
            }
            _ => PathBuf::from(path),
        }
    }

    fn open_one(&self, mount: &MountRequest, rules: &AllowlistFile) -> Result<AllowedSource, MountRefusal> {
        let (fd, real) = open_real(&self.expand(&mount.source)).map_err(MountRefusal::Missing)?;
        let stat = fstat(&fd).map_err(|error| MountRefusal::Other(error.to_string(), real.clone()))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if !matches!(kind, FileType::Directory | FileType::RegularFile) {
            return Err(MountRefusal::Other("it is neither a folder nor a regular file".into(), real));
        }
        let given = self.granted.iter().find(|grant| grant.path == real);
        if !given.is_some_and(|grant| grant.force) {
            self.forbidden(&real, &rules.blocked_patterns)?;
            let has = |name: &&&str| statat(&fd, **name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
            if let Some(name) = KEYS.iter().filter(|_| kind == FileType::Directory).find(has) {
                let why = format!("it contains {name}, so it is a home folder; mount a folder in it instead");
                return Err(MountRefusal::Other(why, real));
            }
        }
        // The innermost root that contains the path decides.
        let roots = rules.allowed_roots.iter();
        let roots = roots
            .filter_map(|root| Some((open_real(&self.expand(&root.path)).ok()?.1, root.allow_read_write)));
        let roots: Vec<(PathBuf, bool)> = roots.collect();
        let around = roots.iter().filter(|(root, _)| real.starts_with(root));
        let root = around.max_by_key(|(root, _)| root.components().count()).cloned();
        let given = given.map(|grant| (grant.path.clone(), grant.writable));
        let Some((root, writable)) = given.or(root) else {
            return Err(MountRefusal::Outside(real, roots.into_iter().map(|(root, _)| root).collect()));
        };
        if !mount.read_only && !writable {
            return Err(MountRefusal::ReadOnly(root));
        }
        Ok(AllowedSource { fd, stat, real })
    }

    /// Refuses a path that no root can allow.
    fn forbidden(&self, real: &Path, patterns: &[String]) -> Result<(), MountRefusal> {
        let refuse = |why: String| Err(MountRefusal::Other(why, real.to_owned()));
        if let Some(system) = SYSTEM_FOLDERS.iter().find(|system| real.starts_with(system)) {
            return refuse(format!("nothing in {system} can be mounted into containers"));
        }
        let data = self.data_dir.canonicalize().unwrap_or_else(|_| self.data_dir.clone());
        if real.starts_with(&data) || data.starts_with(real) {
            return refuse("it is, contains or is inside berth's own data folder".into());
        }
        let home = self.home.canonicalize().unwrap_or_else(|_| self.home.clone());
        if home.starts_with(real) || PARENT_ONLY.iter().any(|whole| Path::new(whole).starts_with(real)) {
            return refuse("it contains the system's configuration or a home folder".into());
        }
        let mut patterns = BLOCKED_NAMES.iter().copied().chain(patterns.iter().map(String::as_str));
        match patterns.find(|pattern| self.blocks(pattern, real)) {
            Some(pattern) => Err(MountRefusal::Pattern(pattern.to_owned(), real.to_owned())),
            None => Ok(()),
        }
    }

    /// Returns whether a pattern matches the path. A pattern with a slash is compared with the path; any other pattern
    /// matches a whole word of a path component.
    fn blocks(&self, pattern: &str, real: &Path) -> bool {
        if pattern.contains('/') || pattern.starts_with('~') {
            let wanted = self.expand(pattern);
            if wanted.is_absolute() {
                return real.starts_with(wanted);
            }
            let wanted: Vec<Component<'_>> = wanted.components().collect();
            let parts: Vec<Component<'_>> = real.components().collect();
            return !wanted.is_empty() && parts.windows(wanted.len()).any(|window| window == wanted);
        }
        real.components().any(|part| has_word(&part.as_os_str().to_string_lossy(), pattern))
    }
}

/// Returns whether a name contains a word, ignoring case: `.env` is in `.env`, `.env.local` and `prod.env`, but not in
/// `.environments`.
fn has_word(name: &str, word: &str) -> bool {
    let (name, word) = (name.to_lowercase(), word.to_lowercase());
    let letter = |c: Option<char>| c.is_some_and(char::is_alphabetic);
    !word.is_empty()
        && name.match_indices(&word).any(|(at, _)| {
            let (before, after) = (name[..at].chars().next_back(), name[at + word.len()..].chars().next());
            let longer_before = letter(before) && letter(word.chars().next());
            let longer_after = letter(after) && letter(word.chars().next_back());
            !(longer_before || longer_after)
        })
}

/// Opens a path, following links, and returns the descriptor and its real path.
fn open_real(path: &Path) -> Result<(OwnedFd, PathBuf), &'static str> {
    let fd = open_resolved(CWD, path, OFlags::PATH, ResolveFlags::NO_MAGICLINKS)
        .map_err(|_| "it does not exist, or cannot be opened")?;
    let real =
        std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).map_err(|_| "/proc is missing")?;
    // A file that was just removed has no valid path (proc(5): ` (deleted)`). The path of a file in another mount
    // namespace is not absolute.
    if !real.is_absolute() || fstat(&fd).is_ok_and(|stat| stat.st_nlink == 0) {
        return Err("it was removed");
    }
    Ok((fd, real))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::scratch::TestFolder;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn mount(source: impl Into<String>, read_only: bool) -> MountRequest {
        MountRequest { source: source.into(), target: "/mnt/x".into(), read_only }
    }

    fn made() -> (TestFolder, Allowlist, PathBuf) {
        let dir = TestFolder::new();
        let base = fs::canonicalize(&*dir).unwrap();
        for folder in
            ["data", "home/projects/a/.ssh", "home/projects/b/.environments", "rw/inner-ro/x", "root-evil"]
        {
            fs::create_dir_all(base.join(folder)).unwrap();
        }
        let list = json!({
            "allowedRoots": [
                {"path": "~/projects"},
                {"path": base.join("rw"), "allowReadWrite": true},
                {"path": base.join("rw/inner-ro")},
                {"path": base.join("root")},
                {"path": "/proc", "allowReadWrite": true},
                {"path": base.join("data"), "allowReadWrite": true}
            ],
            "blockedPatterns": ["Geheim", "b/c"]
        });
        let path = base.join("allowlist.json");
        let mut file = fs::File::create(&path).unwrap();
        std::io::Write::write_all(&mut file, list.to_string().as_bytes()).unwrap();
        let allowlist =
            Allowlist { path, home: base.join("home"), data_dir: base.join("data"), granted: Vec::new() };
        (dir, allowlist, base)
    }

    #[test]
    fn only_whole_words_match() {
        for (name, word, want) in [
            (".env", ".env", true),
            (".env.local", ".env", true),
            ("prod.env", ".env", true),
            (".environments", ".env", false),
            ("aws_credentials.json", "credentials", true),
            ("credentialsstore", "credentials", false),
            (".SSH", ".ssh", true),
            ("id_rsa2", "id_rsa", true),
            ("x", "", false),
        ] {
            assert_eq!(has_word(name, word), want, "{name} {word}");
        }
    }

    #[test]
    fn only_sources_in_allowed_roots_are_opened() {
        let (_dir, allowlist, base) = made();
        let text = |path: &str| base.join(path).to_string_lossy().into_owned();
        for good in
            [mount("~/projects/b", true), mount("~/projects/b/.environments", true), mount(text("rw"), false)]
        {
            assert!(allowlist.open(std::slice::from_ref(&good)).is_ok(), "{good:?}");
        }
        let refused = |mount: MountRequest, why: &str| {
            let error = allowlist.open(std::slice::from_ref(&mount)).unwrap_err();
            assert_eq!(error.code(), Code::MountNotAllowed);
            assert!(error.message().contains(why), "{mount:?}: {}", error.message());
        };
        refused(mount("~/projects/b", false), "reading only");
        refused(mount(text("rw/inner-ro/x"), false), "reading only");
        refused(mount("~/projects/a/.ssh", true), ".ssh");
        refused(mount("~/projects/a", true), "a home folder");
        refused(mount("~", true), "a home folder");
        refused(mount(text("root-evil"), true), "none of the allowed roots");
        refused(mount(text("nothing"), true), "does not exist");
        refused(mount(text("data"), true), "data folder");
        refused(mount(text(""), true), "data folder");
        refused(mount("/proc/self", true), "/proc");
        refused(mount("/", true), "data folder");
        fs::create_dir_all(base.join("rw/geheim-1/b/c")).unwrap();
        fs::create_dir_all(base.join("rw/b/c/d")).unwrap();
        refused(mount(text("rw/geheim-1"), true), "Geheim");
        refused(mount(text("rw/b/c/d"), true), "b/c");
        symlink(base.join("root-evil"), base.join("rw/link")).unwrap();
        symlink("/proc/self/root/etc", base.join("rw/magic")).unwrap();
        refused(mount(text("rw/link"), true), "none of the allowed roots");
        refused(mount(text("rw/magic"), true), "cannot be opened");
    }

    #[test]
    fn error_without_a_file_shows_an_example() {
        let (_dir, mut allowlist, base) = made();
        assert_eq!(allowlist.roots().unwrap(), Some(6));
        allowlist.path = base.join("none.json");
        assert_eq!(allowlist.roots().unwrap(), None);
        let error = allowlist.open(&[mount("~/projects/b", true)]).unwrap_err();
        assert!(
            error.message().contains("none.json does not exist") && error.message().contains("allowedRoots")
        );
        assert!(allowlist.open(&[]).unwrap().is_empty());
    }

    #[test]
    fn malformed_requests_are_refused() {
        let with = |source: &str, target: &str| {
            check(&[MountRequest { source: source.into(), target: target.into(), read_only: true }])
        };
        assert!(with("/a:b\\c", "/mnt/x:y").is_ok() && with("~/x", "/workspace/extra").is_ok());
        for (source, target) in [
            ("a", "/x"),
            ("~other/x", "/x"),
            ("/a/../b", "/x"),
            ("/a", "x"),
            ("/a", "/"),
            ("/a", "/x/../.."),
            ("/a", "/proc/x"),
            ("/a", "/run"),
            ("/a", "/etc/resolv.conf"),
            ("/a", "/x\n"),
        ] {
            assert_eq!(with(source, target).unwrap_err().code(), Code::InvalidPayload, "{source} {target}");
        }
        let twice = [mount("/a", true), mount("/b", true)];
        assert!(check(&twice).unwrap_err().message().contains("mounts[1].target"));
    }
}
