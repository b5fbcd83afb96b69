//! The four layers merged into one value for each key, checked for type and range.
//!
//! It does not know what a value means. Values of the right type and range are read by row:
//! `settings.text(&overlay::DEVICE)`.
//!
//! Invariant: an unknown key or a value of the wrong type is an error with its position; none is
//! skipped.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::error::ConfigError;
use super::key::Key;
use super::origin::{Origin, Setting};
use super::position::{line_and_column, one_line};

/// One value for each key.
#[derive(Debug)]
pub(super) struct Settings {
    values: Vec<(&'static Key, Value, Origin)>,
}

/// What stands outside the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Overrides<'a> {
    /// Environment variables.
    pub environment: &'a [(String, String)],
    /// Command-line options: section, key, value.
    pub options: &'a [(&'static str, &'static str, String)],
}

impl Overrides<'_> {
    /// Value of a key on the command line, or else in the environment.
    fn of(&self, key: &Key) -> Option<(&str, Origin)> {
        let is_key =
            |(section, name, _): &&(&str, &str, String)| *section == key.section && *name == key.name;
        if let Some((_, _, value)) = self.options.iter().find(is_key) {
            return Some((value, Origin::Option(format!("--{}", key.option()))));
        }
        let variable = key.variable();
        let (_, value) = self.environment.iter().find(|(name, _)| *name == variable)?;
        Some((value, Origin::Environment(variable)))
    }
}

