//! Some nodes that share one volume, each with the product's own record of it: what [`crate::Node`] checks of
//! one node and [`crate::Cluster`] of the claim, together.
//!
//! What decides is the product's: `transition::next` for each node's record, `shared::desired` and
//! `shared::plan` for what it asks of the store, `rule::of` and `decide` for verdicts. What carries between
//! them (the reconciler, the claim worker) is modelled here. A record is stored and ruled in one step, a
//! lease renewed in one: [`crate::Node`] and [`crate::Cluster`] take those apart.

use std::{
    cell::RefCell,
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    ops::Deref,
    sync::Arc,
};

use format_guard::{
    config::RawContent,
    enforce::rule::{self, Subject},
    record::{
        Attachment, Claim, Formatter, Now, Permit, Record, Seconds, State, Volume, Wrote,
        shared::{self, ClaimChange, ClaimStatus, Desired, NodeLease, Observed, Shared},
        transition::{self, Effect, Event},
    },
    volume::{
        Dev,
        identity::Strength,
        marks::{Found, Mark, MarkKind},
        probe::Finding,
    },
};
use format_guard_common::{
    Caller, NoContent, Operation, Owner, Request, Verdict, claim::Lease, decide, event, program::Class,
};
use stateright::{Model, Property};

use crate::node::plain;

/// Kernel `dev_t` of the device, on every node.
const DEV: u32 = 0x80_0000;
const DISKSEQ: u64 = 1;
const BOOT: &str = "boot";
/// Steps of time that the store keeps a lease after it was last renewed. Clocks go alike here: see
/// [`crate::Cluster`].
const TTL: u8 = 1;
/// Steps of time for which a volume must read blank where a format may have gone unseen.
const QUARANTINE: Seconds = 1;

/// A guard of the protocol that is broken on purpose, to see the checker find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FleetBreak {
    /// What the store tells by an earlier desired state is acted upon.
    ActsOnLateWords,
    /// A claim that is taken over from a node that is gone is taken for one that nobody had.
    TakesOverWithoutDoubt,
    /// An agent that has lost its records takes a claim of its node for its own.
    TakesTheClaimForItsOwn,
    /// So does one that was killed once it had lost them.
    ForgetsTheLoss,
    /// A claim is given up as soon as the store tells of a format, while the kernel is not told yet.
    GivesUpAtOnce,
    /// A leader that leads no more renews a lease, for as long as the next one has not ended it.
    StaleLeaderRenews,
}

/// Some nodes, and how often what can fail does.
#[derive(Clone, Copy, Debug)]
pub struct Fleet {
    /// How many.
    pub nodes: usize,
    /// How long it is looked at, in steps of time.
    pub horizon: u8,
    /// Re-formats that operators permit.
    pub permits: u8,
    /// How often an agent is killed, and comes back with its records.
    pub kills: u8,
    /// And without them.
    pub losses: u8,
    /// A guard that is broken.
    pub broken: Option<FleetBreak>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Process {
    New,
    /// It formats, under a permit or not.
    Open {
        permitted: bool,
    },
    Ended {
        failed: bool,
    },
}

/// What is large, shared by the states that have it.
#[derive(Clone, Debug)]
struct Kept<T> {
    value: Arc<T>,
    hash: u64,
}

impl<T: Hash> From<T> for Kept<T> {
    fn from(value: T) -> Self {
        let mut hasher = DefaultHasher::new();
        value.hash(&mut hasher);
        Self { value: Arc::new(value), hash: hasher.finish() }
    }
}

impl<T> Deref for Kept<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: PartialEq> PartialEq for Kept<T> {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && (Arc::ptr_eq(&self.value, &other.value) || self.value == other.value)
    }
}

impl<T: Eq> Eq for Kept<T> {}

impl<T> Hash for Kept<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Read {
    Zeros,
    /// The format of this node.
    Format(usize),
}

/// What a formatter asks for: under a record's rule, to open or to write, as the one that formats or not,
/// while the claim lasts or not.
type Question = (Kept<Volume>, bool, bool, bool);

/// What the kernel has of the one who formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Held {
    wrote: bool,
}

