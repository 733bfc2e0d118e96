//! What real clients send, byte for byte, and what becomes of it.
//!
//! The files of `clients/` are what curl 7.88, Python 3.11 (urllib, requests, httpx) and Node 20 (fetch, http, axios) put
//! on a socket, captured there; those of Terraform's provider and of the web page in a browser are written after their
//! HTTP libraries. All are for one identity and one token, so that nothing has to be filled in.

use serde_json::{Value, json};

use crate::support::client::{Answer, Connection};
use crate::support::gateway::Gateway;
use crate::support::upstream::{Seen, Upstream};
use crate::support::{IDENTITY, good_attach, jwt_auth_path};

macro_rules! sent {
    ($name:literal) => {
        include_bytes!(concat!("clients/", $name))
    };
}

/// All that may reach the upstream with a governed write, beside the client's address.
const CROSSES: [&str; 14] = [
    "host",
    "accept",
    "accept-encoding",
    "authorization",
    "content-length",
    "content-type",
    "cookie",
    "origin",
    "user-agent",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-infisical-org",
    "x-request-id",
];

async fn attached() -> (Upstream, Gateway) {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let gateway = Gateway::start(&upstream).await;
    (upstream, gateway)
}

async fn play(connection: &mut Connection, bytes: &[u8]) -> Answer {
    connection.send(bytes).await.unwrap();
    connection.read_answer().await.unwrap()
}

fn assert_governed(seen: &Seen, method: &str) {
    assert_eq!((seen.method.as_str(), seen.target.as_str()), (method, jwt_auth_path(IDENTITY).as_str()));
    assert_eq!(seen.all("authorization"), ["Bearer TOKEN"]);
    for (name, value) in &seen.headers {
        assert!(CROSSES.contains(&name.to_ascii_lowercase().as_str()), "{name}: {value} crossed");
    }
    if method != "DELETE" {
        assert_eq!(seen.all("content-type"), ["application/json"]);
        let canonical = serde_json::to_string(&seen.json()).unwrap();
        assert_eq!(String::from_utf8_lossy(&seen.body), canonical, "sorted and without blanks");
    }
}

#[tokio::test]
async fn a_change_from_any_client_is_the_same_change() {
    let clients: [(&str, &[u8]); 8] = [
        ("curl", sent!("curl.http")),
        ("curl that offers HTTP/2", sent!("curl-offers-http2.http")),
        ("urllib", sent!("python-urllib.http")),
        ("requests", sent!("python-requests.http")),
        ("httpx", sent!("python-httpx.http")),
        ("fetch", sent!("node-fetch.http")),
        ("Node's http, chunked", sent!("node-http-chunked.http")),
        ("axios", sent!("node-axios.http")),
    ];
    for (name, bytes) in clients {
        let (upstream, gateway) = attached().await;
        let answer = play(&mut Connection::open(gateway.addr()).await, bytes).await;
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
        assert_eq!(answer.get("patchwarden-answered-by"), Some("upstream"));
        assert_eq!(
            answer.json()["identityJwtAuth"]["accessTokenTTL"],
            1800,
            "{name}: the upstream's own answer"
        );
        let writes = upstream.writes();
        assert_eq!(writes.len(), 1, "{name}");
        assert_governed(&writes[0], "PATCH");
        let change = gateway.show("last");
        assert_eq!(
            (&change["outcome"], &change["after"]["accessTokenTTL"]),
            (&json!("applied"), &json!(1800))
        );
    }
}

#[tokio::test]
async fn curl_over_http2_is_understood_from_its_first_byte() {
    let (upstream, gateway) = attached().await;
    let mut connection = Connection::open(gateway.addr()).await;
    connection.send(sent!("curl-speaks-http2.bin")).await.unwrap();
    // The answer's DATA frame holds the JSON as it is.
    connection.read_until(b"\"accessTokenTTL\":1800").await.unwrap();
    assert_governed(&upstream.writes()[0], "PATCH");
    assert_eq!(gateway.show("last")["outcome"], "applied");
}

