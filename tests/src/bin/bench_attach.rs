//! What many volumes cost: the time from records to rules at the agent's start, its memory, and the time until a new device has
//! its rule, beside what udevd needs for the same devices.
//!
//! `cargo xtask bench attach` runs it in a guest whose clock counts instructions (qemu's `-icount`, one nanosecond each): its
//! seconds are those of a processor that does a thousand million instructions in one, and the same in every run. With `--here`
//! it runs on this host, in seconds of its own, over loop devices (`FORMAT_GUARD_DEVICES=loops`).

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use format_guard_tests::{
    device::{Device, Loop},
    guard::Guard,
    tool::{module, must, run},
    wait_for,
};
use serde_json::Value;

/// Volumes that are attached one by one.
const ONE_BY_ONE: u32 = 100;
/// Volumes that one dmsetup makes: a command line has a limit.
const AT_ONCE: u32 = 500;
/// Sectors of each.
const SECTORS: u32 = 1 << 16;

const START_GOAL: f64 = 2.0;
const MEMORY_GOAL: u64 = 64;

fn main() -> Result<()> {
    let records =
        PathBuf::from(env::var_os("FORMAT_GUARD_RECORDS").context("FORMAT_GUARD_RECORDS names records")?);
    let volumes: u32 =
        env::var("FORMAT_GUARD_VOLUMES").context("FORMAT_GUARD_VOLUMES is a number")?.parse()?;
    let mut devices = Devices::new()?;
    let state = tempfile::Builder::new().prefix("fg-bench-").tempdir_in("/run")?;
    let state = state.path();
    for file in fs::read_dir(&records)? {
        let file = file?;
        fs::copy(file.path(), state.join(file.file_name()))?;
    }
    println!("kernel {}", fs::read_to_string("/proc/sys/kernel/osrelease")?.trim());
    devices.make(0, volumes)?;
    let mut guard = Guard::unstarted(Some(state))?;
    guard.spawn_agent()?;
    let ruled =
        wait_for_long("the rules", || Ok(guard.log().contains("every device has its rule").then_some(())));
    ruled.with_context(|| guard.log())?;
    let seconds = seconds_between(&guard.log(), "format-guard starts", "every device has its rule")?;
    println!("from records to rules: {seconds:.2} s (goal {START_GOAL})");
    let log = guard.log();
    for (part, word) in [
        ("the records are read and checked", "the records are read"),
        ("the kernel programs are loaded", "is ready to be put in force"),
        ("the last device is looked at", " attached "),
    ] {
        println!("  until {part}: {:.2} s", seconds_to_last(&log, word)?);
    }
    let answered = || Ok(guard.ask("status").is_ok_and(|ran| ran.status == 0).then_some(()));
    wait_for_long("the agent to be in force", answered)?;
    wait_for_long("every volume to be probed", || {
        Ok((devices.probed(&guard.json("status")?) >= u64::from(volumes)).then_some(()))
    })?;
    println!(
        "every volume is probed {:.2} s after the start",
        seconds_to_last(&guard.log(), devices.word_of_a_probe())?
    );
    let memory = memory(guard.agent_id()?)?;
    let status = guard.json("status")?;
    println!("{} records, {} devices", status["volumes"][0]["count"], status["devices"]);
    println!("largest resident set: {memory} MiB (goal {MEMORY_GOAL})");

    // Devices that are new to everybody, one after another.
    let mut guarded = latencies(&mut devices, volumes, |path| {
        let deadline = Instant::now() + Duration::from_mins(1);
        // The agent answers once the rule is there.
        while !guard.shown(path).is_ok_and(|volume| volume["state"].is_string()) {
            ensure!(Instant::now() < deadline, "{} has no rule", path.display());
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    })?;
    println!("{ONE_BY_ONE} new devices have their rule");
    guard.kill_agent()?;
    fs::create_dir_all("/run/udev")?;
    let mut udevd =
        Command::new("/lib/systemd/systemd-udevd").stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    wait_for("udevd", || Ok((run("udevadm control --ping")?.status == 0).then_some(())))?;
    println!("udevd is there");
    let mut settled = latencies(&mut devices, volumes + ONE_BY_ONE, |_| must("udevadm settle").map(drop))?;
    udevd.kill()?;
    udevd.wait()?;
    for (name, times) in [("its rule", &mut guarded), ("udevadm settle", &mut settled)] {
        let [half, most] = percentiles(times);
        println!("from the making of a device to {name}: p50 {half:.1} ms, p99 {most:.1} ms");
    }
    let ratio = percentiles(&mut guarded)[0] / percentiles(&mut settled)[0];
    println!("p50 is {ratio:.2} of what udevadm settle needs");
    ensure!(seconds < START_GOAL && memory < MEMORY_GOAL, "a goal is not met");
    Ok(())
}

/// What the volumes lie on.
enum Devices {
    /// Device mapper over one null block device; the records know them, and they read blank.
    Linear,
    /// Loop devices, of which nothing is known.
    Loops(Vec<Loop>),
}

impl Devices {
    fn new() -> Result<Self> {
        if env::var("FORMAT_GUARD_DEVICES").is_ok_and(|devices| devices == "loops") {
            return Ok(Self::Loops(Vec::new()));
        }
        module("dm_mod")?;
        must("modprobe null_blk nr_devices=1 gb=1024")?;
        Ok(Self::Linear)
    }

    /// Makes devices of these numbers, in order.
    fn make(&mut self, first: u32, count: u32) -> Result<()> {
        if let Self::Loops(loops) = self {
            for _ in 0..count {
                loops.push(Loop::new(u64::from(SECTORS) >> 11)?);
            }
            return Ok(());
        }
        // By few commands.
        for start in (first..first + count).step_by(AT_ONCE as usize) {
            let devices: Vec<String> = (start..(start + AT_ONCE).min(first + count))
                .map(|i| format!("fgbench{i},FGBENCH-{i},,rw,0 {SECTORS} linear /dev/nullb0 {}", i * SECTORS))
                .collect();
            let made = Command::new("dmsetup")
                .args(["create", "--concise", &devices.join(";")])
                .env("DM_DISABLE_UDEV", "1")
                .status()?;
            ensure!(made.success(), "dmsetup failed");
        }
        Ok(())
    }

    fn path(&self, number: u32) -> PathBuf {
        match self {
            Self::Linear => PathBuf::from(format!("/dev/mapper/fgbench{number}")),
            Self::Loops(loops) => loops[number as usize].path().to_owned(),
        }
    }

    /// How many are probed, by the agent's status.
    fn probed(&self, status: &Value) -> u64 {
        match self {
            Self::Linear => status["discrepancies"].as_u64().unwrap_or(0),
            Self::Loops(_) => {
                let counts = status["volumes"].as_array();
                let blank = counts.and_then(|counts| counts.iter().find(|count| count["state"] == "blank"));
                blank.and_then(|count| count["count"].as_u64()).unwrap_or(0)
            }
        }
    }

    /// What a line of the log has once one of them is.
    const fn word_of_a_probe(&self) -> &'static str {
        match self {
            Self::Linear => "discrepancy",
            Self::Loops(_) => "kind=\"blank\"",
        }
    }
}

