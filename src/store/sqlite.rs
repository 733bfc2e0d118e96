//! The SQLite dialect.
//!
//! WAL with full synchronisation; every commit is a statement of its own, so that an error from it is told apart from one
//! before it. Multi-row inserts go in chunks of powers of two, so that few distinct texts are prepared. Any I/O error
//! leaves the transaction in doubt. Readers are read-only connections and never hold a read longer than one call.

mod calls;
mod files;
mod projection;
mod reader;
mod tree;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::{
    SqliteAutoVacuum, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteRow, SqliteSynchronous,
};
use sqlx::{ConnectOptions as _, Connection as _, QueryBuilder, Row as _};

use super::{Abandoned, Beside, EntryRow, Error, Head, StoredEntry, TargetRow, TokenRow};

use calls::Calls;
use files::Files;
pub(super) use files::copy_wal;
pub(super) use reader::Reader;

/// `application_id` of our files: "PWLG".
const APPLICATION: i64 = 0x5057_4C47;
/// The newest schema this binary knows.
const SCHEMA: i64 = 6;
/// Longer waits for a lock count as a log that cannot be written.
const BUSY: Duration = Duration::from_millis(250);
/// Pages the writer keeps in memory, in KiB with a minus before it: a large batch changes more than SQLite's own 2 MiB.
const CACHE: &str = "-16384";
/// Texts of statements that are kept prepared: what a small batch sends in one call is one of some hundred.
const STATEMENTS: usize = 300;
const PAGE: u64 = 4096;
/// Free pages given back in one transaction.
const VACUUM_PAGES: u64 = 500;
/// What to do about a file that cannot be read.
const DAMAGED: &str = "keep it as it is and restore it from a backup (`patchwarden restore`)";
/// A whole store is copied in one statement.
const SNAPSHOT: Duration = Duration::from_hours(6);
const ENTRY: &str = "SELECT e.row, e.origin, e.idx, e.kind, e.of_origin, e.of_idx, e.envelope, p.body, p.salt \
                     FROM entries e LEFT JOIN payloads p ON p.row = e.row ";
const TARGETS: &str =
    "SELECT key, seq, turn, open_origin, open_idx, open_since, open_unknown, revision FROM targets ";
const TOKENS: &str = "SELECT name, role, hash, created_at, revoked_at FROM admin_tokens ORDER BY name";

/// The writer's connection.
pub struct Database {
    calls: Calls,
    path: PathBuf,
    files: Option<Files>,
    /// Frames in the WAL: none once a checkpoint has copied all, until the next commit.
    frames: u64,
    /// By how much a checkpoint may make the file shorter, where free pages were given back.
    shorter: u64,
    /// Frames in the WAL when this connection last committed.
    committed: u64,
    /// Where the entries that this connection wrote one after the other are.
    run: Option<Run>,
}

/// Entries of one log in rows that follow each other: the first, and the row after the last.
#[derive(Clone, Debug)]
struct Run {
    origin: String,
    index: u64,
    row: i64,
    next: i64,
}

impl Run {
    /// The row of an entry, if it is one of them.
    fn row_of(&self, (origin, index): &(String, u64)) -> Option<i64> {
        let row = self.row + i64::try_from(index.checked_sub(self.index)?).ok()?;
        (*origin == self.origin && row < self.next).then_some(row)
    }

    /// Whether an entry would be the next one.
    fn leads_to(&self, origin: &str, index: u64) -> bool {
        origin == self.origin && self.index + self.next.abs_diff(self.row) == index
    }
}

