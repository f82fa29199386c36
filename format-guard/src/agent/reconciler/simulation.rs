//! What a program might try on a volume, and what would come of it: the rule that is in force, asked of
//! `decide()` as the kernel asks it. Nothing is tried.

use format_guard_common::{
    Caller, Check, CheckKind, Content, NoContent, Operation, Owner, Placement, Request, Rule, Verdict,
    decide,
    program::{Class, class_of, comm},
};

use super::{Reconciler, kernel_events::text_of, way_out};
use crate::{
    api::{Failure, FailureKind, Outcome, Simulated, Simulation},
    enforce::since_boot,
    record::Volume,
    volume::{Dev, VolumeId},
};

/// A process that has only just begun to run the program: refused nowhere yet, and the owner of no format.
struct Beginner {
    class: Class,
    owner: Owner,
    claim_lasts: bool,
    permit_lasts: bool,
}

impl Caller for Beginner {
    fn class(&self) -> Class {
        self.class
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
        self.permit_lasts
    }
}

/// What a write carries.
enum Carried {
    /// The bytes of a check.
    Bytes(Check),
    /// Zeros.
    Zeros,
}

impl Content for Carried {
    fn read(&self, at: u64, length: u64) -> Option<[u64; 2]> {
        match self {
            Self::Bytes(check) if at == 0 && length <= u64::from(check.length) => Some(check.bytes),
            Self::Bytes(_) => None,
            Self::Zeros => Some([0; 2]),
        }
    }

    fn is_zero(&self, _length: u64) -> Option<bool> {
        Some(matches!(self, Self::Zeros))
    }
}

/// One request, in words and as it is asked.
struct Tried {
    what: &'static str,
    request: Request,
    carried: Option<Carried>,
}

impl Tried {
    const fn new(what: &'static str, operation: Operation, offset: u64, length: u64) -> Self {
        Self { what, request: Request { operation, offset, length }, carried: None }
    }

    /// A write over the place of a check.
    const fn write(what: &'static str, check: &Check, carried: Carried) -> Self {
        let request =
            Request { operation: Operation::Write, offset: check.offset, length: check.length as u64 };
        Self { what, request, carried: Some(carried) }
    }
}

/// What is asked of a device of this rule and size.
fn tried(rule: &Rule, size: u64) -> Vec<Tried> {
    let first = |kind: CheckKind| rule.checks().iter().find(|check| check.kind == kind as u32).copied();
    let mut tried = vec![Tried::new("open it for writing", Operation::Open, 0, 0)];
    if let Some(check) = first(CheckKind::Magic) {
        tried.push(Tried::write("write zeros over the magic", &check, Carried::Zeros));
    }
    if let Some(check) = first(CheckKind::Uuid) {
        tried.push(Tried::write("write zeros over the UUID", &check, Carried::Zeros));
    }
    if let Some(check) = first(CheckKind::Foreign) {
        tried.push(Tried::write("write the magic of another format", &check, Carried::Bytes(check)));
    }
    tried.push(Tried::new("discard or zero all of it", Operation::Erase, 0, size));
    tried.push(Tried::new("map it to store into it", Operation::Map, 0, 0));
    tried
}

impl Reconciler {
    /// What a program of this name might try on a volume, by the device that leads to it.
    pub(super) fn simulate(&self, id: &VolumeId, program: &str) -> Result<Simulation, Failure> {
        let device = self.device_of(id)?;
        let (dev, size) = (device.dev, device.size);
        let unruled =
            || Failure::new(FailureKind::Failed, format!("{id} has no rule yet: try again in a moment"));
        let (rule, windows) = self.rule_for(dev).ok_or_else(unruled)?;
        let record = self.records.get(id).ok_or_else(unruled)?;
        let name = text_of(&comm(program));
        let class = self.class_of(&name);
        let outcomes = tried(&rule, size).into_iter().map(|mut tried| {
            let mut judged = (rule, record);
            let Request { operation, offset, length } = tried.request;
            if matches!(operation, Operation::Write | Operation::Erase) && windows.count > 0 {
                match windows.place(offset, length) {
                    Placement::Own => {}
                    Placement::Across => tried.request.operation = Operation::Across,
                    Placement::In { dev, offset } => match self.ruled_at(Dev::from_kernel(dev)) {
                        Some(upper) => (judged, tried.request.offset) = (upper, offset),
                        None => tried.request.operation = Operation::Across,
                    },
                }
            }
            self.judged(&judged.0, judged.1, class, &tried)
        });
        Ok(Simulation {
            volume: id.to_string(),
            state: record.state.name().to_owned(),
            by_name_alone: class.grammar() != 0,
            program: name,
            policy: self.policy_of(id).cloned(),
            outcomes: outcomes.collect(),
        })
    }

    /// What the kernel knows a program as.
    fn class_of(&self, name: &str) -> Class {
        let trusted = self.settings.trusted.iter().any(|trusted| comm(trusted) == comm(name));
        let class = class_of(name);
        if trusted { class.with(Class::TRUSTED) } else { class }
    }

    fn ruled_at(&self, dev: Dev) -> Option<(Rule, &Volume)> {
        Some((self.rule_for(dev)?.0, self.records.get(self.graph.id(dev)?)?))
    }

    /// One request, judged under a rule.
    fn judged(&self, rule: &Rule, record: &Volume, class: Class, tried: &Tried) -> Simulated {
        let now = u64::try_from(since_boot().as_nanos()).unwrap_or(u64::MAX);
        let owner = self
            .enforcer
            .owner(Dev::from_kernel(rule.lock_dev))
            .filter(|owner| owner.diskseq == rule.lock_diskseq)
            .map_or(Owner::None, |owner| Owner::Another { mounted: owner.mounted != 0 });
        let caller = Beginner {
            class,
            owner,
            claim_lasts: self.enforcer.lease().covers(rule.claim, now),
            permit_lasts: rule.permit_lasts(now),
        };
        let Tried { what, request, carried } = tried;
        let verdict = match carried {
            Some(carried) => decide(rule, request, &caller, carried),
            None => decide(rule, request, &caller, &NoContent),
        };
        let (outcome, reason) = match verdict {
            Verdict::Begin | Verdict::Fill | Verdict::Raw => (Outcome::BeginsFormat, None),
            Verdict::Allow | Verdict::Relabel | Verdict::OwnerWipe | Verdict::Later => {
                (Outcome::Allowed, None)
            }
            Verdict::Deny(reason) => (Outcome::Refused, Some(reason)),
            Verdict::WouldDeny(reason) => (Outcome::WouldBeRefused, Some(reason)),
        };
        Simulated {
            what: (*what).to_owned(),
            operation: request.operation.name().to_owned(),
            offset: request.offset,
            length: request.length,
            outcome,
            reason: reason.map(|reason| reason.name().to_owned()),
            way_out: reason.map(|reason| way_out::of(Some(reason), Some(request.operation), Some(record))),
        }
    }
}
