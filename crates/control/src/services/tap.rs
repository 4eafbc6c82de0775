//! `meshctl tap`: live requests of many pods in one stream.
//!
//! Each pod's proxy has a task that reads its stream. They share one bounded channel: a reader who
//! is slow holds the tasks back, and the proxies then leave events out and say how many.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::BoxStream;
use futures_util::{StreamExt, stream};
use mesh_api::ext::mesh_tap_event::{Event, TapStatus, Tapped};
use mesh_api::ext::{
    Direction, MeshTapEvent, MeshTapRequest, Selector, TapEvent, TapFilter, TapRequest,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::Status;

use super::ask::{Asker, Place, reason, unreachable};
use super::mesh::{Failure, must_exist};
use super::select::{pod_ref, select, select_all};
use crate::index::Objects;
use crate::index::object::{Name, Pod};
use crate::state::Shared;

/// Events on their way to the reader.
const QUEUE: usize = 1024;
/// Events a second when the request names no number.
const DEFAULT_RPS: u32 = 100;
/// How long a proxy may take to begin.
const DEADLINE: Duration = Duration::from_secs(2);
/// The first word to the reader waits so long for proxies to answer, as it tells how many did.
const FIRST_WORD: Duration = Duration::from_millis(500);
/// Until a proxy that did not answer is asked again.
const AGAIN: Duration = Duration::from_secs(1);

pub(super) type Events = BoxStream<'static, Result<MeshTapEvent, Status>>;

/// Starts a tap. It follows pods that come and go, and ends with its reader.
///
/// # Errors
/// When it cannot be understood, or names what does not exist.
pub(super) fn tap(
    shared: &Arc<Shared>,
    asker: &Asker,
    request: MeshTapRequest,
) -> Result<Events, Failure> {
    let filter = request.filter.unwrap_or_default();
    mesh_model::tap::TapFilter::try_from(filter.clone())
        .map_err(|error| Failure::Invalid(format!("the filter cannot be used: {error}")))?;
    {
        let index = shared.index.read();
        let selected = select_all(index.objects(), &request.selectors)?;
        must_exist(&selected, &request.selectors)?;
        if let Some(to) = &request.to {
            must_exist(&select(index.objects(), to)?, std::slice::from_ref(to))?;
        }
    }
    let (events, received) = mpsc::channel(QUEUE);
    let max_rps = if request.max_rps == 0 { DEFAULT_RPS } else { request.max_rps };
    let conductor = Conductor {
        shared: Arc::clone(shared),
        asker: asker.clone(),
        selectors: request.selectors,
        filter,
        to: request.to,
        max_rps,
        events,
        states: BTreeMap::new(),
        told: None,
    };
    tokio::spawn(conductor.run());
    let mut limit = Limit::new(max_rps);
    let stream = stream::unfold(received, |mut received| async {
        received.recv().await.map(|event| (event, received))
    });
    let limited = stream.filter_map(move |event| std::future::ready(limit.pass(event)));
    Ok(limited.map(|event| Ok(MeshTapEvent { event: Some(event) })).boxed())
}

/// Keeps one task for each pod, and the reader informed.
struct Conductor {
    shared: Arc<Shared>,
    asker: Asker,
    selectors: Vec<Selector>,
    filter: TapFilter,
    to: Option<Selector>,
    max_rps: u32,
    events: mpsc::Sender<Event>,
    /// Of the pods that are tapped or should be.
    states: BTreeMap<Name, State>,
    told: Option<TapStatus>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Connecting,
    Tapped,
    Unreachable(String),
}

/// What a pod's task has to say.
type Report = (Name, State);

impl Conductor {
    async fn run(mut self) {
        let (reports, mut reported) = mpsc::channel::<Report>(QUEUE);
        let mut revision = self.shared.index.read().revision();
        let mut tasks = JoinSet::new();
        let mut running: HashMap<Name, (Plan, tokio::task::AbortHandle)> = HashMap::new();
        // No event goes before the first word.
        let (open, gate) = watch::channel(false);
        let first_word = tokio::time::sleep(FIRST_WORD);
        tokio::pin!(first_word);
        loop {
            let plans = self.plans();
            running.retain(|name, (plan, task)| {
                let same = plans.get(name) == Some(plan);
                if !same {
                    task.abort();
                }
                same
            });
            self.states.retain(|name, _| plans.contains_key(name));
            for (name, plan) in plans {
                let Entry::Vacant(place) = running.entry(name.clone()) else { continue };
                let task = PodTap {
                    asker: self.asker.clone(),
                    name: name.clone(),
                    plan: plan.clone(),
                    shared: Arc::clone(&self.shared),
                    events: self.events.clone(),
                    reports: reports.clone(),
                    gate: gate.clone(),
                };
                self.states.insert(name, State::Connecting);
                place.insert((plan, tasks.spawn(task.run())));
            }
            loop {
                let settled = self.states.values().all(|state| *state != State::Connecting);
                if settled || self.told.is_some() || first_word.is_elapsed() {
                    if !self.tell().await {
                        return;
                    }
                    open.send_replace(true);
                }
                tokio::select! {
                    report = reported.recv() => {
                        if let Some((name, state)) = report
                            && let Some(have) = self.states.get_mut(&name)
                        {
                            *have = state;
                        }
                    }
                    changed = revision.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        break;
                    }
                    () = &mut first_word, if !first_word.is_elapsed() => {}
                    () = self.events.closed() => return,
                    Some(_) = tasks.join_next() => {}
                }
            }
        }
    }

    /// Tells the reader how it stands, if that is news. `false` when nobody reads any more.
    async fn tell(&mut self) -> bool {
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let lost = self.states.iter().filter_map(|(name, state)| match state {
            State::Unreachable(error) => Some(unreachable(name, error.clone())),
            State::Connecting | State::Tapped => None,
        });
        let status = TapStatus {
            pods: count(self.states.len()),
            tapped: count(self.states.values().filter(|s| **s == State::Tapped).count()),
            unreachable: lost.collect(),
        };
        if self.told.as_ref() == Some(&status) {
            return true;
        }
        self.told = Some(status.clone());
        self.events.send(Event::Status(status)).await.is_ok()
    }

    /// Whom to tap, and with which filter.
    fn plans(&self) -> BTreeMap<Name, Plan> {
        let index = self.shared.index.read();
        let objects = index.objects();
        // Both were understood when the tap began.
        let selected = select_all(objects, &self.selectors).unwrap_or_default();
        let mut filter = self.filter.clone();
        if let Some(to) = &self.to {
            let peers = addresses(objects, to);
            if peers.is_empty() {
                // An empty list would match everybody.
                filter.peers = vec![IpAddr::from([0, 0, 0, 0]).to_string()];
            } else {
                filter.peers = peers.iter().map(ToString::to_string).collect();
            }
            filter.direction = Direction::Outbound.into();
        }
        let request = TapRequest { filter: Some(filter), max_rps: self.max_rps };
        let pods = selected.iter().flat_map(|selected| &selected.pods);
        let meshed = pods.filter(|pod| pod.meshed());
        let plan = |pod: &Arc<Pod>| {
            let place = self.asker.place(pod)?;
            Some((pod.name.clone(), Plan { place, request: request.clone() }))
        };
        meshed.filter_map(plan).collect()
    }
}

