//! What the log says of the gateways themselves: what each did, and who read the history.
//!
//! These entries are few and concern no change, so they are listed from the log as they are, newest first.

use serde_json::{Value, json};

use super::query::{Page, Reader};
use crate::clock::Time;
use crate::json;
use crate::store::StoredEntry;

/// The kinds of entries there are of it.
pub const KINDS: [&str; 2] = ["lifecycle", "access"];

impl Reader {
    /// Newest first: entries of one kind, or of both. The cursor is the place of the last one that was seen.
    pub async fn lifecycle(
        &self,
        kind: Option<&str>,
        cursor: Option<u64>,
        limit: usize,
    ) -> Result<Page, String> {
        let before = cursor.map_or(i64::MAX, |row| i64::try_from(row).unwrap_or(i64::MAX));
        let mut found = Vec::new();
        for of in KINDS.into_iter().filter(|of| kind.is_none_or(|kind| kind == *of)) {
            let entries = self.store().entries_of_gateways(of, before, limit + 1).await;
            found.extend(entries.map_err(|error| error.to_string())?);
        }
        found.sort_unstable_by_key(|entry| std::cmp::Reverse(entry.row));
        let is_more = found.len() > limit;
        found.truncate(limit);
        let next_cursor = found.last().filter(|_| is_more).map(|last| last.row.to_string());
        Ok(Page { changes: found.iter().map(shown).collect(), next_cursor })
    }
}

/// As the API gives it.
fn shown(entry: &StoredEntry) -> Value {
    let envelope: Value = json::own(&entry.envelope).unwrap_or(Value::Null);
    let said: Option<Value> = entry.body.as_deref().and_then(|body| json::own(body).ok());
    json!({
        "kind": entry.kind,
        "operation": envelope["operation"],
        "at": envelope["at"].as_i64().map(Time),
        "log": {"origin": entry.origin, "index": entry.index},
        "pruned": said.is_none(),
        "said": said,
    })
}
