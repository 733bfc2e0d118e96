//! Heads that go elsewhere: a file, an endpoint, a witness; what each of them proves later, and what is said when it fails.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::client::Answer;
use crate::support::gateway::{Gateway, Setup, change_of, program};
use crate::support::outside::{Manner, Place, Witness};
use crate::support::upstream::Upstream;
use crate::support::{IDENTITY, eventually, good_attach, good_patch, jwt_auth_path};

const NAME: &str = "witness.example/w1";
const QUICK: &str =
    "[anchor]\nevery = \"50ms\"\nback_off = \"200ms\"\ntimeout = \"1s\"\nstart_timeout = \"500ms\"\n";

fn upstream() -> Upstream {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    upstream
}

fn anchored(upstream: &Upstream, settings: &str) -> Setup {
    Gateway::before(&upstream.url()).config(&format!("{QUICK}{settings}\n"))
}

fn witnessed_by(witness: &Witness) -> String {
    format!("witnesses = [\"{}\"]", witness.setting())
}

async fn ttl(gateway: &Gateway, seconds: u64) -> Answer {
    gateway.patch(&jwt_auth_path(IDENTITY), &good_patch(&json!({"accessTokenTTL": seconds}))).await
}

async fn change(gateway: &Gateway, seconds: u64) -> String {
    let answer = ttl(gateway, seconds).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    change_of(&answer)
}

/// What `/readyz` says is wrong with the destinations; whatever it is, requests pass and changes are let through.
async fn problem(gateway: &Gateway) -> Option<String> {
    let token = gateway.admin_token("reader");
    let ready = gateway.admin_get("/readyz", Some(&token)).await;
    assert_eq!(ready.status, 200);
    let problems = ready.json()["problems"].as_array().unwrap().clone();
    let ours = problems.into_iter().find(|problem| problem["part"] == "anchor");
    ours.map(|problem| problem["detail"].as_str().unwrap().to_owned())
}

