//! `patchwarden serve`: runs the gateway.
//!
//! Reads the configuration, starts the log, and hands over to `app`. What is odd about the configuration is said in the
//! log, what is wrong ends the command before anything is opened.

use super::{MISCONFIGURED, Settings};
use crate::app::{self, Failure};
use crate::log;

pub(super) async fn run(settings: &Settings) -> Result<u8, Failure> {
    let (config, warnings) = settings.read(true)?;
    log::init(config.log_format, &config.log_level)
        .map_err(|message| Failure { code: MISCONFIGURED, message })?;
    for warning in warnings {
        tracing::warn!(event = "config_warning", "{warning}");
    }
    log::panics();
    app::serve(config).await.map(|()| 0)
}
