//! Steps 8 and 10: the log.
//!
//! [`Audit::declare`] commits an intent, which is also the lock on its target, and is the only way to an [`Intent`];
//! [`Audit::finish`] commits what became of it and never drops it; [`Audit::refuse`] commits a "no", or folds it when
//! nobody proved who said what. One writer (`writer`) builds batches; queries read a projection ([`query`]). When the
//! log cannot be written, attempts are refused at once and the writer tries again until it can.

mod access;
pub mod anchor;
pub mod backup;
pub mod checkpoint;
pub mod copy;
mod drift;
mod entry;
mod envelope;
pub mod evidence;
mod fold;
pub mod lifecycle;
mod projection;
pub mod proofs;
mod prune;
pub mod query;
mod record;
pub mod tree;
pub mod verify;
mod writer;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::{Clock, Time};
use crate::id::{ChangeId, Digest, EntryRef, TargetId};
use crate::json;
use crate::keys::Keys;
use crate::metrics::{Metrics, SettlementLabels};
use crate::operation::{Object, Revision};
use crate::policy::Permit;
use crate::refusal::{Code, Refusal};
use crate::route::Watched;
use crate::store::{self, Location, Reader, TokenRow};
use crate::units::{Size, Span};

use anchor::Anchors;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use checkpoint::{Note, Verifier, key_change};
pub use drift::{Drift, Look};
use entry::Intended;
use envelope::Unsealed;
use evidence::KeyChange;
pub use prune::Pruned;
pub use record::{
    Declaration, Draft, Hold, Newest, Outcome, OutcomeResult, Recorded, Seen, Settled, Settlement, TargetNow,
};
use writer::{Group, Job, NotWritten, TargetOp, Written};

/// How long an outcome may take to be written before the client gets its answer without.
const OUTCOME_WAIT: Duration = Duration::from_secs(5);

/// The section `[audit]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Name in the log's origin; default `patchwarden.invalid/<instance>`.
    pub name: Option<String>,
    /// The key of fingerprints, where several gateways share it: not one in the data folder.
    pub fingerprint_key_file: Option<PathBuf>,
    /// How long a change waits for its intent to be committed.
    pub commit_wait: Span,
    /// From this size of the WAL on the writer waits for the checkpoint.
    pub wal_soft: Size,
    /// From this size on changes are refused.
    pub wal_hard: Size,
    /// With less than this and `wal_hard` left on the disk, changes are refused: it is kept for outcomes.
    pub reserve: Size,
    /// Whether the whole log is read once after a start, beside what is served.
    pub check_at_start: bool,
    /// How long other gateways on the same PostgreSQL take this one to be alive without hearing of it.
    pub lease: Span,
    /// After this without an entry one says that there was none.
    pub idle_every: Span,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            name: None,
            fingerprint_key_file: None,
            commit_wait: Span::secs(5),
            wal_soft: Size(64 << 20),
            wal_hard: Size(512 << 20),
            reserve: Size(256 << 20),
            check_at_start: true,
            lease: Span::secs(10),
            idle_every: Span::secs(3600),
        }
    }
}

/// Whether a text may name a log: it stands in every envelope that speaks of another entry, and in signed notes.
pub fn is_name(name: &str) -> bool {
    (1..=128).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic() && b != b'+')
}

/// What a log is made of.
pub struct Parts {
    /// Where it is kept.
    pub store: Location,
    /// The data folder.
    pub data: PathBuf,
    /// `[audit]`
    pub settings: Settings,
    /// `[anchor]`
    pub anchors: Anchors,
    /// How long a write without an answer may still land.
    pub late_write_limit: Duration,
    /// Fingerprints and the log's key.
    pub keys: Arc<Keys>,
    /// Dates.
    pub clock: Clock,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Where a change is finished after its client was answered.
    pub tasks: TaskTracker,
    /// What a gateway judges by; nothing for a command that only writes to the log.
    pub in_force: Option<InForce>,
}

/// What a gateway judges and works by, as the log names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InForce {
    /// Of the policies.
    pub policy: Digest,
    /// Of the configuration; keyed, since what stands in one can be guessed.
    pub config: Digest,
}

/// Whether the log can be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// It can.
    Up,
    /// It cannot.
    Down {
        /// Since when.
        since: Time,
        /// Why.
        detail: String,
    },
}

/// The log of this gateway. Cheap to clone.
#[derive(Clone)]
pub struct Audit(Arc<Shared>);

