//! The SQLite dialect.
//!
//! WAL with full synchronisation; every commit is a statement of its own, so that an error from it is told apart from one
//! before it. Multi-row inserts go in chunks of powers of two, so that few distinct texts are prepared. Any I/O error
//! leaves the transaction in doubt. Readers are read-only connections and never hold a read longer than one call.

mod reader;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::{
    SqliteAutoVacuum, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteRow, SqliteSynchronous,
};
use sqlx::{ConnectOptions as _, Connection as _, QueryBuilder, Row as _};

use super::{ChangeRow, ChangeUpdate, EntryRow, Error, Head, StoredEntry, TargetRow, TokenRow};

pub use reader::Reader;

/// `application_id` of our files: "PWLG".
const APPLICATION: i64 = 0x5057_4C47;
/// The newest schema this binary knows.
const SCHEMA: i64 = 3;
/// Longer waits for a lock count as a log that cannot be written.
const BUSY: Duration = Duration::from_millis(250);
const FRAME: u64 = 4096 + 24;

/// The writer's connection.
pub struct Database {
    connection: SqliteConnection,
    path: PathBuf,
    files: Option<Files>,
    /// Frames in the WAL: as the last checkpoint counted them, and an estimate of what came since.
    frames: u64,
}

/// The database and its WAL, as last seen.
#[derive(Clone, Copy, Debug)]
struct Files {
    database: File,
    wal: File,
}

#[derive(Clone, Copy, Debug)]
struct File {
    /// Device and inode.
    id: (u64, u64),
    length: u64,
}

impl Database {
    /// Opens the file and migrates it as needed; makes a new one only if `may_create`.
    pub async fn open(path: &Path, may_create: bool) -> Result<Self, Error> {
        let is_new = inspect(path).await?;
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
        let mut database = Self { connection, path: path.to_owned(), files: None, frames: 0 };
        database.files = database.identities().ok();
        Ok(database)
    }

    /// Starts a transaction.
    pub async fn begin(&mut self) -> Result<(), Error> {
        self.run("BEGIN IMMEDIATE").await
    }

    /// Ends it. Any error leaves it in doubt.
    pub async fn commit(&mut self) -> Result<(), Error> {
        let done = sqlx::raw_sql("COMMIT").execute(&mut self.connection).await;
        done.map_err(|error| Error::InDoubt(error.to_string()))?;
        self.look_at_files()
    }

    /// Takes it back.
    pub async fn rollback(&mut self) -> Result<(), Error> {
        self.run("ROLLBACK").await
    }

    async fn run(&mut self, text: &'static str) -> Result<(), Error> {
        sqlx::raw_sql(text).execute(&mut self.connection).await.map(drop).map_err(|error| inside(&error))
    }

    /// After a commit: the files under their names are still the ones written to, and did not shrink below use.
    fn look_at_files(&mut self) -> Result<(), Error> {
        let gone = |error: std::io::Error| Error::InDoubt(format!("{}: {error}", self.path.display()));
        let now = self.identities().map_err(gone)?;
        let lost = |before: File, now: File| before.id != now.id || now.length < before.length;
        let cut = self.files.is_some_and(|before| {
            lost(before.database, now.database) || lost(File { length: 1, ..before.wal }, now.wal)
        });
        if cut {
            return Err(Error::InDoubt(format!("{} or its WAL was replaced or cut", self.path.display())));
        }
        self.files = Some(now);
        Ok(())
    }

    fn identities(&self) -> std::io::Result<Files> {
        let read = |path: &Path| {
            fs::metadata(path).map(|file| File { id: (file.dev(), file.ino()), length: file.len() })
        };
        Ok(Files { database: read(&self.path)?, wal: read(&wal_path(&self.path))? })
    }

    /// Bytes of the WAL in use.
    pub fn wal_bytes(&self) -> u64 {
        self.frames * FRAME
    }

    /// Whether the WAL holds 1 000 frames or more.
    pub fn wants_checkpoint(&self) -> bool {
        self.frames >= 1000
    }

    /// Copies the WAL back: first by a connection of its own, then here, so that the next commit restarts it in place.
    pub async fn checkpoint(&mut self) -> Result<(), Error> {
        let options =
            SqliteConnectOptions::new().filename(&self.path).busy_timeout(BUSY).disable_statement_logging();
        if let Ok(mut second) = options.connect().await {
            let _ = sqlx::raw_sql("PRAGMA wal_checkpoint(PASSIVE)").execute(&mut second).await;
            let _ = second.close().await;
        }
        self.checkpoint_here("PRAGMA wal_checkpoint(PASSIVE)").await.map(drop)
    }

