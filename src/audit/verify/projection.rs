//! The projection beside what it is derived from.
//!
//! Each entry is projected again as the writer does it; a row whose change is through is compared with the stored one and
//! forgotten, so that little is kept. Rows of payloads that retention removed keep only what the envelope says.

use std::collections::HashMap;

use super::super::copy::projected;
use super::super::projection::Projected;
use super::{Fault, Verified};
use crate::store::{ChangeRow, ChangeUpdate, Error, Reader};

const AT_ONCE: usize = 500;
/// How often a row is looked at again that may have changed meanwhile.
const TRIES: usize = 5;

type Place = (String, u64);

#[derive(Default)]
struct Derived {
    rows: HashMap<Place, (ChangeRow, bool)>,
    /// For attempts of logs that are yet to be read.
    early: HashMap<Place, Vec<ChangeUpdate>>,
    count: u64,
    /// The last row of any entry that was read.
    last: i64,
}

/// Compares all of it. What differs is a fault of the log the change is in.
pub(super) async fn compare(
    reader: &Reader,
    found: &mut [Verified],
    read: &mut impl FnMut(usize),
) -> Result<(), Error> {
    let mut derived = Derived::default();
    for place in 0..found.len() {
        let (origin, size) = (found[place].origin.clone(), found[place].size);
        let mut next = 0;
        while next < size {
            let entries = reader.entries_of(&origin, next, super::CHUNK).await?;
            let Some(last) = entries.last() else { break };
            next = last.index + 1;
            let read_rows = entries.iter().filter(|entry| entry.index < size).map(|entry| entry.row);
            derived.last = read_rows.max().unwrap_or(0).max(derived.last);
            for entry in entries.iter().filter(|entry| entry.index < size) {
                if let Some(projected) = projected(entry.row, entry) {
                    derived.take(projected, entry.body.is_none());
                }
            }
            read(entries.len());
            if derived.rows.len() >= AT_ONCE {
                derived.flush(reader, found, false).await?;
            }
        }
    }
    derived.flush(reader, found, true).await?;
    let stored = reader.change_count(derived.last).await?;
    // Where several gateways write, a row of meanwhile may have a lower number.
    let has_grown = async || {
        let now = reader.logs().await?;
        Ok::<_, Error>(
            now.iter().any(|now| found.iter().all(|log| log.origin != now.origin || log.size < now.size)),
        )
    };
    if (stored < derived.count || (stored > derived.count && !has_grown().await?))
        && let Some(log) = found.first_mut().filter(|log| log.fault.is_none())
    {
        log.fault =
            Some(Fault::of_log(format!("the projection has {stored} rows for {} changes", derived.count)));
    }
    Ok(())
}

impl Derived {
    fn take(&mut self, projected: Projected, is_pruned: bool) {
        match projected {
            Projected::Row(row) => {
                let place = (row.origin.clone(), row.index);
                let mut row = *row;
                for update in self.early.remove(&place).unwrap_or_default() {
                    lay(&mut row, update);
                }
                self.count += 1;
                self.rows.insert(place, (row, is_pruned));
            }
            Projected::Update(update) => match self.rows.get_mut(&update.of) {
                Some((row, pruned)) => {
                    *pruned |= is_pruned;
                    lay(row, *update);
                }
                None => self.early.entry(update.of.clone()).or_default().push(*update),
            },
        }
    }

