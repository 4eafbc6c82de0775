//! Our own kinds, `policy.meshctl.dev/v1alpha1`, as objects of the index.
//!
//! A policy that is only half understood could let in too many, so that here, other than elsewhere,
//! an unknown field is an error: the object is not in force, and its last good version stays so.

mod backend;
mod egress;
mod fault;
mod schema;
mod server;
#[expect(
    unreachable_pub,
    clippy::duplicated_attributes,
    reason = "of types that kube's derive makes and keeps to itself; columns of one type"
)]
mod shape;
#[cfg(test)]
mod tests;

use http::{HeaderName, Method};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
};
use kube::CustomResourceExt;
use mesh_model::authz::{ClientMatch, IdentityPattern, Operation, PathPattern, Source};
use mesh_model::inbound::{Cidr, Network};
use mesh_model::matching::Pattern;
use mesh_model::route::{HeaderMatch, ValueMatch};

pub use self::backend::backend_traffic_policy;
pub use self::egress::egress_policy;
pub use self::server::server_policy;
pub use self::shape::{
    Abort, Action, AuthorizationPolicyObject, AuthorizationPolicySpec, BackendTrafficPolicyObject,
    BackendTrafficPolicySpec, Departure, EgressPolicyObject, EgressPolicySpec, Fault, From,
    GrpcMethods, Header, NetworkRange, PolicyStatus, Port, Range, Selector, ServerPolicyObject,
    ServerPolicySpec, TargetRef, To, Written,
};
use super::Finding;
use super::kubernetes::{Converted, name_of};
use crate::index::identity::MeshNames;
use crate::index::object::{AuthorizationPolicy, Kind, Name, POLICY_GROUP, PolicyTarget, PortRef};

const VERSION: &str = "policy.meshctl.dev/v1alpha1";

/// What makes a cluster understand our kinds, for `meshctl install`.
pub fn crds() -> Vec<CustomResourceDefinition> {
    let mut all = vec![
        shape::AuthorizationPolicy::crd(),
        shape::BackendTrafficPolicy::crd(),
        shape::EgressPolicy::crd(),
        shape::ServerPolicy::crd(),
    ];
    let versions = all.iter_mut().flat_map(|crd| &mut crd.spec.versions);
    let schemas =
        versions.filter_map(|version| version.schema.as_mut()?.open_api_v3_schema.as_mut());
    schemas.for_each(without_rust_formats);
    all
}

/// The widths of Rust's integers say nothing that the bounds do not, and API servers warn of them.
fn without_rust_formats(schema: &mut JSONSchemaProps) {
    schema.format.take_if(|format| format.starts_with("uint"));
    let properties = schema.properties.iter_mut().flat_map(|all| all.values_mut());
    properties.for_each(without_rust_formats);
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        without_rust_formats(items);
    }
}

/// `names` is what the identities of service accounts end in.
pub fn authorization_policy(
    object: &AuthorizationPolicyObject,
    names: &MeshNames,
) -> Converted<AuthorizationPolicy> {
    let mut read = Reader::new(name_of(&object.metadata), names);
    read.version(&object.api_version);
    let spec = &object.spec;
    if spec.target_ref.as_ref().is_some_and(|target| target.section_name.is_some()) {
        let message =
            "an AuthorizationPolicy is about all requests of a route; tell them apart in `to`";
        read.error("spec.targetRef.sectionName", message);
    }
    let policy = AuthorizationPolicy {
        target: read.target(spec.target_ref.as_ref()),
        action: spec.action.unwrap_or_default().into(),
        from: read.items(spec.from.as_deref(), "from", "everybody", Reader::source),
        to: read.items(spec.to.as_deref(), "to", "everything", Reader::operation),
        name: read.name,
    };
    (policy, read.findings)
}

struct Reader<'a> {
    name: Name,
    names: &'a MeshNames,
    findings: Vec<Finding>,
}

impl<'a> Reader<'a> {
    fn new(name: Name, names: &'a MeshNames) -> Self {
        Self { name, names, findings: Vec::new() }
    }

    fn error(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.findings.push(Finding::error(field, message));
    }

    fn version(&mut self, version: &str) {
        if version != VERSION {
            self.error("apiVersion", format!("{POLICY_GROUP} has the version {VERSION} only"));
        }
    }

