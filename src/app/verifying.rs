//! The whole log, read once after a start, beside what is served.
//!
//! A start itself looks only at the end of the log, so that it takes no longer for a long one. What is wrong further back is
//! found here: it stops nothing (what is written is still true), but it is a problem on `/readyz`, an event and a metric
//! until the gateway is started on a log that is whole.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::api::Readiness;
use crate::audit::verify::{self, Asked, Verified};
use crate::audit::{Audit, Status};
use crate::clock::{Clock, Time};
use crate::log;
use crate::metrics::Metrics;
use crate::store::Location;

/// The part of `/readyz` that tells of a log that is not whole.
const PART: &str = "log";

/// What reads it, and whom it tells.
pub(super) struct Verifying {
    pub audit: Audit,
    pub store: Location,
    pub readiness: Readiness,
    pub metrics: Arc<Metrics>,
}

impl Verifying {
    /// Waits until the log is open, then reads it, unless it is told to stop first.
    pub(super) async fn run(self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.once() => {}
        }
    }

    async fn once(&self) {
        let mut status = self.audit.watch();
        if status.wait_for(|status| *status == Status::Up).await.is_err() {
            return;
        }
        match verify::run(&self.store, &Asked::default(), |_| ()).await {
            Ok(logs) => self.tell(&logs, Clock::System.now()),
            // Whoever writes it says when it is away.
            Err(error) => log::not_verified(&error.to_string()),
        }
    }

    fn tell(&self, logs: &[Verified], now: Time) {
        let faults: Vec<String> = logs.iter().filter_map(fault).collect();
        self.metrics.log_faults.set(i64::try_from(faults.len()).unwrap_or(i64::MAX));
        for fault in &faults {
            log::damaged(fault);
        }
        if faults.is_empty() {
            log::verified(logs.iter().map(|log| log.size).sum());
        } else {
            self.readiness.problem(
                PART,
                now,
                &format!("{}; `patchwarden verify` says more", faults.join("; ")),
            );
        }
    }
}

fn fault(log: &Verified) -> Option<String> {
    let fault = log.fault.as_ref()?;
    let place = fault.index.map(|index| format!("entry {index} of ")).unwrap_or_default();
    Some(format!("{place}{}: {}", log.origin, fault.what))
}
