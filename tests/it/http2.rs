//! HTTP/2 written frame by frame: what a well-behaved client never sends.
//!
//! Each attempt is a change that would open the identity to everybody, judged by what the upstream holds; each flood is
//! followed by a request of somebody else, who must be served, and by a look at the gateway's memory.

use std::io;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::gateway::Gateway;
use crate::support::upstream::Upstream;
use crate::support::{IDENTITY, good_attach, good_patch, jwt_auth_path};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// HPACK without compression: each field a literal that is never indexed.
fn fields(list: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| {
        let mut bytes = Vec::new();
        match u8::try_from(text.len()) {
            Ok(short) if short < 127 => bytes.push(short),
            _ => {
                bytes.push(127);
                let mut rest = text.len() - 127;
                while rest >= 128 {
                    bytes.push(u8::try_from(rest % 128).unwrap() | 128);
                    rest /= 128;
                }
                bytes.push(u8::try_from(rest).unwrap());
            }
        }
        bytes.extend_from_slice(text.as_bytes());
        bytes
    };
    list.iter().flat_map(|(name, value)| [vec![0x10], text(name), text(value)].concat()).collect()
}

struct Peer(TcpStream);

impl Peer {
    async fn open(gateway: &Gateway, settings: &[u8]) -> Self {
        let mut stream = TcpStream::connect(gateway.addr()).await.unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        stream.write_all(&frame(SETTINGS, 0, 0, settings)).await.unwrap();
        Self(stream)
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes).await
    }

    /// Kind and stream of the next frame with its payload; settings and pings are acknowledged on the way.
    async fn next(&mut self) -> io::Result<(u8, u32, Vec<u8>)> {
        loop {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).await?;
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            self.0.read_exact(&mut payload).await?;
            let (kind, flags) = (head[3], head[4]);
            match (kind, flags & 1) {
                (SETTINGS, 0) => self.send(&frame(SETTINGS, 1, 0, &[])).await?,
                (PING, 0) => self.send(&frame(PING, 1, 0, &payload)).await?,
                (SETTINGS | PING | WINDOW_UPDATE, _) => {}
                _ => return Ok((kind, u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload)),
            }
        }
    }

    /// Reads until the stream has its answer or is gone, or the connection is.
    async fn settled(&mut self, stream: u32) {
        let answered = async {
            while let Ok((kind, of, _)) = self.next().await {
                if kind == GOAWAY || (of == stream && matches!(kind, HEADERS | RST_STREAM)) {
                    return;
                }
            }
        };
        let _ = timeout(Duration::from_secs(3), answered).await;
    }

    /// Whether the gateway ends the connection.
    async fn is_ended(&mut self) -> bool {
        let ended = async {
            loop {
                match self.next().await {
                    Ok((GOAWAY, _, _)) | Err(_) => return,
                    Ok(_) => {}
                }
            }
        };
        timeout(Duration::from_secs(10), ended).await.is_ok()
    }
}

async fn attached() -> (Upstream, Gateway) {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let gateway = Gateway::start(&upstream).await;
    // The look around at start is none of the requests that are counted.
    upstream.wait_for_seen(1).await;
    (upstream, gateway)
}

