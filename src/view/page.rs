//! One change on a page of its own, as `show` prints it.
//!
//! Who, when, where and what came of it; what it changed or would have changed, field by field; every violation and
//! warning with the value, the limit and what would pass; then what was seen later: settlement, surprise, breach, drift;
//! last its places in the log. Parts that say nothing are left out.

use std::fmt::Write as _;

use serde_json::Value;

use super::{field_text, moment, or_dash, said, visible};

/// Longest old and new value that still share a line.
const ONE_LINE: usize = 70;

/// The page. Colours are the caller's choice, and mean nothing that the words do not say.
pub fn page(change: &Value, colour: bool, utc: bool) -> String {
    let mut page = Page { text: String::new(), colour, utc };
    if change["kind"] == "drift" {
        page.drift(change);
        return page.text;
    }
    page.header(change);
    page.changed(change);
    page.findings("Violations", &change["violations"], RED);
    page.findings("Warnings", &change["warnings"], YELLOW);
    page.settlement(&change["settlement"]);
    page.difference("Surprise: not what was proposed", &change["surprise"]);
    page.findings("Breach: the result violates what the proposal did not", &change["breach"], RED);
    page.difference("Drift: changed past this log since the last recorded state", &change["drift"]);
    page.log(&change["log"]);
    page.text
}

const RED: &str = "31";
const GREEN: &str = "32";
const YELLOW: &str = "33";
const BOLD: &str = "1";
const DIM: &str = "2";

struct Page {
    text: String,
    colour: bool,
    utc: bool,
}

impl Page {
    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    fn line(&mut self, text: &str) {
        self.text.push_str(text.trim_end());
        self.text.push('\n');
    }

    fn heading(&mut self, text: &str) {
        let painted = self.paint(BOLD, text);
        self.text.push('\n');
        self.line(&painted);
    }

    fn fact(&mut self, name: &str, text: &str) {
        let name = self.paint(DIM, &format!("{name:<10}"));
        self.line(&format!("  {name} {text}"));
    }

    fn header(&mut self, change: &Value) {
        let title = format!("Change {}", or_dash(change, "/id"));
        let title = self.paint(BOLD, &title);
        self.line(&title);
        let mut at = moment(&change["received_at"], self.utc);
        if let Some(took) = said(change, "/duration_ms") {
            let _ = write!(at, ", took {took} ms");
        }
        self.fact("received", &at);
        if change["pruned"] == true {
            self.fact("pruned", "retention removed who, from where, what was asked and the states; the rest is of the entries themselves");
        }
        self.fact("operation", &or_dash(change, "/operation"));
        if let (Some(method), Some(path)) = (said(change, "/request/method"), said(change, "/request/path")) {
            self.fact("request", &format!("{method} {path}"));
        }
        if let Some(organization) = said(change, "/request/organization") {
            self.fact("in", &format!("organization {organization}"));
        }
        let mut target = format!("{} {}", or_dash(change, "/target/kind"), or_dash(change, "/target/id"));
        if let Some(seq) = said(change, "/target/seq") {
            let _ = write!(target, ", its change {seq}");
        }
        self.fact("target", &target);
        if change["caller"].is_object() {
            self.caller(change);
        }
        let source: Vec<_> =
            ["/source/address", "/source/user_agent"].iter().filter_map(|p| said(change, p)).collect();
        if !source.is_empty() {
            self.fact("source", &source.join(", "));
        }
        if let Some(subject) = said(change, "/source/certificate/subject") {
            self.fact("showed", &subject);
        }
        if let Some(trace) = said(change, "/source/trace_id") {
            self.fact("trace", &trace);
        }
        if change["gateway"].is_string() {
            self.fact(
                "gateway",
                &format!("{}, mode {}", or_dash(change, "/gateway"), or_dash(change, "/mode")),
            );
        }
        self.verdict(change);
    }

