//! A log beside every head that was signed of it, and the keys that signed.
//!
//! Stored heads are read in the order of their sizes while the entries go by; those that were kept elsewhere join them.
//! The keys are those the store names, each but the first on the word of the one before, and those that are trusted with
//! what follows them.

use std::collections::VecDeque;

use super::super::checkpoint::{Note, Verifier};
use super::super::evidence::{KeyChange, followed, key_changes_of, under};
use super::super::tree::Frontier;
use super::{Asked, Fault, Seen, Signed};
use crate::store::{Error, LogKey, LogRow, Reader};

/// Heads that are read at once.
const HEADS: u32 = 1000;
/// Heads are signed every second, so a run that was killed leaves less than this unsigned. In microseconds.
const UNSIGNED: i64 = 10_000_000;

pub(super) struct Heads<'a> {
    reader: &'a Reader,
    origin: String,
    /// Of the store, the next ones.
    stored: VecDeque<Note>,
    /// From which size on the store has more; `None`: none.
    more: Option<u64>,
    /// Kept elsewhere, the smallest last.
    given: Vec<Note>,
    known: Vec<Verifier>,
    trusted: Vec<Verifier>,
    witnesses: Vec<Verifier>,
    /// What is wrong before any entry is read.
    wrong: Option<Fault>,
    /// Compared so far.
    pub(super) passed: u64,
    /// Of them, those that were given.
    pub(super) passed_given: u64,
    pub(super) newest: Option<Signed>,
    pub(super) seen: Vec<Seen>,
    /// Times of the first and the last entry after the newest head.
    unsigned: Option<(i64, i64)>,
}

impl<'a> Heads<'a> {
    pub(super) async fn of(reader: &'a Reader, log: &LogRow, asked: &Asked) -> Result<Self, Error> {
        let origin = log.origin.as_str();
        let keys: Vec<LogKey> =
            reader.log_keys().await?.into_iter().filter(|key| key.origin == origin).collect();
        let changes = key_changes_of(reader, origin).await?;
        let verifier = |key: &LogKey| Verifier::of_stored(origin, &key.public);
        let trusted = under(origin, &asked.keys);
        let kept = asked.kept.iter().filter(|_| log.succeeded_by.is_none());
        // One of an empty log says nothing.
        let is_ours = |head: &&Note| head.checkpoint.origin == origin && head.checkpoint.size > 0;
        let given = asked.heads.iter().chain(kept).filter(is_ours);
        let mut given: Vec<Note> = given.cloned().collect();
        given.sort_by_key(|head| std::cmp::Reverse(head.checkpoint.size));
        let mut heads = Self {
            reader,
            origin: origin.to_owned(),
            stored: VecDeque::new(),
            more: Some(0),
            given,
            known: keys.iter().filter_map(verifier).collect(),
            trusted: followed(&trusted, &changes),
            witnesses: asked.witnesses.clone(),
            wrong: unfounded(origin, &keys, &changes),
            passed: 0,
            passed_given: 0,
            newest: None,
            seen: Vec::new(),
            unsigned: None,
        };
        let unreadable = heads.refill().await?;
        heads.wrong = heads.wrong.or(unreadable);
        Ok(heads)
    }

    /// A key that nobody signed for, or a head that cannot be read.
    pub(super) fn begin(&mut self) -> Option<Fault> {
        self.wrong.take()
    }

    async fn refill(&mut self) -> Result<Option<Fault>, Error> {
        let Some(from) = self.more.filter(|_| self.stored.is_empty()) else { return Ok(None) };
        let rows = self.reader.checkpoints(&self.origin, from, HEADS).await?;
        self.more = rows.last().filter(|_| rows.len() == HEADS as usize).map(|last| last.size + 1);
        for row in rows {
            match Note::read(&row.note()) {
                Ok(note) if note.checkpoint.origin == self.origin && note.checkpoint.size == row.size => {
                    self.stored.push_back(note);
                }
                Ok(_) => {
                    return Ok(Some(of_head(row.size, "it is of another log or size than its row says")));
                }
                Err(doubt) => return Ok(Some(of_head(row.size, &doubt.to_string()))),
            }
        }
        Ok(None)
    }

    /// Whether there are heads of a size that is reached.
    pub(super) fn is_due(&self, size: u64) -> bool {
        let is_reached = |head: &Note| head.checkpoint.size <= size;
        self.stored.front().is_some_and(is_reached) || self.given.last().is_some_and(is_reached)
    }

    /// Compares the heads of the size that is reached.
    pub(super) async fn pass(&mut self, tree: &Frontier) -> Result<Option<Fault>, Error> {
        let size = tree.size();
        while self.stored.front().is_some_and(|head| head.checkpoint.size <= size) {
            let Some(head) = self.stored.pop_front() else { break };
            if let Some(fault) = self.compare(&head, tree) {
                return Ok(Some(fault));
            }
            if let Some(fault) = self.refill().await? {
                return Ok(Some(fault));
            }
        }
        while let Some(head) = self.given.pop_if(|head| head.checkpoint.size <= size) {
            if let Some(fault) = self.compare(&head, tree) {
                return Ok(Some(fault));
            }
            self.passed_given += 1;
        }
        Ok(None)
    }

