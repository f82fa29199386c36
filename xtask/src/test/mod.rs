//! `cargo xtask test`: runs the parts of the plan for what has changed, the whole plan, or one scenario in
//! one guest; one summary at the end.

mod change;
mod commands;
mod history;
mod job;
mod part;
mod plan;
mod queue;
mod select;

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    build::Programs,
    command::workspace,
    fuzz,
    kernels::{Kernel, chosen},
    preload, setup,
};
use history::History;
use job::Outcome;
use part::Environment;
use plan::{PLAN, Part, Tier, When, Work};
use queue::Finished;

/// Lines of a failed job's log that are printed.
const SHOWN: usize = 60;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run only the scenarios whose names contain this word, in one guest
    word: Option<String>,
    /// Kernel for these scenarios or parts: 6.1, 6.12, 6.18, 7 or all (may be repeated) [default: 6.12, or as
    /// the plan says]
    #[arg(long)]
    kernel: Vec<String>,
    /// How the guard refuses in these scenarios; `fmod_ret` boots without bpf among the security modules
    #[arg(long, default_value = "lsm", value_parser = ["lsm", "fmod_ret", "cgroup"], requires = "word")]
    tier: String,
    /// Run these parts of the plan (may be repeated)
    #[arg(long, value_name = "NAME", conflicts_with = "word")]
    part: Vec<String>,
    /// Run the whole plan: hours. It goes on where a run of the same tree ended
    #[arg(long, conflicts_with_all = ["word", "part"])]
    all: bool,
    /// Print the plan, what of it would run and why, and run nothing
    #[arg(long, conflicts_with_all = ["word", "part"])]
    plan: bool,
    /// Leave what can wait to the night if it would not be over so many minutes after the start
    #[arg(long, value_name = "N", conflicts_with_all = ["word", "all"])]
    minutes: Option<u64>,
    /// Count changes from this commit [default: the last one that passed here, else the parent]
    #[arg(long, value_name = "COMMIT", conflicts_with_all = ["word", "part", "all"])]
    since: Option<String>,
}

/// `cargo xtask test`
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let history = History::read()?;
    let (parts, left) = parts(arguments, &history)?;
    if arguments.plan {
        print_plan(&parts);
        return Ok(ExitCode::SUCCESS);
    }
    setup::root("it makes block devices and control groups, and its guests read this machine's root")?;
    setup::ready()?;
    let _alone = alone(&workspace().join("target"))?;
    let logs = workspace().join("target/test");
    let _ = fs::remove_dir_all(&logs);
    fs::create_dir_all(&logs)?;
    if let Some(word) = &arguments.word {
        return scenarios(arguments, word, &logs);
    }
    let start = Instant::now();
    let (programs, fuzzers, mut done) = build(&parts, &logs)?;
    let tree = change::tree();
    let history = Mutex::new(history);
    let out_of_time;
    let passed = if arguments.all { passed_before(&history, tree.as_deref()) } else { Vec::new() };
    {
        let known = history.lock().unwrap_or_else(PoisonError::into_inner);
        let known: &History = &known;
        let spared: Vec<&str> = passed.iter().map(|done| done.name.as_str()).collect();
        let environment = Environment::new(&programs, known, fuzzers);
        let mut jobs = Vec::new();
        for part in &parts {
            jobs.extend(environment.jobs(part, &kernels(&arguments.kernel))?);
        }
        jobs.retain(|job| !spared.contains(&job.name.as_str()));
        let learned = Mutex::new(History::read()?);
        let until = arguments.minutes.map(|minutes| start + Duration::from_mins(minutes));
        let (ended, late) = queue::run(jobs, &logs, until, |done| {
            print_ended(done);
            let mut learned = learned.lock().unwrap_or_else(PoisonError::into_inner);
            learned.learn(&done.name, &done.outcome);
            if arguments.all && done.outcome.failed == 0 {
                learned.night.tree = tree.clone().unwrap_or_default();
                learned.night.passed.insert(done.name.clone(), done.outcome.clone());
            }
            // However this run ends, the next one knows what passed.
            if let Err(error) = learned.write() {
                println!("test: {error:#}");
            }
        })?;
        done.extend(ended);
        out_of_time = late;
    }
    done.extend(passed);
    let sound = print_summary(&done, &left, &out_of_time, start);
    if sound && out_of_time.is_empty() && arguments.part.is_empty() && arguments.kernel.is_empty() {
        let mut history = History::read()?;
        history.good = change::clean_head().or(history.good);
        history.write()?;
    }
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A lock for the duration of a run: a second run in the same tree would build over the programs that the
/// first one's guests run, and remove its logs.
fn alone(target: &Path) -> Result<File> {
    fs::create_dir_all(target)?;
    let path = target.join("test.lock");
    let lock = File::create(&path).with_context(|| path.display().to_string())?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => bail!(
            "another `cargo xtask test` runs in this tree and holds {}: wait until it has ended, or use a second work tree",
            path.display()
        ),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| path.display().to_string()),
    }
}

