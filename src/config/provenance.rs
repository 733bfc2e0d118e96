//! Where each value in force came from.
//!
//! Comes in: the layers. Goes out: one line a setting, given or not, for `patchwarden config`. No password in a URL and no
//! secret is repeated.

use std::path::Path;

use super::defaults::{SECRETS, settings};
use super::layers::{Layers, Origin};

/// One value in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provenance {
    /// `upstream.url`
    pub key: String,
    /// As TOML; nothing when it is not set. A password in a URL is left out.
    pub value: Option<String>,
    /// Where it came from.
    pub origin: Origin,
}

/// Every setting in the order of the printed defaults, then the tables of rules.
pub(super) fn of(layers: &Layers) -> Vec<Provenance> {
    let given = |key: &str| match key.split_once('.') {
        None => layers.table.get(key),
        Some((section, name)) => layers.table.get(section).and_then(|table| table.get(name)),
    };
    let mut list: Vec<Provenance> = settings()
        .into_iter()
        .map(|setting| {
            let origin = layers.origins.get(&setting.key).cloned().unwrap_or(Origin::Default);
            let value = given(&setting.key)
                .map(|value| shown(&setting.key, &value.to_string()))
                .or_else(|| setting.has_default.then(|| setting.shown.clone()));
            Provenance { key: setting.key, value, origin }
        })
        .collect();
    let file = layers.file.as_deref().unwrap_or(Path::new(""));
    list.extend(layers.rules.iter().map(|(rule, value)| Provenance {
        key: format!("rules.{rule}"),
        value: Some(value.to_string()),
        origin: Origin::File(file.to_owned()),
    }));
    list
}

fn shown(key: &str, value: &str) -> String {
    if SECRETS.contains(&key) { "\"…\"".to_owned() } else { without_password(value) }
}

/// `scheme://user:password@host` without what stands before the `@`.
fn without_password(text: &str) -> String {
    match text.split_once("://") {
        Some((scheme, rest)) if rest.contains('@') => {
            let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
            format!("{scheme}://…@{host}")
        }
        _ => text.to_owned(),
    }
}