struct Shared {
    settings: Settings,
    /// The data folder.
    data: PathBuf,
    late_write_limit: Duration,
    keys: Arc<Keys>,
    clock: Clock,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
    jobs: mpsc::UnboundedSender<Job>,
    status: watch::Sender<Status>,
    reader: RwLock<Option<Reader>>,
    /// Intents that a living task will finish.
    owned: Mutex<HashSet<EntryRef>>,
    /// Changes whose client was refused while their intent may still be committed: the intent is their record.
    late: Mutex<HashSet<ChangeId>>,
    /// When the end of an intent of this process was not seen, by the clock that does not step.
    unseen: Mutex<HashMap<EntryRef, Instant>>,
    folds: fold::Folds,
    /// The log that is written.
    origin: RwLock<Option<String>>,
    /// The newest head that was signed.
    head: watch::Sender<Option<Note>>,
    /// Where it goes beside the store.
    anchors: Anchors,
    /// The tasks that carry it there, and the word to end.
    publishing: TaskTracker,
    ending: CancellationToken,
    accesses: access::Accesses,
    in_force: Mutex<Option<InForce>>,
    /// One prune at a time.
    pruning: tokio::sync::Mutex<()>,
    /// One change of keys at a time.
    rotating: tokio::sync::Mutex<()>,
    /// The writer, and what feeds it.
    writing: TaskTracker,
}

/// Why there is no intent.
#[derive(Debug)]
pub enum Declined {
    /// The target moved: read again.
    Lost,
    /// The log says no.
    Refused(Refusal),
}

/// Proof that the intent of a governed write is committed. Only [`Audit::declare`] makes one.
pub struct Intent {
    declared: Declared,
    permit: Permit,
    target: TargetId,
    over: Option<Hold>,
    proposed: Option<Value>,
}

/// Proof that the intent of a watched write is committed.
pub struct WatchedIntent {
    declared: Declared,
    watched: Watched,
}

struct Declared {
    entry: EntryRef,
    intended: Intended,
    /// After this another gateway may take this one for gone, and the target with it.
    held_until: Option<Instant>,
    owned: Owned,
}

impl Declared {
    fn declaration(&self) -> Declaration {
        let Intended { change, operation, seq, .. } = &self.intended;
        Declaration { entry: self.entry.clone(), change: *change, operation: operation.clone(), seq: *seq }
    }
}

/// Keeps recovery away from an intent that a living task will finish, and calls it when that task is lost.
struct Owned {
    shared: Arc<Shared>,
    intent: EntryRef,
    finished: bool,
}

impl Drop for Owned {
    fn drop(&mut self) {
        // Finished: it stays owned until the writer has its outcome.
        if !self.finished {
            self.shared.owned.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.intent);
            let (reply, _) = oneshot::channel();
            let group = Group { orphaned: true, ..Group::default() };
            let _ = self.shared.jobs.send(Job { group, must: true, attempt: false, reply });
        }
    }
}

impl Intent {
    /// The change.
    pub fn change(&self) -> ChangeId {
        self.declared.intended.change
    }

    /// What was permitted.
    pub fn permit(&self) -> &Permit {
        &self.permit
    }

    /// Until when its target is surely held, where other gateways could take it.
    pub fn held_until(&self) -> Option<Instant> {
        self.declared.held_until
    }

    /// Whose configuration.
    pub fn target(&self) -> &TargetId {
        &self.target
    }

    /// This intent as it will hold its target if `outcome` is its end.
    pub fn as_hold(&self, outcome: &Outcome, before: &Seen) -> Hold {
        Hold {
            intent: self.declared.declaration(),
            unknown: true,
            abandoned: false,
            since: outcome.late_from,
            since_here: None,
            fast_late: outcome.fast_late,
            before_revision: before.revision.clone(),
            proposed: self.proposed.clone(),
            organization: None,
            over: self.over.as_ref().map(Hold::chain).unwrap_or_default(),
        }
    }
}

impl WatchedIntent {
    /// The change.
    pub fn change(&self) -> ChangeId {
        self.declared.intended.change
    }

    /// What was matched.
    pub fn watched(&self) -> &Watched {
        &self.watched
    }
}

impl Audit {
    /// Opens the log, or begins trying to. An error is what waiting cannot cure.
    pub async fn start(parts: Parts) -> Result<Self, store::Error> {
        let (jobs, queue) = mpsc::unbounded_channel();
        let began = Status::Down { since: parts.clock.now(), detail: "starting".to_owned() };
        let shared = Arc::new(Shared {
            settings: parts.settings,
            data: parts.data,
            late_write_limit: parts.late_write_limit,
            keys: parts.keys,
            clock: parts.clock,
            metrics: parts.metrics,
            tasks: parts.tasks,
            jobs,
            status: watch::Sender::new(began),
            reader: RwLock::new(None),
            owned: Mutex::default(),
            late: Mutex::default(),
            unseen: Mutex::default(),
            folds: fold::Folds::default(),
            origin: RwLock::default(),
            head: watch::Sender::new(None),
            anchors: parts.anchors,
            publishing: TaskTracker::new(),
            ending: CancellationToken::new(),
            accesses: access::Accesses::default(),
            in_force: Mutex::new(parts.in_force),
            pruning: tokio::sync::Mutex::default(),
            rotating: tokio::sync::Mutex::default(),
            writing: TaskTracker::new(),
        });
        let mut writer = writer::Writer::new(shared.clone(), queue, parts.store);
        writer.open_first().await?;
        let audit = Self(shared);
        audit.0.writing.spawn(writer.run());
        audit.0.writing.spawn(audit.clone().flush_folds());
        Ok(audit)
    }

