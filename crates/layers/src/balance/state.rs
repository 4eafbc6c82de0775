//! The set of endpoints behind the balancer's lock: who is in it, and who is in service.
//!
//! Locks are taken in one order: the balancer's, then an endpoint's. What every request does to its
//! endpoint (latency, breaker counts) needs the endpoint's alone; only changes of who is in service
//! come here.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::time::Instant;

use super::breaker::{Breaker, BreakerConfig, Cause, Phase, Transition};
use super::load::Load;
use super::pick::Picker;
use super::ring::Ring;
use super::{BalanceConfig, EndpointStatus, Health, Missing, Reason, Strategy};
use crate::Affinity;

/// One endpoint, shared with the requests that are at it.
pub(super) struct Endpoint<S> {
    pub(super) addr: SocketAddr,
    pub(super) service: S,
    pub(super) pending: AtomicU32,
    pub(super) record: Mutex<Record>,
}

/// What an endpoint's requests told of it.
pub(super) struct Record {
    pub(super) load: Load,
    pub(super) breaker: Breaker,
}

impl Record {
    fn new(config: &BalanceConfig, now: Instant) -> Self {
        let (default_rtt, decay) = match config.strategy {
            Strategy::PeakEwma { default_rtt, decay } => (default_rtt, decay),
            _ => (Duration::ZERO, DISPLAY_DECAY),
        };
        let load = Load::new(default_rtt, decay, config.penalty, now);
        Self { load, breaker: Breaker::new(now) }
    }
}

/// An endpoint that starts slowly gets this much of its share at once, as otherwise it would never be
/// found out how it fares.
const FIRST_SHARE: f64 = 0.1;
/// Steps to the whole share, and the time that each takes at least.
const SHARES: u32 = 20;
const MIN_SHARE_TIME: Duration = Duration::from_millis(50);

/// Of latencies that are only shown.
const DISPLAY_DECAY: Duration = Duration::from_secs(10);

struct Slot<S> {
    endpoint: Arc<Endpoint<S>>,
    weight: u32,
    added: Instant,
    /// Its phase when the set was last settled.
    standing: Standing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    InService,
    /// Half-open, and nobody probes it yet.
    AwaitsProbe,
    Out,
}

pub(super) struct State<S> {
    slots: Vec<Slot<S>>,
    by_addr: HashMap<SocketAddr, usize>,
    missing: Missing,
    /// Removed, and to be dropped without the lock: what a service does then is its own affair.
    pub(super) gone: Vec<Arc<Endpoint<S>>>,
    /// Over the slots in service.
    picker: Picker,
    /// Over all slots, if the strategy is by hash.
    ring: Ring,
    /// Slots that await a probe.
    probes: Vec<usize>,
    /// The soonest end of a term.
    next_probe: Option<Instant>,
    /// When the shares of endpoints that start slowly are worked out anew.
    next_share: Option<Instant>,
    /// Since when nothing is in service.
    unavailable_since: Option<Instant>,
    rng: SmallRng,
}

/// No endpoint is available.
pub(super) struct Blocked {
    pub(super) reason: Reason,
    pub(super) since: Instant,
    /// When one may be available without anything else happening.
    pub(super) next_probe: Option<Instant>,
}

/// Why an endpoint is to be taken out of service, and for how long.
pub(super) struct Ejection<'a> {
    pub(super) breaker: &'a BreakerConfig,
    pub(super) cause: Cause,
    pub(super) retry_after: Option<Duration>,
}

type Transitions = Vec<(SocketAddr, Transition)>;

impl<S> State<S> {
    pub(super) fn new(seed: u64, now: Instant) -> Self {
        Self {
            slots: Vec::new(),
            by_addr: HashMap::new(),
            missing: Missing::default(),
            gone: Vec::new(),
            picker: Picker::default(),
            ring: Ring::default(),
            probes: Vec::new(),
            next_probe: None,
            next_share: None,
            unavailable_since: Some(now),
            rng: SmallRng::seed_from_u64(seed),
        }
    }

