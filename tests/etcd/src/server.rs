//! The process of a server: a test starts, stops, kills and brings back the server, and the process ends
//! with its value.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

/// A server's process, with the words that start it.
pub struct Server {
    words: Vec<String>,
    log: PathBuf,
    child: Child,
}

impl Server {
    /// Starts a program: its words, the program's name or path first. What the server says is added to the
    /// log.
    ///
    /// # Errors
    /// When the program cannot be started or the log cannot be written.
    pub fn start(words: Vec<String>, log: PathBuf) -> Result<Self> {
        let child = spawn(&words, &log)?;
        Ok(Self { words, log, child })
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// The file that holds what the server has said.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Sends the server a signal.
    ///
    /// # Errors
    /// When the server has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.pid(), signal).with_context(|| format!("cannot signal {}", self.words[0]))
    }

    /// Kills the server.
    ///
    /// # Errors
    /// When its end cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        // The server may have ended by itself.
        let _ = self.child.kill();
        self.child.wait()?;
        Ok(())
    }

    /// Kills the server and starts it again by the same words; it does not answer yet then.
    ///
    /// # Errors
    /// As of [`Self::start`].
    pub fn bring_back(&mut self) -> Result<()> {
        self.kill()?;
        self.child = spawn(&self.words, &self.log)?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

fn spawn(words: &[String], log: &Path) -> Result<Child> {
    let log = File::options().create(true).append(true).open(log)?;
    let (program, arguments) = words.split_first().context("no program is named")?;
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {program}: cargo xtask setup installs it"))
}
