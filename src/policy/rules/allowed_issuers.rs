//! `allowed-issuers`: logins come from the issuers the organisation trusts.
//!
//! Looks at `boundIssuer`, which the upstream compares exactly; an empty one is no check at all.

use serde_json::json;

use super::reading::{Params, texts};
use super::{Sight, Unjudged, Violation, Wanted};

const ISSUER: &str = "boundIssuer";
const CONCERNS: &[&str] = &[ISSUER];

/// The issuers, as tokens name them.
#[derive(Clone, Debug)]
pub(super) struct AllowedIssuers {
    issuers: Vec<String>,
}

impl AllowedIssuers {
    pub(super) fn read(params: &mut Params) -> Self {
        let issuer = |text: &str| (!text.trim().is_empty()).then(|| text.to_owned());
        Self { issuers: params.need("issuers", Vec::new(), |value| texts(value, "an issuer", issuer)) }
    }

    pub(super) fn wanted(&self) -> Vec<Wanted> {
        self.issuers.iter().map(|issuer| Wanted::of(ISSUER, issuer.as_str())).collect()
    }

    pub(super) fn check(&self, sight: &Sight<'_>) -> Vec<Violation> {
        let Ok(found) = sight.text(ISSUER) else {
            return vec![sight.unjudged(Unjudged(ISSUER), CONCERNS)];
        };
        if self.issuers.iter().any(|issuer| issuer == found) {
            return Vec::new();
        }
        let problem = if found.is_empty() {
            "would be empty, so tokens of any issuer are taken".to_owned()
        } else {
            "would be an issuer that is not allowed".to_owned()
        };
        vec![Violation {
            limit: json!(self.issuers),
            message: format!("{ISSUER} {problem}"),
            help: format!("set {ISSUER} to {}{}", self.issuers.join(" or "), sight.terraform(&[ISSUER])),
            ..sight.violation(ISSUER, CONCERNS)
        }]
    }
}
