use proptest::prelude::*;

use super::*;

const NODES: [&str; 3] = ["a", "b", "c"];

fn format(generation: u64, node: &str) -> Format {
    Format { generation, content: None, marks: Vec::new(), node: node.to_owned(), at: 0 }
}

fn permit(expires: Seconds) -> Permit {
    Permit { reason: "new disk".to_owned(), uid: 0, at: 0, expires, used: false }
}

/// A store of one volume.
#[derive(Default)]
struct Store {
    observed: Observed,
    writes: i64,
}

impl Store {
    /// One transaction, by a node that saw this.
    fn write(&mut self, observed: &Observed, write: &Write, node: &str) -> bool {
        if (observed.revision, observed.claim.as_ref().map(|claim| claim.revision))
            != (self.observed.revision, self.observed.claim.as_ref().map(|claim| claim.revision))
        {
            return false;
        }
        self.writes += 1;
        self.observed.revision = if write.shared.is_some() { self.writes } else { 0 };
        self.observed.shared.clone_from(&write.shared);
        match write.claim {
            ClaimChange::Keep => {}
            ClaimChange::Drop => self.observed.claim = None,
            ClaimChange::Take(lease) => {
                self.observed.claim = Some(Claim { lease, node: node.to_owned(), revision: self.writes });
            }
        }
        true
    }

    /// Steps until nothing is to be written.
    fn settle(&mut self, desired: &Desired, node: &str, lease: u64) -> ClaimStatus {
        for _ in 0..8 {
            let observed = self.observed.clone();
            let (write, status) = plan(&observed, desired, NodeLease { node, lease: Some(lease) }, 100);
            match write {
                None => return status,
                Some(write) => assert!(self.write(&observed, &write, node)),
            }
        }
        panic!("{desired:?} never settles: {:?}", self.observed);
    }

    fn end_lease(&mut self, lease: u64) {
        if self.observed.claim.as_ref().is_some_and(|claim| claim.lease == lease) {
            self.observed.claim = None;
        }
    }
}

#[test]
fn ids_that_are_the_same_everywhere_are_shared_and_no_others() {
    for id in [
        "iscsi:iqn.2020-01.org:t,lun=1",
        "nvme:uuid.x",
        "scsi:naa.5000",
        "rbd:pool/image",
        "dm:LVM-abc",
        "dm:CRYPT-LUKS2-0123",
        "part:part:scsi:naa.5000#2048#63",
    ] {
        assert!(is_shared(&id.into()), "{id}");
    }
    for id in [
        "loop:1-2",
        "path:pci/0",
        "virtio:disk1",
        "md:0123",
        "dm:thing",
        "part:virtio:disk1#2048",
        "part:scsi:x",
        "",
    ] {
        assert!(!is_shared(&id.into()), "{id}");
    }
}

#[test]
fn a_blank_volume_is_claimed_by_one_node() {
    let mut store = Store::default();
    assert_eq!(
        store.settle(&Desired::Claim { doubted: false }, "a", 1),
        ClaimStatus::Claimed { doubted: false }
    );
    assert_eq!(
        store.settle(&Desired::Claim { doubted: false }, "b", 2),
        ClaimStatus::Waiting { node: "a".to_owned() }
    );
    // It let nobody through, and goes.
    store.settle(&Desired::Gone { clean: true, format: None }, "a", 1);
    assert_eq!(store.observed.shared, None, "nothing is left to be remembered");
    assert_eq!(
        store.settle(&Desired::Claim { doubted: false }, "b", 2),
        ClaimStatus::Claimed { doubted: false }
    );
    // It is gone without a word.
    store.end_lease(2);
    assert_eq!(
        store.settle(&Desired::Claim { doubted: false }, "a", 3),
        ClaimStatus::Claimed { doubted: true }
    );
    // Of one whose agent has lost its records one wonders, too: it may have formatted it.
    let mut lost = Store::default();
    lost.settle(&Desired::Claim { doubted: false }, "a", 1);
    assert_eq!(lost.settle(&Desired::Watch { doubted: true }, "a", 1), ClaimStatus::Watching);
    assert_eq!(
        lost.settle(&Desired::Claim { doubted: false }, "b", 2),
        ClaimStatus::Claimed { doubted: true }
    );
    // So is one that a node gives up which does not know what became of it.
    let unseen = Record::new("iscsi:t,lun=1".into(), String::new(), false, 0);
    let mut unseen = Volume::of(unseen);
    unseen.attachment.suspect_since = Some(1);
    assert_eq!(desired(&unseen, "a"), Desired::Watch { doubted: true });
    // And that is not forgotten by one more who asks.
    assert_eq!(
        store.settle(&Desired::Claim { doubted: false }, "a", 3),
        ClaimStatus::Claimed { doubted: true }
    );
}

