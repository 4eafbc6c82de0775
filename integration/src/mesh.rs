//! A mesh for one test: the real control plane and real proxies, on addresses of its own.
//!
//! Read [`objects`] for what the control plane is told, [`crate::sidecar`] for what a test asks a
//! proxy, [`crate::scripted`] for policies that no manifest can express.

mod changes;
mod identity;
mod objects;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use futures_util::future::join_all;
use serde_json::Value;
use tempfile::TempDir;

pub use self::identity::{id_in, id_of};
pub use self::objects::Service;
use crate::address::Network;
use crate::process::Process;
use crate::sidecar::{self, Sidecar};
use crate::{client, programs, wait};

/// The namespace of all pods and services.
pub const NAMESPACE: &str = "test";
/// The namespace of the mesh itself.
pub const MESH_NAMESPACE: &str = "mesh-system";
/// The gateway's pod and service account.
pub const GATEWAY: &str = "mesh-gateway";
/// Where the control plane answers proxies, as in a cluster.
const CONTROL_PORT: u16 = 8086;
const CONTROL_ADMIN_PORT: u16 = 9990;
const FIRST_UPSTREAM_PORT: u16 = 15_001;

/// A pod: a proxy, and an application that runs elsewhere in the test.
#[derive(Clone, Debug, Default)]
pub struct Pod {
    name: String,
    ports: Vec<(u16, SocketAddr)>,
    upstreams: Vec<String>,
    settings: Vec<(String, String)>,
    /// The service account it really has, if not that of its name.
    account: Option<String>,
    probe: Option<(u16, String)>,
    gateway: bool,
}

impl Pod {
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// The mesh's gateway, which has no application. It listens on its pod's address.
    pub fn gateway() -> Self {
        Self { gateway: true, ..Self::new(GATEWAY) }
    }

    fn namespace(&self) -> &'static str {
        if self.gateway { MESH_NAMESPACE } else { NAMESPACE }
    }

    /// A port of the pod, and where its application really listens.
    #[must_use]
    pub fn port(mut self, port: u16, application: SocketAddr) -> Self {
        self.ports.push((port, application));
        self
    }

    /// Declares an HTTP probe.
    #[must_use]
    pub fn probe(mut self, port: u16, path: &str) -> Self {
        self.probe = Some((port, path.to_owned()));
        self
    }

    /// A listener that stands for this authority. They are numbered from 0.
    #[must_use]
    pub fn upstream(mut self, authority: &str) -> Self {
        self.upstreams.push(authority.to_owned());
        self
    }

    /// Its proxy proves to be this service account, whatever the control plane believes.
    #[must_use]
    pub fn account(mut self, account: &str) -> Self {
        self.account = Some(account.to_owned());
        self
    }

    /// A setting of the proxy, `MESH_PROXY_` left out.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// Who tells the proxies what to do.
#[derive(Debug, Default)]
enum ControlPlane {
    /// The program `mesh-control`.
    #[default]
    Program,
    Elsewhere(SocketAddr),
    Nobody,
}

/// What a [`Mesh`] is to be.
#[derive(Debug, Default)]
pub struct Builder {
    pods: Vec<Pod>,
    services: Vec<Service>,
    manifests: Vec<Value>,
    control: ControlPlane,
    in_the_clear: bool,
    certificate_lifetime: Option<&'static str>,
}

impl Builder {
    #[must_use]
    pub fn pod(mut self, pod: Pod) -> Self {
        self.pods.push(pod);
        self
    }

    #[must_use]
    pub fn service(mut self, service: Service) -> Self {
        self.services.push(service);
        self
    }

    /// Any other object.
    #[must_use]
    pub fn manifest(mut self, object: Value) -> Self {
        self.manifests.push(object);
        self
    }

    /// Proxies ask this control plane instead of ours.
    #[must_use]
    pub fn controlled_by(mut self, addr: SocketAddr) -> Self {
        self.control = ControlPlane::Elsewhere(addr);
        self
    }

    /// Proxies have nobody to ask.
    #[must_use]
    pub fn uncontrolled(mut self) -> Self {
        self.control = ControlPlane::Nobody;
        self
    }

    /// Proxies have no identities; nothing is encrypted.
    #[must_use]
    pub fn in_the_clear(mut self) -> Self {
        self.in_the_clear = true;
        self
    }

