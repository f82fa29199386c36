//! Which commands sent to a device past the block layer (`SG_IO`, `NVMe` passthrough) can change what it
//! holds.
//!
//! Tables of what is known to leave the medium alone; everything else, what a vendor made up included, may
//! change it. A command that only reads is never held up: udev, multipathd and smartd live by them.

/// Commands by opcode: bit `opcode % 64` of word `opcode / 64`.
type Opcodes = [u64; 4];

const fn opcodes(list: &[u8]) -> Opcodes {
    let mut set = [0; 4];
    let mut i = 0;
    while i < list.len() {
        set[(list[i] >> 6) as usize] |= 1 << (list[i] & 63);
        i += 1;
    }
    set
}

#[inline(always)]
const fn has(set: &Opcodes, opcode: u8) -> bool {
    set[(opcode >> 6) as usize] >> (opcode & 63) & 1 == 1
}

/// SPC-5 and SBC-4, annexes of operation codes; MMC-6 for optical drives. What sets parameters of the device
/// (MODE SELECT, PERSISTENT RESERVE OUT) is here: it leaves the medium alone.
const SCSI: Opcodes = opcodes(&[
    0x00, // TEST UNIT READY
    0x03, // REQUEST SENSE
    0x08, // READ(6)
    0x12, // INQUIRY
    0x15, // MODE SELECT(6)
    0x16, // RESERVE(6)
    0x17, // RELEASE(6)
    0x1a, // MODE SENSE(6)
    0x1b, // START STOP UNIT
    0x1c, // RECEIVE DIAGNOSTIC RESULTS
    0x1d, // SEND DIAGNOSTIC
    0x1e, // PREVENT ALLOW MEDIUM REMOVAL
    0x25, // READ CAPACITY(10)
    0x28, // READ(10)
    0x2b, // SEEK(10)
    0x2f, // VERIFY(10)
    0x34, // PRE-FETCH(10)
    0x35, // SYNCHRONIZE CACHE(10)
    0x37, // READ DEFECT DATA(10)
    0x3c, // READ BUFFER(10)
    0x43, // READ TOC/PMA/ATIP
    0x46, // GET CONFIGURATION
    0x4a, // GET EVENT STATUS NOTIFICATION
    0x4c, // LOG SELECT
    0x4d, // LOG SENSE
    0x51, // READ DISC INFORMATION
    0x52, // READ TRACK INFORMATION
    0x55, // MODE SELECT(10)
    0x56, // RESERVE(10)
    0x57, // RELEASE(10)
    0x5a, // MODE SENSE(10)
    0x5e, // PERSISTENT RESERVE IN
    0x5f, // PERSISTENT RESERVE OUT
    0x84, // RECEIVE COPY RESULTS
    0x88, // READ(16)
    0x8c, // READ ATTRIBUTE
    0x8f, // VERIFY(16)
    0x90, // PRE-FETCH(16)
    0x91, // SYNCHRONIZE CACHE(16)
    0x95, // ZBC IN
    0x9b, // READ BUFFER(16)
    0x9e, // SERVICE ACTION IN(16)
    0xa0, // REPORT LUNS
    0xa2, // SECURITY PROTOCOL IN
    0xa3, // MAINTENANCE IN
    0xa8, // READ(12)
    0xab, // SERVICE ACTION IN(12)
    0xaf, // VERIFY(12)
    0xb7, // READ DEFECT DATA(12)
]);

/// SCSI commands that carry an ATA command (SAT-4, 12.2): place of that one's opcode.
const ATA_PASS_THROUGH_12: (u8, usize) = (0xa1, 9);
const ATA_PASS_THROUGH_16: (u8, usize) = (0x85, 14);

/// ACS-4, annex B.
const ATA: Opcodes = opcodes(&[
    0x20, // READ SECTOR(S)
    0x24, // READ SECTOR(S) EXT
    0x25, // READ DMA EXT
    0x27, // READ NATIVE MAX ADDRESS EXT
    0x29, // READ MULTIPLE EXT
    0x2f, // READ LOG EXT
    0x40, // READ VERIFY SECTOR(S)
    0x42, // READ VERIFY SECTOR(S) EXT
    0x47, // READ LOG DMA EXT
    0x4a, // ZAC MANAGEMENT IN
    0x5c, // TRUSTED RECEIVE
    0x5d, // TRUSTED RECEIVE DMA
    0x90, // EXECUTE DEVICE DIAGNOSTIC
    0xa1, // IDENTIFY PACKET DEVICE
    0xb0, // SMART
    0xc4, // READ MULTIPLE
    0xc8, // READ DMA
    0xe0, // STANDBY IMMEDIATE
    0xe1, // IDLE IMMEDIATE
    0xe2, // STANDBY
    0xe3, // IDLE
    0xe4, // READ BUFFER
    0xe5, // CHECK POWER MODE
    0xe6, // SLEEP
    0xe7, // FLUSH CACHE
    0xea, // FLUSH CACHE EXT
    0xec, // IDENTIFY DEVICE
    0xef, // SET FEATURES
    0xf8, // READ NATIVE MAX ADDRESS
]);

/// NVM Express base specification 2.0, figure 138.
const NVME_ADMIN: Opcodes = opcodes(&[
    0x02, // Get Log Page
    0x06, // Identify
    0x08, // Abort
    0x09, // Set Features
    0x0a, // Get Features
    0x0c, // Asynchronous Event Request
    0x14, // Device Self-test
    0x18, // Keep Alive
    0x1a, // Directive Receive
    0x1e, // NVMe-MI Receive
    0x82, // Security Receive
]);

