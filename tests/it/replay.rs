//! What was decided, judged again: by other policies, by those of its day, as a case, over the API.

use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::laws::members;
use crate::support::client::request;
use crate::support::gateway::{Gateway, change_of};
use crate::support::upstream::Upstream;
use crate::support::{IDENTITY, eventually, good_attach, good_patch, jwt_auth_path};
use crate::tls::written;

fn replayed(gateway: &Gateway, args: &[&str]) -> (Option<i32>, Value) {
    let output = gateway.cli(&[&["policy", "replay", "--format", "json"], args].concat());
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap())
}

#[tokio::test]
async fn other_policies_say_what_they_would_have_turned_round() {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let gateway = Gateway::start(&upstream).await;
    let patch = async |members: Value| gateway.patch(&jwt_auth_path(IDENTITY), &good_patch(&members)).await;
    assert_eq!(patch(json!({"accessTokenTTL": 7200})).await.status, 200);
    assert_eq!(patch(json!({"accessTokenTTL": 1800})).await.status, 200);
    assert_eq!(patch(json!({"accessTokenTTL": 172_800})).await.status, 403);
    assert_eq!(patch(json!({"accessTokenTTL": "1h"})).await.status, 422);
    assert_eq!(gateway.delete(&jwt_auth_path(IDENTITY)).await.status, 200);

    let (code, same) = replayed(&gateway, &["--fail-on", "newly-denied", "--fail-on", "newly-allowed"]);
    assert_eq!(code, Some(0), "{same}");
    assert_eq!(same["unchanged"], json!({"allow": 3, "deny": 1}));
    assert_eq!(same["not_replayed"], json!({"the policies were never asked": 1}));

    let folder = TempDir::new().unwrap();
    let shorter = "id = \"token-lifetime\"\ntitle = \"t\"\nbuiltin = \"token-lifetime\"\n[params]\n\
                   access_token_ttl = { at_most = \"1h\" }\naccess_token_max_ttl = { at_most = \"7d\" }\n";
    written(folder.path(), "shorter.toml", shorter);
    let path = folder.path().display().to_string();
    let (code, other) = replayed(&gateway, &["--policies", &path, "--fail-on", "newly-denied"]);
    assert_eq!(code, Some(1), "{other}");
    assert_eq!(other["newly_denied"]["count"], 1, "{other}");
    assert_eq!(other["newly_denied"]["rules"], json!({"token-lifetime": 1}));
    let example = &other["newly_denied"]["examples"][0];
    assert_eq!(example["findings"][0]["pointer"], "/accessTokenTTL", "{example}");
    assert_eq!(gateway.show(example["id"].as_str().unwrap())["diff"][0]["value"], 7200);
    let text = gateway.cli_ok(&["policy", "replay", "--policies", &path]);
    assert!(
        text.contains("newly denied   1\n") && text.contains("NEWLY DENIED by rule: token-lifetime 1"),
        "{text}"
    );

    let off = gateway.folder_file("off.toml", "[rules.token-lifetime]\nlevel = \"off\"\n");
    let (code, looser) = replayed(&gateway, &["--config", &off, "--fail-on", "newly-denied"]);
    assert_eq!((code, &looser["newly_allowed"]["count"]), (Some(0), &json!(1)), "{looser}");
    let none = replayed(&gateway, &["--until", "2020-01-01T00:00:00Z"]).1;
    assert_eq!(none["replayed"], 0);
    let wrong = gateway.cli(&["policy", "replay", "--since", "yesterday"]);
    assert_eq!(wrong.status.code(), Some(2));
}

#[tokio::test]
async fn a_past_decision_is_explained_by_the_rules_of_its_day() {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let folder = TempDir::new().unwrap();
    let rule = |ttl: &str| {
        format!(
            "id = \"short-tokens\"\ntitle = \"Tokens are short\"\nbuiltin = \"token-lifetime\"\n[params]\n\
             access_token_ttl = {{ at_most = \"{ttl}\" }}\naccess_token_max_ttl = {{ at_most = \"7d\" }}\n"
        )
    };
    written(folder.path(), "short.toml", &rule("1h"));
    let path = folder.path().display().to_string();
    let config = format!("[policies]\ndir = {path:?}\nreload = \"100ms\"\n");
    let mut gateway = Gateway::before(&upstream.url()).config(&config).start().await;
    let body = good_patch(&json!({"accessTokenTTL": 7200}));
    let denied = gateway.patch(&jwt_auth_path(IDENTITY), &body).await;
    assert_eq!(denied.status, 403);
    // The rule changes; what it once said does not.
    written(folder.path(), "short.toml", &rule("12h"));
    gateway.wait_for_event("reloaded").await;
    let allowed = gateway.patch(&jwt_auth_path(IDENTITY), &body).await;
    assert_eq!(allowed.status, 200, "{}", allowed.text());
    for (answer, verdict) in [(&denied, "violated"), (&allowed, "passed")] {
        let id = change_of(answer);
        let explained = gateway.cli_ok(&["policy", "explain", &id, "--format", "json"]);
        let explained: Value = serde_json::from_str(&explained).unwrap();
        let rules = explained["rules"].as_array().unwrap();
        let rule = rules.iter().find(|rule| rule["id"] == "short-tokens").unwrap();
        assert_eq!((&rule["verdict"], &explained["agrees"]), (&json!(verdict), &json!(true)), "{explained}");
        assert_eq!(explained["policy_digest"], gateway.show(&id)["policy_digest"]);
        let text = gateway.cli_ok(&["policy", "explain", &id]);
        assert!(text.contains("short-tokens") && text.contains("is the one on record"), "{text}");
    }
    // What never came to the policies, and what is not there.
    let malformed = gateway.patch(&jwt_auth_path(IDENTITY), &json!({"configurationType": 1})).await;
    let never = gateway.cli(&["policy", "explain", &change_of(&malformed)]);
    assert_eq!(never.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&never.stderr).contains("never asked"));
    let nothing = gateway.cli(&["policy", "explain", "0190a0b0-0000-7000-8000-000000000000"]);
    assert_eq!(nothing.status.code(), Some(1));
}

