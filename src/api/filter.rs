//! What may be asked of the history, the same for the API's query and the command line.
//!
//! Name and value pairs become a [`Listing`]: a [`Filter`], a limit and a cursor. An unknown name, a name given twice
//! and a value that can match nothing are errors that say what would pass: a mistyped filter must never look like
//! "nothing happened". Flags of the command line and parameters of the API have the same names.

use crate::audit::lifecycle::KINDS as KINDS_OF_GATEWAYS;
use crate::audit::query::Filter;
use crate::clock::Time;
use crate::id::ChangeId;
use crate::store::Kinds;
use crate::units::Span;

/// Every name, in the order `history --help` lists them.
const NAMES: [&str; 16] = [
    "kind",
    "target",
    "operation",
    "decision",
    "outcome",
    "caller",
    "rule",
    "would",
    "warned",
    "since",
    "until",
    "changed",
    "contains",
    "unsettled",
    "limit",
    "cursor",
];
const KINDS: [&str; 3] = ["change", "drift", "all"];
const DECISIONS: [&str; 3] = ["allow", "deny", "refuse"];
const OUTCOMES: [&str; 6] = ["pending", "applied", "rejected", "not_sent", "unknown", "none"];
/// Longest id, pointer or cursor, in characters.
const MAX_TEXT: usize = 500;
const CONTAINS: std::ops::RangeInclusive<usize> = 3..=200;
/// Changes on a page unless said otherwise.
const DEFAULT_LIMIT: usize = 50;

/// One question to the history.
#[derive(Clone)]
pub struct Listing {
    /// Which changes.
    pub filter: Filter,
    /// How many at most.
    pub limit: usize,
    /// Where to go on, from the page before.
    pub cursor: Option<String>,
}

impl Listing {
    /// Reads pairs of name and value. `now` is what `2h` counts from, `max_limit` the largest `limit`.
    pub fn parse(pairs: &[(String, String)], now: Time, max_limit: usize) -> Result<Self, String> {
        let mut listing =
            Self { filter: Filter::default(), limit: DEFAULT_LIMIT.min(max_limit), cursor: None };
        for (at, (name, value)) in pairs.iter().enumerate() {
            once(&pairs[..at], name)?;
            match name.as_str() {
                "limit" => listing.limit = number(value, max_limit)?,
                "cursor" => listing.cursor = Some(cursor(value)?),
                _ => filter(&mut listing.filter, name, value, now)?,
            }
        }
        match (listing.filter.since, listing.filter.until) {
            (Some(since), Some(until)) if since > until => {
                Err(format!("`since` ({since}) lies after `until` ({until}); swap them"))
            }
            _ => Ok(listing),
        }
    }

    /// The same for lists that know nothing but `limit` and `cursor`.
    pub fn paging(pairs: &[(String, String)], now: Time, max_limit: usize) -> Result<Self, String> {
        match pairs.iter().find(|(name, _)| !matches!(name.as_str(), "limit" | "cursor")) {
            Some((name, _)) => {
                Err(format!("`{}` is no parameter here; there are `limit` and `cursor`", shown(name)))
            }
            None => Self::parse(pairs, now, max_limit),
        }
    }
}

/// Which entries about the gateways.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    /// Of one kind only.
    pub kind: Option<String>,
    /// How many at most.
    pub limit: usize,
    /// Where to go on, from the page before.
    pub cursor: Option<u64>,
}

/// Reads pairs of name and value; `max_limit` is the largest `limit`.
pub fn lifecycle(pairs: &[(String, String)], max_limit: usize) -> Result<Lifecycle, String> {
    let mut asked = Lifecycle { kind: None, limit: DEFAULT_LIMIT.min(max_limit), cursor: None };
    for (at, (name, value)) in pairs.iter().enumerate() {
        once(&pairs[..at], name)?;
        match name.as_str() {
            "kind" => asked.kind = Some(choice(name, value, &KINDS_OF_GATEWAYS)?),
            "limit" => asked.limit = number(value, max_limit)?,
            "cursor" => {
                let place = value.parse().map_err(|_| {
                    format!("`cursor` is `{}`; give the `next_cursor` of the page before", shown(value))
                })?;
                asked.cursor = Some(place);
            }
            _ => {
                let name = shown(name);
                return Err(format!("`{name}` is no parameter here; there are `kind`, `limit` and `cursor`"));
            }
        }
    }
    Ok(asked)
}

