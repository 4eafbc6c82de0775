//! One port of the workload: its policy, who may use it, and the way to the application behind it.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use mesh_layers::{BoxError, Request, Response};
use mesh_model::endpoint::{Http2Params, Labels};
use mesh_model::inbound::{
    Authentication, Authorization, Authorize, Cidr, Network, RateLimit, ServerPolicy,
    ServerProtocol,
};
use mesh_model::matching::{self, MatchRequest};
use mesh_model::route::{Filter, Route};
use mesh_model::stats::{SeriesKey, StatProtocol};
use mesh_model::{Direction, Meta, Reason};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::Instrument;

use super::rate_limit::RateLimiter;
use crate::config::Config;
use crate::connect::{Connect, ConnectError};
use crate::describe;
use crate::discovery::Discovery;
use crate::error::MeshError;
use crate::exchange::{Exchange, Recorder, RouteInfo};
use crate::http::client::Client;
use crate::http::{filters, forward};
use crate::io::Io;
use crate::telemetry::{AuthzCounters, AuthzLabels, HttpLabels, Peer, Series, SeriesSpec};
use crate::telemetry::{Tls, TransportLabels};

/// A port.
#[derive(Debug)]
pub(crate) struct Port {
    local: SocketAddr,
    client: Client,
    recorder: Arc<Recorder>,
    policy: watch::Receiver<Option<Arc<ServerPolicy>>>,
    /// Used where there is no control plane.
    fallback: Option<Arc<ServerPolicy>>,
    wait: Duration,
    speaks_first: AtomicBool,
    state: Mutex<State>,
}

/// Series of one client, protocol and route.
type Counted = (IpAddr, StatProtocol, Option<Meta>);

#[derive(Debug, Default)]
struct State {
    series: HashMap<Counted, Arc<Series>>,
    routes: HashMap<Meta, Arc<RouteInfo>>,
    authz: HashMap<(bool, Meta, Option<Meta>), Arc<AuthzCounters>>,
    limiter: Option<Arc<RateLimiter>>,
}

/// Entries of each of the tables above; clients' addresses and routes must not add up.
const MAX_COUNTED: usize = 4_096;

impl Port {
    pub(super) fn new(
        local: SocketAddr,
        forward: &[SocketAddr],
        config: &Config,
        discovery: &Discovery,
        recorder: &Arc<Recorder>,
    ) -> Self {
        let labels = TransportLabels::new(Direction::Inbound, Peer::Dst, Some(local));
        let connect = Connect {
            addrs: if forward.is_empty() { vec![local] } else { forward.to_vec() },
            bind_ip: None,
            timeout: config.limits.connect_timeout_inbound,
            transport: recorder.telemetry.transport.series(&labels),
        };
        Self {
            local,
            client: Client::new(connect, Http2Params::default(), &config.limits),
            recorder: Arc::clone(recorder),
            policy: discovery.port(local.port()),
            fallback: config.control_addr.is_none().then(|| Arc::new(open_policy())),
            wait: config.limits.discovery_timeout,
            speaks_first: AtomicBool::new(false),
            state: Mutex::default(),
        }
    }

    pub(super) fn number(&self) -> u16 {
        self.local.port()
    }

    /// Whether the application once spoke before its client.
    pub(super) fn speaks_first(&self) -> bool {
        self.speaks_first.load(Relaxed)
    }

    pub(super) fn spoke_first(&self) {
        self.speaks_first.store(true, Relaxed);
    }

    /// The policy as of now; waits for the control plane's first word. Nobody gets in without one.
    pub(super) async fn policy(&self) -> Result<Arc<ServerPolicy>, MeshError> {
        let known = self.policy.borrow().clone().or_else(|| self.fallback.clone());
        if let Some(policy) = known {
            return Ok(policy);
        }
        let mut policy = self.policy.clone();
        let span = tracing::debug_span!("inbound.discover");
        let waited = tokio::time::timeout(self.wait, policy.wait_for(Option::is_some));
        if let Ok(Ok(policy)) = waited.instrument(span).await
            && let Some(policy) = &*policy
        {
            return Ok(Arc::clone(policy));
        }
        let message = format!(
            "the control plane has not said within {:?} who may use port {}",
            self.wait,
            self.number()
        );
        Err(MeshError::new(Reason::DiscoveryTimeout, message))
    }

