//! Two tables that are tests: what must be refused on every kind of volume, and what must go on as without
//! the guard.
//!
//! A row is one entry of a table in code. What a kernel or host does not have is "not tried", never "held".

/// A step that is repeated for some seconds: a probe, or udev's, opens a device for a moment, and an open
/// device cannot be removed. A device that has just appeared may not be formatted before it is verified.
macro_rules! until {
    ($line:expr) => {
        concat!("for i in $(seq 100); do ", $line, " && exit 0; sleep 0.1; done; exit 1")
    };
}

mod destructive;
mod everyday;
mod volume;
mod work;
mod writers;

pub use destructive::run as run_destructive;
pub use everyday::run as run_everyday;

use std::{
    env,
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::tool::{Ran, command, run, run_command};

/// The outcome of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The row is as it must be.
    Held,
    /// The marks are intact and the record is true, but bytes beside the marks had changed before the
    /// refusal, or without one.
    Partly,
    /// The tier of this run leaves it open, as `docs/tiers.md` says.
    Open,
    /// The row is not as it must be.
    Failed,
    /// The tool, or something that it needs, is missing; or the tool did not try.
    NotTried,
}

impl Outcome {
    const fn name(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Partly => "partly",
            Self::Open => "open",
            Self::Failed => "failed",
            Self::NotTried => "not tried",
        }
    }
}

/// The volumes of a run.
#[derive(Debug)]
pub struct Selection {
    /// The number of this part, from zero.
    pub part: usize,
    /// The number of parts.
    pub parts: usize,
    /// Kinds by name; an empty list means every kind.
    pub kinds: Vec<String>,
}

impl Selection {
    /// Whether the run includes the kind of this name; kinds are divided among the parts by their `place`.
    fn has(&self, name: &str, place: usize) -> bool {
        let named = self.kinds.iter().position(|kind| kind == name);
        let place = if self.kinds.is_empty() { Some(place) } else { named };
        place.is_some_and(|place| place % self.parts == self.part)
    }
}

/// One row that was run.
#[derive(Debug)]
pub struct Row {
    table: &'static str,
    volume: String,
    name: String,
    outcome: Outcome,
    /// Bytes that have changed.
    changed: u64,
    note: String,
}

impl Row {
    /// Whether the row is not as it must be.
    #[must_use]
    pub const fn failed(&self) -> bool {
        matches!(self.outcome, Outcome::Failed)
    }

    /// Prints the row as one line of JSON, for whoever collects them.
    pub fn print(&self) {
        println!(
            "{}",
            json!({
                "table": self.table,
                "volume": self.volume,
                "name": self.name,
                "outcome": self.outcome.name(),
                "changed": self.changed,
                "note": self.note,
            })
        );
    }
}

/// Whether a program is installed.
fn has(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let below = |directory: PathBuf| directory.join(program).is_file();
    if program.contains('/') { Path::new(program).is_file() } else { env::split_paths(&path).any(below) }
}

/// Runs a line for the shell. A line of plain words runs without the shell, which saves most of the time that
/// most tools take.
fn shell(line: &str) -> Result<Ran> {
    let plain = line.bytes().all(|byte| byte.is_ascii_alphanumeric() || b" /.,-_=:+%^".contains(&byte));
    if plain && has(line.split(' ').next().unwrap_or_default()) { run(line) } else { shell_with(line, &[]) }
}

/// Runs a line for the shell with these variables.
fn shell_with(line: &str, variables: &[(&str, String)]) -> Result<Ran> {
    let mut shell = command("sh");
    shell.args(["-c", line]).envs(variables.iter().map(|(name, value)| (name, value)));
    run_command(shell, line, "")
}

/// The bytes in which two files of one size differ: how many, and from where to where. Holes are zeros.
fn difference(one: &Path, other: &Path) -> Result<(u64, String)> {
    let open = |path: &Path| File::open(path).with_context(|| path.display().to_string());
    let (one, other) = (open(one)?, open(other)?);
    let (mut a, mut b) = (vec![0; CHUNK as usize], vec![0; CHUNK as usize]);
    let (mut changed, mut first, mut last) = (0, None, 0);
    let mut at = 0;
    while let Some(start) = [next_data(&one, at)?, next_data(&other, at)?].into_iter().flatten().min() {
        let start = start / CHUNK * CHUNK;
        let length = one.read_at(&mut a, start)?;
        ensure!(other.read_at(&mut b, start)? == length, "two sizes");
        if a[..length] != b[..length] {
            for (i, _) in a[..length].iter().zip(&b).enumerate().filter(|(_, (a, b))| a != b) {
                changed += 1;
                first.get_or_insert(start + i as u64);
                last = start + i as u64;
            }
        }
        at = start + CHUNK;
    }
    let place = first.map_or_else(String::new, |first| format!("in {first}..={last}"));
    Ok((changed, place))
}

const CHUNK: u64 = 64 << 10;

/// The first byte of a file, at or after this one, that is not in a hole.
fn next_data(file: &File, at: u64) -> Result<Option<u64>> {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
        Ok(data) => Ok(Some(data)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
