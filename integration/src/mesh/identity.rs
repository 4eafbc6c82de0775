//! Who the pods of a test are: a root, an issuer, and a token for each pod, where our control plane
//! looks for them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_tls::{Root, WorkloadId};

use super::NAMESPACE;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The folder with the issuer of a mesh.
pub(super) fn folder(mesh: &Path) -> PathBuf {
    mesh.join("identity")
}

/// The roots that proxies are to trust.
pub(super) fn roots(mesh: &Path) -> PathBuf {
    folder(mesh).join("roots.pem")
}

/// Makes a root and an issuer.
pub(super) fn found(mesh: &Path) {
    let root = Root::generate("test", 30 * DAY, DAY).expect("randomness");
    for place in ["identity", "tokens"] {
        fs::create_dir(mesh.join(place)).expect("a folder in the temporary one");
    }
    for (name, text) in
        [("roots.pem", root.root), ("issuer.pem", root.issuer), ("issuer-key.pem", root.issuer_key)]
    {
        fs::write(folder(mesh).join(name), text).expect("a file in the temporary folder");
    }
}

/// Gives a pod its token; where it is.
pub(super) fn token(mesh: &Path, namespace: &str, pod: &str) -> PathBuf {
    // Tests need no secret.
    let token = format!("{namespace}/{pod}:{}", "5e".repeat(32));
    let file = mesh.join("tokens").join(format!("{namespace}.{pod}"));
    fs::write(&file, token).expect("a file in the temporary folder");
    file
}

/// The identity of a pod, whose service account is of its name.
pub fn id_of(pod: &str) -> String {
    id_in(NAMESPACE, pod)
}

/// The same of a pod in another namespace.
pub fn id_in(namespace: &str, pod: &str) -> String {
    let id = WorkloadId {
        service_account: pod.to_owned(),
        namespace: namespace.to_owned(),
        control_namespace: "mesh-system".to_owned(),
        trust_domain: "cluster.local".to_owned(),
    };
    id.id().expect("a pod's name is a label").to_string()
}
