//! The gateway's own log: one event a line, on standard error.
//!
//! Comes in: what other modules say through `tracing`, and the events people rely on, one function each. Goes out:
//! JSON with every field at the top level (`ts`, `level`, `event`, `message`, …), or a line for people. Control
//! characters are escaped in both, so that no value ends a line or speaks to a terminal. Other crates are heard from
//! `warn` on. Bodies and tokens have no way in: a [`Change`] holds names, codes and counts only.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::{Value, json};
use tracing::field::{Field, Visit, display};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::clock::{Clock, Time};
use crate::id::{ChangeId, TargetId};
use crate::refusal::{Code, Finding};
use crate::units::Size;

/// How an event is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people at a terminal.
    Pretty,
    /// For machines.
    Json,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pretty => "pretty",
            Self::Json => "json",
        })
    }
}

/// Every `log.level`.
pub const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Starts the log of this process; `level` is one of [`LEVELS`] and holds for the gateway's own events.
pub fn init(format: Format, level: &str) -> Result<(), String> {
    if !LEVELS.contains(&level) {
        return Err(format!("log.level is `{level}`; write one of {}", LEVELS.join(", ")));
    }
    let own: LevelFilter = level.parse().map_err(|error| format!("log.level is `{level}`: {error}"))?;
    let filter =
        Targets::new().with_default(own.min(LevelFilter::WARN)).with_target(env!("CARGO_CRATE_NAME"), own);
    tracing_subscriber::registry()
        .with(Lines(format).with_filter(filter))
        .try_init()
        .map_err(|error| format!("the log cannot be started: {error}"))
}

/// From here on a panic is an event with its place. Its message stays out: it may quote what was being handled.
pub fn panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        tracing::error!(event = "panic", place, "a defect in the gateway ended one task");
    }));
}

/// Both ports are open.
pub fn listening(gateway: SocketAddr, admin: SocketAddr) {
    let (gateway, admin) = (display(gateway), display(admin));
    tracing::info!(event = "listening", gateway, admin, "the gateway listens");
}

/// What became of one request on a governed or watched route.
#[derive(Debug)]
#[expect(missing_docs, reason = "the names are those of the record of a change")]
pub struct Change<'a> {
    pub change: &'a ChangeId,
    pub operation: Option<&'a str>,
    pub target: Option<&'a TargetId>,
    pub caller: Option<&'a str>,
    pub decision: &'a str,
    pub code: Option<Code>,
    pub outcome: &'a str,
    /// Of the answer to the client.
    pub status: u16,
    pub duration: Duration,
    /// What broke; makes the event a warning.
    pub cause: Option<&'a str>,
}

/// One request on a governed or watched route has its answer.
pub fn change(what: &Change<'_>) {
    let (change, target) = (display(what.change), what.target.map(display));
    let code = what.code.map(Code::as_str);
    let ms = (what.duration.as_secs_f64() * 10_000.0).round() / 10.0;
    let &Change { operation, caller, decision, outcome, status, cause, .. } = what;
    let name = operation.unwrap_or("a request");
    macro_rules! say {
        ($level:ident) => {
            tracing::$level!(
                event = "change",
                change,
                operation,
                target,
                caller,
                decision,
                code,
                outcome,
                status,
                ms,
                cause,
                "{name}: {decision}, {outcome}, answered {status}"
            )
        };
    }
    match cause {
        Some(_) => say!(warn),
        None => say!(info),
    }
}

/// The state after an allowed change violates rules that the state it was to lead to did not.
pub fn breach(change: &ChangeId, target: &TargetId, violations: &[Finding]) {
    let rules = violations.iter().map(|violation| violation.rule.as_str()).collect::<Vec<_>>().join(", ");
    let (change, target) = (display(change), display(target));
    tracing::error!(
        event = "breach",
        change,
        target,
        rules,
        "what the upstream made of a change violates {rules}"
    );
}

/// The disk of the store fills: `free` is left, and below `floor` no change is let through.
pub fn disk_low(store: &dyn std::fmt::Display, free: Size, floor: Size) {
    let (store, free, floor) = (store.to_string(), free.to_string(), floor.to_string());
    tracing::warn!(
        event = "disk_low",
        store,
        free,
        floor,
        "the disk of {store} has {free} left; below {floor} no change is let through"
    );
}

