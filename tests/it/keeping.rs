//! A log that is kept for years: what a gateway says of itself, who read it, retention, backups, upgrades of its files.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _};
use tempfile::TempDir;

use crate::support::client::{Answer, request};
use crate::support::gateway::{Gateway, change_of};
use crate::support::upstream::{Act, Upstream};
use crate::support::{IDENTITY, eventually, good_attach, good_patch, jwt_auth_path};

const OTHER: &str = "0b9c3a52-7d3f-4f7e-9a43-00000000cafe";

async fn connect(store: &Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(store).connect().await.unwrap()
}

fn store_of(gateway: &Gateway) -> PathBuf {
    gateway.data().join("patchwarden.db")
}

/// What the entries of a kind say, in their order: the name in the envelope and the payload.
async fn said(gateway: &Gateway, kind: &str) -> Vec<(String, Value)> {
    let mut connection = connect(&store_of(gateway)).await;
    let rows: Vec<(Vec<u8>, Option<Vec<u8>>)> = sqlx::query_as(
        "SELECT envelope, body FROM entries e LEFT JOIN payloads p ON p.row = e.row WHERE kind = ? ORDER BY e.row",
    )
    .bind(kind)
    .fetch_all(&mut connection)
    .await
    .unwrap();
    connection.close().await.unwrap();
    let read = |(envelope, body): (Vec<u8>, Option<Vec<u8>>)| {
        let envelope: Value = serde_json::from_slice(&envelope).unwrap();
        let body = body.map_or(Value::Null, |body| serde_json::from_slice(&body).unwrap());
        (envelope["operation"].as_str().unwrap_or_default().to_owned(), body)
    };
    rows.into_iter().map(read).collect()
}

async fn lifecycle(gateway: &Gateway) -> Vec<String> {
    let named = |(name, _): (String, Value)| name.trim_start_matches("lifecycle.").to_owned();
    said(gateway, "lifecycle").await.into_iter().map(named).collect()
}

async fn attached() -> (Upstream, Gateway) {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let gateway = Gateway::start(&upstream).await;
    (upstream, gateway)
}

async fn lower(gateway: &Gateway, ttl: u64) -> Answer {
    gateway.patch(&jwt_auth_path(IDENTITY), &good_patch(&json!({"accessTokenTTL": ttl}))).await
}

async fn applied(gateway: &Gateway, ttl: u64) -> String {
    let answer = lower(gateway, ttl).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    change_of(&answer)
}

fn verified(gateway: &Gateway) -> Value {
    let said = gateway.cli_ok(&["verify", "--format", "json"]);
    let found: Value = serde_json::from_str(&said).unwrap();
    assert!(found["logs"].as_array().unwrap().iter().all(|log| log["fault"].is_null()), "{found}");
    found["logs"].clone()
}

/// What was written before is older than `--older-than 1s` from here on.
async fn a_second_later() {
    tokio::time::sleep(std::time::Duration::from_millis(1200)).await;
}

#[tokio::test]
async fn a_run_that_did_not_say_goodbye_is_found_by_the_next() {
    let (upstream, mut gateway) = attached().await;
    applied(&gateway, 3000).await;
    upstream.script("PATCH", Act::Stall(std::time::Duration::from_secs(60)));
    let open = {
        let (address, token) = (gateway.addr(), format!("Bearer {}", gateway.token));
        tokio::spawn(async move {
            let body = good_patch(&json!({"accessTokenTTL": 2000}));
            let headers = [("Authorization", token.as_str())];
            request(address, "PATCH", &jwt_auth_path(IDENTITY), &headers, Some(&body)).await
        })
    };
    upstream.wait_for_writes(2).await;
    gateway.kill();
    open.abort();
    gateway.restart().await;
    assert_eq!(lifecycle(&gateway).await, ["start", "start", "unclean_stop"]);
    let entries = said(&gateway, "lifecycle").await;
    // 0 is the start, 1 and 2 the first change, 3 the intent that was left open.
    assert_eq!((&entries[2].1["last"]["index"], &entries[2].1["open"]), (&json!(3), &json!(1)));
    let last = entries[2].1["last"]["at"].as_str().unwrap();
    assert!(last > entries[0].1["at"].as_str().unwrap(), "{last}");
    assert_eq!(gateway.wait_for_event("unclean_stop").await["level"], "warn");
    assert_eq!(gateway.history(&["--outcome", "unknown"])["changes"].as_array().unwrap().len(), 1);

    assert!(gateway.terminate().await.success());
    gateway.restart().await;
    gateway.cli_ok(&["token", "create", "--role", "reader", "--name", "a"]);
    assert!(gateway.terminate().await.success());
    // A command that opens the log by itself is a run too.
    gateway.cli_ok(&["token", "create", "--role", "reader", "--name", "b"]);
    gateway.restart().await;
    let after = ["stop", "start", "stop", "start", "stop", "start"];
    assert_eq!(lifecycle(&gateway).await[3..], after, "said once");
    verified(&gateway);
}

#[tokio::test]
async fn what_changed_between_two_runs_is_said_with_both_digests() {
    let (_upstream, mut gateway) = attached().await;
    let first = change_of(&lower(&gateway, 3000).await);
    assert!(gateway.terminate().await.success());
    gateway.cli_ok(&["token", "create", "--role", "reader", "--name", "between"]);
    gateway.restart().await;
    assert!(!lifecycle(&gateway).await.iter().any(|name| name == "config"), "nothing changed");
    gateway.kill();
    fs::write(gateway.config_file(), "[limits]\nin_flight = 512\n").unwrap();
    gateway.restart().await;
    assert_eq!(lifecycle(&gateway).await[5..], ["start", "unclean_stop", "config"]);
    assert!(gateway.terminate().await.success());
    fs::write(gateway.config_file(), "[rules.token-lifetime]\naccess_token_ttl = { at_most = \"12h\" }\n")
        .unwrap();
    gateway.restart().await;
    assert_eq!(lifecycle(&gateway).await[8..], ["stop", "start", "policies", "config"]);
    let second = change_of(&lower(&gateway, 2000).await);
    let entries = said(&gateway, "lifecycle").await;
    let policies = &entries[10].1;
    assert_eq!(policies["old"], gateway.show(&first)["policy_digest"]);
    assert_eq!(policies["new"], gateway.show(&second)["policy_digest"]);
    let configs = [&entries[7].1, &entries[11].1];
    assert_eq!(configs[0]["new"], configs[1]["old"]);
    for config in configs {
        assert!(config["old"].as_str().unwrap().starts_with("hmac-sha256:"), "{config}");
        assert_ne!(config["old"], config["new"]);
    }
}

