//! The Deployment of the control plane.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, Container, EnvVar, EnvVarSource, LocalObjectReference,
    ObjectFieldSelector, PodSpec, TopologySpreadConstraint, Volume, VolumeMount,
};

use super::values::Values;
use super::{Installation, MESH_CONFIG, labels, text_of};
use crate::cluster::CONTROL_PLANE;

/// Where the control plane finds the injector's settings, a file per key.
const CONFIG_FOLDER: &str = "/etc/meshctl.dev/config";
const CONFIG_VOLUME: &str = "config";

pub(super) fn filled_in(mut deployment: Deployment, installation: &Installation) -> Deployment {
    let values = &installation.values;
    let Some(spec) = &mut deployment.spec else { return deployment };
    spec.replicas = Some(values.control_plane.replicas.into());
    let selector = spec.selector.clone();
    let meta = spec.template.metadata.get_or_insert_default();
    meta.labels.get_or_insert_default().extend(labels(CONTROL_PLANE));
    let Some(pod) = &mut spec.template.spec else { return deployment };
    place(pod, values);
    pod.volumes = Some(vec![Volume {
        name: CONFIG_VOLUME.to_owned(),
        config_map: Some(ConfigMapVolumeSource {
            name: MESH_CONFIG.to_owned(),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    }]);
    if values.control_plane.spread {
        // Better two on a node than one that waits for a node.
        let spread = |key: &str| TopologySpreadConstraint {
            max_skew: 1,
            topology_key: key.to_owned(),
            when_unsatisfiable: "ScheduleAnyway".to_owned(),
            label_selector: Some(selector.clone()),
            ..TopologySpreadConstraint::default()
        };
        pod.topology_spread_constraints =
            Some(["kubernetes.io/hostname", "topology.kubernetes.io/zone"].map(spread).into());
    }
    for container in &mut pod.containers {
        fill_in(container, installation);
    }
    deployment
}

/// Where its pods may run.
pub(super) fn place(pod: &mut PodSpec, values: &Values) {
    let wanted = &values.control_plane;
    pod.node_selector = Some(wanted.node_selector.clone()).filter(|labels| !labels.is_empty());
    pod.tolerations = Some(wanted.tolerations.clone()).filter(|all| !all.is_empty());
    pod.priority_class_name =
        Some(wanted.priority_class_name.clone()).filter(|name| !name.is_empty());
    let secrets = values.image.pull_secrets.iter();
    let secrets: Vec<_> = secrets.map(|name| LocalObjectReference { name: name.clone() }).collect();
    pod.image_pull_secrets = Some(secrets).filter(|secrets| !secrets.is_empty());
}

fn fill_in(container: &mut Container, installation: &Installation) {
    let values = &installation.values;
    container.image = Some(values.image(CONTROL_PLANE));
    container.image_pull_policy = Some(text_of(values.image.pull_policy));
    container.command = Some(vec![format!("/{CONTROL_PLANE}")]);
    container.args = Some(args(installation));
    container.resources = Some(values.control_plane.resources.clone());
    // Replicas agree by these names on who writes.
    container.env = Some(vec![EnvVar {
        name: "MESH_CONTROL_POD_NAME".to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                // What an API server would fill in: what it adds, others would seem to have set.
                api_version: Some("v1".to_owned()),
                field_path: "metadata.name".to_owned(),
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    }]);
    container.volume_mounts = Some(vec![VolumeMount {
        name: CONFIG_VOLUME.to_owned(),
        mount_path: CONFIG_FOLDER.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    }]);
}

fn args(installation: &Installation) -> Vec<String> {
    let Values { identity, control_plane, injector, .. } = &installation.values;
    let mut args: Vec<String> = vec![
        "--source=kube".to_owned(),
        "--listen=[::]:8086".to_owned(),
        // Reached by port-forward only, so that it is Kubernetes that says who may.
        "--api=127.0.0.1:8085".to_owned(),
        "--admin=[::]:9990".to_owned(),
        format!("--control-namespace={}", installation.namespace),
        format!("--trust-domain={}", identity.trust_domain),
        format!("--default-inbound-policy={}", control_plane.default_inbound_policy),
        format!("--log={}", control_plane.log),
        format!("--log-format={}", text_of(control_plane.log_format)),
    ];
    if injector.enabled {
        args.push("--webhook=[::]:8443".to_owned());
        args.push(format!("--inject-settings={CONFIG_FOLDER}"));
    }
    if identity.enabled {
        args.push("--identity-secret".to_owned());
        args.push(format!("--certificate-lifetime={}", identity.certificate_lifetime));
    }
    if installation.values.gateway.enabled {
        args.push("--gateway".to_owned());
    }
    if !control_plane.cluster_networks.is_empty() {
        args.push(format!("--cluster-networks={}", control_plane.cluster_networks.join(",")));
    }
    args
}
