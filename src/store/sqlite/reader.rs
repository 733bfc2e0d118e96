//! Queries beside whoever writes.
//!
//! Read-only connections: the pool may be open while a gateway writes, in the same process or another. Each call is one
//! statement, so that no read transaction holds the WAL back.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions, SqliteRow};
use sqlx::{ConnectOptions as _, QueryBuilder, Row as _};

use super::super::{Bearing, ChangeQuery, ChangeRow, Error, Held, LogRow, Standing, StoredEntry, TokenRow};
use super::{
    ENTRY, SCHEMA, TOKENS, entry_at, inside, inspect, opening, signed, stored, target, token, unsigned,
};

const COLUMNS: &str = "SELECT row, kind, idx, id, at, target, seq, operation, caller, decision, would, outcome, settled, \
     warned, rules, pointers, search, outcome_row, settlement_row, origin FROM changes ";

/// Rows that are read before somebody takes them: a whole page, so that nobody waits for anybody within it.
const ROWS: usize = 1024;

/// Read-only connections for queries.
#[derive(Clone)]
pub struct Reader(pub(super) SqlitePool);

impl Reader {
    /// Opens a store that exists, beside whoever writes it.
    pub async fn open(path: &Path) -> Result<Self, Error> {
        if let Err(error) = std::fs::metadata(path) {
            let hint = match error.kind() {
                ErrorKind::NotFound => "does not exist; has a gateway run with this store?".to_owned(),
                _ => format!("{error}; read it as the user the gateway runs as"),
            };
            return Err(Error::Wait(format!("{}: {hint}", path.display())));
        }
        let what = match inspect(path).await? {
            None => "is empty; has a gateway run with this store?".to_owned(),
            Some(schema) if schema < SCHEMA => format!(
                "has schema {schema} and this version reads {SCHEMA}; a gateway of this version migrates it when it starts, after a `patchwarden backup`"
            ),
            Some(_) => String::new(),
        };
        if !what.is_empty() {
            return Err(Error::Wait(format!("{} {what}", path.display())));
        }
        let options = SqliteConnectOptions::new()
            .filename(path)
            .read_only(true)
            .busy_timeout(Duration::from_secs(2))
            .row_buffer_size(ROWS)
            .disable_statement_logging();
        let pool = SqlitePoolOptions::new().max_connections(4).acquire_timeout(Duration::from_secs(5));
        pool.connect_with(options).await.map(Self).map_err(|error| opening(path, &error))
    }

    /// A target's row.
    pub async fn target(&self, key: &str) -> Result<Standing, Error> {
        let mut connection = self.0.acquire().await.map_err(|error| inside(&error))?;
        let row = target(&mut connection, key).await?;
        Ok(Standing { row, now: None, leased_until: None })
    }

