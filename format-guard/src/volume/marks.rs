//! Which bytes of a format are marks: derived from what a probe found and read, stored with the record.
//!
//! Only bytes that were seen on the device become marks. A structural mark closes what a formatter writes
//! before it reaches the superblock; each entry says which one that is.

use format_guard_common::{CheckKind, MAX_CHECK_BYTES, format::by_name};

use super::identities::{Tells, identity_of};
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

/// A device of this content.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) struct Image(pub(super) Vec<u8>);

#[cfg(any(test, feature = "fuzzing"))]
impl ReadAt for Image {
    fn read_at(&self, offset: u64, length: usize) -> Option<Vec<u8>> {
        let start = usize::try_from(offset).ok()?;
        self.0.get(start..start.checked_add(length)?).map(<[u8]>::to_vec)
    }
}

/// The marks of everything that was found on a device of `size` bytes.
#[must_use]
pub fn derive(found: &[Found], size: u64, device: &dyn ReadAt) -> Vec<Mark> {
    let mut marks = Marks { device, marks: Vec::new() };
    for format in found {
        marks.own_magic(format);
    }
    for format in found {
        marks.identity(format);
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
            "linux_raid_member" => marks.md(format),
            "udf" => marks.udf(),
            "xfs_external_log" => marks.xfs_log(format),
            "zfs_member" => marks.zfs(format),
            "hfs" | "hfsplus" => marks.hfs(format),
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

/// Bytes around a magic in which a UUID is looked for: no known format has them farther apart.
const NEAR: usize = 4096;
const SECTOR: usize = 512;

/// How formats keep the UUID that libblkid writes so: as 16 bytes, as a number of 64 bits, or as text (its
/// beginning).
fn spellings(text: &str) -> Vec<Vec<u8>> {
    let digits: String = text.chars().filter(|character| *character != '-').collect();
    let number = u128::from_str_radix(&digits, 16).ok();
    let mut spellings = Vec::new();
    match (digits.len(), number) {
        (32, Some(number)) => {
            spellings.push(number.to_be_bytes().to_vec());
            spellings.push(digits.as_bytes()[..MAX_CHECK_BYTES].to_vec());
            spellings.push(text.as_bytes()[..MAX_CHECK_BYTES].to_vec());
        }
        (1..=16, Some(number)) => {
            let number = number as u64;
            spellings.push(number.to_le_bytes().to_vec());
            spellings.push(number.to_be_bytes().to_vec());
        }
        _ => {}
    }
    // No short or empty one, which would be found anywhere.
    spellings.retain(|spelling| spelling.iter().filter(|byte| **byte != 0).count() > 3);
    spellings
}

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
        // libblkid saw the magic where the table has none: at the end of the device, or of a format not
        // listed. No magic is shorter than two bytes.
        if let Some(offset) = found.magic_offset
            && (self.marks.len() == before || !self.marks.iter().any(|mark| mark.offset == offset))
            && let Some(bytes) = self.read(offset, 2)
        {
            // swapon puts the swap's own magic back in the place of a hibernation's.
            let kind = if found.name == "swsuspend" { MarkKind::Uuid } else { MarkKind::Magic };
            self.push(offset, bytes, kind);
        }
    }

    /// Marks the bytes that tell this volume from another of its type, unless a UUID at a fixed place does.
    fn identity(&mut self, found: &Found) {
        let Some(magic) = found.magic_offset else { return };
        match identity_of(&found.name) {
            Some(Tells::Uuid) => self.uuid_near(magic, found.uuid.as_deref().unwrap_or_default()),
            Some(Tells::Fields(fields)) => {
                for (from_magic, length) in *fields {
                    if let Some(offset) = magic.checked_add_signed(*from_magic) {
                        self.keep_what_is(offset, *length, MarkKind::Magic);
                    }
                }
            }
            _ => {}
        }
    }

    /// Whatever is there, but for zeros.
    fn keep_what_is(&mut self, offset: u64, length: usize, kind: MarkKind) {
        if let Some(bytes) = self.read(offset, length)
            && bytes.iter().any(|byte| *byte != 0)
        {
            self.push(offset, bytes, kind);
        }
    }

    /// The UUID that libblkid has read, where its bytes lie near the magic: behind it, as a rule.
    fn uuid_near(&mut self, magic: u64, text: &str) {
        let behind = |this: &Self, start: u64| {
            let area = (1..=NEAR / SECTOR).rev().find_map(|n| this.read(start, n * SECTOR))?;
            spellings(text).iter().find_map(|spelling| {
                let place = area.windows(spelling.len()).position(|there| there == spelling)?;
                Some((start + place as u64, spelling.clone()))
            })
        };
        let found = behind(self, magic).or_else(|| behind(self, magic.saturating_sub(NEAR as u64)));
        if let Some((offset, bytes)) = found {
            self.push(offset, bytes, MarkKind::Uuid);
        }
    }

    /// The array's UUID: `set_uuid` of version 1 (`struct mdp_superblock_1`), or its four words of version
    /// 0.90 (`struct mdp_superblock_s`, `include/uapi/linux/raid/md_p.h`).
    fn md(&mut self, found: &Found) {
        let Some(magic) = found.magic_offset else { return };
        let version = self.read(magic + 4, 4);
        let places: &[(u64, usize)] = match version.as_deref() {
            Some([1, 0, 0, 0]) => &[(16, 16)],
            Some([0, 0, 0, 0]) => &[(20, 4), (52, 12)],
            _ => &[],
        };
        for (from_magic, length) in places {
            self.keep_what_is(magic + from_magic, *length, MarkKind::Uuid);
        }
    }

    /// The identifier of the volume set, in the primary volume descriptor, to which the anchor at block 256
    /// leads (ECMA-167, 3/10.1 and 3/10.2): its first byte says how the others are written.
    fn udf(&mut self) {
        for block in [2048, 512, 1024, 4096] {
            let Some(anchor) = self.read(256 * block, 32) else { continue };
            let word = |bytes: &[u8], at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| bytes[at + i]));
            if anchor[..2] != [2, 0] || word(&anchor, 12) != 256 {
                continue;
            }
            let (length, first) = (u64::from(word(&anchor, 16)), u64::from(word(&anchor, 20)));
            for number in 0..(length / block).min(16) {
                let Some(at) = (first + number).checked_mul(block) else { return };
                if self.read(at, 2).is_some_and(|tag| tag == [1, 0]) {
                    return self.keep_what_is(at + 73, 16, MarkKind::Uuid);
                }
            }
        }
    }

    /// `h_fs_uuid` of the record of the log that libblkid has found (`struct xlog_rec_header`).
    /// `xfs_admin -U` changes it.
    fn xfs_log(&mut self, found: &Found) {
        const UUID: u64 = 304;
        if let Some(magic) = found.magic_offset {
            self.keep_what_is(magic + UUID, 16, MarkKind::Uuid);
        }
    }

    /// The pool's number, which libblkid writes in decimal digits, in the list of names and values of the
    /// first label, 16 KiB behind the label's start (`OpenZFS`, `include/sys/vdev_impl.h`: `vdev_label_t`),
    /// as XDR writes it: big-endian.
    fn zfs(&mut self, found: &Found) {
        const LIST: u64 = 16 << 10;
        let Some(number) = found.uuid.as_deref().and_then(|uuid| uuid.parse::<u64>().ok()) else { return };
        let spelling = number.to_be_bytes();
        let place = self
            .read(LIST, NEAR)
            .and_then(|area| area.windows(spelling.len()).position(|there| there == spelling));
        if let Some(place) = place.filter(|_| number > u64::from(u32::MAX)) {
            self.push(LIST + place as u64, spelling.to_vec(), MarkKind::Uuid);
        }
    }

    /// When it was made, and the number that Mac OS gives it (last eight bytes of Finder's field).
    /// Big-endian; Inside Macintosh: Files, 2-60, and Apple's technical note TN1150.
    fn hfs(&mut self, found: &Found) {
        let Some(magic) = found.magic_offset else { return };
        let places: [(u64, usize); 2] = match self.read(magic, 2).as_deref() {
            Some(b"BD") => [(2, 4), (92 + 24, 8)],
            Some(b"H+" | b"HX") => [(16, 4), (80 + 24, 8)],
            _ => return,
        };
        for (from_magic, length) in places {
            self.keep_what_is(magic + from_magic, length, MarkKind::Magic);
        }
    }

    /// mkfs.ext4 writes over the AGI before its superblock; mkfs.xfs writes other allocation groups'
    /// superblocks first. Fields of `struct xfs_dsb`, big-endian (`fs/xfs/libxfs/xfs_format.h`).
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

    /// What e2fsck -b needs when all else is lost: the first backup superblock, at the start of group 1.
    /// Fields of `struct ext4_super_block`, little-endian (fs/ext4/ext4.h).
    fn ext_backup(&mut self) {
        let Some(superblock) = self.read(1024, 64) else { return };
        let word = |at: usize| u64::from(u32::from_le_bytes([0, 1, 2, 3].map(|i| superblock[at + i])));
        let (first, shift, per_group) = (word(20), word(24), word(32));
        if shift <= 6 {
            let offset = (first + per_group) * (1024 << shift) + 56;
            self.keep(offset, b"\x53\xef", MarkKind::Magic);
        }
    }

    /// mkfs.ext4 without discard writes over the backup boot sector first, sgdisk -Z over `FSInfo`. Their
    /// numbers are at bytes 50 and 48 of the first sector (FAT specification 1.03). The serial number, which
    /// libblkid calls UUID, is where the kind of FAT says: that with 32 bits has no number of sectors at byte
    /// 22. A signature before it says that it is there.
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
    /// `cryptsetup convert` to LUKS1 gives it up, and leaves the first one's magic and UUID.
    fn luks2_second(&mut self) {
        for offset in
            [0x4000, 0x8000, 0x1_0000, 0x2_0000, 0x4_0000, 0x8_0000, 0x10_0000, 0x20_0000, 0x40_0000]
        {
            self.keep(offset, b"SKUL\xba\xbe", MarkKind::Uuid);
        }
    }

    /// The backup header, and the protective MBR's type of partition, over which mkfs.vfat and mkfs.udf
    /// begin.
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

    /// Two volumes of one type differ in a mark, whatever else of them is the same.
    #[track_caller]
    fn are_told_apart(
        name: &str,
        magic: (u64, &[u8]),
        uuid: Option<[&str; 2]>,
        fields: &[(usize, [&[u8]; 2])],
    ) {
        let marks = [0, 1].map(|which| {
            let mut image = Image(vec![0; 2 << 20]);
            let at = magic.0 as usize;
            image.0[at..at + magic.1.len()].copy_from_slice(magic.1);
            for (at, bytes) in fields {
                image.0[*at..*at + bytes[which].len()].copy_from_slice(bytes[which]);
            }
            let uuid = uuid.map(|uuid| uuid[which].to_owned());
            let found = Found { name: name.into(), uuid, label: None, magic_offset: Some(magic.0) };
            derive(&[found], 2 << 20, &image)
        });
        assert_eq!(marks[0].len(), marks[1].len(), "{name}: {marks:?}");
        assert_ne!(marks[0], marks[1], "{name}");
    }

    const ONE: &str = "11111111-2222-3333-4444-555555555555";
    const TWO: &str = "61111111-7222-8333-9444-a55555555555";
    const UUIDS: Option<[&str; 2]> = Some([ONE, TWO]);
    const ONE_BYTES: &[u8] = b"\x11\x11\x11\x11\x22\x22\x33\x33\x44\x44\x55\x55\x55\x55\x55\x55";
    const TWO_BYTES: &[u8] = b"\x61\x11\x11\x11\x72\x22\x83\x33\x94\x44\xa5\x55\x55\x55\x55\x55";

    #[test]
    fn a_uuid_near_the_magic_is_a_mark() {
        for (name, at, magic, uuid_at) in [
            ("jfs", 32768, &b"JFS1"[..], 32768 + 136),
            ("reiserfs", 65588, b"ReIsEr2Fs", 65588 + 32),
            ("reiser4", 65536, b"ReIsEr4", 65536 + 20),
            ("gfs2", 65536, b"\x01\x16\x19\x70", 65536 + 256),
            ("ocfs2", 8192, b"OCFSV2", 8192 + 336),
            ("erofs", 1024, b"\xe2\xe1\xf5\xe0", 1024 + 48),
            ("bcache", 4120, b"\xc6\x85\x73\xf6", 4120 + 16),
            ("DM_verity_hash", 0, b"verity\0\0", 16),
            ("apfs", 32, b"NXSB", 72),
            ("vdo", 0, b"dmvdo001", 30),
        ] {
            are_told_apart(name, (at, magic), UUIDS, &[(uuid_at, [ONE_BYTES, TWO_BYTES])]);
        }
        are_told_apart(
            "stratis",
            (516, b"!Stra0tis"),
            UUIDS,
            &[(600, [b"11111111222233334444555555555555", b"61111111722283339444a55555555555"])],
        );
        are_told_apart("ubifs", (0, b"\x31\x18\x10\x06"), UUIDS, &[(108, [ONE_BYTES, TWO_BYTES])]);
        are_told_apart(
            "zfs_member",
            ((128 << 10) + 16, b"\x0c\xb1\xba\0"),
            Some(["1234605616436508552", "2464388554683811993"]),
            &[((16 << 10) + 400, [b"\x11\x22\x33\x44\x55\x66\x77\x88", b"\x22\x33\x44\x55\x66\x77\x88\x99"])],
        );
        are_told_apart(
            "drbd",
            ((1 << 20) + 36, b"\x83\x74\x02\x6d"),
            Some(["1122334455667788", "2122334455667788"]),
            &[((1 << 20) + 16, [b"\x11\x22\x33\x44\x55\x66\x77\x88", b"\x21\x22\x33\x44\x55\x66\x77\x88"])],
        );
    }

    #[test]
    fn an_array_is_told_from_another_by_its_uuid() {
        const MD: &[u8] = b"\xfc\x4e\x2b\xa9";
        are_told_apart(
            "linux_raid_member",
            (4096, MD),
            UUIDS,
            &[(4100, [b"\x01", b"\x01"]), (4112, [ONE_BYTES, TWO_BYTES])],
        );
        are_told_apart("linux_raid_member", (1 << 20, MD), UUIDS, &[((1 << 20) + 20, [b"1234", b"1235"])]);
        are_told_apart("linux_raid_member", (1 << 20, MD), UUIDS, &[((1 << 20) + 60, [b"1234", b"1235"])]);
    }

    #[test]
    fn what_has_no_uuid_is_told_by_what_stays_for_its_life() {
        for (name, magic_at, magic, at) in [
            ("squashfs", 0_u64, &b"hsqs"[..], 8_usize),
            ("squashfs", 0, b"hsqs", 40),
            ("cramfs", 0, b"\x45\x3d\xcd\x28", 32),
            ("romfs", 0, b"-rom1fs-", 12),
            ("minix", 1040, b"\x7f\x13", 1024),
            ("bfs", 0, b"\xce\xfa\xad\x1b", 8),
            ("iso9660", 32769, b"CD001", 32768 + 813),
            ("hfs", 1024, b"BD", 1026),
            ("hfsplus", 1024, b"H+", 1040),
            ("ceph_bluestore", 0, b"bluestore block device", 23),
            ("ufs", 8192 + 1372, b"\x54\x19\x01\x00", 8192 + 144),
            ("vxfs", 1024, b"\xf5\xfc\x01\xa5", 1032),
            ("oracleasm", 32, b"ORCLDISK", 40),
            ("DM_integrity", 0, b"integrt\0", 48),
            ("ddf_raid_member", (2 << 20) - 512, b"\xde\x11\xde\x11", (2 << 20) - 512 + 8),
            ("isw_raid_member", (2 << 20) - 1024, b"Intel Raid ISM C", (2 << 20) - 1024 + 64),
            ("VMFS_volume_member", 1 << 20, b"\x0d\xd0\x01\xc0", (1 << 20) + 130),
            ("VMFS", 0x0015_0000, b"\x5e\xf1\xab\x2f", 0x0015_0000 + 9),
            ("ubi", 0, b"UBI#", 24),
            ("xfs_external_log", 0, b"\xfe\xed\xba\xbe", 304),
            ("BitLocker", 3, b"-FVE-FS-", 176),
            ("befs", 32, b"1SFB", 48),
        ] {
            are_told_apart(
                name,
                (magic_at, magic),
                None,
                &[(at, [b"\x01\x02\x03\x04", b"\x01\x02\x03\x05"])],
            );
        }
        let anchor: &[u8] = b"\x02\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\x40\0\0\x01\x01\0\0";
        are_told_apart(
            "udf",
            (32769, b"BEA01"),
            None,
            &[
                (256 * 2048, [anchor, anchor]),
                (257 * 2048, [b"\x01\0", b"\x01\0"]),
                (257 * 2048 + 72, [b"\x081234567890abcdef", b"\x081234567890abcdee"]),
            ],
        );
    }

    #[test]
    fn a_uuid_that_is_not_there_is_no_mark() {
        let mut image = Image(vec![0; 65536]);
        image.0[32768..32772].copy_from_slice(b"JFS1");
        let found = |uuid: &str| {
            vec![Found {
                name: "jfs".into(),
                uuid: Some(uuid.into()),
                label: None,
                magic_offset: Some(32768),
            }]
        };
        for uuid in [ONE, "", "00000000-0000-0000-0000-000000000000", "0", "not one at all, but long"] {
            assert_eq!(derive(&found(uuid), 65536, &image).len(), 1, "{uuid}");
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