impl Database {
    /// Opens the file and migrates it as needed; makes a new one only if `may_create`.
    pub async fn open(path: &Path, may_create: bool) -> Result<Self, Error> {
        let is_new = inspect(path).await?.is_none();
        if is_new && !may_create {
            let what = "the store this gateway was writing is gone or was emptied; put it back, or restart to see what is there";
            return Err(Error::Wait(format!("{}: {what}", path.display())));
        }
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .page_size(4096)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY)
            .pragma("secure_delete", "ON")
            .pragma("wal_autocheckpoint", "0")
            .pragma("temp_store", "MEMORY")
            .pragma("cache_size", CACHE)
            .statement_cache_capacity(STATEMENTS)
            .disable_statement_logging();
        // Said to a file that has it already, it would be a write to what may turn out not to be ours.
        let options = if is_new { options.auto_vacuum(SqliteAutoVacuum::Incremental) } else { options };
        if is_new {
            create_private(path)?;
        }
        let mut connection = options.connect().await.map_err(|error| opening(path, &error))?;
        sqlx::migrate!("migrations/sqlite").run_direct(None, &mut connection, false).await.map_err(
            |error| match error {
                sqlx::migrate::MigrateError::Execute(error)
                | sqlx::migrate::MigrateError::ExecuteMigration(error, _) => opening(path, &error),
                other => {
                    Error::Fatal(format!("{}: {other}; was it written by another version?", path.display()))
                }
            },
        )?;
        Ok(Self {
            calls: Calls::new(connection),
            path: path.to_owned(),
            files: None,
            frames: 0,
            shorter: 0,
            committed: 0,
            run: None,
        })
    }

    /// Starts a transaction, on the WAL that the last one was written to.
    pub async fn begin(&mut self) -> Result<(), Error> {
        self.look_at_wal().await?;
        self.calls.begin().await
    }

    /// Ends it. An error from COMMIT itself leaves it in doubt; one of a statement before it does not.
    pub async fn commit(&mut self) -> Result<(), Error> {
        let connection = self.calls.connection().await?;
        // Asked for in one call, since a call costs more than either: an error from the count leaves a commit in doubt too.
        let done = sqlx::query("COMMIT; PRAGMA wal_checkpoint(NOOP)").fetch_one(connection).await;
        let frames =
            done.and_then(|row| row.try_get(1)).map_err(|error| Error::InDoubt(error.to_string()))?;
        self.look_at_files(unsigned(frames))
    }

    /// Takes it back.
    pub async fn rollback(&mut self) -> Result<(), Error> {
        self.run = None;
        self.calls.rollback().await
    }

    /// Whether the file is whole; that takes as long as reading all of it.
    pub async fn check(&mut self) -> Result<(), Error> {
        let said: String = sqlx::query_scalar("PRAGMA quick_check(1)")
            .fetch_one(self.calls.connection().await?)
            .await
            .map_err(|error| inside(&error))?;
        if said == "ok" {
            return Ok(());
        }
        Err(Error::Fatal(format!("{} is damaged: {said}; {DAMAGED}", self.path.display())))
    }

    /// Closes the connection.
    pub async fn close(self) {
        self.calls.close().await;
    }

    /// A constant of every log that has it.
    pub async fn meta(&mut self, key: &str) -> Result<Vec<(String, String)>, Error> {
        let rows =
            sqlx::query_as("SELECT origin, value FROM log_meta WHERE key = ? ORDER BY origin").bind(key);
        rows.fetch_all(self.calls.connection().await?).await.map_err(|error| inside(&error))
    }

    /// Writes a constant of a log, once.
    pub async fn put_meta(&mut self, origin: &str, key: &str, value: &str) -> Result<(), Error> {
        let put = sqlx::query("INSERT INTO log_meta (origin, key, value) VALUES (?, ?, ?)")
            .bind(origin)
            .bind(key)
            .bind(value);
        put.execute(self.calls.connection().await?).await.map(drop).map_err(|error| inside(&error))
    }

    /// Writes a constant of the whole store unless it has one; returns the one it has.
    pub async fn claim_meta(&mut self, key: &str, value: &str) -> Result<String, Error> {
        let put =
            sqlx::query("INSERT INTO log_meta (origin, key, value) VALUES ('', ?, ?) ON CONFLICT DO NOTHING");
        put.bind(key)
            .bind(value)
            .execute(self.calls.connection().await?)
            .await
            .map_err(|error| inside(&error))?;
        let got = sqlx::query_scalar("SELECT value FROM log_meta WHERE origin = '' AND key = ?").bind(key);
        got.fetch_one(self.calls.connection().await?).await.map_err(|error| inside(&error))
    }

    /// The end of a log.
    pub async fn head(&mut self, origin: &str) -> Result<Option<Head>, Error> {
        let row = sqlx::query("SELECT size, frontier, epoch FROM log_head WHERE origin = ?").bind(origin);
        let row = row.fetch_optional(self.calls.connection().await?).await.map_err(|error| inside(&error))?;
        let read = |row: SqliteRow| {
            Ok::<_, sqlx::Error>(Head {
                size: unsigned(row.try_get(0)?),
                frontier: row.try_get(1)?,
                epoch: row.try_get(2)?,
            })
        };
        row.map(read).transpose().map_err(|error| inside(&error))
    }

    /// Makes the end of a new log.
    pub async fn new_head(&mut self, origin: &str) -> Result<(), Error> {
        let put = sqlx::query("INSERT INTO log_head (origin, size, frontier, epoch) VALUES (?, 0, x'', 1)")
            .bind(origin);
        put.execute(self.calls.connection().await?).await.map(drop).map_err(|error| inside(&error))
    }

    /// Moves the end of a log. `false`: somebody else appended.
    pub async fn advance(&mut self, origin: &str, from: u64, to: &Head) -> Result<bool, Error> {
        let moved = self.calls.ask(|text| {
            text.push("UPDATE log_head SET size = ").push_bind(signed(to.size));
            text.push(", frontier = ").push_bind(&to.frontier[..]);
            text.push(" WHERE origin = ").push_bind(origin).push(" AND size = ").push_bind(signed(from));
            text.push(" AND epoch = ").push_bind(to.epoch).push(" RETURNING size");
        });
        Ok(moved.await?.len() == 1)
    }

    /// Appends entries and their payloads; returns their rows.
    pub async fn append(&mut self, origin: &str, entries: &[EntryRow]) -> Result<Vec<i64>, Error> {
        let Some(first) = entries.first() else { return Ok(Vec::new()) };
        // Whoever else wrote a row in between is found by the trigger on the table.
        let run = match self.run.take() {
            Some(run) if run.leads_to(origin, first.index) => run,
            _ => {
                let next = sqlx::query_scalar("SELECT COALESCE(MAX(row), 0) + 1 FROM entries");
                let next = next.fetch_one(self.calls.connection().await?).await;
                let next = next.map_err(|error| inside(&error))?;
                Run { origin: origin.to_owned(), index: first.index, row: next, next }
            }
        };
        let numbered: Vec<(i64, &EntryRow)> = (run.next..).zip(entries).collect();
        let mut rest = &numbered[..];
        while !rest.is_empty() {
            let (chunk, later) = rest.split_at(chunk_of(rest.len()));
            let write = self.calls.write(chunk.len(), |insert| {
                insert.push("INSERT INTO entries (row, origin, idx, kind, of_origin, of_idx, envelope) ");
                insert.push_values(chunk, |mut values, (row, entry)| {
                    let of = entry.of.as_ref();
                    values.push_bind(*row).push_bind(origin).push_bind(signed(entry.index));
                    values.push_bind(&*entry.kind).push_bind(of.map(|of| of.0.as_str()));
                    values.push_bind(of.map(|of| signed(of.1))).push_bind(&entry.envelope[..]);
                });
            });
            write.await?;
            rest = later;
            let bearing: Vec<_> = chunk.iter().filter(|(_, entry)| !entry.body.is_empty()).collect();
            if bearing.is_empty() {
                continue;
            }
            let write = self.calls.write(bearing.len(), |insert| {
                insert.push("INSERT INTO payloads (row, salt, body) ");
                insert.push_values(bearing, |mut values, (row, entry)| {
                    values.push_bind(*row).push_bind(&entry.salt[..]).push_bind(&entry.body[..]);
                });
            });
            write.await?;
        }
        let next = numbered.last().map_or(run.next, |(row, _)| row + 1);
        self.run = Some(Run { next, ..run });
        Ok(numbered.into_iter().map(|(row, _)| row).collect())
    }

    /// One entry with its payload.
    pub async fn entry(&mut self, origin: &str, index: u64) -> Result<Option<StoredEntry>, Error> {
        entry_at(self.calls.connection().await?, origin, index).await
    }

    /// Whether an intent has its outcome.
    pub async fn has_outcome(&mut self, of: (&str, u64)) -> Result<bool, Error> {
        let found = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM entries WHERE of_origin = ? AND of_idx = ? AND kind = 'outcome' \
             AND kind IN ('outcome', 'settlement'))",
        );
        let found = found.bind(of.0).bind(signed(of.1)).fetch_one(self.calls.connection().await?).await;
        found.map_err(|error| inside(&error))
    }

    /// The rows of these targets; the transaction keeps everybody else out.
    pub async fn targets(&mut self, keys: &[String]) -> Result<Vec<TargetRow>, Error> {
        let (mut rows, mut rest) = (Vec::with_capacity(keys.len()), keys);
        while !rest.is_empty() {
            let (chunk, later) = rest.split_at(chunk_of(rest.len()));
            let found = self.calls.ask(|select| {
                select.push(TARGETS).push("WHERE key IN (");
                let mut list = select.separated(", ");
                for key in chunk {
                    list.push_bind(key);
                }
                select.push(")");
            });
            let found = found.await?;
            let found = found.iter().map(target_row).collect::<Result<Vec<_>, _>>();
            let mut found: HashMap<_, _> = found
                .map_err(|error| inside(&error))?
                .into_iter()
                .map(|row| (row.key.clone(), row))
                .collect();
            let none = |key: &String| TargetRow { key: key.clone(), ..TargetRow::default() };
            rows.extend(chunk.iter().map(|key| found.remove(key).unwrap_or_else(|| none(key))));
            rest = later;
        }
        Ok(rows)
    }

    /// Writes rows back.
    pub async fn put_targets(&mut self, rows: &[TargetRow]) -> Result<(), Error> {
        let mut rest = rows;
        while !rest.is_empty() {
            let (chunk, later) = rest.split_at(chunk_of(rest.len()));
            let write = self.calls.write(chunk.len(), |put| {
                put.push("INSERT OR REPLACE INTO targets (key, seq, turn, open_origin, open_idx, open_since, open_unknown, revision) ");
                put.push_values(chunk, |mut values, row| {
                    values.push_bind(&row.key).push_bind(signed(row.seq)).push_bind(signed(row.turn));
                    values.push_bind(row.open.as_ref().map(|open| open.0.as_str()));
                    values.push_bind(row.open.as_ref().map(|open| signed(open.1)));
                    values.push_bind(row.open.as_ref().map(|_| row.open_since));
                    values.push_bind(row.open_unknown).push_bind(&row.revision);
                });
            });
            write.await?;
            rest = later;
        }
        Ok(())
    }

    /// Numbers of the attempts of a log whose outcome is still pending.
    pub async fn pending(&mut self, origin: &str) -> Result<Vec<u64>, Error> {
        let rows = sqlx::query_scalar::<_, i64>(
            "SELECT idx FROM changes WHERE outcome = 'pending' AND origin = ? ORDER BY row",
        );
        let rows = rows.bind(origin).fetch_all(self.calls.connection().await?).await;
        Ok(rows.map_err(|error| inside(&error))?.into_iter().map(unsigned).collect())
    }

    /// Pending attempts of other logs.
    pub async fn abandoned(&mut self, origin: &str) -> Result<Vec<Abandoned>, Error> {
        let rows = sqlx::query_as::<_, (String, i64)>(
            "SELECT origin, idx FROM changes WHERE outcome = 'pending' AND origin <> ? ORDER BY row LIMIT 256",
        );
        let rows = rows.bind(origin).fetch_all(self.calls.connection().await?).await;
        let abandoned = |(origin, index)| Abandoned { origin, index: unsigned(index), since: Duration::ZERO };
        Ok(rows.map_err(|error| inside(&error))?.into_iter().map(abandoned).collect())
    }

    /// The projection's version.
    pub async fn projection_version(&mut self) -> Result<i64, Error> {
        let version = sqlx::query_scalar("SELECT version FROM projection");
        version.fetch_one(self.calls.connection().await?).await.map_err(|error| inside(&error))
    }

    /// Empties the projection and notes the version it will be rebuilt in.
    pub async fn clear_projection(&mut self, version: i64) -> Result<(), Error> {
        self.calls
            .write(1, |text| {
                text.push("DELETE FROM changes; UPDATE projection SET version = ").push_bind(version);
            })
            .await
    }

    /// Entries from a row on, at most 1 000.
    pub async fn entries_from(&mut self, row: i64) -> Result<Vec<StoredEntry>, Error> {
        let text = format!("{ENTRY} WHERE e.row >= ? ORDER BY e.row LIMIT 1000");
        let rows = sqlx::query(sqlx::AssertSqlSafe(text))
            .bind(row)
            .fetch_all(self.calls.connection().await?)
            .await
            .map_err(|error| inside(&error))?;
        rows.iter().map(stored).collect::<Result<_, _>>().map_err(|error| inside(&error))
    }

    /// The newest lifecycle entry of a log below a number.
    pub async fn lifecycle_before(&mut self, origin: &str, index: u64) -> Result<Option<StoredEntry>, Error> {
        // Named, since the planner would rather read the log backwards. Rows follow each other as the log's numbers do.
        let text = format!(
            "{ENTRY} WHERE e.row = (SELECT row FROM entries INDEXED BY entries_of_gateways \
             WHERE kind = 'lifecycle' AND kind IN ('lifecycle', 'access') AND origin = ? AND idx < ? ORDER BY row DESC LIMIT 1)"
        );
        let query = sqlx::query(sqlx::AssertSqlSafe(text)).bind(origin).bind(signed(index));
        let row = query.fetch_optional(self.calls.connection().await?).await;
        row.and_then(|row| row.as_ref().map(stored).transpose()).map_err(|error| inside(&error))
    }

    /// From now on payloads of a log may be removed below a number.
    pub async fn prune_below(&mut self, origin: &str, below: u64) -> Result<(), Error> {
        let put = sqlx::query(
            "INSERT INTO log_meta (origin, key, value) VALUES (?, 'pruned_below', ?) \
             ON CONFLICT (origin, key) DO UPDATE SET value = excluded.value WHERE value < excluded.value",
        );
        let done = put.bind(origin).bind(signed(below)).execute(self.calls.connection().await?).await;
        done.map(drop).map_err(|error| inside(&error))
    }

    /// Removes payloads, and from rows of the projection what came from them.
    pub async fn remove_payloads(&mut self, payloads: &[i64], changes: &[i64]) -> Result<(), Error> {
        // A payload and a row of the projection lie on a few pages each.
        self.frames += 4 * (payloads.len() + changes.len()) as u64 + 12;
        let texts = [
            ("DELETE FROM payloads WHERE row IN (", payloads),
            (
                "UPDATE changes SET caller = NULL, would = NULL, warned = 0, rules = ' ', pointers = ' ', \
                 search = COALESCE(target, '') WHERE row IN (",
                changes,
            ),
        ];
        for (text, rows) in texts {
            if rows.is_empty() {
                continue;
            }
            let mut query = QueryBuilder::new(text);
            let mut list = query.separated(", ");
            for row in rows {
                list.push_bind(*row);
            }
            query.push(")");
            query.build().execute(self.calls.connection().await?).await.map_err(|error| inside(&error))?;
        }
        Ok(())
    }

    /// Gives some free pages back.
    pub async fn vacuum(&mut self) -> Result<(), Error> {
        // What maps the pages of a part of the file goes with the last of them.
        self.shorter += (VACUUM_PAGES + 2) * PAGE;
        self.frames += 3 * VACUUM_PAGES;
        let text = sqlx::AssertSqlSafe(format!("PRAGMA incremental_vacuum({VACUUM_PAGES})"));
        sqlx::raw_sql(text)
            .execute(self.calls.connection().await?)
            .await
            .map(drop)
            .map_err(|error| inside(&error))
    }

    /// The constants of a log.
    pub async fn constants(&mut self, origin: &str) -> Result<Vec<(String, String)>, Error> {
        let rows =
            sqlx::query_as("SELECT key, CAST(value AS TEXT) FROM log_meta WHERE origin = ? ORDER BY key");
        rows.bind(origin).fetch_all(self.calls.connection().await?).await.map_err(|error| inside(&error))
    }

    /// Entries of a log from a number on, at most 1 000.
    pub async fn entries_of(&mut self, origin: &str, from: u64) -> Result<Vec<StoredEntry>, Error> {
        let text = format!("{ENTRY} WHERE e.origin = ? AND e.idx >= ? ORDER BY e.idx LIMIT 1000");
        let rows = sqlx::query(sqlx::AssertSqlSafe(text)).bind(origin).bind(signed(from));
        let rows = rows.fetch_all(self.calls.connection().await?).await.map_err(|error| inside(&error))?;
        rows.iter().map(stored).collect::<Result<_, _>>().map_err(|error| inside(&error))
    }

    /// Everything that is not a log.
    pub async fn beside(&mut self) -> Result<Beside, Error> {
        let connection = self.calls.connection().await?;
        let read = async {
            let keys: Vec<String> = sqlx::query_scalar("SELECT key FROM targets ORDER BY key")
                .fetch_all(&mut *connection)
                .await?;
            let bundles =
                sqlx::query_as("SELECT digest, text FROM bundles").fetch_all(&mut *connection).await?;
            let tokens = sqlx::query(TOKENS).fetch_all(&mut *connection).await?;
            let tokens = tokens.iter().map(token).collect::<Result<_, _>>()?;
            Ok((keys, bundles, tokens))
        };
        let (keys, bundles, tokens): (Vec<String>, _, _) =
            read.await.map_err(|error: sqlx::Error| inside(&error))?;
        Ok(Beside { targets: self.targets(&keys).await?, bundles, tokens })
    }

    /// Keeps the text of a bundle under its digest, once.
    pub async fn keep_bundle(&mut self, digest: &str, text: &[u8]) -> Result<(), Error> {
        let put = sqlx::query("INSERT INTO bundles (digest, text) VALUES (?, ?) ON CONFLICT DO NOTHING");
        let done = put.bind(digest).bind(text).execute(self.calls.connection().await?).await;
        done.map(drop).map_err(|error| inside(&error))
    }

    /// Adds an admin token; `false` when the name is taken.
    pub async fn create_token(&mut self, token: &TokenRow) -> Result<bool, Error> {
        let put = sqlx::query(
            "INSERT INTO admin_tokens (name, role, hash, created_at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        )
        .bind(&token.name)
        .bind(&token.role)
        .bind(&token.hash)
        .bind(token.created_at);
        let done = put.execute(self.calls.connection().await?).await.map_err(|error| inside(&error))?;
        Ok(done.rows_affected() == 1)
    }

    /// Revokes a token; `false` when there is none of that name in use.
    pub async fn revoke_token(&mut self, name: &str, at: i64) -> Result<bool, Error> {
        let put = sqlx::query("UPDATE admin_tokens SET revoked_at = ? WHERE name = ? AND revoked_at IS NULL");
        let done = put
            .bind(at)
            .bind(name)
            .execute(self.calls.connection().await?)
            .await
            .map_err(|error| inside(&error))?;
        Ok(done.rows_affected() == 1)
    }
}

