//! `cargo xtask test`: unit and property tests here, scenario tests in guests, one summary at the end.

use std::{
    ffi::OsString,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};

use crate::{
    build::{executable, executable_with},
    cgroup, chart, cluster,
    command::{command, output, workspace},
    dist, fuzz,
    guest::{Cpu, Disk, EMULATOR_FAILED, GUESTS, Guest, against, sparse_image},
    kernels::{self, Kernel, chosen},
    matrix::{self, Turn},
    preload, setup,
};

/// When one boot is ended.
const TIMEOUT: Duration = Duration::from_mins(30);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run only scenarios whose name contains this, and no host tests
    filter: Option<String>,
    /// Kernel for the scenarios: 6.1, 6.12, 6.18, 7 or all (may be repeated) [default: all of them on 6.12, those of the hooks
    /// on one of the others in turn, and whether the guard refuses on the rest]
    #[arg(long)]
    kernel: Vec<String>,
    /// How the guard refuses: `lsm`; `fmod_ret` in guests without bpf among their security modules; `cgroup`
    #[arg(long, default_value = LSM, value_parser = [LSM, FMOD_RET, CGROUP])]
    tier: String,
}

const LSM: &str = "lsm";
const FMOD_RET: &str = "fmod_ret";
const CGROUP: &str = "cgroup";
/// What a kernel is booted with that has no bpf among its security modules.
const WITHOUT_BPF: &str = "lsm=landlock,lockdown,yama,apparmor";
/// What a guest is booted with whose process 1 is systemd: see `guest/run.sh`.
const SYSTEMD: &str = "guest.init=systemd";
/// Scenarios that the weaker tier is given by default: of every function that it stands at.
const OF_FUNCTIONS: [&str; 5] =
    ["formats_once::a_loop", "life::", "passthrough::", "protection::", "roads::"];

/// The kernel that is given every scenario when none is named.
const WHOLE: &str = "6.12";
/// The oldest one: what tier `cgroup` needs is there. This host has tests of it, too.
const OLDEST: &str = "6.1";
/// Scenarios that one of the other kernels is given then, by the day: of the hooks that judge, and of what differs between
/// kernels. Everyday work and every tool on every kind of volume are rows of the tables, which take the kernels in turn.
const CORE: [&str; 7] =
    ["formats_once::a_loop", "incidents::", "life::", "passthrough::", "protection::", "roads::", "stacks::"];
/// What the rest is given: the programs are loaded there, proven, and hold every tool.
const LEAST: [&str; 1] = ["formats_once::a_loop"];
/// Scenarios of what the agent does, whatever the kernel: only there. What differs in sysfs between kernels is held by
/// recorded trees. With `--kernel` they are held on each kernel named.
const ONCE: [(&str, &[&str]); 2] = [
    (
        "scenarios of the agent",
        // Most of those of the command line run under the LD_PRELOAD library, on this host.
        &[
            "audit::",
            "command_line::a_refusal_names",
            "command_line::ensure_fs_goes_on_after",
            "command_line::ensure_fs_is_not_fooled",
            "command_line::the_configuration_is_read_again",
            "hanging::",
            "identity::",
            "kubernetes::",
            "metrics::",
            "permit::",
            "states::",
        ],
    ),
    ("scenarios of its faults", &["database::", "faults::", "handover::", "storm::", "world::"]),
];

/// What came of one part.
struct Outcome {
    name: String,
    passed: u64,
    failed: u64,
    seconds: u64,
}

