//! Whatever an `Authorization` header holds, reading it does not panic, and nothing of the token is recorded that is not
//! a claim made to be recorded.

use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{AUTHORIZATION, USER_AGENT};
use http::{HeaderMap, HeaderValue};
use patchwarden::caller::{self, Caller};
use patchwarden::keys::Keys;
use serde_json::Value;

/// So much of a token must not be found in a record.
const WINDOW: usize = 12;
const HEADER: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9";
const SIGNATURE: &str = "dGhpcyBzaWduYXR1cmUgbXVzdCBub3QgYmUgZm91bmQgYW55d2hlcmU";

/// Any bytes as a header, as a token, and as the claims of a token.
pub fn claims(bytes: &[u8]) {
    header(bytes);
    header(&[b"Bearer ", bytes].concat());
    header(format!("Bearer {HEADER}.{}.{SIGNATURE}", URL_SAFE_NO_PAD.encode(bytes)).as_bytes());
}

fn header(value: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(value) else { return };
    let headers = HeaderMap::from_iter([(AUTHORIZATION, value.clone()), (USER_AGENT, value.clone())]);
    let peeked = caller::peek(&headers, keys());
    // Where nothing depends on it, a caller is read as loosely as the upstream does.
    if let Ok(read) = caller::read(&headers, keys()) {
        assert_eq!(read.record(), peeked.record());
    }
    assert!(caller::user_agent(&headers).is_none_or(|text| text.chars().count() <= 128));
    let text = value.to_str().unwrap_or_default();
    let Some(token) = text.get("Bearer ".len()..) else { return };
    keeps_quiet(&peeked, token.trim());
}

/// The record has its four members, and in their values nothing of the token but what it claims.
fn keeps_quiet(caller: &Caller, token: &str) {
    let record = caller.record();
    let members = record.as_object().expect("an object");
    assert_eq!(members.keys().collect::<Vec<_>>(), ["id", "kind", "name", "token_fingerprint"]);
    let kinds = ["user", "identity", "service_token", "unknown"];
    assert!(members["kind"].as_str().is_some_and(|kind| kinds.contains(&kind)), "{record}");
    let text = |name: &str| members[name].as_str().unwrap_or_default();
    let fingerprint = text("token_fingerprint").trim_start_matches("hmac-sha256:");
    let recorded = [text("id"), text("name"), fingerprint].join("\n");
    let claimed = claimed(token);
    for window in token.as_bytes().windows(WINDOW) {
        let window = String::from_utf8_lossy(window);
        let is_told = recorded.contains(&*window) && !claimed.contains(&*window);
        assert!(!is_told, "{window:?} of the token stands in {record}");
    }
    let printed = format!("{caller:?}");
    assert!(!printed.contains(SIGNATURE) || claimed.contains(SIGNATURE), "{printed}");
}

/// What a token says in the open: the claims that are recorded, the id of a service token.
fn claimed(token: &str) -> String {
    if let Some(rest) = token.strip_prefix("st.") {
        return rest.split('.').next().unwrap_or_default().to_owned();
    }
    let payload = token.split('.').nth(1).and_then(|payload| URL_SAFE_NO_PAD.decode(payload).ok());
    let claims: Value = payload.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    let text = |claim: &str| claims.get(claim).and_then(Value::as_str).unwrap_or_default().to_owned();
    ["userId", "identityId", "identityName"].map(text).join("\n")
}

fn keys() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    KEYS.get_or_init(Keys::ephemeral)
}
