//! Transparent mode: network namespaces joined by a bridge, with the redirect that leads all traffic of a pod
//! through its proxy.
//!
//! The hub namespace holds the bridge and the control plane; each pod's namespace has one end of a veth pair
//! in it. The machine's own network is not touched. Everything is made with the tool `ip`, but for the redirect:
//! that is what a pod's init container does in a cluster.

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;

use rustix::thread::LinkNameSpaceType;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpSocket;
use tokio::process::Command;

use super::address::{PROXY_INBOUND_PORT, PROXY_OUTBOUND_PORT};
use super::process::{c_path, prepare};
use super::programs::Program;

/// The user the proxies run as; what they send is not redirected to them again.
pub const PROXY_UID: u32 = 2102;

const BRIDGE: &str = "mesh";

/// Why there can't be a transparent mesh.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    #[error(
        "a transparent mesh needs root, to make network namespaces; run it with sudo, or without --transparent"
    )]
    NotRoot,
    #[error("`{tool}` is not on PATH; a transparent mesh needs it: install the package {package}")]
    MissingTool { tool: &'static str, package: &'static str },
    #[error("`{command}` failed: {message}")]
    Tool { command: String, message: String },
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
}

/// The namespace of the bridge of the mesh with this number.
pub fn hub_name(number: u8) -> String {
    format!("mesh-{number}-hub")
}

/// The namespace of a pod.
pub fn pod_name(number: u8, pod: &str) -> String {
    format!("mesh-{number}-{pod}")
}

/// A network namespace that exists under `/run/netns`, with its own `/etc/hosts`.
#[derive(Debug)]
pub struct Netns {
    name: String,
    fd: File,
    hosts: CString,
    resolv_conf: CString,
}

impl Netns {
    /// Makes the hub of a mesh: the bridge, and `ip` on it.
    pub async fn create_hub(name: &str, ip: Ipv4Addr) -> Result<Self, NetnsError> {
        ip_batch(&format!("netns add {name}\n")).await?;
        ip_batch_in(
            name,
            &format!(
                "link set lo up\nlink add {BRIDGE} type bridge\naddr add {ip}/17 dev {BRIDGE}\nlink set {BRIDGE} up\n"
            ),
        )
        .await?;
        Self::with_files(name, "")
    }

    /// Makes the namespace of a pod, joined to the hub.
    pub async fn create_pod(
        name: &str,
        hub: &Netns,
        hub_ip: Ipv4Addr,
        ip: Ipv4Addr,
        hosts: &str,
    ) -> Result<Self, NetnsError> {
        let [_, _, high, low] = ip.octets();
        let (veth, hub) = (format!("pod{high}-{low}"), &hub.name);
        ip_batch(&format!(
            "netns add {name}\nlink add {veth} netns {hub} type veth peer name eth0 netns {name}\n"
        ))
        .await?;
        ip_batch_in(hub, &format!("link set {veth} master {BRIDGE} up\n")).await?;
        ip_batch_in(
            name,
            &format!(
                "link set lo up\naddr add {ip}/17 dev eth0\nlink set eth0 up\nroute add default via {hub_ip}\n"
            ),
        )
        .await?;
        Self::with_files(name, hosts)
    }

