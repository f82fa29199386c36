use std::{path::Path, process::Command, time::Instant};

use format_guard_tests_etcd::{Members, Plan};
use rustix::process::Signal;

use super::*;

#[test]
fn a_key_is_readable_and_one_volumes_own() {
    for (id, key) in [
        ("iscsi:iqn.2020-01.org:t,lun=1", "iscsi:iqn.2020-01.org:t,lun=1"),
        ("rbd:pool/image", "rbd:pool%2Fimage"),
        ("scsi:t10.ATA disk 100%", "scsi:t10.ATA%20disk%20100%25"),
    ] {
        assert_eq!(in_key(&id.into()), key);
        assert_eq!(of_key(key), Some(id.into()));
    }
    assert_eq!([of_key("%"), of_key("%2"), of_key("%zz"), of_key("%FF")], [None, None, None, None]);
}

fn one_member() -> Members {
    Members::start(&Plan::default()).expect("etcd")
}

fn settings(members: &Members) -> Settings {
    Settings { endpoints: members.endpoints(), timeout: 5, ..Settings::default() }
}

fn run(program: &str, words: &str, directory: &Path) {
    let ran = Command::new(program).args(words.split(' ')).current_dir(directory).output().expect(program);
    assert!(ran.status.success(), "{program} {words}: {}", String::from_utf8_lossy(&ran.stderr));
}

/// Asks one question, as an agent does.
async fn ask(settings: &Settings) -> Result<Observed, SharedError> {
    let member = Etcd::new(settings.clone()).connect().await?;
    let mut observed = member.look(&["iscsi:t,lun=1".into()]).await?;
    Ok(observed.pop().expect("one answer").expect("understood"))
}

