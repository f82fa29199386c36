//! What the agent and its clients say to each other: JSON over HTTP on a Unix socket. Stable: fields are
//! added, never renamed.

use format_guard_common::State;
use serde::{Deserialize, Serialize};

use crate::{
    enforce::error::ProgramStatus,
    mode::Mode,
    policy::InForce,
    record::{Content, Formatter, Permit, Record, history::HistoryEvent, store::Loss},
    volume::{copies::Piece, device::Device, marks::Mark},
};

/// Most lines of the history in one answer.
pub const MAX_LINES: u32 = 20_000;
/// Longest reason that is kept, in bytes.
pub const MAX_REASON: usize = 1000;

/// An operator's reason without the space around it, if it is one: of 1 to [`MAX_REASON`] bytes.
#[must_use]
pub fn reason(text: &str) -> Option<&str> {
    Some(text.trim()).filter(|text| !text.is_empty() && text.len() <= MAX_REASON)
}

/// How far this host is protected, in one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// What must be refused is refused, as its canary has proven.
    Enforcing,
    /// What would be refused is told, and goes through.
    Audit,
    /// It enforces, and less is protected than should be.
    Degraded,
    /// Nothing is refused.
    #[default]
    NotEnforcing,
}

impl Condition {
    /// The word for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enforcing => "enforcing",
            Self::Audit => "audit",
            Self::Degraded => "degraded",
            Self::NotEnforcing => "not enforcing",
        }
    }

    /// The condition of a guard in this mode, by whether it is proven and whether it is degraded.
    #[must_use]
    pub fn of(proven: bool, mode: Mode, degraded: bool) -> Self {
        match mode {
            _ if !proven => Self::NotEnforcing,
            Mode::Audit => Self::Audit,
            _ if degraded => Self::Degraded,
            _ => Self::Enforcing,
        }
    }
}

/// `GET /v1/status`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Status {
    /// How far this host is protected.
    #[serde(default)]
    pub condition: Condition,
    /// Version of the agent.
    pub version: String,
    /// The tier in force.
    pub tier: String,
    /// What this tier leaves open and the best tier does not.
    #[serde(default)]
    pub open: Vec<String>,
    /// The mode in force: enforce or audit.
    pub mode: Mode,
    /// The guard keeps others from taking it away.
    #[serde(default)]
    pub protected: bool,
    /// The mode of the configuration.
    #[serde(default)]
    pub configured_mode: Mode,
    /// The mode that an operator has set; it outranks the configuration.
    #[serde(default)]
    pub set_mode: Option<SetMode>,
    /// The canary proved enforcement at the start.
    pub proven: bool,
    /// When the canary proved it last, in seconds since 1970.
    #[serde(default)]
    pub proven_at: i64,
    /// Why protection is less than it should be; empty when it is not.
    pub degraded: Vec<String>,
    /// Every kernel program, and what is left open without it.
    pub programs: Vec<ProgramStatus>,
    /// Block devices present.
    pub devices: u64,
    /// Volumes present that do not read as they are recorded.
    #[serde(default)]
    pub discrepancies: u64,
    /// Known volumes by state.
    pub volumes: Vec<StateCount>,
    /// Requests judged by the kernel programs.
    pub judged: u64,
    /// Requests that met a rule for an earlier medium.
    pub stale_rules: u64,
    /// Kernel events lost.
    pub lost_events: u64,
    /// How often uevents were lost: each time all devices were compared with sysfs.
    #[serde(default)]
    pub lost_uevents: u64,
    /// Entries that a full kernel map could not take.
    pub full_maps: u64,
    /// Writes whose place on the device the kernel programs could not find: refused where marks are.
    #[serde(default)]
    pub unplaced: u64,
    /// Rules that a resync had to repair.
    pub repaired: u64,
    /// How long the newest kernel event waited until it was taken up, in milliseconds.
    #[serde(default)]
    pub lag: u64,
    /// Devices that are being probed at this moment, those that hang among them.
    #[serde(default)]
    pub probing: u64,
    /// Records that could not be stored: kept in memory and tried again; nothing is armed meanwhile.
    #[serde(default)]
    pub unstored: u64,
    /// Records were lost: nothing is armed but by a permit until an operator ends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub records_lost: Option<Loss>,
    /// The store that nodes share, if they share one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<StoreStatus>,
}

/// How this node stands with the store that nodes share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StoreStatus {
    /// The store answers.
    pub answers: bool,
    /// Since when the store answers, or does not answer, in seconds since 1970.
    pub since: i64,
    /// Why the store does not answer.
    pub reason: Option<String>,
    /// The host is not ready while the store does not answer.
    pub required: bool,
    /// Volumes that this node has claimed.
    pub claims: u64,
    /// Blank volumes that wait for a claim.
    pub waiting: u64,
}

impl Status {
    /// Volumes of which one re-format is permitted.
    #[must_use]
    pub fn permits(&self) -> u64 {
        let permitted = self.volumes.iter().filter(|count| count.state == State::Permitted.name());
        permitted.map(|count| count.count).sum()
    }
}

