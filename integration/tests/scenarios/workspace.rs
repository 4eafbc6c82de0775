//! The dependency rules of `docs/architecture.md`, over `cargo metadata`; and the size of files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use mesh_integration::programs;
use serde_json::Value;

/// Crates that bring an asynchronous runtime along, or serve one only.
const ASYNC: [&str; 6] = ["tokio", "tokio-stream", "tokio-util", "futures-util", "tonic", "hyper"];
/// Longer files are not one thing any more.
const MAX_LINES: usize = 700;

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Each package of the workspace with its direct dependencies, those for tests left out.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let direct = |package: &Value| {
        let all = package["dependencies"].as_array().unwrap().iter();
        all.filter(|dep| dep["kind"] != "dev").map(|dep| text(&dep["name"])).collect()
    };
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages.map(|package| (text(&package["name"]), direct(package))).collect()
}

#[test]
fn packages_depend_only_on_what_they_may() {
    let all = dependencies();
    let names: Vec<_> = all.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "mesh-api",
            "mesh-control",
            "mesh-integration",
            "mesh-layers",
            "mesh-model",
            "mesh-proxy",
            "mesh-redirect",
            "mesh-tls",
            "mesh-viz",
            "meshctl"
        ]
    );
    let forbid = |package: &str, forbidden: &[&str]| {
        for name in forbidden {
            assert!(!all[package].contains(*name), "{package} must not depend on {name}");
        }
    };
    forbid("mesh-proxy", &["mesh-control"]);
    forbid("mesh-control", &["mesh-proxy"]);
    forbid("mesh-layers", &["mesh-model", "mesh-api"]);
    forbid("mesh-model", &ASYNC);
    forbid("mesh-redirect", &ASYNC);
    let ours = all["mesh-redirect"].iter().find(|name| name.starts_with("mesh"));
    assert_eq!(ours, None, "mesh-redirect depends on no other package of ours");
    for (package, dependencies) in &all {
        assert!(!dependencies.contains("mesh-viz"), "{package} must not depend on mesh-viz");
        let alone = package == "mesh-api" || !dependencies.contains("linkerd2-proxy-api");
        assert!(alone, "only mesh-api may depend on linkerd2-proxy-api, not {package}");
    }
}

#[test]
fn no_file_is_too_long() {
    let output = Command::new("git").args(["ls-files", "*.rs"]).current_dir(root()).output();
    let Some(output) = output.ok().filter(|output| output.status.success()) else {
        return programs::skipped("no_file_is_too_long", "no git, or no clone that is ours");
    };
    let output = String::from_utf8_lossy(&output.stdout);
    let written = output.lines().filter(|file| !file.contains("/gen/"));
    let lines = |file: &str| {
        let text = std::fs::read_to_string(root().join(file)).unwrap_or_default();
        text.lines().count()
    };
    let long: Vec<_> =
        written.map(|file| (file, lines(file))).filter(|(_, n)| *n > MAX_LINES).collect();
    assert!(long.is_empty(), "files over {MAX_LINES} lines: {long:?}");
}
