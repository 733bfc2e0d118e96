//! Stub: `patchwarden token`.
//!
//! Written elsewhere.

use crate::app::Failure;
use crate::config::Config;

/// What `token` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) async fn run(_: &Args, _: &Config) -> Result<u8, Failure> {
    Err(Failure { code: 3, message: "not built yet".to_owned() })
}
