//! What a Deployment means on one machine: which processes, with what environment, ready when.
//!
//! Kubernetes objects come in, plain values go out; whatever has no meaning here becomes a warning
//! that names it. Next: `plan.rs` for how many pods of a workload there should be.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::plan::Strategy;

/// More replicas of one workload than this are refused.
pub const MAX_REPLICAS: u32 = 100;

const INJECT: &str = "meshctl.dev/inject";
const DEFAULT_GRACE: Duration = Duration::from_secs(30);

/// Which workload. Sorts by namespace first.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadKey {
    pub namespace: String,
    /// `Deployment` or `StatefulSet`.
    pub kind: &'static str,
    pub name: String,
}

/// `Deployment/shop/web`
impl fmt::Display for WorkloadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.kind, self.namespace, self.name)
    }
}

/// Pods that are alike, and how many of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    pub key: WorkloadKey,
    pub replicas: u32,
    pub strategy: Strategy,
    pub template: Template,
    /// Changes whenever the template does.
    pub hash: String,
}

/// What every pod of a workload is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Template {
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub service_account: String,
    /// From SIGTERM to SIGKILL.
    pub grace: Duration,
    /// Whether it gets a proxy.
    pub meshed: bool,
    /// Whether its proxy is the mesh's gateway.
    pub gateway: bool,
    /// At least one, but of the gateway, which is a proxy only.
    pub containers: Vec<Container>,
}

/// One program of a pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Container {
    pub name: String,
    pub image: String,
    /// The program and its arguments; never empty.
    pub command: Vec<String>,
    pub working_dir: Option<String>,
    pub env: Vec<EnvVar>,
    /// TCP only.
    pub ports: Vec<ContainerPort>,
    pub readiness: Option<Probe>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ContainerPort {
    pub name: Option<String>,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq)]
pub struct EnvVar {
    pub name: String,
    pub value: EnvValue,
}

#[derive(Clone, Debug, PartialEq)]
pub enum EnvValue {
    /// May refer to earlier variables as `$(NAME)`.
    Text(String),
    /// A field of the pod, `status.podIP`.
    Field(String),
}

/// When a container counts as ready.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    pub check: Check,
    pub initial_delay: Duration,
    pub period: Duration,
    pub timeout: Duration,
    pub success_threshold: u32,
    pub failure_threshold: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Check {
    Http { port: u16, path: String, headers: Vec<(String, String)> },
    Tcp { port: u16 },
}

/// What is wrong with an object, or ignored in it: a field and what about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// `spec.template.spec.containers[0].command`
    pub field: String,
    pub message: String,
}

impl Remark {
    fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

/// A workload, unless its errors forbid one; warnings either way.
#[derive(Clone, Debug, Default)]
pub struct Read {
    pub workload: Option<Workload>,
    pub errors: Vec<Remark>,
    pub warnings: Vec<Remark>,
}

/// A workload of any kind, reduced to what they have in common.
#[derive(Debug)]
pub struct Source {
    pub kind: &'static str,
    pub namespace: String,
    pub name: String,
    replicas: Option<i32>,
    strategy: Strategy,
    selector: BTreeMap<String, String>,
    template: core::PodTemplateSpec,
    remarks: Vec<Remark>,
}

impl Source {
    pub fn deployment(namespace: String, object: Deployment) -> Self {
        let spec = object.spec.unwrap_or_default();
        let strategy = spec.strategy.unwrap_or_default();
        let strategy = match strategy.type_.as_deref() {
            Some("Recreate") => Strategy::Recreate,
            _ => Strategy::Rolling {
                surge: surge(strategy.rolling_update.and_then(|r| r.max_surge), spec.replicas),
            },
        };
        Self {
            kind: "Deployment",
            namespace,
            name: object.metadata.name.unwrap_or_default(),
            replicas: spec.replicas,
            strategy,
            selector: spec.selector.match_labels.unwrap_or_default(),
            template: spec.template,
            remarks: Vec::new(),
        }
    }

