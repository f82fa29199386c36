//! One node, one volume.

use format_guard::{
    config::RawContent,
    enforce::rule::{self, Subject},
    record::{Claim, Formatter, Now, Permit, Progress, Record, Seconds, State, Volume, Wrote, transition},
    volume::{
        Dev,
        identity::Strength,
        marks::{Found, Mark, MarkKind},
        probe::{Finding, ProbeError},
    },
};
use format_guard_common::{
    Caller, Check, CheckKind, Content, Operation, Owner, Request, Rule, Verdict, Windows, decide, event,
    flag, program::Class,
};
use stateright::{Model, Property};

/// Kernel `dev_t` of the device.
const DEV: u32 = 0x70_0000;
/// Seconds that a volume must read blank after a crash of the host.
const QUARANTINE: Seconds = 100;
/// In place of the process that made it: a format that is older than the guard.
const EARLIER: usize = usize::MAX;
/// Magic of the format that everybody writes.
const MAGIC: &[u8] = b"XFSB";

/// A guard of the protocol that is broken on purpose, to see the checker find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Break {
    /// The rule is put before the record is on disk.
    RuleBeforeStore,
    /// What was armed in an earlier boot is taken for what was armed in this one.
    TrustsWhatWasArmed,
    /// A formatter's success counts as if it had written nothing.
    ForgetsSuccess,
    /// A format that began unseen is not looked for when a device goes.
    DropsAtDetach,
    /// A format that began unseen is not looked for at the start.
    DropsAtStart,
    /// A store that fails is taken for one that does not.
    IgnoresFailingStore,
    /// What could not be stored is not stored later.
    ForgetsUnstored,
    /// The kernel forgets a formatter whose format could not be stored.
    ReleasesUnstored,
    /// One that writes a magic is taken for a known formatter.
    TakesAllForFormatters,
    /// A formatter that wrote nothing is taken for one that did.
    TakesAllForWriters,
    /// What has to last is measured by the clock that people set.
    MeasuresByTheWallClock,
    /// That the database was lost is known to the agent alone that found it so.
    ForgetsLostDatabase,
}

/// How far what lies on the disk is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Written {
    /// Nothing.
    Blank,
    /// A part of a format.
    Half,
    /// A format.
    Whole,
}

/// What really lies on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Disk {
    written: Written,
    by: usize,
    /// Somebody may have put data there: its formatter ended well, or the agent has seen it mounted; it is a
    /// monitor's, which puts data there all its life; or it was there before, and the agent has seen it.
    precious: bool,
}

/// How far a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Process {
    /// Not started.
    New,
    /// It has the device open; with a permit, if its format began under one.
    Open {
        /// Its format began under a permit.
        permitted: bool,
        /// It was refused before.
        tainted: bool,
        /// The attachment that it has open.
        diskseq: u64,
    },
    /// Ended, with or without failure.
    Ended {
        /// It failed or was killed.
        failed: bool,
    },
}

/// The rule in the kernel, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Ruled {
    state: State,
    diskseq: u64,
    marked: bool,
    /// Who formatted it goes on.
    held: bool,
    /// When its permit ends, in seconds since the boot.
    permit_ends: u32,
}

/// The entry of the one who formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Held {
    by: usize,
    diskseq: u64,
    wrote: Wrote,
    mounted: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Kernel {
    rule: Option<Ruled>,
    owner: Option<Held>,
    /// Events on their way to the agent.
    began: Option<usize>,
    mounted: bool,
}

/// What a probe reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reading {
    /// What is there.
    Truth,
    /// Zeros, whatever is there.
    Blank,
    /// An error.
    Error,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Answer {
    Blank,
    Holds,
    Error,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Probe {
    Asked,
    Read { answer: Answer, diskseq: u64 },
}

/// Steps of a record that the agent has still to do, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Todo {
    Began(usize),
    Mounted,
    Attached,
    Closed,
    Gone,
    Stopped,
}

/// A step of a record whose first half is done: it is stored and has still to be ruled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Step {
    new: Volume,
    probe: bool,
    release: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Agent {
    /// The attachment that it knows.
    device: Option<u64>,
    record: Option<Volume>,
    todo: Vec<Todo>,
    step: Option<Step>,
    probe: Option<Probe>,
    /// What could not be stored.
    dirty: Option<Record>,
    /// Who is let go of once that is stored.
    release_later: Option<usize>,
    /// What it stores at its stop, once it has seen that nobody began meanwhile.
    closed: Option<Volume>,
}

/// Everything at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts and findings")]
pub struct Moment {
    disk: Disk,
    attached: Option<u64>,
    newest: u64,
    boot: u8,
    /// Probes tell the truth from now on, in this boot.
    calm: bool,
    /// A file system on it is mounted.
    mounted: bool,
    kernel: Kernel,
    store: Option<Record>,
    agent: Option<Agent>,
    processes: Vec<Process>,
    kills: u8,
    failures: u8,
    /// The store fails at every put.
    full: bool,
    outages: u8,
    /// Broken: put before it is stored.
    unstored: Option<Record>,
    permits_given: u8,
    /// Processes whose format began under one, as bits.
    permits_used: u8,
    /// A permit was used that had ended by the running agent's own record.
    outlived: bool,
    /// What somebody may have put data on was written over without a permit.
    lost: bool,
    /// The kernel was told to let a format through, and no record on disk says so.
    unrecorded: bool,
    /// A record on disk said that there was a format.
    known: bool,
    /// And one says no more that there ever was.
    forgotten: bool,
    /// The database was lost, and this is still known.
    records_lost: bool,
    losses: u8,
    /// The wall clock was set.
    jumped: bool,
}