    /// An endpoint for a request, and whether the request probes it.
    pub(super) fn pick(
        &mut self,
        config: &BalanceConfig,
        affinity: Option<Affinity>,
        exclude: &[SocketAddr],
        now: Instant,
        transitions: &mut Transitions,
    ) -> Result<(Arc<Endpoint<S>>, bool), Blocked> {
        if [self.next_probe, self.next_share].into_iter().flatten().any(|at| at <= now) {
            self.settle(config, now, transitions);
        }
        let meant = match affinity {
            Some(Affinity::Endpoint(addr)) => self.pick_meant(addr, exclude),
            _ => None,
        };
        let picked = match config.strategy {
            _ if meant.is_some() => meant,
            Strategy::RingHash => self.pick_by_hash(affinity, exclude),
            _ => self.pick_probe(exclude).or_else(|| self.pick_by_load(config, exclude, now)),
        };
        let Some(index) = picked else {
            return Err(self.blocked(now));
        };
        let probe = self.slots[index].standing == Standing::AwaitsProbe;
        if probe {
            self.slots[index].standing = Standing::Out;
            self.probes.retain(|probe| *probe != index);
            self.slots[index].endpoint.record.lock().breaker.take_probe();
        }
        let endpoint = &self.slots[index].endpoint;
        endpoint.pending.fetch_add(1, Ordering::Relaxed);
        Ok((Arc::clone(endpoint), probe))
    }

    /// A probe goes ahead of everything: left to the load, a slow endpoint would wait for long. A
    /// retry has better things to do, unless there is nothing else.
    fn pick_probe(&self, exclude: &[SocketAddr]) -> Option<usize> {
        let wanted = exclude.is_empty() || self.picker.is_empty();
        self.probes.first().copied().filter(|_| wanted)
    }

    fn pick_by_load(
        &mut self,
        config: &BalanceConfig,
        exclude: &[SocketAddr],
        now: Instant,
    ) -> Option<usize> {
        let slots = &self.slots;
        let excluded = |index: usize| exclude.contains(&slots[index].endpoint.addr);
        let pending =
            |index: usize| f64::from(slots[index].endpoint.pending.load(Ordering::Relaxed));
        let rng = &mut self.rng;
        match config.strategy {
            Strategy::RoundRobin => self.picker.next_in_turn(excluded),
            Strategy::PeakEwma { .. } => {
                self.picker.cheaper_of_two(rng, !exclude.is_empty(), excluded, |index, share| {
                    let latency = slots[index].endpoint.record.lock().load.cost(now);
                    latency * (pending(index) / share + 1.0)
                })
            }
            Strategy::LeastRequest | Strategy::RingHash => {
                self.picker.cheaper_of_two(rng, !exclude.is_empty(), excluded, |index, share| {
                    pending(index) / share
                })
            }
        }
    }

    fn pick_meant(&self, addr: SocketAddr, exclude: &[SocketAddr]) -> Option<usize> {
        let index = *self.by_addr.get(&addr)?;
        let serves = self.slots[index].standing != Standing::Out;
        (serves && !exclude.contains(&addr)).then_some(index)
    }

    fn pick_by_hash(
        &mut self,
        affinity: Option<Affinity>,
        exclude: &[SocketAddr],
    ) -> Option<usize> {
        let key = match affinity {
            Some(Affinity::Hash(key)) => key,
            _ => rand::Rng::next_u64(&mut self.rng),
        };
        let usable = |index: &usize| self.slots[*index].standing != Standing::Out;
        let untried =
            |index: &usize| usable(index) && !exclude.contains(&self.slots[*index].endpoint.addr);
        self.ring.walk(key).find(untried).or_else(|| self.ring.walk(key).find(usable))
    }

    pub(super) fn is_unresolved(&self) -> bool {
        self.slots.is_empty() && self.missing == Missing::Unresolved
    }

    fn blocked(&self, now: Instant) -> Blocked {
        let reason = match self.missing {
            _ if !self.slots.is_empty() => Reason::AllEjected,
            Missing::Unresolved => Reason::Unresolved,
            Missing::NoEndpoints => Reason::NoEndpoints { exists: true },
            Missing::NotFound => Reason::NoEndpoints { exists: false },
        };
        let since = self.unavailable_since.unwrap_or(now);
        Blocked { reason, since, next_probe: self.next_probe }
    }

