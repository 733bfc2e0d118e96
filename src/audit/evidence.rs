//! What proves one change to somebody who has no store: made here, and checked here with a public key alone.
//!
//! Each entry of the change travels with its payload and salt, and with a proof as C2SP `tlog-proof` writes it: the
//! entry's number, the hashes from its leaf to the root, and the signed head they lead to. Changes of the log's key travel
//! too, each signed by the key before, so that trust in one key carries over to those that followed.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::checkpoint::{Doubt, KeyKind, Note, Verifier, key_change};
use super::envelope::payload_digest;
use super::proofs::Tree;
use super::tree::{self, Hash};
use crate::json;
use crate::store::{Error, Reader, StoredEntry};

/// What the file says it is.
const FORM: &str = "patchwarden.proof.v1";
const PROOF: &str = "c2sp.org/tlog-proof@v1";

/// The file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    form: String,
    /// The change.
    pub change: String,
    /// Its attempt first, then what became of it.
    pub entries: Vec<Proven>,
    /// Every key that followed another.
    pub key_changes: Vec<KeyChange>,
}

/// An entry, and that it is in its log.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proven {
    /// Its log.
    pub origin: String,
    /// Its number.
    pub index: u64,
    /// The leaf, byte for byte.
    pub envelope: String,
    /// What it says; `None`: retention removed it.
    pub payload: Option<String>,
    /// In hex.
    pub salt: Option<String>,
    /// A `tlog-proof`.
    pub proof: String,
}

/// A key that follows another, on that one's word.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyChange {
    /// The log.
    pub origin: String,
    /// The key that signed until then.
    pub old: String,
    /// The one that signs from then on.
    pub new: String,
    /// By the old one, in base64.
    pub signature: String,
}

impl KeyChange {
    /// The keys, when the old one signed for the new one.
    pub fn verified(&self) -> Option<(Verifier, Verifier)> {
        let (old, new): (Verifier, Verifier) = (self.old.parse().ok()?, self.new.parse().ok()?);
        let names = old.name == self.origin && new.name == self.origin;
        let signature = STANDARD.decode(&self.signature).ok()?;
        (names && old.signed(key_change(&new).as_bytes(), &signature)).then_some((old, new))
    }

    /// Of the payload of an entry that says so.
    pub fn of(payload: &Value) -> Option<Self> {
        json::typed(payload.get("change")?.clone()).ok()
    }
}

/// The same keys as those of a log of that name: a log that follows another is signed with the same one.
pub fn under(origin: &str, keys: &[Verifier]) -> Vec<Verifier> {
    let log_keys = keys.iter().filter(|key| key.kind() == KeyKind::Log);
    log_keys.map(|key| Verifier::of_log(origin, *key.public())).collect()
}

/// Those of `trusted`, and every key that follows one of them.
pub fn followed(trusted: &[Verifier], changes: &[KeyChange]) -> Vec<Verifier> {
    let mut keys = trusted.to_vec();
    let verified: Vec<_> = changes.iter().filter_map(KeyChange::verified).collect();
    loop {
        let next = verified.iter().find(|(old, new)| keys.contains(old) && !keys.contains(new));
        match next {
            Some((_, new)) => keys.push(new.clone()),
            None => return keys,
        }
    }
}

