//! Secrets of every sort are sent, and then looked for everywhere.

use std::fs;

use serde_json::json;

use crate::support::client;
use crate::support::gateway::Gateway;
use crate::support::upstream::{Act, Matcher, Upstream};
use crate::support::{IDENTITY, eventually, good_attach, good_patch, jwt_auth_path};

/// The part of each planted secret that must be found nowhere.
const MARK: &str = "hunter2";
const PRIVATE_KEY: &str = "-----BEGIN PRIVATE KEY-----\nhunter2QAwBQYDK2VwBCIEIJ+DYvh6SEqVTm50DFtMDoQikTmiCqirVv9mWG9qfSnF\n-----END PRIVATE KEY-----\n";

#[tokio::test]
async fn planted_secrets_are_found_nowhere() {
    for mode in ["enforce", "observe"] {
        let upstream = Upstream::start();
        upstream.attach(IDENTITY, &good_attach());
        let mut gateway =
            Gateway::before(&upstream.url()).args(&["--mode", mode, "--log-level", "debug"]).start().await;
        gateway.token = format!("{MARK}-bearer-token");
        let answers = send_everything(&gateway).await;
        let token = gateway.admin_token("reader");
        let mut shown = vec![
            gateway.cli_ok(&["history", "--limit", "100"]),
            gateway.cli_ok(&["history", "--limit", "100", "--format", "csv"]),
            gateway.history(&["--limit", "100"]).to_string(),
            gateway.admin_get("/metrics", Some(&token)).await.text(),
            gateway.admin_get("/v1/changes?limit=100", Some(&token)).await.text(),
            gateway.logs().join("\n"),
        ];
        assert!(shown[2].contains("hmac-sha256:"), "the secrets are there as fingerprints");
        shown.extend(answers);
        for text in &shown {
            assert!(!text.contains(MARK), "{mode}: {text}");
        }
        gateway.terminate().await;
        nothing_in_the_data_folder(&gateway);
    }
}

fn nothing_in_the_data_folder(gateway: &Gateway) {
    for file in fs::read_dir(gateway.data()).unwrap() {
        let path = file.unwrap().path();
        let Ok(bytes) = fs::read(&path) else { continue };
        let found = bytes.windows(MARK.len()).any(|part| part.eq_ignore_ascii_case(MARK.as_bytes()));
        assert!(!found, "{}", path.display());
    }
}

