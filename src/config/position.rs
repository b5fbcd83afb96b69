//! Positions in a TOML text, for messages about it.
#![forbid(unsafe_code)]

/// Line and column of a byte offset in a text, both counted from 1, the column in characters.
#[must_use]
pub fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    (line, column)
}

/// A TOML error as one line.
#[must_use]
pub fn one_line(error: &toml::de::Error) -> String {
    error.message().trim().replace('\n', ", ")
}
