//! Judging: every rule on the state the request would lead to, beside the state before.
//!
//! Comes in: the policies and the facts. Goes out: all violations and all warnings, in the rules' order. What was
//! stored before is forgiven as far as its rule says and never when it gets worse; what cannot be judged is violated.
//! Nothing here looks at a clock, at chance or at the world.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::rules::{Existing, Level, Remedy, Rule, Sight, Violation};
use super::{Facts, Policies};
use crate::json::{self, Document};
use crate::keys::Keys;
use crate::operation::{Misfit, Object, Operation, Side, State, Write};
use crate::refusal::{Finding, From};

/// A violation and what may cure it.
pub(super) struct Broken {
    pub(super) finding: Finding,
    pub(super) field: String,
    pub(super) remedy: Option<Remedy>,
}

/// What all rules say together.
#[derive(Default)]
pub(super) struct Verdict {
    pub(super) violations: Vec<Broken>,
    pub(super) warnings: Vec<Finding>,
}

/// Evaluates every rule that applies.
pub(super) fn judge(policies: &Policies, facts: &Facts<'_>, keys: &Keys) -> Verdict {
    let mut verdict = Verdict::default();
    for rule in policies.rules().iter().filter(|rule| rule.applies_to(facts.operation)) {
        match &facts.proposed.state {
            Some(state) => judge_rule(policies, facts, rule, state, keys, &mut verdict),
            None if facts.operation.write == Write::Remove => {
                judge_removal(policies, facts, rule, keys, &mut verdict);
            }
            None => verdict.add(rule, Level::Deny, unknown(rule)),
        }
    }
    verdict.warnings.extend(unknown_members(facts));
    verdict
}

impl Verdict {
    fn add(&mut self, rule: &Rule, level: Level, broken: Broken) {
        match (rule.level(), level) {
            (Level::Deny, Level::Deny) => self.violations.push(broken),
            _ => self.warnings.push(broken.finding),
        }
    }
}

fn judge_rule(
    policies: &Policies,
    facts: &Facts<'_>,
    rule: &Rule,
    state: &State,
    keys: &Keys,
    verdict: &mut Verdict,
) {
    let sight = Sight {
        state,
        before: facts.before,
        edit: facts.edit,
        proposed: Some(facts.proposed),
        request: Some((facts.target, facts.caller)),
        ..alone(policies, facts.operation, state, keys)
    };
    let was = facts
        .before
        .map_or_else(Vec::new, |before| rule.check(&alone(policies, facts.operation, before, keys)));
    for violation in rule.check(&sight) {
        let old = was.iter().find(|old| old.pointer() == violation.pointer());
        let is_forgiven =
            violation.is_advice || old.is_some_and(|old| forgives(rule, &sight, old, &violation));
        let level = if is_forgiven { Level::Warn } else { Level::Deny };
        verdict.add(rule, level, broken(rule, &sight, violation));
    }
}

/// A removal is asked only who may: a rule about the state that would be has nothing to say.
fn judge_removal(policies: &Policies, facts: &Facts<'_>, rule: &Rule, keys: &Keys, verdict: &mut Verdict) {
    let Some(before) = facts.before.filter(|_| rule.guards_requests()) else { return };
    let request = Some((facts.target, facts.caller));
    let sight = Sight { request, ..alone(policies, facts.operation, before, keys) };
    for violation in rule.check(&sight) {
        verdict.add(rule, Level::Deny, broken(rule, &sight, violation));
    }
}

/// A state judged by itself: with nothing before it and no request.
fn alone<'a>(policies: &Policies, operation: &'a Operation, state: &'a State, keys: &'a Keys) -> Sight<'a> {
    by_itself(policies, operation.write, &operation.object, state, keys)
}

fn by_itself<'a>(
    policies: &Policies,
    write: Write,
    object: &'a Object,
    state: &'a State,
    keys: &'a Keys,
) -> Sight<'a> {
    Sight {
        write,
        object,
        state,
        before: None,
        edit: None,
        proposed: None,
        request: None,
        ip_allow_listing: policies.settings().ip_allow_listing,
        keys,
    }
}

fn forgives(rule: &Rule, sight: &Sight<'_>, old: &Violation, new: &Violation) -> bool {
    let is_named = new.concerns.iter().any(|field| names(sight, field));
    match rule.existing() {
        Existing::Stored => !is_named && !is_worse(sight, old, new),
        Existing::Tolerate => !is_worse(sight, old, new),
        Existing::Deny => false,
    }
}

fn names(sight: &Sight<'_>, field: &str) -> bool {
    sight.edit.is_some_and(|edit| edit.fields.contains_key(field))
}

/// What cannot be compared is worse.
fn is_worse(sight: &Sight<'_>, old: &Violation, new: &Violation) -> bool {
    let widens = |field: &&str| {
        let compared = || {
            let (before, after) = (sight.before?.get(field)?, sight.state.get(field)?);
            Some(sight.object.fields.get(*field)?.kind.widens(before, after))
        };
        let is_opaque = sight.proposed.is_some_and(|proposed| proposed.opaque.contains(*field));
        is_opaque || compared().unwrap_or(true)
    };
    new.grade > old.grade || new.concerns.iter().any(widens)
}

