//! `caller-allowed`: only some callers change logins at all.
//!
//! Looks at who sends a request: the caller as the upstream has accepted the token. Applies to removals as well, unless
//! the rule names its operations.

use serde_json::json;

use super::reading::{Params, texts};
use super::{Sight, Violation};

/// Who may.
#[derive(Clone, Debug)]
pub(super) struct CallerAllowed {
    callers: Vec<String>,
}

impl CallerAllowed {
    pub(super) fn read(params: &mut Params) -> Self {
        let caller = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Self { callers: params.need("callers", Vec::new(), |value| texts(value, "a caller's id", caller)) }
    }

    pub(super) fn check(&self, sight: &Sight<'_>) -> Vec<Violation> {
        let Some((_, caller)) = sight.request else { return Vec::new() };
        if caller.is_some_and(|caller| self.callers.iter().any(|id| id == caller)) {
            return Vec::new();
        }
        vec![Violation {
            value: json!(caller),
            limit: json!(self.callers),
            message: "this caller may not change the login of an identity".to_owned(),
            help: format!("let one of {} do it", self.callers.join(", ")),
            ..Violation::of_the_request()
        }]
    }
}
