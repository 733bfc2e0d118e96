//! Every answer: the upstream's own, and a [`Refusal`] as problem JSON.
//!
//! A refusal becomes RFC 9457 problem JSON that also carries the members Infisical's clients read: Terraform and the
//! web page show `message` and nothing else, so it names every violation in one line with what would pass, and says
//! whether anything was changed. The upstream's answer goes out as it came, plus `patchwarden-*` headers. Nothing here
//! can fail: what comes from outside is cut, replaced or left out.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::Serialize;
use serde_json::{Value, json};

use crate::id::ChangeId;
use crate::refusal::{Code, Finding, From, Refusal};
use crate::upstream::{Answer, Body};

/// What the gateway's port answers with.
pub type Response = http::Response<Body>;

/// The change's id, on every governed and watched answer.
pub const CHANGE: HeaderName = HeaderName::from_static("patchwarden-change");
/// `gateway` or `upstream`.
pub const ANSWERED_BY: HeaderName = HeaderName::from_static("patchwarden-answered-by");
/// `pending` when the outcome could not be written yet.
pub const RECORD: HeaderName = HeaderName::from_static("patchwarden-record");
/// `rule-id: text`.
pub const WARNING: HeaderName = HeaderName::from_static("patchwarden-warning");

/// Names, since a wildcard means nothing on an answer with credentials.
const EXPOSED: &str =
    "patchwarden-change, patchwarden-answered-by, patchwarden-record, patchwarden-warning, retry-after";
/// Longest `detail`, in characters.
const MAX_DETAIL: usize = 1000;
const MAX_WARNINGS: usize = 8;
/// Longest warning, in bytes of ASCII.
const MAX_WARNING: usize = 256;

/// Who made an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the header's values")]
pub enum AnsweredBy {
    Gateway,
    Upstream,
}

/// RFC 9457 with the members of Infisical's errors.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Problem<'r> {
    r#type: String,
    title: &'static str,
    status: u16,
    code: &'static str,
    detail: &'r str,
    message: Value,
    error: &'static str,
    status_code: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    req_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<String>,
    violations: Vec<Violation<'r>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<&'r Value>,
}

/// A [`Finding`] as clients see it: what does not apply is left out.
#[derive(Serialize)]
struct Violation<'r> {
    rule: &'r str,
    pointer: &'r str,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<From>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_pointer: Option<&'r str>,
    value: &'r Value,
    limit: &'r Value,
    message: &'r str,
    help: &'r str,
}

impl<'r> Violation<'r> {
    fn of(finding: &'r Finding) -> Self {
        Self {
            rule: &finding.rule,
            pointer: &finding.pointer,
            from: finding.from,
            request_pointer: finding.request_pointer.as_deref(),
            value: &finding.value,
            limit: &finding.limit,
            message: &finding.message,
            help: &finding.help,
        }
    }
}

