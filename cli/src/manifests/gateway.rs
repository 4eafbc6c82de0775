//! The proxy at the edge.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, Container, EmptyDirVolumeSource, EnvVar, EnvVarSource,
    ObjectFieldSelector, ProjectedVolumeSource, Service, ServiceAccountTokenProjection,
    ServicePort, Volume, VolumeMount, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use mesh_control::identity::tokens::AUDIENCE;
use mesh_control::index::identity::MeshNames;
use mesh_control::inject::Settings;
use mesh_control::inject::settings::{ROOTS_CONFIG_MAP, ROOTS_KEY};
use mesh_control::source::kubernetes::PROXY_VERSION_ANNOTATION;

use super::control_plane::place;
use super::values::ServiceType;
use super::{Installation, labels, text_of};
use crate::local::address::{
    PROXY_ADMIN_PORT, PROXY_CONTROL_PORT, PROXY_INBOUND_PORT, PROXY_OUTBOUND_PORT,
};

/// Its name, and that of its service account.
pub(super) const NAME: &str = "mesh-gateway";
const IMAGE: &str = "mesh-proxy";

const TOKEN: (&str, &str) = ("mesh-token", "/var/run/secrets/meshctl.dev/token");
const ROOTS: (&str, &str) = ("mesh-roots", "/var/run/secrets/meshctl.dev/roots");
const STATE: (&str, &str) = ("mesh-identity", "/var/run/meshctl.dev/identity");
const TOKEN_SECONDS: i64 = 86_400;
/// Streams of one HTTP/2 connection: fewer than among proxies, whose clients are known.
const STREAMS: &str = "250";

pub(super) fn service(mut service: Service, installation: &Installation) -> Service {
    let gateway = &installation.values.gateway;
    let Some(spec) = &mut service.spec else { return service };
    spec.type_ = Some(text_of(gateway.service_type));
    if gateway.service_type == ServiceType::ClusterIP {
        spec.external_traffic_policy = None;
    }
    let port = |port: &u16| ServicePort {
        name: Some(format!("port-{port}")),
        port: i32::from(*port),
        target_port: Some(IntOrString::Int(i32::from(*port))),
        protocol: Some("TCP".to_owned()),
        ..ServicePort::default()
    };
    spec.ports = Some(gateway.ports.iter().map(port).collect());
    service
}

pub(super) fn deployment(mut deployment: Deployment, installation: &Installation) -> Deployment {
    let values = &installation.values;
    let Some(spec) = &mut deployment.spec else { return deployment };
    spec.replicas = Some(values.gateway.replicas.into());
    let meta = spec.template.metadata.get_or_insert_default();
    meta.labels.get_or_insert_default().extend(labels(NAME));
    // To the mesh it is a proxy like any other.
    let version = (PROXY_VERSION_ANNOTATION.to_owned(), env!("CARGO_PKG_VERSION").to_owned());
    meta.annotations.get_or_insert_default().extend([version]);
    let Some(pod) = &mut spec.template.spec else { return deployment };
    place(pod, values);
    if values.identity.enabled {
        pod.volumes = Some(volumes());
    }
    for container in &mut pod.containers {
        fill_in(container, installation);
    }
    deployment
}

