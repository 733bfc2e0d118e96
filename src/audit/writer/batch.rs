//! The log while it is open, and a batch of it.
//!
//! A batch is begun; groups take their locks in it, one after the other, and are sealed with index and time; then it is
//! committed with the new head. What was sealed and not committed never was.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::clock::Time;
use crate::id::fill_random;
use crate::json;
use crate::store::{self, Database, EntryRow, Head};

use super::super::entry::{self, Unsealed};
use super::super::query::{Facts, project};
use super::super::tree::Frontier;
use super::{Group, TargetOp, Written};

/// A wall clock that moved further than this from the monotonic one gets an entry.
const CLOCK_STEP: Duration = Duration::from_secs(1);

/// An open log.
pub(super) struct Log {
    pub database: Database,
    pub origin: String,
    pub frontier: Frontier,
    pub epoch: i64,
    pub last_at: Time,
}

/// A batch in the making.
pub(super) struct Batch {
    pub rows: Vec<EntryRow>,
    pub frontier: Frontier,
    pub last_at: Time,
    projected: Vec<(usize, Value, Unsealed, Time)>,
}

impl Log {
    /// Starts a batch; a wall clock that stepped since `anchor` gets its entry first. The new anchor counts once the batch
    /// is committed.
    pub(super) fn batch(&mut self, wall: Time, anchor: (Time, Instant)) -> (Batch, (Time, Instant)) {
        let mut batch = Batch {
            rows: Vec::new(),
            frontier: self.frontier.clone(),
            last_at: self.last_at,
            projected: Vec::new(),
        };
        let expected = Time(anchor.0.0 + i64::try_from(anchor.1.elapsed().as_micros()).unwrap_or(0));
        let step = wall.0 - expected.0;
        if step.unsigned_abs() > u64::try_from(CLOCK_STEP.as_micros()).unwrap_or(u64::MAX) {
            let payload = json!({"v": 1, "at": wall, "expected": expected, "step_us": step});
            self.seal(entry::lifecycle("clock", payload), &mut batch, wall);
        }
        (batch, (wall, Instant::now()))
    }

    /// Takes a group's locks and seals its entries. `None`: a lock was lost.
    pub(super) async fn place(
        &mut self,
        group: &mut Group,
        batch: &mut Batch,
        wall: Time,
    ) -> Result<Option<Written>, store::Error> {
        let last = batch.frontier.size() + group.entries.len().max(1) as u64 - 1;
        let mut taken = None;
        for op in &group.ops {
            let database = &mut self.database;
            let kept = match op {
                TargetOp::Open { key, turn, over } => {
                    let over = over.as_ref().map(|over| (over.origin.as_str(), over.index));
                    taken = database.open_target(key, *turn, (&self.origin, last), over, wall.0).await?;
                    taken.is_some()
                }
                TargetOp::Free { key, intent, turn } => {
                    let freed = database.free_target(key, (&intent.origin, intent.index), *turn).await?;
                    freed || turn.is_none()
                }
                TargetOp::Hold { key, held_by, intent, since } => {
                    let (held_by, intent) =
                        ((&*held_by.origin, held_by.index), (&*intent.origin, intent.index));
                    database.hold_target(key, held_by, intent, since.0).await.map(|()| true)?
                }
                TargetOp::Revision { key, revision: Some(revision), turn } => {
                    database.note_revision(key, revision, *turn).await.map(|()| true)?
                }
                TargetOp::Revision { key, revision: None, turn } => {
                    if let Some(last) = database.target(key).await?.revision {
                        database.note_revision(key, &gone(&last), *turn).await?;
                    }
                    true
                }
                TargetOp::KeepBundle { digest, text } => {
                    database.keep_bundle(digest, text).await.map(|()| true)?
                }
                TargetOp::CreateToken(token) => database.create_token(token).await?,
                TargetOp::RevokeToken(name, at) => database.revoke_token(name, *at).await?,
            };
            if !kept {
                return Ok(None);
            }
        }
        for entry in group.entries.clone() {
            let seq = if entry.kind == "attempt" { taken } else { entry.seq };
            self.seal(Unsealed { seq, ..entry }, batch, wall);
        }
        Ok(Some(Written { origin: self.origin.clone(), last, seq: taken }))
    }

    pub(super) fn seal(&self, entry: Unsealed, batch: &mut Batch, wall: Time) {
        let index = batch.frontier.size();
        let at = Time(wall.0.max(batch.last_at.0 + 1));
        let body = entry.payload.to_string().into_bytes();
        let mut salt = [0u8; 32];
        fill_random(&mut salt);
        let envelope = entry.envelope(index, at, entry.of.as_ref(), &entry::payload_digest(&salt, &body));
        batch.frontier.append(&envelope);
        batch.last_at = at;
        let of = entry.of.clone().map(|of| (of.origin, of.index));
        batch.rows.push(EntryRow { index, kind: entry.kind, of: of.clone(), envelope, salt, body });
        batch.projected.push((batch.rows.len() - 1, entry.payload.clone(), entry, at));
    }

    pub(super) async fn write(&mut self, batch: &Batch) -> Result<(), store::Error> {
        if !batch.rows.is_empty() {
            let first = self.database.append(&self.origin, &batch.rows).await?;
            for (row, (place, payload, entry, at)) in (first..).zip(&batch.projected) {
                let stored = &batch.rows[*place];
                let facts = Facts {
                    row,
                    index: stored.index,
                    kind: entry.kind,
                    at: at.0,
                    of: stored.of.as_ref(),
                    change: entry.change.map(|change| change.to_string()),
                    target: entry.target.as_deref(),
                    operation: entry.operation.as_deref(),
                    seq: entry.seq,
                    result: entry.result,
                };
                project(&mut self.database, &facts, payload).await?;
            }
            let head =
                Head { size: batch.frontier.size(), frontier: batch.frontier.bytes(), epoch: self.epoch };
            if !self.database.advance(&self.origin, self.frontier.size(), &head).await? {
                return Err(store::Error::Wait("somebody else appended to this log".to_owned()));
            }
        }
        self.database.commit().await
    }
}

/// A revision whose row has been removed since.
fn gone(revision: &str) -> String {
    let mut value: Value = json::own(revision.as_bytes()).unwrap_or(Value::Null);
    if value.is_object() {
        value["gone"] = json!(true);
    }
    value.to_string()
}
