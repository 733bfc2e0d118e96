//! What stands between the gateway and the system in a test of crashes, and what a crash would have left.
//!
//! `recorder.c` is compiled once and loaded into the gateway. It records every write in one order, makes calls fail at a
//! place a test names, and moves the wall clock. [`Disk`] plays a record again: of each file what was synchronised is
//! there after a crash, and of the rest none, some, all or torn sectors.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

use super::gateway::Setup;

/// What a disk writes at once, or not at all.
const SECTOR: usize = 512;
/// What the recorder lays before each record.
const HEAD: usize = 32;

/// What goes wrong with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// EIO, by reads too.
    Io = 1,
    /// ENOSPC.
    Space = 2,
    /// A write of half the bytes, and ENOSPC for the rest.
    Short = 3,
    /// Somebody empties the WAL just before a write to it; only those writes count.
    Cut = 4,
}

/// The recorder of one gateway.
pub(crate) struct Recorder {
    folder: TempDir,
    control: File,
}

impl Recorder {
    pub(crate) fn new() -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let path = folder.path().join("control");
        fs::write(&path, [0; 64]).expect("writes");
        let control = File::options().read(true).write(true).open(path).expect("opens");
        Self { folder, control }
    }

    /// The gateway's folder, for [`Setup::folder`].
    pub(crate) fn gateway_folder(&self) -> PathBuf {
        let folder = self.folder.path().canonicalize().expect("it is there").join("gateway");
        fs::create_dir_all(&folder).expect("a folder");
        folder
    }

    /// Lays the library under a gateway in [`Self::gateway_folder`].
    pub(crate) fn under(&self, setup: Setup) -> Setup {
        let folder = self.gateway_folder();
        setup
            .folder(&folder)
            .env("LD_PRELOAD", &library().display().to_string())
            .env("RECORDER_DATA", &folder.join("data").display().to_string())
            .env("RECORDER_CONTROL", &self.folder.path().join("control").display().to_string())
    }

    /// The same, recording.
    pub(crate) fn recording(&self, setup: Setup) -> Setup {
        self.under(setup).env("RECORDER_TO", &self.record().display().to_string())
    }

    fn record(&self) -> PathBuf {
        self.folder.path().join("record")
    }

    /// The `at`th call under the data folder from now on goes wrong; with `lasting` all after it too.
    pub(crate) fn arm(&self, fault: Fault, at: i64, lasting: bool) {
        self.put(0, 0);
        self.put(1, at);
        self.put(2, 0);
        self.put(3, i64::from(lasting));
        self.put(4, 0);
        self.put(0, fault as i64);
    }

    /// Ends it; how many calls went wrong.
    pub(crate) fn disarm(&self) -> i64 {
        self.put(0, 0);
        self.get(4)
    }

    /// How many calls have gone wrong so far.
    pub(crate) fn hits(&self) -> i64 {
        self.get(4)
    }

    /// How far the gateway's wall clock is ahead of the machine's.
    pub(crate) fn set_clock(&self, seconds: i64) {
        self.put(5, seconds * 1_000_000);
    }

    fn put(&self, place: u64, value: i64) {
        self.control.write_all_at(&value.to_ne_bytes(), place * 8).expect("writes");
    }

    fn get(&self, place: u64) -> i64 {
        let mut bytes = [0; 8];
        self.control.read_exact_at(&mut bytes, place * 8).expect("reads");
        i64::from_ne_bytes(bytes)
    }

    /// Everything recorded so far, in order.
    pub(crate) fn events(&self) -> Vec<Event> {
        let record = fs::read(self.record()).expect("a record");
        let mut rest = &record[..];
        let mut events = Vec::new();
        while !rest.is_empty() {
            let number = |at: usize| u32::from_ne_bytes(rest[at..at + 4].try_into().expect("four")) as usize;
            let long = |at: usize| u64::from_ne_bytes(rest[at..at + 8].try_into().expect("eight"));
            let (kind, path, bytes, file, at) = (number(0), number(4), number(8), long(16), long(24));
            let name = |bytes: &[u8]| {
                let path = PathBuf::from(String::from_utf8(bytes.to_vec()).expect("a path"));
                path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
            };
            let path_bytes = &rest[HEAD..HEAD + path];
            let content = &rest[HEAD + path..HEAD + path + bytes];
            events.push(match kind {
                1 => Event::Write { file, name: name(path_bytes), at, bytes: content.to_vec() },
                2 => Event::Truncate { file, length: at },
                3 => Event::SyncBegins { file, name: name(path_bytes), sync: at },
                4 => Event::SyncEnds { file, name: name(path_bytes), sync: at },
                5 => Event::Create { file, name: name(path_bytes) },
                6 => Event::Unlink { name: name(path_bytes) },
                7 => Event::Rename { from: name(path_bytes), to: name(content) },
                8 => Event::Socket { socket: file, bytes: content.to_vec() },
                other => panic!("a record of kind {other}"),
            });
            rest = &rest[HEAD + path + bytes..];
        }
        events
    }
}

