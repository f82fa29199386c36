//! Which bytes of a format are marks: derived from what a probe found and read, stored with the record.
//!
//! Only bytes that were seen on the device become marks. A structural mark closes what a formatter writes before it
//! reaches the superblock; each entry says which one that is.

use format_guard_common::{CheckKind, MAX_CHECK_BYTES, format::by_name};
use serde::{Deserialize, Serialize};

/// Marks that one volume has at most, so that every foreign magic still fits beside them.
pub const MAX_MARKS: usize = 12;

/// What a mark identifies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum MarkKind {
    /// Magic or structure: nobody changes it.
    Magic,
    /// UUID: re-labelling tools may change it.
    Uuid,
}

impl MarkKind {
    /// The word for it in the database.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Magic => "magic",
            Self::Uuid => "uuid",
        }
    }

    /// The kind of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Magic, Self::Uuid].into_iter().find(|kind| kind.name() == name)
    }
}

impl From<MarkKind> for CheckKind {
    fn from(kind: MarkKind) -> Self {
        match kind {
            MarkKind::Magic => Self::Magic,
            MarkKind::Uuid => Self::Uuid,
        }
    }
}

/// Bytes at an offset that identify the content.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Mark {
    /// First byte, from the start of the volume.
    pub offset: u64,
    /// What it identifies.
    pub kind: MarkKind,
    /// The bytes, at most 16.
    pub bytes: Vec<u8>,
}

/// What a probe found: libblkid's name of a format and the place of its magic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// `TYPE` or `PTTYPE`.
    pub name: String,
    /// `UUID` or `PTUUID`.
    pub uuid: Option<String>,
    /// `LABEL`.
    pub label: Option<String>,
    /// `SBMAGIC_OFFSET` or `PTMAGIC_OFFSET`.
    pub magic_offset: Option<u64>,
}

/// Reads exactly `length` bytes at an offset of the device; `None` where they cannot be read.
pub trait ReadAt {
    /// The bytes.
    fn read_at(&self, offset: u64, length: usize) -> Option<Vec<u8>>;
}

/// The marks of everything that was found on a device of `size` bytes.
#[must_use]
pub fn derive(found: &[Found], size: u64, device: &dyn ReadAt) -> Vec<Mark> {
    let mut marks = Marks { device, marks: Vec::new() };
    for format in found {
        marks.own_magic(format);
    }
    for format in found {
        match format.name.as_str() {
            "xfs" => marks.xfs(),
            "ext2" | "ext3" | "ext4" => marks.ext_backup(),
            "vfat" => marks.fat(),
            // The backup boot sector: sgdisk -Z and sfdisk begin there.
            "ntfs" => marks.keep_in_last_sector(size, 3, b"NTFS    "),
            "exfat" => marks.keep(EXFAT_BACKUP, b"EXFAT   ", MarkKind::Magic),
            "btrfs" => marks.keep(BTRFS_MIRROR, b"_BHRfS_M", MarkKind::Magic),
            "crypto_LUKS" => marks.luks2_second(),
            "gpt" => marks.gpt(size),
            _ => {}
        }
    }
    marks.marks
}

/// Magic of the second superblock: 64 MiB + 64 (fs/btrfs/disk-io.h, `btrfs_sb_offset`).
const BTRFS_MIRROR: u64 = (64 << 20) + 64;

/// The backup boot region begins at sector 12 (exFAT file system specification, 2.1); sgdisk -Z reaches it.
const EXFAT_BACKUP: u64 = 12 * 512 + 3;

/// The disk's GUID in either header (UEFI specification 2.10, table 5.5).
const GPT_GUID: u64 = 56;

struct Marks<'a> {
    device: &'a dyn ReadAt,
    marks: Vec<Mark>,
}

