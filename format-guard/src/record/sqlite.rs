//! The embedded store: `SQLite`, one writer, every commit on disk before it returns.
//!
//! A damaged file is never written to: it is set aside under a dated name and the start is degraded. Damage
//! that shows later, when a record is read, is an error of that record alone.

mod sum;

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    panic::resume_unwind,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use format_guard_common::Operation;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, config::DbConfig, params};

use super::{
    Ends, Record, Seconds, State,
    history::HistoryEvent,
    store::{Loss, Store, StoreError, StoredCopy, Wanted},
};
use crate::{
    config::HISTORY_LINES,
    fault::{self, Point},
    volume::{
        VolumeId,
        marks::{Mark, MarkKind},
    },
};

/// File below the state directory.
const FILE: &str = "volumes.sqlite3";
/// For how long refusals of one kind are one line of the history, in seconds: a day.
const ONE_LINE: Seconds = 24 * 3600;

/// The version of the schema that is written.
const NEWEST: i64 = MIGRATIONS.len().cast_signed() as i64;
/// Each brings the schema from the version of its index to the next.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE volumes (
        id         TEXT PRIMARY KEY,
        origin     TEXT NOT NULL,
        weak       INTEGER NOT NULL,
        state      TEXT NOT NULL CHECK (state IN
                   ('unverified', 'blank', 'formatting', 'formatted', 'permitted', 'exempt')),
        since      INTEGER NOT NULL,
        cause      TEXT NOT NULL,
        content    TEXT,
        ever_formatted INTEGER NOT NULL,
        mounted    INTEGER NOT NULL,
        formatter  TEXT,
        discrepancy TEXT,
        first_seen INTEGER NOT NULL,
        boot       TEXT NOT NULL
    ) STRICT;
    CREATE TABLE marks (
        volume  TEXT NOT NULL REFERENCES volumes (id) ON DELETE CASCADE,
        offset  INTEGER NOT NULL,
        kind    TEXT NOT NULL CHECK (kind IN ('magic', 'uuid')),
        bytes   BLOB NOT NULL CHECK (length(bytes) BETWEEN 1 AND 16),
        PRIMARY KEY (volume, offset)
    ) STRICT;
    CREATE TABLE permits (
        volume  TEXT PRIMARY KEY REFERENCES volumes (id) ON DELETE CASCADE,
        permit  TEXT NOT NULL
    ) STRICT;
    CREATE TABLE events (
        id      INTEGER PRIMARY KEY AUTOINCREMENT,
        at      INTEGER NOT NULL,
        volume  TEXT NOT NULL,
        kind    TEXT NOT NULL,
        text    TEXT NOT NULL,
        refusal TEXT
    ) STRICT;
    CREATE INDEX events_of_volume ON events (volume, id);
",
    "
    ALTER TABLE volumes ADD COLUMN audit INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE settings (
        name   TEXT PRIMARY KEY,
        value  TEXT NOT NULL
    ) STRICT;
    CREATE INDEX events_by_time ON events (at);
",
    "
    ALTER TABLE volumes ADD COLUMN strict INTEGER NOT NULL DEFAULT 0;
",
    // What an older version armed may have been formatted since.
    "
    ALTER TABLE volumes ADD COLUMN armed TEXT;
    UPDATE volumes SET armed = boot WHERE state IN ('blank', 'permitted');
",
    "
    ALTER TABLE volumes ADD COLUMN sum INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE settings ADD COLUMN sum INTEGER NOT NULL DEFAULT 0;
",
    // Zero: of before there were generations.
    "
    ALTER TABLE volumes ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
",
    // When it was stored last, or found present when others were forgotten. No part of the sum: at most a
    // record that is worth little is forgotten by a wrong one.
    "
    ALTER TABLE volumes ADD COLUMN last_seen INTEGER NOT NULL DEFAULT 0;
    UPDATE volumes SET last_seen = unixepoch();
",
    // `repeats`: lines that tell of the same kind of refusal have the same.
    "
    ALTER TABLE events ADD COLUMN count INTEGER NOT NULL DEFAULT 1;
    ALTER TABLE events ADD COLUMN first INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE events ADD COLUMN by_operator INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE events ADD COLUMN repeats TEXT;
    UPDATE events SET first = at;
    UPDATE events SET by_operator = 1
        WHERE kind IN ('permitted', 'exempted', 'forgotten', 'untainted', 'mode', 'protect', 'detached')
        OR kind = 'formatted' AND text LIKE '%: adopted by user %';
    CREATE INDEX events_that_pass ON events (id) WHERE by_operator = 0;
    CREATE INDEX events_that_repeat ON events (repeats, id) WHERE repeats IS NOT NULL;
",
    // Apart from what is read at each start.
    "
    CREATE TABLE copies (
        volume     TEXT PRIMARY KEY REFERENCES volumes (id) ON DELETE CASCADE,
        generation INTEGER NOT NULL,
        at         INTEGER NOT NULL,
        size       INTEGER NOT NULL,
        packed     BLOB NOT NULL,
        sum        INTEGER NOT NULL
    ) STRICT;
