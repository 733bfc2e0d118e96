//! Flags, variables and the file, laid into one table.
//!
//! Comes in: the flags given, the environment, and `patchwarden.toml`. Goes out: one TOML table that holds at each key
//! the value of the highest layer, and where that value came from. Refuses, all at once and with file and key, what no
//! setting is called and what cannot be read; an unknown variable is only a warning, as others may have set it. A
//! variable that is empty counts as not set. `[rules.…]` is kept apart as it is: the policies read it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::defaults::{Kind, SHORT_VARIABLES, Setting, nearest, settings};

/// The file that is read when no other is named.
const FILE: &str = "patchwarden.toml";
const PREFIX: &str = "PATCHWARDEN_";
/// What Kubernetes sets for a Service of our name.
const KUBERNETES: [&str; 2] = ["PATCHWARDEN_PORT", "PATCHWARDEN_SERVICE_"];

/// The flags of a command that configure.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `--config`
    pub config: Option<PathBuf>,
    /// Keys such as `upstream.url`, with the text given.
    pub values: Vec<(&'static str, String)>,
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// The file.
    File(PathBuf),
    /// A variable, by its name.
    Variable(String),
    /// A flag, with its dashes.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => path.display().fmt(f),
            Self::Variable(name) | Self::Flag(name) => f.write_str(name),
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file, variable or flag.
    pub place: String,
    /// The key of the setting; empty when it is about the place as a whole.
    pub key: String,
    /// What is wrong and what would pass.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, key, message } = self;
        if key.is_empty() { write!(f, "{place}: {message}") } else { write!(f, "{place}: {key}: {message}") }
    }
}

/// The layers as one table.
#[derive(Debug, Default)]
pub(super) struct Layers {
    /// Values by section and name, known keys only.
    pub table: Table,
    /// `[rules.…]` as it stands in the file.
    pub rules: Table,
    /// Where the values in `table` came from, by key.
    pub origins: BTreeMap<String, Origin>,
    /// The file that was read.
    pub file: Option<PathBuf>,
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// What is odd.
    pub warnings: Vec<String>,
}

impl Layers {
    /// Reads all three, the lowest first.
    pub(super) fn read(flags: &Flags, environment: Vec<(OsString, OsString)>) -> Self {
        let known = settings();
        let mut layers = Self::default();
        layers.read_file(flags.config.as_deref(), &known);
        layers.read_variables(environment, &known);
        for (key, text) in &flags.values {
            if let Some(setting) = known.iter().find(|setting| setting.key == *key) {
                layers.put_text(setting, text, Origin::Flag(flag(key)));
            }
        }
        layers
    }

    /// Notes what is wrong with a key, at the place its value came from. What follows from a value that is wrong already
    /// would only confuse.
    pub(super) fn wrong(&mut self, key: &str, message: impl Into<String>) {
        if self.problems.iter().any(|problem| problem.key == key) {
            return;
        }
        let file =
            || self.file.as_ref().map_or("configuration".to_owned(), |path| path.display().to_string());
        let place = self.origins.get(key).map_or_else(file, ToString::to_string);
        self.problems.push(Problem { place, key: key.to_owned(), message: message.into() });
    }

