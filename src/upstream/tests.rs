use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;

use super::*;

const SHORT: Duration = Duration::from_millis(200);
const LONG: Duration = Duration::from_secs(20);

/// An upstream that answers each connection with the given bytes, then closes it or holds it open.
async fn answering(answer: &'static str, close: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    TaskTracker::new().spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            TaskTracker::new().spawn(async move {
                read_head(&mut stream).await;
                stream.write_all(answer.as_bytes()).await.unwrap();
                if !close {
                    std::future::pending::<()>().await;
                }
            });
        }
    });
    address
}

async fn read_head(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).await.unwrap() == 0 {
            break;
        }
        bytes.push(byte[0]);
    }
    String::from_utf8(bytes).unwrap()
}

fn upstream(url: &str) -> Upstream {
    let settings = Settings { url: url.to_owned(), ..Settings::default() };
    Upstream::new(&settings, SHORT, Arc::new(Metrics::new())).unwrap()
}

fn request() -> Request<Bytes> {
    Request::patch("/api/v1/x?y=1").body(Bytes::from_static(b"{}")).unwrap()
}

async fn exchanged(answer: &'static str, close: bool, within: Duration) -> Result<Answer, Failure> {
    let address = answering(answer, close).await;
    upstream(&format!("http://{address}")).exchange("governed", request(), within, 16).await
}

#[tokio::test]
async fn an_answer_is_read_whole_and_freed_of_its_connection() {
    let answer = exchanged(
        "HTTP/1.1 409 Conflict\r\ncontent-length: 2\r\nconnection: x-hop\r\nx-hop: 1\r\nx-kept: 1\r\n\
         keep-alive: timeout=5\r\npatchwarden-change: forged\r\ncontent-encoding: gzip\r\n\r\n{}",
        false,
        LONG,
    )
    .await
    .unwrap();
    assert_eq!((answer.status.as_u16(), answer.body.as_ref()), (409, &b"{}"[..]));
    let mut names: Vec<_> = answer.headers.keys().map(http::HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["content-encoding", "content-length", "x-kept"]);
}

#[tokio::test]
async fn the_request_names_the_upstream_and_nothing_the_client_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let upstream = upstream(&format!("http://{address}/"));
    let mut request = request();
    *request.uri_mut() = Uri::from_static("http://evil.example:1/api/v1/x?y=1");
    request.headers_mut().insert(HOST, HeaderValue::from_static("evil.example"));
    let (head, answer) = tokio::join!(
        async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let head = read_head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
            head
        },
        upstream.exchange("governed", request, LONG, 16),
    );
    assert_eq!(answer.unwrap().status, 204);
    assert!(head.starts_with("PATCH /api/v1/x?y=1 HTTP/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("host: {address}\r\n")) && !head.contains("evil"), "{head}");
    assert!(head.contains("content-length: 2\r\n"), "{head}");
}

#[tokio::test]
async fn a_refused_connection_is_surely_not_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let result = upstream(&format!("http://{address}")).exchange("governed", request(), LONG, 16).await;
    assert!(matches!(&result, Err(Failure::NotSent(why)) if why.contains("refused")), "{result:?}");
}

#[tokio::test]
async fn a_read_whose_connection_breaks_off_is_asked_again_and_a_write_never() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = upstream(&format!("http://{}", listener.local_addr().unwrap()));
    let heads = Arc::new(std::sync::Mutex::new(Vec::new()));
    let noted = heads.clone();
    TaskTracker::new().spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let head = read_head(&mut stream).await;
            noted.lock().unwrap().push(head.split_once(' ').unwrap().0.to_owned());
            let reads = noted.lock().unwrap().iter().filter(|method| *method == "GET").count();
            if reads == 3 {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            }
        }
    });
    let write = upstream.exchange("governed", request(), LONG, 16).await;
    assert!(matches!(write, Err(Failure::Cut(_))), "{write:?}");
    let read = || Request::get("/api/v1/x").body(Bytes::new()).unwrap();
    assert_eq!(upstream.exchange("before", read(), LONG, 16).await.unwrap().status, 200);
    let given_up = upstream.exchange("before", read(), LONG, 16).await;
    assert!(matches!(given_up, Err(Failure::Cut(_))), "{given_up:?}");
    assert_eq!(*heads.lock().unwrap(), ["PATCH", "GET", "GET", "GET", "GET", "GET", "GET"]);
}

#[tokio::test]
async fn a_tls_handshake_that_hangs_is_surely_not_sent() {
    // Accepts in the kernel's queue and never answers the handshake.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let ca = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let ca_file = folder.path().join("ca.pem");
    std::fs::write(&ca_file, ca.cert.pem()).unwrap();
    let settings = Settings { url, ca_file: Some(ca_file), ..Settings::default() };
    for (connect, within) in [(SHORT, LONG), (LONG, SHORT)] {
        let upstream = Upstream::new(&settings, connect, Arc::new(Metrics::new())).unwrap();
        let result = upstream.exchange("governed", request(), within, 16).await;
        assert!(matches!(&result, Err(Failure::NotSent(_))), "{result:?}");
    }
}

