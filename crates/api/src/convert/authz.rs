//! Who may do what on a port, in our own words: the linkerd2 API cannot deny, compare paths in a
//! safe way, or audit.
//!
//! Whatever is missing or unknown makes the whole message an error. Nothing is left out of a rule,
//! since that would make it wider.

use http::{HeaderName, Method};
use linkerd2_proxy_api::meta as pb;
use mesh_model::Meta;
use mesh_model::authz::{
    Action, AuthorizationRule, ClientMatch, DefaultAccess, DefaultRule, Operation, PathPattern,
    PortAuthz, Probe, RouteScope, Source,
};
use mesh_model::inbound::{Cidr, Network};
use mesh_model::matching::Pattern;
use mesh_model::route::{HeaderMatch, HostMatch, HttpMatch, PathMatch, QueryMatch, ValueMatch};

use super::meta::read_resource;
use super::{list, required, write_list};
use crate::Wire;
use crate::error::{At, ConversionError, Result};
use crate::ext::authorization_rule::Action as PbAction;
use crate::ext::default_authorization::Access as PbAccess;
use crate::ext::source::Client as PbClient;
use crate::ext::{self, route_match, value_condition};
use crate::limit;
use crate::validate::Violation;

impl Wire for PortAuthz {
    type Proto = ext::PortAuthorization;

    fn from_proto(proto: ext::PortAuthorization) -> Result<Self> {
        Ok(Self {
            rules: list(proto.rules, "rules", limit::RULES, read_rule)?,
            default: read_default(required(proto.default, "default")?).at("default")?,
            probes: list(proto.probes, "probes", limit::ITEMS, |probe: ext::HealthProbe| {
                Ok(Probe { method: read_method(&probe.method)?, path: read_pattern(&probe.path)? })
            })?,
        })
    }

    fn to_proto(&self) -> Result<ext::PortAuthorization> {
        let write_probe = |probe: &Probe| ext::HealthProbe {
            method: probe.method.to_string(),
            path: probe.path.to_string(),
        };
        Ok(ext::PortAuthorization {
            rules: write_list(&self.rules, "rules", write_rule)?,
            default: Some(write_default(&self.default)),
            probes: self.probes.iter().map(write_probe).collect(),
            ..ext::PortAuthorization::default()
        })
    }

    /// Our own message has no reader that its types do not already protect.
    fn validate(_: &ext::PortAuthorization) -> std::result::Result<(), Violation> {
        Ok(())
    }
}

fn read_rule(proto: ext::AuthorizationRule) -> Result<AuthorizationRule> {
    let action = match PbAction::try_from(proto.action) {
        Ok(PbAction::Deny) => Action::Deny,
        Ok(PbAction::Allow) => Action::Allow,
        Ok(PbAction::Audit) => Action::Audit,
        Ok(PbAction::UnknownAction) | Err(_) => return Err(ConversionError::missing("action")),
    };
    Ok(AuthorizationRule {
        meta: read_policy_meta(proto.meta, "meta")?,
        action,
        route: proto.route.map(read_scope).transpose().at("route")?,
        from: list(proto.from, "from", limit::ITEMS, read_source)?,
        to: list(proto.to, "to", limit::ITEMS, |to: ext::Operation| {
            Ok(Operation {
                paths: list(to.paths, "paths", limit::ITEMS, |path: String| read_pattern(&path))?,
                methods: list(to.methods, "methods", limit::ITEMS, |m: String| read_method(&m))?,
                headers: list(to.headers, "headers", limit::CONDITIONS, read_header)?,
            })
        })?,
    })
}

fn write_rule(rule: &AuthorizationRule) -> Result<ext::AuthorizationRule> {
    let action = match rule.action {
        Action::Deny => PbAction::Deny,
        Action::Allow => PbAction::Allow,
        Action::Audit => PbAction::Audit,
    };
    let operation = |to: &Operation| ext::Operation {
        paths: to.paths.iter().map(ToString::to_string).collect(),
        methods: to.methods.iter().map(ToString::to_string).collect(),
        headers: to.headers.iter().map(write_header).collect(),
    };
    Ok(ext::AuthorizationRule {
        meta: Some(write_policy_meta(&rule.meta)),
        action: action.into(),
        route: rule.route.as_ref().map(write_scope),
        from: rule.from.iter().map(write_source).collect(),
        to: rule.to.iter().map(operation).collect(),
    })
}

