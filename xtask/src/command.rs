//! Runs other programs. An error names the command and shows what it printed.

use std::{
    ffi::OsStr,
    fs::File,
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, bail};

/// A command of this program and arguments.
pub(crate) fn command<I, S>(program: &str, arguments: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs it with its output shown; anything but success is an error.
pub(crate) fn show(mut command: Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {}", name(&command)))?;
    if !status.success() {
        bail!("{} ended with {status}", name(&command));
    }
    Ok(())
}

/// Runs it quietly and returns what it printed; anything but success is an error that shows its standard
/// error.
pub(crate) fn read(mut command: Command) -> Result<String> {
    let output = output(&mut command)?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("{} ended with {}:\n{}", name(&command), output.status, error.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs it with its output going to this file, and returns whether it succeeded.
pub(crate) fn logged(command: &mut Command, log: &File) -> Result<bool> {
    command.stdout(log.try_clone()?).stderr(log.try_clone()?);
    let status = command.status().with_context(|| format!("cannot run {}", name(command)))?;
    if !status.success() {
        writeln!(&*log, "{} ended with {status}", name(command))?;
    }
    Ok(status.success())
}

/// Runs it quietly.
pub(crate) fn output(command: &mut Command) -> Result<Output> {
    command.output().with_context(|| format!("cannot run {}", name(command)))
}

/// Whether a program of this name can be run.
pub(crate) fn exists(program: &str) -> bool {
    find(program).is_some()
}

/// Where a program is, also in the directories that only root has on its path.
pub(crate) fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(Into::into))
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

fn name(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

/// Text quoted for a POSIX shell.
pub(crate) fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The root of the workspace.
pub(crate) fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}
