//! The kernel's uevents for block devices, by netlink, without udevd.
//!
//! They are hints to look into sysfs; nothing that they say is taken for a fact.

use std::{io, os::fd::AsRawFd};

use anyhow::{Context, Result};
use kobject_uevent::{ActionType, UEvent};
use netlink_sys::{Socket as Netlink, SocketAddr, protocols::NETLINK_KOBJECT_UEVENT};
use tokio::{io::unix::AsyncFd, sync::mpsc};
use tracing::{debug, warn};

use super::reconciler::Input;

/// Multicast group of the kernel's own events; group 2 is udevd's (`lib/kobject_uevent.c`).
const KERNEL_GROUP: u32 = 1;
/// Bytes that wait in the socket: thousands of devices may appear at once.
const RECEIVE_BUFFER: usize = 16 << 20;
/// Largest message (`UEVENT_BUFFER_SIZE`, include/linux/kobject.h) and some more.
const MAX_MESSAGE: usize = 8192;

/// The socket, before its task runs.
pub(super) struct Socket(Netlink);

impl Socket {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Netlink::new(NETLINK_KOBJECT_UEVENT)?;
        socket.set_non_blocking(true)?;
        // More than rmem_max needs CAP_NET_ADMIN; with less, a resync makes good what is lost.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(socket_fd(&socket), RECEIVE_BUFFER);
        socket.bind(&SocketAddr::new(0, KERNEL_GROUP))?;
        Ok(Self(socket))
    }
}

fn socket_fd(socket: &Netlink) -> std::os::fd::BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as the socket is borrowed.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(socket.as_raw_fd()) }
}

pub(super) async fn run(socket: Socket, inputs: mpsc::Sender<Input>) -> Result<()> {
    // SAFETY: its one descriptor stays open as long as it lives.
    let socket = unsafe { AsyncFd::register(socket.0) }?;
    loop {
        let mut ready = socket.readable().await?;
        let received = ready.try_io(|socket| {
            let mut buffer = Vec::with_capacity(MAX_MESSAGE);
            let (_, from) = socket.get_ref().recv_from(&mut buffer, 0)?;
            Ok((buffer, from))
        });
        match received {
            // Not yet readable after all.
            Err(_would_block) => {}
            // Only the kernel has port 0: user space cannot forge it (af_netlink.c).
            Ok(Ok((message, from))) if from.port_number() == 0 => {
                if let Some(input) = parse(&message) {
                    inputs.send(input).await.context("the reconciler is gone")?;
                }
            }
            Ok(Ok(_)) => debug!("a uevent that is not the kernel's was dropped"),
            Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                warn!("uevents were lost: comparing with sysfs");
                inputs.send(Input::Tick).await.context("the reconciler is gone")?;
            }
            Ok(Err(error)) => return Err(error).context("the uevent socket failed"),
        }
    }
}

/// The input that a uevent is, if it concerns a block device.
fn parse(message: &[u8]) -> Option<Input> {
    let event = UEvent::from_netlink_packet(message).ok()?;
    if event.subsystem != "block" {
        return None;
    }
    let name = event.devpath.file_name()?.to_str()?.to_owned();
    Some(match event.action {
        ActionType::Remove => Input::Removed { name },
        _ => Input::Changed { name },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_uevent_names_its_device() {
        let message = b"add@/devices/virtual/block/loop3\0ACTION=add\0DEVPATH=/devices/virtual/block/loop3\0\
                        SUBSYSTEM=block\0MAJOR=7\0MINOR=3\0DEVNAME=loop3\0DEVTYPE=disk\0SEQNUM=9\0";
        assert!(matches!(parse(message), Some(Input::Changed { name }) if name == "loop3"));
    }

    #[test]
    fn other_subsystems_and_garbage_are_nothing() {
        let message = b"add@/devices/x\0ACTION=add\0DEVPATH=/devices/x\0SUBSYSTEM=net\0SEQNUM=9\0";
        assert!(parse(message).is_none());
        assert!(parse(b"\xff\xfe\0\0=\0").is_none());
        assert!(parse(b"").is_none());
    }
}
