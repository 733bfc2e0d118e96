//! A recorded attempt, judged again.
//!
//! Comes in: a change as the history gives it, and the bundle to judge it by: the one of that day, or another. What was
//! recorded is read back into the states and the edit it was made of; what cannot be is said, never guessed. Goes out:
//! the attempt, which [`Attempt::decide`] puts to the rules with the same facts as live traffic.

use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::{Answer, Bundle, Evaluation};
use crate::effect;
use crate::id::TargetId;
use crate::keys::Keys;
use crate::operation::{Edit, Operation, State, Write};
use crate::policy::{self, Denial, Facts, Permit, Policies};

/// What the log holds of an attempt, as far as judging depends on it.
#[derive(Debug)]
#[expect(missing_docs, reason = "the names are those of the record")]
pub struct Recorded {
    pub id: String,
    /// Its number in the log.
    pub index: u64,
    pub operation: Option<String>,
    /// Id of the target.
    pub target: Option<String>,
    pub decision: String,
    pub would: Option<String>,
    /// Whether the policies were asked.
    pub was_judged: bool,
    /// `None`: retention has removed it.
    pub said: Option<Said>,
}

/// What its payload says.
#[derive(Debug, Deserialize)]
#[expect(missing_docs, reason = "the names are those of the record")]
pub struct Said {
    pub received_at: String,
    pub before: Option<Value>,
    pub request: Asked,
    pub caller: Option<Asker>,
    pub violations: Box<RawValue>,
    pub warnings: Box<RawValue>,
}

/// The request of an attempt.
#[derive(Debug, Deserialize)]
pub struct Asked {
    pub body: Option<Value>,
}

/// Who asked.
#[derive(Debug, Deserialize)]
pub struct Asker {
    pub id: Option<String>,
    pub name: Option<String>,
}

/// What was asked, as far as judging depends on it.
#[derive(Debug)]
pub struct Attempt {
    operation: Arc<Operation>,
    target: TargetId,
    before: Option<State>,
    edit: Option<Edit>,
    caller: Option<String>,
    /// Whether the policies of its time said no, be it that only observe mode let it pass.
    pub was_denied: bool,
    /// Whether it was stopped then, which observe mode does not do.
    pub was_stopped: bool,
}

/// Why a recorded attempt cannot be judged again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unreplayable {
    /// It never came to the policies, or is a watched write, which they do not judge.
    NotJudged,
    /// Retention has removed what it said.
    Pruned,
    /// The bundle has no such operation, or the record none of its fields.
    Other(String),
    /// A field stands in the record as a keyed digest only.
    Sealed(String),
}

impl fmt::Display for Unreplayable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotJudged => f.write_str("the policies were never asked"),
            Self::Pruned => f.write_str("retention has removed what was recorded"),
            Self::Other(what) => f.write_str(what),
            Self::Sealed(field) => write!(f, "of `{field}` only a digest is recorded"),
        }
    }
}

impl Attempt {
    /// Reads one back.
    pub fn recall(bundle: &Bundle, recorded: &Recorded) -> Result<Self, Unreplayable> {
        if !recorded.was_judged {
            return Err(Unreplayable::NotJudged);
        }
        let said = recorded.said.as_ref().ok_or(Unreplayable::Pruned)?;
        let was_stopped = recorded.decision == "deny";
        let was_denied = was_stopped || recorded.would.as_deref() == Some("deny");
        let name = recorded.operation.as_deref().unwrap_or_default();
        let operation = bundle.operation(name).cloned();
        let operation =
            operation.ok_or_else(|| Unreplayable::Other(format!("the bundle has no operation `{name}`")))?;
        let object = &operation.object;
        let target = recorded.target.as_deref().and_then(|id| TargetId::canonical(&object.target, id));
        let target = target.ok_or_else(|| Unreplayable::Other("the record names no target".to_owned()))?;
        let unread = |recorded: &Value, field: String| match recorded.get(&field) {
            None => Unreplayable::Other(format!("`{field}` is not recorded")),
            Some(_) => Unreplayable::Sealed(field),
        };
        let before = match (operation.write, &said.before) {
            (Write::Create, _) | (Write::Remove, None) => None,
            (Write::Overlay | Write::Remove, before) => {
                let before = before.as_ref().unwrap_or(&Value::Null);
                Some(State::recall(object, before).map_err(|field| unread(before, field))?)
            }
        };
        let edit = match operation.write {
            Write::Remove => None,
            Write::Overlay | Write::Create => {
                let body = said.request.body.as_ref().unwrap_or(&Value::Null);
                Some(Edit::recall(object, body).map_err(|field| unread(body, field))?)
            }
        };
        let caller = said.caller.as_ref().and_then(|caller| caller.id.clone());
        Ok(Self { operation, target, before, edit, caller, was_denied, was_stopped })
    }

    /// Puts it to the rules. There is no fix: what was sent is gone, only what it meant is left.
    pub fn decide(&self, policies: &Policies, keys: &Keys) -> Result<Permit, Denial> {
        let proposed = effect::propose(&self.operation, self.before.as_ref(), self.edit.as_ref());
        let (before, edit) = (self.before.as_ref(), self.edit.as_ref());
        let facts = Facts::new(&self.operation, before, &proposed, edit, None, &self.target);
        policy::decide(policies, &facts.by(self.caller.as_deref()), keys)
    }

    /// The same with everything around it.
    pub fn evaluate(&self, policies: &Policies, keys: &Keys) -> Evaluation {
        let proposed = effect::propose(&self.operation, self.before.as_ref(), self.edit.as_ref());
        let recorded = |state: Option<&State>| state.map_or(Value::Null, |state| state.recorded(keys));
        Evaluation {
            operation: self.operation.clone(),
            target: self.target.clone(),
            before: recorded(self.before.as_ref()),
            proposed: recorded(proposed.state.as_ref()),
            answer: Answer::of(self.decide(policies, keys)),
        }
    }

    /// What was asked.
    pub fn operation(&self) -> &Operation {
        &self.operation
    }

    /// Whose configuration.
    pub fn target(&self) -> &TargetId {
        &self.target
    }

    /// The state it was judged beside.
    pub fn before(&self) -> Option<&State> {
        self.before.as_ref()
    }

    /// What it named.
    pub fn edit(&self) -> Option<&Edit> {
        self.edit.as_ref()
    }

    /// Who asked.
    pub fn caller(&self) -> Option<&str> {
        self.caller.as_deref()
    }
}
