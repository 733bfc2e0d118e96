//! Reads of the history through the admin API, as entries of kind `access`.
//!
//! Comes in: whose token, its role, which route. The first read of a token on a route is an entry at once, so that it is
//! on record even when the process is killed; what follows is counted and written together every ten minutes. A read
//! waits for none of this. At most a thousand pairs are kept apart, the rest are counted together.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;

use crate::clock::Time;

use super::envelope::Unsealed;

/// How often what was counted is written.
pub(super) const EVERY: Duration = Duration::from_secs(600);
const MAX_KEYS: usize = 1000;

/// Who read what. `None`: the reads that are not told apart.
type Key = Option<(String, &'static str, String)>;

#[derive(Default)]
pub(super) struct Accesses(Mutex<HashMap<Key, Count>>);

/// What is not written yet.
#[derive(Clone, Copy)]
struct Count {
    reads: u64,
    first: Time,
    last: Time,
}

impl Accesses {
    /// Takes one read; an entry when it is to be written now. `is_up`: whether the log can be.
    pub(super) fn take(
        &self,
        token: &str,
        role: &'static str,
        route: &str,
        now: Time,
        is_up: bool,
    ) -> Option<Unsealed> {
        let mut counts = self.counts();
        let mut key = Some((token.to_owned(), role, route.to_owned()));
        if !counts.contains_key(&key) && counts.len() >= MAX_KEYS {
            key = None;
        }
        if let Some(count) = counts.get_mut(&key) {
            count.first = if count.reads == 0 { now } else { count.first };
            count.reads += 1;
            count.last = now;
            return None;
        }
        let one = Count { reads: 1, first: now, last: now };
        counts.insert(key.clone(), if is_up { Count { reads: 0, ..one } } else { one });
        is_up.then(|| one.entry(&key))
    }

    /// Entries for what was counted. Who did not read since the last time is forgotten.
    pub(super) fn flush(&self) -> Vec<Unsealed> {
        let mut counts = self.counts();
        counts.retain(|_, count| count.reads > 0);
        let entries = counts.iter().map(|(key, count)| count.entry(key)).collect();
        counts.values_mut().for_each(|count| count.reads = 0);
        entries
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<Key, Count>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Count {
    fn entry(self, key: &Key) -> Unsealed {
        let (token, role, route) = match key {
            Some((token, role, route)) => (Some(token), Some(role), Some(route)),
            None => (None, None, None),
        };
        Unsealed {
            kind: "access",
            change: None,
            of: None,
            operation: Some("access.history".to_owned()),
            target: None,
            seq: None,
            result: None,
            code: None,
            status: None,
            policy: None,
            payload: json!({"v": 1, "token": token, "role": role, "route": route, "count": self.reads,
                "first": self.first, "last": self.last})
            .into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_read_is_counted_once_and_memory_is_bounded() {
        let accesses = Accesses::default();
        let (mut counted, mut entries) = (0, 0);
        let mut count = |entry: Unsealed| {
            counted += entry.payload.said()["count"].as_u64().unwrap();
            entries += 1;
        };
        for n in 0..10_000i64 {
            let token = format!("t{}", n % 1500);
            // Down for a while: nothing is handed over, nothing is lost.
            let is_up = !(200..400).contains(&n);
            if let Some(entry) = accesses.take(&token, "reader", "/v1/changes", Time(n), is_up) {
                count(entry);
            }
        }
        assert!(accesses.counts().len() <= MAX_KEYS + 1);
        accesses.flush().into_iter().for_each(&mut count);
        assert!(accesses.flush().is_empty());
        assert!(accesses.counts().is_empty(), "who no longer reads is forgotten");
        assert_eq!(counted, 10_000);
        assert!(entries <= 2 * (MAX_KEYS + 1), "{entries}");
    }

    #[test]
    fn the_first_read_is_an_entry_at_once_and_the_rest_one_together() {
        let accesses = Accesses::default();
        let take = |at| accesses.take("auditor", "reader", "/v1/changes/{id}", Time(at), true);
        let first = take(1).unwrap();
        assert_eq!(
            (first.payload.said()["token"].clone(), first.payload.said()["count"].clone()),
            (json!("auditor"), json!(1)),
            "{first:?}"
        );
        assert!(take(2).is_none() && take(3).is_none());
        let rest = accesses.flush();
        assert_eq!((rest.len(), rest[0].payload.said()["count"].clone()), (1, json!(2)));
        assert_eq!(rest[0].payload.said()["first"], json!(Time(2)));
    }
}
