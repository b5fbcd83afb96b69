//! One configuration key: its row holds everything that the program says about it.
//!
//! The file template, the command-line options, the environment names, `--help`, the man page and
//! the checks of types and ranges are all made from these rows. A row does not know what its value
//! means: the file of its section does.
//!
//! Invariant: the default of a row passes the row's own check (test
//! `defaults_pass_their_own_check`).
#![forbid(unsafe_code)]

use toml::Value;

/// A configuration key.
#[derive(Debug)]
pub struct Key {
    /// Section of the file, without brackets.
    pub section: &'static str,
    /// Name of the key within its section.
    pub name: &'static str,
    /// Full name, `section.name`.
    pub path: &'static str,
    /// Type and range of the value.
    pub kind: Kind,
    /// Value that applies if nothing else is configured.
    pub default: Preset,
    /// One line of help, without a final full stop.
    pub help: &'static str,
    /// Further sentences; may be empty. A line break starts a new paragraph.
    pub details: &'static str,
}

/// Type and range of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// The word `"auto"`, `true` or `false`.
    BoolOrAuto,
    /// A whole number within these limits, both included.
    Number {
        /// Least value.
        min: i64,
        /// Greatest value.
        max: i64,
    },
    /// The word `"auto"`, or a whole number within these limits, both included.
    NumberOrAuto {
        /// Least number.
        min: i64,
        /// Greatest number.
        max: i64,
    },
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Text; the section checks it further and this says what it accepts ("an absolute path").
    Text(&'static str),
    /// A list of texts, separated by commas outside the file; this says what the section accepts.
    List(&'static str),
}

/// A default value.
#[derive(Debug, Clone, Copy)]
pub enum Preset {
    /// Default of [`Kind::Bool`].
    Bool(bool),
    /// Default of [`Kind::Number`].
    Number(i64),
    /// Default of the kinds that are written as text.
    Text(&'static str),
    /// Default of [`Kind::List`].
    List(&'static [&'static str]),
}

impl Key {
    /// Command-line option without its dashes: `section-name`.
    #[must_use]
    pub fn option(&self) -> String {
        format!("{}-{}", self.section, self.name).replace('_', "-")
    }

    /// Environment variable: `HOPSACK_SECTION_NAME`.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("HOPSACK_{}_{}", self.section, self.name).to_uppercase()
    }

    /// Default as a TOML value.
    #[must_use]
    pub fn default_value(&self) -> Value {
        match self.default {
            Preset::Bool(value) => Value::Boolean(value),
            Preset::Number(value) => Value::Integer(value),
            Preset::Text(value) => Value::String(value.into()),
            Preset::List(items) => list(items.iter().copied()),
        }
    }

    /// What a value of this key may be, to follow "write".
    #[must_use]
    pub fn accepts(&self) -> String {
        match self.kind {
            Kind::Bool => "true or false".into(),
            Kind::BoolOrAuto => "true, false or \"auto\"".into(),
            Kind::Number { min, max } => format!("a whole number from {min} to {max}"),
            Kind::NumberOrAuto { min, max } => format!("a whole number from {min} to {max}, or \"auto\""),
            Kind::Choice(words) => {
                let (last, rest) = words.split_last().unwrap_or((&"", &[]));
                let rest: Vec<String> = rest.iter().map(|word| format!("\"{word}\"")).collect();
                format!("{} or \"{last}\"", rest.join(", "))
            }
            Kind::Text(accepts) | Kind::List(accepts) => accepts.into(),
        }
    }

    /// Whether a value of the file has this key's type. Its range is checked by
    /// [`Self::is_in_range`].
    pub(super) fn has_type(&self, value: &Value) -> bool {
        match self.kind {
            Kind::Bool => value.is_bool(),
            Kind::BoolOrAuto => value.is_bool() || value.is_str(),
            Kind::Number { .. } => value.is_integer(),
            Kind::NumberOrAuto { .. } => value.is_integer() || value.is_str(),
            Kind::Choice(_) | Kind::Text(_) => value.is_str(),
            Kind::List(_) => value.as_array().is_some_and(|items| items.iter().all(Value::is_str)),
        }
    }

    /// Whether a value of the right type is one that the row allows.
    pub(super) fn is_in_range(&self, value: &Value) -> bool {
        match self.kind {
            Kind::Number { min, max } => value.as_integer().is_some_and(|n| (min..=max).contains(&n)),
            Kind::NumberOrAuto { min, max } => {
                let number = value.as_integer().is_some_and(|n| (min..=max).contains(&n));
                number || value.as_str() == Some("auto")
            }
            Kind::BoolOrAuto => value.is_bool() || value.as_str() == Some("auto"),
            Kind::Choice(words) => value.as_str().is_some_and(|text| words.contains(&text)),
            Kind::Bool | Kind::Text(_) | Kind::List(_) => true,
        }
    }

    /// Text from an option or an environment variable, as a value of this key's type.
    pub(super) fn parse(&self, text: &str) -> Option<Value> {
        match self.kind {
            Kind::Bool => text.parse().ok().map(Value::Boolean),
            Kind::BoolOrAuto => {
                Some(text.parse().map_or_else(|_| Value::String(text.into()), Value::Boolean))
            }
            Kind::Number { .. } => text.parse().ok().map(Value::Integer),
            Kind::NumberOrAuto { .. } => {
                Some(text.parse().map_or_else(|_| Value::String(text.into()), Value::Integer))
            }
            Kind::Choice(_) | Kind::Text(_) => Some(Value::String(text.into())),
            Kind::List(_) => Some(list(text.split(',').map(str::trim))),
        }
    }
}

fn list<'a>(items: impl Iterator<Item = &'a str>) -> Value {
    Value::Array(items.map(|item| Value::String(item.to_owned())).collect())
}

/// Defines the rows of one section: a constant for each key, and `KEYS` with all of them in order.
macro_rules! keys {
    ($section:literal; $($id:ident = $name:literal, $kind:expr, $default:expr, $help:expr, $details:expr;)+) => {
        $(
            pub(super) const $id: $crate::config::key::Key = $crate::config::key::Key {
                section: $section,
                name: $name,
                path: concat!($section, ".", $name),
                kind: $kind,
                default: $default,
                help: $help,
                details: $details,
            };
        )+
        /// All keys of this section, in the order of the file.
        pub(super) const KEYS: &[&$crate::config::key::Key] = &[$(&$id),+];
    };
}
pub(super) use keys;
