//! The incidents that the guard exists to stop, by their ids in docs: an existing volume is taken for blank.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use format_guard_tests::{
    attack::{self, LUKS_FORMAT, refused},
    device::{Device, Iscsi, Mapped, write_at},
    guard::Guard,
    tool::{must, run},
};

use crate::make_ext4;

/// The question that kubernetes' mount-utils ask before they format (`getDiskFormat`): exit status 2 means
/// "unformatted" to them.
fn looks_blank_to_kubernetes(path: &Path) -> Result<bool> {
    let ran = run(&format!("blkid -p -s TYPE -s PTTYPE -o export {}", path.display()))?;
    Ok(ran.status == 2)
}

/// The format that mount-utils and Longhorn's CSI plugin make then.
fn formatters(path: &Path) -> Vec<(String, &'static str)> {
    let node = path.display();
    vec![
        (format!("{LUKS_FORMAT} {node} -"), "secret"),
        (format!("mkfs.ext4 -F -m0 {node}"), ""),
        (format!("mkfs.xfs -f {node}"), ""),
    ]
}

fn volume_with_data(guard: &Guard) -> Result<(Mapped, String)> {
    let device = Mapped::new(64)?;
    make_ext4(guard, device.path())?;
    write_at(device.path(), 20 << 20, b"precious")?;
    let sha256 = device.sha256()?;
    Ok((device, sha256))
}

fn whole(guard: &Guard, device: &impl Device, before: &str) -> Result<()> {
    ensure!(device.sha256()? == before, "bytes changed");
    must(&format!("e2fsck -fn {}", device.path().display()))?;
    guard.wait_for_volume(device.path(), "as recorded", |volume| volume["discrepancy"].is_null())?;
    Ok(())
}

/// S2: the volume is present and readable, but reads as zeros while the engine is degraded.
#[test]
fn s2_a_volume_that_reads_as_zeros_is_not_formatted() -> Result<()> {
    let guard = Guard::shared()?;
    let (device, before) = volume_with_data(&guard)?;
    device.read_zeros()?;
    ensure!(looks_blank_to_kubernetes(device.path())?, "the probe is not fooled: the scenario shows nothing");
    for (line, input) in formatters(device.path()) {
        refused(&guard, &line, input)?;
    }
    let volume =
        guard.wait_for_volume(device.path(), "reported", |volume| !volume["discrepancy"].is_null())?;
    ensure!(volume["state"] == "formatted", "{volume}");
    device.recover()?;
    whole(&guard, &device, &before)
}

/// S2, with an engine that accepts writes while it reads as zeros: a refused write does not arrive.
#[test]
fn s2_refusals_hold_where_the_engine_would_take_the_writes() -> Result<()> {
    let guard = Guard::shared()?;
    let (device, before) = volume_with_data(&guard)?;
    // What the probe reads must not matter: the same attacks run on the healthy volume.
    attack::all_refused(&guard, device.path())?;
    whole(&guard, &device, &before)
}

/// S3: EIO from the data path, and mkfs is repeated.
#[test]
fn s3_a_volume_that_fails_is_not_formatted() -> Result<()> {
    let guard = Guard::shared()?;
    let (device, before) = volume_with_data(&guard)?;
    device.fail()?;
    ensure!(looks_blank_to_kubernetes(device.path())?, "the probe is not fooled: the scenario shows nothing");
    for _ in 0..3 {
        for (line, input) in formatters(device.path()) {
            // luksFormat reads before it writes: EIO stops it before the guard is asked.
            if line.starts_with("cryptsetup") {
                ensure!(format_guard_tests::tool::run_with(&line, input)?.status != 0, "{line} succeeded");
            } else {
                refused(&guard, &line, input)?;
            }
        }
    }
    device.recover()?;
    whole(&guard, &device, &before)?;
    for (line, input) in formatters(device.path()) {
        refused(&guard, &line, input)?;
    }
    whole(&guard, &device, &before)
}

/// S1: the engine crashes while the plugin stages the volume: the node is gone at the probe and back at the
/// format, possibly under another number.
#[test]
fn s1_a_volume_whose_node_vanished_for_a_moment_is_not_formatted() -> Result<()> {
    let guard = Guard::shared()?;
    let mut device = Iscsi::new(64)?;
    make_ext4(&guard, device.path())?;
    write_at(device.path(), 20 << 20, b"precious")?;
    let before = device.sha256()?;
    let id = guard.volume(device.path())?["id"].as_str().context("no id")?.to_owned();
    ensure!(id == format!("iscsi:{},lun=1", device.iqn()), "{id}");
    let path = device.path().to_owned();
    device.log_out()?;
    ensure!(looks_blank_to_kubernetes(&path)?, "the probe is not fooled: the scenario shows nothing");
    device.log_in()?;
    // At once, as the plugin does, whether or not the agent has seen the device.
    for (line, input) in formatters(device.path()) {
        let ran = format_guard_tests::tool::run_with(&line, input)?;
        ensure!(ran.status != 0, "{line} succeeded:\n{}", ran.text);
    }
    guard.wait_for_state(device.path(), "formatted")?;
    for (line, input) in formatters(device.path()) {
        refused(&guard, &line, input)?;
    }
    ensure!(guard.volume(device.path())?["id"] == id.as_str());
    whole(&guard, &device, &before)
}

/// S4: not readable at the probe, readable later. A volume that cannot be verified is not blank, and recovers
/// by itself.
#[test]
fn s4_a_volume_that_fails_at_first_sight_takes_no_format_until_it_reads() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Mapped::failing(64)?;
    guard.wait_for_volume(device.path(), "unverified for its error", |volume| {
        volume["state"] == "unverified"
            && volume["cause"].as_str().is_some_and(|cause| cause.contains("read failed"))
    })?;
    refused(&guard, &format!("mkfs.ext4 -F {}", device.path().display()), "")?;
    device.recover()?;
    make_ext4(&guard, device.path())
}
