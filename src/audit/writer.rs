//! The one writer: group commit, its three results, and the way back after a failure.
//!
//! Groups of entries wait unsealed. A batch takes the locks its groups ask for (a group that loses one is taken out),
//! seals what is left with index and time, and commits. *Committed*: everybody is answered. *Refused*: nothing is there;
//! each group is tried alone, so that a poisoned one fails alone. *In doubt*: the connection is closed, the WAL settled,
//! and the log read back before anybody is answered. Outcomes, settlements, folds and lifecycle entries stay at the head
//! of the queue until they are written.

mod batch;
mod heads;
mod missing;
mod opening;
mod runs;
mod targets;
mod tiles;
mod wal;

use std::collections::VecDeque;
use std::fs::File;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::clock::Time;
use crate::id::{EntryRef, fill_random};
use crate::json;
use crate::keys;
use crate::log;
use crate::store::{self, Claim, Database, Location, TokenRow};
use crate::units::Size;

use super::anchor::Elsewhere;
use super::checkpoint::Checkpoint;
use super::entry;
use super::envelope::Unsealed;
use super::{Outcome, OutcomeResult, Shared, Status};

use batch::Log;
pub(super) use missing::outside_head;
pub(super) use tiles::catch_up;

/// Groups in one batch at most.
const MAX_BATCH: usize = 256;
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(1);
/// How long a writer that is told to stop tries to write what waits.
const STOP_PATIENCE: Duration = Duration::from_secs(4);
/// How long queries under way may take when the store is closed.
const READER_PATIENCE: Duration = Duration::from_secs(2);

/// How soon a disk with too little left is looked at again when nothing is written.
const ROOM_EVERY: Duration = Duration::from_secs(1);

/// Entries that are written together or not at all, and what they do to targets.
#[derive(Clone, Debug, Default)]
pub(super) struct Group {
    pub entries: Vec<Unsealed>,
    pub ops: Vec<TargetOp>,
    /// The last group: the writer ends with it.
    pub stop: bool,
    /// An intent lost the task that would have finished it: look for such ones.
    pub orphaned: bool,
    /// The store could not be read: look at it anew.
    pub suspect: Option<String>,
    /// What was removed is to leave the WAL too.
    pub settle: bool,
    /// The head is signed at once.
    pub sign: bool,
    /// Somebody knows more of the log than the store holds: look at it anew.
    pub elsewhere: Option<Elsewhere>,
}

impl TargetOp {
    /// The target it speaks of.
    fn key(&self) -> Option<&str> {
        match self {
            Self::Open { key, .. }
            | Self::Free { key, .. }
            | Self::Hold { key, .. }
            | Self::Revision { key, .. }
            | Self::Drifted { key, .. } => Some(key),
            Self::NewKey(_)
            | Self::KeepBundle { .. }
            | Self::CreateToken(_)
            | Self::RevokeToken(..)
            | Self::PruneBelow(_)
            | Self::RemovePayloads { .. }
            | Self::Cosigned { .. }
            | Self::Vacuum => None,
        }
    }
}

impl Group {
    pub(super) fn of(entry: Unsealed) -> Self {
        Self { entries: vec![entry], ..Self::default() }
    }
}

/// What a group does beside its entries.
#[derive(Clone, Debug)]
pub(super) enum TargetOp {
    Open {
        key: String,
        turn: u64,
        over: Option<EntryRef>,
    },
    Free {
        key: String,
        intent: EntryRef,
        turn: Option<u64>,
    },
    Hold {
        key: String,
        held_by: EntryRef,
        intent: EntryRef,
        since: Time,
    },
    /// `None`: it has been removed.
    Revision {
        key: String,
        revision: Option<String>,
        turn: Option<u64>,
    },
    /// The same of what was changed past the log; lost when it is noted already.
    Drifted {
        key: String,
        revision: Option<String>,
        turn: u64,
    },
    /// A key the log is signed with from this group's last entry on.
    NewKey([u8; 32]),
    KeepBundle {
        digest: String,
        text: Arc<[u8]>,
    },
    CreateToken(TokenRow),
    RevokeToken(String, i64),
    /// Payloads of a log may be removed below a number.
    PruneBelow(Vec<(String, u64)>),
    /// Rows of payloads, and rows of the projection that lose what came from them.
    RemovePayloads {
        payloads: Vec<i64>,
        changes: Vec<i64>,
    },
    /// A head was signed by a witness too.
    Cosigned {
        origin: String,
        size: u64,
        lines: String,
    },
    /// Gives some free space back to the disk.
    Vacuum,
}

