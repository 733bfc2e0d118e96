//! Real sockets on both sides: a client, the gateway's port with pass-through behind it, and an upstream.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::passthrough::{self, Passthrough};
use crate::upstream::client_address::{Client, TrustedProxies};
use crate::upstream::{Body, Settings, Upstream};

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A gateway's port that passes everything to one upstream.
struct Port {
    address: SocketAddr,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
    tasks: TaskTracker,
    tunnels: TaskTracker,
}

impl Port {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends bytes and returns everything that comes back until the end.
    async fn exchange(&self, bytes: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(bytes.as_bytes()).await.unwrap();
        read_all(&mut stream).await
    }

    async fn protocol_errors(&self, expected: u64) {
        for _ in 0..100 {
            if self.metrics.protocol_errors.get() == expected {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(self.metrics.protocol_errors.get(), expected);
    }
}

fn quick() -> Limits {
    Limits {
        handshake: Span::millis(300),
        header_read: Span::millis(300),
        idle: Span::millis(400),
        shutdown: Span::millis(1500),
        ..Limits::default()
    }
}

async fn serving(
    limits: Limits,
    in_flight: usize,
    handler: impl Fn(Arc<Metrics>, CancellationToken, TaskTracker) -> Handler,
) -> Port {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, tasks, tunnels) = (CancellationToken::new(), TaskTracker::new(), TaskTracker::new());
    let metrics = Arc::new(Metrics::new());
    let service = gateway(
        handler(Arc::clone(&metrics), stop.clone(), tunnels.clone()),
        in_flight,
        Arc::clone(&metrics),
    );
    let server = Server::new(limits, Some(Arc::clone(&metrics)));
    let stopping = stop.clone();
    tasks.spawn(async move { server.serve(Door::Tcp(listener, None), service, stopping).await });
    tasks.close();
    Port { address, metrics, stop, tasks, tunnels }
}

/// Passes everything through to `upstream`.
async fn passing(upstream: SocketAddr) -> Port {
    serving(quick(), 64, |metrics, stop, tunnels| {
        let settings = Settings { url: format!("http://{upstream}"), ..Settings::default() };
        let upstream = Upstream::new(&settings, Duration::from_secs(2), Arc::clone(&metrics)).unwrap();
        let limits = passthrough::Limits { head: Span::secs(1), tunnels: 1 };
        let through = Passthrough::new(upstream, limits, tunnels, stop, Arc::clone(&metrics));
        Arc::new(move |request, peer| {
            let trusted = TrustedProxies::default();
            let client = Client::of(request.headers(), request.uri(), &peer, &trusted, &metrics);
            let through = through.clone();
            Box::pin(async move { through.stream(request, &client).await })
        })
    })
    .await
}

/// Passes everything through as a watched write and puts what is known of it into a header.
async fn watching(upstream: SocketAddr) -> Port {
    serving(quick(), 64, |metrics, stop, tunnels| {
        let settings = Settings { url: format!("http://{upstream}"), ..Settings::default() };
        let upstream = Upstream::new(&settings, Duration::from_secs(2), Arc::clone(&metrics)).unwrap();
        let limits = passthrough::Limits { head: Span::secs(1), tunnels: 1 };
        let through = Passthrough::new(upstream, limits, tunnels, stop, Arc::clone(&metrics));
        Arc::new(move |request, peer| {
            let trusted = TrustedProxies::default();
            let client = Client::of(request.headers(), request.uri(), &peer, &trusted, &metrics);
            let through = through.clone();
            let change = "019a0000-0000-7000-8000-000000000001".parse().unwrap();
            Box::pin(async move {
                let (mut response, known) =
                    through.carried(request.map(Body::Incoming), &client, &change).await;
                let known = match known {
                    Ok(status) => status.as_str().to_owned(),
                    Err(failure) => format!("{failure:?}").split('(').next().unwrap().to_owned(),
                };
                response.headers_mut().insert("x-known", known.try_into().unwrap());
                response
            })
        })
    })
    .await
}

/// Answers every request with its path, after `/slow` half a second; panics at `/panic`.
async fn echoing(in_flight: usize) -> Port {
    serving(quick(), in_flight, |_, _, _| {
        Arc::new(|request, _| {
            Box::pin(async move {
                let path = request.uri().path().to_owned();
                assert_ne!(path, "/panic", "as asked");
                if path == "/slow" {
                    sleep(Duration::from_millis(500)).await;
                }
                Response::new(crate::upstream::Body::from_bytes(path))
            })
        })
    })
    .await
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn read_all(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut bytes = Vec::new();
    // A reset after the answer still leaves the answer.
    let _ = timeout(Duration::from_secs(10), stream.read_to_end(&mut bytes)).await.expect("an end");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads until what was read ends with `end`.
async fn read_until(stream: &mut (impl AsyncRead + Unpin), end: &str) -> String {
    let mut bytes = Vec::new();
    let read = async {
        while !bytes.ends_with(end.as_bytes()) {
            let Ok(byte) = stream.read_u8().await else { break };
            bytes.push(byte);
        }
    };
    timeout(Duration::from_secs(10), read).await.expect("an end");
    String::from_utf8_lossy(&bytes).to_ascii_lowercase()
}

/// Passes one request through: what reached the upstream (up to `end`), and what came back.
async fn crossed(request: &str, end: &str, answer: &str) -> (String, String) {
    let (listener, address) = listen().await;
    let port = passing(address).await;
    let upstream = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let seen = read_until(&mut stream, end).await;
        stream.write_all(answer.as_bytes()).await.unwrap();
        // Open until the gateway closes it, so that the answer's end is the one it announces.
        (seen, stream)
    };
    let ((seen, _stream), answer) = tokio::join!(upstream, port.exchange(request));
    (seen, answer)
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn a_request_crosses_with_its_host_and_client_restated() {
    let (seen, answer) = crossed(
        "GET /api/%7Ex//y;z?q=%41 HTTP/1.1\r\nHost: gateway.example\r\nX-Real-IP: 10.0.0.1\r\nX-Forwarded-For: 1.1.1.1\r\n\
         Forwarded: for=1.1.1.1\r\nX-SSL-Client-Cert: x\r\nPatchwarden-Change: forged\r\nExpect: 100-continue\r\n\
         Connection: close, X-Hop, Authorization\r\nX-Hop: 1\r\nAuthorization: Bearer t\r\nX-Kept: 1\r\nUpgrade: h2c\r\n\r\n",
        "\r\n\r\n",
        "HTTP/1.1 200 Fine\r\ncontent-length: 2\r\nconnection: x-b\r\nx-b: 1\r\nx-a: 1\r\npatchwarden-x: 1\r\n\r\nok",
    )
    .await;
    let mut lines: Vec<&str> =
        seen.trim_end().lines().skip(1).filter(|line| !line.starts_with("host:")).collect();
    lines.sort_unstable();
    assert!(
        seen.starts_with("get /api/%7ex//y;z?q=%41 http/1.1\r\nhost: 127.0.0.1:")
            || seen.contains("\r\nhost: 127.0.0.1:"),
        "{seen}"
    );
    assert_eq!(
        lines,
        [
            "authorization: bearer t",
            "x-forwarded-for: 127.0.0.1",
            "x-forwarded-host: gateway.example",
            "x-forwarded-proto: http",
            "x-kept: 1"
        ]
    );
    assert!(answer.starts_with("HTTP/1.1 200 Fine\r\n") && answer.ends_with("\r\n\r\nok"), "{answer}");
    assert!(
        answer.contains("x-a: 1") && !answer.contains("x-b") && !answer.contains("patchwarden"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_get_with_a_chunked_body_keeps_it() {
    let (seen, _) = crossed(
        "GET /x HTTP/1.1\r\nHost: g\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        "0\r\n\r\n",
        OK,
    )
    .await;
    assert!(
        seen.contains("transfer-encoding: chunked\r\n") && seen.ends_with("3\r\nabc\r\n0\r\n\r\n"),
        "{seen}"
    );
}

#[tokio::test]
async fn trailers_cross_both_ways() {
    let (seen, answer) = crossed(
        "POST /x HTTP/1.1\r\nHost: g\r\nConnection: close, TE\r\nTE: trailers\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 6\r\n\r\n",
        "x-sum: 6\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntrailer: x-back\r\ntransfer-encoding: chunked\r\n\r\n1\r\nz\r\n0\r\nx-back: 7\r\n\r\n",
    )
    .await;
    assert!(seen.contains("te: trailers\r\n") && seen.contains("trailer: x-sum\r\n"), "{seen}");
    assert!(answer.ends_with("1\r\nz\r\n0\r\nx-back: 7\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn the_absolute_form_and_the_star_go_to_the_configured_upstream() {
    let absolute = "GET http://evil.example/x?y HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n";
    let (seen, _) = crossed(absolute, "\r\n\r\n", OK).await;
    assert!(
        seen.starts_with("get /x?y http/1.1\r\n") && seen.contains("x-forwarded-host: evil.example\r\n"),
        "{seen}"
    );
    let star = "OPTIONS * HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n";
    let (seen, _) = crossed(star, "\r\n\r\n", OK).await;
    assert!(seen.starts_with("options * http/1.1\r\n"), "{seen}");
}

#[tokio::test]
async fn a_head_keeps_the_length_of_what_a_get_would_have() {
    let head = "HEAD /x HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n";
    let (_, answer) = crossed(head, "\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 77\r\n\r\n").await;
    assert!(answer.contains("content-length: 77\r\n"), "{answer}");
}

#[tokio::test]
async fn what_cannot_be_passed_on_gets_a_bare_400() {
    let (_listener, address) = listen().await;
    let port = passing(address).await;
    for request in [
        "CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        "GET * HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n",
        "GET / HTTP/1.1\r\nConnection: close\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n",
    ] {
        let mut stream = port.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = read_until(&mut stream, "\r\n\r\n").await;
        assert!(answer.starts_with("http/1.1 400 "), "{request} {answer}");
    }
    assert_eq!(port.metrics.protocol_errors.get(), 2);
}

#[tokio::test]
async fn an_upstream_that_is_not_there_or_silent_or_broken_is_a_problem() {
    let (listener, address) = listen().await;
    drop(listener);
    let port = passing(address).await;
    let get = "GET /x HTTP/1.1\r\nHost: g\r\nOrigin: https://a.example\r\nConnection: close\r\n\r\n";
    let answer = port.exchange(get).await;
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("\"upstream.unreachable\""), "{answer}");
    assert!(answer.contains("access-control-allow-origin: https://a.example"), "{answer}");

    let (listener, address) = listen().await;
    let port = passing(address).await;
    let (answer, _held) = tokio::join!(port.exchange(get), listener.accept());
    assert!(answer.starts_with("HTTP/1.1 504 ") && answer.contains("\"upstream.timeout\""), "{answer}");

    let (_, answer) = crossed(
        get,
        "\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("\"upstream.broken\""), "{answer}");
}

#[tokio::test]
async fn a_watched_write_says_what_is_known_of_it() {
    let delete = "DELETE /x HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n";
    let change = "patchwarden-change: 019a0000-0000-7000-8000-000000000001\r\n";
    let (listener, address) = listen().await;
    let port = watching(address).await;
    let upstream = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_until(&mut stream, "\r\n\r\n").await;
        stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        stream
    };
    let (answer, _open) = tokio::join!(port.exchange(delete), upstream);
    assert!(answer.contains("x-known: 404\r\n") && answer.contains(change), "{answer}");
    assert!(answer.contains("patchwarden-answered-by: upstream\r\n"), "{answer}");

    let (listener, address) = listen().await;
    let port = watching(address).await;
    let (answer, _held) = tokio::join!(port.exchange(delete), listener.accept());
    assert!(answer.contains("x-known: TimedOut\r\n") && answer.contains("\"upstream.timeout\""), "{answer}");
    drop(listener);

    let (listener, address) = listen().await;
    drop(listener);
    let answer = watching(address).await.exchange(delete).await;
    assert!(answer.contains("x-known: NotSent\r\n") && answer.contains(change), "{answer}");
    assert!(answer.contains("patchwarden-answered-by: gateway\r\n"), "{answer}");
}

#[tokio::test]
async fn a_large_upload_to_an_upstream_that_is_not_there_still_gets_the_answer() {
    let (listener, address) = listen().await;
    drop(listener);
    let port = passing(address).await;
    let body = "x".repeat(600 * 1024);
    let answer = port
        .exchange(&format!("POST /x HTTP/1.1\r\nHost: g\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
        .await;
    assert!(answer.contains("\"upstream.unreachable\""), "{answer}");
}

#[tokio::test]
async fn a_websocket_opens_runs_both_ways_and_ends_with_the_gateway() {
    let (listener, address) = listen().await;
    let port = passing(address).await;
    let offer = format!(
        "GET /ws HTTP/1.1\r\nHost: g\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
    );
    let mut client = port.connect().await;
    client.write_all(offer.as_bytes()).await.unwrap();
    let (mut upstream, _) = listener.accept().await.unwrap();
    let seen = read_until(&mut upstream, "\r\n\r\n").await;
    assert!(seen.contains("connection: upgrade\r\n") && seen.contains("upgrade: websocket\r\n"), "{seen}");
    let accepted = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {ACCEPT}\r\n\r\nearly"
    );
    upstream.write_all(accepted.as_bytes()).await.unwrap();
    let head = read_until(&mut client, "\r\n\r\n").await;
    assert!(head.starts_with("http/1.1 101 ") && head.contains("connection: upgrade\r\n"), "{head}");
    assert_eq!(read_until(&mut client, "early").await, "early");
    client.write_all(b"up").await.unwrap();
    assert_eq!(read_until(&mut upstream, "up").await, "up");

    // Its one slot is taken; an ordinary request goes on.
    let second = port.exchange(&offer).await;
    assert!(second.contains("\"gateway.overloaded\"") && second.contains("limits.tunnels"), "{second}");

    // One end closes, the other still speaks.
    client.shutdown().await.unwrap();
    assert_eq!(upstream.read(&mut [0; 8]).await.unwrap(), 0);
    upstream.write_all(b"late").await.unwrap();
    assert_eq!(read_until(&mut client, "late").await, "late");

    port.stop.cancel();
    assert_eq!(read_all(&mut client).await, "");
    port.tasks.wait().await;
    port.tunnels.close();
    port.tunnels.wait().await;
}

#[tokio::test]
async fn a_101_that_does_not_answer_the_key_opens_nothing() {
    let offer = format!(
        "GET /ws HTTP/1.1\r\nHost: g\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
    );
    let wrong = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: AAAA\r\n\r\n";
    let (_, answer) = crossed(&offer, "\r\n\r\n", wrong).await;
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("\"upstream.broken\""), "{answer}");
}

#[tokio::test]
async fn a_client_that_says_nothing_is_closed_and_counted() {
    let port = echoing(8).await;
    let mut silent = port.connect().await;
    assert_eq!(read_all(&mut silent).await, "");
    port.protocol_errors(1).await;

    let mut half_a_preface = port.connect().await;
    half_a_preface.write_all(b"PR").await.unwrap();
    assert_eq!(read_all(&mut half_a_preface).await, "");
    port.protocol_errors(2).await;

    let mut half_a_head = port.connect().await;
    half_a_head.write_all(b"GET / HTTP/1.1\r\nHost: g\r\n").await.unwrap();
    read_all(&mut half_a_head).await;
    port.protocol_errors(3).await;

    let mut preface_alone = port.connect().await;
    preface_alone.write_all(b"PRI * HTTP/2.0\r\n\r\nSM").await.unwrap();
    read_all(&mut preface_alone).await;
    port.protocol_errors(4).await;

    // A probe of the port, and an idle keep-alive connection, are no errors.
    drop(port.connect().await);
    let answer = port.exchange("GET /x HTTP/1.1\r\nHost: g\r\n\r\n").await;
    assert!(answer.ends_with("\r\n\r\n/x"), "{answer}");
    port.protocol_errors(4).await;
    assert_eq!(port.metrics.connections.get(), 0);
}

#[tokio::test]
async fn what_is_no_http_gets_a_bare_status_and_is_counted() {
    let port = echoing(8).await;
    let lines = "a: b\r\n".repeat(200);
    let long = "x".repeat(200 * 1024);
    for (at, (bytes, status)) in [
        ("\u{16}\u{3}\u{1}\r\n\r\n".to_owned(), "400"),
        (format!("GET / HTTP/1.1\r\nHost: g\r\n{lines}\r\n"), "431"),
        (format!("GET / HTTP/1.1\r\nHost: g\r\nX: {long}\r\n\r\n"), "431"),
        ("POST / HTTP/1.1\r\nHost: g\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n".to_owned(), "400"),
    ]
    .into_iter()
    .enumerate()
    {
        let answer = port.exchange(&bytes).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        port.protocol_errors(at as u64 + 1).await;
    }
}

#[tokio::test]
async fn a_panic_is_a_500_and_the_gateway_goes_on() {
    let port = echoing(8).await;
    let answer = port.exchange("GET /panic HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 500 ") && answer.contains("application/problem+json"), "{answer}");
    let answer = port.exchange("GET /x HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n").await;
    assert!(answer.ends_with("/x"), "{answer}");
}

#[tokio::test]
async fn requests_over_the_limit_are_told_to_come_back() {
    let port = echoing(1).await;
    let slow = "GET /slow HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n";
    let (first, second) = tokio::join!(port.exchange(slow), async {
        sleep(Duration::from_millis(150)).await;
        port.exchange("GET /x HTTP/1.1\r\nHost: g\r\nOrigin: https://a.example\r\nConnection: close\r\n\r\n")
            .await
    });
    assert!(first.ends_with("/slow"), "{first}");
    assert!(second.starts_with("HTTP/1.1 503 ") && second.contains("retry-after: 1"), "{second}");
    assert!(
        second.contains("\"gateway.overloaded\"") && second.contains("access-control-allow-origin"),
        "{second}"
    );
}

#[tokio::test]
async fn a_request_in_flight_is_finished_when_the_gateway_stops() {
    let port = echoing(8).await;
    let mut idle = port.connect().await;
    idle.write_all(b"GET /x HTTP/1.1\r\nHost: g\r\n\r\n").await.unwrap();
    read_until(&mut idle, "/x").await;
    let (answer, ()) = tokio::join!(port.exchange("GET /slow HTTP/1.1\r\nHost: g\r\n\r\n"), async {
        sleep(Duration::from_millis(150)).await;
        port.stop.cancel();
    });
    assert!(answer.ends_with("/slow"), "{answer}");
    assert_eq!(read_all(&mut idle).await, "");
    drop(idle);
    port.tasks.wait().await;
    assert!(TcpStream::connect(port.address).await.is_err());
}

#[tokio::test]
async fn http2_is_spoken_without_tls_too_and_ends_after_silence() {
    let port = echoing(8).await;
    let stream = TokioIo::new(port.connect().await);
    let (mut send, connection) =
        hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), stream).await.unwrap();
    let connection = port.tunnels.spawn(connection);
    let request = Request::get("http://g/x").body(http_body_util::Empty::<Bytes>::new()).unwrap();
    let answer = send.send_request(request).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "/x");
    timeout(Duration::from_secs(5), connection).await.expect("an end after silence").unwrap().unwrap();
    assert_eq!(port.metrics.protocol_errors.get(), 0);
}

#[tokio::test]
async fn tls_offers_both_versions_and_a_bad_key_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        Some(path)
    };
    let cert_file = file("cert.pem", &own.cert.pem());
    let key_file = file("key.pem", &own.signing_key.serialize_pem());
    let wrong = file("wrong.pem", &other.signing_key.serialize_pem());
    let settings = |cert_file: &Option<PathBuf>, key_file: &Option<PathBuf>| TlsSettings {
        cert_file: cert_file.clone(),
        key_file: key_file.clone(),
        ..TlsSettings::default()
    };
    assert!(Tls::new(&settings(&None, &None), "tls").unwrap().is_none());
    for (settings, key) in [
        (settings(&cert_file, &wrong), "tls.key_file"),
        (settings(&key_file, &key_file), "tls.cert_file"),
        (settings(&cert_file, &None), "tls.key_file"),
        (settings(&None, &key_file), "tls.cert_file"),
        (settings(&cert_file, &Some(folder.path().join("absent"))), "tls.key_file"),
    ] {
        let error = Tls::new(&settings, "tls").err().unwrap();
        assert!(error.contains(key), "{error}");
    }

    let acceptor = Tls::new(&settings(&cert_file, &key_file), "tls").unwrap();
    let (listener, address) = listen().await;
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let metrics = Arc::new(Metrics::new());
    let handler: Handler = Arc::new(|request, peer| {
        Box::pin(async move {
            let text = format!("{:?} {}", request.version(), peer.tls);
            Response::new(crate::upstream::Body::from_bytes(text))
        })
    });
    let service = gateway(handler, 8, Arc::clone(&metrics));
    let server = Server::new(quick(), Some(Arc::clone(&metrics)));
    let stopping = stop.clone();
    tasks.spawn(async move { server.serve(Door::Tcp(listener, acceptor), service, stopping).await });
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nHost: g\r\n\r\n").await.unwrap();
    read_all(&mut plain).await;
    assert_eq!(metrics.protocol_errors.get(), 1);

    let mut roots = rustls::RootCertStore::empty();
    roots.add(own.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    for (alpn, version) in [(&b"h2"[..], "HTTP/2.0 true"), (b"http/1.1", "HTTP/1.1 true")] {
        let mut config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        let tcp = TcpStream::connect(address).await.unwrap();
        let name = rustls_pki_types::ServerName::try_from("localhost").unwrap();
        let tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
        let tls = TokioIo::new(tls);
        let empty = http_body_util::Empty::<Bytes>::new();
        let answer = if alpn == b"h2" {
            let executor = hyper_util::rt::TokioExecutor::new();
            let (mut send, connection) = hyper::client::conn::http2::handshake(executor, tls).await.unwrap();
            tasks.spawn(connection);
            send.send_request(Request::get("https://localhost/").body(empty).unwrap()).await.unwrap()
        } else {
            let (mut send, connection) = hyper::client::conn::http1::handshake(tls).await.unwrap();
            tasks.spawn(connection);
            send.send_request(Request::get("/").header(HOST, "localhost").body(empty).unwrap()).await.unwrap()
        };
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), version);
    }
    stop.cancel();
}

#[tokio::test]
async fn a_router_is_served_on_a_socket_that_only_its_owner_opens() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admin.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let socket = Socket::bind(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let router = axum::Router::new().route(
        "/peer",
        axum::routing::get(
            |axum::Extension(peer): axum::Extension<Peer>| async move { peer.local.to_string() },
        ),
    );
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let (server, stopping) = (Server::new(quick(), None), stop.clone());
    tasks.spawn(async move { server.serve(Door::Unix(socket), router, stopping).await });
    tasks.close();
    let mut stream = UnixStream::connect(&path).await.unwrap();
    stream.write_all(b"GET /peer HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n").await.unwrap();
    assert!(read_all(&mut stream).await.ends_with("true"));
    stop.cancel();
    tasks.wait().await;
    assert!(!path.exists());

    std::fs::write(&path, "precious").unwrap();
    assert!(Socket::bind(&path).is_err());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}
