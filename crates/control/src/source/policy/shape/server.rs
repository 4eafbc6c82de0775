//! ServerPolicy, as it is written.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::schema;
use super::{Fault, PolicyStatus, TargetRef};

/// How the proxies of a workload treat one of its ports, or all.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "policy.meshctl.dev",
    version = "v1alpha1",
    kind = "ServerPolicy",
    plural = "serverpolicies",
    category = "meshctl",
    namespaced,
    status = "PolicyStatus",
    derive = "PartialEq",
    doc = "Says what a port of a workload speaks, how much it takes, what fails there on purpose, and \
           who may use it where no AuthorizationPolicy says so. A policy about one port goes before one about all ports of \
           the workload, field by field; of two about the same, the older one counts.",
    printcolumn(name = "Kind", type_ = "string", json_path = ".spec.targetRef.kind"),
    printcolumn(name = "Target", type_ = "string", json_path = ".spec.targetRef.name"),
    printcolumn(name = "Port", type_ = "string", json_path = ".spec.targetRef.port"),
    printcolumn(name = "Protocol", type_ = "string", json_path = ".spec.protocol"),
    printcolumn(
        name = "Rate",
        type_ = "integer",
        json_path = ".spec.rateLimit.total.requestsPerSecond"
    ),
    printcolumn(name = "Default", type_ = "string", json_path = ".spec.defaultAccess"),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new(
        "!(self.targetRef.kind in ['Namespace', 'Service', 'HTTPRoute', 'GRPCRoute'])"
    ).message(
        "a ServerPolicy is about a workload or pods; of a namespace, set the annotation \
         config.meshctl.dev/default-inbound-policy"
    ),
    validation = Rule::new(
        "has(self.protocol) || has(self.rateLimit) || has(self.concurrency) || \
         has(self.defaultAccess) || has(self.faults)"
    ).message("says nothing about its target"),
    validation = Rule::new(
        "!(has(self.protocol) && self.protocol == 'opaque') || \
         !(has(self.rateLimit) || has(self.concurrency))"
    ).message("limits are for requests, and an opaque port has none"),
    validation = Rule::new(
        "!(has(self.protocol) && self.protocol == 'opaque') || !has(self.faults)"
    ).message("faults are for requests, and an opaque port has none")
)]
pub struct ServerPolicySpec {
    /// The workload or the pods, and the port.
    pub target_ref: TargetRef,
    /// What clients speak. Left out, the Service's appProtocol and the opaque ports say it, or it is
    /// detected. On a port that speaks HTTP, connections of bytes are refused.
    #[schemars(schema_with = "schema::port_protocol")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// How many requests a second each pod takes. More are answered 429, or RESOURCE_EXHAUSTED.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
    /// How many requests each pod takes at a time. More are answered 503, or RESOURCE_EXHAUSTED, at
    /// once.
    #[schemars(schema_with = "schema::count")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// Who may use the port where no AuthorizationPolicy says so.
    #[schemars(schema_with = "schema::default_access")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_access: Option<String>,
    /// Failures and delays of requests that are allowed, to see what clients make of them. Those of all
    /// policies about the same apply; declared health probes are spared.
    #[schemars(length(min = 1, max = 16))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<Fault>,
}

/// Every bound that is set has to let a request pass.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("minProperties" = 1))]
pub struct RateLimit {
    /// Of all clients together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<Rate>,
    /// Of each client: of its identity, or of its address if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_identity: Option<Rate>,
    /// Of clients that are named, each for itself, instead of perIdentity.
    #[schemars(length(min = 1, max = 64))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overrides: Option<Vec<RateOverride>>,
    /// Of each value of a request header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_header: Option<HeaderRate>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rate {
    #[schemars(schema_with = "schema::count")]
    pub requests_per_second: u32,
    /// How many may come at once after a pause. Left out, as many as in a second.
    #[schemars(schema_with = "schema::count")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
}

#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("has(self.identities) || has(self.serviceAccounts)")
    .message("names nobody"))]
pub struct RateOverride {
    #[schemars(length(min = 1, max = 256), inner(length(min = 1, max = 253)))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub identities: Vec<String>,
    /// `ACCOUNT` of the policy's namespace, or `NAMESPACE/ACCOUNT`.
    #[schemars(length(min = 1, max = 256), inner(length(min = 1, max = 317)))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub service_accounts: Vec<String>,
    #[schemars(schema_with = "schema::count")]
    pub requests_per_second: u32,
    /// How many may come at once after a pause. Left out, as many as in a second.
    #[schemars(schema_with = "schema::count")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
}

/// Requests without the header are of one value.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderRate {
    #[schemars(length(min = 1, max = 256))]
    pub name: String,
    #[schemars(schema_with = "schema::count")]
    pub requests_per_second: u32,
    /// How many may come at once after a pause. Left out, as many as in a second.
    #[schemars(schema_with = "schema::count")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
}