    /// Whether the log can be written.
    pub fn status(&self) -> Status {
        self.0.status.borrow().clone()
    }

    /// Follows [`Audit::status`].
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.0.status.subscribe()
    }

    /// Queries, once the store could be opened.
    pub fn reader(&self) -> Option<query::Reader> {
        self.store_reader().map(query::Reader::new)
    }

    fn store_reader(&self) -> Option<Reader> {
        self.0.reader.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What this log knows of a target now.
    pub async fn look(&self, target: &TargetId) -> Result<TargetNow, Refusal> {
        if let Status::Down { detail, .. } = self.status() {
            return Err(Refusal::audit_unavailable(detail));
        }
        let reader = self.store_reader().ok_or_else(|| Refusal::audit_unavailable("no reader"))?;
        self.read_target(&reader, target).await.map_err(|error| {
            if !matches!(error, store::Error::Fatal(_)) {
                self.suspect(&error);
            }
            Refusal::audit_unavailable(error)
        })
    }

    async fn read_target(&self, reader: &Reader, target: &TargetId) -> Result<TargetNow, store::Error> {
        let standing = reader.target(&target.to_string()).await?;
        let hold = match &standing.row.open {
            Some(open) => Some(self.held(reader, open, &standing).await?),
            None => None,
        };
        let row = standing.row;
        Ok(TargetNow { turn: row.turn, newest: row.revision.as_deref().and_then(newest), hold })
    }

    /// What cannot be read is no log to write to: the writer looks at the store anew.
    fn suspect(&self, error: &store::Error) {
        self.must_send(Group { suspect: Some(error.to_string()), ..Group::default() });
    }

    /// Somebody knows more of the log than the store holds: the writer looks, and begins another if that is so.
    fn known_elsewhere(&self, elsewhere: anchor::Elsewhere) {
        self.must_send(Group { elsewhere: Some(elsewhere), ..Group::default() });
    }

    /// Has the newest signed head kept elsewhere and cosigned, as `[anchor]` says, until [`Audit::stop`].
    pub fn publish(&self, report: anchor::Report) {
        anchor::publish(self, report);
    }

    /// Targets held by an unknown outcome, in whichever log of the store, the longest held first; at most `limit`.
    pub async fn held_targets(&self, limit: usize) -> Result<Vec<(TargetId, EntryRef)>, String> {
        let reader = self.store_reader().ok_or("the store is not open")?;
        let held = reader.held(limit).await.map_err(|error| error.to_string())?;
        let read = |held: store::Held| {
            let (origin, index) = held.open;
            Some((TargetId::from_key(&held.key)?, EntryRef { origin, index }))
        };
        Ok(held.into_iter().filter_map(read).collect())
    }

    /// Records a refusal and returns its id: after the commit when the caller is proven, at once (and perhaps folded) when
    /// not.
    pub async fn refuse(&self, mut draft: Draft, refusal: &Refusal) -> Result<ChangeId, Refusal> {
        let shared = &self.0;
        if shared.late.lock().unwrap_or_else(PoisonError::into_inner).remove(&draft.id) {
            return Ok(draft.id);
        }
        if !entry::is_proven(&draft, refusal) {
            return Ok(self.refuse_unproven(&draft, refusal));
        }
        // What was seen of the target is noted too, unless it is locked just now.
        let mut notes = refusal.code != Code::BeforeStale;
        loop {
            let mut group = Group::default();
            self.drift_first(&mut group, &draft);
            self.settle_first(&mut group, &draft);
            group.entries.push(entry::attempt(
                &draft,
                Some(refusal),
                None,
                shared.keys.instance(),
                &shared.keys,
            ));
            if notes {
                let turn = draft.turn.map(|turn| turn + u64::from(draft.settlement.is_some()));
                note_revision(&mut group, draft.target.as_ref(), draft.before.as_ref(), turn);
            }
            match self.write(group, shared.settings.commit_wait.0).await {
                Ok(_) => {
                    self.seen_first(&draft);
                    return Ok(draft.id);
                }
                // The target moved, or somebody else wrote the same of it: the refusal stands without.
                Err(NotWritten::Lost) if draft.settlement.is_some() || draft.drift.is_some() => {
                    (draft.settlement, draft.drift) = (None, None);
                }
                Err(NotWritten::Lost) if notes => notes = false,
                Err(NotWritten::Lost) => return Err(Refusal::audit_unavailable("the target moved")),
                Err(NotWritten::Unavailable(cause)) => return Err(Refusal::audit_unavailable(cause)),
            }
        }
    }

    fn refuse_unproven(&self, draft: &Draft, refusal: &Refusal) -> ChangeId {
        let shared = &self.0;
        let now = shared.clock.now();
        let make = || entry::attempt(draft, Some(refusal), None, shared.keys.instance(), &shared.keys);
        let made = shared.folds.has_own(draft.source, refusal.code, now).then(make);
        let id = shared.folds.take(draft.source, refusal.code, draft.id, made, now, |unsealed| {
            let (reply, _) = oneshot::channel();
            self.send(Job { group: Group::of(unsealed), must: true, attempt: false, reply });
        });
        id.unwrap_or_else(|fold| {
            shared.metrics.folded.inc();
            fold
        })
    }

    /// Commits the intent of a governed write, which takes its target's lock in the same transaction.
    pub async fn declare(
        &self,
        draft: Draft,
        permit: Permit,
        turn: u64,
        over: Option<Hold>,
    ) -> Result<Intent, Declined> {
        let shared = &self.0;
        let Some(target) = draft.target.clone() else {
            return Err(Declined::Refused(Refusal::audit_unavailable("an intent without target")));
        };
        let key = target.to_string();
        let mut group = Group::default();
        self.drift_first(&mut group, &draft);
        let turn = turn + u64::from(self.settle_first(&mut group, &draft));
        let over_entry = over.as_ref().map(|over| over.intent.entry.clone());
        group.ops.push(TargetOp::Open { key, turn, over: over_entry });
        group.entries.push(entry::attempt(&draft, None, over.as_ref(), shared.keys.instance(), &shared.keys));
        note_revision(&mut group, Some(&target), draft.before.as_ref(), None);
        let intended = self.intended(&draft);
        let declared = self.commit_intent(group, intended, over.as_ref(), &draft).await?;
        self.seen_first(&draft);
        let proposed = draft.proposed.flatten().map(|state| state.recorded(&shared.keys));
        Ok(Intent { declared, permit, target, over, proposed })
    }

    /// Commits the intent of a watched write. It takes no lock.
    pub async fn declare_watched(&self, draft: Draft, watched: Watched) -> Result<WatchedIntent, Refusal> {
        let shared = &self.0;
        let group = Group::of(entry::attempt(&draft, None, None, shared.keys.instance(), &shared.keys));
        match self.commit_intent(group, self.intended(&draft), None, &draft).await {
            Ok(declared) => Ok(WatchedIntent { declared, watched }),
            Err(Declined::Refused(refusal)) => Err(refusal),
            Err(Declined::Lost) => {
                Err(Refusal::audit_unavailable("a watched write lost a lock it never took"))
            }
        }
    }

    fn intended(&self, draft: &Draft) -> Intended {
        Intended {
            change: draft.id,
            operation: draft.operation.clone(),
            object: draft.object.clone(),
            target: draft.target.as_ref().map(ToString::to_string),
            seq: None,
            before: draft.before.as_ref().map(|seen| seen.recorded(&self.0.keys)),
            policy: draft.policy.as_ref().map(ToString::to_string),
        }
    }

    /// Waits for the commit. When it comes too late for the client, nothing is forwarded, and the log will say so.
    async fn commit_intent(
        &self,
        group: Group,
        mut intended: Intended,
        over: Option<&Hold>,
        draft: &Draft,
    ) -> Result<Declared, Declined> {
        let shared = &self.0;
        let (reply, mut answer) = oneshot::channel();
        self.send(Job { group, must: false, attempt: true, reply });
        let waited = tokio::time::timeout(shared.settings.commit_wait.0, &mut answer).await;
        let Ok(written) = waited else {
            let (audit, over, draft) = (self.clone(), over.cloned(), draft.clone());
            let refusal = Refusal::audit_unavailable("the commit took longer than audit.commit_wait");
            shared.late.lock().unwrap_or_else(PoisonError::into_inner).insert(draft.id);
            let refused = refusal.clone();
            shared.tasks.spawn(async move {
                let Ok(Ok(written)) = answer.await else {
                    audit.refuse_unproven(&draft, &refused);
                    return;
                };
                intended.seq = written.seq;
                audit.seen_first(&draft);
                let declared = audit.declared(&written, intended);
                let now = audit.0.clock.now();
                let outcome = Outcome::seen(OutcomeResult::NotSent, None, now, Duration::ZERO);
                audit.finish_declared(declared, &outcome, over.as_ref()).await;
            });
            return Err(Declined::Refused(refusal));
        };
        match written {
            Ok(Ok(written)) => {
                intended.seq = written.seq;
                Ok(self.declared(&written, intended))
            }
            Ok(Err(NotWritten::Lost)) => Err(Declined::Lost),
            Ok(Err(NotWritten::Unavailable(cause))) => {
                Err(Declined::Refused(Refusal::audit_unavailable(cause)))
            }
            Err(_) => Err(Declined::Refused(Refusal::audit_unavailable("the writer is gone"))),
        }
    }

    fn declared(&self, written: &Written, intended: Intended) -> Declared {
        let entry = EntryRef { origin: written.origin.clone(), index: written.last };
        let owned = Owned { shared: self.0.clone(), intent: entry.clone(), finished: false };
        Declared { entry, intended, held_until: written.held_until, owned }
    }

    /// Records what became of a governed write and opens its target again, or keeps it held when that is not known.
    pub async fn finish(&self, intent: Intent, outcome: Outcome) -> Recorded {
        self.finish_declared(intent.declared, &outcome, intent.over.as_ref()).await
    }

    /// Records what became of a watched write.
    pub async fn finish_watched(&self, intent: WatchedIntent, outcome: Outcome) -> Recorded {
        self.finish_declared(intent.declared, &outcome, None).await
    }

    async fn finish_declared(
        &self,
        mut declared: Declared,
        outcome: &Outcome,
        over: Option<&Hold>,
    ) -> Recorded {
        let shared = &self.0;
        let now = shared.clock.now();
        let mut group =
            Group::of(entry::outcome(&declared.entry, &declared.intended, outcome, now, &shared.keys));
        let settlement = outcome.settlement.clone().or_else(|| settled_by_removal(outcome, over));
        if let Some(settlement) = &settlement {
            let (object, target) = (declared.intended.object.as_deref(), declared.intended.target.as_deref());
            let target = target.unwrap_or_default();
            group.entries.extend(entry::settlements(settlement, object, target, now, &shared.keys));
            self.count_settlement(settlement);
        }
        if let Some(key) = declared.intended.target.clone().filter(|_| declared.intended.seq.is_some()) {
            self.close(&mut group, key.clone(), &declared.entry, outcome, over);
            let settled = settlement.as_ref().and_then(|settlement| settlement.after.as_ref());
            note_revision(
                &mut group,
                TargetId::from_key(&key).as_ref(),
                outcome.after.as_ref().or(settled),
                None,
            );
        }
        declared.owned.finished = true;
        let (reply, answer) = oneshot::channel();
        self.send(Job { group, must: true, attempt: false, reply });
        match tokio::time::timeout(OUTCOME_WAIT, answer).await {
            Ok(Ok(Ok(_))) => Recorded::Written,
            _ => Recorded::Pending,
        }
    }

    /// Puts a settlement before the attempt it came with. `true` when the target's turn moves by it.
    fn settle_first(&self, group: &mut Group, draft: &Draft) -> bool {
        let (Some(settlement), Some(target), Some(turn)) = (&draft.settlement, &draft.target, draft.turn)
        else {
            return false;
        };
        self.put_settlement(group, settlement, target, turn, draft.object.as_deref());
        true
    }

    /// Counts what was written before an attempt, once it is.
    fn seen_first(&self, draft: &Draft) {
        if let Some(settlement) = &draft.settlement {
            self.count_settlement(settlement);
        }
        if let (Some(drift), Some(target)) = (&draft.drift, &draft.target) {
            self.count_drift(drift, target);
        }
    }

    fn count_settlement(&self, settlement: &Settlement) {
        self.no_longer_unseen(std::slice::from_ref(&settlement.of));
        self.no_longer_unseen(&settlement.also);
        let labels = SettlementLabels { result: settlement.result.as_str(), by: settlement.by };
        self.0.metrics.settlements.get_or_create(&labels).inc();
    }

    /// Writes a settlement that no change came with, and the drift that the same reading shows; `false` when the target
    /// moved meanwhile.
    pub async fn settle(
        &self,
        settlement: &Settlement,
        drift: Option<&Drift>,
        target: &TargetId,
        turn: u64,
        object: &Object,
    ) -> Result<bool, String> {
        let mut group = Group::default();
        if let Some(drift) = drift {
            self.put_drift(&mut group, drift, target, turn, Some(object), None);
        }
        self.put_settlement(&mut group, settlement, target, turn, Some(object));
        note_revision(&mut group, Some(target), settlement.after.as_ref(), None);
        match self.write(group, self.0.settings.commit_wait.0).await {
            Ok(_) => {
                self.count_settlement(settlement);
                if let Some(drift) = drift {
                    self.count_drift(drift, target);
                }
                Ok(true)
            }
            Err(NotWritten::Lost) => Ok(false),
            Err(NotWritten::Unavailable(cause)) => Err(cause),
        }
    }

    fn put_settlement(
        &self,
        group: &mut Group,
        settlement: &Settlement,
        target: &TargetId,
        turn: u64,
        object: Option<&Object>,
    ) {
        let (key, turn) = (target.to_string(), Some(turn));
        let (now, keys) = (self.0.clock.now(), &self.0.keys);
        group.entries.extend(entry::settlements(settlement, object, &key, now, keys));
        group.ops.push(TargetOp::Free { key, intent: settlement.of.entry.clone(), turn });
    }

    /// Frees the target, or keeps it held when nobody knows whether the write lands.
    fn close(
        &self,
        group: &mut Group,
        key: String,
        intent: &EntryRef,
        outcome: &Outcome,
        over: Option<&Hold>,
    ) {
        let is_held = outcome.result == OutcomeResult::Unknown && outcome.settlement.is_none();
        let op = match (is_held, outcome.result, over) {
            (true, _, _) => {
                self.unseen().insert(intent.clone(), Instant::now());
                let (held_by, since) = (intent.clone(), outcome.late_from);
                TargetOp::Hold { key, held_by, intent: intent.clone(), since }
            }
            // A removal that did not happen gives the target back to what held it before.
            (false, OutcomeResult::Rejected | OutcomeResult::NotSent, Some(over)) => {
                let (held_by, since) = (intent.clone(), over.since);
                TargetOp::Hold { key, held_by, intent: over.intent.entry.clone(), since }
            }
            _ => {
                over.iter().for_each(|over| self.no_longer_unseen(&over.chain()));
                TargetOp::Free { key, intent: intent.clone(), turn: None }
            }
        };
        group.ops.push(op);
    }

    fn no_longer_unseen(&self, settled: &[Declaration]) {
        self.unseen().retain(|entry, _| settled.iter().all(|settled| settled.entry != *entry));
    }

    fn unseen(&self) -> MutexGuard<'_, HashMap<EntryRef, Instant>> {
        self.0.unseen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn held(
        &self,
        reader: &Reader,
        open: &(String, u64),
        standing: &store::Standing,
    ) -> Result<Hold, store::Error> {
        let row = &standing.row;
        let lapsed = standing.now.zip(standing.leased_until).filter(|(now, until)| now > until);
        let abandoned = !row.open_unknown && lapsed.is_some();
        let since = if abandoned { standing.leased_until.unwrap_or(0) } else { row.open_since };
        // The store's clock and ours need not agree.
        let ahead = standing.now.map_or(0, |now| now - self.0.clock.now().0);
        let entry = EntryRef { origin: open.0.clone(), index: open.1 };
        let (intent, payload) = declaration(reader, &entry).await?;
        let outcome = reader.entry_of((&open.0, open.1), "outcome").await?;
        let outcome: Value =
            outcome.and_then(|outcome| json::own(outcome.body.as_deref()?).ok()).unwrap_or(Value::Null);
        let mut over = Vec::new();
        for entry in json::typed::<Vec<EntryRef>>(payload["over"].clone()).unwrap_or_default() {
            over.push(declaration(reader, &entry).await?.0);
        }
        Ok(Hold {
            since_here: self.unseen().get(&entry).copied(),
            intent,
            unknown: row.open_unknown,
            abandoned,
            since: Time(since - ahead),
            fast_late: outcome["handler_ended"] == true,
            before_revision: Revision::of(&payload["before_revision"]),
            proposed: payload.get("proposed").filter(|state| !state.is_null()).cloned(),
            organization: payload["request"]["organization"].as_str().map(str::to_owned),
            over,
        })
    }

    async fn write(&self, group: Group, within: Duration) -> Result<Written, NotWritten> {
        let (reply, answer) = oneshot::channel();
        self.send(Job { group, must: false, attempt: false, reply });
        match tokio::time::timeout(within, answer).await {
            Ok(Ok(written)) => written,
            _ => Err(NotWritten::Unavailable("the commit took longer than audit.commit_wait".to_owned())),
        }
    }

    fn must_send(&self, group: Group) {
        let (reply, _) = oneshot::channel();
        self.send(Job { group, must: true, attempt: false, reply });
    }

    fn send(&self, job: Job) {
        self.0.metrics.queue_depth.inc();
        // The writer is gone only after `stop`; the job's reply is dropped then, which its owner reads as "not written".
        let _ = self.0.jobs.send(job);
    }

    async fn flush_folds(self) {
        let mut minute = tokio::time::interval(Duration::from_secs(60));
        let mut accesses = tokio::time::interval(access::EVERY);
        let mut status = self.watch();
        loop {
            tokio::select! {
                _ = minute.tick() => self.fold_now(),
                _ = accesses.tick() => self.fold_accesses(),
                changed = status.changed() => if changed.is_err() || self.0.jobs.is_closed() { return },
                () = self.0.jobs.closed() => return,
            }
        }
    }

    fn fold_now(&self) {
        for unsealed in self.0.folds.flush(self.0.clock.now()) {
            let (reply, _) = oneshot::channel();
            self.send(Job { group: Group::of(unsealed), must: true, attempt: false, reply });
        }
    }

    /// The name of the log that is written, once it is open.
    pub fn origin(&self) -> Option<String> {
        self.0.origin.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gives the log a new key, on the old one's word; both sign from then on. Returns the old one and the new one.
    pub async fn rotate_key(&self) -> Result<(Verifier, Verifier), String> {
        let _one = self.0.rotating.lock().await;
        let keys = &self.0.keys;
        if keys.previous_public().is_some() {
            return Err("the key before still signs; retire it first: `patchwarden keys retire`".to_owned());
        }
        let origin = self.origin().ok_or("the log is not open")?;
        let old = Verifier::of_log(&origin, keys.log_public());
        let next = Keys::prepare_next(&self.0.data).map_err(|error| error.to_string())?;
        let new = Verifier::of_log(&origin, next);
        let signed = keys.sign(key_change(&new).as_bytes()).into_iter().next().ok_or("there is no key")?;
        let change = KeyChange {
            origin,
            old: old.to_string(),
            new: new.to_string(),
            signature: STANDARD.encode(signed.signature),
        };
        let payload = json!({"v": 1, "at": self.0.clock.now(), "change": change});
        let group =
            Group { ops: vec![TargetOp::NewKey(next)], ..Group::of(entry::lifecycle("key", payload)) };
        match self.write(group, self.0.settings.commit_wait.0).await {
            Ok(_) => Ok((old, new)),
            Err(NotWritten::Lost) => Err("the log moved".to_owned()),
            Err(NotWritten::Unavailable(cause)) => Err(cause),
        }
    }

    /// Stops signing by the key before; `false` when there is none.
    pub async fn retire_key(&self) -> Result<bool, String> {
        let _one = self.0.rotating.lock().await;
        let Some((origin, previous)) = self.origin().zip(self.0.keys.previous_public()) else {
            return Ok(false);
        };
        let retired = Verifier::of_log(&origin, previous).to_string();
        let payload = json!({"v": 1, "at": self.0.clock.now(), "retired": retired});
        let group = Group::of(entry::lifecycle("key", payload));
        match self.write(group, self.0.settings.commit_wait.0).await {
            Ok(_) => self.0.keys.retire(&self.0.data).map(|()| true).map_err(|error| error.to_string()),
            Err(NotWritten::Lost) => Err("the log moved".to_owned()),
            Err(NotWritten::Unavailable(cause)) => Err(cause),
        }
    }

    /// Notes that somebody read the history: the first time at once, what follows counted together.
    pub fn accessed(&self, token: &str, role: &'static str, route: &str) {
        let now = self.0.clock.now();
        if let Some(unsealed) = self.0.accesses.take(token, role, route, now, self.status() == Status::Up) {
            self.note_entry(unsealed);
        }
    }

    /// Counts stay where they are while the log is down.
    fn fold_accesses(&self) {
        if self.status() == Status::Up {
            self.0.accesses.flush().into_iter().for_each(|unsealed| self.note_entry(unsealed));
        }
    }

    /// What its clock says.
    pub fn now(&self) -> Time {
        self.0.clock.now()
    }

    /// Writes into the log what became of the gateway itself.
    pub fn note(&self, name: &'static str, payload: Value) {
        self.note_entry(entry::lifecycle(name, payload));
    }

    fn note_entry(&self, unsealed: Unsealed) {
        let (reply, _) = oneshot::channel();
        self.send(Job { group: Group::of(unsealed), must: true, attempt: false, reply });
    }

    /// The same, and waits until it is written.
    pub async fn record(&self, name: &'static str, payload: Value) -> Result<(), String> {
        let written = self.write(Group::of(entry::lifecycle(name, payload)), self.0.settings.commit_wait.0);
        written.await.map(drop).map_err(|error| match error {
            NotWritten::Lost => "the log is busy".to_owned(),
            NotWritten::Unavailable(cause) => cause,
        })
    }

    /// Says that other policies are in force from now on.
    pub fn policies_taken(&self, old: &Digest, new: &Digest) {
        if let Some(in_force) = &mut *self.0.in_force.lock().unwrap_or_else(PoisonError::into_inner) {
            in_force.policy = new.clone();
        }
        self.note("policies", json!({"v": 1, "old": old, "new": new}));
    }

    fn in_force(&self) -> Option<InForce> {
        self.0.in_force.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps what a digest in later entries is of, so that their decisions can be explained.
    pub fn keep_bundle(&self, digest: &Digest, text: &[u8]) {
        let (reply, _) = oneshot::channel();
        let op = TargetOp::KeepBundle { digest: digest.to_string(), text: text.into() };
        let group = Group { ops: vec![op], ..Group::default() };
        self.send(Job { group, must: true, attempt: false, reply });
    }

    /// Writes everything that waits, says so in the log, and closes the store.
    pub async fn stop(&self) {
        self.fold_now();
        self.fold_accesses();
        let (reply, answer) = oneshot::channel();
        let (policy, config) = self.in_force().map(|digests| (digests.policy, digests.config)).unzip();
        let stop = json!({"v": 1, "at": self.0.clock.now(), "policy": policy, "config": config});
        let stop = Group::of(entry::lifecycle("stop", stop));
        // Signed and said elsewhere before the store is closed, so that a witness's word of it can be stored.
        let said_first = !self.0.publishing.is_empty() && self.status() == Status::Up;
        let group = Group { stop: !said_first, sign: said_first, ..stop };
        self.send(Job { group, must: true, attempt: false, reply });
        let stopped = tokio::time::timeout(OUTCOME_WAIT, answer).await;
        if said_first {
            if let Ok(Ok(Ok(Written { origin, last, .. }))) = stopped {
                let is_over = |head: &Option<Note>| {
                    let head = head.as_ref().map(|note| &note.checkpoint);
                    head.is_some_and(|head| head.origin != origin || head.size > last)
                };
                let mut heads = self.0.head.subscribe();
                let _ = tokio::time::timeout(Duration::from_secs(1), heads.wait_for(is_over)).await;
            }
            self.0.ending.cancel();
            self.0.publishing.close();
            let _ = tokio::time::timeout(anchor::LAST_TRY, self.0.publishing.wait()).await;
            self.must_send(Group { stop: true, ..Group::default() });
        }
        self.0.ending.cancel();
        self.0.writing.close();
        let _ = tokio::time::timeout(OUTCOME_WAIT, self.0.writing.wait()).await;
    }

    /// Adds an admin token; `false` when the name is taken.
    pub async fn create_token(&self, name: &str, role: &str, hash: &str) -> Result<bool, String> {
        let created_at = self.0.clock.now().0;
        let row = TokenRow {
            name: name.into(),
            role: role.into(),
            hash: hash.into(),
            created_at,
            revoked_at: None,
        };
        self.on_tokens(TargetOp::CreateToken(row)).await
    }

    /// Revokes an admin token; `false` when there is none of that name in use.
    pub async fn revoke_token(&self, name: &str) -> Result<bool, String> {
        self.on_tokens(TargetOp::RevokeToken(name.to_owned(), self.0.clock.now().0)).await
    }

    async fn on_tokens(&self, op: TargetOp) -> Result<bool, String> {
        let group = Group { ops: vec![op], ..Group::default() };
        match self.write(group, self.0.settings.commit_wait.0).await {
            Ok(_) => Ok(true),
            Err(NotWritten::Lost) => Ok(false),
            Err(NotWritten::Unavailable(cause)) => Err(cause),
        }
    }

    /// All admin tokens.
    pub async fn tokens(&self) -> Result<Vec<TokenRow>, String> {
        let reader = self.store_reader().ok_or("the store is not open")?;
        reader.tokens().await.map_err(|error| error.to_string())
    }
}

/// A removal that was applied ends whatever was still open.
fn settled_by_removal(outcome: &Outcome, over: Option<&Hold>) -> Option<Settlement> {
    let over = over.filter(|_| outcome.result == OutcomeResult::Applied)?;
    Some(Settlement {
        of: over.intent.clone(),
        result: Settled::Superseded,
        evidence: json!({"removed": true}),
        by: "removal",
        after: outcome.after.clone(),
        also: over.over.clone(),
    })
}

fn note_revision(group: &mut Group, target: Option<&TargetId>, seen: Option<&Seen>, turn: Option<u64>) {
    if let (Some(target), Some(seen)) = (target, seen) {
        let revision = seen.revision.as_ref().map(|revision| json!(revision).to_string());
        group.ops.push(TargetOp::Revision { key: target.to_string(), revision, turn });
    }
}

/// Reads an intent back from the log.
async fn declaration(reader: &Reader, entry: &EntryRef) -> Result<(Declaration, Value), store::Error> {
    let damaged =
        || store::Error::Fatal(format!("the intent {}/{} cannot be read", entry.origin, entry.index));
    let read = reader.entry(&entry.origin, entry.index).await?.ok_or_else(damaged)?;
    let envelope: Value = json::own(&read.envelope).map_err(|_| damaged())?;
    let payload: Value = json::own(read.body.as_deref().unwrap_or(b"{}")).map_err(|_| damaged())?;
    let declaration = Declaration {
        entry: entry.clone(),
        change: envelope["change"].as_str().and_then(|id| id.parse().ok()).ok_or_else(damaged)?,
        operation: envelope["operation"].as_str().map(str::to_owned),
        seq: envelope["seq"].as_u64(),
    };
    Ok((declaration, payload))
}

fn newest(text: &str) -> Option<Newest> {
    let value = json::value(text.as_bytes()).ok()?;
    Some(Newest { revision: Revision::of(&value)?, gone: value["gone"] == true })
}

#[cfg(test)]
impl Audit {
    /// A new log in a folder.
    pub(crate) async fn of_folder(folder: &std::path::Path) -> Self {
        let parts = Parts {
            store: Location::Sqlite(folder.join("patchwarden.db")),
            late_write_limit: Duration::from_secs(120),
            data: folder.to_owned(),
            settings: Settings::default(),
            anchors: Anchors::default(),
            keys: Arc::new(Keys::open(folder, None, false).unwrap()),
            clock: Clock::System,
            metrics: Arc::new(Metrics::new()),
            tasks: TaskTracker::new(),
            in_force: None,
        };
        Self::start(parts).await.unwrap()
    }
}
