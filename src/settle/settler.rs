//! The settler: one task that reads held targets by itself.
//!
//! Now and then it looks in the store for targets that a change of unknown end holds, in whichever log. With a credential
//! it reads each of them, first when a read can prove something, then at growing intervals while it cannot be read, and
//! writes the settlement that the reading proves. Without one it only counts them. Nothing waits for it: when the upstream,
//! the log or the credential fails, it tries again later.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio_util::sync::CancellationToken;

use crate::audit::{Audit, Hold, Look, Settled, TargetNow};
use crate::before::{self, Freshness, Reading, Source, Watch};
use crate::bundle::Bundle;
use crate::clock::{Clock, Time};
use crate::id::{EntryRef, TargetId};
use crate::keys::Keys;
use crate::limits::Limits;
use crate::log;
use crate::metrics::Metrics;
use crate::operation::Object;
use crate::refusal::{Code, Refusal};
use crate::upstream::Upstream;

use super::credential::NoToken;
use super::tries::{FIRST_BACK_OFF, Login, Tries, Unread, Unsettled, Waiting};
use super::{Credential, Settings, is_removed, judge, undecidable, wait};

/// Held targets looked at in one round; those held longest come first.
const MAX_HELD: usize = 10_000;
/// Between two readings where the first one was older than the log.
const STALE_PAUSE: Duration = Duration::from_secs(5);
/// A token younger than this was not refused for its age.
const YOUNG: Duration = Duration::from_secs(1);
/// One read that fails, after a clock that stepped, says nothing of the past days.
const FEWEST_TRIES: u32 = 2;
/// Between two rounds at least.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
/// After so many reads without any answer the rest of a round waits too.
const SILENT_READS: usize = 3;
/// A hold that another process saw begin is left to that one for so long: only it can tell its own fingerprints apart.
const OTHERS_FIRST: Duration = Duration::from_secs(3);
/// Who looked, in the record.
const BY: &str = "settler";
const ORGANIZATION: HeaderName = HeaderName::from_static("x-infisical-org");

/// Told since when what is wrong with the credential; nothing, when nothing is any more.
pub type Report = Box<dyn Fn(Option<(Time, &str)>) + Send + Sync>;

/// What the settler is made of.
pub struct Parts {
    /// The guarded API.
    pub upstream: Upstream,
    /// The log.
    pub audit: Audit,
    /// What is in force: the objects that can be read.
    pub bundle: Arc<RwLock<Arc<Bundle>>>,
    /// Fingerprints.
    pub keys: Arc<Keys>,
    /// Dates.
    pub clock: Clock,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Time and size of a read.
    pub limits: Limits,
    /// How long a write without an answer may still land.
    pub late_write_limit: Duration,
    /// `[settle]`
    pub settings: Settings,
    /// Where problems go.
    pub report: Report,
}

/// The task.
pub struct Settler {
    parts: Parts,
    credential: Option<Credential>,
    login: Login,
    held: HashMap<TargetId, Waiting>,
    watch: Watch,
    problem: Option<(Time, String)>,
}

impl Settler {
    /// One that is to be run.
    pub fn new(parts: Parts) -> Self {
        let login = Login::new(false);
        let credential = Credential::new(&parts.settings);
        Self { parts, credential, login, held: HashMap::new(), watch: Watch::default(), problem: None }
    }

    /// Looks until told to stop. What is being written then is written all the same.
    pub async fn run(mut self, stop: CancellationToken) {
        let work = async {
            loop {
                let pause = self.round().await;
                tokio::time::sleep(pause).await;
            }
        };
        let _: Option<()> = stop.run_until_cancelled(work).await;
    }

    /// Looks once; returns how long to wait for the next time.
    async fn round(&mut self) -> Duration {
        let every = self.parts.settings.every.0;
        let Ok(held) = self.parts.audit.held_targets(MAX_HELD).await else { return every };
        self.parts.metrics.unsettled.set(i64::try_from(held.len()).unwrap_or(i64::MAX));
        if self.credential.is_none() {
            return every;
        }
        self.note(held).await;
        let now = Instant::now();
        let due = self.held.iter().map(|(target, waiting)| (waiting.tries.due, target.clone()));
        let mut due: Vec<_> = due.filter(|(due, _)| *due <= now).collect();
        due.sort();
        // Once at the start without need, so that a wrong secret is known before it is needed.
        if !self.login.is_proven && self.login.tries.due <= now {
            let _ = self.token().await;
        }
        let is_readable = self.settle_all(due.into_iter().map(|(_, target)| target)).await;
        self.tell();
        if !is_readable {
            return every;
        }
        let login = (!self.login.is_proven).then_some(self.login.tries.due);
        let next = self.held.values().map(|waiting| waiting.tries.due).chain(login).min();
        next.map_or(every, |due| due.saturating_duration_since(Instant::now()).clamp(SHORTEST_PAUSE, every))
    }

