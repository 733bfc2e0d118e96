//! The command line: which commands there are, and what each ends with.
//!
//! Comes in: the arguments. Goes out: an exit code, the same for every command: 0 fine, 1 what was checked is wrong,
//! 2 flags, environment or configuration file wrong, 3 could not be done. Data goes to standard output, everything else
//! to standard error. A reader that closes the pipe has what it wants: that ends a command quietly.

mod ask;
mod backup;
mod check;
mod config;
mod demo;
mod export;
mod health;
mod history;
mod identity;
mod keys;
mod lifecycle;
mod out;
mod policy;
mod prove;
mod prune;
mod reindex;
mod restore;
mod scan;
mod serve;
mod show;
mod store;
mod token;
mod verify;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::app::Failure;
use crate::config::{Config, Errors, Flags};

/// What was checked is wrong.
const WRONG: u8 = 1;
/// Flags, environment or configuration file are wrong.
const MISCONFIGURED: u8 = 2;
/// It could not be done.
const UNABLE: u8 = 3;

/// An auditing policy gateway in front of the Infisical API.
#[derive(Debug, Parser)]
#[command(name = "patchwarden", version, max_term_width = 110)]
#[command(
    after_help = "Example: patchwarden serve --upstream http://infisical:8080\nTo see it work without an Infisical: patchwarden demo"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway
    #[command(
        after_help = "Example: patchwarden serve --upstream http://infisical:8080 --listen 0.0.0.0:7080"
    )]
    Serve {
        #[command(flatten)]
        settings: Settings,
    },
    /// Tell a short story against a built-in stand-in for the guarded API
    #[command(after_help = "Example: patchwarden demo --once")]
    Demo {
        #[command(flatten)]
        args: demo::Args,
    },
    /// Load configuration and policies as `serve` would and say everything that is wrong
    #[command(after_help = "Example: patchwarden check --config patchwarden.toml --online")]
    Check {
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        args: check::Args,
    },
    /// Print what is in force and where each value came from
    #[command(after_help = "Example: patchwarden config --default > patchwarden.toml")]
    Config {
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        args: config::Args,
    },
    /// Ask the gateway this configuration describes whether it works
    #[command(after_help = "Example: patchwarden health --require audit")]
    Health {
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        args: health::Args,
    },
    /// List changes, newest first
    #[command(after_help = "Example: patchwarden history --decision deny --since 7d")]
    History {
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        args: history::Args,
    },
    /// List what the gateways did and who read the history, newest first
    #[command(after_help = "Example: patchwarden lifecycle --kind access")]
    Lifecycle {
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        args: lifecycle::Args,
    },
    /// Show one change with the state before and after
    #[command(after_help = "Example: patchwarden show last")]
    Show {
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        args: show::Args,
    },
    /// Check every log of the store: names the first entry that is wrong
    #[command(after_help = "Example: patchwarden verify")]
    Verify {
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        args: verify::Args,
    },
    /// Write one file that proves a change to somebody who has no store
    #[command(after_help = "Example: patchwarden prove last > proof.json")]
    Prove {
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        args: prove::Args,
    },
    /// Show the keys the log is signed with, and give it a new one
    #[command(after_help = "Example: patchwarden keys show")]
    Keys {
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        args: keys::Args,
    },
    /// Make what the history is listed from anew, out of the log; no gateway may run
    #[command(after_help = "Example: patchwarden reindex")]
    Reindex {
        #[command(flatten)]
        settings: Settings,
    },
    /// Write the log as it is stored, one entry a line, for whoever checks or keeps it elsewhere
    #[command(after_help = "Example: patchwarden export > log.ndjson")]
    Export {
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        args: export::Args,
    },
    /// Remove what was recorded longer ago than this; that it was recorded stays, and every proof with it
    #[command(after_help = "Example: patchwarden prune --older-than 365d")]
    Prune {
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        args: prune::Args,
    },
    /// Copy an SQLite store into one file, also beside a running gateway, and verify the copy
    #[command(after_help = "Example: patchwarden backup /backup/patchwarden.db")]
    Backup {
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        args: backup::Args,
    },
    /// Put a backup back where there is no store, and say what it does not hold
    #[command(after_help = "Example: patchwarden restore /backup/patchwarden.db --check")]
    Restore {
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        args: restore::Args,
    },
    /// Make, list and revoke admin tokens
    #[command(after_help = "Example: patchwarden token create --role reader --name auditor")]
    Token {
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        args: token::Args,
    },
    /// Judge what stands there now, without a gateway: reads every identity that a token can see
    #[command(after_help = "Example: patchwarden scan --upstream http://infisical:8080 --token-file token")]
    Scan {
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        args: scan::Args,
    },
    /// Prepare a PostgreSQL that several gateways share, and move a history to it
    #[command(after_help = "Example: patchwarden store grants")]
    Store {
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        args: store::Args,
    },
    /// List the rules in force, judge a request without sending it, export the bundle
    #[command(after_help = "Example: patchwarden policy list")]
    Policy {
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        args: policy::Args,
    },
}