    /// Empties the WAL, at shutdown and when a commit is in doubt.
    pub async fn settle_wal(&mut self) -> Result<(), Error> {
        if self.checkpoint_here("PRAGMA wal_checkpoint(TRUNCATE)").await? {
            Ok(())
        } else {
            Err(Error::Wait(format!("{}: the WAL is still being read", self.path.display())))
        }
    }

    /// Whether it went through: SQLite says that it was busy in the row, not as an error.
    async fn checkpoint_here(&mut self, text: &'static str) -> Result<bool, Error> {
        let row = sqlx::query(text).fetch_one(&mut self.connection).await.map_err(|error| inside(&error))?;
        let (busy, frames, copied): (i64, i64, i64) =
            (|| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?)))()
                .map_err(|error: sqlx::Error| inside(&error))?;
        // When all of it is copied, the next commit starts the WAL again at its beginning.
        self.frames = if frames == copied { 0 } else { unsigned(frames) };
        Ok(busy == 0)
    }

    /// Closes the connection.
    pub async fn close(self) {
        let _ = self.connection.close().await;
    }

    /// A constant of a log.
    pub async fn meta(&mut self, key: &str) -> Result<Option<(String, String)>, Error> {
        let row = sqlx::query("SELECT origin, value FROM log_meta WHERE key = ? LIMIT 1").bind(key);
        let row = row.fetch_optional(&mut self.connection).await.map_err(|error| inside(&error))?;
        row.map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).transpose().map_err(|error| inside(&error))
    }

    /// Writes a constant of a log, once.
    pub async fn put_meta(&mut self, origin: &str, key: &str, value: &str) -> Result<(), Error> {
        let put = sqlx::query("INSERT INTO log_meta (origin, key, value) VALUES (?, ?, ?)")
            .bind(origin)
            .bind(key)
            .bind(value);
        put.execute(&mut self.connection).await.map(drop).map_err(|error| inside(&error))
    }

    /// The end of a log.
    pub async fn head(&mut self, origin: &str) -> Result<Option<Head>, Error> {
        let row = sqlx::query("SELECT size, frontier, epoch FROM log_head WHERE origin = ?").bind(origin);
        let row = row.fetch_optional(&mut self.connection).await.map_err(|error| inside(&error))?;
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
        put.execute(&mut self.connection).await.map(drop).map_err(|error| inside(&error))
    }

    /// Moves the end of a log. `false`: somebody else appended.
    pub async fn advance(&mut self, origin: &str, from: u64, to: &Head) -> Result<bool, Error> {
        let moved = sqlx::query(
            "UPDATE log_head SET size = ?, frontier = ? WHERE origin = ? AND size = ? AND epoch = ?",
        )
        .bind(signed(to.size))
        .bind(&to.frontier)
        .bind(origin)
        .bind(signed(from))
        .bind(to.epoch);
        let done = moved.execute(&mut self.connection).await.map_err(|error| inside(&error))?;
        Ok(done.rows_affected() == 1)
    }

    /// Appends entries and their payloads; returns the row of the first.
    pub async fn append(&mut self, origin: &str, entries: &[EntryRow]) -> Result<i64, Error> {
        let next: i64 = sqlx::query_scalar("SELECT COALESCE(MAX(row), 0) + 1 FROM entries")
            .fetch_one(&mut self.connection)
            .await
            .map_err(|error| inside(&error))?;
        let bytes: usize = entries.iter().map(|entry| entry.envelope.len() + entry.body.len()).sum();
        self.frames += (bytes / 4096 + 2 * entries.len() + 12) as u64;
        let numbered: Vec<(i64, &EntryRow)> = (next..).zip(entries).collect();
        let mut rest = &numbered[..];
        while !rest.is_empty() {
            let (chunk, later) = rest.split_at(1 << rest.len().min(256).ilog2());
            let mut insert = QueryBuilder::new(
                "INSERT INTO entries (row, origin, idx, kind, of_origin, of_idx, envelope) ",
            );
            insert.push_values(chunk, |mut values, (row, entry)| {
                let of = entry.of.as_ref();
                values.push_bind(*row).push_bind(origin).push_bind(signed(entry.index)).push_bind(entry.kind);
                values.push_bind(of.map(|of| of.0.as_str())).push_bind(of.map(|of| signed(of.1)));
                values.push_bind(&entry.envelope[..]);
            });
            insert.build().execute(&mut self.connection).await.map_err(|error| inside(&error))?;
            let mut insert = QueryBuilder::new("INSERT INTO payloads (row, salt, body) ");
            insert.push_values(chunk, |mut values, (row, entry)| {
                values.push_bind(*row).push_bind(&entry.salt[..]).push_bind(&entry.body[..]);
            });
            insert.build().execute(&mut self.connection).await.map_err(|error| inside(&error))?;
            rest = later;
        }
        Ok(next)
    }

    /// One entry with its payload.
    pub async fn entry(&mut self, origin: &str, index: u64) -> Result<Option<StoredEntry>, Error> {
        entry_at(&mut self.connection, origin, index).await
    }

    /// Takes a free target (or one held by `over`) for an intent, if its turn is still `turn`; its new `seq`.
    pub async fn open_target(
        &mut self,
        key: &str,
        turn: u64,
        intent: (&str, u64),
        over: Option<(&str, u64)>,
        now: i64,
    ) -> Result<Option<u64>, Error> {
        let new = sqlx::query("INSERT INTO targets (key, seq, turn) VALUES (?, 0, 0) ON CONFLICT DO NOTHING")
            .bind(key);
        new.execute(&mut self.connection).await.map_err(|error| inside(&error))?;
        let open = sqlx::query_scalar::<_, i64>(
            "UPDATE targets SET seq = seq + 1, turn = turn + 1, open_origin = ?, open_idx = ?, open_since = ?, open_unknown = 0 \
             WHERE key = ? AND turn = ? AND (open_idx IS NULL OR (open_unknown = 1 AND open_origin = ? AND open_idx = ?)) \
             RETURNING seq",
        )
        .bind(intent.0)
        .bind(signed(intent.1))
        .bind(now)
        .bind(key)
        .bind(signed(turn))
        .bind(over.map(|over| over.0))
        .bind(over.map(|over| signed(over.1)));
        let seq = open.fetch_optional(&mut self.connection).await.map_err(|error| inside(&error))?;
        Ok(seq.map(unsigned))
    }

    /// Frees a target held by `intent`; moves its turn. `turn`: only if it is still this one. `false`: it was not.
    pub async fn free_target(
        &mut self,
        key: &str,
        intent: (&str, u64),
        turn: Option<u64>,
    ) -> Result<bool, Error> {
        let free = sqlx::query(
            "UPDATE targets SET turn = turn + 1, open_origin = NULL, open_idx = NULL, open_since = NULL, open_unknown = 0 \
             WHERE key = ? AND open_origin = ? AND open_idx = ? AND turn = COALESCE(?, turn)",
        )
        .bind(key)
        .bind(intent.0)
        .bind(signed(intent.1))
        .bind(turn.map(signed));
        let done = free.execute(&mut self.connection).await.map_err(|error| inside(&error))?;
        Ok(done.rows_affected() == 1)
    }

    /// Keeps a target held, by an intent whose end is unknown; moves its turn.
    pub async fn hold_target(
        &mut self,
        key: &str,
        held_by: (&str, u64),
        intent: (&str, u64),
        since: i64,
    ) -> Result<(), Error> {
        let hold = sqlx::query(
            "UPDATE targets SET turn = turn + 1, open_origin = ?, open_idx = ?, open_since = ?, open_unknown = 1 \
             WHERE key = ? AND open_origin = ? AND open_idx = ?",
        )
        .bind(intent.0)
        .bind(signed(intent.1))
        .bind(since)
        .bind(key)
        .bind(held_by.0)
        .bind(signed(held_by.1));
        hold.execute(&mut self.connection).await.map(drop).map_err(|error| inside(&error))
    }

    /// Notes the newest revision known of a target, if its turn is still `turn` (or whatever it is).
    pub async fn note_revision(&mut self, key: &str, revision: &str, turn: Option<u64>) -> Result<(), Error> {
        let note = sqlx::query(
            "INSERT INTO targets (key, seq, turn, revision) VALUES (?, 0, 0, ?) \
             ON CONFLICT (key) DO UPDATE SET revision = excluded.revision WHERE turn = COALESCE(?, turn)",
        )
        .bind(key)
        .bind(revision)
        .bind(turn.map(signed));
        note.execute(&mut self.connection).await.map(drop).map_err(|error| inside(&error))
    }

    /// A target's row, as this connection sees it.
    pub async fn target(&mut self, key: &str) -> Result<TargetRow, Error> {
        target(&mut self.connection, key).await
    }

    /// Adds a row to the projection.
    pub async fn project(&mut self, change: &ChangeRow) -> Result<(), Error> {
        let put = sqlx::query(
            "INSERT INTO changes (row, kind, idx, id, at, target, seq, operation, caller, decision, would, outcome, settled, warned, \
             rules, pointers, search, outcome_row, settlement_row) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(change.row)
        .bind(&change.kind)
        .bind(signed(change.index))
        .bind(&change.id)
        .bind(change.at)
        .bind(&change.target)
        .bind(change.seq.map(signed))
        .bind(&change.operation)
        .bind(&change.caller)
        .bind(&change.decision)
        .bind(&change.would)
        .bind(&change.outcome)
        .bind(&change.settled)
        .bind(change.warned)
        .bind(&change.rules)
        .bind(&change.pointers)
        .bind(&change.search)
        .bind(change.outcome_row)
        .bind(change.settlement_row);
        put.execute(&mut self.connection).await.map(drop).map_err(|error| inside(&error))
    }

    /// Lays an outcome or a settlement over the row of its attempt.
    pub async fn project_update(&mut self, update: &ChangeUpdate) -> Result<(), Error> {
        let Some(row) = self.row_of(&update.of).await? else { return Ok(()) };
        let put = sqlx::query(
            "UPDATE changes SET outcome = COALESCE(?, outcome), outcome_row = COALESCE(?, outcome_row), \
             settled = COALESCE(?, settled), settlement_row = COALESCE(?, settlement_row), \
             pointers = COALESCE(?, pointers), search = search || ? WHERE row = ?",
        )
        .bind(update.outcome.as_ref().map(|outcome| outcome.0.as_str()))
        .bind(update.outcome.as_ref().map(|outcome| outcome.1))
        .bind(update.settled.as_ref().map(|settled| settled.0.as_str()))
        .bind(update.settled.as_ref().map(|settled| settled.1))
        .bind(&update.pointers)
        .bind(&update.search)
        .bind(row);
        put.execute(&mut self.connection).await.map(drop).map_err(|error| inside(&error))
    }

    async fn row_of(&mut self, of: &(String, u64)) -> Result<Option<i64>, Error> {
        let row = sqlx::query_scalar("SELECT row FROM entries WHERE origin = ? AND idx = ?")
            .bind(&of.0)
            .bind(signed(of.1));
        row.fetch_optional(&mut self.connection).await.map_err(|error| inside(&error))
    }

    /// Numbers of the attempts whose outcome is still pending.
    pub async fn pending(&mut self) -> Result<Vec<u64>, Error> {
        let rows =
            sqlx::query_scalar::<_, i64>("SELECT idx FROM changes WHERE outcome = 'pending' ORDER BY row");
        let rows = rows.fetch_all(&mut self.connection).await.map_err(|error| inside(&error))?;
        Ok(rows.into_iter().map(unsigned).collect())
    }

    /// The projection's version.
    pub async fn projection_version(&mut self) -> Result<i64, Error> {
        let version = sqlx::query_scalar("SELECT version FROM projection");
        version.fetch_one(&mut self.connection).await.map_err(|error| inside(&error))
    }

    /// Empties the projection and notes the version it will be rebuilt in.
    pub async fn clear_projection(&mut self, version: i64) -> Result<(), Error> {
        self.run("DELETE FROM changes").await?;
        let put = sqlx::query("UPDATE projection SET version = ?").bind(version);
        put.execute(&mut self.connection).await.map(drop).map_err(|error| inside(&error))
    }

    /// Entries from a row on, at most 1 000.
    pub async fn entries_from(&mut self, row: i64) -> Result<Vec<StoredEntry>, Error> {
        let rows = sqlx::query(concat!(
            "SELECT e.row, e.origin, e.idx, e.kind, e.of_origin, e.of_idx, e.envelope, p.body FROM entries e ",
            "LEFT JOIN payloads p ON p.row = e.row WHERE e.row >= ? ORDER BY e.row LIMIT 1000"
        ))
        .bind(row)
        .fetch_all(&mut self.connection)
        .await
        .map_err(|error| inside(&error))?;
        rows.iter().map(stored).collect::<Result<_, _>>().map_err(|error| inside(&error))
    }

    /// Keeps the text of a bundle under its digest, once.
    pub async fn keep_bundle(&mut self, digest: &str, text: &[u8]) -> Result<(), Error> {
        let put = sqlx::query("INSERT INTO bundles (digest, text) VALUES (?, ?) ON CONFLICT DO NOTHING");
        let done = put.bind(digest).bind(text).execute(&mut self.connection).await;
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
        let done = put.execute(&mut self.connection).await.map_err(|error| inside(&error))?;
        Ok(done.rows_affected() == 1)
    }

    /// Revokes a token; `false` when there is none of that name in use.
    pub async fn revoke_token(&mut self, name: &str, at: i64) -> Result<bool, Error> {
        let put = sqlx::query("UPDATE admin_tokens SET revoked_at = ? WHERE name = ? AND revoked_at IS NULL");
        let done =
            put.bind(at).bind(name).execute(&mut self.connection).await.map_err(|error| inside(&error))?;
        Ok(done.rows_affected() == 1)
    }
}