",
    "
    ALTER TABLE volumes ADD COLUMN ends TEXT;
",
    // The process that a refusal tells of: looked at each time one is repeated.
    "
    ALTER TABLE events ADD COLUMN pid INTEGER;
    UPDATE events SET pid = json_extract(refusal, '$.pid') WHERE json_valid(refusal);
",
    // The other names by which a volume is known, and of one that is known by its place the attachment that
    // the rest is known of.
    "
    CREATE TABLE names (
        name    TEXT PRIMARY KEY,
        volume  TEXT NOT NULL REFERENCES volumes (id) ON DELETE CASCADE,
        at      INTEGER NOT NULL,
        sum     INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX names_of_volume ON names (volume, at);
    ALTER TABLE volumes ADD COLUMN medium TEXT;
",
];
/// Names that are kept of a volume at most: the oldest are dropped. Some are new at each attachment.
const NAMES: u32 = 32;

/// The first version that has sums: what an older one holds is taken as it is.
const SUMS: i64 = 5;

/// The embedded store.
pub struct SqliteStore {
    connection: Connection,
    /// Lines of history that are kept beside operators' doings.
    lines: u32,
    _lock: fs::File,
}

/// How the store was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// As it was left, or new.
    Whole,
    /// The old file was damaged and is kept at this path; the new one is empty.
    SetAside(PathBuf),
}

impl SqliteStore {
    /// Opens or makes the database below `directory`. A second agent on the same directory is refused.
    pub fn open(directory: &Path, now: Seconds) -> Result<(Self, Opened), StoreError> {
        Self::open_after(directory, now, false)
    }

    /// The same. `another`: something else proves that there was a database before; where there is none now,
    /// its records are lost. A loss is stored in the transaction that makes the new database ([`Loss`]).
    pub fn open_after(directory: &Path, now: Seconds, another: bool) -> Result<(Self, Opened), StoreError> {
        let path = directory.join(FILE);
        let unusable = |error: io::Error| StoreError::Unusable {
            path: directory.to_owned(),
            reason: format!("{error}; make the directory, writable for root, on a disk that is kept"),
        };
        // One that is there already is somebody's choice, and may hold more than our files: those alone are
        // root's.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(unusable)?;
        let private = |path: &Path| -> io::Result<fs::File> {
            let mut options = fs::OpenOptions::new();
            let file =
                options.write(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path)?;
            file.set_permissions(fs::Permissions::from_mode(0o600))?;
            Ok(file)
        };
        let lock = private(&directory.join("lock")).map_err(unusable)?;
        if !is_locked_in_time(&lock) {
            return Err(StoreError::Unusable {
                path: directory.to_owned(),
                reason: "another agent uses it; stop that one first (systemctl stop format-guard)".to_owned(),
            });
        }
        let aside = set_aside_before(directory).map_err(unusable)?;
        // Without its log it may be sound, and lack what was stored last.
        if let Some((aside, _)) = aside.iter().find(|(_, half)| **half)
            && path.exists()
        {
            fs::rename(&path, aside).map_err(unusable)?;
        }
        let existed = path.exists();
        // Also where whoever had set it aside was stopped before the new one was made.
        let missing = match aside.last_key_value() {
            Some((aside, _)) => Some(Loss::of_damaged(aside, now)),
            None => another.then(|| Loss::of_missing(&path, now)),
        };
        // SQLite gives its log the mode of the file. One that cannot be opened is told of below.
        if let Err(error) = private(&path) {
            tracing::debug!("{}: {error}", path.display());
        }
        match Self::connect(&path, missing.as_ref()) {
            Ok(connection) => Ok((Self { connection, lines: HISTORY_LINES, _lock: lock }, Opened::Whole)),
            Err(error) if existed && is_damage(&error) => {
                let aside = set_aside(&path, now).map_err(unusable)?;
                let connection = Self::connect(&path, Some(&Loss::of_damaged(&aside, now)))?;
                Ok((Self { connection, lines: HISTORY_LINES, _lock: lock }, Opened::SetAside(aside)))
            }
            Err(StoreError::Sqlite(error)) => Err(StoreError::Unusable {
                path,
                reason: format!("{error}; see that its file system is sound, writable and has room"),
            }),
            Err(error) => Err(error),
        }
    }

    /// Keeps so many lines of history beside operators' doings.
    pub fn keep_lines(&mut self, lines: u32) {
        self.lines = lines;
    }

    /// `missing`: what is lost if there is none.
    fn connect(path: &Path, missing: Option<&Loss>) -> Result<Connection, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let mut connection = Connection::open_with_flags(path, flags).map_err(|error| {
            if is_damage_code(&error) {
                return StoreError::Sqlite(error);
            }
            StoreError::Unusable { path: path.to_owned(), reason: error.to_string() }
        })?;
        // Nothing of the log is written into a file that may be damaged.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", "ON")?;
        // Earlier versions stored no sums, or not these columns.
        let current = version(&connection)? == NEWEST;
        check(path, || if current { check_sums(&connection) } else { Ok(()) })?;
        if !current {
            migrate(&mut connection, path, missing)?;
            check_sums(&connection)?;
        }
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
        Ok(connection)
    }
}

