//! What the nodes of a cluster share of a volume, and what a node does about it: pure functions. The store,
//! the lease and the clock are at their edges.
//!
//! They must never lower what is known of a format, nor claim a volume that another node has claimed, or one
//! that holds a format without a permit.

#[cfg(feature = "etcd")]
pub mod etcd;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
pub mod store;

use format_guard_common::MAX_CHECK_BYTES;
use serde::{Deserialize, Serialize};

use super::{Content, Permit, Record, Seconds, State, Volume};
use crate::volume::{
    VolumeId,
    marks::{MAX_MARKS, Mark},
};

/// The version of the values that are written, and the only one that is read.
pub const VERSION: u32 = 1;
/// The version of a value that has moved to a better name of its volume. A program that reads only
/// [`VERSION`] arms nothing by it.
pub const MOVED: u32 = 2;
/// Largest value that is read, in bytes: one of twelve marks has some hundred.
pub const MAX_VALUE: usize = 64 * 1024;
/// Formats, and bytes of each text, that are taken over from a value at most.
const MAX_TYPES: usize = 32;
const MAX_TEXT: usize = 1024;

/// Whether a volume of this id is the same one on every node that has it: the id is the target's, the
/// namespace's, the image's or the header's own. Records of all other volumes stay on their node.
#[must_use]
pub fn is_shared(id: &VolumeId) -> bool {
    let mut id = id.as_str();
    while let Some(rest) = id.strip_prefix("part:") {
        let Some((disk, _)) = rest.rsplit_once('#') else { return false };
        id = disk;
    }
    let Some((scheme, value)) = id.split_once(':') else { return false };
    match scheme {
        "iscsi" | "nvme" | "scsi" | "rbd" => true,
        "dm" => ["LVM-", "CRYPT-LUKS1-", "CRYPT-LUKS2-", "mpath-"].iter().any(|kind| value.starts_with(kind)),
        _ => false,
    }
}

/// The text is of bounded length, and nothing in it acts upon a terminal.
fn is_text(text: &str) -> bool {
    text.len() <= MAX_TEXT && !text.chars().any(char::is_control)
}

/// What a volume holds, as one node has seen it and tells all others.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Format {
    /// Goes up with each format and with each change of what identifies it: an older one never replaces a
    /// newer one.
    pub generation: u64,
    /// What a probe found; none where it is known by a mount alone.
    pub content: Option<Content>,
    /// The bytes that identify it.
    pub marks: Vec<Mark>,
    /// The node that tells of it.
    pub node: String,
    /// Since when it is known there, in seconds since 1970.
    pub at: Seconds,
}

impl Format {
    /// The format of a record, as this node tells it.
    #[must_use]
    pub fn of(record: &Record, node: &str) -> Self {
        Self {
            // Zero: a record from before there were generations.
            generation: record.generation.max(1),
            content: record.content.clone(),
            marks: record.marks.clone(),
            node: node.to_owned(),
            at: record.since,
        }
    }

    /// Whether an agent may have written it.
    fn is_sound(&self) -> bool {
        let content = |content: &Content| {
            let mut texts = content.types.iter().chain(&content.uuid).chain(&content.label);
            content.types.len() <= MAX_TYPES && texts.all(|text| is_text(text))
        };
        let mark = |mark: &Mark| (1..=MAX_CHECK_BYTES).contains(&mark.bytes.len());
        i64::try_from(self.generation).is_ok_and(|generation| generation > 0)
            && is_text(&self.node)
            && self.content.as_ref().is_none_or(content)
            && self.marks.len() <= MAX_MARKS
            && self.marks.iter().all(mark)
    }
}

/// A node that may let a formatter through; or one that could when its claim ended, and it is not known what
/// came of that.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Armed {
    /// Its name.
    pub node: String,
    /// The lease under which it has claimed the volume.
    pub lease: u64,
    /// By the permit.
    pub by_permit: bool,
    /// It took the claim over from a node that was gone: a format may have gone unseen.
    pub doubted: bool,
    /// Since when, in seconds since 1970.
    pub at: Seconds,
}

/// The record of a volume that the nodes share: the value of its key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Shared {
    /// [`VERSION`].
    pub version: u32,
    /// What it holds.
    pub format: Option<Format>,
    /// Who may let a formatter through.
    pub armed: Option<Armed>,
    /// One re-format, on whichever node claims it.
    pub permit: Option<Permit>,
}

