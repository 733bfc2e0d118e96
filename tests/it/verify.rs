//! A store that was tampered with, each time in another way: found, and the entry named.

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _};

use serde_json::json;

use crate::support::gateway::Gateway;
use crate::support::upstream::Upstream;
use crate::support::{IDENTITY, eventually, good_attach, good_patch, jwt_auth_path};

/// The key of a witness that has seen nothing.
const WITNESS: &str = "witness.example+0080fed4+BAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";

/// A stopped gateway whose log has some changes.
async fn history() -> Gateway {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let mut gateway = Gateway::before(&upstream.url()).start().await;
    for ttl in [3000, 2000, 1000] {
        let body = good_patch(&json!({"accessTokenTTL": ttl}));
        assert_eq!(gateway.patch(&jwt_auth_path(IDENTITY), &body).await.status, 200);
    }
    gateway.terminate().await;
    gateway
}

/// Does what the triggers forbid, as somebody with the file in hand can.
async fn tamper(gateway: &Gateway, text: &str) {
    let options = SqliteConnectOptions::new().filename(gateway.data().join("patchwarden.db"));
    let mut connection: SqliteConnection = options.connect().await.unwrap();
    let triggers: Vec<String> = sqlx::query_scalar("SELECT name FROM sqlite_master WHERE type = 'trigger'")
        .fetch_all(&mut connection)
        .await
        .unwrap();
    for trigger in triggers {
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("DROP TRIGGER {trigger}")))
            .execute(&mut connection)
            .await
            .unwrap();
    }
    let done = sqlx::raw_sql(sqlx::AssertSqlSafe(text.to_owned())).execute(&mut connection).await.unwrap();
    assert!(done.rows_affected() > 0, "{text}");
    connection.close().await.unwrap();
}

#[tokio::test]
async fn an_untouched_log_is_consistent_beside_its_gateway_and_after_it() {
    let mut gateway = history().await;
    let said = gateway.cli_ok(&["verify"]);
    assert!(
        said.starts_with("ok     patchwarden.invalid/")
            && said.contains("the newest over 8 entries, by the keys the store names")
            && said.contains("rests on the store alone"),
        "{said}"
    );
    gateway.restart().await;
    let again = gateway.cli_ok(&["verify", "--format", "json"]);
    assert!(again.contains("\"fault\": null"), "{again}");
    let key = gateway.cli_ok(&["keys", "show"]).trim().to_owned();
    let head = gateway.data().join("patchwarden.db.head").display().to_string();
    let trusted = gateway.cli_ok(&["verify", "--projection", "--public-key", &key, "--checkpoint", &head]);
    for part in ["by a key you trust", "since they were kept", "says the same as the entries"] {
        assert!(trusted.contains(part), "{trusted}");
    }
    let alone = gateway.cli_ok(&["verify", "--public-key", &key]);
    assert!(alone.contains("who does not have the log's key"), "{alone}");
}

