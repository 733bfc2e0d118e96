//! An export read instead of a store: the same story, without what only a store has.
//!
//! There are no rows beside the envelopes, no stored heads and no tiles. What retention removed is told by the entries that
//! say so. Heads that were kept elsewhere are compared as ever, by keys that are trusted.

use std::collections::HashMap;
use std::io::BufRead;

use serde::Deserialize;

use super::super::checkpoint::Note;
use super::super::evidence::{KeyChange, followed, under};
use super::heads::{look_for_witnesses, unseen};
use super::story::{Story, digest};
use super::{Across, Asked, Fault, Signed, Verified};
use crate::json;
use crate::store::StoredEntry;

/// One line of an export.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    origin: String,
    index: u64,
    kind: String,
    envelope: String,
    payload: Option<String>,
    salt: Option<String>,
}

/// A log of the file, as far as it was read.
struct Log {
    story: Story,
    heads: Vec<Note>,
    passed: Vec<Note>,
    keys: Vec<KeyChange>,
    fault: Option<Fault>,
}

/// Reads an export. An error is what keeps it from being read; what is wrong with the log is a fault of it.
pub fn export(
    lines: impl BufRead,
    asked: &Asked,
    mut read: impl FnMut(usize),
) -> Result<Vec<Verified>, String> {
    let mut across = Across::default();
    across.retention.believe();
    let mut logs: Vec<(String, Log)> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for (number, line) in (1..).zip(lines.lines()) {
        let line = line.map_err(|error| format!("line {number}: {error}"))?;
        let entry = json::own::<Line>(line.as_bytes()).map_err(|error| format!("line {number}: {error}"))?;
        let place = *places.entry(entry.origin.clone()).or_insert_with(|| {
            logs.push((entry.origin.clone(), Log::new(&entry.origin, asked, &mut across)));
            logs.len() - 1
        });
        logs[place].1.take(entry, &mut across);
        read(1);
    }
    let mut found: Vec<Verified> =
        logs.into_iter().map(|(origin, log)| log.end(&origin, asked, &mut across)).collect();
    let previous = |(origin, said): &(String, serde_json::Value)| {
        Some((said["previous"].as_str()?.to_owned(), origin.clone()))
    };
    let followed = across.successions.iter().filter_map(previous).collect();
    across.conclude(&followed, &mut found);
    super::unknown_names(asked, &across, &mut found);
    Ok(found)
}

impl Log {
    fn new(origin: &str, asked: &Asked, across: &mut Across) -> Self {
        let heads = asked.heads.iter().filter(|head| head.checkpoint.origin == origin).cloned().collect();
        Self { story: Story::new(origin, across), heads, passed: Vec::new(), keys: Vec::new(), fault: None }
    }

    fn take(&mut self, line: Line, across: &mut Across) {
        if self.fault.is_some() {
            return;
        }
        let index = self.story.size();
        let salt = line.salt.map(hex::decode).transpose();
        let Ok(salt) = salt else {
            self.fault = Some(Fault::at(index, "its salt is no hexadecimal text"));
            return;
        };
        if line.kind == "lifecycle"
            && let Some(change) = line
                .payload
                .as_deref()
                .and_then(|text| KeyChange::of(&json::own::<serde_json::Value>(text.as_bytes()).ok()?))
        {
            self.keys.push(change);
        }
        let entry = StoredEntry {
            row: 0,
            origin: line.origin,
            index: line.index,
            kind: line.kind,
            of: None,
            envelope: line.envelope.into_bytes(),
            body: line.payload.map(String::into_bytes),
            salt,
        };
        if let Err(what) = self.story.take(digest(&entry, false), across) {
            self.fault = Some(Fault::at(index, what));
            return;
        }
        let size = self.story.size();
        let reached: Vec<Note> = self.heads.extract_if(.., |head| head.checkpoint.size == size).collect();
        for head in reached {
            if head.checkpoint != self.story.tree.of_log(&entry.origin) {
                self.fault = Some(super::not_the_head(size));
            }
            self.passed.push(head);
        }
    }

    fn end(mut self, origin: &str, asked: &Asked, across: &mut Across) -> Verified {
        let trusted = followed(&under(origin, &asked.keys), &self.keys);
        let size = self.story.size();
        let (mut signed, mut seen) = (None, Vec::new());
        for head in &self.passed {
            let witnessed = look_for_witnesses(head, &asked.witnesses, &mut seen);
            self.fault = self.fault.or(witnessed.err());
            match head.signed_by(&trusted) {
                Ok(()) => signed = signed.max(Some(head.checkpoint.size)),
                Err(doubt) => {
                    let what = format!("its signed head of {} entries: {doubt}", head.checkpoint.size);
                    self.fault = self.fault.or(Some(Fault::of_log(what)));
                }
            }
        }
        if let Some(beyond) = self.heads.iter().map(|head| head.checkpoint.size).max() {
            let what = format!("it is missing: a head of {beyond} entries was signed");
            self.fault = self.fault.or(Some(Fault::at(size, what)));
        }
        self.fault = self.fault.or_else(|| unseen(&seen, asked));
        let passed = self.passed.len() as u64;
        let unsigned = size - signed.unwrap_or(0);
        let signed = signed.map(|size| Signed { size, is_trusted: true });
        let story = self.story.verified(across);
        Verified { heads: passed, given: passed, signed, unsigned, seen, fault: self.fault, ..story }
    }
}
