//! `format-guard run`: starts a command under the `LD_PRELOAD` library.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs::File,
    io::Read,
    os::unix::{ffi::OsStrExt, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, anyhow};
use format_guard_common::snapshot::FILE;
use object::{
    Endianness,
    elf::{ELFCLASS64, FileHeader64},
    read::elf::{FileHeader, ProgramHeader},
};

use super::CommandError;
use crate::enforce::preload::library;

/// Bytes of a program that are read: its headers and the path of its dynamic linker are at the start.
const LOOKED_AT: u64 = 1 << 20;
/// How many scripts may name one another as interpreter; the kernel has the same limit (execve(2)).
const SCRIPTS: usize = 4;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Whether known formatters run while no agent answers
    #[arg(long, value_enum, default_value_t = WithoutAgent::Refuse, value_name = "WHAT")]
    without_agent: WithoutAgent,
    /// The agent's run directory
    #[arg(long, value_name = "DIRECTORY", default_value = "/run/format-guard")]
    run_dir: PathBuf,
    /// The library [default: beside this program, or in /usr/lib/format-guard]
    #[arg(long, value_name = "FILE")]
    library: Option<PathBuf>,
    /// Command to run, and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum WithoutAgent {
    /// Refuse known formatters on every block device
    Refuse,
    /// Let known formatters run
    Allow,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), CommandError> {
    let [name, rest @ ..] = arguments.command.as_slice() else { return Err(anyhow!("no command").into()) };
    let library = match &arguments.library {
        Some(library) => library.clone(),
        None => library().map_err(anyhow::Error::from)?,
    };
    let program = found(name).with_context(|| format!("there is no program {}", name.display()))?;
    takes_the_library(&program).map_err(|reason| anyhow!("{}: {reason}", program.display()))?;
    if !arguments.run_dir.join(FILE).exists() {
        eprintln!(
            "format-guard: no agent of tier preload has published its rules in {}: known formatters {}",
            arguments.run_dir.display(),
            match arguments.without_agent {
                WithoutAgent::Refuse => "will be refused",
                WithoutAgent::Allow => "go on, and nothing is refused",
            }
        );
    }
    let mut preload = library.into_os_string();
    if let Some(others) = env::var_os("LD_PRELOAD").filter(|others| !others.is_empty()) {
        preload.push(":");
        preload.push(others);
    }
    let mut command = Command::new(&program);
    command.arg0(name).args(rest).env("LD_PRELOAD", preload).env("FORMAT_GUARD_RUN_DIR", &arguments.run_dir);
    if matches!(arguments.without_agent, WithoutAgent::Allow) {
        command.env("FORMAT_GUARD_WITHOUT_AGENT", "allow");
    }
    Err(anyhow::Error::new(command.exec()).context(format!("cannot run {}", program.display())).into())
}

/// Where a program of this name is, as a shell looks for it.
fn found(name: &OsStr) -> Option<PathBuf> {
    if name.as_bytes().contains(&b'/') {
        return Some(PathBuf::from(name)).filter(|path| path.exists());
    }
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|directory| directory.join(name)).find(|path| path.is_file())
}

/// Whether the dynamic linker of a program can load the library.
fn takes_the_library(program: &Path) -> Result<(), String> {
    let mut program = program.to_owned();
    for _ in 0..=SCRIPTS {
        let mut start = Vec::new();
        File::open(&program)
            .and_then(|file| file.take(LOOKED_AT).read_to_end(&mut start))
            .map_err(|error| format!("cannot be read: {error}"))?;
        match interpreter_of_script(&start) {
            Some(interpreter) => program = interpreter,
            None => return linker_takes_it(&start),
        }
    }
    Err("its interpreters are scripts that name one another without end".to_owned())
}

fn interpreter_of_script(start: &[u8]) -> Option<PathBuf> {
    let line = start.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let path = line.trim_ascii().split(u8::is_ascii_whitespace).next()?;
    Some(PathBuf::from(OsStr::from_bytes(path)))
}

fn linker_takes_it(start: &[u8]) -> Result<(), String> {
    const NOT: &str = "the library cannot be loaded into the program, and could refuse nothing";

    // execve(2) reports what is wrong with the program.
    let Some(identity) = start.strip_prefix(b"\x7fELF") else { return Ok(()) };
    if identity.first() != Some(&ELFCLASS64) {
        return Err(format!("it is no 64-bit program: {NOT}"));
    }
    let broken = |error: object::Error| format!("it is no sound program: {error}");
    let header = FileHeader64::<Endianness>::parse(start).map_err(broken)?;
    let endian = header.endian().map_err(broken)?;
    for segment in header.program_headers(endian, start).map_err(broken)? {
        if let Some(linker) = segment.interpreter(endian, start).map_err(broken)? {
            let linker = String::from_utf8_lossy(linker);
            if linker.contains("ld-musl") {
                return Err(format!("it is linked to musl ({linker}), the library to glibc: {NOT}"));
            }
            return Ok(());
        }
    }
    Err(format!("it is linked statically: {NOT}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The head of an ELF program with one program header of this type and path.
    fn program(class: u8, kind: u32, path: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 64 + 56];
        bytes[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, 1]);
        bytes[6] = 1;
        // e_type, e_machine, e_version, e_phoff, e_ehsize, e_phentsize, e_phnum (elf(5)).
        bytes[16..24].copy_from_slice(&[3, 0, 62, 0, 1, 0, 0, 0]);
        bytes[32] = 64;
        bytes[52..58].copy_from_slice(&[64, 0, 56, 0, 1, 0]);
        bytes[64..68].copy_from_slice(&kind.to_le_bytes());
        bytes[72] = 120;
        bytes[96] = path.len() as u8;
        bytes.extend(path);
        bytes
    }

    #[test]
    fn programs_that_cannot_load_the_library_are_refused_with_the_reason() {
        for (class, kind, path, reason) in [
            (2, 3, &b"/lib64/ld-linux-x86-64.so.2\0"[..], None),
            (2, 3, b"/lib/ld-musl-x86_64.so.1\0", Some("musl")),
            (2, 1, b"", Some("statically")),
            (1, 3, b"/lib/ld-linux.so.2\0", Some("64-bit")),
        ] {
            let said = linker_takes_it(&program(class, kind, path)).err();
            assert_eq!(said.is_none(), reason.is_none(), "{said:?}");
            assert!(said.unwrap_or_default().contains(reason.unwrap_or_default()), "{reason:?}");
        }
        assert!(linker_takes_it(b"\x7fELF\x02").is_err());
        assert!(linker_takes_it(b"echo").is_ok());
    }

    #[test]
    fn a_script_is_run_by_its_interpreter() {
        let of = |text: &str| interpreter_of_script(text.as_bytes()).map(|path| path.display().to_string());
        assert_eq!(of("#! /bin/sh -e\necho").as_deref(), Some("/bin/sh"));
        assert_eq!(of("#!/usr/bin/env python3\n").as_deref(), Some("/usr/bin/env"));
        assert_eq!(of("echo"), None);
        assert!(takes_the_library(Path::new("/bin/sh")).is_ok());
    }
}
