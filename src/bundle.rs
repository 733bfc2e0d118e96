//! Stub: what is in force, loaded and checked.
//!
//! Accepts everything and has no cases.

use std::path::Path;

use crate::policy::Settings;

/// One thing that is wrong in a policy file.
#[derive(Debug)]
pub struct LoadError {
    /// The file.
    pub file: String,
    /// The key in it.
    pub key: String,
    /// What is wrong.
    pub message: String,
}

/// What is in force.
#[derive(Debug)]
pub struct Bundle;

impl Bundle {
    /// Loads it.
    pub fn load(_: Option<&Path>, _: &toml::Table, _: Settings) -> Result<Self, Vec<LoadError>> {
        Ok(Self)
    }

    /// Runs its cases; one text for each that fails.
    pub fn run_cases(&self) -> Vec<String> {
        Vec::new()
    }
}
