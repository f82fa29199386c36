//! The tiers `lsm`, `fmod_ret` and `cgroup`: loads the BPF programs, hands over from an earlier agent, and
//! keeps their maps.
//!
//! A program that this kernel has a place for and that does not load is an error that names it and carries
//! the verifier's reason. A place that a kernel lacks is reported. No link is ever removed before its
//! successor refuses.

mod hooks;
pub mod lines;
mod load;
mod modify_return;
pub mod offsets;
pub mod pins;
mod self_protection;
mod slots;
mod syscall;
mod verifier_log;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{Array, ArrayOfMaps, HashMap, MapData, MapError as AyaMapError, PerCpuArray, RingBuf},
    programs::links::{FdLink, PinnedLink},
};
use format_guard_common::{
    Rule, State, Windows,
    claim::Lease,
    clear::{self, Choice, Clear},
    event::{Counter, FormatOwner, Taint, TaintKey},
    flag, program,
    wait::{WAITERS, Wait},
};

use super::{
    Counts, Enforcer, canary,
    error::{LoadError, MapError, ProgramStatus, ProtectionError},
    programs::known_programs,
    report::Report,
    rule, since_boot,
};
use crate::{
    config::{Config, Passthrough},
    fault::{self, Point},
    process,
    tier::Tier,
    volume::Dev,
};
use hooks::HookProgram;
use lines::Lines;
use load::{Globals, borrow, build_of, load_object, take};
use offsets::{KERNEL_BTF, KernelTypes};
use pins::Pins;
use self_protection::Protected;
use slots::{Rules, Slots};

/// The kernel function by which a program waits.
const WAITS_BY: &str = "bpf_copy_from_user_task";
/// How long the canary may take at most. It ends with its outcome; on a host that is busy starting up, that
/// takes more than a second.
const CANARY_WAITS: Duration = Duration::from_secs(5);