    /// Compares the rows that nothing can change any more, or all of them.
    async fn flush(&mut self, reader: &Reader, found: &mut [Verified], all: bool) -> Result<(), Error> {
        let is_through = |row: &ChangeRow| all || !matches!(&*row.outcome, "pending" | "unknown");
        let places: Vec<Place> = self
            .rows
            .iter()
            .filter(|(_, (row, _))| is_through(row))
            .map(|(place, _)| place.clone())
            .collect();
        for chunk in places.chunks(AT_ONCE) {
            let rows: Vec<_> = chunk.iter().filter_map(|place| self.rows.remove(place)).collect();
            let numbers: Vec<i64> = rows.iter().map(|(row, _)| row.row).collect();
            let stored: HashMap<i64, ChangeRow> =
                reader.changes_at(&numbers).await?.into_iter().map(|row| (row.row, row)).collect();
            for (row, is_pruned) in rows {
                if wrong(&row, stored.get(&row.row), is_pruned).is_none() {
                    continue;
                }
                // It may have gone on, or been pruned, while the rest was read.
                let Some(what) = looked_again(reader, &row).await? else { continue };
                let log = found.iter_mut().find(|log| log.origin == row.origin && log.fault.is_none());
                if let Some(log) = log {
                    log.fault =
                        Some(Fault::at(row.index, format!("{what}; `patchwarden reindex` makes it anew")));
                }
            }
        }
        Ok(())
    }
}

fn wrong(row: &ChangeRow, stored: Option<&ChangeRow>, is_pruned: bool) -> Option<String> {
    let Some(stored) = stored else { return Some("the projection does not hold it".to_owned()) };
    differing(row, stored, is_pruned).map(|column| format!("the projection holds another {column} of it"))
}

/// Derives one row from what its entries say now, and compares it with the stored one of then; some times.
async fn looked_again(reader: &Reader, row: &ChangeRow) -> Result<Option<String>, Error> {
    let mut what = None;
    for _ in 0..TRIES {
        let of = (row.origin.as_str(), row.index);
        let Some(attempt) = reader.entry(of.0, of.1).await? else { break };
        let mut is_pruned = attempt.body.is_none();
        let Some(Projected::Row(mut fresh)) = projected(attempt.row, &attempt) else { break };
        for kind in ["outcome", "settlement"] {
            let Some(entry) = reader.entry_of(of, kind).await? else { continue };
            is_pruned |= entry.body.is_none();
            if let Some(Projected::Update(update)) = projected(entry.row, &entry) {
                lay(&mut fresh, *update);
            }
        }
        let stored = reader.changes_at(&[row.row]).await?.pop();
        what = wrong(&fresh, stored.as_ref(), is_pruned);
        if what.is_none() {
            break;
        }
    }
    Ok(what)
}

/// What the store does with an update.
fn lay(row: &mut ChangeRow, update: ChangeUpdate) {
    if let Some((outcome, place)) = update.outcome {
        (row.outcome, row.outcome_row) = (outcome, Some(place));
    }
    if let Some((settled, place)) = update.settled {
        (row.settled, row.settlement_row) = (Some(settled), Some(place));
    }
    if let Some(pointers) = update.pointers {
        row.pointers = pointers;
    }
    row.search += &update.search;
}

/// The first column that is not as it was derived.
fn differing(row: &ChangeRow, stored: &ChangeRow, is_pruned: bool) -> Option<&'static str> {
    let of_envelope = [
        ("kind", row.kind == stored.kind),
        ("place", (&row.origin, row.index) == (&stored.origin, stored.index)),
        ("id", row.id == stored.id),
        ("time", row.at == stored.at),
        ("target", (&row.target, row.seq) == (&stored.target, stored.seq)),
        ("operation", row.operation == stored.operation),
        ("decision", row.decision == stored.decision),
        ("outcome", (&row.outcome, row.outcome_row) == (&stored.outcome, stored.outcome_row)),
        ("settlement", (&row.settled, row.settlement_row) == (&stored.settled, stored.settlement_row)),
    ];
    let of_payload = [
        ("caller", row.caller == stored.caller),
        ("would", row.would == stored.would),
        ("warning", row.warned == stored.warned),
        ("rules", row.rules == stored.rules),
        ("pointers", row.pointers == stored.pointers),
        ("values", row.search == stored.search),
    ];
    let payload = of_payload.iter().filter(|_| !is_pruned);
    of_envelope.iter().chain(payload).find(|(_, is_same)| !is_same).map(|(column, _)| *column)
}
