//! What is wrong with a bundle: file, line, key, and what would do.
//!
//! Everything wrong is collected while the bundle is read, then placed: the line is looked up in the file's text, since
//! who finds a problem mostly holds a value, not its place.

use std::fmt;

use super::{Files, line};

/// One thing that is wrong in a policy file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadError {
    /// The file.
    pub file: String,
    /// The line in it, from 1, when it is known.
    pub line: Option<usize>,
    /// The key in it; empty for the whole file.
    pub key: String,
    /// What is wrong.
    pub message: String,
}

impl LoadError {
    pub(super) fn new(file: &str, key: &str, message: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line: None, key: key.to_owned(), message: message.into() }
    }

    /// With the line of its key, when the file is one of these.
    pub(super) fn placed(mut self, files: &Files) -> Self {
        self.line = self.line.or_else(|| line::of(files.get(&self.file)?, &self.key));
        self
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        match self.key.as_str() {
            "" => write!(f, ": {}", self.message),
            key => write!(f, ": `{key}`: {}", self.message),
        }
    }
}
