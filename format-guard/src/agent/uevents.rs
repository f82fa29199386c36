//! The kernel's uevents for block devices, by netlink, without udevd.
//!
//! They are hints to look into sysfs; nothing that they say is taken for a fact.

use std::{collections::HashMap, io, os::fd::AsRawFd, time::Instant};

use anyhow::{Context, Result};
use kobject_uevent::{ActionType, UEvent};
use netlink_sys::{Socket as Netlink, SocketAddr, protocols::NETLINK_KOBJECT_UEVENT};
use tokio::{io::unix::AsyncFd, sync::mpsc};
use tracing::{debug, warn};

use super::message::Input;

/// Multicast group of the kernel's own events; group 2 is udevd's (`lib/kobject_uevent.c`).
const KERNEL_GROUP: u32 = 1;
/// Bytes that wait in the socket: thousands of devices may appear at once.
const RECEIVE_BUFFER: usize = 16 << 20;
/// Largest message (`UEVENT_BUFFER_SIZE`, include/linux/kobject.h) and some more.
const MAX_MESSAGE: usize = 8192;

/// Messages that are read before what they say is passed on.
const MAX_BATCH: usize = 32_768;

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

/// What has come of one device since it was last looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Hint {
    removed: bool,
    changed: bool,
}

/// Devices to look at, each once, in the order of their first uevents.
#[derive(Debug, Default)]
struct Hints {
    order: Vec<String>,
    of: HashMap<String, Hint>,
}

impl Hints {
    fn add(&mut self, name: String, action: ActionType) {
        let hint = self.of.entry(name).or_insert_with_key(|name| {
            self.order.push(name.clone());
            Hint::default()
        });
        match action {
            ActionType::Remove => hint.removed = true,
            _ => hint.changed = true,
        }
    }

    /// Of one that went and came the reconciler hears both: it looks which of them is still so.
    fn into_inputs(mut self) -> impl Iterator<Item = Input> {
        let received_at = Instant::now();
        self.order.into_iter().flat_map(move |name| {
            let hint = self.of.remove(&name).unwrap_or_default();
            let removed = hint.removed.then(|| Input::Removed { name: name.clone() });
            removed.into_iter().chain(hint.changed.then_some(Input::Changed { name, received_at }))
        })
    }
}

pub(super) async fn run(socket: Socket, inputs: mpsc::Sender<Input>) -> Result<()> {
    // SAFETY: its one descriptor stays open as long as it lives.
    let socket = unsafe { AsyncFd::register(socket.0) }?;
    loop {
        let mut ready = socket.readable().await?;
        let (mut hints, mut lost) = (Hints::default(), false);
        // A device that tells a thousand times is looked at once.
        for _ in 0..MAX_BATCH {
            let received = ready.try_io(|socket| {
                let mut buffer = Vec::with_capacity(MAX_MESSAGE);
                let (_, from) = socket.get_ref().recv_from(&mut buffer, 0)?;
                Ok((buffer, from))
            });
            match received {
                // All of it has been read.
                Err(_would_block) => break,
                // Only the kernel has port 0: user space cannot forge it (af_netlink.c).
                Ok(Ok((message, from))) if from.port_number() == 0 => {
                    if let Some((name, action)) = parse(&message) {
                        hints.add(name, action);
                    }
                }
                Ok(Ok(_)) => debug!("a uevent that is not the kernel's was dropped"),
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => lost = true,
                Ok(Err(error)) => return Err(error).context("the uevent socket failed"),
            }
        }
        for input in hints.into_inputs() {
            inputs.send(input).await.context("the reconciler is gone")?;
        }
        if lost {
            warn!("uevents were lost: the agent compares all devices with sysfs");
            inputs.send(Input::UeventsLost).await.context("the reconciler is gone")?;
        }
    }
}

/// The block device that a uevent is about, and the event's action; none for other devices.
pub(crate) fn parse(message: &[u8]) -> Option<(String, ActionType)> {
    let event = UEvent::from_netlink_packet(message).ok()?;
    if event.subsystem != "block" {
        return None;
    }
    Some((event.devpath.file_name()?.to_str()?.to_owned(), event.action))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_uevent_names_its_device() {
        let message = b"add@/devices/virtual/block/loop3\0ACTION=add\0DEVPATH=/devices/virtual/block/loop3\0\
                        SUBSYSTEM=block\0MAJOR=7\0MINOR=3\0DEVNAME=loop3\0DEVTYPE=disk\0SEQNUM=9\0";
        assert!(matches!(parse(message), Some((name, ActionType::Add)) if name == "loop3"));
    }

    #[test]
    fn a_device_that_tells_again_and_again_is_looked_at_once() {
        let mut hints = Hints::default();
        for (name, action) in [
            ("loop1", ActionType::Remove),
            ("loop0", ActionType::Change),
            ("loop1", ActionType::Add),
            ("loop0", ActionType::Change),
            ("loop1", ActionType::Change),
            ("loop2", ActionType::Remove),
        ] {
            hints.add(name.to_owned(), action);
        }
        let inputs: Vec<String> = hints
            .into_inputs()
            .map(|input| match input {
                Input::Removed { name } => format!("removed {name}"),
                Input::Changed { name, .. } => format!("changed {name}"),
                _ => "something else".to_owned(),
            })
            .collect();
        assert_eq!(inputs, ["removed loop1", "changed loop1", "changed loop0", "removed loop2"]);
    }

    #[test]
    fn other_subsystems_and_garbage_are_nothing() {
        let message = b"add@/devices/x\0ACTION=add\0DEVPATH=/devices/x\0SUBSYSTEM=net\0SEQNUM=9\0";
        assert!(parse(message).is_none());
        assert!(parse(b"\xff\xfe\0\0=\0").is_none());
        assert!(parse(b"").is_none());
    }
}
