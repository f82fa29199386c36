//! What a program's arguments say that it is about to do, read as the program itself reads them.
//!
//! Some programs destroy, re-label or do nothing at all, as they are told: their names alone say too little.
//! What their arguments say is a convenience for the honest caller, as the names are ([`crate::program`]); it
//! never lets more through than the class that is told.

use crate::{
    each::each,
    opaque,
    program::{Class, Grammar},
};

/// Bytes of a program's arguments that are looked at.
pub const ARGUMENTS: usize = 128;

/// What the arguments tell of a program of this class; the empty class where this one has no grammar.
#[inline(always)]
#[must_use]
pub fn class_of(class: Class, arguments: &[u8; ARGUMENTS]) -> Class {
    let grammar = class.grammar();
    let mut reader = Reader {
        arguments,
        grammar,
        valued: valued_letters(grammar),
        place: START,
        hash: BASIS,
        letter: 0,
        separate: 0,
        count: 0,
        after_option: 0,
        seen_device: 0,
        found: 0,
        unknown: first_word(arguments),
    };
    reader.forget();
    each(ARGUMENTS as u32, &mut reader, read);
    Class(reader.found)
}

/// A set of letters.
const fn letters(list: &[u8]) -> u64 {
    let mut set = 0;
    let mut i = 0;
    while i < list.len() {
        set |= bit(list[i]);
        i += 1;
    }
    set
}

/// No letter (digits and signs) is zero.
#[inline(always)]
const fn bit(letter: u8) -> u64 {
    if letter >= 64 && letter < 128 { 1 << (letter - 64) } else { 0 }
}

/// Short options that have a value: what follows in the same argument, or the next one.
#[inline(always)]
const fn valued_letters(grammar: u32) -> u64 {
    const SGDISK: u64 = letters(b"AaBbcdhijklmNnRrSTtUu");
    const MKE2FS: u64 = letters(b"bCdEeGgIiJLlMmNOoRrsTtUz");
    const MKFS_XFS: u64 = letters(b"bcdiLlmnprs");
    const MKFS_NILFS2: u64 = letters(b"bBLmOP");
    const WIPEFS: u64 = letters(b"Oot");
    const MDADM: u64 = letters(b"ceflnprsUuxNM");
    match Grammar(grammar) {
        Grammar::SGDISK => SGDISK,
        Grammar::MKE2FS => MKE2FS,
        Grammar::MKFS_XFS => MKFS_XFS,
        Grammar::MKFS_NILFS2 => MKFS_NILFS2,
        Grammar::WIPEFS => WIPEFS,
        Grammar::MDADM => MDADM,
        _ => 0,
    }
}

/// What a short option says.
#[inline(always)]
const fn short(grammar: u32, letter: u8) -> Class {
    match (Grammar(grammar), letter) {
        // They overwrite what is no partition table of theirs, too: the first key slot of a LUKS1 volume for
        // one.
        (Grammar::SGDISK, b'Z' | b'z') => Class::ERASER,
        // A new table. Its backup is written before anything that is a mark.
        (Grammar::SGDISK, b'o') => Class::FORMATTER,
        (Grammar::SGDISK, b'G' | b'U') => Class::RELABELLER.with(Class::PARTITIONS),
        (Grammar::MDADM, b'a') => Class::JOINS,
        (Grammar::MKE2FS | Grammar::MKFS_NILFS2 | Grammar::WIPEFS, b'n') | (Grammar::MKFS_XFS, b'N') => {
            Class::DRY_RUN
        }
        _ => Class::UNKNOWN,
    }
}

