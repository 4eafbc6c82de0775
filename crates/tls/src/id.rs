//! Identities: names for service accounts, in the form of DNS names, and as SPIFFE ids beside them.

use std::fmt;
use std::sync::Arc;

/// The identity of a workload as certificates and policies name it:
/// `ACCOUNT.NAMESPACE.serviceaccount.identity.CONTROL-NAMESPACE.TRUST-DOMAIN`. Always a DNS name in
/// lower case of at most 253 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(Arc<str>);

/// Not an identity.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an identity: {why}")]
pub struct IdError {
    text: String,
    why: &'static str,
}

impl Id {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A cheap handle on the text.
    pub fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for Id {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let refused = |why| Err(IdError { text: text.chars().take(300).collect(), why });
        if text.len() > 253 {
            return refused("it is longer than 253 bytes");
        }
        for label in text.split('.') {
            let bytes = label.as_bytes();
            let fits = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
            match (bytes.first(), bytes.last()) {
                (None, _) => return refused("a label is empty"),
                (Some(b'-'), _) | (_, Some(b'-')) => {
                    return refused("a label begins or ends with a hyphen");
                }
                _ if bytes.len() > 63 => return refused("a label is longer than 63 bytes"),
                _ if !bytes.iter().all(fits) => {
                    return refused(
                        "only lower-case letters, digits, hyphens and dots may stand in it",
                    );
                }
                _ => {}
            }
        }
        Ok(Self(text.into()))
    }
}

/// The parts of an identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WorkloadId {
    pub service_account: String,
    pub namespace: String,
    pub control_namespace: String,
    pub trust_domain: String,
}

/// The control plane's service account, in its own namespace.
const CONTROL_ACCOUNT: &str = "mesh-control";

const MIDDLE: [&str; 2] = ["serviceaccount", "identity"];

impl WorkloadId {
    /// The identity. `None`: the parts make none (an account's name may have dots, which would move
    /// the border between the parts).
    pub fn id(&self) -> Option<Id> {
        let Self { service_account, namespace, control_namespace, trust_domain } = self;
        let [a, b] = MIDDLE;
        let id =
            format!("{service_account}.{namespace}.{a}.{b}.{control_namespace}.{trust_domain}");
        let id = id.parse().ok()?;
        (Self::of(&id).as_ref() == Some(self)).then_some(id)
    }

    /// The parts of `id`, if it has them.
    pub fn of(id: &Id) -> Option<Self> {
        let mut labels = id.as_str().splitn(6, '.').map(str::to_owned);
        let service_account = labels.next()?;
        let namespace = labels.next()?;
        if MIDDLE.iter().any(|label| labels.next().as_deref() != Some(*label)) {
            return None;
        }
        let (control_namespace, trust_domain) = (labels.next()?, labels.next()?);
        Some(Self { service_account, namespace, control_namespace, trust_domain })
    }

    /// The identity of this mesh's control plane.
    pub fn control_plane(&self) -> Option<Id> {
        let namespace = self.control_namespace.clone();
        Self { service_account: CONTROL_ACCOUNT.to_owned(), namespace, ..self.clone() }.id()
    }

    /// The same as a SPIFFE id: `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT`.
    pub fn spiffe(&self) -> String {
        format!("spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: &str = "web.shop.serviceaccount.identity.mesh-system.cluster.local";

    #[test]
    fn an_identity_has_parts() {
        let id: Id = WEB.parse().unwrap();
        let parts = WorkloadId::of(&id).unwrap();
        assert_eq!((parts.service_account.as_str(), parts.namespace.as_str()), ("web", "shop"));
        assert_eq!(parts.trust_domain, "cluster.local");
        assert_eq!(parts.spiffe(), "spiffe://cluster.local/ns/shop/sa/web");
        assert_eq!(parts.id(), Some(id));
        assert_eq!(
            parts.control_plane().unwrap().as_str(),
            "mesh-control.mesh-system.serviceaccount.identity.mesh-system.cluster.local"
        );
    }

    #[test]
    fn an_account_with_a_dot_cannot_pose_as_another_namespace() {
        let id: Id = WEB.parse().unwrap();
        let parts =
            WorkloadId { service_account: "web.shop".into(), ..WorkloadId::of(&id).unwrap() };
        assert_eq!(parts.id(), None);
    }

    #[test]
    fn what_is_no_dns_name_is_no_identity() {
        let long = "a.".repeat(127) + "a";
        for text in ["", ".", "Web.shop", "-a.b", "a-.b", "a b", "*.shop", "a..b", "ü", &long] {
            assert!(text.parse::<Id>().is_err(), "{text}");
        }
    }
}
