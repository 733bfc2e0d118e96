//! `allowed-networks`: tokens are usable from the organisation's own networks only.
//!
//! Looks at each entry of `accessTokenTrustedIps`: it must lie wholly within the networks of the rule. An entry that
//! cannot be read strictly lies in none. Where nothing is named, nothing is allowed.

use serde_json::json;

use super::reading::{Params, texts};
use super::{Remedy, Sight, Unjudged, Violation, Wanted};
use crate::network::{Range, Union};
use crate::operation::{Entry, Field};

const RANGES: &str = "accessTokenTrustedIps";
const CONCERNS: &[&str] = &[RANGES];

/// The networks, as read and as one set.
#[derive(Clone, Debug)]
pub(super) struct AllowedNetworks {
    texts: Vec<String>,
    union: Union,
}

impl AllowedNetworks {
    pub(super) fn read(params: &mut Params) -> Self {
        let networks = params.need("networks", Vec::new(), |value| texts(value, "a range", Range::parse));
        let texts = networks.iter().map(ToString::to_string).collect();
        Self { texts, union: Union::of(networks) }
    }

    pub(super) fn wanted(&self) -> Vec<Wanted> {
        // The first address of each: the whole may be too much for another rule.
        let first = |text: &String| Range::parse(text).map(|range| range.address().to_string());
        let first = self.texts.iter().filter_map(first);
        first.map(|address| Wanted::of(RANGES, json!([{"ipAddress": address}]))).collect()
    }

    pub(super) fn check(&self, sight: &Sight<'_>) -> Vec<Violation> {
        let Ok((Field::Ranges(entries), _)) = sight.field(RANGES) else {
            return vec![sight.unjudged(Unjudged(RANGES), CONCERNS)];
        };
        let is_outside = |entry: &Entry| match entry {
            Entry::Range(range) => !self.union.contains(&Union::of([*range])),
            Entry::Unreadable(_) => true,
        };
        let outside: Vec<usize> =
            entries.iter().enumerate().filter(|(_, entry)| is_outside(entry)).map(|(at, _)| at).collect();
        outside.iter().map(|at| self.violation(sight, *at, outside.len() == entries.len())).collect()
    }

    fn violation(&self, sight: &Sight<'_>, index: usize, is_all: bool) -> Violation {
        Violation {
            below: format!("/{index}"),
            below_request: format!("/{index}/ipAddress"),
            limit: json!(self.texts),
            message: format!("entry {index} of {RANGES} would reach beyond the allowed networks"),
            help: format!("stay within {}{}", self.texts.join(", "), sight.terraform(&[RANGES])),
            // The allowed networks themselves, where nothing of the request is within them.
            remedy: is_all.then(|| {
                let all = self.texts.iter().map(|text| json!({"ipAddress": text})).collect();
                Remedy::Send(all)
            }),
            ..sight.violation(RANGES, CONCERNS)
        }
    }
}
