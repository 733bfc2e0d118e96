//! Queries beside whoever writes, by this gateway or another.
//!
//! A small pool; each call is one read-only transaction, so that it works through a pooler, or one statement where there is
//! none.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::postgres::{PgPool, PgPoolOptions, PgRow, Postgres};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Connection as _, QueryBuilder, Row as _};

use super::super::{Bearing, ChangeQuery, ChangeRow, Error, Held, LogRow, Standing, StoredEntry, TokenRow};
use super::{
    Arguments, ENTRY, Server, TOKENS, inside, setup, signed, stored, target, token, unsigned, within,
};

const COLUMNS: &str = "SELECT row, kind, idx, id, at, target, seq, operation, caller, decision, would, outcome, settled, \
     warned, rules, pointers, search, outcome_row, settlement_row, origin FROM changes ";

/// Read-only connections for queries.
#[derive(Clone)]
pub struct Reader {
    pool: PgPool,
    server: Box<Server>,
}

impl Reader {
    /// Opens a store that exists, beside whoever writes it.
    pub async fn open(server: &Server) -> Result<Self, Error> {
        let mut connection = server.connect().await?;
        within(sqlx::raw_sql("BEGIN READ ONLY").execute(&mut connection)).await?;
        let checked = setup::check(&mut connection, false).await;
        let _ = tokio::time::timeout(Duration::from_millis(500), connection.close()).await;
        checked?;
        let pool = PgPoolOptions::new().max_connections(4).acquire_timeout(Duration::from_secs(5));
        let pool = pool.connect_lazy_with(server.options()?);
        Ok(Self { pool, server: Box::new(server.clone()) })
    }

    pub(super) async fn rows(&self, query: Query<'_, Postgres, Arguments>) -> Result<Vec<PgRow>, Error> {
        // With none idle a new connection is made, and a password may have been rotated since the last one.
        if self.pool.num_idle() == 0 {
            self.pool.set_connect_options(self.server.options()?);
        }
        if self.server.prepared() {
            return within(query.fetch_all(&self.pool)).await;
        }
        let read = async {
            let mut transaction = self.pool.begin_with("BEGIN READ ONLY").await?;
            let rows = query.persistent(false).fetch_all(&mut *transaction).await?;
            transaction.commit().await?;
            Ok(rows)
        };
        within(read).await
    }

    pub(super) async fn row(&self, query: Query<'_, Postgres, Arguments>) -> Result<Option<PgRow>, Error> {
        Ok(self.rows(query).await?.into_iter().next())
    }

    /// A target's row, and whether who holds it is alive.
    pub async fn target(&self, key: &str) -> Result<Standing, Error> {
        let query = sqlx::query(
            "SELECT key, seq, turn, open_origin, open_idx, open_since, open_unknown, revision, patchwarden_now(), \
             (SELECT leased_until FROM log_head WHERE origin = t.open_origin) FROM targets t WHERE key = $1",
        );
        let Some(row) = self.row(query.bind(key)).await? else { return Ok(Standing::default()) };
        let read = || {
            Ok::<_, sqlx::Error>(Standing {
                row: target(&row)?,
                now: row.try_get(8)?,
                leased_until: row.try_get(9)?,
            })
        };
        read().map_err(|error| inside(&error))
    }

    /// Targets held by an unknown outcome, the longest held first.
    pub async fn held(&self, limit: usize) -> Result<Vec<Held>, Error> {
        let query = sqlx::query(
            "SELECT key, open_origin, open_idx FROM targets WHERE open_unknown AND open_idx IS NOT NULL \
             ORDER BY open_since LIMIT $1",
        );
        let rows = self.rows(query.bind(i64::try_from(limit).unwrap_or(i64::MAX))).await?;
        let read = |row: &PgRow| {
            let open = (row.try_get(1)?, unsigned(row.try_get(2)?));
            Ok::<_, sqlx::Error>(Held { key: row.try_get(0)?, open })
        };
        rows.iter().map(read).collect::<Result<_, _>>().map_err(|error| inside(&error))
    }

