//! Copies of the bytes that make a volume findable: superblocks, headers, tables. Taken when a format is
//! recorded, kept beside the record, and put back by an operator where the guard could not prevent their loss
//! (a backend, a layer, another host).

use std::{collections::BTreeSet, ops::Range};

use serde::{Deserialize, Serialize};

use super::marks::{Found, Mark, ReadAt};

/// Most that is copied of one volume, in bytes, whatever is configured.
pub const MAX_BYTES: u64 = 4 << 20;
/// Pieces begin and end at multiples of it, but for the device's end: no device has larger logical blocks.
const PAGE: u64 = 4096;
/// What every format keeps its superblock in that is not listed below.
const HEAD: u64 = 128 << 10;
/// Of compression: what is smaller is not worth the time.
const LEVEL: u8 = 6;

/// What is to be copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// At most so many bytes, before they are compressed.
    pub limit: u64,
    /// The key areas of LUKS, too: without them a header opens nothing, and with them a passphrase does that
    /// was changed since.
    pub key_areas: bool,
}

/// Bytes of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Piece {
    /// First byte, from the start of the volume.
    pub offset: u64,
    /// The bytes, two hexadecimal digits each.
    #[serde(with = "hexadecimal")]
    #[cfg_attr(test, schemars(with = "String"))]
    pub bytes: Vec<u8>,
}

/// What identifies the formats that were found on a device of `size` bytes, in the order of their offsets.
#[must_use]
pub fn take(found: &[Found], marks: &[Mark], size: u64, device: &dyn ReadAt, wanted: Wanted) -> Vec<Piece> {
    let mut left = wanted.limit.min(MAX_BYTES);
    let mut pages = BTreeSet::new();
    // What comes first is worth most.
    for range in regions(found, marks, size, device, wanted.key_areas) {
        for page in range.start / PAGE..range.end.min(size).div_ceil(PAGE) {
            if pages.contains(&page) {
                continue;
            }
            let length = PAGE.min(size - page * PAGE);
            if length > left {
                break;
            }
            left -= length;
            pages.insert(page);
        }
    }
    let mut pieces: Vec<Piece> = Vec::new();
    for page in pages {
        let offset = page * PAGE;
        let Some(bytes) = device.read_at(offset, PAGE.min(size - offset) as usize) else { continue };
        match pieces.last_mut() {
            Some(last) if last.offset + last.bytes.len() as u64 == offset => last.bytes.extend(bytes),
            _ => pieces.push(Piece { offset, bytes }),
        }
    }
    pieces
}

/// Where they lie, the most important first.
fn regions(
    found: &[Found],
    marks: &[Mark],
    size: u64,
    device: &dyn ReadAt,
    key_areas: bool,
) -> Vec<Range<u64>> {
    let mut regions: Vec<Range<u64>> = marks
        .iter()
        .map(|mark| mark.offset..mark.offset.saturating_add(mark.bytes.len() as u64))
        .filter(|range| range.end <= size)
        .collect();
    for format in found {
        match format.name.as_str() {
            "ext2" | "ext3" | "ext4" | "ext4dev" | "jbd" => regions.push(0..ext_descriptors(device)),
            "crypto_LUKS" => luks(device, key_areas, &mut regions),
            // The tables at both ends, for sectors of 512 bytes and of 4 KiB (UEFI specification 2.10, 5.3).
            "gpt" => regions.extend([0..6 * PAGE, size.saturating_sub(6 * PAGE)..size]),
            // The label, and the text of the volume group behind it (pvcreate --metadatasize: 1 MiB).
            "LVM2_member" => regions.push(0..1 << 20),
            _ => regions.push(0..HEAD),
        }
    }
    regions
}

/// First byte after the superblock and the group descriptors. Fields of `struct ext4_super_block`,
/// little-endian (fs/ext4/ext4.h).
fn ext_descriptors(device: &dyn ReadAt) -> u64 {
    const SIXTY_FOUR_BITS: u64 = 0x80;
    let Some(superblock) = device.read_at(1024, 1024) else { return PAGE };
    let word = |at: usize| u64::from(u32::from_le_bytes([0, 1, 2, 3].map(|i| superblock[at + i])));
    let (blocks, first, shift, per_group) = (word(4), word(20), word(24), word(32));
    if shift > 6 || per_group == 0 {
        return PAGE;
    }
    let block = 1024_u64 << shift;
    let is_64 = word(96) & SIXTY_FOUR_BITS != 0;
    let size = if is_64 { u64::from(u16::from_le_bytes([superblock[254], superblock[255]])) } else { 32 };
    let blocks = if is_64 { blocks | word(336) << 32 } else { blocks };
    let groups = blocks.saturating_sub(first).div_ceil(per_group);
    let descriptors = groups.saturating_mul(size).div_ceil(block).saturating_mul(block);
    (first + 1).saturating_mul(block).saturating_add(descriptors).max(PAGE)
}

