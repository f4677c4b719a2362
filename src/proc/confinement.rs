//! What the surroundings of this process, such as an outer container, take from it although it runs as root
//! (proc_pid_status(5)).

use rustix::io::Errno;

/// CAP_SYS_ADMIN (capabilities(7)).
const SYS_ADMIN: u64 = 1 << 21;

/// How the process is confined.
#[derive(Clone, Copy, Debug)]
pub struct Confinement {
    /// A seccomp profile filters its system calls.
    pub seccomp: bool,
    /// It has CAP_SYS_ADMIN, without which there are no mounts and no namespaces.
    pub sys_admin: bool,
}

impl Confinement {
    /// That of this process.
    pub fn from_proc_self() -> Confinement {
        Confinement::of(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
    }

    fn of(status: &str) -> Confinement {
        let value = |name| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let capabilities = value("CapEff:").and_then(|mask| u64::from_str_radix(mask, 16).ok());
        Confinement {
            seccomp: value("Seccomp:") == Some("2"),
            sys_admin: capabilities.is_none_or(|mask| mask & SYS_ADMIN != 0),
        }
    }

    /// What in it explains that a system call for namespaces, mounts or processes is refused.
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
    fn the_status_of_a_process_names_what_confines_it() {
        let docker =
            Confinement::of("Name:\tberth\nCapEff:\t00000000a80425fb\nSeccomp:\t2\nSeccomp_filters:\t1\n");
        assert!(docker.seccomp && !docker.sys_admin);
        assert_eq!(docker.explains(Errno::NOSYS), Some("refused by a seccomp profile"));
        let host = Confinement::of("CapEff:\t000001ffffffffff\nSeccomp:\t0\nSeccomp_filters:\t0\n");
        assert!(!host.seccomp && host.sys_admin && host.explains(Errno::PERM).is_none());
    }
}
