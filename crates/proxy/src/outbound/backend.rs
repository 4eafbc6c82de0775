//! Backends: a balancer, and the task that keeps its endpoints as the control plane says.
//!
//! Routes and policies come and go; a backend that stays the same keeps its connections, latencies
//! and breakers, so backends are shared by name for as long as anybody uses them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::Either;
use mesh_api::BackendExtension;
use mesh_layers::{
    Affinity, BalanceConfig, Balancer, BoxError, BreakerConfig, Budget, ConcurrencyLimit,
    EndpointStatus, Health, LimitedFuture, Missing, Penalty, Request, Response, Strategy,
    SuccessRate,
};
use mesh_model::Meta;
use mesh_model::egress::EGRESS_KIND;
use mesh_model::endpoint::Endpoint;
use mesh_model::outbound::{self as model, Backend, BackendKind};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tower::{Layer, Service};

use super::endpoint::EndpointService;
use crate::config::Config;
use crate::discovery::{BackendRules, Discovery, EndpointSet};
use crate::exchange::{BackendInfo, Exchange, Recorder};
use crate::http::pool::PoolLimits;
use crate::identity::Identity;
use crate::telemetry::{BalancerView, EndpointState};

/// The backends of one worker, by name.
#[derive(Debug)]
pub(crate) struct Backends {
    config: Arc<Config>,
    discovery: Discovery,
    recorder: Arc<Recorder>,
    identity: Identity,
    shared: Mutex<HashMap<Key, Weak<BackendStack>>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    parent: Meta,
    backend: Meta,
    place: Place,
    /// A port of which it is not known what it speaks has two: bytes have no breaker.
    breaks: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Place {
    Path(String),
    Addr(SocketAddr),
}

/// One backend.
#[derive(Debug)]
pub(crate) struct BackendStack {
    pub(crate) info: Arc<BackendInfo>,
    parent: Meta,
    backend: Backend,
    breaker: Option<model::Breaker>,
    current: Arc<RwLock<Arc<Current>>>,
    /// Ends with the backend.
    _follow: Option<AbortOnDropHandle<()>>,
}

/// The balancer, and what our extensions say of it.
#[derive(Debug)]
struct Current {
    balancer: Balancer<EndpointService>,
    extension: BackendExtension,
    in_flight: Option<ConcurrencyLimit>,
}

impl Backends {
    pub(crate) fn new(
        config: Arc<Config>,
        discovery: Discovery,
        recorder: Arc<Recorder>,
        identity: Identity,
    ) -> Self {
        Self { config, discovery, recorder, identity, shared: Mutex::default() }
    }

    /// The backend as a policy of `parent` describes it; the one in use if it is the same.
    pub(crate) fn get(
        &self,
        parent: &Meta,
        backend: &Backend,
        breaker: Option<model::Breaker>,
    ) -> Arc<BackendStack> {
        let place = match &backend.kind {
            BackendKind::Balance(balance) => Place::Path(balance.path.clone()),
            BackendKind::Forward(endpoint) => Place::Addr(endpoint.addr),
        };
        let key = Key {
            parent: parent.clone(),
            backend: backend.meta.clone(),
            place,
            breaks: breaker.is_some(),
        };
        let mut shared = self.shared.lock();
        if let Some(found) = shared.get(&key).and_then(Weak::upgrade)
            && found.backend == *backend
            && found.breaker == breaker
        {
            return found;
        }
        let stack = Arc::new(self.build(parent, backend, breaker));
        shared.retain(|_, stack| stack.strong_count() > 0);
        shared.insert(key, Arc::downgrade(&stack));
        stack
    }

    fn build(
        &self,
        parent: &Meta,
        backend: &Backend,
        breaker: Option<model::Breaker>,
    ) -> BackendStack {
        let info = BackendInfo::new(&backend.meta);
        let balance = balance_config(&info, backend, breaker, &BackendExtension::default());
        let balancer = Balancer::new(balance);
        let extension = BackendExtension::default();
        let current = Arc::new(Current { balancer, extension, in_flight: None });
        let current = Arc::new(RwLock::new(current));
        let follow = Follow {
            config: Arc::clone(&self.config),
            recorder: Arc::clone(&self.recorder),
            identity: self.identity.clone(),
            info: Arc::clone(&info),
            backend: backend.clone(),
            breaker,
            current: Arc::clone(&current),
            retired: Mutex::default(),
        };
        let follow = match &backend.kind {
            BackendKind::Forward(endpoint) => {
                follow.apply(&[Arc::new(endpoint.clone())]);
                None
            }
            BackendKind::Balance(balance) => {
                let endpoints = self.discovery.endpoints(&balance.path);
                let extension = backend.meta.resource().map(|key| self.discovery.extension(key));
                Some(AbortOnDropHandle::new(tokio::spawn(follow.run(endpoints, extension))))
            }
        };
        let (parent, backend) = (parent.clone(), backend.clone());
        BackendStack { info, parent, backend, breaker, current, _follow: follow }
    }

