//! The mesh's certificate authority: who gets which certificate.
//!
//! A proxy sends a request for its key with a token; [`tokens`] tells whose token it is, and the issuer
//! that [`folder`] or [`secret`] read signs, for exactly the identity of that service account. The root's key is
//! nowhere near: it signed the issuer once.

pub mod folder;
pub mod own;
pub mod secret;
#[cfg(test)]
mod tests;
pub mod tokens;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use futures_util::stream::{BoxStream, StreamExt};
use mesh_api::server::Refusal;
use mesh_api::{Certified, CertifyRequest, TrustRoots};
use mesh_tls::{Id, Issuer, Refused};
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;

use self::folder::Loaded;
use self::tokens::{TokenError, Tokens};
use crate::index::identity::MeshNames;
use crate::index::object::Name;

/// Where the roots are, and the issuer with its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// See [`folder`].
    Folder(PathBuf),
    /// See [`secret`].
    Secret,
}

impl Origin {
    /// What problems with it name.
    fn path(&self) -> &Path {
        match self {
            Self::Folder(folder) => folder,
            Self::Secret => Path::new(secret::NAME),
        }
    }
}

/// How identities are made.
#[derive(Clone, Debug)]
pub struct Settings {
    pub origin: Origin,
    pub names: MeshNames,
    /// Of workloads' certificates.
    pub lifetime: Duration,
}

/// The authority of a mesh.
#[derive(Debug)]
pub struct Authority {
    settings: Settings,
    tokens: Box<dyn Tokens>,
    /// The last good one; there is none before the folder was right once.
    issuer: RwLock<Option<Arc<Issuer>>>,
    roots: watch::Sender<Option<Arc<TrustRoots>>>,
    issued: AtomicU64,
    refused: AtomicU64,
}

impl Authority {
    /// Certifies nothing before [`Authority::install`] gave it an issuer.
    pub fn new(settings: Settings, tokens: Box<dyn Tokens>) -> Self {
        Self {
            settings,
            tokens,
            issuer: RwLock::default(),
            roots: watch::Sender::new(None),
            issued: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Signs with this issuer from now on, and tells proxies of the roots if they are others. If only
    /// the issuer is another one they are told again, for which proxies have themselves certified anew.
    pub fn install(&self, loaded: Loaded) {
        let roots = TrustRoots {
            pem: loaded.roots,
            trust_domain: self.settings.names.trust_domain.clone(),
        };
        let issuer = Arc::new(loaded.issuer);
        // Before the roots are told: whoever hears of them asks at once.
        let before = self.issuer.write().replace(Arc::clone(&issuer));
        let same = before.is_some_and(|before| before.certificate() == issuer.certificate());
        self.roots.send_if_modified(|have| {
            let changed = !same || have.as_deref() != Some(&roots);
            if changed {
                *have = Some(Arc::new(roots));
            }
            changed
        });
    }

    /// The issuer in use.
    pub fn issuer(&self) -> Option<Arc<Issuer>> {
        self.issuer.read().clone()
    }

    /// How many requests were granted and refused.
    pub fn answered(&self) -> (u64, u64) {
        (self.issued.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed))
    }

    /// The roots that are trusted, once there are any.
    pub fn watch_roots(&self) -> watch::Receiver<Option<Arc<TrustRoots>>> {
        self.roots.subscribe()
    }

    /// The roots that are trusted, and what they become.
    ///
    /// # Errors
    /// When there are none yet.
    pub fn roots(&self) -> Result<BoxStream<'static, TrustRoots>, Refusal> {
        let roots = self.roots.subscribe();
        if roots.borrow().is_none() {
            return Err(no_issuer());
        }
        let known = WatchStream::new(roots).filter_map(std::future::ready);
        Ok(known.map(|roots| (*roots).clone()).boxed())
    }

    /// Whose token it is.
    ///
    /// # Errors
    /// When it is none, or that cannot be told.
    pub async fn owner(&self, token: &str) -> Result<Name, Refusal> {
        Ok(self.tokens.owner(token).await?)
    }

    /// Certifies a key for whoever the token belongs to.
    ///
    /// # Errors
    /// When the token does not prove the identity asked for, or the request is for anything else.
    pub async fn certify(&self, asked: CertifyRequest) -> Result<Certified, Refusal> {
        let answer = self.decide(&asked).await;
        match &answer {
            Ok(certified) => {
                self.issued.fetch_add(1, Ordering::Relaxed);
                let lifetime = certified.not_after.duration_since(SystemTime::now());
                tracing::debug!(id = asked.id, ?lifetime, "issued a certificate");
            }
            Err(refusal) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                // What the peer wrote is escaped by its `Debug`, and bounded.
                let id: String = asked.id.chars().take(MAX_LOGGED).collect();
                tracing::warn!(?id, ?refusal, "refused to issue a certificate");
            }
        }
        answer
    }

    async fn decide(&self, asked: &CertifyRequest) -> Result<Certified, Refusal> {
        let id: Id = asked.id.parse().map_err(invalid)?;
        let owner = self.tokens.owner(&asked.token).await?;
        let own = self.settings.names.id(&owner.namespace, &owner.name).ok_or_else(|| {
            let why = "has a dot in its name or is too long, so that it has no identity";
            Refusal::PermissionDenied(format!("the service account {owner} {why}"))
        })?;
        if own != id {
            return Err(Refusal::PermissionDenied(format!("the token is {own}'s, not {id}'s")));
        }
        let issuer = self.issuer().ok_or_else(no_issuer)?;
        let issued = issuer.certify(&asked.request, &id, self.settings.lifetime);
        let issued = issued.map_err(|refused| match refused {
            Refused::Expired => Refusal::Unavailable(refused.to_string()),
            _ => invalid(refused),
        })?;
        let mesh_tls::Issued { leaf, intermediates, not_after } = issued;
        Ok(Certified { leaf, intermediates, not_after })
    }
}

/// Characters of an identity that may not be one.
const MAX_LOGGED: usize = 300;

fn invalid(error: impl std::fmt::Display) -> Refusal {
    Refusal::InvalidArgument(error.to_string())
}

fn no_issuer() -> Refusal {
    Refusal::Unavailable("the control plane has no usable issuer; its log says why".into())
}

impl From<TokenError> for Refusal {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Unavailable { .. } => Self::Unavailable(error.to_string()),
            _ => Self::PermissionDenied(error.to_string()),
        }
    }
}
