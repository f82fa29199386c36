//! The command line against a running agent: every command, its exit statuses, and one plain sentence for bad
//! input.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use format_guard_tests::{
    attack::{copy, refused},
    device::{Device, Linear, Loop, Mapped},
    guard::{Guard, binary},
    tool::{Ran, command, must, run},
    wait_for,
};
use serde_json::Value;

use crate::make_ext4;

/// Checks that a command ended with this status, and printed this.
fn says(ran: &Ran, status: i32, words: &str) -> Result<()> {
    ensure!(ran.status == status && ran.text.contains(words), "wanted {status} and '{words}': {ran:?}");
    ensure!(ran.text.lines().all(|line| !line.contains("panicked")), "{ran:?}");
    Ok(())
}

#[test]
fn a_volume_is_named_by_id_node_mount_point_or_unique_prefix() -> Result<()> {
    let guard = Guard::start()?;
    let (first, second) = (Loop::new(32)?, Loop::new(32)?);
    make_ext4(&guard, first.path())?;
    guard.wait_for_state(second.path(), "blank")?;
    let id = guard.volume(first.path())?["id"].as_str().context("no id")?.to_owned();
    let point = "/run/fg-named";
    fs::create_dir_all(format!("{point}/directory"))?;
    must(&format!("mount {} {point}", first.path().display()))?;
    fs::create_dir_all(format!("{point}/directory"))?;
    fs::write(format!("{point}/file"), "")?;
    let named =
        [id.clone(), first.path().display().to_string(), point.to_owned(), id[..id.len() - 1].to_owned()];
    let found: Result<Vec<Value>> =
        named.iter().map(|name| guard.json(&format!("volume show {name}"))).collect();
    let inside = guard.say(&format!("volume show {point}/directory"))?;
    let file = guard.say(&format!("volume show {point}/file"))?;
    must(&format!("umount {point}"))?;
    for volume in found? {
        ensure!(volume["id"] == id.as_str(), "{volume}");
    }
    says(&inside, 1, "nothing is mounted at")?;
    says(&file, 1, "neither a block device nor a mount point")?;
    let ambiguous = guard.say("volume show loop:")?;
    says(&ambiguous, 1, "is the beginning of 2 ids")?;
    ensure!(ambiguous.text.contains(&id), "the candidates are not listed: {ambiguous:?}");
    says(&guard.say("volume show nobody")?, 1, "no volume begins with 'nobody': see format-guard volume list")
}

#[test]
fn bad_input_gets_one_plain_sentence_with_the_way_out() -> Result<()> {
    let mut guard = Guard::start()?;
    for (line, status, words) in [
        ("volume show /dev/nowhere", 1, "there is no /dev/nowhere"),
        ("ensure-fs /dev/null --type ext4", 1, "/dev/null is not a block device"),
        ("ensure-fs /etc/passwd --type ext4", 1, "/etc/passwd is not a block device"),
        ("ensure-fs /dev/null --type ../sh", 2, "'../sh' is no file system type"),
        ("events --since yesterday", 2, "'yesterday' is no time: write 15m, 2h or 7d"),
        ("volume forget nobody --reason x", 1, "no volume begins with"),
        ("config check /nowhere", 1, "cannot read the configuration /nowhere"),
        ("mode enforce --reason", 2, "--reason"),
    ] {
        let ran = guard.say(line)?;
        says(&ran, status, words)?;
        ensure!(ran.text.trim().lines().count() <= 4, "more than a sentence: {ran:?}");
    }
    let checked = guard.say("status --check")?;
    says(&checked, 0, "enforcing: format-guard ")?;
    ensure!(checked.text.lines().count() == 1, "more than a line: {checked:?}");
    // Another user than root may not even use the socket.
    let program = "/var/tmp/format-guard-as-nobody";
    fs::copy(binary()?, program)?;
    let socket = guard.socket();
    must(&format!("chmod 755 {} {}", socket.parent().context("no directory")?.display(), "/var/tmp"))?;
    let line = format!("setpriv --reuid 65534 --clear-groups {program} --socket {} status", socket.display());
    must("chmod 755 /run")?;
    must(&format!("chmod 755 {}", socket.ancestors().nth(2).context("no directory")?.display()))?;
    says(&run(&line)?, 1, "only root may ask the agent")?;
    // No agent.
    guard.kill_agent()?;
    says(&guard.say("status")?, 4, "start it with systemctl start format-guard")?;
    let device = Loop::new(16)?;
    let ensured = guard.say(&format!("ensure-fs {} --type ext4", device.path().display()))?;
    says(&ensured, 4, "no agent answers")?;
    ensure!(run(&format!("blkid -p {}", device.path().display()))?.status == 2, "it was formatted");
    // A malformed configuration never starts a guard.
    let config = fs::read_to_string(guard.config())?;
    for (text, words) in [
        ("mod = 'audit'", "there is no key 'mod': did you mean 'mode'?"),
        ("mode = 'off'", "unknown variant `off`"),
        ("mode = ", "line 1"),
        ("probe_deadline = 0", "between 1 and 3600"),
    ] {
        fs::write(guard.config(), text)?;
        let line = format!("{} agent --config {}", binary()?.display(), guard.config().display());
        says(&run(&line)?, 1, words)?;
        says(&run(&format!("{} config check {}", binary()?.display(), guard.config().display()))?, 1, words)?;
    }
    fs::write(guard.config(), config)?;
    // An unreadable database.
    let state = guard.config().with_file_name("state");
    fs::rename(&state, state.with_extension("kept"))?;
    fs::create_dir_all(state.join("volumes.sqlite3"))?;
    let line = format!("{} agent --config {}", binary()?.display(), guard.config().display());
    let ran = run(&line)?;
    says(&ran, 1, "volumes.sqlite3")?;
    ensure!(ran.text.contains("cannot use the database"), "{ran:?}");
    fs::remove_dir_all(&state)?;
    fs::rename(state.with_extension("kept"), &state)?;
    guard.start_agent()
}