/// Copies a store into an empty file, in one read.
pub(super) async fn snapshot(from: &Path, into: &Path) -> Result<(), Error> {
    if inspect(from).await?.is_none() {
        return Err(missing(from));
    }
    let options = SqliteConnectOptions::new()
        .filename(from)
        .read_only(true)
        .busy_timeout(BUSY)
        .disable_statement_logging();
    let mut connection = options.connect().await.map_err(|error| opening(from, &error))?;
    let name = into.to_str().ok_or_else(|| Error::Wait(format!("{} is no UTF-8", into.display())))?;
    let copy = sqlx::query("VACUUM INTO ?").bind(name);
    let copied = tokio::time::timeout(SNAPSHOT, copy.execute(&mut connection)).await;
    let _ = connection.close().await;
    match copied {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(match opening(from, &error) {
            Error::Wait(_) => Error::Wait(format!("{} could not be written: {error}", into.display())),
            other => other,
        }),
        Err(_) => Err(Error::Wait(format!("{} was not copied in time", from.display()))),
    }
}

/// Whether a store has the schema of this version: else it is an older one.
pub(super) async fn is_current(path: &Path) -> Result<bool, Error> {
    let schema = inspect(path).await?;
    schema.map(|schema| schema == SCHEMA).ok_or_else(|| missing(path))
}

