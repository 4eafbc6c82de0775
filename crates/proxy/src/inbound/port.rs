//! One port of the workload: its policy, who may use it, and the way to the application behind it.

mod authorize;

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use mesh_layers::{BoxError, Overloaded, Request, Response, find_cause};
use mesh_model::authz::HttpRequest;
use mesh_model::endpoint::Http2Params;
use mesh_model::inbound::{
    Authentication, Authorization, Authorize, Cidr, Network, ServerPolicy, ServerProtocol,
};
use mesh_model::matching::{self, MatchRequest};
use mesh_model::route::{Filter, Route};
use mesh_model::stats::{SeriesKey, StatProtocol};
use mesh_model::{Direction, Meta, Reason};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tower::{Layer, Service, service_fn};
use tracing::Instrument;

use self::authorize::Attempt;
pub(super) use self::authorize::Head;
use super::{Client, RateLimiter};
use crate::config::Config;
use crate::connect::{Connect, ConnectError};
use crate::describe;
use crate::discovery::{Discovery, PortConcurrency, PortRules};
use crate::error::MeshError;
use crate::exchange::{Exchange, Recorder, RouteInfo};
use crate::http::client::Client as HttpClient;
use crate::http::filters::Done;
use crate::http::pool::PoolLimits;
use crate::http::{filters, forward};
use crate::io::Io;
use crate::telemetry::{
    AuthzCounters, HttpLabels, ObservedPort, Peer, Series, SeriesSpec, Tls, TransportLabels,
};

/// A port.
#[derive(Debug)]
pub(crate) struct Port {
    local: SocketAddr,
    /// Whether clients of the mesh are expected to prove who they are.
    encrypts: bool,
    app: HttpClient,
    recorder: Arc<Recorder>,
    rules: watch::Receiver<Option<Arc<PortRules>>>,
    /// Used where there is no control plane.
    fallback: Option<Arc<PortRules>>,
    wait: Duration,
    speaks_first: AtomicBool,
    observed: Arc<ObservedPort>,
    state: Mutex<State>,
}

type ClientId = Option<Arc<str>>;
type SeriesOf = Table<(IpAddr, ClientId, StatProtocol), Arc<Series>>;
/// By whether it was HTTP, and the client.
type AuthzOf = Table<(bool, ClientId), Arc<AuthzCounters>>;

#[derive(Debug, Default)]
struct State {
    series: SeriesOf,
    routes: HashMap<Meta, Arc<RouteInfo>>,
    /// By what decided.
    authz: HashMap<Meta, AuthzOf>,
}

/// Values by a key that is cheap to make and a route, whose name is copied for new entries only.
#[derive(Debug)]
struct Table<K, V> {
    without_route: HashMap<K, V>,
    by_route: HashMap<Meta, HashMap<K, V>>,
    entries: usize,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { without_route: HashMap::new(), by_route: HashMap::new(), entries: 0 }
    }
}

impl<K: Eq + Hash, V> Table<K, V> {
    fn get(&self, key: &K, route: Option<&Meta>) -> Option<&V> {
        match route {
            None => self.without_route.get(key),
            Some(route) => self.by_route.get(route)?.get(key),
        }
    }

