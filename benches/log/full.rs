//! A store with a long history: made, measured, read, verified.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use patchwarden::audit::query::{Filter, Page, Reader};
use patchwarden::audit::verify::{self, Asked};
use patchwarden::store::Location;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Row as _};
use tokio_util::task::TaskTracker;

use super::Times;
use super::scene::{self, Scene, caller, database, identity};

/// Of a million changes: one identity has 100 000 (denials: somebody's loop), 100 have 1 000 each, the rest have 8 each. One
/// in 100 000 comes from a caller of its own with a word of its own in it.
const SHARES: Shares = Shares { denied: 10, long: 10 };
const LONG: u64 = 1000;
const SHORT: u64 = 8;
const RARE: u64 = 100_000;
const RARE_CALLER: u64 = 5000;
/// Numbers of the identities.
const DENIED: u64 = 0;
const FIRST_LONG: u64 = 1;
const FIRST_SHORT: u64 = 1_000;

/// One of so many.
struct Shares {
    denied: u64,
    long: u64,
}

/// What each of the tasks that fill a store does.
enum Work {
    Denials(u64),
    Long(u64),
    Short { first: u64, identities: u64 },
}

pub(crate) async fn fill(folder: &Path, changes: u64) {
    std::fs::create_dir_all(folder).unwrap();
    let (scene, audit) = (Arc::new(Scene::new()), scene::open(folder).await);
    let (denied, long) = (changes / SHARES.denied, changes / SHARES.long / LONG);
    let short = (changes - denied - long * LONG) / SHORT;
    let mut work: Vec<Work> = (0..20).map(|_| Work::Denials(denied / 20)).collect();
    work.extend((0..long).map(|number| Work::Long(FIRST_LONG + number)));
    let tasks = 200;
    work.extend(
        (0..tasks).map(|task| Work::Short {
            first: FIRST_SHORT + task * (short / tasks),
            identities: short / tasks,
        }),
    );
    let (began, done) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let tracker = TaskTracker::new();
    let running: Vec<_> = work
        .into_iter()
        .map(|work| {
            let (scene, audit, done) = (scene.clone(), audit.clone(), done.clone());
            tracker.spawn(async move {
                let who = || {
                    let number = done.fetch_add(1, Ordering::Relaxed);
                    if number.is_multiple_of(100_000) {
                        println!("{number} changes after {:.0} s", began.elapsed().as_secs_f64());
                    }
                    if number % RARE == RARE / 2 {
                        (RARE_CALLER, "needle/1")
                    } else {
                        (number % 1000, "terraform/1.9")
                    }
                };
                let change = async |number: u64, round: u64| {
                    let (by, agent) = who();
                    let ready = scene.change(&identity(number), round, 2 * round, by, agent);
                    scene::finish(&audit, ready.declare(&audit).await).await;
                };
                match work {
                    Work::Denials(count) => {
                        for _ in 0..count {
                            let (by, agent) = who();
                            let denied = scene.denied(&identity(DENIED), by, agent);
                            audit.refuse(denied.draft, &denied.refusal).await.unwrap();
                        }
                    }
                    Work::Long(number) => {
                        for round in 0..LONG {
                            change(number, round).await;
                        }
                    }
                    Work::Short { first, identities } => {
                        for round in 0..SHORT {
                            for number in first..first + identities {
                                change(number, round).await;
                            }
                        }
                    }
                }
            })
        })
        .collect();
    for task in running {
        task.await.unwrap();
    }
    let (count, took) = (done.load(Ordering::Relaxed), began.elapsed().as_secs_f64());
    println!("{count} changes in {took:.0} s, {:.0} a second", count as f64 / took);
    audit.stop().await;
}

fn reading(folder: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new().filename(database(folder)).read_only(true).disable_statement_logging()
}

pub(crate) async fn size(folder: &Path) {
    let mut connection = reading(folder).connect().await.unwrap();
    let changes: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM changes").fetch_one(&mut connection).await.unwrap();
    let file = std::fs::metadata(database(folder)).unwrap().len();
    println!("{changes} changes, {file} bytes, {:.0} a change", file as f64 / changes as f64);
    let rows = sqlx::query(
        "SELECT name, SUM(pgsize), SUM(payload) FROM dbstat GROUP BY name HAVING SUM(pgsize) > 1000000 ORDER BY 2 DESC",
    );
    for row in rows.fetch_all(&mut connection).await.unwrap() {
        let (name, bytes, payload): (String, i64, i64) = (row.get(0), row.get(1), row.get(2));
        let each = |bytes: i64| bytes as f64 / changes as f64;
        println!("  {name:<32} {:6.0} bytes a change, {:6.0} of them content", each(bytes), each(payload));
    }
}

