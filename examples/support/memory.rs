//! Resources of this process, from the operating system's statistics.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Resident bytes now; `None` without `/proc`.
pub fn resident() -> Option<u64> {
    resident_of(SELF)
}

/// Resident bytes of another process now.
pub fn resident_of(process: &str) -> Option<u64> {
    of(process, "VmRSS:")
}

/// The peak of resident bytes.
pub fn peak() -> Option<u64> {
    of(SELF, "VmHWM:")
}

/// This process, in `/proc`.
const SELF: &str = "self";

fn of(process: &str, field: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
}

/// Resets [`peak`] to the present value, if the system supports it.
pub fn forget_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// The processor time of all threads of this process. Other processes do not count.
pub fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    // Neither is negative: it counts from the start of the process.
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// The same of another process, with a resolution of 1/100 s. `None` without `/proc`.
pub fn processor_time_of(process: &str) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // After the program's name, which may contain any character: fields 14 and 15, in ticks of 1/100 s.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 10))
}
