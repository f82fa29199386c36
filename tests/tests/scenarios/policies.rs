//! Declared policies: what the configuration does with the volumes that a pattern matches.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use format_guard_tests::{
    attack::{refused, some_refused},
    device::{Device, Image, Loop, remove_partitions, sha256},
    guard::Guard,
    tool::{must, run},
    wait_for,
};
use serde_json::Value;

use crate::make_ext4;

/// Declares one more policy, and waits until it is in force.
fn declare(guard: &Guard, name: &str, action: &str, criteria: &str) -> Result<()> {
    guard.configure(&format!("[[policy]]\nname = '{name}'\naction = '{action}'\nmatch = {{ {criteria} }}"))
}

/// Takes every policy away again.
fn declare_none(guard: &Guard) -> Result<()> {
    let text = fs::read_to_string(guard.config())?;
    fs::write(guard.config(), text.split("[[policy]]").next().unwrap_or_default())?;
    guard.configure("")
}

/// What matches the volume in a device and no other one.
fn itself(guard: &Guard, path: &Path) -> Result<String> {
    Ok(format!("identity = '{}'", guard.volume(path)?["id"].as_str().context("no id")?))
}

fn is_by(volume: &Value, name: &str) -> bool {
    volume["policy"]["name"] == name
}

fn first_type(volume: &Value) -> &Value {
    &volume["content"]["types"][0]
}

#[test]
fn what_a_policy_exempts_takes_every_format_and_is_guarded_again_without_it() -> Result<()> {
    let guard = Guard::start()?;
    let device = Loop::new(64)?;
    let node = device.path().display().to_string();
    make_ext4(&guard, device.path())?;
    declare(&guard, "lab", "exempt", &itself(&guard, device.path())?)?;
    let volume = guard.wait_for_state(device.path(), "exempt")?;
    ensure!(is_by(&volume, "lab"), "{volume}");
    must(&format!("mkfs.xfs -f -q --unsupported {node}"))?;
    let ran = guard.say(&format!("volume adopt {node} --reason test"))?;
    ensure!(ran.status == 3 && ran.text.contains("policy 'lab' (exempt)"), "{ran:?}");
    declare_none(&guard)?;
    // What is recorded is what nobody has said is gone.
    let told = guard.wait_for_volume(device.path(), "told", |volume| !volume["discrepancy"].is_null())?;
    ensure!(told["state"] == "formatted" && told["policy"].is_null(), "{told}");
    let before = device.sha256()?;
    for line in ["mkfs.ext4 -F -q", "wipefs -a -f"] {
        refused(&guard, &format!("{line} {node}"), "")?;
    }
    ensure!(device.sha256()? == before, "bytes changed");
    let adopted = guard.json(&format!("volume adopt {node} --reason test"))?;
    ensure!(first_type(&adopted) == "xfs" && adopted["discrepancy"].is_null(), "{adopted}");
    Ok(())
}

#[test]
fn a_policy_of_audit_reports_by_its_name_what_it_lets_through() -> Result<()> {
    let guard = Guard::start()?;
    let (audited, enforced) = (Loop::new(64)?, Loop::new(64)?);
    for device in [&audited, &enforced] {
        make_ext4(&guard, device.path())?;
    }
    declare(&guard, "watched", "audit", &itself(&guard, audited.path())?)?;
    let volume = guard.volume(audited.path())?;
    ensure!(volume["audit"] == true && is_by(&volume, "watched"), "{volume}");
    let before = [audited.sha256()?, enforced.sha256()?];
    must(&format!("mkfs.ext4 -F -q {}", audited.path().display()))?;
    ensure!(audited.sha256()? != before[0], "it changed nothing");
    let event = wait_for("the would-be refusal", || Ok(guard.events("would-deny")?.pop()))?;
    let text = event["text"].as_str().context("no text")?;
    ensure!(event["refusal"]["policy"]["name"] == "watched", "{event}");
    ensure!(text.contains("policy 'watched' (audit)"), "{event}");
    refused(&guard, &format!("mkfs.ext4 -F -q {}", enforced.path().display()), "")?;
    ensure!(enforced.sha256()? == before[1], "bytes changed");
    let denied = guard.events("denied")?.pop().context("no refusal")?;
    ensure!(denied["refusal"].get("policy").is_none(), "{denied}");
    Ok(())
}

