//! Crashes: of the machine, of the disk, of the process. What was forwarded has its intent, what was acknowledged is there.
//!
//! A machine that loses its power is played from a record of everything the gateway wrote: see `support/crash.rs`.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, Row as _};
use tempfile::TempDir;

use crate::outage::patient_send;
use crate::support::client::{Answer, Connection, raw_request};
use crate::support::crash::{Disk, Event, Fault, Left, Recorder, Seeded};
use crate::support::gateway::{Gateway, change_of, program};
use crate::support::upstream::{Act, Upstream};
use crate::support::{good_attach, good_patch, jwt_auth_path, machine_token};

const PATIENCE: Duration = Duration::from_secs(20);

/// Lifetimes are numbered, so that each request can be told from every other wherever it shows.
fn numbered(value: u64) -> Value {
    good_patch(&json!({"accessTokenTTL": value, "accessTokenMaxTTL": 604_800}))
}

fn identity(client: usize) -> String {
    format!("0b9c3a52-7d3f-4f7e-9a43-{client:012x}")
}

fn attach_all(upstream: &Upstream, clients: usize) {
    for client in 0..clients {
        upstream.estate().add_identity(&identity(client));
        let mut row = good_attach();
        (row["accessTokenTTL"], row["accessTokenMaxTTL"]) = (json!(86_400), json!(604_800));
        upstream.attach(&identity(client), &row);
    }
}

/// What a gateway wrote and sent, and the log it ended with.
struct Recording {
    events: Vec<Event>,
    /// Envelopes by number.
    log: Vec<Vec<u8>>,
    /// From that event on the log has to have that many entries, whatever happens.
    demands: Vec<(usize, usize)>,
    /// Commits failed in it, so that an image may hold entries that nobody was told of and that others took the place of.
    is_tried: bool,
}

impl Recording {
    /// Two runs of a gateway with changes, refusals and watched writes of several clients at once.
    async fn make(unsynced: bool) -> Self {
        const CLIENTS: usize = 4;
        const EACH: usize = 15;
        let (upstream, recorder) = (Upstream::start(), Recorder::new());
        attach_all(&upstream, CLIENTS);
        let setup = recorder.recording(Gateway::before(&upstream.url()));
        let setup = if unsynced { setup.env("RECORDER_UNSYNCED", "1") } else { setup };
        let mut gateway = setup.start().await;
        for run in 0..2 {
            let running = &gateway;
            let clients = (0..CLIENTS).map(|client| async move {
                let path = jwt_auth_path(&identity(client));
                for round in 0..EACH {
                    let value = 1000 + (run * CLIENTS + client) * EACH + round;
                    assert_eq!(running.patch(&path, &numbered(value as u64)).await.status, 200);
                    if round % 5 == 1 {
                        assert_eq!(running.patch(&path, &numbered(9_000_000)).await.status, 403);
                    }
                    if round % 5 == 2 {
                        let watched = format!("/api/v1/auth/universal-auth/identities/{}", identity(value));
                        assert_ne!(running.post(&watched, &json!({})).await.status, 503);
                    }
                }
            });
            futures_util::future::join_all(clients).await;
            if run == 0 {
                assert!(gateway.terminate().await.success());
                gateway.restart().await;
            }
        }
        gateway.kill();
        let recording = Self::read(&recorder, &gateway).await;
        let forwarded = 2 * CLIENTS * (EACH + EACH / 5);
        let answered = forwarded + 2 * CLIENTS * (EACH / 5);
        assert_eq!(recording.demands.len(), forwarded + answered, "all that went out was seen");
        recording
    }

    /// What a recorder has of a gateway that is dead.
    async fn read(recorder: &Recorder, gateway: &Gateway) -> Self {
        let events = recorder.events();
        let (log, places) = read_log(&gateway.data().join("patchwarden.db")).await;
        let demand = |(event, what): (usize, String)| {
            let entries = places.get(&what).unwrap_or_else(|| panic!("{what} went out and is not recorded"));
            (event, *entries)
        };
        let demands = sent(&events).into_iter().map(demand).collect();
        Self { events, log, demands, is_tried: false }
    }

    /// The entries there must be once the first `events` have happened.
    fn demanded(&self, events: usize) -> usize {
        self.demands.iter().filter(|(at, _)| *at < events).map(|(_, entries)| *entries).max().unwrap_or(0)
    }

    /// Where to cut: half of the times anywhere, half of the times with a byte of a forwarded request or of an answer just
    /// gone out. In order.
    fn cuts(&self, count: usize, seed: u64) -> Vec<(usize, u64)> {
        let mut seeded = Seeded(seed);
        let mut cuts: Vec<(usize, u64)> = (0..count)
            .map(|_| {
                let anywhere = seeded.next() & 1 == 0;
                let at = match anywhere {
                    true => 1 + seeded.below(self.events.len()),
                    false => 1 + self.demands[seeded.below(self.demands.len())].0,
                };
                (at, seeded.next())
            })
            .collect();
        cuts.sort_unstable();
        cuts
    }

    /// Judges that many images; those that miss something, each in a line.
    fn lost(&self, count: usize, seed: u64) -> Vec<String> {
        const WORKERS: usize = 2;
        let cuts = self.cuts(count, seed);
        let chunks = cuts.chunks(count.div_ceil(WORKERS));
        std::thread::scope(|scope| {
            let workers: Vec<_> = chunks.map(|cuts| scope.spawn(|| self.lost_of(cuts))).collect();
            workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
        })
    }

