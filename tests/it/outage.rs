//! A log that cannot be written: changes stop, reading goes on, nothing is lost and nothing is begun anew.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _};
use tempfile::TempDir;

use crate::support::client::{Answer, Connection, raw_request};
use crate::support::gateway::{Gateway, change_of};
use crate::support::upstream::{Act, Upstream};
use crate::support::{IDENTITY, good_attach, good_patch, jwt_auth_path, machine_token};

const PATIENCE: Duration = Duration::from_secs(20);

/// Another program's exclusive transaction on a store, until it is dropped.
pub(crate) struct Lock {
    release: Option<mpsc::Sender<()>>,
    holder: Option<JoinHandle<()>>,
}

impl Lock {
    pub(crate) fn take(store: &Path) -> Self {
        let (taken, is_taken) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let store = store.to_owned();
        let holder = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut connection = connect(&store).await;
                run(&mut connection, "BEGIN EXCLUSIVE").await.unwrap();
                taken.send(()).unwrap();
                let _ = released.recv();
                run(&mut connection, "ROLLBACK").await.unwrap();
                connection.close().await.unwrap();
            });
        });
        is_taken.recv().expect("the lock is taken");
        Self { release: Some(release), holder: Some(holder) }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        drop(self.release.take());
        if let Some(holder) = self.holder.take() {
            let _ = holder.join();
        }
    }
}

async fn connect(store: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(store).create_if_missing(true);
    options.busy_timeout(Duration::from_secs(10)).connect().await.expect("the file opens")
}

async fn run(connection: &mut SqliteConnection, text: &'static str) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(text).execute(connection).await.map(drop)
}

async fn attached(config: &str) -> (Upstream, Gateway) {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let gateway = Gateway::before(&upstream.url()).config(config).start().await;
    (upstream, gateway)
}

pub(crate) fn store_of(gateway: &Gateway) -> PathBuf {
    gateway.data().join("patchwarden.db")
}

async fn lower_ttl(gateway: &Gateway, seconds: u64) -> Answer {
    gateway.patch(&jwt_auth_path(IDENTITY), &good_patch(&json!({"accessTokenTTL": seconds}))).await
}

#[track_caller]
fn assert_unavailable(answer: &Answer) {
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert_eq!(answer.json()["code"], "audit.unavailable");
    assert!(answer.get("retry-after").is_some_and(|after| after.parse::<u64>().is_ok()));
    assert_eq!(answer.get("patchwarden-answered-by"), Some("gateway"));
    assert!(answer.json()["message"].as_str().unwrap().ends_with("Nothing was changed."));
}

