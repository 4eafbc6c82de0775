//! Failures and delays on purpose, as they are written in policies of both directions.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::super::schema;
use super::Header;

/// Fails or delays a share of the requests.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("has(self.abort) != has(self.delay)")
    .message("a fault is either an abort or a delay"))]
pub struct Fault {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort: Option<Abort>,
    /// How much later the request goes on.
    #[schemars(schema_with = "schema::duration")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<String>,
    /// Of the requests that are meant. Left out, 100.
    #[schemars(schema_with = "schema::percent")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u32>,
    /// Only requests with all of these are meant.
    #[schemars(length(min = 1, max = 16))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<Header>,
    /// When it ends, whoever forgets it. Left out, it does not.
    #[schemars(schema_with = "schema::time")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
}

/// What a request is answered with instead.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("has(self.httpStatus) != has(self.grpcCode)")
    .message("an abort has either an httpStatus or a grpcCode"))]
pub struct Abort {
    #[schemars(range(min = 200, max = 599))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_status: Option<u16>,
    #[schemars(range(min = 1, max = 16))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc_code: Option<u16>,
}
