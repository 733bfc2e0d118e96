//! Whether a store tells one story: every log in it, read without the gateway and beside it.
//!
//! For each log the entries are numbered without gaps, say of themselves what their rows say, follow one another in time,
//! keep the payloads whose digests they hold, speak only of what was there before, and give the head and the tiles that
//! are stored and every head that was ever signed (`story`, `heads`). Over all logs the changes of one target are counted
//! without gaps, and a log that follows another says truly where that one ended. The first entry that is wrong is named.
//! What this shows rests on who signed: the host's own key, one that is trusted, or a witness who saw it at a time.

mod across;
mod exported;
mod heads;
mod projection;
mod story;

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use tokio_util::task::TaskTracker;

use super::checkpoint::{Note, Verifier};
use crate::clock::Time;
use crate::store::{Error, Location, LogRow, Reader};

use across::Across;
pub use exported::export;
use heads::Heads;
use story::{Digested, Retention, Story, digest};

/// Entries of one read, and reads ahead.
const CHUNK: u32 = 1000;
const AHEAD: usize = 3;

/// What is asked beside the story itself.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// Keys that are trusted.
    pub keys: Vec<Verifier>,
    /// Witnesses whose word counts.
    pub witnesses: Vec<Verifier>,
    /// Heads that were kept elsewhere: the log has to begin with what they are of.
    pub heads: Vec<Note>,
    /// The same of those that are renewed as the log grows: of a log that is closed they may say what it has lost.
    pub kept: Vec<Note>,
    /// How long ago a witness has to have seen each log, at most.
    pub anchor: Option<Duration>,
    /// Whether the projection is compared with what it is derived from.
    pub projection: bool,
    /// The time it is asked.
    pub now: Option<Time>,
}

/// A log, and what was found.
#[derive(Clone, Debug, Default)]
pub struct Verified {
    /// Its name.
    pub origin: String,
    /// Number of entries that were read.
    pub size: u64,
    /// Root hash of the tree over them, hex.
    pub root: String,
    /// How many entries there are of each kind.
    pub kinds: BTreeMap<String, u64>,
    /// Payloads that retention removed.
    pub pruned: u64,
    /// Signed heads it was compared with.
    pub heads: u64,
    /// Of them, those that were kept elsewhere or beside the store.
    pub given: u64,
    /// The newest of them.
    pub signed: Option<Signed>,
    /// Entries after it.
    pub unsigned: u64,
    /// The last time each witness saw it.
    pub seen: Vec<Seen>,
    /// The log that goes on in its place.
    pub followed: Option<Followed>,
    /// What is wrong first.
    pub fault: Option<Fault>,
}

/// The end of a log.
#[derive(Clone, Debug)]
pub struct Followed {
    /// The log that follows.
    pub by: String,
    /// Entries that were committed after the end and are lost, as that one says; `None`: it cannot say.
    pub lost: Option<u64>,
}

/// A signed head.
#[derive(Clone, Debug)]
pub struct Signed {
    /// Number of entries.
    pub size: u64,
    /// Whether by a key that is trusted, or only by those the store names.
    pub is_trusted: bool,
}

/// A witness saw a log.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The witness.
    pub name: String,
    /// How many entries it had.
    pub size: u64,
    /// Seconds since 1970.
    pub at: u64,
}

/// What is wrong.
#[derive(Clone, Debug)]
pub struct Fault {
    /// With which entry; `None`: with the log as a whole.
    pub index: Option<u64>,
    /// What.
    pub what: String,
}

impl Fault {
    fn of_log(what: impl Into<String>) -> Self {
        Self { index: None, what: what.into() }
    }

    fn at(index: u64, what: impl Into<String>) -> Self {
        Self { index: Some(index), what: what.into() }
    }
}

fn not_the_head(size: u64) -> Fault {
    Fault::of_log(format!(
        "its first {size} entries do not give the head that was signed over them; one of them was replaced"
    ))
}

/// Reads every log up to the head it has now; `read` hears of each step.
pub async fn run(
    store: &Location,
    asked: &Asked,
    mut read: impl FnMut(usize),
) -> Result<Vec<Verified>, Error> {
    let reader = Reader::open(store).await?;
    let found = settled(&reader, asked, &mut read).await;
    reader.close().await;
    found
}

/// A prune that begins meanwhile takes what a pass still looks for; then there is another one.
async fn settled(
    reader: &Reader,
    asked: &Asked,
    read: &mut impl FnMut(usize),
) -> Result<Vec<Verified>, Error> {
    let mut below = reader.meta("pruned_below").await?;
    loop {
        let found = pass(reader, &below, asked, read).await?;
        let now = reader.meta("pruned_below").await?;
        if now == below || found.iter().all(|log| log.fault.is_none()) {
            return Ok(found);
        }
        below = now;
    }
}

