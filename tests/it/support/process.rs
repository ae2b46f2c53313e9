//! The resource usage of a process, as Linux reports it; elsewhere it is unknown.

use std::{fs, time::Duration};

/// The resource usage of a process up to now.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Kilobytes of resident memory.
    pub resident: u64,
    /// How many files it has open.
    pub files: usize,
    /// Processor time.
    pub cpu: Duration,
}

/// The usage of the process with this number.
pub fn usage(pid: u32) -> Option<Usage> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let files = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // After the name, which may contain anything: user and system time are the fields 14 and 15, in hundredths of a second.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    let resident = resident.trim().trim_end_matches(" kB").parse().ok()?;
    Some(Usage { resident, files, cpu: Duration::from_millis(10 * ticks) })
}
