//! One rule: what its file says, and those that are built in.
//!
//! [`Rule::read`] takes a rule file and the table a config lays over it, and finds everything wrong at once: unknown
//! keys and parameters (naming the known ones), values out of range. A built-in rule looks at a [`Sight`] and returns
//! every [`Violation`] of that state; what a violation means beside the state before is decided in `judge`.

mod allowed_issuers;
mod allowed_jwks_hosts;
mod allowed_networks;
mod bound_patterns;
mod caller_allowed;
mod configuration_type;
mod frozen_fields;
mod insecure_jwks;
mod key_strength;
mod open_network;
mod protected_target;
mod reading;
mod require_ca_pin;
mod required_claims;
mod silent_reset;
mod token_lifetime;
mod unbound_login;
mod uses_limit;
mod wanted;

use serde::Serialize;
use serde_json::Value;

use crate::effect::Proposed;
use crate::id::TargetId;
use crate::json;
use crate::keys::Keys;
use crate::operation::{Edit, Field, FieldSpec, Object, Operation, Secrecy, State, Write};

use wanted::Wanted;

/// How strong a rule is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// A violation denies the request.
    Deny,
    /// A violation is a warning.
    Warn,
    /// The rule is not evaluated.
    Off,
}

/// What a rule says about a violation that was stored before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Existing {
    /// A warning while the request neither names the field nor makes it worse.
    Stored,
    /// A warning while it does not get worse, also when the request repeats it.
    Tolerate,
    /// A violation.
    Deny,
}

impl Existing {
    /// As rule files write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Tolerate => "tolerate",
            Self::Deny => "deny",
        }
    }
}

/// One thing wrong with a rule file or with the settings laid over it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleError {
    /// Path of the key: `params.max_share`.
    pub key: String,
    /// What is wrong and what would do.
    pub message: String,
}

/// A rule in force.
#[derive(Clone, Debug)]
pub struct Rule {
    id: String,
    title: String,
    description: String,
    help: String,
    owner: String,
    operations: Option<Vec<String>>,
    level: Level,
    existing: Existing,
    check: Check,
}

/// The built-in rules with their parameters.
#[derive(Clone, Debug)]
enum Check {
    OpenNetwork(open_network::OpenNetwork),
    TokenLifetime(token_lifetime::TokenLifetime),
    UnboundLogin(unbound_login::UnboundLogin),
    SilentReset,
    InsecureJwks,
    AllowedNetworks(allowed_networks::AllowedNetworks),
    UsesLimit(uses_limit::UsesLimit),
    RequiredClaims(required_claims::RequiredClaims),
    BoundPatterns(bound_patterns::BoundPatterns),
    AllowedIssuers(allowed_issuers::AllowedIssuers),
    AllowedJwksHosts(allowed_jwks_hosts::AllowedJwksHosts),
    RequireCaPin,
    KeyStrength(key_strength::KeyStrength),
    ConfigurationType(configuration_type::ConfigurationType),
    FrozenFields(frozen_fields::FrozenFields),
    ProtectedTarget(protected_target::ProtectedTarget),
    CallerAllowed(caller_allowed::CallerAllowed),
}

impl Rule {
    /// Its stable name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A title for people.
    pub fn title(&self) -> &str {
        &self.title
    }

    /// What it is about.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// What to do about a violation, in general.
    pub fn help(&self) -> &str {
        &self.help
    }

    /// Whom to ask about it; may be empty.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// How strong it is.
    pub fn level(&self) -> Level {
        self.level
    }

    pub(super) fn with_existing(self, existing: Existing) -> Self {
        Self { existing, ..self }
    }

    /// What it says about what was stored before.
    pub fn existing(&self) -> Existing {
        self.existing
    }

    /// The operations or kinds of write it names; without them it applies to `overlay` and `create`.
    pub fn operations(&self) -> Option<&[String]> {
        self.operations.as_deref()
    }

