//! A control plane inside the test, which says exactly what the test wants.
//!
//! It speaks through the same code as ours. For what no careful control plane would say, see the
//! one in Python among the scenarios.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use mesh_api::server::{ControlPlane, Refusal, control_plane_routes};
use mesh_api::{BackendExtension, Workload};
use mesh_model::endpoint::{Endpoint, Labels};
use mesh_model::inbound::{
    Authentication, Authorization, Cidr, Network, ServerPolicy, ServerProtocol,
};
use mesh_model::outbound::{
    Backend, BackendKind, Balance, Forward, HttpPolicy, Protocol, Queue, RouteBackend, TcpPolicy,
    TcpRoute,
};
use mesh_model::route::{Distribution, HostMatch, Route, Rule, Timeouts};
use mesh_model::{Destination, Meta, OutboundPolicy, Profile, ResourceRef, Target};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

/// The control plane. It ends with the value; proxies then go on with what they know.
#[derive(Debug)]
pub struct ScriptedControlPlane {
    addr: SocketAddr,
    script: Script,
    _serving: AbortOnDropHandle<()>,
}

#[derive(Clone, Debug, Default)]
struct Script {
    outbound: Said<String, OutboundPolicy>,
    endpoints: Said<String, Vec<Endpoint>>,
    servers: Said<u16, ServerPolicy>,
}

impl ScriptedControlPlane {
    /// One that knows of nothing and lets everybody in everywhere.
    ///
    /// # Panics
    /// When there is no free port.
    pub async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let addr = listener.local_addr().expect("a listener has an address");
        let script = Script::default();
        let routes = control_plane_routes(script.clone());
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let serving = tokio::spawn(async move {
            let served = Server::builder().add_routes(routes).serve_with_incoming(incoming).await;
            served.expect("serving goes on");
        });
        Self { addr, script, _serving: AbortOnDropHandle::new(serving) }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What to do with connections to a target, `name:port`.
    pub fn outbound(&self, target: &str, policy: OutboundPolicy) {
        self.script.outbound.say(target.to_owned(), policy);
    }

    /// The endpoints behind a path of a balancer, `name:port`.
    pub fn endpoints(&self, path: &str, endpoints: Vec<Endpoint>) {
        self.script.endpoints.say(path.to_owned(), endpoints);
    }

    /// The policy of a port of every pod.
    pub fn server(&self, port: u16, policy: ServerPolicy) {
        self.script.servers.say(port, policy);
    }
}

/// What is said of each key, and said anew to whoever listens when it changes.
#[derive(Debug)]
struct Said<K, V>(Arc<Mutex<HashMap<K, watch::Sender<V>>>>);

impl<K, V> Clone for Said<K, V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K, V> Default for Said<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Eq + Hash, V: Clone + Send + Sync + 'static> Said<K, V> {
    fn say(&self, key: K, value: V) {
        let mut said = self.0.lock();
        match said.get(&key) {
            Some(sender) => drop(sender.send_replace(value)),
            None => drop(said.insert(key, watch::Sender::new(value))),
        }
    }

    fn hear(&self, key: &K) -> Option<WatchStream<V>> {
        self.0.lock().get(key).map(|sender| WatchStream::new(sender.subscribe()))
    }
}

fn unknown() -> Refusal {
    Refusal::NotFound("the script does not mention it".into())
}