/// Whether nobody else has the lock. A child of an agent that was killed has it, too, until it has become
/// another program.
fn is_locked_in_time(lock: &fs::File) -> bool {
    const PATIENCE: Duration = Duration::from_secs(1);
    let start = Instant::now();
    while lock.try_lock().is_err() {
        if start.elapsed() > PATIENCE {
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
    true
}

/// Looks at how the file is built, beside a look at what the records say: two long ways through the same
/// pages.
fn check(path: &Path, beside: impl FnOnce() -> Result<(), StoreError>) -> Result<(), StoreError> {
    let structure = || -> Result<(), StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let own = Connection::open_with_flags(path, flags)?;
        let verdict: String = own.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
        if verdict == "ok" {
            return Ok(());
        }
        Err(StoreError::Damaged { reason: verdict })
    };
    thread::scope(|scope| {
        let structure = scope.spawn(structure);
        let records = beside();
        // That a check broke off says nothing about the file, which is set aside for damage alone.
        structure.join().unwrap_or_else(|panic| resume_unwind(panic))?;
        records
    })
}

fn version(connection: &Connection) -> Result<i64, StoreError> {
    Ok(connection.query_row("PRAGMA user_version", [], |row| row.get(0))?)
}

/// Looks at every record and setting: a flipped bit must not be found when it has been acted upon.
fn check_sums(connection: &Connection) -> Result<(), StoreError> {
    let damaged =
        |what: &str| Err(StoreError::Damaged { reason: format!("{what} differs from what was stored") });
    for_each(connection, |found| checked(found).map(drop)).or_else(|error| match error {
        StoreError::Row { volume, .. } => damaged(&volume),
        error => Err(error),
    })?;
    for (name, value, stored) in settings(connection)? {
        if sum::of_setting(&name, &value)? != stored {
            return damaged(&name);
        }
    }
    for (name, volume, stored) in names(connection)? {
        if sum::of_name(&name, &volume)? != stored {
            return damaged(&name);
        }
    }
    Ok(())
}

/// Every name that is no volume's id, with its volume and its sum.
fn names(connection: &Connection) -> Result<Vec<(String, String, i64)>, StoreError> {
    let mut select = connection.prepare("SELECT name, volume, sum FROM names")?;
    let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn ids(connection: &Connection) -> Result<Vec<String>, StoreError> {
    let mut select = connection.prepare("SELECT id FROM volumes")?;
    Ok(select.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?)
}

/// Every setting with its sum.
fn settings(connection: &Connection) -> Result<Vec<(String, String, i64)>, StoreError> {
    let mut select = connection.prepare("SELECT name, value, sum FROM settings")?;
    let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Gives sums to what a version without them stored.
fn add_sums(connection: &Connection) -> Result<(), StoreError> {
    for id in ids(connection)? {
        if let Some((record, _)) = read_unchecked(connection, &id)? {
            connection
                .prepare_cached("UPDATE volumes SET sum = ?2 WHERE id = ?1")?
                .execute(params![id, sum::of_record(&record)?])?;
        }
    }
    for (name, value, _) in settings(connection)? {
        connection
            .prepare_cached("UPDATE settings SET sum = ?2 WHERE name = ?1")?
            .execute(params![name, sum::of_setting(&name, &value)?])?;
    }
    Ok(())
}

fn is_damage(error: &StoreError) -> bool {
    match error {
        StoreError::Sqlite(error) => is_damage_code(error),
        StoreError::Damaged { .. } => true,
        _ => false,
    }
}

fn is_damage_code(error: &rusqlite::Error) -> bool {
    use rusqlite::{Error, ErrorCode};

    // A value of another type than its column's was never stored.
    let value = matches!(
        error,
        Error::FromSqlConversionFailure(..)
            | Error::InvalidColumnType(..)
            | Error::IntegralValueOutOfRange(..)
            | Error::Utf8Error(..)
    );
    value || matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// Renames the database, its log with it, to a dated name. The log first: what is left behind would be read
/// into the new database.
fn set_aside(path: &Path, now: Seconds) -> io::Result<PathBuf> {
    let with = |path: &Path, suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let names = (0_u32..).map(|more| {
        let more = if more == 0 { String::new() } else { format!("-{more}") };
        path.with_extension(format!("damaged-{now}{more}"))
    });
    let is_free = |name: &PathBuf| ["", "-wal", "-shm"].iter().all(|suffix| !with(name, suffix).exists());
    let aside = names.into_iter().find(is_free).ok_or(io::ErrorKind::AlreadyExists)?;
    for suffix in ["-wal", "-shm"] {
        match fs::rename(with(path, suffix), with(&aside, suffix)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fault::point(Point::AfterLogAside),
        }
    }
    fs::rename(path, &aside)?;
    Ok(aside)
}

/// Databases that were set aside earlier, by name; true: whoever did it was stopped between the log and the
/// file.
fn set_aside_before(directory: &Path) -> io::Result<BTreeMap<PathBuf, bool>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let Some(name) = name.to_str().filter(|name| name.starts_with("volumes.damaged-")) else { continue };
        let file = directory.join(name.trim_end_matches("-wal").trim_end_matches("-shm"));
        found.insert(file.clone(), !file.exists());
    }
    Ok(found)
}

/// `missing`: what is lost if it is new.
fn migrate(connection: &mut Connection, path: &Path, missing: Option<&Loss>) -> Result<(), StoreError> {
    let found = version(connection)?;
    if !(0..=NEWEST).contains(&found) {
        return Err(StoreError::Version { path: path.to_owned(), found, known: NEWEST });
    }
    // All of it or nothing: records are read with the columns of the newest version.
    let transaction = connection.transaction()?;
    for migration in MIGRATIONS.iter().skip(usize::try_from(found).unwrap_or(0)) {
        transaction.execute_batch(migration)?;
    }
    if found < SUMS {
        add_sums(&transaction)?;
    }
    if let Some(loss) = missing.filter(|_| found == 0) {
        put_setting(&transaction, Loss::SETTING, &json(&Some(loss))?)?;
    }
    transaction.pragma_update(None, "user_version", NEWEST)?;
    transaction.commit()?;
    Ok(())
}

fn json<T: serde::Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value)
        .map_err(|error| StoreError::Row { volume: String::new(), reason: error.to_string() })
}

