//! Every write of the catalogue leaves the entries its class promises, and only its canonical spelling is taken.

use serde_json::{Value, json};

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

#[tokio::test]
async fn a_twisted_spelling_of_any_of_them_is_not_forwarded() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(&upstream).await;
    for write in catalogue().into_iter().filter(|write| write.class != "open") {
        let twisted = write.path.replacen("/api/v1/", "/api/v%31/", 1);
        let raw = format!(
            "{} {twisted} HTTP/1.1\r\nhost: gw\r\nauthorization: Bearer tok\r\ncontent-length: 0\r\n\r\n",
            write.method
        );
        let answer = client::send(gateway.addr(), raw).await;
        assert_eq!(
            (answer.status, &answer.json()["code"]),
            (400, &json!("route.not_canonical")),
            "{twisted}"
        );
    }
    assert!(upstream.writes().is_empty());
}
