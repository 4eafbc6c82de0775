//! Keeps the Secret, the `caBundle` and what is served in agreement.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::{Stream, StreamExt};
use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, PatchOperation, TestOperation};
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::core::ObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Error};

use super::{Pair, PairError, Serving};

/// Where the certificate is kept.
pub const SECRET: &str = "mesh-webhook-cert";
/// The configuration whose `caBundle` is kept right.
pub const WEBHOOK: &str = "mesh-injector";

/// Looks again although nothing seems to have changed: certificates age.
const RESCAN: Duration = Duration::from_secs(600);
/// After a failure.
const RETRY: Duration = Duration::from_secs(5);
/// Every other replica may have written in between.
const ATTEMPTS: usize = 5;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Keeps a webhook's certificate.
#[derive(Clone)]
pub struct Keeper {
    pub client: Client,
    /// Of the Secret.
    pub namespace: String,
    /// Of the MutatingWebhookConfiguration; [`WEBHOOK`].
    pub webhook: String,
    /// By which API servers call us.
    pub names: Vec<String>,
    pub serving: Arc<Serving>,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").field("names", &self.names).finish_non_exhaustive()
    }
}

#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error("Secret {SECRET}: {0}")]
    Secret(#[source] Error),
    #[error("MutatingWebhookConfiguration {name}: {source}")]
    Webhook { name: String, source: Error },
    #[error(transparent)]
    Pair(#[from] PairError),
    #[error("the API server did not answer in time")]
    Late,
    #[error("other replicas keep writing Secret {SECRET}")]
    Contended,
}

impl Keeper {
    /// Never returns.
    pub async fn run(self) {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let webhooks: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
        let mut secrets = pin!(changes(watcher(secrets, named(SECRET))));
        let mut webhooks = pin!(changes(watcher(webhooks, named(&self.webhook))));
        loop {
            let kept = tokio::time::timeout(REQUEST_TIMEOUT, self.keep()).await;
            let pause = match kept.unwrap_or(Err(KeepError::Late)) {
                Ok(()) => RESCAN,
                Err(error) => {
                    tracing::warn!(%error, "cannot keep the webhook's certificate");
                    RETRY
                }
            };
            let mut pause = pin!(tokio::time::sleep(pause));
            tokio::select! {
                () = &mut pause => {}
                Some(()) = secrets.next() => {}
                Some(()) = webhooks.next() => {}
            }
        }
    }

    async fn keep(&self) -> Result<(), KeepError> {
        let pair = self.pair().await?;
        // Serving nothing is worse than serving what is not trusted yet.
        if self.serving.config().is_none() {
            self.serving.install(&pair);
        }
        self.tell(&pair).await?;
        self.serving.install(&pair);
        Ok(())
    }

    /// The pair of the Secret, which is written if need be.
    async fn pair(&self) -> Result<Pair, KeepError> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        for _ in 0..ATTEMPTS {
            let have = secrets.get_opt(SECRET).await.map_err(KeepError::Secret)?;
            let before = have.as_ref().and_then(|secret| match read(secret) {
                Ok(pair) => Some(pair),
                Err(error) => {
                    tracing::warn!(%error, "Secret {SECRET} is written anew");
                    None
                }
            });
            if let Some(pair) = &before
                && pair.is_good(&self.names, SystemTime::now())
            {
                return Ok(pair.clone());
            }
            let pair = Pair::generate(&self.names, before.as_ref())?;
            let written = match have {
                None => secrets.create(&PostParams::default(), &self.secret(&pair)).await,
                Some(have) => {
                    let mut secret = self.secret(&pair);
                    // Whoever wrote in between wins, and is read in the next turn.
                    secret.metadata.resource_version = have.metadata.resource_version;
                    secret.metadata.labels = have.metadata.labels.or(secret.metadata.labels);
                    secret.metadata.annotations = have.metadata.annotations;
                    secret.metadata.owner_references = have.metadata.owner_references;
                    // It cannot be changed.
                    secret.type_ = have.type_;
                    secrets.replace(SECRET, &PostParams::default(), &secret).await
                }
            };
            match written {
                Ok(_) => {
                    tracing::info!(names = ?self.names, "made a certificate for the webhook");
                    return Ok(pair);
                }
                Err(Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                Err(error) => return Err(KeepError::Secret(error)),
            }
        }
        Err(KeepError::Contended)
    }

    fn secret(&self, pair: &Pair) -> Secret {
        let data =
            [("ca.crt", &pair.authorities), ("tls.crt", &pair.certificate), ("tls.key", &pair.key)];
        let data =
            data.map(|(key, value)| (key.to_owned(), ByteString(value.clone().into_bytes())));
        let label = ("app.kubernetes.io/managed-by".to_owned(), "mesh-control".to_owned());
        Secret {
            metadata: ObjectMeta {
                name: Some(SECRET.into()),
                namespace: Some(self.namespace.clone()),
                labels: Some([label].into()),
                ..ObjectMeta::default()
            },
            type_: Some("kubernetes.io/tls".into()),
            data: Some(data.into()),
            ..Secret::default()
        }
    }

    /// Writes the `caBundle` of each webhook that has another one.
    async fn tell(&self, pair: &Pair) -> Result<(), KeepError> {
        let webhooks: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
        let error = |source| KeepError::Webhook { name: self.webhook.clone(), source };
        let Some(configuration) = webhooks.get_opt(&self.webhook).await.map_err(error)? else {
            // It may be applied after us; the watch tells.
            return Ok(());
        };
        let operations = bundle_patch(&configuration, &pair.authorities);
        if operations.is_empty() {
            return Ok(());
        }
        let patch: Patch<MutatingWebhookConfiguration> = Patch::Json(json_patch::Patch(operations));
        match webhooks.patch(&self.webhook, &PatchParams::default(), &patch).await {
            Ok(_) => tracing::info!(name = self.webhook, "told the API server of the certificate"),
            // It is another one by now, of which the watch tells.
            Err(Error::Api(status)) if matches!(status.code, 404 | 409 | 422) => {}
            Err(source) => return Err(error(source)),
        }
        Ok(())
    }
}

/// What makes the bundle of every webhook this one. Each is named, lest it be another's.
pub(super) fn bundle_patch(
    configuration: &MutatingWebhookConfiguration,
    bundle: &str,
) -> Vec<PatchOperation> {
    let mut operations = Vec::new();
    for (at, webhook) in configuration.webhooks.iter().flatten().enumerate() {
        let have = webhook.client_config.ca_bundle.as_ref();
        if have.is_some_and(|have| have.0 == bundle.as_bytes()) {
            continue;
        }
        let (at, name) = (at.to_string(), serde_json::Value::from(webhook.name.as_str()));
        let path = |rest: &[&str]| {
            PointerBuf::from_tokens(
                ["webhooks", at.as_str()].into_iter().chain(rest.iter().copied()),
            )
        };
        operations.push(PatchOperation::Test(TestOperation { path: path(&["name"]), value: name }));
        let value = serde_json::to_value(ByteString(bundle.as_bytes().into())).unwrap_or_default();
        let path = path(&["clientConfig", "caBundle"]);
        operations.push(PatchOperation::Add(AddOperation { path, value }));
    }
    operations
}

fn read(secret: &Secret) -> Result<Pair, PairError> {
    let text = |what: &'static str| {
        let bytes = secret.data.as_ref().and_then(|data| data.get(what));
        let text = bytes.and_then(|bytes| String::from_utf8(bytes.0.clone()).ok());
        text.ok_or_else(|| PairError::Pem { what, error: "it is not there".into() })
    };
    Pair::read(text("ca.crt")?, text("tls.crt")?, text("tls.key")?)
}

fn named(name: &str) -> watcher::Config {
    watcher::Config::default().fields(&format!("metadata.name={name}"))
}

/// An item for each change. What changed is read when it is needed.
fn changes<K: Send>(
    stream: impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send,
) -> impl Stream<Item = ()> {
    stream.default_backoff().filter_map(|event| {
        let news = match event {
            Ok(
                watcher::Event::Apply(_) | watcher::Event::Delete(_) | watcher::Event::InitApply(_),
            ) => Some(()),
            Ok(watcher::Event::Init | watcher::Event::InitDone) => None,
            Err(error) => {
                tracing::debug!(%error, "a watch of the webhook failed");
                None
            }
        };
        std::future::ready(news)
    })
}
