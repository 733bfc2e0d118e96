//! The keys the log is signed with: what they are, for whoever checks; another one, for operators.
//!
//! A new key takes over once the log says so, on the old one's word; both sign until the old one is retired.

use axum::extract;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use serde_json::{Value, json};

use super::State;
use super::changes::reader;
use super::problem::Problem;
use crate::audit::checkpoint::Verifier;

/// `GET /v1/log/keys`: of every log, oldest first in each.
pub(super) async fn list(extract::State(state): extract::State<State>) -> Result<Response, Problem> {
    let keys = reader(&state)?.keys().await.map_err(|cause| Problem::store(&cause))?;
    let keys: Vec<Value> = keys
        .into_iter()
        .filter_map(|key| {
            let verifier = Verifier::of_stored(&key.origin, &key.public)?;
            Some(json!({"origin": key.origin, "key": verifier.to_string(), "since": key.since}))
        })
        .collect();
    Ok(answer(StatusCode::OK, &json!({"keys": keys})))
}

/// `POST /v1/log/keys`: 201 with the old key and the new one, once the log says so.
pub(super) async fn rotate(extract::State(state): extract::State<State>) -> Result<Response, Problem> {
    match state.audit.rotate_key().await {
        Ok((old, new)) => {
            let keys = json!({"old": old.to_string(), "new": new.to_string()});
            tracing::info!(
                event = "log_key_rotated",
                old = old.to_string(),
                new = new.to_string(),
                "the log has a new key"
            );
            Ok(answer(StatusCode::CREATED, &keys))
        }
        Err(why) => Err(Problem::of(StatusCode::CONFLICT, format!("The key was not changed: {why}."))),
    }
}

/// `DELETE /v1/log/keys/previous`: 204.
pub(super) async fn retire(extract::State(state): extract::State<State>) -> Result<StatusCode, Problem> {
    match state.audit.retire_key().await {
        Ok(true) => Ok(StatusCode::NO_CONTENT),
        Ok(false) => Err(Problem::not_found("No key of before signs.")),
        Err(cause) => Err(Problem::store(&cause)),
    }
}

fn answer(status: StatusCode, body: &Value) -> Response {
    (status, [(CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}
