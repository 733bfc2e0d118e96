//! Step 7: does the organisation allow the state this request would lead to?
//!
//! [`decide`] takes the [`Policies`] in force and the [`Facts`] of one request and returns a [`Permit`], the only ticket
//! to an intent, or a [`Denial`] with every violation at once and, where one is known to pass, a fix. It is pure: live
//! traffic, replay, tests, evaluation and scan call it with facts built in one place and always agree. [`breaches`]
//! asks the same of the state that was really written.

mod fix;
mod judge;
mod pattern;
mod rules;
mod witness;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;

use crate::effect::Proposed;
use crate::id::{Digest, TargetId};
use crate::json::{self, Document};
use crate::keys::Keys;
use crate::operation::{Edit, Object, Operation, State, Write};
use crate::refusal::Finding;
use crate::schema::Schema;

pub use rules::{Existing, Level, Rule, RuleError};
pub use witness::contradiction;

/// Whether a violation stops a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It does.
    Enforce,
    /// It is recorded as what would have been denied, and forwarded.
    Observe,
}

/// What the installation says, as far as judging depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Whether the upstream's plan accepts other ranges than those that hold everything.
    pub ip_allow_listing: bool,
    /// Whether violations deny.
    pub mode: Mode,
}

/// Everything in force.
#[derive(Clone, Debug)]
pub struct Policies {
    rules: Vec<Rule>,
    settings: Settings,
    digest: Digest,
}

impl Policies {
    /// The rules in the order they report.
    pub fn new(rules: Vec<Rule>, settings: Settings, digest: Digest) -> Self {
        Self { rules, settings, digest }
    }

    /// The rules, those that are off included.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The settings.
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// Whether violations deny.
    pub fn mode(&self) -> Mode {
        self.settings.mode
    }

    /// The same, denying whatever the mode is.
    #[must_use]
    pub fn enforcing(&self) -> Self {
        Self { settings: Settings { mode: Mode::Enforce, ..self.settings }, ..self.clone() }
    }

    /// The same, each rule saying this about what was stored before.
    #[must_use]
    pub fn with_existing(self, existing: Existing) -> Self {
        let rules = self.rules.into_iter().map(|rule| rule.with_existing(existing)).collect();
        Self { rules, ..self }
    }

    /// Covers all that is in force.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }
}

/// What is judged: one request and what it would lead to.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    operation: &'a Operation,
    before: Option<&'a State>,
    proposed: &'a Proposed,
    edit: Option<&'a Edit>,
    document: Option<&'a Document>,
    target: &'a TargetId,
    caller: Option<&'a str>,
    schema: Option<&'a Schema>,
}

impl<'a> Facts<'a> {
    /// The one constructor.
    pub fn new(
        operation: &'a Operation,
        before: Option<&'a State>,
        proposed: &'a Proposed,
        edit: Option<&'a Edit>,
        document: Option<&'a Document>,
        target: &'a TargetId,
    ) -> Self {
        Self { operation, before, proposed, edit, document, target, caller: None, schema: None }
    }

    /// With the id of who asks, as the upstream has accepted it.
    #[must_use]
    pub fn by(mut self, caller: Option<&'a str>) -> Self {
        self.caller = caller;
        self
    }

    /// With the operation's schema, without which a denial has no fix.
    #[must_use]
    pub fn with_schema(mut self, schema: Option<&'a Schema>) -> Self {
        self.schema = schema;
        self
    }
}

/// The policies allow it. Made by [`decide`] only.
#[derive(Debug)]
pub struct Permit {
    warnings: Vec<Finding>,
    would: Option<&'static str>,
    body: Option<Bytes>,
}

impl Permit {
    /// What the caller should know; in observe mode also what would have denied.
    pub fn warnings(&self) -> &[Finding] {
        &self.warnings
    }

    /// `deny` if only observe mode let it pass.
    pub fn would(&self) -> Option<&'static str> {
        self.would
    }

    /// What is forwarded: the canonical bytes of what was judged; none for a removal.
    pub fn body(&self) -> Option<&Bytes> {
        self.body.as_ref()
    }
}

/// The policies forbid it.
#[derive(Clone, Debug)]
pub struct Denial {
    /// Everything that is forbidden, at least one.
    pub violations: Vec<Finding>,
    /// What would have been a warning.
    pub warnings: Vec<Finding>,
    /// A JSON Patch (RFC 6902) on the request body that is known to pass.
    pub fix: Option<Value>,
}

/// Judges one request by every rule.
pub fn decide(policies: &Policies, facts: &Facts<'_>, keys: &Keys) -> Result<Permit, Denial> {
    let verdict = judge::judge(policies, facts, keys);
    let mut warnings = verdict.warnings;
    if verdict.violations.is_empty() {
        return Ok(Permit { warnings, would: None, body: body(facts) });
    }
    match policies.mode() {
        Mode::Observe => {
            warnings.splice(0..0, verdict.violations.into_iter().map(|broken| broken.finding));
            Ok(Permit { warnings, would: Some("deny"), body: body(facts) })
        }
        Mode::Enforce => {
            let fix = fix::find(policies, facts, &verdict.violations, keys);
            let violations = verdict.violations.into_iter().map(|broken| broken.finding).collect();
            Err(Denial { violations, warnings, fix })
        }
    }
}

/// What `after` violates and `proposed` did not, by rule and pointer; each is judged with nothing before it.
pub fn breaches(
    policies: &Policies,
    operation: &Operation,
    proposed: &State,
    after: &State,
    keys: &Keys,
) -> Vec<Finding> {
    judge::breaches(policies, operation, proposed, after, keys)
}

/// What the rules say about the fields of a request that is not governed but has them under the same names and with the
/// same meaning: only ever advice, only about what the request itself sends.
pub fn hints(policies: &Policies, object: &Arc<Object>, document: &Document, keys: &Keys) -> Vec<Finding> {
    judge::hints(policies, object, document, keys)
}

/// What a state violates as it stands, judged by itself.
pub fn standing(policies: &Policies, object: &Object, state: &State, keys: &Keys) -> Vec<Finding> {
    judge::standing(policies, object, state, keys)
}

fn body(facts: &Facts<'_>) -> Option<Bytes> {
    match (facts.operation.write, facts.edit) {
        (Write::Remove, _) | (_, None) => None,
        (Write::Overlay | Write::Create, Some(edit)) => Some(json::canonical(&edit.request()).into()),
    }
}
