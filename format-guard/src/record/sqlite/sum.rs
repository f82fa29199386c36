//! Sums of what is stored: `PRAGMA integrity_check` looks at how a file is built, and passes a bit that has
//! flipped in a value. Against accidents; whoever may write the file can write a sum, too.

use sha2::{Digest, Sha256};

use super::{Ends, Record, StoreError, StoredCopy, json};

/// Of every column of a record, its marks and its permit.
pub(super) fn of_record(record: &Record) -> Result<i64, StoreError> {
    let marks: Vec<_> =
        record.marks.iter().map(|mark| (mark.offset, mark.kind.name(), &mark.bytes)).collect();
    let known = (
        record.id.as_str(),
        &record.origin,
        record.weak,
        record.state.name(),
        record.since,
        &record.cause,
        &record.content,
        marks,
        record.ever_formatted,
        record.mounted,
    );
    let rest = (
        &record.formatter,
        &record.permit,
        &record.discrepancy,
        record.first_seen,
        record.audit,
        record.strict,
        &record.boot,
        &record.armed,
    );
    // A version without generations, without ends, or without media, stored sums without them.
    Ok(of_text(&match (record.generation, record.ends.as_ref().map(Ends::text), &record.medium) {
        (0, None, None) => json(&(known, rest))?,
        (generation, None, None) => json(&(known, rest, generation))?,
        (generation, ends, None) => json(&(known, rest, generation, ends))?,
        (generation, ends, medium) => json(&(known, rest, generation, ends, medium))?,
    }))
}

/// Of a setting.
pub(super) fn of_setting(name: &str, value: &str) -> Result<i64, StoreError> {
    Ok(of_text(&json(&(name, value))?))
}

/// Of a name and its volume.
pub(super) fn of_name(name: &str, volume: &str) -> Result<i64, StoreError> {
    of_setting(name, volume)
}

/// Of a copy.
pub(super) fn of_copy(volume: &str, copy: &StoredCopy) -> i64 {
    let mut digest = Sha256::new();
    digest.update(volume);
    for number in [copy.generation, copy.at.cast_unsigned(), copy.size] {
        digest.update(number.to_le_bytes());
    }
    digest.update(&copy.packed);
    first_of(&digest.finalize())
}

fn of_text(text: &str) -> i64 {
    first_of(&Sha256::digest(text))
}

/// The first eight bytes of a SHA-256, big-endian.
fn first_of(digest: &[u8]) -> i64 {
    digest.iter().take(size_of::<i64>()).fold(0, |sum, byte| sum << 8 | i64::from(*byte))
}
