//! What the tasks of the agent send each other, and what clients ask and are answered.
//!
//! Messages stand before the actors that send and receive them: nothing here knows any of those.

use std::time::Instant;

use format_guard_common::event::Process;
use tokio::sync::oneshot;

use crate::{
    api::{self, Failure, FailureKind},
    config::Config,
    enforce::report::Report,
    record::{
        Permit,
        shared::{ClaimStatus, Desired, Format},
    },
    volume::{
        Dev, VolumeId,
        device::Device,
        marks::{Found, Mark},
        probe::{Finding, ProbeError},
    },
};

/// What the reconciler reacts to.
pub enum Input {
    /// A block device appeared or changed.
    Changed {
        /// Its kernel name.
        name: String,
        /// When the kernel's word of it was read.
        received_at: Instant,
    },
    /// A block device is gone.
    Removed {
        /// Its kernel name.
        name: String,
    },
    /// Somebody has closed a device that he had open for writing.
    ClosedByWriter {
        /// Which.
        dev: Dev,
    },
    /// The kernel programs report something.
    Kernel(Report),
    /// A probe came back.
    Probed(ProbeAnswer),
    /// A watched process has ended.
    Ended {
        /// Which.
        process: Process,
        /// Its wait status, where the kernel keeps it.
        status: Option<u32>,
        /// Told for the last time: its exit status will not come any more.
        last: bool,
    },
    /// Time to compare the world with the records.
    Tick,
    /// The kernel could not tell of all devices that appeared, changed or went.
    UeventsLost,
    /// The store that nodes share, or the way to it, tells something.
    Store(StoreUpdate),
    /// The configuration was read again and is sound.
    Reloaded(Box<Config>),
    /// The agent stops, and is waited for.
    Stop(oneshot::Sender<()>),
    /// A client waits until this device (`dev=MAJOR:MINOR`) is read.
    Settle(String, oneshot::Sender<Result<api::Settled, Failure>>),
    /// A client asks.
    Asked {
        /// What.
        request: Request,
        /// The user who asks, as the kernel tells it.
        uid: u32,
        /// The answer.
        reply: ReplySender,
    },
}

/// What clients ask.
pub enum Request {
    /// Something about the guard itself.
    Guard(GuardRequest),
    /// Something about one volume.
    Volume {
        /// Its id, the beginning of one, or `dev=MAJOR:MINOR`.
        selector: String,
        /// What.
        what: VolumeRequest,
    },
}

/// What clients ask of the guard itself.
pub enum GuardRequest {
    /// Whether anybody answers.
    Alive,
    /// The state of the guard.
    Status,
    /// Every known volume.
    Volumes,
    /// The history.
    Events(api::EventsQuery),
    /// Keep others from taking the guard away, or let them.
    Protect(api::ProtectRequest),
    /// Enforce or audit, everywhere or on one volume.
    Mode(api::ModeRequest),
    /// Arm what reads blank again, though records were lost.
    EndLoss(api::EndLossRequest),
}

/// What clients ask of one volume.
pub enum VolumeRequest {
    /// What is known of it.
    Show,
    /// What is copied of it.
    Copy,
    /// What this program might try on it, and what would come of it.
    Simulate {
        /// The program's name.
        program: String,
    },
    /// The device that holds it.
    Device,
    /// Take what a probe found just now for its content.
    Adopt {
        /// What was found.
        found: Vec<Found>,
        /// Its marks.
        marks: Vec<Mark>,
        /// Why.
        reason: String,
    },
    /// Take whatever is there for its content, though it is no known format.
    AdoptRaw {
        /// It reads as zeros at both ends.
        zeros: bool,
        /// Why.
        reason: String,
    },
    /// Allow one re-purposing.
    Permit {
        /// How long the permit lasts, in seconds.
        seconds: u64,
        /// Why.
        reason: String,
    },
    /// Take a permit back.
    Revoke {
        /// Why.
        reason: String,
    },
    /// Take it out of the guard.
    Exempt {
        /// Why.
        reason: String,
    },
    /// Delete what is known of it.
    Forget {
        /// Why.
        reason: String,
    },
    /// Forget the refusals on its devices.
    Untaint {
        /// Why.
        reason: String,
    },
}

