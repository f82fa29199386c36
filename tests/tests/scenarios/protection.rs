//! While the agent lives nobody can take the guard away, and the operator's way out works.

use std::{
    ffi::CString,
    fs::{self, OpenOptions},
    io::{Error, ErrorKind},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    ptr,
};

use anyhow::{Context, Result, ensure};
use format_guard_tests::{
    attack,
    device::{Device, Loop},
    guard::{Guard, PINS, binary},
    tool::{command, must, run},
    wait_for,
};

use crate::make_ext4;

/// Commands of bpf(2) for one kind of object (include/uapi/linux/bpf.h): the next id, and a descriptor by an
/// id.
const KINDS: [(&str, i32, i32); 3] = [("map", 12, 14), ("prog", 11, 13), ("link", 31, 30)];
const OBJ_GET: i32 = 7;

/// bpf(2) with attributes of 64 bytes: a descriptor, or what it failed with.
fn bpf(command: i32, attributes: &mut [u32; 16]) -> Result<i32, ErrorKind> {
    // SAFETY: as many bytes as are named; the kernel writes inside them.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size_of::<[u32; 16]>()) };
    if result < 0 { Err(Error::last_os_error().kind()) } else { Ok(result as i32) }
}

/// How many objects of a kind the kernel gave out, and how many it refused, of all that it has.
fn by_id(next: i32, get: i32) -> Result<(u32, u32)> {
    let (mut given, mut refused, mut id) = (0, 0, 0);
    loop {
        let mut attributes = [0; 16];
        attributes[0] = id;
        if bpf(next, &mut attributes).is_err() {
            return Ok((given, refused));
        }
        id = attributes[1];
        let mut attributes = [0; 16];
        attributes[0] = id;
        match bpf(get, &mut attributes) {
            Ok(descriptor) => {
                // SAFETY: it is ours.
                unsafe { libc::close(descriptor) };
                given += 1;
            }
            Err(ErrorKind::PermissionDenied) => refused += 1,
            Err(ErrorKind::NotFound) => {}
            Err(other) => anyhow::bail!("id {id}: {other}"),
        }
    }
}

fn open_pin(path: &Path) -> Result<i32, ErrorKind> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| ErrorKind::InvalidInput)?;
    let address = path.as_ptr() as u64;
    let mut attributes = [0; 16];
    (attributes[0], attributes[1]) = (address as u32, (address >> 32) as u32);
    bpf(OBJ_GET, &mut attributes)
}

fn denied<T>(result: std::io::Result<T>) -> bool {
    result.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
}

/// The one layout of the pins, and its one directory of links.
fn pins() -> Result<(PathBuf, PathBuf)> {
    let layout = fs::read_dir(PINS)?.next().context("no pins")??.path();
    let links = fs::read_dir(&layout)?.filter_map(Result::ok).map(|entry| entry.path());
    let links = links.filter(|path| path.join("file_open").exists()).last().context("no links")?;
    Ok((layout, links))
}

