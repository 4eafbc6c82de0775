//! Nothing is done to a cluster without a yes.

use std::io::IsTerminal;

use crate::error::CliError;
use crate::output::Ui;

/// Asks whether to go on, unless `yes` says so already.
pub fn confirm(question: &str, yes: bool, ui: &mut Ui) -> Result<(), CliError> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(
            CliError::usage("nobody is there to be asked").hint("-y goes on without a question")
        );
    }
    ui.note(&format!("{question} [y/N]"));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if matches!(answer.trim().to_lowercase().as_str(), "y" | "yes") {
        return Ok(());
    }
    Err(CliError::interrupted())
}