/// What the store has reported, on its way to the reconciler.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Update {
    status: ClaimStatus,
    desired: Desired,
    lease: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Node {
    record: Kept<Volume>,
    /// The map `LEASE`.
    lease: (u64, u8, u32),
    owner: Option<Held>,
    process: Process,
    /// What a probe has read, on its way.
    read: Option<Read>,
    /// What the claim worker is to reach, and what that has become.
    wanted: Option<Kept<(Desired, Desired)>>,
    told: Option<Kept<Update>>,
    /// What was reported last for this desired state: it is not reported again.
    last: Option<Kept<ClaimStatus>>,
}

/// A state of everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Moment {
    now: u8,
    shared: Kept<Option<Shared>>,
    /// The lease under which it is claimed.
    claim: Option<u64>,
    /// Each node's lease as the store keeps it, and its end.
    leases: Vec<Option<(u64, u8)>>,
    nodes: Vec<Node>,
    /// Whose format lies on the volume, and whether its formatter ended well: somebody may have put data
    /// there.
    disk: Option<(usize, bool)>,
    permits_given: u8,
    permits_used: u8,
    kills: u8,
    losses: u8,
    /// What somebody may have put data on was written over without a permit.
    lost: bool,
    /// The store has told of a format.
    known: bool,
}

/// A step of one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FleetAction {
    /// Time passes.
    Tick,
    /// A node gets a lease, or has it renewed.
    Renew(usize),
    /// The store lets a lease end, and the claim under it.
    Expire(usize),
    /// The agent sees that its lease is over.
    SeeLeaseEnded(usize),
    /// The claim worker takes up what the reconciler wants.
    TakeUp(usize),
    /// It looks at the store, and writes what follows from that, or tells where the node stands. A write is
    /// made only if the store still is as it was seen: that the look may be old matters to what is told
    /// alone, which may come late.
    Advance(usize),
    /// The reconciler is told.
    Deliver(usize),
    /// A probe reads what is there.
    Probe(usize),
    /// A probe reads zeros, whatever is there.
    FalseBlank(usize),
    /// The answer arrives.
    Answer(usize),
    /// The kernel lets a formatter through.
    Begin(usize),
    /// It writes the whole of its format.
    Format(usize),
    /// It ends well.
    End(usize),
    /// It fails or is killed.
    Die(usize),
    /// The agent is told of its beginning.
    SeeBegan(usize),
    /// And of its end, with its status or without.
    SeeEnded(usize, bool),
    /// An operator permits a re-format.
    Permit,
    /// The agent is killed, and comes back.
    Kill(usize),
    /// And has lost its records.
    Lose(usize),
}

/// Who asks, for `decide`.
struct Asking {
    owner: Owner,
    claim_lasts: bool,
}

impl Caller for Asking {
    fn class(&self) -> Class {
        Class::FORMATTER
    }

    fn tainted(&self) -> bool {
        false
    }

    fn owner(&self) -> Owner {
        self.owner
    }

    fn claim_lasts(&self) -> bool {
        self.claim_lasts
    }

    fn permit_lasts(&self) -> bool {
        true
    }
}

fn name(node: usize) -> String {
    format!("n{node}")
}

fn new_record() -> Volume {
    let record = Record::new("iscsi:iqn.2020-01.org:t,lun=1".into(), String::new(), false, 0);
    Volume { record, attachment: Attachment { unrecorded_past: true, ..Attachment::default() } }
}

fn judge((record, opens, holds, claim_lasts): &Question) -> Verdict {
    let subject = Subject {
        dev: DEV,
        diskseq: DISKSEQ,
        size: 1 << 20,
        lock_dev: (Dev::from_kernel(DEV), DISKSEQ),
        record,
        strict: false,
        array_runs: false,
        others: Vec::new(),
    };
    let (rule, _) = rule::of(&subject, false);
    let caller =
        Asking { owner: if *holds { Owner::Caller } else { Owner::None }, claim_lasts: *claim_lasts };
    let operation = if *opens { Operation::Open } else { Operation::Write };
    decide(&rule, &Request { operation, offset: 0, length: 4096 }, &caller, &NoContent)
}

impl Node {
    /// Whether what was claimed still is.
    fn claim_lasts(&self, claim: u32, now: u8) -> bool {
        let (id, until, number) = self.lease;
        let lease = Lease { until: u64::from(until), id, number, zero: 0 };
        lease.covers(claim, u64::from(now))
    }