fn once(earlier: &[(String, String)], name: &str) -> Result<(), String> {
    match earlier.iter().any(|(earlier, _)| earlier == name) {
        true => Err(format!("`{}` is given twice; give it once", shown(name))),
        false => Ok(()),
    }
}

fn filter(filter: &mut Filter, name: &str, value: &str, now: Time) -> Result<(), String> {
    match name {
        "kind" => {
            filter.kinds = match choice(name, value, &KINDS)?.as_str() {
                "drift" => Kinds::Drift,
                "all" => Kinds::Both,
                _ => Kinds::Changes,
            }
        }
        "target" => filter.target = Some(target(value)?),
        "operation" => filter.operation = Some(word(name, value, "an operation like `jwt-auth.update`")?),
        "decision" => filter.decision = Some(choice(name, value, &DECISIONS)?),
        "outcome" => filter.outcome = Some(choice(name, value, &OUTCOMES)?),
        "caller" => filter.caller = Some(text(name, value, "the caller's id")?),
        "rule" => filter.rule = Some(word(name, value, "a rule's id like `token-lifetime`")?),
        "would" => filter.would = Some(choice(name, value, &["deny"])?),
        "warned" => filter.warned = switch(name, value)?,
        "since" => filter.since = Some(moment(name, value, now)?),
        "until" => filter.until = Some(moment(name, value, now)?),
        "changed" => filter.changed = Some(pointer(value)?),
        "contains" => filter.contains = Some(contained(value)?),
        "unsettled" => filter.unsettled = switch(name, value)?,
        _ => return Err(format!("`{}` is no parameter here; there are {}", shown(name), quoted(&NAMES))),
    }
    Ok(())
}

/// The id of an identity in any spelling of a UUID, also as the log writes it (`identity/<uuid>`); bare and canonical.
pub fn target(value: &str) -> Result<String, String> {
    let id = value.strip_prefix("identity/").unwrap_or(value);
    uuid::Uuid::parse_str(id).map(|id| id.hyphenated().to_string()).map_err(|_| {
        let example = "0b9c3a52-7d3f-4f7e-9a43-0c8f3f1d2e4a";
        format!("`target` is `{}`; give the id of an identity, a UUID like `{example}`", shown(value))
    })
}

/// RFC 3339, or how long ago.
fn moment(name: &str, value: &str, now: Time) -> Result<Time, String> {
    if let Some(at) = Time::parse(value) {
        return Ok(at);
    }
    Span::parse(value).map(|ago| now.minus(ago.0)).map_err(|_| {
        format!(
            "`{name}` is `{}`; give a time like `2026-11-23T06:20:00Z`, or how long ago, like `2h` or `7d`",
            shown(value)
        )
    })
}

fn choice(name: &str, value: &str, choices: &[&str]) -> Result<String, String> {
    if choices.contains(&value) {
        return Ok(value.to_owned());
    }
    Err(format!("`{name}` is `{}`; give {}", shown(value), quoted(choices)))
}

/// A bare flag is `true`.
fn switch(name: &str, value: &str) -> Result<bool, String> {
    match value {
        "" | "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(format!("`{name}` is `{}`; give `true` or `false`", shown(value))),
    }
}

fn number(value: &str, max: usize) -> Result<usize, String> {
    value
        .parse()
        .ok()
        .filter(|limit| (1..=max).contains(limit))
        .ok_or_else(|| format!("`limit` is `{}`; give a number from 1 to {max}", shown(value)))
}

/// As the history writes it: a time and the id of the change it ended with.
fn cursor(value: &str) -> Result<String, String> {
    let ours = |(at, id): (&str, &str)| at.parse::<i64>().is_ok() && id.parse::<ChangeId>().is_ok();
    if value.split_once('.').is_some_and(ours) {
        return Ok(value.to_owned());
    }
    Err(format!("`cursor` is `{}`; give the `next_cursor` of the page before", shown(value)))
}

fn word(name: &str, value: &str, what: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if !value.is_empty() && value.len() <= 100 && value.chars().all(plain) {
        return Ok(value.to_owned());
    }
    Err(format!("`{name}` is `{}`; give {what}", shown(value)))
}

fn text(name: &str, value: &str, what: &str) -> Result<String, String> {
    if !value.is_empty() && value.chars().count() <= MAX_TEXT && !value.contains(char::is_control) {
        return Ok(value.to_owned());
    }
    Err(format!("`{name}` is `{}`; give {what}", shown(value)))
}

