//! `/readyz`: whether requests can pass through, and what is wrong if less than everything works.
//!
//! The phase is set by whoever starts and stops the gateway; `degraded` is never set, it follows from the log's status.
//! Anybody may ask for the word, details need a token: they name files and databases. A log that cannot be written
//! still lets requests pass, so it is 200, unless asked with `?require=audit`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::{self, RawQuery};
use axum::response::{IntoResponse, Response};
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};

use super::State;
use super::problem::Problem;
use crate::access::Role;
use crate::audit::Status;
use crate::clock::Time;

/// Where the gateway is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Not yet listening.
    Starting = 0,
    /// Requests pass through.
    Ready = 1,
    /// Told to stop.
    Stopping = 2,
}

/// The phase and what is wrong beside the log, shared. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    phase: AtomicU8,
    problems: Mutex<BTreeMap<&'static str, (Time, String)>>,
}

impl Readiness {
    /// Starting.
    pub fn new() -> Self {
        Self::default()
    }

    /// Moves on; nothing leads back, and nothing out of [`Phase::Stopping`].
    pub fn enter(&self, phase: Phase) {
        self.0.phase.fetch_max(phase as u8, Ordering::SeqCst);
    }

    /// Something is wrong with a part that does not stop requests.
    pub fn problem(&self, part: &'static str, since: Time, detail: &str) {
        self.problems().insert(part, (since, detail.to_owned()));
    }

    /// It no longer is.
    pub fn solved(&self, part: &'static str) {
        self.problems().remove(part);
    }

    fn problems(&self) -> MutexGuard<'_, BTreeMap<&'static str, (Time, String)>> {
        self.0.problems.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it is now.
    pub fn phase(&self) -> Phase {
        match self.0.phase.load(Ordering::SeqCst) {
            0 => Phase::Starting,
            1 => Phase::Ready,
            _ => Phase::Stopping,
        }
    }
}

pub(super) async fn readyz(
    extract::State(state): extract::State<State>,
    RawQuery(query): RawQuery,
    role: Option<extract::Extension<Role>>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let require_audit = match query.as_deref() {
        None | Some("") => false,
        Some("require=audit") => true,
        Some(_) => return Err(Problem::bad("The only query here is `require=audit`.")),
    };
    let audit = state.audit.status();
    let degraded = audit != Status::Up;
    let (word, passing) = match state.readiness.phase() {
        Phase::Starting => ("starting", false),
        Phase::Stopping => ("stopping", false),
        Phase::Ready if degraded => ("degraded", !require_audit),
        Phase::Ready => ("ready", true),
    };
    let mut problems: Vec<(&str, Time, String)> = Vec::new();
    if let Status::Down { since, detail } = audit {
        problems.push(("audit", since, detail));
    }
    problems.extend(
        state.readiness.problems().iter().map(|(part, (since, detail))| (*part, *since, detail.clone())),
    );
    // Whoever sends no token is not worth a look into the store.
    let is_known = !problems.is_empty()
        && (role.is_some()
            || (headers.contains_key(AUTHORIZATION) && state.access.authorise(&headers).await.is_ok()));
    let told = |(part, since, detail): (&str, Time, String)| match is_known {
        true => json!({"part": part, "since": since, "detail": detail}),
        false => json!({"part": part, "since": since}),
    };
    let problems: Vec<Value> = problems.into_iter().map(told).collect();
    let status = if passing { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({"status": word, "problems": problems}).to_string();
    Ok((status, [(CONTENT_TYPE, "application/json")], body).into_response())
}