/// The whole log was read after the start, and is whole.
pub fn verified(entries: u64) {
    tracing::info!(event = "log_verified", entries, "the log was read from its beginning and is whole");
}

/// It could not be read through.
pub fn not_verified(error: &str) {
    tracing::warn!(
        event = "log_not_verified",
        error,
        "the log could not be read through after the start: {error}"
    );
}

/// Something in it is wrong.
pub fn damaged(fault: &str) {
    tracing::error!(event = "log_damaged", fault, "the log is not whole: {fault}");
}

/// A state was found changed past the log, some time between `since` and `until`; the fields, never their values.
pub fn drift(
    target: &TargetId,
    fields: &str,
    since: Option<Time>,
    until: Time,
    rolled_back: bool,
    by: &'static str,
) {
    let (target, since, until) = (display(target), since.map(display), display(until));
    tracing::warn!(
        event = "drift",
        target,
        fields,
        since,
        until,
        rolled_back,
        by,
        "a configuration is not as it was last recorded: it was changed past this gateway"
    );
}

/// A change whose end was not seen is settled by the gateway's own reading.
pub fn settled(change: &ChangeId, target: &TargetId, result: &'static str) {
    let (change, target) = (display(change), display(target));
    tracing::info!(event = "settled", change, target, result, "a change whose end was not seen: {result}");
}

/// An identity that a change of unknown end holds could not be read; it is tried again.
pub fn unreadable(change: &ChangeId, target: &TargetId, why: &str) {
    let (change, target) = (display(change), display(target));
    tracing::warn!(
        event = "settle_unreadable",
        change,
        target,
        why,
        "a change whose end was not seen cannot be settled yet: {why}"
    );
}

/// The gateway's own credential cannot be used.
pub fn credential_failed(detail: &str) {
    tracing::error!(
        event = "credential_failed",
        detail,
        "the credential of [settle] cannot be used: {detail}"
    );
}

/// It can again.
pub fn credential_recovered() {
    tracing::info!(event = "credential_recovered", "the credential of [settle] is accepted again");
}

/// The audit log cannot be written: governed and watched writes are refused from here on.
pub fn degraded(detail: &str) {
    tracing::error!(event = "degraded", detail, "the audit log cannot be written: {detail}");
}

/// An entry that the log's own rules refuse: a defect here, never the load.
pub fn poisoned(detail: &str) {
    tracing::error!(event = "poisoned", detail, "an entry was refused by the log's own rules: {detail}");
}

/// A key that the log says follows, and that could not be brought into use.
pub fn key_not_in_use(error: &dyn std::error::Error) {
    let error = error.to_string();
    tracing::error!(
        event = "key_not_in_use",
        error,
        "the new log.key is not in use until a restart: {error}"
    );
}

/// It can be written again.
pub fn recovered() {
    tracing::info!(event = "recovered", "the audit log is written again");
}

/// The run before ended without saying so.
pub fn unclean_stop(last: &Value, open: &Value) {
    tracing::warn!(
        event = "unclean_stop",
        last = %last,
        open = %open,
        "the run before ended without its stop; what it left open gets its outcome"
    );
}

/// The store lost entries that had been committed; another log begins, whose first entry says so.
pub fn succeeded(origin: &str, previous: &str, known: &Value, found: &Value) {
    tracing::error!(
        event = "succession",
        origin,
        previous,
        known = %known,
        found = %found,
        "the store no longer holds all that was committed; the log is closed and {origin} goes on"
    );
}

/// A signed head could not be kept elsewhere, or was not cosigned; it is tried again.
pub fn anchor_failed(to: &str, detail: &str) {
    tracing::error!(event = "anchor_failed", to, detail, "the newest head did not reach {to}: {detail}");
}

/// It could again.
pub fn anchor_recovered(to: &str) {
    tracing::info!(event = "anchor_recovered", to, "the newest head is with {to} again");
}

/// Somebody has seen more of the log than the store holds, or something else.
pub fn anchor_denied(to: &str, detail: &str) {
    tracing::error!(event = "anchor_denied", to, detail, "{to} contradicts the store: {detail}");
}

/// A request claimed an address or a certificate that is not passed on. Said at most once a minute.
pub fn client_identity_dropped(address: IpAddr) {
    let address = display(address);
    tracing::warn!(
        event = "client_identity_dropped",
        address,
        "a request claimed to be another client; if {address} is a proxy of yours, add it to client_address.trusted_proxies"
    );
}