/// The loaded guard.
pub struct BpfEnforcer {
    ebpf: Ebpf,
    pins: Pins,
    rules: Rules,
    /// The slot in `rules` of each device that has one, as it is in the kernel.
    slots: HashMap<MapData, u32, u32>,
    taken: Slots,
    /// Devices that may have a rule.
    max_devices: u32,
    windows: HashMap<MapData, u32, Windows>,
    clear: Array<MapData, Clear>,
    /// What has no slot in `clear` yet, by device.
    waiting: BTreeMap<u32, Clear>,
    unknown: Array<MapData, Rule>,
    taints: HashMap<MapData, TaintKey, Taint>,
    /// By `clear::taint_slot`.
    tainted: Array<MapData, u32>,
    owners: HashMap<MapData, u32, FormatOwner>,
    lease: Array<MapData, Lease>,
    wait: Array<MapData, Wait>,
    /// Until when each of those waits that do.
    waiters: Array<MapData, u64>,
    counters: PerCpuArray<MapData, u64>,
    protected: Protected,
    /// Of the functions at which a program may stand, those that this kernel has.
    functions: BTreeSet<String>,
    offsets: Vec<(&'static str, u32)>,
    /// Stands for the object, its read-only globals and where it is attached.
    build: u64,
    /// The one that is proven, or to be tried next.
    tier: Tier,
    /// What to try after it.
    weaker: Vec<Tier>,
    refuse_passthrough: u32,
    /// This kernel has what formatters wait by.
    may_wait: u32,
    /// The lowest level of lines that the programs write, as aya-log counts levels.
    lines: Option<u8>,
    /// The canary has proven that they do, and that nobody else gets through meanwhile.
    waits: bool,
    /// The control group of the tier `cgroup`; empty: the root.
    cgroup: PathBuf,
}

impl BpfEnforcer {
    /// Makes or takes over the maps below `pin_root`. Nothing is attached yet, so that rules can be put
    /// first; what an earlier agent attached stays in force.
    ///
    /// `tier` is to be tried first, and those in `weaker` after it.
    pub fn load(
        pin_root: &Path,
        config: &Config,
        audit: bool,
        tier: Tier,
        weaker: Vec<Tier>,
    ) -> Result<Self, LoadError> {
        let (offsets, functions, may_wait) = if tier == Tier::Cgroup {
            (Vec::new(), BTreeSet::new(), 0)
        } else {
            // Tens of megabytes, which are not kept beside those that attaching needs.
            let mut functions = hooks::functions();
            let asked: BTreeSet<String> = functions.iter().cloned().chain([WAITS_BY.to_owned()]).collect();
            let types = KernelTypes::read(Path::new(KERNEL_BTF), &asked)?;
            functions.retain(|function| types.has_function(function));
            (types.offsets()?, functions, u32::from(types.has_function(WAITS_BY)))
        };
        let pins = Pins::create(pin_root, config.max_devices)
            .map_err(|source| LoadError::Pin { path: pin_root.to_owned(), source })?;
        let refuse_passthrough = u32::from(config.passthrough == Passthrough::Refuse);
        let max_devices = config.max_devices;
        let rules = pins.maps().join("RULES");
        Rules::make(&rules, max_devices).map_err(|source| LoadError::Pin { path: rules, source })?;
        let lines = lines::wanted();
        let globals = Globals { offsets: &offsets, refuse_passthrough, may_wait, tier, lines };
        let mut ebpf = load_object(&pins, max_devices, &globals)?;
        let build = build_of(&globals);
        let rules = Rules::new(take(&mut ebpf, "RULES", ArrayOfMaps::try_from)?);
        let slots: HashMap<MapData, u32, u32> = take(&mut ebpf, "SLOTS", HashMap::try_from)?;
        let taken = Slots::new(slots.iter().filter_map(Result::ok), max_devices);
        let windows = take(&mut ebpf, "WINDOWS", HashMap::try_from)?;
        let clear = take(&mut ebpf, "CLEAR", Array::try_from)?;
        let unknown = take(&mut ebpf, "UNKNOWN", Array::try_from)?;
        let taints = take(&mut ebpf, "TAINTS", HashMap::try_from)?;
        let tainted = take(&mut ebpf, "TAINTED", Array::try_from)?;
        let owners = take(&mut ebpf, "FORMAT_OWNERS", HashMap::try_from)?;
        let lease = take(&mut ebpf, "LEASE", Array::try_from)?;
        let wait = take(&mut ebpf, "WAIT", Array::try_from)?;
        let waiters = take(&mut ebpf, "WAITERS", Array::try_from)?;
        let counters = take(&mut ebpf, "COUNTERS", PerCpuArray::try_from)?;
        let protection = take(&mut ebpf, "PROTECTION", Array::try_from)?;
        let ours = take(&mut ebpf, "OURS", HashMap::try_from)?;
        let protected = Protected::new(protection, ours);

        let mut programs: HashMap<_, [u8; 16], u32> = borrow(&mut ebpf, "PROGRAMS", HashMap::try_from)?;
        let known = known_programs(&config.trusted);
        let earlier: Vec<[u8; 16]> = programs.keys().filter_map(Result::ok).collect();
        // What an earlier agent trusted, and this one does not.
        for comm in earlier.iter().filter(|comm| !known.contains_key(*comm)) {
            absent_is_done(programs.remove(comm))
                .map_err(|source| LoadError::Map { name: "PROGRAMS", source })?;
        }
        for (comm, class) in &known {
            programs
                .insert(*comm, class.0, 0)
                .map_err(|source| LoadError::Map { name: "PROGRAMS", source })?;
        }
        let mut names: Array<_, u32> = borrow(&mut ebpf, "NAMES", Array::try_from)?;
        for comm in known.keys() {
            names
                .set(program::name_slot(words(*comm)), 1, 0)
                .map_err(|source| LoadError::Map { name: "NAMES", source })?;
        }
        let mut enforcer = Self {
            ebpf,
            pins,
            rules,
            slots,
            taken,
            max_devices,
            windows,
            clear,
            waiting: BTreeMap::new(),
            unknown,
            taints,
            tainted,
            owners,
            lease,
            wait,
            waiters,
            counters,
            protected,
            functions,
            offsets,
            build,
            tier,
            weaker,
            refuse_passthrough,
            may_wait,
            lines,
            waits: false,
            cgroup: config.cgroup_dir.clone(),
        };
        enforcer.put_unknown(&rule::unknown(audit))?;
        Ok(enforcer)
    }

