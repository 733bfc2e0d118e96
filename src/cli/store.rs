//! `patchwarden store`: what surrounds a store that several gateways share.
//!
//! `grants` prints SQL and connects to nothing; `migrate` makes or migrates the tables as their owner; `status` lists the
//! logs; `copy` moves a history that no gateway is writing.

use std::time::Duration;

use clap::ValueEnum;
use serde_json::{Value, json};

use super::UNABLE;
use super::out::{complain, print};
use crate::app::Failure;
use crate::audit::copy;
use crate::config::Config;
use crate::store::{self, Error, Location, LogRow, Reader};
use crate::units::Span;
use crate::view;

const COLUMNS: [&str; 4] = ["LOG", "ENTRIES", "OPEN", "GATEWAY"];

/// What `store` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print the SQL that makes the roles and the database, and gives the gateways what they may do
    #[command(after_help = "Example: patchwarden store grants > grants.sql")]
    Grants {
        /// The database
        #[arg(long, value_name = "NAME", default_value = "patchwarden")]
        database: String,
        /// The role that owns the tables and migrates them
        #[arg(long, value_name = "ROLE", default_value = "patchwarden_owner")]
        owner_role: String,
        /// The role the gateways connect as
        #[arg(long, value_name = "ROLE", default_value = "patchwarden_gateway")]
        gateway_role: String,
    },
    /// Make the tables, or bring them up to this version, as their owner
    #[command(
        after_help = "Example: patchwarden store migrate --store postgres://patchwarden_owner@db/patchwarden --gateway-role patchwarden_gateway"
    )]
    Migrate {
        /// Give this role what a gateway may do, and nothing else
        #[arg(long, value_name = "ROLE")]
        gateway_role: Option<String>,
    },
    /// List the logs in the store: how long each is, whether its gateway is alive, what it left open
    #[command(after_help = "Example: patchwarden store status")]
    Status {
        /// How it is printed
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
    },
    /// Copy a history, entry by entry, while no gateway writes either
    #[command(
        after_help = "Example: patchwarden store copy --from sqlite:patchwarden-data/patchwarden.db --to postgres://patchwarden_gateway@db/patchwarden"
    )]
    Copy {
        /// The store that is read
        #[arg(long, value_name = "URL")]
        from: String,
        /// The store that is written
        #[arg(long, value_name = "URL")]
        to: String,
    },
}

/// How logs are printed.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// For people
    Table,
    /// One object: logs
    Json,
}

pub(super) async fn run(args: &Args, config: &Config) -> Result<u8, Failure> {
    match &args.command {
        Command::Grants { database, owner_role, gateway_role } => {
            print(&store::grants(database, owner_role, gateway_role))?;
        }
        Command::Migrate { gateway_role } => {
            let Location::Postgres(server) = &config.store else {
                return Err(unable(
                    "an SQLite store is migrated by whoever opens it; give --store postgres://…",
                ));
            };
            let done = store::migrate(server, gateway_role.as_deref()).await.map_err(failure)?;
            complain(&match done {
                0 => format!("{server}: the tables are those of this version"),
                done => format!("{server}: {done} migrations done"),
            });
        }
        Command::Status { format } => {
            let reader = Reader::open(&config.store).await.map_err(failure)?;
            let logs = reader.logs().await.map_err(failure)?;
            reader.close().await;
            print(&match format {
                Format::Table => view::table(COLUMNS, &logs.iter().map(row).collect::<Vec<_>>()),
                Format::Json => {
                    format!("{:#}\n", json!({"logs": logs.iter().map(shown).collect::<Vec<_>>()}))
                }
            })?;
        }
        Command::Copy { from, to } => {
            let place = |url: &str| Location::parse(url, &config.store_settings).map_err(failure);
            let (from, to) = (place(from)?, place(to)?);
            for copied in copy::run(&from, &to).await.map_err(failure)? {
                complain(&copied.to_string());
            }
        }
    }
    Ok(0)
}

fn row(log: &LogRow) -> [String; 4] {
    let gateway = match (&log.succeeded_by, log.leased_for) {
        (Some(next), _) => format!("succeeded by {next}"),
        (None, None) => "-".to_owned(),
        (None, Some(left)) if left > 0 => "alive".to_owned(),
        (None, Some(left)) => format!("gone for {}", Span(seconds(-left))),
    };
    [log.origin.clone(), log.size.to_string(), log.pending.to_string(), gateway]
}

fn shown(log: &LogRow) -> Value {
    json!({"origin": log.origin, "size": log.size, "pending": log.pending, "succeeded_by": log.succeeded_by,
        "leased_for_seconds": log.leased_for.map(|left| left / 1_000_000)})
}

/// Whole seconds of a number of microseconds.
fn seconds(micros: i64) -> Duration {
    Duration::from_secs(u64::try_from(micros).unwrap_or(0) / 1_000_000)
}

fn failure(error: Error) -> Failure {
    unable(match error {
        Error::Url(what) => format!("the address {what}"),
        other => other.to_string(),
    })
}

fn unable(message: impl Into<String>) -> Failure {
    Failure { code: UNABLE, message: message.into() }
}