    pub fn stateful_set(namespace: String, object: StatefulSet) -> Self {
        let spec = object.spec.unwrap_or_default();
        let mut remarks = vec![Remark::new("kind", "a StatefulSet is run like a Deployment")];
        if spec.volume_claim_templates.is_some_and(|claims| !claims.is_empty()) {
            remarks.push(Remark::new("spec.volumeClaimTemplates", "has no meaning on one machine"));
        }
        Self {
            kind: "StatefulSet",
            namespace,
            name: object.metadata.name.unwrap_or_default(),
            replicas: spec.replicas,
            strategy: Strategy::Rolling { surge: 1 },
            selector: spec.selector.match_labels.unwrap_or_default(),
            template: spec.template,
            remarks,
        }
    }

    /// Checks it and takes what can be run.
    pub fn read(self) -> Read {
        let mut read = Read { warnings: self.remarks, ..Read::default() };
        let replicas = match u32::try_from(self.replicas.unwrap_or(1)) {
            Ok(replicas) if replicas <= MAX_REPLICAS => replicas,
            _ => {
                let message = format!("must be between 0 and {MAX_REPLICAS}");
                read.errors.push(Remark::new("spec.replicas", message));
                0
            }
        };
        let metadata = self.template.metadata.clone().unwrap_or_default();
        let labels = metadata.labels.unwrap_or_default();
        for (name, value) in &self.selector {
            if labels.get(name) != Some(value) {
                let message = format!("{name}={value} is not among the labels of the template");
                read.errors.push(Remark::new("spec.selector.matchLabels", message));
            }
        }
        let annotations = metadata.annotations.unwrap_or_default();
        let hash = hash_of(&self.template);
        let spec = self.template.spec.unwrap_or_default();
        let inject = labels.get(INJECT).or_else(|| annotations.get(INJECT));
        let template = Template {
            gateway: false,
            meshed: inject.is_none_or(|value| value != "disabled"),
            service_account: spec.service_account_name.clone().unwrap_or("default".to_owned()),
            grace: seconds(spec.termination_grace_period_seconds, DEFAULT_GRACE),
            labels,
            annotations,
            containers: read_pod(spec, &mut read),
        };
        if read.errors.is_empty() && !template.containers.is_empty() {
            read.workload = Some(Workload {
                key: WorkloadKey { namespace: self.namespace, kind: self.kind, name: self.name },
                replicas,
                strategy: self.strategy,
                template,
                hash,
            });
        }
        read
    }
}

/// The containers that can be run here.
fn read_pod(spec: core::PodSpec, read: &mut Read) -> Vec<Container> {
    const SPEC: &str = "spec.template.spec";
    let meaningless = [
        ("volumes", spec.volumes.is_some_and(|v| !v.is_empty())),
        ("initContainers", spec.init_containers.is_some_and(|c| !c.is_empty())),
        ("securityContext", spec.security_context.is_some()),
        ("nodeSelector", spec.node_selector.is_some()),
        ("affinity", spec.affinity.is_some()),
        ("hostNetwork", spec.host_network == Some(true)),
    ];
    for (name, given) in meaningless {
        if given {
            read.warnings.push(meaningless_here(format!("{SPEC}.{name}")));
        }
    }
    if spec.containers.is_empty() {
        let field = format!("{SPEC}.containers");
        read.errors.push(Remark::new(field, "must have at least one container"));
    }
    let mut containers = Vec::new();
    for (index, container) in spec.containers.into_iter().enumerate() {
        let field = format!("{SPEC}.containers[{index}]");
        containers.extend(read_container(&field, container, read));
    }
    reject_duplicate_ports(&containers, SPEC, read);
    containers
}

fn read_container(field: &str, from: core::Container, read: &mut Read) -> Option<Container> {
    let meaningless = [
        ("resources", from.resources.is_some()),
        ("volumeMounts", from.volume_mounts.is_some_and(|v| !v.is_empty())),
        ("securityContext", from.security_context.is_some()),
        ("envFrom", from.env_from.is_some_and(|e| !e.is_empty())),
        ("lifecycle", from.lifecycle.is_some()),
        ("livenessProbe", from.liveness_probe.is_some()),
        ("startupProbe", from.startup_probe.is_some()),
    ];
    for (name, given) in meaningless {
        if given {
            read.warnings.push(meaningless_here(format!("{field}.{name}")));
        }
    }
    let Some(program) = from.command.filter(|command| !command.is_empty()) else {
        let image = from.image.as_deref().unwrap_or("none");
        read.warnings.push(Remark::new(
            format!("{field}.command"),
            format!(
                "is missing, and images ({image}) are not run on one machine: \
                 this container is left out; give it a command"
            ),
        ));
        return None;
    };
    let ports = read_ports(field, from.ports.unwrap_or_default(), read);
    let readiness = from
        .readiness_probe
        .and_then(|probe| read_probe(&format!("{field}.readinessProbe"), probe, &ports, read));
    Some(Container {
        name: from.name,
        image: from.image.unwrap_or_default(),
        command: [program, from.args.unwrap_or_default()].concat(),
        working_dir: from.working_dir,
        env: read_env(field, from.env.unwrap_or_default(), read),
        ports,
        readiness,
    })
}

fn read_ports(field: &str, ports: Vec<core::ContainerPort>, read: &mut Read) -> Vec<ContainerPort> {
    let mut taken = Vec::new();
    for (index, port) in ports.into_iter().enumerate() {
        let field = format!("{field}.ports[{index}]");
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        if protocol != "TCP" {
            let message = format!("{protocol} is not carried by the mesh: this port is left out");
            read.warnings.push(Remark::new(format!("{field}.protocol"), message));
            continue;
        }
        match u16::try_from(port.container_port) {
            Ok(number) if number > 0 => {
                taken.push(ContainerPort { name: port.name, port: number });
            }
            _ => {
                let message = "must be between 1 and 65535";
                read.errors.push(Remark::new(format!("{field}.containerPort"), message));
            }
        }
    }
    taken
}

fn read_env(field: &str, vars: Vec<core::EnvVar>, read: &mut Read) -> Vec<EnvVar> {
    let mut taken = Vec::new();
    for (index, var) in vars.into_iter().enumerate() {
        let from = var.value_from.unwrap_or_default();
        let field = format!("{field}.env[{index}].valueFrom");
        let value = if let Some(reference) = from.field_ref {
            EnvValue::Field(reference.field_path)
        } else if from.config_map_key_ref.is_some()
            || from.secret_key_ref.is_some()
            || from.resource_field_ref.is_some()
        {
            let message = format!(
                "{} is left out: only fieldRef is known on one machine; give it a value",
                var.name
            );
            read.warnings.push(Remark::new(field, message));
            continue;
        } else {
            EnvValue::Text(var.value.unwrap_or_default())
        };
        taken.push(EnvVar { name: var.name, value });
    }
    taken
}

fn read_probe(
    field: &str,
    probe: core::Probe,
    ports: &[ContainerPort],
    read: &mut Read,
) -> Option<Probe> {
    let mut find = |port: &IntOrString, field: String| {
        let found = resolve(port, ports);
        if found.is_none() {
            let message = format!("{} is none of the container's ports", text_of(port));
            read.errors.push(Remark::new(field, message));
        }
        found
    };
    let check = if let Some(get) = probe.http_get {
        let port = find(&get.port, format!("{field}.httpGet.port"))?;
        let headers = get.http_headers.unwrap_or_default();
        Check::Http {
            port,
            path: get.path.filter(|path| path.starts_with('/')).unwrap_or("/".to_owned()),
            headers: headers.into_iter().map(|header| (header.name, header.value)).collect(),
        }
    } else if let Some(socket) = probe.tcp_socket {
        Check::Tcp { port: find(&socket.port, format!("{field}.tcpSocket.port"))? }
    } else {
        let message = "only httpGet and tcpSocket are known on one machine: it is ignored";
        read.warnings.push(Remark::new(field, message));
        return None;
    };
    let positive = |value: Option<i32>, default: u32| {
        value.and_then(|value| u32::try_from(value).ok()).filter(|v| *v > 0).unwrap_or(default)
    };
    let seconds = |value| Duration::from_secs(u64::from(value));
    Some(Probe {
        check,
        initial_delay: seconds(positive(probe.initial_delay_seconds, 0)),
        period: seconds(positive(probe.period_seconds, 10)),
        timeout: seconds(positive(probe.timeout_seconds, 1)),
        success_threshold: positive(probe.success_threshold, 1),
        failure_threshold: positive(probe.failure_threshold, 3),
    })
}

/// Containers of a pod share its address, so no port may occur twice.
fn reject_duplicate_ports(containers: &[Container], spec: &str, read: &mut Read) {
    let mut seen = BTreeMap::new();
    for container in containers {
        for port in &container.ports {
            if let Some(other) = seen.insert(port.port, &container.name) {
                let message = format!(
                    "containerPort {} is declared twice (containers {other} and {})",
                    port.port, container.name
                );
                read.errors.push(Remark::new(format!("{spec}.containers"), message));
            }
        }
    }
}

fn resolve(port: &IntOrString, ports: &[ContainerPort]) -> Option<u16> {
    match port {
        IntOrString::Int(number) => {
            let number = u16::try_from(*number).ok()?;
            ports.iter().map(|p| p.port).find(|p| *p == number)
        }
        IntOrString::String(name) => {
            ports.iter().find(|p| p.name.as_deref() == Some(name)).map(|p| p.port)
        }
    }
}

fn text_of(port: &IntOrString) -> String {
    match port {
        IntOrString::Int(number) => number.to_string(),
        IntOrString::String(name) => format!("{name:?}"),
    }
}

fn meaningless_here(field: String) -> Remark {
    Remark::new(field, "has no meaning on one machine and is ignored")
}

/// How many pods a rolling update may add: at least one, since none may go before another came.
fn surge(max_surge: Option<IntOrString>, replicas: Option<i32>) -> u32 {
    let replicas = u64::from(u32::try_from(replicas.unwrap_or(1)).unwrap_or(1));
    let percent = |percent: u64| replicas.saturating_mul(percent.min(100)).div_ceil(100);
    let surge = match max_surge {
        None => percent(25),
        Some(IntOrString::Int(number)) => u64::try_from(number).unwrap_or(1),
        Some(IntOrString::String(text)) => {
            percent(text.trim_end_matches('%').parse().unwrap_or(25))
        }
    };
    u32::try_from(surge).unwrap_or(MAX_REPLICAS).clamp(1, MAX_REPLICAS)
}

fn seconds(value: Option<i64>, default: Duration) -> Duration {
    value.and_then(|value| u64::try_from(value).ok()).map_or(default, Duration::from_secs)
}

/// Eight digits that differ when the template does.
fn hash_of(template: &core::PodTemplateSpec) -> String {
    let mut hasher = DefaultHasher::new();
    serde_json::to_string(template).unwrap_or_default().hash(&mut hasher);
    format!("{:08x}", hasher.finish() >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(yaml: &str) -> Read {
        let object: Deployment = serde_saphyr::from_str(yaml).unwrap();
        Source::deployment("shop".to_owned(), object).read()
    }

    fn deployment(container: &str) -> String {
        format!(
            "metadata: {{name: web}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      containers:
      - name: web
        {container}"
        )
    }

    #[test]
    fn a_command_with_ports_and_a_probe_is_taken() {
        let read = read(&deployment(
            "command: [web, --fast]
        args: [more]
        ports: [{name: http, containerPort: 8080}]
        env: [{name: A, value: b}, {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]
        readinessProbe: {httpGet: {path: /readyz, port: http}, periodSeconds: 2}",
        ));
        assert_eq!((read.errors, read.warnings), (vec![], vec![]));
        let workload = read.workload.unwrap();
        assert_eq!(workload.key.to_string(), "Deployment/shop/web");
        assert_eq!(workload.replicas, 2);
        let container = &workload.template.containers[0];
        assert_eq!(container.command, ["web", "--fast", "more"]);
        assert_eq!(container.env[1].value, EnvValue::Field("status.podIP".to_owned()));
        let probe = container.readiness.as_ref().unwrap();
        assert_eq!(probe.period, Duration::from_secs(2));
        assert!(matches!(&probe.check, Check::Http { port: 8080, path, .. } if path == "/readyz"));
    }

    #[test]
    fn what_has_no_meaning_is_named() {
        let read = read(&deployment(
            "command: [web]
        resources: {limits: {cpu: 1}}
        volumeMounts: [{name: a, mountPath: /a}]
        env: [{name: PASSWORD, valueFrom: {secretKeyRef: {name: s, key: k}}}]
        ports: [{containerPort: 53, protocol: UDP}]
        readinessProbe: {exec: {command: [\"true\"]}}",
        ));
        assert!(read.workload.is_some());
        let fields: Vec<_> = read.warnings.iter().map(|w| w.field.rsplit('.').next()).collect();
        let expected =
            ["resources", "volumeMounts", "protocol", "readinessProbe", "valueFrom"].map(Some);
        assert_eq!(fields, expected);
        assert!(read.warnings[4].message.contains("PASSWORD"));
    }

    #[test]
    fn an_image_alone_is_left_out_with_a_remedy() {
        let read = read(&deployment("image: nginx"));
        assert!(read.workload.is_none() && read.errors.is_empty());
        assert_eq!(read.warnings[0].field, "spec.template.spec.containers[0].command");
        assert!(read.warnings[0].message.contains("nginx"));
    }

    #[test]
    fn errors_name_the_field() {
        let yaml = deployment(
            "command: [web]
        ports: [{containerPort: 70000}, {containerPort: 80}, {containerPort: 80}]
        readinessProbe: {tcpSocket: {port: grpc}}",
        )
        .replace("replicas: 2", "replicas: 1000")
        .replace("labels: {app: web}", "labels: {app: shop}");
        let fields: Vec<_> = read(&yaml).errors.into_iter().map(|e| e.field).collect();
        assert_eq!(
            fields,
            [
                "spec.replicas",
                "spec.selector.matchLabels",
                "spec.template.spec.containers[0].ports[0].containerPort",
                "spec.template.spec.containers[0].readinessProbe.tcpSocket.port",
                "spec.template.spec.containers",
            ]
        );
    }

    #[test]
    fn the_hash_follows_the_template_only() {
        let hash = |yaml: &str| read(yaml).workload.unwrap().hash;
        let yaml = deployment("command: [web]");
        assert_eq!(hash(&yaml), hash(&yaml.replace("replicas: 2", "replicas: 3")));
        assert_ne!(hash(&yaml), hash(&yaml.replace("[web]", "[web, x]")));
    }

    #[test]
    fn surge_is_at_least_one() {
        let text = |text: &str| Some(IntOrString::String(text.to_owned()));
        assert_eq!(surge(None, Some(1)), 1);
        assert_eq!(surge(None, Some(9)), 3);
        assert_eq!(surge(text("50%"), Some(9)), 5);
        assert_eq!(surge(text("0%"), Some(9)), 1);
        assert_eq!(surge(Some(IntOrString::Int(0)), Some(9)), 1);
        assert_eq!(surge(Some(IntOrString::Int(-4)), Some(-1)), 1);
    }
}