/// The secret, the token it is exchanged for, and an upstream that quotes both in what it answers.
#[tokio::test]
async fn the_gateways_own_credential_is_found_nowhere() {
    const SECRET: &str = "hunter2-client-secret";
    let config = "[upstream]\nlate_write_limit = \"1s\"\n[limits]\nforward = \"1s\"\nbefore = \"1s\"\n\
                  [settle]\nclient_id = \"settler\"\nevery = \"100ms\"\nback_off = \"500ms\"\n";
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let (login, read) =
        (Matcher::method("POST").path("universal-auth/login"), Matcher::method("GET").path(IDENTITY));
    let said = |status: u16, what: &str| {
        Act::answer(
            status,
            &json!({"message": format!("{what}: {SECRET} Bearer hunter2-token"), "error": what, "statusCode": status}),
        )
    };
    upstream
        .always(login.clone(), Act::answer(200, &json!({"accessToken": "hunter2-token", "expiresIn": 3600})));
    for act in [
        said(401, "UnauthorizedError"),
        said(500, "InternalServerError"),
        Act::answer(200, &json!({"accessToken": "hunter2\n"})),
    ] {
        upstream.script(login.clone(), act);
    }
    let mut gateway = Gateway::before(&upstream.url())
        .config(config)
        .args(&["--log-level", "trace"])
        .env("PATCHWARDEN_SETTLE_CLIENT_SECRET", SECRET)
        .start()
        .await;
    gateway.wait_for_event("credential_recovered").await;
    upstream.script("PATCH", Act::StallForever);
    upstream.script(read.clone(), Act::hook(|_| {}));
    upstream.script(read.clone(), Act::CloseWithoutAnswer);
    let body = good_patch(&json!({"accessTokenTTL": 1800}));
    assert_eq!(gateway.patch(&jwt_auth_path(IDENTITY), &body).await.status, 504);
    for act in
        [said(403, "TokenError"), said(403, "PermissionDenied"), said(404, "NotFound"), said(500, "hunter2")]
    {
        upstream.script(read.clone(), act);
    }
    let token = gateway.admin_token("reader");
    let mut shown = Vec::new();
    while gateway.show("last")["settlement"].is_null() {
        shown.push(gateway.admin_get("/readyz", Some(&token)).await.text());
    }
    let sent = |wanted: &str| upstream.seen().iter().any(|seen| seen.get("authorization") == Some(wanted));
    assert!(sent("Bearer hunter2-token"), "it was used");
    assert!(shown.iter().any(|text| text.contains("settle")), "and was a problem for a while");
    let mut printed = gateway.command(&["config"]);
    let printed = printed.env("PATCHWARDEN_SETTLE_CLIENT_SECRET", SECRET).output().unwrap();
    let mut wrong = gateway.command(&["check", "--config", "/dev/null", "--upstream", "http://127.0.0.1:1"]);
    let wrong = wrong.env("PATCHWARDEN_SETTLE_CLIENT_SECRET", SECRET).output().unwrap();
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("settle.client_secret"), "{wrong:?}");
    eventually(|| gateway.events("settled").len() == 1).await;
    shown.extend([
        String::from_utf8_lossy(&[printed.stdout, printed.stderr, wrong.stdout, wrong.stderr].concat())
            .into_owned(),
        gateway.cli_ok(&["show", "last"]),
        gateway.history(&["--kind", "all"]).to_string(),
        gateway.admin_get("/metrics", Some(&token)).await.text(),
        gateway.logs().join("\n"),
    ]);
    for text in &shown {
        assert!(!text.contains(MARK), "{text}");
    }
    gateway.terminate().await;
    nothing_in_the_data_folder(&gateway);
}

/// Sends them through allowed, denied and malformed requests; the gateway's own answers come back.
async fn send_everything(gateway: &Gateway) -> Vec<String> {
    let path = jwt_auth_path(IDENTITY);
    let mut own_answers = Vec::new();
    let cookie = [("cookie", "session=hunter2"), ("x-request-id", "hunter2")];
    for members in [
        json!({"publicKeys": [PRIVATE_KEY]}),
        json!({"publicKeys": ["hunter2-is-an-hmac-secret"]}),
        json!({"jwksCaCert": PRIVATE_KEY}),
        json!({"jwksUrl": "https://user:hunter2@keys.example.com/jwks"}),
        json!({"jwksUrl": "https://keys.example.com/jwks?token=hunter2"}),
        json!({"jwksUrl": "http://keys.example.com/jwks#hunter2"}),
        json!({"hunter2-is-a-name": "hunter2-is-a-value"}),
        json!({"accessTokenTTL": 0, "publicKeys": ["hunter2"]}),
        json!({"accessTokenTTL": "hunter2"}),
        json!({"configurationType": "hunter2"}),
        json!({"publicKeys": {"hunter2": 1}}),
    ] {
        let answer = gateway.request_with("PATCH", &path, &cookie, Some(&good_patch(&members))).await;
        if answer.get("patchwarden-answered-by") == Some("gateway") {
            own_answers.push(answer.text());
        }
    }
    for body in ["hunter2", "{\"a\":\"hunter2\"", "[\"hunter2\"]", "{\"a\":\"hunter2\",\"a\":\"hunter2\"}"] {
        let head = format!("authorization: Bearer {}\r\ncontent-type: application/json\r\n", gateway.token);
        let raw = format!(
            "PATCH {path} HTTP/1.1\r\nhost: gw\r\n{head}content-length: {}\r\n\r\n{body}",
            body.len()
        );
        own_answers.push(client::send(gateway.addr(), raw).await.text());
    }
    let spelled = gateway.patch(&format!("{path}?token=hunter2"), &json!({})).await;
    own_answers.push(spelled.text());
    own_answers.push(gateway.request_with("PATCH", &path, &[("x-api-key", "hunter2")], None).await.text());
    own_answers
}
