//! A backup of an SQLite store, and whether one can be put back.
//!
//! A backup is one file, made beside whoever writes, at one moment of the store: mode 0600, never over another file, read
//! back as `verify` does before it counts. It holds no key. What is put back is looked at first: whether it is whole,
//! whether its log is that of this data folder, and what of the log was written since. A store is never written over.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::anchor::Anchors;
use super::checkpoint::Checkpoint;
use super::proofs::Tree;
use super::verify::{self, Asked, Fault};
use super::writer::outside_head;
use crate::clock::Time;
use crate::keys::{self, Keys};
use crate::store::{self, Database, Error, Location, Reader};

/// What a backup holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backup {
    /// Name of the file.
    pub file: String,
    /// Its size.
    pub bytes: u64,
    /// Its logs with their ends.
    pub logs: Vec<Kept>,
}

/// A log in a backup.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// Its name.
    pub origin: String,
    /// Number of its entries.
    pub size: u64,
    /// Root hash over them, hex.
    pub root: String,
}

impl Backup {
    /// What the log says of it.
    pub fn entry(&self, now: Time, by: &str) -> Value {
        json!({"v": 1, "at": now, "by": by, "file": self.file, "bytes": self.bytes, "logs": self.logs})
    }
}

/// Makes a backup of a store, beside whoever writes it.
pub async fn make(store: &Location, to: &Path) -> Result<Backup, Error> {
    let Location::Sqlite(from) = store else {
        return Err(Error::Wait(format!(
            "{store} is backed up by PostgreSQL's own means: pg_dump for a copy, pg_basebackup with its WAL for any moment (docs/fleets.md)"
        )));
    };
    if to.exists() {
        return Err(taken(to));
    }
    let part = beside(to, "partial");
    create(&part)?;
    let made = async {
        store::snapshot(from, &part).await?;
        sync(&part)?;
        let whole = verified(&Readable::of(&part, &beside(to, "looked")).await?, to).await?;
        // Linked and not renamed: that fails where a file has come to be there meanwhile.
        put(&part, to)?;
        Ok(whole)
    };
    let made = made.await;
    if made.is_err() {
        let _ = fs::remove_file(&part);
    }
    let logs = made?;
    let bytes = fs::metadata(to).map_err(|error| failed(to, &error))?.len();
    let file = to.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Backup { file, bytes, logs })
}

/// What putting a backup back would mean.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its logs.
    pub logs: Vec<Kept>,
    /// The one this data folder goes on with.
    pub ours: Kept,
    /// What was committed to it later, by the heads kept outside the store.
    pub since: Since,
}

/// What the heads kept outside the store say of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Since {
    /// Nothing was committed that the backup does not hold.
    Nothing,
    /// So many entries are not in it.
    Entries(u64),
    /// The log has been succeeded by this one, of which the backup holds nothing.
    Succeeded(String),
    /// There is none.
    Unknown,
}

/// The file that a backup could take the place of.
pub fn restorable(store: &Location) -> Result<&Path, Error> {
    store.path().ok_or_else(|| {
        Error::Wait(format!(
            "{store} is restored by PostgreSQL's own means: pg_restore, or a base backup with its WAL (docs/fleets.md)"
        ))
    })
}

/// Looks at a backup as what this data folder would go on with. An error says why it cannot.
pub async fn look(
    file: &Path,
    store: &Location,
    data: &Path,
    keys: &Keys,
    anchors: &Anchors,
) -> Result<Found, Error> {
    let place = restorable(store)?;
    let wal = beside_raw(file, "-wal");
    if fs::metadata(&wal).is_ok_and(|wal| wal.len() > 0) {
        return Err(Error::Fatal(format!(
            "{} stands beside it, so {} is a copied store and no backup; open it where it is, or make one with `patchwarden backup`",
            wal.display(),
            file.display()
        )));
    }
    let readable = Readable::of(file, &beside(place, "looked")).await?;
    let logs = verified(&readable, file).await?;
    let reader = Reader::open(&readable.location()).await?;
    let mut outside = anchors.heads(keys).await;
    outside.extend(outside_head(store, data, keys)?);
    let found = ours(&reader, &logs, file, data, keys, &outside).await;
    reader.close().await;
    let (ours, since) = found?;
    Ok(Found { logs, ours, since })
}

async fn ours(
    reader: &Reader,
    logs: &[Kept],
    file: &Path,
    data: &Path,
    keys: &Keys,
    outside: &[Checkpoint],
) -> Result<(Kept, Since), Error> {
    let (public, closed) = (reader.log_keys().await?, reader.meta("closed").await?);
    let own: Vec<_> = keys.log_publics().into_iter().map(hex::encode).collect();
    let is_open = |origin: &str| closed.iter().all(|(closed, _)| closed != origin);
    let ours = public.iter().find(|key| own.contains(&key.public) && is_open(&key.origin));
    let ours = ours.and_then(|key| logs.iter().find(|log| log.origin == key.origin)).ok_or_else(|| {
        let origins: Vec<_> = logs.iter().map(|log| log.origin.as_str()).collect();
        Error::Fatal(format!(
            "{} holds no log of the data folder {} but {}; restore it with the data folder it was made with",
            file.display(),
            data.display(),
            origins.join(", ")
        ))
    })?;
    for head in outside.iter().filter(|head| head.origin == ours.origin && head.size <= ours.size) {
        if !begins_with(reader, head).await? {
            return Err(Error::Fatal(format!(
                "{} tells another story than the log of this data folder: its first {} entries are not those that were committed",
                file.display(),
                head.size
            )));
        }
    }
    let later = outside.iter().find(|head| logs.iter().all(|log| log.origin != head.origin));
    let most = outside.iter().filter(|head| head.origin == ours.origin).map(|head| head.size).max();
    let since = match (later, most) {
        (Some(later), _) => Since::Succeeded(later.origin.clone()),
        (None, Some(most)) if most > ours.size => Since::Entries(most - ours.size),
        (None, Some(_)) => Since::Nothing,
        (None, None) => Since::Unknown,
    };
    Ok((ours.clone(), since))
}

