//! The Kubernetes source: watches on an API server, and what the control plane writes back.
//!
//! [`watch`] follows each kind of object and passes on what happens, in one bounded queue; [`state`]
//! turns that into changes of the index, and is where a list that began anew removes what vanished
//! meanwhile. One replica at a time holds the Lease ([`lease`]) and writes: conditions of policies and
//! routes ([`status`]), and the public roots of the mesh ([`roots`]). Proxies' tokens are verified by
//! [`tokens`].
//!
//! # Rights
//!
//! What the service account of the control plane needs, and nothing more.
//!
//! A ClusterRole:
//!
//! | group | resources | verbs |
//! |---|---|---|
//! | `""` | `namespaces`, `services`, `pods` | `list`, `watch` |
//! | `discovery.k8s.io` | `endpointslices` | `list`, `watch` |
//! | `apps` | `deployments`, `statefulsets`, `daemonsets`, `replicasets` | `list`, `watch` (metadata only) |
//! | `batch` | `jobs`, `cronjobs` | `list`, `watch` (metadata only) |
//! | `gateway.networking.k8s.io` | `httproutes`, `grpcroutes`, `tcproutes`, `tlsroutes`, `referencegrants` | `list`, `watch` |
//! | `gateway.networking.k8s.io` | `httproutes/status`, `grpcroutes/status`, `tcproutes/status`, `tlsroutes/status` | `patch` |
//! | `policy.meshctl.dev` | `authorizationpolicies`, `backendtrafficpolicies`, `egresspolicies`, `serverpolicies` | `list`, `watch` |
//! | `policy.meshctl.dev` | the same with `/status` | `patch` |
//! | `authentication.k8s.io` | `tokenreviews` | `create` |
//!
//! With a gateway (`--gateway`), a ClusterRole more:
//!
//! | group | resources | verbs |
//! |---|---|---|
//! | `""` | `secrets` | `list`, `watch` (of the type `kubernetes.io/tls`) |
//! | `gateway.networking.k8s.io` | `gateways`, `gatewayclasses` | `list`, `watch` |
//! | `gateway.networking.k8s.io` | `gateways/status`, `gatewayclasses/status` | `patch` |
//!
//! A Role in the control plane's namespace:
//!
//! | group | resources | names | verbs |
//! |---|---|---|---|
//! | `coordination.k8s.io` | `leases` | any | `create` |
//! | `coordination.k8s.io` | `leases` | `mesh-control` | `get`, `update` |
//! | `""` | `configmaps` | any | `create` |
//! | `""` | `configmaps` | `mesh-trust-roots` | `get`, `patch` |
//!
//! Besides those: discovery (`/apis/GROUP/VERSION`), which every service account may read by the
//! ClusterRole `system:discovery`.

mod convert;
mod lease;
mod roots;
pub mod state;
mod status;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod tokens;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use ::kube::Client;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use self::lease::NAME as LEASE;
use self::state::{Event, State};
use self::status::Board;
use crate::identity::Authority;
use crate::index::identity::MeshNames;
use crate::state::Shared;

/// Whom fields belong to that the control plane writes.
const FIELD_MANAGER: &str = "mesh-control";
/// Events on their way; watches wait when there are this many.
const QUEUE: usize = 1024;
/// Events applied at a time: whoever asks the index waits for these at most.
const BATCH: usize = 256;
/// A watch has no end to wait for. Whoever wants all that there is waits this long for what is on its
/// way.
const SETTLE: Duration = Duration::from_millis(250);

/// Between looks at what a watch does not say.
const TICK: Duration = Duration::from_secs(15);

/// How the control plane lives in its cluster.
#[derive(Clone, Debug)]
pub struct Settings {
    pub names: MeshNames,
    /// What to call this replica. Others may have the same name.
    pub replica: String,
    /// Whether there is a gateway, for which Gateways and Secrets with certificates are watched.
    pub gateway: bool,
}

/// There is no API server to talk to.
#[derive(Debug, thiserror::Error)]
#[error(
    "no cluster: outside of one, set KUBECONFIG or write ~/.kube/config; inside, the pod needs a \
     service account token"
)]
pub struct NoCluster {
    source: ::kube::Error,
}

/// A client for the cluster that this process runs in, or that the kubeconfig names.
///
/// # Errors
/// When there is neither, or it is of no use.
pub async fn connect() -> Result<Client, NoCluster> {
    Client::try_default().await.map_err(|source| NoCluster { source })
}

/// Keeps the index as the cluster says, until `stop`; then gives up the Lease, if it has it.
pub async fn run(
    client: Client,
    settings: Settings,
    shared: Arc<Shared>,
    authority: Option<Arc<Authority>>,
    stop: CancellationToken,
) {
    let (sender, events) = mpsc::channel(QUEUE);
    let board = Arc::new(Board::default());
    // What runs is aborted with the set.
    let mut running = JoinSet::new();
    watch::spawn(&mut running, &client, &settings, &sender);
    let state = match settings.gateway {
        true => State::new(Arc::clone(&board)).with_gateway(),
        false => State::new(Arc::clone(&board)),
    };
    running.spawn(keep(Arc::clone(&shared), events, state));

    let namespace = settings.names.control_namespace.as_str();
    let election = lease::Election::new(client.clone(), namespace, &settings.replica);
    let leader = election.leader();
    running.spawn(status::run(client.clone(), shared, board, leader.clone()));
    if let Some(authority) = authority {
        running.spawn(roots::run(client, namespace.to_owned(), authority, leader));
    }
    election.run(stop).await;
}

/// Applies what happens. Returns when nobody can tell any more.
async fn keep(shared: Arc<Shared>, mut events: mpsc::Receiver<Event>, mut state: State) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut looks_wanted = shared.watch_looks_wanted();
    // Somebody may have asked before this began.
    let first = (*looks_wanted.borrow_and_update(), Instant::now() + SETTLE);
    let mut look = Some(first);
    let mut tick = tokio::time::interval(TICK);
    loop {
        let settled = look.map_or_else(Instant::now, |(_, at)| at);
        tokio::select! {
            count = events.recv_many(&mut batch, BATCH) => if count == 0 { return },
            now = tick.tick() => state.forget_failures(now),
            Ok(()) = looks_wanted.changed(), if look.is_none() => {
                look = Some((*looks_wanted.borrow_and_update(), Instant::now() + SETTLE));
                continue;
            }
            () = tokio::time::sleep_until(settled), if look.is_some() && state.is_complete() => {
                while batch.len() < QUEUE && let Ok(event) = events.try_recv() {
                    batch.push(event);
                }
                take(&shared, &mut state, &mut batch);
                if let Some((number, _)) = look.take() {
                    shared.set_looked(number);
                }
                continue;
            }
        }
        take(&shared, &mut state, &mut batch);
    }
}

fn take(shared: &Shared, state: &mut State, batch: &mut Vec<Event>) {
    if !batch.is_empty() {
        let mut index = shared.index.write();
        let mut changes = index.batch();
        batch.drain(..).for_each(|event| state.take(event, &mut changes));
    }
    if let Some(problems) = state.new_problems() {
        shared.set_problems(problems);
    }
    if state.is_complete() {
        shared.set_ready();
    }
}
