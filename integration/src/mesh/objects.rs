//! The Kubernetes objects of a test: what a user would apply, and what a kubelet would report.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::{NAMESPACE, Pod};

/// A Service in front of the pods of its name.
#[derive(Clone, Debug)]
pub struct Service {
    name: String,
    port: u16,
    target_port: u16,
    pods: String,
    app_protocol: Option<&'static str>,
    annotations: BTreeMap<&'static str, &'static str>,
}

impl Service {
    /// Port 80 of `name` is `target_port` of the pod `name`; what it speaks is to be found out.
    pub fn new(name: &str, target_port: u16) -> Self {
        let (name, pods) = (name.to_owned(), name.to_owned());
        let annotations = BTreeMap::new();
        Self { name, port: 80, target_port, pods, app_protocol: None, annotations }
    }

    /// Stands in front of these pods instead.
    #[must_use]
    pub fn before(mut self, pods: &str) -> Self {
        self.pods = pods.to_owned();
        self
    }

    /// Has this port instead of 80.
    #[must_use]
    pub fn on(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    #[must_use]
    pub fn app_protocol(mut self, protocol: &'static str) -> Self {
        self.app_protocol = Some(protocol);
        self
    }

    /// Has this annotation, after `config.meshctl.dev/`.
    #[must_use]
    pub fn annotated(mut self, name: &'static str, value: &'static str) -> Self {
        self.annotations.insert(name, value);
        self
    }

    /// As a user would apply it.
    pub fn object(&self) -> Value {
        let mut port = json!({ "port": self.port, "targetPort": self.target_port });
        if let Some(protocol) = self.app_protocol {
            port["appProtocol"] = protocol.into();
        }
        let annotations = self.annotations.iter();
        let annotations: BTreeMap<_, _> = annotations
            .map(|(name, value)| (format!("config.meshctl.dev/{name}"), value))
            .collect();
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "namespace": NAMESPACE, "name": self.name, "annotations": annotations },
            "spec": { "selector": { "app": self.pods }, "ports": [port] },
        })
    }
}

/// A pod that runs, is ready and has a proxy.
pub(super) fn pod(pod: &Pod, ip: Ipv4Addr) -> Value {
    let ports: Vec<_> =
        pod.ports.iter().map(|(port, _)| json!({ "containerPort": port })).collect();
    let mut container = json!({ "name": "app", "image": "none", "ports": ports });
    if let Some((port, path)) = &pod.probe {
        container["readinessProbe"] = json!({ "httpGet": { "port": port, "path": path } });
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": pod.namespace(),
            "name": pod.name,
            "labels": {
                "app": pod.name,
                "meshctl.dev/owner-kind": "Deployment",
                "meshctl.dev/owner-name": pod.name,
            },
            "annotations": { "meshctl.dev/proxy-version": env!("CARGO_PKG_VERSION") },
        },
        "spec": { "serviceAccountName": pod.name, "containers": [container] },
        "status": {
            "phase": "Running",
            "podIP": ip,
            "podIPs": [{ "ip": ip }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}
