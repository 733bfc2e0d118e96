//! Stub: `patchwarden demo`.
//!
//! Written elsewhere.

use crate::app::Failure;

/// What `demo` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// End after the story; 1 if a step went otherwise
    #[arg(long)]
    once: bool,
}

pub(super) async fn run(args: &Args) -> Result<u8, Failure> {
    Err(Failure { code: 3, message: format!("not built yet ({})", args.once) })
}
