//! What the proxy at the edge is told, there and back.

use std::sync::Arc;

use mesh_api::{Wire, ext};
use mesh_model::gateway::{EdgeCertificate, GatewayConfig, GatewayPort, Https, PrivateKey};
use mesh_model::meta::ResourceRef;
use mesh_model::outbound::{HttpPolicy, OutboundPolicy, Protocol};
use mesh_model::route::HostMatch;
use mesh_model::{Meta, outbound};

fn config() -> GatewayConfig {
    let meta = Meta::Resource(ResourceRef::service("shop", "edge", 443));
    let http = HttpPolicy { routes: Arc::new([]), breaker: None };
    let policy = OutboundPolicy { meta: meta.clone(), protocol: Protocol::Http1(http) };
    let tcp = outbound::TcpPolicy {
        routes: Arc::new([outbound::TcpRoute {
            meta: meta.clone(),
            snis: Vec::new(),
            backends: mesh_model::route::Distribution::Empty,
            refuse: None,
        }]),
    };
    let certificate = |host: &str| EdgeCertificate {
        host: HostMatch::parse(host),
        chain: "a chain".into(),
        key: PrivateKey("a secret".into()),
    };
    let certificates = vec![certificate("*.shop.test"), certificate("shop.test"), certificate("")];
    GatewayConfig {
        ports: vec![
            GatewayPort {
                port: 443,
                http: Some(policy.clone()),
                https: Some(Https { policy, certificates }),
                bytes: None,
            },
            GatewayPort {
                port: 5432,
                bytes: Some(OutboundPolicy { meta, protocol: Protocol::Opaque(tcp) }),
                ..GatewayPort::default()
            },
            GatewayPort { port: 1, ..GatewayPort::default() },
        ],
    }
}

#[test]
fn it_comes_back_as_it_was() {
    let proto = config().encode().unwrap();
    assert!(!format!("{proto:?}").contains("secret"), "no log may show it");
    assert_eq!(GatewayConfig::from_proto(proto).unwrap(), config());
}

#[test]
fn what_makes_no_sense_is_refused() {
    let spoilt = |spoil: &dyn Fn(&mut ext::GatewayConfig)| {
        let mut proto = config().encode().unwrap();
        spoil(&mut proto);
        GatewayConfig::from_proto(proto).unwrap_err().to_string()
    };
    let https = |proto: &mut ext::GatewayConfig, spoil: &dyn Fn(&mut ext::GatewayHttps)| {
        spoil(proto.ports[0].https.as_mut().unwrap());
    };
    for (error, field) in [
        (spoilt(&|p| p.ports[0].port = 0), "ports[0].port"),
        (spoilt(&|p| p.ports[0].port = 65_536), "ports[0].port"),
        (spoilt(&|p| p.ports = vec![p.ports[2].clone(); 257]), "ports"),
        (spoilt(&|p| https(p, &|h| h.policy = None)), "policy"),
        (spoilt(&|p| https(p, &|h| h.certificates[0].host = "a..b".into())), "host"),
        (spoilt(&|p| https(p, &|h| h.certificates[0].key = "x".repeat(300_000))), "chain"),
        (spoilt(&|p| p.ports[1].bytes.as_mut().unwrap().policy = vec![0xff]), "policy"),
    ] {
        assert!(error.contains(field), "{error}");
    }
}
