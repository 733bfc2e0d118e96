//! Questions to the history.
//!
//! The projection says which changes fit; what they are is then read from the log by row, and put together in the form
//! users see: the attempt, what became of it, and how it was settled. `project` derives the projection from entries, for
//! the writer and for a rebuild alike. A page is bounded by work, so it may be short and still have a cursor.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::evidence::{self, Evidence};
use super::proofs::Log;
use crate::bundle::{Recorded, Said};
use crate::clock::Time;
use crate::json;
use crate::store::{self, ChangeQuery, ChangeRow, Kinds, Location, LogKey, StoredEntry};

/// Rows of the projection looked at in one step, and in one page.
const STEP: usize = 500;
const MAX_CANDIDATES: usize = 20_000;
/// What is found has still to be read from the log, and a page is to be there within 50 ms.
const MAX_TIME: Duration = Duration::from_millis(30);

/// What the history is asked; empty asks for everything.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "the names are those of the query parameters")]
pub struct Filter {
    pub target: Option<String>,
    pub operation: Option<String>,
    pub decision: Option<String>,
    pub outcome: Option<String>,
    pub caller: Option<String>,
    pub rule: Option<String>,
    pub would: Option<String>,
    pub warned: bool,
    pub since: Option<Time>,
    pub until: Option<Time>,
    pub changed: Option<String>,
    pub contains: Option<String>,
    pub unsettled: bool,
    /// Changes, what was changed past the log, or both.
    pub kinds: Kinds,
}

/// The last state on record of a target.
#[derive(Clone, Debug)]
pub struct LastKnown {
    /// It, in recorded form; `null` when it was removed.
    pub state: Value,
    /// When it was last known to be there.
    pub since: Time,
}

/// Some changes, and where to go on.
#[derive(Clone, Debug)]
pub struct Page {
    /// In contract form.
    pub changes: Vec<Value>,
    /// `None`: that was all.
    pub next_cursor: Option<String>,
}

/// Reads the history of a store, beside whoever writes it.
#[derive(Clone)]
pub struct Reader(store::Reader);

impl Reader {
    pub(super) fn new(reader: store::Reader) -> Self {
        Self(reader)
    }

    pub(super) fn store(&self) -> &store::Reader {
        &self.0
    }

    /// Opens a store read-only.
    pub async fn open(store: &Location) -> Result<Self, String> {
        store::Reader::open(store).await.map(Self).map_err(|error| error.to_string())
    }

    /// Newest first.
    pub async fn page(&self, filter: &Filter, cursor: Option<&str>, limit: usize) -> Result<Page, String> {
        self.walk(filter, cursor, limit, false).await
    }

    /// Attempts alone, oldest first, to be judged again; and where to go on.
    pub async fn attempts(
        &self,
        filter: &Filter,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<Recorded>, Option<String>), String> {
        let (rows, next) = self.rows(filter, cursor, limit, true).await?;
        Ok((self.recorded(&rows).await?, next))
    }

    /// One attempt by id or number, or the `last` one.
    pub async fn attempt(&self, id: &str) -> Result<Option<Recorded>, String> {
        match self.row(id).await? {
            Some(row) => Ok(self.recorded(&[row]).await?.pop()),
            None => Ok(None),
        }
    }

    async fn recorded(&self, rows: &[ChangeRow]) -> Result<Vec<Recorded>, String> {
        let places: Vec<i64> = rows.iter().map(|row| row.row).collect();
        let mut bodies = HashMap::new();
        for chunk in places.chunks(500) {
            bodies.extend(self.0.payloads(chunk).await.map_err(|error| error.to_string())?);
        }
        let recorded = |row: &ChangeRow| {
            let body = bodies.remove(&row.row);
            let said = body.map(|body| json::own::<Said>(&body)).transpose();
            Ok(Recorded {
                id: row.id.clone(),
                index: row.index,
                operation: row.operation.clone(),
                target: row
                    .target
                    .as_deref()
                    .and_then(|target| target.split_once('/'))
                    .map(|(_, id)| id.to_owned()),
                decision: row.decision.clone(),
                would: row.would.clone(),
                was_judged: row.decision == "deny" || (row.decision == "allow" && row.seq.is_some()),
                said: said.map_err(|error| format!("entry {}: {error}", row.index))?,
            })
        };
        rows.iter().map(recorded).collect()
    }

