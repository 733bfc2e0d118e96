//! The admin API: who may ask, how it is guarded, and what has an address.
//!
//! Two routers over one [`State`]: [`admin`] for the port, where everything but the two probes needs a token, and
//! [`socket`] for the data folder's socket, where whoever may open it is operator. Around both stand the same layers: a
//! panic is a 500, what is too much is a 503, what takes too long is a 503. Every "no" is problem JSON that says what
//! would pass.

mod changes;
pub mod filter;
mod keeping;
mod keys;
mod policies;
mod problem;
mod proofs;
mod readiness;
mod tokens;

use std::sync::{Arc, RwLock};
use std::time::Duration;

use axum::error_handling::HandleErrorLayer;
use axum::extract::{self, DefaultBodyLimit, MatchedPath, Request};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{BoxError, Router};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HOST, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Method, StatusCode};
use tower::ServiceBuilder;
use tower::limit::GlobalConcurrencyLimitLayer;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::set_header::SetResponseHeaderLayer;

use crate::access::{Access, Caller, Denied, Role};
use crate::audit::Audit;
use crate::bundle::Bundle;
use crate::clock::Clock;
use crate::metrics::Metrics;

use problem::Problem;
pub use readiness::{Phase, Readiness};

/// Requests of one router handled at once; more get 503.
const IN_FLIGHT: usize = 64;
/// What one request may take.
const WITHIN: Duration = Duration::from_secs(30);
/// The largest body that is read.
const MAX_BODY: usize = 16 * 1024;
/// Where a request is judged that nobody sends.
const EVALUATE: &str = "/v1/evaluate";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the handlers share. Cheap to clone.
#[derive(Clone)]
pub struct State(Arc<Parts>);

/// What a [`State`] is made of.
pub struct Parts {
    /// The log and its history.
    pub audit: Audit,
    /// Who may ask.
    pub access: Access,
    /// What is in force.
    pub bundle: Arc<RwLock<Arc<Bundle>>>,
    /// What `/metrics` prints.
    pub metrics: Arc<Metrics>,
    /// What `/readyz` says.
    pub readiness: Readiness,
    /// What `2h` ago counts from.
    pub clock: Clock,
    /// `admin.open_metrics`: no token for `/metrics`.
    pub open_metrics: bool,
    /// `admin.hosts`: unless empty, no other `Host` is answered on the port.
    pub hosts: Vec<String>,
}

impl State {
    /// Shares the parts.
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }
}

impl std::ops::Deref for State {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// The router of the admin port.
pub fn admin(state: State) -> Router {
    let guarded = routes(&state)
        .route("/metrics", get(metrics))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(state.clone(), authorise))
        .layer(middleware::from_fn_with_state(state.clone(), named_host));
    layered(guarded.merge(probes()).with_state(state))
}

/// The router of the socket in the data folder: every caller is operator.
pub fn socket(state: State) -> Router {
    let open = routes(&state)
        .route("/metrics", get(metrics))
        .merge(probes())
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn(as_operator));
    layered(open.with_state(state))
}

fn routes(state: &State) -> Router<State> {
    let operating = Router::new()
        .route("/v1/tokens", get(tokens::list).post(tokens::create))
        .route("/v1/tokens/{name}", delete(tokens::revoke))
        .route("/v1/log/keys/previous", delete(keys::retire))
        .route("/v1/prune", post(keeping::prune))
        .route("/v1/backups", post(keeping::backed_up))
        .route_layer(middleware::from_fn(operators_only));
    // Whoever reads what was recorded is recorded.
    let history = Router::new()
        .route("/v1/changes", get(changes::list))
        .route("/v1/changes/{id}", get(changes::one))
        .route("/v1/changes/{id}/proof", get(proofs::change))
        .route("/v1/targets/{id}/history", get(changes::history))
        .route("/v1/lifecycle", get(changes::lifecycle))
        .route("/v1/log/entries", get(proofs::entries))
        .route("/v1/log/tile/entries/{*bundle}", get(proofs::bundle))
        .route_layer(middleware::from_fn_with_state(state.clone(), noted));
    Router::new()
        .route("/v1/log/checkpoint", get(proofs::checkpoint))
        .route("/v1/log/proof/inclusion", get(proofs::inclusion))
        .route("/v1/log/proof/consistency", get(proofs::consistency))
        .route("/v1/log/tile/{*tile}", get(proofs::tile))
        .route("/v1/log/keys", get(keys::list).post(keys::rotate))
        .route("/v1/policies", get(policies::list))
        .route(EVALUATE, post(policies::judge).layer(DefaultBodyLimit::max(policies::MAX_QUESTION)))
        .merge(operating)
        .merge(history)
}

fn probes() -> Router<State> {
    Router::new()
        .route("/livez", get(|| async { "alive\n" }).fallback(wrong_method))
        .route("/readyz", get(readiness::readyz).fallback(wrong_method))
}

