//! Ours: the control plane on the load's core, and proxies that ask it, each with the whole stack on: discovery, a
//! route with a timeout and retries, the circuit breaker, peak-EWMA balancing, metrics and the sliding windows. With
//! certificates there is a proxy beside the backend too, and both have identities.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use mesh_integration::address::Network;
use serde_json::{Value, json};

use super::certificates::{self, Certificates};
use super::process::Process;
use super::{BackendAddrs, Traffic, free_addr};
use crate::machine::Cores;

pub(super) const NAMESPACE: &str = "bench";
/// Where the services have their addresses.
pub(super) const SERVICES: &str = "198.18.0.0/24";
const PORT: u16 = 80;
pub(super) const CLIENT: &str = "client";
pub(super) const BACKEND: &str = "backend";

/// Where a proxy takes bytes whose protocol it is told.
pub(super) const INBOUND_PORT: u16 = 4143;

/// A control plane, and what its proxies are started with.
pub(super) struct Mesh {
    proxy: PathBuf,
    pub(super) control: SocketAddr,
    backend: BackendAddrs,
    dir: PathBuf,
    secured: Option<Secured>,
    _process: Process,
}

/// What a mesh with identities has besides.
pub(super) struct Secured {
    folder: PathBuf,
    roots: PathBuf,
    /// The address of the backend's pod, whose ports are the backend's.
    pod: IpAddr,
    /// Held where the address is of it.
    _network: Option<Network>,
}

impl Secured {
    /// The pod's address is not the backend's: its proxy takes what is sent to the pod's ports.
    pub(super) fn apart(certificates: &Certificates) -> Self {
        let network = Network::claim();
        let pod = network.address(2).into();
        Self { _network: Some(network), ..Self::beside(certificates, pod) }
    }

    /// The pod's address is the backend's: its proxy takes what is sent to a port of the proxy's own.
    pub(super) fn beside(certificates: &Certificates, pod: IpAddr) -> Self {
        let (folder, roots) = (certificates.folder().to_owned(), certificates.roots());
        Self { folder, roots, pod, _network: None }
    }
}

impl Mesh {
    /// In a secured one proxies have identities, and the backend is behind one.
    pub(super) fn start(
        cores: Cores,
        backend: BackendAddrs,
        dir: &Path,
        secured: Option<Secured>,
    ) -> anyhow::Result<Self> {
        let proxy = built("mesh-proxy", "MESH_BENCH_PROXY")?;
        let program = built("mesh-control", "MESH_BENCH_CONTROL")?;
        declare(backend, dir, secured.as_ref().map(|secured| secured.pod))?;
        let (control, admin) = (free_addr()?, free_addr()?);
        let mut command = Command::new(program);
        command.args(["--source", "local", "--log", "warn", "--state-dir"]).arg(dir);
        command.args(["--listen", &control.to_string(), "--admin", &admin.to_string()]);
        if let Some(secured) = &secured {
            fs::create_dir(dir.join("tokens"))?;
            command.arg("--identity-dir").arg(&secured.folder);
        }
        let process = Process::start(command, dir, cores.load, cores.load)?;
        process.wait_until(|| Ok(TcpStream::connect(control).map(drop)?))?;
        Ok(Self { proxy, control, backend, dir: dir.to_owned(), secured, _process: process })
    }

    /// A proxy that stands at `listen` for the service of this traffic, and where it tells of itself.
    pub(super) fn client(
        &self,
        traffic: Traffic,
        listen: SocketAddr,
    ) -> anyhow::Result<(Command, SocketAddr)> {
        let mut command = self.command(CLIENT, free_addr()?)?;
        let admin = free_addr()?;
        command.env("MESH_PROXY_ADMIN_ADDR", admin.to_string());
        let upstreams = format!("{listen}={}", authority(traffic));
        command.env("MESH_PROXY_OUTBOUND_UPSTREAMS", upstreams);
        Ok((command, admin))
    }

