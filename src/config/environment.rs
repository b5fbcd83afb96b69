//! Environment variables that begin with `HOPSACK_`: each must belong to a key.
//!
//! A misspelt variable would otherwise be ignored silently. Variables of the lab, the tests and
//! the benches are accepted, and so are those that Kubernetes sets in each pod for a Service with
//! a name that begins with "hopsack".
#![forbid(unsafe_code)]

use super::error::ConfigError;
use super::key::Key;

/// Prefix of all variables.
const PREFIX: &str = "HOPSACK_";
/// Beginnings of variables that the lab, the tests and the benches read, behind the prefix.
const OTHERS: [&str; 8] = ["LAB", "TESTS", "BENCH_", "SOAK_", "SECONDS", "CHANGES", "LEASES", "OLD"];

/// Refuses a variable that belongs to no key.
pub(super) fn check(keys: &[&'static Key], environment: &[(String, String)]) -> Result<(), ConfigError> {
    for (name, value) in environment {
        let Some(rest) = name.strip_prefix(PREFIX) else { continue };
        let is_known = keys.iter().any(|key| key.variable() == *name);
        let is_other = OTHERS.iter().any(|other| rest.starts_with(other));
        if !is_known && !is_other && !is_service(rest, value) {
            let hint = match nearest(keys, name) {
                Some(variable) => format!("write {variable}, or unset it"),
                None => "unset it; `hopsack run --help` lists all variables".to_owned(),
            };
            return Err(ConfigError::Variable { name: name.clone(), hint });
        }
    }
    Ok(())
}

/// Whether Kubernetes sets a variable of this name and value for a Service
/// (`HOPSACK_SERVICE_HOST`, `HOPSACK_PORT=tcp://10.96.0.7:80`, `HOPSACK_PORT_80_TCP_ADDR`).
fn is_service(rest: &str, value: &str) -> bool {
    let words: Vec<&str> = rest.split('_').collect();
    let has_protocol = words.iter().any(|word| ["TCP", "UDP", "SCTP"].contains(word));
    let is_link = words.contains(&"PORT") && (value.contains("://") || has_protocol);
    rest.contains("SERVICE_HOST") || rest.contains("SERVICE_PORT") || is_link
}

/// The variable of a key that differs in few letters.
fn nearest(keys: &[&'static Key], name: &str) -> Option<String> {
    let near = |key: &&Key| {
        let variable = key.variable();
        let same = variable.chars().zip(name.chars()).take_while(|(a, b)| a == b).count();
        let reversed = variable.chars().rev().zip(name.chars().rev());
        let tail = reversed.take_while(|(a, b)| a == b).count();
        let differing = variable.len().max(name.len()).saturating_sub(same + tail);
        (differing <= 3).then_some((differing, variable))
    };
    keys.iter().filter_map(near).min().map(|(_, variable)| variable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keys;

    fn refused(name: &str, value: &str) -> Option<String> {
        let keys: Vec<&Key> = keys::all().collect();
        check(&keys, &[(name.to_owned(), value.to_owned())]).err().map(|error| error.to_string())
    }

    #[test]
    fn misspelt_variable_is_refused() {
        let hint = refused("HOPSACK_OVERLAY_PROT", "9").expect("refused");
        assert!(hint.contains("HOPSACK_OVERLAY_PORT"), "{hint}");
        assert!(refused("HOPSACK_OVRELAY_MTU", "1400").is_some());
        assert!(refused("HOPSACK_PORT", "8285").is_some());
        for (name, value) in [
            ("HOPSACK_OVERLAY_PORT", "9"),
            ("HOPSACK_LAB", "x"),
            ("HOPSACK_TESTS", "1"),
            ("HOPSACK_BENCH_SECONDS", "1"),
            ("HOPSACK_SERVICE_HOST", "10.96.0.7"),
            ("HOPSACK_NODE_SERVICE_PORT_METRICS", "9285"),
            ("HOPSACK_PORT", "tcp://10.96.0.7:9285"),
            ("HOPSACK_PORT_9285_TCP_ADDR", "10.96.0.7"),
        ] {
            assert_eq!(refused(name, value), None, "{name}");
        }
    }
}
