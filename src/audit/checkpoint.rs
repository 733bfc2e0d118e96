//! Checkpoints: what a log signs of itself, as C2SP `tlog-checkpoint`, `signed-note` and `tlog-cosignature` say it.
//!
//! A checkpoint is a log's name, its size and its root hash; a note is that text with lines of signatures under it. A
//! [`Verifier`] is a public key as people hand it on (`name+id+base64`), of a log or of a witness. Signatures of unknown
//! keys are ignored; one of a known key that does not fit spoils the note.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::tree::Hash;
use crate::id::sha256;

/// Signatures of one note that are looked at.
const MAX_SIGNATURES: usize = 64;
/// The longest note that is read.
pub const MAX_NOTE: usize = 64 << 10;

/// A log's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The log's name.
    pub origin: String,
    /// Number of its entries.
    pub size: u64,
    /// Root hash of the tree over them.
    pub root: Hash,
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}\n{}\n{}\n", self.origin, self.size, STANDARD.encode(self.root))
    }
}

/// What makes a signature: also what is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// Ed25519 over the text: a log's.
    Log = 0x01,
    /// Ed25519 over the text and a time: a witness's.
    Witness = 0x04,
}

/// A public key with its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verifier {
    /// What it signs as.
    pub name: String,
    kind: KeyKind,
    public: [u8; 32],
}

/// Why a text is no key.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error(
    "is no public key of a log or a witness; one is written NAME+ID+BASE64, as `patchwarden keys show` and witnesses print it"
)]
pub struct NoKey;

impl Verifier {
    /// The key of a log, under the log's name.
    pub fn of_log(origin: &str, public: [u8; 32]) -> Self {
        Self { name: origin.to_owned(), kind: KeyKind::Log, public }
    }

    /// The same, of a key as the store has it.
    pub fn of_stored(origin: &str, hex: &str) -> Option<Self> {
        let public = hex::decode(hex).ok()?.try_into().ok()?;
        Some(Self::of_log(origin, public))
    }

    /// The key itself.
    pub fn public(&self) -> &[u8; 32] {
        &self.public
    }

    /// Whose it is.
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    fn id(&self) -> [u8; 4] {
        let digest = sha256(&[self.name.as_bytes(), b"\n", &[self.kind as u8], &self.public]);
        [digest[0], digest[1], digest[2], digest[3]]
    }

    /// Whether it made this signature of a text, as a log signs.
    pub fn signed(&self, text: &[u8], signature: &[u8]) -> bool {
        self.kind == KeyKind::Log && fits(self, text, signature)
    }

    /// The line a signature of this key is.
    pub fn line(&self, signature: &[u8]) -> String {
        let bytes = [&self.id()[..], signature].concat();
        format!("\u{2014} {} {}\n", self.name, STANDARD.encode(bytes))
    }
}

impl fmt::Display for Verifier {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = [&[self.kind as u8], &self.public[..]].concat();
        write!(out, "{}+{}+{}", self.name, hex::encode(self.id()), STANDARD.encode(key))
    }
}

impl FromStr for Verifier {
    type Err = NoKey;

    fn from_str(text: &str) -> Result<Self, NoKey> {
        let mut parts = text.trim().splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(NoKey);
        };
        let key = STANDARD.decode(key).map_err(|_| NoKey)?;
        let kind = match key.first() {
            Some(0x01) => KeyKind::Log,
            Some(0x04) => KeyKind::Witness,
            _ => return Err(NoKey),
        };
        let public = key[1..].try_into().map_err(|_| NoKey)?;
        let read = Self { name: name.to_owned(), kind, public };
        if is_name(name) && hex::encode(read.id()) == id { Ok(read) } else { Err(NoKey) }
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.chars().any(|c| c.is_whitespace() || c.is_control() || c == '+')
}

/// A signature of a note, of whoever.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Signature {
    name: String,
    id: [u8; 4],
    bytes: Vec<u8>,
    line: String,
}

/// A checkpoint with its signatures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// What is signed.
    pub checkpoint: Checkpoint,
    text: String,
    signatures: Vec<Signature>,
}

/// Why a text is no note, or not to be believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Doubt {
    /// It is not written as a note of a checkpoint.
    #[error("it is no signed checkpoint: {0}")]
    Malformed(&'static str),
    /// A known key's signature does not fit the text.
    #[error("the signature of {0} does not fit it")]
    Forged(String),
    /// No known key signed it.
    #[error("it is not signed by {0}")]
    Unsigned(String),
}

