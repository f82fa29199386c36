//! The name that an external provisioner gives a volume: it is a part of the id of many, and the name of
//! their `PersistentVolume` (`pvc-UUID`, sigs.k8s.io/sig-storage-lib-external-provisioner).

/// What the name begins with.
pub(crate) const PREFIX: &str = "pvc-";
/// Length of a UUID as text.
const UUID: usize = 36;

/// The `pvc-UUID` in a text.
pub(crate) fn name_in(text: &str) -> Option<&str> {
    text.match_indices(PREFIX).find_map(|(start, _)| {
        let name = text.get(start..start + PREFIX.len() + UUID)?;
        let uuid = &name[PREFIX.len()..];
        let shaped = uuid.bytes().enumerate().all(|(i, byte)| match i {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        });
        shaped.then_some(name)
    })
}
