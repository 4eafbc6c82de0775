//! What is said of the workload's own ports: linkerd's policy, and all of our rules at once.

use std::sync::Arc;

use mesh_api::client::ControlClient;
use mesh_layers::ConcurrencyLimit;
use mesh_model::authz::PortAuthz;
use mesh_model::inbound::{
    Concurrency, PortExtension, PortProtocol, RateLimit, ServerPolicy, ServerProtocol,
};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::follow::{Followed, Follower};
use crate::http::faults::Faults;
use crate::inbound::RateLimiter;

/// Everything that is said of a port.
#[derive(Clone, Debug)]
pub(crate) struct PortRules {
    pub(crate) policy: Arc<ServerPolicy>,
    /// Decides who may use the port. `None` where the control plane has no extensions: the policy's
    /// own authorizations decide.
    pub(crate) authz: Option<Arc<PortAuthz>>,
    pub(crate) protocol: PortProtocol,
    /// Shared by all workers, and over changes of everything else.
    pub(crate) rate_limit: Option<Arc<RateLimiter>>,
    pub(crate) concurrency: Option<PortConcurrency>,
    pub(crate) faults: Option<Arc<Faults>>,
}

/// How many requests may be in flight, and how many are.
#[derive(Clone, Debug)]
pub(crate) struct PortConcurrency {
    pub(crate) of: Concurrency,
    pub(crate) limit: ConcurrencyLimit,
}

impl PortRules {
    /// What is counted in `before` is counted on.
    pub(crate) fn new(
        policy: Arc<ServerPolicy>,
        extension: Option<&PortExtension>,
        before: Option<&Self>,
    ) -> Self {
        let Some(extension) = extension else {
            let (protocol, rate) = of_linkerd(&policy.protocol);
            let rate_limit = rate.map(|rate| rate_limiter(rate, before));
            return Self {
                policy,
                authz: None,
                protocol,
                rate_limit,
                concurrency: None,
                faults: None,
            };
        };
        let limits = &extension.limits;
        Self {
            policy,
            authz: Some(Arc::new(extension.authz.clone())),
            protocol: extension.protocol,
            rate_limit: limits.rate.as_ref().map(|rate| rate_limiter(rate, before)),
            concurrency: limits.concurrency.as_ref().map(|of| {
                let max = of.max as usize;
                let before = before.and_then(|before| before.concurrency.as_ref());
                let limit = before.map(|before| before.limit.resized(max));
                PortConcurrency {
                    of: of.clone(),
                    limit: limit.unwrap_or_else(|| ConcurrencyLimit::new(max)),
                }
            }),
            faults: Faults::new(
                &extension.faults,
                before.and_then(|before| before.faults.as_ref()),
            ),
        }
    }
}

fn of_linkerd(protocol: &ServerProtocol) -> (PortProtocol, Option<&RateLimit>) {
    match protocol {
        ServerProtocol::Detect { limit, .. } => (PortProtocol::Detect, limit.as_ref()),
        ServerProtocol::Http1 { limit, .. } => (PortProtocol::Http1, limit.as_ref()),
        ServerProtocol::Http2 { limit, .. } => (PortProtocol::Http2, limit.as_ref()),
        ServerProtocol::Grpc { .. } => (PortProtocol::Grpc, None),
        ServerProtocol::Opaque | ServerProtocol::Tls => (PortProtocol::Opaque, None),
    }
}

fn rate_limiter(limit: &RateLimit, before: Option<&PortRules>) -> Arc<RateLimiter> {
    let before = before.and_then(|before| before.rate_limit.as_ref());
    match before.filter(|before| before.limit() == limit) {
        Some(before) => Arc::clone(before),
        None => Arc::new(RateLimiter::new(limit)),
    }
}

#[derive(Default)]
struct Heard {
    policy: Option<Arc<ServerPolicy>>,
    /// `Some(None)`: there are no extensions.
    extension: Option<Option<PortExtension>>,
}

impl Heard {
    fn rules(&self, before: Option<&PortRules>) -> Option<PortRules> {
        let extension = self.extension.as_ref()?.as_ref();
        Some(PortRules::new(self.policy.clone()?, extension, before))
    }
}

/// Feeds `tx` until nobody reads it. Nothing is said before both streams have said something:
/// by one of them alone, too many could get in.
pub(super) async fn follow(
    follower: &Follower,
    client: &ControlClient,
    port: u16,
    tx: watch::Sender<Option<Arc<PortRules>>>,
) {
    let heard = Mutex::new(Heard::default());
    let hear = |change: &mut dyn FnMut(&mut Heard)| {
        let mut heard = heard.lock();
        change(&mut heard);
        let before = tx.borrow().clone();
        if let Some(rules) = heard.rules(before.as_deref()) {
            tx.send_replace(Some(Arc::new(rules)));
        }
    };
    let policies = follower.follow(
        "inbound",
        || client.watch_port(port),
        |event| {
            if let Followed::Update(policy) = event {
                let policy = Arc::new(policy);
                hear(&mut |heard| heard.policy = Some(Arc::clone(&policy)));
            }
        },
    );
    let extensions = follower.follow(
        "authorization",
        || client.watch_port_extension(port),
        |event| match event {
            Followed::Update(extension) => {
                let mut extension = Some(extension);
                hear(&mut |heard| heard.extension = Some(extension.take()));
            }
            // Rules that are known stay: somebody may answer in the control plane's place.
            Followed::Unimplemented => hear(&mut |heard| {
                heard.extension.get_or_insert(None);
            }),
            Followed::Opened | Followed::Refused => {}
        },
    );
    tokio::select! { () = policies => {}, () = extensions => {}, () = tx.closed() => {} }
}