    fn lost_of(&self, cuts: &[(usize, u64)]) -> Vec<String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (mut disk, mut taken, mut lost) = (Disk::default(), 0, Vec::new());
        for (cut, seed) in cuts {
            self.events[taken..*cut].iter().for_each(|event| disk.take(event));
            taken = *cut;
            let mut seeded = Seeded(*seed);
            let left = [Left::Nothing, Left::Some, Left::All, Left::Torn][seeded.below(4)];
            let folder = image_folder();
            write_image(folder.path(), disk.image(left, &mut seeded));
            let judged = runtime.block_on(self.judge(folder.path(), self.demanded(*cut)));
            if let Err(what) = judged {
                lost.push(format!("cut {cut} of {}, {left:?}, seed {seed:#x}: {what}", self.events.len()));
            }
        }
        lost
    }

    /// Whether a store, opened after the crash, is the log up to some entry, and goes far enough.
    async fn judge(&self, folder: &Path, demanded: usize) -> Result<(), String> {
        let store = folder.join("patchwarden.db");
        let found = match fs::metadata(&store) {
            Ok(file) if file.len() > 0 => open_image(&store).await.map_err(|error| error.to_string())?,
            _ => Image::default(),
        };
        for (index, envelope) in &found.entries {
            let index = usize::try_from(*index).unwrap();
            if self.log.get(index) != Some(envelope) && !(self.is_tried && index >= demanded) {
                return Err(format!("entry {index} is another one"));
            }
        }
        let entries = found.entries.len();
        if found.head != entries as i64 || found.entries.last().is_some_and(|last| last.0 + 1 != found.head) {
            return Err(format!("{entries} entries, and a head of {}", found.head));
        }
        if entries < demanded {
            return Err(format!("{entries} entries of {demanded}"));
        }
        Ok(())
    }
}

/// A folder in memory where there is one: a crash has already been played, nothing has to last.
fn image_folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { TempDir::new_in(memory).unwrap() } else { TempDir::new().unwrap() }
}

fn write_image(folder: &Path, files: Vec<(String, Vec<u8>)>) {
    for (name, bytes) in files {
        fs::write(folder.join(name), bytes).unwrap();
    }
}

/// What an image holds once SQLite has recovered it.
#[derive(Default)]
struct Image {
    entries: Vec<(i64, Vec<u8>)>,
    head: i64,
}

async fn open_image(store: &Path) -> Result<Image, sqlx::Error> {
    let options = SqliteConnectOptions::new().filename(store).synchronous(SqliteSynchronous::Off);
    let mut connection = options.disable_statement_logging().connect().await?;
    let is_begun: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'log_head')")
            .fetch_one(&mut connection)
            .await?;
    let mut image = Image::default();
    if is_begun {
        image.entries = sqlx::query_as("SELECT idx, envelope FROM entries ORDER BY idx")
            .fetch_all(&mut connection)
            .await?;
        let head = sqlx::query_scalar("SELECT COALESCE(MAX(size), 0) FROM log_head");
        image.head = head.fetch_one(&mut connection).await?;
    }
    connection.close().await?;
    Ok(image)
}

/// The log as it is, and how many entries there are once something is in it: the intent of what was forwarded, by
/// lifetime or path; all of a change, by its id.
async fn read_log(store: &Path) -> (Vec<Vec<u8>>, HashMap<String, usize>) {
    let mut connection: SqliteConnection =
        SqliteConnectOptions::new().filename(store).connect().await.unwrap();
    let rows =
        sqlx::query("SELECT e.envelope, p.body FROM entries e JOIN payloads p USING (row) ORDER BY e.row")
            .fetch_all(&mut connection)
            .await
            .unwrap();
    connection.close().await.unwrap();
    let (mut log, mut places) = (Vec::new(), HashMap::new());
    for row in rows {
        let (envelope, body): (Vec<u8>, Vec<u8>) = (row.get(0), row.get(1));
        let (entry, payload): (Value, Value) =
            (serde_json::from_slice(&envelope).unwrap(), serde_json::from_slice(&body).unwrap());
        log.push(envelope);
        if let Some(change) = entry["change"].as_str() {
            places.insert(change.to_owned(), log.len());
        }
        if entry["kind"] == "attempt" && entry["result"] == "allow" {
            let what = match &payload["proposed"]["accessTokenTTL"] {
                Value::Null => payload["request"]["path"].as_str().unwrap().to_owned(),
                value => value.to_string(),
            };
            places.insert(what, log.len());
        }
    }
    (log, places)
}