/// A group with who waits for it.
pub(super) struct Job {
    pub group: Group,
    /// Never refused, never dropped; else refused while the log is down or the WAL over its hard limit.
    pub must: bool,
    /// The intent of a change that its sender will finish.
    pub attempt: bool,
    pub reply: oneshot::Sender<Result<Written, NotWritten>>,
}

/// Where a group stands in the log.
#[derive(Clone, Debug)]
pub(super) struct Written {
    pub origin: String,
    /// Index of its last entry.
    pub last: u64,
    pub seq: Option<u64>,
    /// Until when nobody else takes its gateway for gone, in a store that several share.
    pub held_until: Option<Instant>,
}

#[derive(Clone, Debug)]
pub(super) enum NotWritten {
    /// A lock it asked for was taken or not to be had in time, or the target's turn moved.
    Lost,
    Unavailable(String),
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    queue: mpsc::UnboundedReceiver<Job>,
    backlog: VecDeque<Job>,
    store: Location,
    log: Option<Log>,
    /// What copies the WAL back beside it.
    copying: Option<JoinHandle<()>>,
    /// The lock files, from the first time they were had to the end.
    locks: Vec<File>,
    /// The log this process writes: it never begins a second one.
    origin: Option<String>,
    /// As whom it appends, and under which epoch.
    claim: Claim,
    epoch: Option<i64>,
    /// The log and its end as last committed: a store that is opened again has to hold it.
    known: Option<Checkpoint>,
    /// What somebody else knows of the log, while that was not looked into.
    elsewhere: Option<Elsewhere>,
    /// When an entry was last written.
    wrote: Instant,
    /// When it was last kept outside the store, and its size then.
    kept: (Instant, u64),
    /// When old heads were last thinned out.
    thinned: Option<Instant>,
    /// When the lease was last renewed, and the logs of others looked at.
    looked: Instant,
    /// A batch of which nobody knows whether it is in the log.
    doubt: Option<Doubt>,
    /// The files were not those that were written to: they are read through before they are written again.
    distrusted: bool,
    retry: Duration,
    next_try: Instant,
    detail: String,
    /// The disk has too little left for further changes: when it was last looked at.
    cramped: Option<Instant>,
    /// The disk has less than twice that much left, and that was said.
    low: bool,
    /// Wall and monotonic time of one moment, to notice steps.
    anchor: (Time, Instant),
    /// Told to stop: until when what waits is still tried.
    stop_by: Option<Instant>,
}

