//! The plan of checks, as one table: what runs, on which kernels, when, and which paths bring it forward. The
//! parts of a run follow only from this table and from what has changed, never from the calendar.

use super::select::Select;

/// The kernel for every scenario.
pub(crate) const PRIMARY: &str = "6.12";
const ALL: &[&str] = &["6.1", "6.12", "6.18", "7"];
const OTHERS: &[&str] = &["6.1", "6.18", "7"];
/// The kernels of a part that needs no guest.
const HERE: &[&str] = &[];

/// When a part is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// On every change.
    Change,
    /// On every change, after all others and only if there is time left: what scenarios hold in another way,
    /// too.
    ChangeInTime,
    /// In the night (`--all`), and after a change below one of the part's paths.
    Night,
}

/// How the guard refuses in a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tier {
    /// By BPF LSM.
    Lsm,
    /// At the kernel's functions, in guests without bpf among their security modules.
    FmodRet,
    /// At the root of the control groups.
    Cgroup,
}

impl Tier {
    /// The agent's name for the tier.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Lsm => "lsm",
            Self::FmodRet => "fmod_ret",
            Self::Cgroup => "cgroup",
        }
    }
}

/// What a part does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    /// A linter of the sources: a command that must find nothing.
    Lint { words: &'static [&'static str], variables: &'static [(&'static str, &'static str)] },
    /// Every unit test executable, each in a job of its own.
    Units,
    /// The model checker at the sizes that take minutes.
    LongModels,
    /// Tests under the `LD_PRELOAD` library, on this host: those of the library, or scenarios of the agent.
    Library { scenarios: bool },
    /// Tests of tier `cgroup`, on this host.
    ControlGroup,
    /// The demo.
    Demo,
    /// The commands of README, CONTRIBUTING and the manual.
    Commands,
    /// Scenarios in guests; with `shared`, in as many guests as may run side by side.
    Scenarios { select: Select, tier: Tier, shared: bool, variables: &'static [&'static str] },
    /// Scenarios on a kernel that is booted with this mode of preemption (`preempt=`).
    Preempted { mode: &'static str, select: Select, variables: &'static [&'static str] },
    /// Tests of tier `cgroup` in a guest.
    ControlGroupOfGuest,
    /// What is known after a reboot: two boots.
    Reboot,
    /// The packages on a host that boots.
    Service,
    /// The image, as the chart runs it.
    Container,
    /// Two guests that share volumes.
    Nodes,
    /// Rows of a table of `cargo xtask matrix`; all kinds of volumes where none are named.
    Table { table: &'static str, kinds: &'static [&'static str] },
    /// A table under the library, on this host.
    LibraryTable { table: &'static str },
    /// Every fuzz target for so many seconds, each a job of its own.
    Fuzz { seconds: u64 },
    /// The Helm chart and what it renders to.
    Chart,
    /// What nodes share through an API server of Kubernetes.
    ApiServer,
    /// Power cuts of a guest, this many.
    Cuts { number: u32 },
    /// A build of the release.
    Release,
}

/// One line of the plan.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    /// The name, which is unique.
    pub(crate) name: &'static str,
    /// What the part proves.
    pub(crate) shows: &'static str,
    pub(crate) work: Work,
    /// Each is a job of its own.
    pub(crate) kernels: &'static [&'static str],
    pub(crate) when: When,
    /// A part of the night is brought forward by a change of a path that begins with one of these.
    pub(crate) paths: &'static [&'static str],
    /// Seconds of one of its jobs on a core, until a run on this machine has measured it.
    pub(crate) seconds: u64,
}

/// Sources of the kernel programs and the rules.
const KERNEL: &[&str] = &[
    "format-guard-ebpf/",
    "format-guard-common/",
    "format-guard-programs/",
    "format-guard/src/enforce/",
    "tests/src/road.rs",
    "tests/programs/",
];
/// What is shipped and how it is installed.
const SHIPPED: &[&str] =
    &["deploy/", "xtask/src/dist.rs", "xtask/src/chart.rs", "format-guard/src/agent/metrics.rs"];
/// Texts for readers.
const MANUAL: &[&str] = &["docs/"];
/// Sources of what nodes share.
const SHARED: &[&str] = &[
    "format-guard/src/record/shared",
    "format-guard/src/agent/claims",
    "format-guard/src/agent/reconciler/sharing.rs",
    "tests/etcd/",
    "tests/tests/cluster.rs",
    "xtask/src/cluster.rs",
];
/// Sources of what nodes share through Kubernetes.
const SHARED_IN_THE_API: &[&str] = &[
    "format-guard/src/record/shared",
    "format-guard/src/agent/claims",
    "format-guard/src/agent/reconciler/sharing.rs",
    "format-guard/src/cli/kubectl.rs",
    "tests/etcd/",
    "tests/kubernetes/",
    "deploy/helm/",
    "xtask/src/api_server.rs",
];
/// Code that the fuzzer feeds.
const FUZZED: &[&str] = &[
    "fuzz/",
    "format-guard/src/fuzzing.rs",
    "format-guard/src/config.rs",
    "format-guard/src/api.rs",
    "format-guard/src/agent/uevents.rs",
    "format-guard/src/agent/kernel_events.rs",
    "format-guard-common/src/preload_request.rs",
    "format-guard/src/enforce/bpf/offsets.rs",
    "format-guard/src/enforce/report.rs",
    "format-guard/src/record/shared",
    "format-guard/src/volume/marks.rs",
    "format-guard/src/volume/probe.rs",
];

const fn lint(name: &'static str, shows: &'static str, words: &'static [&'static str], seconds: u64) -> Part {
    let work = Work::Lint { words, variables: &[] };
    Part { name, shows, work, kernels: HERE, when: When::Change, paths: &[], seconds }
}

