//! Against a real API server, with the rights and the rules that the chart gives agents.

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Result;
use format_guard_tests_kubernetes::{ApiServer, Asker, MANIFESTS, NAME, programs, volume};
use kube::config::{KubeConfigOptions, Kubeconfig};
use rustix::process::Signal;

use super::*;
use crate::record::shared::store::TRIES;

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";
const VOLUMES: &str = "/apis/format-guard.io/v1alpha1/guardedvolumes";
/// How long a Lease lasts here, in seconds.
const LEASE: u64 = 5;
const PATIENCE: Duration = Duration::from_mins(2);

fn started() -> ApiServer {
    let server = ApiServer::start(&programs().expect("the server")).expect("a server");
    let manifests = std::env::var_os(MANIFESTS).expect("the manifests");
    server.install(Path::new(&manifests)).expect("the rights and the rules");
    server
}

/// A node's way to the server, which the test can cut.
async fn node(server: &ApiServer, name: &str) -> Kubernetes {
    let port = server.link(name).expect("a port");
    let token = server.node_token(name).expect("a token");
    let file: Kubeconfig = serde_json::from_value(server.kubeconfig(port, &token)).expect("a kubeconfig");
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
    let settings = Settings { kubernetes: true, timeout: 5, lease: LEASE, ..Settings::default() };
    Kubernetes::new(settings, name.to_owned()).at(config.expect("a configuration"))
}

async fn session(server: &ApiServer, name: &str) -> Server {
    node(server, name).await.connect().await.expect("reached")
}

async fn seen(session: &Server) -> Observed {
    session.look(&[ID.into()]).await.expect("an answer").pop().expect("one").expect("understood")
}

fn path() -> String {
    format!("{VOLUMES}/{}", object::name(&ID.into()))
}

/// Writes until nobody else was faster, as an agent does: rules of admission may be some moments late.
async fn write(session: &Server, shared: Option<Shared>, claim: ClaimChange) {
    for _ in 0..TRIES {
        let write = Write { shared: shared.clone(), claim };
        if session
            .write(&ID.into(), &seen(session).await, &write, &session.node)
            .await
            .expect("an answer")
            .is_some()
        {
            return;
        }
    }
    panic!("it is never written");
}

/// Changes the object's status by hand, as whoever has this token.
fn change(asker: &Asker, admin: &Asker, how: impl Fn(&mut Value)) -> Result<Value> {
    let mut object = admin.ask("GET", &path(), None)?;
    how(&mut object["status"]);
    asker.ask("PUT", &format!("{}/status", path()), Some(&object))
}

