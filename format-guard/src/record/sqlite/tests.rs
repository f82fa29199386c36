use std::{os::unix::fs::FileExt, sync::LazyLock};

use proptest::{collection::vec, prelude::*, sample::Index};

use super::*;
use crate::record::{Content, Permit};

fn record() -> Record {
    let mut record = Record::new("loop:1:2:3:4".into(), "a file".into(), false, 100);
    record.state = State::Permitted;
    record.ever_formatted = true;
    record.content =
        Some(Content { types: vec!["ext4".into()], uuid: Some("u-1".into()), label: Some("data".into()) });
    record.marks = vec![
        Mark { offset: 1080, kind: MarkKind::Magic, bytes: b"\x53\xef".to_vec() },
        Mark { offset: u64::MAX - 8, kind: MarkKind::Uuid, bytes: vec![7; 8] },
    ];
    record.permit = Some(Permit { reason: "restore".into(), uid: 0, at: 1, expires: 2, used: false });
    record
}

fn event(text: &str) -> HistoryEvent {
    HistoryEvent::new(5, "loop:1:2:3:4".into(), "formatted", text.into())
}

fn wanted(limit: u32, volume: Option<&str>) -> Wanted {
    Wanted { limit, volume: volume.map(str::to_owned), ..Wanted::default() }
}

#[test]
fn what_is_put_is_there_after_a_reopen() {
    let directory = tempfile::tempdir().expect("directory");
    let (mut store, opened) = SqliteStore::open(directory.path(), 1).expect("open");
    assert_eq!(opened, Opened::Whole);
    store.put(&record(), &[event("one")]).expect("put");
    drop(store);
    let (store, _) = SqliteStore::open(directory.path(), 2).expect("reopen");
    assert_eq!(store.get(&record().id).expect("get"), Some(record()));
    let history = store.history(&wanted(10, None)).expect("history");
    assert_eq!((history.len(), history[0].text.as_str()), (1, "one"));
}

#[test]
fn a_second_agent_on_the_same_directory_is_refused() {
    let directory = tempfile::tempdir().expect("directory");
    let (_store, _) = SqliteStore::open(directory.path(), 1).expect("open");
    let error = SqliteStore::open(directory.path(), 1).err().expect("refused").to_string();
    assert!(error.contains("another agent uses it"), "{error}");
}

#[test]
fn a_damaged_file_is_kept_aside_and_never_written_to() {
    let directory = tempfile::tempdir().expect("directory");
    drop(SqliteStore::open(directory.path(), 1).expect("open"));
    let path = directory.path().join(FILE);
    let garbage = vec![0x5a; 8192];
    fs::write(&path, &garbage).expect("damage");
    let (store, opened) = SqliteStore::open(directory.path(), 77).expect("degraded start");
    let Opened::SetAside(aside) = opened else { panic!("not noticed") };
    assert_eq!(fs::read(aside).expect("kept"), garbage);
    assert_eq!(store.list().expect("empty"), []);
}

#[test]
fn nothing_that_was_set_aside_is_overwritten() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join(FILE);
    let mut kept = Vec::new();
    for byte in [0x5a, 0x5b, 0x5c] {
        fs::write(&path, [byte; 8192]).expect("damage");
        let mut log = path.clone().into_os_string();
        log.push("-wal");
        fs::write(log, [byte; 100]).expect("log");
        let (_, opened) = SqliteStore::open(directory.path(), 77).expect("degraded start");
        let Opened::SetAside(aside) = opened else { panic!("not noticed") };
        kept.push((aside, byte));
    }
    for (aside, byte) in kept {
        assert_eq!(fs::read(&aside).expect("kept"), [byte; 8192]);
        let mut log = aside.into_os_string();
        log.push("-wal");
        assert_eq!(fs::read(log).expect("kept"), [byte; 100]);
    }
}

