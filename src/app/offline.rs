//! The log without a server: for commands that write while no gateway runs; and the keys, for both.
//!
//! Whoever opens it so has its locks: a gateway that runs is asked instead.

use std::sync::Arc;

use tokio_util::task::TaskTracker;

use super::Failure;
use crate::audit::anchor::Anchors;
use crate::audit::{self, Audit, Status};
use crate::clock::Clock;
use crate::config::{Config, Provenance};
use crate::id::Digest;
use crate::keys::{self, Keys};
use crate::metrics::Metrics;

/// The log of a gateway that does not run, for commands that write; [`Audit::stop`] releases its locks.
pub async fn offline(config: &Config) -> Result<Audit, Failure> {
    let audit = Audit::start(audit::Parts {
        store: config.store.clone(),
        late_write_limit: config.upstream.late_write_limit.0,
        data: config.data.clone(),
        settings: config.audit.clone(),
        anchors: anchors(config)?,
        keys: Arc::new(open_keys(config)?),
        clock: Clock::System,
        metrics: Arc::new(Metrics::new()),
        tasks: TaskTracker::new(),
        in_force: None,
    });
    let audit = audit.await.map_err(Failure::unable)?;
    match audit.status() {
        Status::Up => Ok(audit),
        Status::Down { detail, .. } => Err(Failure::unable(detail)),
    }
}

/// Where heads go beside the store.
pub fn anchors(config: &Config) -> Result<Anchors, Failure> {
    Anchors::new(&config.anchor, config.limits.connect.0).map_err(|wrong| {
        let lines: Vec<_> = wrong.iter().map(ToString::to_string).collect();
        Failure::misconfigured(lines.join("\n"))
    })
}

/// What the log names a configuration by: two are the same when every setting is. Keyed, and without passwords.
pub(super) fn fingerprint(config: &Config, keys: &Keys) -> Digest {
    let line = |setting: &Provenance| {
        format!("{} = {}\n", setting.key, setting.value.as_deref().unwrap_or_default())
    };
    keys.fingerprint("config", config.provenance().iter().map(line).collect::<String>().as_bytes())
}

/// Keys are made only where there is no log yet that other keys belong to.
pub(super) fn open_keys(config: &Config) -> Result<Keys, Failure> {
    let path = config.store.path();
    let exists = path.is_some_and(|path| std::fs::metadata(path).is_ok_and(|file| file.len() > 0));
    let fingerprint = config.audit.fingerprint_key_file.as_deref();
    let keys = Keys::open(&config.data, fingerprint, exists).map_err(Failure::unable)?;
    if let Some(folder) =
        path.and_then(std::path::Path::parent).filter(|folder| !folder.as_os_str().is_empty())
    {
        keys::make_folder(folder)
            .map_err(|error| Failure::unable(format!("store.url (--store): {error}")))?;
    }
    Ok(keys)
}
