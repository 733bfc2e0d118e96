//! The files as the writer last saw them, and the WAL kept short.
//!
//! SQLite goes on writing to files that were renamed, replaced or cut, and to a WAL that nobody will find again. So the
//! files are looked at by name before a transaction and after each commit, and what is not as it was left leaves that
//! commit in doubt. What a checkpoint or retention makes shorter is expected to be.

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};

use super::super::Error;
use super::{BUSY, Database, PAGE, inside, unsigned};

/// Frames in the WAL from which on it is copied back.
const CHECKPOINT: u64 = 1000;
const FRAME: u64 = PAGE + 24;
const WAL_HEAD: u64 = 32;

/// The database and its WAL, as last seen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Files {
    database: File,
    wal: File,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct File {
    /// Device and inode.
    id: (u64, u64),
    length: u64,
}

impl Database {
    /// A WAL that was cut would be written on behind a hole, and what is behind a hole is gone after a crash. Other
    /// connections may empty it, and then SQLite's own count of its frames says so too.
    pub async fn look_at_wal(&mut self) -> Result<(), Error> {
        let Some(before) = self.files else { return Ok(()) };
        let wal = match self.wal() {
            Ok(wal) if wal.id == before.wal.id => wal,
            // Into a database that was cut its WAL is not to be copied.
            other => {
                self.database()?;
                return Err(other.err().unwrap_or_else(|| self.displaced("the WAL was replaced", true)));
            }
        };
        if wal.length < before.wal.length.max(wal_length(self.committed)) {
            self.committed = self.counted_frames().await?;
            if wal.length < wal_length(self.committed) {
                return Err(self.displaced("the WAL was cut", false));
            }
        }
        self.files = Some(Files { wal, ..before });
        Ok(())
    }

    /// After a commit: the files under their names are still the ones written to, did not shrink, and the WAL has no hole.
    /// Nobody else may shorten it while this connection writes.
    pub(super) fn look_at_files(&mut self, frames: u64) -> Result<(), Error> {
        let (database, before) = (self.database()?, self.files);
        let wal = self.wal()?;
        if before.is_some_and(|before| wal.id != before.wal.id) {
            return Err(self.displaced("the WAL was replaced", true));
        }
        self.frames = frames;
        let is_cut = before.is_some_and(|before| wal.length < before.wal.length);
        // Where the commit before ended, and this one.
        let ends = [self.committed.min(self.frames), self.frames];
        if is_cut || !has_frames(&wal_path(&self.path), ends) {
            return Err(self.displaced("the WAL was cut", false));
        }
        self.committed = self.frames;
        self.files = Some(Files { database, wal });
        Ok(())
    }

    fn database(&self) -> Result<File, Error> {
        let now = identity(&self.path).map_err(|error| self.displaced(&error.to_string(), false))?;
        let Some(before) = self.files.map(|before| before.database) else { return Ok(now) };
        // Once free pages were given back, whoever copies the WAL makes the file shorter.
        if before.id != now.id || (now.length + self.shorter < before.length) {
            return Err(self.displaced("it was replaced or cut", false));
        }
        Ok(now)
    }

    fn wal(&self) -> Result<File, Error> {
        identity(&wal_path(&self.path)).map_err(|error| self.displaced(&format!("the WAL: {error}"), true))
    }

    fn displaced(&self, what: &str, only_wal: bool) -> Error {
        Error::Displaced { what: format!("{}: {what}", self.path.display()), only_wal }
    }

    /// Bytes of the WAL in use.
    pub fn wal_bytes(&self) -> u64 {
        self.frames * FRAME
    }

    /// Bytes that its disk has left for this process; none when no file can be made. `None`: it does not say.
    pub fn room(&self) -> Option<u64> {
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let disk = rustix::fs::statvfs(folder.unwrap_or_else(|| Path::new("."))).ok()?;
        // Some file systems do not count their inodes, and say so with none at all.
        let is_out_of_files = disk.f_files > 0 && disk.f_favail == 0;
        Some(if is_out_of_files { 0 } else { disk.f_bavail.saturating_mul(disk.f_frsize) })
    }

