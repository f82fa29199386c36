//! Carries a request to `decide()` and carries out the verdict: the only place that refuses.

use core::sync::atomic::{AtomicBool, Ordering};

use format_guard_common::{
    Caller, Content, Operation, Placement, Reason, Request, Rule, State, Verdict, decide,
    event::wrote,
    flag,
    preload_request::{Ask, PreloadRequest},
    program::Class,
    snapshot::Snapshot,
};

use crate::{
    agent,
    caller::Target,
    environment, snapshot,
    system::{Descriptor, call3, comm, set_errno, status},
};

/// include/uapi/linux/fs.h (Linux 5.15): `_IOR(0x12, 128, __u64)`.
const BLKGETDISKSEQ: usize = 0x8008_1280;

/// Without any rules: nothing is known of any device.
static NOTHING: Rule = Rule::new(0, 0, State::Unverified);

/// A request was refused, and errno says so.
pub(crate) struct Refused;

/// Whether nothing is to be refused to a descriptor: it is of no block device, or the library leaves the
/// program alone. The device's number otherwise (kernel `dev_t`).
pub(crate) fn block_device(fd: i32) -> Option<u32> {
    let status = status(fd)?;
    if status.st_mode & libc::S_IFMT != libc::S_IFBLK || environment::is_ignored() {
        return None;
    }
    let (major, minor) = (libc::major(status.st_rdev), libc::minor(status.st_rdev));
    Some(major << 20 | minor)
}

/// The attachment of an opened device; zero where the kernel does not number them.
fn diskseq(fd: i32) -> u64 {
    let mut diskseq = 0_u64;
    // SAFETY: the kernel writes eight bytes.
    let failed = unsafe { call3(libc::SYS_ioctl, fd as usize, BLKGETDISKSEQ, &raw mut diskseq as usize) };
    if failed == 0 { diskseq } else { 0 }
}

/// Judges a request to an opened device.
pub(crate) fn judge<B: Content>(fd: i32, request: Request, content: &B) -> Result<(), Refused> {
    match block_device(fd) {
        Some(dev) => judge_device(fd, dev, request, content),
        None => Ok(()),
    }
}

/// The same, of a device whose number is known.
pub(crate) fn judge_device<B: Content>(
    fd: i32,
    dev: u32,
    request: Request,
    content: &B,
) -> Result<(), Refused> {
    snapshot::with(|snapshot| {
        if snapshot.is_some_and(Snapshot::passes) {
            return Ok(());
        }
        let diskseq = diskseq(fd);
        let entry =
            snapshot.and_then(|snapshot| snapshot.entry(dev)).filter(|entry| entry.rule.diskseq == diskseq);
        let rule = entry.map(|entry| &entry.rule).or(snapshot.map(Snapshot::unknown)).unwrap_or(&NOTHING);
        let target = Target { dev, through: 0, diskseq, rule, entry, snapshot };
        let (target, request) = placed(target, request);
        judge_target(fd, &target, request, content)
    })
}

/// The volume that a range of a device belongs to: its own, or one that lies on it, judged under that one's
/// rule. The request as it is for that volume.
fn placed(target: Target<'_>, mut request: Request) -> (Target<'_>, Request) {
    let windows = target.entry.zip(target.snapshot).and_then(|(entry, snapshot)| snapshot.windows(entry));
    let Some((windows, snapshot)) = windows.zip(target.snapshot) else { return (target, request) };
    if !matches!(request.operation, Operation::Write | Operation::Erase) {
        return (target, request);
    }
    match windows.place(request.offset, request.length) {
        Placement::Own => {}
        Placement::Across => request.operation = Operation::Across,
        Placement::In { dev, offset } => {
            if let Some(entry) = snapshot.entry(dev) {
                request.offset = offset;
                let (rule, diskseq) = (&entry.rule, entry.rule.diskseq);
                let through = target.dev;
                return (Target { dev, through, diskseq, rule, entry: Some(entry), ..target }, request);
            }
            request.operation = Operation::Across;
        }
    }
    (target, request)
}

