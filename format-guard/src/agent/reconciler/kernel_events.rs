//! What the kernel programs report: a format begins and ends, a tool is at work, a file system is mounted, a
//! device is gone.

use std::{
    collections::HashMap,
    fs,
    time::{Duration, Instant},
};

use format_guard_common::{
    Reason,
    event::{FormatOwner, Process},
};
use tracing::error;

use super::{MAX_ENDS, Reconciler};
use crate::{
    agent::{clocks, holding, now},
    enforce::{
        report::{Happened, Report},
        since_boot,
    },
    record::{
        Formatter, Volume, Wrote,
        transition::{self, Event},
    },
    volume::{Dev, VolumeId},
};

/// How long an exit status is kept: nobody waits for the end of most processes. A format whose event was lost
/// is recovered by the next resync.
pub(super) const ENDS_LAST: Duration = Duration::from_mins(1);

/// What the kernel programs and the processes themselves have told of formats that are under way, or were.
#[derive(Default)]
pub(super) struct Formats {
    /// Records of volumes that went while somebody formatted them: what came of that is not known before its
    /// end.
    pub(super) departed: HashMap<VolumeId, Volume>,
    /// End of the last format on a device or on one that shares its bytes. What was read before is what the
    /// format overwrote, or half of it.
    pub(super) last_end: HashMap<Dev, Instant>,
    /// Exit statuses that the kernel reported, and when, until the pidfd does.
    pub(super) exit_statuses: HashMap<Process, (u32, Instant)>,
}

impl Formats {
    /// Keeps an exit status until the pidfd tells of the end, too; the oldest is dropped where there are too
    /// many.
    fn keep_status(&mut self, process: Process, status: u32) {
        if self.exit_statuses.len() >= MAX_ENDS
            && let Some(oldest) =
                self.exit_statuses.iter().min_by_key(|(_, (_, at))| *at).map(|(process, _)| *process)
        {
            self.exit_statuses.remove(&oldest);
        }
        self.exit_statuses.insert(process, (status, Instant::now()));
    }
}

impl Reconciler {
    /// Records a format that the kernel let through and whose event has not arrived. Whether there was one.
    pub(super) fn recover_format(&mut self, entry: &FormatOwner) -> bool {
        let dev = Dev::from_kernel(entry.dev);
        let record = self.graph.id(dev).and_then(|id| self.records.get(id));
        let untold = record.is_some_and(|record| transition::is_untold(record, entry.process))
            && !self.unstored.is_to_be_released(entry.process);
        if untold {
            self.format_began(entry);
        }
        untold
    }

    /// The same for the format owner of this very device, if it has one.
    pub(super) fn recover_format_on(&mut self, dev: Dev) {
        if let Some(entry) = self.formatter_of(dev) {
            self.recover_format(&entry);
        }
    }

    pub(super) fn kernel_event(&mut self, report: &Report) {
        self.health.lag = since_boot().saturating_sub(report.at);
        let (dev, process) = (report.dev, report.process);
        let attached = self.graph.get(dev).is_some_and(|device| device.diskseq == report.diskseq);
        match report.what {
            Happened::Refused(refused) => {
                self.refused(report, refused);
                if refused.carried_out && refused.reason == Some(Reason::NotReadYet) {
                    self.hurry(dev);
                }
                if !refused.carried_out && attached {
                    let formatter = formatter(process, &report.comm, report.cgroup);
                    self.tool_at_work(dev, process, &Event::LetThrough(formatter));
                }
            }
            Happened::Waits => self.hurry(dev),
            // What was formatted under this number is another volume than the one that is there now: its
            // owner tells of it.
            Happened::FormatBegan(_) | Happened::Relabelled | Happened::OwnerWiped if !attached => {}
            Happened::FormatBegan(wrote) => self.format_began(&FormatOwner {
                process,
                dev: dev.to_kernel(),
                wrote,
                comm: report.comm,
                cgroup: report.cgroup,
                ..FormatOwner::default()
            }),
            Happened::FormatEnded(status) => self.formats.keep_status(process, status),
            Happened::Mounted => {
                if let Some(device) = self.host.devices.by_number(dev)
                    && self.graph.get(dev).is_none_or(|known| known.diskseq != device.diskseq)
                {
                    self.device_changed(device);
                }
                if self.graph.get(dev).is_some_and(|device| device.diskseq == report.diskseq) {
                    // What was mounted is what was formatted, also where the event of that was lost.
                    self.recover_format_on(dev);
                    self.apply_to_device(dev, &Event::Mounted);
                }
            }
            Happened::Relabelled => self.tool_at_work(dev, process, &Event::Relabelled(process)),
            Happened::OwnerWiped => self.tool_at_work(dev, process, &Event::OwnerWiped(process)),
            Happened::Gone => {
                if self.host.devices.by_number(dev).is_none() {
                    self.device_gone(dev);
                }
            }
            Happened::Tampered { tried, number } => self.tampered(report, tried, number),
        }
    }

