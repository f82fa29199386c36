#[cfg(feature = "kubernetes")]
mod api_server;

use std::{
    collections::HashSet,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
};

use tokio::{sync::Notify, time::timeout};

use super::*;
use crate::record::{
    Permit,
    shared::{Claim, Format, VERSION, ValueError},
};

/// A store in memory, whose leases end when the test says so.
#[derive(Default)]
struct Memory {
    volumes: Mutex<HashMap<VolumeId, Observed>>,
    leases: Mutex<HashSet<u64>>,
    revision: AtomicI64,
    granted: AtomicU64,
    away: AtomicBool,
    changed: Notify,
}

impl Memory {
    fn is_here(&self) -> Result<(), SharedError> {
        if self.away.load(Ordering::SeqCst) {
            return Err(SharedError::Failed { endpoint: "memory".to_owned(), reason: "away".to_owned() });
        }
        Ok(())
    }

    fn observed(&self, id: &str) -> Observed {
        self.volumes.lock().expect("no panic").get(&id.into()).cloned().unwrap_or_default()
    }

    fn end(&self, lease: u64) {
        self.leases.lock().expect("no panic").remove(&lease);
        for observed in self.volumes.lock().expect("no panic").values_mut() {
            if observed.claim.as_ref().is_some_and(|claim| claim.lease == lease) {
                observed.claim = None;
            }
        }
        self.changed.notify_waiters();
    }
}

#[derive(Clone)]
struct Connected(Arc<Memory>);

impl Connect for Connected {
    type Session = Self;

    async fn connect(&mut self) -> Result<Self, SharedError> {
        self.0.is_here().map(|()| self.clone())
    }
}

impl Session for Connected {
    async fn grant(&self, seconds: u64) -> Result<Granted, SharedError> {
        self.0.is_here()?;
        let id = 100 + self.0.granted.fetch_add(1, Ordering::SeqCst);
        self.0.leases.lock().expect("no panic").insert(id);
        Ok(Granted { id, seconds })
    }

    async fn keep_alive(&self, lease: u64) -> Result<Granted, SharedError> {
        self.0.is_here()?;
        let lasts = self.0.leases.lock().expect("no panic").contains(&lease);
        if lasts { Ok(Granted { id: lease, seconds: 60 }) } else { Err(SharedError::LeaseEnded) }
    }

    async fn look(&self, ids: &[VolumeId]) -> Result<Vec<Result<Observed, ValueError>>, SharedError> {
        self.0.is_here()?;
        let read = |id: &VolumeId| match self.0.observed(id.as_str()) {
            observed if observed.shared.as_ref().is_some_and(|shared| shared.version != VERSION) => {
                Err(ValueError::Moved)
            }
            observed => Ok(observed),
        };
        Ok(ids.iter().map(read).collect())
    }

    async fn write(
        &self,
        id: &VolumeId,
        observed: &Observed,
        write: &Write,
        node: &str,
    ) -> Result<Option<i64>, SharedError> {
        self.0.is_here()?;
        let mut volumes = self.0.volumes.lock().expect("no panic");
        let known = volumes.entry(id.clone()).or_default();
        if known != observed {
            return Ok(None);
        }
        let revision = 1 + self.0.revision.fetch_add(1, Ordering::SeqCst);
        known.shared.clone_from(&write.shared);
        known.revision = if write.shared.is_some() { revision } else { 0 };
        match write.claim {
            ClaimChange::Keep => {}
            ClaimChange::Drop => known.claim = None,
            ClaimChange::Take(lease) if self.0.leases.lock().expect("no panic").contains(&lease) => {
                known.claim = Some(Claim { lease, node: node.to_owned(), revision });
            }
            ClaimChange::Take(_) => return Err(SharedError::LeaseEnded),
        }
        self.0.changed.notify_waiters();
        Ok(Some(revision))
    }

    async fn watch(
        self: Arc<Self>,
        mut wanted: watch::Receiver<BTreeSet<VolumeId>>,
        changed: mpsc::Sender<VolumeId>,
    ) -> SharedError {
        loop {
            let ids = wanted.borrow_and_update().clone();
            for id in ids {
                let _ = changed.send(id).await;
            }
            let told = self.0.changed.notified();
            tokio::select! { () = told => {}, _ = wanted.changed() => {}, () = sleep(Duration::from_secs(1)) => {} }
            if let Err(error) = self.0.is_here() {
                return error;
            }
        }
    }
}

/// A claim worker, and the test in the reconciler's place.
struct Node {
    desired_claims: DesiredClaims,
    inputs: mpsc::Receiver<Input>,
    known: Vec<(VolumeId, Format)>,
}

impl Node {
    fn start(memory: &Arc<Memory>, name: &str, lease: Option<u64>) -> Self {
        let (sender, inputs) = mpsc::channel(64);
        let (claim_worker, desired_claims) =
            ClaimWorker::new(Connected(memory.clone()), name.to_owned(), 60, lease, sender);
        tokio::spawn(claim_worker.run());
        Self { desired_claims, inputs, known: Vec::new() }
    }

