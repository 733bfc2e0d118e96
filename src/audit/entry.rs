//! Entries: what each kind says.
//!
//! Payloads are the only place where states become records, so redaction happens here and nowhere else. What bytes an
//! entry becomes is the matter of `envelope`.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::clock::Time;
use crate::id::{ChangeId, EntryRef};
use crate::keys::Keys;
use crate::operation::{Object, diff_recorded, summary};
use crate::refusal::Refusal;

use super::envelope::Unsealed;
use super::{Declaration, Draft, Drift, Hold, Outcome, Seen, Settlement};

/// The attempt of a draft.
pub(super) fn attempt(
    draft: &Draft,
    refusal: Option<&Refusal>,
    over: Option<&Hold>,
    instance: &str,
    keys: &Keys,
) -> Unsealed {
    let decision = match refusal {
        None => "allow",
        Some(refusal) if refusal.code == crate::refusal::Code::PolicyDenied => "deny",
        Some(_) => "refuse",
    };
    let mut payload = attempt_payload(draft, refusal, over, instance, keys);
    let unproven = refusal.is_some_and(|refusal| !is_proven(draft, refusal));
    if unproven && payload.to_string().len() > MAX_UNPROVEN_PAYLOAD {
        payload["violations"] = json!([]);
    }
    Unsealed {
        kind: "attempt",
        change: Some(draft.id),
        of: None,
        operation: draft.operation.clone(),
        target: draft.target.as_ref().map(ToString::to_string),
        seq: None,
        result: Some(decision),
        code: refusal.map(|refusal| refusal.code.as_str()),
        status: refusal.map(|refusal| refusal.code.status()),
        policy: draft.policy.as_ref().map(ToString::to_string),
        payload: payload.into(),
    }
}

/// An unproven refusal keeps this many of its findings, in outline, and none if it gets longer than this by them. Keys of
/// a body that never became a document are anybody's text, so they stay out.
const MAX_UNPROVEN_FINDINGS: usize = 2;
const MAX_UNPROVEN_PAYLOAD: usize = 1000;

fn outline(finding: &crate::refusal::Finding) -> Value {
    let cut = |text: &str| text.chars().take(60).collect::<String>();
    json!({"rule": finding.rule, "pointer": cut(&finding.pointer), "message": cut(&finding.message)})
}

/// Whether a refusal stands for somebody the upstream knows.
pub(super) fn is_proven(draft: &Draft, refusal: &Refusal) -> bool {
    draft.caller_proven && refusal.code.is_proven()
}

/// A refusal that is not proven holds no body and no state: it can be sent by anybody, as often as they like.
fn attempt_payload(
    draft: &Draft,
    refusal: Option<&Refusal>,
    over: Option<&Hold>,
    instance: &str,
    keys: &Keys,
) -> Value {
    let object = draft.object.as_ref();
    let proven = refusal.is_none_or(|refusal| is_proven(draft, refusal));
    let before = draft.before.as_ref().filter(|_| proven).map(|seen| seen.recorded(keys));
    let proposed = draft.proposed.as_ref().filter(|_| proven);
    let proposed = proposed.map(|state| state.as_ref().map_or(Value::Null, |state| state.recorded(keys)));
    let diff =
        before.as_ref().zip(proposed.as_ref()).map(|(before, proposed)| diff_recorded(before, proposed));
    let line = object.zip(diff.as_ref()).map(|(object, diff)| {
        let is = |state: &Option<Value>| state.as_ref().is_some_and(|state| !state.is_null());
        summary(object, is(&before), is(&proposed), diff)
    });
    let mut caller = draft.caller.clone();
    caller["proven"] = json!(draft.caller_proven);
    let body =
        draft.edit.as_ref().filter(|_| proven).zip(object).map(|(edit, object)| edit.recorded(object, keys));
    let unknown = draft.edit.as_ref().filter(|_| proven).map(|edit| edit.unknown.recorded(keys));
    let findings = |refusal: &Refusal| match (draft.violations.is_empty(), proven) {
        (false, _) => json!(draft.violations),
        (true, true) => json!(refusal.findings),
        (true, false) => {
            let told = refusal.findings.iter().filter(|finding| finding.rule != "body");
            told.take(MAX_UNPROVEN_FINDINGS).map(outline).collect()
        }
    };
    compact(
        json!({
            "v": 1,
            "object": object.map(|object| named(object)),
            "gateway": instance,
            "mode": draft.mode,
            "received_at": draft.received_at,
            "source": source(draft),
            "caller": caller,
            "request": {"method": draft.method, "path": draft.path, "organization": draft.organization,
                "body": body, "digest": draft.body_digest, "length": draft.body_length, "unknown": unknown},
            "before_unknown": draft.before.as_ref().filter(|_| proven).map(|seen| seen.unknown.recorded(keys)),
            "before_revision": draft.before.as_ref().and_then(|seen| seen.revision.clone()),
            "diff": diff,
            "violations": refusal.map_or(json!([]), findings),
            "warnings": if proven { json!(draft.warnings) } else { json!([]) },
            "would": draft.would,
            "drift": draft.drift.as_ref().filter(|_| proven).map(Drift::shown),
            "over": over.map(|hold| hold.chain().into_iter().map(|intent| intent.entry).collect::<Vec<_>>()),
            "summary": line,
        }),
        [("before", before), ("proposed", proposed)],
    )
}

