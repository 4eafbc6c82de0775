//! The programs under test, as they were built; and other people's, where they are installed.

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

/// The sidecar.
pub fn mesh_proxy() -> PathBuf {
    built("mesh-proxy", "MESH_PROXY_BIN", "mesh-proxy")
}

/// The control plane.
pub fn mesh_control() -> PathBuf {
    built("mesh-control", "MESH_CONTROL_BIN", "mesh-control")
}

/// The command line.
pub fn meshctl() -> PathBuf {
    built("meshctl", "MESHCTL_BIN", "meshctl")
}

/// The application of scenarios, see `src/bin/scenario-app.rs`.
pub fn scenario_app() -> PathBuf {
    built("scenario-app", "SCENARIO_APP_BIN", "mesh-integration")
}

/// A program that others made, if it is installed.
pub fn installed(name: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders)
        // Not everybody's search path has the programs that are meant for administrators.
        .chain(["/usr/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
}

/// A command that runs a program of others, if it is installed; else the test is said to be skipped.
pub fn command(program: &str, test: &str) -> Option<Command> {
    let Some(found) = installed(program) else {
        skipped(test, &format!("{program} is not installed"));
        return None;
    };
    let mut command = Command::new(found);
    // Nothing of the surroundings may decide where connections go.
    for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
        command.env_remove(name).env_remove(name.to_uppercase());
    }
    Some(command)
}

/// Says that a test did not run. Goes past the test runner's capturing of output.
pub fn skipped(test: &str, why: &str) {
    // Nobody is there to be told when this fails.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {why}");
}

/// The file named by `variable`, or the one that cargo built beside this test.
fn built(program: &str, variable: &str, package: &str) -> PathBuf {
    if let Some(given) = std::env::var_os(variable) {
        return given.into();
    }
    // target/debug/deps/scenarios-0123456789abcdef
    let test = std::env::current_exe().expect("the path of this test");
    let folder = test.ancestors().nth(2).expect("a folder above deps");
    let path = folder.join(program);
    let release = if folder.ends_with("release") { " --release" } else { "" };
    assert!(
        path.is_file(),
        "{} is not there: run `cargo build{release} -p {package}`, or set {variable}",
        path.display()
    );
    path
}
