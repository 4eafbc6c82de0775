//! Our kinds as they are written.

use std::collections::BTreeMap;

use kube::core::ObjectMeta;
use mesh_model::authz;
use serde::Deserialize;
use serde::de::IgnoredAny;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationPolicyObject {
    pub(super) api_version: String,
    #[serde(rename = "kind")]
    _kind: IgnoredAny,
    pub(super) metadata: ObjectMeta,
    pub(super) spec: AuthorizationSpec,
    #[serde(default, rename = "status")]
    _status: IgnoredAny,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct AuthorizationSpec {
    pub(super) target_ref: Option<TargetRef>,
    pub(super) action: Option<Action>,
    pub(super) from: Option<Vec<From>>,
    pub(super) to: Option<Vec<To>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServerPolicyObject {
    pub(super) api_version: String,
    #[serde(rename = "kind")]
    _kind: IgnoredAny,
    pub(super) metadata: ObjectMeta,
    pub(super) spec: ServerSpec,
    #[serde(default, rename = "status")]
    _status: IgnoredAny,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ServerSpec {
    pub(super) target_ref: TargetRef,
    pub(super) default_access: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct TargetRef {
    pub(super) group: Option<String>,
    pub(super) kind: String,
    pub(super) name: Option<String>,
    pub(super) port: Option<Port>,
    pub(super) selector: Option<Selector>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Port {
    Number(i64),
    Name(String),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Selector {
    pub(super) match_labels: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) enum Action {
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

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct From {
    pub(super) identities: Vec<String>,
    pub(super) service_accounts: Vec<String>,
    pub(super) namespaces: Vec<String>,
    pub(super) networks: Vec<NetworkRange>,
    pub(super) authenticated: bool,
    pub(super) unauthenticated: bool,
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

#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum NetworkRange {
    Net(String),
    Range(Range),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Range {
    pub(super) cidr: String,
    #[serde(default)]
    pub(super) except: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct To {
    pub(super) paths: Vec<String>,
    pub(super) methods: Vec<String>,
    pub(super) headers: Vec<Header>,
    pub(super) grpc: Vec<GrpcMethods>,
}

impl To {
    pub(super) fn is_empty(&self) -> bool {
        self.paths.is_empty()
            && self.methods.is_empty()
            && self.headers.is_empty()
            && self.grpc.is_empty()
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    pub(super) name: String,
    pub(super) value: String,
    pub(super) r#type: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GrpcMethods {
    pub(super) service: String,
    /// Empty: all of the service's.
    #[serde(default)]
    pub(super) methods: Vec<String>,
}
