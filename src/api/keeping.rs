//! Retention and backups, for operators: what `patchwarden prune` and `patchwarden backup` ask while a gateway runs.
//!
//! A prune goes on for some seconds and says how far it came; whoever asks does so again, with the same time, until it is
//! done. A backup is made by the command itself, beside the gateway; here the log is told of it.

use axum::extract;
use axum::extract::rejection::BytesRejection;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::State;
use super::problem::Problem;
use crate::access::Caller;
use crate::audit::backup::Backup;
use crate::clock::Time;
use crate::json;

/// Body of `POST /v1/prune`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    before: String,
}

/// `POST /v1/prune`: how many payloads went, and whether that was all.
pub(super) async fn prune(
    extract::State(state): extract::State<State>,
    extract::Extension(caller): extract::Extension<Caller>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let wanted: Wanted = read(body, r#"{"before": "2026-01-01T00:00:00Z"}"#)?;
    let before = Time::parse(&wanted.before).filter(|before| *before <= state.clock.now());
    let before = before.ok_or_else(|| {
        Problem::bad("`before` is no time that has passed; write one like 2026-01-01T00:00:00Z.")
    })?;
    let pruned = state.audit.prune(before, &caller.name).await;
    let pruned =
        pruned.map_err(|cause| Problem::unavailable(format!("Nothing more was removed: {cause}.")))?;
    let told = json!({"removed": pruned.removed, "done": pruned.done}).to_string();
    Ok((StatusCode::OK, [(CONTENT_TYPE, "application/json")], told).into_response())
}

/// `POST /v1/backups`: 204 when the log says that a backup was made.
pub(super) async fn backed_up(
    extract::State(state): extract::State<State>,
    extract::Extension(caller): extract::Extension<Caller>,
    body: Result<Bytes, BytesRejection>,
) -> Result<StatusCode, Problem> {
    let made: Backup = read(body, r#"{"file": "…", "bytes": 1, "logs": []}"#)?;
    let entry = made.entry(state.clock.now(), &caller.name);
    state.audit.record("backup", entry).await.map_err(|cause| Problem::store(&cause))?;
    Ok(StatusCode::NO_CONTENT)
}

fn read<T: DeserializeOwned>(body: Result<Bytes, BytesRejection>, like: &str) -> Result<T, Problem> {
    let body = body.map_err(|unread| Problem::of(unread.status(), "The body is too large or was cut."))?;
    let read = json::value(&body).map_err(|fault| fault.to_string()).and_then(json::typed);
    read.map_err(|error| Problem::bad(format!("The body is not {like}: {error}.")))
}
