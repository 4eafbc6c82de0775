//! Checks of what the control plane read: manifests, or the cluster's objects.

use std::sync::Arc;

use mesh_api::ext;

use super::catalog::Outcome;
use super::scene::Scene;
use crate::commands::routes::accepted;

pub(super) async fn errors(scene: Arc<Scene>) -> Outcome {
    let message = "objects are not in force; the last good ones are, if there were any";
    problems(
        &scene,
        "error",
        message,
        "correct them; for a local mesh, meshctl local apply -f FILE",
    )
}

pub(super) async fn warnings(scene: Arc<Scene>) -> Outcome {
    problems(
        &scene,
        "warning",
        "objects are in force with a reservation",
        "correct them, or live with it",
    )
}

fn problems(scene: &Scene, severity: &str, message: &str, remedy: &str) -> Outcome {
    match scene.info() {
        Err(why) => Outcome::Skipped(why),
        Ok(info) => {
            let found = info.problems.iter().filter(|problem| problem.severity == severity);
            Outcome::of(found.map(describe).collect(), message, remedy)
        }
    }
}

/// `HTTPRoute/shop/tax: routes.yaml:12: spec.rules[0]: no such service`, as far as it is known.
fn describe(problem: &ext::Problem) -> String {
    let mut parts = Vec::new();
    if !problem.object.is_empty() {
        parts.push(problem.object.clone());
    }
    match (problem.file.as_str(), problem.line) {
        ("", _) => {}
        (file, 0) => parts.push(file.to_owned()),
        (file, line) => parts.push(format!("{file}:{line}")),
    }
    if !problem.field.is_empty() {
        parts.push(problem.field.clone());
    }
    parts.push(problem.message.clone());
    parts.join(": ")
}

pub(super) async fn routes(scene: Arc<Scene>) -> Outcome {
    let mesh = match scene.mesh() {
        Ok(mesh) => mesh,
        Err(why) => return Outcome::Skipped(why),
    };
    match mesh.routes(scene.all("service")).await {
        Err(error) => Outcome::failed(error.to_string(), "meshctl routes"),
        Ok(routes) => {
            let mut refused: Vec<String> = routes
                .into_iter()
                .filter(|route| !accepted(&route.status))
                .map(|route| format!("{} on {}: {}", route.route, route.parent, route.status))
                .collect();
            refused.dedup();
            Outcome::of(
                refused,
                "routes are not in force as they are written",
                "meshctl routes shows them",
            )
        }
    }
}
