//! A store that was tampered with, each time in another way: found, and the entry named.

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _};

use serde_json::json;

use crate::support::gateway::Gateway;
use crate::support::upstream::Upstream;
use crate::support::{IDENTITY, good_attach, good_patch, jwt_auth_path};

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
async fn tamper(gateway: &Gateway, text: &'static str) {
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
    let done = sqlx::raw_sql(text).execute(&mut connection).await.unwrap();
    assert!(done.rows_affected() > 0, "{text}");
    connection.close().await.unwrap();
}

#[tokio::test]
async fn an_untouched_log_is_consistent_beside_its_gateway_and_after_it() {
    let mut gateway = history().await;
    let said = gateway.cli_ok(&["verify"]);
    assert!(
        said.starts_with("ok     patchwarden.invalid/") && said.contains("heads are not signed yet"),
        "{said}"
    );
    gateway.restart().await;
    let again = gateway.cli_ok(&["verify", "--format", "json"]);
    assert!(again.contains("\"fault\": null"), "{again}");
}

#[tokio::test]
async fn whatever_is_altered_is_found_and_named() {
    // 0 is the start; the changes are 1 and 2, 3 and 4, 5 and 6; 7 is the stop. Rows count from 1.
    for (text, entry, what) in [
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
        ("UPDATE log_head SET frontier = randomblob(length(frontier))", None, "do not give the head"),
    ] {
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
