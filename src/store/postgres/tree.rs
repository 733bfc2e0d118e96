//! Tiles, signed heads and keys of a log.
//!
//! A head is written outside of any batch, in a transaction of its own: whether it is there changes nothing that it says.

use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::super::{CheckpointRow, Error, LogKey};
use super::{Database, Reader, inside, signed, unsigned, within};

const TILES: &str =
    "SELECT n, hashes FROM tiles WHERE origin = $1 AND level = $2 AND n >= $3 AND n < $4 ORDER BY n";

impl Database {
    /// Keeps a full tile.
    pub async fn put_tile(
        &mut self,
        origin: &str,
        level: u8,
        number: u64,
        hashes: &[u8],
    ) -> Result<(), Error> {
        let put = sqlx::query("INSERT INTO tiles (origin, level, n, hashes) VALUES ($1, $2, $3, $4)");
        let put = put.bind(origin).bind(i16::from(level)).bind(signed(number)).bind(hashes);
        self.run(put).await.map(drop)
    }

    /// The full tiles of a level with these numbers, those that are there.
    pub async fn tiles(
        &mut self,
        origin: &str,
        level: u8,
        numbers: std::ops::Range<u64>,
    ) -> Result<Vec<(u64, Vec<u8>)>, Error> {
        let rows = sqlx::query(TILES).bind(origin).bind(i16::from(level));
        let rows = self.rows(rows.bind(signed(numbers.start)).bind(signed(numbers.end))).await?;
        rows.iter().map(tile).collect::<Result<_, _>>().map_err(|error| inside(&error))
    }

    /// How many tiles of the lowest level are there.
    pub async fn tile_count(&mut self, origin: &str) -> Result<u64, Error> {
        let count =
            sqlx::query_scalar("SELECT COALESCE(MAX(n) + 1, 0) FROM tiles WHERE origin = $1 AND level = 0");
        let count: Option<i64> = self.one(count.bind(origin)).await?;
        Ok(unsigned(count.unwrap_or(0)))
    }

    /// Keeps a signed head, once, by itself.
    pub async fn put_checkpoint(&mut self, origin: &str, row: &CheckpointRow) -> Result<(), Error> {
        self.begin().await?;
        self.add_checkpoint(origin, row).await?;
        within(sqlx::raw_sql("COMMIT").execute(&mut self.connection)).await.map(drop)
    }

    /// The same within a transaction.
    pub async fn add_checkpoint(&mut self, origin: &str, row: &CheckpointRow) -> Result<(), Error> {
        let put = sqlx::query(
            "INSERT INTO checkpoints (origin, size, at, body, signatures) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
        );
        let put = put.bind(origin).bind(signed(row.size)).bind(row.at).bind(&row.body).bind(&row.signatures);
        self.run(put).await.map(drop)
    }

    /// Adds lines of signatures to a head, once.
    pub async fn add_signatures(&mut self, origin: &str, size: u64, lines: &str) -> Result<(), Error> {
        let put = sqlx::query(
            "UPDATE checkpoints SET signatures = signatures || $1 WHERE origin = $2 AND size = $3 AND position($1 in signatures) = 0",
        );
        self.run(put.bind(lines).bind(origin).bind(signed(size))).await.map(drop)
    }

    /// Size and time of the heads that are older than this, and whether somebody else signed them too.
    pub async fn checkpoints_before(
        &mut self,
        origin: &str,
        at: i64,
    ) -> Result<Vec<(u64, i64, bool)>, Error> {
        let rows = sqlx::query_as(
            "SELECT size, at, position('— ' in replace(signatures, '— ' || origin || ' ', '')) > 0 FROM checkpoints WHERE origin = $1 AND at < $2 ORDER BY size",
        );
        let rows: Vec<(i64, i64, bool)> = self.all(rows.bind(origin).bind(at)).await?;
        Ok(rows.into_iter().map(|(size, at, more)| (unsigned(size), at, more)).collect())
    }

    /// Removes heads.
    pub async fn drop_checkpoints(&mut self, origin: &str, sizes: &[u64]) -> Result<(), Error> {
        let sizes: Vec<i64> = sizes.iter().copied().map(signed).collect();
        let drop = sqlx::query("DELETE FROM checkpoints WHERE origin = $1 AND size = ANY($2)");
        self.run(drop.bind(origin).bind(sizes)).await.map(|_| ())
    }

