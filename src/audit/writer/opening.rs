//! Opening the store: which log is ours, may we append to it, and is everything there that we committed.
//!
//! A log belongs to the key it was begun with; in a store that several gateways share each finds its own, and takes a
//! lease on it. A store that lost what was committed (a standby promoted too early, a restored backup) is never extended
//! over the gap: the log is closed and another one begun, whose first entry says what is missing.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::id::fill_random;
use crate::json;
use crate::keys;
use crate::store::{self, Database, Location, Reader};

use super::super::copy::projected;
use super::super::query::{PROJECTION_VERSION, Projected};
use super::super::tree::Frontier;
use super::{Group, Log, Time, Writer, entry, lock};

const HEAD_EVERY: Duration = Duration::from_secs(1);
/// Where a process writes down as whom it appends to a log that others could take over.
const HOLDER: &str = "holder";

impl Writer {
    /// Opens the store, finds or begins the log, and gives every intent nobody will finish its outcome.
    pub(super) async fn open(&mut self) -> Result<(), store::Error> {
        if self.locks.is_empty() {
            let mut locks = vec![lock(&keys::lock_path(&self.data))?];
            if let Location::Sqlite(path) = &self.store {
                locks.push(lock(&store::lock_path(path))?);
            }
            self.locks = locks;
            // Whoever had the lock before is dead, and it wrote down as whom it appended.
            self.claim.before = std::fs::read_to_string(self.data.join(HOLDER)).ok();
        }
        let mut database = Database::open(&self.store, self.origin.is_none()).await?;
        if self.distrusted {
            database.settle().await?;
            database.check().await?;
            self.distrusted = false;
        }
        let mut origin = self.find_or_begin(&mut database).await?;
        let mut tenure = database.take(&origin, self.epoch, &self.claim).await?;
        if self.epoch.replace(tenure.epoch).is_none() && database.is_shared() {
            let written = keys::write_private(&self.data.join(HOLDER), &self.claim.holder);
            written.map_err(|error| {
                store::Error::Wait(format!("{}: {error}", self.data.join(HOLDER).display()))
            })?;
        }
        let mut frontier = self.end_of(&mut database, &origin).await?;
        self.resolve_doubt(&mut database, &origin).await?;
        let mut began = None;
        if let Some(succession) = self.missing(&mut database, &origin, &frontier).await? {
            if succession["previous"] == origin.as_str() {
                origin = self.begin_log(&mut database, Some(&origin)).await?;
                tenure = database.take(&origin, None, &self.claim).await?;
                self.epoch = Some(tenure.epoch);
                frontier = Frontier::default();
            }
            crate::log::succeeded(
                &origin,
                succession["previous"].as_str().unwrap_or_default(),
                &succession["known"],
                &succession["found"],
            );
            began = Some(succession);
        }
        let last_at = last_time(&mut database, &origin, frontier.size()).await?;
        match database.projection_version().await? {
            known if known < PROJECTION_VERSION => rebuild(&mut database).await?,
            PROJECTION_VERSION => {}
            newer => {
                return Err(store::Error::Fatal(format!(
                    "{}: its projection was written by a newer version (form {newer}, this binary knows {PROJECTION_VERSION}); use that version",
                    self.store
                )));
            }
        }
        let reader = Reader::open(&self.store).await?;
        *self.shared.reader.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(reader);
        let (size, root) = (frontier.size(), frontier.root());
        let is_first = self.origin.replace(origin.clone()).is_none();
        self.known = Some((origin.clone(), frontier.clone()));
        self.log = Some(Log { database, origin, frontier, tenure, last_at });
        if let Err(error) = self.recover().await {
            if let Some(log) = self.log.take() {
                log.database.close().await;
            }
            return Err(error);
        }
        if is_first {
            let started = json!({"v": 1, "at": self.shared.clock.now(), "version": env!("CARGO_PKG_VERSION"),
                "unfinished": self.backlog.len(), "size": size, "root": hex::encode(root)});
            self.must_write(Group::of(entry::lifecycle("start", started)));
        }
        // Said first: it is put before everything that waits.
        if let Some(succession) = began {
            self.must_write(Group::of(entry::lifecycle("succession", succession)));
        }
        self.up();
        Ok(())
    }

