//! `patchwarden policy test`: the cases, and which rules they try.
//!
//! A rule is covered when cases show it both violated (or warning) and passed. Printed as text, as JSON, or as the XML
//! that build servers read.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::super::WRONG;
use super::super::out::{complain, print};
use super::Report;
use crate::app::Failure;
use crate::bundle::{Bundle, Trial};
use crate::config::Config;
use crate::policy::Level;
use crate::view;

/// What the cases show of one rule.
struct Tried {
    rule: String,
    violated: usize,
    warned: usize,
    passed: usize,
}

impl Tried {
    fn is_covered(&self) -> bool {
        self.violated + self.warned > 0 && self.passed > 0
    }
}

pub(super) fn run(bundle: &Bundle, config: &Config, format: Report, min_coverage: u8) -> Result<u8, Failure> {
    let trials = bundle.trials();
    let in_force = bundle.policies().rules().iter().filter(|rule| rule.level() != Level::Off);
    let tried: Vec<Tried> = in_force
        .map(|rule| {
            // A bundled case shows nothing of a rule that is no longer the bundled one.
            let is_own = bundle.source(rule.id()) != Bundle::BINARY || config.rules.contains_key(rule.id());
            let trials = || trials.iter().filter(move |trial| !(is_own && trial.is_bundled));
            let count = |of: fn(&Trial) -> &BTreeSet<String>| {
                trials().filter(|trial| of(trial).contains(rule.id())).count()
            };
            let is_clear = |trial: &&Trial| {
                trial.is_allowed && !trial.violated.contains(rule.id()) && !trial.warned.contains(rule.id())
            };
            let (violated, warned) = (count(|trial| &trial.violated), count(|trial| &trial.warned));
            Tried { rule: rule.id().to_owned(), violated, warned, passed: trials().filter(is_clear).count() }
        })
        .collect();
    let covered = tried.iter().filter(|tried| tried.is_covered()).count();
    let coverage = (covered * 100).checked_div(tried.len()).unwrap_or(0);
    let failed = trials.iter().filter(|trial| trial.problem.is_some()).count();
    print(&match format {
        Report::Text => report(&trials, &tried, failed, coverage),
        Report::Json => format!("{:#}\n", as_json(&trials, &tried, failed, coverage)),
        Report::Junit => junit(&trials, failed),
    })?;
    if coverage < usize::from(min_coverage) {
        complain(&format!("coverage is {coverage} %, less than --min-coverage {min_coverage}"));
        return Ok(WRONG);
    }
    Ok(if failed == 0 { 0 } else { WRONG })
}

fn report(trials: &[Trial], tried: &[Tried], failed: usize, coverage: usize) -> String {
    let mut text = String::new();
    for trial in trials {
        if let Some(problem) = &trial.problem {
            text += &format!("FAILED  {}: {}\n        {}\n", trial.file, trial.name, view::visible(problem));
        }
    }
    let rows: Vec<_> = tried
        .iter()
        .map(|tried| {
            [
                tried.rule.clone(),
                tried.violated.to_string(),
                tried.warned.to_string(),
                tried.passed.to_string(),
            ]
        })
        .collect();
    text += &view::table(["RULE", "VIOLATED", "WARNED", "PASSED"], &rows);
    text + &format!(
        "\n{} cases, {failed} failed; {coverage} % of the rules are shown violated and passed\n",
        trials.len()
    )
}

fn as_json(trials: &[Trial], tried: &[Tried], failed: usize, coverage: usize) -> Value {
    let case = |trial: &Trial| {
        json!({"file": trial.file, "name": trial.name, "ok": trial.problem.is_none(), "problem": trial.problem,
            "violated": trial.violated, "warned": trial.warned})
    };
    let rule = |tried: &Tried| json!({"rule": tried.rule, "violated": tried.violated, "warned": tried.warned, "passed": tried.passed});
    json!({
        "cases": trials.iter().map(case).collect::<Vec<_>>(),
        "rules": tried.iter().map(rule).collect::<Vec<_>>(),
        "failed": failed,
        "coverage": coverage,
    })
}

fn junit(trials: &[Trial], failed: usize) -> String {
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"policies\" tests=\"{}\" failures=\"{failed}\">\n",
        trials.len()
    );
    for trial in trials {
        text += &format!(
            "  <testcase classname=\"{}\" name=\"{}\"",
            view::escaped(&trial.file),
            view::escaped(&trial.name)
        );
        text += &match &trial.problem {
            None => "/>\n".to_owned(),
            Some(problem) => {
                format!(">\n    <failure message=\"{}\"/>\n  </testcase>\n", view::escaped(problem))
            }
        };
    }
    text + "</testsuite>\n"
}
