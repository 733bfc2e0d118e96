//! Queries beside whoever writes, in one of the two dialects.
//!
//! Each call is one read of its own, so that none holds back whoever writes.

use std::ops::Range;

use super::{
    Bearing, ChangeQuery, ChangeRow, CheckpointRow, Error, Held, Location, LogKey, LogRow, Standing,
    StoredEntry, TokenRow, postgres, sqlite,
};

/// Read-only connections for queries.
#[derive(Clone)]
pub enum Reader {
    /// To a file.
    Sqlite(sqlite::Reader),
    /// To a server.
    Postgres(postgres::Reader),
}

macro_rules! either {
    ($self:ident, $reader:ident => $call:expr) => {
        match $self {
            Self::Sqlite($reader) => $call,
            Self::Postgres($reader) => $call,
        }
    };
}

impl Reader {
    /// Opens a store that exists, beside whoever writes it.
    pub async fn open(location: &Location) -> Result<Self, Error> {
        Ok(match location {
            Location::Sqlite(path) => Self::Sqlite(sqlite::Reader::open(path).await?),
            Location::Postgres(server) => Self::Postgres(postgres::Reader::open(server).await?),
        })
    }

    /// A target's row, and whether who holds it is alive.
    pub async fn target(&self, key: &str) -> Result<Standing, Error> {
        either!(self, reader => reader.target(key).await)
    }

    /// Targets held by an unknown outcome, the longest held first, at most `limit`.
    pub async fn held(&self, limit: usize) -> Result<Vec<Held>, Error> {
        either!(self, reader => reader.held(limit).await)
    }

    /// One entry with its payload.
    pub async fn entry(&self, origin: &str, index: u64) -> Result<Option<StoredEntry>, Error> {
        either!(self, reader => reader.entry(origin, index).await)
    }

    /// The outcome or settlement of an intent.
    pub async fn entry_of(&self, of: (&str, u64), kind: &str) -> Result<Option<StoredEntry>, Error> {
        either!(self, reader => reader.entry_of(of, kind).await)
    }

    /// Entries by row.
    pub async fn entries(&self, rows: &[i64]) -> Result<Vec<StoredEntry>, Error> {
        either!(self, reader => reader.entries(rows).await)
    }