fn missing(path: &Path) -> Error {
    Error::Wait(format!("{} does not exist or is empty; is this the right name?", path.display()))
}

/// The schema of a file, nothing when it is new or empty; an error when it is not ours.
async fn inspect(path: &Path) -> Result<Option<i64>, Error> {
    if fs::metadata(path).map_or(true, |file| file.len() == 0) {
        return Ok(None);
    }
    let options = SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        .busy_timeout(BUSY)
        .disable_statement_logging();
    let mut connection = options.connect().await.map_err(|error| opening(path, &error))?;
    let application = ask(&mut connection, path, "PRAGMA application_id").await?;
    let schema = ask(&mut connection, path, "PRAGMA user_version").await?;
    let tables =
        ask(&mut connection, path, "SELECT COUNT(*) FROM sqlite_master WHERE tbl_name <> '_sqlx_migrations'")
            .await?;
    let _ = connection.close().await;
    if application == 0 && tables == 0 {
        return Ok(None);
    }
    if application != APPLICATION {
        let what = format!(
            "{} is an SQLite file of another program; name another store (store.url)",
            path.display()
        );
        return Err(Error::Fatal(what));
    }
    if schema > SCHEMA {
        let what = format!(
            "{} was written by a newer version (schema {schema}, this binary knows {SCHEMA}); use that version",
            path.display()
        );
        return Err(Error::Fatal(what));
    }
    Ok(Some(schema))
}