impl Default for Shared {
    fn default() -> Self {
        Self { version: VERSION, format: None, armed: None, permit: None }
    }
}

/// Why a value is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// It is no value of this program.
    #[error("its value in the store cannot be read: {0}")]
    Malformed(String),
    /// It is kept under a better name of its volume.
    #[error("what was known by this name is kept under a better one of its volume")]
    Moved,
    /// A newer agent's.
    #[error(
        "its value in the store has version {0}, this program knows {VERSION}: install a newer one on this node"
    )]
    Version(u32),
}

impl Shared {
    /// Reads a value.
    pub fn read(bytes: &[u8]) -> Result<Self, ValueError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }

        let malformed = |what: &str| ValueError::Malformed(what.to_owned());
        if bytes.len() > MAX_VALUE {
            return Err(malformed("it is larger than 64 KiB"));
        }
        let of_json = |error: serde_json::Error| ValueError::Malformed(error.to_string());
        let Versioned { version } = serde_json::from_slice(bytes).map_err(of_json)?;
        match version {
            VERSION => {}
            MOVED => return Err(ValueError::Moved),
            newer => return Err(ValueError::Version(newer)),
        }
        let shared: Self = serde_json::from_slice(bytes).map_err(of_json)?;
        if !shared.is_sound() {
            return Err(malformed("it has what no agent writes"));
        }
        Ok(shared)
    }

    /// The value.
    #[must_use]
    pub fn value(&self) -> Vec<u8> {
        // JSON fails for maps whose keys are no text: there are none here.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Whether an agent may have written it.
    fn is_sound(&self) -> bool {
        self.format.as_ref().is_none_or(Format::is_sound)
            && self.armed.as_ref().is_none_or(|armed| is_text(&armed.node))
            && self.permit.as_ref().is_none_or(|permit| is_text(&permit.reason))
    }

    fn is_empty(&self) -> bool {
        self.format.is_none() && self.armed.is_none() && self.permit.is_none()
    }
}

/// Who has claimed a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Under which lease of the store.
    pub lease: u64,
    /// The node's name.
    pub node: String,
    /// The store's revision of it.
    pub revision: i64,
}

/// What the store has of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The record; none has been written.
    pub shared: Option<Shared>,
    /// The store's revision of it; zero where there is none.
    pub revision: i64,
    /// The claim in force.
    pub claim: Option<Claim>,
}

impl Observed {
    /// What the store has after a write of this node, of this revision.
    #[must_use]
    pub fn after(self, write: Write, revision: i64, node: &str) -> Self {
        let claim = match write.claim {
            ClaimChange::Keep => self.claim,
            ClaimChange::Drop => None,
            ClaimChange::Take(lease) => Some(Claim { lease, node: node.to_owned(), revision }),
        };
        Self { revision: if write.shared.is_some() { revision } else { 0 }, shared: write.shared, claim }
    }
}

/// What becomes of the claim by a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimChange {
    /// Nothing.
    Keep,
    /// This node has it, as long as this lease lasts.
    Take(u64),
    /// It ends.
    Drop,
}

/// One transaction: made only if the record and the claim are as they were seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The new record; none: it is deleted.
    pub shared: Option<Shared>,
    /// And the claim.
    pub claim: ClaimChange,
}

/// What this node wants of a volume, by its own record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Desired {
    /// To leave it alone: it is exempt here.
    Nothing,
    /// To learn of formats, and to claim a permit.
    Watch {
        /// A format may have gone unseen here. So it may where nothing was on record when it was attached: an
        /// agent of this node may have claimed and formatted it, and have lost its records since.
        doubted: bool,
    },
    /// To format it once: it reads blank here.
    Claim {
        /// As of [`Desired::Watch`].
        doubted: bool,
    },
    /// To use the permit, which it has claimed.
    Permitted,
    /// To go on with a format that it has let through.
    Formatting,
    /// That all know what it holds.
    Formatted(Format),
    /// Nothing more: it is gone from here.
    Gone {
        /// It was armed to the end, or never, and let nobody through.
        clean: bool,
        /// What it holds, if that is known here.
        format: Option<Format>,
    },
}

