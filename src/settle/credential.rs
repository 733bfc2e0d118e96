//! The gateway's own credential: a machine identity that may read identities, and nothing more.
//!
//! Universal auth: client id and secret are exchanged for a token, which is kept in memory alone and renewed before it
//! expires or when it is no longer accepted. The secret is read where it stands for every login, so a rotated one is taken.
//! Neither of them is in any text that comes out of here.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use serde_json::{Value, json};

use crate::json;
use crate::units::Secret;
use crate::upstream::Upstream;

use super::Settings;

const LOGIN: &str = "/api/v1/auth/universal-auth/login";
/// A token is renewed when a tenth of its life is left; one that lives longer than this is taken to live so long.
const LONGEST_USE: Duration = Duration::from_hours(12);
/// How long a token is used whose answer does not say how long it lives.
const UNTOLD_USE: Duration = Duration::from_mins(10);

/// Client id and secret, and the token they were last exchanged for.
pub struct Credential {
    client_id: String,
    settings: Settings,
    token: Option<Token>,
}

struct Token {
    bearer: HeaderValue,
    since: Instant,
    until: Instant,
}

/// Why there is no token. The texts name statuses and files, never what was sent or answered.
#[derive(Debug)]
pub(super) enum NoToken {
    /// It is not accepted, or is not there.
    Refused(String),
    /// The upstream could not be asked, or not now.
    Unreachable(String),
}

impl Credential {
    /// The one of the settings, where there is one.
    pub fn new(settings: &Settings) -> Option<Self> {
        let client_id = settings.client_id.clone()?;
        Some(Self { client_id, settings: settings.clone(), token: None })
    }

    /// Headers with a token that should be good; logs in where there is none.
    pub(super) async fn headers(
        &mut self,
        upstream: &Upstream,
        within: Duration,
        at_most: usize,
    ) -> Result<HeaderMap, NoToken> {
        if let Some(token) = self.token.as_ref().filter(|token| Instant::now() < token.until) {
            return Ok(HeaderMap::from_iter([(AUTHORIZATION, token.bearer.clone())]));
        }
        self.token = None;
        let token = self.log_in(upstream, within, at_most).await?;
        let bearer = token.bearer.clone();
        self.token = Some(token);
        Ok(HeaderMap::from_iter([(AUTHORIZATION, bearer)]))
    }

    /// Whether there is a token that was accepted before.
    pub(super) fn is_logged_in(&self) -> bool {
        self.token.as_ref().is_some_and(|token| Instant::now() < token.until)
    }

    /// How old the token is.
    pub(super) fn age(&self) -> Duration {
        self.token.as_ref().map_or(Duration::MAX, |token| token.since.elapsed())
    }

    /// The token is no longer accepted.
    pub(super) fn forget(&mut self) {
        self.token = None;
    }

    fn secret(&self) -> Result<Secret, NoToken> {
        if let Some(secret) = &self.settings.client_secret {
            return Ok(secret.clone());
        }
        let path = self.settings.client_secret_file.clone().unwrap_or_default();
        let wrong =
            |what: &str| NoToken::Refused(format!("settle.client_secret_file {}: {what}", path.display()));
        let text = std::fs::read_to_string(&path).map_err(|error| wrong(&error.kind().to_string()))?;
        let secret = text.trim();
        if secret.is_empty() { Err(wrong("holds no secret")) } else { Ok(Secret::new(secret.to_owned())) }
    }

    async fn log_in(&self, upstream: &Upstream, within: Duration, at_most: usize) -> Result<Token, NoToken> {
        let body = json!({"clientId": self.client_id, "clientSecret": self.secret()?.reveal()});
        let mut request = Request::new(Bytes::from(body.to_string()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = Uri::from_static(LOGIN);
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let asked = Instant::now();
        let answer = upstream.exchange("settle", request, within, at_most).await;
        let answer = answer.map_err(|failure| NoToken::Unreachable(format!("the login: {failure}")))?;
        let status = answer.status;
        if status != StatusCode::OK {
            let said = format!("the upstream answered its login with {}", status.as_u16());
            let for_now = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
            return Err(if for_now { NoToken::Unreachable(said) } else { NoToken::Refused(said) });
        }
        let body = json::value(&answer.body).unwrap_or(Value::Null);
        let bearer = body.get("accessToken").and_then(Value::as_str).filter(|token| !token.is_empty());
        let bearer = bearer.and_then(|token| HeaderValue::try_from(format!("Bearer {token}")).ok());
        let Some(mut bearer) = bearer else {
            return Err(NoToken::Refused("the upstream answered its login without a token".to_owned()));
        };
        bearer.set_sensitive(true);
        let lives = body.get("expiresIn").and_then(Value::as_u64).filter(|seconds| *seconds > 0);
        let used = lives.map_or(UNTOLD_USE, |seconds| Duration::from_secs(seconds).min(LONGEST_USE) / 10 * 9);
        Ok(Token { bearer, since: asked, until: asked + used })
    }
}
