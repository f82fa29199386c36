//! Nodes that share one volume through a real store, an etcd of three members or an API server of Kubernetes:
//! real reconcilers and claim workers, over a kernel that records and a disk in memory. The store is killed,
//! stopped, cut off, filled up, compacted and brought back, nodes stop, are cut off and go on, reads lie or
//! fail; what is checked is whom the kernels let through, and what became of the disk and of the record.

#[cfg(feature = "kubernetes")]
mod api_server;

use std::{io::Write, process::Stdio, rc::Rc};

use format_guard_common::{
    Caller, NoContent, Operation, Owner, Reason, Request, Verdict, decide, program::Class,
};
use format_guard_tests_etcd::{Members, Plan};
use rustix::process::Signal;
use tokio::sync::oneshot;

use super::*;
use crate::{
    agent::{
        claims::ClaimWorker,
        desired_claims::DesiredClaims,
        message::{self, StoreUpdate},
    },
    config,
    enforce::since_boot,
    record::shared::{self, ClaimStatus, Desired, Shared, etcd::Etcd, store::Connect},
};

const ID: &str = "dm:LVM-shared";
/// Rounds, unless `FORMAT_GUARD_ROUNDS` names a number.
const ROUNDS: usize = 4;
const NODES: usize = 3;
/// How long a lease lasts, in seconds.
const LEASE: u64 = 5;
/// How long one round may take: leases of five seconds end in it several times.
const PATIENCE: Duration = Duration::from_mins(2);

/// What lies on the volume that all nodes have.
#[derive(Default)]
struct Disk {
    /// Who formatted it, each with the permits that were given by then.
    formats: Vec<(String, usize)>,
    permits: usize,
}

/// What a node's reads give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Read {
    Truth,
    Zeros,
    Fails,
}

/// A formatter, for `decide`.
struct Formatter {
    owner: Owner,
    claim_lasts: bool,
}

impl Caller for Formatter {
    fn class(&self) -> Class {
        Class::FORMATTER
    }

    fn tainted(&self) -> bool {
        false
    }

    fn owner(&self) -> Owner {
        self.owner
    }

    fn claim_lasts(&self) -> bool {
        self.claim_lasts
    }

    fn permit_lasts(&self) -> bool {
        true
    }
}

/// A node's task of the store, under way.
type Claiming = (tokio::task::JoinHandle<Result<()>>, DesiredClaims);
/// Makes it, of the node's name and its lease.
type Join = dyn Fn(&str, Option<u64>, tokio::sync::mpsc::Sender<Input>) -> Claiming;

/// Through this store.
fn joining<C: Connect + Sync>(connect: impl Fn(&str) -> C + 'static) -> Rc<Join> {
    Rc::new(move |name, lease, inputs| {
        let (claim_worker, desired_claims) =
            ClaimWorker::new(connect(name), name.to_owned(), LEASE, lease, inputs);
        (tokio::spawn(claim_worker.run()), desired_claims)
    })
}

fn through_etcd(endpoints: Vec<String>) -> Rc<Join> {
    let settings = config::Store { endpoints, timeout: 1, lease: LEASE, ..config::Store::default() };
    joining(move |_| Etcd::new(settings.clone()))
}

struct Node {
    name: String,
    id: VolumeId,
    join: Rc<Join>,
    sysfs: tempfile::TempDir,
    enforcer: RecordingEnforcer,
    reconciler: Reconciler,
    inputs: tokio::sync::mpsc::Receiver<Input>,
    claim_worker: tokio::task::JoinHandle<Result<()>>,
    /// Until when it does nothing.
    stopped: Option<Instant>,
    /// A formatter that was let through and has not written yet.
    writing: bool,
    /// A formatter that has ended, and that the agent was not told of: whether it wrote everything.
    ended: Option<bool>,
    number: u32,
}

impl Node {
    fn new(name: String, id: &str, join: Rc<Join>, runtime: &tokio::runtime::Runtime) -> Self {
        let _entered = runtime.enter();
        let sysfs = tempfile::tempdir().expect("directory");
        attach_at(sysfs.path(), 0, id.strip_prefix("dm:").expect("a map's"), 1);
        let enforcer = RecordingEnforcer::default();
        let (reconciler, inputs, claim_worker) =
            Self::agent(&name, &join, sysfs.path(), &enforcer, BTreeMap::new());
        Self {
            name,
            id: id.into(),
            join,
            sysfs,
            enforcer,
            reconciler,
            inputs,
            claim_worker,
            stopped: None,
            writing: false,
            ended: None,
            number: 1,
        }
    }

