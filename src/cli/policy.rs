//! `patchwarden policy`: what is in force, and what it would say.
//!
//! `list` names every rule with where it comes from, `export` writes the bundle of the binary into a folder, `test` runs
//! the cases, `eval` judges one request without sending it. All load the policies exactly as `serve` would; what is wrong with them ends with 1.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde_json::{Value, json};

use super::out::print;
use super::{MISCONFIGURED, UNABLE, WRONG};
use crate::app::{self, Failure};
use crate::bundle::{Answer, Bundle, Question, Trial, evaluate};
use crate::config::Config;
use crate::keys::Keys;
use crate::policy::Level;
use crate::view;

/// Of a rule file, JSON Schema 2020-12.
const RULE_SCHEMA: &str = include_str!("../../policies/rule.schema.json");

/// What `policy` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Name every rule, how strong it is, and where it comes from
    #[command(after_help = "Example: patchwarden policy list --policies policies/strict")]
    List,
    /// Write the bundle of the binary into a folder that is not there or empty
    #[command(after_help = "Example: patchwarden policy export my-policies")]
    Export {
        /// The folder
        #[arg(value_name = "FOLDER")]
        folder: PathBuf,
    },
    /// Print the JSON Schema of rule files, for editors
    #[command(after_help = "Example: patchwarden policy schema > rule.schema.json")]
    Schema,
    /// Run the policy cases and say which rules they try; exits 1 when one does not come out as written
    #[command(after_help = "Example: patchwarden policy test --policies my-policies --min-coverage 100")]
    Test {
        /// How to print it
        #[arg(long, value_enum, default_value = "text")]
        format: Report,
        /// Least share of the rules in force, in percent, that cases must show both violated and passed
        #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
        min_coverage: u8,
    },
    /// Judge one request without sending it; exits 1 unless it is allowed
    #[command(
        after_help = "Example: patchwarden policy eval --before answer.json --body request.json\nThe answer is that of GET /api/v1/auth/jwt-auth/identities/{identityId}."
    )]
    Eval {
        /// What the request would do
        #[arg(long, value_name = "NAME", default_value = "jwt-auth.update")]
        operation: String,
        /// File with the API's answer to a read of the state before; not for an attach
        #[arg(long, value_name = "FILE")]
        before: Option<PathBuf>,
        /// File with the request's body, or `-` for standard input; not for a removal
        #[arg(long, value_name = "FILE")]
        body: Option<PathBuf>,
        /// Id of who asks, for rules about callers
        #[arg(long, value_name = "ID")]
        caller: Option<String>,
        /// How to print it
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// With every state, violation and warning
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Report {
    /// For people
    Text,
    /// One object with every case and every rule
    Json,
    /// XML as build servers read it
    Junit,
}

pub(super) fn run(args: &Args, config: &Config) -> Result<u8, Failure> {
    match &args.command {
        Command::List => list(&app::load_bundle(config)?, config),
        Command::Export { folder } => export(folder),
        Command::Schema => print(RULE_SCHEMA).map(|()| 0),
        Command::Test { format, min_coverage } => test(&app::load_bundle(config)?, *format, *min_coverage),
        Command::Eval { operation, before, body, caller, format } => {
            let bundle = app::load_bundle(config)?;
            let before = before.as_deref().map(read).transpose()?;
            let body = body.as_deref().map(read).transpose()?;
            let question = Question {
                operation,
                before: before.as_deref(),
                body: body.as_deref(),
                caller: caller.as_deref(),
                ..Question::default()
            };
            eval(&bundle, &question, *format)
        }
    }
}

fn list(bundle: &Bundle, config: &Config) -> Result<u8, Failure> {
    let rows: Vec<_> = bundle
        .policies()
        .rules()
        .iter()
        .map(|rule| {
            let level = match rule.level() {
                Level::Deny => "deny",
                Level::Warn => "warn",
                Level::Off => "off",
            };
            let laid_over = config.rules.contains_key(rule.id());
            let source = match (bundle.source(rule.id()), laid_over) {
                (source, false) => source.to_owned(),
                (source, true) => format!("{source}, [rules.{}]", rule.id()),
            };
            [
                rule.id().to_owned(),
                level.to_owned(),
                rule.existing().as_str().to_owned(),
                source,
                rule.title().to_owned(),
            ]
        })
        .collect();
    print(&view::table(["RULE", "LEVEL", "EXISTING", "FROM", "TITLE"], &rows))?;
    print(&format!("\npolicy digest {}\n", bundle.digest())).map(|()| 0)
}

fn export(folder: &Path) -> Result<u8, Failure> {
    let unable = |what: &Path, error: &dyn std::fmt::Display| Failure {
        code: UNABLE,
        message: format!("{}: {error}", what.display()),
    };
    if folder.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(unable(folder, &"is not empty; name a folder that is not there, or empty"));
    }
    for (name, text) in Bundle::files() {
        let path = folder.join(name);
        let above = path.parent().unwrap_or(folder);
        std::fs::create_dir_all(above).map_err(|error| unable(above, &error))?;
        std::fs::write(&path, text).map_err(|error| unable(&path, &error))?;
    }
    print(&format!("{}: change what you need, then --policies {}\n", folder.display(), folder.display()))
        .map(|()| 0)
}

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

