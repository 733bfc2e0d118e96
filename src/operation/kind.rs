//! What a kind of field means: everything about it, in one place.
//!
//! A [`Kind`] reads the shape a request has and the shape an answer has, brings both into one typed normal form (a
//! [`Field`]), writes the request's shape from it, says whether a new value is more permissive than an old one, and
//! how it is recorded and shown. Rules, diffs, fixes, surprises and drift see only `Field`s. The upstream's own
//! tidying is imitated exactly where it decides what is stored; wherever it is lax, a value becomes unreadable.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;

use crate::network::{Range, Union};
use crate::units::lifetime_text;

use super::field::{Entry, Field, recalled};
use super::secret;

/// The kind of a field, as object files name it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Text, trimmed as JavaScript does.
    Text,
    /// A URL, trimmed.
    Url,
    /// A comma list of patterns.
    Patterns,
    /// An object of comma lists.
    Claims,
    /// A list of public keys, which the upstream joins and splits at commas.
    Keys,
    /// A list of trusted address ranges.
    Ranges,
    /// Seconds; 0 is no limit and longest.
    Lifetime,
    /// A number of uses; 0 is no limit.
    Count,
    /// One of the field's `choices`.
    Choice,
}

/// Whose shape a value has. It belongs to the side, never to the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// What a client sends.
    Request,
    /// What the upstream answers.
    Answer,
}

/// Why a value does not fit its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    /// JSON pointer below the field.
    pub below: String,
    /// What was expected.
    pub message: String,
}

impl Misfit {
    fn new(message: impl Into<String>) -> Self {
        Self { below: String::new(), message: message.into() }
    }

    fn at(index: usize, rest: &str, message: impl Into<String>) -> Self {
        Self { below: format!("/{index}{rest}"), message: message.into() }
    }
}

impl Kind {
    /// Reads a value into normal form.
    pub fn read(&self, side: Side, value: &Value, choices: &[String]) -> Result<Field, Misfit> {
        match self {
            Self::Text | Self::Url => text(value).map(|t| Field::Text(js_trim(t).to_owned())),
            Self::Patterns => text(value).map(|t| Field::Text(tidy_patterns(t))),
            Self::Claims => claims(value).map(Field::Claims),
            Self::Keys => keys(value).map(Field::Keys),
            Self::Ranges => ranges(side, value).map(Field::Ranges),
            Self::Lifetime | Self::Count => number(value).map(Field::Number),
            Self::Choice => {
                let text = text(value)?;
                if choices.iter().any(|choice| choice == text) {
                    Ok(Field::Text(text.to_owned()))
                } else {
                    Err(Misfit::new(format!("must be one of: {}", choices.join(", "))))
                }
            }
        }
    }

    /// Reads back what [`Field::recorded`] wrote; `None` where a digest stands for the value.
    pub fn recall(&self, recorded: &Value) -> Option<Field> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        match self {
            Self::Url => text(recorded).filter(|text| secret::is_whole_url(text)).map(Field::Text),
            Self::Text | Self::Patterns | Self::Choice => text(recorded).map(Field::Text),
            Self::Claims => {
                let claims = recorded.as_object()?.iter();
                claims
                    .map(|(claim, value)| Some((claim.clone(), text(value)?)))
                    .collect::<Option<_>>()
                    .map(Field::Claims)
            }
            Self::Keys => recorded.as_array()?.iter().map(text).collect::<Option<_>>().map(Field::Keys),
            Self::Ranges => recorded
                .as_array()?
                .iter()
                .map(|entry| text(entry).map(recalled))
                .collect::<Option<_>>()
                .map(Field::Ranges),
            Self::Lifetime | Self::Count => recorded.as_u64().map(Field::Number),
        }
    }

    /// Whether `new` is more permissive than `old`. What cannot be compared counts as more permissive.
    pub fn widens(&self, old: &Field, new: &Field) -> bool {
        if old == new {
            return false;
        }
        match (self, old, new) {
            (Self::Lifetime | Self::Count, Field::Number(old), Field::Number(new)) => {
                *new == 0 || (*old != 0 && new > old)
            }
            (Self::Ranges, Field::Ranges(old), Field::Ranges(new)) => ranges_widen(old, new),
            (Self::Keys, Field::Keys(old), Field::Keys(new)) => !new.iter().all(|key| old.contains(key)),
            (Self::Claims, Field::Claims(old), Field::Claims(new)) => {
                old.iter().any(|(claim, old)| new.get(claim).is_none_or(|new| patterns_widen(old, new)))
            }
            (Self::Patterns, Field::Text(old), Field::Text(new)) => patterns_widen(old, new),
            (Self::Url, Field::Text(_), Field::Text(new)) => !new.starts_with("https://"),
            (Self::Text, Field::Text(old), Field::Text(_)) => !old.is_empty(),
            _ => true,
        }
    }

    /// What a person reads in one line: `2h`, `10.0.0.0/8, ::1/128`, `"text"`. Takes the recorded form.
    pub fn show(&self, recorded: &Value) -> String {
        match (self, recorded) {
            (Self::Lifetime, Value::Number(seconds)) => lifetime_text(seconds.as_u64().unwrap_or(0)),
            (Self::Count, Value::Number(uses)) if uses.as_u64() == Some(0) => "no limit".to_owned(),
            (Self::Choice, Value::String(text)) => text.clone(),
            (Self::Ranges, Value::Array(items)) => {
                let texts: Vec<_> = items.iter().map(|item| item.as_str().unwrap_or("?")).collect();
                format!("[{}]", texts.join(", "))
            }
            (Self::Keys, Value::Array(items)) => format!("{} key{}", items.len(), plural(items.len())),
            (_, Value::String(text)) if text.contains("-----BEGIN") => format!("PEM, {} bytes", text.len()),
            (_, Value::Null) => "nothing".to_owned(),
            (_, other) => other.to_string(),
        }
    }
}