#[test]
fn a_page_that_was_zeroed_is_noticed() {
    let directory = tempfile::tempdir().expect("directory");
    let (mut store, _) = SqliteStore::open(directory.path(), 1).expect("open");
    for i in 0..200 {
        let mut each = record();
        each.id = format!("dm:{i}").into();
        store.put(&each, &[]).expect("put");
    }
    drop(store);
    let path = directory.path().join(FILE);
    let file = fs::OpenOptions::new().write(true).open(&path).expect("file");
    file.write_all_at(&[0; 4096], 4096).expect("damage");
    let (_, opened) = SqliteStore::open(directory.path(), 77).expect("degraded start");
    assert!(matches!(opened, Opened::SetAside(_)), "{opened:?}");
}

#[test]
fn a_newer_version_is_left_alone() {
    let directory = tempfile::tempdir().expect("directory");
    drop(SqliteStore::open(directory.path(), 1).expect("open"));
    let path = directory.path().join(FILE);
    let connection = Connection::open(&path).expect("connect");
    connection.pragma_update(None, "user_version", 99).expect("version");
    drop(connection);
    let error = SqliteStore::open(directory.path(), 2).err().expect("refused");
    assert!(matches!(error, StoreError::Version { found: 99, .. }), "{error}");
    assert!(path.exists());
}

#[test]
fn the_history_is_bounded_and_the_newest_is_kept() {
    let directory = tempfile::tempdir().expect("directory");
    let (mut store, _) = SqliteStore::open(directory.path(), 1).expect("open");
    let many: Vec<_> = (0..HISTORY_LINES + 10).map(|i| event(&i.to_string())).collect();
    store.append_history(&many).expect("tell");
    let all = store.history(&wanted(u32::MAX, None)).expect("history");
    assert_eq!(u32::try_from(all.len()), Ok(HISTORY_LINES));
    assert_eq!(all.last().map(|event| event.text.as_str()), Some("20009"));
    assert_eq!(store.history(&wanted(2, Some("nobody"))).expect("history"), []);
}

#[test]
fn history_begins_where_it_is_wanted_from() {
    let directory = tempfile::tempdir().expect("directory");
    let (mut store, _) = SqliteStore::open(directory.path(), 0).expect("opened");
    for at in [10, 20, 30] {
        store.append_history(&[HistoryEvent::new(at, "a".into(), "k", String::new())]).expect("told");
    }
    let since = |since| Wanted { limit: 10, since, ..Wanted::default() };
    let times =
        |wanted| -> Vec<i64> { store.history(&wanted).expect("history").iter().map(|e| e.at).collect() };
    assert_eq!(times(since(20)), [20, 30]);
    assert_eq!(times(Wanted { after: 2, ..since(0) }), [30]);
}

#[test]
fn a_forgotten_volume_keeps_its_history_and_nothing_else() {
    let directory = tempfile::tempdir().expect("directory");
    let (mut store, _) = SqliteStore::open(directory.path(), 0).expect("opened");
    let mut record = Record::new("dm:a".into(), "dm".into(), false, 1);
    record.marks = vec![Mark { offset: 0, kind: MarkKind::Magic, bytes: vec![1] }];
    store.put(&record, &[]).expect("stored");
    let told = HistoryEvent::new(1, "dm:a".into(), "k", String::new());
    store.forget(&record.id, &[told]).expect("forgotten");
    assert_eq!(store.get(&record.id).expect("read"), None);
    assert_eq!(store.history(&wanted(10, Some("dm:a"))).expect("history").len(), 1);
}

#[test]
fn a_setting_outlives_the_store() {
    let directory = tempfile::tempdir().expect("directory");
    let (mut store, _) = SqliteStore::open(directory.path(), 0).expect("opened");
    assert_eq!(store.setting("mode").expect("read"), None);
    store.set("mode", "x", &[]).expect("set");
    store.set("mode", "y", &[]).expect("set");
    drop(store);
    let (store, _) = SqliteStore::open(directory.path(), 0).expect("opened");
    assert_eq!(store.setting("mode").expect("read").as_deref(), Some("y"));
}

