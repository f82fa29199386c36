//! `cargo xtask matrix`: tests what must be refused and what must go on, on every kind of volume, and writes
//! the tables in `docs/matrix`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{
    build::executable,
    command::{command, read, workspace},
    guest::{self, Clock, Guest, with_guard},
    kernels::{Kernel, chosen},
    preload, setup,
};

/// The time limit for one table on one kernel.
const TIMEOUT: Duration = Duration::from_mins(40);

const PRELOAD: &str = "preload";

/// What to do after a page was written.
const SUM: &str = "docs/matrix.md sums the tables up: FORMAT_GUARD_WRITE_SCHEMAS=1 cargo test -p xtask --test manual tables:: writes it anew";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Kernel: 6.1, 6.12, 6.18, 7 or all (may be repeated) [default: 6.12]
    #[arg(long)]
    kernel: Vec<String>,
    /// How the guard refuses: `lsm`, or `preload` on this host and its kernel
    #[arg(long, default_value = "lsm", value_parser = ["lsm", PRELOAD], conflicts_with = "kernel")]
    tier: String,
    /// Only one table: destructive or everyday
    #[arg(long)]
    table: Option<String>,
    /// Only these kinds of volumes; docs/ stays unchanged
    kinds: Vec<String>,
}

/// `cargo xtask matrix`
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::root("guests read this machine's root")?;
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
            let path = page_path(table, key);
            fs::create_dir_all(path.parent().context("no directory")?)?;
            fs::write(&path, page).with_context(|| path.display().to_string())?;
            println!("matrix: {SUM}");
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
                let ran = whole_table(&kernel, table, programs, &arguments.kinds)?;
                done(table, &format!("kernel {}", kernel.release), key, ran)?;
            }
        }
    }
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The rows in a run's output; the other lines are printed if a row failed.
pub(crate) fn rows(text: &str, whole: bool) -> Vec<Value> {
    if !whole {
        text.lines().filter(|line| !line.starts_with('{')).for_each(|line| println!("{line}"));
    }
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Runs one part of a table in one guest; true if every row passed. The rows go to `output`, as lines of
/// JSON.
pub(crate) fn run_part(
    kernel: &Kernel,
    table: &str,
    [guard, matrix]: [&Path; 2],
    (part, parts): (usize, usize),
    kinds: &[impl AsRef<str>],
    output: &mut (impl Write + Send),
) -> Result<bool> {
    let words = [table.into(), format!("{part}/{parts}").into()];
    let guest = Guest {
        kernel: kernel.clone(),
        command: with_guard(
            guard,
            matrix,
            words.into_iter().chain(kinds.iter().map(|kind| kind.as_ref().into())),
        ),
        disks: Vec::new(),
        timeout: TIMEOUT,
        clock: Clock::Host,
        parameters: String::new(),
        network: false,
    };
    Ok(guest.run(output)? == 0)
}

/// Runs a whole table on a kernel, in several guests side by side. Returns whether every row passed, and the
/// rows.
fn whole_table(
    kernel: &Kernel,
    table: &str,
    programs: [&Path; 2],
    kinds: &[String],
) -> Result<(bool, Vec<Value>)> {
    let start = Instant::now();
    println!("matrix: {table} on {} ({})", kernel.key, kernel.release);
    let guests = guest::at_a_time()?;
    let part = |part| -> Result<(bool, Vec<u8>)> {
        let mut output = Vec::new();
        let whole = run_part(kernel, table, programs, (part, guests), kinds, &mut output)?;
        Ok((whole, output))
    };
    let (whole, text) = thread::scope(|scope| -> Result<(bool, String)> {
        let part = &part;
        let workers: Vec<_> = (0..guests).map(|i| scope.spawn(move || part(i))).collect();
        let (mut whole, mut text) = (true, String::new());
        for worker in workers {
            let (held, output) = worker.join().unwrap_or_else(|_| bail!("a worker panicked"))?;
            whole &= held;
            text.push_str(&String::from_utf8_lossy(&output));
        }
        Ok((whole, text))
    })?;
    let rows = rows(&text, whole);
    println!("matrix: {table} on {}: {} rows in {} s", kernel.key, rows.len(), start.elapsed().as_secs());
    Ok((whole, rows))
}

/// The file with the last whole run of a table on a kernel.
fn page_path(table: &str, key: &str) -> PathBuf {
    workspace().join("docs/matrix").join(format!("{table}-{key}.md"))
}

/// Rows that the last whole run tried and this one did not: a tool is missing that was there, and nothing
/// proves its row any more.
pub(crate) fn missing_rows(table: &str, key: &str, rows: &[Value]) -> Vec<String> {
    // A table without a whole run on this kernel has nothing to compare with.
    let page = fs::read_to_string(page_path(table, key)).unwrap_or_default();
    let tried = tried(&page);
    let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    rows.iter()
        .filter(|row| row["outcome"] == "not tried")
        .map(|row| (text(row, "volume"), text(row, "name"), text(row, "note")))
        .filter(|(volume, name, _)| tried.contains(&(volume.clone(), name.clone())))
        .map(|(volume, name, note)| format!("{volume}: {name} was tried in the last whole run: {note}"))
        .collect()
}

/// The volume and the name of each row of a page that was tried.
fn tried(page: &str) -> BTreeSet<(String, String)> {
    let mut volumes: Vec<String> = Vec::new();
    let mut tried = BTreeSet::new();
    for line in page.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |")) {
        // The first cell in the head of the destructive table is empty.
        if let Some(names) = line.strip_prefix("| ") {
            volumes = names.split(" | ").map(str::to_owned).collect();
            continue;
        }
        let mut cells = line.split(" | ").map(str::to_owned);
        let first = cells.next().unwrap_or_default();
        if volumes.is_empty() {
            if let (Some(name), Some(outcome)) = (cells.next(), cells.next())
                && ["held", "failed"].contains(&outcome.as_str())
            {
                tried.insert((first, name));
            }
        } else {
            let cells = volumes.iter().zip(cells).filter(|(_, cell)| !["", "-"].contains(&cell.trim()));
            tried.extend(cells.map(|(volume, _)| (volume.clone(), first.clone())));
        }
    }
    tried
}

