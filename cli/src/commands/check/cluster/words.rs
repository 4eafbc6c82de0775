//! Remedies are written with the commands of a local mesh; in a cluster kubectl does the same.

use crate::cluster::Cluster;

/// What is done with what, in the order in which they are looked for.
const WORDS: [(&str, &str); 7] = [
    ("meshctl local logs control", "kubectl -n NAMESPACE logs deploy/mesh-control"),
    ("meshctl local logs POD -c proxy", "kubectl logs POD -c mesh-proxy"),
    ("meshctl local logs POD", "kubectl logs POD"),
    ("meshctl local ps", "kubectl get pods"),
    ("meshctl local restart", "kubectl rollout restart deployment"),
    ("restart the mesh with this meshctl: meshctl local down, then up", "meshctl upgrade"),
    ("; for a local mesh, meshctl local apply -f FILE", ": kubectl edit"),
];

/// The remedy as it is done in this cluster.
pub(in super::super) fn in_cluster(remedy: &str, cluster: &Cluster) -> String {
    let mut text = remedy.to_owned();
    for (local, kubectl) in WORDS {
        text = text.replace(local, &kubectl.replace("NAMESPACE", &cluster.mesh_namespace));
    }
    text
}
