//! Moves a history from one store to another, while nobody writes either.
//!
//! Entries go byte for byte, under the same origin, and are verified on both sides: what was read gives the head the
//! source keeps, and what was written is read back and gives the same. A log that the other store knows with another end
//! is not touched.

use std::fmt;

use super::projection::{Facts, Gist, PROJECTION_VERSION, Projected, parted, project};
use super::tree::{Frontier, leaf};
use super::writer::catch_up;
use crate::json;
use crate::keys;
use crate::store::{self, Database, EntryRow, Error, Head, Location, Reader, StoredEntry};
use serde_json::Value;

/// The constant of a log that says below which number payloads may be gone.
const PRUNED_BELOW: &str = "pruned_below";

/// What became of one log.
#[derive(Clone, Debug)]
pub struct Copied {
    /// Its name.
    pub origin: String,
    /// Its entries.
    pub size: u64,
    /// Whether the other store had all of it already.
    pub was_there: bool,
}

impl fmt::Display for Copied {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.was_there { "was there already" } else { "copied and verified on both sides" };
        write!(out, "{}: {} entries, {what}", self.origin, self.size)
    }
}

/// Copies every log of `from`, with targets, bundles and admin tokens. All or nothing.
pub async fn run(from: &Location, to: &Location) -> Result<Vec<Copied>, Error> {
    let _locks = [lock(from)?, lock(to)?];
    if from.is_missing() {
        return Err(Error::Wait(format!("{from} does not exist")));
    }
    nobody_writes(from).await?;
    let mut source = Database::open(from, false).await?;
    let mut target = Database::open(to, true).await?;
    let reader = Reader::open(from).await?;
    let copied = copy(&mut source, &reader, &mut target).await;
    reader.close().await;
    source.close().await;
    target.close().await;
    copied
}

/// Derives the projection of a store anew while nobody writes it.
pub async fn reindex(store: &Location) -> Result<(), Error> {
    let _lock = lock(store)?;
    nobody_writes(store).await?;
    let mut database = Database::open(store, false).await?;
    let rebuilt = rebuild(&mut database).await;
    database.close().await;
    rebuilt
}

async fn copy(source: &mut Database, reader: &Reader, target: &mut Database) -> Result<Vec<Copied>, Error> {
    let mut copied = Vec::new();
    for (origin, head) in logs(source).await? {
        let there = logs(target).await?.into_iter().find(|(known, _)| *known == origin).map(|(_, head)| head);
        let was_there = there.as_ref().is_some_and(|there| same(there, &head));
        if there.is_some() && !was_there {
            return Err(Error::Fatal(format!(
                "the other store knows the log {origin} with another end; nothing was written"
            )));
        }
        if verified(source, &origin).await? != (head.size, head.frontier.clone()) {
            return Err(Error::Fatal(format!(
                "the entries of {origin} do not give the head that is stored beside them; nothing was written"
            )));
        }
        copied.push((Copied { size: head.size, origin, was_there }, head));
    }
    let beside = source.beside().await?;
    let ours: Vec<_> = copied.iter().filter(|(copied, _)| copied.was_there).collect();
    if ours.len() == copied.len() {
        return Ok(copied.into_iter().map(|(copied, _)| copied).collect());
    }
    let constants = {
        let mut all = Vec::new();
        for (copied, _) in &copied {
            all.push(source.constants(&copied.origin).await?);
        }
        all
    };
    target.begin().await?;
    let written = write(source, reader, target, &copied, &constants, &beside).await;
    match written {
        Ok(()) => target.commit().await?,
        Err(error) => {
            let _ = target.rollback().await;
            return Err(error);
        }
    }
    for (copied, head) in &copied {
        if verified(target, &copied.origin).await? != (head.size, head.frontier.clone()) {
            return Err(Error::Fatal(format!("{} reads back otherwise than it was written", copied.origin)));
        }
        catch_up(target, &copied.origin, copied.size).await?;
    }
    Ok(copied.into_iter().map(|(copied, _)| copied).collect())
}

