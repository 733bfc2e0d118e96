//! Reads the bundle's files into what they define: objects, operations with their schemas, the catalogue.
//!
//! Every file is read; everything wrong comes back at once with file and key. An object that leaves a field's omission
//! unsaid, an operation without object or schema, a catalogue entry that names no operation: none of them loads, for
//! each would be a hole that nobody sees.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::Method;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{Files, LoadError, line};
use crate::json;
use crate::operation::{
    Catalogue, CatalogueEntry, Class, Kind, Object, Omission, Omitted, Operation, Side, Write,
};
use crate::schema::Schema;

/// What is governed, and by which schemas.
#[derive(Debug, Default)]
pub(super) struct Governed {
    pub(super) operations: BTreeMap<String, Arc<Operation>>,
    pub(super) schemas: BTreeMap<String, Schema>,
    pub(super) catalogue: Catalogue,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OperationsFile {
    operation: Vec<OperationSpec>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OperationSpec {
    name: String,
    method: String,
    write: Write,
    object: String,
    schema: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CatalogueFile {
    write: Vec<WriteSpec>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WriteSpec {
    name: String,
    method: String,
    path: String,
    class: ClassName,
    shares: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ClassName {
    Governed,
    Watched,
    Open,
}

/// One TOML file; what is wrong with it goes to `errors`.
pub(super) fn toml_file<T: DeserializeOwned>(
    file: &str,
    text: &str,
    errors: &mut Vec<LoadError>,
) -> Option<T> {
    let unread = |error: toml::de::Error| {
        let line = error.span().map(|span| line::of_byte(text, span.start));
        errors.push(LoadError { line, ..LoadError::new(file, "", error.message()) });
    };
    toml::from_str(text).map_err(unread).ok()
}

/// Everything but rules and cases.
pub(super) fn governed(files: &Files, errors: &mut Vec<LoadError>) -> Governed {
    let mut governed = Governed::default();
    let mut objects = BTreeMap::new();
    for (file, text) in files.under("objects/") {
        if let Some(object) = toml_file::<Object>(file, text, errors) {
            check_object(file, &object, errors);
            objects.insert(object.name.clone(), Arc::new(object));
        }
    }
    for (file, text) in files.under("operations/") {
        let specs = toml_file::<OperationsFile>(file, text, errors).map_or_else(Vec::new, |f| f.operation);
        for (index, spec) in specs.into_iter().enumerate() {
            let wrong = |key: &str, message: String| {
                LoadError::new(file, &format!("operation[{index}].{key}"), message)
            };
            let Some(object) = objects.get(&spec.object) else {
                errors.push(wrong("object", format!("there is no object `{}`", spec.object)));
                continue;
            };
            let Some(method) = write_method(&spec.method) else {
                errors.push(wrong("method", "must be POST, PUT, PATCH or DELETE".into()));
                continue;
            };
            match (&spec.schema, spec.write) {
                (Some(_), Write::Remove) => {
                    errors.push(wrong("schema", "a removal's body is not judged: leave it out".into()));
                }
                (None, Write::Overlay | Write::Create) => {
                    errors.push(wrong("schema", "is missing: without it every request is refused".into()));
                }
                (Some(schema), _) => match schema_file(files, schema) {
                    Ok(schema) => drop(governed.schemas.insert(spec.name.clone(), schema)),
                    Err(message) => errors.push(wrong("schema", message)),
                },
                (None, Write::Remove) => {}
            }
            let operation =
                Operation { name: spec.name.clone(), method, write: spec.write, object: object.clone() };
            if governed.operations.insert(spec.name.clone(), Arc::new(operation)).is_some() {
                errors.push(wrong("name", format!("`{}` stands twice", spec.name)));
            }
        }
    }
    governed.catalogue = catalogue(files, &governed.operations, errors);
    governed
}

fn schema_file(files: &Files, name: &str) -> Result<Schema, String> {
    let file = format!("schemas/{name}.json");
    let text = files.get(&file).ok_or_else(|| format!("there is no {file}"))?;
    let value = json::value(text.as_bytes()).map_err(|fault| format!("{file}: {fault}"))?;
    Schema::compile(&value).map_err(|error| format!("{file}: {error}"))
}

fn write_method(name: &str) -> Option<Method> {
    matches!(name, "POST" | "PUT" | "PATCH" | "DELETE").then(|| Method::from_bytes(name.as_bytes()).ok())?
}

/// Each field says for both ways of writing what leaving it out does, and what it writes can be read.
fn check_object(file: &str, object: &Object, errors: &mut Vec<LoadError>) {
    let branch = object.fields.get(&object.branch).filter(|spec| spec.kind == Kind::Choice);
    let branches = branch.map_or(&[][..], |spec| &spec.choices);
    if branches.is_empty() {
        errors.push(LoadError::new(file, "branch", "must name a field of kind `choice` with choices"));
    }
    for (table, omitted) in [("create", &object.omitted.create), ("overlay", &object.omitted.overlay)] {
        for name in omitted.keys().filter(|name| !object.fields.contains_key(*name)) {
            let key = format!("omitted.{table}.{name}");
            errors.push(LoadError::new(file, &key, "there is no such field"));
        }
        for (name, spec) in &object.fields {
            let key = format!("omitted.{table}.{name}");
            let effects: Vec<&Omission> = match omitted.get(name) {
                None => {
                    errors.push(LoadError::new(file, &key, "is missing: say what leaving it out does"));
                    continue;
                }
                Some(Omitted::Always(effect)) => vec![effect],
                Some(Omitted::ByBranch(effects)) => {
                    if !branches.iter().all(|branch| effects.contains_key(branch))
                        || effects.len() != branches.len()
                    {
                        let message = format!("must name exactly: {}", branches.join(", "));
                        errors.push(LoadError::new(file, &key, message));
                    }
                    effects.values().collect()
                }
            };
            for effect in effects {
                match effect {
                    Omission::Writes(value) => {
                        if let Err(misfit) = spec.kind.read(Side::Request, value, &spec.choices) {
                            errors.push(LoadError::new(file, &key, format!("`writes` {}", misfit.message)));
                        }
                    }
                    Omission::Keeps if table == "create" => {
                        errors.push(LoadError::new(file, &key, "a new one has nothing to keep"));
                    }
                    Omission::Keeps | Omission::Required | Omission::Opaque => {}
                }
            }
        }
    }
}

fn catalogue(
    files: &Files,
    operations: &BTreeMap<String, Arc<Operation>>,
    errors: &mut Vec<LoadError>,
) -> Catalogue {
    const FILE: &str = "catalogue.toml";
    let text = files.get(FILE).unwrap_or_default();
    let specs = toml_file::<CatalogueFile>(FILE, text, errors).map_or_else(Vec::new, |file| file.write);
    let mut catalogue = Catalogue::default();
    for (index, spec) in specs.into_iter().enumerate() {
        let mut wrong = |key: &str, message: &str| {
            errors.push(LoadError::new(FILE, &format!("write[{index}].{key}"), message));
        };
        let Some(method) = write_method(&spec.method) else {
            wrong("method", "must be POST, PUT, PATCH or DELETE");
            continue;
        };
        if !is_template(&spec.path) {
            wrong("path", "must be lower-case segments after `/`, each plain, `{name}` or `{name:word}`");
            continue;
        }
        let class = match (spec.class, operations.get(&spec.name)) {
            (ClassName::Watched, None) => Class::Watched,
            (ClassName::Open, None) => Class::Open,
            (ClassName::Governed, Some(operation))
                if operation.method == method && operation.object.path == spec.path =>
            {
                Class::Governed(operation.clone())
            }
            (ClassName::Governed, Some(_)) => {
                wrong("path", "method and path must be those of the operation and its object");
                continue;
            }
            (ClassName::Governed, None) => {
                wrong("name", "must be an operation's name");
                continue;
            }
            (ClassName::Watched | ClassName::Open, Some(_)) => {
                wrong("class", "an operation must be governed");
                continue;
            }
        };
        let shares = spec.shares.as_ref().and_then(|name| {
            operations.values().map(|operation| &operation.object).find(|object| object.name == *name)
        });
        if spec.shares.is_some() && (shares.is_none() || spec.class != ClassName::Watched) {
            wrong("shares", "must be an object's name, on a watched write");
            continue;
        }
        let shares = shares.cloned();
        catalogue.0.push(CatalogueEntry { name: spec.name, method, path: spec.path, class, shares });
    }
    for name in operations.keys() {
        if !catalogue.0.iter().any(|entry| entry.name == *name) {
            errors.push(LoadError::new(FILE, name, "this operation has no route"));
        }
    }
    catalogue
}

fn is_template(path: &str) -> bool {
    let is_plain = |text: &str, capitals: bool| {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
        let allowed = |byte: u8| plain(byte) || (capitals && byte.is_ascii_uppercase());
        !text.is_empty() && !matches!(text, "." | "..") && text.bytes().all(allowed)
    };
    path.starts_with('/')
        && path.split('/').skip(1).all(|part| {
            match part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) {
                Some(name) => is_plain(name.strip_suffix(":word").unwrap_or(name), true),
                None => is_plain(part, false),
            }
        })
}
