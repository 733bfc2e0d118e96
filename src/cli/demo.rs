//! `patchwarden demo`: tells the story, then stays up until Ctrl-C, or ends at once.
//!
//! The story itself is in `demo`; here it gets its standard output and its end.

use std::io::IsTerminal as _;

use tokio::signal::unix::{SignalKind, signal};

use super::{UNABLE, WRONG, out};
use crate::app::Failure;
use crate::demo;

/// What `demo` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// End after the story; 1 if a step went otherwise
    #[arg(long)]
    once: bool,
}

pub(super) async fn run(args: &Args) -> Result<u8, Failure> {
    let colour = std::io::stdout().is_terminal() && !out::no_colour();
    let mut terminate = signal(SignalKind::terminate())
        .map_err(|error| Failure { code: UNABLE, message: error.to_string() })?;
    let until = async move {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
    };
    let as_told = demo::run(&mut |text| out::print(text), colour, (!args.once).then_some(until)).await?;
    Ok(if as_told { 0 } else { WRONG })
}
