//! What is known of a volume, and how that may change: one pure function. The store, the kernel and the clock
//! are at its edges.

mod attachment;
pub mod history;
pub mod merge;
pub mod shared;
pub mod sqlite;
pub mod store;
pub mod transition;

pub use attachment::{Attachment, Progress, Volume};
pub use format_guard_common::State;
use format_guard_common::{
    event::{Process, wrote},
    program::{self, Class},
};
use serde::{Deserialize, Serialize};

use crate::volume::{VolumeId, marks::Mark, probe::Digest};

/// Seconds since 1970.
pub type Seconds = i64;

/// One moment by both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Now {
    /// Seconds since 1970, for people: it may jump.
    pub wall: Seconds,
    /// Seconds since the host was booted, suspended ones among them (`CLOCK_BOOTTIME`): what has to last is
    /// measured by it.
    pub boot: Seconds,
}

/// What a volume holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Content {
    /// libblkid's names of every format found, the first one for people.
    pub types: Vec<String>,
    /// UUID of the first one.
    pub uuid: Option<String>,
    /// Its label.
    pub label: Option<String>,
}

/// Formats that hold other volumes, as libblkid names them (util-linux 2.41), or
/// `format_guard_common::format`. A layer over such a format may read blank, or hold a format of its own:
/// that is its purpose. Every name that ends in `_raid_member` is one, too.
const CONTAINERS: &[&str] = &[
    "crypto_LUKS",
    "BitLocker",
    "LVM1_member",
    "LVM2_member",
    "DM_snapshot_cow",
    "DM_verity_hash",
    "DM_integrity",
    "bcache",
    "drbd",
    "mpath_member",
    "stratis",
    "vdo",
    "dm_thin_pool",
    "dm_cache",
    "dm_era",
    "dm_clone",
    "dm_writecache",
    "dm_mirror_log",
    "dm_log_writes",
    "zfs_member",
    "gpt",
    "dos",
    "PMBR",
    "mac",
    "sgi",
    "sun",
    "bsd",
    "atari",
    "minix",
    "solaris_x86",
    "unixware",
    "ultrix",
];

impl Content {
    /// In the place of a format's name.
    const RAW: &str = "raw";

    /// Content of no known format: what a database, a virtual machine or an object store keeps there.
    #[must_use]
    pub fn raw() -> Self {
        Self { types: vec![Self::RAW.to_owned()], uuid: None, label: None }
    }

    /// It is of no known format.
    #[must_use]
    pub fn is_raw(&self) -> bool {
        self.types.iter().any(|name| name == Self::RAW)
    }

    /// It holds other volumes.
    #[must_use]
    pub fn is_container(&self) -> bool {
        !self.types.is_empty()
            && self
                .types
                .iter()
                .all(|name| CONTAINERS.contains(&name.as_str()) || name.ends_with("_raid_member"))
    }

    /// It is used without a mount, which would be seen: other volumes lie on it, or memory is swapped to it.
    #[must_use]
    pub fn is_used_unmounted(&self) -> bool {
        let name = |name: &String| {
            CONTAINERS.contains(&name.as_str()) || name.ends_with("_raid_member") || name == "swap"
        };
        self.types.iter().any(name)
    }

    /// Memory is swapped to it, and no hibernated system lies there.
    #[must_use]
    pub fn is_swap_space(&self) -> bool {
        !self.types.is_empty() && self.types.iter().all(|name| name == "swap")
    }

    /// It is a member of an md array.
    #[must_use]
    pub fn is_md_member(&self) -> bool {
        self.types.iter().any(|name| name == "linux_raid_member")
    }

    /// The format's name for people.
    #[must_use]
    pub fn name(&self) -> &str {
        self.types.first().map_or("unknown", String::as_str)
    }
}

/// What the ends of a volume without a known format read as.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Ends {
    /// Zeros.
    Zeros,
    /// Bytes of which this is the digest.
    Bytes(Digest),
}

impl Ends {
    const ZEROS: &str = "zeros";

