//! BackendTrafficPolicy, as it is written.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::schema;
use super::{Fault, PolicyStatus, TargetRef, is_false};

/// How clients of a Service spread their requests, and how many they make; which requests of a route
/// are to fail.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "policy.meshctl.dev",
    version = "v1alpha1",
    kind = "BackendTrafficPolicy",
    plural = "backendtrafficpolicies",
    shortname = "btp",
    category = "meshctl",
    namespaced,
    status = "PolicyStatus",
    derive = "PartialEq",
    doc = "Says how clients of a Service balance, when they leave an endpoint alone, how much they ask \
           at a time and how often again. A policy about one port goes before one about the whole \
           Service, field by field; of two about the same, the older one counts. About a route, it \
           says which of its requests fail or take longer.",
    printcolumn(name = "Kind", type_ = "string", json_path = ".spec.targetRef.kind"),
    printcolumn(name = "Target", type_ = "string", json_path = ".spec.targetRef.name"),
    printcolumn(name = "Port", type_ = "string", json_path = ".spec.targetRef.port"),
    printcolumn(name = "Balancer", type_ = "string", json_path = ".spec.loadBalancer.type"),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("self.targetRef.kind in ['Service', 'HTTPRoute', 'GRPCRoute']")
        .message("a BackendTrafficPolicy is about a Service, an HTTPRoute or a GRPCRoute"),
    validation = Rule::new(
        "self.targetRef.kind == 'Service' || !(has(self.loadBalancer) || has(self.circuitBreaker) || \
         has(self.limits) || has(self.retryBudget) || has(self.retry) || has(self.zonePreference))"
    ).message("about a route, a BackendTrafficPolicy has faults only; the rest is the Service's"),
    validation = Rule::new(
        "has(self.loadBalancer) || has(self.circuitBreaker) || has(self.limits) || \
         has(self.retryBudget) || has(self.retry) || has(self.zonePreference) || has(self.faults)"
    ).message("says nothing about its target")
)]
pub struct BackendTrafficPolicySpec {
    /// The Service, and maybe one of its ports; or a route, and maybe one of its rules.
    pub target_ref: TargetRef,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancer>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub circuit_breaker: Option<CircuitBreaker>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_budget: Option<RetryBudget>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// Which endpoints clients use: those of their own zone while one of them is ready (Prefer), only
    /// those (Require), or all (Ignore). Left out, as the hints say that come of the Service's
    /// trafficDistribution.
    #[schemars(schema_with = "schema::zone_preference")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone_preference: Option<String>,
    /// Failures and delays, to see what comes of them. Those of all policies about the same apply,
    /// a route's before the Service's.
    #[schemars(length(min = 1, max = 16))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<Fault>,
}

/// How an endpoint is picked.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("!has(self.hashHeader) || self.type == 'RingHash'")
        .message("hashHeader is for RingHash"),
    validation = Rule::new("!has(self.slowStart) || self.type != 'RingHash'")
        .message("by a hash there is no slow start")
)]
pub struct LoadBalancer {
    #[schemars(schema_with = "schema::balancer")]
    pub r#type: String,
    /// RingHash: requests with the same value of this header go to the same endpoint. Left out, those
    /// from the same address.
    #[schemars(length(min = 1, max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_header: Option<String>,
    /// How long a new endpoint takes to get its whole share, from a tenth of it. Left out, it gets it
    /// at once.
    #[schemars(schema_with = "schema::duration")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<String>,
}

/// When an endpoint is left alone for a while. 5xx, gRPC codes that mean a failure, broken connections
/// and what takes too long are failures.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new(
    "!(has(self.disabled) && self.disabled) || !(has(self.consecutiveFailures) || \
     has(self.successRate) || has(self.latency) || has(self.backoff) || has(self.minReadyEndpoints))"
).message("a breaker that is disabled has no settings"))]
pub struct CircuitBreaker {
    /// Endpoints are never left alone.
    #[serde(default, skip_serializing_if = "is_false")]
    pub disabled: bool,
    /// Failures in a row that open it. Left out, 7; or none if there is a successRate.
    #[schemars(schema_with = "schema::count")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consecutive_failures: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success_rate: Option<SuccessRate>,
    /// A response whose head takes longer is a failure. Left out, none is.
    #[schemars(schema_with = "schema::duration")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Backoff>,
    /// So many endpoints are never left alone, whatever they do. Left out, 1; with 0, all may be.
    #[schemars(schema_with = "schema::count_or_none")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_ready_endpoints: Option<u32>,
}

/// Opens it when the moving success rate falls below a threshold.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SuccessRate {
    /// Percent. Left out, 80.
    #[schemars(schema_with = "schema::percent")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<u32>,
    /// How far it looks back. Left out, 10s.
    #[schemars(schema_with = "schema::duration")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<String>,
    /// Before so many responses it stays closed. Left out, 5.
    #[schemars(schema_with = "schema::count")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_requests: Option<u32>,
}

/// How long an endpoint is left alone before one request tries it: twice as long each time that fails.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Backoff {
    /// At first. Left out, 1s.
    #[schemars(schema_with = "schema::duration")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<String>,
    /// At most. Left out, 60s.
    #[schemars(schema_with = "schema::duration")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<String>,
}

/// What one client pod may have at the Service.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("minProperties" = 1))]
pub struct Limits {
    /// Connections for HTTP to each endpoint. Left out, 1024.
    #[schemars(schema_with = "schema::count")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections_per_endpoint: Option<u32>,
    /// Requests that wait for an endpoint, or at one for a connection. More are answered 503. Left out,
    /// 10000.
    #[schemars(schema_with = "schema::count")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending_requests: Option<u32>,
    /// Requests at a time, waiting ones included. More are answered 503. Left out, there is no bound
    /// but the proxy's own.
    #[schemars(schema_with = "schema::count")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_in_flight: Option<u32>,
}

/// How many retries one client pod may make of requests to the Service, over 10 s.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetryBudget {
    /// Of the requests. Left out, 20.
    #[schemars(schema_with = "schema::percent_or_none")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u32>,
    /// On top of that. Left out, 10.
    #[schemars(schema_with = "schema::count_or_none")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_per_second: Option<u32>,
}

/// What is tried again of requests to the Service by rules that have no retry of their own. Only what may
/// be processed twice is.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Retry {
    /// Tries after the first, 0 to 100. Left out, 1.
    #[schemars(range(min = 0, max = 100))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// HTTP statuses that call for another try. Broken connections and tries that take too long always do.
    #[schemars(length(min = 1, max = 64), inner(range(min = 400, max = 599)))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub codes: Vec<u16>,
    /// gRPC codes that do, 1 to 16.
    #[schemars(length(min = 1, max = 16), inner(range(min = 1, max = 16)))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grpc_codes: Vec<u16>,
    /// Before the second try; ten times as long at most before later ones. Left out, 25ms.
    #[schemars(schema_with = "schema::duration")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<String>,
}
