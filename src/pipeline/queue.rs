//! The targets' queues: one change of an identity at a time, in the order they came.
//!
//! A fair lock per target, made when first needed and gone with its last waiter. Waiters are capped per target and per
//! caller, so that nobody can stand in everybody's way; over the cap the answer is `target.busy` at once. Who finds
//! nobody ahead does not wait, and is not counted.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::OwnedMutexGuard;

use crate::id::{Digest, TargetId};
use crate::metrics::Metrics;
use crate::refusal::{Code, Refusal};

/// All queues of the process.
pub(super) struct Queues(Arc<Shared>);

struct Shared {
    per_target: usize,
    per_caller: usize,
    metrics: Arc<Metrics>,
    state: Mutex<Lines>,
}

#[derive(Default)]
struct Lines {
    targets: HashMap<TargetId, Line>,
    /// Changes of each caller that wait for somebody.
    waiting: HashMap<Digest, usize>,
}

#[derive(Default)]
struct Line {
    lock: Arc<tokio::sync::Mutex<()>>,
    members: usize,
}

/// The head of a target's queue, until dropped.
pub(super) struct Place {
    _head: OwnedMutexGuard<()>,
    _entry: Entry,
}

/// Membership in a queue, waiting or at its head.
struct Entry {
    shared: Arc<Shared>,
    target: TargetId,
    lock: Arc<tokio::sync::Mutex<()>>,
}

/// A change behind another; ends with the wait, however that ends.
struct Waiting {
    shared: Arc<Shared>,
    caller: Option<Digest>,
}

impl Queues {
    pub(super) fn new(per_target: usize, per_caller: usize, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Shared { per_target, per_caller, metrics, state: Mutex::default() }))
    }

    /// Waits for the head of the target's queue.
    pub(super) async fn wait(
        &self,
        target: &TargetId,
        caller: Option<&Digest>,
        within: Duration,
    ) -> Result<Place, Refusal> {
        let (entry, waiting) = self.enter(target, caller)?;
        let head = tokio::time::timeout(within, entry.lock.clone().lock_owned()).await;
        drop(waiting);
        match head {
            Ok(head) => Ok(Place { _head: head, _entry: entry }),
            Err(_) => {
                Err(busy("Other changes of this identity took longer than `limits.target_wait`; try again"))
            }
        }
    }

    fn enter(&self, target: &TargetId, caller: Option<&Digest>) -> Result<(Entry, Option<Waiting>), Refusal> {
        let mut lines = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = &mut *lines;
        let ahead = lines.targets.get(target).map_or(0, |line| line.members);
        if ahead > self.0.per_target {
            return Err(busy(
                "Too many changes of this identity are waiting (`limits.target_waiters`); try again",
            ));
        }
        let waiting = if ahead == 0 { None } else { Some(self.count(&mut lines.waiting, caller)?) };
        let line = lines.targets.entry(target.clone()).or_default();
        line.members += 1;
        let entry = Entry { shared: self.0.clone(), target: target.clone(), lock: line.lock.clone() };
        Ok((entry, waiting))
    }

    fn count(
        &self,
        waiting: &mut HashMap<Digest, usize>,
        caller: Option<&Digest>,
    ) -> Result<Waiting, Refusal> {
        if let Some(caller) = caller {
            if waiting.get(caller).is_some_and(|count| *count >= self.0.per_caller) {
                return Err(busy(
                    "Too many changes of this caller are waiting (`limits.caller_waiters`); try again",
                ));
            }
            *waiting.entry(caller.clone()).or_default() += 1;
        }
        self.0.metrics.target_waiters.inc();
        Ok(Waiting { shared: self.0.clone(), caller: caller.cloned() })
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut lines = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = lines.targets.get_mut(&self.target) {
            line.members -= 1;
            if line.members == 0 {
                lines.targets.remove(&self.target);
            }
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.shared.metrics.target_waiters.dec();
        let Some(caller) = &self.caller else { return };
        let mut lines = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = lines.waiting.get_mut(caller) {
            *count -= 1;
            if *count == 0 {
                lines.waiting.remove(caller);
            }
        }
    }
}

fn busy(detail: &str) -> Refusal {
    Refusal::new(Code::TargetBusy, detail).retry_after(1)
}

/// Keys counted in one minute at most; more of them start the minute anew.
const MAX_KEYS: usize = 65_536;

/// Counts events per key and minute; forgets everything when the minute is over, so it never holds more than one
/// minute's keys.
pub(super) struct PerMinute<K> {
    at_most: u32,
    window: Mutex<(Instant, HashMap<K, u32>)>,
}

impl<K: Hash + Eq> PerMinute<K> {
    pub(super) fn new(at_most: u32) -> Self {
        Self { at_most, window: Mutex::new((Instant::now(), HashMap::new())) }
    }

    /// Whether another event of this key would be within the limit.
    pub(super) fn has_room(&self, key: &K) -> bool {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.0.elapsed() > Duration::from_secs(60) || window.1.len() >= MAX_KEYS {
            *window = (Instant::now(), HashMap::new());
        }
        window.1.get(key).is_none_or(|count| *count < self.at_most)
    }

    /// Counts one.
    pub(super) fn count(&self, key: K) {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        *window.1.entry(key).or_default() += 1;
    }
}
