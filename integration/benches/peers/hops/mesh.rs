//! Ours: the control plane on the load's core, and proxies that ask it, each with the whole stack on: discovery, a
//! route with a timeout and retries, the circuit breaker, peak-EWMA balancing, metrics and the sliding windows.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::json;

use super::{BackendAddrs, Process, Traffic, free_addr};
use crate::machine::Cores;

pub(super) const NAMESPACE: &str = "bench";
/// Where the services have their addresses.
pub(super) const SERVICES: &str = "198.18.0.0/24";
const PORT: u16 = 80;

/// A control plane, and what its proxies are started with.
pub(super) struct Mesh {
    proxy: PathBuf,
    pub(super) control: SocketAddr,
    _process: Process,
}

impl Mesh {
    pub(super) fn start(cores: Cores, backend: BackendAddrs, dir: &Path) -> anyhow::Result<Self> {
        let proxy = built("mesh-proxy", "MESH_BENCH_PROXY")?;
        let program = built("mesh-control", "MESH_BENCH_CONTROL")?;
        declare(backend, dir)?;
        let (control, admin) = (free_addr()?, free_addr()?);
        let mut command = Command::new(program);
        command.args(["--source", "local", "--log", "warn", "--state-dir"]).arg(dir);
        command.args(["--listen", &control.to_string(), "--admin", &admin.to_string()]);
        let process = Process::start(command, dir, cores.load, cores.load)?;
        process.wait_until(|| Ok(std::net::TcpStream::connect(control).map(drop)?))?;
        Ok(Self { proxy, control, _process: process })
    }

    /// A proxy that stands at `listen` for the service of this traffic.
    pub(super) fn proxy(&self, traffic: Traffic, listen: SocketAddr) -> anyhow::Result<Command> {
        let mut command = Command::new(&self.proxy);
        let upstreams = format!("{listen}={}", authority(traffic));
        for (name, value) in [
            ("POD_NAMESPACE", NAMESPACE.to_owned()),
            ("POD_NAME", "client".to_owned()),
            ("CONTROL_ADDR", self.control.to_string()),
            ("OUTBOUND_UPSTREAMS", upstreams),
            ("OUTBOUND_ADDR", free_addr()?.to_string()),
            ("INBOUND_ADDR", free_addr()?.to_string()),
            ("CONTROL_LISTEN", free_addr()?.to_string()),
            ("ADMIN_ADDR", free_addr()?.to_string()),
            ("THREADS", "1".to_owned()),
            ("LOG", "warn".to_owned()),
        ] {
            command.env(format!("MESH_PROXY_{name}"), value);
        }
        Ok(command)
    }
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
fn declare(backend: BackendAddrs, dir: &Path) -> anyhow::Result<()> {
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
    let ip = backend.http1.ip();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": NAMESPACE, "name": "backend", "labels": { "app": "backend" } },
        "spec": { "containers": [{
            "name": "backend", "image": "none",
            "ports": [{ "containerPort": http1 }, { "containerPort": http2 }],
        }] },
        "status": {
            "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    });
    Ok(fs::write(pods.join(format!("{NAMESPACE}.backend.json")), pod.to_string())?)
}
