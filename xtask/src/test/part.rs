//! Makes jobs of the parts of the plan. Each job returns counts and writes a log.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};

use super::{
    commands,
    history::History,
    job::{Cost, Job, Lock, Outcome},
    plan::{Part, Tier, When, Work},
    select::{self, Select},
};
use crate::{
    api_server,
    build::{Executable, Programs},
    cgroup, chart, cluster,
    command::{command, logged, workspace},
    cuts, dist, fuzz,
    guest::{self, Clock, Disk, EMULATOR_FAILED, Guest, sparse_image, with_guard},
    kernels::Kernel,
    matrix, preload,
};

/// The time limit for one boot.
const TIMEOUT: Duration = Duration::from_mins(45);
/// Boot parameter for a kernel without bpf among its security modules.
const WITHOUT_BPF: &str = "lsm=landlock,lockdown,yama,apparmor";
/// Boot parameter for a guest whose process 1 is systemd: see `guest/run.sh`.
const SYSTEMD: &str = "guest.init=systemd";

/// What jobs need from this run.
pub(crate) struct Environment<'a> {
    pub(crate) programs: &'a Programs,
    pub(crate) history: &'a History,
    /// The directory of the fuzz targets, if they were built.
    pub(crate) fuzzers: Option<PathBuf>,
    released: OnceLock<Result<Released, String>>,
}

/// The release that this build makes, as variables for its tests.
struct Released {
    service: Vec<String>,
    container: Vec<String>,
}

/// One boot of one kernel with one test executable.
#[derive(Clone)]
struct Boot {
    kernel: Kernel,
    tests: PathBuf,
    words: Vec<OsString>,
    tier: Tier,
    disks: Vec<Disk>,
    systemd: bool,
    /// The kernel's mode of preemption; empty for its own default.
    preempt: &'static str,
    /// Variables for the tests, each `NAME=VALUE`.
    variables: Vec<String>,
}

impl Boot {
    fn new(kernel: Kernel, tests: &Path, words: &[&str]) -> Self {
        Self {
            kernel,
            tests: tests.to_owned(),
            words: words.iter().map(OsString::from).collect(),
            tier: Tier::Lsm,
            disks: Vec::new(),
            systemd: false,
            preempt: "",
            variables: Vec::new(),
        }
    }

    /// Boots, runs the tests, and appends their output to the log.
    fn run(&self, guard: &Path, log: &Path) -> Result<Outcome> {
        let mut command = with_guard(guard, &self.tests, self.words.iter().cloned());
        let told = [
            "FORMAT_GUARD_CGROUP=/sys/fs/cgroup".to_owned(),
            format!("FORMAT_GUARD_TIER={}", self.tier.name()),
        ];
        // libtest prints times only if unstable options are allowed.
        let told =
            told.into_iter().chain(["RUSTC_BOOTSTRAP=1".to_owned()]).chain(self.variables.iter().cloned());
        command.splice(1..1, told.map(OsString::from));
        let parameters = match self.tier {
            _ if self.systemd => SYSTEMD,
            Tier::FmodRet => WITHOUT_BPF,
            Tier::Lsm | Tier::Cgroup => "",
        };
        let preempt = match self.preempt {
            "" => String::new(),
            mode => format!(" preempt={mode}"),
        };
        let guest = Guest {
            kernel: self.kernel.clone(),
            command,
            disks: self.disks.clone(),
            timeout: TIMEOUT,
            clock: Clock::Host,
            parameters: format!("{parameters}{preempt}"),
            network: false,
        };
        // A guest's output goes to the log at once, so that a run that is cut short leaves it.
        let boot = || -> Result<(u8, String)> {
            let before = fs::metadata(log).map_or(0, |log| log.len());
            let status = guest.run(&mut appended(log)?)?;
            let bytes = fs::read(log)?;
            let printed = bytes.get(usize::try_from(before)?..).unwrap_or_default();
            Ok((status, String::from_utf8_lossy(printed).into_owned()))
        };
        let (mut status, mut text) = boot()?;
        // A guest with disks is not booted again: its next boot must find what this one left on them.
        if status == EMULATOR_FAILED && self.disks.is_empty() {
            append(log, "the emulator killed its guest: once more\n")?;
            (status, text) = boot()?;
        }
        if status != 0 {
            append(log, &format!("the guest ended with {status}\n"))?;
        }
        Ok(Outcome::of_tests(&text, status == 0))
    }
}

