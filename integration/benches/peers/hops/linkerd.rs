//! linkerd2-proxy, named by `L5D_PROXY_BIN`, asking the same control plane as ours.
//!
//! It learns where a connection was going from the kernel alone, so the whole bench moves to a network namespace whose
//! packet filter redirects the services' addresses to it. It serves once it is certified, so a certificate is made for
//! it and handed out by a service that knows one answer.

use std::convert::Infallible;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::TcpListener;

use super::Skipped;
use super::mesh::{NAMESPACE, SERVICES};

const BINARY: &str = "L5D_PROXY_BIN";
/// Set inside the namespace.
const INSIDE: &str = "MESH_BENCH_NAMESPACE";
/// In the namespace; the proxy connects to no loopback address.
const BACKEND: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 1);
const NAME: &str = "client.bench.serviceaccount.identity.linkerd.cluster.local";

/// Starts this program again in a namespace of its own, if there is a linkerd2-proxy to measure.
pub(crate) fn move_to_namespace() -> anyhow::Result<()> {
    if std::env::var_os(BINARY).is_none() || std::env::var_os(INSIDE).is_some() {
        return Ok(());
    }
    // Connection tracking costs time, and only redirected connections need it.
    let script = format!(
        "set -e
ip link set lo up
ip route add local {SERVICES} dev lo
ip route add local {BACKEND} dev lo
nft -f - <<'END'
table ip bench {{
  chain plain {{ type filter hook output priority raw; ip saddr != {SERVICES} ip daddr != {SERVICES} notrack; }}
  chain redirected {{ type nat hook output priority -100; ip daddr {SERVICES} tcp dport 80 redirect to :4140; }}
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

/// Ports are the proxy's own defaults: nothing else is in this namespace.
pub(super) fn command(program: &Path, control: SocketAddr, dir: &Path) -> anyhow::Result<Command> {
    let leaf = make_identity(dir)?;
    let identity = serve_identity(leaf)?;
    let workload = format!(r#"{{"ns":"{NAMESPACE}","pod":"linkerd"}}"#);
    let mut command = Command::new(program);
    for (name, value) in [
        ("DESTINATION_SVC_ADDR", control.to_string()),
        ("POLICY_SVC_ADDR", control.to_string()),
        ("IDENTITY_SVC_ADDR", identity.to_string()),
        ("POLICY_WORKLOAD", workload.clone()),
        ("DESTINATION_CONTEXT", workload),
        ("DESTINATION_PROFILE_NETWORKS", SERVICES.to_owned()),
        ("IDENTITY_DIR", dir.display().to_string()),
        ("IDENTITY_TOKEN_FILE", dir.join("token").display().to_string()),
        ("IDENTITY_LOCAL_NAME", NAME.to_owned()),
        ("IDENTITY_TRUST_ANCHORS", fs::read_to_string(dir.join("anchors.pem"))?),
        ("INBOUND_DEFAULT_POLICY", "all-unauthenticated".to_owned()),
        ("CORES", "1".to_owned()),
        ("LOG", "warn".to_owned()),
    ] {
        command.env(format!("LINKERD2_PROXY_{name}"), value);
    }
    Ok(command)
}

/// Writes what the proxy reads of its identity; the certificate that is missing in it.
fn make_identity(dir: &Path) -> anyhow::Result<Vec<u8>> {
    fs::write(dir.join("token"), "bench")?;
    let name = format!("subjectAltName=DNS:{NAME}");
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    for (line, last) in [
        (format!("req -x509 {key} -keyout ca.pem -out anchors.pem -days 2 -subj /CN=bench"), None),
        (
            format!("req -new {key} -keyout key.pem -outform DER -out csr.der -subj / -addext"),
            Some(name),
        ),
        ("pkcs8 -topk8 -nocrypt -in key.pem -outform DER -out key.p8".to_owned(), None),
        (
            "x509 -req -inform DER -in csr.der -CA anchors.pem -CAkey ca.pem -days 1 \
             -copy_extensions copy -outform DER -out leaf.der"
                .to_owned(),
            None,
        ),
    ] {
        let mut command = Command::new("openssl");
        command.current_dir(dir).args(line.split_whitespace()).args(last);
        let output = command.output().context("openssl is needed to certify linkerd2-proxy")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "openssl {line}: {said}");
    }
    Ok(fs::read(dir.join("leaf.der"))?)
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