    /// Whether it is evaluated for an operation.
    pub fn applies_to(&self, operation: &Operation) -> bool {
        let write = match operation.write {
            Write::Overlay => "overlay",
            Write::Create => "create",
            Write::Remove => "remove",
        };
        self.level != Level::Off
            && match &self.operations {
                Some(names) => names.iter().any(|name| *name == operation.name || name == write),
                None => operation.write != Write::Remove || self.guards_requests(),
            }
    }

    /// Whether it is about who asks for what, not about the state that would be.
    pub(super) fn guards_requests(&self) -> bool {
        matches!(self.check, Check::ProtectedTarget(_) | Check::CallerAllowed(_))
    }

    /// Fields that its parameters name; each must be one of the object's.
    pub fn named_fields(&self) -> &[String] {
        match &self.check {
            Check::FrozenFields(rule) => rule.fields(),
            _ => &[],
        }
    }

    /// Every violation of one state.
    pub(super) fn check(&self, sight: &Sight<'_>) -> Vec<Violation> {
        match &self.check {
            Check::OpenNetwork(rule) => rule.check(sight),
            Check::TokenLifetime(rule) => rule.check(sight),
            Check::UnboundLogin(rule) => rule.check(sight),
            Check::SilentReset => silent_reset::check(sight),
            Check::InsecureJwks => insecure_jwks::check(sight),
            Check::AllowedNetworks(rule) => rule.check(sight),
            Check::UsesLimit(rule) => rule.check(sight),
            Check::RequiredClaims(rule) => rule.check(sight),
            Check::BoundPatterns(rule) => rule.check(sight),
            Check::AllowedIssuers(rule) => rule.check(sight),
            Check::AllowedJwksHosts(rule) => rule.check(sight),
            Check::RequireCaPin => require_ca_pin::check(sight),
            Check::KeyStrength(rule) => rule.check(sight),
            Check::ConfigurationType(rule) => rule.check(sight),
            Check::FrozenFields(rule) => rule.check(sight),
            Check::ProtectedTarget(rule) => rule.check(sight),
            Check::CallerAllowed(rule) => rule.check(sight),
        }
    }

    /// The longest token lifetime it allows, if it is the rule about lifetimes.
    pub(super) fn longest_lifetime(&self) -> Option<u64> {
        match &self.check {
            Check::TokenLifetime(rule) => Some(rule.longest()),
            _ => None,
        }
    }
}

/// What a rule sees: one state, and what led to it.
#[derive(Clone, Copy)]
pub(super) struct Sight<'a> {
    pub(super) write: Write,
    pub(super) object: &'a Object,
    /// The state that is judged.
    pub(super) state: &'a State,
    /// The state it would replace; none when a state is judged by itself.
    pub(super) before: Option<&'a State>,
    pub(super) edit: Option<&'a Edit>,
    pub(super) proposed: Option<&'a Proposed>,
    /// Whose configuration is changed and by whom; none when a state is judged by itself.
    pub(super) request: Option<(&'a TargetId, Option<&'a str>)>,
    pub(super) ip_allow_listing: bool,
    pub(super) keys: &'a Keys,
}

/// One thing a state has that a rule forbids.
#[derive(Clone, Debug)]
pub(super) struct Violation {
    /// The field it points at.
    pub(super) field: String,
    /// JSON pointer below the field in normal form.
    pub(super) below: String,
    /// JSON pointer below the field as a request writes it.
    pub(super) below_request: String,
    /// The fields that decide it: naming one, or widening one, is about this violation.
    pub(super) concerns: &'static [&'static str],
    /// How bad it is beyond what its fields tell: more than before is worse.
    pub(super) grade: u8,
    /// Only ever a warning.
    pub(super) is_advice: bool,
    pub(super) value: Value,
    pub(super) limit: Value,
    pub(super) message: String,
    pub(super) help: String,
    pub(super) remedy: Option<Remedy>,
}

/// The field that stands in the way of judging.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unjudged(pub(super) &'static str);

