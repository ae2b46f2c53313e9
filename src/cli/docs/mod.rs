//! `docs`: man pages, shell completions, the page of every setting and sample configurations, made from the code of this program.

mod page;
mod samples;
mod setting;
#[cfg(test)]
mod tests;

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, CommandFactory, Subcommand};
use clap_complete::Shell;

use super::{Cli, fail};
use crate::{error::ProgramError, output};

/// The program's name, by which completions are looked up.
const PROGRAM: &str = "btcr2-aggregation";

/// The shells for which completions are written.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

const EXAMPLES: &str = "\
Examples:
  Completions for this shell only:
    source <(btcr2-aggregation docs completions --shell bash)
  What a package has:
    btcr2-aggregation docs man /usr/local/share/man/man1
    btcr2-aggregation docs completions completions
    btcr2-aggregation docs config /etc/btcr2-aggregation";

/// Writes man pages, shell completions, the page of every setting, or sample configurations.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct DocsArgs {
    #[command(subcommand)]
    command: DocsCommand,
}

#[derive(Debug, Subcommand)]
enum DocsCommand {
    /// Write a man page for each command into a directory
    Man(Directory),
    /// Write completions for bash, zsh and fish into a directory, or print those of one shell
    Completions(CompletionsArgs),
    /// Write settings.md, a page of every setting, into a directory
    Settings(Directory),
    /// Write serve.toml and member.toml, sample configurations that explain every key, into a directory
    ///
    /// A file that is there already is not replaced: it may have been changed.
    Config(Directory),
}

#[derive(Args, Debug)]
struct Directory {
    /// The directory, which is made if it does not exist
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

#[derive(Args, Debug)]
struct CompletionsArgs {
    /// The directory, which is made if it does not exist
    #[arg(value_name = "DIR", required_unless_present = "shell", conflicts_with = "shell")]
    directory: Option<PathBuf>,
    /// Print the completions of this shell instead
    #[arg(long, value_name = "SHELL")]
    shell: Option<Shell>,
}

pub(super) fn main(args: &DocsArgs) -> ExitCode {
    match run(&args.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn run(command: &DocsCommand) -> Result<(), ProgramError> {
    match command {
        DocsCommand::Man(Directory { directory }) => {
            make(directory)?;
            clap_mangen::generate_to(Cli::command(), directory).map_err(|error| failed(directory, error))
        }
        DocsCommand::Completions(CompletionsArgs { shell: Some(shell), .. }) => {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), PROGRAM, &mut text);
            output::bytes(&text);
            Ok(())
        }
        DocsCommand::Completions(CompletionsArgs { directory, .. }) => {
            let directory = directory.as_deref().unwrap_or(Path::new("."));
            make(directory)?;
            for shell in SHELLS {
                clap_complete::generate_to(shell, &mut Cli::command(), PROGRAM, directory)
                    .map_err(|error| failed(directory, error))?;
            }
            Ok(())
        }
        DocsCommand::Settings(Directory { directory }) => {
            make(directory)?;
            let file = directory.join("settings.md");
            fs::write(&file, page::page()).map_err(|error| failed(&file, error))
        }
        DocsCommand::Config(Directory { directory }) => {
            make(directory)?;
            for (name, text) in [("serve.toml", samples::serve()), ("member.toml", samples::member())] {
                let file = directory.join(name);
                let mut open = fs::OpenOptions::new();
                let written = open.write(true).create_new(true).open(&file);
                let written = written.and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()));
                written.map_err(|error| failed(&file, error))?;
            }
            Ok(())
        }
    }
}

fn make(directory: &Path) -> Result<(), ProgramError> {
    fs::create_dir_all(directory).map_err(|error| failed(directory, error))
}

fn failed(what: &Path, error: io::Error) -> ProgramError {
    ProgramError::Io { what: what.display().to_string(), error }
}