async fn ask(connection: &mut SqliteConnection, path: &Path, text: &'static str) -> Result<i64, Error> {
    sqlx::query_scalar(text).fetch_one(connection).await.map_err(|error| opening(path, &error))
}

fn create_private(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let made = fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path);
    made.map(drop).map_err(|error| Error::Wait(format!("{}: {error}", path.display())))
}

/// SQLite's primary result code.
fn primary(error: &sqlx::Error) -> Option<i32> {
    let code = error.as_database_error()?.code()?;
    code.parse::<i32>().ok().map(|code| code & 0xff)
}

fn opening(path: &Path, error: &sqlx::Error) -> Error {
    let what = format!("{}: {error}", path.display());
    match primary(error) {
        Some(11 | 26) => Error::Fatal(format!("{what}; it is no database or damaged: {DAMAGED}")),
        Some(10) => Error::Unreadable(what),
        _ => Error::Wait(what),
    }
}

/// An error within a transaction: what SQLite answered by itself took nothing; everything else is in doubt.
fn inside(error: &sqlx::Error) -> Error {
    match primary(error) {
        Some(11 | 26) => Error::Fatal(format!("{error}; {DAMAGED}")),
        Some(10) | None => Error::InDoubt(error.to_string()),
        Some(_) => Error::Refused(error.to_string()),
    }
}

