//! `patchwarden history`: which changes there were, newest first.
//!
//! The flags are the filters of the API, read by the same function. The store is read beside a running gateway, page by
//! page until there are as many changes as asked for: a page may be short, even empty, and still not be the last. Where
//! more is left, the cursor to go on with is in the JSON, or said on standard error.

use clap::ValueEnum;
use serde_json::{Value, json};

use super::MISCONFIGURED;
use super::out::{complain, print};
use crate::api::filter::Listing;
use crate::app::Failure;
use crate::audit::query::Reader;
use crate::clock::Clock;
use crate::config::Config;
use crate::view;

/// Largest `--limit`.
const MAX_LIMIT: usize = 1_000_000;
/// Changes asked for at once.
const PAGE: usize = 500;

/// How changes are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Table,
    /// One object: changes, `next_cursor`
    Json,
    /// One change a line
    Ndjson,
    /// For spreadsheets
    Csv,
}

/// What `history` takes.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Filters")]
pub(super) struct Args {
    /// change, drift (what was changed past the log), or all
    #[arg(long)]
    kind: Option<String>,
    /// Only changes of this identity
    #[arg(long, value_name = "ID")]
    target: Option<String>,
    /// Only this operation, like jwt-auth.update
    #[arg(long, value_name = "NAME")]
    operation: Option<String>,
    /// allow, deny or refuse
    #[arg(long)]
    decision: Option<String>,
    /// pending, applied, rejected, `not_sent`, unknown or none
    #[arg(long)]
    outcome: Option<String>,
    /// Only changes by the caller with this id; `show` has it, the table its name
    #[arg(long, value_name = "ID")]
    caller: Option<String>,
    /// Only with a violation or warning of this rule
    #[arg(long, value_name = "ID")]
    rule: Option<String>,
    /// deny: what only observe mode let through
    #[arg(long, value_name = "DECISION")]
    would: Option<String>,
    /// Only with warnings
    #[arg(long)]
    warned: bool,
    /// Not before: 2026-11-23T06:20:00Z, or 2h or 7d ago
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Not after, written the same way
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Only where this field changed, like /accessTokenTTL
    #[arg(long, value_name = "POINTER")]
    changed: Option<String>,
    /// Only with this text, of 3 to 200 characters, in a changed value, caller, target, user agent or address
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    contains: Option<String>,
    /// Only those whose end is still not known
    #[arg(long)]
    unsettled: bool,
    /// How many at most
    #[arg(long, value_name = "N", default_value = "50")]
    limit: String,
    /// Go on where an earlier list ended
    #[arg(long, value_name = "CURSOR")]
    cursor: Option<String>,
    /// How to print them
    #[arg(long, value_enum, default_value = "table", help_heading = "Output")]
    format: Format,
    /// Times in UTC instead of local time
    #[arg(long, help_heading = "Output")]
    utc: bool,
}

impl Args {
    /// Flags as the query parameters of the same names.
    fn pairs(&self) -> Vec<(String, String)> {
        let switch = |on: bool| on.then(|| "true".to_owned());
        let given = [
            ("target", self.target.clone()),
            ("kind", self.kind.clone()),
            ("operation", self.operation.clone()),
            ("decision", self.decision.clone()),
            ("outcome", self.outcome.clone()),
            ("caller", self.caller.clone()),
            ("rule", self.rule.clone()),
            ("would", self.would.clone()),
            ("warned", switch(self.warned)),
            ("since", self.since.clone()),
            ("until", self.until.clone()),
            ("changed", self.changed.clone()),
            ("contains", self.contains.clone()),
            ("unsettled", switch(self.unsettled)),
            ("limit", Some(self.limit.clone())),
            ("cursor", self.cursor.clone()),
        ];
        given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }
}

pub(super) async fn run(args: &Args, config: &Config) -> Result<u8, Failure> {
    let listing = Listing::parse(&args.pairs(), Clock::System.now(), MAX_LIMIT)
        .map_err(|message| Failure { code: MISCONFIGURED, message })?;
    let unable = |message: String| super::store_failed(config, &message);
    let reader = Reader::open(&config.store).await.map_err(unable)?;
    if args.format == Format::Csv {
        print(&format!("{}\r\n", view::CSV_HEADER))?;
    }
    let (mut kept, mut left, mut cursor) = (Vec::new(), listing.limit, listing.cursor.clone());
    loop {
        let page = reader.page(&listing.filter, cursor.as_deref(), left.min(PAGE)).await.map_err(unable)?;
        left = left.saturating_sub(page.changes.len());
        cursor = page.next_cursor;
        match args.format {
            Format::Table | Format::Json => kept.extend(page.changes),
            Format::Ndjson => print_each(&page.changes, |change| format!("{change}\n"))?,
            Format::Csv => print_each(&page.changes, view::csv)?,
        }
        if left == 0 || cursor.is_none() {
            break;
        }
    }
    match args.format {
        Format::Json => print(&format!("{:#}\n", json!({"changes": kept, "next_cursor": cursor})))?,
        Format::Table => {
            let rows: Vec<_> = kept.iter().map(|change| view::row(change, args.utc)).collect();
            print(&view::table(view::COLUMNS, &rows))?;
            if rows.is_empty() {
                complain("no change is like this");
            }
        }
        Format::Ndjson | Format::Csv => {}
    }
    if let Some(cursor) = cursor.filter(|_| args.format != Format::Json) {
        complain(&format!("there is more: go on with --cursor {cursor}"));
    }
    Ok(0)
}

fn print_each(changes: &[Value], line: impl Fn(&Value) -> String) -> Result<(), Failure> {
    if changes.is_empty() { Ok(()) } else { print(&changes.iter().map(line).collect::<String>()) }
}
