//! The configuration file with every key at its default: `hopsack config --default`,
//! `configs/hopsack.toml`.
//!
//! Invariant: loading the template gives the defaults (test `template_is_the_defaults`).
#![forbid(unsafe_code)]

use std::fmt::Write;

use super::key::Key;
use super::keys;

/// Width of the comments.
const COLUMNS: usize = 100;

const HEAD: &str = "\
# hopsack.toml: configuration of this node. Every key is optional and is shown with its default.
# Each key is also an option of `hopsack run` (--overlay-port 8285) and an environment variable
# (HOPSACK_OVERLAY_PORT=8285). An option wins over the environment, and the environment over this file.
# `hopsack config` prints the effective values and where each was set. This file is the output of
# `hopsack config --default`.
";

/// The file's text.
#[must_use]
pub fn template() -> String {
    let mut text = String::from(HEAD);
    let mut section = "";
    for key in keys::all() {
        if key.section != section {
            section = key.section;
            write!(text, "\n[{section}]").expect("a String takes everything");
        }
        write!(text, "\n{}{} = {}\n", comment(key), key.name, key.default_value())
            .expect("a String takes everything");
    }
    text
}

fn comment(key: &Key) -> String {
    let mut text = String::new();
    let accepts = format!("Write {}.", key.accepts());
    let paragraphs = [key.help].into_iter().map(|help| format!("{help}."));
    let paragraphs = paragraphs.chain(key.details.lines().map(str::to_owned)).chain([accepts]);
    for paragraph in paragraphs {
        wrap(&mut text, &paragraph);
    }
    text
}

/// Appends a paragraph as comment lines. Further lines of a paragraph are indented.
fn wrap(text: &mut String, paragraph: &str) {
    let mut line = String::from("#");
    for word in paragraph.split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > COLUMNS {
            text.push_str(&line);
            text.push('\n');
            line = String::from("#  ");
        }
        line.push(' ');
        line.push_str(word);
    }
    text.push_str(&line);
    text.push('\n');
}
