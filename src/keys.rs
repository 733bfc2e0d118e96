//! The data folder and the keys in it: what makes an instance itself.
//!
//! `fingerprint.key` keys every digest of what people sent, so that a stored fingerprint cannot be guessed back; gateways
//! that share a store share it too, as a file of its own, for they compare what they recorded. `log.key` (Ed25519) binds the log to this instance; `instance` is its name; `lock` keeps a second process out.
//! Folder 0700, files 0600. A folder that lost some of them is an error that names the way out: a fresh key beside an
//! old log would silently make its fingerprints incomparable.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};

use crate::id::{Digest, fill_random};

const FINGERPRINT: &str = "fingerprint.key";
const LOG: &str = "log.key";
/// The key that `log.key` followed, until it is retired.
const PREVIOUS: &str = "log.key.previous";
/// The key that is to follow `log.key`, while that is under way.
const NEXT: &str = "log.key.next";
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
    /// The file that was named for it holds no key.
    #[error(
        "audit.fingerprint_key_file: {path}: {what}; it holds 32 random bytes as 64 hexadecimal digits, as `openssl rand -hex 32` makes them"
    )]
    Fingerprint {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

/// The keys of one instance, in memory.
pub struct Keys {
    fingerprint: hmac::Key,
    log: RwLock<LogKeys>,
    instance: String,
}

/// What the log is signed with: its key, and the one before as long as that is there.
#[derive(Default)]
struct LogKeys {
    now: Option<Ed25519KeyPair>,
    previous: Option<Ed25519KeyPair>,
}

impl LogKeys {
    fn both(&self) -> impl Iterator<Item = &Ed25519KeyPair> {
        self.now.iter().chain(&self.previous)
    }
}

/// A signature, and the key it was made with.
pub struct Signed {
    /// The public half, 32 bytes.
    pub public: [u8; 32],
    /// Ed25519.
    pub signature: Vec<u8>,
}

impl Keys {
    /// Opens the folder, creating it and its keys when it is new. `log_exists` says that the store beside it already
    /// holds a log: then nothing may be created. The key of fingerprints is in the folder unless a file of its own is
    /// named.
    pub fn open(folder: &Path, fingerprint: Option<&Path>, log_exists: bool) -> Result<Self, Error> {
        let fingerprint = fingerprint.map(read_fingerprint).transpose()?;
        make_folder(folder)?;
        let fresh = ![FINGERPRINT, LOG, INSTANCE].iter().any(|name| folder.join(name).exists());
        if fresh && !log_exists {
            create(folder, fingerprint.is_none())?;
        }
        let secret = match fingerprint {
            Some(secret) => secret,
            None => read_hex(&folder.join(FINGERPRINT), &read_file(folder, FINGERPRINT)?)?,
        };
        finish_renaming(folder)?;
        let now = Some(read_pair(folder, LOG)?);
        let previous = folder.join(PREVIOUS).exists().then(|| read_pair(folder, PREVIOUS)).transpose()?;
        let instance = read_file(folder, INSTANCE)?.trim().to_owned();
        if instance.is_empty() {
            return Err(Error::Unreadable { path: folder.join(INSTANCE) });
        }
        Ok(Self {
            fingerprint: hmac::Key::new(hmac::HMAC_SHA256, &secret),
            log: RwLock::new(LogKeys { now, previous }),
            instance,
        })
    }

    /// Keys that live only in memory: for judging without a store, and for tests.
    pub fn ephemeral() -> Self {
        let mut secret = [0u8; 32];
        fill_random(&mut secret);
        Self {
            fingerprint: hmac::Key::new(hmac::HMAC_SHA256, &secret),
            log: RwLock::default(),
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

    /// Which key fingerprints are made with, without saying anything about it.
    pub fn fingerprint_id(&self) -> Digest {
        self.fingerprint("key", &[])
    }

    /// The instance's name.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// The public half of `log.key`; of keys that live only in memory all zero.
    pub fn log_public(&self) -> [u8; 32] {
        self.log().now.as_ref().map_or([0; 32], public)
    }

    /// The public half of the key before, as long as it signs too.
    pub fn previous_public(&self) -> Option<[u8; 32]> {
        self.log().previous.as_ref().map(public)
    }

    /// The public halves of all that signs.
    pub fn log_publics(&self) -> Vec<[u8; 32]> {
        self.log().both().map(public).collect()
    }

    /// Signs what the log says of itself: by its key, and by the one before.
    pub fn sign(&self, text: &[u8]) -> Vec<Signed> {
        let sign = |key: &Ed25519KeyPair| Signed {
            public: public(key),
            signature: key.sign(text).as_ref().to_vec(),
        };
        self.log().both().map(sign).collect()
    }

    /// Makes the key that is to follow `log.key`, and returns its public half. It is not in use. One that is there already,
    /// because nobody knows yet whether the log took it, is not replaced.
    pub fn prepare_next(folder: &Path) -> Result<[u8; 32], Error> {
        if let Some(there) = Self::next_public(folder)? {
            return Ok(there);
        }
        let path = folder.join(NEXT);
        let mut secret = [0u8; 32];
        fill_random(&mut secret);
        let written = write_private(&path, &format!("{}\n", hex::encode(secret)));
        written.and_then(|()| File::open(folder)?.sync_all()).map_err(|source| Error::Io { path, source })?;
        Ok(public(&read_pair(folder, NEXT)?))
    }

    /// The public half of a key that was made to follow, and may not have come into use.
    pub fn next_public(folder: &Path) -> Result<Option<[u8; 32]>, Error> {
        let is_there = folder.join(NEXT).exists();
        is_there.then(|| read_pair(folder, NEXT).map(|pair| public(&pair))).transpose()
    }

    /// Brings the key that was made to follow into use, unless it is; the one it follows signs beside it until it is
    /// retired.
    pub fn use_next(&self, folder: &Path, follows: [u8; 32]) -> Result<(), Error> {
        if self.log_public() == follows {
            return Ok(());
        }
        let next = read_pair(folder, NEXT)?;
        if public(&next) != follows {
            return Err(Error::Unreadable { path: folder.join(NEXT) });
        }
        let rename = |from: &str, to: &str| {
            let moved = fs::rename(folder.join(from), folder.join(to));
            moved.map_err(|source| Error::Io { path: folder.join(from), source })
        };
        // It may have been done, and what follows not.
        if folder.join(LOG).exists() {
            rename(LOG, PREVIOUS)?;
        }
        rename(NEXT, LOG)?;
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(|source| Error::Io { path: folder.to_owned(), source })?;
        let mut log = self.log.write().unwrap_or_else(PoisonError::into_inner);
        log.previous = log.now.replace(next);
        Ok(())
    }

    /// Throws a key away that was made to follow and never came into use.
    pub fn drop_next(folder: &Path) -> Result<(), Error> {
        remove(folder, NEXT)
    }

    /// Stops signing by the key before.
    pub fn retire(&self, folder: &Path) -> Result<(), Error> {
        remove(folder, PREVIOUS)?;
        self.log.write().unwrap_or_else(PoisonError::into_inner).previous = None;
        Ok(())
    }

    fn log(&self) -> RwLockReadGuard<'_, LogKeys> {
        self.log.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn public(pair: &Ed25519KeyPair) -> [u8; 32] {
    pair.public_key().as_ref().try_into().unwrap_or_default()
}

fn read_pair(folder: &Path, name: &str) -> Result<Ed25519KeyPair, Error> {
    let path = folder.join(name);
    let seed = read_hex(&path, &read_file(folder, name)?)?;
    Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| Error::Unreadable { path })
}

/// A process that ended between the two renamings of [`Keys::use_next`].
fn finish_renaming(folder: &Path) -> Result<(), Error> {
    let is_there = |name: &str| folder.join(name).exists();
    if is_there(LOG) || !is_there(PREVIOUS) || !is_there(NEXT) {
        return Ok(());
    }
    let path = folder.join(NEXT);
    fs::rename(&path, folder.join(LOG)).map_err(|source| Error::Io { path, source })
}

fn remove(folder: &Path, name: &str) -> Result<(), Error> {
    let path = folder.join(name);
    match fs::remove_file(&path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::Io { path, source }),
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

fn create(folder: &Path, with_fingerprint: bool) -> Result<(), Error> {
    for name in [FINGERPRINT, LOG].into_iter().skip(usize::from(!with_fingerprint)) {
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
    // Behind the whole name: files that differ in what follows their last dot may lie in one folder.
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
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

fn read_fingerprint(path: &Path) -> Result<Vec<u8>, Error> {
    let wrong = |what: String| Error::Fingerprint { path: path.to_owned(), what };
    let text = fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    read_hex(path, &text).map_err(|_| wrong("holds no such key".to_owned()))
}

/// A key as it is kept: 32 bytes, in hexadecimal.
fn read_hex(path: &Path, text: &str) -> Result<Vec<u8>, Error> {
    let key = hex::decode(text.trim()).ok().filter(|key| key.len() == 32);
    key.ok_or_else(|| Error::Unreadable { path: path.to_owned() })
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
        let first = Keys::open(folder.path(), None, false).unwrap();
        let again = Keys::open(folder.path(), None, true).unwrap();
        assert_eq!(first.fingerprint("t", b"x"), again.fingerprint("t", b"x"));
        assert_ne!(first.fingerprint("t", b"x"), first.fingerprint("u", b"x"));
    }

    #[test]
    fn a_lost_key_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        Keys::open(folder.path(), None, false).unwrap();
        fs::remove_file(folder.path().join(LOG)).unwrap();
        assert!(matches!(Keys::open(folder.path(), None, true), Err(Error::Missing { .. })));
        assert!(matches!(Keys::open(folder.path(), None, false), Err(Error::Missing { .. })));
        let empty = tempfile::tempdir().unwrap();
        assert!(matches!(Keys::open(empty.path(), None, true), Err(Error::Missing { .. })));
    }
}
