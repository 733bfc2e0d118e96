//! `patchwarden scan` against an estate that was there before: what it finds, what it sends, what it waits for.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::gateway::{Gateway, program};
use crate::support::upstream::{Act, Matcher, Upstream};
use crate::support::{IDENTITY, good_attach, good_patch, jwt_auth_path};
use crate::tls::written;

fn id(number: u32) -> String {
    format!("{number:08x}-7d3f-4f7e-9a43-0c8f3f1d2e4a")
}

/// An estate of `count` identities: every third is open to everybody, every third has nothing attached.
fn estate(count: u32) -> Upstream {
    let upstream = Upstream::start();
    for number in 0..count {
        upstream.estate().add_identity(&id(number));
        let mut row = good_attach();
        if number % 3 == 0 {
            row["accessTokenTrustedIps"] = json!([{"ipAddress": "0.0.0.0/0"}]);
            row["accessTokenTTL"] = json!(0);
        }
        if number % 3 != 2 {
            upstream.attach(&id(number), &row);
        }
    }
    upstream
}

async fn scan(upstream: &Upstream, arguments: &[&str]) -> (Option<i32>, String, String) {
    let folder = TempDir::new().unwrap();
    written(folder.path(), "token", "TOKEN\n");
    let mut command = program();
    command
        .current_dir(folder.path())
        .args(["scan", "--upstream", &upstream.url(), "--token-file", "token"])
        .args(arguments);
    let output = tokio::task::spawn_blocking(move || {
        let output = command.output().unwrap();
        drop(folder);
        output
    });
    let output = output.await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test]
async fn what_stands_there_is_listed_with_what_it_violates() {
    let upstream = estate(30);
    let (code, out, err) = scan(&upstream, &[]).await;
    assert_eq!(code, Some(1), "{out}{err}");
    // The scripted upstream knows one identity more, without JWT auth.
    assert!(out.contains("31 identities, 20 with JWT auth, 10 violate a rule, 0 could not be read"), "{out}");
    let line = out.lines().find(|line| line.starts_with(&id(3))).unwrap();
    assert!(line.contains("open-network") && line.contains("/accessTokenTrustedIps"), "{line}");
    assert!(!out.contains(&id(1)), "nothing to say of what violates nothing");
    for seen in upstream.seen() {
        assert!(
            seen.method == "GET" || seen.target == "/api/v1/identities/search",
            "{} {}",
            seen.method,
            seen.target
        );
        assert_eq!(seen.all("authorization"), ["Bearer TOKEN"]);
    }
    assert!(!out.contains("TOKEN") && !err.contains("TOKEN"));

    let (_, out, _) = scan(&upstream, &["--format", "json"]).await;
    let shown: Value = out.parse().unwrap();
    let all = shown["identities"].as_array().unwrap();
    assert_eq!((all.len(), all.iter().filter(|one| one["attached"] == true).count()), (31, 20));
    let (_, out, _) = scan(&upstream, &["--format", "csv"]).await;
    assert_eq!(out.matches("\r\n").count(), 21, "a heading and two violations each: {out}");
}

#[tokio::test]
async fn an_estate_of_many_pages_is_read_whole_and_a_good_one_ends_with_0() {
    let upstream = Upstream::start();
    for number in 0..250 {
        upstream.estate().add_identity(&id(number));
        upstream.attach(&id(number), &good_attach());
    }
    let (code, out, err) = scan(&upstream, &["--concurrency", "32"]).await;
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("251 identities, 250 with JWT auth, 0 violate a rule"), "{out}");
    assert!(err.is_empty(), "the progress is for a terminal: {err}");
}

#[tokio::test]
async fn it_waits_when_it_is_asked_to_and_says_what_it_could_not_read() {
    let upstream = estate(3);
    let busy = Act::Answer {
        status: 429,
        headers: vec![("retry-after".into(), "1".into()), ("content-type".into(), "application/json".into())],
        body: br#"{"statusCode":429,"message":"slow down","error":"RateLimitExceeded"}"#.to_vec(),
    };
    upstream.script("POST", busy.clone());
    upstream.script(Matcher::method("GET").path(&id(0)), busy);
    let refusal = json!({"statusCode": 403, "message": "no", "error": "PermissionDenied"});
    upstream.always(Matcher::method("GET").path(&id(1)), Act::answer(403, &refusal));
    let since = Instant::now();
    let (code, out, err) = scan(&upstream, &[]).await;
    assert!(since.elapsed() >= Duration::from_secs(2), "it waited twice");
    assert_eq!(code, Some(1), "{out}{err}");
    assert!(out.contains("1 violate a rule, 1 could not be read"), "{out}");
    assert!(err.contains(&id(1)) && err.contains("403"), "{err}");
}

