//! A day in the life of those who adopt it; `docs/stories.md` tells the same five stories.

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::client::{Answer, Connection};
use crate::support::gateway::{Gateway, change_of};
use crate::support::upstream::Upstream;
use crate::support::{IDENTITY, good_attach, good_patch, jwt_auth_path};

const EVERYBODY: &[u8] = include_bytes!("clients/terraform-open.http");
const FORM: &[u8] = include_bytes!("clients/web-page-untouched-form.http");

async fn play(gateway: &Gateway, bytes: &[u8]) -> Answer {
    let mut connection = Connection::open(gateway.addr()).await;
    connection.send(bytes).await.unwrap();
    connection.read_answer().await.unwrap()
}

/// The same request with another body.
fn with_body(bytes: &[u8], body: &Value) -> Vec<u8> {
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    let (head, _) = text.split_once("\r\n\r\n").unwrap();
    let body = body.to_string();
    let length = |line: &str| line.to_ascii_lowercase().starts_with("content-length:");
    let head: Vec<_> = head.split("\r\n").filter(|line| !length(line)).collect();
    format!("{}\r\nContent-Length: {}\r\n\r\n{body}", head.join("\r\n"), body.len()).into_bytes()
}

fn body_of(bytes: &[u8]) -> Value {
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap()
}

/// A JSON Patch of top-level members.
fn fixed(mut body: Value, patch: &Value) -> Value {
    for step in patch.as_array().unwrap() {
        let name = step["path"].as_str().unwrap().trim_start_matches('/');
        match step["op"].as_str().unwrap() {
            "remove" => drop(body.as_object_mut().unwrap().remove(name)),
            _ => body[name] = step["value"].clone(),
        }
    }
    body
}

/// As the web page makes an identity: open to everybody, for 30 days.
fn legacy() -> Value {
    let mut row = good_attach();
    row["accessTokenTrustedIps"] = json!([{"ipAddress": "0.0.0.0/0"}, {"ipAddress": "::/0"}]);
    row["accessTokenTTL"] = json!(2_592_000);
    row["accessTokenMaxTTL"] = json!(2_592_000);
    row
}

fn rules_of(answer: &Value, kind: &str) -> Vec<String> {
    let found = answer[kind].as_array().unwrap().iter();
    let mut rules: Vec<_> = found.map(|found| found["rule"].as_str().unwrap().to_owned()).collect();
    rules.dedup();
    rules
}

#[tokio::test]
async fn a_terraform_estate_is_refused_mended_and_applied() {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let gateway = Gateway::start(&upstream).await;
    let refused = play(&gateway, EVERYBODY).await;
    assert_eq!(refused.status, 403, "{}", refused.text());
    // The provider prints `message`; it names the argument that has to change.
    let problem = refused.json();
    let message = problem["message"].as_str().unwrap();
    assert!(message.contains("Terraform: access_token_trusted_ips"), "{message}");
    assert!(message.contains("Nothing was changed."), "{message}");
    let body = fixed(body_of(EVERYBODY), &problem["fix"]);
    let applied = play(&gateway, &with_body(EVERYBODY, &body)).await;
    assert_eq!(applied.status, 200, "{body}: {}", applied.text());
    let history = gateway.history(&["--target", IDENTITY])["changes"].clone();
    assert_eq!((&history[0]["outcome"], &history[1]["decision"]), (&json!("applied"), &json!("deny")));
    assert_eq!(history[1]["violations"][0]["rule"], "open-network");
    let ranges = upstream.state(IDENTITY).unwrap()["accessTokenTrustedIps"].clone();
    assert_eq!(ranges[0]["prefix"], 16, "what was stored stayed: {ranges}");
}

#[tokio::test]
async fn the_web_pages_form_sends_everything_back() {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &legacy());
    let strict = Gateway::start(&upstream).await;
    let refused = play(&strict, FORM).await;
    assert_eq!(refused.status, 403, "the form names what was stored: {}", refused.text());
    assert_eq!(rules_of(&refused.json(), "violations"), ["open-network", "token-lifetime"]);
    let tolerant =
        "[rules.open-network]\nexisting = \"tolerate\"\n[rules.token-lifetime]\nexisting = \"tolerate\"\n";
    let gateway = Gateway::before(&upstream.url()).config(tolerant).start().await;
    let mut form = body_of(FORM);
    form["boundSubject"] = json!("another");
    let passed = play(&gateway, &with_body(FORM, &form)).await;
    assert_eq!(passed.status, 200, "{}", passed.text());
    assert!(passed.all("patchwarden-warning").iter().any(|warning| warning.starts_with("open-network: ")));
    form["accessTokenMaxTTL"] = json!(0);
    form["accessTokenTTL"] = json!(0);
    let worse = play(&gateway, &with_body(FORM, &form)).await;
    assert_eq!(worse.status, 403, "{}", worse.text());
    assert_eq!(rules_of(&worse.json(), "violations"), ["token-lifetime"]);
}

