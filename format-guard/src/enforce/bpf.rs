//! The tiers `lsm`, `fmod_ret` and `cgroup`: loads the BPF programs, hands over from an earlier agent, and keeps their maps.
//!
//! A program that this kernel has a place for and that does not load is an error that names it and carries the
//! verifier's reason. A place that a kernel lacks is reported. No link is ever removed before its successor refuses.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
    time::Duration,
};

use aya::{
    Btf, Ebpf, EbpfError, EbpfLoader,
    maps::{
        Array, ArrayOfMaps, HashMap, Map, MapData, MapError as AyaMapError, MapInfo, PerCpuArray, RingBuf,
    },
    programs::{
        BtfTracePoint, CgroupDevice, FEntry, Lsm, Program, ProgramError, ProgramInfo,
        links::{FdLink, PinnedLink},
        loaded_programs,
    },
};
use format_guard_common::{
    RULES_IN_SEGMENT, Rule, State, Windows,
    claim::Lease,
    clear::{self, Choice, Clear},
    event::{Counter, FormatOwner, KernelEvent, Taint, TaintKey},
    flag, program,
    wait::{WAITERS, Wait},
};
use format_guard_programs::OBJECT;

use super::{
    Counts, Enforcer, MapError, bpf_call, canary, cgroup,
    modify_return::Programs,
    offsets::{KERNEL_BTF, KernelTypes, OffsetError},
    pins::Pins,
    preload::PreloadError,
    protection::{Protected, ProtectionError},
    rule,
    rules::{Rules, Slots},
    since_boot,
    tier::Tier,
};
use crate::{
    config::{Config, Passthrough},
    fault::{self, Point},
    process,
};

/// The kernel function by which a program waits.
const WAITS_BY: &str = "bpf_copy_from_user_task";
/// How long the canary waits at most: it ends as soon as it is known what comes of it, on a host that is busy as it starts after more
/// than a second.
const CANARY_WAITS: Duration = Duration::from_secs(5);