/// `cargo xtask test`
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::ready()?;
    let kernels = chosen(&arguments.kernel, &kernels::keys())
        .into_iter()
        .map(Kernel::get)
        .collect::<Result<Vec<_>>>()?;
    let mut outcomes = Vec::new();
    if arguments.filter.is_none() {
        outcomes.push(host()?);
        outcomes.push(fuzz()?);
        outcomes.push(chart()?);
    }
    println!("test: building the scenarios");
    let guard = executable("bin", "format-guard")?;
    // Scenarios find it beside the other.
    executable_with("format-guard/fault-points", "bin", "format-guard-faulty")?;
    if arguments.filter.is_none() {
        outcomes.extend(under_the_library(&guard)?);
        outcomes.push(in_a_control_group(&guard)?);
    }
    let everywhere = !arguments.kernel.is_empty();
    let filter = arguments.filter.as_deref();
    let of_released =
        filter.is_none_or(|filter| ["service", "container"].iter().any(|test| test.contains(filter)));
    let released = if of_released { released(&guard)? } else { Vec::new() };
    let boots = boots(&kernels, filter, everywhere, &arguments.tier, &released)?;
    outcomes.extend(in_guests(boots, &guard)?);
    if filter.is_none_or(|filter| "cluster".contains(filter)) {
        outcomes.push(of_two_nodes(&guard)?);
    }
    if arguments.filter.is_none() {
        outcomes.extend(tables(&arguments.kernel, &guard)?);
    }

    if arguments.filter.is_none() {
        for outcome in outcomes.iter_mut().filter(|outcome| outcome.passed + outcome.failed == 0) {
            println!("test: {} ran nothing", outcome.name);
            outcome.failed = 1;
        }
    }
    println!("\nsummary");
    for outcome in &outcomes {
        println!(
            "  {:<24} {:>4} passed {:>4} failed {:>5} s",
            outcome.name, outcome.passed, outcome.failed, outcome.seconds
        );
    }
    let passed: u64 = outcomes.iter().map(|outcome| outcome.passed).sum();
    let failed: u64 = outcomes.iter().map(|outcome| outcome.failed).sum();
    println!("{passed} passed, {failed} failed");
    Ok(if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Unit and property tests of every crate, on this host.
fn host() -> Result<Outcome> {
    println!("test: unit and property tests");
    let start = Instant::now();
    let mut cargo = command("cargo", ["test", "--quiet"]);
    cargo.current_dir(workspace()).stderr(Stdio::inherit());
    let result = output(&mut cargo)?;
    let text = String::from_utf8_lossy(&result.stdout).into_owned();
    print!("{text}");
    outcome("host", &text, result.status.success(), start)
}

/// The Helm chart, and what it renders to.
fn chart() -> Result<Outcome> {
    println!("test: the Helm chart");
    let start = Instant::now();
    let sound = chart::hold(false)?;
    Ok(Outcome {
        name: "chart".to_owned(),
        passed: u64::from(sound),
        failed: u64::from(!sound),
        seconds: start.elapsed().as_secs(),
    })
}

/// The tier that needs no kernel, on this host.
fn under_the_library(guard: &Path) -> Result<Vec<Outcome>> {
    println!("test: under the LD_PRELOAD library");
    let mut outcomes = Vec::new();
    for tests in preload::TESTS {
        let start = Instant::now();
        let (success, text) = preload::hold(guard, tests)?;
        println!("== library, {tests}\n{}", text.trim_end());
        outcomes.push(outcome(&format!("library, {tests}"), &text, success, start)?);
    }
    Ok(outcomes)
}

/// The tier that needs no types and no trampolines of a kernel, on this host.
fn in_a_control_group(guard: &Path) -> Result<Outcome> {
    println!("test: in a control group");
    let start = Instant::now();
    let (success, text) = cgroup::hold(guard)?;
    println!("== cgroup\n{}", text.trim_end());
    outcome("cgroup", &text, success, start)
}

/// Two guests that share volumes, on one kernel.
fn of_two_nodes(guard: &Path) -> Result<Outcome> {
    println!("test: two nodes that share volumes");
    let start = Instant::now();
    let (held, text) = cluster::hold(&Kernel::get(WHOLE)?, guard)?;
    println!("== two nodes\n{}", text.trim_end());
    outcome("two nodes", &text, held, start)
}

/// Days since 1970: what is held by the day goes by it.
fn today() -> Result<usize> {
    let day = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() / 86_400;
    Ok(usize::try_from(day)?)
}

/// The fuzz targets, for some seconds each.
fn fuzz() -> Result<Outcome> {
    const SECONDS: u64 = 5;
    println!("test: fuzz targets");
    let start = Instant::now();
    let directory = fuzz::build()?;
    let mut outcome = Outcome { name: "fuzz".to_owned(), passed: 0, failed: 0, seconds: 0 };
    for target in fuzz::TARGETS {
        let sound = fuzz::hold(&directory, target, SECONDS, None)?;
        outcome.passed += u64::from(sound);
        outcome.failed += u64::from(!sound);
    }
    outcome.seconds = start.elapsed().as_secs();
    Ok(outcome)
}

/// The tables of `cargo xtask matrix`, on the kernels that are named or else on one, by the day: all kinds of volumes take a
/// day of eight there, everyday work one of four.
fn tables(named: &[String], guard: &Path) -> Result<Vec<Outcome>> {
    let day = today()?;
    let all = kernels::keys();
    let today = all[day / 8 % all.len()];
    let matrix = executable("bin", "matrix")?;
    let mut outcomes = Vec::new();
    for key in chosen(named, &[today]) {
        let kernel = Kernel::get(key)?;
        for (table, turns) in [("destructive", 8), ("everyday", 4)] {
            let start = Instant::now();
            let turn = Turn { number: day % turns, of: turns };
            let (whole, rows) = matrix::hold(&kernel, table, [guard, &matrix], turn, &[])?;
            let (mut passed, mut failed) = (0, 0);
            for row in &rows {
                match row["outcome"].as_str() {
                    Some("failed") => {
                        failed += 1;
                        println!("{row}");
                    }
                    Some("held" | "partly") => passed += 1,
                    _ => {}
                }
            }
            let failed = if whole { failed } else { failed.max(1) };
            let name = format!("{key} {table}, turn {} of {turns}", turn.number + 1);
            outcomes.push(Outcome { name, passed, failed, seconds: start.elapsed().as_secs() });
        }
    }
    Ok(outcomes)
}

/// One boot of one kernel with one test executable.
struct Boot {
    name: String,
    kernel: Kernel,
    executable: PathBuf,
    arguments: Vec<OsString>,
    disks: Vec<Disk>,
    /// How the guard refuses in it.
    tier: String,
    /// systemd is its process 1.
    systemd: bool,
    /// What its tests are told, each `NAME=VALUE`.
    variables: Vec<String>,
    /// Runs after this one, with the same disks.
    then: Option<Box<Self>>,
}

/// A test of what is released: its executable, what the boot is called, its disks, what it is told.
type OfReleased = (&'static str, &'static str, [&'static str; 2], Vec<String>);

/// Lays out, packs and renders what is released, of this build, for the tests of it.
fn released(guard: &Path) -> Result<Vec<OfReleased>> {
    println!("test: making the packages, the image and the manifests");
    let directory = workspace().join("target/dist");
    let root = dist::stage(guard, &preload::library(guard)?)?;
    let image = directory.join("image");
    dist::image(&root, &image)?;
    let manifests = directory.join("manifests.json");
    fs::write(&manifests, chart::manifests()?)?;
    let [older, newer] = ["0.0.1", "0.0.2"].map(|version| dist::packages(version, &directory));
    let ((older_deb, older_rpm), (newer_deb, newer_rpm)) = (older?, newer?);
    let variable = |name: &str, path: &Path| format!("FORMAT_GUARD_{name}={}", path.display());
    Ok(vec![
        (
            "service",
            "boot with systemd",
            ["boot.img", "mounted.img"],
            vec![
                variable("DEB", &older_deb),
                variable("NEWER_DEB", &newer_deb),
                variable("RPM", &older_rpm),
                variable("NEWER_RPM", &newer_rpm),
            ],
        ),
        (
            "container",
            "container of the chart",
            ["contained.img", "blank.img"],
            vec![variable("IMAGE", &image), variable("CHART", &manifests)],
        ),
    ])
}

fn boots(
    kernels: &[Kernel],
    filter: Option<&str>,
    everywhere: bool,
    tier: &str,
    released: &[OfReleased],
) -> Result<Vec<Boot>> {
    let scenarios = executable("test", "scenarios")?;
    let reboot = executable("test", "reboot")?;
    let groups = executable("test", "cgroup")?;
    let libtest = |words: &[&str]| -> Vec<OsString> {
        // How long each takes is printed: under emulation that is what a run is made of.
        let always = ["--test-threads=1", "-Zunstable-options", "--report-time"];
        words.iter().copied().chain(always).chain(filter).map(OsString::from).collect()
    };
    let mut boots = Vec::new();
    let others: Vec<&str> = kernels::keys().into_iter().filter(|key| *key != WHOLE).collect();
    let in_turn = others[today()? % others.len()];
    for kernel in kernels {
        let of_scenarios = |name: &str, arguments: Vec<OsString>| Boot {
            name: format!("{} {name}", kernel.key),
            kernel: kernel.clone(),
            executable: scenarios.clone(),
            arguments,
            disks: Vec::new(),
            tier: tier.to_owned(),
            systemd: false,
            variables: Vec::new(),
            then: None,
        };
        let of_groups = || Boot {
            executable: groups.clone(),
            tier: CGROUP.to_owned(),
            ..of_scenarios("cgroup", libtest(&[]))
        };
        if tier == CGROUP {
            boots.push(of_groups());
            continue;
        }
        if filter.is_some() {
            boots.push(of_scenarios("scenarios", libtest(&[])));
        } else {
            let whole = everywhere || kernel.key == WHOLE;
            let once = ONCE.iter().flat_map(|(_, modules)| modules.iter());
            let words: Vec<&str> = if whole {
                once.copied().chain(["command_line::"]).flat_map(|name| ["--skip", name]).collect()
            } else if kernel.key == in_turn {
                CORE.to_vec()
            } else {
                LEAST.to_vec()
            };
            boots.push(of_scenarios("scenarios", libtest(&words)));
            if whole {
                boots.extend(ONCE.map(|(name, modules)| of_scenarios(name, libtest(modules))));
            }
            if tier == LSM && kernel.key == OLDEST {
                boots.push(of_groups());
            }
            if tier == LSM && kernel.key == WHOLE {
                let functions = of_scenarios("scenarios without BPF LSM", libtest(&OF_FUNCTIONS));
                boots.push(Boot { tier: FMOD_RET.to_owned(), ..functions });
            }
        }
        let wanted = |name: &str| filter.is_none_or(|filter| name.contains(filter));
        if !["reboot", "service", "container"].into_iter().any(wanted) {
            continue;
        }
        if filter.is_none() && !everywhere && kernel.key != WHOLE && kernel.key != in_turn {
            continue;
        }
        if kernel.key == WHOLE && tier == LSM {
            for (test, name, disks, variables) in released {
                if !wanted(test) {
                    continue;
                }
                boots.push(Boot {
                    executable: executable("test", test)?,
                    disks: blank_disks(kernel, *disks)?,
                    systemd: *test == "service",
                    variables: variables.clone(),
                    ..of_scenarios(name, ["--ignored", "--nocapture"].map(OsString::from).to_vec())
                });
            }
        }
        if !wanted("reboot") {
            continue;
        }
        // The second boot finds what the first one left on its disks.
        let disks = blank_disks(kernel, ["state.img", "volume.img"])?;
        let half = |name: &str, then: Option<Box<Boot>>| Boot {
            name: format!("{} reboot, {name}", kernel.key),
            kernel: kernel.clone(),
            executable: reboot.clone(),
            arguments: ["--ignored", "--exact", name, "--test-threads=1"].map(OsString::from).to_vec(),
            disks: disks.clone(),
            tier: tier.to_owned(),
            systemd: false,
            variables: Vec::new(),
            then,
        };
        boots.push(half("first_boot", Some(Box::new(half("second_boot", None)))));
    }
    Ok(boots)
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

/// Runs the boots, some at a time, and prints each one's output when it is complete.
fn in_guests(boots: Vec<Boot>, guard: &Path) -> Result<Vec<Outcome>> {
    let logs = tempfile::tempdir()?;
    let waiting = Mutex::new(boots.into_iter().enumerate().rev().collect::<Vec<_>>());
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        let workers: Vec<_> = (0..GUESTS)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    loop {
                        let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).pop();
                        let Some((i, mut boot)) = next else { return Ok(()) };
                        loop {
                            let outcome = one(&boot, guard, &logs.path().join(i.to_string()))?;
                            let failed = outcome.failed > 0;
                            done.lock().unwrap_or_else(PoisonError::into_inner).push((i, outcome));
                            match boot.then.take() {
                                Some(then) if !failed => boot = *then,
                                _ => break,
                            }
                        }
                    }
                })
            })
            .collect();
        for worker in workers {
            match worker.join() {
                Ok(result) => result?,
                Err(_) => bail!("a worker broke"),
            }
        }
        Ok(())
    })?;
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(i, _)| *i);
    Ok(done.into_iter().map(|(_, outcome)| outcome).collect())
}