#[test]
fn a_refusal_names_everything_in_one_event_and_one_log_line() -> Result<()> {
    let guard = Guard::start()?;
    let device = Loop::new(32)?;
    make_ext4(&guard, device.path())?;
    let id = guard.volume(device.path())?["id"].as_str().context("no id")?.to_owned();
    // In a control group like those that container runtimes make.
    let container = "0123456789abcdef".repeat(4);
    let group = format!("/sys/fs/cgroup/fg.slice/cri-containerd-{container}.scope");
    fs::create_dir_all(&group)?;
    let program = copy("wipefs")?;
    let script = format!(
        "#!/bin/sh\necho $$ >{group}/cgroup.procs\nexec {program} -a -f {}\n",
        device.path().display()
    );
    fs::write("/var/tmp/fg-contained", script)?;
    let told = guard.events("denied")?.len();
    refused(&guard, "sh /var/tmp/fg-contained", "")?;
    let event = guard.events("denied")?[told].clone();
    let refusal = &event["refusal"];
    for (key, value) in [
        ("reason", "identity"),
        ("operation", "write"),
        ("comm", "innocent-wipefs"),
        ("state", "formatted"),
        ("container", container.as_str()),
    ] {
        ensure!(refusal[key] == value, "{key}: {event}");
    }
    ensure!(refusal["offset"] == 1080 && refusal["length"] == 2, "{event}");
    ensure!(refusal["cause"].as_str().is_some_and(|cause| cause.contains("mkfs.ext4")), "{event}");
    ensure!(refusal["since"].as_i64().is_some_and(|since| since > 1_500_000_000), "{event}");
    ensure!(event["volume"] == id.as_str(), "{event}");
    let permit = format!("format-guard volume permit {id} --reason TEXT");
    ensure!(refusal["permit"] == permit.as_str(), "{event}");
    ensure!(event["text"].as_str().is_some_and(|text| text.ends_with(&permit)), "{event}");
    let log = guard.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("innocent-wipefs")).collect();
    ensure!(lines.len() == 1, "{lines:#?}");
    for word in
        [&*id, "formatted", "innocent-wipefs", "offset=1080", "length=2", "reason=\"identity\"", &*container]
    {
        ensure!(lines[0].contains(word), "'{word}' is not in {}", lines[0]);
    }
    ensure!(guard.say("volume list --output name")?.text.lines().any(|line| line == id), "no whole id");
    let bare = guard.say("volume list --no-headers")?.text;
    ensure!(bare.lines().any(|line| line.ends_with(&id)) && !bare.contains("VOLUME"), "{bare}");
    for line in guard.say("events")?.text.lines().chain(guard.say("volume list")?.text.lines()) {
        let free = line.contains("--reason TEXT") || line.contains(&id) || line.contains("/var/tmp");
        ensure!(line.chars().count() <= 80 || free, "{line}");
        ensure!(!line.contains('\x1b'), "colour where there is no terminal: {line:?}");
    }
    Ok(())
}