/// A batch in doubt: its first entry, and everybody who waits.
struct Doubt {
    first: (u64, Vec<u8>),
    jobs: Vec<(Job, Written)>,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, queue: mpsc::UnboundedReceiver<Job>, store: Location) -> Self {
        let mut holder = [0u8; 16];
        fill_random(&mut holder);
        let lease = shared.settings.lease.0;
        let claim = Claim { holder: hex::encode(holder), before: None, lease };
        let detail = String::new();
        let (backlog, next_try) = (VecDeque::new(), Instant::now());
        let anchor = (shared.clock.now(), Instant::now());
        Self {
            shared,
            queue,
            backlog,
            store,
            log: None,
            copying: None,
            locks: Vec::new(),
            origin: None,
            claim,
            epoch: None,
            known: None,
            elsewhere: None,
            wrote: Instant::now(),
            kept: (Instant::now(), 0),
            thinned: None,
            looked: Instant::now(),
            doubt: None,
            distrusted: false,
            retry: FIRST_RETRY,
            next_try,
            detail,
            cramped: None,
            low: false,
            anchor,
            stop_by: None,
        }
    }

    /// The first attempt: what waiting cannot cure ends the program.
    pub(super) async fn open_first(&mut self) -> Result<(), store::Error> {
        match self.open().await {
            Ok(()) => {
                // Whoever reads the history next sees no intent of an earlier run without its outcome.
                let first: Vec<Job> = self.backlog.drain(..).collect();
                self.write(first).await;
                Ok(())
            }
            Err(error @ (store::Error::Fatal(_) | store::Error::Url(_))) => Err(error.named(&self.store)),
            Err(error) => {
                self.down(&error.to_string());
                Ok(())
            }
        }
    }

    pub(super) async fn run(mut self) {
        loop {
            if self.log.is_none()
                && Instant::now() >= self.next_try
                && let Err(error) = self.open().await
            {
                if matches!(error, store::Error::InDoubt(_) | store::Error::Unreadable(_)) {
                    self.close_reader().await;
                }
                self.down(&error.to_string());
            }
            let mut batch: Vec<Job> = Vec::new();
            if self.log.is_some() {
                batch.extend(self.backlog.drain(..));
            }
            if batch.is_empty() && !self.wait(&mut batch).await {
                break;
            }
            while batch.len() < MAX_BATCH {
                let Ok(job) = self.queue.try_recv() else { break };
                batch.push(job);
            }
            if batch.iter().any(|job| job.group.stop) {
                self.stop_by = Some(Instant::now() + STOP_PATIENCE);
            }
            let orphans = batch.iter().any(|job| job.group.orphaned);
            let settles = batch.iter().any(|job| job.group.settle);
            let signs = batch.iter().any(|job| job.group.sign);
            let elsewhere = batch.iter_mut().find_map(|job| job.group.elsewhere.take());
            let is_ours = |said: &Elsewhere| self.log.as_ref().is_none_or(|log| log.origin == said.origin);
            if let Some(elsewhere) = elsewhere.filter(is_ours) {
                let error = store::Error::Wait(format!(
                    "{} knows more of the log than {} holds",
                    elsewhere.by, self.store
                ));
                self.elsewhere = Some(elsewhere);
                self.give_up(Vec::new(), &error).await;
            }
            if let Some(detail) = batch.iter_mut().find_map(|job| job.group.suspect.take())
                && let Some(log) = &mut self.log
            {
                // A reader meets a file that is gone before the writer does, which still has it open.
                let looked = log.database.look().await;
                let error = looked.err().unwrap_or(store::Error::Wait(detail));
                self.give_up(Vec::new(), &error).await;
            }
            let depth = i64::try_from(self.queue.len() + self.backlog.len()).unwrap_or(i64::MAX);
            self.shared.metrics.queue_depth.set(depth);
            if self.log.is_none() {
                self.put_off(batch);
            } else {
                self.write(batch).await;
            }
            if settles {
                self.copied().await;
            }
            if settles && let Some(log) = &mut self.log {
                // While somebody reads, the WAL stays as it is until it starts again by itself.
                let _ = log.database.settle().await;
            }
            if orphans && let Err(error) = self.recover().await {
                self.give_up(Vec::new(), &error).await;
            }
            if let Err(error) = self.keep_head(signs).await {
                self.give_up(Vec::new(), &error).await;
            }
            if self.idle_at().is_some_and(|at| Instant::now() >= at) {
                self.wrote = Instant::now();
                let idle = json!({"v": 1, "at": self.shared.clock.now()});
                self.must_write(Group::of(entry::lifecycle("idle", idle)));
            }
            if self.look_at().is_some_and(|at| Instant::now() >= at)
                && let Err(error) = self.look_around().await
            {
                self.give_up(Vec::new(), &error).await;
            }
            if self.stop_by.is_some_and(|by| self.backlog.is_empty() || Instant::now() >= by) {
                break;
            }
        }
        let _ = self.keep_head(true).await;
        self.copied().await;
        if let Some(mut log) = self.log.take() {
            let _ = log.database.settle().await;
            let ended = store::Tenure { lease: Duration::ZERO, ..log.tenure };
            let _ = log.database.renew(&log.origin, ended).await;
            log.database.close().await;
        }
        self.close_reader().await;
    }

    /// As long as any connection is open, SQLite takes the WAL to be what it was when the first one was opened.
    async fn close_reader(&self) {
        let reader = self.shared.reader.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(reader) = reader {
            let _ = tokio::time::timeout(READER_PATIENCE, reader.close()).await;
        }
    }

    /// Waits for work; `false` when there will be none.
    async fn wait(&mut self, batch: &mut Vec<Job>) -> bool {
        let retry = async {
            match self.log {
                Some(_) => std::future::pending().await,
                None => tokio::time::sleep_until(self.next_try.into()).await,
            }
        };
        let room_at = self.cramped.map(|at| at + ROOM_EVERY);
        let next = [self.look_at(), self.keep_at(), self.idle_at(), room_at].into_iter().flatten().min();
        let look = async {
            match next {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            job = self.queue.recv() => match job {
                Some(job) => batch.push(job),
                None => return false,
            },
            () = retry => {}
            () = look => {}
        }
        true
    }

    /// While the log is down: attempts are refused at once, the rest waits.
    fn put_off(&mut self, batch: Vec<Job>) {
        for job in batch {
            if job.must {
                self.backlog.push_back(job);
            } else {
                let _ = job.reply.send(Err(NotWritten::Unavailable(self.detail.clone())));
            }
        }
    }

    fn down(&mut self, detail: &str) {
        self.next_try = Instant::now() + self.retry;
        self.retry = (self.retry * 2).min(LAST_RETRY);
        self.cramped = None;
        self.degraded(detail);
    }

    fn degraded(&mut self, detail: &str) {
        detail.clone_into(&mut self.detail);
        let now = self.shared.clock.now();
        let news = self.shared.status.send_if_modified(|status| match status {
            Status::Down { detail: known, .. } if *known == detail => false,
            Status::Down { detail: known, .. } => {
                detail.clone_into(known);
                true
            }
            Status::Up => {
                *status = Status::Down { since: now, detail: detail.to_owned() };
                true
            }
        });
        self.shared.metrics.audit_up.set(0);
        if news {
            log::degraded(detail);
        }
    }

    /// The log is open: changes are let through, if there is room for them.
    fn up(&mut self) {
        self.retry = FIRST_RETRY;
        self.cramped = None;
        if !self.has_room() {
            return;
        }
        self.shared.metrics.audit_up.set(1);
        let was = self.shared.status.send_replace(Status::Up);
        if let Status::Down { detail, .. } = was
            && detail != "starting"
        {
            log::recovered();
        }
    }

    /// Whether the disk has room for further changes; below that, what is left is for the outcomes of those under way.
    fn has_room(&mut self) -> bool {
        let Some(room) = self.log.as_ref().and_then(|log| log.database.room()) else { return true };
        self.shared.metrics.store_free_bytes.set(i64::try_from(room).unwrap_or(i64::MAX));
        let floor = self.shared.settings.reserve.0.saturating_add(self.shared.settings.wal_hard.0);
        // Once below, a little more is asked for, so that it does not come and go.
        let is_low = room < floor.saturating_mul(2);
        if is_low && !std::mem::replace(&mut self.low, is_low) {
            log::disk_low(&self.store, Size(room), Size(floor));
        }
        self.low = is_low;
        let wanted = if self.cramped.is_some() { floor.saturating_add(floor / 16) } else { floor };
        if room >= wanted {
            return true;
        }
        self.cramped = Some(Instant::now());
        let what = "has less left than audit.reserve and audit.wal_hard together";
        self.degraded(&format!("the disk of {} {what} ({})", self.store, Size(floor)));
        false
    }

    /// Looks at the disk; whoever begins a change is refused while it has too little left.
    fn refuse_without_room(&mut self, jobs: Vec<Job>) -> Vec<Job> {
        let was_cramped = self.cramped.is_some();
        if self.has_room() {
            if was_cramped {
                self.up();
            }
            return jobs;
        }
        // Settlements and tokens are small, and a token has to be revocable.
        let is_attempt = |job: &Job| job.group.entries.iter().any(|entry| entry.kind == "attempt");
        refuse(jobs, |job| !job.must && is_attempt(job), &self.detail)
    }

    /// When an entry says that nothing was written: a head that does not change proves nothing.
    fn idle_at(&self) -> Option<Instant> {
        let is_writable = self.log.is_some() && self.cramped.is_none() && self.backlog.is_empty();
        is_writable.then(|| self.wrote + self.shared.settings.idle_every.0)
    }

    /// When the lease is to be renewed, where there is one.
    fn look_at(&self) -> Option<Instant> {
        let is_shared = self.log.as_ref().is_some_and(|log| log.database.is_shared());
        is_shared.then(|| self.looked + self.claim.lease / 4)
    }

    /// In a store that several gateways share: says that this one is alive, and ends what those that are gone left open.
    async fn look_around(&mut self) -> Result<(), store::Error> {
        self.looked = Instant::now();
        let Some(log) = self.log.as_mut().filter(|log| log.database.is_shared()) else { return Ok(()) };
        if !log.database.renew(&log.origin, log.tenure).await? {
            return Err(store::Error::Wait(format!("another process has taken over the log {}", log.origin)));
        }
        self.recover().await
    }

    fn must_write(&mut self, group: Group) {
        let (reply, _) = oneshot::channel();
        self.backlog.push_front(Job { group, must: true, attempt: false, reply });
    }

    /// After a commit in doubt: with the WAL settled, the log itself says whether the batch is there.
    async fn resolve_doubt(&mut self, database: &mut Database, origin: &str) -> Result<(), store::Error> {
        let Some(doubt) = &self.doubt else { return Ok(()) };
        database.settle().await?;
        let there = database.entry(origin, doubt.first.0).await?;
        let is_there = there.is_some_and(|entry| entry.envelope == doubt.first.1);
        let jobs = self.doubt.take().map(|doubt| doubt.jobs).unwrap_or_default();
        if is_there {
            self.answer(jobs);
        } else {
            self.put_off(jobs.into_iter().map(|(job, _)| job).collect());
        }
        Ok(())
    }

    fn answer(&self, jobs: Vec<(Job, Written)>) {
        for (job, written) in jobs {
            let intent = EntryRef { origin: written.origin.clone(), index: written.last };
            let owned = || self.shared.owned.lock().unwrap_or_else(PoisonError::into_inner);
            if job.attempt {
                owned().insert(intent.clone());
            }
            self.disown(&job.group);
            self.use_new_key(&job.group);
            // Nobody waits for it any more: recovery will find it.
            if job.reply.send(Ok(written)).is_err() && job.attempt {
                owned().remove(&intent);
            }
        }
    }

    /// The log says that another key follows: from here on it signs.
    fn use_new_key(&self, group: &Group) {
        for op in &group.ops {
            let TargetOp::NewKey(public) = op else { continue };
            if let Err(error) = self.shared.keys.use_next(&self.shared.data, *public) {
                log::key_not_in_use(&error);
            }
        }
    }

    /// The outcomes of a group are written, or are there already.
    fn disown(&self, group: &Group) {
        let mut owned = self.shared.owned.lock().unwrap_or_else(PoisonError::into_inner);
        for intent in group.entries.iter().filter_map(finishes) {
            owned.remove(intent);
        }
    }

    /// Outcomes for the intents that no living task and no waiting group will finish: ours, and those of logs whose gateway
    /// has been gone for long enough.
    async fn recover(&mut self) -> Result<(), store::Error> {
        let Some(log) = &mut self.log else { return Ok(()) };
        let owned = self.shared.owned.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let waiting: Vec<EntryRef> =
            self.backlog.iter().flat_map(|job| &job.group.entries).filter_map(finishes).cloned().collect();
        let ours = log.database.pending(&log.origin).await?;
        let ours = ours.into_iter().map(|index| store::Abandoned {
            origin: log.origin.clone(),
            index,
            since: Duration::ZERO,
        });
        let others = log.database.abandoned(&log.origin, self.shared.late_write_limit).await?;
        let now = self.shared.clock.now();
        let mut groups = Vec::new();
        for left in ours.chain(others) {
            let intent = EntryRef { origin: left.origin.clone(), index: left.index };
            if owned.contains(&intent) || waiting.contains(&intent) {
                continue;
            }
            let since = Time(now.0 - i64::try_from(left.since.as_micros()).unwrap_or(0));
            if let Some(attempt) = log.database.entry(&left.origin, left.index).await? {
                groups.extend(unfinished(&attempt, since, now, &self.shared.keys));
            }
        }
        groups.into_iter().for_each(|group| self.must_write(group));
        Ok(())
    }

    async fn write(&mut self, jobs: Vec<Job>) {
        let started = Instant::now();
        let jobs = self.refuse_without_room(jobs);
        let jobs = self.refuse_over_hard_limit(jobs).await;
        if jobs.is_empty() {
            return;
        }
        match self.attempt(jobs).await {
            Ok(()) => self.shared.metrics.commit_seconds.observe(started.elapsed().as_secs_f64()),
            Err((jobs, store::Error::Refused(_) | store::Error::Busy(_))) if jobs.len() > 1 => {
                for job in jobs {
                    if self.log.is_some() {
                        if let Err((alone, error)) = self.attempt(vec![job]).await {
                            self.give_up(alone, &error).await;
                        }
                    } else {
                        self.put_off(vec![job]);
                    }
                }
            }
            Err((jobs, error)) => self.give_up(jobs, &error).await,
        }
        self.checkpoint().await;
    }

    /// What could not be written: the log is down when it is more than one refused group.
    async fn give_up(&mut self, jobs: Vec<Job>, error: &store::Error) {
        let alone = jobs.len() == 1;
        // Rows that were not to be read in time are read at the next look.
        if jobs.is_empty() && matches!(error, store::Error::Busy(_)) {
            return;
        }
        if alone && matches!(error, store::Error::Busy(_)) {
            for job in jobs {
                if job.must {
                    self.backlog.push_back(job);
                } else {
                    let _ = job.reply.send(Err(NotWritten::Lost));
                }
            }
            return;
        }
        if alone
            && matches!(error, store::Error::Refused(what) if what.contains("constraint") || what.contains("appended"))
        {
            for mut job in jobs {
                log::poisoned(&error.to_string());
                // An outcome is never dropped: the settlement that came with it is what may already be there.
                let entries = job.group.entries.len();
                job.group.entries.retain(|entry| entry.kind != "settlement");
                if job.must && (1..entries).contains(&job.group.entries.len()) {
                    self.backlog.push_back(job);
                } else {
                    self.disown(&job.group);
                    let _ = job.reply.send(Err(NotWritten::Unavailable(error.to_string())));
                }
            }
            return;
        }
        // Whoever asks is refused at once, also while a slow disk is waited for.
        self.degraded(&error.to_string());
        self.copied().await;
        let displaced = match error {
            store::Error::Displaced { only_wal, .. } => Some(*only_wal),
            _ => None,
        };
        self.distrusted |= displaced.is_some();
        // Whichever connection closes last may copy the WAL into the database; a reader may not.
        if displaced == Some(true) {
            self.close_reader().await;
        }
        if let Some(log) = self.log.take() {
            log.database.close().await;
        }
        if displaced == Some(false) {
            self.close_reader().await;
        }
        self.down(&error.to_string());
        self.put_off(jobs);
    }

    /// One transaction. Whoever loses a lock is answered and taken out. On an error everybody else comes back, unless the
    /// log was in doubt and turns out to hold the batch.
    async fn attempt(&mut self, jobs: Vec<Job>) -> Result<(), (Vec<Job>, store::Error)> {
        let Some(log) = &mut self.log else { return Err((jobs, store::Error::Wait("no log".to_owned()))) };
        // The lease is renewed later than this, by the database's clock.
        let held_until = log.database.is_shared().then(|| Instant::now() + log.tenure.lease);
        if let Err(error) = log.database.begin().await {
            return Err((jobs, error));
        }
        let now @ (wall, _) = (self.shared.clock.now(), Instant::now());
        let begun = log.batch(jobs.iter().map(|job| &job.group), now, self.anchor).await;
        let mut batch = match begun {
            Ok(begun) => begun,
            Err(error) => {
                let _ = log.database.rollback().await;
                return Err((jobs, error));
            }
        };
        let mut done: Vec<(Job, Written)> = Vec::new();
        let mut rest = jobs.into_iter();
        while let Some(mut job) = rest.next() {
            match log.place(&mut job.group, &mut batch, wall).await {
                Ok(Some(written)) => done.push((job, Written { held_until, ..written })),
                Ok(None) => drop(job.reply.send(Err(NotWritten::Lost))),
                Err(error) => {
                    let _ = log.database.rollback().await;
                    let all = done.into_iter().map(|(job, _)| job).chain([job]).chain(rest).collect();
                    return Err((all, error));
                }
            }
        }
        let first = batch.rows.first().map(|row| (row.index, row.envelope.clone()));
        let result = log.write(&mut batch).await;
        match result {
            Ok(()) => {}
            Err(error @ (store::Error::InDoubt(_) | store::Error::Displaced { .. })) => {
                match first {
                    Some(first) => self.doubt = Some(Doubt { first, jobs: done }),
                    // Nothing by which to find out; what must be written can be written twice.
                    None => {
                        self.put_off(done.into_iter().map(|(job, _)| job).filter(|job| job.must).collect());
                    }
                }
                return Err((Vec::new(), error));
            }
            Err(error) => {
                let _ = log.database.rollback().await;
                return Err((done.into_iter().map(|(job, _)| job).collect(), error));
            }
        }
        if let Some(log) = &mut self.log {
            (log.frontier, log.leaves, log.last_at) = (batch.frontier, batch.leaves, batch.last_at);
            self.known = Some(log.frontier.of_log(&log.origin));
        }
        if !batch.rows.is_empty() {
            self.wrote = Instant::now();
        }
        self.anchor = now;
        self.shared.metrics.entries.inc_by(batch.rows.len() as u64);
        #[expect(clippy::cast_precision_loss, reason = "a batch holds a few hundred entries")]
        self.shared.metrics.batch_entries.observe(batch.rows.len() as f64);
        self.answer(done);
        Ok(())
    }
}

