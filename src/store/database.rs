//! The writer's connection, in one of the two dialects.
//!
//! What only one of them has work to do for (a WAL, a lease, a lock per row) is answered here for the other.

use std::ops::Range;

use super::{
    Abandoned, Beside, ChangeRow, ChangeUpdate, CheckpointRow, Claim, EntryRow, Error, Head, Location,
    LogKey, StoredEntry, TargetRow, Tenure, TokenRow, postgres, sqlite,
};

/// The writer's connection.
pub enum Database {
    /// To a file.
    Sqlite(Box<sqlite::Database>),
    /// To a server.
    Postgres(Box<postgres::Database>),
}

macro_rules! either {
    ($self:ident, $database:ident => $call:expr) => {
        match $self {
            Self::Sqlite($database) => $call,
            Self::Postgres($database) => $call,
        }
    };
}

impl Database {
    /// Opens a store. An SQLite file is migrated as needed, and made only if `may_create`; a PostgreSQL database has been
    /// migrated by its owner.
    pub async fn open(location: &Location, may_create: bool) -> Result<Self, Error> {
        Ok(match location {
            Location::Sqlite(path) => Self::Sqlite(Box::new(sqlite::Database::open(path, may_create).await?)),
            Location::Postgres(server) => Self::Postgres(Box::new(postgres::Database::open(server).await?)),
        })
    }

