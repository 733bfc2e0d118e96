//! Whether a store tells one story: every log in it, read without the gateway and beside it.
//!
//! For each log the entries are numbered without gaps, say of themselves what their rows say, follow one another in time,
//! keep the payloads whose digests they hold, speak only of what was there before, and give the head that is stored. Over
//! all logs the changes of one target are counted without gaps. The first entry that is wrong is named. This shows that
//! nothing was changed by somebody who did not also rewrite what follows; who wrote it, and when, it does not show.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use super::entry::payload_digest;
use super::tree::Frontier;
use crate::json;
use crate::store::{Error, Location, LogRow, Reader, StoredEntry};

/// A log, and what was found.
#[derive(Clone, Debug)]
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
    /// What is wrong first.
    pub fault: Option<Fault>,
}

/// What is wrong.
#[derive(Clone, Debug)]
pub struct Fault {
    /// With which entry; `None`: with the log as a whole.
    pub index: Option<u64>,
    /// What.
    pub what: String,
}

/// Reads every log up to the head it has now; `read` hears of each step.
pub async fn run(store: &Location, mut read: impl FnMut(usize)) -> Result<Vec<Verified>, Error> {
    let reader = Reader::open(store).await?;
    let mut below = reader.meta("pruned_below").await?;
    let found = loop {
        let found = pass(&reader, &below, &mut read).await?;
        let is_whole = found.iter().all(|log| log.fault.is_none());
        // A prune that began meanwhile took what this pass still looked for.
        let now = reader.meta("pruned_below").await?;
        if is_whole || now == below {
            break found;
        }
        below = now;
    };
    reader.close().await;
    Ok(found)
}

async fn pass(
    reader: &Reader,
    below: &[(String, String)],
    read: &mut impl FnMut(usize),
) -> Result<Vec<Verified>, Error> {
    let mut found = Vec::new();
    let mut counted: HashMap<String, Vec<(u64, String, u64)>> = HashMap::new();
    let below = below.iter().filter_map(|(origin, below)| Some((origin.clone(), below.parse().ok()?)));
    let mut retention = Retention { below: below.collect(), said: HashMap::new() };
    // All heads at one moment: what is appended meanwhile is not looked at.
    for log in reader.logs().await? {
        found.push(one(reader, &log, &mut counted, &mut retention, read).await?);
    }
    for log in found.iter_mut().filter(|log| log.fault.is_none() && log.pruned > 0) {
        log.fault = retention.unsaid(&log.origin);
    }
    if let Some((origin, fault)) = out_of_order(counted)
        && let Some(log) = found.iter_mut().find(|log| log.origin == origin && log.fault.is_none())
    {
        log.fault = Some(fault);
    }
    Ok(found)
}

async fn one(
    reader: &Reader,
    log: &LogRow,
    counted: &mut HashMap<String, Vec<(u64, String, u64)>>,
    retention: &mut Retention,
    read: &mut impl FnMut(usize),
) -> Result<Verified, Error> {
    let (mut tree, mut last_at, mut fault) = (Frontier::default(), 0, None);
    let (mut kinds, mut pruned) = (BTreeMap::new(), 0);
    'reading: while tree.size() < log.size {
        let entries = reader.entries_of(&log.origin, tree.size()).await?;
        if entries.is_empty() {
            fault = Some(Fault { index: Some(tree.size()), what: "it is missing".to_owned() });
            break;
        }
        let left = usize::try_from(log.size - tree.size()).unwrap_or(usize::MAX);
        for entry in entries.iter().take(left) {
            *kinds.entry(entry.kind.clone()).or_insert(0) += 1;
            pruned += u64::from(entry.body.is_none());
            let wrong = match own_story(entry, tree.size(), &mut last_at, counted, retention) {
                Ok(()) => foreign_story(reader, entry).await?,
                Err(what) => Some(what),
            };
            if let Some(what) = wrong {
                fault = Some(Fault { index: Some(tree.size()), what });
                break 'reading;
            }
            tree.append(&entry.envelope);
        }
        read(entries.len().min(left));
    }
    if fault.is_none() && tree.bytes() != log.frontier {
        let what = "its entries do not give the head that is stored; one of them was replaced".to_owned();
        fault = Some(Fault { index: None, what });
    }
    Ok(Verified {
        origin: log.origin.clone(),
        size: tree.size(),
        root: hex::encode(tree.root()),
        kinds,
        pruned,
        fault,
    })
}