#[test]
fn a_refused_process_may_write_again_once_it_is_untainted() -> Result<()> {
    use std::os::unix::fs::FileExt;

    let guard = Guard::shared()?;
    let device = Loop::new(32)?;
    make_ext4(&guard, device.path())?;
    let file = fs::OpenOptions::new().write(true).open(device.path())?;
    ensure!(file.write_all_at(&[0; 2], 1080).is_err(), "the magic was overwritten");
    ensure!(file.write_all_at(b"data", 20 << 20).is_err(), "a refused process wrote again");
    let done = guard.json(&format!("volume untaint {} --reason vm", device.path().display()))?;
    ensure!(done["text"].as_str().is_some_and(|text| text.starts_with("1 processes")), "{done}");
    file.write_all_at(b"data", 20 << 20)?;
    ensure!(file.write_all_at(&[0; 2], 1080).is_err(), "the magic was overwritten");
    ensure!(guard.events("untainted")?.len() == 1);
    Ok(())
}

#[test]
fn what_is_attached_and_holds_a_format_is_not_forgotten() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(32)?;
    make_ext4(&guard, device.path())?;
    let id = guard.volume(device.path())?["id"].as_str().context("no id")?.to_owned();
    says(&guard.say(&format!("volume forget {id} --reason x"))?, 3, "detach it first")?;
    let image = device.detach()?.context("no image")?;
    wait_for("the volume to be detached", || {
        let volume = guard.json(&format!("volume show {id}"))?;
        Ok(volume["devices"].as_array().is_some_and(Vec::is_empty).then_some(()))
    })?;
    guard.json(&format!("volume forget {id} --reason x"))?;
    says(&guard.say(&format!("volume show {id}"))?, 1, "no volume begins with")?;
    // A probe records the volume again.
    let again = Loop::over(image.path())?;
    guard.wait_for_state(again.path(), "formatted").map(drop)
}

/// Follows the events in another process.
fn follow(guard: &Guard, line: &str) -> Result<(Child, BufReader<std::process::ChildStdout>)> {
    let mut child = command(&format!("{} --socket {} {line}", binary()?.display(), guard.socket().display()))
        .stdout(Stdio::piped())
        .spawn()?;
    let output = child.stdout.take().context("no output")?;
    Ok((child, BufReader::new(output)))
}

#[test]
fn events_are_followed_as_they_happen_and_begin_where_they_are_wanted() -> Result<()> {
    let guard = Guard::start()?;
    let device = Loop::new(32)?;
    guard.wait_for_state(device.path(), "blank")?;
    let (mut child, mut lines) = follow(&guard, "events --follow --json")?;
    let mut next = |kind: &str| -> Result<Value> {
        loop {
            let mut line = String::new();
            ensure!(lines.read_line(&mut line)? > 0, "it ended before {kind}");
            let event: Value = serde_json::from_str(&line)?;
            if event["kind"] == kind {
                return Ok(event);
            }
        }
    };
    next("blank")?;
    make_ext4(&guard, device.path())?;
    next("formatted")?;
    refused(&guard, &format!("wipefs -a -f {}", device.path().display()), "")?;
    let event = next("denied")?;
    child.kill()?;
    child.wait()?;
    ensure!(event["refusal"]["comm"] == "wipefs", "{event}");
    let since = |time: &str| -> Result<usize> {
        let events = guard.json(&format!("events --since {time}"))?;
        Ok(events["events"].as_array().map_or(0, Vec::len))
    };
    ensure!(since("1h")? >= 4 && since("2099-01-01T00:00:00Z")? == 0);
    let one = guard.json(&format!("events {} --limit 1", device.path().display()))?;
    ensure!(one["events"][0]["id"] == event["id"], "{one}");
    Ok(())
}

#[test]
fn the_configuration_is_read_again_on_a_hangup_all_of_it_or_nothing() -> Result<()> {
    let guard = Guard::start()?;
    let mode =
        |wanted: &str| wait_for("the mode", || Ok((guard.json("status")?["mode"] == wanted).then_some(())));
    let text = fs::read_to_string(guard.config())?;
    fs::write(guard.config(), format!("{text}mode = 'audit'\nprobe_deadline = 3\n"))?;
    guard.hang_up()?;
    mode("audit")?;
    let logged = |words: &str| wait_for(words, || Ok(guard.log().contains(words).then_some(())));
    fs::write(guard.config(), format!("{text}mode = 'enforce'\nprobe_deadline = 0\n"))?;
    guard.hang_up()?;
    logged("the configuration stays as it was: ")?;
    ensure!(guard.json("status")?["mode"] == "audit", "half of a wrong configuration took effect");
    fs::write(guard.config(), format!("{}mode = 'enforce'\n", text.replace("/run'", "/elsewhere'")))?;
    guard.hang_up()?;
    logged("run_dir has changed, which needs a restart")?;
    ensure!(guard.json("status")?["mode"] == "audit", "half of a wrong configuration took effect");
    fs::write(guard.config(), &text)?;
    guard.hang_up()?;
    mode("enforce")
}

