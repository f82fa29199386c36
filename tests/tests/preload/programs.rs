//! Programs behave under the library as they do without it.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command},
};

use anyhow::{Context, Result, ensure};
use format_guard_tests::{
    device::Device,
    guard::{Guard, binary},
    tool::{Ran, must, run},
    wait_for,
};
use serde_json::Value;

use crate::{formatted, library};

/// A C program of this source, built and run with this argument.
fn build(directory: &Path, source: &Path, options: &str) -> Result<PathBuf> {
    let program = directory.join("program");
    must(&format!("cc -w {options} -o {} {} -lpthread -ldl -lm", program.display(), source.display()))?;
    Ok(program)
}

#[test]
fn what_programs_do_to_the_c_library_goes_on() -> Result<()> {
    let guard = Guard::shared()?;
    let device = formatted(&guard, 64)?;
    let directory = tempfile::tempdir()?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/preload/abuse.c");
    // Fortified, since a fortified program calls other functions. (The compiler must not turn its own calloc
    // into a call of itself.)
    for options in ["-O0", "-O2 -D_FORTIFY_SOURCE=2 -fno-builtin-malloc -fno-builtin-calloc"] {
        let program = build(directory.path(), &source, options)?;
        must(&format!("{} {}", program.display(), device.path().display()))?;
    }
    guard.wait_for_state(device.path(), "formatted")?;
    must(&format!("blkid -p {}", device.path().display()))?;
    Ok(())
}

/// The source of `SQLite`, a quarter of a million lines, lies where cargo keeps this project's dependencies.
#[test]
fn a_program_of_some_size_is_built_and_works() -> Result<()> {
    library()?;
    let metadata =
        must("cargo metadata --format-version 1 --offline --filter-platform x86_64-unknown-linux-gnu")?;
    let metadata: Value =
        serde_json::from_str(metadata.lines().find(|line| line.starts_with('{')).context("no JSON")?)?;
    let packages = metadata["packages"].as_array().context("no packages")?;
    let package =
        packages.iter().find(|package| package["name"] == "libsqlite3-sys").context("no package")?;
    let manifest = Path::new(package["manifest_path"].as_str().context("no path")?);
    let sources = manifest.with_file_name("sqlite3");
    let directory = tempfile::tempdir()?;
    let main = directory.path().join("main.c");
    fs::write(
        &main,
        "#include <stdio.h>\n#include \"sqlite3.h\"\n\
         static int row(void *p, int n, char **v, char **c) { (void)p; (void)n; (void)c; puts(v[0]); return 0; }\n\
         int main(int n, char **a) {\n\
           sqlite3 *db; (void)n;\n\
           return sqlite3_open(a[1], &db) || sqlite3_exec(db, \"PRAGMA journal_mode=WAL; PRAGMA mmap_size=1048576;\"\n\
             \"CREATE TABLE t(x); WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i<10000)\"\n\
             \"INSERT INTO t SELECT i FROM c; SELECT sum(x) FROM t; PRAGMA integrity_check\", row, 0, 0);\n\
         }\n",
    )?;
    let source = format!("{} {}", main.display(), sources.join("sqlite3.c").display());
    let program = directory.path().join("program");
    must(&format!("cc -O0 -I{} -o {} {source} -lpthread -ldl -lm", sources.display(), program.display()))?;
    let said = must(&format!("{} {}", program.display(), directory.path().join("db").display()))?;
    ensure!(said.contains("50005000") && said.trim_end().ends_with("ok"), "{said}");
    Ok(())
}

#[test]
fn languages_and_daemons_run_under_it() -> Result<()> {
    library()?;
    let directory = tempfile::tempdir()?;
    let script = directory.path().join("script");
    for (program, text, said) in [
        ("bash", "f() { echo $(echo $((6*7))); }; f | cat; exec 3>/dev/null; echo x >&3; exec 3>&-", "42"),
        (
            "python3",
            "import subprocess, threading, tempfile, mmap\n\
             t = threading.Thread(target=lambda: subprocess.run(['true'], check=True)); t.start(); t.join()\n\
             f = tempfile.TemporaryFile(); f.write(b'x' * 4096); f.flush(); mmap.mmap(f.fileno(), 4096)[0] = 1\n\
             print(42)",
            "42",
        ),
        (
            "perl",
            "open(F, '+>', undef) or die; print F 'x' x 4096; if (!fork) { exit 0 } wait; print 6*7, \"\\n\"",
            "42",
        ),
    ] {
        fs::write(&script, text)?;
        let ran = must(&format!("{program} {}", script.display()))?;
        ensure!(ran.trim() == said, "{program}: {ran}");
    }
    if run("which java")?.status == 0 {
        must("java -version")?;
    } else {
        println!("java: not tried, there is none on this host");
    }
    Ok(())
}

/// udevd's notes and links are in directories of its own, since this process has its own mounts.
const OF_UDEVD: [&str; 2] = ["/run/udev", "/dev/disk"];

/// A udevd under the library, which is ended and cleaned up with the value.
struct Udevd(Child);

impl Udevd {
    fn start() -> Result<Self> {
        for directory in OF_UDEVD {
            fs::create_dir_all(directory)?;
            must(&format!("mount -t tmpfs fg-udevd {directory}"))?;
        }
        let udevd = Self(Command::new("/lib/systemd/systemd-udevd").spawn()?);
        wait_for("udevd", || Ok((run("udevadm control --ping")?.status == 0).then_some(())))?;
        Ok(udevd)
    }
}

impl Drop for Udevd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        for directory in OF_UDEVD {
            let _ = run(&format!("umount --lazy {directory}"));
        }
    }
}

