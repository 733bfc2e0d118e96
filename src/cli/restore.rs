//! `patchwarden restore FILE`: puts a backup in the place of a store that is not there.
//!
//! First it is looked at: whether it is whole, whether its log is that of this data folder, and how much of the log it
//! does not hold, by the heads kept outside the store. Then it is put in place, unless only that was asked, or a store is
//! there, or a gateway runs. Ends with 1 when the file cannot be used.

use std::path::PathBuf;

use super::out::{complain, print};
use super::{UNABLE, WRONG};
use crate::app::{self, Failure};
use crate::audit::backup::{self, Since};
use crate::config::Config;
use crate::keys::Keys;
use crate::store::{self, Error};

/// What `restore` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The backup
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Only say what it holds and what would be lost
    #[arg(long)]
    check: bool,
}

pub(super) async fn run(args: &Args, config: &Config) -> Result<u8, Failure> {
    backup::restorable(&config.store).map_err(|error| failure(&error))?;
    let fingerprint = config.audit.fingerprint_key_file.as_deref();
    let keys = Keys::open(&config.data, fingerprint, true);
    let keys = keys.map_err(|error| Failure { code: WRONG, message: error.to_string() })?;
    let anchors = app::anchors(config)?;
    let found = backup::look(&args.file, &config.store, &config.data, &keys, &anchors).await;
    let found = found.map_err(|error| failure(&error))?;
    let mut told = String::new();
    for log in &found.logs {
        told += &format!("{}: {} entries, root {}\n", log.origin, log.size, log.root);
    }
    print(&told)?;
    let head = store::head_path(&config.store, &config.data);
    let (origin, size) = (&found.ours.origin, found.ours.size);
    complain(&match &found.since {
        Since::Nothing => {
            format!(
                "nothing is lost: the backup holds all that was committed, as {} and what `[anchor]` names say",
                head.display()
            )
        }
        Since::Entries(lost) => format!(
            "{lost} entries of {origin}, from entry {size} on, are not in the backup and would be lost; the next start closes that log and begins another, whose first entry says so (event succession)"
        ),
        Since::Succeeded(by) => format!(
            "the backup was made before {origin} was succeeded by {by}, and holds nothing of that; the next start begins another log, whose first entry says so (event succession)"
        ),
        Since::Unknown => format!(
            "{} is not there, nor a head where `[anchor]` says, so nobody can say what the backup does not hold, and the log will be continued from entry {size}",
            head.display()
        ),
    });
    if args.check {
        return Ok(0);
    }
    backup::place(&args.file, &config.store, &config.data).map_err(|error| failure(&error))?;
    complain(&format!("{} is in place; start the gateway and look with `patchwarden history`", config.store));
    Ok(0)
}

fn failure(error: &Error) -> Failure {
    let code = if matches!(error, Error::Fatal(_) | Error::Refused(_)) { WRONG } else { UNABLE };
    Failure { code, message: error.to_string() }
}