    /// What retries of requests to `parent` may cost, for as long as the rules are followed: what comes
    /// with it has to be kept.
    pub(crate) fn budget(&self, parent: &Meta) -> (Budget, Option<watch::Receiver<BackendRules>>) {
        // Of what is outside of the mesh nothing more is known.
        let known = parent.resource().filter(|key| key.kind != EGRESS_KIND);
        let rules = known.map(|key| self.discovery.extension(key));
        let budget = rules.as_ref().map(|rules| rules.borrow().budget.clone());
        (budget.unwrap_or_default(), rules)
    }

    /// One of each name, for people: of two the one with a breaker.
    pub(crate) fn named(&self) -> Vec<Arc<BackendStack>> {
        let shared = self.shared.lock();
        let other = |key: &Key| shared.get(&Key { breaks: true, ..key.clone() });
        let hidden = |key: &Key| !key.breaks && other(key).is_some_and(|o| o.strong_count() > 0);
        let named = shared.iter().filter(|(key, _)| !hidden(key));
        named.filter_map(|(_, stack)| stack.upgrade()).collect()
    }

    /// All backends in use.
    pub(crate) fn all(&self) -> Vec<Arc<BackendStack>> {
        self.shared.lock().values().filter_map(Weak::upgrade).collect()
    }
}

impl BackendStack {
    fn current(&self) -> Arc<Current> {
        Arc::clone(&self.current.read())
    }

    pub(crate) fn balancer(&self) -> Balancer<EndpointService> {
        self.current().balancer.clone()
    }

    /// Whether a request would get an endpoint at once.
    pub(crate) fn is_available(&self) -> bool {
        self.balancer().status().iter().any(|endpoint| endpoint.state == Health::Ready)
    }

    /// Whether it is known that no request would get an endpoint now. Of endpoints that were not heard
    /// of yet, nothing is.
    pub(crate) fn is_out(&self) -> bool {
        !self.balancer().is_unresolved() && !self.is_available()
    }

    pub(crate) fn endpoints(&self) -> Vec<EndpointStatus> {
        self.balancer().status()
    }

    /// For `/config`.
    pub(crate) fn describe(&self) -> serde_json::Value {
        let endpoint = |status: EndpointStatus| {
            serde_json::json!({
                "address": status.addr.to_string(),
                "weight": status.weight,
                "state": state_name(status.state),
                "rtt_ms": status.rtt.as_secs_f64() * 1e3,
                "in_flight": status.in_flight,
                "consecutive_failures": status.consecutive_failures,
            })
        };
        let current = self.current();
        let Current { extension, in_flight, .. } = &*current;
        let time = |time: Option<Duration>| time.map(|time| format!("{time:?}"));
        let budget = extension.retry_budget.map(|budget| {
            serde_json::json!({ "percent": budget.percent, "min_per_second": budget.min_per_second })
        });
        serde_json::json!({
            "parent": self.parent.to_string(),
            "backend": self.info.text.as_ref(),
            "strategy": extension.strategy.as_str(),
            "slow_start": time(extension.slow_start),
            "breaker_latency": time(extension.breaker_latency),
            "max_connections": extension.max_connections,
            "max_in_flight": extension.max_in_flight,
            "in_flight": in_flight.as_ref().map(ConcurrencyLimit::in_flight),
            "max_pending": self.backend.queue.capacity,
            "retry_budget": budget,
            "endpoints": self.endpoints().into_iter().map(endpoint).collect::<Vec<_>>(),
        })
    }

    /// Closes connections that have been idle for too long.
    pub(crate) fn expire(&self, now: Instant) {
        self.balancer().update(|set| set.services().for_each(|(_, s)| s.client().expire(now)));
    }

    /// For the gauges and `stat`.
    pub(crate) fn view(&self) -> BalancerView {
        let state = |status: EndpointStatus| match status.state {
            Health::Ready => EndpointState::Ready,
            Health::Ejected { .. } => EndpointState::Ejected,
            Health::Probing => EndpointState::Probing,
        };
        let endpoints = self.endpoints().into_iter().map(|status| (status.addr, state(status)));
        BalancerView {
            parent: self.parent.clone(),
            backend: self.info.meta.clone(),
            endpoints: endpoints.collect(),
        }
    }
}

fn state_name(state: Health) -> &'static str {
    match state {
        Health::Ready => "ready",
        Health::Ejected { .. } => "ejected",
        Health::Probing => "probing",
    }
}

type Balanced = <Balancer<EndpointService> as Service<Request>>::Future;

