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
    let limit = if hold.fast_late { AFTER_HANDLER_ENDED.min(late_write_limit) } else { late_write_limit };
    let late = reading.began.since(hold.since) > limit && reading.began > hold.since;
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
    let also = hold.over.clone().into_iter().collect();
    Some(Settlement {
        of: hold.intent.clone(),
        change: hold.change,
        result,
        evidence,
        by,
        after: Some(after),
        also,
    })
}

/// Seconds until a read can prove that the write did not land.
pub fn wait(hold: &Hold, now: Time, late_write_limit: Duration) -> u64 {
    let limit = if hold.fast_late { AFTER_HANDLER_ENDED.min(late_write_limit) } else { late_write_limit };
    limit.saturating_sub(now.since(hold.since)).as_secs() + 1
}

/// Whether the row was written, made or removed in between. Absent is a state like any other.
fn moved(before: Option<&Revision>, now: Option<&Revision>) -> bool {
    before != now
}