async fn target(connection: &mut SqliteConnection, key: &str) -> Result<TargetRow, Error> {
    let row = sqlx::query(sqlx::AssertSqlSafe(format!("{TARGETS} WHERE key = ?"))).bind(key);
    let row = row.fetch_optional(connection).await.map_err(|error| inside(&error))?;
    let Some(row) = row else { return Ok(TargetRow { key: key.to_owned(), ..TargetRow::default() }) };
    target_row(&row).map_err(|error| inside(&error))
}

fn target_row(row: &SqliteRow) -> Result<TargetRow, sqlx::Error> {
    let open: (Option<String>, Option<i64>) = (row.try_get(3)?, row.try_get(4)?);
    Ok(TargetRow {
        key: row.try_get(0)?,
        seq: unsigned(row.try_get(1)?),
        turn: unsigned(row.try_get(2)?),
        open: open.0.zip(open.1.map(unsigned)),
        open_since: row.try_get::<Option<i64>, _>(5)?.unwrap_or(0),
        open_unknown: row.try_get(6)?,
        revision: row.try_get(7)?,
    })
}

/// How many of so many rows go into one statement: a power of two, so that few distinct texts are prepared.
fn chunk_of(rows: usize) -> usize {
    1 << rows.min(256).ilog2()
}

async fn entry_at(
    connection: &mut SqliteConnection,
    origin: &str,
    index: u64,
) -> Result<Option<StoredEntry>, Error> {
    let query = sqlx::query(sqlx::AssertSqlSafe(format!("{ENTRY} WHERE e.origin = ? AND e.idx = ?")));
    let row = query.bind(origin).bind(signed(index)).fetch_optional(connection).await;
    row.and_then(|row| row.as_ref().map(stored).transpose()).map_err(|error| inside(&error))
}

fn stored(row: &SqliteRow) -> Result<StoredEntry, sqlx::Error> {
    let of: (Option<String>, Option<i64>) = (row.try_get(4)?, row.try_get(5)?);
    Ok(StoredEntry {
        row: row.try_get(0)?,
        origin: row.try_get(1)?,
        index: unsigned(row.try_get(2)?),
        kind: row.try_get(3)?,
        of: of.0.zip(of.1.map(unsigned)),
        envelope: row.try_get(6)?,
        body: row.try_get(7)?,
        salt: row.try_get(8)?,
    })
}

fn token(row: &SqliteRow) -> Result<TokenRow, sqlx::Error> {
    Ok(TokenRow {
        name: row.try_get(0)?,
        role: row.try_get(1)?,
        hash: row.try_get(2)?,
        created_at: row.try_get(3)?,
        revoked_at: row.try_get(4)?,
    })
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
