//! The fix of a denied request: a JSON Patch on its body that is known to pass.
//!
//! Each violation may bring a remedy; all of them together make a patched document, which must pass the schema, every
//! rule, and the upstream's own rule about lifetimes (whose odd formula may ask for `accessTokenTTL` as well). A patch
//! that fails anywhere is not offered: a fix that does not work is worse than none.

use serde_json::{Map, Value, json};

use super::judge::{self, Broken};
use super::rules::Remedy;
use super::{Facts, Policies};
use crate::effect;
use crate::json::{self, Document};
use crate::keys::Keys;
use crate::operation::{Edit, Field, State, Write};
use crate::schema::{self, UnknownMembers};

const TTL: &str = "accessTokenTTL";
const MAX_TTL: &str = "accessTokenMaxTTL";

/// A patch that cures every violation, if there is one.
pub(super) fn find(policies: &Policies, facts: &Facts<'_>, broken: &[Broken], keys: &Keys) -> Option<Value> {
    let (schema, sent) = (facts.schema?, facts.document?.members());
    let mut patch = Patch { sent, members: sent.clone(), operations: Vec::new() };
    for Broken { field, remedy, .. } in broken {
        patch.apply(field, remedy.as_ref()?);
    }
    let read = |document: &Document| {
        schema::check(Some(schema), facts.operation, document, facts.target, UnknownMembers::Warn).ok()
    };
    let mut edit = read(&patch.document()?)?;
    if let Some(ceiling) = refused_above(facts, &edit) {
        let lifetime = longest_lifetime(policies, facts).map_or(ceiling, |longest| longest.min(ceiling));
        patch.apply(TTL, &Remedy::Send(json!(lifetime)));
        edit = read(&patch.document()?)?;
    }
    passes(policies, facts, &edit, keys).then_some(Value::Array(patch.operations))
}

fn longest_lifetime(policies: &Policies, facts: &Facts<'_>) -> Option<u64> {
    let rules = policies.rules().iter().filter(|rule| rule.applies_to(facts.operation));
    rules.filter_map(super::Rule::longest_lifetime).min()
}

/// A document and the operations that lead to it.
struct Patch<'a> {
    sent: &'a Map<String, Value>,
    members: Map<String, Value>,
    operations: Vec<Value>,
}

impl Patch<'_> {
    /// Later remedies of a field replace earlier ones.
    fn apply(&mut self, field: &str, remedy: &Remedy) {
        let path = json::pointer(&[field]);
        self.operations.retain(|operation| operation["path"] != path.as_str());
        let was_sent = self.sent.contains_key(field);
        match remedy {
            Remedy::Send(value) => {
                let op = if was_sent { "replace" } else { "add" };
                self.operations.push(json!({"op": op, "path": path, "value": value}));
                self.members.insert(field.to_owned(), value.clone());
            }
            Remedy::LeaveOut => {
                if was_sent {
                    self.operations.push(json!({"op": "remove", "path": path}));
                }
                self.members.remove(field);
            }
        }
    }

    fn document(&self) -> Option<Document> {
        Document::of(Value::Object(self.members.clone()))
    }
}

fn passes(policies: &Policies, facts: &Facts<'_>, edit: &Edit, keys: &Keys) -> bool {
    let proposed = effect::propose(facts.operation, facts.before, Some(edit));
    let patched = Facts { proposed: &proposed, edit: Some(edit), ..*facts };
    judge::judge(policies, &patched, keys).violations.is_empty() && refused_above(facts, edit).is_none()
}

/// The ceiling above which the upstream would refuse the lifetime, if it would (`0` counts as absent, and a PATCH is
/// measured by the stored ceiling, not by the stored lifetime).
fn refused_above(facts: &Facts<'_>, edit: &Edit) -> Option<u64> {
    let (ceiling, asked) = match facts.operation.write {
        Write::Overlay => {
            let stored = facts.before.and_then(|before| number(before.get(MAX_TTL))).unwrap_or(0);
            let or_stored =
                |name| number(edit.fields.get(name)).filter(|number| *number > 0).unwrap_or(stored);
            (or_stored(MAX_TTL), or_stored(TTL))
        }
        Write::Create => created(&effect::propose(facts.operation, None, Some(edit)).state?),
        Write::Remove => return None,
    };
    (ceiling > 0 && asked > ceiling).then_some(ceiling)
}