    /// What was changed past the log has no caller, no decision and no outcome.
    fn drift(&mut self, drift: &Value) {
        let title = self.paint(BOLD, &format!("Drift {}", or_dash(drift, "/id")));
        self.line(&title);
        let target = format!("{} {}", or_dash(drift, "/target/kind"), or_dash(drift, "/target/id"));
        self.fact("target", &target);
        let since = match &drift["window"]["since"] {
            Value::Null => "an unknown time".to_owned(),
            since => moment(since, self.utc),
        };
        let until = moment(&drift["window"]["until"], self.utc);
        self.fact("changed", &format!("between {since} and {until}"));
        if drift["rolled_back"] == true {
            self.fact("how", "the upstream went back to an older state");
        }
        let by = match said(drift, "/seen_by") {
            Some(change) => format!("{}, change {change}", or_dash(drift, "/by")),
            None => or_dash(drift, "/by").into_owned(),
        };
        self.fact("found by", &by);
        self.fact("gateway", &or_dash(drift, "/gateway"));
        self.difference("Changed past this log since the last recorded state", &drift["diff"]);
        self.log(&drift["log"]);
    }

    fn caller(&mut self, change: &Value) {
        let mut caller = or_dash(change, "/caller/kind").into_owned();
        if let Some(id) = said(change, "/caller/id") {
            let _ = write!(caller, " {id}");
        }
        if let Some(name) = said(change, "/caller/name") {
            let _ = write!(caller, " ({name})");
        }
        match change.pointer("/caller/proven") {
            Some(Value::Bool(true)) => caller.push_str(", proven by the upstream"),
            Some(Value::Bool(false)) => caller.push_str(", not proven by the upstream"),
            _ => {}
        }
        self.fact("caller", &caller);
        if let Some(token) = said(change, "/caller/token_fingerprint") {
            self.fact("token", &token);
        }
    }

    fn verdict(&mut self, change: &Value) {
        let mut decision = or_dash(change, "/decision").into_owned();
        if let Some(code) = said(change, "/code") {
            let _ = write!(decision, " ({code})");
        }
        if let Some(would) = said(change, "/would") {
            let _ = write!(decision, ", would {would} if enforced");
        }
        let code = if change["decision"] == "allow" { GREEN } else { RED };
        let decision = self.paint(code, &decision);
        self.fact("decision", &decision);
        let outcome = or_dash(change, "/outcome").into_owned();
        let explained = match outcome.as_str() {
            "none" => "none: nothing was forwarded",
            "pending" => "pending: the upstream has not answered yet, or its answer is not written yet",
            "not_sent" => "not_sent: recorded, then not forwarded",
            "unknown" => "unknown: its end was not seen",
            other => other,
        };
        let mut outcome = explained.to_owned();
        if let Some(status) = said(change, "/upstream_status") {
            let _ = write!(outcome, ", the upstream said {status}");
        }
        self.fact("outcome", &outcome);
        if let Some(digest) = said(change, "/policy_digest") {
            self.fact("policies", &digest);
        }
    }

    fn changed(&mut self, change: &Value) {
        let title = match (change["decision"].as_str(), change["outcome"].as_str()) {
            (Some("allow"), Some("applied")) => "Changed",
            (Some("allow"), Some("unknown" | "pending")) => "Asked for",
            _ => "Would have changed",
        };
        match &change["diff"] {
            Value::Array(entries) if entries.is_empty() => {
                self.heading(title);
                self.line("  nothing: every field keeps its value");
            }
            diff => self.difference(title, diff),
        }
    }

    /// JSON Patch entries with `old`, or whatever else stands there.
    fn difference(&mut self, title: &str, found: &Value) {
        match found {
            Value::Null => {}
            Value::Array(entries) if entries.is_empty() => {}
            Value::Array(entries) => {
                self.heading(title);
                for entry in entries {
                    self.entry(entry);
                }
            }
            other => {
                self.heading(title);
                self.members(other);
            }
        }
    }

    fn entry(&mut self, entry: &Value) {
        let Some(path) = entry["path"].as_str() else { return self.members(entry) };
        let (old, new) = (&entry["old"], &entry["value"]);
        match (path, old, new) {
            // The whole state came or went.
            ("", Value::Object(members), Value::Null) => {
                members.iter().for_each(|(name, old)| self.field(name, old, &Value::Null));
            }
            ("", Value::Null, Value::Object(members)) => {
                members.iter().for_each(|(name, new)| self.field(name, &Value::Null, new));
            }
            _ => self.field(path.strip_prefix('/').unwrap_or(path), old, new),
        }
    }

