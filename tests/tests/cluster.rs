//! One of two nodes that share iSCSI volumes and their records: `cargo xtask test --part nodes` boots both.
//! The nodes synchronise their steps through the same etcd.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    ops::Range,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use format_guard_tests::{
    device::{log_in_at, log_out, sha256, start_initiator},
    guard::Guard,
    tool::{command, module, must, run, run_command},
    wait_for,
};

/// The agent's state directory.
const STATE: &str = "/run/fg-shared";
/// Volumes that both nodes race for at the same time.
const TOGETHER: usize = 5;
/// Seconds of a node's lease.
const LEASE: u64 = 30;

fn variable(name: &str) -> Result<String> {
    env::var(format!("FORMAT_GUARD_{name}")).with_context(|| format!("FORMAT_GUARD_{name} is not set"))
}

/// The part of etcd in which nodes wait for one another.
struct World {
    node: String,
    endpoints: String,
}

impl World {
    fn etcdctl(&self, words: &[&str]) -> Result<String> {
        let mut etcdctl = command("etcdctl");
        etcdctl.env("ETCDCTL_API", "3").env("ETCDCTL_ENDPOINTS", &self.endpoints).args(words);
        let ran = run_command(etcdctl, "etcdctl", "")?;
        ensure!(ran.status == 0, "etcdctl {words:?}: {}", ran.text);
        Ok(ran.text)
    }

    /// Waits until both nodes are here, and returns what the other one has written.
    fn meet(&self, place: &str, word: &str) -> Result<String> {
        let other = if self.node == "a" { "b" } else { "a" };
        self.etcdctl(&["put", &format!("/test/{place}/{}", self.node), word])?;
        self.hear(&format!("/test/{place}/{other}"), &format!("node {other} at {place}"))
    }

    /// Waits until a key has a value.
    fn hear(&self, key: &str, whom: &str) -> Result<String> {
        wait_for(whom, || self.said(key))
    }

    fn said(&self, key: &str) -> Result<Option<String>> {
        let said = self.etcdctl(&["get", key, "--print-value-only"])?;
        Ok((!said.trim().is_empty()).then(|| said.trim().to_owned()))
    }

    /// Has the host do something to a volume.
    fn ask(&self, what: &str) -> Result<String> {
        self.etcdctl(&["del", "/test/answer"])?;
        self.etcdctl(&["put", "/test/ask", what])?;
        patiently("the host", || self.said("/test/answer"))
    }
}

fn iqn(number: u32) -> String {
    format!("iqn.2019-10.io.longhorn:pvc-shared-{number}")
}

fn id(number: u32) -> String {
    format!("iscsi:{},lun=1", iqn(number))
}

fn state(guard: &Guard, number: u32) -> Result<(String, String)> {
    let known = guard.json("volume list")?;
    let volumes = known["volumes"].as_array().context("no volumes")?;
    let volume = volumes.iter().find(|volume| volume["id"] == id(number).as_str());
    let text = |name: &str| volume.and_then(|volume| volume[name].as_str()).unwrap_or_default().to_owned();
    Ok((text("state"), text("cause")))
}

fn wait_until_formatted(guard: &Guard, number: u32) -> Result<()> {
    wait_for(&format!("the format of volume {number} on record"), || {
        Ok((state(guard, number)?.0 == "formatted").then_some(()))
    })
}

fn mkfs(path: &Path) -> Result<bool> {
    let line = format!("mkfs.ext4 -F -q {}", path.display());
    Ok(run_command(command(&line), &line, "")?.status == 0)
}

fn network() -> Result<()> {
    for name in ["virtio_pci", "virtio_net"] {
        module(name)?;
    }
    let interface = wait_for("a network interface", || {
        let names = fs::read_dir("/sys/class/net")?.flatten().map(|entry| entry.file_name());
        Ok(names.map(|name| name.to_string_lossy().into_owned()).find(|name| name != "lo"))
    })?;
    for words in [
        "link set lo up",
        &format!("link set {interface} up"),
        &format!("addr add 10.0.2.15/24 dev {interface}"),
    ] {
        must(&format!("busybox ip {words}"))?;
    }
    Ok(())
}

/// A guard whose records are shared.
fn guard(world: &World) -> Result<Guard> {
    let mut guard = Guard::unstarted(Some(Path::new(STATE)))?;
    let endpoints: Vec<String> = world.endpoints.split(',').map(|each| format!("'{each}'")).collect();
    let lines =
        format!("store.endpoints = [{}]\nstore.lease = {LEASE}\nstore.timeout = 10\n", endpoints.join(", "));
    guard.add_to_configuration(&lines)?;
    guard.set_variable("NODE_NAME", format!("node-{}", world.node).as_ref());
    guard.start_agent()?;
    wait_for("the store", || {
        let status = guard.json("status")?;
        Ok((status["store"]["answers"] == true).then_some(()))
    })?;
    Ok(guard)
}

