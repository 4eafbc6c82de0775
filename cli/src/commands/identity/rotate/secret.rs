//! The authority of a mesh in a cluster: the Secret that its control planes follow, and a second one for the next
//! generation while there is one.
//!
//! Each change is of the Secret as it was read: of two who rotate at a time one is told so. And each is made for the
//! root that the second one holds: whoever has waited for the proxies of another root is told so, too.

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use mesh_tls::Issuer;

use super::keeper::Keeper;
use crate::cluster::{Cluster, NEXT_ISSUER as NEXT};
use crate::error::CliError;
use crate::local::authority::{Generated, Generation, Root, roots_of};

/// Where the present generation is, as the control plane has it.
const PRESENT: &str = mesh_control::identity::secret::NAME;

const ROOTS: &str = "ca.crt";
const CHAIN: &str = "tls.crt";
const KEY: &str = "tls.key";
const TYPE: &str = "kubernetes.io/tls";

pub(super) struct IssuerSecret<'a> {
    cluster: &'a Cluster,
    secrets: Api<Secret>,
}

impl<'a> IssuerSecret<'a> {
    /// That of a mesh which has one.
    pub(super) async fn of(cluster: &'a Cluster) -> Result<Self, CliError> {
        let secrets = Api::namespaced(cluster.client.clone(), &cluster.mesh_namespace);
        let this = Self { cluster, secrets };
        this.present().await?;
        Ok(this)
    }

    async fn get(&self, name: &str) -> Result<Option<Secret>, CliError> {
        let doing = format!("read the Secret {name}");
        self.cluster.ask(&doing, self.secrets.get_opt(name)).await
    }

    async fn present(&self) -> Result<Secret, CliError> {
        self.get(PRESENT).await?.ok_or_else(|| {
            let namespace = &self.cluster.mesh_namespace;
            CliError::failed(format!("the mesh has no Secret {namespace}/{PRESENT}"))
                .hint("meshctl check, which says whether the mesh has identities")
        })
    }

    /// The next generation, if there is one.
    async fn next(&self) -> Result<Option<Secret>, CliError> {
        self.get(NEXT).await
    }

    /// Writes a Secret that was read before.
    async fn replace(&self, secret: &Secret) -> Result<(), CliError> {
        let name = secret.metadata.name.clone().unwrap_or_default();
        let doing = format!("change the Secret {name}");
        let by = PostParams::default();
        let written = async {
            match self.secrets.replace(&name, &by, secret).await {
                Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
                written => written.map(|_| true),
            }
        };
        match self.cluster.change(&doing, written).await? {
            true => Ok(()),
            false => {
                Err(CliError::failed(format!("somebody else has just changed the Secret {name}"))
                    .hint("meshctl identity rotate once more, which goes on where it is"))
            }
        }
    }

    async fn write_roots(&self, mut present: Secret, roots: &[Root]) -> Result<(), CliError> {
        let text: String = roots.iter().map(Root::pem).collect();
        data(&mut present).insert(ROOTS.into(), ByteString(text.into_bytes()));
        self.replace(&present).await
    }

    /// The next generation, if it is still that of the root. What is to be changed then has to be read before:
    /// another rotation that begins afterwards changes it first.
    async fn next_of(&self, root: &Root) -> Result<Secret, CliError> {
        let next = self.next().await?.filter(|next| {
            let roots = roots_in(next).unwrap_or_default();
            roots.last().is_some_and(|have| have.fingerprint == root.fingerprint)
        });
        next.ok_or_else(|| {
            let namespace = &self.cluster.mesh_namespace;
            let root = &root.certificate.subject;
            CliError::failed(format!(
                "the Secret {namespace}/{NEXT} does not hold the root {root} any more: somebody else rotates, too"
            ))
            .hint("meshctl identity, which tells the roots; once the other rotation has ended, rotate again if need be")
        })
    }
}