    /// The text of a bundle that was in force, by its digest.
    pub async fn bundle(&self, digest: &str) -> Result<Option<Vec<u8>>, String> {
        self.0.bundle(digest).await.map_err(|error| error.to_string())
    }

    /// What proves a change; `None`: there is no such change, or (the second) no signed head over all of it yet.
    pub async fn proof(&self, id: &str) -> Result<Option<Option<Evidence>>, String> {
        let Some(row) = self.row(id).await? else { return Ok(None) };
        let places: Vec<i64> =
            [Some(row.row), row.outcome_row, row.settlement_row].into_iter().flatten().collect();
        let gathered = async {
            let mut entries = self.0.entries(&places).await?;
            entries.sort_by_key(|entry| places.iter().position(|place| *place == entry.row));
            evidence::gather(&self.0, &row.id, &entries).await
        };
        gathered.await.map(Some).map_err(|error| error.to_string())
    }

    /// A log of the store by its name.
    pub fn log(&self, origin: &str) -> Log {
        Log::new(self.0.clone(), origin.to_owned())
    }

    /// Every key that a log of the store is signed with.
    pub async fn keys(&self) -> Result<Vec<LogKey>, String> {
        self.0.log_keys().await.map_err(|error| error.to_string())
    }

    /// One target's changes, oldest first.
    pub async fn target_history(
        &self,
        target_id: &str,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page, String> {
        let filter = Filter { target: Some(target_id.to_owned()), ..Filter::default() };
        self.walk(&filter, cursor, limit, true).await
    }

    async fn walk(
        &self,
        filter: &Filter,
        cursor: Option<&str>,
        limit: usize,
        ascending: bool,
    ) -> Result<Page, String> {
        let (rows, next_cursor) = self.rows(filter, cursor, limit, ascending).await?;
        Ok(Page { changes: self.assemble(&rows).await?, next_cursor })
    }

    async fn rows(
        &self,
        filter: &Filter,
        cursor: Option<&str>,
        limit: usize,
        ascending: bool,
    ) -> Result<(Vec<ChangeRow>, Option<String>), String> {
        let after = cursor.map(|cursor| place(cursor).ok_or("the cursor is none of ours")).transpose()?;
        let mut query = ChangeQuery {
            kinds: filter.kinds,
            target: filter
                .target
                .as_ref()
                .map(|id| if id.contains('/') { id.clone() } else { format!("identity/{id}") }),
            since: filter.since.map(|at| at.0),
            until: filter.until.map(|at| at.0),
            ascending,
            // What is long is only read where something is looked for in it.
            lean: filter.rule.is_none() && filter.changed.is_none() && filter.contains.is_none(),
            after,
        };
        let (started, mut looked_at) = (Instant::now(), 0);
        let mut found: Vec<ChangeRow> = Vec::new();
        let next = loop {
            let (rows, more) = self.0.changes(&query, STEP).await.map_err(|error| error.to_string())?;
            looked_at += rows.len();
            let mut fitting = rows.into_iter().filter(|row| fits(filter, row));
            found.extend(fitting.by_ref().take(limit - found.len()));
            if found.len() == limit && (fitting.next().is_some() || more.is_some()) {
                break found.last().map(|row| (row.at, row.id.clone()));
            }
            let Some(place) = more else { break None };
            if looked_at >= MAX_CANDIDATES || started.elapsed() >= MAX_TIME {
                break Some(place);
            }
            query.after = Some(place);
        };
        Ok((found, next.map(|(at, id)| format!("{at}.{id}"))))
    }

    /// One change by id or number, or the `last` one; a folded request's id answers with the fold.
    pub async fn find(&self, id: &str) -> Result<Option<Value>, String> {
        match self.row(id).await? {
            Some(row) => Ok(self.assemble(&[row]).await?.pop()),
            None => Ok(None),
        }
    }

    async fn row(&self, id: &str) -> Result<Option<ChangeRow>, String> {
        let Ok(number) = id.parse::<u64>() else {
            let by_id = (id != "last").then(|| id.to_ascii_lowercase());
            return self.0.change(by_id.as_deref()).await.map_err(|error| error.to_string());
        };
        let mut found = self.0.numbered(number).await.map_err(|error| error.to_string())?;
        if found.len() > 1 {
            let ids: Vec<_> = found.iter().map(|row| format!("{} in {}", row.id, row.origin)).collect();
            return Err(format!(
                "number {number} is a change of several logs; give its id: {}",
                ids.join(", ")
            ));
        }
        Ok(found.pop())
    }

    /// The newest state this log recorded of a target, `null` when it was removed; `None` when it recorded none.
    pub async fn last_state(&self, target: &str) -> Result<Option<Value>, String> {
        Ok(self.last_known(target).await?.map(|last| last.state))
    }

    /// The same, with the time of the last reading on record that found it unchanged.
    pub async fn last_known(&self, target: &str) -> Result<Option<LastKnown>, String> {
        let mut query = ChangeQuery {
            kinds: Kinds::Both,
            target: Some(target.to_owned()),
            lean: true,
            ..ChangeQuery::default()
        };
        let mut read: Option<ChangeRow> = None;
        for _ in 0..MAX_CANDIDATES / STEP {
            let (rows, more) = self.0.changes(&query, STEP).await.map_err(|error| error.to_string())?;
            read = read.or_else(|| rows.iter().find(|row| was_read(row)).cloned());
            // Rows of one target are committed one after the other, whatever the clocks of their gateways say.
            let stated = rows.into_iter().filter(holds_state).max_by_key(committed);
            if let Some(stated) = stated {
                let read = read.unwrap_or_else(|| stated.clone());
                let found = self.assemble(&[stated, read.clone()]).await?;
                if found.first().is_none_or(|change| change["pruned"] == true) {
                    return Ok(None);
                }
                let state = found.first().map_or(Value::Null, |change| change["after"].clone());
                let since = found.last().map_or(Time(read.at), |change| seen_at(change, read.at));
                return Ok(Some(LastKnown { state, since }));
            }
            let Some(place) = more else { break };
            query.after = Some(place);
        }
        Ok(None)
    }

    async fn assemble(&self, rows: &[ChangeRow]) -> Result<Vec<Value>, String> {
        let wanted: Vec<i64> = rows
            .iter()
            .flat_map(|row| [Some(row.row), row.outcome_row, row.settlement_row])
            .flatten()
            .collect();
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let mut entries = HashMap::new();
        for chunk in wanted.chunks(500) {
            for entry in self.0.entries(chunk).await.map_err(|error| error.to_string())? {
                entries.insert(entry.row, Read::of(&entry));
            }
        }
        let get = |row: Option<i64>| row.and_then(|row| entries.get(&row));
        Ok(rows
            .iter()
            .filter_map(|row| {
                Some(change(row, get(Some(row.row))?, get(row.outcome_row), get(row.settlement_row)))
            })
            .collect())
    }
}

/// An entry, parsed.
struct Read {
    origin: String,
    index: u64,
    envelope: Value,
    payload: Value,
    pruned: bool,
}

impl Read {
    fn of(entry: &StoredEntry) -> Self {
        Self {
            origin: entry.origin.clone(),
            index: entry.index,
            envelope: json::own(&entry.envelope).unwrap_or(Value::Null),
            payload: json::own(entry.body.as_deref().unwrap_or(b"{}")).unwrap_or(Value::Null),
            pruned: entry.body.is_none(),
        }
    }

