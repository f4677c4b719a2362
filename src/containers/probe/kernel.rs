//! What the kernel can: namespaces, layered and mapped mounts, terminals.

use super::{Check, Scratch, Status, Subject, is_root, try_out};
use crate::containers::roots::Ability;
use crate::proc::Pty;
use crate::store::beneath::Root;

/// The kernel itself; without openat2 (Linux 5.6) no file of a container can be opened safely.
pub(super) fn version() -> Check {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let found = format!("Linux {} {}", release.trim(), std::env::consts::ARCH);
    match Root::open(std::path::Path::new("/")).and_then(|root| root.is_dir("proc")) {
        Ok(true) => Check::ok("kernel", found),
        Ok(false) => Check::fail("kernel", format!("{found}, without /proc"), "mount -t proc proc /proc"),
        Err(error) => Check::fail("kernel", format!("{found}: {error}"), "use Linux 5.14 or newer"),
    }
}

pub(super) fn user_namespaces(subject: &Subject) -> Check {
    let name = "user namespaces";
    match try_out(subject, "userns", std::path::Path::new("/")) {
        Ok(()) => Check::ok(name, "root of a container is nobody outside"),
        Err(why) => {
            let off = |file: &str| {
                std::fs::read_to_string(format!("/proc/sys/{file}")).is_ok_and(|text| text.trim() == "0")
            };
            let fix = if off("user/max_user_namespaces") {
                "sysctl -w user.max_user_namespaces=65536"
            } else if off("kernel/unprivileged_userns_clone") && !is_root() {
                "sysctl -w kernel.unprivileged_userns_clone=1, or start berth as root"
            } else if is_root() {
                "allow them: a kernel with CONFIG_USER_NS, or the outer container's settings"
            } else {
                "start berth as root"
            };
            // Only root makes containers, and what others may is then without consequence.
            let status = if is_root() { Status::Fail } else { Status::Warn };
            Check { name: name.into(), status, found: why, fix: Some(fix.into()) }
        }
    }
}

/// Mounts on the file system of the data folder.
pub(super) fn mounts(subject: &Subject, scratch: &Scratch) -> Vec<Check> {
    let rows = [
        (
            "id-mapped mounts",
            "idmap",
            "a root's files need no new owner",
            "the first start of a container changes the owner of all its files",
        ),
        (
            "overlayfs",
            "overlay",
            "layers work on the data folder's file system",
            "every workspace needs a whole copy of its base image",
        ),
        (
            "mapped overlays",
            "idmap-overlay",
            "a base image can serve many containers",
            "a base image cannot be shared by containers with different owners",
        ),
    ];
    let row = |(name, probe, good, bad): (&str, &str, &str, &str)| {
        if !is_root() {
            return Check::warn(name, "not tried without root", "run berth doctor as root");
        }
        match scratch
            .folder(probe)
            .map_err(|error| error.to_string())
            .and_then(|folder| try_out(subject, probe, &folder))
        {
            Ok(()) => Check::ok(name, good),
            Err(why) => Check::warn(
                name,
                format!("{why}; {bad}"),
                "a kernel of 5.19 or newer and --data-dir on ext4, xfs or btrfs",
            ),
        }
    };
    rows.into_iter().map(row).collect()
}

/// How roots will be made, by doing it.
pub(super) fn roots(scratch: &Scratch) -> Check {
    let name = "roots";
    if !is_root() {
        return Check::warn(name, "not tried without root", "run berth doctor as root");
    }
    let ability = match scratch.folder("roots").and_then(|folder| Ability::of(&folder)) {
        Ok(ability) => ability,
        Err(error) => return Check::warn(name, error.to_string(), "let berth's user own the data folder"),
    };
    let best = ability.best.as_str();
    let Some(why) = ability.no_overlay else {
        return Check::ok(name, format!("made as {best}: at once, snapshots and clones too"));
    };
    let cost = match ability.no_reflink {
        None => "a copy that shares its blocks",
        Some(_) => "a whole copy, which takes a second and some 200 MB",
    };
    let fix = "a kernel of 5.19 or newer and --data-dir on ext4, xfs, btrfs or tmpfs";
    Check::warn(name, format!("made as {best}: {cost}; no layers: {why}"), fix)
}

pub(super) fn terminals() -> Check {
    let number = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/kernel/pty/{name}")).ok()?;
        text.trim().parse::<u64>().ok()
    };
    match Pty::open() {
        Ok(_) => match number("nr").zip(number("max")) {
            Some((used, most)) => Check::ok("terminals", format!("{used} of {most} in use")),
            None => Check::ok("terminals", "can be opened"),
        },
        Err(error) => Check::warn(
            "terminals",
            format!("No terminal can be opened: {error}"),
            "mount -t devpts -o ptmxmode=666 devpts /dev/pts, or sysctl -w kernel.pty.max=4096",
        ),
    }
}