impl Desired {
    /// The desired state once this was written: to use the permit that was claimed, or to keep the claim.
    #[must_use]
    pub fn after(self, write: &Write) -> Self {
        let armed = write.shared.as_ref().and_then(|shared| shared.armed.as_ref());
        match (write.claim, armed) {
            (ClaimChange::Take(_), Some(armed)) if armed.by_permit => Self::Permitted,
            (ClaimChange::Take(_), _) => Self::Claim { doubted: false },
            _ => self,
        }
    }
}

/// What this node wants, by its record of a volume.
#[must_use]
pub fn desired(volume: &Volume, node: &str) -> Desired {
    let Volume { record, attachment } = volume;
    let doubted = attachment.unrecorded_past || attachment.suspect_since.is_some();
    match record.state {
        State::Blank => Desired::Claim { doubted },
        State::Unverified if volume.wants_claim() => Desired::Claim { doubted },
        State::Unverified => Desired::Watch { doubted },
        State::Exempt => Desired::Nothing,
        State::Formatting => Desired::Formatting,
        State::Permitted => Desired::Permitted,
        State::Formatted => Desired::Formatted(Format::of(record, node)),
    }
}

/// Where this node stands with a volume.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ClaimStatus {
    /// Nothing is to be done.
    Watching,
    /// It has the claim.
    Claimed {
        /// From a node that is gone: a format may have gone unseen.
        doubted: bool,
    },
    /// Another node has it.
    Waiting {
        /// Its name.
        node: String,
    },
    /// It holds a format, as another node tells.
    Formatted(Format),
    /// This node has claimed the permit.
    Permitted(Permit),
    /// It no longer has: used, expired, or lost with its claim.
    PermitEnded,
    /// What the store has is not understood.
    Unreadable(String),
    /// Nothing of it is kept here any more.
    Gone,
}

/// A node as it claims.
#[derive(Clone, Copy, Debug)]
pub struct NodeLease<'a> {
    /// Its name.
    pub node: &'a str,
    /// Its lease, while it lasts for sure.
    pub lease: Option<u64>,
}

/// What is to be written next, if anything; if nothing is, the node's status.
#[must_use]
pub fn plan(
    observed: &Observed,
    desired: &Desired,
    me: NodeLease<'_>,
    now: Seconds,
) -> (Option<Write>, ClaimStatus) {
    let old = observed.shared.clone().unwrap_or_default();
    let mut plan = Planner {
        claim: ClaimChange::Keep,
        holds: me.lease.is_some() && observed.claim.as_ref().map(|claim| claim.lease) == me.lease,
        armed: me.lease.is_some() && old.armed.as_ref().map(|armed| armed.lease) == me.lease,
        by_permit: old.armed.as_ref().is_some_and(|armed| armed.by_permit),
        new: old.clone(),
        observed,
        me,
        now,
    };
    plan.clear_away(desired);
    let status = plan.take(desired);
    if plan.new == old && plan.claim == ClaimChange::Keep {
        return (None, status);
    }
    let shared = (!plan.new.is_empty()).then_some(plan.new);
    (Some(Write { shared, claim: plan.claim }), status)
}

struct Planner<'a> {
    new: Shared,
    claim: ClaimChange,
    /// This node has the claim.
    holds: bool,
    /// And is named as the one that is armed.
    armed: bool,
    /// Whoever is armed is so by the permit.
    by_permit: bool,
    observed: &'a Observed,
    me: NodeLease<'a>,
    now: Seconds,
}