async fn begins_with(reader: &Reader, head: &Checkpoint) -> Result<bool, Error> {
    let tree = Tree { reader, origin: &head.origin, size: head.size };
    Ok(tree.root().await? == head.root)
}

/// Puts a backup in the place of a store that is not there, while no gateway runs.
pub fn place(file: &Path, store: &Location, data: &Path) -> Result<(), Error> {
    let Location::Sqlite(to) = store else { return Err(Error::Wait(format!("{store} is no file"))) };
    keys::make_folder(to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")))
        .map_err(|error| Error::Wait(error.to_string()))?;
    let mut locks = Vec::new();
    for lock in [keys::lock_path(data), store::lock_path(to)] {
        match keys::lock(&lock) {
            Ok(Some(file)) => locks.push(file),
            Ok(None) => {
                return Err(Error::Wait(format!(
                    "{} is held: a gateway uses this data folder or this store; stop it first",
                    lock.display()
                )));
            }
            Err(error) => return Err(failed(&lock, &error)),
        }
    }
    // An empty WAL, as a stopped gateway may leave it, holds nothing.
    let wal = beside_raw(to, "-wal");
    let left = fs::metadata(&wal).is_ok_and(|wal| wal.len() > 0);
    if to.exists() || left {
        let there = if to.exists() { to } else { &wal };
        return Err(Error::Wait(format!(
            "{} is there, and a store is never written over; move it, with its -wal and -shm, to where it can be kept",
            there.display()
        )));
    }
    let part = beside(to, "partial");
    create(&part)?;
    let copied = fs::copy(file, &part).and_then(|_| private(&part)).map_err(|error| failed(&part, &error));
    let placed = copied.and_then(|()| sync(&part)).and_then(|()| put(&part, to));
    if placed.is_err() {
        let _ = fs::remove_file(&part);
    }
    placed
}

/// A store that this version can read: a file itself, or, where an older version made it, a copy that is migrated.
struct Readable {
    path: PathBuf,
    is_copy: bool,
}

impl Readable {
    async fn of(file: &Path, copy: &Path) -> Result<Self, Error> {
        if store::is_current(file).await? {
            return Ok(Self { path: file.to_owned(), is_copy: false });
        }
        create(copy)?;
        let readable = Self { path: copy.to_owned(), is_copy: true };
        fs::copy(file, copy).and_then(|_| private(copy)).map_err(|error| failed(copy, &error))?;
        let mut database = Database::open(&readable.location(), false).await?;
        let settled = database.settle().await;
        database.close().await;
        settled.map(|()| readable)
    }

    fn location(&self) -> Location {
        Location::Sqlite(self.path.clone())
    }
}

impl Drop for Readable {
    fn drop(&mut self) {
        for end in ["", "-wal", "-shm"].iter().filter(|_| self.is_copy) {
            let _ = fs::remove_file(beside_raw(&self.path, end));
        }
    }
}

/// The logs of a file that tells one story; `file` is its name.
async fn verified(readable: &Readable, file: &Path) -> Result<Vec<Kept>, Error> {
    let found = verify::run(&readable.location(), &Asked::default(), |_| ()).await?;
    if let Some((origin, Fault { index, what })) =
        found.iter().find_map(|log| Some((&log.origin, log.fault.as_ref()?)))
    {
        let entry = index.map(|index| format!("entry {index} of ")).unwrap_or_default();
        return Err(Error::Refused(format!("{}: {entry}{origin}: {what}", file.display())));
    }
    Ok(found.into_iter().map(|log| Kept { origin: log.origin, size: log.size, root: log.root }).collect())
}

/// An empty file that only its owner reads.
fn create(path: &Path) -> Result<(), Error> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    made.map(drop).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => Error::Wait(format!(
            "{} is there: another backup is being made, or was cut short; then remove it",
            path.display()
        )),
        _ => failed(path, &error),
    })
}

fn private(path: &Path) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
}

fn sync(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|error| failed(path, &error))
}

/// Gives a finished file its name, and the name to the disk.
fn put(part: &Path, to: &Path) -> Result<(), Error> {
    match fs::hard_link(part, to) {
        Ok(()) => fs::remove_file(part).map_err(|error| failed(part, &error))?,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Err(taken(to)),
        // A file system without links.
        Err(_) if !to.exists() => fs::rename(part, to).map_err(|error| failed(to, &error))?,
        Err(error) => return Err(failed(to, &error)),
    }
    let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    sync(folder)
}

fn beside(path: &Path, what: &str) -> PathBuf {
    beside_raw(path, &format!(".{what}"))
}

fn beside_raw(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    PathBuf::from(name)
}

fn taken(path: &Path) -> Error {
    Error::Wait(format!("{} is there already and is not written over; name another file", path.display()))
}

fn failed(path: &Path, error: &io::Error) -> Error {
    Error::Wait(format!("{}: {error}", path.display()))
}