    fn agent(
        name: &str,
        join: &Rc<Join>,
        sysfs: &Path,
        enforcer: &RecordingEnforcer,
        records: BTreeMap<VolumeId, Record>,
    ) -> (Reconciler, tokio::sync::mpsc::Receiver<Input>, tokio::task::JoinHandle<Result<()>>) {
        let store = RecordingStore {
            deeds: Deeds::default(),
            records,
            settings: BTreeMap::new(),
            broken: Arc::default(),
            pruned: Arc::default(),
            copies: BTreeMap::new(),
            names: BTreeMap::new(),
        };
        let settings = Settings {
            mode: Mode::Enforce,
            forced_audit: false,
            quarantine: 2,
            raw_content: config::RawContent::Written,
            protect: false,
            first_format_wait: Duration::ZERO,
            resync_interval: Duration::from_secs(5),
            forget_after: 0,
            copied: None,
            strict: Vec::new(),
            policies: Vec::new(),
            trusted: Vec::new(),
        };
        let host = Host {
            devices: Devices::recorded(sysfs),
            boot: "boot-1".into(),
            kubelet_dir: None,
            closing: Closing::default(),
            kernel_log: None,
            cluster: None,
        };
        let (prober, _) = Prober::new("/bin/false", Duration::from_secs(1), Metrics::default());
        let (watcher, _) = Watcher::new();
        let mut reconciler = Reconciler::new(
            Box::new(store),
            Box::new(enforcer.clone()),
            settings,
            host,
            prober,
            watcher,
            Metrics::default(),
        );
        let (sender, inputs) = tokio::sync::mpsc::channel(1024);
        let (claim_worker, desired_claims) = join(name, reconciler.lease(), sender);
        reconciler.share(desired_claims, false);
        reconciler.compare_with_sysfs().expect("sysfs");
        (reconciler, inputs, claim_worker)
    }

    /// The agent is killed and comes back, with what the kernel has and what is on its disk, or has lost
    /// that.
    fn restart(&mut self, keeps_records: bool, runtime: &tokio::runtime::Runtime) {
        let _entered = runtime.enter();
        self.claim_worker.abort();
        let stored = |volume: &Volume| (volume.record.id.clone(), volume.record.clone());
        let records = self.reconciler.records.values().filter(|_| keeps_records).map(stored).collect();
        (self.reconciler, self.inputs, self.claim_worker) =
            Self::agent(&self.name, &self.join, self.sysfs.path(), &self.enforcer, records);
    }

    fn record(&self) -> &Volume {
        &self.reconciler.records[&self.id]
    }

    /// The agent does what has come in, and probes.
    fn work(&mut self, disk: &Disk, read: Read, runtime: &tokio::runtime::Runtime) {
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
        // What may have been formatted by a node that is gone is trusted to read as what it is: nothing else
        // tells.
        let lies = read == Read::Zeros && self.record().attachment.suspect_since.is_none() && !self.writing;
        let found = match disk.formats.last() {
            _ if read == Read::Fails => Err(ProbeError::Read("EIO".to_owned())),
            Some((by, _)) if !lies => Ok(holds_of(by, disk.formats.len())),
            _ => Ok(Finding::Blank),
        };
        if self.record().state != State::Formatting || !self.record().attachment.is_running() {
            self.reconciler.handle(answer(DEV, 1, found)).expect("handled");
        }
    }

    /// An operator permits a re-format, on this node or whichever claims it.
    fn permit(&mut self, runtime: &tokio::runtime::Runtime) {
        let _entered = runtime.enter();
        let what = VolumeRequest::Permit { seconds: 3, reason: "test".to_owned() };
        let request = message::Request::Volume { selector: self.id.to_string(), what };
        let (reply, _) = oneshot::channel();
        self.reconciler.handle(Input::Asked { request, uid: 0, reply }).expect("handled");
    }

