//! What real clients send passes; what does not fit is refused with every pointer at once.

use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::operation::Write;

const ID: &str = "0b9c3a52-7d3f-4f7e-9a43-0c8f3f1d2e4a";
const ATTACH: &str = include_str!("../../policies/schemas/jwt-auth.attach.json");
const UPDATE: &str = include_str!("../../policies/schemas/jwt-auth.update.json");

fn operation(write: Write) -> Operation {
    let object: Object = toml::from_str(include_str!("../../policies/objects/jwt-auth.toml")).unwrap();
    Operation { name: "jwt-auth.x".into(), method: http::Method::PATCH, write, object: Arc::new(object) }
}

fn read(write: Write, body: &str, unknown: UnknownMembers) -> Result<Edit, Refusal> {
    let text = if write == Write::Create { ATTACH } else { UPDATE };
    let schema = Schema::compile(&crate::json::value(text.as_bytes()).unwrap()).unwrap();
    let document = Document::read(body.as_bytes()).unwrap();
    let target = TargetId::canonical("identity", ID).unwrap();
    super::check(Some(&schema), &operation(write), &document, &target, unknown)
}

fn passes(write: Write, body: &Value) -> Edit {
    read(write, &body.to_string(), UnknownMembers::Warn)
        .unwrap_or_else(|refusal| panic!("{body}: {:?}", refusal.findings))
}

/// The pointers of all findings, sorted.
fn check(write: Write, body: &str, pointers: &[&str]) {
    let refusal = read(write, body, UnknownMembers::Warn).unwrap_err();
    assert_eq!(refusal.code, Code::SchemaInvalid);
    let mut found: Vec<_> = refusal.findings.iter().map(|finding| finding.pointer.as_str()).collect();
    found.sort_unstable();
    assert_eq!(found, pointers, "{body}: {:?}", refusal.findings);
    for finding in &refusal.findings {
        assert_eq!(finding.request_pointer.as_deref(), Some(finding.pointer.as_str()));
        assert!(finding.value.is_null() && !finding.help.is_empty(), "{finding:?}");
        assert!(!format!("{finding:?}").contains("hunter2"), "{finding:?}");
    }
}

#[test]
fn what_terraform_the_web_page_and_the_documentation_send_passes() {
    let terraform = json!({
        "identityId": ID, "configurationType": "jwks", "jwksUrl": "https://idp.example/jwks.json", "jwksCaCert": "",
        "publicKeys": [""], "boundIssuer": "", "boundAudiences": "a,b", "boundClaims": {}, "boundSubject": ""
    });
    let web = json!({
        "configurationType": "static", "jwksUrl": "", "jwksCaCert": "", "publicKeys": ["-----BEGIN PUBLIC KEY-----"],
        "boundIssuer": "https://idp.example", "boundAudiences": "a", "boundClaims": {"repository": "org/a"},
        "boundSubject": "s", "accessTokenTTL": 2592000, "accessTokenMaxTTL": 2592000, "accessTokenNumUsesLimit": 0,
        "accessTokenTrustedIps": [{"ipAddress": "0.0.0.0/0"}, {"ipAddress": "::/0"}]
    });
    for write in [Write::Create, Write::Overlay] {
        let edit = passes(write, &terraform);
        assert_eq!((edit.fields.len(), edit.unknown.count()), (8, 0));
        assert_eq!(passes(write, &web).fields.len(), 12);
    }
    let curl =
        json!({"configurationType": "jwks", "jwksUrl": " https://idp.example/jwks ", "accessTokenTTL": 3600});
    assert_eq!(passes(Write::Overlay, &curl).fields.len(), 3);
    let unknown = json!({"configurationType": "static", "publicKeys": ["k"], "note": 1});
    assert_eq!(passes(Write::Overlay, &unknown).unknown.count(), 1);
}

#[test]
fn every_mistake_is_found_at_once() {
    let body = r#"{"configurationType": "jwks", "accessTokenTTL": "hunter2", "accessTokenMaxTTL": 3600.0,
        "boundSubject": null, "boundClaims": {"a": 1}, "publicKeys": [1],
        "accessTokenTrustedIps": [{"ipAddress": "10.0.0.0", "prefix": 8}, {"type": "ipv4", "ipAddress": 1}]}"#;
    let mut expected = vec![
        "/accessTokenMaxTTL",
        "/accessTokenTTL",
        "/accessTokenTrustedIps/0/prefix",
        "/accessTokenTrustedIps/1/ipAddress",
        "/accessTokenTrustedIps/1/type",
        "/boundClaims/a",
        "/boundSubject",
        "/jwksUrl",
        "/publicKeys/0",
    ];
    check(Write::Overlay, body, &expected);
    expected.sort_unstable();
    check(Write::Create, body, &expected);
}