/// Whether the file is new or empty; an error when it is not ours.
async fn inspect(path: &Path) -> Result<bool, Error> {
    if fs::metadata(path).map_or(true, |file| file.len() == 0) {
        return Ok(true);
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
        return Ok(true);
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
    Ok(false)
}

async fn ask(connection: &mut SqliteConnection, path: &Path, text: &'static str) -> Result<i64, Error> {
    sqlx::query_scalar(text).fetch_one(connection).await.map_err(|error| opening(path, &error))
}

fn create_private(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let made = fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path);
    made.map(drop).map_err(|error| Error::Wait(format!("{}: {error}", path.display())))
}

fn wal_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    PathBuf::from(name)
}

/// SQLite's primary result code.
fn primary(error: &sqlx::Error) -> Option<i32> {
    let code = error.as_database_error()?.code()?;
    code.parse::<i32>().ok().map(|code| code & 0xff)
}

fn opening(path: &Path, error: &sqlx::Error) -> Error {
    let what = format!("{}: {error}", path.display());
    match primary(error) {
        Some(11 | 26) => {
            Error::Fatal(format!("{what}; it is no database or damaged: restore it from a backup"))
        }
        _ => Error::Wait(what),
    }
}

/// An error within a transaction: what SQLite answered by itself took nothing; everything else is in doubt.
fn inside(error: &sqlx::Error) -> Error {
    match primary(error) {
        Some(11 | 26) => Error::Fatal(error.to_string()),
        Some(10) | None => Error::InDoubt(error.to_string()),
        Some(_) => Error::Refused(error.to_string()),
    }
}