    /// The end of a log, as the store has it.
    async fn end_of(&self, database: &mut Database, origin: &str) -> Result<Frontier, store::Error> {
        database.begin().await?;
        let head = database.head(origin).await;
        // A store that can be read is not yet one that can be written: the transaction showed that it can.
        database.rollback().await?;
        let damaged = |what: &str| store::Error::Fatal(format!("{}: {what}", self.store));
        let head = head?.ok_or_else(|| damaged("the log has no head"))?;
        Frontier::read(head.size, &head.frontier).ok_or_else(|| damaged("the log's frontier is damaged"))
    }

    /// What the store has lost of what this gateway committed to it, as the entry of a succession says it.
    async fn missing(
        &self,
        database: &mut Database,
        origin: &str,
        found: &Frontier,
    ) -> Result<Option<Value>, store::Error> {
        let Some((previous, known)) = self.known.clone().or_else(|| self.outside_head()) else {
            return Ok(None);
        };
        let found = if previous == origin {
            if extends(database, origin, &known, found).await? {
                return Ok(None);
            }
            head(found)
        } else if found.size() > 0 {
            // Succeeded by this one before, which has said so.
            return Ok(None);
        } else {
            database.begin().await?;
            let there = database.head(&previous).await;
            database.rollback().await?;
            let there = there?.and_then(|there| Frontier::read(there.size, &there.frontier));
            there.as_ref().map_or(Value::Null, head)
        };
        let reason = "the store no longer holds all that was committed to it";
        let at = self.shared.clock.now();
        Ok(Some(
            json!({"v": 1, "at": at, "reason": reason, "previous": previous, "known": head(&known), "found": found}),
        ))
    }

    /// The head kept outside the store, from an earlier run.
    fn outside_head(&self) -> Option<(String, Frontier)> {
        let text = std::fs::read(store::head_path(&self.store, &self.data)).ok()?;
        let head: OutsideHead = json::own(&text).ok()?;
        let frontier = Frontier::read(head.size, &hex::decode(head.frontier).ok()?)?;
        Some((head.origin, frontier))
    }

    /// When the head is to be kept outside the store, unless it is there.
    pub(super) fn keep_at(&self) -> Option<Instant> {
        let size = self.known.as_ref()?.1.size();
        (size != self.kept.1).then(|| self.kept.0 + HEAD_EVERY)
    }

    /// Keeps the head outside the store, at most once a second: a store that falls behind it has lost something.
    pub(super) async fn keep_head(&mut self, now: bool) {
        let Some((origin, frontier)) = &self.known else { return };
        if !now && self.keep_at().is_none_or(|at| Instant::now() < at) {
            return;
        }
        let head = OutsideHead {
            origin: origin.clone(),
            size: frontier.size(),
            frontier: hex::encode(frontier.bytes()),
        };
        let (path, text) = (store::head_path(&self.store, &self.data), json!(head).to_string());
        // One that cannot be written is tried again later; the log does not wait for it.
        let written = tokio::task::spawn_blocking(move || keys::write_private(&path, &text)).await;
        let is_kept = written.is_ok_and(|written| written.is_ok());
        self.kept = (Instant::now(), if is_kept { head.size } else { self.kept.1 });
    }