    fn asks(&self, operation: Operation) -> Verdict {
        let rule = self.enforcer.rules.lock()[&DEV.to_kernel()];
        let now = u64::try_from(since_boot().as_nanos()).expect("not that old");
        let caller = Formatter {
            owner: match self.enforcer.owners.lock().get(&rule.lock_dev) {
                Some(_) => Owner::Caller,
                None => Owner::None,
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
            let entry = FormatOwner {
                process,
                diskseq: 1,
                dev: DEV.to_kernel(),
                wrote: 1,
                comm: MKFS,
                ..FormatOwner::default()
            };
            self.enforcer.owners.lock().insert(DEV.to_kernel(), entry);
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
        self.reconciler.recover_format_on(DEV);
        self.reconciler.formats.exit_statuses.insert(process, (u32::from(!done) << 8, Instant::now()));
        self.reconciler.ended(process, None, true);
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
fn tell_all(nodes: &[Node], store: &impl Store) {
    for node in nodes {
        let record = node.record();
        println!(
            "{}: {record:?}\n  {:?}\n  {:?}",
            node.name,
            node.enforcer.lease.get(),
            node.reconciler.store_status()
        );
    }
    println!("{}", store.told());
}

/// A store that nodes share, and that fails as a test wants.
trait Store {
    /// Something goes wrong with it, for a while.
    fn fail(&mut self, random: &mut fastrand::Rng) -> String;
    /// When that is to be over.
    fn until(&self) -> Instant;
    /// It is over.
    fn mend(&mut self);
    /// How a node reaches it.
    fn join(&self, number: usize) -> Rc<Join>;
    /// An operator permits a re-format.
    fn permit(&mut self, node: &mut Node, runtime: &tokio::runtime::Runtime);
    /// It tells of the format.
    fn knows(&self, id: &str) -> bool;
    /// All that is in it.
    fn told(&self) -> String;
}

/// The store, and what is wrong with it at the moment.
struct Shaken {
    etcd: Members,
    fault: Fault,
    /// When it is mended.
    until: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// A member is dead.
    Down(usize),
    /// The disks of all members are full.
    AllDown,
    /// A member stands still.
    Frozen(usize),
    /// A member or a node is cut off.
    CutOff,
    /// It takes no more, by its quota.
    Full,
}

/// Room of a member that [`Fault::Full`] fills up.
const QUOTA: usize = 4 << 20;

impl Shaken {
    fn new() -> Self {
        let quota = QUOTA.to_string();
        let plan = Plan { members: 3, options: &[("quota-backend-bytes", &quota)], ..Plan::default() };
        let etcd = Members::start(&plan).expect("etcd");
        etcd.wait_until_healthy().expect("healthy");
        Self { etcd, fault: Fault::None, until: Instant::now() }
    }

    /// Puts as much as goes in.
    fn fill(&self) {
        for number in 0..=QUOTA >> 20 {
            let mut put = self.etcd.etcdctl(&["put", &format!("filler/{number}")]);
            put.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
            let mut put = put.spawn().expect("etcdctl, of the package etcd-client");
            // The one that is refused may not read all of it.
            let _ = put.stdin.take().expect("piped").write_all(&vec![b'x'; 1 << 20]);
            put.wait().expect("a child");
        }
    }

    /// What an operator does now and then, or never; some of it may fail while members are slow.
    fn compact(&self) {
        let _ = self.etcd.compact();
        let _ = self.etcd.defragment();
    }
}

impl Store for Shaken {
    /// By the members, one of its own first.
    fn join(&self, number: usize) -> Rc<Join> {
        let node = node_name(number);
        let link = |member: &format_guard_tests_etcd::Member| {
            let port = self.etcd.network.link(&node, member.name(), member.port()).expect("a port");
            format!("http://127.0.0.1:{port}")
        };
        let mut endpoints: Vec<String> = self.etcd.members.iter().map(link).collect();
        endpoints.rotate_left(number);
        through_etcd(endpoints)
    }

    fn until(&self) -> Instant {
        self.until
    }

    /// On this node, or whichever claims it.
    fn permit(&mut self, node: &mut Node, runtime: &tokio::runtime::Runtime) {
        node.permit(runtime);
    }

    fn told(&self) -> String {
        format!("{:?}", self.etcd.ask(&["get", "", "--prefix"]))
    }

    fn knows(&self, id: &str) -> bool {
        let key = format!("{}/volumes/{id}/record", config::Store::default().prefix);
        let value = self.etcd.ask(&["get", &key, "--print-value-only"]).unwrap_or_default();
        Shared::read(value.trim().as_bytes()).is_ok_and(|shared| shared.format.is_some())
    }

    fn fail(&mut self, random: &mut fastrand::Rng) -> String {
        self.mend();
        let member = random.usize(0..3);
        self.until = Instant::now() + Duration::from_millis(random.u64(1..9000));
        let leads = || self.etcd.leader().expect("etcdctl").unwrap_or(member);
        self.fault = match random.u32(0..8) {
            0 => {
                self.etcd.members[member].process.kill().expect("a member");
                Fault::Down(member)
            }
            1 => {
                self.etcd.members.iter().for_each(|member| member.fail_writes().expect("a member"));
                Fault::AllDown
            }
            what @ 2..4 => {
                let member = if what == 2 { member } else { leads() };
                self.etcd.members[member].process.signal(Signal::STOP).expect("a member");
                Fault::Frozen(member)
            }
            4 => {
                let leader = leads();
                self.etcd.network.cut_off(self.etcd.members[leader].name());
                Fault::CutOff
            }
            5 => {
                self.etcd.network.cut_off(&node_name(random.usize(0..NODES)));
                Fault::CutOff
            }
            6 => {
                self.fill();
                Fault::Full
            }
            _ => {
                self.compact();
                Fault::None
            }
        };
        format!("{:?}", self.fault)
    }

    fn mend(&mut self) {
        match std::mem::replace(&mut self.fault, Fault::None) {
            Fault::None => {}
            Fault::Down(member) => self.etcd.members[member].process.bring_back().expect("a member"),
            Fault::AllDown => {
                self.etcd
                    .members
                    .iter_mut()
                    .for_each(|member| member.process.bring_back().expect("a member"));
            }
            Fault::Frozen(member) => {
                self.etcd.members[member].process.signal(Signal::CONT).expect("a member");
            }
            Fault::CutOff => self.etcd.network.heal(),
            Fault::Full => {
                until("room in the store", || {
                    let _ = self.etcd.ask(&["del", "filler/", "--prefix"]);
                    self.compact();
                    self.etcd.ask(&["alarm", "disarm"]).is_ok() && self.etcd.ask(&["put", "room", ""]).is_ok()
                });
            }
        }
    }
}

fn node_name(number: usize) -> String {
    format!("node-{number}")
}

/// No two kernels let a formatter through at the same time.
fn one_lets_through(nodes: &[Node]) {
    let armed = |node: &&Node| {
        let (operation, verdict) =
            if node.writing { (Operation::Write, Verdict::Allow) } else { (Operation::Open, Verdict::Begin) };
        node.asks(operation) == verdict
    };
    let found: Vec<&Node> = nodes.iter().filter(armed).collect();
    let names: Vec<&str> = found.iter().map(|node| &*node.name).collect();
    // The first one may have ended while the others were asked.
    assert!(found.len() < 2 || !found.iter().all(armed), "{names:?} let a formatter through");
}

/// One volume from its first sight until every node knows what it holds; what failed meanwhile.
fn round(
    store: &mut impl Store,
    id: &str,
    random: &mut fastrand::Rng,
    runtime: &tokio::runtime::Runtime,
) -> Vec<String> {
    let mut disk = Disk::default();
    let mut nodes: Vec<Node> =
        (0..NODES).map(|i| Node::new(node_name(i), id, store.join(i), runtime)).collect();
    let (start, mut failed) = (Instant::now(), Vec::new());
    let faults_end = Duration::from_secs(random.u64(2..15));
    loop {
        let faulty = start.elapsed() < faults_end;
        if faulty && store.until() <= Instant::now() && random.u32(0..100) == 0 {
            failed.push(store.fail(random));
        }
        if !faulty || store.until() <= Instant::now() {
            store.mend();
        }
        if faulty && random.u32(0..100) == 0 {
            let node = random.usize(0..NODES);
            match random.u32(0..5) {
                0 | 1 => {
                    nodes[node].stopped = Some(Instant::now() + Duration::from_millis(random.u64(1..9000)));
                }
                2 => nodes[node].restart(true, runtime),
                3 if !nodes[node].writing => nodes[node].restart(false, runtime),
                4 if !disk.formats.is_empty() => {
                    disk.permits += 1;
                    store.permit(&mut nodes[node], runtime);
                }
                _ => {}
            }
        }
        for node in &mut nodes {
            // A volume whose reads go on failing is never armed again.
            let reads = if faulty { 4 } else { 3 };
            let read = [Read::Truth, Read::Truth, Read::Zeros, Read::Fails][random.usize(0..reads)];
            node.work(&disk, read, runtime);
            if random.u32(0..10) == 0 {
                node.format(&mut disk, runtime);
            }
        }
        one_lets_through(&nodes);
        let all_know = nodes.iter().all(|node| {
            let answers = node.reconciler.store_status().is_some_and(|store| store.answers);
            node.record().state == State::Formatted && !node.writing && answers
        });
        if !faulty && !disk.formats.is_empty() && all_know && store.knows(id) {
            return failed;
        }
        if start.elapsed() > PATIENCE {
            tell_all(&nodes, store);
            panic!("not every node knows");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A node's agent stops while its volume is armed; its kernel goes on.
#[test]
fn a_node_that_stopped_lets_nobody_through_once_its_lease_may_have_ended() {
    let runtime = runtime();
    let etcd = Members::start(&Plan { members: 3, ..Plan::default() }).expect("etcd");
    let join = through_etcd(etcd.endpoints());
    one_stops_and_another_formats(["first", "second"].map(|name| (name, join.clone())), &runtime);
}

fn one_stops_and_another_formats(nodes: [(&str, Rc<Join>); 2], runtime: &tokio::runtime::Runtime) {
    let mut disk = Disk::default();
    let [mut first, mut second] = nodes.map(|(name, join)| Node::new(name.to_owned(), ID, join, runtime));
    until("the first one to be armed", || {
        first.work(&disk, Read::Truth, runtime);
        first.asks(Operation::Open) == Verdict::Begin
    });
    // It begins, and does not write for a while.
    first.format(&mut disk, runtime);
    assert!(first.writing);
    first.stopped = Some(Instant::now() + PATIENCE);
    first.claim_worker.abort();
    until("the second one to format it", || {
        second.work(&disk, Read::Truth, runtime);
        second.format(&mut disk, runtime);
        !disk.formats.is_empty()
    });
    assert_eq!(disk.formats, [("second".to_owned(), 0)]);
    assert_eq!(first.asks(Operation::Write), Verdict::Deny(Reason::Claim), "of the one who began");
    first.enforcer.owners.lock().clear();
    assert_eq!(first.asks(Operation::Open), Verdict::Deny(Reason::Claim), "of another one");
}

#[test]
fn a_permit_that_was_used_meanwhile_is_not_taken_for_another_one() {
    let runtime = runtime();
    let nowhere = through_etcd(vec!["http://127.0.0.1:1".to_owned()]);
    let mut node = Node::new("node".to_owned(), ID, nowhere, &runtime);
    let _entered = runtime.enter();
    let wanted = |node: &Node| shared::desired(node.record(), "node");
    let give = |node: &mut Node, told| node.reconciler.handle(Input::Store(told)).expect("handled");
    let until = u64::try_from(since_boot().as_nanos()).expect("not that old") + 3_600_000_000_000;
    give(&mut node, StoreUpdate::Lease { id: 7, until });
    node.reconciler.handle(answer(DEV, 1, Ok(holds_of("old", 1)))).expect("handled");
    let permit = Permit { reason: "test".to_owned(), uid: 0, at: 0, expires: now() + 1000, used: false };
    let permitted = |desired, number| StoreUpdate::ClaimStatus {
        id: ID.into(),
        status: ClaimStatus::Permitted(permit.clone()),
        desired: Box::new(desired),
        lease: 7,
        number,
    };
    let before = wanted(&node);
    give(&mut node, permitted(before, 1));
    assert_eq!((node.record().state, wanted(&node)), (State::Permitted, Desired::Permitted));
    // StoreUpdate once more by what was wanted then, and under way while a formatter uses it.
    let late = permitted(Desired::Permitted, 2);
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
    rounds(|_, random, runtime| round(&mut Shaken::new(), ID, random, runtime));
}

/// As many as are asked for.
fn rounds(mut one: impl FnMut(usize, &mut fastrand::Rng, &tokio::runtime::Runtime) -> Vec<String>) {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seed = number("FORMAT_GUARD_SEED").unwrap_or_else(|| fastrand::u64(..));
    let rounds =
        number("FORMAT_GUARD_ROUNDS").map_or(ROUNDS, |rounds| usize::try_from(rounds).expect("some"));
    println!("FORMAT_GUARD_SEED={seed} FORMAT_GUARD_ROUNDS={rounds}");
    let runtime = runtime();
    let mut random = fastrand::Rng::with_seed(seed);
    for number in 0..rounds {
        let start = Instant::now();
        let faults = one(number, &mut random, &runtime);
        println!("round {number}: {} s, {}", start.elapsed().as_secs(), faults.join(", "));
    }
}