fn test(bundle: &Bundle, format: Report, min_coverage: u8) -> Result<u8, Failure> {
    let trials = bundle.trials();
    let in_force = bundle.policies().rules().iter().filter(|rule| rule.level() != Level::Off);
    let tried: Vec<Tried> = in_force
        .map(|rule| {
            let count = |of: fn(&Trial) -> &BTreeSet<String>| {
                trials.iter().filter(|trial| of(trial).contains(rule.id())).count()
            };
            let is_clear = |trial: &&Trial| {
                trial.is_allowed && !trial.violated.contains(rule.id()) && !trial.warned.contains(rule.id())
            };
            let (violated, warned) = (count(|trial| &trial.violated), count(|trial| &trial.warned));
            Tried {
                rule: rule.id().to_owned(),
                violated,
                warned,
                passed: trials.iter().filter(is_clear).count(),
            }
        })
        .collect();
    let covered = tried.iter().filter(|tried| tried.is_covered()).count();
    let coverage = (covered * 100).checked_div(tried.len()).unwrap_or(100);
    let failed = trials.iter().filter(|trial| trial.problem.is_some()).count();
    print(&match format {
        Report::Text => report(&trials, &tried, failed, coverage),
        Report::Json => format!("{:#}\n", as_json(&trials, &tried, failed, coverage)),
        Report::Junit => junit(&trials, failed),
    })?;
    if coverage < usize::from(min_coverage) {
        super::out::complain(&format!("coverage is {coverage} %, less than --min-coverage {min_coverage}"));
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
    let quoted = |text: &str| {
        let plain: String = text.chars().filter(|c| !c.is_control()).collect();
        plain.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
    };
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"policies\" tests=\"{}\" failures=\"{failed}\">\n",
        trials.len()
    );
    for trial in trials {
        text +=
            &format!("  <testcase classname=\"{}\" name=\"{}\"", quoted(&trial.file), quoted(&trial.name));
        text += &match &trial.problem {
            None => "/>\n".to_owned(),
            Some(problem) => format!(">\n    <failure message=\"{}\"/>\n  </testcase>\n", quoted(problem)),
        };
    }
    text + "</testsuite>\n"
}

fn eval(bundle: &Bundle, question: &Question<'_>, format: Format) -> Result<u8, Failure> {
    // A question that cannot be asked is no denial.
    let wrong = |message| Failure { code: MISCONFIGURED, message };
    let evaluation = evaluate(bundle, bundle.policies(), question, &Keys::ephemeral()).map_err(wrong)?;
    let shown = evaluation.shown(bundle.policies());
    print(&match format {
        Format::Json => format!("{shown:#}\n"),
        Format::Text => text(&shown),
    })?;
    Ok(if matches!(evaluation.answer, Answer::Allowed(_)) { 0 } else { WRONG })
}

fn text(shown: &Value) -> String {
    let said = |value: &Value| view::visible(value.as_str().unwrap_or("-")).into_owned();
    let mut text = format!("{}\n", said(&shown["decision"]));
    if let Some(summary) = shown["summary"].as_str() {
        text += &format!("  changes  {}\n", view::visible(summary));
    }
    for (kind, title) in [("violations", "denied"), ("warnings", "warned")] {
        for found in shown[kind].as_array().into_iter().flatten() {
            text += &format!("  {title}   {} {}\n", said(&found["rule"]), said(&found["pointer"]));
            text += &format!("           {}; {}\n", said(&found["message"]), said(&found["help"]));
        }
    }
    if !shown["fix"].is_null() {
        text += &format!("  fix      {}\n", view::visible(&shown["fix"].to_string()));
    }
    text
}

fn read(path: &Path) -> Result<String, Failure> {
    let text = if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(path)
    };
    text.map_err(|error| Failure { code: UNABLE, message: format!("{}: {error}", path.display()) })
}
