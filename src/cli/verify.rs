//! `patchwarden verify`: reads the store without the gateway and says whether it tells one story; or a file that proves
//! one change.
//!
//! Each log on a line, with what is wrong first; then what that proves. Ends with 1 when something is wrong.

mod file;

use std::path::PathBuf;

use clap::ValueEnum;
use serde_json::{Value, json};

use super::out::{Progress, print};
use super::{MISCONFIGURED, UNABLE, WRONG};
use crate::app::Failure;
use crate::audit::checkpoint::Verifier;
use crate::audit::verify::{self, Verified};
use crate::config::Config;
use crate::store::Error;

/// How it is printed.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// One object: logs
    Json,
}

/// What `verify` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A file that `prove` wrote, instead of the store
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The log's public key, or a file of such keys; may be given again
    #[arg(long, value_name = "KEY|FILE")]
    public_key: Vec<String>,
    /// A witness's public key, or a file of such keys; may be given again
    #[arg(long, value_name = "KEY|FILE")]
    witness: Vec<String>,
    /// How it is printed
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// Times in UTC instead of local time
    #[arg(long)]
    utc: bool,
}

/// Keys as they are given: each itself, or a file with one a line.
fn keys(flag: &str, given: &[String]) -> Result<Vec<Verifier>, Failure> {
    let wrong =
        |text: &str, why: String| Failure { code: MISCONFIGURED, message: format!("{flag}: {text}: {why}") };
    let mut keys = Vec::new();
    for text in given {
        if let Ok(key) = text.parse() {
            keys.push(key);
            continue;
        }
        let file = std::fs::read_to_string(text).map_err(|error| {
            wrong(text, format!("is neither a public key (NAME+ID+BASE64) nor a file: {error}"))
        })?;
        for line in file.lines().filter(|line| !line.trim().is_empty()) {
            keys.push(
                line.parse()
                    .map_err(|why: crate::audit::checkpoint::NoKey| wrong(text, format!("`{line}` {why}")))?,
            );
        }
    }
    Ok(keys)
}

pub(super) async fn run(args: &Args, config: &Config) -> Result<u8, Failure> {
    if let Some(path) = &args.file {
        return file::run(path, args);
    }
    let mut progress = Progress::new("entries", None);
    let found = verify::run(&config.store, |read| progress.advance(read)).await;
    progress.end();
    let found = found
        .map_err(|error: Error| Failure { code: UNABLE, message: error.named(&config.store).to_string() })?;
    print(&match args.format {
        Format::Text => text(&found),
        Format::Json => format!("{:#}\n", json!({"logs": found.iter().map(shown).collect::<Vec<_>>()})),
    })?;
    Ok(if found.iter().any(|log| log.fault.is_some()) { WRONG } else { 0 })
}

fn text(found: &[Verified]) -> String {
    let mut text = String::new();
    for log in found {
        text += &match &log.fault {
            None => {
                let kinds: Vec<_> = log.kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
                let pruned = match log.pruned {
                    0 => String::new(),
                    count => format!("; retention removed what {count} of them said"),
                };
                format!(
                    "ok     {}: {} entries, root {}\n       {}{pruned}\n",
                    log.origin,
                    log.size,
                    log.root,
                    kinds.join(", ")
                )
            }
            Some(fault) => match fault.index {
                Some(index) => format!("WRONG  {}: entry {index}: {}\n", log.origin, fault.what),
                None => format!("WRONG  {}: {}\n", log.origin, fault.what),
            },
        };
    }
    if found.iter().all(|log| log.fault.is_none()) {
        text += "Each log is consistent in itself up to that entry. That nobody rewrote it whole rests on the host and its keys: heads are not signed yet.\n";
    }
    text
}

fn shown(log: &Verified) -> Value {
    let fault = log.fault.as_ref().map(|fault| json!({"index": fault.index, "what": fault.what}));
    json!({"origin": log.origin, "size": log.size, "root": log.root, "kinds": log.kinds,
        "pruned": log.pruned, "fault": fault})
}
