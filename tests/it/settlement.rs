//! Every row of the evidence table, and drift: what a read proves about a write whose end was not seen.
//!
//! The read is the gateway's own here (`[settle]`), or the next change's; `lost.rs` has what one read straight after shows.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::client::{self, Answer};
use crate::support::gateway::{Gateway, Setup, change_of};
use crate::support::upstream::{Act, Matcher, Seen, Upstream};
use crate::support::{IDENTITY, good_attach, good_patch, jwt_auth_path};

const LATE: Duration = Duration::from_secs(2);
/// Answers are waited for one second, and a write may land two seconds after.
const IMPATIENT: &str =
    "[upstream]\nlate_write_limit = \"2s\"\n[limits]\nforward = \"1s\"\nbefore = \"1s\"\n";
const CREDENTIAL: &str = "[settle]\nclient_id = \"settler\"\nevery = \"100ms\"\nback_off = \"1s\"\n";
const SECRET: &str = "the-client-secret";

fn login() -> Matcher {
    Matcher::method("POST").path("/auth/universal-auth/login")
}

fn read() -> Matcher {
    Matcher::method("GET").path(IDENTITY)
}

fn token(name: &str, seconds: u64) -> Act {
    Act::answer(200, &json!({"accessToken": name, "expiresIn": seconds, "tokenType": "Bearer"}))
}

fn upstream_with(row: Option<Value>) -> Upstream {
    let upstream = Upstream::start();
    if let Some(row) = row {
        upstream.attach(IDENTITY, &row);
    }
    upstream.always(login(), token("settlers-token", 7200));
    upstream
}

fn settling(upstream: &Upstream, more: &str) -> Setup {
    let config = format!("{IMPATIENT}{CREDENTIAL}{more}");
    Gateway::before(&upstream.url()).config(&config).env("PATCHWARDEN_SETTLE_CLIENT_SECRET", SECRET)
}

/// An identity with something attached, and a gateway that settles by itself.
async fn attached() -> (Upstream, Gateway) {
    let upstream = upstream_with(Some(good_attach()));
    let gateway = settling(&upstream, "").start().await;
    (upstream, gateway)
}

async fn ttl(gateway: &Gateway, seconds: u64) -> Answer {
    gateway.patch(&jwt_auth_path(IDENTITY), &good_patch(&json!({"accessTokenTTL": seconds}))).await
}

/// Sends a change whose end is not seen, not even by the read straight after; its id.
async fn lose(
    upstream: &Upstream,
    gateway: &Gateway,
    act: Act,
    method: &str,
    body: Option<&Value>,
) -> String {
    upstream.script(Matcher::method(method).path(IDENTITY), act);
    upstream.script(read(), Act::hook(|_| {}));
    upstream.script(read(), Act::answer(500, &json!({})));
    let answer = gateway.request(method, &jwt_auth_path(IDENTITY), body).await;
    assert!(matches!(answer.status, 502 | 504), "{} {}", answer.status, answer.text());
    let change = change_of(&answer);
    let record = gateway.show(&change);
    assert_eq!((&record["outcome"], &record["settlement"]), (&json!("unknown"), &Value::Null), "{record}");
    change
}

async fn lose_ttl(upstream: &Upstream, gateway: &Gateway, act: Act, seconds: u64) -> String {
    lose(upstream, gateway, act, "PATCH", Some(&good_patch(&json!({"accessTokenTTL": seconds})))).await
}