    fn verdict(&self, opens: bool, now: u8) -> Verdict {
        thread_local! {
            /// A rule is long, and there are few.
            static KNOWN: RefCell<HashMap<Question, Verdict>> = RefCell::default();
        }
        let claim_lasts = self.claim_lasts(self.record.attachment.claim.number(), now);
        let key = (self.record.clone(), opens, self.owner.is_some(), claim_lasts);
        KNOWN.with_borrow_mut(|known| *known.entry(key).or_insert_with_key(judge))
    }

    /// Its kernel lets a formatter begin, or go on.
    fn is_armed(&self, now: u8) -> bool {
        match self.process {
            Process::Open { .. } => self.verdict(false, now) == Verdict::Allow,
            _ => self.verdict(true, now) == Verdict::Begin,
        }
    }

    fn apply(&mut self, event: Event, now: u8) {
        let (new, effects) =
            transition::next(&self.record, event, Now { wall: now.into(), boot: now.into() });
        self.record = plain(new).into();
        if effects.contains(&Effect::ReleaseOwner) {
            self.owner = None;
        }
    }

    fn is_untold(&self) -> bool {
        self.owner.is_some()
            && transition::is_untold(&self.record, event::Process { started: 0, tgid: 1, zero: 0 })
    }

    fn format_began(&mut self, now: u8) {
        let formatter =
            Formatter { pid: 1, started: 0, comm: "mkfs".to_owned(), exe: None, cgroup: 0, at: 0 };
        self.apply(Event::FormatBegan { formatter, wrote: Wrote::Nothing }, now);
    }

    /// `Reconciler::lose_claims`.
    fn lose_claim(&mut self, now: u8) {
        if matches!(self.record.attachment.claim, Claim::Held(_)) {
            self.apply(Event::ClaimLost, now);
            self.last = None;
        }
    }

    fn attached(&mut self, now: u8) {
        // `Reconciler::claim_needed`.
        let claim = match self.owner {
            Some(_) if self.lease.2 != 0 => Claim::Held(self.lease.2),
            _ => Claim::Wanted,
        };
        let event = Event::Attached {
            boot: BOOT.to_owned(),
            strength: Strength::Strong,
            records_lost: false,
            quarantine: QUARANTINE,
            raw_content: RawContent::Written,
            claim,
            diskseq: 5,
        };
        self.apply(event, now);
    }
}

impl Fleet {
    fn is(self, broken: FleetBreak) -> bool {
        self.broken == Some(broken)
    }

    /// `Reconciler::desired`.
    fn desired(self, moment: &Moment, i: usize) -> Desired {
        let node = &moment.nodes[i];
        let mut desired = shared::desired(&node.record, &name(i));
        if self.is(FleetBreak::TakesTheClaimForItsOwn) {
            desired = match desired {
                Desired::Watch { .. } => Desired::Watch { doubted: false },
                Desired::Claim { .. } => Desired::Claim { doubted: false },
                other => other,
            };
        }
        let gives_up = matches!(desired, Desired::Watch { .. } | Desired::Nothing);
        if gives_up && node.owner.is_some() {
            return Desired::Formatting;
        }
        desired
    }

    /// `converge`: one write, or where the node stands.
    fn advance(self, moment: &mut Moment, i: usize) -> bool {
        let Some(wanted) = moment.nodes[i].wanted.clone() else { return false };
        let (wanted, desired) = (*wanted).clone();
        let id = moment.nodes[i].lease.0;
        let claim = |lease| shared::Claim { lease, node: name(lease as usize / 100), revision: 0 };
        let seen = Observed { shared: (*moment.shared).clone(), revision: 0, claim: moment.claim.map(claim) };
        let (write, status) = shared::plan(&seen, &desired, NodeLease { node: &name(i), lease: Some(id) }, 0);
        let Some(write) = write else {
            let given_up = self.is(FleetBreak::GivesUpAtOnce) && matches!(status, ClaimStatus::Formatted(_));
            moment.claim = moment.claim.filter(|claim| !given_up || *claim != id);
            let last = Some(status.clone().into());
            if moment.nodes[i].last == last {
                return false;
            }
            moment.nodes[i].last = last;
            moment.nodes[i].told = Some(Update { status, desired: wanted, lease: id }.into());
            return true;
        };
        match write.claim {
            ClaimChange::Keep => {}
            ClaimChange::Drop => moment.claim = None,
            // The store refuses what is asked under a lease that is gone.
            ClaimChange::Take(lease) if moment.leases[i].is_none_or(|(id, _)| id != lease) => return false,
            ClaimChange::Take(lease) => moment.claim = Some(lease),
        }
        moment.nodes[i].wanted = Some((wanted, desired.after(&write)).into());
        moment.shared = write.shared.into();
        true
    }

