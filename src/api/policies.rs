//! What is in force, and what it would say: `GET /v1/policies` and `POST /v1/evaluate`.
//!
//! Evaluating changes nothing and needs no more than reading does. Digests in its answer are made with a key of the moment,
//! so that nobody can try out what stands behind a digest of the history.

use std::sync::PoisonError;

use axum::extract;
use axum::extract::rejection::BytesRejection;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use serde::Deserialize;
use serde_json::{Value, json};

use super::State;
use super::problem::Problem;
use crate::bundle::{Bundle, Question, evaluate};
use crate::json;
use crate::keys::Keys;

/// The largest question that is read: a state, a request, and room.
pub(super) const MAX_QUESTION: usize = 256 * 1024;

/// Body of `POST /v1/evaluate`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    operation: String,
    /// The API's answer to a read of the state before.
    before: Option<Value>,
    body: Option<Value>,
    caller: Option<String>,
}

/// `GET /v1/policies`: every rule with where it comes from.
pub(super) async fn list(extract::State(state): extract::State<State>) -> Response {
    let bundle = state.bundle.read().unwrap_or_else(PoisonError::into_inner).clone();
    let rules: Vec<Value> = bundle.policies().rules().iter().map(|rule| {
        json!({"id": rule.id(), "title": rule.title(), "description": rule.description(), "help": rule.help(), "owner": rule.owner(),
            "level": rule.level(), "existing": rule.existing(), "operations": rule.operations(),
            "from": bundle.source(rule.id())})
    }).collect();
    answer(&json!({"policy_digest": bundle.digest(), "rules": rules}))
}

/// `POST /v1/evaluate`: what a gateway with these policies would say about a request, as the history would show it.
pub(super) async fn judge(
    extract::State(state): extract::State<State>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let body = body.map_err(|unread| Problem::of(unread.status(), "The body is too large or was cut."))?;
    let asked: Asked = json::value(&body).map_err(|fault| fault.to_string()).and_then(json::typed).map_err(|error| {
        Problem::bad(format!(
            r#"The body is not {{"operation": "jwt-auth.update", "before": {{…}}, "body": {{…}}, "caller": "…"}}: {error}."#
        ))
    })?;
    let bundle = state.bundle.read().unwrap_or_else(PoisonError::into_inner).clone();
    let shown = tokio::task::spawn_blocking(move || said(&bundle, &asked)).await;
    let shown = shown
        .map_err(|_| Problem::of(StatusCode::INTERNAL_SERVER_ERROR, "The gateway failed while judging."))?;
    shown.map(|shown| answer(&shown)).map_err(|why| Problem::bad(format!("This cannot be judged: {why}.")))
}

fn said(bundle: &Bundle, asked: &Asked) -> Result<Value, String> {
    let (before, body) =
        (asked.before.as_ref().map(Value::to_string), asked.body.as_ref().map(Value::to_string));
    let question = Question {
        operation: &asked.operation,
        before: before.as_deref(),
        body: body.as_deref(),
        caller: asked.caller.as_deref(),
        ..Question::default()
    };
    Ok(evaluate(bundle, bundle.policies(), &question, &Keys::ephemeral())?.shown(bundle.policies()))
}

fn answer(body: &Value) -> Response {
    (StatusCode::OK, [(CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}
