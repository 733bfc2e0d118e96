//! Whether rules can be met together: a configuration that passes them all is looked for.
//!
//! Every rule names values that would satisfy it; from these a configuration is put together, field by field, keeping
//! what violates least. Found: the rules can be met. Not found: they very likely contradict each other, and those are
//! named without any one of which one would be found. Where there are more values than are tried, nothing is said. Nothing
//! is decided by this; it is advice for whoever writes rules.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::judge;
use super::rules::Rule;
use super::{Level, Policies};
use crate::keys::Keys;
use crate::operation::{Object, Operation, Side, State, Write};

/// Values tried for one part of a configuration.
const MAX_TRIED: usize = 200;
/// Times that all parts are gone through.
const MAX_ROUNDS: usize = 8;
/// Parts of a configuration, with the values to choose from; a claim is a part of its own.
type Choices = BTreeMap<(&'static str, String), Vec<Value>>;

/// Rules that contradict each other for an operation, by id; `None` when something passes them all.
pub fn contradiction(policies: &Policies, operation: &Operation) -> Option<Vec<String>> {
    if operation.write == Write::Remove {
        return None;
    }
    let asked =
        |rule: &&Rule| rule.level() == Level::Deny && rule.applies_to(operation) && rule.is_about_states();
    let rules: Vec<Rule> = policies.rules().iter().filter(asked).cloned().collect();
    let can_be_met = |rules: &[Rule]| {
        let some = Policies::new(rules.to_vec(), policies.settings(), policies.digest().clone());
        is_met(&some, &operation.object)
    };
    if can_be_met(&rules) {
        return None;
    }
    let is_needed = |index: &usize| {
        let mut others = rules.clone();
        others.remove(*index);
        can_be_met(&others)
    };
    let needed: Vec<_> = (0..rules.len()).filter(is_needed).collect();
    let blamed = if needed.is_empty() { (0..rules.len()).collect() } else { needed };
    Some(blamed.into_iter().map(|index| rules[index].id().to_owned()).collect())
}

fn is_met(policies: &Policies, object: &Arc<Object>) -> bool {
    let Some(choices) = choices(policies) else { return true };
    let keys = Keys::ephemeral();
    let types = choices[&("configurationType", String::new())].clone();
    types.into_iter().any(|branch| {
        let mut chosen: BTreeMap<_, _> =
            choices.iter().map(|(part, values)| (part.clone(), values[0].clone())).collect();
        chosen.insert(("configurationType", String::new()), branch);
        let mut left = violations(policies, object, &chosen, &keys);
        for _ in 0..MAX_ROUNDS {
            let before = left;
            for (part, values) in choices.iter().filter(|(part, _)| part.0 != "configurationType") {
                for value in values {
                    let old = chosen.insert(part.clone(), value.clone());
                    let now = violations(policies, object, &chosen, &keys);
                    match old {
                        Some(old) if now >= left => drop(chosen.insert(part.clone(), old)),
                        _ => left = now,
                    }
                }
            }
            if left == 0 || left == before {
                break;
            }
        }
        left == 0
    })
}

/// What the rules want, after what any sober configuration has; `None` when it is too much to be tried.
fn choices(policies: &Policies) -> Option<Choices> {
    let mut choices = Choices::new();
    let mut add = |field: &'static str, claim: &str, value: Value| {
        let values = choices.entry((field, claim.to_owned())).or_default();
        if !values.contains(&value) {
            values.push(value);
        }
    };
    for kind in ["jwks", "static"] {
        add("configurationType", "", json!(kind));
    }
    for (field, value) in [
        ("jwksUrl", json!("https://idp.example/jwks")),
        ("jwksCaCert", json!("")),
        ("publicKeys", json!(["key"])),
        ("boundIssuer", json!("https://idp.example")),
        ("boundAudiences", json!("a")),
        ("boundSubject", json!("s")),
        ("accessTokenTTL", json!(1)),
        ("accessTokenMaxTTL", json!(1)),
        ("accessTokenNumUsesLimit", json!(1)),
        ("accessTokenTrustedIps", json!([{"ipAddress": "10.0.0.1/32"}])),
    ] {
        add(field, "", value);
    }
    for rule in policies.rules() {
        for wanted in rule.wanted() {
            add(wanted.field, &wanted.claim, wanted.value);
        }
    }
    choices.values().all(|values| values.len() <= MAX_TRIED).then_some(choices)
}

fn violations(
    policies: &Policies,
    object: &Arc<Object>,
    chosen: &BTreeMap<(&'static str, String), Value>,
    keys: &Keys,
) -> usize {
    let mut claims = Map::new();
    let mut fields = BTreeMap::new();
    for ((field, claim), value) in chosen {
        if claim.is_empty() {
            fields.insert((*field).to_owned(), value.clone());
        } else {
            claims.insert(claim.clone(), value.clone());
        }
    }
    fields.insert("boundClaims".to_owned(), Value::Object(claims));
    let read = |(name, value): (String, Value)| {
        let spec = object.fields.get(&name)?;
        Some((name, spec.kind.read(Side::Request, &value, &spec.choices).ok()?))
    };
    let state = State::new(object.clone(), fields.into_iter().filter_map(read).collect());
    judge::standing(policies, object, &state, keys).len()
}