/// Gathers what proves a change. `Ok(None)`: its newest entry is not under a signed head yet.
pub async fn gather(
    reader: &Reader,
    change: &str,
    entries: &[StoredEntry],
) -> Result<Option<Evidence>, Error> {
    let mut proven = Vec::new();
    let mut key_changes = Vec::new();
    for entry in entries {
        // What a witness has seen proves more than what is newer.
        let head = match reader.newest_cosigned(&entry.origin, entry.index + 1).await? {
            Some(head) => Some(head),
            None => reader.newest_checkpoint(&entry.origin).await?,
        };
        let Some(head) = head.filter(|head| head.size > entry.index) else { return Ok(None) };
        let tree = Tree { reader, origin: &entry.origin, size: head.size };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        proven.push(Proven {
            origin: entry.origin.clone(),
            index: entry.index,
            envelope: text(&entry.envelope),
            payload: entry.body.as_deref().map(text),
            salt: entry.salt.as_ref().map(hex::encode),
            proof: written(entry.index, &tree.inclusion(entry.index).await?, &head.note()),
        });
    }
    let mut origins: Vec<&str> = entries.iter().map(|entry| entry.origin.as_str()).collect();
    origins.dedup();
    for origin in origins {
        key_changes.extend(key_changes_of(reader, origin).await?);
    }
    Ok(Some(Evidence { form: FORM.to_owned(), change: change.to_owned(), entries: proven, key_changes }))
}

/// Every change of a log's key, as its entries say it.
pub async fn key_changes_of(reader: &Reader, origin: &str) -> Result<Vec<KeyChange>, Error> {
    let mut changes = Vec::new();
    for key in reader.log_keys().await?.into_iter().filter(|key| key.origin == origin && key.since > 0) {
        let entry = reader.entry(origin, key.since).await?;
        let payload = entry.and_then(|entry| json::own::<Value>(entry.body.as_deref()?).ok());
        changes.extend(payload.as_ref().and_then(KeyChange::of));
    }
    Ok(changes)
}

/// A proof as it is written down.
pub fn written(index: u64, hashes: &[Hash], note: &str) -> String {
    let mut text = format!("{PROOF}\nindex {index}\n");
    for hash in hashes {
        // Writing into a String does not fail.
        let _ = writeln!(text, "{}", STANDARD.encode(hash));
    }
    text + "\n" + note
}

/// A proof that was read; nothing of it is believed.
pub struct Proof {
    /// Of which entry.
    pub index: u64,
    hashes: Vec<Hash>,
    /// The head it leads to.
    pub note: Note,
}

impl Proof {
    /// Reads what [`written`] writes; `extra` lines are passed over.
    pub fn read(text: &str) -> Result<Self, String> {
        let (head, note) = text.split_once("\n\n").ok_or("the proof holds no signed head")?;
        let mut lines = head.split('\n');
        if lines.next() != Some(PROOF) {
            return Err(format!("the proof does not begin with `{PROOF}`"));
        }
        let mut line = lines.next().unwrap_or_default();
        if line.starts_with("extra ") {
            line = lines.next().unwrap_or_default();
        }
        let index = line.strip_prefix("index ").and_then(|number| number.parse().ok());
        let hash = |line: &str| STANDARD.decode(line).ok().and_then(|hash| Hash::try_from(hash).ok());
        let hashes: Option<Vec<Hash>> = lines.map(hash).collect();
        let (Some(index), Some(hashes)) = (index, hashes) else {
            return Err("the proof has a line that is no number of an entry and no hash".to_owned());
        };
        Ok(Self { index, hashes, note: Note::read(note).map_err(|doubt| doubt.to_string())? })
    }

    /// Whether it leads from that leaf to its own head.
    pub fn holds(&self, envelope: &[u8]) -> bool {
        let head = &self.note.checkpoint;
        tree::root_of_inclusion(tree::leaf(envelope), self.index, head.size, &self.hashes) == Some(head.root)
    }
}

/// What a file proves, once all of it was checked.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The change.
    pub change: String,
    /// Each entry's envelope, with the size of the head it is under, and by which witness that was seen when.
    pub entries: Vec<Checked>,
}

/// An entry that is proven.
#[derive(Clone, Debug)]
pub struct Checked {
    /// Its log.
    pub origin: String,
    /// Its envelope.
    pub envelope: Value,
    /// What it says; null when retention removed it.
    pub payload: Value,
    /// Number of entries of the head.
    pub size: u64,
    /// Names of witnesses, each with the seconds since 1970.
    pub witnessed: Vec<(String, u64)>,
}

