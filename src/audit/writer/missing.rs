//! What a store has lost of what was committed to it.
//!
//! It has to begin with every head that is known from outside of it: the one in memory, the one beside the store, those on
//! other storage, and what a witness says. A store that does not was rolled back: its log is closed, and the one that
//! follows says in its first entry what is known and what was found.

use std::io::ErrorKind;
use std::path::Path;

use serde_json::{Value, json};

use super::super::checkpoint::{Checkpoint, Note, Verifier};
use super::super::proofs::Tree;
use super::super::tree::Frontier;
use super::Writer;
use crate::keys::Keys;
use crate::store::{self, Database, Location, Reader};

impl Writer {
    /// What the store has lost of what this gateway committed to it, as the entry of a succession says it.
    pub(super) async fn missing(
        &self,
        database: &mut Database,
        reader: &Reader,
        found: &Checkpoint,
    ) -> Result<Option<Value>, store::Error> {
        let mut outside = match &self.known {
            Some(known) => vec![known.clone()],
            None => self.outside_heads().await?,
        };
        // Whoever knows most says how much is missing.
        outside.sort_by_key(|known| std::cmp::Reverse(known.size));
        for known in outside {
            let missing = self.missing_of(database, reader, &known, found).await?;
            if missing.is_some() {
                return Ok(missing);
            }
        }
        self.missing_elsewhere(reader, found).await
    }

    /// What was committed by an earlier run as it was kept outside the store.
    async fn outside_heads(&self) -> Result<Vec<Checkpoint>, store::Error> {
        let beside = outside_head(&self.store, &self.shared.data, &self.shared.keys)?;
        let mut outside = self.shared.anchors.heads(&self.shared.keys).await;
        outside.extend(beside);
        Ok(outside)
    }

    /// What somebody else says is missing.
    async fn missing_elsewhere(
        &self,
        reader: &Reader,
        found: &Checkpoint,
    ) -> Result<Option<Value>, store::Error> {
        let Some(said) = self.elsewhere.as_ref().filter(|said| said.origin == found.origin) else {
            return Ok(None);
        };
        let known = said.root.map(|root| Checkpoint { root, size: said.size, ..found.clone() });
        let is_there = match &known {
            Some(known) => extends(reader, known, found).await?,
            // Of more than there was, there is enough now.
            None => said.is_more && found.size >= said.size,
        };
        if is_there {
            return Ok(None);
        }
        let shown = known.as_ref().map_or_else(|| json!({"size": said.size, "root": null}), head);
        let reason = "somebody else knows more of the log than the store holds, or another one";
        Ok(Some(json!({"v": 1, "at": self.shared.clock.now(), "reason": reason, "by": said.by,
            "previous": said.origin, "known": shown, "found": head(found)})))
    }

    /// What is missing of a head that this gateway signed.
    async fn missing_of(
        &self,
        database: &mut Database,
        reader: &Reader,
        known: &Checkpoint,
        found: &Checkpoint,
    ) -> Result<Option<Value>, store::Error> {
        let previous = known.origin.clone();
        let found = if previous == found.origin {
            if extends(reader, known, found).await? {
                return Ok(None);
            }
            head(found)
        } else if found.size > 0 {
            if leads_to(database, &previous, &found.origin).await? {
                // Succeeded by this one before, which has said so.
                return Ok(None);
            }
            // A store of before: the log of which a head is kept came later, and of that it holds nothing.
            return Ok(Some(self.succession(&found.origin, &known_of(known), &head(found))));
        } else {
            database.begin().await?;
            let there = database.head(&previous).await;
            database.rollback().await?;
            let there = there?.and_then(|there| Frontier::read(there.size, &there.frontier));
            there.map_or(Value::Null, |there| head(&there.of_log(&previous)))
        };
        Ok(Some(self.succession(&previous, &head(known), &found)))
    }

    fn succession(&self, previous: &str, known: &Value, found: &Value) -> Value {
        let reason = "the store no longer holds all that was committed to it";
        json!({"v": 1, "at": self.shared.clock.now(), "reason": reason, "previous": previous, "known": known, "found": found})
    }
}

/// The head kept beside the store, from an earlier run. One that this gateway did not sign is no head of its log, and is
/// not passed over: it may be all that tells of a loss.
pub(in crate::audit) fn outside_head(
    store: &Location,
    data: &Path,
    keys: &Keys,
) -> Result<Option<Checkpoint>, store::Error> {
    let path = store::head_path(store, data);
    let wrong = |why: String| {
        store::Error::Fatal(format!(
            "{}: {why}; put back the one that was kept beside the store, or remove it if nothing can have been lost",
            path.display()
        ))
    };
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(wrong(error.to_string())),
    };
    let note = Note::read(&text).map_err(|doubt| wrong(doubt.to_string()))?;
    let ours = keys.log_publics().into_iter();
    let ours: Vec<_> = ours.map(|public| Verifier::of_log(&note.checkpoint.origin, public)).collect();
    note.signed_by(&ours).map_err(|doubt| wrong(doubt.to_string()))?;
    Ok(Some(note.checkpoint))
}

/// Whether a log still begins with all that was known of it.
async fn extends(reader: &Reader, known: &Checkpoint, found: &Checkpoint) -> Result<bool, store::Error> {
    if found.size <= known.size {
        return Ok(found == known);
    }
    let tree = Tree { reader, origin: &known.origin, size: known.size };
    Ok(tree.root().await? == known.root)
}

/// The head of another log than the one that ends.
fn known_of(known: &Checkpoint) -> Value {
    let mut shown = head(known);
    shown["origin"] = json!(known.origin);
    shown
}

/// Whether a log was followed by another one, at once or by others between.
async fn leads_to(database: &mut Database, from: &str, to: &str) -> Result<bool, store::Error> {
    database.begin().await?;
    let closed = database.meta("closed").await;
    database.rollback().await?;
    let closed = closed?;
    let mut at = from;
    // Each follows one that was there before it, so none is met twice.
    for _ in 0..closed.len() {
        let Some((_, next)) = closed.iter().find(|(origin, _)| origin == at) else { return Ok(false) };
        if next == to {
            return Ok(true);
        }
        at = next;
    }
    Ok(false)
}

fn head(checkpoint: &Checkpoint) -> Value {
    json!({"size": checkpoint.size, "root": hex::encode(checkpoint.root)})
}