    /// The ring buffer of `KernelEvent`s.
    pub fn events(&mut self) -> Result<RingBuf<MapData>, LoadError> {
        take(&mut self.ebpf, "EVENTS", RingBuf::try_from)
    }

    /// The lines of the kernel programs, where the log asks for them.
    pub fn lines(&mut self) -> Option<Lines> {
        lines::of(&mut self.ebpf)
    }

    /// Whether a formatter waits while its device is not read, and whether another one is refused meanwhile
    /// on the same processor: before about Linux 6.1.54 the kernel runs no program there whose run by another
    /// task has not ended.
    fn prove_waiting(&mut self) -> Result<(), LoadError> {
        self.waits = false;
        if self.tier != Tier::Lsm || self.may_wait == 0 {
            return Ok(());
        }
        let (held, refused) = (canary::Node::make()?, canary::Node::make_second()?);
        let [unread, other] = [&held, &refused].map(canary::Node::dev);
        let rule = |flags| Rule { flags, ..Rule::new(unread.to_kernel(), 0, State::Unverified) };
        self.put_rule(&rule(flag::UNREAD), &Windows::new())?;
        self.put_rule(&Rule::new(other.to_kernel(), 0, State::Formatted), &Windows::new())?;
        // Whoever waits for an agent that is about to come goes on.
        let before = self.wait.get(&0, 0).unwrap_or_default();
        let until = (since_boot() + 2 * CANARY_WAITS).as_nanos();
        self.put_wait(CANARY_WAITS, u64::try_from(until).unwrap_or(u64::MAX))?;
        let guard = RefCell::new(&mut *self);
        let waits = |slot: u32| guard.borrow().waiters.get(&slot, 0).is_ok_and(|until: u64| until != 0);
        let mut ended = Ok(());
        let proven = canary::prove_waiting(
            [&held, &refused],
            CANARY_WAITS,
            || (0..WAITERS).any(waits),
            || ended = guard.borrow_mut().put_rule(&rule(0), &Windows::new()),
        );
        self.put_wait(Duration::from_nanos(if proven { before.limit } else { 0 }), before.until)?;
        ended?;
        self.remove_rule(unread)?;
        self.remove_rule(other)?;
        self.waits = proven;
        if !proven {
            tracing::warn!(
                "this kernel cannot let a formatter wait until a volume is read: an early formatter is refused"
            );
        }
        Ok(())
    }

    fn put_wait(&mut self, limit: Duration, until: u64) -> Result<(), MapError> {
        let limit = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        self.wait.set(0, Wait { limit, until }, 0).map_err(map_error("say how long formatters wait", 0))
    }

