//! The log while it is open, and a batch of it.
//!
//! A batch is begun; groups take their locks in it, one after the other, and are sealed with index and time; then it is
//! committed with the new head. What was sealed and not committed never was.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::clock::Time;
use crate::store::{self, Database, EntryRow, Head, LogKey, Tenure};

use super::super::entry;
use super::super::envelope::Unsealed;
use super::super::projection::{Facts, Projected, parted, project};
use super::super::tree::{Frontier, Hash, TILE, leaf};
use super::targets::{Placed, Targets};
use super::tiles;
use super::{Group, TargetOp, Written};

/// A wall clock that moved further than this from the monotonic one gets an entry.
const CLOCK_STEP: Duration = Duration::from_secs(1);

/// An open log.
pub(super) struct Log {
    pub database: Database,
    pub origin: String,
    pub frontier: Frontier,
    /// Hashes of the leaves after the last full tile.
    pub leaves: Vec<Hash>,
    pub tenure: Tenure,
    pub last_at: Time,
}

/// A batch in the making.
pub(super) struct Batch {
    pub rows: Vec<EntryRow>,
    pub frontier: Frontier,
    pub leaves: Vec<Hash>,
    /// Tiles that became full: their numbers and leaves.
    tiles: Vec<(u64, Vec<Hash>)>,
    pub last_at: Time,
    targets: Targets,
    /// What its rows do to the projection.
    projected: Vec<Option<Projected>>,
}

