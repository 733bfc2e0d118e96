//! Stub: whether a change may go on.
//!
//! Holds only what the configuration hands over.

use serde::Deserialize;

/// Whether a denial stops the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It does.
    #[default]
    Enforce,
    /// It is recorded, and the request goes on.
    Observe,
}

/// What the configuration says to the policies.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Whether the plan has IP allow-listing.
    pub ip_allow_listing: bool,
    /// Whether a denial stops the request.
    pub mode: Mode,
}