/// The outcome of an intent. `before` is the state the intent was judged by.
pub(super) fn outcome(
    of: &EntryRef,
    attempt: &Intended,
    outcome: &Outcome,
    now: Time,
    keys: &Keys,
) -> Unsealed {
    let after = outcome.after.as_ref().map(|seen| seen.recorded(keys));
    let diff =
        after.as_ref().zip(attempt.before.as_ref()).map(|(after, before)| diff_recorded(before, after));
    let line = attempt.object.as_ref().zip(diff.as_ref()).map(|(object, diff)| {
        let is = |state: &Option<Value>| state.as_ref().is_some_and(|state| !state.is_null());
        summary(object, is(&attempt.before), is(&after), diff)
    });
    Unsealed {
        kind: "outcome",
        change: Some(attempt.change),
        of: Some(of.clone()),
        operation: attempt.operation.clone(),
        target: attempt.target.clone(),
        seq: attempt.seq,
        result: Some(outcome.result.as_str()),
        code: outcome.code.map(crate::refusal::Code::as_str),
        status: outcome.status,
        policy: attempt.policy.clone(),
        payload: compact(
            json!({
                "v": 1,
                "object": attempt.object.as_ref().map(|object| named(object)),
                "finished_at": now,
                "duration_ms": milliseconds(outcome.duration),
                "after_revision": outcome.after.as_ref().and_then(|seen| seen.revision.clone()),
                "after_unknown": outcome.after.as_ref().map(|seen| seen.unknown.recorded(keys)),
                "diff": diff,
                "surprise": outcome.surprise,
                "breach": if outcome.breach.is_empty() { Value::Null } else { json!(outcome.breach) },
                "late_from": outcome.late_from,
                "handler_ended": outcome.fast_late,
                "evidence": outcome.evidence,
                "summary": line,
            }),
            [("after", after)],
        )
        .into(),
    }
}

/// A settlement, and one for each intent it settles as well.
pub(super) fn settlements(
    settlement: &Settlement,
    object: Option<&Object>,
    target: &str,
    now: Time,
    keys: &Keys,
) -> Vec<Unsealed> {
    let after = settlement.after.as_ref().map(|seen| seen.recorded(keys));
    let one = |of: &Declaration, result: super::Settled| Unsealed {
        kind: "settlement",
        change: Some(of.change),
        of: Some(of.entry.clone()),
        operation: of.operation.clone(),
        target: Some(target.to_owned()),
        seq: of.seq,
        result: Some(result.as_str()),
        code: None,
        status: None,
        policy: None,
        payload: compact(
            json!({
                "v": 1,
                "object": object.map(named),
                "at": now,
                "evidence": settlement.evidence,
                "by": settlement.by,
                "after_revision": settlement.after.as_ref().and_then(|seen| seen.revision.clone()),
            }),
            [("after", after.clone())],
        )
        .into(),
    };
    let others = match settlement.result {
        super::Settled::Applied | super::Settled::Superseded => super::Settled::Superseded,
        result @ (super::Settled::NotApplied | super::Settled::Undecidable) => result,
    };
    std::iter::once(one(&settlement.of, settlement.result))
        .chain(settlement.also.iter().map(|of| one(of, others)))
        .collect()
}

