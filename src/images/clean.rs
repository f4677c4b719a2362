//! Removes machine-specific files from a tree, so that many containers can be created from it. The tree is untrusted:
//! all paths are opened beneath it.

use std::path::Path;

use crate::base::Result;
use crate::base::limits;
use crate::store::beneath::Root;

/// Files that [`remove_identity`] may write.
pub(super) const REWRITTEN: [&str; 4] = ["etc/machine-id", "etc/hostname", "etc/resolv.conf", "etc/hosts"];

/// Prepares a tree for any image: removes the identity, the secrets and the devices of a machine, and makes host names
/// resolve.
pub(super) fn remove_identity(root: &Path) -> Result<()> {
    let root = Root::open(root)?;
    remove_files(&root, "dev", |_| true)?;
    remove_files(&root, "etc/ssh", |name| name.starts_with("ssh_host_"))?;
    // Random seeds, and D-Bus's machine ID.
    for secret in
        ["var/lib/systemd/random-seed", "var/lib/systemd/credential.secret", "var/lib/dbus/machine-id"]
    {
        remove(&root, secret)?;
    }
    if !root.is_dir("etc")? {
        root.make_dirs("etc")?;
    }
    // Some of these paths are symbolic links: Ubuntu's resolv.conf would lead to a file that only a booted system has.
    for (path, text) in [("etc/machine-id", ""), ("etc/hostname", "workspace\n"), ("etc/resolv.conf", "")] {
        root.write_new(path, text.as_bytes(), 0o644)?;
    }
    // The workspace's own host name must resolve, otherwise sudo and other programs wait for DNS.
    if !root.exists("etc/hosts")? {
        root.write_new("etc/hosts", b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n", 0o644)?;
    }
    Ok(())
}

/// Removes caches of a bootstrap, which can be downloaded again.
pub(super) fn remove_caches(root: &Path) -> Result<()> {
    let root = Root::open(root)?;
    remove_files(&root, "var/cache/apt/archives", |name| name.ends_with(".deb"))?;
    remove_files(&root, "var/cache/apt", |name| name.ends_with(".bin"))?;
    remove_files(&root, "var/cache/pacman/pkg", |_| true)?;
    remove_files(&root, "var/lib/apt/lists", |name| name != "lock")?;
    remove_files(&root, "var/lib/apt/lists/partial", |_| true)?;
    // These logs contain build times, so two builds with the same packages would never give the same image.
    for log in ["var/log/bootstrap.log", "var/log/dpkg.log", "var/log/alternatives.log", "var/log/pacman.log"]
    {
        remove(&root, log)?;
    }
    Ok(())
}

/// Removes entries that are not directories and whose names `goes` accepts.
fn remove_files(root: &Root, folder: &str, goes: impl Fn(&str) -> bool) -> Result<()> {
    if !root.is_dir(folder)? {
        return Ok(());
    }
    for name in root.entries(folder, usize::try_from(limits::IMAGE_ENTRIES).unwrap_or(usize::MAX))? {
        if goes(&name) {
            remove(root, &format!("{folder}/{name}"))?;
        }
    }
    Ok(())
}

/// Removes an entry unless it is a directory. A missing entry is not an error.
fn remove(root: &Root, path: &str) -> Result<()> {
    match root.remove(path) {
        Err(error) if !root.is_dir(path).unwrap_or(false) => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::store::file::write_atomic;
    use crate::store::scratch::TestFolder;

    #[test]
    fn machine_identity_is_removed_and_links_are_not_followed() {
        let dir = TestFolder::new();
        let outside = dir.join("outside");
        let root = dir.join("root");
        for folder in ["root/etc/ssh", "root/dev/pts", "root/var/lib/apt/lists/partial", "outside"] {
            std::fs::create_dir_all(dir.join(folder)).unwrap();
        }
        write_atomic(&outside.join("victim"), b"safe", 0o644).unwrap();
        for file in
            ["etc/ssh/ssh_host_rsa_key", "etc/ssh/ssh_config", "dev/null", "var/lib/apt/lists/x", "etc/hosts"]
        {
            write_atomic(&root.join(file), b"mine", 0o644).unwrap();
        }
        symlink(outside.join("victim"), root.join("etc/machine-id")).unwrap();
        symlink(outside.join("victim"), root.join("etc/resolv.conf")).unwrap();
        symlink(&outside, root.join("var/cache")).unwrap();
        remove_identity(&root).unwrap();
        remove_caches(&root).unwrap();
        let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
        assert_eq!((read("etc/machine-id"), read("etc/resolv.conf")), (String::new(), String::new()));
        assert_eq!((read("etc/hostname").as_str(), read("etc/hosts").as_str()), ("workspace\n", "mine"));
        assert_eq!(std::fs::read_to_string(outside.join("victim")).unwrap(), "safe");
        for gone in ["etc/ssh/ssh_host_rsa_key", "dev/null", "var/lib/apt/lists/x"] {
            assert!(!root.join(gone).exists(), "{gone}");
        }
        for kept in ["etc/ssh/ssh_config", "dev/pts"] {
            assert!(root.join(kept).exists(), "{kept}");
        }
        // An empty tree becomes a usable tree.
        std::fs::create_dir(dir.join("empty")).unwrap();
        remove_identity(&dir.join("empty")).unwrap();
        assert!(dir.join("empty/etc/machine-id").exists());
    }
}
