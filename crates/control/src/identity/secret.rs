//! The Secret with the mesh's issuer in a cluster: made if there is none, and followed like the files of
//! [`folder`].
//!
//! It is read from the API server and not from a mounted volume: a volume can't be mounted before the
//! Secret is there, and shows a change a minute late. The keys are those of type `kubernetes.io/tls`
//! with `ca.crt` for the roots, as cert-manager writes them.
//!
//! # Rights it needs
//!
//! | in | on | verbs | for |
//! |---|---|---|---|
//! | control namespace | `secrets`, name `mesh-identity-issuer` | list, watch | the issuer |
//! | control namespace | `secrets` | create | the same, the first time |

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, PostParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};

use super::Authority;
use super::folder::{self, Loaded, Part};
use crate::source::{Problem, Severity};
use crate::state::Shared;

/// The Secret's name.
pub const NAME: &str = "mesh-identity-issuer";

const FIELD_MANAGER: &str = "mesh-control";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Nobody keeps its key, so that its long life is of no use to anybody.
const ROOT_LIFETIME: Duration = DAY.saturating_mul(3650);
const ISSUER_LIFETIME: Duration = DAY.saturating_mul(365);
/// Certificates expire without an event, and what could not be made is tried again.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Keeps the authority as the Secret says. Never returns.
pub async fn run(authority: Arc<Authority>, shared: Arc<Shared>, client: Client) {
    let names = authority.settings().names.clone();
    let namespace = names.control_namespace.as_str();
    let secrets: Api<Secret> = Api::namespaced(client, namespace);
    let only_ours = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
    let mut events = std::pin::pin!(watcher(secrets.clone(), only_ours).default_backoff());
    let mut found = None;
    // Of the Secrets that there are; one that was seen and deleted is not made anew.
    let mut all_seen = false;
    loop {
        match tokio::time::timeout(LOOK_AGAIN, events.next()).await {
            Ok(Some(Ok(Event::Init))) => (found, all_seen) = (None, false),
            Ok(Some(Ok(Event::InitApply(secret) | Event::Apply(secret)))) => found = Some(secret),
            Ok(Some(Ok(Event::InitDone))) => all_seen = true,
            Ok(Some(Ok(Event::Delete(_)))) => {
                // A new one would make strangers of all pods. Somebody may be about to replace it.
                let gone = "it was deleted; what it held is used until this process ends";
                shared.set_identity_problems(vec![problem(namespace, "", &gone)]);
                found = None;
                continue;
            }
            Ok(Some(Err(error))) => {
                let text = error.to_string();
                shared.set_identity_problems(vec![problem(namespace, "", &text)]);
                continue;
            }
            // The stream of a watcher does not end.
            Ok(None) => std::future::pending().await,
            Err(_) => {}
        }
        match &found {
            Some(secret) => {
                folder::take(&authority, &shared, load(namespace, secret));
            }
            // The watch tells of it when it is made, by us or by another replica.
            None if all_seen && authority.issuer().is_none() => {
                if let Err(error) = make(&secrets, &names.trust_domain).await {
                    let text = format!("it can't be made: {error}");
                    shared.set_identity_problems(vec![problem(namespace, "", &text)]);
                }
            }
            None => {}
        }
    }
}

/// Reads the Secret.
///
/// # Errors
/// What is wrong, and with which key.
pub fn load(namespace: &str, secret: &Secret) -> Result<Loaded, Problem> {
    let data = secret.data.clone().unwrap_or_default();
    let text = |key: &str| {
        let bytes = data.get(key).ok_or_else(|| problem(namespace, key, &"it is missing"))?;
        String::from_utf8(bytes.0.clone()).map_err(|_| problem(namespace, key, &"it is not PEM"))
    };
    let (roots, chain, key) = (text("ca.crt")?, text("tls.crt")?, text("tls.key")?);
    Loaded::new(roots, &chain, &key).map_err(|(part, why)| {
        let key = match part {
            Part::Roots => "ca.crt",
            Part::Issuer => "tls.crt",
        };
        problem(namespace, key, &why)
    })
}

