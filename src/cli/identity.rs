//! One real identity, read with the token of a file.
//!
//! For commands that look at what stands there now: the API's own answer comes back, as it is. The token is sent to the
//! upstream and nowhere else.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION};
use http::{HeaderMap, HeaderValue, Request};
use serde_json::Value;

use super::{MISCONFIGURED, UNABLE};
use crate::app::Failure;
use crate::config::Config;
use crate::id::TargetId;
use crate::json;
use crate::metrics::Metrics;
use crate::operation::Object;
use crate::upstream::Upstream;

/// The canonical id of an identity; `flag` is where it was given.
pub(super) fn target(object: &Object, flag: &str, id: &str) -> Result<TargetId, Failure> {
    TargetId::canonical(&object.target, id).ok_or_else(|| Failure {
        code: MISCONFIGURED,
        message: format!("{flag} {id}: is no identity's id; write a UUID in lower case"),
    })
}

/// What the API answers to a read of the identity's configuration.
pub(super) async fn answer(
    config: &Config,
    object: &Object,
    target: &TargetId,
    token_file: &Path,
) -> Result<Value, Failure> {
    let id = target.id();
    let unable = |message: String| Failure { code: UNABLE, message };
    let upstream = Upstream::new(&config.upstream, config.limits.connect.0, Arc::new(Metrics::new()));
    let upstream = upstream.map_err(|error| unable(error.to_string()))?;
    let mut request = Request::new(Bytes::new());
    *request.uri_mut() =
        object.path_of(&id).parse().map_err(|_| unable("the object's path is none".to_owned()))?;
    *request.headers_mut() = headers(token_file)?;
    request.headers_mut().insert(ACCEPT, HeaderValue::from_static("application/json"));
    request.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    let (within, at_most) = (config.limits.before.0, config.limits.answer.bytes());
    let answer = upstream.exchange("probe", request, within, at_most).await;
    let answer = answer.map_err(|failure| unable(format!("the identity {id}: {failure}")))?;
    let body = json::value(&answer.body).unwrap_or(Value::Null);
    if answer.status.is_success() {
        return Ok(body);
    }
    let said = body["message"].as_str().unwrap_or("(no message)");
    Err(unable(format!("the identity {id}: the upstream answered {}: {said}", answer.status)))
}

/// A request's headers with the token of a file.
pub(super) fn headers(token_file: &Path) -> Result<HeaderMap, Failure> {
    let wrong = |what: &dyn std::fmt::Display| Failure {
        code: UNABLE,
        message: format!("--token-file {}: {what}", token_file.display()),
    };
    let text = std::fs::read_to_string(token_file).map_err(|error| wrong(&error))?;
    let token = text.trim();
    let mut value = HeaderValue::try_from(format!("Bearer {token}"))
        .ok()
        .filter(|_| !token.is_empty() && !token.contains(char::is_whitespace))
        .ok_or_else(|| wrong(&"holds no token, or more than one"))?;
    value.set_sensitive(true);
    Ok(HeaderMap::from_iter([(AUTHORIZATION, value)]))
}
