//! `patchwarden config`: what is in force and where each value came from.
//!
//! Prints TOML, one dotted key a line with its origin in a comment; with `--default` the commented file of all settings,
//! for which nothing is read. No password is printed.

use std::fmt::Write as _;

use super::{Settings, out};
use crate::app::Failure;
use crate::config::default_text;

/// What `config` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print a commented file with every setting and its default
    #[arg(long)]
    default: bool,
}

pub(super) fn run(args: &Args, settings: &Settings) -> Result<u8, Failure> {
    if args.default {
        return out::print(&default_text()).map(|()| 0);
    }
    let config = settings.load(false)?;
    let mut text = String::new();
    for line in config.provenance() {
        let assignment = match &line.value {
            Some(value) => format!("{} = {value}", line.key),
            None => format!("# {} is not set", line.key),
        };
        let _ = writeln!(text, "{assignment:<52} # {}", line.origin);
    }
    out::print(&text).map(|()| 0)
}