/// Thirty volumes and a setting, closed.
fn full(directory: &Path) -> Vec<Record> {
    let (mut store, _) = SqliteStore::open(directory, 1).expect("open");
    let records: Vec<Record> = (0..30)
        .map(|i| Record { id: format!("dm:{i:02}").into(), ever_formatted: i % 2 == 0, ..record() })
        .collect();
    for record in &records {
        store.put(record, &[event("formatted")]).expect("put");
    }
    store.set("mode", "enforce", &[]).expect("set");
    records
}

/// The file of [`full`], and what it holds.
static STORED: LazyLock<(Vec<u8>, Vec<Record>)> = LazyLock::new(|| {
    let directory = tempfile::tempdir().expect("directory");
    let records = full(directory.path());
    (fs::read(directory.path().join(FILE)).expect("database"), records)
});

#[derive(Clone, Debug)]
enum Damage {
    Flip(Vec<(Index, u8)>),
    Zero(Index, usize),
    Truncate(Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        8 => vec((any::<Index>(), 0_u8..8), 1..4).prop_map(Damage::Flip),
        1 => (any::<Index>(), 1_usize..5000).prop_map(|(at, length)| Damage::Zero(at, length)),
        1 => any::<Index>().prop_map(Damage::Truncate),
    ]
}

impl Damage {
    fn of(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        match self {
            Self::Flip(bits) => {
                for (at, bit) in bits {
                    let at = at.index(bytes.len());
                    bytes[at] ^= 1 << bit;
                }
            }
            Self::Zero(at, length) => {
                let at = at.index(bytes.len());
                let end = bytes.len().min(at + length);
                bytes[at..end].fill(0);
            }
            Self::Truncate(length) => bytes.truncate(length.index(bytes.len())),
        }
        bytes
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Refused, set aside as it was found, or all that was stored is there: nothing else.
    #[test]
    fn no_damage_is_taken_for_a_record(damage in damage()) {
        let (stored, records) = &*STORED;
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join(FILE);
        let damaged = damage.of(stored.clone());
        fs::write(&path, &damaged).expect("damage");
        match SqliteStore::open(directory.path(), 77) {
            Ok((store, Opened::Whole)) => {
                prop_assert_eq!(&store.list().expect("list"), records);
                prop_assert_eq!(store.setting("mode").expect("setting"), Some("enforce".to_owned()));
            }
            Ok((store, Opened::SetAside(aside))) => {
                prop_assert!(store.list().expect("list").is_empty());
                prop_assert_eq!(fs::read(aside).expect("kept"), damaged);
            }
            Err(error) => {
                let text = error.to_string();
                prop_assert!(text.contains(path.to_str().expect("a path")), "{} names no file", text);
                prop_assert_eq!(fs::read(&path).expect("left alone"), damaged);
            }
        }
    }
}

#[test]
fn what_a_version_without_sums_stored_gets_them() {
    let directory = tempfile::tempdir().expect("directory");
    let records = full(directory.path());
    let connection = Connection::open(directory.path().join(FILE)).expect("connect");
    connection
        .execute_batch(
            "ALTER TABLE volumes DROP COLUMN sum; ALTER TABLE settings DROP COLUMN sum; ALTER TABLE volumes \
             DROP COLUMN generation; ALTER TABLE volumes DROP COLUMN last_seen; \
             DROP INDEX events_that_pass; DROP INDEX events_that_repeat; ALTER TABLE events DROP COLUMN count; \
             ALTER TABLE events DROP COLUMN first; ALTER TABLE events DROP COLUMN by_operator; \
             ALTER TABLE events DROP COLUMN repeats; DROP TABLE copies; ALTER TABLE volumes DROP COLUMN ends; ALTER TABLE events DROP COLUMN pid; DROP TABLE names; \
             ALTER TABLE volumes DROP COLUMN medium; PRAGMA user_version = 4;",
        )
        .expect("as of version 4");
    drop(connection);
    let (store, opened) = SqliteStore::open(directory.path(), 2).expect("migrated");
    assert_eq!((opened, store.list().expect("list")), (Opened::Whole, records));
}

#[test]
fn a_directory_in_its_place_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().expect("directory");
    fs::create_dir(directory.path().join(FILE)).expect("directory");
    let error = SqliteStore::open(directory.path(), 1).err().expect("refused").to_string();
    assert!(error.contains(FILE), "{error}");
    assert!(directory.path().join(FILE).is_dir());
}