impl Note {
    /// Reads a note; believes nothing yet.
    pub fn read(note: &str) -> Result<Self, Doubt> {
        let wrong = |what| Err(Doubt::Malformed(what));
        if note.len() > MAX_NOTE {
            return wrong("it is too long");
        }
        if note.chars().any(|c| c < ' ' && c != '\n') {
            return wrong("it has control characters");
        }
        let Some(end) = note.rfind("\n\n") else { return wrong("no line is empty") };
        let (text, lines) = (&note[..=end], &note[end + 2..]);
        if lines.is_empty() || !lines.ends_with('\n') {
            return wrong("no signatures follow its empty line, or the last is cut");
        }
        let mut signatures = Vec::new();
        for line in lines.split_terminator('\n') {
            let Some(signature) = signature(line) else { return wrong("a line is no signature") };
            signatures.push(signature);
        }
        if signatures.len() > MAX_SIGNATURES {
            return wrong("it has too many signatures");
        }
        let mut body = text.split_terminator('\n');
        let (Some(origin), Some(size), Some(root)) = (body.next(), body.next(), body.next()) else {
            return wrong("its text has fewer than three lines");
        };
        let size = size.parse::<u64>().ok().filter(|parsed| parsed.to_string() == size);
        let root = STANDARD.decode(root).ok().and_then(|root| Hash::try_from(root).ok());
        let (Some(size), Some(root)) = (size, root) else {
            return wrong("its second line is no size or its third no hash");
        };
        if origin.is_empty() {
            return wrong("its first line names no log");
        }
        let checkpoint = Checkpoint { origin: origin.to_owned(), size, root };
        Ok(Self { checkpoint, text: text.to_owned(), signatures })
    }

    /// Whether all known signatures fit, and one is by one of `keys`, under the log's own name.
    pub fn signed_by(&self, keys: &[Verifier]) -> Result<(), Doubt> {
        let mut is_signed = false;
        for key in keys.iter().filter(|key| key.kind == KeyKind::Log && key.name == self.checkpoint.origin) {
            is_signed |= self.of(key)?.is_some();
        }
        let names = || keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
        is_signed.then_some(()).ok_or_else(|| Doubt::Unsigned(names()))
    }

    /// When a witness signed it, in seconds since 1970: the latest of its signatures; `None`: it did not.
    pub fn witnessed_by(&self, witness: &Verifier) -> Result<Option<u64>, Doubt> {
        self.of(witness)
    }

    /// The signature of one key; of a log's key the time is 0.
    fn of(&self, key: &Verifier) -> Result<Option<u64>, Doubt> {
        let mut found = None;
        for signature in self.signatures.iter().filter(|one| one.name == key.name && one.id == key.id()) {
            let at = match key.kind {
                KeyKind::Log => fits(key, self.text.as_bytes(), &signature.bytes).then_some(0),
                KeyKind::Witness => signature.bytes.split_first_chunk::<8>().and_then(|(at, bytes)| {
                    let at = u64::from_be_bytes(*at);
                    fits(key, cosigned(at, &self.text).as_bytes(), bytes).then_some(at)
                }),
            };
            let at = at.ok_or_else(|| Doubt::Forged(key.name.clone()))?;
            found = found.max(Some(at));
        }
        Ok(found)
    }

    /// The lines of one key, as they stand.
    pub fn lines_of(&self, key: &Verifier) -> String {
        let mine = |one: &&Signature| one.name == key.name && one.id == key.id();
        self.signatures.iter().filter(mine).map(|one| one.line.as_str()).collect()
    }
}

impl fmt::Display for Note {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{}", self.text)?;
        self.signatures.iter().try_for_each(|signature| out.write_str(&signature.line))
    }
}

fn fits(key: &Verifier, text: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, key.public).verify(text, signature).is_ok()
}

/// What a log's key signs of the one that follows it.
pub fn key_change(new: &Verifier) -> String {
    format!("patchwarden.log-key.v1\n{new}\n")
}

/// What a witness signs.
pub fn cosigned(at: u64, text: &str) -> String {
    format!("cosignature/v1\ntime {at}\n{text}")
}