const fn here(name: &'static str, shows: &'static str, work: Work, seconds: u64) -> Part {
    Part { name, shows, work, kernels: HERE, when: When::Change, paths: &[], seconds }
}

const fn in_guests(
    name: &'static str,
    shows: &'static str,
    work: Work,
    kernels: &'static [&'static str],
    seconds: u64,
) -> Part {
    Part { name, shows, work, kernels, when: When::Change, paths: &[], seconds }
}

/// On a slow machine tables are left to the night rather than cut off in the middle.
const fn in_time(mut part: Part) -> Part {
    part.when = When::ChangeInTime;
    part
}

const fn at_night(mut part: Part, paths: &'static [&'static str]) -> Part {
    part.when = When::Night;
    part.paths = paths;
    part
}

const fn scenarios(select: Select, tier: Tier) -> Work {
    Work::Scenarios { select, tier, shared: false, variables: &[] }
}

/// Scenarios of writers, for kernels that may preempt a program: a place that it had noted would then decide
/// another write.
const fn preempted(name: &'static str, mode: &'static str, kernels: &'static [&'static str]) -> Part {
    let select = Select::Named(&["writers::", "roads::"]);
    let work = Work::Preempted { mode, select, variables: &["FORMAT_GUARD_WRITERS_SECONDS=5"] };
    let shows = "the shape of a write changes no verdict and no road is open, in any mode of preemption";
    at_night(in_guests(name, shows, work, kernels, 480), &["format-guard-ebpf/src/place.rs"])
}

