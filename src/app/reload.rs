//! What is taken anew while the gateway runs: certificates, and the folder of policies.
//!
//! Looked at now and then and on SIGHUP, by content, so that a swapped link counts and a touched file does not. What is
//! wrong is never taken: what was in force stays, and the log, the metrics, `/readyz` and the audit log say why. A
//! request is judged whole by the bundle it began with.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use serde_json::json;
use tokio::signal::unix::Signal;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use crate::api::Readiness;
use crate::audit::Audit;
use crate::bundle::{self, Bundle, Overlays};
use crate::config::Config;
use crate::log;
use crate::metrics::Metrics;
use crate::policy::Settings;
use crate::server::Tls;

/// The part of `/readyz` that tells of policies that were not taken.
const PART: &str = "policies";
/// Of what is wrong with them the audit log keeps so many characters.
const MAX_TOLD: usize = 2000;
/// A shorter span would do nothing but look; a longer one is as good as never, and a clock can still hold it.
const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_hours(365 * 24);

/// Everything that can change.
pub(super) struct Reload {
    pub(super) certificates: Vec<Arc<Tls>>,
    pub(super) policies: Option<Folder>,
    /// How often certificates and policies are looked at.
    pub(super) every: (Duration, Duration),
    /// SIGHUP: both are looked at, at once.
    pub(super) hangup: Signal,
    pub(super) audit: Audit,
    pub(super) readiness: Readiness,
    pub(super) metrics: Arc<Metrics>,
}

/// A folder of policies and the bundle made of it.
#[derive(Clone)]
pub(super) struct Folder {
    dir: PathBuf,
    overlays: Overlays,
    settings: Settings,
    in_force: Arc<RwLock<Arc<Bundle>>>,
    /// Digest of the content that was last tried, right or wrong.
    tried: [u8; 32],
}

impl Folder {
    /// The folder of a configuration, whose bundle is in force, made of this content.
    pub(super) fn new(config: &Config, tried: [u8; 32], in_force: Arc<RwLock<Arc<Bundle>>>) -> Self {
        let dir = config.policies_dir.clone().unwrap_or_default();
        Self { dir, overlays: config.overlays(), settings: config.judging(), in_force, tried }
    }

    /// Loads what changed; `None` when nothing did. Everything wrong comes back, a failed case included.
    fn changed(&mut self) -> Option<Result<Bundle, Vec<String>>> {
        let content = bundle::content(&self.dir);
        if content == self.tried {
            return None;
        }
        self.tried = content;
        let loaded = Bundle::load(Some(&self.dir), &self.overlays, self.settings);
        Some(match loaded {
            Err(errors) => Err(errors.iter().map(ToString::to_string).collect()),
            Ok(bundle) => {
                let failed = bundle.run_cases();
                if failed.is_empty() { Ok(bundle) } else { Err(failed) }
            }
        })
    }
}

impl Reload {
    /// Looks until told to stop.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        // Each kept across turns, so that neither waits for the other to be silent.
        let (mut certificates, mut policies) = (each(self.every.0), each(self.every.1));
        let mut wrong = BTreeSet::new();
        loop {
            let (has_certificates, has_policies) = (!self.certificates.is_empty(), self.policies.is_some());
            let (look_at_certificates, look_at_policies) = tokio::select! {
                () = stop.cancelled() => return,
                _ = self.hangup.recv() => (true, true),
                _ = certificates.tick(), if has_certificates => (true, false),
                _ = policies.tick(), if has_policies => (false, true),
            };
            if look_at_certificates {
                self.renew(&mut wrong).await;
            }
            if look_at_policies {
                self.reload().await;
            }
        }
    }

    /// `wrong`: the sections whose files could not be used when they last changed.
    async fn renew(&self, wrong: &mut BTreeSet<&'static str>) {
        for tls in &self.certificates {
            let again = tls.clone();
            match tokio::task::spawn_blocking(move || again.reload()).await {
                Ok(Ok(true)) => {
                    wrong.remove(tls.section());
                    log::tls_reloaded(tls.section());
                }
                Ok(Ok(false)) | Err(_) => {}
                Ok(Err(problem)) => {
                    wrong.insert(tls.section());
                    log::tls_reload_failed(&problem);
                }
            }
        }
        self.metrics.tls_reload_failed.set(i64::from(!wrong.is_empty()));
    }

    async fn reload(&mut self) {
        let Some(mut folder) = self.policies.take() else { return };
        let looked = tokio::task::spawn_blocking(move || {
            let found = folder.changed();
            (folder, found)
        });
        let Ok((folder, found)) = looked.await else { return };
        match found {
            None => {}
            Some(Ok(bundle)) => self.take(&folder, bundle),
            Some(Err(wrong)) => self.refuse(&folder, &wrong),
        }
        self.policies = Some(folder);
    }

    fn take(&self, folder: &Folder, bundle: Bundle) {
        let digest = bundle.digest().clone();
        // Before anything can cite it.
        self.audit.keep_bundle(&digest, bundle.text());
        let mut in_force = folder.in_force.write().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *in_force, Arc::new(bundle));
        drop(in_force);
        self.metrics.policy_reload_failed.set(0);
        self.readiness.solved(PART);
        log::reloaded(digest.as_str());
        self.audit.policies_taken(before.digest(), &digest);
    }

    fn refuse(&self, folder: &Folder, wrong: &[String]) {
        let told: String = wrong.join("; ").chars().take(MAX_TOLD).collect();
        let in_force = folder.in_force.read().unwrap_or_else(PoisonError::into_inner).digest().clone();
        self.metrics.policy_reload_failed.set(1);
        self.readiness.problem(PART, self.audit.now(), &told);
        log::reload_failed(&told);
        self.audit.note("policies_refused", json!({"v": 1, "in_force": in_force, "problem": told}));
    }
}

fn each(period: Duration) -> Interval {
    let period = period.clamp(SHORTEST, LONGEST);
    let mut ticks = interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
