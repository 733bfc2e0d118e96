//! The projection: what the history is searched by, derived from entries.
//!
//! The writer and a rebuild derive it by the same function. What it takes from a payload is a [`Gist`], made where the
//! payload is; what it takes from the envelope are [`Facts`], known when the entry has its place in the log.

use serde_json::Value;

use crate::store::{ChangeRow, ChangeUpdate};

/// Version of what [`project`] writes; a store with another one is rebuilt at start.
pub(super) const PROJECTION_VERSION: i64 = 2;
/// Longest text kept for `contains`, in bytes.
const MAX_SEARCH: usize = 256 * 1024;

/// What an entry's envelope says.
pub(super) struct Facts<'a> {
    pub origin: &'a str,
    pub index: u64,
    pub kind: &'a str,
    pub at: i64,
    pub of: Option<&'a (String, u64)>,
    pub change: Option<String>,
    pub target: Option<&'a str>,
    pub operation: Option<&'a str>,
    pub seq: Option<u64>,
    pub result: Option<&'a str>,
}

/// What its payload says.
#[derive(Clone, Debug)]
pub(super) struct Gist {
    caller: Option<String>,
    would: Option<String>,
    warned: bool,
    rules: String,
    /// Nothing where there is no diff.
    pointers: Option<String>,
    /// Who, by which client and from where.
    who: String,
    /// Every value of the diff.
    values: String,
}

impl Gist {
    pub(super) fn of(payload: &Value) -> Self {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Self {
            caller: text(&payload["caller"]["id"]),
            would: text(&payload["would"]),
            warned: payload["warnings"].as_array().is_some_and(|warnings| !warnings.is_empty()),
            rules: rules(payload),
            pointers: payload["diff"].is_array().then(|| pointers(&payload["diff"])),
            who: who(payload),
            values: values(&payload["diff"]),
        }
    }
}

/// What one entry does to the projection.
#[derive(Clone, Debug)]
pub(super) enum Projected {
    Row(Box<ChangeRow>),
    Update(Box<ChangeUpdate>),
}

impl Projected {
    /// The same, of the entry that got this row.
    pub(super) fn at_row(mut self, row: i64) -> Self {
        match &mut self {
            Self::Row(change) => change.row = row,
            Self::Update(update) => {
                let rows = [&mut update.outcome, &mut update.settled].into_iter().flatten();
                rows.for_each(|(_, its)| *its = row);
            }
        }
        self
    }
}

/// Rows and updates, each in order.
pub(super) fn parted(projected: impl Iterator<Item = Projected>) -> (Vec<ChangeRow>, Vec<ChangeUpdate>) {
    let (mut rows, mut updates) = (Vec::new(), Vec::new());
    for one in projected {
        match one {
            Projected::Row(row) => rows.push(*row),
            Projected::Update(update) => updates.push(*update),
        }
    }
    (rows, updates)
}

/// Derives it, for an entry whose row is still to be known.
pub(super) fn project(facts: &Facts<'_>, gist: &Gist) -> Option<Projected> {
    match (facts.kind, facts.of) {
        ("attempt" | "fold" | "drift", _) => {
            let otherwise = if facts.kind == "drift" { "none" } else { "refuse" };
            let decision = facts.result.unwrap_or(otherwise).to_owned();
            let is_intent = facts.kind == "attempt" && decision == "allow";
            let row = ChangeRow {
                row: 0,
                kind: facts.kind.to_owned(),
                origin: facts.origin.to_owned(),
                index: facts.index,
                id: facts.change.clone().unwrap_or_default(),
                at: facts.at,
                target: facts.target.map(str::to_owned),
                seq: facts.seq,
                operation: facts.operation.map(str::to_owned),
                caller: gist.caller.clone(),
                decision,
                would: gist.would.clone(),
                outcome: if is_intent { "pending" } else { "none" }.to_owned(),
                settled: None,
                warned: gist.warned,
                rules: gist.rules.clone(),
                pointers: gist.pointers.clone().unwrap_or_else(|| spaced(std::iter::empty())),
                search: facts.target.unwrap_or("").to_ascii_lowercase() + &gist.who + &gist.values,
                outcome_row: None,
                settlement_row: None,
            };
            Some(Projected::Row(Box::new(row)))
        }
        ("outcome", Some(of)) => {
            let update = ChangeUpdate {
                of: of.clone(),
                outcome: Some((facts.result.unwrap_or("unknown").to_owned(), 0)),
                settled: None,
                pointers: gist.pointers.clone(),
                search: gist.values.clone(),
            };
            Some(Projected::Update(Box::new(update)))
        }
        ("settlement", Some(of)) => {
            let settled = Some((facts.result.unwrap_or("undecidable").to_owned(), 0));
            let update = ChangeUpdate { of: of.clone(), settled, ..ChangeUpdate::default() };
            Some(Projected::Update(Box::new(update)))
        }
        _ => None,
    }
}

fn rules(payload: &Value) -> String {
    let findings =
        ["violations", "warnings"].into_iter().filter_map(|name| payload[name].as_array()).flatten();
    spaced(findings.filter_map(|finding| finding["rule"].as_str()))
}

fn pointers(diff: &Value) -> String {
    spaced(diff.as_array().into_iter().flatten().filter_map(|entry| entry["path"].as_str()))
}

fn spaced<'a>(words: impl Iterator<Item = &'a str>) -> String {
    words.fold(String::from(" "), |text, word| text + word + " ")
}

fn who(payload: &Value) -> String {
    let parts = [
        &payload["caller"]["id"],
        &payload["caller"]["name"],
        &payload["source"]["user_agent"],
        &payload["source"]["address"],
        &payload["source"]["certificate"]["subject"],
    ];
    parts.into_iter().filter_map(Value::as_str).fold(String::new(), |mut text, part| {
        text.push('\n');
        text.push_str(&part.to_ascii_lowercase());
        text
    })
}

/// Every value of a diff, old and new.
fn values(diff: &Value) -> String {
    let mut text = String::new();
    for entry in diff.as_array().into_iter().flatten() {
        for side in ["old", "value"] {
            leaves(&entry[side], &mut text);
        }
    }
    let cut = (0..=MAX_SEARCH.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    text.truncate(cut);
    text
}

fn leaves(value: &Value, text: &mut String) {
    match value {
        Value::Null => {}
        Value::Array(items) => items.iter().for_each(|item| leaves(item, text)),
        Value::Object(members) => members.iter().for_each(|(name, member)| {
            text.push('\n');
            text.push_str(&name.to_ascii_lowercase());
            leaves(member, text);
        }),
        Value::String(leaf) => {
            text.push('\n');
            text.push_str(&leaf.to_ascii_lowercase());
        }
        other => {
            text.push('\n');
            text.push_str(&other.to_string());
        }
    }
}