#[tokio::test]
async fn a_token_that_is_none_and_a_list_that_is_refused_are_told() {
    let upstream = estate(1);
    let refusal = json!({"statusCode": 403, "message": "no", "error": "PermissionDenied"});
    upstream.always("POST", Act::answer(403, &refusal));
    let (code, _, err) = scan(&upstream, &[]).await;
    assert_eq!(code, Some(3));
    assert!(err.contains("the list of identities: the upstream said 403"), "{err}");
    let folder = TempDir::new().unwrap();
    written(folder.path(), "token", "two tokens\n");
    let output = program()
        .current_dir(folder.path())
        .args(["scan", "--upstream", &upstream.url(), "--token-file", "token"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("--token-file token: holds no token") && !told.contains("two tokens"), "{told}");
}

#[tokio::test]
async fn each_line_says_what_the_next_change_would_get_and_what_mends_it() {
    let upstream = estate(3);
    let (_, out, _) = scan(&upstream, &["--format", "json"]).await;
    let shown: Value = out.parse().unwrap();
    let all = shown["identities"].as_array().unwrap();
    let open = all.iter().find(|one| one["id"] == id(0)).unwrap();
    let network = open["violations"].as_array().unwrap();
    let network = network.iter().find(|found| found["rule"] == "open-network").unwrap();
    assert_eq!(network["stored"], json!({"other": "warn", "repeated": "deny"}), "{network}");
    assert_eq!(network["tolerate"], json!({"other": "warn", "repeated": "warn"}));
    assert_eq!(network["deny"], json!({"other": "deny", "repeated": "deny"}));

    // What is foretold is what happens, under each `existing`.
    for (existing, key) in [("stored", "stored"), ("tolerate", "tolerate"), ("deny", "deny")] {
        let rules = ["open-network", "token-lifetime"];
        let config: String =
            rules.iter().map(|rule| format!("[rules.{rule}]\nexisting = \"{existing}\"\n")).collect();
        let gateway = Gateway::before(&upstream.url()).config(&config).start().await;
        let status = |said: &Value| if said == "deny" { 403 } else { 200 };
        let other = good_patch(&json!({"boundSubject": format!("ci-{existing}")}));
        let answer = gateway.patch(&jwt_auth_path(&id(0)), &other).await;
        assert_eq!(answer.status, status(&network[key]["other"]), "{existing}: {}", answer.text());
        let repeated = good_patch(&json!({"accessTokenTrustedIps": [{"ipAddress": "0.0.0.0/0"}]}));
        let answer = gateway.patch(&jwt_auth_path(&id(0)), &repeated).await;
        assert_eq!(answer.status, status(&network[key]["repeated"]), "{existing}: {}", answer.text());
    }
    let (_, csv, _) = scan(&upstream, &["--format", "csv"]).await;
    assert!(csv.starts_with("identity,name,rule,field,what,stored,tolerate,deny\r\n"), "{csv}");
    assert!(csv.contains("denies every change"), "{csv}");
}

#[tokio::test]
async fn a_page_for_a_browser_runs_nothing_a_name_could_hold() {
    let upstream = estate(3);
    let listed = json!({"identities": [{"identity": {"id": id(0), "name": "<script>alert(1)</script>"}}]});
    upstream.script(Matcher::any().path("/identities/search"), Act::answer(200, &listed));
    let (code, page, err) = scan(&upstream, &["--format", "html"]).await;
    assert_eq!(code, Some(1), "{err}");
    assert!(page.starts_with("<!doctype html>") && page.contains("open-network"), "{page}");
    assert!(page.contains("&lt;script&gt;alert(1)") && !page.contains("<script"), "{page}");
}

#[tokio::test]
async fn beside_a_store_it_tells_what_changed_behind_the_gateways_back() {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let gateway = Gateway::start(&upstream).await;
    let body = good_patch(&json!({"accessTokenTTL": 1800}));
    assert_eq!(gateway.patch(&jwt_auth_path(IDENTITY), &body).await.status, 200);
    gateway.folder_file("token", &gateway.token);
    let scan = || {
        let url = upstream.url();
        gateway.cli(&["scan", "--upstream", &url, "--token-file", "token", "--format", "json"])
    };
    let drift = |output: std::process::Output| {
        let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
        let all = shown["identities"].as_array().unwrap().clone();
        all.iter().find(|one| one["id"] == IDENTITY).unwrap()["drift"].clone()
    };
    assert_eq!(drift(scan()), json!([]));
    let mut row = good_attach();
    row["accessTokenTTL"] = json!(7200);
    upstream.another_writer()(IDENTITY, &row);
    let found = drift(scan());
    let ttl = found.as_array().unwrap().iter().find(|entry| entry["path"] == "/accessTokenTTL").unwrap();
    assert_eq!((&ttl["old"], &ttl["value"]), (&json!(1800), &json!(7200)), "{found}");
}

#[tokio::test]
async fn after_an_upgrade_a_real_answer_is_held_against_what_is_expected() {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let folder = TempDir::new().unwrap();
    written(folder.path(), "token", "TOKEN\n");
    let check = async |more: &[&str]| {
        let mut command = program();
        command
            .current_dir(folder.path())
            .args(["check", "--upstream", &upstream.url(), "--online"])
            .args(more);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let identity = ["--identity", IDENTITY, "--token-file", "token"];
    assert_eq!(check(&identity).await, (Some(0), String::new()));
    assert_eq!(upstream.seen().last().unwrap().get("authorization"), Some("Bearer TOKEN"));
    let mut row = upstream.state(IDENTITY).unwrap();
    row["accessTokenBoundCountries"] = json!(["*"]);
    upstream.script(Matcher::any().path(IDENTITY), Act::answer(200, &json!({"identityJwtAuth": row})));
    let (code, said) = check(&identity).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("the answer has `accessTokenBoundCountries`, which the object file does not know"),
        "{said}"
    );
    row.as_object_mut().unwrap().remove("boundSubject");
    upstream.script(Matcher::any().path(IDENTITY), Act::answer(200, &json!({"identityJwtAuth": row})));
    let (code, said) = check(&identity).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("the answer has no `boundSubject`"), "{said}");
    upstream.script(Matcher::any().path(IDENTITY), Act::answer(403, &json!({"message": "no"})));
    assert_eq!(check(&identity).await.0, Some(3));
    assert_eq!(check(&["--identity", IDENTITY]).await.0, Some(2), "a token is needed");
    assert_eq!(check(&["--identity", "x", "--token-file", "token"]).await.0, Some(2));
}