/// Outermost first: the headers of every answer, then what turns a failure into one.
fn layered(router: Router) -> Router {
    let limits = ServiceBuilder::new()
        .layer(set_header(X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .layer(set_header(CACHE_CONTROL, "no-store"))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(HandleErrorLayer::new(|_shed: BoxError| async {
            Problem::unavailable("The admin listener has too many requests at once.")
        }))
        .load_shed()
        // A router puts its layers around each route: the semaphore is made here, once for all of them.
        .layer(GlobalConcurrencyLimitLayer::new(IN_FLIGHT))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn(in_time));
    router.layer(limits)
}

fn set_header(name: http::HeaderName, value: &'static str) -> SetResponseHeaderLayer<HeaderValue> {
    SetResponseHeaderLayer::overriding(name, HeaderValue::from_static(value))
}

/// The panic itself is reported by the process's panic hook.
fn panicked(_panic: Box<dyn std::any::Any + Send>) -> Response {
    Problem::of(StatusCode::INTERNAL_SERVER_ERROR, "The gateway failed while answering.").into_response()
}

async fn in_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(WITHIN, next.run(request)).await {
        Ok(response) => response,
        Err(_late) => Problem::unavailable("The answer was not ready in 30 s; ask for less.").into_response(),
    }
}

async fn as_operator(mut request: Request, next: Next) -> Response {
    let caller = Caller { name: "admin.sock".to_owned(), role: Role::Operator };
    request.extensions_mut().insert(caller.role);
    request.extensions_mut().insert(caller);
    next.run(request).await
}

/// Lets a request pass with the [`Role`] its token has: readers only read.
async fn authorise(
    extract::State(state): extract::State<State>,
    mut request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path();
    if state.open_metrics && path == "/metrics" {
        return next.run(request).await;
    }
    let caller = match state.access.authorise(request.headers()).await {
        Ok(caller) => caller,
        Err(denied) => return refused(denied).into_response(),
    };
    // A question changes nothing.
    let reads = matches!(*request.method(), Method::GET | Method::HEAD) || path == EVALUATE;
    if caller.role < Role::Operator && !reads {
        return not_an_operator().into_response();
    }
    request.extensions_mut().insert(caller.role);
    request.extensions_mut().insert(caller);
    next.run(request).await
}

/// Notes a read of the history. It is neither waited for nor a reason to fail.
async fn noted(extract::State(state): extract::State<State>, request: Request, next: Next) -> Response {
    let (caller, path) = (request.extensions().get::<Caller>(), request.extensions().get::<MatchedPath>());
    if let (Some(caller), Some(path)) = (caller, path) {
        state.audit.accessed(&caller.name, caller.role.as_str(), path.as_str());
    }
    next.run(request).await
}

async fn operators_only(request: Request, next: Next) -> Response {
    match request.extensions().get::<Role>() {
        Some(Role::Operator) => next.run(request).await,
        _ => not_an_operator().into_response(),
    }
}

fn not_an_operator() -> Problem {
    let detail = "This needs an admin token of the role operator; this one is a reader's.";
    Problem::of(StatusCode::FORBIDDEN, detail)
}

fn refused(denied: Denied) -> Problem {
    match denied {
        Denied::Missing => Problem::of(
            StatusCode::UNAUTHORIZED,
            "This needs one `Authorization: Bearer` with an admin token; `patchwarden token create` makes one.",
        ),
        Denied::Unknown => {
            Problem::of(StatusCode::UNAUTHORIZED, "The admin token is not known here, or was revoked.")
        }
        Denied::Unavailable => Problem::unavailable("The store that holds the admin tokens does not answer."),
    }
}

/// With `admin.hosts`, a browser that was led here under a name of somebody else's gets nothing.
async fn named_host(extract::State(state): extract::State<State>, request: Request, next: Next) -> Response {
    if state.hosts.is_empty() {
        return next.run(request).await;
    }
    let header = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    let Some(host) = request.uri().host().or(header) else {
        return Problem::of(StatusCode::BAD_REQUEST, "The request names no host.").into_response();
    };
    let named = |allowed: &String| {
        let bare = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
        allowed.eq_ignore_ascii_case(host) || bare.is_some_and(|(name, _)| allowed.eq_ignore_ascii_case(name))
    };
    // An address is nobody's name: no foreign page is reached under it.
    let is_address = http::uri::Authority::try_from(host)
        .is_ok_and(|host| host.host().trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok());
    if is_address || state.hosts.iter().any(named) {
        return next.run(request).await;
    }
    let detail = "This host is not one of `admin.hosts`.";
    Problem::of(StatusCode::MISDIRECTED_REQUEST, detail).into_response()
}

async fn metrics(extract::State(state): extract::State<State>) -> Response {
    ([(CONTENT_TYPE, OPEN_METRICS)], state.metrics.encode()).into_response()
}

async fn unknown() -> Problem {
    Problem::of(StatusCode::NOT_FOUND, "There is nothing at this path of the admin listener.")
}

async fn wrong_method() -> Problem {
    Problem::of(StatusCode::METHOD_NOT_ALLOWED, "This path does not take this method.")
}

#[cfg(test)]
mod tests;
