//! The two ports and what guards them: TLS, probes, metrics, tokens, the history; and how they close.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::client::{Answer, raw_request, request, send};
use crate::support::gateway::{Gateway, change_of};
use crate::support::upstream::{Act, Upstream};
use crate::support::{IDENTITY, STRANGER, good_attach, good_patch, jwt_auth_path};
use crate::tls::written;

async fn attached() -> (Upstream, Gateway) {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let gateway = Gateway::start(&upstream).await;
    (upstream, gateway)
}

async fn set_ttl(gateway: &Gateway, seconds: u64) -> Answer {
    gateway.patch(&jwt_auth_path(IDENTITY), &good_patch(&json!({"accessTokenTTL": seconds}))).await
}

/// A request to the admin port with a token.
async fn admin(gateway: &Gateway, token: &str, method: &str, path: &str, body: Option<&Value>) -> Answer {
    let authorization = format!("Bearer {token}");
    request(gateway.admin_addr(), method, path, &[("Authorization", &authorization)], body).await
}

/// The ids of the changes on a page.
fn ids(page: &Value) -> Vec<String> {
    let changes = page["changes"].as_array().unwrap_or_else(|| panic!("no page: {page}"));
    changes.iter().map(|change| change["id"].as_str().unwrap().to_owned()).collect()
}

/// Waits until `/readyz` says `ready`: the log opens a moment after the ports do.
async fn ready(gateway: &Gateway) {
    let since = Instant::now();
    while gateway.admin_get("/readyz?require=audit", None).await.status != 200 {
        assert!(since.elapsed() < Duration::from_secs(30), "never ready");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn the_probes_need_no_token() {
    let (_upstream, gateway) = attached().await;
    ready(&gateway).await;
    assert_eq!(gateway.admin_get("/livez", None).await.status, 200);
    for path in ["/readyz", "/readyz?require=audit"] {
        let answer = gateway.admin_get(path, None).await;
        assert_eq!((answer.status, answer.json()), (200, json!({"status": "ready", "problems": []})));
        assert_eq!(answer.get("cache-control"), Some("no-store"));
    }
    let wrong = gateway.admin_get("/readyz?require=everything", None).await;
    assert_eq!(wrong.status, 400);
    assert!(wrong.json()["detail"].as_str().unwrap().contains("require=audit"));
}

#[tokio::test]
async fn the_admin_api_is_not_on_the_gateways_port() {
    let (upstream, gateway) = attached().await;
    let token = gateway.admin_token("operator");
    for path in ["/livez", "/readyz", "/metrics", "/v1/changes", "/v1/tokens"] {
        let authorization = format!("Bearer {token}");
        request(gateway.addr(), "GET", path, &[("Authorization", &authorization)], None).await;
        assert!(upstream.seen().iter().any(|seen| seen.target == path), "{path} is answered by the gateway");
    }
}

#[tokio::test]
async fn metrics_count_without_naming_anybody() {
    let (_upstream, gateway) = attached().await;
    assert_eq!(set_ttl(&gateway, 1800).await.status, 200);
    assert_eq!(set_ttl(&gateway, 0).await.status, 403);
    gateway.get(&jwt_auth_path(IDENTITY)).await;
    gateway.get(&jwt_auth_path(STRANGER)).await;
    assert_eq!(gateway.admin_get("/metrics", None).await.status, 401);
    let token = gateway.admin_token("reader");
    let answer = gateway.admin_get("/metrics", Some(&token)).await;
    assert_eq!(answer.status, 200);
    let text = answer.text();
    for series in ["patchwarden_requests_total{", "patchwarden_decisions_total{", "patchwarden_audit_up 1"] {
        assert!(text.contains(series), "{series} in {text}");
    }
    let decided = |decision: &str| {
        let line = text.lines().find(|line| {
            line.starts_with("patchwarden_decisions_total{") && line.contains(&format!("\"{decision}\""))
        });
        line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
    };
    assert_eq!((decided("allow"), decided("deny")), (Some(1), Some(1)), "{text}");
    for secret in [IDENTITY, STRANGER, "5f0d5a52", "ci-deployer", "127.0.0.1", &token] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}

#[tokio::test]
async fn open_metrics_are_open_and_nothing_else_is() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream.url()).config("[admin]\nopen_metrics = true\n").start().await;
    let answer = gateway.admin_get("/metrics", None).await;
    assert_eq!(answer.status, 200);
    assert!(answer.text().ends_with("# EOF\n"));
    assert_eq!(gateway.admin_get("/v1/changes", None).await.status, 401);
}

