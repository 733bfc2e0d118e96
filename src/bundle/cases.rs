//! Policy cases: what the rules must say about known requests.
//!
//! A case names an operation, the state before as the API answers it, the request's body and what is expected: the
//! decision, the ids of the rules violated and of those that warn. It runs the path of a live request after the route:
//! the state is read, the body checked, the effect proposed, the policies decide. A case that does not come out as
//! written is a failure, and so is one that cannot be read.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::Value;

use super::{Bundle, Files, LoadError, read};
use crate::effect;
use crate::id::TargetId;
use crate::json::{self, Document};
use crate::keys::Keys;
use crate::operation::{Operation, State, Write};
use crate::policy::{self, Facts, Mode, Policies, Settings};
use crate::refusal::Finding;
use crate::schema::{self, UnknownMembers};

/// The target of every case that has no state before.
const TARGET: &str = "0b9c3a52-7d3f-4f7e-9a43-0c8f3f1d2e4a";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseFile {
    /// The API's answer that the cases of the file start from, as JSON.
    before: Option<String>,
    case: Vec<Case>,
}

/// One case, as its file says it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Case {
    #[serde(skip)]
    file: String,
    name: String,
    operation: String,
    /// Replaces the file's `before`.
    before: Option<String>,
    /// Members laid over the row of `before`, as JSON.
    stored: Option<String>,
    /// The request's body, as JSON.
    body: Option<String>,
    /// The id of who asks.
    caller: Option<String>,
    /// Whether the upstream's plan has IP allow-listing; without it as configured.
    ip_allow_listing: Option<bool>,
    expect: Expected,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    decision: Decision,
    #[serde(default)]
    violations: BTreeSet<String>,
    #[serde(default)]
    warnings: BTreeSet<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Decision {
    Allow,
    Deny,
    /// The schema says no: no rule is asked.
    Refuse,
}

#[cfg(test)]
impl Case {
    pub(super) fn is_of(&self, file: &str) -> bool {
        self.file == file
    }
}

/// Reads every case; what cannot be read goes to `errors`.
pub(super) fn read(files: &Files, errors: &mut Vec<LoadError>) -> Vec<Case> {
    let mut cases = Vec::new();
    for (file, text) in files.under("cases/") {
        let Some(read) = read::toml_file::<CaseFile>(file, text, errors) else { continue };
        for mut case in read.case {
            file.clone_into(&mut case.file);
            case.before = case.before.or_else(|| read.before.clone());
            cases.push(case);
        }
    }
    cases
}

/// Runs cases by the rules of `policies`, always enforcing.
pub(super) fn run(bundle: &Bundle, policies: &Policies, cases: &[Case]) -> Vec<String> {
    let keys = Keys::ephemeral();
    let failure = |case: &Case| {
        let failed = match decided(bundle, policies, case, &keys) {
            Ok(found) if found == case.expect => return None,
            Ok(found) => format!("expected {}, found {}", told(&case.expect), told(&found)),
            Err(message) => message,
        };
        Some(format!("{}: {}: {failed}", case.file, case.name))
    };
    cases.iter().filter_map(failure).collect()
}

fn decided(bundle: &Bundle, policies: &Policies, case: &Case, keys: &Keys) -> Result<Expected, String> {
    let operation = bundle.operation(&case.operation);
    let operation = operation.ok_or_else(|| format!("there is no operation `{}`", case.operation))?;
    let before = if operation.write == Write::Create { None } else { Some(before(operation, case)?) };
    let (id, before) = before.unzip();
    let target = TargetId::canonical(&operation.object.target, id.as_deref().unwrap_or(TARGET));
    let target = target.ok_or("the state before has no canonical id")?;
    let schema = bundle.schema(&operation.name);
    let body = case.body.as_deref().map(|body| Document::read(body.as_bytes()));
    let document = body.transpose().map_err(|fault| format!("body: {fault}"))?;
    if document.is_some() == (operation.write == Write::Remove) {
        return Err("`body` is for a change and an attach, and must stand there".to_owned());
    }
    let refused = || Expected {
        decision: Decision::Refuse,
        violations: BTreeSet::from(["schema".to_owned()]),
        warnings: BTreeSet::new(),
    };
    let edit = match &document {
        None => None,
        Some(document) => match schema::check(schema, operation, document, &target, UnknownMembers::Warn) {
            Ok(edit) => Some(edit),
            Err(_) => return Ok(refused()),
        },
    };
    let proposed = effect::propose(operation, before.as_ref(), edit.as_ref());
    let facts = Facts::new(operation, before.as_ref(), &proposed, edit.as_ref(), document.as_ref(), &target);
    let allowed = policies.settings().ip_allow_listing;
    let settings =
        Settings { ip_allow_listing: case.ip_allow_listing.unwrap_or(allowed), mode: Mode::Enforce };
    let policies = Policies::new(policies.rules().to_vec(), settings, policies.digest().clone());
    Ok(match policy::decide(&policies, &facts.by(case.caller.as_deref()).with_schema(schema), keys) {
        Ok(permit) => Expected {
            decision: Decision::Allow,
            violations: BTreeSet::new(),
            warnings: rules(permit.warnings()),
        },
        Err(denial) => Expected {
            decision: Decision::Deny,
            violations: rules(&denial.violations),
            warnings: rules(&denial.warnings),
        },
    })
}

/// The id and the state of the row before.
fn before(operation: &Operation, case: &Case) -> Result<(String, State), String> {
    let object = &operation.object;
    let text = case.before.as_deref().ok_or("the operation needs a state `before`")?;
    let mut answer = json::value(text.as_bytes()).map_err(|fault| format!("before: {fault}"))?;
    let row = answer.get_mut(&object.envelope).and_then(Value::as_object_mut);
    let row = row.ok_or_else(|| format!("before: has no `{}`", object.envelope))?;
    if let Some(stored) = &case.stored {
        let stored = Document::read(stored.as_bytes()).map_err(|fault| format!("stored: {fault}"))?;
        row.extend(stored.members().clone());
    }
    let id = row.get(&object.target_member).and_then(Value::as_str).unwrap_or("").to_owned();
    let stored =
        State::read(object, &id, &answer).map_err(|unreadable| format!("before: {}", unreadable.0))?;
    Ok((id, stored.state))
}

fn rules(findings: &[Finding]) -> BTreeSet<String> {
    findings.iter().map(|finding| finding.rule.clone()).collect()
}

fn told(expected: &Expected) -> String {
    let Expected { decision, violations, warnings } = expected;
    format!("{decision:?} (violations {violations:?}, warnings {warnings:?})").to_lowercase()
}
