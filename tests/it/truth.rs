//! What the record says stays true: when the gateway stops in the middle, when somebody else writes beside it, when the
//! store is damaged, when the upstream does something else than was judged.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::ConnectOptions as _;
use sqlx::sqlite::SqliteConnectOptions;

use crate::support::client::{Answer, Connection, raw_request};
use crate::support::gateway::{Gateway, change_of};
use crate::support::upstream::{Act, Seen, Upstream};
use crate::support::{IDENTITY, eventually, good_attach, good_patch, jwt_auth_path};

async fn attached(config: &str) -> (Upstream, Gateway) {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let gateway = Gateway::before(&upstream.url()).config(config).start().await;
    (upstream, gateway)
}

async fn lower_ttl(gateway: &Gateway, seconds: u64) -> Answer {
    gateway.patch(&jwt_auth_path(IDENTITY), &good_patch(&json!({"accessTokenTTL": seconds}))).await
}

/// Sends a change and leaves before its answer.
async fn change_and_leave(gateway: &Gateway, upstream: &Upstream, method: &str, path: &str) {
    let mut client = Connection::open(gateway.addr()).await;
    let token = format!("Bearer {}", gateway.token);
    let body = good_patch(&json!({"accessTokenTTL": 1800}));
    let headers = [("authorization", token.as_str())];
    client.send(raw_request(gateway.addr(), method, path, &headers, Some(&body))).await.unwrap();
    upstream.wait_for_writes(1).await;
}

#[tokio::test]
async fn a_stop_waits_for_the_outcome_of_a_change_whose_client_left() {
    let universal = format!("/api/v1/auth/universal-auth/identities/{IDENTITY}");
    for (method, path) in [("PATCH", jwt_auth_path(IDENTITY)), ("POST", universal)] {
        let (upstream, mut gateway) = attached("").await;
        upstream.script(method, Act::Stall(Duration::from_secs(2)));
        change_and_leave(&gateway, &upstream, method, &path).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(gateway.terminate().await.success());
        gateway.restart().await;
        assert_ne!(gateway.show("last")["outcome"], "unknown", "{method}");
    }
}

#[tokio::test]
async fn a_watched_write_is_no_drift_and_holds_nothing() {
    let (upstream, gateway) = attached("").await;
    assert_eq!(lower_ttl(&gateway, 1800).await.status, 200);
    let secrets = format!("/api/v1/auth/universal-auth/identities/{IDENTITY}/client-secrets");
    gateway.post(&secrets, &json!({"description": "x"})).await;
    upstream.script("POST", Act::CloseWithoutAnswer);
    gateway.post(&secrets, &json!({"description": "y"})).await;
    let unknown = gateway.history(&["--outcome", "unknown"])["changes"].as_array().map(Vec::len);
    assert_eq!(unknown, Some(1), "its end was not seen");
    assert_eq!(gateway.history(&["--unsettled"])["changes"], json!([]), "and nothing waits for it");
    let next = lower_ttl(&gateway, 1700).await;
    assert_eq!(next.status, 200, "{}", next.text());
    assert_eq!(gateway.show(&change_of(&next))["drift"], Value::Null);

    // A change past the gateway is one, also when a watched write came after it.
    let mut other = good_attach();
    other["accessTokenTTL"] = json!(60);
    upstream.attach(IDENTITY, &other);
    gateway.post(&secrets, &json!({"description": "z"})).await;
    let drift = gateway.show(&change_of(&lower_ttl(&gateway, 1600).await))["drift"].clone();
    assert_eq!(drift[0]["path"], "/accessTokenTTL", "{drift}");
    assert_eq!(drift.as_array().map(Vec::len), Some(1), "{drift}");
}

#[tokio::test]
async fn removals_over_removals_settle_all_they_went_over() {
    let (upstream, gateway) =
        attached("[upstream]\nlate_write_limit = \"60s\"\n[limits]\nforward = \"1s\"\nbefore = \"1s\"\n")
            .await;
    let mut lost = Vec::new();
    for method in ["PATCH", "DELETE", "DELETE"] {
        upstream.script(method, Act::StallForever);
        let body = (method == "PATCH").then(|| good_patch(&json!({"accessTokenTTL": 1800})));
        let answer = gateway.request(method, &jwt_auth_path(IDENTITY), body.as_ref()).await;
        assert_eq!(answer.status, 504, "{}", answer.text());
        lost.push(change_of(&answer));
    }
    let removal = gateway.delete(&jwt_auth_path(IDENTITY)).await;
    assert_eq!(removal.status, 200, "{}", removal.text());
    for change in lost {
        assert_eq!(gateway.show(&change)["settlement"]["result"], "superseded");
    }
    assert_eq!(gateway.history(&["--unsettled"])["changes"], json!([]));
}

