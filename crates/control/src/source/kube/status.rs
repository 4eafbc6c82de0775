//! What the control plane says of policies and routes, in their status.
//!
//! Which conditions an object should have is a pure function of it and the index ([`conditions`]); here
//! is when they are written: by one replica, when they are others than those the object has. Entries of
//! other controllers are left as they are.

mod conditions;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::core::DynamicObject;
use kube::{Client, ResourceExt};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use self::conditions::Scene;
use super::FIELD_MANAGER;
use super::watch::{api_resource, why};
use crate::index::Objects;
use crate::index::object::{Kind, Name, ObjectKey};
use crate::source::Finding;
use crate::state::Shared;

/// Who says it, where several controllers may have their say.
pub(super) const CONTROLLER: &str = "meshctl.dev/control";
/// Changes come in groups: a Deployment's rollout is not to write a status for each of its pods.
const DEBOUNCE: Duration = Duration::from_millis(500);
/// Before what could not be written, or had no effect, is tried again.
const RETRY: Duration = Duration::from_secs(30);

/// An object that has a status of ours, as far as that needs it.
#[derive(Clone, Debug, PartialEq)]
pub struct Subject {
    api_version: String,
    /// `resourceVersion`: which state of the object this is.
    version: String,
    generation: i64,
    /// Of routes.
    parents: Vec<Value>,
    /// Its `status.parents` or `status.conditions` now.
    have: Vec<Value>,
    /// Of Gateways: the class, and `status.listeners` and `status.addresses` now.
    class: Option<String>,
    listeners: Vec<Value>,
    addresses: Vec<Value>,
    pub findings: Vec<Finding>,
}

impl Subject {
    /// Without any findings.
    pub(super) fn new(object: &DynamicObject) -> Self {
        let list = |path: &str| {
            let list = object.data.pointer(path).and_then(Value::as_array);
            list.cloned().unwrap_or_default()
        };
        let mut have = list("/status/parents");
        have.extend(list("/status/conditions"));
        Self {
            api_version: object.types.as_ref().map(|t| t.api_version.clone()).unwrap_or_default(),
            version: object.resource_version().unwrap_or_default(),
            generation: object.metadata.generation.unwrap_or_default(),
            parents: list("/spec/parentRefs"),
            have,
            class: object.data["spec"]["gatewayClassName"].as_str().map(str::to_owned),
            listeners: list("/status/listeners"),
            addresses: list("/status/addresses"),
            findings: Vec::new(),
        }
    }
}

impl Subject {
    /// Whether it is a route of a Service, or could be one of our Gateways if there are any.
    pub(super) fn is_ours(&self, gateways: bool) -> bool {
        let could_be = |parent| conditions::is_service(parent) || conditions::is_gateway(parent);
        match gateways {
            true => self.parents.iter().any(could_be),
            false => self.parents.iter().any(conditions::is_service),
        }
    }
}

/// All objects that have a status of ours.
#[derive(Debug, Default)]
pub struct Board {
    subjects: Mutex<BTreeMap<ObjectKey, Arc<Subject>>>,
    changed: Notify,
}

impl Board {
    /// `None`: it is gone.
    pub(super) fn set(&self, key: ObjectKey, subject: Option<Subject>) {
        let mut subjects = self.subjects.lock();
        let before = match subject {
            Some(subject) => subjects.insert(key, Arc::new(subject)),
            None if subjects.is_empty() => return,
            None => subjects.remove(&key),
        };
        drop((subjects, before));
        self.changed.notify_one();
    }

    pub(super) fn names(&self, kind: Kind) -> Vec<Name> {
        let subjects = self.subjects.lock();
        let of = subjects.keys().filter(|key| key.kind == kind);
        of.map(|key| key.name.clone()).collect()
    }

    /// What has to be written so that every object says what is so.
    fn outstanding(&self, objects: &Objects, now: Timestamp) -> Vec<Write> {
        let subjects = self.subjects.lock();
        let listeners = objects.placed_listeners();
        let scene = Scene { objects, listeners: &listeners };
        let all = subjects.iter().filter_map(|(key, subject)| {
            let status = conditions::wanted(key, subject, scene, now)?;
            let (api_version, version) = (subject.api_version.clone(), subject.version.clone());
            Some(Write { key: key.clone(), api_version, version, status })
        });
        all.collect()
    }
}

/// A status to be written.
#[derive(Clone, Debug, PartialEq)]
struct Write {
    key: ObjectKey,
    api_version: String,
    version: String,
    status: Value,
}

/// Writes while this replica is the one that does. Never returns.
pub(super) async fn run(
    client: Client,
    shared: Arc<Shared>,
    board: Arc<Board>,
    mut leader: watch::Receiver<bool>,
) {
    // Before all is known, what is missing may only not have been seen.
    if shared.watch_ready().wait_for(|ready| *ready).await.is_err() {
        return;
    }
    let mut tried: HashMap<ObjectKey, (String, Instant)> = HashMap::new();
    let mut revision = shared.index.read().revision();
    loop {
        if leader.wait_for(|leader| *leader).await.is_err() {
            return;
        }
        revision.mark_unchanged();
        let due = {
            let index = shared.index.read();
            board.outstanding(index.objects(), Timestamp::now())
        };
        tried.retain(|key, (_, at)| {
            at.elapsed() < RETRY && due.iter().any(|write| write.key == *key)
        });
        for write in due {
            if !*leader.borrow() {
                break;
            }
            // The news of what was written may still be on its way.
            if tried.get(&write.key).is_some_and(|(version, _)| *version == write.version) {
                continue;
            }
            tried.insert(write.key.clone(), (write.version.clone(), Instant::now()));
            send(&client, write).await;
        }
        tokio::select! {
            _ = revision.changed() => {}
            () = board.changed.notified() => {}
            _ = leader.changed() => {}
            () = tokio::time::sleep(RETRY) => {}
        }
        tokio::time::sleep(DEBOUNCE).await;
    }
}

async fn send(client: &Client, write: Write) {
    let Write { key, api_version, version, status } = write;
    let resource = api_resource(key.kind, &api_version);
    let (client, namespace) = (client.clone(), key.name.namespace.as_str());
    let api: Api<DynamicObject> = match namespace {
        "" => Api::all_with(client, &resource),
        namespace => Api::namespaced_with(client, namespace, &resource),
    };
    let result = if is_route(key.kind) {
        // Parents are one list for all controllers: of two who write at a time one has to start over.
        let patch = json!({
            "metadata": { "resourceVersion": version },
            "status": status,
        });
        let by =
            PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        api.patch_status(&key.name.name, &by, &Patch::Merge(&patch)).await
    } else {
        let patch = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": { "name": key.name.name },
            "status": status,
        });
        let by = PatchParams::apply(FIELD_MANAGER).force();
        api.patch_status(&key.name.name, &by, &Patch::Apply(&patch)).await
    };
    match result {
        Ok(_) => tracing::debug!(object = %key, "wrote its status"),
        // Changed or gone meanwhile, of which there will be news.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
        Err(error) => {
            tracing::warn!(object = %key, why = why(&error), "its status cannot be written");
        }
    }
}

pub(super) fn is_route(kind: Kind) -> bool {
    matches!(kind, Kind::HttpRoute | Kind::GrpcRoute | Kind::TcpRoute | Kind::TlsRoute)
}
