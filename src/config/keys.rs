//! All configuration keys, section by section.
//!
//! It holds no row itself: each section's file does. It only puts the sections into their order.
#![forbid(unsafe_code)]

use super::key::Key;
use super::{dataplane, encryption, log, metrics, nat, node, overlay, store};

/// Keys of all sections, in the order of the file.
const SECTIONS: &[&[&Key]] = &[
    node::KEYS,
    store::KEYS,
    overlay::KEYS,
    dataplane::KEYS,
    encryption::KEYS,
    nat::KEYS,
    metrics::KEYS,
    log::KEYS,
];

/// Each key once, in the order of the file.
pub fn all() -> impl Iterator<Item = &'static Key> {
    SECTIONS.iter().copied().flatten().copied()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn defaults_pass_their_own_check() {
        for key in all() {
            let default = key.default_value();
            assert!(key.has_type(&default) && key.is_in_range(&default), "{}", key.path);
        }
    }

    #[test]
    fn no_two_keys_share_a_name() {
        for name in [|key: &Key| key.path.to_owned(), Key::option, Key::variable] {
            let names: BTreeSet<String> = all().map(name).collect();
            assert_eq!(names.len(), all().count());
        }
    }

    #[test]
    fn help_is_one_line_without_a_full_stop() {
        for key in all() {
            assert!(key.help.len() <= 100 && !key.help.ends_with('.'), "{}: {}", key.path, key.help);
            assert!(key.details.is_empty() || key.details.ends_with('.'), "{}: {}", key.path, key.details);
        }
    }
}