/// Trims as JavaScript's `String.prototype.trim` does: U+FEFF in, U+0085 and U+200B out.
pub fn js_trim(text: &str) -> &str {
    text.trim_matches(|c| {
        matches!(
            c,
            '\t' | '\n' | '\u{b}' | '\u{c}' | '\r' | ' ' | '\u{a0}' | '\u{1680}' | '\u{2000}'
                ..='\u{200a}' | '\u{2028}' | '\u{2029}' | '\u{202f}' | '\u{205f}' | '\u{3000}' | '\u{feff}'
        )
    })
}

/// The pieces of a comma list as the upstream stores it: commas inside a closed `{…}` or after `\` do not split.
pub fn split_patterns(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let mut pieces = Vec::new();
    let (mut piece, mut at) = (String::new(), 0);
    let closing = closing_braces(&chars);
    while at < chars.len() {
        let end = match chars[at] {
            '\\' => (at + 2).min(chars.len()),
            '{' => closing.get(&at).map_or(at + 1, |close| close + 1),
            ',' => {
                pieces.push(std::mem::take(&mut piece));
                at += 1;
                continue;
            }
            _ => at + 1,
        };
        piece.extend(&chars[at..end]);
        at = end;
    }
    pieces.push(piece);
    pieces.iter().map(|piece| js_trim(piece).to_owned()).filter(|piece| !piece.is_empty()).collect()
}

/// Where each closed `{` is closed; in one pass, since a body may hold nothing but braces.
fn closing_braces(chars: &[char]) -> BTreeMap<usize, usize> {
    let (mut open, mut closed, mut at) = (Vec::new(), BTreeMap::new(), 0);
    while at < chars.len() {
        match chars[at] {
            '\\' => at += 1,
            '{' => open.push(at),
            '}' => drop(open.pop().map(|start| closed.insert(start, at))),
            _ => {}
        }
        at += 1;
    }
    closed
}

fn tidy_patterns(text: &str) -> String {
    split_patterns(js_trim(text)).join(", ")
}

fn patterns_widen(old: &str, new: &str) -> bool {
    let (old, new) = (split_patterns(old), split_patterns(new));
    if new.is_empty() {
        !old.is_empty()
    } else {
        !old.is_empty() && !new.iter().all(|piece| old.contains(piece))
    }
}

fn ranges_widen(old: &[Entry], new: &[Entry]) -> bool {
    let unreadable = |entries: &[Entry]| -> Vec<Entry> {
        entries.iter().filter(|entry| matches!(entry, Entry::Unreadable(_))).cloned().collect()
    };
    let was = unreadable(old);
    unreadable(new).iter().any(|entry| !was.contains(entry)) || !union(old).contains(&union(new))
}

/// Everything the readable entries hold together.
pub fn union(entries: &[Entry]) -> Union {
    Union::of(entries.iter().filter_map(|entry| match entry {
        Entry::Range(range) => Some(*range),
        Entry::Unreadable(_) => None,
    }))
}

fn text(value: &Value) -> Result<&str, Misfit> {
    match value.as_str() {
        Some(text) if text.contains('\0') => Err(Misfit::new("must not hold a NUL character")),
        Some(text) => Ok(text),
        None => Err(Misfit::new("must be a string")),
    }
}

