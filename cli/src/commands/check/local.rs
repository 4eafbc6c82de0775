//! Checks of the local mesh as processes and files.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::SystemTime;

use super::catalog::{Finding, Outcome};
use super::scene::Scene;
use crate::units;

/// 2025-01-01: no release of this program is older.
const OLDEST: u64 = 1_735_689_600;

pub(super) async fn supervisor(scene: Arc<Scene>) -> Outcome {
    match scene.dir() {
        Ok(dir) => Outcome::Passed(format!("\"{}\"", dir.name)),
        Err(error) => Outcome::failed(error.to_string(), error.hint.clone().unwrap_or_default()),
    }
}

pub(super) async fn state_dir(scene: Arc<Scene>) -> Outcome {
    let Ok(dir) = scene.dir() else { return Outcome::Skipped("no mesh is running".to_owned()) };
    let path = dir.path.display();
    match fs::metadata(&dir.path) {
        Err(error) => Outcome::failed(
            format!("can't read {path}: {error}"),
            "meshctl local down, then start it again",
        ),
        Ok(found) if found.permissions().mode() & 0o077 != 0 => Outcome::Failed(Finding {
            message: "others can enter the state directory".to_owned(),
            objects: vec![format!("{path} has mode {:o}", found.permissions().mode() & 0o777)],
            remedy: format!("chmod 700 {path}"),
        }),
        Ok(_) => Outcome::passed(),
    }
}

/// Windows of figures and, later, certificates depend on it.
pub(super) async fn clock(scene: Arc<Scene>) -> Outcome {
    const REMEDY: &str = "set the clock, then restart the mesh";
    let now = SystemTime::now();
    let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    if since_epoch < OLDEST {
        return Outcome::failed("the clock says that it is before 2025", REMEDY);
    }
    let started =
        scene.dir().ok().and_then(|dir| fs::metadata(dir.lock_file()).ok()?.modified().ok());
    // A few seconds are what time synchronisation may take back.
    let ahead =
        started.and_then(|started| started.duration_since(now).ok()).map_or(0, |d| d.as_secs());
    if ahead > 5 {
        let message =
            format!("the mesh was started {} from now: the clock has gone back", units::age(ahead));
        return Outcome::failed(message, REMEDY);
    }
    Outcome::passed()
}
