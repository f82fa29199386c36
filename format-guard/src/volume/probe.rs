//! What a device holds now: direct reads, then libblkid over what was read.
//!
//! libblkid sees a memory copy of the device's ends, never the device: its reads cannot hang, it is not
//! fooled by a page cache that outlived the medium, and nothing is cached for others. The formats that it
//! knows keep their magic in the first 4 MiB or the last (util-linux 2.38: VMFS at 2 MiB is the farthest from
//! the start).

use std::{
    alloc::{Layout, alloc_zeroed, dealloc},
    fs::{File, OpenOptions},
    io::{self, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    ptr::NonNull,
};

use format_guard_common::format::{NOT_OF_LIBBLKID, by_name};
use libblkid_rs::{BlkidErr, BlkidProbe, BlkidProbeRet, BlkidSublks, BlkidSublksFlags};
use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    Dev,
    copies::{self, Piece, Wanted, hexadecimal},
    marks::{self, Found, MAX_MARKS, Mark, ReadAt},
    unwritten::is_unwritten,
    zoned,
};

/// Bytes read at either end.
const HEAD: u64 = 4 << 20;
const TAIL: u64 = 1 << 20;
/// Alignment of direct reads: no block device has larger logical blocks than a page here.
const ALIGN: usize = 4096;
/// Bytes of a buffer that is kept from one device to the next.
const CHUNK: u64 = 1 << 20;
/// Bytes at either end of which a digest is made.
const DIGESTED: usize = 1 << 20;
/// Signatures that one device is searched for at most.
const MAX_FOUND: usize = 16;
/// Partition tables whose partitions are read, by libblkid's names.
const TABLES: [&str; 2] = ["gpt", "dos"];
/// Partitions of one table that are read at most: those of the usual GPT.
const MAX_PARTITIONS: i32 = 128;
/// Longest label or UUID that is kept, in bytes.
const MAX_TEXT: usize = 256;

/// What a device holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Finding {
    /// Both ends read as zeros.
    Blank,
    /// The same, and nothing is stored of it: the file system says so that the file lies on which it is.
    Unwritten,
    /// No format is known there; but bytes that are not zero were read.
    Raw(Digest),
    /// At least one format.
    Holds {
        /// In libblkid's order.
        found: Vec<Found>,
        /// The bytes that identify them.
        marks: Vec<Mark>,
        /// The partitions that the partition table names, where there is one that can be read.
        partitions: Option<Vec<Partition>>,
    },
}

/// A partition, as its disk's table has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// Its first sector, of 512 bytes.
    pub start: u64,
    /// Its type: a UUID in a GPT, a number elsewhere.
    pub kind: Option<String>,
    /// Its label, in a GPT.
    pub label: Option<String>,
}

/// SHA-256 of the first and the last MiB of a device without a known format, in hexadecimal digits. Where the
/// device is shorter both are read in the same place.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Digest(pub String);

impl Digest {
    fn of(head: &[u8], tail: &[u8]) -> Self {
        let first = &head[..head.len().min(DIGESTED)];
        let last = &tail[tail.len().saturating_sub(DIGESTED)..];
        let sum = Sha256::new().chain_update(first).chain_update(last).finalize();
        Self(hexadecimal::of(&sum))
    }
}

/// Why a device could not be probed: it is not blank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ProbeError {
    /// The node is not there, or is another device's.
    #[error("no device node for it below /dev")]
    NoNode,
    /// No medium, or a device mapper device without a table.
    #[error("no medium")]
    NoMedium,
    /// A read failed or came back short.
    #[error("read failed: {0}")]
    Read(String),
    /// libblkid gave up.
    #[error("libblkid: {0}")]
    Library(String),
    /// It took longer than the deadline.
    #[error("no answer within the deadline")]
    Deadline,
}

/// What is to be probed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The device's kernel name.
    pub name: String,
    /// Its number.
    pub dev: Dev,
    /// Its size in bytes.
    pub size: u64,
    /// How much of the content's identifying bytes is to be copied.
    pub copied: Option<Wanted>,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    /// What the device holds.
    pub finding: Finding,
    /// Both ends read as zeros twice, one reading after the other.
    pub twice: bool,
    /// What is copied.
    pub pieces: Vec<Piece>,
}