fn loss(store: &SqliteStore) -> Option<Loss> {
    let text = store.setting(Loss::SETTING).expect("read")?;
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn a_loss_stays_on_disk_until_it_is_ended() {
    let directory = tempfile::tempdir().expect("directory");
    drop(SqliteStore::open(directory.path(), 1).expect("open"));
    fs::write(directory.path().join(FILE), vec![0x5a; 8192]).expect("damage");
    for now in [77, 78] {
        let (store, _) = SqliteStore::open(directory.path(), now).expect("open");
        let loss = loss(&store).expect("a loss");
        assert!(loss.at == 77 && loss.cause.contains("volumes.damaged-77"), "{loss:?}");
    }
    let (mut store, _) = SqliteStore::open(directory.path(), 79).expect("open");
    store.set(Loss::SETTING, "null", &[]).expect("ended");
    drop(store);
    assert_eq!(loss(&SqliteStore::open(directory.path(), 80).expect("open").0), None);
}

#[test]
fn whoever_was_stopped_while_a_database_was_set_aside_has_lost_it_all_the_same() {
    let directory = tempfile::tempdir().expect("directory");
    drop(SqliteStore::open(directory.path(), 1).expect("open"));
    fs::write(directory.path().join(FILE), vec![0x5a; 8192]).expect("damage");
    set_aside(&directory.path().join(FILE), 77).expect("set aside");
    let (store, _) = SqliteStore::open(directory.path(), 78).expect("open");
    assert!(loss(&store).is_some_and(|loss| loss.cause.contains("volumes.damaged-77")));
    drop(store);
    // The new one was made, and nothing is in it yet.
    for file in fs::read_dir(directory.path()).expect("list") {
        let path = file.expect("entry").path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(FILE)) {
            fs::remove_file(path).expect("removed");
        }
    }
    fs::write(directory.path().join(FILE), "").expect("empty");
    let (store, _) = SqliteStore::open(directory.path(), 79).expect("open");
    assert!(loss(&store).is_some());
}

/// The agent was killed between the two: the file alone may be sound, and lacks what its log had.
#[test]
fn a_database_whose_log_alone_was_set_aside_is_lost() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join(FILE);
    let (mut store, _) = SqliteStore::open(directory.path(), 1).expect("open");
    store.put(&record(), &[]).expect("put");
    drop(store);
    fs::write(directory.path().join("volumes.damaged-77-wal"), "log").expect("log");
    let (store, _) = SqliteStore::open(directory.path(), 78).expect("open");
    assert!(store.list().expect("list").is_empty() && loss(&store).is_some());
    assert!(directory.path().join("volumes.damaged-77").exists() && path.exists());
    drop(store);
    let (store, _) = SqliteStore::open(directory.path(), 79).expect("open");
    assert_eq!(loss(&store).map(|loss| loss.at), Some(78), "not once more");
}

#[test]
fn a_database_that_is_missing_is_lost_where_another_agent_had_one() {
    let directory = tempfile::tempdir().expect("directory");
    let (store, _) = SqliteStore::open_after(directory.path(), 5, true).expect("open");
    let found = loss(&store).expect("a loss");
    assert!(found.at == 5 && found.cause.contains("was missing"), "{found:?}");
    drop(store);
    let directory = tempfile::tempdir().expect("directory");
    drop(SqliteStore::open_after(directory.path(), 5, false).expect("open"));
    let (store, _) = SqliteStore::open_after(directory.path(), 6, true).expect("open");
    assert_eq!(loss(&store), None, "it is there");
}

