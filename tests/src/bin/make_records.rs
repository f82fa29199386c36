//! Makes a state directory with many records, for `cargo xtask bench attach`:
//! `make-records DIRECTORY NUMBER`.

use std::{env, path::Path};

use anyhow::{Context, Result};
use format_guard::{
    agent::now,
    record::{Content, Record, State, sqlite::SqliteStore, store::Store},
    volume::marks::{Mark, MarkKind},
};

fn main() -> Result<()> {
    let mut words = env::args().skip(1);
    let directory = words.next().context("no directory")?;
    let number: u64 = words.next().context("no number")?.parse()?;
    let (mut store, _) = SqliteStore::open(Path::new(&directory), now())?;
    for i in 0..number {
        store.put(&record(i), &[])?;
    }
    Ok(())
}

/// A volume with an ext4, known by the uuid of a device mapper device.
fn record(i: u64) -> Record {
    let uuid = format!("00000000-0000-4000-8000-{i:012x}");
    let mark = |offset, kind, bytes: &[u8]| Mark { offset, kind, bytes: bytes.to_vec() };
    let backup = 32_768 * 4096;
    let mut record = Record::new(
        format!("dm:FGBENCH-{i}").into(),
        format!("device mapper uuid of fgbench{i}"),
        false,
        now(),
    );
    record.state = State::Formatted;
    "formatted by mkfs.ext4".clone_into(&mut record.cause);
    record.content = Some(Content { types: vec!["ext4".to_owned()], uuid: Some(uuid), label: None });
    record.marks = vec![
        mark(1080, MarkKind::Magic, &[0x53, 0xef]),
        mark(1128, MarkKind::Uuid, &u128::from(i).to_be_bytes()),
        mark(backup + 56, MarkKind::Magic, &[0x53, 0xef]),
    ];
    record.ever_formatted = true;
    record
}
