//! The committed code in `src/gen` is what the protos in `proto/` generate.
//!
//! After changing a proto: `MESH_BLESS=1 cargo test -p mesh-api generated`.

use std::path::Path;

const FILE: &str = "mesh.ext.v1.rs";

#[test]
fn generated_code_is_fresh() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let protos = ["authorization", "egress", "extensions", "gateway", "mesh", "outbound", "proxy"]
        .map(|name| format!("mesh/ext/v1/{name}.proto"));
    let descriptors = protox::compile(protos, [root.join("proto")]).unwrap();
    let out = tempfile::tempdir().unwrap();
    tonic_prost_build::configure()
        // Keys and tokens must not get into a log by accident.
        .skip_debug([".mesh.ext.v1.GatewayKey", ".mesh.ext.v1.GatewayCertificate"])
        .out_dir(out.path())
        .compile_fds(descriptors)
        .unwrap();

    let fresh = std::fs::read_to_string(out.path().join(FILE)).unwrap();
    let committed = root.join("src/gen").join(FILE);
    if std::env::var_os("MESH_BLESS").is_some() {
        std::fs::write(&committed, &fresh).unwrap();
    }
    let have = std::fs::read_to_string(&committed).unwrap_or_default();
    assert!(have == fresh, "{FILE} is stale: run this test with MESH_BLESS=1 and commit it");
}