#[test]
fn a_policy_of_strict_keeps_all_but_the_own_tools_away() -> Result<()> {
    let guard = Guard::start()?;
    let device = Loop::new(64)?;
    let node = device.path().display();
    make_ext4(&guard, device.path())?;
    let write = format!("dd if=/dev/urandom of={node} bs=4k seek=8000 count=1 conv=notrunc,fsync");
    must(&write)?;
    declare(&guard, "archive", "strict", &itself(&guard, device.path())?)?;
    let before = device.sha256()?;
    refused(&guard, &write, "")?;
    ensure!(device.sha256()? == before, "bytes changed");
    let event = wait_for("the refusal", || Ok(guard.events("denied")?.pop()))?;
    let text = event["text"].as_str().context("no text")?;
    ensure!(event["refusal"]["reason"] == "strict" && text.contains("policy 'archive' (strict)"), "{event}");
    must(&format!("tune2fs -L archive {node}"))?;
    must(&format!("e2fsck -fp {node}"))?;
    declare_none(&guard)?;
    must(&write).map(drop)
}

#[test]
fn what_is_never_formatted_is_so_with_a_permit_and_while_it_is_blank() -> Result<()> {
    let guard = Guard::start()?;
    let (held, blank) = (Loop::new(64)?, Loop::new(64)?);
    make_ext4(&guard, held.path())?;
    guard.wait_for_state(blank.path(), "blank")?;
    // Given before the policy came.
    guard.json(&format!("volume permit {} --reason test", held.path().display()))?;
    for device in [&held, &blank] {
        let name = format!("keep {}", device.path().display());
        declare(&guard, &name, "never-format", &itself(&guard, device.path())?)?;
    }
    guard.wait_for_state(held.path(), "formatted")?;
    guard.wait_for_state(blank.path(), "unverified")?;
    for device in [&held, &blank] {
        let node = device.path().display();
        let before = device.sha256()?;
        let ran = guard.say(&format!("volume permit {node} --reason test"))?;
        ensure!(ran.status == 3 && ran.text.contains("(never-format)"), "{ran:?}");
        // A blank volume has nothing that wipefs would erase.
        refused(&guard, &format!("mkfs.ext4 -F -q {node}"), "")?;
        refused(&guard, &format!("mkfs.xfs -f -q --unsupported {node}"), "")?;
        ensure!(device.sha256()? == before, "bytes changed on {node}");
        let event = guard.events("denied")?.pop().context("no refusal")?;
        let way_out = event["refusal"]["way_out"].as_str().context("no way out")?;
        ensure!(!way_out.contains("volume permit"), "{event}");
    }
    // Everyday work goes on.
    must(&format!("e2fsck -fp {}", held.path().display()))?;
    must(&format!("tune2fs -L keep {}", held.path().display()))?;
    declare_none(&guard)?;
    make_ext4(&guard, blank.path())
}

/// What a cloud hands a virtual machine: a disk that is formatted by the platform, anew after each stop.
#[test]
fn a_temporary_disk_is_formatted_anew_at_each_attachment_and_protected_in_between() -> Result<()> {
    let mut guard = Guard::start()?;
    let image = Image::new(64)?;
    let formatted_by_the_platform =
        || must(&format!("mkfs.ext4 -F -q -L temporary {}", image.path().display()));
    formatted_by_the_platform()?;
    declare(&guard, "temporary disk", "ephemeral", "label = 'temporary'")?;
    for _ in 0..2 {
        let device = Loop::over(image.path())?;
        let node = device.path().display().to_string();
        let volume = guard.wait_for_state(device.path(), "blank")?;
        ensure!(is_by(&volume, "temporary disk"), "{volume}");
        // cloud-init, or an agent of the platform.
        must(&format!("mkfs.ext4 -F -q -L temporary {node}")).with_context(|| guard.log())?;
        guard.wait_for_state(device.path(), "formatted")?;
        let before = device.sha256()?;
        refused(&guard, &format!("mkfs.xfs -f {node}"), "")?;
        // The same attachment, to the next agent.
        guard.kill_agent()?;
        guard.start_agent()?;
        guard.wait_for_state(device.path(), "formatted")?;
        some_refused(&guard, device.path())?;
        ensure!(device.sha256()? == before, "bytes changed");
    }
    let told = guard.events("ephemeral")?;
    ensure!(
        told.iter().any(|event| event["text"].as_str().is_some_and(|text| text.contains("it held ext4"))),
        "{told:#?}"
    );
    // One that is taken into use as it came.
    let device = Loop::over(image.path())?;
    guard.wait_for_state(device.path(), "blank")?;
    let point = PathBuf::from("/run/fg-temporary");
    fs::create_dir_all(&point)?;
    must(&format!("mount {} {}", device.path().display(), point.display()))?;
    let used = (|| {
        guard.wait_for_volume(device.path(), "in use", |volume| first_type(volume) == "ext4")?;
        refused(
            &guard,
            &format!("dd if=/dev/zero of={} bs=4k count=1 conv=notrunc,fsync", device.path().display()),
            "",
        )
    })();
    must(&format!("umount {}", point.display()))?;
    used.map(drop)
}

