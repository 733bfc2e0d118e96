//! Every write of the catalogue leaves the entries its class promises, and only its canonical spelling is taken.

use serde_json::{Value, json};

use crate::outage::{Lock, store_of};
use crate::support::client;
use crate::support::gateway::{Gateway, change_of};
use crate::support::upstream::Upstream;
use crate::support::{IDENTITY, good_attach, good_patch};

struct Write {
    name: String,
    method: String,
    path: String,
    class: String,
}

/// The catalogue as it is compiled into the binary, its parameters filled in.
fn catalogue() -> Vec<Write> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/policies/catalogue.toml");
    let table: toml::Table = std::fs::read_to_string(file).unwrap().parse().unwrap();
    let writes = table.values().find_map(toml::Value::as_array).unwrap();
    let text = |write: &toml::Value, key: &str| write[key].as_str().unwrap().to_owned();
    writes
        .iter()
        .map(|write| Write {
            name: text(write, "name"),
            method: text(write, "method"),
            path: text(write, "path").split('/').map(filled).collect::<Vec<_>>().join("/"),
            class: text(write, "class"),
        })
        .collect()
}

fn filled(segment: &str) -> &str {
    match segment.starts_with('{') {
        true if segment.contains(":word") => "a-word",
        true => IDENTITY,
        false => segment,
    }
}

#[tokio::test]
async fn every_write_of_the_catalogue_leaves_its_entries() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(&upstream).await;
    let (mut governed, mut watched, mut open) = (0, 0, 0);
    for write in catalogue() {
        upstream.attach(IDENTITY, &good_attach());
        if write.name == "jwt-auth.attach" {
            assert_eq!(gateway.delete(&write.path).await.status, 200);
        }
        let body = match write.method.as_str() {
            "PATCH" => good_patch(&json!({"accessTokenTTL": 1800})),
            _ => good_attach(),
        };
        let body = (write.method != "DELETE").then_some(&body);
        upstream.clear();
        let answer = gateway.request(&write.method, &write.path, body).await;
        let forwarded = upstream.writes().len();
        assert_eq!(forwarded, 1, "{} {} {}", write.method, write.path, answer.text());
        if write.class == "open" {
            assert_eq!(answer.get("patchwarden-change"), None, "{}", write.name);
            open += 1;
            continue;
        }
        let change = gateway.show(&change_of(&answer));
        assert_eq!(change["operation"], write.name);
        assert_ne!(change["outcome"], "pending", "{change}");
        assert_ne!(change["log"]["outcome"], Value::Null);
        if write.class == "governed" { governed += 1 } else { watched += 1 }
    }
    assert_eq!(governed, 3);
    assert!(watched > 40 && open > 5, "{watched} watched, {open} open");
}

/// The path in spellings that the upstream, or some server like it, would read as the same.
fn twisted(path: &str) -> [String; 6] {
    let last = path.rfind('/').unwrap() + 1;
    [
        path.replacen("/api/v1/", "/api/v%31/", 1),
        format!("{path}/"),
        format!("{path};x"),
        path.replacen("/api/", "//api/", 1),
        path.replacen("/api/", "/API/", 1),
        format!("{}%{:02X}{}", &path[..last], path.as_bytes()[last], &path[last + 1..]),
    ]
}

fn raw(write: &Write, target: &str) -> String {
    let method = &write.method;
    format!(
        "{method} {target} HTTP/1.1\r\nhost: gw\r\nauthorization: Bearer tok\r\ncontent-length: 0\r\n\r\n"
    )
}

#[tokio::test]
async fn a_twisted_spelling_of_any_of_them_is_not_forwarded() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(&upstream).await;
    for write in catalogue().into_iter().filter(|write| write.class != "open") {
        for target in twisted(&write.path) {
            let answer = client::send(gateway.addr(), raw(&write, &target)).await;
            let code = answer.json()["code"].clone();
            assert_eq!((answer.status, &code), (400, &json!("route.not_canonical")), "{target}");
        }
    }
    assert!(upstream.writes().is_empty());
}

#[tokio::test]
async fn while_the_log_cannot_be_written_none_of_them_is_forwarded() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(&upstream).await;
    let _lock = Lock::take(&store_of(&gateway));
    for write in catalogue() {
        upstream.clear();
        upstream.attach(IDENTITY, &good_attach());
        let patch = good_patch(&json!({"accessTokenTTL": 1800}));
        let body = if write.method == "PATCH" { patch } else { good_attach() };
        let answer = gateway.request(&write.method, &write.path, Some(&body)).await;
        let forwarded = upstream.writes().len();
        if write.class == "open" {
            assert_eq!(forwarded, 1, "{}", write.name);
            continue;
        }
        assert_eq!(answer.json()["code"], "audit.unavailable", "{} {}", write.name, answer.text());
        for target in twisted(&write.path) {
            let answer = client::send(gateway.addr(), raw(&write, &target)).await;
            assert_eq!(answer.status, 400, "{target}");
        }
        assert!(upstream.writes().is_empty(), "{}", write.name);
    }
}

#[tokio::test]
async fn the_rules_warn_about_the_fields_that_a_sibling_shares() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(&upstream).await;
    let path = format!("/api/v1/auth/oidc-auth/identities/{IDENTITY}");
    let open = json!({
        "oidcDiscoveryUrl": "https://idp.example", "accessTokenTTL": 0,
        "accessTokenTrustedIps": [{"ipAddress": "0.0.0.0/0"}],
    });
    let bad = "{\"accessTokenTTL\":1e-400}".to_owned();
    for (body, expected) in [
        (open.to_string(), vec!["token-lifetime", "open-network"]),
        (bad, vec!["unreadable-field"]),
        ("{\"a\":1,\"a\":2}".to_owned(), vec!["unread-body"]),
        (json!({"accessTokenTTL": 60, "allowedNames": "x"}).to_string(), vec![]),
    ] {
        upstream.clear();
        let token = format!("Bearer {}", gateway.token);
        let head = format!(
            "PATCH {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\nContent-Type: application/json"
        );
        let raw = format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let answer = client::send(gateway.addr(), raw).await;
        assert_eq!(answer.get("patchwarden-answered-by"), Some("upstream"), "{}", answer.text());
        assert_eq!(upstream.writes()[0].body, body.as_bytes(), "what goes on is what came");
        let warnings = gateway.show(&change_of(&answer))["warnings"].clone();
        let mut rules: Vec<_> =
            warnings.as_array().unwrap().iter().map(|found| found["rule"].as_str().unwrap()).collect();
        rules.sort_unstable();
        let mut expected = expected;
        expected.sort_unstable();
        assert_eq!(rules, expected, "{body}");
        assert_eq!(answer.all("patchwarden-warning").len(), expected.len());
    }
}