#[test]
fn what_holds_a_format_is_claimed_by_nobody_and_the_newest_is_told() {
    let mut store = Store::default();
    store.settle(&Desired::Claim { doubted: false }, "a", 1);
    assert_eq!(store.settle(&Desired::Formatting, "a", 1), ClaimStatus::Claimed { doubted: false });
    assert_eq!(store.settle(&Desired::Formatted(format(1, "a")), "a", 1), ClaimStatus::Watching);
    assert_eq!(store.observed.claim, None);
    assert_eq!(
        store.settle(&Desired::Claim { doubted: false }, "b", 2),
        ClaimStatus::Formatted(format(1, "a"))
    );
    assert_eq!(store.settle(&Desired::Formatted(format(3, "b")), "b", 2), ClaimStatus::Watching);
    assert_eq!(
        store.settle(&Desired::Formatted(format(2, "a")), "a", 1),
        ClaimStatus::Formatted(format(3, "b"))
    );
    // One that was armed when another told of a format.
    let mut store = Store::default();
    store.settle(&Desired::Claim { doubted: false }, "a", 1);
    store.settle(&Desired::Formatted(format(1, "b")), "b", 2);
    assert_eq!(
        store.settle(&Desired::Claim { doubted: false }, "a", 1),
        ClaimStatus::Formatted(format(1, "b"))
    );
    assert!(store.observed.claim.is_some(), "its kernel is not told yet");
    assert_eq!(store.settle(&Desired::Formatted(format(1, "b")), "a", 1), ClaimStatus::Watching);
    assert_eq!(store.observed.claim, None, "its claim does not stand in the way of a permit");
}

#[test]
fn a_permit_is_one_format_on_one_node() {
    let given = || {
        let mut store = Store::default();
        store.settle(&Desired::Formatted(format(1, "a")), "a", 1);
        store.observed.shared.as_mut().expect("a record").permit = Some(permit(1000));
        let observed = store.observed.clone();
        let (write, _) = plan(
            &observed,
            &Desired::Formatted(format(1, "a")),
            NodeLease { node: "a", lease: Some(1) },
            100,
        );
        assert!(store.write(&observed, &write.expect("it claims"), "a"));
        assert_eq!(store.settle(&Desired::Permitted, "a", 1), ClaimStatus::Permitted(permit(1000)));
        store
    };
    let is_spent =
        |store: &Store| store.observed.shared.as_ref().is_some_and(|shared| shared.permit.is_none());
    // Used.
    let mut store = given();
    assert_eq!(store.settle(&Desired::Formatted(format(1, "b")), "b", 2), ClaimStatus::Watching);
    store.settle(&Desired::Formatting, "a", 1);
    assert!(is_spent(&store));
    store.settle(&Desired::Formatted(format(2, "a")), "a", 1);
    assert_eq!(store.observed.claim, None);
    // Used by a node that has lost its records since: what it made is the newest all the same.
    let mut store = given();
    store.settle(&Desired::Formatting, "a", 1);
    let marks = vec![Mark { offset: 0, kind: crate::volume::marks::MarkKind::Magic, bytes: vec![1] }];
    let made = Format { marks, ..format(1, "a") };
    let known = Format { generation: 2, ..made.clone() };
    assert_eq!(store.settle(&Desired::Formatted(made), "a", 1), ClaimStatus::Formatted(known.clone()));
    assert_eq!(store.observed.shared.as_ref().and_then(|shared| shared.format.clone()), Some(known));
    // Its node is gone, used or not.
    let mut store = given();
    store.end_lease(1);
    assert_eq!(store.settle(&Desired::Formatted(format(1, "b")), "b", 2), ClaimStatus::Watching);
    assert!(is_spent(&store) && store.observed.claim.is_none());
    assert_eq!(store.settle(&Desired::Permitted, "a", 1), ClaimStatus::PermitEnded);
    // Its node gave the volume away unused: another one gets it.
    let mut store = given();
    store.settle(&Desired::Gone { clean: true, format: Some(format(1, "a")) }, "a", 1);
    assert!(!is_spent(&store) && store.observed.claim.is_none());
    let mut store = given();
    store.settle(&Desired::Gone { clean: false, format: Some(format(1, "a")) }, "a", 1);
    assert!(is_spent(&store));
    // Nobody has part in it where the volume is exempt.
    let mut store = given();
    store.settle(&Desired::Gone { clean: true, format: None }, "a", 1);
    store.settle(&Desired::Nothing, "c", 3);
    assert_eq!(store.observed.claim, None);
    // Expired before anybody could use it.
    let mut store = given();
    store.settle(&Desired::Gone { clean: true, format: None }, "a", 1);
    store.observed.shared.as_mut().expect("a record").permit = Some(permit(100));
    store.settle(&Desired::Formatted(format(1, "b")), "b", 2);
    assert!(is_spent(&store) && store.observed.claim.is_none());
}