struct Pages<'a> {
    reader: &'a Reader,
    folder: &'a Path,
}

impl Pages<'_> {
    /// The first page, many times.
    async fn first(&self, what: &str, filter: &Filter) {
        let (mut times, mut found) = (Times::default(), 0);
        for _ in 0..200 {
            let began = Instant::now();
            let page = self.reader.page(filter, None, 50).await.unwrap();
            times.push(began);
            found = page.changes.len();
        }
        times.say(&format!("{what}: first page ({found} changes)"));
    }

    /// From page to page, to the end or for a while.
    async fn all(&self, what: &str, filter: &Filter, limit: usize, at_most: Duration) {
        let (mut times, mut found, mut cursor) = (Times::default(), 0, None::<String>);
        let started = Instant::now();
        let end = loop {
            let began = Instant::now();
            let Page { changes, next_cursor } =
                self.reader.page(filter, cursor.as_deref(), limit).await.unwrap();
            times.push(began);
            found += changes.len();
            cursor = next_cursor;
            match cursor {
                None => break "to the end",
                Some(_) if started.elapsed() > at_most => break "not to the end",
                Some(_) => {}
            }
        };
        times.say(&format!("{what}: {limit} a page, {end} ({found})"));
    }

    async fn ask(&self, what: &str, text: &'static str) {
        let mut connection = reading(self.folder).connect().await.unwrap();
        let (mut times, mut found) = (Times::default(), 0);
        for _ in 0..20 {
            let began = Instant::now();
            found = sqlx::query(text).fetch_all(&mut connection).await.unwrap().len();
            times.push(began);
        }
        times.say(&format!("{what} ({found})"));
    }

    async fn plan(&self, text: &str) {
        let mut connection = reading(self.folder).connect().await.unwrap();
        let text = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN SELECT row FROM changes WHERE {text}"));
        for row in sqlx::query(text).fetch_all(&mut connection).await.unwrap() {
            println!("    plan: {}", row.get::<String, _>(3));
        }
    }
}

pub(crate) async fn history(folder: &Path) {
    let reader = Reader::open(&Location::Sqlite(database(folder))).await.unwrap();
    let pages = Pages { reader: &reader, folder };
    let all = Filter::default();
    let target = |number| Filter { target: Some(identity(number).id()), ..Filter::default() };
    let by = |number| Filter { caller: Some(caller(number)), ..Filter::default() };
    let changed = |pointer: &str| Filter { changed: Some(pointer.to_owned()), ..Filter::default() };
    let contains = |text: &str| Filter { contains: Some(text.to_owned()), ..Filter::default() };
    let asked = [
        ("all", all.clone()),
        ("target with 8", target(FIRST_SHORT)),
        ("target with 1 000", target(FIRST_LONG)),
        ("target with 100 000", target(DENIED)),
        ("caller of 1 in 1 000", by(7)),
        ("caller of 1 in 100 000", by(RARE_CALLER)),
        ("caller of none", by(999_999)),
        ("changed, most", changed("/accessTokenTTL")),
        ("changed, none", changed("/boundSubject")),
        ("contains, all", contains("terraform")),
        ("contains, 1 in 100 000", contains("needle")),
        ("contains, none", contains("no such text")),
    ];
    for (what, filter) in &asked {
        pages.first(what, filter).await;
    }
    pages.plan("kind <> 'drift' ORDER BY at DESC, id DESC LIMIT 500").await;
    pages
        .plan("kind <> 'drift' AND target = 'x' AND (at, id) < (1, 'x') ORDER BY at DESC, id DESC LIMIT 500")
        .await;
    // What the settler asks for again and again: the held ones, of all targets.
    let held = "SELECT key, open_origin, open_idx FROM targets WHERE open_unknown = 1 AND open_idx IS NOT NULL \
                ORDER BY open_since LIMIT 100";
    pages.ask("targets that are held", held).await;
    let minute = Duration::from_secs(60);
    pages.all("target with 1 000", &target(FIRST_LONG), 50, minute).await;
    pages.all("target with 100 000", &target(DENIED), 50, minute).await;
    pages.all("contains, 1 in 100 000", &contains("needle"), 50, minute).await;
    pages.all("caller of 1 in 1 000", &by(7), 50, minute).await;
    pages.all("all", &all, 50, Duration::from_secs(240)).await;
}

