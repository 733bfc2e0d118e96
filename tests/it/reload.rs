//! Policies that change while the gateway runs: what is right is taken, what is wrong is not, and every request is
//! judged whole by one of them.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::client::Answer;
use crate::support::gateway::{Gateway, change_of};
use crate::support::upstream::Upstream;
use crate::support::{IDENTITY, eventually, good_attach, good_patch, jwt_auth_path};
use crate::tls::written;

fn uses(at_most: u32) -> String {
    format!("id = \"uses\"\ntitle = \"t\"\nbuiltin = \"uses-limit\"\n[params]\nat_most = {at_most}\n")
}

async fn with(folder: &Path, every: &str) -> (Upstream, Gateway) {
    let upstream = Upstream::start();
    let mut row = good_attach();
    row["accessTokenNumUsesLimit"] = json!(5);
    upstream.attach(IDENTITY, &row);
    let config = format!("[policies]\ndir = {:?}\nreload = \"{every}\"\n", folder.display().to_string());
    let gateway = Gateway::before(&upstream.url()).config(&config).start().await;
    (upstream, gateway)
}

async fn set_uses(gateway: &Gateway, uses: u32) -> Answer {
    gateway.patch(&jwt_auth_path(IDENTITY), &good_patch(&json!({"accessTokenNumUsesLimit": uses}))).await
}

