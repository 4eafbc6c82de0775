//! Policies that say different things about the same.
//!
//! The oldest of them counts: a policy that comes later changes nothing until somebody takes away the
//! one before it.

use super::Objects;
use super::object::{Kind, Name, ObjectKey};

/// The kinds of policies of which only one counts.
pub const KINDS: [Kind; 2] = [Kind::ServerPolicy, Kind::BackendTrafficPolicy];

/// What goes before a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Before<'a> {
    pub policy: &'a Name,
    /// Or only at some of what it is about.
    pub everywhere: bool,
}

impl Objects {
    /// The older policy of the same kind that is in force in a policy's place.
    pub fn before(&self, key: &ObjectKey) -> Option<Before<'_>> {
        match key.kind {
            Kind::ServerPolicy => self.port_policy_before(&key.name),
            Kind::BackendTrafficPolicy => self.traffic_policy_before(&key.name),
            _ => None,
        }
    }

    /// All policies that others go before, with what is to be said of it.
    pub fn conflicts(&self) -> Vec<(ObjectKey, String)> {
        let keys = KINDS.into_iter().flat_map(|kind| {
            self.names(kind).into_iter().map(move |name| ObjectKey { kind, name })
        });
        keys.filter_map(|key| {
            let message = self.before(&key)?.message(key.kind);
            Some((key, message))
        })
        .collect()
    }
}

impl Before<'_> {
    pub fn message(&self, kind: Kind) -> String {
        let (kind, name) = (kind.as_str(), self.policy);
        match self.everywhere {
            true => format!("{kind} {name} is about the same and older; remove one of them"),
            false => format!(
                "{kind} {name} is older and counts where both are about the same; narrow one of them"
            ),
        }
    }
}
