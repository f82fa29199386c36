//! Where the running kernel keeps the fields that the kernel programs read, found in its BTF.
//!
//! aya's Rust programs carry no CO-RE relocations, so the offsets are written into their read-only globals
//! before load. A field that a kernel lacks is an error that names it; there are no defaults, a wrong offset
//! reads garbage.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Write},
    os::fd::AsRawFd,
    path::Path,
};

use btf_rs::{Backend, Btf, Struct, Type};
use regex::Regex;
use rustix::fs::{MemfdFlags, memfd_create};

use crate::enforce::error::OffsetError;

/// A structure field whose offset a kernel program needs.
struct Field {
    /// The global of format-guard-ebpf/src/kernel.rs.
    global: &'static str,
    structure: &'static str,
    /// Names that the field had over the versions, newest first.
    names: &'static [&'static str],
}

const fn field(global: &'static str, structure: &'static str, names: &'static [&'static str]) -> Field {
    Field { global, structure, names }
}

const FIELDS: &[Field] = &[
    field("FILE_F_INODE", "file", &["f_inode"]),
    field("FILE_F_MODE", "file", &["f_mode"]),
    field("FILE_F_POS", "file", &["f_pos"]),
    field("FILE_F_MAPPING", "file", &["f_mapping"]),
    field("MAPPING_HOST", "address_space", &["host"]),
    field("INODE_I_MODE", "inode", &["i_mode"]),
    field("INODE_I_RDEV", "inode", &["i_rdev"]),
    field("KIOCB_KI_POS", "kiocb", &["ki_pos"]),
    field("KIOCB_KI_FILP", "kiocb", &["ki_filp"]),
    field("IO_RW_ADDR", "io_rw", &["addr"]),
    field("IO_RW_LEN", "io_rw", &["len"]),
    field("IO_KIOCB_OPCODE", "io_kiocb", &["opcode"]),
    field("IO_KIOCB_WORK", "io_kiocb", &["work"]),
    field("TASK_WORKER_PRIVATE", "task_struct", &["worker_private"]),
    field("IO_WORKER_CUR_WORK", "io_worker", &["cur_work"]),
    field("TASK_IO_URING", "task_struct", &["io_uring"]),
    field("IO_TASK_LAST", "io_uring_task", &["last"]),
    field("RING_FLAGS", "io_ring_ctx", &["flags"]),
    field("RING_RINGS", "io_ring_ctx", &["rings"]),
    field("RING_QUEUE_HEAD", "io_ring_ctx", &["cached_sq_head"]),
    field("RING_QUEUE_ENTRIES", "io_ring_ctx", &["sq_entries"]),
    field("RING_QUEUE_INDEX", "io_ring_ctx", &["sq_array"]),
    field("RING_QUEUE_SQES", "io_ring_ctx", &["sq_sqes"]),
    field("MM_TASK_SIZE", "mm_struct", &["task_size"]),
    field("URING_CMD_FILE", "io_uring_cmd", &["file"]),
    field("URING_CMD_SQE", "io_uring_cmd", &["sqe", "cmd"]),
    field("URING_CMD_OP", "io_uring_cmd", &["cmd_op"]),
    field("BDEV_INODE_VFS_INODE", "bdev_inode", &["vfs_inode"]),
    field("BDEV_BD_DISK", "block_device", &["bd_disk"]),
    field("BDEV_BD_DEV", "block_device", &["bd_dev"]),
    field("DISK_DISKSEQ", "gendisk", &["diskseq"]),
    field("DISK_MAJOR", "gendisk", &["major"]),
    field("DISK_FIRST_MINOR", "gendisk", &["first_minor"]),
    field("TASK_FILES", "task_struct", &["files"]),
    field("FILES_FDT", "files_struct", &["fdt"]),
    field("FDTABLE_FD", "fdtable", &["fd"]),
    field("FDTABLE_MAX_FDS", "fdtable", &["max_fds"]),
    field("SUPER_S_BDEV", "super_block", &["s_bdev"]),
    field("TASK_FLAGS", "task_struct", &["flags"]),
    field("TASK_COMM", "task_struct", &["comm"]),
    field("TASK_TGID", "task_struct", &["tgid"]),
    field("TASK_GROUP_LEADER", "task_struct", &["group_leader"]),
    field("TASK_START_BOOTTIME", "task_struct", &["start_boottime"]),
    field("TASK_EXIT_CODE", "task_struct", &["exit_code"]),
    field("TASK_SIGNAL", "task_struct", &["signal"]),
    field("TASK_MM", "task_struct", &["mm"]),
    field("MM_ARG_START", "mm_struct", &["arg_start"]),
    field("MM_ARG_END", "mm_struct", &["arg_end"]),
    field("SIGNAL_LIVE", "signal_struct", &["live"]),
    field("VMA_VM_FILE", "vm_area_struct", &["vm_file"]),
    field("VMA_VM_FLAGS", "vm_area_struct", &["vm_flags"]),
    field("INODE_I_INO", "inode", &["i_ino"]),
    field("INODE_I_SB", "inode", &["i_sb"]),
    field("SUPER_S_DEV", "super_block", &["s_dev"]),
    field("MM_EXE_FILE", "mm_struct", &["exe_file"]),
    field("DENTRY_D_INODE", "dentry", &["d_inode"]),
    field("VFSMOUNT_MNT_SB", "vfsmount", &["mnt_sb"]),
    field("TASK_NSPROXY", "task_struct", &["nsproxy"]),
    field("NSPROXY_MNT_NS", "nsproxy", &["mnt_ns"]),
    field("MAP_ID", "bpf_map", &["id"]),
    field("PROG_AUX", "bpf_prog", &["aux"]),
    field("PROG_AUX_ID", "bpf_prog_aux", &["id"]),
];

