//! Derives the kernel's rule for a device from its volume's record. Nothing else makes rules.

use format_guard_common::{
    Check, CheckKind, Rule, State, flag,
    format::{FORMATS, Format, by_name},
};

use crate::record::Record;

/// The rule for a device of which nothing is known.
#[must_use]
pub fn unknown(audit: bool) -> Rule {
    let mut rule = Rule::new(0, 0, State::Unverified);
    push_foreign(&mut rule, &[]);
    if audit {
        rule.flags |= flag::AUDIT;
    }
    rule
}

/// The rule for `record`'s volume in the device `dev` (kernel `dev_t`) of this `diskseq`.
#[must_use]
pub fn of_record(record: &Record, dev: u32, diskseq: u64, audit: bool) -> Rule {
    let mut rule = Rule::new(dev, diskseq, record.state);
    if matches!(record.state, State::Formatted | State::Permitted | State::Formatting) {
        for mark in &record.marks {
            // A mark that does not fit was refused when it was read or stored.
            if let Some(check) = Check::new(mark.offset, &mark.bytes, mark.kind.into()) {
                let _ = rule.push(check);
            }
        }
    }
    let own: Vec<&Format> = record
        .content
        .iter()
        .flat_map(|content| content.types.iter().filter_map(|name| by_name(name)))
        .collect();
    // A blank volume, or one that may be re-formatted, begins anew by any format's magic.
    let own = if record.state == State::Formatted { own } else { Vec::new() };
    push_foreign(&mut rule, &own);
    if audit {
        rule.flags |= flag::AUDIT;
    }
    rule
}

fn push_foreign(rule: &mut Rule, own: &[&Format]) {
    let boot = own.iter().any(|format| format.boot_sector);
    for format in FORMATS {
        let related = own.iter().any(|own| own.names == format.names) || boot && format.boot_sector;
        if related {
            continue;
        }
        for magic in format.magics {
            if let Some(check) = Check::new(magic.offset, magic.bytes, CheckKind::Foreign) {
                // Room is a property of the tables (format.rs) and of the bound on marks (marks.rs).
                let _ = rule.push(check);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use format_guard_common::MAX_CHECKS;

    use super::*;
    use crate::volume::marks::{MAX_MARKS, Mark, MarkKind};

    #[test]
    fn marks_and_every_foreign_magic_fit_together() {
        let unknown = unknown(false);
        assert!(unknown.count as usize + MAX_MARKS <= MAX_CHECKS, "{}", unknown.count);
    }

    #[test]
    fn a_formatted_volume_keeps_its_marks_and_is_not_foreign_to_itself() {
        let mut record = Record::new("dm:x".into(), "dm".into(), false, 0);
        record.state = State::Formatted;
        record.marks = vec![Mark { offset: 0, kind: MarkKind::Magic, bytes: b"XFSB".to_vec() }];
        record.content = Some(crate::record::Content { types: vec!["xfs".into()], uuid: None, label: None });
        let rule = of_record(&record, 7, 9, true);
        assert_eq!(rule.checks()[0].kind, CheckKind::Magic as u32);
        assert!(!rule.checks()[1..].iter().any(|check| check.bytes[0] == rule.checks()[0].bytes[0]));
        assert_eq!(rule.flags, flag::AUDIT);
    }
}
