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
use crate::policy;
use crate::store::{self, Reader};
use crate::upstream::Upstream;

/// How long the upstream may take to say that it is there.
const PROBE: Duration = Duration::from_secs(10);

/// What `check` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Also connect to the upstream and to the store; sends no credentials
    #[arg(long)]
    online: bool,
}

pub(super) async fn run(args: &Args, config: &Config) -> Result<u8, Failure> {
    let wrong = policies(config);
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
    let file = config.file.as_ref().map_or("no file".to_owned(), |path| path.display().to_string());
    let online = if args.online { ", upstream and store" } else { "" };
    out::print(&format!("ok: configuration ({file}), policies{online}\n")).map(|()| 0)
}

fn policies(config: &Config) -> Vec<String> {
    let settings = policy::Settings { ip_allow_listing: config.upstream.ip_allow_listing, mode: config.mode };
    match Bundle::load(config.policies_dir.as_deref(), &config.rules, settings) {
        Ok(bundle) => bundle.run_cases(),
        Err(errors) => errors
            .into_iter()
            .map(|error| match error.key.as_str() {
                "" => format!("{}: {}", error.file, error.message),
                key => format!("{}: {key}: {}", error.file, error.message),
            })
            .collect(),
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