fn addresses(objects: &Objects, selector: &Selector) -> Vec<IpAddr> {
    let selected = select(objects, selector).unwrap_or_default();
    let pods = selected.iter().flat_map(|selected| &selected.pods);
    let mut addresses: Vec<IpAddr> = pods.filter_map(|pod| pod.ip).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// How one pod is tapped; another plan is another task.
#[derive(Clone, Debug, PartialEq)]
struct Plan {
    place: Place,
    request: TapRequest,
}

/// The tap of one pod, again and again until it is stopped.
struct PodTap {
    name: Name,
    plan: Plan,
    asker: Asker,
    shared: Arc<Shared>,
    events: mpsc::Sender<Event>,
    reports: mpsc::Sender<Report>,
    /// Opens when the reader has heard how many pods are tapped.
    gate: watch::Receiver<bool>,
}

impl PodTap {
    async fn run(self) {
        loop {
            let Err(error) = self.once().await else { return };
            if self.reports.send((self.name.clone(), State::Unreachable(error))).await.is_err() {
                return;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Ends well when nobody reads any more.
    async fn once(&self) -> Result<(), String> {
        let mut client = self.asker.client(self.plan.place.clone());
        let begun = tokio::time::timeout(DEADLINE, client.tap(self.plan.request.clone())).await;
        let begun = begun.map_err(|_| format!("no answer within {} s", DEADLINE.as_secs()))?;
        let mut stream = begun.map_err(|status| reason(&status))?.into_inner();
        if self.reports.send((self.name.clone(), State::Tapped)).await.is_err() {
            return Ok(());
        }
        if self.gate.clone().wait_for(|open| *open).await.is_err() {
            return Ok(());
        }
        loop {
            match stream.message().await {
                Ok(Some(event)) => {
                    let tapped = self.name_ends(event);
                    if self.events.send(Event::Request(tapped)).await.is_err() {
                        return Ok(());
                    }
                }
                Ok(None) => return Err("the proxy ended the tap".into()),
                Err(status) => return Err(reason(&status)),
            }
        }
    }

    fn name_ends(&self, event: TapEvent) -> Tapped {
        let own = mesh_api::ext::ObjectRef {
            kind: "pod".into(),
            name: self.name.name.clone(),
            namespace: self.name.namespace.clone(),
        };
        let index = self.shared.index.read();
        let other = |text: &str| {
            let addr: SocketAddr = text.parse().ok()?;
            index.objects().pod_by_ip(addr.ip()).map(|pod| pod_ref(pod))
        };
        let (source, destination) = match event.direction() {
            Direction::Inbound => (other(&event.source), Some(own)),
            Direction::Outbound => (Some(own), other(&event.destination)),
            Direction::Unspecified => (other(&event.source), other(&event.destination)),
        };
        Tapped {
            pod: self.name.name.clone(),
            namespace: self.name.namespace.clone(),
            source,
            destination,
            event: Some(event),
        }
    }
}

/// So many requests a second over all pods; those left out are counted in the next one.
struct Limit {
    max_rps: u32,
    second: Instant,
    passed: u32,
    skipped: u64,
}

impl Limit {
    fn new(max_rps: u32) -> Self {
        Self { max_rps, second: Instant::now(), passed: 0, skipped: 0 }
    }

    fn pass(&mut self, event: Event) -> Option<Event> {
        let Event::Request(mut tapped) = event else { return Some(event) };
        if self.second.elapsed() >= Duration::from_secs(1) {
            (self.second, self.passed) = (Instant::now(), 0);
        }
        let skipped = tapped.event.as_ref().map_or(0, |event| event.skipped);
        if self.passed >= self.max_rps {
            self.skipped += skipped + 1;
            return None;
        }
        self.passed += 1;
        if let Some(event) = &mut tapped.event {
            event.skipped = skipped + std::mem::take(&mut self.skipped);
        }
        Some(Event::Request(tapped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(skipped: u64) -> Event {
        let event = TapEvent { skipped, ..TapEvent::default() };
        Event::Request(Tapped { event: Some(event), ..Tapped::default() })
    }

    /// How many the reader is told were left out before it; `None` if it is left out itself.
    fn pass(limit: &mut Limit, event: Event) -> Option<u64> {
        match limit.pass(event)? {
            Event::Request(tapped) => tapped.event.map(|event| event.skipped),
            Event::Status(_) => Some(0),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_over_the_limit_is_counted_in_the_next() {
        let mut limit = Limit::new(2);
        assert_eq!(pass(&mut limit, request(0)), Some(0));
        assert_eq!(pass(&mut limit, request(5)), Some(5));
        assert_eq!(pass(&mut limit, request(1)), None);
        assert_eq!(pass(&mut limit, request(0)), None);
        assert_eq!(pass(&mut limit, Event::Status(TapStatus::default())), Some(0));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(
            pass(&mut limit, request(1)),
            Some(4),
            "two, what one of them skipped, and its own"
        );
        assert_eq!(pass(&mut limit, request(0)), Some(0));
    }
}
