//! One governed change from end to end: what is forwarded, what is recorded, what is refused.

use serde_json::{Value, json};

use crate::support::gateway::{Gateway, change_of};
use crate::support::upstream::{Act, Upstream};
use crate::support::{IDENTITY, good_attach, good_patch, jwt_auth_path};

async fn attached() -> (Upstream, Gateway) {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let gateway = Gateway::start(&upstream).await;
    (upstream, gateway)
}

#[tokio::test]
async fn an_allowed_change_is_recorded_with_before_proposed_after_and_diff() {
    let (upstream, gateway) = attached().await;
    let path = jwt_auth_path(IDENTITY);
    let answer = gateway.patch(&path, &good_patch(&json!({"accessTokenTTL": 1800}))).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["identityJwtAuth"]["accessTokenTTL"], 1800);
    assert_eq!(answer.get("patchwarden-answered-by"), Some("upstream"));

    let change = gateway.show(&change_of(&answer));
    assert_eq!(change["decision"], "allow");
    assert_eq!(change["outcome"], "applied");
    assert_eq!(change["operation"], "jwt-auth.update");
    assert_eq!(change["target"]["id"], IDENTITY);
    assert_eq!(change["target"]["seq"], 1);
    assert_eq!(change["before"]["accessTokenTTL"], 3600);
    assert_eq!(change["proposed"]["accessTokenTTL"], 1800);
    assert_eq!(change["after"], change["proposed"]);
    assert_eq!(
        change["diff"],
        json!([{"op": "replace", "path": "/accessTokenTTL", "value": 1800, "old": 3600}])
    );
    assert_eq!(change["summary"], "accessTokenTTL 1h -> 30m");
    assert_eq!(change["caller"]["kind"], "identity");
    assert_eq!(change["caller"]["name"], "ci-deployer");
    assert_eq!(change["caller"]["proven"], true);
    assert_eq!(change["upstream_status"], 200);
    assert_eq!(change["surprise"], Value::Null);
    assert_eq!(gateway.history(&[])["changes"].as_array().map(Vec::len), Some(1));
    assert_eq!(upstream.writes().len(), 1);
}

#[tokio::test]
async fn what_is_forwarded_is_the_normal_form_that_was_judged() {
    let (upstream, gateway) = attached().await;
    let body = r#" {"accessTokenTrustedIps":[{"ipAddress":" 10.20.3.4/16 "}], "boundAudiences":"a,b ,,c",
        "unheard-of":{"hunter2":1}, "jwksUrl":"\u00a0https://keys.example.com/jwks\ufeff", "configurationType":"jwks"} "#;
    let raw = format!(
        "PATCH {} HTTP/1.1\r\nhost: gw\r\nauthorization: bEARER tok\r\ncontent-type: application/json\r\nx-http-method-override: GET\r\nif-none-match: x\r\naccept-encoding: gzip\r\ncontent-length: {}\r\n\r\n{body}",
        jwt_auth_path(IDENTITY),
        body.len()
    );
    let answer = crate::support::client::send(gateway.addr(), raw).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.get("patchwarden-warning").is_some_and(|w| w.starts_with("unknown-member: ")));
    let write = &upstream.writes()[0];
    assert_eq!(
        String::from_utf8_lossy(&write.body),
        r#"{"accessTokenTrustedIps":[{"ipAddress":"10.20.0.0/16"}],"boundAudiences":"a, b, c","configurationType":"jwks","jwksUrl":"https://keys.example.com/jwks"}"#
    );
    assert_eq!(write.target, jwt_auth_path(IDENTITY));
    assert_eq!(write.get("authorization"), Some("Bearer tok"));
    assert_eq!(write.get("content-type"), Some("application/json"));
    assert_eq!(write.get("accept-encoding"), Some("identity"));
    assert_eq!(write.get("x-http-method-override"), None);
    assert_eq!(write.get("if-none-match"), None);
    assert_eq!(write.get("x-forwarded-for"), Some("127.0.0.1"));
}

