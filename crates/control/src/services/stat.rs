//! `meshctl stat`: figures of objects, merged from the proxies concerned.
//!
//! The server side is what the proxies of the object's own pods saw come in. The client side is
//! what the proxies of others sent: to a Service always, to anything else when asked for.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_api::ext::{self, StatReply, StatRequest, StatRow};
use mesh_api::stats::read_series;
use mesh_model::Direction;
use mesh_model::stats::{SeriesKey, Totals, WINDOW_SECONDS};

use super::ask::{Answers, Asker, stats};
use super::egress;
use super::mesh::Failure;
use super::select::{Selected, select, select_all};
use crate::index::Objects;
use crate::index::object::{Name, Pod};
use crate::state::Shared;

/// The window of a request that names none. Seconds.
const DEFAULT_WINDOW: u32 = 60;
/// Up to so many proxies, all are asked which breakers they opened; beyond, a glance at one
/// workload would be a question to the whole mesh.
const ASK_ALL_UP_TO: usize = 256;

/// Figures, with the gauge that cannot be summed over time.
#[derive(Debug, Default)]
pub(super) struct Figures {
    totals: Totals,
    tcp_open: u64,
}

impl Figures {
    pub(super) fn add(&mut self, totals: &Totals, tcp_open: u64) {
        self.totals.merge(totals);
        self.tcp_open += tcp_open;
    }

    pub(super) fn is_empty(&self) -> bool {
        let totals = &self.totals;
        totals.requests() + totals.tcp_opened + totals.tcp_closed + self.tcp_open == 0
            && totals.request_bytes + totals.response_bytes == 0
    }

    pub(super) fn encode(&self) -> ext::Totals {
        ext::Totals { tcp_open: self.tcp_open, ..(&self.totals).into() }
    }
}

/// One proxy's series.
pub(super) struct Told {
    pub(super) pod: Arc<Pod>,
    pub(super) covered: u32,
    pub(super) series: Vec<(SeriesKey, Totals, u64)>,
    breakers: Vec<ext::Breaker>,
}

/// Reads what proxies answered; a series that cannot be read is left out and logged.
pub(super) fn read(answers: Answers<ext::StatsReply>) -> (Vec<Told>, Vec<ext::Unreachable>) {
    let told = answers.answers.into_iter().map(|(pod, reply)| {
        let series = reply.series.into_iter().filter_map(|series| match read_series(series) {
            Ok(series) => Some(series),
            Err(error) => {
                tracing::warn!(pod = %pod.name, %error, "left out a series that cannot be read");
                None
            }
        });
        let series = series.collect();
        Told { pod, covered: reply.covered_seconds, series, breakers: reply.breakers }
    });
    (told.collect(), answers.unreachable)
}

/// The window in force for one asked for. Seconds.
pub(super) fn window(asked: u32) -> u32 {
    let longest = u32::try_from(WINDOW_SECONDS).unwrap_or(u32::MAX);
    if asked == 0 { DEFAULT_WINDOW } else { asked.min(longest) }
}

/// Answers a request.
///
/// # Errors
/// When it cannot be understood, or names what does not exist.
pub(super) async fn stat(
    shared: &Shared,
    asker: &Asker,
    request: StatRequest,
) -> Result<StatReply, Failure> {
    if egress::is_meant(&request) {
        return egress::stat(shared, asker, request).await;
    }
    let plan = Plan::new(shared.index.read().objects(), &request)?;
    let window = window(request.window_seconds);
    let (told, unreachable) = read(stats(plan.ask.clone(), asker, window).await);
    let view = if plan.server_side() { "server" } else { "client" };
    let rows = plan.targets.iter().flat_map(|target| plan.rows(target, &told, &unreachable));
    let rows = rows.collect();
    let concerned =
        |u: &ext::Unreachable| plan.concerned.contains(&Name::new(&u.namespace, &u.pod));
    let unreachable = unreachable.into_iter().filter(concerned).collect();
    Ok(StatReply { rows, view: view.into(), unreachable })
}

/// What by: the request's `by`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Object,
    Route,
    Backend,
    Pod,
}

/// Whom to ask, and what to make of it.
struct Plan {
    targets: Vec<Target>,
    by: By,
    ask: Vec<Arc<Pod>>,
    /// Of those asked, the ones whose figures are wanted.
    concerned: HashSet<Name>,
    /// `--to`: what the targets' requests must go to.
    to: Option<Vec<Destination>>,
    /// Addresses that belong to pods, by pod.
    pods: BTreeMap<IpAddr, Arc<Pod>>,
}

/// A row's object.
struct Target {
    selected: Selected,
    side: Side,
}

enum Side {
    /// What its own proxies saw come in.
    Server,
    /// What its own proxies sent.
    Sender,
    /// What others' proxies sent to it.
    Receiver(Destination),
}

/// Something requests can go to.
#[derive(Clone, Debug)]
pub(super) struct Destination {
    /// Set for a Service.
    service: Option<Name>,
    addresses: HashSet<IpAddr>,
    /// Services with pods of it behind them: failures that chose no endpoint were meant for them.
    behind: BTreeSet<Name>,
}