#[tokio::test]
async fn without_a_good_token_there_is_a_401_that_says_how_to_get_one() {
    let (_upstream, gateway) = attached().await;
    let id = change_of(&set_ttl(&gateway, 1800).await);
    let token = gateway.admin_token("reader");
    let (one, history) = (format!("/v1/changes/{id}"), format!("/v1/targets/{IDENTITY}/history"));
    for path in ["/v1/changes", one.as_str(), &history, "/v1/tokens", "/metrics", "/nowhere"] {
        let answer = gateway.admin_get(path, None).await;
        assert_eq!(answer.status, 401, "{path}");
        assert_eq!(answer.get("www-authenticate"), Some("Bearer"));
        assert_eq!(answer.get("content-type"), Some("application/problem+json"));
        assert!(answer.json()["detail"].as_str().unwrap().contains("patchwarden token create"));
    }
    let cut = &token[..token.len() - 1];
    for wrong in [cut, "", &gateway.token, &format!("{token}x")] {
        assert_eq!(gateway.admin_get("/v1/changes", Some(wrong)).await.status, 401, "{wrong}");
    }
    assert_eq!(gateway.admin_get(&one, Some(&token)).await.json(), gateway.show(&id));
    assert_eq!(gateway.admin_get("/nowhere", Some(&token)).await.status, 404);
}

#[tokio::test]
async fn changes_are_found_by_each_filter() {
    let (_upstream, gateway) = attached().await;
    let applied = change_of(&set_ttl(&gateway, 1800).await);
    let denied = change_of(&set_ttl(&gateway, 0).await);
    let absent = change_of(&gateway.delete(&jwt_auth_path(STRANGER)).await);
    let token = gateway.admin_token("reader");
    let (caller, target) = ("5f0d5a52-2b1c-4c55-8f7e-6f1b1d3e9c01", format!("target={IDENTITY}"));
    let by_caller = format!("caller={caller}");
    for (query, found) in [
        ("", vec![&absent, &denied, &applied]),
        (&target, vec![&denied, &applied]),
        ("decision=allow", vec![&applied]),
        ("decision=deny", vec![&denied]),
        ("decision=refuse", vec![&absent]),
        ("operation=jwt-auth.update", vec![&denied, &applied]),
        ("operation=jwt-auth.revoke", vec![&absent]),
        ("outcome=applied", vec![&applied]),
        ("outcome=none", vec![&absent, &denied]),
        ("outcome=unknown", vec![]),
        (&by_caller, vec![&absent, &denied, &applied]),
        ("caller=nobody", vec![]),
        ("rule=token-lifetime", vec![&denied]),
        ("rule=open-network", vec![]),
        ("since=1h", vec![&absent, &denied, &applied]),
        ("until=1h", vec![]),
        ("changed=/accessTokenTTL&outcome=applied", vec![&applied]),
        ("changed=%2FaccessTokenMaxTTL", vec![]),
        ("contains=ci-deploy&decision=allow", vec![&applied]),
        ("limit=1", vec![&absent]),
    ] {
        let answer = gateway.admin_get(&format!("/v1/changes?{query}"), Some(&token)).await;
        assert_eq!(answer.status, 200, "{query}: {}", answer.text());
        assert_eq!(ids(&answer.json()).iter().collect::<Vec<_>>(), found, "{query}");
    }
}

#[tokio::test]
async fn a_bad_parameter_is_a_400_that_names_it() {
    let (_upstream, gateway) = attached().await;
    let token = gateway.admin_token("reader");
    for (query, name) in [
        ("decision=maybe", "decision"),
        ("outcome=lost", "outcome"),
        ("target=somebody", "target"),
        ("since=yesterday", "since"),
        ("until=", "until"),
        ("contains=ab", "contains"),
        ("changed=accessTokenTTL", "changed"),
        ("would=allow", "would"),
        ("limit=0", "limit"),
        ("limit=many", "limit"),
        ("limit=1&limit=1", "limit"),
        ("cursor=nonsense", "cursor"),
        ("decison=deny", "decison"),
    ] {
        let answer = gateway.admin_get(&format!("/v1/changes?{query}"), Some(&token)).await;
        assert_eq!(answer.status, 400, "{query}: {}", answer.text());
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(&format!("`{name}`")), "{query}: {detail}");
    }
}

