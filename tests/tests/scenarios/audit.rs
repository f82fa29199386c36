//! Audit refuses nothing and reports everything, by the verdicts of the same programs.

use anyhow::{Context, Result, ensure};
use format_guard_tests::{
    attack::{self, refused},
    device::{Device, Loop},
    guard::Guard,
    tool::{must, run},
    wait_for,
};
use serde_json::Value;

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
    let checked = guard.say("status --check")?;
    ensure!(checked.status == 7 && checked.text.starts_with("audit: format-guard "), "{checked:?}");
    let refused = guard.say("mode enforce --reason now")?;
    ensure!(refused.status == 3, "started with --audit it cannot enforce: {refused:?}");
    Ok(())
}

/// The facts in the first event of an attack.
fn verdict(event: &Value) -> Result<(String, String, u64, u64)> {
    let refusal = &event["refusal"];
    let text = |key: &str| refusal[key].as_str().map(str::to_owned).context("no text");
    let number = |key: &str| refusal[key].as_u64().context("no number");
    Ok((text("reason")?, text("operation")?, number("offset")?, number("length")?))
}

/// Each attack is first refused, then let through in audit mode: the first events have the same facts.
#[test]
fn audit_of_one_volume_tells_the_verdict_that_enforcing_carries_out() -> Result<()> {
    let guard = Guard::start()?;
    let (audited, enforced) = (Loop::new(64)?, Loop::new(64)?);
    for device in [&audited, &enforced] {
        make_ext4(&guard, device.path())?;
    }
    let (node, other) = (audited.path().display(), enforced.path().display());
    let before = enforced.sha256()?;
    // A taint from before the switch must not survive into audit mode, and audit mode must make none.
    refused(&guard, &format!("wipefs -a -f {node}"), "")?;
    guard.json(&format!("mode audit --volume {node} --reason test"))?;
    ensure!(guard.volume(audited.path())?["audit"] == true);
    ensure!(guard.json("status")?["mode"] == "enforce");
    let newest = |kind: &str, count: usize| {
        wait_for("the event", || {
            let events = guard.events(kind)?;
            Ok((events.len() > count).then(|| events[count].clone()))
        })
    };
    for attack in [
        "wipefs -a -f".to_owned(),
        format!("{} -F -q", attack::copy("mkfs.ext4")?),
        "dd if=/dev/zero bs=1M count=1 conv=notrunc,fsync of=".to_owned(),
    ] {
        let on = |node: &str| {
            if attack.ends_with('=') { format!("{attack}{node}") } else { format!("{attack} {node}") }
        };
        let (denied, told) = (guard.events("denied")?.len(), guard.events("would-deny")?.len());
        refused(&guard, &on(&other.to_string()), "")?;
        must(&on(&node.to_string()))?;
        let (denied, told) = (verdict(&newest("denied", denied)?)?, verdict(&newest("would-deny", told)?)?);
        ensure!(denied == told, "{attack}: enforced {denied:?}, audited {told:?}");
        must(&format!("mkfs.ext4 -F -q -U 11111111-2222-3333-4444-555555555555 {node}"))?;
    }
    ensure!(enforced.sha256()? == before, "bytes changed on the volume that is not audited");
    guard.json(&format!("mode enforce --volume {node} --reason done"))?;
    refused(&guard, &format!("mkfs.ext4 -F {node}"), "").map(drop)
}

#[test]
fn the_mode_is_set_at_run_time_kept_across_a_restart_and_logged() -> Result<()> {
    let mut guard = Guard::start()?;
    let device = Loop::new(32)?;
    let node = device.path().display().to_string();
    make_ext4(&guard, device.path())?;
    let bare = guard.say("mode audit")?;
    ensure!(bare.status == 2 && bare.text.contains("--reason"), "{bare:?}");
    guard.json("mode audit --reason rollout")?;
    guard.kill_agent()?;
    must(&format!("wipefs -a -f {node}"))?;
    guard.start_agent()?;
    let status = guard.json("status")?;
    ensure!(status["mode"] == "audit" && status["set_mode"]["reason"] == "rollout", "{status}");
    ensure!(status["set_mode"]["uid"] == 0, "{status}");
    must(&format!("mkfs.ext4 -F -q {node}"))?;
    guard.json("mode enforce --reason over")?;
    let ran = run(&format!("mkfs.ext4 -F {node}"))?;
    ensure!(ran.status != 0, "{ran:?}");
    let told = guard.events("mode")?;
    ensure!(told.len() == 2, "{told:#?}");
    ensure!(guard.log().contains("mode audit by user 0: rollout"), "{}", guard.log());
    guard.json("mode audit --for 1s --reason short")?;
    let told = wait_for("the time to be over", || {
        let status = guard.json("status")?;
        let over = status["mode"] == "enforce" && status["set_mode"].is_null();
        over.then(|| guard.events("mode")).transpose()
    })?;
    ensure!(told.len() == 4 && told[3]["text"] == "mode audit set by user 0 has ended", "{told:#?}");
    refused(&guard, &format!("mkfs.ext4 -F {node}"), "")?;
    let nothing = guard.say("mode --clear --reason again")?;
    ensure!(nothing.status == 2 && nothing.text.contains("no mode was set by a command"), "{nothing:?}");
    guard.json("mode audit --reason longer")?;
    let shown = guard.say("status")?.text.split_whitespace().collect::<Vec<_>>().join(" ");
    ensure!(shown.contains("it outranks the configuration's enforce"), "{shown}");
    guard.json("mode --clear --reason over")?;
    refused(&guard, &format!("mkfs.ext4 -F {node}"), "").map(drop)
}
