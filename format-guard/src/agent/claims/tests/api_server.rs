//! What many nodes ask of one API server of Kubernetes.

use std::path::Path;

use format_guard_tests_kubernetes::{ApiServer, MANIFESTS, programs};
use kube::config::{KubeConfigOptions, Kubeconfig};

use super::*;
use crate::{config, record::shared::kubernetes::Kubernetes};

/// Nodes, unless `FORMAT_GUARD_NODES` names a number.
const NODES: usize = 20;
/// Volumes of each: half of them its own, half its neighbour's, too.
const VOLUMES: usize = 20;
/// How long they are counted.
const STEADY: Duration = Duration::from_mins(2);
/// What a node may ask in a minute while nothing happens: six renewals, one watch for each 64 volumes, and
/// what is under way at the ends.
const IN_A_MINUTE: f64 = 8.0;

fn id_of(node: usize, nodes: usize, number: usize) -> VolumeId {
    let owner = if number.is_multiple_of(2) { node } else { (node + 1) % nodes };
    format!("iscsi:iqn.2020-01.org:volume-{owner}-{},lun=1", number / 2).into()
}

/// Requests for one kind of objects that the server has answered, of those whose metric has this word.
fn requests_for(server: &ApiServer, resource: &str, word: &str) -> f64 {
    let resource = format!("resource=\"{resource}\"");
    server.metric(&["apiserver_request_total{", &resource, word]).expect("metrics")
}

fn requests(server: &ApiServer) -> f64 {
    requests_for(server, "guardedvolumes", "") + requests_for(server, "leases", "")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it needs an API server: cargo xtask test --part \"API server\""]
async fn nodes_ask_little_while_nothing_happens_and_never_for_everything() {
    let nodes = std::env::var("FORMAT_GUARD_NODES").map_or(NODES, |text| text.parse().expect("a number"));
    let server = ApiServer::start(&programs().expect("the server")).expect("a server");
    let manifests = std::env::var_os(MANIFESTS).expect("the manifests");
    server.install(Path::new(&manifests)).expect("the rights and the rules");
    let settings = config::Store { kubernetes: true, timeout: 30, ..config::Store::default() };
    let mut configs = Vec::new();
    for node in 0..nodes {
        let token = server.node_token(&format!("node-{node}")).expect("a token");
        let file: Kubeconfig =
            serde_json::from_value(server.kubeconfig(server.port(), &token)).expect("a kubeconfig");
        let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
        configs.push(config.expect("a configuration"));
    }
    let before = requests(&server);
    let start = std::time::Instant::now();
    let mut tasks = JoinSet::new();
    for (node, config) in configs.into_iter().enumerate() {
        let (sender, mut inputs) = mpsc::channel(1024);
        let name = format!("node-{node}");
        let api = Kubernetes::new(settings.clone(), name.clone()).at(config);
        let (claim_worker, desired_claims) =
            ClaimWorker::new(api, name.clone(), settings.lease, None, sender);
        for number in 0..VOLUMES {
            // Of its own it tells; of the other's it is told.
            let desired = match number % 2 {
                0 => Desired::Formatted(format(1, &name)),
                _ => Desired::Watch { doubted: false },
            };
            desired_claims.set(&id_of(node, nodes, number), desired, false);
        }
        tokio::spawn(claim_worker.run());
        let (up, is_up) = oneshot::channel();
        tokio::spawn(async move {
            let (mut standing, mut up) = (BTreeSet::new(), Some(up));
            while let Some(input) = inputs.recv().await {
                match input {
                    Input::Store(StoreUpdate::KnownFormats { reply, .. }) => {
                        drop(reply.send(KnownFormats::default()));
                    }
                    Input::Store(StoreUpdate::ClaimStatus { id, number, .. }) => {
                        desired_claims.acknowledge(number);
                        standing.insert(id);
                    }
                    _ => {}
                }
                if standing.len() == VOLUMES
                    && let Some(up) = up.take()
                {
                    let _ = up.send(());
                }
            }
        });
        tasks.spawn(is_up);
    }
    while let Some(up) = tasks.join_next().await {
        up.expect("no panic").expect("it is up");
    }
    #[expect(clippy::cast_precision_loss, reason = "a number of nodes")]
    let per_node = |number: f64| number / nodes as f64;
    println!(
        "{nodes} nodes with {VOLUMES} volumes each: up in {:.1} s, {:.0} requests a node",
        start.elapsed().as_secs_f64(),
        per_node(requests(&server) - before)
    );
    // What they were told of each other by then is looked at.
    sleep(Duration::from_secs(5)).await;
    let before = requests(&server);
    sleep(STEADY).await;
    let minute = per_node(requests(&server) - before) / STEADY.as_secs_f64() * 60.0;
    println!("{minute:.1} requests of a node in a minute while nothing happens");
    println!("the API server has {} MiB", resident(server.process.pid().as_raw_nonzero().get()));
    assert!(minute <= IN_A_MINUTE, "{minute}");
    // The server itself lists leases: it looks for those of servers that are gone.
    let lists = requests_for(&server, "guardedvolumes", "verb=\"LIST\"");
    assert!(lists < 1.0, "somebody has listed them all");
}

fn resident(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1024
}
