//! `patchwarden policy explain` and `freeze`: a past decision, by the rules of its day.
//!
//! The store keeps every bundle that was in force under the digest each record cites. The recorded attempt is judged by
//! it once more, so that what is said is not a memory but the same verdict again; if it is another one, that is said.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use super::super::out::print;
use super::super::{UNABLE, WRONG};
use super::{Format, eval};
use crate::app::Failure;
use crate::audit::query::Reader;
use crate::bundle::{Answer, Attempt, Bundle, Evaluation};
use crate::config::Config;
use crate::keys::Keys;
use crate::refusal::Finding;
use crate::view;

/// A recorded attempt with the policies it was judged by.
struct Past {
    change: Value,
    bundle: Bundle,
    attempt: Attempt,
}

impl Past {
    async fn read(id: &str, config: &Config) -> Result<Self, Failure> {
        let unable = |message| Failure { code: UNABLE, message };
        let wrong = |message: String| Failure { code: WRONG, message };
        let reader = Reader::open(&config.store).await.map_err(unable)?;
        let change = reader.find(id).await.map_err(unable)?;
        let change = change.ok_or_else(|| wrong(super::super::show::no_change(id)))?;
        let Some(digest) = change["policy_digest"].as_str() else {
            let code = change["code"].as_str().map(|code| format!(" (`{code}`)")).unwrap_or_default();
            return Err(wrong(format!(
                "the policies were never asked about this change{code}; see `patchwarden show {id}`"
            )));
        };
        let text = reader.bundle(digest).await.map_err(unable)?;
        let text = text.ok_or_else(|| {
            wrong(format!("the store does not hold the policies of that day ({digest}); `policy replay` judges by others"))
        })?;
        let bundle = Bundle::restore(&text, digest).map_err(unable)?;
        // The one just read, also where `last` is another by now.
        let found = change["id"].as_str().unwrap_or(id);
        let recorded = reader.attempt(found).await.map_err(unable)?;
        let recorded = recorded.ok_or_else(|| wrong(super::super::show::no_change(id)))?;
        let attempt = Attempt::recall(&bundle, &recorded)
            .map_err(|why| wrong(format!("this change cannot be judged again: {why}")))?;
        Ok(Self { change, bundle, attempt })
    }

    fn judge(&self) -> Evaluation {
        self.attempt.evaluate(self.bundle.policies(), &Keys::ephemeral())
    }
}

impl Past {
    /// Whether a verdict is the one on record.
    fn agrees(&self, evaluation: &Evaluation, shown: &Value) -> bool {
        let all = |shown: &Value| -> BTreeSet<_> {
            named(&shown["violations"]).into_iter().chain(named(&shown["warnings"])).collect()
        };
        let denied = matches!(evaluation.answer, Answer::Denied(_));
        denied == self.attempt.was_denied && all(shown) == all(&self.change)
    }
}

/// Rules and places.
fn named(findings: &Value) -> BTreeSet<(String, String)> {
    let text = |finding: &Value, name: &str| finding[name].as_str().unwrap_or_default().to_owned();
    let of_rules =
        findings.as_array().into_iter().flatten().filter(|found| found["rule"] != "unknown-member");
    of_rules.map(|finding| (text(finding, "rule"), text(finding, "pointer"))).collect()
}

pub(super) async fn explain(id: &str, format: Format, config: &Config) -> Result<u8, Failure> {
    let past = Past::read(id, config).await?;
    let evaluation = past.judge();
    let policies = past.bundle.policies();
    let mut shown = evaluation.shown(policies);
    let agrees = past.agrees(&evaluation, &shown);
    let about = |rule: &Value| {
        let known = policies.rules().iter().find(|known| rule["id"] == known.id());
        json!({"id": rule["id"], "verdict": rule["verdict"], "title": known.map(crate::policy::Rule::title),
            "level": known.map(crate::policy::Rule::level), "existing": known.map(crate::policy::Rule::existing)})
    };
    let rules: Vec<_> = shown["rules"].as_array().into_iter().flatten().map(about).collect();
    // Digests in a record are of the gateway's own key.
    for member in ["before", "proposed"] {
        shown[member] = past.change[member].clone();
    }
    for (name, value) in [
        ("id", past.change["id"].clone()),
        ("received_at", past.change["received_at"].clone()),
        ("mode", past.change["mode"].clone()),
        ("recorded", json!({"decision": past.change["decision"], "would": past.change["would"]})),
        ("agrees", json!(agrees)),
        ("rules", json!(rules)),
    ] {
        shown[name] = value;
    }
    print(&match format {
        Format::Json => format!("{shown:#}\n"),
        Format::Text => text(&past, &shown, agrees),
    })?;
    Ok(if agrees { 0 } else { WRONG })
}

