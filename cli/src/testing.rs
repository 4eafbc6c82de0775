//! A scripted control plane on a unix socket, and commands run against it as a user would: words in, text and exit
//! code out. For unit tests only.

pub(crate) mod objects;

use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use clap::Parser;
use jiff::tz::TimeZone;
use mesh_api::ext;
use mesh_api::ext::mesh_server::{Mesh, MeshServer};
use mesh_api::ext::mesh_tap_event::Event;
use mesh_model::stats::Totals;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use crate::args::Cli;
use crate::cluster::KubeFiles;
use crate::commands;
use crate::context::Context;
use crate::error::CliError;
use crate::output::Ui;
use crate::state_dir::StateRoot;

/// What the control plane answers. Resources are filtered by kind, name and namespace, all else is given as it is.
#[derive(Clone, Debug, Default)]
pub(crate) struct FakeMesh {
    pub info: ext::InfoReply,
    pub workloads: Vec<ext::Workload>,
    pub stat: ext::StatReply,
    pub edges: ext::EdgesReply,
    pub tap: Vec<Event>,
    pub endpoints: ext::EndpointsReply,
    /// Know nothing of any authority.
    pub unknown_endpoints: bool,
    pub routes: Vec<ext::RouteRow>,
    pub authorizations: Vec<ext::AuthorizationRow>,
    pub port_authorizations: ext::PortAuthorizationsReply,
    pub observed: ext::MeshObservedReply,
    pub what_if: ext::WhatIfReply,
    pub analysis: ext::AnalyzeReply,
    pub notable: ext::MeshNotableReply,
    pub proxies: Vec<ext::ProxyRow>,
    pub config: String,
    /// Refuse everything with this.
    pub refusal: Option<Status>,
    pub asked: Arc<Mutex<Asked>>,
}

/// The last request of each kind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked {
    pub stat: Option<ext::StatRequest>,
    pub tap: Option<ext::MeshTapRequest>,
    pub endpoints: Option<ext::EndpointsRequest>,
    pub port_authorizations: Option<ext::PortAuthorizationsRequest>,
    pub what_if: Option<ext::WhatIfRequest>,
    pub analyze: Option<ext::AnalyzeRequest>,
    pub notable: Option<ext::MeshNotableRequest>,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub result: Result<ExitCode, CliError>,
    pub out: String,
    pub err: String,
    pub asked: Asked,
}

impl FakeMesh {
    /// Runs `meshctl LINE` with this as its only, local mesh.
    pub(crate) async fn run(self, line: &str) -> Ran {
        let home = tempfile::tempdir().unwrap();
        let asked = self.asked.clone();
        let _lock = self.serve(&home);
        let mut ran = run(line, &home).await;
        ran.asked = asked.lock().unwrap().clone();
        ran
    }

    /// Stands in for a running mesh of the name `default`; the lock lasts as long as the file is open.
    pub(crate) fn serve(self, home: &TempDir) -> File {
        let dir = home.path().join("default");
        // Whatever the umask is.
        DirBuilder::new().mode(0o700).create(&dir).unwrap();
        let lock = File::create(dir.join("lock")).unwrap();
        lock.lock().unwrap();
        let socket = UnixListener::bind(dir.join("control.sock")).unwrap();
        let routes = tonic::service::Routes::new(self.server());
        let serving = tonic::transport::Server::builder()
            .add_routes(routes)
            .serve_with_incoming(UnixListenerStream::new(socket));
        tokio::spawn(serving);
        lock
    }

    /// For connections of another kind.
    pub(crate) fn server(self) -> MeshServer<Self> {
        MeshServer::new(self)
    }

    fn answer<T>(&self, reply: T) -> Result<Response<T>, Status> {
        match &self.refusal {
            Some(status) => Err(status.clone()),
            None => Ok(Response::new(reply)),
        }
    }
}

/// Runs `meshctl LINE` on a machine without any mesh.
pub(crate) async fn run_alone(line: &str) -> Ran {
    run(line, &tempfile::tempdir().unwrap()).await
}

