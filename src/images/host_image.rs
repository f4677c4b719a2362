//! The image of the host itself, for hosts that have no other image and no network. It contains no programs: a
//! container created from it sees the host's own, in place and read-only ([`PROGRAM_FOLDERS`]; `containers::binds`).
//! The owners of the host's files appear as the overflow user, so files that only the host's users may read stay
//! unreadable for every user inside. The image contains the other files that programs need: the directories of a system
//! and the files of `/etc` in [`ETC_FILES`] that every user may read. It contains no home directory, password, key,
//! name of a person, or host name.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use rustix::fs::OFlags;

use super::id::ImageName;
use super::record::{ImageSource, ImageView};
use super::staging::Staging;
use super::{Images, clean, listing};
use crate::base::{At, Code, Error, Result};
use crate::proc::Cancel;
use crate::store::beneath::Root;

/// Maximum size of the files that a `distro: "host"` image copies from the machine's `/etc`.
const OWN_BYTES: u64 = 64 << 20;
/// Maximum number of files that such an image copies from `/etc`.
const OWN_ENTRIES: u64 = 50_000;
/// Maximum depth of the files that such an image copies from `/etc`.
const OWN_DEPTH: usize = 20;

/// Directories with the host's programs, or links to them.
pub const PROGRAM_FOLDERS: [&str; 7] = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"];

/// Files in `/etc` that programs read and that reveal nothing about the host's users, networks and services.
const ETC_FILES: &[&str] = &[
    "alternatives",
    "bash.bashrc",
    "bash_completion.d",
    "bashrc",
    "ca-certificates",
    "ca-certificates.conf",
    "crypto-policies",
    "debian_version",
    "default/locale",
    "deluser.conf",
    "adduser.conf",
    "emacs",
    "fonts",
    "gai.conf",
    "groff",
    "host.conf",
    "inputrc",
    "ImageMagick-6",
    "ImageMagick-7",
    "java",
    "java-11-openjdk",
    "java-17-openjdk",
    "java-21-openjdk",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "libnl",
    "locale.alias",
    "locale.conf",
    "localtime",
    "login.defs",
    "lsb-release",
    "lynx",
    "magic",
    "magic.mime",
    "mailcap",
    "manpath.config",
    "mime.types",
    "nanorc",
    "nsswitch.conf",
    "pam.conf",
    "pam.d",
    "papersize",
    "perl",
    "pki/ca-trust",
    "pki/tls/cert.pem",
    "pki/tls/certs",
    "pki/tls/openssl.cnf",
    "profile",
    "protocols",
    "python3",
    "python3.10",
    "python3.11",
    "python3.12",
    "python3.13",
    "R",
    "rpc",
    "security",
    "services",
    "shells",
    "skel",
    "ssl/certs",
    "ssl/openssl.cnf",
    "terminfo",
    "texmf",
    "timezone",
    "ucf.conf",
    "vim",
    "xattr.conf",
    "xml",
    "sgml",
];

