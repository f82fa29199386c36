//! What the agent counts while it runs, and what Prometheus is told of that and of `status`. Who serves it is
//! `server::metrics`.

use std::{fmt, sync::Arc, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Registry, Unit},
};

use crate::{
    api::{Status, StoreStatus},
    volume::probe::{Finding, ProbeError},
};

/// What a refusal is counted by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabels {
    reason: String,
    operation: String,
    tier: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProgramLabel {
    program: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InForceLabels {
    tier: String,
    mode: &'static str,
}

/// What is counted while the agent runs.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Counted>);

#[derive(Debug)]
struct Counted {
    denials: Family<RefusalLabels, Counter>,
    would_denials: Family<RefusalLabels, Counter>,
    probes: Family<ResultLabel, Counter>,
    cluster_events: Family<ResultLabel, Counter>,
    probe_duration: Histogram,
    attach_to_rule: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        Self(Arc::new(Counted {
            denials: Family::default(),
            would_denials: Family::default(),
            probes: Family::default(),
            cluster_events: Family::default(),
            // 1 ms to 16 s: a deadline is ten seconds.
            probe_duration: Histogram::new(exponential_buckets(0.001, 4.0, 8)),
            // 0.1 ms to 6.5 s.
            attach_to_rule: Histogram::new(exponential_buckets(0.0001, 4.0, 9)),
        }))
    }
}

impl Metrics {
    /// Somebody was refused something, or would have been.
    pub(super) fn refused(&self, denied: bool, reason: &str, operation: &str, tier: &'static str) {
        let labels = RefusalLabels { reason: reason.to_owned(), operation: operation.to_owned(), tier };
        let family = if denied { &self.0.denials } else { &self.0.would_denials };
        family.get_or_create(&labels).inc();
    }

    /// A probe came back after so long, or its deadline did.
    pub(super) fn probed(&self, result: &Result<Finding, ProbeError>, took: Duration) {
        let result = match result {
            Ok(Finding::Blank | Finding::Unwritten) => "blank",
            Ok(Finding::Raw(_)) => "raw",
            Ok(Finding::Holds { .. }) => "holds",
            Err(ProbeError::Deadline) => "deadline",
            Err(ProbeError::Read(_)) => "read_failed",
            Err(ProbeError::NoMedium) => "no_medium",
            Err(ProbeError::NoNode) => "no_node",
            Err(ProbeError::Library(_)) => "failed",
        };
        self.0.probes.get_or_create(&ResultLabel { result }).inc();
        self.0.probe_duration.observe(took.as_secs_f64());
    }

    /// A refusal was told to the cluster's API, or what kept it from that.
    pub(super) fn cluster_event(&self, result: &'static str) {
        self.0.cluster_events.get_or_create(&ResultLabel { result }).inc();
    }

    /// A device has its rule so long after the kernel's word of it was read.
    pub(super) fn ruled(&self, after: Duration) {
        self.0.attach_to_rule.observe(after.as_secs_f64());
    }

    /// All of it as text, with what `status` says.
    pub(super) fn render(&self, status: &Status) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("format_guard");
        let counted = &self.0;
        registry.register("denials", "Requests that were refused", counted.denials.clone());
        registry.register(
            "would_denials",
            "Requests that would have been refused, in audit mode",
            counted.would_denials.clone(),
        );
        registry.register("probes", "Probes of devices, by what came of them", counted.probes.clone());
        registry.register(
            "cluster_events",
            "Refusals for the Events of a cluster, by what became of them",
            counted.cluster_events.clone(),
        );
        registry.register_with_unit(
            "probe_duration",
            "How long a probe took, its start included",
            Unit::Seconds,
            counted.probe_duration.clone(),
        );
        registry.register_with_unit(
            "attach_to_rule",
            "From the kernel's word of a new device until its rule was in force",
            Unit::Seconds,
            counted.attach_to_rule.clone(),
        );
        for (name, help, value) in [
            ("requests_judged", "Requests judged by the kernel programs", status.judged),
            ("stale_rules", "Rules met that belong to an earlier medium", status.stale_rules),
            ("lost_events", "Events that the kernel's ring buffer could not take", status.lost_events),
            ("lost_uevents", "Times that uevents were lost", status.lost_uevents),
            ("full_maps", "Entries that a full kernel map could not take", status.full_maps),
            ("unplaced_writes", "Writes whose place on the device could not be found", status.unplaced),
            ("resync_repairs", "Rules and formats that a resync had to repair", status.repaired),
        ] {
            registry.register(name, help, ConstCounter::new(value));
        }
        for (name, help, value) in [
            ("devices", "Block devices present that may hold a volume", status.devices),
            ("discrepancies", "Volumes present that do not read as they are recorded", status.discrepancies),
            ("probes_under_way", "Devices that are being probed, those that hang among them", status.probing),
            ("unstored_records", "Records that could not be stored and are tried again", status.unstored),
            (
                "records_lost",
                "1 while records are lost, and nothing is armed but by a permit",
                status.records_lost.is_some().into(),
            ),
            ("permits_in_force", "Volumes of which one re-format is permitted", status.permits()),
            ("degraded", "Reasons why protection is less than it should be", status.degraded.len() as u64),
            (
                "canary_proven",
                "1 while the canary proves that refusals are carried out",
                status.proven.into(),
            ),
            ("protected", "1 while others are kept from taking the guard away", status.protected.into()),
        ] {
            registry.register(name, help, ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)));
        }
        if let Some(store) = &status.store {
            register_store(&mut registry, store);
        }
        registry.register_with_unit(
            "canary_proven_timestamp",
            "When the canary proved it, in seconds since 1970; zero: never",
            Unit::Seconds,
            ConstGauge::new(status.proven_at),
        );
        registry.register_with_unit(
            "event_lag",
            "How long the newest kernel event waited",
            Unit::Seconds,
            ConstGauge::new(Duration::from_millis(status.lag).as_secs_f64()),
        );
        let volumes = Family::<StateLabel, Gauge>::default();
        for count in &status.volumes {
            let label = StateLabel { state: count.state.clone() };
            volumes.get_or_create(&label).set(count.count.try_into().unwrap_or(i64::MAX));
        }
        registry.register("volumes", "Recorded volumes, by state", volumes);
        let skipped = Family::<ProgramLabel, Counter>::default();
        for part in status.programs.iter().filter(|part| part.attached) {
            skipped.get_or_create(&ProgramLabel { program: part.program.clone() }).inc_by(part.skipped);
        }
        registry.register("skipped_runs", "Runs of a kernel program that the kernel skipped", skipped);
        let in_force = Family::<InForceLabels, Gauge>::default();
        in_force.get_or_create(&InForceLabels { tier: status.tier.clone(), mode: status.mode.name() }).set(1);
        registry.register("in_force", "1 for the tier and the mode in force", in_force);
        registry.register(
            "build",
            "The version of the agent",
            Info::new([("version", status.version.clone())]),
        );
        let mut text = String::new();
        text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

