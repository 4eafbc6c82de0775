//! The mesh's gateway on one machine: a pod that is a proxy only, for as long as there are Gateways.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use mesh_control::index::authz::MESH_NAMESPACE;
use mesh_control::index::object::{GATEWAY_CLASS, GATEWAY_CONTROLLER};
use mesh_control::source::local::yaml::Document;

use super::manifest::Placed;
use super::plan::Strategy;
use super::workload::{Template, Workload, WorkloadKey};

/// Its name, and that of its service account.
const NAME: &str = "mesh-gateway";
/// What clients have sent may take so long.
const GRACE: Duration = Duration::from_secs(30);

/// The Gateways among the manifests, and their classes.
#[derive(Clone, Debug, Default)]
pub struct Gateways {
    wanted: BTreeSet<String>,
    /// Whether the mesh serves a class.
    classes: BTreeMap<String, bool>,
}

impl Gateways {
    pub fn read_gateway(&mut self, document: &Document) {
        let class = document.root.text(&["spec", "gatewayClassName"]);
        self.wanted.extend(class.map(str::to_owned));
    }

    pub fn read_class(&mut self, document: &Document) {
        let Some(name) = document.root.text(&["metadata", "name"]) else { return };
        let controller = document.root.text(&["spec", "controllerName"]);
        self.classes.insert(name.to_owned(), controller == Some(GATEWAY_CONTROLLER));
    }

    /// Whether the mesh serves any of them.
    pub fn are_ours(&self) -> bool {
        let mut wanted = self.wanted.iter();
        wanted.any(|class| self.classes.get(class).copied().unwrap_or(class == GATEWAY_CLASS))
    }
}

/// The workload of the gateway.
pub fn placed() -> Placed {
    let labels = BTreeMap::from([("app".to_owned(), NAME.to_owned())]);
    let template = Template {
        labels,
        service_account: NAME.to_owned(),
        grace: GRACE,
        meshed: true,
        gateway: true,
        ..Template::default()
    };
    let key = WorkloadKey {
        namespace: MESH_NAMESPACE.to_owned(),
        kind: "Deployment",
        name: NAME.to_owned(),
    };
    let workload = Workload {
        key,
        replicas: 1,
        // Two could not have the same ports.
        strategy: Strategy::Recreate,
        template,
        hash: env!("CARGO_PKG_VERSION").to_owned(),
    };
    Placed { workload, programs: Vec::new(), cwd: PathBuf::new() }
}

#[cfg(test)]
mod tests {
    use mesh_control::source::local::yaml;

    use super::*;

    #[test]
    fn there_is_a_gateway_when_a_gateway_is_ours() {
        let gateway = |class| format!("kind: Gateway\nspec: {{gatewayClassName: {class}}}\n");
        let class = |name, controller| {
            let of = format!("metadata: {{name: {name}}}\nspec: {{controllerName: {controller}}}");
            format!("---\nkind: GatewayClass\n{of}\n")
        };
        for (text, ours) in [
            (String::new(), false),
            (gateway("mesh"), true),
            (gateway("other"), false),
            (gateway("other") + &class("other", GATEWAY_CONTROLLER), true),
            (gateway("mesh") + &class("mesh", "somebody.else/gateway"), false),
        ] {
            let mut gateways = Gateways::default();
            for document in yaml::documents(&text).into_iter().flatten() {
                match document.root.text(&["kind"]) {
                    Some("Gateway") => gateways.read_gateway(&document),
                    _ => gateways.read_class(&document),
                }
            }
            assert_eq!(gateways.are_ours(), ours, "{text}");
        }
    }
}