    /// Works out anew who is in service, after any change of the set or of a breaker.
    pub(super) fn settle(
        &mut self,
        config: &BalanceConfig,
        now: Instant,
        transitions: &mut Transitions,
    ) {
        self.probes.clear();
        self.next_probe = None;
        self.next_share = None;
        // Weight 0 means no traffic, unless that would mean none at all.
        let weighty = self.slots.iter().any(|slot| slot.weight > 0);
        let mut in_service = Vec::with_capacity(self.slots.len());
        self.keep_floor(config, weighty, now, transitions);
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let mut record = slot.endpoint.record.lock();
            if let Some(transition) = record.breaker.tick(now) {
                transitions.push((slot.endpoint.addr, transition));
            }
            slot.standing = match record.breaker.phase() {
                _ if weighty && slot.weight == 0 => Standing::Out,
                Phase::Closed => Standing::InService,
                Phase::HalfOpen { probing: false } => Standing::AwaitsProbe,
                Phase::HalfOpen { probing: true } => Standing::Out,
                Phase::Open { until, .. } => {
                    self.next_probe = Some(self.next_probe.map_or(until, |at| at.min(until)));
                    Standing::Out
                }
            };
            match slot.standing {
                Standing::InService => in_service.push((index, slot.weight.max(1))),
                Standing::AwaitsProbe => self.probes.push(index),
                Standing::Out => {}
            }
        }
        if let Some(window) = config.slow_start {
            self.start_slowly(window, &mut in_service, now);
        }
        self.unavailable_since = match in_service.is_empty() {
            true => self.unavailable_since.or(Some(now)),
            false => None,
        };
        let in_turn = config.strategy == Strategy::RoundRobin;
        self.picker = Picker::new(&in_service, in_turn.then_some(&mut self.rng));
    }

    /// Gives endpoints that were added lately a part of their share, more and more of it. Where all
    /// are as new, nothing changes.
    fn start_slowly(&mut self, window: Duration, in_service: &mut [(usize, u32)], now: Instant) {
        let age = |slot: &Slot<S>| now.saturating_duration_since(slot.added);
        if self.slots.iter().all(|slot| age(slot) >= window) {
            return;
        }
        self.next_share = now.checked_add((window / SHARES).max(MIN_SHARE_TIME));
        let heaviest = in_service.iter().map(|(_, weight)| *weight).max().unwrap_or(1);
        // Fine enough for parts of the smallest weight.
        let scale = (u32::MAX / heaviest.max(1)).min(1_000);
        for (index, weight) in in_service {
            let part = age(&self.slots[*index]).as_secs_f64() / window.as_secs_f64().max(1e-9);
            let part = part.clamp(FIRST_SHARE, 1.0);
            *weight = ((f64::from(*weight * scale) * part) as u32).max(1);
        }
    }

    /// Endpoints that left may have taken the set below the floor: those ejected that are soonest
    /// due return early.
    fn keep_floor(
        &mut self,
        config: &BalanceConfig,
        weighty: bool,
        now: Instant,
        transitions: &mut Transitions,
    ) {
        let floor = config.breaker.map_or(0, |breaker| breaker.min_ready_endpoints) as usize;
        if floor == 0 {
            return;
        }
        let mut ready = 0;
        let mut ejected = Vec::new();
        for slot in self.slots.iter().filter(|slot| slot.weight > 0 || !weighty) {
            match slot.endpoint.record.lock().breaker.phase() {
                Phase::Closed => ready += 1,
                Phase::Open { until, .. } => ejected.push((until, &slot.endpoint)),
                Phase::HalfOpen { .. } => {}
            }
        }
        ejected.sort_by_key(|(until, endpoint)| (*until, endpoint.addr));
        for (_, endpoint) in ejected.into_iter().take(floor.saturating_sub(ready)) {
            let transition = endpoint.record.lock().breaker.close(now);
            transitions.push((endpoint.addr, transition));
        }
    }

    /// Takes an endpoint out of service, if the floor allows it and it is still here and in
    /// service.
    pub(super) fn eject(
        &mut self,
        endpoint: &Arc<Endpoint<S>>,
        ejection: Ejection<'_>,
        now: Instant,
        transitions: &mut Transitions,
    ) {
        let Ejection { breaker, cause, retry_after } = ejection;
        if !self.holds(endpoint) {
            return;
        }
        let mut record = endpoint.record.lock();
        let floor = breaker.min_ready_endpoints as usize;
        let allowed = match record.breaker.phase() {
            Phase::Closed => floor == 0 || self.picker.len() > floor,
            Phase::HalfOpen { probing: true } => cause == Cause::ProbeFailed,
            _ => false,
        };
        if allowed {
            let transition = record.breaker.open(breaker, cause, retry_after, now);
            transitions.push((endpoint.addr, transition));
        }
    }

    /// A probe came back well. What was known of the latency is of bad times.
    pub(super) fn readmit(
        &mut self,
        config: &BalanceConfig,
        endpoint: &Arc<Endpoint<S>>,
        rtt: Duration,
        now: Instant,
        transitions: &mut Transitions,
    ) {
        if !self.holds(endpoint) {
            return;
        }
        let mut record = endpoint.record.lock();
        if matches!(record.breaker.phase(), Phase::HalfOpen { .. }) {
            *record = Record::new(config, now);
            record.load.observe_at_least(rtt, now);
            transitions.push((endpoint.addr, Transition::Closed));
        }
    }

    fn holds(&self, endpoint: &Arc<Endpoint<S>>) -> bool {
        let index = self.by_addr.get(&endpoint.addr);
        index.is_some_and(|index| Arc::ptr_eq(&self.slots[*index].endpoint, endpoint))
    }

    pub(super) fn addrs(&self) -> impl Iterator<Item = SocketAddr> {
        self.by_addr.keys().copied()
    }

    pub(super) fn status(&self, now: Instant) -> Vec<EndpointStatus> {
        let status = |slot: &Slot<S>| {
            let record = slot.endpoint.record.lock();
            EndpointStatus {
                addr: slot.endpoint.addr,
                weight: slot.weight,
                state: match record.breaker.phase() {
                    Phase::Closed => Health::Ready,
                    Phase::Open { until, .. } if until <= now => Health::Probing,
                    Phase::Open { since, until } => Health::Ejected { since, until },
                    Phase::HalfOpen { .. } => Health::Probing,
                },
                rtt: record.load.rtt(now),
                in_flight: slot.endpoint.pending.load(Ordering::Relaxed),
                consecutive_failures: record.breaker.consecutive_failures(),
            }
        };
        self.slots.iter().map(status).collect()
    }

    fn rebuild_ring(&mut self) {
        let endpoints: Vec<_> =
            self.slots.iter().map(|slot| (slot.endpoint.addr, slot.weight)).collect();
        self.ring = Ring::new(&endpoints);
    }
}

