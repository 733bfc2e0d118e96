//! Rules of a folder, in force in front of real requests.

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::client::{Answer, request};
use crate::support::gateway::{Gateway, change_of};
use crate::support::upstream::Upstream;
use crate::support::{IDENTITY, good_attach, good_patch, jwt, jwt_auth_path};
use crate::tls::written;

const OWNER: &str = "5f0d5a52-2b1c-4c55-8f7e-6f1b1d3e9c01";

async fn with(files: &[(&str, &str)]) -> (Upstream, Gateway, TempDir) {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let folder = TempDir::new().unwrap();
    for (name, text) in files {
        written(folder.path(), name, text);
    }
    let path = folder.path().display().to_string();
    let gateway = Gateway::before(&upstream.url()).args(&["--policies", &path]).start().await;
    (upstream, gateway, folder)
}

async fn by(gateway: &Gateway, caller: &str, method: &str, body: Option<&Value>) -> Answer {
    let claims = json!({"authTokenType": "identityAccessToken", "identityId": caller});
    let token = format!("Bearer {}", jwt(&claims));
    request(gateway.addr(), method, &jwt_auth_path(IDENTITY), &[("authorization", &token)], body).await
}

#[tokio::test]
async fn a_protected_identity_is_changed_and_removed_by_its_owner_only() {
    let rule = format!(
        "id = \"crown-jewels\"\ntitle = \"t\"\nbuiltin = \"protected-target\"\n[params]\ntargets = [\"{IDENTITY}\"]\ncallers = [\"{OWNER}\"]"
    );
    let (upstream, gateway, _folder) = with(&[("crown-jewels.toml", &rule)]).await;
    let body = good_patch(&json!({"accessTokenTTL": 1800}));
    for (method, body) in [("PATCH", Some(&body)), ("DELETE", None)] {
        let denied = by(&gateway, "somebody-else", method, body).await;
        assert_eq!(
            (denied.status, &denied.json()["code"]),
            (403, &json!("policy.denied")),
            "{}",
            denied.text()
        );
        let violation = denied.json()["violations"][0].clone();
        assert_eq!((&violation["rule"], &violation["pointer"]), (&json!("crown-jewels"), &json!("")));
        assert!(denied.json()["message"].as_str().unwrap().contains(OWNER), "{}", denied.text());
        let change = gateway.show(&change_of(&denied));
        assert_eq!((&change["decision"], &change["caller"]["id"]), (&json!("deny"), &json!("somebody-else")));
    }
    assert!(upstream.writes().is_empty());
    assert_eq!(by(&gateway, OWNER, "PATCH", Some(&body)).await.status, 200);
    assert_eq!(by(&gateway, OWNER, "DELETE", None).await.status, 200);
}

#[tokio::test]
async fn the_strict_example_says_everything_that_is_foreign_at_once() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream.url())
        .args(&["--policies", concat!(env!("CARGO_MANIFEST_DIR"), "/policies/strict")])
        .start()
        .await;
    let denied = gateway.post(&jwt_auth_path(IDENTITY), &good_attach()).await;
    assert_eq!(denied.status, 403, "{}", denied.text());
    let body = denied.json();
    let rules: Vec<_> =
        body["violations"].as_array().unwrap().iter().map(|found| found["rule"].as_str().unwrap()).collect();
    for rule in ["own-issuer", "own-key-sets"] {
        assert!(rules.contains(&rule), "{rules:?}");
    }
    assert!(upstream.writes().is_empty());
}