/// Checks that the call succeeds, and whether it formatted the volume.
fn ensured(guard: &Guard, node: &str, kind: &str, formatted: bool) -> Result<()> {
    let ran = guard.say(&format!("ensure-fs {node} --type {kind} --json -- -q"))?;
    ensure!(ran.status == 0, "{ran:?}");
    let outcome: Value = serde_json::from_str(&ran.text)?;
    ensure!(outcome["formatted"] == formatted && outcome["holds"] == kind, "{outcome}");
    Ok(())
}

#[test]
fn ensure_fs_formats_once_and_says_the_same_ever_after() -> Result<()> {
    let guard = Guard::shared()?;
    for (kind, options) in
        [("ext4", "-- -q -m0"), ("xfs", "-- -q --unsupported"), ("btrfs", "-- -q -M"), ("vfat", "")]
    {
        let device = Loop::new(64)?;
        let node = device.path().display().to_string();
        // At once, while the volume is not verified yet.
        let line = format!("ensure-fs {node} --type {kind} --json {options}");
        let first = guard.say(&line)?;
        ensure!(first.status == 0, "{first:?}");
        let before = device.sha256()?;
        let again = guard.json(&format!("ensure-fs {node} --type {kind}"))?;
        ensure!(again["formatted"] == false && again["holds"] == kind, "{again}");
        let other = if kind == "ext4" { "xfs" } else { "ext4" };
        let ran = guard.say(&format!("ensure-fs {node} --type {other}"))?;
        says(&ran, 3, &format!("holds {kind}, not {other}"))?;
        ensure!(device.sha256()? == before, "bytes changed");
    }
    ensure!(guard.events("denied")?.is_empty(), "{:#?}", guard.events("denied")?);
    let device = Loop::new(16)?;
    let ran = guard.say(&format!("ensure-fs {} --type nosuchfs", device.path().display()))?;
    says(&ran, 1, "there is no mkfs.nosuchfs on this host")
}

#[test]
fn ensure_fs_formats_once_for_all_who_call_it_at_the_same_time() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(64)?;
    let line = format!(
        "{} --socket {} ensure-fs {} --type ext4 --json",
        binary()?.display(),
        guard.socket().display(),
        device.path().display()
    );
    let callers: Result<Vec<Child>> =
        (0..4).map(|_| Ok(command(&line).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?)).collect();
    let mut formatted = 0;
    for caller in callers? {
        let output = caller.wait_with_output()?;
        ensure!(output.status.success(), "a caller ended with {}", output.status);
        let outcome: Value = serde_json::from_slice(&output.stdout)?;
        formatted += u32::from(outcome["formatted"] == true);
    }
    ensure!(formatted == 1, "{formatted} callers formatted it");
    ensure!(guard.events("format-began")?.len() == 1);
    Ok(())
}

#[test]
fn ensure_fs_goes_on_after_it_was_killed_half_way() -> Result<()> {
    let guard = Guard::shared()?;
    let below = Loop::new(64)?;
    let device = Linear::over("fg-ensured", "FGTEST-ensured", below.path(), 0, 64 << 20)?;
    device.slow_writes(below.path(), 64 << 20, Duration::from_secs(3))?;
    let node = device.path().display().to_string();
    guard.wait_for_state(device.path(), "blank")?;
    let line = format!(
        "{} --socket {} ensure-fs {node} --type ext4 -- -q -E nodiscard",
        binary()?.display(),
        guard.socket().display()
    );
    let mut call = command(&line).spawn()?;
    wait_for("the format to begin", || {
        Ok((guard.volume(device.path())?["state"] == "formatting").then_some(()))
    })?;
    let formatter = guard.volume(device.path())?["formatter"]["pid"].as_u64().context("no pid")?;
    call.kill()?;
    call.wait()?;
    must(&format!("kill -KILL {formatter}"))?;
    device.slow_writes(below.path(), 64 << 20, Duration::ZERO)?;
    ensured(&guard, &node, "ext4", true)?;
    must(&format!("e2fsck -fn {node}")).map(drop)
}