async fn assert_serves(gateway: &Gateway) {
    let body = good_patch(&json!({"accessTokenTTL": 1800}));
    let answer = gateway.patch(&jwt_auth_path(IDENTITY), &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(gateway.get("/api/status").await.status, 200);
}

#[tokio::test]
async fn tricks_with_pseudo_headers_and_lengths_change_nothing() {
    let (upstream, gateway) = attached().await;
    let path = jwt_auth_path(IDENTITY);
    let absolute = format!("http://gateway.example{path}");
    let slash = format!("{path}/");
    let body = good_patch(&json!({"accessTokenTrustedIps": [{"ipAddress": "0.0.0.0/0"}]})).to_string();
    let token = format!("Bearer {}", gateway.token);
    let length = body.len().to_string();
    let usual = [
        (":method", "PATCH"),
        (":scheme", "http"),
        (":authority", "gateway.example"),
        (":path", path.as_str()),
        ("authorization", token.as_str()),
        ("content-type", "application/json"),
    ];
    let with = |name: &'static str, value: &'static str| [&usual[..], &[(name, value)]].concat();
    let instead = |name: &str, value: &'static str| {
        usual.iter().map(|&(n, v)| (n, if n == name { value } else { v })).collect::<Vec<_>>()
    };
    let without = |name: &str| usual.iter().copied().filter(|(n, _)| *n != name).collect::<Vec<_>>();
    let path_is = |value: &str| {
        let value = value.to_owned();
        usual
            .iter()
            .map(|&(n, v)| (n.to_owned(), if n == ":path" { value.clone() } else { v.to_owned() }))
            .collect::<Vec<_>>()
    };
    let mut attempts: Vec<(&str, Vec<(String, String)>)> = vec![
        ("absolute path", path_is(&absolute)),
        ("trailing slash", path_is(&slash)),
        ("no slash in front", path_is(&path[1..])),
        ("empty path", path_is("")),
        ("fragment", path_is(&format!("{path}#x"))),
        ("encoded", path_is(&path.replace("jwt", "%6Awt"))),
    ];
    for (name, list) in [
        ("as it should be", usual.to_vec()),
        ("lower-case method", instead(":method", "patch")),
        ("extended CONNECT", with(":protocol", "websocket")),
        ("two paths", with(":path", "/api/status")),
        ("two methods", with(":method", "GET")),
        ("no path", without(":path")),
        ("no method", without(":method")),
        ("no scheme", without(":scheme")),
        ("unknown pseudo-header", with(":x", "y")),
        ("host beside the authority", with("host", "other.example")),
        ("capital letters in a name", with("X-Capital", "y")),
        ("connection", with("connection", "authorization")),
        ("transfer-encoding", with("transfer-encoding", "chunked")),
        ("te", with("te", "gzip")),
        ("upgrade", with("upgrade", "h2c")),
        ("length too short", with("content-length", "5")),
        ("length too long", with("content-length", "5000")),
        ("two media types", with("content-type", "text/plain")),
        ("two credentials", with("authorization", "Bearer x")),
        ("line end in a value", with("x-a", "b\r\ncontent-type: text/plain")),
        ("NUL in a value", with("x-a", "b\0c")),
        ("blank in a name", with("x a", "b")),
        ("colon in a name", with("x:a", "b")),
    ] {
        attempts.push((name, list.into_iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect()));
    }
    let before = upstream.state(IDENTITY);
    for (name, list) in &attempts {
        let list: Vec<_> = list.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let mut peer = Peer::open(&gateway, &[]).await;
        let _ = peer.send(&frame(HEADERS, END_HEADERS, 1, &fields(&list))).await;
        let _ = peer.send(&frame(DATA, END_STREAM, 1, body.as_bytes())).await;
        peer.settled(1).await;
        assert_eq!(upstream.state(IDENTITY), before, "{name}");
        assert!(upstream.writes().is_empty(), "{name}");
    }
    // The same without the danger, to know that these bytes can be understood at all.
    let harmless = good_patch(&json!({"accessTokenTTL": 1800})).to_string();
    let mut peer = Peer::open(&gateway, &[]).await;
    peer.send(&frame(HEADERS, END_HEADERS, 1, &fields(&usual))).await.unwrap();
    peer.send(&frame(DATA, END_STREAM, 1, harmless.as_bytes())).await.unwrap();
    peer.settled(1).await;
    assert_eq!(upstream.writes().len(), 1);
    assert_ne!(length, "0");
    assert_serves(&gateway).await;
}

fn status(gateway: &Gateway) -> Vec<u8> {
    let authority = gateway.addr().to_string();
    fields(&[(":method", "GET"), (":scheme", "http"), (":authority", &authority), (":path", "/api/status")])
}