    /// Takes note of what is held now, and forgets what no longer is.
    async fn note(&mut self, held: Vec<(TargetId, EntryRef)>) {
        let mut known = std::mem::take(&mut self.held);
        for (target, intent) in held {
            let waiting = match known.remove(&target).filter(|waiting| waiting.intent == intent) {
                Some(waiting) => waiting,
                None => {
                    let Ok(now) = self.parts.audit.look(&target).await else { continue };
                    let Some(hold) = now.hold.filter(|hold| hold.unknown) else { continue };
                    let tries = Tries::after(self.provable_in(&hold));
                    Waiting { intent, tries, denied: None }
                }
            };
            self.held.insert(target, waiting);
        }
    }

    /// How long until a reading proves something whatever it shows.
    fn provable_in(&self, hold: &Hold) -> Duration {
        let seconds = wait(hold, self.parts.clock.now(), self.parts.late_write_limit);
        let others = if hold.since_here.is_some() { Duration::ZERO } else { OTHERS_FIRST };
        Duration::from_secs(seconds) + others
    }

    /// Headers with a token; logs in where there is none, not before its time after a failure.
    async fn token(&mut self) -> Result<HeaderMap, NoToken> {
        let Some(credential) = &mut self.credential else {
            return Err(NoToken::Unreachable("there is no credential".to_owned()));
        };
        if !credential.is_logged_in() && Instant::now() < self.login.tries.due {
            return Err(NoToken::Unreachable(self.login.last.clone()));
        }
        let (within, at_most) = (self.parts.limits.before.0, self.parts.limits.answer.bytes());
        let headers = credential.headers(&self.parts.upstream, within, at_most).await;
        match &headers {
            Ok(_) => {
                self.login = Login::new(true);
            }
            Err(no_token) => {
                self.login.is_proven = false;
                self.login.tries = self.login.tries.failed(self.parts.settings.back_off.0, None);
                let (NoToken::Refused(why) | NoToken::Unreachable(why)) = no_token;
                self.login.last.clone_from(why);
                // An upstream that does not answer says nothing of the credential.
                if let NoToken::Refused(why) = no_token {
                    self.login.refused = Some(why.clone());
                }
            }
        }
        headers
    }

    /// Tries what is due; `false` when the log cannot be read.
    async fn settle_all(&mut self, due: impl Iterator<Item = TargetId>) -> bool {
        let mut silent = 0;
        for target in due {
            if silent == SILENT_READS {
                // Nobody answers: the rest is not asked one time limit after the other.
                let later = Instant::now() + FIRST_BACK_OFF;
                self.held.entry(target).and_modify(|waiting| waiting.tries.due = later);
                continue;
            }
            let Ok(now) = self.parts.audit.look(&target).await else { return false };
            let known = self.held.get(&target).map(|waiting| waiting.intent.clone());
            let hold =
                now.hold.clone().filter(|hold| hold.unknown && Some(&hold.intent.entry) == known.as_ref());
            let Some(hold) = hold else {
                self.held.remove(&target);
                continue;
            };
            let object = self.object(&hold);
            let settled = match &object {
                Some(object) => self.settle(&target, &now, &hold, object).await,
                None => Err(Unsettled::Early(self.parts.settings.back_off.0)),
            };
            match settled {
                Ok(()) => drop(self.held.remove(&target)),
                Err(Unsettled::Early(pause)) => self.later(&target, pause),
                Err(Unsettled::Unread(unread)) => {
                    silent = if unread.is_silent { silent + 1 } else { 0 };
                    self.unread(&target, &now, &hold, object.as_deref(), unread).await;
                }
            }
        }
        true
    }

    fn object(&self, hold: &Hold) -> Option<Arc<Object>> {
        let bundle = self.parts.bundle.read().unwrap_or_else(PoisonError::into_inner).clone();
        let operation = bundle.operations().get(hold.intent.operation.as_deref()?)?;
        Some(operation.object.clone())
    }

