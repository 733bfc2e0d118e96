//! Opening the store: which log is ours, may we append to it, and is everything there that we committed.
//!
//! A log belongs to the key it was begun with; in a store that several gateways share each finds its own, and takes a
//! lease on it. A store that lost what was committed (a standby promoted too early, a restored backup) is never extended
//! over the gap: the log is closed and another one begun, whose first entry says what is missing.

use serde_json::{Value, json};

use crate::id::fill_random;
use crate::json;
use crate::keys::{self, Keys};
use crate::store::{self, Database, Location, LogKey, Reader};

use super::super::checkpoint::Checkpoint;
use super::super::copy::rebuild;
use super::super::projection::PROJECTION_VERSION;
use super::super::proofs::Tree;
use super::super::tree::Frontier;
use super::runs::LastRun;
use super::{Group, Log, Time, Writer, entry, lock, tiles};

/// Where a process writes down as whom it appends to a log that others could take over.
const HOLDER: &str = "holder";

impl Writer {
    /// Opens the store, finds or begins the log, and gives every intent nobody will finish its outcome.
    pub(super) async fn open(&mut self) -> Result<(), store::Error> {
        if self.locks.is_empty() {
            let mut locks = vec![lock(&keys::lock_path(&self.shared.data))?];
            if let Location::Sqlite(path) = &self.store {
                locks.push(lock(&store::lock_path(path))?);
            }
            self.locks = locks;
            // Whoever had the lock before is dead, and it wrote down as whom it appended.
            self.claim.before = std::fs::read_to_string(self.shared.data.join(HOLDER)).ok();
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
            let written = keys::write_private(&self.shared.data.join(HOLDER), &self.claim.holder);
            written.map_err(|error| {
                store::Error::Wait(format!("{}: {error}", self.shared.data.join(HOLDER).display()))
            })?;
        }
        let mut frontier = self.end_of(&mut database, &origin).await?;
        self.resolve_doubt(&mut database, &origin).await?;
        let reader = Reader::open(&self.store).await?;
        self.check_head(&reader, &frontier.of_log(&origin)).await?;
        let mut began = None;
        let is_behind = !self.signs(&mut database, &origin).await?;
        if let Some(succession) = self.missing(&mut database, &reader, &frontier.of_log(&origin)).await? {
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
        } else if is_behind {
            return Err(store::Error::Fatal(format!(
                "{}: the log {origin} is older than log.key, which was to follow at a later entry; put back the store, or the file {} from beside it",
                self.store,
                store::head_path(&self.store, &self.shared.data).display()
            )));
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
        let leaves = tiles::catch_up(&mut database, &origin, frontier.size()).await?;
        *self.shared.reader.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(reader);
        let found = frontier.of_log(&origin);
        let is_first = self.origin.replace(origin.clone()).is_none();
        *self.shared.origin.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(origin.clone());
        (self.known, self.elsewhere) = (Some(found.clone()), None);
        self.log = Some(Log { database, origin, frontier, leaves, tenure, last_at });
        // Looked for before what was left open gets its outcome.
        let before = if is_first { self.last_run().await } else { Ok(LastRun::default()) };
        let recovered = match before {
            Ok(before) => self.recover().await.map(|()| before),
            Err(error) => Err(error),
        };
        let before = match recovered {
            Ok(before) => before,
            Err(error) => {
                if let Some(log) = self.log.take() {
                    log.database.close().await;
                }
                // The start is still to be said.
                self.origin = self.origin.take().filter(|_| !is_first);
                return Err(error);
            }
        };
        if is_first {
            let started = json!({"v": 1, "at": self.shared.clock.now(), "version": env!("CARGO_PKG_VERSION"),
                "unfinished": self.backlog.len(), "size": found.size, "root": hex::encode(found.root)});
            self.began(started, before);
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

    /// The entries give the head that is stored beside them.
    async fn check_head(&self, reader: &Reader, head: &Checkpoint) -> Result<(), store::Error> {
        let tree = Tree { reader, origin: &head.origin, size: head.size };
        if tree.root().await? == head.root {
            return Ok(());
        }
        Err(store::Error::Fatal(format!(
            "{}: the entries of the log {} do not give the head that is stored beside them; `patchwarden verify` names the first that is wrong",
            self.store, head.origin
        )))
    }

    /// What gateways of one store record is compared, so they make their fingerprints with one key.
    async fn check_fingerprints(&self, database: &mut Database) -> Result<(), store::Error> {
        let ours = self.shared.keys.fingerprint_id().to_string();
        database.begin().await?;
        let known = database.meta("fingerprint_key").await?.pop();
        let theirs = if let Some((_, theirs)) = known {
            database.rollback().await?;
            theirs
        } else {
            let theirs = database.claim_meta("fingerprint_key", &ours).await?;
            database.commit().await?;
            theirs
        };
        if theirs == ours {
            return Ok(());
        }
        Err(store::Error::Fatal(format!(
            "{}: its fingerprints were made with another key than this gateway's; what was recorded could not be compared. Give it the fingerprint.key the store was begun with: in the data folder, or by audit.fingerprint_key_file",
            self.store
        )))
    }

    /// The log of our key, or a new one.
    async fn find_or_begin(&mut self, database: &mut Database) -> Result<String, store::Error> {
        database.begin().await?;
        let logs = async { Ok((database.log_keys().await?, database.meta("closed").await?)) }.await;
        database.rollback().await?;
        let (logs, closed) = logs?;
        let is_closed = |key: &&LogKey| closed.iter().any(|(closed, _)| *closed == key.origin);
        let logs: Vec<LogKey> = logs.into_iter().filter(|key| !is_closed(&key)).collect();
        let ours = self.our_log(&logs)?;
        let place = &self.store;
        let found = match (ours, &self.origin) {
            (Some(origin), Some(known)) if origin != *known => Err(store::Error::Wait(format!(
                "{place} holds another log than before; put the right one back"
            ))),
            (Some(origin), _) => Ok(Some(origin)),
            (None, _) if !logs.is_empty() && !database.is_shared() => Err(store::Error::Fatal(format!(
                "{place} is the log of another data folder; use the data folder it was made with, or name a new store (store.url)"
            ))),
            (None, Some(_)) if !database.is_shared() => {
                Err(store::Error::Wait(format!("{place} no longer holds the log; put it back")))
            }
            (None, _) => Ok(None),
        }?;
        self.check_fingerprints(database).await?;
        match found {
            Some(origin) => Ok(origin),
            None => self.begin_log(database, None).await,
        }
    }

    /// Whether the log knows our key: one that was restored may know only the key before.
    async fn signs(&self, database: &mut Database, origin: &str) -> Result<bool, store::Error> {
        database.begin().await?;
        let known = database.log_keys().await;
        database.rollback().await?;
        let ours = hex::encode(self.shared.keys.log_public());
        Ok(known?.iter().any(|key| key.origin == origin && key.public == ours))
    }

    /// The log whose newest key is ours, or was. A rotation that was cut off is finished, or forgotten if the log does not know it.
    fn our_log(&self, logs: &[LogKey]) -> Result<Option<String>, store::Error> {
        let keys = &self.shared.keys;
        let find = |public: [u8; 32]| {
            let public = hex::encode(public);
            logs.iter().find(|key| key.public == public).cloned()
        };
        let lost = |error: keys::Error| store::Error::Wait(error.to_string());
        if let Some(next) = Keys::next_public(&self.shared.data).map_err(lost)? {
            match (find(next), &self.origin) {
                (Some(_), _) => keys.use_next(&self.shared.data, next).map_err(lost)?,
                (None, None) => Keys::drop_next(&self.shared.data).map_err(lost)?,
                // Its entry may wait in this process.
                (None, Some(_)) => {}
            }
        }
        let ours = find(keys.log_public()).or_else(|| find(keys.previous_public()?));
        let Some(ours) = ours else { return Ok(None) };
        let newest = logs.iter().filter(|key| key.origin == ours.origin).max_by_key(|key| key.since);
        if newest.is_some_and(|newest| newest.public != ours.public) {
            return Err(store::Error::Fatal(format!(
                "{}: log.key in {} was followed by another key, at entry {} of {}; put back the newest one",
                self.store,
                self.shared.data.display(),
                newest.map_or(0, |newest| newest.since),
                ours.origin
            )));
        }
        Ok(Some(ours.origin))
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
        let public = hex::encode(self.shared.keys.log_public());
        database.put_meta(&origin, "public_key", &public).await?;
        database.put_log_key(&LogKey { origin: origin.clone(), public, since: 0 }).await?;
        database.put_meta(&origin, "log_id", &hex::encode(id)).await?;
        database.put_meta(&origin, "created_at", &self.shared.clock.now().to_string()).await?;
        database.new_head(&origin).await?;
        database.commit().await?;
        Ok(origin)
    }
}

async fn last_time(database: &mut Database, origin: &str, size: u64) -> Result<Time, store::Error> {
    let Some(last) = size.checked_sub(1) else { return Ok(Time(0)) };
    let entry = database.entry(origin, last).await?;
    let at = entry.and_then(|entry| json::own::<Value>(&entry.envelope).ok()?["at"].as_i64());
    at.map(Time).ok_or_else(|| store::Error::Fatal(format!("entry {last} of the log cannot be read")))
}
