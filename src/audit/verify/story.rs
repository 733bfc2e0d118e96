//! What one log's entries say, each beside its row and its payload, and one after the other.
//!
//! What an entry says by itself is looked at apart from what it says among others, so that many can be hashed at once.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;
use serde_json::Value;

use super::super::envelope::payload_digest;
use super::super::tree::{Frontier, Hash, TILE, leaf, read_tile, tile_root};
use super::{Across, Fault, Verified};
use crate::id::EntryRef;
use crate::json;
use crate::store::{Error, Reader, StoredEntry};

/// Tiles that are read at once.
const TILES: u64 = 64;

/// What is looked at of an envelope.
#[derive(Deserialize)]
struct Envelope<'a> {
    v: u64,
    index: u64,
    at: i64,
    #[serde(borrow)]
    kind: Cow<'a, str>,
    of: Option<EntryRef>,
    #[serde(borrow)]
    operation: Option<Text<'a>>,
    target: Option<String>,
    seq: Option<u64>,
    #[serde(borrow)]
    result: Option<Text<'a>>,
    #[serde(borrow)]
    payload: Cow<'a, str>,
}

/// Text that is not copied if it can be had as it stands.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// An entry, as far as it can be judged by itself.
pub(super) struct Digested {
    index: u64,
    leaf: Hash,
    kind: String,
    of: Option<(String, u64)>,
    at: i64,
    change: Option<(String, u64)>,
    /// The same of an outcome or a settlement that says it was applied.
    applied: Option<(String, u64)>,
    has_payload: bool,
    /// The payload of an entry that others are judged by.
    said: Option<(String, Value)>,
    wrong: Option<String>,
}

/// Hashes an entry and compares it with its own row, where it has one, and its payload.
pub(super) fn digest(entry: &StoredEntry, has_row: bool) -> Digested {
    let mut digested = Digested {
        index: entry.index,
        leaf: leaf(&entry.envelope),
        kind: entry.kind.clone(),
        of: entry.of.clone(),
        at: 0,
        change: None,
        applied: None,
        has_payload: entry.body.is_some() && entry.salt.is_some(),
        said: None,
        wrong: None,
    };
    match json::own::<Envelope>(&entry.envelope) {
        Ok(envelope) => digested.compare(entry, envelope, has_row),
        Err(error) => digested.wrong = Some(format!("its envelope cannot be read: {error}")),
    }
    digested
}

impl Digested {
    /// When, in microseconds.
    pub(super) fn at(&self) -> i64 {
        self.at
    }

    fn compare(&mut self, entry: &StoredEntry, envelope: Envelope<'_>, has_row: bool) {
        let of = envelope.of.map(|of| (of.origin, of.index));
        self.at = envelope.at;
        self.wrong = if envelope.v != 1 || envelope.index != entry.index {
            Some("its envelope is that of another entry".to_owned())
        } else if envelope.kind != entry.kind {
            Some(format!("its row says {} and its envelope {}", entry.kind, envelope.kind))
        } else if has_row && of != entry.of {
            Some("its row and its envelope speak of different entries".to_owned())
        } else if entry.salt.is_some() != entry.body.is_some() {
            Some("it has a payload without salt, or a salt without payload".to_owned())
        } else if let (Some(salt), Some(body)) = (&entry.salt, &entry.body)
            && payload_digest(salt, body).as_str() != envelope.payload
        {
            Some("its payload is not the one its envelope has the digest of".to_owned())
        } else {
            None
        };
        self.of = of;
        let change = envelope.target.zip(envelope.seq);
        match &*entry.kind {
            "attempt" => self.change = change,
            "outcome" | "settlement"
                if envelope.result.as_ref().is_some_and(|result| result.0 == "applied") =>
            {
                self.applied = change;
            }
            _ => {}
        }
        let operation = envelope.operation.as_ref().map(|operation| &*operation.0);
        if let Some(name @ ("lifecycle.prune" | "lifecycle.succession")) = operation {
            let said = entry.body.as_deref().and_then(|body| json::own(body).ok());
            self.said = Some((name.to_owned(), said.unwrap_or(Value::Null)));
        }
    }
}

/// One log, as far as it was read.
pub(super) struct Story {
    origin: String,
    /// The log as a number.
    number: u32,
    /// Which entries lack their payload.
    lacking: Vec<bool>,
    pub(super) tree: Frontier,
    last_at: i64,
    kinds: BTreeMap<String, u64>,
    pruned: u64,
    /// Leaves after the last full tile, and the hashes of the full tiles of each level.
    leaves: Vec<Hash>,
    tiles: Vec<Vec<Hash>>,
}

impl Story {
    pub(super) fn new(origin: &str, across: &mut Across) -> Self {
        Self {
            origin: origin.to_owned(),
            number: across.number(origin),
            lacking: Vec::new(),
            tree: Frontier::default(),
            last_at: 0,
            kinds: BTreeMap::new(),
            pruned: 0,
            leaves: Vec::new(),
            tiles: Vec::new(),
        }
    }

    pub(super) fn size(&self) -> u64 {
        self.tree.size()
    }

