//! `format-guard check`: tries whether this host can enforce, and says what to change if it cannot.

use std::{fs, path::Path};

use serde::Serialize;

use super::{CommandError, format::wrap, print_json};
use crate::{
    config::Config,
    enforce::{
        Enforcer,
        bpf::{BpfEnforcer, offsets::KERNEL_BTF},
        error::ProgramStatus,
    },
    tier::{self, Tier},
};

/// The name of the first requirement.
const ROOT: &str = "root";
/// Where programs are pinned while they are tried.
const TRIAL: &str = "/sys/fs/bpf/format-guard-check";

/// The way out if the kernel refuses nothing.
const WITHOUT_KERNEL: &str =
    "see the finding; tier preload guards programs that run under a library (format-guard run)";

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Fail unless this host offers this tier or a better one
    #[arg(long, value_enum, value_name = "TIER")]
    require: Option<Tier>,
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

/// One thing that enforcing needs.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Requirement {
    /// The name of the requirement.
    name: &'static str,
    /// Whether the host meets it.
    met: bool,
    /// Whether every tier needs it; otherwise a weaker tier works without it.
    needed: bool,
    /// What was found.
    finding: String,
    /// What to change; empty if nothing is missing.
    remedy: String,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Report {
    /// Enforcement was tried and refused what it must.
    enforceable: bool,
    /// The tier that refused it; empty if none could be tried.
    tier: &'static str,
    /// What this tier leaves open and the best tier does not.
    open: &'static [&'static str],
    /// Each requirement.
    requirements: Vec<Requirement>,
    /// Each kernel program, if the programs could be tried.
    programs: Vec<ProgramStatus>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), CommandError> {
    let mut requirements = requirements();
    let (mut programs, mut proven) = (Vec::new(), None);
    if requirements.iter().all(|each| each.met || !each.needed) {
        let tried = trial();
        requirements.push(Requirement {
            name: "enforcement",
            met: tried.is_ok(),
            needed: true,
            finding: match &tried {
                Ok(tried) => {
                    let better = tried.better.as_ref().map(|error| format!("; no better one: {error}"));
                    format!(
                        "the canary was refused, tier {}{}",
                        tried.tier.name(),
                        better.unwrap_or_default()
                    )
                }
                Err(error) => error.clone(),
            },
            remedy: if tried.is_ok() { String::new() } else { WITHOUT_KERNEL.to_owned() },
        });
        if let Ok(tried) = tried {
            (programs, proven) = (tried.parts, Some(tried.tier));
        }
    }
    let report = Report {
        enforceable: proven.is_some(),
        tier: proven.map_or("", Tier::name),
        open: proven.map_or(&[], Tier::open),
        requirements,
        programs,
    };
    if arguments.json {
        print_json(&report)?;
    } else {
        print(&report);
    }
    verdict(&report, proven, arguments.require)
}

/// How the command ends. Without root nothing was tried, so that nothing is known of the host.
fn verdict(report: &Report, proven: Option<Tier>, required: Option<Tier>) -> Result<(), CommandError> {
    let missing = |each: &&Requirement| !each.met && each.needed;
    let Some(tier) = proven else {
        let missing: Vec<&Requirement> = report.requirements.iter().filter(missing).collect();
        if missing.iter().any(|each| each.name == ROOT) {
            return Err(CommandError::NotTried);
        }
        let missing: Vec<String> =
            missing.iter().map(|each| format!("{}: {}: {}", each.name, each.finding, each.remedy)).collect();
        return Err(CommandError::NotEnforceable(missing.join("; ")));
    };
    match required {
        // Tiers are ordered from the best to the weakest.
        Some(required) if tier > required => Err(CommandError::NotEnforceable(format!(
            "the best tier here is {}, and {} is required",
            tier.name(),
            required.name()
        ))),
        _ => Ok(()),
    }
}

fn print(report: &Report) {
    for each in &report.requirements {
        let mark = match (each.met, each.needed) {
            (true, _) => "ok     ",
            (false, true) => "MISSING",
            (false, false) => "weaker ",
        };
        println!("{mark} {}", wrap(&format!("{}: {}", each.name, each.finding), 80, 8));
        if !each.met {
            println!("        {}", wrap(&each.remedy, 80, 8));
        }
    }
    for open in report.open {
        println!("note    {}", wrap(&format!("tier {} leaves open: {open}", report.tier), 80, 8));
    }
    for part in report.programs.iter().filter(|part| !part.attached) {
        println!("note    {}", wrap(&format!("without {}: {}", part.program, part.open), 80, 8));
    }
}

