//! What passes through keeps its shape: codings, ranges, trailers, large bodies both ways, old clients, and connections
//! that either side closes when it likes.

use std::time::Duration;

use serde_json::json;

use crate::support::client::{Connection, raw_request, send};
use crate::support::gateway::Gateway;
use crate::support::upstream::{Act, Matcher, Upstream};
use crate::support::{IDENTITY, good_attach, good_patch, jwt_auth_path};

const LARGE: usize = 100 << 20;

async fn started() -> (Upstream, Gateway) {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let gateway = Gateway::start(&upstream).await;
    // The look around at start is none of the requests that are counted.
    upstream.wait_for_seen(1).await;
    (upstream, gateway)
}

fn raw(answer: &str) -> Act {
    Act::AnswerRaw(answer.as_bytes().to_vec())
}

#[tokio::test]
async fn a_compressed_answer_comes_through_as_it_is() {
    let (upstream, gateway) = started().await;
    let packed = [
        0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0xcb, 0x48, 0xcd, 0xc9, 0xc9, 7, 0, 0x86, 0xa6, 0x10, 0x36, 5, 0,
        0, 0,
    ];
    let headers = [("content-encoding", "gzip"), ("content-type", "text/plain"), ("vary", "accept-encoding")];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    upstream
        .script(Matcher::any().path("/packed"), Act::Answer { status: 200, headers, body: packed.to_vec() });
    let request = raw_request(gateway.addr(), "GET", "/packed", &[("accept-encoding", "gzip, br")], None);
    let answer = send(gateway.addr(), request).await;
    assert_eq!((answer.status, answer.body.as_slice()), (200, &packed[..]));
    assert_eq!((answer.get("content-encoding"), answer.get("vary")), (Some("gzip"), Some("accept-encoding")));
    let asked = upstream.seen().into_iter().find(|seen| seen.target == "/packed").unwrap();
    assert_eq!(asked.all("accept-encoding"), ["gzip, br"]);
}

#[tokio::test]
async fn a_part_of_a_file_is_a_206() {
    let (upstream, gateway) = started().await;
    let part = "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 2-4/10\r\ncontent-length: 3\r\netag: \"v1\"\r\n\r\nabc";
    upstream.script(Matcher::any().path("/file"), raw(part));
    let headers = [("range", "bytes=2-4"), ("if-range", "\"v1\"")];
    let answer = send(gateway.addr(), raw_request(gateway.addr(), "GET", "/file", &headers, None)).await;
    assert_eq!((answer.status, answer.text().as_str()), (206, "abc"));
    assert_eq!(answer.get("content-range"), Some("bytes 2-4/10"));
    let asked = upstream.seen().into_iter().find(|seen| seen.target == "/file").unwrap();
    assert_eq!((asked.get("range"), asked.get("if-range")), (Some("bytes=2-4"), Some("\"v1\"")));
}

#[tokio::test]
async fn trailers_come_back_behind_a_chunked_answer() {
    let (upstream, gateway) = started().await;
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 42\r\n\r\n";
    upstream.script(Matcher::any().path("/sum"), raw(chunked));
    let mut connection = Connection::open(gateway.addr()).await;
    connection.send(raw_request(gateway.addr(), "GET", "/sum", &[("te", "trailers")], None)).await.unwrap();
    let all = connection.read_until(b"\r\n0\r\n").await.unwrap();
    assert!(String::from_utf8_lossy(&all).contains("hello"));
    let end = connection.read_until(b"\r\n\r\n").await.unwrap();
    assert_eq!(String::from_utf8_lossy(&end), "x-sum: 42\r\n\r\n");
}

#[tokio::test]
async fn a_hundred_megabytes_go_up_and_come_down_in_constant_memory() {
    let (_upstream, gateway) = started().await;
    assert_eq!(gateway.get("/api/status").await.status, 200);
    let before = gateway.memory();
    let mut connection = Connection::open(gateway.addr()).await;
    let head = format!(
        "POST /count HTTP/1.1\r\nHost: g\r\nContent-Type: text/plain\r\nContent-Length: {LARGE}\r\n\r\n"
    );
    connection.send(head).await.unwrap();
    let block = vec![b'x'; 1 << 20];
    let mut highest = 0;
    for _ in 0..LARGE / block.len() {
        connection.send(&block).await.unwrap();
        highest = highest.max(gateway.memory());
    }
    let counted = connection.read_answer().await.unwrap();
    assert_eq!(counted.json()["bytes"], LARGE);
    connection
        .send(raw_request(gateway.addr(), "GET", &format!("/big?bytes={LARGE}"), &[], None))
        .await
        .unwrap();
    let head = connection.read_head().await.unwrap();
    assert_eq!(head.get("content-length"), Some(LARGE.to_string().as_str()));
    for _ in 0..LARGE / block.len() {
        assert_eq!(connection.read_raw(block.len()).await.unwrap(), block);
        highest = highest.max(gateway.memory());
    }
    let grown = highest.saturating_sub(before);
    assert!(grown < 24 * 1024, "{grown} KiB more");
}