    /// One entry with its payload.
    pub async fn entry(&self, origin: &str, index: u64) -> Result<Option<StoredEntry>, Error> {
        let text = format!("{ENTRY} WHERE e.origin = $1 AND e.idx = $2");
        let row = self.row(sqlx::query(AssertSqlSafe(text)).bind(origin).bind(signed(index))).await?;
        row.as_ref().map(stored).transpose().map_err(|error| inside(&error))
    }

    /// The outcome or settlement of an intent.
    pub async fn entry_of(&self, of: (&str, u64), kind: &str) -> Result<Option<StoredEntry>, Error> {
        let text = format!(
            "{ENTRY} WHERE e.of_origin = $1 AND e.of_idx = $2 AND e.kind = $3 AND e.kind IN ('outcome', 'settlement')"
        );
        let query = sqlx::query(AssertSqlSafe(text)).bind(of.0).bind(signed(of.1)).bind(kind);
        self.row(query).await?.as_ref().map(stored).transpose().map_err(|error| inside(&error))
    }

    /// Entries by row.
    pub async fn entries(&self, rows: &[i64]) -> Result<Vec<StoredEntry>, Error> {
        let text = format!("{ENTRY} WHERE e.row = ANY($1)");
        let found = self.rows(sqlx::query(AssertSqlSafe(text)).bind(rows)).await?;
        found.iter().map(stored).collect::<Result<_, _>>().map_err(|error| inside(&error))
    }

    /// Entries of a kind that concerns the gateways themselves, below a row, the newest first.
    pub async fn entries_of_gateways(
        &self,
        kind: &str,
        before: i64,
        limit: i64,
    ) -> Result<Vec<StoredEntry>, Error> {
        let text = format!(
            "{ENTRY} WHERE e.kind = $1 AND e.kind IN ('lifecycle', 'access') AND e.row < $2 ORDER BY e.row DESC LIMIT $3"
        );
        let found = self.rows(sqlx::query(AssertSqlSafe(text)).bind(kind).bind(before).bind(limit)).await?;
        found.iter().map(stored).collect::<Result<_, _>>().map_err(|error| inside(&error))
    }

    /// Payloads by row; what retention removed is not there.
    pub async fn payloads(&self, rows: &[i64]) -> Result<Vec<(i64, Vec<u8>)>, Error> {
        let found =
            self.rows(sqlx::query("SELECT row, body FROM payloads WHERE row = ANY($1)").bind(rows)).await?;
        let read = |row: &PgRow| Ok::<_, sqlx::Error>((row.try_get(0)?, row.try_get(1)?));
        found.iter().map(read).collect::<Result<_, _>>().map_err(|error| inside(&error))
    }