/// The plan.
pub(crate) const PLAN: &[Part] = &[
    lint("formatting", "rustfmt finds nothing to change", &["cargo", "fmt", "--all", "--", "--check"], 5),
    lint(
        "shell scripts",
        "shellcheck finds nothing",
        &[
            "shellcheck",
            ".ci/run",
            "deploy/systemd/format-guard-generator",
            "fuzz/instrument.sh",
            "xtask/src/guest/init.sh",
            "xtask/src/guest/run.sh",
            "xtask/src/newcomer.sh",
            "deploy/packages/deb/postinst",
            "deploy/packages/deb/postrm",
            "deploy/packages/deb/prerm",
        ],
        2,
    ),
    lint(
        "shell scripts of the RPM",
        "shellcheck finds nothing",
        &[
            "shellcheck",
            "--shell=sh",
            "deploy/packages/rpm/post",
            "deploy/packages/rpm/postun",
            "deploy/packages/rpm/preun",
        ],
        1,
    ),
    lint(
        "clippy",
        "clippy finds nothing in the crates that run on a host",
        &[
            "cargo",
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--exclude",
            "format-guard-ebpf",
            "--exclude",
            "format-guard-preload",
            "--",
            "-D",
            "warnings",
        ],
        150,
    ),
    // `--all-targets` is not everything: it leaves out targets that do not run by default. The whole
    // workspace is selected, since its dependencies would otherwise be checked again with other features.
    lint(
        "clippy of the scenarios",
        "clippy finds nothing in the tests that need a guest, a library or a control group",
        &[
            "cargo",
            "clippy",
            "--quiet",
            "--workspace",
            "--exclude",
            "format-guard-ebpf",
            "--exclude",
            "format-guard-preload",
            "--test",
            "scenarios",
            "--test",
            "reboot",
            "--test",
            "preload",
            "--test",
            "cgroup",
            "--test",
            "service",
            "--test",
            "container",
            "--test",
            "cluster",
            "--",
            "-D",
            "warnings",
        ],
        20,
    ),
    lint(
        "clippy of the library",
        "clippy finds nothing in the LD_PRELOAD library, which has no unwinder",
        &[
            "cargo",
            "clippy",
            "--quiet",
            "--profile",
            "preload",
            "--package",
            "format-guard-preload",
            "--",
            "-D",
            "warnings",
        ],
        10,
    ),
    Part {
        work: Work::Lint {
            words: &[
                "cargo",
                "clippy",
                "--quiet",
                "--release",
                "--package",
                "format-guard-ebpf",
                "-Zbuild-std=core",
                "--target",
                "bpfel-unknown-none",
                "--",
                "-D",
                "warnings",
            ],
            variables: &[("RUSTC_BOOTSTRAP", "1"), ("RUSTFLAGS", "--cfg=bpf_target_arch=\"x86_64\"")],
        },
        ..lint("clippy of the kernel programs", "clippy finds nothing in the kernel programs", &[], 25)
    },
    Part {
        work: Work::Lint {
            words: &[
                "cargo",
                "doc",
                "--quiet",
                "--workspace",
                "--no-deps",
                "--exclude",
                "format-guard-ebpf",
                "--exclude",
                "format-guard-preload",
            ],
            variables: &[("RUSTDOCFLAGS", "-D warnings")],
        },
        ..lint("rustdoc", "every link in the documentation of the sources leads somewhere", &[], 60)
    },
    // cargo deny check advisories needs a network for its database.
    lint(
        "licences",
        "cargo deny finds no licence, crate or source that is not wanted",
        &["cargo", "deny", "--log-level", "error", "check", "licenses", "bans", "sources"],
        5,
    ),
    at_night(
        Part {
            work: Work::Lint {
                words: &["cargo", "check", "--quiet", "--package", "format-guard"],
                variables: &[("FORMAT_GUARD_WITHOUT_PROGRAMS", "1")],
            },
            ..lint("as it is released", "the agent builds with the features of a release alone", &[], 90)
        },
        &["Cargo.toml", "Cargo.lock", "format-guard/Cargo.toml", "format-guard-common/Cargo.toml"],
    ),
    at_night(lint("book", "mdBook makes a book of the manual", &["mdbook", "build", "docs"], 2), MANUAL),
    here("units", "unit, property and model tests", Work::Units, 30),
    at_night(here("long models", "the model checker at sizes that take minutes", Work::LongModels, 900), &[]),
    here(
        "library",
        "what the LD_PRELOAD library refuses, on this host",
        Work::Library { scenarios: false },
        60,
    ),
    here(
        "library, scenarios",
        "the agent and its command line, beside the library",
        Work::Library { scenarios: true },
        90,
    ),
    here("control group", "tier cgroup, on this host", Work::ControlGroup, 30),
    in_guests("demo", "the README's first command", Work::Demo, &[PRIMARY], 60),
    here("commands", "what README, CONTRIBUTING and the manual say to type", Work::Commands, 5),
    in_guests(
        "scenarios",
        "every scenario that needs a kernel of its own",
        Work::Scenarios { select: Select::NeedingAGuest, tier: Tier::Lsm, shared: true, variables: &[] },
        &[PRIMARY],
        600,
    ),
    in_guests("reboot", "what is known after a reboot", Work::Reboot, &[PRIMARY], 60),
    in_guests(
        "loading",
        "the verifier loads the programs, the canary proves them, and they refuse on every road",
        scenarios(Select::Named(&["formats_once::a_loop", "roads::"]), Tier::Lsm),
        OTHERS,
        90,
    ),
    in_time(in_guests(
        "destructive, core",
        "tools, roads and layers against the volumes that matter most",
        Work::Table { table: "destructive", kinds: &["ext4", "luks2"] },
        &[PRIMARY],
        300,
    )),
    in_time(in_guests(
        "everyday, core",
        "everyday work on the volumes that matter most",
        Work::Table { table: "everyday", kinds: &["blank", "ext4", "xfs", "luks2"] },
        &[PRIMARY],
        400,
    )),
    at_night(
        in_guests(
            "hooks",
            "every scenario of the programs that judge, on the other kernels",
            scenarios(Select::Named(HOOKS), Tier::Lsm),
            OTHERS,
            240,
        ),
        KERNEL,
    ),
    at_night(
        in_guests(
            "fmod_ret",
            "the same functions judged without BPF LSM",
            scenarios(Select::Named(FUNCTIONS), Tier::FmodRet),
            &[PRIMARY],
            180,
        ),
        KERNEL,
    ),
    at_night(
        in_guests(
            "destructive, a shard",
            "tools, roads and layers against some more kinds of volumes",
            Work::Table { table: "destructive", kinds: &["xfs", "lvm", "gpt"] },
            &[PRIMARY],
            360,
        ),
        KERNEL,
    ),
    at_night(
        in_guests(
            "control group in a guest",
            "tier cgroup on the oldest kernel",
            Work::ControlGroupOfGuest,
            &["6.1"],
            60,
        ),
        KERNEL,
    ),
    at_night(here("chart", "the Helm chart and what it renders to", Work::Chart, 15), SHIPPED),
    at_night(
        in_guests("service", "the packages on a host that boots", Work::Service, &[PRIMARY], 150),
        SHIPPED,
    ),
    at_night(
        in_guests("container", "the image, as the chart runs it", Work::Container, &[PRIMARY], 90),
        SHIPPED,
    ),
    at_night(in_guests("nodes", "two guests that share volumes", Work::Nodes, &[PRIMARY], 150), SHARED),
    at_night(
        here("API server", "nodes that share volumes through Kubernetes' API", Work::ApiServer, 300),
        SHARED_IN_THE_API,
    ),
    at_night(here("fuzz", "each fuzz target for some seconds", Work::Fuzz { seconds: 5 }, 6), FUZZED),
    at_night(here("fuzz, long", "each fuzz target for five minutes", Work::Fuzz { seconds: 300 }, 302), &[]),
    at_night(
        in_guests(
            "whole scenarios",
            "every scenario, those of the command line too, on every kernel",
            scenarios(Select::All, Tier::Lsm),
            ALL,
            900,
        ),
        &[],
    ),
    preempted("writers, preempt=none", "none", &["6.1", "6.12"]),
    preempted("writers, preempt=voluntary", "voluntary", &["6.1", "6.12"]),
    preempted("writers, preempt=full", "full", ALL),
    preempted("writers, preempt=lazy", "lazy", &["6.18", "7"]),
    at_night(
        in_guests(
            "every point of failure",
            "the agent is killed between any two of its writes",
            Work::Scenarios {
                select: Select::Named(&["faults::"]),
                tier: Tier::Lsm,
                shared: false,
                variables: &["FORMAT_GUARD_FAULTS=all"],
            },
            &[PRIMARY],
            900,
        ),
        &["format-guard/src/fault.rs"],
    ),
    at_night(
        in_guests(
            "storm",
            "the agent is killed three hundred times while volumes are formatted",
            Work::Scenarios {
                select: Select::Named(&["storm::"]),
                tier: Tier::Lsm,
                shared: false,
                variables: &["FORMAT_GUARD_KILLS=300"],
            },
            &[PRIMARY],
            1200,
        ),
        &[],
    ),
    at_night(in_guests("reboot elsewhere", "what is known after a reboot", Work::Reboot, OTHERS, 60), &[]),
    at_night(
        in_guests("power cuts", "a guest's power is cut", Work::Cuts { number: 40 }, &[PRIMARY], 1200),
        &[],
    ),
    at_night(
        in_guests(
            "destructive",
            "the whole table",
            Work::Table { table: "destructive", kinds: &[] },
            ALL,
            1800,
        ),
        &[],
    ),
    at_night(
        in_guests("everyday", "the whole table", Work::Table { table: "everyday", kinds: &[] }, ALL, 900),
        &[],
    ),
    at_night(
        here(
            "destructive, library",
            "the whole table under the library",
            Work::LibraryTable { table: "destructive" },
            600,
        ),
        &["format-guard-preload/"],
    ),
    at_night(
        here(
            "everyday, library",
            "the whole table under the library",
            Work::LibraryTable { table: "everyday" },
            300,
        ),
        &["format-guard-preload/"],
    ),
    at_night(
        here("release", "packages, image and tarball are built as they are released", Work::Release, 900),
        &[],
    ),
];

