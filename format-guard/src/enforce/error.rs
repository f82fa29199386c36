//! Why the guard is not in force, whichever way it is to refuse: every error of enforcement, and what became
//! of each program.

use std::{io, path::PathBuf};

use aya::{EbpfError, maps::MapError as AyaMapError, programs::links::LinkError};

use super::canary::CanaryError;

/// An error of a kernel map.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} for device {}:{}: {reason}", dev >> 20, dev & 0xf_ffff)]
pub struct MapError {
    /// What was tried.
    pub what: &'static str,
    /// Kernel `dev_t`.
    pub dev: u32,
    /// What the kernel says.
    pub reason: String,
}

/// Why the guard is not in force.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The kernel's types are not as needed.
    #[error(transparent)]
    Offsets(#[from] OffsetError),
    /// aya cannot read the kernel's BTF.
    #[error("cannot read the kernel's type information: {0}")]
    Btf(#[from] aya::BtfError),
    /// The maps cannot be made or reused.
    #[error("cannot create the guard's maps (is this root, with CAP_BPF and CAP_SYS_ADMIN?): {0}")]
    Object(#[from] EbpfError),
    /// A map of the object is not what this program expects.
    #[error("map {name}: {source}")]
    Map {
        /// The map.
        name: &'static str,
        /// What is wrong.
        source: AyaMapError,
    },
    /// A program does not load or attach.
    #[error("kernel program {program} (at {place}) cannot be loaded: {reason}")]
    Program {
        /// The program.
        program: &'static str,
        /// Where it belongs.
        place: String,
        /// The kernel's words, the verifier's last lines among them.
        reason: String,
    },
    /// The kernel lacks a place without which there is no guard.
    #[error("this kernel has no {place}, without which {program} cannot guard")]
    NoPlace {
        /// The program.
        program: &'static str,
        /// The kernel function that is missing.
        place: String,
    },
    /// The object cannot be made ready for the functions `security_*`.
    #[error("cannot make the guard's programs ready for the kernel's security functions: {reason}")]
    Functions {
        /// What is wrong.
        reason: String,
    },
    /// The pin directory cannot be used.
    #[error("cannot pin below {path} (is a bpf file system mounted there?): {source}")]
    Pin {
        /// The directory or pin.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// A rule cannot be put.
    #[error(transparent)]
    Rule(#[from] MapError),
    /// There is no control group to stand at.
    #[error("cannot open the control group {path} (are control groups of version 2 mounted?): {source}")]
    Cgroup {
        /// Its directory.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// The canary did not prove enforcement.
    #[error(transparent)]
    Canary(#[from] CanaryError),
    /// The library is not there, or does not refuse.
    #[error(transparent)]
    Preload(#[from] PreloadError),
}

/// What became of one program.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ProgramStatus {
    /// The program.
    pub program: String,
    /// It is attached.
    pub attached: bool,
    /// The operations that stay unguarded without this hook; empty when it is attached.
    pub open: String,
    /// How often the kernel did not run it, as another task's run of it stood preempted on that CPU.
    #[serde(default)]
    pub skipped: u64,
}

/// Why offsets cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum OffsetError {
    /// No readable BTF: the kernel was built without it, or /sys is not mounted.
    #[error("cannot read the kernel's type information at {path}: {reason}")]
    Unreadable {
        /// The file.
        path: String,
        /// What btf-rs says.
        reason: String,
    },
    /// The kernel has no such field.
    #[error("this kernel has no field {structure}.{field}")]
    NoField {
        /// The structure.
        structure: &'static str,
        /// Its field.
        field: &'static str,
    },
}

/// Why the library cannot guard.
#[derive(Debug, thiserror::Error)]
pub enum PreloadError {
    /// It is nowhere.
    #[error("there is no {name} beside this program ({beside}) or in {installed}")]
    NoLibrary {
        /// Its file name.
        name: &'static str,
        /// Where packages put it.
        installed: String,
        /// The program's directory.
        beside: PathBuf,
    },
    /// The rules cannot be published.
    #[error("cannot publish the rules at {path}: {source}")]
    Publish {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// The canary could not be run under it.
    #[error("cannot run the canary under {library}: {reason}")]
    Canary {
        /// The library.
        library: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// Why the guard itself is not protected.
#[derive(Debug, thiserror::Error)]
pub enum ProtectionError {
    /// A map says no.
    #[error("map {name}: {source}")]
    Map {
        /// The map.
        name: &'static str,
        /// What is wrong.
        source: AyaMapError,
    },
    /// Something in /proc or below the pins cannot be looked at.
    #[error("cannot look at {path}: {source}")]
    Unreadable {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A pinned link cannot be looked at.
    #[error("cannot read about a link: {0}")]
    Link(#[from] LinkError),
    /// Nothing stands where it could be.
    #[error("no kernel program that could do so is in force")]
    NoKernel,
    /// The kernel programs did not see the introduction.
    #[error("the kernel programs did not recognise this agent")]
    Unseen,
}