/// One step of one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The device appears.
    Attach,
    /// The device goes.
    Detach,
    /// The host goes down without a word, and comes up again.
    PowerCut,
    /// From now on, in this boot, probes tell the truth, and the quarantine has passed: what fails with a
    /// host comes back.
    Calm,
    /// The database is lost while no agent runs.
    LoseDatabase,
    /// The wall clock is set.
    SetClock,
    /// From now on nothing can be stored.
    FillStore,
    /// The store has room again.
    EmptyStore,
    /// The agent is started.
    Start,
    /// The agent is killed.
    Kill,
    /// The agent is told to stop.
    Stop,
    /// The agent learns that the device is there.
    SeeAttached,
    /// The agent learns that the device is gone.
    SeeDetached,
    /// The agent goes on with what it does.
    Go,
    /// A probe's answer arrives, and what the agent makes of it cannot be stored.
    DeliverUnstored,
    /// The agent learns that a format began.
    SeeBegan,
    /// The agent learns of a mount.
    SeeMounted,
    /// The ring buffer was full.
    LoseEvents,
    /// The agent learns that a formatter ended, with its status or without.
    SeeEnded(bool),
    /// The prober reads the device.
    Read(Reading),
    /// A probe's answer arrives.
    Deliver,
    /// The agent compares the world with its records.
    Tick,
    /// An operator permits a re-format.
    Permit,
    /// A process opens the device for writing.
    Open(usize),
    /// It writes a part of its format.
    WriteHalf(usize),
    /// It writes the rest.
    WriteWhole(usize),
    /// It ends well.
    End(usize),
    /// It fails or is killed.
    Die(usize),
    /// What lies on the device is mounted, and data written.
    Mount,
}

/// The model: how many of what, and what is broken.
#[derive(Clone, Debug)]
pub struct Node {
    /// Processes that go by a formatter's name.
    pub formatters: usize,
    /// Processes that do not, and write a format all the same: monitors of virtual machines.
    pub monitors: usize,
    /// A format lies on the disk that is older than the guard.
    pub earlier: bool,
    /// The wall clock may be set.
    pub clock_jumps: bool,
    /// Times that the database is lost.
    pub losses: u8,
    /// Times that the device appears.
    pub attachments: u64,
    /// Power cuts.
    pub cuts: u8,
    /// Times that the agent is killed or stopped.
    pub kills: u8,
    /// Times that the store fails when a reading is recorded.
    pub failures: u8,
    /// Times that it fails at every put, for however long.
    pub outages: u8,
    /// Permits.
    pub permits: u8,
    /// The guard that is broken.
    pub broken: Option<Break>,
}

/// Who asks, for `decide`.
struct Asking<'a> {
    moment: &'a Moment,
    class: Class,
    process: usize,
    rule: Option<Ruled>,
}

impl Caller for Asking<'_> {
    fn claim_lasts(&self) -> bool {
        true
    }

    fn permit_lasts(&self) -> bool {
        let now = self.moment.now().boot.cast_unsigned() * 1_000_000_000;
        self.rule.is_some_and(|rule| {
            Rule { permit_ends: rule.permit_ends, ..Rule::new(DEV, 0, rule.state) }.permit_lasts(now)
        })
    }

    fn class(&self) -> Class {
        self.class
    }

    fn tainted(&self) -> bool {
        matches!(self.moment.processes[self.process], Process::Open { tainted: true, .. })
    }

    fn owner(&self) -> Owner {
        match (self.moment.kernel.owner, self.rule) {
            (Some(held), Some(rule)) if held.diskseq == rule.diskseq => {
                if held.by == self.process {
                    Owner::Caller
                } else {
                    Owner::Another { mounted: held.mounted }
                }
            }
            _ => Owner::None,
        }
    }
}

/// A write of [`MAGIC`].
struct Magic;

impl Content for Magic {
    fn read(&self, at: u64, length: u64) -> Option<[u64; 2]> {
        let mut word = 0;
        for (i, byte) in MAGIC.iter().skip(at as usize).take(length as usize).enumerate() {
            word |= u64::from(*byte) << (8 * i);
        }
        Some([word, 0])
    }

    fn is_zero(&self, _: u64) -> Option<bool> {
        Some(false)
    }
}

impl Moment {
    /// A mount whose event was lost: `Reconciler::repair_mounts`.
    fn mount_is_unseen(&self) -> bool {
        let record = self.agent.as_ref().and_then(|agent| agent.record.as_ref());
        self.mounted && record.is_some_and(|record| transition::is_mount_untold(record))
    }

