//! The ways in which a kernel can be made to refuse, best first, and what each leaves open.

use std::fs;

use serde::{Deserialize, Serialize};

/// Where the kernel says which security modules are active; on securityfs.
const MODULES: &str = "/sys/kernel/security/lsm";

/// What is left open if nobody sees how a formatter ends.
pub(crate) const FAILED_FORMAT: &str =
    "only what is on the disk shows whether a first format failed or was completed";

/// A way to refuse, best first.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize, clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Tier {
    /// The hooks of BPF LSM.
    Lsm,
    /// The `security_*` functions that call the hooks (`fmod_ret`).
    FmodRet,
    /// A program at the root of the control groups that judges opens of devices.
    Cgroup,
    /// The `LD_PRELOAD` library, in programs that load it.
    Preload,
}

impl Tier {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lsm => "lsm",
            Self::FmodRet => "fmod_ret",
            Self::Cgroup => "cgroup",
            Self::Preload => "preload",
        }
    }

    /// Whether the kernel reports a mount when it happens; otherwise the agent looks for mounts.
    #[must_use]
    pub const fn tells_of_mounts(self) -> bool {
        matches!(self, Self::Lsm | Self::FmodRet)
    }

    /// What this tier leaves open and the best tier does not, in sentences.
    #[must_use]
    pub const fn open(self) -> &'static [&'static str] {
        match self {
            Self::Lsm => &[],
            // bpf_prog_check_recur, kernel/bpf/syscall.c and include/linux/bpf_verifier.h (6.12).
            Self::FmodRet => &[
                "on a preemptible kernel a request passes without a verdict while another task, whose request of the same kind \
                 is being judged, stands preempted on the same CPU (a write over a superblock passed after 3.3 s beside two \
                 busy writers)",
                "the programs cannot read arguments of a discard, a passthrough command, cryptsetup or sgdisk that are not in \
                 memory: they judge such a discard as one of the whole device, and such a command as one that writes",
            ],
            Self::Cgroup => &[
                "the guard refuses only programs that it knows as formatters by their name, when they open a volume for writing: \
                 a copy under another name, dd, and every other write, discard and mapping go on",
                "a device that was opened before its volume was recorded stays open to its program",
                "cryptsetup luksFormat and erase, and sgdisk -Z, go on: programs of these names do everyday work, too",
                "strict volumes are guarded like others, and commands past the block layer are not judged",
                "headers that the kernel writes by itself (device mapper's snapshots, dm-integrity and caches, a device added to a \
                 btrfs) go over what is recorded",
                "only its uevent drops the rule of a device that is gone, and the agent sees a mount a moment later",
                FAILED_FORMAT,
                "nothing protects the guard itself: root may take its program away, and end the agent",
            ],
            Self::Preload => &[
                "the kernel refuses nothing: only programs that were started under the library are guarded (format-guard run, \
                 /etc/ld.so.preload)",
                "programs that make system calls by themselves pass the library, although they were started under it: static \
                 ones, those written in Go, and whoever uses io_uring",
                "the library does not see what stdio writes to a descriptor that another program opened",
                "the library judges neither commands past the block layer (SG_IO, NVMe passthrough) nor headers that the kernel \
                 writes by itself (device mapper's snapshots, dm-integrity and caches, a device added to a btrfs)",
                "a new device over a guarded volume takes writes by unknown programs until its rule is there",
                FAILED_FORMAT,
                "nothing protects the guard itself: root may replace the rules and end the agent",
                "while no agent runs, those programs refuse known formatters, and nobody else",
            ],
        }
    }
}

/// Which way the configuration asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// The best that this kernel proves.
    #[default]
    Auto,
    /// Only the hooks of BPF LSM.
    Lsm,
    /// The functions that call them, whatever the kernel offers.
    FmodRet,
    /// A program at the root of the control groups, whatever the kernel offers.
    Cgroup,
    /// The `LD_PRELOAD` library, whatever the kernel offers.
    Preload,
}

impl Choice {
    /// The tiers to try, in this order, if these security modules are active.
    #[must_use]
    pub fn tiers(self, modules: Option<&str>) -> Vec<Tier> {
        match self {
            Self::Lsm => vec![Tier::Lsm],
            Self::FmodRet => vec![Tier::FmodRet],
            Self::Cgroup => vec![Tier::Cgroup],
            Self::Preload => vec![Tier::Preload],
            Self::Auto if modules.is_some_and(|modules| !lists_bpf(modules)) => {
                vec![Tier::FmodRet, Tier::Cgroup, Tier::Preload]
            }
            Self::Auto => vec![Tier::Lsm, Tier::FmodRet, Tier::Cgroup, Tier::Preload],
        }
    }
}

/// The list of active security modules; `None` where it cannot be read.
#[must_use]
pub fn modules() -> Option<String> {
    fs::read_to_string(MODULES).ok().map(|text| text.trim().to_owned())
}

/// Whether bpf is one of them.
#[must_use]
pub fn lists_bpf(modules: &str) -> bool {
    modules.split(',').any(|name| name == "bpf")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_tried_first_and_what_cannot_be_is_not() {
        let all = vec![Tier::Lsm, Tier::FmodRet, Tier::Cgroup, Tier::Preload];
        assert!(all.is_sorted());
        assert_eq!(Choice::Auto.tiers(Some("lockdown,bpf")), all);
        assert_eq!(Choice::Auto.tiers(Some("lockdown,bpfx")), all[1..]);
        assert_eq!(Choice::Auto.tiers(None), all);
        assert_eq!(Choice::Lsm.tiers(Some("lockdown")), [Tier::Lsm]);
    }
}
