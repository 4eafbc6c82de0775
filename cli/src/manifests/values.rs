//! The values of an installation: what a profile, values files and `--set` come to, with a type and a bound each.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ResourceRequirements, Toleration};
use mesh_control::inject::options;
use mesh_model::authz::DefaultAccess;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::text_of;
use crate::error::CliError;
use crate::local::address::RESERVED_PORTS;
use crate::selector;

/// Everything that can be set. A field's path is its key: `controlPlane.replicas`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Values {
    /// What names of services end with.
    pub cluster_domain: String,
    pub image: Image,
    pub identity: Identity,
    pub control_plane: ControlPlane,
    pub injector: Injector,
    pub proxy: Proxy,
    pub gateway: Gateway,
}

/// The proxy at the edge, for Gateways of the class `mesh`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Gateway {
    /// Needs the CustomResourceDefinitions of Gateway API.
    pub enabled: bool,
    pub replicas: u16,
    /// Of the Service in front of it: those that Gateways listen on.
    pub ports: Vec<u16>,
    pub service_type: ServiceType,
    /// Of a request that is not gRPC, in bytes.
    pub max_body_bytes: u64,
    /// Open connections of one address.
    pub max_client_connections: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceType {
    LoadBalancer,
    NodePort,
    ClusterIP,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Image {
    /// What stands before `/mesh-control`.
    pub registry: String,
    pub tag: String,
    pub pull_policy: PullPolicy,
    /// Names of Secrets in the control plane's namespace.
    pub pull_secrets: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Identity {
    /// Without it, pods talk in plain text.
    pub enabled: bool,
    pub trust_domain: String,
    /// Of workloads' certificates.
    pub certificate_lifetime: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ControlPlane {
    pub replicas: u16,
    /// A level, or `target=level,…`.
    pub log: String,
    pub log_format: LogFormat,
    /// Keeps replicas on different nodes, and drains from taking several at a time.
    pub spread: bool,
    /// Who may use ports about which no policy says anything.
    pub default_inbound_policy: String,
    /// What `cluster-…` policies take for the cluster; empty: private addresses.
    pub cluster_networks: Vec<String>,
    pub resources: ResourceRequirements,
    pub node_selector: BTreeMap<String, String>,
    pub tolerations: Vec<Toleration>,
    /// Empty: none.
    pub priority_class_name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Plain,
    Json,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Injector {
    /// Without it, pods are meshed by `meshctl inject`.
    pub enabled: bool,
    pub failure_policy: FailurePolicy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailurePolicy {
    /// Pods start unmeshed while the injector is away.
    Ignore,
    /// Pods of the mesh can't be created while the injector is away.
    Fail,
}

impl FailurePolicy {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ignore => "Ignore",
            Self::Fail => "Fail",
        }
    }
}

/// What proxies get unless an annotation says otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Proxy {
    pub log: String,
    pub log_format: LogFormat,
    /// Quantities; an empty one is none.
    pub cpu_request: String,
    pub cpu_limit: String,
    pub memory_request: String,
    pub memory_limit: String,
    /// Started before the application and ended after it by the kubelet; clusters before 1.29 can't.
    pub native_sidecar: bool,
    /// `3306,9000-9010`
    pub skip_inbound_ports: String,
    pub skip_outbound_ports: String,
    /// `10.0.0.0/8,fd00::/8`
    pub skip_subnets: String,
}

/// A starting point for values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Profile {
    /// One replica with the smallest requests and without the injector: pods are meshed by meshctl inject
    Minimal,
    /// One replica, identity and injector
    #[default]
    Default,
    /// Three replicas on different nodes with a disruption budget; pods wait for the injector
    Ha,
    /// The default without identities: pods talk in plain text
    NoTls,
}

impl Profile {
    pub const ALL: [Self; 4] = [Self::Minimal, Self::Default, Self::Ha, Self::NoTls];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Minimal => "minimal",
            Self::Default => "default",
            Self::Ha => "ha",
            Self::NoTls => "no-tls",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|profile| profile.as_str() == name)
    }

    pub fn values(self) -> Values {
        let mut values = Values {
            cluster_domain: "cluster.local".to_owned(),
            image: Image {
                registry: "ghcr.io/meshctl".to_owned(),
                tag: env!("CARGO_PKG_VERSION").to_owned(),
                pull_policy: PullPolicy::IfNotPresent,
                pull_secrets: Vec::new(),
            },
            identity: Identity {
                enabled: true,
                trust_domain: "cluster.local".to_owned(),
                certificate_lifetime: "24h".to_owned(),
            },
            control_plane: ControlPlane {
                replicas: 1,
                log: "info".to_owned(),
                log_format: LogFormat::Plain,
                spread: false,
                default_inbound_policy: DefaultAccess::AllUnauthenticated.as_str().to_owned(),
                cluster_networks: Vec::new(),
                resources: resources("50m", "64Mi", "512Mi"),
                node_selector: BTreeMap::from([(
                    "kubernetes.io/os".to_owned(),
                    "linux".to_owned(),
                )]),
                tolerations: Vec::new(),
                priority_class_name: String::new(),
            },
            injector: Injector { enabled: true, failure_policy: FailurePolicy::Ignore },
            proxy: Proxy {
                log: "info".to_owned(),
                log_format: LogFormat::Plain,
                cpu_request: "10m".to_owned(),
                cpu_limit: String::new(),
                memory_request: "20Mi".to_owned(),
                memory_limit: "128Mi".to_owned(),
                native_sidecar: true,
                skip_inbound_ports: String::new(),
                skip_outbound_ports: String::new(),
                skip_subnets: String::new(),
            },
            gateway: Gateway {
                enabled: false,
                replicas: 1,
                ports: vec![80, 443],
                service_type: ServiceType::LoadBalancer,
                max_body_bytes: 1 << 30,
                max_client_connections: 1_000,
            },
        };
        match self {
            Self::Minimal => {
                values.control_plane.resources = resources("10m", "32Mi", "256Mi");
                values.injector.enabled = false;
            }
            Self::Default => {}
            Self::Ha => {
                values.control_plane.replicas = 3;
                values.control_plane.spread = true;
                values.injector.failure_policy = FailurePolicy::Fail;
            }
            Self::NoTls => values.identity.enabled = false,
        }
        values
    }
}

