//! Retention: what was recorded is removed, that it was recorded stays.
//!
//! Entries older than a time lose their payloads, and the projection what came from them; envelopes stay, so every proof
//! still holds. First an entry of the log says below which number payloads may be gone, then they go, some hundred in a
//! transaction of the writer between those of others. Kept are the payloads of changes whose end is open, of each target's
//! newest applied change and newest drift (further drift is told by them), and of lifecycle entries. What was interrupted is taken up by asking again.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::writer::{Group, NotWritten, TargetOp};
use super::{Audit, entry};
use crate::clock::Time;
use crate::json;
use crate::store::{self, Bearing, ChangeRow, Reader};

/// How long one call removes before it says how far it came.
const SLICE: Duration = Duration::from_secs(5);

/// How far a prune came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Payloads this call removed.
    pub removed: u64,
    /// Whether nothing is left to remove; else ask again.
    pub done: bool,
}

impl Audit {
    /// Removes payloads of entries written before `before`, in every log of the store, for some seconds; to be asked again
    /// with the same time until it is done. `by` is who asked.
    pub async fn prune(&self, before: Time, by: &str) -> Result<Pruned, String> {
        let _one = self.0.pruning.try_lock().map_err(|_| "another prune is under way")?;
        let reader = self.store_reader().ok_or("the store is not open")?;
        let until = Instant::now() + SLICE;
        let (below, upto) = bounds(&reader, before).await.map_err(|error| error.to_string())?;
        let mut pruned = Pruned::default();
        let (mut said, mut from) = (false, 0);
        while Instant::now() < until {
            let step = step(&reader, &below, from, upto).await.map_err(|error| error.to_string())?;
            from = step.next;
            if !step.payloads.is_empty() {
                if !std::mem::replace(&mut said, true) {
                    self.say(&reader, &below, before, by).await?;
                }
                pruned.removed += step.payloads.len() as u64;
                let remove = TargetOp::RemovePayloads { payloads: step.payloads, changes: step.changes };
                self.do_now(remove).await?;
            }
            if from > upto {
                pruned.done = self.give_back(&reader, until).await?;
                break;
            }
        }
        Ok(pruned)
    }

    /// The entry, committed before anything goes. Asked again with the same time, it is there already.
    async fn say(
        &self,
        reader: &Reader,
        below: &HashMap<String, u64>,
        before: Time,
        by: &str,
    ) -> Result<(), String> {
        let known = reader.meta("pruned_below").await.map_err(|error| error.to_string())?;
        let known: HashMap<String, u64> =
            known.into_iter().filter_map(|(origin, below)| Some((origin, below.parse().ok()?))).collect();
        let mut further: Vec<(String, u64)> =
            below.iter().map(|(origin, to)| (origin.clone(), *to)).collect();
        further.retain(|(origin, to)| known.get(origin).copied().unwrap_or(0) < *to);
        if further.is_empty() {
            return Ok(());
        }
        further.sort();
        let logs: Vec<Value> =
            further.iter().map(|(origin, below)| json!({"origin": origin, "below": below})).collect();
        let payload = json!({"v": 1, "at": self.now(), "before": before, "by": by, "logs": logs});
        let group = Group {
            ops: vec![TargetOp::PruneBelow(further)],
            ..Group::of(entry::lifecycle("prune", payload))
        };
        self.written(group).await
    }

    /// Gives free space back, some pages at a time, and empties the WAL of what was removed.
    async fn give_back(&self, reader: &Reader, until: Instant) -> Result<bool, String> {
        let mut left = u64::MAX;
        loop {
            let free = reader.free_pages().await.map_err(|error| error.to_string())?;
            // A file that was not made to give space back uses it again.
            if free == 0 || free >= left {
                break;
            }
            if Instant::now() >= until {
                return Ok(false);
            }
            left = free;
            self.do_now(TargetOp::Vacuum).await?;
        }
        self.written(Group { settle: true, ..Group::default() }).await.map(|()| true)
    }

    async fn do_now(&self, op: TargetOp) -> Result<(), String> {
        self.written(Group { ops: vec![op], ..Group::default() }).await
    }

