//! The only SQL: rows in, rows out. It knows no meanings.
//!
//! [`Database`] is the writer's own connection with its transaction; [`Reader`] is a small pool of read-only ones for
//! queries beside it. Each is one of two dialects: a file of SQLite, which one process writes, or a PostgreSQL server,
//! which several gateways share. What waiting cannot cure (a foreign, corrupt or newer store) is told apart from what it
//! can (a lock, a disk that is full, a server that is away).

mod database;
mod postgres;
mod reader;
mod sqlite;

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use database::Database;
pub use postgres::{Server, grants, migrate};
pub use reader::Reader;

/// Whether the file of an SQLite store has the schema of this version; else it is an older one.
pub async fn is_current(path: &Path) -> Result<bool, Error> {
    sqlite::is_current(path).await
}

/// Copies a store into an empty file, as it is at one moment, beside whoever writes it. Nothing is synced.
pub async fn snapshot(from: &Path, into: &Path) -> Result<(), Error> {
    sqlite::snapshot(from, into).await
}

/// Why a store cannot be used or did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is none this version knows.
    #[error("store.url: {0}")]
    Url(String),
    /// Waiting does not help: says what and what to do.
    #[error("{0}")]
    Fatal(String),
    /// Waiting may help; nothing of the transaction is there.
    #[error("{0}")]
    Wait(String),
    /// Waiting may help, and the files could not be read.
    #[error("{0}")]
    Unreadable(String),
    /// The database refused; nothing of the transaction is there.
    #[error("{0}")]
    Refused(String),
    /// Somebody else holds a row it needs; nothing of the transaction is there.
    #[error("{0}")]
    Busy(String),
    /// Whether the transaction is there is not known.
    #[error("in doubt: {0}")]
    InDoubt(String),
    /// The same, because a file is no longer the one that was written to.
    #[error("in doubt: {what}")]
    Displaced {
        /// Which, and what became of it.
        what: String,
        /// Only the WAL's name is, which does not keep SQLite from copying it into the database.
        only_wal: bool,
    },
}

impl Error {
    /// The same, naming the store where the database's own words do not.
    #[must_use]
    pub fn named(self, store: &Location) -> Self {
        let name = store.to_string();
        match self {
            Self::Fatal(what) if !what.contains(&name) => Self::Fatal(format!("{name}: {what}")),
            other => other,
        }
    }
}

/// The section `[store]`, beside the address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// A file that holds PostgreSQL's password.
    pub password_file: Option<PathBuf>,
    /// Whether statements are prepared once a connection: not through a pooler that shares connections.
    pub prepared_statements: bool,
}

/// Where a store is. Shown without a password.
#[derive(Clone, Debug)]
pub enum Location {
    /// A file.
    Sqlite(PathBuf),
    /// A server and a database on it.
    Postgres(Box<Server>),
}

impl Location {
    /// Reads `sqlite:PATH` or `postgres://USER@HOST/DATABASE`. An error never repeats the address: it may hold a password.
    pub fn parse(url: &str, settings: &Settings) -> Result<Self, Error> {
        let what = match url.split_once(':') {
            Some(("sqlite", path)) if path.starts_with(":memory:") => {
                "is in memory; the log has to outlive the process, name a file"
            }
            Some(("sqlite", path)) if !path.trim_start_matches('/').is_empty() => {
                return Ok(Self::Sqlite(path.into()));
            }
            Some(("postgres" | "postgresql", _)) => {
                return Server::parse(url, settings).map(|server| Self::Postgres(Box::new(server)));
            }
            _ => "names no known store; write `sqlite:PATH` or `postgres://USER@HOST/DATABASE`",
        };
        Err(Error::Url(what.to_owned()))
    }

    /// The file of an SQLite store.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Sqlite(path) => Some(path),
            Self::Postgres(_) => None,
        }
    }

    /// Whether a store may be made there by whoever opens it first and is not there yet.
    pub fn is_missing(&self) -> bool {
        self.path().is_some_and(|path| !path.exists())
    }
}

impl fmt::Display for Location {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => path.display().fmt(out),
            Self::Postgres(server) => server.fmt(out),
        }
    }
}

/// The file outside a store that says what was last committed to it.
pub fn head_path(location: &Location, data: &Path) -> PathBuf {
    let Some(store) = location.path() else { return data.join("log.head") };
    let mut name = store.as_os_str().to_owned();
    name.push(".head");
    PathBuf::from(name)
}

/// The lock file beside a store.
pub fn lock_path(store: &Path) -> PathBuf {
    let mut name = store.as_os_str().to_owned();
    name.push(".lock");
    PathBuf::from(name)
}

