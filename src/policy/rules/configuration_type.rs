//! `configuration-type`: logins are checked in the ways the organisation allows.
//!
//! Looks at `configurationType`: with a key set (`jwks`) keys rotate by themselves, with `static` they stay until
//! somebody changes them.

use serde_json::json;

use super::reading::{Params, texts};
use super::{Sight, Unjudged, Violation};

const TYPE: &str = "configurationType";
const CONCERNS: &[&str] = &[TYPE];

/// The types that are allowed.
#[derive(Clone, Debug)]
pub(super) struct ConfigurationType {
    allowed: Vec<String>,
}

impl ConfigurationType {
    pub(super) fn read(params: &mut Params) -> Self {
        let known = |text: &str| ["jwks", "static"].contains(&text).then(|| text.to_owned());
        Self { allowed: params.need("allowed", Vec::new(), |value| texts(value, "jwks or static", known)) }
    }

    pub(super) fn check(&self, sight: &Sight<'_>) -> Vec<Violation> {
        let Ok(found) = sight.text(TYPE) else {
            return vec![sight.unjudged(Unjudged(TYPE), CONCERNS)];
        };
        if self.allowed.iter().any(|allowed| allowed == found) {
            return Vec::new();
        }
        let allowed = self.allowed.join(" or ");
        vec![Violation {
            limit: json!(self.allowed),
            message: format!("{TYPE} would be {found}; allowed is {allowed}"),
            help: format!("set {TYPE} to {allowed}{}", sight.terraform(&[TYPE])),
            ..sight.violation(TYPE, CONCERNS)
        }]
    }
}