    /// The wall clock was set by any amount meanwhile.
    fn now(&self) -> Now {
        let boot = if self.calm { QUARANTINE + 1 } else { 0 };
        Now { wall: if self.jumped { 1_000_000 } else { 0 }, boot }
    }

    fn boot(&self) -> String {
        self.boot.to_string()
    }

    /// The verdict on what a process asks for; under the rule in force for it.
    fn verdict(&self, class: Class, process: usize, operation: Operation) -> (Verdict, Option<Ruled>) {
        let rule = match (self.kernel.rule, self.processes[process]) {
            // An open knows the number alone; of an opened device the medium is known.
            (rule, Process::New) => rule,
            (Some(rule), Process::Open { diskseq, .. }) if rule.diskseq == diskseq => Some(rule),
            _ => None,
        };
        let mut kernel = Rule::new(
            DEV,
            rule.map_or(0, |rule| rule.diskseq),
            rule.map_or(State::Unverified, |rule| rule.state),
        );
        let checks = [
            rule.filter(|rule| rule.marked).and_then(|_| Check::new(0, b"ours", CheckKind::Magic)),
            Check::new(0, MAGIC, CheckKind::Foreign),
        ];
        for check in checks.into_iter().flatten() {
            let _ = kernel.push(check);
        }
        if rule.is_some_and(|rule| rule.held) {
            kernel.flags |= flag::HELD;
        }
        kernel.permit_ends = rule.map_or(0, |rule| rule.permit_ends);
        let length = if operation == Operation::Open { 0 } else { 4 };
        let asking = Asking { moment: self, class, process, rule };
        (decide(&kernel, &Request { operation, offset: 0, length }, &asking, &Magic), rule)
    }

    /// Lets the process become the one that formats; false when another was faster.
    fn begin(&mut self, process: usize, rule: Ruled, wrote: Wrote) -> bool {
        if self.kernel.owner.is_some_and(|held| held.diskseq == rule.diskseq) {
            return false;
        }
        self.kernel.owner = Some(Held { by: process, diskseq: rule.diskseq, wrote, mounted: false });
        self.kernel.began = Some(process);
        if rule.state == State::Permitted {
            self.permits_used |= 1 << process;
            let agents = self.agent.as_ref().and_then(|agent| agent.record.as_ref());
            self.outlived |= agents.is_some_and(|record| record.permit.is_none());
        }
        true
    }

    /// A write to the device by a process.
    fn write(&mut self, class: Class, process: usize, written: Written) {
        let Process::Open { permitted, diskseq, .. } = self.processes[process] else { return };
        let (verdict, rule) = self.verdict(class, process, Operation::Write);
        let mut permitted = permitted;
        let passes = match (verdict, rule) {
            (Verdict::Begin, Some(rule)) => {
                permitted = rule.state == State::Permitted;
                self.begin(process, rule, Wrote::Magic)
            }
            (Verdict::Deny(_), _) => false,
            _ => true,
        };
        self.processes[process] = Process::Open { permitted, tainted: !passes, diskseq };
        if !passes {
            return;
        }
        if let Some(held) = self.kernel.owner.as_mut().filter(|held| held.by == process) {
            held.wrote = held.wrote.max(Wrote::Bytes);
        }
        let own = self.disk.by == process && self.disk.written != Written::Blank;
        self.lost |= self.disk.precious && !own && !permitted;
        // A monitor's data are there as soon as its format is, until it begins another one.
        let precious =
            if class == Class::UNKNOWN { written == Written::Whole } else { own && self.disk.precious };
        self.disk = Disk { written, by: process, precious };
    }

    fn end(&mut self, process: usize, failed: bool) {
        self.processes[process] = Process::Ended { failed };
        if !failed && self.disk.by == process && self.disk.written == Written::Whole {
            self.disk.precious = true;
        }
    }

    fn stored(&mut self, record: &Record) {
        self.known |= record.ever_formatted;
        self.forgotten |= self.known && !record.ever_formatted;
        self.store = Some(record.clone());
    }

    /// Who formatted is let go of once that is on disk.
    fn release_stored(&mut self) {
        let Some(agent) = &mut self.agent else { return };
        agent.dirty = None;
        if let Some(process) = agent.release_later.take() {
            self.kernel.owner = self.kernel.owner.filter(|held| held.by != process);
        }
    }
}

/// Without what only people read, and what does not matter in its state: it would make other states of one.
pub(crate) fn plain(volume: Volume) -> Volume {
    let Volume { mut record, mut attachment } = volume;
    let counts = matches!(record.state, State::Unverified | State::Formatting);
    (record.cause, record.since, record.discrepancy) = (String::new(), 0, None);
    (attachment.appeared, attachment.looked_at, attachment.untouched) = (None, None, false);
    if !counts {
        attachment.clean_passes = 0;
    }
    attachment.progress = match (attachment.progress, record.state) {
        (Progress::Exited { .. }, State::Formatted) => Progress::Exited { status: None },
        (Progress::Exited { .. }, state) if state != State::Formatting => Progress::Past,
        (progress, _) => progress,
    };
    if record.state != State::Formatting {
        attachment.wrote = Wrote::Nothing;
    }
    Volume { record, attachment }
}

