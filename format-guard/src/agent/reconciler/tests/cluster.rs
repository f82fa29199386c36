//! Nodes that share one volume through a real etcd of three members: real reconcilers and claimants, over a kernel that records
//! and a disk in memory. Members are killed, stopped and brought back, nodes stop and go on, reads lie; what is checked is what
//! became of the disk.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
};

use format_guard_common::{
    Caller, Holder, NoContent, Operation, Reason, Request, Verdict, decide, program::Class,
};

use super::*;
use crate::{
    agent::claims::Claimant,
    config,
    record::shared::{self, Standing, Wish, etcd::Etcd},
};

const ID: &str = "dm:LVM-shared";
/// Rounds, unless `FORMAT_GUARD_ROUNDS` names a number.
const ROUNDS: usize = 4;
const NODES: usize = 3;
/// How long one round may take: leases of five seconds end in it several times.
const PATIENCE: Duration = Duration::from_mins(2);

/// A member of the store.
struct Member {
    arguments: Vec<String>,
    endpoint: String,
    process: Child,
}

impl Member {
    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, signal).expect("a member");
    }

    fn kill(&mut self) {
        self.process.kill().expect("a member");
        self.process.wait().expect("a member");
    }

    fn start(arguments: &[String]) -> Child {
        let mut etcd = Command::new("etcd");
        etcd.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        etcd.spawn().expect("etcd, of the package etcd-server")
    }

    fn bring_back(&mut self) {
        self.process = Self::start(&self.arguments);
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Three members with data of their own below a directory.
fn members(directory: &Path) -> Vec<Member> {
    let taken: Vec<TcpListener> = (0..6).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
    let ports: Vec<u16> = taken.iter().map(|port| port.local_addr().expect("an address").port()).collect();
    drop(taken);
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let cluster: Vec<String> = (0..3).map(|i| format!("m{i}={}", url(ports[i]))).collect();
    (0..3)
        .map(|i| {
            let (peer, client) = (url(ports[i]), url(ports[3 + i]));
            let arguments: Vec<String> = [
                ("name", format!("m{i}")),
                ("data-dir", directory.join(format!("m{i}")).display().to_string()),
                ("listen-peer-urls", peer.clone()),
                ("initial-advertise-peer-urls", peer),
                ("listen-client-urls", client.clone()),
                ("advertise-client-urls", client.clone()),
                ("initial-cluster", cluster.join(",")),
            ]
            .map(|(name, value)| format!("--{name}={value}"))
            .to_vec();
            Member { process: Member::start(&arguments), arguments, endpoint: client }
        })
        .collect()
}

/// What lies on the volume that all nodes have.
#[derive(Default)]
struct Disk {
    /// Who formatted it, each with the permits that were given by then.
    formats: Vec<(String, usize)>,
    permits: usize,
}

/// A formatter, for `decide`.
struct Formatter {
    holder: Holder,
    claim_lasts: bool,
}

impl Caller for Formatter {
    fn class(&self) -> Class {
        Class::FORMATTER
    }

    fn tainted(&self) -> bool {
        false
    }

    fn holder(&self) -> Holder {
        self.holder
    }

    fn claim_lasts(&self) -> bool {
        self.claim_lasts
    }
}

struct Node {
    name: String,
    sysfs: tempfile::TempDir,
    enforcer: RecordingEnforcer,
    reconciler: Reconciler<RecordingEnforcer>,
    inputs: tokio::sync::mpsc::Receiver<Input>,
    claimant: tokio::task::JoinHandle<Result<()>>,
    /// Until when it does nothing.
    stopped: Option<Instant>,
    /// A formatter that was let through and has not written yet.
    writing: bool,
    /// A formatter that has ended, and that the agent was not told of: whether it wrote everything.
    ended: Option<bool>,
    number: u32,
}

impl Node {
    fn new(name: String, endpoints: &[String], runtime: &tokio::runtime::Runtime) -> Self {
        let _entered = runtime.enter();
        let sysfs = tempfile::tempdir().expect("directory");
        attach_at(sysfs.path(), 0, "LVM-shared", 1);
        let enforcer = RecordingEnforcer::default();
        let (reconciler, inputs, claimant) =
            Self::agent(&name, endpoints, sysfs.path(), &enforcer, BTreeMap::new());
        Self {
            name,
            sysfs,
            enforcer,
            reconciler,
            inputs,
            claimant,
            stopped: None,
            writing: false,
            ended: None,
            number: 1,
        }
    }

    fn agent(
        name: &str,
        endpoints: &[String],
        sysfs: &Path,
        enforcer: &RecordingEnforcer,
        records: BTreeMap<VolumeId, Record>,
    ) -> (
        Reconciler<RecordingEnforcer>,
        tokio::sync::mpsc::Receiver<Input>,
        tokio::task::JoinHandle<Result<()>>,
    ) {
        let store = RecordingStore {
            deeds: Deeds::default(),
            records,
            settings: BTreeMap::new(),
            broken: Arc::default(),
        };
        let world = World {
            sysfs: Sysfs::recorded(sysfs),
            boot: "boot-1".into(),
            mode: Mode::Enforce,
            forced_audit: false,
            degraded: Vec::new(),
            quarantine: 2,
            never_arm: false,
            protect: false,
            resync_interval: Duration::from_secs(5),
            kubelet_dir: None,
            cluster: None,
        };
        let (prober, _) = Prober::new("/bin/false", Duration::from_secs(1), Metrics::default());
        let (watcher, _) = Watcher::new();
        let mut reconciler =
            Reconciler::new(Box::new(store), enforcer.clone(), world, prober, watcher, Metrics::default());
        let settings =
            config::Store { endpoints: endpoints.to_vec(), timeout: 1, lease: 5, ..config::Store::default() };
        let (sender, inputs) = tokio::sync::mpsc::channel(1024);
        let (claimant, wishes) =
            Claimant::new(Etcd::new(settings), name.to_owned(), 5, reconciler.lease(), sender);
        reconciler.share(wishes, false);
        reconciler.compare_with_sysfs().expect("sysfs");
        (reconciler, inputs, tokio::spawn(claimant.run()))
    }

    /// The agent is killed and comes back, with what the kernel has and what is on its disk, or has lost that.
    fn restart(&mut self, endpoints: &[String], keeps_records: bool, runtime: &tokio::runtime::Runtime) {
        let _entered = runtime.enter();
        self.claimant.abort();
        let stored = |record: &Record| {
            // What is not stored is found out anew.
            let fresh = Record::new(record.id.clone(), record.origin.clone(), record.weak, record.first_seen);
            let (claim, attached_in) = (fresh.claim, fresh.attached_in);
            let stored =
                Record { claim, attached_in, clean_passes: 0, running: false, over: false, ..record.clone() };
            (record.id.clone(), Record { doubted_since: None, tool_at_work: None, new: false, ..stored })
        };
        let records = self.reconciler.records.values().filter(|_| keeps_records).map(stored).collect();
        (self.reconciler, self.inputs, self.claimant) =
            Self::agent(&self.name, endpoints, self.sysfs.path(), &self.enforcer, records);
    }

    fn record(&self) -> &Record {
        &self.reconciler.records[&VolumeId::from(ID)]
    }

    /// The agent does what has come in, and probes.
    fn work(&mut self, disk: &Disk, lies: bool, runtime: &tokio::runtime::Runtime) {
        let _entered = runtime.enter();
        if self.stopped.is_some_and(|until| Instant::now() < until) {
            return;
        }
        self.stopped = None;
        self.tell_of_end();
        while let Ok(input) = self.inputs.try_recv() {
            self.reconciler.handle(input).expect("handled");
        }
        self.reconciler.handle(Input::Tick).expect("handled");
        while self.reconciler.comparison.is_some() {
            self.reconciler.go_on_with_resync();
        }
        // What may have been formatted by a node that is gone is trusted to read as what it is: nothing else tells.
        let lies = lies && self.record().doubted_since.is_none() && !self.writing;
        let finding = match disk.formats.last() {
            Some((by, _)) if !lies => holds_of(by, disk.formats.len()),
            _ => Finding::Blank,
        };
        if self.record().state != State::Formatting || !self.record().running {
            self.reconciler.handle(answer(DEV, 1, Ok(finding))).expect("handled");
        }
    }

    /// An operator permits a re-format, on this node or whichever claims it.
    fn permit(&mut self, runtime: &tokio::runtime::Runtime) {
        let _entered = runtime.enter();
        let request = api::PermitRequest { volume: ID.to_owned(), reason: "test".to_owned(), seconds: 3 };
        let (reply, _) = oneshot::channel();
        self.reconciler.handle(Input::Asked(Question::Permit { request, uid: 0 }, reply)).expect("handled");
    }

    fn asks(&self, operation: Operation) -> Verdict {
        let rule = self.enforcer.rules.borrow()[&DEV.to_kernel()];
        let now = u64::try_from(since_boot().as_nanos()).expect("not that old");
        let caller = Formatter {
            holder: match self.enforcer.holders.borrow().get(&rule.lead) {
                Some(_) => Holder::Caller,
                None => Holder::None,
            },
            claim_lasts: self.enforcer.lease.get().covers(rule.claim, now),
        };
        decide(&rule, &Request { operation, offset: 0, length: 4096 }, &caller, &NoContent)
    }

    /// A formatter tries to begin, or goes on.
    fn format(&mut self, disk: &mut Disk, runtime: &tokio::runtime::Runtime) {
        let _entered = runtime.enter();
        let process = self.process();
        if !self.writing {
            if self.ended.is_some() || self.asks(Operation::Open) != Verdict::Begin {
                return;
            }
            let entry =
                HolderEntry { process, diskseq: 1, dev: DEV.to_kernel(), wrote: 1, ..HolderEntry::default() };
            self.enforcer.holders.borrow_mut().insert(DEV.to_kernel(), entry);
            self.writing = true;
            return;
        }
        let done = self.asks(Operation::Write) == Verdict::Allow;
        if done {
            disk.formats.push((self.name.clone(), disk.permits));
            let (formats, permits) = (disk.formats.len(), disk.permits);
            assert!(formats <= 1 + permits, "two formats of one volume: {:?}", disk.formats);
        }
        (self.writing, self.ended) = (false, Some(done));
    }

    fn process(&self) -> Process {
        Process { started: u64::from(self.number), tgid: self.number, zero: 0 }
    }

    /// The agent is told that the formatter has ended.
    fn tell_of_end(&mut self) {
        let Some(done) = self.ended.take() else { return };
        let process = self.process();
        self.number += 1;
        self.reconciler.take_up_on(DEV);
        self.reconciler.ends.insert(process, u32::from(!done) << 8);
        self.reconciler.ended(process, true);
    }
}

fn holds_of(by: &str, number: usize) -> Finding {
    Finding::Holds {
        found: vec![Found {
            name: "ext4".into(),
            uuid: Some(format!("{by}-{number}")),
            label: None,
            magic_offset: Some(1080),
        }],
        marks: vec![Mark { offset: 1080, kind: MarkKind::Magic, bytes: vec![0x53, 0xef] }],
        partitions: None,
    }
}

/// What everybody knows, for whoever looks for the reason.
fn tell_all(nodes: &[Node], endpoints: &[String]) {
    for node in nodes {
        let record = node.record();
        println!(
            "{}: {record:?}\n  {:?}\n  {:?}",
            node.name,
            node.enforcer.lease.get(),
            node.reconciler.store_status()
        );
    }
    let told = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .args(["get", "", "--prefix", &format!("--endpoints={}", endpoints.join(","))])
        .output();
    println!("{}", String::from_utf8_lossy(&told.expect("etcdctl, of the package etcd-client").stdout));
}

/// One volume from its first sight until every node knows what it holds.
fn round(random: &mut fastrand::Rng, runtime: &tokio::runtime::Runtime) {
    let directory = tempfile::tempdir().expect("directory");
    let mut members = members(directory.path());
    let endpoints: Vec<String> = members.iter().map(|member| member.endpoint.clone()).collect();
    let mut disk = Disk::default();
    let mut nodes: Vec<Node> = (0..NODES)
        .map(|i| {
            let mut own = endpoints.clone();
            own.rotate_left(i);
            Node::new(format!("node-{i}"), &own, runtime)
        })
        .collect();
    let start = Instant::now();
    let (mut down, mut frozen): (Option<usize>, Option<usize>) = (None, None);
    let faults_end = Duration::from_secs(random.u64(2..15));
    loop {
        let faulty = start.elapsed() < faults_end;
        if faulty && random.u32(0..100) == 0 {
            let (member, node) = (random.usize(0..3), random.usize(0..NODES));
            match random.u32(0..8) {
                0 if down.is_none() && frozen != Some(member) => {
                    members[member].kill();
                    down = Some(member);
                }
                1 if frozen.is_none() && down != Some(member) => {
                    members[member].signal(rustix::process::Signal::STOP);
                    frozen = Some(member);
                }
                2 | 3 => {
                    nodes[node].stopped = Some(Instant::now() + Duration::from_millis(random.u64(1..9000)));
                }
                4 => nodes[node].restart(&endpoints, true, runtime),
                5 if !nodes[node].writing => nodes[node].restart(&endpoints, false, runtime),
                6 if !disk.formats.is_empty() => {
                    disk.permits += 1;
                    nodes[node].permit(runtime);
                }
                _ => {}
            }
        }
        if !faulty || random.u32(0..100) == 0 {
            if let Some(member) = frozen.take() {
                members[member].signal(rustix::process::Signal::CONT);
            }
            if let Some(member) = down.take() {
                members[member].bring_back();
            }
        }
        for node in &mut nodes {
            node.work(&disk, random.bool(), runtime);
            if random.u32(0..10) == 0 {
                node.format(&mut disk, runtime);
            }
        }
        let all_know = nodes.iter().all(|node| node.record().state == State::Formatted && !node.writing);
        if !faulty && !disk.formats.is_empty() && all_know {
            return;
        }
        if start.elapsed() > PATIENCE {
            tell_all(&nodes, &endpoints);
            panic!("not every node knows");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A node's agent stops while its volume is armed; its kernel goes on.
#[test]
fn a_node_that_stopped_lets_nobody_through_once_its_lease_may_have_ended() {
    let runtime = runtime();
    let directory = tempfile::tempdir().expect("directory");
    let members = members(directory.path());
    let endpoints: Vec<String> = members.iter().map(|member| member.endpoint.clone()).collect();
    let mut disk = Disk::default();
    let [mut first, mut second] =
        ["first", "second"].map(|name| Node::new(name.to_owned(), &endpoints, &runtime));
    until("the first one to be armed", || {
        first.work(&disk, false, &runtime);
        first.asks(Operation::Open) == Verdict::Begin
    });
    // It begins, and does not write for a while.
    first.format(&mut disk, &runtime);
    assert!(first.writing);
    first.stopped = Some(Instant::now() + PATIENCE);
    first.claimant.abort();
    until("the second one to format it", || {
        second.work(&disk, false, &runtime);
        second.format(&mut disk, &runtime);
        !disk.formats.is_empty()
    });
    assert_eq!(disk.formats, [("second".to_owned(), 0)]);
    assert_eq!(first.asks(Operation::Write), Verdict::Deny(Reason::Claim), "of the one who began");
    first.enforcer.holders.borrow_mut().clear();
    assert_eq!(first.asks(Operation::Open), Verdict::Deny(Reason::Claim), "of another one");
}

#[test]
fn a_permit_that_was_used_meanwhile_is_not_taken_for_another_one() {
    let runtime = runtime();
    let mut node = Node::new("node".to_owned(), &["http://127.0.0.1:1".to_owned()], &runtime);
    let _entered = runtime.enter();
    let wanted = |node: &Node| shared::wish(node.record(), "node");
    let give = |node: &mut Node, told| node.reconciler.handle(Input::Told(told)).expect("handled");
    let until = u64::try_from(since_boot().as_nanos()).expect("not that old") + 3_600_000_000_000;
    give(&mut node, Told::Lease { id: 7, until });
    node.reconciler.handle(answer(DEV, 1, Ok(holds_of("old", 1)))).expect("handled");
    let permit = Permit { reason: "test".to_owned(), uid: 0, at: 0, expires: now() + 1000 };
    let permitted = |wish, number| Told::Standing {
        id: ID.into(),
        standing: Standing::Permitted(permit.clone()),
        wish: Box::new(wish),
        lease: 7,
        number,
    };
    let before = wanted(&node);
    give(&mut node, permitted(before, 1));
    assert_eq!((node.record().state, wanted(&node)), (State::Permitted, Wish::Permitted));
    // Told once more by what was wanted then, and under way while a formatter uses it.
    let late = permitted(Wish::Permitted, 2);
    let mut disk = Disk { permits: 1, ..Disk::default() };
    node.format(&mut disk, &runtime);
    node.format(&mut disk, &runtime);
    node.tell_of_end();
    node.reconciler.handle(answer(DEV, 1, Ok(holds_of("new", 2)))).expect("handled");
    give(&mut node, late);
    assert_eq!((node.record().state, disk.formats.len()), (State::Formatted, 1));
    assert_eq!(node.asks(Operation::Open), Verdict::Deny(Reason::Formatter));
}

fn until(what: &str, mut ready: impl FnMut() -> bool) {
    let start = Instant::now();
    while !ready() {
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime")
}

#[test]
fn one_of_many_nodes_formats_a_volume_whatever_fails() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seed = number("FORMAT_GUARD_SEED").unwrap_or_else(|| fastrand::u64(..));
    let rounds =
        number("FORMAT_GUARD_ROUNDS").map_or(ROUNDS, |rounds| usize::try_from(rounds).expect("some"));
    println!("FORMAT_GUARD_SEED={seed} FORMAT_GUARD_ROUNDS={rounds}");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    let mut random = fastrand::Rng::with_seed(seed);
    for number in 0..rounds {
        let start = Instant::now();
        round(&mut random, &runtime);
        println!("round {number}: {} s", start.elapsed().as_secs());
    }
}