#[tokio::test]
async fn whoever_reads_the_history_over_http_is_on_record_by_name_and_number() {
    let (_upstream, mut gateway) = attached().await;
    let change = applied(&gateway, 3000).await;
    for name in ["auditor", "dashboard"] {
        fs::write(
            gateway.data().join(name),
            gateway.cli_ok(&["token", "create", "--role", "reader", "--name", name]),
        )
        .unwrap();
    }
    let token = |name: &str| fs::read_to_string(gateway.data().join(name)).unwrap().trim().to_owned();
    let (one, target) = (format!("/v1/changes/{change}"), format!("/v1/targets/{IDENTITY}/history"));
    for _ in 0..3 {
        assert_eq!(gateway.admin_get("/v1/changes", Some(&token("auditor"))).await.status, 200);
        assert_eq!(gateway.admin_get(&target, Some(&token("dashboard"))).await.status, 200);
    }
    assert_eq!(gateway.admin_get("/v1/changes?limit=1", Some(&token("dashboard"))).await.status, 200);
    assert_eq!(gateway.admin_get(&one, Some(&token("auditor"))).await.status, 200);
    // None of these is a read of the history.
    for path in ["/livez", "/readyz", "/metrics", "/v1/policies", "/nowhere"] {
        gateway.admin_get(path, Some(&token("auditor"))).await;
    }
    assert_eq!(gateway.admin_get("/v1/changes", Some("pw_00")).await.status, 401);
    assert_eq!(gateway.admin_get("/v1/changes", None).await.status, 401);
    // The first of each is there at once, not only when the gateway stops.
    eventually(|| verified(&gateway)[0]["kinds"]["access"] == 4).await;
    let (auditor, dashboard) = (token("auditor"), token("dashboard"));
    assert!(gateway.terminate().await.success());
    let mut counts: BTreeMap<(String, String), u64> = BTreeMap::new();
    for (name, access) in said(&gateway, "access").await {
        assert_eq!((name.as_str(), &access["role"]), ("access.history", &json!("reader")));
        let text = |name: &str| access[name].as_str().unwrap().to_owned();
        *counts.entry((text("token"), text("route"))).or_default() += access["count"].as_u64().unwrap();
        assert!(!access.to_string().contains(&auditor) && !access.to_string().contains(&dashboard));
    }
    let counts: Vec<_> = counts.iter().map(|((token, route), count)| (&**token, &**route, *count)).collect();
    let expected = [
        ("auditor", "/v1/changes", 3),
        ("auditor", "/v1/changes/{id}", 1),
        ("dashboard", "/v1/changes", 1),
        ("dashboard", "/v1/targets/{id}/history", 3),
    ];
    assert_eq!(counts, expected);
    let logs = verified(&gateway);
    assert_eq!(logs[0]["kinds"]["access"], 6, "{logs}");
    assert!(gateway.cli_ok(&["verify"]).contains("6 access, "), "{logs}");
}