pub(crate) async fn run(line: &str, home: &TempDir) -> Ran {
    run_in(line, home, KubeFiles::Given(Box::default())).await
}

/// Runs `meshctl LINE` with the local meshes of `home` and the clusters of `kube`.
pub(crate) async fn run_in(line: &str, home: &TempDir, kube: KubeFiles) -> Ran {
    let (out, err) = (Captured::default(), Captured::default());
    let words = std::iter::once("meshctl").chain(line.split_whitespace());
    let cli = Cli::try_parse_from(words).unwrap();
    let mut cx = Context {
        global: cli.global,
        state: StateRoot::new(home.path()),
        kube,
        ui: Ui::plain(out.clone(), err.clone()),
        zone: TimeZone::UTC,
    };
    // Boxed, as it holds the largest of all commands.
    let result = Box::pin(commands::run(cli.command, &mut cx)).await;
    Ran { result, out: out.text(), err: err.text(), asked: Asked::default() }
}

/// Compares with `tests/golden/NAME`; `MESH_BLESS=1` writes it anew.
pub(crate) fn golden(name: &str, text: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("MESH_BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let want = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        text == want,
        "{} differs (MESH_BLESS=1 rewrites it).\nwant:\n{want}\ngot:\n{text}",
        path.display()
    );
}

pub(crate) fn object(kind: &str, namespace: &str, name: &str) -> ext::ObjectRef {
    ext::ObjectRef { kind: kind.into(), name: name.into(), namespace: namespace.into() }
}

/// A workload whose pods are all ready and meshed.
pub(crate) fn workload(kind: &str, namespace: &str, name: &str, pods: u8) -> ext::Workload {
    let pod = |at: u8| ext::Pod {
        name: format!("{name}-{at}"),
        namespace: namespace.into(),
        ip: format!("127.101.0.{at}"),
        ready: true,
        meshed: true,
        terminating: false,
        owner: Some(object(kind, namespace, name)),
        identity: String::new(),
    };
    ext::Workload {
        r#ref: Some(object(kind, namespace, name)),
        pods: (1..=pods).map(pod).collect(),
        ..Default::default()
    }
}

/// A proxy in the best of health.
pub(crate) fn proxy_row(pod: &str) -> ext::ProxyRow {
    ext::ProxyRow {
        pod: pod.into(),
        namespace: "shop".into(),
        ip: "127.101.0.1".into(),
        reachable: true,
        error: String::new(),
        version: env!("CARGO_PKG_VERSION").into(),
        uptime_seconds: 300,
        streams_up: 4,
        streams_wanted: 4,
        config_rejected: 0,
        rss_bytes: 9 << 20,
        ready: true,
        identity: None,
    }
}

/// Totals of requests that all took about this long.
pub(crate) fn totals(success: u64, failure: u64, millis: u64) -> ext::Totals {
    let mut totals = Totals::default();
    let took = std::time::Duration::from_millis(millis);
    (0..success).for_each(|_| totals.add_response(200, true, took / 2, took));
    (0..failure).for_each(|_| totals.add_response(503, false, took / 2, took));
    totals.request_bytes = 6_000;
    totals.response_bytes = 600_000;
    ext::Totals { tcp_open: 3, ..ext::Totals::from(&totals) }
}

/// What a command printed.
#[derive(Clone, Default)]
pub(crate) struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tonic::async_trait]
impl Mesh for FakeMesh {
    type TapStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<ext::MeshTapEvent, Status>> + Send>>;

    async fn info(&self, _: Request<ext::InfoRequest>) -> Result<Response<ext::InfoReply>, Status> {
        self.answer(self.info.clone())
    }

