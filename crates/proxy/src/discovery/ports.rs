//! What is said of the workload's own ports: linkerd's policy, and our rules of who may use them.

use std::sync::Arc;

use mesh_api::client::ControlClient;
use mesh_model::authz::PortAuthz;
use mesh_model::inbound::ServerPolicy;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::follow::{Followed, Follower};

/// Everything that is said of a port.
#[derive(Clone, Debug)]
pub(crate) struct PortRules {
    pub(crate) policy: Arc<ServerPolicy>,
    /// Decides who may use the port. `None` where the control plane has no extensions: the policy's
    /// own authorizations decide.
    pub(crate) authz: Option<Arc<PortAuthz>>,
}

#[derive(Default)]
struct Heard {
    policy: Option<Arc<ServerPolicy>>,
    /// `Some(None)`: there are no extensions.
    authz: Option<Option<Arc<PortAuthz>>>,
}

impl Heard {
    fn rules(&self) -> Option<PortRules> {
        Some(PortRules { policy: self.policy.clone()?, authz: self.authz.clone()? })
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
    let hear = |change: &dyn Fn(&mut Heard)| {
        let mut heard = heard.lock();
        change(&mut heard);
        if let Some(rules) = heard.rules() {
            tx.send_replace(Some(Arc::new(rules)));
        }
    };
    let policies = follower.follow(
        "inbound",
        || client.watch_port(port),
        |event| {
            if let Followed::Update(policy) = event {
                let policy = Arc::new(policy);
                hear(&|heard| heard.policy = Some(Arc::clone(&policy)));
            }
        },
    );
    let authorizations = follower.follow(
        "authorization",
        || client.watch_port_authz(port),
        |event| match event {
            Followed::Update(authz) => {
                let authz = Arc::new(authz);
                hear(&|heard| heard.authz = Some(Some(Arc::clone(&authz))));
            }
            // Rules that are known stay: somebody may answer in the control plane's place.
            Followed::Unimplemented => hear(&|heard| {
                heard.authz.get_or_insert(None);
            }),
            Followed::Opened | Followed::Refused => {}
        },
    );
    tokio::select! { () = policies => {}, () = authorizations => {}, () = tx.closed() => {} }
}
