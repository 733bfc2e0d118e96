//! The PostgreSQL dialect: one history for several gateways.
//!
//! Every statement runs in a transaction and, unless `store.prepared_statements` says otherwise, unnamed, so that a pooler
//! may hand each transaction to another connection. A batch is a few statements whatever its size: rows travel as arrays.
//! A gateway appends to its own log under an epoch, and counts as alive until its lease ends by the database's clock. Only
//! a COMMIT leaves a transaction in doubt: whatever breaks before it took nothing.

mod reader;
mod server;
mod setup;
mod tree;

use std::time::Duration;

use sqlx::postgres::{PgConnection, PgRow, Postgres};
use sqlx::query::{Query, QueryAs, QueryScalar};
use sqlx::{Connection as _, Row as _};

use super::{
    Abandoned, Beside, ChangeRow, ChangeUpdate, Claim, EntryRow, Error, Head, StoredEntry, TargetRow, Tenure,
    TokenRow,
};

pub(super) use reader::Reader;
pub use server::Server;
pub use setup::{grants, migrate};

/// No answer for this long: the connection is given up.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a statement waits for a row another gateway has locked, and how long a gateway that stands still may keep
/// others waiting.
const BEGIN: &str =
    "BEGIN; SET LOCAL lock_timeout = '1s'; SET LOCAL idle_in_transaction_session_timeout = '3s'";
/// A time limit that fires while a standby is awaited would turn "not yet replicated" into "committed".
const COMMIT: &str = "SET LOCAL statement_timeout = 0; COMMIT";

const ENTRY: &str = "SELECT e.row, e.origin, e.idx, e.kind, e.of_origin, e.of_idx, e.envelope, p.body, p.salt \
                     FROM entries e LEFT JOIN payloads p ON p.row = e.row ";
const TARGET: &str = "SELECT key, seq, turn, open_origin, open_idx, open_since, open_unknown, revision, patchwarden_now() FROM targets ";

const TOKENS: &str =
    "SELECT name, role, hash, created_at, revoked_at FROM admin_tokens ORDER BY name COLLATE \"C\"";

type Arguments = sqlx::postgres::PgArguments;

/// The writer's connection.
pub struct Database {
    connection: PgConnection,
    /// Whether statements are prepared by name.
    prepared: bool,
}

impl Database {
    /// Connects, and looks whether everything is as the log needs it.
    pub async fn open(server: &Server) -> Result<Self, Error> {
        let connection = server.connect().await?;
        let mut database = Self { connection, prepared: server.prepared() };
        database.begin().await?;
        let checked = setup::check(&mut database.connection, true).await;
        database.rollback().await?;
        checked.map(|()| database)
    }

    /// Starts a transaction.
    pub async fn begin(&mut self) -> Result<(), Error> {
        within(sqlx::raw_sql(BEGIN).execute(&mut self.connection)).await.map(drop)
    }

    /// Ends it. Any error leaves it in doubt.
    pub async fn commit(&mut self) -> Result<(), Error> {
        let done = within(sqlx::raw_sql(COMMIT).execute(&mut self.connection)).await;
        done.map(drop).map_err(|error| Error::InDoubt(error.to_string()))
    }

    /// Takes it back.
    pub async fn rollback(&mut self) -> Result<(), Error> {
        within(sqlx::raw_sql("ROLLBACK").execute(&mut self.connection)).await.map(drop)
    }

    /// Closes the connection.
    pub async fn close(self) {
        let _ = tokio::time::timeout(Duration::from_millis(500), self.connection.close()).await;
    }

    async fn run(&mut self, query: Query<'_, Postgres, Arguments>) -> Result<u64, Error> {
        let done = within(query.persistent(self.prepared).execute(&mut self.connection)).await?;
        Ok(done.rows_affected())
    }

    async fn rows(&mut self, query: Query<'_, Postgres, Arguments>) -> Result<Vec<PgRow>, Error> {
        within(query.persistent(self.prepared).fetch_all(&mut self.connection)).await
    }

