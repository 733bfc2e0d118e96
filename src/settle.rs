//! Unknown ends, settled by evidence.
//!
//! A write whose end was not seen holds its target. [`judge`] is the table of evidence: it compares what a
//! read shows now with what the held intent had before and proposed, and says what became of it, or that it is too
//! early to say. A read that shows the old state before the write could no longer land proves nothing. The reading comes
//! from the next change, from `scan`, or from the [`Settler`], which reads by itself with a credential of the gateway's
//! own; what nobody can read for long enough is [`undecidable`].

mod credential;
mod settler;
mod tries;

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

pub use credential::Credential;
pub use settler::{Parts, Report, Settler};

use crate::audit::{Hold, Seen, Settled, Settlement};
use crate::before::Reading;
use crate::clock::Time;
use crate::keys::Keys;
use crate::operation::Revision;
use crate::units::{Secret, Span};

/// After a complete 5xx of the upstream's own making its handler is through, and nothing lands later than this.
const AFTER_HANDLER_ENDED: Duration = Duration::from_secs(5);

/// The section `[settle]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Client id of the gateway's own machine identity (universal auth); without one nothing is read by itself.
    pub client_id: Option<String>,
    /// Its client secret.
    pub client_secret: Option<Secret>,
    /// A file that holds it instead; read anew for every login.
    pub client_secret_file: Option<PathBuf>,
    /// How often held identities are looked for.
    pub every: Span,
    /// Longest wait between two tries of what cannot be read.
    pub back_off: Span,
    /// After this without a reading nobody will know any more.
    pub undecidable_after: Span,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            client_id: None,
            client_secret: None,
            client_secret_file: None,
            every: Span::secs(10),
            back_off: Span::secs(5 * 60),
            undecidable_after: Span::secs(7 * 24 * 3600),
        }
    }
}

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
        (Moved::On, true, _) => Settled::Applied,
        // What the upstream went back from may have been this very write.
        (Moved::On, false, _) | (Moved::Back, _, true) => Settled::Superseded,
        (Moved::Not, _, true) => Settled::NotApplied,
        (Moved::Not | Moved::Back, _, false) => return None,
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

/// Whether a reading shows what a held removal was to lead to. It then is no reader that lags, although the log knows of a
/// row.
pub fn is_removed(hold: Option<&Hold>, reading: &Reading) -> bool {
    reading.stored.is_none() && hold.is_some_and(|hold| hold.unknown && hold.proposed.is_none())
}

/// What is left to say of an intent whose target could not be read for `after`; `why` is what stood in the way last.
pub fn undecidable(
    hold: &Hold,
    now: Time,
    after: Duration,
    why: &str,
    by: &'static str,
) -> Option<Settlement> {
    let held = hold.since_here.map_or_else(|| now.since(hold.since), |since| since.elapsed());
    let settlement = || Settlement {
        of: hold.intent.clone(),
        result: Settled::Undecidable,
        evidence: json!({"held_since": hold.since, "last_tried": now, "last_answer": why}),
        by,
        after: None,
        also: hold.over.clone(),
    };
    (hold.unknown && held >= after).then(settlement)
}

/// Seconds until a read can prove that the write did not land.
pub fn wait(hold: &Hold, now: Time, late_write_limit: Duration) -> u64 {
    let waited = hold.since_here.map_or_else(|| now.since(hold.since), |since| since.elapsed());
    limit(hold, late_write_limit).saturating_sub(waited).as_secs() + 1
}

fn limit(hold: &Hold, late_write_limit: Duration) -> Duration {
    if hold.fast_late { AFTER_HANDLER_ENDED.min(late_write_limit) } else { late_write_limit }
}

/// What a row did since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moved {
    /// It was written, made or removed.
    On,
    Not,
    /// It is older: a reader that lags, or an upstream that was rolled back.
    Back,
}

