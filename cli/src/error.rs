//! How a command fails: the kind decides the exit code, the message names the object, the hint the next command.

use std::io;
use std::process::ExitCode;

use crate::output::{Ui, clean_lines};

/// The kinds of failure a script can tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The command failed, or found what it was asked to look for.
    Failed,
    /// What was named is not there.
    Missing,
    /// The command line makes no sense.
    Usage,
    /// The mesh can't be reached, or does not let us.
    Unreachable,
    /// What was waited for did not come.
    TimedOut,
    /// The user stopped it.
    Interrupted,
    /// Who read our output has gone: nobody is left to be told.
    OutputClosed,
}

impl Kind {
    fn exit_code(self) -> u8 {
        match self {
            Self::OutputClosed => 0,
            Self::Failed | Self::Missing => 1,
            Self::Usage => 2,
            Self::Unreachable => 3,
            Self::TimedOut => 4,
            Self::Interrupted => 130,
        }
    }
}

/// Why a command failed. The message is one line without a full stop at its end.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct CliError {
    pub kind: Kind,
    pub message: String,
    /// What to do now, usually a command.
    pub hint: Option<String>,
}

impl CliError {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None }
    }

    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message)
    }

    pub fn missing(message: impl Into<String>) -> Self {
        Self::new(Kind::Missing, message)
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    pub fn unreachable(message: impl Into<String>) -> Self {
        Self::new(Kind::Unreachable, message)
    }

    pub fn timed_out(message: impl Into<String>) -> Self {
        Self::new(Kind::TimedOut, message)
    }

    pub fn interrupted() -> Self {
        Self::new(Kind::Interrupted, "interrupted")
    }

    /// Adds the next step.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.kind.exit_code())
    }

    /// Tells the user on stderr and returns the exit code.
    pub fn report(&self, ui: &mut Ui) -> ExitCode {
        if !matches!(self.kind, Kind::OutputClosed | Kind::Interrupted) {
            let label = ui.err_style.red("error:");
            // Both may hold words of a server or of a manifest.
            ui.note(&format!("{label} {}", clean_lines(&self.message)));
            if let Some(hint) = &self.hint {
                ui.note(&format!("  try: {}", clean_lines(hint)));
            }
        }
        self.exit_code()
    }
}

/// The cause that says most.
pub fn innermost<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> &'a (dyn std::error::Error + 'static) {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause
}

impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::new(Kind::OutputClosed, "the output was closed"),
            _ => Self::failed(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Captured;

    #[test]
    fn words_of_others_do_not_steer_the_terminal() {
        let err = Captured::default();
        let mut ui = Ui::plain(io::sink(), err.clone());
        CliError::failed("no\x1b[2J\n  line").hint("a\rb").report(&mut ui);
        assert_eq!(err.text(), "error: no\\u{1b}[2J\n  line\n  try: a\\rb\n");
    }
}
