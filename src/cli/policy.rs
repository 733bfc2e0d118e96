//! `patchwarden policy`: what is in force, and what it would say.
//!
//! `list` names every rule with where it comes from, `export` writes the bundle of the binary into a folder, `test` runs
//! the cases, `eval` judges one request without sending it, `replay` all that were recorded. These load the policies
//! exactly as `serve` would; what is wrong with them ends with 1. `explain` and `freeze` take the policies of the day.

mod cases;
mod eval;
mod past;
mod replay;

use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use super::UNABLE;
use super::out::print;
use crate::app::{self, Failure};
use crate::bundle::{Bundle, Question};
use crate::config::Config;
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
    /// Judge every recorded attempt again, by these policies; exits 1 when what --fail-on names is there
    #[command(
        after_help = "Example: patchwarden policy replay --since 90d --policies policies/strict --fail-on newly-denied"
    )]
    Replay(replay::Args),
    /// Say why a past request was decided as it was, by the rules of that day
    #[command(after_help = "Example: patchwarden policy explain last")]
    Explain {
        /// The change's id, its number in the log, or `last`
        #[arg(value_name = "ID")]
        id: String,
        /// How to print it
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
    },
    /// Print a recorded attempt as a policy case that expects what was decided
    #[command(after_help = "Example: patchwarden policy freeze last --out my-policies/cases/last.toml")]
    Freeze {
        /// The change's id, its number in the log, or `last`
        #[arg(value_name = "ID")]
        id: String,
        /// Write it into this new file; nothing is written when it cannot be frozen
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Judge one request without sending it, enforcing whatever the mode is; exits 1 unless it is allowed
    #[command(
        after_help = "Examples: patchwarden policy eval --before answer.json --body request.json\n          patchwarden policy eval --fetch 0b9c3a52-7d3f-4f7e-9a43-0c8f3f1d2e4a --token-file token --body -\nThe answer is that of GET /api/v1/auth/jwt-auth/identities/{identityId}."
    )]
    Eval {
        /// What the request would do
        #[arg(long, value_name = "NAME", default_value = "jwt-auth.update")]
        operation: String,
        /// File with the API's answer to a read of the state before; not for an attach
        #[arg(long, value_name = "FILE")]
        before: Option<PathBuf>,
        /// Take the newest state on record of this identity instead
        #[arg(long, value_name = "ID", conflicts_with_all = ["before", "fetch"])]
        stored: Option<String>,
        /// Read the state of this identity from the upstream instead; needs --token-file
        #[arg(long, value_name = "ID", conflicts_with = "before", requires = "token_file")]
        fetch: Option<String>,
        /// File with a token that may read the identity; nothing else stands in it
        #[arg(long, value_name = "FILE", requires = "fetch")]
        token_file: Option<PathBuf>,
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

pub(super) async fn run(args: &Args, config: &Config) -> Result<u8, Failure> {
    match &args.command {
        Command::List => list(&app::load_bundle(config)?, config),
        Command::Export { folder } => export(folder),
        Command::Schema => print(RULE_SCHEMA).map(|()| 0),
        Command::Test { format, min_coverage } => {
            cases::run(&app::load_bundle(config)?, config, *format, *min_coverage)
        }
        Command::Eval { operation, before, stored, fetch, token_file, body, caller, format } => {
            let bundle = app::load_bundle(config)?;
            let before = match (before, stored, fetch.as_deref().zip(token_file.as_deref())) {
                (Some(before), ..) => Some(read(before)?),
                (None, Some(id), _) => Some(eval::stored(&bundle, operation, id, config).await?),
                (None, None, Some((id, token))) => {
                    Some(eval::fetched(&bundle, operation, id, token, config).await?)
                }
                (None, None, None) => None,
            };
            let body = body.as_deref().map(read).transpose()?;
            let question = Question {
                operation,
                before: before.as_deref(),
                body: body.as_deref(),
                caller: caller.as_deref(),
                ..Question::default()
            };
            eval::run(&bundle, &question, *format)
        }
        Command::Replay(args) => replay::run(args, config).await,
        Command::Explain { id, format } => past::explain(id, *format, config).await,
        Command::Freeze { id, out } => past::freeze(id, out.as_deref(), config).await,
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
                rule.owner().to_owned(),
                rule.title().to_owned(),
            ]
        })
        .collect();
    print(&view::table(["RULE", "LEVEL", "EXISTING", "FROM", "OWNER", "TITLE"], &rows))?;
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

fn read(path: &Path) -> Result<String, Failure> {
    let text = if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(path)
    };
    text.map_err(|error| Failure { code: UNABLE, message: format!("{}: {error}", path.display()) })
}
