//! The projection as the writer keeps it.
//!
//! Many rows go into one statement, as everywhere in a batch. An outcome and a settlement that come together are laid over
//! their attempt's row as one, since an UPDATE from a list takes only one of its rows for each it changes. The log is asked
//! for the rows of the attempts by itself: no query joins the two.

use std::collections::{BTreeMap, HashMap};

use sqlx::Row as _;

use super::super::{ChangeRow, ChangeUpdate, Error};
use super::{Database, chunk_of, inside, signed, unsigned};

const CHANGES: &str = "INSERT INTO changes (row, kind, idx, id, at, target, seq, operation, caller, decision, would, outcome, settled, warned, \
             rules, pointers, search, outcome_row, settlement_row, origin) ";
const LAID: &str = "UPDATE changes SET outcome = COALESCE(v.column2, outcome), outcome_row = COALESCE(v.column3, outcome_row), \
             settled = COALESCE(v.column4, settled), settlement_row = COALESCE(v.column5, settlement_row), \
             pointers = COALESCE(v.column6, pointers), search = search || v.column7 FROM (";

impl Database {
    /// Adds rows to the projection and lays outcomes and settlements over those of their attempts.
    pub async fn project(&mut self, rows: &[ChangeRow], updates: &[ChangeUpdate]) -> Result<(), Error> {
        let mut rest = rows;
        while !rest.is_empty() {
            let (chunk, later) = rest.split_at(chunk_of(rest.len()));
            self.project_rows(chunk).await?;
            rest = later;
        }
        let mut rest = updates;
        while !rest.is_empty() {
            let (chunk, later) = rest.split_at(chunk_of(rest.len()));
            let laid = self.laid(chunk).await?;
            let mut rest_laid = &laid[..];
            while !rest_laid.is_empty() {
                let (chunk, later) = rest_laid.split_at(chunk_of(rest_laid.len()));
                self.project_updates(chunk).await?;
                rest_laid = later;
            }
            rest = later;
        }
        Ok(())
    }

    async fn project_rows(&mut self, rows: &[ChangeRow]) -> Result<(), Error> {
        let write = self.calls.write(rows.len(), |put| {
            put.push(CHANGES);
            put.push_values(rows, |mut values, change| {
                values.push_bind(change.row).push_bind(&change.kind).push_bind(signed(change.index));
                values.push_bind(&change.id).push_bind(change.at).push_bind(&change.target);
                values
                    .push_bind(change.seq.map(signed))
                    .push_bind(&change.operation)
                    .push_bind(&change.caller);
                values.push_bind(&change.decision).push_bind(&change.would).push_bind(&change.outcome);
                values.push_bind(&change.settled).push_bind(change.warned).push_bind(&change.rules);
                values.push_bind(&change.pointers).push_bind(&change.search).push_bind(change.outcome_row);
                values.push_bind(change.settlement_row).push_bind(&change.origin);
            });
        });
        write.await
    }

    /// The updates with the rows they change, one for each; what speaks of no row is left out.
    async fn laid(&mut self, updates: &[ChangeUpdate]) -> Result<Vec<(i64, ChangeUpdate)>, Error> {
        let places = self.places(updates).await?;
        let mut laid: BTreeMap<i64, ChangeUpdate> = BTreeMap::new();
        for update in updates {
            let Some(row) = places.get(&update.of) else { continue };
            let one = laid.entry(*row).or_default();
            let update = update.clone();
            one.outcome = update.outcome.or(one.outcome.take());
            one.settled = update.settled.or(one.settled.take());
            one.pointers = update.pointers.or(one.pointers.take());
            one.search.push_str(&update.search);
        }
        Ok(laid.into_iter().collect())
    }

    /// The rows of the attempts that these speak of.
    async fn places(&mut self, updates: &[ChangeUpdate]) -> Result<HashMap<(String, u64), i64>, Error> {
        // Most were written just before, and are where this connection put them.
        let known = |update: &ChangeUpdate| {
            Some((update.of.clone(), self.run.as_ref().and_then(|run| run.row_of(&update.of))?))
        };
        let mut places: HashMap<_, _> = updates.iter().filter_map(known).collect();
        let others: Vec<_> = updates.iter().filter(|update| !places.contains_key(&update.of)).collect();
        if others.is_empty() {
            return Ok(places);
        }
        let found = self.calls.ask(|select| {
            select.push("SELECT v.column1, v.column2, e.row FROM (");
            select.push_values(others, |mut values, update| {
                values.push_bind(&update.of.0).push_bind(signed(update.of.1));
            });
            // The few first, and then each by the index: the planner alone would read all entries.
            select.push(") AS v CROSS JOIN entries e ON e.origin = v.column1 AND e.idx = v.column2");
        });
        let place = |row: &sqlx::sqlite::SqliteRow| {
            Ok(((row.try_get(0)?, unsigned(row.try_get(1)?)), row.try_get(2)?))
        };
        let found: Result<Vec<_>, sqlx::Error> = found.await?.iter().map(place).collect();
        places.extend(found.map_err(|error| inside(&error))?);
        Ok(places)
    }

    async fn project_updates(&mut self, updates: &[(i64, ChangeUpdate)]) -> Result<(), Error> {
        let write = self.calls.write(updates.len(), |put| {
            put.push(LAID);
            put.push_values(updates, |mut values, (row, update)| {
                values.push_bind(*row);
                values.push_bind(update.outcome.as_ref().map(|outcome| outcome.0.as_str()));
                values.push_bind(update.outcome.as_ref().map(|outcome| outcome.1));
                values.push_bind(update.settled.as_ref().map(|settled| settled.0.as_str()));
                values.push_bind(update.settled.as_ref().map(|settled| settled.1));
                values.push_bind(&update.pointers).push_bind(&update.search);
            });
            put.push(") AS v WHERE changes.row = v.column1");
        });
        write.await
    }
}
