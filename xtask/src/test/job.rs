//! A job of a test run: its work, its cost, and its outcome.

use std::{collections::BTreeMap, path::Path};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::guest;

/// The outcome of a job.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Outcome {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) seconds: f64,
    /// Seconds of each test, if libtest printed them.
    #[serde(skip)]
    pub(crate) tests: BTreeMap<String, f64>,
}

impl Outcome {
    /// The outcome of work that only passes or fails.
    pub(crate) fn of(sound: bool) -> Self {
        Self { passed: u64::from(sound), failed: u64::from(!sound), ..Self::default() }
    }

    /// Counts libtest's lines. A run that failed without a failed test counts as one failure; of a run that
    /// was cut off, which has no result, the tests that ended well count.
    pub(crate) fn of_tests(text: &str, success: bool) -> Self {
        let mut outcome = Self::default();
        let (mut results, mut ended_well) = (0, 0);
        for line in text.lines() {
            ended_well += u64::from(line.contains("ok <") && line.ends_with("s>"));
            if let Some(counts) = line.strip_prefix("test result: ") {
                results += 1;
                outcome.passed += count(counts, "passed");
                outcome.failed += count(counts, "failed");
            } else if let Some((name, rest)) =
                line.strip_prefix("test ").and_then(|line| line.split_once(" ... "))
                && let Some(seconds) = rest.rsplit_once('<').and_then(|(_, time)| time.strip_suffix("s>"))
                && let Ok(seconds) = seconds.parse()
            {
                outcome.tests.insert(name.to_owned(), seconds);
            }
        }
        if results == 0 {
            outcome.passed = ended_well;
        }
        if !success && outcome.failed == 0 {
            outcome.failed = 1;
        }
        outcome
    }
}

/// The number before a word in `ok. 12 passed; 0 failed; 1 ignored`.
fn count(counts: &str, word: &str) -> u64 {
    let before = counts.split(&format!(" {word}")).next().unwrap_or_default();
    before.rsplit([' ', '.']).next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// A piece of work that depends on no other.
pub(crate) struct Job<'a> {
    pub(crate) name: String,
    /// Its duration in the last run, or else the plan's estimate.
    pub(crate) seconds: f64,
    pub(crate) cost: Cost,
    /// It begins after all others, and only if it is over before the time is.
    pub(crate) is_spare: bool,
    pub(crate) run: Box<Run<'a>>,
}

/// The work itself, which gets the path of a log.
pub(crate) type Run<'a> = dyn FnOnce(&Path) -> Result<Outcome> + Send + 'a;

/// A resource that only one job may hold at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lock {
    /// cargo's own lock of the target directory: a second cargo would wait for it and hold a core meanwhile.
    Cargo,
    /// The loop devices of this host: two guards would read each other's.
    Devices,
}

/// What a job takes while it runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// Cores that it keeps busy.
    pub(crate) cores: usize,
    /// Memory, in MiB.
    pub(crate) memory: u64,
    pub(crate) locks: &'static [Lock],
}

impl Cost {
    /// The cost of a program on this host.
    pub(crate) const CORE: Self = Self { cores: 1, memory: 512, locks: &[] };
    /// The cost of a guest.
    pub(crate) const GUEST: Self = Self { cores: 1, memory: guest::MEMORY, locks: &[] };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_and_times_are_read() {
        let text = "test a::b ... ok <1.250s>\ntest c ... FAILED <0.5s>\n\
                    test result: ok. 12 passed; 0 failed; 1 ignored\nx\ntest result: FAILED. 1 passed; 2 failed; 0\n";
        let outcome = Outcome::of_tests(text, false);
        assert_eq!((outcome.passed, outcome.failed), (13, 2));
        assert_eq!(outcome.tests, BTreeMap::from([("a::b".to_owned(), 1.25), ("c".to_owned(), 0.5)]));
    }

    #[test]
    fn a_run_that_broke_off_has_failed() {
        assert_eq!(Outcome::of_tests("", false).failed, 1);
        let cut_off = "test a ... ok <1.2s>\ntest b ... a line of its agent\nok <3s>\ntest c ... FAILED <1s>\ntest d ... ";
        let outcome = Outcome::of_tests(cut_off, false);
        assert_eq!((outcome.passed, outcome.failed), (2, 1));
    }
}