    fn target(&mut self, target: Option<&TargetRef>) -> PolicyTarget {
        const AT: &str = "spec.targetRef";
        let Some(target) = target else { return PolicyTarget::Namespace };
        let port = target.port.as_ref().and_then(|port| self.port(port));
        let name = target.name.clone().unwrap_or_default();
        let (workload, is_pod) = (Kind::workload(&target.kind), target.kind == "Pod");
        if name.is_empty() && !is_pod {
            self.error(format!("{AT}.name"), "says which object the policy is about");
        }
        if let Some(section) = &target.section_name {
            if !matches!(target.kind.as_str(), "HTTPRoute" | "GRPCRoute") {
                let message = format!("names a rule of a route, and a {} has none", target.kind);
                self.error(format!("{AT}.sectionName"), message);
            } else if !is_name(section, b"-.") {
                let message = format!("`{section}` is not the name of a rule");
                self.error(format!("{AT}.sectionName"), message);
            }
        }
        if target.selector.is_some() && !is_pod {
            self.error(format!("{AT}.selector"), "only pods are selected, with kind Pod");
        }
        let group = match target.kind.as_str() {
            "HTTPRoute" | "GRPCRoute" => "gateway.networking.k8s.io",
            "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" => "apps",
            "Job" | "CronJob" => "batch",
            _ => "",
        };
        let given = target.group.as_deref().unwrap_or_default();
        if !given.is_empty() && given != group && (given, group) != ("core", "") {
            self.error(
                format!("{AT}.group"),
                format!("{} is of the group \"{group}\"", target.kind),
            );
        }
        match (target.kind.as_str(), workload) {
            ("Namespace", _) => {
                if name != self.name.namespace {
                    let message = format!("is not {}, the policy's own", self.name.namespace);
                    self.error(format!("{AT}.name"), message);
                }
                self.no_port(target);
                PolicyTarget::Namespace
            }
            ("Service", _) => PolicyTarget::Service { name, port },
            ("HTTPRoute" | "GRPCRoute", _) => {
                let grpc = target.kind == "GRPCRoute";
                self.no_port(target);
                PolicyTarget::Route {
                    kind: if grpc { Kind::GrpcRoute } else { Kind::HttpRoute },
                    name,
                    rule: target.section_name.clone(),
                }
            }
            ("Pod", _) => {
                let labels = target.selector.as_ref().map(|s| s.match_labels.clone());
                if !name.is_empty() || labels.as_ref().is_none_or(|labels| labels.is_empty()) {
                    let message = "pods are meant by their labels: selector.matchLabels";
                    self.error(format!("{AT}.selector"), message);
                }
                PolicyTarget::Pods { labels: labels.unwrap_or_default(), port }
            }
            (_, Some(kind)) if kind.as_str() == target.kind => {
                PolicyTarget::Workload { kind, name, port }
            }
            (kind, _) => {
                let kinds = schema::TARGET_KINDS.join(", ");
                let message = format!("`{kind}` is not one of {kinds}");
                self.error(format!("{AT}.kind"), message);
                PolicyTarget::Namespace
            }
        }
    }

    fn port(&mut self, port: &Port) -> Option<PortRef> {
        match port {
            Port::Number(number) => match u16::try_from(*number).ok().filter(|port| *port > 0) {
                Some(number) => Some(PortRef::Number(number)),
                None => {
                    self.error("spec.targetRef.port", format!("{number} is not from 1 to 65535"));
                    None
                }
            },
            Port::Name(name) if !name.is_empty() => Some(PortRef::Name(name.clone())),
            Port::Name(_) => {
                self.error("spec.targetRef.port", "is neither a number nor a name");
                None
            }
        }
    }

    fn no_port(&mut self, target: &TargetRef) {
        if target.port.is_some() {
            self.error("spec.targetRef.port", format!("a {} has no port", target.kind));
        }
    }

    /// A list that is left out means all; one that is empty could be meant as none.
    fn items<T, R>(
        &mut self,
        items: Option<&[T]>,
        field: &str,
        all: &str,
        read: impl Fn(&mut Self, &T, &str) -> R,
    ) -> Vec<R> {
        let Some(items) = items else { return Vec::new() };
        if items.is_empty() {
            self.error(format!("spec.{field}"), format!("is empty; leave it out to mean {all}"));
        }
        let each = items.iter().enumerate();
        each.map(|(index, item)| read(self, item, &format!("spec.{field}[{index}]"))).collect()
    }

    fn source(&mut self, from: &From, at: &str) -> Source {
        let mut patterns = Vec::new();
        let mut any = from.authenticated;
        for (index, text) in from.identities.iter().enumerate() {
            // Any identity at all.
            if text == "*" {
                any = true;
                continue;
            }
            match text.parse() {
                Ok(pattern) => patterns.push(pattern),
                Err(error) => self.error(format!("{at}.identities[{index}]"), format!("{error}")),
            }
        }
        for (index, text) in from.service_accounts.iter().enumerate() {
            let identity = self.account(text, &format!("{at}.serviceAccounts[{index}]"));
            patterns.extend(identity.map(IdentityPattern::Exact));
        }
        for (index, namespace) in from.namespaces.iter().enumerate() {
            if is_name(namespace, b"-") {
                patterns.push(IdentityPattern::Suffix(self.names.suffix(namespace)));
            } else {
                let message = format!("`{namespace}` is not the name of a namespace");
                self.error(format!("{at}.namespaces[{index}]"), message);
            }
        }
        let ways = [any, from.unauthenticated, !patterns.is_empty()];
        if ways.into_iter().filter(|given| *given).count() > 1 {
            let message =
                "names identities, any identity, and no identity; write items of their own";
            self.error(at, message);
        }
        if from.is_empty() {
            self.error(at, "names nobody; leave out `from` to mean everybody");
        }
        let networks = from.networks.iter().enumerate();
        let networks = networks
            .filter_map(|(index, network)| {
                self.network(network, &format!("{at}.networks[{index}]"))
            })
            .collect();
        let client = match (any, from.unauthenticated, patterns.is_empty()) {
            (true, ..) => ClientMatch::Authenticated,
            (_, true, _) => ClientMatch::Unauthenticated,
            (_, _, false) => ClientMatch::Among(patterns),
            (_, _, true) => ClientMatch::Anyone,
        };
        Source { client, networks }
    }

