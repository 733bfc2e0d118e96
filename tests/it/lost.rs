//! Answers that are lost, and what the record says then: the truth, or `unknown` until evidence is there.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::client::{Answer, Connection, raw_request};
use crate::support::gateway::{Gateway, change_of};
use crate::support::upstream::{Act, Matcher, Upstream};
use crate::support::{IDENTITY, good_attach, good_patch, jwt_auth_path};

/// A gateway that waits one second for answers and believes a write may land for three seconds more.
const IMPATIENT: &str =
    "[upstream]\nlate_write_limit = \"3s\"\n[limits]\nforward = \"1s\"\nbefore = \"1s\"\n";

async fn attached(config: &str) -> (Upstream, Gateway) {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let gateway = Gateway::before(&upstream.url()).config(config).start().await;
    (upstream, gateway)
}

/// The read before each change.
fn read() -> Matcher {
    Matcher::method("GET").path("/identities/")
}

fn path() -> String {
    jwt_auth_path(IDENTITY)
}

async fn wait_for_read(upstream: &Upstream) {
    while !upstream.seen().iter().any(|seen| seen.target == path()) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn lower_ttl(gateway: &Gateway, seconds: u64) -> Answer {
    gateway.patch(&path(), &good_patch(&json!({"accessTokenTTL": seconds}))).await
}

fn code(answer: &Answer) -> (u16, Value) {
    (answer.status, answer.json()["code"].clone())
}

#[tokio::test]
async fn a_write_that_was_applied_and_cut_is_proved_by_one_read() {
    for act in [Act::ApplyThenClose, Act::ApplyThenCutMidBody] {
        let (upstream, gateway) = attached(IMPATIENT).await;
        upstream.script("PATCH", act);
        let answer = lower_ttl(&gateway, 1800).await;
        assert_eq!(code(&answer), (502, json!("upstream.broken")), "{}", answer.text());
        assert!(answer.json()["detail"].as_str().unwrap().contains("unknown"));
        let change = gateway.show(&change_of(&answer));
        assert_eq!(
            (&change["outcome"], &change["settlement"]["result"]),
            (&json!("unknown"), &json!("applied"))
        );
        assert_eq!(change["after"]["accessTokenTTL"], 1800, "{change}");
        assert_eq!(gateway.history(&["--outcome", "applied"])["changes"].as_array().map(Vec::len), Some(1));
        assert_eq!(lower_ttl(&gateway, 1700).await.status, 200);
        assert_eq!(upstream.writes().len(), 2, "no write is sent twice");
    }
}

#[tokio::test]
async fn a_write_that_was_applied_and_answered_too_late_is_proved_by_one_read() {
    let (upstream, gateway) = attached(IMPATIENT).await;
    upstream.script("PATCH", Act::ApplyThenStall(Duration::from_secs(4)));
    let answer = lower_ttl(&gateway, 1800).await;
    assert_eq!(code(&answer), (504, json!("upstream.timeout")), "{}", answer.text());
    let change = gateway.show(&change_of(&answer));
    assert_eq!((&change["outcome"], &change["settlement"]["by"]), (&json!("unknown"), &json!("read_after")));
    assert_eq!(change["settlement"]["result"], "applied");
    assert_eq!(lower_ttl(&gateway, 1700).await.status, 200, "nothing is held");
}

#[tokio::test]
async fn a_write_that_lands_after_its_socket_closed_is_never_called_not_applied() {
    let (upstream, gateway) =
        attached("[upstream]\nlate_write_limit = \"8s\"\n[limits]\nforward = \"1s\"\n").await;
    upstream.script("PATCH", Act::CloseThenApplyAfter(Duration::from_secs(5)));
    let lost = lower_ttl(&gateway, 1800).await;
    assert_eq!(code(&lost), (502, json!("upstream.broken")));
    let change = gateway.show(&change_of(&lost));
    assert_eq!((&change["outcome"], &change["settlement"]), (&json!("unknown"), &Value::Null));
    // A read in between shows the old state; that proves nothing, so nothing else may be changed.
    let between = lower_ttl(&gateway, 1700).await;
    assert_eq!(code(&between), (503, json!("target.unsettled")));
    assert!(between.get("retry-after").is_some());
    assert_eq!(gateway.history(&["--unsettled"])["changes"].as_array().map(Vec::len), Some(1));
    upstream.wait_for_late_writes().await;
    let next = lower_ttl(&gateway, 1700).await;
    assert_eq!(next.status, 200, "{}", next.text());
    let change = gateway.show(&change_of(&lost));
    assert_eq!(change["settlement"]["result"], "applied");
    assert_eq!(gateway.show(&change_of(&next))["before"]["accessTokenTTL"], 1800);
}

#[tokio::test]
async fn a_write_that_never_landed_is_settled_once_it_no_longer_can() {
    let (upstream, gateway) = attached(IMPATIENT).await;
    upstream.script("PATCH", Act::StallForever);
    let lost = lower_ttl(&gateway, 1800).await;
    assert_eq!(code(&lost), (504, json!("upstream.timeout")));
    assert_eq!(code(&lower_ttl(&gateway, 1700).await), (503, json!("target.unsettled")));
    tokio::time::sleep(Duration::from_millis(3200)).await;
    assert_eq!(lower_ttl(&gateway, 1700).await.status, 200);
    assert_eq!(gateway.show(&change_of(&lost))["settlement"]["result"], "not_applied");
}

#[tokio::test]
async fn a_removal_passes_over_an_unsettled_change_and_settles_both() {
    let (upstream, gateway) = attached(IMPATIENT).await;
    upstream.script("PATCH", Act::StallForever);
    let lost = lower_ttl(&gateway, 1800).await;
    let removal = gateway.delete(&path()).await;
    assert_eq!(removal.status, 200, "{}", removal.text());
    assert_eq!(gateway.show(&change_of(&removal))["outcome"], "applied");
    let settlement = gateway.show(&change_of(&lost))["settlement"].clone();
    assert_eq!(settlement["result"], "superseded", "{settlement}");
    assert_eq!(gateway.post(&path(), &good_attach()).await.status, 200, "the target is free again");
}

#[tokio::test]
async fn a_hold_survives_a_killed_gateway() {
    let (upstream, mut gateway) = attached(IMPATIENT).await;
    upstream.script("PATCH", Act::ApplyThenStall(Duration::from_secs(20)));
    let mut client = Connection::open(gateway.addr()).await;
    let token = format!("Bearer {}", gateway.token);
    let body = good_patch(&json!({"accessTokenTTL": 1800}));
    client
        .send(raw_request(gateway.addr(), "PATCH", &path(), &[("authorization", &token)], Some(&body)))
        .await
        .unwrap();
    upstream.wait_for_writes(1).await;
    gateway.kill();
    gateway.restart().await;
    let change = gateway.show("last");
    assert_eq!((&change["decision"], &change["outcome"]), (&json!("allow"), &json!("unknown")));
    let next = lower_ttl(&gateway, 1700).await;
    assert_eq!(next.status, 200, "the read before it proves what became of the other: {}", next.text());
    let settled = gateway.show(change["id"].as_str().unwrap());
    assert_eq!(settled["settlement"]["result"], "applied");
}

#[tokio::test]
async fn a_client_that_hangs_up_stops_nothing_from_the_intent_on() {
    let (upstream, gateway) = attached("").await;
    upstream.script("PATCH", Act::Stall(Duration::from_millis(500)));
    let mut client = Connection::open(gateway.addr()).await;
    let token = format!("Bearer {}", gateway.token);
    let body = good_patch(&json!({"accessTokenTTL": 1800}));
    client
        .send(raw_request(gateway.addr(), "PATCH", &path(), &[("authorization", &token)], Some(&body)))
        .await
        .unwrap();
    upstream.wait_for_writes(1).await;
    drop(client);
    for _ in 0..100 {
        if gateway.show("last")["outcome"] == "applied" {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the outcome was never recorded: {}", gateway.show("last"));
}

#[tokio::test]
async fn a_client_that_hangs_up_before_the_intent_leaves_nothing_forwarded() {
    let (upstream, gateway) = attached("").await;
    upstream.script(read(), Act::Stall(Duration::from_secs(1)));
    let mut client = Connection::open(gateway.addr()).await;
    let token = format!("Bearer {}", gateway.token);
    let body = good_patch(&json!({"accessTokenTTL": 1800}));
    client
        .send(raw_request(gateway.addr(), "PATCH", &path(), &[("authorization", &token)], Some(&body)))
        .await
        .unwrap();
    wait_for_read(&upstream).await;
    drop(client);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(upstream.writes().is_empty());
    assert_eq!(lower_ttl(&gateway, 1700).await.status, 200, "the identity is free");
}

#[tokio::test]
async fn an_answer_that_proves_nothing_is_passed_on_and_called_unknown() {
    let own_500 =
        json!({"reqId": "req-1", "statusCode": 500, "message": "boom", "error": "InternalServerError"});
    for (act, status) in [
        (Act::apply_then_answer(500, &own_500), 500),
        (Act::apply_then_answer(200, &json!({"nonsense": true})), 200),
        (Act::ApplyThenAddHeaders(vec![("content-encoding".into(), "gzip".into())]), 200),
    ] {
        let (upstream, gateway) = attached(IMPATIENT).await;
        upstream.script("PATCH", act);
        let answer = lower_ttl(&gateway, 1800).await;
        assert_eq!(answer.status, status, "{}", answer.text());
        assert_eq!(answer.get("patchwarden-answered-by"), Some("upstream"));
        let change = gateway.show(&change_of(&answer));
        assert_eq!(
            (&change["outcome"], &change["settlement"]["result"]),
            (&json!("unknown"), &json!("applied"))
        );
    }
}

#[tokio::test]
async fn a_refusal_of_the_upstream_is_rejected_and_passed_on_unchanged() {
    let (upstream, gateway) = attached("").await;
    // Lowering the ceiling without the lifetime: the upstream's own rule says no.
    let body = good_patch(&json!({"accessTokenMaxTTL": 3600}));
    let answer = gateway.patch(&path(), &body).await;
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert_eq!(answer.get("patchwarden-answered-by"), Some("upstream"));
    assert_eq!(answer.json()["error"], "BadRequest");
    let change = gateway.show(&change_of(&answer));
    assert_eq!((&change["decision"], &change["outcome"]), (&json!("allow"), &json!("rejected")));
    assert_eq!(change["after"], Value::Null);
    assert_eq!(upstream.writes().len(), 1);
}

/// Answers the look around at start and one read of the state, then is gone before the write can connect.
fn vanishing_upstream(state: Value) -> std::net::SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let body = json!({"identityJwtAuth": state}).to_string();
        let answer = |mut stream: std::net::TcpStream| {
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n";
            write!(stream, "{head}content-length: {}\r\n\r\n{body}", body.len()).unwrap();
        };
        loop {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = [0; 4096];
            let read = stream.read(&mut head).unwrap();
            if head[..read].starts_with(b"GET /api/v1/auth/jwt-auth/identities/") {
                drop(listener);
                return answer(stream);
            }
            answer(stream);
        }
    });
    addr
}

