//! `format-guard man` and `format-guard completions`: both are made from the definition of the command line.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::roff::{Roff, bold, roman};

use super::{CommandError, exit};
use crate::{
    config::Config,
    policy::{Action, Criteria},
};

#[derive(Debug, clap::Args)]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

#[derive(Debug, clap::Args)]
pub(super) struct Manual {
    /// Directory for man5 and man8; missing directories are made
    directory: PathBuf,
}

pub(super) fn completions(arguments: &Completions) {
    let mut command = super::Arguments::command();
    clap_complete::generate(arguments.shell, &mut command, "format-guard", &mut io::stdout());
}

pub(super) fn pages(arguments: &Manual) -> Result<(), CommandError> {
    write(&arguments.directory)
        .with_context(|| format!("cannot write the manual to {}", arguments.directory.display()))?;
    Ok(())
}

/// What section 8 is called (man-pages(7)).
const MANUAL: &str = "System Administration";

/// The exit statuses of every command.
const EXIT_STATUS: &[(u8, &str)] = &[
    (0, "The command is done, or the answer is yes."),
    (exit::FAILED, "The command failed: the message says why."),
    (exit::USAGE, "The command line or the request is wrong."),
    (exit::REFUSED, "The agent refuses the request."),
    (exit::NO_AGENT, "No agent answers."),
    (exit::NOT_ENFORCEABLE, "This host cannot enforce, or does not (status --check)."),
    (exit::DEGRADED, "This host enforces less than it could (status --check)."),
    (exit::AUDIT, "This host reports refusals and carries none out (status --check)."),
];

const ENVIRONMENT: &[(&str, &str)] = &[
    ("FORMAT_GUARD_SOCKET", "The agent's control socket, as by --socket."),
    ("FORMAT_GUARD_LOG", "What the agent logs, as a filter of tracing-subscriber: info, format_guard=debug."),
    (
        "NODE_NAME",
        "This node's name, for a store that nodes share and for the Events of a cluster. Default: the host's name.",
    ),
];

const FILES: &[(&str, &str)] = &[
    (
        "/etc/format-guard/config.toml",
        "The configuration, format-guard.toml(5). SIGHUP has the agent read it again.",
    ),
    ("/var/lib/format-guard", "The database of volumes (state_dir), readable for root alone."),
    ("/run/format-guard/control.sock", "The control socket (run_dir)."),
    ("/sys/fs/bpf/format-guard", "What enforces, whether an agent runs or not (pin_dir)."),
];

/// Pages of all commands, in section 8, and of the configuration, in section 5.
pub(super) fn write(directory: &Path) -> io::Result<()> {
    let (commands, formats) = (directory.join("man8"), directory.join("man5"));
    fs::create_dir_all(&commands)?;
    fs::create_dir_all(&formats)?;
    let mut all = super::Arguments::command().disable_help_subcommand(true);
    all.build();
    page(&all, true, &commands)?;
    fs::write(formats.join("format-guard.toml.5"), of_configuration().to_roff())
}

fn page(command: &clap::Command, whole: bool, directory: &Path) -> io::Result<()> {
    let man = clap_mangen::Man::new(command.clone()).section("8").manual(MANUAL);
    let mut text = Vec::new();
    man.render(&mut text)?;
    let mut more = Roff::new();
    if whole {
        let statuses: Vec<(String, &str)> =
            EXIT_STATUS.iter().map(|(status, meaning)| (status.to_string(), *meaning)).collect();
        listed(
            &mut more,
            "EXIT STATUS",
            statuses.iter().map(|(status, meaning)| (status.as_str(), *meaning)),
        );
        listed(&mut more, "ENVIRONMENT", ENVIRONMENT.iter().copied());
        listed(&mut more, "FILES", FILES.iter().copied());
    }
    let others =
        if whole { "format-guard.toml(5)" } else { "format-guard(8) for exit status, environment and files" };
    more.control("SH", ["SEE ALSO"]).text([roman(others)]);
    text.extend(more.to_roff().into_bytes());
    fs::write(directory.join(man.get_filename()), text)?;
    let shown = command.get_subcommands().filter(|command| !command.is_hide_set());
    shown.into_iter().try_for_each(|command| page(command, false, directory))
}

fn listed<'a>(roff: &mut Roff, heading: &str, lines: impl Iterator<Item = (&'a str, &'a str)>) {
    roff.control("SH", [heading]);
    for (name, meaning) in lines {
        roff.control("TP", []).text([bold(name)]).text([roman(meaning)]);
    }
}

fn of_configuration() -> Roff {
    let version = format!("format-guard {}", env!("CARGO_PKG_VERSION"));
    let mut roff = Roff::new();
    roff.control("TH", ["format-guard.toml", "5", "", &version, "File Formats"]);
    roff.control("SH", ["NAME"]).text([roman("format-guard.toml - configuration of format-guard")]);
    roff.control("SH", ["SYNOPSIS"]).text([roman("/etc/format-guard/config.toml")]);
    roff.control("SH", ["DESCRIPTION"]).text([roman(
        "A file in TOML. Every key has a default, and a file with a mistake starts no guard: format-guard config check FILE says what is \
         wrong with one. SIGHUP has the agent read it again.",
    )]);
    roff.control("SH", ["KEYS"]);
    for (key, default, meaning) in Config::keys() {
        roff.control("TP", []).text([bold(key)]).text([roman(format!("{meaning} Default: {default}"))]);
    }
    listed(&mut roff, "POLICIES", Action::ALL.iter().map(|action| (action.name(), action.meaning())));
    roff.control("PP", []).text([roman(format!(
        "A table [[policy]] has name, action and match; under match stand {}. All that is given must match, and the first policy that \
         matches holds.",
        Criteria::KEYS.join(", ")
    ))]);
    roff.control("SH", ["SEE ALSO"]).text([roman("format-guard(8)")]);
    roff
}
