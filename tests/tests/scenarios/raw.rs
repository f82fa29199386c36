//! Content of no known format: a database, a virtual machine's disk, an object store.

use std::{
    fs::OpenOptions,
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::Path,
};

use anyhow::{Context, Result, ensure};
use format_guard_tests::{
    attack::refused,
    device::{Device, Image, Loop, Mapped, sha256},
    guard::Guard,
    road::{AioWrite, in_child, write_by_aio, write_by_ring},
    tool::{must, run},
    wait_for,
};

/// A page of a database: bytes of no known format.
#[repr(align(4096))]
struct Page([u8; 4096]);

fn page() -> Page {
    let mut page = Page([0; 4096]);
    fastrand::Rng::with_seed(10).fill(&mut page.0);
    page
}

/// The roads by which a database fills its volume.
const ROADS: [&str; 7] = ["dd", "pwrite", "aio", "io_uring", "io_uring-worker", "mapping", "sendfile"];

/// Writes a few pages at the start of a device, as a process of its own.
fn fill(road: &'static str, device: &Path) -> Result<()> {
    let text = device.display().to_string();
    match road {
        "dd" => {
            return must(&format!("dd if=/dev/urandom of={text} bs=64k count=4 conv=fsync,notrunc"))
                .map(drop);
        }
        "sendfile" => {
            let image = Image::new(1)?;
            std::fs::write(image.path(), page().0.repeat(64))?;
            let script = format!(
                "import os\ni = os.open('{}', os.O_RDONLY)\no = os.open('{text}', os.O_RDWR)\nwhile os.sendfile(o, i, None, 1 << \
                 20): pass\nos.fsync(o)\n",
                image.path().display()
            );
            let status = std::process::Command::new("python3").args(["-c", &script]).status()?;
            ensure!(status.success(), "{status}");
            return Ok(());
        }
        _ => {}
    }
    let path = device.to_owned();
    let child = in_child(move || {
        let direct = if road == "mapping" { 0 } else { libc::O_DIRECT };
        let file = OpenOptions::new().read(true).write(true).custom_flags(direct).open(&path)?;
        let page = page();
        match road {
            "pwrite" => file.write_all_at(&page.0, 8192)?,
            "aio" => write_by_aio(&file, &[AioWrite { bytes: &page.0, piece: 1024, offset: 8192 }])?,
            "mapping" => map(&file, &page.0)?,
            worker => write_by_ring(&file, &page.0, 8192, worker == "io_uring-worker")?,
        }
        file.sync_all()
    })?;
    Ok(child.wait()??)
}

/// Stores bytes into a mapping of a device.
fn map(file: &std::fs::File, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: a new mapping of as many bytes as are stored into it, and gone before this returns.
    unsafe {
        let (rights, fd) = (libc::PROT_READ | libc::PROT_WRITE, file.as_raw_fd());
        let start = libc::mmap(std::ptr::null_mut(), bytes.len(), rights, libc::MAP_SHARED, fd, 0);
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), start.cast(), bytes.len());
        libc::munmap(start, bytes.len());
    }
    Ok(())
}

fn is_raw(volume: &serde_json::Value) -> bool {
    volume["state"] == "formatted" && volume["content"]["types"][0] == "raw"
}

const FORMATTERS: [&str; 3] = ["mkfs.ext4 -F", "mkfs.xfs -f --unsupported", "wipefs -a -f"];

fn never_formatted(guard: &Guard, path: &Path) -> Result<()> {
    for line in FORMATTERS {
        refused(guard, &format!("{line} {}", path.display()), "")?;
    }
    Ok(())
}

