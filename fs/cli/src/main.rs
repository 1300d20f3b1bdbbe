//! The `axiomfs` command: arguments, output, and the one place where the parts are put together.
#![deny(unsafe_code)]

mod advice;
mod args;
mod audit;
mod client;
mod commands;
mod control;
mod daemon_log;
mod failure;
mod faults;
mod file_report;
mod key_file;
mod lease;
mod locks;
mod metrics;
mod metrics_http;
mod output;
mod pacing;
mod passphrase;
mod places;
mod progress;
mod recovery;
mod reload;
mod remount;
mod replies;
mod rotation;
mod session;
mod shutdown;
mod status;
mod stores;
mod system;
mod wiring;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Verb};
use crate::failure::Failure;
use crate::passphrase::Environment;

/// Counts per thread, so that the host sees a plugin that takes more memory than it may.
#[global_allocator]
static ALLOCATOR: axiomfs_meter::Metered<std::alloc::System> = axiomfs_meter::Metered(std::alloc::System);

fn main() -> ExitCode {
    system::forbid_dumps();
    system::share_heaps();
    let environment = Environment::take();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match run(&cli, environment) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            report(&failure, cli.wants_json());
            failure.exit_code()
        }
    }
}

fn run(cli: &Cli, environment: Environment) -> Result<(), Failure> {
    let json = cli.wants_json();
    match &cli.verb {
        Verb::Init(args) => commands::init::run(args, environment, json),
        Verb::Mount(args) => commands::mount::run(args, environment, json),
        Verb::Umount(args) => commands::umount::run(args, json),
        Verb::Sync(args) => commands::sync::run(args, json),
        Verb::Status(args) => commands::status::run(args, json),
        Verb::Snapshot(verb) => commands::snapshot::run(verb, environment, json),
        Verb::Ctl(args) => commands::ctl::run(args, json),
        Verb::Key(verb) => commands::key::run(verb, environment, json),
        Verb::Volume(verb) => commands::volume::run(verb, environment, json),
        Verb::Stat(args) => commands::stat::run(args, json),
        Verb::Advise(args) => commands::advise::run(args, json),
        Verb::Recover(args) => commands::recover::run(args, environment, json),
        Verb::Plugin(verb) => commands::plugin::run(verb, json),
        Verb::Config(verb) => commands::config::run(verb, json),
    }
}

fn report(failure: &Failure, json: bool) {
    if json && let Err(unprinted) = output::print(&failure.to_json().to_string()) {
        output::complain(&format!("axiomfs: {unprinted}"));
    }
    output::complain(&format!("axiomfs: {failure}"));
}

/// Help goes to standard output and is no failure; wrong use is one, also in JSON where that was asked for.
fn usage(error: &clap::Error) -> ExitCode {
    if error.use_stderr() && std::env::args_os().any(|arg| arg == "--json") {
        let text = error.to_string();
        // All before the usage: which arguments are missing, what is possible.
        let words: Vec<&str> = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:")).collect();
        report(&Failure::usage(words.join(" ").trim_start_matches("error: ")).hint("see axiomfs --help"), true);
    } else if let Err(unprinted) = error.print() {
        output::complain(&format!("axiomfs: {unprinted}"));
    }
    ExitCode::from(if error.use_stderr() { 2 } else { 0 })
}