#[tokio::test]
async fn a_change_that_could_not_be_sent_is_safe_to_try_again() {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let vanishing = vanishing_upstream(upstream.state(IDENTITY).unwrap());
    let gateway = Gateway::before(&format!("http://{vanishing}")).config(IMPATIENT).start().await;
    let answer = lower_ttl(&gateway, 1800).await;
    assert_eq!(code(&answer), (502, json!("upstream.unreachable")), "{}", answer.text());
    assert!(answer.json()["detail"].as_str().unwrap().contains("safe to try again"));
    let change = gateway.show(&change_of(&answer));
    assert_eq!((&change["decision"], &change["outcome"]), (&json!("allow"), &json!("not_sent")));
    assert_eq!(
        code(&lower_ttl(&gateway, 1800).await),
        (502, json!("before.unavailable")),
        "the target is free"
    );
}

#[tokio::test]
async fn an_upstream_that_comes_back_is_used_again() {
    let (mut upstream, gateway) = attached(IMPATIENT).await;
    assert_eq!(lower_ttl(&gateway, 1800).await.status, 200);
    upstream.stop().await;
    assert_eq!(code(&lower_ttl(&gateway, 1700).await), (502, json!("before.unavailable")));
    upstream.restart_on_same_port().await;
    assert_eq!(lower_ttl(&gateway, 1700).await.status, 200);
}