#[tokio::test]
async fn a_client_of_http_1_0_is_served_and_its_connection_closed() {
    let (_upstream, gateway) = started().await;
    let mut connection = Connection::open(gateway.addr()).await;
    connection.send("GET /api/status HTTP/1.0\r\nHost: g\r\n\r\n").await.unwrap();
    let all = connection.read_to_close().await;
    let text = String::from_utf8_lossy(&all);
    assert!(text.starts_with("HTTP/1.0 200") || text.starts_with("HTTP/1.1 200"), "{text}");
    assert!(!text.to_ascii_lowercase().contains("transfer-encoding"), "{text}");

    let token = &gateway.token;
    let body = good_patch(&json!({"accessTokenTTL": 1800})).to_string();
    let mut connection = Connection::open(gateway.addr()).await;
    let head = format!(
        "PATCH {} HTTP/1.0\r\nHost: g\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        jwt_auth_path(IDENTITY),
        body.len()
    );
    connection.send(head + &body).await.unwrap();
    let all = connection.read_to_close().await;
    assert!(String::from_utf8_lossy(&all).contains("\"accessTokenTTL\":1800"));
}

#[tokio::test]
async fn three_thousand_requests_go_over_one_connection() {
    let (upstream, gateway) = started().await;
    let mut connection = Connection::open(gateway.addr()).await;
    let request = raw_request(gateway.addr(), "GET", "/api/status", &[], None);
    upstream.clear();
    for _ in 0..3000 {
        connection.send(&request).await.unwrap();
        assert_eq!(connection.read_answer().await.unwrap().status, 200);
    }
    assert_eq!(upstream.seen().len(), 3000, "none lost, none doubled");
}

#[tokio::test]
async fn an_upstream_that_closes_idle_connections_loses_and_doubles_nothing() {
    let (upstream, gateway) = started().await;
    // It answers without a word about closing, and closes: the pool holds a connection that is dead or dying.
    let leaves = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    upstream.always(Matcher::any().path("/leaves"), raw(leaves));
    upstream.clear();
    for round in 0..60_u64 {
        assert_eq!(gateway.get("/leaves").await.status, 200, "{round}");
        if round % 2 == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let body = good_patch(&json!({"accessTokenTTL": 600 + round}));
        let changed = gateway.patch(&jwt_auth_path(IDENTITY), &body).await;
        assert_eq!(changed.status, 200, "{round}: {}", changed.text());
    }
    let seen = upstream.seen();
    assert_eq!(seen.iter().filter(|seen| seen.target == "/leaves").count(), 60);
    let writes: Vec<_> =
        upstream.writes().iter().map(|write| write.json()["accessTokenTTL"].clone()).collect();
    assert_eq!(writes, (0..60).map(|round| json!(600 + round)).collect::<Vec<_>>());
    let applied =
        gateway.history(&["--outcome", "applied", "--limit", "100"])["changes"].as_array().map(Vec::len);
    assert_eq!(applied, Some(60), "each with its true end");
}

#[tokio::test]
async fn two_hundred_requests_at_once_over_one_http2_connection() {
    let (upstream, gateway) = started().await;
    let io = hyper_util::rt::TokioIo::new(tokio::net::TcpStream::connect(gateway.addr()).await.unwrap());
    let executor = hyper_util::rt::TokioExecutor::new();
    let (sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    let driver = tokio::spawn(connection);
    upstream.clear();
    let requests: Vec<_> = (0..200)
        .map(|n| {
            let mut sender = sender.clone();
            let uri = format!("http://{}/api/v1/thing/{n}", gateway.addr());
            let request = http::Request::get(uri).body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap();
            tokio::spawn(async move {
                sender.ready().await.unwrap();
                sender.send_request(request).await.unwrap().status()
            })
        })
        .collect();
    for request in requests {
        request.await.unwrap();
    }
    let targets: std::collections::BTreeSet<_> =
        upstream.seen().into_iter().map(|seen| seen.target).collect();
    assert_eq!(targets.len(), 200);
    driver.abort();
}
