//! Step 6: the state a request would lead to.
//!
//! In come the operation, the state before and the edit; out comes [`Proposed`]: every field of the state after the
//! write, each with where it comes from. What a field left out becomes is said by the object's file, never guessed: kept,
//! or written by the upstream without having been asked. What nobody can know is named in `opaque`. Pure: no I/O, no
//! clock.

use std::collections::{BTreeMap, BTreeSet};

use crate::operation::{Edit, Field, Omission, Operation, Side, State, Write};
use crate::refusal;

/// What a request would lead to.
#[derive(Clone, Debug)]
pub struct Proposed {
    /// The state; `None` after a removal.
    pub state: Option<State>,
    /// Where the value of each known field comes from.
    pub from: BTreeMap<String, refusal::From>,
    /// Fields whose value nobody can know; they are missing in `state`.
    pub opaque: BTreeSet<String>,
}

/// Lays an edit over the state before as the upstream would.
pub fn propose(operation: &Operation, before: Option<&State>, edit: Option<&Edit>) -> Proposed {
    let mut proposed = Proposed { state: None, from: BTreeMap::new(), opaque: BTreeSet::new() };
    let object = &operation.object;
    let before = match operation.write {
        Write::Remove => return proposed,
        Write::Create => None,
        Write::Overlay => before,
    };
    let named = |name: &str| edit.and_then(|edit| edit.fields.get(name));
    let stored = |name: &str| before.and_then(|state| state.get(name));
    let branch = match named(&object.branch).or_else(|| stored(&object.branch)) {
        Some(Field::Text(branch)) => Some(branch.as_str()),
        _ => None,
    };
    let mut fields = BTreeMap::new();
    for (name, spec) in &object.fields {
        let known = match (named(name), object.omission(operation.write, name, branch)) {
            (Some(field), _) => Some((field.clone(), refusal::From::Request)),
            (None, Omission::Keeps) => stored(name).map(|field| (field.clone(), refusal::From::Stored)),
            (None, Omission::Writes(value)) => {
                let written = spec.kind.read(Side::Request, value, &spec.choices).ok();
                written.map(|field| (field, refusal::From::Default))
            }
            (None, Omission::Required | Omission::Opaque) => None,
        };
        match known {
            Some((field, from)) => {
                fields.insert(name.clone(), field);
                proposed.from.insert(name.clone(), from);
            }
            None => drop(proposed.opaque.insert(name.clone())),
        }
    }
    proposed.state = Some(State::new(object.clone(), fields));
    proposed
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Map, Value, json};

    use super::*;
    use crate::json::Document;
    use crate::operation::Object;
    use crate::refusal::From::{Default, Request, Stored};

    fn operation(write: Write) -> Operation {
        let object: Object = toml::from_str(include_str!("../policies/objects/jwt-auth.toml")).unwrap();
        Operation { name: "jwt-auth.x".into(), method: http::Method::PATCH, write, object: Arc::new(object) }
    }

    fn row(branch: &str) -> Value {
        json!({"identityJwtAuth": {
            "id": "r1", "identityId": "i", "updatedAt": "2026-10-01T10:00:00.000Z", "configurationType": branch,
            "jwksUrl": "https://idp.example/jwks", "jwksCaCert": "CA", "publicKeys": ["k1", "k2"],
            "boundIssuer": "iss", "boundAudiences": "a, b", "boundClaims": {"c": "v"}, "boundSubject": "sub",
            "accessTokenTTL": 3600, "accessTokenMaxTTL": 7200, "accessTokenNumUsesLimit": 5,
            "accessTokenTrustedIps": [{"ipAddress": "10.0.0.0", "type": "ipv4", "prefix": 8}]
        }})
    }

    fn proposed(write: Write, before: Option<&str>, body: Value) -> Proposed {
        let operation = operation(write);
        let before = before.map(|branch| State::read(&operation.object, "i", &row(branch)).unwrap().state);
        let edit = Edit::read(&operation.object, &Document::of(body).unwrap()).unwrap();
        propose(&operation, before.as_ref(), Some(&edit))
    }

    /// The fields the request does not name, with where they come from.
    fn check(write: Write, before: Option<&str>, body: &Value, expected: &[(&str, refusal::From, Value)]) {
        let proposed = proposed(write, before, body.clone());
        let state = proposed.state.unwrap();
        let found: Map<String, Value> = state
            .fields()
            .iter()
            .filter(|(name, _)| proposed.from[*name] != Request)
            .map(|(name, field)| {
                (name.clone(), json!([format!("{:?}", proposed.from[name]), field.normal()]))
            })
            .collect();
        let expected: Map<String, Value> = expected
            .iter()
            .map(|(name, from, value)| ((*name).to_owned(), json!([format!("{from:?}"), value])))
            .collect();
        assert_eq!(found, expected, "{write:?} {body}");
        assert!(proposed.opaque.is_empty(), "{:?}", proposed.opaque);
    }

    fn kept() -> Vec<(&'static str, refusal::From, Value)> {
        vec![
            ("boundIssuer", Stored, json!("iss")),
            ("boundAudiences", Stored, json!("a, b")),
            ("boundClaims", Stored, json!({"c": "v"})),
            ("boundSubject", Stored, json!("sub")),
            ("accessTokenTTL", Stored, json!(3600)),
            ("accessTokenMaxTTL", Stored, json!(7200)),
            ("accessTokenNumUsesLimit", Stored, json!(5)),
            ("accessTokenTrustedIps", Stored, json!(["10.0.0.0/8"])),
        ]
    }

    fn defaults() -> Vec<(&'static str, refusal::From, Value)> {
        vec![
            ("jwksCaCert", Default, json!("")),
            ("boundIssuer", Default, json!("")),
            ("boundAudiences", Default, json!("")),
            ("boundSubject", Default, json!("")),
            ("accessTokenTTL", Default, json!(2_592_000)),
            ("accessTokenMaxTTL", Default, json!(2_592_000)),
            ("accessTokenNumUsesLimit", Default, json!(0)),
            ("accessTokenTrustedIps", Default, json!(["0.0.0.0/0", "::/0"])),
        ]
    }

    #[test]
    fn a_patch_keeps_most_and_silently_resets_the_rest() {
        for before in ["jwks", "static"] {
            let body = json!({"configurationType": "jwks", "jwksUrl": "https://other.example"});
            let mut expected = kept();
            expected.push(("jwksCaCert", Default, json!("")));
            expected.push(("publicKeys", Default, json!([])));
            check(Write::Overlay, Some(before), &body, &expected);
            let body = json!({"configurationType": "static", "publicKeys": ["k3"]});
            let mut expected = kept();
            expected.push(("jwksCaCert", Default, json!("")));
            expected.push(("jwksUrl", Default, json!("")));
            check(Write::Overlay, Some(before), &body, &expected);
        }
    }

    #[test]
    fn an_attach_writes_the_open_defaults() {
        let body = json!({"configurationType": "jwks", "jwksUrl": "https://a", "boundClaims": {}});
        let mut expected = defaults();
        expected.push(("publicKeys", Default, json!([])));
        check(Write::Create, None, &body, &expected);
        let body = json!({"configurationType": "static", "publicKeys": ["k"], "boundClaims": {}});
        let mut expected = defaults();
        expected.push(("jwksUrl", Default, json!("")));
        check(Write::Create, None, &body, &expected);
    }

    #[test]
    fn what_a_request_names_is_the_requests_own_in_normal_form() {
        let body = json!({
            "configurationType": "static", "publicKeys": [""], "jwksUrl": " x ", "jwksCaCert": "",
            "boundIssuer": "\u{feff}i", "boundAudiences": "a,b", "boundClaims": {"c": "x,y"}, "boundSubject": "",
            "accessTokenTTL": 0, "accessTokenMaxTTL": 0, "accessTokenNumUsesLimit": 1,
            "accessTokenTrustedIps": [{"ipAddress": "203.0.113.7/0"}]
        });
        let proposed = proposed(Write::Overlay, Some("jwks"), body);
        assert!(proposed.from.values().all(|from| *from == Request));
        let state = proposed.state.unwrap();
        let normal: Map<_, _> = state.fields().iter().map(|(n, f)| (n.clone(), f.normal())).collect();
        assert_eq!(
            Value::Object(normal),
            json!({
                "configurationType": "static", "publicKeys": [], "jwksUrl": "x", "jwksCaCert": "",
                "boundIssuer": "i", "boundAudiences": "a, b", "boundClaims": {"c": "x, y"}, "boundSubject": "",
                "accessTokenTTL": 0, "accessTokenMaxTTL": 0, "accessTokenNumUsesLimit": 1,
                "accessTokenTrustedIps": ["0.0.0.0/0"]
            })
        );
    }

    #[test]
    fn a_removal_leads_to_nothing() {
        let operation = operation(Write::Remove);
        let before = State::read(&operation.object, "i", &row("jwks")).unwrap().state;
        assert!(propose(&operation, Some(&before), None).state.is_none());
    }

    #[test]
    fn what_nobody_can_know_is_opaque_and_not_in_the_state() {
        let proposed = proposed(Write::Overlay, None, json!({"configurationType": "jwks"}));
        assert!(proposed.opaque.contains("boundSubject") && proposed.opaque.contains("jwksUrl"));
        assert!(proposed.state.unwrap().get("boundSubject").is_none());
    }
}