/// Answers those that are `shed`; the rest comes back.
fn refuse(jobs: Vec<Job>, shed: impl Fn(&Job) -> bool, detail: &str) -> Vec<Job> {
    let (shed, rest): (Vec<_>, Vec<_>) = jobs.into_iter().partition(shed);
    for job in shed {
        let _ = job.reply.send(Err(NotWritten::Unavailable(detail.to_owned())));
    }
    rest
}

fn lock(path: &std::path::Path) -> Result<File, store::Error> {
    match keys::lock(path) {
        Ok(Some(file)) => Ok(file),
        Ok(None) => Err(store::Error::Wait(format!("{} is held by another process", path.display()))),
        Err(error) => Err(store::Error::Wait(format!("{}: {error}", path.display()))),
    }
}

/// The intent an entry is the outcome of.
fn finishes(entry: &Unsealed) -> Option<&EntryRef> {
    entry.of.as_ref().filter(|_| entry.kind == "outcome")
}

/// The outcome of an intent whose task is gone: nobody saw its end, and from `since` on it can be late.
fn unfinished(attempt: &store::StoredEntry, since: Time, now: Time, keys: &keys::Keys) -> Option<Group> {
    let envelope: Value = json::own(&attempt.envelope).ok()?;
    let of = EntryRef { origin: attempt.origin.clone(), index: attempt.index };
    let text = |name: &str| envelope[name].as_str().map(str::to_owned);
    let seq = envelope["seq"].as_u64();
    let intended = entry::Intended {
        change: text("change")?.parse().ok()?,
        operation: text("operation"),
        object: None,
        target: text("target"),
        seq,
        before: None,
        policy: text("policy"),
    };
    let mut outcome = Outcome::seen(OutcomeResult::Unknown, None, now, Duration::ZERO);
    outcome.evidence = Some(json!({"reason": "the gateway stopped before the outcome was recorded"}));
    let mut group = Group::of(entry::outcome(&of, &intended, &outcome, now, keys));
    if let (Some(key), Some(_)) = (text("target"), seq) {
        group.ops.push(TargetOp::Hold { key, held_by: of.clone(), intent: of, since });
    }
    Some(group)
}
