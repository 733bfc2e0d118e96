//! What is not governed crosses as it came, and only what must not cross stays behind.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::client::{Answer, Connection, raw_request, request, send};
use crate::support::gateway::Gateway;
use crate::support::upstream::{Act, Matcher, Seen, Upstream, websocket_accept};
use crate::support::{IDENTITY, good_attach, good_patch, jwt_auth_path};

const WEBSOCKET_KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// The headers the upstream believes to be the client's address, and those that stand for its certificate.
const CLAIMS: [&str; 15] = [
    "cf-connecting-ip",
    "cf-pseudo-ipv4",
    "x-client-ip",
    "x-envoy-external-address",
    "x-forwarded-for",
    "fastly-client-ip",
    "true-client-ip",
    "x-real-ip",
    "x-cluser-client-ip",
    "forwarded-for",
    "x-forwarded",
    "forwarded",
    "x-appengine-user-ip",
    "x-identity-tls-cert-auth-client-cert",
    "x-ssl-client-cert",
];

async fn started() -> (Upstream, Gateway) {
    let upstream = Upstream::start();
    let gateway = Gateway::start(&upstream).await;
    (upstream, gateway)
}

/// What arrived at `path`. The gateway's own look at the upstream's status may arrive at any time.
fn at(upstream: &Upstream, path: &str) -> Vec<Seen> {
    upstream.seen().into_iter().filter(|seen| seen.target.starts_with(path)).collect()
}

/// The one request that arrived at `path`.
fn one_at(upstream: &Upstream, path: &str) -> Seen {
    let mut seen = at(upstream, path);
    assert_eq!(seen.len(), 1, "{seen:?}");
    seen.remove(0)
}

fn owned(headers: &[(&str, &str)]) -> Vec<(String, String)> {
    headers.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn answering(status: u16, headers: &[(&str, &str)], body: &str) -> Act {
    Act::Answer { status, headers: owned(headers), body: body.as_bytes().to_vec() }
}

/// Lower-case names in a fixed order.
fn sorted(answer: &Answer) -> Vec<(String, String)> {
    let lower = answer.headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone()));
    let mut headers: Vec<_> = lower.collect();
    headers.sort();
    headers
}

fn code(answer: &Answer) -> (u16, Value) {
    (answer.status, answer.json()["code"].clone())
}

#[tokio::test]
async fn a_get_crosses_and_its_answer_comes_back_unchanged() {
    let (upstream, gateway) = started().await;
    let headers = [
        ("content-type", "text/plain; charset=utf-16"),
        ("content-encoding", "br"),
        ("set-cookie", "a=1; HttpOnly"),
        ("set-cookie", "b=2; Secure"),
        ("x-ratelimit-remaining", "59"),
        ("cache-control", "private, max-age=0"),
        ("date", "Mon, 23 Nov 2026 06:20:01 GMT"),
        ("vary", "Origin"),
    ];
    upstream.always(Matcher::method("GET").path("/api/v3/secrets"), answering(418, &headers, "\0not text\n"));
    let target = "/api/v3/secrets/raw/A%2fB%20c?environment=dev&x=%zz&empty=&a=1&a=2";
    let sent = [
        ("Authorization", "Bearer opaque"),
        ("X-Infisical-Org", "acme"),
        ("Accept-Encoding", "gzip, br"),
        ("If-Match", "\"x\""),
        ("Cookie", "one=1; two=2"),
        ("X-Odd", "  kept as is "),
    ];
    let through = request(gateway.addr(), "GET", target, &sent, None).await;
    let seen = one_at(&upstream, "/api/v3/");
    let direct = request(upstream.addr(), "GET", target, &sent, None).await;
    assert_eq!((through.status, &through.body), (418, &direct.body));
    assert_eq!(sorted(&through), sorted(&direct));
    assert_eq!((seen.method.as_str(), seen.target.as_str(), seen.body.len()), ("GET", target, 0));
    for (name, value) in sent {
        assert_eq!(seen.all(name), [value.trim()], "{name}");
    }
    assert!(gateway.history(&[])["changes"].as_array().unwrap().is_empty());
}

