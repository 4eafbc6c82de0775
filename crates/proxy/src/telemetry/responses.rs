//! What is counted of responses until a scrape: outcomes, and latencies by status.

use std::time::Duration;

use mesh_model::Reason;
use parking_lot::{Mutex, MutexGuard};

use super::Finished;

/// Upper bounds of `response_latency_ms`, in milliseconds.
const LATENCY_MS: [u32; 25] = [
    1, 2, 3, 4, 5, 10, 20, 30, 40, 50, 100, 200, 300, 400, 500, 1_000, 2_000, 3_000, 4_000, 5_000,
    10_000, 20_000, 30_000, 40_000, 50_000,
];
/// Upper bounds of the route-level durations, each one of [`LATENCY_MS`] too.
const ROUTE_MS: [u32; 4] = [50, 500, 1_000, 10_000];
/// Distinct outcomes a series gathers before it hands them over.
const PENDING: usize = 16;
/// Distinct outcomes kept per set of labels; more fall into one without a status.
const OUTCOMES: usize = 128;

/// The outcome of a response, as far as it makes a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Class {
    pub(super) status: u16,
    pub(super) success: bool,
    pub(super) grpc_status: Option<u16>,
    pub(super) reason: Option<Reason>,
    /// It was one try, and another followed: the endpoint's response, not the request's.
    pub(super) given_up: bool,
}

impl Class {
    pub(super) fn of(finished: &Finished) -> Self {
        let Finished { status, success, grpc_status, reason, .. } = *finished;
        Self { status, success, grpc_status, reason, given_up: false }
    }

    fn unspecific(self) -> Self {
        let Self { success, given_up, .. } = self;
        Self { status: 0, success, grpc_status: None, reason: None, given_up }
    }
}

/// Outcomes counted, and latencies by status.
#[derive(Debug, Default)]
pub(super) struct Responses {
    pub(super) outcomes: Vec<(Class, u64)>,
    pub(super) latency: Vec<(u16, Latency)>,
}

/// Counts of latencies by their upper bounds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Latency {
    buckets: [u64; LATENCY_MS.len() + 1],
    micros: u64,
}

impl Responses {
    /// Counts a response; `false`, and nothing counted, if there is no room for another outcome.
    pub(super) fn add(&mut self, class: Class, took: Duration) -> bool {
        let counted = self.count(class, 1, PENDING);
        if counted {
            self.latency_of(class.status).record(took);
        }
        counted
    }

    /// Counts a request that got no response, which has no latency.
    pub(super) fn add_failure(&mut self, reason: Reason) -> bool {
        let (status, grpc_status, reason) = (0, None, Some(reason));
        let class = Class { status, success: false, grpc_status, reason, given_up: false };
        self.count(class, 1, PENDING)
    }

    /// Counts a try that was given up; latencies are those of requests.
    pub(super) fn add_given_up(&mut self, class: Class) -> bool {
        self.count(Class { given_up: true, ..class }, 1, PENDING)
    }

    fn count(&mut self, class: Class, count: u64, room: usize) -> bool {
        if let Some((_, counted)) = self.outcomes.iter_mut().find(|(known, _)| *known == class) {
            *counted += count;
            return true;
        }
        let fits = self.outcomes.len() < room;
        if fits {
            self.outcomes.push((class, count));
        }
        fits
    }

    fn latency_of(&mut self, status: u16) -> &mut Latency {
        let at = self.latency.iter().position(|(known, _)| *known == status);
        let at = at.unwrap_or_else(|| {
            self.latency.push((status, Latency::default()));
            self.latency.len() - 1
        });
        &mut self.latency[at].1
    }

    fn merge(&mut self, other: &Self) {
        for (class, count) in &other.outcomes {
            if !self.count(*class, *count, OUTCOMES) {
                // Room is kept for these two: one for success, one for failure.
                self.count(class.unspecific(), *count, OUTCOMES + 2);
            }
        }
        for (status, latency) in &other.latency {
            let known = self.latency.iter().any(|(have, _)| have == status);
            let status = if known || self.latency.len() < OUTCOMES { *status } else { 0 };
            self.latency_of(status).merge(latency);
        }
    }
}

impl Latency {
    fn record(&mut self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let at = LATENCY_MS.partition_point(|bound| u64::from(*bound) * 1_000 < micros);
        self.buckets[at] += 1;
        self.micros = self.micros.saturating_add(micros);
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(other.buckets) {
            *mine += theirs;
        }
        self.micros = self.micros.saturating_add(other.micros);
    }

    pub(super) fn millis(&self) -> Spread {
        let bounds = LATENCY_MS.iter().map(|ms| f64::from(*ms)).chain([f64::INFINITY]);
        self.spread(1e3, bounds.zip(self.buckets).collect())
    }

    /// In the coarser steps of the route-level families.
    pub(super) fn seconds(&self) -> Spread {
        let mut at = 0;
        let coarse = |bound: u32| {
            let upto = LATENCY_MS.partition_point(|ms| *ms <= bound);
            let count = self.buckets[at..upto].iter().sum();
            at = upto;
            (f64::from(bound) / 1e3, count)
        };
        let mut buckets: Vec<_> = ROUTE_MS.into_iter().map(coarse).collect();
        buckets.push((f64::INFINITY, self.buckets[at..].iter().sum()));
        self.spread(1e6, buckets)
    }

    fn spread(&self, micros_per_unit: f64, buckets: Vec<(f64, u64)>) -> Spread {
        let sum = self.micros as f64 / micros_per_unit;
        Spread { sum, count: self.buckets.iter().sum(), buckets }
    }
}

/// A histogram for the page, in the unit of its family.
#[derive(Debug, PartialEq)]
pub(super) struct Spread {
    pub(super) sum: f64,
    pub(super) count: u64,
    /// `(upper bound, count)`, not accumulated.
    pub(super) buckets: Vec<(f64, u64)>,
}

/// What is counted for one set of labels since the proxy started.
#[derive(Debug, Default)]
pub(super) struct HttpSeries {
    counted: Mutex<Counted>,
}

#[derive(Debug, Default)]
pub(super) struct Counted {
    pub(super) requests: u64,
    pub(super) responses: Responses,
}

impl Counted {
    pub(super) fn merge(&mut self, other: &Self) {
        self.requests += other.requests;
        self.responses.merge(&other.responses);
    }
}

impl HttpSeries {
    pub(super) fn counted(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock()
    }

    pub(super) fn add_requests(&self, count: u64) {
        self.counted.lock().requests += count;
    }

    /// Takes over what a series gathered, and empties it.
    pub(super) fn absorb(&self, responses: &mut Responses) {
        self.counted.lock().responses.merge(responses);
        responses.outcomes.clear();
        responses.latency.clear();
    }
}
