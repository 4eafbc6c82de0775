//! The programs a request is sent through: how each is found, configured and started.
//!
//! [`peers`] and [`envoy`] hold the configuration of the others, [`mesh`] starts ours with the control plane it asks,
//! [`linkerd`] starts another that asks the same one. [`pairs`] puts two of a kind behind each other, with mTLS between
//! them.

mod certificates;
mod envoy;
mod linkerd;
mod mesh;
mod pairs;
mod peers;
mod process;

pub(crate) use self::linkerd::{backend_ip, move_to_namespace};
pub(crate) use self::process::stop_all;

use std::ffi::OsString;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, anyhow};
use serde::Serialize;
use tempfile::TempDir;

use self::certificates::Certificates;
use self::envoy::Envoy;
use self::process::Process;
use crate::machine::Cores;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Hop {
    /// No proxy at all.
    Direct,
    /// The least program on the same libraries.
    Floor,
    /// Two of the least opaque proxy with TLS between them, which is what a mesh of layer 4 does.
    FloorTcp,
    /// The least opaque proxy by splice(2).
    Splice,
    Nginx,
    Haproxy,
    Envoy,
    /// Two of them that speak HTTP/2 to each other, though HTTP/1 to the outside.
    EnvoyH2,
    /// linkerd2-proxy.
    Linkerd,
    Mesh,
}

/// What a proxy is told the bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Traffic {
    Http1,
    Http2,
    Tcp,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct BackendAddrs {
    pub(crate) http1: SocketAddr,
    pub(crate) http2: SocketAddr,
}

impl BackendAddrs {
    fn of(self, traffic: Traffic) -> SocketAddr {
        match traffic {
            Traffic::Http2 => self.http2,
            Traffic::Http1 | Traffic::Tcp => self.http1,
        }
    }
}

/// Whether a tool counts what the program does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watched {
    No,
    ByCallgrind,
}

