//! Shared writable mappings of block devices that were there before the agent: stores into them pass no hook,
//! so all that can be done about them is to tell.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read},
    os::unix::fs::{FileTypeExt, MetadataExt},
};

use crate::volume::Dev;

/// Of one process's list of mappings, so many bytes are read at most.
const MAX_LIST: u64 = 16 << 20;

/// A process that can store into a device without being asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) pid: u32,
    pub(super) comm: String,
    pub(super) dev: Dev,
}

/// Those of every process, each device of a process once.
pub(super) fn present() -> Vec<Mapping> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut found: Vec<Mapping> =
        pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).flat_map(of).collect();
    found.dedup();
    found
}

/// Those of one process.
pub(super) fn of(pid: u32) -> Vec<Mapping> {
    // A process that has ended maps nothing any more.
    let Ok(list) = File::open(format!("/proc/{pid}/maps")) else { return Vec::new() };
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned();
    BufReader::new(list.take(MAX_LIST))
        .lines()
        .map_while(Result::ok)
        .filter_map(|line| {
            let metadata = fs::metadata(format!("/proc/{pid}/map_files/{}", shared_writable(&line)?)).ok()?;
            let dev = Dev::from_user(metadata.rdev());
            metadata.file_type().is_block_device().then(|| Mapping { pid, comm: comm.clone(), dev })
        })
        .collect()
}

/// The range of a line of `proc_pid_maps(5)`, if it is a shared and writable mapping.
fn shared_writable(line: &str) -> Option<&str> {
    let (range, rest) = line.split_once(' ')?;
    let rights = rest.as_bytes().get(..4)?;
    (rights[1] == b'w' && rights[3] == b's').then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_shared_and_writable_counts() {
        let line = |rights: &str| format!("7f00a000-7f00b000 {rights} 00000000 00:05 123    /dev/sdb");
        assert_eq!(shared_writable(&line("rw-s")), Some("7f00a000-7f00b000"));
        assert_eq!(shared_writable(&line("-w-s")), Some("7f00a000-7f00b000"));
        for rights in ["rw-p", "r--s", "r-xp"] {
            assert_eq!(shared_writable(&line(rights)), None, "{rights}");
        }
        assert_eq!(shared_writable("garbage"), None);
        assert_eq!(shared_writable("a é"), None);
    }
}
