//! Some nodes that share one volume and the record of it.
//!
//! A node arms a blank volume for as long as its claim is sure to last: the claim is kept under a lease of
//! the cluster's store, and the kernel's rule ends by the node's own clock before the store can have given
//! the claim to another. Time passes in steps; a node that is paused is one that does nothing meanwhile.

use stateright::{Model, Property};

/// Steps of time that the store keeps a lease after it was last renewed.
const TTL: u8 = 3;
/// How much earlier a node stops than its lease lasts: its clock may be as much slower than the store's.
const MARGIN: u8 = 1;
/// Clean probes in a row that arm a volume.
const CLEAN: u8 = 2;

/// A guard of the protocol that is broken on purpose, to see the checker find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClusterBreak {
    /// The kernel's rule lasts as long as the agent does not take it away.
    NoEnd,
    /// A lease is counted from its answer, not from when it was asked for.
    CountsFromTheAnswer,
    /// Clocks are taken to go alike.
    NoMargin,
    /// A blank volume is armed without a claim.
    NoClaim,
    /// A claim is made without a look at the record.
    ClaimsBlindly,
    /// A new lease is taken for the old one, and the claim for its own.
    KeepsTheClaim,
    /// Probes from before the claim count.
    ProbesBeforeTheClaim,
}

/// Some nodes, and how often what can fail does.
#[derive(Clone, Copy, Debug)]
pub struct Cluster {
    /// How many.
    pub nodes: usize,
    /// How long it is looked at, in steps of time.
    pub horizon: u8,
    /// How often an agent is killed.
    pub kills: u8,
    /// A guard that is broken.
    pub broken: Option<ClusterBreak>,
}

/// What the store has of the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Shared {
    /// Nothing.
    Absent,
    /// A node claimed it, and what came of that is not known.
    Claimed {
        by: usize,
    },
    Formatted,
}

/// A lease as its node knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Asked {
    /// The question is on its way.
    At(u8),
    /// The store has renewed the lease, or given a new one, under which there is no claim yet; the answer is
    /// on its way.
    Renewed { at: u8, anew: bool },
}

/// Who formats, as the kernel of a node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Formatter {
    None,
    Writing,
    /// It ended after it had written all of its format.
    Done,
    /// A write was refused.
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Node {
    asked: Option<Asked>,
    /// Until when the claim is sure to last, by this node's clock, if it has a lease.
    sure_until: Option<u8>,
    /// The agent has the claim.
    claim: bool,
    clean: u8,
    /// The kernel lets a formatter through until then.
    armed_until: Option<u8>,
    formatter: Formatter,
    /// The agent has recorded a format, on this node's own disk.
    knows: bool,
    told_store: bool,
}

/// A state of everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Moment {
    now: u8,
    shared: Shared,
    /// Who has the claim.
    claim: Option<usize>,
    /// Until when the store keeps each node's lease.
    leases: Vec<Option<u8>>,
    nodes: Vec<Node>,
    /// Whose bytes lie on the volume, and whether they are a whole format.
    disk: Option<(usize, bool)>,
    kills: u8,
    /// A node wrote over another one's format.
    lost: bool,
    /// The shared record has been Formatted.
    known: bool,
    /// A claim was taken over from a node that was gone.
    taken_over: bool,
}

/// A step of one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterAction {
    /// Time passes.
    Tick,
    /// A node asks for its lease, or to have it renewed.
    Ask(usize),
    /// The store renews it.
    Renew(usize),
    /// The node gets the answer.
    Answer(usize),
    /// The store lets a lease end, and the claim under it.
    Expire(usize),
    /// A node claims the volume, in one transaction.
    Claim(usize),
    /// A probe reads what is there.
    Probe(usize),
    /// A probe reads zeros, whatever is there.
    FalseBlank(usize),
    /// The agent puts the rule, or lets it last longer.
    Arm(usize),
    /// The kernel lets a formatter through.
    Begin(usize),
    /// It writes the whole of its format.
    Write(usize),
    /// The agent records what the kernel tells of a format.
    Record(usize),
    /// The agent tells the store.
    Push(usize),
    /// A node reads the shared record.
    Read(usize),
    /// The agent is killed, and comes back.
    Kill(usize),
}

impl Cluster {
    fn is(self, broken: ClusterBreak) -> bool {
        self.broken == Some(broken)
    }