impl Node {
    /// What the agent makes of an event: the first half of a step of its record.
    fn step(&self, moment: &mut Moment, event: transition::Event, stores: bool) {
        let stores = stores && !moment.full;
        let now = match self.broken {
            Some(Break::MeasuresByTheWallClock) => {
                Now { boot: moment.now().boot + moment.now().wall, ..moment.now() }
            }
            _ => moment.now(),
        };
        let Some(old) = moment.agent.as_ref().and_then(|agent| agent.record.clone()) else { return };
        let mounted = event == transition::Event::Mounted;
        let (new, effects) = transition::next(&old, event, now);
        let mut new = plain(new);
        // What a mount proves is kept from the moment on at which it is on disk.
        if stores && mounted {
            moment.disk.precious |= moment.mounted;
        }
        if stores && self.broken == Some(Break::RuleBeforeStore) {
            Self::rule(moment, &new);
            moment.unstored = Some(new.record.clone());
        } else if stores {
            moment.stored(&new);
            moment.release_stored();
        } else if self.broken != Some(Break::IgnoresFailingStore) {
            // `Reconciler::step`.
            let loosened = new.state != old.state || new.armed != old.armed;
            if loosened && matches!(new.state, State::Blank | State::Permitted | State::Exempt) {
                new.record.state = if old.ever_formatted { State::Formatted } else { State::Unverified };
                let state = new.record.state;
                new = old;
                (new.record.state, new.record.armed) = (state, None);
            }
        }
        let Some(agent) = &mut moment.agent else { return };
        if !stores && self.broken != Some(Break::ForgetsUnstored) {
            agent.dirty = Some(new.record.clone());
        }
        agent.step = Some(Step {
            probe: effects.contains(&transition::Effect::Probe)
                || effects.contains(&transition::Effect::ProbeSoon),
            release: effects.contains(&transition::Effect::ReleaseOwner),
            new,
        });
    }

    fn began(&self, moment: &mut Moment, process: usize) {
        let known =
            self.class(process) == Class::FORMATTER || self.broken == Some(Break::TakesAllForFormatters);
        let comm = if known { "mkfs" } else { "qemu" }.to_owned();
        let formatter = Formatter { pid: process as u32, started: 0, comm, exe: None, cgroup: 0, at: 0 };
        // What the kernel tells with the event it keeps with the holder.
        let wrote =
            moment.kernel.owner.filter(|held| held.by == process).map_or(Wrote::Nothing, |held| held.wrote);
        self.step(moment, transition::Event::FormatBegan { formatter, wrote }, true);
    }

    /// As what a process goes.
    fn class(&self, process: usize) -> Class {
        if process < self.formatters { Class::FORMATTER } else { Class::UNKNOWN }
    }

    /// A format that the kernel let through, if that was not told yet: `Reconciler::take_up`.
    fn untold(moment: &Moment) -> Option<usize> {
        let agent = moment.agent.as_ref()?;
        let record = agent.record.as_ref()?;
        let held = moment.kernel.owner.filter(|held| Some(held.diskseq) == agent.device)?;
        // `Unstored::is_to_be_released`: what it did is told.
        if agent.release_later == Some(held.by) {
            return None;
        }
        let process = event::Process { started: 0, tgid: held.by as u32, zero: 0 };
        transition::is_untold(record, process).then_some(held.by)
    }

    /// Goes on with a step, or begins the next one.
    fn go(&self, moment: &mut Moment) {
        let Some(agent) = &mut moment.agent else { return };
        if let Some(step) = agent.step.take() {
            self.go_on(moment, &step);
            return;
        }
        if agent.todo.is_empty() {
            return;
        }
        let todo = agent.todo.remove(0);
        match todo {
            Todo::Began(process) => self.began(moment, process),
            Todo::Mounted => self.step(moment, transition::Event::Mounted, true),
            Todo::Attached => {
                let armed = moment.agent.as_ref().and_then(|agent| agent.record.as_ref()?.armed.clone());
                let boot = match (self.broken, armed) {
                    (Some(Break::TrustsWhatWasArmed), Some(armed)) => armed,
                    _ => moment.boot(),
                };
                let strength = Strength::Strong;
                let event = transition::Event::Attached {
                    boot,
                    strength,
                    records_lost: moment.records_lost,
                    quarantine: QUARANTINE,
                    raw_content: RawContent::Written,
                    claim: Claim::Unneeded,
                    diskseq: 5,
                };
                self.step(moment, event, true);
            }
            Todo::Closed => {
                let device = agent.device;
                moment.kernel.rule = moment.kernel.rule.filter(|rule| Some(rule.diskseq) != device);
                self.step(moment, transition::Event::Disarmed, true);
                if let Some(held) = moment.kernel.owner.filter(|held| Some(held.diskseq) == device) {
                    self.release(moment, held.by);
                }
            }
            Todo::Gone => {
                agent.record = None;
                agent.device = None;
            }
            Todo::Stopped => match (agent.closed.take(), Self::untold(moment)) {
                // One has begun until then.
                (Some(_), Some(process)) => {
                    if let Some(agent) = &mut moment.agent {
                        agent.todo.push(Todo::Stopped);
                    }
                    self.began(moment, process);
                }
                (Some(closed), None) => {
                    if !moment.full {
                        moment.stored(&plain(closed));
                    }
                    moment.agent = None;
                }
                (None, _) => {
                    Self::store_dirty(moment);
                    moment.agent = None;
                }
            },
        }
    }