impl Log {
    /// Starts a batch and locks the targets of `groups`; a wall clock that stepped since `anchor` gets its entry first.
    pub(super) async fn batch<'a>(
        &mut self,
        groups: impl Iterator<Item = &'a Group>,
        (wall, at): (Time, Instant),
        anchor: (Time, Instant),
    ) -> Result<Batch, store::Error> {
        let mut batch = Batch {
            rows: Vec::new(),
            frontier: self.frontier.clone(),
            leaves: self.leaves.clone(),
            tiles: Vec::new(),
            last_at: self.last_at,
            targets: Targets::lock(&mut self.database, groups, wall).await?,
            projected: Vec::new(),
        };
        let passed = at.saturating_duration_since(anchor.1);
        let expected = Time(anchor.0.0 + i64::try_from(passed.as_micros()).unwrap_or(0));
        let step = wall.0 - expected.0;
        if step.unsigned_abs() > u64::try_from(CLOCK_STEP.as_micros()).unwrap_or(u64::MAX) {
            let payload = json!({"v": 1, "at": wall, "expected": expected, "step_us": step});
            self.seal(&entry::lifecycle("clock", payload), None, &mut batch, wall);
        }
        Ok(batch)
    }

    /// Takes a group's locks and seals its entries. `None`: a lock was lost.
    pub(super) async fn place(
        &mut self,
        group: &mut Group,
        batch: &mut Batch,
        wall: Time,
    ) -> Result<Option<Written>, store::Error> {
        self.leave_out_finished(group, batch).await?;
        let last = batch.frontier.size() + group.entries.len().max(1) as u64 - 1;
        let Placed::Kept(seq) = batch.targets.place(group, (&self.origin, last), wall) else {
            return Ok(None);
        };
        for op in &group.ops {
            let database = &mut self.database;
            let kept = match op {
                TargetOp::KeepBundle { digest, text } => {
                    database.keep_bundle(digest, text).await.map(|()| true)?
                }
                TargetOp::NewKey(public) => {
                    let key =
                        LogKey { origin: self.origin.clone(), public: hex::encode(public), since: last };
                    database.put_log_key(&key).await.map(|()| true)?
                }
                TargetOp::CreateToken(token) => database.create_token(token).await?,
                TargetOp::RevokeToken(name, at) => database.revoke_token(name, *at).await?,
                TargetOp::PruneBelow(logs) => {
                    for (origin, below) in logs {
                        database.prune_below(origin, *below).await?;
                    }
                    true
                }
                TargetOp::RemovePayloads { payloads, changes } => {
                    database.remove_payloads(payloads, changes).await.map(|()| true)?
                }
                TargetOp::Cosigned { origin, size, lines } => {
                    database.add_signatures(origin, *size, lines).await.map(|()| true)?
                }
                TargetOp::Vacuum => database.vacuum().await.map(|()| true)?,
                _ => true,
            };
            if !kept {
                return Ok(None);
            }
        }
        for entry in &group.entries {
            let seq = if entry.kind == "attempt" { seq } else { entry.seq };
            self.seal(entry, seq, batch, wall);
        }
        Ok(Some(Written { origin: self.origin.clone(), last, seq, held_until: None }))
    }

    /// An intent whose gateway was taken for gone has got its outcome from another one; a second is left out.
    async fn leave_out_finished(&mut self, group: &mut Group, batch: &Batch) -> Result<(), store::Error> {
        if !self.database.is_shared() {
            return Ok(());
        }
        let outcome = |entry: &&Unsealed| entry.kind == "outcome";
        let Some(of) = group.entries.iter().find(outcome).and_then(|outcome| outcome.of.clone()) else {
            return Ok(());
        };
        let key = group.ops.iter().find_map(|op| match op {
            TargetOp::Free { key, .. } | TargetOp::Hold { key, .. } => Some(key.as_str()),
            _ => None,
        });
        let in_flight = key.is_some_and(|key| batch.targets.is_in_flight(key, &of));
        if !in_flight && self.database.has_outcome((&of.origin, of.index)).await? {
            (group.entries, group.ops) = (Vec::new(), Vec::new());
        }
        Ok(())
    }

    fn seal(&self, entry: &Unsealed, seq: Option<u64>, batch: &mut Batch, wall: Time) {
        let index = batch.frontier.size();
        let at = Time(wall.0.max(batch.last_at.0 + 1));
        let envelope = entry.envelope(index, at, seq);
        let hash = leaf(&envelope);
        batch.frontier.push(hash);
        batch.leaves.push(hash);
        if batch.leaves.len() as u64 == TILE {
            batch.tiles.push((index / TILE, std::mem::take(&mut batch.leaves)));
        }
        batch.last_at = at;
        let of = entry.of.clone().map(|of| (of.origin, of.index));
        let facts = Facts {
            origin: &self.origin,
            index,
            kind: entry.kind,
            at: at.0,
            of: of.as_ref(),
            change: entry.change.map(|change| change.to_string()),
            target: entry.target.as_deref(),
            operation: entry.operation.as_deref(),
            seq,
            result: entry.result,
        };
        batch.projected.push(project(&facts, &entry.payload.gist));
        let (salt, body) = (entry.payload.salt, entry.payload.body.clone());
        batch.rows.push(EntryRow { index, kind: entry.kind.into(), of, envelope, salt, body });
    }

    pub(super) async fn write(&mut self, batch: &mut Batch) -> Result<(), store::Error> {
        batch.targets.write(&mut self.database).await?;
        if !batch.rows.is_empty() {
            let rows = self.database.append(&self.origin, &batch.rows).await?;
            let placed = std::mem::take(&mut batch.projected).into_iter().zip(rows);
            let (changes, updates) =
                parted(placed.filter_map(|(projected, row)| Some(projected?.at_row(row))));
            self.database.project(&changes, &updates).await?;
            for (number, leaves) in &batch.tiles {
                tiles::keep(&mut self.database, &self.origin, *number, leaves).await?;
            }
            let (size, frontier) = (batch.frontier.size(), batch.frontier.bytes());
            let head = Head { size, frontier, epoch: self.tenure.epoch };
            let (from, lease) = (self.frontier.size(), self.tenure.lease);
            if !self.database.advance(&self.origin, from, &head, lease).await? {
                return Err(store::Error::Wait("somebody else appended to this log".to_owned()));
            }
        }
        self.database.commit().await
    }
}
