//! States and edits in typed normal form.
//!
//! A [`State`] holds every field of its object; it is read from the upstream's answer and from nowhere else, before a
//! change and after it by the same function. An [`Edit`] holds the fields a request names. [`diff`] and [`summary`]
//! compare states; both write only what may be written.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::field::Field;
use super::kind::{Misfit, Side};
use super::{FieldSpec, Object, Secrecy};
use crate::clock::Time;
use crate::json;
use crate::keys::Keys;

/// Which version of a row a state was.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Revision {
    /// The row's id.
    pub row: String,
    /// When it was last written, by the upstream's clock.
    pub at: Time,
}

impl Revision {
    /// Reads back `{"row", "at"}` as recorded.
    pub fn of(value: &Value) -> Option<Self> {
        let row = value.get("row")?.as_str()?.to_owned();
        Some(Self { row, at: Time::parse(value.get("at")?.as_str()?)? })
    }
}

/// Every field of an object, in normal form.
#[derive(Clone, Debug)]
pub struct State {
    object: Arc<Object>,
    fields: BTreeMap<String, Field>,
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        self.object.name == other.object.name && self.fields == other.fields
    }
}

/// A state as the upstream stores it.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// The state.
    pub state: State,
    /// Its version.
    pub revision: Revision,
    /// Members of the answer that the object file does not know.
    pub unknown: Unknown,
}

/// Members that nobody here knows: counted and digested, never stored nor named.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Unknown(Map<String, Value>);

impl Unknown {
    /// How many.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// What they are called, for whoever looks at the answer himself; never for the record.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// `{"count", "digest"}`, or nothing to say.
    pub fn recorded(&self, keys: &Keys) -> Value {
        if self.0.is_empty() {
            return Value::Null;
        }
        let digest = keys.fingerprint("unknown", Value::Object(self.0.clone()).to_string().as_bytes());
        json!({"count": self.count(), "digest": digest})
    }
}

/// Why an answer is not a state. Quotes no values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable(pub String);

impl State {
    /// A state of given fields; what is missing reads as absent.
    pub fn new(object: Arc<Object>, fields: BTreeMap<String, Field>) -> Self {
        Self { object, fields }
    }

    /// Reads back what [`State::recorded`] wrote. `Err`: the first field that cannot be, because only a digest of it
    /// stands there, or nothing.
    pub fn recall(object: &Arc<Object>, recorded: &Value) -> Result<Self, String> {
        let field = |(name, spec): (&String, &FieldSpec)| {
            let field = recorded.get(name).and_then(|value| recalled(spec, value));
            field.map(|field| (name.clone(), field)).ok_or_else(|| name.clone())
        };
        Ok(Self {
            object: object.clone(),
            fields: object.fields.iter().map(field).collect::<Result<_, _>>()?,
        })
    }

    /// As the API would answer it, for cases: with a row and a time that say nothing.
    pub fn answer(&self, target_id: &str) -> Value {
        let object = &self.object;
        let fields = self.fields.iter().map(|(name, field)| (name.clone(), field.answer()));
        let mut members: Map<String, Value> = fields.collect();
        members.insert(object.revision.row.clone(), json!("00000000-0000-4000-8000-000000000000"));
        members.insert(object.revision.at.clone(), json!("2000-01-01T00:00:00.000Z"));
        members.insert(object.target_member.clone(), json!(target_id));
        json!({ &object.envelope: members })
    }

    /// Its object.
    pub fn object(&self) -> &Arc<Object> {
        &self.object
    }

    /// One field.
    pub fn get(&self, field: &str) -> Option<&Field> {
        self.fields.get(field)
    }

    /// The text of a field of a text kind, or `""`.
    pub fn text(&self, field: &str) -> &str {
        match self.fields.get(field) {
            Some(Field::Text(text)) => text,
            _ => "",
        }
    }

    /// All fields by name.
    pub fn fields(&self) -> &BTreeMap<String, Field> {
        &self.fields
    }

    /// Everything in normal form, as it may be written down.
    pub fn recorded(&self, keys: &Keys) -> Value {
        self.fields
            .iter()
            .filter_map(|(name, field)| {
                Some((name.clone(), recorded(self.object.fields.get(name)?, field, keys)))
            })
            .collect::<Map<_, _>>()
            .into()
    }

    /// Reads the answer to GET, POST or PATCH: `{"<envelope>": {…}}`. `target_id` must be the answer's own.
    pub fn read(object: &Arc<Object>, target_id: &str, answer: &Value) -> Result<Stored, Unreadable> {
        let members = answer.get(&object.envelope).and_then(Value::as_object);
        let members =
            members.ok_or_else(|| Unreadable(format!("the answer has no `{}`", object.envelope)))?;
        if members.get(&object.target_member).and_then(Value::as_str) != Some(target_id) {
            return Err(Unreadable(format!(
                "`{}` is not the identity that was asked for",
                object.target_member
            )));
        }
        let revision = || {
            let row = members.get(&object.revision.row)?.as_str()?.to_owned();
            Some(Revision { row, at: Time::parse(members.get(&object.revision.at)?.as_str()?)? })
        };
        let revision =
            revision().ok_or_else(|| Unreadable("the row's id or its time cannot be read".to_owned()))?;
        let fields = object.fields.iter().map(|(name, spec)| {
            let value = members.get(name).ok_or_else(|| Unreadable(format!("the answer has no `{name}`")))?;
            let field = spec.kind.read(Side::Answer, value, &spec.choices);
            field
                .map(|field| (name.clone(), field))
                .map_err(|misfit| Unreadable(format!("`{name}` {}", misfit.message)))
        });
        let state = Self { object: object.clone(), fields: fields.collect::<Result<_, _>>()? };
        let known = |name: &String| {
            object.fields.contains_key(name)
                || object.volatile.contains(name)
                || *name == object.target_member
        };
        let unknown = members.iter().filter(|(name, _)| !known(name));
        let unknown = Unknown(unknown.map(|(name, value)| (name.clone(), value.clone())).collect());
        Ok(Stored { state, revision, unknown })
    }
}