/// New policies are in force.
pub fn reloaded(policy_digest: &str) {
    tracing::info!(event = "reloaded", policy_digest, "the policies changed and were taken");
}

/// What was to be taken is wrong; what was in force stays in force.
pub fn reload_failed(detail: &str) {
    tracing::error!(event = "reload_failed", detail, "the policies stay as they were: {detail}");
}

/// A port shows a new certificate from the next connection on.
pub fn tls_reloaded(section: &str) {
    tracing::info!(event = "tls_reloaded", section, "the files under {section} changed and were taken");
}

/// Changed TLS files are wrong: what was read before stays in use.
pub fn tls_reload_failed(detail: &str) {
    tracing::error!(event = "tls_reload_failed", detail, "changed TLS files were not taken: {detail}");
}

/// The process ends.
pub fn stopped() {
    tracing::info!(event = "stopped", "the gateway has stopped");
}

/// Writes each event as one line.
struct Lines(Format);

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let ts = Clock::System.now().to_string();
        let line = match self.0 {
            Format::Json => json_line(&ts, *event.metadata().level(), fields),
            Format::Pretty => pretty_line(&ts, *event.metadata().level(), &fields),
        };
        // A log that nobody reads is no reason to stop.
        let _ = std::io::stderr().lock().write_all(line.as_bytes());
    }
}

/// An event's fields in the order they were given, its message apart.
#[derive(Default)]
struct Fields {
    message: String,
    named: Vec<(&'static str, Value)>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        match field.name() {
            "message" => self.message = value.as_str().map_or_else(|| value.to_string(), str::to_owned),
            // What the bridge from the crate `log` adds for itself.
            name if name.starts_with("log.") => {}
            name => self.named.push((name, value)),
        }
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, json!(value));
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, json!(value));
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, json!(value));
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, json!(value));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, json!(value));
    }
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, Value::String(format!("{value:?}")));
    }
}

fn json_line(ts: &str, level: Level, fields: Fields) -> String {
    let level = level.as_str().to_ascii_lowercase();
    let members = [("ts", json!(ts)), ("level", json!(level))]
        .into_iter()
        .chain(fields.named)
        .chain([("message", json!(fields.message))]);
    let members: Vec<String> = members.map(|(name, value)| format!("{}:{value}", json!(name))).collect();
    // JSON leaves DEL and the controls above it as they are; terminals do not.
    let mut line = String::from("{");
    for c in members.join(",").chars() {
        if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') {
            let _ = write!(line, "\\u{:04x}", u32::from(c));
        } else {
            line.push(c);
        }
    }
    line + "}\n"
}

fn pretty_line(ts: &str, level: Level, fields: &Fields) -> String {
    let mut line = format!("{ts} {level:5} {}", escaped(&fields.message));
    for (name, value) in &fields.named {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let _ = write!(line, "  {name}={}", escaped(&value));
    }
    line + "\n"
}

fn escaped(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let (plain, hidden) =
                if c.is_control() { (None, Some(c.escape_default())) } else { (Some(c), None) };
            plain.into_iter().chain(hidden.into_iter().flatten())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields() -> Fields {
        let named =
            vec![("event", json!("change")), ("status", json!(403)), ("caller", json!("a\nb\u{1b}\u{9b}"))];
        Fields { message: "said\rso".to_owned(), named }
    }

    #[test]
    fn an_event_is_one_line_of_json_with_its_fields_at_the_top() {
        let line = json_line("2026-11-23T06:20:01Z", Level::INFO, fields());
        assert_eq!(line.chars().filter(|c| c.is_control()).count(), 1, "{line}");
        let read = crate::json::value(line.trim_end().as_bytes()).unwrap();
        assert_eq!(
            read,
            json!({"ts": "2026-11-23T06:20:01Z", "level": "info", "event": "change", "status": 403,
                "caller": "a\nb\u{1b}\u{9b}", "message": "said\rso"})
        );
    }

    #[test]
    fn an_event_for_people_is_one_line_too() {
        let line = pretty_line("06:20:01", Level::WARN, &fields());
        assert_eq!(line, "06:20:01 WARN  said\\rso  event=change  status=403  caller=a\\nb\\u{1b}\\u{9b}\n");
    }

    #[test]
    fn a_level_that_is_none_names_those_that_are() {
        assert!(init(Format::Json, "loud").unwrap_err().contains("debug"));
    }
}
