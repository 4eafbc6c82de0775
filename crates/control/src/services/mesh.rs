//! What `meshctl` and the dashboard ask: the service `mesh.ext.v1.Mesh`.
//!
//! Each method is in a file of its own; here is how they are reached.

use std::sync::Arc;
use std::time::Duration;

use mesh_api::ext::mesh_server::{Mesh, MeshServer};
use mesh_api::ext::{self, Selector};
use tonic::{Request, Response, Status};

use super::ask::Asker;
use super::select::{self, InvalidSelector, Selected, owner_ref, select};
use super::{
    analysis, authz, edges, notable, observed, ports, proxies, routes, stat, tap, what_if,
};
use crate::index::Objects;
use crate::index::object::Pod;
use crate::source::Problem;
use crate::state::Shared;

/// How long a question waits for a control plane that has just begun.
const PATIENCE: Duration = Duration::from_secs(3);

/// Answers for the whole mesh.
#[derive(Clone, Debug)]
pub struct MeshService {
    shared: Arc<Shared>,
    source: &'static str,
    asker: Asker,
}

impl MeshService {
    /// `source` is the source's name, as `Info` tells it.
    pub fn new(shared: Arc<Shared>, source: &'static str) -> Self {
        Self { asker: Asker::new(&shared), shared, source }
    }

    /// Asks proxies at another port than theirs.
    #[cfg(test)]
    pub(super) fn with_proxy_port(mut self, port: u16) -> Self {
        self.asker = self.asker.with_port(port);
        self
    }

    pub fn into_server(self) -> MeshServer<Self> {
        MeshServer::new(self)
    }

    /// Waits until the source has told everything. What is not known yet looks as if it did not exist, and people
    /// act on that: a rotation would drop a root because "no proxy" needs it.
    async fn informed(&self) -> Result<(), Failure> {
        let mut ready = self.shared.watch_ready();
        match tokio::time::timeout(PATIENCE, ready.wait_for(|ready| *ready)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Failure::Unreachable(
                "the control plane has just begun and does not know the mesh yet".into(),
            )),
        }
    }
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Unreachable(String),
}

impl From<InvalidSelector> for Failure {
    fn from(error: InvalidSelector) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Invalid(message) => Self::invalid_argument(message),
            Failure::NotFound(message) => Self::not_found(message),
            Failure::Unreachable(message) => Self::unavailable(message),
        }
    }
}

