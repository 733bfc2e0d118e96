//! The locks: what opens a target, what frees it, and what keeps it held.
//!
//! The rows of a batch's targets are read and locked once, changed here, and written back with the batch. `seq` counts a
//! target's changes; `turn` moves on every open and on every close, so a reading begun while the target was held never
//! counts. A group that loses one of its locks leaves no trace.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::clock::Time;
use crate::id::EntryRef;
use crate::json;
use crate::store::{self, Database, TargetRow};

use super::{Group, TargetOp};

/// The locked rows of a batch.
#[derive(Clone, Debug, Default)]
pub(super) struct Targets {
    rows: BTreeMap<String, TargetRow>,
    /// As they were read.
    before: BTreeMap<String, TargetRow>,
    /// What the store's clock is ahead of ours.
    ahead: i64,
}

/// What became of a group's locks.
pub(super) enum Placed {
    /// It has them; the new `seq` of the target it opened.
    Kept(Option<u64>),
    Lost,
}

impl Targets {
    /// Locks every target the groups speak of.
    pub(super) async fn lock<'a>(
        database: &mut Database,
        groups: impl Iterator<Item = &'a Group>,
        wall: Time,
    ) -> Result<Self, store::Error> {
        let mut keys: Vec<String> =
            groups.flat_map(|group| &group.ops).filter_map(TargetOp::key).map(str::to_owned).collect();
        keys.sort_unstable();
        keys.dedup();
        if keys.is_empty() {
            return Ok(Self::default());
        }
        let (rows, now) = database.lock_targets(&keys).await?;
        let before: BTreeMap<_, _> = rows.into_iter().map(|row| (row.key.clone(), row)).collect();
        Ok(Self { rows: before.clone(), before, ahead: now.map_or(0, |now| now - wall.0) })
    }

    /// Does what a group asks of its targets, all of it or nothing. `last` will be its last entry.
    pub(super) fn place(&mut self, group: &Group, last: (&str, u64), wall: Time) -> Placed {
        let mut seq = None;
        // Of its own targets only: a batch locks hundreds.
        let keys = || group.ops.iter().filter_map(TargetOp::key);
        let undo: Vec<TargetRow> = keys().filter_map(|key| self.rows.get(key)).cloned().collect();
        for op in &group.ops {
            let kept = match op {
                TargetOp::Open { key, turn, over } => {
                    seq = self.open(key, *turn, last, over.as_ref(), wall);
                    seq.is_some()
                }
                TargetOp::Free { key, intent, turn } => self.free(key, intent, *turn) || turn.is_none(),
                TargetOp::Hold { key, held_by, intent, since } => {
                    self.hold(key, held_by, intent, *since);
                    true
                }
                TargetOp::Revision { key, revision, turn } => {
                    self.note_revision(key, revision.as_deref(), *turn);
                    true
                }
                TargetOp::Drifted { key, revision, turn } => self.drifted(key, revision.as_deref(), *turn),
                TargetOp::NewKey(_)
                | TargetOp::KeepBundle { .. }
                | TargetOp::CreateToken(_)
                | TargetOp::RevokeToken(..)
                | TargetOp::PruneBelow(_)
                | TargetOp::RemovePayloads { .. }
                | TargetOp::Cosigned { .. }
                | TargetOp::Vacuum => true,
            };
            if !kept {
                self.rows.extend(undo.into_iter().map(|row| (row.key.clone(), row)));
                return Placed::Lost;
            }
        }
        Placed::Kept(seq)
    }

    /// Writes back what changed.
    pub(super) async fn write(&self, database: &mut Database) -> Result<(), store::Error> {
        let changed = |row: &&TargetRow| self.before.get(&row.key) != Some(*row);
        let changed: Vec<TargetRow> = self.rows.values().filter(changed).cloned().collect();
        if changed.is_empty() { Ok(()) } else { database.put_targets(&changed).await }
    }

    /// Whether an intent holds its target and its end is still open.
    pub(super) fn is_in_flight(&self, key: &str, intent: &EntryRef) -> bool {
        self.rows.get(key).is_some_and(|row| is_held(row, intent) && !row.open_unknown)
    }

    /// Takes a free target, or one held by the unknown end of `over`, if its turn is still `turn`.
    fn open(
        &mut self,
        key: &str,
        turn: u64,
        intent: (&str, u64),
        over: Option<&EntryRef>,
        wall: Time,
    ) -> Option<u64> {
        let since = wall.0 + self.ahead;
        let row = self.rows.get_mut(key)?;
        let is_free = row.open.is_none() || (row.open_unknown && over.is_some_and(|over| is_held(row, over)));
        if row.turn != turn || !is_free {
            return None;
        }
        (row.seq, row.turn) = (row.seq + 1, row.turn + 1);
        row.open = Some((intent.0.to_owned(), intent.1));
        (row.open_since, row.open_unknown) = (since, false);
        Some(row.seq)
    }

    fn free(&mut self, key: &str, intent: &EntryRef, turn: Option<u64>) -> bool {
        let Some(row) = self.rows.get_mut(key) else { return false };
        if !is_held(row, intent) || turn.is_some_and(|turn| turn != row.turn) {
            return false;
        }
        row.turn += 1;
        (row.open, row.open_since, row.open_unknown) = (None, 0, false);
        true
    }

    fn hold(&mut self, key: &str, held_by: &EntryRef, intent: &EntryRef, since: Time) {
        let since = since.0 + self.ahead;
        if let Some(row) = self.rows.get_mut(key).filter(|row| is_held(row, held_by)) {
            row.turn += 1;
            row.open = Some((intent.origin.clone(), intent.index));
            (row.open_since, row.open_unknown) = (since, true);
        }
    }

    /// Notes a revision that was not made through a log of this store, once.
    fn drifted(&mut self, key: &str, revision: Option<&str>, turn: u64) -> bool {
        let Some(before) = self.rows.get(key).filter(|row| row.turn == turn).cloned() else { return false };
        self.note_revision(key, revision, Some(turn));
        self.rows.get(key).is_some_and(|row| row.revision != before.revision)
    }

    /// `None`: the row of that revision has been removed since.
    fn note_revision(&mut self, key: &str, revision: Option<&str>, turn: Option<u64>) {
        if let Some(row) = self.rows.get_mut(key).filter(|row| turn.is_none_or(|turn| turn == row.turn)) {
            row.revision = match revision {
                Some(revision) => Some(revision.to_owned()),
                None => row.revision.as_deref().map(gone),
            };
        }
    }
}

fn is_held(row: &TargetRow, by: &EntryRef) -> bool {
    row.open.as_ref().is_some_and(|open| open.0 == by.origin && open.1 == by.index)
}

/// A revision whose row has been removed since.
fn gone(revision: &str) -> String {
    let mut value: Value = json::own(revision.as_bytes()).unwrap_or(Value::Null);
    if value.is_object() {
        value["gone"] = json!(true);
    }
    value.to_string()
}
