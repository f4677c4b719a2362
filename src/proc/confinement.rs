//! Restrictions that the environment of this process, such as an outer container, imposes although the process runs as
//! root (proc_pid_status(5)).

use rustix::io::Errno;

/// The bit of CAP_SYS_ADMIN in a capability mask (capabilities(7)).
const SYS_ADMIN: u64 = 1 << 21;

/// The restrictions of a process.
#[derive(Clone, Copy, Debug)]
pub struct Confinement {
    /// Whether a seccomp profile filters the system calls of the process.
    pub seccomp: bool,
    /// Whether the process has CAP_SYS_ADMIN, which mounts and namespaces require.
    pub sys_admin: bool,
}

impl Confinement {
    /// Reads the restrictions of this process.
    pub fn from_proc_self() -> Confinement {
        Confinement::from_status(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
    }

    fn from_status(status: &str) -> Confinement {
        let value = |name| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let capabilities = value("CapEff:").and_then(|mask| u64::from_str_radix(mask, 16).ok());
        Confinement {
            seccomp: value("Seccomp:") == Some("2"),
            sys_admin: capabilities.is_none_or(|mask| mask & SYS_ADMIN != 0),
        }
    }

    /// Returns the restriction that explains why a system call for namespaces, mounts or processes failed with `error`;
    /// `None` if no restriction explains the failure.
    pub fn explains(self, error: Errno) -> Option<&'static str> {
        match (error, self.seccomp, self.sys_admin) {
            (Errno::PERM | Errno::NOSYS, true, true) => Some("refused by a seccomp profile"),
            (Errno::PERM, true, false) => Some("refused by a seccomp profile, and CAP_SYS_ADMIN is missing"),
            (Errno::NOSYS, true, false) => Some("refused by a seccomp profile"),
            (Errno::PERM, false, false) => Some("CAP_SYS_ADMIN is missing"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_status_names_the_restriction() {
        let docker = Confinement::from_status(
            "Name:\tberth\nCapEff:\t00000000a80425fb\nSeccomp:\t2\nSeccomp_filters:\t1\n",
        );
        assert!(docker.seccomp && !docker.sys_admin);
        assert_eq!(docker.explains(Errno::NOSYS), Some("refused by a seccomp profile"));
        let host = Confinement::from_status("CapEff:\t000001ffffffffff\nSeccomp:\t0\nSeccomp_filters:\t0\n");
        assert!(!host.seccomp && host.sys_admin && host.explains(Errno::PERM).is_none());
    }
}