#[test]
fn a_value_that_no_agent_writes_is_not_understood() {
    let whole = Shared {
        format: Some(Format {
            content: Some(Content {
                types: vec!["ext4".to_owned()],
                uuid: None,
                label: Some("data".to_owned()),
            }),
            ..format(1, "a")
        }),
        ..Shared::default()
    };
    assert_eq!(Shared::read(&whole.value()), Ok(whole.clone()));
    let refused = |change: &dyn Fn(&mut Shared)| {
        let mut shared = whole.clone();
        change(&mut shared);
        Shared::read(&shared.value()).is_err()
    };
    assert!(refused(&|shared| shared.version = 2));
    assert!(refused(&|shared| shared.format.as_mut().expect("one").generation = 0));
    assert!(refused(&|shared| shared.format.as_mut().expect("one").node = "a\nb".to_owned()));
    assert!(refused(&|shared| {
        let mark = Mark { offset: 0, kind: crate::volume::marks::MarkKind::Magic, bytes: vec![0; 17] };
        shared.format.as_mut().expect("one").marks = vec![mark];
    }));
    assert!(refused(&|shared| shared.permit = Some(Permit { reason: "\x1b[2J".to_owned(), ..permit(1) })));
    assert!(Shared::read(b"").is_err() && Shared::read(b"{\"version\":1,\"more\":0}").is_err());
    assert!(Shared::read(&vec![b' '; MAX_VALUE + 1]).is_err());
}

/// What a node does on its own.
#[derive(Clone, Copy, Debug)]
enum Deed {
    /// One look and one transaction, of which the look may be older.
    Step {
        stale: bool,
    },
    Format,
    Die,
    /// It loses its records, and nothing else.
    Lose,
    Leave,
    Permit,
}

fn deeds() -> impl Strategy<Value = (usize, Deed)> {
    (
        0..NODES.len(),
        prop_oneof![
            8 => any::<bool>().prop_map(|stale| Deed::Step { stale }),
            2 => Just(Deed::Format),
            1 => Just(Deed::Die),
            1 => Just(Deed::Lose),
            1 => Just(Deed::Leave),
            1 => Just(Deed::Permit),
        ],
    )
}

/// A node: what it wants, what it saw, and its lease.
#[derive(Clone)]
struct Node {
    desired: Desired,
    lease: u64,
    armed: bool,
    observed: Observed,
}