fn number(value: &Value) -> Result<u64, Misfit> {
    const MAX_SAFE: u64 = (1 << 53) - 1;
    match value.as_u64() {
        Some(number) if number <= MAX_SAFE => Ok(number),
        Some(_) => Err(Misfit::new("must be at most 9007199254740991")),
        None => Err(Misfit::new("must be a non-negative integer written in plain digits, like 3600")),
    }
}

fn claims(value: &Value) -> Result<BTreeMap<String, String>, Misfit> {
    let members = value.as_object().ok_or_else(|| Misfit::new("must be an object of strings"))?;
    members
        .iter()
        .map(|(claim, value)| match text(value) {
            Ok(_) if claim.contains('\0') => Err(Misfit::new("a claim's name must not hold a NUL character")),
            Ok(text) => Ok((claim.clone(), tidy_patterns(text))),
            Err(misfit) => Err(Misfit { below: crate::json::pointer(&[claim]), ..misfit }),
        })
        .collect()
}

fn keys(value: &Value) -> Result<Vec<String>, Misfit> {
    let items = value.as_array().ok_or_else(|| Misfit::new("must be an array of strings"))?;
    let texts: Result<Vec<_>, _> = items
        .iter()
        .enumerate()
        .map(|(index, item)| text(item).map_err(|misfit| Misfit::at(index, "", misfit.message)))
        .collect();
    let joined = texts?.join(",");
    Ok(if joined.is_empty() { Vec::new() } else { joined.split(',').map(str::to_owned).collect() })
}

fn ranges(side: Side, value: &Value) -> Result<Vec<Entry>, Misfit> {
    let items = value.as_array().ok_or_else(|| Misfit::new("must be an array of {\"ipAddress\": …}"))?;
    items.iter().enumerate().map(|(index, item)| range(side, index, item)).collect()
}

fn range(side: Side, index: usize, item: &Value) -> Result<Entry, Misfit> {
    let address = item.get("ipAddress").and_then(Value::as_str);
    let address =
        address.ok_or_else(|| Misfit::at(index, "/ipAddress", "must be a string like \"10.0.0.0/8\""))?;
    let (prefix, kind) = (item.get("prefix"), item.get("type"));
    match side {
        Side::Request => {
            for (name, member) in [("prefix", prefix), ("type", kind)] {
                if member.is_some() {
                    let message = "belongs to the answer, not to a request; write 10.0.0.0/8 in ipAddress";
                    return Err(Misfit::at(index, &format!("/{name}"), message));
                }
            }
            let text = js_trim(address);
            Ok(Range::parse(text).map_or_else(|| Entry::Unreadable(text.to_owned()), Entry::Range))
        }
        Side::Answer => Ok(stored_range(address, prefix, kind)),
    }
}

