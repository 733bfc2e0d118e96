//! Tiles, signed heads and keys of a log.
//!
//! A head is written outside of any batch, as one statement: whether it is there changes nothing that it says.

use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use super::super::{CheckpointRow, Error, LogKey};
use super::{Database, Reader, inside, signed, unsigned};

const TILES: &str =
    "SELECT n, hashes FROM tiles WHERE origin = ? AND level = ? AND n >= ? AND n < ? ORDER BY n";

impl Database {
    /// Keeps a full tile.
    pub async fn put_tile(
        &mut self,
        origin: &str,
        level: u8,
        number: u64,
        hashes: &[u8],
    ) -> Result<(), Error> {
        let put = sqlx::query("INSERT INTO tiles (origin, level, n, hashes) VALUES (?, ?, ?, ?)");
        let put = put.bind(origin).bind(i64::from(level)).bind(signed(number)).bind(hashes);
        self.frames += 5;
        put.execute(self.calls.connection().await?).await.map(drop).map_err(|error| inside(&error))
    }

    /// The full tiles of a level with these numbers, those that are there.
    pub async fn tiles(
        &mut self,
        origin: &str,
        level: u8,
        numbers: std::ops::Range<u64>,
    ) -> Result<Vec<(u64, Vec<u8>)>, Error> {
        let rows = sqlx::query(TILES).bind(origin).bind(i64::from(level));
        let rows = rows
            .bind(signed(numbers.start))
            .bind(signed(numbers.end))
            .fetch_all(self.calls.connection().await?)
            .await;
        rows.and_then(|rows| rows.iter().map(tile).collect()).map_err(|error| inside(&error))
    }

    /// How many tiles of the lowest level are there.
    pub async fn tile_count(&mut self, origin: &str) -> Result<u64, Error> {
        let count =
            sqlx::query_scalar("SELECT COALESCE(MAX(n) + 1, 0) FROM tiles WHERE origin = ? AND level = 0");
        let count = count.bind(origin).fetch_one(self.calls.connection().await?).await;
        count.map(unsigned).map_err(|error| inside(&error))
    }

