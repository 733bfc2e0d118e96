//! What is read as a note, a key or a proof says byte for byte what was read, and nothing is proved without a key.

use patchwarden::audit::checkpoint::{Note, Verifier};
use patchwarden::audit::evidence::{Evidence, Proof};

/// Any bytes as each of them.
pub fn proof(bytes: &[u8]) {
    if let Ok(evidence) = Evidence::read(bytes) {
        assert!(evidence.verify(&[], &[]).is_err(), "proved without a key");
        evidence.entries.iter().for_each(|entry| text(&entry.proof));
    }
    if let Ok(read) = std::str::from_utf8(bytes) {
        text(read);
    }
}

fn text(text: &str) {
    if let Ok(note) = Note::read(text) {
        assert_eq!(note.to_string(), text, "a note is written otherwise than it was read");
        assert!(note.signed_by(&[]).is_err(), "signed by nobody");
    }
    if let Ok(key) = text.parse::<Verifier>() {
        assert_eq!(key.to_string(), text.trim(), "a key is written otherwise than it was read");
    }
    if let Ok(proof) = Proof::read(text) {
        assert!(text.ends_with(&proof.note.to_string()), "the head of a proof is not the one in it");
        assert!(!proof.holds(text.as_bytes()), "a proof that holds of itself");
    }
}
