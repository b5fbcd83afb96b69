//! JSON objects as Go's `encoding/json` reads them: names match without regard to case.
#![forbid(unsafe_code)]

use serde_json::{Map, Value};

/// A member by name: the exact spelling first, then any other.
pub(super) fn field<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let folded = || object.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value);
    object.get(name).or_else(folded)
}
