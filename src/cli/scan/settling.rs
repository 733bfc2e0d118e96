//! What `scan --settle` writes: settlements, and drift.
//!
//! Each reading is held against what the log knows of its identity, by the same table as a running gateway uses. An
//! identity that is held and not in the list (it may have been removed) is read too; one that could not be read for
//! `settle.undecidable_after` is given up.

use std::sync::Arc;

use serde_json::Value;

use super::super::out::complain;
use super::{Identity, Scan};
use crate::audit::{Audit, Drift, Look, Settled, TargetNow};
use crate::before::{Freshness, Reading, Watch};
use crate::clock::Clock;
use crate::id::{ChangeId, TargetId};
use crate::operation::Object;
use crate::settle;

/// Held identities beside those of the list.
const MAX_HELD: usize = 10_000;
const BY: &str = "scan";

/// What was written of one identity.
#[derive(Default)]
pub(super) struct Written {
    /// A change whose end was not seen, with what is proved of it now.
    pub settled: Option<(ChangeId, String)>,
    /// What differs from the last state that was on record.
    pub drift: Option<Vec<Value>>,
}

impl Scan<'_> {
    /// Adds the identities that are held and not listed.
    pub(super) async fn add_held(&self, identities: &mut Vec<Identity>) {
        let Some(audit) = &self.audit else { return };
        match audit.held_targets(MAX_HELD).await {
            Ok(held) => {
                for (target, _) in held {
                    if !identities.iter().any(|identity| identity.id == target.id()) {
                        identities.push(Identity { id: target.id(), name: String::new() });
                    }
                }
            }
            Err(why) => complain(&format!("the held identities are not known: {why}")),
        }
    }

    /// Writes what a reading proves, where there is a log to write to.
    pub(super) async fn settle(&self, target: &TargetId, object: &Arc<Object>, reading: &Reading) -> Written {
        let (Some(audit), Some((_, keys))) = (&self.audit, &self.record) else { return Written::default() };
        let now = match audit.look(target).await {
            Ok(now) => now,
            Err(refusal) => {
                complain(&format!("{}: {}", target.id(), refusal.detail));
                return Written::default();
            }
        };
        let (newest, gone) = now.known();
        let fresh = Watch::default().judge(target, reading, newest, gone) == Freshness::Fresh
            || settle::is_removed(now.hold.as_ref(), reading);
        let Some(hold) = &now.hold else {
            let drift = if fresh { drift(audit, target, object, reading, &now).await } else { None };
            return Written { settled: None, drift: note(audit, drift, target, now.turn, object).await };
        };
        if !hold.unknown {
            return Written::default();
        }
        let limit = self.config.upstream.late_write_limit.0;
        let proved = settle::judge(hold, reading, limit, BY, keys).filter(|_| fresh);
        let Some(proved) = proved else {
            let said = if fresh {
                "not yet: it may still land"
            } else {
                "not now: what was read is older than what is on record"
            };
            return Written { settled: Some((hold.intent.change, said.to_owned())), drift: None };
        };
        let own = proved.result == Settled::Applied;
        let found = if own { None } else { drift(audit, target, object, reading, &now).await };
        let (said, drift) = match audit.settle(&proved, found.as_ref(), target, now.turn, object).await {
            Ok(true) => (proved.result.as_str().to_owned(), found.map(|drift| drift.differs)),
            Ok(false) => ("not now: the identity moved meanwhile".to_owned(), None),
            Err(cause) => (format!("not now: {cause}"), None),
        };
        Written { settled: Some((hold.intent.change, said)), drift }
    }

    /// Gives up what could not be read for long enough; says so.
    pub(super) async fn give_up(&self, target: &TargetId, object: &Object, why: &str) -> Option<String> {
        let audit = self.audit.as_ref()?;
        let now = audit.look(target).await.ok()?;
        let after = self.config.settle.undecidable_after.0;
        let settlement = settle::undecidable(now.hold.as_ref()?, Clock::System.now(), after, why, BY)?;
        let written = audit.settle(&settlement, None, target, now.turn, object).await == Ok(true);
        written.then(|| format!("its change {} is settled as undecidable", settlement.of.change))
    }
}

async fn drift(
    audit: &Audit,
    target: &TargetId,
    object: &Object,
    reading: &Reading,
    now: &TargetNow,
) -> Option<Drift> {
    let look = Look { target, object, reading, newest: now.newest.as_ref(), rolled_back: false, by: BY };
    audit.drift(&look).await.unwrap_or_else(|refusal| {
        complain(&format!("{}: {}", target.id(), refusal.detail));
        None
    })
}

async fn note(
    audit: &Audit,
    drift: Option<Drift>,
    target: &TargetId,
    turn: u64,
    object: &Object,
) -> Option<Vec<Value>> {
    let drift = drift?;
    if let Err(cause) = audit.note_drift(&drift, target, turn, object).await {
        complain(&format!("{}: its drift is not recorded: {cause}", target.id()));
    }
    Some(drift.differs)
}
