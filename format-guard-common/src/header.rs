//! Headers that the kernel writes by itself when a device is given to it: which layer writes one, on which of
//! the devices that it is given, and which recorded formats it finds there as its own.
//!
//! Device mapper's targets are given as text. It is read here as the kernel reads it (`dm_split_args`,
//! drivers/md/dm-table.c); what it says is a convenience for the honest caller, who may still change it
//! before the kernel reads it. What is not understood must never lead to a refusal.

use crate::{each::each, opaque};

/// Whose header it is: a set of bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header(pub u32);

impl Header {
    /// None.
    pub const NONE: Self = Self(0);
    /// The exception store of a snapshot (drivers/md/dm-snap-persistent.c: `read_header`).
    pub const SNAPSHOT: Self = Self(1);
    /// dm-integrity's, at the device's start (drivers/md/dm-integrity.c: `dm_integrity_ctr`).
    pub const INTEGRITY: Self = Self(1 << 1);
    /// The same behind another header, as LUKS2 has it.
    pub const INTEGRITY_INSIDE: Self = Self(1 << 2);
    /// dm-writecache's (drivers/md/dm-writecache.c: `writecache_ctr`).
    pub const WRITECACHE: Self = Self(1 << 3);
    /// dm-cache's metadata (drivers/md/dm-cache-metadata.c: `__open_or_format_metadata`).
    pub const CACHE: Self = Self(1 << 4);
    /// A thin pool's metadata (drivers/md/dm-thin-metadata.c: `__open_or_format_metadata`).
    pub const THIN_POOL: Self = Self(1 << 5);
    /// dm-era's metadata (drivers/md/dm-era-target.c: `open_or_format_metadata`).
    pub const ERA: Self = Self(1 << 6);
    /// dm-clone's metadata (drivers/md/dm-clone-metadata.c: `__open_or_format_metadata`).
    pub const CLONE: Self = Self(1 << 7);
    /// The log of a mirror, on a device of its own (drivers/md/dm-log.c: `read_header`).
    pub const MIRROR_LOG: Self = Self(1 << 8);
    /// dm-log-writes' (drivers/md/dm-log-writes.c: `log_super`).
    pub const LOG_WRITES: Self = Self(1 << 9);
    /// A further device of a mounted btrfs, or the replacement of one (fs/btrfs/volumes.c:
    /// `btrfs_init_new_device`).
    pub const BTRFS: Self = Self(1 << 10);
    /// A member of an md array that is not the first (drivers/md/md.c: `md_add_new_disk`): what the first
    /// holds is copied over it.
    pub const MD: Self = Self(1 << 11);

    /// In words, after "the header of".
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SNAPSHOT => "a snapshot",
            Self::INTEGRITY | Self::INTEGRITY_INSIDE => "dm-integrity",
            Self::WRITECACHE => "dm-writecache",
            Self::CACHE => "dm-cache",
            Self::THIN_POOL => "a thin pool",
            Self::ERA => "dm-era",
            Self::CLONE => "dm-clone",
            Self::MIRROR_LOG => "a mirror's log",
            Self::LOG_WRITES => "dm-log-writes",
            Self::BTRFS => "btrfs",
            Self::MD => "md",
            _ => "a layer",
        }
    }

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Which headers are at home on a volume that holds the format of this name: the kernel finds its own
    /// there, and writes none.
    #[must_use]
    pub fn at_home(format: &str) -> Self {
        match format {
            "DM_snapshot_cow" => Self::SNAPSHOT,
            "DM_integrity" => Self::INTEGRITY.with(Self::INTEGRITY_INSIDE),
            "crypto_LUKS" => Self::INTEGRITY_INSIDE,
            "dm_writecache" => Self::WRITECACHE,
            "dm_cache" => Self::CACHE,
            "dm_thin_pool" => Self::THIN_POOL,
            "dm_era" => Self::ERA,
            "dm_clone" => Self::CLONE,
            "dm_mirror_log" => Self::MIRROR_LOG,
            "dm_log_writes" => Self::LOG_WRITES,
            "linux_raid_member" | "ddf_raid_member" | "isw_raid_member" => Self::MD,
            // btrfs looks for no header: it overwrites whatever device it is given.
            _ => Self::NONE,
        }
    }
}