/// libblkid knows nothing of the content.
#[test]
fn what_filled_a_blank_volume_is_content_by_whatever_road_it_came() -> Result<()> {
    let guard = Guard::shared()?;
    for road in ROADS {
        let mut device = Mapped::new(64)?;
        let path = device.path().to_owned();
        guard.wait_for_state(&path, "blank")?;
        fill(road, &path).with_context(|| road.to_owned())?;
        let at_once = guard.wait_for_volume(&path, "filled", is_raw);
        at_once.with_context(|| format!("{road}: {}", guard.log()))?;
        let before = device.sha256()?;
        never_formatted(&guard, &path).with_context(|| road.to_owned())?;
        // The volume is detached and attached again, and then reads as zeros.
        device.remake()?;
        guard.wait_for_volume(&path, "attached", |volume| volume["devices"][0].is_string())?;
        never_formatted(&guard, &path).with_context(|| road.to_owned())?;
        let ends = |volume: &serde_json::Value| volume["ends"].as_str().is_some_and(|ends| ends.len() == 64);
        guard.wait_for_volume(&path, "read", ends)?;
        device.read_zeros()?;
        guard.json(&format!("volume show {}", path.display()))?;
        never_formatted(&guard, &path).with_context(|| road.to_owned())?;
        device.remake()?;
        device.read_zeros()?;
        let told = guard.wait_for_volume(&path, "told", |volume| !volume["discrepancy"].is_null());
        ensure!(told?["state"] == "formatted", "{road}");
        never_formatted(&guard, &path).with_context(|| road.to_owned())?;
        device.recover()?;
        ensure!(device.sha256()? == before, "{road}: bytes changed");
        // The database goes on, by the same road.
        fill(road, &path).with_context(|| format!("{road}, again"))?;
    }
    Ok(())
}

/// What provisioners and administrators write to a blank volume before they format it.
#[test]
fn zeros_are_no_content_and_neither_is_what_an_eraser_leaves() -> Result<()> {
    let guard = Guard::shared()?;
    let lines = ["dd if=/dev/zero bs=1M count=16 conv=fsync,notrunc of=", "shred -n1 -s1M ", "blkdiscard "];
    for line in lines {
        let device = Loop::new(16)?;
        let path = device.path();
        guard.wait_for_state(path, "blank")?;
        must(&format!("{line}{}", path.display()))?;
        // At once.
        must(&format!("mkfs.ext4 -F -q {}", path.display())).with_context(|| line.to_owned())?;
        let volume = guard.wait_for_state(path, "formatted")?;
        ensure!(volume["content"]["types"][0] == "ext4", "{line}: {volume}");
    }
    Ok(())
}

/// An eraser's writes mean nothing by themselves. What they leave is probed soon, and not at the slow pace of
/// armed volumes.
#[test]
fn an_armed_volume_is_read_again_when_somebody_has_closed_it() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(16)?;
    let path = device.path();
    let volume = guard.wait_for_state(path, "blank")?;
    ensure!(volume["ends"] == "zeros", "{volume}");
    must(&format!("shred -n1 -s1M {}", path.display()))?;
    let volume = guard.wait_for_volume(path, "read again", |volume| {
        volume["ends"].as_str().is_some_and(|ends| ends.len() == 64)
    })?;
    ensure!(volume["state"] == "blank", "{volume}");
    must(&format!("mkfs.ext4 -F -q {}", path.display()))?;
    guard.wait_for_state(path, "formatted").map(drop)
}

/// The program that fills a volume may be killed together with the agent; the next agent knows what the
/// kernel saw.
#[test]
fn what_was_filled_while_no_agent_ran_is_content() -> Result<()> {
    let mut guard = Guard::start()?;
    let device = Mapped::new(64)?;
    let path = device.path();
    guard.wait_for_state(path, "blank")?;
    guard.kill_agent()?;
    fill("dd", path)?;
    let ran = run(&format!("mkfs.ext4 -F {}", path.display()))?;
    ensure!(ran.status != 0, "{ran:?}");
    let before = device.sha256()?;
    guard.start_agent()?;
    guard.wait_for_volume(path, "taken up", is_raw)?;
    never_formatted(&guard, path)?;
    ensure!(device.sha256()? == before, "bytes changed");
    Ok(())
}

