//! The support does what it says: each misbehaviour of the scripted upstream, seen without a gateway.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::client::{Connection, raw_request, request, send, try_send};
use crate::support::upstream::{Act, Matcher, Upstream, websocket_accept};
use crate::support::{IDENTITY, good_attach, good_patch, jwt_auth_path, machine_token};

fn patch(upstream: &Upstream, ttl: u32) -> Vec<u8> {
    let authorization = format!("Bearer {}", machine_token());
    let body = good_patch(&json!({"accessTokenTTL": ttl}));
    let path = jwt_auth_path(IDENTITY);
    raw_request(upstream.addr(), "PATCH", &path, &[("Authorization", &authorization)], Some(&body))
}

fn ttl(upstream: &Upstream) -> u64 {
    upstream.state(IDENTITY).unwrap()["accessTokenTTL"].as_u64().unwrap()
}

fn with_row() -> Upstream {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    upstream
}

#[tokio::test]
async fn an_answer_is_the_stand_ins_and_the_request_is_recorded() {
    let upstream = with_row();
    let answer = send(upstream.addr(), patch(&upstream, 60)).await;
    assert_eq!((answer.status, &answer.json()["identityJwtAuth"]["accessTokenTTL"]), (200, &json!(60)));
    let seen = upstream.wait_for_seen(1).await;
    assert_eq!((seen.len(), seen[0].method.as_str(), upstream.writes().len()), (1, "PATCH", 1));
    assert_eq!(seen[0].json()["accessTokenTTL"], 60);
    assert!(seen[0].raw_head.ends_with(b"\r\n\r\n"));
    upstream.clear();
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn what_is_applied_and_what_is_answered_are_apart() {
    let upstream = with_row();
    let late = Duration::from_millis(100);
    let cases = [
        (Act::CloseWithoutAnswer, 3600, None),
        (Act::ApplyThenClose, 61, None),
        (Act::ApplyThenCutMidBody, 62, None),
        (Act::answer(500, &json!({"statusCode": 500})), 62, Some(500)),
        (Act::apply_then_answer(500, &json!({"statusCode": 500})), 64, Some(500)),
        (Act::ApplyThenAnswerOversize(2 << 20), 65, Some(200)),
        (Act::AnswerRaw(b"nonsense\r\n\r\n".to_vec()), 65, None),
        (Act::ApplyThenStall(late), 67, Some(200)),
        (Act::Stall(late), 68, Some(200)),
        (Act::CloseThenApplyAfter(late), 68, None),
    ];
    for (asked, (act, stored, status)) in (60..).zip(cases) {
        upstream.script("PATCH", act);
        let answer = try_send(upstream.addr(), patch(&upstream, asked)).await;
        assert_eq!(answer.map(|answer| answer.status).ok(), status, "case {asked}");
        assert_eq!(ttl(&upstream), stored, "case {asked}");
    }
    upstream.wait_for_late_writes().await;
    assert_eq!(ttl(&upstream), 69);
}

#[tokio::test]
async fn scripts_are_used_once_and_in_order_and_only_where_they_match() {
    let upstream = with_row();
    upstream.always(Matcher::method("GET").path("echo"), Act::answer(418, &json!({})));
    upstream.script("PATCH", Act::answer(501, &json!({})));
    upstream.script("PATCH", Act::answer(502, &json!({})));
    let mut statuses = Vec::new();
    for raw in [patch(&upstream, 60), patch(&upstream, 60), patch(&upstream, 60)] {
        statuses.push(send(upstream.addr(), raw).await.status);
    }
    for path in ["/api/v1/echo", "/api/v1/echo", "/api/status"] {
        statuses.push(request(upstream.addr(), "GET", path, &[], None).await.status);
    }
    assert_eq!(statuses, [501, 502, 200, 418, 418, 200]);
    upstream.behave();
    assert_eq!(request(upstream.addr(), "GET", "/api/v1/echo", &[], None).await.status, 200);
}

#[tokio::test]
async fn a_hook_runs_before_the_write_is_applied() {
    let upstream = Arc::new(with_row());
    let (inside, ran) = (upstream.clone(), Arc::new(AtomicBool::new(false)));
    let flag = ran.clone();
    let hook = move |_: &_| flag.store(ttl(&inside) == 3600, Ordering::SeqCst);
    upstream.script("PATCH", Act::HookThen(Arc::new(hook), Box::new(Act::ApplyThenClose)));
    assert!(try_send(upstream.addr(), patch(&upstream, 60)).await.is_err());
    assert!(ran.load(Ordering::SeqCst));
    assert_eq!(ttl(&upstream), 60);
    upstream.behave();
}

#[tokio::test]
async fn a_stale_replica_serves_what_was_captured() {
    let upstream = with_row();
    upstream.capture();
    send(upstream.addr(), patch(&upstream, 60)).await;
    upstream.script("GET", Act::ServeOldState);
    for expected in [3600, 60] {
        let path = jwt_auth_path(IDENTITY);
        let answer = request(upstream.addr(), "GET", &path, &[("Authorization", "Bearer x")], None).await;
        assert_eq!(answer.json()["identityJwtAuth"]["accessTokenTTL"], expected);
    }
}

#[tokio::test]
async fn a_stopped_upstream_refuses_until_it_is_back_on_its_port() {
    let mut upstream = with_row();
    let mut kept = Connection::open(upstream.addr()).await;
    kept.send(patch(&upstream, 60)).await.unwrap();
    kept.read_answer().await.unwrap();
    upstream.stop().await;
    assert!(kept.read_to_close().await.is_empty());
    assert!(tokio::net::TcpStream::connect(upstream.addr()).await.is_err());
    upstream.restart_on_same_port().await;
    assert_eq!(send(upstream.addr(), patch(&upstream, 61)).await.status, 200);
    assert_eq!(upstream.connections(), 2);
}

#[tokio::test]
async fn a_websocket_echoes_after_a_true_or_a_false_accept() {
    let upstream = Upstream::start();
    let key = "dGhlIHNhbXBsZSBub25jZQ==";
    assert_eq!(websocket_accept(key), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    let headers = [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Key", key)];
    for honest in [true, false] {
        if !honest {
            upstream.script("GET", Act::WrongWebsocketAccept);
        }
        let mut connection = Connection::open(upstream.addr()).await;
        let raw = raw_request(upstream.addr(), "GET", "/ws", &headers, None);
        connection.send([raw, b"early".to_vec()].concat()).await.unwrap();
        let answer = connection.read_answer().await.unwrap();
        assert_eq!(answer.status, 101);
        assert_eq!(answer.get("Sec-WebSocket-Accept") == Some(&websocket_accept(key)), honest);
        assert_eq!(connection.read_raw(5).await.unwrap(), b"early");
        connection.send([0x81, 0x00, 0xff]).await.unwrap();
        assert_eq!(connection.read_raw(3).await.unwrap(), [0x81, 0x00, 0xff]);
    }
}

#[tokio::test]
async fn streams_come_piece_by_piece_and_large_bodies_are_counted() {
    let upstream = Upstream::start();
    let mut connection = Connection::open(upstream.addr()).await;
    connection.send("GET /sse?events=3 HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert_eq!(connection.read_head().await.unwrap().get("content-type"), Some("text/event-stream"));
    let since = Instant::now();
    connection.read_until(b"data: 2\n\n").await.unwrap();
    assert!(since.elapsed() >= Duration::from_millis(90), "{:?}", since.elapsed());
    connection.read_until(b"0\r\n\r\n").await.unwrap();
    connection.send("GET /big?bytes=3000000 HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert_eq!(connection.read_answer().await.unwrap().body.len(), 3_000_000);

    let chunk = [b"100000\r\n".to_vec(), vec![b'x'; 1 << 20], b"\r\n".to_vec()].concat();
    let head = b"POST /count HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    let answer = send(upstream.addr(), [head, chunk.repeat(6), b"0\r\nt: 1\r\n\r\n".to_vec()].concat()).await;
    assert_eq!(answer.json(), json!({"bytes": 6 << 20}));
}

#[tokio::test]
async fn bad_framing_is_a_400_and_the_end() {
    let upstream = Upstream::start();
    for headers in [
        "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 1\r\nContent-Length: 1\r\n",
        "Host : x\r\n",
    ] {
        let mut connection = Connection::open(upstream.addr()).await;
        connection.send(format!("POST /count HTTP/1.1\r\n{headers}\r\n")).await.unwrap();
        assert_eq!(connection.read_answer().await.unwrap().status, 400, "{headers}");
        assert!(connection.read_to_close().await.is_empty());
    }
    assert!(upstream.seen().is_empty());
    assert_eq!(upstream.heads(), 3);
}

#[tokio::test]
async fn the_certificate_of_a_tls_upstream_is_trusted_through_its_authority() {
    use rustls_pki_types::pem::PemObject as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let (upstream, ca_pem) = Upstream::start_tls();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls_pki_types::CertificateDer::from_pem_slice(ca_pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let socket = tokio::net::TcpStream::connect(upstream.addr()).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut tls = connector.connect("127.0.0.1".try_into().unwrap(), socket).await.unwrap();
    tls.write_all(b"GET /api/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    tls.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(upstream.url().starts_with("https://127.0.0.1:"));
}

#[tokio::test]
async fn the_stand_in_serves_over_a_socket_of_its_own() {
    let estate = Arc::new(std::sync::Mutex::new(patchwarden::standin::Estate::new()));
    estate.lock().unwrap().attach(IDENTITY, &good_attach());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let tasks = tokio_util::task::TaskTracker::new();
    let serving = tasks.spawn(patchwarden::standin::serve(listener, estate.clone()));
    let (path, headers) = (jwt_auth_path(IDENTITY), [("Authorization", "Bearer x")]);
    let body = good_patch(&json!({"accessTokenTTL": 60}));
    let answer = request(addr, "PATCH", &path, &headers, Some(&body)).await;
    assert_eq!((answer.status, &answer.json()["identityJwtAuth"]["accessTokenTTL"]), (200, &json!(60)));
    assert_eq!(estate.lock().unwrap().state(IDENTITY).unwrap()["accessTokenTTL"], 60);
    let answer = request(addr, "HEAD", &path, &headers, None).await;
    assert_eq!((answer.status, answer.body.len()), (200, 0));
    let etag = answer.get("etag").unwrap().to_owned();
    let headers = [headers[0], ("If-None-Match", etag.as_str())];
    assert_eq!(request(addr, "GET", &path, &headers, None).await.status, 304);
    serving.abort();
}
