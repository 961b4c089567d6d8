//! The memory of this process as the operating system sees it. Owns the reading; `None` where the system does not tell it
//! (`/proc` is Linux's).

/// Resident bytes now.
pub fn resident_bytes() -> Option<u64> {
    field("VmRSS:")
}

/// The largest number of resident bytes so far.
pub fn resident_peak_bytes() -> Option<u64> {
    field("VmHWM:")
}

fn field(name: &str) -> Option<u64> {
    read_field(&std::fs::read_to_string("/proc/self/status").ok()?, name)
}

/// A field of `/proc/self/status`, which counts in kibibytes.
fn read_field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_bytes() {
        let status = "Name:\tvidtune\nVmHWM:\t  204800 kB\nVmRSS:\t  102400 kB\nThreads:\t2\n";
        assert_eq!(read_field(status, "VmRSS:"), Some(100 << 20));
        assert_eq!(read_field(status, "VmHWM:"), Some(200 << 20));
        assert_eq!(read_field(status, "VmSwap:"), None);
        assert_eq!(read_field("VmRSS:\tmany kB\n", "VmRSS:"), None);
    }
}