/// Absent is a state like any other.
fn moved(before: Option<&Revision>, now: Option<&Revision>) -> Moved {
    match (before, now) {
        (Some(before), Some(now)) if now.at == before.at && now.row == before.row => Moved::Not,
        (Some(before), Some(now)) if now.at < before.at => Moved::Back,
        (None, None) => Moved::Not,
        _ => Moved::On,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::audit::Declaration;
    use crate::bundle::Bundle;
    use crate::id::{ChangeId, EntryRef};
    use crate::operation::{State, Stored};
    use crate::standin::Estate;

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
            organization: None,
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

    const TARGET: &str = "0b9c3a52-7d3f-4f7e-9a43-0c8f3f1d2e4a";

    /// What a GET would say of a row with that lifetime.
    fn stored(ttl: u64, row: &str, at: i64) -> Stored {
        let bundle = Bundle::builtin().unwrap();
        let object = bundle.operations().values().next().unwrap().object.clone();
        let mut estate = Estate::new();
        estate.attach(TARGET, &json!({"accessTokenTTL": ttl}));
        let mut answer = estate.state(TARGET).unwrap();
        (answer["id"], answer["updatedAt"]) = (json!(row), json!(Time(at)));
        State::read(&object, TARGET, &json!({ object.envelope.clone(): answer })).unwrap()
    }

    /// The table of evidence, row by row. Times are in microseconds; the write began to be late at 0.
    #[test]
    fn every_row_of_the_table_of_evidence() {
        let keys = Keys::ephemeral();
        let there = |ttl, at| Some(stored(ttl, "r", at));
        let anew = |ttl, at| Some(stored(ttl, "s", at));
        let (early, late) = (Duration::from_secs(1), Duration::from_secs(121));
        let (applied, superseded) = (Some(Settled::Applied), Some(Settled::Superseded));
        let not_applied = Some(Settled::NotApplied);
        // A change from 60 to 30.
        let change = (there(60, 10), there(30, 0));
        let nothing = (there(60, 10), there(60, 0));
        let attach = (None, there(30, 0));
        let removal = (there(60, 10), None);
        for (what, (before, proposed), now, within, expected) in [
            ("a newer row in the state asked for", &change, there(30, 11), early, applied),
            ("the same, late", &change, there(30, 11), late, applied),
            ("another row in the state asked for", &change, anew(30, 10), early, applied),
            ("a newer row in another state", &change, there(40, 11), early, superseded),
            ("a newer row in the state before: away and back", &change, there(60, 11), late, superseded),
            ("another row in the state before", &change, anew(60, 12), late, superseded),
            ("no row any more", &change, None, early, superseded),
            ("the row before", &change, there(60, 10), early, None),
            ("the row before, late", &change, there(60, 10), late, not_applied),
            ("an older row", &change, there(30, 9), early, None),
            ("an older row, late", &change, there(60, 9), late, superseded),
            ("nothing to change, a newer row", &nothing, there(60, 11), early, applied),
            ("nothing to change, the row before", &nothing, there(60, 10), early, None),
            ("nothing to change, the row before, late", &nothing, there(60, 10), late, not_applied),
            ("attached as asked", &attach, there(30, 11), early, applied),
            ("attached otherwise", &attach, there(40, 11), early, superseded),
            ("nothing attached", &attach, None, early, None),
            ("nothing attached, late", &attach, None, late, not_applied),
            ("removed", &removal, None, early, applied),
            ("not removed", &removal, there(60, 10), early, None),
            ("not removed, late", &removal, there(60, 10), late, not_applied),
            ("not removed but changed", &removal, there(40, 11), early, superseded),
            ("removed and made anew", &removal, anew(60, 11), early, superseded),
        ] {
            let state = |stored: &Option<Stored>| stored.as_ref().map(|stored| stored.state.recorded(&keys));
            let began = Instant::now();
            let hold = Hold {
                before_revision: before.as_ref().map(|before| before.revision.clone()),
                proposed: state(proposed),
                ..hold(Some(began))
            };
            let reading = Reading { stored: now, began: Time(0), started: began + within };
            let found = judge(&hold, &reading, LIMIT, "test", &keys).map(|found| found.result);
            assert_eq!(found, expected, "{what}");
        }
    }

    #[test]
    fn nobody_gives_up_before_its_time() {
        let held = hold(None);
        let at =
            |micros| undecidable(&held, Time(micros), LIMIT, "silence", "test").map(|found| found.result);
        assert_eq!(at(119_999_999), None);
        assert_eq!(at(120_000_000), Some(Settled::Undecidable));
        let in_flight = Hold { unknown: false, ..held.clone() };
        assert!(undecidable(&in_flight, Time(i64::MAX), LIMIT, "silence", "test").is_none());
    }

    #[test]
    fn only_a_newer_row_has_moved() {
        let (old, new) = (revision(9), revision(11));
        let other = Revision { row: "s".into(), at: Time(10) };
        assert_eq!(moved(Some(&revision(10)), Some(&new)), Moved::On);
        assert_eq!(moved(Some(&revision(10)), Some(&other)), Moved::On, "made anew in the same moment");
        assert_eq!(moved(Some(&revision(10)), Some(&revision(10))), Moved::Not);
        assert_eq!(moved(Some(&revision(10)), Some(&old)), Moved::Back, "a reader that lags");
        assert_eq!(moved(Some(&old), None), Moved::On);
        assert_eq!(moved(None, Some(&new)), Moved::On);
        assert_eq!(moved(None, None), Moved::Not);
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
