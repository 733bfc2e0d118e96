//! Step 4: does the request fit the operation's schema, and what does it say in normal form.
//!
//! In comes a strict JSON object, out comes an [`Edit`]. Whatever the JSON Schema (2020-12) or a field's kind does not
//! take is refused, all of it at once, each [`Finding`] with its pointer into the request and what would pass. No
//! finding quotes what was sent. Schemas are data of the bundle: a format nobody knows or a reference to elsewhere does
//! not compile.

use std::fmt::Display;

use jsonschema::error::{TypeKind, ValidationErrorKind};
use jsonschema::{PatternOptions, ValidationError, Validator};
use serde_json::Value;

use crate::id::TargetId;
use crate::json::{Document, pointer};
use crate::operation::{Edit, Misfit, Object, Operation, js_trim};
use crate::refusal::{Code, Finding, From, Refusal};

/// More findings than this help nobody.
const MAX_FINDINGS: usize = 100;

/// What members the schema does not know meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnknownMembers {
    /// They are not forwarded, and a warning says so.
    Warn,
    /// The request is refused.
    Refuse,
}

/// A compiled JSON Schema.
#[derive(Debug)]
pub struct Schema(Validator);

impl Schema {
    /// Compiles a schema of draft 2020-12, offline.
    pub fn compile(schema: &Value) -> Result<Self, String> {
        jsonschema::draft202012::options()
            .should_validate_formats(true)
            .should_ignore_unknown_formats(false)
            .with_format("trimmed-url", |text: &str| url::Url::parse(js_trim(text)).is_ok())
            .with_pattern_options(PatternOptions::regex())
            .offline()
            .build(schema)
            .map(Self)
            .map_err(|error| error.to_string())
    }
}

/// Reads a request's document into the edit it asks for.
pub fn check(
    schema: Option<&Schema>,
    operation: &Operation,
    document: &Document,
    target: &TargetId,
    unknown: UnknownMembers,
) -> Result<Edit, Refusal> {
    let Some(schema) = schema else {
        let detail = "The gateway has no schema for this operation, so the request cannot be judged";
        return Err(Refusal::new(Code::SchemaInvalid, detail)
            .because(format!("no schema for the operation {}", operation.name)));
    };
    let object = &operation.object;
    let body = Value::Object(document.members().clone());
    let mut findings: Vec<Finding> =
        schema.0.iter_errors(&body).take(MAX_FINDINGS).map(|error| of_error(object, &error)).collect();
    let edit = Edit::read(object, document);
    if let Err(misfits) = &edit {
        for (field, misfit) in misfits {
            let place = pointer(&[field]) + &misfit.below;
            let is_said = findings.iter().any(|finding| self::field(&finding.pointer) == self::field(&place));
            if !is_said {
                findings.push(of_misfit(object, place, misfit));
            }
        }
    }
    findings.extend(other_target(object, document, target));
    if unknown == UnknownMembers::Refuse && edit.as_ref().is_ok_and(|edit| edit.unknown.count() > 0) {
        let help = "leave out what the API does not know; it would be dropped anyway";
        findings.push(finding(String::new(), Value::Null, "holds members that this API does not know", help));
    }
    match edit {
        Ok(edit) if findings.is_empty() => Ok(edit),
        _ => {
            let detail = format!("The request does not fit the schema of {}", operation.name);
            Err(Refusal::new(Code::SchemaInvalid, detail).with_findings(findings))
        }
    }
}

/// Terraform repeats the path's id in the body; another id there is a mistake the API would not notice.
fn other_target(object: &Object, document: &Document, target: &TargetId) -> Option<Finding> {
    let sent = document.members().get(&object.target_member)?;
    if sent.as_str() == Some(&target.id()) || !sent.is_string() {
        return None;
    }
    let help = format!("leave it out, or send the id of the path: {}", target.id());
    let place = pointer(&[&object.target_member]);
    Some(finding(place, Value::Null, "is not the id in the path", help))
}

fn of_misfit(object: &Object, place: String, misfit: &Misfit) -> Finding {
    let help = format!("`{}` {}{}", name(&place), misfit.message, argument(object, &place));
    finding(place, Value::Null, &misfit.message, help)
}

