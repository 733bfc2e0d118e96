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

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::audit::Declaration;
    use crate::id::{ChangeId, EntryRef};

    const LIMIT: Duration = Duration::from_secs(120);

    fn revision(at: i64) -> Revision {
        Revision { row: "r".into(), at: Time(at) }
    }

    fn hold(seen_by_us: Option<Instant>) -> Hold {
        let entry = EntryRef { origin: "o".into(), index: 1 };
        let intent = Declaration { entry, change: ChangeId::at(Time(0)), operation: None, seq: Some(1) };
        let (since, since_here) = (Time(0), seen_by_us);
        let (before_revision, over) = (Some(revision(10)), Vec::new());
        Hold {
            intent,
            unknown: true,
            abandoned: false,
            since,
            since_here,
            fast_late: false,
            before_revision,
            proposed: None,
            over,
        }
    }

    /// A reading that shows nothing attached or nothing changed is made by hand: what counts here is when.
    fn judged(hold: &Hold, began: i64, started: Instant) -> Option<Settled> {
        let reading = Reading { stored: None, began: Time(began), started };
        let unmoved = Hold { before_revision: None, proposed: Some(json!({})), ..hold.clone() };
        let settlement = judge(&unmoved, &reading, LIMIT, "test", &Keys::ephemeral())?;
        Some(settlement.result)
    }

    #[test]
    fn only_a_newer_row_has_moved() {
        let (old, new) = (revision(9), revision(11));
        assert!(moved(Some(&revision(10)), Some(&new)));
        assert!(!moved(Some(&revision(10)), Some(&revision(10))));
        assert!(!moved(Some(&revision(10)), Some(&old)), "a reader that lags");
        assert!(moved(Some(&old), None) && moved(None, Some(&new)) && !moved(None, None));
    }

    #[test]
    fn a_wall_clock_that_steps_makes_nothing_late() {
        let now = Instant::now();
        let (soon, late) = (now + Duration::from_secs(1), now + Duration::from_secs(121));
        let hour = 3_600_000_000;
        assert_eq!(judged(&hold(Some(now)), hour, soon), None, "the clock stepped an hour ahead");
        assert_eq!(judged(&hold(Some(now)), -hour, late), Some(Settled::NotApplied), "or back");
        assert_eq!(judged(&hold(None), hour, soon), Some(Settled::NotApplied), "seen by an earlier process");
        assert_eq!(judged(&hold(None), 1_000_000, late), None);
    }
}
