//! Step 2: who says so.
//!
//! Reads `Authorization: Bearer …` and, where the token is a JWT, its claims. Nothing is verified here: the claims are
//! *read, not proven* until the upstream has accepted the token in step 5. Out goes a [`Caller`]: what may be recorded,
//! a keyed fingerprint instead of the token, and the few headers that cross to the upstream. Refuses a missing or
//! unreadable token, an `X-Api-Key`, and any of those headers sent twice.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{AUTHORIZATION, COOKIE, HeaderName, ORIGIN, USER_AGENT};
use http::{HeaderMap, HeaderValue};
use serde_json::{Value, json};

use crate::id::{Digest, canonical_uuid};
use crate::json;
use crate::keys::Keys;
use crate::refusal::{Code, Refusal};

/// The longest `Authorization` header that is read, in bytes.
const MAX_AUTHORIZATION: usize = 8 * 1024;
/// The longest text of a claim that is recorded, in characters.
const MAX_CLAIM: usize = 128;
/// What the upstream cuts off an `Authorization` header, whatever stands there.
const SCHEME_LENGTH: usize = "Bearer ".len();
const X_INFISICAL_ORG: HeaderName = HeaderName::from_static("x-infisical-org");
const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Everything that crosses from a client's governed request to the upstream, `Authorization` apart.
const CROSSING: [HeaderName; 7] = [
    X_INFISICAL_ORG,
    USER_AGENT,
    ORIGIN,
    COOKIE,
    TRACEPARENT,
    HeaderName::from_static("tracestate"),
    HeaderName::from_static("x-request-id"),
];

/// Who a request says it comes from.
#[derive(Clone, Debug)]
pub struct Caller {
    kind: &'static str,
    id: Option<String>,
    name: Option<String>,
    fingerprint: Option<Digest>,
    crossing: HeaderMap,
}

impl Caller {
    /// A request that shows no token: watched writes are recorded whoever sends them.
    pub fn unknown() -> Self {
        Self { kind: "unknown", id: None, name: None, fingerprint: None, crossing: HeaderMap::new() }
    }

    /// `{"kind", "id", "name", "token_fingerprint"}` as the record holds it.
    pub fn record(&self) -> Value {
        json!({"kind": self.kind, "id": self.id, "name": self.name, "token_fingerprint": self.fingerprint})
    }

    /// The claimed id, for log lines.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// What tells callers apart while they wait.
    pub fn fingerprint(&self) -> Option<&Digest> {
        self.fingerprint.as_ref()
    }

    /// The headers that cross, `Authorization` rewritten to its one spelling.
    pub fn crossing(&self) -> &HeaderMap {
        &self.crossing
    }
}

/// Reads the caller of a governed request.
pub fn read(headers: &HeaderMap, keys: &Keys) -> Result<Caller, Refusal> {
    if headers.contains_key(X_API_KEY) {
        let detail =
            "`X-Api-Key` is not a credential the guarded API takes; send `Authorization: Bearer <token>`";
        return Err(Refusal::new(Code::CallerMissingToken, detail));
    }
    let token = bearer(only(headers, &AUTHORIZATION)?)?;
    let mut crossing = HeaderMap::new();
    for name in &CROSSING {
        if let Some(value) = only(headers, name)? {
            crossing.insert(name, value.clone());
        }
    }
    let mut authorization = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| unreadable())?;
    authorization.set_sensitive(true);
    crossing.insert(AUTHORIZATION, authorization);
    Ok(Caller { crossing, ..claimed(token, keys) })
}

/// Reads the caller of a watched request, which is forwarded whoever sends it: the first `Authorization` from its eighth
/// character on, whatever the scheme, as the upstream does.
pub fn peek(headers: &HeaderMap, keys: &Keys) -> Caller {
    let text = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = text.and_then(|text| text.get(SCHEME_LENGTH..)).map(str::trim);
    token.filter(|token| !token.is_empty()).map_or_else(Caller::unknown, |token| claimed(token, keys))
}

/// The sub-organisation a request selects, as sent.
pub fn organization(headers: &HeaderMap) -> Option<String> {
    short_text(headers.get(X_INFISICAL_ORG))
}

/// The user agent, as sent, cut.
pub fn user_agent(headers: &HeaderMap) -> Option<String> {
    short_text(headers.get(USER_AGENT))
}

/// The trace id of a W3C `traceparent`.
pub fn trace_id(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(TRACEPARENT)?.to_str().ok()?;
    let id = text.split('-').nth(1)?;
    (id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())).then(|| id.to_owned())
}

fn short_text(value: Option<&HeaderValue>) -> Option<String> {
    value.and_then(|value| value.to_str().ok()).map(|text| text.chars().take(MAX_CLAIM).collect())
}

fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<Option<&'h HeaderValue>, Refusal> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() {
        let detail = format!("`{name}` was sent more than once; send it once");
        return Err(Refusal::new(Code::CallerAmbiguous, detail));
    }
    Ok(first)
}

fn unreadable() -> Refusal {
    let detail = "A change needs `Authorization: Bearer <token>` with a token of visible ASCII characters";
    Refusal::new(Code::CallerMissingToken, detail)
}

/// The token of `Bearer <token>`: scheme without case, exactly one space, no blank in the token.
fn bearer(value: Option<&HeaderValue>) -> Result<&str, Refusal> {
    let text = value.and_then(|value| value.to_str().ok()).filter(|text| text.len() <= MAX_AUTHORIZATION);
    let (scheme, token) = text.and_then(|text| text.split_once(' ')).ok_or_else(unreadable)?;
    let visible = !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic());
    if scheme.eq_ignore_ascii_case("bearer") && visible { Ok(token) } else { Err(unreadable()) }
}