/// What becomes of a device that a target opens for writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Role {
    /// It stays as it is.
    Kept = 1,
    /// The kernel writes its header to the device, unless it finds a header there.
    Header = 2,
    /// Where the header is new, the layer writes over it as it is used.
    Given = 3,
}

/// Devices of a target that are kept in mind at most: those of dm-cache.
pub const DEVICES: usize = 3;

/// One device of a target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Use {
    /// A [`Role`]; zero: there is no such device.
    pub role: u32,
    /// Kernel `dev_t` where the table names the device by number; zero where the table names a path.
    pub dev: u32,
}

/// What the kernel is about to make of the devices of a table: value of the map `TABLES`, keyed by thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Plan {
    /// The user address of the call's argument.
    pub argument: u64,
    /// A [`Header`].
    pub header: u32,
    /// Not zero once the header was found, or may have been: what the layer was given is its own.
    pub found: u32,
    /// In the order in which the target opens them.
    pub uses: [Use; DEVICES],
}

impl Plan {
    /// What becomes of a device that the target opens for writing, by its number, or else as the next one
    /// that has none. It is not asked for again.
    #[inline(always)]
    pub fn take(&mut self, dev: u32) -> u32 {
        let numbered = |slot: Use| slot.role != 0 && slot.dev == dev;
        let named = |slot: Use| slot.role != 0 && slot.dev == 0;
        let [first, second, third] = self.uses;
        if numbered(first) {
            first.role
        } else if numbered(second) {
            second.role
        } else if numbered(third) {
            third.role
        } else if named(first) {
            self.uses[0].role = 0;
            first.role
        } else if named(second) {
            self.uses[1].role = 0;
            second.role
        } else if named(third) {
            self.uses[2].role = 0;
            third.role
        } else {
            0
        }
    }
}

/// The arguments of a target, byte by byte.
pub trait Text {
    /// The byte at this place; `None` where it cannot be read.
    fn byte(&self, at: u32) -> Option<u8>;
}

/// Bytes of a target's arguments that are looked at: those of dm-integrity name keys before a device.
pub const TEXT: u32 = 1024;

/// A target's name as it stands in `struct dm_target_spec` (include/uapi/linux/dm-ioctl.h), as two words of
/// native byte order.
const fn name(text: &[u8]) -> [u64; 2] {
    let mut words = [0; 2];
    let mut i = 0;
    while i < text.len() {
        words[i / 8] |= (text[i] as u64) << (8 * (i % 8));
        i += 1;
    }
    words
}

/// Two bits for each argument, the first one lowest.
const fn roles(arguments: &[(u32, Role)]) -> u32 {
    let (mut roles, mut i) = (0, 0);
    while i < arguments.len() {
        roles |= (arguments[i].1 as u32) << (2 * arguments[i].0);
        i += 1;
    }
    roles
}

/// Whose header a target writes, and the roles of its arguments, each opened for writing in this order; zero
/// where it writes none. Documentation/admin-guide/device-mapper/*.rst and the functions that are named at
/// [`Header`].
#[inline(always)]
#[must_use]
pub const fn of_target(target: [u64; 2]) -> (Header, u32) {
    const SNAPSHOT: [u64; 2] = name(b"snapshot");
    const MERGE: [u64; 2] = name(b"snapshot-merge");
    const INTEGRITY: [u64; 2] = name(b"integrity");
    const WRITECACHE: [u64; 2] = name(b"writecache");
    const CACHE: [u64; 2] = name(b"cache");
    const THIN_POOL: [u64; 2] = name(b"thin-pool");
    const ERA: [u64; 2] = name(b"era");
    const CLONE: [u64; 2] = name(b"clone");
    const MIRROR: [u64; 2] = name(b"mirror");
    const LOG_WRITES: [u64; 2] = name(b"log-writes");
    match target {
        // The origin is opened for reading alone.
        SNAPSHOT => (Header::SNAPSHOT, roles(&[(1, Role::Header)])),
        MERGE => (Header::SNAPSHOT, roles(&[(0, Role::Kept), (1, Role::Header)])),
        INTEGRITY => (Header::INTEGRITY, roles(&[(0, Role::Header)])),
        WRITECACHE => (Header::WRITECACHE, roles(&[(1, Role::Kept), (2, Role::Header)])),
        CACHE => (Header::CACHE, roles(&[(0, Role::Header), (1, Role::Given), (2, Role::Kept)])),
        THIN_POOL => (Header::THIN_POOL, roles(&[(0, Role::Header), (1, Role::Given)])),
        ERA => (Header::ERA, roles(&[(0, Role::Header), (1, Role::Kept)])),
        // What is cloned is opened for reading alone.
        CLONE => (Header::CLONE, roles(&[(0, Role::Header), (1, Role::Given)])),
        // With a log of the type "disk".
        MIRROR => (Header::MIRROR_LOG, roles(&[(2, Role::Header)])),
        LOG_WRITES => (Header::LOG_WRITES, roles(&[(0, Role::Kept), (1, Role::Header)])),
        _ => (Header::NONE, 0),
    }
}

