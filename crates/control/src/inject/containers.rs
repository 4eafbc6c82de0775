//! What a pod is given: two containers, their volumes, an annotation.

use k8s_openapi::api::core::v1::PodSpec;
use kube::core::ObjectMeta;
use serde_json::{Value, json};

use super::edit::{Added, Edit};
use super::options::{self, Options};
use super::{INIT_CONTAINER, PROXY_CONTAINER, PROXY_UID, Settings};
use crate::identity::tokens::AUDIENCE;
use crate::index::authz::PROXY_PORTS;
use crate::source::kubernetes::PROXY_VERSION_ANNOTATION;

const OUTBOUND_PORT: u16 = 4140;
/// Names and numbers of the proxy's ports.
pub(super) const PORTS: [(&str, u16); 4] = [
    ("", OUTBOUND_PORT),
    ("mesh-inbound", 4143),
    ("mesh-control", PROXY_PORTS[0]),
    ("mesh-admin", PROXY_PORTS[1]),
];
const TOKEN_VOLUME: &str = "mesh-token";
const STATE_VOLUME: &str = "mesh-identity";
pub(super) const VOLUMES: [&str; 2] = [TOKEN_VOLUME, STATE_VOLUME];
const TOKEN_FOLDER: &str = "/var/run/secrets/meshctl.dev/token";
const TOKEN_SECONDS: u32 = 86_400;
const STATE_FOLDER: &str = "/var/run/meshctl.dev/identity";
/// Which container `kubectl logs` and `exec` mean.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// Names that are the mesh's.
#[derive(Clone, Copy, Debug)]
pub struct Ours<'a> {
    pub containers: &'a [&'a str],
    pub volumes: &'a [&'a str],
    pub annotations: &'a [&'a str],
}

/// What [`edits`] may have added.
pub const OURS: Ours<'static> = Ours {
    containers: &[INIT_CONTAINER, PROXY_CONTAINER],
    volumes: &VOLUMES,
    annotations: &[PROXY_VERSION_ANNOTATION],
};

/// How a pod gets its proxy.
pub(super) fn edits(
    meta: &ObjectMeta,
    spec: &PodSpec,
    options: &Options,
    settings: &Settings,
) -> Vec<Edit> {
    let mut annotations = vec![(PROXY_VERSION_ANNOTATION, env!("CARGO_PKG_VERSION").into())];
    let native = options.native_sidecar();
    let named = |name: &str| meta.annotations.as_ref().is_some_and(|all| all.contains_key(name));
    if let Some(first) = spec.containers.first().filter(|_| !native && !named(DEFAULT_CONTAINER)) {
        annotations.push((DEFAULT_CONTAINER, first.name.clone().into()));
    }
    let (init, proxy) = (init_container(options), proxy_container(options, settings));
    let init_list: &[&str] = &["spec", "initContainers"];
    let mut edits =
        vec![Edit { path: &["metadata", "annotations"], added: Added::Entries(annotations) }];
    if native {
        // In front of the application's own: these have the network through the proxy, too.
        edits.push(Edit { path: init_list, added: Added::Items(vec![init, proxy]) });
    } else {
        edits.push(Edit { path: init_list, added: Added::Items(vec![init]) });
        // Kubelets start a container when the one before it has ended its postStart.
        edits.push(Edit { path: &["spec", "containers"], added: Added::Items(vec![proxy]) });
    }
    if settings.trust_roots.is_some() {
        edits.push(Edit { path: &["spec", "volumes"], added: Added::Items(volumes()) });
    }
    edits
}

/// A token of our own, with our audience: the one that Kubernetes mounts may be switched off
/// (`automountServiceAccountToken: false`), and would open the API server to whoever got it.
fn volumes() -> Vec<Value> {
    let token = json!({
        "audience": AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": "token",
    });
    vec![
        json!({"name": TOKEN_VOLUME, "projected": {"sources": [{"serviceAccountToken": token}]}}),
        json!({"name": STATE_VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}),
    ]
}

/// Redirects the pod's connections, once.
fn init_container(options: &Options) -> Value {
    // Kubelets and the control plane reach these by themselves.
    let own: Vec<_> = PORTS[2..].iter().map(|(_, port)| port.to_string()).collect();
    let more = options.get(options::SKIP_INBOUND).map(str::to_owned);
    let skip_inbound = own.into_iter().chain(more).collect::<Vec<_>>().join(",");
    let mut args: Vec<String> = ["init-redirect", "--proxy-uid"].map(Into::into).into();
    args.push(PROXY_UID.to_string());
    args.extend(["--inbound-port".into(), PORTS[1].1.to_string()]);
    args.extend(["--outbound-port".into(), OUTBOUND_PORT.to_string()]);
    args.extend(["--skip-inbound-ports".into(), skip_inbound]);
    for (flag, option) in [
        ("--skip-outbound-ports", options::SKIP_OUTBOUND),
        ("--skip-subnets", options::SKIP_SUBNETS),
    ] {
        if let Some(value) = options.get(option) {
            args.extend([flag.into(), value.into()]);
        }
    }
    json!({
        "name": INIT_CONTAINER,
        "image": options.get(options::IMAGE),
        "imagePullPolicy": options.get(options::PULL_POLICY),
        "command": ["/mesh-proxy"],
        "args": args,
        // The proxy's own, so that a pod may still be of the class Guaranteed.
        "resources": resources(options),
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
            "privileged": false,
            "readOnlyRootFilesystem": true,
            // Capabilities reach a container's process only if it is root.
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "runAsUser": 0,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
    })
}

