//! What this process has of the machine's memory, by the operating system's account.

/// Bytes now; `None` where there is no `/proc`.
pub fn resident() -> Option<u64> {
    of("VmRSS:")
}

/// The most bytes that it ever had.
pub fn peak() -> Option<u64> {
    of("VmHWM:")
}

fn of(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
}
