//! The command line: one file per command. It asks the agent and prints; it decides nothing.

mod agent;
mod canary;
mod check;
mod client;
mod config;
mod consent;
mod ensure_fs;
mod events;
mod format;
#[cfg(feature = "kubernetes")]
pub mod kubectl;
mod loss;
mod manual;
mod mode;
mod probe;
mod protect;
mod report;
mod rescue;
mod run;
mod settle;
mod simulate;
mod status;
#[cfg(feature = "etcd")]
mod store;
mod volume;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::{
    api::{Condition, Done, Failure, FailureKind},
    config::DEFAULT_SOCKET,
};

/// Exit codes, documented in docs/commands.md.
mod exit {
    pub(super) const FAILED: u8 = 1;
    pub(super) const USAGE: u8 = 2;
    pub(super) const REFUSED: u8 = 3;
    pub(super) const NO_AGENT: u8 = 4;
    pub(super) const NOT_ENFORCEABLE: u8 = 5;
    pub(super) const DEGRADED: u8 = 6;
    pub(super) const AUDIT: u8 = 7;
}

/// Remembers that a volume was formatted and makes the kernel refuse to destroy it.
#[derive(Debug, Parser)]
#[command(name = "format-guard", version, max_term_width = 80)]
pub struct Arguments {
    /// Control socket of the agent
    #[arg(long, global = true, env = "FORMAT_GUARD_SOCKET", default_value = DEFAULT_SOCKET, value_name = "PATH")]
    socket: PathBuf,
    /// Print times in UTC, exactly (2026-01-31T12:00:00Z)
    #[arg(long, global = true)]
    utc: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the guard (needs root)
    #[command(after_help = "Example: format-guard agent --audit")]
    Agent(agent::Arguments),
    /// Show how far this host is protected, and what is left open
    #[command(
        after_help = "Examples:\n  format-guard status --json\n  format-guard status --check\n\nExit status with --check: 0 enforcing, \
                      4 no agent, 5 not enforcing, 6 degraded, 7 audit"
    )]
    Status(status::Arguments),
    /// Say whether this host can enforce; if not, what to change
    #[command(
        after_help = "Examples:\n  sudo format-guard check\n  sudo format-guard check --require lsm\n\nExit status: 0 it can, 5 it \
                      cannot, or not by that tier, 1 nothing was tried"
    )]
    Check(check::Arguments),
    /// Show known volumes, adopt them, permit a re-format
    #[command(subcommand, after_help = "Example: format-guard volume list")]
    Volume(volume::Command),
    /// Show or set whether refusals are carried out
    #[command(
        after_help = "Examples:\n  format-guard mode audit --reason \"first week\"\n  format-guard mode strict --volume /dev/sdb --reason \"archive\""
    )]
    Mode(mode::Arguments),
    /// Show or set whether others are kept from taking the guard away
    #[command(after_help = "Example: format-guard protect off --reason \"taking it apart\"")]
    Protect(protect::Arguments),
    /// Show whether records were lost, or end the loss
    #[command(after_help = "Example: format-guard loss end --reason \"every volume is on record again\"")]
    Loss(loss::Arguments),
    /// Show the configuration, or check a file
    #[command(subcommand, after_help = "Example: format-guard config show")]
    Config(config::Command),
    /// Export and import what nodes share, or add what this node knows
    #[cfg(feature = "etcd")]
    #[command(subcommand, after_help = "Example: format-guard store export > volumes.jsonl")]
    Store(store::Command),
    /// Show what happened
    #[command(
        after_help = "Examples:\n  format-guard events --since 2h\n  format-guard events /dev/sdb --follow --json"
    )]
    Events(events::Arguments),
    /// Sum up refusals on one page, and say whether this guard may enforce
    #[command(after_help = "Example: format-guard report --since 7d")]
    Report(report::Arguments),
    /// Format a blank volume once; succeed if it holds that type already
    #[command(after_help = "Example: format-guard ensure-fs /dev/sdb --type ext4 -- -m0")]
    EnsureFs(ensure_fs::Arguments),
    /// Wait until a device is read, so that a blank one may be formatted
    #[command(after_help = "Example: format-guard settle /dev/sdb --timeout 2s")]
    Settle(settle::Arguments),
    /// Say what a program might try on a device, and what would be refused; nothing is tried
    #[command(after_help = "Example: format-guard simulate mkfs.ext4 /dev/sdb")]
    Simulate(simulate::Arguments),
    /// Run a command under the library for hosts whose kernel cannot refuse
    #[command(after_help = "Example: format-guard run -- mkfs.ext4 /dev/sdb")]
    Run(run::Arguments),
    /// Print completions for a shell
    #[command(after_help = "Example: format-guard completions bash > /etc/bash_completion.d/format-guard")]
    Completions(manual::Completions),
    /// Write the manual pages
    #[command(after_help = "Example: format-guard man /usr/local/share/man")]
    Man(manual::Manual),
    /// Probe devices for the agent
    #[command(hide = true)]
    Probe,
    /// Try for the agent what the guard must refuse
    #[command(hide = true)]
    Canary(canary::Arguments),
}