    /// The next entry; an error says what is wrong with the one that had to come.
    pub(super) fn take(&mut self, entry: Digested, across: &mut Across) -> Result<(), String> {
        if entry.index != self.size() {
            return Err(format!("it is missing; the next one is {}", entry.index));
        }
        if let Some(wrong) = entry.wrong {
            return Err(wrong);
        }
        if entry.at <= self.last_at {
            return Err("its time is not after that of the entry before".to_owned());
        }
        self.last_at = entry.at;
        if let (Some((target, seq)), Some(of)) = (entry.applied, &entry.of) {
            let of = (across.number(&of.0), of.1);
            across.applied(target, seq, (self.number, entry.index), of);
        }
        match entry.of {
            Some((origin, index)) if origin == self.origin && index >= entry.index => {
                return Err("it speaks of an entry that came later".to_owned());
            }
            Some((origin, index)) if origin != self.origin => {
                across.foreign.push((self.origin.clone(), entry.index, origin, index));
            }
            _ => {}
        }
        self.lacking.push(!entry.has_payload);
        if !entry.has_payload {
            if !across.retention.may_lack(&self.origin, &entry.kind, entry.index) {
                return Err("its payload is missing".to_owned());
            }
            self.pruned += 1;
            across.retention.lacks(&self.origin, entry.index);
        }
        if let Some((target, seq)) = entry.change {
            across.counted.entry(target).or_default().push((seq, (self.number, entry.index)));
        }
        match entry.said {
            Some((name, said)) if name == "lifecycle.prune" => across.retention.hear(&said),
            Some((_, said)) if entry.index == 0 => across.successions.push((self.origin.clone(), said)),
            _ => {}
        }
        match self.kinds.get_mut(&entry.kind) {
            Some(count) => *count += 1,
            None => drop(self.kinds.insert(entry.kind, 1)),
        }
        self.tree.push(entry.leaf);
        self.leaves.push(entry.leaf);
        if self.leaves.len() as u64 == TILE {
            let full = tile_root(&self.leaves);
            self.leaves.clear();
            self.push_tile(0, full);
        }
        Ok(())
    }

    fn push_tile(&mut self, level: usize, root: Hash) {
        if self.tiles.len() == level {
            self.tiles.push(Vec::new());
        }
        self.tiles[level].push(root);
        if let ([.., tile], []) = self.tiles[level].as_chunks::<256>() {
            let full = tile_root(tile);
            self.push_tile(level + 1, full);
        }
    }

    /// Every tile that is stored has the hashes its entries give.
    pub(super) async fn tiles_fault(&self, reader: &Reader) -> Result<Option<Fault>, Error> {
        for (level, roots) in (0u8..).zip(&self.tiles) {
            let count = roots.len() as u64;
            for from in (0..count).step_by(usize::try_from(TILES).unwrap_or(1)) {
                for (number, bytes) in
                    reader.tiles(&self.origin, level, from..count.min(from + TILES)).await?
                {
                    let root = usize::try_from(number).ok().and_then(|number| roots.get(number));
                    if root.copied() != read_tile(&bytes).map(tile_root) || root.is_none() {
                        let what = format!(
                            "tile {number} of level {level} does not hold the hashes its entries give"
                        );
                        return Ok(Some(Fault::of_log(what)));
                    }
                }
            }
        }
        Ok(None)
    }

    pub(super) fn verified(mut self, across: &mut Across) -> Verified {
        if self.pruned > 0 {
            across.lacking.insert(self.origin.clone(), std::mem::take(&mut self.lacking));
        }
        Verified {
            size: self.size(),
            root: hex::encode(self.tree.root()),
            origin: self.origin,
            kinds: self.kinds,
            pruned: self.pruned,
            ..Verified::default()
        }
    }
}

/// What may be gone of payloads: the store's mark, and what entries of its logs say of it.
#[derive(Default)]
pub(super) struct Retention {
    below: HashMap<String, u64>,
    said: HashMap<String, u64>,
    /// Without marks: what is said later of an entry counts, and all is allowed until the end.
    is_told_later: bool,
}

impl Retention {
    pub(super) fn of(marks: &[(String, String)]) -> Self {
        let mark = |(origin, below): &(String, String)| Some((origin.clone(), below.parse().ok()?));
        Self { below: marks.iter().filter_map(mark).collect(), said: HashMap::new(), is_told_later: false }
    }

    /// There are no marks; entries that say what was removed come later than what they speak of.
    pub(super) fn believe(&mut self) {
        self.is_told_later = true;
    }

    /// A payload is not there: where there are no marks, that is one.
    fn lacks(&mut self, origin: &str, index: u64) {
        if self.is_told_later {
            self.below.insert(origin.to_owned(), index + 1);
        }
    }

    fn hear(&mut self, said: &Value) {
        for log in said["logs"].as_array().into_iter().flatten() {
            if let (Some(origin), Some(below)) = (log["origin"].as_str(), log["below"].as_u64()) {
                let known = self.said.entry(origin.to_owned()).or_default();
                *known = below.max(*known);
            }
        }
    }

    /// Entries about the gateway itself keep theirs.
    fn may_lack(&self, origin: &str, kind: &str, index: u64) -> bool {
        kind != "lifecycle"
            && (self.is_told_later || self.below.get(origin).is_some_and(|below| index < *below))
    }

    /// A mark that no entry speaks of is not retention's.
    pub(super) fn unsaid(&self, origin: &str) -> Option<Fault> {
        let below = self.below.get(origin).copied().unwrap_or(0);
        let said = self.said.get(origin).copied().unwrap_or(0);
        let what =
            format!("payloads are marked as pruned below {below}, and the log says so only below {said}");
        (below > said).then(|| Fault::at(said, what))
    }
}