    /// Keeps a signed head, once, by itself.
    pub async fn put_checkpoint(&mut self, origin: &str, row: &CheckpointRow) -> Result<(), Error> {
        let put = sqlx::query(
            "INSERT INTO checkpoints (origin, size, at, body, signatures) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        );
        let put = put.bind(origin).bind(signed(row.size)).bind(row.at).bind(&row.body).bind(&row.signatures);
        self.frames += 3;
        put.execute(self.calls.connection().await?).await.map(drop).map_err(|error| inside(&error))
    }

    /// Adds lines of signatures to a head, once.
    pub async fn add_signatures(&mut self, origin: &str, size: u64, lines: &str) -> Result<(), Error> {
        let put = sqlx::query(
            "UPDATE checkpoints SET signatures = signatures || ?1 WHERE origin = ?2 AND size = ?3 AND instr(signatures, ?1) = 0",
        );
        let put = put.bind(lines).bind(origin).bind(signed(size));
        self.frames += 3;
        put.execute(self.calls.connection().await?).await.map(drop).map_err(|error| inside(&error))
    }

    /// Size and time of the heads that are older than this, and whether somebody else signed them too.
    pub async fn checkpoints_before(
        &mut self,
        origin: &str,
        at: i64,
    ) -> Result<Vec<(u64, i64, bool)>, Error> {
        let rows = sqlx::query_as::<_, (i64, i64, bool)>(
            "SELECT size, at, instr(replace(signatures, '— ' || origin || ' ', ''), '— ') > 0 FROM checkpoints WHERE origin = ? AND at < ? ORDER BY size",
        );
        let rows = rows.bind(origin).bind(at).fetch_all(self.calls.connection().await?).await;
        Ok(rows
            .map_err(|error| inside(&error))?
            .into_iter()
            .map(|(size, at, more)| (unsigned(size), at, more))
            .collect())
    }

    /// Removes heads.
    pub async fn drop_checkpoints(&mut self, origin: &str, sizes: &[u64]) -> Result<(), Error> {
        for size in sizes {
            let drop = sqlx::query("DELETE FROM checkpoints WHERE origin = ? AND size = ?");
            let drop = drop.bind(origin).bind(signed(*size));
            drop.execute(self.calls.connection().await?).await.map_err(|error| inside(&error))?;
        }
        Ok(())
    }

    /// Notes a key that a log is signed with from an entry on, once.
    pub async fn put_log_key(&mut self, key: &LogKey) -> Result<(), Error> {
        let put = sqlx::query(
            "INSERT INTO log_keys (origin, public, since) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        );
        let put = put.bind(&key.origin).bind(&key.public).bind(signed(key.since));
        put.execute(self.calls.connection().await?).await.map(drop).map_err(|error| inside(&error))
    }

    /// The keys of all logs, oldest first in each.
    pub async fn log_keys(&mut self) -> Result<Vec<LogKey>, Error> {
        let rows = sqlx::query(KEYS).fetch_all(self.calls.connection().await?).await;
        rows.and_then(|rows| rows.iter().map(log_key).collect()).map_err(|error| inside(&error))
    }
}

const KEYS: &str = "SELECT origin, public, since FROM log_keys ORDER BY origin, since";
const CHECKPOINT: &str = "SELECT size, at, body, signatures FROM checkpoints WHERE origin = ? ";

impl Reader {
    /// The full tiles of a level with these numbers, those that are there.
    pub async fn tiles(
        &self,
        origin: &str,
        level: u8,
        numbers: std::ops::Range<u64>,
    ) -> Result<Vec<(u64, Vec<u8>)>, Error> {
        let rows = sqlx::query(TILES).bind(origin).bind(i64::from(level));
        let rows = rows.bind(signed(numbers.start)).bind(signed(numbers.end)).fetch_all(&self.0).await;
        rows.and_then(|rows| rows.iter().map(tile).collect()).map_err(|error| inside(&error))
    }

    /// The envelopes with these numbers, those that are there.
    pub async fn envelopes(
        &self,
        origin: &str,
        numbers: std::ops::Range<u64>,
    ) -> Result<Vec<(u64, Vec<u8>)>, Error> {
        let rows = sqlx::query(
            "SELECT idx, envelope FROM entries WHERE origin = ? AND idx >= ? AND idx < ? ORDER BY idx",
        );
        let rows = rows.bind(origin).bind(signed(numbers.start)).bind(signed(numbers.end));
        let rows = rows.fetch_all(&self.0).await;
        rows.and_then(|rows| rows.iter().map(tile).collect()).map_err(|error| inside(&error))
    }

    /// Signed heads of a log from a size on, the smallest first, at most so many.
    pub async fn checkpoints(
        &self,
        origin: &str,
        from: u64,
        limit: u32,
    ) -> Result<Vec<CheckpointRow>, Error> {
        let text = format!("{CHECKPOINT} AND size >= ? ORDER BY size LIMIT ?");
        let rows = sqlx::query(sqlx::AssertSqlSafe(text)).bind(origin).bind(signed(from)).bind(limit);
        let rows = rows.fetch_all(&self.0).await;
        rows.and_then(|rows| rows.iter().map(checkpoint).collect()).map_err(|error| inside(&error))
    }

    /// The newest signed head of a log.
    pub async fn newest_checkpoint(&self, origin: &str) -> Result<Option<CheckpointRow>, Error> {
        let text = format!("{CHECKPOINT} ORDER BY size DESC LIMIT 1");
        let row = sqlx::query(sqlx::AssertSqlSafe(text)).bind(origin).fetch_optional(&self.0).await;
        row.and_then(|row| row.as_ref().map(checkpoint).transpose()).map_err(|error| inside(&error))
    }

    /// The newest head of a log, from a size on, that others signed too: with a line of a name that is not the log's.
    pub async fn newest_cosigned(&self, origin: &str, from: u64) -> Result<Option<CheckpointRow>, Error> {
        let text = format!(
            "{CHECKPOINT} AND size >= ? AND instr(replace(signatures, '\u{2014} ' || origin || ' ', ''), '\u{2014}') > 0 ORDER BY size DESC LIMIT 1"
        );
        let row = sqlx::query(sqlx::AssertSqlSafe(text)).bind(origin).bind(signed(from));
        let row = row.fetch_optional(&self.0).await;
        row.and_then(|row| row.as_ref().map(checkpoint).transpose()).map_err(|error| inside(&error))
    }

    /// The keys of all logs, oldest first in each.
    pub async fn log_keys(&self) -> Result<Vec<LogKey>, Error> {
        let rows = sqlx::query(KEYS).fetch_all(&self.0).await;
        rows.and_then(|rows| rows.iter().map(log_key).collect()).map_err(|error| inside(&error))
    }
}

fn tile(row: &SqliteRow) -> Result<(u64, Vec<u8>), sqlx::Error> {
    Ok((unsigned(row.try_get(0)?), row.try_get(1)?))
}

fn checkpoint(row: &SqliteRow) -> Result<CheckpointRow, sqlx::Error> {
    let size = unsigned(row.try_get(0)?);
    Ok(CheckpointRow { size, at: row.try_get(1)?, body: row.try_get(2)?, signatures: row.try_get(3)? })
}

fn log_key(row: &SqliteRow) -> Result<LogKey, sqlx::Error> {
    Ok(LogKey { origin: row.try_get(0)?, public: row.try_get(1)?, since: unsigned(row.try_get(2)?) })
}