    /// The log of our key, or a new one.
    async fn find_or_begin(&mut self, database: &mut Database) -> Result<String, store::Error> {
        let public = hex::encode(self.shared.keys.log_public());
        database.begin().await?;
        let logs = async { Ok((database.meta("public_key").await?, database.meta("closed").await?)) }.await;
        database.rollback().await?;
        let (logs, closed) = logs?;
        let is_closed = |origin: &String| closed.iter().any(|(closed, _)| closed == origin);
        let ours = logs.iter().find(|(origin, key)| *key == public && !is_closed(origin));
        let place = &self.store;
        match (ours, &self.origin) {
            (Some((origin, _)), Some(known)) if origin != known => Err(store::Error::Wait(format!(
                "{place} holds another log than before; put the right one back"
            ))),
            (Some((origin, _)), _) => Ok(origin.clone()),
            (None, _) if !logs.is_empty() && !database.is_shared() => Err(store::Error::Fatal(format!(
                "{place} is the log of another data folder; use the data folder it was made with, or name a new store (store.url)"
            ))),
            (None, Some(_)) if !database.is_shared() => {
                Err(store::Error::Wait(format!("{place} no longer holds the log; put it back")))
            }
            (None, _) => self.begin_log(database, None).await,
        }
    }

    /// Begins a log, in the place of one that is closed for ever.
    async fn begin_log(&self, database: &mut Database, closes: Option<&str>) -> Result<String, store::Error> {
        let mut id = [0u8; 8];
        fill_random(&mut id);
        let default = || format!("patchwarden.invalid/{}", self.shared.keys.instance());
        let name = self.shared.settings.name.clone().unwrap_or_else(default);
        let origin = format!("{name}/{}", hex::encode(id));
        database.begin().await?;
        if let Some(closed) = closes {
            database.put_meta(closed, "closed", &origin).await?;
        }
        database.put_meta(&origin, "public_key", &hex::encode(self.shared.keys.log_public())).await?;
        database.put_meta(&origin, "log_id", &hex::encode(id)).await?;
        database.put_meta(&origin, "created_at", &self.shared.clock.now().to_string()).await?;
        database.new_head(&origin).await?;
        database.commit().await?;
        Ok(origin)
    }
}

/// What was committed to a log, as it is kept outside the store.
#[derive(Serialize, Deserialize)]
struct OutsideHead {
    origin: String,
    size: u64,
    frontier: String,
}

/// Whether a log still begins with all that was known of it.
async fn extends(
    database: &mut Database,
    origin: &str,
    known: &Frontier,
    found: &Frontier,
) -> Result<bool, store::Error> {
    let mut grown = known.clone();
    for index in known.size()..found.size() {
        let Some(entry) = database.entry(origin, index).await? else { return Ok(false) };
        grown.append(&entry.envelope);
    }
    Ok(grown == *found)
}

fn head(frontier: &Frontier) -> Value {
    json!({"size": frontier.size(), "root": hex::encode(frontier.root())})
}

async fn last_time(database: &mut Database, origin: &str, size: u64) -> Result<Time, store::Error> {
    let Some(last) = size.checked_sub(1) else { return Ok(Time(0)) };
    let entry = database.entry(origin, last).await?;
    let at = entry.and_then(|entry| json::own::<Value>(&entry.envelope).ok()?["at"].as_i64());
    at.map(Time).ok_or_else(|| store::Error::Fatal(format!("entry {last} of the log cannot be read")))
}

/// Derives the projection anew from the log.
pub(in crate::audit) async fn rebuild(database: &mut Database) -> Result<(), store::Error> {
    database.begin().await?;
    database.clear_projection(PROJECTION_VERSION).await?;
    let mut next = 0;
    loop {
        let entries = database.entries_from(next).await?;
        let Some(last) = entries.last() else { break };
        next = last.row + 1;
        let (mut changes, mut updates) = (Vec::new(), Vec::new());
        for entry in &entries {
            match projected(entry.row, entry) {
                Some(Projected::Row(row)) => changes.push(*row),
                Some(Projected::Update(update)) => updates.push(*update),
                None => {}
            }
        }
        database.project(&changes, &updates).await?;
    }
    database.commit().await
}