impl Keeper for IssuerSecret<'_> {
    async fn roots(&self) -> Result<Vec<Root>, CliError> {
        roots_in(&self.present().await?)
    }

    async fn issuer(&self) -> Result<Issuer, CliError> {
        issuer_in(&self.present().await?)
    }

    async fn prepare(&self) -> Result<Generation, CliError> {
        let next = match self.next().await? {
            Some(next) => next,
            None => {
                let made = Generated::new()?;
                let parts = [(ROOTS, made.root), (CHAIN, made.issuer), (KEY, made.issuer_key)];
                let mut next = Secret { type_: Some(TYPE.into()), ..Secret::default() };
                next.metadata.name = Some(NEXT.into());
                next.metadata.labels = self.present().await?.metadata.labels;
                data(&mut next).extend(
                    parts.map(|(name, text)| (name.to_owned(), ByteString(text.into_bytes()))),
                );
                let by = PostParams::default();
                self.cluster
                    .change(&format!("make the Secret {NEXT}"), self.secrets.create(&by, &next))
                    .await?
            }
        };
        let root = roots_in(&next)?.pop();
        let root = root.ok_or_else(|| in_secret(&next, ROOTS, &"there is no certificate"))?;
        Ok(Generation { root, issuer: issuer_in(&next)? })
    }

    async fn trust(&self, root: &Root) -> Result<(), CliError> {
        let present = self.present().await?;
        let mut roots = roots_in(&present)?;
        if roots.iter().any(|have| have.fingerprint == root.fingerprint) {
            return Ok(());
        }
        roots.push(root.clone());
        self.write_roots(present, &roots).await
    }

    async fn trust_only(&self, root: &Root) -> Result<(), CliError> {
        let present = self.present().await?;
        self.next_of(root).await?;
        self.write_roots(present, std::slice::from_ref(root)).await
    }

    async fn switch_issuer(&self, root: &Root) -> Result<(), CliError> {
        let mut present = self.present().await?;
        let mut next = self.next_of(root).await?;
        for part in [CHAIN, KEY] {
            let value = data(&mut next).get(part).cloned().unwrap_or_default();
            data(&mut present).insert(part.into(), value);
        }
        self.replace(&present).await
    }

    async fn finish(&self, root: &Root) -> Result<(), CliError> {
        // Somebody who went on with the same rotation has ended it.
        if self.next().await?.is_none() {
            return Ok(());
        }
        let next = self.next_of(root).await?;
        let this = Preconditions { uid: next.metadata.uid, resource_version: None };
        let gone = async {
            match self.secrets.delete(NEXT, &DeleteParams::default().preconditions(this)).await {
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
                gone => gone.map(drop),
            }
        };
        self.cluster.change(&format!("delete the Secret {NEXT}"), gone).await
    }
}

fn data(secret: &mut Secret) -> &mut BTreeMap<String, ByteString> {
    secret.data.get_or_insert_default()
}

fn text<'a>(secret: &'a Secret, part: &str) -> Result<&'a str, CliError> {
    let value = secret.data.as_ref().and_then(|data| data.get(part));
    let value = value.ok_or_else(|| in_secret(secret, part, &"is missing"))?;
    std::str::from_utf8(&value.0).map_err(|error| in_secret(secret, part, &error))
}

fn roots_in(secret: &Secret) -> Result<Vec<Root>, CliError> {
    let name = format!("Secret/{}/{ROOTS}", secret.metadata.name.as_deref().unwrap_or_default());
    roots_of(Path::new(&name), text(secret, ROOTS)?)
}

fn issuer_in(secret: &Secret) -> Result<Issuer, CliError> {
    Issuer::from_pem(text(secret, CHAIN)?, text(secret, KEY)?)
        .map_err(|error| in_secret(secret, CHAIN, &error))
}