/// The fields a request names, in normal form.
#[derive(Clone, Debug, PartialEq)]
pub struct Edit {
    /// By name.
    pub fields: BTreeMap<String, Field>,
    /// Members the schema does not know: not forwarded.
    pub unknown: Unknown,
}

impl Edit {
    /// That names these fields with these values.
    pub fn of<'a>(fields: impl Iterator<Item = (&'a String, &'a Field)>) -> Self {
        let fields = fields.map(|(name, field)| (name.clone(), field.clone())).collect();
        Self { fields, unknown: Unknown::default() }
    }

    /// Reads a document that already fits the operation's schema. Everything that does not fit its kind comes back,
    /// each with the name of its field.
    pub fn read(object: &Object, document: &json::Document) -> Result<Self, Vec<(String, Misfit)>> {
        let mut edit = Self { fields: BTreeMap::new(), unknown: Unknown::default() };
        let mut misfits = Vec::new();
        for (name, value) in document.members() {
            match object.fields.get(name) {
                Some(spec) => match spec.kind.read(Side::Request, value, &spec.choices) {
                    Ok(field) => drop(edit.fields.insert(name.clone(), field)),
                    Err(misfit) => misfits.push((name.clone(), misfit)),
                },
                None if *name == object.target_member => {}
                None => drop(edit.unknown.0.insert(name.clone(), value.clone())),
            }
        }
        if misfits.is_empty() { Ok(edit) } else { Err(misfits) }
    }

    /// Reads back what [`Edit::recorded`] wrote; unknown members are gone. `Err`: the first field that cannot be.
    pub fn recall(object: &Object, recorded: &Value) -> Result<Self, String> {
        let named = recorded.as_object().ok_or_else(|| "body".to_owned())?;
        let field = |(name, value): (&String, &Value)| {
            let field = object.fields.get(name).and_then(|spec| recalled(spec, value));
            field.map(|field| (name.clone(), field)).ok_or_else(|| name.clone())
        };
        Ok(Self { fields: named.iter().map(field).collect::<Result<_, _>>()?, unknown: Unknown::default() })
    }

    /// What is forwarded: the normal form in the request's shape.
    pub fn request(&self) -> Value {
        self.fields.iter().map(|(name, field)| (name.clone(), field.request())).collect::<Map<_, _>>().into()
    }

    /// The normal form as it may be written down.
    pub fn recorded(&self, object: &Object, keys: &Keys) -> Value {
        self.fields
            .iter()
            .filter_map(|(name, field)| Some((name.clone(), recorded(object.fields.get(name)?, field, keys))))
            .collect::<Map<_, _>>()
            .into()
    }
}

fn recorded(spec: &FieldSpec, field: &Field, keys: &Keys) -> Value {
    field.recorded(&spec.kind, spec.secrecy == Secrecy::Secret, keys)
}

fn recalled(spec: &FieldSpec, recorded: &Value) -> Option<Field> {
    if spec.secrecy == Secrecy::Secret { None } else { spec.kind.recall(recorded) }
}

/// What differs between two states, as it may be written down.
pub fn diff(before: Option<&State>, after: Option<&State>, keys: &Keys) -> Vec<Value> {
    let side = |state: Option<&State>| state.map_or(Value::Null, |state| state.recorded(keys));
    diff_recorded(&side(before), &side(after))
}

/// One `{"op", "path", "value", "old"}` a field that differs, sorted by name. An absent state (`null`) has no fields.
pub fn diff_recorded(before: &Value, after: &Value) -> Vec<Value> {
    let names: std::collections::BTreeSet<_> =
        [before, after].into_iter().filter_map(Value::as_object).flat_map(Map::keys).collect();
    names
        .into_iter()
        .filter_map(|name| {
            let path = json::pointer(&[name]);
            match (before.get(name), after.get(name)) {
                (Some(old), Some(new)) if old == new => None,
                (Some(old), Some(new)) => {
                    Some(json!({"op": "replace", "path": path, "value": new, "old": old}))
                }
                (None, Some(new)) => Some(json!({"op": "add", "path": path, "value": new})),
                (Some(old), None) => Some(json!({"op": "remove", "path": path, "old": old})),
                (None, None) => None,
            }
        })
        .collect()
}

/// One line of what a diff changes: `accessTokenTTL 2h -> 1h; boundSubject "a" -> "b"`.
pub fn summary(object: &Object, before: bool, after: bool, diff: &[Value]) -> String {
    match (before, after) {
        (false, false) => return String::new(),
        (false, true) => return "attached".to_owned(),
        (true, false) => return "revoked".to_owned(),
        (true, true) if diff.is_empty() => return "no field changes".to_owned(),
        (true, true) => {}
    }
    let line = |entry: &Value| {
        let name = entry["path"].as_str().unwrap_or("").trim_start_matches('/').to_owned();
        match object.fields.get(&name) {
            Some(spec) => {
                format!("{name} {} -> {}", spec.kind.show(&entry["old"]), spec.kind.show(&entry["value"]))
            }
            None => name,
        }
    };
    diff.iter().map(line).collect::<Vec<_>>().join("; ")
}