proptest! {
    /// Whatever the nodes do in whatever order, and however old what they saw: one format at a time, a second
    /// one by a permit alone, and none is forgotten.
    #[test]
    fn nodes_never_format_one_volume_twice(deeds in prop::collection::vec(deeds(), 1..200)) {
        let mut store = Store::default();
        let (mut formats, mut permits, mut leases) = (0_u64, 0_u64, 0);
        let mut lease = || { leases += 1; leases };
        let mut nodes: Vec<Node> = NODES
            .iter()
            .map(|_| Node { desired: Desired::Claim { doubted: false }, lease: lease(), armed: false, observed: Observed::default() })
            .collect();
        for (number, deed) in deeds {
            let before = store.observed.shared.as_ref().and_then(|shared| shared.format.clone());
            let name = NODES[number];
            let node = &mut nodes[number];
            match deed {
                Deed::Step { stale } => {
                    if !stale {
                        node.observed = store.observed.clone();
                    }
                    let me = NodeLease { node: name, lease: Some(node.lease) };
                    let (write, status) = plan(&node.observed, &node.desired, me, 1);
                    match write {
                        Some(write) if store.write(&node.observed, &write, name) => {
                            node.desired = node.desired.clone().after(&write);
                        }
                        Some(_) => {}
                        // What is seen is as it is, or the kernel's rule would have ended.
                        None if node.observed == store.observed => match status {
                            // Who wonders looks for long enough; and who need not wonder would not.
                            ClaimStatus::Claimed { doubted: true } if formats > 0 => {
                                node.desired = Desired::Formatted(format(1, name));
                            }
                            ClaimStatus::Claimed { .. } | ClaimStatus::Permitted(_) => node.armed = true,
                            ClaimStatus::Formatted(known) => {
                                (node.armed, node.desired) = (false, Desired::Formatted(known));
                            }
                            ClaimStatus::PermitEnded => {
                                node.armed = false;
                                let known = store.observed.shared.as_ref().and_then(|shared| shared.format.clone());
                                node.desired = known.map_or(Desired::Claim { doubted: false }, Desired::Formatted);
                            }
                            ClaimStatus::Watching if node.desired == (Desired::Watch { doubted: true }) => {
                                node.desired = Desired::Claim { doubted: true };
                            }
                            ClaimStatus::Gone => {
                                (node.armed, node.desired) = (false, Desired::Claim { doubted: false });
                            }
                            _ => {}
                        },
                        None => {}
                    }
                }
                Deed::Format if node.armed => {
                    let had = store.observed.shared.as_ref().and_then(|shared| shared.format.clone());
                    formats += 1;
                    prop_assert!(formats <= 1 + permits, "{formats} formats by {permits} permits");
                    let generation = had.map_or(1, |had| had.generation + 1);
                    (node.armed, node.desired) = (false, Desired::Formatted(format(generation, name)));
                }
                Deed::Format => {}
                Deed::Die => {
                    // The kernel's rule has ended before the lease does; what was formatted is on the node's
                    // disk.
                    store.end_lease(node.lease);
                    (node.armed, node.lease) = (false, lease());
                    if !matches!(node.desired, Desired::Formatted(_)) {
                        node.desired = Desired::Claim { doubted: false };
                    }
                    // A probe finds what is there.
                    if formats > 0 && !matches!(node.desired, Desired::Formatted(_)) {
                        node.desired = Desired::Formatted(format(1, name));
                    }
                }
                // Its kernel's rule is put anew, and every read may lie.
                Deed::Lose => (node.armed, node.desired) = (false, Desired::Watch { doubted: true }),
                Deed::Leave if matches!(node.desired, Desired::Gone { .. }) => {}
                Deed::Leave => {
                    let format = match &node.desired {
                        Desired::Formatted(format) => Some(format.clone()),
                        _ => None,
                    };
                    let new = matches!(node.desired, Desired::Watch { doubted: true } | Desired::Claim { doubted: true });
                    let clean = format.is_none() && !new;
                    (node.desired, node.armed) = (Desired::Gone { clean, format }, false);
                }
                Deed::Permit => {
                    if let Some(shared) = &mut store.observed.shared
                        && shared.format.is_some()
                        && shared.permit.is_none()
                        && store.observed.claim.is_none()
                    {
                        shared.permit = Some(permit(1000));
                        permits += 1;
                        store.writes += 1;
                        store.observed.revision = store.writes;
                    }
                }
            }
            let after = store.observed.shared.as_ref().and_then(|shared| shared.format.clone());
            if let Some(before) = before {
                prop_assert!(after.is_some_and(|after| after.generation >= before.generation), "lowered");
            }
        }
    }
}

#[test]
fn a_value_that_was_taken_over_is_told_from_a_newer_agents() {
    let moved = Shared { version: MOVED, ..Shared::default() };
    assert_eq!(Shared::read(&moved.value()), Err(ValueError::Moved));
    let newer = Shared { version: MOVED + 1, ..Shared::default() };
    assert_eq!(Shared::read(&newer.value()), Err(ValueError::Version(MOVED + 1)));
}