#[tokio::test]
async fn what_the_gateways_did_and_who_read_is_listed_newest_first() {
    let (_upstream, mut gateway) = attached().await;
    let token = gateway.cli_ok(&["token", "create", "--role", "reader", "--name", "auditor"]);
    let token = token.trim().to_owned();
    assert_eq!(gateway.admin_get("/v1/changes", Some(&token)).await.status, 200);
    eventually(|| verified(&gateway)[0]["kinds"]["access"] == 1).await;
    assert!(gateway.terminate().await.success());
    gateway.restart().await;
    let listed = |text: &str| -> Value { serde_json::from_str(text).unwrap() };
    let names = |listed: &Value| -> Vec<String> {
        let entries = listed["entries"].as_array().unwrap().iter();
        entries.map(|entry| entry["operation"].as_str().unwrap().to_owned()).collect()
    };
    let all = listed(&gateway.cli_ok(&["lifecycle", "--format", "json"]));
    let expected = ["lifecycle.start", "lifecycle.stop", "access.history", "lifecycle.start"];
    assert_eq!((names(&all), &all["next_cursor"]), (expected.map(str::to_owned).to_vec(), &Value::Null));
    let read = &all["entries"][2];
    assert_eq!((&read["kind"], &read["said"]["token"]), (&json!("access"), &json!("auditor")));
    assert_eq!(read["log"]["origin"], verified(&gateway)[0]["origin"]);
    assert!(all["entries"][0]["at"].as_str() > all["entries"][3]["at"].as_str(), "{all}");
    let table = gateway.cli_ok(&["lifecycle", "--kind", "access", "--utc"]);
    assert!(table.contains("access.history") && table.contains("auditor"), "{table}");
    assert!(!table.contains("lifecycle."), "{table}");

    let page = async |query: &str| {
        let answer = gateway.admin_get(&format!("/v1/lifecycle?kind=lifecycle{query}"), Some(&token)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        listed(&answer.text())
    };
    let first = page("&limit=2").await;
    assert_eq!(names(&first), expected[..2]);
    let rest = page(&format!("&limit=2&cursor={}", first["next_cursor"].as_str().unwrap())).await;
    assert_eq!((names(&rest), &rest["next_cursor"]), (vec![expected[3].to_owned()], &Value::Null));
    for (query, what) in [
        ("kind=change", "`access`"),
        ("limit=0", "1 to 500"),
        ("cursor=x", "`next_cursor`"),
        ("since=1h", "`kind`"),
    ] {
        let answer = gateway.admin_get(&format!("/v1/lifecycle?{query}"), Some(&token)).await;
        assert_eq!(answer.status, 400, "{query}");
        assert!(answer.text().contains(what), "{}", answer.text());
    }
    assert_eq!(gateway.admin_get("/v1/lifecycle", None).await.status, 401);
    assert_eq!(run(&gateway, &["lifecycle", "--cursor", "x"]).0, Some(2));
    // That is a read too.
    eventually(|| {
        let told = gateway.cli_ok(&["lifecycle", "--kind", "access", "--format", "json"]);
        told.contains("\"/v1/lifecycle\"")
    })
    .await;
}

#[tokio::test]
async fn a_read_is_answered_also_while_it_cannot_be_recorded() {
    let (_upstream, mut gateway) = attached().await;
    applied(&gateway, 3000).await;
    let token = gateway.admin_token("reader");
    let lock = crate::outage::Lock::take(&store_of(&gateway));
    assert_eq!(lower(&gateway, 2000).await.status, 503);
    gateway.wait_for_event("degraded").await;
    for _ in 0..3 {
        // A reader's token that was seen before an outage still opens; this one is seen for the first time.
        let answer = gateway.admin_get("/v1/changes", Some(&token)).await;
        assert!([200, 503].contains(&answer.status), "{}", answer.text());
    }
    drop(lock);
    gateway.wait_for_event("recovered").await;
    assert_eq!(gateway.admin_get("/v1/changes", Some(&token)).await.status, 200);
    assert!(gateway.terminate().await.success());
    let reads = said(&gateway, "access").await;
    let counted: u64 = reads.iter().map(|(_, access)| access["count"].as_u64().unwrap()).sum();
    assert!((1..=4).contains(&counted), "{reads:?}");
}

/// Changes with a word in them: two that later ones came over, one denied, one that is the newest of its identity, one
/// whose end is open, and one identity's only change.
struct Told {
    upstream: Upstream,
    gateway: Gateway,
    gone: Vec<String>,
    newest: String,
    open: String,
    only: String,
}

const WORD: &str = "system:serviceaccount:marker-8b1f3c";

async fn told() -> Told {
    let upstream = Upstream::start();
    for identity in [IDENTITY, OTHER] {
        upstream.estate().add_identity(identity);
        upstream.attach(identity, &good_attach());
    }
    let open_identity = "0b9c3a52-7d3f-4f7e-9a43-00000000beef";
    upstream.estate().add_identity(open_identity);
    upstream.attach(open_identity, &good_attach());
    let gateway = Gateway::start(&upstream).await;
    let patch = async |identity: &str, members: Value| {
        change_of(&gateway.patch(&jwt_auth_path(identity), &good_patch(&members)).await)
    };
    let marked = patch(IDENTITY, json!({"boundSubject": WORD})).await;
    let back = patch(IDENTITY, json!({"boundSubject": "system:serviceaccount:build:deployer"})).await;
    let denied = patch(IDENTITY, json!({"accessTokenTTL": 0})).await;
    let newest = patch(IDENTITY, json!({"accessTokenTTL": 1800})).await;
    let only = patch(OTHER, json!({"accessTokenTTL": 1700})).await;
    upstream.script("PATCH", Act::answer(500, &json!({"statusCode": 500})));
    let open = patch(open_identity, json!({"accessTokenTTL": 1600})).await;
    Told { upstream, gateway, gone: vec![marked, back, denied], newest, open, only }
}

fn holds(path: &Path, word: &str) -> bool {
    fs::read(path).is_ok_and(|bytes| bytes.windows(word.len()).any(|part| part == word.as_bytes()))
}

#[tokio::test]
async fn retention_removes_what_was_said_and_keeps_that_it_was_said() {
    let Told { upstream, mut gateway, gone, newest, open, only } = told().await;
    assert_eq!(gateway.show(&open)["outcome"], "unknown");
    let before: Vec<Value> = gateway.history(&[])["changes"].as_array().unwrap().clone();
    let roots = verified(&gateway);
    let early = gateway.cli_ok(&["prune", "--older-than", "1h"]);
    assert_eq!(early.trim(), "0");
    assert_eq!(lifecycle(&gateway).await, ["start"], "nothing to remove is no prune");
    a_second_later().await;
    let output = gateway.cli(&["prune", "--older-than", "1s"]);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // Two changes of two entries each, and a refusal of one.
    assert_eq!((output.status.code(), out.trim()), (Some(0), "5"), "{err}");
    assert!(err.contains("backups, copies and standbys are not reached"), "{err}");

    let entries = said(&gateway, "lifecycle").await;
    let prune = &entries[1];
    assert_eq!((prune.0.as_str(), &prune.1["by"]), ("lifecycle.prune", &json!("admin.sock")));
    assert_eq!(prune.1["logs"][0]["below"].as_u64(), roots[0]["size"].as_u64(), "{prune:?} {roots}");
    let logs = verified(&gateway);
    assert_eq!((&logs[0]["pruned"], &logs[0]["kinds"]["attempt"]), (&json!(5), &json!(6)), "{logs}");
    assert!(gateway.cli_ok(&["verify"]).contains("retention removed what 5 of them said"));

    let shown = |id: &str| gateway.show(id);
    for id in &gone {
        let change = shown(id);
        let old = before.iter().find(|change| change["id"] == **id).unwrap();
        assert_eq!(change["pruned"], true, "{change}");
        for name in ["operation", "target", "decision", "code", "outcome", "policy_digest", "log"] {
            assert_eq!(change[name], old[name], "{name} is of the entry itself");
        }
        for name in ["caller", "before", "proposed", "after", "diff", "summary"] {
            assert!(change[name].is_null(), "{name}: {change}");
        }
        assert!(change["received_at"].as_str() >= old["received_at"].as_str());
        let page = gateway.cli_ok(&["show", id]);
        assert!(page.contains("retention removed who, from where") && !page.contains("caller"), "{page}");
        let explained = gateway.cli(&["policy", "explain", id]);
        let why = String::from_utf8_lossy(&explained.stderr).into_owned();
        assert_eq!(explained.status.code(), Some(1), "{why}");
        assert!(why.contains("retention has removed what was recorded"), "{why}");
    }
    for id in [&newest, &open, &only] {
        let old = before.iter().find(|change| change["id"] == **id).unwrap();
        assert_eq!(shown(id), *old, "kept whole");
    }
    let table = gateway.cli_ok(&["history"]);
    assert_eq!(table.matches("pruned by retention").count(), 2, "{table}");
    let found = |filter: &[&str]| gateway.history(filter)["changes"].as_array().unwrap().len();
    assert_eq!(found(&["--caller", "5f0d5a52-2b1c-4c55-8f7e-6f1b1d3e9c01"]), 3);
    assert_eq!((found(&["--contains", "marker-8b1f3c"]), found(&["--rule", "token-lifetime"])), (0, 0));
    assert_eq!((found(&["--decision", "deny"]), found(&["--target", IDENTITY])), (1, 4));
    let replayed = gateway.cli_ok(&["policy", "replay"]);
    assert!(replayed.contains("retention has removed what was recorded"), "{replayed}");
    assert_eq!(gateway.cli_ok(&["prune", "--older-than", "1s"]).trim(), "0", "once is enough");

    // What is known of each identity is still known.
    let mut row = good_attach();
    row["accessTokenTTL"] = json!(900);
    upstream.another_writer()(IDENTITY, &row);
    let drifted = gateway.show(&applied(&gateway, 1000).await);
    assert_eq!(drifted["drift"][0]["old"], 1800, "{drifted}");
    assert_eq!(drifted["drift"].as_array().unwrap().len(), 1, "{drifted}");

    // Nothing of it is left in the files.
    assert!(gateway.terminate().await.success());
    for name in ["patchwarden.db", "patchwarden.db-wal"] {
        assert!(!holds(&gateway.data().join(name), WORD), "{name}");
    }
    // Derived anew from what is left, the projection is the same.
    let now = gateway.history(&[]);
    let mut connection = connect(&store_of(&gateway)).await;
    sqlx::raw_sql("UPDATE projection SET version = 1").execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    gateway.restart().await;
    assert_eq!(gateway.history(&[]), now);
    assert_eq!(found_in(&gateway, &["--contains", "marker-8b1f3c"]), 0);
    verified(&gateway);
}

fn found_in(gateway: &Gateway, filter: &[&str]) -> usize {
    gateway.history(filter)["changes"].as_array().unwrap().len()
}

#[tokio::test]
async fn what_is_exported_gives_the_same_root_to_whoever_has_nothing_else() {
    let Told { gateway, .. } = told().await;
    a_second_later().await;
    gateway.cli_ok(&["prune", "--older-than", "1s"]);
    let log = verified(&gateway)[0].clone();
    let exported = gateway.cli_ok(&["export"]);
    let mut tree = ct_merkle::mem_backed_tree::MemoryBackedTree::<sha2::Sha256, Vec<u8>>::new();
    let mut pruned = 0;
    for (index, line) in exported.lines().enumerate() {
        let entry: Value = serde_json::from_str(line).unwrap();
        assert_eq!((&entry["index"], &entry["origin"]), (&json!(index), &log["origin"]));
        let envelope = entry["envelope"].as_str().unwrap();
        let said: Value = serde_json::from_str(envelope).unwrap();
        match (entry["payload"].as_str(), entry["salt"].as_str()) {
            (Some(payload), Some(salt)) => {
                use sha2::Digest as _;
                let salt = hex::decode(salt).unwrap();
                let hash = sha2::Sha256::new().chain_update(b"patchwarden.payload.v1\0").chain_update(salt);
                let digest = hex::encode(hash.chain_update(payload).finalize());
                assert_eq!(said["payload"], format!("sha256:{digest}"), "{line}");
            }
            _ => pruned += 1,
        }
        tree.push(envelope.as_bytes().to_vec());
    }
    assert_eq!((log["size"].as_u64(), pruned), (Some(exported.lines().count() as u64), 5));
    assert_eq!(log["root"], hex::encode(tree.root().as_bytes()));

    let origin = log["origin"].as_str().unwrap();
    let rest = gateway.cli_ok(&["export", "--log", origin, "--from", "3"]);
    assert_eq!(exported.lines().skip(3).collect::<Vec<_>>(), rest.lines().collect::<Vec<_>>());
    let none = gateway.cli(&["export", "--log", "nobody/00"]);
    assert_eq!(none.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&none.stderr).contains("nobody/00"));
}

