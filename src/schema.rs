//! Stub: whether a document fits its schema.
//!
//! Holds only what the configuration hands over.

use serde::Deserialize;

/// What happens to members the schema does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnknownMembers {
    /// They are dropped and the answer warns.
    #[default]
    Warn,
    /// They are refused.
    Refuse,
}
