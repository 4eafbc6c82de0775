//! Checks of a cluster: its API server, what an installation needs, and what one consists of.

pub(super) mod api;
pub(super) mod control_plane;
pub(super) mod definitions;
pub(super) mod pre;
pub(super) mod rights;
pub(super) mod webhook;
mod words;

pub(super) use words::in_cluster;

use super::catalog::Outcome;
use super::scene::Scene;
use crate::cluster::Cluster;
use crate::error::{CliError, Kind};

/// The cluster; checks of it run only where there is one.
fn of(scene: &Scene) -> Result<&Cluster, Outcome> {
    scene.cluster().ok_or_else(|| Outcome::Skipped("there is no cluster".to_owned()))
}

/// What an error of the API server means for a check: who may not look has found nothing.
fn refused(error: &CliError) -> Outcome {
    if error.kind == Kind::Unreachable && error.message.starts_with("not allowed") {
        return Outcome::Skipped(error.message.clone());
    }
    Outcome::failed(error.message.clone(), error.hint.clone().unwrap_or_default())
}
