//! The one shape that all routes of Gateway API share.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::source::Finding;

/// Brings a part of a route into its shared shape. What does not fit is reported and left at its
/// default, which cannot happen unless the types of `gateway-api` change.
pub(super) fn reshape<T: Serialize, S: DeserializeOwned + Default>(
    part: &T,
    at: &str,
    findings: &mut Vec<Finding>,
) -> S {
    let shaped = serde_json::to_value(part).and_then(serde_json::from_value);
    shaped.unwrap_or_else(|error| {
        findings.push(Finding::error(at, error.to_string()));
        S::default()
    })
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Parent {
    pub(super) group: Option<String>,
    pub(super) kind: Option<String>,
    pub(super) name: String,
    pub(super) namespace: Option<String>,
    pub(super) port: Option<i32>,
    pub(super) section_name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Rule {
    pub(super) name: Option<String>,
    pub(super) matches: Vec<Match>,
    pub(super) filters: Vec<Filter>,
    pub(super) backend_refs: Vec<Backend>,
    pub(super) timeouts: Option<Limits>,
    pub(super) retry: Option<Retry>,
    pub(super) session_persistence: Option<SessionPersistence>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct SessionPersistence {
    pub(super) session_name: Option<String>,
    pub(super) r#type: Option<String>,
    pub(super) absolute_timeout: Option<String>,
    pub(super) idle_timeout: Option<String>,
    pub(super) cookie_config: Option<CookieConfig>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct CookieConfig {
    pub(super) lifetime_type: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Backend {
    pub(super) group: Option<String>,
    pub(super) kind: Option<String>,
    pub(super) name: String,
    pub(super) namespace: Option<String>,
    pub(super) port: Option<i32>,
    pub(super) weight: Option<i32>,
    pub(super) filters: Vec<Filter>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Limits {
    pub(super) request: Option<String>,
    pub(super) backend_request: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Retry {
    pub(super) attempts: Option<i64>,
    pub(super) backoff: Option<String>,
    pub(super) codes: Vec<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Match {
    pub(super) path: Option<Path>,
    pub(super) headers: Vec<Value>,
    pub(super) query_params: Vec<Value>,
    /// A string for HTTP, an object for gRPC.
    pub(super) method: Option<Method>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Method {
    Http(String),
    Grpc { service: Option<String>, method: Option<String>, r#type: Option<String> },
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Path {
    pub(super) r#type: Option<String>,
    pub(super) value: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Value {
    pub(super) r#type: Option<String>,
    pub(super) name: String,
    pub(super) value: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Filter {
    pub(super) r#type: String,
    pub(super) request_header_modifier: Option<HeaderModifier>,
    pub(super) response_header_modifier: Option<HeaderModifier>,
    pub(super) request_redirect: Option<Redirect>,
    pub(super) request_mirror: Option<Mirror>,
    pub(super) url_rewrite: Option<Rewrite>,
    pub(super) cors: Option<Cors>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Mirror {
    pub(super) backend_ref: Backend,
    pub(super) percent: Option<i64>,
    pub(super) fraction: Option<Fraction>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Fraction {
    pub(super) numerator: i64,
    pub(super) denominator: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Rewrite {
    pub(super) hostname: Option<String>,
    pub(super) path: Option<PathModifier>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Cors {
    pub(super) allow_origins: Vec<String>,
    pub(super) allow_methods: Vec<String>,
    pub(super) allow_headers: Vec<String>,
    pub(super) expose_headers: Vec<String>,
    pub(super) allow_credentials: Option<bool>,
    pub(super) max_age: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct HeaderModifier {
    pub(super) set: Vec<Value>,
    pub(super) add: Vec<Value>,
    pub(super) remove: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Redirect {
    pub(super) scheme: Option<String>,
    pub(super) hostname: Option<String>,
    pub(super) port: Option<i32>,
    pub(super) path: Option<PathModifier>,
    pub(super) status_code: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PathModifier {
    pub(super) replace_full_path: Option<String>,
    pub(super) replace_prefix_match: Option<String>,
}