#[tokio::test]
async fn a_denied_patch_never_reaches_the_upstream_and_says_everything_that_is_wrong() {
    let (upstream, gateway) = attached().await;
    let body = good_patch(&json!({
        "jwksUrl": "http://keys.example.com/jwks",
        "accessTokenTTL": 0,
        "accessTokenMaxTTL": 2_592_000,
        "accessTokenTrustedIps": [{"ipAddress": "0.0.0.0/1"}, {"ipAddress": "128.0.0.0/1"}],
        "boundSubject": "**",
        "boundAudiences": "",
    }));
    let answer = gateway.patch(&jwt_auth_path(IDENTITY), &body).await;
    assert_eq!(answer.status, 403, "{}", answer.text());
    assert_eq!(answer.get("content-type"), Some("application/problem+json"));
    let problem = answer.json();
    assert_eq!(problem["code"], "policy.denied");
    let rules: Vec<_> =
        problem["violations"].as_array().unwrap().iter().map(|v| v["rule"].as_str().unwrap()).collect();
    for rule in ["open-network", "token-lifetime", "unbound-login", "insecure-jwks"] {
        assert!(rules.contains(&rule), "{rule} in {rules:?}");
    }
    let message = problem["message"].as_str().unwrap();
    assert!(message.ends_with("Nothing was changed."), "{message}");
    assert!(message.chars().count() <= 1000);
    assert!(upstream.writes().is_empty());
    let change = gateway.show(&change_of(&answer));
    assert_eq!((&change["decision"], &change["outcome"]), (&json!("deny"), &json!("none")));
    assert_eq!(change["code"], "policy.denied");
    assert_eq!(change["violations"].as_array().map(Vec::len), problem["violations"].as_array().map(Vec::len));
    assert_eq!(change["after"], Value::Null);
}

#[tokio::test]
async fn the_intent_is_in_the_database_before_the_upstream_sees_the_request() {
    let (upstream, gateway) = attached().await;
    let (seen, heard) = std::sync::mpsc::channel();
    let history = std::sync::Mutex::new(gateway.command(&["history", "--format", "json"]));
    upstream.script(
        "PATCH",
        Act::hook(move |_| {
            let output = history.lock().unwrap().output().unwrap();
            seen.send(String::from_utf8_lossy(&output.stdout).into_owned()).unwrap();
        }),
    );
    let answer = gateway.patch(&jwt_auth_path(IDENTITY), &good_patch(&json!({"accessTokenTTL": 1800}))).await;
    assert_eq!(answer.status, 200);
    let then: Value = serde_json::from_str(&heard.recv().unwrap()).unwrap();
    assert_eq!(then["changes"][0]["outcome"], "pending");
    assert_eq!(then["changes"][0]["id"], change_of(&answer));
}

#[tokio::test]
async fn attach_change_and_revoke_are_one_history() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(&upstream).await;
    let path = jwt_auth_path(IDENTITY);
    let attach = gateway.post(&path, &good_attach()).await;
    assert_eq!(attach.status, 200, "{}", attach.text());
    let again = gateway.post(&path, &good_attach()).await;
    assert_eq!((again.status, &again.json()["code"]), (400, &json!("before.present")));
    let patch = gateway.patch(&path, &good_patch(&json!({"accessTokenTTL": 1800}))).await;
    assert_eq!(patch.status, 200, "{}", patch.text());
    let revoke = gateway.request("DELETE", &path, Some(&json!({"identityId": IDENTITY}))).await;
    assert_eq!(revoke.status, 200, "{}", revoke.text());
    let absent = gateway.patch(&path, &good_patch(&json!({"accessTokenTTL": 1800}))).await;
    assert_eq!((absent.status, &absent.json()["code"]), (400, &json!("before.absent")));
    assert!(upstream.writes().last().unwrap().body.is_empty(), "a removal's body is dropped");

    let token = gateway.admin_token("reader");
    let history = gateway.admin_get(&format!("/v1/targets/{IDENTITY}/history"), Some(&token)).await.json();
    let outcomes: Vec<_> =
        history["changes"].as_array().unwrap().iter().map(|c| c["outcome"].clone()).collect();
    assert_eq!(
        outcomes,
        [json!("applied"), json!("none"), json!("applied"), json!("applied"), json!("none")]
    );
    let seqs: Vec<_> =
        history["changes"].as_array().unwrap().iter().map(|c| c["target"]["seq"].clone()).collect();
    assert_eq!(seqs, [json!(1), json!(null), json!(2), json!(3), json!(null)]);
    assert_eq!(history["changes"][0]["before"], Value::Null);
    assert_eq!(history["changes"][3]["after"], Value::Null);
}

