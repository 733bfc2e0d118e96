//! What is laid over rules: first by the folder's manifest, then by the configuration.
//!
//! Comes in: the rule files in force and both tables. Goes out: the rules, and what is wrong, each said of the place where it
//! came in.

use super::{CONFIGURATION, LoadError, MANIFEST, RuleFile};
use crate::policy::Rule;

/// Keys of `[rules.ID]` that are no parameters.
const SETTINGS: [&str; 3] = ["level", "existing", "params"];

/// The rules of the files, with what the folder's manifest and then the configuration lay over them.
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
    let mut rules = Vec::new();
    for RuleFile { id, file, table, .. } in files {
        let of = |overlays: &toml::Table| overlays.get(id).and_then(toml::Value::as_table).cloned();
        let (folder, configuration) = (of(laid), of(overlays));
        let both = match (&folder, &configuration) {
            (Some(lower), Some(upper)) => over(lower, upper),
            (one, other) => one.as_ref().or(other.as_ref()).cloned().unwrap_or_default(),
        };
        // Each with less laid over it, so that what is wrong is said of where it came in.
        let layers = [
            (file.as_str(), "", Some(toml::Table::new())),
            (MANIFEST, "rules.", folder),
            (CONFIGURATION, "rules.", configuration.map(|_| both)),
        ];
        let mut read = None;
        for (source, prefix, overlay) in layers {
            let Some(overlay) = overlay else { continue };
            match Rule::read(table, Some(&overlay)) {
                Ok(rule) => read = Some(rule),
                Err(wrong) => {
                    read = None;
                    errors.extend(wrong.into_iter().map(|error| {
                        let key = match prefix {
                            "" => error.key,
                            prefix => format!("{prefix}{id}.{}", error.key),
                        };
                        LoadError::new(source, key.trim_end_matches('.'), error.message)
                    }));
                    break;
                }
            }
        }
        rules.extend(read);
    }
    rules
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
