//! Compares what the program prints as JSON with its documented schemas.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// The schema of what a command line prints.
fn of(line: &str) -> Option<&'static str> {
    macro_rules! schema {
        ($name:literal) => {
            Some(include_str!(concat!("../../docs/json/", $name, ".schema.json")))
        };
    }
    let mut words = line.split_whitespace();
    match (words.next()?, words.next()) {
        ("status", _) => schema!("status"),
        ("volume", Some("list")) => schema!("volumes"),
        ("volume", Some("show" | "adopt" | "permit" | "revoke" | "exempt")) => schema!("volume"),
        ("volume", Some("untaint" | "forget")) => schema!("done"),
        ("volume", Some("rescue")) => schema!("rescue"),
        ("loss", Some("end")) => schema!("done"),
        ("mode", Some("enforce" | "audit" | "strict" | "--clear")) => schema!("done"),
        ("mode", _) => schema!("status"),
        ("events", _) if !line.contains("--follow") => schema!("events"),
        ("ensure-fs", _) => schema!("ensure-fs"),
        ("settle", _) => schema!("settled"),
        ("simulate", _) => schema!("simulation"),
        ("check", _) => schema!("check"),
        _ => None,
    }
}

/// Checks the output of a command line against its schema.
///
/// # Errors
/// When it is not: with the findings.
pub(crate) fn hold(line: &str, text: &str) -> Result<()> {
    let Some(schema) = of(line) else { return Ok(()) };
    let schema: Value = serde_json::from_str(schema)?;
    let value: Value = serde_json::from_str(text).with_context(|| text.to_owned())?;
    let validator = jsonschema::validator_for(&schema).map_err(|error| anyhow::anyhow!("{error}"))?;
    let findings: Vec<String> =
        validator.iter_errors(&value).map(|error| format!("{}: {error}", error.instance_path())).collect();
    ensure!(findings.is_empty(), "{line} prints what is not in its schema: {}", findings.join("; "));
    Ok(())
}
