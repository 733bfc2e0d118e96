//! Sequences and races: changes that are harmless one by one, many at once, and writers that come between.

use serde_json::{Value, json};

use crate::support::client::{self, Answer};
use crate::support::gateway::{Gateway, change_of};
use crate::support::upstream::{Act, Matcher, Seen, Upstream};
use crate::support::{IDENTITY, good_attach, good_patch, jwt_auth_path};

async fn attached() -> (Upstream, Gateway) {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let gateway = Gateway::start(&upstream).await;
    (upstream, gateway)
}

async fn patch(gateway: &Gateway, members: Value) -> Answer {
    gateway.patch(&jwt_auth_path(IDENTITY), &good_patch(&members)).await
}

fn code(answer: &Answer) -> (u16, Value) {
    (answer.status, answer.json()["code"].clone())
}

fn ranges(texts: &[&str]) -> Value {
    texts.iter().map(|text| json!({"ipAddress": text})).collect()
}

#[tokio::test]
async fn each_change_is_judged_by_the_state_the_one_before_left() {
    let (upstream, gateway) = attached().await;
    // Each is fine by the state at the beginning, and both together unbind the login.
    let mut bound = good_attach();
    bound["boundClaims"] = json!({"team": "deploy"});
    bound["boundAudiences"] = json!("");
    upstream.attach(IDENTITY, &bound);
    assert_eq!(patch(&gateway, json!({"boundSubject": ""})).await.status, 200);
    let second = patch(&gateway, json!({"boundClaims": {}})).await;
    assert_eq!(code(&second), (403, json!("policy.denied")));
    assert_eq!(upstream.state(IDENTITY).unwrap()["boundClaims"], json!({"team": "deploy"}));
}

#[tokio::test]
async fn two_changes_at_once_cannot_do_together_what_neither_may() {
    for _ in 0..10 {
        let (upstream, gateway) = attached().await;
        let mut bound = good_attach();
        bound["boundClaims"] = json!({"team": "deploy"});
        bound["boundAudiences"] = json!("");
        upstream.attach(IDENTITY, &bound);
        let (first, second) = tokio::join!(
            patch(&gateway, json!({"boundSubject": ""})),
            patch(&gateway, json!({"boundClaims": {}}))
        );
        let mut statuses = [first.status, second.status];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 403], "{} {}", first.text(), second.text());
    }
}

#[tokio::test]
async fn a_ceiling_cannot_be_lifted_on_the_way_to_a_long_lifetime() {
    let (upstream, gateway) = attached().await;
    let lifted = patch(&gateway, json!({"accessTokenMaxTTL": 0})).await;
    assert_eq!(code(&lifted), (403, json!("policy.denied")));
    // Somebody did it past the gateway: what is stored is tolerated, the next step is not.
    let mut unlimited = good_attach();
    unlimited["accessTokenMaxTTL"] = json!(0);
    upstream.attach(IDENTITY, &unlimited);
    assert_eq!(patch(&gateway, json!({"boundSubject": "other"})).await.status, 200);
    let long = patch(&gateway, json!({"accessTokenTTL": 315_360_000})).await;
    assert_eq!(code(&long), (403, json!("policy.denied")));
}

#[tokio::test]
async fn revoking_and_attaching_anew_is_no_way_to_the_defaults() {
    let (upstream, gateway) = attached().await;
    assert_eq!(gateway.delete(&jwt_auth_path(IDENTITY)).await.status, 200);
    let bare = json!({"configurationType": "jwks", "jwksUrl": "https://keys.example.com/jwks.json", "boundClaims": {}});
    let open = gateway.post(&jwt_auth_path(IDENTITY), &bare).await;
    assert_eq!(code(&open), (403, json!("policy.denied")));
    let rules = open.json()["violations"].to_string();
    for rule in ["open-network", "token-lifetime", "unbound-login"] {
        assert!(rules.contains(rule), "the defaults that the API would write are judged: {rules}");
    }
    assert!(upstream.state(IDENTITY).is_none());
    let history = gateway.history(&["--target", IDENTITY]);
    assert_eq!(history["changes"].as_array().map(Vec::len), Some(2), "both are in one history");
}

#[tokio::test]
async fn what_a_change_leaves_out_is_not_erased_silently() {
    let (upstream, gateway) = attached().await;
    let mut pinned = good_attach();
    pinned["jwksCaCert"] = json!("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----");
    upstream.attach(IDENTITY, &pinned);
    let silent = patch(&gateway, json!({"accessTokenTTL": 1800})).await;
    assert_eq!(code(&silent), (403, json!("policy.denied")));
    assert!(silent.text().contains("silent-reset"), "{}", silent.text());
    let said = patch(&gateway, json!({"accessTokenTTL": 1800, "jwksCaCert": ""})).await;
    assert_eq!(said.status, 200, "said aloud it is a decision: {}", said.text());
}