/// What was changed past the log. Its id is its own: no request had a part in it.
pub(super) fn drift(
    id: ChangeId,
    drift: &Drift,
    object: Option<&Object>,
    target: &str,
    seen_by: Option<ChangeId>,
    instance: &str,
    now: Time,
) -> Unsealed {
    Unsealed {
        kind: "drift",
        change: Some(id),
        of: None,
        operation: None,
        target: Some(target.to_owned()),
        seq: None,
        result: None,
        code: None,
        status: None,
        policy: None,
        payload: compact(
            json!({
                "v": 1,
                "object": object.map(named),
                "gateway": instance,
                "at": now,
                "since": drift.since,
                "until": drift.until,
                "known": drift.known.as_ref().map(|known| json!({"revision": known.revision, "gone": known.gone})),
                "read": drift.read,
                "rolled_back": drift.rolled_back,
                "diff": drift.differs,
                "by": drift.by,
                "seen_by": seen_by.map(|change| change.to_string()),
                "summary": drift.summary,
            }),
            [("after", Some(drift.state.clone()))],
        )
        .into(),
    }
}

/// Where a request came from. A certificate stands there only where clients must show one.
fn source(draft: &Draft) -> Value {
    let mut source =
        json!({"address": draft.source, "user_agent": draft.user_agent, "trace_id": draft.trace_id});
    if let Some(certificate) = &draft.certificate {
        source["certificate"] = json!({"subject": certificate.subject, "sha256": certificate.sha256});
    }
    source
}

/// Which object's forms a payload holds.
fn named(object: &Object) -> Value {
    json!({"name": object.name, "version": object.version})
}

/// What an outcome needs to know of its attempt.
#[derive(Clone, Debug)]
pub(super) struct Intended {
    pub change: ChangeId,
    pub operation: Option<String>,
    pub object: Option<Arc<Object>>,
    pub target: Option<String>,
    pub seq: Option<u64>,
    /// Recorded form.
    pub before: Option<Value>,
    pub policy: Option<String>,
}

/// A lifecycle entry.
pub(super) fn lifecycle(name: &str, payload: Value) -> Unsealed {
    Unsealed {
        kind: "lifecycle",
        change: None,
        of: None,
        operation: Some(format!("lifecycle.{name}")),
        target: None,
        seq: None,
        result: None,
        code: None,
        status: None,
        policy: None,
        payload: payload.into(),
    }
}

impl Seen {
    /// The state as it may be written; `null` when absent.
    pub(super) fn recorded(&self, keys: &Keys) -> Value {
        self.state.as_ref().map_or(Value::Null, |state| state.recorded(keys))
    }
}

/// Leaves out members that say nothing. A state that was never read is left out, one that is absent is `null`.
fn compact<const N: usize>(payload: Value, states: [(&str, Option<Value>); N]) -> Value {
    let Value::Object(members) = payload else { return payload };
    let said = members.into_iter().filter(|(_, value)| !value.is_null());
    let states = states.into_iter().filter_map(|(name, state)| Some((name.to_owned(), state?)));
    said.chain(states).collect::<Map<_, _>>().into()
}

#[expect(clippy::cast_precision_loss, reason = "a duration for people")]
fn milliseconds(duration: std::time::Duration) -> f64 {
    (duration.as_micros() as f64 / 100.0).round() / 10.0
}