#[test]
fn what_was_not_seen_for_long_and_holds_nothing_is_forgotten() {
    let directory = tempfile::tempdir().expect("directory");
    let (mut store, _) = SqliteStore::open(directory.path(), 1).expect("open");
    let plain = |id: &str| Record::new(id.into(), "dm".into(), false, 1);
    let kept = [
        Record { ever_formatted: true, ..plain("dm:was-formatted") },
        Record { state: State::Formatted, ..plain("dm:formatted") },
        Record { state: State::Formatting, ..plain("dm:formatting") },
        Record { state: State::Exempt, ..plain("dm:exempt") },
        Record { state: State::Permitted, ..plain("dm:permitted") },
        Record { armed: Some("boot-1".into()), ..plain("dm:armed") },
        Record { weak: true, ..plain("path:weak") },
        Record { audit: true, ..plain("dm:audit") },
        Record { strict: true, ..plain("dm:strict") },
        plain("dm:present"),
    ];
    for record in kept.iter().chain([&plain("dm:gone"), &Record { state: State::Blank, ..plain("dm:blank") }])
    {
        store.put(record, &[event("one")]).expect("put");
    }
    let present = VolumeId::from("dm:present");
    let now = 1 << 40;
    assert_eq!(store.prune(&[&present], now, 1).expect("pruned"), 0, "all were seen since");
    assert_eq!(store.prune(&[&present], now, now).expect("pruned"), 2);
    let mut left: Vec<VolumeId> = store.list().expect("list").into_iter().map(|record| record.id).collect();
    let mut wanted: Vec<VolumeId> = kept.into_iter().map(|record| record.id).collect();
    left.sort();
    wanted.sort();
    assert_eq!(left, wanted);
}

#[test]
fn a_directory_that_was_there_keeps_its_mode_and_what_is_stored_is_roots() {
    let mode = |path: &Path| fs::metadata(path).expect("metadata").permissions().mode() & 0o7777;
    let parent = tempfile::tempdir().expect("directory");
    let there = parent.path().join("there");
    fs::create_dir(&there).expect("directory");
    fs::set_permissions(&there, fs::Permissions::from_mode(0o755)).expect("mode");
    for (directory, wanted) in [(there, 0o755), (parent.path().join("made"), 0o700)] {
        let (mut store, _) = SqliteStore::open(&directory, 1).expect("open");
        store.put(&record(), &[]).expect("put");
        assert_eq!(mode(&directory), wanted);
        for file in [FILE, "volumes.sqlite3-wal", "volumes.sqlite3-shm", "lock"] {
            assert_eq!(mode(&directory.join(file)), 0o600, "{file}");
        }
    }
}

fn refusal(at: Seconds, comm: &str, reason: &str, pid: u32) -> HistoryEvent {
    let refusal = serde_json::json!({
        "reason": reason, "operation": "write", "offset": pid, "length": 512, "device": "dm-3", "pid": pid,
        "comm": comm, "exe": null, "cgroup": 1,
    });
    let refusal = Some(serde_json::from_value(refusal).expect("a refusal"));
    HistoryEvent { refusal, ..HistoryEvent::new(at, "dm:a".into(), "denied", format!("pid {pid}")) }
}