    /// What is told next, of what the test looks at.
    async fn next(&mut self) -> StoreUpdate {
        loop {
            let input = timeout(Duration::from_mins(1), self.inputs.recv()).await.expect("told in time");
            match input {
                Some(Input::Store(StoreUpdate::KnownFormats { reply, .. })) => {
                    let formats = std::mem::take(&mut self.known);
                    let _ = reply.send(KnownFormats { formats, more_after: None });
                }
                Some(Input::Store(told)) => return told,
                _ => panic!("nothing else is told"),
            }
        }
    }

    /// Where it stands next with a volume; acknowledged with what it wants then.
    async fn progress(&mut self, then: Option<Desired>) -> ClaimStatus {
        for _ in 0..1000 {
            if let StoreUpdate::ClaimStatus { id, status, number, .. } = self.next().await {
                if status == ClaimStatus::Watching {
                    self.desired_claims.acknowledge(number);
                    continue;
                }
                if let Some(desired) = then {
                    self.desired_claims.set(&id, desired, false);
                }
                self.desired_claims.acknowledge(number);
                return status;
            }
        }
        panic!("nothing is told of where {} stands", self.desired_claims.node());
    }
}

const ID: &str = "iscsi:t,lun=1";

fn format(generation: u64, node: &str) -> Format {
    Format { generation, content: None, marks: Vec::new(), node: node.to_owned(), at: 0 }
}

#[tokio::test(start_paused = true)]
async fn one_of_two_nodes_claims_and_the_other_is_told_of_the_format() {
    let memory = Arc::new(Memory::default());
    let mut a = Node::start(&memory, "a", None);
    a.desired_claims.set(&ID.into(), Desired::Claim { doubted: false }, false);
    assert_eq!(a.progress(None).await, ClaimStatus::Claimed { doubted: false });
    let mut b = Node::start(&memory, "b", None);
    b.desired_claims.set(&ID.into(), Desired::Claim { doubted: false }, false);
    assert_eq!(b.progress(None).await, ClaimStatus::Waiting { node: "a".to_owned() });
    a.desired_claims.set(&ID.into(), Desired::Formatting, false);
    a.progress(Some(Desired::Formatted(format(1, "a")))).await;
    assert_eq!(
        b.progress(Some(Desired::Formatted(format(1, "a")))).await,
        ClaimStatus::Formatted(format(1, "a"))
    );
    assert_eq!(memory.observed(ID).claim, None);
}

#[tokio::test(start_paused = true)]
async fn a_lease_goes_on_with_the_next_agent_and_one_that_has_ended_is_told() {
    let memory = Arc::new(Memory::default());
    let mut first = Node::start(&memory, "a", None);
    first.desired_claims.set(&ID.into(), Desired::Claim { doubted: false }, false);
    assert!(matches!(first.next().await, StoreUpdate::Lease { id: 100, .. }));
    assert_eq!(first.progress(None).await, ClaimStatus::Claimed { doubted: false });
    drop(first);
    let mut second = Node::start(&memory, "a", Some(100));
    second.desired_claims.set(&ID.into(), Desired::Claim { doubted: false }, false);
    assert!(matches!(second.next().await, StoreUpdate::Lease { id: 100, .. }));
    assert_eq!(second.progress(None).await, ClaimStatus::Claimed { doubted: false });
    memory.end(100);
    loop {
        if let StoreUpdate::Lease { id, .. } = second.next().await
            && id != 100
        {
            break;
        }
    }
    second.desired_claims.set(&ID.into(), Desired::Claim { doubted: false }, true);
    assert_eq!(second.progress(None).await, ClaimStatus::Claimed { doubted: true });
}

