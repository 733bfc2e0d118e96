//! Crashes: of the machine, of the disk, of the process. What was forwarded has its intent, what was acknowledged is there.
//!
//! A machine that loses its power is played from a record of everything the gateway wrote: see `support/crash.rs`.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, Row as _};
use tempfile::TempDir;

use crate::support::crash::{Disk, Event, Left, Recorder, Seeded};
use crate::support::gateway::{Gateway, program};
use crate::support::upstream::Upstream;
use crate::support::{good_attach, good_patch, jwt_auth_path};

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
        let events = recorder.events();
        let (log, places) = read_log(&gateway.data().join("patchwarden.db")).await;
        let (mut demands, mut forwarded, mut acknowledged) = (Vec::new(), 0, 0);
        for (event, sent) in sent(&events) {
            let entries = match &sent {
                Sent::Forwarded(what) => {
                    forwarded += 1;
                    *places.get(what).unwrap_or_else(|| panic!("{what} was forwarded and is not recorded"))
                }
                Sent::Acknowledged(change) => {
                    acknowledged += 1;
                    *places.get(change).unwrap_or_else(|| panic!("{change} was answered and is not recorded"))
                }
            };
            demands.push((event, entries));
        }
        assert_eq!(forwarded, 2 * CLIENTS * (EACH + EACH / 5), "every write that was forwarded was seen");
        assert_eq!(acknowledged, 2 * CLIENTS * (EACH + 2 * (EACH / 5)));
        Self { events, log, demands }
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
            if self.log.get(index) != Some(envelope) {
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
        sqlx::query("SELECT e.envelope, p.body FROM entries e JOIN payloads p USING (row) ORDER BY e.idx")
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

enum Sent {
    /// A write to the upstream: its lifetime, or its path.
    Forwarded(String),
    /// An answer with what was recorded about it: the change.
    Acknowledged(String),
}

/// Writes that went to the upstream and answers that say they are recorded, each at the event of its first byte.
fn sent(events: &[Event]) -> Vec<(usize, Sent)> {
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
                Sent::Acknowledged(header("patchwarden-change:").filter(|_| is_recorded)?)
            }
            "PATCH" => {
                let body: Value = serde_json::from_str(body).unwrap();
                Sent::Forwarded(body["accessTokenTTL"].to_string())
            }
            _ => Sent::Forwarded(head.split(' ').nth(1)?.to_owned()),
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
