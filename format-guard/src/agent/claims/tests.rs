use std::{
    collections::HashSet,
    sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
};

use tokio::time::timeout;

use super::*;
use crate::record::shared::{Claim, VERSION, ValueError};

/// A store in memory, whose leases end when the test says so.
#[derive(Default)]
struct Memory {
    volumes: Mutex<HashMap<VolumeId, Seen>>,
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

    fn seen(&self, id: &str) -> Seen {
        self.volumes.lock().expect("no panic").get(&id.into()).cloned().unwrap_or_default()
    }

    fn end(&self, lease: u64) {
        self.leases.lock().expect("no panic").remove(&lease);
        for seen in self.volumes.lock().expect("no panic").values_mut() {
            if seen.claim.as_ref().is_some_and(|claim| claim.lease == lease) {
                seen.claim = None;
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

    async fn look(&self, ids: &[VolumeId]) -> Result<Vec<Result<Seen, ValueError>>, SharedError> {
        self.0.is_here()?;
        let read = |id: &VolumeId| match self.0.seen(id.as_str()) {
            seen if seen.shared.as_ref().is_some_and(|shared| shared.version != VERSION) => {
                Err(ValueError::Moved)
            }
            seen => Ok(seen),
        };
        Ok(ids.iter().map(read).collect())
    }

    async fn write(
        &self,
        id: &VolumeId,
        seen: &Seen,
        write: &Write,
        node: &str,
    ) -> Result<Option<i64>, SharedError> {
        self.0.is_here()?;
        let mut volumes = self.0.volumes.lock().expect("no panic");
        let known = volumes.entry(id.clone()).or_default();
        if known != seen {
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

/// A claimant, and the test in the reconciler's place.
struct Node {
    wishes: Wishes,
    inputs: mpsc::Receiver<Input>,
    known: Vec<(VolumeId, Format)>,
}

impl Node {
    fn start(memory: &Arc<Memory>, name: &str, lease: Option<u64>) -> Self {
        let (sender, inputs) = mpsc::channel(64);
        let (claimant, wishes) = Claimant::new(Connected(memory.clone()), name.to_owned(), 60, lease, sender);
        tokio::spawn(claimant.run());
        Self { wishes, inputs, known: Vec::new() }
    }

    /// What is told next, of what the test looks at.
    async fn next(&mut self) -> Told {
        loop {
            let input = timeout(Duration::from_mins(1), self.inputs.recv()).await.expect("told in time");
            match input {
                Some(Input::Told(Told::Known { reply, .. })) => {
                    let formats = std::mem::take(&mut self.known);
                    let _ = reply.send(Known { formats, more_after: None });
                }
                Some(Input::Told(told)) => return told,
                _ => panic!("nothing else is told"),
            }
        }
    }

    /// Where it stands next with a volume; acknowledged with what it wants then.
    async fn stands(&mut self, then: Option<Wish>) -> Standing {
        for _ in 0..1000 {
            if let Told::Standing { id, standing, number, .. } = self.next().await {
                if standing == Standing::Watching {
                    self.wishes.acknowledge(number);
                    continue;
                }
                if let Some(wish) = then {
                    self.wishes.set(&id, wish, false);
                }
                self.wishes.acknowledge(number);
                return standing;
            }
        }
        panic!("nothing is told of where {} stands", self.wishes.node());
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
    a.wishes.set(&ID.into(), Wish::Claim { doubted: false }, false);
    assert_eq!(a.stands(None).await, Standing::Claimed { doubted: false });
    let mut b = Node::start(&memory, "b", None);
    b.wishes.set(&ID.into(), Wish::Claim { doubted: false }, false);
    assert_eq!(b.stands(None).await, Standing::Waiting { node: "a".to_owned() });
    a.wishes.set(&ID.into(), Wish::Formatting, false);
    a.stands(Some(Wish::Formatted(format(1, "a")))).await;
    assert_eq!(b.stands(Some(Wish::Formatted(format(1, "a")))).await, Standing::Formatted(format(1, "a")));
    assert_eq!(memory.seen(ID).claim, None);
}

#[tokio::test(start_paused = true)]
async fn a_lease_goes_on_with_the_next_agent_and_one_that_has_ended_is_told() {
    let memory = Arc::new(Memory::default());
    let mut first = Node::start(&memory, "a", None);
    first.wishes.set(&ID.into(), Wish::Claim { doubted: false }, false);
    assert!(matches!(first.next().await, Told::Lease { id: 100, .. }));
    assert_eq!(first.stands(None).await, Standing::Claimed { doubted: false });
    drop(first);
    let mut second = Node::start(&memory, "a", Some(100));
    second.wishes.set(&ID.into(), Wish::Claim { doubted: false }, false);
    assert!(matches!(second.next().await, Told::Lease { id: 100, .. }));
    assert_eq!(second.stands(None).await, Standing::Claimed { doubted: false });
    memory.end(100);
    loop {
        if let Told::Lease { id, .. } = second.next().await
            && id != 100
        {
            break;
        }
    }
    second.wishes.set(&ID.into(), Wish::Claim { doubted: false }, true);
    assert_eq!(second.stands(None).await, Standing::Claimed { doubted: true });
}

#[tokio::test(start_paused = true)]
async fn what_is_known_is_told_whenever_the_store_answers_again() {
    let memory = Arc::new(Memory::default());
    memory.away.store(true, Ordering::SeqCst);
    let mut node = Node::start(&memory, "a", None);
    assert!(matches!(node.next().await, Told::Away(_)));
    let (reply, answer) = oneshot::channel();
    let permit = Permit { reason: "x".to_owned(), uid: 0, at: 0, expires: i64::MAX, used: false };
    node.wishes.command(Command::Permit { id: ID.into(), permit: permit.clone(), reply });
    assert!(
        answer.await.expect("an answer").is_err_and(|failure| failure.error.contains("nothing was done"))
    );
    node.known = vec![(ID.into(), format(7, "a"))];
    memory.away.store(false, Ordering::SeqCst);
    while !matches!(node.next().await, Told::Near) {}
    // The question after them is answered once they are written.
    let (reply, _) = oneshot::channel();
    node.wishes.command(Command::Permit { id: ID.into(), permit, reply });
    while !matches!(node.next().await, Told::Done(Command::Permit { .. })) {}
    assert_eq!(memory.seen(ID).shared.and_then(|shared| shared.format), Some(format(7, "a")));
    // A store that was put back to an older state.
    memory.volumes.lock().expect("no panic").clear();
    memory.away.store(true, Ordering::SeqCst);
    while !matches!(node.next().await, Told::Away(_)) {}
    node.known = vec![(ID.into(), format(7, "a"))];
    memory.away.store(false, Ordering::SeqCst);
    while memory.seen(ID).shared.is_none() {
        if let Ok(Some(Input::Told(Told::Known { reply, .. }))) =
            timeout(Duration::from_millis(100), node.inputs.recv()).await
        {
            let _ = reply.send(Known { formats: std::mem::take(&mut node.known), more_after: None });
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
    old.wishes.set(&OLDER.into(), Wish::Claim { doubted: false }, false);
    assert_eq!(old.stands(None).await, Standing::Claimed { doubted: false });
    let mut new = Node::start(&memory, "new", None);
    new.wishes.name(&OWN.into(), vec![OLDER.into()]);
    new.wishes.set(&OWN.into(), Wish::Claim { doubted: false }, false);
    assert_eq!(new.stands(None).await, Standing::Waiting { node: "old".to_owned() });
    // It formats it, and gives the claim up by that.
    old.wishes.set(&OLDER.into(), Wish::Formatting, false);
    old.stands(Some(Wish::Formatted(format(1, "old")))).await;
    assert_eq!(new.stands(None).await, Standing::Formatted(format(1, "old")));
    assert_eq!(memory.seen(OWN).shared.and_then(|shared| shared.format), Some(format(1, "old")));
    assert_eq!(memory.seen(OLDER).shared.map(|shared| shared.version), Some(MOVED));
    // The next volume that is that unit is another one.
    let mut third = Node::start(&memory, "third", None);
    third.wishes.name(&"scsi:naa.6001405a".into(), vec![OLDER.into()]);
    third.wishes.set(&"scsi:naa.6001405a".into(), Wish::Claim { doubted: false }, false);
    assert_eq!(third.stands(None).await, Standing::Claimed { doubted: false });
}

#[tokio::test(start_paused = true)]
async fn a_permit_is_claimed_where_the_volume_is_and_by_one_node() {
    let memory = Arc::new(Memory::default());
    let wish = Wish::Formatted(format(1, "a"));
    let (mut a, mut b) = (Node::start(&memory, "a", None), Node::start(&memory, "b", None));
    for node in [&a, &b] {
        node.wishes.set(&ID.into(), wish.clone(), false);
    }
    while !matches!(a.next().await, Told::Near) {}
    let permit = Permit { reason: "x".to_owned(), uid: 0, at: 0, expires: i64::MAX, used: false };
    let (reply, _) = oneshot::channel();
    a.wishes.command(Command::Permit { id: ID.into(), permit: permit.clone(), reply });
    let first = tokio::select! {
        standing = a.stands(Some(Wish::Permitted)) => standing,
        standing = b.stands(Some(Wish::Permitted)) => standing,
    };
    assert_eq!(first, Standing::Permitted(permit));
    let claim = memory.seen(ID).claim.expect("claimed");
    let node = if claim.node == "a" { &mut a } else { &mut b };
    node.wishes.set(&ID.into(), Wish::Formatting, false);
    node.stands(None).await;
    assert_eq!(memory.seen(ID).shared.and_then(|shared| shared.permit), None, "used by its beginning");
    node.wishes.set(&ID.into(), Wish::Formatted(format(2, &claim.node)), false);
    let given_up = async {
        while memory.seen(ID).claim.is_some() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_mins(1), given_up).await.expect("in time");
    assert_eq!(
        memory.seen(ID).shared.and_then(|shared| shared.format).map(|format| format.generation),
        Some(2)
    );
}

#[test]
fn a_lease_is_counted_from_its_question_with_a_margin() {
    let end = end_of(Duration::from_secs(100), Granted { id: 1, seconds: 60 });
    assert_eq!(end, 145_000_000_000);
}
