//! What was done to a volume, as seen from outside the guard: whether one more format may go through, and the bytes that
//! must be there until it does.

use std::{
    fs::OpenOptions,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    device::{Device, flush},
    guard::Guard,
    tool::run,
    wait_for,
};

/// Bytes of a ledger that is kept.
const SECTOR: usize = 512;
/// One try to format.
const MKFS: &str = "mkfs.ext4 -F -m0 -q";

/// One volume, from its first byte on.
#[derive(Clone, Debug)]
pub struct Ledger {
    /// It never took a format, or a permit may have been given since its last one.
    may_format: bool,
    /// It took one.
    holds: bool,
    /// A format was tried, and nobody saw what became of it.
    uncertain: bool,
    sha256: String,
    /// The device and the sector that it is kept in.
    kept: Option<(PathBuf, u64)>,
}

impl Ledger {
    /// Of a volume that nobody has written to.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of_new(device: &impl Device) -> Result<Self> {
        Ok(Self { may_format: true, holds: false, uncertain: false, sha256: device.sha256()?, kept: None })
    }

    /// Keeps it in a sector of a device from now on, on the medium before anything is done that it tells.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep(mut self, device: &Path, sector: u64) -> Result<Self> {
        self.kept = Some((device.to_owned(), sector));
        self.save()?;
        Ok(self)
    }

    /// The one that is kept there.
    ///
    /// # Errors
    /// When there is none.
    pub fn kept(device: &Path, sector: u64) -> Result<Self> {
        let mut text = [0; SECTOR];
        let at = sector * SECTOR as u64;
        OpenOptions::new().read(true).open(device)?.read_exact_at(&mut text, at)?;
        let text = String::from_utf8_lossy(&text);
        let words: Vec<&str> = text.split_whitespace().collect();
        let [may_format, holds, uncertain, sha256, ..] = words[..] else {
            bail!("no ledger in sector {sector}: {text}")
        };
        Ok(Self {
            may_format: may_format.parse()?,
            holds: holds.parse()?,
            uncertain: uncertain.parse()?,
            sha256: sha256.to_owned(),
            kept: Some((device.to_owned(), sector)),
        })
    }

    fn save(&self) -> Result<()> {
        let Some((device, sector)) = &self.kept else { return Ok(()) };
        let Self { may_format, holds, uncertain, sha256, .. } = self;
        let mut text = format!("{may_format} {holds} {uncertain} {sha256} ").into_bytes();
        text.resize(SECTOR, b' ');
        let file = OpenOptions::new().write(true).custom_flags(libc::O_SYNC).open(device);
        let at = sector * SECTOR as u64;
        file.and_then(|file| file.write_all_at(&text, at)).with_context(|| device.display().to_string())
    }

    /// Tries to format the volume; whether that went through.
    ///
    /// # Errors
    /// When it did and must not, or did not and changed bytes.
    pub fn format(&mut self, device: &impl Device) -> Result<bool> {
        self.uncertain = true;
        self.save()?;
        let ran = run(&format!("{MKFS} {}", device.path().display()))?;
        let sha256 = device.sha256()?;
        let done = ran.status == 0;
        if done {
            ensure!(self.may_format, "a format went through that nobody permitted");
            *self = Self { may_format: false, holds: true, uncertain: false, sha256, kept: self.kept.take() };
        } else {
            ensure!(sha256 == self.sha256, "bytes changed by what failed: {}", ran.text);
            self.uncertain = false;
        }
        self.save()?;
        Ok(done)
    }

    /// A permit is asked for: it may be given, whatever becomes of the answer.
    ///
    /// # Errors
    /// When that cannot be kept.
    pub fn ask_for_permit(&mut self) -> Result<()> {
        self.may_format |= self.holds;
        self.save()
    }

    /// Makes sure that the guard, which is in force, knows all of this.
    ///
    /// # Errors
    /// When it does not.
    pub fn hold(&mut self, guard: &Guard, device: &impl Device) -> Result<()> {
        let path = device.path();
        let volume = guard.wait_for_volume(path, "settled", |volume| match volume["state"].as_str() {
            Some("formatted" | "permitted") => self.holds || self.uncertain,
            Some("blank") => !self.holds,
            _ => false,
        })?;
        // Drops what is cached: the bytes are the medium's.
        drop(flush(path)?);
        let sha256 = device.sha256()?;
        if self.uncertain {
            self.holds = volume["state"] != "blank";
            self.may_format = volume["state"] != "formatted";
            self.sha256 = sha256;
        } else {
            ensure!(sha256 == self.sha256, "bytes changed");
        }
        if volume["state"] == "permitted" {
            ensure!(self.may_format, "a permit is there that was used: {volume}");
        }
        self.format(device)?;
        ensure!(self.holds, "a volume that is armed took no format");
        guard.wait_for_state(path, "formatted")?;
        self.may_format = false;
        self.save()?;
        let before = guard.newest_refusal()?;
        self.format(device)?;
        wait_for("the event of a refusal", || Ok((guard.newest_refusal()? > before).then_some(())))
    }
}
