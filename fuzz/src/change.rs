//! What is judged is what the upstream then holds: the effect foretold and the state read afterwards agree.

use patchwarden::bundle::Bundle;
use patchwarden::effect::{self, Proposed};
use patchwarden::id::TargetId;
use patchwarden::json::Document;
use patchwarden::keys::Keys;
use patchwarden::operation::{Edit, Entry, Field, Operation, State, Unknown};
use patchwarden::policy::{self, Denial, Facts, Mode, Permit, Policies, Settings};
use patchwarden::refusal::From;
use patchwarden::schema::{self, UnknownMembers};
use patchwarden::standin::{Estate, StandInAnswer, StandInRequest};
use serde_json::{Value, json};

use super::{IDENTITY, bundle};

/// Three bytes choose the state before, the rest is the body: `0` attaches, `1` to `7` change a row; then both
/// lifetimes of that row.
pub fn change(bytes: &[u8]) {
    let Some((&[choice, ttl, max], body)) = bytes.split_first_chunk() else { return };
    effect(row(choice, ttl, max).as_ref(), body);
}

fn row(choice: u8, ttl: u8, max: u8) -> Option<Value> {
    let lifetime = |byte: u8| [0, 60, 3600, 7200, 2_592_000, 315_360_000][usize::from(byte % 6)];
    let mut row = match choice % 8 {
        0 => return None,
        1 => json!({"jwksUrl": "https://idp.example/jwks", "jwksCaCert": "PEM", "publicKeys": ["a", "b"]}),
        2 => json!({"configurationType": "static", "publicKeys": ["k"], "boundSubject": "\u{85}s"}),
        3 => {
            json!({"accessTokenTrustedIps": [{"ipAddress": "fe80::1%eth0/0"}, {"ipAddress": "10.1.2.3/8abc"}]})
        }
        4 => json!({"publicKeys": [], "boundClaims": {}, "accessTokenTrustedIps": []}),
        5 => json!({"boundAudiences": "{a, **, b}, c\\,d", "boundClaims": {"": ",a,,b", "a/b~c": "{x"}}),
        6 => json!({"boundIssuer": "i".repeat(255), "publicKeys": ["", ""], "accessTokenNumUsesLimit": 1}),
        _ => {
            json!({"jwksUrl": " no url ", "boundAudiences": " a ,b", "accessTokenTrustedIps": [{"ipAddress": "::"}]})
        }
    };
    row["accessTokenTTL"] = json!(lifetime(ttl));
    row["accessTokenMaxTTL"] = json!(lifetime(max));
    Some(row)
}

/// One request that goes through: judged, forwarded to the stand-in, read again.
pub fn effect(before: Option<&Value>, body: &[u8]) {
    let Some(judged) = judged(bundle(), before, body) else { return };
    let Judged { mut estate, operation, before, edit, proposed, observed, enforced } = judged;
    assert!(enforced.is_err() || !asks_unreadable(&proposed), "unreadable ranges are permitted");
    let permit = observed.expect("observing permits");
    let forwarded = permit.body().expect("a change has a body");
    let object = &operation.object;
    let read_again = Document::read(forwarded).map(|document| Edit::read(object, &document));
    assert_eq!(
        read_again,
        Ok(Ok(Edit { unknown: Unknown::default(), ..edit })),
        "the forwarded body says something else"
    );

    let row = estate.state(IDENTITY);
    let answer = send(&mut estate, operation.method.as_str(), forwarded.to_vec());
    let after = read(&estate, operation);
    if answer.status != 200 {
        assert_eq!(estate.state(IDENTITY), row, "refused, and yet written");
        assert_eq!(after, before);
        refused_with_reason(&answer);
        return;
    }
    let told = State::read(object, IDENTITY, &answer.body).expect("the answer is a state");
    let after = after.expect("there is a state after");
    assert_eq!(told.state, after, "the answer says something else than a read");
    let expected = proposed.state.as_ref().expect("a change leads to a state");
    assert!(proposed.opaque.is_empty(), "{:?}", proposed.opaque);
    assert_eq!(expected.fields().len(), after.fields().len());
    for (name, expected) in expected.fields() {
        let found = after.get(name).expect("a field");
        assert!(same(expected, found), "{name}: foretold {expected:?}, found {found:?}");
    }
}

