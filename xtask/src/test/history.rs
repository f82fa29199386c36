//! What earlier runs on this machine have shown: how long each job took, which commit passed last, and how
//! far the last run of the night came. It orders the work and spares repetition; no result depends on it.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::job::Outcome;
use crate::packages::cache;

/// The history of runs, kept as JSON in the cache.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct History {
    /// Seconds of each job.
    pub(crate) jobs: BTreeMap<String, f64>,
    /// Seconds of each scenario, in a guest.
    pub(crate) scenarios: BTreeMap<String, f64>,
    /// The last commit for which every part of a change's plan passed.
    pub(crate) good: Option<String>,
    /// How far the last run of the night came.
    pub(crate) night: Night,
}

/// A run of the night.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct Night {
    /// The tree that was tested, as git names it.
    pub(crate) tree: String,
    /// The jobs that passed.
    pub(crate) passed: BTreeMap<String, Outcome>,
}

fn path() -> Result<PathBuf> {
    Ok(cache()?.join("tests.json"))
}

impl History {
    /// Reads the history. An unreadable file, as of another version, counts as empty.
    pub(crate) fn read() -> Result<Self> {
        let text = fs::read(path()?).unwrap_or_default();
        Ok(serde_json::from_slice(&text).unwrap_or_default())
    }

    /// Writes the history, completely or not at all.
    pub(crate) fn write(&self) -> Result<()> {
        let path = path()?;
        let partial = path.with_extension("partial");
        fs::write(&partial, serde_json::to_vec_pretty(self)?)
            .and_then(|()| fs::rename(&partial, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Keeps how long a job and its scenarios took.
    pub(crate) fn learn(&mut self, name: &str, outcome: &Outcome) {
        self.jobs.insert(name.to_owned(), outcome.seconds);
        self.scenarios.extend(outcome.tests.iter().map(|(name, seconds)| (name.clone(), *seconds)));
    }
}