    fn insert(&mut self, key: K, route: Option<&Meta>, value: V) {
        if self.entries >= MAX_COUNTED {
            *self = Self::default();
        }
        let of_route = match route {
            None => &mut self.without_route,
            Some(route) => self.by_route.entry(route.clone()).or_default(),
        };
        if of_route.insert(key, value).is_none() {
            self.entries += 1;
        }
    }
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
        encrypts: bool,
    ) -> Self {
        let labels = TransportLabels::new(Direction::Inbound, Peer::Dst, Some(local));
        let connect = Connect {
            addrs: if forward.is_empty() { vec![local] } else { forward.to_vec() },
            bind_ip: None,
            timeout: config.limits.connect_timeout_inbound,
            transport: recorder.telemetry.transport.series(&labels),
            secure: None,
        };
        Self {
            local,
            encrypts,
            app: HttpClient::new(
                connect,
                Http2Params::default(),
                &config.limits,
                // As many may wait as may be in flight at all.
                PoolLimits {
                    connections: config.limits.max_endpoint_connections,
                    waiting: config.limits.max_in_flight,
                },
            ),
            observed: recorder.telemetry.observed.port(local.port()),
            recorder: Arc::clone(recorder),
            rules: discovery.port(local.port()),
            fallback: config.control_addr.is_none().then(|| Arc::new(open_rules())),
            wait: config.limits.discovery_timeout,
            speaks_first: AtomicBool::new(false),
            state: Mutex::default(),
        }
    }

    pub(super) fn number(&self) -> u16 {
        self.local.port()
    }

    /// Whether the application once spoke before its client. No more than a hint: who makes bytes of a
    /// connection by it lets anybody make the port opaque for everybody.
    pub(super) fn speaks_first(&self) -> bool {
        self.speaks_first.load(Relaxed)
    }

    pub(super) fn spoke_first(&self) {
        self.speaks_first.store(true, Relaxed);
    }

    /// The rules as of now; waits for the control plane's first word. Nobody gets in without one.
    pub(super) async fn rules(&self) -> Result<Arc<PortRules>, MeshError> {
        let known = self.rules.borrow().clone().or_else(|| self.fallback.clone());
        if let Some(rules) = known {
            return Ok(rules);
        }
        let mut rules = self.rules.clone();
        let span = tracing::debug_span!("inbound.discover");
        let waited = tokio::time::timeout(self.wait, rules.wait_for(Option::is_some));
        if let Ok(Ok(rules)) = waited.instrument(span).await
            && let Some(rules) = &*rules
        {
            return Ok(Arc::clone(rules));
        }
        let message = format!(
            "the control plane has not said within {:?} who may use port {}",
            self.wait,
            self.number()
        );
        Err(MeshError::new(Reason::DiscoveryTimeout, message))
    }

    /// Whether a request may be made, and what policies do with it before the application has it.
    pub(super) fn authorize(
        &self,
        rules: &PortRules,
        client: &Client,
        request: &mut Request,
    ) -> Result<Done, MeshError> {
        let found = match &rules.policy.protocol {
            ServerProtocol::Detect { routes, .. }
            | ServerProtocol::Http1 { routes, .. }
            | ServerProtocol::Http2 { routes, .. } => find(routes, request)?,
            ServerProtocol::Grpc { routes } => find(routes, request)?,
            ServerProtocol::Opaque | ServerProtocol::Tls => None,
        };
        let route = found.as_ref().map(|found| found.route);
        let of_route = found.as_ref().map_or(&[][..], |found| &found.authorize.authorizations);
        let http = HttpRequest {
            method: request.method(),
            uri: request.uri(),
            headers: request.headers(),
        };
        // First of all, so that it is told of a refused request, too, who made it.
        if let Some(exchange) = Exchange::of(request) {
            if let Some(route) = route {
                exchange.routed(&self.route_info(route));
            }
            let series = self.series(client, exchange.protocol(), route);
            exchange.balanced(self.local, series);
        }
        let exchange = Exchange::of(request).map(|exchange| &**exchange);
        let attempt = Attempt { client, http: Some(http), route, of_route };
        let probe = self.permit(rules, &attempt, exchange)?;
        if let Some(limiter) = &rules.rate_limit {
            self.rate_limit(limiter, rules, client, request)?;
        }
        let met = match &rules.faults {
            // Who checks for life would end the pod: a fault is to be seen by clients. Those of the mesh
            // have names, and may well ask for the path of a probe.
            Some(_) if probe && client.id.is_none() => Done::Nothing,
            Some(faults) => faults.meet(request),
            None => Done::Nothing,
        };
        match (met, found.map(|found| found.filters)) {
            (answer @ Done::Answer(_), _) => Ok(answer),
            (met, None | Some([])) => Ok(met),
            (met, Some(filters)) => {
                Ok(filters::before(filters, request)?.map_or(met, Done::Answer))
            }
        }
    }

    fn rate_limit(
        &self,
        limiter: &RateLimiter,
        rules: &PortRules,
        client: &Client,
        request: &Request,
    ) -> Result<(), MeshError> {
        let (id, ip) = (client.id.as_deref(), client.addr.ip());
        let admitted = limiter.admit(id, ip, request.headers(), Instant::now());
        let Err(bound) = admitted else { return Ok(()) };
        let by = &limiter.limit().meta;
        self.counters(rules, true, by, None, client).rate_limited.inc();
        let message = format!("{by} allows no more requests {} now", bound.as_str());
        Err(MeshError::new(Reason::RateLimited, message))
    }

    /// How a client's connection is protected.
    fn tls(&self, client: &Client) -> Tls {
        match &client.id {
            Some(id) => Tls::Id(Arc::clone(id)),
            None if self.encrypts => Tls::None("no_tls_from_remote"),
            None => Tls::default(),
        }
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
        client: &Client,
        protocol: StatProtocol,
        route: Option<&Meta>,
    ) -> Arc<Series> {
        let mut state = self.state.lock();
        let key = (client.addr.ip(), client.id.clone(), protocol);
        if let Some(series) = state.series.get(&key, route) {
            return Arc::clone(series);
        }
        let rules = self.rules.borrow();
        let srv = rules.as_ref().map(|r| Arc::clone(&r.policy.labels)).unwrap_or_default();
        drop(rules);
        let series = self.recorder.telemetry.stats.series(SeriesSpec {
            key: SeriesKey {
                direction: Direction::Inbound,
                protocol,
                peer: Some(client.addr.ip()),
                port: self.number(),
                parent: Arc::default(),
                route: route.map(Meta::to_string).unwrap_or_default().into(),
                backend: Arc::default(),
                identity: client.id.clone(),
            },
            labels: HttpLabels {
                target_addr: Some(self.local),
                tls: self.tls(client),
                route: route.cloned(),
                srv,
                ..HttpLabels::default()
            },
        });
        state.series.insert(key, route, Arc::clone(&series));
        series
    }

    /// Sends a request to the application after `delay`, unless too many are there already: those that
    /// are held up count as though the application did it.
    pub(super) async fn forward(
        &self,
        rules: &PortRules,
        request: Request,
        delay: Duration,
    ) -> Result<Response, BoxError> {
        let send = async |request| {
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            self.send(request).await
        };
        let Some(PortConcurrency { of, limit }) = &rules.concurrency else {
            return send(request).await;
        };
        let mut limited = limit.layer(service_fn(send));
        limited.call(request).await.map_err(|error| match find_cause::<Overloaded>(&error) {
            Some(_) => {
                let message = format!("{} allows {} requests in flight", of.meta, of.max);
                MeshError::new(Reason::Overloaded, message).into()
            }
            None => error,
        })
    }

    async fn send(&self, mut request: Request) -> Result<Response, BoxError> {
        let authority = self.local.to_string();
        if request.version() == http::Version::HTTP_2 {
            forward::to_http2(&mut request, &authority);
        } else {
            forward::to_http1(&mut request, &authority);
        }
        self.app.send(request).instrument(tracing::debug_span!("inbound.forward")).await
    }

    /// A connection to the application, for bytes.
    pub(super) async fn connect(&self) -> Result<Io, ConnectError> {
        self.app.connect().open().await
    }

    pub(super) fn expire(&self, now: Instant) {
        self.app.expire(now);
    }

    pub(super) fn describe(&self) -> Value {
        let rules = self.rules.borrow().clone().or_else(|| self.fallback.clone());
        let authz = rules.as_ref().and_then(|rules| rules.authz.clone());
        let faults = rules.as_ref().and_then(|rules| rules.faults.clone());
        let faults = faults.map(|faults| faults.all().map(describe::fault_of).collect::<Vec<_>>());
        json!({
            "listen": self.local.to_string(),
            "forward": self.app.connect().addrs.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "policy": rules.as_ref().map(|rules| describe::server_policy(&rules.policy)),
            "protocol": rules.as_ref().map(|rules| rules.protocol.as_str()),
            "limits": rules.as_ref().map(|rules| describe::port_limits(rules)),
            "faults": faults,
            "authorization": authz.map(|authz| describe::port_authz(&authz)),
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

/// Without a control plane nobody made a rule: as without a mesh, everybody may.
fn open_rules() -> PortRules {
    let any = |addr| Network { net: Cidr { addr, prefix: 0 }, except: Vec::new() };
    let policy = ServerPolicy {
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
    };
    PortRules::new(Arc::new(policy), None, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_by_key_and_route_and_bounded() {
        let mut table = Table::default();
        let (one, two) = (Meta::Default("one".into()), Meta::Default("two".into()));
        for (value, route) in [None, Some(&one), Some(&two)].into_iter().enumerate() {
            table.insert("key", route, value);
            assert_eq!(table.get(&"key", route), Some(&value));
            assert_eq!(table.get(&"other", route), None);
        }
        assert_eq!((table.get(&"key", None), table.get(&"key", Some(&one))), (Some(&0), Some(&1)));
        let mut table = Table::default();
        for number in 0..=MAX_COUNTED {
            let route = Meta::Default(format!("{}", number % 100));
            table.insert(number, Some(&route).filter(|_| number % 2 == 0), ());
            let held = table.by_route.values().map(HashMap::len).sum::<usize>();
            assert_eq!(table.without_route.len() + held, table.entries);
            assert!(table.entries <= MAX_COUNTED);
        }
        assert_eq!(table.entries, 1, "begun anew");
    }
}
