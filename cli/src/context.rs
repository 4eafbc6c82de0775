//! What every command gets besides its arguments.

use crate::args::Global;
use crate::error::CliError;
use crate::output::Ui;
use crate::state_dir::StateRoot;

/// Which mesh is meant, where local meshes live, and where to print.
#[derive(Debug)]
pub struct Context {
    pub global: Global,
    pub state: StateRoot,
    pub ui: Ui,
}

impl Context {
    pub(crate) fn of_process(global: Global, ui: Ui) -> Result<Self, CliError> {
        Ok(Self {
            global,
            state: StateRoot::of_process(),
            ui,
        })
    }
}