impl Planner<'_> {
    /// A permit may have been used where its node is gone, or where its use has ended here. One that has
    /// expired cannot be used any more.
    fn clear_away(&mut self, desired: &Desired) {
        let ours = self.holds && self.armed;
        let lasts = self.new.armed.as_ref().map(|armed| armed.lease)
            == self.observed.claim.as_ref().map(|claim| claim.lease);
        let goes_on = match desired {
            Desired::Permitted => true,
            // A permit whose volume went unused is as it was.
            Desired::Gone { clean, .. } => *clean,
            _ => false,
        };
        let doubted_here =
            matches!(desired, Desired::Watch { doubted: true } | Desired::Claim { doubted: true });
        let ended = self.by_permit && (!lasts || ours && !goes_on);
        let expired = self.new.permit.as_ref().is_some_and(|permit| permit.expires <= self.now);
        if ended || expired && !ours {
            self.new.permit = None;
        }
        if !lasts && (self.by_permit || self.new.format.is_some()) {
            self.disarm(true);
        }
        if self.armed
            && doubted_here
            && let Some(armed) = &mut self.new.armed
        {
            armed.doubted = true;
        }
    }

    fn take(&mut self, desired: &Desired) -> ClaimStatus {
        let ours = self.holds && self.armed;
        match desired {
            Desired::Watch { .. } | Desired::Claim { .. } | Desired::Formatted(_)
                if self.observed.claim.is_none() && self.new.permit.is_some() && self.me.lease.is_some() =>
            {
                if let Desired::Formatted(own) = desired {
                    self.raise(own, false);
                }
                self.arm(true);
                ClaimStatus::Watching
            }
            Desired::Watch { .. } | Desired::Nothing => {
                self.give_up(false);
                match &self.new.format {
                    Some(format) => ClaimStatus::Formatted(format.clone()),
                    None => ClaimStatus::Watching,
                }
            }
            Desired::Permitted => match &self.new.permit {
                Some(permit) if ours && self.by_permit => ClaimStatus::Permitted(permit.clone()),
                _ => {
                    self.give_up(true);
                    ClaimStatus::PermitEnded
                }
            },
            Desired::Claim { .. } => self.take_claim(),
            Desired::Formatting if ours => ClaimStatus::Claimed { doubted: false },
            Desired::Formatting => ClaimStatus::Watching,
            Desired::Formatted(own) => {
                self.give_up(false);
                self.raise(own, ours).map_or(ClaimStatus::Watching, ClaimStatus::Formatted)
            }
            Desired::Gone { clean, format } => {
                if self.holds {
                    self.claim = ClaimChange::Drop;
                }
                if ours {
                    self.disarm(!clean);
                }
                if let Some(own) = format {
                    self.raise(own, ours);
                }
                ClaimStatus::Gone
            }
        }
    }

    fn take_claim(&mut self) -> ClaimStatus {
        // The claim is kept until this node gives it up: its kernel may let a formatter through until the
        // rule is replaced.
        if let Some(format) = self.new.format.clone() {
            return ClaimStatus::Formatted(format);
        }
        match &self.observed.claim {
            Some(_) if self.holds && self.armed && !self.by_permit => {
                ClaimStatus::Claimed { doubted: self.new.armed.as_ref().is_some_and(|armed| armed.doubted) }
            }
            Some(claim) if !self.holds => ClaimStatus::Waiting { node: claim.node.clone() },
            Some(_) | None => {
                self.arm(false);
                ClaimStatus::Watching
            }
        }
    }

    /// Claims the volume: whoever was armed before and is gone may have formatted it.
    fn arm(&mut self, by_permit: bool) {
        let Some(lease) = self.me.lease else { return };
        let doubted = self.new.armed.is_some();
        let node = self.me.node.to_owned();
        self.new.armed = Some(Armed { node, lease, by_permit, doubted, at: self.now });
        self.claim = ClaimChange::Take(lease);
    }

    fn give_up(&mut self, touched: bool) {
        if self.holds {
            self.claim = ClaimChange::Drop;
            if self.armed {
                self.disarm(touched);
            }
        }
    }

    /// No node is armed any more. If the volume may have been formatted by then, that is remembered, unless
    /// its format is known.
    fn disarm(&mut self, touched: bool) {
        match &mut self.new.armed {
            Some(armed) if self.new.format.is_none() && (touched || armed.doubted) => armed.by_permit = false,
            armed => *armed = None,
        }
    }

    /// Writes this format into the record if it is the newest one; else returns the newer one. A format that
    /// was made under this node's claim is the newest, whatever generation a node gives it that has lost its
    /// records.
    fn raise(&mut self, own: &Format, under_claim: bool) -> Option<Format> {
        match &self.new.format {
            Some(known)
                if under_claim
                    && known.generation >= own.generation
                    && (&known.content, &known.marks) != (&own.content, &own.marks) =>
            {
                let generation = known.generation.saturating_add(1);
                self.new.format = Some(Format { generation, ..own.clone() });
            }
            Some(known) if known.generation > own.generation => return Some(known.clone()),
            Some(known) if known.generation == own.generation => {}
            _ => self.new.format = Some(own.clone()),
        }
        if self.observed.claim.is_none() && self.claim == ClaimChange::Keep {
            self.new.armed = None;
        }
        None
    }
}

#[cfg(test)]
mod tests;