/// Makes a root and an issuer, and throws the root's key away. If there is a Secret by now, that one it is.
async fn make(secrets: &Api<Secret>, trust_domain: &str) -> Result<(), MakeError> {
    let root = mesh_tls::Root::generate(trust_domain, ROOT_LIFETIME, ISSUER_LIFETIME)?;
    let bytes = |text: String| ByteString(text.into_bytes());
    let data = [("ca.crt", root.root), ("tls.crt", root.issuer), ("tls.key", root.issuer_key)];
    let secret = Secret {
        metadata: ours(NAME),
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(data.map(|(name, text)| (name.to_owned(), bytes(text))).into()),
        ..Secret::default()
    };
    let params =
        PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
    match secrets.create(&params, &secret).await {
        Ok(_) => {
            tracing::info!(secret = NAME, "made a root and an issuer; nobody has the root's key");
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[derive(Debug, thiserror::Error)]
enum MakeError {
    #[error(transparent)]
    Generate(#[from] mesh_tls::IssuerError),
    #[error(transparent)]
    Create(#[from] kube::Error),
}

fn ours(name: &str) -> ObjectMeta {
    let labels =
        [("app.kubernetes.io/part-of", "mesh"), ("app.kubernetes.io/managed-by", FIELD_MANAGER)];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
    ObjectMeta { name: Some(name.to_owned()), labels: Some(labels.into()), ..ObjectMeta::default() }
}

fn problem(namespace: &str, key: &str, message: &dyn std::fmt::Display) -> Problem {
    Problem {
        severity: Severity::Error,
        object: format!("Secret/{namespace}/{NAME}"),
        file: None,
        line: 0,
        field: if key.is_empty() { String::new() } else { format!("data[{key}]") },
        message: message.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use k8s_openapi::api::core::v1::Namespace;

    use super::*;
    use crate::identity::tokens::LocalTokens;
    use crate::identity::{Origin, Settings};
    use crate::index::identity::MeshNames;

    fn secret(root: &mesh_tls::Root) -> Secret {
        let data =
            [("ca.crt", &root.root), ("tls.crt", &root.issuer), ("tls.key", &root.issuer_key)];
        let bytes =
            |(name, text): (&str, &String)| (name.to_owned(), ByteString(text.clone().into()));
        Secret { data: Some(data.map(bytes).into()), ..Secret::default() }
    }

    #[test]
    fn what_is_wrong_is_told_by_key() {
        let root = mesh_tls::Root::generate("cluster.local", DAY, DAY).unwrap();
        assert!(load("mesh-system", &secret(&root)).is_ok());
        for (key, value) in [
            ("ca.crt", None),
            ("tls.key", None),
            ("ca.crt", Some(&b"\xff"[..])),
            ("ca.crt", Some(b"nothing")),
            ("tls.crt", Some(b"nothing")),
        ] {
            let mut secret = secret(&root);
            let data = secret.data.get_or_insert_default();
            match value {
                Some(value) => drop(data.insert(key.to_owned(), ByteString(value.to_vec()))),
                None => drop(data.remove(key)),
            }
            let problem = load("mesh-system", &secret).unwrap_err();
            assert_eq!(problem.field, format!("data[{key}]"), "{problem}");
            assert_eq!(problem.object, "Secret/mesh-system/mesh-identity-issuer");
        }
    }

    #[test]
    fn an_issuer_of_another_root_is_refused() {
        let [one, two] =
            ["one", "two"].map(|name| mesh_tls::Root::generate(name, DAY, DAY).unwrap());
        let mut mixed = secret(&one);
        mixed.data.get_or_insert_default().insert("ca.crt".into(), ByteString(two.root.into()));
        assert_eq!(load("mesh-system", &mixed).unwrap_err().field, "data[tls.crt]");
    }

    /// With an API server of one's own choice; there is none in a test.
    #[tokio::test]
    async fn a_missing_secret_is_made_once_and_changes_are_followed() {
        let Some(file) = std::env::var_os("MESH_TEST_KUBECONFIG") else {
            let _ = writeln!(std::io::stderr(), "SKIPPED: MESH_TEST_KUBECONFIG names no cluster");
            return;
        };
        let kubeconfig = kube::config::Kubeconfig::read_from(file).unwrap();
        let config = kube::Config::try_from(kubeconfig).unwrap();
        let client = Client::try_from(config).unwrap();
        let name = format!("mesh-issuer-{}", std::process::id());
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let metadata = ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() };
        let namespace = Namespace { metadata, ..Namespace::default() };
        namespaces.create(&PostParams::default(), &namespace).await.unwrap();

        let looked = follow(client.clone(), &name);
        let outcome = tokio::time::timeout(Duration::from_secs(60), looked).await;
        namespaces.delete(&name, &kube::api::DeleteParams::default()).await.unwrap();
        outcome.unwrap();
    }

    async fn follow(client: Client, namespace: &str) {
        let names = MeshNames {
            control_namespace: namespace.to_owned(),
            trust_domain: "cluster.local".to_owned(),
        };
        let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
        // Two replicas that start at once.
        let [one, two] = [(), ()].map(|()| {
            let settings = Settings { origin: Origin::Secret, names: names.clone(), lifetime: DAY };
            let tokens = LocalTokens::new("/".as_ref(), Arc::default());
            let authority = Arc::new(Authority::new(settings, Box::new(tokens)));
            tokio::spawn(run(Arc::clone(&authority), Arc::default(), client.clone()));
            authority
        });
        let serial = |authority: &Authority| {
            authority.issuer().map(|issuer| issuer.certificate().serial.clone())
        };
        let mut roots = [one.roots.subscribe(), two.roots.subscribe()];
        for roots in &mut roots {
            roots.wait_for(Option::is_some).await.unwrap();
        }
        assert_eq!(serial(&one), serial(&two));

        let next = secret(&mesh_tls::Root::generate("next", DAY, DAY).unwrap());
        let before = serial(&one);
        let patch = kube::api::Patch::Merge(&next);
        secrets.patch(NAME, &kube::api::PatchParams::default(), &patch).await.unwrap();
        for roots in &mut roots {
            roots.changed().await.unwrap();
        }
        assert!(serial(&one) == serial(&two) && serial(&one) != before);
    }
}