/// How a program is attached, and to what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Lsm(&'static str),
    /// A hook that returns nothing: nobody can stand at the function that calls it (`fmod_ret`).
    Notice(&'static str),
    Enter(&'static str),
    Tracepoint(&'static str),
    /// A control group: asked for every access to a device.
    Cgroup,
}

impl Place {
    /// The kernel function whose presence says that the kernel has the place; `None` where the tier has none.
    fn function(self, tier: Tier) -> Option<String> {
        Some(match self {
            Self::Lsm(hook) if tier == Tier::FmodRet => format!("security_{hook}"),
            Self::Notice(_) if tier == Tier::FmodRet => return None,
            Self::Cgroup => "cgroup".to_owned(),
            Self::Lsm(hook) | Self::Notice(hook) => format!("bpf_lsm_{hook}"),
            Self::Enter(name) => name.to_owned(),
            Self::Tracepoint(name) => format!("__traceiter_{name}"),
        })
    }
}

/// One program of the object.
struct Part {
    program: &'static str,
    place: Place,
    /// What is left open where a kernel lacks the place; `None` where there is no guard without it.
    without: Option<&'static str>,
}

/// All of the tier `cgroup`.
const OF_CGROUPS: &[Part] = &[Part { program: "device_access", place: Place::Cgroup, without: None }];

/// Of the other tiers, in the order of attaching: what learns comes before what refuses.
const PARTS: &[Part] = &[
    Part {
        program: "sched_process_exit",
        place: Place::Tracepoint("sched_process_exit"),
        without: Some("a first format that failed is told from a complete one by what is on the disk alone"),
    },
    Part {
        program: "sb_kern_mount",
        place: Place::Lsm("sb_kern_mount"),
        without: Some("a mount does not prove a format"),
    },
    Part {
        program: "bdev_free_security",
        place: Place::Notice("bdev_free_security"),
        without: Some("the rule of a device that is gone is dropped by its uevent only"),
    },
    Part {
        program: "bd_link_disk_holder",
        place: Place::Enter("bd_link_disk_holder"),
        without: Some("a device mapper or md device over a volume takes writes until its rule is there"),
    },
    Part { program: "file_open", place: Place::Lsm("file_open"), without: None },
    Part { program: "file_permission", place: Place::Lsm("file_permission"), without: None },
    Part { program: "file_ioctl", place: Place::Lsm("file_ioctl"), without: None },
    Part {
        program: "file_ioctl_compat",
        place: Place::Lsm("file_ioctl_compat"),
        without: Some("nothing: this kernel asks file_ioctl for 32-bit callers, too"),
    },
    Part {
        program: "uring_cmd",
        place: Place::Lsm("uring_cmd"),
        without: Some("nothing before kernel 6.12, which brought discards by io_uring"),
    },
    Part { program: "mmap_file", place: Place::Lsm("mmap_file"), without: None },
    Part { program: "file_mprotect", place: Place::Lsm("file_mprotect"), without: None },
    Part {
        program: "kernel_open",
        place: Place::Cgroup,
        without: Some(
            "headers that the kernel writes by itself (device mapper's snapshots, dm-integrity and caches, a device added to a \
             btrfs) go over what is recorded: the root of the control groups of version 2 is not mounted here",
        ),
    },
    Part {
        program: "bpf",
        place: Place::Lsm("bpf"),
        without: Some("nothing of the guard itself is protected"),
    },
    Part {
        program: "bpf_map",
        place: Place::Lsm("bpf_map"),
        without: Some("root may write to the guard's maps"),
    },
    Part {
        program: "bpf_prog",
        place: Place::Lsm("bpf_prog"),
        without: Some("root may open the guard's programs"),
    },
    Part {
        program: "inode_unlink",
        place: Place::Lsm("inode_unlink"),
        without: Some("root may unlink the guard's pins"),
    },
    Part {
        program: "inode_rmdir",
        place: Place::Lsm("inode_rmdir"),
        without: Some("root may remove empty directories of pins"),
    },
    Part {
        program: "inode_rename",
        place: Place::Lsm("inode_rename"),
        without: Some("root may rename the guard's pins"),
    },
    Part {
        program: "sb_umount",
        place: Place::Lsm("sb_umount"),
        without: Some("root may unmount the file system of the guard's pins"),
    },
    Part {
        program: "task_kill",
        place: Place::Lsm("task_kill"),
        without: Some("root may end the agent by a signal"),
    },
    Part {
        program: "ptrace_access_check",
        place: Place::Lsm("ptrace_access_check"),
        without: Some("root may trace the agent"),
    },
];

/// Why the guard is not in force.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The kernel's types are not as needed.
    #[error(transparent)]
    Offsets(#[from] OffsetError),
    /// aya cannot read the kernel's BTF.
    #[error("cannot read the kernel's type information: {0}")]
    Btf(#[from] aya::BtfError),
    /// The maps cannot be made or reused.
    #[error("cannot create the guard's maps (is this root, with CAP_BPF and CAP_SYS_ADMIN?): {0}")]
    Object(#[from] EbpfError),
    /// A map of the object is not what this program expects.
    #[error("map {name}: {source}")]
    Map {
        /// The map.
        name: &'static str,
        /// What is wrong.
        source: AyaMapError,
    },
    /// A program does not load or attach.
    #[error("kernel program {program} (at {place}) cannot be loaded: {reason}")]
    Program {
        /// The program.
        program: &'static str,
        /// Where it belongs.
        place: String,
        /// The kernel's words, the verifier's last lines among them.
        reason: String,
    },
    /// The kernel lacks a place without which there is no guard.
    #[error("this kernel has no {place}, without which {program} cannot guard")]
    NoPlace {
        /// The program.
        program: &'static str,
        /// The kernel function that is missing.
        place: String,
    },
    /// The object cannot be made ready for the functions `security_*`.
    #[error("cannot make the guard's programs ready for the kernel's security functions: {reason}")]
    Functions {
        /// What is wrong.
        reason: String,
    },
    /// The pin directory cannot be used.
    #[error("cannot pin below {path} (is a bpf file system mounted there?): {source}")]
    Pin {
        /// The directory or pin.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// A rule cannot be put.
    #[error(transparent)]
    Rule(#[from] MapError),
    /// There is no control group to stand at.
    #[error("cannot open the control group {path} (are control groups of version 2 mounted?): {source}")]
    Cgroup {
        /// Its directory.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// The canary did not prove enforcement.
    #[error(transparent)]
    Canary(#[from] canary::CanaryError),
    /// The library is not there, or does not refuse.
    #[error(transparent)]
    Preload(#[from] PreloadError),
}

/// What became of one program.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PartReport {
    /// The program.
    pub program: String,
    /// It is attached.
    pub attached: bool,
    /// What is left open without it; empty when it is attached.
    pub open: String,
    /// How often the kernel did not run it, as another task's run of it stood preempted on that CPU.
    #[serde(default)]
    pub skipped: u64,
}

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
    /// The canary has proven that they do, and that nobody else gets through meanwhile.
    waits: bool,
    /// The control group of the tier `cgroup`; empty: the root.
    cgroup: PathBuf,
}

impl BpfEnforcer {
    /// Makes or takes over the maps below `pin_root`. Nothing is attached yet, so that rules can be put first; what
    /// an earlier agent attached stays in force.
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
            let types = KernelTypes::read(Path::new(KERNEL_BTF))?;
            (types.offsets()?, functions(&types), u32::from(types.has_function(WAITS_BY)))
        };
        let pins = Pins::create(pin_root, config.max_devices)
            .map_err(|source| LoadError::Pin { path: pin_root.to_owned(), source })?;
        let refuse_passthrough = u32::from(config.passthrough == Passthrough::Refuse);
        let max_devices = config.max_devices;
        let rules = pins.maps().join("RULES");
        Rules::make(&rules, max_devices).map_err(|source| LoadError::Pin { path: rules, source })?;
        let mut ebpf = load_object(&pins, max_devices, &offsets, refuse_passthrough, may_wait, tier)?;
        let build = build_of(&offsets, refuse_passthrough, tier);
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

    fn attach_in_tier(&mut self) -> Result<Vec<PartReport>, LoadError> {
        let parts = self.places()?;
        let reports = self.parts().iter().map(|part| {
            let attached = parts.iter().any(|placed| placed.program == part.program);
            let open = if attached { "" } else { part.without.unwrap_or_default() };
            PartReport { program: part.program.to_owned(), attached, open: open.to_owned(), skipped: 0 }
        });
        let reports = reports.collect();
        let links = self.pins.links(self.build);
        let pin_error = |source| LoadError::Pin { path: links.clone(), source };
        if self.is_attached(&parts, &links) && self.prove().is_ok() {
            self.prove_waiting()?;
            self.pins.retire_others(self.build).map_err(pin_error)?;
            return Ok(reports);
        }
        let unproven = self.pins.unproven_links().map_err(pin_error)?;
        // Some megabytes, which those who keep what is there do not need.
        let btf = if self.tier == Tier::Cgroup { None } else { Some(Btf::from_sys_fs()?) };
        // Open until the programs that refer to them are loaded.
        let pinned;
        let functions = if self.tier == Tier::FmodRet {
            pinned = self.pinned_maps()?;
            Some(self.programs_of_functions(&pinned)?)
        } else {
            None
        };
        let attached = parts
            .iter()
            .try_for_each(|part| self.attach_part(part, functions.as_ref(), btf.as_ref(), &unproven));
        if let Err(error) = attached.and_then(|()| self.prove()) {
            let _ = fs::remove_dir_all(&unproven);
            return Err(error);
        }
        fault::point(Point::AfterProof);
        self.prove_waiting()?;
        self.pins.take_over(&unproven, self.build).map_err(pin_error)?;
        Ok(reports)
    }

    /// The maps that outlive the agent, by name: those that were taken from the object are among them.
    fn pinned_maps(&self) -> Result<BTreeMap<String, MapData>, LoadError> {
        let pins = fs::read_dir(self.pins.maps())
            .map_err(|source| LoadError::Pin { path: self.pins.maps().to_owned(), source })?;
        let maps = pins.filter_map(|pin| {
            let pin = pin.ok()?;
            Some((pin.file_name().into_string().ok()?, MapData::from_pin(pin.path()).ok()?))
        });
        Ok(maps.collect())
    }

    /// The object for the functions `security_*`, with the maps that there are: its own and these.
    fn programs_of_functions(&self, pinned: &BTreeMap<String, MapData>) -> Result<Programs, LoadError> {
        let descriptor = |name: &str| -> Option<RawFd> {
            let own = || match self.ebpf.map(name)? {
                Map::Array(map) | Map::LruHashMap(map) => Some(map),
                _ => None,
            };
            Some(pinned.get(name).or_else(own)?.fd().as_fd().as_raw_fd())
        };
        Programs::parse(OBJECT, descriptor)
            .map_err(|error| LoadError::Functions { reason: error.to_string() })
    }

    /// The parts of the tier.
    const fn parts(&self) -> &'static [Part] {
        match self.tier {
            Tier::Cgroup => OF_CGROUPS,
            _ => PARTS,
        }
    }

    /// The parts that this kernel has a place for.
    fn places(&self) -> Result<Vec<&'static Part>, LoadError> {
        let mut parts = Vec::new();
        for part in self.parts() {
            let Some(function) = part.place.function(self.tier) else { continue };
            let there = match part.place {
                // It needs no function in BTF; aya reports one that is missing.
                Place::Tracepoint(_) => true,
                // Without it there is none of the tier: said when it is attached.
                Place::Cgroup => part.without.is_none() || self.is_cgroup_there(),
                _ => self.functions.contains(&function),
            };
            if there {
                parts.push(part);
            } else if part.without.is_none() {
                return Err(LoadError::NoPlace { program: part.program, place: function });
            }
        }
        Ok(parts)
    }

    /// Whether there is a control group to stand at in which all processes are, or the one that the configuration names.
    fn is_cgroup_there(&self) -> bool {
        if self.cgroup.as_os_str().is_empty() {
            cgroup::mount().is_some_and(cgroup::is_root)
        } else {
            self.cgroup.is_dir()
        }
    }

    /// Whether each of these is attached by a link in this directory, and all of our maps are theirs. What cannot be read
    /// is not.
    fn is_attached(&self, parts: &[&Part], links: &Path) -> bool {
        let ids: Option<BTreeSet<u32>> = parts
            .iter()
            .map(|part| {
                let link = FdLink::from(PinnedLink::from_pin(links.join(part.program)).ok()?);
                Some(link.info().ok()?.program_id())
            })
            .collect();
        let Some(ids) = ids else { return false };
        let theirs: BTreeSet<u32> = loaded_programs()
            .filter_map(Result::ok)
            .filter(|program| ids.contains(&program.id()))
            .filter_map(|program| program.map_ids().ok().flatten())
            .flatten()
            .collect();
        let ours = fs::read_dir(self.pins.maps()).into_iter().flatten();
        let mut ours = ours.map(|pin| MapInfo::from_pin(pin.ok()?.path()).ok().map(|map| map.id()));
        ours.all(|id| id.is_some_and(|id| theirs.contains(&id)))
    }

    /// Whether a formatter waits while its device is not read, and whether another one is refused meanwhile on the same processor: before
    /// about Linux 6.1.54 the kernel runs no program there whose run by another task has not ended.
    fn prove_waiting(&mut self) -> Result<(), LoadError> {
        self.waits = false;
        if self.tier != Tier::Lsm || self.may_wait == 0 {
            return Ok(());
        }
        let (held, refused) = (canary::Node::make()?, canary::Node::make_second()?);
        let [unread, other] = [&held, &refused].map(|node| node.dev().to_kernel());
        let rule = |flags| Rule { flags, ..Rule::new(unread, 0, State::Unverified) };
        self.put_rule(&rule(flag::UNREAD), &Windows::new())?;
        self.put_rule(&Rule::new(other, 0, State::Formatted), &Windows::new())?;
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
                "on this kernel no formatter waits for a volume to be read: one that is early is refused"
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

    /// Lets processes go the short way again of which none was refused on any device any more. The kernel program notes a refusal
    /// before it marks the slot: what it notes meanwhile is seen here, or marks the slot afterwards.
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

    fn attach_part(
        &mut self,
        part: &Part,
        functions: Option<&Programs>,
        btf: Option<&Btf>,
        links: &Path,
    ) -> Result<(), LoadError> {
        let place = part.place.function(self.tier).unwrap_or_default();
        let failed = |reason| LoadError::Program { program: part.program, place: place.clone(), reason };
        let path = links.join(part.program);
        let pinned = match (part.place, functions, btf) {
            (Place::Cgroup, ..) | (_, _, None) => bpf_call::pin(&self.attach_to_cgroup(part)?, &path),
            (Place::Lsm(_), Some(programs), Some(btf)) => {
                let link = programs.attach(part.program, &place, btf);
                bpf_call::pin(&link.map_err(|error| failed(error.to_string()))?, &path)
            }
            (_, _, Some(btf)) => {
                let link = self.load_part(part, btf).map_err(|error| failed(verifier_reason(&error)))?;
                link.pin(&path).map(drop).map_err(io::Error::other)
            }
        };
        pinned.map_err(|source| LoadError::Pin { path, source })?;
        fault::point(Point::AfterPin);
        Ok(())
    }

    fn load_part(&mut self, part: &Part, btf: &Btf) -> Result<FdLink, ProgramError> {
        let program = self
            .ebpf
            .program_mut(part.program)
            .ok_or_else(|| ProgramError::IOError(io::Error::other("not in the embedded object")))?;
        let link = load_program(program, part.place, btf)?;
        tell_verified(part, program.info());
        Ok(link)
    }

    /// Attaches a program to the control group: beside what service managers and container runtimes attach below it, each of
    /// which must allow an access.
    fn attach_to_cgroup(&mut self, part: &Part) -> Result<OwnedFd, LoadError> {
        let path = match cgroup::mount() {
            Some(root) if self.cgroup.as_os_str().is_empty() => root,
            _ => &self.cgroup,
        };
        let failed = |source| LoadError::Cgroup { path: path.to_owned(), source };
        let cgroup = fs::File::open(path).map_err(failed)?;
        let program = self
            .ebpf
            .program_mut(part.program)
            .ok_or_else(|| ProgramError::IOError(io::Error::other("not in the embedded object")));
        let loaded = program.and_then(|program| {
            let device: &mut CgroupDevice = program.try_into()?;
            device.load()?;
            tell_verified(part, device.info());
            device.fd()
        });
        let program = loaded.map_err(|error| LoadError::Program {
            program: part.program,
            place: path.display().to_string(),
            reason: verifier_reason(&error),
        })?;
        bpf_call::link_to_cgroup(program.as_fd(), cgroup.as_fd())
            .map_err(|source| LoadError::Cgroup { path: path.to_owned(), source })
    }
}

fn tell_verified(part: &Part, info: Result<ProgramInfo, ProgramError>) {
    if let Ok(info) = info {
        tracing::debug!(
            program = part.program,
            verified = info.verified_instruction_count(),
            "instructions that the verifier followed"
        );
    }
}

/// Of the functions at which a program may stand, in whichever tier, those that these kernel types name.
fn functions(types: &KernelTypes) -> BTreeSet<String> {
    let places = PARTS.iter().map(|part| part.place);
    let functions = places.flat_map(|place| [Tier::Lsm, Tier::FmodRet].map(|tier| place.function(tier)));
    functions.flatten().filter(|function| types.has_function(function)).collect()
}

/// Stands for the object, its read-only globals and where it is attached.
fn build_of(offsets: &[(&'static str, u32)], refuse_passthrough: u32, tier: Tier) -> u64 {
    let mut build = DefaultHasher::new();
    (OBJECT, offsets, refuse_passthrough, tier).hash(&mut build);
    build.finish()
}

/// Reads the object with its maps below the pins.
fn load_object(
    pins: &Pins,
    max_devices: u32,
    offsets: &[(&'static str, u32)],
    refuse_passthrough: u32,
    may_wait: u32,
    tier: Tier,
) -> Result<Ebpf, EbpfError> {
    let mut loader = EbpfLoader::new();
    // For relocations, which our programs have none of.
    loader.btf(None);
    loader.default_map_pin_directory(pins.maps());
    // A map that is described by types does not say where it is pinned.
    loader.map_pin_path("RULES", pins.maps().join("RULES"));
    loader.map_max_entries("RULES", max_devices.div_ceil(RULES_IN_SEGMENT));
    for map in ["SLOTS", "WINDOWS", "FORMAT_OWNERS", "FORMATTERS"] {
        loader.map_max_entries(map, max_devices);
    }
    for (global, offset) in offsets {
        loader.override_global(global, offset, true);
    }
    let modify_return = u32::from(tier == Tier::FmodRet);
    loader.override_global("REFUSE_PASSTHROUGH", &refuse_passthrough, true);
    loader.override_global("MODIFY_RETURN", &modify_return, true);
    // A program at a function may wait for nothing.
    let may_wait = if tier == Tier::Lsm { may_wait } else { 0 };
    loader.override_global("MAY_WAIT", &may_wait, true);
    loader.load(OBJECT)
}

fn load_program(program: &mut Program, place: Place, btf: &Btf) -> Result<FdLink, ProgramError> {
    Ok(match place {
        Place::Lsm(hook) | Place::Notice(hook) => {
            let lsm: &mut Lsm = program.try_into()?;
            lsm.load(hook, btf)?;
            let id = lsm.attach()?;
            lsm.take_link(id)?.into()
        }
        Place::Enter(function) => {
            let enter: &mut FEntry = program.try_into()?;
            enter.load(function, btf)?;
            let id = enter.attach()?;
            enter.take_link(id)?.into()
        }
        Place::Tracepoint(name) => {
            let tracepoint: &mut BtfTracePoint = program.try_into()?;
            tracepoint.load(name, btf)?;
            let id = tracepoint.attach()?;
            tracepoint.take_link(id)?.into()
        }
        Place::Cgroup => return Err(ProgramError::IOError(io::Error::other("it stands at a control group"))),
    })
}

/// What every program is known as, the operator's trust included. Trust adds to what a program is and takes nothing
/// away: a formatter stays one.
pub(super) fn known_programs(trusted: &[String]) -> BTreeMap<[u8; 16], program::Class> {
    let trusted = trusted.iter().map(|name| (program::comm(name), program::Class::TRUSTED));
    let tables = program::PROGRAMS.iter().map(|known| (program::comm(known.name), known.class));
    let mut known = BTreeMap::from([(program::comm(canary::NAME), program::Class::FORMATTER)]);
    for (comm, class) in tables.chain(trusted) {
        let entry = known.entry(comm).or_default();
        *entry = entry.with(class);
    }
    known
}

/// A name as the kernel programs load it.
fn words(comm: [u8; 16]) -> [u64; 2] {
    let [low, high] = [0, 8].map(|at| std::array::from_fn(|i| comm[at + i]));
    [u64::from_ne_bytes(low), u64::from_ne_bytes(high)]
}

/// The error in one line, and the end of the verifier's log, where its reason stands.
fn verifier_reason(error: &ProgramError) -> String {
    let ProgramError::LoadError { io_error, verifier_log } = error else { return error.to_string() };
    format!("{io_error}{}", end_of(&verifier_log.to_string()))
}

/// The end of the verifier's log, to be put after an error.
pub(super) fn end_of(log: &str) -> String {
    const LINES: usize = 12;
    let lines: Vec<&str> = log.lines().collect();
    if lines.is_empty() {
        return String::new();
    }
    let tail = &lines[lines.len().saturating_sub(LINES)..];
    format!("; the verifier says:\n  {}", tail.join("\n  "))
}

/// A map to be filled now; it stays with the object, which needs it to load the programs.
fn borrow<'a, T>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
    convert: impl FnOnce(&'a mut Map) -> Result<T, AyaMapError>,
) -> Result<T, LoadError> {
    let map = ebpf.map_mut(name).ok_or_else(|| AyaMapError::InvalidName { name: name.to_owned() });
    map.and_then(convert).map_err(|source| LoadError::Map { name, source })
}

/// A map to be kept open.
fn take<T>(
    ebpf: &mut Ebpf,
    name: &'static str,
    convert: impl FnOnce(Map) -> Result<T, AyaMapError>,
) -> Result<T, LoadError> {
    let map = ebpf.take_map(name).ok_or_else(|| AyaMapError::InvalidName { name: name.to_owned() });
    map.and_then(convert).map_err(|source| LoadError::Map { name, source })
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
    /// Those programs that an earlier agent of this build left, or else new ones, which take the place of an earlier agent's
    /// once they are proven. Where the kernel does not run them, the next tier is tried.
    fn attach(&mut self) -> Result<Vec<PartReport>, LoadError> {
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
                    let (passthrough, may_wait) = (self.refuse_passthrough, self.may_wait);
                    let devices = self.max_devices;
                    self.ebpf =
                        load_object(&self.pins, devices, &self.offsets, passthrough, may_wait, self.tier)?;
                    self.build = build_of(&self.offsets, self.refuse_passthrough, self.tier);
                }
                other => return other,
            }
        }
    }

    fn prove(&mut self) -> Result<(), LoadError> {
        // A rule of its own refuses in audit mode, too.
        let node = canary::Node::make()?;
        let dev = node.dev().to_kernel();
        self.put_rule(&Rule::new(dev, 0, State::Formatted), &Windows::new())?;
        let proof = node.prove();
        self.remove_rule(dev)?;
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

    fn remove_rule(&mut self, dev: u32) -> Result<(), MapError> {
        fault::point(Point::BeforeRemoval);
        self.put_clear(dev, &Clear::default())?;
        absent_is_done(self.slots.remove(&dev)).map_err(map_error("remove the rule", dev))?;
        self.taken.release(dev);
        self.put_waiting()?;
        fault::point(Point::AfterRemoval);
        absent_is_done(self.windows.remove(&dev)).map_err(map_error("remove the windows", dev))
    }

    fn ruled(&self) -> Vec<u32> {
        self.slots.keys().filter_map(Result::ok).collect()
    }

    fn rule(&self, dev: u32) -> Option<Rule> {
        let slot = self.slots.get(&dev, 0).ok()?;
        self.rules.get(slot).ok().filter(|rule| rule.dev == dev)
    }

    fn owner(&self, lock_dev: u32) -> Option<FormatOwner> {
        self.owners.get(&lock_dev, 0).ok()
    }

    fn owners(&self) -> Vec<(u32, FormatOwner)> {
        self.owners.iter().filter_map(Result::ok).collect()
    }

    fn release_owner(&mut self, lock_dev: u32) -> Result<(), MapError> {
        fault::point(Point::BeforeRelease);
        absent_is_done(self.owners.remove(&lock_dev)).map_err(map_error("release the formatter", lock_dev))?;
        fault::point(Point::AfterRelease);
        Ok(())
    }

    fn untaint(&mut self, dev: u32, diskseq: u64) -> Result<u64, MapError> {
        let tainted: Vec<(TaintKey, Taint)> =
            self.taints.iter().filter_map(Result::ok).filter(|(key, _)| key.dev == dev).collect();
        for (key, _) in &tainted {
            absent_is_done(self.taints.remove(key)).map_err(map_error("forget a refusal", dev))?;
        }
        self.unmark(tainted.iter().map(|(key, _)| key.tgid))?;
        // Those of an earlier attachment cut nobody off.
        Ok(tainted.iter().filter(|(_, taint)| taint.diskseq == diskseq).count() as u64)
    }

    /// Where the kernel program knew no more than the process's id: its entry, too, so that it is known again when it is over.
    fn complete(&mut self, event: &mut KernelEvent) {
        if self.tier != Tier::Cgroup || event.process.started != 0 {
            return;
        }
        let Some(process) = process::identity(event.process.tgid) else { return };
        event.process = process;
        let held: Vec<(u32, FormatOwner)> = self.owners.iter().filter_map(Result::ok).collect();
        let ours = held.into_iter().filter(|(_, entry)| {
            entry.process.started == 0 && entry.process.tgid == process.tgid && entry.dev == event.dev
        });
        for (lock_dev, entry) in ours {
            if let Err(error) = self.owners.insert(lock_dev, FormatOwner { process, ..entry }, 0) {
                tracing::warn!("the formatter of a device cannot be completed: {error}");
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
        let of = |part: &Part| {
            let link = FdLink::from(PinnedLink::from_pin(links.join(part.program)).ok()?);
            let skipped = bpf_call::skipped(link.info().ok()?.program_id()).ok()?;
            Some((part.program.to_owned(), skipped))
        };
        self.parts().iter().filter_map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trust_adds_to_what_a_program_is() {
        let known = known_programs(&["qemu-system-x86_64".to_owned(), "mkfs.ext4".to_owned()]);
        assert_eq!(known[&program::comm("qemu-system-x86")], program::Class::TRUSTED);
        assert!(known[&program::comm("mkfs.ext4")].is(program::Class::FORMATTER));
    }
}
