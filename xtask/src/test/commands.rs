//! Tests what README, CONTRIBUTING and the manual say to type. Each command of README, CONTRIBUTING and the
//! quick start is run here, or is named with the part of the plan that runs it. Each `format-guard` command
//! of any page must exist in the program, with its options. A command without an entry is a failure, so that
//! nobody adds one untested.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use super::{job::Outcome, plan::PLAN};
use crate::command::{command, output, workspace};

const TEXTS: [&str; 3] = ["README.md", "CONTRIBUTING.md", "docs/quick-start.md"];
/// The page with the table of all commands.
const TABLE: &str = "docs/commands.md";

/// How a command is tested.
enum Coverage {
    /// It is run with the program of this build instead of the released one, and ends with one of these
    /// statuses.
    Run(&'static [i32]),
    /// This part of the plan runs it.
    Part(&'static str),
    /// It is the command that is running now.
    Itself,
    /// Only a person runs it, for this reason.
    ByHand(#[expect(dead_code, reason = "read by people")] &'static str),
}

/// Every command that is a line of its own in a text, without a comment after `#`.
const COMMANDS: &[(&str, Coverage)] = &[
    ("cargo xtask demo", Coverage::Part("demo")),
    ("cargo xtask setup", Coverage::ByHand("`.ci/run` begins with it")),
    ("cargo xtask test", Coverage::Itself),
    (".ci/run", Coverage::Itself),
    ("cargo test --lib transition::", Coverage::Part("units")),
    ("cargo xtask test formats_once", Coverage::Part("scenarios")),
    ("cargo build --release -p format-guard", Coverage::Part("release")),
    // 5: this host cannot enforce.
    ("sudo target/release/format-guard check", Coverage::Run(&[0, 5])),
    ("sudo target/release/format-guard agent", Coverage::Part("scenarios")),
    ("sudo target/release/format-guard agent --audit", Coverage::Part("scenarios")),
];

/// The commands of a text: lines that are indented as code and begin with a program's name.
fn commands(text: &str) -> Vec<String> {
    const PROGRAMS: [&str; 3] = ["cargo ", "sudo ", ".ci/"];
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    text.lines()
        .filter_map(|line| line.strip_prefix("    "))
        .map(|line| words(line.split(" #").next().unwrap_or(line)))
        .filter(|line| PROGRAMS.iter().any(|program| line.starts_with(program)))
        .collect()
}

/// The `format-guard` commands among a text's lines of code, without the program's name: run directly, or in
/// a pod (`kubectl exec`).
fn typed(text: &str) -> Vec<String> {
    let mut fenced = false;
    let mut typed = Vec::new();
    for line in text.lines() {
        let trimmed = line.trim();
        if trimmed.starts_with("```") {
            fenced = !fenced;
        }
        // The words behind a comment, a pipe or a redirection are not arguments.
        let ours = trimmed.split(['#', '|', '>']).next().unwrap_or_default().trim();
        let words = ours.strip_prefix("format-guard ").or_else(|| {
            ours.strip_prefix("kubectl ")?.split_once(" -- format-guard ").map(|(_, words)| words)
        });
        if (fenced || line.starts_with("    "))
            && let Some(words) = words
        {
            typed.push(words.to_owned());
        }
    }
    typed
}

/// README and every page of the manual.
fn pages() -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(workspace().join("docs"))?.collect::<Result<Vec<_>, _>>()?;
    let paths = entries.into_iter().map(|entry| entry.path());
    let pages = paths.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    Ok(pages.chain([workspace().join("README.md")]).collect())
}

/// The rows of the table of commands: ``| `volume permit VOLUME --reason TEXT` | ... |``.
fn subcommands(text: &str) -> Vec<String> {
    text.lines()
        .skip_while(|line| *line != "| command | |")
        .skip(2)
        .map_while(|line| line.strip_prefix("| "))
        .filter_map(|line| line.split(" | ").next())
        .flat_map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

/// Tests all of them, and writes what is wrong to the log.
pub(super) fn check(guard: &Path, log: &Path) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut findings = Vec::new();
    for text in TEXTS {
        let text = fs::read_to_string(workspace().join(text)).with_context(|| text.to_owned())?;
        for line in commands(&text) {
            match check_command(&line, guard) {
                Ok(()) => outcome.passed += 1,
                Err(error) => findings.push(format!("{line}: {error:#}")),
            }
        }
    }
    let mut lines = subcommands(&fs::read_to_string(workspace().join(TABLE)).context(TABLE)?);
    for page in pages()? {
        lines.extend(typed(&fs::read_to_string(&page).with_context(|| page.display().to_string())?));
    }
    for line in lines {
        match options_are_known(&line, guard) {
            Ok(()) => outcome.passed += 1,
            Err(error) => findings.push(format!("{line}: {error:#}")),
        }
    }
    outcome.failed = findings.len() as u64;
    fs::write(log, findings.join("\n"))?;
    Ok(outcome)
}

fn check_command(line: &str, guard: &Path) -> Result<()> {
    let known = COMMANDS.iter().find(|(command, _)| *command == line);
    let (_, coverage) = known.context("xtask/src/test/commands.rs does not say how it is tested")?;
    let expected = match coverage {
        Coverage::Run(expected) => *expected,
        Coverage::Part(name) if PLAN.iter().any(|part| part.name == *name) => return Ok(()),
        Coverage::Part(name) => bail!("the plan has no part {name}"),
        Coverage::Itself | Coverage::ByHand(_) => return Ok(()),
    };
    let words = line.split(' ').skip_while(|word| !word.ends_with("/format-guard")).skip(1);
    let mut run = command(&guard.to_string_lossy(), words);
    let ran = output(run.current_dir(workspace()))?;
    let text = String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr);
    match ran.status.code() {
        Some(status) if expected.contains(&status) => Ok(()),
        _ => bail!("ended with {}: {text}", ran.status),
    }
}

/// A command in a row of the table must exist, with its options.
fn options_are_known(line: &str, guard: &Path) -> Result<()> {
    let is_name = |word: &&str| {
        word.split('\\')
            .next()
            .is_some_and(|word| word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'))
            && !word.starts_with('-')
    };
    let names: Vec<&str> =
        line.split(' ').take_while(is_name).map(|word| word.split('\\').next().unwrap_or(word)).collect();
    let mut help = command(&guard.to_string_lossy(), &names);
    let said = output(help.arg("--help"))?;
    let text = String::from_utf8_lossy(&said.stdout);
    if !said.status.success() {
        bail!("{} --help ended with {}", names.join(" "), said.status);
    }
    for option in
        line.split(|c: char| c.is_whitespace() || "[]=".contains(c)).filter(|word| word.starts_with("--"))
    {
        // The words behind a lone -- are another program's.
        if option != "--" && !text.contains(option) {
            bail!("{} has no option {option}", names.join(" "));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_taken_from_the_text() {
        let text = "Words.\n\n    cargo xtask demo    # the main job\n    $ mkfs.ext4 $N\n    sudo x agent\n";
        assert_eq!(commands(text), ["cargo xtask demo", "sudo x agent"]);
        let table = "| command | |\n|---|---|\n| `status` | x |\n| `mode`, `mode enforce\\|audit --reason TEXT` | y |\n\n";
        assert_eq!(subcommands(table), ["status", "mode", "mode enforce\\|audit --reason TEXT"]);
    }

    #[test]
    fn what_is_typed_of_the_program_is_taken_from_the_text() {
        let text = "format-guard is a name.\n\n    format-guard status | grep store\n    kubectl -n x exec POD -- format-guard events ID\n\n\
                    ```sh\nformat-guard check    # tries\n```\nformat-guard goes on.\n";
        assert_eq!(typed(text), ["status", "events ID", "check"]);
        let pages = pages().expect("pages");
        let all = pages.iter().flat_map(|page| typed(&fs::read_to_string(page).expect("a page")));
        assert!(all.count() > 40);
        let table = fs::read_to_string(workspace().join(TABLE)).expect("a page");
        assert!(subcommands(&table).len() > 30);
    }

    #[test]
    fn a_command_that_nobody_knows_is_found() {
        let error = check_command("cargo xtask fly", Path::new("/bin/true")).expect_err("found");
        assert!(error.to_string().contains("does not say how"), "{error}");
    }

    #[test]
    fn what_is_known_here_is_typed_somewhere() {
        let texts = TEXTS.map(|text| fs::read_to_string(workspace().join(text)).expect(text));
        let typed: Vec<String> = texts.iter().flat_map(|text| commands(text)).collect();
        for (line, _) in COMMANDS {
            assert!(typed.iter().any(|other| other == line), "no text says {line}");
        }
    }
}