#[tokio::test]
async fn what_is_removed_without_retention_saying_so_is_found() {
    let Told { mut gateway, .. } = told().await;
    a_second_later().await;
    assert!(gateway.terminate().await.success());
    // Without a gateway the command opens the store by itself.
    assert_eq!(gateway.cli_ok(&["prune", "--older-than", "1s"]).trim(), "5");
    assert_eq!(lifecycle(&gateway).await, ["start", "stop", "start", "prune", "stop"]);
    verified(&gateway);
    let size = verified(&gateway)[0]["size"].as_u64().unwrap();

    let mut connection = connect(&store_of(&gateway)).await;
    let young = "DELETE FROM payloads WHERE row = (SELECT MAX(row) FROM entries)";
    let refused = sqlx::raw_sql(young).execute(&mut connection).await.unwrap_err();
    assert!(refused.to_string().contains("only by retention"), "{refused}");
    // What retention keeps of the newest change of an identity, the database alone cannot keep.
    let newest = "CREATE TEMP TABLE kept AS SELECT * FROM payloads WHERE row = (SELECT MAX(row) FROM changes WHERE outcome = 'applied'); \
                  DELETE FROM payloads WHERE row IN (SELECT row FROM kept)";
    sqlx::raw_sql(newest).execute(&mut connection).await.unwrap();
    let wrong = gateway.cli(&["verify"]);
    let text = String::from_utf8_lossy(&wrong.stdout).into_owned();
    assert!(
        wrong.status.code() == Some(1) && text.contains("keeps that of the newest change of identity/"),
        "{text}"
    );
    let start = sqlx::raw_sql("DELETE FROM payloads WHERE row = 1").execute(&mut connection).await.unwrap();
    assert_eq!(start.rows_affected(), 1, "the database alone cannot know better");
    let wrong = gateway.cli(&["verify"]);
    let text = String::from_utf8_lossy(&wrong.stdout).into_owned();
    assert!(text.contains("entry 0: its payload is missing"), "{text}");
    assert_eq!(wrong.status.code(), Some(1));

    let mut gateway = told().await.gateway;
    assert!(gateway.terminate().await.success());
    let mut other = connect(&store_of(&gateway)).await;
    let mark = format!(
        "INSERT INTO log_meta SELECT origin, 'pruned_below', {size} FROM log_head; DELETE FROM payloads WHERE row = 3"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(mark)).execute(&mut other).await.unwrap();
    let wrong = gateway.cli(&["verify"]);
    let text = String::from_utf8_lossy(&wrong.stdout).into_owned();
    assert_eq!(wrong.status.code(), Some(1));
    assert!(text.contains("the log says so only below 0"), "{text}");
}

