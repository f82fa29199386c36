//! Two guests that share iSCSI volumes, and an etcd of three members between them:
//! `cargo xtask test --part nodes`.
//!
//! The volumes and the members run on this host, which the guests reach at 10.0.2.2 (qemu's user network).
//! The guests synchronise through the same etcd, below a prefix of its own.

use std::{
    ffi::OsString,
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{self, Child, Command},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use format_guard_tests_etcd::{Members, Plan};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    command::{command, find, output, read},
    guest::{Clock, Guest, sparse_image, with_guard},
    kernels::Kernel,
};

/// Volumes that two nodes race for, unless `FORMAT_GUARD_ROUNDS` names a number.
const ROUNDS: u32 = 3;
const SIZE: u64 = 32 << 20;
/// The time for everything but the rounds.
const TIMEOUT: Duration = Duration::from_mins(20);
/// The time for each round.
const TIMEOUT_OF_A_ROUND: Duration = Duration::from_secs(40);
/// How long a program of this host may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a node may stand still: meanwhile its lease ends, and the other node waits for the quarantine of
/// what it left.
const PAUSE: Duration = Duration::from_mins(6);

/// A process that is killed when the value is dropped.
struct Running(Child);

impl Running {
    fn start(mut command: Command, log: &Path) -> Result<Self> {
        let log = File::create(log)?;
        command.stdout(log.try_clone()?).stderr(log);
        Ok(Self(
            command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))?,
        ))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The process may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the guests share.
struct Cluster {
    etcd: Members,
    directory: tempfile::TempDir,
    portal: u16,
    /// tgtd's own control socket: other targets of this host must not be touched.
    control: String,
    _tgtd: Running,
}

