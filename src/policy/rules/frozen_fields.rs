//! `frozen-fields`: what is set stays as it is.
//!
//! Compares each field of the rule before and after a change: it must be the same, whether the request names it or the
//! upstream would reset it. An attach has nothing before and passes.

use super::reading::{Params, texts};
use super::{Remedy, Sight, Violation};
use crate::json::pointer;

/// Names of fields of the object.
#[derive(Clone, Debug)]
pub(super) struct FrozenFields {
    fields: Vec<String>,
}

impl FrozenFields {
    pub(super) fn read(params: &mut Params) -> Self {
        let name = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Self { fields: params.need("fields", Vec::new(), |value| texts(value, "a field's name", name)) }
    }

    pub(super) fn fields(&self) -> &[String] {
        &self.fields
    }

    pub(super) fn check(&self, sight: &Sight<'_>) -> Vec<Violation> {
        let Some(before) = sight.before else { return Vec::new() };
        let changed =
            |name: &&String| before.get(name).is_some() && before.get(name) != sight.state.get(name);
        self.fields.iter().filter(changed).map(|name| frozen(sight, name)).collect()
    }
}

fn frozen(sight: &Sight<'_>, name: &str) -> Violation {
    let spec = sight.object.fields.get(name);
    let recorded = |field| spec.map(|spec| sight.recorded(field, spec)).unwrap_or_default();
    let stored = sight.before.and_then(|before| before.get(name));
    let terraform = spec.map(|spec| format!(" (Terraform: {})", spec.terraform)).unwrap_or_default();
    Violation {
        field: name.to_owned(),
        below: String::new(),
        below_request: String::new(),
        // The name is the rule's own, not one the source knows; a change of it is never forgiven.
        concerns: &[],
        grade: 1,
        is_advice: false,
        value: sight.state.get(name).map(recorded).unwrap_or_default(),
        limit: stored.map(recorded).unwrap_or_default(),
        message: format!("{} would change, and it is frozen", pointer(&[name]).trim_start_matches('/')),
        help: format!("repeat the stored value of {name}{terraform}"),
        remedy: stored.zip(spec).and_then(|(field, spec)| match sight.sendable(field, spec) {
            Some(Remedy::Send(value)) => Some(Remedy::Send(value)),
            _ => None,
        }),
    }
}
