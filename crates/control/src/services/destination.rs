//! The endpoints of a service as one client has them: those for its zone, wherever it turns out to be.

use std::sync::Arc;

use futures_util::stream::{self, BoxStream, StreamExt};
use mesh_model::Destination;
use tokio::sync::watch;

use crate::index::endpoints::EndpointSet;
use crate::index::object::Name;
use crate::index::{Watched, Zone};
use crate::state::Shared;

/// The whole set, then its changes; `None` when there is no such port. When the service goes, its
/// readers are told before the stream ends, lest they keep the endpoints while they ask again.
pub(super) fn stream(
    shared: &Arc<Shared>,
    service: &Name,
    port: u16,
    client: &Name,
) -> Option<BoxStream<'static, Destination>> {
    let reader = Reader::open(shared, service, port, client)?;
    let changes = stream::unfold(reader, async |mut reader| {
        let messages = reader.next().await?;
        Some((stream::iter(messages), reader))
    });
    let gone = stream::once(std::future::ready(Destination::NoEndpoints { exists: false }));
    Some(changes.flatten().chain(gone).boxed())
}

struct Reader {
    shared: Arc<Shared>,
    service: Name,
    port: u16,
    /// The client's.
    zone: watch::Receiver<Zone>,
    sets: Watched<EndpointSet>,
    told: Option<Arc<EndpointSet>>,
}

impl Reader {
    fn open(shared: &Arc<Shared>, service: &Name, port: u16, client: &Name) -> Option<Self> {
        let mut index = shared.index.write();
        let zone = index.watch_zone(client);
        let now = zone.borrow().clone();
        Some(Self {
            shared: Arc::clone(shared),
            service: service.clone(),
            port,
            sets: index.watch_endpoints(service, port, &now)?,
            zone,
            told: None,
        })
    }

    /// What is to be said next; `None` when the port is gone.
    async fn next(&mut self) -> Option<Vec<Destination>> {
        if self.told.is_some() {
            let moved = tokio::select! {
                Ok(()) = self.zone.changed() => true,
                changed = self.sets.changed() => {
                    changed.ok()?;
                    // With the endpoints: then they are not the client's.
                    self.zone.has_changed().unwrap_or(false)
                }
            };
            if moved {
                let zone = self.zone.borrow_and_update().clone();
                let mut index = self.shared.index.write();
                self.sets = index.watch_endpoints(&self.service, self.port, &zone)?;
            }
        }
        let set = Arc::clone(&self.sets.borrow_and_update());
        let messages = set.since(self.told.as_deref());
        self.told = Some(set);
        Some(messages)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::index::object::{EndpointAddress, EndpointSlice, Object, Pod, Service, ServicePort};

    fn shop(name: &str) -> Name {
        Name::new("shop", name)
    }

    fn client(zone: &str) -> Object {
        Object::Pod(Pod { name: shop("client"), zone: Some(zone.into()), ..Pod::default() })
    }

    fn slice(zones: &[(u8, &str)]) -> Object {
        let address = |(number, zone): &(u8, &str)| EndpointAddress {
            ip: [10, 1, 0, *number].into(),
            pod: None,
            ready: true,
            draining: false,
            zone: Some((*zone).into()),
            node: None,
            hints: vec![(*zone).into()],
        };
        Object::EndpointSlice(EndpointSlice {
            name: shop("web-1"),
            service: "web".into(),
            ports: vec![(String::new(), 80)],
            addresses: zones.iter().map(address).collect(),
        })
    }

    #[test]
    fn a_client_is_told_what_is_for_its_zone_wherever_it_turns_out_to_be() {
        let shared = Arc::new(Shared::default());
        let apply = |object| shared.index.write().apply(object);
        let port = ServicePort { port: 80, ..ServicePort::default() };
        apply(Object::Service(Service {
            name: shop("web"),
            ports: vec![port],
            ..Service::default()
        }));
        apply(slice(&[(1, "a"), (2, "b")]));
        assert!(stream(&shared, &shop("web"), 81, &shop("client")).is_none());

        let mut told = stream(&shared, &shop("web"), 80, &shop("client")).unwrap();
        let mut next = || told.next().now_or_never().map(Option::unwrap);
        let hosts = |endpoints: &[mesh_model::Endpoint]| -> Vec<String> {
            endpoints.iter().map(|endpoint| endpoint.addr.ip().to_string()).collect()
        };
        // Nobody knows where it is.
        let Some(Destination::Add { endpoints, .. }) = next() else { panic!("all") };
        assert_eq!(hosts(&endpoints), ["10.1.0.1", "10.1.0.2"]);
        apply(client("a"));
        let Some(Destination::Remove(gone)) = next() else { panic!("those of b go") };
        assert_eq!(gone, ["10.1.0.2:80".parse().unwrap()]);
        assert!(next().is_none());
        apply(client("b"));
        let Some(Destination::Add { endpoints, .. }) = next() else { panic!("first those of b") };
        assert_eq!(hosts(&endpoints), ["10.1.0.2"]);
        let Some(Destination::Remove(gone)) = next() else { panic!("then not those of a") };
        assert_eq!(gone, ["10.1.0.1:80".parse().unwrap()]);
        // None is for b any more, so all are.
        apply(slice(&[(1, "a"), (3, "c")]));
        let Some(Destination::Add { endpoints, .. }) = next() else { panic!("all") };
        assert_eq!(hosts(&endpoints), ["10.1.0.1", "10.1.0.3"]);
    }

    #[test]
    fn what_changes_together_is_told_at_once() {
        let shared = Arc::new(Shared::default());
        let port = ServicePort { port: 80, ..ServicePort::default() };
        let mut service = Service { name: shop("web"), ports: vec![port], ..Service::default() };
        {
            let mut index = shared.index.write();
            let mut batch = index.batch();
            batch.apply(Object::Service(service.clone()));
            batch.apply(client("a"));
            batch.apply(slice(&[(1, "a"), (2, "b")]));
        }
        let mut told = stream(&shared, &shop("web"), 80, &shop("client")).unwrap();
        let mut next = || told.next().now_or_never().map(Option::unwrap);
        let Some(Destination::Add { endpoints, .. }) = next() else { panic!("those of a") };
        assert_eq!(endpoints.len(), 1);
        {
            // The client moves while its zone loses its endpoints; and a port comes and goes.
            let mut index = shared.index.write();
            let mut batch = index.batch();
            let port = std::mem::take(&mut service.ports);
            batch.apply(Object::Service(service.clone()));
            service.ports = port;
            batch.apply(Object::Service(service));
            batch.apply(slice(&[(2, "b")]));
            batch.apply(client("b"));
        }
        let Some(Destination::Add { endpoints, .. }) = next() else { panic!("those of b") };
        assert_eq!(endpoints[0].addr, "10.1.0.2:80".parse().unwrap());
        let Some(Destination::Remove(gone)) = next() else { panic!("not that of a") };
        assert_eq!(gone, ["10.1.0.1:80".parse().unwrap()]);
        assert!(next().is_none(), "nothing of what was in between");
    }
}
