//! How the run before this one ended, and what a start says.
//!
//! The newest start or stop in the log tells whether the last run said goodbye. One that did not was killed, crashed, or
//! stopped while the log could not be written: that is said in an entry of its own, with the last thing it wrote and what
//! it left open. Both also name what was in force, so that what changed in between is said too.

use serde_json::{Value, json};

use super::super::envelope::Unsealed;
use super::{Group, Writer, entry};
use crate::clock::Time;
use crate::json;
use crate::log;
use crate::store;

/// What the log says of the run before.
#[derive(Debug, Default)]
pub(super) struct LastRun {
    /// It did not end with its stop: what it left.
    unclean: Option<Value>,
    policy: Option<String>,
    config: Option<String>,
}

impl Writer {
    /// Reads back to where the last run began, or to its stop where that says all.
    pub(super) async fn last_run(&mut self) -> Result<LastRun, store::Error> {
        let (mut found, mut clean) = (LastRun::default(), None);
        let Some(log) = &mut self.log else { return Ok(found) };
        let (size, last_at) = (log.frontier.size(), log.last_at);
        let mut below = size;
        while let Some(entry) = log.database.lifecycle_before(&log.origin, below).await? {
            below = entry.index;
            let name = json::own::<Value>(&entry.envelope).unwrap_or_default()["operation"].take();
            let said: Value = entry.body.and_then(|body| json::own(&body).ok()).unwrap_or_default();
            let text = |name: &str| said[name].as_str().map(str::to_owned);
            let (policy, config) = match name.as_str() {
                Some("lifecycle.start" | "lifecycle.stop") => (text("policy"), text("config")),
                Some("lifecycle.policies") => (text("new"), None),
                _ => continue,
            };
            found.policy = found.policy.or(policy);
            found.config = found.config.or(config);
            match name.as_str() {
                Some("lifecycle.stop") => clean = clean.or(Some(true)),
                Some("lifecycle.start") => clean = clean.or(Some(false)),
                _ => {}
            }
            let is_all = found.policy.is_some() && found.config.is_some();
            if name == "lifecycle.start" || (clean.is_some() && is_all) {
                break;
            }
        }
        if clean == Some(false) {
            let open = log.database.pending(&log.origin).await?.len();
            let last = json!({"index": size.saturating_sub(1), "at": last_at});
            found.unclean = Some(json!({"last": last, "open": open}));
        }
        Ok(found)
    }

    /// Says that this run began, how the one before ended, and what changed in between.
    pub(super) fn began(&mut self, mut started: Value, before: LastRun) {
        let now = self.shared.clock.now();
        let in_force = self.shared.in_force.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let (policy, config) =
            in_force.map(|digests| (digests.policy.to_string(), digests.config.to_string())).unzip();
        // A command that only writes to the log passes on what the gateway before it judged by.
        started["policy"] = json!(policy.as_ref().or(before.policy.as_ref()));
        started["config"] = json!(config.as_ref().or(before.config.as_ref()));
        let mut said = vec![entry::lifecycle("start", started)];
        said.extend(before.unclean.map(|found| Self::unclean_stop(&found, now)));
        for (name, old, new) in [("policies", before.policy, policy), ("config", before.config, config)] {
            if let (Some(old), Some(new)) = (old, new)
                && old != new
            {
                said.push(entry::lifecycle(name, json!({"v": 1, "at_start": true, "old": old, "new": new})));
            }
        }
        // Put before everything that waits, so the last comes first.
        said.into_iter().rev().for_each(|said| self.must_write(Group::of(said)));
    }

    fn unclean_stop(found: &Value, now: Time) -> Unsealed {
        log::unclean_stop(&found["last"], &found["open"]);
        let mut payload = json!({"v": 1, "at": now,
            "found": "the run before ended without its stop: killed, crashed, or stopped while the log could not be written"});
        for name in ["last", "open"] {
            payload[name] = found[name].clone();
        }
        entry::lifecycle("unclean_stop", payload)
    }
}
