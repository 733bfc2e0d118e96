//! Opening the store: which log is ours, may we append to it, and is everything there that we committed.
//!
//! A log belongs to the key it was begun with; in a store that several gateways share each finds its own, and takes a
//! lease on it. A store that lost what was committed (a standby promoted too early, a restored backup) is never extended
//! over the gap: the log is closed and another one begun, whose first entry says what is missing.

use serde_json::{Value, json};

use std::path::Path;

use crate::id::fill_random;
use crate::json;
use crate::keys::{self, Keys};
use crate::store::{self, Database, Location, LogKey, Reader};

use super::super::checkpoint::{Checkpoint, Note, Verifier};
use super::super::copy::rebuild;
use super::super::proofs::Tree;
use super::super::query::PROJECTION_VERSION;
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

    /// What the store has lost of what this gateway committed to it, as the entry of a succession says it.
    async fn missing(
        &self,
        database: &mut Database,
        reader: &Reader,
        found: &Checkpoint,
    ) -> Result<Option<Value>, store::Error> {
        let mut outside = match &self.known {
            Some(known) => vec![known.clone()],
            None => self.outside_heads().await,
        };
        // Whoever knows most says how much is missing.
        outside.sort_by_key(|known| std::cmp::Reverse(known.size));
        for known in outside {
            let missing = self.missing_of(database, reader, &known, found).await?;
            if missing.is_some() {
                return Ok(missing);
            }
        }
        self.missing_elsewhere(reader, found).await
    }

    /// What was committed by an earlier run as it was kept outside the store.
    async fn outside_heads(&self) -> Vec<Checkpoint> {
        let beside = outside_head(&self.store, &self.shared.data, &self.shared.keys);
        let mut outside = self.shared.anchors.heads(&self.shared.keys).await;
        outside.extend(beside);
        outside
    }

    /// What somebody else says is missing.
    async fn missing_elsewhere(
        &self,
        reader: &Reader,
        found: &Checkpoint,
    ) -> Result<Option<Value>, store::Error> {
        let Some(said) = self.elsewhere.as_ref().filter(|said| said.origin == found.origin) else {
            return Ok(None);
        };
        let known = said.root.map(|root| Checkpoint { root, size: said.size, ..found.clone() });
        let is_there = match &known {
            Some(known) => extends(reader, known, found).await?,
            // Of more than there was, there is enough now.
            None => said.is_more && found.size >= said.size,
        };
        if is_there {
            return Ok(None);
        }
        let shown = known.as_ref().map_or_else(|| json!({"size": said.size, "root": null}), head);
        let reason = "somebody else knows more of the log than the store holds, or another one";
        Ok(Some(json!({"v": 1, "at": self.shared.clock.now(), "reason": reason, "by": said.by,
            "previous": said.origin, "known": shown, "found": head(found)})))
    }

    /// What is missing of a head that this gateway signed.
    async fn missing_of(
        &self,
        database: &mut Database,
        reader: &Reader,
        known: &Checkpoint,
        found: &Checkpoint,
    ) -> Result<Option<Value>, store::Error> {
        let previous = known.origin.clone();
        let found = if previous == found.origin {
            if extends(reader, known, found).await? {
                return Ok(None);
            }
            head(found)
        } else if found.size > 0 {
            if leads_to(database, &previous, &found.origin).await? {
                // Succeeded by this one before, which has said so.
                return Ok(None);
            }
            // A store of before: the log of which a head is kept came later, and of that it holds nothing.
            return Ok(Some(self.succession(&found.origin, &known_of(known), &head(found))));
        } else {
            database.begin().await?;
            let there = database.head(&previous).await;
            database.rollback().await?;
            let there = there?.and_then(|there| Frontier::read(there.size, &there.frontier));
            there.map_or(Value::Null, |there| head(&there.of_log(&previous)))
        };
        Ok(Some(self.succession(&previous, &head(known), &found)))
    }

    fn succession(&self, previous: &str, known: &Value, found: &Value) -> Value {
        let reason = "the store no longer holds all that was committed to it";
        json!({"v": 1, "at": self.shared.clock.now(), "reason": reason, "previous": previous, "known": known, "found": found})
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

/// The head kept outside the store, from an earlier run; only what this gateway signed counts.
pub(in crate::audit) fn outside_head(store: &Location, data: &Path, keys: &Keys) -> Option<Checkpoint> {
    let text = std::fs::read_to_string(store::head_path(store, data)).ok()?;
    let note = Note::read(&text).ok()?;
    let ours = keys.log_publics().into_iter();
    let ours: Vec<_> = ours.map(|public| Verifier::of_log(&note.checkpoint.origin, public)).collect();
    note.signed_by(&ours).ok()?;
    Some(note.checkpoint)
}

/// Whether a log still begins with all that was known of it.
async fn extends(reader: &Reader, known: &Checkpoint, found: &Checkpoint) -> Result<bool, store::Error> {
    if found.size <= known.size {
        return Ok(found == known);
    }
    let tree = Tree { reader, origin: &known.origin, size: known.size };
    Ok(tree.root().await? == known.root)
}

/// The head of another log than the one that ends.
fn known_of(known: &Checkpoint) -> Value {
    let mut shown = head(known);
    shown["origin"] = json!(known.origin);
    shown
}

/// Whether a log was followed by another one, at once or by others between.
async fn leads_to(database: &mut Database, from: &str, to: &str) -> Result<bool, store::Error> {
    database.begin().await?;
    let closed = database.meta("closed").await;
    database.rollback().await?;
    let closed = closed?;
    let mut at = from;
    // Each follows one that was there before it, so none is met twice.
    for _ in 0..closed.len() {
        let Some((_, next)) = closed.iter().find(|(origin, _)| origin == at) else { return Ok(false) };
        if next == to {
            return Ok(true);
        }
        at = next;
    }
    Ok(false)
}

fn head(checkpoint: &Checkpoint) -> Value {
    json!({"size": checkpoint.size, "root": hex::encode(checkpoint.root)})
}

async fn last_time(database: &mut Database, origin: &str, size: u64) -> Result<Time, store::Error> {
    let Some(last) = size.checked_sub(1) else { return Ok(Time(0)) };
    let entry = database.entry(origin, last).await?;
    let at = entry.and_then(|entry| json::own::<Value>(&entry.envelope).ok()?["at"].as_i64());
    at.map(Time).ok_or_else(|| store::Error::Fatal(format!("entry {last} of the log cannot be read")))
}
