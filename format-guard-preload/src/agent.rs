//! Asks the agent, which knows by the kernel who asks. Whoever does not answer in time does not answer.

use core::{mem::size_of_val, ptr};

use format_guard_common::{
    preload_request::{Answer, MAGIC, PreloadRequest, SOCKET},
    snapshot::bytes,
};

use crate::{
    environment,
    system::{Descriptor, call, call3, seconds},
};

/// How long the agent may take, in seconds: it stores nothing before it answers.
const PATIENCE: i64 = 5;

/// The agent's answer; `None` where there is none.
pub(crate) fn ask(question: PreloadRequest) -> Option<bool> {
    let socket = connect()?;
    let question = PreloadRequest { magic: MAGIC, ..question };
    let asked = bytes(&question);
    // SAFETY: the question's bytes. Without a signal where the other end is closed already.
    let sent = unsafe {
        let flags = libc::MSG_NOSIGNAL as usize;
        let arguments = [socket.number(), asked.as_ptr() as usize, asked.len(), flags, 0, 0];
        call(libc::SYS_sendto, arguments)
    };
    if sent != asked.len() as isize {
        return None;
    }
    let end = seconds() + PATIENCE;
    let mut answer = [0_u8; 1];
    loop {
        let arguments = [socket.number(), answer.as_mut_ptr() as usize, 1, 0, 0, 0];
        // SAFETY: one byte.
        match unsafe { call(libc::SYS_recvfrom, arguments) } {
            1 => return Some(answer[0] == Answer::Yes as u8),
            // A handler of the program's came between.
            interrupted if interrupted == -(libc::EINTR as isize) && seconds() < end => {}
            _ => return None,
        }
    }
}

fn connect() -> Option<Descriptor> {
    let kind = (libc::SOCK_STREAM | libc::SOCK_CLOEXEC) as usize;
    // SAFETY: no memory.
    let socket = Descriptor::from(unsafe { call3(libc::SYS_socket, libc::AF_UNIX as usize, kind, 0) })?;
    let patience = libc::timeval { tv_sec: PATIENCE, tv_usec: 0 };
    for option in [libc::SO_SNDTIMEO, libc::SO_RCVTIMEO] {
        let (level, value) = (libc::SOL_SOCKET as usize, &raw const patience as usize);
        let arguments = [socket.number(), level, option as usize, value, size_of_val(&patience), 0];
        // SAFETY: a structure of this size.
        unsafe { call(libc::SYS_setsockopt, arguments) };
    }
    let mut address = libc::sockaddr_un { sun_family: libc::AF_UNIX as u16, sun_path: [0; 108] };
    let (path, length) = environment::path(SOCKET);
    for (to, from) in address.sun_path.iter_mut().zip(path.get(..length)?) {
        *to = from.cast_signed();
    }
    // SAFETY: an address of this size.
    let connected = unsafe {
        call3(libc::SYS_connect, socket.number(), ptr::from_ref(&address) as usize, size_of_val(&address))
    };
    (connected == 0).then_some(socket)
}
