//! Figures, measured and printed, not judged: machines differ.
//!
//! `cargo test --release --test it -- --ignored --nocapture figures`

#![expect(clippy::print_stdout, reason = "for whoever runs them")]

use std::time::{Duration, Instant};

use patchwarden::bundle::{Attempt, Bundle, Recorded};
use patchwarden::keys::Keys;
use patchwarden::policy::{Mode, Settings};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::gateway::program;
use crate::support::upstream::Upstream;
use crate::support::{IDENTITY, good_attach};
use crate::tls::written;

const SETTINGS: Settings = Settings { ip_allow_listing: true, mode: Mode::Enforce };

fn recorded(ranges: &[String]) -> Recorded {
    let state = json!({"configurationType": "jwks", "jwksUrl": "https://idp.example/jwks", "jwksCaCert": "",
        "publicKeys": [], "boundIssuer": "https://idp.example", "boundAudiences": "ci", "boundSubject": "deployer",
        "boundClaims": {}, "accessTokenTTL": 3600, "accessTokenMaxTTL": 7200, "accessTokenNumUsesLimit": 0,
        "accessTokenTrustedIps": ["10.0.0.0/8"]});
    let body = json!({"configurationType": "jwks", "jwksUrl": "https://idp.example/jwks", "accessTokenTTL": 1800,
        "accessTokenTrustedIps": ranges});
    let said: Value = json!({"received_at": "2026-01-01T00:00:00Z", "before": state, "request": {"body": body},
        "caller": {"id": "c"}, "violations": [], "warnings": []});
    Recorded {
        id: String::new(),
        index: 0,
        operation: Some("jwt-auth.update".into()),
        target: Some(IDENTITY.into()),
        decision: "allow".into(),
        would: None,
        was_judged: true,
        said: serde_json::from_str(&said.to_string()).ok(),
    }
}

fn judged(name: &str, bundle: &Bundle, ranges: &[String]) {
    let attempt = Attempt::recall(bundle, &recorded(ranges)).unwrap();
    let keys = Keys::ephemeral();
    let mut took: Vec<Duration> = (0..5000)
        .map(|_| {
            let begun = Instant::now();
            std::hint::black_box(attempt.decide(bundle.policies(), &keys).is_ok());
            begun.elapsed()
        })
        .collect();
    took.sort_unstable();
    println!("judge, {name}: p50 {:?}, p99 {:?}", took[took.len() / 2], took[took.len() * 99 / 100]);
}

fn ranges(count: usize) -> Vec<String> {
    (0..count).map(|at| format!("10.{}.{}.0/24", at / 256, at % 256)).collect()
}

#[test]
#[ignore = "prints figures"]
fn figures_of_judging() {
    let none = toml::Table::new();
    let bundle = Bundle::builtin().unwrap();
    judged("baseline", &bundle, &ranges(1));
    judged("baseline, 1 000 ranges in the request", &bundle, &ranges(1000));
    let folder = TempDir::new().unwrap();
    let networks = ranges(1000).iter().map(|range| format!("{range:?}")).collect::<Vec<_>>().join(", ");
    let rule = format!(
        "id = \"n\"\ntitle = \"t\"\nbuiltin = \"allowed-networks\"\n[params]\nnetworks = [{networks}]\n"
    );
    written(folder.path(), "n.toml", &rule);
    let wide = Bundle::load(Some(folder.path()), &none, SETTINGS).unwrap();
    judged("1 000 ranges in a rule", &wide, &ranges(1));
    judged("1 000 ranges in a rule and in the request", &wide, &ranges(1000));
    let begun = Instant::now();
    for _ in 0..20 {
        Bundle::load(Some(folder.path()), &none, SETTINGS).unwrap();
    }
    println!("loading a bundle: {:?}", begun.elapsed() / 20);
    let begun = Instant::now();
    assert!(bundle.run_cases().is_empty());
    println!("running its cases: {:?}", begun.elapsed());
}

#[tokio::test]
#[ignore = "prints figures"]
async fn figures_of_a_scan() {
    let upstream = Upstream::start();
    for number in 0..10_000 {
        let id = format!("{number:08x}-7d3f-4f7e-9a43-0c8f3f1d2e4a");
        upstream.estate().add_identity(&id);
        upstream.attach(&id, &good_attach());
    }
    let folder = TempDir::new().unwrap();
    written(folder.path(), "token", "TOKEN\n");
    for concurrency in ["8", "32"] {
        let mut command = program();
        let arguments = ["scan", "--upstream", &upstream.url(), "--token-file", "token"];
        command.current_dir(folder.path()).args(arguments).args(["--concurrency", concurrency]);
        let begun = Instant::now();
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        assert_eq!(output.status.code(), Some(0));
        println!("scan of 10 000 identities, {concurrency} at once: {:?}", begun.elapsed());
    }
}
