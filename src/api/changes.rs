//! The history over HTTP: a page of changes, one change, one identity's story, and that of the gateways.
//!
//! Queries are read by [`super::filter`], as on the command line. A page may be short, even empty, and still have a
//! `next_cursor`; only `null` there means the end.

use axum::extract::{self, Path, RawQuery};
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use serde_json::{Value, json};

use super::State;
use super::filter::{self, Listing};
use super::problem::Problem;
use crate::audit::query::{Page, Reader};

/// Most changes on one page.
const MAX_LIMIT: usize = 500;

/// `GET /v1/changes`: newest first.
pub(super) async fn list(
    extract::State(state): extract::State<State>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let listing =
        Listing::parse(&pairs(query.as_deref()), state.clock.now(), MAX_LIMIT).map_err(Problem::bad)?;
    let page = reader(&state)?.page(&listing.filter, listing.cursor.as_deref(), listing.limit).await;
    Ok(answer(&page.map_err(|cause| Problem::store(&cause))?))
}

/// `GET /v1/targets/{id}/history`: oldest first.
pub(super) async fn history(
    extract::State(state): extract::State<State>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let target = filter::target(&id).map_err(Problem::bad)?;
    let listing =
        Listing::paging(&pairs(query.as_deref()), state.clock.now(), MAX_LIMIT).map_err(Problem::bad)?;
    let page = reader(&state)?.target_history(&target, listing.cursor.as_deref(), listing.limit).await;
    Ok(answer(&page.map_err(|cause| Problem::store(&cause))?))
}

/// `GET /v1/lifecycle`: what the log says of the gateways themselves, newest first.
pub(super) async fn lifecycle(
    extract::State(state): extract::State<State>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let asked = filter::lifecycle(&pairs(query.as_deref()), MAX_LIMIT).map_err(Problem::bad)?;
    let page = reader(&state)?.lifecycle(asked.kind.as_deref(), asked.cursor, asked.limit).await;
    let page = page.map_err(|cause| Problem::store(&cause))?;
    Ok(json_answer(&json!({"entries": page.changes, "next_cursor": page.next_cursor})))
}

/// `GET /v1/changes/{id}`: by id or number, or the `last` one.
pub(super) async fn one(
    extract::State(state): extract::State<State>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let found = reader(&state)?.find(&id).await.map_err(|cause| Problem::store(&cause))?;
    let missing = "There is no such change here; give a change's id, its number in the log, or `last`.";
    Ok(json_answer(&found.ok_or_else(|| Problem::not_found(missing))?))
}

pub(super) fn reader(state: &State) -> Result<Reader, Problem> {
    state.audit.reader().ok_or_else(|| Problem::unavailable("The store is not open yet."))
}

fn pairs(query: Option<&str>) -> Vec<(String, String)> {
    url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()).into_owned().collect()
}

fn answer(page: &Page) -> Response {
    json_answer(&json!({"changes": page.changes, "next_cursor": page.next_cursor}))
}

pub(super) fn json_answer(body: &Value) -> Response {
    ([(CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}
