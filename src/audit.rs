//! Stub: the log of changes.
//!
//! Holds only what the configuration hands over.

use serde::Deserialize;

use crate::units::{Size, Span};

/// `[audit]` of the configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// First part of the name of this instance's log.
    pub name: Option<String>,
    /// How long a change waits for its intent to be written.
    pub commit_wait: Span,
    /// Write-ahead log size from which more is done to fold it in.
    pub wal_soft: Size,
    /// Write-ahead log size from which no change is let through.
    pub wal_hard: Size,
    /// Free disk space below which no change is let through.
    pub reserve: Size,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            name: None,
            commit_wait: Span::secs(5),
            wal_soft: Size(64 << 20),
            wal_hard: Size(512 << 20),
            reserve: Size(256 << 20),
        }
    }
}