#[tokio::test]
async fn what_nobody_saw_the_end_of_is_settled_by_what_is_read() {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    // The write is applied and its answer lost, and the read after it as well.
    let config = "[limits]\nforward = \"300ms\"\n[upstream]\nlate_write_limit = \"1s\"\n";
    let mut gateway = Gateway::before(&upstream.url()).config(config).start().await;
    upstream.always("PATCH", Act::ApplyThenClose);
    upstream.script(Matcher::method("GET").path(IDENTITY), Act::hook(|_| {}));
    upstream.always(Matcher::method("GET").path(IDENTITY), Act::answer(500, &json!({})));
    let body = good_patch(&json!({"accessTokenTTL": 1800}));
    let answer = gateway.patch(&jwt_auth_path(IDENTITY), &body).await;
    upstream.behave();
    let change = gateway.show("last");
    assert_eq!(
        (&change["outcome"], &change["settlement"]),
        (&json!("unknown"), &json!(null)),
        "{}",
        answer.text()
    );
    gateway.folder_file("token", &gateway.token);
    let url = upstream.url();
    let arguments = ["scan", "--upstream", &url, "--token-file", "token", "--format", "json", "--settle"];
    let busy = gateway.cli(&arguments);
    assert_eq!(busy.status.code(), Some(3), "a gateway writes that log");
    assert!(String::from_utf8_lossy(&busy.stderr).contains("held by another process"));
    gateway.terminate().await;
    let settled = |output: std::process::Output| {
        let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
        let all = shown["identities"].as_array().unwrap().clone();
        all.iter().find(|one| one["id"] == IDENTITY).unwrap()["settled"].clone()
    };
    let told = settled(gateway.cli(&arguments));
    assert_eq!((&told["change"], &told["result"]), (&change["id"], &json!("applied")), "{told}");
    assert_eq!(settled(gateway.cli(&arguments)), json!(null), "once");
    let change = gateway.show("last");
    assert_eq!(
        (&change["settlement"]["by"], &change["after"]["accessTokenTTL"]),
        (&json!("scan"), &json!(1800))
    );
}
