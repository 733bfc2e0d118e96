//! One history for several gateways: a real PostgreSQL, real pooler, real standbys.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::outage::patient_send;
use crate::support::certificates::{Authority, Issued};
use crate::support::client::raw_request;
use crate::support::gateway::{Gateway, Setup, change_of, program};
use crate::support::postgres::{self, GATEWAY, OWNER, Pooler, Proxy, Server, When};
use crate::support::upstream::{Act, Matcher, Upstream};
use crate::support::{IDENTITY, eventually, good_attach, good_patch, jwt_auth_path, machine_token};

/// A gateway on that store; its lease is short, so that tests need not wait for long.
fn on(upstream: &Upstream, url: &str) -> Setup {
    Gateway::before(&upstream.url())
        .config("[upstream]\nlate_write_limit = \"2s\"\n[audit]\nlease = \"2s\"")
        .args(&["--store", url])
        .shared_fingerprints()
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
    // Pages, filters and replays go over all logs alike, whichever gateway is asked.
    let token = two.admin_token("reader");
    let (mut paged, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("/v1/changes?limit=2&target={IDENTITY}{cursor}");
        let page = one.admin_get(&path, Some(&token)).await.json();
        paged.extend(page["changes"].as_array().unwrap().iter().map(|change| change["id"].clone()));
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(paged, changes.iter().map(|change| change["id"].clone()).collect::<Vec<_>>());
    let filtered = one.history(&["--store", &url, "--contains", "2997", "--changed", "/accessTokenTTL"]);
    assert_eq!(filtered["changes"].as_array().map(Vec::len), Some(2), "from it and to it: {filtered}");
    let replayed = one.cli_ok(&["policy", "replay", "--format", "json", "--store", &url]);
    let replayed: Value = serde_json::from_str(&replayed).unwrap();
    assert_eq!(replayed["unchanged"]["allow"], 6, "{replayed}");
    let verified = one.cli_ok(&["verify", "--format", "json", "--store", &url]);
    let verified: Value = serde_json::from_str(&verified).unwrap();
    assert_eq!(verified["logs"].as_array().map(Vec::len), Some(2));
    assert!(verified["logs"].as_array().unwrap().iter().all(|log| log["fault"].is_null()), "{verified}");
    // A number is one of a log's; both logs have this one.
    let number = changes[1]["log"]["attempt"]["index"].to_string();
    let output = one.cli(&["show", &number, "--store", &url]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("of several logs; give its id"), "{output:?}");
}

#[tokio::test]
async fn gateways_of_one_store_make_fingerprints_with_one_key() {
    let upstream = Upstream::start();
    let mut hidden = good_attach();
    hidden["jwksUrl"] = json!("https://keys.example.com/jwks?tenant=hunter2");
    upstream.attach(IDENTITY, &hidden);
    let database = postgres::fresh_store();
    let url = postgres::shared().url(GATEWAY, &database);
    let (one, two) = (on(&upstream, &url).start().await, on(&upstream, &url).start().await);
    let hidden_patch = |ttl: u64| {
        good_patch(&json!({"accessTokenTTL": ttl, "jwksUrl": "https://keys.example.com/jwks?tenant=hunter2"}))
    };
    assert_eq!(one.patch(&jwt_auth_path(IDENTITY), &hidden_patch(3000)).await.status, 200);
    // Written again past both, as it was: the other one knows the value it may not write down.
    hidden["accessTokenTTL"] = json!(3000);
    upstream.attach(IDENTITY, &hidden);
    assert_eq!(two.patch(&jwt_auth_path(IDENTITY), &hidden_patch(2000)).await.status, 200);
    let change = one_history(&two, &url)[0].clone();
    assert!(change["before"]["jwksUrl"].as_str().unwrap().contains("hmac."), "{change}");
    assert_eq!(change["drift"], Value::Null);

    let own = Gateway::before(&upstream.url()).args(&["--store", &url]);
    let (status, logs) = own.run_to_exit().await;
    let logs = logs.join("\n");
    assert_eq!(status.code(), Some(3), "{logs}");
    assert!(logs.contains("made with another key") && logs.contains("audit.fingerprint_key_file"), "{logs}");
    assert_eq!(postgres::shared().sql(&database, "SELECT COUNT(*) FROM log_head"), "2", "it began no log");

    let folder = TempDir::new().unwrap();
    let key = folder.path().join("key");
    for text in ["", "beef", "not a key"] {
        std::fs::write(&key, text).unwrap();
        let wrong = Gateway::before(&upstream.url())
            .env("PATCHWARDEN_AUDIT_FINGERPRINT_KEY_FILE", &key.display().to_string());
        let (status, logs) = wrong.run_to_exit().await;
        let logs = logs.join("\n");
        assert_eq!(status.code(), Some(3), "{logs}");
        assert!(logs.contains("openssl rand -hex 32"), "{logs}");
    }
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
    let migrations = sqlx::migrate!("migrations/postgres").iter().count();
    assert!(text.contains(&format!("{migrations} migrations done")), "{text}");
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
    fleet.gateways[0].cli_ok(&["verify", "--store", &url]);
    let confirmed = confirmed.lock().unwrap();
    for (value, id) in confirmed.iter() {
        assert_eq!(ids[value]["id"], json!(id), "what was answered is recorded");
    }
    assert!(confirmed.len() > 100 && settled > 0, "{} answered, {settled} settled", confirmed.len());
}

/// A server of its own with a store, and a gateway that reaches it through a proxy.
struct Behind {
    upstream: Upstream,
    server: Server,
    proxy: Proxy,
    gateway: Gateway,
}

impl Behind {
    async fn start() -> Self {
        let server = Server::start();
        server.sql("postgres", "CREATE DATABASE patchwarden");
        server.make_store("patchwarden");
        Self::before(server).await
    }

    async fn before(server: Server) -> Self {
        let upstream = Upstream::start();
        upstream.attach(IDENTITY, &good_attach());
        let proxy = Proxy::before(server.port());
        // So long a lease is renewed by commits of changes only, so that these can be counted.
        let gateway = Gateway::before(&upstream.url())
            .config("[audit]\nlease = \"10m\"\n[upstream]\nlate_write_limit = \"2s\"")
            .args(&["--store", &proxy.url(GATEWAY, "patchwarden")])
            .shared_fingerprints();
        let gateway = gateway.start().await;
        assert_eq!(lower_ttl(&gateway, 3500).await.status, 200);
        Self { upstream, server, proxy, gateway }
    }

    fn changes(&self) -> Vec<Value> {
        one_history(&self.gateway, &self.server.url(GATEWAY, "patchwarden"))
    }

    /// Governed requests are refused with that reason, everything else goes on; later they are taken again.
    async fn is_out_and_back(&self, reason: &str, back: impl FnOnce()) {
        let (upstream_saw, known) = (self.upstream.writes().len(), self.gateway.events("degraded").len());
        let since = Instant::now();
        let refused = loop {
            let answer = lower_ttl(&self.gateway, 3000).await;
            assert!(answer.status == 503, "{}", answer.text());
            let said = self.gateway.events("degraded");
            if said[known..].iter().any(|event| event["detail"].as_str().unwrap().contains(reason)) {
                break answer.json();
            }
            assert!(since.elapsed() < Duration::from_secs(20), "never because of {reason}: {said:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        assert_eq!(refused["code"], "audit.unavailable");
        assert_eq!(self.gateway.get("/api/status").await.status, 200);
        assert_eq!(self.gateway.admin_get("/readyz", None).await.status, 200);
        assert_eq!(self.upstream.writes().len(), upstream_saw, "nothing was forwarded");
        back();
        let since = Instant::now();
        while lower_ttl(&self.gateway, 2900).await.status != 200 {
            assert!(since.elapsed() < Duration::from_secs(20), "it never recovered");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Every intent has one outcome, and every log is gap-free.
    fn is_whole(&self) {
        let lonely = "SELECT COUNT(*) FROM changes WHERE outcome = 'pending'";
        assert_eq!(self.server.sql("patchwarden", lonely), "0");
        let gaps = "SELECT COUNT(*) FROM (SELECT origin, COUNT(*) AS n, MAX(idx) AS last FROM entries GROUP BY origin) e \
                    JOIN log_head h USING (origin) WHERE e.n <> e.last + 1 OR h.size <> e.n";
        assert_eq!(self.server.sql("patchwarden", gaps), "0");
    }
}

#[tokio::test]
async fn a_connection_cut_in_the_middle_of_a_commit_loses_and_doubles_nothing() {
    let behind = Behind::start().await;
    // The commit of the intent is the next one, that of the outcome the one after.
    for (nth, when, status) in [
        (1, When::BeforeItArrives, 503),
        (1, When::AfterItArrived, 200),
        (2, When::BeforeItArrives, 200),
        (2, When::AfterItArrived, 200),
    ] {
        let (writes, changes) = (behind.upstream.writes().len(), behind.changes().len());
        behind.proxy.cut_at_commit(nth, when);
        let answer = lower_ttl(&behind.gateway, 3000 - changes as u64).await;
        assert!(behind.proxy.has_cut(), "{when:?}");
        assert_eq!(answer.status, status, "{nth} {when:?}: {}", answer.text());
        assert_eq!(behind.upstream.writes().len() - writes, usize::from(status == 200), "{nth} {when:?}");
        eventually(|| behind.changes().iter().all(|change| change["outcome"] != "pending")).await;
        if status == 200 {
            let id = change_of(&answer);
            let found = behind.changes().into_iter().find(|change| change["id"] == json!(id)).unwrap();
            assert_eq!(found["outcome"], "applied", "{nth} {when:?}");
        }
        let since = Instant::now();
        while lower_ttl(&behind.gateway, 3400).await.status != 200 {
            assert!(since.elapsed() < Duration::from_secs(10), "{nth} {when:?}: it never recovered");
        }
        behind.is_whole();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_database_changes_are_refused_with_the_reason_and_taken_again_later() {
    let behind = Behind::start().await;
    let server = &behind.server;
    let gone =
        "SELECT COUNT(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'patchwarden_gateway'";
    server.stop();
    behind.is_out_and_back("PostgreSQL", || server.begin()).await;

    server.sql("postgres", &format!("ALTER ROLE {GATEWAY} CONNECTION LIMIT 0"));
    server.sql("postgres", gone);
    let back = || drop(server.sql("postgres", &format!("ALTER ROLE {GATEWAY} CONNECTION LIMIT -1")));
    behind.is_out_and_back("too many connections", back).await;

    // A statement that waits for somebody's lock is ended by the time limit the operator has set.
    server.sql("postgres", &format!("ALTER ROLE {GATEWAY} SET statement_timeout = '500ms'"));
    server.sql("postgres", gone);
    let locked = "BEGIN; LOCK TABLE entries IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(5); COMMIT";
    std::thread::scope(|scope| {
        scope.spawn(|| server.sql("patchwarden", locked));
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(behind.is_out_and_back("statement timeout", || ()));
        });
    });
    server.sql("postgres", &format!("ALTER ROLE {GATEWAY} RESET statement_timeout"));

    behind.proxy.stall(true);
    behind.is_out_and_back("within 5 s", || behind.proxy.stall(false)).await;
    behind.is_whole();
}

/// What was answered with 200 is in the history, however often the database went.
async fn answered(gateway: &Gateway, count: u64) -> Vec<String> {
    let mut ids = Vec::new();
    for number in 0..count {
        let answer = lower_ttl(gateway, 3000 - number).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        ids.push(change_of(&answer));
    }
    ids
}

#[tokio::test]
async fn a_synchronous_standby_that_is_promoted_has_all_that_was_acknowledged() {
    let behind = Behind::start().await;
    let standby = behind.server.standby(true);
    let ids = answered(&behind.gateway, 20).await;
    behind.server.stop();
    assert_eq!(lower_ttl(&behind.gateway, 1000).await.status, 503);
    standby.set("synchronous_standby_names", "");
    standby.promote();
    behind.proxy.lead_to(standby.port());
    let since = Instant::now();
    while lower_ttl(&behind.gateway, 1000).await.status != 200 {
        assert!(since.elapsed() < Duration::from_secs(20), "it never recovered");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let changes = one_history(&behind.gateway, &standby.url(GATEWAY, "patchwarden"));
    for id in ids {
        assert!(
            changes.iter().any(|change| change["id"] == json!(id) && change["outcome"] == "applied"),
            "{id}"
        );
    }
    assert!(behind.gateway.events("succession").is_empty());
    assert_eq!(changes[0]["log"]["attempt"]["origin"], changes[5]["log"]["attempt"]["origin"]);
}

#[tokio::test]
async fn a_standby_that_lags_when_it_is_promoted_leads_to_a_succession_and_not_to_a_fork() {
    let behind = Behind::start().await;
    let standby = behind.server.standby(false);
    let kept = answered(&behind.gateway, 5).await;
    let caught_up = "SELECT COUNT(*) FROM pg_stat_replication WHERE replay_lsn = pg_current_wal_lsn()";
    eventually(|| behind.server.sql("postgres", caught_up) == "1").await;
    standby.stop();
    let lost = answered(&behind.gateway, 5).await;
    behind.server.stop();
    standby.begin();
    standby.promote();
    behind.proxy.lead_to(standby.port());
    let since = Instant::now();
    while lower_ttl(&behind.gateway, 1000).await.status != 200 {
        assert!(since.elapsed() < Duration::from_secs(20), "it never recovered");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let event = behind.gateway.events("succession");
    assert_eq!(event.len(), 1, "{event:?}");
    let changes = one_history(&behind.gateway, &standby.url(GATEWAY, "patchwarden"));
    let has = |id: &String| changes.iter().any(|change| change["id"] == json!(id));
    assert!(kept.iter().all(has) && !lost.iter().any(has));
    let origin = |change: &Value| change["log"]["attempt"]["origin"].as_str().unwrap().to_owned();
    let (old, new) = (origin(changes.last().unwrap()), origin(&changes[0]));
    assert_ne!(old, new);
    // The old log ends where the standby ended; the new one begins with what is missing.
    let first = format!(
        "SELECT convert_from(body, 'UTF8') FROM payloads JOIN entries USING (row) WHERE origin = '{new}' AND idx = 0"
    );
    let first: Value = serde_json::from_str(&standby.sql("patchwarden", &first)).unwrap();
    assert_eq!(first["previous"], json!(old));
    assert!(
        first["known"]["size"].as_u64() >= first["found"]["size"].as_u64().map(|size| size + 10),
        "{first}"
    );
    let size = standby.sql("patchwarden", &format!("SELECT size FROM log_head WHERE origin = '{old}'"));
    assert_eq!(json!(size.parse::<u64>().unwrap()), first["found"]["size"]);
    let (_, status) =
        said(&["store", "status", "--format", "json", "--store", &standby.url(GATEWAY, "patchwarden")]);
    let status: Value = serde_json::from_str(&status).unwrap();
    let closed = status["logs"].as_array().unwrap().iter().find(|log| log["origin"] == json!(old)).unwrap();
    assert_eq!(closed["succeeded_by"], json!(new));
    let (code, text) = said(&["verify", "--store", &standby.url(GATEWAY, "patchwarden")]);
    assert_eq!(code, Some(0), "{text}");
    // It stays closed, also for a gateway that starts anew.
    let mut gateway = behind.gateway;
    gateway.restart().await;
    assert_eq!(lower_ttl(&gateway, 900).await.status, 200);
    let again = one_history(&gateway, &standby.url(GATEWAY, "patchwarden"));
    assert_eq!(origin(&again[0]), new);
    assert_eq!(
        standby.sql("patchwarden", &format!("SELECT size FROM log_head WHERE origin = '{old}'")),
        size
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_stands_still_within_a_transaction_holds_up_its_own_targets_only() {
    const OTHER: &str = "0b9c3a52-7d3f-4f7e-9a43-000000000001";
    let behind = Behind::start().await;
    behind.upstream.estate().add_identity(OTHER);
    behind.upstream.attach(OTHER, &good_attach());
    let held = format!(
        "BEGIN; SELECT 1 FROM targets WHERE key = 'identity/{IDENTITY}' FOR UPDATE; SELECT pg_sleep(60); COMMIT"
    );
    std::thread::scope(|scope| {
        let holding = scope.spawn(|| behind.server.try_sql("postgres", "patchwarden", &held));
        let meanwhile = async {
            let sleeping = "SELECT COUNT(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
            eventually(|| behind.server.sql("patchwarden", sleeping) == "1").await;
            let (mine, other) = tokio::join!(lower_ttl(&behind.gateway, 3000), async {
                behind
                    .gateway
                    .patch(&jwt_auth_path(OTHER), &good_patch(&json!({"accessTokenTTL": 3000})))
                    .await
            });
            assert_eq!((mine.status, &mine.json()["code"]), (503, &json!("target.busy")), "{}", mine.text());
            assert_eq!(other.status, 200, "{}", other.text());
            assert!(!holding.is_finished(), "it was held all the while");
            let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
            behind.server.sql("postgres", end);
        };
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(meanwhile));
    });
    assert!(behind.gateway.events("degraded").is_empty());
    assert_eq!(lower_ttl(&behind.gateway, 2900).await.status, 200);
    behind.is_whole();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projection_that_is_locked_holds_changes_up_and_does_not_close_the_log() {
    let behind = Behind::start().await;
    let ours = on(&behind.upstream, &behind.server.url(GATEWAY, "patchwarden")).start().await;
    assert_eq!(lower_ttl(&ours, 3000).await.status, 200);
    let held = "BEGIN; LOCK TABLE changes IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(60); COMMIT";
    std::thread::scope(|scope| {
        scope.spawn(|| behind.server.try_sql("postgres", "patchwarden", held));
        let meanwhile = async {
            let sleeping = "SELECT COUNT(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
            eventually(|| behind.server.sql("patchwarden", sleeping) == "1").await;
            let writes = behind.upstream.writes().len();
            assert_eq!(lower_ttl(&ours, 2900).await.status, 503);
            assert_eq!(behind.upstream.writes().len(), writes, "nothing is forwarded");
            let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
            behind.server.sql("postgres", end);
            let since = Instant::now();
            while lower_ttl(&ours, 2800).await.status != 200 {
                assert!(since.elapsed() < Duration::from_secs(10), "it never goes on");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(meanwhile));
    });
    assert!(ours.events("degraded").is_empty(), "{:?}", ours.events("degraded"));
    behind.is_whole();
}

#[tokio::test]
async fn a_restored_backup_is_noticed_by_a_gateway_that_starts_anew() {
    let server = Server::start();
    server.sql("postgres", "CREATE DATABASE patchwarden");
    server.make_store("patchwarden");
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let url = server.url(GATEWAY, "patchwarden");
    let mut gateway = on(&upstream, &url).start().await;
    answered(&gateway, 3).await;
    gateway.terminate().await;
    server.sql("postgres", "CREATE DATABASE backup TEMPLATE patchwarden");
    gateway.restart().await;
    answered(&gateway, 3).await;
    gateway.terminate().await;
    server.sql("postgres", "DROP DATABASE patchwarden; ALTER DATABASE backup RENAME TO patchwarden");
    gateway.restart().await;
    assert_eq!(lower_ttl(&gateway, 1000).await.status, 200);
    let changes = one_history(&gateway, &url);
    assert_eq!(changes.len(), 4);
    let event = gateway.events("succession");
    assert_eq!(event.len(), 1, "{event:?}");
    let origin = |change: &Value| change["log"]["attempt"]["origin"].as_str().unwrap().to_owned();
    assert_eq!(
        (event[0]["previous"].as_str(), event[0]["origin"].as_str()),
        (Some(&*origin(&changes[3])), Some(&*origin(&changes[0])))
    );
    gateway.restart().await;
    assert_eq!(gateway.events("succession").len(), 1, "it is said once");
}

#[tokio::test]
async fn a_gateway_that_wakes_up_after_its_lease_forwards_nothing() {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let server = Server::start();
    server.sql("postgres", "CREATE DATABASE patchwarden");
    server.make_store("patchwarden");
    let proxy = Proxy::before(server.port());
    let url = server.url(GATEWAY, "patchwarden");
    let slow =
        on(&upstream, &proxy.url(GATEWAY, "patchwarden")).config("commit_wait = \"20s\"").start().await;
    let quick = on(&upstream, &url).start().await;
    assert_eq!(lower_ttl(&slow, 3500).await.status, 200);
    let writes = upstream.writes().len();
    // It learns of its commit only when its lease is over.
    let count = "SELECT COUNT(*) FROM changes";
    let before = server.sql("patchwarden", count);
    let delayed = async {
        // The lease has just been renewed, so the next commit is that of the intent.
        let renewed = proxy.commits() + 1;
        while proxy.commits() < renewed {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        proxy.cut_at_commit(1, When::Late(Duration::from_millis(4700)));
        lower_ttl(&slow, 3400).await
    };
    let meanwhile = async {
        eventually(|| server.sql("patchwarden", count) != before).await;
        let refused = lower_ttl(&quick, 3300).await;
        assert!(matches!(refused.status, 409 | 503 | 200), "{}", refused.text());
        refused
    };
    let (late, refused) = tokio::join!(delayed, meanwhile);
    assert_eq!(late.json()["code"], "audit.unavailable", "{}", late.text());
    let forwarded: Vec<u64> = upstream.writes()[writes..]
        .iter()
        .map(|write| write.json()["accessTokenTTL"].as_u64().unwrap())
        .collect();
    assert!(!forwarded.contains(&3400), "{forwarded:?} {} {}", late.text(), refused.text());
    let since = Instant::now();
    while lower_ttl(&quick, 3200).await.status != 200 {
        assert!(since.elapsed() < Duration::from_secs(15), "the target is never settled");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn two_processes_with_the_same_keys_never_write_one_log() {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let url = postgres::shared().url(GATEWAY, &postgres::fresh_store());
    let mut one = on(&upstream, &url).start().await;
    assert_eq!(lower_ttl(&one, 3500).await.status, 200);
    let folder = TempDir::new().unwrap();
    let copied =
        std::process::Command::new("cp").arg("-a").arg(one.data()).arg(folder.path()).status().unwrap();
    assert!(copied.success());
    // A copy from an earlier life of the first: who wrote then is not who writes now.
    std::fs::write(folder.path().join("data/holder"), "somebody else").unwrap();
    let mut two = on(&upstream, &url).folder(folder.path()).spawn();
    two.wait_until_listening().await;
    let refused = lower_ttl(&two, 3400).await;
    assert_eq!((refused.status, &refused.json()["code"]), (503, &json!("audit.unavailable")));
    let why = two.events("degraded")[0]["detail"].as_str().unwrap().to_owned();
    assert!(why.contains("by another process with the same keys"), "{why}");
    assert_eq!(lower_ttl(&one, 3300).await.status, 200);
    let (_, status) = said(&["store", "status", "--store", &url]);
    assert!(status.lines().count() == 2 && status.contains(" alive"), "{status}");
    // When the first is gone for good, the second takes its log over.
    one.kill();
    let since = Instant::now();
    while lower_ttl(&two, 3200).await.status != 200 {
        assert!(since.elapsed() < Duration::from_secs(10), "it never takes over");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let changes = one_history(&two, &url);
    let origin = |change: &Value| change["log"]["attempt"]["origin"].as_str().unwrap().to_owned();
    assert_eq!(origin(&changes[0]), origin(changes.last().unwrap()));
}

/// As when a disk is full: no file may grow over a size, and `entries` has that size.
fn fill_up(server: &Server) {
    server.limit_files("20971520");
    server.sql("patchwarden", "ALTER TABLE entries DISABLE TRIGGER USER");
    let filling = "DO $$ BEGIN LOOP INSERT INTO entries (origin, idx, kind, envelope) SELECT 'filler', n + \
                   COALESCE((SELECT MAX(idx) FROM entries WHERE origin = 'filler'), 0), 'fold', decode(repeat('00', 900), 'hex') \
                   FROM generate_series(1, 500) n; COMMIT; END LOOP; END $$";
    let full = server.try_sql("postgres", "patchwarden", filling).expect_err("it is full");
    assert!(full.contains("could not extend file"), "{full}");
    server.sql("patchwarden", "ALTER TABLE entries ENABLE TRIGGER USER");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_can_write_no_more_stops_changes_and_nothing_else() {
    let behind = Behind::start().await;
    let server = &behind.server;
    fill_up(server);
    // From now on it serves the gateway with processes that cannot write either.
    let gone =
        "SELECT COUNT(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'patchwarden_gateway'";
    server.sql("postgres", gone);
    let since = Instant::now();
    while lower_ttl(&behind.gateway, 3000).await.status != 503 || behind.gateway.events("degraded").is_empty()
    {
        assert!(since.elapsed() < Duration::from_secs(20), "the last page is never full");
    }
    let back = || {
        server.limit_files("unlimited");
        server.sql("postgres", gone);
    };
    behind.is_out_and_back("could not extend file", back).await;
    behind.is_whole();
}

/// A server that takes TLS with client certificates only, or a password.
struct Strict {
    server: Server,
    folder: TempDir,
    clients: Issued,
}

impl Strict {
    fn start() -> Self {
        let authority = Authority::new();
        let (folder, clients) = (TempDir::new().unwrap(), authority.issue_client(GATEWAY));
        let server = Server::start();
        server.sql("postgres", "CREATE DATABASE patchwarden");
        server.make_store("patchwarden");
        let issued = authority.issue(&["localhost"]);
        server.write_file("server.crt", &issued.cert_pem);
        server.write_file("server.key", &issued.key_pem);
        server.write_file("root.crt", &authority.pem);
        for (name, value) in
            [("ssl_cert_file", "server.crt"), ("ssl_key_file", "server.key"), ("ssl_ca_file", "root.crt")]
        {
            server.set(name, value);
        }
        server.set("ssl", "on");
        server.sql("postgres", &format!("ALTER ROLE {GATEWAY} PASSWORD 'hunter2-hunter2'"));
        std::fs::write(folder.path().join("ca.pem"), &authority.pem).unwrap();
        std::fs::write(folder.path().join("client.pem"), &clients.cert_pem).unwrap();
        std::fs::write(folder.path().join("client.key"), &clients.key_pem).unwrap();
        Self { server, folder, clients }
    }

    /// Who may log in how.
    fn allow(&self, rule: &str) {
        let rules = format!("local all all trust\nhostnossl all postgres 127.0.0.1/32 trust\n{rule}\n");
        self.server.write_file("pg_hba.conf", &rules);
        self.server.sql("postgres", "SELECT pg_reload_conf()");
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn url(&self, host: &str, query: &str) -> String {
        format!("postgres://{GATEWAY}@{host}:{}/patchwarden?{query}", self.server.port())
    }
}

#[tokio::test]
async fn the_way_to_the_database_is_encrypted_and_both_ends_are_verified() {
    let strict = Strict::start();
    assert!(strict.clients.cert_pem.contains("CERTIFICATE"));
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    strict.allow(
        "hostssl all patchwarden_gateway 127.0.0.1/32 cert\nhostssl all patchwarden_gateway ::1/128 cert",
    );
    let (ca, cert, key) = (strict.file("ca.pem"), strict.file("client.pem"), strict.file("client.key"));
    let verified = format!("sslmode=verify-full&sslrootcert={ca}&sslcert={cert}&sslkey={key}");
    let gateway = on(&upstream, &strict.url("localhost", &verified)).start().await;
    assert_eq!(lower_ttl(&gateway, 3400).await.status, 200);
    let encrypted = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = 'patchwarden_gateway'";
    assert_eq!(strict.server.sql("postgres", encrypted), "t");
    drop(gateway);
    // A name the certificate does not hold, no client certificate, a root that did not sign: no log, and the reason said.
    let other = Authority::new();
    std::fs::write(strict.folder.path().join("other.pem"), other.pem).unwrap();
    for (host, query) in [
        ("127.0.0.1", verified.clone()),
        ("localhost", format!("sslmode=verify-full&sslrootcert={ca}")),
        (
            "localhost",
            format!(
                "sslmode=verify-full&sslrootcert={}&sslcert={cert}&sslkey={key}",
                strict.file("other.pem")
            ),
        ),
        ("localhost", "sslmode=disable".to_owned()),
    ] {
        let gateway = on(&upstream, &strict.url(host, &query)).start().await;
        assert_eq!(lower_ttl(&gateway, 3300).await.status, 503, "{host} {query}");
        assert!(!gateway.events("degraded").is_empty());
    }
}

#[tokio::test]
async fn a_password_is_read_from_its_file_anew_and_shown_nowhere() {
    let strict = Strict::start();
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    strict.allow("host all patchwarden_gateway 127.0.0.1/32 scram-sha-256");
    let password = strict.file("password");
    let url = strict.url("127.0.0.1", "sslmode=prefer");
    std::fs::write(&password, "wrong-wrong\n").unwrap();
    let config = format!("[store]\nurl = \"{url}\"\npassword_file = \"{password}\"\n[audit]\nlease = \"2s\"");
    let gateway = Gateway::before(&upstream.url()).config(&config).start().await;
    assert_eq!(lower_ttl(&gateway, 3400).await.status, 503);
    std::fs::write(&password, "hunter2-hunter2\n").unwrap();
    let since = Instant::now();
    while lower_ttl(&gateway, 3300).await.status != 200 {
        assert!(since.elapsed() < Duration::from_secs(10), "it never logs in");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Rotated under a gateway that runs: when a reading connection goes, the next one knows the new password.
    let token = gateway.admin_token("reader");
    let (page, known) = ("/v1/changes", gateway.events("degraded").len());
    assert_eq!(gateway.admin_get(page, Some(&token)).await.status, 200);
    strict.server.sql("postgres", &format!("ALTER ROLE {GATEWAY} PASSWORD 'hunter2-again'"));
    std::fs::write(&password, "hunter2-again\n").unwrap();
    let readers = "SELECT COUNT(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'patchwarden_gateway' AND query = 'COMMIT'";
    assert_ne!(strict.server.sql("postgres", readers), "0");
    let since = Instant::now();
    while gateway.admin_get(page, Some(&token)).await.status != 200 {
        assert!(since.elapsed() < Duration::from_secs(5), "its readers never log in again");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(gateway.events("degraded").len(), known, "the writer never noticed");
    let printed = gateway.cli_ok(&["config"]) + &gateway.logs().join("\n");
    assert!(!printed.contains("hunter2") && !printed.contains("wrong-wrong"), "{printed}");
    // In the address it is hidden, and the two together are a contradiction.
    let both = url.replace(&format!("{GATEWAY}@"), &format!("{GATEWAY}:hunter2-hunter2@"));
    let shown = gateway.cli(&["config", "--store", &both]);
    let text = String::from_utf8_lossy(&[shown.stdout, shown.stderr].concat()).into_owned();
    assert!(
        !text.contains("hunter2") && text.contains("holds a password, and store.password_file is another"),
        "{text}"
    );
    let (code, text) = said(&["config", "--store", &both]);
    assert!(code == Some(0) && !text.contains("hunter2"), "{text}");
}

#[tokio::test]
async fn a_history_moves_to_postgresql_byte_for_byte_and_goes_on_there() {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let folder = TempDir::new().unwrap();
    let mut gateway = Gateway::before(&upstream.url()).folder(folder.path()).start().await;
    answered(&gateway, 12).await;
    assert_eq!(gateway.delete(&jwt_auth_path(IDENTITY)).await.status, 200);
    let token = gateway.admin_token("reader");
    let from = format!("sqlite:{}", folder.path().join("data/patchwarden.db").display());
    let database = postgres::fresh_store();
    let to = postgres::shared().url(GATEWAY, &database);
    let copy = ["store", "copy", "--from", &from, "--to", &to];
    let (code, text) = said(&copy);
    assert!(code == Some(3) && text.contains("being written by a gateway; stop it first"), "{text}");
    gateway.terminate().await;
    let local = |id: &str| gateway.cli_ok(&["show", id, "--format", "json"]);
    let ids: Vec<String> = gateway.history(&[])["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|change| change["id"].as_str().unwrap().to_owned())
        .collect();
    let other = postgres::fresh_store();
    let key = "INSERT INTO log_meta (origin, key, value) VALUES ('', 'fingerprint_key', 'hmac-sha256:00')";
    postgres::shared().sql(&other, key);
    let other = postgres::shared().url(GATEWAY, &other);
    let (code, text) = said(&["store", "copy", "--from", &from, "--to", &other]);
    assert!(code == Some(3) && text.contains("made with different keys"), "{text}");
    let (code, text) = said(&copy);
    assert!(code == Some(0) && text.contains("copied and verified on both sides"), "{text}");
    let (code, text) = said(&copy);
    assert!(code == Some(0) && text.contains("was there already"), "{text}");
    for id in &ids {
        assert_eq!(gateway.cli_ok(&["show", id, "--format", "json", "--store", &to]), local(id));
    }
    // So are the signed heads, the keys behind them, and what they prove.
    let keys = gateway.cli_ok(&["keys", "show"]);
    assert_eq!(gateway.cli_ok(&["keys", "show", "--store", &to]), keys);
    assert_eq!(gateway.cli_ok(&["prove", "last", "--store", &to]), gateway.cli_ok(&["prove", "last"]));
    let verified = gateway.cli_ok(&["verify", "--store", &to, "--public-key", keys.trim(), "--projection"]);
    assert!(verified.contains("by a key you trust"), "{verified}");
    // The same keys go on with the same log, the same order and the same tokens.
    let key = folder.path().join("data/fingerprint.key").display().to_string();
    let moved = on(&upstream, &to).env("PATCHWARDEN_AUDIT_FINGERPRINT_KEY_FILE", &key);
    let moved = moved.folder(folder.path()).start().await;
    upstream.attach(IDENTITY, &good_attach());
    assert_eq!(lower_ttl(&moved, 1200).await.status, 200);
    let changes = one_history(&moved, &to);
    assert_eq!(changes.len(), 14);
    assert_eq!(changes[0]["target"]["seq"], 14);
    assert_eq!(changes[0]["log"]["attempt"]["origin"], changes[13]["log"]["attempt"]["origin"]);
    assert_eq!(moved.admin_get("/v1/changes", Some(&token)).await.status, 200);
    let back = format!("sqlite:{}", folder.path().join("back.db").display());
    let (code, text) = said(&["store", "copy", "--from", &to, "--to", &back]);
    assert!(code == Some(3) && text.contains("is being written by the gateway of"), "{text}");
    drop(moved);
    // Now the other store knows the log with another end.
    let (code, text) = said(&copy);
    assert!(code == Some(3) && text.contains("knows the log") && text.contains("another end"), "{text}");
    let count = postgres::shared().sql(&database, "SELECT COUNT(*) FROM changes WHERE kind = 'attempt'");
    assert_eq!(count, "14");
}

#[tokio::test]
async fn what_a_gateway_that_never_comes_back_left_open_is_settled_by_another() {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let url = postgres::shared().url(GATEWAY, &postgres::fresh_store());
    let (mut one, two) = (on(&upstream, &url).start().await, on(&upstream, &url).start().await);
    upstream.script("PATCH", Act::StallForever);
    let (addr, path) = (one.addr(), jwt_auth_path(IDENTITY));
    let body = good_patch(&json!({"accessTokenTTL": 3000}));
    let raw = raw_request(
        addr,
        "PATCH",
        &path,
        &[("authorization", &format!("Bearer {}", one.token))],
        Some(&body),
    );
    let lost = tokio::spawn(patient_send(addr, raw));
    upstream.wait_for_writes(1).await;
    one.kill();
    assert!(lost.await.unwrap().is_none());
    // As long as its lease runs it may only be slow; then it is gone, and what it sent may still land.
    let since = Instant::now();
    let refused = loop {
        let answer = lower_ttl(&two, 2900).await;
        assert_eq!(answer.status, 503, "{}", answer.text());
        if answer.json()["code"] == "target.unsettled" {
            break answer;
        }
        assert_eq!(answer.json()["code"], "target.busy");
    };
    assert!(refused.text().contains("Another gateway went away"), "{}", refused.text());
    assert!(since.elapsed() < Duration::from_secs(6), "the lease is 2 s");
    while lower_ttl(&two, 2900).await.status != 200 {
        assert!(since.elapsed() < Duration::from_secs(15), "it is never settled");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(since.elapsed() > Duration::from_secs(3), "not before it could no longer land");
    let changes = one_history(&two, &url);
    let first = changes.last().unwrap();
    assert_eq!(
        (&first["outcome"], &first["settlement"]["result"]),
        (&json!("unknown"), &json!("not_applied"))
    );
    let origin = |place: &str| first["log"][place]["origin"].clone();
    assert_ne!(origin("attempt"), origin("outcome"), "it is the other one's log that says so");
}

/// Both have a credential; whoever reads first settles it, once, in its own log.
#[tokio::test]
async fn what_nobody_saw_the_end_of_is_settled_once_by_whichever_gateway_reads_it() {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let token = json!({"accessToken": "settlers-token", "expiresIn": 3600});
    upstream.always(Matcher::any().path("universal-auth/login"), Act::answer(200, &token));
    let database = postgres::fresh_store();
    let url = postgres::shared().url(GATEWAY, &database);
    let settling = || {
        let settle = "[settle]\nclient_id = \"settler\"\nclient_secret = \"secret\"\nevery = \"100ms\"";
        on(&upstream, &url).config(settle)
    };
    let (mut one, two, three) =
        (settling().start().await, settling().start().await, settling().start().await);
    for lost_with_its_gateway in [false, true] {
        upstream.script("PATCH", Act::ApplyThenClose);
        upstream.script(Matcher::method("GET").path(IDENTITY), Act::hook(|_| {}));
        upstream.script(Matcher::method("GET").path(IDENTITY), Act::answer(500, &json!({})));
        let ttl = if lost_with_its_gateway { 2800 } else { 2900 };
        assert_eq!(lower_ttl(&one, ttl).await.status, 502);
        if lost_with_its_gateway {
            one.kill();
        }
        let settlement = || two.history(&["--store", &url])["changes"][0]["settlement"].clone();
        eventually(|| !settlement().is_null()).await;
        let settlement = settlement();
        assert_eq!((&settlement["result"], &settlement["by"]), (&json!("applied"), &json!("settler")));
    }
    assert_eq!(lower_ttl(&three, 2700).await.status, 200);
    let changes = one_history(&two, &url);
    let origin = |place: &str| changes[1]["log"][place]["origin"].clone();
    assert_ne!(origin("attempt"), origin("settlement"), "another gateway's log says so");
    assert!(changes.iter().all(|change| change["drift"].is_null()));
    let written = postgres::shared()
        .sql(&database, "SELECT COUNT(*) FROM entries WHERE kind IN ('settlement', 'drift')");
    assert_eq!(written, "2");
}

/// Entries of different logs have the same numbers: what is written of one is not taken for the other.
#[tokio::test]
async fn a_change_in_flight_is_not_mistaken_for_another_logs_of_the_same_number() {
    const OTHER: &str = "0b9c3a52-7d3f-4f7e-9a43-000000000001";
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    upstream.estate().add_identity(OTHER);
    upstream.attach(OTHER, &good_attach());
    let url = postgres::shared().url(GATEWAY, &postgres::fresh_store());
    let (mut one, two) = (on(&upstream, &url).start().await, on(&upstream, &url).start().await);
    upstream.script("PATCH", Act::StallForever);
    let lost = async { patient_send(one.addr(), patch_of(&one, IDENTITY)).await };
    let kept = async {
        upstream.wait_for_writes(1).await;
        upstream.script("PATCH", Act::ApplyThenStall(Duration::from_secs(8)));
        let sent = patient_send(two.addr(), patch_of(&two, OTHER));
        let killed = async {
            upstream.wait_for_writes(2).await;
            one.signal("KILL");
        };
        tokio::join!(sent, killed).0
    };
    let (lost, kept) = tokio::join!(lost, kept);
    assert!(lost.is_none());
    assert_eq!(kept.expect("an answer").status, 200);
    one.kill();
    let changes = one_history(&two, &url);
    let outcome = |identity: &str| {
        let change = changes.iter().find(|change| change["target"]["id"] == json!(identity)).unwrap();
        (change["log"]["attempt"]["index"].clone(), change["outcome"].clone())
    };
    let ((one, unknown), (two, applied)) = (outcome(IDENTITY), outcome(OTHER));
    assert_eq!((one, unknown, applied), (two, json!("unknown"), json!("applied")));
}

fn patch_of(gateway: &Gateway, identity: &str) -> Vec<u8> {
    let body = good_patch(&json!({"accessTokenTTL": 3000}));
    let token = format!("Bearer {}", gateway.token);
    raw_request(gateway.addr(), "PATCH", &jwt_auth_path(identity), &[("authorization", &token)], Some(&body))
}

#[tokio::test]
async fn retention_reaches_every_log_of_a_fleet() {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let (owner, database) = (postgres::shared(), postgres::fresh_store());
    let url = owner.url(GATEWAY, &database);
    let (mut one, two) = (on(&upstream, &url).start().await, on(&upstream, &url).start().await);
    let mut made = Vec::new();
    for round in 0..6 {
        let gateway = if round % 2 == 0 { &one } else { &two };
        let answer = lower_ttl(gateway, 3000 - round).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        made.push(change_of(&answer));
    }
    one.admin_get("/v1/changes", Some(&one.admin_token("reader"))).await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let output = two.cli(&["prune", "--older-than", "1s", "--store", &url]);
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    // Five changes of two entries, and that somebody read.
    assert!(output.status.success() && said.starts_with("11\n"), "{said}");
    let changes = one_history(&one, &url);
    let pruned: Vec<bool> = changes.iter().map(|change| change["pruned"] == true).collect();
    assert_eq!(pruned, [false, true, true, true, true, true], "the newest is kept, whose ever it is");
    assert_eq!(changes[1]["id"], json!(made[4]));
    let verify = |gateway: &Gateway| -> Value {
        let said = gateway.cli_ok(&["verify", "--format", "json", "--store", &url]);
        serde_json::from_str(&said).unwrap()
    };
    let logs = verify(&one)["logs"].as_array().unwrap().clone();
    assert_eq!(logs.len(), 2);
    assert!(logs.iter().all(|log| log["fault"].is_null() && log["pruned"].as_u64() > Some(3)), "{logs:?}");
    assert_eq!(lower_ttl(&one, 900).await.status, 200);
    // Nothing else can be removed: not by the role, and not above what the log says.
    let refused = postgres::psql(
        owner.port(),
        GATEWAY,
        &database,
        "DELETE FROM payloads WHERE row = (SELECT MAX(row) FROM entries)",
    );
    assert!(refused.unwrap_err().contains("only by retention"));

    one.kill();
    one.restart().await;
    let text =
        "SELECT count(*) FROM entries WHERE convert_from(envelope, 'UTF8') LIKE '%lifecycle.unclean_stop%'";
    assert_eq!(owner.sql(&database, text).trim(), "1");
    let backup = one.cli(&["backup", "copy.db", "--store", &url]);
    assert_eq!(backup.status.code(), Some(3));
    let said = String::from_utf8_lossy(&backup.stderr).into_owned();
    assert!(said.contains("pg_dump") && said.contains("pg_basebackup"), "{said}");
    let restore = one.cli(&["restore", "copy.db", "--store", &url]);
    assert_eq!(restore.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&restore.stderr).contains("pg_restore"));
}

#[tokio::test]
async fn a_pruned_history_moves_to_postgres_as_it_is() {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let mut gateway = Gateway::start(&upstream).await;
    for ttl in [3000, 2000] {
        assert_eq!(lower_ttl(&gateway, ttl).await.status, 200);
    }
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(gateway.cli_ok(&["prune", "--older-than", "1s"]).trim(), "2");
    assert!(gateway.terminate().await.success());
    let before = gateway.history(&[]);
    let url = postgres::shared().url(GATEWAY, &postgres::fresh_store());
    let from = format!("sqlite:{}", gateway.data().join("patchwarden.db").display());
    gateway.cli_ok(&["store", "copy", "--from", &from, "--to", &url]);
    assert_eq!(one_history(&gateway, &url), *before["changes"].as_array().unwrap());
    let verified = gateway.cli_ok(&["verify", "--store", &url]);
    assert!(verified.contains("retention removed what 2 of them said"), "{verified}");
}
