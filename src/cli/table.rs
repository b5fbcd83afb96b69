//! A table for people: columns as wide as their widest cell, two spaces between.

use std::fmt;

use crate::api::shown;

/// Rows of text. The last column is never padded.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// With a headline, or none if it is empty.
    pub(super) fn new(headline: &[&str]) -> Self {
        let mut table = Self { rows: Vec::new() };
        if !headline.is_empty() {
            table.row(headline);
        }
        table
    }

    pub(super) fn row(&mut self, cells: &[&str]) {
        self.rows.push(cells.iter().map(|cell| shown(cell).into_owned()).collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells =
                self.rows.iter().filter(|row| row.len() > column + 1).map(|row| row[column].chars().count());
            cells.max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line += &format!("{cell:width$}  ");
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_or_hostile_cells_are_shown() {
        let mut table = Table::new(&[]);
        table.row(&[&"x".repeat(100_000), "a\nb\u{1b}[2J"]);
        let text = table.to_string();
        assert!(text.len() < 5000 && text.lines().count() == 1 && !text.contains('\u{1b}'));
    }

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["A", "LONGER"]);
        table.row(&["wide cell", "x"]);
        table.row(&["a sentence that stands alone and does not widen the columns"]);
        assert_eq!(
            table.to_string(),
            "A          LONGER\nwide cell  x\na sentence that stands alone and does not widen the columns\n"
        );
    }
}
