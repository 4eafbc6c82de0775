//! A local mesh as users have it: `meshctl` starts it, its supervisor runs it, `meshctl` tells of it.
//!
//! It differs from [`crate::mesh`] in that applications are processes and pods come and go. [`objects`] has manifests;
//! requests are sent through the proxy of a pod, see [`LocalMesh::way`].

pub mod objects;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::timeout;

use crate::client::http::Way;
use crate::{programs, sidecar};

/// No command of a scenario takes this long.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(120);
/// Lines of each log that are shown when a test fails.
const SHOWN_LINES: usize = 25;

/// A local mesh of one test, or the place for it. Dropping it ends it.
#[derive(Debug)]
pub struct LocalMesh {
    dir: TempDir,
    settings: Vec<(String, String)>,
}

/// What a command said.
#[derive(Clone, Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// A pod, as `meshctl local ps` tells.
#[derive(Clone, Debug)]
pub struct LocalPod {
    pub name: String,
    pub ip: Ipv4Addr,
    pub ready: bool,
    pub app: Option<Pid>,
    pub proxy: Option<Pid>,
    /// Where the application listens, behind the proxy.
    pub app_addr: SocketAddr,
}

impl Default for LocalMesh {
    fn default() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        for folder in ["scratch", "scratch/stay-down"] {
            fs::create_dir(dir.path().join(folder)).expect("a folder in the temporary one");
        }
        Self { dir, settings: Vec::new() }
    }
}

impl LocalMesh {
    /// A variable in the environment of `meshctl`.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs these objects and waits until all pods are ready.
    ///
    /// # Panics
    /// When that fails.
    pub async fn up(&self, objects: &[Value]) {
        let file = self.file("mesh.yaml", objects);
        self.meshctl(&["local", "up", "-f", &file.display().to_string()]).await.succeeded();
    }

    /// A folder for files of the test and its applications.
    pub fn scratch(&self) -> PathBuf {
        self.dir.path().join("scratch")
    }

    /// The folder of all that meshctl keeps about its meshes.
    pub fn state(&self) -> PathBuf {
        self.dir.path().join("meshctl")
    }

    /// Writes objects to a file of this name.
    ///
    /// # Panics
    /// When that is impossible.
    pub fn file(&self, name: &str, objects: &[Value]) -> PathBuf {
        let documents: Vec<_> = objects.iter().map(Value::to_string).collect();
        self.text_file(name, &documents.join("\n---\n"))
    }

    /// Writes a file of this name.
    ///
    /// # Panics
    /// When that is impossible.
    pub fn text_file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, text).expect("a file in the temporary folder");
        path
    }

    /// Runs `meshctl`, which sees no other mesh than this one.
    ///
    /// # Panics
    /// When it does not end.
    pub async fn meshctl(&self, args: &[&str]) -> Ran {
        let mut command = tokio::process::Command::from(self.command(args));
        let output = timeout(COMMAND_TIMEOUT, command.kill_on_drop(true).output()).await;
        let output = output.unwrap_or_else(|_| panic!("meshctl {args:?} does not end"));
        Ran::from(output.expect("meshctl starts"))
    }

    /// What `meshctl ARGS -o json` says.
    ///
    /// # Panics
    /// When that fails.
    pub async fn json(&self, args: &[&str]) -> Value {
        let ran = self.meshctl(&[args, &["-o", "json"]].concat()).await.succeeded();
        serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
    }

    /// The pods of a Deployment, by name.
    pub async fn pods(&self, owner: &str) -> Vec<LocalPod> {
        let owner = Value::from(format!("Deployment/{owner}"));
        let status = self.json(&["local", "ps"]).await;
        let pods = status["pods"].as_array().expect("a list of pods").iter();
        let mut pods: Vec<_> =
            pods.filter(|pod| pod["owner"] == owner).map(LocalPod::from).collect();
        pods.sort_by(|a, b| a.name.cmp(&b.name));
        pods
    }

    /// The process of the control plane.
    ///
    /// # Panics
    /// When it is not running.
    pub async fn control(&self) -> Pid {
        let status = self.json(&["local", "ps"]).await;
        process(&status["control"]["pid"]).expect("a running control plane")
    }

    /// The way of requests that the only pod of this Deployment makes.
    ///
    /// # Panics
    /// When there is none.
    pub async fn way(&self, owner: &str) -> Way {
        let pods = self.pods(owner).await;
        let pod = pods.first().unwrap_or_else(|| panic!("a pod of {owner}"));
        Way::Absolute((pod.ip, sidecar::OUTBOUND_PORT).into())
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(programs::meshctl());
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null());
        command.env("XDG_RUNTIME_DIR", self.dir.path()).env("KUBECONFIG", "/nonexistent");
        command.envs(self.settings.iter().map(|(name, value)| (name, value)));
        command
    }

    #[expect(clippy::print_stderr, reason = "the test runner shows it with the failed test")]
    fn show_logs(&self) {
        let logs = fs::read_dir(self.state().join("default/logs")).into_iter().flatten();
        for path in logs.flatten().map(|entry| entry.path()) {
            let log = fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
            eprintln!("---- the end of {} ----\n{tail}\n", path.display());
        }
    }
}

impl Drop for LocalMesh {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
        }
        // Fails where there is nothing to end.
        let _ = self.command(&["local", "down"]).output();
    }
}

impl LocalPod {
    /// Sends a signal to the application.
    ///
    /// # Panics
    /// When it is not running.
    pub fn signal_app(&self, signal: Signal) {
        send(self.app, signal);
    }

    /// Sends a signal to the proxy.
    ///
    /// # Panics
    /// When it is not running.
    pub fn signal_proxy(&self, signal: Signal) {
        send(self.proxy, signal);
    }
}

fn send(process: Option<Pid>, signal: Signal) {
    kill_process(process.expect("a running process"), signal).expect("a process of this test");
}

fn process(id: &Value) -> Option<Pid> {
    id.as_i64().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?))
}

impl From<&Value> for LocalPod {
    fn from(pod: &Value) -> Self {
        let text = |name: &str| pod[name].as_str().expect("a text").to_owned();
        let ip = text("ip").parse().expect("an address");
        let app_port = pod["ports"][0][1].as_u64().and_then(|port| u16::try_from(port).ok());
        Self {
            name: text("name"),
            ip,
            ready: pod["ready"] == true,
            app: process(&pod["app_pid"]),
            proxy: process(&pod["proxy_pid"]),
            app_addr: (ip, app_port.expect("a port")).into(),
        }
    }
}

impl Ran {
    /// # Panics
    /// When it did not.
    pub fn succeeded(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            code: output.status.code(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }
}

/// Whether a process of this id is there (one that has ended and waits for its parent is not).
pub fn runs(process: Pid) -> bool {
    let stat = fs::read_to_string(
        Path::new("/proc").join(process.as_raw_nonzero().to_string()).join("stat"),
    );
    // After the name in parentheses comes the state.
    stat.is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z")))
}