fn in_secret(secret: &Secret, part: &str, why: &dyn std::fmt::Display) -> CliError {
    let name = secret.metadata.name.as_deref().unwrap_or_default();
    CliError::failed(format!("Secret/{name}, {part}: {why}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::objects::Objects;

    async fn mesh() -> (Objects, Cluster) {
        let made = Generated::new().unwrap();
        let secret = Secret {
            data: Some(
                [(ROOTS, made.root), (CHAIN, made.issuer), (KEY, made.issuer_key)]
                    .map(|(part, text)| (part.to_owned(), ByteString(text.into_bytes())))
                    .into(),
            ),
            ..Secret::default()
        };
        let mut secret: Value = serde_json::to_value(secret).unwrap();
        secret["metadata"] =
            json!({ "name": PRESENT, "namespace": "mesh-system", "resourceVersion": "1" });
        let objects = Objects::start([secret]).await;
        let cluster = objects.cluster().await;
        (objects, cluster)
    }

    #[tokio::test]
    async fn a_generation_follows_the_other_step_by_step() {
        let (objects, cluster) = mesh().await;
        let secret = IssuerSecret::of(&cluster).await.unwrap();
        let old = secret.roots().await.unwrap();
        let next = secret.prepare().await.unwrap();
        let again = secret.prepare().await.unwrap();
        assert_eq!(again.root.fingerprint, next.root.fingerprint, "it goes on with the same");

        secret.trust(&next.root).await.unwrap();
        secret.trust(&next.root).await.unwrap();
        assert_eq!(secret.roots().await.unwrap().len(), 2);
        assert_ne!(secret.issuer().await.unwrap().certificate(), next.issuer.certificate());
        secret.switch_issuer(&next.root).await.unwrap();
        assert_eq!(secret.issuer().await.unwrap().certificate(), next.issuer.certificate());
        secret.trust_only(&next.root).await.unwrap();
        let roots = secret.roots().await.unwrap();
        assert_eq!(roots.len(), 1);
        assert_ne!(roots[0].fingerprint, old[0].fingerprint);
        secret.finish(&next.root).await.unwrap();
        assert!(objects.get(&format!("mesh-system/Secret/{NEXT}")).is_none());
    }

    #[tokio::test]
    async fn of_two_who_change_it_one_is_told() {
        let (_objects, cluster) = mesh().await;
        let secret = IssuerSecret::of(&cluster).await.unwrap();
        let before = secret.present().await.unwrap();
        let next = secret.prepare().await.unwrap();
        secret.trust(&next.root).await.unwrap();
        let error = secret.replace(&before).await.unwrap_err();
        assert!(error.message.starts_with("somebody else has just changed"), "{error}");
    }

    #[tokio::test]
    async fn who_was_overtaken_by_another_rotation_changes_nothing() {
        let (objects, cluster) = mesh().await;
        let secret = IssuerSecret::of(&cluster).await.unwrap();
        let mine = secret.prepare().await.unwrap();
        secret.trust(&mine.root).await.unwrap();
        // Somebody goes on with it, to the end, and begins another one.
        secret.switch_issuer(&mine.root).await.unwrap();
        secret.trust_only(&mine.root).await.unwrap();
        secret.finish(&mine.root).await.unwrap();
        secret.finish(&mine.root).await.unwrap();
        let gone = secret.trust_only(&mine.root).await.unwrap_err();
        let other = secret.prepare().await.unwrap();
        secret.trust(&other.root).await.unwrap();

        let of = |name: &str| objects.get(&format!("mesh-system/Secret/{name}")).unwrap();
        let before = (of(PRESENT), of(NEXT));
        for error in [
            gone,
            secret.switch_issuer(&mine.root).await.unwrap_err(),
            secret.trust_only(&mine.root).await.unwrap_err(),
            secret.finish(&mine.root).await.unwrap_err(),
        ] {
            assert!(error.message.contains("mesh-system/mesh-identity-next"), "{error}");
            assert!(error.hint.unwrap().contains("meshctl identity"));
        }
        assert_eq!((of(PRESENT), of(NEXT)), before);
    }

    #[tokio::test]
    async fn a_mesh_without_identities_is_told_so() {
        let cluster = Objects::start([]).await.cluster().await;
        let error = IssuerSecret::of(&cluster).await.err().unwrap();
        assert!(error.message.contains("mesh-system/mesh-identity-issuer"), "{error}");
    }
}
