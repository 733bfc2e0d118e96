//! Scenes: a stored configuration, a request, the bundled rules. And what decisions mean beside what was stored.

use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::effect;
use crate::operation::{Object, Side};

pub(super) const PUBLIC_KEY: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";

const RULES: [&str; 5] = [
    include_str!("../../policies/rules/open-network.toml"),
    include_str!("../../policies/rules/token-lifetime.toml"),
    include_str!("../../policies/rules/unbound-login.toml"),
    include_str!("../../policies/rules/silent-reset.toml"),
    include_str!("../../policies/rules/insecure-jwks.toml"),
];

pub(super) fn ranges(texts: &[&str]) -> Value {
    texts.iter().map(|text| json!({"ipAddress": text})).collect()
}

pub(super) fn pointers(denial: &Denial) -> Vec<&str> {
    denial.violations.iter().map(|found| found.pointer.as_str()).collect()
}

fn object() -> Arc<Object> {
    Arc::new(toml::from_str(include_str!("../../policies/objects/jwt-auth.toml")).unwrap())
}

fn schema(write: Write) -> Option<Schema> {
    let text = match write {
        Write::Create => include_str!("../../policies/schemas/jwt-auth.attach.json"),
        Write::Overlay => include_str!("../../policies/schemas/jwt-auth.update.json"),
        Write::Remove => return None,
    };
    Some(Schema::compile(&json::value(text.as_bytes()).unwrap()).unwrap())
}

/// A configuration that no rule minds.
fn good() -> Value {
    json!({
        "configurationType": "jwks", "jwksUrl": "https://keys.example/jwks", "jwksCaCert": "", "publicKeys": [],
        "boundIssuer": "https://idp.example", "boundSubject": "alice", "boundAudiences": "", "boundClaims": {},
        "accessTokenTrustedIps": ranges(&["10.0.0.0/8"]), "accessTokenTTL": 3600, "accessTokenMaxTTL": 7200,
        "accessTokenNumUsesLimit": 0,
    })
}

/// `over` laid over `base`; `null` takes a member away.
fn laid(mut base: Value, over: &Value) -> Value {
    for (name, value) in over.as_object().unwrap() {
        base[name] = value.clone();
    }
    base.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    base
}

#[derive(Clone)]
pub(super) struct Scene {
    files: Vec<toml::Table>,
    overlay: toml::Table,
    settings: Settings,
    stored: Value,
}

impl Scene {
    /// All bundled rules.
    pub(super) fn all() -> Self {
        let settings = Settings { ip_allow_listing: true, mode: Mode::Enforce };
        let files = RULES.iter().map(|text| text.parse().unwrap()).collect();
        Self { files, overlay: toml::Table::new(), settings, stored: good() }
    }

    /// One rule of one's own.
    pub(super) fn of(file: &str) -> Self {
        Self { files: vec![file.parse().unwrap()], ..Self::all() }
    }

    /// What is said about a removal by somebody.
    pub(super) fn removal(&self, caller: Option<&str>) -> Denial {
        let mut said = None;
        self.with(Write::Remove, None, |facts| {
            said = Some(decide(&self.policies(), &facts.by(caller), &Keys::ephemeral()));
        });
        said.unwrap().map_or_else(|denial| denial, of_permit)
    }

    /// What is said about a PATCH by somebody.
    pub(super) fn change_by(&self, caller: Option<&str>, body: &Value) -> Denial {
        let mut said = None;
        self.with_change(body, |facts| {
            said = Some(decide(&self.policies(), &facts.by(caller), &Keys::ephemeral()));
        });
        said.unwrap().map_or_else(|denial| denial, of_permit)
    }

    /// One bundled rule.
    pub(super) fn new(rule: &str) -> Self {
        let mut scene = Self::all();
        scene.files.retain(|file| file["id"].as_str() == Some(rule));
        assert_eq!(scene.files.len(), 1);
        scene
    }

    pub(super) fn overlaid(mut self, overlay: &str) -> Self {
        self.overlay = overlay.parse().unwrap();
        self
    }

    pub(super) fn without_allow_listing(mut self) -> Self {
        self.settings.ip_allow_listing = false;
        self
    }

    fn observing(mut self) -> Self {
        self.settings.mode = Mode::Observe;
        self
    }

    /// What was stored, beside a good configuration.
    pub(super) fn stored(mut self, over: &Value) -> Self {
        self.stored = laid(good(), over);
        self
    }

    fn policies(&self) -> Policies {
        let read = |file| Rule::read(file, &self.overlay).0.unwrap();
        Policies::new(self.files.iter().map(read).collect(), self.settings, Digest::sha256(&[]))
    }

    fn state(&self, value: &Value) -> State {
        let object = object();
        let read = |(name, spec): (&String, &crate::operation::FieldSpec)| {
            (name.clone(), spec.kind.read(Side::Request, &value[name], &spec.choices).unwrap())
        };
        State::new(object.clone(), object.fields.iter().map(read).collect())
    }

