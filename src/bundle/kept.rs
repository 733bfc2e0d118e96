//! A bundle as the store keeps it: the very bytes its digest is of.
//!
//! One canonical JSON text with the governed files, the rules in force, what the configuration lays over them and what
//! the installation says. From it the bundle is made again, without cases; a text that does not have the digest it is
//! kept under is refused.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Bundle, Files, GOVERNED, LoadError, MANIFEST, RuleFile, read, rules};
use crate::id::Digest;
use crate::json;
use crate::policy::{Mode, Policies, Settings};

#[derive(Deserialize)]
struct Kept {
    manifest: Option<String>,
    governed: Vec<BTreeMap<String, String>>,
    rules: BTreeMap<String, String>,
    overlays: String,
    ip_allow_listing: bool,
}

/// The text of what is in force.
pub(super) fn text(
    governed: &Files,
    own: &Files,
    rules: &[RuleFile],
    overlays: &toml::Table,
    settings: Settings,
) -> Vec<u8> {
    let texts = |prefix: &str| -> BTreeMap<String, String> {
        governed.under(prefix).map(|(file, text)| (file.to_owned(), text.to_owned())).collect()
    };
    let manifest = own.get(MANIFEST).or_else(|| governed.get(MANIFEST));
    let rules: BTreeMap<&str, &str> = rules.iter().map(|rule| (&*rule.id, &*rule.text)).collect();
    let governed: Vec<Value> = GOVERNED.iter().map(|prefix| json!(texts(prefix))).collect();
    json::canonical(&json!({
        "manifest": manifest,
        "governed": governed,
        "rules": rules,
        "overlays": overlays.to_string(),
        "ip_allow_listing": settings.ip_allow_listing,
    }))
}

/// The bundle of a text, enforcing; without cases.
pub(super) fn bundle(text: &[u8], digest: &str) -> Result<Bundle, String> {
    let found = Digest::sha256(&[text]);
    if found.as_str() != digest {
        return Err(format!("what is kept as bundle {digest} is another one ({found})"));
    }
    let kept: Kept =
        json::own(text).map_err(|fault| format!("the bundle {digest} cannot be read: {fault}"))?;
    let mut errors: Vec<LoadError> = Vec::new();
    let governed = read::governed(&Files::of(kept.governed.into_iter().flatten().collect()), &mut errors);
    let mut files = Vec::new();
    for (id, text) in kept.rules {
        let file = format!("rules/{id}.toml");
        let Some(table) = read::toml_file::<toml::Table>(&file, &text, &mut errors) else { continue };
        files.push(RuleFile { id, file, text, table });
    }
    let overlays = read::toml_file("overlays", &kept.overlays, &mut errors).unwrap_or_default();
    let (_, laid) =
        kept.manifest.map_or_else(Default::default, |manifest| super::manifest(&manifest, &mut errors));
    let rules = rules(&files, &laid, &overlays, &mut errors);
    if let Some(error) = errors.first() {
        return Err(format!("the bundle {digest} does not load in this version: {error}"));
    }
    let settings = Settings { ip_allow_listing: kept.ip_allow_listing, mode: Mode::Enforce };
    Ok(Bundle {
        governed,
        policies: Policies::new(rules, settings, found),
        text: text.to_owned(),
        own_cases: Vec::new(),
        sources: BTreeMap::new(),
        bundled: None,
    })
}
