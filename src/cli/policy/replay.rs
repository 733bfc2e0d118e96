//! `patchwarden policy replay`: all recorded attempts, judged again by the policies given now.
//!
//! What was recorded is read back and put to the rules, always enforcing; a verdict that turned round is told with an
//! example. What cannot be judged again is counted by its reason, never passed over. The store is read beside a
//! running gateway, a page ahead of the judging.

use std::collections::BTreeMap;
use std::time::Instant;

use clap::ValueEnum;
use serde_json::{Value, json};
use tokio_util::task::TaskTracker;

use super::super::out::{Progress, print};
use super::super::{MISCONFIGURED, UNABLE, WRONG};
use super::Format;
use crate::api::filter::Listing;
use crate::app::{self, Failure};
use crate::audit::query::Reader;
use crate::bundle::{Attempt, Recorded, Unreplayable};
use crate::clock::Clock;
use crate::config::Config;
use crate::json;
use crate::keys::Keys;
use crate::refusal::Finding;
use crate::view;

/// Attempts read at once.
const PAGE: usize = 500;

/// What `policy replay` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Not before: 2026-11-23T06:20:00Z, or 2h or 90d ago
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Not after, written the same way
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Only attempts on this identity
    #[arg(long, value_name = "ID")]
    target: Option<String>,
    /// Exit 1 when there is such an attempt; can be given twice
    #[arg(long, value_enum, value_name = "WHAT")]
    fail_on: Vec<Turn>,
    /// How many examples of each to show
    #[arg(long, value_name = "N", default_value_t = 10)]
    examples: usize,
    /// How to print it
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

/// How a verdict can turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Turn {
    /// Let through then, denied now
    NewlyDenied,
    /// Stopped then, allowed now
    NewlyAllowed,
}

/// Attempts whose verdict turned one way.
#[derive(Default)]
struct Turned {
    count: usize,
    /// By the rules that deny now, or denied then.
    rules: BTreeMap<String, usize>,
    examples: Vec<Value>,
    /// Of them, those that observe mode let through although its rules said no.
    observed: usize,
}

/// What came out.
#[derive(Default)]
struct Replayed {
    allowed: usize,
    denied: usize,
    newly_denied: Turned,
    newly_allowed: Turned,
    not_replayed: BTreeMap<Unreplayable, usize>,
}

pub(super) async fn run(args: &Args, config: &Config) -> Result<u8, Failure> {
    let unable = |message| Failure { code: UNABLE, message };
    let given = [("since", &args.since), ("until", &args.until), ("target", &args.target)];
    let pairs: Vec<_> =
        given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.clone()?))).collect();
    let listing = Listing::parse(&pairs, Clock::System.now(), PAGE);
    let filter = listing.map_err(|message| Failure { code: MISCONFIGURED, message })?.filter;
    let bundle = app::load_bundle(config)?;
    let policies = bundle.policies().enforcing();
    let reader = Reader::open(&config.store).await.map_err(unable)?;
    let keys = Keys::ephemeral();
    let mut replayed = Replayed::default();
    let (started, mut progress) = (Instant::now(), Progress::new("attempts", None));
    let tasks = TaskTracker::new();
    let read = |cursor: Option<String>| {
        let (reader, filter) = (reader.clone(), filter.clone());
        tasks.spawn(async move { reader.attempts(&filter, cursor.as_deref(), PAGE).await })
    };
    let mut ahead = Some(read(None));
    while let Some(page) = ahead.take() {
        let (attempts, next) = page.await.map_err(|error| unable(error.to_string()))?.map_err(unable)?;
        ahead = next.map(|cursor| read(Some(cursor)));
        progress.advance(attempts.len());
        for recorded in &attempts {
            match Attempt::recall(&bundle, recorded) {
                Err(why) => *replayed.not_replayed.entry(why).or_default() += 1,
                Ok(attempt) => {
                    let now = attempt.decide(&policies, &keys);
                    let violations = now.err().map(|denial| denial.violations);
                    replayed.count(recorded, &attempt, violations, args.examples);
                }
            }
        }
    }
    progress.end();
    let shown = replayed.shown(&json!(bundle.digest()), started.elapsed().as_secs_f64());
    print(&match args.format {
        Format::Json => format!("{shown:#}\n"),
        Format::Text => text(&shown),
    })?;
    let is_there = |turn: &Turn| match turn {
        Turn::NewlyDenied => replayed.newly_denied.count > 0,
        Turn::NewlyAllowed => replayed.newly_allowed.count > 0,
    };
    Ok(if args.fail_on.iter().any(is_there) { WRONG } else { 0 })
}

