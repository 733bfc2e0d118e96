//! Refusals nobody proved: recorded one by one as long as they are few, then counted.
//!
//! Anybody can send garbage as often as they like, so it must not cost more than a bound. Per source and
//! code the first ten a minute get an entry of their own; the rest count into one `fold` entry per minute and source, and
//! past a thousand sources into one joint fold. All of it shares a daily budget of bytes; when that is spent, only the joint
//! fold goes on. Counts stay exact.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use serde_json::json;

use crate::clock::Time;
use crate::id::ChangeId;
use crate::refusal::Code;

use super::envelope::Unsealed;

const OWN_ENTRIES: u32 = 10;
const MAX_SOURCES: usize = 1000;
const DAILY_BYTES: usize = 4 << 20;
/// An entry of an unproven refusal is at most this long.
const MAX_ENTRY: usize = 1024;
const MINUTE: i64 = 60_000_000;
const DAY: i64 = 24 * 60 * MINUTE;

#[derive(Default)]
pub(super) struct Folds(Mutex<State>);

#[derive(Default)]
struct State {
    minute: i64,
    day: i64,
    spent: usize,
    seen: HashMap<(IpAddr, &'static str), u32>,
    folds: HashMap<Option<IpAddr>, Fold>,
}

struct Fold {
    id: ChangeId,
    counts: BTreeMap<&'static str, u64>,
    first: Time,
    last: Time,
}

impl Folds {
    /// Takes one refusal: hands its entry to `write`, or counts it and returns the id of the fold that stands for it.
    pub(super) fn take(
        &self,
        source: IpAddr,
        code: Code,
        id: ChangeId,
        entry: Option<Unsealed>,
        now: Time,
        write: impl FnOnce(Unsealed),
    ) -> Result<ChangeId, ChangeId> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.turn_over(now);
        if let Some(entry) = entry
            && state.has_own(source, code)
        {
            let size = entry.payload.body.len() + 512;
            if size <= MAX_ENTRY + 512 && state.spent + size <= DAILY_BYTES {
                *state.seen.entry((source, code.as_str())).or_default() += 1;
                state.spent += size;
                drop(state);
                write(entry);
                return Ok(id);
            }
        }
        let joint = state.spent >= DAILY_BYTES
            || (!state.folds.contains_key(&Some(source)) && state.folds.len() >= MAX_SOURCES);
        let key = if joint { None } else { Some(source) };
        let fold = state.folds.entry(key).or_insert_with(|| Fold {
            id,
            counts: BTreeMap::new(),
            first: now,
            last: now,
        });
        *fold.counts.entry(code.as_str()).or_default() += 1;
        fold.last = now;
        Err(fold.id)
    }

    /// Whether the next refusal of a source may get an entry of its own: else none need be made for it.
    pub(super) fn has_own(&self, source: IpAddr, code: Code, now: Time) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.turn_over(now);
        state.spent < DAILY_BYTES && state.has_own(source, code)
    }

    /// The folds of the past minute, ready to be written.
    pub(super) fn flush(&self, now: Time) -> Vec<Unsealed> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.turn_over(now);
        let folds = std::mem::take(&mut state.folds);
        let entries: Vec<_> = folds.into_iter().map(|(source, fold)| fold.entry(source)).collect();
        state.spent += entries.iter().map(|entry| entry.payload.body.len() + 512).sum::<usize>();
        entries
    }
}

impl State {
    fn has_own(&self, source: IpAddr, code: Code) -> bool {
        match self.seen.get(&(source, code.as_str())) {
            Some(seen) => *seen < OWN_ENTRIES,
            None => self.seen.len() < MAX_SOURCES * 32,
        }
    }

    fn turn_over(&mut self, now: Time) {
        if now.0 / MINUTE != self.minute {
            self.minute = now.0 / MINUTE;
            self.seen.clear();
        }
        if now.0 / DAY != self.day {
            self.day = now.0 / DAY;
            self.spent = 0;
        }
    }
}

impl Fold {
    fn entry(self, source: Option<IpAddr>) -> Unsealed {
        Unsealed {
            kind: "fold",
            change: Some(self.id),
            of: None,
            operation: None,
            target: None,
            seq: None,
            result: Some("refuse"),
            code: None,
            status: None,
            policy: None,
            payload: json!({"v": 1, "source": source, "counts": self.counts, "first": self.first, "last": self.last,
                "total": self.counts.values().sum::<u64>()}).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn refusal() -> Unsealed {
        Unsealed {
            kind: "attempt",
            ..Fold { id: ChangeId::at(Time(0)), counts: BTreeMap::new(), first: Time(0), last: Time(0) }
                .entry(None)
        }
    }

    fn total(entries: &[Unsealed]) -> u64 {
        entries.iter().filter_map(|entry| entry.payload.said()["total"].as_u64()).sum()
    }

    #[test]
    fn a_million_refusals_stay_within_the_budget_with_exact_counts() {
        let folds = Folds::default();
        let (mut own, mut folded, mut bytes) = (0u64, 0, 0);
        for n in 0..1_000_000i64 {
            let now = Time(n * 2_000);
            let source = IpAddr::from([10, 0, u8::try_from(n % 200).unwrap(), u8::try_from(n % 7).unwrap()]);
            let _ = folds.take(
                source,
                Code::CallerMissingToken,
                ChangeId::at(now),
                Some(refusal()),
                now,
                |entry| {
                    own += 1;
                    bytes += entry.payload.body.len();
                },
            );
            if n % 30_000 == 0 {
                let entries = folds.flush(now);
                bytes += entries.iter().map(|entry| entry.payload.body.len()).sum::<usize>();
                folded += total(&entries);
            }
        }
        folded += total(&folds.flush(Time(2_000_000_000)));
        assert_eq!(own + folded, 1_000_000);
        assert!(bytes <= DAILY_BYTES + 1024 * 1024, "{bytes}");
    }

    #[test]
    fn the_eleventh_of_a_minute_is_named_by_its_fold() {
        let (folds, source) = (Folds::default(), IpAddr::from([127, 0, 0, 1]));
        let take = |at: i64| {
            let now = Time(at);
            let id = ChangeId::at(now);
            (id, folds.take(source, Code::BodyMalformed, id, Some(refusal()), now, |_| {}))
        };
        assert!((0..10).map(take).all(|(own, named)| named == Ok(own)));
        let (first, named) = take(11);
        assert_eq!(Err(first), named, "a fold takes the id of its first");
        assert_eq!(take(12).1, named);
        let entries = folds.flush(Time(20));
        assert_eq!(entries[0].change, Some(first));
        assert_eq!(entries[0].payload.said()["counts"], json!({"body.malformed": 2}));
        assert_eq!(entries[0].payload.said()["source"], Value::from("127.0.0.1"));
        let (own, named) = take(MINUTE + 1);
        assert_eq!(Ok(own), named, "the next minute begins anew");
    }
}