    /// Targets held by an unknown outcome, the longest held first.
    pub async fn held(&self, limit: usize) -> Result<Vec<Held>, Error> {
        let rows: Vec<(String, String, i64)> = sqlx::query_as(
            "SELECT key, open_origin, open_idx FROM targets WHERE open_unknown = 1 AND open_idx IS NOT NULL \
             ORDER BY open_since LIMIT ?",
        )
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.0)
        .await
        .map_err(|error| inside(&error))?;
        Ok(rows
            .into_iter()
            .map(|(key, origin, index)| Held { key, open: (origin, unsigned(index)) })
            .collect())
    }

    /// One entry with its payload.
    pub async fn entry(&self, origin: &str, index: u64) -> Result<Option<StoredEntry>, Error> {
        let mut connection = self.0.acquire().await.map_err(|error| inside(&error))?;
        entry_at(&mut connection, origin, index).await
    }

    /// The outcome or settlement of an intent.
    pub async fn entry_of(&self, of: (&str, u64), kind: &str) -> Result<Option<StoredEntry>, Error> {
        let text = format!(
            "{ENTRY} WHERE e.of_origin = ? AND e.of_idx = ? AND e.kind = ? AND e.kind IN ('outcome', 'settlement')"
        );
        let query = sqlx::query(sqlx::AssertSqlSafe(text));
        let row = query.bind(of.0).bind(signed(of.1)).bind(kind).fetch_optional(&self.0).await;
        row.and_then(|row| row.as_ref().map(stored).transpose()).map_err(|error| inside(&error))
    }

    /// Entries by row.
    pub async fn entries(&self, rows: &[i64]) -> Result<Vec<StoredEntry>, Error> {
        let mut query = QueryBuilder::new(ENTRY);
        query.push("WHERE e.row IN (");
        let mut list = query.separated(", ");
        for row in rows {
            list.push_bind(*row);
        }
        query.push(")");
        let rows = query.build().fetch_all(&self.0).await.map_err(|error| inside(&error))?;
        rows.iter().map(stored).collect::<Result<_, _>>().map_err(|error| inside(&error))
    }

    /// Entries of a kind that concerns the gateways themselves, below a row, the newest first.
    pub async fn entries_of_gateways(
        &self,
        kind: &str,
        before: i64,
        limit: i64,
    ) -> Result<Vec<StoredEntry>, Error> {
        let text = format!(
            "{ENTRY} WHERE e.row IN (SELECT row FROM entries INDEXED BY entries_of_gateways \
             WHERE kind = ? AND kind IN ('lifecycle', 'access') AND row < ? ORDER BY row DESC LIMIT ?) ORDER BY e.row DESC"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(text)).bind(kind).bind(before).bind(limit);
        let rows = rows.fetch_all(&self.0).await.map_err(|error| inside(&error))?;
        rows.iter().map(stored).collect::<Result<_, _>>().map_err(|error| inside(&error))
    }

    /// Payloads by row; what retention removed is not there.
    pub async fn payloads(&self, rows: &[i64]) -> Result<Vec<(i64, Vec<u8>)>, Error> {
        let mut query = QueryBuilder::new("SELECT row, body FROM payloads WHERE row IN (");
        let mut list = query.separated(", ");
        for row in rows {
            list.push_bind(*row);
        }
        query.push(")");
        query.build_query_as().fetch_all(&self.0).await.map_err(|error| inside(&error))
    }

    /// At most `candidates` rows of the projection, in time order, that follow `query.after`.
    pub async fn changes(&self, query: &ChangeQuery, candidates: usize) -> Result<Vec<ChangeRow>, Error> {
        let mut text = QueryBuilder::new(
            "SELECT row, kind, idx, id, at, target, seq, operation, caller, decision, would, outcome, settled, warned, ",
        );
        text.push(if query.lean { "'', '', ''" } else { "rules, pointers, search" });
        text.push(", outcome_row, settlement_row, origin FROM changes WHERE ");
        text.push(query.kinds.condition());
        if let Some(target) = &query.target {
            text.push(" AND target = ").push_bind(target);
        }
        if let Some(since) = query.since {
            text.push(" AND at >= ").push_bind(since);
        }
        if let Some(until) = query.until {
            text.push(" AND at < ").push_bind(until);
        }
        if let Some((at, id)) = &query.after {
            text.push(if query.ascending { " AND (at, id) > (" } else { " AND (at, id) < (" });
            text.push_bind(at).push(", ").push_bind(id).push(")");
        }
        text.push(if query.ascending {
            " ORDER BY at, id LIMIT "
        } else {
            " ORDER BY at DESC, id DESC LIMIT "
        });
        text.push_bind(i64::try_from(candidates).unwrap_or(i64::MAX));
        let rows = text.build().fetch_all(&self.0).await.map_err(|error| inside(&error))?;
        rows.iter().map(change).collect::<Result<_, _>>().map_err(|error| inside(&error))
    }

    /// One row of the projection by id, or the newest attempt.
    pub async fn change(&self, id: Option<&str>) -> Result<Option<ChangeRow>, Error> {
        let mut text = QueryBuilder::new(COLUMNS);
        match id {
            Some(id) => text.push("WHERE id = ").push_bind(id),
            None => text.push("WHERE kind = 'attempt' ORDER BY at DESC, id DESC LIMIT 1"),
        };
        let row = text.build().fetch_optional(&self.0).await;
        row.and_then(|row| row.as_ref().map(change).transpose()).map_err(|error| inside(&error))
    }

    /// How many rows the projection has up to a row of the log.
    pub async fn change_count(&self, upto: i64) -> Result<u64, Error> {
        let count = sqlx::query_scalar("SELECT COUNT(*) FROM changes WHERE row <= ?").bind(upto);
        let count = count.fetch_one(&self.0).await;
        count.map(unsigned).map_err(|error| inside(&error))
    }

    /// The rows of the projection with that number, one a log.
    pub async fn numbered(&self, index: u64) -> Result<Vec<ChangeRow>, Error> {
        let places = sqlx::query_scalar::<_, i64>(
            "SELECT row FROM entries WHERE origin IN (SELECT origin FROM log_head) AND idx = ?",
        );
        let places = places.bind(signed(index)).fetch_all(&self.0).await.map_err(|error| inside(&error))?;
        let mut found = Vec::new();
        for place in places {
            let mut text = QueryBuilder::new(COLUMNS);
            text.push("WHERE row = ").push_bind(place);
            let row = text.build().fetch_optional(&self.0).await.map_err(|error| inside(&error))?;
            found.extend(row.as_ref().map(change).transpose().map_err(|error| inside(&error))?);
        }
        Ok(found)
    }

    /// Entries of a log from a number on, at most so many.
    pub async fn entries_of(&self, origin: &str, from: u64, limit: u32) -> Result<Vec<StoredEntry>, Error> {
        let text = format!("{ENTRY} WHERE e.origin = ? AND e.idx >= ? ORDER BY e.idx LIMIT ?");
        let rows = sqlx::query(sqlx::AssertSqlSafe(text)).bind(origin).bind(signed(from)).bind(limit);
        let rows = rows.fetch_all(&self.0).await.map_err(|error| inside(&error))?;
        rows.iter().map(stored).collect::<Result<_, _>>().map_err(|error| inside(&error))
    }

    /// A constant of every log that has it.
    pub async fn meta(&self, key: &str) -> Result<Vec<(String, String)>, Error> {
        let text = "SELECT origin, CAST(value AS TEXT) FROM log_meta WHERE key = ? ORDER BY origin";
        sqlx::query_as(text).bind(key).fetch_all(&self.0).await.map_err(|error| inside(&error))
    }

    /// Entries that still have a payload, by row, at most 500.
    pub async fn bearing(&self, from: i64, upto: i64) -> Result<Vec<Bearing>, Error> {
        // Whatever the planner thinks: there are fewer payloads than entries.
        let query = sqlx::query(
            "SELECT e.row, e.origin, e.idx, e.kind, e.of_origin, e.of_idx FROM payloads p CROSS JOIN entries e ON e.row = p.row \
             WHERE p.row BETWEEN ? AND ? ORDER BY p.row LIMIT 500",
        );
        let rows = query.bind(from).bind(upto).fetch_all(&self.0).await.map_err(|error| inside(&error))?;
        let read = |row: &SqliteRow| {
            let of: (Option<String>, Option<i64>) = (row.try_get(4)?, row.try_get(5)?);
            Ok(Bearing {
                row: row.try_get(0)?,
                origin: row.try_get(1)?,
                index: unsigned(row.try_get(2)?),
                kind: row.try_get(3)?,
                of: of.0.zip(of.1.map(unsigned)),
            })
        };
        rows.iter().map(read).collect::<Result<_, _>>().map_err(|error: sqlx::Error| inside(&error))
    }

    /// The rows of entries that are there.
    pub async fn rows_at(&self, places: &[(String, u64)]) -> Result<Vec<((String, u64), i64)>, Error> {
        let mut found = Vec::with_capacity(places.len());
        for (origin, index) in places {
            let row = sqlx::query_scalar("SELECT row FROM entries WHERE origin = ? AND idx = ?");
            let row = row.bind(origin).bind(signed(*index)).fetch_optional(&self.0).await;
            found.extend(row.map_err(|error| inside(&error))?.map(|row| ((origin.clone(), *index), row)));
        }
        Ok(found)
    }

    /// Rows of the projection.
    pub async fn changes_at(&self, rows: &[i64]) -> Result<Vec<ChangeRow>, Error> {
        let mut query = QueryBuilder::new(COLUMNS);
        query.push("WHERE row IN (");
        let mut list = query.separated(", ");
        for row in rows {
            list.push_bind(*row);
        }
        query.push(")");
        let rows = query.build().fetch_all(&self.0).await.map_err(|error| inside(&error))?;
        rows.iter().map(change).collect::<Result<_, _>>().map_err(|error| inside(&error))
    }

    /// The rows of each target's newest governed change that was applied, and of its newest drift.
    pub async fn newest_stated(&self, targets: &[String]) -> Result<Vec<i64>, Error> {
        let mut found = Vec::with_capacity(targets.len());
        for target in targets {
            for text in [
                "SELECT row FROM changes WHERE target = ? AND seq IS NOT NULL AND (outcome = 'applied' OR settled = 'applied') \
                 ORDER BY seq DESC LIMIT 1",
                "SELECT row FROM changes WHERE target = ? AND kind = 'drift' ORDER BY at DESC, id DESC LIMIT 1",
            ] {
                let row = sqlx::query_scalar::<_, i64>(text).bind(target).fetch_optional(&self.0).await;
                found.extend(row.map_err(|error| inside(&error))?);
            }
        }
        Ok(found)
    }

    /// Pages on the free list.
    pub async fn free_pages(&self) -> Result<u64, Error> {
        let free = sqlx::query_scalar("PRAGMA freelist_count").fetch_one(&self.0).await;
        free.map(unsigned).map_err(|error| inside(&error))
    }

    /// Every log, by name, all at one moment.
    pub async fn logs(&self) -> Result<Vec<LogRow>, Error> {
        let read = async {
            let logs: Vec<(String, i64, Option<String>, Vec<u8>)> = sqlx::query_as(
                "SELECT h.origin, h.size, m.value, h.frontier FROM log_head h \
                 LEFT JOIN log_meta m ON m.origin = h.origin AND m.key = 'closed' ORDER BY h.origin",
            )
            .fetch_all(&self.0)
            .await?;
            let pending = "SELECT origin, COUNT(*) FROM changes WHERE outcome = 'pending' GROUP BY origin";
            let pending: Vec<(String, i64)> = sqlx::query_as(pending).fetch_all(&self.0).await?;
            Ok((logs, pending.into_iter().collect::<HashMap<_, _>>()))
        };
        let (logs, pending) = read.await.map_err(|error: sqlx::Error| inside(&error))?;
        let log = |(origin, size, succeeded_by, frontier): (String, i64, Option<String>, Vec<u8>)| {
            let pending = unsigned(pending.get(&origin).copied().unwrap_or(0));
            LogRow { origin, size: unsigned(size), frontier, leased_for: None, pending, succeeded_by }
        };
        Ok(logs.into_iter().map(log).collect())
    }

    /// The text of a bundle that was in force.
    pub async fn bundle(&self, digest: &str) -> Result<Option<Vec<u8>>, Error> {
        let text = sqlx::query_scalar("SELECT text FROM bundles WHERE digest = ?").bind(digest);
        text.fetch_optional(&self.0).await.map_err(|error| inside(&error))
    }

    /// All admin tokens, by name.
    pub async fn tokens(&self) -> Result<Vec<TokenRow>, Error> {
        let rows = sqlx::query(TOKENS).fetch_all(&self.0).await.map_err(|error| inside(&error))?;
        rows.iter().map(token).collect::<Result<_, _>>().map_err(|error| inside(&error))
    }

    /// Closes the connections.
    pub async fn close(&self) {
        self.0.close().await;
    }
}

fn change(row: &SqliteRow) -> Result<ChangeRow, sqlx::Error> {
    Ok(ChangeRow {
        row: row.try_get(0)?,
        kind: row.try_get(1)?,
        index: unsigned(row.try_get(2)?),
        id: row.try_get(3)?,
        at: row.try_get(4)?,
        target: row.try_get(5)?,
        seq: row.try_get::<Option<i64>, _>(6)?.map(unsigned),
        operation: row.try_get(7)?,
        caller: row.try_get(8)?,
        decision: row.try_get(9)?,
        would: row.try_get(10)?,
        outcome: row.try_get(11)?,
        settled: row.try_get(12)?,
        warned: row.try_get(13)?,
        rules: row.try_get(14)?,
        pointers: row.try_get(15)?,
        search: row.try_get(16)?,
        outcome_row: row.try_get(17)?,
        settlement_row: row.try_get(18)?,
        origin: row.try_get(19)?,
    })
}
