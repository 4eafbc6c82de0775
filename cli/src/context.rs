//! What every command gets besides its arguments.

use jiff::tz::TimeZone;

use crate::args::Global;
use crate::cluster::KubeFiles;
use crate::output::Ui;
use crate::state_dir::StateRoot;

/// Which mesh is meant, where local meshes live and clusters are found, where to print, and in which time zone.
#[derive(Debug)]
pub struct Context {
    pub global: Global,
    pub state: StateRoot,
    pub kube: KubeFiles,
    pub ui: Ui,
    pub zone: TimeZone,
}

impl Context {
    pub fn of_process(global: Global, ui: Ui) -> Self {
        Self {
            global,
            state: StateRoot::of_process(),
            kube: KubeFiles::OfProcess,
            ui,
            zone: TimeZone::system(),
        }
    }
}