fn from_json<T: serde::de::DeserializeOwned>(
    volume: &str,
    text: Option<String>,
) -> Result<Option<T>, StoreError> {
    text.map(|text| serde_json::from_str(&text))
        .transpose()
        .map_err(|error| StoreError::Row { volume: volume.to_owned(), reason: error.to_string() })
}

fn state_of(volume: &str, name: &str) -> Result<State, StoreError> {
    State::from_name(name)
        .ok_or_else(|| StoreError::Row { volume: volume.to_owned(), reason: format!("no state {name}") })
}

/// Columns of `volumes`, in the order in which [`raw`] reads them: by name each would be looked for.
const COLUMNS: &str = "id, origin, weak, first_seen, since, cause, ever_formatted, mounted, discrepancy, boot, audit, \
                       strict, armed, generation, state, content, formatter, sum, ends, medium";

/// A row of `volumes` as `SQLite` has it.
struct Raw {
    state: String,
    content: Option<String>,
    formatter: Option<String>,
    sum: i64,
    record: Record,
}

fn raw(row: &Row<'_>) -> rusqlite::Result<Raw> {
    let id: String = row.get(0)?;
    let mut record = Record::new(id.into(), row.get(1)?, row.get(2)?, row.get(3)?);
    record.since = row.get(4)?;
    record.cause = row.get(5)?;
    record.ever_formatted = row.get(6)?;
    record.mounted = row.get(7)?;
    record.discrepancy = row.get(8)?;
    record.boot = row.get(9)?;
    record.audit = row.get(10)?;
    record.strict = row.get(11)?;
    record.armed = row.get(12)?;
    record.generation = row.get::<_, i64>(13)?.unsigned_abs();
    record.ends = row.get::<_, Option<String>>(18)?.map(Ends::of);
    record.medium = row.get(19)?;
    Ok(Raw { state: row.get(14)?, content: row.get(15)?, formatter: row.get(16)?, sum: row.get(17)?, record })
}

/// Offset, kind and bytes of a mark as `SQLite` has it.
type RawMark = (i64, String, Vec<u8>);

fn raw_mark(row: &Row<'_>) -> rusqlite::Result<RawMark> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
}

/// A record of what is stored of it, and its sum.
fn assemble(found: Raw, permit: Option<String>, marks: Vec<RawMark>) -> Result<(Record, i64), StoreError> {
    let mut record = found.record;
    let volume = record.id.to_string();
    record.state = state_of(&volume, &found.state)?;
    record.content = from_json(&volume, found.content)?;
    record.formatter = from_json(&volume, found.formatter)?;
    record.permit = from_json(&volume, permit)?;
    for (offset, kind, bytes) in marks {
        let kind = MarkKind::from_name(&kind).ok_or_else(|| StoreError::Row {
            volume: volume.clone(),
            reason: format!("no kind of mark {kind}"),
        })?;
        record.marks.push(Mark { offset: offset.cast_unsigned(), kind, bytes });
    }
    Ok((record, found.sum))
}

/// The record, if it is as it was stored.
fn checked((record, stored): (Record, i64)) -> Result<Record, StoreError> {
    if sum::of_record(&record)? != stored {
        return Err(StoreError::Row {
            volume: record.id.to_string(),
            reason: "the record differs from what was stored".to_owned(),
        });
    }
    Ok(record)
}

