//! Targets in use: what the control plane says about each, built into routes once per change.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_model::egress::{EgressRules, HostName};
use mesh_model::{Reason, Target};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::Instrument;

use super::backend::Backends;
use super::egress::Egress;
use super::route::Routes;
use crate::config::Limits;
use crate::describe;
use crate::discovery::{Discovery, Found, Resolution};
use crate::error::MeshError;
use crate::telemetry::Telemetry;

/// A target nobody used for so long is forgotten.
const IDLE: Duration = Duration::from_secs(90);

/// The targets of one worker.
#[derive(Debug)]
pub(crate) struct Targets {
    max: usize,
    wait: Duration,
    shared: Arc<Shared>,
    known: Mutex<HashMap<Target, Known>>,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) discovery: Discovery,
    pub(super) backends: Arc<Backends>,
    pub(super) telemetry: Arc<Telemetry>,
}

#[derive(Debug)]
struct Known {
    stack: Arc<TargetStack>,
    used: Instant,
}

/// One target.
#[derive(Debug)]
pub(crate) struct TargetStack {
    target: Target,
    wait: Duration,
    shared: Arc<Shared>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    resolution: watch::Receiver<Resolution>,
    built: Option<Built>,
}

#[derive(Clone, Debug)]
struct Built {
    found: Found,
    way: Way,
}

/// How a target is reached.
#[derive(Clone, Debug)]
enum Way {
    Mesh(Arc<Routes>),
    Outside(Arc<Egress>),
}

/// How what is for a target goes on.
#[derive(Clone, Debug)]
pub(crate) enum Onward {
    Mesh(Arc<Routes>),
    /// Out of the mesh, as these rules have it.
    Outside(Arc<Egress>, Arc<EgressRules>),
}

impl Targets {
    pub(crate) fn new(
        limits: &Limits,
        discovery: Discovery,
        backends: Arc<Backends>,
        telemetry: Arc<Telemetry>,
    ) -> Self {
        Self {
            max: limits.max_targets,
            wait: limits.discovery_timeout,
            shared: Arc::new(Shared { discovery, backends, telemetry }),
            known: Mutex::default(),
        }
    }

    /// The stack of a target. The one used least recently makes room where there are too many.
    pub(crate) fn get(&self, target: &Target) -> Arc<TargetStack> {
        let now = Instant::now();
        let mut known = self.known.lock();
        if let Some(found) = known.get_mut(target) {
            found.used = now;
            return Arc::clone(&found.stack);
        }
        if known.len() >= self.max
            && let Some(oldest) = known.iter().min_by_key(|(_, k)| k.used).map(|(t, _)| t.clone())
        {
            known.remove(&oldest);
        }
        let stack = self.told(target, self.shared.discovery.target(target));
        known.insert(target.clone(), Known { stack: Arc::clone(&stack), used: now });
        stack
    }

    /// The stack of something else than a target, which nobody has to ask for.
    pub(crate) fn told(
        &self,
        target: &Target,
        resolution: watch::Receiver<Resolution>,
    ) -> Arc<TargetStack> {
        Arc::new(TargetStack {
            target: target.clone(),
            wait: self.wait,
            shared: Arc::clone(&self.shared),
            state: Mutex::new(State { resolution, built: None }),
        })
    }

    /// Forgets targets that are neither in use nor were lately.
    pub(crate) fn expire(&self, now: Instant) {
        self.known.lock().retain(|_, known| {
            if Arc::strong_count(&known.stack) > 1 {
                known.used = now;
            }
            now.duration_since(known.used) < IDLE
        });
    }

    pub(crate) fn describe(&self) -> Vec<Value> {
        let known = self.known.lock();
        let mut targets: Vec<_> = known.iter().collect();
        targets.sort_by_key(|(target, _)| *target);
        targets.into_iter().map(|(_, known)| known.stack.describe()).collect()
    }
}

impl TargetStack {
    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// Builds what was told last, for those who come.
    pub(crate) fn prepare(&self) {
        // An error is for them, too.
        drop(self.ready());
    }

    /// The way as of now; waits for the first word about the target, and where it leaves the mesh, about
    /// what may.
    pub(crate) async fn onward(&self) -> Result<Onward, MeshError> {
        match self.way().await? {
            Way::Mesh(routes) => Ok(Onward::Mesh(routes)),
            Way::Outside(egress) => {
                let rules = egress.rules(self.wait).await?;
                Ok(Onward::Outside(egress, rules))
            }
        }
    }

    async fn way(&self) -> Result<Way, MeshError> {
        if let Some(ready) = self.ready() {
            return ready;
        }
        let mut resolution = self.state.lock().resolution.clone();
        let known = resolution.wait_for(Option::is_some);
        let span = tracing::debug_span!("outbound.discover");
        let waited = tokio::time::timeout(self.wait, known).instrument(span).await.is_ok();
        match self.ready() {
            Some(ready) if waited => ready,
            _ => {
                let message = format!(
                    "the control plane has not said within {:?} how to reach {}",
                    self.wait, self.target
                );
                Err(MeshError::new(Reason::DiscoveryTimeout, message))
            }
        }
    }

    /// Waits until a connection that a request to this host was upgraded to may no longer leave the
    /// mesh, which is never if it does not.
    pub(crate) async fn revoked(self: Arc<Self>, host: Option<HostName>, client: SocketAddr) {
        match self.ready() {
            Some(Ok(Way::Outside(egress))) => egress.revoked(host, client).await,
            _ => std::future::pending().await,
        }
    }

    /// Rebuilds if the control plane has spoken since. `None` before it ever has.
    fn ready(&self) -> Option<Result<Way, MeshError>> {
        let mut state = self.state.lock();
        if !state.resolution.has_changed().unwrap_or(false)
            && let Some(built) = &state.built
        {
            return Some(Ok(built.way.clone()));
        }
        let resolution = state.resolution.borrow_and_update().clone()?;
        let found = match resolution {
            Ok(found) => found,
            Err(reason) => {
                state.built = None;
                let message = format!("nothing is known of {}", self.target);
                return Some(Err(MeshError::new(reason, message)));
            }
        };
        let Shared { backends, telemetry, .. } = &*self.shared;
        let same = state.built.as_ref().filter(|built| built.found == found);
        let way = match (same, &found) {
            (Some(built), _) => built.way.clone(),
            (None, Found::Mesh(policy)) => {
                Way::Mesh(Arc::new(Routes::build(policy, backends, telemetry)))
            }
            (None, Found::Outside(place)) => {
                Way::Outside(Egress::new(*place, &self.target, &self.shared))
            }
        };
        state.built = Some(Built { found, way: way.clone() });
        Some(Ok(way))
    }

    fn describe(&self) -> Value {
        let state = self.state.lock();
        let policy = match &*state.resolution.borrow() {
            None => json!({ "state": "pending" }),
            Some(Err(reason)) => json!({ "state": "failed", "reason": reason.code() }),
            Some(Ok(Found::Outside(place))) => match state.built.as_ref().map(|built| &built.way) {
                Some(Way::Outside(egress)) => egress.describe(),
                _ => json!({ "state": "outside", "address": place.addr.to_string() }),
            },
            Some(Ok(Found::Mesh(policy))) => json!({
                "state": "known",
                "resource": policy.meta.to_string(),
                "policy": describe::outbound_protocol(&policy.protocol),
            }),
        };
        json!({ "target": self.target.to_string(), "policy": policy })
    }
}
