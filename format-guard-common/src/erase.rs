//! Ioctls of block devices that erase a range: which they are, and in which unit they say it.

// include/uapi/linux/fs.h: _IO(0x12, 119), _IO(0x12, 125), _IO(0x12, 127), each with a uint64_t range[2] in
// bytes.
const BLKDISCARD: u32 = 0x1277;
const BLKSECDISCARD: u32 = 0x127d;
const BLKZEROOUT: u32 = 0x127f;
// include/uapi/linux/blkzoned.h: _IOW(0x12, 131, struct blk_zone_range) and 136: first sector and number of
// sectors of 512 bytes. A zone that is finished reads as full: what a format keeps where the last write was
// (btrfs its superblock) is not found any more. Opening and closing zones (134, 135) changes no byte and
// moves nothing.
const BLKRESETZONE: u32 = 0x4010_1283;
const BLKFINISHZONE: u32 = 0x4010_1288;
/// Bits by which a sector's number is shifted to be its first byte.
const SECTOR: u32 = 9;

/// Where the range cannot be read, the whole device is meant: the kernel will fail the call itself.
pub const WHOLE: [u64; 2] = [0, u64::MAX];

/// Whether an ioctl of this number erases the range that its argument, two words, states.
#[inline(always)]
#[must_use]
pub const fn erases(command: u32) -> bool {
    matches!(command, BLKDISCARD | BLKSECDISCARD | BLKZEROOUT | BLKRESETZONE | BLKFINISHZONE)
}

/// First byte and length of the range that the argument of such an ioctl says.
#[inline(always)]
#[must_use]
pub const fn range(command: u32, argument: [u64; 2]) -> [u64; 2] {
    match command {
        BLKRESETZONE | BLKFINISHZONE => [bytes(argument[0]), bytes(argument[1])],
        _ => argument,
    }
}

/// Sectors in bytes; more than a device has where they are more than fit.
#[inline(always)]
const fn bytes(sectors: u64) -> u64 {
    if sectors >> (u64::BITS - SECTOR) == 0 { sectors << SECTOR } else { u64::MAX }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_counted_in_sectors_and_discards_in_bytes() {
        for command in [BLKRESETZONE, BLKFINISHZONE] {
            assert!(erases(command));
            assert_eq!(range(command, [8, 32768]), [4096, 16 << 20]);
            assert_eq!(range(command, [0, u64::MAX]), WHOLE, "all zones");
            assert_eq!(range(command, [1 << 55, 1]), [u64::MAX, 512]);
        }
        for command in [BLKDISCARD, BLKSECDISCARD, BLKZEROOUT] {
            assert!(erases(command));
            assert_eq!(range(command, [8, 32768]), [8, 32768]);
        }
        // BLKREPORTZONE, BLKOPENZONE, BLKCLOSEZONE, BLKROTATIONAL.
        assert!(![0xc010_1282, 0x4010_1286, 0x4010_1287, 0x127e].iter().any(|command| erases(*command)));
    }
}