/// LUKS1 on-disk format 1.2.3, table 1; LUKS2 on-disk format 1.1.1, sections 2.1 and 3.2.
fn luks(device: &dyn ReadAt, key_areas: bool, regions: &mut Vec<Range<u64>>) {
    const SECTOR: u64 = 512;
    let Some(header) = device.read_at(0, 208) else { return };
    if header[6..8] == [0, 1] {
        let payload = u64::from(u32::from_be_bytes([104, 105, 106, 107].map(|i| header[i]))) * SECTOR;
        regions.push(0..if key_areas { payload } else { PAGE });
        return;
    }
    let length = u64::from_be_bytes([8, 9, 10, 11, 12, 13, 14, 15].map(|i| header[i]));
    if !(0x4000..=0x40_0000).contains(&length) {
        regions.push(0..PAGE);
        return;
    }
    regions.push(0..2 * length);
    if key_areas && let Some(json) = device.read_at(PAGE, (length - PAGE) as usize) {
        regions.extend(luks2_key_areas(&json).unwrap_or_default());
    }
}

/// Where the key slots lie, by the text behind the header.
fn luks2_key_areas(json: &[u8]) -> Option<Vec<Range<u64>>> {
    let end = json.iter().position(|byte| *byte == 0).unwrap_or(json.len());
    let json: serde_json::Value = serde_json::from_slice(&json[..end]).ok()?;
    let slots = json.get("keyslots")?.as_object()?;
    let number = |value: &serde_json::Value, key: &str| value.get(key)?.as_str()?.parse::<u64>().ok();
    let areas = slots.values().filter_map(|slot| {
        let area = slot.get("area")?;
        let start = number(area, "offset")?;
        Some(start..start.checked_add(number(area, "size")?)?)
    });
    Some(areas.collect())
}

/// As it is stored: offset and length of each piece, eight bytes each, little-endian, and its bytes;
/// compressed (zlib).
#[must_use]
pub fn pack(pieces: &[Piece]) -> Vec<u8> {
    let mut plain = Vec::new();
    for piece in pieces {
        plain.extend(piece.offset.to_le_bytes());
        plain.extend((piece.bytes.len() as u64).to_le_bytes());
        plain.extend(&piece.bytes);
    }
    miniz_oxide::deflate::compress_to_vec_zlib(&plain, LEVEL)
}

/// What was stored; `None` if that is no copy.
#[must_use]
pub fn unpack(packed: &[u8]) -> Option<Vec<Piece>> {
    // Pieces are at least a page but for the last one.
    const HEADERS: u64 = (MAX_BYTES / PAGE + 1) * 16;
    let limit = usize::try_from(MAX_BYTES + HEADERS).ok()?;
    let plain = miniz_oxide::inflate::decompress_to_vec_zlib_with_limit(packed, limit).ok()?;
    let mut rest = plain.as_slice();
    let mut pieces = Vec::new();
    while !rest.is_empty() {
        let (offset, tail) = rest.split_first_chunk::<8>()?;
        let (length, tail) = tail.split_first_chunk::<8>()?;
        let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
        let (bytes, tail) = tail.split_at_checked(length)?;
        pieces.push(Piece { offset: u64::from_le_bytes(*offset), bytes: bytes.to_vec() });
        rest = tail;
    }
    Some(pieces)
}

/// Bytes as text.
pub mod hexadecimal {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Two digits each.
    #[must_use]
    pub fn of(bytes: &[u8]) -> String {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
    }