    /// Reads one target and writes what that proves.
    async fn settle(
        &mut self,
        target: &TargetId,
        now: &TargetNow,
        hold: &Hold,
        object: &Arc<Object>,
    ) -> Result<(), Unsettled> {
        let reading = self.read(target, hold, object).await.map_err(Unsettled::Unread)?;
        let (newest, gone) = now.known();
        let freshness = self.watch.judge(target, &reading, newest, gone);
        let is_removed = is_removed(Some(hold), &reading);
        if freshness == Freshness::Stale && !is_removed {
            return Err(Unsettled::Early(STALE_PAUSE));
        }
        let parts = &self.parts;
        let Some(settlement) = judge(hold, &reading, parts.late_write_limit, BY, &parts.keys) else {
            return Err(Unsettled::Early(self.provable_in(hold)));
        };
        let later = |_| Unsettled::Early(FIRST_BACK_OFF);
        let drift = if settlement.result == Settled::Applied {
            None
        } else {
            let (reading, newest) = (&reading, now.newest.as_ref());
            let rolled_back = freshness == Freshness::RolledBack && reading.stored.is_some();
            let look = Look { target, object, reading, newest, rolled_back, by: BY };
            parts.audit.drift(&look).await.map_err(|_| Unsettled::Early(FIRST_BACK_OFF))?
        };
        let written = parts.audit.settle(&settlement, drift.as_ref(), target, now.turn, object).await;
        if !written.map_err(later)? {
            return Err(Unsettled::Early(FIRST_BACK_OFF));
        }
        log::settled(&settlement.of.change, target, settlement.result.as_str());
        Ok(())
    }

    /// One reading; with a new token when the one at hand is no longer accepted.
    async fn read(
        &mut self,
        target: &TargetId,
        hold: &Hold,
        object: &Arc<Object>,
    ) -> Result<Reading, Unread> {
        let headers = self.token().await?;
        let first = self.fetch(target, hold, object, headers).await;
        let refused =
            matches!(&first, Err(refusal) if matches!(refusal.code, Code::BeforeRefused(401 | 403)));
        let is_young = self.credential.as_ref().is_none_or(|credential| credential.age() < YOUNG);
        let reading = if refused && !is_young {
            self.credential.as_mut().into_iter().for_each(Credential::forget);
            let headers = self.token().await?;
            self.fetch(target, hold, object, headers).await
        } else {
            first
        };
        reading.map_err(|refusal| Unread::of(&refusal))
    }

    async fn fetch(
        &self,
        target: &TargetId,
        hold: &Hold,
        object: &Arc<Object>,
        mut headers: HeaderMap,
    ) -> Result<Reading, Refusal> {
        // The same identity is another one, or none, in another sub-organisation.
        if let Some(organization) =
            hold.organization.as_deref().and_then(|name| HeaderValue::try_from(name).ok())
        {
            headers.insert(ORGANIZATION, organization);
        }
        let parts = &self.parts;
        let source = Source {
            upstream: &parts.upstream,
            object,
            target,
            headers: &headers,
            within: parts.limits.before.0,
            at_most: parts.limits.answer.bytes(),
            clock: &parts.clock,
        };
        before::fetch(&source).await
    }

    fn later(&mut self, target: &TargetId, pause: Duration) {
        let tries = Tries::after(pause);
        if let Some(waiting) = self.held.get_mut(target) {
            (waiting.tries, waiting.denied) = (tries, None);
        }
    }

    /// Notes that a target could not be read; after long enough nobody will know what became of it.
    async fn unread(
        &mut self,
        target: &TargetId,
        now: &TargetNow,
        hold: &Hold,
        object: Option<&Object>,
        unread: Unread,
    ) {
        let longest = self.parts.settings.back_off.0;
        let Some(waiting) = self.held.get(target) else { return };
        let tries = waiting.tries.failed(longest, unread.retry_after);
        if tries.failed == 1 {
            log::unreadable(&hold.intent.change, target, &unread.why);
        }
        let after = self.parts.settings.undecidable_after.0;
        let given_up = undecidable(hold, self.parts.clock.now(), after, &unread.why, BY);
        if let (Some(settlement), Some(object)) = (given_up.filter(|_| tries.failed >= FEWEST_TRIES), object)
            && self.parts.audit.settle(&settlement, None, target, now.turn, object).await == Ok(true)
        {
            log::settled(&settlement.of.change, target, settlement.result.as_str());
            self.held.remove(target);
        } else if let Some(waiting) = self.held.get_mut(target) {
            (waiting.tries, waiting.denied) = (tries, unread.denied);
        }
    }

    /// Says what is wrong with the credential, when that is news.
    fn tell(&mut self) {
        let denied = self.held.iter().find_map(|(target, waiting)| {
            let status = waiting.denied?;
            Some(format!(
                "the upstream answered its read of identity {} with {status}; it needs Read on identities",
                target.id()
            ))
        });
        let wrong = self.login.refused.clone().or(denied);
        if wrong.as_deref() == self.problem.as_ref().map(|(_, wrong)| wrong.as_str()) {
            return;
        }
        let since = self.problem.as_ref().map_or_else(|| self.parts.clock.now(), |(since, _)| *since);
        self.problem = wrong.map(|wrong| (since, wrong));
        self.parts.metrics.settle_credential_failed.set(i64::from(self.problem.is_some()));
        (self.parts.report)(self.problem.as_ref().map(|(since, wrong)| (*since, wrong.as_str())));
        match &self.problem {
            Some((_, wrong)) => log::credential_failed(wrong),
            None => log::credential_recovered(),
        }
    }
}
