//! Completion scripts are sound, and what they call answers.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::{command, meshctl, text};

/// Whether a shell takes the script; `None` if the shell is not installed.
fn parses(shell: &str, flag: &str, script: &[u8]) -> Option<bool> {
    let mut child = Command::new(shell).arg(flag).stdin(Stdio::piped()).spawn().ok()?;
    child.stdin.take().unwrap().write_all(script).unwrap();
    Some(child.wait().unwrap().success())
}

#[test]
fn scripts_are_valid_shell() {
    let script = |shell: &str| {
        let ran = meshctl(&format!("completion {shell}"));
        assert_eq!(ran.status.code(), Some(0));
        assert!(ran.stdout.len() > 100);
        ran.stdout
    };
    assert_eq!(parses("bash", "-n", &script("bash")), Some(true));
    assert_ne!(parses("zsh", "-n", &script("zsh")), Some(false));
    assert_ne!(parses("fish", "-n", &script("fish")), Some(false));
    assert!(text(&script("powershell")).contains("Register-ArgumentCompleter"));
}

fn completed(line: &str) -> Vec<String> {
    let words: Vec<&str> = line.split(' ').collect();
    let ran = command("")
        .arg("--")
        .args(&words)
        .env("_MESHCTL_COMPLETE", "bash")
        .env("_CLAP_COMPLETE_INDEX", (words.len() - 1).to_string())
        .env("_CLAP_IFS", "\n")
        .output()
        .unwrap();
    assert_eq!(text(&ran.stderr), "");
    text(&ran.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn commands_flags_types_and_ids_are_completed() {
    assert_eq!(completed("meshctl sta"), ["stat"]);
    assert!(completed("meshctl stat --wa").contains(&"--watch".to_owned()));
    assert_eq!(completed("meshctl stat dep"), ["deploy", "deploy/"]);
    assert_eq!(completed("meshctl explain proxies-in"), ["proxies-in-sync"]);
    assert_eq!(
        completed("meshctl check --skip proxies-re"),
        ["proxies-reachable", "proxies-ready"]
    );
}

#[test]
fn without_a_mesh_names_are_just_not_completed() {
    assert_eq!(completed("meshctl stat deploy/"), Vec::<String>::new());
    assert_eq!(completed("meshctl endpoints ta"), Vec::<String>::new());
}
