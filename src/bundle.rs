//! What is in force: the catalogue, the operations with their schemas, and the policies.
//!
//! A bundle is compiled into the binary. `--policies DIR` adds rule files to it (the id of a bundled rule replaces that
//! rule) and cases; with `extends = "none"` in `DIR/bundle.toml` no bundled rule is in force, and the folder may bring a
//! catalogue, objects, operations and schemas of its own. The configuration lays settings over single rules. Everything
//! wrong is found at once; nothing is loaded in part. The digest covers all that can change a decision.

mod cases;
mod error;
mod evaluate;
mod files;
mod kept;
mod line;
mod overlay;
mod read;
mod replay;
mod standing;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;

use crate::id::{Digest, sha256};
use crate::operation::{Catalogue, Operation};
use crate::policy::{Mode, Policies, Rule, Settings, contradiction};
use crate::schema::Schema;

use cases::Case;
pub use cases::Trial;
pub use error::LoadError;
pub use evaluate::{Answer, Evaluation, Question, Verdict, evaluate};
use files::Files;
pub use overlay::Overlays;
use overlay::rules;
pub use replay::{Attempt, Recorded, Said, Unreplayable};
pub use standing::{Next, Reaction, Standing, standing};

const MANIFEST: &str = "bundle.toml";
const CATALOGUE: &str = "catalogue.toml";
/// What a folder may replace only when it extends nothing.
const GOVERNED: [&str; 4] = [CATALOGUE, "objects/", "operations/", "schemas/"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    dead_code,
    reason = "name and version are for people and for the digest, which covers the whole file"
)]
struct Manifest {
    format: u32,
    name: Option<String>,
    version: Option<String>,
    #[serde(default)]
    extends: Extends,
    /// Laid over rules, as `[rules.ID]` of the configuration is.
    #[serde(default)]
    rules: toml::Table,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Extends {
    #[default]
    Builtin,
    None,
}

/// A rule file in force.
struct RuleFile {
    id: String,
    file: String,
    text: String,
    table: toml::Table,
}

/// What is in force.
#[derive(Debug)]
pub struct Bundle {
    governed: read::Governed,
    policies: Policies,
    /// What the digest is of.
    text: Vec<u8>,
    own_cases: Vec<Case>,
    /// Where each rule comes from.
    sources: BTreeMap<String, String>,
    /// The bundled cases, with the bundled rules as they are without anything laid over them.
    bundled: Option<(Policies, Vec<Case>)>,
}

impl Bundle {
    /// The source of a bundled rule over which the folder lays nothing.
    pub const BINARY: &'static str = "the binary";

    /// What is compiled in, enforcing, with nothing laid over it.
    pub fn builtin() -> Result<Self, Vec<LoadError>> {
        let settings = Settings { ip_allow_listing: true, mode: Mode::Enforce };
        Self::load(None, &Overlays::default(), settings)
    }

