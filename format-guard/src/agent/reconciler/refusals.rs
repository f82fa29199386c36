//! Makes one log line and one event of the kernel's record of a refusal.

use std::fs;

use format_guard_common::{Operation, Reason, header::Header, passthrough::Command};
use tracing::warn;

use super::{
    Reconciler,
    kernel_events::{exe_of, text_of},
    way_out,
};
use crate::{
    agent::{container, now},
    enforce::{
        canary,
        report::{Refused, Report},
    },
    record::{
        Volume,
        history::{HistoryEvent, Refusal},
    },
    volume::Dev,
};

/// The word where the agent does not know the reason, the operation or the state.
const UNKNOWN: &str = "unknown";

impl Reconciler {
    /// Reports a refusal (`denied`), or a request that would have been refused (`would-deny`).
    pub(super) fn refused(&mut self, report: &Report, refused: Refused) {
        let Refused { carried_out, reason, operation, .. } = refused;
        let kind = if carried_out { "denied" } else { "would-deny" };
        let (dev, pid) = (report.dev, report.process.tgid);
        let device = self.graph.get(dev);
        let comm = text_of(&report.comm);
        // The canary must be refused: its refusal is no event.
        if comm == canary::NAME && device.is_none() {
            return;
        }
        let name_of =
            |dev: Dev| self.graph.get(dev).map_or_else(|| dev.to_string(), |device| device.name.clone());
        // A command to a character device: nobody knows which volume it reaches.
        let name = if operation == Some(Operation::Passthrough) && dev.to_kernel() == 0 {
            character_device(Dev::from_kernel(refused.offset as u32))
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
            reason: reason.map_or(UNKNOWN, Reason::name).to_owned(),
            operation: operation.map_or(UNKNOWN, Operation::name).to_owned(),
            offset: refused.offset,
            length: refused.length,
            through: refused.through.map(name_of),
            state: record.map_or(UNKNOWN, |record| record.state.name()).to_owned(),
            cause: record.map_or_else(String::new, |record| record.cause.clone()),
            since: record.map_or(0, |record| record.since),
            permit: way_out::permit(reason, record),
            way_out: way_out::of(reason, operation, record),
            device: name,
            pid,
            exe: exe_of(pid),
            cgroup: report.cgroup,
            container: container::of(pid, report.cgroup),
            tier: tier.to_owned(),
            policy: record.and_then(|record| record.attachment.policy.in_force()).cloned(),
            comm,
        };
        let text = sentence(&refusal, record, refused);
        self.metrics.refused(carried_out, &refusal.reason, &refusal.operation, tier);
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
            policy = refusal.policy.as_ref().map(|policy| policy.name.as_str()),
            offset = refusal.offset,
            length = refusal.length,
            "{text}"
        );
        if let Some(log) = self.host.kernel_log.as_mut().filter(|_| carried_out) {
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
fn sentence(refusal: &Refusal, record: Option<&Volume>, refused: Refused) -> String {
    let verb = if refused.carried_out { "was refused" } else { "would have been refused" };
    let mut holds = record.map_or_else(|| "of which nothing is known".to_owned(), describe);
    if let Some(policy) = &refusal.policy {
        holds = format!("{holds}, {policy}");
    }
    let header = || Header(u32::try_from(refused.length).unwrap_or_default()).name();
    let what = match refused.operation {
        Some(Operation::Open) => "an open for writing".to_owned(),
        Some(Operation::Map) => "a shared writable mapping".to_owned(),
        Some(Operation::Unplaced) => "a write of unknown place".to_owned(),
        Some(Operation::Erase) => format!("an erasure of {} bytes at {}", refused.length, refused.offset),
        Some(Operation::Passthrough) => {
            let (kind, opcode) = Command::of_code(refused.length);
            format!("{kind} command {opcode:#04x} past the block layer")
        }
        Some(Operation::Header) => format!("a call that makes the kernel write the header of {}", header()),
        Some(Operation::Give) => {
            format!("a call that makes the kernel write over the device for {}", header())
        }
        _ => format!("a write of {} bytes at {}", refused.length, refused.offset),
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
fn describe(record: &Volume) -> String {
    match &record.content {
        Some(content) => format!("{} {}", record.state.name(), content.name()),
        None => record.state.name().to_owned(),
    }
}