/// A "no" as problem JSON. `change` is the record of it, where there is one; `origin` is the request's `Origin`.
pub fn refusal(refusal: &Refusal, change: Option<&ChangeId>, origin: Option<&HeaderValue>) -> Response {
    let code = refusal.code;
    let detail = detail(refusal);
    let problem = Problem {
        r#type: format!("urn:patchwarden:refusal:{code}"),
        title: code.title(),
        status: code.status(),
        code: code.as_str(),
        message: if code.status() == 422 { issues(refusal) } else { Value::from(detail.as_str()) },
        detail: &detail,
        error: code.upstream_error_name(),
        status_code: code.status(),
        req_id: change.map(ChangeId::to_string),
        instance: change.map(|change| format!("urn:uuid:{change}")),
        violations: refusal.findings.iter().map(Violation::of).collect(),
        fix: refusal.fix.as_ref(),
    };
    // Plain strings, numbers and values: serialising them does not fail.
    let body = serde_json::to_vec(&problem).unwrap_or_default();
    let mut response = problem_json(code.status(), body, origin);
    let headers = response.headers_mut();
    if let Some(change) = change {
        stamp(headers, change, AnsweredBy::Gateway);
    }
    if let Some(seconds) = refusal.retry_after {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// What is answered when handling a request came to an unexpected end: says no more than is known.
pub fn failed(change: Option<&ChangeId>, origin: Option<&HeaderValue>) -> Response {
    let detail = "The gateway failed while handling this request. The outcome is unknown: if it was forwarded, it may have been carried out.";
    let body = json!({
        "type": "about:blank", "title": "Internal Server Error", "status": 500, "detail": detail,
        "message": detail, "error": "GatewayError", "statusCode": 500, "violations": [],
    });
    let mut response = problem_json(500, body.to_string().into_bytes(), origin);
    if let Some(change) = change {
        stamp(response.headers_mut(), change, AnsweredBy::Gateway);
    }
    response
}

/// An answer of the protocol layer: a status and nothing else.
pub fn bare(status: StatusCode) -> Response {
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = status;
    response
}

/// The upstream's complete answer, unchanged, with the gateway's headers.
pub fn answered(
    answer: Answer,
    change: &ChangeId,
    warnings: &WarningHeaders,
    record_pending: bool,
) -> Response {
    let mut response = Response::new(Body::from_bytes(answer.body));
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    let headers = response.headers_mut();
    // Written anew from the body's length.
    headers.remove(header::CONTENT_LENGTH);
    stamp(headers, change, AnsweredBy::Upstream);
    warnings.write(headers);
    if record_pending {
        mark_pending(headers);
    }
    response
}

/// Says which change an answer belongs to and who made it; for a streamed answer too.
pub fn stamp(headers: &mut HeaderMap, change: &ChangeId, by: AnsweredBy) {
    // The text of a UUID is always a valid value.
    if let Ok(change) = HeaderValue::try_from(change.to_string()) {
        headers.insert(CHANGE, change);
    }
    let by = match by {
        AnsweredBy::Gateway => "gateway",
        AnsweredBy::Upstream => "upstream",
    };
    headers.insert(ANSWERED_BY, HeaderValue::from_static(by));
}

/// Says that the outcome could not be written yet.
pub fn mark_pending(headers: &mut HeaderMap) {
    headers.insert(RECORD, HeaderValue::from_static("pending"));
}

/// Warnings as header values, built before the intent so that nothing can fail after it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WarningHeaders(Vec<HeaderValue>);

impl WarningHeaders {
    /// From findings.
    pub fn of_findings(findings: &[Finding]) -> Self {
        let pairs: Vec<_> = findings.iter().map(|w| (w.rule.as_str(), w.message.as_str())).collect();
        Self::of(&pairs)
    }

    /// From pairs of rule id and text. When there are more than eight, the last says how many more.
    pub fn of(warnings: &[(&str, &str)]) -> Self {
        let shown = if warnings.len() > MAX_WARNINGS { MAX_WARNINGS - 1 } else { warnings.len() };
        let mut lines: Vec<String> =
            warnings.iter().take(shown).map(|(rule, text)| format!("{rule}: {text}")).collect();
        if warnings.len() > shown {
            lines.push(format!("patchwarden: {} more warnings in the record", warnings.len() - shown));
        }
        Self(lines.iter().filter_map(|line| HeaderValue::try_from(visible_ascii(line)).ok()).collect())
    }

    /// With what was found after the change.
    pub fn and(mut self, breach: &[Finding]) -> Self {
        let lines =
            breach.iter().map(|finding| format!("{}: {} (after the change)", finding.rule, finding.message));
        self.0.extend(lines.filter_map(|line| HeaderValue::try_from(visible_ascii(&line)).ok()));
        self
    }

    /// Writes them, one line each.
    pub fn write(&self, headers: &mut HeaderMap) {
        for value in &self.0 {
            headers.append(WARNING, value.clone());
        }
    }
}

fn visible_ascii(text: &str) -> String {
    let mut line: String = text.chars().map(|c| if matches!(c, ' '..='~') { c } else { '?' }).collect();
    if line.len() > MAX_WARNING {
        line.truncate(MAX_WARNING - 3);
        line.push_str("...");
    }
    line
}

fn problem_json(status: u16, body: Vec<u8>, origin: Option<&HeaderValue>) -> Response {
    let mut response = Response::new(Body::from_bytes(Bytes::from(body)));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::VARY, HeaderValue::from_static("origin"));
    headers.insert(ANSWERED_BY, HeaderValue::from_static("gateway"));
    if status == 401 {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
    }
    response
}

/// Everything that is wrong in one line of at most a thousand characters. Naming every violation comes before
/// explaining them: when both do not fit, the help goes first.
fn detail(refusal: &Refusal) -> String {
    let ending = match refusal.code {
        Code::UpstreamTimeout | Code::UpstreamBroken => {
            "The outcome is unknown: the request may have been carried out."
        }
        _ => "Nothing was changed.",
    };
    let opening = one_line(&refusal.detail);
    let opening = opening.trim_end_matches('.');
    let room = MAX_DETAIL - ending.len() - 1;
    let findings = &refusal.findings;
    if findings.is_empty() {
        return format!("{}. {ending}", cut(opening, room - 1));
    }
    let full: Vec<String> = numbered(findings, explained);
    let brief: Vec<String> = numbered(findings, |finding| sentence(&finding.message).into_owned());
    for items in [&full, &brief] {
        let text = format!("{opening}: {}", items.join(" "));
        if text.chars().count() <= room {
            return format!("{text} {ending}");
        }
    }
    let opening = cut(opening, room / 4);
    let more = |left: usize| format!(" … and {left} more, see `violations`.");
    let mut room = room - opening.chars().count() - 1 - more(findings.len()).chars().count();
    let mut text = format!("{opening}:");
    let mut shown = 0;
    for item in &brief {
        let needed = item.chars().count() + 1;
        if needed > room {
            break;
        }
        text.push(' ');
        text.push_str(item);
        room -= needed;
        shown += 1;
    }
    if shown == 0 {
        text.push(' ');
        text.push_str(&cut(&brief[0], room - 1));
        shown = 1;
    }
    if findings.len() > shown {
        text.push_str(&more(findings.len() - shown));
    }
    format!("{text} {ending}")
}

fn numbered(findings: &[Finding], say: impl Fn(&Finding) -> String) -> Vec<String> {
    findings.iter().enumerate().map(|(at, finding)| format!("({}) {}.", at + 1, say(finding))).collect()
}

/// What is wrong and what would pass.
fn explained(finding: &Finding) -> String {
    let message = sentence(&finding.message);
    let help = sentence(&finding.help);
    if help.is_empty() { message.into_owned() } else { format!("{message}; {help}") }
}

fn sentence(text: &str) -> Cow<'_, str> {
    let line = one_line(text);
    match line.trim_end_matches('.').len() {
        whole if whole == line.len() => line,
        stop => Cow::Owned(line[..stop].to_owned()),
    }
}

