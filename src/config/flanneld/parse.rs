//! flanneld's flags as they were given, in Go's syntax or by environment variables.
#![forbid(unsafe_code)]

use super::error::FlagError;
use super::flags::{FLAGS, Flag, Kind};

/// A flag that was given.
#[derive(Debug)]
pub(super) struct Given {
    pub flag: &'static Flag,
    pub value: String,
    /// The flag as it was written, for messages.
    pub written: String,
}

/// Reads Go's syntax: `-x`, `--x`, `-x=v`, and `-x v` unless `x` is a `bool`. `None`: help was
/// asked for.
pub(super) fn parse(args: &[String]) -> Result<Option<Vec<Given>>, FlagError> {
    let mut given = Vec::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let Some(text) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else {
            return Err(FlagError::NotAFlag(arg.clone()));
        };
        let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
        if matches!(name, "h" | "help") {
            return Ok(None);
        }
        let flag = FLAGS.iter().find(|flag| flag.name == name);
        let flag = flag.ok_or_else(|| FlagError::Unknown(arg.clone()))?;
        let (value, written) = match (value, flag.kind) {
            (Some(value), _) => (value.to_owned(), arg.clone()),
            (None, Kind::Bool) => ("true".to_owned(), arg.clone()),
            (None, Kind::Text | Kind::Number) => {
                let value = args.next().ok_or_else(|| FlagError::NoValue(arg.clone()))?;
                (value.clone(), format!("{arg} {value}"))
            }
        };
        given.push(Given { flag, value, written });
    }
    Ok(Some(given))
}

/// Adds what only the environment sets: the command line wins, as in flanneld.
pub(super) fn add_environment(given: &mut Vec<Given>, environment: &[(String, String)]) {
    for flag in FLAGS {
        let variable = flag.variable();
        let set = environment.iter().find(|(name, value)| *name == variable && !value.is_empty());
        let is_given = given.iter().any(|other| other.flag.name == flag.name);
        if let (Some((_, value)), false) = (set, is_given) {
            given.push(Given { flag, value: value.clone(), written: format!("{variable}={value}") });
        }
    }
}

/// Checks the type of a value.
pub(super) fn check(given: &Given) -> Result<(), FlagError> {
    let number = given.value.parse::<i64>();
    let expected = match given.flag.kind {
        Kind::Bool if boolean(&given.value).is_none() => "true or false",
        Kind::Number if number.is_err() => "a whole number",
        Kind::Bool | Kind::Text | Kind::Number => {
            let is_margin = given.flag.name == "subnet-lease-renew-margin";
            if !is_margin || number.is_ok_and(|minutes| (1..1440).contains(&minutes)) {
                return Ok(());
            }
            "minutes, from 1 to 1439"
        }
    };
    Err(FlagError::BadValue { given: given.written.clone(), expected })
}

/// A truth value, as Go's `strconv.ParseBool` reads it.
pub(super) fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}