/// The answer of a process that probes, as a line of JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// What the device holds, or why that is not known.
    pub result: Result<Finding, ProbeError>,
    /// As in [`Probed`].
    pub twice: bool,
    /// What is copied, packed, in hexadecimal digits.
    pub copy: Option<String>,
}

/// Probes devices, one after another.
#[derive(Debug)]
pub struct Reader {
    /// Kept: a buffer that is new costs a fault for each of its pages.
    chunk: Aligned,
}

impl Reader {
    /// One that has read nothing yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self { chunk: Aligned::new(CHUNK as usize).ok_or(io::ErrorKind::OutOfMemory)? })
    }

    /// Probes a device, and copies what identifies what it holds. Blocks for as long as the device does.
    /// `parses` is called before anything that is not zero is looked at.
    pub fn probe(&mut self, request: &Request, parses: impl FnOnce()) -> Result<Probed, ProbeError> {
        let Request { name, dev, size, copied } = request;
        let device = Direct::open(name, *dev, *size)?;
        // What is blank is read twice before it may be formatted.
        let zeros = !zoned::is_zoned(&device.file)
            && device.is_zero(&mut self.chunk)?
            && device.is_zero(&mut self.chunk)?;
        if zeros {
            let unwritten = is_unwritten(&device.file, name, *size);
            let finding = if unwritten { Finding::Unwritten } else { Finding::Blank };
            return Ok(Probed { finding, twice: true, pieces: Vec::new() });
        }
        parses();
        let (finding, pieces) = look(device, request, *copied)?;
        Ok(Probed { finding, twice: false, pieces })
    }
}

/// Reads the ends of a device and looks at what is there.
fn look(
    device: Direct,
    Request { name, dev, size, .. }: &Request,
    copied: Option<Wanted>,
) -> Result<(Finding, Vec<Piece>), ProbeError> {
    let (dev, size) = (*dev, *size);
    let tail_start = tail_of(size);
    let head = device.read(0, HEAD.min(size))?;
    let tail = device.read(tail_start, size - tail_start)?;
    // libblkid cannot ask a copy for its zones.
    let zoned = zoned::btrfs(&device.file, &device).map_err(ProbeError::Read)?;
    drop(device);
    // Not open any more: whoever takes it away meanwhile is not told that it is busy.
    let read = Read { head, tail_start, tail, between: &Again { name: name.as_str(), dev, size } };
    let found = judge(&read, size)?;
    let finding = match zoned {
        Some((format, marks)) => with(found, format, marks),
        None => found,
    };
    let pieces = match (&finding, copied) {
        (Finding::Holds { found, marks, .. }, Some(wanted)) => {
            copies::take(found, marks, size, &read, wanted)
        }
        _ => Vec::new(),
    };
    Ok((finding, pieces))
}

/// The same with a format that was found otherwise, before what libblkid found.
fn with(finding: Finding, format: Found, mut marks: Vec<Mark>) -> Finding {
    let Finding::Holds { mut found, marks: others, partitions } = finding else {
        return Finding::Holds { found: vec![format], marks, partitions: None };
    };
    found.insert(0, format);
    marks.extend(others);
    marks.truncate(MAX_MARKS);
    Finding::Holds { found, marks, partitions }
}

/// Where the tail begins that is read. A device mapper device has logical blocks of up to a page: whole pages
/// are read, up to a shorter end.
fn tail_of(size: u64) -> u64 {
    size.saturating_sub(TAIL) / ALIGN as u64 * ALIGN as u64
}

/// What a device holds whose ends read so.
fn judge(read: &Read<'_>, size: u64) -> Result<Finding, ProbeError> {
    let (mut found, partitions) = search(&read.head, read.tail_start, &read.tail, size)?;
    if found.is_empty() {
        found = beside_libblkid(&read.head);
    }
    if found.is_empty() {
        return Ok(if !is_zero(&read.head) || !is_zero(&read.tail) {
            Finding::Raw(Digest::of(&read.head, &read.tail))
        } else {
            Finding::Blank
        });
    }
    let marks = marks::derive(&found, size, read);
    Ok(Finding::Holds { found, marks, partitions })
}

/// Each chunk by one comparison: this is read before every first format.
fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROS.len()).all(|chunk| *chunk == ZEROS[..chunk.len()])
}