/// Operation names of the lifecycle entries in the log.
async fn lifecycle(gateway: &Gateway) -> Vec<String> {
    use sqlx::ConnectOptions as _;
    let store = gateway.data().join("patchwarden.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(store).read_only(true);
    let mut connection = options.connect().await.unwrap();
    let query = sqlx::query_scalar("SELECT envelope FROM entries WHERE kind = 'lifecycle' ORDER BY row");
    let envelopes: Vec<Vec<u8>> = query.fetch_all(&mut connection).await.unwrap();
    let name = |envelope: &Vec<u8>| {
        let envelope: Value = serde_json::from_slice(envelope).unwrap();
        envelope["operation"].as_str().unwrap().to_owned()
    };
    envelopes.iter().map(name).collect()
}

#[tokio::test]
async fn a_changed_rule_is_in_force_without_a_restart() {
    let folder = TempDir::new().unwrap();
    written(folder.path(), "uses.toml", &uses(10));
    let (upstream, mut gateway) = with(folder.path(), "200ms").await;
    let before = set_uses(&gateway, 9).await;
    assert_eq!(before.status, 200, "{}", before.text());
    written(folder.path(), "uses.toml", &uses(5));
    let event = gateway.wait_for_event("reloaded").await;
    let after = set_uses(&gateway, 8).await;
    assert_eq!(after.status, 403, "{}", after.text());
    let digests = [&before, &after].map(|answer| gateway.show(&change_of(answer))["policy_digest"].clone());
    assert_ne!(digests[0], digests[1]);
    assert_eq!(digests[1], event["policy_digest"]);
    assert_eq!(upstream.writes().len(), 1);
    assert_eq!(lifecycle(&gateway).await, ["lifecycle.start", "lifecycle.policies"]);
    std::fs::remove_file(folder.path().join("uses.toml")).unwrap();
    eventually(|| gateway.events("reloaded").len() == 2).await;
    assert_eq!(set_uses(&gateway, 0).await.status, 200, "no rule, no limit");
}

#[tokio::test]
async fn what_is_wrong_is_not_taken_and_everybody_can_see_why() {
    let folder = TempDir::new().unwrap();
    written(folder.path(), "uses.toml", &uses(10));
    let (_upstream, mut gateway) = with(folder.path(), "200ms").await;
    let token = gateway.admin_token("reader");
    written(folder.path(), "uses.toml", &uses(0));
    written(folder.path(), "more.toml", "id = \"more\"\n");
    let failed = gateway.wait_for_event("reload_failed").await;
    for part in ["uses.toml:5: `params.at_most`", "more.toml: `title`", "more.toml: `builtin`"] {
        assert!(failed["detail"].as_str().unwrap().contains(part), "{part}: {failed}");
    }
    assert_eq!(set_uses(&gateway, 11).await.status, 403, "what was in force is in force");
    assert_eq!(set_uses(&gateway, 10).await.status, 200);
    let ready = gateway.admin_get("/readyz", Some(&token)).await;
    assert_eq!((ready.status, &ready.json()["status"]), (200, &json!("ready")));
    let problem = ready.json()["problems"][0].clone();
    assert_eq!(problem["part"], "policies");
    assert!(problem["detail"].as_str().unwrap().contains("params.at_most"), "{problem}");
    let anybody = gateway.admin_get("/readyz", None).await.json();
    assert!(anybody["problems"][0].get("detail").is_none(), "{anybody}");
    let metrics = gateway.admin_get("/metrics", Some(&token)).await.text();
    assert!(metrics.contains("patchwarden_policy_reload_failed 1"));
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(gateway.events("reload_failed").len(), 1, "the same problem is said once");

    std::fs::remove_file(folder.path().join("more.toml")).unwrap();
    written(folder.path(), "uses.toml", &uses(20));
    gateway.wait_for_event("reloaded").await;
    assert_eq!(gateway.admin_get("/readyz", None).await.json()["problems"], json!([]));
    assert_eq!(set_uses(&gateway, 11).await.status, 200);
    assert_eq!(
        lifecycle(&gateway).await,
        ["lifecycle.start", "lifecycle.policies_refused", "lifecycle.policies"]
    );
}

#[tokio::test]
async fn a_bundle_whose_cases_fail_is_not_taken() {
    let folder = TempDir::new().unwrap();
    written(folder.path(), "uses.toml", &uses(10));
    let (_upstream, mut gateway) = with(folder.path(), "1h").await;
    std::fs::create_dir(folder.path().join("cases")).unwrap();
    let case = "[[case]]\nname = \"unlimited is fine\"\noperation = \"jwt-auth.attach\"\n\
                body = '{\"configurationType\": \"jwks\", \"jwksUrl\": \"https://a.example\", \"boundClaims\": {}}'\n\
                expect = { decision = \"allow\" }\n";
    written(&folder.path().join("cases"), "uses.toml", case);
    gateway.signal("HUP");
    let failed = gateway.wait_for_event("reload_failed").await;
    assert!(failed["detail"].as_str().unwrap().contains("unlimited is fine: expected allow"), "{failed}");
}

#[tokio::test]
async fn a_swapped_link_counts_and_a_touched_file_does_not() {
    let folder = TempDir::new().unwrap();
    for (version, at_most) in [("..2026_01", 10), ("..2026_02", 5)] {
        std::fs::create_dir(folder.path().join(version)).unwrap();
        written(&folder.path().join(version), "uses.toml", &uses(at_most));
    }
    // As Kubernetes mounts a ConfigMap.
    symlink("..2026_01", folder.path().join("..data")).unwrap();
    symlink("..data/uses.toml", folder.path().join("uses.toml")).unwrap();
    let (_upstream, mut gateway) = with(folder.path(), "200ms").await;
    written(&folder.path().join("..2026_01"), "uses.toml", &uses(10));
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(gateway.events("reloaded").is_empty(), "the same content");
    symlink("..2026_02", folder.path().join("..data_tmp")).unwrap();
    std::fs::rename(folder.path().join("..data_tmp"), folder.path().join("..data")).unwrap();
    gateway.wait_for_event("reloaded").await;
    assert_eq!(set_uses(&gateway, 6).await.status, 403);
}

/// How often; more by building with `RELOADS=10000`, at some 15 ms each.
const RELOADS: Option<&str> = option_env!("RELOADS");

#[tokio::test]
async fn under_load_every_decision_is_that_of_the_bundle_it_cites() {
    let reloads = RELOADS.map_or(10, |reloads| reloads.parse().unwrap());
    reloaded_under_load(reloads, 150).await;
}

/// Changes are made until the policies were swapped and loaded so often.
async fn reloaded_under_load(reloads: usize, changes: usize) {
    let folder = TempDir::new().unwrap();
    written(folder.path(), "uses.toml", &uses(10));
    let (_upstream, gateway) = with(folder.path(), "10ms").await;
    let path = folder.path().join("uses.toml");
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let swapping = std::thread::spawn(move || {
        let mut swaps = 0_u32;
        while stopped.try_recv().is_err() {
            // Written beside and renamed: half a file is never seen.
            let beside = path.with_extension("tmp");
            std::fs::write(&beside, uses(if swaps.is_multiple_of(2) { 5 } else { 10 })).unwrap();
            std::fs::rename(&beside, &path).unwrap();
            swaps += 1;
            // Longer than between two looks: what was swapped to and fro in between is no change.
            std::thread::sleep(Duration::from_millis(15));
        }
    });
    let mut answers = std::collections::BTreeMap::new();
    let (mut slowest, mut done) = (Duration::ZERO, 0);
    while answers.len() < changes || done < reloads {
        let begun = std::time::Instant::now();
        let answer = set_uses(&gateway, 8).await;
        slowest = slowest.max(begun.elapsed());
        assert!(matches!(answer.status, 200 | 403), "{}", answer.text());
        answers.insert(change_of(&answer), answer.status);
        if answers.len() % 50 == 0 {
            done = gateway.events("reloaded").len();
        }
    }
    stop.send(()).unwrap();
    swapping.join().unwrap();
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
    let mut decisions = std::collections::BTreeMap::new();
    let mut told = 0;
    for change in gateway.history(&["--limit", "1000000"])["changes"].as_array().unwrap() {
        let Some(status) = answers.get(change["id"].as_str().unwrap()) else { continue };
        let decision = change["decision"].as_str().unwrap().to_owned();
        assert_eq!(decision == "allow", *status == 200, "{change}");
        decisions
            .entry(change["policy_digest"].to_string())
            .or_insert_with(std::collections::BTreeSet::new)
            .insert(decision);
        told += 1;
    }
    eprintln!("{done} reloads, {} changes, the slowest took {slowest:?}", answers.len());
    assert_eq!(told, answers.len(), "each answer is on record");
    assert_eq!(decisions.len(), 2);
    assert!(decisions.values().all(|decisions| decisions.len() == 1), "{decisions:?}");
}
