//! The programs a request is sent through: how each is found, configured and started.
//!
//! [`peers`] holds the configuration of the others, [`mesh`] starts ours with the control plane it asks, [`linkerd`]
//! starts another that asks the same one.

mod linkerd;
mod mesh;
mod peers;

pub(crate) use self::linkerd::{backend_ip, move_to_namespace};

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use mesh_integration::load::idle;
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use tempfile::TempDir;

use crate::machine::{self, Cores};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Hop {
    /// No proxy at all.
    Direct,
    /// The least program on the same libraries.
    Floor,
    /// The least opaque proxy by splice(2).
    Splice,
    Nginx,
    Haproxy,
    Envoy,
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

/// Somewhere to send requests to; the process behind it ends when this is dropped.
pub(crate) struct Proxy {
    pub(crate) addr: SocketAddr,
    pub(crate) authority: String,
    /// `None` when there is no proxy in between.
    pub(crate) pid: Option<u32>,
    process: Option<Process>,
}

/// What all hops share: where the backend is, which cores are whose, a directory for configuration and logs.
pub(crate) struct Site {
    cores: Cores,
    backend: BackendAddrs,
    dir: TempDir,
    mesh: Option<mesh::Mesh>,
    started: u32,
}

impl Site {
    pub(crate) fn new(cores: Cores, backend: BackendAddrs) -> anyhow::Result<Self> {
        Ok(Self {
            cores,
            backend,
            dir: tempfile::Builder::new().prefix("mesh-peers-").tempdir()?,
            mesh: None,
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
        let upstream = match traffic {
            Traffic::Http2 => self.backend.http2,
            Traffic::Http1 | Traffic::Tcp => self.backend.http1,
        };
        if hop == Hop::Envoy && watched == Watched::ByCallgrind {
            // The package index installs a launcher, which is what callgrind would watch.
            return Ok(None);
        }
        let listen = match hop {
            Hop::Linkerd => mesh::service_addr(traffic),
            _ => free_addr()?,
        };
        let dir = self.next_dir(hop)?;
        let mut authority = "backend.bench".to_owned();
        let command = match hop {
            Hop::Direct => {
                return Ok(Some(Proxy { addr: upstream, authority, pid: None, process: None }));
            }
            Hop::Floor => Some(peers::floor(traffic, listen, upstream)),
            Hop::Splice => peers::splice(traffic, listen, upstream),
            Hop::Nginx => peers::nginx(traffic, listen, upstream, &dir)?,
            Hop::Haproxy => peers::haproxy(traffic, listen, upstream, &dir)?,
            Hop::Envoy => Some(peers::envoy(traffic, listen, upstream, &dir)?),
            Hop::Linkerd => {
                let program = linkerd::program().ok_or(Skipped::NotInstalled(
                    "not named (L5D_PROXY_BIN is the path of a linkerd2-proxy)",
                ))?;
                authority = mesh::authority(traffic);
                Some(linkerd::command(&program, self.mesh()?.control, &dir)?)
            }
            Hop::Mesh => {
                authority = mesh::authority(traffic);
                Some(self.mesh()?.proxy(traffic, listen)?)
            }
        };
        let command = match (command, watched) {
            (None, _) => return Ok(None),
            (Some(command), Watched::No) => command,
            (Some(command), Watched::ByCallgrind) => under_callgrind(&command, &dir)?,
        };
        let process = Process::start(command, &dir, self.cores.proxy, self.cores.load)?;
        process.wait_until_serving(traffic, listen, &authority)?;
        Ok(Some(Proxy {
            addr: listen,
            authority,
            pid: Some(process.child.id()),
            process: Some(process),
        }))
    }

    /// The control plane outlives the proxies of a row.
    fn mesh(&mut self) -> Result<&mesh::Mesh, Skipped> {
        if self.mesh.is_none() {
            let dir = self.next_dir(Hop::Mesh)?;
            self.mesh = Some(mesh::Mesh::start(self.cores, self.backend, &dir)?);
        }
        self.mesh.as_ref().ok_or_else(|| anyhow!("there is no control plane").into())
    }

    fn next_dir(&mut self, hop: Hop) -> std::io::Result<PathBuf> {
        self.started += 1;
        let dir = self.dir.path().join(format!("{hop}-{}", self.started));
        std::fs::create_dir(&dir)?;
        Ok(dir)
    }
}

impl Proxy {
    /// Ends a program under callgrind; the instructions it executed. `None` when there is no program.
    pub(crate) fn stop_and_count(self) -> anyhow::Result<Option<u64>> {
        let Some(mut process) = self.process else {
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

/// Every child not yet waited for, so that an interrupted run leaves none behind.
static RUNNING: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

pub(crate) fn stop_all() {
    for pid in RUNNING.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        // It may have ended by itself; it cannot be somebody else's, because it was not waited for.
        let _ = kill_process(*pid, Signal::KILL);
    }
}

/// Where callgrind writes, in the hop's directory.
const COUNTS: &str = "callgrind.out";

/// A child on a core of its own, killed when dropped.
struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    fn start(mut command: Command, dir: &Path, on: usize, back_to: usize) -> anyhow::Result<Self> {
        let log = dir.join("log");
        let output = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        machine::pin(on)?;
        let spawned = command.spawn();
        machine::pin(back_to)?;
        let child =
            spawned.with_context(|| format!("starting {}", command.get_program().display()))?;
        RUNNING
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(Pid::from_raw(child.id().cast_signed()));
        Ok(Self { child, log })
    }

    fn wait_until_serving(
        &self,
        traffic: Traffic,
        addr: SocketAddr,
        authority: &str,
    ) -> anyhow::Result<()> {
        self.wait_until(|| match traffic {
            Traffic::Http1 | Traffic::Tcp => Ok(idle::hold(addr, authority, 1).map(drop)?),
            Traffic::Http2 => Ok(std::net::TcpStream::connect(addr).map(drop)?),
        })
    }

    /// Until `ready` succeeds; what it said last is part of the error when it never does.
    fn wait_until(&self, ready: impl Fn() -> anyhow::Result<()>) -> anyhow::Result<()> {
        const PATIENCE: Duration = Duration::from_secs(20);
        let begin = Instant::now();
        loop {
            match ready() {
                Ok(()) => return Ok(()),
                Err(error) if begin.elapsed() > PATIENCE => {
                    return Err(error.context(format!("it does not serve; {}", self.last_words())));
                }
                Err(_) => crate::pause(Duration::from_millis(20)),
            }
        }
    }

    /// Asks it to end, and waits until it did.
    fn terminate(&mut self) -> anyhow::Result<()> {
        const PATIENCE: Duration = Duration::from_secs(30);
        let pid = Pid::from_raw(self.child.id().cast_signed()).context("a child has an id")?;
        kill_process(pid, Signal::TERM)?;
        let begin = Instant::now();
        while self.child.try_wait()?.is_none() {
            if begin.elapsed() > PATIENCE {
                bail!("it does not end when told to; {}", self.last_words());
            }
            crate::pause(Duration::from_millis(20));
        }
        Ok(())
    }

    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(5)..].join("\n  ");
        format!("it said:\n  {last}\n ")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Neither can fail for a child that was not waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let pid = Pid::from_raw(self.child.id().cast_signed());
        RUNNING
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|running| Some(*running) != pid);
    }
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
