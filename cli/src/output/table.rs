//! Tables for people: columns three spaces apart, names left, numbers right, `-` for what is missing.

use super::{Style, clean};

/// What stands for a value nobody knows.
pub const MISSING: &str = "-";
const GAP: &str = "   ";

/// A column's heading and the side its values stand on.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    heading: &'static str,
    right: bool,
}

impl Column {
    /// For names and text.
    pub const fn left(heading: &'static str) -> Self {
        Self { heading, right: false }
    }

    /// For numbers.
    pub const fn right(heading: &'static str) -> Self {
        Self { heading, right: true }
    }
}

/// One value, possibly one to notice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    text: String,
    tone: Tone,
}

/// How a value is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    #[default]
    Plain,
    Good,
    Warn,
    Bad,
    Faint,
}

impl Tone {
    pub fn paint(self, style: Style, text: &str) -> String {
        match self {
            Self::Plain => text.to_owned(),
            Self::Good => style.green(text),
            Self::Warn => style.yellow(text),
            Self::Bad => style.red(text),
            Self::Faint => style.dim(text),
        }
    }
}

impl Cell {
    pub fn missing() -> Self {
        Self { text: MISSING.to_owned(), tone: Tone::Plain }
    }

    #[must_use]
    pub fn tone(mut self, tone: Tone) -> Self {
        self.tone = tone;
        self
    }
}

/// Empty text is a missing value, too.
impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        let text = text.into();
        if text.is_empty() {
            return Self::missing();
        }
        Self { text: clean(&text).into_owned(), tone: Tone::Plain }
    }
}

/// A `Some` is the value, a `None` is missing.
pub fn optional<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> Cell {
    value.map_or_else(Cell::missing, |value| Cell::from(show(value)))
}

/// Rows under headings.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub fn new(columns: impl Into<Vec<Column>>) -> Self {
        Self { columns: columns.into(), rows: Vec::new() }
    }

    /// Adds a row; cells beyond the columns are not shown, lacking ones are missing values.
    pub fn row(&mut self, cells: impl Into<Vec<Cell>>) {
        let mut cells = cells.into();
        cells.resize_with(self.columns.len(), Cell::missing);
        self.rows.push(cells);
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table, each line ended.
    pub fn render(&self, style: Style) -> String {
        let widths: Vec<usize> = self
            .columns
            .iter()
            .enumerate()
            .map(|(at, column)| {
                let cells = self.rows.iter().map(|row| width(&row[at].text));
                cells.fold(width(column.heading), usize::max)
            })
            .collect();
        let mut text = String::new();
        let headings = self.columns.iter().map(|c| (c.heading, Tone::Plain));
        self.line(&mut text, &widths, style, headings);
        for row in &self.rows {
            self.line(&mut text, &widths, style, row.iter().map(|c| (c.text.as_str(), c.tone)));
        }
        text
    }

    fn line<'a>(
        &self,
        into: &mut String,
        widths: &[usize],
        style: Style,
        cells: impl Iterator<Item = (&'a str, Tone)>,
    ) {
        let last = widths.len().saturating_sub(1);
        for (at, (text, tone)) in cells.enumerate() {
            let padding = " ".repeat(widths[at] - width(text));
            let painted = tone.paint(style, text);
            if at > 0 {
                into.push_str(GAP);
            }
            match (self.columns[at].right, at == last) {
                (true, _) => into.extend([padding, painted]),
                (false, true) => into.push_str(&painted),
                (false, false) => into.extend([painted, padding]),
            }
        }
        into.push('\n');
    }
}

fn width(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_left_and_numbers_right() {
        let mut table =
            Table::new([Column::left("NAME"), Column::right("RPS"), Column::left("WHY")]);
        table.row([Cell::from("web"), Cell::from("1.5"), Cell::missing()]);
        table.row([Cell::from("checkout-v1"), Cell::from("120.0"), Cell::from("slow")]);
        let want =
            "NAME            RPS   WHY\nweb             1.5   -\ncheckout-v1   120.0   slow\n";
        assert_eq!(table.render(Style::default()), want);
    }

    #[test]
    fn colour_does_not_count_as_width() {
        let mut table = Table::new([Column::left("A"), Column::left("B")]);
        table.row([Cell::from("x").tone(Tone::Bad), Cell::from("y")]);
        let text = table.render(Style { colour: true });
        assert_eq!(text, "A   B\n\x1b[31mx\x1b[0m   y\n");
    }
}
