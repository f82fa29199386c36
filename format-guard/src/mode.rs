//! What the guard does with its verdicts, everywhere or on one volume.

use serde::{Deserialize, Serialize};

/// What the guard does with a verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Refusals are carried out.
    #[default]
    Enforce,
    /// Nothing is refused, every would-be refusal is told.
    Audit,
    /// Of a volume: while it holds a format nobody but known programs may write to it.
    Strict,
}

impl Mode {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Audit => "audit",
            Self::Strict => "strict",
        }
    }
}
