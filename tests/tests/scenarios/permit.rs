//! A permit is an operator's permission for one re-format of one volume, and it ends.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use format_guard_tests::{
    attack::{LUKS_FORMAT, refused},
    device::{Device, Loop, remove_partitions},
    guard::{Guard, binary, tier},
    tool::{Ran, command, must, must_with, run_command},
};

use crate::make_ext4;

#[test]
fn a_permit_lets_one_format_through_and_no_second() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(64)?;
    let node = device.path().display().to_string();
    make_ext4(&guard, device.path())?;
    let permit = guard.json(&format!("volume permit {node} --reason restore --for 10m"))?;
    ensure!(permit["state"] == "permitted" && permit["permit"]["reason"] == "restore", "{permit}");
    must(&format!("mkfs.xfs -f -q --unsupported {node}"))?;
    let volume = guard.wait_for_state(device.path(), "formatted")?;
    ensure!(volume["content"]["types"][0] == "xfs" && volume["permit"].is_null(), "{volume}");
    let before = device.sha256()?;
    refused(&guard, &format!("mkfs.ext4 -F {node}"), "")?;
    refused(&guard, &format!("mkfs.xfs -f {node}"), "")?;
    ensure!(device.sha256()? == before, "bytes changed");
    Ok(())
}

/// topolvm wipes and formats; the cleaner of local volumes formats and wipes; rook zaps and formats. Each
/// step follows at once, as in a script.
#[test]
fn one_permit_carries_a_job_of_more_than_one_step() -> Result<()> {
    let guard = Guard::shared()?;
    let jobs = [
        ("wipefs -a -q NODE", "mkfs.xfs -f -q --unsupported NODE", Some("xfs")),
        ("mkfs.xfs -f -q --unsupported NODE", "wipefs -a -q NODE", None),
        ("sgdisk --zap-all NODE", "mkfs.ext4 -F -q NODE", Some("ext4")),
        ("blkdiscard -z NODE", "mkfs.ext4 -F -q NODE", Some("ext4")),
    ];
    for (first, then, left) in jobs {
        let device = Loop::new(64)?;
        let node = device.path().display().to_string();
        make_ext4(&guard, device.path())?;
        guard.json(&format!("volume permit {node} --reason job"))?;
        for step in [first, then] {
            if tier() != "lsm" {
                // In the other tiers no formatter waits: one that is too early tries again.
                guard.wait_for_volume(device.path(), "read", |volume| volume["state"] != "formatting")?;
            }
            must(&step.replace("NODE", &node))
                .with_context(|| format!("{first}; {then}\n{}", guard.log()))?;
        }
        let Some(left) = left else {
            // There is nothing that could settle: the permit lasts until it expires.
            let volume =
                guard.wait_for_volume(device.path(), "wiped", |volume| volume["content"].is_null())?;
            ensure!(
                volume["state"] == "permitted" && volume["discrepancy"].is_null(),
                "{first}; {then}: {volume}"
            );
            continue;
        };
        let volume = guard.wait_for_state(device.path(), "formatted")?;
        ensure!(
            volume["content"]["types"][0] == left && volume["permit"].is_null(),
            "{first}; {then}: {volume}"
        );
        let before = device.sha256()?;
        refused(&guard, &format!("mkfs.ext4 -F {node}"), "")?;
        ensure!(device.sha256()? == before, "bytes changed");
    }
    Ok(())
}

/// Labels a disk as an installer does: each partition begins where an earlier one may have begun.
fn label(guard: &Guard, disk: &Loop, partitions: &str) -> Result<()> {
    guard.before_format(disk.path())?;
    must(&format!("parted -s {} mklabel gpt {partitions}", disk.path().display())).map(drop)
}

fn partition(disk: &Loop, number: u32) -> PathBuf {
    PathBuf::from(format!("{}p{number}", disk.path().display()))
}

/// Checks that a disk and its partitions refuse a format, and that nothing has changed.
fn keeps_all(guard: &Guard, disk: &Loop, mkfs: &str) -> Result<()> {
    let before = disk.sha256()?;
    for path in [disk.path().to_owned(), partition(disk, 1), partition(disk, 2)] {
        refused(guard, &format!("{mkfs} {}", path.display()), "")?;
    }
    ensure!(disk.sha256()? == before, "bytes changed");
    Ok(())
}

