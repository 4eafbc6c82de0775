//! [`Balancer`]: picks an endpoint for each request, or each connection.
//!
//! It is a handle on a set of endpoints that whoever discovers them keeps up to date. A request
//! [acquires](Balancer::acquire) a [`Lease`] on one: by the [`Strategy`], among those whose circuit
//! breaker is closed, preferably one that it was not at yet. The lease counts as pending until it
//! is dropped, and takes the latency and the outcome. While no endpoint is available requests wait,
//! in bounded number and for a bounded time since it became so; after that they fail at once.
//!
//! There is no task and no timer in the background: a term of ejection that is over is noticed by
//! the next pick, or by a request that waits for it.
//!
//! Files, in reading order: `service.rs` (what a request does), `lease.rs`, `state.rs` (the set and
//! who is in service), `pick.rs` and `ring.rs` (strategies), `load.rs`, `breaker.rs`.

mod breaker;
mod lease;
mod load;
mod pick;
mod retry_after;
mod ring;
mod service;
mod state;
#[cfg(test)]
mod tests;
mod upload;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

pub use breaker::{BreakerConfig, Cause, SuccessRate, Transition};
pub use lease::Lease;
pub use load::Penalty;
pub use service::BalancerFuture;
pub use state::EndpointSet;

use state::{Blocked, State};

use crate::Affinity;

/// How a balancer picks, waits and ejects.
#[derive(Clone)]
pub struct BalanceConfig {
    pub strategy: Strategy,
    /// `None`: endpoints are never ejected.
    pub breaker: Option<BreakerConfig>,
    /// Requests that may wait while no endpoint is available.
    pub capacity: usize,
    /// How long a balancer may be without an available endpoint before requests fail at once.
    pub failfast_timeout: Duration,
    /// Makes endpoints that answer 429 look slow; of the peak-EWMA strategy only.
    pub penalty: Option<Penalty>,
    /// How long an endpoint takes to get its whole share after it was added; not by hash.
    pub slow_start: Option<Duration>,
    /// Told each change of an endpoint's breaker, outside of any lock.
    pub breaker_hook: Option<BreakerHook>,
}

/// What is told of breakers.
pub type BreakerHook = Arc<dyn Fn(SocketAddr, Transition) + Send + Sync>;

impl Default for BalanceConfig {
    /// Peak EWMA without a breaker; 10 000 may wait, for 3 s.
    fn default() -> Self {
        Self {
            strategy: Strategy::default(),
            breaker: None,
            capacity: 10_000,
            failfast_timeout: Duration::from_secs(3),
            penalty: None,
            slow_start: None,
            breaker_hook: None,
        }
    }
}

/// How an endpoint is picked. All honour the endpoints' weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// The cheaper of two at random, by moving latency × requests pending.
    PeakEwma {
        /// The latency of an endpoint of which nothing is known.
        default_rtt: Duration,
        /// How fast a latency is forgotten.
        decay: Duration,
    },
    /// The one of two at random with fewer requests pending.
    LeastRequest,
    /// In turn.
    RoundRobin,
    /// By [`crate::Affinity::Hash`]: equal keys go to the same endpoint as long as it is there. Without a
    /// key, at random.
    RingHash,
}

impl Default for Strategy {
    /// Peak EWMA from 30 ms, over 10 s.
    fn default() -> Self {
        Self::PeakEwma { default_rtt: Duration::from_millis(30), decay: Duration::from_secs(10) }
    }
}

/// Why a balancer is empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Missing {
    /// Nothing was heard of it yet.
    #[default]
    Unresolved,
    /// The service exists and has no endpoints.
    NoEndpoints,
    /// There is no such service.
    NotFound,
}

/// Why no endpoint is available.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    #[error("its endpoints are not known yet")]
    Unresolved,
    #[error("{}", if *.exists { "the service has no endpoints" } else { "the service does not exist" })]
    NoEndpoints { exists: bool },
    #[error("the circuit breaker has ejected all endpoints")]
    AllEjected,
    /// Of an endpoint that was picked; told by its connections, not by the balancer.
    #[error("all connections that it may have are in use")]
    NoConnection,
}

