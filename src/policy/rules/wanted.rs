//! What would satisfy a rule: values from which a configuration is put together that may pass all of them.
//!
//! A rule that any sober configuration meets names none, and so does one that is not about the state alone.

use serde_json::Value;

use super::{Check, Rule, require_ca_pin};

/// A value that would satisfy a rule.
pub(in crate::policy) struct Wanted {
    pub(in crate::policy) field: &'static str,
    /// Of `boundClaims`, the claim.
    pub(in crate::policy) claim: String,
    pub(in crate::policy) value: Value,
}

impl Wanted {
    pub(super) fn of(field: &'static str, value: impl Into<Value>) -> Self {
        Self { field, claim: String::new(), value: value.into() }
    }
}

impl Rule {
    /// Whether a state alone can tell if it is met; a key that is strong enough nobody can make up.
    pub(in crate::policy) fn is_about_states(&self) -> bool {
        !matches!(self.check, Check::SilentReset | Check::FrozenFields(_) | Check::KeyStrength(_))
            && !self.guards_requests()
    }

    /// Values that would satisfy it, in the shape of a request.
    pub(in crate::policy) fn wanted(&self) -> Vec<Wanted> {
        match &self.check {
            Check::OpenNetwork(_) | Check::UnboundLogin(_) | Check::SilentReset | Check::InsecureJwks => {
                Vec::new()
            }
            Check::KeyStrength(_) | Check::FrozenFields(_) => Vec::new(),
            Check::ProtectedTarget(_) | Check::CallerAllowed(_) => Vec::new(),
            Check::TokenLifetime(rule) => rule.wanted(),
            Check::AllowedNetworks(rule) => rule.wanted(),
            Check::UsesLimit(rule) => rule.wanted(),
            Check::RequiredClaims(rule) => rule.wanted(),
            Check::BoundPatterns(rule) => rule.wanted(),
            Check::AllowedIssuers(rule) => rule.wanted(),
            Check::AllowedJwksHosts(rule) => rule.wanted(),
            Check::RequireCaPin => require_ca_pin::wanted(),
            Check::ConfigurationType(_) => Vec::new(),
        }
    }
}