#[tokio::test]
async fn a_redirect_or_an_oversize_answer_is_broken() {
    for act in [
        Act::Answer {
            status: 307,
            headers: vec![("location".into(), "/elsewhere".into())],
            body: Vec::new(),
        },
        Act::ApplyThenAnswerOversize(2 << 20),
    ] {
        let (upstream, gateway) = attached(IMPATIENT).await;
        upstream.script("PATCH", act);
        let answer = lower_ttl(&gateway, 1800).await;
        assert_eq!(code(&answer), (502, json!("upstream.broken")), "{}", answer.text());
        assert_eq!(gateway.show(&change_of(&answer))["outcome"], "unknown");
    }
}

#[tokio::test]
async fn a_state_older_than_the_log_knows_is_not_judged_by() {
    let (upstream, gateway) = attached("").await;
    upstream.capture();
    assert_eq!(lower_ttl(&gateway, 1800).await.status, 200);
    upstream.always(read(), Act::ServeOldState);
    let stale = lower_ttl(&gateway, 1700).await;
    assert_eq!(code(&stale), (503, json!("before.stale")));
    assert_eq!(upstream.writes().len(), 1);
    upstream.behave();
    assert_eq!(lower_ttl(&gateway, 1700).await.status, 200);
}

#[tokio::test]
async fn what_somebody_changed_past_the_gateway_shows_as_drift_or_surprise() {
    let (upstream, gateway) = attached("").await;
    assert_eq!(lower_ttl(&gateway, 1800).await.status, 200);
    let mut foreign = good_attach();
    foreign["boundSubject"] = json!("somebody-else");
    upstream.attach(IDENTITY, &foreign);
    let next = lower_ttl(&gateway, 1700).await;
    assert_eq!(next.status, 200, "{}", next.text());
    let drift = gateway.show(&change_of(&next))["drift"].clone();
    assert!(drift.to_string().contains("somebody-else"), "{drift}");
}
