//! The files of a bundle by name, compiled in or read from a folder.
//!
//! A folder is read flat: the `.toml` files in it, in `rules/`, `cases/`, `objects/`, `operations/`, and the `.json` files
//! in `schemas/`. Names that begin with a dot are passed over (Kubernetes keeps its own there). Files are bounded in
//! number and size.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::Path;

use super::LoadError;

const MAX_FILES: usize = 1000;
const MAX_BYTES: u64 = 1 << 20;
/// Folders of a bundle, with the ending their files have.
const FOLDERS: [(&str, &str); 6] = [
    ("", ".toml"),
    ("rules/", ".toml"),
    ("cases/", ".toml"),
    ("objects/", ".toml"),
    ("operations/", ".toml"),
    ("schemas/", ".json"),
];

macro_rules! compiled_in {
    ($($file:literal),* $(,)?) => { [$(($file, include_str!(concat!("../../policies/", $file)))),*] };
}

/// Text by name, such as `rules/open-network.toml`.
#[derive(Debug, Default)]
pub(super) struct Files(BTreeMap<String, String>);

impl Files {
    /// What is compiled into the binary.
    pub(super) fn builtin() -> Self {
        let files = compiled_in![
            "bundle.toml",
            "catalogue.toml",
            "objects/jwt-auth.toml",
            "operations/jwt-auth.toml",
            "schemas/jwt-auth.attach.json",
            "schemas/jwt-auth.update.json",
            "rules/insecure-jwks.toml",
            "rules/open-network.toml",
            "rules/silent-reset.toml",
            "rules/token-lifetime.toml",
            "rules/unbound-login.toml",
            "cases/insecure-jwks.toml",
            "cases/open-network.toml",
            "cases/silent-reset.toml",
            "cases/token-lifetime.toml",
            "cases/unbound-login.toml",
        ];
        Self(files.into_iter().map(|(file, text)| (file.to_owned(), text.to_owned())).collect())
    }

    /// Those of another source.
    pub(super) fn of(files: BTreeMap<String, String>) -> Self {
        Self(files)
    }

    /// All of them, by name.
    pub(super) fn into_all(self) -> Vec<(String, String)> {
        self.0.into_iter().collect()
    }

    /// What a folder holds.
    pub(super) fn of_folder(dir: &Path, errors: &mut Vec<LoadError>) -> Self {
        let mut files = Self::default();
        if !dir.is_dir() {
            errors.push(LoadError::new(&dir.display().to_string(), "", "is not a folder"));
            return files;
        }
        for (folder, ending) in FOLDERS {
            if let Err(message) = files.add_folder(dir, folder, ending) {
                errors.push(LoadError::new(&dir.join(folder).display().to_string(), "", message));
            }
        }
        files
    }

    fn add_folder(&mut self, dir: &Path, folder: &str, ending: &str) -> Result<(), String> {
        let path = dir.join(folder);
        if !path.exists() {
            return Ok(());
        }
        for entry in fs::read_dir(&path).map_err(|error| error.to_string())? {
            let entry = entry.map_err(|error| error.to_string())?;
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| name.ends_with(ending) && !name.starts_with('.'))
            else {
                continue;
            };
            if !entry.path().is_file() {
                continue;
            }
            if self.0.len() == MAX_FILES {
                return Err(format!("more than {MAX_FILES} files"));
            }
            let text = read(&entry.path()).map_err(|message| format!("{name}: {message}"))?;
            self.0.insert(format!("{folder}{name}"), text);
        }
        Ok(())
    }

    /// One file.
    pub(super) fn get(&self, file: &str) -> Option<&str> {
        self.0.get(file).map(String::as_str)
    }

    /// The files whose name begins with `prefix`, sorted.
    pub(super) fn under(&self, prefix: &str) -> impl Iterator<Item = (&str, &str)> {
        let files = self.0.iter().filter(move |(file, _)| file.starts_with(prefix));
        files.map(|(file, text)| (file.as_str(), text.as_str()))
    }

    /// The files in no folder.
    pub(super) fn root(&self) -> impl Iterator<Item = (&str, &str)> {
        self.under("").filter(|(file, _)| !file.contains('/'))
    }
}

fn read(path: &Path) -> Result<String, String> {
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    let mut text = String::new();
    file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > MAX_BYTES { Err(format!("is larger than {MAX_BYTES} bytes")) } else { Ok(text) }
}
