//! What meshctl and the supervisor say to each other on `supervisor.sock`: one JSON document a line.
//!
//! A request gets any number of [`Reply::Progress`] and then one other reply. A connection that joined an
//! application keeps it in the mesh for as long as it is open.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;

use mesh_control::source::{Problem, Severity};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::address::Mode;
use super::control::ControlStatus;
use super::process::ProcessId;
use super::store::{Fate, GivenFile, MAX_BYTES, ObjectId};

/// The longest line: all manifests, escaped.
const MAX_LINE: u64 = 4 * MAX_BYTES as u64;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Request {
    Status,
    Apply {
        files: Vec<GivenFile>,
    },
    Delete {
        files: Vec<GivenFile>,
    },
    Restart(Target),
    Scale {
        target: Target,
        replicas: u32,
    },
    Join(Join),
    /// After a join: the application runs as this process.
    Started {
        process: ProcessId,
    },
    Down,
}

/// A workload as the user names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// In any case; `deploy` and `sts` are known.
    pub kind: String,
    /// `None` if one namespace only has it.
    pub namespace: Option<String>,
    pub name: String,
}

/// An application somebody else runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    pub namespace: String,
    pub name: String,
    /// Where it listens, and the port of its service.
    pub port: u16,
    pub upstreams: Vec<JoinUpstream>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinUpstream {
    /// `name` or `name.namespace`
    pub service: String,
    pub port: u16,
    /// Where the application reaches it on 127.0.0.1; we choose if `None`.
    pub local_port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    Progress {
        text: String,
    },
    Done,
    Status(Box<Status>),
    Changed {
        fates: Vec<(ObjectId, Fate)>,
        warnings: Vec<Told>,
    },
    /// The manifests can't be put in force.
    Invalid {
        problems: Vec<Told>,
    },
    Joined(Joined),
    Failed {
        message: String,
        hint: Option<String>,
    },
}

/// A problem, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    pub error: bool,
    /// `web.yaml:12: Deployment/shop/web: spec.replicas: must be …`
    pub text: String,
}

impl From<&Problem> for Told {
    fn from(problem: &Problem) -> Self {
        Self { error: problem.severity == Severity::Error, text: problem.to_string() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    pub pod: String,
    pub ip: Ipv4Addr,
    /// For the application, on top of what it inherits.
    pub env: Vec<(String, String)>,
    /// The network namespace to run it in.
    pub netns: Option<String>,
    /// Where each upstream that was asked for is reached, by its authority.
    pub upstreams: BTreeMap<String, String>,
}

/// A running mesh.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub name: String,
    pub mode: Mode,
    pub number: u8,
    pub supervisor: ProcessId,
    pub version: String,
    pub control: Option<ControlStatus>,
    pub workloads: Vec<WorkloadRow>,
    pub pods: Vec<PodRow>,
    pub going_down: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadRow {
    pub kind: String,
    pub namespace: String,
    pub name: String,
    pub replicas: u32,
    /// Ready and made from the present template.
    pub ready: u32,
    /// All there are, with those that leave.
    pub pods: u32,
}

impl WorkloadRow {
    /// Whether it is as it should be, with nothing left of what was.
    pub fn is_settled(&self) -> bool {
        self.ready == self.replicas && self.pods == self.replicas
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRow {
    pub namespace: String,
    pub name: String,
    /// `Deployment/web`
    pub owner: String,
    pub ip: Ipv4Addr,
    pub ready: bool,
    /// `Starting`, `Running`, `NotReady`, `Error`, `CrashLoopBackOff`, `Terminating`
    pub state: String,
    pub restarts: u32,
    pub app_pid: Option<u32>,
    pub proxy_pid: Option<u32>,
    /// RFC 3339.
    pub created: String,
    /// What it lacks to be ready.
    pub waiting_for: Option<String>,
    /// Declared ports by where the application listens.
    pub ports: Vec<(u16, u16)>,
}

/// Reads one message; `None` at the end of the connection.
pub async fn read<T: DeserializeOwned>(
    from: &mut (impl AsyncBufRead + Unpin),
) -> io::Result<Option<T>> {
    let mut line = String::new();
    from.take(MAX_LINE).read_line(&mut line).await?;
    if line.is_empty() {
        return Ok(None);
    }
    serde_json::from_str(&line).map(Some).map_err(io::Error::from)
}

/// Writes one message.
pub async fn write(to: &mut (impl AsyncWrite + Unpin), message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    to.write_all(&line).await?;
    to.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::BufReader;

    #[tokio::test]
    async fn messages_are_lines() {
        let (mut here, there) = tokio::io::duplex(4096);
        let mut there = BufReader::new(there);
        let target =
            Target { kind: "deploy".to_owned(), namespace: None, name: "web\n".to_owned() };
        let sent = [Request::Status, Request::Scale { target, replicas: 3 }, Request::Down];
        for request in &sent {
            write(&mut here, request).await.unwrap();
        }
        drop(here);
        let mut received = Vec::new();
        while let Some(request) = read::<Request>(&mut there).await.unwrap() {
            received.push(request);
        }
        assert_eq!(received, sent);
    }

    #[tokio::test]
    async fn nonsense_is_an_error() {
        let mut text = BufReader::new(&b"{\"op\":\"dance\"}\n"[..]);
        assert!(read::<Request>(&mut text).await.is_err());
        let mut cut = BufReader::new(&b"{\"op\":"[..]);
        assert!(read::<Request>(&mut cut).await.is_err());
    }
}
