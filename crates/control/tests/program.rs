//! The program `mesh-control` as whoever starts it sees it. With this test, `cargo test` builds it.

use std::process::Command;

#[test]
fn a_wrong_configuration_is_told_whole_and_ends_it() {
    let output = Command::new(env!("CARGO_BIN_EXE_mesh-control"))
        .args(["--state-dir", "/nowhere", "--socket", "/nowhere/control.sock"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("--state-dir /nowhere"), "{told}");
    assert!(told.contains("--socket"), "{told}");
}
