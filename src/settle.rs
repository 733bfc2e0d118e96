//! Unknown ends, settled by evidence, and drift.
//!
//! A write whose end was not seen holds its target. [`judge`] is the table of evidence: it compares what a
//! read shows now with what the held intent had before and proposed, and says what became of it, or that it is too
//! early to say. A read that shows the old state before the write could no longer land proves nothing.

use std::time::Duration;

use serde_json::{Value, json};

use crate::audit::{Hold, Seen, Settled, Settlement};
use crate::before::Reading;
use crate::clock::Time;
use crate::keys::Keys;
use crate::operation::Revision;

/// After a complete 5xx of the upstream's own making its handler is through, and nothing lands later than this.
const AFTER_HANDLER_ENDED: Duration = Duration::from_secs(5);

/// What a reading proves about a held intent; `None` while it may still land.
pub fn judge(
    hold: &Hold,
    reading: &Reading,
    late_write_limit: Duration,
    by: &'static str,
    keys: &Keys,
) -> Option<Settlement> {
    let limit = limit(hold, late_write_limit);
    let late = match hold.since_here {
        Some(since) => reading.started.saturating_duration_since(since) > limit,
        None => reading.began > hold.since && reading.began.since(hold.since) > limit,
    };
    let moved = moved(hold.before_revision.as_ref(), reading.revision());
    let state = reading.stored.as_ref().map(|stored| stored.state.recorded(keys));
    let as_proposed = state.clone().unwrap_or(Value::Null) == hold.proposed.clone().unwrap_or(Value::Null);
    let result = match (moved, as_proposed, late) {
        (true, true, _) => Settled::Applied,
        (true, false, _) => Settled::Superseded,
        (false, _, true) => Settled::NotApplied,
        (false, _, false) => return None,
    };
    let evidence = json!({
        "read_began": reading.began,
        "revision_before": hold.before_revision,
        "revision_now": reading.revision(),
        "late": late,
    });
    let after = Seen::of(reading.stored.as_ref());
    Some(Settlement {
        of: hold.intent.clone(),
        result,
        evidence,
        by,
        after: Some(after),
        also: hold.over.clone(),
    })
}

/// Seconds until a read can prove that the write did not land.
pub fn wait(hold: &Hold, now: Time, late_write_limit: Duration) -> u64 {
    let waited = hold.since_here.map_or_else(|| now.since(hold.since), |since| since.elapsed());
    limit(hold, late_write_limit).saturating_sub(waited).as_secs() + 1
}

fn limit(hold: &Hold, late_write_limit: Duration) -> Duration {
    if hold.fast_late { AFTER_HANDLER_ENDED.min(late_write_limit) } else { late_write_limit }
}

/// Whether the row was written, made or removed in between. Absent is a state like any other; an older row is a reader
/// that lags, not a change.
fn moved(before: Option<&Revision>, now: Option<&Revision>) -> bool {
    match (before, now) {
        (Some(before), Some(now)) => now.at > before.at,
        (before, now) => before.is_some() != now.is_some(),
    }
}