#[tokio::test]
async fn host_becomes_the_upstreams_and_the_clients_is_told_apart() {
    let (upstream, gateway) = started().await;
    let headers = [
        ("Host", "gateway.example:8443"),
        ("X-Forwarded-Host", "evil.example"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Port", "443"),
    ];
    request(gateway.addr(), "GET", "/api/v1/echo", &headers, None).await;
    let seen = one_at(&upstream, "/api/v1/echo");
    assert_eq!(seen.all("host"), [upstream.addr().to_string()]);
    assert_eq!(seen.all("x-forwarded-host"), ["gateway.example:8443"]);
    assert_eq!(seen.all("x-forwarded-proto"), ["http"]);
    assert!(seen.all("x-forwarded-port").is_empty());
}

#[tokio::test]
async fn what_is_ours_never_crosses_in_either_direction() {
    let (upstream, gateway) = started().await;
    let forged = [("patchwarden-change", "forged"), ("Patchwarden-Warning", "forged"), ("x-kept", "1")];
    upstream.always("GET", answering(200, &forged, "{}"));
    let answer = request(gateway.addr(), "GET", "/api/v1/echo", &forged, None).await;
    let seen = one_at(&upstream, "/api/v1/echo");
    for (whose, headers) in [("the client's", &seen.headers), ("the upstream's", &answer.headers)] {
        let ours = |(name, _): &&(String, String)| name.to_ascii_lowercase().starts_with("patchwarden-");
        assert_eq!(headers.iter().find(ours), None, "{whose}");
        assert!(headers.iter().any(|(name, _)| name == "x-kept"), "{whose}");
    }
}

#[tokio::test]
async fn no_claim_of_an_address_or_certificate_crosses() {
    let (upstream, mut gateway) = started().await;
    let mut headers: Vec<_> = CLAIMS.iter().map(|name| (*name, "203.0.113.66")).collect();
    headers.push(("X-Forwarded-For", "203.0.113.67, 203.0.113.68"));
    request(gateway.addr(), "GET", "/api/v1/echo", &headers, None).await;
    let seen = one_at(&upstream, "/api/v1/echo");
    for name in CLAIMS {
        let told: &[&str] = if name == "x-forwarded-for" { &["127.0.0.1"] } else { &[] };
        assert_eq!(seen.all(name), told, "{name}");
    }
    assert!(!String::from_utf8_lossy(&seen.raw_head).contains("203.0.113."));
    gateway.wait_for_event("client_identity_dropped").await;
}

#[tokio::test]
async fn behind_trusted_proxies_the_right_most_untrusted_address_is_told() {
    let upstream = Upstream::start();
    let config = "[client_address]\ntrusted_proxies = [\"127.0.0.1\", \"10.0.0.0/8\"]\n";
    let gateway = Gateway::before(&upstream.url()).config(config).start().await;
    for (n, (lines, told)) in [
        (vec!["203.0.113.7"], "203.0.113.7"),
        (vec!["198.51.100.1, 203.0.113.7, 10.1.2.3"], "203.0.113.7"),
        (vec!["198.51.100.1", "203.0.113.7", "10.1.2.3"], "203.0.113.7"),
        (vec!["203.0.113.7, unknown"], "127.0.0.1"),
        (vec!["2001:db8::7"], "2001:db8::7"),
        (vec![], "127.0.0.1"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut headers: Vec<_> = lines.iter().map(|line| ("X-Forwarded-For", *line)).collect();
        headers.extend([("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", "secrets.example")]);
        headers.push(("X-Real-Ip", "198.51.100.99"));
        let path = format!("/api/v1/echo/{n}");
        request(gateway.addr(), "GET", &path, &headers, None).await;
        let seen = one_at(&upstream, &path);
        assert_eq!(seen.all("x-forwarded-for"), [told], "{lines:?}");
        assert_eq!(seen.all("x-forwarded-proto"), ["https"]);
        assert_eq!(seen.all("x-forwarded-host"), ["secrets.example"]);
        assert!(seen.all("x-real-ip").is_empty());
    }
}

#[tokio::test]
async fn headers_of_the_connection_stay_on_it_but_it_cannot_take_away_what_counts() {
    let (upstream, gateway) = started().await;
    let back = [
        ("connection", "keep-alive, x-of-this-hop, set-cookie, content-type"),
        ("keep-alive", "timeout=5"),
        ("x-of-this-hop", "1"),
        ("proxy-authenticate", "Basic"),
        ("content-type", "text/plain"),
        ("x-kept", "1"),
    ];
    upstream.always("POST", answering(200, &back, "fine"));
    let named = "keep-alive, X-Of-This-Hop, authorization, content-type, content-encoding, x-forwarded-for";
    let headers = [
        ("Connection", named),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Connection", "keep-alive"),
        ("Proxy-Authorization", "Basic eDp5"),
        ("TE", "deflate"),
        ("X-Of-This-Hop", "1"),
        ("Authorization", "Bearer opaque"),
        ("Content-Encoding", "identity"),
        ("X-Kept", "1"),
    ];
    let answer = request(gateway.addr(), "POST", "/api/v1/echo", &headers, Some(&json!({"a": 1}))).await;
    let seen = one_at(&upstream, "/api/v1/echo");
    for name in ["keep-alive", "proxy-connection", "proxy-authorization", "te", "x-of-this-hop"] {
        assert_eq!(seen.get(name), None, "{name}");
    }
    assert!(!seen.all("connection").iter().any(|value| value.contains("hop")), "{:?}", seen.headers);
    assert_eq!(seen.get("authorization"), Some("Bearer opaque"));
    assert_eq!(seen.get("content-type"), Some("application/json"));
    assert_eq!(seen.get("content-encoding"), Some("identity"));
    assert_eq!(seen.get("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!((seen.get("x-kept"), seen.json()), (Some("1"), json!({"a": 1})));

    for name in ["keep-alive", "x-of-this-hop", "proxy-authenticate"] {
        assert_eq!(answer.get(name), None, "{name}");
    }
    assert_eq!((answer.status, answer.text().as_str()), (200, "fine"));
    assert_eq!((answer.get("content-type"), answer.get("x-kept")), (Some("text/plain"), Some("1")));
}

#[tokio::test]
async fn a_chunked_upload_is_streamed_and_arrives_whole() {
    let (upstream, gateway) = started().await;
    upstream.wait_for_seen(1).await;
    let heads = upstream.heads();
    let chunk = [b"100000\r\n".to_vec(), vec![b'x'; 1 << 20], b"\r\n".to_vec()].concat();
    let mut connection = Connection::open(gateway.addr()).await;
    let head = b"POST /count HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    connection.send([head, chunk.clone()].concat()).await.unwrap();
    let since = Instant::now();
    while upstream.heads() == heads {
        assert!(since.elapsed() < Duration::from_secs(15), "the upload waits for its end");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for _ in 0..5 {
        connection.send(&chunk).await.unwrap();
    }
    connection.send("3\r\nend\r\n0\r\n\r\n").await.unwrap();
    let answer = connection.read_answer().await.unwrap();
    assert_eq!((answer.status, answer.json()), (200, json!({"bytes": (6 << 20) + 3})));
    assert_eq!(one_at(&upstream, "/count").get("content-length"), None);

    // The connection is still good, also for a body of known length.
    let body = "y".repeat(100_000);
    let head = format!("POST /count HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    connection.send(head + &body).await.unwrap();
    assert_eq!(connection.read_answer().await.unwrap().json(), json!({"bytes": 100_000}));
    assert_eq!(at(&upstream, "/count")[1].get("content-length"), Some("100000"));
}

#[tokio::test]
async fn server_sent_events_arrive_one_by_one() {
    let (_upstream, gateway) = started().await;
    let mut connection = Connection::open(gateway.addr()).await;
    connection.send("GET /sse?events=30 HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert_eq!(connection.read_head().await.unwrap().get("content-type"), Some("text/event-stream"));
    let mut arrived = Vec::new();
    for event in 0..30 {
        connection.read_until(format!("data: {event}\n\n").as_bytes()).await.unwrap();
        arrived.push(Instant::now());
    }
    connection.read_until(b"0\r\n\r\n").await.unwrap();
    // 29 pauses of 50 ms lie between the first and the last; held back, they would come together.
    let spread = arrived[29] - arrived[0];
    assert!(spread > Duration::from_millis(700), "{spread:?}");
    assert!(arrived[0].elapsed() > Duration::from_millis(700));
}

fn websocket_offer(gateway: &Gateway) -> Vec<u8> {
    let headers = [
        ("Connection", "keep-alive, Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", WEBSOCKET_KEY),
    ];
    raw_request(gateway.addr(), "GET", "/ws", &headers, None)
}

#[tokio::test]
async fn a_websocket_is_a_tunnel_in_both_directions() {
    let (upstream, gateway) = started().await;
    let mut connection = Connection::open(gateway.addr()).await;
    connection.send(websocket_offer(&gateway)).await.unwrap();
    let answer = connection.read_head().await.unwrap();
    assert_eq!(answer.status, 101);
    assert_eq!(answer.get("sec-websocket-accept"), Some(websocket_accept(WEBSOCKET_KEY).as_str()));
    assert!(answer.get("upgrade").is_some_and(|value| value.eq_ignore_ascii_case("websocket")));
    assert!(answer.get("connection").is_some_and(|value| value.eq_ignore_ascii_case("upgrade")));
    for frame in [&b"\x81\x05hello"[..], b"\x00\xff\r\n\r\nGET / HTTP/1.1\r\n\r\n", &[7; 100_000]] {
        connection.send(frame).await.unwrap();
        assert_eq!(connection.read_raw(frame.len()).await.unwrap(), frame);
    }
    let seen = one_at(&upstream, "/ws");
    assert_eq!(seen.all("sec-websocket-key"), [WEBSOCKET_KEY]);
    assert_eq!(seen.all("x-forwarded-for"), ["127.0.0.1"]);
    upstream.stop().await;
    assert!(connection.read_to_close().await.is_empty());
}

#[tokio::test]
async fn a_101_that_does_not_prove_itself_opens_no_tunnel() {
    let (upstream, gateway) = started().await;
    upstream.script(Matcher::any().path("/ws"), Act::WrongWebsocketAccept);
    let mut connection = Connection::open(gateway.addr()).await;
    connection.send(websocket_offer(&gateway)).await.unwrap();
    let answer = connection.read_answer().await.unwrap();
    assert_eq!(code(&answer), (502, json!("upstream.broken")));
    // What follows is a request to the gateway, or nothing: never bytes for the upstream.
    connection.send("GET /api/v1/after HTTP/1.1\r\nHost: x\r\n\r\n").await.ok();
    if let Ok(answer) = connection.read_answer().await {
        assert_ne!(answer.status, 101);
        assert!(at(&upstream, "/api/v1/after")[0].get("x-forwarded-for").is_some());
    }
}

#[tokio::test]
async fn any_other_upgrade_is_not_offered_to_the_upstream() {
    let (upstream, gateway) = started().await;
    for (n, upgrade) in ["h2c", "websocket, h2c", "TLS/1.0"].into_iter().enumerate() {
        let headers = [
            ("Connection", "Upgrade, HTTP2-Settings"),
            ("Upgrade", upgrade),
            ("HTTP2-Settings", "AAMAAABkAARAAAAAAAIAAAAA"),
            ("Sec-WebSocket-Key", WEBSOCKET_KEY),
        ];
        let path = format!("/api/v1/echo/{n}");
        let answer = request(gateway.addr(), "GET", &path, &headers, None).await;
        assert!(answer.status >= 200, "{upgrade}");
        let seen = one_at(&upstream, &path);
        for name in ["upgrade", "http2-settings", "connection"] {
            assert_eq!(seen.get(name), None, "{upgrade}: {name}");
        }
    }
}

#[tokio::test]
async fn a_login_passes_untouched_and_is_not_recorded() {
    let (upstream, gateway) = started().await;
    let path = "/api/v1/auth/jwt-auth/login";
    let granted = [("content-type", "application/json; charset=utf-8"), ("x-request-id", "abc")];
    let token = r#"{"accessToken":"a.b.c", "expiresIn":3600}"#;
    upstream.script("POST", answering(200, &granted, token));
    let body = " {\"jwt\" : \"e30.e30.sig\", \"identityId\":\"x\", \"jwt\":2}\n";
    let raw = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json; charset=latin-1\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = send(gateway.addr(), raw).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, token));
    assert_eq!(answer.get("x-request-id"), Some("abc"));
    assert_eq!(answer.get("patchwarden-change"), None);
    let seen = one_at(&upstream, path);
    assert_eq!(String::from_utf8_lossy(&seen.body), body);
    assert_eq!(seen.get("content-type"), Some("application/json; charset=latin-1"));
    assert_eq!(seen.get("authorization"), None);
    assert!(gateway.history(&[])["changes"].as_array().unwrap().is_empty());
}

#[tokio::test]
async fn head_and_options_pass_also_on_a_governed_route() {
    let (upstream, gateway) = started().await;
    upstream.attach(IDENTITY, &good_attach());
    let path = jwt_auth_path(IDENTITY);
    let head = gateway.request("HEAD", &path, None).await;
    let get = gateway.get(&path).await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.get("content-length"), Some(get.body.len().to_string().as_str()));
    assert_eq!(head.get("etag"), get.get("etag"));

    let cors = [("access-control-allow-origin", "https://app.example"), ("vary", "Origin")];
    upstream.script("OPTIONS", answering(204, &cors, ""));
    let headers = [("Origin", "https://app.example"), ("Access-Control-Request-Method", "PATCH")];
    let options = request(gateway.addr(), "OPTIONS", &path, &headers, None).await;
    assert_eq!(options.status, 204);
    assert_eq!(options.get("access-control-allow-origin"), Some("https://app.example"));
    assert_eq!(options.get("patchwarden-change"), None);
    let methods: Vec<_> = at(&upstream, &path).into_iter().map(|seen| seen.method).collect();
    assert_eq!(methods, ["HEAD", "GET", "OPTIONS"]);
    assert!(gateway.history(&[])["changes"].as_array().unwrap().is_empty());
}

#[tokio::test]
async fn a_known_etag_gets_a_304() {
    let (upstream, gateway) = started().await;
    upstream.attach(IDENTITY, &good_attach());
    let path = jwt_auth_path(IDENTITY);
    let etag = gateway.get(&path).await.get("etag").expect("an etag").to_owned();
    let again = gateway.request_with("GET", &path, &[("If-None-Match", &etag)], None).await;
    assert_eq!((again.status, again.body.len()), (304, 0));
    let other = gateway.request_with("GET", &path, &[("If-None-Match", "\"other\"")], None).await;
    assert_eq!(other.status, 200);
}

#[tokio::test]
async fn a_redirect_to_the_upstream_stays_with_the_gateway() {
    let (upstream, gateway) = started().await;
    let foreign = "https://login.example/authorize?redirect=http://x";
    for (n, (location, told)) in [
        (format!("{}/login?next=%2Fa#b", upstream.url()), "/login?next=%2Fa#b"),
        (foreign.to_owned(), foreign),
        ("/login".to_owned(), "/login"),
    ]
    .into_iter()
    .enumerate()
    {
        let path = format!("/api/v1/sso/{n}");
        upstream.script(Matcher::any().path(&path), answering(302, &[("location", &location)], ""));
        let answer = gateway.get(&path).await;
        assert_eq!((answer.status, answer.get("location")), (302, Some(told)), "{location}");
    }
}

#[tokio::test]
async fn an_upstream_that_is_down_is_a_502_until_it_is_back() {
    let (mut upstream, gateway) = started().await;
    assert_eq!(gateway.get("/api/status").await.status, 200);
    upstream.stop().await;
    for (method, body) in [("GET", None), ("POST", Some(json!({"a": 1})))] {
        let answer = gateway.request(method, "/api/v1/echo", body.as_ref()).await;
        assert_eq!(code(&answer), (502, json!("upstream.unreachable")), "{}", answer.text());
        let problem = answer.json();
        assert_eq!((&problem["statusCode"], &problem["error"]), (&json!(502), &json!("GatewayError")));
        assert_eq!(answer.get("patchwarden-change"), None);
        assert_eq!(answer.get("patchwarden-answered-by"), Some("gateway"));
        assert_eq!(answer.get("content-type"), Some("application/problem+json"));
    }
    upstream.restart_on_same_port().await;
    assert_eq!(gateway.get("/api/status").await.status, 200);
    assert!(gateway.history(&[])["changes"].as_array().unwrap().is_empty());
}

#[tokio::test]
async fn passing_through_goes_on_while_the_log_cannot_be_written() {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let folder = TempDir::new().unwrap();
    let mut first = Gateway::before(&upstream.url()).folder(folder.path()).start().await;
    assert_eq!(first.patch(&jwt_auth_path(IDENTITY), &good_patch(&json!({}))).await.status, 200);
    // The store's lock is the first one's, so the second cannot write.
    let second = Gateway::before(&upstream.url()).folder(folder.path()).start().await;
    upstream.clear();
    assert_eq!(second.get(&jwt_auth_path(IDENTITY)).await.status, 200);
    let counted = second.post("/count", &json!({"a": 1})).await;
    assert_eq!((counted.status, counted.json()), (200, json!({"bytes": 7})));
    let login = second.post("/api/v1/auth/jwt-auth/login", &json!({})).await;
    assert_eq!(login.get("patchwarden-answered-by"), None, "{}", login.text());
    let change = good_patch(&json!({"accessTokenTTL": 1800}));
    let refused = second.patch(&jwt_auth_path(IDENTITY), &change).await;
    assert_eq!(code(&refused), (503, json!("audit.unavailable")), "{}", refused.text());
    assert!(refused.get("retry-after").is_some());
    assert!(upstream.writes().iter().all(|write| write.method != "PATCH"));

    let ready = second.admin_get("/readyz", None).await;
    assert_eq!((ready.status, &ready.json()["status"]), (200, &json!("degraded")));
    assert_eq!(ready.json()["problems"][0]["part"], "audit");
    assert_eq!(ready.json()["problems"][0]["detail"], Value::Null, "details need a token");
    assert_eq!(second.admin_get("/readyz?require=audit", None).await.status, 503);

    assert!(first.terminate().await.success());
    let since = Instant::now();
    while second.admin_get("/readyz?require=audit", None).await.status != 200 {
        assert!(since.elapsed() < Duration::from_secs(30), "the second never takes over");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(second.patch(&jwt_auth_path(IDENTITY), &change).await.status, 200);
}