#[test]
fn nobody_takes_the_guard_away_while_its_agent_lives() -> Result<()> {
    let mut guard = Guard::start()?;
    let device = Loop::new(32)?;
    make_ext4(&guard, device.path())?;
    guard.kill_agent()?;
    guard.replace("protect", "true")?;
    guard.start_agent()?;
    ensure!(guard.json("status")?["protected"] == true, "it is not protected:\n{}", guard.log());
    let (layout, links) = pins()?;
    let pin = links.join("file_open");
    ensure!(denied(fs::remove_file(&pin)), "a link was unlinked");
    ensure!(denied(fs::remove_file(layout.join("maps/RULES"))), "a map was unlinked");
    ensure!(denied(fs::rename(&pin, links.join("other"))), "a pin was renamed");
    ensure!(denied(fs::rename(&layout, Path::new(PINS).with_extension("old"))), "the pins were renamed");
    ensure!(denied(fs::rename(PINS, Path::new(PINS).with_file_name("other"))), "the root was renamed");
    ensure!(run(&format!("rm -rf {PINS}"))?.status != 0 && pin.exists(), "the pins were removed");
    for line in ["umount /sys/fs/bpf", "umount --lazy /sys/fs/bpf"] {
        ensure!(run(line)?.status != 0 && pin.exists(), "{line} went through");
    }
    ensure!(open_pin(&layout.join("maps/RULES")) == Err(ErrorKind::PermissionDenied), "a map was opened");
    for (kind, next, get) in KINDS {
        let (_, refused) = by_id(next, get)?;
        ensure!(refused >= 15, "{refused} of its objects of kind {kind} were refused");
    }
    let agent = guard.agent_id()?;
    let memory = OpenOptions::new().write(true).open(format!("/proc/{agent}/mem"));
    ensure!(denied(memory), "its memory was opened");
    // SAFETY: attaches to another process, or does not.
    let traced =
        unsafe { libc::ptrace(libc::PTRACE_SEIZE, agent, ptr::null_mut::<u8>(), ptr::null_mut::<u8>()) };
    ensure!(traced == -1, "it is traced");
    fs::read_to_string(format!("/proc/{agent}/maps")).context("it cannot be looked at")?;
    // Objects of other owners are as accessible as before.
    must("mkdir /sys/fs/bpf/other")?;
    must("rmdir /sys/fs/bpf/other")?;
    fs::create_dir_all("/run/fg-other")?;
    for line in ["mount -t tmpfs none /run/fg-other", "umount /run/fg-other"] {
        must(line)?;
    }
    let told = guard.events("tampering")?;
    for tried in
        ["to unlink or rename", "to unmount", "open a map", "open a kernel program", "open a link", "trace"]
    {
        let is_told =
            told.iter().any(|event| event["text"].as_str().is_some_and(|text| text.contains(tried)));
        ensure!(is_told, "nothing tells of who tried {tried}: {told:#?}");
    }
    attack::all_refused(&guard, device.path())?;
    // The way out, and the way back.
    let off = guard.say("protect off --reason test")?;
    ensure!(off.status == 0 && guard.json("status")?["protected"] == false, "{off:?}");
    let descriptor = open_pin(&layout.join("maps/RULES")).map_err(Error::from)?;
    // SAFETY: it is ours.
    unsafe { libc::close(descriptor) };
    ensure!(guard.say("protect on --reason test")?.status == 0, "it cannot be switched on");
    ensure!(denied(fs::remove_file(&pin)), "a link was unlinked");
    ensure!(guard.events("protect")?.len() == 2, "nothing tells who switched it");
    // Without its agent the guard is the operator's to remove.
    guard.kill_agent()?;
    fs::remove_file(&pin)?;
    guard.start_agent()?;
    attack::some_refused(&guard, device.path()).map(drop)
}

/// The process of an agent that process 1 has adopted.
fn adopted(guard: &Guard) -> Result<Option<u32>> {
    for process in fs::read_dir("/proc")?.filter_map(Result::ok) {
        let Ok(id) = process.file_name().to_string_lossy().parse::<u32>() else { continue };
        let read = |name: &str| fs::read_to_string(process.path().join(name)).unwrap_or_default();
        let config = guard.config().display().to_string();
        let parent = read("status").lines().find_map(|line| line.strip_prefix("PPid:\t").map(str::to_owned));
        if read("cmdline").contains(&config) && parent.as_deref() == Some("1") {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

#[test]
fn a_service_is_ended_by_process_1_and_by_nobody_else() -> Result<()> {
    let mut guard = Guard::start()?;
    guard.kill_agent()?;
    guard.replace("protect", "true")?;
    let line = format!("setsid --fork {} agent --config {}", binary()?.display(), guard.config().display());
    ensure!(command(&line).status()?.success(), "{line} failed");
    wait_for("the service to be in force", || Ok((guard.ask("status")?.status == 0).then_some(())))?;
    let agent = wait_for("the service", || adopted(&guard))?;
    for signal in ["TERM", "KILL", "STOP", "INT", "SEGV"] {
        let ran = run(&format!("kill -{signal} {agent}"))?;
        ensure!(ran.status != 0 && guard.ask("status")?.status == 0, "{ran:?}");
    }
    must(&format!("kill -HUP {agent}"))?;
    wait_for("the configuration to be read", || Ok((guard.events("reloaded")?.len() == 1).then_some(())))?;
    let told = guard.events("tampering")?;
    ensure!(told.len() == 5, "{told:#?}");
    ensure!(guard.say("protect off --reason test")?.status == 0);
    must(&format!("kill -TERM {agent}"))?;
    wait_for("the service to end", || Ok((guard.ask("status")?.status != 0).then_some(())))?;
    guard.start_agent()
}