    /// Writes a rule into its device's slot: the rule first, so that a slot that is found holds it.
    fn put(&mut self, rule: &Rule) -> Result<(), MapError> {
        let slot = self.taken.of(rule.dev).ok_or_else(|| MapError {
            what: "put the rule",
            dev: rule.dev,
            reason: format!("{} devices have one, as many as max_devices allows", self.max_devices),
        })?;
        let segment = self.rules.make_segment(slot).map_err(map_error("make room for rules", rule.dev))?;
        if let Some(segment) = segment {
            self.protected.add(segment).map_err(map_error("protect the rule", rule.dev))?;
        }
        // Who waits for it looks at this flag alone, and must not meet half of the rule.
        let before = self.rules.get(slot).ok().filter(|before| before.dev == rule.dev);
        if before.is_some_and(|before| before.flags & flag::UNREAD != 0) {
            let unread = Rule { flags: rule.flags | flag::UNREAD, state: State::Unverified as u32, ..*rule };
            self.rules.set(slot, &unread).map_err(map_error("put the rule", rule.dev))?;
        }
        self.rules.set(slot, rule).map_err(map_error("put the rule", rule.dev))?;
        fault::point(Point::AfterRule);
        // The kernel takes it away by itself with the device (`bdev_free_security`).
        if self.slots.get(&rule.dev, 0).ok() != Some(slot) {
            self.slots.insert(rule.dev, slot, 0).map_err(map_error("put the rule", rule.dev))?;
        }
        fault::point(Point::AfterSlot);
        Ok(())
    }

    /// Says where writes to a device pass; nowhere, while it finds no slot.
    fn put_clear(&mut self, dev: u32, clear: &Clear) -> Result<(), MapError> {
        self.waiting.remove(&dev);
        let occupant = |slot| self.clear.get(&slot, 0).map_or(u32::MAX, |there: Clear| there.dev);
        match clear::choose(dev, occupant) {
            Choice::Slot(slot) => self.set_clear(slot, clear),
            Choice::Nowhere | Choice::After { .. } if clear.dev == 0 => Ok(()),
            Choice::After { slot, to } => {
                let moved = self.clear.get(&slot, 0).map_err(map_error("read the clear stretches", dev))?;
                self.set_clear(to, &moved)?;
                // Nobody's in between: a slot that changes hands would show one device the other's.
                self.set_clear(slot, &Clear::default())?;
                self.set_clear(slot, clear)
            }
            Choice::Nowhere => {
                self.waiting.insert(dev, *clear);
                Ok(())
            }
        }
    }

    fn set_clear(&mut self, slot: u32, clear: &Clear) -> Result<(), MapError> {
        let error = || map_error("put the clear stretches", clear.dev);
        if self.clear.get(&slot, 0).map_err(error())? == *clear {
            return Ok(());
        }
        self.clear.set(slot, clear, 0).map_err(error())
    }

    /// Gives slots that have become free to those that wait.
    fn put_waiting(&mut self) -> Result<(), MapError> {
        let waiting = self.waiting.clone();
        waiting.iter().try_for_each(|(dev, clear)| self.put_clear(*dev, clear))
    }