    /// Entries of a kind that concerns the gateways themselves, below a row, the newest first.
    pub async fn entries_of_gateways(
        &self,
        kind: &str,
        before: i64,
        limit: usize,
    ) -> Result<Vec<StoredEntry>, Error> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        either!(self, reader => reader.entries_of_gateways(kind, before, limit).await)
    }

    /// Payloads by row; what retention removed is not there.
    pub async fn payloads(&self, rows: &[i64]) -> Result<Vec<(i64, Vec<u8>)>, Error> {
        either!(self, reader => reader.payloads(rows).await)
    }

    /// At most `limit` rows of the projection, in time order, that follow `query.after`; filters apply to `candidates`
    /// rows at most. The second result is the place to go on from, when the end was not reached.
    pub async fn changes(
        &self,
        query: &ChangeQuery,
        candidates: usize,
    ) -> Result<(Vec<ChangeRow>, Option<(i64, String)>), Error> {
        let rows = either!(self, reader => reader.changes(query, candidates).await)?;
        let more = rows.len() == candidates;
        let place = rows.last().filter(|_| more).map(|last| (last.at, last.id.clone()));
        Ok((rows, place))
    }

    /// One row of the projection by id, or the newest attempt.
    pub async fn change(&self, id: Option<&str>) -> Result<Option<ChangeRow>, Error> {
        either!(self, reader => reader.change(id).await)
    }

    /// How many rows the projection has up to a row of the log.
    pub async fn change_count(&self, upto: i64) -> Result<u64, Error> {
        either!(self, reader => reader.change_count(upto).await)
    }

    /// The rows of the projection with that number, one a log.
    pub async fn numbered(&self, index: u64) -> Result<Vec<ChangeRow>, Error> {
        either!(self, reader => reader.numbered(index).await)
    }

    /// Entries of a log from a number on, at most so many.
    pub async fn entries_of(&self, origin: &str, from: u64, limit: u32) -> Result<Vec<StoredEntry>, Error> {
        either!(self, reader => reader.entries_of(origin, from, limit).await)
    }

    /// A constant of every log that has it, with the log's origin.
    pub async fn meta(&self, key: &str) -> Result<Vec<(String, String)>, Error> {
        either!(self, reader => reader.meta(key).await)
    }

    /// Entries that still have a payload, by row, at most 500.
    pub async fn bearing(&self, from: i64, upto: i64) -> Result<Vec<Bearing>, Error> {
        either!(self, reader => reader.bearing(from, upto).await)
    }

    /// The rows of entries that are there.
    pub async fn rows_at(&self, places: &[(String, u64)]) -> Result<Vec<((String, u64), i64)>, Error> {
        either!(self, reader => reader.rows_at(places).await)
    }

    /// Rows of the projection, without rules, pointers and the text to search: they are long.
    pub async fn changes_at(&self, rows: &[i64]) -> Result<Vec<ChangeRow>, Error> {
        either!(self, reader => reader.changes_at(rows).await)
    }

    /// The rows of each target's newest governed change that was applied, and of its newest drift.
    pub async fn newest_stated(&self, targets: &[String]) -> Result<Vec<i64>, Error> {
        either!(self, reader => reader.newest_stated(targets).await)
    }

    /// Pages that could be given back to the disk, where that is the writer's work.
    pub async fn free_pages(&self) -> Result<u64, Error> {
        match self {
            Self::Sqlite(reader) => reader.free_pages().await,
            Self::Postgres(_) => Ok(0),
        }
    }

    /// Every log, by name, all at one moment.
    pub async fn logs(&self) -> Result<Vec<LogRow>, Error> {
        either!(self, reader => reader.logs().await)
    }

    /// The full tiles of a level with these numbers, those that are there.
    pub async fn tiles(
        &self,
        origin: &str,
        level: u8,
        numbers: Range<u64>,
    ) -> Result<Vec<(u64, Vec<u8>)>, Error> {
        either!(self, reader => reader.tiles(origin, level, numbers).await)
    }

    /// The envelopes with these numbers, those that are there.
    pub async fn envelopes(&self, origin: &str, numbers: Range<u64>) -> Result<Vec<(u64, Vec<u8>)>, Error> {
        either!(self, reader => reader.envelopes(origin, numbers).await)
    }

    /// Signed heads of a log from a size on, the smallest first, at most so many.
    pub async fn checkpoints(
        &self,
        origin: &str,
        from: u64,
        limit: u32,
    ) -> Result<Vec<CheckpointRow>, Error> {
        either!(self, reader => reader.checkpoints(origin, from, limit).await)
    }

    /// The newest signed head of a log.
    pub async fn newest_checkpoint(&self, origin: &str) -> Result<Option<CheckpointRow>, Error> {
        either!(self, reader => reader.newest_checkpoint(origin).await)
    }

    /// The newest head of a log, from a size on, that others signed too.
    pub async fn newest_cosigned(&self, origin: &str, from: u64) -> Result<Option<CheckpointRow>, Error> {
        either!(self, reader => reader.newest_cosigned(origin, from).await)
    }

    /// The keys of all logs, oldest first in each.
    pub async fn log_keys(&self) -> Result<Vec<LogKey>, Error> {
        either!(self, reader => reader.log_keys().await)
    }

    /// The text of a bundle that was in force.
    pub async fn bundle(&self, digest: &str) -> Result<Option<Vec<u8>>, Error> {
        either!(self, reader => reader.bundle(digest).await)
    }

    /// All admin tokens, by name.
    pub async fn tokens(&self) -> Result<Vec<TokenRow>, Error> {
        either!(self, reader => reader.tokens().await)
    }

    /// Closes the connections.
    pub async fn close(&self) {
        either!(self, reader => reader.close().await);
    }
}