/// Directories of a system with their modes.
const SKELETON: &[(&str, u32)] = &[
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("media", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o755),
    ("root", 0o700),
    ("run", 0o755),
    ("srv", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
    ("var", 0o755),
    ("var/cache", 0o755),
    ("var/lib", 0o755),
    ("var/log", 0o755),
    ("var/mail", 0o755),
    ("var/spool", 0o755),
    ("var/tmp", 0o1777),
];

/// Returns whether an ID belongs to a system account rather than to a person (login.defs(5)), or is the ID of the
/// overflow user.
fn is_system_id(id: &str) -> bool {
    id.parse::<u32>().is_ok_and(|id| id < 1000 || id == 65534)
}

impl Images {
    pub(super) fn make_host_image(&self, name: &ImageName, cancel: &Cancel) -> Result<ImageView> {
        let staging = Staging::new(&self.folder)?;
        fill(Path::new("/"), &staging.root(), cancel)?;
        let known = listing::KnownDigests::new();
        let origin = "this machine's own system".to_owned();
        let id = staging.finish(name, ImageSource::Host, origin, &known, cancel)?.id;
        let before = self.read_pointer(name)?.filter(|before| *before != id);
        self.set_pointer(name, &id)?;
        if let Some(before) = before {
            // The old image has an earlier state of the host. Workspaces that use it keep it.
            match self.remove(&before) {
                Err(error) if error.code() != Code::ImageInUse => {
                    log::warn!("Image {}: {error}", before.short())
                }
                _ => {}
            }
        }
        self.show(&id)
    }
}

/// Fills the tree at `root` with files of the host, whose own root is at `host`.
fn fill(host: &Path, root: &Path, cancel: &Cancel) -> Result<()> {
    if !is_world_accessible(&host.join("usr")) || !is_world_accessible(host) {
        let message =
            "The host's own system cannot be used for containers: /usr is not readable by all users";
        return Err(Error::new(Code::BuildFailed, message));
    }
    for name in PROGRAM_FOLDERS {
        let (from, to) = (host.join(name), root.join(name));
        match from.symlink_metadata() {
            Ok(meta) if meta.is_symlink() => link(&from, &to)?,
            Ok(meta) if meta.is_dir() => make(&to, 0o755)?,
            _ => {}
        }
    }
    for (name, mode) in SKELETON {
        make(&root.join(name), *mode)?;
    }
    for (name, target) in [("var/run", "/run"), ("var/lock", "/run/lock"), ("etc/mtab", "/proc/self/mounts")]
    {
        symlink(target, root.join(name)).at("make", name)?;
    }
    let etc = host.join("etc");
    if is_world_accessible(&etc) {
        let mut copy =
            EtcCopy { device: etc.metadata().at("look at", &etc)?.dev(), bytes: 0, entries: 0, cancel };
        for name in ETC_FILES {
            let (from, to) = (etc.join(name), root.join("etc").join(name));
            let above = Path::new(name).parent().filter(|above| !above.as_os_str().is_empty());
            // Files in a directory that some users cannot enter are not readable by all users.
            if above.is_none_or(|above| above.ancestors().all(|part| is_world_accessible(&etc.join(part))))
                && from.symlink_metadata().is_ok()
            {
                fs::create_dir_all(to.parent().unwrap_or(root)).at("make", &to)?;
                copy.entry(&from, &to, OWN_DEPTH)?;
            }
        }
    }
    let tree = Root::open(root)?;
    if let Ok(text) = fs::read(host.join("etc/os-release")) {
        tree.write_new("etc/os-release", &text, 0o644)?;
    }
    accounts(&etc, &tree)?;
    clean::remove_identity(root)
}

/// Writes accounts without passwords, and only those of the system.
fn accounts(etc: &Path, tree: &Root) -> Result<()> {
    let lines = |name: &str| fs::read_to_string(etc.join(name)).unwrap_or_default();
    let (mut passwd, mut shadow, mut group, mut gshadow) =
        (String::new(), String::new(), String::new(), String::new());
    for line in lines("passwd").lines() {
        let fields: Vec<&str> = line.split(':').collect();
        if let [name, _, uid, gid, about, home, shell] = fields[..] {
            if is_system_id(uid) {
                passwd += &format!("{name}:x:{uid}:{gid}:{about}:{home}:{shell}\n");
                shadow += &format!("{name}:*:19000:0:99999:7:::\n");
            }
        }
    }
    for line in lines("group").lines() {
        let fields: Vec<&str> = line.split(':').collect();
        if let [name, _, gid, _] = fields[..] {
            if is_system_id(gid) {
                group += &format!("{name}:x:{gid}:\n");
                gshadow += &format!("{name}:*::\n");
            }
        }
    }
    if !passwd.starts_with("root:") {
        passwd.insert_str(0, "root:x:0:0:root:/root:/bin/sh\n");
        shadow.insert_str(0, "root:*:19000:0:99999:7:::\n");
    }
    for (name, text, mode) in [
        ("etc/passwd", passwd, 0o644),
        ("etc/group", group, 0o644),
        ("etc/shadow", shadow, 0o600),
        ("etc/gshadow", gshadow, 0o600),
    ] {
        tree.write_new(name, text.as_bytes(), mode)?;
    }
    Ok(())
}

/// Copies the files of `/etc` that every user may read, from one file system.
struct EtcCopy<'a> {
    device: u64,
    bytes: u64,
    entries: u64,
    cancel: &'a Cancel,
}

impl EtcCopy<'_> {
    fn entry(&mut self, from: &Path, to: &Path, depth: usize) -> Result<()> {
        // The host may change at any time, so a missing file is skipped.
        let Ok(meta) = from.symlink_metadata() else { return Ok(()) };
        self.entries += 1;
        if self.cancel.is_cancelled() {
            return Err(Error::new(Code::Cancelled, "The operation was cancelled"));
        }
        if self.entries > OWN_ENTRIES || self.bytes > OWN_BYTES {
            let message = "The files that programs need from the host's /etc are too large for an image";
            return Err(Error::new(Code::BuildFailed, message));
        }
        if meta.is_symlink() {
            return link(from, to);
        }
        if meta.dev() != self.device || depth == 0 {
            return Ok(());
        }
        if meta.is_file() {
            return self.file(from, to);
        }
        if !meta.is_dir() || !is_world_accessible(from) {
            return Ok(());
        }
        make(to, 0o755)?;
        for entry in fs::read_dir(from).into_iter().flatten().flatten() {
            self.entry(&entry.path(), &to.join(entry.file_name()), depth - 1)?;
        }
        Ok(())
    }

    fn file(&mut self, from: &Path, to: &Path) -> Result<()> {
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY).bits();
        let Ok(file) = File::options().read(true).custom_flags(flags as i32).open(from) else {
            return Ok(());
        };
        let meta = file.metadata().at("look at", from)?;
        if !meta.is_file() || meta.mode() & 0o004 == 0 || meta.dev() != self.device {
            return Ok(());
        }
        let mut out = File::create_new(to).at("write", to)?;
        let most = OWN_BYTES.saturating_sub(self.bytes);
        self.bytes += std::io::copy(&mut file.take(most), &mut out).at("write", to)?;
        let mode = fs::Permissions::from_mode(0o644 | (meta.mode() & 0o111));
        out.set_permissions(mode).at("write", to)
    }
}