#[tokio::test]
async fn fifty_changes_of_one_identity_in_every_spelling_are_one_after_the_other() {
    let (upstream, gateway) = attached().await;
    let spellings = [
        IDENTITY.to_owned(),
        IDENTITY.to_ascii_uppercase(),
        IDENTITY.replace('-', ""),
        format!("%7B{IDENTITY}%7D"),
        format!("%20{IDENTITY}"),
    ];
    let sent: Vec<_> = (0..50_usize)
        .map(|n| {
            let path = jwt_auth_path(&spellings[n % spellings.len()]);
            let (addr, token) = (gateway.addr(), format!("Bearer caller-{n}"));
            tokio::spawn(async move {
                let body = good_patch(&json!({"accessTokenTTL": 600 + n}));
                client::request(addr, "PATCH", &path, &[("authorization", &token)], Some(&body)).await
            })
        })
        .collect();
    let mut statuses = std::collections::BTreeMap::new();
    for answer in sent {
        *statuses.entry(answer.await.unwrap().status).or_insert(0) += 1;
    }
    assert_eq!(statuses.get(&200), Some(&10), "{statuses:?}");
    assert_eq!(statuses.get(&400), Some(&40), "only one spelling is taken: {statuses:?}");
    let applied: Vec<_> =
        upstream.writes().iter().map(|write| write.json()["accessTokenTTL"].clone()).collect();
    let changes = gateway.history(&["--outcome", "applied", "--limit", "100"])["changes"].clone();
    let recorded: Vec<_> = changes
        .as_array()
        .unwrap()
        .iter()
        .rev()
        .map(|change| change["after"]["accessTokenTTL"].clone())
        .collect();
    assert_eq!(recorded, applied);
}

#[tokio::test]
async fn a_writer_that_comes_between_read_and_write_shows_as_surprise() {
    let (upstream, gateway) = attached().await;
    let another_writer = upstream.another_writer();
    let between = move |_: &Seen| {
        let mut other = good_attach();
        other["boundSubject"] = json!("somebody-else");
        another_writer(IDENTITY, &other);
    };
    upstream.script("PATCH", Act::hook(between));
    let answer = patch(&gateway, json!({"accessTokenTTL": 1800})).await;
    assert_eq!(answer.status, 200);
    let change = gateway.show(&change_of(&answer));
    assert_eq!(change["surprise"][0]["path"], "/boundSubject", "{}", change["surprise"]);
    assert_eq!(change["after"]["boundSubject"], "somebody-else", "what was stored is what is recorded");
    let token = gateway.admin_token("reader");
    let metrics = gateway.admin_get("/metrics", Some(&token)).await.text();
    assert!(metrics.contains("patchwarden_surprises_total{field=\"boundSubject\"} 1"), "{metrics}");
}

#[tokio::test]
async fn deleting_the_identity_itself_is_recorded_and_its_next_change_sees_it() {
    for path in [
        format!("/api/v1/identities/{IDENTITY}"),
        format!("/api/v1/projects/0b9c3a52-7d3f-4f7e-9a43-0c8f3f1d2e4b/identities/{IDENTITY}"),
    ] {
        let (upstream, gateway) = attached().await;
        assert_eq!(patch(&gateway, json!({"accessTokenTTL": 1800})).await.status, 200);
        let deleted = gateway.delete(&path).await;
        assert_eq!(deleted.status, 200, "{}", deleted.text());
        assert!(upstream.state(IDENTITY).is_none());
        let change = gateway.show(&change_of(&deleted));
        assert_eq!((&change["decision"], &change["outcome"]), (&json!("allow"), &json!("applied")));
        assert_eq!(change["target"]["id"], IDENTITY);
        let next = patch(&gateway, json!({"accessTokenTTL": 1700})).await;
        assert_eq!(code(&next), (404, json!("before.refused")), "there is nobody any more: {}", next.text());
    }
}

#[tokio::test]
async fn a_replica_that_shows_a_removed_row_is_not_believed() {
    let (upstream, gateway) = attached().await;
    assert_eq!(patch(&gateway, json!({"accessTokenTTL": 1800})).await.status, 200);
    upstream.capture();
    assert_eq!(gateway.delete(&jwt_auth_path(IDENTITY)).await.status, 200);
    upstream.always(Matcher::method("GET").path("/identities/"), Act::ServeOldState);
    let stale = patch(&gateway, json!({"accessTokenTTL": 1700})).await;
    assert_eq!(code(&stale), (503, json!("before.stale")));
    upstream.behave();
    let gone = patch(&gateway, json!({"accessTokenTTL": 1700})).await;
    assert_eq!(gone.json()["code"], "before.absent", "{}", gone.text());
    assert_eq!(
        gateway.post(&jwt_auth_path(IDENTITY), &good_attach()).await.status,
        200,
        "a new row is a new row"
    );
    assert_eq!(patch(&gateway, json!({"accessTokenTTL": 1600})).await.status, 200);
}

#[tokio::test]
async fn ranges_that_are_small_one_by_one_are_judged_together() {
    let (upstream, gateway) = attached().await;
    // Every step adds a little; the step at which the whole is too much is refused, and so is every further one.
    let mut held = Vec::new();
    let mut refused = 0;
    for first in (0..=240).step_by(16) {
        let range = format!("{first}.0.0.0/5");
        let more: Vec<&str> = held.iter().map(String::as_str).chain([range.as_str()]).collect();
        let answer = patch(&gateway, json!({"accessTokenTrustedIps": ranges(&more)})).await;
        match answer.status {
            200 => held.push(range),
            403 => refused += 1,
            other => panic!("{other}: {}", answer.text()),
        }
    }
    assert!(refused > 10 && held.len() < 5, "{held:?}");
    let stored = upstream.state(IDENTITY).unwrap()["accessTokenTrustedIps"].as_array().unwrap().len();
    assert_eq!(stored, held.len().max(1));
}