/// The backend as the end of a route's stack.
#[derive(Clone, Debug)]
pub(crate) struct BackendService(pub(crate) Arc<BackendStack>);

impl Service<Request> for BackendService {
    type Response = Response;
    type Error = BoxError;
    type Future = Either<Balanced, LimitedFuture<Balanced>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        let current = self.0.current();
        let Current { balancer, extension, in_flight } = &*current;
        let mut client = None;
        if let Some(exchange) = Exchange::of(&request) {
            exchange.split(&self.0.info);
            client = Some(exchange.client());
        }
        let has_session = request.extensions().get::<Affinity>().is_some();
        if extension.strategy == model::Strategy::RingHash && !has_session {
            let key = hash_key(extension, &request, client);
            request.extensions_mut().insert(Affinity::Hash(key));
        }
        let mut balancer = balancer.clone();
        match in_flight {
            None => Either::Left(balancer.call(request)),
            Some(limit) => Either::Right(limit.layer(balancer).call(request)),
        }
    }
}

fn hash_key(extension: &BackendExtension, request: &Request, client: Option<SocketAddr>) -> u64 {
    match extension.hash_header.as_ref().and_then(|name| request.headers().get(name)) {
        Some(value) => stable_hash(value.as_bytes()),
        None => stable_hash(client.map(|addr| addr.ip())),
    }
}

/// With fixed keys: every proxy, and the same one after a restart, sends a session to the same place.
pub(super) fn stable_hash(value: impl std::hash::Hash) -> u64 {
    ahash::RandomState::with_seeds(1, 2, 3, 4).hash_one(value)
}

/// What the following task needs.
struct Follow {
    config: Arc<Config>,
    recorder: Arc<Recorder>,
    identity: Identity,
    info: Arc<BackendInfo>,
    backend: Backend,
    breaker: Option<model::Breaker>,
    current: Arc<RwLock<Arc<Current>>>,
    /// Balancers that were replaced, and until when requests may still wait there: they, too, are told
    /// of endpoints.
    retired: Mutex<Vec<(Instant, Balancer<EndpointService>)>>,
}

/// Of many changes in a row only the last ones can have a request waiting that is not answered yet.
const MAX_RETIRED: usize = 16;
const MAX_WAIT: Duration = Duration::from_secs(60);

impl Follow {
    async fn run(
        self,
        mut endpoints: watch::Receiver<EndpointSet>,
        extension: Option<watch::Receiver<BackendRules>>,
    ) {
        // Without extensions to hear of, that branch stays pending.
        let (_none, never) = watch::channel(BackendRules::default());
        let mut extension = extension.unwrap_or(never);
        loop {
            self.extend(&extension.borrow_and_update().clone());
            match endpoints.borrow_and_update().clone() {
                EndpointSet::Unknown => {}
                EndpointSet::Known { exists, endpoints } if endpoints.is_empty() => {
                    let why = if exists { Missing::NoEndpoints } else { Missing::NotFound };
                    self.current.read().balancer.set_missing(why);
                    self.retired().iter().for_each(|old| old.set_missing(why));
                }
                EndpointSet::Known { endpoints, .. } => self.apply(&endpoints),
            }
            let gone = tokio::select! {
                changed = endpoints.changed() => changed.is_err(),
                changed = extension.changed() => changed.is_err(),
                () = self.term() => false,
            };
            if gone {
                return;
            }
        }
    }

    /// Until a balancer that was replaced has nobody waiting any more: it would keep its connections.
    async fn term(&self) {
        let soonest = self.retired.lock().iter().map(|(until, _)| *until).min();
        match soonest {
            Some(until) => tokio::time::sleep_until(until).await,
            None => std::future::pending().await,
        }
        self.retired();
    }

    /// Makes these the balancer's endpoints; those that are the same keep all they have.
    fn apply(&self, endpoints: &[Arc<Endpoint>]) {
        let current = Arc::clone(&self.current.read());
        let Current { balancer, extension, .. } = &*current;
        let known: HashMap<SocketAddr, EndpointService> =
            balancer.update(|set| set.services().map(|(addr, s)| (addr, s.clone())).collect());
        let same = |old: &Endpoint, new: &Endpoint| {
            Endpoint { weight: 0, ..old.clone() } == Endpoint { weight: 0, ..new.clone() }
        };
        let mut kept = std::collections::HashSet::new();
        let next: Vec<_> = endpoints
            .iter()
            .map(|endpoint| {
                let service = match known.get(&endpoint.addr) {
                    Some(service) if same(service.endpoint(), endpoint) => {
                        kept.insert(endpoint.addr);
                        service.clone()
                    }
                    _ => self.service(endpoint, extension),
                };
                (endpoint.addr, endpoint.weight, service)
            })
            .collect();
        for old in self.retired() {
            old.replace(next.iter().cloned(), |addr| kept.contains(addr));
        }
        balancer.replace(next, |addr| kept.contains(addr));
    }

