//! linkerd2-proxy, named by `L5D_PROXY_BIN`, asking the same control plane as ours.
//!
//! It learns where a connection was going from the kernel alone, so the whole bench moves to a network namespace whose
//! packet filter redirects the services' addresses to it. It serves once it is certified. The control plane of a pair
//! does that; a proxy alone, whose backend has no identity, gets its certificate from a service that knows one answer.
//!
//! Of a pair, the one beside the client connects to the other's own port and names the backend's in a header, which is
//! linkerd's default. The other connects to the backend's port at the address it was reached at. So no connection to
//! the backend is redirected, as which of the two opened it could not be told in the namespace they share.

use std::convert::Infallible;
use std::fmt::Display;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_tls::Id;
use prost::Message;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use tokio::net::TcpListener;

use super::certificates::{self, Certificates};
use super::mesh::{self, CLIENT, INBOUND_PORT, Mesh, NAMESPACE, SERVICES};
use super::{Skipped, free_addr};

const BINARY: &str = "L5D_PROXY_BIN";
/// Set inside the namespace.
const INSIDE: &str = "MESH_BENCH_NAMESPACE";
/// In the namespace; the proxy connects to no loopback address.
const BACKEND: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 1);
/// Where the packet filter redirects to.
const OUTBOUND: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 4140);
const ANY_PORT: &str = "127.0.0.1:0";

/// Starts this program again in a namespace of its own, if there is a linkerd2-proxy to measure.
pub(crate) fn move_to_namespace() -> anyhow::Result<()> {
    if std::env::var_os(BINARY).is_none() || std::env::var_os(INSIDE).is_some() {
        return Ok(());
    }
    // Connection tracking costs time, and only connections whose destination a proxy asks the kernel for need it.
    let port = OUTBOUND.port();
    let script = format!(
        "set -e
ip link set lo up
ip route add local {SERVICES} dev lo
ip route add local {BACKEND} dev lo
nft -f - <<'END'
table ip bench {{
  chain plain {{
    type filter hook output priority raw;
    ip daddr {SERVICES} accept
    ip saddr {SERVICES} accept
    ip daddr {BACKEND} tcp dport {INBOUND_PORT} accept
    ip saddr {BACKEND} tcp sport {INBOUND_PORT} accept
    notrack
  }}
  chain redirected {{ type nat hook output priority -100; ip daddr {SERVICES} tcp dport 80 redirect to :{port}; }}
}}
END
exec \"$0\" \"$@\""
    );
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--net", "sh", "-c", &script]);
    command.arg(std::env::current_exe()?).args(std::env::args_os().skip(1)).env(INSIDE, "1");
    Err(command.exec()).context("unshare, ip and nft are needed to measure linkerd2-proxy")
}

/// Where the backend listens.
pub(crate) fn backend_ip() -> Ipv4Addr {
    if std::env::var_os(INSIDE).is_some() { BACKEND } else { Ipv4Addr::LOCALHOST }
}

/// The program, if there is one and this is its namespace.
pub(super) fn program() -> Result<PathBuf, Skipped> {
    let named = std::env::var_os(INSIDE).and_then(|_| std::env::var_os(BINARY));
    named
        .map(PathBuf::from)
        .ok_or(Skipped::NotInstalled("not named (L5D_PROXY_BIN is the path of a linkerd2-proxy)"))
}

/// A proxy alone.
pub(super) fn unsecured(
    program: &Path,
    control: SocketAddr,
    certificates: &Certificates,
    dir: &Path,
) -> anyhow::Result<Command> {
    let id = certificates::id(CLIENT)?;
    let leaf = certificates.sign(&id, &make_key(&id, dir)?)?;
    let identity = serve_identity(leaf.der().to_vec())?;
    let token = dir.join("token");
    fs::write(&token, "bench")?;
    let mut command = command(program, CLIENT, control, identity, dir)?;
    set(&mut command, "IDENTITY_TOKEN_FILE", token.display());
    set(&mut command, "IDENTITY_TRUST_ANCHORS", certificates.issuer());
    Ok(command)
}

/// The proxy beside the client, and where it tells of itself.
pub(super) fn client(
    program: &Path,
    mesh: &Mesh,
    dir: &Path,
) -> anyhow::Result<(Command, SocketAddr)> {
    let mut command = secured(program, CLIENT, mesh, dir)?;
    let admin = free_addr()?;
    set(&mut command, "ADMIN_LISTEN_ADDR", admin);
    Ok((command, admin))
}