fn wait_for(what: &str, patience: Duration, mut ready: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !ready()? {
        ensure!(start.elapsed() < patience, "waited {} s in vain for {what}", patience.as_secs());
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

impl Cluster {
    fn new(volumes: u32) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        // Emulated guests slow the members down.
        let options = [("heartbeat-interval", "500"), ("election-timeout", "5000")];
        let etcd = Members::start(&Plan { members: 3, options: &options, ..Plan::default() })?;
        let portal = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let control = (process::id() % 30_000 + 1).to_string();
        let tgtd = find("tgtd").context("tgtd is missing: cargo xtask setup")?;
        let tgtd = command(
            &tgtd.to_string_lossy(),
            ["-f", "-C", &control, "--iscsi", &format!("portal=127.0.0.1:{portal}")],
        );
        let tgtd = Running::start(tgtd, &directory.path().join("tgtd.log"))?;
        let cluster = Self { etcd, directory, portal, control, _tgtd: tgtd };
        cluster.etcd.wait_until_healthy()?;
        wait_for("tgtd", PATIENCE, || {
            Ok(output(&mut cluster.tgtadm(&["--op", "show", "--mode", "target"]))?.status.success())
        })?;
        for number in 1..=volumes {
            sparse_image(&cluster.image(number), SIZE)?;
            let (tid, image) = (number.to_string(), cluster.image(number).display().to_string());
            let iqn = format!("iqn.2019-10.io.longhorn:pvc-shared-{number}");
            read(cluster.tgtadm(&["--op", "new", "--mode", "target", "--tid", &tid, "-T", &iqn]))?;
            read(cluster.tgtadm(&[
                "--op",
                "new",
                "--mode",
                "logicalunit",
                "--tid",
                &tid,
                "--lun",
                "1",
                "-b",
                &image,
            ]))?;
            read(cluster.tgtadm(&["--op", "bind", "--mode", "target", "--tid", &tid, "-I", "ALL"]))?;
        }
        Ok(cluster)
    }

    fn image(&self, number: u32) -> PathBuf {
        self.directory.path().join(format!("volume-{number}.img"))
    }

    fn tgtadm(&self, words: &[&str]) -> Command {
        command("tgtadm", ["-C", &self.control, "--lld", "iscsi"].iter().chain(words))
    }

    /// What a guest has written to a key; nothing if the key is missing.
    fn said(&self, key: &str) -> Result<String> {
        Ok(self.etcd.ask(&["get", key, "--print-value-only"])?.trim().to_owned())
    }

    /// Serves the guests until both are done. `zero N` makes every read of volume N return zeros, `cut N`
    /// makes it fail, `sum N` returns whether the volume holds nothing but zeros, and `pause N` stops node A
    /// until node B says that it has formatted volume N.
    fn serve(&self, first: &OnceLock<Pid>, done: impl Fn() -> bool) -> Result<()> {
        while !done() {
            thread::sleep(Duration::from_millis(100));
            let asked = self.said("/test/ask")?;
            let Some((what, number)) = asked.split_once(' ') else { continue };
            let image = self.image(number.parse()?);
            let answer = match what {
                "zero" => {
                    sparse_image(&image, 0)?;
                    sparse_image(&image, SIZE)?;
                    "done".to_owned()
                }
                "cut" => {
                    sparse_image(&image, 0)?;
                    "done".to_owned()
                }
                "sum" => fs::read(&image)?.iter().all(|byte| *byte == 0).to_string(),
                "pause" => {
                    let pid = *first.get().context("node a asks before it runs")?;
                    kill_process(pid, Signal::STOP)?;
                    let key = format!("/test/{number}/formatted/b");
                    let said =
                        wait_for("node b to format it", PAUSE, || Ok(done() || !self.said(&key)?.is_empty()));
                    kill_process(pid, Signal::CONT)?;
                    said.map_or_else(|error| error.to_string(), |()| "done".to_owned())
                }
                other => bail!("a guest asks for {other}"),
            };
            self.etcd.ask(&["del", "/test/ask"])?;
            self.etcd.ask(&["put", "/test/answer", &answer])?;
        }
        Ok(())
    }
}

/// Runs both guests, and returns whether each passed, and what they printed.
pub(crate) fn run_nodes(kernel: &Kernel, guard: &Path, tests: &Path) -> Result<(bool, String)> {
    let rounds = match std::env::var("FORMAT_GUARD_ROUNDS") {
        Ok(rounds) => rounds.parse().context("FORMAT_GUARD_ROUNDS is no number")?,
        Err(_) => ROUNDS,
    };
    // Two volumes more: one for the tests before the rounds, one for those after.
    let cluster = Cluster::new(rounds + 2)?;
    let first = OnceLock::new();
    let endpoints: Vec<String> =
        cluster.etcd.members.iter().map(|member| format!("http://10.0.2.2:{}", member.port())).collect();
    let guest = |node: &str| {
        let arguments = ["--ignored", "--nocapture"].map(OsString::from);
        let mut command = with_guard(guard, tests, arguments);
        for (name, value) in [
            ("NODE", node.to_owned()),
            ("PORTAL", format!("10.0.2.2:{}", cluster.portal)),
            ("ETCD", endpoints.join(",")),
            ("ROUNDS", rounds.to_string()),
            ("TIER", "lsm".to_owned()),
        ] {
            command.insert(1, format!("FORMAT_GUARD_{name}={value}").into());
        }
        Guest {
            kernel: kernel.clone(),
            command,
            disks: Vec::new(),
            timeout: TIMEOUT + TIMEOUT_OF_A_ROUND * rounds,
            clock: Clock::Host,
            parameters: String::new(),
            network: true,
        }
    };
    let run = |node: &'static str| -> Result<(u8, String)> {
        let mut printed = Vec::new();
        let status = guest(node).run_known(&mut printed, |qemu| {
            if node == "a" {
                first.get_or_init(|| Pid::from_child(qemu));
            }
        })?;
        Ok((status, format!("node {node}\n{}", String::from_utf8_lossy(&printed))))
    };
    thread::scope(|scope| {
        let guests = ["a", "b"].map(|node| scope.spawn(move || run(node)));
        let served = cluster.serve(&first, || guests.iter().all(thread::ScopedJoinHandle::is_finished));
        let (mut held, mut text) = (true, String::new());
        for guest in guests {
            let (status, printed) =
                guest.join().map_err(|_| anyhow::anyhow!("a guest's thread panicked"))??;
            held &= status == 0;
            text.push_str(&printed);
        }
        served.map(|()| (held, text))
    })
}