/// Scenarios of the programs that judge, and of differences between kernels.
const HOOKS: &[&str] = &[
    "formats_once::a_loop",
    "incidents::",
    "life::",
    "passthrough::",
    "protection::",
    "roads::",
    "stacks::",
    "writers::",
];
/// Scenarios for every function that a weaker tier stands at.
const FUNCTIONS: &[&str] = &["formats_once::a_loop", "life::", "passthrough::", "protection::", "roads::"];

/// The parts that a change of these paths needs; all parts if the change is not known.
pub(crate) fn of_change(changed: Option<&[String]>) -> (Vec<&'static Part>, Vec<&'static Part>) {
    PLAN.iter().partition(|part| match (part.when, changed) {
        (When::Change | When::ChangeInTime, _) => true,
        (When::Night, None) => !part.paths.is_empty(),
        (When::Night, Some(changed)) => {
            changed.iter().any(|path| part.paths.iter().any(|start| path.starts_with(start)))
        }
    })
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, path::Path};

    use super::*;
    use crate::{command::workspace, kernels};

    fn names(parts: &[&Part]) -> Vec<&'static str> {
        parts.iter().map(|part| part.name).collect()
    }

    #[test]
    fn every_name_is_there_once_and_every_path_leads_somewhere() {
        let mut seen = BTreeSet::new();
        for part in PLAN {
            assert!(seen.insert(part.name), "{} is there twice", part.name);
            for path in part.paths {
                let full = workspace().join(path);
                let folder = full.parent().unwrap_or(Path::new("/"));
                let start = full.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let found = folder.read_dir().is_ok_and(|entries| {
                    entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with(&start))
                });
                assert!(found, "{}: nothing is below {path}", part.name);
            }
            for kernel in part.kernels {
                assert!(kernels::keys().contains(kernel), "{}: there is no kernel {kernel}", part.name);
            }
        }
    }

    /// A test file that no module names is neither compiled nor run.
    #[test]
    fn every_scenario_is_run() {
        let directory = workspace().join("tests/tests/scenarios");
        let main = std::fs::read_to_string(directory.join("main.rs")).expect("main.rs");
        for entry in std::fs::read_dir(&directory).expect("scenarios") {
            let path = entry.expect("an entry").path();
            let name = path.file_stem().and_then(|name| name.to_str()).expect("a name").to_owned();
            let named = main.lines().any(|line| line == format!("mod {name};"));
            assert!(name == "main" || named, "no module names {}", path.display());
        }
    }

    #[test]
    fn a_change_of_the_kernel_programs_is_held_on_every_kernel() {
        let changed = ["format-guard-ebpf/src/gate.rs".to_owned()];
        let (now, left) = of_change(Some(&changed));
        for part in ["hooks", "fmod_ret", "destructive, a shard", "scenarios", "demo"] {
            assert!(names(&now).contains(&part), "{part} is not held");
        }
        assert!(names(&left).contains(&"service"));
    }

    #[test]
    fn a_change_of_the_documentation_is_held_by_the_plan_of_every_change_and_the_book() {
        let (now, _) = of_change(Some(&["docs/questions.md".to_owned()]));
        let more = now.iter().filter(|part| part.when == When::Night);
        assert_eq!(more.map(|part| part.name).collect::<Vec<_>>(), ["book"]);
    }

    #[test]
    fn what_nobody_knows_counts_as_changed() {
        let (now, left) = of_change(None);
        assert!(names(&now).contains(&"service") && names(&now).contains(&"nodes"));
        assert!(left.iter().all(|part| part.paths.is_empty()));
    }

    #[test]
    fn every_test_that_cargo_leaves_out_is_linted() {
        let clippy = PLAN.iter().find(|part| part.name == "clippy of the scenarios").expect("a part");
        let Work::Lint { words, .. } = clippy.work else { panic!("clippy is a lint") };
        for name in crate::build::NAMED_TESTS {
            assert!(words.windows(2).any(|two| two == ["--test", name]), "{name} is not linted");
        }
    }

    #[test]
    fn every_script_is_looked_at() {
        let looked_at: Vec<&str> = PLAN
            .iter()
            .filter_map(|part| match part.work {
                Work::Lint { words, .. } if words[0] == "shellcheck" => Some(words),
                _ => None,
            })
            .flatten()
            .copied()
            .collect();
        for folder in
            [".ci", "deploy/packages/deb", "deploy/packages/rpm", "fuzz", "xtask/src", "xtask/src/guest"]
        {
            for entry in workspace().join(folder).read_dir().expect("a folder").flatten() {
                let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
                // The maintainer scripts of an RPM have no first line of their own.
                let named = entry.path().extension().is_some_and(|extension| extension == "sh");
                let script = text.starts_with("#!") || named || folder.ends_with("rpm");
                let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
                assert!(!script || looked_at.contains(&path.as_str()), "{path} is not looked at");
            }
        }
    }
}
