//! The agent is killed again and again, at any time, while volumes come, go, are formatted and permitted:
//! what was recorded stays known, and nothing is formatted twice.

use std::{
    collections::BTreeMap,
    env,
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, anyhow, ensure};
use fastrand::Rng;
use format_guard_tests::{
    device::{Image, Loop},
    guard::{Guard, database_is_sound},
    ledger::Ledger,
    tool::run,
};

/// Kills, unless `FORMAT_GUARD_KILLS` names a number.
const KILLS: u32 = 12;
/// Kills between two checks that everything is as the ledgers say.
const KILLS_A_ROUND: u32 = 50;
/// Nodes that have a volume each.
const NODES: u32 = 3;

/// A node, and its present volume.
struct Place {
    node: PathBuf,
    volume: Option<Loop>,
    image: Image,
    ledger: Ledger,
}

impl Place {
    fn new(number: u32) -> Result<Self> {
        let node = PathBuf::from(format!("/dev/loop{number}"));
        let image = Image::new(4)?;
        let volume = Loop::at(&node, image.path())?;
        let ledger = Ledger::of_new(&volume)?;
        Ok(Self { node, volume: Some(volume), image, ledger })
    }

    /// Does the next step of an orchestrator, and returns which.
    fn act(&mut self, rng: &mut Rng, permit: &str) -> Result<&'static str> {
        Ok(match rng.u8(0..10) {
            0..=4 => {
                let volume = self.volume.as_ref().context("no volume")?;
                if self.ledger.format(volume)? { "formatted" } else { "refused" }
            }
            5..=6 => {
                self.volume.take().context("no volume")?.detach()?;
                self.ledger.detached()?;
                self.volume = Some(Loop::at(&self.node, self.image.path())?);
                "attached again"
            }
            7..=8 => {
                // Noted before the answer: the agent may die between its write and the answer.
                self.ledger.ask_for_permit()?;
                let ran = run(&permit.replace("NODE", &self.node.display().to_string()))?;
                if ran.status == 0 { "permitted" } else { "not permitted" }
            }
            _ => {
                self.volume.take().context("no volume")?.detach()?;
                self.image = Image::new(4)?;
                let volume = Loop::at(&self.node, self.image.path())?;
                self.ledger = Ledger::of_new(&volume)?;
                self.volume = Some(volume);
                "new"
            }
        })
    }
}

/// A number from the environment.
fn wanted<T: std::str::FromStr>(name: &str) -> Option<T> {
    env::var(name).ok().and_then(|text| text.parse().ok())
}

/// Most lives are short, and end during the start.
fn life(rng: &mut Rng) -> Duration {
    Duration::from_millis(match rng.u8(0..10) {
        0..=3 => rng.u64(0..500),
        4..=7 => rng.u64(0..3_000),
        // Long enough for a volume to be armed and formatted.
        _ => rng.u64(6_000..14_000),
    })
}

/// Several lives of agents, with everything going on. Returns how often each thing was done.
fn round(
    guard: &mut Guard,
    places: &[Mutex<Place>],
    kills: u32,
    rng: &mut Rng,
) -> Result<BTreeMap<&'static str, u32>> {
    let permit = guard.line("volume permit NODE --reason storm")?;
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let provisioners: Vec<_> = places
            .iter()
            .map(|place| {
                let mut rng = rng.fork();
                let (permit, over) = (&permit, &over);
                scope.spawn(move || -> Result<_> {
                    let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
                    let mut done = Vec::new();
                    while !over.load(Ordering::Relaxed) {
                        let act = place.act(&mut rng, permit);
                        done.push(act.inspect_err(|_| over.store(true, Ordering::Relaxed))?);
                    }
                    Ok(done)
                })
            })
            .collect();
        let killed = (0..kills).try_for_each(|_| {
            if over.load(Ordering::Relaxed) {
                return Ok(());
            }
            thread::sleep(life(rng));
            guard.kill_agent()?;
            guard.spawn_agent()
        });
        over.store(true, Ordering::Relaxed);
        let mut done = BTreeMap::new();
        for provisioner in provisioners {
            for act in provisioner.join().map_err(|_| anyhow!("a provisioner broke"))?? {
                *done.entry(act).or_default() += 1;
            }
        }
        killed.map(|()| done)
    })
}

#[test]
fn an_agent_that_is_killed_at_any_time_loses_nothing() -> Result<()> {
    let kills = wanted("FORMAT_GUARD_KILLS").unwrap_or(KILLS);
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let seed = wanted("FORMAT_GUARD_SEED").unwrap_or(now);
    println!("storm: {kills} kills, FORMAT_GUARD_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let state = tempfile::tempdir_in("/run")?;
    let mut guard = Guard::on_state(state.path())?;
    // Shorter than most lives: otherwise nothing would ever be armed.
    guard.replace("quarantine", "1")?;
    let places =
        (20..20 + NODES).map(|number| Place::new(number).map(Mutex::new)).collect::<Result<Vec<_>>>()?;
    let mut left = kills;
    while left > 0 {
        let now = left.min(KILLS_A_ROUND);
        left -= now;
        let done = round(&mut guard, &places, now, &mut rng).with_context(|| guard.log())?;
        guard.kill_agent()?;
        database_is_sound(state.path())?;
        guard.start_agent()?;
        ensure!(guard.json("status")?["degraded"].as_array().is_some_and(Vec::is_empty), "it is degraded");
        for place in &places {
            let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
            let Place { volume, ledger, .. } = &mut *place;
            let held = ledger.hold(&guard, volume.as_ref().context("no volume")?);
            // What went wrong comes before the log, since a reader may see only the beginning.
            held.map_err(|error| anyhow!("{ledger:?}: {error:#}\n{}", guard.log()))?;
        }
        println!("storm: {left} kills to go; {done:?}");
    }
    Ok(())
}
