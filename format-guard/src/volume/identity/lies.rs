//! Names that look like a volume's own and are not: counters, constants, stock serials, words that are chosen
//! at each attachment.
//!
//! One table, each row with its source. What it knows is never taken for an identity; what it does not know
//! is.

/// What some names have in common, and why they name nothing.
pub(super) struct Lie {
    /// Whose they are, for people.
    whose: &'static str,
    /// Where that is said.
    source: &'static str,
    /// Whether a name is one of them.
    is: fn(&str) -> bool,
}

impl Lie {
    /// What it is, and where that is said.
    pub(super) fn told(&self) -> String {
        format!("{} ({})", self.whose, self.source)
    }
}

/// The row that knows a name (`SCHEME:VALUE`) for a lie.
pub(super) fn lie(name: &str) -> Option<&'static Lie> {
    LIES.iter().find(|lie| (lie.is)(name))
}

const LIES: &[Lie] = &[
    Lie {
        whose: "a counter of tgt: 6000 0000 0000 0000 0e00, the target's number, the unit's",
        source: "tgt 1.0.92, usr/spc.c",
        is: |name| name.starts_with("scsi:naa.60000000"),
    },
    Lie {
        whose: "a counter of scsi_debug: 3333 333, host, target, unit",
        source: "Linux, drivers/scsi/scsi_debug.c",
        is: |name| name.starts_with("scsi:naa.3333333"),
    },
    Lie {
        whose: "a designator without a maker (OUI 000000) or without a number",
        source: "IEEE registration authority; multipath-tools #142 (UFS: 8ce38e0000000000 on each unit)",
        is: |name| {
            let digits = name.strip_prefix("scsi:naa.").and_then(|digits| digits.get(1..));
            digits.or_else(|| name.strip_prefix("scsi:eui.")).is_some_and(without_maker_or_number)
        },
    },
    Lie {
        whose: "a counter of tgt, or of the iSCSI Enterprise Target before it",
        source: "tgt 1.0.92, usr/target.c: \"IET\", the target's number, the unit's",
        is: |name| name.starts_with("scsi:t10.IET "),
    },
    Lie {
        whose: "qemu's disk without a serial of its own: its slot, or QM and a number",
        source: "QEMU, hw/ide/core.c, hw/scsi/scsi-disk.c",
        is: |name| name.starts_with("scsi:t10.") && name.contains("QEMU HARDDISK"),
    },
    Lie {
        whose: "a slot of Google's persistent disks, whose device name is a default",
        source: "cloud.google.com/compute/docs/disks/add-persistent-disk: persistent-disk-N",
        is: |name| name.starts_with("scsi:t10.Google ") && name.contains("persistent-disk-"),
    },
    Lie {
        whose: "a local disk of a Google host, by its place",
        source: "cloud.google.com/compute/docs/disks/local-ssd: local-ssd-N",
        is: |name| name.starts_with("scsi:t10.Google ") && name.contains("EphemeralDisk"),
    },
    Lie {
        whose: "a stock serial of a USB bridge or an ATA disk",
        source: "truenas/middleware #11231, unassigned.devices #66",
        is: |name| {
            let serial = name.strip_prefix("scsi:t10.").and_then(|words| words.split(' ').next_back());
            serial.is_some_and(is_stock)
        },
    },
    Lie {
        whose: "Google's NVMe disks: one serial for all",
        source: "GoogleCloudPlatform/guest-configs, google_nvme_id",
        is: |name| serial_of(name).is_some_and(|serial| serial.starts_with("6e766d655f63617264")),
    },
    Lie {
        whose: "Azure's NVMe disks: one serial for all, and namespaces by the unit's number",
        source: "Azure/azure-vm-utils #11; canonical/cloud-init #4598: SN: 000001",
        is: |name| serial_of(name).is_some_and(|serial| serial.starts_with("534e3a20")),
    },
    Lie {
        whose: "an NVMe controller without a serial",
        source: "NVM Express Base Specification 2.0, Identify Controller",
        is: |name| serial_of(name).is_some_and(|serial| serial.bytes().all(|digit| digit == b'0')),
    },
    Lie {
        whose: "zeros: the namespace has no such identifier, or one without a maker",
        source: "NVM Express Base Specification 2.0, 4.5.1",
        is: |name| {
            let value = name.strip_prefix("nvme:").filter(|value| !value.starts_with("nvme."));
            let digits: Option<String> =
                value.map(|value| value.chars().filter(char::is_ascii_hexdigit).collect());
            digits.is_some_and(|digits| {
                digits.bytes().all(|digit| digit == b'0')
                    || digits.len() == 16 && without_maker_or_number(&digits)
            })
        },
    },
];