/// The same for a device of this content.
#[cfg(feature = "fuzzing")]
pub(crate) fn of_content(content: &[u8]) -> Result<Finding, ProbeError> {
    let size = content.len() as u64;
    let tail_start = tail_of(size);
    let part = |from: u64, to: u64| content[from as usize..to as usize].to_vec();
    let head = part(0, HEAD.min(size));
    let read =
        Read { head, tail_start, tail: part(tail_start, size), between: &marks::Image(content.to_vec()) };
    judge(&read, size)
}

/// The bytes read of a device. Both ends of the device are read once: by a second reading, a magic that
/// libblkid saw may be gone, and other bytes would be taken for it.
struct Read<'a> {
    head: Vec<u8>,
    tail_start: u64,
    tail: Vec<u8>,
    between: &'a dyn ReadAt,
}

impl ReadAt for Read<'_> {
    fn read_at(&self, offset: u64, length: usize) -> Option<Vec<u8>> {
        let within = |bytes: &[u8], start: u64| {
            let from = usize::try_from(offset.checked_sub(start)?).ok()?;
            bytes.get(from..from.checked_add(length)?).map(<[u8]>::to_vec)
        };
        within(&self.head, 0)
            .or_else(|| within(&self.tail, self.tail_start))
            .or_else(|| self.between.read_at(offset, length))
    }
}

/// Opens the node of a device by its kernel name, after making sure that it is that device's.
fn open_node(name: &str, dev: Dev) -> Result<File, ProbeError> {
    let path = node_path(name);
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT | libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open(&path)
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ProbeError::NoNode,
            _ if error.raw_os_error() == Some(libc::ENOMEDIUM) => ProbeError::NoMedium,
            _ => ProbeError::Read(error.to_string()),
        })?;
    let metadata = file.metadata().map_err(|error| ProbeError::Read(error.to_string()))?;
    if !metadata.file_type().is_block_device() || Dev::from_user(metadata.rdev()) != dev {
        return Err(ProbeError::NoNode);
    }
    Ok(file)
}

/// Where devtmpfs has the node: the kernel writes a slash in a name as '!' (block/partitions/core.c).
#[must_use]
pub fn node_path(name: &str) -> PathBuf {
    Path::new("/dev").join(name.replace('!', "/"))
}

/// A device read with `O_DIRECT`.
pub struct Direct {
    file: File,
    size: u64,
}

impl Direct {
    /// The device of this name and number.
    pub fn open(name: &str, dev: Dev, size: u64) -> Result<Self, ProbeError> {
        if size == 0 {
            return Err(ProbeError::NoMedium);
        }
        Ok(Self { file: open_node(name, dev)?, size })
    }

    /// Exactly `length` bytes at `offset`, which is aligned.
    fn read(&self, offset: u64, length: u64) -> Result<Vec<u8>, ProbeError> {
        let wanted = usize::try_from(length).map_err(|error| ProbeError::Read(error.to_string()))?;
        let mut buffer = Aligned::new(wanted.next_multiple_of(ALIGN))
            .ok_or_else(|| ProbeError::Read("out of memory".to_owned()))?;
        self.fill(buffer.bytes(), offset, wanted)?;
        Ok(buffer.bytes()[..wanted].to_vec())
    }

    /// Whether both ends read as zeros.
    fn is_zero(&self, chunk: &mut Aligned) -> Result<bool, ProbeError> {
        let head = HEAD.min(self.size);
        for (start, end) in [(0, head), (tail_of(self.size).max(head), self.size)] {
            let mut offset = start;
            while offset < end {
                let length = CHUNK.min(end - offset);
                self.fill(chunk.bytes(), offset, length as usize)?;
                if !is_zero(&chunk.bytes()[..length as usize]) {
                    return Ok(false);
                }
                offset += length;
            }
        }
        Ok(true)
    }

    /// Reads `wanted` bytes at `offset` into a buffer of whole pages.
    fn fill(&self, buffer: &mut [u8], offset: u64, wanted: usize) -> Result<(), ProbeError> {
        let whole = wanted.next_multiple_of(ALIGN);
        let mut done = 0;
        while done < wanted {
            let rest = &mut buffer[done..whole];
            match self.file.read_at(rest, offset + done as u64) {
                Ok(0) => return Err(ProbeError::Read(format!("ended at {}", offset + done as u64))),
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ProbeError::Read(error.to_string())),
            }
            // A short read that is not aligned is the end of the device.
            if done < wanted && done % 512 != 0 {
                return Err(ProbeError::Read(format!("ended at {}", offset + done as u64)));
            }
        }
        Ok(())
    }
}