    /// `Reconciler::store_updated`.
    fn deliver(self, moment: &mut Moment, i: usize) -> bool {
        let current = self.desired(moment, i);
        let (now, node) = (moment.now, &mut moment.nodes[i]);
        let Some(told) = node.told.take() else { return false };
        let Update { status, desired, lease } = (*told).clone();
        if desired != current && !self.is(FleetBreak::ActsOnLateWords) {
            return true;
        }
        let (id, _, number) = node.lease;
        let lasts = id == lease && number != 0;
        let claimed = |doubted, permit| Event::Claimed { lease: number, doubted, permit };
        match status {
            ClaimStatus::Claimed { doubted } if lasts => {
                node.apply(claimed(doubted && !self.is(FleetBreak::TakesOverWithoutDoubt), None), now);
            }
            ClaimStatus::Permitted(permit) if lasts => node.apply(claimed(false, Some(permit)), now),
            // It is to be told again.
            ClaimStatus::Claimed { .. } | ClaimStatus::Permitted(_) => node.last = None,
            ClaimStatus::PermitEnded => node.apply(Event::PermitLost, now),
            ClaimStatus::Formatted(format) => node.apply(Event::Shared(format), now),
            _ => {}
        }
        true
    }

    fn renew(self, moment: &mut Moment, i: usize) {
        let (now, node) = (moment.now, &mut moment.nodes[i]);
        let id = match moment.leases[i] {
            Some((id, _)) if id == node.lease.0 => id,
            _ if self.is(FleetBreak::StaleLeaderRenews) && node.lease.2 != 0 => {
                node.lease.1 = now + TTL;
                return;
            }
            _ => {
                node.lose_claim(now);
                let number = node.lease.2 + 1;
                node.lease = (100 * i as u64 + u64::from(number), 0, number);
                node.lease.0
            }
        };
        moment.leases[i] = Some((id, now + TTL));
        node.lease.1 = now + TTL;
    }

    fn restart(self, moment: &mut Moment, i: usize, keeps_records: bool) {
        let (now, node) = (moment.now, &mut moment.nodes[i]);
        node.record = if keeps_records {
            // `Reconciler::load`.
            let new = node.record.state == State::Unverified
                && node.record.armed.is_none()
                && !self.is(FleetBreak::ForgetsTheLoss);
            let attachment = Attachment { unrecorded_past: new, ..Attachment::default() };
            Volume { record: node.record.record.clone(), attachment }
        } else {
            new_record()
        }
        .into();
        (node.read, node.wanted, node.told, node.last) = (None, None, None, None);
        if node.owner.is_some() {
            node.format_began(now);
        }
        node.attached(now);
    }