    /// Whether the WAL is long enough to be copied back.
    pub fn wants_checkpoint(&self) -> bool {
        self.frames >= CHECKPOINT
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Copies what is left of the WAL, so that the next commit starts it again in place.
    pub async fn checkpoint(&mut self) -> Result<(), Error> {
        self.checkpoint_here("PRAGMA wal_checkpoint(PASSIVE)").await.map(drop)
    }

    /// Empties the WAL, at shutdown and when a commit is in doubt.
    pub async fn settle_wal(&mut self) -> Result<(), Error> {
        if self.checkpoint_here("PRAGMA wal_checkpoint(TRUNCATE)").await? {
            Ok(())
        } else {
            Err(Error::Wait(format!("{}: the WAL is still being read", self.path.display())))
        }
    }

    /// Whether it went through: SQLite says that it was busy in the row, not as an error.
    async fn checkpoint_here(&mut self, text: &'static str) -> Result<bool, Error> {
        let (busy, frames, copied) = self.ask_checkpoint(text).await?;
        // Somebody else is at it, and SQLite has counted nothing.
        if frames < 0 {
            return Ok(false);
        }
        // When all of it is copied, the next commit starts the WAL again at its beginning.
        self.frames = if frames == copied { 0 } else { unsigned(frames) };
        if self.shorter > 0
            && let (Some(files), Ok(now)) = (&mut self.files, self.path.metadata())
        {
            files.database.length = files.database.length.min(now.len());
            self.shorter = if frames == copied { 0 } else { self.shorter };
        }
        // It is shorter now, and on purpose.
        if let (Some(files), Ok(now)) = (&mut self.files, fs::metadata(wal_path(&self.path))) {
            files.wal.length = files.wal.length.min(now.len());
        }
        Ok(busy == 0)
    }

    /// Frames of the WAL that are in use, as SQLite counts them.
    async fn counted_frames(&mut self) -> Result<u64, Error> {
        self.ask_checkpoint("PRAGMA wal_checkpoint(NOOP)").await.map(|(_, frames, _)| unsigned(frames))
    }

    async fn ask_checkpoint(&mut self, text: &'static str) -> Result<(i64, i64, i64), Error> {
        let row = sqlx::query_as(text).fetch_one(self.calls.connection().await?).await;
        row.map_err(|error| inside(&error))
    }
}

/// Copies a store's WAL back, beside whoever writes it: all of it, and then what came while that took its time, so that
/// little is left for the writer.
pub(in crate::store) async fn copy_wal(path: &Path) {
    let options = SqliteConnectOptions::new().filename(path).busy_timeout(BUSY).disable_statement_logging();
    if let Ok(mut connection) = options.connect().await {
        for _ in 0..2 {
            let _ = sqlx::raw_sql("PRAGMA wal_checkpoint(PASSIVE)").execute(&mut connection).await;
        }
        let _ = connection.close().await;
    }
}

fn identity(path: &Path) -> std::io::Result<File> {
    fs::metadata(path).map(|file| File { id: (file.dev(), file.ino()), length: file.len() })
}

fn wal_length(frames: u64) -> u64 {
    if frames == 0 { 0 } else { WAL_HEAD + frames * FRAME }
}

/// Whether those frames (counted from 1, 0 for none) are there and of the WAL's present round, as their salts say.
fn has_frames(wal: &Path, frames: [u64; 2]) -> bool {
    let read = || {
        let file = fs::File::open(wal)?;
        let (mut head, mut frame) = ([0; 32], [0; 24]);
        for number in frames.into_iter().filter(|number| *number > 0) {
            file.read_exact_at(&mut head, 0)?;
            file.read_exact_at(&mut frame, wal_length(number - 1).max(WAL_HEAD))?;
            if frame[8..16] != head[16..24] || file.metadata()?.len() < wal_length(number) {
                return Ok(false);
            }
        }
        Ok::<_, std::io::Error>(true)
    };
    read().unwrap_or(false)
}

fn wal_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    PathBuf::from(name)
}
