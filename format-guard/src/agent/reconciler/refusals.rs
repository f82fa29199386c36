//! A refusal as people and machines are told of it: one log line and one event, from the kernel's own record.

use std::fs;

use format_guard_common::{Operation, Reason, event::KernelEvent, header::Header, passthrough::Command};
use tracing::warn;

use super::{
    Reconciler,
    kernel_events::{exe_of, text_of},
    way_out,
};
use crate::{
    agent::{container, now},
    enforce::canary,
    record::{
        Record,
        history::{HistoryEvent, Refusal},
    },
    volume::Dev,
};

impl Reconciler {
    /// Tells of a refusal (`denied`), or of one that would have been (`would-deny`).
    pub(super) fn refused(&mut self, event: &KernelEvent, kind: &str) {
        let dev = Dev::from_kernel(event.dev);
        let device = self.graph.get(dev);
        let comm = text_of(&event.comm);
        // Its refusal is the proof that it was made for.
        if comm == canary::NAME && device.is_none() {
            return;
        }
        let name_of =
            |dev: Dev| self.graph.get(dev).map_or_else(|| dev.to_string(), |device| device.name.clone());
        let (reason, operation) = (Reason::from_raw(event.reason), Operation::from_raw(event.operation));
        let passthrough = operation == Some(Operation::Passthrough);
        // One that goes to a character device: which volume that is was not asked.
        let name = if passthrough && dev.to_kernel() == 0 {
            character_device(Dev::from_kernel(event.offset as u32))
        } else {
            name_of(dev)
        };
        let volume = device.map_or_else(String::new, |device| device.identity.id.to_string());
        let record = device.and_then(|device| self.records.get(&device.identity.id));
        let kubernetes =
            device.and_then(|device| self.node.facts(device.identity.id.as_str(), &device.identity.origin));
        let tier = self.enforcer.tier().name();
        let refusal = Refusal {
            kubernetes,
            reason: reason.map_or("unknown", Reason::name).to_owned(),
            operation: operation.map_or("unknown", Operation::name).to_owned(),
            offset: event.offset,
            length: event.length,
            through: (event.through != 0).then(|| name_of(Dev::from_kernel(event.through))),
            state: record.map_or("unknown", |record| record.state.name()).to_owned(),
            cause: record.map_or_else(String::new, |record| record.cause.clone()),
            since: record.map_or(0, |record| record.since),
            permit: way_out::permit(reason, record),
            way_out: way_out::of(reason, operation, record),
            device: name,
            pid: event.process.tgid,
            exe: exe_of(event.process.tgid),
            cgroup: event.cgroup,
            container: container::of(event.process.tgid, event.cgroup),
            tier: tier.to_owned(),
            comm,
        };
        let text = sentence(&refusal, record, kind);
        self.metrics.refused(kind == "denied", &refusal.reason, &refusal.operation, tier);
        warn!(
            volume,
            kind,
            state = refusal.state,
            since = refusal.since,
            cause = refusal.cause,
            reason = refusal.reason,
            operation = refusal.operation,
            tier,
            device = refusal.device,
            pid = refusal.pid,
            comm = refusal.comm,
            exe = refusal.exe.as_deref().unwrap_or("?"),
            persistent_volume = refusal.kubernetes.as_ref().map(|facts| facts.persistent_volume.as_str()),
            container = refusal.container.as_deref().unwrap_or("-"),
            offset = refusal.offset,
            length = refusal.length,
            "{text}"
        );
        if let Some(log) = self.host.kernel_log.as_mut().filter(|_| kind == "denied") {
            log.write(&format!("{} {} {}", refusal.comm, refusal.device, refusal.reason), &text);
        }
        let event = HistoryEvent { refusal: Some(refusal), ..HistoryEvent::new(now(), volume, kind, text) };
        if let Some(cluster) = &self.host.cluster
            && cluster.try_send(event.clone()).is_err()
        {
            self.metrics.cluster_event("dropped");
        }
        self.append_event(event);
    }
}

/// What happened, to what, why, and what would allow it.
fn sentence(refusal: &Refusal, record: Option<&Record>, kind: &str) -> String {
    let verb = if kind == "denied" { "was refused" } else { "would have been refused" };
    let holds = record.map_or_else(|| "of which nothing is known".to_owned(), describe);
    let what = match refusal.operation.as_str() {
        "open" => "an open for writing".to_owned(),
        "map" => "a shared writable mapping".to_owned(),
        "unplaced-write" => "a write of unknown place".to_owned(),
        "erase" => format!("an erasure of {} bytes at {}", refusal.length, refusal.offset),
        "passthrough" => {
            let (kind, opcode) = Command::of_code(refusal.length);
            format!("{kind} command {opcode:#04x} past the block layer")
        }
        "kernel-header" | "give-to-layer" => {
            let header = Header(u32::try_from(refusal.length).unwrap_or_default());
            match refusal.operation.as_str() {
                "kernel-header" => format!("what makes the kernel write the header of {}", header.name()),
                _ => format!("what makes the kernel write over it for {}", header.name()),
            }
        }
        _ => format!("a write of {} bytes at {}", refusal.length, refusal.offset),
    };
    let through = refusal.through.as_ref().map_or_else(String::new, |below| format!(" through /dev/{below}"));
    format!(
        "{} (pid {}) {verb} {what} on /dev/{}{through} ({holds}): {}; {}",
        refusal.comm, refusal.pid, refusal.device, refusal.reason, refusal.way_out
    )
}

/// Name of a character device, or its number.
fn character_device(dev: Dev) -> String {
    let link = fs::read_link(format!("/sys/dev/char/{dev}")).ok();
    let name = link.as_deref().and_then(|path| path.file_name());
    name.map_or_else(|| dev.to_string(), |name| name.to_string_lossy().into_owned())
}

/// What a volume holds, in a few words.
fn describe(record: &Record) -> String {
    match &record.content {
        Some(content) => format!("{} {}", record.state.name(), content.name()),
        None => record.state.name().to_owned(),
    }
}
