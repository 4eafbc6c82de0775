//! Who this proxy is: it has its key certified by the control plane, renews that in time, and keeps
//! the roots it trusts current. The data path takes [`Identity::credentials`] for each handshake, so
//! connections that are open live on with what they began with.

mod roots;

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::StreamExt;
use mesh_api::Update;
use mesh_api::client::{ControlClient, UpdateStream};
use mesh_tls::{Credentials, Id, Key, TrustBundle};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::config::IdentityConfig;
use crate::telemetry::IdentityMetrics;

/// The identity, or that there is none: then nothing of the mesh is encrypted here. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Identity {
    inner: Option<Arc<Inner>>,
}

#[derive(Debug)]
struct Inner {
    id: Id,
    control_plane: Id,
    credentials: watch::Sender<Option<Arc<Credentials>>>,
    bundle: Mutex<TrustBundle>,
    account: Mutex<Account>,
}

/// For `/config`.
#[derive(Debug, Default)]
struct Account {
    renewals: u64,
    failures: u64,
    last_error: Option<String>,
}

/// How long the control plane may take over a certificate.
const ANSWER: Duration = Duration::from_secs(5);
const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// A certificate is renewed when this share of its life is over, or a little earlier, so that proxies
/// that started together do not all ask together.
const RENEW_AT: f64 = 0.7;
const JITTER: f64 = 0.1;
const RENEW_AFTER: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(10)..=Duration::from_secs(24 * 60 * 60);

impl Identity {
    /// Who `config` says this proxy is, without a certificate yet.
    pub(crate) fn new(config: &IdentityConfig) -> Self {
        let kept = config.state_dir.as_deref().and_then(roots::kept);
        let inner = Inner {
            id: config.id.clone(),
            control_plane: config.control_plane.clone(),
            credentials: watch::Sender::new(None),
            bundle: Mutex::new(kept.unwrap_or_else(|| config.trust_bundle.clone())),
            account: Mutex::default(),
        };
        Self { inner: Some(Arc::new(inner)) }
    }

    /// Begins to get certificates, on the current runtime.
    pub(crate) fn keep(
        &self,
        config: &IdentityConfig,
        client: ControlClient,
        metrics: IdentityMetrics,
    ) {
        let Some(identity) = self.inner.clone() else { return };
        let keeper = Keeper {
            identity,
            key: Key::generate(),
            chain: None,
            token_file: config.token_file.clone(),
            state_dir: config.state_dir.clone(),
            client,
            metrics,
        };
        tokio::spawn(keeper.run());
    }

    /// Takes these into use, as if the control plane had certified them.
    #[cfg(test)]
    pub(crate) fn certify(&self, credentials: Credentials) {
        if let Some(inner) = &self.inner {
            inner.credentials.send_replace(Some(Arc::new(credentials)));
        }
    }

    /// Who the control plane must prove to be.
    pub(crate) fn control_plane(&self) -> Option<&Id> {
        self.inner.as_ref().map(|inner| &inner.control_plane)
    }

    /// The roots to trust now.
    pub(crate) fn bundle(&self) -> Option<TrustBundle> {
        Some(self.inner.as_ref()?.bundle.lock().clone())
    }

    /// What this proxy is called; `None` if it has no identity.
    pub(crate) fn id(&self) -> Option<&Id> {
        self.inner.as_ref().map(|inner| &inner.id)
    }

    /// What to use for a handshake now; `None` until there is a first certificate.
    pub(crate) fn credentials(&self) -> Option<Arc<Credentials>> {
        self.inner.as_ref()?.credentials.borrow().clone()
    }

    /// Returns once there is a first certificate, or if none is wanted.
    pub(crate) async fn certified(&self) {
        if let Some(inner) = &self.inner {
            // The sender is in `inner`.
            let _ = inner.credentials.subscribe().wait_for(Option::is_some).await;
        }
    }

    /// For `/config`: certificates in use, roots trusted.
    pub(crate) fn describe(&self) -> Value {
        let Some(inner) = &self.inner else { return Value::Null };
        let credentials = self.credentials();
        let certificate = credentials.as_ref().map(|credentials| {
            let certificate = credentials.certificate();
            json!({
                "serial": certificate.serial,
                "issuer": certificate.issuer,
                "not_before": unix_seconds(certificate.not_before),
                "not_after": unix_seconds(certificate.not_after),
            })
        });
        let roots = credentials.map(|credentials| credentials.bundle().fingerprints());
        let account = inner.account.lock();
        json!({
            "id": inner.id.as_str(),
            "certificate": certificate,
            "roots": roots.unwrap_or_default(),
            "renewals": account.renewals,
            "failures": account.failures,
            "last_error": account.last_error,
        })
    }
}

/// The task that keeps the credentials current.
struct Keeper {
    identity: Arc<Inner>,
    key: Key,
    /// Of the last certificate, leaf first.
    chain: Option<Vec<Vec<u8>>>,
    token_file: PathBuf,
    state_dir: Option<PathBuf>,
    client: ControlClient,
    metrics: IdentityMetrics,
}