/// The UUID of a file system in an image.
fn uuid_of(image: &Image) -> Result<String> {
    Ok(must(&format!("blkid -p -s UUID -o value {}", image.path().display()))?.trim().to_owned())
}

/// A disk with two slots and a partition for data.
fn slotted(guard: &Guard) -> Result<Loop> {
    let disk = Loop::new(128)?;
    guard.wait_for_state(disk.path(), "blank")?;
    must(&format!(
        "parted -s {} mklabel gpt mkpart root-a 1MiB 41MiB mkpart root-b 41MiB 81MiB mkpart data 81MiB 121MiB",
        disk.path().display()
    ))?;
    guard.wait_for_state(disk.path(), "formatted")?;
    Ok(disk)
}

/// What systemd-sysupdate, RAUC and others do: an image over a whole partition, again and again.
#[test]
fn a_slot_is_overwritten_as_a_whole_and_its_neighbour_is_not() -> Result<()> {
    let guard = Guard::start()?;
    declare(&guard, "system", "slot", "partition_label = 'root-*'")?;
    let disk = slotted(&guard)?;
    let partition = |number: u32| PathBuf::from(format!("{}p{number}", disk.path().display()));
    let (a, b, data) = (partition(1), partition(2), partition(3));
    make_ext4(&guard, &data)?;
    let before = sha256(&data)?;
    for slot in [&a, &b, &a, &b] {
        let image = Image::new(40)?;
        must(&format!("mkfs.ext4 -F -q {}", image.path().display()))?;
        must(&format!("dd if={} of={} bs=1M conv=notrunc,fsync", image.path().display(), slot.display()))
            .with_context(|| guard.log())?;
        must(&format!("cmp {} {}", image.path().display(), slot.display()))?;
        let uuid = uuid_of(&image)?;
        let volume = guard
            .wait_for_volume(slot, "what was written", |volume| volume["content"]["uuid"] == uuid.as_str())?;
        ensure!(volume["state"] == "formatted" && is_by(&volume, "system"), "{volume}");
        ensure!(volume["discrepancy"].is_null(), "{volume}");
        must(&format!("e2fsck -fn {}", slot.display()))?;
    }
    // A formatter may, too, by whatever road.
    must(&format!("mkfs.xfs -f -q --unsupported {}", b.display()))?;
    guard.wait_for_volume(&b, "formatted anew", |volume| first_type(volume) == "xfs")?;
    must(&format!("wipefs -a {}", b.display()))?;
    let all = [guard.events("denied")?, guard.events("discrepancy")?].concat();
    ensure!(all.is_empty(), "{all:#?}");
    refused(&guard, &format!("mkfs.xfs -f -q --unsupported {}", data.display()), "")?;
    ensure!(sha256(&data)? == before, "bytes changed");
    declare_none(&guard)?;
    refused(&guard, &format!("mkfs.xfs -f -q --unsupported {}", a.display()), "")?;
    remove_partitions(disk.path())
}