/// The recorder as a library, compiled once.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = LIBRARY.get_or_init(|| {
        let folder = TempDir::new().expect("a temporary folder");
        let path = folder.path().join("recorder.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/support/recorder.c");
        let made = Command::new("cc")
            .args(["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o"])
            .arg(&path)
            .arg(&source)
            .args(["-ldl", "-lpthread"])
            .output()
            .expect("cc, which builds SQLite too");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        (folder, path)
    });
    path
}

/// One record. Files go by inode, names are those within the data folder.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Write { file: u64, name: String, at: u64, bytes: Vec<u8> },
    Truncate { file: u64, length: u64 },
    SyncBegins { file: u64, name: String, sync: u64 },
    SyncEnds { file: u64, name: String, sync: u64 },
    Create { file: u64, name: String },
    Unlink { name: String },
    Rename { from: String, to: String },
    Socket { socket: u64, bytes: Vec<u8> },
}

/// What a crash leaves of what was not synchronised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    Nothing,
    /// Whole writes, some of them.
    Some,
    All,
    /// Sectors, some of them.
    Torn,
}

/// A generator of numbers that are the same for the same seed (SplitMix64).
pub(crate) struct Seeded(pub(crate) u64);

impl Seeded {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("it fits")
    }

    fn half(&mut self) -> bool {
        self.next() & 1 == 1
    }
}

/// A disk with a cache above it that a crash takes away.
#[derive(Default)]
pub(crate) struct Disk {
    /// By a number of our own: inodes come back.
    contents: HashMap<u64, Content>,
    numbers: HashMap<u64, u64>,
    names: BTreeMap<String, u64>,
    /// What was done to names since the folder was synchronised.
    renamed: Vec<(usize, Naming)>,
    begun: HashMap<u64, usize>,
    place: usize,
}

#[derive(Default)]
struct Content {
    safe: Vec<u8>,
    cached: Vec<(usize, Change)>,
}

enum Change {
    Write(usize, Vec<u8>),
    Truncate(usize),
}

enum Naming {
    Create(String, u64),
    Unlink(String),
    Rename(String, String),
}

