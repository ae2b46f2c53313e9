//! What this process has of the machine, by the operating system's account.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Bytes now; `None` where there is no `/proc`.
pub fn resident() -> Option<u64> {
    resident_of(SELF)
}

/// Bytes that another process has now.
pub fn resident_of(process: &str) -> Option<u64> {
    of(process, "VmRSS:")
}

/// The most bytes that it ever had.
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

/// Lets [`peak`] begin again from what there is now. Nothing happens where the system cannot.
pub fn forget_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// The time that all threads of this process have had on a processor: what others do on the machine does not count.
pub fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    // Neither is negative: it counts from the start of the process.
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// The same of another process, to a hundredth of a second. `None` where there is no `/proc`.
pub fn processor_time_of(process: &str) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // Behind the program's name, which may hold anything: fields 14 and 15, in ticks of 1/100 s.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 10))
}
