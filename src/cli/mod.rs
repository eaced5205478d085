//! The command line `gemel`: everything an administrator does, and `gemel demo`.
//!
//! Commands are `NOUN VERB`. With `--json` a command prints one object, or one a line for lists and
//! streams, whose fields are those of `proto/management.proto`. Errors go to standard error and say
//! what to do next; see [`error::CliError`] for the exit codes.

mod alert;
mod args;
mod client;
mod cluster;
mod commands;
mod demo;
mod drill;
mod error;
mod image;
mod local_socket;
mod manual;
mod setup;
mod show;
mod snapshot;
mod support;
mod user;

use std::process::ExitCode;

use clap::Parser;

/// Runs the command line of this process and gives its exit code.
#[must_use]
pub fn run() -> ExitCode {
    let arguments = match args::Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(message) => {
            let code = if message.use_stderr() { error::USAGE } else { 0 };
            // Nothing can be done about a standard output that does not take the help text.
            let _ = message.print();
            return ExitCode::from(code);
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("gemel: cannot set up an event loop: {error}");
            return ExitCode::from(error::LOCAL);
        }
    };
    match runtime.block_on(commands::run(arguments)) {
        Ok(code) => ExitCode::from(code),
        Err(error) if error.is_closed_output() => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gemel: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
