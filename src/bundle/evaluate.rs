//! What the bundle says about a request that nobody sends.
//!
//! The path of a live request after the route, without traffic: the state before is read from the API's answer, the body
//! checked, the effect proposed, the policies decide. Policy cases and `patchwarden policy eval` ask here, and what they
//! get is what a gateway with this bundle would have said.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::Bundle;
use crate::effect;
use crate::id::TargetId;
use crate::json::{self, Document};
use crate::keys::Keys;
use crate::operation::{Operation, State, Write, diff_recorded, summary};
use crate::policy::{self, Denial, Facts, Level, Permit, Policies, Rule};
use crate::refusal::{Finding, Refusal};
use crate::schema::{self, UnknownMembers};

/// The target of a question that names none.
const TARGET: &str = "0b9c3a52-7d3f-4f7e-9a43-0c8f3f1d2e4a";

/// A request, as far as judging depends on it.
#[derive(Clone, Debug, Default)]
pub struct Question<'a> {
    /// Name of the operation.
    pub operation: &'a str,
    /// The API's answer to a read of the state before, as JSON; none for an attach.
    pub before: Option<&'a str>,
    /// Members laid over its row, as JSON.
    pub stored: Option<&'a str>,
    /// The request's body; none for a removal.
    pub body: Option<&'a str>,
    /// The id of who asks.
    pub caller: Option<&'a str>,
}

/// What became of it.
#[derive(Debug)]
pub enum Answer {
    /// The body does not fit.
    Refused(Refusal),
    /// The rules allow it.
    Allowed(Permit),
    /// The rules forbid it.
    Denied(Denial),
}

/// A question, answered.
#[derive(Debug)]
pub struct Evaluation {
    /// What would be done.
    pub operation: Arc<Operation>,
    /// To whom.
    pub target: TargetId,
    /// The state before, in recorded form.
    pub before: Value,
    /// The state it would lead to, in recorded form.
    pub proposed: Value,
    /// The word on it.
    pub answer: Answer,
}

/// Judges it by `policies`; an error is a question that cannot be asked.
pub fn evaluate(
    bundle: &Bundle,
    policies: &Policies,
    question: &Question<'_>,
    keys: &Keys,
) -> Result<Evaluation, String> {
    let operation = bundle.operation(question.operation);
    let operation = operation.ok_or_else(|| {
        let known: Vec<_> = bundle.operations().keys().map(String::as_str).collect();
        format!("there is no operation `{}`; there are: {}", question.operation, known.join(", "))
    })?;
    let before = if operation.write == Write::Create { None } else { Some(before(operation, question)?) };
    let (id, before) = before.unzip();
    let target = TargetId::canonical(&operation.object.target, id.as_deref().unwrap_or(TARGET));
    let target = target.ok_or("the state before has no canonical id")?;
    let schema = bundle.schema(&operation.name);
    let body = question.body.map(|body| Document::read(body.as_bytes()));
    let document = body.transpose().map_err(|fault| format!("body: {fault}"))?;
    if document.is_some() == (operation.write == Write::Remove) {
        return Err("`body` is for a change and an attach, and must stand there".to_owned());
    }
    let recorded = |state: Option<&State>| state.map_or(Value::Null, |state| state.recorded(keys));
    let mut evaluation = Evaluation {
        operation: operation.clone(),
        before: recorded(before.as_ref()),
        proposed: Value::Null,
        answer: Answer::Refused(Refusal::new(crate::refusal::Code::SchemaInvalid, "")),
        target,
    };
    let checked = document
        .as_ref()
        .map(|document| schema::check(schema, operation, document, &evaluation.target, UnknownMembers::Warn));
    let edit = match checked.transpose() {
        Ok(edit) => edit,
        Err(refusal) => return Ok(Evaluation { answer: Answer::Refused(refusal), ..evaluation }),
    };
    let proposed = effect::propose(operation, before.as_ref(), edit.as_ref());
    evaluation.proposed = recorded(proposed.state.as_ref());
    let (edit, document) = (edit.as_ref(), document.as_ref());
    let facts = Facts::new(operation, before.as_ref(), &proposed, edit, document, &evaluation.target);
    let facts = facts.by(question.caller).with_schema(schema);
    evaluation.answer = Answer::of(policy::decide(policies, &facts, keys));
    Ok(evaluation)
}

impl Answer {
    pub(super) fn of(decided: Result<Permit, Denial>) -> Self {
        match decided {
            Ok(permit) => Self::Allowed(permit),
            Err(denial) => Self::Denied(denial),
        }
    }
}

