//! What was recorded is known after a reboot. Two boots share two disks: one holds the state directory, the
//! other the volumes. `cargo xtask test` runs one half in each boot. `cargo xtask cuts` boots again and
//! again, with a third disk that records what was done to each volume.

use std::{
    env,
    fmt::Write,
    fs,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use format_guard_tests::{
    attack,
    device::{Device, Linear, Loop, log_in, serve_target, sha256},
    guard::{Guard, database_is_sound},
    ledger::Ledger,
    tool::{command, module, must, must_with},
};

const STATE: &str = "/run/fg-state";
const IQN: &str = "iqn.2019-10.io.longhorn:pvc-reboot";
/// Half of the second disk is an iSCSI volume, the rest a dm volume.
const SECTORS: u64 = 64 << 11;

/// The disk with the state directory, mounted.
fn mount_state(format: bool) -> Result<PathBuf> {
    module("virtio_blk")?;
    if format {
        must("mkfs.ext4 -F -q /dev/vda")?;
    }
    fs::create_dir_all(STATE)?;
    must(&format!("mount /dev/vda {STATE}"))?;
    Ok(PathBuf::from(STATE))
}

/// The volumes: dm-linear over the two halves of the second disk, the second one served as iSCSI; a loop over
/// a file.
fn volumes(state: &Path) -> Result<Vec<PathBuf>> {
    for name in ["dm_mod", "loop"] {
        module(name)?;
    }
    must_with("dmsetup create fg-first --uuid FGTEST-first", &format!("0 {SECTORS} linear /dev/vdb 0"))?;
    must_with(
        "dmsetup create fg-second --uuid FGTEST-second",
        &format!("0 {SECTORS} linear /dev/vdb {SECTORS}"),
    )?;
    serve_target(1, IQN, Path::new("/dev/mapper/fg-second"))?;
    let iscsi = log_in(IQN)?;
    let file = state.join("loop.img");
    if !file.exists() {
        fs::File::create(&file)?.set_len(64 << 20)?;
    }
    let device = Loop::over(&file)?;
    let path = device.path().to_owned();
    // The volume stays attached until the guest ends.
    std::mem::forget(device);
    Ok(vec![PathBuf::from("/dev/mapper/fg-first"), iscsi, path])
}

#[test]
#[ignore = "the first of two boots: cargo xtask test runs it"]
fn first_boot() -> Result<()> {
    let state = mount_state(true)?;
    let guard = Guard::on_state(&state.join("guard"))?;
    let mut known = String::new();
    for path in volumes(&state)? {
        guard.wait_for_state(&path, "blank")?;
        must(&format!("mkfs.ext4 -F -q {}", path.display()))?;
        let volume = guard.wait_for_state(&path, "formatted")?;
        writeln!(known, "{} {}", volume["id"].as_str().context("no id")?, sha256(&path)?)?;
    }
    fs::write(state.join("known"), known)?;
    guard.wait_for_state(&weak()?, "blank")?;
    // The power is cut in the middle of a format: this guest ends while mkfs is stopped.
    let below = Path::new("/dev/vdb");
    let third = third()?;
    guard.wait_for_state(third.path(), "blank")?;
    third.slow_writes_at(below, 2 * SECTORS * 512, SECTORS * 512, Duration::from_secs(3))?;
    let mkfs = command(&format!("mkfs.ext4 -F -q -E nodiscard {}", third.path().display())).spawn()?;
    guard.wait_for_state(third.path(), "formatting")?;
    must(&format!("kill -STOP {}", mkfs.id()))?;
    ensure!(guard.volume(third.path())?["state"] == "formatting", "it ended before the power was cut");
    std::mem::forget(third);
    std::mem::forget(guard);
    must("sync").map(drop)
}

/// A device without an identity of its own, which reads as zeros.
fn weak() -> Result<PathBuf> {
    must("modprobe null_blk nr_devices=1 gb=1")?;
    Ok(PathBuf::from("/dev/nullb0"))
}

/// The third part of the second disk.
fn third() -> Result<Linear> {
    Linear::over("fg-third", "FGTEST-third", Path::new("/dev/vdb"), 2 * SECTORS * 512, SECTORS * 512)
}

#[test]
#[ignore = "the second of two boots: cargo xtask test runs it"]
fn second_boot() -> Result<()> {
    let state = mount_state(false)?;
    let known = fs::read_to_string(state.join("known"))?;
    let guard = Guard::on_state(&state.join("guard"))?;
    let paths = volumes(&state)?;
    ensure!(known.lines().count() == paths.len(), "{known}");
    for (path, line) in paths.iter().zip(known.lines()) {
        let volume = guard.wait_for_state(path, "formatted")?;
        ensure!(
            line == format!("{} {}", volume["id"].as_str().context("no id")?, sha256(path)?),
            "known as {line}, now {volume}"
        );
        attack::all_refused(&guard, path)?;
        ensure!(line.ends_with(&sha256(path)?), "bytes changed on {}", path.display());
    }
    // The volume is as blank as ever, but nobody knows that it is the same one: the agent waits for the
    // quarantine.
    let weak = weak()?;
    let volume = guard.wait_for_volume(&weak, "held", |volume| {
        volume["cause"].as_str().is_some_and(|cause| cause.contains("read blank for the quarantine"))
    })?;
    ensure!(volume["state"] == "unverified" && volume["weak"] == true, "{volume}");
    attack::refused(&guard, &format!("mkfs.ext4 -F {}", weak.display()), "")?;
    // Only probes show what the cut left of a format; then work goes on.
    let third = third()?;
    let volume = guard.wait_for_volume(third.path(), "resolved", |volume| {
        matches!(volume["state"].as_str(), Some("blank" | "formatted"))
    })?;
    if volume["state"] == "blank" {
        must(&format!("mkfs.ext4 -F -q {}", third.path().display()))?;
        guard.wait_for_state(third.path(), "formatted")?;
    }
    attack::refused(&guard, &format!("mkfs.ext4 -F {}", third.path().display()), "").map(drop)
}

/// Bytes of one volume in a life.
const SIZE: u64 = 4 << 20;
/// Places for volumes.
const PLACES: u64 = 4;

/// A place, and its present volume: a part of the second disk that no other volume had before.
struct Place {
    number: u64,
    part: u64,
    volume: Option<Linear>,
    ledger: Ledger,
}

impl Place {
    /// The sector of the third disk that holds the volume's ledger.
    fn sector(part: u64) -> u64 {
        PLACES + part
    }

    fn attach(part: u64) -> Result<Linear> {
        let name = format!("fg-part-{part}");
        // Not at the disk's own start: what an earlier volume left there would be a format of the whole disk,
        // and nothing may be formatted inside that.
        let start = (part + 1) * SIZE;
        Linear::over(&name, &format!("FGTEST-part-{part}"), Path::new("/dev/vdb"), start, SIZE)
    }

    /// The place with a new volume.
    fn with(number: u64, part: u64) -> Result<Self> {
        let volume = Self::attach(part)?;
        let ledger = Ledger::of_new(&volume)?.keep(LEDGERS.as_ref(), Self::sector(part))?;
        let text = format!("{part:512}");
        let file = fs::OpenOptions::new().write(true).custom_flags(libc::O_SYNC).open(LEDGERS)?;
        file.write_all_at(text.as_bytes(), number * 512)?;
        Ok(Self { number, part, volume: Some(volume), ledger })
    }

    /// The place as an earlier life left it.
    fn left(number: u64) -> Result<Self> {
        let mut text = [0; 512];
        fs::File::open(LEDGERS)?.read_exact_at(&mut text, number * 512)?;
        let part = str::from_utf8(&text)?.trim().parse()?;
        let ledger = Ledger::kept(LEDGERS.as_ref(), Self::sector(part))?;
        Ok(Self { number, part, volume: Some(Self::attach(part)?), ledger })
    }

    fn volume(&mut self) -> Result<(&Linear, &mut Ledger)> {
        Ok((self.volume.as_ref().context("no volume")?, &mut self.ledger))
    }

    /// Does the next step of an orchestrator, and returns which.
    fn act(&mut self, guard: &Guard, rng: &mut Rng) -> Result<&'static str> {
        Ok(match rng.u8(0..10) {
            0..=3 => {
                let (volume, ledger) = self.volume()?;
                if ledger.format(volume)? { "formatted" } else { "refused" }
            }
            4..=5 => {
                drop(self.volume.take());
                self.volume = Some(Self::attach(self.part)?);
                "attached again"
            }
            6..=7 => {
                let (volume, ledger) = self.volume()?;
                ledger.ask_for_permit()?;
                let ran = guard.say(&format!("volume permit {} --reason cuts", volume.path().display()))?;
                if ran.status == 0 { "permitted" } else { "not permitted" }
            }
            _ => {
                drop(self.volume.take());
                *self = Self::with(self.number, self.part + PLACES)?;
                "new"
            }
        })
    }
}

