//! `patchwarden lifecycle`: what the log says of the gateways themselves, newest first.
//!
//! Starts and stops, other policies, keys and configurations, backups, retention, and who read the history. The store is
//! read beside a running gateway, page by page.

use clap::ValueEnum;
use serde_json::{Value, json};

use super::MISCONFIGURED;
use super::out::{complain, print};
use crate::api::filter;
use crate::app::Failure;
use crate::audit::query::Reader;
use crate::config::Config;
use crate::view;

const MAX_LIMIT: usize = 1_000_000;
/// Entries asked for at once.
const PAGE: usize = 500;
const COLUMNS: [&str; 4] = ["NUMBER", "TIME", "ENTRY", "SAYS"];

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// For people
    Table,
    /// As the API gives it
    Json,
}

/// What `lifecycle` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// lifecycle (what a gateway did) or access (who read the history)
    #[arg(long)]
    kind: Option<String>,
    /// How many at most
    #[arg(long, value_name = "N", default_value = "50")]
    limit: String,
    /// Go on where an earlier list ended
    #[arg(long, value_name = "CURSOR")]
    cursor: Option<String>,
    /// How to print them
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// Times in UTC instead of local time
    #[arg(long)]
    utc: bool,
}

pub(super) async fn run(args: &Args, config: &Config) -> Result<u8, Failure> {
    let given = [("kind", &args.kind), ("limit", &Some(args.limit.clone())), ("cursor", &args.cursor)];
    let pairs: Vec<_> =
        given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.clone()?))).collect();
    let asked =
        filter::lifecycle(&pairs, MAX_LIMIT).map_err(|message| Failure { code: MISCONFIGURED, message })?;
    let unable = |message: String| super::store_failed(config, &message);
    let reader = Reader::open(&config.store).await.map_err(unable)?;
    let (mut kept, mut cursor) = (Vec::new(), asked.cursor);
    let next = loop {
        let page = reader.lifecycle(asked.kind.as_deref(), cursor, (asked.limit - kept.len()).min(PAGE));
        let page = page.await.map_err(unable)?;
        kept.extend(page.changes);
        cursor = page.next_cursor.as_deref().and_then(|row| row.parse().ok());
        if cursor.is_none() || kept.len() >= asked.limit {
            break page.next_cursor;
        }
    };
    match args.format {
        Format::Json => print(&format!("{:#}\n", json!({"entries": kept, "next_cursor": next})))?,
        Format::Table => {
            let rows: Vec<_> = kept.iter().map(|entry| row(entry, args.utc)).collect();
            print(&view::table(COLUMNS, &rows))?;
            if let Some(cursor) = next {
                complain(&format!("there is more: go on with --cursor {cursor}"));
            }
        }
    }
    Ok(0)
}

fn row(entry: &Value, utc: bool) -> [String; 4] {
    let said = entry["said"].as_object().map(view::in_one_line);
    let operation = entry["operation"].as_str().unwrap_or_default();
    [
        entry["log"]["index"].to_string(),
        view::moment(&entry["at"], utc),
        operation.to_owned(),
        said.unwrap_or_else(|| "pruned".to_owned()),
    ]
}