    /// The second half of a step.
    fn go_on(&self, moment: &mut Moment, step: &Step) {
        if let Some(new) = moment.unstored.take() {
            moment.stored(&new);
        } else {
            Self::rule(moment, &step.new);
        }
        if let Some(agent) = &mut moment.agent {
            agent.record = Some(step.new.clone());
        }
        self.rest(moment, step);
    }

    /// Lets go of who formats; later, where what came of that is not stored: `Unstored::release_later`.
    fn release(&self, moment: &mut Moment, process: usize) {
        match &mut moment.agent {
            Some(agent) if agent.dirty.is_some() && self.broken != Some(Break::ReleasesUnstored) => {
                agent.release_later = Some(process);
            }
            _ => moment.kernel.owner = None,
        }
    }

    /// `Reconciler::store_unstored`.
    fn store_dirty(moment: &mut Moment) {
        let dirty = moment.agent.as_ref().and_then(|agent| agent.dirty.clone());
        if let Some(dirty) = dirty.filter(|_| !moment.full) {
            moment.stored(&dirty);
            moment.release_stored();
        }
    }

    fn rule(moment: &mut Moment, record: &Volume) {
        let Some(diskseq) = moment.agent.as_ref().and_then(|agent| agent.device) else { return };
        let subject = Subject {
            dev: DEV,
            diskseq,
            size: 1 << 20,
            lock_dev: (Dev::from_kernel(DEV), diskseq),
            record,
            strict: false,
            array_runs: false,
            others: Vec::new(),
        };
        let (rule, _): (Rule, Windows) = rule::of(&subject, false);
        let state = State::ALL.into_iter().find(|state| *state as u32 == rule.state);
        let marked =
            rule.checks.iter().take(rule.count as usize).any(|check| check.kind == CheckKind::Magic as u32);
        let armed = moment.store.as_ref().is_some_and(|stored| stored.armed.as_ref() == Some(&moment.boot()));
        moment.unrecorded |= matches!(state, Some(State::Blank | State::Permitted)) && !armed;
        let held = rule.flags & flag::HELD != 0;
        moment.kernel.rule =
            state.map(|state| Ruled { state, diskseq, marked, held, permit_ends: rule.permit_ends });
    }

    fn rest(&self, moment: &mut Moment, step: &Step) {
        let Some(agent) = &moment.agent else { return };
        let told = step.new.formatter.as_ref().map(|formatter| formatter.pid as usize);
        let ours = |held: &Held| Some(held.diskseq) == agent.device && Some(held.by) == told;
        let held = moment.kernel.owner.filter(ours);
        if let Some(held) = held.filter(|_| step.release) {
            self.release(moment, held.by);
        }
        let Some(agent) = &mut moment.agent else { return };
        if step.probe && agent.device.is_some() {
            // What was read before and has not arrived yet may come first or not at all.
            agent.probe.get_or_insert(Probe::Asked);
        }
    }

    fn see_attached(&self, moment: &mut Moment) {
        let attached = moment.attached;
        let owner = moment.kernel.owner.filter(|held| Some(held.diskseq) == attached);
        let store = moment.store.clone();
        let Some(agent) = &mut moment.agent else { return };
        agent.device = attached;
        let known = agent.dirty.clone().or(store);
        let record = known.unwrap_or_else(|| Record::new("volume".into(), String::new(), false, 0));
        agent.record = Some(Volume::of(record));
        if let Some(held) = owner.filter(|_| self.broken != Some(Break::DropsAtStart)) {
            agent.todo.push(Todo::Began(held.by));
            if held.mounted {
                agent.todo.push(Todo::Mounted);
            }
        }
        agent.todo.push(Todo::Attached);
    }

    fn see_detached(&self, moment: &mut Moment) {
        let untold = Self::untold(moment).filter(|_| self.broken != Some(Break::DropsAtDetach));
        let Some(agent) = &mut moment.agent else { return };
        if let Some(process) = untold {
            agent.todo.push(Todo::Began(process));
        }
        agent.todo.extend([Todo::Closed, Todo::Gone]);
    }

    /// `Reconciler::start`: what was begun unseen on what is not there any more.
    fn start(&self, moment: &mut Moment) {
        moment.agent = Some(Agent::default());
        let gone = moment.kernel.owner.is_some_and(|held| Some(held.diskseq) != moment.attached);
        if gone
            && self.broken != Some(Break::DropsAtStart)
            && let Some(record) = &moment.store
            && record.armed.as_ref() == Some(&moment.boot())
        {
            let volume = Volume::of(record.clone());
            let event = transition::Event::MissedFormatSuspected;
            let suspect = transition::next(&volume, event, moment.now()).0.record;
            if moment.full {
                if let Some(agent) = &mut moment.agent {
                    agent.dirty = Some(suspect);
                }
            } else {
                moment.stored(&suspect);
            }
        }
        if gone {
            moment.kernel.owner = None;
        }
        if moment.attached.is_some() {
            self.see_attached(moment);
        }
    }