fn text(past: &Past, shown: &Value, agrees: bool) -> String {
    let said = |value: &Value| view::visible(value.as_str().unwrap_or("-")).into_owned();
    let mut text = format!("change {} of {}\n", said(&shown["id"]), said(&shown["received_at"]));
    text += &format!("policies {}\n", past.bundle.digest());
    if past.change["would"] == "deny" {
        text += "in observe mode: it was forwarded; enforcing, the rules say:\n";
    }
    text += &eval::text(shown);
    text += "\n";
    let rows: Vec<_> = shown["rules"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|rule| {
            [
                said(&rule["id"]),
                said(&rule["level"]),
                said(&rule["verdict"]).replace('_', " "),
                said(&rule["title"]),
            ]
        })
        .collect();
    text += &view::table(["RULE", "LEVEL", "VERDICT", "TITLE"], &rows);
    text + if agrees {
        "\nJudged again by the rules of that day, the verdict is the one on record.\n"
    } else {
        "\nJudged again by the rules of that day, the verdict is NOT the one on record; see `patchwarden show`.\n"
    }
}

pub(super) async fn freeze(id: &str, out: Option<&Path>, config: &Config) -> Result<u8, Failure> {
    let past = Past::read(id, config).await?;
    let attempt = &past.attempt;
    let evaluation = past.judge();
    if !past.agrees(&evaluation, &evaluation.shown(past.bundle.policies())) {
        let message = format!(
            "judged again by the rules of that day, the verdict is not the one on record; see `patchwarden policy explain {id}`"
        );
        return Err(Failure { code: WRONG, message });
    }
    let (decision, violations, warnings) = match evaluation.answer {
        Answer::Refused(_) => ("refuse", BTreeSet::new(), BTreeSet::new()),
        Answer::Allowed(permit) => ("allow", BTreeSet::new(), rules(permit.warnings())),
        Answer::Denied(denial) => ("deny", rules(&denial.violations), rules(&denial.warnings)),
    };
    let mut case = toml::Table::new();
    let mut put = |name: &str, value: toml::Value| drop(case.insert(name.to_owned(), value));
    let said = |name: &str| past.change[name].as_str().unwrap_or("-");
    put("name", format!("change {} of {}", said("id"), said("received_at")).into());
    put("operation", attempt.operation().name.clone().into());
    if let Some(before) = attempt.before() {
        let answer = before.answer(&attempt.target().id());
        put("before", format!("{answer:#}\n").into());
    }
    if let Some(edit) = attempt.edit() {
        put("body", format!("{:#}\n", edit.request()).into());
    }
    if let Some(caller) = attempt.caller() {
        put("caller", caller.into());
    }
    put("ip_allow_listing", past.bundle.policies().settings().ip_allow_listing.into());
    let expect = [
        ("decision", decision.into()),
        ("violations", toml::Value::Array(rules_of(violations))),
        ("warnings", toml::Value::Array(rules_of(warnings))),
    ];
    put(
        "expect",
        toml::Value::Table(expect.map(|(name, value)| (name.to_owned(), value)).into_iter().collect()),
    );
    let file = toml::Table::from_iter([("case".to_owned(), toml::Value::Array(vec![case.into()]))]);
    let text = toml::to_string_pretty(&file);
    let text = text.map_err(|error| Failure { code: UNABLE, message: error.to_string() })?;
    let Some(out) = out else { return print(&text).map(|()| 0) };
    let made = std::fs::OpenOptions::new().write(true).create_new(true).open(out);
    let written = made.and_then(|mut file| file.write_all(text.as_bytes()));
    written
        .map(|()| 0)
        .map_err(|error| Failure { code: UNABLE, message: format!("{}: {error}", out.display()) })
}

fn rules(findings: &[Finding]) -> BTreeSet<String> {
    findings.iter().map(|finding| finding.rule.clone()).collect()
}

fn rules_of(rules: BTreeSet<String>) -> toml::value::Array {
    rules.into_iter().map(toml::Value::from).collect()
}