/// What an entry says of itself, beside its row, its payload and what came before it.
fn own_story(
    entry: &StoredEntry,
    index: u64,
    last_at: &mut i64,
    counted: &mut HashMap<String, Vec<(u64, String, u64)>>,
    retention: &mut Retention,
) -> Result<(), String> {
    if entry.index != index {
        return Err(format!("it is missing; the next one is {}", entry.index));
    }
    let envelope: Value =
        json::own(&entry.envelope).map_err(|error| format!("its envelope is no JSON: {error}"))?;
    if envelope["v"] != 1 || envelope["index"].as_u64() != Some(index) {
        return Err("its envelope is that of another entry".to_owned());
    }
    if envelope["kind"].as_str() != Some(&entry.kind) {
        return Err(format!("its row says {} and its envelope {}", entry.kind, envelope["kind"]));
    }
    let of = envelope["of"]["origin"].as_str().map(str::to_owned).zip(envelope["of"]["index"].as_u64());
    if of != entry.of {
        return Err("its row and its envelope speak of different entries".to_owned());
    }
    if entry.of.as_ref().is_some_and(|of| of.0 == entry.origin && of.1 >= index) {
        return Err("it speaks of an entry that came later".to_owned());
    }
    let at = envelope["at"].as_i64().unwrap_or(0);
    if at <= *last_at {
        return Err("its time is not after that of the entry before".to_owned());
    }
    *last_at = at;
    match (&entry.salt, &entry.body) {
        (Some(salt), Some(body)) => {
            if envelope["payload"].as_str() != Some(payload_digest(salt, body).as_str()) {
                return Err("its payload is not the one its envelope has the digest of".to_owned());
            }
            if envelope["operation"] == "lifecycle.prune" {
                retention.hear(body);
            }
        }
        _ if retention.may_lack(entry) => {}
        _ => return Err("its payload is missing".to_owned()),
    }
    if let (Some(target), Some(seq), "attempt") =
        (envelope["target"].as_str(), envelope["seq"].as_u64(), &*entry.kind)
    {
        counted.entry(target.to_owned()).or_default().push((seq, entry.origin.clone(), index));
    }
    Ok(())
}

/// What may be gone of payloads: the store's mark, and what entries of its logs say of it.
struct Retention {
    below: HashMap<String, u64>,
    said: HashMap<String, u64>,
}

impl Retention {
    fn hear(&mut self, body: &[u8]) {
        let said: Value = json::own(body).unwrap_or(Value::Null);
        for log in said["logs"].as_array().into_iter().flatten() {
            if let (Some(origin), Some(below)) = (log["origin"].as_str(), log["below"].as_u64()) {
                let known = self.said.entry(origin.to_owned()).or_default();
                *known = below.max(*known);
            }
        }
    }

    /// Entries about the gateway itself keep theirs.
    fn may_lack(&self, entry: &StoredEntry) -> bool {
        entry.kind != "lifecycle" && self.below.get(&entry.origin).is_some_and(|below| entry.index < *below)
    }

    /// A mark that no entry speaks of is not retention's.
    fn unsaid(&self, origin: &str) -> Option<Fault> {
        let below = self.below.get(origin).copied().unwrap_or(0);
        let said = self.said.get(origin).copied().unwrap_or(0);
        (below > said).then(|| Fault {
            index: Some(said),
            what: format!(
                "payloads are marked as pruned below {below}, and the log says so only below {said}"
            ),
        })
    }
}

/// What it speaks of in another log has to be there.
async fn foreign_story(reader: &Reader, entry: &StoredEntry) -> Result<Option<String>, Error> {
    let Some((origin, index)) = entry.of.as_ref().filter(|of| of.0 != entry.origin) else { return Ok(None) };
    let there = reader.entry(origin, *index).await?;
    // A log that a store lost entries of was succeeded, and its successor may speak of what is lost.
    let is_lost = there.is_none()
        && reader.logs().await?.iter().any(|log| log.origin == *origin && log.succeeded_by.is_some());
    Ok((there.is_none() && !is_lost)
        .then(|| format!("it speaks of entry {index} of {origin}, which is not there")))
}

/// The changes of a target are 1, 2, 3, … over all logs.
fn out_of_order(counted: HashMap<String, Vec<(u64, String, u64)>>) -> Option<(String, Fault)> {
    counted.into_iter().find_map(|(target, mut changes)| {
        changes.sort_unstable();
        let wrong = (1..).zip(&changes).find(|(expected, (seq, ..))| expected != seq);
        wrong.map(|(expected, (seq, origin, index))| {
            let what = format!("it is change {seq} of {target}, where change {expected} has to be");
            (origin.clone(), Fault { index: Some(*index), what })
        })
    })
}