/// Fields of structures that are embedded in others: the global, then the structure and field of each.
const EMBEDDED: &[(&str, [(&str, &str); 2])] = &[
    // CONFIG_THREAD_INFO_IN_TASK, always so on x86_64.
    ("TASK_THREAD_STATUS", [("task_struct", "thread_info"), ("thread_info", "status")]),
    ("MNT_NS_INUM", [("mnt_namespace", "ns"), ("ns_common", "inum")]),
    ("RING_LOCK_OWNER", [("io_ring_ctx", "uring_lock"), ("mutex", "owner")]),
    ("RING_HEAD", [("io_rings", "sq"), ("io_uring", "head")]),
];

/// The kernel's own BTF.
pub const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// The running kernel's types, of those that the guard asks for.
pub struct KernelTypes {
    btf: Btf,
    /// The structures of [`FIELDS`] and [`EMBEDDED`] and the functions, by name: types may share a name.
    by_name: BTreeMap<String, Vec<Type>>,
}

impl KernelTypes {
    /// Reads them from `path`, usually [`KERNEL_BTF`]: the structures that have the fields, and these
    /// functions.
    pub fn read(path: &Path, functions: &BTreeSet<String>) -> Result<Self, OffsetError> {
        let bytes = std::fs::read(path).map_err(|error| error.to_string());
        bytes
            .and_then(|bytes| Self::of(&bytes, functions))
            .map_err(|reason| OffsetError::Unreadable { path: path.display().to_string(), reason })
    }

    /// The types in these bytes, or what is wrong with them.
    pub(crate) fn of(bytes: &[u8], functions: &BTreeSet<String>) -> Result<Self, String> {
        let copy = copy(bytes).map_err(|error| error.to_string())?;
        // The guard asks for a hundred types of a hundred thousand. To parse all types takes longer, and tens
        // of megabytes; to look for each by itself reads the names of all types a hundred times.
        let copy = format!("/proc/self/fd/{}", copy.as_raw_fd());
        let btf = Btf::from_file_with_backend(copy, Backend::Mmap).map_err(|error| error.to_string())?;
        let structures = FIELDS.iter().map(|field| field.structure);
        let embedded = EMBEDDED.iter().flat_map(|(_, path)| path.map(|(structure, _)| structure));
        let names: BTreeSet<&str> =
            structures.chain(embedded).chain(functions.iter().map(String::as_str)).collect();
        let names: Vec<String> = names.into_iter().map(regex::escape).collect();
        let names = Regex::new(&format!("^(?:{})$", names.join("|"))).map_err(|error| error.to_string())?;
        let mut by_name: BTreeMap<String, Vec<Type>> = BTreeMap::new();
        for kind in btf.resolve_types_by_regex(&names).map_err(|error| error.to_string())? {
            let name = kind.as_btf_type().and_then(|kind| btf.resolve_name(kind).ok());
            by_name.entry(name.unwrap_or_default()).or_default().push(kind);
        }
        Ok(Self { btf, by_name })
    }