fn one_line(text: &str) -> Cow<'_, str> {
    if text.contains(|c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')) {
        let spaced = text.replace(|c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}'), " ");
        Cow::Owned(spaced.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" "))
    } else {
        Cow::Borrowed(text)
    }
}

/// The text, or as many whole words of it as fit in `room` characters with an ellipsis.
fn cut(text: &str, room: usize) -> Cow<'_, str> {
    let Some((end, _)) = text.char_indices().nth(room) else { return Cow::Borrowed(text) };
    let end = text[..end].char_indices().next_back().map_or(0, |(last, _)| last);
    let fits = &text[..end];
    let words = fits.rfind(' ').filter(|at| *at > end / 2).map_or(fits, |at| &fits[..at]);
    Cow::Owned(format!("{words}…"))
}

/// The upstream's own shape of a 422: its web page maps over a list.
fn issues(refusal: &Refusal) -> Value {
    let issue =
        |path: Vec<Value>, message: String| json!({"path": path, "message": message, "code": "custom"});
    if refusal.findings.is_empty() {
        return Value::Array(vec![issue(Vec::new(), detail(refusal))]);
    }
    let of = |finding: &Finding| {
        let pointer = finding.request_pointer.as_ref().unwrap_or(&finding.pointer);
        issue(pointer.split('/').skip(1).map(segment).collect(), explained(finding))
    };
    Value::Array(refusal.findings.iter().map(of).collect())
}

/// A part of a JSON pointer as zod writes it: an index is a number.
fn segment(text: &str) -> Value {
    let index = text == "0" || (!text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit()));
    match text.parse::<u64>() {
        Ok(number) if index => Value::from(number),
        _ => Value::from(text.replace("~1", "/").replace("~0", "~")),
    }
}

#[cfg(test)]
mod tests;
