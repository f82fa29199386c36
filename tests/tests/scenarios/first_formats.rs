//! A fresh volume is formatted at once, as provisioners do it, and nobody has to come again; who comes too early all the same is told so.

use anyhow::{Context, Result, ensure};
use format_guard_tests::{
    attack,
    device::{Device, Loop},
    guard::Guard,
    wait_for,
};

const MIB: u64 = 64;

#[test]
fn who_comes_before_a_volume_is_read_is_told_so_and_is_not_cut_off() -> Result<()> {
    let guard = Guard::shared()?;
    let before = guard.newest_refusal()?;
    guard.pause_agent()?;
    let device = Loop::new(MIB)?;
    let opened = attack::open_as_formatter(device.path());
    guard.resume_agent()?;
    ensure!(opened.is_err(), "nobody has read it");
    wait_for("the event of a refusal", || Ok((guard.newest_refusal()? > before).then_some(())))?;
    let events = guard.events("denied")?;
    let refusal = &events.last().context("an event")?["refusal"];
    ensure!(refusal["reason"] == "not-read-yet", "{refusal}");
    ensure!(refusal["way_out"].as_str().is_some_and(|way| way.contains("try again in a moment")), "{refusal}");
    ensure!(refusal["permit"].is_null(), "{refusal}");
    let counted = guard.get("/metrics")?;
    let counter = |line: &str| line.contains("denials_total{reason=\"not-read-yet\",operation=\"open\"");
    ensure!(counted.lines().any(counter), "{counted}");
    guard.wait_for_state(device.path(), "blank")?;
    // The same process.
    attack::open_as_formatter(device.path()).map(drop).context("it was cut off")
}