#[test]
fn each_branch_asks_for_its_own() {
    let other = ID.replace('0', "1");
    for (body, pointers) in [
        (json!({}), &["/configurationType"][..]),
        (json!({"configurationType": "JWKS"}), &["/configurationType"]),
        (json!({"configurationType": "jwks"}), &["/jwksUrl"]),
        (json!({"configurationType": "jwks", "jwksUrl": "hunter2"}), &["/jwksUrl"]),
        (json!({"configurationType": "jwks", "jwksUrl": ""}), &["/jwksUrl"]),
        (json!({"configurationType": "static"}), &["/publicKeys"]),
        (json!({"configurationType": "static", "publicKeys": []}), &["/publicKeys"]),
        (json!({"configurationType": "static", "publicKeys": [""]}), &["/publicKeys/0"]),
        (json!({"configurationType": "static", "publicKeys": ["k"], "identityId": 7}), &["/identityId"]),
        (json!({"configurationType": "static", "publicKeys": ["k"], "identityId": other}), &["/identityId"]),
        (
            json!({"configurationType": "static", "publicKeys": ["k"], "accessTokenTrustedIps": []}),
            &["/accessTokenTrustedIps"],
        ),
        (
            json!({"configurationType": "static", "publicKeys": ["k"], "boundIssuer": "x".repeat(256)}),
            &["/boundIssuer"],
        ),
        (
            json!({"configurationType": "static", "publicKeys": ["k"], "accessTokenTTL": 315_360_001}),
            &["/accessTokenTTL"],
        ),
    ] {
        check(Write::Overlay, &body.to_string(), pointers);
    }
    check(Write::Create, r#"{"configurationType": "jwks", "jwksUrl": "https://a"}"#, &["/boundClaims"]);
}

#[test]
fn a_number_is_written_in_plain_digits() {
    for number in ["0.0", "-0", "3600.0", "36e2", "1e-400", "9007199254740992"] {
        let body = format!(
            r#"{{"configurationType": "static", "publicKeys": ["k"], "accessTokenNumUsesLimit": {number}}}"#
        );
        check(Write::Overlay, &body, &["/accessTokenNumUsesLimit"]);
    }
}

#[test]
fn unknown_members_can_be_refused_without_naming_them() {
    let body = r#"{"configurationType": "static", "publicKeys": ["k"], "hunter2": 1}"#;
    let refusal = read(Write::Overlay, body, UnknownMembers::Refuse).unwrap_err();
    assert_eq!(refusal.findings.len(), 1);
    assert!(!format!("{refusal:?}").contains("hunter2"));
}

#[test]
fn without_a_schema_nothing_passes() {
    let document = Document::read(b"{}").unwrap();
    let target = TargetId::canonical("identity", ID).unwrap();
    let read = super::check(None, &operation(Write::Overlay), &document, &target, UnknownMembers::Warn);
    assert_eq!(read.unwrap_err().code, Code::SchemaInvalid);
}

#[test]
fn a_schema_that_says_what_nobody_checks_does_not_compile() {
    for schema in [
        json!({"format": "no-such-format"}),
        json!({"$ref": "https://elsewhere.example/schema.json"}),
        json!({"pattern": "("}),
        json!({"type": 1}),
    ] {
        assert!(Schema::compile(&schema).is_err(), "{schema}");
    }
}

#[test]
fn a_default_repeated_in_a_schema_is_what_the_object_file_says() {
    for (write, text) in [(Write::Create, ATTACH), (Write::Overlay, UPDATE)] {
        let schema = crate::json::value(text.as_bytes()).unwrap();
        let object = operation(write).object;
        for (name, property) in schema["properties"].as_object().unwrap() {
            let Some(default) = property.get("default") else { continue };
            for branch in ["jwks", "static"] {
                let said = object.omission(write, name, Some(branch));
                assert_eq!(said, &crate::operation::Omission::Writes(default.clone()), "{name}");
            }
        }
    }
}
