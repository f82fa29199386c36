//! Runs the tests of tier `cgroup` on this host, in a control group of their own, to which the guard is
//! attached.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{self, Command},
};

use anyhow::{Context, Result};

use crate::command::{command, logged, workspace};

/// A control group. Every process in it is killed, and the group removed, when the value is dropped.
struct Group(PathBuf);

impl Group {
    /// Makes a group, if control groups of version 2 are mounted.
    fn new() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let root = mounts.lines().find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            fields.next().filter(|_| fields.next() == Some("cgroup2"))
        });
        let root = root.context("no control groups of version 2 are mounted on this host")?;
        let path = Path::new(root).join(format!("fg-tests-{}", process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Also agents that a test leaves. A group can be removed once its last process has ended.
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

/// Runs these tests, and returns whether all passed. Their output goes to the log.
pub(crate) fn run_tests(guard: &Path, tests: &Path, log: &File) -> Result<bool> {
    let group = Group::new()?;
    logged(inside(&group, guard, tests).arg("--test-threads=1"), log)
}

/// Runs an executable in a control group with its output shown, and returns whether it succeeded.
pub(crate) fn run(guard: &Path, executable: &Path, variables: &[(&str, &str)]) -> Result<bool> {
    let group = Group::new()?;
    let mut run = inside(&group, guard, executable);
    Ok(run.envs(variables.iter().copied()).status()?.success())
}

/// A command that runs an executable in a control group.
fn inside(group: &Group, guard: &Path, executable: &Path) -> Command {
    // Hides the kernel's type information: this tier must not need it.
    const ENTER: &str = "mount -t bpf bpf /sys/fs/bpf && mount -t tmpfs none /sys/kernel/btf &&
        echo $$ > \"$FORMAT_GUARD_CGROUP/cgroup.procs\" && exec \"$@\"";
    let mut run = command("unshare", ["--mount", "sh", "-c", ENTER, "sh"]);
    run.arg(executable)
        .env("FORMAT_GUARD_BINARY", guard)
        .env("FORMAT_GUARD_TIER", "cgroup")
        .env("FORMAT_GUARD_CGROUP", &group.0)
        .current_dir(workspace());
    run
}