#[tokio::test]
async fn a_frozen_attempt_is_a_case_that_passes_until_the_rules_change() {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let gateway = Gateway::start(&upstream).await;
    let open = json!({"accessTokenTrustedIps": [{"ipAddress": "0.0.0.0/0"}], "accessTokenTTL": 900});
    let denied = gateway.patch(&jwt_auth_path(IDENTITY), &good_patch(&open)).await;
    assert_eq!(denied.status, 403);
    let folder = TempDir::new().unwrap();
    std::fs::create_dir(folder.path().join("cases")).unwrap();
    let out = folder.path().join("cases/frozen.toml").display().to_string();
    gateway.cli_ok(&["policy", "freeze", "last", "--out", &out]);
    let again = gateway.cli(&["policy", "freeze", "last", "--out", &out]);
    assert_eq!(again.status.code(), Some(3), "what is there stays");
    assert_eq!(std::fs::read_to_string(&out).unwrap(), gateway.cli_ok(&["policy", "freeze", "last"]));
    let path = folder.path().display().to_string();
    let tested = gateway.cli_ok(&["policy", "test", "--policies", &path, "--format", "json"]);
    let tested: Value = serde_json::from_str(&tested).unwrap();
    let frozen = tested["cases"].as_array().unwrap().iter().find(|case| case["file"] == "cases/frozen.toml");
    assert_eq!(frozen.unwrap()["violated"], json!(["open-network"]), "{tested}");
    let off = gateway.folder_file("off.toml", "[rules.open-network]\nlevel = \"off\"\n");
    let failed = gateway.cli(&["policy", "test", "--policies", &path, "--config", &off]);
    assert_eq!(failed.status.code(), Some(1));
    let said = String::from_utf8_lossy(&failed.stdout).into_owned();
    assert!(said.contains("cases/frozen.toml: change ") && said.contains("expected deny"), "{said}");
}