    /// Loads what is compiled in, what the folder adds, and what the configuration lays over single rules.
    pub fn load(dir: Option<&Path>, overlays: &Overlays, settings: Settings) -> Result<Self, Vec<LoadError>> {
        let mut errors = Vec::new();
        let builtin = Files::builtin();
        let own = dir.map_or_else(Files::default, |dir| Files::of_folder(dir, &mut errors));
        let (extends, laid) =
            own.get(MANIFEST).map_or_else(Default::default, |text| manifest(text, &mut errors));
        let own_governed = GOVERNED.iter().any(|prefix| own.under(prefix).next().is_some());
        if own_governed && extends == Extends::Builtin {
            let message = "a catalogue, objects, operations and schemas are taken from this folder only with `extends = \"none\"`";
            errors.push(LoadError::new(MANIFEST, "extends", message));
        }
        let governed_files = if own_governed { &own } else { &builtin };
        let governed = read::governed(governed_files, &mut errors);

        let bundled = rule_files(&builtin, &mut errors);
        let none = toml::Table::new();
        let plain: Vec<Rule> = bundled.iter().filter_map(|rule| Rule::read(&rule.table, &none).0).collect();
        let in_force = match extends {
            Extends::Builtin => laid_over(bundled, rule_files(&own, &mut errors)),
            Extends::None => rule_files(&own, &mut errors),
        };
        let place = |rule: &RuleFile| match (own.get(&rule.file), dir) {
            (Some(text), Some(dir)) if text == rule.text => dir.join(&rule.file).display().to_string(),
            _ => Self::BINARY.to_owned(),
        };
        let source = |rule: &RuleFile| match dir.filter(|_| laid.contains_key(&rule.id)) {
            None => place(rule),
            Some(dir) => {
                format!("{}, [rules.{}] of {}", place(rule), rule.id, dir.join(MANIFEST).display())
            }
        };
        let sources = in_force.iter().map(|rule| (rule.id.clone(), source(rule))).collect();
        let rules = rules(&in_force, &laid, &overlays.table, &mut errors);
        for file in &in_force {
            unmatched(file, rules.iter().find(|rule| rule.id() == file.id), &governed, &mut errors);
        }
        let text = kept::text(governed_files, &own, &in_force, &overlays.table, settings);
        let digest = Digest::sha256(&[&text]);
        let own_cases = cases::read(&own, &mut errors);
        let bundled_cases = cases::read(&builtin, &mut errors);
        if !errors.is_empty() {
            return Err(errors.into_iter().map(|error| overlays.place(error.placed(&own))).collect());
        }
        let bundled = (extends == Extends::Builtin).then(|| {
            let settings = Settings { ip_allow_listing: true, mode: Mode::Enforce };
            (Policies::new(plain, settings, digest.clone()), bundled_cases)
        });
        let policies = Policies::new(rules, settings, digest);
        Ok(Self { governed, policies, text, own_cases, sources, bundled })
    }

    /// The bundle of a text that was kept under this digest, always enforcing; an error says why it is none.
    pub fn restore(text: &[u8], digest: &str) -> Result<Self, String> {
        kept::bundle(text, digest)
    }

    /// Everything that can change a decision, as one text: [`Bundle::digest`] is of it.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// The files of the bundle in the binary, by name, as a folder that stands for itself.
    pub fn files() -> Vec<(String, String)> {
        let alone = |(name, text): (String, String)| {
            let text = if name == MANIFEST { text + "extends = \"none\"\n" } else { text };
            (name, text)
        };
        Files::builtin().into_all().into_iter().map(alone).collect()
    }

    /// Where a rule in force comes from: the binary, or a file.
    pub fn source(&self, rule: &str) -> &str {
        self.sources.get(rule).map_or(Self::BINARY, String::as_str)
    }

    /// Every write that decides who may log in.
    pub fn catalogue(&self) -> &Catalogue {
        &self.governed.catalogue
    }

    /// The schema of an operation.
    pub fn schema(&self, operation: &str) -> Option<&Schema> {
        self.governed.schemas.get(operation)
    }

    /// The rules.
    pub fn policies(&self) -> &Policies {
        &self.policies
    }

    /// Covers all that can change a decision: rules with what is laid over them, settings, schemas, objects, catalogue.
    pub fn digest(&self) -> &Digest {
        self.policies.digest()
    }

    /// The governed operations by name.
    pub fn operations(&self) -> &BTreeMap<String, Arc<Operation>> {
        &self.governed.operations
    }

    /// One governed operation.
    pub fn operation(&self, name: &str) -> Option<&Arc<Operation>> {
        self.governed.operations.get(name)
    }

    /// Runs the policy cases, one text for each that fails: the bundled ones by the bundled rules as they are, the
    /// folder's own by everything in force; always enforcing.
    pub fn run_cases(&self) -> Vec<String> {
        let told = |trial: Trial| Some(format!("{}: {}: {}", trial.file, trial.name, trial.problem?));
        self.trials().into_iter().filter_map(told).collect()
    }

    /// The same, with those that came out as written.
    pub fn trials(&self) -> Vec<Trial> {
        let mut trials = cases::run(self, &self.policies, &self.own_cases);
        if let Some((policies, cases)) = &self.bundled {
            let bundled = cases::run(self, policies, cases).into_iter();
            trials.extend(bundled.map(|trial| Trial { is_bundled: true, ..trial }));
        }
        trials
    }

