//! Selects the scenarios of a part, and divides them among guests.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result, ensure};

use crate::command::{command, read};

/// Seconds of a scenario that nobody has measured.
const UNMEASURED: f64 = 5.0;

/// Scenarios of the command line that need a guest. The others run under the library on this host, and at
/// night in guests.
const OF_THE_COMMAND_LINE: &[&str] = &[
    "command_line::a_refusal_names",
    "command_line::ensure_fs_goes_on_after",
    "command_line::ensure_fs_is_not_fooled",
    "command_line::the_configuration_is_read_again",
];

/// Scenarios by their names.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Select {
    /// All of them.
    All,
    /// All but those that run under the library on this host.
    NeedingAGuest,
    /// Those whose names have one of these words.
    Named(&'static [&'static str]),
}

impl Select {
    fn has(self, name: &str) -> bool {
        let names = |words: &[&str]| words.iter().any(|word| name.contains(word));
        match self {
            Self::All => true,
            Self::NeedingAGuest => !name.starts_with("command_line::") || names(OF_THE_COMMAND_LINE),
            Self::Named(words) => names(words),
        }
    }

    /// The names among all that an executable of tests has.
    pub(crate) fn of(self, all: &[String]) -> Vec<String> {
        all.iter().filter(|name| self.has(name)).cloned().collect()
    }
}

/// The names of the tests that an executable has.
pub(crate) fn names(tests: &Path) -> Result<Vec<String>> {
    let names = all(tests)?;
    ensure!(!names.is_empty(), "{} has no tests", tests.display());
    Ok(names)
}

/// The same for an executable without tests: cargo builds a test executable for every program.
pub(crate) fn all(tests: &Path) -> Result<Vec<String>> {
    listed(tests, &[])
}

/// The names of the tests that an executable leaves out unless it is told to run them.
pub(crate) fn ignored(tests: &Path) -> Result<Vec<String>> {
    listed(tests, &["--ignored"])
}

fn listed(tests: &Path, more: &[&str]) -> Result<Vec<String>> {
    let words = [&["--list", "--format", "terse"], more].concat();
    let text = read(command(&tests.to_string_lossy(), words))?;
    Ok(text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}

/// Those whose names have this word.
pub(crate) fn with_word(tests: &Path, word: &str) -> Result<Vec<String>> {
    let all = names(tests)?;
    let named: Vec<String> = all.iter().filter(|name| name.contains(word)).cloned().collect();
    (!named.is_empty()).then_some(named).with_context(|| {
        format!("no scenario has '{word}' in its name; --part runs a part of the plan, --plan prints it")
    })
}

/// Divides names into shards of about equal duration: the longest first, each into the shard with the least.
pub(crate) fn shards(names: Vec<String>, count: usize, measured: &BTreeMap<String, f64>) -> Vec<Vec<String>> {
    let mut shards: Vec<(f64, Vec<String>)> = vec![(0.0, Vec::new()); count.max(1)];
    let mut timed: Vec<(f64, String)> =
        names.into_iter().map(|name| (measured.get(&name).copied().unwrap_or(UNMEASURED), name)).collect();
    timed.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    for (seconds, name) in timed {
        if let Some(least) = shards.iter_mut().min_by(|a, b| a.0.total_cmp(&b.0)) {
            least.0 += seconds;
            least.1.push(name);
        }
    }
    shards.into_iter().map(|(_, names)| names).filter(|names| !names.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_in_one_shard_and_shards_take_about_as_long() {
        let names: Vec<String> = (0..20).map(|number| format!("scenario_{number}")).collect();
        let measured: BTreeMap<String, f64> =
            names.iter().zip(1..).map(|(name, seconds)| (name.clone(), f64::from(seconds))).collect();
        let shards = shards(names.clone(), 3, &measured);
        let mut all: Vec<String> = shards.concat();
        all.sort();
        let mut expected = names;
        expected.sort();
        assert_eq!(all, expected);
        let times: Vec<f64> =
            shards.iter().map(|shard| shard.iter().map(|name| measured[name]).sum()).collect();
        let (least, most) = times.iter().fold((f64::MAX, 0.0_f64), |(l, m), t| (l.min(*t), m.max(*t)));
        assert!(most - least <= 20.0, "{times:?}");
    }

    #[test]
    fn the_command_line_is_held_on_this_host_unless_it_needs_a_guest() {
        let all = ["command_line::help", "command_line::ensure_fs_is_not_fooled_by_zeros", "roads::a_pwrite"];
        let chosen = Select::NeedingAGuest.of(&all.map(str::to_owned));
        assert_eq!(chosen, all[1..]);
    }
}