fn volumes() -> Vec<Volume> {
    let token = ServiceAccountTokenProjection {
        audience: Some(AUDIENCE.to_owned()),
        expiration_seconds: Some(TOKEN_SECONDS),
        path: "token".to_owned(),
    };
    let source =
        VolumeProjection { service_account_token: Some(token), ..VolumeProjection::default() };
    vec![
        Volume {
            name: TOKEN.0.to_owned(),
            projected: Some(ProjectedVolumeSource {
                sources: Some(vec![source]),
                ..ProjectedVolumeSource::default()
            }),
            ..Volume::default()
        },
        Volume {
            name: ROOTS.0.to_owned(),
            config_map: Some(ConfigMapVolumeSource {
                name: ROOTS_CONFIG_MAP.to_owned(),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        },
        Volume {
            name: STATE.0.to_owned(),
            empty_dir: Some(EmptyDirVolumeSource {
                medium: Some("Memory".to_owned()),
                size_limit: Some(Quantity("1Mi".to_owned())),
            }),
            ..Volume::default()
        },
    ]
}

fn fill_in(container: &mut Container, installation: &Installation) {
    let values = &installation.values;
    container.image = Some(values.image(IMAGE));
    container.image_pull_policy = Some(text_of(values.image.pull_policy));
    container.env = Some(env(installation));
    if values.identity.enabled {
        let mounts = [(TOKEN, true), (ROOTS, true), (STATE, false)];
        let mount = |((name, path), read_only): ((&str, &str), bool)| VolumeMount {
            name: name.to_owned(),
            mount_path: path.to_owned(),
            read_only: read_only.then_some(true),
            ..VolumeMount::default()
        };
        container.volume_mounts = Some(mounts.map(mount).into());
    }
    let quantity = |(name, text): (&str, &str)| (name.to_owned(), Quantity(text.to_owned()));
    let resources = container.resources.get_or_insert_default();
    resources.requests = Some([("cpu", "100m"), ("memory", "64Mi")].map(quantity).into());
    resources.limits = Some([("memory", "1Gi")].map(quantity).into());
}

fn env(installation: &Installation) -> Vec<EnvVar> {
    let values = &installation.values;
    let settings = settings(installation);
    let set = |name: &str, value: String| EnvVar {
        name: format!("MESH_PROXY_{name}"),
        value: Some(value),
        ..EnvVar::default()
    };
    let of_pod = |name: &str, path: &str| EnvVar {
        name: format!("MESH_PROXY_{name}"),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                // What an API server would fill in.
                api_version: Some("v1".to_owned()),
                field_path: path.to_owned(),
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    };
    let mut env = vec![
        of_pod("POD_NAMESPACE", "metadata.namespace"),
        of_pod("POD_NAME", "metadata.name"),
        set("CONTROL_ADDR", settings.control_addr()),
        set("GATEWAY", "enabled".to_owned()),
        set("GATEWAY_LISTEN", "[::]".to_owned()),
        set("GATEWAY_MAX_BODY_BYTES", values.gateway.max_body_bytes.to_string()),
        set("GATEWAY_MAX_CLIENT_CONNECTIONS", values.gateway.max_client_connections.to_string()),
        set("MAX_CONCURRENT_STREAMS", STREAMS.to_owned()),
        // There is no application: nobody has business with these.
        set("OUTBOUND_ADDR", format!("127.0.0.1:{PROXY_OUTBOUND_PORT}")),
        set("INBOUND_ADDR", format!("127.0.0.1:{PROXY_INBOUND_PORT}")),
        set("CONTROL_LISTEN", format!("[::]:{PROXY_CONTROL_PORT}")),
        set("ADMIN_ADDR", format!("[::]:{PROXY_ADMIN_PORT}")),
        set("LOG", values.proxy.log.clone()),
        set("LOG_FORMAT", text_of(values.proxy.log_format)),
    ];
    if values.identity.enabled {
        let of_namespace = settings.names.suffix(&installation.namespace);
        env.extend([
            set("IDENTITY_NAME", format!("{NAME}.{of_namespace}")),
            set("CONTROL_IDENTITY", settings.control_identity()),
            set("IDENTITY_TOKEN_FILE", format!("{}/token", TOKEN.1)),
            set("IDENTITY_TRUST_BUNDLE_FILE", format!("{}/{ROOTS_KEY}", ROOTS.1)),
            set("IDENTITY_STATE_DIR", STATE.1.to_owned()),
        ]);
    }
    env
}

/// The names of the mesh, as the injector has them.
fn settings(installation: &Installation) -> Settings {
    let values = &installation.values;
    Settings {
        names: MeshNames {
            control_namespace: installation.namespace.clone(),
            trust_domain: values.identity.trust_domain.clone(),
        },
        cluster_domain: values.cluster_domain.clone(),
        ..Settings::default()
    }
}
