//! What many volumes cost. The bench measures the time from records to rules at the agent's start, and the
//! agent's memory. It also measures the time from the kernel's uevent for a new device until the device has
//! its rule, and until it may be formatted, beside what udevd needs for the same devices.
//!
//! `cargo xtask bench attach` runs it in a guest whose clock counts instructions (qemu's `-icount`, one
//! nanosecond each). Its seconds are those of a processor with a thousand million instructions a second, and
//! the same in every run. With `--here` it runs on this host over loop devices, in the host's seconds
//! (`FORMAT_GUARD_DEVICES=loops`).

use std::{
    collections::HashMap,
    env, fs, io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, ArrayOfMaps, HashMap as BpfHashMap, Map, MapData, MapError};
use format_guard_common::{RULES_IN_SEGMENT, Rule, State};
use format_guard_tests::{
    device::{Device, Loop, SECTORS_OF_MANY, make_many},
    guard::{Guard, PINS},
    tool::{must, run},
    wait_for,
};
use serde_json::Value;

/// Volumes that are attached one by one.
const ONE_BY_ONE: u32 = 100;
/// Volumes that are attached all at once.
const BURST: u32 = 200;
/// The pause between volumes that are attached one by one: no volume waits for the one before.
const PAUSE: Duration = Duration::from_millis(100);

const START_GOAL: f64 = 2.0;
const MEMORY_GOAL: u64 = 64;

fn main() -> Result<()> {
    let records =
        PathBuf::from(env::var_os("FORMAT_GUARD_RECORDS").context("FORMAT_GUARD_RECORDS names records")?);
    let volumes: u32 =
        env::var("FORMAT_GUARD_VOLUMES").context("FORMAT_GUARD_VOLUMES is a number")?.parse()?;
    let mut devices = Devices::new();
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
        ("the records are read and checked", "has read the records"),
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

    // Devices that neither the agent nor the kernel has seen.
    let kernel = Kernel::listen()?;
    let mut next = volumes;
    for (name, at_once, times, pause) in [
        ("with pauses", 1, ONE_BY_ONE, PAUSE),
        ("one after another", 1, ONE_BY_ONE, Duration::ZERO),
        ("at once", BURST, 1, Duration::ZERO),
    ] {
        let (mut ruled, mut armed) = (Vec::new(), Vec::new());
        for _ in 0..times {
            devices.make(next, at_once)?;
            let paths: Vec<PathBuf> = (next..next + at_once).map(|number| devices.path(number)).collect();
            for (rule, arm) in kernel.until_armed(&paths)? {
                ruled.push(rule);
                armed.push(arm);
            }
            next += at_once;
            thread::sleep(pause);
        }
        for (what, times) in [("its rule", &mut ruled), ("armed", &mut armed)] {
            let [half, most] = percentiles(times);
            println!(
                "{} devices {name}, from the kernel's word to {what}: p50 {half:.1} ms, p99 {most:.1} ms",
                times.len()
            );
        }
    }
    guard.kill_agent()?;
    fs::create_dir_all("/run/udev")?;
    let mut udevd =
        Command::new("/lib/systemd/systemd-udevd").stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    wait_for("udevd", || Ok((run("udevadm control --ping")?.status == 0).then_some(())))?;
    println!("udevd is there");
    let mut settled = latencies(&mut devices, next, |_| must("udevadm settle").map(drop))?;
    udevd.kill()?;
    udevd.wait()?;
    let [half, most] = percentiles(&mut settled);
    println!("from the making of a device to udevadm settle: p50 {half:.1} ms, p99 {most:.1} ms");
    ensure!(seconds < START_GOAL && memory < MEMORY_GOAL, "a goal is not met");
    Ok(())
}

/// The devices under the volumes.
enum Devices {
    /// Device mapper over one null block device; the database has records of the volumes, which read blank.
    Linear,
    /// Loop devices, of which the database has no record.
    Loops(Vec<Loop>),
}

impl Devices {
    fn new() -> Self {
        if env::var("FORMAT_GUARD_DEVICES").is_ok_and(|devices| devices == "loops") {
            return Self::Loops(Vec::new());
        }
        Self::Linear
    }

    /// Makes devices of these numbers, in order.
    fn make(&mut self, first: u32, count: u32) -> Result<()> {
        if let Self::Loops(loops) = self {
            for _ in 0..count {
                loops.push(Loop::at_once(u64::from(SECTORS_OF_MANY) >> 11)?);
            }
            return Ok(());
        }
        make_many(first, count)
    }

    fn path(&self, number: u32) -> PathBuf {
        match self {
            Self::Linear => PathBuf::from(format!("/dev/mapper/fgbench{number}")),
            Self::Loops(loops) => loops[number as usize].path().to_owned(),
        }
    }

    /// The number of probes, by the agent's status.
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

    /// The text in the log's line for one of these devices.
    const fn word_of_a_probe(&self) -> &'static str {
        match self {
            Self::Linear => "discrepancy",
            Self::Loops(_) => "kind=\"blank\"",
        }
    }
}