    /// Notes a key that a log is signed with from an entry on, once.
    pub async fn put_log_key(&mut self, key: &LogKey) -> Result<(), Error> {
        let put = sqlx::query(
            "INSERT INTO log_keys (origin, public, since) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        );
        self.run(put.bind(&key.origin).bind(&key.public).bind(signed(key.since))).await.map(drop)
    }

    /// The keys of all logs, oldest first in each.
    pub async fn log_keys(&mut self) -> Result<Vec<LogKey>, Error> {
        let rows = self.rows(sqlx::query(KEYS)).await?;
        rows.iter().map(log_key).collect::<Result<_, _>>().map_err(|error| inside(&error))
    }
}

const KEYS: &str = "SELECT origin, public, since FROM log_keys ORDER BY origin COLLATE \"C\", since";
const CHECKPOINT: &str = "SELECT size, at, body, signatures FROM checkpoints WHERE origin = $1 ";

impl Reader {
    /// The full tiles of a level with these numbers, those that are there.
    pub async fn tiles(
        &self,
        origin: &str,
        level: u8,
        numbers: std::ops::Range<u64>,
    ) -> Result<Vec<(u64, Vec<u8>)>, Error> {
        let rows = sqlx::query(TILES).bind(origin).bind(i16::from(level));
        let rows = self.rows(rows.bind(signed(numbers.start)).bind(signed(numbers.end))).await?;
        rows.iter().map(tile).collect::<Result<_, _>>().map_err(|error| inside(&error))
    }

    /// The envelopes with these numbers, those that are there.
    pub async fn envelopes(
        &self,
        origin: &str,
        numbers: std::ops::Range<u64>,
    ) -> Result<Vec<(u64, Vec<u8>)>, Error> {
        let rows = sqlx::query(
            "SELECT idx, envelope FROM entries WHERE origin = $1 AND idx >= $2 AND idx < $3 ORDER BY idx",
        );
        let rows = self.rows(rows.bind(origin).bind(signed(numbers.start)).bind(signed(numbers.end))).await?;
        rows.iter().map(tile).collect::<Result<_, _>>().map_err(|error| inside(&error))
    }

    /// Signed heads of a log from a size on, the smallest first, at most so many.
    pub async fn checkpoints(
        &self,
        origin: &str,
        from: u64,
        limit: u32,
    ) -> Result<Vec<CheckpointRow>, Error> {
        let text = format!("{CHECKPOINT} AND size >= $2 ORDER BY size LIMIT $3");
        let rows =
            sqlx::query(sqlx::AssertSqlSafe(text)).bind(origin).bind(signed(from)).bind(i64::from(limit));
        let rows = self.rows(rows).await?;
        rows.iter().map(checkpoint).collect::<Result<_, _>>().map_err(|error| inside(&error))
    }

    /// The newest signed head of a log.
    pub async fn newest_checkpoint(&self, origin: &str) -> Result<Option<CheckpointRow>, Error> {
        let text = format!("{CHECKPOINT} ORDER BY size DESC LIMIT 1");
        let row = self.row(sqlx::query(sqlx::AssertSqlSafe(text)).bind(origin)).await?;
        row.as_ref().map(checkpoint).transpose().map_err(|error| inside(&error))
    }

    /// The newest head of a log, from a size on, that others signed too: with a line of a name that is not the log's.
    pub async fn newest_cosigned(&self, origin: &str, from: u64) -> Result<Option<CheckpointRow>, Error> {
        let text = format!(
            "{CHECKPOINT} AND size >= $2 AND position('\u{2014}' in replace(signatures, '\u{2014} ' || origin || ' ', '')) > 0 ORDER BY size DESC LIMIT 1"
        );
        let row = sqlx::query(sqlx::AssertSqlSafe(text)).bind(origin).bind(signed(from));
        let row = self.row(row).await?;
        row.as_ref().map(checkpoint).transpose().map_err(|error| inside(&error))
    }

    /// The keys of all logs, oldest first in each.
    pub async fn log_keys(&self) -> Result<Vec<LogKey>, Error> {
        let rows = self.rows(sqlx::query(KEYS)).await?;
        rows.iter().map(log_key).collect::<Result<_, _>>().map_err(|error| inside(&error))
    }
}

fn tile(row: &PgRow) -> Result<(u64, Vec<u8>), sqlx::Error> {
    Ok((unsigned(row.try_get(0)?), row.try_get(1)?))
}

fn checkpoint(row: &PgRow) -> Result<CheckpointRow, sqlx::Error> {
    let size = unsigned(row.try_get(0)?);
    Ok(CheckpointRow { size, at: row.try_get(1)?, body: row.try_get(2)?, signatures: row.try_get(3)? })
}

fn log_key(row: &PgRow) -> Result<LogKey, sqlx::Error> {
    Ok(LogKey { origin: row.try_get(0)?, public: row.try_get(1)?, since: unsigned(row.try_get(2)?) })
}