    /// Leads all traffic of the pod through its proxy: the part of a pod's init container.
    pub async fn redirect(self: &Arc<Self>, proxy: &Program) -> Result<(), NetnsError> {
        let args = redirect_args();
        let mut command = std::process::Command::new(&proxy.path);
        command.args(&args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        if let Some(arg0) = &proxy.arg0 {
            command.arg0(arg0);
        }
        prepare(&mut command, Some(Arc::clone(self)), None);
        let output = Command::from(command).kill_on_drop(true).output().await;
        ended(&format!("mesh-proxy {}", args.join(" ")), output)
    }

    /// A pod's namespace that was made before.
    pub fn open(name: &str) -> Result<Self, NetnsError> {
        let path = Path::new("/run/netns").join(name);
        let of_path = |path: PathBuf| move |source: io::Error| NetnsError::File { path, source };
        let etc = etc_dir(name);
        let c_path = |path: PathBuf| c_path(&path).map_err(of_path(path));
        Ok(Self {
            name: name.to_owned(),
            fd: File::open(&path).map_err(of_path(path))?,
            hosts: c_path(etc.join("hosts"))?,
            resolv_conf: c_path(etc.join("resolv.conf"))?,
        })
    }

    fn with_files(name: &str, hosts: &str) -> Result<Self, NetnsError> {
        let etc = etc_dir(name);
        let hosts = format!("127.0.0.1 localhost\n{hosts}");
        // Some programs want a server to be named. This is the one that is asked where none is.
        let resolv_conf = "# names of services are in /etc/hosts\nnameserver 127.0.0.1\noptions timeout:1 attempts:1\n";
        for (file, text) in [("hosts", hosts.as_str()), ("resolv.conf", resolv_conf)] {
            let path = etc.join(file);
            fs::create_dir_all(&etc)
                .and_then(|()| fs::write(&path, text))
                .map_err(|source| NetnsError::File { path, source })?;
        }
        Self::open(name)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub fn hosts(&self) -> &CStr {
        &self.hosts
    }

    pub fn resolv_conf(&self) -> &CStr {
        &self.resolv_conf
    }

    /// Replaces the names of services. Running processes see it: the file is written in place.
    pub fn write_hosts(&self, hosts: &str) -> io::Result<()> {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(etc_dir(&self.name).join("hosts"))?;
        file.write_all(format!("127.0.0.1 localhost\n{hosts}").as_bytes())
    }

    /// A socket that lives in the namespace although this process does not.
    pub fn socket(&self) -> io::Result<TcpSocket> {
        let network = Some(LinkNameSpaceType::Network);
        let home = File::open("/proc/thread-self/ns/net")?;
        rustix::thread::move_into_link_name_space(self.fd(), network)?;
        let socket = TcpSocket::new_v4();
        if let Err(error) = rustix::thread::move_into_link_name_space(home.as_fd(), network) {
            // Everything this thread does from here on would be in the wrong network.
            tracing::error!(%error, "can't return from the namespace {}", self.name);
            std::process::abort();
        }
        socket
    }
}

/// Removes a namespace and its files; whether they existed or not is all the same.
pub async fn remove(name: &str) {
    if Path::new("/run/netns").join(name).exists()
        && let Err(error) = ip_batch(&format!("netns delete {name}\n")).await
    {
        tracing::warn!(%error, "a namespace is left behind");
    }
    for folder in [etc_dir(name), proxy_dir(name)] {
        let _ = fs::remove_dir_all(folder);
    }
}

/// The namespaces of the mesh with this number that exist, whoever made them.
pub fn existing(number: u8) -> Vec<String> {
    let prefix = format!("mesh-{number}-");
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(&prefix))
        .collect()
}

/// Whether this process may make namespaces and has the tools to.
pub fn check_requirements() -> Result<(), NetnsError> {
    if !rustix::process::geteuid().is_root() {
        return Err(NetnsError::NotRoot);
    }
    match super::programs::find("ip", None) {
        Some(_) => Ok(()),
        None => Err(NetnsError::MissingTool { tool: "ip", package: "iproute2" }),
    }
}

/// For what only the proxy of a pod may read: it can't enter the folders of the user who started the mesh.
pub fn proxy_dir(name: &str) -> PathBuf {
    Path::new("/run/mesh-proxy").join(name)
}

fn etc_dir(name: &str) -> PathBuf {
    Path::new("/etc/netns").join(name)
}

fn redirect_args() -> [String; 4] {
    [
        "init-redirect".to_owned(),
        format!("--proxy-uid={PROXY_UID}"),
        format!("--inbound-port={PROXY_INBOUND_PORT}"),
        format!("--outbound-port={PROXY_OUTBOUND_PORT}"),
    ]
}

async fn ip_batch(commands: &str) -> Result<(), NetnsError> {
    run("ip", &["-batch", "-"], commands).await
}

async fn ip_batch_in(netns: &str, commands: &str) -> Result<(), NetnsError> {
    run("ip", &["-n", netns, "-batch", "-"], commands).await
}

async fn run(tool: &str, args: &[&str], stdin: &str) -> Result<(), NetnsError> {
    let run = async {
        let mut child = Command::new(tool)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut pipe) = child.stdin.take() {
            pipe.write_all(stdin.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    ended(&format!("{tool} {}", args.join(" ")), run.await)
}

/// A program's failure, in its own words.
fn ended(command: &str, output: io::Result<Output>) -> Result<(), NetnsError> {
    let failed = |message| NetnsError::Tool { command: command.to_owned(), message };
    let output = output.map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(failed(stderr.lines().take(3).collect::<Vec<_>>().join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_meshs_namespaces_are_listed() {
        assert_eq!(existing(0), Vec::<String>::new());
    }
}
