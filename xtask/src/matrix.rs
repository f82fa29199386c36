//! `cargo xtask matrix`: what must be refused and what must go on, on every kind of volume, as tables in `docs/matrix`.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt::Write,
    fs,
    path::Path,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{
    build::executable,
    command::{command, read, workspace},
    guest::{Cpu, GUESTS, Guest, against},
    kernels::{Kernel, chosen},
    preload, setup,
};

/// When one table on one kernel is ended.
const TIMEOUT: Duration = Duration::from_mins(40);

const PRELOAD: &str = "preload";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Kernel: 6.1, 6.12, 6.18, 7 or all (may be repeated) [default: 6.12]
    #[arg(long)]
    kernel: Vec<String>,
    /// How the guard refuses: `lsm`, or `preload`, which is held on this host and its kernel
    #[arg(long, default_value = "lsm", value_parser = ["lsm", PRELOAD], conflicts_with = "kernel")]
    tier: String,
    /// Only one table: destructive or everyday
    #[arg(long)]
    table: Option<String>,
    /// Only these kinds of volumes; nothing is written to docs/
    kinds: Vec<String>,
}

/// `cargo xtask matrix`
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::ready()?;
    println!("matrix: building");
    let guard = executable("bin", "format-guard")?;
    let matrix = executable("bin", "matrix")?;
    let tables: Vec<&str> =
        arguments.table.as_deref().map_or(vec!["destructive", "everyday"], |table| vec![table]);
    let tools = tools()?;
    let mut held = true;
    let mut done = |table: &str, on: &str, key: &str, (whole, rows): (bool, Vec<Value>)| -> Result<()> {
        let page = page(table, on, &tools, &rows);
        print!("{page}");
        held &= whole;
        if arguments.kinds.is_empty() && !rows.is_empty() {
            let directory = workspace().join("docs/matrix");
            fs::create_dir_all(&directory)?;
            let path = directory.join(format!("{table}-{key}.md"));
            fs::write(&path, page).with_context(|| path.display().to_string())?;
        }
        Ok(())
    };
    if arguments.tier == PRELOAD {
        for table in &tables {
            println!("matrix: {table} under the LD_PRELOAD library");
            let (whole, text) = preload::table(&guard, &matrix, table, &arguments.kinds)?;
            done(table, "under the LD_PRELOAD library", PRELOAD, (whole, rows(&text, whole)))?;
        }
    } else {
        for key in chosen(&arguments.kernel, &["6.12"]) {
            let kernel = Kernel::get(key)?;
            for table in &tables {
                let programs = [guard.as_path(), matrix.as_path()];
                let ran = hold(&kernel, table, programs, Turn::WHOLE, &arguments.kinds)?;
                done(table, &format!("kernel {}", kernel.release), key, ran)?;
            }
        }
    }
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The rows among what a run printed; the rest is shown where not all of it is as it must be.
fn rows(text: &str, whole: bool) -> Vec<Value> {
    if !whole {
        text.lines().filter(|line| !line.starts_with('{')).for_each(|line| println!("{line}"));
    }
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// One of several turns that a table takes: every kind of volume has one.
#[derive(Clone, Copy)]
pub(crate) struct Turn {
    pub(crate) number: usize,
    pub(crate) of: usize,
}

impl Turn {
    const WHOLE: Self = Self { number: 0, of: 1 };
}

/// Holds one turn of a table on a kernel, with the guard and the program of the tables: whether all of it is as it must be,
/// and the rows.
pub(crate) fn hold(
    kernel: &Kernel,
    table: &str,
    [guard, matrix]: [&Path; 2],
    turn: Turn,
    kinds: &[String],
) -> Result<(bool, Vec<Value>)> {
    let start = Instant::now();
    println!("matrix: {table} on {} ({})", kernel.key, kernel.release);
    let parts = GUESTS * turn.of;
    let (whole, text) = in_guests(kernel, |guest| {
        let part = turn.number * GUESTS + guest;
        let words = [table.into(), format!("{part}/{parts}").into()];
        against(guard, matrix, words.into_iter().chain(kinds.iter().map(Into::into)))
    })?;
    let rows = rows(&text, whole);
    println!("matrix: {table} on {}: {} rows in {} s", kernel.key, rows.len(), start.elapsed().as_secs());
    Ok((whole, rows))
}

/// Runs each command in a guest of its own, all at the same time: whether all succeeded, and what they printed.
fn in_guests(kernel: &Kernel, command: impl Fn(usize) -> Vec<OsString> + Sync) -> Result<(bool, String)> {
    let guest = |number| -> Result<(u8, Vec<u8>)> {
        let guest = Guest {
            kernel: kernel.clone(),
            command: command(number),
            disks: Vec::new(),
            timeout: TIMEOUT,
            cpu: Cpu::Timed,
            parameters: String::new(),
            network: false,
        };
        let mut output = Vec::new();
        let status = guest.run(&mut output)?;
        Ok((status, output))
    };
    thread::scope(|scope| {
        let guest = &guest;
        let workers: Vec<_> = (0..GUESTS).map(|i| scope.spawn(move || guest(i))).collect();
        let (mut whole, mut text) = (true, String::new());
        for worker in workers {
            let (status, output) = worker.join().unwrap_or_else(|_| bail!("a worker broke"))?;
            whole &= status == 0;
            text.push_str(&String::from_utf8_lossy(&output));
        }
        Ok((whole, text))
    })
}

/// When this is, and the versions of the tools: guests run this host's own.
fn tools() -> Result<String> {
    let mut query = command(
        "dpkg-query",
        ["-W", "-f=${Package} ${Version}\n", "util-linux", "coreutils", "busybox-static"],
    );
    query.args(setup::tools());
    let versions: Vec<String> = read(query)?.lines().map(str::to_owned).collect();
    let date = read(command("date", ["--utc", "+%F"]))?;
    Ok(format!("{}: {}.", date.trim(), versions.join(", ")))
}

/// One table as a page: a line for each row of the table, a column for each kind of volume, and what is to be said of
/// those that are not simply held.
fn page(table: &str, on: &str, tools: &str, rows: &[Value]) -> String {
    let text = |row: &Value, key: &str| row[key].as_str().unwrap_or("").to_owned();
    let count = |outcome: &str| rows.iter().filter(|row| text(row, "outcome") == outcome).count();
    let tried = rows.len() - count("not tried");
    let open = match count("open") {
        0 => String::new(),
        open => format!(", {open} are open in this tier"),
    };
    let mut page = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(page, "# {table}, {on}\n");
    let _ = writeln!(
        page,
        "{} of {tried} rows held, {} kept the marks alone, {} failed{}; {} not tried.\n",
        count("held"),
        count("partly"),
        count("failed"),
        open,
        count("not tried")
    );
    let _ = writeln!(page, "{tools}\n");
    let mut volumes: Vec<String> = Vec::new();
    let mut names: Vec<String> = Vec::new();
    let mut cells: BTreeMap<(String, String), &Value> = BTreeMap::new();
    for row in rows {
        let (volume, name) = (text(row, "volume"), text(row, "name"));
        if !volumes.contains(&volume) {
            volumes.push(volume.clone());
        }
        if !names.contains(&name) {
            names.push(name.clone());
        }
        cells.insert((name, volume), row);
    }
    if table == "destructive" {
        let _ = writeln!(page, "| | {} |", volumes.join(" | "));
        let _ = writeln!(page, "|---|{}", "---|".repeat(volumes.len()));
        for name in &names {
            let cells: Vec<String> = volumes
                .iter()
                .map(|volume| match cells.get(&(name.clone(), volume.clone())) {
                    None => String::new(),
                    Some(row) => match text(row, "outcome").as_str() {
                        "held" => "held".to_owned(),
                        "not tried" => "-".to_owned(),
                        other => format!("{other} {}", row["changed"]),
                    },
                })
                .collect();
            let _ = writeln!(page, "| {name} | {} |", cells.join(" | "));
        }
    } else {
        let _ = writeln!(page, "| volume | work | |\n|---|---|---|");
        for row in rows {
            let _ = writeln!(
                page,
                "| {} | {} | {} |",
                text(row, "volume"),
                text(row, "name"),
                text(row, "outcome")
            );
        }
    }
    let noted: Vec<&Value> = rows.iter().filter(|row| !text(row, "note").is_empty()).collect();
    if !noted.is_empty() {
        let _ = writeln!(page, "\nNotes:\n");
        for row in noted {
            let note = text(row, "note").replace('\n', " ");
            let _ = writeln!(
                page,
                "* {}, {}: {}: {note}",
                text(row, "volume"),
                text(row, "name"),
                text(row, "outcome")
            );
        }
    }
    page
}
