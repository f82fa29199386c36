//! The configuration: one TOML file, every key with a default. A malformed file never starts a guard with defaults.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

/// Where the file is looked for when no other is named.
pub const DEFAULT_FILE: &str = "/etc/format-guard/config.toml";
/// Where the agent's socket is unless configured otherwise.
pub const DEFAULT_SOCKET: &str = "/run/format-guard/control.sock";
/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// What the guard does with a verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Refusals are carried out.
    #[default]
    Enforce,
    /// Nothing is refused, every would-be refusal is told.
    Audit,
}

impl Mode {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Audit => "audit",
        }
    }
}

/// Every setting.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Enforce or audit.
    pub mode: Mode,
    /// The database; must outlive a reboot.
    pub state_dir: PathBuf,
    /// The control socket.
    pub run_dir: PathBuf,
    /// Pinned kernel objects, on a bpf file system.
    pub pin_dir: PathBuf,
    /// How long one probe of one device may take, in seconds.
    pub probe_deadline: u64,
    /// How often the world is compared with the records, in seconds.
    pub resync_interval: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mode: Mode::Enforce,
            state_dir: PathBuf::from("/var/lib/format-guard"),
            run_dir: PathBuf::from("/run/format-guard"),
            pin_dir: PathBuf::from("/sys/fs/bpf/format-guard"),
            probe_deadline: 10,
            resync_interval: 5,
        }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("the configuration {path} is wrong: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Line, column and finding.
        reason: String,
    },
}

impl Config {
    /// Reads `file`, or the default file if there is one, or takes the defaults.
    pub fn read(file: Option<&Path>) -> Result<Self, ConfigError> {
        let path = file.unwrap_or(Path::new(DEFAULT_FILE));
        let unreadable = |source| ConfigError::Unreadable { path: path.to_owned(), source };
        match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && file.is_none() => {
                return Ok(Self::default());
            }
            Err(error) => return Err(unreadable(error)),
            Ok(metadata) if metadata.len() > MAX_FILE => {
                return Err(unreadable(io::Error::other("it is larger than 1 MiB")));
            }
            Ok(_) => {}
        }
        let text = fs::read_to_string(path).map_err(unreadable)?;
        Self::parse(&text).map_err(|reason| ConfigError::Malformed { path: path.to_owned(), reason })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        for (key, value) in
            [("probe_deadline", config.probe_deadline), ("resync_interval", config.resync_interval)]
        {
            if !(1..=3600).contains(&value) {
                return Err(format!("{key} is {value}: it must be between 1 and 3600 seconds"));
            }
        }
        Ok(config)
    }

    /// Where the agent listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("control.sock")
    }

    /// [`Config::probe_deadline`] as a duration.
    #[must_use]
    pub const fn deadline(&self) -> Duration {
        Duration::from_secs(self.probe_deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_refused_and_named() {
        let error = Config::parse("mod = \"audit\"").expect_err("refused");
        assert!(error.contains("mod") && error.contains("mode"), "{error}");
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        assert_eq!(Config::parse(""), Ok(Config::default()));
    }

    #[test]
    fn a_deadline_of_nothing_is_refused() {
        assert!(Config::parse("probe_deadline = 0").expect_err("refused").contains("between 1 and 3600"));
    }

    #[test]
    fn a_named_file_that_is_missing_is_no_default() {
        assert!(Config::read(Some(Path::new("/nowhere/config.toml"))).is_err());
    }
}
