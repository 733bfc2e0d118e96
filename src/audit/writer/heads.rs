//! What the log signs of itself: its head, at most once a second while it grows.
//!
//! A head is signed only as it was read back or committed, goes into the store and into a file beside it, and is told to
//! whoever carries it elsewhere. Kept are all of the last day, one an hour for 90 days, one a day for ever; one that a
//! witness signed is kept rather than one that none did.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::super::checkpoint::{Checkpoint, Note, Verifier};
use super::Writer;
use crate::keys::{self, Keys};
use crate::store::{self, CheckpointRow};

const HEAD_EVERY: Duration = Duration::from_secs(1);
const THIN_EVERY: Duration = Duration::from_secs(3600);
const HOUR: i64 = 3_600_000_000;
const DAY: i64 = 24 * HOUR;

impl Writer {
    /// When the head is to be signed, unless it is.
    pub(super) fn keep_at(&self) -> Option<Instant> {
        let size = self.known.as_ref()?.size;
        (size != self.kept.1).then(|| self.kept.0 + HEAD_EVERY)
    }

    /// Signs the head and keeps it, at most once a second: a store that falls behind it has lost something.
    pub(super) async fn keep_head(&mut self, now: bool) -> Result<(), store::Error> {
        let Some(known) = self.known.clone() else { return Ok(()) };
        if (!now && self.keep_at().is_none_or(|at| Instant::now() < at)) || known.size == 0 {
            return Ok(());
        }
        let head = sign(&known, &self.shared.keys, self.shared.clock.now().0);
        // A log that is away is signed when it is back; what was committed is known all the same.
        let log = self.log.as_mut().filter(|log| log.origin == known.origin);
        let is_stored = log.is_some();
        if let Some(log) = log {
            log.database.put_checkpoint(&log.origin, &head).await?;
        }
        let (path, text) = (store::head_path(&self.store, &self.shared.data), head.note());
        // A file that cannot be written is tried again later; the log does not wait for it.
        let written = tokio::task::spawn_blocking(move || keys::write_private(&path, &text)).await;
        let is_kept = is_stored && written.is_ok_and(|written| written.is_ok());
        self.kept = (Instant::now(), if is_kept { head.size } else { self.kept.1 });
        self.shared.head.send_replace(Note::read(&head.note()).ok());
        self.thin_out().await
    }

    async fn thin_out(&mut self) -> Result<(), store::Error> {
        if self.thinned.is_some_and(|at| at.elapsed() < THIN_EVERY) {
            return Ok(());
        }
        self.thinned = Some(Instant::now());
        let now = self.shared.clock.now().0;
        let Some(log) = &mut self.log else { return Ok(()) };
        log.database.begin().await?;
        let old = log.database.checkpoints_before(&log.origin, now - DAY).await;
        let drop = old.map(|old| superfluous(&old, now));
        match drop {
            Ok(drop) if !drop.is_empty() => {
                log.database.drop_checkpoints(&log.origin, &drop).await?;
                log.database.commit().await
            }
            other => {
                log.database.rollback().await?;
                other.map(|_| ())
            }
        }
    }
}

fn sign(head: &Checkpoint, keys: &Keys, at: i64) -> CheckpointRow {
    let body = head.to_string();
    let line = |signed: keys::Signed| Verifier::of_log(&head.origin, signed.public).line(&signed.signature);
    let signatures = keys.sign(body.as_bytes()).into_iter().map(line).collect();
    CheckpointRow { size: head.size, at, body, signatures }
}

/// Of heads older than a day (size, time, whether a witness signed it), by size: those that need not be kept.
fn superfluous(old: &[(u64, i64, bool)], now: i64) -> Vec<u64> {
    let mut kept: BTreeMap<(bool, i64), (u64, bool)> = BTreeMap::new();
    let mut drop = Vec::new();
    for (size, at, is_witnessed) in old {
        let is_recent = now - at < 90 * DAY;
        let period = (is_recent, at / if is_recent { HOUR } else { DAY });
        match kept.get(&period) {
            // The newest of a period says most.
            Some((_, true)) if !is_witnessed => drop.push(*size),
            _ => drop.extend(kept.insert(period, (*size, *is_witnessed)).map(|(size, _)| size)),
        }
    }
    drop.sort_unstable();
    drop
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_an_hour_is_kept_for_90_days_and_then_one_a_day() {
        let now = 200 * DAY;
        let at = |days: i64, minutes: i64| now - days * DAY + minutes * 60_000_000;
        let old = [
            (1, at(100, 1), false),
            (2, at(100, 2), false),
            (3, at(100, 70), false),
            (4, at(5, 1), false),
            (5, at(5, 2), true),
            (6, at(5, 3), false),
            (7, at(5, 61), false),
        ];
        assert_eq!(superfluous(&old, now), [1, 2, 4, 6]);
        let left: Vec<_> = old.into_iter().filter(|head| [3, 5, 7].contains(&head.0)).collect();
        assert_eq!(superfluous(&left, now), [0u64; 0]);
        assert_eq!(
            superfluous(&left, now + 90 * DAY),
            [7],
            "the hours of a day become one: that which a witness signed"
        );
    }
}
