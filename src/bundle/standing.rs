//! What a state violates as it stands, and what that means for the next change of it.
//!
//! Two changes are tried: one of something else, which names no more than the API makes it name, and one that repeats
//! everything, as Terraform and the web page do. Each is judged under each `existing`, by [`decide`] like any request,
//! so that what is foretold is what would happen.

use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

use super::Bundle;
use crate::effect;
use crate::id::TargetId;
use crate::json::Document;
use crate::keys::Keys;
use crate::operation::{Edit, Field, Omission, Operation, State, Write};
use crate::policy::{self, Existing, Facts, Policies, decide};
use crate::refusal::Finding;

/// A violation that stands, and what each `existing` makes of it.
#[derive(Clone, Debug, Serialize)]
pub struct Standing {
    /// What stands there.
    #[serde(flatten)]
    pub finding: Finding,
    /// Under `existing = "stored"`.
    pub stored: Next,
    /// Under `existing = "tolerate"`.
    pub tolerate: Next,
    /// Under `existing = "deny"`.
    pub deny: Next,
}

/// What a violation that stands does to the next change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Next {
    /// A change of something else.
    pub other: Reaction,
    /// A change that repeats the field as it stands.
    pub repeated: Reaction,
}

/// What a rule says to a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Reaction {
    /// Nothing.
    Nothing,
    /// It warns.
    Warn,
    /// It denies.
    Deny,
}

impl Next {
    /// In a few words.
    pub const fn as_str(self) -> &'static str {
        match (self.other, self.repeated) {
            (Reaction::Deny, _) => "denies every change",
            (_, Reaction::Deny) => "warns, denies when sent again",
            (Reaction::Warn, _) | (_, Reaction::Warn) => "warns",
            (Reaction::Nothing, Reaction::Nothing) => "says nothing",
        }
    }
}

/// Everything a state violates, and a patch of the whole configuration that is known to mend it, if there is one.
pub fn standing(
    bundle: &Bundle,
    target: &TargetId,
    state: &State,
    keys: &Keys,
) -> (Vec<Standing>, Option<Value>) {
    let object = state.object();
    let found = policy::standing(bundle.policies(), object, state, keys);
    let operations = &mut bundle.operations().values();
    let update = operations.find(|known| known.write == Write::Overlay && known.object.name == object.name);
    let Some(update) = update.filter(|_| !found.is_empty()) else {
        let none = Next { other: Reaction::Nothing, repeated: Reaction::Nothing };
        let alone = |finding| Standing { finding, stored: none, tolerate: none, deny: none };
        return (found.into_iter().map(alone).collect(), None);
    };
    let (other, repeated) = (edit(update, state, false), edit(update, state, true));
    let tried = |existing: Existing| {
        let policies = bundle.policies().enforcing().with_existing(existing);
        let said = |edit: &Edit| said(&policies, update, target, state, edit, keys);
        (said(&other), said(&repeated))
    };
    let [stored, tolerate, deny] = [Existing::Stored, Existing::Tolerate, Existing::Deny].map(tried);
    let next = |(other, repeated): &(Findings, Findings), finding: &Finding| Next {
        other: other.of(finding),
        repeated: repeated.of(finding),
    };
    let with = |finding: Finding| Standing {
        stored: next(&stored, &finding),
        tolerate: next(&tolerate, &finding),
        deny: next(&deny, &finding),
        finding,
    };
    let fix = fix(bundle, update, target, state, &repeated, keys);
    (found.into_iter().map(with).collect(), fix)
}

/// A change that keeps the state: with every field, or only with those that leaving out would change.
fn edit(update: &Operation, state: &State, all: bool) -> Edit {
    let branch = match state.get(&update.object.branch) {
        Some(Field::Text(branch)) => Some(branch.as_str()),
        _ => None,
    };
    let is_named =
        |name: &str| all || *update.object.omission(Write::Overlay, name, branch) != Omission::Keeps;
    Edit::of(state.fields().iter().filter(|(name, _)| is_named(name)))
}

/// Violations and warnings of one change.
struct Findings(Vec<Finding>, Vec<Finding>);

impl Findings {
    fn of(&self, finding: &Finding) -> Reaction {
        let names = |found: &[Finding]| {
            found.iter().any(|one| one.rule == finding.rule && one.pointer == finding.pointer)
        };
        match (names(&self.0), names(&self.1)) {
            (true, _) => Reaction::Deny,
            (false, true) => Reaction::Warn,
            (false, false) => Reaction::Nothing,
        }
    }
}

fn said(
    policies: &Policies,
    update: &Arc<Operation>,
    target: &TargetId,
    state: &State,
    edit: &Edit,
    keys: &Keys,
) -> Findings {
    let proposed = effect::propose(update, Some(state), Some(edit));
    let facts = Facts::new(update, Some(state), &proposed, Some(edit), None, target);
    match decide(policies, &facts, keys) {
        Ok(permit) => Findings(Vec::new(), permit.warnings().to_vec()),
        Err(denial) => Findings(denial.violations, denial.warnings),
    }
}

fn fix(
    bundle: &Bundle,
    update: &Arc<Operation>,
    target: &TargetId,
    state: &State,
    edit: &Edit,
    keys: &Keys,
) -> Option<Value> {
    let document = Document::of(edit.request())?;
    let proposed = effect::propose(update, Some(state), Some(edit));
    let facts = Facts::new(update, Some(state), &proposed, Some(edit), Some(&document), target);
    let facts = facts.with_schema(bundle.schema(&update.name));
    let policies = bundle.policies().enforcing().with_existing(Existing::Deny);
    decide(&policies, &facts, keys).err()?.fix
}
