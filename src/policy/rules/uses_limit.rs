//! `uses-limit`: a token can be used only so often.
//!
//! Looks at `accessTokenNumUsesLimit`; 0 means no limit upstream and is therefore the largest of all.

use serde_json::json;

use super::reading::Params;
use super::{Remedy, Sight, Unjudged, Violation, Wanted};
use crate::operation::Field;

const USES: &str = "accessTokenNumUsesLimit";
const CONCERNS: &[&str] = &[USES];

/// The most uses.
#[derive(Clone, Copy, Debug)]
pub(super) struct UsesLimit {
    at_most: u64,
}

impl UsesLimit {
    pub(super) fn read(params: &mut Params) -> Self {
        Self { at_most: params.need("at_most", 1, count) }
    }

    pub(super) fn wanted(self) -> Vec<Wanted> {
        vec![Wanted::of(USES, self.at_most)]
    }

    pub(super) fn check(self, sight: &Sight<'_>) -> Vec<Violation> {
        let at_most = self.at_most;
        let Ok((Field::Number(uses), _)) = sight.field(USES) else {
            return vec![sight.unjudged(Unjudged(USES), CONCERNS)];
        };
        if (1..=at_most).contains(uses) {
            return Vec::new();
        }
        let found = if *uses == 0 { "0, which is no limit".to_owned() } else { uses.to_string() };
        vec![Violation {
            limit: json!(at_most),
            message: format!("{USES} would be {found}; at most {at_most} is allowed"),
            help: format!("set {USES} to 1 to {at_most}{}", sight.terraform(&[USES])),
            remedy: Some(Remedy::Send(json!(at_most))),
            ..sight.violation(USES, CONCERNS)
        }]
    }
}

fn count(value: &toml::Value) -> Result<u64, String> {
    let number = value.as_integer().and_then(|number| u64::try_from(number).ok());
    number.filter(|number| *number > 0).ok_or_else(|| format!("{value} must be a whole number, at least 1"))
}
