//! The rules that are built in and not in force by default, each over states that it minds and states that it does not.

use serde_json::{Value, json};

use crate::policy::tests::{PUBLIC_KEY, Scene, pointers, ranges};

const RANGES: &str = "/accessTokenTrustedIps";
/// The target of every scene.
const TARGET: &str = "0190f0aa-0000-7000-8000-000000000001";

fn rule(builtin: &str, params: &str) -> Scene {
    Scene::of(&format!("id = \"own\"\ntitle = \"t\"\nbuiltin = \"{builtin}\"\n[params]\n{params}"))
}

#[track_caller]
fn check(scene: &Scene, body: &Value, expected: &[&str]) {
    let said = scene.attach(body);
    assert_eq!(pointers(&said), expected, "{body}: {:?}", said.violations);
}

#[test]
fn allowed_networks_hold_every_entry_whole() {
    let scene =
        rule("allowed-networks", "networks = [\"10.0.0.0/8\", \"203.0.113.0/25\", \"203.0.113.128/25\"]");
    for inside in
        [&["10.1.0.0/16"][..], &["203.0.113.0/24"], &["10.0.0.0/8", "203.0.113.7"], &["::ffff:10.0.0.0/104"]]
    {
        check(&scene, &json!({"accessTokenTrustedIps": ranges(inside)}), &[]);
    }
    for (texts, at) in
        [(&["11.0.0.0/8"][..], 0), (&["10.0.0.0/7"], 0), (&["10.0.0.0/8", "::/0"], 1), (&["10.0.0.0/8 x"], 0)]
    {
        check(&scene, &json!({"accessTokenTrustedIps": ranges(texts)}), &[&format!("{RANGES}/{at}")]);
    }
    let fix = scene.attach(&json!({"accessTokenTrustedIps": ranges(&["0.0.0.0/0"])})).fix.unwrap();
    assert_eq!(fix[0]["value"], ranges(&["10.0.0.0/8", "203.0.113.0/25", "203.0.113.128/25"]));
}

#[test]
fn uses_are_limited_and_0_is_no_limit() {
    let scene = rule("uses-limit", "at_most = 10");
    for (uses, expected) in
        [(1, &[][..]), (10, &[]), (11, &["/accessTokenNumUsesLimit"]), (0, &["/accessTokenNumUsesLimit"])]
    {
        check(&scene, &json!({"accessTokenNumUsesLimit": uses}), expected);
    }
    let fix = scene.attach(&json!({"accessTokenNumUsesLimit": 0})).fix;
    assert_eq!(fix, Some(json!([{"op": "replace", "path": "/accessTokenNumUsesLimit", "value": 10}])));
}

#[test]
fn required_claims_must_bind() {
    let scene = rule("required-claims", "claims = [\"team\", \"a/b\"]");
    check(&scene, &json!({"boundClaims": {"team": "deploy", "a/b": "x", "more": "*"}}), &[]);
    check(&scene, &json!({"boundClaims": {"team": "**", "a/b": "x"}}), &["/boundClaims/team"]);
    check(&scene, &json!({"boundClaims": {}}), &["/boundClaims/team", "/boundClaims/a~1b"]);
}

#[test]
fn bound_patterns_begin_as_they_must() {
    let scene = rule(
        "bound-patterns",
        "subject = [\"repo:acme/\", \"system:\"]\naudiences = [\"acme-\"]\nclaims = { owner = [\"acme\"] }",
    );
    let body = |subject: &str, audiences: &str, owner: &str| json!({"boundSubject": subject, "boundAudiences": audiences, "boundClaims": {"owner": owner}});
    for subject in ["repo:acme/app:ref:x", "repo:acme/*", "system:serviceaccount:a:b"] {
        check(&scene, &body(subject, "acme-a, acme-b", "acme"), &[]);
    }
    for subject in
        ["repo:other/app", "repo:acme", "*repo:acme/", "{repo:acme/a,**}", "!repo:acme/", "./repo:acme/x", ""]
    {
        check(&scene, &body(subject, "acme-a", "acme"), &["/boundSubject"]);
    }
    for audiences in ["acme-a, other", "{acme-a, other}", ""] {
        check(&scene, &body("repo:acme/x", audiences, "acme"), &["/boundAudiences"]);
    }
    check(&scene, &body("repo:acme/x", "acme-a", "@(acme|other)"), &["/boundClaims/owner"]);
    check(
        &scene,
        &json!({"boundSubject": "repo:acme/x", "boundAudiences": "acme-a", "boundClaims": {}}),
        &["/boundClaims/owner"],
    );
}