#[tokio::test]
async fn silence_after_the_request_is_a_time_out() {
    assert_eq!(exchanged("", false, SHORT).await.unwrap_err(), Failure::TimedOut);
    let half = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n{";
    assert_eq!(exchanged(half, false, SHORT).await.unwrap_err(), Failure::TimedOut);
}

#[tokio::test]
async fn an_exchange_that_breaks_off_is_cut() {
    for answer in [
        "",
        "HTTP/1.1 200 OK\r\ncontent-le",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n{",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n",
        "nonsense\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    ] {
        let result = exchanged(answer, true, LONG).await;
        assert!(matches!(result, Err(Failure::Cut(_))), "{answer:?} {result:?}");
    }
}

#[tokio::test]
async fn an_answer_over_the_limit_is_not_read() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 17\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n11\r\n12345678901234567\r\n0\r\n\r\n",
    ] {
        assert_eq!(exchanged(answer, false, LONG).await.unwrap_err(), Failure::TooLarge);
    }
    let fits = "HTTP/1.1 200 OK\r\ncontent-length: 16\r\n\r\n1234567890123456";
    assert_eq!(exchanged(fits, false, LONG).await.unwrap().body.len(), 16);
}

#[tokio::test]
async fn a_location_at_the_upstream_becomes_relative() {
    let upstream = upstream("http://infisical:8080");
    for (location, local) in [
        ("http://infisical:8080/login?a=b#c", "/login?a=b#c"),
        ("HTTP://INFISICAL:8080", "/"),
        ("//infisical:8080/x", "/x"),
        ("http://infisical:8080//evil.example/x", "/.//evil.example/x"),
        ("/relative", "/relative"),
        ("relative", "relative"),
        ("http://infisical/x", "http://infisical/x"),
        ("https://infisical:8080/x", "https://infisical:8080/x"),
        (
            "https://elsewhere.example/x?u=http://infisical:8080/",
            "https://elsewhere.example/x?u=http://infisical:8080/",
        ),
        ("/x?u=http://infisical:8080/", "/x?u=http://infisical:8080/"),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert(LOCATION, HeaderValue::from_static(location));
        upstream.localize(&mut headers);
        assert_eq!(headers[LOCATION], local);
    }
}

#[tokio::test]
async fn a_redirect_of_the_probe_names_the_url_to_configure() {
    let address = answering(
        "HTTP/1.1 301 Moved\r\nlocation: https://eu.infisical.example/api/status\r\ncontent-length: 0\r\n\r\n",
        false,
    )
    .await;
    let error = upstream(&format!("http://{address}")).status_probe(LONG).await.unwrap_err();
    assert!(error.ends_with("set upstream.url = \"https://eu.infisical.example\""), "{error}");

    let address = answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", false).await;
    upstream(&format!("http://{address}")).status_probe(LONG).await.unwrap();
}

#[test]
fn a_url_is_scheme_host_and_port_and_the_error_says_so() {
    for (url, passes) in [
        ("http://infisical:8080", "infisical:8080"),
        ("https://Eu.Infisical.example/", "eu.infisical.example"),
        ("https://infisical.example:443", "infisical.example"),
        ("http://[::1]:80", "[::1]"),
        ("http://[::1]:8080", "[::1]:8080"),
    ] {
        assert_eq!(read_url(url).map(|url| parts_of(&url).unwrap().1.to_string()).unwrap(), passes);
    }
    for (url, says) in [
        ("", "is not set"),
        ("infisical:8080", "has no scheme"),
        ("ftp://infisical", "other than http and https"),
        ("http://", "cannot be read"),
        ("http://infisical:99999", "cannot be read"),
        ("http://infisical:8080/api", "has a path; `http://infisical:8080` would pass"),
        ("http://infisical/?a=hunter2", "query or fragment; `http://infisical` would pass"),
        ("http://me:hunter2@infisical", "holds a user name"),
    ] {
        let error = read_url(url).unwrap_err().to_string();
        assert!(error.starts_with("upstream.url ") && error.contains(says), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[test]
fn a_file_of_roots_that_holds_none_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty.pem");
    std::fs::write(&empty, "nothing").unwrap();
    for path in [empty, folder.path().join("absent.pem")] {
        let error = roots(Some(&path), false).unwrap_err().to_string();
        assert!(error.starts_with("upstream.ca_file ") && error.contains(".pem"), "{error}");
    }
    assert!(roots(None, false).unwrap().is_empty());
}