/// How many volumes are in a state.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StateCount {
    /// The state.
    pub state: String,
    /// The number of volumes.
    pub count: u64,
}

/// One volume.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[expect(clippy::struct_excessive_bools, reason = "each is a field of its own in the JSON")]
pub struct Volume {
    /// Its id.
    pub id: String,
    /// Where the id came from.
    pub origin: String,
    /// The id says where the device is, not what it holds.
    pub weak: bool,
    /// The state.
    pub state: String,
    /// Since when the volume is in its state, in seconds since 1970.
    pub since: i64,
    /// What brought the volume into its state.
    pub cause: String,
    /// What the volume holds.
    pub content: Option<Content>,
    /// The bytes that identify what the volume holds.
    pub marks: Vec<Mark>,
    /// Of a volume without a known format: SHA-256 of its first and last MiB in hexadecimal digits, or
    /// "zeros", as a probe read them last, or when the volume was armed.
    #[serde(default)]
    pub ends: Option<String>,
    /// A file system on the volume was mounted since it was formatted.
    pub mounted: bool,
    /// Refusals on the volume are reported and not carried out.
    #[serde(default)]
    pub audit: bool,
    /// While the volume holds a format, only known programs may write to it.
    #[serde(default)]
    pub strict: bool,
    /// The declared policy that holds for it, while it is attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<InForce>,
    /// The program that formats the volume, or formatted it last.
    pub formatter: Option<Formatter>,
    /// The permit in force.
    pub permit: Option<Permit>,
    /// How the last probe differs from what is recorded.
    pub discrepancy: Option<String>,
    /// Goes up with each format, and with each change of what identifies it; zero in a record that an earlier
    /// version made, which did not count.
    #[serde(default)]
    pub generation: u64,
    /// When the volume was first seen, in seconds since 1970.
    pub first_seen: i64,
    /// Names of the devices that hold the volume now.
    pub devices: Vec<String>,
    /// Every name by which the volume is known, the strongest first.
    #[serde(default)]
    pub names: Vec<VolumeName>,
}

/// A name of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct VolumeName {
    /// The name, as an id.
    pub name: String,
    /// How far the name is the volume's own: `own`, `address`, `place`; or `earlier`, from an earlier
    /// attachment.
    pub worth: String,
    /// Where the name was read: a file of sysfs, or a request to the device. Empty for an earlier one.
    pub from: String,
}

impl Volume {
    /// The answer for a record and the devices that hold its volume.
    #[must_use]
    pub fn of(record: &Record, devices: &[&Device]) -> Self {
        Self {
            id: record.id.to_string(),
            origin: record.origin.clone(),
            weak: record.weak,
            state: record.state.name().to_owned(),
            since: record.since,
            cause: record.cause.clone(),
            content: record.content.clone(),
            marks: record.marks.clone(),
            ends: record.ends.as_ref().map(|ends| ends.text().to_owned()),
            mounted: record.mounted,
            audit: record.audit,
            strict: record.strict,
            policy: None,
            formatter: record.formatter.clone(),
            permit: record.permit.clone(),
            discrepancy: record.discrepancy.clone(),
            generation: record.generation,
            first_seen: record.first_seen,
            devices: devices.iter().map(|device| device.name.clone()).collect(),
            names: names_of(devices),
        }
    }
}

fn names_of(devices: &[&Device]) -> Vec<VolumeName> {
    let mut names: Vec<VolumeName> = Vec::new();
    for name in devices.iter().flat_map(|device| &device.identity.names) {
        if !names.iter().any(|known| known.name == name.id.as_str()) {
            let (worth, from) = (name.kind.name().to_owned(), name.from.clone());
            names.push(VolumeName { name: name.id.to_string(), worth, from });
        }
    }
    names
}

/// `GET /v1/volume/copy`: the bytes that made a volume findable, as they were when it was recorded.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Copy {
    /// The volume, as the agent knows it now.
    pub volume: Volume,
    /// When the bytes were read, in seconds since 1970.
    pub at: i64,
    /// The generation of the record that the bytes belong to.
    pub generation: u64,
    /// Size of the device at that time, in bytes.
    pub size: u64,
    /// In the order of their offsets.
    pub pieces: Vec<Piece>,
}

/// Which volume is meant: `dev=MAJOR:MINOR`, an id, or, where no data can be lost, the unique beginning of
/// one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Selector {
    /// The text.
    pub volume: String,
}

/// `POST /v1/volume/adopt`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AdoptRequest {
    /// Which volume.
    pub volume: String,
    /// The bytes on the volume are content, though of no known format.
    #[serde(default)]
    pub raw: bool,
    /// Why; must not be empty.
    #[serde(default)]
    pub reason: String,
}

/// `POST /v1/volume/permit`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PermitRequest {
    /// Which volume.
    pub volume: String,
    /// Why; must not be empty.
    pub reason: String,
    /// For how long, in seconds.
    pub seconds: u64,
}

