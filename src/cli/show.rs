//! `patchwarden show ID`: one change, with the state before and after.
//!
//! `ID` is the change's id, its number in the log, or `last`. The store is read beside a running gateway. An id that is
//! not there ends with 1.

use std::io::IsTerminal as _;

use clap::ValueEnum;

use super::WRONG;
use super::out::print;
use crate::app::Failure;
use crate::audit::query::Reader;
use crate::config::Config;
use crate::view;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// As the API gives it
    Json,
}

/// What `show` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The change's id, its number in the log, or `last`
    #[arg(value_name = "ID")]
    id: String,
    /// How to print it
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// Times in UTC instead of local time
    #[arg(long)]
    utc: bool,
}

pub(super) async fn run(args: &Args, config: &Config) -> Result<u8, Failure> {
    let unable = |message: String| super::store_failed(config, &message);
    let reader = Reader::open(&config.store).await.map_err(unable)?;
    let Some(change) = reader.find(&args.id).await.map_err(unable)? else {
        return Err(Failure { code: WRONG, message: no_change(&args.id) });
    };
    let colour = std::io::stdout().is_terminal() && !super::out::no_colour();
    print(&match args.format {
        Format::Text => view::page(&change, colour, args.utc),
        Format::Json => format!("{change:#}\n"),
    })?;
    Ok(0)
}

pub(super) fn no_change(id: &str) -> String {
    match id {
        "last" => "there is no change yet".to_owned(),
        id => format!("there is no change {id}; give a change's id, its number in the log, or `last`"),
    }
}