#[test]
fn a_type_in_the_partition_table_chooses_a_policy() -> Result<()> {
    let guard = Guard::start()?;
    let first = slotted(&guard)?;
    let node = first.path().display().to_string();
    let text = must(&format!("sgdisk -i 1 {node}"))?;
    let kind = text
        .split_once("GUID code: ")
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .context("no type")?
        .to_owned();
    declare(&guard, "typed", "never-format", &format!("gpt_type = '{kind}', partition_label = 'root-a'"))?;
    // One that was there before, and one that comes.
    let second = slotted(&guard)?;
    for disk in [&first, &second] {
        let [slot, other] = [1, 2].map(|number| PathBuf::from(format!("{}p{number}", disk.path().display())));
        guard.wait_for_volume(&slot, "its policy", |volume| is_by(volume, "typed"))?;
        let before = sha256(&slot)?;
        refused(&guard, &format!("mkfs.ext4 -F -q {}", slot.display()), "")?;
        ensure!(sha256(&slot)? == before, "bytes changed");
        make_ext4(&guard, &other)?;
        remove_partitions(disk.path())?;
    }
    Ok(())
}

#[test]
fn what_is_simulated_is_what_comes_and_nothing_is_tried() -> Result<()> {
    let guard = Guard::start()?;
    let (held, blank) = (Loop::new(64)?, Loop::new(64)?);
    make_ext4(&guard, held.path())?;
    guard.wait_for_state(blank.path(), "blank")?;
    let before = [held.sha256()?, blank.sha256()?];
    let count = |kind: &str| anyhow::Ok(guard.events(kind)?.len());
    let (began, denied) = (count("format-began")?, count("denied")?);
    let outcome = |program: &str, device: &Loop, what: usize| {
        let said = guard.json(&format!("simulate {program} {}", device.path().display()))?;
        anyhow::Ok((said["outcomes"][what]["outcome"].clone(), said["outcomes"][what]["reason"].clone()))
    };
    let (opened, reason) = outcome("mkfs.ext4", &held, 0)?;
    ensure!(opened == "refused" && reason == "formatter", "{opened} {reason}");
    let (opened, reason) = outcome("/usr/bin/dd", &held, 0)?;
    ensure!(opened == "allowed" && reason.is_null(), "{opened} {reason}");
    let (over_magic, reason) = outcome("dd", &held, 1)?;
    ensure!(over_magic == "refused" && reason == "identity", "{over_magic} {reason}");
    let (opened, _) = outcome("mkfs.ext4", &blank, 0)?;
    ensure!(opened == "begins-format", "{opened}");
    let said = guard.say(&format!("simulate mkfs.ext4 {}", held.path().display()))?;
    ensure!(
        said.status == 0 && said.text.contains("REFUSED") && said.text.contains("nothing was tried"),
        "{said:?}"
    );
    ensure!([held.sha256()?, blank.sha256()?] == before, "bytes changed");
    ensure!(count("denied")? == denied && count("format-began")? == began);
    declare(&guard, "watched", "audit", &itself(&guard, held.path())?)?;
    let (opened, _) = outcome("mkfs.ext4", &held, 0)?;
    ensure!(opened == "would-be-refused", "{opened}");
    must(&format!("mkfs.ext4 -F -q {}", held.path().display()))?;
    must(&format!("mkfs.ext4 -F -q {}", blank.path().display())).map(drop)
}

#[test]
fn a_file_with_policies_is_checked_and_explained() -> Result<()> {
    let guard = Guard::shared()?;
    let file = PathBuf::from("/run/fg-policies.toml");
    let check = |text: &str| {
        fs::write(&file, text)?;
        run(&guard.line(&format!("config check {}", file.display()))?)
    };
    let table = |name: &str, action: &str, criteria: &str| {
        format!("[[policy]]\nname = '{name}'\naction = '{action}'\nmatch = {{ {criteria} }}\n")
    };
    let sound = table("all", "audit", "identity = 'dm:*'") + &table("one", "strict", "identity = 'dm:LVM-*'");
    let ran = check(&sound)?;
    ensure!(ran.status == 0 && ran.text.contains("policy 1 'all'"), "{ran:?}");
    ensure!(ran.text.contains("policy 2 'one' is never reached"), "{ran:?}");
    for (text, said) in [
        (table("x", "audit", "lable = 'x'"), "did you mean 'label'?"),
        (table("x", "allow", "label = 'x'"), "never-format"),
        (table("x", "audit", ""), "matches every volume"),
        (table("x", "slot", "gpt_type = '8300'"), "write the type's UUID"),
    ] {
        let ran = check(&text)?;
        ensure!(ran.status == 1 && ran.text.contains(said), "{text}: {ran:?}");
    }
    Ok(())
}
