//! What the verifier says of a program that it refuses.

use aya::programs::ProgramError;

/// The error in one line, and the end of the verifier's log, where its reason stands.
pub(super) fn reason(error: &ProgramError) -> String {
    let ProgramError::LoadError { io_error, verifier_log } = error else { return error.to_string() };
    format!("{io_error}{}", end_of(&verifier_log.to_string()))
}

/// The end of the verifier's log, to be put after an error.
pub(super) fn end_of(log: &str) -> String {
    const LINES: usize = 12;
    let lines: Vec<&str> = log.lines().collect();
    if lines.is_empty() {
        return String::new();
    }
    let tail = &lines[lines.len().saturating_sub(LINES)..];
    format!("; the verifier says:\n  {}", tail.join("\n  "))
}
