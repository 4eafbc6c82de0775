//! Which certificate a client is shown, and for whose listener.

use std::sync::Arc;

use mesh_model::gateway::{EdgeCertificate, listener_fits};
use mesh_model::route::HostMatch;
use mesh_tls::{Choose, EdgeKey};

/// The listeners of a port where TLS ends. Replaced as a whole when one of them changes.
#[derive(Debug, Default)]
pub(super) struct Table {
    listeners: Vec<Listener>,
}

#[derive(Debug)]
pub(super) struct Listener {
    /// `None`: any.
    pub(super) host: Option<HostMatch>,
    pub(super) keys: Vec<EdgeKey>,
}

impl Table {
    /// Certificates that are of no use are left out, and said so.
    pub(super) fn new(certificates: &[EdgeCertificate]) -> Self {
        let mut listeners: Vec<Listener> = Vec::new();
        for certificate in certificates {
            let key = match EdgeKey::from_pem(&certificate.chain, &certificate.key.0) {
                Ok(key) => key,
                Err(error) => {
                    let host = certificate.host.as_ref().map(ToString::to_string);
                    tracing::warn!(?host, %error, "a certificate is of no use");
                    continue;
                }
            };
            match listeners.iter_mut().find(|listener| listener.host == certificate.host) {
                Some(listener) => listener.keys.push(key),
                None => {
                    listeners.push(Listener { host: certificate.host.clone(), keys: vec![key] })
                }
            }
        }
        Self { listeners }
    }

    /// The listener that a client means by a name, or by none.
    pub(super) fn listener(&self, name: Option<&str>) -> Option<usize> {
        let fits = |(index, listener): (usize, &Listener)| {
            // A client that names nobody means whoever is there for all.
            Some((listener_fits(listener.host.as_ref(), name.unwrap_or_default())?, index))
        };
        self.listeners.iter().enumerate().filter_map(fits).max().map(|(_, index)| index)
    }

    /// How well the best listener fits a name.
    pub(super) fn fits(&self, name: Option<&str>) -> Option<(u8, usize)> {
        let hosts = self.listeners.iter().map(|listener| listener.host.as_ref());
        hosts.filter_map(|host| listener_fits(host, name.unwrap_or_default())).max()
    }

    pub(super) fn listeners(&self) -> &[Listener] {
        &self.listeners
    }
}

/// For handshakes.
#[derive(Debug)]
pub(super) struct Chooser(pub(super) Arc<Table>);

impl Choose for Chooser {
    fn choose(&self, name: Option<&str>) -> Option<&EdgeKey> {
        let keys = &self.0.listeners[self.0.listener(name)?].keys;
        let of_name = |name: &str| keys.iter().find(|key| key.is_for(name));
        name.and_then(of_name).or(keys.first())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(hosts: &[&str]) -> Table {
        let listener = |host: &&str| Listener { host: HostMatch::parse(host), keys: Vec::new() };
        Table { listeners: hosts.iter().map(listener).collect() }
    }

    #[test]
    fn a_name_means_the_closest_listener() {
        let table = table(&["*.example", "shop.example", "*.shop.example"]);
        for (name, meant) in [
            (Some("shop.example"), Some(1)),
            (Some("SHOP.example"), Some(1)),
            (Some("a.shop.example"), Some(2)),
            (Some("a.b.shop.example"), Some(2)),
            (Some("other.example"), Some(0)),
            (Some("example"), None),
            (Some(""), None),
            (None, None),
        ] {
            assert_eq!(table.listener(name), meant, "{name:?}");
        }
    }

    #[test]
    fn a_listener_for_all_is_for_those_who_name_nobody() {
        let table = table(&["", "shop.example"]);
        assert_eq!(table.listener(None), Some(0));
        assert_eq!(table.listener(Some("other.example")), Some(0));
        assert_eq!(table.listener(Some("shop.example")), Some(1));
        assert!(Chooser(Arc::new(Table::default())).choose(None).is_none());
    }
}
