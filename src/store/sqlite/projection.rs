//! The projection as the writer keeps it.
//!
//! Many rows go into one statement, as everywhere in a batch. An outcome and a settlement that come together are laid over
//! their attempt's row as one, since an UPDATE from a list takes only one of its rows for each it changes. The log is asked
//! for the rows of the attempts by itself: no query joins the two.

use std::collections::{BTreeMap, HashMap};

use sqlx::{QueryBuilder, Row as _};

use super::super::{ChangeRow, ChangeUpdate, Error};
use super::{Database, chunk_of, inside, signed, unsigned};

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
        let mut put = QueryBuilder::new(
            "INSERT INTO changes (row, kind, idx, id, at, target, seq, operation, caller, decision, would, outcome, settled, warned, \
             rules, pointers, search, outcome_row, settlement_row, origin) ",
        );
        put.push_values(rows, |mut values, change| {
            values.push_bind(change.row).push_bind(&change.kind).push_bind(signed(change.index));
            values.push_bind(&change.id).push_bind(change.at).push_bind(&change.target);
            values.push_bind(change.seq.map(signed)).push_bind(&change.operation).push_bind(&change.caller);
            values.push_bind(&change.decision).push_bind(&change.would).push_bind(&change.outcome);
            values.push_bind(&change.settled).push_bind(change.warned).push_bind(&change.rules);
            values.push_bind(&change.pointers).push_bind(&change.search).push_bind(change.outcome_row);
            values.push_bind(change.settlement_row).push_bind(&change.origin);
        });
        put.build().execute(&mut self.connection).await.map(drop).map_err(|error| inside(&error))
    }

    /// The updates with the rows they change, one for each; what speaks of no row is left out.
    async fn laid(&mut self, updates: &[ChangeUpdate]) -> Result<Vec<(i64, ChangeUpdate)>, Error> {
        let mut select = QueryBuilder::new("SELECT v.column1, v.column2, e.row FROM (");
        select.push_values(updates, |mut values, update| {
            values.push_bind(&update.of.0).push_bind(signed(update.of.1));
        });
        // The few first, and then each by the index: the planner alone would read all entries.
        select.push(") AS v CROSS JOIN entries e ON e.origin = v.column1 AND e.idx = v.column2");
        let found = select.build().fetch_all(&mut self.connection).await.map_err(|error| inside(&error))?;
        let place = |row: &sqlx::sqlite::SqliteRow| {
            Ok(((row.try_get(0)?, unsigned(row.try_get(1)?)), row.try_get(2)?))
        };
        let places: HashMap<(String, u64), i64> =
            found.iter().map(place).collect::<Result<_, sqlx::Error>>().map_err(|error| inside(&error))?;
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

    async fn project_updates(&mut self, updates: &[(i64, ChangeUpdate)]) -> Result<(), Error> {
        let mut put = QueryBuilder::new(
            "UPDATE changes SET outcome = COALESCE(v.column2, outcome), outcome_row = COALESCE(v.column3, outcome_row), \
             settled = COALESCE(v.column4, settled), settlement_row = COALESCE(v.column5, settlement_row), \
             pointers = COALESCE(v.column6, pointers), search = search || v.column7 FROM (",
        );
        put.push_values(updates, |mut values, (row, update)| {
            values.push_bind(*row);
            values.push_bind(update.outcome.as_ref().map(|outcome| outcome.0.as_str()));
            values.push_bind(update.outcome.as_ref().map(|outcome| outcome.1));
            values.push_bind(update.settled.as_ref().map(|settled| settled.0.as_str()));
            values.push_bind(update.settled.as_ref().map(|settled| settled.1));
            values.push_bind(&update.pointers).push_bind(&update.search);
        });
        put.push(") AS v WHERE changes.row = v.column1");
        put.build().execute(&mut self.connection).await.map(drop).map_err(|error| inside(&error))
    }
}
