//! The webhook that pods of the mesh pass.

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;

use super::Installation;
use crate::args::MESH_NAMESPACE;

pub(super) fn filled_in(
    mut webhook: MutatingWebhookConfiguration,
    installation: &Installation,
) -> MutatingWebhookConfiguration {
    for hook in webhook.webhooks.iter_mut().flatten() {
        let policy = installation.values.injector.failure_policy.as_str();
        hook.failure_policy = Some(policy.to_owned());
        if let Some(service) = &mut hook.client_config.service {
            service.namespace.clone_from(&installation.namespace);
        }
        // The control plane would wait for itself.
        let selector = hook.namespace_selector.iter_mut();
        for requirement in
            selector.flat_map(|selector| selector.match_expressions.iter_mut().flatten())
        {
            for value in
                requirement.values.iter_mut().flatten().filter(|value| *value == MESH_NAMESPACE)
            {
                value.clone_from(&installation.namespace);
            }
        }
    }
    webhook
}
