//! What the parts of the control plane share.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use crate::identity::own::Own;
use crate::index::Index;
use crate::index::authz::Defaults;
use crate::index::identity::MeshNames;
use crate::index::object::ObjectKey;
use crate::source::{Problem, Severity};

/// The index, and how the source fares.
#[derive(Debug)]
pub struct Shared {
    pub index: RwLock<Index>,
    /// Who the control plane itself is, in a mesh with identity.
    pub own: Own,
    problems: Mutex<Problems>,
    ready: watch::Sender<bool>,
    looks_wanted: watch::Sender<u64>,
    looks_done: watch::Sender<u64>,
    started: Instant,
}

/// By what they are problems of.
#[derive(Debug, Default)]
struct Problems {
    source: Arc<[Problem]>,
    identity: Arc<[Problem]>,
}

impl Default for Shared {
    fn default() -> Self {
        Self::new(Defaults::default(), None)
    }
}

impl Shared {
    /// Nothing is known yet; see [`Index::new`].
    pub fn new(defaults: Defaults, identity: Option<MeshNames>) -> Self {
        Self {
            index: RwLock::new(Index::new(defaults, identity)),
            own: Own::default(),
            problems: Mutex::default(),
            ready: watch::Sender::new(false),
            looks_wanted: watch::Sender::new(0),
            looks_done: watch::Sender::new(0),
            started: Instant::now(),
        }
    }

    /// What is wrong right now with the source's objects, by themselves and with each other, and with
    /// the issuer's files. Takes the index's lock.
    pub fn problems(&self) -> Arc<[Problem]> {
        let conflicts = self.index.read().objects().conflicts();
        let have = self.problems.lock();
        let of_each = have.source.iter().chain(&*have.identity).cloned();
        of_each.chain(conflicts.into_iter().map(conflict)).collect()
    }

    /// Replaces the source's problems, and logs those that are new.
    pub fn set_problems(&self, problems: Vec<Problem>) {
        replace(&mut self.problems.lock().source, problems);
    }

    /// As [`Self::set_problems`], for the issuer's files.
    pub fn set_identity_problems(&self, problems: Vec<Problem>) {
        replace(&mut self.problems.lock().identity, problems);
    }

    /// The source has told everything once.
    pub fn set_ready(&self) {
        self.ready.send_if_modified(|ready| !std::mem::replace(ready, true));
    }

    pub fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }

    /// Turns true once and stays so.
    pub fn watch_ready(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    /// Makes the source look again; completes when what was there at the time of the call is in
    /// the index. A look that is under way does not count: it may have passed the place already.
    pub async fn refresh(&self) {
        let mut number = 0;
        self.looks_wanted.send_modify(|wanted| {
            *wanted += 1;
            number = *wanted;
        });
        // An error would mean that the sender is gone, which is ours.
        let _ = self.looks_done.subscribe().wait_for(|done| *done >= number).await;
    }

    /// For the source: changes when somebody wants it to look. Its value when a look began is
    /// what [`Self::set_looked`] takes when all that was seen is in the index.
    pub fn watch_looks_wanted(&self) -> watch::Receiver<u64> {
        self.looks_wanted.subscribe()
    }

    pub fn set_looked(&self, number: u64) {
        self.looks_done.send_replace(number);
    }

    /// Whole seconds since this process began.
    pub fn uptime_seconds(&self) -> u64 {
        self.started.elapsed().as_secs()
    }
}

fn conflict((key, message): (ObjectKey, String)) -> Problem {
    Problem {
        severity: Severity::Warning,
        object: key.to_string(),
        file: None,
        line: 0,
        field: "spec.targetRef".into(),
        message,
    }
}

fn replace(have: &mut Arc<[Problem]>, problems: Vec<Problem>) {
    for problem in problems.iter().filter(|problem| !have.contains(problem)) {
        match problem.severity {
            Severity::Error => tracing::error!(%problem, "not in force"),
            Severity::Warning => tracing::warn!(%problem, "in force with a reservation"),
        }
    }
    *have = problems.into();
}