/// Something that was asked for by name must be there.
pub(super) fn must_exist(selected: &[Selected], selectors: &[Selector]) -> Result<(), Failure> {
    let missing = selectors.iter().find(|selector| {
        !selector.name.is_empty()
            && !selected
                .iter()
                .any(|s| s.object.kind == selector.kind && s.object.name == selector.name)
    });
    let Some(Selector { kind, name, namespace, .. }) = missing else { return Ok(()) };
    Err(Failure::NotFound(if namespace.is_empty() {
        format!("{kind}/{name} does not exist")
    } else {
        format!("{kind}/{name} does not exist in namespace {namespace}")
    }))
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Mesh for MeshService {
    async fn info(&self, _: Request<ext::InfoRequest>) -> Answer<ext::InfoReply> {
        // Before the lock is taken, as it takes it itself.
        let problems = self.shared.problems();
        let index = self.shared.index.read();
        let objects = index.objects();
        let routes = objects.http_routes().count()
            + objects.grpc_routes().count()
            + objects.tcp_routes().count();
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Ok(Response::new(ext::InfoReply {
            version: env!("CARGO_PKG_VERSION").into(),
            source: self.source.into(),
            uptime_seconds: self.shared.uptime_seconds(),
            services: count(objects.services().count()),
            pods: count(objects.pods().count()),
            routes: count(routes),
            problems: problems.iter().map(problem).collect(),
        }))
    }

    async fn resources(&self, request: Request<Selector>) -> Answer<ext::ResourcesReply> {
        self.informed().await?;
        let index = self.shared.index.read();
        let objects = index.objects();
        let selected = match select::routes(objects, request.get_ref()) {
            Some(routes) => routes,
            None => select(objects, request.get_ref()).map_err(Failure::from)?,
        };
        let workloads = selected.into_iter().map(|selected| {
            let service = selected.service.as_ref().and_then(|name| objects.service(name));
            let cluster_ip = service.and_then(|service| service.cluster_ips.first());
            ext::Workload {
                pods: selected.pods.iter().map(|pod| encode_pod(objects, pod)).collect(),
                cluster_ip: cluster_ip.map(ToString::to_string).unwrap_or_default(),
                ports: match service {
                    Some(service) => ports::of_service(objects, service),
                    None if selected.object.kind == "namespace" => Vec::new(),
                    None => ports::of_pods(objects, &selected.pods),
                },
                settings: service
                    .map(|service| ports::settings(objects, service))
                    .unwrap_or_default(),
                r#ref: Some(selected.object),
            }
        });
        Ok(Response::new(ext::ResourcesReply { workloads: workloads.collect() }))
    }

    async fn stat(&self, request: Request<ext::StatRequest>) -> Answer<ext::StatReply> {
        self.informed().await?;
        let reply = stat::stat(&self.shared, &self.asker, request.into_inner()).await?;
        Ok(Response::new(reply))
    }

    async fn edges(&self, request: Request<ext::EdgesRequest>) -> Answer<ext::EdgesReply> {
        self.informed().await?;
        let reply = edges::edges(&self.shared, &self.asker, request.into_inner()).await?;
        Ok(Response::new(reply))
    }

    async fn observed(
        &self,
        request: Request<ext::MeshObservedRequest>,
    ) -> Answer<ext::MeshObservedReply> {
        self.informed().await?;
        let request = request.into_inner();
        let reply = observed::observed(&self.shared, &self.asker, request).await?;
        Ok(Response::new(reply))
    }

    type TapStream = tap::Events;

    async fn tap(&self, request: Request<ext::MeshTapRequest>) -> Answer<Self::TapStream> {
        self.informed().await?;
        let events = tap::tap(&self.shared, &self.asker, request.into_inner())?;
        Ok(Response::new(events))
    }

    async fn endpoints(
        &self,
        request: Request<ext::EndpointsRequest>,
    ) -> Answer<ext::EndpointsReply> {
        self.informed().await?;
        let request = request.into_inner();
        let reply = proxies::endpoints(&self.shared, &self.asker, request).await?;
        Ok(Response::new(reply))
    }

    async fn routes(&self, request: Request<Selector>) -> Answer<ext::RoutesReply> {
        self.informed().await?;
        Ok(Response::new(routes::routes(&self.shared, request.get_ref())?))
    }

    async fn proxies(&self, request: Request<Selector>) -> Answer<ext::ProxiesReply> {
        self.informed().await?;
        let request = request.into_inner();
        let reply = proxies::proxies(&self.shared, &self.asker, request).await?;
        Ok(Response::new(reply))
    }

    async fn proxy_config(
        &self,
        request: Request<ext::ProxyConfigRequest>,
    ) -> Answer<ext::ConfigReply> {
        self.informed().await?;
        let request = request.into_inner();
        let reply = proxies::proxy_config(&self.shared, &self.asker, request).await?;
        Ok(Response::new(reply))
    }

    async fn refresh(&self, _: Request<ext::RefreshRequest>) -> Answer<ext::RefreshReply> {
        self.shared.refresh().await;
        Ok(Response::new(ext::RefreshReply {}))
    }

    async fn authorizations(&self, request: Request<Selector>) -> Answer<ext::AuthorizationsReply> {
        self.informed().await?;
        Ok(Response::new(authz::authorizations(&self.shared, request.get_ref())?))
    }

    async fn port_authorizations(
        &self,
        request: Request<ext::PortAuthorizationsRequest>,
    ) -> Answer<ext::PortAuthorizationsReply> {
        self.informed().await?;
        Ok(Response::new(authz::port_authorizations(&self.shared, request.get_ref())?))
    }

    async fn what_if(&self, request: Request<ext::WhatIfRequest>) -> Answer<ext::WhatIfReply> {
        self.informed().await?;
        Ok(Response::new(what_if::what_if(&self.shared, request.get_ref())?))
    }

    async fn analyze(&self, request: Request<ext::AnalyzeRequest>) -> Answer<ext::AnalyzeReply> {
        self.informed().await?;
        Ok(Response::new(analysis::analyze(&self.shared, request.get_ref())?))
    }

    async fn notable(
        &self,
        request: Request<ext::MeshNotableRequest>,
    ) -> Answer<ext::MeshNotableReply> {
        self.informed().await?;
        let request = request.into_inner();
        let reply = notable::notable(&self.shared, &self.asker, request).await?;
        Ok(Response::new(reply))
    }
}

pub(super) fn problem(problem: &Problem) -> ext::Problem {
    ext::Problem {
        severity: problem.severity.as_str().into(),
        object: problem.object.clone(),
        file: problem.file.as_ref().map(|file| file.display().to_string()).unwrap_or_default(),
        line: problem.line,
        field: problem.field.clone(),
        message: problem.message.clone(),
    }
}

fn encode_pod(objects: &Objects, pod: &Pod) -> ext::Pod {
    ext::Pod {
        identity: objects.identity_of(pod).map(|id| id.to_string()).unwrap_or_default(),
        name: pod.name.name.clone(),
        namespace: pod.name.namespace.clone(),
        ip: pod.ip.map(|ip| ip.to_string()).unwrap_or_default(),
        ready: pod.ready,
        meshed: pod.meshed(),
        terminating: pod.terminating,
        owner: pod.owner.as_ref().map(|_| owner_ref(pod)),
    }
}