impl Replayed {
    fn count(
        &mut self,
        recorded: &Recorded,
        attempt: &Attempt,
        violations: Option<Vec<Finding>>,
        examples: usize,
    ) {
        let (turned, found) = match (attempt.was_stopped, violations) {
            (true, Some(_)) => return self.denied += 1,
            (false, None) => return self.allowed += 1,
            (false, Some(violations)) => (&mut self.newly_denied, json!(violations)),
            (true, None) => {
                let said = recorded.said.as_ref();
                let found = said.and_then(|said| json::own(said.violations.get().as_bytes()).ok());
                (&mut self.newly_allowed, found.unwrap_or_default())
            }
        };
        turned.count += 1;
        turned.observed += usize::from(attempt.was_denied && !attempt.was_stopped);
        let rules: std::collections::BTreeSet<_> =
            found.as_array().into_iter().flatten().filter_map(|finding| finding["rule"].as_str()).collect();
        for rule in rules {
            *turned.rules.entry(rule.to_owned()).or_default() += 1;
        }
        if turned.examples.len() < examples {
            let said = recorded.said.as_ref();
            let caller = said.and_then(|said| said.caller.as_ref());
            turned.examples.push(json!({"id": recorded.id, "number": recorded.index,
                "received_at": said.map(|said| said.received_at.as_str()), "operation": recorded.operation,
                "target": recorded.target,
                "caller": {"id": caller.and_then(|who| who.id.as_deref()),
                    "name": caller.and_then(|who| who.name.as_deref())},
                "findings": found}));
        }
    }

    fn shown(&self, digest: &Value, seconds: f64) -> Value {
        let turned = |turned: &Turned| json!({"count": turned.count, "observed": turned.observed, "rules": turned.rules, "examples": turned.examples});
        let reasons: BTreeMap<String, usize> =
            self.not_replayed.iter().map(|(why, count)| (why.to_string(), *count)).collect();
        let replayed = self.allowed + self.denied + self.newly_denied.count + self.newly_allowed.count;
        json!({
            "policy_digest": digest,
            "replayed": replayed,
            "unchanged": {"allow": self.allowed, "deny": self.denied},
            "newly_denied": turned(&self.newly_denied),
            "newly_allowed": turned(&self.newly_allowed),
            "not_replayed": reasons,
            "seconds": seconds,
        })
    }
}

fn text(shown: &Value) -> String {
    let said = |value: &Value| view::visible(value.as_str().unwrap_or("-")).into_owned();
    let mut text = format!(
        "{} attempts judged again by {} in {:.1} s\n\n",
        shown["replayed"],
        said(&shown["policy_digest"]),
        shown["seconds"].as_f64().unwrap_or(0.0)
    );
    let observed = &shown["newly_denied"]["observed"];
    let observed = if *observed == 0 {
        String::new()
    } else {
        format!(", {observed} of them let through by observe mode")
    };
    text += &format!("  newly denied   {}{observed}\n", shown["newly_denied"]["count"]);
    text += &format!("  newly allowed  {}\n", shown["newly_allowed"]["count"]);
    let unchanged = &shown["unchanged"];
    text += &format!("  unchanged      {} allowed, {} denied\n", unchanged["allow"], unchanged["deny"]);
    for (why, count) in shown["not_replayed"].as_object().into_iter().flatten() {
        text += &format!("  not replayed   {count}: {why}\n");
    }
    for (turn, title) in [("newly_denied", "NEWLY DENIED"), ("newly_allowed", "NEWLY ALLOWED")] {
        if shown[turn]["count"] == 0 {
            continue;
        }
        let rules = shown[turn]["rules"].as_object().into_iter().flatten();
        let rules: Vec<_> = rules.map(|(rule, count)| format!("{rule} {count}")).collect();
        text += &format!("\n{title} by rule: {}\n", rules.join(", "));
        let row = |example: &Value| {
            let told = example["findings"].as_array().into_iter().flatten();
            let told: Vec<_> = told
                .map(|finding| format!("{}: {}", said(&finding["rule"]), said(&finding["message"])))
                .collect();
            [
                example["number"].to_string(),
                said(&example["received_at"]),
                said(&example["operation"]),
                said(&example["target"]),
                said(
                    example["caller"]
                        .get("name")
                        .filter(|name| name.is_string())
                        .unwrap_or(&example["caller"]["id"]),
                ),
                told.join("; "),
            ]
        };
        let rows: Vec<_> = shown[turn]["examples"].as_array().into_iter().flatten().map(row).collect();
        if rows.is_empty() {
            continue;
        }
        text += &view::table(["NUMBER", "TIME", "OPERATION", "TARGET", "CALLER", "RULE"], &rows);
    }
    text
}