/// What a word or a long option says; of words that a program reads at one place only, there.
#[inline(always)]
const fn text(grammar: u32, hash: u64, count: u64) -> Class {
    const ERASE: u64 = hash_of(b"erase");
    const LUKS_ERASE: u64 = hash_of(b"luksErase");
    const LUKS_UUID: u64 = hash_of(b"luksUUID");
    const CONVERT: u64 = hash_of(b"convert");
    const FORMAT: u64 = hash_of(b"format");
    const ZAP: u64 = hash_of(b"--zap");
    const ZAP_ALL: u64 = hash_of(b"--zap-all");
    const CLEAR: u64 = hash_of(b"--clear");
    const RANDOMIZE: u64 = hash_of(b"--randomize-guids");
    const DISK_GUID: u64 = hash_of(b"--disk-guid");
    const DISK_ID: u64 = hash_of(b"--disk-id");
    const NO_ACT: u64 = hash_of(b"--no-act");
    const CREATE_MD: u64 = hash_of(b"create-md");
    const WIPE_MD: u64 = hash_of(b"wipe-md");
    const ADD: u64 = hash_of(b"--add");
    const ADD_SPARE: u64 = hash_of(b"--add-spare");
    const RE_ADD: u64 = hash_of(b"--re-add");
    const RESET: u64 = hash_of(b"reset");
    const FINISH: u64 = hash_of(b"finish");
    match (Grammar(grammar), hash) {
        // To the disk a change of key slots like any other, and without them the data are lost.
        (Grammar::CRYPTSETUP, ERASE | LUKS_ERASE) => Class::ERASER,
        (Grammar::CRYPTSETUP, LUKS_UUID | CONVERT) => Class::RELABELLER.with(Class::LUKS),
        // Of veritysetup and integritysetup; cryptsetup has no such action.
        (Grammar::CRYPTSETUP, FORMAT) => Class::FORMATTER,
        (Grammar::SGDISK, ZAP | ZAP_ALL) => Class::ERASER,
        (Grammar::SGDISK, CLEAR) => Class::FORMATTER,
        (Grammar::SGDISK, RANDOMIZE | DISK_GUID) | (Grammar::SFDISK, DISK_ID) => {
            Class::RELABELLER.with(Class::PARTITIONS)
        }
        (Grammar::WIPEFS, NO_ACT) => Class::DRY_RUN,
        (Grammar::DRBDMETA, CREATE_MD) => Class::FORMATTER,
        (Grammar::DRBDMETA, WIPE_MD) => Class::ERASER,
        (Grammar::MDADM, ADD | ADD_SPARE | RE_ADD) => Class::JOINS,
        (Grammar::BLKZONE, RESET | FINISH) if count == 1 => Class::ERASER,
        (Grammar::LVM, _) if count == 1 => lvm_command(hash),
        _ => Class::UNKNOWN,
    }
}

/// What a command of lvm(8) is known as: the same as the program of its name.
#[inline(always)]
const fn lvm_command(hash: u64) -> Class {
    const PVCREATE: u64 = hash_of(b"pvcreate");
    const PVREMOVE: u64 = hash_of(b"pvremove");
    const PVCHANGE: u64 = hash_of(b"pvchange");
    const VGIMPORTCLONE: u64 = hash_of(b"vgimportclone");
    const VGCHANGE: u64 = hash_of(b"vgchange");
    const PVRESIZE: u64 = hash_of(b"pvresize");
    const LVCREATE: u64 = hash_of(b"lvcreate");
    const LVCONVERT: u64 = hash_of(b"lvconvert");
    match hash {
        PVCREATE => Class::FORMATTER,
        PVREMOVE => Class::ERASER,
        PVCHANGE | VGIMPORTCLONE => Class::RELABELLER.with(Class::MAINTAINER),
        VGCHANGE | PVRESIZE | LVCREATE | LVCONVERT => Class::MAINTAINER,
        _ => Class::UNKNOWN,
    }
}

/// What the value of an option says.
#[inline(always)]
const fn value(grammar: u32, letter: u8, hash: u64) -> Class {
    const UUID: u64 = hash_of(b"uuid");
    match (Grammar(grammar), letter, hash) {
        (Grammar::MDADM, b'U', UUID) => Class::RELABELLER,
        _ => Class::UNKNOWN,
    }
}

// Where in an argument the next byte is.
const START: u64 = 0;
const DASH: u64 = 1;
/// Among short options.
const CLUSTER: u64 = 2;
const VALUE: u64 = 3;
/// In a word, or in the name of a long option.
const TEXT: u64 = 4;

// FNV-1a (RFC 9923).
const BASIS: u64 = 0xcbf2_9ce4_8422_2325;

#[inline(always)]
const fn feed(hash: u64, byte: u8) -> u64 {
    (hash ^ byte as u64).wrapping_mul(0x0000_0100_0000_01b3)
}

const fn hash_of(text: &[u8]) -> u64 {
    let mut hash = BASIS;
    let mut i = 0;
    while i < text.len() {
        hash = feed(hash, text[i]);
        i += 1;
    }
    hash
}

