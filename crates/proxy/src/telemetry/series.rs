//! One series of requests or connections: what a request touches when it is counted.
//!
//! A [`Series`] feeds two readers: the sliding window that `meshctl stat` asks for, and the
//! cumulative families of `/metrics`. Both are counted under one lock that in practice nobody else
//! holds; the cumulative part is handed over to its `HttpSeries` when
//! somebody scrapes or the series goes away, because many series (one per client address) share
//! one set of labels there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use mesh_model::Reason;
use mesh_model::stats::{SeriesKey, StatProtocol, Totals, WINDOW_SECONDS};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::responses::{Class, HttpSeries, Responses};
use super::window::Window;

/// A finished exchange: one request with its response, all tries included.
#[derive(Clone, Copy, Debug)]
pub struct Finished {
    /// What the client got; 0 when it got no response.
    pub status: u16,
    /// From the trailers (or headers) of a gRPC response.
    pub grpc_status: Option<u16>,
    /// By the shared classification: not a 5xx, not a failing gRPC status, not a broken stream.
    pub success: bool,
    /// Until the response's head; `None` if there was none.
    pub first_byte: Option<Duration>,
    /// Until the end of the response's body.
    pub total: Duration,
    pub request_bytes: u64,
    pub response_bytes: u64,
    /// Why the mesh itself failed it, if it did.
    pub reason: Option<Reason>,
    /// Tries made; those beyond the first count as retries.
    pub attempts: u32,
}

/// Counts for one [`SeriesKey`] and set of labels. Cheap to use from any thread; hold it as long as
/// the (endpoint, route) it stands for.
#[derive(Debug)]
pub struct Series {
    key: SeriesKey,
    epoch: Instant,
    http: Arc<HttpSeries>,
    /// Not yet handed over to `http`.
    requests: AtomicU64,
    tcp_open: AtomicU64,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    window: Window,
    /// Not yet handed over to `http`.
    responses: Responses,
}

impl Series {
    pub(super) fn new(key: SeriesKey, epoch: Instant, http: Arc<HttpSeries>) -> Self {
        let (requests, tcp_open, counts) = Default::default();
        Self { key, epoch, http, requests, tcp_open, counts }
    }

    pub fn key(&self) -> &SeriesKey {
        &self.key
    }

    /// A request, or another try of one, set out. Its end is told with [`response`](Self::response),
    /// [`gave_up`](Self::gave_up) or [`failed`](Self::failed), or never if its client goes away.
    pub fn request(&self) {
        self.requests.fetch_add(1, Relaxed);
    }

    /// A request ended with a response, complete or cut short.
    pub fn response(&self, finished: &Finished) {
        let now = self.now();
        let mut counts = self.counts.lock();
        let counts = &mut *counts;
        add_finished(counts.window.at(now), finished);
        let class = Class::of(finished);
        if !counts.responses.add(class, finished.total) {
            self.http.absorb(&mut counts.responses);
            counts.responses.add(class, finished.total);
        }
    }

    /// A try was given up for another one. The families count it where it went; for the window, which
    /// tells what clients got, it is a retry and, if there was one, a reason.
    pub fn gave_up(&self, tried: &Finished) {
        let now = self.now();
        let mut counts = self.counts.lock();
        let counts = &mut *counts;
        let totals = counts.window.at(now);
        totals.retries += 1;
        if let Some(reason) = tried.reason {
            totals.add_reason(reason, 1);
        }
        let class = Class::of(tried);
        if !counts.responses.add_given_up(class) {
            self.http.absorb(&mut counts.responses);
            counts.responses.add_given_up(class);
        }
    }

    /// The mesh failed a request (or a TCP connection) and there is no response to tell of.
    pub fn failed(&self, reason: Reason) {
        let now = self.now();
        let mut counts = self.counts.lock();
        let counts = &mut *counts;
        let totals = counts.window.at(now);
        totals.add_reason(reason, 1);
        if self.key.protocol == StatProtocol::Tcp {
            return;
        }
        totals.failure += 1;
        if !counts.responses.add_failure(reason) {
            self.http.absorb(&mut counts.responses);
            counts.responses.add_failure(reason);
        }
    }

    /// A TCP connection was opened.
    pub fn opened(&self) {
        let now = self.now();
        self.tcp_open.fetch_add(1, Relaxed);
        self.counts.lock().window.at(now).tcp_opened += 1;
    }

    /// A TCP connection was closed after so many bytes from the client (`read`) and to it.
    pub fn closed(&self, read: u64, written: u64) {
        let now = self.now();
        let _ = self.tcp_open.fetch_update(Relaxed, Relaxed, |open| open.checked_sub(1));
        let mut counts = self.counts.lock();
        let totals = counts.window.at(now);
        totals.tcp_closed += 1;
        totals.request_bytes += read;
        totals.response_bytes += written;
    }

    /// Sums over the last `seconds` whole seconds.
    pub(super) fn sum(&self, seconds: u64) -> Totals {
        let now = self.now();
        self.counts.lock().window.sum(now, seconds)
    }

    pub(super) fn tcp_open(&self) -> u64 {
        self.tcp_open.load(Relaxed)
    }

    /// Hands the cumulative counts over.
    pub(super) fn flush(&self) {
        self.http.add_requests(self.requests.swap(0, Relaxed));
        self.http.absorb(&mut self.counts.lock().responses);
    }

    /// Whether nothing was counted for as long as the window reaches back; if so, it is emptied.
    pub(super) fn idle(&self) -> bool {
        let now = self.now();
        if self.tcp_open() > 0 {
            return false;
        }
        let mut counts = self.counts.lock();
        let idle = counts.window.last_used() + WINDOW_SECONDS < now;
        if idle {
            counts.window = Window::default();
        }
        idle
    }

    fn now(&self) -> u64 {
        self.epoch.elapsed().as_secs()
    }
}

fn add_finished(totals: &mut Totals, finished: &Finished) {
    match finished.success {
        true => totals.success += 1,
        false => totals.failure += 1,
    }
    if let Some(class) = usize::from(finished.status / 100).checked_sub(1).filter(|c| *c < 5) {
        totals.classes[class] += 1;
    }
    totals.latency.record(finished.total);
    if let Some(first) = finished.first_byte {
        totals.first_byte.record(first);
    }
    totals.retries += u64::from(finished.attempts.saturating_sub(1));
    totals.request_bytes += finished.request_bytes;
    totals.response_bytes += finished.response_bytes;
    if let Some(reason) = finished.reason {
        totals.add_reason(reason, 1);
    }
}
