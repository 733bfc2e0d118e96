//! Step 5: the state now, and proof of the caller.
//!
//! One GET with the caller's own token. Its answer is a [`Reading`]: present with its revision, or absent; and that the
//! upstream answered so proves the caller. Everything else is a refusal. [`Watch`] remembers readings that
//! are older than what this log knows: re-read for two seconds, refused, and after a minute of the same accepted as the
//! upstream itself having been rolled back.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method, Request};
use serde_json::Value;

use crate::clock::{Clock, Time};
use crate::id::TargetId;
use crate::json;
use crate::operation::{Object, Revision, State, Stored};
use crate::refusal::{Code, Refusal};
use crate::upstream::{Answer, Failure, Upstream};
use std::sync::Arc;

/// Where to read and with what.
pub struct Source<'a> {
    /// The guarded API.
    pub upstream: &'a Upstream,
    /// The object to read.
    pub object: &'a Arc<Object>,
    /// Whose.
    pub target: &'a TargetId,
    /// The caller's headers that cross, with the client's address stamped.
    pub headers: &'a HeaderMap,
    /// Total time of one read.
    pub within: Duration,
    /// Largest answer, in bytes.
    pub at_most: usize,
    /// What dates the read.
    pub clock: &'a Clock,
}

/// A state as read, and when the read began.
#[derive(Clone, Debug)]
pub struct Reading {
    /// `None`: nothing is attached.
    pub stored: Option<Stored>,
    /// Wall time at which the read began.
    pub began: Time,
    /// The same moment by a clock that does not step.
    pub started: Instant,
}

impl Reading {
    /// How old it is.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Its revision, when something is attached.
    pub fn revision(&self) -> Option<&Revision> {
        self.stored.as_ref().map(|stored| &stored.revision)
    }
}

/// Reads the state once.
pub async fn fetch(source: &Source<'_>) -> Result<Reading, Refusal> {
    let (began, started) = (source.clock.now(), Instant::now());
    let mut request = Request::new(Bytes::new());
    *request.method_mut() = Method::GET;
    let path = source.object.path_of(&source.target.id());
    *request.uri_mut() = path.parse().map_err(|error| unavailable(false).because(error))?;
    *request.headers_mut() = source.headers.clone();
    let headers = request.headers_mut();
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    let answer = source.upstream.exchange("before", request, source.within, source.at_most).await;
    let answer =
        answer.map_err(|failure| unavailable(matches!(failure, Failure::TimedOut)).because(failure))?;
    let stored = understand(source, &answer)?;
    Ok(Reading { stored, began, started })
}

fn understand(source: &Source<'_>, answer: &Answer) -> Result<Option<Stored>, Refusal> {
    let status = answer.status.as_u16();
    if answer.headers.contains_key(CONTENT_ENCODING) {
        return Err(unavailable(false).because("the answer has a content coding nobody asked for"));
    }
    let body = json::value(&answer.body);
    match (status, body) {
        (200, Ok(body)) => {
            let stored = State::read(source.object, &source.target.id(), &body);
            stored.map(Some).map_err(|error| unavailable(false).because(error.0))
        }
        (400, Ok(body)) if says_absent(&body, &source.object.absent_message) => Ok(None),
        (401 | 403 | 404 | 429, body) => Err(refused(status, body.ok().as_ref(), &answer.headers)),
        (_, Err(fault)) => Err(unavailable(false).because(format!("status {status}, {fault}"))),
        (_, Ok(_)) => Err(unavailable(false).because(format!("status {status}"))),
    }
}

fn says_absent(body: &Value, message: &str) -> bool {
    body.get("error").and_then(Value::as_str) == Some("BadRequest")
        && body.get("message").and_then(Value::as_str) == Some(message)
}

fn refused(status: u16, body: Option<&Value>, headers: &HeaderMap) -> Refusal {
    let said = body.and_then(|body| body.get("message")).and_then(Value::as_str).unwrap_or("(no message)");
    let said: String = said.chars().filter(|c| !c.is_control()).take(200).collect();
    let detail = format!(
        "Each change is preceded by a read of the state with the caller's own token, and the upstream refused that read with {status}: \"{said}\"; a change needs Read on identities"
    );
    let wait = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    Refusal { retry_after: wait, ..Refusal::new(Code::BeforeRefused(status), detail) }
}

fn unavailable(timed_out: bool) -> Refusal {
    let detail = if timed_out {
        "The upstream did not answer the read of the state before in time (`limits.before`); try again"
    } else {
        "The state before could not be read from the upstream, so nothing can be judged; try again"
    };
    Refusal::new(Code::BeforeUnavailable { timed_out }, detail)
}

/// How a reading compares with what this log knows.
#[derive(Clone, Debug, PartialEq)]
pub enum Freshness {
    /// It is at least as new.
    Fresh,
    /// It is older: read again, or refuse.
    Stale,
    /// It has been the same older one for a minute: the upstream was rolled back.
    RolledBack,
}

/// How long an older reading must stay the same before it is believed.
const ROLLED_BACK_AFTER: Duration = Duration::from_secs(60);
/// Targets remembered at once; when full, the oldest is forgotten, which only makes it wait anew.
const MAX_REMEMBERED: usize = 1024;

/// Remembers older readings by target.
#[derive(Default)]
pub struct Watch(Mutex<HashMap<TargetId, (Option<Revision>, Instant)>>);

impl Watch {
    /// Judges a reading against the newest revision known; `gone`: it has been removed since.
    pub fn judge(
        &self,
        target: &TargetId,
        reading: &Reading,
        newest: Option<&Revision>,
        gone: bool,
    ) -> Freshness {
        let read = reading.revision();
        let older = match (newest, read) {
            (None, _) => false,
            (Some(_), None) => !gone,
            (Some(newest), Some(read)) if gone => read.row == newest.row || read.at <= newest.at,
            (Some(newest), Some(read)) => read.at < newest.at,
        };
        let mut remembered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !older {
            remembered.remove(target);
            return Freshness::Fresh;
        }
        match remembered.get(target) {
            Some((revision, since)) if revision.as_ref() == read => {
                if since.elapsed() >= ROLLED_BACK_AFTER {
                    Freshness::RolledBack
                } else {
                    Freshness::Stale
                }
            }
            _ => {
                if remembered.len() >= MAX_REMEMBERED {
                    let oldest = remembered
                        .iter()
                        .min_by_key(|(_, (_, since))| *since)
                        .map(|(target, _)| target.clone());
                    oldest.and_then(|oldest| remembered.remove(&oldest));
                }
                remembered.insert(target.clone(), (read.cloned(), reading.started));
                Freshness::Stale
            }
        }
    }
}
