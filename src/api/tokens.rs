//! Admin tokens over HTTP, for operators: the way `patchwarden token` takes while a gateway runs.
//!
//! A secret is in one answer, the one to its creation; lists have names, roles and times. Revoking counts from the
//! answer on. A name is used once and never again, so that the log of who did what stays readable.

use axum::extract::rejection::BytesRejection;
use axum::extract::{self, Path};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use serde::Deserialize;
use serde_json::{Value, json};

use super::State;
use super::problem::Problem;
use crate::access::{self, Role};
use crate::json;

/// Body of `POST /v1/tokens`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    name: String,
    role: String,
}

/// `POST /v1/tokens`: 201 with the secret; 409 when the name is taken.
pub(super) async fn create(
    extract::State(state): extract::State<State>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let body = body.map_err(|unread| Problem::of(unread.status(), "The body is too large or was cut."))?;
    let wanted = wanted(&body).map_err(|error| {
        Problem::bad(format!(r#"The body is not {{"name": "…", "role": "reader"}}: {error}."#))
    })?;
    let role = Role::parse(&wanted.role).map_err(|error| Problem::bad(format!("`role`: {error}.")))?;
    access::check_name(&wanted.name).map_err(|error| Problem::bad(format!("`name`: {error}.")))?;
    match state.access.create(&wanted.name, role).await.map_err(|cause| Problem::store(&cause))? {
        Some(secret) => {
            tracing::info!(
                event = "token_created",
                name = wanted.name,
                role = role.as_str(),
                "an admin token was made"
            );
            let token = json!({"name": wanted.name, "role": role, "token": secret});
            Ok(answer(StatusCode::CREATED, &token))
        }
        None => Err(Problem::of(
            StatusCode::CONFLICT,
            "A token of this name exists or existed; give another name.",
        )),
    }
}

/// `GET /v1/tokens`: oldest first, also revoked ones.
pub(super) async fn list(extract::State(state): extract::State<State>) -> Result<Response, Problem> {
    let tokens = state.access.list().await.map_err(|cause| Problem::store(&cause))?;
    Ok(answer(StatusCode::OK, &json!({"tokens": tokens})))
}

/// `DELETE /v1/tokens/{name}`: 204.
pub(super) async fn revoke(
    extract::State(state): extract::State<State>,
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    if !state.access.revoke(&name).await.map_err(|cause| Problem::store(&cause))? {
        return Err(Problem::not_found("There is no token of this name in use."));
    }
    tracing::info!(event = "token_revoked", name, "an admin token was revoked");
    Ok(StatusCode::NO_CONTENT)
}

fn wanted(body: &[u8]) -> Result<Wanted, String> {
    json::typed(json::value(body).map_err(|fault| fault.to_string())?)
}

fn answer(status: StatusCode, body: &Value) -> Response {
    (status, [(CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}