    async fn written(&self, group: Group) -> Result<(), String> {
        self.write(group, self.0.settings.commit_wait.0).await.map(drop).map_err(|error| match error {
            NotWritten::Lost => "another gateway holds a row of it; ask again".to_owned(),
            NotWritten::Unavailable(cause) => cause,
        })
    }
}

/// For each log the number below which its entries are older than `before`, and the last row of any of them.
async fn bounds(reader: &Reader, before: Time) -> Result<(HashMap<String, u64>, i64), store::Error> {
    let (mut below, mut upto) = (HashMap::new(), 0);
    for log in reader.logs().await? {
        // Times follow one another within a log.
        let (mut old, mut young, mut row) = (0, log.size, None);
        while old < young {
            let middle = old + (young - old) / 2;
            let Some(entry) = reader.entry(&log.origin, middle).await? else { break };
            let at = json::own::<Value>(&entry.envelope).ok().and_then(|envelope| envelope["at"].as_i64());
            if at.is_some_and(|at| at < before.0) {
                (old, row) = (middle + 1, Some(entry.row));
            } else {
                young = middle;
            }
        }
        if old > 0 {
            below.insert(log.origin, old);
            upto = upto.max(row.unwrap_or(0));
        }
    }
    Ok((below, upto))
}

/// What goes in one transaction.
struct Step {
    payloads: Vec<i64>,
    changes: Vec<i64>,
    /// Where to go on.
    next: i64,
}

async fn step(
    reader: &Reader,
    below: &HashMap<String, u64>,
    from: i64,
    upto: i64,
) -> Result<Step, store::Error> {
    let bearing = reader.bearing(from, upto).await?;
    let Some(last) = bearing.last() else {
        return Ok(Step { payloads: Vec::new(), changes: Vec::new(), next: upto + 1 });
    };
    let next = last.row + 1;
    let of: Vec<(String, u64)> = bearing.iter().filter_map(|entry| entry.of.clone()).collect();
    let attempts: HashMap<(String, u64), i64> = reader.rows_at(&of).await?.into_iter().collect();
    let change_of = |entry: &Bearing| match (&*entry.kind, &entry.of) {
        ("attempt" | "fold" | "drift", _) => Some(entry.row),
        ("outcome" | "settlement", Some(of)) => attempts.get(of).copied(),
        _ => None,
    };
    let mut rows: Vec<i64> = bearing.iter().filter_map(change_of).collect();
    rows.sort_unstable();
    rows.dedup();
    let changes = reader.changes_at(&rows).await?;
    let mut targets: Vec<String> = changes
        .iter()
        .filter(|change| change.kind == "drift" || is_applied(change))
        .filter_map(|change| change.target.clone())
        .collect();
    targets.sort_unstable();
    targets.dedup();
    let newest: HashSet<i64> = reader.newest_stated(&targets).await?.into_iter().collect();
    let kept: HashSet<i64> = changes
        .iter()
        .filter(|change| is_open(change) || newest.contains(&change.row) || ends_after(change, upto))
        .map(|change| change.row)
        .collect();
    let goes = |entry: &&Bearing| {
        entry.kind != "lifecycle"
            && below.get(&entry.origin).is_some_and(|below| entry.index < *below)
            && change_of(entry).is_none_or(|change| !kept.contains(&change))
    };
    let going: Vec<&Bearing> = bearing.iter().filter(goes).collect();
    Ok(Step {
        payloads: going.iter().map(|entry| entry.row).collect(),
        changes: going
            .iter()
            .filter(|entry| change_of(entry) == Some(entry.row))
            .map(|entry| entry.row)
            .collect(),
        next,
    })
}

fn is_applied(change: &ChangeRow) -> bool {
    change.seq.is_some() && (change.outcome == "applied" || change.settled.as_deref() == Some("applied"))
}

/// A watched write whose end was not seen is never settled, so it is not waited for.
fn is_open(change: &ChangeRow) -> bool {
    change.outcome == "pending"
        || (change.outcome == "unknown" && change.settled.is_none() && change.seq.is_some())
}

/// A change goes whole, when the last that is known of it is old enough.
fn ends_after(change: &ChangeRow, upto: i64) -> bool {
    change.outcome_row.max(change.settlement_row).is_some_and(|row| row > upto)
}
