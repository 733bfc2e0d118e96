//! The only SQL: rows in, rows out, and the lock of each target. It knows no meanings.
//!
//! [`Database`] is the writer's own connection with its transaction; [`Reader`] is a small pool of read-only ones for
//! queries beside it. What waiting cannot cure (a foreign, corrupt or newer file) is told apart from what it can (a lock,
//! a disk that is full or away). One dialect so far: SQLite.

mod sqlite;

use std::path::{Path, PathBuf};

pub use sqlite::{Database, Reader};

/// Why a store cannot be used or did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is none this version knows.
    #[error("store.url: `{0}` is not a store; write sqlite:PATH (PostgreSQL is not built yet)")]
    Url(String),
    /// Waiting does not help: says what and what to do.
    #[error("{0}")]
    Fatal(String),
    /// Waiting may help.
    #[error("{0}")]
    Wait(String),
    /// The database refused; nothing of the transaction is there.
    #[error("{0}")]
    Refused(String),
    /// Whether the transaction is there is not known.
    #[error("in doubt: {0}")]
    InDoubt(String),
}

/// The path of an SQLite store.
pub fn path_of(url: &str) -> Result<PathBuf, Error> {
    let path = url.strip_prefix("sqlite:").filter(|path| !path.is_empty());
    path.map(PathBuf::from).ok_or_else(|| Error::Url(url.to_owned()))
}

/// The lock file beside a store.
pub fn lock_path(store: &Path) -> PathBuf {
    let mut name = store.as_os_str().to_owned();
    name.push(".lock");
    PathBuf::from(name)
}

/// One entry as a row.
#[derive(Clone, Debug)]
pub struct EntryRow {
    /// Number in the log.
    pub index: u64,
    /// Its kind.
    pub kind: &'static str,
    /// The entry it speaks of.
    pub of: Option<(String, u64)>,
    /// The exact bytes.
    pub envelope: Vec<u8>,
    /// Salt of the payload.
    pub salt: [u8; 32],
    /// The payload.
    pub body: Vec<u8>,
}

/// An entry read back.
#[derive(Clone, Debug)]
pub struct StoredEntry {
    /// Its row.
    pub row: i64,
    /// Its log.
    pub origin: String,
    /// Its number.
    pub index: u64,
    /// Its kind.
    pub kind: String,
    /// The entry it speaks of.
    pub of: Option<(String, u64)>,
    /// The exact bytes.
    pub envelope: Vec<u8>,
    /// The payload, unless retention removed it.
    pub body: Option<Vec<u8>>,
}

/// The end of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Number of entries.
    pub size: u64,
    /// The stored frontier.
    pub frontier: Vec<u8>,
    /// Who may append.
    pub epoch: i64,
}

/// A target's row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetRow {
    /// Number of its changes.
    pub seq: u64,
    /// Moves on every open and every close.
    pub turn: u64,
    /// The intent that holds it.
    pub open: Option<(String, u64)>,
    /// From when lateness counts, in microseconds.
    pub open_since: i64,
    /// Whether it is held by an unknown outcome.
    pub open_unknown: bool,
    /// The newest revision known, as the caller wrote it.
    pub revision: Option<String>,
}

/// One row of the projection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangeRow {
    /// Row of the attempt.
    pub row: i64,
    /// `attempt` or `fold`.
    pub kind: String,
    /// Number of the attempt in the log.
    pub index: u64,
    /// Id of the change.
    pub id: String,
    /// When, in microseconds.
    pub at: i64,
    /// `identity/<uuid>`
    pub target: Option<String>,
    /// Which governed change of its target it is; a watched write is none.
    pub seq: Option<u64>,
    /// Operation.
    pub operation: Option<String>,
    /// Id of the caller.
    pub caller: Option<String>,
    /// Decision.
    pub decision: String,
    /// `deny` in observe mode.
    pub would: Option<String>,
    /// Outcome.
    pub outcome: String,
    /// Result of the settlement.
    pub settled: Option<String>,
    /// Whether there are warnings.
    pub warned: bool,
    /// Ids of rules, each between spaces.
    pub rules: String,
    /// Pointers that changed, each between spaces.
    pub pointers: String,
    /// What `contains` looks in, lower case.
    pub search: String,
    /// Row of the outcome.
    pub outcome_row: Option<i64>,
    /// Row of the settlement.
    pub settlement_row: Option<i64>,
}

/// What an outcome or a settlement changes in the projection.
#[derive(Clone, Debug, Default)]
pub struct ChangeUpdate {
    /// The attempt's log and number.
    pub of: (String, u64),
    /// The outcome, with its row.
    pub outcome: Option<(String, i64)>,
    /// The settlement's result, with its row.
    pub settled: Option<(String, i64)>,
    /// Pointers that changed, if they are known better now.
    pub pointers: Option<String>,
    /// Further text for `contains`.
    pub search: String,
}

/// Which part of the projection, and from where on.
#[derive(Clone, Debug, Default)]
pub struct ChangeQuery {
    /// `identity/<uuid>`
    pub target: Option<String>,
    /// Not before, in microseconds.
    pub since: Option<i64>,
    /// Before, in microseconds.
    pub until: Option<i64>,
    /// Oldest first.
    pub ascending: bool,
    /// Without rules, pointers and the text to search: they are long.
    pub lean: bool,
    /// Go on after this place.
    pub after: Option<(i64, String)>,
}

/// An admin token's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRow {
    /// Its name.
    pub name: String,
    /// `reader` or `operator`.
    pub role: String,
    /// SHA-256 of the secret, hex.
    pub hash: String,
    /// When it was made, in microseconds.
    pub created_at: i64,
    /// When it was revoked.
    pub revoked_at: Option<i64>,
}