fn created(state: &State) -> (u64, u64) {
    let of = |name| number(state.get(name)).unwrap_or(0);
    (of(MAX_TTL), of(TTL))
}

fn number(field: Option<&Field>) -> Option<u64> {
    match field {
        Some(Field::Number(number)) => Some(*number),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::refused_above;
    use crate::policy::tests::{Scene, ranges};
    use serde_json::{Value, json};

    fn check(stored: &Value, request: &Value, fix: Value) {
        let denial = Scene::all().stored(stored).change(request);
        assert!(!denial.violations.is_empty(), "{request} is not denied");
        assert_eq!(denial.fix, Some(fix).filter(|fix| !fix.is_null()), "{stored} {request}");
    }

    #[test]
    fn the_upstreams_lifetime_rule_is_known() {
        for (ttl, max, request, refused) in [
            (3600, 7200, json!({"accessTokenTTL": 0}), None),
            (3600, 7200, json!({"accessTokenMaxTTL": 0}), None),
            (3600, 7200, json!({"accessTokenTTL": 0, "accessTokenMaxTTL": 0}), None),
            (3600, 7200, json!({"accessTokenMaxTTL": 3600}), Some(3600)),
            (3600, 7200, json!({"accessTokenTTL": 315_360_000, "accessTokenMaxTTL": 0}), Some(7200)),
            (3600, 0, json!({"accessTokenTTL": 315_360_000}), None),
            (3600, 7200, json!({"accessTokenMaxTTL": 315_360_000}), None),
        ] {
            let scene = Scene::all().stored(&json!({"accessTokenTTL": ttl, "accessTokenMaxTTL": max}));
            scene.with_change(&request, |facts| {
                assert_eq!(refused_above(facts, facts.edit.unwrap()), refused, "{ttl} {max} {request}");
            });
        }
    }

    #[test]
    fn lifetimes_become_their_limits() {
        let web = json!({"accessTokenTTL": 2_592_000, "accessTokenMaxTTL": 2_592_000});
        let both = json!([{"op": "replace", "path": "/accessTokenMaxTTL", "value": 604_800},
            {"op": "add", "path": "/accessTokenTTL", "value": 86_400}]);
        check(&web, &json!({"accessTokenMaxTTL": 2_592_000}), both);
        let good = json!({"accessTokenTTL": 3600, "accessTokenMaxTTL": 7200});
        let ttl = json!([{"op": "replace", "path": "/accessTokenTTL", "value": 86_400}]);
        check(&good, &json!({"accessTokenTTL": 0, "accessTokenMaxTTL": 604_800}), ttl);
        // The limit would be above the stored ceiling, so the ceiling is offered.
        let ceiling = json!([{"op": "replace", "path": "/accessTokenTTL", "value": 7200}]);
        check(&good, &json!({"accessTokenTTL": 0}), ceiling);
    }

    #[test]
    fn open_ranges_are_left_out_where_the_stored_ones_only_warn() {
        let open = json!({"accessTokenTrustedIps": ranges(&["0.0.0.0/0", "::/0"])});
        let fix = json!([{"op": "remove", "path": "/accessTokenTrustedIps"}]);
        check(&open, &open, fix.clone());
        check(&json!({}), &open, fix);
        let denial = Scene::all().attach(&open);
        assert_eq!((denial.violations.len(), denial.fix), (1, None));
    }

    #[test]
    fn what_nobody_can_guess_has_no_fix() {
        check(&json!({}), &json!({"boundSubject": "*", "accessTokenTTL": 0}), Value::Null);
    }
}