/// The date, and the versions of the tools: guests use this host's own.
fn tools() -> Result<String> {
    let mut query = command("dpkg-query", ["-W", "-f=${Package} ${Version}\n", "util-linux", "coreutils"]);
    query.args(setup::tools());
    let mut versions: Vec<String> = read(query)?.lines().map(str::to_owned).collect();
    versions.push(guest::busybox::version()?);
    let date = read(command("date", ["--utc", "+%F"]))?;
    Ok(format!("{}: {}.", date.trim(), versions.join(", ")))
}

/// One table as a page: a line for each row, a column for each kind of volume, and notes on the rows that did
/// not simply pass.
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(volume: &str, name: &str, outcome: &str) -> Value {
        json!({ "volume": volume, "name": name, "outcome": outcome, "changed": 0, "note": "" })
    }

    #[test]
    fn a_row_that_was_tried_is_read_from_its_page() {
        let rows =
            [row("ext4", "dd", "held"), row("xfs", "dd", "not tried"), row("xfs", "mkfs, copied", "partly")];
        for table in ["destructive", "everyday"] {
            let rows = if table == "everyday" { &rows[..2] } else { &rows[..] };
            let read = tried(&page(table, "kernel 1", "tools", rows));
            assert!(read.contains(&("ext4".to_owned(), "dd".to_owned())), "{table}: {read:?}");
            assert!(!read.contains(&("xfs".to_owned(), "dd".to_owned())), "{table}: {read:?}");
            assert_eq!(read.len(), if table == "everyday" { 1 } else { 2 }, "{table}: {read:?}");
        }
    }

    #[test]
    fn a_tool_that_has_gone_is_found() {
        // Relative to the pages in docs/matrix.
        let gone = missing_rows("destructive", "6.12", &[row("ext4", "mkfs.ext2", "not tried")]);
        assert_eq!(gone.len(), 1, "{gone:?}");
        let never = missing_rows("destructive", "6.12", &[row("ext4", "no such tool", "not tried")]);
        assert!(never.is_empty(), "{never:?}");
    }
}
