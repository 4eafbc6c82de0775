//! What every command gets besides its arguments.

use jiff::tz::TimeZone;

use crate::args::Global;
use crate::output::Ui;
use crate::state_dir::StateRoot;

/// Which mesh is meant, where local meshes live, where to print, and in which time zone.
#[derive(Debug)]
pub struct Context {
    pub global: Global,
    pub state: StateRoot,
    pub ui: Ui,
    pub zone: TimeZone,
}

impl Context {
    pub fn of_process(global: Global, ui: Ui) -> Self {
        Self { global, state: StateRoot::of_process(), ui, zone: TimeZone::system() }
    }
}