impl VolumeRequest {
    /// Whether data may be lost by it: then the beginning of an id, which may be another volume's tomorrow,
    /// names no volume.
    #[must_use]
    pub const fn needs_whole_id(&self) -> bool {
        !matches!(self, Self::Show | Self::Copy | Self::Simulate { .. } | Self::Device | Self::Untaint { .. })
    }
}

/// The user id of a task of the agent that asks.
pub const OWN_UID: u32 = 0;

/// Where an answer is sent.
pub type ReplySender = oneshot::Sender<Result<Reply, Failure>>;

/// What clients are answered.
pub enum Reply {
    /// To [`GuardRequest::Alive`].
    Alive,
    /// To [`GuardRequest::Status`].
    Status(Box<api::Status>),
    /// To [`GuardRequest::Volumes`].
    Volumes(api::Volumes),
    /// To [`VolumeRequest::Copy`].
    Copy(Box<api::Copy>),
    /// To [`VolumeRequest::Simulate`].
    Simulation(Box<api::Simulation>),
    /// To everything about one volume.
    Volume(Box<api::Volume>),
    /// To [`VolumeRequest::Device`].
    Device(Box<Device>),
    /// To what changes something, and shows no volume.
    Done(api::Done),
    /// To [`GuardRequest::Events`].
    Events(api::Events),
}

/// What came back of a probe of one attachment.
#[derive(Clone, Debug)]
pub struct ProbeAnswer {
    /// The device.
    pub dev: Dev,
    /// The attachment that was probed.
    pub diskseq: u64,
    /// When the probe began: what was there before may have been read.
    pub begun: Instant,
    /// What it holds, or why that is not known.
    pub result: Result<Finding, ProbeError>,
    /// It was read twice, one reading after the other, and both were that.
    pub twice: bool,
    /// A packed copy of the bytes that identify the content, where a copy was asked for.
    pub copy: Option<Vec<u8>>,
}

/// What the claim worker reports to the reconciler.
pub enum StoreUpdate {
    /// The store answers.
    Connected,
    /// It does not.
    Disconnected(String),
    /// The lease lasts until then, in nanoseconds of `CLOCK_BOOTTIME`. Of another id than before: what was
    /// claimed is claimed no more.
    Lease {
        /// The store's name for it.
        id: u64,
        /// Its end, with a margin.
        until: u64,
    },
    /// Where this node stands with a volume.
    ClaimStatus {
        /// The volume.
        id: VolumeId,
        /// Where.
        status: ClaimStatus,
        /// Valid only if the desired state is still this one.
        desired: Box<Desired>,
        /// Under which lease.
        lease: u64,
        /// To be acknowledged ([`super::desired_claims::DesiredClaims::acknowledge`]) once the desired state
        /// takes this into account.
        number: u64,
    },
    /// The store may lack formats that are on record here: which are there after this volume?
    KnownFormats {
        /// After which; none: from the first one on.
        after: Option<VolumeId>,
        /// The answer.
        reply: oneshot::Sender<KnownFormats>,
    },
    /// The store has what an operator wanted; this node's own part is to follow, and then the answer.
    Done(OperatorCommand),
}

/// Formats that are on record here, of volumes that are not attached.
#[derive(Default)]
pub struct KnownFormats {
    /// Them.
    pub formats: Vec<(VolumeId, Format)>,
    /// The volume after which there are more.
    pub more_after: Option<VolumeId>,
}

/// What an operator wants of the whole cluster.
pub enum OperatorCommand {
    /// One re-format.
    Permit {
        /// The volume.
        id: VolumeId,
        /// The permit.
        permit: Permit,
        /// Who asks.
        reply: ReplySender,
    },
    /// That nothing is known of it any more.
    Forget {
        /// The volume.
        id: VolumeId,
        /// Why.
        reason: String,
        /// The operator's user id.
        uid: u32,
        /// Who asks.
        reply: ReplySender,
    },
}

impl OperatorCommand {
    pub(super) fn fail(self, reason: &str) {
        let (Self::Permit { reply, .. } | Self::Forget { reply, .. }) = self;
        let text = format!("nothing was done: the cluster's store does not answer ({reason})");
        // The client may have gone.
        let _ = reply.send(Err(Failure::new(FailureKind::Failed, text)));
    }
}