/// A request got no endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    #[error("{capacity} requests are waiting for an endpoint already: {reason}")]
    QueueFull { capacity: usize, reason: Reason },
    #[error("no endpoint was available for {after:?}: {reason}")]
    FailFast { after: Duration, reason: Reason },
}

impl Unavailable {
    pub fn reason(&self) -> Reason {
        match self {
            Self::QueueFull { reason, .. } | Self::FailFast { reason, .. } => *reason,
        }
    }
}

/// What is known of an endpoint, for people to look at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EndpointStatus {
    pub addr: SocketAddr,
    pub weight: u32,
    pub state: Health,
    /// The estimated latency; of the peak-EWMA strategy, else the last peak.
    pub rtt: Duration,
    pub in_flight: u32,
    pub consecutive_failures: u32,
}

/// Whether an endpoint is in service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    Ready,
    Ejected {
        since: Instant,
        until: Instant,
    },
    /// Its term is over; one request decides.
    Probing,
}

/// A shared set of endpoints to pick from; clones are handles on the same one.
pub struct Balancer<S>(Arc<Shared<S>>);

struct Shared<S> {
    config: BalanceConfig,
    state: Mutex<State<S>>,
    /// Something changed that waiting requests want to know.
    changed: Notify,
    waiting: AtomicUsize,
}

impl<S> Balancer<S> {
    /// A balancer of no endpoints, of which nothing is known yet.
    pub fn new(config: BalanceConfig) -> Self {
        Self::seeded(config, rand::random())
    }

    /// The same picks for the same seed and history.
    fn seeded(config: BalanceConfig, seed: u64) -> Self {
        Self(Arc::new(Shared {
            state: Mutex::new(State::new(seed, Instant::now())),
            config,
            changed: Notify::new(),
            waiting: AtomicUsize::new(0),
        }))
    }

