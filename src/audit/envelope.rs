//! The exact bytes of an entry: its envelope and its payload.
//!
//! An [`Unsealed`] entry has no index and no time; it gets both when its batch is built. The envelope is written by hand,
//! member by member, in ASCII, and never parsed and written again: it is the Merkle leaf. It holds the digest of the
//! payload, which is kept as it was written, too.

use std::fmt::Write as _;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::clock::Time;
use crate::id::{ChangeId, Digest, EntryRef, fill_random};
#[cfg(test)]
use crate::json;

use super::projection::Gist;

/// An entry that waits to be written.
#[derive(Clone, Debug)]
pub(super) struct Unsealed {
    pub kind: &'static str,
    pub change: Option<ChangeId>,
    pub of: Option<EntryRef>,
    pub operation: Option<String>,
    pub target: Option<String>,
    /// Filled in from the lock when the entry takes one.
    pub seq: Option<u64>,
    pub result: Option<&'static str>,
    pub code: Option<&'static str>,
    pub status: Option<u16>,
    pub policy: Option<String>,
    pub payload: Payload,
}

/// What an entry says, as it will be stored. It is made by whoever has it to say, so that the writer does not have to; and
/// shared, since a group stays whole until its batch is committed.
#[derive(Clone, Debug)]
pub(super) struct Payload(Arc<Stored>);

#[derive(Debug)]
pub(super) struct Stored {
    pub salt: [u8; 32],
    pub body: Vec<u8>,
    pub digest: Digest,
    /// What the projection takes from it.
    pub gist: Gist,
}

impl From<Value> for Payload {
    fn from(said: Value) -> Self {
        let mut salt = [0u8; 32];
        fill_random(&mut salt);
        let body = said.to_string().into_bytes();
        let digest = payload_digest(&salt, &body);
        Self(Arc::new(Stored { salt, body, digest, gist: Gist::of(&said) }))
    }
}

#[cfg(test)]
impl Payload {
    pub(super) fn said(&self) -> Value {
        json::own(&self.body).expect("it was made of JSON")
    }
}

impl std::ops::Deref for Payload {
    type Target = Stored;

    fn deref(&self) -> &Stored {
        &self.0
    }
}

impl Unsealed {
    /// The envelope, version 1.
    pub(super) fn envelope(&self, index: u64, at: Time, seq: Option<u64>) -> Vec<u8> {
        let mut text = Members(String::with_capacity(512));
        text.0.push_str("{\"v\":1");
        text.number("index", Some(index));
        text.number("at", Some(at.0));
        text.string("kind", Some(self.kind));
        text.string("change", self.change.map(|change| change.to_string()).as_deref());
        match &self.of {
            Some(of) => {
                text.name("of");
                text.0.push_str("{\"origin\":");
                text.quoted(&of.origin);
                text.number("index", Some(of.index));
                text.0.push('}');
            }
            None => text.string("of", None),
        }
        text.string("operation", self.operation.as_deref());
        text.string("target", self.target.as_deref());
        text.number("seq", seq);
        text.string("result", self.result);
        text.string("code", self.code);
        text.number("status", self.status);
        text.string("policy", self.policy.as_deref());
        text.string("payload", Some(self.payload.digest.as_str()));
        text.0.push('}');
        text.0.into_bytes()
    }
}

/// JSON in ASCII, member after member.
struct Members(String);

impl Members {
    fn name(&mut self, name: &str) {
        self.0.extend([",\"", name, "\":"]);
    }

    fn number(&mut self, name: &str, number: Option<impl std::fmt::Display>) {
        self.name(name);
        // Writing into a String does not fail.
        let _ = match number {
            Some(number) => write!(self.0, "{number}"),
            None => self.0.write_str("null"),
        };
    }

    fn string(&mut self, name: &str, text: Option<&str>) {
        self.name(name);
        match text {
            Some(text) => self.quoted(text),
            None => self.0.push_str("null"),
        }
    }

    /// Escapes as JSON does, and what is not ASCII too.
    fn quoted(&mut self, text: &str) {
        for c in json!(text).to_string().chars() {
            if c.is_ascii() {
                self.0.push(c);
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(self.0, "\\u{unit:04x}");
                }
            }
        }
    }
}

/// `SHA-256("patchwarden.payload.v1" || 0x00 || salt || body)`
pub(super) fn payload_digest(salt: &[u8], body: &[u8]) -> Digest {
    Digest::sha256(&[b"patchwarden.payload.v1", &[0], salt, body])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_envelope_is_these_bytes_for_ever() {
        let entry = Unsealed {
            kind: "outcome",
            change: "019390b4-7a10-7000-8000-0123456789ab".parse().ok(),
            of: Some(EntryRef { origin: "gw.example/\u{e9}".into(), index: 16 }),
            operation: Some("jwt-auth.update".into()),
            target: Some("identity/0b9c3a52-7d3f-4f7e-9a43-0c8f3f1d2e4a".into()),
            seq: None,
            result: Some("applied"),
            code: None,
            status: Some(200),
            policy: None,
            payload: json!({}).into(),
        };
        let digest = entry.payload.digest.clone();
        let bytes = entry.envelope(17, Time(1_764_000_000_123_456), Some(42));
        assert_eq!(
            String::from_utf8(bytes).unwrap(),
            format!(
                "{{\"v\":1,\"index\":17,\"at\":1764000000123456,\"kind\":\"outcome\",\"change\":\"019390b4-7a10-7000-8000-0123456789ab\",\"of\":{{\"origin\":\"gw.example/\\u00e9\",\"index\":16}},\"operation\":\"jwt-auth.update\",\"target\":\"identity/0b9c3a52-7d3f-4f7e-9a43-0c8f3f1d2e4a\",\"seq\":42,\"result\":\"applied\",\"code\":null,\"status\":200,\"policy\":null,\"payload\":\"{digest}\"}}"
            )
        );
    }
}
