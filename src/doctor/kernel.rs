//! Checks of the kernel: namespaces, overlay and ID-mapped mounts, terminals.

use rustix::io::Errno;

use super::{Check, CheckStatus, ScratchFolder, Subject, is_root, run_probe};
use crate::base::{limits, thread};
use crate::proc::Pty;
use crate::proc::confinement::Confinement;
use crate::proc::sys::clone3_refused;
use crate::roots::RootCapabilities;
use crate::store::beneath::Root;

/// Checks the kernel's version. Without openat2 (Linux 5.6), the server cannot open files of containers safely.
pub(super) fn version() -> Check {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let found = format!("Linux {} {}", release.trim(), std::env::consts::ARCH);
    match Root::open(std::path::Path::new("/")).and_then(|root| root.is_dir("proc")) {
        Ok(true) => Check::ok("kernel", found),
        Ok(false) => Check::fail("kernel", format!("{found}, without /proc"), "mount -t proc proc /proc"),
        Err(error) => Check::fail("kernel", format!("{found}: {error}"), NEWER),
    }
}

/// Checks whether the kernel can start commands directly in their cgroups. If clone3 fails, the errno shows the
/// cause: a seccomp filter returns an errno of its author's choice, and without a filter the kernel returns its
/// own.
pub(super) fn process_start() -> Check {
    let name = "clone3";
    if let Some(check) = no_threads() {
        return check;
    }
    let Some(errno) = clone3_refused() else { return Check::ok(name, "commands start in their cgroups") };
    let shown = match errno {
        Errno::NOSYS => "ENOSYS".to_owned(),
        Errno::PERM => "EPERM".to_owned(),
        other => other.to_string(),
    };
    let cost = "commands start by clone(2) and enter their cgroups themselves, which takes up to 15 ms each";
    match Confinement::from_proc_self().explains(errno) {
        Some(cause) => Check::warn(name, format!("clone3 is {cause} ({shown}): {cost}"), OUTER),
        None => Check::warn(name, format!("The kernel does not support clone3 ({shown}): {cost}"), NEWER),
    }
}

/// Returns a failed check if no thread can be started. glibc starts threads with clone3(2) and falls back to
/// clone(2) only after ENOSYS, so threads fail under a seccomp profile that returns EPERM.
pub fn no_threads() -> Option<Check> {
    let refused =
        clone3_refused() == Some(Errno::PERM) && thread::spawn("probe".into(), limits::STACK, || {}).is_err();
    refused.then(|| {
        Check::fail(
            "clone3",
            "clone3 is refused by a seccomp profile (EPERM), so no thread can be started and berth serve cannot run",
            "update the container runtime (Docker 20.10.10 and newer answers ENOSYS, which berth can work with), or \
             start berth's own container with --security-opt seccomp=unconfined",
        )
    })
}

const NEWER: &str = "use Linux 5.14 or newer";

/// Recommended fix if berth runs in a container that is too restrictive.
pub(super) const OUTER: &str = "start berth's own container with --privileged, or with --cap-add SYS_ADMIN, \
                                --security-opt systempaths=unconfined, --security-opt seccomp=unconfined, \
                                --cgroupns host and --volume /sys/fs/cgroup:/sys/fs/cgroup";

/// Returns the fix for failed mounts. A newer kernel, `otherwise`, helps only if berth has CAP_SYS_ADMIN.
fn mounts_fix(otherwise: &'static str) -> &'static str {
    if Confinement::from_proc_self().sys_admin { otherwise } else { OUTER }
}

pub(super) fn user_namespaces(subject: &Subject) -> Check {
    let name = "user namespaces";
    match run_probe(subject, "userns", std::path::Path::new("/")) {
        Ok(()) => Check::ok(name, "root of a container is unprivileged outside"),
        Err(why) => {
            let off = |file: &str| {
                std::fs::read_to_string(format!("/proc/sys/{file}")).is_ok_and(|text| text.trim() == "0")
            };
            let confined = Confinement::from_proc_self();
            let fix = if off("user/max_user_namespaces") {
                "sysctl -w user.max_user_namespaces=65536"
            } else if off("kernel/unprivileged_userns_clone") && !is_root() {
                "sysctl -w kernel.unprivileged_userns_clone=1, or start berth as root"
            } else if is_root() && (confined.seccomp || !confined.sys_admin) {
                OUTER
            } else if is_root() {
                "allow them: a kernel with CONFIG_USER_NS, or the outer container's settings"
            } else {
                "start berth as root"
            };
            // Only root creates containers, so a failure for other users is only a warning.
            let status = if is_root() { CheckStatus::Fail } else { CheckStatus::Warn };
            Check { name: name.into(), status, found: why, fix: Some(fix.into()) }
        }
    }
}

/// Checks overlays and ID-mapped mounts on the data directory's file system.
pub(super) fn mounts(subject: &Subject, scratch: &ScratchFolder) -> Vec<Check> {
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
            .and_then(|folder| run_probe(subject, probe, &folder))
        {
            Ok(()) => Check::ok(name, good),
            Err(why) => Check::warn(
                name,
                format!("{why}; {bad}"),
                mounts_fix("a kernel of 5.19 or newer and --data-dir on ext4, xfs or btrfs"),
            ),
        }
    };
    rows.into_iter().map(row).collect()
}

/// Checks which kind of root new workspaces will get, by creating one.
pub(super) fn roots(scratch: &ScratchFolder) -> Check {
    let name = "roots";
    if !is_root() {
        return Check::warn(name, "not tried without root", "run berth doctor as root");
    }
    let ability = match scratch.folder("roots").and_then(|folder| RootCapabilities::probe_folder(&folder)) {
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
    Check::warn(name, format!("made as {best}: {cost}; no layers: {why}"), mounts_fix(fix))
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