    /// The identity of a service account.
    fn account(&mut self, text: &str, at: &str) -> Option<String> {
        let own = self.name.namespace.clone();
        let (namespace, account) = text.split_once('/').unwrap_or((&own, text));
        if is_name(namespace, b"-") && is_name(account, b"-.") {
            return Some(format!("{account}.{}", self.names.suffix(namespace)));
        }
        self.error(at, format!("`{text}` is neither an account nor NAMESPACE/ACCOUNT"));
        None
    }

    fn network(&mut self, network: &NetworkRange, at: &str) -> Option<Network> {
        let (net, except) = match network {
            NetworkRange::Net(net) => (net, &[][..]),
            NetworkRange::Range(range) => (&range.cidr, range.except.as_slice()),
        };
        let net = self.cidr(net, at);
        let except: Vec<Cidr> = except.iter().filter_map(|net| self.cidr(net, at)).collect();
        Some(Network { net: net?, except })
    }

    fn cidr(&mut self, text: &str, at: &str) -> Option<Cidr> {
        text.parse().map_err(|error| self.error(at, format!("`{text}` {error}"))).ok()
    }

    fn operation(&mut self, to: &To, at: &str) -> Operation {
        if to.is_empty() {
            self.error(at, "names no request; leave out `to` to mean everything");
        }
        let mut operation = Operation::default();
        for (index, text) in to.paths.iter().enumerate() {
            match PathPattern::new(text) {
                Ok(path) => operation.paths.push(path),
                Err(error) => {
                    self.error(format!("{at}.paths[{index}]"), format!("`{text}`: {error}"));
                }
            }
        }
        for (index, methods) in to.grpc.iter().enumerate() {
            operation.paths.extend(self.grpc(methods, &format!("{at}.grpc[{index}]")));
        }
        for (index, text) in to.methods.iter().enumerate() {
            // Methods have case; nobody means `get`.
            match Method::from_bytes(text.to_ascii_uppercase().as_bytes()) {
                Ok(method) => operation.methods.push(method),
                Err(_) => {
                    self.error(format!("{at}.methods[{index}]"), format!("`{text}` is no method"));
                }
            }
        }
        for (index, header) in to.headers.iter().enumerate() {
            operation.headers.extend(self.header(header, &format!("{at}.headers[{index}]")));
        }
        operation
    }

    fn grpc(&mut self, grpc: &GrpcMethods, at: &str) -> Vec<PathPattern> {
        let is_name = |name: &str| {
            !name.is_empty()
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        let all = ["*".to_owned()];
        let methods = if grpc.methods.is_empty() { &all[..] } else { &grpc.methods };
        let mut paths = Vec::new();
        for method in methods {
            let named = is_name(method) || std::ptr::eq(methods, &all[..]);
            match PathPattern::new(&format!("/{}/{method}", grpc.service)) {
                Ok(path) if named && is_name(&grpc.service) => paths.push(path),
                _ => {
                    let message =
                        format!("`{}/{method}` is not `package.Service/Method`", grpc.service);
                    self.error(at, message);
                }
            }
        }
        paths
    }

    fn header(&mut self, header: &Header, at: &str) -> Option<HeaderMatch> {
        let Ok(name) = HeaderName::from_bytes(header.name.as_bytes()) else {
            self.error(format!("{at}.name"), "is not the name of a header");
            return None;
        };
        let value = match header.r#type.as_deref().unwrap_or("Exact") {
            "Exact" => ValueMatch::Exact(header.value.clone().into_bytes()),
            "RegularExpression" => match Pattern::new(&header.value) {
                Ok(pattern) => ValueMatch::Regex(pattern),
                Err(error) => {
                    self.error(format!("{at}.value"), error.to_string());
                    return None;
                }
            },
            other => {
                let message = format!("`{other}` is neither Exact nor RegularExpression");
                self.error(format!("{at}.type"), message);
                return None;
            }
        };
        Some(HeaderMatch { name, value })
    }
}

/// A name of Kubernetes, with these characters besides letters and digits.
fn is_name(text: &str, others: &[u8]) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let ends = |byte: Option<&u8>| byte.is_some_and(|byte| plain(*byte));
    text.bytes().all(|byte| plain(byte) || others.contains(&byte))
        && ends(text.as_bytes().first())
        && ends(text.as_bytes().last())
        && !text.contains("..")
}