    /// Changes the set, all at once.
    pub fn update<R>(&self, change: impl FnOnce(&mut EndpointSet<'_, S>) -> R) -> R {
        self.0.change(|state, _, _| change(&mut EndpointSet::new(state, &self.0.config)))
    }

    /// Adds an endpoint, or replaces one, whose latency and breaker are then forgotten. Of weight 0
    /// it gets nothing, unless all are of weight 0.
    pub fn insert(&self, addr: SocketAddr, weight: u32, service: S) {
        self.update(|set| set.insert(addr, weight, service));
    }

    /// Whether the endpoint was there. What it is doing goes on.
    pub fn remove(&self, addr: &SocketAddr) -> bool {
        self.update(|set| set.remove(addr))
    }

    /// Makes these the set. An endpoint that is there already and for which `unchanged` says that
    /// its service is the same keeps its service, latency and breaker.
    pub fn replace(
        &self,
        endpoints: impl IntoIterator<Item = (SocketAddr, u32, S)>,
        mut unchanged: impl FnMut(&SocketAddr) -> bool,
    ) {
        let endpoints: Vec<_> = endpoints.into_iter().collect();
        self.update(|set| {
            let kept = endpoints.iter().map(|(addr, ..)| *addr).collect();
            set.retain(&kept);
            for (addr, weight, service) in endpoints {
                if !(unchanged(&addr) && set.reweigh(&addr, weight)) {
                    set.insert(addr, weight, service);
                }
            }
        });
    }

    /// Empties the set, and says why it is empty.
    pub fn set_missing(&self, why: Missing) {
        self.update(|set| set.clear(why));
    }

    /// Every endpoint, in no particular order.
    pub fn status(&self) -> Vec<EndpointStatus> {
        self.0.state.lock().status(Instant::now())
    }

    /// Whether nothing was heard of its endpoints yet.
    pub fn is_unresolved(&self) -> bool {
        self.0.state.lock().is_unresolved()
    }

    /// The endpoint whose address is the one meant, in service or not.
    pub fn find(&self, is_meant: impl Fn(SocketAddr) -> bool) -> Option<SocketAddr> {
        self.0.state.lock().addrs().find(|addr| is_meant(*addr))
    }

    /// Requests that wait for an endpoint.
    pub fn waiting(&self) -> usize {
        self.0.waiting.load(Ordering::Relaxed)
    }

    /// An endpoint, waiting for one if need be. Endpoints in `exclude` are only taken if there are no
    /// others.
    pub async fn acquire(
        &self,
        affinity: Option<Affinity>,
        exclude: &[SocketAddr],
    ) -> Result<Lease<S>, Unavailable> {
        match self.try_acquire(affinity, exclude) {
            Ok(lease) => Ok(lease),
            Err(blocked) => self.wait(blocked, affinity, exclude).await,
        }
    }

    /// An endpoint, if one is available now.
    fn try_acquire(
        &self,
        affinity: Option<Affinity>,
        exclude: &[SocketAddr],
    ) -> Result<Lease<S>, Blocked> {
        let now = Instant::now();
        let (picked, transitions) = {
            let mut state = self.0.state.lock();
            let mut transitions = Vec::new();
            let picked = state.pick(&self.0.config, affinity, exclude, now, &mut transitions);
            (picked, transitions)
        };
        self.0.tell(&transitions);
        picked.map(|(endpoint, probe)| Lease::new(Arc::clone(&self.0), endpoint, probe, now))
    }

    async fn wait(
        &self,
        mut blocked: Blocked,
        affinity: Option<Affinity>,
        exclude: &[SocketAddr],
    ) -> Result<Lease<S>, Unavailable> {
        let after = self.0.config.failfast_timeout;
        let failfast = |reason| Err(Unavailable::FailFast { after, reason });
        if blocked.since.elapsed() >= after {
            return failfast(blocked.reason);
        }
        let _place = self.0.enter_queue(blocked.reason)?;
        loop {
            // Made before the set is looked at, so that no change goes unnoticed.
            let changed = self.0.changed.notified();
            match self.try_acquire(affinity, exclude) {
                Ok(lease) => return Ok(lease),
                Err(still) => blocked = still,
            }
            let end = blocked.since.checked_add(after);
            if end.is_some_and(|end| end <= Instant::now()) {
                return failfast(blocked.reason);
            }
            match [end, blocked.next_probe].into_iter().flatten().min() {
                // Either way it is looked at anew.
                Some(at) => drop(timeout_at(at, changed).await),
                None => changed.await,
            }
        }
    }
}

impl<S> Shared<S> {
    /// Changes the state, brings it in order, and tells everybody who has to know.
    fn change<R>(
        &self,
        change: impl FnOnce(&mut State<S>, &mut Vec<(SocketAddr, Transition)>, Instant) -> R,
    ) -> R {
        let now = Instant::now();
        let mut transitions = Vec::new();
        let (result, gone) = {
            let mut state = self.state.lock();
            let result = change(&mut state, &mut transitions, now);
            state.settle(&self.config, now, &mut transitions);
            (result, std::mem::take(&mut state.gone))
        };
        drop(gone);
        self.tell(&transitions);
        self.changed.notify_waiters();
        result
    }

    fn tell(&self, transitions: &[(SocketAddr, Transition)]) {
        if let Some(hook) = &self.config.breaker_hook {
            for (addr, transition) in transitions {
                hook(*addr, *transition);
            }
        }
    }

    fn enter_queue(&self, reason: Reason) -> Result<Place<'_>, Unavailable> {
        let place = Place(&self.waiting);
        let capacity = self.config.capacity;
        if self.waiting.fetch_add(1, Ordering::Relaxed) < capacity {
            Ok(place)
        } else {
            Err(Unavailable::QueueFull { capacity, reason })
        }
    }
}

/// A place in the queue.
struct Place<'a>(&'a AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<S> Clone for Balancer<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S> fmt::Debug for Balancer<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Balancer").field("config", &self.0.config).finish_non_exhaustive()
    }
}

impl fmt::Debug for BalanceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BalanceConfig")
            .field("strategy", &self.strategy)
            .field("breaker", &self.breaker)
            .field("capacity", &self.capacity)
            .field("failfast_timeout", &self.failfast_timeout)
            .field("penalty", &self.penalty)
            .field("slow_start", &self.slow_start)
            .finish_non_exhaustive()
    }
}