/// What one rule said to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Nothing against it.
    Passed,
    /// It warned.
    Warned,
    /// It is violated.
    Violated,
    /// It is not for this operation, or the request never came to the rules.
    NotAsked,
    /// It is off.
    Off,
}

impl Verdict {
    /// In words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Warned => "warned",
            Self::Violated => "violated",
            Self::NotAsked => "not asked",
            Self::Off => "off",
        }
    }
}

impl Evaluation {
    /// What each rule of `policies` said, in their order.
    pub fn verdicts<'p>(&self, policies: &'p Policies) -> Vec<(&'p Rule, Verdict)> {
        let (violations, warnings): (&[Finding], &[Finding]) = match &self.answer {
            Answer::Refused(_) => (&[], &[]),
            Answer::Allowed(permit) => (&[], permit.warnings()),
            Answer::Denied(denial) => (&denial.violations, &denial.warnings),
        };
        let is_refused = matches!(self.answer, Answer::Refused(_));
        let verdict = |rule: &Rule| {
            let names = |found: &[Finding]| found.iter().any(|finding| finding.rule == rule.id());
            match (names(violations), names(warnings)) {
                _ if rule.level() == Level::Off => Verdict::Off,
                _ if is_refused || !rule.applies_to(&self.operation) => Verdict::NotAsked,
                (true, _) => Verdict::Violated,
                (false, true) => Verdict::Warned,
                (false, false) => Verdict::Passed,
            }
        };
        policies.rules().iter().map(|rule| (rule, verdict(rule))).collect()
    }

    /// As the history would show it, with the fix beside it.
    pub fn shown(&self, policies: &Policies) -> Value {
        let diff = diff_recorded(&self.before, &self.proposed);
        let (is, will) = (!self.before.is_null(), !self.proposed.is_null());
        let (decision, code, violations, warnings, fix) = match &self.answer {
            Answer::Refused(refusal) => {
                ("refuse", json!(refusal.code.as_str()), json!(refusal.findings), json!([]), Value::Null)
            }
            Answer::Allowed(permit) => {
                ("allow", Value::Null, json!([]), json!(permit.warnings()), Value::Null)
            }
            Answer::Denied(denial) => {
                let fix = denial.fix.clone().unwrap_or_default();
                let (violations, warnings) = (json!(denial.violations), json!(denial.warnings));
                ("deny", json!("policy.denied"), violations, warnings, fix)
            }
        };
        let would = match &self.answer {
            Answer::Allowed(permit) => json!(permit.would()),
            Answer::Refused(_) | Answer::Denied(_) => Value::Null,
        };
        let is_refused = matches!(self.answer, Answer::Refused(_));
        let members: Map<String, Value> = [
            ("operation", json!(self.operation.name)),
            ("target", json!({"kind": self.target.kind(), "id": self.target.id()})),
            ("before", self.before.clone()),
            ("proposed", self.proposed.clone()),
            ("diff", if is_refused { json!([]) } else { json!(diff) }),
            ("decision", json!(decision)),
            ("would", would),
            ("code", code),
            ("violations", violations),
            ("warnings", warnings),
            (
                "rules",
                self.verdicts(policies)
                    .into_iter()
                    .map(|(rule, verdict)| json!({"id": rule.id(), "verdict": verdict}))
                    .collect(),
            ),
            ("fix", fix),
            ("policy_digest", json!(policies.digest())),
            (
                "summary",
                if is_refused {
                    Value::Null
                } else {
                    json!(summary(&self.operation.object, is, will, &diff))
                },
            ),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into_iter()
        .collect();
        members.into()
    }
}

/// The id and the state of the row before.
fn before(operation: &Operation, question: &Question<'_>) -> Result<(String, State), String> {
    let object = &operation.object;
    let text = question.before.ok_or("the operation needs a state `before`")?;
    let mut answer = json::value(text.as_bytes()).map_err(|fault| format!("before: {fault}"))?;
    let row = answer.get_mut(&object.envelope).and_then(Value::as_object_mut);
    let row = row.ok_or_else(|| format!("before: has no `{}`", object.envelope))?;
    if let Some(stored) = question.stored {
        let stored = Document::read(stored.as_bytes()).map_err(|fault| format!("stored: {fault}"))?;
        row.extend(stored.members().clone());
    }
    let id = row.get(&object.target_member).and_then(Value::as_str).unwrap_or("").to_owned();
    let stored =
        State::read(object, &id, &answer).map_err(|unreadable| format!("before: {}", unreadable.0))?;
    Ok((id, stored.state))
}