    /// The proxy beside the backend, and where it listens for this traffic.
    pub(super) fn server(&self, traffic: Traffic) -> anyhow::Result<(Command, SocketAddr)> {
        let ip = self.secured()?.pod;
        let mut command = self.command(BACKEND, (ip, INBOUND_PORT).into())?;
        let ports = [self.backend.http1, self.backend.http2]
            .map(|backend| format!("{}={backend}", SocketAddr::new(ip, backend.port())));
        command.env("MESH_PROXY_INBOUND_PORTS", ports.join(","));
        command.env("MESH_PROXY_ADMIN_ADDR", free_addr()?.to_string());
        Ok((command, SocketAddr::new(ip, self.backend.of(traffic).port())))
    }

    fn command(&self, pod: &str, inbound: SocketAddr) -> anyhow::Result<Command> {
        let mut command = Command::new(&self.proxy);
        for (name, value) in [
            ("POD_NAMESPACE", NAMESPACE.to_owned()),
            ("POD_NAME", pod.to_owned()),
            ("CONTROL_ADDR", self.control.to_string()),
            ("OUTBOUND_ADDR", free_addr()?.to_string()),
            ("INBOUND_ADDR", inbound.to_string()),
            ("CONTROL_LISTEN", free_addr()?.to_string()),
            ("THREADS", "1".to_owned()),
            ("LOG", "warn".to_owned()),
        ] {
            command.env(format!("MESH_PROXY_{name}"), value);
        }
        if let Some(secured) = &self.secured {
            command.env("MESH_PROXY_IDENTITY_NAME", certificates::id(pod)?.as_str());
            command.env("MESH_PROXY_IDENTITY_TOKEN_FILE", self.token(pod)?);
            command.env("MESH_PROXY_IDENTITY_TRUST_BUNDLE_FILE", &secured.roots);
        }
        Ok(command)
    }

    /// Gives a pod its token; the file, which the control plane compares with what a proxy sends of it.
    pub(super) fn token(&self, pod: &str) -> anyhow::Result<PathBuf> {
        let file = self.dir.join("tokens").join(format!("{NAMESPACE}.{pod}"));
        // A bench needs no secret.
        fs::write(&file, format!("{NAMESPACE}/{pod}:{}", "5e".repeat(32)))?;
        Ok(file)
    }

    pub(super) fn roots(&self) -> anyhow::Result<&Path> {
        Ok(&self.secured()?.roots)
    }

    fn secured(&self) -> anyhow::Result<&Secured> {
        self.secured.as_ref().context("a mesh without identities")
    }
}

/// Fails unless the proxy beside the client, ours or linkerd's, opened its connections to the backend with mTLS: one
/// that does not know whom to expect there sends in the clear, which is another row.
pub(super) fn ensure_secured(admin: SocketAddr) -> anyhow::Result<()> {
    let mut socket = TcpStream::connect(admin)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(socket, "GET /metrics HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n")?;
    let mut page = String::new();
    socket.read_to_string(&mut page)?;
    let mut opened = page.lines().filter(|line| {
        line.starts_with("tcp_open_total{")
            && line.contains("direction=\"outbound\"")
            && line.contains("peer=\"dst\"")
    });
    let secured = opened.clone().count() > 0 && opened.all(|line| line.contains("tls=\"true\""));
    ensure!(secured, "the proxies speak to each other in the clear");
    Ok(())
}

/// The address of the service that stands for this kind of traffic, which a packet filter may redirect.
pub(super) fn service_addr(traffic: Traffic) -> SocketAddr {
    let last = match traffic {
        Traffic::Http1 => 1,
        Traffic::Http2 => 2,
        Traffic::Tcp => 3,
    };
    SocketAddr::from(([198, 18, 0, last], PORT))
}

/// The service that stands for this kind of traffic.
pub(super) fn authority(traffic: Traffic) -> String {
    format!("{}.{NAMESPACE}.svc.cluster.local:{PORT}", service(traffic))
}

fn service(traffic: Traffic) -> &'static str {
    match traffic {
        Traffic::Http1 => "http1",
        Traffic::Http2 => "http2",
        Traffic::Tcp => "tcp",
    }
}