    fn with(&self, write: Write, body: Option<&Value>, see: impl FnOnce(&Facts<'_>)) {
        let operation = operation(write);
        let document = body.map(|body| Document::of(body.clone()).unwrap());
        let edit = document.as_ref().map(|document| Edit::read(&operation.object, document).unwrap());
        let before = (write != Write::Create).then(|| self.state(&self.stored));
        let proposed = effect::propose(&operation, before.as_ref(), edit.as_ref());
        let target = TargetId::canonical("identity", "0190f0aa-0000-7000-8000-000000000001").unwrap();
        let schema = schema(write);
        let facts =
            Facts::new(&operation, before.as_ref(), &proposed, edit.as_ref(), document.as_ref(), &target);
        see(&facts.with_schema(schema.as_ref()));
    }

    /// A PATCH with the two required members.
    pub(super) fn with_change(&self, body: &Value, see: impl FnOnce(&Facts<'_>)) {
        let required = json!({"configurationType": "jwks", "jwksUrl": self.stored["jwksUrl"]});
        self.with(Write::Overlay, Some(&laid(required, body)), see);
    }

    /// What is said about a PATCH; a permit has no violations.
    pub(super) fn change(&self, body: &Value) -> Denial {
        self.decide(body).map_or_else(|denial| denial, of_permit)
    }

    /// What is said about a POST of a good configuration with `over` laid over it.
    pub(super) fn attach(&self, over: &Value) -> Denial {
        let mut said = None;
        self.with(Write::Create, Some(&laid(good(), over)), |facts| {
            said = Some(decide(&self.policies(), facts, &Keys::ephemeral()));
        });
        said.unwrap().map_or_else(|denial| denial, of_permit)
    }

    fn decide(&self, body: &Value) -> Result<Permit, Denial> {
        let mut said = None;
        self.with_change(body, |facts| said = Some(decide(&self.policies(), facts, &Keys::ephemeral())));
        said.unwrap()
    }
}

fn of_permit(permit: Permit) -> Denial {
    Denial { violations: Vec::new(), warnings: permit.warnings, fix: None }
}

fn operation(write: Write) -> Operation {
    let name = match write {
        Write::Overlay => "jwt-auth.update",
        Write::Create => "jwt-auth.attach",
        Write::Remove => "jwt-auth.revoke",
    };
    Operation { name: name.to_owned(), method: http::Method::PATCH, write, object: object() }
}

/// A configuration as the web page makes it when nothing is changed.
fn web_defaults() -> Value {
    json!({
        "accessTokenTrustedIps": ranges(&["0.0.0.0/0", "::/0"]),
        "accessTokenTTL": 2_592_000, "accessTokenMaxTTL": 2_592_000,
    })
}

fn check(scene: &Scene, body: &Value, denied: &[&str], warned: usize) {
    let said = scene.change(body);
    assert_eq!(pointers(&said), denied, "{body}");
    assert_eq!(said.warnings.len(), warned, "{body}: {:?}", said.warnings);
}

#[test]
fn what_was_stored_does_not_stop_other_changes() {
    let scene = Scene::all().stored(&web_defaults());
    check(&scene, &json!({"boundSubject": "bob"}), &[], 3);
    check(&scene, &json!({"accessTokenTTL": 3600}), &[], 2);
    check(&scene, &json!({"accessTokenTrustedIps": ranges(&["10.0.0.0/8"])}), &[], 2);
    check(&scene, &json!({"accessTokenTTL": 2_592_000}), &["/accessTokenTTL"], 2);
    check(&scene, &json!({"accessTokenTTL": 2_591_999}), &["/accessTokenTTL"], 2);
    check(&scene, &json!({"accessTokenTTL": 0}), &["/accessTokenTTL"], 2);
    check(&scene, &web_defaults(), &["/accessTokenTrustedIps", "/accessTokenTTL", "/accessTokenMaxTTL"], 0);
    check(
        &scene,
        &json!({"accessTokenTrustedIps": ranges(&["0.0.0.0/1", "128.0.0.0/1"])}),
        &["/accessTokenTrustedIps"],
        2,
    );
}

#[test]
fn tolerate_also_lets_stored_values_be_sent_back() {
    let scene = Scene::new("token-lifetime").stored(&web_defaults()).overlaid("existing = \"tolerate\"");
    check(&scene, &json!({"accessTokenTTL": 2_592_000}), &[], 2);
    check(&scene, &json!({"accessTokenTTL": 2_591_999}), &[], 2);
    check(&scene, &json!({"accessTokenTTL": 2_592_001}), &["/accessTokenTTL"], 1);
    check(&scene, &json!({"accessTokenMaxTTL": 0}), &["/accessTokenMaxTTL"], 1);
    let login =
        Scene::new("unbound-login").stored(&json!({"boundSubject": ""})).overlaid("existing = \"tolerate\"");
    check(&login, &json!({"boundSubject": ""}), &[], 1);
}

#[test]
fn deny_forgives_nothing() {
    let scene = Scene::new("token-lifetime").stored(&web_defaults()).overlaid("existing = \"deny\"");
    check(&scene, &json!({"boundSubject": "bob"}), &["/accessTokenTTL", "/accessTokenMaxTTL"], 0);
}

#[test]
fn a_level_says_whether_a_violation_denies_warns_or_is_not_looked_for() {
    let scene = Scene::new("token-lifetime");
    check(&scene, &json!({"accessTokenTTL": 0}), &["/accessTokenTTL"], 0);
    check(&scene.clone().overlaid("level = \"warn\""), &json!({"accessTokenTTL": 0}), &[], 1);
    check(&scene.overlaid("level = \"off\""), &json!({"accessTokenTTL": 0}), &[], 0);
}

#[test]
fn a_finding_says_where_its_value_comes_from() {
    use crate::refusal::From::{Default, Request, Stored};
    let said = Scene::all().stored(&web_defaults()).change(&json!({"accessTokenTTL": 0}));
    assert_eq!(
        (said.violations[0].from, said.violations[0].request_pointer.as_deref()),
        (Some(Request), Some("/accessTokenTTL"))
    );
    assert!(said.warnings.iter().all(|found| found.from == Some(Stored) && found.request_pointer.is_none()));
    let said = Scene::all().attach(&json!({"accessTokenTTL": null}));
    assert_eq!((said.violations[0].from, &said.violations[0].request_pointer), (Some(Default), &None));
}

#[test]
fn observe_mode_lets_a_denial_pass_and_says_so() {
    let permit = Scene::all().observing().decide(&json!({"accessTokenTTL": 0})).unwrap();
    assert_eq!(permit.would(), Some("deny"));
    assert_eq!(
        permit.warnings().iter().map(|found| found.rule.as_str()).collect::<Vec<_>>(),
        ["token-lifetime"]
    );
    let permit = Scene::all().observing().decide(&json!({"accessTokenTTL": 60})).unwrap();
    assert_eq!((permit.would(), permit.warnings().len()), (None, 0));
}

#[test]
fn a_permit_holds_the_canonical_bytes_and_counts_unknown_members() {
    let permit = Scene::all().decide(&json!({"hunter2": 1, "other": 2, "accessTokenTTL": 60})).unwrap();
    let body = br#"{"accessTokenTTL":60,"configurationType":"jwks","jwksUrl":"https://keys.example/jwks"}"#;
    assert_eq!(permit.body().map(|body| &body[..]), Some(&body[..]));
    let [warning] = permit.warnings() else { panic!("{permit:?}") };
    assert_eq!((warning.rule.as_str(), &warning.value), ("unknown-member", &json!(2)));
    assert!(!format!("{warning:?}").contains("hunter2"));
}

#[test]
fn a_removal_is_not_judged_by_rules_about_the_proposed_state() {
    let scene = Scene::all().stored(&web_defaults());
    scene.with(Write::Remove, None, |facts| {
        let permit = decide(&scene.policies(), facts, &Keys::ephemeral()).unwrap();
        assert_eq!((permit.warnings().len(), permit.body()), (0, None));
    });
}

#[test]
fn what_cannot_be_known_is_a_violation() {
    let scene = Scene::all();
    scene.with_change(&json!({}), |facts| {
        let mut proposed = facts.proposed.clone();
        for field in ["boundSubject", "accessTokenTTL", "accessTokenTrustedIps", "jwksUrl"] {
            proposed.opaque.insert(field.to_owned());
        }
        let facts = Facts { proposed: &proposed, ..*facts };
        let denial = decide(&scene.policies(), &facts, &Keys::ephemeral()).unwrap_err();
        let expected = ["/accessTokenTrustedIps", "/accessTokenTTL", "/jwksUrl", "/jwksUrl"];
        assert_eq!(pointers(&denial), expected, "{denial:?}");
        let nothing = Proposed { state: None, ..proposed.clone() };
        let denial = decide(&scene.policies(), &Facts { proposed: &nothing, ..facts }, &Keys::ephemeral())
            .unwrap_err();
        assert_eq!(denial.violations.len(), 5);
    });
}

#[test]
fn a_breach_is_what_was_written_and_not_proposed() {
    let scene = Scene::all();
    let breaches = |proposed: &Value, after: &Value| -> Vec<String> {
        let state = |over: &Value| scene.state(&laid(good(), over));
        let operation = operation(Write::Overlay);
        let found =
            breaches(&scene.policies(), &operation, &state(proposed), &state(after), &Keys::ephemeral());
        found.into_iter().map(|found| found.pointer).collect()
    };
    assert!(breaches(&json!({}), &json!({})).is_empty());
    assert_eq!(breaches(&json!({}), &json!({"accessTokenTTL": 0})), ["/accessTokenTTL"]);
    assert!(breaches(&json!({"accessTokenTTL": 0}), &json!({"accessTokenTTL": 2_592_000})).is_empty());
    assert_eq!(
        breaches(&json!({"accessTokenTTL": 0}), &web_defaults()),
        ["/accessTokenTrustedIps", "/accessTokenMaxTTL"]
    );
}
