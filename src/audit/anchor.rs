//! Where signed heads go beside the store: a file on other storage, an HTTP endpoint, C2SP witnesses.
//!
//! A head that only this host keeps says nothing against whoever has the host. What `[anchor]` names is read into
//! [`Anchors`]: `Place`s keep the newest head and are asked for it at start, a `Witness` adds its signature. One task
//! each carries heads there (`publisher`); none of them is ever waited for by the log. Whoever knows more of the log than
//! the store holds (`Elsewhere`) has seen that it was rolled back.

mod place;
mod publisher;
mod witness;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde::Deserialize;
use url::Url;

use super::checkpoint::{Checkpoint, KeyKind, Note, Verifier};
use super::tree::Hash;
use crate::keys::Keys;
use crate::metrics::Metrics;
use crate::units::Span;
use crate::upstream::{self, Upstream};

use place::Place;
pub use publisher::Report;
pub(super) use publisher::{LAST_TRY, publish};
use witness::Witness;

/// With more of them a note would have too many signatures to be read.
const MAX_WITNESSES: usize = 16;

/// The section `[anchor]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// A file on other storage that holds the newest head.
    pub file: Option<PathBuf>,
    /// Where the newest head is put, and asked for at start.
    pub url: Option<String>,
    /// A file that holds the token for it.
    pub token_file: Option<PathBuf>,
    /// Witnesses, each its submission prefix and its key.
    pub witnesses: Vec<String>,
    /// PEM roots to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// How often a head that is new goes out.
    pub every: Span,
    /// Longest wait between two tries of what cannot be reached.
    pub back_off: Span,
    /// Time of one exchange.
    pub timeout: Span,
    /// How long the start waits for a head that was put elsewhere.
    pub start_timeout: Span,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            file: None,
            url: None,
            token_file: None,
            witnesses: Vec::new(),
            ca_file: None,
            every: Span::secs(60),
            back_off: Span::secs(5 * 60),
            timeout: Span::secs(10),
            start_timeout: Span::secs(3),
        }
    }
}

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {what}")]
pub struct Wrong {
    /// Which.
    pub key: &'static str,
    /// Why, and what would pass.
    pub what: String,
}

/// What `[anchor]` names. Cheap to clone.
#[derive(Clone, Default)]
pub struct Anchors {
    places: Vec<Place>,
    witnesses: Vec<Witness>,
    settings: Arc<Settings>,
}

impl Anchors {
    /// Reads the settings; connects to nothing. `connect` bounds name lookup, TCP and TLS together.
    pub fn new(settings: &Settings, connect: Duration) -> Result<Self, Vec<Wrong>> {
        let (mut places, mut witnesses, mut wrong) = (Vec::new(), Vec::new(), Vec::new());
        let spans = [
            ("anchor.every", settings.every),
            ("anchor.back_off", settings.back_off),
            ("anchor.timeout", settings.timeout),
            ("anchor.start_timeout", settings.start_timeout),
        ];
        for (key, _) in spans.into_iter().filter(|(_, span)| span.0.is_zero()) {
            wrong.push(Wrong { key, what: "is zero; write a time like `10s`".to_owned() });
        }
        places.extend(settings.file.clone().map(Place::file));
        let client = |key: &'static str, url: &str| {
            let (origin, path) = read_url(url).map_err(|what| Wrong { key, what })?;
            let reached = upstream::Settings {
                url: origin,
                ca_file: settings.ca_file.clone(),
                ..upstream::Settings::default()
            };
            // What goes elsewhere does not count as time of the guarded API.
            let client = Upstream::new(&reached, connect, Arc::new(Metrics::new()));
            client.map(|client| (client, path)).map_err(|error| of_client(key, error))
        };
        match settings.url.as_deref().map(|url| client("anchor.url", url)) {
            Some(Ok((client, path))) => {
                places.push(Place::url(client, path, settings.token_file.clone()));
            }
            Some(Err(error)) => wrong.push(error),
            None if settings.token_file.is_some() => {
                wrong.push(Wrong { key: "anchor.token_file", what: "belongs to no anchor.url".to_owned() });
            }
            None => {}
        }
        for text in &settings.witnesses {
            let found = read_witness(text, &witnesses)
                .and_then(|(url, key)| Ok((client("anchor.witnesses", url)?, key)));
            match found {
                Ok(((client, path), key)) => witnesses.push(Witness::new(client, &path, key)),
                Err(error) => wrong.push(error),
            }
        }
        if settings.witnesses.len() > MAX_WITNESSES {
            let what = format!("names more than {MAX_WITNESSES} witnesses");
            wrong.push(Wrong { key: "anchor.witnesses", what });
        }
        let settings = Arc::new(settings.clone());
        if wrong.is_empty() { Ok(Self { places, witnesses, settings }) } else { Err(wrong) }
    }

    /// The heads that were put elsewhere by an earlier run, as far as they can be had within `anchor.start_timeout`; only
    /// what this gateway signed counts.
    pub(super) async fn heads(&self, keys: &Keys) -> Vec<Checkpoint> {
        let within = self.settings.start_timeout.0;
        let there = join_all(self.places.iter().map(|place| place.read(within))).await;
        // One that cannot be read now is compared before it is written to.
        there.into_iter().flatten().flatten().filter_map(|note| ours(&note, keys)).collect()
    }
}