/// Reads a program's arguments byte by byte.
struct Reader<'a> {
    arguments: &'a [u8; ARGUMENTS],
    grammar: u32,
    found: u32,
    /// Short options that have a value.
    valued: u64,
    place: u64,
    /// Of the text so far.
    hash: u64,
    /// The option whose value is read.
    letter: u64,
    /// Not zero: the next argument is the value of the option before it.
    separate: u64,
    /// Arguments that were read; the program's own name is the first.
    count: u64,
    /// Not zero: the argument before was an option, whose value this may be.
    after_option: u64,
    /// Not zero: the device was named, so that the action was named before it.
    seen_device: u64,
    /// Of which the verifier knows nothing.
    unknown: u64,
}

impl Reader<'_> {
    /// The verifier follows the next byte once, wherever this one has led: on Linux 6.12 it followed 374,285
    /// instructions of a reader whose places it knew, and 5,259 on 6.1.
    #[inline(always)]
    fn forget(&mut self) {
        let unknown = self.unknown;
        let fields = [
            &mut self.valued,
            &mut self.place,
            &mut self.hash,
            &mut self.letter,
            &mut self.separate,
            &mut self.count,
            &mut self.after_option,
            &mut self.seen_device,
        ];
        for field in fields {
            *field = opaque(*field, unknown);
        }
        self.grammar = opaque(u64::from(self.grammar), unknown) as u32;
        self.found = opaque(u64::from(self.found), unknown) as u32;
    }
}

/// The first bytes: what the kernel copied from the process, which the verifier takes for anything.
#[inline(always)]
fn first_word(arguments: &[u8; ARGUMENTS]) -> u64 {
    arguments.first_chunk().map_or(0, |word| u64::from_ne_bytes(*word))
}

/// Looks at one byte more.
extern "C" fn read(number: u32, reader: *mut Reader<'_>) -> i64 {
    // SAFETY: `each` passes what it was given, which nothing else uses meanwhile.
    let reader = unsafe { &mut *reader };
    let Some(byte) = reader.arguments.get(number as usize) else { return 1 };
    match *byte {
        0 => end(reader),
        byte if reader.count > 0 => inside(reader, byte),
        _ => {}
    }
    reader.forget();
    0
}

#[inline(always)]
fn inside(reader: &mut Reader<'_>, byte: u8) {
    match reader.place {
        START if reader.separate != 0 => {
            reader.place = VALUE;
            in_value(reader, byte);
        }
        START if byte == b'-' => {
            reader.place = DASH;
            reader.hash = feed(reader.hash, byte);
        }
        START => {
            reader.place = TEXT;
            reader.hash = feed(reader.hash, byte);
            let is_device = byte == b'/' && reader.after_option == 0;
            reader.seen_device |= u64::from(is_device && Grammar(reader.grammar) == Grammar::CRYPTSETUP);
        }
        DASH if byte == b'-' => {
            reader.place = TEXT;
            reader.hash = feed(reader.hash, byte);
            reader.after_option = 2;
        }
        DASH | CLUSTER => {
            reader.place = CLUSTER;
            reader.found |= short(reader.grammar, byte).0;
            if reader.valued & bit(byte) != 0 {
                (reader.place, reader.hash, reader.letter) = (VALUE, BASIS, u64::from(byte));
            }
            reader.after_option = 2;
        }
        VALUE => in_value(reader, byte),
        _ if byte == b'=' => {
            const UPDATE: u64 = hash_of(b"--update");
            reader.found |= text(reader.grammar, reader.hash, reader.count).0;
            reader.letter = if reader.hash == UPDATE { u64::from(b'U') } else { 0 };
            // An empty value is no reason to wait for another.
            (reader.place, reader.hash, reader.separate) = (VALUE, BASIS, 1);
        }
        _ => reader.hash = feed(reader.hash, byte),
    }
}

#[inline(always)]
fn in_value(reader: &mut Reader<'_>, byte: u8) {
    const DEVICE: u64 = hash_of(b"device");
    let journal = Grammar(reader.grammar) == Grammar::MKE2FS && reader.letter == u64::from(b'J');
    if journal && byte == b'=' && reader.hash == DEVICE {
        reader.found |= Class::JOURNAL_USER.0;
    }
    reader.hash = if byte == b',' { BASIS } else { feed(reader.hash, byte) };
}

