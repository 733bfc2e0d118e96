//! TLS on both sides: who is believed, who is not, and certificates that change while the gateway runs.

use std::path::Path;
use std::time::Duration;

use rustls::version::{TLS12, TLS13};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::support::certificates::{Authority, Issued};
use crate::support::client::{Answer, raw_request};
use crate::support::gateway::{Gateway, change_of};
use crate::support::upstream::Upstream;
use crate::support::{IDENTITY, eventually, good_attach, good_patch, jwt_auth_path};

const BOTH: &[&rustls::SupportedProtocolVersion] = &[&TLS12, &TLS13];

pub(crate) fn written(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

fn attached() -> Upstream {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    upstream
}

fn code(answer: &Answer) -> (u16, Value) {
    (answer.status, answer.json()["code"].clone())
}

async fn set_ttl(gateway: &Gateway, seconds: u64) -> Answer {
    gateway.patch(&jwt_auth_path(IDENTITY), &good_patch(&json!({"accessTokenTTL": seconds}))).await
}

async fn shaken(
    gateway: &Gateway,
    connector: &TlsConnector,
    name: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let socket = TcpStream::connect(gateway.addr()).await?;
    connector.connect(name.to_owned().try_into().unwrap(), socket).await
}

/// Whether the two do not come to talk. In TLS 1.3 a server says only after the handshake that it does not like what it
/// was shown, so a request is tried.
async fn is_turned_away(gateway: &Gateway, connector: &TlsConnector, name: &str) -> bool {
    let Ok(mut tls) = shaken(gateway, connector, name).await else { return true };
    let get =
        raw_request(gateway.addr(), "GET", "/turned-away", &[("Host", "g"), ("Connection", "close")], None);
    asked(&mut tls, &get).await.map_or(true, |answer| answer.is_empty())
}

/// What the other side answers until it closes.
async fn asked(tls: &mut TlsStream<TcpStream>, raw: &[u8]) -> std::io::Result<String> {
    tls.write_all(raw).await?;
    let mut answer = Vec::new();
    tls.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn lowered(gateway: &Gateway) -> Vec<u8> {
    let authorization = format!("Bearer {}", gateway.token);
    let headers = [("Host", "localhost"), ("Authorization", authorization.as_str()), ("Connection", "close")];
    let body = good_patch(&json!({"accessTokenTTL": 1800}));
    raw_request(gateway.addr(), "PATCH", &jwt_auth_path(IDENTITY), &headers, Some(&body))
}

#[tokio::test]
async fn the_gateways_port_speaks_tls_and_nothing_else() {
    let (upstream, authority, folder) = (attached(), Authority::new(), TempDir::new().unwrap());
    let files = authority.issue(&["localhost"]).write(folder.path(), "own", ["cert_file", "key_file"]);
    let gateway = Gateway::before(&upstream.url()).config(&format!("[tls]\n{files}")).start().await;
    for version in [&TLS12, &TLS13] {
        let connector = authority.connector(None, &[version], &["http/1.1"]);
        let mut tls = shaken(&gateway, &connector, "localhost").await.unwrap();
        let answer = asked(&mut tls, &lowered(&gateway)).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("\"accessTokenTTL\":1800"), "{answer}");
    }
    let both = authority.connector(None, BOTH, &["h2", "http/1.1"]);
    let tls = shaken(&gateway, &both, "localhost").await.unwrap();
    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let get = raw_request(
        gateway.addr(),
        "GET",
        "/api/v1/echo",
        &[("Host", "localhost"), ("Connection", "close")],
        None,
    );
    let connector = authority.connector(None, BOTH, &["http/1.1"]);
    asked(&mut shaken(&gateway, &connector, "localhost").await.unwrap(), &get).await.unwrap();
    let seen = upstream.seen();
    let passed = seen.iter().find(|seen| seen.target == "/api/v1/echo").expect("it passed");
    assert_eq!(passed.get("x-forwarded-proto"), Some("https"));
    assert_eq!(passed.get("x-forwarded-host"), Some("localhost"));

    let stranger = Authority::new().connector(None, BOTH, &[]);
    assert!(is_turned_away(&gateway, &stranger, "localhost").await, "another authority");
    assert!(is_turned_away(&gateway, &connector, "other.example").await, "another name");
    upstream.clear();
    let plain = crate::support::client::try_send(gateway.addr(), &get).await;
    assert!(plain.is_err(), "{plain:?}");
    assert!(!upstream.seen().iter().any(|seen| seen.target == "/api/v1/echo"));
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named_and_nothing_starts() {
    let (upstream, authority, folder) = (attached(), Authority::new(), TempDir::new().unwrap());
    let good = authority.issue(&["localhost"]);
    let other = authority.issue(&["localhost"]);
    let file = |name: &str, text: &str| written(folder.path(), name, text);
    let (cert, key) = (file("cert", &good.cert_pem), file("key", &good.key_pem));
    let (nothing, foreign) = (file("nothing", "no certificate"), file("foreign", &other.key_pem));
    for (section, cert_key, key_key) in
        [("tls", "cert_file", "key_file"), ("upstream", "client_cert_file", "client_key_file")]
    {
        for (cert, key, wrong) in
            [(&nothing, &key, cert_key), (&cert, &nothing, key_key), (&cert, &foreign, key_key)]
        {
            let config = format!("[{section}]\n{cert_key} = {cert:?}\n{key_key} = {key:?}\n");
            let (status, logs) = Gateway::before(&upstream.url()).config(&config).run_to_exit().await;
            assert_eq!(status.code(), Some(2), "{logs:?}");
            let named = format!("{section}.{wrong}");
            assert!(logs.iter().any(|line| line.contains(&named)), "{named}: {logs:?}");
        }
    }
}

#[tokio::test]
async fn a_new_certificate_is_taken_while_open_connections_go_on() {
    let (upstream, folder) = (attached(), TempDir::new().unwrap());
    let (old, new) = (Authority::new(), Authority::new());
    let files = old.issue(&["localhost"]).write(folder.path(), "own", ["cert_file", "key_file"]);
    let config = format!("[tls]\nreload = \"200ms\"\n{files}");
    let mut gateway = Gateway::before(&upstream.url()).config(&config).start().await;
    let (by_old, by_new) =
        (old.connector(None, BOTH, &["http/1.1"]), new.connector(None, BOTH, &["http/1.1"]));
    let mut open = shaken(&gateway, &by_old, "localhost").await.unwrap();
    assert!(is_turned_away(&gateway, &by_new, "localhost").await, "not yet");

    // Half of a renewal: the new key beside the old certificate.
    let renewed = new.issue(&["localhost"]);
    std::fs::write(folder.path().join("own.key"), &renewed.key_pem).unwrap();
    let failed = gateway.wait_for_event("tls_reload_failed").await;
    assert!(failed["detail"].as_str().unwrap().starts_with("tls.key_file"), "{failed}");
    assert!(!is_turned_away(&gateway, &by_old, "localhost").await, "what was right stays in use");
    let token = gateway.admin_token("reader");
    let metrics = gateway.admin_get("/metrics", Some(&token)).await.text();
    assert!(metrics.contains("patchwarden_tls_reload_failed 1"), "{metrics}");
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(gateway.events("tls_reload_failed").len(), 1, "the same problem is said once");

    std::fs::write(folder.path().join("own.crt"), &renewed.cert_pem).unwrap();
    gateway.wait_for_event("tls_reloaded").await;
    assert!(!is_turned_away(&gateway, &by_new, "localhost").await, "the new one");
    assert!(is_turned_away(&gateway, &by_old, "localhost").await, "no longer the old one");
    let metrics = gateway.admin_get("/metrics", Some(&token)).await.text();
    assert!(metrics.contains("patchwarden_tls_reload_failed 0"));
    let answer = asked(&mut open, &lowered(&gateway)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "an open connection goes on: {answer}");
}

/// A shorter interval of one must not keep the other from being looked at, and what is right on one port does not hide
/// what is wrong on the other.
#[tokio::test]
async fn policies_and_certificates_are_each_looked_at_and_each_told_of() {
    let (upstream, folder, authority) = (attached(), TempDir::new().unwrap(), Authority::new());
    let own = authority.issue(&["localhost"]).write(folder.path(), "own", ["cert_file", "key_file"]);
    let admin = authority.issue(&["localhost"]).write(folder.path(), "admin", ["cert_file", "key_file"]);
    let policies = folder.path().join("policies");
    std::fs::create_dir(&policies).unwrap();
    let config = format!(
        "[tls]\nreload = \"400ms\"\n{own}[admin]\n{admin}[policies]\nreload = \"100ms\"\ndir = {policies:?}\n"
    );
    let mut gateway = Gateway::before(&upstream.url()).config(&config).start().await;
    std::fs::write(folder.path().join("admin.key"), "no key").unwrap();
    gateway.wait_for_event("tls_reload_failed").await;
    authority.issue(&["localhost"]).write(folder.path(), "own", ["cert_file", "key_file"]);
    gateway.wait_for_event("tls_reloaded").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut socket = tokio::net::UnixStream::connect(gateway.data().join("admin.sock")).await.unwrap();
    let get = "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    socket.write_all(get.as_bytes()).await.unwrap();
    let mut metrics = String::new();
    socket.read_to_string(&mut metrics).await.unwrap();
    assert!(metrics.contains("patchwarden_tls_reload_failed 1"), "{metrics}");
    authority.issue(&["localhost"]).write(folder.path(), "admin", ["cert_file", "key_file"]);
    eventually(|| gateway.events("tls_reloaded").len() == 2).await;
}

#[tokio::test]
async fn a_hangup_signal_looks_at_the_files_at_once() {
    let (upstream, folder, authority) = (attached(), TempDir::new().unwrap(), Authority::new());
    let files = authority.issue(&["localhost"]).write(folder.path(), "own", ["cert_file", "key_file"]);
    let config = format!("[tls]\nreload = \"1h\"\n{files}");
    let mut gateway = Gateway::before(&upstream.url()).config(&config).start().await;
    authority.issue(&["localhost"]).write(folder.path(), "own", ["cert_file", "key_file"]);
    gateway.signal("HUP");
    gateway.wait_for_event("tls_reloaded").await;
    gateway.signal("HUP");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(gateway.events("tls_reloaded").len(), 1, "nothing changed");
}

#[tokio::test]
async fn a_client_certificate_is_asked_for_and_recorded() {
    let (upstream, folder) = (attached(), TempDir::new().unwrap());
    let (authority, clients) = (Authority::new(), Authority::new());
    let files = authority.issue(&["localhost"]).write(folder.path(), "own", ["cert_file", "key_file"]);
    let ca = written(folder.path(), "clients.pem", &clients.pem);
    let config = format!("[tls]\nclient_ca_file = {ca:?}\n{files}");
    let gateway = Gateway::before(&upstream.url()).config(&config).start().await;
    let show = |shown: Option<&Issued>| authority.connector(shown, BOTH, &["http/1.1"]);

    assert!(is_turned_away(&gateway, &show(None), "localhost").await, "no certificate");
    let stranger = Authority::new().issue_client("deployer");
    assert!(is_turned_away(&gateway, &show(Some(&stranger)), "localhost").await, "of another authority");
    let expired = clients.issue_expired(&["deployer"]);
    assert!(is_turned_away(&gateway, &show(Some(&expired)), "localhost").await, "expired");
    let heard = upstream.seen().iter().any(|seen| seen.target == "/turned-away");
    assert!(!heard, "none of them was heard");

    let right = clients.issue_client("deployer");
    let mut tls = shaken(&gateway, &show(Some(&right)), "localhost").await.unwrap();
    let answer = asked(&mut tls, &lowered(&gateway)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    eventually(|| gateway.show("last")["outcome"] == "applied").await;
    let certificate = gateway.show("last")["source"]["certificate"].clone();
    assert_eq!(certificate["subject"], "CN=deployer", "{certificate}");
    assert!(certificate["sha256"].as_str().unwrap().starts_with("sha256:"), "{certificate}");
    let found = gateway.history(&["--contains", "cn=deployer"]);
    assert_eq!(found["changes"].as_array().map(Vec::len), Some(1), "and it is found by it");
}

#[tokio::test]
async fn an_upstream_is_believed_by_its_authority_name_and_time() {
    let (authority, folder) = (Authority::new(), TempDir::new().unwrap());
    let ca = written(folder.path(), "ca.pem", &authority.pem);
    let stranger = Authority::new();
    for (what, certificate, believed) in [
        ("right", authority.issue(&["127.0.0.1"]), true),
        ("expired", authority.issue_expired(&["127.0.0.1"]), false),
        ("wrong host", authority.issue(&["other.example"]), false),
        ("untrusted", stranger.issue(&["127.0.0.1"]), false),
    ] {
        let upstream = Upstream::start_tls_with(certificate.acceptor(None));
        upstream.attach(IDENTITY, &good_attach());
        let config = format!("[upstream]\nca_file = {ca:?}\n");
        let gateway = Gateway::before(&upstream.url()).config(&config).start().await;
        let answer = set_ttl(&gateway, 1800).await;
        if believed {
            assert_eq!(answer.status, 200, "{}", answer.text());
            assert_eq!(gateway.show(&change_of(&answer))["outcome"], "applied");
            continue;
        }
        assert_eq!(code(&answer), (502, json!("before.unavailable")), "{what}: {}", answer.text());
        assert_eq!(code(&gateway.get("/api/status").await), (502, json!("upstream.unreachable")), "{what}");
        assert_eq!(upstream.state(IDENTITY).unwrap()["accessTokenTTL"], 3600);
        assert!(upstream.seen().is_empty(), "{what}: no request, so no credential, left the gateway");
    }
}

#[tokio::test]
async fn an_upstream_may_ask_for_a_certificate() {
    let (authority, gateways, folder) = (Authority::new(), Authority::new(), TempDir::new().unwrap());
    let ca = written(folder.path(), "ca.pem", &authority.pem);
    let keys = ["client_cert_file", "client_key_file"];
    let right = gateways.issue_client("patchwarden").write(folder.path(), "right", keys);
    let wrong = Authority::new().issue_client("patchwarden").write(folder.path(), "wrong", keys);
    for (shown, believed) in [(right.as_str(), true), (wrong.as_str(), false), ("", false)] {
        let upstream = Upstream::start_tls_with(authority.issue(&["127.0.0.1"]).acceptor(Some(&gateways)));
        upstream.attach(IDENTITY, &good_attach());
        let config = format!("[upstream]\nca_file = {ca:?}\n{shown}");
        let gateway = Gateway::before(&upstream.url()).config(&config).start().await;
        let answer = set_ttl(&gateway, 1800).await;
        assert_eq!(answer.status == 200, believed, "{shown}: {}", answer.text());
        assert_eq!(upstream.seen().is_empty(), !believed);
        if !believed {
            assert_eq!(answer.json()["code"], "before.unavailable", "{}", answer.text());
            assert_eq!(gateway.get("/api/status").await.status, 502);
        }
    }
}