/// A set being changed; see [`super::Balancer::update`].
pub struct EndpointSet<'a, S> {
    state: &'a mut State<S>,
    config: &'a BalanceConfig,
}

impl<'a, S> EndpointSet<'a, S> {
    pub(super) fn new(state: &'a mut State<S>, config: &'a BalanceConfig) -> Self {
        Self { state, config }
    }

    /// Adds an endpoint, or replaces one, whose latency and breaker are then forgotten.
    pub fn insert(&mut self, addr: SocketAddr, weight: u32, service: S) {
        let record = Mutex::new(Record::new(self.config, Instant::now()));
        let endpoint = Arc::new(Endpoint { addr, service, pending: AtomicU32::new(0), record });
        let added = Instant::now();
        let slot = Slot { endpoint, weight, added, standing: Standing::Out };
        self.state.missing = Missing::NoEndpoints;
        match self.state.by_addr.get(&addr) {
            Some(index) => {
                let old = std::mem::replace(&mut self.state.slots[*index], slot);
                self.state.gone.push(old.endpoint);
            }
            None => {
                self.state.by_addr.insert(addr, self.state.slots.len());
                self.state.slots.push(slot);
            }
        }
    }

    /// Changes the weight of an endpoint, if it is there, and nothing else.
    pub fn reweigh(&mut self, addr: &SocketAddr, weight: u32) -> bool {
        let Some(index) = self.state.by_addr.get(addr) else {
            return false;
        };
        self.state.slots[*index].weight = weight;
        true
    }

    /// Whether the endpoint was there.
    pub fn remove(&mut self, addr: &SocketAddr) -> bool {
        let Some(index) = self.state.by_addr.remove(addr) else {
            return false;
        };
        let removed = self.state.slots.swap_remove(index);
        self.state.gone.push(removed.endpoint);
        if let Some(moved) = self.state.slots.get(index) {
            self.state.by_addr.insert(moved.endpoint.addr, index);
        }
        true
    }

    /// Removes all but these.
    pub fn retain(&mut self, keep: &HashSet<SocketAddr>) {
        let gone: Vec<_> =
            self.state.by_addr.keys().filter(|addr| !keep.contains(addr)).copied().collect();
        for addr in gone {
            self.remove(&addr);
        }
    }

    /// Removes all, and says why there is nothing.
    pub fn clear(&mut self, why: Missing) {
        let removed = self.state.slots.drain(..).map(|slot| slot.endpoint);
        self.state.gone.extend(removed);
        self.state.by_addr.clear();
        self.state.missing = why;
    }

    /// The endpoints and their services.
    pub fn services(&self) -> impl Iterator<Item = (SocketAddr, &S)> {
        self.state.slots.iter().map(|slot| (slot.endpoint.addr, &slot.endpoint.service))
    }

    pub fn contains(&self, addr: &SocketAddr) -> bool {
        self.state.by_addr.contains_key(addr)
    }

    pub fn len(&self) -> usize {
        self.state.slots.len()
    }

    pub fn is_empty(&self) -> bool {
        self.state.slots.is_empty()
    }
}

/// The ring is over all endpoints, so it is only of the set, not of who is in service.
impl<S> Drop for EndpointSet<'_, S> {
    fn drop(&mut self) {
        if self.config.strategy == Strategy::RingHash {
            self.state.rebuild_ring();
        }
    }
}

impl<S> std::fmt::Debug for EndpointSet<'_, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.state.by_addr.keys()).finish()
    }
}
