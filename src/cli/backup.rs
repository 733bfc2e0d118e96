//! `patchwarden backup FILE`: the store in one file, as it was at one moment.
//!
//! Made and read back here, beside a running gateway, which is then told, so that the log says that there is a backup; when
//! none runs, the log is opened for that. A file that is there is never written over. It holds no key.

use std::path::PathBuf;

use http::Method;
use serde_json::json;

use super::ask::ask;
use super::out::{complain, print};
use super::{UNABLE, WRONG};
use crate::app::{self, Failure};
use crate::audit::backup::{self, Backup};
use crate::clock::Clock;
use crate::config::Config;
use crate::store::{self, Error};

/// What `backup` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The file to make; it must not be there
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

pub(super) async fn run(args: &Args, config: &Config) -> Result<u8, Failure> {
    let made = backup::make(&config.store, &args.file).await.map_err(|error| Failure {
        code: if matches!(error, Error::Refused(_)) { WRONG } else { UNABLE },
        message: error.to_string(),
    })?;
    let mut told = format!("{}: {} bytes, verified\n", args.file.display(), made.bytes);
    for log in &made.logs {
        told += &format!("{}: {} entries, root {}\n", log.origin, log.size, log.root);
    }
    print(&told)?;
    complain(
        "it holds no keys: keep a copy of fingerprint.key, log.key and instance of the data folder elsewhere",
    );
    note(config, &made).await.map_err(|failure| Failure {
        message: format!("the backup is made, and the log could not be told of it: {}", failure.message),
        ..failure
    })?;
    Ok(0)
}

/// Has the log say that there is a backup.
async fn note(config: &Config, made: &Backup) -> Result<(), Failure> {
    if ask(&config.data, Method::POST, "/v1/backups", Some(&json!(made))).await?.is_some() {
        return Ok(());
    }
    // Opened here it would be migrated, and whoever makes a backup before an upgrade may not want that yet.
    let is_current = match config.store.path() {
        Some(path) => store::is_current(path).await,
        None => Ok(true),
    };
    if is_current.is_ok_and(|is_current| !is_current) {
        complain(
            "the log is not told of it: the store is one of an older version, and stays so until a gateway starts",
        );
        return Ok(());
    }
    let audit = app::offline(config).await?;
    let noted = audit.record("backup", made.entry(Clock::System.now(), "patchwarden backup")).await;
    audit.stop().await;
    noted.map_err(|message| Failure { code: UNABLE, message })
}