    fn actions_of(self, moment: &Moment, i: usize, actions: &mut Vec<FleetAction>) {
        let (now, node) = (moment.now, &moment.nodes[i]);
        // One after the other at first: they are alike but for their names.
        if i == 0 || moment.nodes[i - 1].lease.2 != 0 {
            actions.push(FleetAction::Renew(i));
        }
        if moment.leases[i].is_some_and(|(_, end)| now >= end) {
            actions.push(FleetAction::Expire(i));
        }
        if now >= node.lease.1 && matches!(node.record.attachment.claim, Claim::Held(_)) {
            actions.push(FleetAction::SeeLeaseEnded(i));
        }
        if node.told.is_some() {
            actions.push(FleetAction::Deliver(i));
        } else if node.lease.2 != 0 {
            if node.wanted.is_some() {
                actions.push(FleetAction::Advance(i));
            }
            if node.wanted.as_ref().map(|wanted| &wanted.0) != Some(&self.desired(moment, i)) {
                actions.push(FleetAction::TakeUp(i));
            }
        }
        let probed = match node.record.state {
            State::Unverified => true,
            State::Formatting => !node.record.attachment.is_running(),
            _ => false,
        };
        if node.read.is_some() {
            actions.push(FleetAction::Answer(i));
        } else if probed {
            actions.push(FleetAction::Probe(i));
            // What may have been formatted unseen is trusted to read as what it is after a while: nothing
            // else tells.
            if moment.disk.is_some() && node.record.attachment.suspect_since.is_none() {
                actions.push(FleetAction::FalseBlank(i));
            }
        }
        match node.process {
            Process::New if node.is_armed(now) => actions.push(FleetAction::Begin(i)),
            Process::Open { .. } => {
                actions.extend([FleetAction::End(i), FleetAction::Die(i)]);
                if node.is_armed(now) {
                    actions.push(FleetAction::Format(i));
                }
            }
            _ => {}
        }
        if node.is_untold() {
            actions.push(FleetAction::SeeBegan(i));
        }
        if node.record.state == State::Formatting
            && node.record.attachment.is_running()
            && matches!(node.process, Process::Ended { .. })
        {
            actions.extend([FleetAction::SeeEnded(i, false), FleetAction::SeeEnded(i, true)]);
        }
        if moment.kills < self.kills {
            actions.push(FleetAction::Kill(i));
        }
        if moment.losses < self.losses {
            actions.push(FleetAction::Lose(i));
        }
    }

    fn answer(moment: &mut Moment, i: usize) {
        let (now, node) = (moment.now, &mut moment.nodes[i]);
        // The reading is half of a format that was let through and not told yet.
        if node.is_untold() {
            node.format_began(now);
            return;
        }
        let Some(read) = node.read.take() else { return };
        let finding = match read {
            Read::Zeros => Finding::Blank,
            Read::Format(by) => Finding::Holds {
                found: vec![Found {
                    name: "ext4".into(),
                    uuid: Some(name(by)),
                    label: None,
                    magic_offset: Some(0),
                }],
                marks: vec![Mark { offset: 0, kind: MarkKind::Magic, bytes: b"ours".to_vec() }],
                partitions: None,
            },
        };
        node.apply(Event::Probed(Ok(finding)), now);
    }

    fn begin(moment: &mut Moment, i: usize) {
        let node = &mut moment.nodes[i];
        let permitted = node.record.state == State::Permitted;
        moment.permits_used += u8::from(permitted);
        node.owner = Some(Held { wrote: false });
        node.process = Process::Open { permitted };
    }

    fn format(moment: &mut Moment, i: usize) -> bool {
        let node = &mut moment.nodes[i];
        let (Process::Open { permitted }, Some(held)) = (node.process, &mut node.owner) else {
            return false;
        };
        held.wrote = true;
        moment.lost |= moment.disk.is_some_and(|(by, precious)| precious && by != i) && !permitted;
        moment.disk = Some((i, false));
        true
    }

    fn end(moment: &mut Moment, i: usize, failed: bool) {
        moment.nodes[i].process = Process::Ended { failed };
        if !failed && let Some((by, precious)) = &mut moment.disk {
            *precious |= *by == i;
        }
    }

