//! Prepares a container's root before each start, while nothing is running in it: creates directories for temporary
//! files and writes the container's host name. All paths are opened beneath the root. Files that the workload wrote are
//! kept. No threads or locks.

use crate::base::Result;
use crate::store::beneath::Root;

/// Prepares a root. A failure, such as a full disk or a symbolic link in the path, does not prevent the start.
pub(super) fn prepare_root(root: &Root, host_name: &str) {
    // Images may lack these directories or give them any mode; a booting system would set this mode at each start.
    for folder in ["tmp", "var/tmp"] {
        warn(folder, root.make_shared_dir(folder));
    }
    warn("etc/hostname", write_hostname(root, host_name));
    warn("etc/hosts", write_hosts(root, host_name));
}

fn warn(path: &str, done: Result<()>) {
    if let Err(error) = done {
        log::warn!("/{path} in a container could not be updated: {}", error.message());
    }
}

/// Size limit of the files; larger ones are not host lists.
const HOSTS_BYTES: u64 = 1 << 20;

fn write_hostname(root: &Root, name: &str) -> Result<()> {
    const PATH: &str = "etc/hostname";
    let text = format!("{name}\n");
    if root.is_link(PATH)? || root.read(PATH, HOSTS_BYTES)?.as_deref() == Some(text.as_bytes()) {
        return Ok(());
    }
    root.make_dirs("etc")?;
    // The file is not synced to disk: the next start writes it again.
    root.write_again(PATH, text.as_bytes(), 0o644)
}

fn write_hosts(root: &Root, name: &str) -> Result<()> {
    const PATH: &str = "etc/hosts";
    if root.is_link(PATH)? {
        return Ok(());
    }
    let before = match root.read(PATH, HOSTS_BYTES)?.map(String::from_utf8) {
        None => "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n".to_owned(),
        Some(Ok(text)) => text,
        Some(Err(_)) => return Ok(()),
    };
    let after = with_name(&before, name);
    if after == before && root.exists(PATH)? {
        return Ok(());
    }
    root.make_dirs("etc")?;
    root.write_again(PATH, after.as_bytes(), 0o644)
}

/// Marks the line that berth wrote into a host list, so that it is found when the workspace is renamed.
const HOSTS_MARKER: &str = "# this container, by berth";

/// Returns the host list with a line for `name`. The line has a loopback address, as on Debian, because loopback
/// exists in every network. An existing line with the name is kept.
fn with_name(hosts: &str, name: &str) -> String {
    let is_ours = |line: &&str| line.trim_end().ends_with(HOSTS_MARKER);
    let others: Vec<&str> = hosts.split_inclusive('\n').filter(|line| !is_ours(line)).collect();
    let names = |line: &&str| {
        let words = line.split('#').next().unwrap_or_default();
        words.split_whitespace().skip(1).any(|word| word.eq_ignore_ascii_case(name))
    };
    let ours = format!("127.0.1.1\t{name}\t{HOSTS_MARKER}\n");
    if others.iter().any(names) {
        return others.concat();
    }
    let unchanged = hosts.split_inclusive('\n').any(|line| line == ours);
    if unchanged && hosts.split_inclusive('\n').filter(is_ours).count() == 1 {
        return hosts.to_owned();
    }
    let mut text = others.concat();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text + &ours
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use super::*;
    use crate::store::file::write_atomic;
    use crate::store::scratch::TestFolder;

    #[test]
    fn own_name_is_added_and_other_lines_are_kept() {
        let own = |name: &str| format!("127.0.1.1\t{name}\t{HOSTS_MARKER}\n");
        let base = "127.0.0.1 localhost\n";
        let once = with_name(base, "box");
        assert_eq!(once, format!("{base}{}", own("box")));
        assert_eq!(with_name(&once, "box"), once);
        let more = format!("{once}10.0.0.5 db\n");
        assert_eq!(with_name(&more, "box"), more, "the workload's line is kept, and ours keeps its position");
        assert_eq!(with_name(&more, "new"), format!("{base}10.0.0.5 db\n{}", own("new")));
        for named in ["10.0.0.9\tother BOX\n", "127.0.0.1 localhost box # mine"] {
            assert_eq!(with_name(named, "box"), named);
        }
        let comment = "#10.0.0.9 box\n1.2.3.4 boxes";
        assert_eq!(with_name(comment, "box"), format!("{comment}\n{}", own("box")));
        assert_eq!(with_name("", "box"), own("box"));
        assert_eq!(with_name(base, "localhost"), base);
    }

    #[test]
    fn unusual_roots_are_prepared_and_links_are_not_followed() {
        let dir = TestFolder::new();
        std::fs::create_dir_all(dir.join("root/etc")).unwrap();
        std::fs::create_dir_all(dir.join("root/var")).unwrap();
        write_atomic(&dir.join("outside"), b"safe", 0o600).unwrap();
        symlink(dir.join("outside"), dir.join("root/etc/hosts")).unwrap();
        symlink("/var", dir.join("root/tmp")).unwrap();
        prepare_root(&Root::open(&dir.join("root")).unwrap(), "box");
        assert_eq!(std::fs::read(dir.join("outside")).unwrap(), b"safe");
        assert_eq!(std::fs::read(dir.join("root/etc/hostname")).unwrap(), b"box\n");
        let mode = |path: &str| std::fs::metadata(dir.join(path)).unwrap().mode() & 0o7777;
        assert_eq!((mode("root/var/tmp"), mode("root/var")), (0o1777, 0o755));
        // Some images have an empty root.
        std::fs::create_dir(dir.join("empty")).unwrap();
        prepare_root(&Root::open(&dir.join("empty")).unwrap(), "box");
        assert!(std::fs::read_to_string(dir.join("empty/etc/hosts")).unwrap().contains("127.0.1.1\tbox"));
        assert_eq!(mode("empty/tmp"), 0o1777);
    }
}