/// What the kernel is about to make of the devices of a target ([`of_target`]) with these arguments.
#[inline(always)]
#[must_use]
pub fn plan<T: Text>(argument: u64, header: Header, roles: u32, text: &T) -> Plan {
    const HEADER: u32 = Role::Header as u32;
    let mut reader = Reader {
        text,
        unknown: argument,
        index: 0,
        hash: BASIS,
        number: 0,
        major: 0,
        shape: 0,
        devices: [0; DEVICES],
        facts: 0,
        elsewhere: 0,
    };
    each(TEXT, &mut reader, read::<T>);
    let [first, second, third] = reader.devices.map(|dev| dev as u32);
    let (facts, elsewhere) = (reader.facts, reader.elsewhere);
    let mut plan = Plan {
        argument,
        header: header.0,
        found: 0,
        uses: [
            Use { role: roles & 3, dev: first },
            Use { role: roles >> 2 & 3, dev: second },
            Use { role: roles >> 4 & 3, dev: third },
        ],
    };
    if plan.header == Header::INTEGRITY.0 {
        if facts & Reader::<T>::OFFSET != 0 {
            plan.header = Header::INTEGRITY_INSIDE.0;
        }
        if elsewhere != 0 {
            // The data lie as they are on the first one.
            plan.uses[0].role = Role::Kept as u32;
            plan.uses[1] = Use { role: HEADER, dev: elsewhere as u32 };
        }
    } else if plan.header == Header::SNAPSHOT.0 && facts & Reader::<T>::TRANSIENT != 0 {
        // Its exceptions are written without a header.
        plan.uses[1].role = Role::Given as u32;
    } else if plan.header == Header::MIRROR_LOG.0 && facts & Reader::<T>::DISK == 0 {
        plan.uses[2].role = 0;
    }
    plan
}

// FNV-1a (RFC 9923).
const BASIS: u64 = 0xcbf2_9ce4_8422_2325;

#[inline(always)]
const fn feed(hash: u64, byte: u64) -> u64 {
    (hash ^ byte).wrapping_mul(0x0000_0100_0000_01b3)
}

const fn hash_of(text: &[u8]) -> u64 {
    let (mut hash, mut i) = (BASIS, 0);
    while i < text.len() {
        hash = feed(hash, text[i] as u64);
        i += 1;
    }
    hash
}

/// Reads the arguments of a target byte by byte.
struct Reader<'a, T> {
    text: &'a T,
    /// A value that the kernel's verifier does not know.
    unknown: u64,
    /// Number of the argument.
    index: u64,
    /// The hash of the word so far, and the word's value as a device number while it may be one.
    hash: u64,
    number: u64,
    major: u64,
    shape: u64,
    /// The first arguments as devices; zero where they are no numbers of any.
    devices: [u64; DEVICES],
    facts: u64,
    /// A device for the header beside the one that is given first; above its number, that there is one.
    elsewhere: u64,
}

