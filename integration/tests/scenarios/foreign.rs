//! The wire, held against programs that share no code with ours: a control plane in Python drives
//! our proxy, well and badly; a client in Python reads our control plane.

mod certified;
mod misbehaving;
mod reader;
mod well_behaved;

use std::fs;
use std::net::SocketAddr;

use mesh_integration::app::HttpApp;
use mesh_integration::client::http::full;
use mesh_integration::client::{Connection, Response};
use mesh_integration::mesh::Mesh;
use mesh_integration::process::Process;
use mesh_integration::python::{self, Python};
use serde_json::{Value, json};
use tempfile::TempDir;

const PROGRAM: &str = "foreign/control_plane.py";

/// The control plane in Python, and two applications that its policies lead to.
struct Foreign {
    addr: SocketAddr,
    good: HttpApp,
    /// Where changed messages would lead if they were taken for good.
    bad: HttpApp,
    dir: TempDir,
    _process: Process,
}

impl Foreign {
    async fn start(python: &Python) -> Self {
        Self::start_as(python, false).await
    }

    /// It certifies those who have the token in its folder.
    async fn start_with_identity(python: &Python) -> Self {
        Self::start_as(python, true).await
    }

    async fn start_as(python: &Python, identity: bool) -> Self {
        let app = |name: &'static str| {
            HttpApp::start(move |_| async move { http::Response::new(full(name)) })
        };
        let (good, bad) = (app("good").await, app("bad").await);
        let dir = tempfile::tempdir().unwrap();
        let mut command = python.script_with_messages(PROGRAM);
        command.arg(dir.path().join("endpoints.json"));
        if identity {
            command.arg(dir.path());
        }
        let mut process = Process::start("control-plane", command, dir.path());
        let port = python::port(&mut process).await;
        let addr = ([127, 0, 0, 1], port).into();
        let foreign = Self { addr, good, bad, dir, _process: process };
        foreign.tell_endpoints(None);
        foreign
    }

    /// Says where the endpoints are; `meshed` is behind a proxy.
    fn tell_endpoints(&self, meshed: Option<SocketAddr>) {
        let endpoints = json!({
            "good": self.good.addr(),
            "bad": self.bad.addr(),
            "meshed": meshed.unwrap_or(self.good.addr()),
        });
        fs::write(self.dir.path().join("endpoints.json"), endpoints.to_string()).unwrap();
    }

    /// All that it can do wrong.
    async fn list(python: &Python) -> Value {
        let dir = tempfile::tempdir().unwrap();
        let mut command = python.script_with_messages(PROGRAM);
        command.arg("list");
        let printed = Python::run("list", command, dir.path()).await;
        serde_json::from_str(&printed).unwrap()
    }
}

/// Asks a name through the forward proxy of the pod `client`.
async fn ask(mesh: &Mesh, name: &str) -> Response {
    let mut connection = Connection::open(mesh.pod("client").forward_proxy()).await;
    connection.send(format!("GET http://{name}/ HTTP/1.1\r\nHost: x\r\n\r\n")).await;
    connection.response().await
}

async fn rejected(mesh: &Mesh, pod: &str) -> u64 {
    mesh.pod(pod).config().await["control"]["config_rejected"].as_u64().unwrap()
}