fn resources(cpu: &str, memory: &str, most_memory: &str) -> ResourceRequirements {
    let quantity = |(name, text): (&str, &str)| {
        (name.to_owned(), k8s_openapi::apimachinery::pkg::api::resource::Quantity(text.to_owned()))
    };
    ResourceRequirements {
        requests: Some([("cpu", cpu), ("memory", memory)].map(quantity).into()),
        // No limit of CPU: throttling shows as latency of everybody.
        limits: Some([("memory", most_memory)].map(quantity).into()),
        claims: None,
    }
}

/// What differs from a profile; the empty document is nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Overrides(Map<String, Value>);

impl Overrides {
    /// A values file's text; `name` is for errors.
    pub fn from_yaml(name: &str, text: &str) -> Result<Self, CliError> {
        let wrong = |why: String| CliError::usage(format!("{name}: {why}"));
        let parsed: Option<Value> =
            serde_saphyr::from_str(text).map_err(|error| wrong(error.to_string()))?;
        match parsed {
            None | Some(Value::Null) => Ok(Self::default()),
            Some(Value::Object(map)) => Ok(Self(map)),
            Some(_) => Err(wrong("it is not a mapping of keys to values".to_owned())),
        }
    }

    /// Adds `key.path=value`; the value is read as YAML, so that `3` is a number and `[a, b]` a list.
    pub fn set(&mut self, assignment: &str) -> Result<(), CliError> {
        let Some((path, text)) = assignment.split_once('=').filter(|(path, _)| !path.is_empty())
        else {
            return Err(CliError::usage(format!("--set {assignment}: write KEY=VALUE"))
                .hint("--set controlPlane.replicas=3"));
        };
        let parsed = serde_saphyr::from_str::<Option<Value>>(text).ok().flatten();
        let value = match parsed {
            Some(value) if value.is_string() || !is_text(path) => value,
            // A tag `1.10` is no number.
            _ => Value::String(text.to_owned()),
        };
        // Labels of nodes have dots themselves.
        let (label, path) =
            match path.strip_prefix(NODE_SELECTOR).and_then(|of| of.strip_prefix('.')) {
                Some(label) => (Some(label), NODE_SELECTOR),
                None => (None, path),
            };
        let mut nested = value;
        for key in label.into_iter().chain(path.rsplit('.')) {
            nested = Value::Object(Map::from_iter([(key.to_owned(), nested)]));
        }
        if let Value::Object(map) = nested {
            merge(&mut self.0, map);
        }
        Ok(())
    }

