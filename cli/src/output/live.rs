//! Repainting a terminal in place, with plain ANSI sequences.

use std::io;

use super::Ui;

/// A view that is painted again and again. On a terminal it takes the alternate screen and gives it back when
/// dropped; on a pipe each painting is printed below the last.
#[derive(Debug)]
pub struct Live {
    ui: Ui,
    painted: bool,
}

impl Live {
    pub fn new(ui: &Ui) -> Self {
        Self { ui: ui.clone(), painted: false }
    }

    /// Shows `text` in place of what was shown before, cut to the terminal's size.
    pub fn paint(&mut self, text: &str) -> io::Result<()> {
        if !self.ui.out_tty {
            let gap = if self.painted { "\n" } else { "" };
            self.painted = true;
            return self.ui.print(&format!("{gap}{text}"));
        }
        // Alternate screen, no cursor: only once.
        let enter = if self.painted { "" } else { "\x1b[?1049h\x1b[?25l" };
        self.painted = true;
        let (width, height) = terminal_size();
        let mut screen = format!("{enter}\x1b[H");
        for line in text.lines().take(height.saturating_sub(1)) {
            screen += &cut(line, width);
            screen += "\x1b[K\r\n";
        }
        screen += "\x1b[J";
        self.ui.print(&screen)
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if self.painted && self.ui.out_tty {
            let _ = self.ui.print("\x1b[?25h\x1b[?1049l");
        }
    }
}

/// Columns and rows of the terminal on stdout; 80 × 24 if it does not tell.
fn terminal_size() -> (usize, usize) {
    match rustix::termios::tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
        _ => (80, 24),
    }
}

/// The first `width` visible characters; escape sequences are kept and don't count.
fn cut(line: &str, width: usize) -> String {
    let (mut kept, mut visible, mut escape) = (String::new(), 0, false);
    for c in line.chars() {
        if escape {
            escape = !c.is_ascii_alphabetic();
            kept.push(c);
        } else if c == '\x1b' {
            escape = true;
            kept.push(c);
        } else if visible < width {
            visible += 1;
            kept.push(c);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_without_losing_the_end_of_a_colour() {
        assert_eq!(cut("a\x1b[31mbcd\x1b[0me", 3), "a\x1b[31mbc\x1b[0m");
        assert_eq!(cut("short", 80), "short");
    }
}
