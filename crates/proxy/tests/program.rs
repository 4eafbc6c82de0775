//! The program `mesh-proxy` as whoever starts it sees it. With this test, `cargo test` builds it.

use std::process::Command;

#[test]
fn a_wrong_configuration_is_told_whole_and_ends_it() {
    let output = Command::new(env!("CARGO_BIN_EXE_mesh-proxy"))
        .env("MESH_PROXY_ADMIN_ADDR", "here")
        .env("MESH_PROXY_THREADS", "0")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("MESH_PROXY_ADMIN_ADDR=here"), "{told}");
    assert!(told.contains("MESH_PROXY_THREADS=0"), "{told}");
}
