//! What the watches said, event by event, and what changes in the index.
//!
//! Synchronous, as the index: whatever the order of events, and however often lists begin anew, the end
//! is that of the objects there are.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::status::{Board, Subject};
use crate::index::Batch;
use crate::index::object::{Kind, Name, Object, ObjectKey, Pod};
use crate::source::kubernetes::top_by_name;
use crate::source::{Finding, Problem, Severity};

/// More problems than this help nobody.
const MAX_PROBLEMS: usize = 500;

/// How long a failure is told of that does not come again. Twice the longest pause between two tries.
const FAILURE: Duration = Duration::from_secs(60);

/// The kinds that every cluster has. All of them have to be listed before proxies are told anything.
pub const REQUIRED: [Kind; 10] = [
    Kind::Namespace,
    Kind::Service,
    Kind::EndpointSlice,
    Kind::Pod,
    Kind::Deployment,
    Kind::StatefulSet,
    Kind::DaemonSet,
    Kind::ReplicaSet,
    Kind::Job,
    Kind::CronJob,
];

/// The kinds that are there when their CustomResourceDefinitions are. Whether they are has to be known.
pub const OPTIONAL: [Kind; 9] = [
    Kind::HttpRoute,
    Kind::GrpcRoute,
    Kind::TcpRoute,
    Kind::TlsRoute,
    Kind::ReferenceGrant,
    Kind::AuthorizationPolicy,
    Kind::ServerPolicy,
    Kind::BackendTrafficPolicy,
    Kind::EgressPolicy,
];

/// The kinds that matter where there is a gateway only.
pub const OF_GATEWAYS: [Kind; 3] = [Kind::GatewayClass, Kind::Gateway, Kind::Secret];

/// Something that happened to a kind of objects.
#[derive(Debug)]
pub struct Event {
    pub kind: Kind,
    pub what: What,
}

#[derive(Debug)]
pub enum What {
    /// A list begins: what it does not hold when it is complete is gone.
    Begin,
    Put(Box<Item>),
    Gone(Name),
    Complete,
    /// The cluster has no such kind.
    Absent,
    /// The kind cannot be listed or watched; says why. What is known stays in force.
    Failed(String),
}

/// An object as it was seen.
#[derive(Clone, Debug)]
pub struct Item {
    pub name: Name,
    pub force: Force,
    pub findings: Vec<Finding>,
    /// Of pods, ReplicaSets and Jobs: what made it.
    pub controller: Option<(Kind, String)>,
    /// Of kinds that get a status.
    pub subject: Option<Subject>,
}

/// What becomes of it in the index.
#[derive(Clone, Debug)]
pub enum Force {
    Apply(Box<Object>),
    /// It is wrong. Its last good version stays in force, if there was one.
    Keep,
    /// It is nothing to the mesh.
    Ignore,
}

/// All that has to be remembered beside the index.
#[derive(Debug)]
pub struct State {
    /// Kinds whose list was complete once.
    complete: BTreeSet<Kind>,
    /// What lists under way held so far.
    listing: BTreeMap<Kind, HashSet<Name>>,
    findings: BTreeMap<ObjectKey, Vec<Finding>>,
    failures: BTreeMap<Kind, (String, Instant)>,
    problems_changed: bool,
    owners: Owners,
    board: Arc<Board>,
    /// Whether there is a gateway.
    gateway: bool,
}

impl State {
    pub fn new(board: Arc<Board>) -> Self {
        Self {
            complete: BTreeSet::new(),
            listing: BTreeMap::new(),
            findings: BTreeMap::new(),
            failures: BTreeMap::new(),
            problems_changed: false,
            owners: Owners::default(),
            board,
            gateway: false,
        }
    }

    /// The same where there is a gateway.
    #[must_use]
    pub fn with_gateway(self) -> Self {
        Self { gateway: true, ..self }
    }

    /// Whether everything that there is has been told once.
    pub fn is_complete(&self) -> bool {
        let of_gateways = OF_GATEWAYS.iter().filter(|_| self.gateway);
        let mut all = REQUIRED.iter().chain(&OPTIONAL).chain(of_gateways);
        all.all(|kind| self.complete.contains(kind))
    }