/// `POST /v1/volume/exempt`, `/v1/volume/forget`, `/v1/volume/revoke`, `/v1/volume/untaint`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReasonRequest {
    /// Which volume.
    pub volume: String,
    /// Why; must not be empty.
    pub reason: String,
}

/// `POST /v1/protect`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProtectRequest {
    /// Whether the guard keeps others from taking it away.
    pub on: bool,
    /// Why; must not be empty.
    pub reason: String,
}

/// `POST /v1/loss/end`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EndLossRequest {
    /// Why; must not be empty.
    pub reason: String,
}

/// `POST /v1/mode`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ModeRequest {
    /// Enforce, audit, or (of a volume) strict; none: the configuration's mode again.
    pub mode: Option<Mode>,
    /// Why; must not be empty.
    pub reason: String,
    /// Only on this volume; none: on every volume.
    pub volume: Option<String>,
    /// For how many seconds; none: until the mode is changed.
    #[serde(default)]
    pub lasts: Option<u64>,
}

/// The mode as an operator has set it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SetMode {
    /// Enforce or audit.
    pub mode: Mode,
    /// Why.
    pub reason: String,
    /// The operator's user id, from the kernel.
    pub uid: u32,
    /// When the mode was set, in seconds since 1970.
    pub at: i64,
    /// When the mode ends by itself, in seconds since 1970; none: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends: Option<i64>,
}

/// `GET /v1/settle`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SettleQuery {
    /// The device: `dev=MAJOR:MINOR`.
    pub volume: String,
    /// How long to wait at most, in seconds.
    pub wait: u64,
}

/// The answer of `GET /v1/settle`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Settled {
    /// Whether the device was read in time, or never will be.
    pub settled: bool,
    /// The state of the device's volume after that; none if the device holds no volume, or was not read.
    pub state: Option<String>,
}

/// `GET /v1/simulate`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SimulateQuery {
    /// Which volume.
    pub volume: String,
    /// The program, by the name that the kernel knows it by.
    pub program: String,
}

/// Its answer: what a program might try on a volume now, and what would come of it. Nothing was tried.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Simulation {
    /// The volume's id.
    pub volume: String,
    /// Its state.
    pub state: String,
    /// The program's name, as the kernel keeps it.
    pub program: String,
    /// The program's arguments would say what it does: it was judged by its name.
    pub by_name_alone: bool,
    /// The declared policy that holds for the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<InForce>,
    /// What was asked, in the order in which a formatter does it.
    pub outcomes: Vec<Simulated>,
}

/// One request that a program might make.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Simulated {
    /// What is tried, in words.
    pub what: String,
    /// A name of `format_guard_common::Operation`.
    pub operation: String,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// What would come of it.
    pub outcome: Outcome,
    /// Why it would be refused: a name of `format_guard_common::Reason`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What can be done about that, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub way_out: Option<String>,
}

/// What would come of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It goes on.
    Allowed,
    /// It goes on, as the beginning of a format.
    BeginsFormat,
    /// It is refused.
    Refused,
    /// It goes on, and is reported as what would have been refused.
    WouldBeRefused,
}

impl Outcome {
    /// In words.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::BeginsFormat => "allowed, begins a format",
            Self::Refused => "REFUSED",
            Self::WouldBeRefused => "allowed, reported",
        }
    }
}

/// The answer to a request that changed something and returns no data.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Done {
    /// What was done, in a sentence.
    pub text: String,
}

/// `GET /v1/events`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EventsQuery {
    /// Only events after this number.
    #[serde(default)]
    pub after: i64,
    /// Only this many of the newest.
    #[serde(default = "default_limit")]
    pub limit: u32,
    /// Only events of this volume: a selector.
    pub volume: Option<String>,
    /// Only events since this time, in seconds since 1970.
    #[serde(default)]
    pub since: i64,
    /// How many seconds to wait for an event if there is none (at most a minute).
    #[serde(default)]
    pub wait: u64,
}

const fn default_limit() -> u32 {
    1000
}

/// The answer of `GET /v1/volumes`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Volumes {
    /// The volumes, in the order of their ids.
    pub volumes: Vec<Volume>,
}

/// The answer of `GET /v1/events`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Events {
    /// The events, oldest first.
    pub events: Vec<HistoryEvent>,
}

/// The kind of a failure, which also decides the exit status of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// Something went wrong.
    Failed,
    /// The request makes no sense.
    BadRequest,
    /// No such volume, or more than one.
    NotFound,
    /// The guard's policy refuses it.
    Refused,
}

/// Any answer that is not a success.
#[derive(Clone, Debug, Serialize, Deserialize, thiserror::Error)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[error("{error}")]
pub struct Failure {
    /// What, why, and the way out.
    pub error: String,
    /// The kind of the failure.
    pub kind: FailureKind,
}

impl Failure {
    /// A failure of this kind.
    #[must_use]
    pub fn new(kind: FailureKind, error: impl Into<String>) -> Self {
        Self { error: error.into(), kind }
    }
}