impl Keeper {
    async fn run(mut self) {
        let (bundles, mut bundle) = watch::channel(self.identity.bundle.lock().clone());
        tokio::spawn(follow_bundle(self.client.clone(), bundles));
        let mut backoff = MIN_BACKOFF;
        loop {
            let wait = match self.renew().await {
                Ok(renew_after) => {
                    backoff = MIN_BACKOFF;
                    renew_after
                }
                Err(error) => {
                    tracing::warn!(id = %self.identity.id, %error, "no certificate");
                    let mut account = self.identity.account.lock();
                    account.failures += 1;
                    account.last_error = Some(error);
                    drop(account);
                    let wait = backoff.mul_f64(rand::random_range(0.9..=1.1));
                    backoff = (backoff * 2).min(MAX_BACKOFF);
                    wait
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                // Whatever the control plane says anew about roots, certificates may have to change
                // with it: the issuer does when a root is replaced.
                Ok(()) = bundle.changed() => {
                    self.trust(bundle.borrow_and_update().clone());
                }
            }
        }
    }

    /// Takes new roots into use, at once if the certificate in use is valid under them.
    fn trust(&mut self, bundle: TrustBundle) {
        if let Some(folder) = &self.state_dir {
            roots::keep(folder, &bundle);
        }
        *self.identity.bundle.lock() = bundle;
        if let Some(chain) = &self.chain
            && let Err(error) = self.publish(chain)
        {
            // The last ones serve until there is a certificate that fits.
            tracing::info!(%error, "the certificate in use does not fit the new trust bundle");
        }
    }

    fn publish(&self, chain: &[Vec<u8>]) -> Result<Arc<Credentials>, String> {
        let bundle = self.identity.bundle.lock().clone();
        let credentials = Credentials::new(&self.identity.id, &self.key, chain, &bundle);
        let credentials = Arc::new(credentials.map_err(|error| error.to_string())?);
        self.identity.credentials.send_replace(Some(Arc::clone(&credentials)));
        Ok(credentials)
    }

    /// Gets a new certificate and takes it into use; says when the next one is due.
    async fn renew(&mut self) -> Result<Duration, String> {
        let id = self.identity.id.clone();
        let token = read_token(&self.token_file)?;
        let request = self.key.request(&id);
        let certify = self.client.certify(id.as_str(), &token, request);
        let certified = match tokio::time::timeout(ANSWER, certify).await {
            Ok(Ok(certified)) => certified,
            Ok(Err(status)) => return Err(format!("the control plane refused: {status}")),
            Err(_) => return Err(format!("the control plane has not answered within {ANSWER:?}")),
        };
        let mut chain = vec![certified.leaf];
        chain.extend(certified.intermediates);
        let credentials = self.publish(&chain)?;
        self.chain = Some(chain);
        let not_after = credentials.certificate().not_after;
        self.metrics.refreshed(unix_seconds(SystemTime::now()), unix_seconds(not_after));
        let mut account = self.identity.account.lock();
        account.renewals += 1;
        account.last_error = None;
        drop(account);
        tracing::info!(%id, serial = credentials.certificate().serial, "certified");
        let left = not_after.duration_since(SystemTime::now()).unwrap_or_default();
        let share = RENEW_AT * (1.0 - rand::random_range(0.0..=JITTER));
        Ok(left.mul_f64(share).clamp(*RENEW_AFTER.start(), *RENEW_AFTER.end()))
    }
}

/// Reads the token anew each time: Kubernetes replaces it before it expires. The file is small and in
/// memory, and nothing of the data path runs on this thread.
pub(crate) fn read_token(path: &Path) -> Result<String, String> {
    const MAX: u64 = 64 * 1024;
    let mut token = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX).read_to_string(&mut token));
    read.map_err(|error| format!("reading {}: {error}", path.display()))?;
    Ok(token.trim().to_owned())
}

/// Hears of the roots to trust; a control plane that does not tell leaves those it was started with.
async fn follow_bundle(client: ControlClient, bundles: watch::Sender<TrustBundle>) {
    let mut backoff = MIN_BACKOFF;
    while !bundles.is_closed() {
        if let Ok(stream) = client.watch_trust_bundle().await
            && read_bundles(stream, &bundles).await
        {
            backoff = MIN_BACKOFF;
        }
        tokio::time::sleep(backoff.mul_f64(rand::random_range(0.9..=1.1))).await;
        backoff = (backoff * 2).min(MAX_BACKOFF);
    }
}

/// Whether anything came before the stream ended.
async fn read_bundles(
    mut stream: UpdateStream<String>,
    bundles: &watch::Sender<TrustBundle>,
) -> bool {
    let mut first = true;
    while let Some(Ok(update)) = stream.next().await {
        let bundle = match update {
            Update::Valid(pem) => TrustBundle::from_pem(&pem).map_err(|error| error.to_string()),
            Update::Invalid(error) => Err(error.to_string()),
        };
        match bundle {
            // A new stream begins with what is known. Said again later, it means that certificates
            // are to be renewed: another issuer signs now.
            Ok(bundle) => {
                let begins = std::mem::take(&mut first);
                bundles.send_if_modified(|known| {
                    let news = !begins || *known != bundle;
                    *known = bundle;
                    news
                });
            }
            Err(error) => tracing::warn!(%error, "a trust bundle was not taken"),
        }
    }
    !first
}

fn unix_seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
