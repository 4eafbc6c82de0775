//! Checks of what a local mesh needs, before one is started.

use std::fs::{self, DirBuilder};
use std::net::TcpListener;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use super::catalog::{Finding, Outcome};
use super::scene::Scene;

pub(super) async fn not_running(scene: Arc<Scene>) -> Outcome {
    let dir = match scene.state.mesh(&scene.name) {
        Ok(dir) => dir,
        Err(error) => return Outcome::failed(error.to_string(), error.hint.unwrap_or_default()),
    };
    if dir.is_running() {
        return Outcome::failed(
            format!("the local mesh \"{}\" is running already", dir.name),
            "meshctl local down, or another name: meshctl local up --name NAME",
        );
    }
    Outcome::passed()
}

pub(super) async fn state_dir(scene: Arc<Scene>) -> Outcome {
    let root = scene.state.path();
    let made = DirBuilder::new().recursive(true).mode(0o700).create(root);
    let tried = made.and_then(|()| {
        let probe = root.join(format!(".check-{}", std::process::id()));
        fs::write(&probe, "")?;
        fs::remove_file(&probe)
    });
    match tried {
        Ok(()) => Outcome::Passed(root.display().to_string()),
        Err(error) => Outcome::failed(
            format!("can't write to {}: {error}", root.display()),
            "set XDG_RUNTIME_DIR to a directory that you can write",
        ),
    }
}

/// Linux has all of 127.0.0.0/8; others must be told.
pub(super) async fn loopback(_: Arc<Scene>) -> Outcome {
    match TcpListener::bind(("127.101.0.1", 0)) {
        Ok(_) => Outcome::passed(),
        Err(error) => Outcome::failed(
            format!("can't listen on 127.101.0.1: {error}"),
            "use a machine whose loopback interface has all of 127.0.0.0/8, as Linux has",
        ),
    }
}

pub(super) async fn transparent(_: Arc<Scene>) -> Outcome {
    if !rustix::process::geteuid().is_root() {
        return Outcome::Skipped(
            "--transparent needs root; without it, pods are processes of yours".to_owned(),
        );
    }
    if on_path("ip") {
        return Outcome::passed();
    }
    Outcome::Failed(Finding {
        message: "a program that --transparent needs is not installed".to_owned(),
        objects: vec!["ip".to_owned()],
        remedy: "apt install iproute2, or do without --transparent".to_owned(),
    })
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(Path::new).map(Path::to_owned);
    std::env::split_paths(&path).chain(system).any(|dir| dir.join(program).is_file())
}