#[tokio::test]
async fn a_reader_reads_and_only_an_operator_manages_tokens() {
    let (_upstream, gateway) = attached().await;
    let (reader, operator) = (gateway.admin_token("reader"), gateway.admin_token("operator"));
    let wanted = json!({"name": "made-over-http", "role": "reader"});
    for (method, path, body) in [
        ("GET", "/v1/tokens", None),
        ("POST", "/v1/tokens", Some(&wanted)),
        ("DELETE", "/v1/tokens/anything", None),
    ] {
        let answer = admin(&gateway, &reader, method, path, body).await;
        assert_eq!(answer.status, 403, "{method} {path}");
        assert!(answer.json()["detail"].as_str().unwrap().contains("operator"));
    }
    let made = admin(&gateway, &operator, "POST", "/v1/tokens", Some(&wanted)).await;
    assert_eq!(made.status, 201, "{}", made.text());
    let secret = made.json()["token"].as_str().unwrap().to_owned();
    assert_eq!(gateway.admin_get("/v1/changes", Some(&secret)).await.status, 200);
    let again = admin(&gateway, &operator, "POST", "/v1/tokens", Some(&wanted)).await;
    assert_eq!(again.status, 409);
    let list = admin(&gateway, &operator, "GET", "/v1/tokens", None).await;
    assert_eq!(list.json()["tokens"].as_array().map(Vec::len), Some(3));
    for token in [&reader, &operator, &secret] {
        assert!(!list.text().contains(token.as_str()));
    }
    let gone = admin(&gateway, &operator, "DELETE", "/v1/tokens/made-over-http", None).await;
    assert_eq!(gone.status, 204);
    assert_eq!(gateway.admin_get("/v1/changes", Some(&secret)).await.status, 401);
    let gone = admin(&gateway, &operator, "DELETE", "/v1/tokens/made-over-http", None).await;
    assert_eq!(gone.status, 404);
}

#[tokio::test]
async fn a_revoked_token_opens_nothing_from_then_on() {
    let (_upstream, mut gateway) = attached().await;
    let token = gateway.cli_ok(&["token", "create", "--role", "operator", "--name", "leaver"]);
    let (token, kept) = (token.trim(), gateway.admin_token("reader"));
    // Asked twice, so that whatever is remembered of it is remembered.
    for _ in 0..2 {
        assert_eq!(gateway.admin_get("/v1/changes", Some(token)).await.status, 200);
    }
    gateway.cli_ok(&["token", "revoke", "leaver"]);
    assert_eq!(gateway.admin_get("/v1/changes", Some(token)).await.status, 401);
    assert_eq!(gateway.admin_get("/v1/changes", Some(&kept)).await.status, 200);
    assert_eq!(gateway.cli(&["token", "revoke", "leaver"]).status.code(), Some(1));
    assert_eq!(gateway.cli(&["token", "revoke", "nobody"]).status.code(), Some(1));
    gateway.restart().await;
    ready(&gateway).await;
    assert_eq!(gateway.admin_get("/v1/changes", Some(token)).await.status, 401);
    assert_eq!(gateway.admin_get("/v1/changes", Some(&kept)).await.status, 200);
}

#[tokio::test]
async fn a_token_is_made_beside_a_running_gateway_and_without_one() {
    let (_upstream, mut gateway) = attached().await;
    ready(&gateway).await;
    let create = ["token", "create", "--role", "reader", "--name"];
    let beside = gateway.cli_ok(&[&create[..], &["beside"]].concat());
    assert_eq!(beside.lines().count(), 1, "standard output holds the token alone");
    assert_eq!(gateway.admin_get("/v1/changes", Some(beside.trim())).await.status, 200);
    assert!(gateway.terminate().await.success());
    let alone = gateway.cli_ok(&[&create[..], &["alone"]].concat());
    let taken = gateway.cli(&[&create[..], &["beside"]].concat());
    assert_eq!(taken.status.code(), Some(3), "a name is used once");
    let list = gateway.cli_ok(&["token", "list"]);
    assert!(list.contains("beside") && list.contains("alone"), "{list}");
    assert!(!list.contains(beside.trim()) && !list.contains(alone.trim()), "{list}");
    gateway.restart().await;
    ready(&gateway).await;
    for token in [&beside, &alone] {
        assert_eq!(gateway.admin_get("/v1/changes", Some(token.trim())).await.status, 200);
    }
    assert!(!gateway.logs().iter().any(|line| line.contains(beside.trim()) || line.contains(alone.trim())));
}

#[tokio::test]
async fn the_token_file_of_the_configuration_is_an_operators() {
    let upstream = Upstream::start();
    let folder = TempDir::new().unwrap();
    let secret = "f0ab59a4c1d24c3f8f4a8c2d0e6b7a91f0ab59a4c1d24c3f8f4a8c2d0e6b7a91";
    let file = written(folder.path(), "admin-token", &format!("{secret}\n"));
    let config = format!("[admin]\ntoken_file = {file:?}\n");
    let gateway = Gateway::before(&upstream.url()).config(&config).start().await;
    ready(&gateway).await;
    assert_eq!(admin(&gateway, secret, "GET", "/v1/tokens", None).await.status, 200);
}

