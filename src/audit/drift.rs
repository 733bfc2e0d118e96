//! Drift: what somebody changed past this log.
//!
//! Comes in: a reading of a target and what the log knows of it. Goes out: a [`Drift`], when the revision moved and a
//! field differs from the last state on record, with the time within which that happened. It gets an entry of its own,
//! before the attempt whose read showed it, and one only: the same transaction notes the revision, and whoever comes
//! second finds it noted.

use serde_json::{Value, json};

use crate::before::Reading;
use crate::clock::Time;
use crate::id::{ChangeId, TargetId};
use crate::operation::{Object, Revision, diff_recorded, summary};
use crate::refusal::Refusal;

use super::writer::{Group, NotWritten, TargetOp};
use super::{Audit, Draft, Newest, entry};

/// What differs from the last state on record without a record of why.
#[derive(Clone, Debug)]
pub struct Drift {
    /// One entry a field.
    pub differs: Vec<Value>,
    /// When the state on record was last known to be there.
    pub since: Option<Time>,
    /// When the other one had been read.
    pub until: Time,
    /// The newest revision on record.
    pub known: Option<Newest>,
    /// The one that was read; `None`: nothing is attached.
    pub read: Option<Revision>,
    /// The state that was read, in recorded form.
    pub state: Value,
    /// One line for people.
    pub summary: String,
    /// Whether the upstream went back to an older state.
    pub rolled_back: bool,
    /// Who looked: `next_before`, `settler`, `scan`.
    pub by: &'static str,
}

/// A reading that may show drift.
pub struct Look<'a> {
    /// Whose configuration.
    pub target: &'a TargetId,
    /// Its kind.
    pub object: &'a Object,
    /// What was read.
    pub reading: &'a Reading,
    /// The newest revision on record.
    pub newest: Option<&'a Newest>,
    /// Whether it is believed although it is older than that.
    pub rolled_back: bool,
    /// Who looked.
    pub by: &'static str,
}

impl Drift {
    /// As it stands in the change whose read showed it.
    pub(super) fn shown(&self) -> Value {
        if !self.rolled_back {
            return json!(self.differs);
        }
        let known = self.known.as_ref().map(|known| &known.revision);
        let mut shown = json!({"kind": "rolled_back", "known": known, "read": self.read});
        if !self.differs.is_empty() {
            shown["diff"] = json!(self.differs);
        }
        shown
    }

    fn pointers(&self) -> String {
        let pointers = self.differs.iter().filter_map(|entry| entry["path"].as_str());
        pointers.collect::<Vec<_>>().join(", ")
    }
}

impl Audit {
    /// What a reading shows that this log has no record of; nothing when the revision is the one on record.
    pub async fn drift(&self, look: &Look<'_>) -> Result<Option<Drift>, Refusal> {
        let there = look.newest.filter(|newest| !newest.gone).map(|newest| &newest.revision);
        if there == look.reading.revision() && !look.rolled_back {
            return Ok(None);
        }
        let reader = self.reader().ok_or_else(|| Refusal::audit_unavailable("no reader"))?;
        let last = reader.last_known(&look.target.to_string()).await.map_err(Refusal::audit_unavailable)?;
        let state = look.reading.stored.as_ref();
        let state = state.map_or(Value::Null, |stored| stored.state.recorded(&self.0.keys));
        let differs = last.as_ref().map(|last| differences(&last.state, &state)).unwrap_or_default();
        if differs.is_empty() && !look.rolled_back {
            return Ok(None);
        }
        let was = last.as_ref().is_some_and(|last| !last.state.is_null());
        Ok(Some(Drift {
            summary: summary(look.object, was, !state.is_null(), &differs),
            differs,
            since: last.map(|last| last.since),
            until: self.0.clock.now(),
            known: look.newest.cloned(),
            read: look.reading.revision().cloned(),
            state,
            rolled_back: look.rolled_back,
            by: look.by,
        }))
    }