    /// Whether other gateways write to it too.
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Postgres(_))
    }

    /// Starts a transaction.
    pub async fn begin(&mut self) -> Result<(), Error> {
        either!(self, database => database.begin().await)
    }

    /// Ends it. An error from COMMIT itself leaves it in doubt; one of a statement before it does not.
    pub async fn commit(&mut self) -> Result<(), Error> {
        either!(self, database => database.commit().await)
    }

    /// Whether what was written to is still there under its name.
    pub async fn look(&mut self) -> Result<(), Error> {
        match self {
            Self::Sqlite(database) => database.look_at_wal().await,
            Self::Postgres(_) => Ok(()),
        }
    }

    /// Takes it back.
    pub async fn rollback(&mut self) -> Result<(), Error> {
        either!(self, database => database.rollback().await)
    }

    /// Bytes of the WAL in use, where keeping it small is the writer's work.
    pub fn wal_bytes(&self) -> u64 {
        match self {
            Self::Sqlite(database) => database.wal_bytes(),
            Self::Postgres(_) => 0,
        }
    }

    /// Bytes that its disk has left, where that is ours to watch.
    pub fn room(&self) -> Option<u64> {
        match self {
            Self::Sqlite(database) => database.room(),
            Self::Postgres(_) => None,
        }
    }

    /// Whether the WAL has grown enough to be copied back.
    pub fn wants_checkpoint(&self) -> bool {
        match self {
            Self::Sqlite(database) => database.wants_checkpoint(),
            Self::Postgres(_) => false,
        }
    }

    /// Copies the WAL back beside this connection, by one of its own.
    pub fn copier(&self) -> impl Future<Output = ()> + Send + 'static {
        let path = match self {
            Self::Sqlite(database) => Some(database.path().to_owned()),
            Self::Postgres(_) => None,
        };
        async move {
            if let Some(path) = path {
                sqlite::copy_wal(&path).await;
            }
        }
    }

    /// Copies what is left of the WAL, so that the next commit starts it again.
    pub async fn checkpoint(&mut self) -> Result<(), Error> {
        match self {
            Self::Sqlite(database) => database.checkpoint().await,
            Self::Postgres(_) => Ok(()),
        }
    }

    /// After this no earlier transaction of this writer can appear any more. In PostgreSQL that is what
    /// [`Database::take`] waits for.
    pub async fn settle(&mut self) -> Result<(), Error> {
        match self {
            Self::Sqlite(database) => database.settle_wal().await,
            Self::Postgres(_) => Ok(()),
        }
    }

    /// Whether the store is whole, where nobody else sees to that.
    pub async fn check(&mut self) -> Result<(), Error> {
        match self {
            Self::Sqlite(database) => database.check().await,
            Self::Postgres(_) => Ok(()),
        }
    }

    /// Closes the connection.
    pub async fn close(self) {
        either!(self, database => database.close().await);
    }

    /// A constant of every log that has it, with the log's origin.
    pub async fn meta(&mut self, key: &str) -> Result<Vec<(String, String)>, Error> {
        either!(self, database => database.meta(key).await)
    }

    /// Writes a constant of a log, once.
    pub async fn put_meta(&mut self, origin: &str, key: &str, value: &str) -> Result<(), Error> {
        either!(self, database => database.put_meta(origin, key, value).await)
    }

    /// Writes a constant of the whole store unless it has one; returns the one it has.
    pub async fn claim_meta(&mut self, key: &str, value: &str) -> Result<String, Error> {
        either!(self, database => database.claim_meta(key, value).await)
    }

    /// The end of a log.
    pub async fn head(&mut self, origin: &str) -> Result<Option<Head>, Error> {
        either!(self, database => database.head(origin).await)
    }

    /// Makes the end of a new log.
    pub async fn new_head(&mut self, origin: &str) -> Result<(), Error> {
        either!(self, database => database.new_head(origin).await)
    }

    /// Makes this process the one that appends to a log: again, when `mine` is still its epoch, or in the place of one
    /// that is dead or whose lease has ended. Waits for a transaction of either that is still under way.
    pub async fn take(&mut self, origin: &str, mine: Option<i64>, claim: &Claim) -> Result<Tenure, Error> {
        match self {
            // The lock file has settled who writes.
            Self::Sqlite(database) => {
                let head = database.head(origin).await?;
                Ok(Tenure { epoch: head.map_or(1, |head| head.epoch), lease: claim.lease })
            }
            Self::Postgres(database) => database.take(origin, mine, claim).await,
        }
    }

    /// Lengthens a lease; a length of zero ends it. `false`: somebody else has taken the log over.
    pub async fn renew(&mut self, origin: &str, tenure: Tenure) -> Result<bool, Error> {
        match self {
            Self::Sqlite(_) => Ok(true),
            Self::Postgres(database) => database.renew(origin, tenure).await,
        }
    }

    /// Moves the end of a log and renews the lease. `false`: somebody else appended.
    pub async fn advance(
        &mut self,
        origin: &str,
        from: u64,
        to: &Head,
        lease: std::time::Duration,
    ) -> Result<bool, Error> {
        match self {
            Self::Sqlite(database) => database.advance(origin, from, to).await,
            Self::Postgres(database) => database.advance(origin, from, to, lease).await,
        }
    }

    /// Appends entries and their payloads; returns their rows.
    pub async fn append(&mut self, origin: &str, entries: &[EntryRow]) -> Result<Vec<i64>, Error> {
        either!(self, database => database.append(origin, entries).await)
    }

    /// One entry with its payload.
    pub async fn entry(&mut self, origin: &str, index: u64) -> Result<Option<StoredEntry>, Error> {
        either!(self, database => database.entry(origin, index).await)
    }

    /// Whether an intent has its outcome.
    pub async fn has_outcome(&mut self, of: (&str, u64)) -> Result<bool, Error> {
        either!(self, database => database.has_outcome(of).await)
    }

    /// The rows of these targets, each of them locked until the transaction ends, and the store's clock where it has one.
    /// A target without a row gets one.
    pub async fn lock_targets(&mut self, keys: &[String]) -> Result<(Vec<TargetRow>, Option<i64>), Error> {
        match self {
            Self::Sqlite(database) => Ok((database.targets(keys).await?, None)),
            Self::Postgres(database) => database.lock_targets(keys).await,
        }
    }

    /// Writes rows back.
    pub async fn put_targets(&mut self, rows: &[TargetRow]) -> Result<(), Error> {
        either!(self, database => database.put_targets(rows).await)
    }

    /// Adds rows to the projection and lays outcomes and settlements over those of their attempts.
    pub async fn project(&mut self, rows: &[ChangeRow], updates: &[ChangeUpdate]) -> Result<(), Error> {
        either!(self, database => database.project(rows, updates).await)
    }

    /// Numbers of the attempts of a log whose outcome is still pending.
    pub async fn pending(&mut self, origin: &str) -> Result<Vec<u64>, Error> {
        either!(self, database => database.pending(origin).await)
    }

    /// Pending attempts of other logs, whose lease ended longer ago than `late`. In a file they are of logs that this
    /// one has succeeded.
    pub async fn abandoned(
        &mut self,
        origin: &str,
        late: std::time::Duration,
    ) -> Result<Vec<Abandoned>, Error> {
        match self {
            Self::Sqlite(database) => database.abandoned(origin).await,
            Self::Postgres(database) => database.abandoned(origin, late).await,
        }
    }

    /// The projection's version.
    pub async fn projection_version(&mut self) -> Result<i64, Error> {
        either!(self, database => database.projection_version().await)
    }

    /// Empties the projection and notes the version it will be rebuilt in. Whoever else writes waits.
    pub async fn clear_projection(&mut self, version: i64) -> Result<(), Error> {
        either!(self, database => database.clear_projection(version).await)
    }

    /// Entries from a row on, at most 1 000.
    pub async fn entries_from(&mut self, row: i64) -> Result<Vec<StoredEntry>, Error> {
        either!(self, database => database.entries_from(row).await)
    }

    /// The newest lifecycle entry of a log below a number.
    pub async fn lifecycle_before(&mut self, origin: &str, index: u64) -> Result<Option<StoredEntry>, Error> {
        either!(self, database => database.lifecycle_before(origin, index).await)
    }

    /// From now on payloads of a log may be removed below a number.
    pub async fn prune_below(&mut self, origin: &str, below: u64) -> Result<(), Error> {
        either!(self, database => database.prune_below(origin, below).await)
    }

    /// Removes payloads, and from rows of the projection what came from them. What is gone already is no error.
    pub async fn remove_payloads(&mut self, payloads: &[i64], changes: &[i64]) -> Result<(), Error> {
        either!(self, database => database.remove_payloads(payloads, changes).await)
    }

    /// Gives some free space back to the disk, where that is the writer's work.
    pub async fn vacuum(&mut self) -> Result<(), Error> {
        match self {
            Self::Sqlite(database) => database.vacuum().await,
            Self::Postgres(_) => Ok(()),
        }
    }

    /// The constants of a log.
    pub async fn constants(&mut self, origin: &str) -> Result<Vec<(String, String)>, Error> {
        either!(self, database => database.constants(origin).await)
    }

    /// Entries of a log from a number on, at most 1 000.
    pub async fn entries_of(&mut self, origin: &str, from: u64) -> Result<Vec<StoredEntry>, Error> {
        either!(self, database => database.entries_of(origin, from).await)
    }

    /// Everything that is not a log.
    pub async fn beside(&mut self) -> Result<Beside, Error> {
        either!(self, database => database.beside().await)
    }

    /// Keeps a full tile of a log's tree.
    pub async fn put_tile(
        &mut self,
        origin: &str,
        level: u8,
        number: u64,
        hashes: &[u8],
    ) -> Result<(), Error> {
        either!(self, database => database.put_tile(origin, level, number, hashes).await)
    }

    /// The full tiles of a level with these numbers, those that are there.
    pub async fn tiles(
        &mut self,
        origin: &str,
        level: u8,
        numbers: Range<u64>,
    ) -> Result<Vec<(u64, Vec<u8>)>, Error> {
        either!(self, database => database.tiles(origin, level, numbers).await)
    }

    /// How many tiles of the lowest level are there.
    pub async fn tile_count(&mut self, origin: &str) -> Result<u64, Error> {
        either!(self, database => database.tile_count(origin).await)
    }

    /// Keeps a signed head, once, by itself.
    pub async fn put_checkpoint(&mut self, origin: &str, row: &CheckpointRow) -> Result<(), Error> {
        either!(self, database => database.put_checkpoint(origin, row).await)
    }

    /// The same within a transaction.
    pub async fn add_checkpoint(&mut self, origin: &str, row: &CheckpointRow) -> Result<(), Error> {
        match self {
            // One statement is a transaction of its own, or part of the one that is open.
            Self::Sqlite(database) => database.put_checkpoint(origin, row).await,
            Self::Postgres(database) => database.add_checkpoint(origin, row).await,
        }
    }

    /// Adds lines of signatures to a head, once.
    pub async fn add_signatures(&mut self, origin: &str, size: u64, lines: &str) -> Result<(), Error> {
        either!(self, database => database.add_signatures(origin, size, lines).await)
    }

    /// Size and time of the heads that are older than this, and whether somebody else signed them too.
    pub async fn checkpoints_before(
        &mut self,
        origin: &str,
        at: i64,
    ) -> Result<Vec<(u64, i64, bool)>, Error> {
        either!(self, database => database.checkpoints_before(origin, at).await)
    }

    /// Removes heads.
    pub async fn drop_checkpoints(&mut self, origin: &str, sizes: &[u64]) -> Result<(), Error> {
        either!(self, database => database.drop_checkpoints(origin, sizes).await)
    }

    /// Notes a key that a log is signed with from an entry on, once.
    pub async fn put_log_key(&mut self, key: &LogKey) -> Result<(), Error> {
        either!(self, database => database.put_log_key(key).await)
    }

    /// The keys of all logs, oldest first in each.
    pub async fn log_keys(&mut self) -> Result<Vec<LogKey>, Error> {
        either!(self, database => database.log_keys().await)
    }

    /// Keeps the text of a bundle under its digest, once.
    pub async fn keep_bundle(&mut self, digest: &str, text: &[u8]) -> Result<(), Error> {
        either!(self, database => database.keep_bundle(digest, text).await)
    }

    /// Adds an admin token; `false` when the name is taken.
    pub async fn create_token(&mut self, token: &TokenRow) -> Result<bool, Error> {
        either!(self, database => database.create_token(token).await)
    }

    /// Revokes a token; `false` when there is none of that name in use.
    pub async fn revoke_token(&mut self, name: &str, at: i64) -> Result<bool, Error> {
        either!(self, database => database.revoke_token(name, at).await)
    }
}