#[test]
#[ignore = "one of two nodes: cargo xtask test cluster"]
fn two_nodes_share_volumes_and_each_is_formatted_once() -> Result<()> {
    network()?;
    let portal = variable("PORTAL")?;
    let world = World { node: variable("NODE")?, endpoints: variable("ETCD")? };
    start_initiator(&format!("iqn.1993-08.org.debian:01:node-{}", world.node))?;
    let mut guarded = guard(&world)?;
    world.meet("start", "here")?;
    known_at_first_sight(&world, &mut guarded, &portal)?;
    let rounds: u32 = variable("ROUNDS")?.parse()?;
    let (mut won, end) = (0, 2 + rounds);
    for first in (2..end).step_by(TOGETHER) {
        won += fought_for(&world, &guarded, &portal, first..end.min(first + TOGETHER as u32))?;
    }
    println!("node {} formatted {won} of {rounds}", world.node);
    paused_in_the_middle(&world, &guarded, &portal, 2 + rounds)?;
    world.meet("end", "done").map(drop)
}

/// A volume that was formatted on A and detached is refused on B: while every read returns zeros, and while
/// every read fails, by an agent that has lost its records.
fn known_at_first_sight(world: &World, guard: &mut Guard, portal: &str) -> Result<()> {
    const NUMBER: u32 = 1;
    let armed = |guard: &Guard, path: &Path| {
        wait_for("the volume to be armed and formatted", || {
            ensure!(state(guard, NUMBER)?.0 != "formatted", "somebody else formatted it");
            Ok(mkfs(path)?.then_some(()))
        })
    };
    if world.node == "a" {
        let path = log_in_at(&iqn(NUMBER), portal)?;
        armed(guard, &path)?;
        wait_until_formatted(guard, NUMBER)?;
        log_out(&iqn(NUMBER))?;
        ensure!(world.ask(&format!("zero {NUMBER}"))? == "done");
        world.meet("formatted", "it is")?;
        world.meet("refused", "is it?")?;
        ensure!(world.ask(&format!("sum {NUMBER}"))? == "true", "something was written to it");
        return Ok(());
    }
    world.meet("formatted", "is it?")?;
    for lost in [false, true] {
        if lost {
            ensure!(world.ask(&format!("cut {NUMBER}"))? == "done");
            guard.stop_agent()?;
            fs::remove_dir_all(STATE)?;
            guard.start_agent()?;
        }
        let path: PathBuf = log_in_at(&iqn(NUMBER), portal)?;
        ensure!(!mkfs(&path)?, "formatted at first sight");
        let (known, cause) = wait_for("the other node's word", || {
            let (known, cause) = state(guard, NUMBER)?;
            Ok((known == "formatted").then_some((known, cause)))
        })?;
        ensure!(cause.contains("node-a") || !lost, "{known}: {cause}");
        for _ in 0..3 {
            ensure!(!mkfs(&path)?, "formatted over another node's format");
        }
        let read = run(&format!("dd if={} of=/dev/null bs=4096 count=1 iflag=direct", path.display()))?;
        ensure!((read.status != 0) == lost, "reads do not what they should: {}", read.text);
        log_out(&iqn(NUMBER))?;
    }
    // An agent that has lost its records arms nothing until an operator ends the loss.
    guard.json("loss end --reason told-by-the-store")?;
    world.meet("refused", "it is").map(drop)
}

