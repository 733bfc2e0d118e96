//! How fast the log is written.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use patchwarden::audit::Audit;
use patchwarden::clock::Clock;
use sqlx::ConnectOptions as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use tokio_util::task::TaskTracker;

use super::Times;
use super::scene::{self, Change, Scene, database, identity};

/// Numbers of identities that belong to one measurement: each starts with ones that have no history, in a store that was
/// measured before too.
static NEXT: LazyLock<AtomicU64> =
    LazyLock::new(|| AtomicU64::new(u64::try_from(Clock::System.now().0).unwrap()));

/// The disk itself: 4 KiB over what a file holds already, then `fdatasync`.
fn overwrite(folder: &Path, times: usize) -> Times {
    let path = folder.join("overwrite");
    let file = File::options().create(true).truncate(false).read(true).write(true).open(&path).unwrap();
    file.write_all_at(&vec![1; 4 << 20], 0).unwrap();
    file.sync_all().unwrap();
    let (page, mut took) = ([2; 4096], Times::default());
    for number in 0..times as u64 {
        let began = Instant::now();
        file.write_all_at(&page, (number % 1024) * 4096).unwrap();
        file.sync_data().unwrap();
        took.push(began);
    }
    drop(file);
    fs::remove_file(path).unwrap();
    took
}

/// The largest the WAL gets while something runs.
struct Wal(Arc<AtomicU64>, Arc<AtomicBool>, std::thread::JoinHandle<()>);