impl<T> Reader<'_, T> {
    // Of `shape`: the argument has a byte that no number has; it names the header's device; and a colon.
    const LETTERS: u64 = 1;
    const ELSEWHERE: u64 = 2;
    const COLON: u64 = 4;
    // Of `facts`: what the first, the second and the third argument say.
    const DISK: u64 = 1;
    const OFFSET: u64 = 2;
    const TRANSIENT: u64 = 4;

    /// One more byte of an argument.
    #[inline(always)]
    fn goes_on(&mut self, byte: u64) {
        const META_DEVICE: u64 = hash_of(b"meta_device");
        let digit = byte.wrapping_sub(b'0'.into());
        if digit < 10 {
            self.number = self.number.wrapping_mul(10).wrapping_add(digit);
        } else if byte != b':'.into() {
            self.shape |= Self::LETTERS;
        } else if self.hash == META_DEVICE {
            self.shape = Self::ELSEWHERE;
        } else {
            (self.major, self.number) = (self.number, 0);
            self.shape = self.shape.wrapping_add(Self::COLON);
        }
        self.hash = feed(self.hash, byte);
    }

    /// An argument has ended.
    #[inline(always)]
    fn ends(&mut self) {
        const DISK: u64 = hash_of(b"disk");
        const TRANSIENT: [u64; 2] = [hash_of(b"N"), hash_of(b"n")];
        let is_number = self.shape & !Self::ELSEWHERE == Self::COLON;
        let dev = if is_number { self.major << 20 | self.number & 0xf_ffff } else { 0 };
        if self.shape & Self::ELSEWHERE != 0 {
            self.elsewhere = 1 << 32 | dev;
        } else if self.index == 0 {
            self.devices[0] = dev;
            self.facts = u64::from(self.hash == DISK) * Self::DISK;
        } else if self.index == 1 {
            self.devices[1] = dev;
            self.facts |= u64::from(self.number != 0) * Self::OFFSET;
        } else if self.index == 2 {
            self.devices[2] = dev;
            let transient = self.hash == TRANSIENT[0] || self.hash == TRANSIENT[1];
            self.facts |= u64::from(transient) * Self::TRANSIENT;
        }
        self.index = self.index.wrapping_add(1);
        (self.hash, self.number, self.major, self.shape) = (BASIS, 0, 0, 0);
    }

    /// Makes the kernel's verifier forget the values it knows; else it follows each turn of the loop
    /// separately.
    #[inline(always)]
    fn forget(&mut self) {
        let unknown = self.unknown;
        self.index = opaque(self.index, unknown);
        self.hash = opaque(self.hash, unknown);
        self.number = opaque(self.number, unknown);
        self.major = opaque(self.major, unknown);
        self.shape = opaque(self.shape, unknown);
        self.devices[0] = opaque(self.devices[0], unknown);
        self.devices[1] = opaque(self.devices[1], unknown);
        self.devices[2] = opaque(self.devices[2], unknown);
        self.facts = opaque(self.facts, unknown);
        self.elsewhere = opaque(self.elsewhere, unknown);
    }
}

extern "C" fn read<T: Text>(at: u32, reader: *mut Reader<'_, T>) -> i64 {
    // SAFETY: `each` passes what it was given, which nothing else uses meanwhile.
    let reader = unsafe { &mut *reader };
    let byte = u64::from(reader.text.byte(at).unwrap_or(0));
    if byte > u64::from(b' ') {
        reader.goes_on(byte);
    } else if reader.hash != BASIS {
        reader.ends();
    }
    reader.forget();
    (byte == 0).into()
}

const _: () = assert!(size_of::<Plan>() == 16 + 8 * DEVICES);

#[cfg(test)]
mod tests {
    extern crate std;

    use proptest::prelude::*;

    use super::*;

