//! Keeps `gen/` equal to what `shop.proto` generates, without protoc and without a build script.
//!
//! After a change of `shop.proto`: `MESH_BLESS=1 cargo test -p meshctl generated_code_is_fresh`. It must
//! compile for that, so change `shop.proto` first and what uses it afterwards.

use std::fs;
use std::path::Path;

#[test]
fn generated_code_is_fresh() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/demo_app");
    let out = tempfile::tempdir().unwrap();
    let descriptors = protox::compile([folder.join("shop.proto")], [&folder]).unwrap();
    tonic_prost_build::configure()
        .out_dir(out.path())
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)
        .unwrap();
    let generated = fs::read_to_string(out.path().join("shop.v1.rs")).unwrap();

    let committed = folder.join("gen/shop.v1.rs");
    if std::env::var_os("MESH_BLESS").is_some() {
        fs::write(&committed, &generated).unwrap();
    }
    let present = fs::read_to_string(&committed).unwrap_or_default();
    assert!(
        present == generated,
        "gen/shop.v1.rs differs from what shop.proto generates; renew it with \
         MESH_BLESS=1 cargo test -p meshctl generated_code_is_fresh"
    );
}
