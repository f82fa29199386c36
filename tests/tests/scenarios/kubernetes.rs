//! How refusals are reported to a cluster: over HTTP, as its API expects. No real API server is asked here.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use format_guard_tests::{
    attack::refused,
    device::{Device, Linear, Loop, device_number},
    guard::Guard,
    tool::must,
    wait_for,
};
use serde_json::{Value, json};

use crate::make_ext4;

const MIB: u64 = 1 << 20;
const PV: &str = "pvc-0b8ae2f4-6f0e-4c5d-9f51-7c3a2f1e9d77";

/// A server of the parts of the API that the agent uses.
#[derive(Clone)]
struct Api {
    address: String,
    events: Arc<Mutex<Vec<(String, Value)>>>,
    /// The server takes requests and answers none.
    hangs: Arc<AtomicBool>,
}

impl Api {
    fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let api = Self {
            address: listener.local_addr()?.to_string(),
            events: Arc::default(),
            hangs: Arc::default(),
        };
        let served = api.clone();
        thread::spawn(move || {
            for stream in listener.incoming().filter_map(Result::ok) {
                let served = served.clone();
                thread::spawn(move || served.answer(&stream));
            }
        });
        Ok(api)
    }

    /// Answers one request.
    fn answer(&self, stream: &TcpStream) -> Result<()> {
        let mut reader = BufReader::new(stream);
        let mut request = String::new();
        reader.read_line(&mut request)?;
        let (mut length, mut token) = (0, false);
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            token |= line == "authorization: bearer fg-token";
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        if self.hangs.load(Ordering::Acquire) {
            thread::sleep(Duration::from_mins(5));
        }
        let path = request.split(' ').nth(1).unwrap_or_default();
        let path = path.split('?').next().unwrap_or_default();
        let (status, answer) = match (request.split(' ').next(), path) {
            _ if !token => ("401 Unauthorized", failure(401, "Unauthorized")),
            (Some("GET"), path) if path == format!("/api/v1/persistentvolumes/{PV}") => (
                "200 OK",
                json!({
                    "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": PV},
                    "spec": {"claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "name": "data-orders-0",
                        "namespace": "shop", "uid": "fg-claim"}}
                }),
            ),
            (Some("POST"), path) if path.starts_with("/api/v1/namespaces/") && path.ends_with("/events") => {
                let event: Value = serde_json::from_slice(&body)?;
                self.events
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push((path.to_owned(), event.clone()));
                ("201 Created", event)
            }
            _ => ("404 Not Found", failure(404, "NotFound")),
        };
        let answer = answer.to_string();
        let head = "Content-Type: application/json\r\nConnection: close";
        write!(&*stream, "HTTP/1.1 {status}\r\n{head}\r\nContent-Length: {}\r\n\r\n{answer}", answer.len())?;
        Ok(())
    }

    fn events(&self) -> Vec<(String, Value)> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// An answer with which the API refuses.
fn failure(code: u16, reason: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "message": reason, "reason": reason,
        "code": code})
}