    async fn all<T>(&mut self, query: QueryAs<'_, Postgres, T, Arguments>) -> Result<Vec<T>, Error>
    where
        T: Send + Unpin + for<'r> sqlx::FromRow<'r, PgRow>,
    {
        within(query.persistent(self.prepared).fetch_all(&mut self.connection)).await
    }

    async fn one<T>(&mut self, query: QueryScalar<'_, Postgres, T, Arguments>) -> Result<Option<T>, Error>
    where
        T: Send + Unpin,
        (T,): for<'r> sqlx::FromRow<'r, PgRow>,
    {
        within(query.persistent(self.prepared).fetch_optional(&mut self.connection)).await
    }

    /// A constant of every log that has it.
    pub async fn meta(&mut self, key: &str) -> Result<Vec<(String, String)>, Error> {
        let query = sqlx::query_as("SELECT origin, value FROM log_meta WHERE key = $1 ORDER BY origin");
        self.all(query.bind(key)).await
    }

    /// Writes a constant of a log, once.
    pub async fn put_meta(&mut self, origin: &str, key: &str, value: &str) -> Result<(), Error> {
        let query = sqlx::query("INSERT INTO log_meta (origin, key, value) VALUES ($1, $2, $3)");
        self.run(query.bind(origin).bind(key).bind(value)).await.map(drop)
    }

    /// Writes a constant of the whole store unless it has one; returns the one it has.
    pub async fn claim_meta(&mut self, key: &str, value: &str) -> Result<String, Error> {
        let put = "INSERT INTO log_meta (origin, key, value) VALUES ('', $1, $2) ON CONFLICT DO NOTHING";
        self.run(sqlx::query(put).bind(key).bind(value)).await?;
        let got = sqlx::query_as("SELECT value FROM log_meta WHERE origin = '' AND key = $1");
        let got: Vec<(String,)> = self.all(got.bind(key)).await?;
        got.into_iter()
            .next()
            .map(|(value,)| value)
            .ok_or_else(|| Error::Wait(format!("the store's {key} is gone")))
    }

    /// The end of a log.
    pub async fn head(&mut self, origin: &str) -> Result<Option<Head>, Error> {
        let query = sqlx::query_as("SELECT size, frontier, epoch FROM log_head WHERE origin = $1");
        let found: Vec<(i64, Vec<u8>, i64)> = self.all(query.bind(origin)).await?;
        let head = |(size, frontier, epoch)| Head { size: unsigned(size), frontier, epoch };
        Ok(found.into_iter().next().map(head))
    }

    /// Makes the end of a new log.
    pub async fn new_head(&mut self, origin: &str) -> Result<(), Error> {
        let query = sqlx::query("INSERT INTO log_head (origin, size, frontier, epoch) VALUES ($1, 0, '', 1)");
        self.run(query.bind(origin)).await.map(drop)
    }

    /// Makes this process the one that appends to a log. Waits for a transaction that still holds its head.
    pub async fn take(&mut self, origin: &str, mine: Option<i64>, claim: &Claim) -> Result<Tenure, Error> {
        self.begin().await?;
        let query = sqlx::query_scalar(
            "UPDATE log_head SET epoch = CASE WHEN epoch = $2 THEN epoch ELSE epoch + 1 END, \
             leased_until = patchwarden_now() + $3, holder = $4 \
             WHERE origin = $1 AND (epoch = $2 OR leased_until <= patchwarden_now() OR holder IN ($4, $5)) \
             RETURNING epoch",
        );
        let lease = claim.lease;
        let query = query.bind(origin).bind(mine.unwrap_or(-1)).bind(micros(lease));
        let epoch: Option<i64> = self.one(query.bind(&claim.holder).bind(&claim.before)).await?;
        let query =
            sqlx::query_scalar("SELECT leased_until - patchwarden_now() FROM log_head WHERE origin = $1");
        let rest: Option<i64> = self.one(query.bind(origin)).await?;
        self.commit().await.map_err(|error| Error::Wait(error.to_string()))?;
        epoch.map(|epoch| Tenure { epoch, lease }).ok_or_else(|| {
            let seconds = rest.unwrap_or(0).max(0) / 1_000_000 + 1;
            Error::Wait(format!(
                "the log {origin} is being written by another process with the same keys, or was until lately; its lease ends in {seconds} s unless it lives"
            ))
        })
    }

    /// Lengthens a lease; a length of zero ends it. `false`: somebody else has taken the log over.
    pub async fn renew(&mut self, origin: &str, tenure: Tenure) -> Result<bool, Error> {
        self.begin().await?;
        let query = sqlx::query(
            "UPDATE log_head SET leased_until = patchwarden_now() + $3 WHERE origin = $1 AND epoch = $2",
        );
        let renewed = self.run(query.bind(origin).bind(tenure.epoch).bind(micros(tenure.lease))).await? == 1;
        self.commit().await.map_err(|error| Error::Wait(error.to_string()))?;
        Ok(renewed)
    }

    /// Moves the end of a log and renews the lease. `false`: somebody else appended.
    pub async fn advance(
        &mut self,
        origin: &str,
        from: u64,
        to: &Head,
        lease: Duration,
    ) -> Result<bool, Error> {
        let query = sqlx::query(
            "UPDATE log_head SET size = $1, frontier = $2, leased_until = patchwarden_now() + $6 \
             WHERE origin = $3 AND size = $4 AND epoch = $5",
        );
        let query = query.bind(signed(to.size)).bind(&to.frontier).bind(origin).bind(signed(from));
        Ok(self.run(query.bind(to.epoch).bind(micros(lease))).await? == 1)
    }

    /// Appends entries and their payloads; returns their rows.
    pub async fn append(&mut self, origin: &str, entries: &[EntryRow]) -> Result<Vec<i64>, Error> {
        let indices: Vec<i64> = entries.iter().map(|entry| signed(entry.index)).collect();
        let kinds: Vec<&str> = entries.iter().map(|entry| &*entry.kind).collect();
        let of = |entry: &EntryRow| entry.of.as_ref().map(|of| signed(of.1));
        let of_origins: Vec<Option<&str>> =
            entries.iter().map(|entry| entry.of.as_ref().map(|of| of.0.as_str())).collect();
        let of_indices: Vec<Option<i64>> = entries.iter().map(of).collect();
        let envelopes: Vec<&[u8]> = entries.iter().map(|entry| &entry.envelope[..]).collect();
        let query = sqlx::query_as(
            "INSERT INTO entries (origin, idx, kind, of_origin, of_idx, envelope) \
             SELECT $1, u.* FROM UNNEST($2::bigint[], $3::text[], $4::text[], $5::bigint[], $6::bytea[]) \
             AS u (idx, kind, of_origin, of_idx, envelope) ORDER BY u.idx RETURNING idx, row",
        );
        let query = query.bind(origin).bind(indices).bind(kinds).bind(of_origins).bind(of_indices);
        let mut placed: Vec<(i64, i64)> = self.all(query.bind(envelopes)).await?;
        placed.sort_unstable();
        let rows: Vec<i64> = placed.into_iter().map(|(_, row)| row).collect();
        let bearing: Vec<(i64, &EntryRow)> =
            rows.iter().copied().zip(entries).filter(|(_, entry)| !entry.body.is_empty()).collect();
        let salts: Vec<&[u8]> = bearing.iter().map(|(_, entry)| &entry.salt[..]).collect();
        let bodies: Vec<&[u8]> = bearing.iter().map(|(_, entry)| &entry.body[..]).collect();
        let places: Vec<i64> = bearing.iter().map(|(row, _)| *row).collect();
        let query = sqlx::query(
            "INSERT INTO payloads (row, salt, body) SELECT * FROM UNNEST($1::bigint[], $2::bytea[], $3::bytea[])",
        );
        self.run(query.bind(places).bind(salts).bind(bodies)).await?;
        Ok(rows)
    }

    /// One entry with its payload.
    pub async fn entry(&mut self, origin: &str, index: u64) -> Result<Option<StoredEntry>, Error> {
        self.begin().await?;
        let text = format!("{ENTRY} WHERE e.origin = $1 AND e.idx = $2");
        let found = self.rows(sqlx::query(sqlx::AssertSqlSafe(text)).bind(origin).bind(signed(index))).await;
        self.rollback().await?;
        found?.first().map(stored).transpose().map_err(|error| inside(&error))
    }

    /// Whether an intent has its outcome.
    pub async fn has_outcome(&mut self, of: (&str, u64)) -> Result<bool, Error> {
        let query = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM entries WHERE of_origin = $1 AND of_idx = $2 AND kind = 'outcome' \
             AND kind IN ('outcome', 'settlement'))",
        );
        Ok(self.one(query.bind(of.0).bind(signed(of.1))).await?.unwrap_or(false))
    }

