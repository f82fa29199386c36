//! Processes as `/proc` tells of them: an id is reused, together with its start it is not.

use std::fs;

use format_guard_common::event::Process;

/// This program, whatever has become of its file.
pub const OURSELVES: &str = "/proc/self/exe";

/// Nanoseconds of one of the kernel's user-visible ticks.
#[must_use]
pub fn tick() -> u64 {
    1_000_000_000 / rustix::param::clock_ticks_per_second()
}

/// A process that is there now. Its start is known to a tick.
#[must_use]
pub fn identity(pid: u32) -> Option<Process> {
    Some(Process { started: start_of(pid)? * tick(), tgid: pid, zero: 0 })
}

/// Ticks since boot at which a process started; `None` where it cannot be seen.
#[must_use]
pub fn start_of(pid: u32) -> Option<u64> {
    start(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Field 22 of `proc_pid_stat(5)`. The second field may hold anything, up to its last parenthesis.
fn start(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_of_this_process_can_be_read() {
        assert!(start_of(std::process::id()).is_some_and(|ticks| ticks > 0));
        assert_eq!(start_of(u32::MAX), None);
    }

    #[test]
    fn the_start_is_found_whatever_the_name_of_the_program_is() {
        let fields: Vec<String> = (3..53).map(|number| number.to_string()).collect();
        let stat = format!("17 (a) b ) {}\n", fields.join(" "));
        assert_eq!(start(&stat), Some(22));
        assert_eq!(start("17 (a"), None);
    }
}