impl Destination {
    pub(super) fn new(objects: &Objects, selected: &Selected) -> Self {
        let behind = selected.pods.iter().flat_map(|pod| objects.services_of_pod(&pod.name));
        Self {
            service: selected.service.clone(),
            addresses: selected.pods.iter().filter_map(|pod| pod.ip).collect(),
            behind: behind.collect(),
        }
    }

    /// Whether requests counted under a key went to it.
    pub(super) fn takes(&self, key: &SeriesKey) -> bool {
        let (parent, backend) = (service_name(&key.parent), service_name(&key.backend));
        if self.service.is_some() {
            return parent == self.service || backend == self.service;
        }
        match key.peer {
            Some(peer) => self.addresses.contains(&peer),
            None => backend.or(parent).is_some_and(|service| self.behind.contains(&service)),
        }
    }
}

impl Plan {
    fn new(objects: &Objects, request: &StatRequest) -> Result<Self, Failure> {
        let by = match request.by.as_str() {
            "" => By::Object,
            "route" => By::Route,
            "backend" => By::Backend,
            "pod" => By::Pod,
            other => {
                let message = format!("cannot group by `{other}`; use route, backend or pod");
                return Err(Failure::Invalid(message));
            }
        };
        let selected = select_all(objects, &request.selectors)?;
        super::mesh::must_exist(&selected, &request.selectors)?;
        let mut to = None;
        let mut ask: BTreeMap<Name, Arc<Pod>> = BTreeMap::new();
        let mut add = |pods: &[Arc<Pod>]| {
            ask.extend(pods.iter().map(|pod| (pod.name.clone(), Arc::clone(pod))));
        };
        let all = || objects.pods().filter(|pod| pod.meshed() && pod.running);
        let mut targets = Vec::new();
        for selected in selected {
            let side = match &request.client_side {
                Some(ext::stat_request::ClientSide::To(_)) => Side::Sender,
                Some(ext::stat_request::ClientSide::From(_)) => {
                    Side::Receiver(Destination::new(objects, &selected))
                }
                None if selected.service.is_some() => {
                    Side::Receiver(Destination::new(objects, &selected))
                }
                None => Side::Server,
            };
            targets.push(Target { selected, side });
        }
        match &request.client_side {
            Some(ext::stat_request::ClientSide::To(selector)) => {
                let selected = select(objects, selector)?;
                super::mesh::must_exist(&selected, std::slice::from_ref(selector))?;
                to = Some(selected.iter().map(|s| Destination::new(objects, s)).collect());
                targets.iter().for_each(|target| add(&target.selected.pods));
            }
            Some(ext::stat_request::ClientSide::From(selector)) => {
                let selected = select(objects, selector)?;
                super::mesh::must_exist(&selected, std::slice::from_ref(selector))?;
                selected.iter().for_each(|client| add(&client.pods));
            }
            None => {
                for target in &targets {
                    match target.side {
                        Side::Receiver(_) => add(&all().cloned().collect::<Vec<_>>()),
                        _ => add(&target.selected.pods),
                    }
                }
            }
        }
        let concerned = ask.keys().cloned().collect();
        // Only to learn of open breakers.
        if request.client_side.is_none() && all().count() <= ASK_ALL_UP_TO {
            ask.extend(all().map(|pod| (pod.name.clone(), Arc::clone(pod))));
        }
        let plan = Self {
            targets,
            by,
            ask: ask.into_values().collect(),
            concerned,
            to,
            pods: objects.pods_by_ip(),
        };
        if by == By::Backend && plan.server_side() {
            let message = "backends are chosen by clients; use --from, --to or a service";
            return Err(Failure::Invalid(message.into()));
        }
        Ok(plan)
    }

    fn server_side(&self) -> bool {
        self.targets.iter().any(|target| matches!(target.side, Side::Server))
    }

    fn rows(
        &self,
        target: &Target,
        told: &[Told],
        unreachable: &[ext::Unreachable],
    ) -> Vec<StatRow> {
        let own: HashSet<&Name> = target.selected.pods.iter().map(|pod| &pod.name).collect();
        let mut groups: BTreeMap<String, (Figures, u32)> = BTreeMap::new();
        for told in told.iter().filter(|told| self.concerned.contains(&told.pod.name)) {
            let is_own = own.contains(&told.pod.name);
            for (key, totals, tcp_open) in &told.series {
                let counts = match &target.side {
                    Side::Server => is_own && key.direction == Direction::Inbound,
                    Side::Sender => {
                        is_own && key.direction == Direction::Outbound && self.is_wanted(key)
                    }
                    Side::Receiver(destination) => {
                        key.direction == Direction::Outbound && destination.takes(key)
                    }
                };
                if counts {
                    let group = groups.entry(self.group(target, told, key)).or_default();
                    group.0.add(totals, *tcp_open);
                    group.1 = group.1.max(told.covered);
                }
            }
        }
        groups.retain(|_, (figures, _)| !figures.is_empty());
        let silent = self.silent_pods(target, &groups, unreachable);
        if groups.is_empty() && silent.is_empty() {
            return vec![self.empty_row(target, unreachable)];
        }
        let breakers = breakers(target, told);
        let row = |(by, (figures, covered)): (String, (Figures, u32))| StatRow {
            by,
            covered_seconds: covered,
            totals: Some(figures.encode()),
            breakers: breakers.clone(),
            ..head(&target.selected)
        };
        groups.into_iter().map(row).chain(silent).collect()
    }