    /// Certificates are valid for so long (`20s`).
    #[must_use]
    pub fn certificate_lifetime(mut self, lifetime: &'static str) -> Self {
        self.certificate_lifetime = Some(lifetime);
        self
    }

    /// Starts all programs and waits until they are ready.
    ///
    /// # Panics
    /// When a program is not built, does not start or does not get ready.
    pub async fn start(self) -> Mesh {
        let mut mesh = self.start_unready().await;
        join_all(mesh.sidecars.iter_mut().map(Sidecar::ready)).await;
        mesh
    }

    /// As [`Self::start`], without waiting for the proxies.
    pub async fn start_unready(self) -> Mesh {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut mesh = Mesh {
            network: Network::claim(),
            dir,
            control: None,
            control_addr: None,
            sidecars: Vec::new(),
            secured: matches!(self.control, ControlPlane::Program) && !self.in_the_clear,
            certificate_lifetime: self.certificate_lifetime,
        };
        if mesh.secured {
            identity::found(mesh.dir.path());
        }
        for folder in ["manifests", "pods", "logs"] {
            fs::create_dir(mesh.dir.path().join(folder)).expect("a folder in the temporary one");
        }
        for (index, pod) in self.pods.iter().enumerate() {
            mesh.write_pod(pod, mesh.pod_ip(index));
        }
        for service in &self.services {
            mesh.apply(&service.object());
        }
        for object in &self.manifests {
            mesh.apply(object);
        }
        mesh.control_addr = match self.control {
            ControlPlane::Program => Some(mesh.start_control().await),
            ControlPlane::Elsewhere(addr) => Some(addr),
            ControlPlane::Nobody => None,
        };
        for (index, pod) in self.pods.into_iter().enumerate() {
            let ip = mesh.pod_ip(index);
            let sidecar = mesh.start_proxy(pod, ip);
            mesh.sidecars.push(sidecar);
        }
        mesh
    }
}

/// A running mesh. Dropping it ends its programs, and fails the test if one had panicked or ended.
#[derive(Debug)]
pub struct Mesh {
    sidecars: Vec<Sidecar>,
    control: Option<Process>,
    control_addr: Option<SocketAddr>,
    network: Network,
    dir: TempDir,
    /// Whether proxies have identities.
    secured: bool,
    certificate_lifetime: Option<&'static str>,
}

impl Mesh {
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The proxy of a pod.
    ///
    /// # Panics
    /// When there is no such pod.
    pub fn pod(&self, name: &str) -> &Sidecar {
        let found = self.sidecars.iter().find(|sidecar| sidecar.name() == name);
        found.unwrap_or_else(|| panic!("there is no pod {name}"))
    }

    /// Where the control plane answers proxies.
    ///
    /// # Panics
    /// When there is none.
    pub fn control_addr(&self) -> SocketAddr {
        self.control_addr.expect("a mesh with a control plane")
    }

    /// The log of the control plane.
    pub fn control_log(&self) -> String {
        self.control.as_ref().map(Process::log).unwrap_or_default()
    }

    /// The control plane's folder, with `manifests` and `pods`.
    pub fn folder(&self) -> &Path {
        self.dir.path()
    }

    /// Folder for logs, also of other programs of a test.
    pub fn logs(&self) -> PathBuf {
        self.dir.path().join("logs")
    }

    /// Where the token of a pod is.
    pub fn token_file(&self, namespace: &str, pod: &str) -> PathBuf {
        identity::token(self.dir.path(), namespace, pod)
    }

    /// Applies an object; the control plane knows of it soon.
    pub fn apply(&self, object: &Value) {
        let text = |pointer| object.pointer(pointer).and_then(Value::as_str).unwrap_or("none");
        let name = format!("{}-{}.json", text("/kind"), text("/metadata/name"));
        write(&self.dir.path().join("manifests"), &name, object);
    }

    fn write_pod(&self, pod: &Pod, ip: Ipv4Addr) {
        let name = format!("{}.{}.json", pod.namespace(), pod.name);
        write(&self.dir.path().join("pods"), &name, &objects::pod(pod, ip));
    }

    /// The first address is the control plane's.
    fn pod_ip(&self, index: usize) -> Ipv4Addr {
        self.network.address(u8::try_from(index + 2).expect("few pods"))
    }