/// What there is where nodes share a store alone.
fn register_store(registry: &mut Registry, store: &StoreStatus) {
    for (name, help, value) in [
        ("store_answers", "1 while the store that nodes share answers", store.answers.into()),
        ("claims", "Volumes that this node has claimed in that store", store.claims),
        ("claims_awaited", "Blank volumes that wait for a claim", store.waiting),
    ] {
        registry.register(name, help, ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{
        api::{Condition, StateCount},
        mode::Mode,
        record::store::Loss,
    };

    pub(in crate::agent) fn status() -> Status {
        Status {
            condition: Condition::Audit,
            version: "1.2.3".to_owned(),
            tier: "cgroup".to_owned(),
            open: vec!["dd goes on".to_owned()],
            mode: Mode::Audit,
            protected: false,
            configured_mode: Mode::Enforce,
            set_mode: None,
            proven: true,
            proven_at: 1_700_000_000,
            degraded: vec!["the database was damaged".to_owned()],
            programs: Vec::new(),
            devices: 7,
            discrepancies: 1,
            volumes: vec![
                StateCount { state: "formatted".to_owned(), count: 5 },
                StateCount { state: "permitted".to_owned(), count: 2 },
            ],
            judged: 11,
            stale_rules: 0,
            lost_events: 3,
            lost_uevents: 0,
            full_maps: 0,
            unplaced: 2,
            repaired: 4,
            lag: 250,
            probing: 6,
            unstored: 5,
            records_lost: Some(Loss { at: 1, cause: "damaged".to_owned() }),
            store: Some(StoreStatus {
                answers: false,
                since: 1_700_000_000,
                reason: Some("no answer".to_owned()),
                required: false,
                claims: 8,
                waiting: 9,
            }),
        }
    }

    #[test]
    fn every_figure_is_told_under_its_own_name() {
        let metrics = Metrics::default();
        metrics.refused(true, "identity", "write", "lsm");
        metrics.refused(true, "identity", "write", "lsm");
        metrics.refused(false, "formatter", "open", "cgroup");
        metrics.probed(&Ok(Finding::Blank), Duration::from_millis(3));
        metrics.probed(&Err(ProbeError::Deadline), Duration::from_secs(10));
        metrics.ruled(Duration::from_micros(200));
        let text = metrics.render(&status()).expect("text");
        for line in [
            "format_guard_denials_total{reason=\"identity\",operation=\"write\",tier=\"lsm\"} 2",
            "format_guard_would_denials_total{reason=\"formatter\",operation=\"open\",tier=\"cgroup\"} 1",
            "format_guard_probes_total{result=\"deadline\"} 1",
            "format_guard_probe_duration_seconds_count 2",
            "format_guard_attach_to_rule_seconds_bucket{le=\"0.0001\"} 0",
            "format_guard_attach_to_rule_seconds_bucket{le=\"0.0004\"} 1",
            "format_guard_volumes{state=\"formatted\"} 5",
            "format_guard_permits_in_force 2",
            "format_guard_unstored_records 5",
            "format_guard_records_lost 1",
            "format_guard_requests_judged_total 11",
            "format_guard_lost_events_total 3",
            "format_guard_unplaced_writes_total 2",
            "format_guard_resync_repairs_total 4",
            "format_guard_event_lag_seconds 0.25",
            "format_guard_degraded 1",
            "format_guard_canary_proven 1",
            "format_guard_canary_proven_timestamp_seconds 1700000000",
            "format_guard_in_force{tier=\"cgroup\",mode=\"audit\"} 1",
            "format_guard_store_answers 0",
            "format_guard_claims 8",
            "format_guard_claims_awaited 9",
            "format_guard_build_info{version=\"1.2.3\"} 1",
            "# EOF",
        ] {
            assert!(text.lines().any(|told| told == line), "{line} is not in\n{text}");
        }
    }
}
