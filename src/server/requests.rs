//! The requests of one connection, and the silence between them.
//!
//! HTTP/2 has no idle timeout of its own; this is it. A connection on which a request is being handled is never silent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// The requests of one connection.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    begun: AtomicU64,
    answered: AtomicU64,
    /// Set once the connection no longer speaks HTTP.
    upgraded: AtomicBool,
}

impl Requests {
    pub(super) fn begin(self: &Arc<Self>) -> Running {
        self.begun.fetch_add(1, Ordering::AcqRel);
        Running(Arc::clone(self))
    }

    pub(super) fn begun(&self) -> u64 {
        self.begun.load(Ordering::Acquire)
    }

    pub(super) fn is_upgraded(&self) -> bool {
        self.upgraded.load(Ordering::Acquire)
    }

    /// Ends when no request came within `first`, or none came and none was being handled for `idle`.
    pub(super) async fn silence(self: &Arc<Self>, first: Duration, idle: Duration) {
        sleep(first).await;
        let mut since = Instant::now();
        let mut seen = 0;
        loop {
            let begun = self.begun();
            if begun == 0 {
                return;
            }
            if begun != seen || self.answered.load(Ordering::Acquire) != begun {
                (seen, since) = (begun, Instant::now());
            } else if since.elapsed() >= idle {
                return;
            }
            sleep(idle / 4).await;
        }
    }
}

/// One request being handled.
pub(super) struct Running(Arc<Requests>);

impl Running {
    /// The connection ends as something else than HTTP.
    pub(super) fn upgrade(&self) {
        self.0.upgraded.store(true, Ordering::Release);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.answered.fetch_add(1, Ordering::AcqRel);
    }
}
