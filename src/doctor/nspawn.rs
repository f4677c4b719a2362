//! Checks of systemd-nspawn: its version, its build options, and whether it has the vulnerability CVE-2026-40226,
//! through which a `.nspawn` file in an image escapes to the host.

use super::{Check, Subject, install, run};
use crate::proc::tools::{self, Family};

const CVE: &str = "CVE-2026-40226";

/// Checks the installed nspawn. Returns no checks if it is missing, which [`super::programs`] reports.
pub(super) fn checks(subject: &Subject) -> Vec<Check> {
    let Some(program) = tools::find("systemd-nspawn") else { return Vec::new() };
    let printed = match run(subject, program, &["--version"]) {
        Ok(printed) => printed,
        Err(why) => {
            return vec![Check::fail(
                "systemd-nspawn",
                format!("does not run: {why}"),
                install(&["--reinstall", "systemd-container"]),
            )];
        }
    };
    let version = version_of(&printed).unwrap_or("of unknown version").to_owned();
    vec![
        Check::ok("systemd-nspawn", version.clone()),
        seccomp(&printed),
        cve(&version, fixed_upstream(&version).unwrap_or_else(|| patched(subject))),
    ]
}

/// Returns the version in nspawn's output: the package's version if there is one, as in `systemd 252
/// (252.39-1~deb12u2)`; otherwise systemd's own.
fn version_of(printed: &str) -> Option<&str> {
    let line = printed.lines().next()?;
    let package = line.split_once('(').and_then(|(_, rest)| rest.split_once(')'));
    package.map(|(version, _)| version).or_else(|| line.split(' ').nth(1))
}

fn seccomp(printed: &str) -> Check {
    let kernel = std::path::Path::new("/proc/sys/kernel/seccomp/actions_avail").exists();
    let built = printed.split_whitespace().any(|feature| feature == "+SECCOMP");
    if kernel && built {
        return Check::ok("seccomp", "containers run behind a system call filter");
    }
    let lacks = if kernel { "systemd-nspawn was built without it" } else { "the kernel has none" };
    Check::warn(
        "seccomp",
        format!("Containers run without a system call filter: {lacks}"),
        "a kernel with CONFIG_SECCOMP_FILTER and a systemd-nspawn with +SECCOMP",
    )
}

fn cve(version: &str, fixed: bool) -> Check {
    if fixed {
        return Check::ok(CVE, format!("fixed in {version}"));
    }
    Check::warn(
        CVE,
        format!(
            "{version} may be vulnerable: a .nspawn file in an image can escape to the host. berth itself never reads \
             one (--settings=no); other uses of systemd-nspawn do"
        ),
        "update systemd: it is fixed in 257.12, 258.6, 259.4 and 260, and in what distributions patched",
    )
}

/// Returns whether this version has the fix; `None` if it depends on the distribution's patches.
fn fixed_upstream(version: &str) -> Option<bool> {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().ok());
    let major = numbers.next().flatten()?;
    let minor =
        if version[major.to_string().len()..].starts_with('.') { numbers.next().flatten() } else { None };
    let minor = minor.unwrap_or(0);
    match major {
        // The vulnerability was introduced in version 233.
        ..=232 | 260.. => Some(true),
        257 if minor >= 12 => Some(true),
        258 if minor >= 6 => Some(true),
        259 if minor >= 4 => Some(true),
        _ => None,
    }
}

/// Returns whether the changelog of the installed package mentions the vulnerability, that is, its fix.
fn patched(subject: &Subject) -> bool {
    let (program, args): (_, &[&str]) = match tools::family() {
        Some(Family::Debian) => {
            ("gzip", &["--decompress", "--stdout", "/usr/share/doc/systemd-container/changelog.Debian.gz"])
        }
        Some(Family::Fedora) => ("rpm", &["--query", "--changelog", "systemd-container"]),
        _ => return false,
    };
    let changes = tools::find(program).map(|program| run(subject, program, args));
    changes.is_some_and(|changes| changes.is_ok_and(|text| text.contains(CVE)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_parsed_as_distributions_write_them() {
        for (printed, want) in [
            ("systemd 252 (252.39-1~deb12u2)\n+PAM +SECCOMP", "252.39-1~deb12u2"),
            ("systemd 257 (257.13-1~deb13u1)", "257.13-1~deb13u1"),
            ("systemd 239", "239"),
        ] {
            assert_eq!(version_of(printed), Some(want));
        }
        assert_eq!(version_of(""), None);
    }

    #[test]
    fn the_version_shows_whether_upstream_fixed_it() {
        for fixed in
            ["232-25", "257.12-1", "257.13-1~deb13u1", "258.6", "259.4-1-arch", "260~rc1-1", "261.2-1.fc44"]
        {
            assert_eq!(fixed_upstream(fixed), Some(true), "{fixed}");
        }
        for open in
            ["233", "252.39-1~deb12u2", "255.4-1ubuntu8.6", "257.11-9", "258", "258-12", "259.3-1.fc43"]
        {
            assert_eq!(fixed_upstream(open), None, "{open}");
        }
        assert_eq!(fixed_upstream("of unknown version"), None);
    }
}