fn proxy_container(options: &Options, settings: &Settings) -> Value {
    let get = |path: &str| json!({"path": path, "port": "mesh-admin"});
    let ports = PORTS[1..].iter();
    let ports: Vec<_> =
        ports.map(|(name, port)| json!({"containerPort": port, "name": name})).collect();
    let mut proxy = json!({
        "name": PROXY_CONTAINER,
        "image": options.get(options::IMAGE),
        "imagePullPolicy": options.get(options::PULL_POLICY),
        "command": ["/mesh-proxy"],
        "env": env(options, settings),
        "ports": ports,
        // The application starts when this has succeeded, so it is asked often.
        "startupProbe": {"httpGet": get("/ready"), "periodSeconds": 1, "failureThreshold": 120},
        "readinessProbe": {"httpGet": get("/ready"), "periodSeconds": 2, "timeoutSeconds": 2},
        "livenessProbe": {"httpGet": get("/live"), "periodSeconds": 10, "timeoutSeconds": 2},
        "resources": resources(options),
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": PROXY_UID,
            "runAsNonRoot": true,
            "runAsUser": PROXY_UID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
    });
    if settings.trust_roots.is_some() {
        proxy["volumeMounts"] = json!([
            {"name": TOKEN_VOLUME, "mountPath": TOKEN_FOLDER, "readOnly": true},
            {"name": STATE_VOLUME, "mountPath": STATE_FOLDER},
        ]);
    }
    if options.native_sidecar() {
        // Started before the application and ended after it, by the kubelet.
        proxy["restartPolicy"] = "Always".into();
    } else {
        // Both containers get SIGTERM at once, and the proxy accepts no more from then on: its SIGTERM
        // is held back until no other process of the pod has a connection or listens.
        proxy["lifecycle"] = json!({
            "postStart": {"exec": {"command": ["/mesh-proxy", "await-ready"]}},
            "preStop": {"exec": {"command": ["/mesh-proxy", "await-application-end"]}},
        });
    }
    proxy
}

fn resources(options: &Options) -> Value {
    let mut resources = json!({});
    for (kind, name, option) in [
        ("requests", "cpu", options::CPU_REQUEST),
        ("requests", "memory", options::MEMORY_REQUEST),
        ("limits", "cpu", options::CPU_LIMIT),
        ("limits", "memory", options::MEMORY_LIMIT),
    ] {
        if let Some(value) = options.get(option) {
            resources[kind][name] = value.into();
        }
    }
    resources
}

/// Variables refer to those before them. One that does not begin with `MESH_PROXY_` is none of the
/// proxy's.
fn env(options: &Options, settings: &Settings) -> Vec<Value> {
    const ACCOUNT: &str = "_pod_sa";
    const NAMESPACE: &str = "MESH_PROXY_POD_NAMESPACE";
    let of_pod = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let set = |name: &str, value: &str| json!({"name": name, "value": value});
    let mut env = vec![
        of_pod(NAMESPACE, "metadata.namespace"),
        of_pod("MESH_PROXY_POD_NAME", "metadata.name"),
        of_pod("MESH_PROXY_POD_IPS", "status.podIPs"),
        set("MESH_PROXY_CONTROL_ADDR", &settings.control_addr()),
        set("MESH_PROXY_OUTBOUND_ADDR", &format!("127.0.0.1:{OUTBOUND_PORT}")),
        set("MESH_PROXY_INBOUND_ADDR", &format!("[::]:{}", PORTS[1].1)),
        set("MESH_PROXY_CONTROL_LISTEN", &format!("[::]:{}", PORTS[2].1)),
        set("MESH_PROXY_ADMIN_ADDR", &format!("[::]:{}", PORTS[3].1)),
    ];
    for (name, option) in [
        ("MESH_PROXY_LOG", options::LOG_LEVEL),
        ("MESH_PROXY_LOG_FORMAT", options::LOG_FORMAT),
        ("MESH_PROXY_ACCESS_LOG", options::ACCESS_LOG),
        ("MESH_PROXY_THREADS", options::THREADS),
        ("MESH_PROXY_SHUTDOWN_GRACE", options::SHUTDOWN_GRACE),
    ] {
        if let Some(value) = options.get(option) {
            env.push(set(name, value));
        }
    }
    if let Some(roots) = &settings.trust_roots {
        let id = settings.identity_of(&format!("$({ACCOUNT})"), &format!("$({NAMESPACE})"));
        env.push(of_pod(ACCOUNT, "spec.serviceAccountName"));
        env.push(set("MESH_PROXY_IDENTITY_NAME", &id));
        env.push(set("MESH_PROXY_CONTROL_IDENTITY", &settings.control_identity()));
        env.push(set("MESH_PROXY_IDENTITY_TOKEN_FILE", &format!("{TOKEN_FOLDER}/token")));
        env.push(set("MESH_PROXY_IDENTITY_STATE_DIR", STATE_FOLDER));
        env.push(set("MESH_PROXY_IDENTITY_TRUST_BUNDLE", roots));
    }
    env
}