async fn pass(
    reader: &Reader,
    below: &[(String, String)],
    asked: &Asked,
    read: &mut impl FnMut(usize),
) -> Result<Vec<Verified>, Error> {
    let mut across = Across::within(Retention::of(below));
    // All heads at one moment: what is appended meanwhile is not looked at.
    let logs = reader.logs().await?;
    let mut found = Vec::new();
    for log in &logs {
        found.push(one(reader, log, asked, &mut across, read).await?);
    }
    let followed = logs.iter().filter_map(|log| Some((log.origin.clone(), log.succeeded_by.clone()?)));
    across.conclude(&followed.collect(), &mut found);
    unknown_names(asked, &across, &mut found);
    if asked.projection && found.iter().all(|log| log.fault.is_none()) {
        projection::compare(reader, &mut found, read).await?;
    }
    Ok(found)
}

/// A head of a log that is not there; or a key of one, and of which no log says so.
fn unknown_names(asked: &Asked, across: &Across, found: &mut Vec<Verified>) {
    let is_told = |name: &String| across.successions.iter().any(|(_, said)| said["previous"] == **name);
    let keys = asked.keys.iter().map(|key| &key.name).filter(|name| !is_told(name));
    for name in keys.chain(asked.heads.iter().map(|head| &head.checkpoint.origin)) {
        if !found.iter().any(|log| log.origin == *name) {
            let fault = Some(Fault::of_log("the store has no log of this name"));
            found.push(Verified { origin: name.clone(), fault, ..Verified::default() });
        }
    }
}

async fn one(
    reader: &Reader,
    log: &LogRow,
    asked: &Asked,
    across: &mut Across,
    read: &mut impl FnMut(usize),
) -> Result<Verified, Error> {
    let mut story = Story::new(&log.origin, across);
    let mut heads = Heads::of(reader, log, asked).await?;
    let mut fault = heads.begin();
    if fault.is_none() {
        // Whatever is still read ahead when the log is found wrong is of no use, and ends before anything else is read.
        let ahead = TaskTracker::new();
        let told = tell(reader, log, &mut story, &mut heads, across, &ahead, read).await;
        ahead.close();
        ahead.wait().await;
        fault = told?;
    }
    if fault.is_none() && story.tree.bytes() != log.frontier {
        fault =
            Some(Fault::of_log("its entries do not give the head that is stored; one of them was replaced"));
    }
    if fault.is_none() {
        fault = heads.end(&story.tree, asked, log.succeeded_by.is_some());
    }
    if fault.is_none() {
        fault = beyond(reader, log).await?;
    }
    if fault.is_none() {
        fault = story.tiles_fault(reader).await?;
    }
    let mut verified = story.verified(across);
    verified.unsigned =
        verified.size - heads.newest.as_ref().map_or(0, |newest| newest.size.min(verified.size));
    verified.given = heads.passed_given;
    (verified.heads, verified.signed, verified.seen, verified.fault) =
        (heads.passed, heads.newest, heads.seen, fault);
    Ok(verified)
}

/// Takes one entry after the other up to the first that is wrong; chunks are read and hashed ahead, beside each other.
async fn tell(
    reader: &Reader,
    log: &LogRow,
    story: &mut Story,
    heads: &mut Heads<'_>,
    across: &mut Across,
    ahead: &TaskTracker,
    read: &mut impl FnMut(usize),
) -> Result<Option<Fault>, Error> {
    let chunks = stream::iter((0..log.size).step_by(CHUNK as usize))
        .map(|from| ahead.spawn(digested(reader.clone(), log.origin.clone(), from..log.size)));
    let mut chunks = std::pin::pin!(chunks.buffered(AHEAD));
    while story.size() < log.size {
        let chunk = chunks.next().await.unwrap_or(Ok(Ok(Vec::new())));
        let chunk = chunk.map_err(|lost| Error::Wait(lost.to_string()))??;
        let count = chunk.len();
        if count == 0 {
            return Ok(Some(Fault::at(story.size(), "it is missing")));
        }
        for entry in chunk {
            heads.met(entry.at());
            if let Err(what) = story.take(entry, across) {
                return Ok(Some(Fault::at(story.size(), what)));
            }
            if heads.is_due(story.size())
                && let Some(wrong) = heads.pass(&story.tree).await?
            {
                return Ok(Some(wrong));
            }
        }
        read(count);
    }
    Ok(None)
}

/// A chunk of a log's entries, each judged by itself.
async fn digested(reader: Reader, origin: String, within: Range<u64>) -> Result<Vec<Digested>, Error> {
    let mut entries = reader.entries_of(&origin, within.start, CHUNK).await?;
    entries.retain(|entry| entry.index < within.end);
    let hashing = move || entries.iter().map(|entry| digest(entry, true)).collect();
    tokio::task::spawn_blocking(hashing).await.map_err(|lost| Error::Wait(lost.to_string()))
}

/// An entry after the head is nobody's, unless somebody writes it just now and moves the head.
async fn beyond(reader: &Reader, log: &LogRow) -> Result<Option<Fault>, Error> {
    if reader.envelopes(&log.origin, log.size..log.size + 1).await?.is_empty() {
        return Ok(None);
    }
    let now = reader.logs().await?;
    let has_moved = now.iter().any(|now| now.origin == log.origin && now.size > log.size);
    Ok((!has_moved).then(|| Fault::at(log.size, "it follows the head of the log; nobody has committed it")))
}
