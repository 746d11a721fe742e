//! Tables and times for people. For programs there is `--json`.

use jiff::Timestamp;

/// Lays out rows under a header, columns two spaces apart. Without rows there is the header alone.
pub(crate) fn table<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([header[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |cells: [&str; N]| {
        let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let rows = rows.iter().map(|row| line(std::array::from_fn(|column| printable(&row[column]))));
    std::iter::once(line(header)).chain(rows).collect::<Vec<_>>().join("\n")
}

/// Cells come from users; control characters in them must not reach the terminal. They are not shown at all.
fn printable(cell: &str) -> &str {
    if cell.chars().any(char::is_control) { "?" } else { cell }
}

/// A span of time in its largest unit: `45s`, `12m`, `3h`, `2d`.
pub(super) fn span(seconds: i64) -> String {
    match seconds.max(0) {
        s @ 0..60 => format!("{s}s"),
        s @ 60..3600 => format!("{}m", s / 60),
        s @ 3600..86_400 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
}

/// How long ago.
pub(super) fn age(time: Timestamp, now: Timestamp) -> String {
    format!("{} ago", span(now.as_second() - time.as_second()))
}

/// How long from now.
pub(super) fn remaining(time: Timestamp, now: Timestamp) -> String {
    format!("in {}", span(time.as_second() - now.as_second()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_lines_end_without_blanks() {
        let row = |a: &str, b: &str, c: &str| [a.to_owned(), b.to_owned(), c.to_owned()];
        let rows = [row("iabc", "running", "a=b"), row("i", "paused", ""), row("ix", "\u{1b}[31m", "naïve")];
        insta::assert_snapshot!(table(["ID", "STATE", "METADATA"], &rows));
        assert_eq!(table(["ID"], &[]), "ID");
    }

    #[test]
    fn times_are_told_in_their_largest_unit() {
        let shown = [-5, 0, 59, 60, 3599, 3600, 86_399, 86_400, 10 * 86_400].map(span);
        assert_eq!(shown, ["0s", "0s", "59s", "1m", "59m", "1h", "23h", "1d", "10d"]);
    }
}