    /// Where requests may still wait.
    fn retired(&self) -> Vec<Balancer<EndpointService>> {
        let mut retired = self.retired.lock();
        retired.retain(|(until, _)| *until > Instant::now());
        retired.iter().map(|(_, balancer)| balancer.clone()).collect()
    }

    fn retire(&self, balancer: &Balancer<EndpointService>) {
        let mut retired = self.retired.lock();
        if retired.len() >= MAX_RETIRED {
            retired.remove(0);
        }
        // Twice as long as anybody waits.
        let until = Instant::now() + 2 * self.backend.queue.failfast_timeout.min(MAX_WAIT);
        retired.push((until, balancer.clone()));
    }

    /// Other rules of picking are a new balancer with the same endpoints; another limit of
    /// connections, with new ones. What is under way ends where it is.
    fn extend(&self, rules: &BackendRules) {
        let mut current = self.current.write();
        let (new, old) = (&rules.extension, &current.extension);
        if new == old {
            return;
        }
        let bounds = BackendExtension {
            max_in_flight: new.max_in_flight,
            retry_budget: new.retry_budget,
            ..old.clone()
        };
        let balancer = if bounds == *new {
            current.balancer.clone()
        } else {
            let config = balance_config(&self.info, &self.backend, self.breaker, new);
            let balancer = Balancer::new(config);
            let endpoints: Vec<_> = current.balancer.update(|set| {
                let service = |service: &EndpointService| {
                    if new.max_connections == old.max_connections {
                        return service.clone();
                    }
                    self.service(service.endpoint(), new)
                };
                set.services().map(|(addr, s)| (addr, s.endpoint().weight, service(s))).collect()
            });
            balancer.replace(endpoints, |_| true);
            self.retire(&current.balancer);
            balancer
        };
        let (extension, in_flight) = (new.clone(), rules.in_flight.clone());
        *current = Arc::new(Current { balancer, extension, in_flight });
    }

    fn service(&self, endpoint: &Arc<Endpoint>, extension: &BackendExtension) -> EndpointService {
        let Self { config, recorder, identity, info, .. } = self;
        let connections = match extension.max_connections {
            // Each worker has connections of its own.
            Some(max) => (max as usize / config.threads).max(1),
            None => config.limits.max_endpoint_connections,
        };
        let of_pool = PoolLimits { connections, waiting: self.backend.queue.capacity as usize };
        EndpointService::new(Arc::clone(endpoint), info, recorder, config, identity, of_pool)
    }
}

fn balance_config(
    info: &Arc<BackendInfo>,
    backend: &Backend,
    breaker: Option<model::Breaker>,
    extension: &BackendExtension,
) -> BalanceConfig {
    let (default_rtt, decay, penalty) = match &backend.kind {
        BackendKind::Balance(balance) => (balance.default_rtt, balance.decay, balance.penalty),
        BackendKind::Forward(_) => (Duration::from_millis(30), Duration::from_secs(10), None),
    };
    let hooked = Arc::clone(info);
    BalanceConfig {
        strategy: match extension.strategy {
            model::Strategy::PeakEwma => Strategy::PeakEwma { default_rtt, decay },
            model::Strategy::LeastRequest => Strategy::LeastRequest,
            model::Strategy::RoundRobin => Strategy::RoundRobin,
            model::Strategy::RingHash => Strategy::RingHash,
        },
        breaker: breaker.map(|breaker| breaker_config(breaker, extension.breaker_latency)),
        slow_start: extension.slow_start,
        capacity: backend.queue.capacity as usize,
        failfast_timeout: backend.queue.failfast_timeout,
        penalty: penalty.map(|penalty| Penalty {
            penalty: penalty.penalty,
            max_retry_after: penalty.max_retry_after,
            decay: penalty.decay,
        }),
        breaker_hook: Some(Arc::new(move |endpoint, transition| {
            tracing::info!(backend = %hooked.text, %endpoint, ?transition, "circuit breaker");
        })),
    }
}

fn breaker_config(breaker: model::Breaker, latency: Option<Duration>) -> BreakerConfig {
    BreakerConfig {
        latency,
        consecutive: breaker.consecutive,
        success_rate: breaker.success_rate.map(|rate| SuccessRate {
            threshold: rate.threshold,
            decay: rate.decay,
            min_requests: rate.min_requests,
        }),
        backoff: mesh_layers::Backoff {
            min: breaker.backoff.min,
            max: breaker.backoff.max,
            jitter: f64::from(breaker.backoff.jitter),
        },
        respect_retry_after: breaker.backoff.respect_retry_after,
        min_ready_endpoints: breaker.min_ready,
    }
}