/// At the event of its first byte, each write that went to the upstream, by lifetime or path, and each answer to a change
/// that is recorded, by the change.
fn sent(events: &[Event]) -> Vec<(usize, String)> {
    let mut messages: Vec<(usize, Vec<u8>)> = Vec::new();
    let mut open: HashMap<u64, usize> = HashMap::new();
    for (at, event) in events.iter().enumerate() {
        let Event::Socket { socket, bytes } = event else { continue };
        let begins = [&b"PATCH "[..], b"POST ", b"DELETE ", b"GET ", b"HTTP/1.1 "];
        if begins.iter().any(|begin| bytes.starts_with(begin)) {
            open.insert(*socket, messages.len());
            messages.push((at, bytes.clone()));
        } else if let Some(message) = open.get(socket) {
            messages[*message].1.extend(bytes);
        }
    }
    let found = messages.into_iter().filter_map(|(at, bytes)| {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n")?;
        let header = |name: &str| {
            let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(name))?;
            Some(line[name.len()..].trim().to_owned())
        };
        let sent = match head.split(' ').next()? {
            "GET" => return None,
            "HTTP/1.1" => {
                let is_recorded = header("patchwarden-record:").is_none() && !head.starts_with("HTTP/1.1 5");
                header("patchwarden-change:").filter(|_| is_recorded)?
            }
            "PATCH" => {
                let body: Value = serde_json::from_str(body).unwrap();
                body["accessTokenTTL"].to_string()
            }
            _ => head.split(' ').nth(1)?.to_owned(),
        };
        Some((at, sent))
    });
    found.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_five_thousand_crashes_none_takes_what_was_forwarded_or_acknowledged() {
    let recording = Recording::make(false).await;
    let lost = recording.lost(5_000, 20);
    assert!(lost.is_empty(), "{} of 5000 lost something:\n{}", lost.len(), lost.join("\n"));
    // To the program itself such a store is a log like any other.
    let mut disk = Disk::default();
    for (at, event) in recording.events.iter().enumerate() {
        disk.take(event);
        if at % (recording.events.len() / 6) == 0 && recording.demanded(at) > 0 {
            let folder = image_folder();
            write_image(folder.path(), disk.image(Left::Torn, &mut Seeded(at as u64)));
            let output = program().arg("verify").arg("--data").arg(folder.path()).output().unwrap();
            assert!(output.status.success(), "cut {at}: {}", String::from_utf8_lossy(&output.stdout));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_synchronisation_crashes_would_take_it() {
    let recording = Recording::make(true).await;
    let lost = recording.lost(500, 21);
    assert!(lost.len() > 100, "only {} of 500 lost something: the test above shows nothing", lost.len());
}

/// What clients were told, to be held against the log and the upstream's own record.
#[derive(Default)]
struct Told {
    applied: Vec<(u64, String)>,
    refused: Vec<u64>,
}

impl Told {
    /// An answer to a change, which is the upstream's, or says that nothing was forwarded because of the log.
    #[track_caller]
    fn take(&mut self, value: u64, answer: &Answer) -> bool {
        match answer.status {
            200 => self.applied.push((value, change_of(answer))),
            503 => {
                let code = answer.json()["code"].clone();
                assert!(["audit.unavailable", "target.busy", "target.unsettled"].iter().any(|c| code == *c));
                assert!(answer.json()["message"].as_str().unwrap().ends_with("Nothing was changed."));
                self.refused.push(value);
            }
            _ => panic!("{} {}", answer.status, answer.text()),
        }
        answer.status == 200
    }

    /// Log, clients and upstream tell the same story, and it has an end.
    fn agree(&self, upstream: &Upstream, gateway: &Gateway) {
        let output = gateway.cli(&["verify"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        let history = gateway.history(&["--limit", "100000", "--decision", "allow"]);
        let recorded: HashMap<u64, &Value> = history["changes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|change| (change["proposed"]["accessTokenTTL"].as_u64().unwrap(), change))
            .collect();
        let arrived: HashSet<u64> =
            upstream.writes().iter().map(|write| write.json()["accessTokenTTL"].as_u64().unwrap()).collect();
        for value in &arrived {
            assert!(recorded.contains_key(value), "{value} was forwarded without an intent");
        }
        for (value, id) in &self.applied {
            let change = recorded.get(value).unwrap_or_else(|| panic!("{value} was answered and is gone"));
            assert_eq!((&change["id"], &change["outcome"]), (&json!(id), &json!("applied")), "{change}");
        }
        for value in &self.refused {
            assert!(!arrived.contains(value), "{value} was refused and forwarded");
        }
        for (value, change) in recorded {
            let right = match change["outcome"].as_str().unwrap() {
                "applied" => arrived.contains(&value),
                "not_sent" => !arrived.contains(&value),
                "unknown" => match change["settlement"]["result"].as_str() {
                    Some("applied") => arrived.contains(&value),
                    Some("not_applied") => !arrived.contains(&value),
                    _ => false,
                },
                _ => false,
            };
            assert!(right, "arrived: {}; {change}", arrived.contains(&value));
        }
    }
}

/// Changes until one passes.
async fn wait_until_changes_pass(gateway: &Gateway, identity: &str, told: &mut Told, values: &mut u64) {
    let since = Instant::now();
    loop {
        *values += 1;
        let answer = gateway.patch(&jwt_auth_path(identity), &numbered(*values)).await;
        if told.take(*values, &answer) {
            return;
        }
        assert!(since.elapsed() < PATIENCE, "changes do not pass: {}", answer.text());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A change for each call it makes under the data folder, with a fault at that call (and, if `lasting`, at those that
/// follow for a while): answered by the upstream or refused, and the next one passes.
async fn a_fault_at_every_call(fault: Fault, lasting: bool, step: usize) {
    const WHILE: Duration = Duration::from_millis(300);
    const IMAGES: usize = 400;
    let (upstream, recorder) = (Upstream::start(), Recorder::new());
    attach_all(&upstream, 1);
    let mut gateway = recorder.recording(Gateway::before(&upstream.url()).config(IMPATIENT)).start().await;
    let (mut told, mut value, path) = (Told::default(), 1000, jwt_auth_path(&identity(0)));
    let mut calls = 0;
    for at in (1..).step_by(step) {
        wait_until_changes_pass(&gateway, &identity(0), &mut told, &mut value).await;
        value += 1;
        recorder.arm(fault, at, lasting);
        let body = numbered(value);
        let mut change = std::pin::pin!(gateway.patch(&path, &body));
        let met = async {
            while recorder.hits() == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            if lasting {
                tokio::time::sleep(WHILE).await;
            }
        };
        let early = tokio::select! {
            answer = &mut change => Some(answer),
            () = met => None,
        };
        assert_eq!(gateway.get("/api/status").await.status, 200, "what passes through goes on");
        let hits = recorder.disarm();
        let answer = match early {
            Some(answer) => answer,
            None => change.await,
        };
        told.take(value, &answer);
        if hits == 0 {
            calls = at - 1;
            break;
        }
    }
    assert!(calls > 20, "a change makes more calls than {calls}");
    assert!(lasting || !told.applied.is_empty());
    assert!(!told.refused.is_empty(), "no fault refused a change");
    wait_until_changes_pass(&gateway, &identity(0), &mut told, &mut value).await;
    told.agree(&upstream, &gateway);
    assert!(gateway.terminate().await.success());
    told.agree(&upstream, &gateway);
    // A sync that failed made nothing safe, and yet what went out after it has to be.
    let recording = Recording { is_tried: true, ..Recording::read(&recorder, &gateway).await };
    let lost = recording.lost(IMAGES, 23);
    assert!(lost.is_empty(), "{} of {IMAGES} lost something:\n{}", lost.len(), lost.join("\n"));
    assert!(gateway.events("succession").is_empty(), "no log was given up");
}

#[tokio::test]
async fn an_io_error_at_any_call_of_a_change_is_a_refusal_or_changes_nothing() {
    a_fault_at_every_call(Fault::Io, false, 1).await;
}

#[tokio::test]
async fn no_space_at_any_call_of_a_change_is_a_refusal_or_changes_nothing() {
    a_fault_at_every_call(Fault::Space, false, 1).await;
}

#[tokio::test]
async fn a_short_write_at_any_call_of_a_change_is_a_refusal_or_changes_nothing() {
    a_fault_at_every_call(Fault::Short, false, 1).await;
}

#[tokio::test]
async fn faults_that_last_a_while_from_any_call_on_are_refusals_and_end() {
    a_fault_at_every_call(Fault::Io, true, 4).await;
    a_fault_at_every_call(Fault::Space, true, 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_two_hundred_times_under_load_the_log_agrees_with_the_upstream() {
    const CLIENTS: usize = 8;
    const KILLS: usize = 200;
    let upstream = Upstream::start();
    attach_all(&upstream, CLIENTS);
    let config = "[upstream]\nlate_write_limit = \"500ms\"\n";
    let mut gateway = Gateway::before(&upstream.url()).config(config).start().await;
    let (at, stop) = (Arc::new(Mutex::new(gateway.addr())), Arc::new(AtomicBool::new(false)));
    let (values, told) = (Arc::new(AtomicU64::new(1000)), Arc::new(Mutex::new(Told::default())));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (at, stop, values, told) = (at.clone(), stop.clone(), values.clone(), told.clone());
            let (path, token) = (jwt_auth_path(&identity(client)), format!("Bearer {}", machine_token()));
            tokio::spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    let (addr, value) = (*at.lock().unwrap(), values.fetch_add(1, Ordering::SeqCst));
                    let headers = [("authorization", token.as_str())];
                    let raw = raw_request(addr, "PATCH", &path, &headers, Some(&numbered(value)));
                    match patient_send(addr, raw).await {
                        Some(answer) if told.lock().unwrap().take(value, &answer) => {}
                        _ => tokio::time::sleep(Duration::from_millis(10)).await,
                    }
                }
            })
        })
        .collect();
    let mut seeded = Seeded(22);
    for kill in 0..KILLS {
        // At some moment of its work; one in eight while it starts.
        if kill % 8 == 7 {
            let start = Duration::from_millis(seeded.next() % 150);
            let _ = tokio::time::timeout(start, gateway.restart()).await;
        } else {
            gateway.restart().await;
            *at.lock().unwrap() = gateway.addr();
            let (heads, since) = (upstream.heads() + 12 + seeded.below(24), Instant::now());
            while upstream.heads() < heads {
                assert!(since.elapsed() < PATIENCE, "no load after kill {kill}");
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            tokio::time::sleep(Duration::from_micros(seeded.next() % 40_000)).await;
        }
        gateway.kill();
    }
    stop.store(true, Ordering::SeqCst);
    for client in clients {
        client.await.unwrap();
    }
    gateway.restart().await;
    let mut told = std::mem::take(&mut *told.lock().unwrap());
    let mut value = values.load(Ordering::SeqCst);
    for client in 0..CLIENTS {
        wait_until_changes_pass(&gateway, &identity(client), &mut told, &mut value).await;
    }
    told.agree(&upstream, &gateway);
    assert!(told.applied.len() > 2 * KILLS, "the load was real: {}", told.applied.len());
    let unknown = gateway.history(&["--limit", "100000", "--decision", "allow"])["changes"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|change| change["outcome"] == "unknown")
        .count();
    assert!(unknown > KILLS / 4, "kills met changes on their way: {unknown}");
}

/// What can become of the files of a store under a gateway that runs.
#[derive(Clone, Copy, Debug)]
enum Mishap {
    Renamed,
    Removed,
    /// By a copy of itself.
    Replaced,
    /// To half its length.
    Halved,
    Emptied,
}

impl Mishap {
    fn happen(self, file: &Path) {
        let aside = file.with_extension("aside");
        let cut = |length: u64| fs::File::options().write(true).open(file).unwrap().set_len(length).unwrap();
        match self {
            Self::Renamed => fs::rename(file, &aside).unwrap(),
            Self::Removed => fs::remove_file(file).unwrap(),
            Self::Replaced => {
                fs::copy(file, &aside).unwrap();
                fs::rename(&aside, file).unwrap();
            }
            Self::Halved => cut(fs::metadata(file).unwrap().len() / 2),
            Self::Emptied => cut(0),
        }
    }
}

const STORE: &str = "patchwarden.db";
const WAL: &str = "patchwarden.db-wal";
/// Impatient, so that a change that waits for its log does not hold up the test.
const IMPATIENT: &str = "[upstream]\nlate_write_limit = \"1s\"\n[audit]\ncommit_wait = \"1s\"\n";

/// A gateway with changes in its database, and changes that are only in the WAL.
async fn with_changes(told: &mut Told, value: &mut u64) -> (Upstream, Gateway) {
    let upstream = Upstream::start();
    attach_all(&upstream, 1);
    let mut gateway = Gateway::before(&upstream.url()).config(IMPATIENT).start().await;
    wait_until_changes_pass(&gateway, &identity(0), told, value).await;
    assert!(gateway.terminate().await.success());
    gateway.restart().await;
    for _ in 0..3 {
        wait_until_changes_pass(&gateway, &identity(0), told, value).await;
    }
    assert_eq!(told.applied.len(), 4);
    (upstream, gateway)
}

/// The next change is refused, and what passes through is not.
async fn meet(upstream: &Upstream, gateway: &mut Gateway, told: &mut Told, value: &mut u64) {
    let arrived = upstream.writes().len();
    *value += 1;
    let answer = gateway.patch(&jwt_auth_path(&identity(0)), &numbered(*value)).await;
    assert_eq!((answer.status, &answer.json()["code"]), (503, &json!("audit.unavailable")));
    told.take(*value, &answer);
    assert_eq!(upstream.writes().len(), arrived);
    assert_eq!(gateway.get("/api/status").await.status, 200);
    gateway.wait_for_event("degraded").await;
}

#[tokio::test]
async fn a_wal_that_is_moved_or_replaced_costs_one_refusal_and_nothing_of_the_log() {
    for mishap in [Mishap::Renamed, Mishap::Removed, Mishap::Replaced] {
        let (mut told, mut value) = (Told::default(), 1000);
        let (upstream, mut gateway) = with_changes(&mut told, &mut value).await;
        mishap.happen(&gateway.data().join(WAL));
        meet(&upstream, &mut gateway, &mut told, &mut value).await;
        wait_until_changes_pass(&gateway, &identity(0), &mut told, &mut value).await;
        told.agree(&upstream, &gateway);
        gateway.kill();
        gateway.restart().await;
        wait_until_changes_pass(&gateway, &identity(0), &mut told, &mut value).await;
        told.agree(&upstream, &gateway);
        assert!(gateway.events("succession").is_empty(), "{mishap:?}");
    }
}

#[tokio::test]
async fn a_wal_that_another_program_emptied_by_a_checkpoint_is_as_good_as_before() {
    let (mut told, mut value) = (Told::default(), 1000);
    let (upstream, gateway) = with_changes(&mut told, &mut value).await;
    let mut other: SqliteConnection =
        SqliteConnectOptions::new().filename(gateway.data().join(STORE)).connect().await.unwrap();
    sqlx::raw_sql("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut other).await.unwrap();
    other.close().await.unwrap();
    assert_eq!(fs::metadata(gateway.data().join(WAL)).unwrap().len(), 0);
    value += 1;
    let answer = gateway.patch(&jwt_auth_path(&identity(0)), &numbered(value)).await;
    assert!(told.take(value, &answer), "{}", answer.text());
    assert!(gateway.events("degraded").is_empty());
    told.agree(&upstream, &gateway);
}

#[tokio::test]
async fn a_change_that_meets_a_database_replaced_by_its_copy_is_in_doubt_until_it_is_read_in_the_copy() {
    let (mut told, mut value) = (Told::default(), 1000);
    let (upstream, mut gateway) = with_changes(&mut told, &mut value).await;
    Mishap::Replaced.happen(&gateway.data().join(STORE));
    value += 1;
    let answer = gateway.patch(&jwt_auth_path(&identity(0)), &numbered(value)).await;
    told.take(value, &answer);
    gateway.wait_for_event("degraded").await;
    gateway.wait_for_event("recovered").await;
    wait_until_changes_pass(&gateway, &identity(0), &mut told, &mut value).await;
    told.agree(&upstream, &gateway);
    gateway.kill();
    gateway.restart().await;
    wait_until_changes_pass(&gateway, &identity(0), &mut told, &mut value).await;
    told.agree(&upstream, &gateway);
}

#[tokio::test]
async fn a_wal_that_is_cut_is_never_written_on_and_what_it_held_is_said_to_be_missing() {
    for mishap in [Mishap::Halved, Mishap::Emptied] {
        let (mut told, mut value) = (Told::default(), 1000);
        let (upstream, mut gateway) = with_changes(&mut told, &mut value).await;
        mishap.happen(&gateway.data().join(WAL));
        meet(&upstream, &mut gateway, &mut told, &mut value).await;
        let mut since = Told::default();
        wait_until_changes_pass(&gateway, &identity(0), &mut since, &mut value).await;
        assert_eq!(gateway.events("succession").len(), 1, "{mishap:?}");
        gateway.kill();
        gateway.restart().await;
        wait_until_changes_pass(&gateway, &identity(0), &mut since, &mut value).await;
        assert!(gateway.cli(&["verify"]).status.success());
        for (value, id) in &since.applied {
            let change = gateway.show(id);
            assert_eq!(
                (&change["outcome"], &change["after"]["accessTokenTTL"]),
                (&json!("applied"), &json!(value))
            );
        }
        assert_eq!(gateway.events("succession").len(), 1, "it is said once");
    }
}

#[tokio::test]
async fn an_outcome_that_meets_a_cut_wal_is_kept_though_its_intent_is_gone() {
    for mishap in [Mishap::Halved, Mishap::Emptied] {
        let (mut told, mut value) = (Told::default(), 1000);
        let (upstream, gateway) = with_changes(&mut told, &mut value).await;
        let path = gateway.data().join(WAL);
        upstream.script("PATCH", Act::hook(move |_| mishap.happen(&path)));
        value += 1;
        let answer = gateway.patch(&jwt_auth_path(&identity(0)), &numbered(value)).await;
        assert_eq!((answer.status, answer.get("patchwarden-record")), (200, None), "{}", answer.text());
        assert_eq!(gateway.events("succession").len(), 1, "{mishap:?}");
        let mut since = Told::default();
        wait_until_changes_pass(&gateway, &identity(0), &mut since, &mut value).await;
        assert!(gateway.cli(&["verify"]).status.success());
        let (log, places) = read_log(&gateway.data().join(STORE)).await;
        let kept = &log[places[&change_of(&answer)] - 1];
        let kept: Value = serde_json::from_slice(kept).unwrap();
        assert_eq!((&kept["kind"], &kept["result"]), (&json!("outcome"), &json!("applied")));
    }
}

#[tokio::test]
async fn a_wal_that_is_cut_in_the_middle_of_a_commit_has_acknowledged_nothing_that_is_not_there() {
    let mut rounds = 0;
    for at in (1..).step_by(3) {
        let (mut told, mut value) = (Told::default(), 1000);
        let (upstream, recorder) = (Upstream::start(), Recorder::new());
        attach_all(&upstream, 1);
        let mut gateway = recorder.under(Gateway::before(&upstream.url()).config(IMPATIENT)).start().await;
        wait_until_changes_pass(&gateway, &identity(0), &mut told, &mut value).await;
        assert!(gateway.terminate().await.success());
        gateway.restart().await;
        wait_until_changes_pass(&gateway, &identity(0), &mut told, &mut value).await;
        let mut told = Told::default();
        recorder.arm(Fault::Cut, at, false);
        value += 1;
        let answer = gateway.patch(&jwt_auth_path(&identity(0)), &numbered(value)).await;
        let hits = recorder.disarm();
        let applied = told.take(value, &answer);
        assert_eq!(applied, upstream.writes().iter().any(|write| write.json()["accessTokenTTL"] == value));
        wait_until_changes_pass(&gateway, &identity(0), &mut told, &mut value).await;
        gateway.kill();
        gateway.restart().await;
        wait_until_changes_pass(&gateway, &identity(0), &mut told, &mut value).await;
        assert!(gateway.cli(&["verify"]).status.success());
        let (_, places) = read_log(&gateway.data().join(STORE)).await;
        for (value, id) in &told.applied {
            assert!(places.contains_key(id), "{at}: {value} was acknowledged and is gone");
        }
        assert_eq!(gateway.events("succession").len(), usize::from(hits > 0), "{at}");
        rounds += 1;
        if hits == 0 {
            break;
        }
    }
    assert!(rounds > 8, "{rounds}");
}

#[tokio::test]
async fn a_database_that_is_gone_or_cut_stops_changes_until_it_is_put_back() {
    for mishap in [Mishap::Removed, Mishap::Halved, Mishap::Emptied] {
        let (mut told, mut value) = (Told::default(), 1000);
        let (upstream, mut gateway) = with_changes(&mut told, &mut value).await;
        let (store, backup) = (gateway.data().join(STORE), gateway.data().join("backup.db"));
        fs::copy(&store, &backup).unwrap();
        mishap.happen(&store);
        meet(&upstream, &mut gateway, &mut told, &mut value).await;
        let since = Instant::now();
        while since.elapsed() < Duration::from_millis(1500) {
            meet(&upstream, &mut gateway, &mut told, &mut value).await;
            assert_eq!(gateway.admin_get("/readyz", None).await.json()["status"], "degraded");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        fs::rename(&backup, &store).unwrap();
        wait_until_changes_pass(&gateway, &identity(0), &mut told, &mut value).await;
        gateway.wait_for_event("recovered").await;
        assert!(gateway.cli(&["verify"]).status.success());
        // SQLite itself throws the WAL of an empty database away, when a connection happens to be opened.
        if !matches!(mishap, Mishap::Emptied) {
            told.agree(&upstream, &gateway);
            assert!(gateway.events("succession").is_empty(), "{mishap:?}: its WAL was left alone");
        }
    }
}

#[tokio::test]
async fn an_outcome_that_meets_moved_files_is_written_all_the_same() {
    for (file, mishap) in
        [(WAL, Mishap::Renamed), (WAL, Mishap::Removed), (WAL, Mishap::Replaced), (STORE, Mishap::Replaced)]
    {
        let (mut told, mut value) = (Told::default(), 1000);
        let (upstream, gateway) = with_changes(&mut told, &mut value).await;
        let path = gateway.data().join(file);
        upstream.script("PATCH", Act::hook(move |_| mishap.happen(&path)));
        value += 1;
        let answer = gateway.patch(&jwt_auth_path(&identity(0)), &numbered(value)).await;
        assert_eq!((answer.status, answer.get("patchwarden-record")), (200, None), "{}", answer.text());
        told.take(value, &answer);
        wait_until_changes_pass(&gateway, &identity(0), &mut told, &mut value).await;
        told.agree(&upstream, &gateway);
        assert_eq!((gateway.events("degraded").len(), gateway.events("succession").len()), (1, 0));
    }
}

/// A file that takes what a disk has, but for some bytes.
struct Filling(PathBuf);

impl Filling {
    fn leave(folder: &Path, bytes: u64) -> Self {
        let path = folder.join("filling");
        let mut file = fs::File::create(&path).unwrap();
        let mut written = 0;
        while file.write_all(&[0x5a; 4096]).is_ok() {
            written += 4096;
        }
        file.set_len(u64::saturating_sub(written, bytes)).unwrap();
        Self(path)
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        fs::remove_file(&self.0).unwrap();
    }
}

/// Set for the run of this test that has a small disk of its own.
const SMALL_DISK: &str = "TEST_SMALL_DISK";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_disk_that_fills_stops_changes_and_takes_no_outcome() {
    const NAME: &str = "crash::a_small_disk_that_fills_stops_changes_and_takes_no_outcome";
    if let Ok(folder) = std::env::var(SMALL_DISK) {
        assert!(mount(&folder).status().unwrap().success());
        return on_a_small_disk(Path::new(&folder)).await;
    }
    let (folder, inside) = (TempDir::new().unwrap(), ["unshare", "--user", "--map-root-user", "--mount"]);
    let path = folder.path().display().to_string();
    let mut allowed = Command::new(inside[0]);
    allowed.args(&inside[1..]).arg("mount").args(mount(&path).get_args());
    if !allowed.output().is_ok_and(|output| output.status.success()) {
        return without_a_small_disk().await;
    }
    let mut this = Command::new(inside[0]);
    this.args(&inside[1..]).arg(std::env::current_exe().unwrap()).args(["--exact", NAME]);
    let output = this.env(SMALL_DISK, &path).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

fn mount(folder: &str) -> Command {
    let mut command = Command::new("mount");
    command.args(["-t", "tmpfs", "-o", "size=64m", "tmpfs", folder]);
    command
}

async fn on_a_small_disk(folder: &Path) {
    let (mut told, mut value) = (Told::default(), 1000);
    let upstream = Upstream::start();
    attach_all(&upstream, 1);
    let config = format!("{IMPATIENT}reserve = \"20MiB\"\nwal_hard = \"10MiB\"\n");
    let mut gateway = Gateway::before(&upstream.url()).folder(folder).config(&config).start().await;
    wait_until_changes_pass(&gateway, &identity(0), &mut told, &mut value).await;

    let filling = Filling::leave(folder, 25 << 20);
    meet(&upstream, &mut gateway, &mut told, &mut value).await;
    let degraded = gateway.wait_for_event("degraded").await;
    let detail = degraded["detail"].as_str().unwrap();
    assert!(detail.contains("audit.reserve") && detail.contains("(30MiB)"), "{detail}");
    drop(filling);
    wait_until_changes_pass(&gateway, &identity(0), &mut told, &mut value).await;

    // An outcome may use what is kept for it.
    let (reserved, held) = (folder.to_owned(), Arc::new(Mutex::new(None)));
    let hold = held.clone();
    upstream.script(
        "PATCH",
        Act::hook(move |_| *hold.lock().unwrap() = Some(Filling::leave(&reserved, 25 << 20))),
    );
    value += 1;
    let answer = gateway.patch(&jwt_auth_path(&identity(0)), &numbered(value)).await;
    assert_eq!((answer.status, answer.get("patchwarden-record")), (200, None), "{}", answer.text());
    told.take(value, &answer);
    meet(&upstream, &mut gateway, &mut told, &mut value).await;
    drop(held.lock().unwrap().take());
    wait_until_changes_pass(&gateway, &identity(0), &mut told, &mut value).await;

    let (reserved, hold) = (folder.to_owned(), held.clone());
    upstream.script("PATCH", Act::hook(move |_| *hold.lock().unwrap() = Some(Filling::leave(&reserved, 0))));
    filled_under_way(&upstream, &mut gateway, &mut told, &mut value, || drop(held.lock().unwrap().take()))
        .await;
}

/// Where nobody may mount: the same for the gateway's own calls.
async fn without_a_small_disk() {
    let (mut told, mut value) = (Told::default(), 1000);
    let (upstream, recorder) = (Upstream::start(), Arc::new(Recorder::new()));
    attach_all(&upstream, 1);
    let setup = Gateway::before(&upstream.url()).config(IMPATIENT);
    let mut gateway = recorder.under(setup).start().await;
    wait_until_changes_pass(&gateway, &identity(0), &mut told, &mut value).await;
    let full = recorder.clone();
    upstream.script("PATCH", Act::hook(move |_| full.arm(Fault::Space, 1, true)));
    filled_under_way(&upstream, &mut gateway, &mut told, &mut value, || assert!(recorder.disarm() > 0)).await;
}

/// The disk is full by the time the next change has reached the upstream, until it is `freed`.
async fn filled_under_way(
    upstream: &Upstream,
    gateway: &mut Gateway,
    told: &mut Told,
    value: &mut u64,
    free: impl FnOnce(),
) {
    *value += 1;
    let answer = gateway.patch(&jwt_auth_path(&identity(0)), &numbered(*value)).await;
    assert_eq!(
        (answer.status, answer.get("patchwarden-record")),
        (200, Some("pending")),
        "{}",
        answer.text()
    );
    told.take(*value, &answer);
    meet(upstream, gateway, told, value).await;
    free();
    wait_until_changes_pass(gateway, &identity(0), told, value).await;
    told.agree(upstream, gateway);
    assert!(gateway.terminate().await.success());
    told.agree(upstream, gateway);
}

#[tokio::test]
async fn a_disk_that_has_less_than_twice_its_reserve_is_told_of_while_changes_go_on() {
    let upstream = Upstream::start();
    attach_all(&upstream, 1);
    let folder = tempfile::TempDir::new().unwrap();
    let disk = rustix::fs::statvfs(folder.path()).unwrap();
    let reserve = disk.f_bavail * disk.f_frsize / 4 * 3;
    let config = format!("[audit]\nreserve = \"{reserve}B\"\nwal_hard = \"1MiB\"\nwal_soft = \"512KiB\"\n");
    let mut gateway = Gateway::before(&upstream.url()).config(&config).folder(folder.path()).start().await;
    assert!(
        gateway.wait_for_event("disk_low").await["message"]
            .as_str()
            .unwrap()
            .contains("no change is let through")
    );
    for ttl in [1001, 1002] {
        let answer = gateway.patch(&jwt_auth_path(&identity(0)), &numbered(ttl)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert_eq!(gateway.events("disk_low").len(), 1, "once");
}

#[tokio::test]
async fn a_reserve_that_the_disk_does_not_have_refuses_changes_and_nothing_else() {
    let upstream = Upstream::start();
    attach_all(&upstream, 1);
    let config = "[upstream]\nlate_write_limit = \"1s\"\n";
    let mut gateway = Gateway::before(&upstream.url()).config(config).start().await;
    let token = gateway.admin_token("reader");
    // A change whose end it does not see.
    upstream.script("PATCH", Act::StallForever);
    let raw = {
        let authorization = format!("Bearer {}", gateway.token);
        let headers = [("authorization", authorization.as_str())];
        raw_request(gateway.addr(), "PATCH", &jwt_auth_path(&identity(0)), &headers, Some(&numbered(1000)))
    };
    let mut client = Connection::open(gateway.addr()).await;
    client.send(raw).await.unwrap();
    upstream.wait_for_writes(1).await;
    gateway.kill();
    let text = fs::read_to_string(gateway.config_file()).unwrap();
    fs::write(gateway.config_file(), text + "[audit]\nreserve = \"1000000GiB\"\n").unwrap();
    gateway.restart().await;

    let path = jwt_auth_path(&identity(0));
    let watched = format!("/api/v1/auth/universal-auth/identities/{}", identity(0));
    for answer in [
        gateway.patch(&path, &numbered(1001)).await,
        gateway.delete(&path).await,
        gateway.post(&watched, &json!({})).await,
    ] {
        assert_eq!((answer.status, &answer.json()["code"]), (503, &json!("audit.unavailable")));
        assert!(answer.get("retry-after").is_some());
    }
    assert_eq!(upstream.writes().len(), 1);
    for path in ["/api/status", path.as_str()] {
        assert_eq!(gateway.get(path).await.status, 200);
    }
    let left = gateway.history(&["--outcome", "unknown"]);
    assert_eq!(left["changes"].as_array().map(Vec::len), Some(1), "an earlier run's intent has its outcome");
    let ready = gateway.admin_get("/readyz", Some(&token)).await;
    let problem = &ready.json()["problems"][0];
    assert_eq!((ready.status, &ready.json()["status"]), (200, &json!("degraded")));
    assert_eq!(problem["part"], "audit");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("patchwarden.db") && detail.contains("audit.reserve"), "{detail}");
    assert_eq!(gateway.admin_get("/readyz?require=audit", None).await.status, 503);
    let metrics = gateway.admin_get("/metrics", Some(&token)).await.text();
    assert!(metrics.contains("patchwarden_audit_up 0"), "{metrics}");
    let free = metrics.lines().find_map(|line| line.strip_prefix("patchwarden_store_free_bytes "));
    assert!(free.is_some_and(|free| free.parse::<u64>().unwrap() > 0));
    assert_eq!(gateway.events("degraded").len(), 1, "it is said once");
    let made = gateway.events("token_created")[0]["name"].as_str().unwrap().to_owned();
    gateway.cli_ok(&["token", "revoke", &made]);
    assert_eq!(gateway.admin_get("/metrics", Some(&token)).await.status, 401);
    assert!(gateway.cli(&["verify"]).status.success());
}

#[tokio::test]
async fn a_wall_clock_that_steps_moves_no_entry_before_another_and_makes_nothing_late() {
    const HOUR: i64 = 3600;
    let (upstream, recorder) = (Upstream::start(), Recorder::new());
    attach_all(&upstream, 1);
    let config = "[upstream]\nlate_write_limit = \"3s\"\n[limits]\nforward = \"1s\"\nbefore = \"1s\"\n";
    let mut gateway = recorder.under(Gateway::before(&upstream.url()).config(config)).start().await;
    let (path, mut value) = (jwt_auth_path(&identity(0)), 1000);
    let mut unsettled = Vec::new();
    for clock in [HOUR, -HOUR, 0] {
        value += 1;
        assert_eq!(gateway.patch(&path, &numbered(value)).await.status, 200);
        upstream.script("PATCH", Act::StallForever);
        let lost = gateway.patch(&path, &numbered(value + 1)).await;
        assert_eq!(lost.status, 504, "{}", lost.text());
        let since = Instant::now();
        recorder.set_clock(clock);
        let soon = gateway.patch(&path, &numbered(value + 2)).await;
        assert_eq!(soon.json()["code"], "target.unsettled", "{clock}: an hour has not passed");
        value += 3;
        while gateway.patch(&path, &numbered(value)).await.status != 200 {
            assert!(since.elapsed() < PATIENCE, "{clock}: it is held for ever");
            value += 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(since.elapsed() > Duration::from_secs(2), "{clock}: it was settled early");
        unsettled.push(change_of(&lost));
    }
    for change in unsettled {
        assert_eq!(gateway.show(&change)["settlement"]["result"], "not_applied");
    }
    recorder.set_clock(-2 * HOUR);
    gateway.kill();
    gateway.restart().await;
    assert_eq!(gateway.patch(&path, &numbered(value + 1)).await.status, 200);
    assert!(gateway.cli(&["verify"]).status.success());
    assert!(gateway.terminate().await.success());
    let (log, _) = read_log(&gateway.data().join(STORE)).await;
    let log: Vec<Value> = log.iter().map(|entry| serde_json::from_slice(entry).unwrap()).collect();
    let times: Vec<i64> = log.iter().map(|entry| entry["at"].as_i64().unwrap()).collect();
    assert!(times.is_sorted_by(|earlier, later| earlier < later), "{times:?}");
    let steps = log.iter().filter(|entry| entry["operation"] == "lifecycle.clock").count();
    assert_eq!(steps, 3, "each step under a running gateway is in the log");
    let seqs: Vec<u64> = log
        .iter()
        .filter(|entry| entry["kind"] == "attempt")
        .filter_map(|entry| entry["seq"].as_u64())
        .collect();
    assert!(seqs.is_sorted_by(|earlier, later| earlier < later), "{seqs:?}");
}
