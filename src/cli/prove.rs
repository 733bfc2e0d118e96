//! `patchwarden prove ID`: one file that proves a change to somebody who has no store.
//!
//! It holds the change's entries byte for byte, their payloads and salts, and for each a proof that leads to a head the
//! log has signed. `patchwarden verify FILE --public-key KEY` checks it, and so does `docs/verify-proof.py`. The store is
//! read beside a running gateway, which signs its head once a second.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;

use super::out::{complain, print};
use super::show::no_change;
use super::{UNABLE, WRONG};
use crate::app::Failure;
use crate::audit::evidence::Evidence;
use crate::audit::query::Reader;
use crate::config::Config;

/// How long a head over the change is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// What `prove` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The change's id, its number in the log, or `last`
    #[arg(value_name = "ID")]
    id: String,
    /// Also write each entry and its proof alone into this folder, as files that tools for transparency logs read
    #[arg(long, value_name = "DIR")]
    tlog_proof: Option<PathBuf>,
}

pub(super) async fn run(args: &Args, config: &Config) -> Result<u8, Failure> {
    let reader = Reader::open(&config.store).await.map_err(unable)?;
    let began = Instant::now();
    let evidence = loop {
        match reader.proof(&args.id).await.map_err(unable)? {
            None => return Err(Failure { code: WRONG, message: no_change(&args.id) }),
            Some(Some(evidence)) => break evidence,
            Some(None) if began.elapsed() < PATIENCE => tokio::time::sleep(Duration::from_millis(200)).await,
            Some(None) => {
                return Err(unable(
                    "no signed head is over this change; a running gateway signs one within a second, a stopped one has",
                ));
            }
        }
    };
    if let Some(folder) = &args.tlog_proof {
        for (name, text) in bare(&evidence) {
            write_new(folder, &name, &text)?;
        }
    }
    print(&format!("{:#}\n", json!(evidence)))?;
    Ok(0)
}

/// Names and contents of the files for other tools: the leaf as it was hashed, and its proof.
fn bare(evidence: &Evidence) -> Vec<(String, String)> {
    let files = |index: u64, envelope: &String, proof: &String| {
        let name = format!("{}-{index}", evidence.change);
        [(format!("{name}.json"), envelope.clone()), (format!("{name}.tlog-proof"), proof.clone())]
    };
    evidence.entries.iter().flat_map(|entry| files(entry.index, &entry.envelope, &entry.proof)).collect()
}

fn write_new(folder: &Path, name: &str, text: &str) -> Result<(), Failure> {
    let path = folder.join(name);
    let write = || {
        std::fs::create_dir_all(folder)?;
        OpenOptions::new().write(true).create_new(true).open(&path)?.write_all(text.as_bytes())
    };
    write().map_err(|error| unable(format!("--tlog-proof: {}: {error}", path.display())))?;
    complain(&format!("wrote {}", path.display()));
    Ok(())
}

fn unable(message: impl Into<String>) -> Failure {
    Failure { code: UNABLE, message: message.into() }
}