    fn field(&mut self, name: &str, old: &Value, new: &Value) {
        let shown = visible(name).into_owned();
        if let (Value::Array(before), Value::Array(after)) = (old, new) {
            return self.list(&shown, before, after);
        }
        let (before, after) = (field_text(name, old), field_text(name, new));
        if before.chars().count() + after.chars().count() <= ONE_LINE {
            let (before, after) = (self.paint(RED, &before), self.paint(GREEN, &after));
            return self.line(&format!("  {shown}: {before} -> {after}"));
        }
        self.line(&format!("  {shown}:"));
        self.side(RED, "-", &before);
        self.side(GREEN, "+", &after);
    }

    /// A list as its items: gone, come, kept. Only another order shows as both whole lists.
    fn list(&mut self, name: &str, before: &[Value], after: &[Value]) {
        self.line(&format!("  {name}:"));
        let reordered = before.len() == after.len() && before.iter().all(|item| after.contains(item));
        for item in before.iter().filter(|item| reordered || !after.contains(item)) {
            self.side(RED, "-", &field_text("", item));
        }
        for item in after {
            let kept = !reordered && before.contains(item);
            self.side(if kept { DIM } else { GREEN }, if kept { " " } else { "+" }, &field_text("", item));
        }
    }

    fn side(&mut self, code: &str, sign: &str, text: &str) {
        let painted = self.paint(code, &format!("{sign} {text}"));
        self.line(&format!("    {painted}"));
    }

    fn findings(&mut self, title: &str, found: &Value, code: &str) {
        let Some(findings) = found.as_array().filter(|findings| !findings.is_empty()) else {
            return self.difference(title, if found.is_array() { &Value::Null } else { found });
        };
        self.heading(title);
        for (at, finding) in findings.iter().enumerate() {
            let rule = self.paint(code, &or_dash(finding, "/rule"));
            let from = match finding["from"].as_str() {
                Some("request") => ", sent by the request",
                Some("stored") => ", stored before",
                Some("default") => ", written because it was left out",
                _ => "",
            };
            let pointer = said(finding, "/pointer").unwrap_or_default();
            let gap = if pointer.is_empty() { "" } else { " at " };
            self.line(&format!("  {}. {rule}{gap}{pointer}{from}", at + 1));
            self.line(&format!("     {}", or_dash(finding, "/message")));
            let name = finding["pointer"].as_str().unwrap_or_default().to_owned();
            for (label, value) in [("value", &finding["value"]), ("limit", &finding["limit"])] {
                if !value.is_null() {
                    self.line(&format!("     {label}: {}", field_text(&name, value)));
                }
            }
            if let Some(help) = said(finding, "/help") {
                self.line(&format!("     help: {help}"));
            }
        }
    }

    fn settlement(&mut self, settlement: &Value) {
        if settlement.is_null() {
            return;
        }
        self.heading("Settlement");
        self.fact("result", &or_dash(settlement, "/result"));
        self.fact("at", &moment(&settlement["at"], self.utc));
        self.fact("by", &or_dash(settlement, "/by"));
        if !settlement["evidence"].is_null() {
            self.line("  evidence");
            self.members(&settlement["evidence"]);
        }
    }

    /// Something without a form of its own: its members, one a line.
    fn members(&mut self, value: &Value) {
        match value {
            Value::Object(members) => {
                for (name, member) in members {
                    let text = field_text(name, member);
                    self.line(&format!("    {}: {text}", visible(name)));
                }
            }
            other => self.line(&format!("    {}", field_text("", other))),
        }
    }

    fn log(&mut self, log: &Value) {
        let places: Vec<_> = ["attempt", "outcome", "settlement"]
            .into_iter()
            .filter(|name| log[name]["index"].is_u64())
            .map(|name| {
                let (index, origin) =
                    (or_dash(&log[name], "/index").into_owned(), or_dash(&log[name], "/origin").into_owned());
                (name, format!("entry {index} of {origin}"))
            })
            .collect();
        if places.is_empty() {
            return;
        }
        self.heading("In the log");
        for (name, place) in places {
            self.fact(name, &place);
        }
    }
}
