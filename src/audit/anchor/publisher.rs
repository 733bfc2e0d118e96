//! The tasks that carry heads elsewhere, one a destination.
//!
//! Each follows the newest signed head and sends it on when it is new and `anchor.every` has passed; after a failure it
//! tries again at intervals that double up to `anchor.back_off`. A place is compared before it is first written to, so
//! that what it knows is not lost where it could not be read at the start. Whoever knows more of the log than the store
//! holds is reported to the writer; a witness, whose word is not signed, only when it says so twice, and once a run.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::super::checkpoint::{Checkpoint, Note};
use super::super::proofs::Tree;
use super::super::{Audit, Group, TargetOp};
use super::place::Place;
use super::witness::{Unsigned, Witness};
use super::{Elsewhere, ours};
use crate::clock::Time;
use crate::id::fill_random;
use crate::log;
use crate::metrics::ToLabels;
use crate::store::Reader;

/// How long the last head of a run may take to go out.
pub(in crate::audit) const LAST_TRY: Duration = Duration::from_secs(3);
const FIRST_BACK_OFF: Duration = Duration::from_secs(1);

/// Told since when what is wrong with the destinations; nothing, when nothing is any more.
pub type Report = Box<dyn Fn(Option<(Time, &str)>) + Send + Sync>;

/// What is wrong with which destination, since when.
struct Problems {
    report: Report,
    all: Mutex<BTreeMap<String, (Time, String)>>,
}

impl Problems {
    /// `true` when that is news.
    fn set(&self, name: &str, now: Time, wrong: Option<&str>) -> bool {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let was = all.remove(name);
        let is_news = was.as_ref().map(|(_, was)| was.as_str()) != wrong;
        if let Some(wrong) = wrong {
            all.insert(name.to_owned(), (was.map_or(now, |(since, _)| since), wrong.to_owned()));
        }
        if is_news {
            let details: Vec<String> =
                all.iter().map(|(name, (_, wrong))| format!("{name}: {wrong}")).collect();
            let since = all.values().map(|(since, _)| *since).min();
            (self.report)(
                since
                    .map(|since| (since, details.join("; ")))
                    .as_ref()
                    .map(|(at, text)| (*at, text.as_str())),
            );
        }
        is_news
    }
}

enum Destination {
    /// With whether it was compared with the log in this run.
    Place(Place, bool),
    /// With what it said of the log that does not fit, and whether that was reported.
    Witness(Box<Witness>, Option<Elsewhere>, bool),
}

struct Publisher {
    audit: Audit,
    to: Destination,
    name: String,
    labels: ToLabels,
    problems: Arc<Problems>,
    /// The head that is there.
    sent: Option<Note>,
    failed: u32,
    due: Instant,
}

/// Starts a task for each destination; they end with `ending`, after one last try.
pub(in crate::audit) fn publish(audit: &Audit, report: Report) {
    let anchors = &audit.0.anchors;
    let problems = Arc::new(Problems { report, all: Mutex::default() });
    let places = anchors.places.iter().map(|place| {
        let to = Destination::Place(place.clone(), false);
        (to, place.name(), place.label().to_owned())
    });
    let witnesses = anchors.witnesses.iter().map(|witness| {
        let to = Destination::Witness(Box::new(witness.clone()), None, false);
        (to, witness.name(), witness.key().name.clone())
    });
    for (to, name, label) in places.chain(witnesses) {
        let labels = ToLabels { to: label };
        let (audit, problems, due) = (audit.clone(), problems.clone(), Instant::now());
        let publisher = Publisher { audit, to, name, labels, problems, sent: None, failed: 0, due };
        // Seen at zero before anything happens.
        let metrics = &publisher.audit.0.metrics;
        drop(metrics.anchor_failures.get_or_create(&publisher.labels));
        drop(metrics.anchor_failing.get_or_create(&publisher.labels));
        drop(metrics.anchor_last_success.get_or_create(&publisher.labels));
        let (heads, ending) = (publisher.audit.0.head.subscribe(), publisher.audit.0.ending.clone());
        publisher.audit.0.publishing.clone().spawn(publisher.run(heads, ending));
    }
}

impl Publisher {
    async fn run(mut self, mut heads: watch::Receiver<Option<Note>>, ending: CancellationToken) {
        let work = async {
            while let Some(head) = self.next(&mut heads).await {
                self.attempt(&head).await;
            }
        };
        let _: Option<()> = ending.run_until_cancelled(work).await;
        let last = heads.borrow().clone().filter(|head| self.is_wanted(head));
        if let Some(last) = last {
            let _ = tokio::time::timeout(LAST_TRY, self.attempt(&last)).await;
        }
    }

    /// Waits for a head that is to be sent; `None`: there will be none.
    async fn next(&self, heads: &mut watch::Receiver<Option<Note>>) -> Option<Note> {
        loop {
            let newest = heads.borrow_and_update().clone().filter(|head| self.is_wanted(head));
            match newest {
                Some(head) if Instant::now() >= self.due => return Some(head),
                Some(_) => tokio::time::sleep_until(self.due.into()).await,
                None => heads.changed().await.ok()?,
            }
        }
    }

    /// Whether a head is of the log that is written, and is not there already. Another signature of ours is news to a place, and none to a witness.
    fn is_wanted(&self, head: &Note) -> bool {
        let is_there = self.sent.as_ref().is_some_and(|sent| match self.to {
            Destination::Place(..) => sent == head,
            Destination::Witness(..) => sent.checkpoint == head.checkpoint,
        });
        !is_there && self.audit.origin().is_some_and(|origin| origin == head.checkpoint.origin)
    }

