//! Text of others (names, keys, errors of a server) made fit for terminals, logs and lists.
//!
//! A control character could move the cursor, forge a line or change the direction of text. Such
//! characters are shown as escapes, and long text is cut.
//!
//! Invariant: [`shown`] returns at most [`MOST`] characters and `...`, and none of them is
//! [`is_unfit`].
#![forbid(unsafe_code)]

use std::borrow::Cow;

/// Longest name of a host, in bytes: that of a DNS name (RFC 1123).
pub const LONGEST_NAME: usize = 253;
/// Longest text that is shown whole, in characters.
const MOST: usize = 2000;

/// Whether `text` can be the name or the id of a host: letters, digits and `-_.:@`.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let is_fit = |c: char| c.is_alphanumeric() || "-_.:@".contains(c);
    (1..=LONGEST_NAME).contains(&text.len()) && text.chars().all(is_fit)
}

/// Whether a character is never shown as it is: control characters, and those that have no shape
/// or change the direction of text.
#[must_use]
pub fn is_unfit(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
        )
}

/// The text with escapes for unfit characters, cut if it is long.
#[must_use]
pub fn shown(text: &str) -> Cow<'_, str> {
    let is_long = text.chars().nth(MOST).is_some();
    if !is_long && !text.chars().any(is_unfit) {
        return Cow::Borrowed(text);
    }
    let (mut out, mut count) = (String::new(), 0);
    for c in text.chars() {
        let escaped: String = if is_unfit(c) { c.escape_default().collect() } else { c.to_string() };
        count += escaped.chars().count();
        if count > MOST {
            out.push_str("...");
            break;
        }
        out.push_str(&escaped);
    }
    Cow::Owned(out)
}

/// The lines of a text, with escapes for all unfit characters but line breaks. `json`: the escapes
/// are those of JSON strings.
#[must_use]
pub fn shown_lines(text: &str, json: bool) -> Cow<'_, str> {
    let is_kept = |c: char| c == '\n' || !is_unfit(c);
    if text.chars().all(is_kept) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_kept(c) {
            out.push(c);
        } else if json {
            let mut units = [0; 2];
            out.extend(c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")));
        } else {
            out.extend(c.escape_default());
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_bounded_and_plain() {
        for name in ["h1", "node-7.example.com", "192.0.2.1", "2001:db8::1", "knoten-\u{e4}"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "two words", "a\nb", "a\u{1b}[2J", "a\u{202e}b", "a\u{9b}b", "a/b", "a\"b"] {
            assert!(!is_name(name), "{name:?}");
        }
        assert!(!is_name(&"a".repeat(LONGEST_NAME + 1)));
    }

    #[test]
    fn escape_sequences_and_line_breaks_are_escaped() {
        assert_eq!(shown("a\u{1b}[2J\nb"), "a\\u{1b}[2J\\nb");
        assert_eq!(shown_lines("a\u{9b}\nb", false), "a\\u{9b}\nb");
        assert_eq!(shown_lines("\"\u{9b}\u{e0001}\"\n", true), "\"\\u009b\\udb40\\udc01\"\n");
    }

    proptest! {
        #[test]
        fn shown_text_is_fit_and_short(text in any::<String>(), times in 1usize..400) {
            let text = text.repeat(times);
            let shown = shown(&text);
            prop_assert!(!shown.chars().any(is_unfit));
            prop_assert!(shown.chars().count() <= MOST + 3);
            let lines = shown_lines(&text, false);
            prop_assert!(lines.chars().all(|c| c == '\n' || !is_unfit(c)));
        }
    }
}