fn judge_target<B: Content>(
    fd: i32,
    target: &Target<'_>,
    request: Request,
    content: &B,
) -> Result<(), Refused> {
    const BLANK: u32 = State::Blank as u32;
    const PERMITTED: u32 = State::Permitted as u32;
    const FORMATTING: u32 = State::Formatting as u32;

    let operation = request.operation;
    let open = matches!(operation, Operation::Open);
    match decide(target.rule, &request, target, content) {
        Verdict::Allow | Verdict::Later => {
            // A known formatter goes on by the agent's word alone: without one nobody would learn of it.
            let destroyer = open && target.class().is(Class::FORMATTER.with(Class::ERASER));
            if destroyer && agent::ask(target.question(Ask::Owner, operation)).is_none() {
                return refuse(fd, target, &request, Reason::Unverified);
            }
            if !open && matches!(target.rule.state, BLANK | PERMITTED | FORMATTING) {
                target.wrote(operation);
            }
            Ok(())
        }
        verdict @ (Verdict::Begin | Verdict::Fill | Verdict::Raw) => {
            let wrote = match verdict {
                Verdict::Raw => wrote::BYTES | wrote::RAW,
                // What it writes cannot be seen.
                Verdict::Fill => wrote::BYTES,
                _ => wrote::begun(operation),
            };
            match target.begin(operation, wrote) {
                Some(true) => Ok(()),
                Some(false) => refuse(fd, target, &request, Reason::BeingFormatted),
                None => refuse(fd, target, &request, Reason::Unverified),
            }
        }
        Verdict::Relabel => {
            tell(target, &request, Ask::Relabelled, None);
            Ok(())
        }
        Verdict::OwnerWipe => {
            tell(target, &request, Ask::OwnerWiped, None);
            Ok(())
        }
        Verdict::WouldDeny(reason) => {
            tell(target, &request, Ask::WouldDeny, Some(reason));
            Ok(())
        }
        Verdict::Deny(reason) => refuse(fd, target, &request, reason),
    }
}

/// Tells the agent; whether there is one.
fn tell(target: &Target<'_>, request: &Request, ask: Ask, reason: Option<Reason>) -> bool {
    let question = PreloadRequest {
        reason: reason.map_or(0, |reason| reason as u32),
        offset: request.offset,
        length: request.length,
        ..target.question(ask, request.operation)
    };
    agent::ask(question).is_some()
}

fn refuse(fd: i32, target: &Target<'_>, request: &Request, reason: Reason) -> Result<(), Refused> {
    // The refusal that tainted was told.
    let told = matches!(reason, Reason::Tainted) || tell(target, request, Ask::Denied, Some(reason));
    if !told || target.snapshot.is_none() {
        if environment::passes_without_agent() {
            return Ok(());
        }
        say(fd);
    }
    // Nor who could not even open what was not read yet.
    let early = matches!((reason, request.operation), (Reason::NotReadYet, Operation::Open));
    if target.rule.flags & flag::LAYER == 0 && !early {
        target.refuse();
    }
    set_errno(libc::EPERM);
    Err(Refused)
}

/// Says once why a program is refused that nobody else will tell of.
fn say(fd: i32) {
    static SAID: AtomicBool = AtomicBool::new(false);
    if SAID.swap(true, Ordering::SeqCst) {
        return;
    }
    let comm = comm();
    let name = comm.split(|byte| *byte == 0).next().unwrap_or_default();
    let (socket, length) = environment::path(format_guard_common::preload_request::SOCKET);
    let mut node = [0; 64];
    let length_of_node = name_of(fd, &mut node);
    let parts: [&[u8]; 7] = [
        b"format-guard: ",
        name,
        b" may not write to ",
        node.get(..length_of_node).unwrap_or_default(),
        b": no agent answers at ",
        socket.get(..length - 1).unwrap_or_default(),
        b"; start it, or let this pass with FORMAT_GUARD_WITHOUT_AGENT=allow\n",
    ];
    let mut line = [0; 320];
    let mut end = 0;
    for (to, from) in line.iter_mut().zip(parts.into_iter().flatten()) {
        *to = *from;
        end += 1;
    }
    // SAFETY: as many bytes as were filled.
    unsafe { call3(libc::SYS_write, 2, line.as_ptr() as usize, end) };
}

/// The path by which a descriptor was opened; its length.
fn name_of(fd: i32, into: &mut [u8; 64]) -> usize {
    let mut path = *b"/proc/self/fd/\0\0\0\0\0\0\0\0\0\0\0\0";
    let mut digits = [0; 10];
    let (mut rest, mut count) = (fd.unsigned_abs(), 0);
    for digit in &mut digits {
        *digit = b'0' + (rest % 10) as u8;
        (rest, count) = (rest / 10, count + 1);
        if rest == 0 {
            break;
        }
    }
    let places = path.iter_mut().skip(b"/proc/self/fd/".len());
    for (to, from) in places.zip(digits.iter().take(count).rev()) {
        *to = *from;
    }
    // SAFETY: a path that ends with a NUL, and as many bytes as the array has.
    let length = unsafe {
        let arguments = [
            libc::AT_FDCWD as isize as usize,
            path.as_ptr() as usize,
            into.as_mut_ptr() as usize,
            into.len(),
            0,
            0,
        ];
        crate::system::call(libc::SYS_readlinkat, arguments)
    };
    usize::try_from(length).unwrap_or(0)
}

/// A request without a range.
pub(crate) const fn whole(operation: Operation) -> Request {
    Request { operation, offset: 0, length: 0 }
}

/// Closes what may not be opened.
pub(crate) fn close(fd: i32) {
    drop(Descriptor(fd));
}