async fn write(
    source: &mut Database,
    reader: &Reader,
    target: &mut Database,
    copied: &[(Copied, Head)],
    constants: &[Vec<(String, String)>],
    beside: &store::Beside,
) -> Result<(), Error> {
    for ((copied, head), constants) in copied.iter().zip(constants) {
        if copied.was_there {
            continue;
        }
        for (key, value) in constants.iter().filter(|(key, _)| key != PRUNED_BELOW) {
            target.put_meta(&copied.origin, key, value).await?;
        }
        target.new_head(&copied.origin).await?;
        copy_signed(reader, target, &copied.origin).await?;
        let mut next = 0;
        while next < head.size {
            let entries = source.entries_of(&copied.origin, next).await?;
            for chunk in entries.chunks(256) {
                write_chunk(target, &copied.origin, chunk).await?;
            }
            next += entries.len() as u64;
        }
        let first = Head { epoch: 1, ..head.clone() };
        if !target.advance(&copied.origin, 0, &first, std::time::Duration::ZERO).await? {
            return Err(Error::Wait(format!("somebody else wrote {}", copied.origin)));
        }
        // Last: a payload is written only from there on.
        let below =
            constants.iter().find(|(key, _)| key == PRUNED_BELOW).and_then(|(_, value)| value.parse().ok());
        if let Some(below) = below {
            target.prune_below(&copied.origin, below).await?;
        }
    }
    for (_, key) in source.meta("fingerprint_key").await? {
        if target.claim_meta("fingerprint_key", &key).await? != key {
            return Err(Error::Fatal(
                "the fingerprints of the two stores are made with different keys, and could not be compared; nothing was written".to_owned(),
            ));
        }
    }
    let keys: Vec<String> = beside.targets.iter().map(|row| row.key.clone()).collect();
    if !keys.is_empty() {
        let (known, _) = target.lock_targets(&keys).await?;
        if let Some(known) = known.iter().find(|row| row.seq > 0 || row.open.is_some()) {
            return Err(Error::Fatal(format!(
                "both stores hold changes of {}, and the order of one target is one; nothing was written",
                known.key
            )));
        }
        target.put_targets(&beside.targets).await?;
    }
    for (digest, text) in &beside.bundles {
        target.keep_bundle(digest, text).await?;
    }
    for token in &beside.tokens {
        if target.create_token(token).await?
            && let Some(at) = token.revoked_at
        {
            target.revoke_token(&token.name, at).await?;
        }
    }
    Ok(())
}

/// What a log is signed with, and what was signed of it.
async fn copy_signed(reader: &Reader, target: &mut Database, origin: &str) -> Result<(), Error> {
    for key in reader.log_keys().await?.iter().filter(|key| key.origin == origin) {
        target.put_log_key(key).await?;
    }
    let mut next = Some(0);
    while let Some(from) = next {
        let heads = reader.checkpoints(origin, from, 1000).await?;
        next = heads.last().map(|last| last.size + 1);
        for head in &heads {
            target.add_checkpoint(origin, head).await?;
        }
    }
    Ok(())
}

async fn write_chunk(target: &mut Database, origin: &str, entries: &[StoredEntry]) -> Result<(), Error> {
    let row = |entry: &StoredEntry| {
        let salt = entry.salt.as_deref().map_or(Ok([0; 32]), TryInto::try_into);
        let salt = salt.map_err(|_| {
            Error::Fatal(format!("entry {} of {origin} has a damaged salt; nothing was written", entry.index))
        })?;
        Ok(EntryRow {
            index: entry.index,
            kind: entry.kind.clone().into(),
            of: entry.of.clone(),
            envelope: entry.envelope.clone(),
            salt,
            body: entry.body.clone().unwrap_or_default(),
        })
    };
    let rows = target.append(origin, &entries.iter().map(row).collect::<Result<Vec<_>, _>>()?).await?;
    let (changes, updates) =
        parted(rows.into_iter().zip(entries).filter_map(|(row, entry)| projected(row, entry)));
    target.project(&changes, &updates).await
}