    /// As it is stored and shown: a word, or the digest.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::Zeros => Self::ZEROS,
            Self::Bytes(digest) => &digest.0,
        }
    }

    /// From what was stored.
    #[must_use]
    pub fn of(text: String) -> Self {
        if text == Self::ZEROS { Self::Zeros } else { Self::Bytes(Digest(text)) }
    }
}

/// A process that formats or formatted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Formatter {
    /// Process id in the initial pid namespace.
    pub pid: u32,
    /// Nanoseconds of `CLOCK_BOOTTIME` at which it started.
    pub started: u64,
    /// Name of the program, as the kernel keeps it.
    pub comm: String,
    /// Path of its executable, where it could still be read.
    pub exe: Option<String>,
    /// Its control group (v2), by number.
    pub cgroup: u64,
    /// When it began.
    pub at: Seconds,
}

/// What the kernel saw of the writes of one who formats, from the least to the most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Wrote {
    /// None.
    #[default]
    Nothing,
    /// Some, or they may have gone unseen.
    Bytes,
    /// Bytes that are not zero and no known format's, by one that is no known formatter.
    Raw,
    /// The magic of a format among them.
    Magic,
}

impl Wrote {
    /// From bits of [`wrote`].
    #[must_use]
    pub const fn of(bits: u32) -> Self {
        if bits & wrote::MAGIC != 0 {
            Self::Magic
        } else if bits & wrote::RAW != 0 {
            Self::Raw
        } else if bits != 0 {
            Self::Bytes
        } else {
            Self::Nothing
        }
    }
}

impl Formatter {
    /// Whether the program is there to write formats, by its name or by what its arguments may say
    /// (`veritysetup format`, `sgdisk`): such a program ends when the format is complete. Another program (a
    /// virtual machine's monitor, a target's daemon, a copy) may live as long as the data that it wrote.
    #[must_use]
    pub fn is_known(&self) -> bool {
        let class = program::class_of(&self.comm);
        class.is(Class::FORMATTER) || class.grammar() != 0
    }

    /// The process.
    #[must_use]
    pub const fn process(&self) -> Process {
        Process { started: self.started, tgid: self.pid, zero: 0 }
    }

    /// Whether it is this process.
    #[must_use]
    pub fn is(&self, process: Process) -> bool {
        self.process() == process
    }
}

/// An operator's allowance for one re-purposing.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Permit {
    /// Why.
    pub reason: String,
    /// The operator's user id, as the kernel told it.
    pub uid: u32,
    /// When it was given.
    pub at: Seconds,
    /// When it ends, used or not.
    pub expires: Seconds,
    /// A format has begun under it. It goes on until that has settled.
    #[serde(default, skip_serializing_if = "is_not")]
    pub used: bool,
}

/// `false` is not written: an earlier version did not write the field, and the sums of its records must hold.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_not(used: &bool) -> bool {
    !*used
}

impl Permit {
    /// The user id of one that a cluster's operator gave: the reason says who.
    pub const BY_CLUSTER: u32 = u32::MAX;

    /// Who gave it, in words.
    #[must_use]
    pub fn giver(&self) -> String {
        match self.uid {
            Self::BY_CLUSTER => "in the cluster".to_owned(),
            uid => format!("by user {uid}"),
        }
    }

    /// How long the permit lasts from this moment of the wall clock on: never longer than it was given for,
    /// however the clock was set.
    #[must_use]
    pub fn rest(&self, wall: Seconds) -> Seconds {
        rest(self.at, self.expires, wall)
    }
}

/// How long something lasts, from this moment of the wall clock on, that was given at `at` and ends at
/// `ends`: never longer than it was given for, however the clock was set.
#[must_use]
pub fn rest(at: Seconds, ends: Seconds, wall: Seconds) -> Seconds {
    let whole = ends.saturating_sub(at).max(0);
    ends.saturating_sub(wall).clamp(0, whole)
}

