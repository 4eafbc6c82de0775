//! The real binary, as a user or a script meets it: help, exit codes, colour, completion, and the reference.
#![allow(clippy::unwrap_used)]

mod completion;
mod reference;
mod terminal;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use clap::CommandFactory;
use meshctl::args::Cli;

/// `meshctl LINE` on a machine of its own: no local mesh, no kubeconfig, 80 columns.
fn meshctl(line: &str) -> Output {
    command(line).output().unwrap()
}

fn command(line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meshctl"));
    command
        .args(line.split_whitespace())
        .env_clear()
        .env("KUBECONFIG", "/nonexistent")
        .env("COLUMNS", "80")
        .env("XDG_RUNTIME_DIR", concat!(env!("CARGO_TARGET_TMPDIR"), "/nobody-home"));
    command
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Every command and subcommand that users are told of, as words: ``, `stat`, `proxy status`.
fn commands() -> Vec<String> {
    fn walk(of: &clap::Command, prefix: &str, into: &mut Vec<String>) {
        into.push(prefix.to_owned());
        for sub in of.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            walk(sub, format!("{prefix} {}", sub.get_name()).trim(), into);
        }
    }
    let mut all = Vec::new();
    walk(&Cli::command(), "", &mut all);
    all
}

#[test]
fn help_of_every_command_fits_a_terminal() {
    for name in commands() {
        for flag in ["--help", "-h"] {
            let ran = meshctl(&format!("{name} {flag}"));
            assert_eq!(ran.status.code(), Some(0), "{name} {flag}: {}", text(&ran.stderr));
            assert!(text(&ran.stdout).contains("Usage:"), "{name} {flag}");
            for line in text(&ran.stdout).lines() {
                assert!(line.chars().count() <= 80, "{name} {flag}: {line}");
            }
        }
    }
}

#[test]
fn exit_codes_tell_usage_from_absence() {
    for (line, code) in [
        ("version --client", 0),
        ("explain no-endpoints", 0),
        ("", 2),
        ("stat", 2),
        ("stat deploy --no-such-flag", 2),
        ("stat deploy -t 1h", 2),
        ("stat deplyo", 2),
        ("explain no-such-thing", 2),
        ("stat deploy", 3),
        ("tap deploy/web", 3),
        ("top deploy --once", 3),
        ("edges", 3),
        ("endpoints tax.shop:8080", 3),
        ("routes", 3),
        ("describe deploy/web", 3),
        ("proxy status", 3),
        ("proxy config web-1", 3),
        ("identity", 3),
        ("identity rotate", 3),
        ("check", 3),
        ("stat deploy --context prod", 3),
        ("stat deploy --local=other", 3),
    ] {
        let ran = meshctl(line);
        assert_eq!(ran.status.code(), Some(code), "{line}: {}", text(&ran.stderr));
    }
}

#[test]
fn errors_are_a_line_and_a_next_step() {
    let ran = meshctl("stat deploy");
    assert_eq!(
        text(&ran.stderr),
        "error: no local mesh is running, and no kube context is set\n  try: meshctl demo; or --context NAME for a cluster\n"
    );
    let ran = meshctl("stat deplyo");
    assert_eq!(text(&ran.stderr), "error: there is no resource type \"deplyo\"\n  try: deploy\n");
    let ran = meshctl("stat deploy --local=../etc");
    assert!(
        text(&ran.stderr).contains("can't be the name of a local mesh"),
        "{}",
        text(&ran.stderr)
    );
}

#[test]
fn a_state_directory_that_others_can_write_to_is_named() {
    let home = tempfile::tempdir().unwrap();
    let state = home.path().join("meshctl");
    fs::create_dir(&state).unwrap();
    fs::set_permissions(&state, Permissions::from_mode(0o777)).unwrap();
    let ran = command("stat deploy").env("XDG_RUNTIME_DIR", home.path()).output().unwrap();
    let state = state.display();
    assert_eq!(
        text(&ran.stderr),
        format!("error: {state} can be written to by others\n  try: chmod go-w {state}\n")
    );
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = command("explain")
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let ran = child.wait_with_output().unwrap();
    assert_eq!((ran.status.code(), text(&ran.stderr)), (Some(0), ""));
}
