//! What the steps tell the log, and what it tells them back.
//!
//! A [`Draft`] collects the facts of a request, an [`Outcome`] says what became of its write, a [`Settlement`] proves it
//! later. A [`Hold`] is what the log knows of a write whose end was not seen.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::clock::Time;
use crate::id::{ChangeId, Digest, EntryRef, TargetId};
use crate::operation::{Edit, Object, Revision, State, Stored, Unknown};
use crate::refusal::{Code, Finding};
use crate::upstream::client_address::Certificate;

use super::drift::Drift;

/// A state as seen, with its revision; absent is a state.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// The state.
    pub state: Option<State>,
    /// Its revision.
    pub revision: Option<Revision>,
    /// What else the answer held.
    pub unknown: Unknown,
}

impl Seen {
    /// From what was read.
    pub fn of(stored: Option<&Stored>) -> Self {
        Self {
            state: stored.map(|stored| stored.state.clone()),
            revision: stored.map(|stored| stored.revision.clone()),
            unknown: stored.map(|stored| stored.unknown.clone()).unwrap_or_default(),
        }
    }
}

/// The facts about a request known so far.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names are those of the record")]
pub struct Draft {
    pub id: ChangeId,
    pub received_at: Time,
    /// The same moment, for durations.
    pub started: Instant,
    pub operation: Option<String>,
    pub object: Option<Arc<Object>>,
    pub target: Option<TargetId>,
    /// The target's turn before the state was read.
    pub turn: Option<u64>,
    pub method: String,
    pub path: String,
    pub organization: Option<String>,
    pub source: IpAddr,
    pub certificate: Option<Arc<Certificate>>,
    pub user_agent: Option<String>,
    pub trace_id: Option<String>,
    pub caller: Value,
    pub caller_proven: bool,
    pub mode: &'static str,
    pub body_digest: Option<Digest>,
    pub body_length: Option<u64>,
    pub edit: Option<Edit>,
    pub before: Option<Seen>,
    pub proposed: Option<Option<State>>,
    pub policy: Option<Digest>,
    pub would: Option<&'static str>,
    pub violations: Vec<Finding>,
    pub warnings: Vec<Finding>,
    pub settlement: Option<Settlement>,
    pub drift: Option<Drift>,
}

/// What became of an unknown end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It was applied.
    Applied,
    /// It was not and no longer can be.
    NotApplied,
    /// Something else came over it.
    Superseded,
    /// Nobody will know.
    Undecidable,
}

impl Settled {
    /// As the record writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::NotApplied => "not_applied",
            Self::Superseded => "superseded",
            Self::Undecidable => "undecidable",
        }
    }
}

/// An intent that is in the log, as later entries speak of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declaration {
    /// Its entry.
    pub entry: EntryRef,
    /// Its change.
    pub change: ChangeId,
    /// What it would do.
    pub operation: Option<String>,
    /// Which change of its target it is.
    pub seq: Option<u64>,
}

/// Proof of what became of an intent.
#[derive(Clone, Debug)]
pub struct Settlement {
    /// The intent.
    pub of: Declaration,
    /// What is proved.
    pub result: Settled,
    /// By what.
    pub evidence: Value,
    /// Who looked: `next_before`, `read_after`, `settler`, `scan`, `removal`.
    pub by: &'static str,
    /// The state that was seen.
    pub after: Option<Seen>,
    /// Earlier intents settled with it.
    pub also: Vec<Declaration>,
}

/// What the upstream did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutcomeResult {
    /// It applied the write.
    Applied,
    /// It said no.
    Rejected,
    /// It never got it.
    NotSent,
    /// Its end was not seen.
    Unknown,
}

impl OutcomeResult {
    /// As the record writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Rejected => "rejected",
            Self::NotSent => "not_sent",
            Self::Unknown => "unknown",
        }
    }
}

/// The outcome of an intent.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names are those of the record")]
pub struct Outcome {
    pub result: OutcomeResult,
    pub status: Option<u16>,
    pub code: Option<Code>,
    pub after: Option<Seen>,
    pub surprise: Option<Value>,
    pub breach: Vec<Finding>,
    /// From when lateness counts: no byte left later.
    pub late_from: Time,
    /// The upstream's handler is known to have ended.
    pub fast_late: bool,
    pub evidence: Option<Value>,
    /// Proof that came with it.
    pub settlement: Option<Settlement>,
    pub duration: Duration,
}

impl Outcome {
    /// With what every outcome has.
    pub fn seen(result: OutcomeResult, status: Option<u16>, now: Time, duration: Duration) -> Self {
        Self {
            result,
            status,
            code: None,
            after: None,
            surprise: None,
            breach: Vec::new(),
            late_from: now,
            fast_late: false,
            evidence: None,
            settlement: None,
            duration,
        }
    }
}

/// Whether an outcome is written yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// It is.
    Written,
    /// It will be; until then the target stays closed.
    Pending,
}

/// The newest revision this log knows of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Newest {
    /// It.
    pub revision: Revision,
    /// Whether it has been removed since.
    pub gone: bool,
}

/// What this log knows of a target.
#[derive(Clone, Debug, Default)]
pub struct TargetNow {
    /// Moves on every open and close.
    pub turn: u64,
    /// The newest revision known.
    pub newest: Option<Newest>,
    /// What holds it.
    pub hold: Option<Hold>,
}

impl TargetNow {
    /// The newest revision known, and whether it has been removed since.
    pub fn known(&self) -> (Option<&Revision>, bool) {
        let newest = self.newest.as_ref();
        (newest.map(|newest| &newest.revision), newest.is_some_and(|newest| newest.gone))
    }
}

/// An intent that holds its target.
#[derive(Clone, Debug)]
pub struct Hold {
    /// It.
    pub intent: Declaration,
    /// Whether its end was not seen; else it is in flight.
    pub unknown: bool,
    /// Whether another gateway holds it, and that one's lease is over: `since` is when it ended.
    pub abandoned: bool,
    /// From when lateness counts, by the wall clock.
    pub since: Time,
    /// The same by this process's own clock, which does not step; `None` when another process saw it.
    pub since_here: Option<Instant>,
    /// The upstream's handler is known to have ended.
    pub fast_late: bool,
    /// Revision it was judged by.
    pub before_revision: Option<Revision>,
    /// Recorded form of what it proposed; `None` for absent.
    pub proposed: Option<Value>,
    /// The sub-organisation it was sent to.
    pub organization: Option<String>,
    /// The held intents it went over, if it is a removal.
    pub over: Vec<Declaration>,
}

impl Hold {
    /// It and everything it went over, the newest first.
    pub fn chain(&self) -> Vec<Declaration> {
        [std::slice::from_ref(&self.intent), &self.over].concat()
    }
}