/// Changes until one passes.
async fn wait_until_changes_pass(gateway: &Gateway, seconds: u64) -> Answer {
    let since = Instant::now();
    loop {
        let answer = lower_ttl(gateway, seconds).await;
        if answer.status == 200 {
            return answer;
        }
        assert!(since.elapsed() < PATIENCE, "changes do not pass: {}", answer.text());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn wait_for_outcome(gateway: &Gateway, change: &str, outcome: &str) -> Value {
    let since = Instant::now();
    loop {
        let shown = gateway.show(change);
        if shown["outcome"] == outcome {
            return shown;
        }
        assert!(since.elapsed() < PATIENCE, "not {outcome}: {shown}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn status(gateway: &Gateway, path: &str) -> (u16, Value) {
    let answer = gateway.admin_get(path, None).await;
    (answer.status, answer.json()["status"].clone())
}

/// Such a limit is met before the WAL is copied back by itself.
#[tokio::test]
async fn a_low_limit_of_the_wal_is_met_again_and_again_and_changes_pass() {
    let (_upstream, gateway) = attached("[audit]\nwal_soft = \"64KiB\"\nwal_hard = \"128KiB\"\n").await;
    let store = store_of(&gateway);
    for ttl in 0..40 {
        wait_until_changes_pass(&gateway, 1000 + ttl % 2).await;
    }
    let wal = fs::metadata(format!("{}-wal", store.display())).unwrap().len();
    assert!(wal < 1024 * 1024, "{wal}");
}

#[tokio::test]
async fn while_the_store_is_locked_changes_are_refused_and_everything_else_goes_on() {
    let (upstream, mut gateway) = attached("").await;
    assert_eq!(lower_ttl(&gateway, 1800).await.status, 200);
    upstream.clear();
    let watched = format!("/api/v1/auth/universal-auth/identities/{IDENTITY}");

    let lock = Lock::take(&store_of(&gateway));
    assert_unavailable(&lower_ttl(&gateway, 1700).await);
    assert_unavailable(&gateway.post(&watched, &json!({})).await);
    assert_unavailable(&gateway.delete(&jwt_auth_path(IDENTITY)).await);
    assert!(upstream.writes().is_empty());
    gateway.wait_for_event("degraded").await;
    // It stays so, also when it is tried again and again.
    let since = Instant::now();
    while since.elapsed() < Duration::from_millis(2500) {
        assert_eq!(status(&gateway, "/readyz").await, (200, json!("degraded")));
        assert_eq!(status(&gateway, "/readyz?require=audit").await, (503, json!("degraded")));
        assert_eq!(gateway.get("/api/status").await.status, 200);
        assert_eq!(gateway.get(&jwt_auth_path(IDENTITY)).await.status, 200);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_unavailable(&lower_ttl(&gateway, 1700).await);
    assert!(upstream.writes().is_empty());
    assert!(gateway.events("recovered").is_empty());
    assert_eq!(gateway.history(&[])["changes"].as_array().map(Vec::len), Some(1), "history can be read");

    drop(lock);
    wait_until_changes_pass(&gateway, 1600).await;
    gateway.wait_for_event("recovered").await;
    assert_eq!(status(&gateway, "/readyz").await, (200, json!("ready")));
    assert_eq!(status(&gateway, "/readyz?require=audit").await, (200, json!("ready")));
    assert_ne!(gateway.post(&watched, &json!({})).await.status, 503);
    assert_eq!(upstream.writes().len(), 2);
}

#[tokio::test]
async fn a_store_renamed_away_stops_changes_and_no_new_log_is_begun() {
    let (upstream, mut gateway) = attached("[audit]\ncommit_wait = \"1s\"\n").await;
    assert_eq!(lower_ttl(&gateway, 1800).await.status, 200);
    let (store, aside) = (store_of(&gateway), gateway.data().join("aside.db"));
    fs::rename(&store, &aside).unwrap();
    let lost = lower_ttl(&gateway, 1700).await;
    assert_unavailable(&lost);
    assert_unavailable(&lower_ttl(&gateway, 1700).await);
    gateway.wait_for_event("degraded").await;
    assert_eq!(upstream.writes().len(), 1);
    let since = Instant::now();
    while since.elapsed() < Duration::from_millis(1500) {
        assert!(fs::metadata(&store).map_or(true, |file| file.len() == 0), "a new log was begun");
        assert_eq!(status(&gateway, "/readyz").await, (200, json!("degraded")));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    fs::rename(&aside, &store).unwrap();
    wait_until_changes_pass(&gateway, 1600).await;
    gateway.wait_for_event("recovered").await;
    assert_eq!(upstream.writes().len(), 2);
    assert_eq!(gateway.history(&["--outcome", "applied"])["changes"].as_array().map(Vec::len), Some(2));
    // Its intent was written after all, and too late for its client.
    let shown = wait_for_outcome(&gateway, &change_of(&lost), "not_sent").await;
    assert_eq!(shown["decision"], "allow");
    assert_eq!(gateway.history(&["--decision", "allow"])["changes"].as_array().map(Vec::len), Some(3));
    assert!(gateway.terminate().await.success());
    assert!(gateway.events("poisoned").is_empty(), "every refusal and every count found its place");
}

#[tokio::test]
async fn an_outcome_that_cannot_be_written_is_said_to_be_pending_and_written_later() {
    let (upstream, gateway) = attached("").await;
    let held = Arc::new(Mutex::new(None));
    let (store, hold) = (store_of(&gateway), held.clone());
    upstream.script("PATCH", Act::hook(move |_| *hold.lock().unwrap() = Some(Lock::take(&store))));
    let answer = lower_ttl(&gateway, 1800).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.get("patchwarden-answered-by"), Some("upstream"));
    assert_eq!(answer.get("patchwarden-record"), Some("pending"));
    assert_eq!(answer.json()["identityJwtAuth"]["accessTokenTTL"], 1800);
    let change = change_of(&answer);
    assert_eq!(gateway.show(&change)["outcome"], "pending");
    assert_unavailable(&lower_ttl(&gateway, 1700).await);

    held.lock().unwrap().take();
    let shown = wait_for_outcome(&gateway, &change, "applied").await;
    assert_eq!((&shown["after"]["accessTokenTTL"], &shown["settlement"]), (&json!(1800), &Value::Null));
    let next = wait_until_changes_pass(&gateway, 1600).await;
    assert_eq!(next.get("patchwarden-record"), None);
    assert_eq!(gateway.show(&change_of(&next))["before"]["accessTokenTTL"], 1800);
    assert_eq!(upstream.writes().len(), 2);
}

#[tokio::test]
async fn a_second_gateway_on_the_same_folder_waits_for_the_first() {
    let (upstream, folder) = (Upstream::start(), TempDir::new().unwrap());
    upstream.attach(IDENTITY, &good_attach());
    let mut first = Gateway::before(&upstream.url()).folder(folder.path()).start().await;
    assert_eq!(lower_ttl(&first, 1800).await.status, 200);
    let mut second = Gateway::before(&upstream.url()).folder(folder.path()).start().await;
    second.wait_for_event("degraded").await;
    assert_eq!(status(&second, "/readyz").await, (200, json!("degraded")));
    assert_unavailable(&lower_ttl(&second, 1700).await);
    assert_eq!(second.get("/api/status").await.status, 200);
    assert_eq!(lower_ttl(&first, 1700).await.status, 200, "the first is not disturbed");
    assert!(first.terminate().await.success());
    wait_until_changes_pass(&second, 1600).await;
    second.wait_for_event("recovered").await;
    let history = second.history(&["--decision", "allow"]);
    let seqs: Vec<_> = history["changes"].as_array().unwrap().iter().map(|c| &c["target"]["seq"]).collect();
    assert_eq!(seqs, [3, 2, 1]);
}

/// A data folder that a gateway has used, with one change in its log.
async fn used_folder() -> TempDir {
    let (upstream, folder) = (Upstream::start(), TempDir::new().unwrap());
    upstream.attach(IDENTITY, &good_attach());
    let mut gateway = Gateway::before(&upstream.url()).folder(folder.path()).start().await;
    assert_eq!(lower_ttl(&gateway, 1800).await.status, 200);
    assert!(gateway.terminate().await.success());
    folder
}

/// Must give up with exit code 3 and a message that has all of `says`, and leave the store as it was.
async fn assert_gives_up(folder: &Path, store: &Path, says: &[&str]) {
    let before = fs::read(store).unwrap();
    let url = format!("sqlite:{}", store.display());
    let setup = Gateway::before("http://127.0.0.1:9").folder(folder).args(&["--store", &url]);
    let (status, logs) = setup.run_to_exit().await;
    let logs = logs.join("\n");
    assert_eq!(status.code(), Some(3), "{logs}");
    for text in says {
        assert!(logs.contains(text), "{text:?} in {logs}");
    }
    let after = fs::read(store).unwrap();
    let places: Vec<_> =
        (0..before.len().max(after.len())).filter(|&at| before.get(at) != after.get(at)).collect();
    assert!(
        places.is_empty(),
        "{} was written to: {} {} {places:?}",
        store.display(),
        before.len(),
        after.len()
    );
}

#[tokio::test]
async fn a_file_that_is_not_ours_to_write_ends_the_gateway_and_is_left_alone() {
    let folder = used_folder().await;
    let foreign = folder.path().join("foreign.db");
    let mut connection = connect(&foreign).await;
    run(&mut connection, "CREATE TABLE songs (title TEXT); INSERT INTO songs VALUES ('a')").await.unwrap();
    connection.close().await.unwrap();
    assert_gives_up(folder.path(), &foreign, &["foreign.db", "another program", "store.url"]).await;

    let text = folder.path().join("notes.db");
    fs::write(&text, "These are notes, not a database.\n".repeat(200)).unwrap();
    assert_gives_up(folder.path(), &text, &["notes.db", "no database"]).await;

    let store = folder.path().join("data/patchwarden.db");
    let mut connection = connect(&store).await;
    run(&mut connection, "PRAGMA user_version = 99").await.unwrap();
    connection.close().await.unwrap();
    assert_gives_up(folder.path(), &store, &["patchwarden.db", "newer version", "99"]).await;
}

#[tokio::test]
async fn a_foreign_file_is_left_alone_also_by_a_fresh_data_folder() {
    let folder = TempDir::new().unwrap();
    let foreign = folder.path().join("foreign.db");
    let mut connection = connect(&foreign).await;
    run(&mut connection, "CREATE TABLE songs (title TEXT)").await.unwrap();
    connection.close().await.unwrap();
    assert_gives_up(folder.path(), &foreign, &["a new store"]).await;
}

#[tokio::test]
async fn keys_that_are_not_the_logs_own_end_the_gateway() {
    let (folder, other) = (used_folder().await, used_folder().await);
    let store = folder.path().join("data/patchwarden.db");
    assert_gives_up(other.path(), &store, &["patchwarden.db", "another data folder", "store.url"]).await;

    fs::remove_file(folder.path().join("data/fingerprint.key")).unwrap();
    assert_gives_up(folder.path(), &store, &["fingerprint.key", "backup"]).await;
    assert!(!folder.path().join("data/fingerprint.key").exists(), "no fresh key");
}

/// Every file of a data folder but those that say who runs, with its bytes.
fn contents(data: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = fs::read_dir(data).unwrap().map(Result::unwrap);
    files
        .map(|file| (file.file_name().into_string().unwrap(), file.path()))
        .filter(|(name, path)| path.is_file() && !name.ends_with("lock") && !name.ends_with("-shm"))
        .filter(|(name, _)| name != "patchwarden.db-wal")
        .map(|(name, path)| (name, fs::read(path).unwrap()))
        .collect()
}

#[tokio::test]
async fn a_key_that_is_missing_or_none_ends_the_gateway_by_its_name_and_is_not_replaced() {
    for name in ["fingerprint.key", "log.key", "instance"] {
        let pem = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIA==\n-----END PRIVATE KEY-----\n";
        let short = "ab".repeat(31);
        for wrong in [None, Some(""), Some(pem), Some(&*short)] {
            if name == "instance" && wrong.is_some_and(|wrong| !wrong.is_empty()) {
                continue;
            }
            let folder = used_folder().await;
            let data = folder.path().join("data");
            match wrong {
                None => fs::remove_file(data.join(name)).unwrap(),
                Some(wrong) => fs::write(data.join(name), wrong).unwrap(),
            }
            let before = contents(&data);
            let setup = Gateway::before("http://127.0.0.1:9").folder(folder.path());
            let (status, logs) = setup.run_to_exit().await;
            let logs = logs.join("\n");
            assert_eq!(status.code(), Some(3), "{name} {wrong:?}: {logs}");
            let what = if wrong.is_none() { "is missing" } else { "not a key of the expected kind" };
            for part in [name, what, "restore it from a backup"] {
                assert!(logs.contains(part), "{name} {wrong:?}: {part:?} in {logs}");
            }
            assert!(contents(&data) == before, "{name} {wrong:?}: something was written");
        }
    }
}

#[tokio::test]
async fn keys_that_are_swapped_or_anothers_do_not_continue_the_log() {
    let (folder, other) = (used_folder().await, used_folder().await);
    let (data, store) = (folder.path().join("data"), folder.path().join("data/patchwarden.db"));
    let own = fs::read(data.join("log.key")).unwrap();
    for strange in [data.join("fingerprint.key"), other.path().join("data/log.key")] {
        fs::copy(strange, data.join("log.key")).unwrap();
        assert_gives_up(folder.path(), &store, &["patchwarden.db", "another data folder"]).await;
    }
    fs::write(data.join("log.key"), own).unwrap();
    // A key of the right form is not the right key.
    let fingerprint = fs::read(data.join("fingerprint.key")).unwrap();
    fs::write(data.join("fingerprint.key"), "5a".repeat(32)).unwrap();
    assert_gives_up(folder.path(), &store, &["patchwarden.db", "made with another key"]).await;
    fs::write(data.join("fingerprint.key"), fingerprint).unwrap();
    // The head beside the store may be all that tells of a loss: one that says nothing is not passed over.
    let (beside, foreign) = (data.join("patchwarden.db.head"), other.path().join("data/patchwarden.db.head"));
    let head = fs::read(&beside).unwrap();
    for wrong in [b"no head\n".to_vec(), fs::read(foreign).unwrap()] {
        fs::write(&beside, wrong).unwrap();
        assert_gives_up(folder.path(), &store, &["patchwarden.db.head", "or remove it"]).await;
    }
    fs::write(&beside, head).unwrap();
    let mut gateway = Gateway::before("http://127.0.0.1:9").folder(folder.path()).start().await;
    assert!(gateway.terminate().await.success());
}

#[tokio::test]
async fn a_damaged_page_is_named_by_its_file_with_what_to_do_and_stays_as_it_is() {
    let folder = used_folder().await;
    let store = folder.path().join("data/patchwarden.db");
    let mut connection = connect(&store).await;
    let roots = "SELECT name, rootpage FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'";
    let roots: Vec<(String, i64)> = sqlx::query_as(roots).fetch_all(&mut connection).await.unwrap();
    run(&mut connection, "PRAGMA wal_checkpoint(TRUNCATE)").await.unwrap();
    connection.close().await.unwrap();
    let whole = fs::read(&store).unwrap();
    let everything = [&["verify"][..], &["history"], &["show", "last"], &["backup", "copy.db"]];
    // Where it is: whether a start reads it, and the commands that do.
    for (table, at_start, commands) in [
        ("entries", true, &everything[..]),
        ("payloads", false, &everything),
        ("log_head", true, &[everything[0], everything[3]]),
        ("changes", false, &everything[1..]),
        ("log_meta", true, &[]),
        ("_sqlx_migrations", true, &[]),
        ("projection", true, &[]),
    ] {
        let page = usize::try_from(roots.iter().find(|(name, _)| name == table).unwrap().1).unwrap();
        let mut damaged = whole.clone();
        damaged[(page - 1) * 4096..page * 4096].fill(0xff);
        fs::write(&store, &damaged).unwrap();
        if at_start {
            let parts = ["patchwarden.db", "malformed", "restore it from a backup"];
            assert_gives_up(folder.path(), &store, &parts).await;
        }
        let gateway = Gateway::before("http://127.0.0.1:9").folder(folder.path()).idle();
        for command in commands {
            let output = gateway.cli(command);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(3), "{table} {command:?}: {said}");
            for part in ["patchwarden.db", "restore it from a backup"] {
                assert!(said.contains(part), "{table} {command:?}: {part:?} in {said}");
            }
        }
        for half in ["copy.db", "copy.db.partial"] {
            assert!(!folder.path().join(half).exists(), "{table}: half a backup");
        }
        assert!(fs::read(&store).unwrap() == damaged, "{table}: the file was written to");
    }
    fs::write(&store, &whole).unwrap();
    let mut gateway = Gateway::before("http://127.0.0.1:9").folder(folder.path()).start().await;
    assert!(gateway.terminate().await.success());
}

#[tokio::test]
async fn commands_leave_a_store_that_is_not_theirs_alone() {
    let folder = used_folder().await;
    let store = folder.path().join("data/patchwarden.db");
    let whole = fs::read(&store).unwrap();
    let foreign = folder.path().join("foreign.db");
    let mut connection = connect(&foreign).await;
    run(&mut connection, "CREATE TABLE songs (title TEXT)").await.unwrap();
    connection.close().await.unwrap();
    let foreign = fs::read(&foreign).unwrap();
    let mut connection = connect(&store).await;
    run(&mut connection, "PRAGMA user_version = 99; PRAGMA wal_checkpoint(TRUNCATE)").await.unwrap();
    connection.close().await.unwrap();
    let newer = fs::read(&store).unwrap();
    for (bytes, what) in
        [(&foreign, "another program"), (&newer, "newer version"), (&whole[..5000].to_vec(), "")]
    {
        fs::write(&store, bytes).unwrap();
        let gateway = Gateway::before("http://127.0.0.1:9").folder(folder.path()).idle();
        for command in [
            &["verify"][..],
            &["history"],
            &["token", "create", "--role", "reader", "--name", "a"],
            &["prune", "--older-than", "1s"],
            &["backup", "copy.db"],
        ] {
            let output = gateway.cli(command);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(3), "{what} {command:?}: {said}");
            assert!(said.contains("patchwarden.db") && said.contains(what), "{what} {command:?}: {said}");
            assert!(fs::read(&store).unwrap() == *bytes, "{what} {command:?}: it was written to");
        }
        assert!(!folder.path().join("copy.db").exists());
    }
}

#[tokio::test]
async fn after_kills_under_load_the_log_has_everything_the_upstream_and_the_clients_saw() {
    const CLIENTS: u32 = 8;
    const ROUNDS: u64 = 20;
    let identity = |client: u32| format!("0b9c3a52-7d3f-4f7e-9a43-{client:012x}");
    let upstream = Upstream::start();
    for client in 0..CLIENTS {
        upstream.estate().add_identity(&identity(client));
        let mut row = good_attach();
        (row["accessTokenTTL"], row["accessTokenMaxTTL"]) = (json!(86400), json!(604_800));
        upstream.attach(&identity(client), &row);
    }
    let config = "[upstream]\nlate_write_limit = \"1s\"\n";
    let mut gateway = Gateway::before(&upstream.url()).config(config).start().await;
    // Each request proposes a value of its own, which tells it apart everywhere.
    let values = Arc::new(AtomicU64::new(1));
    let confirmed: Arc<Mutex<Vec<(u64, String)>>> = Arc::default();
    for round in 0..ROUNDS {
        let (addr, stop) = (gateway.addr(), Arc::new(AtomicBool::new(false)));
        let seen_before = upstream.writes().len();
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (stop, values, confirmed) = (stop.clone(), values.clone(), confirmed.clone());
                let (path, token) = (jwt_auth_path(&identity(client)), format!("Bearer {}", machine_token()));
                tokio::spawn(async move {
                    while !stop.load(Ordering::SeqCst) {
                        let value = values.fetch_add(1, Ordering::SeqCst);
                        let body = good_patch(&json!({"accessTokenTTL": value}));
                        let headers = [("authorization", token.as_str())];
                        let raw = raw_request(addr, "PATCH", &path, &headers, Some(&body));
                        match patient_send(addr, raw).await {
                            Some(answer) if answer.status == 200 => {
                                confirmed.lock().unwrap().push((value, change_of(&answer)));
                            }
                            Some(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                            None => break,
                        }
                    }
                })
            })
            .collect();
        upstream.wait_for_writes(seen_before + 4).await;
        tokio::time::sleep(Duration::from_millis(7 * round)).await;
        gateway.kill();
        stop.store(true, Ordering::SeqCst);
        for client in clients {
            client.await.unwrap();
        }
        gateway.restart().await;
    }

    let since = Instant::now();
    while gateway.history(&["--outcome", "pending"])["changes"].as_array().map(Vec::len) != Some(0) {
        assert!(since.elapsed() < PATIENCE, "an intent never got its outcome");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let history = gateway.history(&["--limit", "100000"]);
    let recorded: HashMap<u64, &Value> = history["changes"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|change| change["decision"] == "allow")
        .map(|change| (change["proposed"]["accessTokenTTL"].as_u64().unwrap(), change))
        .collect();
    let writes = upstream.writes();
    for write in &writes {
        let value = write.json()["accessTokenTTL"].as_u64().unwrap();
        assert!(recorded.contains_key(&value), "{value} was forwarded without an intent");
    }
    let confirmed = confirmed.lock().unwrap();
    for (value, id) in confirmed.iter() {
        let change =
            recorded.get(value).unwrap_or_else(|| panic!("{value} was answered and is not recorded"));
        assert_eq!((&change["id"], &change["outcome"]), (&json!(id), &json!("applied")), "{change}");
    }
    assert!(confirmed.len() >= usize::try_from(ROUNDS).unwrap(), "the load was real: {}", confirmed.len());
    assert!(writes.len() >= confirmed.len());
}

/// An answer, or nothing when the gateway died over it.
pub(crate) async fn patient_send(addr: std::net::SocketAddr, raw: Vec<u8>) -> Option<Answer> {
    let mut connection = Connection::try_open(addr).await.ok()?;
    connection.send(raw).await.ok()?;
    connection.read_answer().await.ok()
}

#[tokio::test]
async fn a_restored_backup_is_succeeded_and_says_what_is_missing() {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let mut gateway = Gateway::before(&upstream.url()).start().await;
    let lower = async |gateway: &Gateway, ttl: u64| {
        let answer =
            gateway.patch(&jwt_auth_path(IDENTITY), &good_patch(&json!({"accessTokenTTL": ttl}))).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    let (store, backup) = (gateway.data().join("patchwarden.db"), gateway.data().join("backup.db"));
    lower(&gateway, 3000).await;
    gateway.terminate().await;
    fs::copy(&store, &backup).unwrap();
    gateway.restart().await;
    lower(&gateway, 2000).await;
    gateway.terminate().await;
    fs::rename(&backup, &store).unwrap();
    for left in ["patchwarden.db-wal", "patchwarden.db-shm"] {
        let _ = fs::remove_file(gateway.data().join(left));
    }
    gateway.restart().await;
    lower(&gateway, 1000).await;
    let event = gateway.events("succession");
    assert_eq!(event.len(), 1, "{event:?}");
    let changes = gateway.history(&[])["changes"].as_array().unwrap().clone();
    assert_eq!(changes.len(), 2, "what was lost stays lost, and what is there stays readable");
    let origin = |change: &Value| change["log"]["attempt"]["origin"].clone();
    assert_eq!((&event[0]["previous"], &event[0]["origin"]), (&origin(&changes[1]), &origin(&changes[0])));
    // The number of an entry is one of a log's now; the id is one of the store's.
    assert_eq!(gateway.show(changes[1]["id"].as_str().unwrap())["before"]["accessTokenTTL"], 3600);
    assert!(!changes[0]["drift"].is_null(), "the change that was lost shows as drift");
    gateway.restart().await;
    assert_eq!(gateway.events("succession").len(), 1, "it is said once");
}