    /// What is wrong now, if that is not what it was at the last call.
    pub fn new_problems(&mut self) -> Option<Vec<Problem>> {
        if !std::mem::take(&mut self.problems_changed) {
            return None;
        }
        let problem = |object: String, finding: &Finding| Problem {
            severity: finding.severity,
            object,
            file: None,
            line: 0,
            field: finding.field.clone(),
            message: finding.message.clone(),
        };
        let failures = self.failures.iter().map(|(kind, (why, _))| {
            let message = format!("{}s cannot be watched: {why}", kind.as_str());
            problem(String::new(), &Finding::error("", message))
        });
        let of_objects = self.findings.iter().flat_map(|(key, findings)| {
            findings.iter().map(|finding| problem(key.to_string(), finding))
        });
        let mut problems: Vec<Problem> = failures.chain(of_objects).collect();
        problems.sort_by_key(|problem| problem.severity);
        problems.truncate(MAX_PROBLEMS);
        Some(problems)
    }

    /// A watch that works again says nothing before something happens; one that does not fails again.
    pub fn forget_failures(&mut self, now: Instant) {
        let before = self.failures.len();
        self.failures.retain(|_, (_, at)| now.duration_since(*at) < FAILURE);
        self.problems_changed |= self.failures.len() != before;
    }

    pub fn take(&mut self, Event { kind, what }: Event, index: &mut Batch<'_>) {
        if !matches!(what, What::Failed(_)) && self.failures.remove(&kind).is_some() {
            self.problems_changed = true;
        }
        match what {
            What::Begin => {
                self.listing.insert(kind, HashSet::new());
            }
            What::Put(item) => {
                if let Some(listing) = self.listing.get_mut(&kind) {
                    listing.insert(item.name.clone());
                }
                self.put(kind, *item, index);
            }
            What::Gone(name) => self.remove(ObjectKey { kind, name }, index),
            What::Complete => {
                let listed = self.listing.remove(&kind).unwrap_or_default();
                self.sweep(kind, &listed, index);
                self.complete.insert(kind);
            }
            What::Absent => {
                self.listing.remove(&kind);
                self.sweep(kind, &HashSet::new(), index);
                self.complete.insert(kind);
            }
            What::Failed(why) => {
                let before = self.failures.insert(kind, (why.clone(), Instant::now()));
                self.problems_changed |= before.is_none_or(|(before, _)| before != why);
            }
        }
    }

    fn put(&mut self, kind: Kind, item: Item, index: &mut Batch<'_>) {
        let key = ObjectKey { kind, name: item.name };
        self.set_findings(&key, item.findings);
        if let Some(subject) = item.subject {
            self.board.set(key.clone(), Some(subject));
        }
        match kind {
            Kind::ReplicaSet | Kind::Job => {
                self.put_controller(&key, item.controller.clone(), index);
            }
            Kind::Pod => self.owners.put_pod(&key.name, item.controller.clone()),
            _ => {}
        }
        match item.force {
            Force::Apply(object) => {
                let mut object = *object;
                if let Object::Pod(pod) = &mut object {
                    pod.owner = self.owners.top(pod, item.controller);
                }
                index.apply(object);
            }
            Force::Keep => {}
            Force::Ignore => index.delete(&key),
        }
    }

    /// Pods may have been seen before what their owner belongs to.
    fn put_controller(
        &mut self,
        key: &ObjectKey,
        controller: Option<(Kind, String)>,
        index: &mut Batch<'_>,
    ) {
        if self.owners.put(key, Some(controller)) {
            self.adopt(key, index);
        }
    }

    fn adopt(&self, owner: &ObjectKey, index: &mut Batch<'_>) {
        for name in self.owners.pods_of(owner) {
            let Some(pod) = index.objects().pod(name) else { continue };
            let direct = Some((owner.kind, owner.name.name.clone()));
            let top = self.owners.top(pod, direct);
            if top != pod.owner {
                let pod = Pod { owner: top, ..(**pod).clone() };
                index.apply(Object::Pod(pod));
            }
        }
    }