    fn step(self, moment: &mut Moment, action: FleetAction) -> bool {
        let now = moment.now;
        match action {
            FleetAction::Tick => moment.now += 1,
            FleetAction::Renew(i) => self.renew(moment, i),
            FleetAction::Expire(i) => {
                let ended = moment.leases[i].take().map(|(id, _)| id);
                moment.claim = moment.claim.filter(|id| Some(*id) != ended);
            }
            FleetAction::SeeLeaseEnded(i) => moment.nodes[i].lose_claim(now),
            FleetAction::TakeUp(i) => {
                let desired = self.desired(moment, i);
                moment.nodes[i].wanted = Some((desired.clone(), desired).into());
                moment.nodes[i].last = None;
            }
            FleetAction::Advance(i) => return self.advance(moment, i),
            FleetAction::Deliver(i) => return self.deliver(moment, i),
            FleetAction::Probe(i) => {
                moment.nodes[i].read = Some(moment.disk.map_or(Read::Zeros, |(by, _)| Read::Format(by)));
            }
            FleetAction::FalseBlank(i) => moment.nodes[i].read = Some(Read::Zeros),
            FleetAction::Answer(i) => Self::answer(moment, i),
            FleetAction::Begin(i) => Self::begin(moment, i),
            FleetAction::Format(i) => return Self::format(moment, i),
            FleetAction::End(i) => Self::end(moment, i, false),
            FleetAction::Die(i) => Self::end(moment, i, true),
            FleetAction::SeeBegan(i) => moment.nodes[i].format_began(now),
            FleetAction::SeeEnded(i, told) => {
                let node = &mut moment.nodes[i];
                let Process::Ended { failed } = node.process else { return false };
                let status = told.then_some(u32::from(failed));
                let wrote =
                    if node.owner.is_none_or(|held| held.wrote) { Wrote::Bytes } else { Wrote::Nothing };
                node.apply(Event::FormatEnded { status, wrote, unseen: false }, now);
            }
            FleetAction::Permit => {
                moment.permits_given += 1;
                let permit =
                    Permit { reason: String::new(), uid: 0, at: 0, expires: Seconds::MAX, used: false };
                let shared = Shared { permit: Some(permit), ..(*moment.shared).clone().unwrap_or_default() };
                moment.shared = Some(shared).into();
            }
            FleetAction::Kill(i) => {
                moment.kills += 1;
                self.restart(moment, i, true);
            }
            FleetAction::Lose(i) => {
                moment.losses += 1;
                self.restart(moment, i, false);
            }
        }
        moment.known |= moment.shared.as_ref().is_some_and(|shared| shared.format.is_some());
        true
    }
}

impl Model for Fleet {
    type State = Moment;
    type Action = FleetAction;

    fn init_states(&self) -> Vec<Moment> {
        let mut node = Node {
            record: new_record().into(),
            lease: (0, 0, 0),
            owner: None,
            process: Process::New,
            read: None,
            wanted: None,
            told: None,
            last: None,
        };
        node.attached(0);
        vec![Moment {
            now: 0,
            shared: None.into(),
            claim: None,
            leases: vec![None; self.nodes],
            nodes: vec![node; self.nodes],
            disk: None,
            permits_given: 0,
            permits_used: 0,
            kills: 0,
            losses: 0,
            lost: false,
            known: false,
        }]
    }

    fn actions(&self, moment: &Moment, actions: &mut Vec<FleetAction>) {
        if moment.now < self.horizon {
            actions.push(FleetAction::Tick);
        }
        if moment.known && moment.permits_given < self.permits {
            actions.push(FleetAction::Permit);
        }
        for node in 0..self.nodes {
            self.actions_of(moment, node, actions);
        }
    }

    fn next_state(&self, before: &Moment, action: FleetAction) -> Option<Moment> {
        let mut after = before.clone();
        (self.step(&mut after, action) && after != *before).then_some(after)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "no volume that carried a format is formatted without a permit",
                |_, moment: &Moment| !moment.lost,
            ),
            Property::always("no two nodes let a formatter through at once", |_, moment: &Moment| {
                moment.nodes.iter().filter(|node| node.is_armed(moment.now)).count() <= 1
            }),
            Property::always("no node is armed without a claim that lasts", |_, moment: &Moment| {
                moment
                    .nodes
                    .iter()
                    .all(|node| !node.is_armed(moment.now) || moment.claim == Some(node.lease.0))
            }),
            Property::always("no record of a format is lowered", |_, moment: &Moment| {
                !moment.known || moment.shared.as_ref().is_some_and(|shared| shared.format.is_some())
            }),
            Property::always("no permit is used twice, or in force once it is used", |_, moment: &Moment| {
                let in_force = moment.nodes.iter().filter(|node| node.record.state == State::Permitted);
                let in_force = in_force.filter(|node| node.owner.is_none()).count();
                usize::from(moment.permits_used) + in_force <= usize::from(moment.permits_given)
            }),
            Property::sometimes("a node formats it and another one knows", |_, moment: &Moment| {
                moment.disk.is_some_and(|(by, _)| {
                    moment.nodes.iter().enumerate().any(|(i, node)| {
                        i != by
                            && node.record.state == State::Formatted
                            && node.record.attachment.clean_passes == 0
                    })
                })
            }),
            Property::sometimes("a permitted re-format is made", |model: &Self, moment: &Moment| {
                model.permits == 0 || moment.permits_used > 0
            }),
        ]
    }
}