fn broken(rule: &Rule, sight: &Sight<'_>, violation: Violation) -> Broken {
    let finding = Finding {
        rule: rule.id().to_owned(),
        pointer: violation.pointer(),
        from: match sight.proposed {
            Some(proposed) => proposed.from.get(&violation.field).copied(),
            None => Some(From::Stored),
        },
        request_pointer: names(sight, &violation.field).then(|| violation.request_pointer()),
        value: violation.value,
        limit: violation.limit,
        message: violation.message,
        help: violation.help,
    };
    Broken { finding, field: violation.field, remedy: violation.remedy }
}

/// There is no state to judge although the operation writes one.
fn unknown(rule: &Rule) -> Broken {
    let finding = Finding {
        rule: rule.id().to_owned(),
        pointer: String::new(),
        from: None,
        request_pointer: None,
        value: Value::Null,
        limit: Value::Null,
        message: "what the request would lead to cannot be known, so it cannot be judged".to_owned(),
        help: "send every field explicitly".to_owned(),
    };
    Broken { finding, field: String::new(), remedy: None }
}

/// Members the schema does not know: how many, never which.
fn unknown_members(facts: &Facts<'_>) -> Option<Finding> {
    let count = facts.edit.map_or(0, |edit| edit.unknown.count());
    let (members, are) = if count == 1 { ("member", "is") } else { ("members", "are") };
    (count > 0).then(|| Finding {
        rule: "unknown-member".to_owned(),
        pointer: String::new(),
        from: Some(From::Request),
        request_pointer: None,
        value: count.into(),
        limit: Value::Null,
        message: format!("{count} {members} of the request {are} not known and {are} not forwarded"),
        help: "leave them out, or check how they are spelled".to_owned(),
    })
}

/// What `after` violates and `proposed` did not, each judged with nothing before it.
pub(super) fn breaches(
    policies: &Policies,
    operation: &Operation,
    proposed: &State,
    after: &State,
    keys: &Keys,
) -> Vec<Finding> {
    let mut found = Vec::new();
    for rule in
        policies.rules().iter().filter(|rule| rule.applies_to(operation) && rule.level() == Level::Deny)
    {
        let expected = rule.check(&alone(policies, operation, proposed, keys));
        let sight = alone(policies, operation, after, keys);
        let is_new = |violation: &Violation| {
            !violation.is_advice && !expected.iter().any(|old| old.pointer() == violation.pointer())
        };
        found.extend(
            rule.check(&sight).into_iter().filter(is_new).map(|new| broken(rule, &sight, new).finding),
        );
    }
    found
}

/// What the rules say about the fields that a foreign request sends; a field it does not send is nobody's business here.
pub(super) fn hints(
    policies: &Policies,
    object: &Arc<Object>,
    document: &Document,
    keys: &Keys,
) -> Vec<Finding> {
    let (mut fields, mut hints) = (BTreeMap::new(), Vec::new());
    for (name, value) in document.members() {
        let Some(spec) = object.fields.get(name) else { continue };
        match spec.kind.read(Side::Request, value, &spec.choices) {
            Ok(field) => drop(fields.insert(name.clone(), field)),
            Err(misfit) => hints.push(unreadable(name, &misfit)),
        }
    }
    let state = State::new(object.clone(), fields);
    let sight = by_itself(policies, Write::Overlay, object, &state, keys);
    let is_sent = |violation: &Violation| {
        state.get(&violation.field).is_some()
            && violation.concerns.iter().all(|field| state.get(field).is_some())
    };
    for rule in policies.rules().iter().filter(|rule| rule.level() != Level::Off) {
        for violation in rule.check(&sight).into_iter().filter(is_sent) {
            let request_pointer = Some(violation.request_pointer());
            let finding = broken(rule, &sight, violation).finding;
            hints.push(Finding { from: Some(From::Request), request_pointer, ..finding });
        }
    }
    hints
}

/// What a state violates as it stands; a rule that only warns, and advice, count as well.
pub(super) fn standing(policies: &Policies, object: &Object, state: &State, keys: &Keys) -> Vec<Finding> {
    let sight = by_itself(policies, Write::Overlay, object, state, keys);
    let in_force = policies.rules().iter().filter(|rule| rule.level() != Level::Off);
    in_force
        .flat_map(|rule| rule.check(&sight).into_iter().map(|found| broken(rule, &sight, found).finding))
        .collect()
}

/// The upstream may read it in its own way, so that nobody here knows what it will be.
fn unreadable(field: &str, misfit: &Misfit) -> Finding {
    let pointer = json::pointer(&[field]) + &misfit.below;
    Finding {
        rule: "unreadable-field".to_owned(),
        request_pointer: Some(pointer.clone()),
        pointer,
        from: Some(From::Request),
        value: Value::Null,
        limit: Value::Null,
        message: format!("{field} is not written plainly, so it cannot be judged"),
        help: format!("`{field}` {}", misfit.message),
    }
}
