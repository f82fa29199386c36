//! What was done to a volume, as seen from outside the guard: whether one more format may go through, and the bytes that
//! must be there until it does.

use anyhow::{Result, ensure};

use crate::{
    device::{Device, flush},
    guard::Guard,
    tool::run,
    wait_for,
};

/// One volume, from its first byte on.
#[derive(Clone, Debug)]
pub struct Ledger {
    /// It never took a format, or a permit may have been given since its last one.
    may_format: bool,
    /// It took one.
    holds: bool,
    sha256: String,
}

/// One try to format.
const MKFS: &str = "mkfs.ext4 -F -m0 -q";

impl Ledger {
    /// Of a volume that nobody has written to.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of_new(device: &impl Device) -> Result<Self> {
        Ok(Self { may_format: true, holds: false, sha256: device.sha256()? })
    }

    /// Tries to format the volume; whether that went through.
    ///
    /// # Errors
    /// When it did and must not, or did not and changed bytes.
    pub fn format(&mut self, device: &impl Device) -> Result<bool> {
        let ran = run(&format!("{MKFS} {}", device.path().display()))?;
        let sha256 = device.sha256()?;
        if ran.status != 0 {
            ensure!(sha256 == self.sha256, "bytes changed by what failed: {}", ran.text);
            return Ok(false);
        }
        ensure!(self.may_format, "a format went through that nobody permitted");
        *self = Self { may_format: false, holds: true, sha256 };
        Ok(true)
    }

    /// A permit was asked for: it may have been given, whatever became of the answer.
    pub fn asked_for_permit(&mut self) {
        self.may_format |= self.holds;
    }

    /// Makes sure that the guard, which is in force, knows all of this.
    ///
    /// # Errors
    /// When it does not.
    pub fn hold(&mut self, guard: &Guard, device: &impl Device) -> Result<()> {
        let path = device.path();
        let volume = guard.wait_for_volume(path, "settled", |volume| {
            let state = volume["state"].as_str();
            if self.holds { matches!(state, Some("formatted" | "permitted")) } else { state == Some("blank") }
        })?;
        if volume["state"] == "permitted" {
            ensure!(self.may_format, "a permit is there that was used: {volume}");
        }
        // Drops what is cached: the bytes are the medium's.
        drop(flush(path)?);
        ensure!(device.sha256()? == self.sha256, "bytes changed");
        self.format(device)?;
        ensure!(self.holds, "a volume that is armed took no format");
        guard.wait_for_state(path, "formatted")?;
        self.may_format = false;
        let before = guard.newest_refusal()?;
        self.format(device)?;
        wait_for("the event of a refusal", || Ok((guard.newest_refusal()? > before).then_some(())))
    }
}
