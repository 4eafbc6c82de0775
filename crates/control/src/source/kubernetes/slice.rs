//! EndpointSlices of Kubernetes as objects of the index.
//!
//! In a cluster they are the only word on endpoints: whoever writes them (the cluster's controller,
//! another one, a person) says where a Service's connections go, with or without a selector.

use std::net::IpAddr;

use k8s_openapi::api::discovery::v1 as discovery;

use super::name_of;
use crate::index::object::{EndpointAddress, EndpointSlice};

/// Names the Service that a slice is of.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// What a slice can hold at most, as the API server has it too.
const MAX_ADDRESSES: usize = 1000;
/// Zones that an endpoint can be hinted for, likewise.
const MAX_HINTS: usize = 8;

/// A slice with what the mesh can use of it: TCP ports and IP addresses. `None`: it is no Service's.
pub fn endpoint_slice(object: &discovery::EndpointSlice) -> Option<EndpointSlice> {
    let labels = object.metadata.labels.as_ref()?;
    let service = labels.get(SERVICE_NAME).filter(|name| !name.is_empty())?;
    let ports = object.ports.iter().flatten();
    let ports = ports.filter(|port| matches!(port.protocol.as_deref(), None | Some("TCP")));
    let ports = ports.filter_map(|port| {
        // A slice that names no port means all of them, which only a headless Service can have.
        let number = u16::try_from(port.port?).ok().filter(|port| *port > 0)?;
        Some((port.name.clone().unwrap_or_default(), number))
    });
    let endpoints = object.endpoints.iter().flatten().take(MAX_ADDRESSES);
    let addresses = endpoints.filter_map(address);
    Some(EndpointSlice {
        name: name_of(&object.metadata),
        service: service.clone(),
        ports: ports.collect(),
        addresses: addresses.collect(),
    })
}

/// An endpoint has several addresses by the type, but they mean the same, and consumers are to take
/// the first.
fn address(endpoint: &discovery::Endpoint) -> Option<EndpointAddress> {
    // Host names (`addressType: FQDN`) are no addresses.
    let ip = endpoint.addresses.first()?.parse::<IpAddr>().ok()?.to_canonical();
    let conditions = endpoint.conditions.as_ref();
    let condition = |value: Option<bool>, unknown| value.unwrap_or(unknown);
    // What is not said is to be read as ready, as serving if ready, as not terminating.
    let ready = condition(conditions.and_then(|c| c.ready), true);
    let terminating = condition(conditions.and_then(|c| c.terminating), false);
    let serving = condition(conditions.and_then(|c| c.serving), ready);
    let pod = endpoint.target_ref.as_ref().filter(|of| of.kind.as_deref() == Some("Pod"));
    let hints = endpoint.hints.iter().flat_map(|hints| hints.for_zones.iter().flatten());
    Some(EndpointAddress {
        ip,
        pod: pod.and_then(|pod| pod.name.clone()),
        ready,
        draining: terminating && serving && !ready,
        zone: endpoint.zone.clone(),
        node: endpoint.node_name.clone(),
        hints: hints.take(MAX_HINTS).map(|zone| zone.name.clone()).collect(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(slice: Value) -> Option<EndpointSlice> {
        endpoint_slice(&serde_json::from_value(slice).unwrap())
    }

    fn slice(endpoints: Value, ports: Value) -> Value {
        json!({
            "metadata": {
                "name": "tax-abc", "namespace": "shop",
                "labels": { "kubernetes.io/service-name": "tax" },
            },
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": ports,
        })
    }

    #[test]
    fn conditions_mean_what_kubernetes_says() {
        let case = |conditions: Value| {
            let endpoints = json!([{ "addresses": ["10.1.0.1"], "conditions": conditions }]);
            let slice = read(slice(endpoints, json!([]))).unwrap();
            (slice.addresses[0].ready, slice.addresses[0].draining)
        };
        assert_eq!(case(json!({})), (true, false));
        assert_eq!(case(json!({ "ready": false })), (false, false));
        let going = json!({ "ready": false, "serving": true, "terminating": true });
        assert_eq!(case(going), (false, true));
        let gone = json!({ "ready": false, "serving": false, "terminating": true });
        assert_eq!(case(gone), (false, false));
        // publishNotReadyAddresses
        let always = json!({ "ready": true, "serving": false, "terminating": false });
        assert_eq!(case(always), (true, false));
    }

    #[test]
    fn pods_zones_and_named_ports() {
        let endpoints = json!([
            { "addresses": ["fd00::1"], "zone": "a", "nodeName": "n1",
              "hints": { "forZones": [{ "name": "a" }, { "name": "b" }] },
              "targetRef": { "kind": "Pod", "name": "tax-1", "namespace": "shop" } },
            { "addresses": ["192.0.2.1"], "targetRef": { "kind": "Node", "name": "n" } },
            { "addresses": ["tax.example.com"] },
            { "addresses": [] },
        ]);
        let ports = json!([
            { "name": "http", "port": 8080, "protocol": "TCP" },
            { "name": "dns", "port": 53, "protocol": "UDP" },
            { "name": "any" },
            { "name": "odd", "port": 70000 },
        ]);
        let slice = read(slice(endpoints, ports)).unwrap();
        assert_eq!(slice.ports, [("http".to_owned(), 8080)]);
        let found: Vec<_> = slice.addresses.iter().map(|a| (a.ip.to_string(), &a.pod)).collect();
        let pod = Some("tax-1".to_owned());
        assert_eq!(found, [("fd00::1".into(), &pod), ("192.0.2.1".into(), &None)]);
        assert_eq!(slice.addresses[0].zone.as_deref(), Some("a"));
        assert_eq!(slice.addresses[0].node.as_deref(), Some("n1"));
        assert_eq!(slice.addresses[0].hints, ["a", "b"]);
        assert!(slice.addresses[1].hints.is_empty());
    }

    #[test]
    fn a_slice_of_no_service_is_none() {
        let mut orphan = slice(json!([]), json!([]));
        orphan["metadata"]["labels"] = json!({});
        assert_eq!(read(orphan), None);
    }
}