fn kernels(named: &[String]) -> Vec<String> {
    chosen(named, &[]).into_iter().map(str::to_owned).collect()
}

/// The parts to run, and the parts that are left to the night.
fn parts(arguments: &Arguments, history: &History) -> Result<(Vec<&'static Part>, Vec<&'static Part>)> {
    if arguments.all {
        return Ok((PLAN.iter().collect(), Vec::new()));
    }
    if !arguments.part.is_empty() {
        let named = |name: &String| {
            PLAN.iter().find(|part| part.name == name).with_context(|| {
                let names: Vec<&str> = PLAN.iter().map(|part| part.name).collect();
                format!("the plan has no part '{name}'; it has: {}", names.join("; "))
            })
        };
        return Ok((arguments.part.iter().map(named).collect::<Result<_>>()?, Vec::new()));
    }
    if arguments.word.is_some() {
        return Ok((Vec::new(), Vec::new()));
    }
    let base = change::base(arguments.since.as_deref(), history.good.as_deref())?;
    let changed = base.as_deref().and_then(change::since);
    match (&base, &changed) {
        (Some(base), Some(changed)) => {
            println!("test: {} paths have changed since {base}", changed.len());
        }
        _ => println!("test: git names no parent: everything counts as changed"),
    }
    Ok(plan::of_change(changed.as_deref()))
}