/// The kernel's uevents, and the rules that are in its maps.
struct Kernel {
    /// The time of the last `change` uevent for a device of this name: the device can be used from then on.
    told: Arc<Mutex<HashMap<String, Instant>>>,
    slots: BpfHashMap<MapData, u32, u32>,
    rules: ArrayOfMaps<MapData, Array<MapData, Rule>>,
}

impl Kernel {
    fn listen() -> Result<Self> {
        // SAFETY: no memory is shared with the call.
        let socket = unsafe {
            libc::socket(
                libc::AF_NETLINK,
                libc::SOCK_DGRAM | libc::SOCK_CLOEXEC,
                libc::NETLINK_KOBJECT_UEVENT,
            )
        };
        ensure!(socket >= 0, "no socket for uevents: {}", io::Error::last_os_error());
        // SAFETY: a new descriptor, nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        // SAFETY: plain integers, of which zero is a value.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        // Messages from the kernel only.
        address.nl_groups = 1;
        let length = size_of_val(&address) as libc::socklen_t;
        // SAFETY: an address of that length.
        let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
        ensure!(bound == 0, "cannot listen to uevents: {}", io::Error::last_os_error());
        let told: Arc<Mutex<HashMap<String, Instant>>> = Arc::default();
        let kept = Arc::clone(&told);
        thread::spawn(move || {
            let mut buffer = [0; 8192];
            while let Ok(length) = rustix::io::read(&socket, &mut buffer) {
                let now = Instant::now();
                let text = String::from_utf8_lossy(&buffer[..length]);
                let has = |word: &str| text.split('\0').any(|field| field == word);
                let name = text.split('\0').find_map(|field| field.strip_prefix("DEVNAME="));
                if let Some(name) = name.filter(|_| has("ACTION=change") && has("SUBSYSTEM=block")) {
                    kept.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), now);
                }
            }
        });
        let maps = fs::read_dir(PINS)?.filter_map(Result::ok).map(|entry| entry.path().join("maps"));
        let maps = maps.filter(|path| path.is_dir()).last().context("no maps")?;
        let map = |name: &str| MapData::from_pin(maps.join(name)).with_context(|| format!("no map {name}"));
        Ok(Self {
            told,
            slots: BpfHashMap::try_from(Map::HashMap(map("SLOTS")?))?,
            rules: ArrayOfMaps::try_from(Map::ArrayOfMaps(map("RULES")?))?,
        })
    }

    fn rule(&self, number: u32) -> Result<Rule, MapError> {
        let slot = self.slots.get(&number, 0)?;
        self.rules.get(&(slot / RULES_IN_SEGMENT), 0)?.get(&(slot % RULES_IN_SEGMENT), 0)
    }

    fn told(&self) -> std::sync::MutexGuard<'_, HashMap<String, Instant>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until each of these devices is armed. Returns the milliseconds from its uevent until it had its
    /// rule, and until it was armed.
    fn until_armed(&self, paths: &[PathBuf]) -> Result<Vec<(f64, f64)>> {
        let deadline = Instant::now() + Duration::from_mins(5);
        let mut seen: Vec<[Option<Instant>; 2]> = vec![[None; 2]; paths.len()];
        let numbers: Vec<u32> = paths
            .iter()
            .map(|path| {
                let number = fs::metadata(path)?.rdev();
                Ok(libc::major(number) << 20 | libc::minor(number))
            })
            .collect::<Result<_>>()?;
        while seen.iter().any(|[_, armed]| armed.is_none()) {
            ensure!(Instant::now() < deadline, "not all devices are armed");
            for (number, [ruled, armed]) in numbers.iter().zip(&mut seen) {
                if armed.is_some() {
                    continue;
                }
                let Ok(rule) = self.rule(*number).map(|rule| rule.state) else { continue };
                ruled.get_or_insert_with(Instant::now);
                if rule == State::Blank as u32 {
                    *armed = Some(Instant::now());
                }
            }
            thread::sleep(Duration::from_micros(200));
        }
        let told = self.told();
        paths
            .iter()
            .zip(seen)
            .map(|(path, [ruled, armed])| {
                let path = fs::canonicalize(path)?;
                let name = path.file_name().context("no name")?.to_string_lossy();
                let told = told.get(&*name).with_context(|| format!("the kernel did not tell of {name}"))?;
                let after = |time: Option<Instant>| {
                    time.map_or(0.0, |time| time.saturating_duration_since(*told).as_secs_f64() * 1e3)
                };
                Ok((after(ruled), after(armed)))
            })
            .collect()
    }
}

/// The time until this condition holds for a new device, for several devices.
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

/// Seconds between the first lines with these words in a log, whose lines begin with a time of day in UTC.
fn seconds_between(log: &str, first: &str, second: &str) -> Result<f64> {
    between(log.lines().find(|line| line.contains(first)), log.lines().find(|line| line.contains(second)))
}

/// Seconds from the start of the agent to the last line with this word.
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

/// The peak memory of a process, in MiB.
fn memory(process: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: u64 = line.split_whitespace().next().context("no size")?.parse()?;
    Ok(kib.div_ceil(1024))
}

/// One minute is short for the work of thousands of devices by a clock of instructions.
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