#[test]
fn udevd_names_volumes_under_it() -> Result<()> {
    let guard = Guard::shared()?;
    let mut udevd = Udevd::start()?;
    let maps = fs::read_to_string(format!("/proc/{}/maps", udevd.0.id()))?;
    ensure!(maps.contains("libformat_guard_preload.so"), "the library is not in udevd: {maps}");
    let device = formatted(&guard, 64)?;
    let uuid = must(&format!("blkid -p -s UUID -o value {}", device.path().display()))?;
    // udevd looks at a device again after a program closes it that had it open for writing.
    let link = Path::new("/dev/disk/by-uuid").join(uuid.trim());
    wait_for("udevd's link to the volume", || Ok(fs::canonicalize(&link).is_ok().then_some(())))?;
    ensure!(fs::canonicalize(&link)? == device.path(), "{} is another's", link.display());
    must("udevadm settle --timeout=60")?;
    ensure!(udevd.0.try_wait()?.is_none(), "udevd has ended");
    ensure!(guard.events("denied")?.is_empty(), "udevd was refused something");
    Ok(())
}

#[test]
fn run_starts_a_command_under_the_library_and_refuses_what_cannot_load_it() -> Result<()> {
    let guard = Guard::shared()?;
    let device = formatted(&guard, 64)?;
    let before = device.sha256()?;
    let run_dir = std::env::var("FORMAT_GUARD_RUN_DIR")?;
    let start = |rest: &str| {
        // Without this process's library: the test is of the program's own.
        run(&format!("env -u LD_PRELOAD {} run --run-dir {run_dir} -- {rest}", binary()?.display()))
    };
    let ran = start("sh -c true")?;
    ensure!(ran.status == 0 && ran.text.is_empty(), "{ran:?}");
    ensure!(start("false")?.status == 1 && start("sh -c exit\\ 7")?.status != 1, "its exit status");
    let ran = start(&format!("mkfs.ext4 -F -q {}", device.path().display()))?;
    ensure!(ran.status != 0 && ran.text.contains("Operation not permitted"), "{ran:?}");
    ensure!(device.sha256()? == before, "bytes changed");
    // Debian and Ubuntu link it statically.
    let ran = start("/sbin/ldconfig --version")?;
    ensure!(ran.status == 1 && ran.text.contains("it is linked statically"), "{ran:?}");
    let ran = start("no-such-program")?;
    ensure!(ran.status == 1 && ran.text.contains("there is no program no-such-program"), "{ran:?}");
    Ok(())
}

/// A program that is linked to another C library loads the library, too.
#[test]
fn a_program_of_another_c_library_is_not_started() -> Result<()> {
    let library = library()?;
    let directory = tempfile::tempdir()?;
    let source = directory.path().join("program.c");
    fs::write(&source, "#include <stdio.h>\nint main(void) { puts(\"started\"); return 0; }\n")?;
    let program = directory.path().join("program");
    must(&format!("env -u LD_PRELOAD musl-gcc -o {} {}", program.display(), source.display()))?;
    let ran = run(&format!("env -u LD_PRELOAD {}", program.display()))?;
    ensure!(ran.status == 0 && ran.text == "started\n", "{ran:?}");
    let ran = run(&format!("env LD_PRELOAD={} {}", library.display(), program.display()))?;
    ensure!(ran.status == 127 && ran.text.starts_with("format-guard: the library is for glibc"), "{ran:?}");
    let ran = run(&format!("env -u LD_PRELOAD {} run -- {}", binary()?.display(), program.display()))?;
    ensure!(ran.status == 1 && ran.text.contains("it is linked to musl"), "{ran:?}");
    Ok(())
}

/// `/etc/ld.so.preload` names the library for every program; a program with more rights than its caller is
/// left alone.
#[test]
fn every_program_of_a_host_is_guarded_but_those_with_more_rights() -> Result<()> {
    let guard = Guard::shared()?;
    let device = formatted(&guard, 64)?;
    let before = device.sha256()?;
    let directory = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir()?;
    let own = directory.path().join("dd");
    fs::copy(must("which dd")?.trim(), &own)?;
    fs::set_permissions(&own, fs::Permissions::from_mode(0o4755))?;
    // Another /etc, in a mount namespace.
    let under = |line: &str| -> Result<Ran> {
        let script = directory.path().join("script");
        let etc = "mount -t tmpfs tmpfs /mnt && mkdir /mnt/upper /mnt/work && \
                   mount -t overlay overlay -o lowerdir=/etc,upperdir=/mnt/upper,workdir=/mnt/work /etc";
        let library = library()?;
        fs::write(
            &script,
            format!("{etc} && echo {} > /etc/ld.so.preload || exit 99\n{line}\n", library.display()),
        )?;
        run(&format!("env -u LD_PRELOAD unshare --mount sh {}", script.display()))
    };
    let write = format!("if=/dev/zero of={} bs=4096 count=1 conv=notrunc,fsync", device.path().display());
    let ran = under(&format!("dd {write}"))?;
    ensure!(ran.status == 1 && ran.text.contains("Operation not permitted"), "{ran:?}");
    ensure!(device.sha256()? == before, "bytes changed");
    let as_nobody = "setpriv --reuid=65534 --clear-groups";
    let ran = under(&format!("{as_nobody} dd {write}"))?;
    ensure!(ran.status == 1 && device.sha256()? == before, "the node is root's: {ran:?}");
    let said = under(&format!("{as_nobody} {} {write}", own.display()))?;
    ensure!(said.status == 0, "{said:?}");
    ensure!(device.sha256()? != before, "{said:?}");
    Ok(())
}