    /// Writes down drift that no change and no settlement came with; `false` when it is on record already.
    pub async fn note_drift(
        &self,
        drift: &Drift,
        target: &TargetId,
        turn: u64,
        object: &Object,
    ) -> Result<bool, String> {
        let mut group = Group::default();
        self.put_drift(&mut group, drift, target, turn, Some(object), None);
        match self.write(group, self.0.settings.commit_wait.0).await {
            Ok(_) => {
                self.count_drift(drift, target);
                Ok(true)
            }
            Err(NotWritten::Lost) => Ok(false),
            Err(NotWritten::Unavailable(cause)) => Err(cause),
        }
    }

    /// Puts the drift a draft saw before whatever else is in the group.
    pub(super) fn drift_first(&self, group: &mut Group, draft: &Draft) {
        if let (Some(drift), Some(target), Some(turn)) = (&draft.drift, &draft.target, draft.turn) {
            self.put_drift(group, drift, target, turn, draft.object.as_deref(), Some(draft.id));
        }
    }

    pub(super) fn put_drift(
        &self,
        group: &mut Group,
        drift: &Drift,
        target: &TargetId,
        turn: u64,
        object: Option<&Object>,
        seen_by: Option<ChangeId>,
    ) {
        let (key, now) = (target.to_string(), self.0.clock.now());
        let id = ChangeId::at(now);
        group.entries.push(entry::drift(id, drift, object, &key, seen_by, self.0.keys.instance(), now));
        let revision = drift.read.as_ref().map(|revision| json!(revision).to_string());
        group.ops.push(TargetOp::Drifted { key, revision, turn });
    }

    /// Counts and says what is on record now.
    pub(super) fn count_drift(&self, drift: &Drift, target: &TargetId) {
        self.0.metrics.drift.inc();
        crate::log::drift(target, &drift.pointers(), drift.since, drift.until, drift.rolled_back, drift.by);
    }
}

/// Of two states that are there only the fields that both know: a newer version of the object file may know more.
fn differences(last: &Value, now: &Value) -> Vec<Value> {
    let mut differs = diff_recorded(last, now);
    if last.is_object() && now.is_object() {
        differs.retain(|entry| entry["op"] == "replace");
    }
    differs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_shows_the_differences_or_that_the_upstream_went_back() {
        let revision = Revision { row: "r".into(), at: Time(0) };
        let difference = json!({"op": "replace", "path": "/a", "value": 1, "old": 2});
        let drift = Drift {
            differs: vec![difference.clone()],
            since: None,
            until: Time(1),
            known: Some(Newest { revision: revision.clone(), gone: false }),
            read: None,
            state: Value::Null,
            summary: String::new(),
            rolled_back: false,
            by: "test",
        };
        assert_eq!(drift.shown(), json!([difference]));
        let back = Drift { rolled_back: true, ..drift };
        let told = json!({"kind": "rolled_back", "known": revision, "read": null, "diff": [difference]});
        assert_eq!(back.shown(), told);
        let alike = Drift { differs: Vec::new(), ..back };
        assert_eq!(alike.shown(), json!({"kind": "rolled_back", "known": revision, "read": null}));
    }

    #[test]
    fn only_a_field_that_both_versions_know_can_differ() {
        let (old, new) = (json!({"a": 1, "b": 2}), json!({"a": 1, "b": 3, "c": 4}));
        let differs = differences(&old, &new);
        assert_eq!(differs, [json!({"op": "replace", "path": "/b", "value": 3, "old": 2})]);
        assert_eq!(differences(&json!({"a": 1, "z": 2}), &json!({"a": 1, "c": 4})), Vec::<Value>::new());
        assert_eq!(differences(&Value::Null, &new).len(), 3, "what was not there at all is all new");
        assert_eq!(differences(&new, &Value::Null).len(), 3);
    }
}
