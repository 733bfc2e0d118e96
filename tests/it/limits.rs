//! Every limit of `[limits]` holds: set low, it is met, and what it leaves alone goes on.
//!
//! The list below is held against the printed configuration, so that no limit stands there without a test here.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::client::{Answer, Connection, raw_request, send};
use crate::support::gateway::{Gateway, program};
use crate::support::upstream::{Act, Matcher, Upstream};
use crate::support::{IDENTITY, good_attach, good_patch, jwt, jwt_auth_path};

const OTHER: &str = "1c9c3a52-7d3f-4f7e-9a43-0c8f3f1d2e4b";

macro_rules! limits {
    ($($name:literal = $value:literal: $check:ident,)*) => {
        const LIMITS: &[&str] = &[$($name),*];

        /// One test a limit, named by what meets it.
        mod is_met_by {
            $(
                #[tokio::test]
                async fn $check() {
                    let (upstream, mut gateway) = super::limited($name, $value).await;
                    super::$check(&upstream, &mut gateway).await;
                }
            )*
        }
    };
}

limits! {
    "headers" = "20": many_headers,
    "header_bytes" = "\"8KiB\"": long_headers,
    "streams" = "1": one_stream,
    "body" = "\"1KiB\"": large_body,
    "json_depth" = "4": deep_body,
    "json_items" = "20": wide_body,
    "body_read" = "\"300ms\"": slow_body,
    "before" = "\"300ms\"": slow_read,
    "forward" = "\"300ms\"": slow_change,
    "answer" = "\"2KiB\"": large_answer,
    "target_wait" = "\"300ms\"": waits_for_the_target,
    "target_waiters" = "1": queues_for_the_target,
    "caller_waiters" = "1": queues_of_one_caller,
    "bodies" = "1": bodies_at_once,
    "in_flight" = "1": changes_at_once,
    "requests" = "1": requests_at_once,
    "failed_reads" = "2": failed_reads,
    "drain" = "\"1KiB\"": unread_body,
    "passthrough_head" = "\"300ms\"": slow_head,
    "tunnels" = "1": tunnels_at_once,
    "connections" = "1": connections_at_once,
    "handshake" = "\"300ms\"": silent_connection,
    "header_read" = "\"300ms\"": slow_headers,
    "idle" = "\"300ms\"": idle_http2,
    "connect" = "\"300ms\"": unreachable_upstream,
    "shutdown" = "\"300ms\"": slow_shutdown,
}

#[test]
fn every_limit_has_a_test() {
    let described =
        String::from_utf8(program().args(["config", "--default"]).output().unwrap().stdout).unwrap();
    let section = described.split("[limits]").nth(1).unwrap().split('[').next().unwrap();
    let known = section.lines().filter_map(|line| line.trim_start_matches("# ").split_once(" = "));
    let known: Vec<_> = known.map(|(name, _)| name.trim()).collect();
    assert_eq!(known, LIMITS, "in the order of the configuration");
    let documented = include_str!("../../docs/limits.md");
    for line in section.lines().filter_map(|line| line.trim_start_matches("# ").split_once(" = ")) {
        let default = line.1.split('#').next().unwrap().trim().trim_matches('"');
        let row = format!("| `{}` | {default} |", line.0.trim());
        assert!(documented.contains(&row), "docs/limits.md has no {row}");
    }
}

/// A gateway with one limit set low, before two identities with JWT Auth.
async fn limited(name: &str, value: &str) -> (Upstream, Gateway) {
    let upstream = Upstream::start();
    upstream.estate().add_identity(OTHER);
    upstream.attach(IDENTITY, &good_attach());
    upstream.attach(OTHER, &good_attach());
    let config = format!("[limits]\n{name} = {value}\n");
    let gateway = Gateway::before(&upstream.url()).config(&config).start().await;
    // The look around at start is none of the requests that are counted.
    upstream.wait_for_seen(1).await;
    (upstream, gateway)
}

fn lowered(gateway: &Gateway, identity: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let authorization = format!("Bearer {}", gateway.token);
    let headers = [&[("authorization", authorization.as_str())], headers].concat();
    let body = good_patch(&json!({"accessTokenTTL": 1800}));
    raw_request(gateway.addr(), "PATCH", &jwt_auth_path(identity), &headers, Some(&body))
}

