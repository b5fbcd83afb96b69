//! Reasons why there is no configuration. Each ends the program with exit code 2: only an edit
//! helps.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use super::origin::Origin;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(
        "cannot read {path}: {error}; name another file with --config, or create it (`hopsack config --default` prints one)"
    )]
    Unreadable {
        /// Path of the file, as given.
        path: PathBuf,
        /// Reason from the kernel.
        error: std::io::Error,
    },
    /// The file is not valid TOML, or has an unknown key or a value of the wrong type.
    #[error("{path}: line {line}, column {column}: {problem}")]
    Syntax {
        /// Path of the file, as given.
        path: PathBuf,
        /// Line of the error, from 1.
        line: usize,
        /// Column of the error, from 1, in characters.
        column: usize,
        /// What is wrong there.
        problem: String,
    },
    /// An environment variable looks like that of a key, but there is no such key.
    #[error("the environment variable {name} belongs to no key: {hint}")]
    Variable {
        /// Name of the variable.
        name: String,
        /// What to do.
        hint: String,
    },
    /// A value is not allowed.
    #[error("{key} = {value:?} ({origin}): {problem}")]
    Value {
        /// Full name of the key, `section.name`.
        key: &'static str,
        /// Value as it was written.
        value: String,
        /// Where the value was written.
        origin: Origin,
        /// What is wrong, and what to write.
        problem: String,
    },
}

impl ConfigError {
    /// Stable code of the error. The process prints it behind the sentence, in brackets.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "config_unreadable",
            Self::Syntax { .. } => "config_syntax",
            Self::Variable { .. } => "config_variable",
            Self::Value { .. } => "config_value",
        }
    }
}