/// What it takes until this is so of a new device, for each of some.
fn latencies(
    devices: &mut Devices,
    first: u32,
    mut until: impl FnMut(&Path) -> Result<()>,
) -> Result<Vec<f64>> {
    (first..first + ONE_BY_ONE)
        .map(|number| {
            let start = Instant::now();
            devices.make(number, 1)?;
            until(&devices.path(number))?;
            Ok(start.elapsed().as_secs_f64() * 1e3)
        })
        .collect()
}

fn percentiles(times: &mut [f64]) -> [f64; 2] {
    times.sort_by(f64::total_cmp);
    [50, 99].map(|percent| times[(times.len() * percent / 100).min(times.len() - 1)])
}

/// Between the first lines with these words in a log, whose lines begin with a time of day in UTC.
fn seconds_between(log: &str, first: &str, second: &str) -> Result<f64> {
    between(log.lines().find(|line| line.contains(first)), log.lines().find(|line| line.contains(second)))
}

/// From the start of the agent to the last line with this word.
fn seconds_to_last(log: &str, word: &str) -> Result<f64> {
    between(log.lines().next(), log.lines().rfind(|line| line.contains(word)))
}

fn between(first: Option<&str>, second: Option<&str>) -> Result<f64> {
    let time = |line: Option<&str>| -> Result<f64> {
        let time = line.and_then(|line| line.get(11..26)).context("no line, or no time in it")?;
        let parts: Vec<f64> = time.split(':').map(str::parse).collect::<Result<_, _>>()?;
        Ok(parts.iter().fold(0.0, |sum, part| sum * 60.0 + part))
    };
    let seconds = time(second)? - time(first)?;
    ensure!(seconds > 0.0, "it was midnight between: run it again");
    Ok(seconds)
}

/// The most that a process ever had in memory, in MiB.
fn memory(process: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: u64 = line.split_whitespace().next().context("no size")?.parse()?;
    Ok(kib.div_ceil(1024))
}

/// What a clock of instructions makes of one minute is short for the work of thousands of devices.
fn wait_for_long<T>(what: &str, mut ready: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        match wait_for(what, &mut ready) {
            Err(error) if start.elapsed() > Duration::from_mins(10) => return Err(error),
            Err(_) => {}
            done => return done,
        }
    }
}
