//! Stub: the gateway, assembled.
//!
//! Written elsewhere.

use crate::config::Config;

/// Why a command could not end well.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub code: u8,
    /// For people, one problem a line; empty when there is nothing to say.
    pub message: String,
}

/// Runs until it is told to stop.
pub async fn serve(_: Config) -> Result<(), Failure> {
    Err(Failure { code: 3, message: "not built yet".to_owned() })
}
