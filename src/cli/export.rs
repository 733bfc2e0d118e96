//! `patchwarden export`: the log as it is stored, one entry a line, for whoever checks or keeps it elsewhere.
//!
//! Each line is an object with the log's name, the entry's number and kind, and as text the exact bytes of its envelope
//! and its payload, with the payload's salt: the envelope is the Merkle leaf, and SHA-256 over `patchwarden.payload.v1`,
//! a zero byte, salt and payload is the digest it names. A payload that retention removed is null. Read beside a gateway,
//! a thousand entries at a time, up to where the log ended when it began.

use serde_json::json;

use super::out::{complain, print};
use super::{UNABLE, WRONG, store_failed};
use crate::app::Failure;
use crate::config::Config;
use crate::store::{Error, LogRow, Reader, StoredEntry};

/// Entries that are read at once.
const AT_ONCE: u32 = 1000;

/// What `export` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only this log
    #[arg(long, value_name = "NAME")]
    log: Option<String>,
    /// From this number on
    #[arg(long, value_name = "N", default_value_t = 0)]
    from: u64,
}

pub(super) async fn run(args: &Args, config: &Config) -> Result<u8, Failure> {
    let unable = |error: Error| store_failed(config, &error.to_string());
    let reader = Reader::open(&config.store).await.map_err(unable)?;
    let mut logs = reader.logs().await.map_err(unable)?;
    logs.retain(|log| args.log.as_ref().is_none_or(|wanted| log.origin == *wanted));
    if let Some(wanted) = args.log.as_ref().filter(|_| logs.is_empty()) {
        let message =
            format!("{} holds no log {wanted}; `patchwarden store status` lists them", config.store);
        return Err(Failure { code: WRONG, message });
    }
    let mut written = 0;
    for log in &logs {
        written += one(&reader, log, args.from, config).await?;
    }
    reader.close().await;
    complain(&format!("{written} entries"));
    Ok(0)
}

async fn one(reader: &Reader, log: &LogRow, from: u64, config: &Config) -> Result<u64, Failure> {
    let (mut next, mut written) = (from, 0);
    while next < log.size {
        let entries = reader.entries_of(&log.origin, next, AT_ONCE).await;
        let mut entries = entries.map_err(|error| store_failed(config, &error.to_string()))?;
        entries.retain(|entry| entry.index < log.size);
        let Some(last) = entries.last() else {
            let message = format!(
                "{}: entry {next} of {} is missing; see `patchwarden verify`",
                config.store, log.origin
            );
            return Err(Failure { code: UNABLE, message });
        };
        next = last.index + 1;
        written += entries.len() as u64;
        print(&entries.iter().map(line).collect::<String>())?;
    }
    Ok(written)
}

fn line(entry: &StoredEntry) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let line = json!({"origin": entry.origin, "index": entry.index, "kind": entry.kind,
        "envelope": text(&entry.envelope), "payload": entry.body.as_deref().map(text),
        "salt": entry.salt.as_deref().map(hex::encode)});
    format!("{line}\n")
}