impl Wal {
    fn watch(folder: &Path) -> Self {
        let (most, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (seen, stop) = (most.clone(), done.clone());
        let path = PathBuf::from(format!("{}-wal", database(folder).display()));
        let watching = std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let length = fs::metadata(&path).map_or(0, |file| file.len());
                seen.fetch_max(length, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Self(most, done, watching)
    }

    fn most(self) -> f64 {
        self.1.store(true, Ordering::Relaxed);
        self.2.join().unwrap();
        self.0.load(Ordering::Relaxed) as f64 / f64::from(1 << 20)
    }
}

/// What `writers` do, each to an identity of its own: so many changes each, all at once or one every `pace`. The times are
/// those of single commits; the second is all of it.
async fn write(
    audit: &Audit,
    scene: &Scene,
    writers: u64,
    each: u64,
    pace: Option<Duration>,
) -> (Times, Duration) {
    let first = NEXT.fetch_add(writers, Ordering::Relaxed);
    let ready: Vec<Vec<Change>> = (first..first + writers)
        .map(|number| {
            let target = identity(number);
            (0..each).map(|round| scene.change(&target, round, 2 * round, number % 1000, "bench/1")).collect()
        })
        .collect();
    let (tasks, began) = (TaskTracker::new(), Instant::now());
    let running: Vec<_> = (0u32..)
        .zip(ready)
        .map(|(number, changes)| {
            let audit = audit.clone();
            tasks.spawn(async move {
                let mut took = Vec::new();
                for (round, change) in (0u32..).zip(changes) {
                    if let Some(pace) = pace {
                        let offset = pace * number / u32::try_from(writers).unwrap();
                        tokio::time::sleep_until((began + offset + pace * round).into()).await;
                    }
                    let at = Instant::now();
                    let intent = change.declare(&audit).await;
                    took.push(at.elapsed());
                    let at = Instant::now();
                    scene::finish(&audit, intent).await;
                    took.push(at.elapsed());
                }
                took
            })
        })
        .collect();
    let mut all = Times::default();
    for task in running {
        all.0.extend(task.await.unwrap());
    }
    (all, began.elapsed())
}

fn per_second(times: &Times, took: Duration) -> f64 {
    times.0.len() as f64 / took.as_secs_f64()
}

/// One, 64 and 256 writers beside the disk.
pub(crate) async fn writer(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    assert!(!database(folder).exists(), "it begins with a new store");
    let (scene, audit) = (Scene::new(), scene::open(folder).await);
    let wal = Wal::watch(folder);
    write(&audit, &scene, 64, 20, None).await;
    println!("one writer, in turns with the disk");
    let (mut ratios, mut singles) = (Vec::new(), Times::default());
    for round in 1..=9 {
        let mut disk = overwrite(folder, 500);
        let rate = 500.0 / disk.0.iter().sum::<Duration>().as_secs_f64();
        let (times, took) = write(&audit, &scene, 1, 400, None).await;
        let commits = per_second(&times, took);
        ratios.push(commits / rate);
        println!(
            "  {round}: fdatasync {rate:7.0}/s (p50 {:.3} ms), commits {commits:7.0}/s, ratio {:.2}",
            disk.at(0.5),
            commits / rate
        );
        singles.0.extend(times.0);
    }
    ratios.sort_by(f64::total_cmp);
    println!("  ratio: median {:.2}, {:.2} to {:.2}", ratios[4], ratios[0], ratios[8]);
    singles.say("commit, 1 writer");
    for _ in 0..3 {
        let (mut times, took) = write(&audit, &scene, 256, 80, None).await;
        println!("256 writers: {:.0} entries/s", per_second(&times, took));
        times.say("commit, 256 writers, saturated");
    }
    for _ in 0..3 {
        let (mut single, _) = write(&audit, &scene, 1, 400, None).await;
        // Two entries a change: 64 writers, each one change every 64 ms, are 2 000 entries a second.
        let (mut paced, took) = write(&audit, &scene, 64, 100, Some(Duration::from_millis(64))).await;
        let (p50, p99) = (single.at(0.5), paced.at(0.99));
        println!(
            "64 writers, paced: {:.0} entries/s, p99 {:.1} times a single commit's p50 and {:.1} times its p99",
            per_second(&paced, took),
            p99 / p50,
            p99 / single.at(0.99)
        );
        single.say("commit, 1 writer");
        paced.say("commit, 64 writers, 2 000 entries/s");
        let (mut times, took) = write(&audit, &scene, 64, 100, None).await;
        println!("64 writers, saturated: {:.0} entries/s", per_second(&times, took));
        times.say("commit, 64 writers, saturated");
    }
    println!("largest WAL: {:.1} MiB", wal.most());
    audit.stop().await;
}

/// The full store beside an empty one.
pub(crate) async fn commit(folder: &Path) {
    let empty = tempfile::tempdir_in(folder).unwrap();
    let (scene, full) = (Scene::new(), scene::open(folder).await);
    let none = scene::open(empty.path()).await;
    let (mut on_empty, mut on_full, mut ratios) = (Times::default(), Times::default(), Vec::new());
    for _ in 0..9 {
        let (mut small, _) = write(&none, &scene, 1, 200, None).await;
        let (mut large, _) = write(&full, &scene, 1, 200, None).await;
        ratios.push(large.at(0.5) / small.at(0.5));
        on_empty.0.append(&mut small.0);
        on_full.0.append(&mut large.0);
    }
    ratios.sort_by(f64::total_cmp);
    on_empty.say("commit, 1 writer, empty store");
    on_full.say("commit, 1 writer, this store");
    println!("p50 ratio: median {:.2}, {:.2} to {:.2}", ratios[4], ratios[0], ratios[8]);
    for _ in 0..3 {
        let (times, took) = write(&none, &scene, 256, 40, None).await;
        println!("256 writers, empty store: {:.0} entries/s", per_second(&times, took));
        let (times, took) = write(&full, &scene, 256, 40, None).await;
        println!("256 writers, this store: {:.0} entries/s", per_second(&times, took));
    }
    none.stop().await;
    full.stop().await;
}

const INDEXES: &[(&str, &str)] = &[
    ("changes_id", "CREATE UNIQUE INDEX changes_id ON changes (id)"),
    ("changes_at", "CREATE INDEX changes_at ON changes (at, id)"),
    ("changes_target", "CREATE INDEX changes_target ON changes (target, at, id) WHERE target IS NOT NULL"),
    ("changes_pending", "CREATE INDEX changes_pending ON changes (row) WHERE outcome = 'pending'"),
];

async fn connect(folder: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(database(folder)).disable_statement_logging();
    options.busy_timeout(Duration::from_secs(60)).connect().await.unwrap()
}

async fn tell(folder: &Path, texts: &[String]) {
    let mut connection = connect(folder).await;
    for text in texts {
        sqlx::raw_sql(sqlx::AssertSqlSafe(text.clone())).execute(&mut connection).await.unwrap();
    }
    sqlx::Connection::close(connection).await.unwrap();
}

/// The same writes without each index, without all of them, and with no row in the projection at all.
pub(crate) async fn projection(folder: &Path) {
    let scene = Scene::new();
    let mut variants: Vec<(String, Vec<String>, Vec<String>)> = vec![("as it is".into(), vec![], vec![])];
    for (name, make) in INDEXES {
        let drop = format!("DROP INDEX {name}");
        variants.push((format!("without {name}"), vec![drop], vec![(*make).to_owned()]));
    }
    let drops: Vec<_> = INDEXES.iter().map(|(name, _)| format!("DROP INDEX {name}")).collect();
    let makes: Vec<_> = INDEXES.iter().map(|(_, make)| (*make).to_owned()).collect();
    variants.push(("without any of them".into(), drops, makes));
    // The statements still run, and find nothing to do.
    let ignore = "CREATE TRIGGER bench BEFORE INSERT ON changes BEGIN SELECT RAISE(IGNORE); END";
    variants.push(("without rows".into(), vec![ignore.into()], vec!["DROP TRIGGER bench".into()]));
    for round in 1..=2 {
        for (name, before, after) in &variants {
            tell(folder, before).await;
            let audit = scene::open(folder).await;
            write(&audit, &scene, 64, 10, None).await;
            let (mut single, took) = write(&audit, &scene, 1, 400, None).await;
            let rate = per_second(&single, took);
            let (many, took) = write(&audit, &scene, 256, 40, None).await;
            println!(
                "{round}: {name:<24} 1 writer {rate:6.0} commits/s (p50 {:.3} ms), 256 writers {:7.0} entries/s",
                single.at(0.5),
                per_second(&many, took)
            );
            audit.stop().await;
            tell(folder, after).await;
        }
    }
}
