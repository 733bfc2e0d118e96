//! `patchwarden scan` against an estate that was there before: what it finds, what it sends, what it waits for.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::gateway::program;
use crate::support::good_attach;
use crate::support::upstream::{Act, Matcher, Upstream};
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
    assert!(err.contains("100 of 251 identities read"), "{err}");
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
