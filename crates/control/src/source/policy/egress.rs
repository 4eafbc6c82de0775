//! EgressPolicies, read.

use mesh_model::Meta;
use mesh_model::egress::{EgressAction, EgressRule, HostName};
use mesh_model::route::HostMatch;

use super::{Departure, EgressPolicyObject, Reader, is_name};
use crate::index::identity::MeshNames;
use crate::index::object::{EgressPolicy, Kind, policy_ref};
use crate::source::kubernetes::{Converted, name_of};

/// Items of a list, and parts of an item, as the schema has it: each may cost every request.
const MAX_ITEMS: usize = 64;
const MAX_PARTS: usize = 128;

/// `names` is not needed for it, but for all that are read alike.
pub fn egress_policy(object: &EgressPolicyObject, names: &MeshNames) -> Converted<EgressPolicy> {
    let mut read = Reader::new(name_of(&object.metadata), names);
    read.version(&object.api_version);
    let spec = &object.spec;
    let default = spec.default.as_deref().map(|text| {
        EgressAction::from_name(text).unwrap_or_else(|| {
            read.error("spec.default", format!("`{text}` is neither Allow nor Deny"));
            EgressAction::Deny
        })
    });
    if default.is_none() && spec.allow.is_none() && spec.deny.is_none() {
        read.error("spec", "says nothing about what may leave: set default, allow or deny");
    }
    let mut rules = Vec::new();
    for (action, field, items) in
        [(EgressAction::Deny, "deny", &spec.deny), (EgressAction::Allow, "allow", &spec.allow)]
    {
        let items = items.as_deref();
        read.no_more(items.map_or(0, <[_]>::len), MAX_ITEMS, &format!("spec.{field}"));
        rules.extend(
            read.items(items, field, "nothing", |read, item, at| read.departure(item, action, at)),
        );
    }
    (EgressPolicy { name: read.name, default, rules }, read.findings)
}

impl Reader<'_> {
    fn no_more(&mut self, have: usize, max: usize, at: &str) {
        if have > max {
            self.error(
                at,
                format!("has {have} items, and {max} are the most; write more policies"),
            );
        }
    }

    fn departure(&mut self, item: &Departure, action: EgressAction, at: &str) -> EgressRule {
        let mut meta = policy_ref(Kind::EgressPolicy, &self.name);
        // `spec.allow[0]`, or the name in its stead.
        meta.section = at.trim_start_matches("spec.").to_owned();
        if let Some(name) = &item.name {
            match name.len() <= 63 && is_name(name, b"-.") {
                true => meta.section.clone_from(name),
                false => self.error(format!("{at}.name"), format!("`{name}` is no name")),
            }
        }
        if item.hosts.is_none() && item.networks.is_none() && item.ports.is_none() {
            self.error(
                at,
                "names nothing: set hosts, networks or ports; `default` is about everything",
            );
        }
        let hosts = self.parts(item.hosts.as_deref(), &format!("{at}.hosts"), Self::host);
        let networks =
            self.parts(item.networks.as_deref(), &format!("{at}.networks"), Self::network);
        let ports = self.parts(item.ports.as_deref(), &format!("{at}.ports"), |read, port, at| {
            let number = u16::try_from(*port).ok().filter(|port| *port > 0);
            if number.is_none() {
                read.error(at, format!("{port} is not from 1 to 65535"));
            }
            number
        });
        EgressRule { meta: Meta::Resource(meta), action, hosts, networks, ports }
    }

    /// A list that is left out means any; an empty one would mean any as well, and is not meant so.
    fn parts<T, R>(
        &mut self,
        parts: Option<&[T]>,
        at: &str,
        read: impl Fn(&mut Self, &T, &str) -> Option<R>,
    ) -> Vec<R> {
        let Some(parts) = parts else { return Vec::new() };
        if parts.is_empty() {
            self.error(at, "is empty; leave it out to mean any");
        }
        self.no_more(parts.len(), MAX_PARTS, at);
        let parts = parts.iter().enumerate();
        parts.filter_map(|(index, part)| read(self, part, &format!("{at}[{index}]"))).collect()
    }

    fn host(&mut self, text: &String, at: &str) -> Option<HostMatch> {
        let bare = text.strip_prefix("*.").unwrap_or(text);
        let host = HostName::new(bare).filter(|_| !bare.ends_with('.'));
        let found = host.and_then(|_| HostMatch::parse(&text.to_ascii_lowercase()));
        if found.is_none() {
            let remedy = match bare.parse::<std::net::IpAddr>() {
                Ok(_) => "is an address; write it in networks",
                Err(_) if text == "*" => {
                    "would be any host; name networks or ports, or set default"
                }
                Err(_) => "is neither a host such as example.com nor `*.` with the end of one",
            };
            self.error(at, format!("`{text}` {remedy}"));
        }
        found
    }
}