fn refused(answer: Result<Value>, code: &str, word: &str) {
    let said = answer.expect_err(word).to_string();
    assert!(said.contains(&format!(": {code} ")) && said.contains(word), "{code} {word}: {said}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it needs an API server: cargo xtask test --part \"API server\""]
#[expect(clippy::too_many_lines, reason = "one server for all of it: it takes seconds to start")]
async fn an_agent_writes_what_its_own_node_claims_and_has_seen_and_nothing_else() {
    let server = started();
    let admin = server.asker();
    let a = session(&server, "a").await;
    let granted = a.grant(60).await.expect("a lease");
    write(
        &a,
        Some(Shared { armed: Some(armed("a", granted.id)), ..Shared::default() }),
        ClaimChange::Take(granted.id),
    )
    .await;
    let of_a = server.asker_with(&server.node_token("a").expect("a token"));
    let of_b = server.asker_with(&server.node_token("b").expect("a token"));
    let claim_of = |node: &str| json!({"node": node, "lease": object::holder(node, 7)});

    // Another node's claim, while its Lease is in force.
    for claim in [Value::Null, claim_of("b")] {
        let change = change(&of_b, admin, |status| match &claim {
            Value::Null => drop(status.as_object_mut().expect("a status").remove("claim")),
            claim => status["claim"] = claim.clone(),
        });
        refused(change, "422", "is in force");
    }
    refused(change(&of_b, admin, |status| status["claim"] = claim_of("a")), "422", "its own name");
    refused(
        change(&of_b, admin, |status| status["record"]["armed"]["lease"] = json!(8)),
        "422",
        "its own word",
    );
    let nobody = server.asker_with(&server.token_of_no_node().expect("a token"));
    refused(
        change(&nobody, admin, |status| status["record"]["armed"]["doubted"] = json!(true)),
        "422",
        "names no node",
    );
    // Another node's Lease.
    let lease = || admin.ask("GET", &format!("{LEASES}/a"), None).expect("a Lease");
    let put = |asker: &Asker, how: &dyn Fn(&mut Value)| {
        let mut lease = lease();
        how(&mut lease);
        asker.ask("PUT", &format!("{LEASES}/a"), Some(&lease))
    };
    let own = "own node's Lease";
    refused(
        put(&of_b, &|lease| lease["spec"]["renewTime"] = json!("2036-01-01T00:00:00.000000Z")),
        "422",
        own,
    );
    refused(put(&of_b, &|lease| lease["spec"]["holderIdentity"] = json!("b_1")), "422", own);
    refused(put(&of_b, &|lease| lease["spec"]["holderIdentity"] = Value::Null), "422", own);
    refused(put(&of_a, &|lease| lease["spec"]["holderIdentity"] = json!("b_1")), "422", "its own name");
    refused(put(&of_a, &|lease| lease["metadata"]["labels"] = json!({})), "422", "the label");
    refused(of_b.ask("DELETE", &format!("{LEASES}/a"), None), "403", "cannot delete");
    // Nothing goes, and nobody reads what is not on their node.
    refused(of_a.ask("DELETE", &path(), None), "403", "cannot delete");
    refused(of_a.ask("DELETE", VOLUMES, None), "403", "cannot delete");
    refused(of_a.ask("GET", VOLUMES, None), "403", "cannot list");
    refused(of_a.ask("GET", LEASES, None), "403", "cannot list");
    // What operators say.
    let permit = |by: &str, until: &str| json!({"reason": "r", "by": by, "from": "2026-01-01T00:00:00Z", "until": until});
    let hour = "2026-01-01T01:00:00Z";
    let patch = |asker: &Asker, spec: Value| asker.ask("PATCH", &path(), Some(&json!({"spec": spec})));
    refused(
        patch(&of_a, json!({"permit": permit("system:serviceaccount:kube-system:format-guard", hour)})),
        "403",
        "cannot patch",
    );
    let mut new = volume(
        "0123",
        &json!({"id": "x", "permit": permit("system:serviceaccount:kube-system:format-guard", hour)}),
    );
    refused(of_a.ask("POST", VOLUMES, Some(&new)), "422", "repeats the name");
    new["metadata"]["labels"] = json!({object::NAME_LABEL: "0123"});
    refused(of_a.ask("POST", VOLUMES, Some(&new)), "422", "give no permits");
    let given = json!({"reason": "r", "uid": 0, "at": 1, "expires": 2_000_000_000});
    refused(
        change(&of_a, admin, |status| status["record"]["permit"] = given.clone()),
        "422",
        "give no permits",
    );
    refused(patch(admin, json!({"permit": permit("another", hour)})), "422", "names the one who gives it");
    refused(
        patch(admin, json!({"permit": permit("admin", "2026-01-09T00:00:00Z")})),
        "422",
        "a week at most",
    );
    refused(patch(admin, json!({"id": "another"})), "422", "what the name is made of");
    patch(admin, json!({"permit": permit("admin", hour)})).expect("given");
    // Which an agent takes up, once.
    let taken = |status: &mut Value| {
        status["permit"] = permit("admin", hour);
        let expires = 1_767_229_200;
        status["record"]["permit"] = json!({"reason": "r (admin)", "uid": 1, "at": 1, "expires": expires});
    };
    let wrong = change(&of_a, admin, |status| {
        taken(status);
        status["record"]["permit"]["expires"] = json!(2_000_000_000);
    });
    refused(wrong, "422", "give no permits");
    refused(
        change(&of_a, admin, |status| status["permit"] = permit("another", hour)),
        "422",
        "is the operator's",
    );
    change(&of_a, admin, taken).expect("taken up");
    change(&of_a, admin, |status| drop(status["record"].as_object_mut().expect("a record").remove("permit")))
        .expect("used");
    refused(change(&of_a, admin, taken), "422", "give no permits");
    // What is known of a format is never lowered, whoever tries.
    write(&a, Some(holding("a", 5)), ClaimChange::Drop).await;
    refused(
        change(&of_b, admin, |status| status["record"]["format"] = json!(format("a", 6))),
        "422",
        "in its own name",
    );
    for asker in [&of_a, admin] {
        let lower = "never lowered";
        refused(
            change(asker, admin, |status| status["record"]["format"]["generation"] = json!(4)),
            "422",
            lower,
        );
        refused(
            change(asker, admin, |status| {
                drop(status["record"].as_object_mut().expect("it").remove("format"));
            }),
            "422",
            lower,
        );
        refused(
            change(asker, admin, |status| drop(status.as_object_mut().expect("it").remove("record"))),
            "422",
            lower,
        );
        refused(change(asker, admin, |status| *status = Value::Null), "422", lower);
    }
    let found = seen(&a).await;
    assert_eq!(found.shared, Some(holding("a", 5)));
    assert_eq!(found.claim, None);
    // What an operator reads.
    let accept = "application/json;as=Table;g=meta.k8s.io;v=v1";
    let table = admin.ask_for("GET", VOLUMES, accept, None).expect("a table");
    let names: Vec<&str> = table["columnDefinitions"]
        .as_array()
        .expect("columns")
        .iter()
        .filter_map(|column| column["name"].as_str())
        .collect();
    assert_eq!(
        names,
        [
            "Name",
            "ID",
            "PersistentVolume",
            "Holds",
            "Told by",
            "Claimed by",
            "Permit until",
            "Generation",
            "Age"
        ]
    );
    let cells = &table["rows"][0]["cells"];
    assert_eq!(
        (&cells[1], &cells[3], &cells[4], &cells[7]),
        (&json!(ID), &json!("ext4"), &json!("a"), &json!(5)),
        "{cells}"
    );
}

fn armed(node: &str, lease: u64) -> Armed {
    Armed { node: node.to_owned(), lease, by_permit: false, doubted: false, at: 1 }
}

/// Waits until a node sees the claim of another in force no more; how long that took.
async fn taken_from(session: &Server) -> Duration {
    let start = Instant::now();
    while seen(session).await.claim.is_some() {
        assert!(start.elapsed() < PATIENCE, "the claim never ends");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    start.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it needs an API server: cargo xtask test --part \"API server\""]
async fn a_claim_ends_for_everybody_at_once_and_never_before_its_lease() {
    let server = started();
    let [a, b] = [session(&server, "a").await, session(&server, "b").await];
    let lease = |node: &str| server.asker().ask("GET", &format!("{LEASES}/{node}"), None).expect("a Lease");
    let claimed = |lease: u64| Some(Shared { armed: Some(armed("a", lease)), ..Shared::default() });

    // A node that renews keeps it, however long others look.
    let first = a.grant(LEASE).await.expect("a lease");
    write(&a, claimed(first.id), ClaimChange::Take(first.id)).await;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2 * LEASE + 2) {
        assert_eq!(a.keep_alive(first.id).await.expect("renewed"), Granted { id: first.id, seconds: LEASE });
        assert_eq!(seen(&b).await.claim.map(|claim| claim.node), Some("a".to_owned()));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    // One that stands still loses it after that, and learns of it.
    let kept = Instant::now();
    a.keep_alive(first.id).await.expect("renewed");
    taken_from(&b).await;
    assert!(kept.elapsed() >= Duration::from_secs(LEASE), "after {:?}", kept.elapsed());
    let old = seen(&a).await;
    write(&b, claimed(first.id), ClaimChange::Drop).await;
    let late = Write { shared: Some(holding("a", 1)), claim: ClaimChange::Keep };
    assert_eq!(a.write(&ID.into(), &old, &late, "a").await.expect("an answer"), None, "a late write");
    assert!(matches!(a.keep_alive(first.id).await, Err(SharedError::LeaseEnded)));
    assert_eq!(lease("a")["spec"]["holderIdentity"], Value::Null);
    // A third one need not wait: it is told.
    let c = session(&server, "c").await;
    write(&a, claimed(first.id), ClaimChange::Take(first.id)).await;
    assert_eq!(seen(&c).await.claim, None, "of a lease that has ended");

    // One that somebody has deleted still covers what was claimed under it.
    let second = a.grant(LEASE).await.expect("a lease");
    assert_ne!(second.id, first.id);
    write(&a, claimed(second.id), ClaimChange::Take(second.id)).await;
    assert!(seen(&b).await.claim.is_some());
    tokio::time::sleep(Duration::from_secs(LEASE - 1)).await;
    a.keep_alive(second.id).await.expect("renewed");
    let renewed = Instant::now();
    server.asker().ask("DELETE", &format!("{LEASES}/a"), None).expect("deleted");
    taken_from(&b).await;
    assert!(renewed.elapsed() >= Duration::from_secs(LEASE), "after {:?}", renewed.elapsed());
    assert!(matches!(a.keep_alive(second.id).await, Err(SharedError::LeaseEnded)));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it needs an API server: cargo xtask test --part \"API server\""]
async fn what_is_written_is_written_once_whatever_becomes_of_the_server_and_the_connection() {
    let mut server = started();
    let mut connect = node(&server, "a").await;
    let a = connect.connect().await.expect("reached");
    let granted = a.grant(60).await.expect("a lease");
    // Answers are lost: of a renewal, and of a write.
    write(&a, Some(holding("a", 1)), ClaimChange::Keep).await;
    let before = seen(&a).await;
    server.etcd.network.lose_answers(NAME);
    let raised = Write { shared: Some(holding("a", 2)), claim: ClaimChange::Keep };
    a.write(&ID.into(), &before, &raised, "a").await.expect_err("no answer");
    a.keep_alive(granted.id).await.expect_err("no answer");
    server.etcd.network.heal();
    let a = connect.connect().await.expect("reached");
    assert_eq!(a.keep_alive(granted.id).await.expect("renewed").id, granted.id);
    let after = seen(&a).await;
    assert_eq!(after.shared, Some(holding("a", 2)), "it arrived");
    assert_eq!(a.write(&ID.into(), &before, &raised, "a").await.expect("an answer"), None, "and not twice");
    // The server stands still, is killed, and its etcd is.
    let wait = Duration::from_secs(1);
    for what in 0..3 {
        match what {
            0 => server.process.signal(Signal::STOP).expect("stopped"),
            1 => server.process.kill().expect("killed"),
            _ => server.etcd.members[0].process.kill().expect("killed"),
        }
        let failed =
            tokio::time::timeout(Duration::from_secs(30), a.look(&[ID.into()])).await.expect("bounded");
        let said = failed.expect_err("no answer").to_string();
        assert!(said.contains("https://127.0.0.1:") && !said.contains('\n') && said.len() < 1000, "{said}");
        tokio::time::sleep(wait).await;
        match what {
            0 => server.process.signal(Signal::CONT).expect("goes on"),
            1 => server.process.bring_back().expect("started"),
            _ => server.etcd.members[0].process.bring_back().expect("started"),
        }
        server.wait_until_ready().expect("ready");
        let session = connect.connect().await.expect("reached");
        let start = Instant::now();
        while session.keep_alive(granted.id).await.is_err() {
            assert!(start.elapsed() < PATIENCE, "the lease is never renewed");
        }
        assert_eq!(seen(&session).await.shared, Some(holding("a", 2)));
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it needs an API server: cargo xtask test --part \"API server\""]
async fn a_change_is_told_to_those_who_have_the_volume_and_asked_for_by_no_list() {
    const MANY: usize = 100;
    let server = started();
    let [a, b] = [session(&server, "a").await, session(&server, "b").await];
    let (a, b) = (Arc::new(a), Arc::new(b));
    let ids: Vec<VolumeId> = (0..MANY).map(|number| format!("dm:LVM-{number}").into()).collect();
    let (wanted, told) = (watch::Sender::new(BTreeSet::from_iter(ids.clone())), mpsc::channel(1024));
    let (teller, mut told) = told;
    b.look(&ids).await.expect("an answer");
    let (watched, subscriber) = (b.clone(), wanted.subscribe());
    let watching = tokio::spawn(async move {
        let ended = watched.watch(subscriber, teller).await;
        println!("the watch has ended: {ended}");
    });
    let next = async |told: &mut mpsc::Receiver<VolumeId>| {
        tokio::time::timeout(PATIENCE, told.recv()).await.expect("told in time").expect("watched")
    };
    for id in ids.iter().step_by(7) {
        let write = Write { shared: Some(holding("a", 1)), claim: ClaimChange::Keep };
        a.write(id, &Observed::default(), &write, "a").await.expect("an answer").expect("written");
        while next(&mut told).await != *id {}
        b.look(std::slice::from_ref(id)).await.expect("an answer");
    }
    // What this node has written itself is no news to it, and what nobody wants is not told.
    while told.try_recv().is_ok() {}
    let id = &ids[0];
    let before =
        b.look(std::slice::from_ref(id)).await.expect("an answer").pop().expect("one").expect("understood");
    let write = Write { shared: Some(holding("b", 2)), claim: ClaimChange::Keep };
    b.write(id, &before, &write, "b").await.expect("an answer").expect("written");
    let other = "dm:LVM-other".into();
    let write = Write { shared: Some(holding("a", 1)), claim: ClaimChange::Keep };
    a.write(&other, &Observed::default(), &write, "a").await.expect("an answer").expect("written");
    // One more is wanted: those that it is watched with are not told again.
    let (mut more, new) = (BTreeSet::from_iter(ids.clone()), VolumeId::from("dm:LVM-new"));
    more.insert(new.clone());
    wanted.send_replace(more);
    a.write(&new, &Observed::default(), &write, "a").await.expect("an answer").expect("written");
    let mut news = BTreeSet::new();
    while news.insert(next(&mut told).await) && !news.contains(&new) {}
    // A new watch begins with what the server had at some moment (version 0 is "any"): of what was written a
    // moment ago, that may be what was there before.
    news.remove(id);
    assert_eq!(news, BTreeSet::from([new.clone()]));
    // Deleted by an operator.
    server.asker().ask("DELETE", &format!("{VOLUMES}/{}", object::name(&ids[7])), None).expect("deleted");
    // The new one is news until this node has looked at it.
    while let news = next(&mut told).await
        && news != ids[7]
    {
        assert_eq!(news, new);
    }
    watching.abort();
    let lists = server.metric(&["apiserver_request_total{", "resource=\"guardedvolumes\"", "verb=\"LIST\""]);
    assert!(lists.expect("metrics") < 1.0, "somebody has listed them all");
}