/// Derives the projection anew from the log.
pub(super) async fn rebuild(database: &mut Database) -> Result<(), Error> {
    database.begin().await?;
    database.clear_projection(PROJECTION_VERSION).await?;
    let mut next = 0;
    loop {
        let entries = database.entries_from(next).await?;
        let Some(last) = entries.last() else { break };
        next = last.row + 1;
        let (changes, updates) = parted(entries.iter().filter_map(|entry| projected(entry.row, entry)));
        database.project(&changes, &updates).await?;
    }
    database.commit().await
}

/// What an entry as it is stored does to the projection.
pub(super) fn projected(row: i64, entry: &StoredEntry) -> Option<Projected> {
    let envelope: Value = json::own(&entry.envelope).unwrap_or(Value::Null);
    let payload: Value = json::own(entry.body.as_deref().unwrap_or(b"{}")).unwrap_or(Value::Null);
    let facts = Facts {
        origin: &entry.origin,
        index: entry.index,
        kind: &entry.kind,
        at: envelope["at"].as_i64().unwrap_or(0),
        of: entry.of.as_ref(),
        change: envelope["change"].as_str().map(str::to_owned),
        target: envelope["target"].as_str(),
        operation: envelope["operation"].as_str(),
        seq: envelope["seq"].as_u64(),
        result: envelope["result"].as_str(),
    };
    project(&facts, &Gist::of(&payload)).map(|projected| projected.at_row(row))
}

/// Size and frontier of the tree over a log's entries.
async fn verified(database: &mut Database, origin: &str) -> Result<(u64, Vec<u8>), Error> {
    let mut tree = Frontier::default();
    loop {
        let entries = database.entries_of(origin, tree.size()).await?;
        if entries.is_empty() {
            return Ok((tree.size(), tree.bytes()));
        }
        for entry in entries {
            if entry.index != tree.size() {
                return Err(Error::Fatal(format!("{origin} has no entry {}", tree.size())));
            }
            tree.push(leaf(&entry.envelope));
        }
    }
}

async fn logs(database: &mut Database) -> Result<Vec<(String, Head)>, Error> {
    database.begin().await?;
    let mut logs = Vec::new();
    for (origin, _) in database.meta("public_key").await? {
        let head = database.head(&origin).await?;
        let head = head.ok_or_else(|| Error::Fatal(format!("the log {origin} has no head")))?;
        logs.push((origin, head));
    }
    database.rollback().await?;
    Ok(logs)
}

fn same(one: &Head, other: &Head) -> bool {
    one.size == other.size && one.frontier == other.frontier
}

/// A store that gateways share has no lock file; their leases say who is alive.
async fn nobody_writes(location: &Location) -> Result<(), Error> {
    let reader = Reader::open(location).await?;
    let logs = reader.logs().await;
    reader.close().await;
    let alive = logs?.into_iter().find(|log| log.leased_for.is_some_and(|left| left > 0));
    alive.map_or(Ok(()), |log| {
        let origin = log.origin;
        Err(Error::Wait(format!("{location} is being written by the gateway of {origin}; stop it first")))
    })
}

/// Nobody writes an SQLite file meanwhile.
fn lock(location: &Location) -> Result<Option<std::fs::File>, Error> {
    let Some(path) = location.path().filter(|_| !location.is_missing()) else { return Ok(None) };
    match keys::lock(&store::lock_path(path)) {
        Ok(Some(file)) => Ok(Some(file)),
        Ok(None) => Err(Error::Wait(format!("{location} is being written by a gateway; stop it first"))),
        Err(error) => Err(Error::Wait(format!("{}: {error}", store::lock_path(path).display()))),
    }
}
