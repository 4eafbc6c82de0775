//! What the fuzzers of `integration/fuzz` found, given again to what reads it.

use std::path::Path;

#[path = "../../fuzz/src/inputs.rs"]
mod inputs;

type Reader = fn(&[u8]);

#[test]
fn what_fuzzers_found_is_survived() {
    let targets: [(&str, Reader); 7] = [
        ("certificate_request", inputs::certificate_request),
        ("client_hello", inputs::client_hello),
        ("transport_header", inputs::transport_header),
        ("token", inputs::token),
        ("server_policy", inputs::server_policy),
        ("port_authorization", inputs::port_authorization),
        ("outbound_policy", inputs::outbound_policy),
    ];
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, read) in targets {
        let files = std::fs::read_dir(corpus.join(name)).unwrap();
        let files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        assert!(files.len() > 1, "{name} has no corpus");
        for file in files {
            read(&std::fs::read(&file).unwrap());
        }
    }
}
