//! Runs the two tables of `format_guard_tests::matrix` in a guest and prints each row as a line of JSON.
//! `cargo xtask matrix` makes tables of them. Arguments: `destructive` or `everyday`, which part of how many
//! (`0/2`), then kinds of volumes; none are all.

use std::{env, process::ExitCode};

use anyhow::{Context, Result, bail};
use format_guard_tests::matrix::{Row, Selection, run_destructive, run_everyday};

fn main() -> Result<ExitCode> {
    let mut arguments = env::args().skip(1);
    let table = arguments.next().unwrap_or_default();
    let part = arguments.next().context("no part")?;
    let (part, parts) = part.split_once('/').context("a part is written as 0/2")?;
    let only = Selection { part: part.parse()?, parts: parts.parse()?, kinds: arguments.collect() };
    let mut failed = 0_u32;
    let mut done = |row: Row| {
        failed += u32::from(row.failed());
        row.print();
    };
    match table.as_str() {
        "destructive" => run_destructive(&only, &mut done)?,
        "everyday" => run_everyday(&only, &mut done)?,
        other => bail!("there is no table '{other}': name destructive or everyday"),
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
