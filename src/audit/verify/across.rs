//! What concerns more than one log: the order of one target's changes, what one log says of another, and what retention has
//! to leave.
//!
//! It is gathered while the logs are read, and judged when all of them were. A fault goes to the log it concerns.

use std::collections::HashMap;

use serde_json::Value;

use super::story::Retention;
use super::{Fault, Followed, Verified};

/// A log by its number in [`Across::names`], and an entry of it.
type Place = (u32, u64);

/// What concerns more than one log.
#[derive(Default)]
pub(super) struct Across {
    /// The logs that are read or spoken of: elsewhere they are numbers.
    names: Vec<String>,
    numbers: HashMap<String, u32>,
    /// Of each target: the changes with their places.
    pub(super) counted: HashMap<String, Vec<(u64, Place)>>,
    /// Of each target: its newest change that was applied, with the entries retention has to keep of it.
    newest: HashMap<String, (u64, Vec<Place>)>,
    /// Of each log: which entries lack their payload.
    pub(super) lacking: HashMap<String, Vec<bool>>,
    pub(super) retention: Retention,
    /// Entries that speak of another log's.
    pub(super) foreign: Vec<(String, u64, String, u64)>,
    /// What the first entry of a log that follows another says.
    pub(super) successions: Vec<(String, Value)>,
}

impl Across {
    /// Where payloads may be gone.
    pub(super) fn within(retention: Retention) -> Self {
        Self { retention, ..Self::default() }
    }

    /// The number of a log.
    pub(super) fn number(&mut self, origin: &str) -> u32 {
        if let Some(number) = self.numbers.get(origin) {
            return *number;
        }
        let number = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        self.names.push(origin.to_owned());
        self.numbers.insert(origin.to_owned(), number);
        number
    }

    /// What can be said once every log was read; `followed` says which log goes on in another's place. A fault goes to the log it concerns, unless that has one.
    pub(super) fn conclude(&mut self, followed: &HashMap<String, String>, found: &mut [Verified]) {
        let mut faults: Vec<(String, Fault)> = Vec::new();
        for log in found.iter().filter(|log| log.pruned > 0) {
            faults.extend(self.retention.unsaid(&log.origin).map(|fault| (log.origin.clone(), fault)));
        }
        faults.extend(self.out_of_order());
        faults.extend(self.kept_and_gone());
        for (origin, index, of_origin, of_index) in &self.foreign {
            // A log that a store lost entries of was succeeded, and its successor may speak of what is lost.
            let is_there = found.iter().any(|log| log.origin == *of_origin && *of_index < log.size)
                || followed.contains_key(of_origin);
            if !is_there {
                let what = format!("it speaks of entry {of_index} of {of_origin}, which is not there");
                faults.push((origin.clone(), Fault::at(*index, what)));
            }
        }
        for (origin, said) in &self.successions {
            let what = wrong_succession(said, origin, followed, found);
            faults.extend(what.map(|what| (origin.clone(), Fault::at(0, what))));
        }
        for (previous, by) in followed {
            if !self.successions.iter().any(|(origin, said)| origin == by && said["previous"] == **previous) {
                let what = format!("it is marked as followed by {by}, whose first entry does not say so");
                faults.push((previous.clone(), Fault::of_log(what)));
            }
        }
        for (previous, by) in followed {
            let said = self.successions.iter().find(|(origin, _)| origin == by).map(|(_, said)| said);
            let Some(log) = found.iter_mut().find(|log| log.origin == *previous) else { continue };
            // Of another log than this one it says only where that ended.
            let known = said.filter(|said| said["known"]["origin"].is_null());
            let lost = known.and_then(|said| said["known"]["size"].as_u64()?.checked_sub(log.size));
            log.followed = Some(Followed { by: by.clone(), lost });
        }
        for (origin, fault) in faults {
            if let Some(log) = found.iter_mut().find(|log| log.origin == origin && log.fault.is_none()) {
                log.fault = Some(fault);
            }
        }
    }

    /// The changes of a target are 1, 2, 3, … over all logs.
    fn out_of_order(&mut self) -> Option<(String, Fault)> {
        let names = &self.names;
        std::mem::take(&mut self.counted).into_iter().find_map(|(target, mut changes)| {
            changes.sort_unstable();
            let wrong = (1..).zip(&changes).find(|(expected, (seq, ..))| expected != seq);
            wrong.map(|(expected, (seq, (log, index)))| {
                let what = format!("it is change {seq} of {target}, where change {expected} has to be");
                (names[*log as usize].clone(), Fault::at(*index, what))
            })
        })
    }

    /// Retention keeps what was said of each target's newest applied change: by it drift is told.
    fn kept_and_gone(&self) -> Vec<(String, Fault)> {
        let lacks = |(log, index): &&Place| {
            let index = usize::try_from(*index).unwrap_or(usize::MAX);
            let lacking = self.lacking.get(&self.names[*log as usize]);
            lacking.and_then(|log| log.get(index)).copied().unwrap_or(false)
        };
        let gone =
            self.newest.iter().filter_map(|(target, (_, kept))| Some((target, kept.iter().find(lacks)?)));
        let fault = |(target, (log, index)): (&String, &Place)| {
            let what =
                format!("its payload is missing; retention keeps that of the newest change of {target}");
            (self.names[*log as usize].clone(), Fault::at(*index, what))
        };
        gone.map(fault).collect()
    }

    /// An outcome or settlement says that a change of a target was applied.
    pub(super) fn applied(&mut self, target: String, seq: u64, by: Place, of: Place) {
        let newest = self.newest.entry(target).or_default();
        if seq >= newest.0 {
            // An outcome and a settlement of one change are both kept.
            let mut kept = if seq == newest.0 { std::mem::take(&mut newest.1) } else { Vec::new() };
            kept.extend([of, by]);
            *newest = (seq, kept);
        }
    }
}

/// A log that follows another was begun because that one had lost something, and says where it ends.
fn wrong_succession(
    said: &Value,
    origin: &str,
    followed: &HashMap<String, String>,
    found: &[Verified],
) -> Option<String> {
    let previous = said["previous"].as_str().unwrap_or_default();
    let Some(ended) = found.iter().find(|log| log.origin == previous) else {
        // The store lost all of it.
        return (!said["found"].is_null()).then(|| format!("it follows {previous}, which is not there"));
    };
    if ended.fault.is_some() {
        return None;
    }
    let by = followed.get(previous).map(String::as_str);
    let is_true = said["found"]["size"] == ended.size && said["found"]["root"] == *ended.root;
    (!is_true || by != Some(origin)).then(|| {
        format!(
            "it says that {previous} ended with {} entries, and that one has {}",
            said["found"]["size"], ended.size
        )
    })
}
