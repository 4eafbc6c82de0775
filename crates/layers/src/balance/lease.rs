//! [`Lease`]: one request, or one connection, at an endpoint.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::Shared;
use super::breaker::{BreakerConfig, Cause};
use super::state::{Ejection, Endpoint};

/// Counts as pending at its endpoint until it is dropped. The first outcome it is told counts;
/// dropped without one, it was cancelled, which says nothing about the endpoint.
pub struct Lease<S> {
    shared: Arc<Shared<S>>,
    endpoint: Arc<Endpoint<S>>,
    started: Instant,
    /// It decides about an endpoint that was ejected.
    probe: bool,
    settled: bool,
}

impl<S> Lease<S> {
    pub(super) fn new(
        shared: Arc<Shared<S>>,
        endpoint: Arc<Endpoint<S>>,
        probe: bool,
        started: Instant,
    ) -> Self {
        Self { shared, endpoint, started, probe, settled: false }
    }

    pub fn service(&self) -> &S {
        &self.endpoint.service
    }

    pub fn addr(&self) -> SocketAddr {
        self.endpoint.addr
    }

    /// When it was acquired.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// The endpoint did well, and took so long to answer, or to be connected to.
    pub fn success(&mut self, rtt: Duration) {
        let now = Instant::now();
        self.observe(rtt, now);
        self.settle_success(rtt, now);
    }

    /// The endpoint failed, and may have said when to come back.
    pub fn failure(&mut self, retry_after: Option<Duration>) {
        self.observe_at_least(Instant::now());
        self.settle_failure(retry_after);
    }

    pub(super) fn has_breaker(&self) -> bool {
        self.shared.config.breaker.is_some()
    }

    /// The longest that an answer may take for the breaker.
    pub(super) fn max_latency(&self) -> Option<Duration> {
        self.shared.config.breaker.and_then(|breaker| breaker.latency)
    }

    /// Whether an answer now comes too late for the breaker, of an endpoint that has all it needs since
    /// then, or since it was acquired.
    pub(super) fn is_late(&self, now: Instant, since: Option<Instant>) -> bool {
        let since = since.map_or(self.started, |since| since.max(self.started));
        self.max_latency().is_some_and(|most| now.saturating_duration_since(since) > most)
    }

    /// Whether it decides about the endpoint and has not yet.
    pub(super) fn awaits_verdict(&self) -> bool {
        self.probe && !self.settled
    }

    pub(super) fn observe(&self, rtt: Duration, now: Instant) {
        self.endpoint.record.lock().load.observe(rtt, now);
    }

    /// It lasted until now without an answer.
    pub(super) fn observe_at_least(&self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.started);
        self.endpoint.record.lock().load.observe_at_least(elapsed, now);
    }

    pub(super) fn penalize(&self, retry_after: Option<Duration>, now: Instant) {
        self.endpoint.record.lock().load.penalize(retry_after, now);
    }

    pub(super) fn settle_success(&mut self, rtt: Duration, now: Instant) {
        let Some(breaker) = self.first_outcome() else {
            return;
        };
        if self.probe {
            self.shared.change(|state, transitions, now| {
                state.readmit(&self.shared.config, &self.endpoint, rtt, now, transitions);
            });
        } else {
            self.endpoint.record.lock().breaker.success(&breaker, now);
        }
    }

    pub(super) fn settle_failure(&mut self, retry_after: Option<Duration>) {
        let Some(breaker) = self.first_outcome() else {
            return;
        };
        let cause = if self.probe {
            Some(Cause::ProbeFailed)
        } else {
            self.endpoint.record.lock().breaker.failure(&breaker, Instant::now())
        };
        let Some(cause) = cause else { return };
        self.shared.change(|state, transitions, now| {
            let ejection = Ejection { breaker: &breaker, cause, retry_after };
            state.eject(&self.endpoint, ejection, now, transitions);
        });
    }

    /// The breaker's configuration, if there is a breaker and it knows no outcome yet.
    fn first_outcome(&mut self) -> Option<BreakerConfig> {
        let breaker = self.shared.config.breaker?;
        (!std::mem::replace(&mut self.settled, true)).then_some(breaker)
    }
}

impl<S> Drop for Lease<S> {
    fn drop(&mut self) {
        self.endpoint.pending.fetch_sub(1, Ordering::Relaxed);
        if self.awaits_verdict() {
            self.shared.change(|_, _, _| self.endpoint.record.lock().breaker.return_probe());
        }
    }
}

impl<S> fmt::Debug for Lease<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("addr", &self.endpoint.addr)
            .field("started", &self.started)
            .field("probe", &self.probe)
            .finish_non_exhaustive()
    }
}