/// The flags that configure; each beats its variable and the file.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Settings")]
struct Settings {
    /// Configuration file; without it, patchwarden.toml if there is one
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Where clients connect [PATCHWARDEN_LISTEN]
    #[arg(long, value_name = "ADDRESS:PORT", global = true)]
    listen: Option<String>,
    /// Probes, metrics and the history [PATCHWARDEN_ADMIN_LISTEN]
    #[arg(long, value_name = "ADDRESS:PORT", global = true)]
    admin_listen: Option<String>,
    /// Folder of what makes this instance itself [PATCHWARDEN_DATA]
    #[arg(long, value_name = "DIR", global = true)]
    data: Option<String>,
    /// enforce, or observe: denials are recorded and forwarded [PATCHWARDEN_MODE]
    #[arg(long, value_name = "MODE", global = true)]
    mode: Option<String>,
    /// Scheme, host and port of the Infisical API [PATCHWARDEN_UPSTREAM]
    #[arg(long, value_name = "URL", global = true)]
    upstream: Option<String>,
    /// Where the log of changes is: sqlite:PATH or postgres://USER@HOST/DATABASE [PATCHWARDEN_STORE]
    #[arg(long, value_name = "URL", global = true)]
    store: Option<String>,
    /// Folder of rules that are added to those in the binary [PATCHWARDEN_POLICIES]
    #[arg(long, value_name = "DIR", global = true)]
    policies: Option<String>,
    /// pretty or json [PATCHWARDEN_LOG_FORMAT]
    #[arg(long, value_name = "FORMAT", global = true)]
    log_format: Option<String>,
    /// off, error, warn, info, debug or trace [PATCHWARDEN_LOG_LEVEL]
    #[arg(long, value_name = "LEVEL", global = true)]
    log_level: Option<String>,
}

impl Settings {
    fn flags(&self) -> Flags {
        let given = [
            ("listen", &self.listen),
            ("admin_listen", &self.admin_listen),
            ("data", &self.data),
            ("mode", &self.mode),
            ("upstream.url", &self.upstream),
            ("store.url", &self.store),
            ("policies.dir", &self.policies),
            ("log.format", &self.log_format),
            ("log.level", &self.log_level),
        ];
        let values = given.into_iter().filter_map(|(key, text)| Some((key, text.clone()?))).collect();
        Flags { config: self.config.clone(), values }
    }

    /// The configuration for a command that serves nothing; warnings go to standard error.
    fn load(&self, needs_upstream: bool) -> Result<Config, Failure> {
        let (config, warnings) = self.read(needs_upstream)?;
        warn(&warnings);
        Ok(config)
    }

    fn read(&self, needs_upstream: bool) -> Result<(Config, Vec<String>), Failure> {
        Config::load(&self.flags(), needs_upstream).map_err(|errors| misconfigured(&errors))
    }
}

fn misconfigured(errors: &Errors) -> Failure {
    warn(&errors.warnings);
    Failure { code: MISCONFIGURED, message: errors.to_string() }
}

/// The store did not do what it was asked; named where its own words do not.
fn store_failed(config: &Config, message: &str) -> Failure {
    let name = config.store.to_string();
    let named = if message.contains(&name) { message.to_owned() } else { format!("{name}: {message}") };
    Failure { code: UNABLE, message: named }
}

fn warn(warnings: &[String]) {
    for warning in warnings {
        out::complain(&format!("warning: {warning}"));
    }
}

/// Runs the command in the arguments (the first is the program's name) to its end; the result is the exit code.
pub async fn run(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let command = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments.command,
        Err(error) => {
            // To standard output what was asked for, as --help; nobody is left to hear of a pipe that is closed.
            let _ = error.print();
            return if error.use_stderr() { MISCONFIGURED } else { 0 };
        }
    };
    match dispatch(command).await {
        Ok(code) => code,
        Err(failure) => {
            for line in failure.message.lines() {
                out::complain(&format!("error: {line}"));
            }
            failure.code
        }
    }
}

async fn dispatch(command: Command) -> Result<u8, Failure> {
    match command {
        Command::Serve { settings } => serve::run(&settings).await,
        Command::Demo { args } => demo::run(&args).await,
        Command::Check { settings, args } => check::run(&args, &settings).await,
        Command::Config { settings, args } => config::run(&args, &settings),
        Command::Health { settings, args } => health::run(&args, &settings.load(false)?).await,
        Command::History { settings, args } => history::run(&args, &settings.load(false)?).await,
        Command::Lifecycle { settings, args } => lifecycle::run(&args, &settings.load(false)?).await,
        Command::Show { settings, args } => show::run(&args, &settings.load(false)?).await,
        Command::Verify { settings, args } => verify::run(&args, &settings.load(false)?).await,
        Command::Prove { settings, args } => prove::run(&args, &settings.load(false)?).await,
        Command::Keys { settings, args } => keys::run(&args, &settings.load(false)?).await,
        Command::Reindex { settings } => reindex::run(&settings.load(false)?).await,
        Command::Export { settings, args } => export::run(&args, &settings.load(false)?).await,
        Command::Prune { settings, args } => prune::run(&args, &settings.load(false)?).await,
        Command::Backup { settings, args } => backup::run(&args, &settings.load(false)?).await,
        Command::Restore { settings, args } => restore::run(&args, &settings.load(false)?).await,
        Command::Token { settings, args } => token::run(&args, &settings.load(false)?).await,
        Command::Scan { settings, args } => scan::run(&args, &settings.load(true)?).await,
        Command::Store { settings, args } => store::run(&args, &settings.load(false)?).await,
        Command::Policy { settings, args } => policy::run(&args, &settings.load(false)?).await,
    }
}
