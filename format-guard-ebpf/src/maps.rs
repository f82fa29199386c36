//! Every map, in one place. The pinned ones outlive the agent: enforcement goes on without it.
//!
//! Maps with an entry for each device are made for as many devices as the configuration says: `DEVICES` is
//! only the default.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{self, ArrayOfMaps},
    macros::{btf_map, map},
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use format_guard_common::{
    DEVICES, RULES_IN_SEGMENT, Rule, Windows,
    claim::Lease,
    clear::{CLEAR_SLOTS, Clear, TAINT_SLOTS},
    event::{ArgumentClass, COUNTERS as COUNTER_SLOTS, Counter, FormatOwner, Layer, Taint, TaintKey},
    header::Plan,
    program::NAME_SLOTS,
    protection::Protection,
    wait::{WAITERS as WAITER_SLOTS, Wait},
};

/// Slots in `RULES` by kernel `dev_t`. The agent writes them; a device keeps its slot as long as it is there.
#[map]
pub(crate) static SLOTS: HashMap<u32, u32> = HashMap::pinned(DEVICES, BPF_F_NO_PREALLOC);
/// One segment of rules.
type Segment = btf_maps::Array<Rule, { RULES_IN_SEGMENT as usize }>;
/// Rules, by slot, in segments that the agent makes as it needs them and never removes. The key is no
/// `dev_t`: the kernel reuses a hash map's replaced element at once for another key (kernel/bpf/memalloc.c),
/// so a program that still reads the element would judge by another device's rule. A slot is written in
/// place, and passes to another device only after several other slots have done so.
#[btf_map]
pub(crate) static RULES: ArrayOfMaps<Segment, { DEVICES.div_ceil(RULES_IN_SEGMENT) as usize }> =
    ArrayOfMaps::new();
/// The rules for devices without one (`stacking::of_unknown`). The agent writes them.
#[map]
pub(crate) static UNKNOWN: Array<Rule> = Array::pinned(3, 0);
/// Devices that were made over others, by kernel `dev_t`.
#[map]
pub(crate) static LAYERS: LruHashMap<u32, Layer> = LruHashMap::pinned(1024, 0);
/// Under which volumes are claimed. The agent writes it.
#[map]
pub(crate) static LEASE: Array<Lease> = Array::pinned(1, 0);
/// The volumes that lie on a device, by kernel `dev_t`. The agent writes them.
#[map]
pub(crate) static WINDOWS: HashMap<u32, Windows> = HashMap::pinned(DEVICES, BPF_F_NO_PREALLOC);
/// The one process that formats a device, by the kernel `dev_t` in `Rule::lock_dev`. Written here,
/// removed by the agent.
#[map]
pub(crate) static FORMAT_OWNERS: HashMap<u32, FormatOwner> = HashMap::pinned(DEVICES, BPF_F_NO_PREALLOC);
/// Start times of the processes in `FORMAT_OWNERS`, by thread group id, so that their end is reported.
#[map]
pub(crate) static FORMATTERS: HashMap<u32, u64> = HashMap::pinned(DEVICES, BPF_F_NO_PREALLOC);
/// Not zero if a process of that slot (`clear::taint_slot`) was refused: processes of other slots need no
/// look-up. It is set after the entry in `TAINTS`, so that whoever clears it and looks into `TAINTS`
/// afterwards misses no entry.
#[map]
pub(crate) static TAINTED: Array<u32> = Array::pinned(TAINT_SLOTS, 0);
/// The stretches of a device without any check, each in one of its `clear::slots`. The agent writes them.
#[map]
pub(crate) static CLEAR: Array<Clear> = Array::pinned(CLEAR_SLOTS, 0);
/// Not zero where a known program has that slot (`program::name_slot`). The agent writes it once.
#[map]
pub(crate) static NAMES: Array<u32> = Array::pinned(NAME_SLOTS, 0);
/// Processes that were refused, with the device.
#[map]
pub(crate) static TAINTS: LruHashMap<TaintKey, Taint> = LruHashMap::pinned(4096, 0);
/// The class of each known program (`program::Class`), by `comm`. The agent writes it once.
#[map]
pub(crate) static PROGRAMS: HashMap<[u8; 16], u32> = HashMap::pinned(256, BPF_F_NO_PREALLOC);
/// What the arguments of a process said when it opened a device, by thread group id.
#[map]
pub(crate) static ARG_CLASSES: LruHashMap<u32, ArgumentClass> = LruHashMap::pinned(1024, 0);
/// What the kernel is about to do to the devices of a device mapper table, by thread.
#[map]
pub(crate) static TABLES: LruHashMap<u64, Plan> = LruHashMap::pinned(1024, 0);
/// `KernelEvent` records for the agent.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::pinned(1 << 20, 0);
/// The counters of `event::Counter`.
#[map]
pub(crate) static COUNTERS: PerCpuArray<u64> = PerCpuArray::pinned(COUNTER_SLOTS, 0);
/// What other processes may not do to the guard. The agent writes it, and the kernel programs add which
/// process the agent is.
#[map]
pub(crate) static PROTECTION: Array<Protection> = Array::pinned(1, 0);
/// The guard's own maps, programs and links, by `protection::Object::key`. The agent writes it.
#[map]
pub(crate) static OURS: HashMap<u64, u32> = HashMap::pinned(2048, BPF_F_NO_PREALLOC);
/// How long formatters wait for the agent. The agent writes it.
#[map]
pub(crate) static WAIT: Array<Wait> = Array::pinned(1, 0);
/// Until when a formatter waits, in nanoseconds of `CLOCK_BOOTTIME`: one slot for each formatter that may
/// wait.
#[map]
pub(crate) static WAITERS: Array<u64> = Array::pinned(WAITER_SLOTS, 0);

/// The rule of a device.
#[inline(always)]
pub(crate) fn rule<'a>(dev: u32) -> Option<&'a Rule> {
    // SAFETY: copied at once; if the device is just removed, the slot may be another device's, which `dev`
    // shows.
    let slot = unsafe { SLOTS.get(dev) }.copied()?;
    RULES.get_value(slot / RULES_IN_SEGMENT, &(slot % RULES_IN_SEGMENT)).filter(|rule| rule.dev == dev)
}

/// Adds one to a counter of this CPU.
#[inline(always)]
pub(crate) fn count(counter: Counter) {
    if let Some(slot) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: a map value of this CPU; preemption can lose an increment and nothing else.
        unsafe { *slot += 1 };
    }
}