#[test]
fn one_nights_retries_are_one_line_and_push_nothing_out() {
    let directory = tempfile::tempdir().expect("directory");
    let (mut store, _) = SqliteStore::open(directory.path(), 0).expect("opened");
    store.keep_lines(10);
    store.append_history(&[event("before")]).expect("told");
    let night: Vec<_> =
        (0..1000_u32).map(|i| refusal(100 + 30 * i64::from(i), "mkfs.ext4", "formatter", i)).collect();
    for told in night.chunks(7) {
        store.append_history(told).expect("told");
    }
    let others = [("mkfs.xfs", "formatter"), ("mkfs.ext4", "identity")];
    for (comm, reason) in others {
        store.append_history(&[refusal(200, comm, reason, 1)]).expect("told");
    }
    let history = store.history(&wanted(100, None)).expect("history");
    let seen: Vec<_> = history.iter().map(|e| (e.text.as_str(), e.count, e.first, e.at)).collect();
    let last = 100 + 30 * 999;
    assert_eq!(
        seen,
        [("before", 1, 5, 5), ("pid 999", 1000, 100, last), ("pid 1", 1, 200, 200), ("pid 1", 1, 200, 200)]
    );
    assert_eq!(history[1].refusal.as_ref().map(|refusal| refusal.pid), Some(999), "the newest facts");
    // Whoever follows the history is told of each.
    let newest = history.iter().map(|event| event.id).max().expect("a number");
    store.append_history(&[refusal(last + 1, "mkfs.ext4", "formatter", 7)]).expect("told");
    let more = store.history(&Wanted { after: newest, ..wanted(100, None) }).expect("history");
    assert_eq!(more.iter().map(|event| event.count).collect::<Vec<_>>(), [1001]);
    // Of one process it is the first try that tells what it is about.
    let wider = HistoryEvent { text: "wider".to_owned(), ..refusal(last + 2, "mkfs.ext4", "formatter", 7) };
    store.append_history(&[wider]).expect("told");
    let history = store.history(&wanted(100, None)).expect("history");
    let newest = history.last().map(|event| (event.text.as_str(), event.count, event.at));
    assert_eq!(newest, Some(("pid 7", 1002, last + 2)));
    // Another day is another line, and so is a clock that was set back.
    for at in [100 + ONE_LINE, 50] {
        store.append_history(&[refusal(at, "mkfs.ext4", "formatter", 8)]).expect("told");
        let history = store.history(&wanted(100, None)).expect("history");
        assert_eq!(history.last().map(|event| (event.count, event.first)), Some((1, at)));
    }
}