impl Settings {
    /// Lays `overrides` over the file's `text`, and that over the defaults of the `keys`.
    pub(super) fn merge(
        keys: &[&'static Key],
        text: &str,
        path: &Path,
        overrides: Overrides<'_>,
    ) -> Result<Self, ConfigError> {
        let syntax = |offset, problem| {
            let (line, column) = line_and_column(text, offset);
            ConfigError::Syntax { path: path.to_owned(), line, column, problem }
        };
        let file = read(keys, text).map_err(|Misplaced { offset, problem }| syntax(offset, problem))?;
        let mut values = Vec::new();
        for key in keys.iter().copied() {
            let (value, origin) = if let Some((text, origin)) = overrides.of(key) {
                match key.parse(text) {
                    Some(value) => (value, origin),
                    None => return Err(refusal(key, text.to_owned(), &origin, None)),
                }
            } else if let Some(value) = file.get(key.section).and_then(|section| section.get(key.name)) {
                (value.clone(), Origin::File(path.to_owned()))
            } else {
                (key.default_value(), Origin::Default)
            };
            if !key.is_in_range(&value) {
                return Err(refusal(key, as_text(&value), &origin, None));
            }
            values.push((key, value, origin));
        }
        Ok(Self { values })
    }

    fn get(&self, key: &Key) -> &(&'static Key, Value, Origin) {
        self.values.iter().find(|(known, ..)| known.path == key.path).expect("`merge` gives each key a value")
    }

    /// Value of a key that is written as text.
    pub(super) fn text(&self, key: &Key) -> &str {
        self.get(key).1.as_str().expect("the row's kind is text")
    }

    /// Value of a key that is `true` or `false`.
    pub(super) fn is_set(&self, key: &Key) -> bool {
        self.get(key).1.as_bool().expect("the row's kind is bool")
    }

    /// Value of a key that is `true` or `false`; `None`: `"auto"`.
    pub(super) fn switch(&self, key: &Key) -> Option<bool> {
        self.get(key).1.as_bool()
    }

    /// Value of a numeric key; `None`: `"auto"`.
    pub(super) fn number<T: TryFrom<i64>>(&self, key: &Key) -> Option<T> {
        let number = self.get(key).1.as_integer()?;
        Some(T::try_from(number).ok().expect("the row's range fits its type"))
    }

    /// Value of a key that is a list of texts.
    pub(super) fn list(&self, key: &Key) -> Vec<String> {
        let items = self.get(key).1.as_array().expect("the row's kind is a list");
        items.iter().filter_map(Value::as_str).map(str::to_owned).collect()
    }

    /// Value of a key that is an absolute path.
    pub(super) fn path(&self, key: &Key) -> Result<PathBuf, ConfigError> {
        let path = Path::new(self.text(key));
        // The daemon and the commands that ask it have different working directories.
        if path.is_absolute() { Ok(path.to_owned()) } else { self.refuse_with(key, "write an absolute path") }
    }

    /// Paths of a certificate and its key, which are set both or not at all.
    pub(super) fn certificate(
        &self,
        certificate: &Key,
        private: &Key,
    ) -> Result<Option<(PathBuf, PathBuf)>, ConfigError> {
        match (self.text(certificate), self.text(private)) {
            ("", "") => Ok(None),
            ("", _) => self.refuse_with(
                private,
                &format!("name the certificate of this key too: set {}", certificate.path),
            ),
            (_, "") => self.refuse_with(
                certificate,
                &format!("name the key of this certificate too: set {}", private.path),
            ),
            _ => Ok(Some((self.path(certificate)?, self.path(private)?))),
        }
    }

    /// The error for a value that is outside what its row accepts.
    pub(super) fn refuse<T>(&self, key: &Key) -> Result<T, ConfigError> {
        let (key, value, origin) = self.get(key);
        Err(refusal(key, as_text(value), origin, None))
    }

    /// The error for a value that is wrong for another reason, with what to do.
    pub(super) fn refuse_with<T>(&self, key: &Key, problem: &str) -> Result<T, ConfigError> {
        let (key, value, origin) = self.get(key);
        Err(refusal(key, as_text(value), origin, Some(problem)))
    }

    /// All values, in the order of the file.
    pub(super) fn into_list(self) -> Vec<Setting> {
        let setting = |(key, value, origin): (&Key, Value, Origin)| Setting {
            section: key.section,
            key: key.name,
            value,
            origin,
        };
        self.values.into_iter().map(setting).collect()
    }
}

fn refusal(key: &Key, value: String, origin: &Origin, problem: Option<&str>) -> ConfigError {
    let problem = problem.map_or_else(|| format!("write {}", key.accepts()), str::to_owned);
    ConfigError::Value { key: key.path, value, origin: origin.clone(), problem }
}

fn as_text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A problem at a byte offset of the file.
struct Misplaced {
    offset: usize,
    problem: String,
}

/// Reads the file's text. Every section and key in it is known, and every value has its key's type.
fn read(known: &[&'static Key], text: &str) -> Result<Table, Misplaced> {
    let syntax = |error: toml::de::Error| Misplaced {
        offset: error.span().map_or(0, |span| span.start),
        problem: one_line(&error),
    };
    // The first reading knows positions, the second has plain values.
    let positions = DeTable::parse(text).map_err(syntax)?;
    let values: Table = toml::from_str(text).map_err(syntax)?;
    for (section, content) in positions.get_ref() {
        let name: &str = section.get_ref();
        let at = |problem| Misplaced { offset: section.span().start, problem };
        let keys: Vec<&Key> = known.iter().copied().filter(|key| key.section == name).collect();
        if keys.is_empty() {
            let mut sections: Vec<&str> = known.iter().map(|key| key.section).collect();
            sections.dedup();
            return Err(at(format!("unknown section {name:?}; the sections are {}", sections.join(", "))));
        }
        let DeValue::Table(content) = content.get_ref() else {
            return Err(at(format!("{name} is a section: write [{name}], and its keys below")));
        };
        check_section(&keys, content, &values[name])?;
    }
    Ok(values)
}

fn check_section(keys: &[&Key], content: &DeTable<'_>, values: &Value) -> Result<(), Misplaced> {
    for (name, value) in content {
        let Some(key) = keys.iter().find(|key| key.name == name.get_ref()) else {
            let known: Vec<&str> = keys.iter().map(|key| key.name).collect();
            let problem = format!(
                "unknown key {:?}; the keys of [{}] are {}",
                name.get_ref(),
                keys[0].section,
                known.join(", ")
            );
            return Err(Misplaced { offset: name.span().start, problem });
        };
        if !key.has_type(&values[key.name]) {
            let problem = format!("{}: write {}", key.path, key.accepts());
            return Err(Misplaced { offset: value.span().start, problem });
        }
    }
    Ok(())
}