    /// What the other says wins.
    pub fn merge(&mut self, other: Self) {
        merge(&mut self.0, other.0);
    }

    /// The profile's values with these in their place. Unknown keys and wrong types are refused by name.
    pub fn resolve(&self, profile: Profile) -> Result<Values, CliError> {
        let Ok(Value::Object(mut all)) = serde_json::to_value(profile.values()) else {
            return Err(CliError::failed("the profile's values can't be written"));
        };
        known_keys(&all, &self.0, "")?;
        merge(&mut all, self.0.clone());
        quantities_as_text(&mut all);
        let values: Values =
            serde_path_to_error::deserialize(Value::Object(all.clone())).map_err(|error| {
                let path = error.path().to_string();
                CliError::usage(format!("{path}: {}", error.into_inner()))
            })?;
        // Kubernetes' own types pass over what they do not know.
        let read = serde_json::to_value(&values).unwrap_or_default();
        for key in ["resources", "tolerations"] {
            if read["controlPlane"][key] != all["controlPlane"][key] {
                let message = format!("controlPlane.{key}: not all of it is known to Kubernetes");
                return Err(
                    CliError::usage(message).hint(format!("kubectl explain pod.spec.{key}"))
                );
            }
        }
        values.check()?;
        Ok(values)
    }
}

const NODE_SELECTOR: &str = "controlPlane.nodeSelector";
/// Keys below these are the user's own, or those of Kubernetes.
const FREE: [&str; 2] = [NODE_SELECTOR, "controlPlane.resources"];

/// `cpu: 2` means the same as `cpu: "2"`, which is how it is kept.
fn quantities_as_text(all: &mut Map<String, Value>) {
    let resources = all.get_mut("controlPlane").and_then(|of| of.get_mut("resources"));
    for of in resources.and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut) {
        for quantity in of.as_object_mut().into_iter().flat_map(Map::values_mut) {
            if let Value::Number(number) = quantity {
                *quantity = Value::String(number.to_string());
            }
        }
    }
}

/// Whether what is at this path is text.
fn is_text(path: &str) -> bool {
    let all = serde_json::to_value(Profile::Default.values()).unwrap_or_default();
    let known = path.split('.').try_fold(&all, |at, key| at.get(key));
    path.starts_with(&format!("{NODE_SELECTOR}.")) || known.is_some_and(Value::is_string)
}