/// What somebody else knows of a log, and the store does not extend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Elsewhere {
    /// The log.
    pub origin: String,
    /// How much of it.
    pub size: u64,
    /// With which root, where that is known: then it is signed by us.
    pub root: Option<Hash>,
    /// Whether the store holds fewer entries; else it holds others.
    pub is_more: bool,
    /// Who says so.
    pub by: String,
}

/// The head of a note that this gateway signed.
pub(super) fn ours(note: &Note, keys: &Keys) -> Option<Checkpoint> {
    let key = |public| Verifier::of_log(&note.checkpoint.origin, public);
    let ours: Vec<_> = keys.log_publics().into_iter().map(key).collect();
    note.signed_by(&ours).ok()?;
    Some(note.checkpoint.clone())
}

/// Scheme, host and port, and the path.
fn read_url(text: &str) -> Result<(String, String), String> {
    const LIKE: &str = "write one like `https://anchors.example.com/patchwarden`";
    let url = Url::parse(text).map_err(|error| format!("is no URL ({error}); {LIKE}"))?;
    let what = match url.scheme() {
        "http" | "https" if !url.username().is_empty() || url.password().is_some() => {
            "holds a user name or password; a token belongs into anchor.token_file"
        }
        "http" | "https" if url.query().is_some() || url.fragment().is_some() => "has a query or fragment",
        "http" | "https" => return Ok((url.origin().ascii_serialization(), url.path().to_owned())),
        _ => "has a scheme other than http and https",
    };
    Err(format!("{what}; {LIKE}"))
}

/// The submission prefix of a witness, and its key.
fn read_witness<'a>(text: &'a str, known: &[Witness]) -> Result<(&'a str, Verifier), Wrong> {
    let wrong = |what: String| Err(Wrong { key: "anchor.witnesses", what: format!("`{text}` {what}") });
    let Some((url, key)) = text.trim().split_once(' ') else {
        return wrong(
            "is not two words; write the submission prefix and the key of a witness, like \"https://witness.example.com witness.example.com+ID+BASE64\"".to_owned(),
        );
    };
    match key.parse::<Verifier>() {
        Err(error) => wrong(error.to_string()),
        Ok(key) if key.kind() != KeyKind::Witness => {
            wrong("has the key of a log; that of a witness begins with the type 0x04".to_owned())
        }
        Ok(key) if known.iter().any(|known| known.key().name == key.name) => {
            wrong("is a second witness of that name".to_owned())
        }
        Ok(key) => Ok((url, key)),
    }
}

/// What is wrong with a client, as the keys of this section name it.
fn of_client(key: &'static str, error: upstream::Error) -> Wrong {
    match error {
        upstream::Error::CaFile { path, reason } => Wrong {
            key: "anchor.ca_file",
            what: format!("{}: {reason}; name a readable file of PEM certificates", path.display()),
        },
        upstream::Error::NoRoots(why) => Wrong {
            key,
            what: format!("is https, but the system has no root certificates{why}; set anchor.ca_file"),
        },
        upstream::Error::Url(what) | upstream::Error::ClientCertificate(what) => Wrong { key, what },
        upstream::Error::Tls(error) => Wrong { key, what: format!("TLS cannot be set up: {error}") },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "witness.example+0080fed4+BAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";

    fn wrong(settings: &Settings) -> Vec<String> {
        let made = Anchors::new(settings, Duration::from_secs(1));
        made.err().unwrap_or_default().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_wrong_is_named_with_its_key() {
        let log = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8";
        let good = format!("http://127.0.0.1:1/prefix/ {KEY}");
        let witnesses = |texts: &[&str]| Settings {
            witnesses: texts.iter().map(|&text| text.to_owned()).collect(),
            ..Settings::default()
        };
        let url = |text: &str| Settings { url: Some(text.to_owned()), ..Settings::default() };
        assert_eq!(wrong(&Settings::default()), [""; 0]);
        assert_eq!(wrong(&witnesses(&[&good])), [""; 0]);
        for (settings, what) in [
            (url("anchors"), "anchor.url: is no URL"),
            (url("ftp://a/b"), "a scheme other than"),
            (url("http://u:p@a/b"), "anchor.token_file"),
            (url("http://a/b?c"), "has a query"),
            (witnesses(&["http://127.0.0.1:1/"]), "anchor.witnesses: `http://127.0.0.1:1/` is not two words"),
            (witnesses(&[&format!("http://a {log}")]), "the key of a log"),
            (witnesses(&["http://a name+id+key"]), "is no public key"),
            (witnesses(&[&format!("a {KEY}")]), "is no URL"),
            (witnesses(&[&good, &good]), "a second witness"),
            (Settings { token_file: Some("t".into()), ..Settings::default() }, "belongs to no anchor.url"),
            (Settings { every: Span::secs(0), ..Settings::default() }, "anchor.every: is zero"),
            (
                Settings { ca_file: Some("/nowhere".into()), ..url("https://a/b") },
                "anchor.ca_file: /nowhere: ",
            ),
        ] {
            let found = wrong(&settings);
            assert!(found.len() == 1 && found[0].contains(what), "{what}: {found:?}");
            assert!(!found[0].contains("u:p"), "{found:?}");
        }
    }
}