/// A record as it is stored, if it is as it was stored.
fn read(connection: &Connection, volume: &str) -> Result<Option<Record>, StoreError> {
    read_unchecked(connection, volume)?.map(checked).transpose()
}

/// A record and its sum.
fn read_unchecked(connection: &Connection, volume: &str) -> Result<Option<(Record, i64)>, StoreError> {
    let found = connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM volumes WHERE id = ?1"))?
        .query_row([volume], raw)
        .optional()?;
    let Some(found) = found else { return Ok(None) };
    let permit: Option<String> = connection
        .prepare_cached("SELECT permit FROM permits WHERE volume = ?1")?
        .query_row([volume], |row| row.get(0))
        .optional()?;
    let mut marks = connection
        .prepare_cached("SELECT offset, kind, bytes FROM marks WHERE volume = ?1 ORDER BY rowid")?;
    let marks = marks.query_map([volume], raw_mark)?.collect::<Result<_, _>>()?;
    assemble(found, permit, marks).map(Some)
}

/// Every record and its sum, in one pass over each table: a query for each takes seconds where there are
/// many.
fn for_each(
    connection: &Connection,
    mut take: impl FnMut((Record, i64)) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut permits = connection.prepare("SELECT volume, permit FROM permits")?;
    let permits = permits.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let mut permits: HashMap<String, String> = permits.collect::<Result<_, _>>()?;
    let mut marks =
        connection.prepare("SELECT offset, kind, bytes, volume, rowid FROM marks ORDER BY volume")?;
    let mut marks = marks.query([])?;
    let mut next = marks.next()?.map(mark_of).transpose()?;
    let mut volumes = connection.prepare(&format!("SELECT {COLUMNS} FROM volumes ORDER BY id"))?;
    let mut volumes = volumes.query([])?;
    while let Some(row) = volumes.next()? {
        let found = raw(row)?;
        let id = found.record.id.as_str();
        let mut own = Vec::new();
        while let Some((volume, place, mark)) = next.take_if(|(volume, ..)| volume.as_str() <= id) {
            if volume == id {
                own.push((place, mark));
            }
            next = marks.next()?.map(mark_of).transpose()?;
        }
        // As they were stored: their order is part of the sum.
        own.sort_unstable_by_key(|(place, _)| *place);
        let permit = permits.remove(id);
        take(assemble(found, permit, own.into_iter().map(|(_, mark)| mark).collect())?)?;
    }
    Ok(())
}

/// A mark with its volume and its place among all.
fn mark_of(row: &Row<'_>) -> rusqlite::Result<(String, i64, RawMark)> {
    Ok((row.get(3)?, row.get(4)?, raw_mark(row)?))
}

/// Writes a record with its marks and permit.
fn write(transaction: &Connection, record: &Record) -> Result<(), StoreError> {
    let volume = record.id.as_str();
    transaction
        .prepare_cached(
            "INSERT INTO volumes (id, origin, weak, state, since, cause, content, mounted, formatter, \
             discrepancy, first_seen, boot, ever_formatted, audit, strict, armed, sum, generation, ends, medium, last_seen) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, \
             unixepoch()) \
             ON CONFLICT (id) DO UPDATE SET origin = ?2, weak = ?3, state = ?4, since = ?5, cause = ?6, \
             content = ?7, mounted = ?8, formatter = ?9, discrepancy = ?10, first_seen = ?11, boot = ?12, \
             ever_formatted = ?13, audit = ?14, strict = ?15, armed = ?16, sum = ?17, generation = ?18, ends = ?19, \
             medium = ?20, last_seen = unixepoch()",
        )?
        .execute(params![
            volume,
            record.origin,
            record.weak,
            record.state.name(),
            record.since,
            record.cause,
            record.content.as_ref().map(json).transpose()?,
            record.mounted,
            record.formatter.as_ref().map(json).transpose()?,
            record.discrepancy,
            record.first_seen,
            record.boot,
            record.ever_formatted,
            record.audit,
            record.strict,
            record.armed,
            sum::of_record(record)?,
            record.generation.cast_signed(),
            record.ends.as_ref().map(Ends::text),
            record.medium,
        ])?;
    transaction.prepare_cached("DELETE FROM marks WHERE volume = ?1")?.execute([volume])?;
    for mark in &record.marks {
        transaction
            .prepare_cached("INSERT INTO marks (volume, offset, kind, bytes) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![volume, mark.offset.cast_signed(), mark.kind.name(), mark.bytes])?;
    }
    transaction.prepare_cached("DELETE FROM permits WHERE volume = ?1")?.execute([volume])?;
    if let Some(permit) = &record.permit {
        transaction
            .prepare_cached("INSERT INTO permits (volume, permit) VALUES (?1, ?2)")?
            .execute(params![volume, json(permit)?])?;
    }
    Ok(())
}

fn put_setting(connection: &Connection, name: &str, value: &str) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "INSERT INTO settings VALUES (?1, ?2, ?3) ON CONFLICT (name) DO UPDATE SET value = ?2, sum = ?3",
        )?
        .execute(params![name, value, sum::of_setting(name, value)?])?;
    Ok(())
}

