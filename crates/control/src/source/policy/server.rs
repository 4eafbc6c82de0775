//! ServerPolicies, read.

use http::HeaderName;
use mesh_model::Meta;
use mesh_model::authz::{DefaultAccess, IdentityPattern};
use mesh_model::inbound::{HeaderRate, PortProtocol, Rate, RateLimit};

use super::schema::MAX_COUNT;
use super::{Reader, ServerPolicyObject, shape};
use crate::index::identity::MeshNames;
use crate::index::object::{Kind, PolicyTarget, PortPolicy, policy_ref};
use crate::source::kubernetes::{Converted, name_of};

/// `names` is what the identities of service accounts end in.
pub fn server_policy(object: &ServerPolicyObject, names: &MeshNames) -> Converted<PortPolicy> {
    let mut read = Reader::new(name_of(&object.metadata), names);
    read.version(&object.api_version);
    let spec = &object.spec;
    let target = read.target(Some(&spec.target_ref));
    if !matches!(target, PolicyTarget::Workload { .. } | PolicyTarget::Pods { .. }) {
        let message = "a ServerPolicy is about a workload or pods; of a namespace, set the annotation \
                       config.meshctl.dev/default-inbound-policy";
        read.error("spec.targetRef.kind", message);
    }
    let default_access = spec.default_access.as_deref().map(|text| {
        DefaultAccess::from_name(text).unwrap_or_else(|| {
            let names = DefaultAccess::ALL.map(DefaultAccess::as_str).join(", ");
            read.error("spec.defaultAccess", format!("`{text}` is not one of {names}"));
            DefaultAccess::Deny
        })
    });
    let protocol = spec.protocol.as_deref().map(|text| {
        PortProtocol::from_name(text).unwrap_or_else(|| {
            let names = PortProtocol::ALL.map(PortProtocol::as_str).join(", ");
            read.error("spec.protocol", format!("`{text}` is not one of {names}"));
            PortProtocol::Detect
        })
    });
    let rate_limit = spec.rate_limit.as_ref().map(|limit| read.rate_limit(limit));
    let concurrency = spec.concurrency.inspect(|max| read.count(*max, "spec.concurrency"));
    let faults = read.faults(&spec.faults, Kind::ServerPolicy);
    let limited = rate_limit.is_some() || concurrency.is_some();
    let hit = !spec.faults.is_empty();
    if !limited && !hit && protocol.is_none() && default_access.is_none() {
        read.error("spec", "says nothing about its target");
    }
    if limited && protocol == Some(PortProtocol::Opaque) {
        read.error("spec.protocol", "limits are for requests, and an opaque port has none");
    }
    if hit && protocol == Some(PortProtocol::Opaque) {
        read.error("spec.protocol", "faults are for requests, and an opaque port has none");
    }
    let created = object.metadata.creation_timestamp.as_ref().map(|time| time.0.as_second());
    let policy = PortPolicy {
        name: read.name,
        created,
        target,
        default_access,
        protocol,
        rate_limit,
        concurrency,
        faults,
    };
    (policy, read.findings)
}

impl Reader<'_> {
    fn rate_limit(&mut self, limit: &shape::RateLimit) -> RateLimit {
        const AT: &str = "spec.rateLimit";
        if *limit == shape::RateLimit::default() {
            self.error(AT, "sets no rate");
        }
        let of = |read: &mut Self, rate: &Option<shape::Rate>, field: &str| {
            let rate = rate.as_ref()?;
            Some(read.rate(rate.requests_per_second, rate.burst, &format!("{AT}.{field}")))
        };
        let header = limit.per_header.as_ref().and_then(|header| {
            let at = format!("{AT}.perHeader");
            let rate = self.rate(header.requests_per_second, header.burst, &at);
            match HeaderName::from_bytes(header.name.as_bytes()) {
                Ok(name) => Some(HeaderRate { name, rate }),
                Err(_) => {
                    self.error(format!("{at}.name"), "is not the name of a header");
                    None
                }
            }
        });
        RateLimit {
            meta: Meta::Resource(policy_ref(Kind::ServerPolicy, &self.name)),
            total: of(self, &limit.total, "total"),
            identity: of(self, &limit.per_identity, "perIdentity"),
            overrides: self.items(
                limit.overrides.as_deref(),
                "rateLimit.overrides",
                "nobody",
                Self::rate_override,
            ),
            header,
        }
    }

    fn rate_override(&mut self, item: &shape::RateOverride, at: &str) -> (Rate, Vec<String>) {
        let mut identities = Vec::new();
        for (index, text) in item.identities.iter().enumerate() {
            match text.parse() {
                Ok(IdentityPattern::Exact(identity)) => identities.push(identity),
                Ok(IdentityPattern::Suffix(_)) => {
                    let message = "each client has a rate of its own; name it whole";
                    self.error(format!("{at}.identities[{index}]"), message);
                }
                Err(error) => self.error(format!("{at}.identities[{index}]"), format!("{error}")),
            }
        }
        for (index, text) in item.service_accounts.iter().enumerate() {
            identities.extend(self.account(text, &format!("{at}.serviceAccounts[{index}]")));
        }
        if item.identities.is_empty() && item.service_accounts.is_empty() {
            self.error(at, "names nobody");
        }
        (self.rate(item.requests_per_second, item.burst, at), identities)
    }

    fn rate(&mut self, per_second: u32, burst: Option<u32>, at: &str) -> Rate {
        self.count(per_second, &format!("{at}.requestsPerSecond"));
        let burst = burst.inspect(|burst| self.count(*burst, &format!("{at}.burst")));
        Rate { burst: burst.unwrap_or(Rate::per_second(per_second).burst), per_second }
    }

    pub(super) fn count(&mut self, count: u32, at: &str) {
        if !(1..=MAX_COUNT).contains(&count) {
            self.error(at, format!("{count} is not from 1 to {MAX_COUNT}"));
        }
    }
}
