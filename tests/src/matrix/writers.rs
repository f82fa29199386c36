//! What databases and the monitors of virtual machines write, over all of a volume except its marks: rows of
//! the table of everyday work. No write may be refused for its shape, its size, its number or its system
//! call.
//!
//! Each runs for a second, or for as long as `FORMAT_GUARD_WRITERS_SECONDS` says.

use super::work::{Work, work};

macro_rules! fio {
    ($where:literal, $how:literal) => {
        concat!(
            "fio --name=writers --filename=$N --rw=randwrite --numjobs=8 --thread --randrepeat=0 --time_based \
             --runtime=${FORMAT_GUARD_WRITERS_SECONDS:-1} ",
            $where,
            " ",
            $how
        )
    };
}

/// Eight writers at random places with random lengths, by engines (fio 3.33) that databases use: `PostgreSQL`
/// and logs write plainly, LSM trees by libaio and `io_uring`. `$where` limits the places.
macro_rules! databases {
    ($on:literal, $where:literal) => {
        work(
            $on,
            "a database's writers",
            &[
                fio!($where, "--ioengine=psync --bsrange=512-1M --end_fsync=1"),
                fio!($where, "--ioengine=pvsync2 --bsrange=4k-64k --sync=1"),
                // Neighbours go out as one writev of many pieces.
                fio!($where, "--ioengine=vsync --bs=4k --iodepth=64 --rw=write"),
                fio!($where, "--ioengine=posixaio --bs=4k --iodepth=8"),
                fio!(
                    $where,
                    "--ioengine=libaio --direct=1 --bsrange=512-64k --blockalign=512 --iodepth=32 --iodepth_batch_submit=16"
                ),
                fio!($where, "--ioengine=io_uring --bsrange=512-1M --iodepth=16"),
                fio!(
                    $where,
                    "--ioengine=io_uring --direct=1 --bs=4k --iodepth=16 --fixedbufs --registerfiles --numjobs=2"
                ),
                fio!($where, "--ioengine=io_uring --direct=1 --bs=16k --iodepth=8 --sqthread_poll --numjobs=2"),
                fio!($where, "--ioengine=io_uring --bs=4k --iodepth=16 --force_async=1"),
            ],
        )
    };
}

macro_rules! qemu_io {
    ($how:literal) => {
        concat!(
            "p() { for i in $(seq $1); do printf '4k '; done; }; said=$(qemu-io -f raw -d unmap ",
            $how,
            " -c 'writev -P 1 26M 512' -c \"writev -P 2 26M $(p 2)\" -c \"writev -P 3 27M $(p 5)\" -c \"writev -P 4 27M $(p 64)\" \
             -c \"writev -P 5 28M $(p 256)\" -c \"aio_write -P 6 29M $(p 100)\" -c aio_flush -c 'discard 30M 64k' \
             -c 'write -z 30M 64k' -c flush $N 2>&1); echo \"$said\"; \
             test $(echo \"$said\" | grep -c '^wrote') = 7 && ! echo \"$said\" | grep -qi 'fail\\|error\\|not permitted'"
        )
    };
}

/// A monitor's writes (qemu-io 7.2): requests of 1 to 256 pieces, by threads, native aio and `io_uring`, with
/// and without the page cache, with discards. qemu-io always ends with 0, and prints that a command has
/// failed.
macro_rules! monitor {
    ($on:literal) => {
        work(
            $on,
            "a virtual machine's scattered writes",
            &[
                qemu_io!("-t none -i threads"),
                qemu_io!("-t none -i native"),
                qemu_io!("-t none -i io_uring"),
                qemu_io!("-t writeback -i threads"),
                qemu_io!("-t writeback -i io_uring"),
            ],
        )
    };
}

/// The marks are every 16 MiB on ext4, from the eighth on, and at the start of each of the four groups of 16
/// MiB on XFS.
pub(super) const WRITERS: &[Work] = &[
    databases!(
        "ext4",
        "--offset=9M --size=55M --zonemode=strided --zonerange=13M --zonesize=13M --zoneskip=3M"
    ),
    databases!(
        "xfs",
        "--offset=1M --size=63M --zonemode=strided --zonerange=13M --zonesize=13M --zoneskip=3M"
    ),
    databases!("btrfs", "--offset=1M --size=62M"),
    databases!("lvm", "--offset=2M --size=61M"),
    // In the second partition: a write over the border of two volumes is refused.
    databases!("gpt", "--offset=22M --size=40M"),
    monitor!("ext4"),
    monitor!("xfs"),
    monitor!("btrfs"),
    monitor!("lvm"),
    monitor!("gpt"),
];
