//! Our kinds as they are written, in files and in a cluster.
//!
//! The types are also what the CustomResourceDefinitions are made of ([`super::crds`]): their comments
//! are what `kubectl explain` tells. What an API server can check, it checks; [`super`] checks all of
//! it, since files have no API server.

mod backend;
mod egress;
mod fault;
mod server;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::core::ObjectMeta;
use kube::{CustomResource, KubeSchema};
use mesh_model::authz;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

pub use self::backend::{
    BackendTrafficPolicy, BackendTrafficPolicySpec, CircuitBreaker, Limits, LoadBalancer, Retry,
    RetryBudget,
};
pub use self::egress::{Departure, EgressPolicy, EgressPolicySpec};
pub use self::fault::{Abort, Fault};
pub use self::server::{Rate, RateLimit, RateOverride, ServerPolicy, ServerPolicySpec};
use super::schema;

/// An object as it is written, of which nothing is passed over.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Written<S> {
    pub(super) api_version: String,
    #[serde(rename = "kind")]
    _kind: IgnoredAny,
    pub(super) metadata: ObjectMeta,
    pub(super) spec: S,
    #[serde(default, rename = "status")]
    _status: IgnoredAny,
}

pub type AuthorizationPolicyObject = Written<AuthorizationPolicySpec>;
pub type BackendTrafficPolicyObject = Written<BackendTrafficPolicySpec>;
pub type EgressPolicyObject = Written<EgressPolicySpec>;
pub type ServerPolicyObject = Written<ServerPolicySpec>;

/// Who may do what at a workload, a Service, the requests of a route, or everything in the namespace.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "policy.meshctl.dev",
    version = "v1alpha1",
    kind = "AuthorizationPolicy",
    plural = "authorizationpolicies",
    shortname = "authzpolicy",
    category = "meshctl",
    namespaced,
    status = "PolicyStatus",
    derive = "PartialEq",
    doc = "Allows, denies or audits what clients do with its target. Once any policy allows something \
           at a port, what none allows is denied there.",
    printcolumn(name = "Action", type_ = "string", json_path = ".spec.action"),
    printcolumn(name = "Kind", type_ = "string", json_path = ".spec.targetRef.kind"),
    printcolumn(name = "Target", type_ = "string", json_path = ".spec.targetRef.name"),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("!has(self.targetRef) || !has(self.targetRef.sectionName)")
    .message("an AuthorizationPolicy is about all requests of a route; tell them apart in `to`"))]
pub struct AuthorizationPolicySpec {
    /// What the policy is about, in its own namespace. Left out, it is about all of the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// What becomes of matching requests: they are allowed, denied, or let through and reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<Action>,
    /// Clients, any of these. Left out, everybody.
    #[schemars(length(min = 1, max = 64))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Vec<From>>,
    /// Requests, any of these. Left out, everything.
    #[schemars(length(min = 1, max = 64))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Vec<To>>,
}

/// What the control plane makes of a policy.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// `Accepted`: whether it is in force. `ResolvedRefs`: whether what it is about is there.
    /// `Conflicted`: whether an older policy about the same is in force in its place.
    #[schemars(schema_with = "schema::conditions")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// An object in the policy's own namespace.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("self.kind == 'Pod' ? !has(self.name) : has(self.name)")
        .message("name says which object the policy is about; pods are meant by selector.matchLabels"),
    validation = Rule::new("(self.kind == 'Pod') == has(self.selector)")
        .message("kind Pod needs a selector, and only pods are selected"),
    validation = Rule::new("!has(self.port) || !(self.kind in ['Namespace', 'HTTPRoute', 'GRPCRoute'])")
        .message("a Namespace or a route has no port"),
    validation = Rule::new("!has(self.sectionName) || self.kind in ['HTTPRoute', 'GRPCRoute']")
        .message("sectionName names a rule of a route")
)]
pub struct TargetRef {
    /// The group of the kind; may be left out.
    #[schemars(length(max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    #[schemars(schema_with = "schema::target_kind")]
    pub kind: String,
    #[schemars(length(min = 1, max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// One port only, by number or name: of the pods, or of the Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<Port>,
    /// One rule of a route only, by its name. In a BackendTrafficPolicy.
    #[schemars(length(min = 1, max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
    /// With kind Pod: which pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Port {
    Number(i64),
    Name(String),
}

