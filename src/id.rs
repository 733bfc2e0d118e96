//! Names of things: changes, targets, places in a log, digests.
//!
//! Newtypes, so that no step can take one for another. A [`TargetId`] exists only for a canonical UUID (lower
//! case, hyphenated): locks and history are keyed on it and on nothing a client spelled.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::clock::Time;

/// The id of a change (or of a fold): UUIDv7, its time from the [`crate::clock::Clock`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ChangeId(Uuid);

impl ChangeId {
    /// A new id dated `at`.
    pub fn at(at: Time) -> Self {
        let mut random = [0u8; 10];
        fill_random(&mut random);
        Self(uuid::Builder::from_unix_timestamp_millis(at.as_millis(), &random).into_uuid())
    }
}

impl fmt::Display for ChangeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for ChangeId {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::parse_str(text).map(Self)
    }
}

/// What is changed: the kind of thing and its canonical UUID; written `identity/<uuid>` in the log.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TargetId {
    kind: String,
    id: Uuid,
}

impl TargetId {
    /// `None` unless `id` is spelled canonically: lower case, hyphens after groups of 8, 4, 4 and 4.
    pub fn canonical(kind: &str, id: &str) -> Option<Self> {
        canonical_uuid(id).map(|id| Self { kind: kind.to_owned(), id })
    }

    /// Reads the log's own `identity/<uuid>`.
    pub fn from_key(key: &str) -> Option<Self> {
        let (kind, id) = key.split_once('/')?;
        Self::canonical(kind, id)
    }

    /// `identity`
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The UUID alone, canonical.
    pub fn id(&self) -> String {
        self.id.hyphenated().to_string()
    }
}

impl fmt::Display for TargetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.id.hyphenated())
    }
}

/// The UUID in a text that is its canonical spelling, else nothing.
pub fn canonical_uuid(text: &str) -> Option<Uuid> {
    let id = Uuid::parse_str(text).ok()?;
    (id.hyphenated().to_string() == text).then_some(id)
}

/// A place in a log: `origin` names the log, `index` counts its entries from 0.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, serde::Deserialize)]
pub struct EntryRef {
    /// Name of the log, `<audit.name>/<log id>`.
    pub origin: String,
    /// Number of the entry in it.
    pub index: u64,
}

/// A SHA-256 or a keyed HMAC-SHA-256, as text: `sha256:<64 hex>` or `hmac-sha256:<64 hex>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Digest(String);

impl Digest {
    /// Plain SHA-256 of bytes that are ours to publish (policies, payloads).
    pub fn sha256(parts: &[&[u8]]) -> Self {
        let mut digits = [0; 64];
        // As long as twice the hash, so it fits.
        let _ = hex::encode_to_slice(sha256(parts), &mut digits);
        Self(["sha256:", &String::from_utf8_lossy(&digits)].concat())
    }

    /// Wraps the 32 bytes of a keyed digest; made by `keys` only.
    pub fn keyed(mac: &[u8]) -> Self {
        Self(format!("hmac-sha256:{}", hex::encode(mac)))
    }

    /// The text form.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// SHA-256 over the concatenation of `parts`.
pub fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}

/// Fills `bytes` from the system's cryptographic random source.
pub fn fill_random(bytes: &mut [u8]) {
    // aws-lc's generator fails only if the operating system has none; then nothing here may go on.
    if aws_lc_rs::rand::fill(bytes).is_err() {
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_canonical_spelling_names_a_target() {
        let id = "0b9c3a52-7d3f-4f7e-9a43-0c8f3f1d2e4a";
        assert_eq!(
            TargetId::canonical("identity", id).map(|t| t.to_string()),
            Some(format!("identity/{id}"))
        );
        for other in [
            "0B9C3A52-7d3f-4f7e-9a43-0c8f3f1d2e4a",
            "0b9c3a527d3f4f7e9a430c8f3f1d2e4a",
            "{0b9c3a52-7d3f-4f7e-9a43-0c8f3f1d2e4a}",
            " 0b9c3a52-7d3f-4f7e-9a43-0c8f3f1d2e4a",
            "urn:uuid:0b9c3a52-7d3f-4f7e-9a43-0c8f3f1d2e4a",
            "",
        ] {
            assert_eq!(TargetId::canonical("identity", other), None, "{other}");
        }
    }
}