impl Disk {
    /// What happened next.
    pub(crate) fn take(&mut self, event: &Event) {
        let place = self.place;
        self.place += 1;
        let size = |at: u64| usize::try_from(at).expect("it fits");
        match event {
            Event::Write { file, name, at, bytes } => {
                let number = self.number(*file, name);
                self.cache(number, Change::Write(size(*at), bytes.clone()));
            }
            Event::Truncate { file, length } => {
                if let Some(number) = self.numbers.get(file).copied() {
                    self.cache(number, Change::Truncate(size(*length)));
                }
            }
            Event::SyncBegins { sync, .. } => drop(self.begun.insert(*sync, place)),
            Event::SyncEnds { file, sync, .. } => {
                let begun = self.begun.remove(sync).expect("it began");
                match self.numbers.get(file).copied() {
                    Some(number) => self.contents.get_mut(&number).expect("a file").synchronise(begun),
                    // No file of ours: the folder.
                    None => {
                        let (safe, rest) =
                            std::mem::take(&mut self.renamed).into_iter().partition(|(at, _)| *at < begun);
                        self.renamed = rest;
                        let safe: Vec<_> = safe;
                        safe.iter().for_each(|(_, naming)| naming.apply(&mut self.names));
                    }
                }
            }
            Event::Create { file, name } => {
                let number = place as u64;
                self.numbers.insert(*file, number);
                self.contents.insert(number, Content::default());
                self.renamed.push((place, Naming::Create(name.clone(), number)));
            }
            Event::Unlink { name } => self.renamed.push((place, Naming::Unlink(name.clone()))),
            Event::Rename { from, to } => {
                self.renamed.push((place, Naming::Rename(from.clone(), to.clone())));
            }
            Event::Socket { .. } => {}
        }
    }

    fn number(&mut self, file: u64, name: &str) -> u64 {
        let place = self.place as u64;
        *self.numbers.entry(file).or_insert_with(|| {
            self.contents.insert(place, Content::default());
            self.names.insert(name.to_owned(), place);
            place
        })
    }

    /// The place of what is taken is counted already.
    fn cache(&mut self, number: u64, change: Change) {
        self.contents.get_mut(&number).expect("a file").cached.push((self.place - 1, change));
    }

    /// The files a crash leaves now.
    pub(crate) fn image(&self, left: Left, seeded: &mut Seeded) -> Vec<(String, Vec<u8>)> {
        let mut names = self.names.clone();
        for (_, naming) in &self.renamed {
            if left.takes(seeded) {
                naming.apply(&mut names);
            }
        }
        let mut files = Vec::new();
        for (name, number) in names.into_iter().filter(|(name, _)| !name.ends_with("-shm")) {
            let content = &self.contents[&number];
            let mut bytes = content.safe.clone();
            for (_, change) in &content.cached {
                match change {
                    Change::Write(at, written) if left == Left::Torn => {
                        torn(*at, written.len(), |from, to| {
                            if seeded.half() {
                                put(&mut bytes, at + from, &written[from..to]);
                            }
                        });
                    }
                    change if left.takes(seeded) => change.apply(&mut bytes),
                    _ => {}
                }
            }
            files.push((name, bytes));
        }
        files
    }
}

impl Left {
    fn takes(self, seeded: &mut Seeded) -> bool {
        match self {
            Self::Nothing => false,
            Self::All => true,
            Self::Some | Self::Torn => seeded.half(),
        }
    }
}

impl Content {
    fn synchronise(&mut self, begun: usize) {
        let (safe, rest): (Vec<_>, _) =
            std::mem::take(&mut self.cached).into_iter().partition(|(at, _)| *at < begun);
        self.cached = rest;
        safe.iter().for_each(|(_, change)| change.apply(&mut self.safe));
    }
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(at, written) => put(bytes, *at, written),
            Self::Truncate(length) => bytes.resize(*length, 0),
        }
    }
}

impl Naming {
    fn apply(&self, names: &mut BTreeMap<String, u64>) {
        match self {
            Self::Create(name, number) => drop(names.insert(name.clone(), *number)),
            Self::Unlink(name) => drop(names.remove(name)),
            Self::Rename(from, to) => {
                if let Some(number) = names.remove(from) {
                    names.insert(to.clone(), number);
                }
            }
        }
    }
}

fn put(bytes: &mut Vec<u8>, at: usize, written: &[u8]) {
    let end = at + written.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[at..end].copy_from_slice(written);
}

/// The parts of a write that lie in one sector each.
fn torn(at: usize, length: usize, mut part: impl FnMut(usize, usize)) {
    let mut from = 0;
    while from < length {
        let to = (SECTOR - (at + from) % SECTOR + from).min(length);
        part(from, to);
        from = to;
    }
}
