//! Whether a store tells one story: every log in it, read without the gateway and beside it.
//!
//! For each log the entries are numbered without gaps, say of themselves what their rows say, follow one another in time,
//! keep the payloads whose digests they hold, speak only of what was there before, and give the head and the tiles that
//! are stored and every head that was ever signed (`story`, `heads`). Over all logs the changes of one target are counted
//! without gaps, and a log that follows another says truly where that one ended. The first entry that is wrong is named.
//! What this shows rests on who signed: the host's own key, one that is trusted, or a witness who saw it at a time.

mod exported;
mod heads;
mod projection;
mod story;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use serde_json::Value;

use super::checkpoint::{Note, Verifier};
use crate::clock::Time;
use crate::store::{Error, Location, LogRow, Reader};

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

/// A log by its number in [`Across::names`], and an entry of it.
type Place = (u32, u64);

/// What concerns more than one log.
#[derive(Default)]
struct Across {
    /// The logs that are read: elsewhere they are numbers.
    names: Vec<String>,
    /// Of each target: the changes with their places.
    counted: HashMap<String, Vec<(u64, Place)>>,
    /// Of each target: its newest change that was applied, with the entries retention has to keep of it.
    newest: HashMap<String, (u64, Vec<(String, u64)>)>,
    /// Of each log: which entries lack their payload.
    lacking: HashMap<String, Vec<bool>>,
    retention: Retention,
    /// Entries that speak of another log's.
    foreign: Vec<(String, u64, String, u64)>,
    /// What the first entry of a log that follows another says.
    successions: Vec<(String, Value)>,
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
    let mut across = Across { retention: Retention::of(below), ..Across::default() };
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
    // Read and hashed ahead, on as many cores as there are.
    let chunks = stream::iter((0..log.size).step_by(CHUNK as usize)).map(|from| digested(reader, log, from));
    let mut chunks = std::pin::pin!(chunks.buffered(AHEAD));
    'reading: while fault.is_none() && story.size() < log.size {
        let chunk = chunks.next().await.unwrap_or(Ok(Vec::new()))?;
        let count = chunk.len();
        if count == 0 {
            fault = Some(Fault::at(story.size(), "it is missing"));
        }
        for entry in chunk {
            heads.met(entry.at());
            if let Err(what) = story.take(entry, across) {
                fault = Some(Fault::at(story.size(), what));
                break 'reading;
            }
            if let Some(wrong) = heads.pass(&story.tree).await? {
                fault = Some(wrong);
                break 'reading;
            }
        }
        read(count);
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

/// A chunk of a log's entries from a number on, each judged by itself.
async fn digested(reader: &Reader, log: &LogRow, from: u64) -> Result<Vec<Digested>, Error> {
    let mut entries = reader.entries_of(&log.origin, from, CHUNK).await?;
    entries.retain(|entry| entry.index < log.size);
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

impl Across {
    /// What can be said once every log was read; `followed` says which log goes on in another's place. A fault goes to the log it concerns, unless that has one.
    fn conclude(&mut self, followed: &HashMap<String, String>, found: &mut [Verified]) {
        let mut faults: Vec<(String, Fault)> = Vec::new();
        for log in found.iter().filter(|log| log.pruned > 0) {
            faults.extend(self.retention.unsaid(&log.origin).map(|fault| (log.origin.clone(), fault)));
        }
        faults.extend(self.out_of_order());
        faults.extend(self.kept_and_gone());
        for (origin, index, of_origin, of_index) in &self.foreign {
            // A log that a store lost entries of was succeeded, and its successor may speak of what is lost.
            let is_there = found.iter().any(|log| log.origin == *of_origin && *of_index < log.size)
                || followed.contains_key(of_origin);
            if !is_there {
                let what = format!("it speaks of entry {of_index} of {of_origin}, which is not there");
                faults.push((origin.clone(), Fault::at(*index, what)));
            }
        }
        for (origin, said) in &self.successions {
            let what = wrong_succession(said, origin, followed, found);
            faults.extend(what.map(|what| (origin.clone(), Fault::at(0, what))));
        }
        for (previous, by) in followed {
            if !self.successions.iter().any(|(origin, said)| origin == by && said["previous"] == **previous) {
                let what = format!("it is marked as followed by {by}, whose first entry does not say so");
                faults.push((previous.clone(), Fault::of_log(what)));
            }
        }
        for (previous, by) in followed {
            let said = self.successions.iter().find(|(origin, _)| origin == by).map(|(_, said)| said);
            let Some(log) = found.iter_mut().find(|log| log.origin == *previous) else { continue };
            // Of another log than this one it says only where that ended.
            let known = said.filter(|said| said["known"]["origin"].is_null());
            let lost = known.and_then(|said| said["known"]["size"].as_u64()?.checked_sub(log.size));
            log.followed = Some(Followed { by: by.clone(), lost });
        }
        for (origin, fault) in faults {
            if let Some(log) = found.iter_mut().find(|log| log.origin == origin && log.fault.is_none()) {
                log.fault = Some(fault);
            }
        }
    }

    /// The changes of a target are 1, 2, 3, … over all logs.
    fn out_of_order(&mut self) -> Option<(String, Fault)> {
        let names = &self.names;
        std::mem::take(&mut self.counted).into_iter().find_map(|(target, mut changes)| {
            changes.sort_unstable();
            let wrong = (1..).zip(&changes).find(|(expected, (seq, ..))| expected != seq);
            wrong.map(|(expected, (seq, (log, index)))| {
                let what = format!("it is change {seq} of {target}, where change {expected} has to be");
                (names[*log as usize].clone(), Fault::at(*index, what))
            })
        })
    }

    /// Retention keeps what was said of each target's newest applied change: by it drift is told.
    fn kept_and_gone(&self) -> Vec<(String, Fault)> {
        let lacks = |(origin, index): &&(String, u64)| {
            let index = usize::try_from(*index).unwrap_or(usize::MAX);
            self.lacking.get(origin).and_then(|log| log.get(index)).copied().unwrap_or(false)
        };
        let gone =
            self.newest.iter().filter_map(|(target, (_, kept))| Some((target, kept.iter().find(lacks)?)));
        let fault = |(target, (origin, index)): (&String, &(String, u64))| {
            let what =
                format!("its payload is missing; retention keeps that of the newest change of {target}");
            (origin.clone(), Fault::at(*index, what))
        };
        gone.map(fault).collect()
    }

    /// An outcome or settlement says that a change of a target was applied.
    fn applied(&mut self, target: String, seq: u64, by: (String, u64), of: (String, u64)) {
        let newest = self.newest.entry(target).or_default();
        if seq >= newest.0 {
            // An outcome and a settlement of one change are both kept.
            let mut kept = if seq == newest.0 { std::mem::take(&mut newest.1) } else { Vec::new() };
            kept.extend([of, by]);
            *newest = (seq, kept);
        }
    }
}

/// A log that follows another was begun because that one had lost something, and says where it ends.
fn wrong_succession(
    said: &Value,
    origin: &str,
    followed: &HashMap<String, String>,
    found: &[Verified],
) -> Option<String> {
    let previous = said["previous"].as_str().unwrap_or_default();
    let Some(ended) = found.iter().find(|log| log.origin == previous) else {
        // The store lost all of it.
        return (!said["found"].is_null()).then(|| format!("it follows {previous}, which is not there"));
    };
    if ended.fault.is_some() {
        return None;
    }
    let by = followed.get(previous).map(String::as_str);
    let is_true = said["found"]["size"] == ended.size && said["found"]["root"] == *ended.root;
    (!is_true || by != Some(origin)).then(|| {
        format!(
            "it says that {previous} ended with {} entries, and that one has {}",
            said["found"]["size"], ended.size
        )
    })
}
