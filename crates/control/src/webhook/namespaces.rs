//! The namespace of a pod: from the index, or from the API server when that may be late.

use k8s_openapi::api::core::v1::Namespace;
use kube::Api;

use super::Webhook;
use super::review::Asked;
use crate::inject::{INJECT, NamespaceMeta, Settings};

impl Webhook {
    /// The namespace of a pod, as far as it matters.
    ///
    /// API servers call us for pods of labelled namespaces, or labelled pods. When neither seems to be
    /// labelled, a label has been set a moment ago and the index does not know yet.
    pub(super) async fn namespace(
        &self,
        asked: &Asked,
        settings: &Settings,
    ) -> Result<NamespaceMeta, kube::Error> {
        let known = self.shared.index.read().objects().namespace(&asked.namespace).map(|known| {
            NamespaceMeta {
                name: known.name.clone(),
                labels: known.labels.clone(),
                annotations: known.annotations.clone(),
            }
        });
        let pods_own = asked.meta.labels.as_ref().is_some_and(|labels| labels.contains_key(INJECT));
        let enough = known.as_ref().is_some_and(|known| {
            pods_own
                || known.labels.get(INJECT).is_some_and(|value| value == "enabled")
                || known.name == settings.names.control_namespace
        });
        if let (Some(known), true) = (known, enough) {
            return Ok(known);
        }
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        // A dry run may be about a namespace that is not there either.
        let found = namespaces.get_opt(&asked.namespace).await?;
        let meta = found.map(|found| found.metadata).unwrap_or_default();
        Ok(NamespaceMeta {
            name: asked.namespace.clone(),
            labels: meta.labels.unwrap_or_default(),
            annotations: meta.annotations.unwrap_or_default(),
        })
    }
}
