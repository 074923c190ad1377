//! The `terrane` command: running nodes, laying out devices, and talking to a cluster.
//!
//! Results go to standard output and nothing else does, so that a pipe or a script gets only what it
//! asked for; progress, notes and errors go to standard error. What went wrong is also the exit code
//! ([`Exit`]), which is part of the interface.

mod config;
mod connection;
mod format;
mod inspect;
mod kv;
mod layout;
mod local;
mod output;
mod start;
mod status;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Exit codes of every subcommand, as `terrane --help` documents them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    /// Something else went wrong; standard error says what.
    Failure = 1,
    /// The command line was wrong.
    Usage = 2,
    /// The key does not exist.
    NotFound = 3,
    /// `--if-absent` or `--if-version` did not hold; nothing was written.
    ConditionFailed = 4,
    /// No node, or no leader, answered in time. A write may or may not have happened.
    Unavailable = 5,
    /// What was looked at can be read, and something is missing or broken.
    Damaged = 6,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed; standard error says why
  2  wrong usage
  3  not found: no such key to get, or to del --if-exists
  4  the condition of a conditional put or delete did not hold: nothing was written
  5  unavailable: no node or no leader answered in time (a write may or may not have happened)
  6  inspect: something on the device is missing or broken

To begin, on this machine:
  terrane local --nodes 3 --dir ./cluster        a three-node cluster, until Ctrl-C
  terrane put greeting hello                     in another terminal
  terrane get greeting

To run a node of a real cluster:
  terrane config --example > node-1.toml         then edit it
  terrane format --config node-1.toml --size 64GiB
  terrane start  --config node-1.toml";

/// Terrane: a replicated, durable key-value store that writes each value to flash once.
#[derive(Debug, Parser)]
#[command(name = "terrane", version, about, after_help = EXIT_CODES, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node until SIGTERM or SIGINT
    Start(start::Args),
    /// Lay out a node's device: superblock and one slice per shard. Erases what is there
    Format(format::Args),
    /// Run a whole cluster on this machine, one process per node, until Ctrl-C
    Local(local::Args),
    /// Write a value
    Put(kv::PutArgs),
    /// Print a value
    Get(kv::GetArgs),
    /// Delete a key
    Del(kv::DelArgs),
    /// List keys and values in key order
    Scan(kv::ScanArgs),
    /// Show nodes, leaders and counters; exits with 5 unless every partition has a leader
    Status(status::Args),
    /// Print or check a node's configuration
    Config(config::Args),
    /// Show what stands on a stopped node's device, or verify it; exits with 6 if something is missing or broken
    Inspect(inspect::Args),
}

impl Exit {
    /// The `error` field of a failure printed as JSON.
    fn name(self) -> &'static str {
        match self {
            Exit::Failure => "failed",
            Exit::Usage => "usage",
            Exit::NotFound => "not_found",
            Exit::ConditionFailed => "condition_failed",
            Exit::Unavailable => "unavailable",
            Exit::Damaged => "damaged",
        }
    }
}

/// Why a command did not do what it was asked, and the exit code that says so.
#[derive(Debug)]
struct Failure {
    exit: Exit,
    /// For people. Empty: exit quietly.
    message: String,
    /// For scripts: more fields of the JSON object.
    details: serde_json::Map<String, serde_json::Value>,
}

impl Failure {
    fn new(exit: Exit, message: impl Into<String>) -> Failure {
        Failure { exit, message: message.into(), details: serde_json::Map::new() }
    }

    fn with(mut self, name: &str, value: impl Into<serde_json::Value>) -> Failure {
        self.details.insert(name.to_owned(), value.into());
        self
    }

    /// An argument that clap could not judge by itself.
    fn usage(message: impl Into<String>) -> Failure {
        Failure::new(Exit::Usage, message)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure::new(Exit::Failure, told(&error))
    }
}

/// An error with its causes, each said once: many name theirs themselves.
fn told(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

impl From<crate::config::ConfigError> for Failure {
    fn from(error: crate::config::ConfigError) -> Failure {
        Failure::new(Exit::Failure, error.to_string())
    }
}

impl Command {
    /// Whether failures are printed as JSON too.
    fn json(&self) -> bool {
        match self {
            Command::Put(args) => args.target.json,
            Command::Get(args) => args.target.json,
            Command::Del(args) => args.target.json,
            Command::Scan(args) => args.target.json,
            Command::Status(args) => args.target.json,
            Command::Local(args) => args.json,
            Command::Inspect(args) => args.json,
            Command::Start(_) | Command::Format(_) | Command::Config(_) => false,
        }
    }
}

/// Parses the command line, runs the command, and gives the exit code.
pub fn main() -> ExitCode {
    // Wrong usage ends here with exit code 2, help and version with 0.
    let cli = Cli::parse();
    let json = cli.command.json();
    let outcome = match cli.command {
        Command::Start(args) => start::run(&args),
        Command::Format(args) => format::run(&args),
        Command::Local(args) => local::run(&args),
        Command::Put(args) => kv::put(&args),
        Command::Get(args) => kv::get(&args),
        Command::Del(args) => kv::del(&args),
        Command::Scan(args) => kv::scan(&args),
        Command::Status(args) => status::run(&args),
        Command::Config(args) => config::run(&args),
        Command::Inspect(args) => inspect::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message.is_empty() {
                eprintln!("error: {}", failure.message);
                if json {
                    let mut object = failure.details;
                    object.insert("error".to_owned(), failure.exit.name().into());
                    object.insert("message".to_owned(), failure.message.into());
                    // If even this cannot be printed, the exit code still says it.
                    let _ = output::print_json(&object.into());
                }
            }
            ExitCode::from(failure.exit as u8)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_is_named_already_is_not_said_again() {
        let gone = || std::io::Error::other("the disk is gone");
        let error = anyhow::Error::from(gone()).context("cannot read x: the disk is gone");
        assert_eq!(told(&error), "cannot read x: the disk is gone");
        assert_eq!(
            told(&anyhow::Error::from(gone()).context("cannot read x")),
            "cannot read x: the disk is gone"
        );
    }

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn every_subcommand_teaches_with_an_example() {
        use clap::CommandFactory;
        for command in Cli::command().get_subcommands_mut() {
            let name = command.get_name().to_owned();
            let help = command.render_long_help().to_string();
            assert!(help.contains("Examples:"), "terrane {name} --help has no examples");
            assert!(help.contains(&format!("  terrane {name}")), "terrane {name} --help: none is its own");
        }
    }
}