/// What nobody here can read counts as a violation, so it may become anything.
fn same(expected: &Field, found: &Field) -> bool {
    match (expected, found) {
        (Field::Ranges(expected), Field::Ranges(found)) => {
            expected.len() == found.len()
                && expected.iter().zip(found).all(|(e, f)| e == f || matches!(e, Entry::Unreadable(_)))
        }
        _ => expected == found,
    }
}

/// Rules of the upstream that no schema can say. The shape is no such rule, but for what tidying makes of it: audiences
/// that grow beyond their column, keys that fall into empty pieces at commas.
fn refused_with_reason(answer: &StandInAnswer) {
    let issues = answer.body["message"].as_array().cloned().unwrap_or_default();
    let is_known = |issue: &Value| matches!(issue["path"][0].as_str(), Some("boundAudiences" | "publicKeys"));
    let has_reason = match answer.status {
        400 | 500 => true,
        422 => issues.iter().all(is_known),
        _ => false,
    };
    assert!(has_reason, "{answer:?}");
}

/// A request as far as the gateway takes it before anything goes out.
pub(super) struct Judged<'b> {
    estate: Estate,
    operation: &'b Operation,
    before: Option<State>,
    edit: Edit,
    proposed: Proposed,
    observed: Result<Permit, Denial>,
    enforced: Result<Permit, Denial>,
}

/// The steps from the body to the verdict; nothing if the body or the schema ends them.
pub(super) fn judged<'b>(bundle: &'b Bundle, before: Option<&Value>, body: &[u8]) -> Option<Judged<'b>> {
    let mut estate = Estate::new();
    estate.add_identity(IDENTITY);
    before.inspect(|row| estate.attach(IDENTITY, row));
    let name = if before.is_some() { "jwt-auth.update" } else { "jwt-auth.attach" };
    let operation = &**bundle.operation(name).expect("a bundled operation");
    let (schema, keys) = (bundle.schema(name), Keys::ephemeral());
    let target = TargetId::canonical("identity", IDENTITY).expect("canonical");
    let document = Document::read(body).ok()?;
    let edit = schema::check(schema, operation, &document, &target, UnknownMembers::Warn).ok()?;
    let before = read(&estate, operation);
    let proposed = effect::propose(operation, before.as_ref(), Some(&edit));
    let facts = Facts::new(operation, before.as_ref(), &proposed, Some(&edit), Some(&document), &target);
    let facts = facts.with_schema(schema);
    let decide = |mode| {
        let policies = bundle.policies();
        let settings = Settings { mode, ..policies.settings() };
        let policies = Policies::new(policies.rules().to_vec(), settings, policies.digest().clone());
        policy::decide(&policies, &facts, &keys)
    };
    let (observed, enforced) = (decide(Mode::Observe), decide(Mode::Enforce));
    Some(Judged { estate, operation, before, edit, proposed, observed, enforced })
}

/// Whether the request, not the state before, brings a range that is not read.
fn asks_unreadable(proposed: &Proposed) -> bool {
    let name = "accessTokenTrustedIps";
    let field = proposed.state.as_ref().and_then(|state| state.get(name));
    let Some(Field::Ranges(entries)) = field else { return false };
    proposed.from.get(name) == Some(&From::Request)
        && entries.iter().any(|entry| matches!(entry, Entry::Unreadable(_)))
}

fn read(estate: &Estate, operation: &Operation) -> Option<State> {
    let row = estate.state(IDENTITY)?;
    let answer = json!({ &operation.object.envelope: row });
    Some(State::read(&operation.object, IDENTITY, &answer).expect("a row is readable").state)
}

/// A write of JWT auth by its one path.
pub(super) fn send(estate: &mut Estate, method: &str, body: Vec<u8>) -> StandInAnswer {
    let headers = [
        ("authorization", "Bearer x".to_owned()),
        ("content-type", "application/json".to_owned()),
        ("content-length", body.len().to_string()),
    ];
    estate.handle(&StandInRequest {
        method: method.to_owned(),
        target: format!("/api/v1/auth/jwt-auth/identities/{IDENTITY}"),
        headers: headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        body,
    })
}