fn one(boot: &Boot, guard: &Path, log: &Path) -> Result<Outcome> {
    println!("test: {} started ({})", boot.name, boot.kernel.release);
    let start = Instant::now();
    let mut command = against(guard, &boot.executable, boot.arguments.iter().cloned());
    // libtest tells times to those alone who may use what is not stable.
    command.insert(1, "RUSTC_BOOTSTRAP=1".into());
    command.insert(1, format!("FORMAT_GUARD_TIER={}", boot.tier).into());
    for variable in &boot.variables {
        command.insert(1, variable.into());
    }
    command.insert(1, "FORMAT_GUARD_CGROUP=/sys/fs/cgroup".into());
    let parameters = match boot.tier.as_str() {
        _ if boot.systemd => SYSTEMD,
        FMOD_RET => WITHOUT_BPF,
        _ => "",
    };
    let guest = Guest {
        kernel: boot.kernel.clone(),
        command,
        disks: boot.disks.clone(),
        timeout: TIMEOUT,
        cpu: Cpu::Timed,
        parameters: parameters.to_owned(),
        network: false,
    };
    let mut status = guest.run(&mut File::create(log)?)?;
    // What a boot finds on its disks must be what the one before left.
    if status == EMULATOR_FAILED && boot.disks.is_empty() {
        println!("test: {}: the emulator killed its guest: once more", boot.name);
        status = guest.run(&mut File::create(log)?)?;
    }
    let text = String::from_utf8_lossy(&fs::read(log)?).into_owned();
    println!("== {}\n{}", boot.name, text.trim_end());
    outcome(&boot.name, &text, status == 0, start)
}

