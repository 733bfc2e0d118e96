//! `patchwarden prune --older-than`: removes what was recorded long ago.
//!
//! A running gateway is asked, a few seconds of removing at a time, until nothing is left to remove; only when none runs
//! is the store opened here, with its locks. What goes are payloads: who, from where, what was asked, the states. Entries
//! stay with their digests, so that every proof holds. Backups are not reached, which is said each time.

use http::Method;
use serde_json::{Value, json};

use super::ask::ask;
use super::out::{Progress, complain, print};
use super::{MISCONFIGURED, UNABLE};
use crate::app::{self, Failure};
use crate::audit::Pruned;
use crate::clock::{Clock, Time};
use crate::config::Config;
use crate::units::Span;

/// What `prune` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Everything written longer ago than this, like 365d
    #[arg(long, value_name = "SPAN", value_parser = Span::parse)]
    older_than: Span,
}

pub(super) async fn run(args: &Args, config: &Config) -> Result<u8, Failure> {
    if args.older_than.0.is_zero() {
        let message = "--older-than is zero, which would leave nothing; write one like 365d".to_owned();
        return Err(Failure { code: MISCONFIGURED, message });
    }
    if config.store.is_missing() {
        return Err(unable(format!("{} does not exist; has a gateway run with this store?", config.store)));
    }
    // One time for all steps: asked again, it is the same prune.
    let before = Clock::System.now().minus(args.older_than.0);
    let mut progress = Progress::new("payloads", None);
    let removed = removed(config, before, &mut progress).await;
    progress.end();
    let removed = removed?;
    print(&format!("{removed}\n"))?;
    complain(&match removed {
        0 => format!("nothing that may go was recorded before {before}"),
        _ => format!("what was recorded before {before} is removed from this store: {removed} payloads"),
    });
    complain(
        "kept: each identity's newest applied change, changes whose end is open, entries about the gateway itself",
    );
    complain("backups, copies and standbys are not reached: remove what is too old there as well");
    Ok(0)
}

/// Asks, or does it here, until it is done.
async fn removed(config: &Config, before: Time, progress: &mut Progress) -> Result<u64, Failure> {
    let (body, mut removed) = (json!({"before": before}), 0);
    while let Some(answer) = ask(&config.data, Method::POST, "/v1/prune", Some(&body)).await? {
        let told = told(&answer)?;
        removed += told.removed;
        progress.advance(usize::try_from(told.removed).unwrap_or(0));
        if told.done {
            return Ok(removed);
        }
    }
    let audit = app::offline(config).await?;
    let here = async {
        loop {
            let step = audit.prune(before, "patchwarden prune").await.map_err(unable)?;
            removed += step.removed;
            progress.advance(usize::try_from(step.removed).unwrap_or(0));
            if step.done {
                return Ok(removed);
            }
        }
    };
    let removed = here.await;
    audit.stop().await;
    removed
}

fn told(answer: &Value) -> Result<Pruned, Failure> {
    let removed = answer["removed"].as_u64();
    let removed = removed.ok_or_else(|| unable("the gateway's answer does not say what it removed"))?;
    Ok(Pruned { removed, done: answer["done"] == true })
}

fn unable(message: impl Into<String>) -> Failure {
    Failure { code: UNABLE, message: message.into() }
}