#[tokio::test]
async fn changes_go_on_while_much_is_removed_and_the_file_gets_smaller() {
    let (_upstream, mut gateway) = attached().await;
    for ttl in 0..640 {
        applied(&gateway, 1000 + ttl % 2).await;
    }
    let store = store_of(&gateway);
    assert!(gateway.terminate().await.success());
    let large = fs::metadata(&store).unwrap().len();
    gateway.restart().await;
    a_second_later().await;
    let mut command = gateway.command(&["prune", "--older-than", "1s"]);
    let pruning = std::thread::spawn(move || command.output().unwrap());
    let mut during = 0;
    while !pruning.is_finished() {
        applied(&gateway, 1100 + during % 2).await;
        during += 1;
        if during % 4 == 0 {
            verified(&gateway);
        }
    }
    let output = pruning.join().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let removed: u64 = said.trim().parse().unwrap();
    assert!((1278..=1280 + 2 * during).contains(&removed), "{removed} with {during} changes meanwhile");
    assert!(
        gateway.events("degraded").is_empty(),
        "a file that retention makes shorter was not cut by others"
    );
    applied(&gateway, 1500).await;
    assert!(gateway.terminate().await.success());
    let small = fs::metadata(&store).unwrap().len();
    assert!(small < large * 2 / 3, "{large} to {small}");
    gateway.restart().await;
    applied(&gateway, 1501).await;
    verified(&gateway);
}

#[tokio::test]
async fn a_prune_that_is_killed_is_finished_by_the_next() {
    let (_upstream, mut gateway) = attached().await;
    for ttl in 0..300 {
        applied(&gateway, 1000 + ttl % 2).await;
    }
    a_second_later().await;
    let mut command = gateway.command(&["prune", "--older-than", "1s"]);
    let pruning = std::thread::spawn(move || command.output().unwrap());
    let since = std::time::Instant::now();
    // The entry comes first, so from here on some payloads may be gone.
    while !lifecycle(&gateway).await.iter().any(|name| name == "prune") {
        assert!(since.elapsed().as_secs() < 20);
    }
    gateway.kill();
    let output = pruning.join().unwrap();
    gateway.restart().await;
    let logs = verified(&gateway);
    assert!(logs[0]["pruned"].as_u64().unwrap() <= 598, "{logs}");
    // Killed in the middle the command says so; a moment later it had done its work.
    assert!([Some(0), Some(3)].contains(&output.status.code()), "{output:?}");
    gateway.cli_ok(&["prune", "--older-than", "1s"]);
    let logs = verified(&gateway);
    assert_eq!(logs[0]["pruned"], 598, "{logs}");
    let changes = gateway.history(&["--limit", "1000"])["changes"].as_array().unwrap().clone();
    assert_eq!(changes.iter().filter(|change| change["pruned"] == true).count(), 299);
    assert!(lifecycle(&gateway).await.contains(&"unclean_stop".to_owned()));
}

#[tokio::test]
async fn only_operators_prune_and_only_what_is_past() {
    let (_upstream, gateway) = attached().await;
    let (reader, operator) = (gateway.admin_token("reader"), gateway.admin_token("operator"));
    let ask = async |token: &str, path: &str, body: Value| {
        let authorization = format!("Bearer {token}");
        request(gateway.admin_addr(), "POST", path, &[("Authorization", &authorization)], Some(&body)).await
    };
    for path in ["/v1/prune", "/v1/backups"] {
        assert_eq!(ask(&reader, path, json!({})).await.status, 403, "{path}");
        assert_eq!(ask(&operator, path, json!({"x": 1})).await.status, 400, "{path}");
    }
    for before in ["yesterday", "2999-01-01T00:00:00Z"] {
        let answer = ask(&operator, "/v1/prune", json!({"before": before})).await;
        assert_eq!(answer.status, 400, "{}", answer.text());
    }
    let answer = ask(&operator, "/v1/prune", json!({"before": "2020-01-01T00:00:00Z"})).await;
    assert_eq!(answer.json(), json!({"removed": 0, "done": true}));
    let zero = gateway.cli(&["prune", "--older-than", "0s"]);
    assert_eq!(zero.status.code(), Some(2));
    let bare = gateway.cli(&["prune"]);
    assert_eq!(bare.status.code(), Some(2));
}