/// Waits until that holds of the problem.
async fn problem_is(gateway: &Gateway, holds: impl Fn(Option<&str>) -> bool) -> Option<String> {
    let since = Instant::now();
    loop {
        let found = problem(gateway).await;
        if holds(found.as_deref()) {
            return found;
        }
        assert!(since.elapsed() < Duration::from_secs(20), "{found:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn problem_says(gateway: &Gateway, what: &str) -> String {
    problem_is(gateway, |found| found.is_some_and(|found| found.contains(what))).await.unwrap()
}

async fn no_problem(gateway: &Gateway) {
    problem_is(gateway, |found| found.is_none()).await;
}

async fn metric(gateway: &Gateway, name: &str, to: &str) -> u64 {
    let token = gateway.admin_token("reader");
    let text = gateway.admin_get("/metrics", Some(&token)).await.text();
    let wanted = format!("patchwarden_anchor_{name}{{to=\"{to}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&wanted).map(str::to_owned));
    line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {wanted} in {text}"))
}

/// A run of the binary without store and configuration: its code and what it says.
fn elsewhere(folder: &TempDir, args: &[&str]) -> (Option<i32>, String) {
    let output = program().args(args).current_dir(folder.path()).output().unwrap();
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

/// Size and log of a head.
fn head(text: &str) -> (u64, String) {
    let mut lines = text.lines();
    let origin = lines.next().unwrap_or_default().to_owned();
    (lines.next().and_then(|size| size.parse().ok()).unwrap_or(0), origin)
}

fn size_of_log(gateway: &Gateway) -> u64 {
    let said: Value = serde_json::from_str(&gateway.cli_ok(&["verify", "--format", "json"])).unwrap();
    said["logs"].as_array().unwrap().iter().map(|log| log["size"].as_u64().unwrap()).max().unwrap()
}

/// The store as it is now, to be put back later.
fn keep_store(gateway: &Gateway) {
    fs::copy(gateway.data().join("patchwarden.db"), gateway.data().join("early.db")).unwrap();
}

/// Puts it back, without what lies beside it: only what is elsewhere can tell.
fn put_back_store(gateway: &Gateway) {
    fs::copy(gateway.data().join("early.db"), gateway.data().join("patchwarden.db")).unwrap();
    for left in ["patchwarden.db-wal", "patchwarden.db-shm", "patchwarden.db.head"] {
        let _ = fs::remove_file(gateway.data().join(left));
    }
}

/// A gateway that ran, was rolled back while it was stopped, and has not started again.
async fn rolled_back(setup: Setup) -> Gateway {
    let mut gateway = setup.start().await;
    change(&gateway, 3000).await;
    assert!(gateway.terminate().await.success());
    keep_store(&gateway);
    gateway.restart().await;
    change(&gateway, 2000).await;
    assert!(gateway.terminate().await.success());
    put_back_store(&gateway);
    gateway
}

/// The one succession there was, of a log that goes on.
async fn succeeded(gateway: &mut Gateway) -> Value {
    let event = gateway.wait_for_event("succession").await;
    let since = Instant::now();
    while ttl(gateway, 1000).await.status != 200 {
        assert!(since.elapsed() < Duration::from_secs(10), "changes do not pass");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(gateway.events("succession").len(), 1);
    let changes = gateway.history(&[])["changes"].as_array().unwrap().clone();
    assert_eq!(changes[0]["log"]["attempt"]["origin"], event["origin"], "it goes on in another log");
    // What was refused meanwhile may be in the new one too.
    let mut origins = changes.iter().map(|change| &change["log"]["attempt"]["origin"]);
    let before = origins.find(|origin| **origin != event["origin"]);
    assert_eq!(before, Some(&event["previous"]), "what is there stays readable");
    gateway.cli_ok(&["verify"]);
    // Whoever holds the key of the log before has that of the one that follows.
    let keys = gateway.cli_ok(&["keys", "show"]);
    let previous = event["previous"].as_str().unwrap();
    let key = keys.lines().find(|key| key.starts_with(previous)).unwrap();
    eventually(|| gateway.cli(&["verify", "--public-key", key]).status.success()).await;
    assert!(gateway.cli_ok(&["verify"]).contains("it has ended, and"), "verify says so too");
    event
}

/// Nothing was added to the log that had lost something: it ends as it was put back.
fn known_before_it_was_written(gateway: &Gateway, event: &Value) {
    assert!(event["found"].as_str().unwrap().contains("\"size\":4"), "{event}");
    assert!(gateway.events("anchor_denied").is_empty());
}

#[tokio::test]
async fn a_witness_cosigns_and_whoever_trusts_it_can_tell() {
    let (upstream, witness) = (upstream(), Witness::start(NAME));
    let mut gateway = anchored(&upstream, &witnessed_by(&witness)).start().await;
    let unknown = problem_says(&gateway, "it does not know the log").await;
    assert!(unknown.contains(NAME) && unknown.contains("patchwarden keys show"), "{unknown}");
    let log = gateway.cli_ok(&["keys", "show"]);
    witness.trust(&log);
    no_problem(&gateway).await;
    let id = change(&gateway, 1800).await;
    let size = size_of_log(&gateway);
    eventually(|| witness.seen().values().any(|seen| *seen >= size)).await;
    let verify =
        ["verify", "--witness", witness.key(), "--require-anchor", "24h", "--public-key", log.trim()];
    eventually(|| gateway.cli(&verify).status.success()).await;
    let folder = TempDir::new().unwrap();
    let proof = folder.path().join("proof.json").display().to_string();
    let prove = ["verify", &proof, "--public-key", log.trim(), "--witness", witness.key()];
    let mut said = String::new();
    eventually(|| {
        fs::write(&proof, gateway.cli_ok(&["prove", &id])).unwrap();
        let (code, text) = elsewhere(&folder, &prove);
        assert_eq!(code, Some(0), "{text}");
        said = text;
        said.contains(NAME)
    })
    .await;
    let script = crate::tidy::root().join("docs/verify-proof.py");
    let python =
        std::process::Command::new("python3").arg(script).args([&proof, log.trim()]).output().unwrap();
    assert!(
        python.status.success(),
        "the script of the docs passes over signatures it does not know: {python:?}"
    );
    // What comes later and was not cosigned yet does not hide it.
    witness.behave(Manner::Status(500));
    change(&gateway, 1700).await;
    problem_says(&gateway, "answered 500").await;
    fs::write(&proof, gateway.cli_ok(&["prove", &id])).unwrap();
    assert!(elsewhere(&folder, &prove).1.contains(NAME));
    witness.behave(Manner::Honest);
    no_problem(&gateway).await;
    // The last head too, said before the store is closed.
    assert!(gateway.terminate().await.success());
    let said = gateway.cli_ok(&verify);
    let size = size_of_log(&gateway);
    assert!(
        said.contains(&format!("{NAME} saw it on")) && said.contains(&format!("at {size} entries")),
        "{said}"
    );
    assert!(said.contains("since the witnesses saw it"), "{said}");
    // A restart asks from nothing, is told how far the witness is, and goes on from there.
    gateway.restart().await;
    change(&gateway, 1600).await;
    let size = size_of_log(&gateway);
    eventually(|| witness.seen().values().any(|seen| *seen >= size)).await;
    assert!(witness.statuses().contains(&409) && !witness.statuses().contains(&422));
    gateway.terminate().await;
    gateway.cli_ok(&verify);
}

#[tokio::test]
async fn a_witness_that_answers_wrong_is_a_problem_and_holds_nothing_up() {
    let (upstream, mut witness) = (upstream(), Witness::start(NAME));
    let mut gateway = anchored(&upstream, &witnessed_by(&witness)).start().await;
    let log = gateway.cli_ok(&["keys", "show"]);
    witness.trust(&log);
    no_problem(&gateway).await;
    let mut seconds = 3000;
    for (manner, what) in [
        (Manner::ForeignKey, "without a signature of the key of witness.example/w1"),
        (Manner::Forged, "does not fit the head"),
        (Manner::NoLines, "no lines of signatures"),
        (Manner::Status(503), "answered 503"),
        (Manner::Silent, "no complete answer in time"),
    ] {
        witness.behave(manner);
        let failures = metric(&gateway, "failures_total", NAME).await;
        let begun = Instant::now();
        seconds -= 1;
        change(&gateway, seconds).await;
        problem_says(&gateway, what).await;
        assert_eq!(metric(&gateway, "failing", NAME).await, 1, "{manner:?}");
        assert!(metric(&gateway, "failures_total", NAME).await > failures, "{manner:?}");
        let begun = if manner == Manner::Silent { Instant::now() } else { begun };
        seconds -= 1;
        change(&gateway, seconds).await;
        assert!(begun.elapsed() < Duration::from_secs(10), "changes go on at once");
        witness.behave(Manner::Honest);
        no_problem(&gateway).await;
        assert_eq!(metric(&gateway, "failing", NAME).await, 0, "{manner:?}");
    }
    // Its lines are kept once, and nobody else's.
    witness.behave(Manner::Chatty);
    change(&gateway, 100).await;
    let size = size_of_log(&gateway);
    eventually(|| witness.seen().values().any(|seen| *seen >= size)).await;
    no_problem(&gateway).await;
    eventually(|| {
        let proof: Value = serde_json::from_str(&gateway.cli_ok(&["prove", "last"])).unwrap();
        let proof = proof["entries"][0]["proof"].as_str().unwrap();
        assert!(!proof.contains("somebody.else"), "{proof}");
        proof.matches(&format!("\u{2014} {NAME} ")).count() == 1
    })
    .await;
    witness.behave(Manner::Honest);
    // Gone, and back.
    witness.go_away();
    let begun = Instant::now();
    for seconds in [99, 98, 97] {
        change(&gateway, seconds).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(5));
    problem_says(&gateway, "not sent").await;
    let failed = gateway.wait_for_event("anchor_failed").await;
    assert!(failed["to"].as_str().unwrap().contains(NAME), "{failed}");
    witness.come_back();
    no_problem(&gateway).await;
    gateway.wait_for_event("anchor_recovered").await;
    assert!(metric(&gateway, "last_success_timestamp_seconds", NAME).await > 1_700_000_000);
    gateway.terminate().await;
    let said = gateway.cli_ok(&["verify", "--witness", witness.key(), "--require-anchor", "1h"]);
    assert!(said.contains(NAME), "{said}");
}

#[tokio::test]
async fn a_witness_that_has_seen_more_than_the_store_holds_ends_that_log() {
    let (upstream, witness) = (upstream(), Witness::start(NAME));
    let mut gateway = anchored(&upstream, &witnessed_by(&witness)).start().await;
    witness.trust(&gateway.cli_ok(&["keys", "show"]));
    change(&gateway, 3000).await;
    assert!(gateway.terminate().await.success());
    keep_store(&gateway);
    gateway.restart().await;
    for seconds in 2000..2010 {
        change(&gateway, seconds).await;
    }
    let size = size_of_log(&gateway);
    eventually(|| witness.seen().values().any(|seen| *seen >= size)).await;
    assert!(gateway.terminate().await.success());
    put_back_store(&gateway);
    gateway.restart().await;
    let denied = gateway.wait_for_event("anchor_denied").await;
    assert!(denied["detail"].as_str().unwrap().contains("the store was rolled back"), "{denied}");
    let event = succeeded(&mut gateway).await;
    let seen = witness.seen()[event["previous"].as_str().unwrap()];
    assert_eq!(event["known"].as_str().unwrap(), format!("{{\"root\":null,\"size\":{seen}}}"));
    // The witness has to be told of the log that goes on; then nothing is wrong any more.
    problem_says(&gateway, "it does not know the log").await;
    witness.trust(
        gateway
            .cli_ok(&["keys", "show"])
            .lines()
            .find(|key| key.starts_with(event["origin"].as_str().unwrap()))
            .unwrap(),
    );
    no_problem(&gateway).await;
    let verify = ["verify", "--witness", witness.key(), "--require-anchor", "24h"];
    eventually(|| gateway.cli(&verify).status.success()).await;
    gateway.restart().await;
    assert_eq!(gateway.events("succession").len(), 1, "it is said once");
}

#[tokio::test]
async fn a_log_that_was_rolled_back_and_written_on_is_known_by_its_witness() {
    let (upstream, mut witness) = (upstream(), Witness::start(NAME));
    let setup = anchored(&upstream, &witnessed_by(&witness));
    let mut gateway = setup.start().await;
    witness.trust(&gateway.cli_ok(&["keys", "show"]));
    change(&gateway, 3000).await;
    assert!(gateway.terminate().await.success());
    keep_store(&gateway);
    gateway.restart().await;
    change(&gateway, 2000).await;
    assert!(gateway.terminate().await.success());
    put_back_store(&gateway);
    // Nobody is there to tell, and the log grows beyond what the witness has seen.
    witness.go_away();
    gateway.restart().await;
    for seconds in 2000..2010 {
        change(&gateway, seconds).await;
    }
    problem_says(&gateway, "not sent").await;
    assert!(gateway.events("succession").is_empty());
    witness.come_back();
    let denied = gateway.wait_for_event("anchor_denied").await;
    assert!(denied["detail"].as_str().unwrap().contains("and written on"), "{denied}");
    succeeded(&mut gateway).await;
}

#[tokio::test]
async fn a_witness_that_claims_too_much_of_everything_ends_one_log_and_not_each_that_follows() {
    let (upstream, witness) = (upstream(), Witness::start(NAME));
    witness.behave(Manner::Status(409));
    let mut gateway = anchored(&upstream, &witnessed_by(&witness)).start().await;
    witness.trust(&gateway.cli_ok(&["keys", "show"]));
    problem_says(&gateway, "answered 409").await;
    assert!(gateway.events("anchor_denied").is_empty(), "without a size it is no claim");
    change(&gateway, 3000).await;
    witness.behave(Manner::Claims(1_000_000));
    let event = succeeded(&mut gateway).await;
    let origin = event["origin"].as_str().unwrap();
    witness.trust(gateway.cli_ok(&["keys", "show"]).lines().find(|key| key.starts_with(origin)).unwrap());
    problem_says(&gateway, &format!("knows 1000000 entries of {origin}")).await;
    let answers = witness.statuses().len();
    eventually(|| witness.statuses().len() > answers + 4).await;
    change(&gateway, 900).await;
    assert_eq!((gateway.events("succession").len(), gateway.events("anchor_denied").len()), (1, 1));
    witness.behave(Manner::Honest);
    no_problem(&gateway).await;
}

#[tokio::test]
async fn a_rolled_back_store_is_known_by_the_file_elsewhere() {
    let (upstream, folder) = (upstream(), TempDir::new().unwrap());
    let file = folder.path().join("gw-1.head");
    let mut gateway = rolled_back(anchored(&upstream, &format!("file = \"{}\"", file.display()))).await;
    let (size, origin) = head(&fs::read_to_string(&file).unwrap());
    // Start, two changes, two stops, start again.
    assert_eq!(size, 8);
    let output = gateway.cli(&["verify"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("a head of 8 entries was signed"), "{said}");
    // So is what a backup of then does not hold.
    let backup = folder.path().join("backup.db");
    fs::copy(gateway.data().join("patchwarden.db"), &backup).unwrap();
    let output = gateway.cli(&["restore", "--check", backup.to_str().unwrap()]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && told.contains("would be lost"), "{told}");
    gateway.restart().await;
    let event = succeeded(&mut gateway).await;
    assert_eq!(event["previous"], origin.as_str());
    assert!(event["known"].as_str().unwrap().contains(&format!("\"size\":{size}")), "{event}");
    known_before_it_was_written(&gateway, &event);
    eventually(|| head(&fs::read_to_string(&file).unwrap()).1 != origin).await;
    no_problem(&gateway).await;
    // What is there is no head of ours: somebody else's says nothing of this log.
    gateway.terminate().await;
    fs::write(&file, fs::read_to_string(&file).unwrap().replacen('A', "B", 9)).unwrap();
    gateway.restart().await;
    change(&gateway, 50).await;
    assert_eq!(gateway.events("succession").len(), 1);
}

#[tokio::test]
async fn a_rolled_back_store_is_known_by_the_endpoint() {
    let (upstream, place) = (upstream(), Place::start());
    let mut gateway = rolled_back(anchored(&upstream, &format!("url = \"{}\"", place.url()))).await;
    let (size, origin) = head(&place.shelf().text.clone().unwrap());
    assert_eq!(size, 8);
    gateway.restart().await;
    let event = succeeded(&mut gateway).await;
    assert_eq!(event["previous"], origin.as_str());
    known_before_it_was_written(&gateway, &event);
    eventually(|| head(&place.shelf().text.clone().unwrap()).1 != origin).await;
    no_problem(&gateway).await;
}

#[tokio::test]
async fn an_endpoint_that_was_away_at_the_start_is_asked_before_it_is_written_to() {
    let (upstream, mut place) = (upstream(), Place::start());
    let mut gateway = rolled_back(anchored(&upstream, &format!("url = \"{}\"", place.url()))).await;
    let before = place.shelf().text.clone().unwrap();
    place.go_away();
    gateway.restart().await;
    change(&gateway, 1500).await;
    problem_says(&gateway, "not sent").await;
    assert!(gateway.events("succession").is_empty());
    place.come_back();
    gateway.wait_for_event("anchor_denied").await;
    let event = succeeded(&mut gateway).await;
    assert_eq!(event["previous"], head(&before).1.as_str());
    no_problem(&gateway).await;
}

#[tokio::test]
async fn an_endpoint_is_given_each_new_head_and_its_token_is_said_nowhere() {
    const TOKEN: &str = "hunter2-anchor-token";
    let (upstream, place, folder) = (upstream(), Place::start(), TempDir::new().unwrap());
    let file = folder.path().join("token");
    fs::write(&file, "another-one\n").unwrap();
    place.shelf().token = Some(TOKEN.to_owned());
    let settings = format!("url = \"{}\"\ntoken_file = \"{}\"", place.url(), file.display());
    let mut gateway = anchored(&upstream, &settings).args(&["--log-level", "trace"]).start().await;
    let told = problem_says(&gateway, "answered a GET with 401").await;
    assert!(told.starts_with("http://127.0.0.1:") && !told.contains("gw-1"), "{told}");
    // Read anew for each use.
    fs::write(&file, format!("{TOKEN}\n")).unwrap();
    no_problem(&gateway).await;
    for seconds in [3000, 2000] {
        change(&gateway, seconds).await;
        let size = size_of_log(&gateway);
        eventually(|| head(&place.shelf().text.clone().unwrap()).0 >= size).await;
    }
    place.shelf().status = Some(507);
    change(&gateway, 1000).await;
    problem_says(&gateway, "answered a PUT with 507").await;
    assert!(metric(&gateway, "failures_total", "url").await > 1);
    place.shelf().status = None;
    no_problem(&gateway).await;
    fs::remove_file(&file).unwrap();
    change(&gateway, 900).await;
    let told = problem_says(&gateway, "anchor.token_file").await;
    assert!(told.contains(&file.display().to_string()), "{told}");
    fs::write(&file, TOKEN).unwrap();
    no_problem(&gateway).await;
    // The last one too, and it is a head as `verify` takes it.
    assert!(gateway.terminate().await.success());
    let kept = folder.path().join("kept").display().to_string();
    let text = place.shelf().text.clone().unwrap();
    assert_eq!(head(&text).0, size_of_log(&gateway));
    fs::write(&kept, text).unwrap();
    gateway.cli_ok(&["verify", "--checkpoint", &kept]);
    assert!(!gateway.logs().join("\n").contains("hunter2"));
    assert!(!gateway.cli_ok(&["config"]).contains("hunter2"));
}

#[tokio::test]
async fn an_endpoint_behind_tls_is_believed_by_the_roots_that_are_named() {
    let (elsewhere, authority) = Upstream::start_tls();
    let (upstream, folder) = (upstream(), TempDir::new().unwrap());
    let ca = folder.path().join("ca.pem");
    fs::write(&ca, authority).unwrap();
    let url = format!("url = \"{}/heads/gw-1\"", elsewhere.url());
    let stranger = anchored(&upstream, &url).start().await;
    let told = problem_says(&stranger, "not sent").await;
    assert!(told.to_lowercase().contains("certificate"), "{told}");
    assert!(elsewhere.seen().is_empty());
    let known = anchored(&upstream, &format!("{url}\nca_file = \"{}\"", ca.display())).start().await;
    problem_says(&known, "answered a PUT with 404").await;
    let put = elsewhere.writes().pop().unwrap();
    assert_eq!((put.method.as_str(), put.target.as_str()), ("PUT", "/heads/gw-1"));
    assert_eq!(put.get("content-type"), Some("text/plain; charset=utf-8"));
    assert!(String::from_utf8(put.body).unwrap().contains("\u{2014} patchwarden.invalid/"));
}

#[tokio::test]
async fn what_does_not_answer_delays_neither_the_start_nor_a_change_nor_the_end() {
    let (upstream, place, folder) = (upstream(), Place::start(), TempDir::new().unwrap());
    place.shelf().is_silent = true;
    let missing = folder.path().join("not-mounted/gw-1.head");
    let settings = format!("url = \"{}\"\nfile = \"{}\"", place.url(), missing.display());
    let begun = Instant::now();
    let mut gateway = anchored(&upstream, &settings).start().await;
    assert!(begun.elapsed() < Duration::from_secs(10), "the start waits for start_timeout at most");
    let begun = Instant::now();
    for seconds in [3000, 2000, 1000] {
        change(&gateway, seconds).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let told = problem_says(&gateway, "no complete answer in time").await;
    let told = if told.contains("not-mounted") { told } else { problem_says(&gateway, "not-mounted").await };
    assert!(told.contains("; "), "both are named: {told}");
    assert_eq!((metric(&gateway, "failing", "file").await, metric(&gateway, "failing", "url").await), (1, 1));
    // The storage is there again; the endpoint is not.
    fs::create_dir(folder.path().join("not-mounted")).unwrap();
    problem_is(&gateway, |found| found.is_some_and(|found| !found.contains("not-mounted"))).await;
    let size = size_of_log(&gateway);
    eventually(|| fs::read_to_string(&missing).is_ok_and(|text| head(&text).0 >= size)).await;
    let begun = Instant::now();
    assert!(gateway.terminate().await.success());
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
    assert_eq!(head(&fs::read_to_string(&missing).unwrap()).0, size_of_log(&gateway), "with the stop");
}

#[tokio::test]
async fn check_names_what_is_wrong_with_a_destination() {
    let folder = TempDir::new().unwrap();
    let check = |settings: &str| {
        let file = folder.path().join("patchwarden.toml");
        fs::write(&file, format!("[upstream]\nurl = \"http://127.0.0.1:1\"\n{settings}\n")).unwrap();
        elsewhere(&folder, &["check"])
    };
    let key = Witness::start(NAME).key().to_owned();
    let good = format!("[anchor]\nfile = \"x\"\nurl = \"http://a/b\"\nwitnesses = [\"http://w/ {key}\"]");
    assert_eq!(check(&good).0, Some(0), "{}", check(&good).1);
    for (settings, what) in [
        ("[anchor]\nurl = \"a\"".to_owned(), "anchor.url: is no URL"),
        (
            "[anchor]\nwitnesses = [\"http://w/\"]".to_owned(),
            "anchor.witnesses: `http://w/` is not two words",
        ),
        (format!("[anchor]\nwitnesses = [\"http://w/ {key}x\"]"), "is no public key"),
        ("[anchor]\nevery = \"0s\"".to_owned(), "anchor.every: is zero"),
        ("[anchor]\nevrey = \"1s\"".to_owned(), "anchor.evrey: unknown key"),
        ("[audit]\nidle_every = \"0s\"".to_owned(), "audit.idle_every: is zero"),
    ] {
        let (code, said) = check(&settings);
        assert!(
            code == Some(2) && said.contains("patchwarden.toml: ") && said.contains(what),
            "{what}: {said}"
        );
    }
}

#[tokio::test]
async fn a_log_in_which_nothing_happens_says_so_and_is_cosigned() {
    let (upstream, witness) = (upstream(), Witness::start(NAME));
    let config = format!("{QUICK}{}\n[audit]\nidle_every = \"300ms\"\n", witnessed_by(&witness));
    let mut gateway = Gateway::before(&upstream.url()).config(&config).start().await;
    witness.trust(&gateway.cli_ok(&["keys", "show"]));
    let idle = || gateway.cli_ok(&["export"]).matches("lifecycle.idle").count();
    eventually(|| idle() >= 2).await;
    eventually(|| {
        gateway.cli(&["verify", "--witness", witness.key(), "--require-anchor", "1h"]).status.success()
    })
    .await;
    let before = witness.seen().into_values().max().unwrap();
    eventually(|| witness.seen().into_values().max().unwrap() > before).await;
    gateway.terminate().await;
    gateway.cli_ok(&["verify", "--projection"]);
    // An hour unless it is said otherwise.
    let mut quiet = Gateway::start(&upstream).await;
    change(&quiet, 3000).await;
    quiet.terminate().await;
    assert!(!quiet.cli_ok(&["export"]).contains("lifecycle.idle"));
}