/// What lines of the history have in common that tell of the same kind of refusal.
fn repeats(event: &HistoryEvent) -> Result<Option<String>, StoreError> {
    let Some(refusal) = &event.refusal else { return Ok(None) };
    let what = (&event.kind, &event.volume, &refusal.device, &refusal.operation, &refusal.reason);
    // Which command it was is in the place of the length: FORMAT UNIT is no repetition of a write.
    let command = (refusal.operation == Operation::Passthrough.name()).then_some(refusal.length);
    json(&(what, command, &refusal.comm, &refusal.exe)).map(Some)
}

fn insert_events(connection: &Connection, events: &[HistoryEvent], lines: u32) -> Result<(), StoreError> {
    let mut last = connection.prepare_cached(
        "SELECT id, count, first, text, refusal, pid FROM events WHERE repeats = ?1 ORDER BY id DESC LIMIT 1",
    )?;
    // With a new number: whoever follows the history is told.
    let mut delete = connection.prepare_cached("DELETE FROM events WHERE id = ?1")?;
    let mut insert = connection.prepare_cached(
        "INSERT INTO events (at, volume, kind, text, refusal, count, first, by_operator, repeats, pid) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
    )?;
    for event in events {
        let (mut text, mut refusal) = (event.text.clone(), event.refusal.as_ref().map(json).transpose()?);
        let repeats = repeats(event)?;
        let pid = event.refusal.as_ref().map(|refusal| refusal.pid);
        let (mut count, mut first) = (event.count, event.first);
        if let Some(repeats) = &repeats {
            let row = |row: &Row<'_>| {
                let told = (row.get::<_, String>(3)?, row.get::<_, Option<String>>(4)?);
                let pid: Option<u32> = row.get(5)?;
                Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?, told, pid))
            };
            let last = last.query_row([repeats], row).optional()?;
            if let Some((id, times, since, earlier, by)) = last
                && (since..since.saturating_add(ONE_LINE)).contains(&event.at)
            {
                delete.execute([id])?;
                // The first thing that a process tries tells what it is about; of several processes it is the
                // newest that somebody may still find.
                if by.is_some() && by == pid {
                    (text, refusal) = earlier;
                }
                count = count.saturating_add(times.unsigned_abs());
                first = since;
            }
        }
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        insert.execute(params![
            event.at,
            event.volume,
            event.kind,
            text,
            refusal,
            count,
            first,
            event.by_operator,
            repeats,
            pid,
        ])?;
    }
    if !events.is_empty() {
        connection
            .prepare_cached(
                "DELETE FROM events WHERE by_operator = 0 AND id <= \
                 (SELECT id FROM events WHERE by_operator = 0 ORDER BY id DESC LIMIT 1 OFFSET ?1)",
            )?
            .execute([lines])?;
    }
    Ok(())
}

/// Gives a volume that is on record a name; that it was another's is forgotten.
fn put_name(connection: &Connection, name: &str, volume: &str) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "INSERT INTO names (name, volume, at, sum) SELECT ?1, id, unixepoch(), ?3 FROM volumes WHERE id = ?2 \
             ON CONFLICT (name) DO UPDATE SET volume = ?2, at = unixepoch(), sum = ?3",
        )?
        .execute(params![name, volume, sum::of_name(name, volume)?])?;
    connection
        .prepare_cached(
            "DELETE FROM names WHERE volume = ?1 AND name NOT IN \
             (SELECT name FROM names WHERE volume = ?1 ORDER BY at DESC, rowid DESC LIMIT ?2)",
        )?
        .execute(params![volume, NAMES])?;
    Ok(())
}

/// Leaves what belongs to a volume to another one, and deletes its record.
fn leave(connection: &Connection, gone: &str, volume: &str) -> Result<(), StoreError> {
    let left: Vec<String> = connection
        .prepare_cached("SELECT name FROM names WHERE volume = ?1")?
        .query_map([gone], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    // A copy is of one content: that of the one that is kept, if it has one.
    let copy = connection
        .prepare_cached("SELECT generation, at, size, packed FROM copies WHERE volume = ?1")?
        .query_row([gone], copy_of)
        .optional()?;
    if let Some(copy) = copy {
        connection
            .prepare_cached(
                "INSERT OR IGNORE INTO copies (volume, generation, at, size, packed, sum) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![
                volume,
                copy.generation.cast_signed(),
                copy.at,
                copy.size.cast_signed(),
                copy.packed,
                sum::of_copy(volume, &copy),
            ])?;
    }
    connection.prepare_cached("DELETE FROM volumes WHERE id = ?1")?.execute([gone])?;
    connection.prepare_cached("UPDATE events SET volume = ?2 WHERE volume = ?1")?.execute([gone, volume])?;
    for name in left.iter().map(String::as_str).chain([gone]) {
        put_name(connection, name, volume)?;
    }
    Ok(())
}