    async fn start_control(&mut self) -> SocketAddr {
        let ip = self.network.address(1);
        let (listen, admin) = (SocketAddr::from((ip, CONTROL_PORT)), (ip, CONTROL_ADMIN_PORT));
        let mut command = Command::new(programs::mesh_control());
        command.args(["--source", "local", "--log", "info,mesh_control=debug", "--state-dir"]);
        command.arg(self.dir.path());
        command.args(["--listen", &listen.to_string()]);
        command.args(["--admin", &SocketAddr::from(admin).to_string()]);
        if self.secured {
            command.arg("--identity-dir").arg(identity::folder(self.dir.path()));
        }
        if let Some(lifetime) = self.certificate_lifetime {
            command.args(["--certificate-lifetime", lifetime]);
        }
        let mut process = Process::start("control", command, &self.logs());
        wait::until("the control plane to be ready", async || {
            process.assert_sound();
            client::get(admin.into(), "/ready").await.filter(|answer| answer.status == 200)
        })
        .await;
        self.control = Some(process);
        listen
    }

    fn start_proxy(&self, pod: Pod, ip: Ipv4Addr) -> Sidecar {
        let mut command = Command::new(programs::mesh_proxy());
        // Among it is `MESH_PROXY_BIN`, which is ours and no setting.
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"MESH_PROXY_") {
                command.env_remove(name);
            }
        }
        let inbound = pod.ports.iter().map(|(port, app)| format!("{ip}:{port}={app}"));
        let upstreams: Vec<_> = (FIRST_UPSTREAM_PORT..)
            .map(|port| SocketAddr::from((ip, port)))
            .zip(&pod.upstreams)
            .collect();
        let named = upstreams.iter().map(|(addr, authority)| format!("{addr}={authority}"));
        let mut set = |name: &str, value: &str| {
            command.env(format!("MESH_PROXY_{name}"), value);
        };
        // A busy machine is slow, not broken; tests that are about these times set their own.
        set("DISCOVERY_TIMEOUT", "20s");
        set("OUTBOUND_CONNECT_TIMEOUT", "10s");
        set("INBOUND_CONNECT_TIMEOUT", "10s");
        set("POD_NAMESPACE", pod.namespace());
        if pod.gateway {
            set("GATEWAY", "enabled");
            set("GATEWAY_LISTEN", &ip.to_string());
        }
        set("POD_NAME", &pod.name);
        set("OUTBOUND_ADDR", &format!("{ip}:{}", sidecar::OUTBOUND_PORT));
        set("INBOUND_ADDR", &format!("{ip}:{}", sidecar::INBOUND_PORT));
        set("CONTROL_LISTEN", &format!("{ip}:{}", sidecar::CONTROL_PORT));
        set("ADMIN_ADDR", &format!("{ip}:{}", sidecar::ADMIN_PORT));
        set("BIND_IP", &ip.to_string());
        set("OUTBOUND_UPSTREAMS", &named.collect::<Vec<_>>().join(","));
        set("INBOUND_PORTS", &inbound.collect::<Vec<_>>().join(","));
        set("LOG", "info,mesh_proxy=debug");
        if let Some(addr) = self.control_addr {
            set("CONTROL_ADDR", &addr.to_string());
        }
        if self.secured {
            let dir = self.dir.path();
            let account = pod.account.as_deref().unwrap_or(&pod.name);
            let (namespace, token) = (pod.namespace(), identity::token);
            set("IDENTITY_NAME", &identity::id_in(namespace, account));
            set("IDENTITY_TOKEN_FILE", &token(dir, namespace, account).display().to_string());
            set("IDENTITY_TRUST_BUNDLE_FILE", &identity::roots(dir).display().to_string());
        }
        for (name, value) in &pod.settings {
            set(name, value);
        }
        let process = Process::start(&pod.name, command, &self.logs());
        Sidecar::new(pod.name, ip, upstreams.into_iter().map(|(addr, _)| addr).collect(), process)
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        for sidecar in &mut self.sidecars {
            sidecar.assert_sound();
        }
        if let Some(control) = &mut self.control {
            control.assert_sound();
        }
    }
}

/// As a careful writer does, so that nobody reads half a file.
fn write(folder: &Path, name: &str, object: &Value) {
    let (temporary, file) = (folder.join(format!(".{name}")), folder.join(name));
    fs::write(&temporary, object.to_string()).expect("a file in the temporary folder");
    fs::rename(&temporary, &file).expect("a file in the temporary folder");
}