const LEDGERS: &str = "/dev/vdc";

#[test]
#[ignore = "one of many boots: cargo xtask cuts runs them"]
fn a_life_until_the_power_is_cut() -> Result<()> {
    let words = env::var("FORMAT_GUARD_LIFE").context("FORMAT_GUARD_LIFE is NUMBER:SEED:LAST")?;
    let [life, seed, last] = words.split(':').collect::<Vec<_>>()[..] else { bail!("{words}") };
    let (first, last) = (life == "0", last == "true");
    let mut rng = Rng::with_seed(seed.parse()?);
    let state = mount_state(first)?.join("guard");
    if state.join("volumes.sqlite3").exists() {
        database_is_sound(&state)?;
    }
    let places =
        (0..PLACES).map(|number| if first { Place::with(number, number) } else { Place::left(number) });
    let mut places = places.collect::<Result<Vec<_>>>()?;
    println!("starts");
    let guard = Guard::on_state(&state)?;
    ensure!(guard.json("status")?["degraded"].as_array().is_some_and(Vec::is_empty), "it is degraded");
    for place in &mut places {
        let (volume, ledger) = place.volume()?;
        let held = ledger.hold(&guard, volume);
        held.with_context(|| format!("{}: {ledger:?}\n{}", volume.path().display(), guard.log()))?;
    }
    println!("found");
    if last {
        return Ok(());
    }
    loop {
        let place = rng.choice(&mut places).context("no place")?;
        println!("{}", place.act(&guard, &mut rng).with_context(|| guard.log())?);
    }
}