/// `ReaR`, Clonezilla and every guide label the disk and format its partitions, some of them at the places of
/// old ones.
#[test]
fn a_permit_of_a_disk_is_one_for_its_partitions() -> Result<()> {
    let guard = Guard::shared()?;
    let disk = Loop::new(128)?;
    let node = disk.path().display();
    guard.wait_for_state(disk.path(), "blank")?;
    label(&guard, &disk, "mkpart one 1MiB 40MiB mkpart two 40MiB 120MiB")?;
    for n in [1, 2] {
        make_ext4(&guard, &partition(&disk, n))?;
    }
    keeps_all(&guard, &disk, "mkfs.ext4 -F")?;
    guard.json(&format!("volume permit {node} --reason restore"))?;
    must(&format!("wipefs -a -q -f {node}"))?;
    label(&guard, &disk, "mkpart one 1MiB 60MiB mkpart two 60MiB 120MiB")?;
    for n in [1, 2] {
        must(&format!("mkfs.xfs -f -q --unsupported {}", partition(&disk, n).display()))
            .with_context(|| guard.log())?;
    }
    for n in [1, 2] {
        let volume = guard.wait_for_state(&partition(&disk, n), "formatted")?;
        ensure!(volume["content"]["types"][0] == "xfs", "{volume}");
    }
    guard.wait_for_state(disk.path(), "formatted")?;
    keeps_all(&guard, &disk, "mkfs.ext4 -F")?;
    remove_partitions(disk.path())
}

/// The recipe for a restore of a disk with partitions (docs/operations.md).
#[test]
fn an_exemption_of_a_disk_is_one_for_its_partitions_until_it_is_adopted() -> Result<()> {
    let guard = Guard::shared()?;
    let disk = Loop::new(128)?;
    let node = disk.path().display();
    guard.wait_for_state(disk.path(), "blank")?;
    label(&guard, &disk, "mkpart one 1MiB 40MiB")?;
    make_ext4(&guard, &partition(&disk, 1))?;
    guard.json(&format!("volume exempt {node} --reason restore"))?;
    must(&format!("mkfs.xfs -f -q --unsupported {}", partition(&disk, 1).display()))?;
    label(&guard, &disk, "mkpart one 1MiB 60MiB mkpart two 60MiB 120MiB")?;
    for n in [1, 2] {
        guard.wait_for_state(&partition(&disk, n), "exempt")?;
        must(&format!("mkfs.ext4 -F -q {}", partition(&disk, n).display()))?;
    }
    guard.json(&format!("volume adopt {node} --reason restored"))?;
    for n in [1, 2] {
        let volume = guard.wait_for_state(&partition(&disk, n), "formatted")?;
        ensure!(volume["content"]["types"][0] == "ext4", "{volume}");
    }
    keeps_all(&guard, &disk, "mkfs.xfs -f")?;
    remove_partitions(disk.path())
}

#[test]
fn a_permit_serves_a_program_that_is_no_known_formatter() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(64)?;
    let node = device.path().display().to_string();
    make_ext4(&guard, device.path())?;
    guard.json(&format!("volume permit {node} --reason encrypt"))?;
    must_with(&format!("{LUKS_FORMAT} {node} -"), "secret")?;
    let volume = guard.wait_for_state(device.path(), "formatted")?;
    ensure!(volume["content"]["types"][0] == "crypto_LUKS", "{volume}");
    refused(&guard, &format!("{LUKS_FORMAT} {node} -"), "secret").map(drop)
}

#[test]
fn a_permit_is_revoked_with_those_of_the_partitions() -> Result<()> {
    let guard = Guard::shared()?;
    let disk = Loop::new(128)?;
    let node = disk.path().display();
    label(&guard, &disk, "mkpart one 1MiB 40MiB mkpart two 40MiB 120MiB")?;
    for n in [1, 2] {
        make_ext4(&guard, &partition(&disk, n))?;
    }
    guard.json(&format!("volume permit {node} --reason wrong"))?;
    guard.wait_for_state(&partition(&disk, 2), "permitted")?;
    let volume = guard.json(&format!("volume revoke {node} --reason oops"))?;
    ensure!(volume["state"] == "formatted" && volume["permit"].is_null(), "{volume}");
    keeps_all(&guard, &disk, "mkfs.xfs -f")?;
    let ran = guard.say(&format!("volume revoke {node} --reason oops"))?;
    ensure!(ran.status == 2 && ran.text.contains("has no permit"), "{ran:?}");
    ensure!(guard.events("permit-revoked")?.iter().all(|event| event["by_operator"] != false), "not kept");
    remove_partitions(disk.path())
}