#[test]
fn two_commands_of_one_program_are_two_lines() {
    let directory = tempfile::tempdir().expect("directory");
    let (mut store, _) = SqliteStore::open(directory.path(), 0).expect("opened");
    for command in [0x04, 0x2a, 0x2a] {
        let mut event = refusal(100, "sg_raw", "passthrough", 1);
        let refusal = event.refusal.as_mut().expect("a refusal");
        (refusal.operation, refusal.length) = ("passthrough".to_owned(), command);
        store.append_history(&[event]).expect("told");
    }
    let history = store.history(&wanted(100, None)).expect("history");
    assert_eq!(history.iter().map(|event| event.count).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn what_operators_did_is_kept_for_good() {
    let directory = tempfile::tempdir().expect("directory");
    let (mut store, _) = SqliteStore::open(directory.path(), 0).expect("opened");
    store.keep_lines(10);
    store
        .append_history(&[event("permitted by user 7").by_operator(), event("one"), event("two")])
        .expect("told");
    for i in 0..30 {
        store.append_history(&[event(&i.to_string())]).expect("told");
    }
    let history = store.history(&wanted(100, None)).expect("history");
    assert_eq!((history.len(), history[0].text.as_str()), (11, "permitted by user 7"));
    assert!(history[0].by_operator && !history[1].by_operator);
    assert_eq!(history[1].text, "20");
}

#[test]
fn what_operators_did_under_an_earlier_version_is_kept_as_well() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join(FILE);
    let connection = Connection::open(&path).expect("connect");
    for migration in &MIGRATIONS[..6] {
        connection.execute_batch(migration).expect("migrated");
    }
    connection.pragma_update(None, "user_version", 6).expect("version");
    let lines = [
        ("permitted", "permitted by user 0: x"),
        ("formatted", "holds ext4: adopted by user 0"),
        ("formatted", "holds ext4: formatted by mkfs.ext4"),
        ("denied", "mkfs.ext4 (pid 1) was refused"),
    ];
    for (kind, text) in lines {
        connection
            .execute("INSERT INTO events (at, volume, kind, text) VALUES (9, 'dm:a', ?1, ?2)", [kind, text])
            .expect("inserted");
    }
    drop(connection);
    let (store, opened) = SqliteStore::open(directory.path(), 10).expect("migrated");
    assert_eq!(opened, Opened::Whole);
    let history = store.history(&wanted(10, None)).expect("history");
    assert_eq!(history.iter().map(|event| event.by_operator).collect::<Vec<_>>(), [true, true, false, false]);
    assert!(history.iter().all(|event| event.count == 1 && event.first == 9), "{history:?}");
}

/// What the version before the column for it has stored.
#[test]
fn a_refusal_of_an_earlier_version_is_repeated_by_its_process() {
    let directory = tempfile::tempdir().expect("directory");
    let (mut store, _) = SqliteStore::open(directory.path(), 0).expect("opened");
    store.append_history(&[refusal(100, "mkfs.ext4", "formatter", 7)]).expect("told");
    store
        .connection
        .execute_batch(
            "ALTER TABLE events DROP COLUMN pid; DROP TABLE names; ALTER TABLE volumes DROP COLUMN medium; \
             PRAGMA user_version = 10;",
        )
        .expect("as of version 10");
    drop(store);
    let (mut store, _) = SqliteStore::open(directory.path(), 1).expect("migrated");
    let wider = HistoryEvent { text: "wider".to_owned(), ..refusal(102, "mkfs.ext4", "formatter", 7) };
    store.append_history(&[wider]).expect("told");
    let history = store.history(&wanted(100, None)).expect("history");
    let seen: Vec<_> = history.iter().map(|event| (event.text.as_str(), event.count)).collect();
    assert_eq!(seen, [("pid 7", 2)], "the first try tells what it is about");
}

#[test]
fn a_copy_is_kept_with_its_record_and_a_flipped_bit_in_it_is_noticed() {
    let directory = tempfile::tempdir().expect("directory");
    let (mut store, _) = SqliteStore::open(directory.path(), 0).expect("opened");
    let id = record().id;
    let copy = StoredCopy { generation: u64::MAX, at: 5, size: 1 << 40, packed: vec![7; 100] };
    store.put_copies(&[(id.clone(), copy.clone())]).expect("nothing is on record");
    assert_eq!(store.copy(&id).expect("read"), None);
    store.put(&record(), &[]).expect("put");
    for packed in [vec![1], vec![7; 100]] {
        store.put_copies(&[(id.clone(), StoredCopy { packed, ..copy.clone() })]).expect("put");
    }
    // A record that is stored again keeps it.
    store.put(&record(), &[]).expect("put");
    drop(store);
    let (store, _) = SqliteStore::open(directory.path(), 0).expect("opened");
    assert_eq!(store.copy(&id).expect("read"), Some(copy));
    assert_eq!(store.copied(&id).expect("read"), Some((u64::MAX, 5)));
    store.connection.execute("UPDATE copies SET packed = zeroblob(100)", []).expect("damaged");
    assert!(store.copy(&id).is_err());
    drop(store);
    let (mut store, opened) = SqliteStore::open(directory.path(), 0).expect("opened");
    assert_eq!(opened, Opened::Whole, "for a copy no record is lost");
    store.forget(&id, &[]).expect("forgotten");
    assert_eq!(store.copy(&id).expect("read"), None);
}

/// A state directory as the first version left it.
fn of_the_first_version() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("directory");
    let connection = Connection::open(directory.path().join(FILE)).expect("made");
    connection.execute_batch(include_str!("0.1.0.sql")).expect("filled");
    directory
}

/// What is refused on a volume by its record.
fn protection(record: &Record) -> (State, Option<Content>, Vec<Mark>, bool, bool, bool) {
    let Record { state, content, marks, ever_formatted, mounted, strict, .. } = record.clone();
    (state, content, marks, ever_formatted, mounted, strict)
}

