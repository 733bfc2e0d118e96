//! A value in normal form, and every shape it is written in: a request's, an answer's, the record's.
//!
//! [`Kind`] reads values into it. What is recorded is redacted here, by `secret`; what was recorded plainly is read back by
//! [`Kind::recall`].

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::kind::Kind;
use super::secret;
use crate::keys::Keys;
use crate::network::Range;

/// A value in normal form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// `text`, `url`, `patterns`, `choice`
    Text(String),
    /// `claims`
    Claims(BTreeMap<String, String>),
    /// `keys`
    Keys(Vec<String>),
    /// `ranges`
    Ranges(Vec<Entry>),
    /// `lifetime`, `count`
    Number(u64),
}

/// One entry of a list of ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Read strictly.
    Range(Range),
    /// Something the upstream may read in its own way; the trimmed text.
    Unreadable(String),
}

impl Entry {
    /// The canonical text, or the unreadable one.
    pub fn text(&self) -> String {
        match self {
            Self::Range(range) => range.to_string(),
            Self::Unreadable(text) => text.clone(),
        }
    }
}

impl Field {
    /// The normal form as JSON, nothing hidden: for the request that is forwarded and for judging.
    pub fn normal(&self) -> Value {
        match self {
            Self::Text(text) => json!(text),
            Self::Claims(claims) => json!(claims),
            Self::Keys(keys) => json!(keys),
            Self::Ranges(entries) => entries.iter().map(Entry::text).collect(),
            Self::Number(number) => json!(number),
        }
    }

    /// The shape a request has.
    pub fn request(&self) -> Value {
        match self {
            Self::Ranges(entries) => entries.iter().map(|entry| json!({"ipAddress": entry.text()})).collect(),
            other => other.normal(),
        }
    }

    /// The shape an answer has.
    pub fn answer(&self) -> Value {
        let entry = |entry: &Entry| match entry {
            Entry::Range(range) => {
                let kind = if range.address().is_ipv4() { "ipv4" } else { "ipv6" };
                json!({"ipAddress": range.address().to_string(), "prefix": range.prefix(), "type": kind})
            }
            Entry::Unreadable(text) => json!({"ipAddress": text}),
        };
        match self {
            Self::Ranges(entries) => entries.iter().map(entry).collect(),
            other => other.normal(),
        }
    }

    /// The normal form as it may be written anywhere: secrets replaced by their keyed digest.
    pub fn recorded(&self, kind: &Kind, is_secret: bool, keys: &Keys) -> Value {
        if is_secret {
            return secret::sealed(&self.normal().to_string(), keys);
        }
        match self {
            Self::Text(text) if *kind == Kind::Url => secret::url(text, keys),
            Self::Text(text) => secret::text(text, keys),
            Self::Keys(list) => list.iter().map(|key| secret::public_key(key, keys)).collect(),
            Self::Claims(claims) => claims
                .iter()
                .map(|(claim, text)| (claim.clone(), secret::text(text, keys)))
                .collect::<serde_json::Map<_, _>>()
                .into(),
            other => other.normal(),
        }
    }

    /// Whether it says nothing: empty text, empty list, no claims.
    pub fn is_unset(&self) -> bool {
        match self {
            Self::Text(text) => text.is_empty(),
            Self::Claims(claims) => claims.is_empty(),
            Self::Keys(keys) => keys.is_empty(),
            Self::Ranges(entries) => entries.is_empty(),
            Self::Number(_) => false,
        }
    }
}

/// An entry by its text: only the canonical spelling was read.
pub(super) fn recalled(text: String) -> Entry {
    match Range::parse(&text).filter(|range| range.to_string() == text) {
        Some(range) => Entry::Range(range),
        None => Entry::Unreadable(text),
    }
}
