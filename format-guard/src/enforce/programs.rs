//! What every program is known as, whichever way the guard refuses.

use std::collections::BTreeMap;

use format_guard_common::program;

use super::canary;

/// What every program is known as, the operator's trust included. Trust adds to what a program is and takes
/// nothing away: a formatter stays one.
pub(super) fn known_programs(trusted: &[String]) -> BTreeMap<[u8; 16], program::Class> {
    let trusted = trusted.iter().map(|name| (program::comm(name), program::Class::TRUSTED));
    let tables = program::PROGRAMS.iter().map(|known| (program::comm(known.name), known.class));
    let mut known = BTreeMap::from([(program::comm(canary::NAME), program::Class::FORMATTER)]);
    for (comm, class) in tables.chain(trusted) {
        let entry = known.entry(comm).or_default();
        *entry = entry.with(class);
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trust_adds_to_what_a_program_is() {
        let known = known_programs(&["qemu-system-x86_64".to_owned(), "mkfs.ext4".to_owned()]);
        assert_eq!(known[&program::comm("qemu-system-x86")], program::Class::TRUSTED);
        assert!(known[&program::comm("mkfs.ext4")].is(program::Class::FORMATTER));
    }
}