    async fn attempt(&mut self, head: &Note) {
        let sent = self.send(head).await;
        let (settings, metrics) = (self.audit.0.anchors.settings.clone(), self.audit.0.metrics.clone());
        let now = self.audit.now();
        metrics.anchor_failing.get_or_create(&self.labels).set(i64::from(sent.is_err()));
        match sent {
            Ok(()) => {
                metrics.anchor_last_success.get_or_create(&self.labels).set(now.0 / 1_000_000);
                (self.sent, self.failed) = (Some(head.clone()), 0);
                self.due = Instant::now() + settings.every.0;
                if self.problems.set(&self.name, now, None) {
                    log::anchor_recovered(&self.name);
                }
            }
            Err(wrong) => {
                metrics.anchor_failures.get_or_create(&self.labels).inc();
                self.due = Instant::now() + wait(self.failed, settings.back_off.0);
                self.failed = self.failed.saturating_add(1);
                if self.problems.set(&self.name, now, Some(&wrong)) {
                    log::anchor_failed(&self.name, &wrong);
                }
            }
        }
    }

    /// Sends a head; an error says what is wrong, without secrets.
    async fn send(&mut self, head: &Note) -> Result<(), String> {
        let within = self.audit.0.anchors.settings.timeout.0;
        let reader = self.audit.store_reader().ok_or("the store is not open")?;
        match &mut self.to {
            Destination::Place(place, is_compared) => {
                if !*is_compared && let Some(known) = place.read(within).await? {
                    compare(&self.audit, &reader, &known, head, &self.name).await?;
                }
                *is_compared = true;
                place.write(head, within).await
            }
            Destination::Witness(witness, doubted, is_reported) => {
                let known = match witness.cosign(&reader, head, within).await {
                    Ok(line) => {
                        *doubted = None;
                        return keep(&self.audit, &reader, head, witness, line).await;
                    }
                    Err(Unsigned::Away(wrong)) => return Err(wrong),
                    Err(Unsigned::Other { size, is_more }) => {
                        let (origin, by) = (head.checkpoint.origin.clone(), self.name.clone());
                        Elsewhere { origin, size, root: None, is_more, by }
                    }
                };
                let wrong = denied(&known, head.checkpoint.size);
                if doubted.as_ref() == Some(&known) && !*is_reported {
                    *is_reported = true;
                    log::anchor_denied(&self.name, &wrong);
                    self.audit.known_elsewhere(known);
                } else {
                    *doubted = Some(known);
                }
                Err(wrong)
            }
        }
    }
}

/// Whether the log extends the head that a place has of it, if that is one of ours.
async fn compare(
    audit: &Audit,
    reader: &Reader,
    there: &Note,
    head: &Note,
    name: &str,
) -> Result<(), String> {
    let Some(known) = ours(there, &audit.0.keys) else { return Ok(()) };
    let head = &head.checkpoint;
    if known.origin != head.origin || extends(reader, &known, head).await? {
        return Ok(());
    }
    let Checkpoint { origin, size, root } = known;
    let is_more = size > head.size;
    let known = Elsewhere { origin, size, root: Some(root), is_more, by: name.to_owned() };
    let wrong = denied(&known, head.size);
    log::anchor_denied(name, &wrong);
    audit.known_elsewhere(known);
    Err(wrong)
}

async fn extends(reader: &Reader, known: &Checkpoint, head: &Checkpoint) -> Result<bool, String> {
    if head.size <= known.size {
        return Ok(head == known);
    }
    let tree = Tree { reader, origin: &known.origin, size: known.size };
    tree.root().await.map(|root| root == known.root).map_err(|error| error.to_string())
}

fn denied(known: &Elsewhere, size: u64) -> String {
    let Elsewhere { origin, size: theirs, .. } = known;
    if known.is_more {
        format!("knows {theirs} entries of {origin}, of which {size} are here: the store was rolled back")
    } else {
        format!(
            "knows other {theirs} first entries of {origin} than are here: the store was rolled back and written on"
        )
    }
}

/// Stores a signature of a witness, unless its head has one of that key.
async fn keep(
    audit: &Audit,
    reader: &Reader,
    head: &Note,
    witness: &Witness,
    lines: String,
) -> Result<(), String> {
    let Checkpoint { origin, size, .. } = &head.checkpoint;
    let stored = reader.checkpoints(origin, *size, 1).await.map_err(|error| error.to_string())?;
    let stored =
        stored.into_iter().find(|row| row.size == *size).and_then(|row| Note::read(&row.note()).ok());
    if stored.is_some_and(|note| note.lines_of(witness.key()).is_empty()) {
        let op = TargetOp::Cosigned { origin: origin.clone(), size: *size, lines };
        audit.must_send(Group { ops: vec![op], ..Group::default() });
    }
    Ok(())
}

/// The wait after a failure: it doubles up to `longest`, less a part by chance.
fn wait(failed: u32, longest: Duration) -> Duration {
    let mut random = [0u8; 1];
    fill_random(&mut random);
    let wait = FIRST_BACK_OFF.saturating_mul(1 << failed.min(16)).min(longest);
    wait / 2 + wait * u32::from(random[0]) / 512
}