#[tokio::test]
async fn rapid_resets_end_the_connection_and_cost_nobody_else() {
    let (_upstream, gateway) = attached().await;
    assert_serves(&gateway).await;
    let before = gateway.memory();
    for _ in 0..10 {
        let mut peer = Peer::open(&gateway, &[]).await;
        let request = status(&gateway);
        for at in 0..5000_u32 {
            let stream = at * 2 + 1;
            let open = frame(HEADERS, END_HEADERS | END_STREAM, stream, &request);
            let reset = frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes());
            if peer.send(&[open, reset].concat()).await.is_err() {
                break;
            }
        }
        assert!(peer.is_ended().await, "5 000 resets are too many");
    }
    assert_serves(&gateway).await;
    let grown = gateway.memory().saturating_sub(before);
    assert!(grown < 32 * 1024, "{grown} KiB more");
}

#[tokio::test]
async fn a_flood_of_continuations_is_cut() {
    let (upstream, gateway) = attached().await;
    assert_serves(&gateway).await;
    upstream.clear();
    let before = gateway.memory();
    for content in [fields(&[("x-more", &"y".repeat(1000))]), Vec::new()] {
        let mut peer = Peer::open(&gateway, &[]).await;
        let _ = peer.send(&frame(HEADERS, END_STREAM, 1, &status(&gateway))).await;
        let mut sent = 0;
        while sent < 100_000 && peer.send(&frame(CONTINUATION, 0, 1, &content)).await.is_ok() {
            sent += 1;
        }
        assert!(peer.is_ended().await, "{sent} continuations of {} bytes", content.len());
    }
    assert!(upstream.seen().is_empty());
    assert_serves(&gateway).await;
    let grown = gateway.memory().saturating_sub(before);
    assert!(grown < 32 * 1024, "{grown} KiB more");
}

#[tokio::test]
async fn a_header_list_over_the_limit_reaches_nobody() {
    let (upstream, gateway) = attached().await;
    upstream.clear();
    let long = "y".repeat(1000);
    let names: Vec<String> = (0..60).map(|at| format!("x-{at}")).collect();
    let more: Vec<_> = names.iter().map(|name| (name.as_str(), long.as_str())).collect();
    let mut peer = Peer::open(&gateway, &[]).await;
    let list = [status(&gateway), fields(&more)].concat();
    let mut parts = list.chunks(16_000);
    peer.send(&frame(HEADERS, END_STREAM, 1, parts.next().unwrap())).await.unwrap();
    let rest: Vec<_> = parts.collect();
    for (at, part) in rest.iter().enumerate() {
        let flags = if at + 1 == rest.len() { END_HEADERS } else { 0 };
        let _ = peer.send(&frame(CONTINUATION, flags, 1, part)).await;
    }
    peer.settled(1).await;
    assert!(upstream.seen().is_empty());
    assert_serves(&gateway).await;
}

#[tokio::test]
async fn a_peer_that_takes_nothing_holds_only_what_is_his() {
    let (_upstream, gateway) = attached().await;
    assert_serves(&gateway).await;
    let before = gateway.memory();
    // SETTINGS_INITIAL_WINDOW_SIZE = 0: no byte of an answer's body may be sent.
    let no_window = [0, 4, 0, 0, 0, 0];
    let mut stalled = Vec::new();
    for _ in 0..20 {
        let mut peer = Peer::open(&gateway, &no_window).await;
        let authority = gateway.addr().to_string();
        let big = fields(&[
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", &authority),
            (":path", "/big?bytes=100000000"),
        ]);
        for stream in [1, 3, 5, 7] {
            peer.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &big)).await.unwrap();
        }
        stalled.push(peer);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_serves(&gateway).await;
    let grown = gateway.memory().saturating_sub(before);
    assert!(grown < 64 * 1024, "{grown} KiB more for 8 GB that nobody takes");
}
