//! What the kernel programs report, or the library in their place: each raw record is decoded here, once.

use std::time::Duration;

use format_guard_common::{
    Operation, Reason,
    event::{EventKind, KernelEvent, Process},
    protection::Tampering,
};

use crate::volume::Dev;

/// One report. What a kind does not tell is zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What happened.
    pub what: Happened,
    /// On which device.
    pub dev: Dev,
    /// In which attachment.
    pub diskseq: u64,
    /// Which process did it.
    pub process: Process,
    /// Its name (`task_struct.comm`), NUL-padded.
    pub comm: [u8; 16],
    /// Its control group (v2).
    pub cgroup: u64,
    /// When, since the host was booted (`CLOCK_BOOTTIME`).
    pub at: Duration,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happened {
    /// A request was refused, or would have been.
    Refused(Refused),
    /// A known formatter waits until the device is read.
    Waits,
    /// A process has begun to format a blank or permitted volume; with what it has written, bits of
    /// [`wrote`](format_guard_common::event::wrote).
    FormatBegan(u32),
    /// The process that formatted has ended, with this wait status.
    FormatEnded(u32),
    /// A re-labelling tool changes the UUID.
    Relabelled,
    /// The owner of a logical volume wipes an old signature.
    OwnerWiped,
    /// A file system on the device was mounted.
    Mounted,
    /// The device is gone.
    Gone,
    /// Somebody was kept from taking the guard away.
    Tampered {
        /// By which way; `None`: one that this program does not know.
        tried: Option<Tampering>,
        /// Number of the object or signal.
        number: u64,
    },
}

/// A request that was refused, or would have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// It was refused; else it would have been, in audit mode.
    pub carried_out: bool,
    /// Why; `None`: for a reason that this program does not know.
    pub reason: Option<Reason>,
    /// The operation; `None` for one that this program does not know.
    pub operation: Option<Operation>,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// The device below through which it was tried, where that is another one.
    pub through: Option<Dev>,
}

impl Report {
    /// Decodes a record; `None` where its kind is unknown.
    #[must_use]
    pub fn decode(record: &KernelEvent) -> Option<Self> {
        let refused = |carried_out| {
            Happened::Refused(Refused {
                carried_out,
                reason: Reason::from_raw(record.reason),
                operation: Operation::from_raw(record.operation),
                offset: record.offset,
                length: record.length,
                through: (record.through != 0).then(|| Dev::from_kernel(record.through)),
            })
        };
        let what = match EventKind::from_raw(record.kind)? {
            EventKind::Denied => refused(true),
            EventKind::WouldDeny => refused(false),
            EventKind::FormatBegan => Happened::FormatBegan(record.reason),
            EventKind::FormatEnded => Happened::FormatEnded(record.status),
            EventKind::Relabelled => Happened::Relabelled,
            EventKind::OwnerWiped => Happened::OwnerWiped,
            EventKind::Mounted => Happened::Mounted,
            EventKind::Gone => Happened::Gone,
            EventKind::Tampered => {
                Happened::Tampered { tried: Tampering::from_raw(record.operation), number: record.offset }
            }
            EventKind::Waits => Happened::Waits,
        };
        Some(Self {
            what,
            dev: Dev::from_kernel(record.dev),
            diskseq: record.diskseq,
            process: record.process,
            comm: record.comm,
            cgroup: record.cgroup,
            at: Duration::from_nanos(record.at),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_no_known_kind_is_none_and_unknown_numbers_are_no_error() {
        assert_eq!(Report::decode(&KernelEvent { kind: 77, ..KernelEvent::default() }), None);
        let record =
            KernelEvent { kind: 1, reason: 99, operation: 99, dev: 8 << 20, ..KernelEvent::default() };
        let report = Report::decode(&record).expect("a refusal");
        let Happened::Refused(refused) = report.what else { panic!("{report:?}") };
        assert_eq!((refused.reason, refused.operation, refused.through), (None, None, None));
        assert_eq!(report.dev, Dev { major: 8, minor: 0 });
    }
}