/// Returns whether all users may list and enter a directory.
pub fn is_world_accessible(folder: &Path) -> bool {
    folder.metadata().is_ok_and(|meta| meta.is_dir() && meta.mode() & 0o005 == 0o005)
}

fn link(from: &Path, to: &Path) -> Result<()> {
    let Ok(target) = fs::read_link(from) else { return Ok(()) };
    symlink(target, to).at("make", to)
}

fn make(folder: &Path, mode: u32) -> Result<()> {
    if !folder.is_dir() {
        fs::create_dir(folder).at("make", folder)?;
    }
    fs::set_permissions(folder, fs::Permissions::from_mode(mode)).at("prepare", folder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::file::write_atomic;
    use crate::store::scratch::TestFolder;

    #[test]
    fn only_world_readable_files_and_system_accounts_are_copied() {
        let (host, root) = (TestFolder::new(), TestFolder::new());
        let put = |name: &str, text: &str, mode: u32| {
            let path = host.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            write_atomic(&path, text.as_bytes(), mode).unwrap();
        };
        let open = |name: &str, mode: u32| {
            fs::set_permissions(host.join(name), fs::Permissions::from_mode(mode)).unwrap();
        };
        put("usr/bin/env", "", 0o755);
        put(
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/bash\nann:x:1000:1000:Ann:/home/ann:/bin/sh\nnobody:x:65534:65534::/:/x\n",
            0o644,
        );
        put("etc/group", "root:x:0:ann\nsudo:x:27:ann,bob\nann:x:1000:\n", 0o644);
        put("etc/shadow", "root:$6$hash:1::::::\nann:$6$hash:1::::::\n", 0o640);
        put("etc/os-release", "ID=test\nPRETTY_NAME=\"Test\"\n", 0o644);
        put("etc/profile", "", 0o644);
        put("etc/wireguard/wg0.conf", "secret", 0o644);
        put("etc/ssl/certs/a.pem", "certificate", 0o644);
        put("etc/ssl/certs/hidden.pem", "secret", 0o640);
        put("etc/skel/closed/file", "secret", 0o644);
        put("etc/perl/run", "", 0o4755);
        put("etc/machine-id", "0123", 0o444);
        symlink("../usr/share/zoneinfo/UTC", host.join("etc/localtime")).unwrap();
        symlink("usr/bin", host.join("bin")).unwrap();
        for name in ["", "usr", "usr/bin", "etc", "etc/ssl", "etc/ssl/certs", "etc/skel", "etc/perl"] {
            open(name, 0o755);
        }
        open("etc/skel/closed", 0o700);
        fill(&host, &root, &Cancel::new().unwrap()).unwrap();
        let read = |name: &str| fs::read_to_string(root.join(name)).ok();
        assert_eq!(
            read("etc/passwd").unwrap(),
            "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:/x\n"
        );
        assert_eq!(read("etc/group").unwrap(), "root:x:0:\nsudo:x:27:\n");
        assert_eq!(read("etc/shadow").unwrap(), "root:*:19000:0:99999:7:::\nnobody:*:19000:0:99999:7:::\n");
        assert_eq!(read("etc/ssl/certs/a.pem").as_deref(), Some("certificate"));
        assert_eq!(read("etc/machine-id").as_deref(), Some(""));
        for missing in ["etc/wireguard", "etc/ssl/certs/hidden.pem", "etc/skel/closed", "usr/bin"] {
            assert!(root.join(missing).symlink_metadata().is_err(), "{missing}");
        }
        assert_eq!(fs::read_link(root.join("bin")).unwrap(), Path::new("usr/bin"));
        let mode = |name: &str| root.join(name).symlink_metadata().unwrap().mode() & 0o7777;
        assert_eq!((mode("etc/perl/run"), mode("root"), mode("tmp")), (0o755, 0o700, 0o1777));
        open("usr", 0o750);
        let failed = fill(&host, &root.join("other"), &Cancel::new().unwrap()).unwrap_err();
        assert_eq!(failed.code(), Code::BuildFailed);
    }
}
