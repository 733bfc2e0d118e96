//! The WAL, kept short.
//!
//! Once it is long, most of it is copied back by a connection of its own, beside the writer; what came meanwhile the
//! writer copies itself between two batches, and the next commit starts the WAL again in place. A WAL that grows faster
//! than it is copied is waited for, and one that is over its limit takes no further changes.

use std::time::Duration;

use super::{Job, Writer, refuse};

/// How long a batch waits for a WAL over its soft limit to be copied.
const COPY_WAIT: Duration = Duration::from_millis(50);

impl Writer {
    /// Refuses who begins a change while the WAL is over its hard limit.
    pub(super) async fn refuse_over_hard_limit(&mut self, jobs: Vec<Job>) -> Vec<Job> {
        let (soft, hard) = (self.shared.settings.wal_soft.0, self.shared.settings.wal_hard.0);
        let size = |writer: &Self| writer.log.as_ref().map_or(0, |log| log.database.wal_bytes());
        if size(self) < soft.min(hard) {
            return jobs;
        }
        self.checkpoint().await;
        // Also where the limits are lower than what it is copied at by itself.
        if let (None, Some(log)) = (&self.copying, &self.log) {
            self.copying = Some(self.shared.writing.spawn(log.database.copier()));
        }
        if let Some(copying) = &mut self.copying
            && tokio::time::timeout(COPY_WAIT, copying).await.is_ok()
        {
            self.copy_rest().await;
        }
        let size = size(self);
        if size < hard {
            return jobs;
        }
        let detail = format!("the WAL is {size} bytes, over audit.wal_hard");
        refuse(jobs, |job| !job.must, &detail)
    }

    /// Goes on with copying it back, if it is long.
    pub(super) async fn checkpoint(&mut self) {
        match (&self.copying, &self.log) {
            (Some(copying), _) if copying.is_finished() => self.copy_rest().await,
            (None, Some(log)) if log.database.wants_checkpoint() => {
                self.copying = Some(self.shared.writing.spawn(log.database.copier()));
            }
            _ => {}
        }
    }

    async fn copy_rest(&mut self) {
        self.copying = None;
        if let Some(log) = &mut self.log {
            // What could not be copied is tried again after the next batch.
            let _ = log.database.checkpoint().await;
        }
    }

    /// Waits until nothing but the writer has the files open for writing.
    pub(super) async fn copied(&mut self) {
        if let Some(copying) = self.copying.take() {
            let _ = copying.await;
        }
    }
}
