//! The writer behind the log: each event is one line, whatever is in its fields.

use std::io::{Error, Write};

use crate::api::{is_unfit, shown_lines};

/// Standard error, as the log writes to it.
#[derive(Debug, Clone, Copy)]
pub struct LogLines {
    /// Whether lines are JSON.
    pub json: bool,
    /// Whether lines are coloured by escape sequences. tracing escapes those of others itself.
    pub colour: bool,
}

impl LogLines {
    /// The line of an event with escapes for unfit characters.
    fn line(self, event: &str) -> String {
        let (body, end) = event.strip_suffix('\n').map_or((event, ""), |body| (body, "\n"));
        let is_kept = |c: char| !is_unfit(c) || self.colour && c == '\u{1b}';
        if body.chars().all(is_kept) {
            return event.to_owned();
        }
        let escaped = |c: char| match c {
            c if is_kept(c) => c.to_string(),
            '\n' => "\\n".to_owned(),
            c => shown_lines(c.encode_utf8(&mut [0; 4]), self.json).into_owned(),
        };
        body.chars().map(escaped).collect::<String>() + end
    }
}

impl Write for LogLines {
    /// Takes a whole event: tracing's formatter writes each event at once.
    fn write(&mut self, event: &[u8]) -> Result<usize, Error> {
        let line = self.line(&String::from_utf8_lossy(event));
        std::io::stderr().write_all(line.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> Result<(), Error> {
        std::io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_is_one_line_without_escape_sequences() {
        let lines = LogLines { json: false, colour: false };
        assert_eq!(lines.line("INFO a\nERROR forged\u{1b}[2J\n"), "INFO a\\nERROR forged\\u{1b}[2J\n");
        assert_eq!(lines.line("INFO fine\n"), "INFO fine\n");
        let json = LogLines { json: true, colour: false };
        assert_eq!(json.line("{\"a\":\"\u{9b}\"}\n"), "{\"a\":\"\\u009b\"}\n");
    }
}
