//! The identity of this boot. Process numbers and start times on disk are valid only for the boot in which they were
//! recorded.

/// Returns the kernel's identifier of this boot, a UUID that changes with every boot (proc_sys_kernel(5)).
///
/// Returns an empty string if `/proc` does not contain the identifier.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    #[test]
    fn boot_id_is_a_uuid() {
        assert!(!super::boot_id().is_empty());
    }
}
