//! Events on the owner of a pod, for what is wrong with its template: who looks at a Deployment sees
//! no warnings that its ReplicaSet was given.

use std::collections::VecDeque;
use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::review::Asked;

/// Requests under way; more are left out, for an event is not worth a queue.
const MAX_PENDING: usize = 8;
/// API servers refuse longer ones; bytes, of which a character has four at most.
const MAX_NOTE: usize = 1024 / 4;
/// What has been told lately, so that a hundred replicas make one event.
const REMEMBERED: usize = 512;

pub(super) struct Events {
    recorder: Recorder,
    places: Arc<Semaphore>,
    /// Owner and message, the oldest first.
    told: Mutex<VecDeque<(String, String)>>,
}

impl Events {
    pub(super) fn new(client: Client) -> Self {
        let reporter = Reporter { controller: "meshctl.dev/injector".into(), instance: None };
        Self {
            recorder: Recorder::new(client, reporter),
            places: Arc::new(Semaphore::new(MAX_PENDING)),
            told: Mutex::default(),
        }
    }

    /// Tells the owner, if the pod has one; a pod that is created by hand is told by a warning.
    pub(super) fn warn(&self, asked: &Asked, refused: bool, note: String) {
        let owners = asked.meta.owner_references.iter().flatten();
        let Some(owner) = owners.into_iter().find(|owner| owner.controller == Some(true)) else {
            return;
        };
        let note: String = note.chars().take(MAX_NOTE).collect();
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else { return };
        if !self.is_new(&owner.uid, &note) {
            return;
        }
        let reference = ObjectReference {
            api_version: Some(owner.api_version.clone()),
            kind: Some(owner.kind.clone()),
            name: Some(owner.name.clone()),
            namespace: Some(asked.namespace.clone()),
            uid: Some(owner.uid.clone()),
            ..ObjectReference::default()
        };
        let event = Event {
            type_: EventType::Warning,
            reason: if refused { "ProxyNotInjected" } else { "ProxyAnnotationInvalid" }.into(),
            note: Some(note),
            action: "Injecting".into(),
            secondary: None,
        };
        let recorder = self.recorder.clone();
        tokio::spawn(async move {
            if let Err(error) = recorder.publish(&event, &reference).await {
                tracing::debug!(%error, "cannot publish an event");
            }
            drop(place);
        });
    }

    fn is_new(&self, owner: &str, note: &str) -> bool {
        let mut told = self.told.lock();
        if told.iter().any(|(of, text)| of == owner && text == note) {
            return false;
        }
        told.push_back((owner.to_owned(), note.to_owned()));
        if told.len() > REMEMBERED {
            told.pop_front();
        }
        true
    }
}
