//! EgressPolicy, as it is written.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::schema;
use super::{NetworkRange, PolicyStatus};

/// What workloads may send to hosts that are not of the mesh.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "policy.meshctl.dev",
    version = "v1alpha1",
    kind = "EgressPolicy",
    plural = "egresspolicies",
    category = "meshctl",
    namespaced,
    status = "PolicyStatus",
    derive = "PartialEq",
    doc = "Says what the workloads of its namespace may send to hosts that are not of the mesh; in the \
           control plane's namespace, those of all namespaces. What any policy denies is denied, what \
           any allows is allowed, and of the rest the namespace's default decides before the mesh's.",
    printcolumn(name = "Default", type_ = "string", json_path = ".spec.default"),
    printcolumn(name = "Allow", type_ = "string", json_path = ".spec.allow[*].hosts"),
    printcolumn(name = "Deny", type_ = "string", json_path = ".spec.deny[*].hosts"),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("has(self.default) || has(self.allow) || has(self.deny)")
        .message("says nothing about what may leave")
)]
pub struct EgressPolicySpec {
    /// What becomes of what no item names. Left out, other policies say so; if none does, it is
    /// allowed.
    #[schemars(schema_with = "schema::egress_action")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
    /// What may leave, any of these.
    #[schemars(length(min = 1, max = 64))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow: Option<Vec<Departure>>,
    /// What may not, whatever else allows it.
    #[schemars(length(min = 1, max = 64))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deny: Option<Vec<Departure>>,
}

/// Requests and connections. Of each list any one has to fit, and of those lists that are there all
/// have to.
// No rule in CEL: an API server shows it no field such as `networks`, whose items are of two types.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("minProperties" = 1))]
pub struct Departure {
    /// What figures and logs call it. Left out, its place in the list.
    #[schemars(length(min = 1, max = 63))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `example.com`, or `*.example.org` for all below: of HTTP the request's host, of TLS the server
    /// name. Bytes that name no host fit none.
    #[schemars(length(min = 1, max = 128), inner(length(min = 1, max = 255)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts: Option<Vec<String>>,
    /// Addresses: `192.0.2.0/24`, or `{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}`.
    #[schemars(length(min = 1, max = 128))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub networks: Option<Vec<NetworkRange>>,
    #[schemars(length(min = 1, max = 64), inner(range(min = 1, max = 65535)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<u32>>,
}