    fn place(&self) -> Value {
        json!({"origin": self.origin, "index": self.index})
    }
}

fn fits(filter: &Filter, row: &ChangeRow) -> bool {
    let is = |wanted: &Option<String>, have: Option<&str>| {
        wanted.as_deref().is_none_or(|wanted| Some(wanted) == have)
    };
    let holds = |wanted: &Option<String>, words: &str| {
        wanted.as_deref().is_none_or(|wanted| words.contains(&format!(" {wanted} ")))
    };
    let outcome = match (filter.outcome.as_deref(), row.settled.as_deref()) {
        (None, _) => true,
        (Some("applied"), Some("applied")) => true,
        (Some("unknown"), Some("applied")) => false,
        (Some(wanted), _) => row.outcome == wanted,
    };
    outcome
        && is(&filter.operation, row.operation.as_deref())
        && is(&filter.decision, Some(&row.decision))
        && is(&filter.caller, row.caller.as_deref())
        && is(&filter.would, row.would.as_deref())
        && holds(&filter.rule, &row.rules)
        && holds(&filter.changed, &row.pointers)
        && (!filter.warned || row.warned)
        && (!filter.unsettled || (row.outcome == "unknown" && row.settled.is_none() && row.seq.is_some()))
        && filter.contains.as_deref().is_none_or(|text| row.search.contains(&text.to_ascii_lowercase()))
}

/// Whether a row has the state that was there after it.
fn holds_state(row: &ChangeRow) -> bool {
    let applied = row.outcome == "applied" || row.settled.as_deref() == Some("applied");
    row.kind == "drift" || (applied && row.seq.is_some())
}

/// Whether the state was read for it.
fn was_read(row: &ChangeRow) -> bool {
    row.kind == "drift" || row.decision == "deny" || (row.decision == "allow" && row.seq.is_some())
}

/// Its last entry.
fn committed(row: &ChangeRow) -> i64 {
    row.row.max(row.outcome_row.unwrap_or(0)).max(row.settlement_row.unwrap_or(0))
}

/// A moment at which the state of a change, or of a reading, was surely there. What was applied was not before its intent,
/// `committed_at`; what was only read was read after it came in.
fn seen_at(change: &Value, committed_at: i64) -> Time {
    let time = |pointer: &str| change.pointer(pointer).and_then(Value::as_str).and_then(Time::parse);
    let seen = match (change["kind"] == "drift", change["outcome"] == "applied") {
        (true, _) => time("/window/until"),
        (false, true) => None,
        (false, false) => {
            let settled = change["settlement"]["result"] == "applied";
            settled
                .then(|| time("/settlement/evidence/read_began"))
                .flatten()
                .or_else(|| time("/received_at"))
        }
    };
    seen.unwrap_or(Time(committed_at))
}

fn place(cursor: &str) -> Option<(i64, String)> {
    let (at, id) = cursor.split_once('.')?;
    Some((at.parse().ok()?, id.parse::<crate::id::ChangeId>().ok()?.to_string()))
}

/// A change as users see it.
fn change(row: &ChangeRow, attempt: &Read, outcome: Option<&Read>, settlement: Option<&Read>) -> Value {
    if row.kind == "fold" {
        let mut fold = attempt.payload.clone();
        if attempt.pruned {
            fold["pruned"] = json!(true);
            fold["received_at"] = json!(Time(row.at));
        }
        fold["id"] = json!(row.id);
        fold["kind"] = json!("fold");
        fold["decision"] = json!("refuse");
        fold["log"] = json!({"attempt": attempt.place()});
        return fold;
    }
    if row.kind == "drift" {
        return drift(row, attempt);
    }
    let (said, seen) = (&attempt.payload, outcome.map(|outcome| &outcome.payload));
    let settled = settlement.map(|settlement| &settlement.payload);
    let later = |name: &str| seen.map_or(Value::Null, |seen| seen[name].clone());
    let after = match settled.map(|settled| settled["after"].clone()) {
        Some(after) if !after.is_null() && row.settled.as_deref() == Some("applied") => after,
        _ => later("after"),
    };
    let diff = if later("diff").is_array() { later("diff") } else { said["diff"].clone() };
    let summary = if later("summary").is_string() { later("summary") } else { said["summary"].clone() };
    let target = row
        .target
        .as_deref()
        .and_then(|target| target.split_once('/'))
        .map(|(kind, id)| json!({"kind": kind, "id": id, "seq": attempt.envelope["seq"]}));
    let settlement_shown = settlement.map(|settlement| {
        json!({"at": settlement.payload["at"], "result": settlement.envelope["result"],
            "evidence": settlement.payload["evidence"], "by": settlement.payload["by"]})
    });
    let code = outcome.map(|o| o.envelope["code"].clone()).filter(|code| !code.is_null());
    let mut shown: Map<String, Value> = Map::new();
    let mut put = |name: &str, value: Value| drop(shown.insert(name.to_owned(), value));
    put("id", json!(row.id));
    let pruned = [Some(attempt), outcome, settlement].into_iter().flatten().any(|entry| entry.pruned);
    put("received_at", if attempt.pruned { json!(Time(row.at)) } else { said["received_at"].clone() });
    put("finished_at", later("finished_at"));
    put("gateway", said["gateway"].clone());
    put("mode", said["mode"].clone());
    put("operation", json!(row.operation));
    put("target", json!(target));
    put("caller", said["caller"].clone());
    put("source", with_members(&said["source"], &["address", "user_agent", "trace_id", "certificate"]));
    put("request", with_members(&said["request"], &["method", "path", "organization", "body", "digest"]));
    for name in ["before", "proposed", "would", "drift"] {
        put(name, said[name].clone());
    }
    put("after", after);
    put("diff", diff);
    put("decision", json!(row.decision));
    put("code", code.unwrap_or_else(|| attempt.envelope["code"].clone()));
    put("violations", list(&said["violations"]));
    put("warnings", list(&said["warnings"]));
    put("policy_digest", attempt.envelope["policy"].clone());
    put("outcome", json!(row.outcome));
    put("settlement", json!(settlement_shown));
    put("upstream_status", outcome.map_or(Value::Null, |outcome| outcome.envelope["status"].clone()));
    put("surprise", later("surprise"));
    put("breach", later("breach"));
    put("summary", summary);
    put("duration_ms", later("duration_ms"));
    let place = |read: Option<&Read>| read.map_or(Value::Null, Read::place);
    put(
        "log",
        json!({"attempt": attempt.place(), "outcome": place(outcome), "settlement": place(settlement)}),
    );
    if pruned {
        shown.insert("pruned".to_owned(), json!(true));
    }
    Value::Object(shown)
}

/// What was changed past the log, in the form of a change as far as it has the same members.
fn drift(row: &ChangeRow, entry: &Read) -> Value {
    let said = &entry.payload;
    let target = row.target.as_deref().and_then(|target| target.split_once('/'));
    let mut shown = json!({
        "id": row.id,
        "kind": "drift",
        "received_at": said["until"],
        "gateway": said["gateway"],
        "target": target.map(|(kind, id)| json!({"kind": kind, "id": id})),
        "window": {"since": said["since"], "until": said["until"]},
        "diff": list(&said["diff"]),
        "after": said["after"],
        "rolled_back": said["rolled_back"],
        "revision": {"known": said["known"], "read": said["read"]},
        "by": said["by"],
        "seen_by": said["seen_by"],
        "summary": said["summary"],
        "log": {"attempt": entry.place()},
    });
    if entry.pruned {
        shown["pruned"] = json!(true);
    }
    shown
}

fn list(value: &Value) -> Value {
    if value.is_array() { value.clone() } else { json!([]) }
}

/// The members of an object that users rely on, `null` where they are missing.
fn with_members(value: &Value, names: &[&str]) -> Value {
    names.iter().map(|name| ((*name).to_owned(), value[*name].clone())).collect::<Map<_, _>>().into()
}
