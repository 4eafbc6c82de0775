//! What the control plane says, kept current and kept at all while it is away.
//!
//! Everything asked for is one gRPC stream, followed by a task that lives as long as somebody reads
//! its `watch::Receiver`. A stream that breaks is opened again with backoff while readers go on
//! with what it said last; a message that makes no sense is counted and changes nothing. The tasks
//! run on the control runtime, so they never take the data path's time.

mod backends;
mod follow;
mod ports;
mod targets;

use std::collections::HashMap;
use std::hash::Hash;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use mesh_api::client::ControlClient;
use mesh_model::egress::EgressRules;
use mesh_model::endpoint::Endpoint;
use mesh_model::gateway::GatewayConfig;
use mesh_model::{Destination, OutboundPolicy, Reason, ResourceRef, Target};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;

pub(crate) use self::backends::BackendRules;
pub(crate) use self::follow::Streams;
use self::follow::{Followed, Follower};
pub(crate) use self::ports::{PortConcurrency, PortRules};
pub(crate) use self::targets::forward_to;
use crate::identity::read_token;
use crate::resolve::Resolver;
use crate::telemetry::Telemetry;

/// What is known of a target. `None` until the control plane (or DNS) has answered once.
pub(crate) type Resolution = Option<Result<Found, Reason>>;

/// Where a target is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Found {
    /// In the mesh, or so near that nothing leaves it.
    Mesh(Arc<OutboundPolicy>),
    /// Somewhere of which the control plane knows nothing.
    Outside(Outside),
}

/// A place outside of the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outside {
    pub(crate) addr: SocketAddr,
    /// What is spoken at this port is not looked at.
    pub(crate) opaque: bool,
}

/// What may leave the mesh. `None` until the control plane has said so once.
pub(crate) type Leave = Option<Arc<EgressRules>>;

/// The endpoints of a service.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum EndpointSet {
    /// Nothing heard yet.
    #[default]
    Unknown,
    Known {
        /// Whether there is such a service at all.
        exists: bool,
        endpoints: Arc<Vec<Arc<Endpoint>>>,
    },
}

/// Asks the control plane. Clones share the streams.
#[derive(Clone, Debug)]
pub(crate) struct Discovery {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    client: Option<ControlClient>,
    runtime: Handle,
    follower: Follower,
    resolver: Resolver,
    targets: Watches<Target, Resolution>,
    endpoints: Watches<String, EndpointSet>,
    ports: Watches<u16, Option<Arc<PortRules>>>,
    extensions: Watches<ResourceRef, BackendRules>,
    egress: OnceLock<watch::Receiver<Leave>>,
}

