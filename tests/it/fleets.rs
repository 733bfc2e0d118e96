//! One history for several gateways: a real PostgreSQL, real pooler, real standbys.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::outage::patient_send;
use crate::support::client::raw_request;
use crate::support::gateway::{Gateway, Setup, change_of, program};
use crate::support::postgres::{self, GATEWAY, OWNER, Pooler, Server};
use crate::support::upstream::Upstream;
use crate::support::{IDENTITY, eventually, good_attach, good_patch, jwt_auth_path, machine_token};

/// A gateway on that store; its lease is short, so that tests need not wait for long.
fn on(upstream: &Upstream, url: &str) -> Setup {
    Gateway::before(&upstream.url())
        .config("[upstream]\nlate_write_limit = \"2s\"\n[audit]\nlease = \"2s\"")
        .args(&["--store", url])
}

async fn lower_ttl(gateway: &Gateway, ttl: u64) -> crate::support::client::Answer {
    gateway.patch(&jwt_auth_path(IDENTITY), &good_patch(&json!({"accessTokenTTL": ttl}))).await
}

/// What a run of the binary says and ends with.
fn said(args: &[&str]) -> (Option<i32>, String) {
    let folder = TempDir::new().unwrap();
    let output = program().args(args).current_dir(folder.path()).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

/// What `serve` ends with on a store it refuses.
async fn refused(url: &str) -> String {
    let upstream = Upstream::start();
    let (status, logs) = on(&upstream, url).run_to_exit().await;
    assert_eq!(status.code(), Some(3), "{logs:?}");
    logs.join("\n")
}

#[tokio::test]
async fn two_gateways_write_one_history() {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let url = postgres::shared().url(GATEWAY, &postgres::fresh_store());
    let (one, two) = (on(&upstream, &url).start().await, on(&upstream, &url).start().await);
    for round in 0..6 {
        let gateway = if round % 2 == 0 { &one } else { &two };
        let answer = lower_ttl(gateway, 3000 - round).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let changes = one_history(&two, &url);
    let seqs: Vec<_> = changes.iter().map(|change| change["target"]["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, [6, 5, 4, 3, 2, 1]);
    let origin = |change: &Value| change["log"]["attempt"]["origin"].as_str().unwrap().to_owned();
    assert_ne!(origin(&changes[0]), origin(&changes[1]));
    assert_eq!(origin(&changes[0]), origin(&changes[2]));
    assert_eq!(changes[0]["before"]["accessTokenTTL"], 2996);
    // Each sees the other's changes one by one, by the command line and by the API.
    for change in &changes {
        let id = change["id"].as_str().unwrap();
        let shown = one.cli_ok(&["show", id, "--format", "json", "--store", &url]);
        assert_eq!(serde_json::from_str::<Value>(&shown).unwrap()["id"], change["id"]);
    }
    // A number is one of a log's; both logs have this one.
    let number = changes[1]["log"]["attempt"]["index"].to_string();
    let output = one.cli(&["show", &number, "--store", &url]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("of several logs; give its id"), "{output:?}");
}

fn one_history(gateway: &Gateway, url: &str) -> Vec<Value> {
    let page = gateway.history(&["--store", url]);
    page["changes"].as_array().expect("changes").clone()
}

#[tokio::test]
async fn a_database_that_cannot_be_relied_on_is_refused_with_what_to_do() {
    let server = Server::start();
    let database = "patchwarden";
    server.sql("postgres", "CREATE DATABASE patchwarden");
    let (owner, gateway) = (server.url(OWNER, database), server.url(GATEWAY, database));
    server.sql("postgres", &format!("CREATE ROLE {OWNER} LOGIN; CREATE ROLE {GATEWAY} LOGIN"));
    assert!(refused(&gateway).await.contains("run `patchwarden store migrate`"));
    server.make_store(database);
    let owned = refused(&owner).await;
    assert!(
        owned.contains("owns the table entries") && owned.contains("patchwarden store grants"),
        "{owned}"
    );
    for (grant, named) in [
        ("UPDATE ON entries", "UPDATE on entries"),
        ("UPDATE (envelope) ON entries", "UPDATE on entries"),
        ("DELETE ON entries", "DELETE on entries"),
        ("TRUNCATE ON entries", "TRUNCATE on entries"),
        ("UPDATE ON payloads", "UPDATE on payloads"),
        ("TRUNCATE ON payloads", "TRUNCATE on payloads"),
    ] {
        server.sql(database, &format!("GRANT {grant} TO {GATEWAY}"));
        let text = refused(&gateway).await;
        assert!(text.contains(&format!("may {named}")), "{grant}: {text}");
        server.sql(database, &format!("REVOKE {grant} FROM {GATEWAY}"));
    }
    for level in ["off", "local", "remote_write"] {
        server.sql("postgres", &format!("ALTER ROLE {GATEWAY} SET synchronous_commit = {level}"));
        let text = refused(&gateway).await;
        assert!(text.contains(&format!("synchronous_commit is `{level}`")), "{text}");
    }
    server.sql("postgres", &format!("ALTER ROLE {GATEWAY} RESET synchronous_commit"));
    server.sql(database, "INSERT INTO _sqlx_migrations SELECT 9000, description, now(), true, checksum, 0 FROM _sqlx_migrations LIMIT 1");
    assert!(refused(&gateway).await.contains("newer version (schema 9000"));
    server.sql(database, "DELETE FROM _sqlx_migrations WHERE version >= 4");
    assert!(refused(&gateway).await.contains("run `patchwarden store migrate`"));
}

#[tokio::test]
async fn the_printed_grants_are_what_a_gateway_needs_and_no_more() {
    let server = Server::start();
    let (code, printed) = said(&["store", "grants"]);
    assert_eq!(code, Some(0), "{printed}");
    let (admin, rest) = printed.split_once("-- In that database:").unwrap();
    let (schema, owner) = rest.split_once("-- 2.").unwrap();
    let (_, owner) = owner.split_once("-- 3.").unwrap();
    let (_, owner) = owner.split_once('\n').unwrap();
    let statements =
        |text: &str| text.lines().filter(|line| !line.starts_with("--")).collect::<Vec<_>>().join("\n");
    for statement in statements(admin).split(';').filter(|text| !text.trim().is_empty()) {
        server.sql("postgres", statement);
    }
    server.sql("patchwarden", &statements(schema));
    let (code, text) = said(&["store", "migrate", "--store", &server.url(OWNER, "patchwarden")]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("4 migrations done"), "{text}");
    let (_, text) = said(&["store", "migrate", "--store", &server.url(OWNER, "patchwarden")]);
    assert!(text.contains("the tables are those of this version"), "{text}");
    server.try_sql(OWNER, "patchwarden", &statements(owner)).unwrap();

    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let url = server.url(GATEWAY, "patchwarden");
    let gateway = on(&upstream, &url).start().await;
    assert_eq!(lower_ttl(&gateway, 1800).await.status, 200);
    gateway.admin_token("reader");
    for text in [
        "UPDATE entries SET kind = kind",
        "DELETE FROM entries",
        "TRUNCATE entries",
        "UPDATE payloads SET body = body",
        "DELETE FROM log_head",
        "DROP TABLE changes",
        "CREATE TABLE mine (one int)",
        "DELETE FROM payloads",
    ] {
        let refused = server.try_sql(GATEWAY, "patchwarden", text).unwrap_err();
        assert!(
            refused.contains("denied") || refused.contains("owner") || refused.contains("only by retention"),
            "{text}: {refused}"
        );
    }
    // Even the owner meets the triggers.
    for text in
        ["UPDATE entries SET kind = kind", "DELETE FROM entries", "TRUNCATE entries", "DELETE FROM payloads"]
    {
        let refused = server.try_sql(OWNER, "patchwarden", text).unwrap_err();
        assert!(refused.contains("never") || refused.contains("only by retention"), "{text}: {refused}");
    }
}

#[tokio::test]
async fn a_pooler_in_transaction_mode_is_good_enough() {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let server = Server::start();
    server.sql("postgres", "CREATE DATABASE patchwarden");
    server.make_store("patchwarden");
    let pooler = Pooler::start(&server);
    let url = pooler.url(GATEWAY, "patchwarden");
    let (one, two) = (on(&upstream, &url).start().await, on(&upstream, &url).start().await);
    for round in 0..20 {
        let gateway = if round % 2 == 0 { &one } else { &two };
        let answer = lower_ttl(gateway, 3000 - round).await;
        assert_eq!(answer.status, 200, "{}\n{}", answer.text(), pooler.log());
    }
    assert_eq!(one_history(&one, &url).len(), 20);
}

/// A fleet whose members are killed, paused and started again while clients change what they guard.
struct Fleet {
    gateways: Vec<Gateway>,
    /// Where clients find each member now.
    addresses: Arc<Mutex<Vec<SocketAddr>>>,
}

impl Fleet {
    async fn start(upstream: &Upstream, url: &str, members: usize) -> Self {
        let mut gateways = Vec::new();
        for _ in 0..members {
            gateways.push(on(upstream, url).start().await);
        }
        let addresses = Arc::new(Mutex::new(gateways.iter().map(Gateway::addr).collect()));
        Self { gateways, addresses }
    }

    async fn kill_and_restart(&mut self, member: usize) {
        self.gateways[member].kill();
        tokio::time::sleep(Duration::from_millis(300)).await;
        self.gateways[member].restart().await;
        self.addresses.lock().unwrap()[member] = self.gateways[member].addr();
    }

    async fn pause(&self, member: usize, millis: u64) {
        self.gateways[member].signal("STOP");
        tokio::time::sleep(Duration::from_millis(millis)).await;
        self.gateways[member].signal("CONT");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_and_pauses_of_any_gateway_never_change_the_order_of_writes() {
    const IDENTITIES: u64 = 20;
    const CLIENTS: u64 = 200;
    let identity = |number: u64| format!("0b9c3a52-7d3f-4f7e-9a43-{number:012x}");
    let upstream = Upstream::start();
    for number in 0..IDENTITIES {
        upstream.estate().add_identity(&identity(number));
        let mut row = good_attach();
        (row["accessTokenTTL"], row["accessTokenMaxTTL"]) = (json!(86400), json!(604_800));
        upstream.attach(&identity(number), &row);
    }
    let url = postgres::shared().url(GATEWAY, &postgres::fresh_store());
    let mut fleet = Fleet::start(&upstream, &url, 3).await;
    let (values, stop) = (Arc::new(AtomicU64::new(1)), Arc::new(AtomicBool::new(false)));
    let confirmed: Arc<Mutex<Vec<(u64, String)>>> = Arc::default();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (stop, values, confirmed) = (stop.clone(), values.clone(), confirmed.clone());
            let (addresses, path) = (fleet.addresses.clone(), jwt_auth_path(&identity(client % IDENTITIES)));
            let token = format!("Bearer {}", machine_token());
            tokio::spawn(async move {
                let mut turn = usize::try_from(client).unwrap();
                while !stop.load(Ordering::SeqCst) {
                    turn += 1;
                    let addr = {
                        let addresses = addresses.lock().unwrap();
                        addresses[turn % addresses.len()]
                    };
                    let value = values.fetch_add(1, Ordering::SeqCst);
                    let body = good_patch(&json!({"accessTokenTTL": value}));
                    let raw = raw_request(addr, "PATCH", &path, &[("authorization", &token)], Some(&body));
                    if let Some(answer) = patient_send(addr, raw).await
                        && answer.status == 200
                    {
                        confirmed.lock().unwrap().push((value, change_of(&answer)));
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            })
        })
        .collect();
    // Pauses are longer than the lease; the last also longer than the time after which others settle.
    for (round, (killed, paused, millis)) in
        [(0, 1, 2500), (2, 0, 3000), (1, 2, 2500), (0, 1, 6000)].into_iter().enumerate()
    {
        let before = upstream.writes().len();
        upstream.wait_for_writes(before + 20).await;
        tokio::time::sleep(Duration::from_millis(130 * round as u64)).await;
        fleet.kill_and_restart(killed).await;
        fleet.pause(paused, millis).await;
    }
    let before = upstream.writes().len();
    upstream.wait_for_writes(before + 20).await;
    stop.store(true, Ordering::SeqCst);
    for client in clients {
        client.await.unwrap();
    }

    // Whatever is still open is settled by the next change, once it can be late.
    let since = Instant::now();
    for number in 0..IDENTITIES {
        let patch = async || {
            let value = values.fetch_add(1, Ordering::SeqCst);
            let body = good_patch(&json!({"accessTokenTTL": value}));
            fleet.gateways[0].patch(&jwt_auth_path(&identity(number)), &body).await.status
        };
        while patch().await != 200 {
            assert!(since.elapsed() < Duration::from_secs(60), "{number} is never settled");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    eventually(|| {
        let pending = fleet.gateways[0].history(&["--outcome", "pending", "--store", &url]);
        pending["changes"].as_array().map(Vec::len) == Some(0)
    })
    .await;
    let history = fleet.gateways[0].history(&["--limit", "100000", "--store", &url]);
    let mut changes = history["changes"].as_array().unwrap().clone();
    changes.retain(|change| change["decision"] == "allow");
    changes.sort_by_key(|change| change["target"]["seq"].as_u64());
    let writes = upstream.writes();
    let value = |state: &Value| state["accessTokenTTL"].as_u64().unwrap();
    let mut settled = 0;
    for number in 0..IDENTITIES {
        let path = jwt_auth_path(&identity(number));
        let arrived: Vec<u64> =
            writes.iter().filter(|write| write.target == path).map(|write| value(&write.json())).collect();
        let of_it: Vec<&Value> =
            changes.iter().filter(|change| change["target"]["id"] == json!(identity(number))).collect();
        let seqs: Vec<u64> = of_it.iter().map(|change| change["target"]["seq"].as_u64().unwrap()).collect();
        assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>(), "{path}: one order, without gaps");
        settled += of_it.iter().filter(|change| !change["settlement"].is_null()).count();
        let has_landed =
            |change: &&&Value| change["outcome"] == "applied" || change["settlement"]["result"] == "applied";
        let recorded: Vec<u64> =
            of_it.iter().filter(has_landed).map(|change| value(&change["proposed"])).collect();
        assert_eq!(recorded, arrived, "{path}: the order of the log is the order of the writes");
        // No lost update: each change was judged by what the one before it had left.
        let mut before = 86400;
        for change in of_it.iter().filter(has_landed) {
            assert_eq!(value(&change["before"]), before, "{change}");
            before = value(&change["proposed"]);
        }
    }
    let ids: HashMap<u64, &Value> =
        changes.iter().map(|change| (value(&change["proposed"]), change)).collect();
    let confirmed = confirmed.lock().unwrap();
    for (value, id) in confirmed.iter() {
        assert_eq!(ids[value]["id"], json!(id), "what was answered is recorded");
    }
    println!("{} writes, {} answered, {settled} settled", writes.len(), confirmed.len());
    assert!(confirmed.len() > 100 && settled > 0, "{} answered, {settled} settled", confirmed.len());
}
