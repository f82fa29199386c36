//! The store that nodes share, from the view of one node: the store goes away and comes back, and records are
//! moved into it and out of it.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use format_guard_tests::{
    attack::refused,
    device::{Device, Iscsi, Loop},
    guard::Guard,
    tool::open_as_formatter,
    wait_for,
};
use format_guard_tests_etcd::{Members, Plan};

use super::make_ext4;

fn lines_of(etcd: &Members) -> String {
    format!("store.endpoints = ['{}']\nstore.timeout = 2\nstore.lease = 10\n", etcd.members[0].endpoint())
}

/// Whether the store answers, by the agent's status.
fn wait_until_it_answers(guard: &Guard, answers: bool) -> Result<()> {
    wait_for("the store's word", || Ok((guard.json("status")?["store"]["answers"] == answers).then_some(())))
        .with_context(|| guard.log())
}

#[test]
fn while_the_store_is_away_a_blank_volume_waits_and_nothing_else() -> Result<()> {
    let mut etcd = Members::start(&Plan::default())?;
    etcd.wait_until_healthy()?;
    let mut guard = Guard::unstarted(None)?;
    guard.add_to_configuration(&lines_of(&etcd))?;
    guard.start_agent()?;
    wait_until_it_answers(&guard, true)?;
    let known = Iscsi::new(32)?;
    make_ext4(&guard, known.path())?;
    let before = known.sha256()?;
    etcd.members[0].process.kill()?;
    wait_until_it_answers(&guard, false)?;
    let blank = Iscsi::new(32)?;
    guard.wait_for_volume(blank.path(), "waiting for the store", |volume| {
        volume["state"] == "unverified" && volume["cause"].as_str().is_some_and(|it| it.starts_with("store"))
    })?;
    refused(&guard, &format!("mkfs.ext4 -F {}", blank.path().display()), "")?;
    refused(&guard, &format!("mkfs.ext4 -F {}", known.path().display()), "")?;
    ensure!(known.sha256()? == before, "bytes changed");
    // A volume that no other node reaches needs no store.
    make_ext4(&guard, Loop::new(16)?.path())?;
    etcd.members[0].process.bring_back()?;
    wait_until_it_answers(&guard, true)?;
    make_ext4(&guard, blank.path())?;
    refused(&guard, &format!("mkfs.ext4 -F {}", blank.path().display()), "").map(drop)
}

#[test]
fn what_a_node_knows_moves_to_the_shared_store_and_to_another_node() -> Result<()> {
    let etcd = Members::start(&Plan::default())?;
    etcd.wait_until_healthy()?;
    let mut guard = Guard::unstarted(None)?;
    guard.start_agent()?;
    let (mut volume, local) = (Iscsi::new(32)?, Loop::new(16)?);
    make_ext4(&guard, volume.path())?;
    make_ext4(&guard, local.path())?;
    let config = guard.config().with_file_name("store.toml");
    fs::write(&config, lines_of(&etcd))?;
    let store = |line: &str| -> Result<String> {
        let ran = guard.say(&format!("store {line}"))?;
        ensure!(ran.status == 0, "{} ended with {}: {}", ran.line, ran.status, ran.text);
        Ok(ran.text)
    };
    let shared = format!("--config {}", config.display());
    let id = format!("iscsi:{},lun=1", volume.iqn());
    let own = store("export --embedded")?;
    ensure!(own.lines().count() == 2 && own.contains(&id), "{own}");
    let told = store(&format!("migrate {shared}"))?;
    ensure!(told.trim() == "1 volumes told, 0 known there already, 1 that stay on their node", "{told}");
    let told = store(&format!("migrate {shared}"))?;
    ensure!(told.trim() == "0 volumes told, 1 known there already, 1 that stay on their node", "{told}");
    let file: PathBuf = guard.config().with_file_name("volumes.jsonl");
    fs::write(&file, store(&format!("export {shared}"))?)?;
    ensure!(fs::read_to_string(&file)?.lines().count() == 1, "a volume of this node alone was told");
    // A lost store is filled from the file.
    etcd.ask(&["del", "/format-guard/", "--prefix"])?;
    let told = store(&format!("import {shared} {}", file.display()))?;
    ensure!(told.starts_with("1 volumes told"), "{told}");
    // Another node, without a shared store.
    volume.log_out()?;
    guard.stop_agent()?;
    let mut other = Guard::unstarted(None)?;
    let line = format!("store import --embedded --config {} {}", other.config().display(), file.display());
    let told = other.say(&line)?;
    ensure!(told.status == 0 && told.text.starts_with("1 volumes recorded"), "{}", told.text);
    other.start_agent()?;
    volume.log_in()?;
    ensure!(open_as_formatter(volume.path()).is_err(), "formatted at first sight");
    other.wait_for_state(volume.path(), "formatted")?;
    refused(&other, &format!("mkfs.ext4 -F {}", volume.path().display()), "").map(drop)
}
