//! Tells when somebody has closed a device that he had open for writing: of what is armed, what is there now
//! is read then. udevd does the same where it runs; nobody is refused by it.

use std::{
    collections::HashMap,
    io,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result};
use rustix::{
    fs::inotify::{self, CreateFlags, WatchFlags},
    io::Errno,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::mpsc,
};
use tracing::debug;

use super::message::Input;
use crate::volume::Dev;

/// Devices that are watched, by number and by what inotify calls them.
#[derive(Default)]
struct Watched {
    numbers: HashMap<Dev, i32>,
    devices: HashMap<i32, Dev>,
}

/// Asks for closes to be told. The default watches nothing.
#[derive(Clone, Default)]
pub struct Closing {
    inotify: Option<Arc<OwnedFd>>,
    watched: Arc<Mutex<Watched>>,
}

impl Closing {
    /// One that watches what it is asked to.
    pub fn new() -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        Ok(Self { inotify: Some(Arc::new(inotify)), watched: Arc::default() })
    }

    /// From now on closes of this device by its node are told, or no more. A node that is not there is
    /// watched by nobody.
    pub fn watch(&self, dev: Dev, node: Option<&Path>) {
        let Some(inotify) = &self.inotify else { return };
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        match (node, watched.numbers.get(&dev).copied()) {
            (Some(node), None) => match inotify::add_watch(inotify, node, WatchFlags::CLOSE_WRITE) {
                Ok(number) => {
                    watched.numbers.insert(dev, number);
                    watched.devices.insert(number, dev);
                }
                Err(error) => debug!("{} is not watched: {error}", node.display()),
            },
            (None, Some(number)) => {
                watched.numbers.remove(&dev);
                watched.devices.remove(&number);
                // The node may be gone, and the watch with it.
                let _ = inotify::remove_watch(inotify, number);
            }
            (Some(_), Some(_)) | (None, None) => {}
        }
    }

    fn device(&self, number: i32) -> Option<Dev> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).devices.get(&number).copied()
    }
}

pub(super) async fn run(closing: Closing, inputs: mpsc::Sender<Input>) -> Result<()> {
    let inotify = closing.inotify.clone().context("no watch for closes of devices was made")?;
    // SAFETY: its one descriptor stays open as long as it lives.
    let fd = unsafe { AsyncFd::register_with_interest(inotify, Interest::READABLE) }?;
    loop {
        let mut ready = fd.readable().await?;
        let mut closed = Vec::new();
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(fd.get_ref(), &mut buffer);
        loop {
            match events.next() {
                Ok(event) => closed.extend(closing.device(event.wd())),
                Err(Errno::WOULDBLOCK) => break,
                Err(error) => return Err(error).context("cannot read which devices were closed"),
            }
        }
        ready.clear_ready();
        closed.dedup();
        for dev in closed {
            inputs.send(Input::ClosedByWriter { dev }).await.context("the reconciler is gone")?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_close_of_one_that_could_write_is_told_while_it_is_asked_for() {
        let directory = tempfile::tempdir().expect("directory");
        let dev = |minor| Dev { major: 7, minor };
        let closing = Closing::new().expect("inotify");
        let nodes = [1, 2].map(|minor| {
            let node = directory.path().join(minor.to_string());
            fs::write(&node, "").expect("a file");
            closing.watch(dev(minor), Some(&node));
            node
        });
        let (sender, mut inputs) = mpsc::channel(8);
        let task = tokio::spawn(run(closing.clone(), sender));
        let write = |node: &Path| drop(fs::OpenOptions::new().write(true).open(node).expect("opened"));
        let _ = fs::read(&nodes[1]).expect("who reads only tells nothing");
        write(&nodes[0]);
        let told = timeout(Duration::from_secs(30), inputs.recv()).await.expect("told");
        assert!(matches!(told, Some(Input::ClosedByWriter { dev: told }) if told == dev(1)));
        closing.watch(dev(1), None);
        write(&nodes[0]);
        write(&nodes[1]);
        let told = timeout(Duration::from_secs(30), inputs.recv()).await.expect("told");
        assert!(matches!(told, Some(Input::ClosedByWriter { dev: told }) if told == dev(2)));
        task.abort();
    }
}