async fn target(connection: &mut SqliteConnection, key: &str) -> Result<TargetRow, Error> {
    let row = sqlx::query(
        "SELECT seq, turn, open_origin, open_idx, open_since, open_unknown, revision FROM targets WHERE key = ?",
    );
    let row = row.bind(key).fetch_optional(connection).await.map_err(|error| inside(&error))?;
    let Some(row) = row else { return Ok(TargetRow::default()) };
    let read = || {
        let open: (Option<String>, Option<i64>) = (row.try_get(2)?, row.try_get(3)?);
        Ok::<_, sqlx::Error>(TargetRow {
            seq: unsigned(row.try_get(0)?),
            turn: unsigned(row.try_get(1)?),
            open: open.0.zip(open.1.map(unsigned)),
            open_since: row.try_get::<Option<i64>, _>(4)?.unwrap_or(0),
            open_unknown: row.try_get(5)?,
            revision: row.try_get(6)?,
        })
    };
    read().map_err(|error| inside(&error))
}

async fn entry_at(
    connection: &mut SqliteConnection,
    origin: &str,
    index: u64,
) -> Result<Option<StoredEntry>, Error> {
    let query = sqlx::query(concat!(
        "SELECT e.row, e.origin, e.idx, e.kind, e.of_origin, e.of_idx, e.envelope, p.body FROM entries e ",
        "LEFT JOIN payloads p ON p.row = e.row WHERE e.origin = ? AND e.idx = ?"
    ));
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
    })
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