    /// A tool was let through: the volume is probed when the tool has ended.
    pub(super) fn tool_at_work(&mut self, dev: Dev, process: Process, event: &Event) {
        let record = self.graph.id(dev).and_then(|id| self.records.get(id));
        // The kernel reports each of the tool's writes: the first one is enough.
        if record.is_some_and(|record| record.attachment.tool_at_work != Some(process)) {
            self.apply_to_device(dev, event);
            self.watcher.watch(process);
        }
    }

    pub(super) fn format_began(&mut self, entry: &FormatOwner) {
        let process = entry.process;
        let formatter = formatter(process, &entry.comm, entry.cgroup);
        let wrote = Wrote::of(entry.wrote);
        self.apply_to_device(Dev::from_kernel(entry.dev), &Event::FormatBegan { formatter, wrote });
        self.watcher.watch(process);
    }

    /// A program that is no known formatter (a monitor, a daemon) may live for months: a volume that it has
    /// closed is its own no longer. Only the resync looks: some programs close a volume for a moment in the
    /// middle of their work.
    pub(super) fn see_whether_held(&mut self, id: &VolumeId) {
        let Some(record) = self.records.get(id).filter(|record| transition::is_held(record)) else { return };
        let Some(process) = record.formatter.as_ref().map(Formatter::process) else { return };
        let devices: Vec<Dev> = self.graph.of(id).map(|device| device.dev).collect();
        // The process may have opened the disk instead of its partition.
        let around = devices.iter().flat_map(|dev| self.graph.related(*dev)).map(|related| related.dev);
        let all: Vec<Dev> = around.chain(devices.iter().copied()).collect();
        if holding::has_open(process, &all) == Some(false) {
            self.format_ended(id, process, None);
        }
    }

    pub(super) fn ended(&mut self, process: Process, status: Option<u32>, last: bool) {
        let status = self.formats.exit_statuses.get(&process).map(|(status, _)| *status).or(status);
        if status.is_none() && !last {
            return;
        }
        if last {
            self.formats.exit_statuses.remove(&process);
        }
        let formats = |record: &Volume| {
            record.attachment.is_running()
                && record.formatter.as_ref().is_some_and(|formatter| formatter.is(process))
        };
        let ended: Vec<VolumeId> =
            self.records.values().filter(|record| formats(record)).map(|record| record.id.clone()).collect();
        // This tier reports no mounts: they are looked for now.
        if !ended.is_empty() && !self.enforcer.tier().tells_of_mounts() {
            self.repair_mounts();
        }
        for id in ended {
            self.format_ended(&id, process, status);
        }
        self.ended_after_departure(process, status);
        let worked_on: Vec<VolumeId> = self
            .records
            .values()
            .filter(|record| record.attachment.tool_at_work == Some(process))
            .map(|record| record.id.clone())
            .collect();
        for id in worked_on {
            self.apply(&id, Event::ToolEnded);
        }
    }