/// RFC 6901: starts with `/`, and `~` stands only before `0` or `1`.
fn pointer(value: &str) -> Result<String, String> {
    let escapes = value.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
    if value.len() > 1 && value.starts_with('/') && escapes {
        return text("changed", value, "a shorter pointer");
    }
    Err(format!("`changed` is `{}`; give a JSON pointer like `/accessTokenTTL`", shown(value)))
}

fn contained(value: &str) -> Result<String, String> {
    if CONTAINS.contains(&value.chars().count()) {
        return Ok(value.to_owned());
    }
    Err(format!(
        "`contains` has {} characters; give {} to {}",
        value.chars().count(),
        CONTAINS.start(),
        CONTAINS.end()
    ))
}

/// What somebody sent, short and on one line, to be quoted in an error.
fn shown(value: &str) -> String {
    let short: String = value.chars().take(60).flat_map(char::escape_debug).collect();
    if value.chars().nth(60).is_some() { format!("{short}…") } else { short }
}

fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CURSOR: &str = "1795414801000000.019aaf3e-4f8b-7c31-9d50-9a0a4c1f2b3d";
    const NOW: Time = Time(1_795_414_801_000_000);

    fn parse(query: &[(&str, &str)]) -> Result<Listing, String> {
        let pairs: Vec<_> = query.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        Listing::parse(&pairs, NOW, 500)
    }

    #[test]
    fn every_name_is_read() {
        let id = "0B9C3A52-7D3F-4F7E-9A43-0C8F3F1D2E4A";
        let read = parse(&[
            ("kind", "all"),
            ("target", id),
            ("operation", "jwt-auth.update"),
            ("decision", "deny"),
            ("outcome", "none"),
            ("caller", "c-1"),
            ("rule", "token-lifetime"),
            ("would", "deny"),
            ("warned", ""),
            ("since", "2h"),
            ("until", "2026-11-23T06:20:01Z"),
            ("changed", "/accessTokenTTL"),
            ("contains", "abc"),
            ("unsettled", "true"),
            ("limit", "7"),
            ("cursor", CURSOR),
        ])
        .unwrap();
        assert_eq!(read.filter.target.as_deref(), Some(id.to_lowercase().as_str()));
        assert_eq!(read.filter.since, Some(Time(NOW.0 - 7_200_000_000)));
        assert_eq!(read.filter.until, Time::parse("2026-11-23T06:20:01Z"));
        assert!(read.filter.warned && read.filter.unsettled && read.filter.kinds == Kinds::Both);
        assert_eq!((read.limit, read.cursor.as_deref()), (7, Some(CURSOR)));
        assert_eq!(parse(&[]).unwrap().limit, 50);
    }

    #[test]
    fn what_can_match_nothing_is_an_error_that_says_what_would_pass() {
        let long = "x".repeat(201);
        for (name, value, says) in [
            ("targets", "x", "there are `kind`, `target`, `operation`"),
            ("kind", "fold", "`change`, `drift`, `all`"),
            ("target", "x", "a UUID like"),
            ("decision", "denied", "`allow`, `deny`, `refuse`"),
            ("outcome", "failed", "`not_sent`"),
            ("would", "allow", "give `deny`"),
            ("since", "yesterday", "like `2h` or `7d`"),
            ("changed", "accessTokenTTL", "like `/accessTokenTTL`"),
            ("changed", "/a~2", "like `/accessTokenTTL`"),
            ("contains", "ab", "give 3 to 200"),
            ("contains", &long, "give 3 to 200"),
            ("warned", "maybe", "`true` or `false`"),
            ("cursor", "x", "the `next_cursor`"),
            ("limit", "0", "from 1 to 500"),
            ("limit", "501", "from 1 to 500"),
            ("rule", "a b", "a rule's id"),
            ("caller", "a\u{1b}[0m", "the caller's id"),
        ] {
            let error = parse(&[(name, value)]).err().unwrap_or_default();
            assert!(error.contains(says) && error.contains(name), "{name}={value}: {error}");
            assert!(!error.contains('\u{1b}'), "{error}");
        }
        assert!(parse(&[("limit", "1"), ("limit", "2")]).is_err_and(|e| e.contains("twice")));
        assert!(parse(&[("since", "1h"), ("until", "2h")]).is_err_and(|e| e.contains("lies after")));
    }
}