    /// The rows of these targets, locked in one order, and the database's clock. A target without a row gets one.
    pub async fn lock_targets(&mut self, keys: &[String]) -> Result<(Vec<TargetRow>, Option<i64>), Error> {
        let text = format!("{TARGET} WHERE key = ANY($1) ORDER BY key FOR UPDATE");
        let mut found = self.rows(sqlx::query(sqlx::AssertSqlSafe(text.clone())).bind(keys)).await?;
        if found.len() < keys.len() {
            let query = sqlx::query(
                "INSERT INTO targets (key, seq, turn) SELECT key, 0, 0 FROM UNNEST($1) AS u (key) ORDER BY key \
                 ON CONFLICT DO NOTHING",
            );
            self.run(query.bind(keys)).await?;
            found = self.rows(sqlx::query(sqlx::AssertSqlSafe(text)).bind(keys)).await?;
        }
        let read = |row: &PgRow| Ok::<_, sqlx::Error>((target(row)?, row.try_get::<i64, _>(8)?));
        let rows: Vec<_> =
            found.iter().map(read).collect::<Result<_, _>>().map_err(|error| inside(&error))?;
        let now = rows.last().map(|row| row.1);
        Ok((rows.into_iter().map(|row| row.0).collect(), now))
    }

    /// Writes rows back.
    pub async fn put_targets(&mut self, rows: &[TargetRow]) -> Result<(), Error> {
        let opened = |row: &TargetRow| row.open.as_ref().map(|open| signed(open.1));
        let query = sqlx::query(
            "UPDATE targets t SET seq = u.seq, turn = u.turn, open_origin = u.open_origin, open_idx = u.open_idx, \
             open_since = u.open_since, open_unknown = u.open_unknown, revision = u.revision \
             FROM UNNEST($1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::bigint[], $6::bigint[], $7::bool[], $8::text[]) \
             AS u (key, seq, turn, open_origin, open_idx, open_since, open_unknown, revision) WHERE t.key = u.key",
        );
        let query = query
            .bind(rows.iter().map(|row| &*row.key).collect::<Vec<&str>>())
            .bind(rows.iter().map(|row| signed(row.seq)).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| signed(row.turn)).collect::<Vec<_>>())
            .bind(
                rows.iter().map(|row| row.open.as_ref().map(|open| &*open.0)).collect::<Vec<Option<&str>>>(),
            )
            .bind(rows.iter().map(opened).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.open.as_ref().map(|_| row.open_since)).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.open_unknown).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.revision.as_deref()).collect::<Vec<Option<&str>>>());
        self.run(query).await.map(drop)
    }

    /// Adds rows to the projection and lays outcomes and settlements over those of their attempts.
    pub async fn project(&mut self, rows: &[ChangeRow], updates: &[ChangeUpdate]) -> Result<(), Error> {
        if !rows.is_empty() {
            self.project_rows(rows).await?;
        }
        if !updates.is_empty() {
            self.project_updates(updates).await?;
        }
        Ok(())
    }

    async fn project_rows(&mut self, rows: &[ChangeRow]) -> Result<(), Error> {
        macro_rules! column {
            ($row:ident => $value:expr) => {
                rows.iter().map(|$row| $value).collect::<Vec<_>>()
            };
        }
        let query = sqlx::query(
            "INSERT INTO changes (row, kind, origin, idx, id, at, target, seq, operation, caller, decision, would, outcome, \
             settled, warned, rules, pointers, search, outcome_row, settlement_row) SELECT * FROM UNNEST($1::bigint[], \
             $2::text[], $3::text[], $4::bigint[], $5::text[], $6::bigint[], $7::text[], $8::bigint[], $9::text[], \
             $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::bool[], $16::text[], $17::text[], \
             $18::text[], $19::bigint[], $20::bigint[])",
        )
        .bind(column!(row => row.row))
        .bind(column!(row => text(&row.kind)))
        .bind(column!(row => text(&row.origin)))
        .bind(column!(row => signed(row.index)))
        .bind(column!(row => text(&row.id)))
        .bind(column!(row => row.at))
        .bind(column!(row => row.target.as_deref().map(text)))
        .bind(column!(row => row.seq.map(signed)))
        .bind(column!(row => row.operation.as_deref().map(text)))
        .bind(column!(row => row.caller.as_deref().map(text)))
        .bind(column!(row => text(&row.decision)))
        .bind(column!(row => row.would.as_deref().map(text)))
        .bind(column!(row => text(&row.outcome)))
        .bind(column!(row => row.settled.as_deref().map(text)))
        .bind(column!(row => row.warned))
        .bind(column!(row => text(&row.rules)))
        .bind(column!(row => text(&row.pointers)))
        .bind(column!(row => text(&row.search)))
        .bind(column!(row => row.outcome_row))
        .bind(column!(row => row.settlement_row));
        self.run(query).await.map(drop)
    }

    /// An attempt may be spoken of twice in a batch, by its outcome and by its settlement.
    async fn project_updates(&mut self, updates: &[ChangeUpdate]) -> Result<(), Error> {
        let query = sqlx::query_as(
            "SELECT u.place, e.row FROM UNNEST($1::text[], $2::bigint[]) WITH ORDINALITY AS u (origin, idx, place) \
             JOIN entries e ON e.origin = u.origin AND e.idx = u.idx ORDER BY u.place",
        );
        let origins: Vec<&str> = updates.iter().map(|update| &*update.of.0).collect();
        let indices: Vec<i64> = updates.iter().map(|update| signed(update.of.1)).collect();
        let places: Vec<(i64, i64)> = self.all(query.bind(origins).bind(indices)).await?;
        let mut rest: Vec<(&ChangeUpdate, i64)> = Vec::new();
        for (place, row) in places {
            let found = usize::try_from(place - 1).ok().and_then(|place| updates.get(place));
            rest.extend(found.map(|update| (update, row)));
        }
        while !rest.is_empty() {
            let (mut now, mut later): (Vec<_>, Vec<_>) = (Vec::new(), Vec::new());
            for update in rest {
                let is_taken = now.iter().any(|(_, row): &(&ChangeUpdate, i64)| *row == update.1);
                if is_taken { &mut later } else { &mut now }.push(update);
            }
            self.lay_over(&now).await?;
            rest = later;
        }
        Ok(())
    }

    async fn lay_over(&mut self, updates: &[(&ChangeUpdate, i64)]) -> Result<(), Error> {
        macro_rules! column {
            ($update:ident => $value:expr) => {
                updates.iter().map(|($update, _)| $value).collect::<Vec<_>>()
            };
        }
        let query = sqlx::query(
            "UPDATE changes c SET outcome = COALESCE(u.outcome, c.outcome), outcome_row = COALESCE(u.outcome_row, c.outcome_row), \
             settled = COALESCE(u.settled, c.settled), settlement_row = COALESCE(u.settlement_row, c.settlement_row), \
             pointers = COALESCE(u.pointers, c.pointers), search = c.search || u.search \
             FROM UNNEST($1::bigint[], $2::text[], $3::bigint[], $4::text[], $5::bigint[], $6::text[], $7::text[]) \
             AS u (row, outcome, outcome_row, settled, settlement_row, pointers, search) WHERE c.row = u.row",
        )
        .bind(updates.iter().map(|(_, row)| *row).collect::<Vec<_>>())
        .bind(column!(update => update.outcome.as_ref().map(|outcome| text(&outcome.0))))
        .bind(column!(update => update.outcome.as_ref().map(|outcome| outcome.1)))
        .bind(column!(update => update.settled.as_ref().map(|settled| text(&settled.0))))
        .bind(column!(update => update.settled.as_ref().map(|settled| settled.1)))
        .bind(column!(update => update.pointers.as_deref().map(text)))
        .bind(column!(update => text(&update.search)));
        self.run(query).await.map(drop)
    }

    /// Numbers of the attempts of a log whose outcome is still pending.
    pub async fn pending(&mut self, origin: &str) -> Result<Vec<u64>, Error> {
        self.begin().await?;
        let query =
            sqlx::query_as("SELECT idx FROM changes WHERE outcome = 'pending' AND origin = $1 ORDER BY row");
        let found: Result<Vec<(i64,)>, Error> = self.all(query.bind(origin)).await;
        self.rollback().await?;
        Ok(found?.into_iter().map(|(index,)| unsigned(index)).collect())
    }

    /// Pending attempts of other logs, whose lease ended longer ago than `late`.
    pub async fn abandoned(&mut self, origin: &str, late: Duration) -> Result<Vec<Abandoned>, Error> {
        self.begin().await?;
        let found = self.left_open(origin, late).await;
        self.rollback().await?;
        found
    }

    async fn left_open(&mut self, origin: &str, late: Duration) -> Result<Vec<Abandoned>, Error> {
        let query = sqlx::query_as(
            "SELECT origin, patchwarden_now() - leased_until FROM log_head \
             WHERE origin <> $1 AND leased_until + $2 < patchwarden_now()",
        );
        let gone: Vec<(String, i64)> = self.all(query.bind(origin).bind(micros(late))).await?;
        let origins: Vec<&str> = gone.iter().map(|(origin, _)| origin.as_str()).collect();
        let query = sqlx::query_as(
            "SELECT origin, idx FROM changes WHERE outcome = 'pending' AND origin = ANY($1) ORDER BY row LIMIT 256",
        );
        let found: Vec<(String, i64)> = self.all(query.bind(origins)).await?;
        let since =
            |origin: &str| gone.iter().find(|(gone, _)| gone == origin).map_or(0, |(_, since)| *since);
        let abandoned = |(origin, index): (String, i64)| {
            let since = Duration::from_micros(unsigned(since(&origin)));
            Abandoned { origin, index: unsigned(index), since }
        };
        Ok(found.into_iter().map(abandoned).collect())
    }

    /// The projection's version.
    pub async fn projection_version(&mut self) -> Result<i64, Error> {
        self.begin().await?;
        let version = self.one(sqlx::query_scalar("SELECT version FROM projection")).await;
        self.rollback().await?;
        Ok(version?.unwrap_or(0))
    }

    /// Empties the projection and notes the version it will be rebuilt in. Whoever else writes waits.
    pub async fn clear_projection(&mut self, version: i64) -> Result<(), Error> {
        self.run(sqlx::query("TRUNCATE changes")).await?;
        self.run(sqlx::query("UPDATE projection SET version = $1").bind(version)).await.map(drop)
    }

    /// Entries from a row on, at most 1 000.
    pub async fn entries_from(&mut self, row: i64) -> Result<Vec<StoredEntry>, Error> {
        let text = format!("{ENTRY} WHERE e.row >= $1 ORDER BY e.row LIMIT 1000");
        let found = self.rows(sqlx::query(sqlx::AssertSqlSafe(text)).bind(row)).await?;
        found.iter().map(stored).collect::<Result<_, _>>().map_err(|error| inside(&error))
    }

    /// The newest lifecycle entry of a log below a number.
    pub async fn lifecycle_before(&mut self, origin: &str, index: u64) -> Result<Option<StoredEntry>, Error> {
        self.begin().await?;
        let text = format!(
            "{ENTRY} WHERE e.origin = $1 AND e.idx < $2 AND e.kind = 'lifecycle' ORDER BY e.idx DESC LIMIT 1"
        );
        let found = self.rows(sqlx::query(sqlx::AssertSqlSafe(text)).bind(origin).bind(signed(index))).await;
        self.rollback().await?;
        found?.first().map(stored).transpose().map_err(|error| inside(&error))
    }

    /// From now on payloads of a log may be removed below a number.
    pub async fn prune_below(&mut self, origin: &str, below: u64) -> Result<(), Error> {
        let query = sqlx::query(
            "INSERT INTO log_meta AS m (origin, key, value) VALUES ($1, 'pruned_below', $2) ON CONFLICT (origin, key) \
             DO UPDATE SET value = EXCLUDED.value WHERE m.value::bigint < EXCLUDED.value::bigint",
        );
        self.run(query.bind(origin).bind(below.to_string())).await.map(drop)
    }

    /// Removes payloads, and from rows of the projection what came from them.
    pub async fn remove_payloads(&mut self, payloads: &[i64], changes: &[i64]) -> Result<(), Error> {
        self.run(sqlx::query("DELETE FROM payloads WHERE row = ANY($1)").bind(payloads)).await?;
        let query = sqlx::query(
            "UPDATE changes SET caller = NULL, would = NULL, warned = FALSE, rules = ' ', pointers = ' ', \
             search = COALESCE(target, '') WHERE row = ANY($1)",
        );
        self.run(query.bind(changes)).await.map(drop)
    }

    /// The constants of a log.
    pub async fn constants(&mut self, origin: &str) -> Result<Vec<(String, String)>, Error> {
        self.begin().await?;
        let query = sqlx::query_as("SELECT key, value FROM log_meta WHERE origin = $1 ORDER BY key");
        let found = self.all(query.bind(origin)).await?;
        self.rollback().await.map(|()| found)
    }

    /// Entries of a log from a number on, at most 1 000.
    pub async fn entries_of(&mut self, origin: &str, from: u64) -> Result<Vec<StoredEntry>, Error> {
        self.begin().await?;
        let text = format!("{ENTRY} WHERE e.origin = $1 AND e.idx >= $2 ORDER BY e.idx LIMIT 1000");
        let found = self.rows(sqlx::query(sqlx::AssertSqlSafe(text)).bind(origin).bind(signed(from))).await?;
        self.rollback().await?;
        found.iter().map(stored).collect::<Result<_, _>>().map_err(|error| inside(&error))
    }

    /// Everything that is not a log.
    pub async fn beside(&mut self) -> Result<Beside, Error> {
        self.begin().await?;
        let text = format!("{TARGET} ORDER BY key");
        let targets = self.rows(sqlx::query(sqlx::AssertSqlSafe(text))).await?;
        let bundles = self.all(sqlx::query_as("SELECT digest, text FROM bundles")).await?;
        let tokens = self.rows(sqlx::query(TOKENS)).await?;
        self.rollback().await?;
        let read = || {
            let targets = targets.iter().map(target).collect::<Result<_, _>>()?;
            Ok(Beside { targets, bundles, tokens: tokens.iter().map(token).collect::<Result<_, _>>()? })
        };
        read().map_err(|error: sqlx::Error| inside(&error))
    }

    /// Keeps the text of a bundle under its digest, once.
    pub async fn keep_bundle(&mut self, digest: &str, text: &[u8]) -> Result<(), Error> {
        let query = sqlx::query("INSERT INTO bundles (digest, text) VALUES ($1, $2) ON CONFLICT DO NOTHING");
        self.run(query.bind(digest).bind(text)).await.map(drop)
    }

    /// Adds an admin token; `false` when the name is taken.
    pub async fn create_token(&mut self, token: &TokenRow) -> Result<bool, Error> {
        let query = sqlx::query(
            "INSERT INTO admin_tokens (name, role, hash, created_at) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
        );
        let query = query.bind(&token.name).bind(&token.role).bind(&token.hash).bind(token.created_at);
        Ok(self.run(query).await? == 1)
    }

    /// Revokes a token; `false` when there is none of that name in use.
    pub async fn revoke_token(&mut self, name: &str, at: i64) -> Result<bool, Error> {
        let query =
            sqlx::query("UPDATE admin_tokens SET revoked_at = $1 WHERE name = $2 AND revoked_at IS NULL");
        Ok(self.run(query.bind(at).bind(name)).await? == 1)
    }
}