/// Written by hand: the derived one would not be structural.
impl JsonSchema for Port {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Port".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "anyOf": [{ "type": "integer" }, { "type": "string" }],
            "minimum": 1,
            "maximum": 65535,
            "minLength": 1,
            "maxLength": 63,
        })
    }
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    /// Pods with all of these labels.
    #[schemars(extend("minProperties" = 1, "maxProperties" = 64))]
    pub match_labels: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize, JsonSchema)]
pub enum Action {
    #[default]
    Allow,
    Deny,
    Audit,
}

impl std::convert::From<Action> for authz::Action {
    fn from(action: Action) -> Self {
        match action {
            Action::Allow => Self::Allow,
            Action::Deny => Self::Deny,
            Action::Audit => Self::Audit,
        }
    }
}

/// Clients. Of identities, service accounts and namespaces any one has to fit; networks have to fit
/// besides.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("minProperties" = 1))]
#[x_kube(validation = Rule::new(
    "!(has(self.unauthenticated) && self.unauthenticated) || !(has(self.identities) || \
     has(self.serviceAccounts) || has(self.namespaces) || \
     (has(self.authenticated) && self.authenticated))"
).message("names identities, any identity, and no identity; write items of their own"))]
pub struct From {
    /// Identities, `*.` before a suffix, or `*` for any.
    #[schemars(length(min = 1, max = 256), inner(length(min = 1, max = 253)))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub identities: Vec<String>,
    /// `ACCOUNT` of the policy's namespace, or `NAMESPACE/ACCOUNT`.
    #[schemars(length(min = 1, max = 256), inner(length(min = 1, max = 317)))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub service_accounts: Vec<String>,
    /// All service accounts of these namespaces.
    #[schemars(length(min = 1, max = 256), inner(length(min = 1, max = 63)))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// `10.0.0.0/8`, or `{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}`.
    #[schemars(length(min = 1, max = 256))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<NetworkRange>,
    /// Any client with an identity of this mesh.
    #[serde(default, skip_serializing_if = "is_false")]
    pub authenticated: bool,
    /// Clients without an identity.
    #[serde(default, skip_serializing_if = "is_false")]
    pub unauthenticated: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

impl From {
    pub(super) fn is_empty(&self) -> bool {
        self.identities.is_empty()
            && self.service_accounts.is_empty()
            && self.namespaces.is_empty()
            && self.networks.is_empty()
            && !self.authenticated
            && !self.unauthenticated
    }
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(untagged)]
pub enum NetworkRange {
    Net(String),
    Range(Range),
}

/// A structural schema has no way to say "text or object": what is neither is found by the control
/// plane, which says so in the policy's status.
impl JsonSchema for NetworkRange {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "NetworkRange".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "x-kubernetes-preserve-unknown-fields": true })
    }
}

#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    pub cidr: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<String>,
}

/// Requests. Of each list any one has to fit, and of those lists that are there all have to.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new(
    "has(self.paths) || has(self.methods) || has(self.headers) || has(self.grpc)"
).message("names no request; leave out `to` to mean everything"))]
pub struct To {
    /// `/orders`, or `/orders/*` for all below.
    #[schemars(length(min = 1, max = 256), inner(length(min = 1, max = 1024)))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    #[schemars(length(min = 1, max = 32), inner(length(min = 1, max = 32)))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    #[schemars(length(min = 1, max = 16))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<Header>,
    #[schemars(length(min = 1, max = 64))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grpc: Vec<GrpcMethods>,
}

impl To {
    pub(super) fn is_empty(&self) -> bool {
        self.paths.is_empty()
            && self.methods.is_empty()
            && self.headers.is_empty()
            && self.grpc.is_empty()
    }
}

#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    #[schemars(length(min = 1, max = 256))]
    pub name: String,
    #[schemars(length(max = 4096))]
    pub value: String,
    /// How the value is compared; `Exact` when it is left out.
    #[schemars(schema_with = "schema::header_match")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r#type: Option<String>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct GrpcMethods {
    /// `package.Service`
    #[schemars(length(min = 1, max = 1024))]
    pub service: String,
    /// Left out, all of the service's.
    #[schemars(length(max = 64), inner(length(min = 1, max = 1024)))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
}