    /// Whether the kernel of a node still lets a formatter through, by a clock that is as late as it may be.
    fn is_armed(self, moment: &Moment, node: usize) -> bool {
        let end = moment.nodes[node].armed_until;
        end.is_some_and(|end| self.is(ClusterBreak::NoEnd) || moment.now.saturating_sub(MARGIN) < end)
    }

    fn margin(self) -> u8 {
        if self.is(ClusterBreak::NoMargin) { 0 } else { MARGIN }
    }

    fn actions_of(self, moment: &Moment, i: usize, actions: &mut Vec<ClusterAction>) {
        let node = &moment.nodes[i];
        match node.asked {
            None => actions.push(ClusterAction::Ask(i)),
            Some(Asked::At(_)) => actions.push(ClusterAction::Renew(i)),
            Some(Asked::Renewed { .. }) => actions.push(ClusterAction::Answer(i)),
        }
        if moment.leases[i].is_some_and(|end| moment.now >= end) {
            actions.push(ClusterAction::Expire(i));
        }
        let sure = node.sure_until.is_some_and(|end| moment.now < end);
        if sure && !node.claim && !node.knows {
            actions.push(ClusterAction::Claim(i));
        }
        if !node.knows && node.clean < CLEAN {
            actions.push(ClusterAction::Probe(i));
            // What may have been formatted by a node that is gone is trusted to read as what it is: nothing
            // else tells.
            if !moment.taken_over {
                actions.push(ClusterAction::FalseBlank(i));
            }
        }
        let claimed = (node.claim && sure) || self.is(ClusterBreak::NoClaim);
        if claimed && node.clean == CLEAN && !node.knows && node.armed_until != self.end(moment, i) {
            actions.push(ClusterAction::Arm(i));
        }
        if node.formatter == Formatter::None && self.is_armed(moment, i) {
            actions.push(ClusterAction::Begin(i));
        }
        if node.formatter == Formatter::Writing {
            actions.push(ClusterAction::Write(i));
        }
        if !node.knows && node.formatter == Formatter::Done {
            actions.push(ClusterAction::Record(i));
        }
        if node.knows && !node.told_store {
            actions.push(ClusterAction::Push(i));
        }
        if moment.shared == Shared::Formatted && !node.knows {
            actions.push(ClusterAction::Read(i));
        }
        if moment.kills < self.kills {
            actions.push(ClusterAction::Kill(i));
        }
    }

    /// Until when a rule that is put now lasts.
    fn end(self, moment: &Moment, node: usize) -> Option<u8> {
        let end = moment.nodes[node].sure_until;
        if self.is(ClusterBreak::NoClaim) { Some(u8::MAX) } else { end }
    }

    fn claim(self, moment: &mut Moment, i: usize) -> bool {
        // The store refuses what was asked under a lease that is gone.
        if moment.leases[i].is_none() || moment.claim.is_some_and(|by| by != i) {
            return false;
        }
        match moment.shared {
            Shared::Formatted if !self.is(ClusterBreak::ClaimsBlindly) => return false,
            Shared::Claimed { by } if by != i => moment.taken_over = true,
            _ => {}
        }
        moment.shared = Shared::Claimed { by: i };
        moment.claim = Some(i);
        moment.nodes[i].claim = true;
        if !self.is(ClusterBreak::ProbesBeforeTheClaim) {
            moment.nodes[i].clean = 0;
        }
        true
    }

    fn write(self, moment: &mut Moment, i: usize) {
        if !self.is_armed(moment, i) {
            moment.nodes[i].formatter = Formatter::Failed;
            return;
        }
        moment.lost |= moment.disk.is_some_and(|(by, whole)| whole && by != i);
        moment.disk = Some((i, true));
        moment.nodes[i].formatter = Formatter::Done;
    }