#[tokio::test]
async fn paging_to_the_end_loses_nothing_and_repeats_nothing() {
    let (_upstream, gateway) = attached().await;
    let mut made = Vec::new();
    for n in 0..120_u64 {
        // Applied and denied in turn.
        let seconds = if n % 2 == 0 { 600 + n } else { 0 };
        made.push(change_of(&set_ttl(&gateway, seconds).await));
    }
    let newest_first: Vec<_> = made.iter().rev().cloned().collect();
    let token = gateway.admin_token("reader");
    let odd: Vec<_> = newest_first.iter().step_by(2).cloned().collect();
    let history = format!("/v1/targets/{IDENTITY}/history?");
    for (path, limit, expected) in [
        ("/v1/changes?", 7, &newest_first),
        ("/v1/changes?", 120, &newest_first),
        ("/v1/changes?decision=deny&", 11, &odd),
        (history.as_str(), 50, &made),
    ] {
        let (mut found, mut cursor) = (Vec::new(), String::new());
        for page in 0.. {
            assert!(page < 200, "{path} has no end");
            let url = format!("{path}limit={limit}{cursor}");
            let answer = gateway.admin_get(&url, Some(&token)).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            let answer = answer.json();
            assert!(ids(&answer).len() <= limit, "{url}");
            found.extend(ids(&answer));
            if page == 2 && path == "/v1/changes?" {
                // What comes meanwhile is newer than all that is still to be read.
                set_ttl(&gateway, 0).await;
            }
            match answer["next_cursor"].as_str() {
                Some(next) => {
                    cursor = url::form_urlencoded::Serializer::new("&".to_owned())
                        .append_pair("cursor", next)
                        .finish();
                }
                None => break,
            }
        }
        assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), found.len(), "{path}: duplicates");
        let of_these: Vec<_> = found.into_iter().filter(|id| made.contains(id)).collect();
        assert_eq!(&of_these, expected, "{path} by {limit}");
    }
    let listed = ids(&gateway.history(&["--limit", "500"]));
    assert_eq!(listed.into_iter().filter(|id| made.contains(id)).collect::<Vec<_>>(), newest_first);
}

#[tokio::test]
async fn a_term_signal_lets_what_is_in_flight_end_and_be_recorded() {
    let (upstream, mut gateway) = attached().await;
    upstream.script("PATCH", Act::Stall(Duration::from_secs(2)));
    let authorization = format!("Bearer {}", gateway.token);
    let body = good_patch(&json!({"accessTokenTTL": 1800}));
    let headers = [("Authorization", authorization.as_str())];
    let raw = raw_request(gateway.addr(), "PATCH", &jwt_auth_path(IDENTITY), &headers, Some(&body));
    let addr = gateway.addr();
    let answer = tokio::spawn(async move { send(addr, raw).await });
    upstream.wait_for_writes(1).await;
    gateway.signal("TERM");
    let since = Instant::now();
    let stopping = loop {
        let ready = gateway.admin_get("/readyz", None).await;
        if ready.status == 503 {
            break ready.json();
        }
        assert!(since.elapsed() < Duration::from_secs(10), "never stopping");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(stopping["status"], "stopping");
    assert!(!answer.is_finished(), "the change is still in flight");
    let status = gateway.wait_for_exit().await;
    assert_eq!(status.code(), Some(0));
    let answer = answer.await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.get("patchwarden-record"), None);
    assert_eq!(gateway.events("stopped").len(), 1);
    let change = gateway.show(&change_of(&answer));
    assert_eq!((&change["outcome"], &change["upstream_status"]), (&json!("applied"), &json!(200)));
    assert_eq!(change["after"]["accessTokenTTL"], 1800);
    assert!(!gateway.data().join("admin.sock").exists(), "nobody is told to ask a gateway that is gone");
}

#[tokio::test]
async fn a_term_signal_ends_an_idle_gateway_with_open_connections_and_tunnels() {
    let (_upstream, mut gateway) = attached().await;
    let mut idle = crate::support::client::Connection::open(gateway.addr()).await;
    idle.send("GET /api/status HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert_eq!(idle.read_answer().await.unwrap().status, 200);
    let headers = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let mut tunnel = crate::support::client::Connection::open(gateway.addr()).await;
    tunnel.send(raw_request(gateway.addr(), "GET", "/ws", &headers, None)).await.unwrap();
    assert_eq!(tunnel.read_head().await.unwrap().status, 101);
    let since = Instant::now();
    assert_eq!(gateway.terminate().await.code(), Some(0));
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    assert!(idle.read_to_close().await.is_empty());
    assert!(tunnel.read_to_close().await.is_empty());
    assert_eq!(gateway.events("stopped").len(), 1);
}