/// The binary's answer: exit code, standard output and standard error.
fn run(gateway: &Gateway, args: &[&str]) -> (Option<i32>, String, String) {
    let output = gateway.cli(args);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test]
async fn a_backup_made_under_load_is_whole_private_and_never_over_another_file() {
    let (_upstream, mut gateway) = attached().await;
    applied(&gateway, 3000).await;
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("backup.db");
    let path = file.display().to_string();
    let mut command = gateway.command(&["backup", &path]);
    let making = std::thread::spawn(move || command.output().unwrap());
    let mut ttl = 2000;
    while !making.is_finished() {
        applied(&gateway, ttl).await;
        ttl -= 1;
    }
    let output = making.join().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    assert!(out.contains("verified") && err.contains("it holds no keys"), "{out}{err}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
    // Not in WAL mode: it is read also where nothing can be written beside it.
    assert_eq!(fs::read(&file).unwrap()[18..20], [1, 1]);
    for key in ["fingerprint.key", "log.key"] {
        let text = fs::read_to_string(gateway.data().join(key)).unwrap();
        assert!(!holds(&file, text.trim()), "{key}");
        let bytes: Vec<u8> = hex::decode(text.trim()).unwrap();
        let whole = fs::read(&file).unwrap();
        assert!(!whole.windows(32).any(|part| part == bytes), "{key}");
    }
    let url = format!("sqlite:{path}");
    let inside = gateway.cli_ok(&["verify", "--store", &url]);
    assert!(inside.starts_with("ok"), "{inside}");
    assert!(inside.contains(out.lines().nth(1).unwrap().rsplit(' ').next().unwrap()), "{inside}{out}");
    assert!(gateway.cli_ok(&["history", "--store", &url]).contains("jwt-auth.update"));

    let entries = said(&gateway, "lifecycle").await;
    let (name, backup) = entries.last().unwrap();
    assert_eq!((name.as_str(), &backup["file"]), ("lifecycle.backup", &json!("backup.db")));
    assert_eq!(backup["bytes"], fs::metadata(&file).unwrap().len());
    assert!(out.contains(backup["logs"][0]["root"].as_str().unwrap()), "{backup}");
    assert!(backup["logs"][0]["size"].as_u64().unwrap() >= 3, "{backup}");

    let before = fs::read(&file).unwrap();
    let (code, _, err) = run(&gateway, &["backup", &path]);
    assert_eq!(code, Some(3));
    assert!(err.contains("is there already and is not written over"), "{err}");
    assert_eq!(fs::read(&file).unwrap(), before);
    let nowhere = folder.path().join("no/such/backup.db").display().to_string();
    assert_eq!(run(&gateway, &["backup", &nowhere]).0, Some(3));

    assert!(gateway.terminate().await.success());
    let second = folder.path().join("second.db").display().to_string();
    gateway.cli_ok(&["backup", &second]);
    assert_eq!(lifecycle(&gateway).await[1..], ["backup", "stop", "start", "backup", "stop"]);
    let (code, _, err) = run(&gateway, &["backup", &second, "--store", "postgres://u@127.0.0.1:1/d"]);
    assert_eq!(code, Some(3));
    assert!(err.contains("pg_dump") && err.contains("pg_basebackup"), "{err}");
}

#[tokio::test]
async fn a_backup_is_put_back_only_where_it_belongs_and_says_what_it_does_not_hold() {
    let (_upstream, mut gateway) = attached().await;
    let kept = applied(&gateway, 3000).await;
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    gateway.cli_ok(&["backup", &path("backup.db")]);
    let lost = applied(&gateway, 2000).await;

    let (code, out, err) = run(&gateway, &["restore", &path("backup.db"), "--check"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("3 entries"), "{out}");
    let running = run(&gateway, &["restore", &path("backup.db")]);
    assert_eq!(running.0, Some(3));
    assert!(running.2.contains("a gateway uses this data folder"), "{}", running.2);
    assert!(gateway.terminate().await.success());
    let store = store_of(&gateway);
    let before = fs::read(&store).unwrap();
    let (code, _, err) = run(&gateway, &["restore", &path("backup.db")]);
    assert_eq!(code, Some(3), "{err}");
    assert!(err.contains("never written over"), "{err}");
    assert_eq!(fs::read(&store).unwrap(), before);

    // Of another data folder, damaged, no store at all, a copy with its WAL beside it.
    let (_other_upstream, other) = attached().await;
    let (code, _, err) = run(&other, &["restore", &path("backup.db"), "--check"]);
    assert_eq!(code, Some(1));
    assert!(err.contains("holds no log of the data folder") && err.contains("was made with"), "{err}");
    let backup = fs::read(path("backup.db")).unwrap();
    let needle = b"before_revision";
    let at = backup.windows(needle.len()).position(|part| part == needle).unwrap();
    let mut damaged = backup.clone();
    damaged[at] = b'X';
    fs::write(path("damaged.db"), &damaged).unwrap();
    let (code, _, err) = run(&gateway, &["restore", &path("damaged.db"), "--check"]);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("damaged.db"), "{err}");
    fs::write(path("notes.db"), "These are notes.\n".repeat(400)).unwrap();
    let (code, _, err) = run(&gateway, &["restore", &path("notes.db"), "--check"]);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("notes.db") && err.contains("no database"), "{err}");
    assert_eq!(run(&gateway, &["restore", &path("nothing.db")]).0, Some(3));
    fs::copy(path("backup.db"), path("copy.db")).unwrap();
    fs::write(path("copy.db-wal"), "x").unwrap();
    let (code, _, err) = run(&gateway, &["restore", &path("copy.db"), "--check"]);
    assert_eq!(code, Some(1));
    assert!(err.contains("copy.db-wal"), "{err}");

    fs::rename(&store, gateway.data().join("aside.db")).unwrap();
    let (code, _, err) = run(&gateway, &["restore", &path("backup.db")]);
    assert_eq!(code, Some(0), "{err}");
    // The backup's entry, the change and the stop.
    assert!(err.contains("4 entries of") && err.contains("from entry 3 on"), "{err}");
    assert!(err.contains("succession"), "{err}");
    assert_eq!(fs::metadata(&store).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read(path("backup.db")).unwrap(), backup, "the backup stays as it is");
    gateway.restart().await;
    let previous = gateway.wait_for_event("succession").await["previous"].clone();
    let logs = verified(&gateway).as_array().unwrap().clone();
    assert_eq!(logs.len(), 2);
    assert!(logs.iter().any(|log| log["origin"] == previous && log["size"] == 3), "{logs:?}");
    assert_eq!(gateway.show(&kept)["outcome"], "applied");
    assert_eq!(gateway.cli(&["show", &lost]).status.code(), Some(1));
    let drifted = gateway.show(&applied(&gateway, 1000).await);
    assert!(!drifted["drift"].is_null(), "{drifted}");

    // From here on the log is another one; the head outside is of it when the gateway has stopped.
    assert!(gateway.terminate().await.success());
    let (code, _, err) = run(&gateway, &["restore", &path("backup.db"), "--check"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(err.contains("was succeeded by"), "{err}");
    // A backup of everything loses nothing.
    fs::copy(&store, path("whole.db")).unwrap();
    let (code, _, err) = run(&gateway, &["restore", &path("whole.db"), "--check"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(err.contains("nothing is lost"), "{err}");
    eventually(|| gateway.events("stopped").len() == 2).await;

    // Put back all the same, the log of then is not gone on with: what followed it is known by the head outside alone.
    let followed = std::fs::read_to_string(gateway.data().join("patchwarden.db.head")).unwrap();
    let followed = followed.lines().next().unwrap().to_owned();
    fs::rename(&store, gateway.data().join("aside-too.db")).unwrap();
    assert_eq!(run(&gateway, &["restore", &path("backup.db")]).0, Some(0));
    gateway.restart().await;
    eventually(|| gateway.events("succession").len() == 2).await;
    let told = gateway.events("succession")[1].clone();
    assert_eq!(told["previous"], previous);
    assert!(told.to_string().contains(&followed), "{told}");
    applied(&gateway, 900).await;
    let logs = verified(&gateway).as_array().unwrap().clone();
    assert_eq!(logs.len(), 2);
    for log in &logs {
        assert_ne!(log["origin"], *followed, "it is gone");
        assert!(log["origin"] != previous || log["size"] == 3, "nothing was added to it: {logs:?}");
    }
}

/// One folder a schema, each with the log of a gateway of that day; `README.md` beside them says how they were made.
fn fixtures() -> PathBuf {
    crate::tidy::root().join("tests/it/fixtures")
}

/// The newest schema there are migrations for.
fn newest_schema() -> i64 {
    sqlx::migrate!("migrations/sqlite").iter().map(|migration| migration.version).max().unwrap()
}

#[tokio::test]
async fn a_store_of_every_schema_opens_verifies_and_goes_on() {
    let mut tried = 0;
    for schema in 1..=newest_schema() {
        let kept = fixtures().join(format!("schema-{schema}"));
        let Ok(files) = fs::read_dir(&kept) else {
            assert_eq!(schema, newest_schema(), "no store of schema {schema}: see README.md there");
            continue;
        };
        let (upstream, folder) = (Upstream::start(), TempDir::new().unwrap());
        upstream.attach(IDENTITY, &good_attach());
        let data = folder.path().join("data");
        fs::create_dir(&data).unwrap();
        for file in files.map(Result::unwrap) {
            fs::copy(file.path(), data.join(file.file_name())).unwrap();
        }
        let mut connection = connect(&data.join("patchwarden.db")).await;
        let version: i64 =
            sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut connection).await.unwrap();
        let heads = "SELECT origin, size FROM log_head";
        let (origin, size): (String, i64) = sqlx::query_as(heads).fetch_one(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        assert_eq!(version, schema);

        if schema < newest_schema() {
            put_back_before_an_upgrade(folder.path(), schema, size);
        }
        let mut gateway = Gateway::before(&upstream.url()).folder(folder.path()).start().await;
        let changes = gateway.history(&[])["changes"].as_array().unwrap().clone();
        let told: Vec<_> = changes.iter().map(|change| (&change["decision"], &change["outcome"])).collect();
        let words = |decision: &str, outcome: &str| (json!(decision), json!(outcome));
        let expected = [words("deny", "none"), words("allow", "applied"), words("allow", "applied")];
        let expected: Vec<_> = expected.iter().map(|(decision, outcome)| (decision, outcome)).collect();
        assert_eq!(told, expected, "schema {schema}");
        assert_eq!(changes[1]["diff"][0]["value"], 2000, "{}", changes[1]);
        let next = gateway.show(&applied(&gateway, 1000).await);
        let attempt = &next["log"]["attempt"];
        assert_eq!((&attempt["origin"], &next["target"]["seq"]), (&json!(origin), &json!(3)), "{next}");
        assert!(attempt["index"].as_i64().unwrap() >= size, "the same log goes on");
        assert_eq!(gateway.cli_ok(&["token", "list"]).matches("auditor").count(), 1);
        let logs = verified(&gateway);
        assert!(logs[0]["size"].as_i64().unwrap() >= size + 3, "{logs}");
        assert!(gateway.terminate().await.success());
        gateway.restart().await;
        assert_eq!(gateway.history(&[])["changes"].as_array().unwrap().len(), 4);
        tried += 1;
    }
    assert!(tried >= 3);
}

/// Before anything migrates it, a store is not read; it is backed up, and the backup put back in its place.
fn put_back_before_an_upgrade(folder: &Path, schema: i64, size: i64) {
    let idle = Gateway::before("http://127.0.0.1:9").folder(folder).idle();
    let store = store_of(&idle);
    let before = fs::read(&store).unwrap();
    let backup = folder.join("before.db").display().to_string();
    let (code, out, err) = run(&idle, &["backup", &backup]);
    assert_eq!(code, Some(0), "{schema}: {err}");
    assert!(out.contains(&format!("{size} entries")), "{schema}: {out}");
    assert!(err.contains("the log is not told of it"), "{schema}: {err}");
    let (code, _, err) = run(&idle, &["history"]);
    assert_eq!(code, Some(3), "{err}");
    assert!(err.contains(&format!("has schema {schema} and this version reads")), "{err}");
    assert!(fs::read(&store).unwrap() == before, "{schema}: it was written to");
    fs::remove_file(&store).unwrap();
    let (code, _, err) = run(&idle, &["restore", &backup]);
    assert_eq!(code, Some(0), "{schema}: {err}");
    let left: Vec<_> = fs::read_dir(idle.data()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("looked")), "{left:?}");
}

/// Writes the fixtures anew with `PATCHWARDEN_TEST_FIXTURES=make`: a log of this version, in tables of each older schema.
#[tokio::test]
async fn fixtures_are_made_where_asked_for() {
    if std::env::var("PATCHWARDEN_TEST_FIXTURES").as_deref() != Ok("make") {
        return;
    }
    let (_upstream, mut gateway) = attached().await;
    for ttl in [3000, 2000] {
        applied(&gateway, ttl).await;
    }
    assert_eq!(lower(&gateway, 0).await.status, 403);
    gateway.cli_ok(&["token", "create", "--role", "reader", "--name", "auditor"]);
    assert!(gateway.terminate().await.success());
    for schema in 1..=newest_schema() {
        let folder = fixtures().join(format!("schema-{schema}"));
        if folder.exists() {
            continue;
        }
        fs::create_dir_all(&folder).unwrap();
        for key in ["fingerprint.key", "log.key", "instance"] {
            fs::copy(gateway.data().join(key), folder.join(key)).unwrap();
        }
        let store = folder.join("patchwarden.db");
        let _ = fs::remove_file(&store);
        let options = SqliteConnectOptions::new()
            .filename(&store)
            .create_if_missing(true)
            .page_size(4096)
            .auto_vacuum(sqlx::sqlite::SqliteAutoVacuum::Incremental);
        let mut connection: SqliteConnection = options.connect().await.unwrap();
        let mut migrations = sqlx::migrate!("migrations/sqlite");
        let upto: Vec<_> = migrations.iter().filter(|one| one.version <= schema).cloned().collect();
        migrations.migrations = upto.into();
        migrations.run_direct(None, &mut connection, false).await.unwrap();
        let text = format!("ATTACH '{}' AS new", store_of(&gateway).display());
        sqlx::raw_sql(sqlx::AssertSqlSafe(text)).execute(&mut connection).await.unwrap();
        let tables: Vec<String> = sqlx::query_scalar(
            "SELECT name FROM main.sqlite_schema WHERE type = 'table' AND name NOT IN ('_sqlx_migrations', 'projection') \
             AND name NOT LIKE 'sqlite_%' ORDER BY name <> 'entries', name",
        )
        .fetch_all(&mut connection)
        .await
        .unwrap();
        for table in tables {
            let columns: Vec<String> =
                sqlx::query_scalar("SELECT name FROM pragma_table_info(?, 'main') ORDER BY cid")
                    .bind(&table)
                    .fetch_all(&mut connection)
                    .await
                    .unwrap();
            let columns = columns.join(", ");
            let text = format!("INSERT INTO main.{table} ({columns}) SELECT {columns} FROM new.{table}");
            sqlx::raw_sql(sqlx::AssertSqlSafe(text)).execute(&mut connection).await.unwrap();
        }
        if schema >= 4 {
            sqlx::raw_sql("UPDATE main.projection SET version = 2").execute(&mut connection).await.unwrap();
        }
        sqlx::raw_sql("DETACH new; VACUUM; PRAGMA journal_mode = WAL")
            .execute(&mut connection)
            .await
            .unwrap();
        connection.close().await.unwrap();
    }
}

#[tokio::test]
async fn the_newest_drift_of_an_identity_is_kept_because_the_next_is_told_by_it() {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let gateway = Gateway::start(&upstream).await;
    applied(&gateway, 1800).await;
    let drifted = async |ttl: u64| {
        let mut row = good_attach();
        row["accessTokenTTL"] = json!(ttl);
        upstream.another_writer()(IDENTITY, &row);
        // Refused, so that no change is newer than the drift it saw.
        let denied = good_patch(&json!({"accessTokenTTL": 0}));
        assert_eq!(gateway.patch(&jwt_auth_path(IDENTITY), &denied).await.status, 403);
        gateway.history(&["--kind", "drift"])["changes"].as_array().unwrap().clone()
    };
    assert_eq!(drifted(900).await[0]["diff"][0]["old"], 1800);
    a_second_later().await;
    assert_eq!(gateway.cli_ok(&["prune", "--older-than", "1s"]).trim(), "1", "the refusal");
    let drift = drifted(800).await;
    assert_eq!((drift.len(), &drift[0]["diff"][0]["old"]), (2, &json!(900)), "{drift:?}");
}