fn known_keys(
    known: &Map<String, Value>,
    given: &Map<String, Value>,
    at: &str,
) -> Result<(), CliError> {
    for (key, value) in given {
        let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
        match (known.get(key), value) {
            (None, _) => return Err(unknown(&path)),
            (Some(Value::Object(known)), Value::Object(given))
                if !FREE.contains(&path.as_str()) =>
            {
                known_keys(known, given, &path)?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn unknown(path: &str) -> CliError {
    let error = CliError::usage(format!("there is no value \"{path}\""));
    let all = serde_json::to_value(Profile::Default.values()).unwrap_or_default();
    let mut paths = Vec::new();
    collect(&all, "", &mut paths);
    match paths.into_iter().min_by_key(|known| selector::distance(path, known)) {
        Some(nearest) => error.hint(format!("{nearest}; docs/kubernetes.md lists all of them")),
        None => error,
    }
}

/// The paths of everything that can be set.
fn collect(value: &Value, at: &str, paths: &mut Vec<String>) {
    match value {
        Value::Object(map) if !FREE.contains(&at) => {
            for (key, value) in map {
                let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                collect(value, &path, paths);
            }
        }
        _ => paths.push(at.to_owned()),
    }
}

fn merge(into: &mut Map<String, Value>, from: Map<String, Value>) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Object(into)), Value::Object(from)) => merge(into, from),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

impl Values {
    /// What types can't say.
    fn check(&self) -> Result<(), CliError> {
        let wrong = |key: &str, why: &str| Err(CliError::usage(format!("{key}: {why}")));
        if !(1..=50).contains(&self.control_plane.replicas) {
            return wrong("controlPlane.replicas", "write a number from 1 to 50");
        }
        if !(1..=50).contains(&self.gateway.replicas) {
            return wrong("gateway.replicas", "write a number from 1 to 50");
        }
        let ports = &self.gateway.ports;
        let others = |port: &u16| ports.iter().filter(|other| *other == port).count() > 1;
        if ports.is_empty() || ports.len() > 64 || ports.iter().any(|p| *p == 0 || others(p)) {
            return wrong("gateway.ports", "write 1 to 64 different ports, such as [80, 443]");
        }
        if let Some(port) = ports.iter().find(|port| RESERVED_PORTS.contains(port)) {
            return wrong("gateway.ports", &format!("{port} is the proxy's own port"));
        }
        if !(1..=10_000_000).contains(&self.gateway.max_client_connections) {
            return wrong("gateway.maxClientConnections", "write a number from 1 to 10000000");
        }
        if !is_tag(&self.image.tag) {
            return wrong("image.tag", "write a tag, such as 0.1.0");
        }
        if self.image.registry.contains(char::is_whitespace) || self.image.registry.ends_with('/') {
            return wrong(
                "image.registry",
                "write what stands before /mesh-control, without a slash at its end",
            );
        }
        if DefaultAccess::from_name(&self.control_plane.default_inbound_policy).is_none() {
            let names = DefaultAccess::ALL.map(DefaultAccess::as_str).join(", ");
            return wrong("controlPlane.defaultInboundPolicy", &format!("write one of {names}"));
        }
        for (key, domain) in [
            ("identity.trustDomain", &self.identity.trust_domain),
            ("clusterDomain", &self.cluster_domain),
        ] {
            if domain.parse::<mesh_tls::Id>().is_err() {
                return wrong(key, "write a lower-case domain name, such as cluster.local");
            }
        }
        let lifetime = self.identity.certificate_lifetime.parse::<jiff::SignedDuration>();
        if !lifetime.is_ok_and(|lifetime| (10..=31_536_000).contains(&lifetime.as_secs())) {
            return wrong(
                "identity.certificateLifetime",
                "write a duration from 10s to 8760h, such as 24h",
            );
        }
        for network in &self.control_plane.cluster_networks {
            if network.parse::<mesh_model::inbound::Cidr>().is_err() {
                return wrong(
                    "controlPlane.clusterNetworks",
                    &format!("{network} is no network such as 10.0.0.0/8"),
                );
            }
        }
        let priority = &self.control_plane.priority_class_name;
        if !priority.is_empty() && !is_object_name(priority) {
            return wrong(
                "controlPlane.priorityClassName",
                "write the name of a PriorityClass, such as system-cluster-critical",
            );
        }
        let wanted = &self.control_plane.resources;
        for (of, quantities) in [("requests", &wanted.requests), ("limits", &wanted.limits)] {
            for (resource, quantity) in quantities.iter().flatten() {
                if !is_quantity(&quantity.0) {
                    return wrong(
                        &format!("controlPlane.resources.{of}.{resource}"),
                        &format!("`{}` is no quantity such as 50m or 64Mi", quantity.0),
                    );
                }
            }
        }
        // The injector's own parser also says what a filter of logs is.
        let control_log = ("controlPlane.log", options::LOG_LEVEL, self.control_plane.log.clone());
        for (key, option, value) in self.proxy_options().into_iter().chain([control_log]) {
            let mut findings = Vec::new();
            options::Options::default()
                .take_plain(&[(option.to_owned(), value)].into(), &mut findings);
            if let Some(finding) = findings.first() {
                return wrong(key, finding.message.trim_end_matches(" and is left out"));
            }
        }
        Ok(())
    }

    /// What the injector is told about proxies: the key of each value, and the option's name and value.
    pub fn proxy_options(&self) -> [(&'static str, &'static str, String); 12] {
        let Self { proxy, image, .. } = self;
        let native = if proxy.native_sidecar { "enabled" } else { "disabled" };
        [
            ("image.registry", options::IMAGE, self.image("mesh-proxy")),
            ("image.pullPolicy", options::PULL_POLICY, text_of(image.pull_policy)),
            ("proxy.log", options::LOG_LEVEL, proxy.log.clone()),
            ("proxy.logFormat", options::LOG_FORMAT, text_of(proxy.log_format)),
            ("proxy.cpuRequest", options::CPU_REQUEST, proxy.cpu_request.clone()),
            ("proxy.cpuLimit", options::CPU_LIMIT, proxy.cpu_limit.clone()),
            ("proxy.memoryRequest", options::MEMORY_REQUEST, proxy.memory_request.clone()),
            ("proxy.memoryLimit", options::MEMORY_LIMIT, proxy.memory_limit.clone()),
            ("proxy.nativeSidecar", options::NATIVE_SIDECAR, native.to_owned()),
            ("proxy.skipInboundPorts", options::SKIP_INBOUND, proxy.skip_inbound_ports.clone()),
            ("proxy.skipOutboundPorts", options::SKIP_OUTBOUND, proxy.skip_outbound_ports.clone()),
            ("proxy.skipSubnets", options::SKIP_SUBNETS, proxy.skip_subnets.clone()),
        ]
    }

    /// `ghcr.io/meshctl/mesh-control:0.1.0`
    pub fn image(&self, name: &str) -> String {
        let registry = &self.image.registry;
        let slash = if registry.is_empty() { "" } else { "/" };
        format!("{registry}{slash}{name}:{}", self.image.tag)
    }
}

/// What stands behind the colon of an image; a digest is of one image, and there are several.
fn is_tag(text: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.len() <= 128 && text.starts_with(word) && text.chars().all(|c| word(c) || ".-".contains(c))
}

/// Labels of lower-case letters, digits and dashes, between dots.
fn is_object_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.len() <= 253
        && text.split('.').all(|label| {
            label.starts_with(plain)
                && label.ends_with(plain)
                && label.chars().all(|c| plain(c) || c == '-')
        })
}

/// A number with a unit or an exponent. Unlike a proxy's, it may be zero.
fn is_quantity(text: &str) -> bool {
    const UNITS: [&str; 16] =
        ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let exponent = unit.strip_prefix(['e', 'E']).and_then(|exponent| exponent.parse::<i8>().ok());
    number.parse::<f64>().is_ok() && (UNITS.contains(&unit) || exponent.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(sets: &[&str]) -> Result<Values, CliError> {
        let mut overrides = Overrides::default();
        for set in sets {
            overrides.set(set)?;
        }
        overrides.resolve(Profile::Default)
    }

    #[test]
    fn values_are_set_by_their_path() {
        let values =
            with(&["controlPlane.replicas=3", "image.registry=r.example/x", "image.tag=v1"]);
        let values = values.unwrap();
        assert_eq!(values.control_plane.replicas, 3);
        assert_eq!(values.image("mesh-proxy"), "r.example/x/mesh-proxy:v1");
        assert_eq!(with(&["image.tag=1.10"]).unwrap().image.tag, "1.10");
        let selector = with(&["controlPlane.nodeSelector.mesh=true"]).unwrap().control_plane;
        assert_eq!(selector.node_selector["mesh"], "true");
        let values = with(&["controlPlane.clusterNetworks=[10.0.0.0/8, fd00::/8]"]).unwrap();
        assert_eq!(values.control_plane.cluster_networks.len(), 2);
    }

    #[test]
    fn labels_of_nodes_have_dots() {
        let sets = ["controlPlane.nodeSelector.topology.kubernetes.io/zone=1"];
        let selector = with(&sets).unwrap().control_plane.node_selector;
        assert_eq!(selector["topology.kubernetes.io/zone"], "1");
        assert_eq!(selector["kubernetes.io/os"], "linux");
    }

    #[test]
    fn what_kubernetes_and_the_injector_understand_is_taken() {
        for set in [
            "controlPlane.resources.limits={cpu: '1.5', memory: 1e9, example.com/x: 12E}",
            "controlPlane.resources.requests={cpu: '0', memory: 2Gi}",
            "controlPlane.resources.limits.cpu=2",
            "controlPlane.priorityClassName=system-cluster-critical",
            "controlPlane.log=warn,mesh_control::index=debug",
            "image.registry=",
            "image.registry=localhost:5000/a_b",
            "image.tag=V1_0-rc.1",
            "proxy.memoryLimit=",
            "proxy.skipInboundPorts=22, 9000-9010",
            "proxy.skipSubnets=10.0.0.0/8,fd00::/8",
        ] {
            with(&[set]).unwrap_or_else(|error| panic!("{set}: {error}"));
        }
    }

    #[test]
    fn unknown_keys_are_refused_with_the_nearest() {
        let error = with(&["controlPlane.replica=3"]).unwrap_err();
        assert_eq!(error.message, "there is no value \"controlPlane.replica\"");
        assert!(error.hint.unwrap().starts_with("controlPlane.replicas"));
        assert!(with(&["image=x"]).is_err() && with(&["=3"]).is_err() && with(&["x"]).is_err());
    }

    #[test]
    fn wrong_types_and_bounds_are_told_by_key() {
        for (set, key) in [
            ("controlPlane.replicas=many", "controlPlane.replicas"),
            ("controlPlane.replicas=0", "controlPlane.replicas"),
            ("controlPlane.resources.limit.cpu=1", "controlPlane.resources"),
            ("image.pullPolicy=Sometimes", "image.pullPolicy"),
            ("image.tag=", "image.tag"),
            ("identity.trustDomain=No Domain", "identity.trustDomain"),
            ("identity.certificateLifetime=forever", "identity.certificateLifetime"),
            ("controlPlane.defaultInboundPolicy=open", "controlPlane.defaultInboundPolicy"),
            ("controlPlane.clusterNetworks=[ten]", "controlPlane.clusterNetworks"),
            ("image.tag=0.1.0/x", "image.tag"),
            ("image.tag=0.1.0@sha256:00", "image.tag"),
            ("image.registry=r.example/$x", "image.registry"),
            ("controlPlane.log=a=b=c", "controlPlane.log"),
            ("controlPlane.log=", "controlPlane.log"),
            ("controlPlane.log=$(HOME)", "controlPlane.log"),
            ("controlPlane.priorityClassName=Very High", "controlPlane.priorityClassName"),
            ("controlPlane.resources.limits.cpu=many", "controlPlane.resources.limits.cpu"),
            ("controlPlane.resources.requests.cpu=5mi", "controlPlane.resources.requests.cpu"),
            ("proxy.log=a=b=c", "proxy.log"),
            ("proxy.cpuRequest=-1", "proxy.cpuRequest"),
            ("proxy.cpuLimit=one", "proxy.cpuLimit"),
            ("proxy.memoryRequest=20MB", "proxy.memoryRequest"),
            ("proxy.memoryLimit=1 Gi", "proxy.memoryLimit"),
            ("proxy.skipInboundPorts=ssh", "proxy.skipInboundPorts"),
            ("proxy.skipOutboundPorts=70000", "proxy.skipOutboundPorts"),
            ("proxy.skipSubnets=10.0.0.0/40", "proxy.skipSubnets"),
            ("gateway.replicas=0", "gateway.replicas"),
            ("gateway.ports=[]", "gateway.ports"),
            ("gateway.ports=[80, 80]", "gateway.ports"),
            ("gateway.ports=[80, 4140]", "gateway.ports: 4140"),
            ("gateway.ports=[4143]", "gateway.ports: 4143"),
            ("gateway.ports=[4190]", "gateway.ports: 4190"),
            ("gateway.ports=[4191]", "gateway.ports: 4191"),
            ("gateway.maxClientConnections=0", "gateway.maxClientConnections"),
            ("gateway.maxClientConnections=10000001", "gateway.maxClientConnections"),
        ] {
            let error = with(&[set]).unwrap_err().message;
            assert!(error.starts_with(key), "{set}: {error}");
        }
    }

    #[test]
    fn later_values_win_and_files_nest() {
        let mut overrides =
            Overrides::from_yaml("values.yaml", "image: {tag: a, registry: r}\n").unwrap();
        overrides.set("image.tag=b").unwrap();
        let values = overrides.resolve(Profile::Ha).unwrap();
        assert_eq!(values.image("mesh-demo"), "r/mesh-demo:b");
        assert_eq!(values.control_plane.replicas, 3);
        assert!(Overrides::from_yaml("values.yaml", "- a").is_err());
        assert_eq!(Overrides::from_yaml("values.yaml", "").unwrap(), Overrides::default());
    }
}