async fn lower(gateway: &Gateway, identity: &str) -> Answer {
    send(gateway.addr(), lowered(gateway, identity, &[])).await
}

#[track_caller]
fn assert_code(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status, &answer.json()["code"]), (status, &json!(code)), "{}", answer.text());
}

/// A change that is on its way to an upstream that takes its time.
async fn stalled(upstream: &Upstream, gateway: &Gateway, identity: &str) -> Connection {
    upstream.script("PATCH", Act::Stall(Duration::from_secs(2)));
    let mut first = Connection::open(gateway.addr()).await;
    first.send(lowered(gateway, identity, &[])).await.unwrap();
    upstream.wait_for_writes(1).await;
    first
}

/// Whether the other side ends the connection soon.
async fn ends(mut connection: Connection) -> Duration {
    let since = Instant::now();
    connection.read_to_close().await;
    since.elapsed()
}

async fn many_headers(upstream: &Upstream, gateway: &mut Gateway) {
    let names: Vec<String> = (0..20).map(|at| format!("x-{at}")).collect();
    let headers: Vec<_> = names.iter().map(|name| (name.as_str(), "y")).collect();
    assert_eq!(send(gateway.addr(), lowered(gateway, IDENTITY, &headers)).await.status, 431);
    assert!(upstream.writes().is_empty());
    assert_eq!(send(gateway.addr(), lowered(gateway, IDENTITY, &headers[..10])).await.status, 200);
}

async fn long_headers(upstream: &Upstream, gateway: &mut Gateway) {
    let long = "x".repeat(64 << 10);
    assert_eq!(send(gateway.addr(), lowered(gateway, IDENTITY, &[("x-long", &long)])).await.status, 431);
    assert!(upstream.writes().is_empty());
    assert_eq!(lower(gateway, IDENTITY).await.status, 200);
}

async fn large_body(upstream: &Upstream, gateway: &mut Gateway) {
    let body = good_patch(&json!({"boundSubject": "x".repeat(1024)}));
    assert_code(&gateway.patch(&jwt_auth_path(IDENTITY), &body).await, 413, "body.too_large");
    assert!(upstream.writes().is_empty());
    assert_eq!(lower(gateway, IDENTITY).await.status, 200);
}

async fn deep_body(upstream: &Upstream, gateway: &mut Gateway) {
    let body = good_patch(&json!({"deep": [[[[[]]]]]}));
    let answer = gateway.patch(&jwt_auth_path(IDENTITY), &body).await;
    assert_code(&answer, 400, "body.malformed");
    assert!(answer.text().contains("limits.json_depth"), "{}", answer.text());
    assert!(upstream.writes().is_empty());
    assert_eq!(lower(gateway, IDENTITY).await.status, 200);
}

async fn wide_body(upstream: &Upstream, gateway: &mut Gateway) {
    let ranges: Vec<Value> = (0..21).map(|at| json!({"ipAddress": format!("10.{at}.0.0/16")})).collect();
    let body = good_patch(&json!({"accessTokenTrustedIps": ranges}));
    let answer = gateway.patch(&jwt_auth_path(IDENTITY), &body).await;
    assert_code(&answer, 400, "body.malformed");
    assert!(answer.text().contains("limits.json_items"), "{}", answer.text());
    assert!(upstream.writes().is_empty());
    assert_eq!(lower(gateway, IDENTITY).await.status, 200);
}

async fn slow_body(upstream: &Upstream, gateway: &mut Gateway) {
    let raw = lowered(gateway, IDENTITY, &[]);
    let mut slow = Connection::open(gateway.addr()).await;
    slow.send(&raw[..raw.len() - 1]).await.unwrap();
    let answer = slow.read_answer().await.unwrap();
    assert_code(&answer, 400, "body.malformed");
    assert!(answer.text().contains("limits.body_read"), "{}", answer.text());
    assert!(upstream.writes().is_empty());
    assert_eq!(lower(gateway, IDENTITY).await.status, 200);
}

async fn slow_read(upstream: &Upstream, gateway: &mut Gateway) {
    upstream.script(Matcher::method("GET").path("/identities/"), Act::Stall(Duration::from_secs(3)));
    let answer = lower(gateway, IDENTITY).await;
    assert_eq!(answer.json()["code"], "before.unavailable", "{}", answer.text());
    assert!(upstream.writes().is_empty());
    assert_eq!(lower(gateway, IDENTITY).await.status, 200);
}