/// A change of the request body that may cure a violation; `fix` finds out whether it does.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Remedy {
    /// Send this value of the field (in the request's shape).
    Send(Value),
    /// Do not send the field.
    LeaveOut,
}

impl Violation {
    /// One that is about the request as a whole, to be filled in. Nothing stored before forgives it.
    pub(super) fn of_the_request() -> Self {
        Self {
            field: String::new(),
            below: String::new(),
            below_request: String::new(),
            concerns: &[],
            grade: 1,
            is_advice: false,
            value: Value::Null,
            limit: Value::Null,
            message: String::new(),
            help: String::new(),
            remedy: None,
        }
    }

    /// Where it is, in the normal form; empty for the whole.
    pub(super) fn pointer(&self) -> String {
        self.place(&self.below)
    }

    /// Where it is, in the request.
    pub(super) fn request_pointer(&self) -> String {
        self.place(&self.below_request)
    }

    fn place(&self, below: &str) -> String {
        if self.field.is_empty() { String::new() } else { json::pointer(&[&self.field]) + below }
    }
}

impl<'a> Sight<'a> {
    /// One field, unless it cannot be known.
    pub(super) fn field(&self, name: &'static str) -> Result<(&'a Field, &'a FieldSpec), Unjudged> {
        let is_opaque = self.proposed.is_some_and(|proposed| proposed.opaque.contains(name));
        match (self.state.get(name), self.object.fields.get(name)) {
            (Some(field), Some(spec)) if !is_opaque => Ok((field, spec)),
            _ => Err(Unjudged(name)),
        }
    }

    /// The text of a field; a field of another kind cannot be judged.
    pub(super) fn text(&self, name: &'static str) -> Result<&'a str, Unjudged> {
        match self.field(name)? {
            (Field::Text(text), _) => Ok(text),
            _ => Err(Unjudged(name)),
        }
    }

    /// Nobody can say whether the rule holds, hence it does not.
    pub(super) fn unjudged(&self, Unjudged(name): Unjudged, concerns: &'static [&'static str]) -> Violation {
        Violation {
            message: format!("what {name} would be cannot be known, so it cannot be judged"),
            help: format!("send {name} explicitly{}", self.terraform(&[name])),
            value: Value::Null,
            ..self.violation(name, concerns)
        }
    }

    /// A violation to be filled in, with the field's value as it may be written down.
    pub(super) fn violation(&self, name: &'static str, concerns: &'static [&'static str]) -> Violation {
        let value = match (self.state.get(name), self.object.fields.get(name)) {
            (Some(field), Some(spec)) => self.recorded(field, spec),
            _ => Value::Null,
        };
        Violation {
            field: name.to_owned(),
            below: String::new(),
            below_request: String::new(),
            concerns,
            grade: 0,
            is_advice: false,
            value,
            limit: Value::Null,
            message: String::new(),
            help: String::new(),
            remedy: None,
        }
    }

    /// A field as it may be written down.
    pub(super) fn recorded(&self, field: &Field, spec: &FieldSpec) -> Value {
        field.recorded(&spec.kind, spec.secrecy == Secrecy::Secret, self.keys)
    }

    /// A value that may be shown in a fix: only one that recording would leave as it is.
    pub(super) fn sendable(&self, field: &Field, spec: &FieldSpec) -> Option<Remedy> {
        (self.recorded(field, spec) == field.normal()).then(|| Remedy::Send(field.request()))
    }

    /// ` (Terraform: a, b)` for the arguments that set these fields.
    pub(super) fn terraform(&self, names: &[&str]) -> String {
        let arguments: Vec<_> = names
            .iter()
            .filter_map(|name| self.object.fields.get(*name))
            .map(|spec| spec.terraform.as_str())
            .filter(|argument| !argument.is_empty())
            .collect();
        if arguments.is_empty() { String::new() } else { format!(" (Terraform: {})", arguments.join(", ")) }
    }
}

#[cfg(test)]
mod tests;