#[tokio::test]
async fn whatever_is_altered_is_found_and_named() {
    // 0 is the start; the changes are 1 and 2, 3 and 4, 5 and 6; 7 is the stop. Rows count from 1.
    let foreign = "ab".repeat(32);
    let cases: &[(&str, Option<u64>, &str)] = &[
        (
            "UPDATE entries SET envelope = CAST(replace(CAST(envelope AS TEXT), '\"status\":200', '\"status\":201') AS BLOB) WHERE idx = 4",
            None,
            "do not give the head",
        ),
        (
            "UPDATE payloads SET body = CAST(replace(CAST(body AS TEXT), '2000', '2001') AS BLOB) WHERE row = 4",
            Some(3),
            "not the one its envelope has the digest of",
        ),
        ("UPDATE payloads SET salt = randomblob(32) WHERE row = 4", Some(3), "has the digest of"),
        ("DELETE FROM payloads WHERE row = 5", Some(4), "its payload is missing"),
        ("DELETE FROM entries WHERE idx = 3", Some(3), "it is missing; the next one is 4"),
        ("DELETE FROM entries WHERE idx = 7", Some(7), "it is missing"),
        (
            "UPDATE entries SET envelope = (SELECT envelope FROM entries WHERE idx = 5) WHERE idx = 3",
            Some(3),
            "that of another entry",
        ),
        ("UPDATE entries SET kind = 'fold' WHERE idx = 3", Some(3), "its row says fold"),
        ("UPDATE entries SET of_idx = 0 WHERE idx = 4", Some(4), "different entries"),
        ("UPDATE log_head SET size = size - 1", None, "do not give the head"),
        (
            "UPDATE entries SET envelope = CASE idx WHEN 3 THEN (SELECT envelope FROM entries WHERE idx = 4) \
             ELSE (SELECT envelope FROM entries WHERE idx = 3) END WHERE idx IN (3, 4)",
            Some(3),
            "that of another entry",
        ),
        (
            "UPDATE payloads SET salt = (SELECT salt FROM payloads WHERE row = 6) WHERE row = 5",
            Some(4),
            "has the digest of",
        ),
        (
            "UPDATE payloads SET (salt, body) = (SELECT salt, body FROM payloads WHERE row = 6) WHERE row = 4",
            Some(3),
            "has the digest of",
        ),
        (
            "INSERT INTO entries (row, origin, idx, kind, envelope) SELECT 9, origin, 8, kind, envelope FROM entries WHERE idx = 7",
            Some(8),
            "nobody has committed it",
        ),
        (
            "UPDATE checkpoints SET body = replace(body, char(10) || '8' || char(10), char(10) || '9' || char(10))",
            None,
            "of another log or size",
        ),
        (
            "UPDATE checkpoints SET signatures = substr(signatures, 1, length(signatures) - 20) || 'AAAAAAAAAAAAAAAAAA=' || char(10)",
            None,
            "signed",
        ),
        (
            &format!("INSERT INTO log_keys SELECT origin, '{foreign}', 3 FROM log_head"),
            Some(3),
            "no key before signed for it",
        ),
        (&format!("UPDATE log_keys SET public = '{foreign}'"), None, "it is not signed by"),
        ("UPDATE log_head SET frontier = randomblob(length(frontier))", None, "do not give the head"),
    ];
    for (text, entry, what) in cases {
        let gateway = history().await;
        tamper(&gateway, text).await;
        let output = gateway.cli(&["verify"]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}: {said}");
        assert!(said.starts_with("WRONG") && said.contains(what), "{text}: {said}");
        if let Some(entry) = entry {
            assert!(said.contains(&format!(": entry {entry}: ")), "{text}: {said}");
        }
        assert!(!said.contains("consistent"), "{said}");
    }
}

#[tokio::test]
async fn a_log_that_was_rolled_back_or_forked_is_found_by_a_head_that_was_kept() {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let mut gateway = Gateway::before(&upstream.url()).start().await;
    let change = |ttl: u64| good_patch(&json!({"accessTokenTTL": ttl}));
    assert_eq!(gateway.patch(&jwt_auth_path(IDENTITY), &change(1000)).await.status, 200);
    gateway.terminate().await;
    let (store, early) = (gateway.data().join("patchwarden.db"), gateway.data().join("early.db"));
    std::fs::copy(&store, &early).unwrap();
    gateway.restart().await;
    assert_eq!(gateway.patch(&jwt_auth_path(IDENTITY), &change(2000)).await.status, 200);
    gateway.terminate().await;
    let beside = gateway.data().join("patchwarden.db.head");
    let kept = gateway.data().join("kept-elsewhere");
    std::fs::copy(&beside, &kept).unwrap();
    let kept = kept.display().to_string();
    let wrong = |args: &[&str], what: &str| {
        let output = gateway.cli(&[&["verify"], args].concat());
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.starts_with("WRONG") && said.contains(what), "{said}");
    };
    // The disk is that of yesterday, whole and signed: only a head from outside tells.
    std::fs::copy(&early, &store).unwrap();
    wrong(&[], "entry 4: it is missing, with 3 more: a head of 8 entries was signed");
    std::fs::remove_file(&beside).unwrap();
    assert_eq!(gateway.cli(&["verify"]).status.code(), Some(0));
    wrong(&["--checkpoint", &kept], "entry 4: it is missing");
    // It goes on from there, under the same key: two stories of one log.
    let mut gateway = gateway;
    gateway.restart().await;
    for ttl in [3000, 3001] {
        assert_eq!(gateway.patch(&jwt_auth_path(IDENTITY), &change(ttl)).await.status, 200);
    }
    gateway.terminate().await;
    assert_eq!(gateway.cli(&["verify"]).status.code(), Some(0));
    let output = gateway.cli(&["verify", "--checkpoint", &kept]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.code() == Some(1) && said.contains("its first 8 entries do not give the head"),
        "{said}"
    );
    // What is given has to be a head, of a log that is there; and nobody saw this one.
    let text = std::fs::read_to_string(&kept).unwrap();
    std::fs::write(&kept, text.replacen("patchwarden.invalid", "elsewhere.invalid", 2)).unwrap();
    let output = gateway.cli(&["verify", "--checkpoint", &kept]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("has no log of this name"), "{output:?}");
    std::fs::write(&kept, "no head").unwrap();
    assert_eq!(gateway.cli(&["verify", "--checkpoint", &kept]).status.code(), Some(2));
    let output = gateway.cli(&["verify", "--require-anchor", "24h"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("--witness KEY"), "{output:?}");
    let output = gateway.cli(&["verify", "--require-anchor", "24h", "--witness", WITNESS]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("none of the witnesses"), "{said}");
}