/// A program of this workspace: the one named by the variable, or the one next to this bench, built anew when cargo
/// runs it.
fn built(package: &str, variable: &str) -> anyhow::Result<PathBuf> {
    if let Some(given) = std::env::var_os(variable) {
        return Ok(given.into());
    }
    if let Some(cargo) = std::env::var_os("CARGO") {
        crate::progress(&format!("building {package}"));
        let output = Command::new(cargo)
            .args(["build", "--quiet", "--release", "--package", package, "--bin", package])
            .output()
            .context("running cargo")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "building {package}:\n{said}");
    }
    // target/release/deps/peers-0123456789abcdef
    let bench = std::env::current_exe()?;
    let program = bench.ancestors().nth(2).context("target/release")?.join(package);
    ensure!(program.is_file(), "{} is not there; set {variable}", program.display());
    Ok(program)
}

/// Writes what a user would apply and what a kubelet would report.
///
/// A backend with a proxy is at the address `meshed`.
fn declare(backend: BackendAddrs, dir: &Path, meshed: Option<IpAddr>) -> anyhow::Result<()> {
    let (manifests, pods) = (dir.join("manifests"), dir.join("pods"));
    fs::create_dir(&manifests)?;
    fs::create_dir(&pods)?;
    let http1 = backend.http1.port();
    let http2 = backend.http2.port();
    let mut objects = Vec::new();
    for (traffic, protocol, port) in [
        (Traffic::Http1, "http", http1),
        (Traffic::Http2, "kubernetes.io/h2c", http2),
        (Traffic::Tcp, "tcp", http1),
    ] {
        let opaque = if traffic == Traffic::Tcp { "80" } else { "" };
        objects.push(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "namespace": NAMESPACE, "name": service(traffic),
                "annotations": { "config.meshctl.dev/opaque-ports": opaque },
            },
            "spec": {
                "clusterIP": service_addr(traffic).ip(),
                "selector": { "app": "backend" },
                "ports": [{ "port": PORT, "targetPort": port, "appProtocol": protocol }],
            },
        }));
    }
    for traffic in [Traffic::Http1, Traffic::Http2] {
        objects.push(json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": { "namespace": NAMESPACE, "name": service(traffic) },
            "spec": {
                "parentRefs": [{ "group": "", "kind": "Service", "name": service(traffic), "port": PORT }],
                "rules": [{
                    "matches": [{ "path": { "type": "PathPrefix", "value": "/" } }],
                    "backendRefs": [{ "name": service(traffic), "port": PORT }],
                    "timeouts": { "request": "10s" },
                    "retry": { "codes": [502, 503, 504], "attempts": 1 },
                }],
            },
        }));
    }
    for (number, object) in objects.iter().enumerate() {
        fs::write(manifests.join(format!("{number}.json")), object.to_string())?;
    }
    let ports = [http1, http2].map(|port| json!({ "containerPort": port }));
    let ip = meshed.unwrap_or(backend.http1.ip());
    let mut running = vec![pod(BACKEND, ip, json!(ports), meshed.is_some())];
    if meshed.is_some() {
        // Whoever asks for a certificate is known by its pod.
        running.push(pod(CLIENT, [127, 0, 0, 1].into(), json!([]), true));
    }
    for (number, pod) in running.iter().enumerate() {
        fs::write(pods.join(format!("{NAMESPACE}.{number}.json")), pod.to_string())?;
    }
    Ok(())
}

fn pod(name: &str, ip: IpAddr, ports: Value, meshed: bool) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": NAMESPACE, "name": name, "labels": { "app": name } },
        "spec": {
            "serviceAccountName": name,
            "containers": [{ "name": name, "image": "none", "ports": ports }],
        },
        "status": {
            "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    });
    if meshed {
        let version = env!("CARGO_PKG_VERSION");
        pod["metadata"]["annotations"] = json!({ "meshctl.dev/proxy-version": version });
    }
    pod
}
