//! The data folder and the keys in it: what makes an instance itself.
//!
//! `fingerprint.key` keys every digest of what people sent, so that a stored fingerprint cannot be guessed back;
//! `log.key` (Ed25519) binds the log to this instance; `instance` is its name; `lock` keeps a second process out.
//! Folder 0700, files 0600. A folder that lost some of them is an error that names the way out: a fresh key beside an
//! old log would silently make its fingerprints incomparable.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};

use crate::id::{Digest, fill_random};

const FINGERPRINT: &str = "fingerprint.key";
const LOG: &str = "log.key";
const INSTANCE: &str = "instance";
const LOCK: &str = "lock";

/// Why the data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder or a file in it cannot be read or made.
    #[error("{path}: {source}; the data folder (`data`, --data) must be a folder this user may write")]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Some of the files that belong together are gone.
    #[error(
        "{path} is missing, but the data folder or its log is not new; restore it from a backup, or start with an empty data folder and a new store"
    )]
    Missing {
        /// The file that is gone.
        path: PathBuf,
    },
    /// A file does not hold what it should.
    #[error("{path} is not a key of the expected kind; restore it from a backup")]
    Unreadable {
        /// The file.
        path: PathBuf,
    },
}

/// The keys of one instance, in memory.
pub struct Keys {
    fingerprint: hmac::Key,
    log_public: Vec<u8>,
    instance: String,
}

impl Keys {
    /// Opens the folder, creating it and its keys when it is new. `log_exists` says that the store beside it already
    /// holds a log: then nothing may be created.
    pub fn open(folder: &Path, log_exists: bool) -> Result<Self, Error> {
        make_folder(folder)?;
        let fresh = ![FINGERPRINT, LOG, INSTANCE].iter().any(|name| folder.join(name).exists());
        if fresh && !log_exists {
            create(folder)?;
        }
        Self::read(folder)
    }

    /// Opens the folder as it is.
    pub fn read(folder: &Path) -> Result<Self, Error> {
        let fingerprint = read_file(folder, FINGERPRINT)?;
        let secret = hex::decode(fingerprint.trim()).ok().filter(|key| key.len() == 32);
        let secret = secret.ok_or_else(|| Error::Unreadable { path: folder.join(FINGERPRINT) })?;
        let seed = hex::decode(read_file(folder, LOG)?.trim()).ok().filter(|seed| seed.len() == 32);
        let log = seed
            .and_then(|seed| Ed25519KeyPair::from_seed_unchecked(&seed).ok())
            .ok_or_else(|| Error::Unreadable { path: folder.join(LOG) })?;
        let instance = read_file(folder, INSTANCE)?.trim().to_owned();
        if instance.is_empty() {
            return Err(Error::Unreadable { path: folder.join(INSTANCE) });
        }
        Ok(Self {
            fingerprint: hmac::Key::new(hmac::HMAC_SHA256, &secret),
            log_public: log.public_key().as_ref().to_vec(),
            instance,
        })
    }

    /// Keys that live only in memory: for judging without a store, and for tests.
    pub fn ephemeral() -> Self {
        let mut secret = [0u8; 32];
        fill_random(&mut secret);
        Self {
            fingerprint: hmac::Key::new(hmac::HMAC_SHA256, &secret),
            log_public: Vec::new(),
            instance: "ephemeral".to_owned(),
        }
    }

    /// The keyed digest of something people sent. `purpose` keeps digests of different things apart.
    pub fn fingerprint(&self, purpose: &str, bytes: &[u8]) -> Digest {
        let mut context = hmac::Context::with_key(&self.fingerprint);
        context.update(purpose.as_bytes());
        context.update(&[0]);
        context.update(bytes);
        Digest::keyed(context.sign().as_ref())
    }

    /// The instance's name.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// The public half of `log.key`, 32 bytes.
    pub fn log_public(&self) -> &[u8] {
        &self.log_public
    }
}

/// Makes the folder, 0700, and its parents.
pub fn make_folder(folder: &Path) -> Result<(), Error> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|source| Error::Io { path: folder.to_owned(), source })
}

/// A lock file held until dropped; `None` when another process holds it.
pub fn lock(path: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

/// Path of the folder's lock file.
pub fn lock_path(folder: &Path) -> PathBuf {
    folder.join(LOCK)
}

fn create(folder: &Path) -> Result<(), Error> {
    for name in [FINGERPRINT, LOG] {
        let mut secret = [0u8; 32];
        fill_random(&mut secret);
        write_new(folder, name, &format!("{}\n", hex::encode(secret)))?;
    }
    let mut name = [0u8; 4];
    fill_random(&mut name);
    write_new(folder, INSTANCE, &format!("patchwarden-{}\n", hex::encode(name)))
}

/// Writes a private file whole, in the place of what was there.
pub fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or_else(|| Path::new(".")))?.sync_all()
}

fn write_new(folder: &Path, name: &str, text: &str) -> Result<(), Error> {
    let path = folder.join(name);
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        File::open(folder)?.sync_all()
    };
    write().map_err(|source| Error::Io { path: path.clone(), source })
}

fn read_file(folder: &Path, name: &str) -> Result<String, Error> {
    let path = folder.join(name);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::Missing { path }),
        Err(source) => Err(Error::Io { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_made_once_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let first = Keys::open(folder.path(), false).unwrap();
        let again = Keys::open(folder.path(), true).unwrap();
        assert_eq!(first.fingerprint("t", b"x"), again.fingerprint("t", b"x"));
        assert_ne!(first.fingerprint("t", b"x"), first.fingerprint("u", b"x"));
    }

    #[test]
    fn a_lost_key_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        Keys::open(folder.path(), false).unwrap();
        fs::remove_file(folder.path().join(LOG)).unwrap();
        assert!(matches!(Keys::open(folder.path(), true), Err(Error::Missing { .. })));
        assert!(matches!(Keys::open(folder.path(), false), Err(Error::Missing { .. })));
        let empty = tempfile::tempdir().unwrap();
        assert!(matches!(Keys::open(empty.path(), true), Err(Error::Missing { .. })));
    }
}
