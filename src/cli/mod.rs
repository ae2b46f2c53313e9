//! The command line: what people and scripts call. Each command has its file.

mod demo;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Aggregation of did:btcr2 updates: many DID controllers share one Bitcoin transaction.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(after_help = "Without a command, `demo` runs.\n\n\
    Exit status: 0 when the command did what it says, 1 when it could not, 2 when it was called wrongly.")]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    demo: demo::DemoArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a whole cohort in this process and verify its transaction
    Demo(demo::DemoArgs),
}

/// Runs the program with the process's arguments.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        Some(Command::Demo(args)) => demo::main(&args),
        None => demo::main(&cli.demo),
    }
}