#[tokio::test]
async fn a_leaked_key_is_rotated_on_an_identity_that_violates_three_rules() {
    let upstream = Upstream::start();
    let mut row = legacy();
    row["configurationType"] = json!("static");
    row["publicKeys"] = json!(["LEAKED"]);
    row["jwksUrl"] = json!("http://old.example/jwks");
    upstream.attach(IDENTITY, &row);
    let gateway = Gateway::start(&upstream).await;
    let rotated =
        json!({"configurationType": "static", "publicKeys": ["FRESH"], "jwksUrl": "http://old.example/jwks"});
    let change = gateway.patch(&jwt_auth_path(IDENTITY), &rotated).await;
    // The URL is named, so it is judged; the rest is forgiven because nobody touched it.
    assert_eq!(rules_of(&change.json(), "violations"), ["insecure-jwks"], "{}", change.text());
    let rotated = json!({"configurationType": "static", "publicKeys": ["FRESH"], "jwksUrl": ""});
    let change = gateway.patch(&jwt_auth_path(IDENTITY), &rotated).await;
    assert_eq!(change.status, 200, "{}", change.text());
    assert_eq!(upstream.state(IDENTITY).unwrap()["publicKeys"], json!(["FRESH"]));
    assert_eq!(rules_of(&gateway.show(&change_of(&change)), "warnings"), ["open-network", "token-lifetime"]);
    let text = gateway.cli_ok(&["show", "last"]);
    assert!(!text.contains("LEAKED") && !text.contains("FRESH"), "what is no public key is a secret: {text}");

    // Where everything that stands has to be mended, the answer says how; and a removal always passes.
    let deny = "[rules.open-network]\nexisting = \"deny\"\n[rules.token-lifetime]\nexisting = \"deny\"\n";
    let gateway = Gateway::before(&upstream.url()).config(deny).start().await;
    let again = json!({"configurationType": "static", "publicKeys": ["NEWER"]});
    let refused = gateway.patch(&jwt_auth_path(IDENTITY), &again).await;
    assert_eq!(refused.status, 403);
    assert_eq!(gateway.delete(&jwt_auth_path(IDENTITY)).await.status, 200);
    assert!(upstream.state(IDENTITY).is_none());
}

#[tokio::test]
async fn an_instance_whose_plan_has_no_ip_allow_listing() {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &legacy());
    let open =
        good_patch(&json!({"accessTokenTrustedIps": [{"ipAddress": "0.0.0.0/0"}], "accessTokenTTL": 3600,
        "accessTokenMaxTTL": 3600}));
    let gateway = Gateway::start(&upstream).await;
    let refused = gateway.patch(&jwt_auth_path(IDENTITY), &open).await;
    assert_eq!(refused.status, 403);
    assert!(refused.text().contains("set upstream.ip_allow_listing = false"), "{}", refused.text());
    let config = "[upstream]\nip_allow_listing = false\n";
    let gateway = Gateway::before(&upstream.url()).config(config).start().await;
    let passed = gateway.patch(&jwt_auth_path(IDENTITY), &open).await;
    assert_eq!(passed.status, 200, "{}", passed.text());
    assert!(passed.all("patchwarden-warning").iter().any(|warning| warning.starts_with("open-network: ")));
    let half = good_patch(&json!({"accessTokenTrustedIps": [{"ipAddress": "0.0.0.0/1"}]}));
    assert_eq!(gateway.patch(&jwt_auth_path(IDENTITY), &half).await.status, 403, "only the exact two");
}

#[tokio::test]
async fn from_observing_to_enforcing_rule_by_rule() {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &legacy());
    let folder = TempDir::new().unwrap();
    let at = async |config: &str| {
        Gateway::before(&upstream.url()).folder(folder.path()).config(config).start().await
    };
    let set = async |gateway: &Gateway, members: Value| {
        gateway.patch(&jwt_auth_path(IDENTITY), &good_patch(&members)).await
    };
    // Nothing is stopped, everything is known.
    let mut gateway = at("mode = \"observe\"\n").await;
    assert_eq!(set(&gateway, json!({"accessTokenTTL": 864_000})).await.status, 200);
    assert_eq!(set(&gateway, json!({"boundSubject": "ci"})).await.status, 200);
    let would = gateway.history(&["--would", "deny"])["changes"].clone();
    assert_eq!(would.as_array().map(Vec::len), Some(1), "{would}");
    let explained = gateway.cli_ok(&["policy", "explain", would[0]["id"].as_str().unwrap()]);
    assert!(explained.contains("in observe mode") && explained.contains("token-lifetime"), "{explained}");
    gateway.terminate().await;

    // What stands may stand.
    let mut gateway = at("").await;
    assert_eq!(set(&gateway, json!({"boundSubject": "builder"})).await.status, 200);
    assert_eq!(set(&gateway, json!({"accessTokenTTL": 864_000})).await.status, 403);
    // What the next step would have turned round, before it is taken.
    let next = gateway.folder_file("next.toml", "[rules.token-lifetime]\nexisting = \"deny\"\n");
    let replayed = gateway.cli(&["policy", "replay", "--config", &next, "--fail-on", "newly-denied"]);
    let said = String::from_utf8_lossy(&replayed.stdout).into_owned();
    assert_eq!(replayed.status.code(), Some(1), "{said}");
    assert!(said.contains("NEWLY DENIED by rule: token-lifetime 3"), "{said}");
    assert!(said.contains("3, 1 of them let through by observe mode"), "{said}");
    let mended = json!({"accessTokenTTL": 3600, "accessTokenMaxTTL": 86_400});
    assert_eq!(set(&gateway, mended).await.status, 200);
    gateway.terminate().await;

    // The first rule that forgives nothing, when nothing is left to forgive.
    let gateway = at("[rules.token-lifetime]\nexisting = \"deny\"\n").await;
    let changed = set(&gateway, json!({"boundSubject": "ci"})).await;
    assert_eq!(changed.status, 200, "{}", changed.text());
    assert_eq!(rules_of(&gateway.show(&change_of(&changed)), "warnings"), ["open-network"]);
    let judged: Vec<_> = gateway.history(&[])["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|change| change["mode"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        judged.iter().filter(|mode| *mode == "observe").count(),
        2,
        "each record says under which mode"
    );
}