    /// Forgets the exit statuses of processes for which nobody has waited.
    pub(super) fn forget_ends(&mut self) {
        let lasts = ENDS_LAST.max(3 * self.settings.resync_interval);
        self.formats.exit_statuses.retain(|_, (_, told)| told.elapsed() < lasts);
    }

    /// A format has ended: what was read of the volume until now is what was there before, or half of the
    /// format.
    pub(super) fn format_ended(&mut self, id: &VolumeId, process: Process, status: Option<u32>) {
        let devices: Vec<Dev> = self.graph.of(id).map(|device| device.dev).collect();
        for dev in &devices {
            let around = self.graph.related(*dev).into_iter().map(|related| related.dev);
            let over = around.chain([*dev]).map(|dev| (dev, Instant::now()));
            self.formats.last_end.extend(over);
        }
        let entry =
            devices.first().and_then(|dev| self.formatter_of(*dev)).filter(|entry| entry.process == process);
        let wrote = entry.map_or(Wrote::Bytes, |entry| Wrote::of(entry.wrote));
        let unseen = !self.enforcer.tier().tells_of_mounts();
        self.apply(id, Event::FormatEnded { status, wrote, unseen });
    }

    /// A formatter has ended whose volume was detached before: its stored record follows.
    pub(super) fn ended_after_departure(&mut self, process: Process, status: Option<u32>) {
        let unseen = !self.enforcer.tier().tells_of_mounts();
        let formats = |record: &Volume| record.formatter.as_ref().is_some_and(|by| by.is(process));
        let ended: Vec<Volume> =
            self.formats.departed.extract_if(|_, record| formats(record)).map(|(_, record)| record).collect();
        for old in ended {
            let event = Event::FormatEnded { status, wrote: old.attachment.wrote, unseen };
            let new = transition::next(&old, event, clocks()).0.record;
            if let Err(error) = self.store.put(&new, &[]) {
                self.keep_unstored(new, &error);
            }
        }
    }

    pub(super) fn release(&mut self, id: &VolumeId) {
        let formatter = self.records.get(id).and_then(|record| record.formatter.clone());
        // Another device that shares these bytes may be the one that is formatted: its owner stays. So does
        // an owner who began since.
        let told =
            |entry: &FormatOwner| formatter.as_ref().is_some_and(|formatter| formatter.is(entry.process));
        let owners: Vec<(Dev, Process)> = self
            .graph
            .of(id)
            .filter_map(|device| {
                let (lock_dev, _) = self.lock_dev(device.dev);
                let entry = self.enforcer.owner(lock_dev)?;
                (entry.dev == device.dev.to_kernel() && told(&entry)).then_some((lock_dev, entry.process))
            })
            .collect();
        if self.unstored.release_later(id, &owners) {
            return;
        }
        for (lock_dev, process) in owners {
            self.release_owner(lock_dev, process);
        }
    }

    /// Releases the format owner under a lock device, if it is this process.
    pub(super) fn release_owner(&mut self, lock_dev: Dev, process: Process) {
        if self.enforcer.owner(lock_dev).is_some_and(|entry| entry.process == process)
            && let Err(error) = self.enforcer.release_owner(lock_dev)
        {
            error!("{error}");
        }
    }
}

pub(super) fn formatter(process: Process, comm: &[u8; 16], cgroup: u64) -> Formatter {
    Formatter {
        pid: process.tgid,
        started: process.started,
        comm: text_of(comm),
        exe: exe_of(process.tgid),
        cgroup,
        at: now(),
    }
}

pub(super) fn text_of(comm: &[u8; 16]) -> String {
    let end = comm.iter().position(|byte| *byte == 0).unwrap_or(comm.len());
    String::from_utf8_lossy(&comm[..end]).chars().filter(|c| !c.is_control()).collect()
}

pub(super) fn exe_of(pid: u32) -> Option<String> {
    Some(fs::read_link(format!("/proc/{pid}/exe")).ok()?.to_string_lossy().into_owned())
}