    /// Broken: the next agent knows nothing of it.
    fn forget_loss(&self, moment: &mut Moment) {
        if self.broken == Some(Break::ForgetsLostDatabase) && moment.agent.is_none() {
            moment.records_lost = false;
        }
    }

    fn deliver(&self, moment: &mut Moment, stores: bool) {
        // The reading is half of a format that was let through and not told yet.
        if let Some(process) = Self::untold(moment) {
            self.began(moment, process);
            return;
        }
        let Some(agent) = &mut moment.agent else { return };
        let Some(Probe::Read { answer, diskseq }) = agent.probe.take() else { return };
        if agent.device != Some(diskseq) {
            return;
        }
        // From now on it is known; unless somebody was let through who may write over it.
        let taken = agent.record.as_ref().is_none_or(|record| record.attachment.is_running());
        let stores = stores && !moment.full;
        moment.disk.precious |= answer == Answer::Holds && moment.disk.by == EARLIER && stores && !taken;
        let finding = match answer {
            Answer::Blank => Ok(Finding::Blank),
            Answer::Error => Err(ProbeError::Deadline),
            Answer::Holds => Ok(Finding::Holds {
                found: vec![Found { name: "ext4".into(), uuid: None, label: None, magic_offset: Some(0) }],
                marks: vec![Mark { offset: 0, kind: MarkKind::Magic, bytes: b"ours".to_vec() }],
                partitions: None,
            }),
        };
        self.step(moment, transition::Event::Probed(finding), stores);
    }

    fn tick(&self, moment: &mut Moment) {
        Self::store_dirty(moment);
        if let Some(process) = Self::untold(moment) {
            self.began(moment, process);
        } else if moment.mount_is_unseen() {
            self.step(moment, transition::Event::Mounted, true);
        } else {
            self.step(moment, transition::Event::Tick, true);
        }
    }

    fn ended(&self, moment: &mut Moment, told: bool) {
        let Some(agent) = &moment.agent else { return };
        let Some(process) = agent.record.as_ref().and_then(|record| record.formatter.as_ref()) else {
            return;
        };
        let process = process.pid as usize;
        let Process::Ended { failed } = moment.processes[process] else { return };
        let held =
            moment.kernel.owner.filter(|held| held.by == process && Some(held.diskseq) == agent.device);
        let wrote = match self.broken {
            Some(Break::ForgetsSuccess) => Wrote::Nothing,
            Some(Break::TakesAllForWriters) => Wrote::Bytes,
            _ => held.map_or(Wrote::Bytes, |held| held.wrote),
        };
        let status = told.then_some(u32::from(failed));
        self.step(moment, transition::Event::FormatEnded { status, wrote, unseen: false }, true);
    }

    fn open(&self, moment: &mut Moment, process: usize) {
        let Some(diskseq) = moment.attached else { return };
        let (verdict, rule) = moment.verdict(self.class(process), process, Operation::Open);
        // Formatters open exclusively (mke2fs, mkfs.xfs: O_EXCL), and so does a mount.
        let (mut permitted, mut opened) = (false, !moment.mounted);
        match (verdict, rule) {
            // Judged first: a format that did not come to be may be taken to have begun.
            (Verdict::Begin, Some(rule)) => {
                permitted = rule.state == State::Permitted;
                opened &= moment.begin(process, rule, Wrote::Nothing);
            }
            (Verdict::Deny(_), _) => opened = false,
            _ => {}
        }
        moment.processes[process] = if opened {
            Process::Open { permitted, tainted: false, diskseq }
        } else {
            Process::Ended { failed: true }
        };
    }

    fn agents_actions(&self, moment: &Moment, actions: &mut Vec<Action>) {
        let Some(agent) = &moment.agent else {
            actions.push(Action::Start);
            if moment.losses < self.losses {
                actions.push(Action::LoseDatabase);
            }
            return;
        };
        if moment.kills < self.kills {
            actions.push(Action::Kill);
        }
        if agent.step.is_some() || !agent.todo.is_empty() {
            actions.push(Action::Go);
            return;
        }
        if moment.kills < self.kills {
            actions.push(Action::Stop);
        }
        if agent.device.is_none() && moment.attached.is_some() {
            actions.push(Action::SeeAttached);
        }
        if agent.device.is_some() && agent.device != moment.attached {
            actions.push(Action::SeeDetached);
        }
        if moment.kernel.began.is_some() {
            actions.push(Action::SeeBegan);
        }
        // The kernel's events come in their order.
        let next = moment.kernel.mounted && moment.kernel.began.is_none();
        if next && (agent.device.is_none() || agent.device == moment.attached) {
            actions.push(Action::SeeMounted);
        }
        let Some(record) = &agent.record else { return };
        let formats = record.formatter.as_ref().filter(|_| record.attachment.is_running());
        if formats.is_some_and(|by| matches!(moment.processes[by.pid as usize], Process::Ended { .. })) {
            actions.push(Action::SeeEnded(false));
            // The kernel tells of the beginning first.
            if moment.kernel.began.is_none() {
                actions.push(Action::SeeEnded(true));
            }
        }
        if matches!(agent.probe, Some(Probe::Read { .. })) {
            actions.push(Action::Deliver);
            if moment.failures < self.failures {
                actions.push(Action::DeliverUnstored);
            }
        }
        if transition::waits(record, moment.now()) && agent.probe.is_none()
            || Self::untold(moment).is_some()
            || moment.mount_is_unseen()
            || agent.dirty.is_some() && !moment.full
        {
            actions.push(Action::Tick);
        }
        let refused =
            record.attachment.is_running() || record.state == State::Blank || Self::untold(moment).is_some();
        if moment.permits_given < self.permits && agent.device.is_some() && !refused {
            actions.push(Action::Permit);
        }
    }
}