/// Asks until the member is up.
async fn answers(settings: &Settings) -> Observed {
    let start = Instant::now();
    loop {
        match ask(settings).await {
            Ok(observed) => return observed,
            Err(error) if start.elapsed() > Duration::from_secs(30) => panic!("it never answers: {error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn refusal(settings: &Settings) -> String {
    ask(settings).await.expect_err("refused").to_string()
}

#[tokio::test]
async fn members_are_known_by_their_certificates_and_know_this_node_by_its_own() {
    let files = tempfile::tempdir().expect("directory");
    let key = "req -newkey rsa:2048 -nodes -subj /CN=";
    run("openssl", &format!("{key}authority -x509 -days 2 -keyout ca.key -out ca.pem"), files.path());
    run("openssl", &format!("{key}other -x509 -days 2 -keyout other.key -out other.pem"), files.path());
    fs::write(files.path().join("names"), "subjectAltName=IP:127.0.0.1\n").expect("written");
    for name in ["member", "node"] {
        run("openssl", &format!("{key}{name} -keyout {name}.key -out {name}.csr"), files.path());
        let signed = "x509 -req -days 2 -CA ca.pem -CAkey ca.key -CAcreateserial -extfile names";
        run("openssl", &format!("{signed} -in {name}.csr -out {name}.pem"), files.path());
    }
    let file = |name: &str| files.path().join(name);
    let text = |name: &str| file(name).display().to_string();
    let plan = Plan {
        scheme: "https",
        options: &[
            ("cert-file", &text("member.pem")),
            ("key-file", &text("member.key")),
            ("trusted-ca-file", &text("ca.pem")),
            ("client-cert-auth", "true"),
        ],
        ..Plan::default()
    };
    let server = Members::start(&plan).expect("etcd");
    let settings = Settings {
        ca_file: file("ca.pem"),
        cert_file: file("node.pem"),
        key_file: file("node.key"),
        ..settings(&server)
    };
    assert_eq!(answers(&settings).await, Observed::default());
    for (wrong, word) in [
        (Settings { ca_file: file("other.pem"), ..settings.clone() }, "certificate"),
        (Settings { cert_file: "".into(), key_file: "".into(), ..settings.clone() }, ""),
        (Settings { ca_file: file("none.pem"), ..settings.clone() }, "store.ca_file: cannot read"),
    ] {
        let said = refusal(&wrong).await;
        assert!(said.contains(word) && !said.contains('\n'), "{said}");
    }
}

#[tokio::test]
async fn a_user_is_known_by_the_password_in_a_file() {
    let (server, files) = (one_member(), tempfile::tempdir().expect("directory"));
    let open = settings(&server);
    answers(&open).await;
    server.ask(&["user", "add", "root:secret"]).expect("a user");
    server.ask(&["auth", "enable"]).expect("users");
    let password = files.path().join("password");
    fs::write(&password, "secret\n").expect("written");
    let settings = Settings { user: "root".to_owned(), password_file: password.clone(), ..open.clone() };
    assert_eq!(answers(&settings).await, Observed::default());
    assert!(refusal(&open).await.contains("user name is empty"));
    fs::write(&password, "other").expect("written");
    let said = refusal(&settings).await;
    assert!(said.contains("authentication failed") && !said.contains("other"), "{said}");
}

#[tokio::test]
async fn a_lease_that_has_ended_is_known_as_one() {
    let server = one_member();
    let settings = settings(&server);
    answers(&settings).await;
    let member = Etcd::new(settings).connect().await.expect("reached");
    let granted = member.grant(60).await.expect("a lease");
    assert_eq!(member.keep_alive(granted.id).await.expect("kept"), granted);
    server.ask(&["lease", "revoke", &format!("{:x}", granted.id)]).expect("revoked");
    for unknown in [granted.id, 7] {
        let said = member.keep_alive(unknown).await;
        assert!(matches!(said, Err(SharedError::LeaseEnded)), "{said:?}");
    }
    let claim = Write { shared: Some(Shared::default()), claim: ClaimChange::Take(granted.id) };
    let said = member.write(&"iscsi:t,lun=1".into(), &Observed::default(), &claim, "node").await;
    assert!(matches!(said, Err(SharedError::LeaseEnded)), "{said:?}");
}

/// How long a member says that a lease lasts.
fn left(etcd: &Members, member: usize, lease: u64) -> Option<u64> {
    let mut etcdctl = etcd.etcdctl(&["lease", "timetolive", &format!("{lease:x}"), "-w", "json"]);
    etcdctl.env("ETCDCTL_ENDPOINTS", etcd.members[member].endpoint());
    let told = etcdctl.output().expect("etcdctl, of the package etcd-client");
    serde_json::from_slice::<serde_json::Value>(&told.stdout).expect("JSON")["ttl"].as_u64()
}

/// A leader that was stopped renews in about half of the cases.
#[tokio::test]
async fn a_lease_is_kept_by_the_one_that_leads_alone() {
    const SECONDS: u64 = 60;
    let etcd = Members::start(&Plan { members: 3, ..Plan::default() }).expect("etcd");
    etcd.wait_until_healthy().expect("healthy");
    for _ in 0..4 {
        let leader = etcd.leader().expect("answers").expect("a leader");
        let old = &etcd.members[leader];
        let settings = Settings { endpoints: vec![old.endpoint()], timeout: 20, ..Settings::default() };
        let member = Etcd::new(settings).connect().await.expect("reached");
        let granted = member.grant(SECONDS).await.expect("a lease");
        old.process.signal(Signal::STOP).expect("stopped");
        let start = Instant::now();
        let new = loop {
            match etcd.leader().expect("answers") {
                Some(new) if new != leader => break new,
                _ => assert!(start.elapsed() < Duration::from_secs(30), "nobody else leads"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        // The new leader counts the whole lease anew, and by now some of it is over.
        let start = Instant::now();
        while left(&etcd, new, granted.id).expect("it is kept") > SECONDS - 4 {
            assert!(start.elapsed() < Duration::from_secs(30), "it never gets shorter");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let asked =
            async { tokio::join!(member.keep_alive(granted.id), async { old.process.signal(Signal::CONT) }) };
        let (answer, goes_on) = asked.await;
        goes_on.expect("goes on");
        if let Ok(kept) = answer {
            let left = left(&etcd, new, granted.id);
            assert!(left.is_some_and(|left| left + 2 >= kept.seconds), "{left:?} s of {} s", kept.seconds);
        }
    }
}