/// A process that wants to append to a log.
#[derive(Clone, Debug)]
pub struct Claim {
    /// It; random.
    pub holder: String,
    /// Who is known to be dead: the process that had this data folder before.
    pub before: Option<String>,
    /// How long others take it to be alive without hearing of it.
    pub lease: Duration,
}

/// Who appends to a log, and for how long others take it to be alive.
#[derive(Clone, Copy, Debug)]
pub struct Tenure {
    /// Every append names it; whoever takes the log over moves it.
    pub epoch: i64,
    /// From each append on, by the database's clock.
    pub lease: Duration,
}

/// An intent without outcome whose gateway is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Abandoned {
    /// Its log.
    pub origin: String,
    /// Its number.
    pub index: u64,
    /// How long ago its gateway's lease ended.
    pub since: Duration,
}

/// One entry as a row.
#[derive(Clone, Debug)]
pub struct EntryRow {
    /// Number in the log.
    pub index: u64,
    /// Its kind.
    pub kind: Cow<'static, str>,
    /// The entry it speaks of.
    pub of: Option<(String, u64)>,
    /// The exact bytes.
    pub envelope: Vec<u8>,
    /// Salt of the payload.
    pub salt: [u8; 32],
    /// The payload; empty where retention removed it, as it may in what is copied.
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
    /// Its salt.
    pub salt: Option<Vec<u8>>,
}

/// An entry that still has its payload, without either.
#[derive(Clone, Debug)]
pub struct Bearing {
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
}

/// A log of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRow {
    /// Its name.
    pub origin: String,
    /// Number of its entries.
    pub size: u64,
    /// The stored frontier.
    pub frontier: Vec<u8>,
    /// Microseconds until its lease ends, below zero since it ended; `None` where there are no leases.
    pub leased_for: Option<i64>,
    /// Attempts without outcome.
    pub pending: u64,
    /// The log that goes on in its place.
    pub succeeded_by: Option<String>,
}

/// A signed head of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointRow {
    /// Number of entries it speaks of.
    pub size: u64,
    /// When it was signed, in microseconds.
    pub at: i64,
    /// What is signed.
    pub body: String,
    /// The lines of signatures under it.
    pub signatures: String,
}

impl CheckpointRow {
    /// The signed note.
    pub fn note(&self) -> String {
        format!("{}\n{}", self.body, self.signatures)
    }
}

/// A key that a log is signed with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogKey {
    /// The log.
    pub origin: String,
    /// Ed25519, 32 bytes in hex.
    pub public: String,
    /// From which of its entries on.
    pub since: u64,
}

/// What a store holds beside its logs.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    /// Every target's row.
    pub targets: Vec<TargetRow>,
    /// Every bundle that was in force, by digest.
    pub bundles: Vec<(String, Vec<u8>)>,
    /// Every admin token.
    pub tokens: Vec<TokenRow>,
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
    /// `identity/<uuid>`
    pub key: String,
    /// Number of its changes.
    pub seq: u64,
    /// Moves on every open and every close.
    pub turn: u64,
    /// The intent that holds it.
    pub open: Option<(String, u64)>,
    /// From when lateness counts, in microseconds of the store's clock.
    pub open_since: i64,
    /// Whether it is held by an unknown outcome.
    pub open_unknown: bool,
    /// The newest revision known, as the caller wrote it.
    pub revision: Option<String>,
}

/// A target as a reader sees it.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// Its row.
    pub row: TargetRow,
    /// The database's own clock, where several gateways share it.
    pub now: Option<i64>,
    /// Until when the gateway that holds it counts as alive, by that clock.
    pub leased_until: Option<i64>,
}

/// One row of the projection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangeRow {
    /// Row of the attempt.
    pub row: i64,
    /// `attempt`, `fold` or `drift`.
    pub kind: String,
    /// Log of the attempt.
    pub origin: String,
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

/// Which rows of the projection stand in a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kinds {
    /// Attempts.
    #[default]
    Changes,
    /// What was changed past the log.
    Drift,
    /// Both.
    Both,
}

impl Kinds {
    /// As a condition.
    const fn condition(self) -> &'static str {
        match self {
            Self::Changes => "kind = 'attempt'",
            Self::Drift => "kind = 'drift'",
            Self::Both => "kind IN ('attempt', 'drift')",
        }
    }
}

/// A target that is held by an unknown outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// `identity/<uuid>`
    pub key: String,
    /// Log and number of the intent that holds it.
    pub open: (String, u64),
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
    /// Which kinds of rows.
    pub kinds: Kinds,
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
