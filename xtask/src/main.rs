//! The project's own tool: `cargo xtask COMMAND`. It sets up, builds, boots guests, demonstrates and tests.

mod api_server;
mod bench;
mod build;
mod cgroup;
mod chart;
mod cluster;
mod command;
mod cuts;
mod demo;
mod dist;
mod fuzz;
mod guest;
mod kernels;
mod matrix;
mod newcomer;
mod packages;
mod preload;
mod python;
mod recording;
mod setup;
mod test;
mod toolchain;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's own tool", max_term_width = 80)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building and testing needs on this machine
    Setup,
    /// Run a command as root in a guest of another kernel
    Vm(guest::Arguments),
    /// Show the main job on real block devices, here or in a guest
    Demo(demo::Arguments),
    /// Print figures of what the guard costs
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Test every kind of volume against every tool, and everyday work
    Matrix(matrix::Arguments),
    /// Cut a guest's power again and again while volumes are formatted
    Cuts(cuts::Arguments),
    /// Fuzz the parsers of untrusted input, for a bounded time
    Fuzz(fuzz::Arguments),
    /// Lint the Helm chart, and check it against Kubernetes' schemas
    Chart(chart::Arguments),
    /// Start an API server of Kubernetes on this host, to look at what nodes share through it
    ApiServer(api_server::Arguments),
    /// Run the README's first command in a new Debian that has only cargo and git
    Newcomer(newcomer::Arguments),
    /// Build what is released: a tarball, a Debian package, an RPM, a bill of materials, checksums
    Dist,
    /// Run unit, property, host and guest tests
    Test(test::Arguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Setup => setup::run().map(|()| ExitCode::SUCCESS),
        Command::Vm(arguments) => guest::run(&arguments),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Bench(bench) => bench::run(&bench),
        Command::Matrix(arguments) => matrix::run(&arguments),
        Command::Cuts(arguments) => cuts::run(&arguments),
        Command::Fuzz(arguments) => fuzz::run(&arguments),
        Command::Chart(arguments) => chart::run(&arguments),
        Command::ApiServer(arguments) => api_server::run(&arguments),
        Command::Newcomer(arguments) => newcomer::run(&arguments),
        Command::Dist => dist::run().map(|()| ExitCode::SUCCESS),
        Command::Test(arguments) => test::run(&arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}
