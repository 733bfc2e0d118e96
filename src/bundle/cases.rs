//! Policy cases: what the rules must say about known requests.
//!
//! A case names an operation, the state before as the API answers it, the request's body and what is expected: the
//! decision, the ids of the rules violated and of those that warn. It runs the path of a live request after the route:
//! the state is read, the body checked, the effect proposed, the policies decide. A case that does not come out as
//! written is a failure, and so is one that cannot be read.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::Value;

use super::evaluate::{Answer, Question, evaluate};
use super::{Bundle, Files, LoadError, read};
use crate::json;
use crate::keys::Keys;
use crate::policy::{Mode, Policies, Settings};
use crate::refusal::Finding;

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
    /// The fix of a denial, a JSON Patch as JSON; unless it stands here, any fix will do, or none.
    fix: Option<String>,
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

/// A case and how it came out.
#[derive(Debug)]
pub struct Trial {
    /// Its file.
    pub file: String,
    /// Its name.
    pub name: String,
    /// What it would do.
    pub operation: String,
    /// Whether it is one of the bundled ones, which are judged by the bundled rules as they are.
    pub is_bundled: bool,
    /// What came out otherwise than written, or why it could not be tried.
    pub problem: Option<String>,
    /// Rules that were violated.
    pub violated: BTreeSet<String>,
    /// Rules that warned.
    pub warned: BTreeSet<String>,
    /// Whether the rules let it pass.
    pub is_allowed: bool,
}

/// Runs cases by the rules of `policies`, always enforcing.
pub(super) fn run(bundle: &Bundle, policies: &Policies, cases: &[Case]) -> Vec<Trial> {
    let keys = Keys::ephemeral();
    let known = |rule: &&String| {
        policies.rules().iter().any(|known| known.id() == **rule) || SAID.contains(&rule.as_str())
    };
    let trial = |case: &Case| {
        let (file, name, operation) = (case.file.clone(), case.name.clone(), case.operation.clone());
        let named = case.expect.violations.iter().chain(&case.expect.warnings);
        let (problem, found) = match decided(bundle, policies, case, &keys) {
            Ok(found) if found == case.expect => (None, Some(found)),
            Ok(found) => {
                let unknown: Vec<_> = named.filter(|rule| !known(rule)).map(String::as_str).collect();
                let problem = if unknown.is_empty() {
                    format!("expected {}, found {}", told(&case.expect), told(&found))
                } else {
                    format!("names rules that are not in force: {}", unknown.join(", "))
                };
                (Some(problem), Some(found))
            }
            Err(message) => (Some(message), None),
        };
        let is_allowed = found.as_ref().is_some_and(|found| found.decision == Decision::Allow);
        let (violated, warned) = found.map(|found| (found.violations, found.warnings)).unwrap_or_default();
        Trial { file, name, operation, is_bundled: false, problem, violated, warned, is_allowed }
    };
    cases.iter().map(trial).collect()
}

/// What stands where a rule's id does and is none.
const SAID: [&str; 2] = ["schema", "unknown-member"];

fn decided(bundle: &Bundle, policies: &Policies, case: &Case, keys: &Keys) -> Result<Expected, String> {
    let allowed = policies.settings().ip_allow_listing;
    let settings =
        Settings { ip_allow_listing: case.ip_allow_listing.unwrap_or(allowed), mode: Mode::Enforce };
    let policies = Policies::new(policies.rules().to_vec(), settings, policies.digest().clone());
    let question = Question {
        operation: &case.operation,
        before: case.before.as_deref(),
        stored: case.stored.as_deref(),
        body: case.body.as_deref(),
        caller: case.caller.as_deref(),
    };
    let mut found = Value::Null;
    let (decision, violations, warnings) = match evaluate(bundle, &policies, &question, keys)?.answer {
        // The schema is no rule, but what it says is a violation all the same.
        Answer::Refused(_) => (Decision::Refuse, BTreeSet::from(["schema".to_owned()]), BTreeSet::new()),
        Answer::Allowed(permit) => (Decision::Allow, BTreeSet::new(), rules(permit.warnings())),
        Answer::Denied(denial) => {
            found = denial.fix.clone().unwrap_or_default();
            (Decision::Deny, rules(&denial.violations), rules(&denial.warnings))
        }
    };
    let Some(fix) = &case.expect.fix else {
        return Ok(Expected { decision, violations, warnings, fix: None });
    };
    let expected = json::value(fix.as_bytes()).map_err(|fault| format!("expect.fix: {fault}"))?;
    // Compared by what it means, told as it is.
    let found = if found == expected { fix.clone() } else { found.to_string() };
    Ok(Expected { decision, violations, warnings, fix: Some(found) })
}

fn rules(findings: &[Finding]) -> BTreeSet<String> {
    findings.iter().map(|finding| finding.rule.clone()).collect()
}

fn told(expected: &Expected) -> String {
    let Expected { decision, violations, warnings, fix } = expected;
    let fix = fix.as_ref().map(|fix| format!(", fix {fix}")).unwrap_or_default();
    format!(
        "{} (violations {violations:?}, warnings {warnings:?}{fix})",
        format!("{decision:?}").to_lowercase()
    )
}