#[test]
fn a_permit_expires_unused() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(64)?;
    let node = device.path().display().to_string();
    make_ext4(&guard, device.path())?;
    let before = device.sha256()?;
    guard.json(&format!("volume permit {node} --reason test --for 1s"))?;
    guard.wait_for_state(device.path(), "formatted")?;
    ensure!(guard.events("permit-expired")?.len() == 1);
    refused(&guard, &format!("mkfs.ext4 -F {node}"), "")?;
    ensure!(device.sha256()? == before, "bytes changed");
    Ok(())
}

#[test]
fn a_permit_needs_a_reason_and_a_volume_that_needs_it() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(64)?;
    let node = device.path().display().to_string();
    guard.wait_for_state(device.path(), "blank")?;
    for (line, status) in [
        (format!("volume permit {node}"), 2),
        (format!("volume permit {node} --reason x --for 1y"), 2),
        (format!("volume permit {node} --reason x --for 30d"), 2),
        (format!("volume permit {node} --reason x"), 2),
        ("volume permit nobody --reason x".to_owned(), 1),
        ("volume show /dev/null".to_owned(), 1),
    ] {
        let ran = guard.say(&line)?;
        ensure!(ran.status == status, "{line} ended with {}: {}", ran.status, ran.text);
    }
    Ok(())
}

/// The output that a person at a terminal sees for this command line.
fn typed(guard: &Guard, words: &str, answer: &str) -> Result<Ran> {
    let line = format!("{} --socket {} {words}", binary()?.display(), guard.socket().display());
    let mut terminal = command("script");
    terminal.args(["-qefc", &line, "/dev/null"]);
    run_command(terminal, &line, answer)
}

#[test]
fn by_what_data_may_be_lost_is_asked_for_and_never_guessed() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(64)?;
    make_ext4(&guard, device.path())?;
    let id = guard.volume(device.path())?["id"].as_str().context("no id")?.to_owned();
    let beginning = &id[..id.len() - 1];
    ensure!(
        guard.json(&format!("volume show {beginning}"))?["id"] == id.as_str(),
        "not shown by its beginning"
    );
    for command in ["permit", "exempt", "forget", "adopt"] {
        let ran = guard.say(&format!("volume {command} {beginning} --reason test"))?;
        ensure!(ran.status == 2 && ran.text.contains("name the whole one"), "{command}: {ran:?}");
        let words = format!("volume {command} {id} --reason test");
        let ran = typed(&guard, &words, "y\n")?;
        for told in ["holds ext4", "Type yes to go on", "nothing is done"] {
            ensure!(ran.status == 1 && ran.text.contains(told), "{command}: {ran:?}");
        }
        ensure!(guard.volume(device.path())?["state"] == "formatted", "{command} was done");
    }
    let ran = guard.say(&format!("volume adopt {id}"))?;
    ensure!(ran.status == 2 && ran.text.contains("--reason"), "{ran:?}");
    let ran = typed(&guard, &format!("volume permit {id} --reason test"), "yes\n")?;
    ensure!(ran.status == 0 && guard.volume(device.path())?["state"] == "permitted", "{ran:?}");
    let ran = typed(&guard, &format!("volume adopt {id} --reason test --yes"), "")?;
    ensure!(ran.status == 0 && guard.volume(device.path())?["state"] == "formatted", "{ran:?}");
    Ok(())
}

#[test]
fn adopt_takes_what_is_there_and_refuses_what_reads_blank() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(64)?;
    let node = device.path().display().to_string();
    guard.wait_for_state(device.path(), "blank")?;
    let ran = guard.say(&format!("volume adopt {node} --reason test"))?;
    ensure!(ran.status == 3 && ran.text.contains("nothing to adopt"), "{ran:?}");
    make_ext4(&guard, device.path())?;
    let volume = guard.json(&format!("volume adopt {node} --reason test"))?;
    ensure!(volume["state"] == "formatted" && volume["content"]["types"][0] == "ext4", "{volume}");
    Ok(())
}
