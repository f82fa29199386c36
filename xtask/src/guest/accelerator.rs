//! Chooses what runs a guest's instructions: KVM, if a canary boot has proven that it works here, otherwise
//! qemu's translator.
//!
//! A `/dev/kvm` that can be opened proves nothing: inside some virtual machines it hangs its guest, or kills
//! it.

use std::{
    fs::{self, File},
    io,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{Clock, End, Guest};
use crate::{kernels::Kernel, packages::cache};

/// How long a canary boot may take. A guest under KVM is up after two seconds, an emulated one after ten to
/// thirty.
const DEADLINE: Duration = Duration::from_secs(30);

/// What runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accelerator {
    /// This machine's processor.
    Kvm,
    /// qemu's translator (TCG).
    Emulator,
}

impl Accelerator {
    /// qemu's option for it.
    pub(super) const fn words(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            // One thread runs all CPUs of the guest: with several, a guest panicked now and then.
            Self::Emulator => ["-accel", "tcg,thread=single,tb-size=512", "-cpu", "max,la57=off"],
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Emulator => "emulator",
        }
    }
}

/// The accelerator for guests of this kernel on this machine; found out once in each boot of the machine.
pub(super) fn proven(kernel: &Kernel) -> Result<Accelerator> {
    static FOUND: Mutex<Option<Accelerator>> = Mutex::new(None);
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(accelerator) = *found {
        return Ok(accelerator);
    }
    let accelerator = look(kernel)?;
    *found = Some(accelerator);
    Ok(accelerator)
}

fn look(kernel: &Kernel) -> Result<Accelerator> {
    if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return Ok(Accelerator::Emulator);
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let known = cache()?.join("accelerator");
    let line = |accelerator: Accelerator| format!("{} {boot}", accelerator.name());
    let text = fs::read_to_string(&known).unwrap_or_default();
    for accelerator in [Accelerator::Kvm, Accelerator::Emulator] {
        if text == line(accelerator) {
            return Ok(accelerator);
        }
    }
    println!("guest: booting a canary under KVM");
    let works = boots(kernel)?;
    let accelerator = if works { Accelerator::Kvm } else { Accelerator::Emulator };
    println!("guest: KVM {} here", if works { "works" } else { "does not work: guests are emulated" });
    fs::write(&known, line(accelerator))?;
    Ok(accelerator)
}

/// Whether a guest under KVM boots, runs a command and ends well.
fn boots(kernel: &Kernel) -> Result<bool> {
    let canary = Guest {
        kernel: kernel.clone(),
        command: vec!["true".into()],
        disks: Vec::new(),
        timeout: DEADLINE,
        clock: Clock::Host,
        parameters: String::new(),
        network: false,
    };
    let start = Instant::now();
    let (ended, _) = canary.boot(Accelerator::Kvm, &mut io::sink(), |_| start.elapsed() >= DEADLINE)?;
    Ok(ended == End::With(0))
}