    fn step(self, moment: &mut Moment, action: ClusterAction) -> bool {
        let now = moment.now;
        match action {
            ClusterAction::Tick => moment.now += 1,
            ClusterAction::Ask(i) => moment.nodes[i].asked = Some(Asked::At(now)),
            ClusterAction::Renew(i) => {
                let Some(Asked::At(at)) = moment.nodes[i].asked else { return false };
                let anew = moment.leases[i].replace(now + TTL).is_none();
                moment.nodes[i].asked = Some(Asked::Renewed { at, anew });
            }
            ClusterAction::Answer(i) => {
                let Some(Asked::Renewed { at, anew }) = moment.nodes[i].asked.take() else { return false };
                // The claim went with the lease under which it was made.
                if anew && !self.is(ClusterBreak::KeepsTheClaim) {
                    moment.nodes[i].claim = false;
                }
                let from = if self.is(ClusterBreak::CountsFromTheAnswer) { now } else { at };
                moment.nodes[i].sure_until = Some(from + TTL - self.margin());
            }
            ClusterAction::Expire(i) => {
                moment.leases[i] = None;
                if moment.claim == Some(i) {
                    moment.claim = None;
                }
            }
            ClusterAction::Claim(i) => return self.claim(moment, i),
            ClusterAction::Probe(i) if moment.disk.is_some_and(|(_, whole)| whole) => {
                // What it holds is recorded as what is found on a volume always is.
                moment.nodes[i].knows = true;
                moment.nodes[i].armed_until = None;
            }
            ClusterAction::Probe(i) | ClusterAction::FalseBlank(i) => moment.nodes[i].clean += 1,
            ClusterAction::Arm(i) => moment.nodes[i].armed_until = self.end(moment, i),
            ClusterAction::Begin(i) => moment.nodes[i].formatter = Formatter::Writing,
            ClusterAction::Write(i) => self.write(moment, i),
            ClusterAction::Record(i) => {
                moment.nodes[i].knows = true;
                moment.nodes[i].armed_until = None;
            }
            ClusterAction::Push(i) => {
                moment.shared = Shared::Formatted;
                moment.nodes[i].told_store = true;
            }
            ClusterAction::Read(i) => {
                moment.nodes[i].knows = true;
                moment.nodes[i].told_store = true;
                moment.nodes[i].armed_until = None;
            }
            ClusterAction::Kill(i) => {
                moment.kills += 1;
                // The kernel's rule and its formatter stay, and what is on the node's disk.
                let kept = moment.nodes[i];
                moment.nodes[i] = Node {
                    armed_until: kept.armed_until,
                    formatter: kept.formatter,
                    knows: kept.knows,
                    told_store: kept.told_store,
                    ..NEW
                };
            }
        }
        moment.known |= moment.shared == Shared::Formatted;
        true
    }
}

const NEW: Node = Node {
    asked: None,
    sure_until: None,
    claim: false,
    clean: 0,
    armed_until: None,
    formatter: Formatter::None,
    knows: false,
    told_store: false,
};

impl Model for Cluster {
    type State = Moment;
    type Action = ClusterAction;

    fn init_states(&self) -> Vec<Moment> {
        vec![Moment {
            now: 0,
            shared: Shared::Absent,
            claim: None,
            leases: vec![None; self.nodes],
            nodes: vec![NEW; self.nodes],
            disk: None,
            kills: 0,
            lost: false,
            known: false,
            taken_over: false,
        }]
    }

    fn actions(&self, moment: &Moment, actions: &mut Vec<ClusterAction>) {
        if moment.now < self.horizon {
            actions.push(ClusterAction::Tick);
        }
        for node in 0..self.nodes {
            self.actions_of(moment, node, actions);
        }
    }

    fn next_state(&self, moment: &Moment, action: ClusterAction) -> Option<Moment> {
        let mut next = moment.clone();
        self.step(&mut next, action).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no node formats over another one's format", |_, moment: &Moment| !moment.lost),
            Property::always(
                "no two nodes let a formatter through at once",
                |model: &Self, moment: &Moment| {
                    (0..model.nodes).filter(|node| model.is_armed(moment, *node)).count() <= 1
                },
            ),
            Property::always(
                "no node is armed without a claim that lasts",
                |model: &Self, moment: &Moment| {
                    (0..model.nodes).all(|node| !model.is_armed(moment, node) || moment.claim == Some(node))
                },
            ),
            Property::always("no record of a format is lowered", |_, moment: &Moment| {
                !moment.known || moment.shared == Shared::Formatted
            }),
            Property::sometimes("a node formats and the store knows", |_, moment: &Moment| {
                moment.known && moment.disk.is_some()
            }),
            Property::sometimes("a claim is taken over and its node formats", |_, moment: &Moment| {
                moment.taken_over && moment.disk.is_some_and(|(by, _)| moment.claim == Some(by))
            }),
        ]
    }
}