/// A volume that another lies over or beside, and whose format the other's own would destroy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Overlay {
    /// Its id and what it holds, for people.
    pub by: String,
    /// How the bytes of both lie.
    pub overlap: Overlap,
}

/// Where the bytes of one volume meet the format of another one that they destroy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Overlap {
    /// The format begins in bytes that both volumes have.
    Start,
    /// The format begins elsewhere: what a probe finds in the shared bytes is its data, and no format.
    Inside,
    /// They have no byte in common, but a layer between them (encryption, stripes) writes every one of the
    /// volume over the format.
    Transformed,
}

/// Whether this node may arm a volume that other nodes may reach, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Claim {
    /// No other node reaches it, as far as is known.
    #[default]
    Unneeded,
    /// The cluster's store must give this node the claim first.
    Wanted,
    /// It has claimed it, under the lease of this number ([`format_guard_common::claim::Lease::number`]).
    Held(u32),
}

impl Claim {
    /// The claim's number in a rule: zero where no claim is needed.
    #[must_use]
    pub const fn number(self) -> u32 {
        /// No lease has this number.
        const NONE: u32 = u32::MAX;
        match self {
            Self::Unneeded => 0,
            Self::Wanted => NONE,
            Self::Held(number) => number,
        }
    }
}

/// What is known of one volume, and stored. What is known only while it is attached is its [`Attachment`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts, not a state: the state is `state`")]
pub struct Record {
    /// Which volume.
    pub id: VolumeId,
    /// Where its identity came from, for people.
    pub origin: String,
    /// The identity says where the device is, not what it holds.
    pub weak: bool,
    /// The state.
    pub state: State,
    /// Since when.
    pub since: Seconds,
    /// What brought it there, for people.
    pub cause: String,
    /// What it holds, once that was seen. Kept through a permit.
    pub content: Option<Content>,
    /// The bytes that identify it.
    pub marks: Vec<Mark>,
    /// What its ends read as when it was armed last, or, of raw content, last.
    pub ends: Option<Ends>,
    /// It carried a format once: only a permit may bring another one.
    pub ever_formatted: bool,
    /// A file system on it was mounted since it was formatted.
    pub mounted: bool,
    /// Who formats it, or formatted it last.
    pub formatter: Option<Formatter>,
    /// The permit in force.
    pub permit: Option<Permit>,
    /// What a probe found that is not what is recorded.
    pub discrepancy: Option<String>,
    /// When it was first seen.
    pub first_seen: Seconds,
    /// Its refusals are told and not carried out.
    pub audit: bool,
    /// While it holds a format nobody but known programs may write to it.
    pub strict: bool,
    /// The boot in which it was attached last (`/proc/sys/kernel/random/boot_id`).
    pub boot: String,
    /// The boot in which a rule was put by which a format may begin, until it is known what came of that.
    pub armed: Option<String>,
    /// Goes up with each format, and with each change of what identifies it: which of two nodes knows more.
    pub generation: u64,
    /// Where only the place of the volume is known: the attachment (boot and diskseq) that all else is known
    /// of; empty after that attachment has ended.
    pub medium: Option<String>,
}

impl Record {
    /// A volume seen for the first time.
    #[must_use]
    pub fn new(id: VolumeId, origin: String, weak: bool, now: Seconds) -> Self {
        Self {
            id,
            origin,
            weak,
            state: State::Unverified,
            since: now,
            cause: "not probed yet".to_owned(),
            content: None,
            marks: Vec::new(),
            ends: None,
            ever_formatted: false,
            mounted: false,
            formatter: None,
            permit: None,
            discrepancy: None,
            first_seen: now,
            audit: false,
            strict: false,
            boot: String::new(),
            armed: None,
            generation: 0,
            medium: None,
        }
    }

    /// Whether both are the same, but for the attachment that they are known of: that alone is no reason to
    /// store one.
    #[must_use]
    pub fn is_stored_as(&self, other: &Self) -> bool {
        let without_medium = |record: &Self| Self { medium: None, ..record.clone() };
        without_medium(self) == without_medium(other)
    }
}