/// Waits for the settlement of a change.
async fn settled(gateway: &Gateway, change: &str) -> Value {
    let since = Instant::now();
    loop {
        let settlement = gateway.show(change)["settlement"].clone();
        if !settlement.is_null() {
            return settlement;
        }
        assert!(since.elapsed() < Duration::from_secs(20), "it is never settled");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn settled_as(gateway: &Gateway, change: &str, result: &str) -> Value {
    let settlement = settled(gateway, change).await;
    assert_eq!(
        (&settlement["result"], &settlement["by"]),
        (&json!(result), &json!("settler")),
        "{settlement}"
    );
    settlement
}

fn drifts(gateway: &Gateway) -> Vec<Value> {
    gateway.history(&["--kind", "drift"])["changes"].as_array().unwrap().clone()
}

async fn metric(gateway: &Gateway, name: &str) -> String {
    let token = gateway.admin_token("reader");
    let text = gateway.admin_get("/metrics", Some(&token)).await.text();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")).map(str::to_owned));
    line.unwrap_or_else(|| panic!("no {name} in {text}"))
}

/// What `/readyz` says is wrong with the credential.
async fn problem(gateway: &Gateway) -> Option<String> {
    let token = gateway.admin_token("reader");
    let ready = gateway.admin_get("/readyz", Some(&token)).await;
    assert_eq!((ready.status, &ready.json()["status"]), (200, &json!("ready")), "nothing is held up by it");
    let problems = ready.json()["problems"].as_array().unwrap().clone();
    let ours = problems.into_iter().find(|problem| problem["part"] == "settle");
    ours.map(|problem| problem["detail"].as_str().unwrap().to_owned())
}

/// Waits until `/readyz` has, or no longer has, a problem with the credential.
async fn problem_is(gateway: &Gateway, is_there: bool) -> Option<String> {
    let since = Instant::now();
    loop {
        let found = problem(gateway).await;
        if found.is_some() == is_there {
            return found;
        }
        assert!(since.elapsed() < Duration::from_secs(20), "{found:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What the gateway read with its own token.
fn own_reads(upstream: &Upstream) -> Vec<Seen> {
    let is_own =
        |seen: &Seen| seen.get("authorization").is_some_and(|token| token.starts_with("Bearer settlers"));
    upstream.seen().into_iter().filter(is_own).collect()
}

fn logins(upstream: &Upstream) -> Vec<Seen> {
    upstream.writes().into_iter().filter(|seen| seen.target.ends_with("/universal-auth/login")).collect()
}

#[tokio::test]
async fn a_write_that_lands_late_is_settled_as_applied_and_is_no_drift() {
    let (upstream, gateway) = attached().await;
    assert_eq!(ttl(&gateway, 1900).await.status, 200);
    let lost = lose_ttl(&upstream, &gateway, Act::CloseThenApplyAfter(Duration::from_secs(1)), 1800).await;
    let begun = Instant::now();
    let settlement = settled_as(&gateway, &lost, "applied").await;
    assert!(
        begun.elapsed() >= LATE - Duration::from_millis(500),
        "a read that may prove nothing is not made"
    );
    assert_eq!(settlement["evidence"]["late"], true, "{settlement}");
    let record = gateway.show(&lost);
    assert_eq!(record["after"]["accessTokenTTL"], 1800);
    let next = ttl(&gateway, 1700).await;
    assert_eq!(next.status, 200, "the identity is free: {}", next.text());
    assert_eq!(gateway.show(&change_of(&next))["drift"], Value::Null);
    assert_eq!(drifts(&gateway), Vec::<Value>::new(), "it was our own change");
    assert_eq!(own_reads(&upstream).len(), 1);
    assert!(own_reads(&upstream).iter().all(|seen| seen.method == "GET"), "it only reads");
    gateway.cli_ok(&["verify"]);
}

#[tokio::test]
async fn a_write_that_never_lands_is_settled_as_not_applied_when_it_no_longer_can() {
    let (upstream, gateway) = attached().await;
    let lost = lose_ttl(&upstream, &gateway, Act::StallForever, 1800).await;
    let early = ttl(&gateway, 1700).await;
    assert_eq!(early.json()["code"], "target.unsettled", "the old state proves nothing yet");
    settled_as(&gateway, &lost, "not_applied").await;
    assert_eq!(ttl(&gateway, 1700).await.status, 200);
    assert_eq!(
        metric(&gateway, "patchwarden_settlements_total{result=\"not_applied\",by=\"settler\"}").await,
        "1"
    );
}

#[tokio::test]
async fn a_write_that_somebody_wrote_over_is_superseded_and_what_stands_there_is_drift() {
    let (upstream, mut gateway) = attached().await;
    assert_eq!(ttl(&gateway, 1900).await.status, 200);
    let lost = lose_ttl(&upstream, &gateway, Act::ApplyThenClose, 1800).await;
    let mut other = good_attach();
    other["accessTokenTTL"] = json!(60);
    upstream.attach(IDENTITY, &other);
    let settlement = settled_as(&gateway, &lost, "superseded").await;
    assert_ne!(settlement["evidence"]["revision_before"], settlement["evidence"]["revision_now"]);
    assert_eq!(gateway.show(&lost)["after"], Value::Null, "nobody knows what it made");
    let drift = drifts(&gateway);
    assert_eq!(drift.len(), 1, "{drift:?}");
    assert_eq!((&drift[0]["by"], &drift[0]["after"]["accessTokenTTL"]), (&json!("settler"), &json!(60)));
    assert_eq!((&drift[0]["diff"][0]["old"], &drift[0]["diff"][0]["value"]), (&json!(1900), &json!(60)));
    assert_eq!(gateway.wait_for_event("drift").await["fields"], "/accessTokenTTL");
    let next = ttl(&gateway, 1700).await;
    assert_eq!(next.status, 200, "{}", next.text());
    assert_eq!(gateway.show(&change_of(&next))["drift"], Value::Null, "it is on record already");
    assert_eq!(drifts(&gateway).len(), 1);
}

#[tokio::test]
async fn a_state_that_went_away_and_came_back_is_superseded_and_no_drift() {
    let (upstream, gateway) = attached().await;
    assert_eq!(ttl(&gateway, 1900).await.status, 200);
    let lost = lose_ttl(&upstream, &gateway, Act::StallForever, 1800).await;
    for seconds in [60, 1900] {
        let mut other = good_attach();
        other["accessTokenTTL"] = json!(seconds);
        upstream.attach(IDENTITY, &other);
    }
    settled_as(&gateway, &lost, "superseded").await;
    assert_eq!(drifts(&gateway), Vec::<Value>::new(), "the state is the one on record");
    assert_eq!(ttl(&gateway, 1700).await.status, 200);
}

#[tokio::test]
async fn a_change_that_changes_nothing_is_told_by_the_revision_alone() {
    for (act, result) in [
        (Act::CloseThenApplyAfter(Duration::from_millis(500)), "applied"),
        (Act::StallForever, "not_applied"),
    ] {
        let (upstream, gateway) = attached().await;
        assert_eq!(ttl(&gateway, 1900).await.status, 200);
        let lost = lose_ttl(&upstream, &gateway, act, 1900).await;
        settled_as(&gateway, &lost, result).await;
    }
}

#[tokio::test]
async fn an_attach_of_unknown_end_is_settled_by_what_is_there() {
    let other = {
        let mut other = good_attach();
        other["boundSubject"] = json!("somebody-else");
        other
    };
    for (act, meanwhile, result) in [
        (Act::CloseThenApplyAfter(Duration::from_millis(500)), None, "applied"),
        (Act::StallForever, None, "not_applied"),
        (Act::StallForever, Some(other), "superseded"),
    ] {
        let upstream = upstream_with(None);
        let gateway = settling(&upstream, "").start().await;
        let lost = lose(&upstream, &gateway, act, "POST", Some(&good_attach())).await;
        if let Some(other) = meanwhile {
            upstream.attach(IDENTITY, &other);
        }
        settled_as(&gateway, &lost, result).await;
    }
}

#[tokio::test]
async fn a_removal_of_unknown_end_is_settled_by_what_is_there() {
    for (act, comes_back, result) in [
        (Act::CloseThenApplyAfter(Duration::from_millis(500)), false, "applied"),
        (Act::StallForever, false, "not_applied"),
        (Act::ApplyThenClose, true, "superseded"),
    ] {
        let (upstream, gateway) = attached().await;
        assert_eq!(ttl(&gateway, 1900).await.status, 200);
        let lost = lose(&upstream, &gateway, act, "DELETE", None).await;
        if comes_back {
            upstream.attach(IDENTITY, &good_attach());
        }
        settled_as(&gateway, &lost, result).await;
        assert_eq!(gateway.show(&lost)["drift"], Value::Null);
    }
}

#[tokio::test]
async fn a_removal_that_landed_late_is_no_reader_that_lags() {
    let upstream = upstream_with(Some(good_attach()));
    let gateway = Gateway::before(&upstream.url()).config(IMPATIENT).start().await;
    assert_eq!(ttl(&gateway, 1900).await.status, 200);
    let lost =
        lose(&upstream, &gateway, Act::CloseThenApplyAfter(Duration::from_millis(500)), "DELETE", None).await;
    upstream.wait_for_late_writes().await;
    let next = ttl(&gateway, 1700).await;
    assert_eq!(next.json()["code"], "before.absent", "{}", next.text());
    let settlement = gateway.show(&lost)["settlement"].clone();
    assert_eq!((&settlement["result"], &settlement["by"]), (&json!("applied"), &json!("next_before")));
    assert_eq!(drifts(&gateway), Vec::<Value>::new());
    assert_eq!(gateway.post(&jwt_auth_path(IDENTITY), &good_attach()).await.status, 200);
}

#[tokio::test]
async fn what_nobody_can_read_for_long_enough_is_undecidable() {
    let upstream = upstream_with(Some(good_attach()));
    let gateway = settling(&upstream, "undecidable_after = \"4s\"\n").start().await;
    let lost = lose_ttl(&upstream, &gateway, Act::StallForever, 1800).await;
    let gone = json!({"message": "Failed to find identity", "error": "NotFound", "statusCode": 404});
    upstream.always(read(), Act::answer(404, &gone));
    let settlement = settled_as(&gateway, &lost, "undecidable").await;
    assert_eq!(settlement["evidence"]["last_answer"], "the upstream answered the read with 404");
    assert!(own_reads(&upstream).len() >= 2, "not by one read that failed");
    upstream.behave();
    assert_eq!(ttl(&gateway, 1700).await.status, 200, "the identity is free");
    assert_eq!(gateway.history(&["--unsettled"])["changes"], json!([]));
    assert_eq!(drifts(&gateway), Vec::<Value>::new());
    gateway.cli_ok(&["verify"]);
}

#[tokio::test]
async fn without_a_credential_held_identities_are_counted_and_wait_for_the_next_change() {
    let upstream = upstream_with(Some(good_attach()));
    let config = format!("{IMPATIENT}[settle]\nevery = \"100ms\"\nundecidable_after = \"1s\"\n");
    let gateway = Gateway::before(&upstream.url()).config(&config).start().await;
    assert_eq!(ttl(&gateway, 1900).await.status, 200);
    let lost = lose_ttl(&upstream, &gateway, Act::ApplyThenClose, 1800).await;
    let since = Instant::now();
    while metric(&gateway, "patchwarden_unsettled").await != "1" {
        assert!(since.elapsed() < Duration::from_secs(10), "it is never counted");
    }
    let next = ttl(&gateway, 1700).await;
    assert_eq!(next.status, 200, "{}", next.text());
    assert_eq!(gateway.show(&lost)["settlement"]["by"], "next_before");
    assert_eq!(gateway.show(&change_of(&next))["drift"], Value::Null, "it was our own change");
    assert_eq!(drifts(&gateway), Vec::<Value>::new());
    assert!(logins(&upstream).is_empty());
    let since = Instant::now();
    while metric(&gateway, "patchwarden_unsettled").await != "0" {
        assert!(since.elapsed() < Duration::from_secs(10), "it is never free");
    }
}

#[tokio::test]
async fn a_hold_outlives_its_process_and_is_settled_by_the_next_one() {
    let (upstream, mut gateway) = attached().await;
    let lost = lose_ttl(&upstream, &gateway, Act::ApplyThenClose, 1800).await;
    gateway.kill();
    gateway.restart().await;
    settled_as(&gateway, &lost, "applied").await;
}

#[tokio::test]
async fn the_settler_reads_in_the_sub_organisation_the_change_was_sent_to() {
    let (upstream, gateway) = attached().await;
    upstream.script("PATCH", Act::CloseWithoutAnswer);
    upstream.script(read(), Act::hook(|_| {}));
    upstream.script(read(), Act::answer(500, &json!({})));
    let body = good_patch(&json!({"accessTokenTTL": 1800}));
    let sent = [("x-infisical-org", "subsidiary")];
    let answer = gateway.request_with("PATCH", &jwt_auth_path(IDENTITY), &sent, Some(&body)).await;
    settled_as(&gateway, &change_of(&answer), "not_applied").await;
    let reads = own_reads(&upstream);
    assert_eq!(
        reads.iter().map(|seen| seen.get("x-infisical-org")).collect::<Vec<_>>(),
        [Some("subsidiary")]
    );
}

#[tokio::test]
async fn the_gateway_logs_in_with_its_own_credential_and_keeps_the_token_to_itself() {
    let (upstream, gateway) = attached().await;
    let sent = upstream.wait_until_seen(&login()).await;
    assert_eq!(sent.json(), json!({"clientId": "settler", "clientSecret": SECRET}));
    assert_eq!(sent.get("authorization"), None);
    let lost = lose_ttl(&upstream, &gateway, Act::StallForever, 1800).await;
    settled_as(&gateway, &lost, "not_applied").await;
    assert_eq!(logins(&upstream).len(), 1, "one token is enough");
    let reads = own_reads(&upstream);
    assert_eq!(reads[0].get("authorization"), Some("Bearer settlers-token"));
    assert_eq!(problem(&gateway).await, None);
    assert_eq!(metric(&gateway, "patchwarden_settle_credential_failed").await, "0");
    assert!(!gateway.logs().join("\n").contains("settlers-token"));
}

#[tokio::test]
async fn a_token_is_renewed_before_it_expires_and_when_it_is_no_longer_accepted() {
    let (upstream, gateway) = attached().await;
    upstream.wait_until_seen(&login()).await;
    // The one of the start is revoked meanwhile; the next lives for two seconds.
    upstream.always(login(), token("settlers-second", 2));
    let revoked = |seen: &Seen| seen.get("authorization") == Some("Bearer settlers-token");
    let lost = lose_ttl(&upstream, &gateway, Act::StallForever, 1800).await;
    let error = json!({"message": "Your token is invalid", "error": "TokenError", "statusCode": 403});
    upstream.script(read(), Act::answer(403, &error));
    settled_as(&gateway, &lost, "not_applied").await;
    assert_eq!(own_reads(&upstream).iter().filter(|seen| revoked(seen)).count(), 1);
    assert_eq!(logins(&upstream).len(), 2);
    assert_eq!(problem(&gateway).await, None, "that is no failure");

    upstream.always(login(), token("settlers-third", 7200));
    let lost = lose_ttl(&upstream, &gateway, Act::StallForever, 1700).await;
    settled_as(&gateway, &lost, "not_applied").await;
    assert_eq!(own_reads(&upstream).last().unwrap().get("authorization"), Some("Bearer settlers-third"));
    assert_eq!(logins(&upstream).len(), 3);
}

#[tokio::test]
async fn a_wrong_secret_is_a_problem_that_holds_up_nothing_and_a_rotated_one_is_taken() {
    let upstream = upstream_with(Some(good_attach()));
    let wrong = json!({"message": "Invalid credentials for the-client-secret", "error": "UnauthorizedError", "statusCode": 401});
    upstream.always(login(), Act::answer(401, &wrong));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("client-secret");
    std::fs::write(&file, "the-old-secret\n").unwrap();
    let config = format!("{IMPATIENT}{CREDENTIAL}client_secret_file = \"{}\"\n", file.display());
    let mut gateway = Gateway::before(&upstream.url()).config(&config).start().await;
    let told = problem_is(&gateway, true).await.unwrap();
    assert_eq!(told, "the upstream answered its login with 401");
    assert_eq!(gateway.wait_for_event("credential_failed").await["level"], "error");
    assert_eq!(metric(&gateway, "patchwarden_settle_credential_failed").await, "1");
    assert_eq!(gateway.admin_get("/readyz?require=audit", None).await.status, 200);
    let begun = Instant::now();
    assert_eq!(ttl(&gateway, 1900).await.status, 200, "changes go on");
    let lost = lose_ttl(&upstream, &gateway, Act::ApplyThenClose, 1800).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    // At least half of one second lies between two tries, and a look each 100 ms makes none of its own.
    let most = 4 + 2 * begun.elapsed().as_secs();
    assert!(u64::try_from(logins(&upstream).len()).unwrap() <= most, "{} logins", logins(&upstream).len());
    assert_eq!(gateway.show(&lost)["settlement"], Value::Null);

    std::fs::write(&file, "the-new-secret\n").unwrap();
    upstream.behave();
    upstream.always(login(), token("settlers-token", 7200));
    settled_as(&gateway, &lost, "applied").await;
    assert_eq!(logins(&upstream).last().unwrap().json()["clientSecret"], "the-new-secret");
    problem_is(&gateway, false).await;
    gateway.wait_for_event("credential_recovered").await;
    let said = gateway.logs().join("\n");
    assert!(!said.contains("-secret\"") && !said.contains("the-old") && !said.contains("the-new"), "{said}");
}

#[tokio::test]
async fn a_credential_that_may_not_read_an_identity_is_a_problem_until_it_may() {
    let (upstream, gateway) = attached().await;
    let lost = lose_ttl(&upstream, &gateway, Act::ApplyThenClose, 1800).await;
    let denied =
        json!({"message": "You are not allowed to read", "error": "PermissionDenied", "statusCode": 403});
    upstream.always(read(), Act::answer(403, &denied));
    let told = problem_is(&gateway, true).await.unwrap();
    assert!(told.contains("403") && told.contains("Read on identities"), "{told}");
    upstream.behave();
    upstream.always(login(), token("settlers-token", 7200));
    settled_as(&gateway, &lost, "applied").await;
    problem_is(&gateway, false).await;
}

#[tokio::test]
async fn an_upstream_that_is_away_is_no_problem_of_the_credential() {
    let (mut upstream, gateway) = attached().await;
    let lost = lose_ttl(&upstream, &gateway, Act::ApplyThenClose, 1800).await;
    upstream.stop().await;
    tokio::time::sleep(LATE + Duration::from_secs(2)).await;
    assert_eq!(problem(&gateway).await, None);
    assert_eq!(gateway.show(&lost)["settlement"], Value::Null);
    upstream.restart_on_same_port().await;
    settled_as(&gateway, &lost, "applied").await;
}

#[tokio::test]
async fn drift_is_an_entry_with_its_window_before_the_change_that_saw_it() {
    let upstream = upstream_with(Some(good_attach()));
    let mut gateway = Gateway::before(&upstream.url()).start().await;
    let first = ttl(&gateway, 1900).await;
    let denied = ttl(&gateway, 0).await;
    assert_eq!((first.status, denied.status), (200, 403));
    let mut other = good_attach();
    other["boundSubject"] = json!("somebody-else");
    other["accessTokenTTL"] = json!(1900);
    upstream.attach(IDENTITY, &other);
    let next = ttl(&gateway, 1800).await;
    assert_eq!(next.status, 200, "{}", next.text());

    let seen = gateway.show(&change_of(&next));
    let drift = drifts(&gateway);
    assert_eq!(drift.len(), 1, "{drift:?}");
    let drift = &drift[0];
    assert_eq!(drift["diff"], seen["drift"], "the change shows it too, as before");
    assert_eq!(drift["diff"][0]["path"], "/boundSubject");
    assert_eq!(drift["seen_by"], seen["id"]);
    assert_eq!(drift["target"]["id"], IDENTITY);
    assert_eq!(drift["after"], seen["before"]);
    let at = |value: &Value| value.as_str().unwrap().to_owned();
    let (since, until) = (at(&drift["window"]["since"]), at(&drift["window"]["until"]));
    let last_read = at(&gateway.show(&change_of(&denied))["received_at"]);
    assert_eq!(since, last_read, "a denied change had read the state as it was on record");
    assert!(since < until && until > at(&seen["received_at"]), "{drift}");
    let place = |change: &Value| change["log"]["attempt"]["index"].as_u64().unwrap();
    assert_eq!(place(drift) + 1, place(&seen));

    let id = drift["id"].as_str().unwrap();
    assert_eq!(&gateway.show(id), drift);
    let page = gateway.cli_ok(&["show", id]);
    assert!(page.contains("somebody-else") && page.contains("between"), "{page}");
    let table = gateway.cli_ok(&["history", "--kind", "all", "--changed", "/boundSubject"]);
    assert!(table.contains("drift") && table.contains(IDENTITY), "{table}");
    assert_eq!(
        gateway.history(&[])["changes"].as_array().map(Vec::len),
        Some(3),
        "a list of changes has changes"
    );
    let event = gateway.wait_for_event("drift").await;
    assert_eq!((&event["level"], &event["by"]), (&json!("warn"), &json!("next_before")), "{event}");
    assert!(!event.to_string().contains("somebody-else"), "{event}");
    assert_eq!(metric(&gateway, "patchwarden_drift_total").await, "1");
    gateway.cli_ok(&["verify"]);
}

#[tokio::test]
async fn drift_of_one_revision_is_written_once_whoever_sees_it() {
    let upstream = upstream_with(Some(good_attach()));
    let gateway = Gateway::before(&upstream.url()).start().await;
    assert_eq!(ttl(&gateway, 1900).await.status, 200);
    for round in 1..4_usize {
        let mut other = good_attach();
        other["boundSubject"] = json!(format!("somebody-else-{round}"));
        upstream.attach(IDENTITY, &other);
        let denied = tokio::join!(
            ttl(&gateway, 0),
            ttl(&gateway, 0),
            ttl(&gateway, 0),
            ttl(&gateway, 0),
            ttl(&gateway, 0)
        );
        for answer in [&denied.0, &denied.1, &denied.2, &denied.3, &denied.4] {
            assert_eq!(answer.status, 403, "{}", answer.text());
        }
        let drift = drifts(&gateway);
        assert_eq!(drift.len(), round, "{drift:#?}");
        // Held against what was last on record, which the drift before is.
        let subject =
            drift[0]["diff"].as_array().unwrap().iter().find(|entry| entry["path"] == "/boundSubject");
        assert_eq!(subject.unwrap()["value"], format!("somebody-else-{round}"));
        if round > 1 {
            assert_eq!(drift[0]["diff"].as_array().map(Vec::len), Some(1), "{}", drift[0]);
        }
    }
    assert_eq!(metric(&gateway, "patchwarden_drift_total").await, "3");
    gateway.cli_ok(&["verify"]);
}

/// What is older than the log, or gone, is believed after a minute of the same.
#[tokio::test]
async fn an_upstream_that_went_back_and_a_removal_past_the_gateway_are_drift_of_two_kinds() {
    const OTHER: &str = "0b9c3a52-7d3f-4f7e-9a43-000000000001";
    let upstream = upstream_with(Some(good_attach()));
    upstream.attach(OTHER, &good_attach());
    let gateway = Gateway::before(&upstream.url()).start().await;
    upstream.capture();
    let change = async |identity: &str, seconds: u64| {
        let body = good_patch(&json!({"accessTokenTTL": seconds}));
        gateway.patch(&jwt_auth_path(identity), &body).await
    };
    assert_eq!((change(IDENTITY, 1900).await.status, change(OTHER, 1900).await.status), (200, 200));
    upstream.always(read(), Act::ServeOldState);
    let token = [("authorization", "Bearer somebody-else")];
    let removed = client::request(upstream.addr(), "DELETE", &jwt_auth_path(OTHER), &token, None).await;
    assert_eq!(removed.status, 200, "{}", removed.text());

    let believed = async |identity: &str| {
        let since = Instant::now();
        loop {
            let answer = change(identity, 1800).await;
            if answer.status == 200 || answer.json()["code"] != "before.stale" {
                return answer;
            }
            assert!(since.elapsed() < Duration::from_secs(90), "it is never believed");
        }
    };
    let (back, gone) = tokio::join!(believed(IDENTITY), believed(OTHER));
    assert_eq!(back.status, 200, "{}", back.text());
    assert!(back.all("patchwarden-warning").iter().any(|warning| warning.starts_with("rolled-back:")));
    assert_eq!(gone.json()["code"], "before.absent", "{}", gone.text());
    let drift = |identity: &str| {
        let found = gateway.history(&["--kind", "drift", "--target", identity])["changes"].clone();
        assert_eq!(found.as_array().map(Vec::len), Some(1), "{found}");
        found[0].clone()
    };
    let (went_back, removed) = (drift(IDENTITY), drift(OTHER));
    assert_eq!((&went_back["rolled_back"], &removed["rolled_back"]), (&json!(true), &json!(false)));
    assert_eq!(went_back["diff"][0]["value"], 3600, "{went_back}");
    assert_eq!(gateway.show(&change_of(&back))["drift"]["kind"], "rolled_back");
    assert_eq!((&removed["after"], &removed["summary"]), (&Value::Null, &json!("revoked")));
    assert_eq!(gateway.show(&change_of(&gone))["drift"], removed["diff"]);
    gateway.cli_ok(&["verify"]);
}

#[tokio::test]
async fn scan_records_drift_and_gives_up_what_it_cannot_read() {
    let upstream = upstream_with(Some(good_attach()));
    let config = format!("{IMPATIENT}[settle]\nundecidable_after = \"1s\"\n");
    let mut gateway = Gateway::before(&upstream.url()).config(&config).start().await;
    assert_eq!(ttl(&gateway, 1900).await.status, 200);
    let mut other = good_attach();
    other["accessTokenTTL"] = json!(60);
    upstream.attach(IDENTITY, &other);
    gateway.folder_file("token", &gateway.token);
    let url = upstream.url();
    let arguments = ["scan", "--upstream", &url, "--token-file", "token", "--format", "json", "--settle"];
    gateway.terminate().await;
    for _ in 0..2 {
        gateway.cli(&arguments);
        let drift = drifts(&gateway);
        assert_eq!(drift.len(), 1, "{drift:?}");
        assert_eq!((&drift[0]["by"], &drift[0]["seen_by"]), (&json!("scan"), &Value::Null));
    }
    gateway.restart().await;
    let lost = lose_ttl(&upstream, &gateway, Act::StallForever, 1800).await;
    gateway.terminate().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Its identity is gone, so no list has it any more.
    upstream.always(Matcher::any().path("/identities/search"), Act::answer(200, &json!({"identities": []})));
    upstream.always(
        read(),
        Act::answer(404, &json!({"message": "gone", "error": "NotFound", "statusCode": 404})),
    );
    let output = gateway.cli(&arguments);
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).contains("undecidable"), "{output:?}");
    let settlement = gateway.show(&lost)["settlement"].clone();
    assert_eq!((&settlement["result"], &settlement["by"]), (&json!("undecidable"), &json!("scan")));
    gateway.cli_ok(&["verify"]);
}