fn signature(line: &str) -> Option<Signature> {
    let (name, encoded) = line.strip_prefix("\u{2014} ")?.split_once(' ')?;
    let decoded = STANDARD.decode(encoded).ok()?;
    let (id, bytes) = decoded.split_first_chunk::<4>()?;
    let is_whole = is_name(name) && !bytes.is_empty();
    is_whole.then(|| Signature {
        name: name.to_owned(),
        id: *id,
        bytes: bytes.to_vec(),
        line: format!("{line}\n"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};

    /// From the specification of `tlog-cosignature`, and the keys of that example.
    const WITNESSED: &str = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n\u{2014} example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n\u{2014} witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n";

    fn key(seed: u8) -> (Ed25519KeyPair, Verifier) {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
        let public = pair.public_key().as_ref().try_into().unwrap();
        (pair, Verifier::of_log("log.example/1", public))
    }

    fn note(pair: &Ed25519KeyPair, key: &Verifier) -> String {
        let text = Checkpoint { origin: "log.example/1".into(), size: 7, root: [3; 32] }.to_string();
        format!("{text}\n{}", key.line(pair.sign(text.as_bytes()).as_ref()))
    }

    #[test]
    fn a_published_note_is_read_as_it_was_written() {
        let read = Note::read(WITNESSED).unwrap();
        assert_eq!(read.checkpoint.origin, "example.com/behind-the-sofa");
        assert_eq!(read.checkpoint.size, 20_852_163);
        assert_eq!(read.to_string(), WITNESSED);
        let time = &read.signatures[1].bytes[..8];
        assert_eq!(u64::from_be_bytes(time.try_into().unwrap()), 1_679_315_147);
    }

    #[test]
    fn the_published_key_of_the_go_checksum_database_has_its_published_id() {
        let text = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8";
        let key: Verifier = text.parse().unwrap();
        assert_eq!((key.to_string().as_str(), key.kind()), (text, KeyKind::Log));
        for wrong in
            ["", "sum.golang.org", "a+b+c", &text.replace("033d", "033e"), &text.replace("+Ac", "+Bc")]
        {
            assert!(wrong.parse::<Verifier>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_published_head_of_that_database_is_signed_by_it() {
        let published = "go.sum database tree\n63096908\n8lHrQPRYe4KT4WQ9/Qk8/taKnD6IRHbFgfN7vQE2Y54=\n\n\u{2014} sum.golang.org Az3gri/oVBN1jAhNZ/iS+W31psFAWRT20/GyrhpU6taFwulQGetBkH5S7wpGXdS935jiIGiUUAXBVHzT/P6fYhqAmAk=\n";
        let key: Verifier =
            "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8".parse().unwrap();
        assert_eq!(Note::read(published).unwrap().of(&key), Ok(Some(0)));
        let altered = Note::read(&published.replacen("63096908", "63096909", 1)).unwrap();
        assert!(matches!(altered.of(&key), Err(Doubt::Forged(_))));
    }

    #[test]
    fn the_example_of_the_reference_implementation_is_signed_byte_for_byte() {
        let text = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n";
        let seed = STANDARD.decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz").unwrap();
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed[1..]).unwrap();
        let key: Verifier =
            "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW".parse().unwrap();
        assert_eq!(key.public(), pair.public_key().as_ref());
        assert_eq!(
            key.line(pair.sign(text.as_bytes()).as_ref()),
            "\u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
        );
    }

    #[test]
    fn what_is_signed_is_believed_of_that_key_only() {
        let ((pair, ours), (_, other)) = (key(1), key(2));
        let signed = note(&pair, &ours);
        let read = Note::read(&signed).unwrap();
        assert_eq!(read.signed_by(&[other.clone(), ours.clone()]), Ok(()));
        assert!(matches!(read.signed_by(&[other]), Err(Doubt::Unsigned(_))));
        let altered = Note::read(&signed.replacen("\n7\n", "\n8\n", 1)).unwrap();
        assert!(matches!(altered.signed_by(std::slice::from_ref(&ours)), Err(Doubt::Forged(_))));
        let renamed = Note::read(&signed.replacen("log.example/1\n", "log.example/2\n", 1)).unwrap();
        assert!(matches!(renamed.signed_by(&[ours]), Err(Doubt::Unsigned(_))), "another log's name");
    }

    #[test]
    fn a_witness_signs_the_time_too() {
        let (pair, log) = key(1);
        let (witness_pair, witness) = key(9);
        let witness = Verifier { name: "witness.example/w".into(), kind: KeyKind::Witness, ..witness };
        assert_eq!(witness.to_string().parse::<Verifier>().unwrap(), witness);
        let signed = note(&pair, &log);
        let text = Note::read(&signed).unwrap().checkpoint.to_string();
        let bytes = witness_pair.sign(cosigned(1_700_000_000, &text).as_bytes());
        let at = |time: u64| [&time.to_be_bytes()[..], bytes.as_ref()].concat();
        let both = signed.clone() + &witness.line(&at(1_700_000_000));
        let read = Note::read(&both).unwrap();
        assert_eq!(read.witnessed_by(&witness), Ok(Some(1_700_000_000)));
        assert_eq!(read.signed_by(&[log]), Ok(()));
        assert_eq!(read.lines_of(&witness), witness.line(&at(1_700_000_000)));
        let late = Note::read(&(signed.clone() + &witness.line(&at(1_800_000_000)))).unwrap();
        assert!(matches!(late.witnessed_by(&witness), Err(Doubt::Forged(_))));
        assert_eq!(Note::read(&signed).unwrap().witnessed_by(&witness), Ok(None));
    }

    #[test]
    fn what_is_no_note_is_said_to_be_none() {
        let (pair, ours) = key(1);
        let good = note(&pair, &ours);
        for wrong in [
            "",
            "\n\n",
            &good[..good.len() - 1],
            &good.replace("\n\n", "\n"),
            &good.replacen('7', "07", 1),
            &good.replacen('7', "-7", 1),
            &good.replacen('7', "99999999999999999999", 1),
            &good.replace('\u{2014}', "-"),
            &good.replacen("AwMD", "AwM", 1),
            &good.replace("log.example/1 ", ""),
            &good.replacen('7', "7\r", 1),
            &(good.clone() + &good[good.find('\u{2014}').unwrap()..].repeat(MAX_SIGNATURES)),
            &("x".repeat(MAX_NOTE) + &good),
        ] {
            assert!(matches!(Note::read(wrong), Err(Doubt::Malformed(_))), "{wrong}");
        }
    }
}