/// NVM command set specification 1.0, figure 20, and the I/O commands of the base specification.
const NVME_IO: Opcodes = opcodes(&[
    0x00, // Flush
    0x02, // Read
    0x05, // Compare
    0x0c, // Verify
    0x0d, // Reservation Register
    0x0e, // Reservation Report
    0x11, // Reservation Acquire
    0x12, // I/O Management Receive
    0x15, // Reservation Release
    0x7a, // Zone Management Receive
]);

/// A command, as far as it is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// The first 16 bytes of a SCSI command descriptor block, zero beyond its end.
    Scsi([u8; 16]),
    /// The opcode of an `NVMe` admin command.
    NvmeAdmin(u8),
    /// The opcode of an `NVMe` I/O command.
    NvmeIo(u8),
    /// One that cannot be read.
    Unreadable,
}

/// Above the opcode in [`Command::code`].
const ADMIN: u64 = 0x100;
const IO: u64 = 0x200;
const UNREADABLE: u64 = 0x300;

impl Command {
    /// A number for it, to be told by.
    #[inline(always)]
    #[must_use]
    pub const fn code(&self) -> u64 {
        match self {
            Self::Scsi(block) => block[0] as u64,
            Self::NvmeAdmin(opcode) => ADMIN | *opcode as u64,
            Self::NvmeIo(opcode) => IO | *opcode as u64,
            Self::Unreadable => UNREADABLE,
        }
    }

    /// The kind of command with this number, and its opcode.
    #[must_use]
    pub const fn of_code(code: u64) -> (&'static str, u8) {
        let kind = match code & !0xff {
            0 => "SCSI",
            ADMIN => "NVMe admin",
            IO => "NVMe I/O",
            _ => "unreadable",
        };
        (kind, code as u8)
    }

    /// Whether it may change what the device holds.
    #[inline(always)]
    #[must_use]
    pub const fn may_write(&self) -> bool {
        match self {
            Self::Scsi(block) => {
                let (opcode, ata) = (block[0], (block[ATA_PASS_THROUGH_12.1], block[ATA_PASS_THROUGH_16.1]));
                if opcode == ATA_PASS_THROUGH_12.0 {
                    !has(&ATA, ata.0)
                } else if opcode == ATA_PASS_THROUGH_16.0 {
                    !has(&ATA, ata.1)
                } else {
                    !has(&SCSI, opcode)
                }
            }
            Self::NvmeAdmin(opcode) => !has(&NVME_ADMIN, *opcode),
            Self::NvmeIo(opcode) => !has(&NVME_IO, *opcode),
            Self::Unreadable => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scsi(bytes: &[u8]) -> Command {
        let mut block = [0; 16];
        block[..bytes.len()].copy_from_slice(bytes);
        Command::Scsi(block)
    }

    #[test]
    fn what_writes_or_erases_is_told_from_what_reads() {
        // WRITE(10), UNMAP, WRITE SAME(16), FORMAT UNIT, SANITIZE, WRITE(32) and a vendor's own.
        for opcode in [0x2a, 0x42, 0x93, 0x04, 0x48, 0x7f, 0xc0] {
            assert!(scsi(&[opcode]).may_write(), "{opcode:#x}");
        }
        // INQUIRY, READ(16), REPORT TARGET PORT GROUPS.
        for opcode in [0x12, 0x88, 0xa3] {
            assert!(!scsi(&[opcode]).may_write(), "{opcode:#x}");
        }
        // Write, Write Zeroes, Dataset Management, Copy.
        for opcode in [0x01, 0x08, 0x09, 0x19] {
            assert!(Command::NvmeIo(opcode).may_write(), "{opcode:#x}");
        }
        // Zone Management Send (which resets zones), Zone Append; ZBC OUT.
        for opcode in [0x79, 0x7d] {
            assert!(Command::NvmeIo(opcode).may_write(), "{opcode:#x}");
        }
        assert!(
            scsi(&[0x94]).may_write() && !scsi(&[0x95]).may_write() && !Command::NvmeIo(0x7a).may_write()
        );
        // Format NVM, Sanitize, Namespace Management.
        for opcode in [0x80, 0x84, 0x0d] {
            assert!(Command::NvmeAdmin(opcode).may_write(), "{opcode:#x}");
        }
        assert!(!Command::NvmeAdmin(0x06).may_write() && !Command::NvmeIo(0x02).may_write());
        assert!(Command::Unreadable.may_write());
    }

    #[test]
    fn a_number_tells_the_command() {
        assert_eq!(Command::of_code(scsi(&[0x2a]).code()), ("SCSI", 0x2a));
        assert_eq!(Command::of_code(Command::NvmeAdmin(0x80).code()), ("NVMe admin", 0x80));
        assert_eq!(Command::of_code(Command::NvmeIo(0x01).code()), ("NVMe I/O", 0x01));
        assert_eq!(Command::of_code(Command::Unreadable.code()).0, "unreadable");
    }

    #[test]
    fn an_ata_command_is_judged_in_its_wrapping() {
        // smartctl: SMART by ATA PASS-THROUGH(16); hdparm: SECURITY ERASE UNIT and DATA SET MANAGEMENT.
        let wrapped = |command| scsi(&[0x85, 0x08, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, command]);
        assert!(!wrapped(0xb0).may_write());
        assert!(wrapped(0xf4).may_write() && wrapped(0x06).may_write());
        assert!(wrapped(0x9f).may_write() && !wrapped(0x4a).may_write(), "ZAC MANAGEMENT OUT, IN");
        assert!(!scsi(&[0xa1, 0x08, 0, 0, 0, 0, 0, 0, 0, 0xec]).may_write());
        assert!(scsi(&[0xa1, 0x08, 0, 0, 0, 0, 0, 0, 0, 0xca]).may_write());
    }
}
