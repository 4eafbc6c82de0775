//! Steady load that keeps account of each request: sent at a fixed rate whatever the answers do, each on a connection
//! of its own or on one that is free again, and never twice.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;

use crate::client::http::{Body, Client, Way};
use crate::wait::within;

/// Requests on their way; more of them mean that nothing is answered any more.
const MAX_IN_FLIGHT: usize = 500;

/// Where to send requests, and how many of them a second.
#[derive(Clone, Debug)]
pub struct Plan {
    pub way: Way,
    pub authority: String,
    pub rate: u32,
}

/// One request and what came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub number: u64,
    /// When it was sent, on an open connection.
    pub begin: Instant,
    /// When its answer was complete.
    pub end: Instant,
    /// Or how it broke.
    pub answer: Result<Answer, String>,
}

#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    /// Who answered, from the header `x-pod`.
    pub pod: String,
    /// Why the mesh failed it, from the header `x-mesh-reason`.
    pub reason: String,
    pub body: Bytes,
}

/// Load that goes on until it is told to stop.
#[derive(Debug)]
pub struct Load {
    done: watch::Receiver<usize>,
    outcomes: Arc<Mutex<Vec<Outcome>>>,
    last: watch::Sender<Option<u64>>,
    driver: AbortOnDropHandle<()>,
}

struct Sender {
    plan: Plan,
    idle: Mutex<Vec<Client>>,
    outcomes: Arc<Mutex<Vec<Outcome>>>,
    done: watch::Sender<usize>,
}

impl Load {
    /// Starts to send what `request` makes of each number, from 0 on.
    pub fn start(plan: Plan, request: impl Fn(u64) -> Request<Body> + Send + 'static) -> Self {
        let (report, done) = watch::channel(0);
        let (last, stop) = watch::channel(None);
        let outcomes = Arc::default();
        let sender =
            Sender { plan, idle: Mutex::default(), outcomes: Arc::clone(&outcomes), done: report };
        let driver = tokio::spawn(drive(Arc::new(sender), request, stop));
        Self { done, outcomes, last, driver: AbortOnDropHandle::new(driver) }
    }

    /// Waits until so many more requests are done than now.
    ///
    /// # Panics
    /// When that takes too long.
    pub async fn more(&mut self, count: usize) {
        let until = *self.done.borrow() + count;
        let reached = within("the load", self.done.wait_for(|done| *done >= until)).await;
        drop(reached.expect("the load goes on"));
    }

    /// The requests that are done.
    pub fn outcomes(&self) -> Vec<Outcome> {
        self.outcomes.lock().clone()
    }

    /// Sends no more and waits for the answers.
    ///
    /// # Panics
    /// When an answer does not come.
    pub async fn stop(self) -> Vec<Outcome> {
        self.up_to(0).await
    }

    /// Goes on until so many requests were sent in all, and waits for the answers.
    ///
    /// # Panics
    /// When an answer does not come.
    pub async fn up_to(self, count: u64) -> Vec<Outcome> {
        self.last.send_replace(Some(count));
        self.driver.await.expect("every request has an end");
        let mut outcomes = std::mem::take(&mut *self.outcomes.lock());
        outcomes.sort_by_key(|outcome| outcome.number);
        outcomes
    }
}

async fn drive(
    sender: Arc<Sender>,
    request: impl Fn(u64) -> Request<Body>,
    stop: watch::Receiver<Option<u64>>,
) {
    let mut turns = interval(Duration::from_secs(1) / sender.plan.rate);
    turns.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut in_flight = JoinSet::new();
    let mut number = 0;
    while stop.borrow().is_none_or(|count| number < count) {
        turns.tick().await;
        if in_flight.len() >= MAX_IN_FLIGHT {
            in_flight.join_next().await.expect("requests on their way").expect("an end");
        }
        while let Some(ended) = in_flight.try_join_next() {
            ended.expect("a request's end");
        }
        in_flight.spawn(Arc::clone(&sender).send(number, request(number)));
        number += 1;
    }
    while let Some(ended) = in_flight.join_next().await {
        ended.expect("a request's end");
    }
}

impl Sender {
    async fn send(self: Arc<Self>, number: u64, request: Request<Body>) {
        let mut client = self.client().await;
        let begin = Instant::now();
        let answer = exchange(&mut client, request).await.map_err(|error| format!("{error:?}"));
        let end = Instant::now();
        if answer.is_ok() {
            self.idle.lock().push(client);
        }
        self.outcomes.lock().push(Outcome { number, begin, end, answer });
        self.done.send_modify(|done| *done += 1);
    }

    async fn client(&self) -> Client {
        let idle = self.idle.lock().pop();
        match idle.filter(Client::is_open) {
            Some(client) => client,
            None => Client::open(self.plan.way, &self.plan.authority).await,
        }
    }
}

async fn exchange(client: &mut Client, request: Request<Body>) -> hyper::Result<Answer> {
    let response = client.send(request).await?;
    let header = |name: &str| {
        let value = response.headers().get(name).map(|value| value.as_bytes());
        String::from_utf8_lossy(value.unwrap_or_default()).into_owned()
    };
    let (status, pod, reason) = (response.status(), header("x-pod"), header("x-mesh-reason"));
    let body = within("a body", response.into_body().collect()).await?.to_bytes();
    Ok(Answer { status, pod, reason, body })
}

impl Outcome {
    /// Whether it was done.
    pub fn succeeded(&self) -> bool {
        self.answer.as_ref().is_ok_and(|answer| answer.status.is_success())
    }

    pub fn latency(&self) -> Duration {
        self.end - self.begin
    }
}

/// # Panics
/// When a request failed; the message shows the first ones that did.
pub fn assert_none_failed(outcomes: &[Outcome]) {
    let failed: Vec<_> = outcomes.iter().filter(|outcome| !outcome.succeeded()).collect();
    let shown = &failed[..failed.len().min(5)];
    assert!(failed.is_empty(), "{} of {} failed: {shown:#?}", failed.len(), outcomes.len());
}
