//! Step 3: what was sent.
//!
//! Reads a governed request's body within its limits of size and time. In comes the stream, out goes a [`Received`]:
//! one strict JSON object and a keyed digest of the bytes. Refuses any media type but exactly one `application/json`,
//! any content coding, and whatever two JSON readers could understand differently. A removal's body is read and dropped.

use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http_body::Body as _;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;

use crate::id::Digest;
use crate::json::{self, Document, Fault};
use crate::keys::Keys;
use crate::operation::Write;
use crate::refusal::{Code, Finding, Refusal};

/// What a body is read within.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes.
    pub bytes: usize,
    /// Until all of it is there.
    pub time: Duration,
    /// Of the document.
    pub json: json::Bounds,
}

/// A body that was read whole.
#[derive(Debug)]
pub struct Received {
    /// The object; `None` for a removal.
    pub document: Option<Document>,
    /// Keyed digest of the bytes, when there were any.
    pub digest: Option<Digest>,
    /// Their number.
    pub length: u64,
}

/// What went wrong, with what may be recorded of a body that never became a document.
#[derive(Debug)]
pub struct Unread {
    /// The answer.
    pub refusal: Refusal,
    /// Keyed digest and length of the bytes, when all of them were read.
    pub seen: Option<(Digest, u64)>,
}

impl From<Refusal> for Unread {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, seen: None }
    }
}

/// Reads the body of a governed request.
pub async fn read(
    headers: &HeaderMap,
    body: Incoming,
    write: Write,
    within: Bounds,
    keys: &Keys,
) -> Result<Received, Unread> {
    if write == Write::Remove && body.is_end_stream() {
        return Ok(Received { document: None, digest: None, length: 0 });
    }
    media_type(headers)?;
    let bytes = collect(body, within.bytes, within.time).await?;
    let digest = keys.fingerprint("body", &bytes);
    let length = bytes.len() as u64;
    if write == Write::Remove {
        return Ok(Received { document: None, digest: Some(digest), length });
    }
    match Document::read_within(&bytes, within.json) {
        Ok(document) => Ok(Received { document: Some(document), digest: Some(digest), length }),
        Err(fault) => Err(Unread { refusal: refuse(fault), seen: Some((digest, length)) }),
    }
}

/// Reads and forgets what is left of a refused request's body, up to a limit, so that the client gets its answer.
pub async fn drain(body: Incoming, at_most: usize, within: Duration) {
    let _ = tokio::time::timeout(within, Limited::new(body, at_most).collect()).await;
}

/// All bytes of a body.
pub async fn collect(body: Incoming, at_most: usize, within: Duration) -> Result<Bytes, Refusal> {
    let too_large = || {
        let detail = format!("The body is larger than {at_most} bytes (`limits.body`)");
        Refusal::new(Code::BodyTooLarge, detail)
    };
    if body.size_hint().lower() > at_most as u64 {
        return Err(too_large());
    }
    match tokio::time::timeout(within, Limited::new(body, at_most).collect()).await {
        Ok(Ok(read)) => Ok(read.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => Err(Refusal::new(Code::BodyMalformed, "The body was cut").because(error)),
        Err(_) => {
            let detail =
                format!("The body did not arrive within {} s (`limits.body_read`)", within.as_secs());
            Err(Refusal::new(Code::BodyMalformed, detail))
        }
    }
}

/// A body that is one strict JSON object, and says so.
pub fn plain(headers: &HeaderMap, bytes: &[u8]) -> Option<Document> {
    media_type(headers).ok().and_then(|()| Document::read(bytes).ok())
}

/// Exactly one `Content-Type: application/json`, charset absent or utf-8, and no content coding.
fn media_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let refuse = |detail: &str| Err(Refusal::new(Code::BodyMediaType, detail));
    if headers.contains_key(CONTENT_ENCODING) {
        return refuse("A body with a `Content-Encoding` is not taken here; send it plain");
    }
    let mut values = headers.get_all(CONTENT_TYPE).iter();
    let one = match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().unwrap_or(""),
        _ => return refuse("Send exactly one `Content-Type: application/json`"),
    };
    if is_plain_json(one) {
        Ok(())
    } else {
        refuse("Send `Content-Type: application/json`, charset absent or utf-8")
    }
}

fn is_plain_json(value: &str) -> bool {
    let mut parts = value.split(';').map(|part| part.trim_matches([' ', '\t']));
    let essence = parts.next().unwrap_or("");
    let charset_utf8 = |part: &str| {
        part.split_once('=').is_some_and(|(name, value)| {
            let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
            name.eq_ignore_ascii_case("charset") && value.eq_ignore_ascii_case("utf-8")
        })
    };
    let parameters: Vec<_> = parts.collect();
    essence.eq_ignore_ascii_case("application/json")
        && parameters.len() <= 1
        && parameters.into_iter().all(charset_utf8)
}

fn refuse(fault: Fault) -> Refusal {
    let at = |code, pointer: String, what: &str, help: &str| {
        let message = format!("{pointer} {what}");
        let finding = Finding {
            rule: "body".to_owned(),
            pointer: pointer.clone(),
            from: Some(crate::refusal::From::Request),
            request_pointer: Some(pointer),
            value: serde_json::Value::Null,
            limit: serde_json::Value::Null,
            message,
            help: help.to_owned(),
        };
        Refusal::new(code, "The body is not one strict JSON object").with_findings(vec![finding])
    };
    match fault {
        Fault::Malformed(what) => {
            let detail = format!(
                "The body is not one strict JSON object: {what}; send one object in UTF-8, without a byte order mark"
            );
            Refusal::new(Code::BodyMalformed, detail)
        }
        Fault::DuplicateKey(pointer) => at(
            Code::BodyDuplicateKey,
            pointer,
            "stands twice, which readers understand differently",
            "send each key once",
        ),
        Fault::ForbiddenKey(pointer) => at(
            Code::BodyForbiddenKey,
            pointer,
            "is a key with a meaning of its own in JavaScript",
            "leave it out",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_media_type_is_taken() {
        for (value, taken) in [
            ("application/json", true),
            ("APPLICATION/JSON", true),
            ("application/json; charset=utf-8", true),
            ("application/json;charset=\"UTF-8\"", true),
            ("application/json; charset=latin1", false),
            ("application/json; charset=utf-8; charset=utf-8", false),
            ("application/json;", false),
            ("application/json; q=1", false),
            ("application/jsonp", false),
            ("application/json5", false),
            ("application/json-patch+json", false),
            ("x-application/json", false),
            ("application/scim+json", false),
            ("application/x-www-form-urlencoded", false),
            ("text/plain", false),
            ("application/json, application/json", false),
            ("", false),
        ] {
            assert_eq!(is_plain_json(value), taken, "{value}");
        }
    }
}