pub(super) fn read_policy_meta(proto: Option<ext::PolicyMeta>, field: &str) -> Result<Meta> {
    let proto = required(proto, field)?;
    if !proto.default_name.is_empty() {
        return Ok(Meta::Default(proto.default_name));
    }
    let ext::PolicyMeta { default_name: _, group, kind, name, namespace, section, port } = proto;
    let resource = pb::Resource { group, kind, name, namespace, section, port };
    read_resource(resource, field).map(Meta::Resource)
}

pub(super) fn write_policy_meta(meta: &Meta) -> ext::PolicyMeta {
    match meta {
        Meta::Default(name) => {
            ext::PolicyMeta { default_name: name.clone(), ..ext::PolicyMeta::default() }
        }
        Meta::Resource(r) => ext::PolicyMeta {
            default_name: String::new(),
            group: r.group.clone(),
            kind: r.kind.clone(),
            name: r.name.clone(),
            namespace: r.namespace.clone(),
            section: r.section.clone(),
            port: r.port.map(u32::from).unwrap_or_default(),
        },
    }
}

fn read_scope(proto: ext::RouteScope) -> Result<RouteScope> {
    Ok(RouteScope {
        route: read_policy_meta(proto.route, "route")?,
        hosts: list(proto.hosts, "hosts", limit::ITEMS, |host: String| {
            Ok(match host.strip_prefix("*.") {
                Some(suffix) => HostMatch::Suffix(suffix.split('.').map(str::to_owned).collect()),
                None => HostMatch::Exact(host),
            })
        })?,
        matches: list(proto.matches, "matches", limit::ITEMS, |matched: ext::RouteMatch| {
            let method = Some(matched.method).filter(|method| !method.is_empty());
            Ok(HttpMatch {
                path: matched.path.map(read_path).transpose().at("path")?,
                headers: list(matched.headers, "headers", limit::CONDITIONS, read_header)?,
                query: list(
                    matched.query,
                    "query",
                    limit::CONDITIONS,
                    |query: ext::ValueCondition| {
                        Ok(QueryMatch { name: query.name, value: read_value(query.value)? })
                    },
                )?,
                method: method.map(|method: String| read_method(&method)).transpose()?,
            })
        })?,
    })
}

fn write_scope(scope: &RouteScope) -> ext::RouteScope {
    let host = |host: &HostMatch| match host {
        HostMatch::Exact(host) => host.clone(),
        HostMatch::Suffix(labels) => format!("*.{}", labels.join(".")),
    };
    let query = |query: &QueryMatch| ext::ValueCondition {
        name: query.name.clone(),
        value: Some(write_value(&query.value)),
    };
    let matched = |matched: &HttpMatch| ext::RouteMatch {
        path: matched.path.as_ref().map(write_path),
        method: matched.method.as_ref().map(ToString::to_string).unwrap_or_default(),
        headers: matched.headers.iter().map(write_header).collect(),
        query: matched.query.iter().map(query).collect(),
    };
    ext::RouteScope {
        route: Some(write_policy_meta(&scope.route)),
        hosts: scope.hosts.iter().map(host).collect(),
        matches: scope.matches.iter().map(matched).collect(),
    }
}

fn read_path(path: route_match::Path) -> Result<PathMatch> {
    Ok(match path {
        route_match::Path::Exact(path) => PathMatch::Exact(path),
        route_match::Path::Prefix(prefix) => PathMatch::Prefix(prefix),
        route_match::Path::Regex(regex) => PathMatch::Regex(read_regex(&regex)?),
    })
}

fn write_path(path: &PathMatch) -> route_match::Path {
    match path {
        PathMatch::Exact(path) => route_match::Path::Exact(path.clone()),
        PathMatch::Prefix(prefix) => route_match::Path::Prefix(prefix.clone()),
        PathMatch::Regex(pattern) => route_match::Path::Regex(pattern.as_str().into()),
    }
}

fn read_source(proto: ext::Source) -> Result<Source> {
    let client = match PbClient::try_from(proto.client) {
        Ok(PbClient::Anyone) => ClientMatch::Anyone,
        Ok(PbClient::Unauthenticated) => ClientMatch::Unauthenticated,
        Ok(PbClient::Authenticated) => ClientMatch::Authenticated,
        Ok(PbClient::Among) => ClientMatch::Among(list(
            proto.identities,
            "identities",
            limit::ITEMS,
            |identity: String| {
                identity.parse().map_err(|error| ConversionError::invalid("", error))
            },
        )?),
        Ok(PbClient::UnknownClient) | Err(_) => return Err(ConversionError::missing("client")),
    };
    let networks = list(proto.networks, "networks", limit::ITEMS, read_network)?;
    Ok(Source { client, networks })
}