#[tokio::test(start_paused = true)]
async fn what_is_known_is_told_whenever_the_store_answers_again() {
    let memory = Arc::new(Memory::default());
    memory.away.store(true, Ordering::SeqCst);
    let mut node = Node::start(&memory, "a", None);
    assert!(matches!(node.next().await, StoreUpdate::Disconnected(_)));
    let (reply, answer) = oneshot::channel();
    let permit = Permit { reason: "x".to_owned(), uid: 0, at: 0, expires: i64::MAX, used: false };
    node.desired_claims.command(OperatorCommand::Permit { id: ID.into(), permit: permit.clone(), reply });
    assert!(
        answer.await.expect("an answer").is_err_and(|failure| failure.error.contains("nothing was done"))
    );
    node.known = vec![(ID.into(), format(7, "a"))];
    memory.away.store(false, Ordering::SeqCst);
    while !matches!(node.next().await, StoreUpdate::Connected) {}
    // The question after them is answered once they are written.
    let (reply, _) = oneshot::channel();
    node.desired_claims.command(OperatorCommand::Permit { id: ID.into(), permit, reply });
    while !matches!(node.next().await, StoreUpdate::Done(OperatorCommand::Permit { .. })) {}
    assert_eq!(memory.observed(ID).shared.and_then(|shared| shared.format), Some(format(7, "a")));
    // A store that was put back to an older state.
    memory.volumes.lock().expect("no panic").clear();
    memory.away.store(true, Ordering::SeqCst);
    while !matches!(node.next().await, StoreUpdate::Disconnected(_)) {}
    node.known = vec![(ID.into(), format(7, "a"))];
    memory.away.store(false, Ordering::SeqCst);
    while memory.observed(ID).shared.is_none() {
        if let Ok(Some(Input::Store(StoreUpdate::KnownFormats { reply, .. }))) =
            timeout(Duration::from_millis(100), node.inputs.recv()).await
        {
            let _ = reply.send(KnownFormats { formats: std::mem::take(&mut node.known), more_after: None });
        }
    }
}

/// A node of an earlier version goes by the target and the unit.
#[tokio::test(start_paused = true)]
async fn what_is_known_by_an_older_name_holds_and_is_taken_over_once() {
    const OLDER: &str = "iscsi:t,lun=1";
    const OWN: &str = "scsi:naa.6001405f";
    let memory = Arc::new(Memory::default());
    let mut old = Node::start(&memory, "old", None);
    old.desired_claims.set(&OLDER.into(), Desired::Claim { doubted: false }, false);
    assert_eq!(old.progress(None).await, ClaimStatus::Claimed { doubted: false });
    let mut new = Node::start(&memory, "new", None);
    new.desired_claims.name(&OWN.into(), vec![OLDER.into()]);
    new.desired_claims.set(&OWN.into(), Desired::Claim { doubted: false }, false);
    assert_eq!(new.progress(None).await, ClaimStatus::Waiting { node: "old".to_owned() });
    // It formats it, and gives the claim up by that.
    old.desired_claims.set(&OLDER.into(), Desired::Formatting, false);
    old.progress(Some(Desired::Formatted(format(1, "old")))).await;
    assert_eq!(new.progress(None).await, ClaimStatus::Formatted(format(1, "old")));
    assert_eq!(memory.observed(OWN).shared.and_then(|shared| shared.format), Some(format(1, "old")));
    assert_eq!(memory.observed(OLDER).shared.map(|shared| shared.version), Some(MOVED));
    // The next volume that is that unit is another one.
    let mut third = Node::start(&memory, "third", None);
    third.desired_claims.name(&"scsi:naa.6001405a".into(), vec![OLDER.into()]);
    third.desired_claims.set(&"scsi:naa.6001405a".into(), Desired::Claim { doubted: false }, false);
    assert_eq!(third.progress(None).await, ClaimStatus::Claimed { doubted: false });
}

#[tokio::test(start_paused = true)]
async fn a_permit_is_claimed_where_the_volume_is_and_by_one_node() {
    let memory = Arc::new(Memory::default());
    let desired = Desired::Formatted(format(1, "a"));
    let (mut a, mut b) = (Node::start(&memory, "a", None), Node::start(&memory, "b", None));
    for node in [&a, &b] {
        node.desired_claims.set(&ID.into(), desired.clone(), false);
    }
    while !matches!(a.next().await, StoreUpdate::Connected) {}
    let permit = Permit { reason: "x".to_owned(), uid: 0, at: 0, expires: i64::MAX, used: false };
    let (reply, _) = oneshot::channel();
    a.desired_claims.command(OperatorCommand::Permit { id: ID.into(), permit: permit.clone(), reply });
    let first = tokio::select! {
        status = a.progress(Some(Desired::Permitted)) => status,
        status = b.progress(Some(Desired::Permitted)) => status,
    };
    assert_eq!(first, ClaimStatus::Permitted(permit));
    let claim = memory.observed(ID).claim.expect("claimed");
    let node = if claim.node == "a" { &mut a } else { &mut b };
    node.desired_claims.set(&ID.into(), Desired::Formatting, false);
    node.progress(None).await;
    assert_eq!(memory.observed(ID).shared.and_then(|shared| shared.permit), None, "used by its beginning");
    node.desired_claims.set(&ID.into(), Desired::Formatted(format(2, &claim.node)), false);
    let given_up = async {
        while memory.observed(ID).claim.is_some() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_mins(1), given_up).await.expect("in time");
    assert_eq!(
        memory.observed(ID).shared.and_then(|shared| shared.format).map(|format| format.generation),
        Some(2)
    );
}

#[test]
fn a_lease_is_counted_from_its_question_with_a_margin() {
    let end = end_of(Duration::from_secs(100), Granted { id: 1, seconds: 60 });
    assert_eq!(end, 145_000_000_000);
}