#[test]
fn issuers_hosts_and_types_are_named() {
    let scene = rule("allowed-issuers", "issuers = [\"https://idp.example\"]");
    check(&scene, &json!({"boundIssuer": "https://idp.example"}), &[]);
    for issuer in ["", "https://idp.example/", "https://IDP.example", "https://other.example"] {
        check(&scene, &json!({"boundIssuer": issuer}), &["/boundIssuer"]);
    }
    let scene = rule("allowed-jwks-hosts", "hosts = [\"keys.example\", \"*.corp.example\"]");
    for url in ["https://keys.example/jwks", "https://KEYS.example.:443/x", "https://a.b.corp.example/x"] {
        check(&scene, &json!({"jwksUrl": url}), &[]);
    }
    for url in [
        "https://corp.example/x",
        "https://keys.example.other/x",
        "https://xcorp.example",
        "https://keys.example@other.example/",
        "none",
    ] {
        check(&scene, &json!({"jwksUrl": url}), &["/jwksUrl"]);
    }
    let fixed = json!({"configurationType": "static", "publicKeys": [PUBLIC_KEY], "jwksUrl": ""});
    check(&scene, &fixed, &[]);
    let scene = rule("configuration-type", "allowed = [\"jwks\"]");
    check(&scene, &json!({}), &[]);
    check(&scene, &fixed, &["/configurationType"]);
}

#[test]
fn a_key_set_is_pinned_to_an_authority() {
    let scene = rule("require-ca-pin", "");
    check(
        &scene,
        &json!({"jwksCaCert": "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----"}),
        &[],
    );
    for pin in ["", "none", "-----BEGIN CERTIFICATE-----"] {
        check(&scene, &json!({"jwksCaCert": pin}), &["/jwksCaCert"]);
    }
    check(&scene, &json!({"configurationType": "static", "publicKeys": [PUBLIC_KEY], "jwksUrl": ""}), &[]);
}

#[test]
fn weak_keys_and_texts_that_are_no_keys_are_named() {
    let body = |keys: &[&str]| json!({"configurationType": "static", "publicKeys": keys, "jwksUrl": ""});
    let generated = |algorithm| rcgen::KeyPair::generate_for(algorithm).unwrap().public_key_pem();
    let (p256, p384) = (generated(&rcgen::PKCS_ECDSA_P256_SHA256), generated(&rcgen::PKCS_ECDSA_P384_SHA384));
    let any = rule("key-strength", "");
    check(&any, &body(&[PUBLIC_KEY, &p256, &p384, RSA_2048]), &[]);
    check(&any, &body(&[RSA_1024]), &["/publicKeys/0"]);
    check(&any, &body(&["a shared secret"]), &["/publicKeys/0"]);
    check(&rule("key-strength", "rsa_bits = 1024"), &body(&[RSA_1024]), &[]);
    let few = rule("key-strength", "rsa_bits = 4096\ncurves = [\"P-384\"]");
    check(
        &few,
        &body(&[&p384, &p256, PUBLIC_KEY, RSA_2048]),
        &["/publicKeys/1", "/publicKeys/2", "/publicKeys/3"],
    );
    check(&few, &json!({}), &[]);
    assert!(few.attach(&body(&[RSA_2048])).violations[0].message.contains("RSA key of 2048 bits"));
}

#[test]
fn what_is_frozen_stays_whoever_would_change_it() {
    let scene = rule("frozen-fields", "fields = [\"boundIssuer\", \"jwksCaCert\"]")
        .stored(&json!({"jwksCaCert": "PIN"}));
    let same = json!({"boundIssuer": "https://idp.example", "jwksCaCert": "PIN", "accessTokenTTL": 60});
    assert_eq!(pointers(&scene.change(&same)), [""; 0]);
    let other = scene.change(&json!({"boundIssuer": "https://other.example", "jwksCaCert": "PIN"}));
    assert_eq!(pointers(&other), ["/boundIssuer"]);
    assert_eq!(other.fix.unwrap()[0]["value"], "https://idp.example");
    assert_eq!(pointers(&scene.change(&json!({}))), ["/jwksCaCert"], "a reset is a change");
    assert_eq!(pointers(&scene.attach(&json!({"boundIssuer": "x"}))), [""; 0]);
}

#[test]
fn protected_identities_and_callers_count_for_removals_too() {
    let own = "5f0d5a52-2b1c-4c55-8f7e-6f1b1d3e9c01";
    let sealed = rule("protected-target", &format!("targets = [\"{TARGET}\"]"));
    let guarded = rule("protected-target", &format!("targets = [\"{TARGET}\"]\ncallers = [\"{own}\"]"));
    let elsewhere = rule("protected-target", &format!("targets = [\"{own}\"]"));
    let few = rule("caller-allowed", &format!("callers = [\"{own}\"]"));
    for (scene, caller, denied) in [
        (&sealed, Some(own), true),
        (&sealed, None, true),
        (&guarded, Some(own), false),
        (&guarded, Some("other"), true),
        (&guarded, None, true),
        (&elsewhere, None, false),
        (&few, Some(own), false),
        (&few, Some("other"), true),
        (&few, None, true),
    ] {
        let expected = if denied { vec![""] } else { vec![] };
        assert_eq!(
            pointers(&scene.change_by(caller, &json!({"accessTokenTTL": 60}))),
            expected,
            "{caller:?}"
        );
        assert_eq!(pointers(&scene.removal(caller)), expected, "{caller:?}");
    }
    // A rule about the state that would be has nothing to say of a removal.
    assert!(rule("uses-limit", "at_most = 1").removal(None).violations.is_empty());
}

const RSA_1024: &str = include_str!("rsa-1024.pem");
const RSA_2048: &str = include_str!("rsa-2048.pem");
