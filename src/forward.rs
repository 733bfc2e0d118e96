//! Step 9: the one request that goes out.
//!
//! Takes an [`Intent`], which only `audit` makes and only after its commit. The request is built, not copied: the
//! canonical path, the few headers that cross, our own bytes of the normal form. Sent once; a write whose bytes may have
//! left is never repeated. Out comes a [`Reply`]: what the answer proves, and the answer.

use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Request};
use serde_json::Value;

use crate::audit::{Intent, OutcomeResult};
use crate::json;
use crate::operation::{Object, Operation, State, Stored, Write};
use crate::upstream::{Answer, Failure, SendBefore, Upstream};

/// What came of the write.
#[derive(Debug)]
pub struct Reply {
    /// What is proved.
    pub result: OutcomeResult,
    /// The state after, when it is proved: `Some(None)` after a removal.
    pub after: Option<Option<Stored>>,
    /// The upstream's complete answer, or why there is none.
    pub answer: Result<Answer, Failure>,
    /// Whether an unknown end was a complete 5xx in the upstream's own shape: its handler is through.
    pub handler_ended: bool,
}

/// Sends the write of an intent.
pub async fn send(
    upstream: &Upstream,
    intent: &Intent,
    operation: &Operation,
    headers: &HeaderMap,
    within: Duration,
    at_most: usize,
) -> Reply {
    let target_id = intent.target().id();
    let body = intent.permit().body().cloned();
    let Ok(uri) = operation.object.path_of(&target_id).parse() else {
        return Reply::unsent(Failure::NotSent("the path of the object file is no path".to_owned()));
    };
    let mut request = Request::new(body.clone().unwrap_or_default());
    *request.method_mut() = operation.method.clone();
    *request.uri_mut() = uri;
    *request.headers_mut() = headers.clone();
    if let Some(at) = intent.held_until() {
        request.extensions_mut().insert(SendBefore(at));
    }
    let headers = request.headers_mut();
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    if body.is_some() {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    let answer = upstream.exchange("governed", request, within, at_most).await;
    Reply::of(answer, operation.write, &operation.object, &target_id)
}

impl Reply {
    fn unsent(failure: Failure) -> Self {
        Self { result: OutcomeResult::NotSent, after: None, answer: Err(failure), handler_ended: false }
    }

    /// What each way a request can end proves of the write.
    fn of(answer: Result<Answer, Failure>, write: Write, object: &Arc<Object>, target_id: &str) -> Self {
        let unknown = |answer, handler_ended| Self {
            result: OutcomeResult::Unknown,
            after: None,
            answer,
            handler_ended,
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(failure @ (Failure::NotSent(_) | Failure::TooLate)) => return Self::unsent(failure),
            Err(failure) => return unknown(Err(failure), false),
        };
        if answer.headers.contains_key(CONTENT_ENCODING) {
            return unknown(Ok(answer), false);
        }
        let body = json::value(&answer.body).ok();
        let own_shape = body.as_ref().is_some_and(|body| says_status(body, answer.status.as_u16()));
        let (result, after) = match answer.status.as_u16() {
            200..=299 => match after(write, object, target_id, body.as_ref()) {
                Some(after) => (OutcomeResult::Applied, Some(after)),
                None => (OutcomeResult::Unknown, None),
            },
            400 | 401 | 403 | 404 | 409 | 422 | 429 if own_shape => (OutcomeResult::Rejected, None),
            _ => (OutcomeResult::Unknown, None),
        };
        let handler_ended = answer.status.is_server_error() && own_shape;
        Self { result, after, answer: Ok(answer), handler_ended }
    }

    /// Whether the client gets the gateway's own answer: a 3xx is not passed on.
    pub fn is_broken(&self) -> bool {
        self.answer.as_ref().is_ok_and(|answer| answer.status.is_redirection())
    }
}

/// `Some(None)`: removed. `None`: the body does not say what the state is now.
fn after(
    write: Write,
    object: &Arc<Object>,
    target_id: &str,
    body: Option<&Value>,
) -> Option<Option<Stored>> {
    match write {
        Write::Remove => Some(None),
        Write::Overlay | Write::Create => State::read(object, target_id, body?).ok().map(Some),
    }
}

fn says_status(body: &Value, status: u16) -> bool {
    body.get("statusCode").and_then(Value::as_u64) == Some(u64::from(status))
}
