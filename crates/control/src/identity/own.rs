//! The control plane's own identity: proxies know it by that, and it asks proxies as that. It certifies
//! itself, with the issuer that certifies everybody.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_tls::{Credentials, Id, Key, Reception, TrustBundle};
use tokio::sync::watch;

use super::Authority;

/// A certificate is replaced when this share of its life is over.
const RENEW_AT: f64 = 0.7;
/// Before trying again, and the least between two certificates.
const AGAIN: Duration = Duration::from_secs(5);

/// What is needed for handshakes now.
#[derive(Debug)]
pub struct Held {
    /// For asking proxies.
    pub credentials: Credentials,
    /// For being asked by them.
    pub reception: Reception,
}

/// Who the control plane is. Clones share it.
#[derive(Clone, Debug)]
pub struct Own {
    held: watch::Sender<Option<Arc<Held>>>,
}

impl Default for Own {
    fn default() -> Self {
        Self { held: watch::Sender::new(None) }
    }
}

impl Own {
    /// Nothing before the authority had an issuer for the first time.
    pub fn held(&self) -> Option<Arc<Held>> {
        self.held.borrow().clone()
    }

    /// Returns once there is a first certificate.
    pub async fn certified(&self) {
        // The sender is `self`'s.
        let _ = self.held.subscribe().wait_for(Option::is_some).await;
    }

    /// Has itself certified, again in time and for each other issuer or root. Never returns.
    pub async fn keep(self, authority: Arc<Authority>) {
        let Some(id) = authority.settings().names.control_plane() else { return };
        let key = Key::generate();
        let mut roots = authority.roots.subscribe();
        loop {
            // Before there is an issuer, there is nothing to complain of here.
            if roots.borrow_and_update().is_none() {
                // The sender is in the authority.
                let _ = roots.changed().await;
                continue;
            }
            let wait = match self.renew(&authority, &id, &key) {
                Ok(left) => left.mul_f64(RENEW_AT).max(AGAIN),
                Err(error) => {
                    tracing::warn!(%error, "the control plane has no certificate of its own");
                    AGAIN
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = roots.changed() => {}
            }
        }
    }

    /// How long the new certificate is valid.
    fn renew(&self, authority: &Authority, id: &Id, key: &Key) -> Result<Duration, String> {
        let issuer = authority.issuer().ok_or("there is no issuer")?;
        let roots = authority.roots.borrow().clone().ok_or("there are no roots")?;
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let bundle = TrustBundle::from_pem(&roots.pem).map_err(|e| text(&e))?;
        let lifetime = authority.settings().lifetime;
        let issued = issuer.certify(&key.request(id), id, lifetime).map_err(|e| text(&e))?;
        let chain = issued.chain();
        let held = Held {
            credentials: Credentials::new(id, key, &chain, &bundle).map_err(|e| text(&e))?,
            reception: Reception::new(key, &chain, &bundle).map_err(|e| text(&e))?,
        };
        self.held.send_replace(Some(Arc::new(held)));
        Ok(issued.not_after.duration_since(SystemTime::now()).unwrap_or_default())
    }
}
