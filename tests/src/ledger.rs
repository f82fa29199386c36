//! What was done to a volume, recorded outside the guard: whether one more format may go through, and the
//! bytes that must stay until then.

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

/// Bytes of a ledger on disk.
const SECTOR: usize = 512;
/// The outcome of one try to format.
const MKFS: &str = "mkfs.ext4 -F -m0 -q";

/// What is known of a permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Permit {
    /// Nobody asked for a permit, or what was made under it has settled.
    None,
    /// A permit may have been given.
    Asked,
    /// A format went through under the permit.
    Used,
}

impl Permit {
    fn named(name: &str) -> Result<Self> {
        let all = [Self::None, Self::Asked, Self::Used];
        all.into_iter()
            .find(|permit| format!("{permit:?}") == name)
            .with_context(|| format!("no permit is {name}"))
    }
}

/// The ledger of one volume, from the volume's first byte on.
#[derive(Clone, Debug)]
pub struct Ledger {
    /// The volume took a format.
    holds: bool,
    permit: Permit,
    /// A format was tried, and nobody saw its outcome.
    uncertain: bool,
    sha256: String,
    /// The device and the sector that the ledger is kept in.
    kept: Option<(PathBuf, u64)>,
}

impl Ledger {
    /// The ledger of a volume that nobody has written to.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of_new(device: &impl Device) -> Result<Self> {
        Ok(Self {
            holds: false,
            permit: Permit::None,
            uncertain: false,
            sha256: device.sha256()?,
            kept: None,
        })
    }

    /// Keeps the ledger in a sector of a device from now on. Each entry is on the medium before the step that
    /// it records.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep(mut self, device: &Path, sector: u64) -> Result<Self> {
        self.kept = Some((device.to_owned(), sector));
        self.save()?;
        Ok(self)
    }

    /// The ledger that is kept in a sector.
    ///
    /// # Errors
    /// When there is none.
    pub fn kept(device: &Path, sector: u64) -> Result<Self> {
        let mut text = [0; SECTOR];
        let at = sector * SECTOR as u64;
        OpenOptions::new().read(true).open(device)?.read_exact_at(&mut text, at)?;
        let text = String::from_utf8_lossy(&text);
        let words: Vec<&str> = text.split_whitespace().collect();
        let [holds, permit, uncertain, sha256, ..] = words[..] else {
            bail!("no ledger in sector {sector}: {text}")
        };
        Ok(Self {
            holds: holds.parse()?,
            permit: Permit::named(permit)?,
            uncertain: uncertain.parse()?,
            sha256: sha256.to_owned(),
            kept: Some((device.to_owned(), sector)),
        })
    }

    fn save(&self) -> Result<()> {
        let Some((device, sector)) = &self.kept else { return Ok(()) };
        let Self { holds, permit, uncertain, sha256, .. } = self;
        let mut text = format!("{holds} {permit:?} {uncertain} {sha256} ").into_bytes();
        text.resize(SECTOR, b' ');
        let file = OpenOptions::new().write(true).custom_flags(libc::O_SYNC).open(device);
        let at = sector * SECTOR as u64;
        file.and_then(|file| file.write_all_at(&text, at)).with_context(|| device.display().to_string())
    }

    /// Tries to format the volume, and returns whether that succeeded.
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
            ensure!(
                self.permit != Permit::None || !self.holds,
                "a format went through that nobody permitted"
            );
            (self.holds, self.uncertain, self.sha256) = (true, false, sha256);
            if self.permit == Permit::Asked {
                self.permit = Permit::Used;
            }
        } else {
            ensure!(sha256 == self.sha256, "bytes changed by what failed: {}", ran.text);
            self.uncertain = false;
        }
        self.save()?;
        Ok(done)
    }

    /// Records that a permit is asked for: it may be given, whatever becomes of the answer.
    ///
    /// # Errors
    /// When that cannot be kept.
    pub fn ask_for_permit(&mut self) -> Result<()> {
        self.permit = Permit::Asked;
        self.save()
    }

    /// Records that the volume is detached: the job under a permit has ended.
    ///
    /// # Errors
    /// When that cannot be kept.
    pub fn detached(&mut self) -> Result<()> {
        if self.permit == Permit::Used {
            self.permit = Permit::None;
        }
        self.save()
    }

    /// Checks that the guard, which is in force, knows all of this.
    ///
    /// # Errors
    /// When it does not.
    pub fn hold(&mut self, guard: &Guard, device: &impl Device) -> Result<()> {
        let path = device.path();
        let volume = guard.wait_for_volume(path, "settled", |volume| match volume["state"].as_str() {
            Some("formatted") => self.holds || self.uncertain,
            Some("blank") => !self.holds,
            // A permit may be given before the first format, too, because an unverified volume is refused.
            Some("permitted") => true,
            _ => false,
        })?;
        // Drops the cache, so that the bytes come from the medium.
        drop(flush(path)?);
        let sha256 = device.sha256()?;
        let permitted = volume["state"] == "permitted";
        ensure!(
            self.permit != Permit::None || !permitted,
            "a permit is there that was used, or never asked for: {volume}"
        );
        if self.uncertain {
            self.holds = volume["state"] != "blank";
            self.permit = if permitted { Permit::Asked } else { Permit::None };
            self.sha256 = sha256;
        } else {
            ensure!(sha256 == self.sha256, "bytes changed");
        }
        self.format(device)?;
        ensure!(self.holds, "a volume that is armed took no format");
        guard.wait_for_state(path, "formatted")?;
        self.permit = Permit::None;
        self.save()?;
        let before = guard.newest_refusal()?;
        self.format(device)?;
        wait_for("the event of a refusal", || Ok((guard.newest_refusal()? > before).then_some(())))
    }
}
