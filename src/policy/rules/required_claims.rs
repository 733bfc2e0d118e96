//! `required-claims`: a login is bound by the claims the organisation relies on.
//!
//! Looks at `boundClaims`: every claim of the rule must be there and bind (see `pattern`); others may stand beside them.

use serde_json::json;

use super::reading::{Params, texts};
use super::{Sight, Unjudged, Violation, Wanted};
use crate::json::pointer;
use crate::operation::Field;
use crate::policy::pattern;

const CLAIMS: &str = "boundClaims";
const CONCERNS: &[&str] = &[CLAIMS];

/// The claims that must bind.
#[derive(Clone, Debug)]
pub(super) struct RequiredClaims {
    claims: Vec<String>,
}

impl RequiredClaims {
    pub(super) fn read(params: &mut Params) -> Self {
        let name = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Self { claims: params.need("claims", Vec::new(), |value| texts(value, "a claim's name", name)) }
    }

    pub(super) fn wanted(&self) -> Vec<Wanted> {
        let any = |claim: &String| Wanted { claim: claim.clone(), ..Wanted::of(CLAIMS, "x") };
        self.claims.iter().map(any).collect()
    }

    pub(super) fn check(&self, sight: &Sight<'_>) -> Vec<Violation> {
        let Ok((Field::Claims(bound), _)) = sight.field(CLAIMS) else {
            return vec![sight.unjudged(Unjudged(CLAIMS), CONCERNS)];
        };
        let is_missing =
            |claim: &&String| !bound.get(*claim).is_some_and(|values| pattern::list_binds(values));
        self.claims.iter().filter(is_missing).map(|claim| missing(sight, claim)).collect()
    }
}

fn missing(sight: &Sight<'_>, claim: &str) -> Violation {
    let below = pointer(&[claim]);
    Violation {
        below_request: below.clone(),
        below,
        limit: json!(claim),
        message: format!("{CLAIMS} would not bind the claim {claim}"),
        help: format!("give {claim} a value of your own in {CLAIMS}{}", sight.terraform(&[CLAIMS])),
        ..sight.violation(CLAIMS, CONCERNS)
    }
}