impl Discovery {
    /// `client` is `None` where there is no control plane.
    pub(crate) fn new(
        client: Option<ControlClient>,
        resolver: Resolver,
        runtime: Handle,
        telemetry: Arc<Telemetry>,
    ) -> Self {
        let inner = Inner {
            client,
            runtime,
            follower: Follower::new(telemetry),
            resolver,
            targets: Watches::default(),
            endpoints: Watches::default(),
            ports: Watches::default(),
            extensions: Watches::default(),
            egress: OnceLock::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// State of the streams to the control plane.
    pub(crate) fn streams(&self) -> &Streams {
        self.inner.follower.streams()
    }

    /// How to reach a target.
    pub(crate) fn target(&self, target: &Target) -> watch::Receiver<Resolution> {
        let this = self.clone();
        self.inner.targets.get(target, &self.inner.runtime, move |target, tx| {
            let this = this.clone();
            async move {
                let Inner { client, follower, resolver, .. } = &*this.inner;
                targets::follow(follower, client.as_ref(), resolver, &target, tx).await;
            }
        })
    }

    /// The endpoints of a service port, by the path its policy names.
    pub(crate) fn endpoints(&self, path: &str) -> watch::Receiver<EndpointSet> {
        let this = self.clone();
        self.inner.endpoints.get(&path.to_owned(), &self.inner.runtime, move |path, tx| {
            let this = this.clone();
            async move {
                let Some(client) = &this.inner.client else { return tx.closed().await };
                // The first `Add` after a (re)connect replaces the set; until then the old one serves.
                let mut fresh = true;
                let follow = this.inner.follower.follow(
                    "destination",
                    || client.watch_destination(&path),
                    |event| match event {
                        Followed::Opened => fresh = true,
                        Followed::Unimplemented => {}
                        Followed::Update(update) => {
                            let reset = std::mem::take(&mut fresh);
                            tx.send_if_modified(|set| apply(set, update, reset));
                        }
                        Followed::Refused => {
                            tx.send_if_modified(|set| {
                                apply(set, Destination::NoEndpoints { exists: false }, true)
                            });
                        }
                    },
                );
                tokio::select! { () = follow => {}, () = tx.closed() => {} }
            }
        })
    }

    /// The policy of one of the workload's own ports, and who may use it. Nothing until both are
    /// known.
    pub(crate) fn port(&self, port: u16) -> watch::Receiver<Option<Arc<PortRules>>> {
        let this = self.clone();
        self.inner.ports.get(&port, &self.inner.runtime, move |port, tx| {
            let this = this.clone();
            async move {
                let Some(client) = &this.inner.client else { return tx.closed().await };
                ports::follow(&this.inner.follower, client, port, tx).await;
            }
        })
    }

    /// What the gateway listens on. Whoever asks proves by the token in a file to be one; without a
    /// file, that cannot be proved.
    pub(crate) fn gateway(
        &self,
        token_file: Option<PathBuf>,
    ) -> watch::Receiver<Option<Arc<GatewayConfig>>> {
        let (tx, rx) = watch::channel(None);
        let this = self.clone();
        self.inner.runtime.spawn(async move {
            let Some(client) = &this.inner.client else { return tx.closed().await };
            let open = || async {
                let token = token_file.as_deref().map(read_token).transpose();
                let token = token.map_err(tonic::Status::unavailable)?.unwrap_or_default();
                client.watch_gateway(&token).await
            };
            let follow = this.inner.follower.follow("gateway", open, |event| {
                if let Followed::Update(config) = event {
                    tx.send_replace(Some(Arc::new(config)));
                }
            });
            tokio::select! { () = follow => {}, () = tx.closed() => {} }
        });
        rx
    }

    /// What may leave the mesh, asked for when something first would. It is never let go of: what was
    /// said last has to be known while the control plane is away.
    pub(crate) fn egress(&self) -> watch::Receiver<Leave> {
        let begin = || {
            let (tx, rx) = watch::channel(None);
            let this = self.clone();
            self.inner.runtime.spawn(async move {
                let Some(client) = &this.inner.client else { return tx.closed().await };
                let hear = |event| match event {
                    Followed::Update(rules) => drop(tx.send_replace(Some(Arc::new(rules)))),
                    // Rules that are known stay: somebody may answer in the control plane's place.
                    Followed::Unimplemented => {
                        tx.send_if_modified(|rules| {
                            let unknown = rules.is_none();
                            rules.get_or_insert_default();
                            unknown
                        });
                    }
                    Followed::Opened | Followed::Refused => {}
                };
                this.inner.follower.follow("egress", || client.watch_egress(), hear).await;
            });
            rx
        };
        self.inner.egress.get_or_init(begin).clone()
    }

    /// Our extensions of a backend; the default where the control plane has none.
    pub(crate) fn extension(&self, key: &ResourceRef) -> watch::Receiver<BackendRules> {
        let this = self.clone();
        self.inner.extensions.get(key, &self.inner.runtime, move |key, tx| {
            let this = this.clone();
            async move {
                let Some(client) = &this.inner.client else { return tx.closed().await };
                let follow = this.inner.follower.follow(
                    "extension",
                    || client.watch_backend(&key),
                    |event| {
                        if let Followed::Update(extension) = event {
                            tx.send_if_modified(|rules| rules.take(extension));
                        }
                    },
                );
                tokio::select! { () = follow => {}, () = tx.closed() => {} }
            }
        })
    }
}

/// Applies one message to a set; says whether that changed it.
fn apply(set: &mut EndpointSet, update: Destination, reset: bool) -> bool {
    let old = match set {
        EndpointSet::Known { endpoints, .. } if !reset => endpoints.as_slice(),
        _ => &[],
    };
    let new = match update {
        Destination::NoEndpoints { exists } => {
            EndpointSet::Known { exists, endpoints: Arc::default() }
        }
        Destination::Remove(addrs) => {
            let left = old.iter().filter(|endpoint| !addrs.contains(&endpoint.addr));
            EndpointSet::Known { exists: true, endpoints: Arc::new(left.cloned().collect()) }
        }
        Destination::Add { endpoints: added, .. } => {
            let mut all: Vec<_> = old
                .iter()
                .filter(|old| !added.iter().any(|new| new.addr == old.addr))
                .cloned()
                .collect();
            all.extend(added.into_iter().map(Arc::new));
            EndpointSet::Known { exists: true, endpoints: Arc::new(all) }
        }
    };
    let changed = *set != new;
    *set = new;
    changed
}

/// One watch per key, shared by all who ask for it while anybody holds it.
#[derive(Debug)]
struct Watches<K, V> {
    open: Arc<Mutex<HashMap<K, watch::Sender<V>>>>,
}

impl<K, V> Default for Watches<K, V> {
    fn default() -> Self {
        Self { open: Arc::default() }
    }
}

impl<K, V> Watches<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Default + Send + Sync + 'static,
{
    /// The watch for `key`. `follow` feeds it until nobody is left, and is begun anew for those who came
    /// in that moment.
    fn get<F>(
        &self,
        key: &K,
        runtime: &Handle,
        follow: impl Fn(K, watch::Sender<V>) -> F + Send + 'static,
    ) -> watch::Receiver<V>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut open = self.open.lock();
        if let Some(sender) = open.get(key) {
            return sender.subscribe();
        }
        let (sender, receiver) = watch::channel(V::default());
        open.insert(key.clone(), sender.clone());
        let (all, key) = (Arc::clone(&self.open), key.clone());
        runtime.spawn(async move {
            loop {
                follow(key.clone(), sender.clone()).await;
                // Somebody may have subscribed between the last reader's leaving and now.
                let mut open = all.lock();
                if sender.receiver_count() == 0 {
                    open.remove(&key);
                    return;
                }
            }
        });
        receiver
    }
}

#[cfg(test)]
mod tests;