fn requirements() -> Vec<Requirement> {
    let modules = tier::modules();
    let root = rustix::process::geteuid().is_root();
    let bpf_fs = is_bpf_fs(Path::new("/sys/fs/bpf"));
    let requirement = |name, met, finding: String, remedy: &str| Requirement {
        name,
        met,
        needed: true,
        finding,
        remedy: if met { String::new() } else { remedy.to_owned() },
    };
    vec![
        requirement(
            ROOT,
            root,
            format!("user {}", rustix::process::geteuid().as_raw()),
            "programs are loaded and tried: run this command as root (sudo format-guard check)",
        ),
        requirement(
            "architecture",
            cfg!(target_arch = "x86_64"),
            std::env::consts::ARCH.to_owned(),
            "only x86_64 is supported",
        ),
        Requirement {
            // Tier cgroup needs no type information.
            needed: false,
            ..requirement(
                "kernel type information",
                Path::new(KERNEL_BTF).exists(),
                KERNEL_BTF.to_owned(),
                "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y (all of Debian's and Ubuntu's are)",
            )
        },
        bpf_lsm(modules.as_deref(), kernel_config().as_deref()),
        requirement(
            "bpf file system",
            bpf_fs,
            if bpf_fs { "mounted at /sys/fs/bpf" } else { "none is mounted at /sys/fs/bpf" }.to_owned(),
            "mount -t bpf bpf /sys/fs/bpf (systemd does at each boot: sys-fs-bpf.mount)",
        ),
    ]
}

/// The configuration that the running kernel was built with, if its package holds that.
fn kernel_config() -> Option<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    fs::read_to_string(format!("/boot/config-{}", release.trim())).ok()
}

fn is_built_without_bpf_lsm(config: &str) -> bool {
    config.lines().any(|line| line == "# CONFIG_BPF_LSM is not set")
}

/// BPF LSM, which only the best tier needs: without it the functions that call the hooks are left.
fn bpf_lsm(modules: Option<&str>, config: Option<&str>) -> Requirement {
    let met = modules.is_some_and(tier::lists_bpf);
    let (finding, remedy) = match modules {
        None => (
            "the list of security modules cannot be read".to_owned(),
            "mount -t securityfs securityfs /sys/kernel/security".to_owned(),
        ),
        Some(modules) if config.is_some_and(is_built_without_bpf_lsm) => (
            format!("lsm={modules}"),
            "no boot parameter helps: this kernel is built without CONFIG_BPF_LSM".to_owned(),
        ),
        Some(modules) => {
            let listed: Vec<&str> = modules.split(',').filter(|name| *name != "capability").collect();
            let separator = if listed.is_empty() { "" } else { "," };
            (
                format!("lsm={modules}"),
                format!("add to the boot parameters: lsm={}{separator}bpf", listed.join(",")),
            )
        }
    };
    Requirement {
        name: "BPF LSM",
        met,
        needed: false,
        finding,
        remedy: if met { String::new() } else { remedy },
    }
}

/// `BPF_FS_MAGIC` of include/uapi/linux/magic.h.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

fn is_bpf_fs(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type == BPF_FS_MAGIC)
}

/// The result of a trial.
struct Tried {
    tier: Tier,
    parts: Vec<ProgramStatus>,
    /// Why no better tier was proven.
    better: Option<String>,
}