/// Counts from libtest's own summary lines. A run that failed without a failed test has failed all the same.
fn outcome(name: &str, text: &str, success: bool, start: Instant) -> Result<Outcome> {
    let (mut passed, mut failed) = (0, 0);
    for line in text.lines().filter_map(|line| line.strip_prefix("test result: ")) {
        let count = |word: &str| -> Result<u64> {
            let before = line.split(&format!(" {word}")).next().context("no count")?;
            Ok(before.rsplit([' ', '.']).next().unwrap_or("0").parse().unwrap_or(0))
        };
        passed += count("passed")?;
        failed += count("failed")?;
    }
    if !success && failed == 0 {
        failed = 1;
    }
    Ok(Outcome { name: name.to_owned(), passed, failed, seconds: start.elapsed().as_secs() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_are_counted() {
        let text = "test result: ok. 12 passed; 0 failed; 1 ignored\nx\ntest result: FAILED. 1 passed; 2 failed; 0\n";
        let counted = outcome("x", text, false, Instant::now()).expect("counted");
        assert_eq!((counted.passed, counted.failed), (13, 2));
    }

    #[test]
    fn a_run_that_broke_off_has_failed() {
        assert_eq!(outcome("x", "", false, Instant::now()).expect("counted").failed, 1);
    }
}