/// An answer, in time.
async fn within<T>(call: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, Error> {
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(done) => done.map_err(|error| inside(&error)),
        Err(_) => Err(Error::Wait(format!("PostgreSQL did not answer within {} s", PATIENCE.as_secs()))),
    }
}

/// What an error before COMMIT means: a constraint is the fault of what was written, everything else of the moment.
fn inside(error: &sqlx::Error) -> Error {
    let Some(database) = error.as_database_error() else {
        return Error::Wait(match error {
            sqlx::Error::PoolTimedOut => {
                format!("no connection to PostgreSQL within {} s", PATIENCE.as_secs())
            }
            _ => format!("PostgreSQL: {error}"),
        });
    };
    let code = database.code().unwrap_or_default();
    let what = format!("PostgreSQL: {} ({code})", database.message());
    match &*code {
        code if code.starts_with("23") => Error::Refused(what),
        "55P03" | "40P01" | "40001" => Error::Busy(what),
        "42501" => Error::Wait(format!("{what}; `patchwarden store grants` prints what the role needs")),
        "26000" | "42P05" => Error::Wait(format!(
            "{what}; connections are shared by a pooler, so store.prepared_statements has to be false"
        )),
        _ => Error::Wait(what),
    }
}

fn target(row: &PgRow) -> Result<TargetRow, sqlx::Error> {
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

fn stored(row: &PgRow) -> Result<StoredEntry, sqlx::Error> {
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

fn token(row: &PgRow) -> Result<TokenRow, sqlx::Error> {
    Ok(TokenRow {
        name: row.try_get(0)?,
        role: row.try_get(1)?,
        hash: row.try_get(2)?,
        created_at: row.try_get(3)?,
        revoked_at: row.try_get(4)?,
    })
}

/// PostgreSQL's text holds no NUL; only the projection may meet one.
fn text(text: &str) -> String {
    text.replace('\0', "\u{FFFD}")
}

fn micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
