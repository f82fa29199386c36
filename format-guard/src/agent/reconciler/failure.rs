//! What a client is told whose request is not carried out.

use crate::api::{self, Failure, FailureKind};

/// The agent or its store failed.
pub(super) fn failed(error: &(impl std::fmt::Display + ?Sized)) -> Failure {
    Failure::new(FailureKind::Failed, error.to_string())
}

/// The request cannot be carried out as it is.
pub(super) fn bad(text: String) -> Failure {
    Failure::new(FailureKind::BadRequest, text)
}

/// The reason that an operator gave, if it is one.
pub(super) fn reason_of(reason: &str, what: &str) -> Result<String, Failure> {
    api::reason(reason)
        .map(str::to_owned)
        .ok_or_else(|| bad(format!("{what} needs a reason of 1 to {} bytes", api::MAX_REASON)))
}