/// The proxy beside the backend, and where it listens.
pub(super) fn server(
    program: &Path,
    mesh: &Mesh,
    dir: &Path,
) -> anyhow::Result<(Command, SocketAddr)> {
    let mut command = secured(program, mesh::BACKEND, mesh, dir)?;
    let inbound = SocketAddr::from((BACKEND, INBOUND_PORT));
    set(&mut command, "INBOUND_LISTEN_ADDR", inbound);
    // What is redirected is for the one beside the client.
    set(&mut command, "OUTBOUND_LISTEN_ADDR", ANY_PORT);
    Ok((command, inbound))
}

/// Certified by the control plane.
fn secured(program: &Path, pod: &str, mesh: &Mesh, dir: &Path) -> anyhow::Result<Command> {
    make_key(&certificates::id(pod)?, dir)?;
    let mut command = command(program, pod, mesh.control, mesh.control, dir)?;
    set(&mut command, "IDENTITY_TOKEN_FILE", mesh.token(pod)?.display());
    set(&mut command, "IDENTITY_TRUST_ANCHORS", fs::read_to_string(mesh.roots()?)?);
    Ok(command)
}

fn command(
    program: &Path,
    pod: &str,
    control: SocketAddr,
    identity: SocketAddr,
    dir: &Path,
) -> anyhow::Result<Command> {
    let workload = format!(r#"{{"ns":"{NAMESPACE}","pod":"{pod}"}}"#);
    let mut command = Command::new(program);
    for (name, value) in [
        ("DESTINATION_SVC_ADDR", control.to_string()),
        ("POLICY_SVC_ADDR", control.to_string()),
        ("IDENTITY_SVC_ADDR", identity.to_string()),
        ("POLICY_WORKLOAD", workload.clone()),
        ("DESTINATION_CONTEXT", workload),
        ("DESTINATION_PROFILE_NETWORKS", SERVICES.to_owned()),
        ("IDENTITY_DIR", dir.display().to_string()),
        ("IDENTITY_LOCAL_NAME", certificates::id(pod)?.to_string()),
        ("INBOUND_DEFAULT_POLICY", "all-unauthenticated".to_owned()),
        ("OUTBOUND_LISTEN_ADDR", OUTBOUND.to_string()),
        ("INBOUND_LISTEN_ADDR", ANY_PORT.to_owned()),
        ("CONTROL_LISTEN_ADDR", ANY_PORT.to_owned()),
        ("ADMIN_LISTEN_ADDR", ANY_PORT.to_owned()),
        ("CORES", "1".to_owned()),
        ("LOG", "warn".to_owned()),
    ] {
        set(&mut command, name, value);
    }
    Ok(command)
}

fn set(command: &mut Command, name: &str, value: impl Display) {
    command.env(format!("LINKERD2_PROXY_{name}"), value.to_string());
}

/// Writes what the proxy reads of its identity: a key, and the request to certify it.
fn make_key(id: &Id, dir: &Path) -> anyhow::Result<KeyPair> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let request = CertificateParams::new([id.to_string()])?.serialize_request(&key)?;
    fs::write(dir.join("key.p8"), key.serialize_der())?;
    fs::write(dir.join("csr.der"), request.der())?;
    Ok(key)
}

/// The answer of `io.linkerd.proxy.identity.Identity/Certify`.
#[derive(Clone, PartialEq, Message)]
struct Certified {
    #[prost(bytes = "vec", tag = "1")]
    leaf: Vec<u8>,
    #[prost(message, optional, tag = "3")]
    valid_until: Option<prost_types::Timestamp>,
}

/// Answers every call with the one certificate there is, for as long as the bench runs.
fn serve_identity(leaf: Vec<u8>) -> anyhow::Result<SocketAddr> {
    let valid_until = Some((SystemTime::now() + Duration::from_secs(23 * 3600)).into());
    let message = Certified { leaf, valid_until }.encode_to_vec();
    let mut answer = BytesMut::new();
    answer.put_u8(0);
    answer.put_u32(u32::try_from(message.len())?);
    answer.put_slice(&message);
    let answer = answer.freeze();

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
    let addr = listener.local_addr()?;
    std::thread::Builder::new().name("identity".into()).spawn(move || {
        runtime.block_on(async {
            while let Ok((socket, _)) = listener.accept().await {
                let answer = answer.clone();
                let service = service_fn(move |request| certify(request, answer.clone()));
                let server = http2::Builder::new(TokioExecutor::new());
                // A proxy that is gone does not need its certificate.
                let _ = server.serve_connection(TokioIo::new(socket), service).await;
            }
        });
    })?;
    Ok(addr)
}

async fn certify<B>(
    _request: Request<B>,
    answer: Bytes,
) -> Result<Response<impl hyper::body::Body<Data = Bytes, Error = Infallible>>, Infallible> {
    let status = HeaderName::from_static("grpc-status");
    let trailers = HeaderMap::from_iter([(status, HeaderValue::from_static("0"))]);
    let body = Full::new(answer).with_trailers(async { Some(Ok(trailers)) });
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    Ok(response)
}
