//! `format-guard volume rescue`: shows what of a volume differs from its copy, and puts the copy back.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow, bail, ensure};
use format_guard_common::State;
use serde::Serialize;

use super::{
    CommandError, client,
    consent::typed_yes,
    format::{moment, wrap},
    print_json,
};
use crate::{
    api::{Copy, Failure, FailureKind, Selector, Volume},
    volume::{
        copies::Piece,
        device::Devices,
        marks::ReadAt,
        probe::{Direct, node_path},
    },
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Id, /dev path, mount point or unique prefix of an id
    volume: String,
    /// Write the copy into a new file: sparse, each byte where it belongs
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
    /// Put back what differs: OVERWRITES WHAT IS THERE; needs a permit and a typed yes
    #[arg(long)]
    write: bool,
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

/// What the copy of a volume holds, and how much of it is on the device.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Report {
    /// The volume.
    volume: String,
    /// When the copy was taken, in seconds since 1970.
    at: i64,
    /// The generation of the record that it belongs to.
    generation: u64,
    /// The device that it was compared with; none if the volume is not attached.
    device: Option<String>,
    /// The pieces, in the order of their offsets.
    pieces: Vec<Compared>,
    /// What differed was put back.
    written: bool,
}

/// A piece of the copy, compared.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Compared {
    /// First byte, from the start of the volume.
    offset: u64,
    /// Bytes in the piece.
    length: u64,
    /// How many of the bytes differ on the device; none if they cannot be read.
    differ: Option<u64>,
}

/// The device that holds the volume now.
struct Target {
    path: PathBuf,
    device: Direct,
}

impl Target {
    fn of(copy: &Copy) -> anyhow::Result<Option<Self>> {
        let Some(name) = copy.volume.devices.first() else { return Ok(None) };
        let device = Devices::host(None).device(name).with_context(|| format!("{name} is gone"))?;
        ensure!(
            device.size == copy.size,
            "{name} has {} bytes, but had {} when the copy was taken, so that the copy no longer fits its end; use --to FILE",
            device.size,
            copy.size
        );
        let path = node_path(name);
        let device = Direct::open(name, device.dev, device.size)
            .with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Some(Self { path, device }))
    }

    fn differ(&self, piece: &Piece) -> Option<u64> {
        let there = self.device.read_at(piece.offset, piece.bytes.len())?;
        Some(there.iter().zip(&piece.bytes).filter(|(there, kept)| there != kept).count() as u64)
    }
}

pub(super) fn run(socket: &Path, arguments: &Arguments) -> Result<(), CommandError> {
    let query = [("volume", client::selector(&arguments.volume)?)];
    let copy: Copy = client::get(socket, "/v1/volume/copy", &query)?;
    if let Some(file) = &arguments.to {
        save(&copy, file)?;
    }
    // A device that is gone or has changed is no failure with --to: the file is wanted just then.
    let target = match Target::of(&copy) {
        Err(error) if arguments.to.is_some() && !arguments.write => {
            eprintln!("format-guard: {error:#}");
            None
        }
        target => target?,
    };
    let pieces: Vec<Compared> = copy
        .pieces
        .iter()
        .map(|piece| Compared {
            offset: piece.offset,
            length: piece.bytes.len() as u64,
            differ: target.as_ref().and_then(|target| target.differ(piece)),
        })
        .collect();
    let mut report = Report {
        volume: copy.volume.id.clone(),
        at: copy.at,
        generation: copy.generation,
        device: target.as_ref().map(|target| target.path.display().to_string()),
        pieces,
        written: false,
    };
    if !arguments.json {
        show(&report, arguments.to.as_deref());
    }
    if arguments.write {
        let target =
            target.ok_or_else(|| anyhow!("{} is not attached here: attach it first", report.volume))?;
        let others: Vec<&Piece> = copy
            .pieces
            .iter()
            .zip(&report.pieces)
            .filter(|(_, compared)| compared.differ != Some(0))
            .map(|(piece, _)| piece)
            .collect();
        if others.is_empty() {
            eprintln!("format-guard: the volume is as it was copied: nothing is written");
        } else {
            may_be_written(&copy.volume)?;
            is_confirmed(&target.path, &others)?;
            write(&target.path, &others)?;
            report.written = true;
            // The agent probes the device once this process has ended, as after every format.
            let _: Volume = client::post(socket, "/v1/volume/probe", &Selector { volume: copy.volume.id })?;
        }
    }
    if arguments.json {
        return print_json(&report);
    }
    if report.written {
        println!(
            "written. Look at the volume before it is mounted: blkid, e2fsck -n, cryptsetup luksDump ..."
        );
    }
    Ok(())
}

fn show(report: &Report, file: Option<&Path>) {
    let total: u64 = report.pieces.iter().map(|piece| piece.length).sum();
    let text = format!(
        "{}: {total} bytes were copied at {}, of generation {} of its record",
        report.volume,
        moment(report.at),
        report.generation
    );
    println!("{}", wrap(&text, 80, 2));
    for piece in &report.pieces {
        let differ = match (piece.differ, &report.device) {
            (_, None) => "not attached".to_owned(),
            (Some(0), _) => "as it was".to_owned(),
            (Some(differ), _) => format!("{differ} bytes differ"),
            (None, _) => "cannot be read".to_owned(),
        };
        println!("  {:>9} bytes at {:<16} {differ}", piece.length, piece.offset);
    }
    if let Some(file) = file {
        println!("saved in {}", file.display());
    }
}

/// The file must be new and readable for root alone: the copy may hold keys.
fn save(copy: &Copy, file: &Path) -> anyhow::Result<()> {
    let write = || -> io::Result<()> {
        let out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
        out.set_len(copy.size)?;
        for piece in &copy.pieces {
            out.write_all_at(&piece.bytes, piece.offset)?;
        }
        out.sync_all()
    };
    write().with_context(|| format!("cannot save the copy in {}", file.display()))
}

/// Putting the copy back is a re-format like any other: it overwrites what is there.
fn may_be_written(volume: &Volume) -> Result<(), CommandError> {
    if volume.state == State::Permitted.name() {
        return Ok(());
    }
    let text = format!(
        "{} is {}: nothing is written without a permit; to give one: format-guard volume permit {} --reason TEXT",
        volume.id, volume.state, volume.id
    );
    Err(Failure::new(FailureKind::Refused, text).into())
}

fn is_confirmed(device: &Path, pieces: &[&Piece]) -> anyhow::Result<()> {
    let total: usize = pieces.iter().map(|piece| piece.bytes.len()).sum();
    eprint!("{total} bytes of {} are overwritten. Type yes to go on: ", device.display());
    ensure!(typed_yes()?, "nothing is written");
    Ok(())
}

/// The pieces are written from last to first: nothing is found at the start before all of it is there.
fn write(path: &Path, pieces: &[&Piece]) -> anyhow::Result<()> {
    // Nothing else may hold the device: a mounted file system would write over the copy again.
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_EXCL)
        .open(path)
        .with_context(|| format!("cannot open {} for writing", path.display()))?;
    if !fs::metadata(path)?.file_type().is_block_device() {
        bail!("{} is no block device", path.display());
    }
    for piece in pieces.iter().rev() {
        device
            .write_all_at(&piece.bytes, piece.offset)
            .with_context(|| format!("cannot write {} bytes at {}", piece.bytes.len(), piece.offset))?;
    }
    device.sync_all().with_context(|| format!("cannot flush {}", path.display()))
}
