//! Which program of the object stands at which hook of the kernel, and what is left open where a kernel lacks
//! the hook.

use std::collections::BTreeSet;

use crate::tier::{FAILED_FORMAT, Tier};

/// How a program is attached, and to what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    Lsm(&'static str),
    /// A hook that returns nothing: nobody can stand at the function that calls it (`fmod_ret`).
    Notice(&'static str),
    Enter(&'static str),
    Tracepoint(&'static str),
    /// A control group: asked for every access to a device.
    Cgroup,
}

impl Hook {
    /// The kernel function whose presence says that the kernel has the place; `None` where the tier has none.
    pub(super) fn function(self, tier: Tier) -> Option<String> {
        Some(match self {
            Self::Lsm(hook) if tier == Tier::FmodRet => format!("security_{hook}"),
            Self::Notice(_) if tier == Tier::FmodRet => return None,
            Self::Cgroup => "cgroup".to_owned(),
            Self::Lsm(hook) | Self::Notice(hook) => format!("bpf_lsm_{hook}"),
            Self::Enter(name) => name.to_owned(),
            Self::Tracepoint(name) => format!("__traceiter_{name}"),
        })
    }
}

/// One program of the object.
pub(super) struct HookProgram {
    pub(super) program: &'static str,
    pub(super) hook: Hook,
    /// The operations that stay unguarded on a kernel without this hook; `None`: there is no guard without
    /// it.
    pub(super) without: Option<&'static str>,
}

/// All of the tier `cgroup`.
pub(super) const CGROUP_PROGRAMS: &[HookProgram] =
    &[HookProgram { program: "device_access", hook: Hook::Cgroup, without: None }];

/// Of the other tiers, in the order of attaching: what learns comes before what refuses.
pub(super) const LSM_PROGRAMS: &[HookProgram] = &[
    HookProgram {
        program: "sched_process_exit",
        hook: Hook::Tracepoint("sched_process_exit"),
        without: Some(FAILED_FORMAT),
    },
    HookProgram {
        program: "sb_kern_mount",
        hook: Hook::Lsm("sb_kern_mount"),
        without: Some("a mount does not prove a format"),
    },
    HookProgram {
        program: "bdev_free_security",
        hook: Hook::Notice("bdev_free_security"),
        without: Some("only its uevent drops the rule of a device that is gone"),
    },
    HookProgram {
        program: "bd_link_disk_holder",
        hook: Hook::Enter("bd_link_disk_holder"),
        without: Some("a device mapper or md device over a volume takes writes until its rule is there"),
    },
    HookProgram { program: "file_open", hook: Hook::Lsm("file_open"), without: None },
    HookProgram { program: "file_permission", hook: Hook::Lsm("file_permission"), without: None },
    HookProgram { program: "file_ioctl", hook: Hook::Lsm("file_ioctl"), without: None },
    HookProgram {
        program: "file_ioctl_compat",
        hook: Hook::Lsm("file_ioctl_compat"),
        without: Some("nothing: this kernel asks file_ioctl for 32-bit callers, too"),
    },
    HookProgram {
        program: "uring_cmd",
        hook: Hook::Lsm("uring_cmd"),
        without: Some("nothing before kernel 6.12, which brought discards by io_uring"),
    },
    HookProgram { program: "mmap_file", hook: Hook::Lsm("mmap_file"), without: None },
    HookProgram { program: "file_mprotect", hook: Hook::Lsm("file_mprotect"), without: None },
    HookProgram {
        program: "kernel_open",
        hook: Hook::Cgroup,
        without: Some(
            "headers that the kernel writes by itself (device mapper's snapshots, dm-integrity and caches, a device added to a \
             btrfs) go over what is recorded: the root of the control groups of version 2 is not mounted here",
        ),
    },
    HookProgram {
        program: "bpf",
        hook: Hook::Lsm("bpf"),
        without: Some("nothing protects the guard itself"),
    },
    HookProgram {
        program: "bpf_map",
        hook: Hook::Lsm("bpf_map"),
        without: Some("root may write to the guard's maps"),
    },
    HookProgram {
        program: "bpf_prog",
        hook: Hook::Lsm("bpf_prog"),
        without: Some("root may open the guard's programs"),
    },
    HookProgram {
        program: "inode_unlink",
        hook: Hook::Lsm("inode_unlink"),
        without: Some("root may unlink the guard's pins"),
    },
    HookProgram {
        program: "inode_rmdir",
        hook: Hook::Lsm("inode_rmdir"),
        without: Some("root may remove empty directories of pins"),
    },
    HookProgram {
        program: "inode_rename",
        hook: Hook::Lsm("inode_rename"),
        without: Some("root may rename the guard's pins"),
    },
    HookProgram {
        program: "sb_umount",
        hook: Hook::Lsm("sb_umount"),
        without: Some("root may unmount the file system of the guard's pins"),
    },
    HookProgram {
        program: "task_kill",
        hook: Hook::Lsm("task_kill"),
        without: Some("root may end the agent by a signal"),
    },
    HookProgram {
        program: "ptrace_access_check",
        hook: Hook::Lsm("ptrace_access_check"),
        without: Some("root may trace the agent"),
    },
];

/// The programs of a tier.
pub(super) const fn of(tier: Tier) -> &'static [HookProgram] {
    match tier {
        Tier::Cgroup => CGROUP_PROGRAMS,
        _ => LSM_PROGRAMS,
    }
}

/// The functions at which a program may stand, in whichever tier.
pub(super) fn functions() -> BTreeSet<String> {
    let hooks = LSM_PROGRAMS.iter().map(|program| program.hook);
    hooks.flat_map(|hook| [Tier::Lsm, Tier::FmodRet].map(|tier| hook.function(tier))).flatten().collect()
}