    fn read_file(&mut self, named: Option<&Path>, known: &[Setting]) {
        let path = named.unwrap_or_else(|| Path::new(FILE));
        let place = path.display().to_string();
        let mut wrong = |message: String| {
            self.problems.push(Problem { place: place.clone(), key: String::new(), message });
        };
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => return,
            Err(error) => return wrong(format!("cannot be read: {error}")),
        };
        let table: Table = match text.parse() {
            Ok(table) => table,
            // Without the error's own excerpt: the line may hold a secret.
            Err(error) => {
                let error: toml::de::Error = error;
                let before = error.span().map_or(0, |span| span.start.min(text.len()));
                let line = text.as_bytes()[..before].iter().filter(|byte| **byte == b'\n').count() + 1;
                return wrong(format!("line {line} is not TOML: {}", error.message()));
            }
        };
        self.file = Some(path.to_owned());
        for (name, value) in table {
            match value {
                Value::Table(rules) if name == "rules" => self.rules = rules,
                value => self.put_value(&name, value, path, known),
            }
        }
    }

    fn put_value(&mut self, key: &str, value: Value, path: &Path, known: &[Setting]) {
        match (known.iter().find(|setting| setting.key == key), value) {
            (_, Value::Table(inner)) if !inner.is_empty() => {
                for (name, value) in inner {
                    self.put_value(&format!("{key}.{name}"), value, path, known);
                }
            }
            (None, Value::Table(_)) if known.iter().any(|setting| setting.place().0 == key) => {}
            (Some(setting), value) => self.put(setting, value, Origin::File(path.to_owned())),
            (None, _) => {
                let nearest = nearest(key, known.iter().map(|setting| setting.key.as_str()));
                self.problems.push(Problem {
                    place: path.display().to_string(),
                    key: key.to_owned(),
                    message: format!("unknown key; the nearest is `{nearest}`"),
                });
            }
        }
    }

    fn read_variables(&mut self, environment: Vec<(OsString, OsString)>, known: &[Setting]) {
        let mut names: BTreeMap<String, &Setting> = BTreeMap::new();
        for setting in known {
            names.insert(setting.variable(), setting);
            let short = SHORT_VARIABLES.iter().find(|(_, key)| *key == setting.key);
            names.extend(short.map(|(name, _)| ((*name).to_owned(), setting)));
        }
        let mut seen = BTreeSet::new();
        for (name, value) in environment {
            let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { continue };
            let named = names.get(name).map(|setting| (*setting, false));
            let file = || Some((*names.get(name.strip_suffix("_FILE")?)?, true));
            let Some((setting, in_file)) = named.or_else(file) else {
                if !KUBERNETES.iter().any(|prefix| name.starts_with(prefix)) {
                    let nearest = nearest(name, names.keys().map(String::as_str));
                    self.warnings.push(format!("{name}: unknown variable; the nearest is {nearest}"));
                }
                continue;
            };
            if value.is_empty() {
                continue;
            }
            let mut wrong = |message: String| {
                self.problems.push(Problem { place: name.to_owned(), key: setting.key.clone(), message });
            };
            if !seen.insert(&setting.key) {
                wrong("a second variable for the same setting; set one of them".to_owned());
                continue;
            }
            let text = match value.into_string() {
                Ok(path) if in_file => match fs::read_to_string(&path) {
                    Ok(text) => text.trim_end_matches(['\r', '\n']).to_owned(),
                    Err(error) => {
                        wrong(format!("{path} cannot be read: {error}"));
                        continue;
                    }
                },
                Ok(text) => text,
                Err(_) => {
                    wrong("is not UTF-8".to_owned());
                    continue;
                }
            };
            self.put_text(setting, &text, Origin::Variable(name.to_owned()));
        }
    }

    fn put_text(&mut self, setting: &Setting, text: &str, origin: Origin) {
        let value = match setting.kind {
            Kind::Text => Some(Value::String(text.to_owned())),
            Kind::Switch => text.parse().ok().map(Value::Boolean),
            Kind::Count => text.parse().ok().map(Value::Integer),
            Kind::List => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                Some(Value::Array(items.map(|item| Value::String(item.to_owned())).collect()))
            }
        };
        match value {
            Some(value) => self.put(setting, value, origin),
            None => {
                let kind = if setting.kind == Kind::Switch { "`true` or `false`" } else { "a whole number" };
                self.problems.push(Problem {
                    place: origin.to_string(),
                    key: setting.key.clone(),
                    message: format!("is `{text}`; write {kind}"),
                });
            }
        }
    }

    fn put(&mut self, setting: &Setting, value: Value, origin: Origin) {
        let (section, name) = setting.place();
        let table = match section {
            "" => Some(&mut self.table),
            section => self.table.entry(section).or_insert_with(|| Value::Table(Table::new())).as_table_mut(),
        };
        if let Some(table) = table {
            table.insert(name.to_owned(), value);
            self.origins.insert(setting.key.clone(), origin);
        }
    }
}

/// The flag of a setting: `--admin-listen`, `--log-format`; `--upstream` where the short name says enough.
fn flag(key: &str) -> String {
    let short = SHORT_VARIABLES.iter().find(|(_, of)| *of == key);
    let name = short.map_or(key, |_| key.split('.').next().unwrap_or(key));
    format!("--{}", name.replace(['.', '_'], "-"))
}