    fn remove(&mut self, key: ObjectKey, index: &mut Batch<'_>) {
        self.set_findings(&key, Vec::new());
        self.board.set(key.clone(), None);
        match key.kind {
            Kind::ReplicaSet | Kind::Job if self.owners.put(&key, None) => self.adopt(&key, index),
            Kind::Pod => self.owners.put_pod(&key.name, None),
            _ => {}
        }
        index.delete(&key);
    }

    /// Removes what is known of a kind and not in `listed`.
    fn sweep(&mut self, kind: Kind, listed: &HashSet<Name>, index: &mut Batch<'_>) {
        let mut known: BTreeSet<Name> = index.objects().names(kind).into_iter().collect();
        known.extend(self.owners.names(kind));
        known.extend(self.board.names(kind));
        let with_findings = self.findings.keys().filter(|key| key.kind == kind);
        known.extend(with_findings.map(|key| key.name.clone()));
        for name in known.into_iter().filter(|name| !listed.contains(name)) {
            self.remove(ObjectKey { kind, name }, index);
        }
    }

    fn set_findings(&mut self, key: &ObjectKey, findings: Vec<Finding>) {
        let before = if findings.is_empty() {
            self.findings.remove(key)
        } else {
            self.problems_changed |= self.findings.get(key) != Some(&findings);
            self.findings.insert(key.clone(), findings);
            return;
        };
        self.problems_changed |= before.is_some();
    }
}

impl Item {
    pub fn new(name: Name, object: Object) -> Self {
        Self {
            name,
            force: Force::Apply(Box::new(object)),
            findings: Vec::new(),
            controller: None,
            subject: None,
        }
    }

    /// Whether an object with these findings may come into force.
    pub fn is_good(findings: &[Finding]) -> bool {
        findings.iter().all(|finding| finding.severity != Severity::Error)
    }
}

/// What pods belong to in the end. Between a pod and its Deployment or CronJob is a ReplicaSet or a Job.
#[derive(Debug, Default)]
struct Owners {
    /// Of ReplicaSets and Jobs that were seen.
    controllers: HashMap<ObjectKey, Option<(Kind, String)>>,
    /// Of pods, if it is one of those.
    direct: HashMap<Name, ObjectKey>,
    pods: HashMap<ObjectKey, BTreeSet<Name>>,
}

impl Owners {
    /// `None`: it is gone. Whether that is news.
    fn put(&mut self, key: &ObjectKey, controller: Option<Option<(Kind, String)>>) -> bool {
        let before = match &controller {
            Some(controller) => self.controllers.insert(key.clone(), controller.clone()),
            None => self.controllers.remove(key),
        };
        before != controller
    }

    fn put_pod(&mut self, pod: &Name, controller: Option<(Kind, String)>) {
        let between = controller.filter(|(kind, _)| matches!(kind, Kind::ReplicaSet | Kind::Job));
        let direct =
            between.map(|(kind, name)| ObjectKey { kind, name: Name::new(&pod.namespace, name) });
        let before = self.direct.get(pod);
        if before == direct.as_ref() {
            return;
        }
        if let Some(before) = before
            && let Some(pods) = self.pods.get_mut(before)
        {
            pods.remove(pod);
            if pods.is_empty() {
                self.pods.remove(before);
            }
        }
        match direct {
            Some(direct) => {
                self.pods.entry(direct.clone()).or_default().insert(pod.clone());
                self.direct.insert(pod.clone(), direct);
            }
            None => {
                self.direct.remove(pod);
            }
        }
    }

    fn pods_of(&self, owner: &ObjectKey) -> impl Iterator<Item = &Name> {
        self.pods.get(owner).into_iter().flatten()
    }

    /// The top of a pod's ownership. While what made the pod was not seen, its name has to do.
    fn top(&self, pod: &Pod, direct: Option<(Kind, String)>) -> Option<(Kind, String)> {
        let (kind, name) = direct?;
        let key = ObjectKey { kind, name: Name::new(&pod.name.namespace, &name) };
        match self.controllers.get(&key) {
            Some(Some(top)) => Some(top.clone()),
            Some(None) => Some((kind, name)),
            None => Some(top_by_name((kind, name), Some(&pod.labels))),
        }
    }

    fn names(&self, kind: Kind) -> impl Iterator<Item = Name> {
        let of = self.controllers.keys().filter(move |key| key.kind == kind);
        of.map(|key| key.name.clone())
    }
}