    /// At most `candidates` rows of the projection, in time order, that follow `query.after`.
    pub async fn changes(&self, query: &ChangeQuery, candidates: usize) -> Result<Vec<ChangeRow>, Error> {
        let mut text = QueryBuilder::<Postgres>::new(
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
        changes(&self.rows(text.build()).await?)
    }

    /// One row of the projection by id, or the newest attempt.
    pub async fn change(&self, id: Option<&str>) -> Result<Option<ChangeRow>, Error> {
        let mut text = QueryBuilder::<Postgres>::new(COLUMNS);
        match id {
            Some(id) => text.push("WHERE id = ").push_bind(id),
            None => text.push("WHERE kind = 'attempt' ORDER BY at DESC, id DESC LIMIT 1"),
        };
        Ok(changes(&self.rows(text.build()).await?)?.pop())
    }

    /// How many rows the projection has up to a row of the log.
    pub async fn change_count(&self, upto: i64) -> Result<u64, Error> {
        let row = self.row(sqlx::query("SELECT COUNT(*) FROM changes WHERE row <= $1").bind(upto)).await?;
        let count = row.map(|row| row.try_get(0)).transpose().map_err(|error| inside(&error))?;
        Ok(unsigned(count.unwrap_or(0)))
    }

    /// The rows of the projection with that number, one a log.
    pub async fn numbered(&self, index: u64) -> Result<Vec<ChangeRow>, Error> {
        let places = sqlx::query(
            "SELECT row FROM entries WHERE origin = ANY(ARRAY(SELECT origin FROM log_head)) AND idx = $1",
        );
        let read = |row: &PgRow| row.try_get::<i64, _>(0);
        let places: Vec<i64> = self
            .rows(places.bind(signed(index)))
            .await?
            .iter()
            .map(read)
            .collect::<Result<_, _>>()
            .map_err(|error| inside(&error))?;
        let mut text = QueryBuilder::<Postgres>::new(COLUMNS);
        text.push("WHERE row = ANY(").push_bind(places).push(") ORDER BY row");
        changes(&self.rows(text.build()).await?)
    }

    /// Entries of a log from a number on, at most so many.
    pub async fn entries_of(&self, origin: &str, from: u64, limit: u32) -> Result<Vec<StoredEntry>, Error> {
        let text = format!("{ENTRY} WHERE e.origin = $1 AND e.idx >= $2 ORDER BY e.idx LIMIT $3");
        let found = self
            .rows(sqlx::query(AssertSqlSafe(text)).bind(origin).bind(signed(from)).bind(i64::from(limit)))
            .await?;
        found.iter().map(stored).collect::<Result<_, _>>().map_err(|error| inside(&error))
    }

    /// A constant of every log that has it.
    pub async fn meta(&self, key: &str) -> Result<Vec<(String, String)>, Error> {
        let query = sqlx::query("SELECT origin, value FROM log_meta WHERE key = $1 ORDER BY origin");
        let read = |row: &PgRow| Ok((row.try_get(0)?, row.try_get(1)?));
        let found = self.rows(query.bind(key)).await?;
        found.iter().map(read).collect::<Result<_, _>>().map_err(|error: sqlx::Error| inside(&error))
    }

    /// Entries that still have a payload, by row, at most 500.
    pub async fn bearing(&self, from: i64, upto: i64) -> Result<Vec<Bearing>, Error> {
        let query = sqlx::query(
            "SELECT e.row, e.origin, e.idx, e.kind, e.of_origin, e.of_idx FROM payloads p JOIN entries e ON e.row = p.row \
             WHERE p.row BETWEEN $1 AND $2 ORDER BY p.row LIMIT 500",
        );
        let read = |row: &PgRow| {
            let of: (Option<String>, Option<i64>) = (row.try_get(4)?, row.try_get(5)?);
            Ok(Bearing {
                row: row.try_get(0)?,
                origin: row.try_get(1)?,
                index: unsigned(row.try_get(2)?),
                kind: row.try_get(3)?,
                of: of.0.zip(of.1.map(unsigned)),
            })
        };
        let found = self.rows(query.bind(from).bind(upto)).await?;
        found.iter().map(read).collect::<Result<_, _>>().map_err(|error: sqlx::Error| inside(&error))
    }

    /// The rows of entries that are there.
    pub async fn rows_at(&self, places: &[(String, u64)]) -> Result<Vec<((String, u64), i64)>, Error> {
        let origins: Vec<&str> = places.iter().map(|(origin, _)| &**origin).collect();
        let indices: Vec<i64> = places.iter().map(|(_, index)| signed(*index)).collect();
        let query = sqlx::query(
            "SELECT e.origin, e.idx, e.row FROM UNNEST($1::text[], $2::bigint[]) AS u (origin, idx) \
             JOIN entries e ON e.origin = u.origin AND e.idx = u.idx",
        );
        let read = |row: &PgRow| Ok(((row.try_get(0)?, unsigned(row.try_get(1)?)), row.try_get(2)?));
        let found = self.rows(query.bind(origins).bind(indices)).await?;
        found.iter().map(read).collect::<Result<_, _>>().map_err(|error: sqlx::Error| inside(&error))
    }

    /// Rows of the projection.
    pub async fn changes_at(&self, rows: &[i64]) -> Result<Vec<ChangeRow>, Error> {
        let columns = COLUMNS;
        let text = format!("{columns} WHERE row = ANY($1)");
        changes(&self.rows(sqlx::query(AssertSqlSafe(text)).bind(rows)).await?)
    }

    /// The rows of each target's newest governed change that was applied, and of its newest drift.
    pub async fn newest_stated(&self, targets: &[String]) -> Result<Vec<i64>, Error> {
        let query = sqlx::query(
            "SELECT DISTINCT ON (target, kind) row FROM changes WHERE target = ANY($1) AND (kind = 'drift' \
             OR (seq IS NOT NULL AND (outcome = 'applied' OR settled = 'applied'))) ORDER BY target, kind, seq DESC, at DESC, id DESC",
        );
        let found = self.rows(query.bind(targets)).await?;
        let read = |row: &PgRow| row.try_get(0);
        found.iter().map(read).collect::<Result<_, _>>().map_err(|error| inside(&error))
    }

    /// Every log, by name, all at one moment.
    pub async fn logs(&self) -> Result<Vec<LogRow>, Error> {
        let logs = sqlx::query(
            "SELECT h.origin, h.size, h.leased_until - patchwarden_now(), m.value, h.frontier FROM log_head h \
             LEFT JOIN log_meta m ON m.origin = h.origin AND m.key = 'closed' ORDER BY h.origin COLLATE \"C\"",
        );
        let logs = self.rows(logs).await?;
        let pending = "SELECT origin, COUNT(*) FROM changes WHERE outcome = 'pending' GROUP BY origin";
        let pending = self.rows(sqlx::query(pending)).await?;
        let read = || {
            let pending: HashMap<String, i64> = pending
                .iter()
                .map(|row| Ok::<_, sqlx::Error>((row.try_get(0)?, row.try_get(1)?)))
                .collect::<Result<_, _>>()?;
            let log = |row: &PgRow| {
                let origin: String = row.try_get(0)?;
                let pending = unsigned(pending.get(&origin).copied().unwrap_or(0));
                let (size, leased_for) = (unsigned(row.try_get(1)?), Some(row.try_get(2)?));
                let (succeeded_by, frontier) = (row.try_get(3)?, row.try_get(4)?);
                Ok(LogRow { origin, size, frontier, leased_for, pending, succeeded_by })
            };
            logs.iter().map(log).collect::<Result<_, _>>()
        };
        read().map_err(|error: sqlx::Error| inside(&error))
    }

    /// The text of a bundle that was in force.
    pub async fn bundle(&self, digest: &str) -> Result<Option<Vec<u8>>, Error> {
        let row = self.row(sqlx::query("SELECT text FROM bundles WHERE digest = $1").bind(digest)).await?;
        row.map(|row| row.try_get(0)).transpose().map_err(|error| inside(&error))
    }

    /// All admin tokens, by name.
    pub async fn tokens(&self) -> Result<Vec<TokenRow>, Error> {
        let rows = self.rows(sqlx::query(TOKENS)).await?;
        rows.iter().map(token).collect::<Result<_, _>>().map_err(|error| inside(&error))
    }

    /// Closes the connections.
    pub async fn close(&self) {
        let _ = tokio::time::timeout(Duration::from_millis(500), self.pool.close()).await;
    }
}

fn changes(rows: &[PgRow]) -> Result<Vec<ChangeRow>, Error> {
    rows.iter().map(change).collect::<Result<_, _>>().map_err(|error| inside(&error))
}

fn change(row: &PgRow) -> Result<ChangeRow, sqlx::Error> {
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