    /// The bytes of such a text.
    #[must_use]
    pub fn bytes(text: &str) -> Option<Vec<u8>> {
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if !rest.is_empty() {
            return None;
        }
        pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
    }

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&of(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        bytes(&text).ok_or_else(|| D::Error::custom("no bytes in hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::volume::marks::{Image, MarkKind};

    const ALL: Wanted = Wanted { limit: 1 << 20, key_areas: true };

    fn found(name: &str) -> Vec<Found> {
        vec![Found { name: name.into(), uuid: None, label: None, magic_offset: None }]
    }

    fn mark(offset: u64) -> Mark {
        Mark { offset, kind: MarkKind::Magic, bytes: vec![1; 8] }
    }

    fn extents(pieces: &[Piece]) -> Vec<(u64, u64)> {
        pieces.iter().map(|piece| (piece.offset, piece.bytes.len() as u64)).collect()
    }

    #[test]
    fn marks_come_first_and_the_bound_is_kept() {
        let image = Image(vec![7; (8 << 20) + 512]);
        let size = image.0.len() as u64;
        let marks = [mark(1080), mark(5 << 20), mark(size - 512)];
        let taken = |limit| take(&found("exotic"), &marks, size, &image, Wanted { limit, ..ALL });
        assert_eq!(extents(&taken(12288)), [(0, 4096), (5 << 20, 4096), (8 << 20, 512)]);
        assert_eq!(extents(&taken(1 << 20)), [(0, HEAD), (5 << 20, 4096), (8 << 20, 512)]);
        assert!(taken(0).is_empty());
    }

    #[test]
    fn a_table_is_copied_at_both_ends() {
        let image = Image(vec![7; 8 << 20]);
        let pieces = take(&found("gpt"), &[mark(512)], 8 << 20, &image, ALL);
        assert_eq!(extents(&pieces), [(0, 24576), ((8 << 20) - 24576, 24576)]);
    }

    #[test]
    fn group_descriptors_belong_to_a_superblock() {
        let mut image = Image(vec![0; 4 << 20]);
        // 1 TiB of 4 KiB blocks: 8192 groups of 64 bytes each.
        for (at, value) in [(4, 1_u32 << 28), (20, 0), (24, 2), (32, 32768), (96, 0x80), (336, 0)] {
            image.0[1024 + at..1028 + at].copy_from_slice(&value.to_le_bytes());
        }
        image.0[1024 + 254] = 64;
        let pieces = take(&found("ext4"), &[mark(1080)], 4 << 20, &image, ALL);
        assert_eq!(extents(&pieces), [(0, 4096 + 8192 * 64)]);
    }

    #[test]
    fn key_areas_are_copied_where_that_is_wanted_and_nowhere_else() {
        let mut image = Image(vec![0; 2 << 20]);
        image.0[..8].copy_from_slice(b"LUKS\xba\xbe\0\x02");
        image.0[8..16].copy_from_slice(&0x4000_u64.to_be_bytes());
        let json =
            br#"{"keyslots":{"0":{"area":{"offset":"32768","size":"258048"}},"1":{"area":{"offset":"x"}}}}"#;
        image.0[4096..4096 + json.len()].copy_from_slice(json);
        let taken = |key_areas| {
            let wanted = Wanted { key_areas, ..ALL };
            extents(&take(&found("crypto_LUKS"), &[mark(0)], 2 << 20, &image, wanted))
        };
        assert_eq!((taken(false), taken(true)), (vec![(0, 0x8000)], vec![(0, 0x8000 + 258_048)]));
        image.0[6..8].copy_from_slice(&[0, 1]);
        image.0[104..108].copy_from_slice(&[0, 0, 8, 0]);
        let taken = |key_areas| {
            let wanted = Wanted { key_areas, ..ALL };
            extents(&take(&found("crypto_LUKS"), &[mark(0)], 2 << 20, &image, wanted))
        };
        assert_eq!((taken(false), taken(true)), (vec![(0, 4096)], vec![(0, 1 << 20)]));
    }

    #[test]
    fn what_is_packed_is_unpacked_and_nothing_else_is() {
        let pieces = vec![
            Piece { offset: 0, bytes: vec![1, 2, 3] },
            Piece { offset: u64::MAX, bytes: vec![0; 100_000] },
        ];
        let packed = pack(&pieces);
        assert!(packed.len() < 1000, "{}", packed.len());
        assert_eq!(unpack(&packed), Some(pieces));
        assert_eq!(unpack(&packed[..packed.len() - 1]), None);
        assert_eq!(unpack(b"garbage"), None);
        // More than any copy has.
        let bomb = miniz_oxide::deflate::compress_to_vec_zlib(&vec![0; 64 << 20], LEVEL);
        assert_eq!(unpack(&bomb), None);
    }

    proptest! {
        /// Whatever numbers a superblock holds: what is copied was read there, in order, and no more than the
        /// bound.
        #[test]
        fn hostile_content_is_copied_within_the_bound(
            content in proptest::collection::vec(any::<u8>(), 4096..20_000),
            name in prop::sample::select(vec!["ext4", "crypto_LUKS", "gpt", "LVM2_member", "xfs"]),
            version in 0_u8..3,
            limit in 0_u64..40_000,
            offset in any::<u64>(),
        ) {
            let mut image = Image(content);
            image.0[6..8].copy_from_slice(&[0, version]);
            let size = image.0.len() as u64;
            let marks = [mark(offset % size), mark(offset)];
            let pieces = take(&found(name), &marks, size, &image, Wanted { limit, key_areas: true });
            let total: u64 = pieces.iter().map(|piece| piece.bytes.len() as u64).sum();
            prop_assert!(total <= limit);
            let mut end = 0;
            for piece in &pieces {
                prop_assert!(piece.offset >= end);
                end = piece.offset + piece.bytes.len() as u64;
                prop_assert_eq!(Some(piece.bytes.clone()), image.read_at(piece.offset, piece.bytes.len()));
            }
            prop_assert_eq!(unpack(&pack(&pieces)), Some(pieces));
        }
    }
}
