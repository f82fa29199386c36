//! bpf(2) by itself, for what aya does not offer: programs that stand at functions of the kernel, links to
//! control groups that can be pinned, and maps of maps.

use std::{
    ffi::CString,
    io,
    mem::zeroed,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_map_type, bpf_prog_info};

pub(super) fn empty() -> bpf_attr {
    // SAFETY: integers alone, for which zero is a value.
    unsafe { zeroed() }
}

pub(super) fn descriptor(fd: &OwnedFd) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// The descriptor that a call has made.
pub(super) fn made(result: io::Result<RawFd>) -> io::Result<OwnedFd> {
    // SAFETY: made by the kernel now, and nobody else's.
    result.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// bpf(2).
pub(super) fn call(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<RawFd> {
    // SAFETY: every pointer in `attr` is to memory that outlives the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_long, std::ptr::from_mut(attr), size_of::<bpf_attr>())
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        RawFd::try_from(result).map_err(io::Error::other)
    }
}

/// Attaches a program to a control group, beside others; detached when the descriptor is closed and no pin
/// holds it.
pub(super) fn link_to_cgroup(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attr = empty();
    // SAFETY: the part of the union that BPF_LINK_CREATE reads.
    let create = unsafe { &mut attr.link_create };
    create.__bindgen_anon_1.prog_fd = program.as_raw_fd().cast_unsigned();
    create.__bindgen_anon_2.target_fd = cgroup.as_raw_fd().cast_unsigned();
    create.attach_type = bpf_attach_type::BPF_CGROUP_DEVICE as u32;
    made(call(bpf_cmd::BPF_LINK_CREATE, &mut attr))
}

/// Makes a map of so many maps like this one.
pub(super) fn array_of(sample: BorrowedFd<'_>, entries: u32) -> io::Result<OwnedFd> {
    let mut attr = empty();
    // SAFETY: the part of the union that BPF_MAP_CREATE reads.
    let create = unsafe { &mut attr.__bindgen_anon_1 };
    create.map_type = bpf_map_type::BPF_MAP_TYPE_ARRAY_OF_MAPS as u32;
    (create.key_size, create.value_size, create.max_entries) = (4, 4, entries);
    create.inner_map_fd = sample.as_raw_fd().cast_unsigned();
    made(call(bpf_cmd::BPF_MAP_CREATE, &mut attr))
}

/// Pins a link or a map.
pub(super) fn pin(object: &OwnedFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = empty();
    // SAFETY: the part of the union that BPF_OBJ_PIN reads.
    let pin = unsafe { &mut attr.__bindgen_anon_4 };
    (pin.bpf_fd, pin.pathname) = (descriptor(object), path.as_ptr() as u64);
    call(bpf_cmd::BPF_OBJ_PIN, &mut attr).map(drop)
}

/// How often the kernel did not run the program of this id, as another run of it stood on that CPU; from
/// Linux 5.12.
pub(super) fn skipped(program: u32) -> io::Result<u64> {
    let mut attr = empty();
    // SAFETY: the part of the union that BPF_PROG_GET_FD_BY_ID reads.
    unsafe { &mut attr.__bindgen_anon_6 }.__bindgen_anon_1.prog_id = program;
    let program = made(call(bpf_cmd::BPF_PROG_GET_FD_BY_ID, &mut attr))?;
    // SAFETY: integers alone, for which zero is a value.
    let mut info: bpf_prog_info = unsafe { zeroed() };
    let mut attr = empty();
    // SAFETY: the part of the union that BPF_OBJ_GET_INFO_BY_FD reads.
    let asked = unsafe { &mut attr.info };
    asked.bpf_fd = descriptor(&program);
    asked.info = std::ptr::from_mut(&mut info) as u64;
    asked.info_len = u32::try_from(size_of::<bpf_prog_info>()).map_err(io::Error::other)?;
    call(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info.recursion_misses)
}