impl ControlPlane for Script {
    fn destination(
        &self,
        path: &str,
        _: &Workload,
    ) -> Result<BoxStream<'static, Destination>, Refusal> {
        let sets = self.endpoints.hear(&path.to_owned()).ok_or_else(unknown)?;
        let mut before: Vec<SocketAddr> = Vec::new();
        let updates = sets.flat_map(move |endpoints| {
            let now: Vec<_> = endpoints.iter().map(|endpoint| endpoint.addr).collect();
            let gone: Vec<_> = before.iter().filter(|addr| !now.contains(addr)).copied().collect();
            before = now;
            let mut updates = vec![match endpoints.is_empty() {
                true => Destination::NoEndpoints { exists: true },
                false => Destination::Add { endpoints, labels: Labels::default() },
            }];
            if !gone.is_empty() && !before.is_empty() {
                updates.push(Destination::Remove(gone));
            }
            stream::iter(updates)
        });
        Ok(updates.boxed())
    }

    fn profile(&self, _: &Target, _: &Workload) -> Result<BoxStream<'static, Profile>, Refusal> {
        Err(unknown())
    }

    fn outbound(
        &self,
        target: &Target,
        _: &Workload,
    ) -> Result<BoxStream<'static, OutboundPolicy>, Refusal> {
        Ok(self.outbound.hear(&target.to_string()).ok_or_else(unknown)?.boxed())
    }

    fn server_policy(
        &self,
        _: &Workload,
        port: u16,
    ) -> Result<BoxStream<'static, ServerPolicy>, Refusal> {
        match self.servers.hear(&port) {
            Some(policies) => Ok(policies.boxed()),
            // Not the end of the stream: a proxy would ask again.
            None => Ok(stream::iter([open()]).chain(stream::pending()).boxed()),
        }
    }

    fn backend_extension(
        &self,
        _: &ResourceRef,
    ) -> Result<BoxStream<'static, BackendExtension>, Refusal> {
        Err(unknown())
    }
}

/// Lets everybody in, and finds out what they speak.
pub fn open() -> ServerPolicy {
    let any = |addr| Network { net: Cidr { addr, prefix: 0 }, except: Vec::new() };
    let labels = [("group", "test"), ("kind", "default"), ("name", "open")];
    ServerPolicy {
        protocol: ServerProtocol::Detect {
            timeout: DETECT_TIMEOUT,
            routes: Arc::new([]),
            limit: None,
        },
        authorizations: Arc::new([Authorization {
            meta: default_meta(),
            networks: vec![any(Ipv4Addr::UNSPECIFIED.into())],
            authentication: Authentication::Unauthenticated,
            labels: Default::default(),
        }]),
        labels: Arc::new(labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into()),
    }
}

/// Finds out what is spoken, and balances it over the endpoints of `path`.
pub fn detect(path: &str) -> OutboundPolicy {
    let backend = balanced(path);
    let route = Route {
        meta: default_meta(),
        hosts: Vec::new(),
        rules: vec![Rule {
            matches: Vec::new(),
            filters: Vec::new(),
            action: Forward {
                backends: Distribution::FirstAvailable(vec![Arc::new(RouteBackend {
                    filters: Vec::new(),
                    backend: backend.clone(),
                })]),
                timeouts: Timeouts::default(),
                retry: None,
                allow_request_headers: false,
                session: None,
            },
        }],
    };
    let http = HttpPolicy { routes: Arc::new([route]), breaker: None };
    let opaque = TcpPolicy { routes: Arc::new([tcp_route(&[], backend)]) };
    policy(Protocol::Detect { timeout: DETECT_TIMEOUT, http1: http.clone(), http2: http, opaque })
}

/// TLS passed through by server name: each to the endpoints of its path.
pub fn tls(by_name: &[(&str, &str)]) -> OutboundPolicy {
    let routes = by_name.iter().map(|(name, path)| tcp_route(&[name], balanced(path)));
    policy(Protocol::Tls(TcpPolicy { routes: routes.collect() }))
}

const DETECT_TIMEOUT: Duration = Duration::from_secs(10);

fn policy(protocol: Protocol) -> OutboundPolicy {
    OutboundPolicy { meta: default_meta(), protocol }
}

fn tcp_route(names: &[&str], backend: Backend) -> TcpRoute {
    TcpRoute {
        meta: default_meta(),
        snis: names.iter().map(|name| HostMatch::Exact((*name).to_owned())).collect(),
        backends: Distribution::FirstAvailable(vec![Arc::new(backend)]),
        refuse: None,
    }
}

fn balanced(path: &str) -> Backend {
    Backend {
        meta: Meta::Default(path.to_owned()),
        queue: Queue { capacity: 100, failfast_timeout: Duration::from_secs(3) },
        kind: BackendKind::Balance(Balance {
            path: path.to_owned(),
            default_rtt: Duration::from_millis(30),
            decay: Duration::from_secs(10),
            penalty: None,
        }),
    }
}

fn default_meta() -> Meta {
    Meta::Default("scripted".into())
}
