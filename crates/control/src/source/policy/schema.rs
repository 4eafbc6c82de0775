//! What an API server is told about fields that Rust's types say less of.

use crate::index::object::ZonePreference;
use mesh_model::authz::DefaultAccess;
use mesh_model::egress::EgressAction;
use mesh_model::inbound::PortProtocol;
use mesh_model::outbound::Strategy;
use schemars::{Schema, SchemaGenerator, json_schema};

/// The kinds that policies may be about.
pub(super) const TARGET_KINDS: [&str; 11] = [
    "Namespace",
    "Service",
    "HTTPRoute",
    "GRPCRoute",
    "Deployment",
    "StatefulSet",
    "DaemonSet",
    "ReplicaSet",
    "Job",
    "CronJob",
    "Pod",
];

pub(super) fn target_kind(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "enum": TARGET_KINDS })
}

pub(super) fn port_protocol(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "enum": PortProtocol::ALL.map(PortProtocol::as_str) })
}

/// The most requests, connections or percent that anybody can mean.
pub(super) const MAX_COUNT: u32 = 1_000_000;

pub(super) fn count(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "minimum": 1, "maximum": MAX_COUNT })
}

/// Balancers, as users write them.
pub(super) const BALANCERS: [(&str, Strategy); 4] = [
    ("PeakEwma", Strategy::PeakEwma),
    ("LeastRequest", Strategy::LeastRequest),
    ("RoundRobin", Strategy::RoundRobin),
    ("RingHash", Strategy::RingHash),
];

pub(super) fn balancer(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "enum": BALANCERS.map(|(name, _)| name) })
}

pub(super) fn zone_preference(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "enum": ZonePreference::ALL.map(ZonePreference::as_str) })
}

/// A Gateway API duration.
pub(super) fn duration(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$" })
}

/// RFC 3339.
pub(super) fn time(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "format": "date-time" })
}

pub(super) fn count_or_none(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "minimum": 0, "maximum": MAX_COUNT })
}

pub(super) fn percent(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "minimum": 1, "maximum": 100 })
}

pub(super) fn percent_or_none(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "minimum": 0, "maximum": 100 })
}

pub(super) fn default_access(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "enum": DefaultAccess::ALL.map(DefaultAccess::as_str) })
}

pub(super) fn egress_action(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "enum": EgressAction::ALL.map(EgressAction::as_str) })
}

pub(super) fn header_match(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "enum": ["Exact", "RegularExpression"] })
}

/// Conditions are a map by type, so that each controller owns its own.
pub(super) fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 8,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "lastTransitionTime", "reason", "message"],
            "properties": {
                "type": { "type": "string", "maxLength": 316 },
                "status": { "type": "string", "enum": ["True", "False", "Unknown"] },
                "reason": { "type": "string", "minLength": 1, "maxLength": 1024 },
                "message": { "type": "string", "maxLength": 32768 },
                "lastTransitionTime": { "type": "string", "format": "date-time" },
                "observedGeneration": { "type": "integer", "format": "int64", "minimum": 0 },
            },
        },
    })
}
