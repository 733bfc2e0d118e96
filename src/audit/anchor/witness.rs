//! The log's side of C2SP `tlog-witness`: one head is submitted with the proof that it extends what the witness knows.
//!
//! What comes back is checked with the witness's key before it is believed. A witness that does not know how far it saw the
//! log says so (409), and is asked once more from there. One that saw more than there is, or something else, is taken at
//! its word only by whoever asks twice: nobody signed that.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, StatusCode};
use std::time::Duration;

use super::super::checkpoint::{Doubt, MAX_NOTE, Note, Verifier};
use super::super::proofs::Tree;
use crate::store::Reader;
use crate::upstream::Upstream;

/// A witness, and what it is known to have seen.
#[derive(Clone)]
pub(super) struct Witness {
    client: Upstream,
    path: String,
    key: Verifier,
    /// The log, and how much of it.
    seen: Option<(String, u64)>,
}

/// Why there is no cosignature.
pub(super) enum Unsigned {
    /// It could not be had now.
    Away(String),
    /// The witness has seen so much of the log, and that is not its beginning here.
    Other { size: u64, is_more: bool },
}

impl Witness {
    /// `path` is that of its submission prefix.
    pub(super) fn new(client: Upstream, path: &str, key: Verifier) -> Self {
        let path = format!("{}/add-checkpoint", path.trim_end_matches('/'));
        Self { client, path, key, seen: None }
    }

    pub(super) fn key(&self) -> &Verifier {
        &self.key
    }

    pub(super) fn name(&self) -> String {
        format!("witness {} at {}", self.key.name, self.client.origin())
    }

    /// Has a head signed; the line of its signature.
    pub(super) async fn cosign(
        &mut self,
        reader: &Reader,
        head: &Note,
        within: Duration,
    ) -> Result<String, Unsigned> {
        let (origin, size) = (&head.checkpoint.origin, head.checkpoint.size);
        let mut old = self.seen.as_ref().filter(|(log, _)| log == origin).map_or(0, |(_, size)| *size);
        let mut is_told = false;
        loop {
            let (status, body) = self.submit(reader, head, old, within).await.map_err(Unsigned::Away)?;
            match status {
                StatusCode::OK => {
                    let line = self.line(head, &body).map_err(Unsigned::Away)?;
                    self.seen = Some((origin.clone(), size));
                    return Ok(line);
                }
                StatusCode::CONFLICT => match told_size(&body) {
                    Some(known) if known > size => {
                        return Err(Unsigned::Other { size: known, is_more: true });
                    }
                    Some(known) if known != old && !is_told => {
                        self.seen = Some((origin.clone(), known));
                        (old, is_told) = (known, true);
                    }
                    _ if old == size => return Err(Unsigned::Other { size, is_more: false }),
                    _ => return Err(Unsigned::Away("answered 409 without the size it knows".to_owned())),
                },
                // The proof is ours and good, so the witness has another root of that size.
                StatusCode::UNPROCESSABLE_ENTITY if old > 0 => {
                    return Err(Unsigned::Other { size: old, is_more: false });
                }
                StatusCode::NOT_FOUND => {
                    let what = format!(
                        "answered 404: it does not know the log {origin} (`patchwarden keys show` prints the key to give it)"
                    );
                    return Err(Unsigned::Away(what));
                }
                StatusCode::FORBIDDEN => {
                    let what = format!(
                        "answered 403: it knows the log {origin} by another key (`patchwarden keys show` prints ours)"
                    );
                    return Err(Unsigned::Away(what));
                }
                other => return Err(Unsigned::Away(format!("answered {}", other.as_u16()))),
            }
        }
    }

    async fn submit(
        &self,
        reader: &Reader,
        head: &Note,
        old: u64,
        within: Duration,
    ) -> Result<(StatusCode, Bytes), String> {
        let Note { checkpoint, .. } = head;
        // What it saw may be more than there is: then it is asked from nothing, and says so.
        let old = if old <= checkpoint.size { old } else { 0 };
        let tree = Tree { reader, origin: &checkpoint.origin, size: checkpoint.size };
        let proof = tree.consistency(old).await.map_err(|error| format!("no proof for it: {error}"))?;
        let proof: String = proof.iter().map(|hash| STANDARD.encode(hash) + "\n").collect();
        let mut request = Request::new(Bytes::from(format!("old {old}\n{proof}\n{head}")));
        *request.method_mut() = Method::POST;
        *request.uri_mut() =
            self.path.parse().map_err(|_| "has a path that cannot be asked for".to_owned())?;
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        let answer = self.client.exchange("anchor", request, within, MAX_NOTE).await;
        answer.map(|answer| (answer.status, answer.body)).map_err(|failure| failure.to_string())
    }

    /// Its line in an answer: one, as long as all of its lines fit the head. Lines of other keys are passed over.
    fn line(&self, head: &Note, body: &[u8]) -> Result<String, String> {
        let name = &self.key.name;
        let lines = std::str::from_utf8(body).map_err(|_| "answered what is no text".to_owned())?;
        let read = Note::read(&format!("{head}{lines}"));
        let read =
            read.ok().filter(|note| note.checkpoint == head.checkpoint && lines.starts_with('\u{2014}'));
        let read = read.ok_or("answered what are no lines of signatures")?;
        match read.witnessed_by(&self.key) {
            Ok(Some(_)) => {}
            Ok(None) => return Err(format!("answered without a signature of the key of {name}")),
            Err(Doubt::Forged(_) | Doubt::Unsigned(_) | Doubt::Malformed(_)) => {
                return Err(format!("answered with a signature of {name} that does not fit the head"));
            }
        }
        read.lines_of(&self.key).split_inclusive('\n').next_back().map(str::to_owned).ok_or_else(String::new)
    }
}

/// The size a 409 tells: a decimal and a line feed, no other spelling.
fn told_size(body: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(body).ok()?.strip_suffix('\n')?;
    text.parse::<u64>().ok().filter(|size| size.to_string() == text)
}
