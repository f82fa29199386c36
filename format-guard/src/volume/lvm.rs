//! Volumes that LVM makes for itself, as parts of others: it activates one for a moment, writes to it, and
//! takes it away again. Nothing of what is here may keep such a part busy at that moment; udev's own rules
//! leave them alone, too.

/// What names of such parts end in, before a number that some have. LVM lets nobody else use them
/// (`lvcreate`, LVM 2.03: `apply_lvname_restrictions` in lib/misc/lvm-string.c).
const PARTS: [&str; 17] = [
    "_cdata", "_cmeta", "_corig", "_cpool", "_cvol", "_imeta", "_iorig", "_mimage", "_mlog", "_pmspare",
    "_rimage", "_rmeta", "_tdata", "_tmeta", "_vdata", "_vorigin", "_wcorig",
];

/// Whether a device mapper device of this uuid and name is such a part.
#[must_use]
pub fn is_part(uuid: &str, name: &str) -> bool {
    let of = |part: &str| {
        let Some((_, rest)) = name.rsplit_once(part) else { return false };
        rest.strip_prefix('_').unwrap_or(rest).bytes().all(|byte| byte.is_ascii_digit())
    };
    uuid.starts_with("LVM-") && PARTS.into_iter().any(of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_told_by_their_names() {
        for name in ["vg-pool_tmeta", "vg-lv_rmeta_0", "vg-lvol0_pmspare", "vg-lv_rimage_12", "vg-main_corig"]
        {
            assert!(is_part("LVM-abc", name), "{name}");
        }
        for name in ["vg-lv", "vg-pool_tmeta_data", "vg-thin", "vg-my_cdata2x"] {
            assert!(!is_part("LVM-abc", name), "{name}");
        }
        assert!(!is_part("CRYPT-PLAIN-x_tmeta", "x_tmeta"));
    }
}