    /// Asked by pod, those without figures have a row, too: a pod that gets nothing is what one
    /// looks for there.
    fn silent_pods(
        &self,
        target: &Target,
        groups: &BTreeMap<String, (Figures, u32)>,
        unreachable: &[ext::Unreachable],
    ) -> Vec<StatRow> {
        if self.by != By::Pod {
            return Vec::new();
        }
        let pods = target.selected.pods.iter();
        let silent = pods.filter(|pod| !groups.contains_key(&pod.name.name));
        silent
            .map(|pod| StatRow {
                by: pod.name.name.clone(),
                no_data: self.no_data(target, std::slice::from_ref(pod), unreachable).into(),
                ..head(&target.selected)
            })
            .collect()
    }

    fn is_wanted(&self, key: &SeriesKey) -> bool {
        self.to.as_ref().is_none_or(|to| to.iter().any(|destination| destination.takes(key)))
    }

    fn group(&self, target: &Target, told: &Told, key: &SeriesKey) -> String {
        match self.by {
            By::Object => String::new(),
            By::Route => key.route.to_string(),
            By::Backend => key.backend.to_string(),
            By::Pod => match target.side {
                Side::Server | Side::Sender => told.pod.name.name.clone(),
                Side::Receiver(_) => match key.peer {
                    None => String::new(),
                    Some(ip) => match self.pods.get(&ip) {
                        Some(pod) => pod.name.name.clone(),
                        None => ip.to_string(),
                    },
                },
            },
        }
    }

    fn empty_row(&self, target: &Target, unreachable: &[ext::Unreachable]) -> StatRow {
        let no_data = self.no_data(target, &target.selected.pods, unreachable);
        StatRow { no_data: no_data.into(), ..head(&target.selected) }
    }

    /// Why there are no figures of a target's `pods`.
    fn no_data(
        &self,
        target: &Target,
        pods: &[Arc<Pod>],
        unreachable: &[ext::Unreachable],
    ) -> &'static str {
        let answers_for = |pod: &Name| {
            !unreachable.iter().any(|u| u.pod == pod.name && u.namespace == pod.namespace)
        };
        match target.side {
            _ if pods.is_empty() && target.selected.service.is_none() => "no running pods",
            Side::Server | Side::Sender if pods.iter().all(|pod| !pod.meshed()) => "not meshed",
            Side::Server | Side::Sender => {
                let mut meshed = pods.iter().filter(|pod| pod.meshed());
                if meshed.any(|pod| answers_for(&pod.name)) {
                    "no traffic"
                } else {
                    "not reachable"
                }
            }
            Side::Receiver(_) if self.concerned.is_empty() => "no meshed clients",
            Side::Receiver(_) => {
                let any = self.concerned.iter().any(answers_for);
                if any { "no traffic" } else { "not reachable" }
            }
        }
    }
}

fn head(selected: &Selected) -> StatRow {
    let count = |of: fn(&Pod) -> bool| {
        let pods = selected.pods.iter().filter(|pod| of(pod)).count();
        u32::try_from(pods).unwrap_or(u32::MAX)
    };
    StatRow {
        r#ref: Some(selected.object.clone()),
        meshed_pods: count(Pod::meshed),
        ready_pods: count(|pod| pod.ready),
        running_pods: count(|_| true),
        ..StatRow::default()
    }
}

/// Breakers that any client opened for the object, each once.
fn breakers(target: &Target, told: &[Told]) -> Vec<ext::Breaker> {
    let addresses: HashSet<IpAddr> = target.selected.pods.iter().filter_map(|pod| pod.ip).collect();
    let mut open: BTreeMap<(String, String), ext::Breaker> = BTreeMap::new();
    for breaker in told.iter().flat_map(|told| &told.breakers) {
        let endpoint = breaker.endpoint.parse::<std::net::SocketAddr>();
        if endpoint.is_ok_and(|endpoint| addresses.contains(&endpoint.ip())) {
            let key = (breaker.endpoint.clone(), breaker.state.clone());
            open.entry(key).or_insert_with(|| breaker.clone());
        }
    }
    open.into_values().collect()
}

/// The Service behind `Service/shop/tax:8080`.
pub(super) fn service_name(meta: &str) -> Option<Name> {
    let mut parts = meta.splitn(3, '/');
    if parts.next() != Some("Service") {
        return None;
    }
    let namespace = parts.next()?;
    let name = parts.next()?.split([':', '#']).next()?;
    Some(Name::new(namespace, name))
}
