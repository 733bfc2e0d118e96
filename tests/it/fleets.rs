//! One history for several gateways: a real PostgreSQL, real pooler, real standbys.

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::gateway::{Gateway, Setup, program};
use crate::support::postgres::{self, GATEWAY, OWNER, Pooler, Server};
use crate::support::upstream::Upstream;
use crate::support::{IDENTITY, good_attach, good_patch, jwt_auth_path};

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