    /// Rules that no configuration was found to pass, one text for each operation. A case of the folder that is allowed
    /// shows that there is one.
    pub fn contradictions(&self) -> Vec<String> {
        let shown: BTreeSet<String> = cases::run(self, &self.policies, &self.own_cases)
            .into_iter()
            .filter_map(|trial| trial.is_allowed.then_some(trial.operation))
            .collect();
        let unshown = self.operations().values().filter(|operation| !shown.contains(&operation.name));
        let told = |operation: &Arc<Operation>| {
            let rules = contradiction(&self.policies, operation)?.join(", ");
            let name = &operation.name;
            Some(format!(
                "no configuration was found that `{name}` would be allowed to set: {rules} cannot be met together; if there is one, show it in a case of `{name}` that expects allow"
            ))
        };
        unshown.filter_map(told).collect()
    }
}

fn manifest(text: &str, errors: &mut Vec<LoadError>) -> (Extends, toml::Table) {
    match read::toml_file::<Manifest>(MANIFEST, text, errors) {
        Some(manifest) => {
            if manifest.format != 1 {
                errors.push(LoadError::new(MANIFEST, "format", "must be 1"));
            }
            (manifest.extends, manifest.rules)
        }
        None => Default::default(),
    }
}

/// A digest of everything a folder holds that a bundle may read.
pub fn content(dir: &Path) -> [u8; 32] {
    let mut errors = Vec::new();
    let files = Files::of_folder(dir, &mut errors).into_all();
    let problems: Vec<_> = errors.iter().map(ToString::to_string).collect();
    sha256(&[json!([files, problems]).to_string().as_bytes()])
}

/// The rule files of a folder: those in `rules/`, and those beside it.
fn rule_files(files: &Files, errors: &mut Vec<LoadError>) -> Vec<RuleFile> {
    let beside = files.root().filter(|(file, _)| !matches!(*file, MANIFEST | CATALOGUE));
    let mut rules: Vec<RuleFile> = Vec::new();
    for (file, text) in files.under("rules/").chain(beside) {
        let Some(table) = read::toml_file::<toml::Table>(file, text, errors) else { continue };
        let Some(id) = table.get("id").and_then(toml::Value::as_str) else {
            errors.push(LoadError::new(file, "id", "must be the rule's name"));
            continue;
        };
        if let Some(other) = rules.iter().find(|rule| rule.id == id) {
            errors.push(LoadError::new(file, "id", format!("`{id}` stands in {} already", other.file)));
            continue;
        }
        let (id, file, text) = (id.to_owned(), file.to_owned(), text.to_owned());
        rules.push(RuleFile { id, file, text, table });
    }
    rules
}

/// A rule of `own` takes the place of the bundled one with its id.
fn laid_over(mut bundled: Vec<RuleFile>, own: Vec<RuleFile>) -> Vec<RuleFile> {
    for rule in own {
        match bundled.iter_mut().find(|other| other.id == rule.id) {
            Some(place) => *place = rule,
            None => bundled.push(rule),
        }
    }
    bundled
}

/// A rule that names what there is not would silently never apply.
fn unmatched(file: &RuleFile, rule: Option<&Rule>, governed: &read::Governed, errors: &mut Vec<LoadError>) {
    const WRITES: [&str; 3] = ["overlay", "create", "remove"];
    let operations = &governed.operations;
    let named = file.table.get("operations").and_then(toml::Value::as_array).into_iter().flatten();
    for name in named.filter_map(toml::Value::as_str) {
        if !operations.contains_key(name) && !WRITES.contains(&name) {
            let known: Vec<_> = operations.keys().map(String::as_str).chain(WRITES).collect();
            let message = format!("there is no operation `{name}`; there are: {}", known.join(", "));
            errors.push(LoadError::new(&file.file, "operations", message));
        }
    }
    for name in rule.map(Rule::named_fields).unwrap_or_default() {
        if !operations.values().any(|operation| operation.object.fields.contains_key(name)) {
            let known: Vec<_> = operations.values().next().map_or_else(Vec::new, |operation| {
                operation.object.fields.keys().map(String::as_str).collect()
            });
            let message = format!("there is no field `{name}`; there are: {}", known.join(", "));
            errors.push(LoadError::new(&file.file, "params.fields", message));
        }
    }
}

#[cfg(test)]
mod tests;