    /// Lets processes go the short way again of which none was refused on any device any more. The kernel
    /// program notes a refusal before it marks the slot: what it notes meanwhile is seen here, or marks the
    /// slot afterwards.
    fn unmark(&mut self, tgids: impl Iterator<Item = u32>) -> Result<(), MapError> {
        for slot in tgids.map(clear::taint_slot) {
            let mut set =
                |value: u32| self.tainted.set(slot, value, 0).map_err(map_error("forget a refusal", 0));
            set(0)?;
            if self.taints.keys().filter_map(Result::ok).any(|key| clear::taint_slot(key.tgid) == slot) {
                set(1)?;
            }
        }
        Ok(())
    }
}

/// A name as the kernel programs load it.
fn words(comm: [u8; 16]) -> [u64; 2] {
    let [low, high] = [0, 8].map(|at| std::array::from_fn(|i| comm[at + i]));
    [u64::from_ne_bytes(low), u64::from_ne_bytes(high)]
}

fn map_error(what: &'static str, dev: u32) -> impl FnOnce(AyaMapError) -> MapError {
    move |error| {
        let reason = match &error {
            AyaMapError::SyscallError(call) => format!("{}: {}", call.call, call.io_error),
            other => other.to_string(),
        };
        MapError { what, dev, reason }
    }
}

fn absent_is_done(result: Result<(), AyaMapError>) -> Result<(), AyaMapError> {
    match result {
        Err(AyaMapError::KeyNotFound) => Ok(()),
        Err(AyaMapError::SyscallError(call)) if call.io_error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

impl Enforcer for BpfEnforcer {
    /// Those programs that an earlier agent of this build left, or else new ones, which take the place of an
    /// earlier agent's once they are proven. Where the kernel does not run them, the next tier is tried.
    fn attach(&mut self) -> Result<Vec<ProgramStatus>, LoadError> {
        loop {
            match self.attach_in_tier() {
                Err(LoadError::Canary(error @ canary::CanaryError::NotEnforced(_))) => {
                    if self.weaker.is_empty() {
                        return Err(error.into());
                    }
                    let next = self.weaker.remove(0);
                    tracing::warn!(
                        tier = self.tier.name(),
                        next = next.name(),
                        "{error}; the next tier is tried"
                    );
                    self.tier = next;
                    self.make_again()?;
                }
                other => return other,
            }
        }
    }

    fn prove(&mut self) -> Result<(), LoadError> {
        // A rule of its own refuses in audit mode, too.
        let node = canary::Node::make()?;
        let rule = Rule::new(node.dev().to_kernel(), 0, State::Formatted);
        self.put_rule(&rule, &Windows::new())?;
        let proof = node.prove();
        self.remove_rule(node.dev())?;
        Ok(proof?)
    }

    /// Windows first: a rule that points to none yet judges a write by what is known of the device itself.
    fn put_rule(&mut self, rule: &Rule, windows: &Windows) -> Result<(), MapError> {
        if windows.count > 0 {
            let windows = Windows { dev: rule.dev, ..*windows };
            self.windows.insert(rule.dev, windows, 0).map_err(map_error("put the windows", rule.dev))?;
        }
        fault::point(Point::AfterWindows);
        self.put_clear(rule.dev, &Clear::default())?;
        self.put(rule)?;
        self.put_clear(rule.dev, &Clear::of(rule, &rule::unknown(false)))?;
        if windows.count == 0 {
            absent_is_done(self.windows.remove(&rule.dev))
                .map_err(map_error("remove the windows", rule.dev))?;
        }
        self.put_waiting()
    }

    fn put_unknown(&mut self, rule: &Rule) -> Result<(), MapError> {
        let over_a_format = Rule { flags: rule.flags | flag::LAYER, ..*rule };
        let own = Rule::new(0, 0, State::Exempt);
        for (place, rule) in [rule, &over_a_format, &own].into_iter().enumerate() {
            let put = self.unknown.set(place as u32, rule, 0);
            put.map_err(map_error("put the rule for unknown devices", 0))?;
        }
        Ok(())
    }

    fn remove_rule(&mut self, dev: Dev) -> Result<(), MapError> {
        let dev = dev.to_kernel();
        fault::point(Point::BeforeRemoval);
        self.put_clear(dev, &Clear::default())?;
        absent_is_done(self.slots.remove(&dev)).map_err(map_error("remove the rule", dev))?;
        self.taken.release(dev);
        self.put_waiting()?;
        fault::point(Point::AfterRemoval);
        absent_is_done(self.windows.remove(&dev)).map_err(map_error("remove the windows", dev))
    }

    fn ruled(&self) -> Vec<Dev> {
        self.slots.keys().filter_map(Result::ok).map(Dev::from_kernel).collect()
    }

    fn rule(&self, dev: Dev) -> Option<Rule> {
        let dev = dev.to_kernel();
        let slot = self.slots.get(&dev, 0).ok()?;
        self.rules.get(slot).ok().filter(|rule| rule.dev == dev)
    }

    fn owner(&self, lock_dev: Dev) -> Option<FormatOwner> {
        self.owners.get(&lock_dev.to_kernel(), 0).ok()
    }

    fn owners(&self) -> Vec<(Dev, FormatOwner)> {
        let owners = self.owners.iter().filter_map(Result::ok);
        owners.map(|(lock_dev, owner)| (Dev::from_kernel(lock_dev), owner)).collect()
    }

    fn release_owner(&mut self, lock_dev: Dev) -> Result<(), MapError> {
        let lock_dev = lock_dev.to_kernel();
        fault::point(Point::BeforeRelease);
        absent_is_done(self.owners.remove(&lock_dev))
            .map_err(map_error("release the formatter", lock_dev))?;
        fault::point(Point::AfterRelease);
        Ok(())
    }

    fn untaint(&mut self, dev: Dev, diskseq: u64) -> Result<u64, MapError> {
        let dev = dev.to_kernel();
        let tainted: Vec<(TaintKey, Taint)> =
            self.taints.iter().filter_map(Result::ok).filter(|(key, _)| key.dev == dev).collect();
        for (key, _) in &tainted {
            absent_is_done(self.taints.remove(key)).map_err(map_error("forget a refusal", dev))?;
        }
        self.unmark(tainted.iter().map(|(key, _)| key.tgid))?;
        // Those of an earlier attachment cut nobody off.
        Ok(tainted.iter().filter(|(_, taint)| taint.diskseq == diskseq).count() as u64)
    }

    /// Where the kernel program knew no more than the process's id: its entry, too, so that it is known again
    /// when it is over.
    fn complete(&mut self, report: &mut Report) {
        if self.tier != Tier::Cgroup || report.process.started != 0 {
            return;
        }
        let Some(process) = process::identity(report.process.tgid) else { return };
        report.process = process;
        let held: Vec<(u32, FormatOwner)> = self.owners.iter().filter_map(Result::ok).collect();
        let ours = held.into_iter().filter(|(_, entry)| {
            entry.process.started == 0
                && entry.process.tgid == process.tgid
                && entry.dev == report.dev.to_kernel()
        });
        for (lock_dev, entry) in ours {
            if let Err(error) = self.owners.insert(lock_dev, FormatOwner { process, ..entry }, 0) {
                tracing::warn!("cannot note when the formatter of a device started: {error}");
            }
        }
    }

    fn protect(&mut self, until: u64) -> Result<(), ProtectionError> {
        if self.tier == Tier::Cgroup {
            return if until == 0 { Ok(()) } else { Err(ProtectionError::NoKernel) };
        }
        self.protected.keep(&self.pins, &self.pins.links(self.build), &self.rules, until)
    }

    fn lease(&self) -> Lease {
        self.lease.get(&0, 0).unwrap_or_default()
    }

    fn put_lease(&mut self, lease: &Lease) -> Result<(), MapError> {
        if self.lease().number != lease.number {
            let ended = Lease { until: 0, ..*lease };
            self.lease.set(0, ended, 0).map_err(map_error("put the lease", 0))?;
        }
        self.lease.set(0, *lease, 0).map_err(map_error("put the lease", 0))
    }

    fn let_wait(&mut self, limit: Duration, until: u64) -> Result<(), MapError> {
        if self.waits { self.put_wait(limit, until) } else { Ok(()) }
    }

    fn tier(&self) -> Tier {
        self.tier
    }

    fn counts(&self) -> Counts {
        let sum =
            |counter: Counter| self.counters.get(&(counter as u32), 0).map_or(0, |each| each.iter().sum());
        Counts {
            judged: sum(Counter::Judged),
            stale: sum(Counter::Stale),
            lost_events: sum(Counter::LostEvents),
            full_maps: sum(Counter::FullMaps),
            unplaced: sum(Counter::Unplaced),
        }
    }

    fn skipped(&self) -> BTreeMap<String, u64> {
        let links = self.pins.links(self.build);
        let of = |part: &HookProgram| {
            let link = FdLink::from(PinnedLink::from_pin(links.join(part.program)).ok()?);
            let skipped = syscall::skipped(link.info().ok()?.program_id()).ok()?;
            Some((part.program.to_owned(), skipped))
        };
        hooks::of(self.tier).iter().filter_map(of).collect()
    }
}
