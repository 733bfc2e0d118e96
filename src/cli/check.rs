//! `patchwarden check`: says everything that is wrong, before anything runs.
//!
//! The configuration comes in loaded as `serve` loads it. Here the policies are loaded and their cases run, and with
//! `--online` the upstream is asked for its status and the store opened for reading. Sends no credentials, changes
//! nothing. Ends with 1 when the policies are wrong, with 3 when only what is outside cannot be reached.

use std::sync::Arc;
use std::time::Duration;

use super::{UNABLE, WRONG, out};
use crate::app::Failure;
use crate::bundle::Bundle;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::operation::{CatalogueEntry, Class};
use crate::pipeline::UngovernedWrites;
use crate::store::{self, Reader};
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
    /// Print every write of the guarded API that is known, and what happens to it
    #[arg(long)]
    coverage: bool,
}

pub(super) async fn run(args: &Args, config: &Config) -> Result<u8, Failure> {
    let (bundle, wrong) = policies(config);
    let away = if args.online { outside(config).await } else { Vec::new() };
    for line in wrong.iter().chain(&away) {
        out::complain(&format!("error: {line}"));
    }
    if !wrong.is_empty() {
        return Ok(WRONG);
    }
    if !away.is_empty() {
        return Ok(UNABLE);
    }
    if let Some(bundle) = bundle.filter(|_| args.coverage) {
        return out::print(&coverage(&bundle, config.ungoverned_writes)).map(|()| 0);
    }
    let file = config.file.as_ref().map_or("no file".to_owned(), |path| path.display().to_string());
    let online = if args.online { ", upstream and store" } else { "" };
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

/// The bundle when it loads, and everything wrong with it.
fn policies(config: &Config) -> (Option<Bundle>, Vec<String>) {
    let settings = policy::Settings { ip_allow_listing: config.upstream.ip_allow_listing, mode: config.mode };
    match Bundle::load(config.policies_dir.as_deref(), &config.rules, settings) {
        Ok(bundle) => {
            let wrong = [bundle.run_cases(), bundle.contradictions()].concat();
            (Some(bundle), wrong)
        }
        Err(errors) => (None, errors.iter().map(ToString::to_string).collect()),
    }
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
    let path = store::path_of(&config.store_url).map_err(|error| error.to_string())?;
    if !path.exists() {
        return Ok(());
    }
    let reader = Reader::open(&path).await.map_err(|error| format!("store.url: {error}"))?;
    reader.close().await;
    Ok(())
}