#[test]
fn refusals_are_told_to_the_cluster_and_nothing_waits_for_it() -> Result<()> {
    let api = Api::start()?;
    let nodes = Path::new("/dev/fg-longhorn");
    fs::create_dir_all(nodes)?;
    let directory = tempfile::tempdir()?;
    let kubeconfig = directory.path().join("kubeconfig");
    fs::write(
        &kubeconfig,
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{"name": "it", "cluster": {"server": format!("http://{}", api.address)}}],
            "users": [{"name": "it", "user": {"token": "fg-token"}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}]
        })
        .to_string(),
    )?;
    let mut guard = Guard::unstarted(None)?;
    guard.replace("kubelet_dir", &format!("'{}'", directory.path().display()))?;
    guard.replace("longhorn_dir", &format!("'{}'", nodes.display()))?;
    guard.replace("kubernetes.events", "true")?;
    guard.set_variable("KUBECONFIG", kubeconfig.as_os_str());
    guard.set_variable("NODE_NAME", "node-7".as_ref());
    fs::create_dir_all(directory.path().join("pods/fg-uid-2/volumes/kubernetes.io~csi").join(PV))?;
    let logs = Path::new("/var/log/pods/shop_orders-0_fg-uid-2");
    fs::create_dir_all(logs)?;
    guard.start_agent()?;

    let below = Loop::new(32)?;
    let claimed = Linear::over("fg-pvc-2", "", below.path(), 0, 32 * MIB)?;
    let number = device_number(claimed.path())?.replace(':', " ");
    must(&format!("mknod {} b {number}", nodes.join(PV).display()))?;
    make_ext4(&guard, claimed.path())?;
    let format = format!("mkfs.ext4 -F {}", claimed.path().display());
    refused(&guard, &format, "")?;
    let told = wait_for("the claim and the pod to be told", || {
        let events = api.events();
        Ok((events.len() >= 2).then_some(events))
    })
    .with_context(|| guard.log())?;
    for ((path, event), (kind, name)) in
        told.iter().zip([("PersistentVolumeClaim", "data-orders-0"), ("Pod", "orders-0")])
    {
        ensure!(path == "/api/v1/namespaces/shop/events", "{path}");
        ensure!(event["apiVersion"] == "v1" && event["kind"] == "Event", "{event}");
        ensure!(event["metadata"]["namespace"] == "shop", "{event}");
        let object = &event["involvedObject"];
        ensure!(object["kind"] == kind && object["name"] == name && object["namespace"] == "shop", "{event}");
        ensure!(event["type"] == "Warning" && event["reason"] == "FormatRefused", "{event}");
        let message = event["message"].as_str().context("no message")?;
        ensure!(message.contains("was refused") && message.contains("volume permit"), "{event}");
        ensure!(event["source"]["host"] == "node-7" && event["count"] == 1, "{event}");
    }
    // The same refusals again are part of a flood.
    for _ in 0..3 {
        refused(&guard, &format, "")?;
    }
    wait_for("the flood to be held back", || {
        Ok(guard.get("/metrics")?.contains("cluster_events_total{result=\"held_back\"}").then_some(()))
    })?;
    ensure!(api.events().len() == 2, "{:?}", api.events());

    // A volume without a claim, and an API that does not answer.
    api.hangs.store(true, Ordering::Release);
    let other = Loop::new(32)?;
    make_ext4(&guard, other.path())?;
    let before = other.sha256()?;
    let start = Instant::now();
    refused(&guard, &format!("mkfs.ext4 -F {}", other.path().display()), "")?;
    let blank = Loop::new(32)?;
    make_ext4(&guard, blank.path())?;
    println!("a refusal and a first format beside an API that hangs: {:?}", start.elapsed());
    ensure!(
        !guard.get("/metrics")?.contains("cluster_events_total{result=\"failed\"}"),
        "it had given up by then"
    );
    wait_for("the agent to give up", || {
        Ok(guard.get("/metrics")?.contains("cluster_events_total{result=\"failed\"}").then_some(()))
    })?;
    ensure!(other.sha256()? == before, "bytes changed");
    api.hangs.store(false, Ordering::Release);
    refused(&guard, &format!("mkfs.ext4 -F {}", blank.path().display()), "")?;
    let told = wait_for("the node to be told", || {
        let events = api.events();
        Ok((events.len() >= 3).then(|| events[2].clone()))
    })?;
    ensure!(told.0 == "/api/v1/namespaces/default/events", "{}", told.0);
    ensure!(
        told.1["involvedObject"]["kind"] == "Node" && told.1["involvedObject"]["name"] == "node-7",
        "{}",
        told.1
    );
    drop(claimed);
    fs::remove_dir(logs)?;
    fs::remove_dir_all(nodes)?;
    Ok(())
}
