//! The same through an API server of Kubernetes, with the rights and the rules that the chart gives its
//! agents: a node's token in each.

use format_guard_tests_kubernetes::{ApiServer, Asker, MANIFESTS, NAME, programs};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::json;

use super::*;
use crate::record::shared::kubernetes::{Kubernetes, object};

/// How long an answer may take here, in seconds.
const ANSWER: u64 = 2;
/// How long a permit lasts here, in seconds.
const PERMIT: i64 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ApiFault {
    None,
    /// The server is dead.
    Down,
    /// Its etcd is.
    EtcdDown,
    /// The server stands still.
    Frozen,
    /// Its etcd does.
    EtcdFrozen,
    /// It is cut off, or a node is.
    CutOff,
    /// What is asked arrives, and no answer does.
    AnswersLost,
    /// Somebody has deleted a node's Lease.
    LeaseDeleted,
}

struct ShakenApi {
    server: ApiServer,
    joins: Vec<Rc<Join>>,
    fault: ApiFault,
    until: Instant,
}

/// A node's way to the server.
fn through_the_api(server: &ApiServer, node: &str, runtime: &tokio::runtime::Runtime) -> Rc<Join> {
    let port = server.link(node).expect("a port");
    let token = server.node_token(node).expect("a token");
    let file: Kubeconfig = serde_json::from_value(server.kubeconfig(port, &token)).expect("a kubeconfig");
    let config = runtime.block_on(kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()));
    let config = config.expect("a configuration");
    let settings =
        config::Store { kubernetes: true, timeout: ANSWER, lease: LEASE, ..config::Store::default() };
    joining(move |name| Kubernetes::new(settings.clone(), name.to_owned()).at(config.clone()))
}

fn server() -> ApiServer {
    let server = ApiServer::start(&programs().expect("the server")).expect("a server");
    let manifests = std::env::var_os(MANIFESTS).expect("the manifests");
    server.install(Path::new(&manifests)).expect("the rights and the rules");
    server
}

fn path(id: &str) -> String {
    format!("/apis/format-guard.io/v1alpha1/guardedvolumes/{}", object::name(&id.into()))
}

impl ShakenApi {
    fn new(runtime: &tokio::runtime::Runtime) -> Self {
        let server = server();
        let joins = (0..NODES).map(|number| through_the_api(&server, &node_name(number), runtime)).collect();
        Self { server, joins, fault: ApiFault::None, until: Instant::now() }
    }
}

impl Store for ShakenApi {
    fn fail(&mut self, random: &mut fastrand::Rng) -> String {
        self.mend();
        self.until = Instant::now() + Duration::from_millis(random.u64(1..9000));
        let server = &mut self.server;
        self.fault = match random.u32(0..9) {
            0 => {
                server.process.kill().expect("killed");
                ApiFault::Down
            }
            1 => {
                server.etcd.members[0].process.kill().expect("killed");
                ApiFault::EtcdDown
            }
            2 => {
                server.process.signal(Signal::STOP).expect("stopped");
                ApiFault::Frozen
            }
            3 => {
                server.etcd.members[0].process.signal(Signal::STOP).expect("stopped");
                ApiFault::EtcdFrozen
            }
            4 => {
                server.etcd.network.cut_off(NAME);
                ApiFault::CutOff
            }
            5 => {
                server.etcd.network.cut_off(&node_name(random.usize(0..NODES)));
                ApiFault::CutOff
            }
            6 | 7 => {
                let whose = if random.bool() { NAME.to_owned() } else { node_name(random.usize(0..NODES)) };
                server.etcd.network.lose_answers(&whose);
                ApiFault::AnswersLost
            }
            _ => {
                let node = node_name(random.usize(0..NODES));
                let path = format!("/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/{node}");
                // It may not be there.
                let _ = server.asker().ask("DELETE", &path, None);
                ApiFault::LeaseDeleted
            }
        };
        format!("{:?}", self.fault)
    }

    fn until(&self) -> Instant {
        self.until
    }

    fn mend(&mut self) {
        match std::mem::replace(&mut self.fault, ApiFault::None) {
            ApiFault::None | ApiFault::LeaseDeleted => {}
            ApiFault::Down => self.server.process.bring_back().expect("started"),
            ApiFault::EtcdDown => self.server.etcd.members[0].process.bring_back().expect("started"),
            ApiFault::Frozen => self.server.process.signal(Signal::CONT).expect("goes on"),
            ApiFault::EtcdFrozen => {
                self.server.etcd.members[0].process.signal(Signal::CONT).expect("goes on");
            }
            ApiFault::CutOff | ApiFault::AnswersLost => self.server.etcd.network.heal(),
        }
    }

    fn join(&self, number: usize) -> Rc<Join> {
        self.joins[number].clone()
    }