/// The argument's end.
#[inline(always)]
fn end(reader: &mut Reader<'_>) {
    const UPDATE: u64 = hash_of(b"--update");
    let mut separate = 0;
    if reader.place == VALUE && reader.hash == BASIS && reader.separate == 0 {
        separate = 1;
    } else if reader.place == VALUE {
        reader.found |= value(reader.grammar, reader.letter as u8, reader.hash).0;
    } else if reader.place == TEXT && reader.seen_device == 0 {
        reader.found |= text(reader.grammar, reader.hash, reader.count).0;
        if Grammar(reader.grammar) == Grammar::MDADM && reader.hash == UPDATE {
            (separate, reader.letter) = (1, u64::from(b'U'));
        }
    }
    (reader.place, reader.hash, reader.separate) = (START, BASIS, separate);
    reader.after_option >>= 1;
    reader.count += 1;
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{vec, vec::Vec};

    use super::*;

    /// What a line of words says, each of which ends with a NUL as the kernel keeps them.
    fn of(grammar: Grammar, line: &str) -> Class {
        let bytes: Vec<u8> = line.split(' ').flat_map(|word| [word.as_bytes(), b"\0"].concat()).collect();
        let mut arguments = [0; ARGUMENTS];
        for (to, from) in arguments.iter_mut().zip(bytes) {
            *to = from;
        }
        class_of(grammar.class(), &arguments)
    }

    fn all(grammar: Grammar, class: Class, lines: &[&str]) {
        for line in lines {
            assert_eq!(of(grammar, line), class, "{line}");
        }
    }

    #[test]
    fn cryptsetup_does_what_its_action_says() {
        let of_action = |class, lines: &[&str]| all(Grammar::CRYPTSETUP, class, lines);
        of_action(
            Class::ERASER,
            &[
                "cryptsetup erase /dev/sda",
                "cryptsetup -q luksErase /dev/sda",
                "x --header y erase /dev/sda",
                "x --header /y erase /dev/sda",
            ],
        );
        of_action(
            Class::RELABELLER.with(Class::LUKS),
            &["cryptsetup luksUUID --uuid 1-2 /dev/sda", "x -q convert --type luks1 /dev/sda"],
        );
        of_action(Class::FORMATTER, &["veritysetup format /dev/a /dev/b", "integritysetup format -q /dev/a"]);
        of_action(
            Class::UNKNOWN,
            &[
                "erase luksOpen /dev/mapper/erase x",
                "x luksKillSlot /dev/sda 1",
                "x open /dev/sda erase",
                "x open /dev/sda convert",
                "x open /dev/erased x",
                "",
            ],
        );
    }

    #[test]
    fn sgdisk_reads_bundled_options_and_their_values() {
        let of_options = |class, lines: &[&str]| all(Grammar::SGDISK, class, lines);
        of_options(
            Class::ERASER,
            &["sgdisk -Z /dev/sda", "sgdisk --zap-all /dev/sda", "sgdisk --zap /dev/sda", "sgdisk -pz x"],
        );
        of_options(Class::FORMATTER, &["sgdisk -o x", "sgdisk --clear x", "sgdisk -po x", "x -n 1:0:0 -o x"]);
        let both = Class::ERASER.with(Class::FORMATTER);
        of_options(both, &["sgdisk -Zo x", "sgdisk -oZ x", "sgdisk -o -z x", "sgdisk --zap-all --clear x"]);
        of_options(
            Class::RELABELLER.with(Class::PARTITIONS),
            &["sgdisk -G x", "sgdisk -U R x", "sgdisk --disk-guid=R x", "x --randomize-guids x"],
        );
        of_options(
            Class::UNKNOWN,
            &[
                "sgdisk -n 1:0:0 /dev/sda",
                "sgdisk -c 1:Zoo x",
                "sgdisk -c1:Zoo x",
                "sgdisk -t 1:-Z x",
                "sgdisk -c -Z x",
                "sgdisk -p /dev/-Z",
                "sgdisk -P --verify Zo",
                "-Z",
                "",
            ],
        );
    }

    #[test]
    fn a_dry_run_is_told_from_a_format() {
        for (grammar, dry, wet) in [
            (
                Grammar::MKE2FS,
                &["mke2fs -n x", "mkfs.ext4 -Fqn x", "x -t ext4 -n x", "x -b 1024 -Fn x"][..],
                &["mke2fs -N 100 x", "x -L -n x", "x -Ln x", "x -E -n x", "x n"][..],
            ),
            (Grammar::MKFS_XFS, &["x -N x", "x -fN x", "x -m crc=0 -N x"], &["x -n size=1 -f x", "x -L N x"]),
            (Grammar::MKFS_NILFS2, &["x -n x", "x -fn x"], &["x -L n x", "x -Bn x"]),
            (
                Grammar::WIPEFS,
                &["x -n -a x", "x -an x", "x --no-act -a x"],
                &["x -a x", "x -on x", "x -t n x"],
            ),
        ] {
            all(grammar, Class::DRY_RUN, dry);
            all(grammar, Class::UNKNOWN, wet);
        }
    }

    #[test]
    fn a_journal_on_another_device_is_named() {
        let journal = Class::JOURNAL_USER;
        all(
            Grammar::MKE2FS,
            journal,
            &["x -J device=/dev/a /dev/b", "x -Jdevice=/dev/a x", "x -F -J size=4,device=/dev/a x"],
        );
        all(Grammar::MKE2FS, Class::UNKNOWN, &["x -J size=4 x", "x -E device=x x", "x -L device=x x"]);
    }

    #[test]
    fn what_others_are_told() {
        all(
            Grammar::SFDISK,
            Class::RELABELLER.with(Class::PARTITIONS),
            &["sfdisk --disk-id x 1", "x --disk-id=1 x"],
        );
        all(Grammar::SFDISK, Class::UNKNOWN, &["sfdisk x", "x --delete x"]);
        all(
            Grammar::MDADM,
            Class::RELABELLER,
            &["mdadm -A m --update=uuid x", "x -A m -U uuid x", "x -A m -Uuuid x", "x -A m --update uuid x"],
        );
        all(
            Grammar::MDADM,
            Class::UNKNOWN,
            &["x -A m --update=name x", "x -A m -u uuid x", "x --create uuid"],
        );
        all(
            Grammar::MDADM,
            Class::JOINS,
            &[
                "x /dev/md0 --add y",
                "x /dev/md0 -a y",
                "x m --fail y --remove y --re-add y",
                "x m --add-spare y",
            ],
        );
        all(Grammar::DRBDMETA, Class::FORMATTER, &["drbdmeta 0 v08 /dev/x internal create-md"]);
        all(Grammar::DRBDMETA, Class::ERASER, &["drbdmeta --force 0 v09 /dev/x internal wipe-md"]);
        all(Grammar::DRBDMETA, Class::UNKNOWN, &["drbdmeta 0 v08 /dev/x internal apply-al"]);
        all(Grammar::BLKZONE, Class::ERASER, &["blkzone reset /dev/x", "blkzone finish -o 0 /dev/x"]);
        all(Grammar::BLKZONE, Class::UNKNOWN, &["blkzone report /dev/x", "blkzone open reset"]);
        all(Grammar::LVM, Class::FORMATTER, &["lvm pvcreate /dev/x"]);
        all(Grammar::LVM, Class::ERASER, &["lvm pvremove -ff /dev/x"]);
        all(
            Grammar::LVM,
            Class::RELABELLER.with(Class::MAINTAINER),
            &["lvm pvchange -u x", "lvm vgimportclone x"],
        );
        all(Grammar::LVM, Class::UNKNOWN, &["lvm vgs pvcreate", "pvcreate"]);
    }

    #[test]
    fn any_bytes_get_an_answer() {
        use proptest::prelude::*;
        let bytes =
            || prop::collection::vec(prop_oneof![Just(0_u8), Just(b'-'), Just(b'='), any::<u8>()], ARGUMENTS);
        let run =
            proptest::test_runner::TestRunner::default().run(&(bytes(), 0_u32..16), |(bytes, grammar)| {
                let arguments: [u8; ARGUMENTS] = vec![bytes].remove(0).try_into().expect("as many");
                let known =
                    Class::FORMATTER.with(Class::ERASER).with(Class::RELABELLER).with(Class::MAINTAINER);
                let known = known.with(Class::DRY_RUN).with(Class::JOURNAL_USER).with(Class::LUKS);
                let known = known.with(Class::PARTITIONS).with(Class::JOINS);
                let class = class_of(Class(grammar << Class::GRAMMAR_SHIFT), &arguments);
                prop_assert_eq!(class.0 & !known.0, 0);
                Ok(())
            });
        assert!(run.is_ok(), "{run:?}");
    }
}
