//! The ways in which a kernel can be made to refuse, best first, and what each leaves open.

use std::fs;

use serde::{Deserialize, Serialize};

/// Where the kernel says which security modules are active; on securityfs.
const MODULES: &str = "/sys/kernel/security/lsm";

/// A way to refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tier {
    /// The hooks of BPF LSM.
    Lsm,
    /// The `security_*` functions that call the hooks (`fmod_ret`).
    FmodRet,
}

impl Tier {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lsm => "lsm",
            Self::FmodRet => "fmod_ret",
        }
    }

    /// What it leaves open that the best one does not, in sentences.
    #[must_use]
    pub const fn open(self) -> &'static [&'static str] {
        match self {
            Self::Lsm => &[],
            // bpf_prog_check_recur, kernel/bpf/syscall.c and include/linux/bpf_verifier.h (6.12).
            Self::FmodRet => &[
                "where the kernel is preemptible, a request is not judged that interrupts another one of its kind on the \
                 same CPU while that is judged (some microseconds)",
                "the arguments of a discard or passthrough command, or of cryptsetup and sgdisk, that are not in memory \
                 cannot be read: such a discard is judged as one of the whole device, such a command as one that writes",
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
    /// None but the hooks of BPF LSM.
    Lsm,
    /// The functions that call them, whatever the kernel offers.
    FmodRet,
}

impl Choice {
    /// What is tried first where these security modules are active, and what after it, in this order.
    #[must_use]
    pub fn tiers(self, modules: Option<&str>) -> (Tier, &'static [Tier]) {
        match self {
            Self::Lsm => (Tier::Lsm, &[]),
            Self::FmodRet => (Tier::FmodRet, &[]),
            Self::Auto if modules.is_some_and(|modules| !lists_bpf(modules)) => (Tier::FmodRet, &[]),
            Self::Auto => (Tier::Lsm, &[Tier::FmodRet]),
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
        let both: (Tier, &[Tier]) = (Tier::Lsm, &[Tier::FmodRet]);
        assert_eq!(Choice::Auto.tiers(Some("lockdown,bpf")), both);
        assert_eq!(Choice::Auto.tiers(Some("lockdown,bpfx")), (Tier::FmodRet, &[][..]));
        assert_eq!(Choice::Auto.tiers(None), both);
        assert_eq!(Choice::Lsm.tiers(Some("lockdown")), (Tier::Lsm, &[][..]));
    }
}