async fn slow_change(upstream: &Upstream, gateway: &mut Gateway) {
    upstream.script("PATCH", Act::Stall(Duration::from_secs(3)));
    assert_code(&lower(gateway, IDENTITY).await, 504, "upstream.timeout");
    assert_eq!(lower(gateway, OTHER).await.status, 200);
}

async fn large_answer(upstream: &Upstream, gateway: &mut Gateway) {
    upstream.script("PATCH", Act::ApplyThenAnswerOversize(3000));
    assert_code(&lower(gateway, IDENTITY).await, 502, "upstream.broken");
    assert_eq!(lower(gateway, OTHER).await.status, 200);
}

async fn waits_for_the_target(upstream: &Upstream, gateway: &mut Gateway) {
    let mut first = stalled(upstream, gateway, IDENTITY).await;
    assert_code(&lower(gateway, IDENTITY).await, 503, "target.busy");
    assert_eq!(lower(gateway, OTHER).await.status, 200);
    assert_eq!(first.read_answer().await.unwrap().status, 200);
}

async fn queues_for_the_target(upstream: &Upstream, gateway: &mut Gateway) {
    let mut first = stalled(upstream, gateway, IDENTITY).await;
    let addr = gateway.addr();
    let waiting: Vec<_> = (0..3).map(|_| tokio::spawn(send(addr, lowered(gateway, IDENTITY, &[])))).collect();
    let mut codes = Vec::new();
    for answer in waiting {
        codes.push(answer.await.unwrap().status);
    }
    codes.sort_unstable();
    assert_eq!(codes, [200, 503, 503], "one waits, the others are told at once");
    assert_eq!(lower(gateway, OTHER).await.status, 200);
    assert_eq!(first.read_answer().await.unwrap().status, 200);
}

async fn queues_of_one_caller(upstream: &Upstream, gateway: &mut Gateway) {
    let mut first = stalled(upstream, gateway, IDENTITY).await;
    let addr = gateway.addr();
    let second = tokio::spawn(send(addr, lowered(gateway, IDENTITY, &[])));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let third = lower(gateway, IDENTITY).await;
    assert_code(&third, 503, "target.busy");
    assert!(third.text().contains("limits.caller_waiters"), "{}", third.text());
    assert_eq!(lower(gateway, OTHER).await.status, 200, "nobody is ahead there");
    gateway.token = jwt(&json!({"authTokenType": "accessToken", "userId": "somebody else"}));
    let other = tokio::spawn(send(addr, lowered(gateway, IDENTITY, &[])));
    assert_eq!(first.read_answer().await.unwrap().status, 200);
    assert_eq!(second.await.unwrap().status, 200);
    assert_eq!(other.await.unwrap().status, 200, "somebody else may wait too");
}