    async fn resources(
        &self,
        request: Request<ext::Selector>,
    ) -> Result<Response<ext::ResourcesReply>, Status> {
        let wanted = request.into_inner();
        let fits = |of: &ext::ObjectRef| {
            of.kind == wanted.kind
                && (wanted.name.is_empty() || of.name == wanted.name)
                && (wanted.namespace.is_empty() || of.namespace == wanted.namespace)
        };
        let workloads =
            self.workloads.iter().filter(|w| w.r#ref.as_ref().is_some_and(fits)).cloned().collect();
        self.answer(ext::ResourcesReply { workloads })
    }

    async fn stat(
        &self,
        request: Request<ext::StatRequest>,
    ) -> Result<Response<ext::StatReply>, Status> {
        self.asked.lock().unwrap().stat = Some(request.into_inner());
        self.answer(self.stat.clone())
    }

    async fn edges(
        &self,
        _: Request<ext::EdgesRequest>,
    ) -> Result<Response<ext::EdgesReply>, Status> {
        self.answer(self.edges.clone())
    }

    async fn tap(
        &self,
        request: Request<ext::MeshTapRequest>,
    ) -> Result<Response<Self::TapStream>, Status> {
        self.asked.lock().unwrap().tap = Some(request.into_inner());
        let events: Vec<_> =
            self.tap.iter().map(|e| Ok(ext::MeshTapEvent { event: Some(e.clone()) })).collect();
        self.answer(Box::pin(tokio_stream::iter(events)))
    }

    async fn endpoints(
        &self,
        request: Request<ext::EndpointsRequest>,
    ) -> Result<Response<ext::EndpointsReply>, Status> {
        self.asked.lock().unwrap().endpoints = Some(request.into_inner());
        if self.unknown_endpoints {
            return Err(Status::not_found("nobody"));
        }
        self.answer(self.endpoints.clone())
    }

    async fn routes(
        &self,
        _: Request<ext::Selector>,
    ) -> Result<Response<ext::RoutesReply>, Status> {
        self.answer(ext::RoutesReply { routes: self.routes.clone() })
    }

    async fn authorizations(
        &self,
        _: Request<ext::Selector>,
    ) -> Result<Response<ext::AuthorizationsReply>, Status> {
        self.answer(ext::AuthorizationsReply { rows: self.authorizations.clone() })
    }

    async fn port_authorizations(
        &self,
        request: Request<ext::PortAuthorizationsRequest>,
    ) -> Result<Response<ext::PortAuthorizationsReply>, Status> {
        self.asked.lock().unwrap().port_authorizations = Some(request.into_inner());
        self.answer(self.port_authorizations.clone())
    }

    async fn observed(
        &self,
        _: Request<ext::MeshObservedRequest>,
    ) -> Result<Response<ext::MeshObservedReply>, Status> {
        self.answer(self.observed.clone())
    }

    async fn what_if(
        &self,
        request: Request<ext::WhatIfRequest>,
    ) -> Result<Response<ext::WhatIfReply>, Status> {
        self.asked.lock().unwrap().what_if = Some(request.into_inner());
        self.answer(self.what_if.clone())
    }

    async fn analyze(
        &self,
        request: Request<ext::AnalyzeRequest>,
    ) -> Result<Response<ext::AnalyzeReply>, Status> {
        self.asked.lock().unwrap().analyze = Some(request.into_inner());
        self.answer(self.analysis.clone())
    }

    async fn notable(
        &self,
        request: Request<ext::MeshNotableRequest>,
    ) -> Result<Response<ext::MeshNotableReply>, Status> {
        self.asked.lock().unwrap().notable = Some(request.into_inner());
        self.answer(self.notable.clone())
    }

    async fn proxies(
        &self,
        _: Request<ext::Selector>,
    ) -> Result<Response<ext::ProxiesReply>, Status> {
        self.answer(ext::ProxiesReply { proxies: self.proxies.clone() })
    }

    async fn proxy_config(
        &self,
        _: Request<ext::ProxyConfigRequest>,
    ) -> Result<Response<ext::ConfigReply>, Status> {
        self.answer(ext::ConfigReply { json: self.config.clone() })
    }

    async fn refresh(
        &self,
        _: Request<ext::RefreshRequest>,
    ) -> Result<Response<ext::RefreshReply>, Status> {
        self.answer(ext::RefreshReply {})
    }
}