fn of_error(object: &Object, error: &ValidationError<'_>) -> Finding {
    let mut place = error.instance_path().as_str().to_owned();
    let said = |message: String, limit: Value, help: String| (message, limit, help);
    let bound = |message: &str, limit: &dyn Display, unit: &str, help: &str| {
        let limit = limit.to_string();
        let number = limit.parse::<u64>().map_or(Value::Null, Value::from);
        said(format!("{message} {limit}{unit}"), number, format!("send {help} {limit}{unit}"))
    };
    let (message, limit, help) = match error.kind() {
        ValidationErrorKind::Required { property } => {
            place += &pointer(&[property.as_str().unwrap_or("")]);
            let help = format!("send `{}`", name(&place));
            said("is required".into(), Value::Null, help)
        }
        ValidationErrorKind::Type { kind } => {
            let kinds = match kind {
                TypeKind::Single(one) => one.to_string(),
                TypeKind::Multiple(many) => {
                    many.iter().map(|one| one.to_string()).collect::<Vec<_>>().join(" or ")
                }
            };
            said(format!("must be of type {kinds}"), Value::Null, format!("send a value of type {kinds}"))
        }
        ValidationErrorKind::Enum { options } => {
            said(format!("must be one of {options}"), (**options).clone(), format!("send one of {options}"))
        }
        ValidationErrorKind::Constant { expected_value } => said(
            format!("must be {expected_value}"),
            (**expected_value).clone(),
            format!("send {expected_value}"),
        ),
        ValidationErrorKind::FalseSchema => {
            let help = if place.ends_with("/prefix") || place.ends_with("/type") {
                "write 10.0.0.0/8 in ipAddress and leave `prefix` and `type` out: they belong to the answer"
            } else {
                "leave it out"
            };
            said("does not belong in a request".into(), Value::Null, help.into())
        }
        ValidationErrorKind::Format { format } if format == "trimmed-url" => {
            said("must be a URL".into(), Value::Null, "send a URL like https://idp.example/jwks.json".into())
        }
        ValidationErrorKind::Format { format } => {
            said(format!("must be a {format}"), Value::Null, format!("send a {format}"))
        }
        ValidationErrorKind::Maximum { limit } => bound("must be at most", limit, "", "at most"),
        ValidationErrorKind::Minimum { limit } => bound("must be at least", limit, "", "at least"),
        ValidationErrorKind::MaxLength { limit } => {
            bound("must have at most", limit, " characters", "at most")
        }
        ValidationErrorKind::MinLength { limit } => {
            bound("must have at least", limit, " characters", "at least")
        }
        ValidationErrorKind::MaxItems { limit } => bound("must have at most", limit, " entries", "at most"),
        ValidationErrorKind::MinItems { limit } => bound("must have at least", limit, " entries", "at least"),
        ValidationErrorKind::MaxProperties { limit } => {
            bound("must have at most", limit, " members", "at most")
        }
        other => {
            let keyword = other.keyword();
            said(
                format!("does not fit `{keyword}` of the schema"),
                Value::Null,
                format!("send what `{keyword}` of the schema takes"),
            )
        }
    };
    let help = help + &argument(object, &place);
    finding(place, limit, &message, help)
}

fn finding(place: String, limit: Value, message: &str, help: impl Into<String>) -> Finding {
    let subject = if place.is_empty() { "the request".to_owned() } else { format!("`{}`", name(&place)) };
    Finding {
        rule: "schema".into(),
        request_pointer: Some(place.clone()),
        pointer: place,
        from: Some(From::Request),
        value: Value::Null,
        limit,
        message: format!("{subject} {message}"),
        help: help.into(),
    }
}

/// The field a pointer leads into.
fn field(place: &str) -> &str {
    place.trim_start_matches('/').split('/').next().unwrap_or("")
}

/// What people read for a pointer: fields and places in lists, never a claim's name or another foreign key.
fn name(place: &str) -> String {
    let mut parts = place.trim_start_matches('/').split('/');
    let mut text = parts.next().unwrap_or("").to_owned();
    for part in parts {
        let is_known = matches!(part, "ipAddress" | "prefix" | "type");
        if is_known {
            text = text + "." + part;
        } else if part.bytes().all(|byte| byte.is_ascii_digit()) {
            text = text + "[" + part + "]";
        }
    }
    text
}

fn argument(object: &Object, place: &str) -> String {
    let spec = object.fields.get(field(place));
    spec.map_or_else(String::new, |spec| format!(" (Terraform: {})", spec.terraform))
}

#[cfg(test)]
mod tests;