#[tokio::test]
async fn a_projection_that_says_something_else_than_the_entries_is_found() {
    for (text, what) in [
        (
            "UPDATE changes SET caller = 'somebody-else' WHERE seq = 2",
            "entry 3: the projection holds another caller",
        ),
        (
            "UPDATE changes SET outcome = 'rejected' WHERE seq = 2",
            "entry 3: the projection holds another outcome",
        ),
        (
            "UPDATE changes SET search = search || 'x' WHERE seq = 3",
            "entry 5: the projection holds another values",
        ),
        ("DELETE FROM changes WHERE seq = 1", "entry 1: the projection does not hold it"),
        (
            "INSERT INTO changes SELECT 1, kind, idx, 'made-up', at, target, seq, operation, caller, decision, would, outcome, \
             settled, warned, rules, pointers, search, outcome_row, settlement_row, origin FROM changes WHERE seq = 1",
            "has 4 rows for 3 changes",
        ),
    ] {
        let gateway = history().await;
        tamper(&gateway, text).await;
        gateway.cli_ok(&["verify"]);
        let output = gateway.cli(&["verify", "--projection"]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.code() == Some(1) && said.contains(what), "{text}: {said}");
        gateway.cli_ok(&["reindex"]);
        gateway.cli_ok(&["verify", "--projection"]);
    }
}

#[tokio::test]
async fn an_export_tells_the_same_story_to_whoever_has_no_store() {
    let gateway = history().await;
    let key = gateway.cli_ok(&["keys", "show"]).trim().to_owned();
    let head = gateway.data().join("patchwarden.db.head").display().to_string();
    let text = gateway.cli_ok(&["export"]);
    let file = gateway.data().join("log.ndjson");
    let path = file.display().to_string();
    let verify = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let output = gateway.cli(&["verify", &path, "--public-key", &key, "--checkpoint", &head]);
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let (code, said) = verify(&text);
    assert!(code == Some(0) && said.contains("8 entries") && said.contains("by a key you trust"), "{said}");
    let args = ["--witness", WITNESS, "--require-anchor", "24h", "--checkpoint", &head, "--public-key", &key];
    let output = gateway.cli(&[&["verify", &path], &args[..]].concat());
    assert!(String::from_utf8_lossy(&output.stdout).contains("none of the witnesses"), "{output:?}");
    let lines: Vec<&str> = text.lines().collect();
    let without = |gone: usize| {
        let left = lines.iter().enumerate().filter(|(place, _)| *place != gone);
        left.map(|(_, line)| format!("{line}\n")).collect::<String>()
    };
    // It holds no head, so a key alone would show nothing.
    for lone in [["--public-key", key.as_str()], ["--checkpoint", head.as_str()]] {
        let output = gateway.cli(&[&["verify", &path], &lone[..]].concat());
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains("or neither"), "{output:?}");
    }
    for (altered, what) in [
        (without(3), "entry 3: it is missing; the next one is 4"),
        (without(7), "entry 7: it is missing: a head of 8 entries was signed"),
        (text.replacen("\\\"status\\\":200", "\\\"status\\\":201", 1), "do not give the head"),
        (text.replacen("accessTokenTTL", "accessTokenTtl", 1), "has the digest of"),
        (text.replacen("\"salt\":\"", "\"salt\":\"00", 1), "has the digest of"),
        (text.replacen("\"index\":2", "\"index\":3", 1), "entry 2: it is missing"),
        ("{\"origin\":1}\n".to_owned(), "it is no export"),
    ] {
        let (code, said) = verify(&altered);
        assert!(code == Some(1) && said.contains(what), "{what}: {said}");
    }
}