    /// Whether a connection carried as bytes may be made.
    pub(super) fn authorize_connection(
        &self,
        policy: &ServerPolicy,
        client: IpAddr,
    ) -> Result<(), MeshError> {
        self.permit(policy, &[], client, None, false)
    }

    /// Whether a request may be made; the response, if the policy answers it itself.
    pub(super) fn authorize(
        &self,
        policy: &ServerPolicy,
        client: IpAddr,
        request: &mut Request,
    ) -> Result<Option<Response>, MeshError> {
        let (found, limit) = match &policy.protocol {
            ServerProtocol::Detect { routes, limit, .. }
            | ServerProtocol::Http1 { routes, limit }
            | ServerProtocol::Http2 { routes, limit } => (find(routes, request)?, limit.as_ref()),
            ServerProtocol::Grpc { routes } => (find(routes, request)?, None),
            ServerProtocol::Opaque | ServerProtocol::Tls => (None, None),
        };
        let route = found.as_ref().map(|found| found.route);
        let of_route = found.as_ref().map_or(&[][..], |found| &found.authorize.authorizations);
        self.permit(policy, of_route, client, route, true)?;
        if let Some(limit) = limit {
            self.rate_limit(limit, policy, client)?;
        }
        if let Some(exchange) = Exchange::of(request) {
            if let Some(route) = route {
                exchange.routed(&self.route_info(route));
            }
            let series = self.series(client, exchange.protocol(), route);
            exchange.balanced(self.local, series);
        }
        match found.map(|found| found.filters) {
            None | Some([]) => Ok(None),
            Some(filters) => filters::before(filters, request),
        }
    }

    /// Any authorisation of the port or of the route lets a client in.
    fn permit(
        &self,
        policy: &ServerPolicy,
        of_route: &[Authorization],
        client: IpAddr,
        route: Option<&Meta>,
        http: bool,
    ) -> Result<(), MeshError> {
        let mut all = of_route.iter().chain(policy.authorizations.iter());
        let permit = all.find(|authorization| permits(authorization, client));
        let decided = permit.map_or_else(|| Meta::Default("deny".into()), |a| a.meta.clone());
        let counters = self.authz(policy, http, decided, route);
        if permit.is_some() {
            counters.allow.inc();
            return Ok(());
        }
        counters.deny.inc();
        let message = format!("no policy of port {} lets {client} in", self.number());
        Err(MeshError::new(Reason::Unauthorized, message))
    }

    fn rate_limit(
        &self,
        limit: &RateLimit,
        policy: &ServerPolicy,
        client: IpAddr,
    ) -> Result<(), MeshError> {
        let limiter = {
            let mut state = self.state.lock();
            match &state.limiter {
                Some(limiter) if limiter.is_for(limit) => Arc::clone(limiter),
                _ => Arc::clone(state.limiter.insert(Arc::new(RateLimiter::new(limit)))),
            }
        };
        if limiter.admit(&client.to_string(), Instant::now()) {
            return Ok(());
        }
        self.authz(policy, true, limit.meta.clone(), None).rate_limited.inc();
        let message = format!("{} allows no more requests now", limit.meta);
        Err(MeshError::new(Reason::RateLimited, message))
    }

    fn authz(
        &self,
        policy: &ServerPolicy,
        http: bool,
        decided: Meta,
        route: Option<&Meta>,
    ) -> Arc<AuthzCounters> {
        let mut state = self.state.lock();
        let key = (http, decided, route.cloned());
        if let Some(counters) = state.authz.get(&key) {
            return Arc::clone(counters);
        }
        let labels = AuthzLabels {
            target_addr: Some(self.local),
            srv: Arc::clone(&policy.labels),
            route: route.cloned(),
            authz: meta_labels(&key.1),
            tls: Tls::default(),
        };
        let metrics = &self.recorder.telemetry.authz;
        let counters = if http { metrics.http(&labels) } else { metrics.tcp(&labels) };
        if state.authz.len() >= MAX_COUNTED {
            state.authz.clear();
        }
        state.authz.insert(key, Arc::clone(&counters));
        counters
    }

    fn route_info(&self, route: &Meta) -> Arc<RouteInfo> {
        let mut state = self.state.lock();
        if let Some(info) = state.routes.get(route) {
            return Arc::clone(info);
        }
        let info = RouteInfo::inbound(route);
        if state.routes.len() >= MAX_COUNTED {
            state.routes.clear();
        }
        state.routes.insert(route.clone(), Arc::clone(&info));
        info
    }