#[tokio::test]
async fn terraform_creates_reads_updates_and_destroys_over_one_connection() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(&upstream).await;
    let mut connection = Connection::open(gateway.addr()).await;
    let created = play(&mut connection, sent!("terraform-create.http")).await;
    assert_eq!(created.status, 200, "{}", created.text());
    let stored = upstream.state(IDENTITY).unwrap();
    assert_eq!(stored["boundAudiences"], "patchwarden-tests, other");
    assert_eq!(stored["boundClaims"]["team"], "a&b", "escaped as Go does, read as it is meant");
    assert!(upstream.writes()[0].json().get("identityId").is_none(), "unknown to the API");

    let read = play(&mut connection, sent!("terraform-read.http")).await;
    assert_eq!((read.status, &read.json()["identityJwtAuth"]["publicKeys"]), (200, &json!([""])));

    let updated = play(&mut connection, sent!("terraform-update.http")).await;
    assert_eq!(updated.status, 200, "{}", updated.text());
    assert_governed(&upstream.writes()[1], "PATCH");
    let change = gateway.show("last");
    assert_eq!(change["diff"][0]["path"], "/accessTokenTTL", "{}", change["diff"]);
    assert_eq!(change["diff"].as_array().map(Vec::len), Some(1), "`[\"\"]` is no key: {}", change["diff"]);

    let left_out = play(&mut connection, sent!("terraform-update-without-lifetimes.http")).await;
    assert_eq!(left_out.status, 200, "what it leaves out is kept: {}", left_out.text());
    assert_eq!(upstream.state(IDENTITY).unwrap()["accessTokenTTL"], 1800);

    let destroyed = play(&mut connection, sent!("terraform-delete.http")).await;
    assert_eq!(destroyed.status, 200, "{}", destroyed.text());
    assert_governed(upstream.writes().last().unwrap(), "DELETE");
    assert!(upstream.writes().last().unwrap().body.is_empty(), "its body is read and dropped");
    assert!(upstream.state(IDENTITY).is_none());
    let gone = play(&mut connection, sent!("terraform-read.http")).await;
    assert_eq!(gone.status, 400, "as the upstream says it: {}", gone.text());
}

#[tokio::test]
async fn terraform_reads_a_refusal_as_an_error_that_is_not_to_be_tried_again() {
    let (upstream, gateway) = attached().await;
    let mut connection = Connection::open(gateway.addr()).await;
    let refused = play(&mut connection, sent!("terraform-open.http")).await;
    // 429 and 5xx, and a connection that is dropped, are tried five times more.
    assert_eq!(refused.status, 403, "{}", refused.text());
    let body = refused.json();
    let message = body["message"].as_str().expect("a text");
    for part in ["accessTokenTrustedIps", "access_token_trusted_ips", "Nothing was changed."] {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert!(body["error"].is_string() && body["statusCode"] == 403 && body["reqId"].is_string(), "{body}");
    assert!(upstream.writes().is_empty());
    assert_eq!(
        play(&mut connection, sent!("terraform-update.http")).await.status,
        200,
        "the connection goes on"
    );
}

#[tokio::test]
async fn the_web_page_can_change_and_can_read_why_it_may_not() {
    let (upstream, gateway) = attached().await;
    let mut connection = Connection::open(gateway.addr()).await;
    let preflight = play(&mut connection, sent!("web-page-preflight.http")).await;
    assert!(matches!(preflight.status, 200 | 204), "{}", preflight.status);
    assert_eq!(preflight.get("patchwarden-change"), None, "the upstream's own");

    let changed = play(&mut connection, sent!("web-page.http")).await;
    assert_eq!(changed.status, 200, "{}", changed.text());
    let write = upstream.writes().pop().unwrap();
    assert_governed(&write, "PATCH");
    assert_eq!(write.all("cookie"), ["jid=SESSION; other=1"]);
    assert_eq!(write.all("origin"), ["https://secrets.example.com"]);
    assert!(write.get("referer").is_none() && write.get("sec-fetch-mode").is_none());
    assert_eq!(write.all("accept-encoding"), ["identity"], "or the answer could not be read for the record");

    let untouched = play(&mut connection, sent!("web-page-untouched-form.http")).await;
    assert_eq!(untouched.status, 403, "{}", untouched.text());
    let body = untouched.json();
    assert_eq!(untouched.get("access-control-allow-origin"), Some("https://secrets.example.com"));
    assert_eq!(untouched.get("access-control-allow-credentials"), Some("true"));
    assert!(body["message"].is_string(), "the page shows it: {body}");
    // The page maps over a list for the first, and draws `details` for the second.
    assert!(!["ValidationFailure", "PermissionDenied"].contains(&body["error"].as_str().unwrap()), "{body}");
    assert_eq!(upstream.writes().len(), 1);
}

#[tokio::test]
async fn a_body_of_the_wrong_shape_is_put_as_the_web_page_expects_it() {
    let (_upstream, gateway) = attached().await;
    let text = String::from_utf8(sent!("web-page.http").to_vec()).unwrap();
    let wrong = text.replace("\"accessTokenTTL\":1800", "\"accessTokenTTL\":-800");
    let answer = play(&mut Connection::open(gateway.addr()).await, wrong.as_bytes()).await;
    assert_eq!((answer.status, &answer.json()["error"]), (422, &json!("ValidationFailure")));
    let issues = answer.json()["message"].clone();
    assert_eq!(issues[0]["path"], json!(["accessTokenTTL"]), "{issues}");
    assert!(issues[0]["message"].is_string() && !matches!(issues, Value::String(_)), "{issues}");
}
