//! Report file: one JSON document in which each row (a cell, a limit) is one line. Pure.
//!
//! The rows make a kept report short and let `diff` and `grep` work on it. Any JSON reader reads
//! it.
//!
//! Invariant: reading what was written gives the same report.

use std::io;

use serde::Serialize;

use super::report::Report;

/// The report as a JSON document with one row in each line.
#[must_use]
pub fn to_json(report: &Report) -> String {
    let Report { machine, plan, cells, disturbed, unmeasured, limits } = report;
    format!(
        "{{\n\"machine\": {},\n\"plan\": {},\n\"cells\": {},\n\"disturbed\": {},\n\"unmeasured\": {},\n\"limits\": {}\n}}\n",
        line(machine),
        line(plan),
        rows(cells),
        line(disturbed),
        rows(unmeasured),
        rows(limits),
    )
}

/// Reads what [`to_json`] wrote, or any JSON document with the same content.
///
/// # Errors
/// The text is not such a document.
pub fn from_json(text: &str) -> io::Result<Report> {
    serde_json::from_str(text).map_err(io::Error::other)
}

fn rows<T: Serialize>(rows: &[T]) -> String {
    let lines: Vec<String> = rows.iter().map(line).collect();
    if lines.is_empty() { "[]".into() } else { format!("[\n{}\n]", lines.join(",\n")) }
}

/// One value in one line. The report's types contain only numbers, strings and lists of them, so
/// this cannot fail; `null` would make reading fail.
fn line<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "null".into())
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn written_report_is_read_back() {
        let report = report();
        let text = to_json(&report);
        assert_eq!(from_json(&text).unwrap(), report);
        let cells = text.lines().filter(|line| line.contains("\"samples\"")).count();
        assert_eq!(cells, report.cells.len(), "one row in each line");
    }

    #[test]
    fn text_that_is_not_a_report_is_refused() {
        assert!(from_json("{}").is_err());
    }
}