#[test]
fn ensure_fs_is_not_fooled_by_a_device_that_lies() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Mapped::new(64)?;
    let node = device.path().display().to_string();
    ensured(&guard, &node, "ext4", true)?;
    let before = device.sha256()?;
    device.read_zeros()?;
    says(&guard.say(&format!("ensure-fs {node} --type ext4"))?, 3, "it reads blank")?;
    says(&guard.say(&format!("ensure-fs {node} --type xfs"))?, 3, "it reads blank")?;
    device.fail()?;
    says(&guard.say(&format!("ensure-fs {node} --type ext4"))?, 3, "read failed")?;
    device.recover()?;
    ensure!(device.sha256()? == before, "bytes changed");
    ensured(&guard, &node, "ext4", false)?;
    let never = Mapped::failing(32)?;
    let ran = guard.say(&format!("ensure-fs {} --type ext4 --wait 3s", never.path().display()))?;
    says(&ran, 3, "is still unverified after 3 s")
}

#[test]
fn ensure_fs_uses_a_permit() -> Result<()> {
    let guard = Guard::shared()?;
    let device = Loop::new(64)?;
    let node = device.path().display().to_string();
    ensured(&guard, &node, "ext4", true)?;
    guard.json(&format!("volume permit {node} --reason migrate"))?;
    let made = guard.say(&format!("ensure-fs {node} --type xfs --json -- -q --unsupported"))?;
    ensure!(made.status == 0, "{made:?}");
    let volume = guard.volume(device.path())?;
    ensure!(volume["state"] == "formatted" && volume["content"]["types"][0] == "xfs", "{volume}");
    Ok(())
}

#[test]
fn the_socket_answers_curl_and_refuses_what_it_does_not_know() -> Result<()> {
    let guard = Guard::shared()?;
    let curl = |path: &str| {
        run(&format!("curl -sS --unix-socket {} http://localhost{path}", guard.socket().display()))
    };
    let status: Value = serde_json::from_str(&curl("/v1/status")?.text)?;
    ensure!(status["proven"] == true, "{status}");
    let unknown: Value = serde_json::from_str(&curl("/v2/status")?.text)?;
    ensure!(unknown["error"].as_str().is_some_and(|text| text.contains("another version")), "{unknown}");
    Ok(())
}

/// "Operation not permitted" puzzles root: the kernel's log must explain it.
#[test]
fn who_is_refused_finds_it_in_the_kernels_log() -> Result<()> {
    let guard = Guard::start()?;
    let device = Loop::new(64)?;
    make_ext4(&guard, device.path())?;
    let node = device.path().display();
    let id = guard.volume(device.path())?["id"].as_str().context("no id")?.to_owned();
    let lines = || -> Result<Vec<String>> {
        let log = must("dmesg")?;
        let ours = |line: &&str| line.contains("format-guard: ") && line.contains(&format!("show {id} says"));
        Ok(log.lines().filter(ours).map(str::to_owned).collect())
    };
    refused(&guard, &format!("mkfs.ext4 -F -q {node}"), "")?;
    let told = wait_for("the line", || Ok(lines()?.pop()))?;
    ensure!(told.contains("mkfs.ext4 (pid ") && told.contains("format-guard volume show"), "{told}");
    for _ in 0..3 {
        refused(&guard, &format!("mkfs.ext4 -F -q {node}"), "")?;
    }
    refused(&guard, &format!("wipefs -a {node}"), "")?;
    wait_for("another program's line", || {
        Ok(lines()?.iter().any(|line| line.contains("wipefs (pid ")).then_some(()))
    })?;
    ensure!(lines()?.len() == 2, "{:#?}", lines()?);
    Ok(())
}

#[test]
fn an_agent_of_another_version_is_told_apart() -> Result<()> {
    use std::{io::Write, os::unix::net::UnixListener, thread};

    let path = Path::new("/run/fg-other.sock");
    let _ = fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    let answering = thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 17\r\n\r\n{\"version\":\"9.9\"}")
    });
    let ran = run(&format!("{} --socket {} status", binary()?.display(), path.display()))?;
    says(&ran, 1, "it is of another version: systemctl restart format-guard")?;
    answering.join().map_err(|_| anyhow::anyhow!("the other agent broke"))??;
    Ok(())
}