    /// Where a client's exchanges are counted.
    pub(super) fn series(
        &self,
        client: IpAddr,
        protocol: StatProtocol,
        route: Option<&Meta>,
    ) -> Arc<Series> {
        let mut state = self.state.lock();
        let key = (client, protocol, route.cloned());
        if let Some(series) = state.series.get(&key) {
            return Arc::clone(series);
        }
        let srv = self.policy.borrow().as_ref().map(|p| Arc::clone(&p.labels)).unwrap_or_default();
        let series = self.recorder.telemetry.stats.series(SeriesSpec {
            key: SeriesKey {
                direction: Direction::Inbound,
                protocol,
                peer: Some(client),
                port: self.number(),
                parent: Arc::default(),
                route: route.map(Meta::to_string).unwrap_or_default().into(),
                backend: Arc::default(),
            },
            labels: HttpLabels {
                target_addr: Some(self.local),
                route: route.cloned(),
                srv,
                ..HttpLabels::default()
            },
        });
        if state.series.len() >= MAX_COUNTED {
            state.series.clear();
        }
        state.series.insert(key, Arc::clone(&series));
        series
    }

    /// Sends a request to the application.
    pub(super) async fn forward(&self, mut request: Request) -> Result<Response, BoxError> {
        let authority = self.local.to_string();
        if request.version() == http::Version::HTTP_2 {
            forward::to_http2(&mut request, &authority);
        } else {
            forward::to_http1(&mut request, &authority);
        }
        self.client.send(request).instrument(tracing::debug_span!("inbound.forward")).await
    }

    /// A connection to the application, for bytes.
    pub(super) async fn connect(&self) -> Result<Io, ConnectError> {
        self.client.connect().open().await
    }

    pub(super) fn expire(&self, now: Instant) {
        self.client.expire(now);
    }

    pub(super) fn describe(&self) -> Value {
        let policy = self.policy.borrow().clone().or_else(|| self.fallback.clone());
        json!({
            "listen": self.local.to_string(),
            "forward": self.client.connect().addrs.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "policy": policy.map(|policy| describe::server_policy(&policy)),
        })
    }
}

/// The rule of a request.
struct Found<'a> {
    route: &'a Meta,
    filters: &'a [Filter],
    authorize: &'a Authorize,
}

/// `None` where the port has no routes at all.
fn find<'a, M: MatchRequest>(
    routes: &'a [Route<M, Authorize>],
    request: &mut Request,
) -> Result<Option<Found<'a>>, MeshError> {
    if routes.is_empty() {
        return Ok(None);
    }
    let (head, body) = std::mem::take(request).into_parts();
    let found = matching::find(routes, &head).map(|found| Found {
        route: &routes[found.route].meta,
        filters: &found.rule_ref.filters,
        authorize: &found.rule_ref.action,
    });
    *request = Request::from_parts(head, body);
    found.map(Some).ok_or_else(|| {
        let message = format!("no route matches {} {}", request.method(), request.uri().path());
        MeshError::new(Reason::NoRoute, message)
    })
}

/// Connections are not authenticated yet: only what asks for no identity lets anybody in.
fn permits(authorization: &Authorization, client: IpAddr) -> bool {
    authorization.authentication == Authentication::Unauthenticated
        && authorization.networks.iter().any(|network| network.contains(client))
}

fn meta_labels(meta: &Meta) -> Labels {
    let pairs = match meta {
        Meta::Default(name) => vec![("group", ""), ("kind", "default"), ("name", name.as_str())],
        Meta::Resource(r) => {
            vec![("group", r.group.as_str()), ("kind", r.kind.as_str()), ("name", r.name.as_str())]
        }
    };
    Arc::new(pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
}

/// Without a control plane nobody made a rule: as without a mesh, everybody may.
fn open_policy() -> ServerPolicy {
    let any = |addr| Network { net: Cidr { addr, prefix: 0 }, except: Vec::new() };
    ServerPolicy {
        protocol: ServerProtocol::Detect {
            timeout: Duration::from_secs(10),
            routes: Arc::new([]),
            limit: None,
        },
        authorizations: Arc::new([Authorization {
            meta: Meta::Default("no-control-plane".into()),
            networks: vec![
                any(std::net::Ipv4Addr::UNSPECIFIED.into()),
                any(std::net::Ipv6Addr::UNSPECIFIED.into()),
            ],
            authentication: Authentication::Unauthenticated,
            labels: Default::default(),
        }]),
        labels: Arc::default(),
    }
}
