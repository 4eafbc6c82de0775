//! What a control plane must hold to in the messages it sends, beyond their types.
//!
//! A foreign proxy panics, hangs, rejects a whole policy or silently does something else on some of
//! what the API's types allow. Each [`Rule`] is one such case, learnt from the API's comments, the
//! reference proxy's source and running proxies; [`crate::server`] checks every message before it is
//! sent.

mod destination;
mod filter;
mod outbound;
mod server;

pub use self::destination::{destination, profile, profile_beside};
pub use self::outbound::outbound;
pub use self::server::server;

use linkerd2_proxy_api::meta::{Metadata, metadata};

use crate::error::{At, HasField};

/// A rule that a message breaks, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {rule}")]
pub struct Violation {
    /// Path in proto field names.
    pub field: String,
    pub rule: Rule,
}

impl HasField for Violation {
    fn field_mut(&mut self) -> &mut String {
        &mut self.field
    }
}

/// The rules, one per way to break a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Rule {
    #[error("the message says nothing")]
    Empty,
    #[error("metadata is missing")]
    Metadata,
    #[error("a resource needs group (`core`, never empty), kind, name and namespace")]
    Resource,
    #[error("a backend needs a queue with a capacity and a fail-fast timeout")]
    Queue,
    #[error("a backend needs a balancer or an address")]
    BackendKind,
    #[error("a balancer needs a path of the form `name:port`")]
    DiscoveryPath,
    #[error("a balancer needs a load estimate with its durations")]
    Load,
    #[error("detection needs timeout, opaque, http1 and http2")]
    Detect,
    #[error("an opaque protocol has exactly one route, a TLS protocol at least one")]
    Routes,
    #[error("an opaque or TLS route has exactly one rule, any other at least one")]
    Rules,
    #[error("a rule needs a distribution")]
    Distribution,
    #[error("a distribution that is not empty needs backends")]
    Backends,
    #[error("at least one weight must be above 0")]
    Weights,
    #[error("an address to forward to needs a port")]
    ForwardPort,
    #[error("an endpoint needs an address")]
    Address,
    #[error("an identity needs a strategy and a server name")]
    Identity,
    #[error("a retry needs conditions, of statuses 100 to 599")]
    RetryConditions,
    #[error("a request may be retried at most 65535 times")]
    MaxRetries,
    #[error("a breaker needs a kind")]
    Breaker,
    #[error(
        "a success rate needs a threshold of 0 to 1 over 10 ms or more, and at most 1000000 requests"
    )]
    SuccessRate,
    #[error("a backoff must be present, with max ≥ min > 0 and a jitter of 0 to 100")]
    Backoff,
    #[error("a filter needs a kind")]
    Filter,
    #[error("a ratio is between 0 and 1")]
    Ratio,
    #[error("a redirect's path starts with /")]
    RedirectPath,
    #[error("a server needs the labels `group`, `kind` and `name`")]
    ServerLabels,
    #[error("an authorization needs networks, which have addresses, and an authentication")]
    Authorization,
    #[error("a profile has a name or an endpoint, and neither routes nor overrides nor a budget")]
    Profile,
    #[error("a profile may be opaque only if the policy detects or is opaque")]
    OpaqueProfile,
}

type Checked = Result<(), Violation>;

fn meta(metadata: Option<&Metadata>) -> Checked {
    match metadata.and_then(|metadata| metadata.kind.as_ref()) {
        None => holds(false, Rule::Metadata),
        Some(metadata::Kind::Default(name)) => holds(!name.is_empty(), Rule::Metadata),
        Some(metadata::Kind::Resource(r)) => {
            let names = [&r.group, &r.kind, &r.name, &r.namespace];
            holds(names.iter().all(|name| !name.is_empty()), Rule::Resource)
        }
    }
    .at("metadata")
}

fn each<T>(items: &[T], field: &str, mut check: impl FnMut(&T) -> Checked) -> Checked {
    items.iter().enumerate().try_for_each(|(index, item)| check(item).at_index(field, index))
}

fn present<T>(value: Option<T>, rule: Rule) -> Result<T, Violation> {
    value.ok_or_else(|| Violation { field: String::new(), rule })
}

fn holds(condition: bool, rule: Rule) -> Checked {
    present(condition.then_some(()), rule)
}
