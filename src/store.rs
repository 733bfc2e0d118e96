//! The only SQL: rows in, rows out. It knows no meanings.
//!
//! [`Database`] is the writer's own connection with its transaction; [`Reader`] is a small pool of read-only ones for
//! queries beside it. Each is one of two dialects: a file of SQLite, which one process writes, or a PostgreSQL server,
//! which several gateways share. What waiting cannot cure (a foreign, corrupt or newer store) is told apart from what it
//! can (a lock, a disk that is full, a server that is away).

mod database;
mod postgres;
mod reader;
mod rows;
mod sqlite;

use std::fmt;
use std::path::{Path, PathBuf};

pub use database::Database;
pub use postgres::{Server, grants, migrate};
pub use reader::Reader;
pub use rows::*;

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