/// Why a hop is not in a row.
pub(crate) enum Skipped {
    NotInstalled(&'static str),
    Failed(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Skipped {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Somewhere to send requests to; the processes behind it end when this is dropped.
pub(crate) struct Proxy {
    pub(crate) addr: SocketAddr,
    pub(crate) authority: String,
    /// In the order that requests pass them; empty when there is no proxy in between.
    processes: Vec<Process>,
}

/// What all hops share: where the backend is, which cores are whose, a directory for configuration and logs.
pub(crate) struct Site {
    cores: Cores,
    backend: BackendAddrs,
    dir: TempDir,
    mesh: Option<mesh::Mesh>,
    /// Of proxies that have identities.
    secured_mesh: Option<mesh::Mesh>,
    /// Of linkerd's, for whom the backend's pod is at another address.
    linkerd_mesh: Option<mesh::Mesh>,
    certificates: Option<Certificates>,
    started: u32,
}

impl Site {
    pub(crate) fn new(cores: Cores, backend: BackendAddrs) -> anyhow::Result<Self> {
        Ok(Self {
            cores,
            backend,
            dir: tempfile::Builder::new().prefix("mesh-peers-").tempdir()?,
            mesh: None,
            secured_mesh: None,
            linkerd_mesh: None,
            certificates: None,
            started: 0,
        })
    }

    pub(crate) fn cores(&self) -> Cores {
        self.cores
    }

    /// Starts a hop and waits until it serves. `None` where it has no part in this kind of traffic.
    pub(crate) fn start(
        &mut self,
        hop: Hop,
        traffic: Traffic,
        watched: Watched,
    ) -> Result<Option<Proxy>, Skipped> {
        let upstream = self.backend.of(traffic);
        if hop == Hop::Envoy && watched == Watched::ByCallgrind {
            // The package index installs a launcher, which is what callgrind would watch.
            return Ok(None);
        }
        let listen = address_of(hop, traffic)?;
        let dir = self.next_dir(hop)?;
        let mut authority = "backend.bench".to_owned();
        let command = match hop {
            Hop::Direct => {
                return Ok(Some(Proxy { addr: upstream, authority, processes: Vec::new() }));
            }
            Hop::FloorTcp | Hop::EnvoyH2 => None,
            Hop::Floor => Some(peers::floor(traffic, listen, upstream)),
            Hop::Splice => peers::splice(traffic, listen, upstream),
            Hop::Nginx => peers::nginx(traffic, listen, upstream, &dir)?,
            Hop::Haproxy => peers::haproxy(traffic, listen, upstream, &dir)?,
            Hop::Envoy => {
                let secured = envoy::Secured::Neither;
                let envoy = Envoy { listen, upstream, speaks: (traffic, traffic), secured };
                Some(envoy.command(&dir)?)
            }
            Hop::Linkerd => {
                let program = linkerd::program()?;
                authority = mesh::authority(traffic);
                let control = self.mesh()?.control;
                Some(linkerd::unsecured(&program, control, self.certificates()?, &dir)?)
            }
            Hop::Mesh => {
                authority = mesh::authority(traffic);
                Some(self.mesh()?.client(traffic, listen)?.0)
            }
        };
        let command = match (command, watched) {
            (None, _) => return Ok(None),
            (Some(command), Watched::No) => command,
            (Some(command), Watched::ByCallgrind) => under_callgrind(&command, &dir)?,
        };
        let process = Process::start(command, &dir, self.cores.proxy, self.cores.load)?;
        process.wait_until_serving(traffic, listen, &authority)?;
        Ok(Some(Proxy { addr: listen, authority, processes: vec![process] }))
    }

    /// The control plane outlives the proxies of a row.
    fn mesh(&mut self) -> Result<&mesh::Mesh, Skipped> {
        if self.mesh.is_none() {
            self.mesh = Some(self.start_mesh(None)?);
        }
        self.mesh.as_ref().ok_or_else(|| anyhow!("there is no control plane").into())
    }

    fn start_mesh(&mut self, secured: Option<mesh::Secured>) -> anyhow::Result<mesh::Mesh> {
        let dir = self.next_dir(Hop::Mesh)?;
        mesh::Mesh::start(self.cores, self.backend, &dir, secured)
    }

    fn next_dir(&mut self, hop: Hop) -> std::io::Result<PathBuf> {
        self.started += 1;
        let dir = self.dir.path().join(format!("{hop}-{}", self.started));
        std::fs::create_dir(&dir)?;
        Ok(dir)
    }
}

impl Proxy {
    /// Of every program that requests pass.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.processes.iter().map(Process::id).collect()
    }

    /// Ends a program under callgrind; the instructions it executed. `None` when there is no program.
    pub(crate) fn stop_and_count(self) -> anyhow::Result<Option<u64>> {
        let Some(mut process) = self.processes.into_iter().next() else {
            return Ok(None);
        };
        process.terminate()?;
        let counts = std::fs::read_to_string(process.log.with_file_name(COUNTS))
            .with_context(|| process.last_words())?;
        let total = counts.lines().find_map(|line| line.strip_prefix("totals: "));
        let total = total.and_then(|total| total.trim().parse().ok());
        Ok(Some(total.context("callgrind's file has no totals")?))
    }
}

impl fmt::Display for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        crate::report::value_name(self, f)
    }
}

/// Where callgrind writes, in the hop's directory.
const COUNTS: &str = "callgrind.out";

/// Where a hop takes requests: anywhere, unless it asks the kernel where they were going.
fn address_of(hop: Hop, traffic: Traffic) -> std::io::Result<SocketAddr> {
    if hop == Hop::Linkerd { Ok(mesh::service_addr(traffic)) } else { free_addr() }
}

/// A loopback address nobody listens on at the moment.
fn free_addr() -> std::io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

/// The same command, its instructions counted into a file that [`Proxy::stop_and_count`] reads.
fn under_callgrind(command: &Command, dir: &Path) -> Result<Command, Skipped> {
    let valgrind = find("valgrind", "VALGRIND_BIN").ok_or(Skipped::NotInstalled(
        "not counted without valgrind (apt-get install valgrind, or VALGRIND_BIN)",
    ))?;
    let mut watched = Command::new(valgrind);
    watched.arg("--tool=callgrind").arg("-q");
    watched.arg(format!("--callgrind-out-file={}", dir.join(COUNTS).display()));
    watched.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => watched.env(name, value),
            None => watched.env_remove(name),
        };
    }
    Ok(watched)
}

/// The program named by the variable, or found where programs are installed.
fn find(name: &str, variable: &str) -> Option<PathBuf> {
    if let Some(given) = std::env::var_os(variable) {
        return Some(given.into());
    }
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(OsString::from(":/usr/sbin:/usr/local/sbin"));
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|program| program.is_file())
}
