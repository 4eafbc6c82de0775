//! Puts the proxy beside an application: what is added to a pod, and when.
//!
//! Pure: a pod (or a workload's template) and its namespace in, edits out. The webhook makes a JSON
//! patch of them, `meshctl inject` writes them into the text of a manifest; both are the same edits.
//! [`decide`] holds the rules, [`options`] the annotations, [`containers`] what is added.

pub mod containers;
mod decide;
pub mod edit;
pub mod options;
pub mod settings;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::PodSpec;
use kube::core::ObjectMeta;

pub use self::decide::Decided;
use self::edit::Edit;
use self::options::Options;
pub use self::settings::Settings;
use crate::source::{Finding, Severity};

/// Label or annotation of namespaces and pods: `enabled` or `disabled`.
pub const INJECT: &str = "meshctl.dev/inject";
pub const INIT_CONTAINER: &str = "mesh-init";
pub const PROXY_CONTAINER: &str = "mesh-proxy";
/// Whom the proxy runs as. Its own connections are not redirected, which is told by this id.
pub const PROXY_UID: i64 = 2102;

/// The metadata of a namespace that matter here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceMeta {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}

/// What became of a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Injected(Injection),
    /// It is not to have a proxy, or has one.
    Skipped {
        reason: String,
    },
    /// It is to have a proxy and cannot.
    Refused {
        reason: String,
    },
}

/// How a pod gets its proxy.
#[derive(Clone, Debug, PartialEq)]
pub struct Injection {
    /// Within the pod or the template, that is the object with `metadata` and `spec`.
    pub edits: Vec<Edit>,
    /// The rule that decided.
    pub rule: String,
    /// What is wrong with annotations and does not matter enough to refuse the pod.
    pub warnings: Vec<Finding>,
}

/// Decides about a pod, and says how it gets a proxy if it does.
pub fn inject(
    meta: &ObjectMeta,
    spec: &PodSpec,
    namespace: &NamespaceMeta,
    settings: &Settings,
) -> Outcome {
    let mut warnings = Vec::new();
    let rule = match decide::decide(meta, spec, namespace, settings, &mut warnings) {
        Decided::Inject { rule } => rule,
        Decided::Skip { reason } => return Outcome::Skipped { reason },
        Decided::Refuse { reason } => return Outcome::Refused { reason },
    };
    let mut options = settings.options.clone();
    // Of the namespace, what is wrong is told about the namespace, not once more for each pod.
    options.take(&namespace.annotations, &mut Vec::new());
    let own = meta.annotations.clone().unwrap_or_default();
    options.take(&own, &mut warnings);
    options.reconcile(&mut warnings);
    reservations(spec, &options, &mut warnings);
    let edits = containers::edits(meta, spec, &options, settings);
    Outcome::Injected(Injection { edits, rule, warnings })
}

/// What keeps a proxy from being of full use.
fn reservations(spec: &PodSpec, options: &Options, warnings: &mut Vec<Finding>) {
    let containers = spec.containers.iter().enumerate();
    for (at, container) in containers {
        let uid = container.security_context.as_ref().and_then(|context| context.run_as_user);
        let of_pod = spec.security_context.as_ref().and_then(|context| context.run_as_user);
        if uid.or(of_pod) == Some(PROXY_UID) {
            warnings.push(Finding::warning(
                format!("spec.containers[{at}].securityContext.runAsUser"),
                format!(
                    "{PROXY_UID} is the proxy's user: what {} sends goes past the proxy; take another",
                    container.name
                ),
            ));
        }
    }
    let policy = spec.dns_policy.as_deref();
    if matches!(policy, Some("Default" | "None")) {
        warnings.push(Finding::warning(
            "spec.dnsPolicy",
            "the proxy finds the control plane by its name in the cluster; make sure that the pod's \
             DNS servers know cluster names",
        ));
    }
    let ends = matches!(spec.restart_policy.as_deref(), Some("Never" | "OnFailure"));
    if ends && !options.native_sidecar() {
        warnings.push(Finding::warning(
            format!("metadata.annotations[{}native-sidecar]", crate::source::annotations::PREFIX),
            "the pod is to end by itself, which it does not with a plain container: leave it enabled",
        ));
    }
    if let Some(grace) = spec.termination_grace_period_seconds.and_then(|s| u64::try_from(s).ok())
        && options.shutdown_grace().is_some_and(|own| own > Duration::from_secs(grace))
    {
        warnings.push(Finding::warning(
            format!("metadata.annotations[{}shutdown-grace]", crate::source::annotations::PREFIX),
            format!(
                "is longer than terminationGracePeriodSeconds ({grace} s), after which all ends"
            ),
        ));
    }
}

/// `field: message`, for people.
pub fn warning_text(finding: &Finding) -> String {
    debug_assert!(finding.severity == Severity::Warning);
    format!("{}: {}", finding.field, finding.message)
}
