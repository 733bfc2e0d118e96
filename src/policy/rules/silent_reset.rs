//! `silent-reset`: nothing is lost by leaving it out.
//!
//! A PATCH upstream writes the empty value into `jwksCaCert`, `publicKeys` and `jwksUrl` when it does not name them.
//! Only overlays are looked at, and only what was stored, is not named, and would be empty; the empty value on purpose
//! passes. Cured by repeating the stored value, unless that would have to be hidden.

use serde_json::Value;

use super::{Sight, Violation};
use crate::operation::Write;

/// Each field with itself as what decides it.
const FIELDS: [&[&str]; 3] = [&["jwksCaCert"], &["jwksUrl"], &["publicKeys"]];

pub(super) fn check(sight: &Sight<'_>) -> Vec<Violation> {
    FIELDS.into_iter().filter_map(|concerns| check_one(sight, concerns[0], concerns)).collect()
}

fn check_one(sight: &Sight<'_>, name: &'static str, concerns: &'static [&'static str]) -> Option<Violation> {
    let (before, edit) = (sight.before?, sight.edit?);
    let (stored, spec) = (before.get(name)?, sight.object.fields.get(name)?);
    if sight.write != Write::Overlay || stored.is_unset() || edit.fields.contains_key(name) {
        return None;
    }
    match sight.field(name) {
        Ok((field, _)) if !field.is_unset() => return None,
        Ok(_) => {}
        Err(unjudged) => return Some(sight.unjudged(unjudged, concerns)),
    }
    Some(Violation {
        limit: Value::Null,
        message: format!("{name} would be cleared only because the request leaves it out"),
        help: format!(
            "repeat the stored value, or send the empty one to clear it on purpose{}",
            sight.terraform(&[name])
        ),
        remedy: sight.sendable(stored, spec),
        ..sight.violation(name, concerns)
    })
}

#[cfg(test)]
mod tests {
    use crate::policy::tests::{PUBLIC_KEY, Scene, pointers};
    use serde_json::{Value, json};

    fn check(stored: &Value, request: &Value, expected: &[&str]) {
        let denial = Scene::new("silent-reset").stored(stored).change(request);
        assert_eq!(pointers(&denial), expected, "{stored} {request}");
    }

    #[test]
    fn what_is_left_out_must_not_be_lost() {
        check(&json!({"jwksCaCert": "ca"}), &json!({}), &["/jwksCaCert"]);
        check(&json!({"jwksCaCert": "ca"}), &json!({"jwksCaCert": ""}), &[]);
        check(&json!({"jwksCaCert": "ca"}), &json!({"jwksCaCert": "other"}), &[]);
        check(&json!({"jwksCaCert": ""}), &json!({}), &[]);
        check(&json!({"publicKeys": ["k"]}), &json!({}), &["/publicKeys"]);
        check(&json!({"publicKeys": ["k"]}), &json!({"publicKeys": []}), &[]);
        let to_static = json!({"configurationType": "static", "publicKeys": ["k"], "jwksUrl": null});
        check(&json!({"jwksUrl": "https://keys.example"}), &to_static, &["/jwksUrl"]);
    }

    #[test]
    fn an_attach_loses_nothing() {
        assert!(pointers(&Scene::new("silent-reset").attach(&json!({}))).is_empty());
    }

    #[test]
    fn the_fix_repeats_what_may_be_shown() {
        let fix = |stored: &Value| Scene::new("silent-reset").stored(stored).change(&json!({})).fix;
        let expected = json!([{"op": "add", "path": "/publicKeys", "value": [PUBLIC_KEY]}]);
        assert_eq!(fix(&json!({"publicKeys": [PUBLIC_KEY]})), Some(expected));
        assert_eq!(fix(&json!({"publicKeys": ["hunter2"]})), None);
    }
}