#[tokio::test]
async fn a_store_that_was_cut_is_a_log_that_is_down() {
    let (upstream, mut gateway) = attached("[audit]\ncommit_wait = \"1s\"\n").await;
    assert_eq!(lower_ttl(&gateway, 1900).await.status, 200);
    // At a stop everything goes from the WAL into the file.
    assert!(gateway.terminate().await.success());
    gateway.restart().await;
    assert_eq!(lower_ttl(&gateway, 1800).await.status, 200);
    upstream.clear();
    let store = std::fs::File::options().write(true).open(gateway.data().join("patchwarden.db")).unwrap();
    store.set_len(8192).unwrap();
    let mut codes = Vec::new();
    for _ in 0..3 {
        codes.push(lower_ttl(&gateway, 1700).await.json()["code"].clone());
    }
    assert!(codes.iter().all(|code| code == "audit.unavailable"), "{codes:?}");
    assert!(upstream.writes().is_empty());
    gateway.wait_for_event("degraded").await;
    assert_eq!(gateway.admin_get("/readyz?require=audit", None).await.status, 503);
    assert_eq!(gateway.get("/api/status").await.status, 200);
}

#[tokio::test]
async fn a_breach_is_recorded_warned_of_and_logged() {
    let (upstream, mut gateway) = attached("").await;
    let another_writer = upstream.another_writer();
    let open_it = move |_: &Seen| {
        let mut open = good_attach();
        open["accessTokenTrustedIps"] = json!([{"ipAddress": "0.0.0.0/0"}]);
        another_writer(IDENTITY, &open);
    };
    upstream.script("PATCH", Act::hook(open_it));
    let answer = lower_ttl(&gateway, 1800).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.all("patchwarden-warning").iter().any(|warning| warning.starts_with("open-network:")));
    assert_eq!(gateway.show(&change_of(&answer))["breach"][0]["rule"], "open-network");
    let event = gateway.wait_for_event("breach").await;
    assert_eq!((&event["level"], &event["rules"]), (&json!("error"), &json!("open-network")), "{event}");
}

#[tokio::test]
async fn keys_of_a_body_that_is_no_document_are_not_recorded() {
    let (_upstream, gateway) = attached("").await;
    for body in [r#"{"hunter2-key":1,"hunter2-key":2}"#, r#"{"hunter2-key":{"__proto__":1}}"#] {
        let token = format!("Bearer {}", gateway.token);
        let raw = format!(
            "PATCH {} HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            jwt_auth_path(IDENTITY),
            body.len()
        );
        let answer = crate::support::client::send(gateway.addr(), raw).await;
        assert_eq!(answer.status, 400);
        let pointer = answer.json()["violations"][0]["pointer"].clone();
        assert!(pointer.as_str().unwrap().starts_with("/hunter2-key"), "the client is told which: {pointer}");
    }
    eventually(|| gateway.history(&[])["changes"].as_array().map(Vec::len) == Some(2)).await;
    assert!(!gateway.history(&[]).to_string().contains("hunter2"));
}

/// The payloads of the log, as they stand in the store.
async fn payloads(gateway: &Gateway) -> String {
    let store = gateway.data().join("patchwarden.db");
    let options = SqliteConnectOptions::new().filename(store).read_only(true);
    let mut connection = options.connect().await.unwrap();
    let bodies: Vec<Vec<u8>> = sqlx::query_scalar("SELECT body FROM payloads ORDER BY row")
        .fetch_all(&mut connection)
        .await
        .unwrap();
    bodies.iter().map(|body| String::from_utf8_lossy(body) + "\n").collect()
}

#[tokio::test]
async fn what_nobody_knows_is_counted_and_digested_and_never_named() {
    let (upstream, gateway) = attached("").await;
    let answer = gateway
        .patch(
            &jwt_auth_path(IDENTITY),
            &good_patch(&json!({"accessTokenTTL": 1800, "hunter2-member": "hunter2-value"})),
        )
        .await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(upstream.writes()[0].json().get("hunter2-member").is_none());
    let all = payloads(&gateway).await;
    assert!(!all.contains("hunter2"), "{all}");
    assert!(all.contains("\"unknown\":{\"count\":1,\"digest\":\"hmac-sha256:"), "{all}");
}