pub(super) fn read_network(proto: ext::SourceNetwork) -> Result<Network> {
    Ok(Network {
        net: read_net(&proto.net)?,
        except: list(proto.except, "except", limit::ITEMS, |net: String| read_net(&net))?,
    })
}

pub(super) fn write_network(network: &Network) -> ext::SourceNetwork {
    ext::SourceNetwork {
        net: network.net.to_string(),
        except: network.except.iter().map(ToString::to_string).collect(),
    }
}

fn write_source(source: &Source) -> ext::Source {
    let (client, identities) = match &source.client {
        ClientMatch::Anyone => (PbClient::Anyone, Vec::new()),
        ClientMatch::Unauthenticated => (PbClient::Unauthenticated, Vec::new()),
        ClientMatch::Authenticated => (PbClient::Authenticated, Vec::new()),
        ClientMatch::Among(patterns) => {
            (PbClient::Among, patterns.iter().map(ToString::to_string).collect())
        }
    };
    ext::Source {
        client: client.into(),
        identities,
        networks: source.networks.iter().map(write_network).collect(),
    }
}

fn read_default(proto: ext::DefaultAuthorization) -> Result<DefaultRule> {
    let access = match PbAccess::try_from(proto.access) {
        Ok(PbAccess::AllUnauthenticated) => DefaultAccess::AllUnauthenticated,
        Ok(PbAccess::AllAuthenticated) => DefaultAccess::AllAuthenticated,
        Ok(PbAccess::ClusterUnauthenticated) => DefaultAccess::ClusterUnauthenticated,
        Ok(PbAccess::ClusterAuthenticated) => DefaultAccess::ClusterAuthenticated,
        Ok(PbAccess::DenyAll) => DefaultAccess::Deny,
        Ok(PbAccess::AuditAll) => DefaultAccess::Audit,
        Ok(PbAccess::UnknownAccess) | Err(_) => return Err(ConversionError::missing("access")),
    };
    Ok(DefaultRule {
        access,
        meta: read_policy_meta(proto.meta, "meta")?,
        cluster: list(proto.cluster, "cluster", limit::ITEMS, |net: String| read_net(&net))?,
    })
}

fn write_default(default: &DefaultRule) -> ext::DefaultAuthorization {
    let access = match default.access {
        DefaultAccess::AllUnauthenticated => PbAccess::AllUnauthenticated,
        DefaultAccess::AllAuthenticated => PbAccess::AllAuthenticated,
        DefaultAccess::ClusterUnauthenticated => PbAccess::ClusterUnauthenticated,
        DefaultAccess::ClusterAuthenticated => PbAccess::ClusterAuthenticated,
        DefaultAccess::Deny => PbAccess::DenyAll,
        DefaultAccess::Audit => PbAccess::AuditAll,
    };
    ext::DefaultAuthorization {
        access: access.into(),
        meta: Some(write_policy_meta(&default.meta)),
        cluster: default.cluster.iter().map(ToString::to_string).collect(),
    }
}

pub(super) fn read_header(proto: ext::ValueCondition) -> Result<HeaderMatch> {
    let name = HeaderName::try_from(&proto.name)
        .map_err(|_| ConversionError::invalid("name", format!("`{}` is no header", proto.name)))?;
    Ok(HeaderMatch { name, value: read_value(proto.value)? })
}

pub(super) fn write_header(header: &HeaderMatch) -> ext::ValueCondition {
    let name = header.name.to_string();
    ext::ValueCondition { name, value: Some(write_value(&header.value)) }
}

fn read_value(value: Option<value_condition::Value>) -> Result<ValueMatch> {
    Ok(match required(value, "value")? {
        value_condition::Value::Exact(exact) => ValueMatch::Exact(exact),
        value_condition::Value::Regex(regex) => ValueMatch::Regex(read_regex(&regex)?),
    })
}

fn write_value(value: &ValueMatch) -> value_condition::Value {
    match value {
        ValueMatch::Exact(exact) => value_condition::Value::Exact(exact.clone()),
        ValueMatch::Regex(pattern) => value_condition::Value::Regex(pattern.as_str().into()),
    }
}

fn read_regex(source: &str) -> Result<Pattern> {
    Pattern::new(source).map_err(|error| ConversionError::invalid("regex", error))
}

fn read_pattern(text: &str) -> Result<PathPattern> {
    PathPattern::new(text).map_err(|error| ConversionError::invalid("path", error))
}

fn read_method(text: &str) -> Result<Method> {
    Method::from_bytes(text.as_bytes()).map_err(|error| ConversionError::invalid("method", error))
}

fn read_net(text: &str) -> Result<Cidr> {
    text.parse().map_err(|error| ConversionError::invalid("net", error))
}