/// Live traffic, evaluation over the API, replay, explanation and cases are one judgement.
#[tokio::test]
async fn a_day_of_random_traffic_is_judged_the_same_by_all() {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let gateway = Gateway::start(&upstream).await;
    let token = format!("Bearer {}", gateway.admin_token("reader"));
    let mut runner = TestRunner::deterministic();
    let (mut decided, mut cases) = (std::collections::BTreeMap::new(), String::new());
    for round in 0..200 {
        let mut body = members().new_tree(&mut runner).unwrap().current();
        if body["configurationType"] == "jwks" {
            body.remove("publicKeys");
        }
        if round % 2 == 0 {
            let tame = json!({"accessTokenTTL": 600 + round, "accessTokenMaxTTL": 7200, "boundSubject": "ci",
                "jwksUrl": "https://idp.example/jwks", "accessTokenTrustedIps": [{"ipAddress": "10.0.0.0/8"}]});
            body.extend(tame.as_object().unwrap().clone());
        }
        let body = Value::Object(body);
        if round % 11 == 3 && upstream.state(IDENTITY).is_none() {
            upstream.attach(IDENTITY, &good_attach());
        }
        let state = upstream.state(IDENTITY);
        let (method, operation) = match (round % 11, &state) {
            (10, Some(_)) => ("DELETE", "jwt-auth.revoke"),
            (_, Some(_)) => ("PATCH", "jwt-auth.update"),
            (_, None) => ("POST", "jwt-auth.attach"),
        };
        let sent = (method != "DELETE").then_some(&body);
        let read = gateway.get(&jwt_auth_path(IDENTITY)).await.json();
        let answer = gateway.request(method, &jwt_auth_path(IDENTITY), sent).await;
        let id = change_of(&answer);
        // A refusal whose caller nobody proved is written after its answer.
        eventually(|| gateway.cli(&["show", &id]).status.success()).await;
        let change = gateway.show(&id);
        let mut asked = json!({"operation": operation, "caller": change["caller"]["id"]});
        if method != "POST" {
            asked["before"] = read;
        }
        if let Some(body) = sent {
            asked["body"] = body.clone();
        }
        let headers = [("authorization", token.as_str()), ("content-type", "application/json")];
        let evaluated = request(gateway.admin_addr(), "POST", "/v1/evaluate", &headers, Some(&asked)).await;
        let evaluated = evaluated.json();
        assert_eq!(evaluated["decision"], change["decision"], "{round}: {asked} {evaluated} {change}");
        let named = |change: &Value, kind: &str| -> Vec<(Value, Value)> {
            let found = change[kind].as_array().unwrap().iter();
            found.map(|found| (found["rule"].clone(), found["pointer"].clone())).collect()
        };
        for kind in ["violations", "warnings"] {
            assert_eq!(named(&evaluated, kind), named(&change, kind), "{round}: {asked}");
        }
        *decided.entry(change["decision"].as_str().unwrap().to_owned()).or_insert(0) += 1;
        if round % 4 == 0 && change["decision"] != "refuse" {
            let explained = gateway.cli(&["policy", "explain", &id, "--format", "json"]);
            let said = String::from_utf8_lossy(&explained.stderr).into_owned();
            if said.contains("only a digest is recorded") {
                continue;
            }
            let explained: Value = serde_json::from_slice(&explained.stdout).expect(&said);
            assert_eq!(explained["agrees"], true, "{round}: {explained} {change}");
            cases += &gateway.cli_ok(&["policy", "freeze", &id]);
        }
    }
    assert!(decided["allow"] > 20 && decided["deny"] > 20 && decided["refuse"] > 2, "{decided:?}");
    let (code, replayed) = replayed(&gateway, &["--fail-on", "newly-denied", "--fail-on", "newly-allowed"]);
    assert_eq!(code, Some(0), "{replayed}");
    let sealed: u64 = replayed["not_replayed"].as_object().unwrap().values().filter_map(Value::as_u64).sum();
    let unchanged = &replayed["unchanged"];
    assert_eq!(replayed["replayed"].as_u64().unwrap() + sealed, 200);
    assert!(unchanged["allow"].as_u64() > Some(20) && unchanged["deny"].as_u64() > Some(20), "{replayed}");
    let folder = TempDir::new().unwrap();
    std::fs::create_dir(folder.path().join("cases")).unwrap();
    written(folder.path(), "cases/day.toml", &cases);
    gateway.cli_ok(&["policy", "test", "--policies", &folder.path().display().to_string()]);
}

/// What was hidden from the record cannot be judged by it, and is not guessed.
#[tokio::test]
async fn what_only_a_digest_is_recorded_of_is_not_judged_again() {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let gateway = Gateway::start(&upstream).await;
    for url in ["https://user:hunter2@keys.example.com/jwks", "https://keys.example.com/jwks?tenant=hunter2"]
    {
        let body = json!({"configurationType": "jwks", "jwksUrl": url});
        let answer = gateway.patch(&jwt_auth_path(IDENTITY), &body).await;
        assert!(matches!(answer.status, 200 | 400), "allowed here: {}", answer.text());
        for command in ["explain", "freeze"] {
            let refused = gateway.cli(&["policy", command, "last"]);
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert_eq!(refused.status.code(), Some(1), "{said}");
            assert!(
                said.contains("of `jwksUrl` only a digest is recorded") && !said.contains("hunter2"),
                "{said}"
            );
        }
    }
    let (_, told) = replayed(&gateway, &[]);
    assert_eq!(told["not_replayed"], json!({"of `jwksUrl` only a digest is recorded": 2}), "{told}");
}

#[tokio::test]
async fn a_request_is_judged_beside_the_state_on_record_or_the_one_that_stands_there() {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let gateway = Gateway::start(&upstream).await;
    let token = gateway.folder_file("token", &gateway.token);
    let longer = good_patch(&json!({"accessTokenTTL": 7200}));
    let body = gateway.folder_file("body", &longer.to_string());
    let url = upstream.url();
    let before = |how: &[&str]| {
        let fixed = ["policy", "eval", "--format", "json", "--body", &body, "--upstream", &url];
        let output = gateway.cli(&[&fixed, how].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let shown: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        (output.status.code(), shown["before"]["accessTokenTTL"].clone(), said)
    };
    let nothing = before(&["--stored", IDENTITY]);
    assert!(nothing.0 == Some(1) && nothing.2.contains("no state of it is on record"), "{}", nothing.2);
    let body = good_patch(&json!({"accessTokenTTL": 1800}));
    assert_eq!(gateway.patch(&jwt_auth_path(IDENTITY), &body).await.status, 200);
    assert_eq!(before(&["--stored", IDENTITY]).1, 1800);
    let mut row = good_attach();
    row["accessTokenTTL"] = json!(600);
    upstream.another_writer()(IDENTITY, &row);
    let fetched = before(&["--fetch", IDENTITY, "--token-file", &token]);
    assert_eq!((fetched.0, fetched.1), (Some(0), json!(600)), "{}", fetched.2);
    assert_eq!(before(&["--stored", IDENTITY]).1, 1800, "what is on record");
    assert_eq!(before(&["--fetch", IDENTITY]).0, Some(2), "a token is needed");
    assert_eq!(before(&["--stored", "x"]).0, Some(2));
}