fn appended(log: &Path) -> Result<File> {
    File::options().create(true).append(true).open(log).with_context(|| log.display().to_string())
}

fn append(log: &Path, text: &str) -> Result<()> {
    Ok(appended(log)?.write_all(text.as_bytes())?)
}

/// Part of the path of every test that needs an API server.
const API_SERVER: &str = "api_server::";

/// Options for libtest in a guest: one test after another, with its time. `-Z unstable-options` is two words,
/// since scenarios take a formatter's name: in the one word `-Zunstable-options` the guard would read the `n`
/// as mke2fs's dry run.
const ONE_BY_ONE: [&str; 4] = ["--test-threads=1", "-Z", "unstable-options", "--report-time"];

impl<'a> Environment<'a> {
    pub(crate) fn new(programs: &'a Programs, history: &'a History, fuzzers: Option<PathBuf>) -> Self {
        Self { programs, history, fuzzers, released: OnceLock::new() }
    }

    fn guard(&self) -> Result<&'a Path> {
        self.programs.program("format-guard")
    }

    /// Jobs of a part, for these kernels if any are named.
    pub(crate) fn jobs(&'a self, part: &'static Part, kernels: &[String]) -> Result<Vec<Job<'a>>> {
        let mut jobs = Vec::new();
        if part.kernels.is_empty() {
            self.jobs_here(part, &mut jobs)?;
        }
        let named: Vec<&str> = kernels.iter().map(String::as_str).collect();
        let keys = if named.is_empty() { part.kernels } else { &named };
        for key in keys.iter().filter(|_| !part.kernels.is_empty()) {
            self.jobs_in_guests(part, &Kernel::get(key)?, &mut jobs)?;
        }
        if jobs.is_empty() {
            bail!("the part {} has nothing to run", part.name);
        }
        Ok(jobs)
    }

    fn job(
        &self,
        part: &Part,
        name: String,
        cost: Cost,
        run: impl FnOnce(&Path) -> Result<Outcome> + Send + 'a,
    ) -> Job<'a> {
        #[expect(clippy::cast_precision_loss, reason = "seconds")]
        let seconds = self.history.jobs.get(&name).copied().unwrap_or(part.seconds as f64);
        let is_spare = part.when == When::ChangeInTime;
        Job { name, seconds, cost, is_spare, run: Box::new(run) }
    }

    fn jobs_here(&'a self, part: &'static Part, jobs: &mut Vec<Job<'a>>) -> Result<()> {
        let name = part.name.to_owned();
        let guard = self.guard()?;
        let of_cargo = Cost { locks: &[Lock::Cargo], ..Cost::CORE };
        let on_devices = Cost { locks: &[Lock::Devices], ..Cost::CORE };
        match part.work {
            Work::Lint { words, variables } => {
                let cost = if words[0] == "cargo" { of_cargo } else { Cost::CORE };
                jobs.push(self.job(part, name, cost, move |log| lint(words, variables, log)));
            }
            Work::Units => {
                for unit in &self.programs.units {
                    if select::all(&unit.path)?.is_empty() {
                        continue;
                    }
                    let name = format!("units of {}", unit.name);
                    jobs.push(self.job(part, name, Cost::CORE, move |log| run_unit(unit, &[], log)));
                }
            }
            Work::LongModels => {
                let models =
                    self.programs.units.iter().filter(|unit| unit.package == workspace().join("model"));
                for unit in models {
                    let name = format!("long models of {}", unit.name);
                    jobs.push(
                        self.job(part, name, Cost::CORE, move |log| run_unit(unit, &["--ignored"], log)),
                    );
                }
            }
            Work::Library { scenarios: false } => {
                let tests = self.programs.test("preload")?;
                jobs.push(self.job(part, name, on_devices, move |log| library(guard, tests, &[], log)));
            }
            Work::Library { scenarios: true } => {
                let tests = self.programs.test("scenarios")?;
                jobs.push(self.job(part, name, on_devices, move |log| {
                    library(guard, tests, &preload::scenarios().collect::<Vec<_>>(), log)
                }));
            }
            Work::ControlGroup => {
                let tests = self.programs.test("cgroup")?;
                jobs.push(self.job(part, name, on_devices, move |log| {
                    let well = cgroup::run_tests(guard, tests, &File::create(log)?)?;
                    Ok(Outcome::of_tests(&fs::read_to_string(log)?, well))
                }));
            }
            Work::Commands => {
                jobs.push(self.job(part, name, Cost::CORE, move |log| commands::check(guard, log)));
            }
            Work::LibraryTable { table } => {
                let matrix = self.programs.program("matrix")?;
                jobs.push(self.job(part, name, on_devices, move |log| {
                    let (whole, text) = preload::table(guard, matrix, table, &[])?;
                    append(log, &text)?;
                    of_rows(table, "preload", &text, whole, log)
                }));
            }
            Work::Fuzz { seconds } => {
                let directory = self.fuzzers.clone().context("the fuzz targets were not built")?;
                for target in fuzz::TARGETS {
                    let directory = directory.clone();
                    jobs.push(self.job(part, format!("{name}: {target}"), Cost::CORE, move |log| {
                        Ok(Outcome::of(fuzz::run_target(
                            &directory,
                            target,
                            seconds,
                            None,
                            Some(&File::create(log)?),
                        )?))
                    }));
                }
            }
            Work::ApiServer => self.jobs_of_api_server(part, guard, jobs)?,
            Work::Chart => jobs.push(self.job(part, name, Cost::CORE, |log| {
                let findings = chart::findings(false)?;
                append(log, &findings.join("\n"))?;
                Ok(Outcome::of(findings.is_empty()))
            })),
            Work::Release => {
                jobs.push(self.job(part, name, Cost { cores: 2, ..of_cargo }, |_| {
                    dist::run().map(|()| Outcome::of(true))
                }));
            }
            _ => bail!("the plan names no kernel for {name}"),
        }
        Ok(())
    }

    /// Every test executable with tests against an API server.
    fn jobs_of_api_server(
        &'a self,
        part: &'static Part,
        guard: &'a Path,
        jobs: &mut Vec<Job<'a>>,
    ) -> Result<()> {
        for unit in &self.programs.units {
            if !select::ignored(&unit.path)?.iter().any(|name| name.contains(API_SERVER)) {
                continue;
            }
            let name = format!("{}: {}", part.name, unit.name);
            // Members, nodes and the server take all of this machine.
            let cost = Cost { cores: 2, ..Cost::CORE };
            jobs.push(self.job(part, name, cost, move |log| {
                let programs = match api_server::programs()? {
                    api_server::Programs::There(programs) => programs,
                    api_server::Programs::NotHere(why) => {
                        append(log, &format!("not tried: what nodes share through Kubernetes; {why}\n"))?;
                        println!("not tried: {}: {why}", part.name);
                        return Ok(Outcome::default());
                    }
                };
                let mut run = command(
                    &unit.path.to_string_lossy(),
                    ["--ignored", "--nocapture", "--test-threads=1", API_SERVER],
                );
                run.current_dir(&unit.package).env("CARGO_MANIFEST_DIR", &unit.package);
                run.envs(api_server::variables(&programs)?).env("FORMAT_GUARD_PROGRAM", guard);
                let well = logged(&mut run, &appended(log)?)?;
                Ok(Outcome::of_tests(&fs::read_to_string(log)?, well))
            }));
        }
        Ok(())
    }

    fn jobs_in_guests(&'a self, part: &'static Part, kernel: &Kernel, jobs: &mut Vec<Job<'a>>) -> Result<()> {
        let name = if part.kernels.len() > 1 {
            format!("{}, {}", part.name, kernel.key)
        } else {
            part.name.to_owned()
        };
        let guard = self.guard()?;
        let kernel = kernel.clone();
        match part.work {
            Work::Demo => {
                let demo = self.programs.program("demo")?;
                jobs.push(self.job(part, name, Cost::GUEST, move |log| {
                    // The demo is no test: only its exit status counts.
                    let outcome = Boot::new(kernel, demo, &[]).run(guard, log)?;
                    Ok(Outcome::of(outcome.failed == 0))
                }));
            }
            Work::Scenarios { select, tier, shared, variables } => {
                self.scenarios(part, &name, &kernel, (select, tier, variables), shared, jobs)?;
            }
            Work::Preempted { mode, select, variables } => {
                let tests = self.programs.test("scenarios")?;
                let mut boot = Boot::new(kernel, tests, &ONE_BY_ONE);
                boot.preempt = mode;
                boot.variables = variables.iter().map(|&variable| variable.to_owned()).collect();
                boot.variables.push(format!("FORMAT_GUARD_PREEMPT={mode}"));
                let job = self.of_scenarios(part, name, boot, select.of(&select::names(tests)?))?;
                jobs.push(job);
            }
            Work::ControlGroupOfGuest => {
                let mut boot = Boot::new(kernel, self.programs.test("cgroup")?, &ONE_BY_ONE);
                boot.tier = Tier::Cgroup;
                jobs.push(self.job(part, name, Cost::GUEST, move |log| boot.run(guard, log)));
            }
            Work::Reboot => {
                let tests = self.programs.test("reboot")?;
                jobs.push(self.job(part, name, Cost::GUEST, move |log| reboot(&kernel, tests, guard, log)));
            }
            Work::Service | Work::Container => {
                let (test, disks, systemd) = match part.work {
                    Work::Service => ("service", ["boot.img", "mounted.img"], true),
                    _ => ("container", ["contained.img", "blank.img"], false),
                };
                let tests = self.programs.test(test)?;
                jobs.push(self.job(part, name, Cost::GUEST, move |log| {
                    let released = self.released()?;
                    let mut boot = Boot::new(kernel, tests, &["--ignored", "--nocapture"]);
                    boot.disks = blank_disks(&boot.kernel, disks)?;
                    boot.systemd = systemd;
                    boot.variables =
                        if systemd { released.service.clone() } else { released.container.clone() };
                    boot.run(guard, log)
                }));
            }
            Work::Nodes => {
                let tests = self.programs.test("cluster")?;
                let cost = Cost { cores: 2, memory: 2 * guest::MEMORY, locks: &[] };
                jobs.push(self.job(part, name, cost, move |log| {
                    let (held, text) = cluster::run_nodes(&kernel, guard, tests)?;
                    append(log, &text)?;
                    Ok(Outcome::of_tests(&text, held))
                }));
            }
            Work::Table { table, kinds } => self.table(part, &name, &kernel, (table, kinds), jobs)?,
            Work::Cuts { number } => {
                let programs = [guard, self.programs.test("reboot")?];
                let guests = guest::at_a_time()?;
                let cost = Cost { cores: guests, memory: guests as u64 * guest::MEMORY, locks: &[] };
                jobs.push(self.job(part, name, cost, move |_| {
                    Ok(Outcome::of(cuts::cut(&kernel, programs, number, None)?))
                }));
            }
            _ => bail!("the plan names kernels for {name}, which needs none"),
        }
        Ok(())
    }

    fn scenarios(
        &'a self,
        part: &'static Part,
        name: &str,
        kernel: &Kernel,
        (select, tier, variables): (Select, Tier, &[&str]),
        shared: bool,
        jobs: &mut Vec<Job<'a>>,
    ) -> Result<()> {
        let tests = self.programs.test("scenarios")?;
        let names = select.of(&select::names(tests)?);
        if names.is_empty() {
            bail!("{name} has no scenarios");
        }
        // More shards than guests: where nobody has measured the scenarios, one shard may be twice as long as
        // another, and on a slow machine a guest of half of them would be ended by its limit.
        let shards = if shared { 2 * guest::at_a_time()? } else { 1 };
        let shards = select::shards(names, shards, &self.history.scenarios);
        let of = shards.len();
        for (i, names) in shards.into_iter().enumerate() {
            let name = if of > 1 { format!("{name} {}/{of}", i + 1) } else { name.to_owned() };
            let mut boot = Boot::new(kernel.clone(), tests, &ONE_BY_ONE);
            boot.tier = tier;
            boot.variables = variables.iter().map(|&variable| variable.to_owned()).collect();
            let mut job = self.of_scenarios(part, name, boot, names)?;
            if !self.history.jobs.contains_key(&job.name) {
                #[expect(clippy::cast_precision_loss, reason = "a number of shards")]
                let shards = of as f64;
                job.seconds /= shards;
            }
            jobs.push(job);
        }
        Ok(())
    }

    /// One boot for scenarios of these names. A scenario that does not run is a failure.
    fn of_scenarios(&self, part: &Part, name: String, mut boot: Boot, names: Vec<String>) -> Result<Job<'a>> {
        let guard = self.guard()?;
        boot.words.push("--exact".into());
        boot.words.extend(names.iter().map(OsString::from));
        Ok(self.job(part, name, Cost::GUEST, move |log| {
            let mut outcome = boot.run(guard, log)?;
            let missing = (names.len() as u64).saturating_sub(outcome.passed + outcome.failed);
            if missing > 0 {
                append(log, &format!("{missing} of {} scenarios did not run\n", names.len()))?;
                outcome.failed += missing;
            }
            Ok(outcome)
        }))
    }

    /// A whole table takes long: each job runs half of it.
    fn table(
        &'a self,
        part: &'static Part,
        name: &str,
        kernel: &Kernel,
        (table, kinds): (&'static str, &'static [&'static str]),
        jobs: &mut Vec<Job<'a>>,
    ) -> Result<()> {
        let programs = [self.guard()?, self.programs.program("matrix")?];
        let parts = if kinds.is_empty() { 2 } else { kinds.len().min(guest::at_a_time()?) };
        for number in 0..parts {
            let kernel = kernel.clone();
            let name = if parts > 1 { format!("{name} {}/{parts}", number + 1) } else { name.to_owned() };
            jobs.push(self.job(part, name, Cost::GUEST, move |log| {
                let whole =
                    matrix::run_part(&kernel, table, programs, (number, parts), kinds, &mut appended(log)?)?;
                of_rows(table, kernel.key, &fs::read_to_string(log)?, whole, log)
            }));
        }
        Ok(())
    }

    /// Lays out, packs and renders the release, once.
    fn released(&self) -> Result<&Released> {
        let made = self.released.get_or_init(|| self.release().map_err(|error| format!("{error:#}")));
        made.as_ref().map_err(|error| anyhow!("what is released cannot be made: {error}"))
    }

    fn release(&self) -> Result<Released> {
        let guard = self.guard()?;
        let directory = workspace().join("target/dist");
        let root = dist::stage(guard, &guard.with_file_name(preload::NAME))?;
        let image = directory.join("image");
        dist::image(&root, &image)?;
        let manifests = directory.join("manifests.json");
        fs::write(&manifests, chart::manifests(&["--set", "config.mode=enforce"])?)?;
        let [older, newer] = ["0.0.1", "0.0.2"].map(|version| dist::packages(version, &directory));
        let ((older_deb, older_rpm), (newer_deb, newer_rpm)) = (older?, newer?);
        let variable = |name: &str, path: &Path| format!("FORMAT_GUARD_{name}={}", path.display());
        Ok(Released {
            service: vec![
                variable("DEB", &older_deb),
                variable("NEWER_DEB", &newer_deb),
                variable("RPM", &older_rpm),
                variable("NEWER_RPM", &newer_rpm),
            ],
            container: vec![variable("IMAGE", &image), variable("CHART", &manifests)],
        })
    }
}

/// Runs the scenarios whose names contain a word, in one guest for each kernel.
pub(crate) fn with_word(
    programs: &Programs,
    word: &str,
    kernel: Kernel,
    tier: Tier,
    log: &Path,
) -> Result<Outcome> {
    let tests = if tier == Tier::Cgroup { "cgroup" } else { "scenarios" };
    let tests = programs.test(tests)?;
    let names = select::with_word(tests, word)?;
    let mut boot = Boot::new(kernel, tests, &ONE_BY_ONE);
    boot.words.push("--exact".into());
    boot.words.extend(names.iter().map(OsString::from));
    boot.tier = tier;
    boot.run(programs.program("format-guard")?, log)
}

fn lint(words: &[&str], variables: &[(&str, &str)], log: &Path) -> Result<Outcome> {
    let (program, arguments) = words.split_first().context("a command without words")?;
    // The environment that guests need wins over the caller's.
    let mut lint = command("nice", ["-n", "10", program]);
    lint.args(arguments).envs(variables.iter().copied()).current_dir(workspace());
    Ok(Outcome::of(logged(&mut lint, &File::create(log)?)?))
}

/// Runs an executable of tests as cargo does.
fn run_unit(unit: &Executable, words: &[&str], log: &Path) -> Result<Outcome> {
    let mut run = command(&unit.path.to_string_lossy(), words);
    run.current_dir(&unit.package).env("CARGO_MANIFEST_DIR", &unit.package);
    let well = logged(&mut run, &File::create(log)?)?;
    Ok(Outcome::of_tests(&fs::read_to_string(log)?, well))
}

fn library(guard: &Path, tests: &Path, words: &[&str], log: &Path) -> Result<Outcome> {
    let well = preload::run_tests(guard, tests, words, &File::create(log)?)?;
    Ok(Outcome::of_tests(&fs::read_to_string(log)?, well))
}

/// The second boot finds what the first one left on its disks.
fn reboot(kernel: &Kernel, tests: &Path, guard: &Path, log: &Path) -> Result<Outcome> {
    let disks = blank_disks(kernel, ["state.img", "volume.img"])?;
    let mut both = Outcome::default();
    for half in ["first_boot", "second_boot"] {
        let mut boot = Boot::new(kernel.clone(), tests, &["--ignored", "--exact", half, "--test-threads=1"]);
        boot.disks.clone_from(&disks);
        let outcome = boot.run(guard, log)?;
        both.passed += outcome.passed;
        both.failed += outcome.failed;
        if outcome.failed > 0 {
            break;
        }
    }
    Ok(both)
}

fn blank_disks(kernel: &Kernel, names: [&str; 2]) -> Result<Vec<Disk>> {
    let directory = workspace().join("target/guests").join(kernel.key);
    fs::create_dir_all(&directory)?;
    let disks = names.map(|name| Disk::virtio(directory.join(name))).to_vec();
    for disk in &disks {
        sparse_image(&disk.path, 256 << 20)?;
    }
    Ok(disks)
}

/// Counts a table's rows; failed ones are listed at the end of the log.
fn of_rows(table: &str, key: &str, text: &str, whole: bool, log: &Path) -> Result<Outcome> {
    let rows: Vec<serde_json::Value> =
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let of = |outcome: &'static str| rows.iter().filter(move |row| row["outcome"] == outcome);
    let gone = matrix::missing_rows(table, key, &rows);
    for row in of("failed") {
        append(log, &format!("failed: {row}\n"))?;
    }
    for row in &gone {
        append(log, &format!("no longer tried: {row}\n"))?;
    }
    let failed = (of("failed").count() + gone.len()) as u64;
    Ok(Outcome {
        passed: (of("held").count() + of("partly").count()) as u64,
        failed: if whole { failed } else { failed.max(1) },
        ..Outcome::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_that_has_gone_fails_its_row() {
        let log = tempfile::NamedTempFile::new().expect("a file");
        let row = r#"{"volume":"ext4","name":"mkfs.ext2","outcome":"not tried","changed":0,"note":"it is not there"}"#;
        let outcome = of_rows("destructive", "6.12", row, true, log.path()).expect("counted");
        assert_eq!((outcome.passed, outcome.failed), (0, 1));
    }
}