/// Loads, attaches and proves the programs of the best of the kernel's tiers, and removes them again. The
/// programs run in audit mode, so that they refuse nothing but the canary.
fn trial() -> Result<Tried, String> {
    let path = format!("{TRIAL}-{}", std::process::id());
    let path = Path::new(&path);
    let config = Config { require: Tier::Cgroup, ..Config::default() };
    let tiers = config.tiers(tier::modules().as_deref());
    let of_types: Vec<Tier> = tiers.iter().copied().filter(|tier| *tier < Tier::Cgroup).collect();
    let try_one = |first: Tier, weaker: &[Tier]| {
        let tried =
            BpfEnforcer::load(path, &config, true, first, weaker.to_vec()).and_then(|mut enforcer| {
                let parts = enforcer.attach()?;
                Ok(Tried { tier: enforcer.tier(), parts, better: None })
            });
        if let Err(error) = fs::remove_dir_all(path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(format!("the trial's pins at {} cannot be removed: {error}", path.display()));
        }
        tried.map_err(|error| error.to_string())
    };
    let best = match of_types.as_slice() {
        [first, weaker @ ..] => try_one(*first, weaker),
        [] => Err("this kernel has no place for the guard".to_owned()),
    };
    best.or_else(|error| match try_one(Tier::Cgroup, &[]) {
        Ok(tried) => Ok(Tried { better: Some(error), ..tried }),
        Err(of_cgroup) => Err(format!("{error}; tier cgroup: {of_cgroup}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lists of active security modules, and the relevant lines of what each kernel was built with, as found
    /// on: Debian's packages linux-image 6.1.0-56 and 6.12.118; WSL 6.18
    /// (github.com/microsoft/WSL/issues/41612); Flatcar of 2021 (github.com/flatcar/Flatcar/issues/343);
    /// Ubuntu 24.04 and openSUSE (github.com/canonical/snapd/pull/15363); Red Hat and `AlmaLinux` 9.8 (kernel
    /// 5.14.0-687.el9; github.com/atgreen/block-copyfail). For Google's Container-Optimized OS no list was
    /// found.
    const HOSTS: [(&str, &str, Option<&str>); 8] = [
        (
            "lockdown,capability,landlock,yama,apparmor",
            "CONFIG_LSM=\"landlock,lockdown,yama,integrity,apparmor\"\nCONFIG_BPF_LSM=y",
            Some("add to the boot parameters: lsm=lockdown,landlock,yama,apparmor,bpf"),
        ),
        ("lockdown,capability,landlock,yama,apparmor,bpf,ima,evm", "CONFIG_BPF_LSM=y", None),
        ("lockdown,capability,landlock,yama,selinux,bpf", "CONFIG_BPF_LSM=y", None),
        ("lockdown,capability,landlock,yama,apparmor,tomoyo,bpf,ima,evm", "CONFIG_BPF_LSM=y", None),
        (
            "lockdown,capability,landlock,yama,apparmor",
            "CONFIG_BPF_LSM=y",
            Some("add to the boot parameters: lsm=lockdown,landlock,yama,apparmor,bpf"),
        ),
        (
            "capability,landlock,yama,safesetid,selinux,ima",
            "CONFIG_DEBUG_INFO_BTF=y\nCONFIG_BPF_LSM=y",
            Some("add to the boot parameters: lsm=landlock,yama,safesetid,selinux,ima,bpf"),
        ),
        ("capability", "", Some("add to the boot parameters: lsm=bpf")),
        (
            "capability,selinux",
            "CONFIG_BPF=y\n# CONFIG_BPF_LSM is not set",
            Some("no boot parameter helps: this kernel is built without CONFIG_BPF_LSM"),
        ),
    ];

    #[test]
    fn what_was_not_tried_is_not_told_to_be_missing() {
        let report = |missing: &[&'static str]| Report {
            enforceable: false,
            tier: "",
            open: &[],
            requirements: [ROOT, "bpf file system"]
                .into_iter()
                .map(|name| Requirement {
                    name,
                    met: !missing.contains(&name),
                    needed: true,
                    finding: String::new(),
                    remedy: "mount it".to_owned(),
                })
                .collect(),
            programs: Vec::new(),
        };
        let said = |missing: &[&'static str], proven, required| {
            verdict(&report(missing), proven, required).err().map(|error| error.to_string())
        };
        assert!(said(&[ROOT, "bpf file system"], None, None).is_some_and(|text| text.contains("needs root")));
        let text = said(&["bpf file system"], None, None).expect("missing");
        assert!(text.contains("bpf file system: : mount it"), "{text}");
        assert_eq!(said(&[], Some(Tier::FmodRet), None), None);
        assert_eq!(said(&[], Some(Tier::Lsm), Some(Tier::FmodRet)), None);
        let text = said(&[], Some(Tier::Cgroup), Some(Tier::Lsm)).expect("weaker");
        assert!(text.contains("the best tier here is cgroup, and lsm is required"), "{text}");
    }

    #[test]
    fn a_host_without_bpf_among_its_modules_is_told_the_line_to_add() {
        for (modules, config, remedy) in HOSTS {
            let found = bpf_lsm(Some(modules), Some(config));
            assert_eq!((found.met, found.needed), (remedy.is_none(), false), "{modules}");
            assert_eq!(found.remedy, remedy.unwrap_or_default(), "{modules}");
        }
        assert!(bpf_lsm(None, None).remedy.contains("securityfs"));
    }
}