#[test]
fn a_database_of_the_first_version_loses_nothing() {
    let directory = of_the_first_version();
    let (mut store, opened) = SqliteStore::open(directory.path(), 2).expect("migrated");
    assert_eq!(opened, Opened::Whole);
    let records = store.list().expect("records");
    assert_eq!(records.len(), 11);
    assert!(records.iter().all(|record| record.medium.is_none()));
    let states = |state| records.iter().filter(|record| record.state == state).count();
    assert_eq!((states(State::Formatted), states(State::Permitted), states(State::Exempt)), (7, 1, 1));
    // Each is found under its new name, with what it was protected from, its history and its old name.
    let old: VolumeId = "iscsi:iqn.2010-01.com.array:host-1,lun=5".into();
    let new: VolumeId = "scsi:naa.6001405f0e7a4d1c2b3a4d5e6f708192".into();
    let before = store.get(&old).expect("read").expect("a record");
    let renamed = Record { id: new.clone(), ..before.clone() };
    store.replace(std::slice::from_ref(&old), &renamed, &[]).expect("renamed");
    drop(store);
    let (store, opened) = SqliteStore::open(directory.path(), 3).expect("opened");
    assert_eq!((opened, store.get(&old).expect("read")), (Opened::Whole, None));
    let after = store.get(&new).expect("read").expect("a record");
    assert_eq!(protection(&after), protection(&before));
    let names: BTreeMap<VolumeId, VolumeId> = store.names().expect("names").into_iter().collect();
    assert_eq!((names.get(&old), names.get(&new)), (Some(&new), Some(&new)));
    let history = store.history(&wanted(10, Some(new.as_str()))).expect("history");
    assert_eq!(history.len(), 1, "its history goes with it");
}

#[test]
fn names_are_kept_with_their_volume_and_a_flipped_bit_in_one_is_noticed() {
    let directory = tempfile::tempdir().expect("directory");
    let (mut store, _) = SqliteStore::open(directory.path(), 1).expect("open");
    let (one, other) = (record(), Record { id: "dm:other".into(), ..record() });
    store.put_all(&[(&one, &[]), (&other, &[])]).expect("put");
    let name = |name: &str, record: &Record| (VolumeId::from(name), record.id.clone());
    store
        .put_names(&[
            name("a", &one),
            name("b", &one),
            name("b", &other),
            name("c", &Record { id: "nobody".into(), ..record() }),
        ])
        .expect("named");
    let names = |store: &SqliteStore| -> BTreeMap<VolumeId, VolumeId> {
        store.names().expect("names").into_iter().collect()
    };
    let known = names(&store);
    assert_eq!((known.get(&"a".into()), known.get(&"b".into())), (Some(&one.id), Some(&other.id)));
    assert_eq!(known.get(&"c".into()), None, "of what is not on record");
    // Those of one that is merged go with it; those of one that is forgotten go.
    store.replace(std::slice::from_ref(&other.id), &one, &[]).expect("merged");
    assert_eq!(names(&store).get(&other.id), Some(&one.id));
    let many: Vec<_> = (0..100).map(|number| name(&format!("n{number}"), &one)).collect();
    store.put_names(&many).expect("named");
    assert_eq!(names(&store).len(), 1 + NAMES as usize, "bounded");
    drop(store);
    let connection = Connection::open(directory.path().join(FILE)).expect("opened");
    connection.execute("UPDATE names SET name = 'flipped' WHERE name = 'n99'", []).expect("damage");
    drop(connection);
    let (_, opened) = SqliteStore::open(directory.path(), 77).expect("degraded start");
    assert!(matches!(opened, Opened::SetAside(_)), "{opened:?}");
    let (mut store, _) = SqliteStore::open(directory.path(), 78).expect("open");
    store.put(&one, &[]).expect("put");
    store.put_names(&[name("a", &one)]).expect("named");
    store.forget(&one.id, &[]).expect("forgotten");
    assert!(names(&store).is_empty());
}

#[test]
fn the_medium_of_a_place_is_stored_and_part_of_its_sum() {
    let directory = tempfile::tempdir().expect("directory");
    let (mut store, _) = SqliteStore::open(directory.path(), 1).expect("open");
    let placed = Record { medium: Some("boot/5".into()), ..record() };
    store.put(&placed, &[]).expect("put");
    drop(store);
    let (store, _) = SqliteStore::open(directory.path(), 2).expect("open");
    assert_eq!(store.get(&placed.id).expect("read"), Some(placed));
    drop(store);
    let connection = Connection::open(directory.path().join(FILE)).expect("opened");
    connection.execute("UPDATE volumes SET medium = 'boot/6'", []).expect("damage");
    drop(connection);
    let (_, opened) = SqliteStore::open(directory.path(), 77).expect("degraded start");
    assert!(matches!(opened, Opened::SetAside(_)), "{opened:?}");
}