#[tokio::test]
async fn an_estate_with_open_ranges_and_30_days_can_still_be_worked_on() {
    let upstream = Upstream::start();
    let open = json!([{"ipAddress": "0.0.0.0/0"}, {"ipAddress": "::/0"}]);
    let mut row = good_attach();
    row["accessTokenTrustedIps"] = open.clone();
    (row["accessTokenTTL"], row["accessTokenMaxTTL"]) = (json!(2_592_000), json!(2_592_000));
    upstream.attach(IDENTITY, &row);
    let gateway = Gateway::start(&upstream).await;
    let path = jwt_auth_path(IDENTITY);

    let edit = gateway
        .patch(&path, &good_patch(&json!({"boundSubject": "repo:acme/app:ref:refs/heads/main"})))
        .await;
    assert_eq!(edit.status, 200, "{}", edit.text());
    let warned: Vec<_> =
        edit.all("patchwarden-warning").iter().map(|w| w.split(':').next().unwrap().to_owned()).collect();
    assert_eq!(warned, ["open-network", "token-lifetime", "token-lifetime"], "{warned:?}");
    let lower = gateway.patch(&path, &good_patch(&json!({"accessTokenTTL": 3600}))).await;
    assert_eq!(lower.status, 200, "{}", lower.text());
    for again in [
        json!({"accessTokenTrustedIps": open}),
        json!({"accessTokenMaxTTL": 2_592_000}),
        json!({"accessTokenMaxTTL": 0}),
    ] {
        let answer = gateway.patch(&path, &good_patch(&again)).await;
        assert_eq!(answer.status, 403, "{again} {}", answer.text());
    }
    assert_eq!(
        gateway.history(&["--warned", "--decision", "allow"])["changes"].as_array().map(Vec::len),
        Some(2)
    );
    assert_eq!(gateway.delete(&path).await.status, 200);
}

#[tokio::test]
async fn a_fix_that_is_offered_passes() {
    let (_upstream, gateway) = attached().await;
    let path = jwt_auth_path(IDENTITY);
    let body = good_patch(&json!({"accessTokenMaxTTL": 2_592_000}));
    let answer = gateway.patch(&path, &body).await;
    assert_eq!(answer.status, 403);
    let mut fixed = body.clone();
    for step in answer.json()["fix"].as_array().expect("a fix") {
        let name = step["path"].as_str().unwrap().trim_start_matches('/').to_owned();
        fixed[name] = step["value"].clone();
    }
    let answer = gateway.patch(&path, &fixed).await;
    assert_eq!(answer.status, 200, "{fixed} {}", answer.text());
}

#[tokio::test]
async fn observe_records_a_denial_and_forwards_it() {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let gateway = Gateway::before(&upstream.url()).args(&["--mode", "observe"]).start().await;
    let answer = gateway.patch(&jwt_auth_path(IDENTITY), &good_patch(&json!({"accessTokenTTL": 0}))).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let change = gateway.show("last");
    assert_eq!((&change["decision"], &change["would"]), (&json!("allow"), &json!("deny")));
    assert_eq!(change["mode"], "observe");
    assert_eq!(gateway.history(&["--would", "deny"])["changes"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn concurrent_changes_of_one_identity_are_recorded_in_the_order_applied() {
    let (upstream, gateway) = attached().await;
    let path = jwt_auth_path(IDENTITY);
    let changes: Vec<_> = (0..8)
        .map(|n| {
            let (addr, path) = (gateway.addr(), path.clone());
            tokio::spawn(async move {
                let body = good_patch(&json!({"accessTokenTTL": 600 + n}));
                let token = format!("Bearer token-{n}");
                let headers = [("authorization", token.as_str())];
                crate::support::client::request(addr, "PATCH", &path, &headers, Some(&body)).await
            })
        })
        .collect();
    for change in changes {
        let answer = change.await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let applied: Vec<_> = upstream.writes().iter().map(|w| w.json()["accessTokenTTL"].clone()).collect();
    let token = gateway.admin_token("reader");
    let history = gateway.admin_get(&format!("/v1/targets/{IDENTITY}/history"), Some(&token)).await.json();
    let recorded: Vec<_> = history["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["proposed"]["accessTokenTTL"].clone())
        .collect();
    assert_eq!(recorded, applied);
    for pair in history["changes"].as_array().unwrap().windows(2) {
        assert_eq!(pair[0]["after"], pair[1]["before"], "no change came between");
    }
}