/// `{ipAddress, type, prefix?}`; whatever is odd about it makes the entry unreadable, never the state.
fn stored_range(address: &str, prefix: Option<&Value>, kind: Option<&Value>) -> Entry {
    let width = match prefix {
        None | Some(Value::Null) => Some(None),
        Some(prefix) => prefix.as_u64().and_then(|p| u8::try_from(p).ok()).map(Some),
    };
    let parsed: Option<IpAddr> = address.parse().ok();
    let family = parsed.map(|ip| if ip.is_ipv4() { "ipv4" } else { "ipv6" });
    let agrees = kind.is_none_or(|kind| kind.as_str() == family);
    match (parsed, width) {
        (Some(ip), Some(width)) if agrees => Range::new(ip, width).map(Entry::Range),
        _ => None,
    }
    .unwrap_or_else(|| {
        Entry::Unreadable(prefix.map_or_else(|| address.to_owned(), |prefix| format!("{address}/{prefix}")))
    })
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(kind: &Kind, side: Side, value: &Value) -> Value {
        kind.read(side, value, &[])
            .map_or_else(|misfit| json!({"misfit": misfit.message}), |field| field.normal())
    }

    #[test]
    fn text_is_trimmed_as_javascript_does() {
        for (raw, normal) in [
            ("\u{feff} a \u{a0}", "a"),
            ("\u{85}a\u{85}", "\u{85}a\u{85}"),
            ("\u{200b}a", "\u{200b}a"),
            ("\u{2003}\u{3000}\u{b}a b\u{c}", "a b"),
        ] {
            assert_eq!(read(&Kind::Text, Side::Request, &json!(raw)), json!(normal));
        }
    }

    #[test]
    fn comma_lists_are_tidied_as_the_upstream_stores_them() {
        for (raw, normal) in [
            ("a,b", "a, b"),
            (" , ,", ""),
            ("{a, **, b}", "{a, **, b}"),
            ("{a,b},c", "{a,b}, c"),
            ("{a,b", "{a, b"),
            ("a\\,b,c", "a\\,b, c"),
            ("{a,{b,c}},d", "{a,{b,c}}, d"),
            ("a, ,b", "a, b"),
            ("a\\", "a\\"),
        ] {
            assert_eq!(read(&Kind::Patterns, Side::Request, &json!(raw)), json!(normal), "{raw}");
        }
    }

    #[test]
    fn keys_are_joined_and_split_at_commas() {
        for (raw, normal) in [
            (json!([""]), json!([])),
            (json!([]), json!([])),
            (json!(["a,b"]), json!(["a", "b"])),
            (json!(["a", "b"]), json!(["a", "b"])),
        ] {
            assert_eq!(read(&Kind::Keys, Side::Answer, &raw), normal);
        }
    }

    #[test]
    fn a_range_is_read_in_its_sides_shape() {
        let request = json!([{"ipAddress": " 10.1.2.3/8 "}, {"ipAddress": "10.0.0.0/0x8"}]);
        assert_eq!(read(&Kind::Ranges, Side::Request, &request), json!(["10.0.0.0/8", "10.0.0.0/0x8"]));
        let answer = json!([{"ipAddress": "10.1.2.3", "type": "ipv4", "prefix": 8}, {"ipAddress": "::", "type": "ipv6"},
            {"ipAddress": "fe80::1%eth0", "type": "ipv6", "prefix": 0}, {"ipAddress": "10.0.0.0/8", "type": "ipv4"},
            {"ipAddress": "10.0.0.0", "type": "ipv6", "prefix": 8}]);
        let normal = json!(["10.0.0.0/8", "::/128", "fe80::1%eth0/0", "10.0.0.0/8", "10.0.0.0/8"]);
        assert_eq!(read(&Kind::Ranges, Side::Answer, &answer), normal);
        let Ok(Field::Ranges(entries)) = Kind::Ranges.read(Side::Answer, &answer, &[]) else { panic!() };
        assert!(entries[2..].iter().all(|entry| matches!(entry, Entry::Unreadable(_))));
        let mixed = Kind::Ranges.read(Side::Request, &json!([{"ipAddress": "10.0.0.0", "prefix": 0}]), &[]);
        assert_eq!(mixed.map_err(|misfit| misfit.below), Err("/0/prefix".to_owned()));
    }

    #[test]
    fn a_number_is_plain_digits() {
        let misfit =
            |text: &str| read(&Kind::Lifetime, Side::Request, &crate::json::value(text.as_bytes()).unwrap());
        assert_eq!(misfit("3600"), json!(3600));
        for text in
            ["3600.0", "36e2", "-0", "0.0", "1e-400", "-1", "\"1\"", "true", "null", "9007199254740992"]
        {
            assert!(misfit(text).get("misfit").is_some(), "{text}");
        }
    }

    #[test]
    fn worse_is_decided_on_values() {
        let number = |n| Field::Number(n);
        let ranges = |texts: &[&str]| {
            Field::Ranges(
                texts
                    .iter()
                    .map(|t| Range::parse(t).map_or_else(|| Entry::Unreadable((*t).into()), Entry::Range))
                    .collect(),
            )
        };
        let text = |t: &str| Field::Text(t.into());
        for (kind, old, new, worse) in [
            (Kind::Lifetime, number(60), number(61), true),
            (Kind::Lifetime, number(60), number(0), true),
            (Kind::Lifetime, number(0), number(60), false),
            (Kind::Ranges, ranges(&["0.0.0.0/0"]), ranges(&["10.0.0.0/8"]), false),
            (Kind::Ranges, ranges(&["10.0.0.0/8"]), ranges(&["10.0.0.0/9", "10.128.0.0/9"]), false),
            (Kind::Ranges, ranges(&["10.0.0.0/8"]), ranges(&["10.0.0.0/7"]), true),
            (Kind::Ranges, ranges(&["0.0.0.0/0"]), ranges(&["0.0.0.0/ 0"]), true),
            (Kind::Url, text("https://a"), text("http://a"), true),
            (Kind::Url, text("http://a"), text("https://a"), false),
            (Kind::Patterns, text("a, b"), text("a"), false),
            (Kind::Patterns, text("a"), text(""), true),
            (Kind::Patterns, text("a"), text("a*"), true),
            (Kind::Text, text(""), text("a"), false),
            (Kind::Text, text("a"), text("b"), true),
        ] {
            assert_eq!(kind.widens(&old, &new), worse, "{old:?} -> {new:?}");
        }
    }
}
