//! Whom clients are to expect behind an endpoint.

use mesh_api::Wire;
use mesh_model::{Destination, Endpoint};

use super::*;
use crate::index::authz::Defaults;
use crate::index::identity::MeshNames;

const WEB: &str = "web.shop.serviceaccount.identity.mesh-system.cluster.local";

fn names() -> MeshNames {
    MeshNames { control_namespace: "mesh-system".into(), trust_domain: "cluster.local".into() }
}

/// The endpoint of a service's one pod.
fn endpoint_in(mut index: Index, pod: Pod) -> Endpoint {
    index.apply(Object::Service(service("web", "10.0.0.1")));
    index.apply(Object::EndpointSlice(slice("web", &[(&pod.name.name, "127.1.0.1")])));
    index.apply(Object::Pod(pod));
    let set = index.objects().endpoints(&shop("web"), 8080).unwrap();
    let update = set.since(None).remove(0);
    update.encode().expect("it can be sent");
    let Destination::Add { endpoints, .. } = update else { panic!("{update:?}") };
    endpoints.into_iter().next().unwrap()
}

fn web() -> Pod {
    Pod { service_account: "web".into(), ..pod("web-1", "127.1.0.1") }
}

#[test]
fn a_meshed_pod_is_its_service_account() {
    let endpoint = endpoint_in(Index::new(Defaults::default(), Some(names())), web());
    let identity = endpoint.identity.unwrap();
    assert_eq!((&*identity.id, &*identity.server_name), (WEB, WEB));
    assert_eq!(endpoint.opaque_transport, Some(4143));
}

#[test]
fn others_are_spoken_to_in_plain_text() {
    let plain = |endpoint: Endpoint| {
        assert_eq!((&endpoint.identity, endpoint.opaque_transport), (&None, None), "{endpoint:?}");
    };
    plain(endpoint_in(Index::default(), web()));
    plain(endpoint_in(
        Index::new(Defaults::default(), Some(names())),
        Pod { proxy: None, ..web() },
    ));
    // It would read as the account `web` of the namespace `v2`.
    let dotted = Pod { service_account: "web.v2".into(), ..web() };
    plain(endpoint_in(Index::new(Defaults::default(), Some(names())), dotted));
}