impl ReadAt for Direct {
    fn read_at(&self, offset: u64, length: usize) -> Option<Vec<u8>> {
        let end = offset.checked_add(length as u64).filter(|end| *end <= self.size)?;
        let start = offset / ALIGN as u64 * ALIGN as u64;
        let bytes = self.read(start, end - start).ok()?;
        let skip = usize::try_from(offset - start).ok()?;
        bytes.get(skip..).map(<[u8]>::to_vec)
    }
}

/// A device that is opened for each read: there are few, and it is in nobody's way between.
struct Again<'a> {
    name: &'a str,
    dev: Dev,
    size: u64,
}

impl ReadAt for Again<'_> {
    fn read_at(&self, offset: u64, length: usize) -> Option<Vec<u8>> {
        Direct::open(self.name, self.dev, self.size).ok()?.read_at(offset, length)
    }
}

/// A buffer aligned for direct I/O.
#[derive(Debug)]
struct Aligned {
    start: NonNull<u8>,
    layout: Layout,
}

impl Aligned {
    fn new(length: usize) -> Option<Self> {
        let layout = Layout::from_size_align(length.max(ALIGN), ALIGN).ok()?;
        // SAFETY: the layout's size is not zero.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Self { start, layout })
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: allocated with this size, zeroed, and borrowed as long as self.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

/// Formats that libblkid does not know, at the beginning of a device.
fn beside_libblkid(head: &[u8]) -> Vec<Found> {
    let formats = NOT_OF_LIBBLKID.iter().filter_map(|name| Some((*name, by_name(name)?)));
    let magics = formats.flat_map(|(name, format)| format.magics.iter().map(move |magic| (name, magic)));
    let there = magics.filter(|(_, magic)| {
        usize::try_from(magic.offset)
            .ok()
            .and_then(|start| head.get(start..start + magic.bytes.len()))
            .is_some_and(|bytes| bytes == magic.bytes)
    });
    there
        .map(|(name, magic)| Found {
            name: name.to_owned(),
            uuid: None,
            label: None,
            magic_offset: Some(magic.offset),
        })
        .collect()
}

/// Runs libblkid over a sparse copy of the device.
fn search(
    head: &[u8],
    tail_start: u64,
    tail: &[u8],
    size: u64,
) -> Result<(Vec<Found>, Option<Vec<Partition>>), ProbeError> {
    let copy =
        sparse_copy(head, tail_start, tail, size).map_err(|error| ProbeError::Library(error.to_string()))?;
    let found = found_by_libblkid(&copy).map_err(|error| ProbeError::Library(error.to_string()))?;
    let table = found.iter().any(|found| TABLES.contains(&found.name.as_str()));
    let partitions = if table { partitions_by_libblkid(&copy).ok() } else { None };
    Ok((found, partitions))
}

/// Logical partitions are described in the middle of the disk, which the copy lacks.
fn partitions_by_libblkid(copy: &File) -> Result<Vec<Partition>, BlkidErr> {
    let mut probe = BlkidProbe::new()?;
    probe.set_device(copy.as_raw_fd(), 0, 0)?;
    probe.enable_partitions(true)?;
    let mut list = probe.get_partitions()?;
    let count = list.number_of_partitions()?.min(MAX_PARTITIONS);
    (0..count)
        .map(|index| {
            let partition = list.get_partition(index)?;
            let start = partition.get_start().as_ref().unsigned_abs();
            Ok(Partition {
                start,
                kind: partition.get_type_string().ok(),
                label: partition.get_name().ok().flatten().filter(|label| !label.is_empty()),
            })
        })
        .collect()
}

fn sparse_copy(head: &[u8], tail_start: u64, tail: &[u8], size: u64) -> io::Result<File> {
    let fd: OwnedFd = memfd_create("format-guard-probe", MemfdFlags::CLOEXEC)?;
    let mut copy = File::from(fd);
    copy.write_all(head)?;
    copy.write_all_at(tail, tail_start)?;
    copy.set_len(size)?;
    Ok(copy)
}

fn found_by_libblkid(copy: &File) -> Result<Vec<Found>, BlkidErr> {
    let mut probe = BlkidProbe::new()?;
    probe.set_device(copy.as_raw_fd(), 0, 0)?;
    probe.enable_superblocks(true)?;
    probe.set_superblock_flags(BlkidSublksFlags::new(vec![
        BlkidSublks::Type,
        BlkidSublks::Uuid,
        BlkidSublks::Label,
        BlkidSublks::Magic,
        // A damaged format is still a format.
        BlkidSublks::Badcsum,
    ]))?;
    probe.enable_partitions(true)?;
    let mut found: Vec<Found> = Vec::new();
    while found.len() < MAX_FOUND && probe.do_probe()? == BlkidProbeRet::Success {
        let value = |names: [&str; 2]| {
            names.into_iter().find_map(|name| probe.lookup_value(name).ok()).map(|mut text| {
                let mut end = text.len().min(MAX_TEXT);
                while !text.is_char_boundary(end) {
                    end -= 1;
                }
                text.truncate(end);
                text
            })
        };
        let Some(name) = value(["TYPE", "PTTYPE"]) else { continue };
        found.push(Found {
            name,
            uuid: value(["UUID", "PTUUID"]),
            label: value(["LABEL", "LABEL"]),
            magic_offset: value(["SBMAGIC_OFFSET", "PTMAGIC_OFFSET"]).and_then(|text| text.parse().ok()),
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device whose content is gone since its ends were read.
    struct Zeroed;

    impl ReadAt for Zeroed {
        fn read_at(&self, _: u64, length: usize) -> Option<Vec<u8>> {
            Some(vec![0; length])
        }
    }

    #[test]
    fn a_format_that_libblkid_does_not_know_is_not_blank() {
        for name in NOT_OF_LIBBLKID {
            let magic = &by_name(name).expect("in the table").magics[0];
            assert!(magic.bytes.len() >= 8, "{name}");
            let mut head = vec![0; 1 << 20];
            let at = magic.offset as usize;
            head[at..at + magic.bytes.len()].copy_from_slice(magic.bytes);
            let size = head.len() as u64;
            match judge(&Read { head, tail_start: size, tail: Vec::new(), between: &Zeroed }, size) {
                Ok(Finding::Holds { found, marks, .. }) => {
                    assert_eq!((found[0].name.as_str(), marks[0].offset), (*name, magic.offset));
                }
                other => panic!("{name}: {other:?}"),
            }
        }
    }

    #[test]
    fn bytes_without_a_format_are_told_from_zeros_and_by_their_digest() {
        let judged = |at: Option<usize>| {
            let mut head = vec![0; 4 << 20];
            if let Some(at) = at {
                head[at] = 7;
            }
            let size = head.len() as u64;
            judge(&Read { head, tail_start: size, tail: vec![0; 512], between: &Zeroed }, size)
                .expect("judged")
        };
        assert_eq!(judged(None), Finding::Blank);
        let raw = [0, 1, 3 << 20].map(|at| match judged(Some(at)) {
            Finding::Raw(digest) => digest,
            other => panic!("{at}: {other:?}"),
        });
        assert!(raw[0] != raw[1] && raw[1] != raw[2] && raw.iter().all(|digest| digest.0.len() == 64));
    }

    #[test]
    fn a_mark_is_what_libblkid_saw_though_the_device_reads_as_zeros_since() {
        let (mut head, mut tail) = (vec![0; 8192], vec![0; 4096]);
        head[1080..1082].copy_from_slice(b"\x53\xef");
        tail[4000..4002].copy_from_slice(b"zz");
        let size = 1 << 20;
        let tail_start = size - 4096;
        let found = [("ext4", 1080), ("exotic", tail_start + 4000)].map(|(name, offset)| Found {
            name: name.into(),
            uuid: None,
            label: None,
            magic_offset: Some(offset),
        });
        let marks = marks::derive(&found, size, &Read { head, tail_start, tail, between: &Zeroed });
        let kept: Vec<(u64, &[u8])> = marks.iter().map(|mark| (mark.offset, &*mark.bytes)).collect();
        assert_eq!(kept, [(1080, &b"\x53\xef"[..]), (tail_start + 4000, b"zz")]);
    }
}
