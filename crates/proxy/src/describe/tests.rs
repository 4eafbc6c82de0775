//! The documents, whole: their names are a promise.

use mesh_model::outbound::{Balance, GrpcPolicy, Queue};
use mesh_model::route::{GrpcCodes, Timeouts};

use super::*;

fn balanced(name: &str) -> Backend {
    Backend {
        meta: Meta::Default(name.into()),
        queue: Queue { capacity: 100, failfast_timeout: Duration::from_secs(3) },
        kind: BackendKind::Balance(Balance {
            path: format!("{name}:8080"),
            default_rtt: Duration::from_millis(30),
            decay: Duration::from_secs(10),
            penalty: None,
        }),
    }
}

fn retrying() -> Forward {
    let weighted = |name: &str, weight| {
        let backend = RouteBackend { filters: Vec::new(), backend: balanced(name) };
        (Arc::new(backend), weight)
    };
    Forward {
        backends: Distribution::Random(vec![weighted("v1", 3), weighted("v2", 1)]),
        timeouts: Timeouts { request: Some(Duration::from_millis(1500)), ..Timeouts::default() },
        retry: Some(Retry {
            max_retries: 2,
            max_request_bytes: 65_536,
            statuses: vec![500..=504, 429..=429],
            grpc: GrpcCodes::default().with(14),
            timeout: None,
            backoff: None,
        }),
        allow_request_headers: false,
        session: None,
    }
}

fn route_of<M, A>(matches: Vec<M>, filters: Vec<Filter>, action: A) -> Route<M, A> {
    let hosts = vec![HostMatch::Suffix(vec!["shop".into(), "test".into()])];
    let rules = vec![Rule { matches, filters, action }];
    Route { meta: Meta::Default("r".into()), hosts, rules }
}

#[test]
fn an_outbound_policy_has_named_fields_and_only_those_that_apply() {
    let policy = GrpcPolicy {
        routes: Arc::new([route_of(
            vec![GrpcMatch { service: Some("shop.Tax".into()), ..GrpcMatch::default() }],
            Vec::new(),
            retrying(),
        )]),
        breaker: None,
    };
    let backend = |name: &str, weight: u32| {
        json!({
            "name": format!("default/{name}"), "balance": format!("{name}:8080"),
            "queue_capacity": 100, "failfast_timeout": "3s", "weight": weight,
        })
    };
    assert_eq!(
        outbound_protocol(&Protocol::Grpc(policy)),
        json!({
            "protocol": "grpc",
            "routes": [{
                "name": "default/r",
                "hosts": ["*.shop.test"],
                "rules": [{
                    "matches": [{ "service": "shop.Tax" }],
                    "backends": [backend("v1", 3), backend("v2", 1)],
                    "timeouts": { "request": "1.5s" },
                    "retry": {
                        "max_retries": 2, "statuses": ["500-504", "429"], "grpc_codes": [14],
                        "max_request_bytes": 65_536,
                    },
                }],
            }],
        })
    );
}

#[test]
fn a_server_policy_says_who_gets_in_also_when_nobody_does() {
    let nobody = ServerPolicy {
        protocol: ServerProtocol::Opaque,
        authorizations: Arc::new([]),
        labels: Arc::default(),
    };
    assert_eq!(server_policy(&nobody), json!({ "protocol": "opaque", "authorizations": [] }));

    let net = |addr: &str, prefix| Cidr { addr: addr.parse().unwrap(), prefix };
    let some = Authorization {
        meta: Meta::Default("a".into()),
        networks: vec![Network { net: net("10.0.0.0", 8), except: vec![net("10.1.0.0", 16)] }],
        authentication: Authentication::Identities {
            identities: vec!["web.shop".into()],
            suffixes: vec![vec!["ops".into()]],
        },
        labels: Default::default(),
    };
    let path = Some(PathMatch::Prefix("/v2".into()));
    let method = Some(http::Method::GET);
    let matches = vec![HttpMatch { path, method, ..HttpMatch::default() }];
    let change = HeaderModifier {
        set: vec![(http::header::ACCEPT, http::HeaderValue::from_static("text/html"))],
        ..HeaderModifier::default()
    };
    let action = Authorize { authorizations: Arc::new([some]) };
    let filters = vec![Filter::RequestHeaders(change)];
    let policy = ServerPolicy {
        protocol: ServerProtocol::Detect {
            timeout: Duration::from_secs(10),
            routes: Arc::new([route_of(matches, filters, action)]),
            limit: None,
        },
        ..nobody
    };
    assert_eq!(
        server_policy(&policy),
        json!({
            "protocol": "detect",
            "detect_timeout": "10s",
            "authorizations": [],
            "routes": [{
                "name": "default/r",
                "hosts": ["*.shop.test"],
                "rules": [{
                    "matches": [{ "path": "prefix /v2", "method": "GET" }],
                    "filters": [{ "request_headers": { "set": ["accept: text/html"] } }],
                    "authorizations": [{
                        "name": "default/a",
                        "networks": ["10.0.0.0/8 except 10.1.0.0/16"],
                        "who": ["web.shop", "*.ops"],
                    }],
                }],
            }],
        })
    );
}