impl Model for Node {
    type State = Moment;
    type Action = Action;

    fn init_states(&self) -> Vec<Moment> {
        vec![Moment {
            disk: if self.earlier {
                Disk { written: Written::Whole, by: EARLIER, precious: false }
            } else {
                Disk { written: Written::Blank, by: 0, precious: false }
            },
            attached: Some(1),
            newest: 1,
            boot: 0,
            calm: false,
            mounted: false,
            kernel: Kernel::default(),
            store: None,
            agent: None,
            processes: vec![Process::New; self.formatters + self.monitors],
            kills: 0,
            failures: 0,
            full: false,
            outages: 0,
            unstored: None,
            permits_given: 0,
            permits_used: 0,
            outlived: false,
            lost: false,
            unrecorded: false,
            known: false,
            forgotten: false,
            records_lost: false,
            losses: 0,
            jumped: false,
        }]
    }

    fn actions(&self, moment: &Moment, actions: &mut Vec<Action>) {
        match moment.attached {
            Some(_) => actions.push(Action::Detach),
            None if moment.newest < self.attachments => actions.push(Action::Attach),
            None => {}
        }
        if moment.boot < self.cuts {
            actions.push(Action::PowerCut);
        }
        if !moment.calm {
            actions.push(Action::Calm);
        }
        if self.clock_jumps && !moment.jumped {
            actions.push(Action::SetClock);
        }
        if moment.full {
            actions.push(Action::EmptyStore);
        } else if moment.outages < self.outages {
            actions.push(Action::FillStore);
        }
        self.agents_actions(moment, actions);
        if moment.kernel.began.is_some() || moment.kernel.mounted {
            actions.push(Action::LoseEvents);
        }
        if moment.agent.as_ref().is_some_and(|agent| agent.probe == Some(Probe::Asked))
            && moment.attached.is_some()
        {
            actions.push(Action::Read(Reading::Truth));
            if !moment.calm {
                // What was there before the guard and reads as zeros twice before it was ever recorded is
                // armed: nothing that could be remembered tells otherwise. A store that nodes share, or a
                // probe in an earlier boot, does.
                let unseen = self.earlier && !moment.known;
                actions.extend((!unseen).then_some(Action::Read(Reading::Blank)));
                actions.push(Action::Read(Reading::Error));
            }
        }
        for (process, state) in moment.processes.iter().enumerate() {
            match state {
                // One after the other: they are alike but for their names.
                Process::New
                    if process == 0
                        || process == self.formatters
                        || moment.processes[process - 1] != Process::New =>
                {
                    actions.push(Action::Open(process));
                }
                Process::Open { diskseq, tainted, .. } => {
                    actions.extend([Action::End(process), Action::Die(process)]);
                    // Beside another's format it may write, too: see the list of what is not checked.
                    let formatting = moment.kernel.rule.is_some_and(|rule| rule.state == State::Formatting);
                    let beside = moment.kernel.owner.map_or(formatting, |held| held.by != process);
                    let alone = self.class(process) == Class::FORMATTER || !beside;
                    if moment.attached == Some(*diskseq) && !tainted && alone {
                        actions.extend([Action::WriteHalf(process), Action::WriteWhole(process)]);
                    }
                }
                Process::New | Process::Ended { .. } => {}
            }
        }
        // See `open`.
        let is_open = |process: &Process| matches!(process, Process::Open { diskseq, .. } if Some(*diskseq) == moment.attached);
        let formats = moment.processes.iter().any(is_open);
        if moment.attached.is_some() && moment.disk.written == Written::Whole && !moment.mounted && !formats {
            actions.push(Action::Mount);
        }
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each action, in their order")]
    fn next_state(&self, before: &Moment, action: Action) -> Option<Moment> {
        let mut after = before.clone();
        let moment = &mut after;
        match action {
            Action::Attach => {
                moment.newest += 1;
                moment.attached = Some(moment.newest);
            }
            Action::Detach => {
                moment.attached = None;
                moment.mounted = false;
            }
            Action::PowerCut => {
                moment.boot += 1;
                moment.calm = false;
                moment.newest += 1;
                moment.attached = Some(moment.newest);
                moment.kernel = Kernel::default();
                moment.mounted = false;
                moment.agent = None;
                for process in &mut moment.processes {
                    if *process != Process::New {
                        *process = Process::Ended { failed: true };
                    }
                }
            }
            Action::Calm => {
                moment.calm = true;
                // What was read before is no truth of now.
                if let Some(agent) = &mut moment.agent
                    && let Some(Probe::Read { .. }) = agent.probe
                {
                    agent.probe = Some(Probe::Asked);
                }
            }
            Action::LoseDatabase => {
                moment.losses += 1;
                moment.store = None;
                moment.records_lost = true;
                // What it said is not known any more, and nothing is armed for that.
                (moment.known, moment.forgotten) = (false, false);
            }
            Action::SetClock => moment.jumped = true,
            Action::FillStore => {
                moment.outages += 1;
                moment.full = true;
            }
            Action::EmptyStore => moment.full = false,
            Action::Start => self.start(moment),
            Action::Kill => {
                moment.kills += 1;
                moment.agent = None;
                self.forget_loss(moment);
            }
            Action::Stop => {
                moment.kills += 1;
                let record = moment.agent.as_ref().and_then(|agent| agent.record.clone());
                // Here the rule comes first: it is tightened.
                if let Some(old) = record.filter(|record| record.armed.is_some()) {
                    let (new, _) = transition::next(&old, transition::Event::Disarmed, moment.now());
                    Self::rule(moment, &new);
                    if let Some(agent) = &mut moment.agent {
                        agent.closed = Some(new);
                    }
                }
                if let Some(agent) = &mut moment.agent {
                    agent.todo.push(Todo::Stopped);
                }
            }
            Action::SeeAttached => self.see_attached(moment),
            Action::SeeDetached => self.see_detached(moment),
            Action::Go => self.go(moment),
            Action::DeliverUnstored => {
                moment.failures += 1;
                self.deliver(moment, false);
            }
            Action::SeeBegan => {
                if let Some(process) = moment.kernel.began.take() {
                    self.began(moment, process);
                }
            }
            Action::SeeMounted => {
                moment.kernel.mounted = false;
                if moment.agent.as_ref().is_some_and(|agent| agent.device == moment.attached) {
                    let untold = Self::untold(moment).map(Todo::Began);
                    if let Some(agent) = &mut moment.agent {
                        agent.todo.extend(untold.into_iter().chain([Todo::Mounted]));
                    }
                } else if moment.attached.is_some() {
                    // What is mounted is there.
                    self.see_attached(moment);
                    if let Some(agent) = &mut moment.agent {
                        agent.todo.push(Todo::Mounted);
                    }
                }
            }
            Action::LoseEvents => {
                moment.kernel.began = None;
                moment.kernel.mounted = false;
            }
            Action::SeeEnded(told) => self.ended(moment, told),
            Action::Read(reading) => {
                let diskseq = moment.attached?;
                let answer = match (reading, moment.disk.written) {
                    (Reading::Error, _) => Answer::Error,
                    (Reading::Truth, Written::Whole) => Answer::Holds,
                    (Reading::Truth, Written::Half | Written::Blank) | (Reading::Blank, _) => Answer::Blank,
                };
                let agent = moment.agent.as_mut()?;
                agent.probe = Some(Probe::Read { answer, diskseq });
            }
            Action::Deliver => self.deliver(moment, true),
            Action::Tick => self.tick(moment),
            Action::Permit => {
                moment.permits_given += 1;
                let permit = Permit {
                    reason: String::new(),
                    uid: 0,
                    at: moment.now().wall,
                    expires: moment.now().wall + QUARANTINE,
                    used: false,
                };
                self.step(moment, transition::Event::Permitted(permit), true);
            }
            Action::Open(process) => self.open(moment, process),
            Action::WriteHalf(process) => moment.write(self.class(process), process, Written::Half),
            Action::WriteWhole(process) => moment.write(self.class(process), process, Written::Whole),
            Action::End(process) => moment.end(process, false),
            Action::Die(process) => moment.end(process, true),
            Action::Mount => {
                moment.mounted = true;
                moment.kernel.mounted = true;
                if let Some(held) = &mut moment.kernel.owner {
                    held.mounted = true;
                }
            }
        }
        (after != *before).then_some(after)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "no volume that carried a format is formatted without a permit",
                |_, moment: &Moment| !moment.lost,
            ),
            Property::always("no record of a format is lost", |_, moment: &Moment| !moment.forgotten),
            Property::always("no blank volume is armed without its record on disk", |_, moment: &Moment| {
                !moment.unrecorded
            }),
            Property::always("no permit is used once it has ended", |_, moment: &Moment| !moment.outlived),
            Property::sometimes("a blank volume is formatted and recorded", |_, moment: &Moment| {
                moment.known && moment.disk.precious
            }),
            Property::sometimes("a permitted re-format is made", |model: &Self, moment: &Moment| {
                model.permits == 0 || moment.permits_used > 0
            }),
        ]
    }
}
