//! A change as people read it: a row, a page, a CSV line.
//!
//! In comes a change as the API gives it; out comes text. What a client, a token or the upstream wrote can hold anything,
//! so every control character and every character that turns the direction of text is made visible: nothing recorded
//! can steer the terminal it is shown on. A member that is missing or of an unexpected type is shown as `-` or left
//! out; nothing here fails.

mod html;
mod page;
mod table;

use std::borrow::Cow;

use serde_json::{Map, Value};

use crate::clock::Time;
use crate::units::lifetime_text;

pub use html::{escaped, html};
pub use page::page;
pub use table::{COLUMNS, CSV_HEADER, cell, csv, row, table};

/// How much of a keyed digest tells two secrets apart for a reader: the label and 12 hex digits.
const DIGEST_SHOWN: usize = 12;

/// The text with everything that could steer a terminal written out as `\u{1b}`.
pub fn visible(text: &str) -> Cow<'_, str> {
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if steers(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// Control characters, line and paragraph separators, marks of direction, characters without width.
fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}' | '\u{61c}')
}

/// A time of a change for tables: local with offset, or UTC.
pub fn moment(value: &Value, utc: bool) -> String {
    let text = value.as_str().unwrap_or("-");
    match Time::parse(text) {
        Some(at) => time(at, utc),
        None => visible(text).into_owned(),
    }
}

/// `2026-11-23 07:20:01+01:00`, or `2026-11-23 06:20:01Z`.
pub fn time(at: Time, utc: bool) -> String {
    if !utc {
        return at.local();
    }
    let text = at.to_string();
    match text.get(..19) {
        Some(seconds) => format!("{}Z", seconds.replace('T', " ")),
        None => text,
    }
}

/// A member as text, made visible; nothing when it is null, empty or missing.
fn said<'c>(change: &'c Value, pointer: &str) -> Option<Cow<'c, str>> {
    match change.pointer(pointer)? {
        Value::Null => None,
        Value::String(text) if text.is_empty() => None,
        Value::String(text) => Some(visible(text)),
        other => Some(Cow::Owned(visible(&other.to_string()).into_owned())),
    }
}

fn or_dash<'c>(change: &'c Value, pointer: &str) -> Cow<'c, str> {
    said(change, pointer).unwrap_or(Cow::Borrowed("-"))
}

/// What became of it, in a word or two: the outcome of what was allowed, else the decision.
fn result(change: &Value) -> String {
    let decision = or_dash(change, "/decision");
    let mut text = if decision == "allow" {
        let outcome = or_dash(change, "/outcome");
        match said(change, "/settlement/result") {
            Some(settled) => format!("{outcome}, settled {settled}"),
            None => outcome.into_owned(),
        }
    } else {
        decision.into_owned()
    };
    if let Some(would) = said(change, "/would") {
        text = format!("{text}, would {would}");
    }
    text
}

/// A value of a field for people: lifetimes with their length in words, secrets as a short fingerprint.
fn field_text(name: &str, value: &Value) -> String {
    match value {
        Value::Null => "(none)".to_owned(),
        Value::Number(number) => match number.as_u64() {
            Some(seconds) if name.ends_with("TTL") => format!("{seconds} ({})", lifetime_text(seconds)),
            _ => number.to_string(),
        },
        Value::String(text) if text.is_empty() => "\"\"".to_owned(),
        Value::String(text) => visible(text).into_owned(),
        Value::Array(items) if items.is_empty() => "[]".to_owned(),
        Value::Object(members) => match members.get("secret").and_then(Value::as_str) {
            Some(digest) if members.len() == 1 => secret(digest),
            _ => visible(&value.to_string()).into_owned(),
        },
        Value::Array(_) | Value::Bool(_) => visible(&value.to_string()).into_owned(),
    }
}

fn secret(text: &str) -> String {
    format!("secret {}", digest(text))
}

/// `sha256:0123456789ab…`
fn digest(text: &str) -> String {
    let label = text.find(':').map_or(0, |colon| colon + 1);
    let short: String = text.chars().take(label + DIGEST_SHOWN).collect();
    format!("{}…", visible(&short))
}

/// What an entry about the gateway says, in one line; its form and the time that stands beside it are left out.
pub fn in_one_line(members: &Map<String, Value>) -> String {
    let one = |(name, value): (&String, &Value)| {
        let text = match value {
            Value::Null => return None,
            Value::String(text) if is_digest(text) => digest(text),
            Value::String(text) => visible(text).into_owned(),
            other => visible(&other.to_string()).into_owned(),
        };
        Some(format!("{} {text}", visible(name)))
    };
    let told = members.iter().filter(|(name, _)| !matches!(name.as_str(), "v" | "at"));
    told.filter_map(one).collect::<Vec<_>>().join(", ")
}

fn is_digest(text: &str) -> bool {
    let hex = text.rsplit(':').next().unwrap_or(text);
    hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests;
