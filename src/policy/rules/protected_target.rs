//! `protected-target`: some identities are changed by nobody, or by a few.
//!
//! Looks at whose configuration a request would change and at who sends it: the caller as the upstream has accepted the
//! token. Applies to removals as well, unless the rule names its operations.

use serde_json::json;

use super::reading::{Params, texts};
use super::{Sight, Violation};
use crate::id::canonical_uuid;

/// Identities and who may change them.
#[derive(Clone, Debug)]
pub(super) struct ProtectedTarget {
    targets: Vec<String>,
    callers: Vec<String>,
}

impl ProtectedTarget {
    pub(super) fn read(params: &mut Params) -> Self {
        let id = |text: &str| canonical_uuid(text).map(|_| text.to_owned());
        let caller = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Self {
            targets: params.need("targets", Vec::new(), |value| texts(value, "a lower-case UUID", id)),
            callers: params.take("callers", Vec::new(), |value| texts(value, "a caller's id", caller)),
        }
    }

    pub(super) fn check(&self, sight: &Sight<'_>) -> Vec<Violation> {
        let Some((target, caller)) = sight.request else { return Vec::new() };
        let is_protected = self.targets.iter().any(|id| *id == target.id());
        let may = caller.is_some_and(|caller| self.callers.iter().any(|id| id == caller));
        if !is_protected || may {
            return Vec::new();
        }
        let (who, help) = if self.callers.is_empty() {
            ("nobody may", "take the identity out of the rule first".to_owned())
        } else {
            ("only some callers may", format!("let one of {} do it", self.callers.join(", ")))
        };
        vec![Violation {
            value: json!(target.id()),
            limit: json!(self.callers),
            message: format!("this identity is protected: {who} change its login"),
            help,
            ..Violation::of_the_request()
        }]
    }
}
