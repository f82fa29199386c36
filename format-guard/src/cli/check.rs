//! `format-guard check`: whether this host can enforce, found out by trying, and if not, what to change.

use std::{fs, path::Path};

use serde::Serialize;

use super::{CommandError, format::wrap, print_json};
use crate::config::Config;
use crate::enforce::{
    lsm::{LsmEnforcer, PartReport},
    offsets::KERNEL_BTF,
};

/// Where programs are pinned while they are tried.
const TRIAL: &str = "/sys/fs/bpf/format-guard-check";

/// One thing that enforcing needs.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Requirement {
    /// What it is.
    name: &'static str,
    /// Whether it is there.
    met: bool,
    /// What was found.
    finding: String,
    /// What to change; empty where nothing is missing.
    remedy: &'static str,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Report {
    /// Enforcement was tried and refused what it must.
    enforceable: bool,
    /// Each requirement.
    requirements: Vec<Requirement>,
    /// Each kernel program, where they could be tried.
    programs: Vec<PartReport>,
}

pub(super) fn run(json: bool) -> Result<(), CommandError> {
    let mut requirements = requirements();
    let mut programs = Vec::new();
    if requirements.iter().all(|each| each.met) {
        let tried = trial();
        requirements.push(Requirement {
            name: "enforcement",
            met: tried.is_ok(),
            finding: match &tried {
                Ok(_) => "the canary was refused".to_owned(),
                Err(error) => error.clone(),
            },
            remedy: if tried.is_ok() { "" } else { "see the finding" },
        });
        programs = tried.unwrap_or_default();
    }
    let enforceable = requirements.iter().all(|each| each.met);
    let report = Report { enforceable, requirements, programs };
    if json {
        print_json(&report)?;
    } else {
        print(&report);
    }
    match report.requirements.iter().find(|each| !each.met) {
        None => Ok(()),
        Some(missing) => Err(CommandError::NotEnforceable(format!("{} is missing", missing.name))),
    }
}

fn print(report: &Report) {
    for each in &report.requirements {
        let mark = if each.met { "ok     " } else { "MISSING" };
        println!("{mark} {}", wrap(&format!("{}: {}", each.name, each.finding), 80, 8));
        if !each.met {
            println!("        {}", wrap(each.remedy, 80, 8));
        }
    }
    for part in report.programs.iter().filter(|part| !part.attached) {
        println!("note    {}", wrap(&format!("without {}: {}", part.program, part.open), 80, 8));
    }
}

fn requirements() -> Vec<Requirement> {
    let lsm = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    let root = rustix::process::geteuid().is_root();
    let requirement = |name, met, finding: String, remedy| Requirement {
        name,
        met,
        finding,
        remedy: if met { "" } else { remedy },
    };
    vec![
        requirement(
            "root",
            root,
            format!("user {}", rustix::process::geteuid().as_raw()),
            "run this command as root",
        ),
        requirement(
            "architecture",
            cfg!(target_arch = "x86_64"),
            std::env::consts::ARCH.to_owned(),
            "only x86_64 is supported",
        ),
        requirement(
            "kernel type information",
            Path::new(KERNEL_BTF).exists(),
            KERNEL_BTF.to_owned(),
            "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y (all of Debian's and Ubuntu's are)",
        ),
        requirement(
            "BPF LSM",
            lsm.trim().split(',').any(|name| name == "bpf"),
            if lsm.is_empty() {
                "/sys/kernel/security/lsm cannot be read".to_owned()
            } else {
                format!("lsm={}", lsm.trim())
            },
            "add bpf to the list of security modules: boot with lsm=<the list above>,bpf; mount securityfs if the \
             list cannot be read",
        ),
        requirement(
            "bpf file system",
            is_bpf_fs(Path::new("/sys/fs/bpf")),
            "/sys/fs/bpf".to_owned(),
            "mount -t bpf bpf /sys/fs/bpf",
        ),
    ]
}

/// `BPF_FS_MAGIC` of include/uapi/linux/magic.h.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

fn is_bpf_fs(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type == BPF_FS_MAGIC)
}

/// Loads, attaches and proves the programs, and takes them away again. In audit mode: nothing else is refused
/// meanwhile.
fn trial() -> Result<Vec<PartReport>, String> {
    let path = format!("{TRIAL}-{}", std::process::id());
    let path = Path::new(&path);
    let tried = LsmEnforcer::load(path, &Config::default(), true).and_then(|mut enforcer| enforcer.attach());
    if let Err(error) = fs::remove_dir_all(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(format!("the trial's pins at {} cannot be removed: {error}", path.display()));
    }
    tried.map_err(|error| error.to_string())
}
