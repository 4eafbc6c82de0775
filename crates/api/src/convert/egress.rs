//! What may leave the mesh.
//!
//! As of what may come in, whatever is missing or unknown makes the whole message an error: a rule of
//! which a part is left out is another one.

use mesh_model::egress::{EgressAction, EgressDefault, EgressRule, EgressRules};
use mesh_model::inbound::Network;
use mesh_model::route::HostMatch;

use super::authz::{read_network, read_policy_meta, write_network, write_policy_meta};
use super::net::read_port;
use super::{bounded, list, write_list};
use crate::Wire;
use crate::error::{At, ConversionError, Result};
use crate::ext::{self, EgressAction as Pb};
use crate::limit;
use crate::validate::Violation;

impl Wire for EgressRules {
    type Proto = ext::EgressRules;

    fn from_proto(proto: ext::EgressRules) -> Result<Self> {
        let rules: Vec<_> = list(proto.rules, "rules", limit::RULES, read_rule)?;
        let default = EgressDefault {
            action: read_action(proto.default).at("default")?,
            meta: read_policy_meta(proto.default_meta, "default_meta")?,
        };
        Ok(Self { rules: rules.into(), default })
    }

    fn to_proto(&self) -> Result<ext::EgressRules> {
        bounded(self.rules.len(), "rules", limit::RULES)?;
        Ok(ext::EgressRules {
            rules: write_list(&self.rules, "rules", |rule| Ok(write_rule(rule)))?,
            default: write_action(self.default.action).into(),
            default_meta: Some(write_policy_meta(&self.default.meta)),
        })
    }

    /// Our own message has no reader that its types do not already protect.
    fn validate(_: &ext::EgressRules) -> std::result::Result<(), Violation> {
        Ok(())
    }
}

fn read_rule(proto: ext::EgressRule) -> Result<EgressRule> {
    let ext::EgressRule { meta, action, hosts, networks, ports } = proto;
    Ok(EgressRule {
        meta: read_policy_meta(meta, "meta")?,
        action: read_action(action)?,
        hosts: list(hosts, "hosts", limit::ITEMS, |text: String| {
            HostMatch::parse(&text)
                .ok_or_else(|| ConversionError::invalid("", format!("`{text}` is no host")))
        })?,
        networks: list::<_, Network, _>(networks, "networks", limit::ITEMS, read_network)?,
        ports: list(ports, "ports", limit::ITEMS, |port| read_port(port, ""))?,
    })
}

fn write_rule(rule: &EgressRule) -> ext::EgressRule {
    ext::EgressRule {
        meta: Some(write_policy_meta(&rule.meta)),
        action: write_action(rule.action).into(),
        hosts: rule.hosts.iter().map(ToString::to_string).collect(),
        networks: rule.networks.iter().map(write_network).collect(),
        ports: rule.ports.iter().map(|port| u32::from(*port)).collect(),
    }
}

fn read_action(action: i32) -> Result<EgressAction> {
    match Pb::try_from(action) {
        Ok(Pb::EgressDeny) => Ok(EgressAction::Deny),
        Ok(Pb::EgressAllow) => Ok(EgressAction::Allow),
        Ok(Pb::UnknownEgressAction) | Err(_) => Err(ConversionError::missing("action")),
    }
}

fn write_action(action: EgressAction) -> Pb {
    match action {
        EgressAction::Deny => Pb::EgressDeny,
        EgressAction::Allow => Pb::EgressAllow,
    }
}