fn claimed(token: &str, keys: &Keys) -> Caller {
    let (kind, id, name) = who(token);
    let fingerprint = Some(keys.fingerprint("token", token.as_bytes()));
    Caller { kind, id, name, fingerprint, crossing: HeaderMap::new() }
}

/// Kind, id and name as the token claims them.
fn who(token: &str) -> (&'static str, Option<String>, Option<String>) {
    if let Some(rest) = token.strip_prefix("st.") {
        let id = rest.split('.').next().filter(|id| canonical_uuid(id).is_some());
        return ("service_token", id.map(str::to_owned), None);
    }
    let Some(claims) = claims(token) else { return ("unknown", None, None) };
    let text = |claim: &str| {
        let text = claims.get(claim)?.as_str()?;
        let plain = !text.is_empty() && !text.chars().any(char::is_control);
        plain.then(|| text.chars().take(MAX_CLAIM).collect::<String>())
    };
    match claims.get("authTokenType").and_then(Value::as_str) {
        Some("accessToken") => ("user", text("userId"), None),
        Some("identityAccessToken") => ("identity", text("identityId"), text("identityName")),
        _ => ("unknown", None, None),
    }
}

fn claims(token: &str) -> Option<Value> {
    let mut parts = token.split('.');
    let (_, payload, _, None) = (parts.next()?, parts.next()?, parts.next()?, parts.next()) else {
        return None;
    };
    json::value(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(n, v)| (n.parse::<HeaderName>().unwrap(), HeaderValue::from_str(v).unwrap()))
            .collect()
    }

    fn jwt(claims: &Value) -> String {
        format!("e30.{}.sig", URL_SAFE_NO_PAD.encode(claims.to_string()))
    }

    #[test]
    fn every_kind_of_token_is_told_apart() {
        let id = "0b9c3a52-7d3f-4f7e-9a43-0c8f3f1d2e4a";
        let keys = Keys::ephemeral();
        for (token, kind, who, name) in [
            (jwt(&json!({"authTokenType": "accessToken", "userId": "u1"})), "user", json!("u1"), json!(null)),
            (
                jwt(&json!({"authTokenType": "identityAccessToken", "identityId": id})),
                "identity",
                json!(id),
                json!(null),
            ),
            (
                jwt(&json!({"authTokenType": "identityAccessToken", "identityId": id, "identityName": "ci"})),
                "identity",
                json!(id),
                json!("ci"),
            ),
            (format!("st.{id}.secret.more"), "service_token", json!(id), json!(null)),
            ("opaque".to_owned(), "unknown", json!(null), json!(null)),
            (
                jwt(&json!({"authTokenType": "accessToken", "userId": "a\u{1b}[2J"})),
                "user",
                json!(null),
                json!(null),
            ),
        ] {
            let caller = read(&headers(&[("authorization", &format!("bEaReR {token}"))]), &keys).unwrap();
            let record = caller.record();
            assert_eq!((&record["kind"], &record["id"], &record["name"]), (&json!(kind), &who, &name));
            assert_eq!(caller.crossing()[AUTHORIZATION], format!("Bearer {token}"));
            assert!(!format!("{caller:?}").contains(&token), "the token is never printed");
        }
    }

    #[test]
    fn the_caller_of_a_watched_request_is_read_as_the_upstream_reads_it() {
        let token = jwt(&json!({"authTokenType": "accessToken", "userId": "u1"}));
        let keys = Keys::ephemeral();
        let fingerprint = Some(keys.fingerprint("token", token.as_bytes()));
        for scheme in ["Bearer ", "Xxxxxx ", "1234567"] {
            let caller = peek(&headers(&[("authorization", &format!("{scheme}{token}"))]), &keys);
            assert_eq!((caller.id(), caller.fingerprint()), (Some("u1"), fingerprint.as_ref()), "{scheme}");
        }
        assert_eq!(peek(&headers(&[("authorization", "Bearer ")]), &keys).fingerprint(), None);
    }

    #[test]
    fn what_is_no_bearer_token_is_refused() {
        for lines in [
            &[][..],
            &[("authorization", "Basic abc")],
            &[("authorization", "Bearer")],
            &[("authorization", "Bearer ")],
            &[("authorization", "Bearer  two")],
            &[("authorization", "Bearer a b")],
            &[("authorization", "Bearer a"), ("x-api-key", "k")],
        ] {
            let refusal = read(&headers(lines), &Keys::ephemeral()).unwrap_err();
            assert_eq!(refusal.code, Code::CallerMissingToken, "{lines:?}");
        }
        for name in ["authorization", "x-infisical-org", "cookie", "origin", "user-agent", "x-request-id"] {
            let twice = headers(&[("authorization", "Bearer a"), (name, "b"), (name, "c")]);
            assert_eq!(read(&twice, &Keys::ephemeral()).unwrap_err().code, Code::CallerAmbiguous, "{name}");
        }
    }

    #[test]
    fn only_the_listed_headers_cross() {
        let sent = headers(&[
            ("authorization", "Bearer a"),
            ("x-infisical-org", "sub"),
            ("if-none-match", "x"),
            ("x-http-method-override", "GET"),
            ("accept-encoding", "gzip"),
        ]);
        let caller = read(&sent, &Keys::ephemeral()).unwrap();
        let names: Vec<_> = caller.crossing().keys().map(HeaderName::as_str).collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }
}