/// A volume with bytes of no known format from before the guard.
fn old() -> Result<(Image, Loop)> {
    let image = Image::new(16)?;
    OpenOptions::new().write(true).open(image.path())?.write_all_at(&page().0, 0)?;
    let device = Loop::over(image.path())?;
    Ok((image, device))
}

#[test]
fn what_was_there_before_the_guard_is_adopted() -> Result<()> {
    let guard = Guard::shared()?;
    let (_image, device) = old()?;
    let node = device.path().display().to_string();
    guard.wait_for_state(device.path(), "blank")?;
    let done = guard.json(&format!("mode strict --volume {node} --reason test"))?;
    ensure!(done["text"].as_str().is_some_and(|text| text.contains("adopt")), "{done}");
    let ran = guard.say(&format!("volume adopt {node} --reason test"))?;
    ensure!(ran.status == 3 && ran.text.contains("--raw"), "{ran:?}");
    let volume = guard.json(&format!("volume adopt --raw {node} --reason test"))?;
    ensure!(is_raw(&volume) && volume["strict"] == true, "{volume}");
    let before = sha256(device.path())?;
    never_formatted(&guard, device.path())?;
    refused(&guard, &format!("dd if=/dev/zero of={node} bs=4k count=1 conv=notrunc"), "")?;
    ensure!(sha256(device.path())? == before, "bytes changed");
    guard.json(&format!("mode enforce --volume {node} --reason test"))?;
    guard.json(&format!("volume permit {node} --reason test"))?;
    must(&format!("mkfs.ext4 -F -q {node}"))?;
    guard.wait_for_volume(device.path(), "formatted", |volume| volume["content"]["types"][0] == "ext4")?;
    let ran = guard.say(&format!("volume adopt --raw {node} --reason test"))?;
    ensure!(ran.status == 3 && ran.text.contains("holds ext4"), "{ran:?}");
    Ok(())
}

#[test]
fn a_policy_says_which_bytes_are_content() -> Result<()> {
    let mut guard = Guard::unstarted(None)?;
    guard.add_to_configuration("raw_content = \"found\"")?;
    guard.start_agent()?;
    let (_image, device) = old()?;
    let node = device.path().display().to_string();
    guard.wait_for_volume(device.path(), "found", is_raw)?;
    refused(&guard, &format!("mkfs.ext4 -F {node}"), "")?;
    let zeros = Loop::new(16)?;
    crate::make_ext4(&guard, zeros.path())?;

    guard.remove()?;
    drop(guard);
    let mut guard = Guard::unstarted(None)?;
    guard.add_to_configuration("raw_content = \"ignored\"")?;
    guard.start_agent()?;
    let device = Loop::new(16)?;
    guard.wait_for_state(device.path(), "blank")?;
    fill("dd", device.path())?;
    must(&format!("mkfs.ext4 -F -q {}", device.path().display()))?;
    guard.wait_for_state(device.path(), "formatted").map(drop)
}

/// A test pattern is content until an operator decides otherwise; only trusted programs may write to a strict
/// volume.
#[test]
fn a_test_pattern_is_content_until_an_operator_permits_what_comes_after_it() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(1)?;
    let path = device.path();
    guard.wait_for_state(path, "blank")?;
    must(&format!("badblocks -w -t 0xaa -s {}", path.display()))?;
    guard.wait_for_volume(path, "filled", is_raw)?;
    let line = format!("mkfs.ext4 -F -q {}", path.display());
    let ran = refused(&guard, &line, "")?;
    ensure!(ran.status != 0, "{ran:?}");
    let told = wait_for("the refusal", || Ok(guard.events("denied")?.pop()))?;
    ensure!(told["text"].as_str().is_some_and(|text| text.contains("volume permit")), "{told}");
    guard.json(&format!("volume permit {} --reason tested", path.display()))?;
    must(&line)?;
    guard.wait_for_volume(path, "formatted", |volume| volume["content"]["types"][0] == "ext4").map(drop)
}
