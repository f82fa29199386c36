use std::os::unix::fs::FileExt;

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
    record.permit = Some(Permit { reason: "restore".into(), uid: 0, at: 1, expires: 2 });
    record
}

fn event(text: &str) -> HistoryEvent {
    HistoryEvent {
        id: 0,
        at: 5,
        volume: "loop:1:2:3:4".into(),
        kind: "formatted".into(),
        text: text.into(),
        refusal: None,
    }
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
    let many: Vec<_> = (0..MAX_HISTORY + 10).map(|i| event(&i.to_string())).collect();
    store.tell(&many).expect("tell");
    let all = store.history(&wanted(u32::MAX, None)).expect("history");
    assert_eq!(i64::try_from(all.len()), Ok(MAX_HISTORY));
    assert_eq!(all.last().map(|event| event.text.as_str()), Some("20009"));
    assert_eq!(store.history(&wanted(2, Some("nobody"))).expect("history"), []);
}

#[test]
fn history_begins_where_it_is_wanted_from() {
    let directory = tempfile::tempdir().expect("directory");
    let (mut store, _) = SqliteStore::open(directory.path(), 0).expect("opened");
    for at in [10, 20, 30] {
        let event = HistoryEvent {
            id: 0,
            at,
            volume: "a".into(),
            kind: "k".into(),
            text: String::new(),
            refusal: None,
        };
        store.tell(&[event]).expect("told");
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
    let told = HistoryEvent {
        id: 0,
        at: 1,
        volume: "dm:a".into(),
        kind: "k".into(),
        text: String::new(),
        refusal: None,
    };
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