impl Evidence {
    /// Reads a file.
    pub fn read(text: &[u8]) -> Result<Self, String> {
        let read: Self = json::own(text).map_err(|error| format!("it is no proof of a change: {error}"))?;
        if read.form != FORM {
            return Err(format!("its form is `{}`; this version knows `{FORM}`", read.form));
        }
        Ok(read)
    }

    /// Checks all of it. The error names the entry and what is wrong with it.
    pub fn verify(&self, keys: &[Verifier], witnesses: &[Verifier]) -> Result<Verdict, String> {
        let mut checked: Vec<Checked> = Vec::new();
        for entry in &self.entries {
            let keys = followed(&under(&entry.origin, keys), &self.key_changes);
            let named = |what: String| format!("entry {} of {}: {what}", entry.index, entry.origin);
            let found = entry.verify(&keys, witnesses).map_err(named)?;
            if found.envelope["change"].as_str() != Some(&self.change) {
                return Err(named("it belongs to another change".to_owned()));
            }
            checked.push(found);
        }
        whole(&checked)?;
        Ok(Verdict { change: self.change.clone(), entries: checked })
    }
}

impl Proven {
    fn verify(&self, keys: &[Verifier], witnesses: &[Verifier]) -> Result<Checked, String> {
        let proof = Proof::read(&self.proof)?;
        let head = &proof.note.checkpoint;
        if head.origin != self.origin || proof.index != self.index {
            return Err("its proof is that of another entry".to_owned());
        }
        proof.note.signed_by(keys).map_err(|doubt| format!("its head of {} entries: {doubt}", head.size))?;
        if !proof.holds(self.envelope.as_bytes()) {
            return Err("it is not in the log: its proof does not lead to the signed head".to_owned());
        }
        let envelope: Value =
            json::own(self.envelope.as_bytes()).map_err(|error| format!("its envelope: {error}"))?;
        if envelope["index"].as_u64() != Some(self.index) {
            return Err("its envelope is that of another entry".to_owned());
        }
        let payload = match (&self.payload, &self.salt) {
            (Some(payload), Some(salt)) => {
                let salt = hex::decode(salt).map_err(|_| "its salt is no hexadecimal text".to_owned())?;
                if envelope["payload"].as_str() != Some(payload_digest(&salt, payload.as_bytes()).as_str()) {
                    return Err("its payload is not the one its envelope has the digest of".to_owned());
                }
                json::own(payload.as_bytes()).map_err(|error| format!("its payload: {error}"))?
            }
            (None, None) => Value::Null,
            _ => return Err("it has a payload without salt, or a salt without payload".to_owned()),
        };
        let witnessed = |witness: &Verifier| {
            let at = proof.note.witnessed_by(witness).map_err(|doubt: Doubt| doubt.to_string());
            at.map(|at| at.map(|at| (witness.name.clone(), at))).transpose()
        };
        let witnessed = witnesses.iter().filter_map(witnessed).collect::<Result<_, _>>()?;
        Ok(Checked { origin: self.origin.clone(), envelope, payload, size: head.size, witnessed })
    }
}

/// One attempt, and what follows speaks of it.
fn whole(entries: &[Checked]) -> Result<(), String> {
    let kind = |entry: &Checked| entry.envelope["kind"].as_str().unwrap_or_default().to_owned();
    let Some(attempt) = entries.first().filter(|entry| matches!(&*kind(entry), "attempt" | "fold" | "drift"))
    else {
        return Err("the file does not begin with the attempt of the change".to_owned());
    };
    let of = json!({"origin": attempt.origin, "index": attempt.envelope["index"]});
    let mut kinds = Vec::new();
    for entry in &entries[1..] {
        let kind = kind(entry);
        if kinds.contains(&kind) || !matches!(&*kind, "outcome" | "settlement") || entry.envelope["of"] != of
        {
            return Err(format!(
                "entry {} is no outcome or settlement of the attempt",
                entry.envelope["index"]
            ));
        }
        kinds.push(kind);
    }
    Ok(())
}
