//! Where and how commands print: stdout for results, stderr for what is said about them.
//!
//! [`table`] lays out what people read, [`format`](mod@format) is for programs, [`live`] repaints a terminal.

pub mod format;
pub mod live;
pub mod table;

pub use format::Format;
pub use table::{Cell, Column, Table};

use std::borrow::Cow;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};

type Sink = Arc<Mutex<dyn Write + Send>>;

/// The two streams of a command and what they can do. Cheap to clone.
#[derive(Clone)]
pub struct Ui {
    out: Sink,
    err: Sink,
    /// Colour on stdout and stderr: only on a terminal, and never under `NO_COLOR`.
    pub out_style: Style,
    pub err_style: Style,
    /// Whether progress and live views make sense.
    pub out_tty: bool,
    pub err_tty: bool,
}

impl Ui {
    /// The process's own stdout and stderr.
    pub fn of_process() -> Self {
        let (out_tty, err_tty) = (io::stdout().is_terminal(), io::stderr().is_terminal());
        let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        Self {
            out: Arc::new(Mutex::new(io::stdout())),
            err: Arc::new(Mutex::new(io::stderr())),
            out_style: Style { colour: colour && out_tty },
            err_style: Style { colour: colour && err_tty },
            out_tty,
            err_tty,
        }
    }

    /// Writes to these instead, without colour: what a pipe would get.
    pub fn plain(out: impl Write + Send + 'static, err: impl Write + Send + 'static) -> Self {
        Self {
            out: Arc::new(Mutex::new(out)),
            err: Arc::new(Mutex::new(err)),
            out_style: Style::default(),
            err_style: Style::default(),
            out_tty: false,
            err_tty: false,
        }
    }

    /// Prints text as it is and flushes, so that a pipe's reader sees it at once.
    pub fn print(&mut self, text: &str) -> io::Result<()> {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    /// Prints one line.
    pub fn line(&mut self, text: &str) -> io::Result<()> {
        self.print(&format!("{text}\n"))
    }

    /// Says something on stderr. That nobody listens there is no reason to fail.
    pub fn note(&mut self, text: &str) {
        let mut err = self.err.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = writeln!(err, "{text}");
    }
}

impl Ui {
    /// Shows what is being done, on a terminal only; gone when dropped.
    #[must_use]
    pub fn progress(&self, text: &str) -> Progress {
        let progress = Progress { ui: self.clone() };
        progress.write(&format!("\r\x1b[K{} …", clean(text)));
        progress
    }
}

/// A line on stderr that tells what is being done. On a pipe there is none.
#[derive(Debug)]
pub struct Progress {
    ui: Ui,
}

impl Progress {
    fn write(&self, text: &str) {
        if self.ui.err_tty {
            let mut err = self.ui.err.lock().unwrap_or_else(PoisonError::into_inner);
            // That it can't be shown is no reason to fail.
            let _ = err.write_all(text.as_bytes()).and_then(|()| err.flush());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.write("\r\x1b[K");
    }
}

impl fmt::Debug for Ui {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ui")
            .field("out_tty", &self.out_tty)
            .field("err_tty", &self.err_tty)
            .finish_non_exhaustive()
    }
}

/// Colours text, or leaves it alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Style {
    colour: bool,
}

impl Style {
    pub fn red(self, text: &str) -> String {
        self.wrap("31", text)
    }

    pub fn green(self, text: &str) -> String {
        self.wrap("32", text)
    }

    pub fn yellow(self, text: &str) -> String {
        self.wrap("33", text)
    }

    pub fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    pub fn dim(self, text: &str) -> String {
        self.wrap("2", text)
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Text from the network or the cluster, made harmless for a terminal and for a comment: what steers, ends a line for
/// some reader of YAML, or turns the direction of writing is written out.
pub fn clean(text: &str) -> Cow<'_, str> {
    clean_but(text, &[])
}

/// The same for text of several lines, which stays so.
pub fn clean_lines(text: &str) -> Cow<'_, str> {
    clean_but(text, &['\n'])
}

fn clean_but<'a>(text: &'a str, kept: &[char]) -> Cow<'a, str> {
    let harms = |c: char| {
        let unseen = matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}')
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        (c.is_control() || unseen) && !kept.contains(&c)
    };
    if !text.contains(harms) {
        return text.into();
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if harms(c) { safe.extend(c.escape_default()) } else { safe.push(c) }
    }
    safe.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_others_can_not_steer_the_terminal() {
        assert_eq!(clean("/a\x1b[2J\n"), "/a\\u{1b}[2J\\n");
        assert_eq!(clean("/grüße → x"), "/grüße → x");
        // The ends of lines that only some programs know, and what turns the direction of writing.
        for unseen in [
            '\u{85}', '\u{2028}', '\u{2029}', '\u{feff}', '\u{202a}', '\u{202e}', '\u{2066}',
            '\u{2069}',
        ] {
            let code = u32::from(unseen);
            assert_eq!(clean(&format!("/a{unseen}b")), format!("/a\\u{{{code:x}}}b"));
        }
        assert_eq!(clean_lines("one\n\x1b[2Jtwo\r\n"), "one\n\\u{1b}[2Jtwo\\r\n");
    }

    #[test]
    fn progress_shows_no_text_of_others_as_it_is() {
        let shown = crate::testing::Captured::default();
        let mut ui = Ui::plain(io::sink(), shown.clone());
        ui.err_tty = true;
        drop(ui.progress("waiting: \x1b]0;x\x07"));
        assert_eq!(shown.text(), "\r\x1b[Kwaiting: \\u{1b}]0;x\\u{7} …\r\x1b[K");
    }

    #[test]
    fn colour_is_only_where_it_is_wanted() {
        assert_eq!(Style { colour: true }.red("no"), "\x1b[31mno\x1b[0m");
        assert_eq!(Style::default().red("no"), "no");
    }
}