/// Terraform changes ten things at once.
#[tokio::test]
async fn changes_that_wait_for_nobody_are_not_counted_and_who_leaves_counts_no_longer() {
    let upstream = Upstream::start();
    let identities: Vec<_> = (0..30).map(|n| format!("1c9c3a52-7d3f-4f7e-9a43-0c8f3f1d2e{n:02}")).collect();
    for identity in &identities {
        upstream.estate().add_identity(identity);
        upstream.attach(identity, &good_attach());
    }
    upstream.attach(IDENTITY, &good_attach());
    let gateway = Gateway::before(&upstream.url()).start().await;
    let changes: Vec<_> =
        identities.iter().map(|id| tokio::spawn(send(gateway.addr(), lowered(&gateway, id, &[])))).collect();
    for change in changes {
        assert_eq!(change.await.unwrap().status, 200);
    }
    let waiters = async || {
        let token = gateway.admin_token("reader");
        let metrics = gateway.admin_get("/metrics", Some(&token)).await.text();
        let line = metrics.lines().find(|line| line.starts_with("patchwarden_target_waiters ")).unwrap();
        line.rsplit(' ').next().unwrap().to_owned()
    };
    upstream.clear();
    let mut first = stalled(&upstream, &gateway, IDENTITY).await;
    let mut waiting = Vec::new();
    for _ in 0..8 {
        let mut connection = Connection::open(gateway.addr()).await;
        connection.send(lowered(&gateway, IDENTITY, &[])).await.unwrap();
        waiting.push(connection);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(waiters().await, "8");
    drop(waiting);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(waiters().await, "0", "they hung up");
    assert_eq!(first.read_answer().await.unwrap().status, 200);
    assert_eq!(lower(&gateway, IDENTITY).await.status, 200);
}

async fn bodies_at_once(_upstream: &Upstream, gateway: &mut Gateway) {
    let raw = lowered(gateway, OTHER, &[]);
    let mut slow = Connection::open(gateway.addr()).await;
    slow.send(&raw[..raw.len() - 1]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let refused = lower(gateway, IDENTITY).await;
    assert_code(&refused, 503, "gateway.overloaded");
    assert!(refused.get("retry-after").is_some() && refused.text().contains("limits.bodies"));
    assert_eq!(gateway.delete(&jwt_auth_path(IDENTITY)).await.status, 200, "a revocation needs no body");
    slow.send(&raw[raw.len() - 1..]).await.unwrap();
    assert_eq!(slow.read_answer().await.unwrap().status, 200);
}

async fn changes_at_once(upstream: &Upstream, gateway: &mut Gateway) {
    let mut first = stalled(upstream, gateway, IDENTITY).await;
    let refused = lower(gateway, OTHER).await;
    assert_code(&refused, 503, "gateway.overloaded");
    assert!(refused.get("retry-after").is_some() && refused.text().contains("limits.in_flight"));
    assert_eq!(gateway.get(&jwt_auth_path(OTHER)).await.status, 200, "reads pass");
    assert_eq!(first.read_answer().await.unwrap().status, 200);
    assert_eq!(lower(gateway, OTHER).await.status, 200);
}

async fn requests_at_once(upstream: &Upstream, gateway: &mut Gateway) {
    let mut first = stalled(upstream, gateway, IDENTITY).await;
    let refused = gateway.get("/api/status").await;
    assert_code(&refused, 503, "gateway.overloaded");
    assert!(refused.get("retry-after").is_some() && refused.text().contains("limits.requests"));
    assert_eq!(first.read_answer().await.unwrap().status, 200);
    assert_eq!(gateway.get("/api/status").await.status, 200);
}

async fn failed_reads(upstream: &Upstream, gateway: &mut Gateway) {
    let refusal = json!({"statusCode": 403, "message": "no", "error": "TokenError"});
    upstream.always(Matcher::method("GET").path("/identities/"), Act::answer(403, &refusal));
    for _ in 0..2 {
        assert_code(&lower(gateway, IDENTITY).await, 403, "before.refused");
    }
    let reads = upstream.seen().len();
    let answer = lower(gateway, IDENTITY).await;
    assert_code(&answer, 503, "gateway.overloaded");
    assert!(answer.text().contains("limits.failed_reads"), "{}", answer.text());
    assert_eq!(upstream.seen().len(), reads, "the upstream is left alone");
    assert!(upstream.writes().is_empty());
}

async fn unread_body(_upstream: &Upstream, gateway: &mut Gateway) {
    let path = jwt_auth_path(IDENTITY);
    let head = format!("PATCH {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n");
    let mut client = Connection::open(gateway.addr()).await;
    client.send(head + &"x".repeat(2048)).await.unwrap();
    let since = Instant::now();
    assert_code(&client.read_answer().await.unwrap(), 401, "caller.missing_token");
    assert!(since.elapsed() < Duration::from_secs(2), "it waits for no more than it would read");
}

async fn slow_head(upstream: &Upstream, gateway: &mut Gateway) {
    upstream.script(Matcher::any().path("/slow"), Act::Stall(Duration::from_secs(3)));
    assert_code(&gateway.get("/slow").await, 504, "upstream.timeout");
    assert_eq!(gateway.get("/api/status").await.status, 200);
}

async fn tunnels_at_once(_upstream: &Upstream, gateway: &mut Gateway) {
    let mut tunnels = Vec::new();
    for expected in [101, 503] {
        let headers = [
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        let mut tunnel = Connection::open(gateway.addr()).await;
        tunnel.send(raw_request(gateway.addr(), "GET", "/ws", &headers, None)).await.unwrap();
        assert_eq!(tunnel.read_head().await.unwrap().status, expected);
        tunnels.push(tunnel);
    }
    assert_eq!(gateway.get("/api/status").await.status, 200);
}

async fn connections_at_once(_upstream: &Upstream, gateway: &mut Gateway) {
    let status = raw_request(gateway.addr(), "GET", "/api/status", &[], None);
    let mut first = Connection::open(gateway.addr()).await;
    first.send(&status).await.unwrap();
    assert_eq!(first.read_answer().await.unwrap().status, 200);
    let mut second = Connection::open(gateway.addr()).await;
    second.send(&status).await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(400), second.read_answer()).await;
    assert!(early.is_err(), "it waits for the first to close");
    drop(first);
    assert_eq!(second.read_answer().await.unwrap().status, 200);
}

async fn silent_connection(_upstream: &Upstream, gateway: &mut Gateway) {
    let silent = Connection::open(gateway.addr()).await;
    assert!(ends(silent).await < Duration::from_secs(2));
}

async fn slow_headers(upstream: &Upstream, gateway: &mut Gateway) {
    let mut slow = Connection::open(gateway.addr()).await;
    slow.send("GET /api/status HTTP/1.1\r\nHost: x\r\n").await.unwrap();
    let seen = upstream.seen().len();
    assert!(ends(slow).await < Duration::from_secs(2));
    assert_eq!(upstream.seen().len(), seen);
}

/// A connection that speaks HTTP/2, and the task that drives it.
async fn http2(
    gateway: &Gateway,
) -> (
    hyper::client::conn::http2::SendRequest<http_body_util::Empty<bytes::Bytes>>,
    tokio::task::JoinHandle<hyper::Result<()>>,
) {
    let io = hyper_util::rt::TokioIo::new(TcpStream::connect(gateway.addr()).await.unwrap());
    let executor = hyper_util::rt::TokioExecutor::new();
    let (sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    (sender, tokio::spawn(connection))
}

fn get(gateway: &Gateway, path: &str) -> http::Request<http_body_util::Empty<bytes::Bytes>> {
    let uri = format!("http://{}{path}", gateway.addr());
    http::Request::get(uri).body(http_body_util::Empty::new()).unwrap()
}

async fn one_stream(upstream: &Upstream, gateway: &mut Gateway) {
    upstream.script(Matcher::any().path("/slow"), Act::Stall(Duration::from_secs(1)));
    let (mut sender, _driver) = http2(gateway).await;
    assert_eq!(sender.send_request(get(gateway, "/api/status")).await.unwrap().status(), 200);
    let slow = tokio::spawn(sender.send_request(get(gateway, "/slow")));
    tokio::time::sleep(Duration::from_millis(200)).await;
    let since = Instant::now();
    assert_eq!(sender.send_request(get(gateway, "/api/status")).await.unwrap().status(), 200);
    assert!(since.elapsed() > Duration::from_millis(500), "it came after the first");
    slow.await.unwrap().unwrap();
}

async fn idle_http2(_upstream: &Upstream, gateway: &mut Gateway) {
    let (mut sender, driver) = http2(gateway).await;
    assert_eq!(sender.send_request(get(gateway, "/api/status")).await.unwrap().status(), 200);
    let ended = tokio::time::timeout(Duration::from_secs(35), driver).await;
    assert!(ended.is_ok(), "the gateway says goodbye to a silent connection");
}

/// An address whose queue of connections is full: a connection is neither taken nor refused.
async fn unreachable_upstream(_upstream: &Upstream, _gateway: &mut Gateway) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut filling = Vec::new();
    while let Ok(Ok(stream)) =
        tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await
    {
        filling.push(stream);
    }
    let config = "[limits]\nconnect = \"300ms\"\n";
    let gateway = Gateway::before(&format!("http://{address}")).config(config).start().await;
    let since = Instant::now();
    assert_code(&gateway.get("/api/status").await, 502, "upstream.unreachable");
    assert!(since.elapsed() < Duration::from_secs(2));
}

async fn slow_shutdown(upstream: &Upstream, gateway: &mut Gateway) {
    let _first = stalled(upstream, gateway, IDENTITY).await;
    let since = Instant::now();
    assert_eq!(gateway.terminate().await.code(), Some(0));
    assert!(since.elapsed() < Duration::from_secs(9), "{:?}", since.elapsed());
}