/// The gateway itself, from its start to the line that says that it listens.
pub(crate) fn start(folder: &Path) {
    let empty = tempfile::tempdir_in(folder).unwrap();
    for (what, folder) in [("this store", folder), ("a new store", empty.path())] {
        let mut times = Times::default();
        for round in 0..6 {
            // The first follows whatever came before; every third is after one that was killed.
            let began = Instant::now();
            let mut gateway = Command::new(env!("CARGO_BIN_EXE_patchwarden"))
                .args(["serve", "--upstream", "http://127.0.0.1:9", "--listen", "127.0.0.1:0"])
                .args(["--admin-listen", "127.0.0.1:0", "--data"])
                .arg(folder)
                .current_dir(empty.path())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(gateway.stderr.take().unwrap()).lines().map(Result::unwrap);
            let mut said = String::new();
            let listens = lines.by_ref().any(|line| {
                said += &line;
                line.contains("listening")
            });
            assert!(listens, "{said}");
            times.push(began);
            println!("  {what}: {:.0} ms", began.elapsed().as_secs_f64() * 1e3);
            if round % 3 == 1 {
                gateway.kill().unwrap();
            } else {
                let stopped = Command::new("kill").arg(gateway.id().to_string()).status().unwrap();
                assert!(stopped.success());
            }
            lines.for_each(drop);
            gateway.wait().unwrap();
        }
        times.say(&format!("start to listening, {what}"));
    }
}

pub(crate) async fn verify(folder: &Path) {
    let store = Location::Sqlite(database(folder));
    for projection in [false, true, false] {
        let (began, mut read) = (Instant::now(), 0);
        let asked = Asked { projection, ..Asked::default() };
        let found = verify::run(&store, &asked, |count| read += count).await.unwrap();
        let took = began.elapsed().as_secs_f64();
        for log in &found {
            let fault = log.fault.as_ref().map(|fault| (fault.index, &fault.what));
            println!(
                "{} entries in {took:.1} s: {:.0} a second{}; fault: {fault:?}",
                log.size,
                log.size as f64 / took,
                if projection { ", and the projection" } else { "" }
            );
        }
    }
    // The same bytes, only read.
    let mut connection = reading(folder).connect().await.unwrap();
    let text = "SELECT e.row, e.origin, e.idx, e.kind, e.of_origin, e.of_idx, e.envelope, p.body, p.salt \
                FROM entries e LEFT JOIN payloads p ON p.row = e.row WHERE e.row >= ? ORDER BY e.row LIMIT 1000";
    let (began, mut next, mut count, mut bytes) = (Instant::now(), 0i64, 0, 0);
    let mut texts = (Vec::<Vec<u8>>::new(), Vec::<Vec<u8>>::new());
    loop {
        let rows = sqlx::query(text).bind(next).fetch_all(&mut connection).await.unwrap();
        let Some(last) = rows.last() else { break };
        next = last.get::<i64, _>(0) + 1;
        count += rows.len();
        for row in &rows {
            let (envelope, body): (Vec<u8>, Vec<u8>) = (row.get(6), row.get(7));
            bytes += envelope.len() + body.len();
            if texts.0.len() < 200_000 {
                texts.0.push(envelope);
                texts.1.push(body);
            }
        }
    }
    let took = began.elapsed().as_secs_f64();
    println!(
        "reading through sqlx alone: {:.0} entries a second, {:.0} MB/s",
        count as f64 / took,
        bytes as f64 / took / 1e6
    );
    let began = Instant::now();
    let sum: usize =
        texts.1.iter().chain(&texts.0).map(|text| usize::from(patchwarden::id::sha256(&[text])[0])).sum();
    println!(
        "SHA-256 alone: {:.0} entries a second ({})",
        texts.0.len() as f64 / began.elapsed().as_secs_f64(),
        sum % 2
    );
    let began = Instant::now();
    let good =
        texts.0.iter().filter(|text| patchwarden::json::own::<serde_json::Value>(text).is_ok()).count();
    println!("JSON of envelopes alone: {:.0} entries a second", good as f64 / began.elapsed().as_secs_f64());
}