/// Of an IEEE identifier in hexadecimal digits: 24 bits name the maker, the rest is the maker's number.
fn without_maker_or_number(digits: &str) -> bool {
    let zeros = |digits: &str| digits.bytes().all(|digit| digit == b'0');
    digits.len() < 6 || !digits.is_char_boundary(6) || zeros(&digits[..6]) || zeros(&digits[6..])
}

fn is_stock(serial: &str) -> bool {
    const STOCK: &[&str] =
        &["0123456789ABCDEF", "123456789ABCDEF", "ABCDEF0123456789", "0123456789", "1234567890"];
    let first = serial.bytes().next();
    let same = serial.len() >= 8 && serial.bytes().all(|byte| Some(byte) == first);
    // 000000000001: a number that nobody has counted on.
    let counted = serial.len() >= 8 && serial.trim_start_matches('0').len() == 1;
    same || counted || STOCK.iter().any(|stock| serial.to_ascii_uppercase().starts_with(stock))
}

/// The serial in the name that the kernel makes of vendor, serial, model and namespace
/// (drivers/nvme/host/sysfs.c, `wwid_show`).
fn serial_of(name: &str) -> Option<&str> {
    name.strip_prefix("nvme:nvme.")?.split('-').nth(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_to_lie_is_told_from_what_is_a_volumes_own() {
        let lies = [
            "scsi:naa.60000000000000000e00000000010001",
            "scsi:naa.33333330000007d0",
            "scsi:naa.0000000000000000",
            "scsi:naa.5000000000000001",
            "scsi:naa.5000c50000000000",
            "scsi:eui.0000000000000000",
            "scsi:eui.8ce38e0000000000",
            "scsi:t10.IET 00010001",
            "scsi:t10.ATA QEMU HARDDISK QM00001",
            "scsi:t10.Google PersistentDisk persistent-disk-1",
            "scsi:t10.Google EphemeralDisk local-ssd-0",
            "scsi:t10.ATA WDC 0123456789ABCDEF",
            "scsi:t10.JMicron Generic 0123456789abcdef0",
            "scsi:t10.ASMT 2105 000000000000",
            "scsi:t10.ASMT 2105 000000000001",
            "nvme:nvme.1ae0-6e766d655f636172642d7064-6e766d65-00000001",
            "nvme:nvme.1414-534e3a20303030303031-4d534654-00000002",
            "nvme:nvme.1b36--51454d55-00000001",
            "nvme:00000000-0000-0000-0000-000000000000",
            "nvme:00 00 00 00 01 00 00 00",
        ];
        for name in lies {
            assert!(lie(name).is_some(), "{name}");
        }
        let own = [
            "scsi:naa.6001405f0e7a4d1c2b3a4d5e6f708192",
            "scsi:naa.5000c50000000001",
            "scsi:naa.60022480a1b2c3d4",
            "scsi:eui.0025385a61b14a1c",
            "scsi:t10.Google PersistentDisk pvc-1",
            "scsi:t10.ATA ST4000 Z1Z0ABCD",
            "scsi:t10.ATA VBOX HARDDISK VB1b2c3d4e-00000001",
            "nvme:nvme.1d0f-766f6c3031-416d617a6f6e-00000001",
            "nvme:b1f9a2ba-1f0f-4c5e-9d3c-2f0c4ad5d1a0",
            "nvme:00 25 38 5a 61 b1 4a 1c",
        ];
        for name in own {
            assert!(lie(name).is_none(), "{name}: {}", lie(name).map_or("", |lie| lie.whose));
        }
        assert!(LIES.iter().all(|lie| !lie.source.is_empty()));
    }
}