    /// Whether the kernel has a function of this name that programs can attach to, of those that were asked
    /// for.
    #[must_use]
    pub fn has_function(&self, name: &str) -> bool {
        self.types(name).iter().any(|kind| matches!(kind, Type::Func(_)))
    }

    fn types(&self, name: &str) -> &[Type] {
        self.by_name.get(name).map_or(&[], Vec::as_slice)
    }

    /// Every global of the kernel programs with its offset in bytes.
    pub fn offsets(&self) -> Result<Vec<(&'static str, u32)>, OffsetError> {
        let offset = |structure: &'static str, names: &[&'static str]| {
            self.offset(self.types(structure), names)
                .ok_or(OffsetError::NoField { structure, field: names.first().copied().unwrap_or("?") })
        };
        let mut offsets = FIELDS
            .iter()
            .map(|field| Ok((field.global, offset(field.structure, field.names)?)))
            .collect::<Result<Vec<_>, OffsetError>>()?;
        for (global, [(outer, embedded), (inner, name)]) in EMBEDDED {
            let (outer, inner) = (offset(outer, &[*embedded])?, offset(inner, &[*name])?);
            offsets.push((*global, outer.saturating_add(inner)));
        }
        Ok(offsets)
    }

    /// Of the first of these names that one of these types has, in bytes.
    fn offset(&self, types: &[Type], names: &[&'static str]) -> Option<u32> {
        let of = |name: &&str| {
            types.iter().find_map(|kind| match kind {
                Type::Struct(found) => self.bit_offset(found, name, 0),
                _ => None,
            })
        };
        names.iter().find_map(of).filter(|bits| bits % 8 == 0).map(|bits| bits / 8)
    }

    /// Looks through anonymous members, too; their depth in the kernel is below 8.
    fn bit_offset(&self, structure: &Struct, name: &str, depth: u32) -> Option<u32> {
        if depth > 8 {
            return None;
        }
        structure.members.iter().find_map(|member| {
            let own = self.btf.resolve_name(member).unwrap_or_default();
            if own == name {
                return Some(member.bit_offset());
            }
            if !own.is_empty() {
                return None;
            }
            match self.btf.resolve_chained_type(member).ok()? {
                Type::Struct(inner) | Type::Union(inner) => {
                    member.bit_offset().checked_add(self.bit_offset(&inner, name, depth + 1)?)
                }
                _ => None,
            }
        })
    }
}

/// A copy in memory that can be mapped; the kernel's own file cannot be before Linux 6.16.
fn copy(bytes: &[u8]) -> io::Result<File> {
    let mut copy = File::from(memfd_create("btf", MemfdFlags::CLOEXEC)?);
    copy.write_all(bytes)?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_one_plain_sentence() {
        let error =
            KernelTypes::read(Path::new("/nowhere/btf"), &BTreeSet::new()).err().expect("no such file");
        assert!(error.to_string().starts_with("cannot read the kernel's type information at /nowhere/btf"));
    }

    #[test]
    fn places_that_cannot_be_are_an_error_and_no_panic() {
        // A fuzzer came upon it: the offsets of two members add up to more than 32 bits hold.
        let bytes = include_bytes!("../../../../fuzz/seeds/kernel_types/overflow");
        let types = KernelTypes::of(bytes, &BTreeSet::new()).expect("it looks like BTF");
        assert!(matches!(types.offsets(), Err(OffsetError::NoField { .. })));
    }
}
