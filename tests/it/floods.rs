//! Floods: many who may not, beside one who may. What they cost is bounded, and the one is served.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::client::{Connection, raw_request, request};
use crate::support::gateway::Gateway;
use crate::support::upstream::{Act, Matcher, Upstream};
use crate::support::{IDENTITY, good_attach, good_patch, jwt_auth_path};

/// The value of a counter, all labels summed.
async fn counted(gateway: &Gateway, name: &str) -> u64 {
    let token = gateway.admin_token("reader");
    let text = gateway.admin_get("/metrics", Some(&token)).await.text();
    let values =
        text.lines().filter(|line| line.starts_with(name)).map(|line| line.rsplit(' ').next().unwrap());
    values.map(|value| value.parse::<u64>().unwrap()).sum()
}

/// A flood takes the whole machine, so that another beside it would be measured too.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[tokio::test]
async fn five_hundred_changes_with_garbage_tokens_do_not_delay_a_real_one() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let gateway = Gateway::before(&upstream.url()).config("[limits]\nfailed_reads = 10000\n").start().await;
    upstream.estate().allow(&gateway.token, true, true);
    let read = Duration::from_millis(500);
    upstream.always(Matcher::method("GET").path("/identities/"), Act::Stall(read));
    let body = good_patch(&json!({"accessTokenTTL": 1800}));
    let since = Instant::now();
    assert_eq!(gateway.patch(&jwt_auth_path(IDENTITY), &body).await.status, 200);
    let alone = since.elapsed();

    let addr = gateway.addr();
    let garbage: Vec<_> = (0..500)
        .map(|n| {
            let body = body.clone();
            tokio::spawn(async move {
                let token = format!("Bearer garbage-{n}");
                let headers = [("authorization", token.as_str())];
                request(addr, "PATCH", &jwt_auth_path(IDENTITY), &headers, Some(&body)).await.status
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let since = Instant::now();
    let real = gateway.patch(&jwt_auth_path(IDENTITY), &good_patch(&json!({"accessTokenTTL": 1700}))).await;
    let beside = since.elapsed();
    assert_eq!(real.status, 200, "{}", real.text());
    assert!(beside < alone + read + Duration::from_millis(250), "{alone:?} alone, {beside:?} beside them");
    for status in garbage {
        assert_eq!(status.await.unwrap(), 403);
    }
    assert_eq!(upstream.writes().len(), 2);
}

#[tokio::test]
async fn a_flood_of_refused_requests_is_counted_exactly_and_stays_small() {
    let _alone = ONE_AT_A_TIME.lock().await;
    const EACH: u64 = 2_500;
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let gateway = Gateway::start(&upstream).await;
    assert_eq!(gateway.get("/api/status").await.status, 200);
    let before = gateway.memory();
    let raw = raw_request(gateway.addr(), "PATCH", &jwt_auth_path(IDENTITY), &[], Some(&json!({"a": "b"})));
    let senders: Vec<_> = (0..8)
        .map(|_| {
            let (addr, raw) = (gateway.addr(), raw.clone());
            tokio::spawn(async move {
                let mut connection = Connection::open(addr).await;
                for _ in 0..EACH {
                    connection.send(&raw).await.unwrap();
                    assert_eq!(connection.read_answer().await.unwrap().status, 401);
                }
            })
        })
        .collect();
    let since = Instant::now();
    assert_eq!(gateway.get("/api/status").await.status, 200, "what passes through goes on");
    assert!(since.elapsed() < Duration::from_secs(2));
    for sender in senders {
        sender.await.unwrap();
    }
    let body = good_patch(&json!({"accessTokenTTL": 1800}));
    assert_eq!(gateway.patch(&jwt_auth_path(IDENTITY), &body).await.status, 200);
    let grown = gateway.memory().saturating_sub(before);
    assert!(grown < 48 * 1024, "{grown} KiB more");
    assert_eq!(
        counted(&gateway, "patchwarden_refusals_total{code=\"caller.missing_token\"}").await,
        8 * EACH
    );
    let own =
        gateway.history(&["--decision", "refuse", "--limit", "100"])["changes"].as_array().unwrap().len();
    let folded = counted(&gateway, "patchwarden_folded_total").await;
    assert_eq!(own as u64 + folded, 8 * EACH, "each is an entry or counted in one");
    assert!(own <= 40, "ten a minute and code: {own}");
}

#[tokio::test]
async fn two_thousand_idle_connections_leave_room_for_everybody() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let upstream = Upstream::start();
    let gateway = Gateway::start(&upstream).await;
    let before = gateway.memory();
    let status = raw_request(gateway.addr(), "GET", "/api/status", &[], None);
    let mut idle = Vec::new();
    for _ in 0..2_000 {
        let mut connection = Connection::open(gateway.addr()).await;
        connection.send(&status).await.unwrap();
        assert_eq!(connection.read_answer().await.unwrap().status, 200);
        idle.push(connection);
    }
    let each = gateway.memory().saturating_sub(before) / idle.len();
    assert!(each < 64, "{each} KiB for each");
    assert_eq!(gateway.get("/api/status").await.status, 200);
}