    /// In the cluster: by somebody who waits for no node.
    fn permit(&mut self, node: &mut Node, _: &tokio::runtime::Runtime) {
        let (asker, path) = (self.server.asker().clone(), path(node.id.as_str()));
        // The server may stand still.
        std::thread::spawn(move || give_permit(&asker, &path));
    }

    fn knows(&self, id: &str) -> bool {
        let found = self.server.asker().ask("GET", &path(id), None).unwrap_or_default();
        found["status"]["record"]["format"]["generation"].is_u64()
    }

    fn told(&self) -> String {
        let of = |path: &str| self.server.asker().ask("GET", path, None).unwrap_or_default();
        format!(
            "{}\n{}",
            of("/apis/format-guard.io/v1alpha1/guardedvolumes"),
            of("/apis/coordination.k8s.io/v1/namespaces/kube-system/leases")
        )
    }
}

fn give_permit(asker: &Asker, path: &str) -> Result<()> {
    let now = k8s_openapi::jiff::Timestamp::from_second(now())?;
    let until = now.checked_add(k8s_openapi::jiff::SignedDuration::from_secs(PERMIT))?;
    let permit =
        json!({"reason": "test", "by": "admin", "from": now.to_string(), "until": until.to_string()});
    asker.ask("PATCH", path, Some(&json!({"spec": {"permit": permit}}))).map(drop)
}

#[test]
#[ignore = "it needs an API server: cargo xtask test --part \"API server\""]
fn one_of_many_nodes_formats_a_volume_whatever_fails() {
    let mut store = None;
    rounds(|number, random, runtime| {
        let store = store.get_or_insert_with(|| ShakenApi::new(runtime));
        // Each has a volume of its own.
        round(store, &format!("{ID}-{number}"), random, runtime)
    });
}

/// A node's agent stops while its volume is armed; its kernel goes on.
#[test]
#[ignore = "it needs an API server: cargo xtask test --part \"API server\""]
fn a_node_that_stopped_lets_nobody_through_once_its_lease_may_have_ended() {
    let runtime = runtime();
    let server = server();
    let nodes = ["first", "second"].map(|name| (name, through_the_api(&server, name, &runtime)));
    one_stops_and_another_formats(nodes, &runtime);
}

#[test]
#[ignore = "it needs an API server: cargo xtask test --part \"API server\""]
fn a_permit_of_the_cluster_lets_one_formatter_through_and_is_acknowledged() {
    let runtime = runtime();
    let server = server();
    let mut node = Node::new("node".to_owned(), ID, through_the_api(&server, "node", &runtime), &runtime);
    let mut disk = Disk::default();
    let holds = |disk: &Disk| disk.formats.len();
    until("the first format", || {
        node.work(&disk, Read::Truth, &runtime);
        node.format(&mut disk, &runtime);
        holds(&disk) == 1 && node.record().state == State::Formatted
    });
    assert_eq!(node.asks(Operation::Open), Verdict::Deny(Reason::Formatter));
    // Here the agent gives none.
    let what = VolumeRequest::Permit { seconds: 60, reason: "test".to_owned() };
    let request = message::Request::Volume { selector: ID.to_owned(), what };
    let (reply, mut answer) = oneshot::channel();
    let asked = Input::Asked { request, uid: 0, reply };
    runtime.block_on(async { node.reconciler.handle(asked) }).expect("handled");
    let mut said = None;
    until("an answer", || {
        node.work(&disk, Read::Truth, &runtime);
        said = answer.try_recv().ok();
        said.is_some()
    });
    let refused = said.expect("an answer").err().expect("refused");
    assert!(refused.error.contains("kubectl format-guard permit"), "{}", refused.error);
    until("what it holds to be told", || {
        node.work(&disk, Read::Truth, &runtime);
        server
            .asker()
            .ask("GET", &path(ID), None)
            .is_ok_and(|it| it["status"]["record"]["format"]["node"] == "node")
    });
    disk.permits += 1;
    give_permit(server.asker(), &path(ID)).expect("given");
    until("the second format", || {
        node.work(&disk, Read::Truth, &runtime);
        node.format(&mut disk, &runtime);
        holds(&disk) == 2 && node.record().state == State::Formatted
    });
    until("it to be known", || {
        node.work(&disk, Read::Truth, &runtime);
        let it = server.asker().ask("GET", &path(ID), None).expect("an answer");
        let record = &it["status"]["record"];
        it["status"]["permit"] == it["spec"]["permit"]
            && record["permit"].is_null()
            && record["format"]["generation"].as_u64() > Some(1)
    });
    // The same permit is not another one.
    let end = Instant::now() + Duration::from_secs(2);
    while Instant::now() < end {
        node.work(&disk, Read::Truth, &runtime);
        assert_eq!(node.asks(Operation::Open), Verdict::Deny(Reason::Formatter));
        std::thread::sleep(Duration::from_millis(20));
    }
}