/// Builds what the parts run; the builds are rows of the summary.
fn build(parts: &[&'static Part], logs: &Path) -> Result<(Programs, Option<PathBuf>, Vec<Finished>)> {
    let mut done = Vec::new();
    let mut timed = |name: &str, start: Instant| {
        let outcome = Outcome { seconds: start.elapsed().as_secs_f64(), ..Outcome::of(true) };
        let one = Finished { name: name.to_owned(), log: logs.to_owned(), outcome };
        print_ended(&one);
        done.push(one);
    };
    println!("test: building");
    let start = Instant::now();
    let programs = Programs::build()?;
    timed("build of programs and tests", start);
    let start = Instant::now();
    preload::library(programs.program("format-guard")?)?;
    timed("build of the library", start);
    let fuzzers = if parts.iter().any(|part| matches!(part.work, Work::Fuzz { .. })) {
        let start = Instant::now();
        let fuzzers = fuzz::build()?;
        timed("build of the fuzz targets", start);
        Some(fuzzers)
    } else {
        None
    };
    Ok((programs, fuzzers, done))
}

/// Jobs that passed in the last run of the night on this very tree.
fn passed_before(history: &Mutex<History>, tree: Option<&str>) -> Vec<Finished> {
    let mut history = history.lock().unwrap_or_else(PoisonError::into_inner);
    if tree != Some(history.night.tree.as_str()) {
        history.night = history::Night::default();
        if let Err(error) = history.write() {
            println!("test: {error:#}");
        }
    }
    let passed = history.night.passed.iter().map(|(name, outcome)| Finished {
        name: name.clone(),
        log: PathBuf::new(),
        outcome: outcome.clone(),
    });
    let passed: Vec<Finished> = passed.collect();
    if !passed.is_empty() {
        println!("test: {} jobs passed in an earlier run of this tree", passed.len());
    }
    passed
}

/// Runs the scenarios whose names contain a word, in one guest for each named kernel.
fn scenarios(arguments: &Arguments, word: &str, logs: &Path) -> Result<ExitCode> {
    let tier = match arguments.tier.as_str() {
        "fmod_ret" => Tier::FmodRet,
        "cgroup" => Tier::Cgroup,
        _ => Tier::Lsm,
    };
    println!("test: building");
    let programs = Programs::build()?;
    let mut sound = true;
    for key in chosen(&arguments.kernel, &[plan::PRIMARY]) {
        let kernel = Kernel::get(key)?;
        println!("test: scenarios with '{word}' on {} ({})", kernel.key, kernel.release);
        let start = Instant::now();
        let log = logs.join(format!("{key}.log"));
        let outcome = part::with_word(&programs, word, kernel, tier, &log)?;
        println!("{}", fs::read_to_string(&log).unwrap_or_default().trim_end());
        println!(
            "{key}: {} passed, {} failed in {} s",
            outcome.passed,
            outcome.failed,
            start.elapsed().as_secs()
        );
        sound &= outcome.failed == 0 && outcome.passed > 0;
    }
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_plan(parts: &[&'static Part]) {
    for part in PLAN {
        let when = match (part.when, parts.iter().any(|one| one.name == part.name)) {
            (When::Change, _) => "on every change",
            (When::ChangeInTime, _) => "on every change, if there is time",
            (When::Night, true) => "now, for what has changed",
            (When::Night, false) => "in the night",
        };
        let kernels =
            if part.kernels.is_empty() { String::new() } else { format!(" on {}", part.kernels.join(", ")) };
        println!("{:<26} {when}{kernels}: {}", part.name, part.shows);
        if part.when == When::Night && !part.paths.is_empty() {
            println!("{:<26} brought forward by {}", "", part.paths.join(", "));
        }
    }
}

fn print_ended(done: &Finished) {
    let Finished { name, log, outcome } = done;
    println!(
        "test: {name}: {} passed, {} failed in {:.0} s",
        outcome.passed, outcome.failed, outcome.seconds
    );
    if outcome.failed > 0 {
        let text = fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let mut shown = io::stdout().lock();
        // A log that cannot be read is named in the summary.
        let _ = writeln!(shown, "== the end of {}", log.display());
        for line in &lines[lines.len().saturating_sub(SHOWN)..] {
            let _ = writeln!(shown, "{name} | {line}");
        }
    }
}

/// One row for each job, and one line at the end. True if nothing failed.
fn print_summary(done: &[Finished], left: &[&'static Part], out_of_time: &[String], start: Instant) -> bool {
    let mut rows: Vec<&Finished> = done.iter().collect();
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    println!("\nsummary");
    for Finished { name, log, outcome } in &rows {
        let log = if outcome.failed > 0 { format!("  {}", log.display()) } else { String::new() };
        println!(
            "  {name:<36} {:>4} passed {:>4} failed {:>6.0} s{log}",
            outcome.passed, outcome.failed, outcome.seconds
        );
    }
    if !left.is_empty() {
        let names: Vec<&str> = left.iter().map(|part| part.name).collect();
        println!("left to the night: {}", names.join("; "));
    }
    if !out_of_time.is_empty() {
        println!("NOT TRIED, for want of time: {}", out_of_time.join("; "));
    }
    let busy: f64 = done.iter().map(|done| done.outcome.seconds).sum();
    println!("{:.0} s of work in {} s", busy, start.elapsed().as_secs());
    let passed: u64 = done.iter().map(|done| done.outcome.passed).sum();
    let failed: u64 = done.iter().map(|done| done.outcome.failed).sum();
    println!("{passed} passed, {failed} failed");
    failed == 0 && passed > 0
}