fn copy_of(row: &Row<'_>) -> rusqlite::Result<StoredCopy> {
    Ok(StoredCopy {
        generation: row.get::<_, i64>(0)?.cast_unsigned(),
        at: row.get(1)?,
        size: row.get::<_, i64>(2)?.cast_unsigned(),
        packed: row.get(3)?,
    })
}

impl Store for SqliteStore {
    fn get(&self, id: &VolumeId) -> Result<Option<Record>, StoreError> {
        read(&self.connection, id.as_str())
    }

    fn put_all(&mut self, records: &[(&Record, &[HistoryEvent])]) -> Result<(), StoreError> {
        let transaction = self.connection.transaction()?;
        for (record, events) in records {
            write(&transaction, record)?;
            insert_events(&transaction, events, self.lines)?;
        }
        fault::point(Point::BeforeCommit);
        transaction.commit()?;
        fault::point(Point::AfterCommit);
        Ok(())
    }

    fn replace(
        &mut self,
        gone: &[VolumeId],
        record: &Record,
        events: &[HistoryEvent],
    ) -> Result<(), StoreError> {
        let transaction = self.connection.transaction()?;
        write(&transaction, record)?;
        transaction.prepare_cached("DELETE FROM names WHERE name = ?1")?.execute([record.id.as_str()])?;
        for id in gone.iter().filter(|id| **id != record.id) {
            leave(&transaction, id.as_str(), record.id.as_str())?;
        }
        insert_events(&transaction, events, self.lines)?;
        transaction.commit()?;
        Ok(())
    }

    fn names(&self) -> Result<Vec<(VolumeId, VolumeId)>, StoreError> {
        let mut select = self
            .connection
            .prepare_cached("SELECT id, id FROM volumes UNION ALL SELECT name, volume FROM names")?;
        let rows = select.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
        rows.map(|row| row.map(|(name, volume)| (name.into(), volume.into())).map_err(StoreError::from))
            .collect()
    }

    fn put_names(&mut self, names: &[(VolumeId, VolumeId)]) -> Result<(), StoreError> {
        let transaction = self.connection.transaction()?;
        for (name, volume) in names.iter().filter(|(name, volume)| name != volume) {
            put_name(&transaction, name.as_str(), volume.as_str())?;
        }
        transaction.commit()?;
        Ok(())
    }

    fn list(&self) -> Result<Vec<Record>, StoreError> {
        let mut records = Vec::new();
        for_each(&self.connection, |found| {
            records.push(checked(found)?);
            Ok(())
        })?;
        Ok(records)
    }