    /// An entry of that time goes by.
    pub(super) fn met(&mut self, at: i64) {
        self.unsigned = Some((self.unsigned.map_or(at, |(first, _)| first), at));
    }

    fn compare(&mut self, head: &Note, tree: &Frontier) -> Option<Fault> {
        let size = head.checkpoint.size;
        let keys = [&self.trusted[..], &self.known[..]].concat();
        if let Err(doubt) = head.signed_by(&keys) {
            return Some(of_head(size, &doubt.to_string()));
        }
        if head.checkpoint != tree.of_log(&self.origin) {
            return Some(super::not_the_head(size));
        }
        if let Err(fault) = look_for_witnesses(head, &self.witnesses, &mut self.seen) {
            return Some(fault);
        }
        self.passed += 1;
        let is_trusted = head.signed_by(&self.trusted).is_ok();
        if is_trusted {
            self.unsigned = None;
        }
        if self.newest.as_ref().is_none_or(|newest| newest.size <= size) {
            self.newest = Some(Signed { size, is_trusted });
        }
        None
    }

    /// What is left when all entries have gone by.
    pub(super) fn end(&mut self, tree: &Frontier, asked: &Asked, is_closed: bool) -> Option<Fault> {
        let beyond = self.stored.iter().chain(&self.given).map(|head| head.checkpoint.size).max();
        if let Some(size) = beyond {
            let more = size.saturating_sub(tree.size() + 1);
            let what = format!("it is missing, with {more} more: a head of {size} entries was signed");
            return Some(Fault::at(tree.size(), what));
        }
        // Nobody signs a log any more that another one follows; that one says where it ended.
        if is_closed {
            return None;
        }
        if !self.trusted.is_empty() && !self.newest.as_ref().is_some_and(|newest| newest.is_trusted) {
            let what = "its newest head is signed by none of the keys that were given, nor by one that followed them";
            return Some(Fault::of_log(what));
        }
        let spans = self.unsigned.filter(|_| !self.trusted.is_empty());
        if spans.is_some_and(|(first, last)| last - first > UNSIGNED) {
            let signed = self.newest.as_ref().map_or(0, |newest| newest.size);
            let what = "it and what follows are signed by nobody, though a head is signed every second";
            return Some(Fault::at(signed, what));
        }
        unseen(&self.seen, asked)
    }
}

/// Notes which witnesses signed a head, and when.
pub(super) fn look_for_witnesses(
    head: &Note,
    witnesses: &[Verifier],
    seen: &mut Vec<Seen>,
) -> Result<(), Fault> {
    let size = head.checkpoint.size;
    for witness in witnesses {
        let at = head.witnessed_by(witness).map_err(|doubt| of_head(size, &doubt.to_string()))?;
        let Some(at) = at else { continue };
        seen.retain(|seen| seen.name != witness.name || seen.at > at);
        if !seen.iter().any(|seen| seen.name == witness.name) {
            seen.push(Seen { name: witness.name.clone(), size, at });
        }
    }
    Ok(())
}

/// Whether no witness has seen the log as lately as it is asked for.
pub(super) fn unseen(seen: &[Seen], asked: &Asked) -> Option<Fault> {
    let (limit, now) = (asked.anchor?, asked.now?);
    let newest = seen.iter().map(|seen| seen.at).max();
    let age = newest.map(|at| u64::try_from(now.0 / 1_000_000).unwrap_or(0).saturating_sub(at));
    match age {
        Some(age) if age <= limit.as_secs() => None,
        Some(age) => Some(Fault::of_log(format!(
            "a witness saw it last {age} s ago, longer than the {} s that are asked for",
            limit.as_secs()
        ))),
        None => Some(Fault::of_log("none of the witnesses that are trusted has seen it")),
    }
}

fn of_head(size: u64, what: &str) -> Fault {
    Fault::of_log(format!("its signed head of {size} entries: {what}"))
}

/// Each key but the first is there on the word of one before it, said in the entry it counts from.
fn unfounded(origin: &str, keys: &[LogKey], changes: &[KeyChange]) -> Option<Fault> {
    let mut known: Vec<Verifier> = Vec::new();
    for key in keys {
        let verifier = Verifier::of_stored(origin, &key.public);
        let follows = || {
            let verified = changes.iter().filter_map(KeyChange::verified);
            verified.into_iter().any(|(old, new)| Some(&new) == verifier.as_ref() && known.contains(&old))
        };
        if !known.is_empty() && !follows() {
            let what = "the log is said to have a new key from here on, and no key before signed for it";
            return Some(Fault::at(key.since, what));
        }
        known.extend(verifier);
    }
    None
}