impl Marks<'_> {
    fn read(&self, offset: u64, length: usize) -> Option<Vec<u8>> {
        self.device.read_at(offset, length)
    }

    fn push(&mut self, offset: u64, bytes: Vec<u8>, kind: MarkKind) {
        let overlaps = self.marks.iter().any(|mark| {
            offset < mark.offset + mark.bytes.len() as u64 && mark.offset < offset + bytes.len() as u64
        });
        if !overlaps && !bytes.is_empty() && bytes.len() <= MAX_CHECK_BYTES && self.marks.len() < MAX_MARKS {
            self.marks.push(Mark { offset, kind, bytes });
        }
    }

    /// A mark, if the device holds these bytes there.
    fn keep(&mut self, offset: u64, bytes: &[u8], kind: MarkKind) {
        if self.read(offset, bytes.len()).is_some_and(|there| there == bytes) {
            self.push(offset, bytes.to_vec(), kind);
        }
    }

    fn own_magic(&mut self, found: &Found) {
        let before = self.marks.len();
        if let Some(format) = by_name(&found.name) {
            for magic in format.magics {
                self.keep(magic.offset, magic.bytes, MarkKind::Magic);
            }
            if let Some(place) = format.uuid
                && let Some(bytes) = self.read(place.offset, place.length as usize)
                && bytes.iter().any(|byte| *byte != 0)
            {
                self.push(place.offset, bytes, MarkKind::Uuid);
            }
        }
        // libblkid saw the magic where the table has none: at the end of the device, or of a format not listed.
        // No magic is shorter than two bytes.
        if let Some(offset) = found.magic_offset
            && (self.marks.len() == before || !self.marks.iter().any(|mark| mark.offset == offset))
            && let Some(bytes) = self.read(offset, 2)
        {
            self.push(offset, bytes, MarkKind::Magic);
        }
    }

    /// mkfs.ext4 writes over the AGI before its superblock; mkfs.xfs writes other allocation groups' superblocks
    /// first. Fields of `struct xfs_dsb`, big-endian (`fs/xfs/libxfs/xfs_format.h`).
    fn xfs(&mut self) {
        let Some(superblock) = self.read(0, 128) else { return };
        let word = |at: usize| u64::from(u32::from_be_bytes([0, 1, 2, 3].map(|i| superblock[at + i])));
        let sector = u64::from(u16::from_be_bytes([superblock[102], superblock[103]]));
        let (block, group_blocks, groups) = (word(4), word(84), word(88));
        for (i, magic) in [b"XAGF", b"XAGI", b"XAFL"].iter().enumerate() {
            self.keep(sector * (i as u64 + 1), *magic, MarkKind::Magic);
        }
        for group in 1..groups.min(4) {
            if let Some(offset) = group_blocks.checked_mul(block).and_then(|size| size.checked_mul(group)) {
                self.keep(offset, b"XFSB", MarkKind::Magic);
            }
        }
    }

    /// What e2fsck -b needs when all else is lost: the first backup superblock, at the start of group 1. Fields of
    /// `struct ext4_super_block`, little-endian (fs/ext4/ext4.h).
    fn ext_backup(&mut self) {
        let Some(superblock) = self.read(1024, 64) else { return };
        let word = |at: usize| u64::from(u32::from_le_bytes([0, 1, 2, 3].map(|i| superblock[at + i])));
        let (first, shift, per_group) = (word(20), word(24), word(32));
        if shift <= 6 {
            let offset = (first + per_group) * (1024 << shift) + 56;
            self.keep(offset, b"\x53\xef", MarkKind::Magic);
        }
    }

    /// mkfs.ext4 without discard writes over the backup boot sector first, sgdisk -Z over `FSInfo`. Their numbers are at
    /// bytes 50 and 48 of the first sector (FAT specification 1.03). The serial number, which libblkid calls UUID, is where
    /// the kind of FAT says: that with 32 bits has no number of sectors at byte 22. A signature before it says that it is there.
    fn fat(&mut self) {
        let is_fat32 = self.read(22, 2).is_some_and(|sectors| sectors == [0, 0]);
        let serial = if is_fat32 { 67 } else { 39 };
        if let Some([0x29, bytes @ ..]) = self.read(serial - 1, 5).as_deref()
            && bytes.iter().any(|byte| *byte != 0)
        {
            self.push(serial, bytes.to_vec(), MarkKind::Uuid);
        }
        let Some(numbers) = self.read(48, 4) else { return };
        let sector = |at: usize| u64::from(u16::from_le_bytes([numbers[at], numbers[at + 1]])) * 512;
        let (info, backup) = (sector(0), sector(2));
        if (512..32 * 512).contains(&info) {
            self.keep(info, b"RRaA", MarkKind::Magic);
        }
        if (512..32 * 512).contains(&backup) {
            self.keep(backup + 82, b"FAT32   ", MarkKind::Magic);
        }
    }

    /// A magic so many bytes into the last sector of the device.
    fn keep_in_last_sector(&mut self, size: u64, at: u64, magic: &[u8]) {
        if let Some(last) = size.checked_sub(512) {
            self.keep(last + at, magic, MarkKind::Magic);
        }
    }

    /// The second header (LUKS2 on-disk format 1.1.1, section 2.1), at the end of the first one's area.
    fn luks2_second(&mut self) {
        for offset in
            [0x4000, 0x8000, 0x1_0000, 0x2_0000, 0x4_0000, 0x8_0000, 0x10_0000, 0x20_0000, 0x40_0000]
        {
            self.keep(offset, b"SKUL\xba\xbe", MarkKind::Magic);
        }
    }

    /// The backup header, and the protective MBR's type of partition, over which mkfs.vfat and mkfs.udf begin.
    fn gpt(&mut self, size: u64) {
        self.keep(450, &[0xee], MarkKind::Magic);
        self.keep_in_last_sector(size, 0, b"EFI PART");
        // sfdisk writes the backup first: a new label ends there, with the first table as it was.
        if let Some(guid) = size.checked_sub(512).map(|last| last + GPT_GUID)
            && let Some(bytes) = self.read(guid, 16)
            && self.marks.iter().any(|mark| mark.kind == MarkKind::Uuid && mark.bytes == bytes)
        {
            self.push(guid, bytes, MarkKind::Uuid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Image(Vec<u8>);

    impl ReadAt for Image {
        fn read_at(&self, offset: u64, length: usize) -> Option<Vec<u8>> {
            let start = usize::try_from(offset).ok()?;
            self.0.get(start..start.checked_add(length)?).map(<[u8]>::to_vec)
        }
    }

    fn found(name: &str, magic_offset: u64) -> Vec<Found> {
        vec![Found { name: name.into(), uuid: None, label: None, magic_offset: Some(magic_offset) }]
    }

    #[test]
    fn a_format_that_is_not_listed_is_kept_by_the_magic_that_libblkid_saw() {
        let mut image = Image(vec![0; 8192]);
        image.0[5000..5002].copy_from_slice(b"zz");
        let marks = derive(&found("exotic", 5000), 8192, &image);
        assert_eq!(marks, [Mark { offset: 5000, kind: MarkKind::Magic, bytes: b"zz".to_vec() }]);
    }

    #[test]
    fn a_superblock_full_of_hostile_numbers_gives_no_mark_that_was_not_seen() {
        let mut image = Image(vec![0xff; 8192]);
        image.0[..4].copy_from_slice(b"XFSB");
        let marks = derive(&found("xfs", 0), 8192, &image);
        assert!(
            marks.iter().all(|mark| image.read_at(mark.offset, mark.bytes.len()) == Some(mark.bytes.clone()))
        );
        let marks = derive(&found("ext4", 1080), 8192, &Image(vec![0xff; 8192]));
        assert_eq!(marks.len(), 2, "{marks:?}");
    }

    #[test]
    fn the_serial_number_of_a_fat_is_its_uuid() {
        for (kind, magic, sectors, serial) in [(b"FAT32   ", 82, 0, 67), (b"FAT16   ", 54, 9, 39)] {
            let mut image = Image(vec![0; 8192]);
            image.0[magic..magic + 8].copy_from_slice(kind);
            (image.0[22], image.0[serial - 1]) = (sectors, 0x29);
            image.0[serial..serial + 4].copy_from_slice(b"\x01\x02\x03\x04");
            let marks = derive(&found("vfat", magic as u64), 8192, &image);
            let bytes = b"\x01\x02\x03\x04".to_vec();
            assert!(
                marks.contains(&Mark { offset: serial as u64, kind: MarkKind::Uuid, bytes }),
                "{marks:?}"
            );
            image.0[serial - 1] = 0;
            assert_eq!(derive(&found("vfat", magic as u64), 8192, &image).len(), 1);
        }
    }

    #[test]
    fn marks_never_overlap() {
        let mut image = Image(vec![0; 1 << 20]);
        image.0[..6].copy_from_slice(b"LUKS\xba\xbe");
        image.0[0x4000..0x4006].copy_from_slice(b"SKUL\xba\xbe");
        let marks = derive(&found("crypto_LUKS", 0), 1 << 20, &image);
        assert_eq!(marks.len(), 2, "{marks:?}");
    }
}