    struct Line<'a>(&'a [u8]);

    impl Text for Line<'_> {
        fn byte(&self, at: u32) -> Option<u8> {
            Some(self.0.get(at as usize).copied().unwrap_or(0))
        }
    }

    fn planned(target: &str, text: &str) -> Plan {
        let (header, roles) = of_target(name(target.as_bytes()));
        plan(0, header, roles, &Line(text.as_bytes()))
    }

    /// Roles and numbers of those that are written to.
    fn uses(target: &str, text: &str) -> std::vec::Vec<(u32, u32)> {
        let uses = planned(target, text).uses.into_iter().map(|slot| (slot.role, slot.dev));
        uses.filter(|(role, _)| *role != 0).collect()
    }

    const KEPT: u32 = Role::Kept as u32;
    const HEADER: u32 = Role::Header as u32;
    const GIVEN: u32 = Role::Given as u32;

    const fn number(major: u32, minor: u32) -> u32 {
        major << 20 | minor
    }

    #[test]
    fn each_target_says_where_its_header_comes_to_lie() {
        let [a, b, c] = [number(7, 0), number(7, 1), number(254, 12)];
        for (target, text, expected) in [
            ("snapshot", "7:0 7:1 P 8", &[(HEADER, b)][..]),
            ("snapshot", "7:0 7:1 PO 8", &[(HEADER, b)]),
            ("snapshot", "7:0 7:1 N 8", &[(GIVEN, b)]),
            ("snapshot", "/dev/loop0 /dev/loop1 P 8", &[(HEADER, 0)]),
            ("snapshot-merge", "7:0 7:1 P 8", &[(KEPT, a), (HEADER, b)]),
            ("integrity", "7:0 0 - J 1 internal_hash:crc32c", &[(HEADER, a)]),
            ("integrity", "/dev/sda 0 4 D 2 meta_device:7:1 recalculate", &[(KEPT, 0), (HEADER, b)]),
            ("integrity", "7:0 0 4 D 1 meta_device:/dev/sdb", &[(KEPT, a), (HEADER, 0)]),
            ("writecache", "s 7:0 254:12 4096 0", &[(KEPT, a), (HEADER, c)]),
            ("cache", "7:0 7:1 254:12 128 1 writethrough default 0", &[(HEADER, a), (GIVEN, b), (KEPT, c)]),
            ("thin-pool", "7:0  7:1\t128 0", &[(HEADER, a), (GIVEN, b)]),
            ("era", "/dev/mapper/a-b /dev/sda1 8192", &[(HEADER, 0), (KEPT, 0)]),
            ("clone", "7:0 7:1 254:12 8", &[(HEADER, a), (GIVEN, b)]),
            ("mirror", "disk 2 7:1 1024 2 7:0 0 254:12 0", &[(HEADER, b)]),
            ("mirror", "core 1 1024 2 7:0 0 7:1 0", &[]),
            ("log-writes", "7:0 7:1", &[(KEPT, a), (HEADER, b)]),
            ("linear", "7:0 0", &[]),
            ("snapshot-origin", "7:0", &[]),
            ("thin", "254:12 1", &[]),
        ] {
            assert_eq!(uses(target, text), expected, "{target} {text}");
        }
    }

    #[test]
    fn dm_integrity_inside_another_format_is_told_by_its_offset() {
        assert_eq!(planned("integrity", "7:0 0 - J 0").header, Header::INTEGRITY.0);
        assert_eq!(planned("integrity", "7:0 32768 28 J 0").header, Header::INTEGRITY_INSIDE.0);
    }

    #[test]
    fn a_device_is_found_by_its_number_and_else_in_the_order_of_opening() {
        let mut plan = planned("cache", "/dev/a 7:1 /dev/c 128 0");
        assert_eq!([number(7, 1), 5, 6, 7].map(|dev| plan.take(dev)), [GIVEN, HEADER, KEPT, 0]);
        assert_eq!(plan.take(number(7, 1)), GIVEN, "asked for once more");
    }

    proptest! {
        /// Whatever a caller writes there.
        #[test]
        fn any_text_is_read_to_an_end(target in "[a-z-]{0,15}", text in "[ -~\t\n]{0,200}") {
            let plan = planned(&target, &text);
            prop_assert!(plan.uses.iter().all(|slot| slot.role <= GIVEN));
            let writes = plan.uses.iter().any(|slot| slot.role == HEADER);
            prop_assert!(!writes || plan.header != 0);
        }

        /// Numbers are the kernel's (`sscanf("%u:%u")`), whatever stands around them.
        #[test]
        fn a_number_is_read_as_the_kernel_reads_it(major in 0_u32..4096, minor in 0_u32..1 << 20) {
            let text = std::format!("s /dev/x {major}:{minor} 4096 0");
            prop_assert_eq!(planned("writecache", &text).uses[2], Use { role: HEADER, dev: number(major, minor) });
        }
    }
}
