//! Every refusal: its code, its status, that nothing was forwarded, and that it is in the record.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use crate::support::client::{self, Answer};
use crate::support::gateway::{Gateway, change_of};
use crate::support::upstream::{Act, Matcher, Seen, Upstream};
use crate::support::{IDENTITY, STRANGER, eventually, good_attach, good_patch, jwt_auth_path};

async fn attached(config: &str) -> (Upstream, Gateway) {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let gateway = Gateway::before(&upstream.url()).config(config).start().await;
    (upstream, gateway)
}

fn patch(head: &str, body: &str) -> String {
    format!(
        "PATCH {} HTTP/1.1\r\nhost: gw\r\n{head}content-length: {}\r\n\r\n{body}",
        jwt_auth_path(IDENTITY),
        body.len()
    )
}

/// What the upstream saw, but for the gateway's own look around at start.
fn asked(upstream: &Upstream) -> Vec<Seen> {
    upstream.seen().into_iter().filter(|seen| seen.target != "/api/status").collect()
}

/// The read before each change.
fn read() -> Matcher {
    Matcher::method("GET").path("/identities/")
}

const AUTH: &str = "authorization: Bearer tok\r\n";
const JSON: &str = "content-type: application/json\r\n";

/// The record of an answer; an unproven refusal is written after its answer.
fn recorded(gateway: &Gateway, answer: &Answer) -> Value {
    let id = change_of(answer);
    for _ in 0..100 {
        if gateway.cli(&["show", &id, "--format", "json"]).status.success() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    gateway.show(&id)
}

#[track_caller]
fn assert_refused(answer: &Answer, status: u16, code: &str, gateway: &Gateway) {
    assert_eq!(answer.status, status, "{}", answer.text());
    let problem = answer.json();
    assert_eq!(problem["code"], code);
    assert_eq!(problem["type"], format!("urn:patchwarden:refusal:{code}"));
    assert_eq!((&problem["status"], &problem["statusCode"]), (&json!(status), &json!(status)));
    assert_eq!(problem["reqId"], change_of(answer));
    assert_eq!(answer.get("patchwarden-answered-by"), Some("gateway"));
    let change = recorded(gateway, answer);
    assert_eq!((&change["code"], &change["decision"]), (&json!(code), &json!("refuse")), "{change}");
}

#[tokio::test]
async fn what_is_not_understood_is_refused_and_recorded() {
    let (upstream, gateway) = attached("").await;
    let body = good_patch(&json!({"accessTokenTTL": 60})).to_string();
    let duplicate = body.replace('{', "{\"accessTokenTTL\":1,");
    let large = good_patch(&json!({"boundSubject": "x".repeat(70_000)})).to_string();
    let rows: Vec<(u16, &str, String)> = vec![
        (401, "caller.missing_token", patch(JSON, &body)),
        (401, "caller.missing_token", patch(&format!("authorization: Basic tok\r\n{JSON}"), &body)),
        (401, "caller.missing_token", patch(&format!("x-api-key: k\r\n{AUTH}{JSON}"), &body)),
        (400, "caller.ambiguous", patch(&format!("{AUTH}{AUTH}{JSON}"), &body)),
        (415, "body.media_type", patch(AUTH, &body)),
        (415, "body.media_type", patch(&format!("{AUTH}{JSON}{JSON}"), &body)),
        (
            415,
            "body.media_type",
            patch(&format!("{AUTH}content-type: application/x-www-form-urlencoded\r\n"), "a=b"),
        ),
        (415, "body.media_type", patch(&format!("{AUTH}{JSON}content-encoding: gzip\r\n"), &body)),
        (413, "body.too_large", patch(&format!("{AUTH}{JSON}"), &large)),
        (400, "body.malformed", patch(&format!("{AUTH}{JSON}"), "{\"a\":1")),
        (400, "body.malformed", patch(&format!("{AUTH}{JSON}"), "")),
        (400, "body.malformed", patch(&format!("{AUTH}{JSON}"), "[]")),
        (400, "body.duplicate_key", patch(&format!("{AUTH}{JSON}"), &duplicate)),
        (400, "body.forbidden_key", patch(&format!("{AUTH}{JSON}"), "{\"__proto__\":{}}")),
        (422, "schema.invalid", patch(&format!("{AUTH}{JSON}"), "{\"accessTokenTTL\":60}")),
    ];
    for (status, code, raw) in rows {
        let answer = client::send(gateway.addr(), &raw).await;
        assert_refused(&answer, status, code, &gateway);
    }
    assert!(asked(&upstream).is_empty(), "not even a read");
}

#[tokio::test]
async fn only_the_canonical_spelling_is_taken() {
    // Refusals are counted by the minute of the clock: leave time in this one.
    let second = jiff::Timestamp::now().as_second() % 60;
    if second > 50 {
        sleep(Duration::from_secs(u64::try_from(60 - second).unwrap())).await;
    }
    let (upstream, gateway) = attached("").await;
    let path = jwt_auth_path(IDENTITY);
    for spelled in [
        format!("{path}/"),
        format!("{path}?a=b"),
        format!("{path};x"),
        path.replace("jwt-auth", "jwt%2Dauth"),
        path.replace(IDENTITY, &IDENTITY.to_uppercase()),
        path.replace(IDENTITY, &IDENTITY.replace('-', "")),
        path.replace(IDENTITY, &format!("%7B{IDENTITY}%7D")),
        path.replace(IDENTITY, &format!("%20{IDENTITY}")),
        path.replace("/api/", "//api/"),
        path.replace("/api/", "/x/../api/"),
        path.replace("/api/", "/API/"),
        format!("http://any.host{path}"),
    ] {
        let raw = patch(&format!("{AUTH}{JSON}"), "{}").replacen(&path, &spelled, 1);
        let answer = client::send(gateway.addr(), &raw).await;
        assert_eq!(
            (answer.status, &answer.json()["code"]),
            (400, &json!("route.not_canonical")),
            "{spelled}"
        );
    }
    assert!(asked(&upstream).is_empty());
    // Entries of unproven refusals are written after the answer.
    eventually(|| gateway.history(&["--decision", "refuse"])["changes"].as_array().map(Vec::len) == Some(10))
        .await;
    sleep(Duration::from_millis(300)).await;
    let folded = gateway.history(&["--decision", "refuse"]);
    assert_eq!(folded["changes"].as_array().map(Vec::len), Some(10), "the rest is folded");
}

#[tokio::test]
async fn every_error_of_the_schema_is_named_with_its_pointer() {
    let (_upstream, gateway) = attached("").await;
    let body = json!({
        "configurationType": "jwks", "jwksUrl": 7, "accessTokenTTL": 36.5, "boundClaims": {"a": 1},
        "accessTokenTrustedIps": [{"ipAddress": "10.0.0.0", "prefix": 0, "type": "ipv4"}, {"ipAddress": 1}],
        "boundIssuer": null, "identityId": STRANGER, "publicKeys": "hunter2",
    });
    let answer = gateway.patch(&jwt_auth_path(IDENTITY), &body).await;
    assert_refused(&answer, 422, "schema.invalid", &gateway);
    let problem = answer.json();
    assert_eq!(problem["error"], "ValidationFailure");
    let at = |pointer: &str| {
        problem["violations"].as_array().unwrap().iter().any(|v| v["request_pointer"] == pointer)
    };
    for pointer in [
        "/jwksUrl",
        "/accessTokenTTL",
        "/boundClaims/a",
        "/boundIssuer",
        "/publicKeys",
        "/accessTokenTrustedIps/1/ipAddress",
        "/accessTokenTrustedIps/0/prefix",
    ] {
        assert!(at(pointer), "{pointer} in {}", answer.text());
    }
    let paths: Vec<_> =
        problem["message"].as_array().unwrap().iter().map(|issue| issue["path"].clone()).collect();
    assert!(paths.contains(&json!(["accessTokenTrustedIps", 1, "ipAddress"])), "{paths:?}");
    assert!(!answer.text().contains("hunter2"));
}

#[tokio::test]
async fn what_the_upstream_says_to_the_read_before_is_quoted() {
    let (upstream, gateway) = attached("").await;
    upstream.estate().allow("reader-only", true, false);
    let path = jwt_auth_path(IDENTITY);
    let refused = gateway.patch(&path, &good_patch(&json!({}))).await;
    assert_refused(&refused, 403, "before.refused", &gateway);
    assert_eq!(refused.json()["error"], "ForbiddenError");
    assert_eq!(gateway.show(&change_of(&refused))["caller"]["proven"], false);
    upstream.script(
        read(),
        Act::Answer {
            status: 429,
            headers: vec![
                ("retry-after".into(), "17".into()),
                ("content-type".into(), "application/json".into()),
            ],
            body: br#"{"reqId":"r","statusCode":429,"message":"slow down","error":"RateLimitExceeded"}"#
                .to_vec(),
        },
    );
    let limited = gateway.patch(&path, &good_patch(&json!({}))).await;
    assert_refused(&limited, 429, "before.refused", &gateway);
    assert_eq!(limited.get("retry-after"), Some("17"));
    assert!(limited.json()["message"].as_str().unwrap().contains("slow down"));
    let unknown = gateway.patch(&jwt_auth_path(STRANGER), &good_patch(&json!({}))).await;
    assert!(matches!(unknown.status, 403 | 404));
}

#[tokio::test]
async fn a_state_that_cannot_be_read_is_no_state() {
    let (upstream, gateway) = attached("[limits]\nbefore = \"1s\"\n").await;
    let other = json!({"identityJwtAuth": {"identityId": STRANGER}});
    let looks_absent = json!({"error": "BadRequest", "message": "The identity does not have JWT Auth attached!", "statusCode": 400});
    for (act, status) in [
        (Act::StallForever, 504),
        (Act::CloseWithoutAnswer, 502),
        (Act::answer(200, &other), 502),
        (Act::answer(200, &json!([])), 502),
        (Act::answer(500, &json!({})), 502),
        (Act::answer(400, &looks_absent), 502),
        (Act::ApplyThenCutMidBody, 502),
    ] {
        upstream.always(read(), act);
        let answer = gateway.patch(&jwt_auth_path(IDENTITY), &good_patch(&json!({}))).await;
        assert_refused(&answer, status, "before.unavailable", &gateway);
        upstream.behave();
    }
    assert!(upstream.writes().is_empty());
    // A connection that is closed under one read was idle too long; the read is asked again.
    upstream.script(read(), Act::CloseWithoutAnswer);
    let answer = gateway.patch(&jwt_auth_path(IDENTITY), &good_patch(&json!({}))).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[tokio::test]
async fn a_second_change_of_one_identity_waits_and_then_is_busy() {
    let (upstream, gateway) = attached("[limits]\ntarget_wait = \"300ms\"\n").await;
    upstream.script("PATCH", Act::Stall(std::time::Duration::from_secs(2)));
    let (addr, token) = (gateway.addr(), format!("Bearer {}", gateway.token));
    let first = tokio::spawn(async move {
        let body = good_patch(&json!({"accessTokenTTL": 1800}));
        client::request(addr, "PATCH", &jwt_auth_path(IDENTITY), &[("authorization", &token)], Some(&body))
            .await
    });
    upstream.wait_for_writes(1).await;
    let second = gateway.patch(&jwt_auth_path(IDENTITY), &good_patch(&json!({"accessTokenTTL": 1700}))).await;
    assert_refused(&second, 503, "target.busy", &gateway);
    assert!(second.get("retry-after").is_some());
    assert_eq!(first.await.unwrap().status, 200);
}

#[tokio::test]
async fn watched_writes_are_recorded_or_refused() {
    let (upstream, gateway) = attached("").await;
    let path = format!("/api/v1/auth/universal-auth/identities/{IDENTITY}");
    let answer = gateway.post(&path, &json!({"accessTokenTTL": 0})).await;
    assert_eq!(answer.get("patchwarden-answered-by"), Some("upstream"));
    let change = gateway.show(&change_of(&answer));
    assert_eq!(
        (&change["decision"], &change["before"], &change["diff"]),
        (&json!("allow"), &Value::Null, &Value::Null)
    );
    assert_eq!(change["outcome"], "applied");
    assert_eq!(upstream.writes().len(), 1);
    let twisted = gateway.post(&path.replace("universal", "universa%6c"), &json!({})).await;
    assert_refused(&twisted, 400, "route.not_canonical", &gateway);

    let (upstream, gateway) = attached("ungoverned_writes = \"refuse\"\n").await;
    let closed = gateway.post(&path, &json!({})).await;
    assert_refused(&closed, 403, "route.not_governed", &gateway);
    assert!(asked(&upstream).is_empty());
}

#[tokio::test]
async fn a_browser_gets_the_refusal_it_asked_for() {
    let (_upstream, gateway) = attached("").await;
    let origin = [("origin", "https://app.example")];
    let body = good_patch(&json!({"accessTokenTTL": 0}));
    let answer = gateway.request_with("PATCH", &jwt_auth_path(IDENTITY), &origin, Some(&body)).await;
    assert_eq!(answer.status, 403);
    assert_eq!(answer.get("access-control-allow-origin"), Some("https://app.example"));
    assert_eq!(answer.get("access-control-allow-credentials"), Some("true"));
    assert!(answer.get("access-control-expose-headers").is_some_and(|h| h.contains("patchwarden-change")));
}