/// How to print.
#[derive(Clone, Copy, Debug, clap::Args)]
struct Json {
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    /// No agent answers on the socket.
    #[error("no agent answers on {socket} ({reason}): start it with systemctl start format-guard")]
    NoAgent { socket: String, reason: String },
    /// An agent is there, and hangs.
    #[error("the agent did not answer in time")]
    NoAnswer,
    /// Only root may use the socket.
    #[error("only root may ask the agent: run this as root (sudo format-guard ...)")]
    NotRoot,
    /// This host cannot enforce.
    #[error("this host cannot enforce: {0}")]
    NotEnforceable(String),
    /// Nothing was tried, so that nothing is known.
    #[error(
        "nobody knows whether this host can enforce: only a trial shows it, which needs root (sudo format-guard check)"
    )]
    NotTried,
    /// A monitor asked, and the guard is not enforcing in full: the printed line says so.
    #[error("{}", .0.name())]
    Condition(Condition),
    /// The agent's answer is a failure.
    #[error(transparent)]
    Agent(#[from] Failure),
    /// Everything else.
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

impl CommandError {
    const fn exit_code(&self) -> u8 {
        match self {
            Self::NoAgent { .. } => exit::NO_AGENT,
            Self::NotRoot | Self::NoAnswer | Self::NotTried => exit::FAILED,
            Self::NotEnforceable(_) => exit::NOT_ENFORCEABLE,
            Self::Condition(condition) => match condition {
                Condition::Enforcing => 0,
                Condition::Audit => exit::AUDIT,
                Condition::Degraded => exit::DEGRADED,
                Condition::NotEnforcing => exit::NOT_ENFORCEABLE,
            },
            Self::Agent(failure) => match failure.kind {
                FailureKind::Failed | FailureKind::NotFound => exit::FAILED,
                FailureKind::BadRequest => exit::USAGE,
                FailureKind::Refused => exit::REFUSED,
            },
            Self::Other(_) => exit::FAILED,
        }
    }
}

/// Runs the command; the process's exit code.
#[must_use]
pub fn run(arguments: Arguments) -> ExitCode {
    if !matches!(arguments.command, Command::Agent(_)) {
        // The reader of the output may have gone.
        // SAFETY: the default disposition, before any other thread exists.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    }
    if arguments.utc {
        format::print_times_in_utc();
    }
    let socket = &arguments.socket;
    let result = match arguments.command {
        Command::Agent(arguments) => agent::run(&arguments),
        Command::Status(arguments) => status::run(socket, &arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Volume(command) => volume::run(socket, command),
        Command::Mode(arguments) => mode::run(socket, &arguments),
        Command::Protect(arguments) => protect::run(socket, &arguments),
        Command::Loss(arguments) => loss::run(socket, &arguments),
        Command::Config(command) => config::run(command),
        #[cfg(feature = "etcd")]
        Command::Store(command) => store::run(socket, command),
        Command::Events(arguments) => events::run(socket, &arguments),
        Command::Report(arguments) => report::run(socket, &arguments),
        Command::EnsureFs(arguments) => ensure_fs::run(socket, &arguments),
        Command::Settle(arguments) => settle::run(socket, &arguments),
        Command::Simulate(arguments) => simulate::run(socket, &arguments),
        Command::Run(arguments) => run::run(&arguments),
        Command::Completions(arguments) => {
            manual::completions(&arguments);
            Ok(())
        }
        Command::Man(arguments) => manual::pages(&arguments),
        Command::Probe => probe::run(),
        Command::Canary(arguments) => canary::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ CommandError::Condition(_)) => ExitCode::from(error.exit_code()),
        Err(error) => {
            eprintln!("format-guard: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// Prints what was done.
fn done(done: &Done, json: bool) -> Result<(), CommandError> {
    if json {
        return print_json(done);
    }
    println!("{}", done.text);
    Ok(())
}

/// Prints JSON, indented.
fn print_json<T: serde::Serialize>(value: &T) -> Result<(), CommandError> {
    let text = serde_json::to_string_pretty(value).map_err(anyhow::Error::from)?;
    println!("{text}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// The published schemas of `--json`.
    const SCHEMAS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/json");

    fn schema<T: schemars::JsonSchema>(name: &'static str) -> (&'static str, String) {
        let text = serde_json::to_string_pretty(&schemars::schema_for!(T)).expect("a schema");
        (name, format!("{text}\n"))
    }

    /// `FORMAT_GUARD_WRITE_SCHEMAS=1 cargo test` writes the schemas anew. A field that is renamed or removed
    /// breaks the readers of the JSON.
    #[test]
    fn what_is_printed_as_json_has_its_schema_in_the_documentation() {
        let schemas = [
            schema::<crate::api::Status>("status"),
            schema::<crate::api::Volumes>("volumes"),
            schema::<crate::api::Volume>("volume"),
            schema::<crate::api::Events>("events"),
            schema::<crate::record::history::HistoryEvent>("event"),
            schema::<crate::api::Done>("done"),
            schema::<crate::api::Settled>("settled"),
            schema::<crate::api::Failure>("failure"),
            schema::<crate::api::Simulation>("simulation"),
            schema::<check::Report>("check"),
            schema::<ensure_fs::Outcome>("ensure-fs"),
            schema::<report::Report>("report"),
            schema::<rescue::Report>("rescue"),
        ];
        for (name, text) in schemas {
            let path = format!("{SCHEMAS}/{name}.schema.json");
            if std::env::var_os("FORMAT_GUARD_WRITE_SCHEMAS").is_some() {
                std::fs::create_dir_all(SCHEMAS).expect("directory");
                std::fs::write(&path, &text).expect("written");
            }
            let documented = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(documented == text, "{path} is not what the program prints");
        }
    }

    #[test]
    fn every_command_has_a_manual_page_and_every_shell_its_completions() {
        let directory = tempfile::tempdir().expect("directory");
        let written = manual::write(directory.path());
        written.expect("pages");
        for page in ["format-guard.8", "format-guard-volume-permit.8", "format-guard-ensure-fs.8"] {
            let text = std::fs::read_to_string(directory.path().join("man8").join(page)).expect(page);
            assert!(text.contains(".SH NAME") && text.contains(".SH \"SEE ALSO\""), "{page}: {text}");
        }
        let read = |path: &str| std::fs::read_to_string(directory.path().join(path)).expect("a page");
        let whole = read("man8/format-guard.8");
        for heading in ["\"EXIT STATUS\"", "ENVIRONMENT", "FILES"] {
            assert!(whole.contains(&format!(".SH {heading}")), "{heading}: {whole}");
        }
        let configuration = read("man5/format-guard.toml.5");
        assert!(configuration.contains("quarantine") && configuration.contains(".SH POLICIES"));
        for shell in [clap_complete::Shell::Bash, clap_complete::Shell::Zsh, clap_complete::Shell::Fish] {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "format-guard", &mut text);
            assert!(String::from_utf8_lossy(&text).contains("ensure-fs"), "{shell}");
        }
    }

    #[test]
    fn help_fits_80_columns() {
        fn all(command: &mut clap::Command) {
            let help = command.render_long_help().to_string();
            for line in help.lines() {
                assert!(line.chars().count() <= 80, "{line}");
            }
            command.get_subcommands_mut().for_each(all);
        }
        all(&mut Arguments::command().term_width(80));
    }

    #[test]
    fn the_help_of_every_command_has_an_example_that_is_understood() {
        fn all(command: &clap::Command) {
            for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                let examples =
                    help.lines().filter_map(|line| line.split_once("format-guard ").map(|(_, rest)| rest));
                let mut examples = examples.map(|line| line.split(" > ").next().unwrap_or(line)).peekable();
                assert!(examples.peek().is_some(), "{}: no example", command.get_name());
                for line in examples {
                    let mut words = vec!["format-guard".to_owned()];
                    // Quoted text is one word.
                    for (i, part) in line.split('"').enumerate() {
                        match i % 2 {
                            0 => words.extend(part.split_whitespace().map(str::to_owned)),
                            _ => words.push(part.to_owned()),
                        }
                    }
                    let parsed = Arguments::try_parse_from(&words);
                    assert!(parsed.is_ok(), "{words:?}: {}", parsed.expect_err("wrong"));
                }
                all(command);
            }
        }
        all(&Arguments::command());
    }

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }
}