    fn counts(&self) -> Result<Vec<(State, u64)>, StoreError> {
        let mut select =
            self.connection.prepare_cached("SELECT state, count(*) FROM volumes GROUP BY state")?;
        let rows = select.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))?;
        rows.map(|row| {
            let (state, count) = row?;
            Ok((state_of("", &state)?, count.unsigned_abs()))
        })
        .collect()
    }

    fn beginning_with(&self, prefix: &str, limit: usize) -> Result<Vec<VolumeId>, StoreError> {
        let mut select =
            self.connection.prepare_cached("SELECT id FROM volumes WHERE id >= ?1 ORDER BY id")?;
        let ids = select.query_map([prefix], |row| row.get::<_, String>(0))?;
        let ids = ids.take_while(|id| id.as_ref().map_or(true, |id| id.starts_with(prefix))).take(limit);
        ids.map(|id| Ok(id?.into())).collect()
    }

    fn armed(&self, boot: &str) -> Result<Vec<VolumeId>, StoreError> {
        let mut select =
            self.connection.prepare_cached("SELECT id FROM volumes WHERE armed = ?1 ORDER BY id")?;
        let rows = select.query_map([boot], |row| row.get::<_, String>(0))?;
        rows.map(|id| Ok(id?.into())).collect()
    }

    fn formatted_after(&self, after: Option<&VolumeId>, limit: usize) -> Result<Vec<Record>, StoreError> {
        let mut select = self.connection.prepare_cached(
            "SELECT id FROM volumes WHERE id > ?1 AND state = 'formatted' ORDER BY id LIMIT ?2",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let ids = select
            .query_map(params![after.map_or("", VolumeId::as_str), limit], |row| row.get::<_, String>(0))?;
        let ids: Vec<String> = ids.collect::<Result<_, _>>()?;
        ids.iter().filter_map(|id| read(&self.connection, id).transpose()).collect()
    }

    fn append_history(&mut self, events: &[HistoryEvent]) -> Result<(), StoreError> {
        let transaction = self.connection.transaction()?;
        insert_events(&transaction, events, self.lines)?;
        transaction.commit()?;
        Ok(())
    }

    fn forget(&mut self, id: &VolumeId, events: &[HistoryEvent]) -> Result<(), StoreError> {
        let transaction = self.connection.transaction()?;
        transaction.prepare_cached("DELETE FROM volumes WHERE id = ?1")?.execute([id.as_str()])?;
        insert_events(&transaction, events, self.lines)?;
        transaction.commit()?;
        Ok(())
    }

    fn prune(&mut self, present: &[&VolumeId], now: Seconds, before: Seconds) -> Result<u64, StoreError> {
        let transaction = self.connection.transaction()?;
        let mut seen = transaction.prepare_cached("UPDATE volumes SET last_seen = ?2 WHERE id = ?1")?;
        for id in present {
            seen.execute(params![id.as_str(), now])?;
        }
        drop(seen);
        let deleted = transaction.execute(
            "DELETE FROM volumes WHERE last_seen < ?1 AND state IN ('unverified', 'blank') AND ever_formatted = 0 \
             AND armed IS NULL AND weak = 0 AND audit = 0 AND strict = 0",
            [before],
        )?;
        transaction.commit()?;
        Ok(deleted as u64)
    }

    fn put_copies(&mut self, copies: &[(VolumeId, StoredCopy)]) -> Result<(), StoreError> {
        let transaction = self.connection.transaction()?;
        let mut put = transaction.prepare_cached(
            "INSERT INTO copies (volume, generation, at, size, packed, sum) \
             SELECT id, ?2, ?3, ?4, ?5, ?6 FROM volumes WHERE id = ?1 \
             ON CONFLICT (volume) DO UPDATE SET generation = ?2, at = ?3, size = ?4, packed = ?5, sum = ?6",
        )?;
        for (id, copy) in copies {
            put.execute(params![
                id.as_str(),
                copy.generation.cast_signed(),
                copy.at,
                copy.size.cast_signed(),
                copy.packed,
                sum::of_copy(id.as_str(), copy),
            ])?;
        }
        drop(put);
        transaction.commit()?;
        Ok(())
    }

    fn copied(&self, id: &VolumeId) -> Result<Option<(u64, Seconds)>, StoreError> {
        let mut select =
            self.connection.prepare_cached("SELECT generation, at FROM copies WHERE volume = ?1")?;
        let found =
            select.query_row([id.as_str()], |row| Ok((row.get::<_, i64>(0)?.cast_unsigned(), row.get(1)?)));
        Ok(found.optional()?)
    }

    fn copy(&self, id: &VolumeId) -> Result<Option<StoredCopy>, StoreError> {
        let mut select = self
            .connection
            .prepare_cached("SELECT generation, at, size, packed, sum FROM copies WHERE volume = ?1")?;
        let found =
            select.query_row([id.as_str()], |row| Ok((copy_of(row)?, row.get::<_, i64>(4)?))).optional()?;
        match found {
            Some((copy, stored)) if sum::of_copy(id.as_str(), &copy) != stored => Err(StoreError::Row {
                volume: id.to_string(),
                reason: "the copy differs from what was stored".to_owned(),
            }),
            found => Ok(found.map(|(copy, _)| copy)),
        }
    }

    fn setting(&self, name: &str) -> Result<Option<String>, StoreError> {
        let mut select = self.connection.prepare_cached("SELECT value FROM settings WHERE name = ?1")?;
        Ok(select.query_row([name], |row| row.get(0)).optional()?)
    }

    fn set(&mut self, name: &str, value: &str, events: &[HistoryEvent]) -> Result<(), StoreError> {
        let transaction = self.connection.transaction()?;
        put_setting(&transaction, name, value)?;
        insert_events(&transaction, events, self.lines)?;
        transaction.commit()?;
        Ok(())
    }

    fn history(&self, wanted: &Wanted) -> Result<Vec<HistoryEvent>, StoreError> {
        let mut select = self.connection.prepare_cached(
            "SELECT * FROM (SELECT id, at, volume, kind, text, refusal, count, first, by_operator FROM events \
             WHERE id > ?1 AND (?2 IS NULL OR volume = ?2) AND at >= ?4 ORDER BY id DESC LIMIT ?3) ORDER BY id",
        )?;
        let rows =
            select.query_map(params![wanted.after, wanted.volume, wanted.limit, wanted.since], |row| {
                let event = HistoryEvent {
                    id: row.get(0)?,
                    at: row.get(1)?,
                    volume: row.get(2)?,
                    kind: row.get(3)?,
                    text: row.get(4)?,
                    refusal: None,
                    count: row.get::<_, i64>(6)?.unsigned_abs(),
                    first: row.get(7)?,
                    by_operator: row.get(8)?,
                };
                Ok((event, row.get::<_, Option<String>>(5)?))
            })?;
        rows.map(|row| {
            let (mut event, refusal) = row?;
            event.refusal = from_json(&event.volume, refusal)?;
            Ok(event)
        })
        .collect()
    }
}

#[cfg(test)]
mod tests;
