//! `patchwarden check`: says everything that is wrong, before anything runs.
//!
//! The configuration is loaded as `serve` loads it, the policies also beside one that is wrong, their cases are run, and with
//! `--online` the upstream is asked for its status and the store opened for reading. With `--identity` a real answer is
//! held against the object file, as after an upgrade of the upstream; only then a token is sent. Changes nothing. Ends
//! with 1 when something is wrong, with 3 when only what is outside cannot be reached.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::{Settings, UNABLE, WRONG, identity, misconfigured, out, warn};
use crate::app::Failure;
use crate::bundle::Bundle;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::operation::{CatalogueEntry, Class, State};
use crate::pipeline::UngovernedWrites;
use crate::store::{Database, Reader};
use crate::upstream::Upstream;
use crate::{policy, view};

/// How long the upstream may take to say that it is there.
const PROBE: Duration = Duration::from_secs(10);

/// What `check` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Also connect to the upstream and to the store; sends no credentials
    #[arg(long)]
    online: bool,
    /// Also read the configuration of this identity, and compare it with what is expected of the API; needs --token-file
    #[arg(long, value_name = "ID", requires = "online", requires = "token_file")]
    identity: Option<String>,
    /// File with a token that may read the identity; nothing else stands in it
    #[arg(long, value_name = "FILE", requires = "identity")]
    token_file: Option<PathBuf>,
    /// Print every write of the guarded API that is known, and what happens to it
    #[arg(long)]
    coverage: bool,
}

pub(super) async fn run(args: &Args, settings: &Settings) -> Result<u8, Failure> {
    let config = &match Config::load(&settings.flags(), true) {
        Ok((config, warnings)) => {
            warn(&warnings);
            config
        }
        Err(errors) => return Err(with_policies(misconfigured(&errors), &errors.config)),
    };
    let (bundle, mut wrong) = policies(config);
    let mut away = if args.online { outside(config).await } else { Vec::new() };
    if let (Some(identity), Some(token), Some(bundle), true) =
        (&args.identity, &args.token_file, &bundle, away.is_empty())
    {
        match real(config, bundle, identity, token).await {
            Ok(differs) => wrong.extend(differs),
            Err(failure) if failure.code == UNABLE => away.push(failure.message),
            Err(failure) => return Err(failure),
        }
    }
    for line in wrong.iter().chain(&away) {
        out::complain(&format!("error: {line}"));
    }
    if !wrong.is_empty() {
        return Ok(WRONG);
    }
    if !away.is_empty() {
        return Ok(UNABLE);
    }
    if bundle.as_ref().is_some_and(|bundle| {
        bundle.policies().rules().iter().all(|rule| rule.level() != policy::Level::Deny)
    }) {
        out::complain("warning: no rule of level `deny` is in force, so nothing is ever denied");
    }
    if let Some(bundle) = bundle.filter(|_| args.coverage) {
        return out::print(&coverage(&bundle, config.ungoverned_writes)).map(|()| 0);
    }
    let file = config.file.as_ref().map_or("no file".to_owned(), |path| path.display().to_string());
    let online = match (&args.identity, args.online) {
        (Some(_), _) => ", upstream, the identity's configuration and store",
        (None, true) => ", upstream and store",
        (None, false) => "",
    };
    out::print(&format!("ok: configuration ({file}), policies{online}\n")).map(|()| 0)
}

/// The catalogue as a table, and what is in none of its rows.
fn coverage(bundle: &Bundle, ungoverned: UngovernedWrites) -> String {
    let happens = |entry: &CatalogueEntry| match (&entry.class, &entry.shares, ungoverned) {
        (Class::Governed(_), ..) => "judged, recorded with the state before and after",
        (Class::Watched, _, UngovernedWrites::Refuse) => "refused, recorded",
        (Class::Watched, Some(_), _) => "recorded without states; rules warn about the fields it shares",
        (Class::Watched, None, _) => "recorded without states: who, what, how it ended",
        (Class::Open, ..) => "passes, not recorded",
    };
    let class = |entry: &CatalogueEntry| match entry.class {
        Class::Governed(_) => "governed",
        Class::Watched => "watched",
        Class::Open => "open",
    };
    let rows: Vec<_> = bundle
        .catalogue()
        .0
        .iter()
        .map(|entry| {
            [class(entry).to_owned(), entry.method.to_string(), happens(entry).to_owned(), entry.path.clone()]
        })
        .collect();
    let count = |name: &str| rows.iter().filter(|row| row[0] == name).count();
    let sum = format!(
        "\n{} governed, {} watched, {} open. Every other write, and every read, passes and is not recorded.\n",
        count("governed"),
        count("watched"),
        count("open")
    );
    view::table(["CLASS", "METHOD", "WHAT HAPPENS", "PATH"], &rows) + &sum
}

/// A configuration that is wrong hides nothing that is wrong with the policies it names.
fn with_policies(failure: Failure, config: &Config) -> Failure {
    let (_, wrong) = policies(config);
    Failure { message: [vec![failure.message], wrong].concat().join("\n"), ..failure }
}

/// The bundle when it loads, and everything wrong with it.
fn policies(config: &Config) -> (Option<Bundle>, Vec<String>) {
    match Bundle::load(config.policies_dir.as_deref(), &config.overlays(), config.judging()) {
        Ok(bundle) => {
            let wrong = [bundle.run_cases(), bundle.contradictions()].concat();
            (Some(bundle), wrong)
        }
        Err(errors) => (None, errors.iter().map(ToString::to_string).collect()),
    }
}

/// What a real answer has that the object file does not expect, and the other way round.
async fn real(config: &Config, bundle: &Bundle, id: &str, token: &Path) -> Result<Vec<String>, Failure> {
    let unable = |message: String| Failure { code: UNABLE, message };
    let object = bundle.operations().values().next().map(|operation| operation.object.clone());
    let object = object.ok_or_else(|| unable("the bundle governs nothing".to_owned()))?;
    let target = identity::target(&object, "--identity", id)?;
    let body = identity::answer(config, &object, &target, token).await?;
    let at = |what: String| {
        format!(
            "{}: {what}; the gateway cannot judge such an answer until its object file (policies/objects/{}.toml, version {}) says how",
            object.path, object.name, object.version
        )
    };
    Ok(match State::read(&object, &target.id(), &body) {
        Err(unreadable) => vec![at(unreadable.0)],
        Ok(stored) => stored
            .unknown
            .names()
            .map(|name| format!("{}: the answer has `{name}`, which the object file does not know: it is neither judged nor recorded", object.path))
            .collect(),
    })
}

async fn outside(config: &Config) -> Vec<String> {
    let metrics = Arc::new(Metrics::new());
    let upstream = match Upstream::new(&config.upstream, config.limits.connect.0, metrics) {
        Ok(upstream) => upstream.status_probe(PROBE).await,
        Err(error) => Err(error.to_string()),
    };
    [upstream, open_store(config).await].into_iter().filter_map(Result::err).collect()
}

/// A store that is not there yet will be made; one that is there has to be ours and readable.
async fn open_store(config: &Config) -> Result<(), String> {
    if config.store.is_missing() {
        return Ok(());
    }
    if config.store.path().is_none() {
        // What a gateway needs is more than what a reader does; nothing is written.
        let database =
            Database::open(&config.store, false).await.map_err(|error| format!("store.url: {error}"))?;
        database.close().await;
        return Ok(());
    }
    let reader = Reader::open(&config.store).await.map_err(|error| format!("store.url: {error}"))?;
    reader.close().await;
    Ok(())
}