/// Both nodes attach the volumes and try to format each until one has succeeded. Returns the volumes that
/// this node formatted.
fn fought_for(world: &World, guard: &Guard, portal: &str, numbers: Range<u32>) -> Result<usize> {
    let place = |what: &str| format!("{}/{what}", numbers.start);
    let attached = numbers.clone().map(|number| Ok((number, log_in_at(&iqn(number), portal)?)));
    let paths = attached.collect::<Result<BTreeMap<u32, PathBuf>>>()?;
    world.meet(&place("attached"), "here")?;
    let (mut open, mut ours) = (paths.clone(), BTreeSet::new());
    patiently("somebody to format them", || {
        let mut left = BTreeMap::new();
        for (number, path) in std::mem::take(&mut open) {
            if mkfs(&path)? {
                ours.insert(number);
            } else if state(guard, number)?.0 != "formatted" {
                left.insert(number, path);
            }
        }
        open = left;
        Ok(open.is_empty().then_some(()))
    })?;
    let told = ours.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
    let theirs = world.meet(&place("formatted"), &format!("these: {told}"))?;
    let theirs = theirs.trim_start_matches("these:").split_whitespace();
    let theirs = theirs.map(str::parse).collect::<Result<BTreeSet<u32>, _>>()?;
    ensure!(ours.is_disjoint(&theirs), "both formatted one of {ours:?} and {theirs:?}");
    ensure!(ours.len() + theirs.len() == paths.len(), "nobody formatted one of {numbers:?}");
    // A node that lost the race does not get the volume later either.
    for (number, path) in &paths {
        wait_until_formatted(guard, *number)?;
        ensure!(!mkfs(path)?, "formatted once more");
    }
    world.meet(&place("done"), "done")?;
    for number in numbers {
        log_out(&iqn(number))?;
    }
    Ok(ours.len())
}

/// Opens a device for writing, writes a block, and goes on when it is told to. The block is on the device
/// before it waits.
const STOPS_HALF_WAY: &str = r"#!/usr/bin/perl
use IO::Handle;
my ($device, $begun, $goes_on) = @ARGV;
open my $out, '+<', $device or exit 2;
sub put { sysseek $out, $_[0], 0; (syswrite($out, 'x' x 4096) // 0) == 4096 && $out->sync }
put(1 << 20) or exit 2;
open my $told, '>', $begun or exit 3;
close $told;
until (-e $goes_on) { select undef, undef, undef, 0.1 }
put(0) and exit 0;
exit($!{EPERM} ? 4 : 5);
";

/// Node A stands still in the middle of a format for longer than its lease, and goes on after B has formatted
/// the volume.
fn paused_in_the_middle(world: &World, guard: &Guard, portal: &str, number: u32) -> Result<()> {
    let place = |what: &str| format!("{number}/{what}");
    if world.node == "b" {
        world.meet(&place("begun"), "has it?")?;
        let path = log_in_at(&iqn(number), portal)?;
        patiently("the claim of a node that is gone", || Ok(mkfs(&path)?.then_some(()))).or_else(
            |error| {
                let (state, cause) = state(guard, number)?;
                bail!("{error}; node b knows it as {state}: {cause}")
            },
        )?;
        wait_until_formatted(guard, number)?;
        let before = sha256(&path)?;
        world.meet(&place("formatted"), "it is")?;
        world.meet(&place("refused"), "was it?")?;
        ensure!(sha256(&path)? == before, "a node that stood still wrote over another one's format");
        must(&format!("e2fsck -fn {}", path.display()))?;
        return log_out(&iqn(number));
    }
    let path = log_in_at(&iqn(number), portal)?;
    let (script, begun, goes_on) = (Path::new("/run/mkfs.ext4"), "/run/fg-begun", "/run/fg-goes-on");
    fs::write(script, STOPS_HALF_WAY)?;
    fs::set_permissions(script, fs::Permissions::from_mode(0o755))?;
    let line = format!("{} {} {begun} {goes_on}", script.display(), path.display());
    let mut formatter = patiently("the volume to be armed", || {
        let mut formatter = command(&line).spawn()?;
        wait_for("it to begin or to be refused", || {
            if Path::new(begun).exists() {
                return Ok(Some(Some(())));
            }
            Ok(formatter.try_wait()?.map(|_| None))
        })
        .map(|begun| begun.map(|()| formatter))
    })?;
    world.meet(&place("begun"), "it has")?;
    let before = Instant::now();
    ensure!(world.ask(&format!("pause {number}"))? == "done");
    // By the clock that ends the claim.
    ensure!(before.elapsed().as_secs() > LEASE, "it did not stand still for {LEASE} s: nothing is shown");
    fs::write(goes_on, "")?;
    let status = wait_for("the formatter to end", || Ok(formatter.try_wait()?))?;
    ensure!(status.code() == Some(4), "not refused: {status}");
    world.meet(&place("formatted"), "is it?")?;
    wait_until_formatted(guard, number)?;
    ensure!(!mkfs(&path)?, "formatted over another node's format");
    world.meet(&place("refused"), "it was")?;
    log_out(&iqn(number))
}

/// Waits for what takes as long as a lease and a quarantine: this node may stand still meanwhile.
fn patiently<T>(what: &str, mut ready: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        match ready()? {
            Some(value) => return Ok(value),
            None if start.elapsed() > Duration::from_mins(7) => bail!("waited in vain for {what}"),
            None => thread::sleep(Duration::from_millis(200)),
        }
    }
}
