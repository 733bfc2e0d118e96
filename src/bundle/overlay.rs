//! What is laid over rules: first by the folder's manifest, then by the configuration.
//!
//! Comes in: the rule files in force and both tables. Goes out: the rules, and what is wrong, each said of the place where it
//! came in.

use std::fs;
use std::path::PathBuf;

use super::{LoadError, MANIFEST, RuleFile, line};
use crate::policy::{Rule, RuleError};

/// What the configuration is called in errors while its file is not known.
const CONFIGURATION: &str = "the configuration";
/// Keys of `[rules.ID]` that are no parameters.
const SETTINGS: [&str; 3] = ["level", "existing", "params"];

/// `[rules.…]` of the configuration.
#[derive(Clone, Debug, Default)]
pub struct Overlays {
    /// By rule.
    pub table: toml::Table,
    /// The file they stand in.
    pub file: Option<PathBuf>,
}

impl Overlays {
    /// Says of an error of the configuration in which file and line it is.
    pub(super) fn place(&self, mut error: LoadError) -> LoadError {
        if let (CONFIGURATION, Some(file)) = (error.file.as_str(), &self.file) {
            error.line = fs::read_to_string(file).ok().and_then(|text| line::of(&text, &error.key));
            error.file = file.display().to_string();
        }
        error
    }
}

/// The rules of the files, as far as they can be read, with what the folder's manifest and then the configuration lay over them.
pub(super) fn rules(
    files: &[RuleFile],
    laid: &toml::Table,
    overlays: &toml::Table,
    errors: &mut Vec<LoadError>,
) -> Vec<Rule> {
    for (source, overlays) in [(MANIFEST, laid), (CONFIGURATION, overlays)] {
        for (id, overlay) in overlays {
            let key = format!("rules.{id}");
            if !files.iter().any(|rule| rule.id == *id) {
                let known: Vec<_> = files.iter().map(|rule| rule.id.as_str()).collect();
                let message = format!("there is no such rule; there are: {}", known.join(", "));
                errors.push(LoadError::new(source, &key, message));
            } else if !overlay.is_table() {
                errors.push(LoadError::new(source, &key, "must be a table"));
            }
        }
    }
    let none = toml::Table::new();
    let mut rules = Vec::new();
    for RuleFile { id, file, table, .. } in files {
        let mut complain = |source: &str, prefix: &str, wrong: Vec<RuleError>| {
            errors.extend(wrong.into_iter().map(|RuleError { key, message }| {
                LoadError::new(source, format!("{prefix}{key}").trim_end_matches('.'), message)
            }));
        };
        let (plain, own) = Rule::read(table, &none);
        let (mut read, mut is_right) = (plain, own.is_empty());
        let of = |overlays: &toml::Table| overlays.get(id).and_then(toml::Value::as_table).cloned();
        let (folder, configuration) = (of(laid), of(overlays));
        // Each alone over the file, so that what is wrong is said once, and of where it came in.
        for (source, overlay) in [(MANIFEST, &folder), (CONFIGURATION, &configuration)] {
            let Some(overlay) = overlay else { continue };
            let (rule, wrong) = Rule::read(table, overlay);
            let wrong = beyond(wrong, &own);
            is_right &= wrong.is_empty();
            complain(source, &format!("rules.{id}."), wrong);
            read = rule;
        }
        complain(file, "", own);
        if let (Some(lower), Some(upper)) = (&folder, &configuration) {
            let (rule, wrong) = Rule::read(table, &over(lower, upper));
            if is_right {
                complain(CONFIGURATION, &format!("rules.{id}."), wrong);
            }
            read = rule;
        }
        rules.extend(read);
    }
    rules
}

/// What is wrong and was not before.
fn beyond(mut wrong: Vec<RuleError>, before: &[RuleError]) -> Vec<RuleError> {
    for error in before {
        if let Some(at) = wrong.iter().position(|other| other == error) {
            wrong.remove(at);
        }
    }
    wrong
}

/// One table laid over another: what the upper says of a setting or a parameter, beside `level` or in `params`, replaces
/// what the lower says of it in either place.
fn over(lower: &toml::Table, upper: &toml::Table) -> toml::Table {
    let mut both = lower.clone();
    for (key, value) in upper {
        match value {
            toml::Value::Table(params) if key == "params" => {
                let place = both.entry("params").or_insert_with(|| toml::Table::new().into());
                if let Some(place) = place.as_table_mut() {
                    place.extend(params.clone());
                }
                both.retain(|key, _| SETTINGS.contains(&key) || !params.contains_key(key));
            }
            value => {
                if let Some(params) = both.get_mut("params").and_then(toml::Value::as_table_mut) {
                    params.remove(key);
                }
                both.insert(key.clone(), value.clone());
            }
        }
    }
    both
}