#[tokio::test]
async fn a_tile_that_does_not_hold_its_entries_is_found_and_proofs_do_not_need_it() {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let mut gateway = Gateway::before(&upstream.url()).start().await;
    for ttl in 1..=130 {
        let body = good_patch(&json!({"accessTokenTTL": ttl}));
        assert_eq!(gateway.patch(&jwt_auth_path(IDENTITY), &body).await.status, 200);
    }
    gateway.terminate().await;
    gateway.cli_ok(&["verify"]);
    let key = gateway.cli_ok(&["keys", "show"]).trim().to_owned();
    let proved = |gateway: &Gateway, code: i32| {
        let file = gateway.data().join("proof.json");
        std::fs::write(&file, gateway.cli_ok(&["prove", "1"])).unwrap();
        let path = file.display().to_string();
        assert_eq!(gateway.cli(&["verify", &path, "--public-key", &key]).status.code(), Some(code));
    };
    proved(&gateway, 0);
    tamper(&gateway, "UPDATE tiles SET hashes = zeroblob(8192)").await;
    let output = gateway.cli(&["verify"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("tile 0 of level 0"), "{said}");
    // A proof that rests on it proves nothing; without it the entries themselves are asked, and at the next start it is made.
    proved(&gateway, 1);
    // One that is none at all is as good as missing.
    tamper(&gateway, "PRAGMA ignore_check_constraints = ON; UPDATE tiles SET hashes = x''").await;
    let output = gateway.cli(&["verify"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("tile 0 of level 0"), "{said}");
    proved(&gateway, 0);
    tamper(&gateway, "DELETE FROM tiles").await;
    gateway.cli_ok(&["verify"]);
    proved(&gateway, 0);
    gateway.restart().await;
    let body = good_patch(&json!({"accessTokenTTL": 7}));
    assert_eq!(gateway.patch(&jwt_auth_path(IDENTITY), &body).await.status, 200);
    gateway.terminate().await;
    assert_eq!(gateway.cli_ok(&["verify"]).matches("ok     ").count(), 1);
    proved(&gateway, 0);
}

#[tokio::test]
async fn a_gateway_that_starts_on_an_altered_log_serves_and_says_so() {
    let mut gateway = history().await;
    let alter =
        "UPDATE payloads SET body = CAST(replace(CAST(body AS TEXT), '2000', '2001') AS BLOB) WHERE row = 4";
    tamper(&gateway, alter).await;
    gateway.restart().await;
    let event = gateway.wait_for_event("log_damaged").await;
    assert!(event["fault"].as_str().unwrap().starts_with("entry 3 of patchwarden.invalid/"), "{event}");
    let token = gateway.admin_token("reader");
    let ready = gateway.admin_get("/readyz", Some(&token)).await.json();
    assert_eq!(
        (&ready["status"], &ready["problems"][0]["part"]),
        (&json!("ready"), &json!("log")),
        "{ready}"
    );
    let metrics = gateway.admin_get("/metrics", Some(&token)).await.text();
    assert!(metrics.contains("patchwarden_log_faults 1"), "{metrics}");
    let mut whole = history().await;
    whole.restart().await;
    assert!(whole.wait_for_event("log_verified").await["entries"].as_u64() >= Some(8));
}

#[tokio::test]
async fn what_was_written_long_after_the_newest_signed_head_is_not_believed() {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let mut gateway = Gateway::before(&upstream.url()).start().await;
    let body = |ttl: u64| good_patch(&json!({"accessTokenTTL": ttl}));
    assert_eq!(gateway.patch(&jwt_auth_path(IDENTITY), &body(1000)).await.status, 200);
    let head = gateway.data().join("patchwarden.db.head");
    eventually(|| head.exists()).await;
    assert_eq!(gateway.patch(&jwt_auth_path(IDENTITY), &body(2000)).await.status, 200);
    gateway.terminate().await;
    // The times in the entries are what counts.
    tokio::time::sleep(std::time::Duration::from_secs(11)).await;
    gateway.restart().await;
    gateway.terminate().await;
    let key = gateway.cli_ok(&["keys", "show"]).trim().to_owned();
    gateway.cli_ok(&["verify", "--public-key", &key]);
    std::fs::remove_file(&head).unwrap();
    tamper(&gateway, "DELETE FROM checkpoints WHERE size > (SELECT MIN(size) FROM checkpoints)").await;
    let told = gateway.cli_ok(&["verify"]);
    assert!(told.contains("are signed by nobody yet"), "{told}");
    let output = gateway.cli(&["verify", "--public-key", &key]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("what follows are signed by nobody"), "{said}");
}
