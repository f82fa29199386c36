//! Audit refuses nothing and tells everything.

use anyhow::{Result, ensure};
use format_guard_tests::{
    device::{Device, Loop},
    guard::Guard,
    tool::must,
    wait_for,
};

use crate::make_ext4;

#[test]
fn in_audit_mode_a_format_goes_through_and_is_told() -> Result<()> {
    let guard = Guard::audit()?;
    let device = Loop::new(64)?;
    make_ext4(&guard, device.path())?;
    let before = device.sha256()?;
    must(&format!("mkfs.ext4 -F -q {}", device.path().display()))?;
    ensure!(device.sha256()? != before, "it changed nothing");
    wait_for("the would-be refusal", || Ok((!guard.events("would-deny")?.is_empty()).then_some(())))?;
    ensure!(guard.events("denied")?.is_empty(), "{:#?}", guard.events("denied")?);
    ensure!(guard.json("status")?["mode"] == "audit");
    Ok(())
}
