//! The page as dashboards read it: names, labels, and both formats' grammar.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_model::endpoint::Labels;
use mesh_model::stats::{SeriesKey, StatProtocol};
use mesh_model::{Direction, Meta, Reason, ResourceRef};

use super::*;

const OPEN_METRICS: Option<&str> =
    Some("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5");

fn labels(pairs: &[(&str, &str)]) -> Labels {
    Arc::new(pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect())
}

fn service() -> Meta {
    Meta::Resource(ResourceRef::service("shop", "tax", 8080))
}

fn route() -> Meta {
    let (group, kind) = ("gateway.networking.k8s.io".into(), "HTTPRoute".into());
    let (name, namespace) = ("tax".into(), "shop".into());
    Meta::Resource(ResourceRef { group, kind, name, namespace, ..ResourceRef::default() })
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn key(direction: Direction, peer: &str) -> SeriesKey {
    SeriesKey {
        direction,
        protocol: StatProtocol::Http,
        peer: Some(peer.parse().unwrap()),
        port: 8080,
        parent: "Service/shop/tax:8080".into(),
        route: "HTTPRoute/shop/tax".into(),
        backend: "Service/shop/tax:8080".into(),
        identity: None,
    }
}

fn outbound() -> SeriesSpec {
    SeriesSpec {
        key: key(Direction::Outbound, "10.0.0.2"),
        labels: HttpLabels {
            authority: Some("tax.shop:8080".into()),
            target_addr: Some(addr("10.0.0.2:8080")),
            tls: Tls::Id("tax.shop.serviceaccount.identity.mesh-system.cluster.local".into()),
            parent: Some(service()),
            route: Some(route()),
            backend: Some(service()),
            dst: labels(&[("deployment", "tax"), ("namespace", "shop"), ("pod", "tax-1")]),
            ..HttpLabels::default()
        },
    }
}

fn server() -> Labels {
    labels(&[("group", "policy.meshctl.dev"), ("kind", "ServerPolicy"), ("name", "tax")])
}

fn inbound(client: &str) -> SeriesSpec {
    let authz = [("group", ""), ("kind", "default"), ("name", "all-unauthenticated")];
    SeriesSpec {
        key: key(Direction::Inbound, client),
        labels: HttpLabels {
            target_addr: Some(addr("10.0.0.9:8080")),
            tls: Tls::None("no_tls_from_remote"),
            route: Some(Meta::Default("default".into())),
            srv: server(),
            authz: labels(&authz),
            ..HttpLabels::default()
        },
    }
}

fn ok(total: Duration) -> Finished {
    Finished {
        status: 200,
        grpc_status: None,
        success: true,
        first_byte: Some(total / 2),
        total,
        request_bytes: 10,
        response_bytes: 20,
        reason: None,
        attempts: 1,
    }
}

fn count_requests(telemetry: &Telemetry) {
    let outbound = telemetry.stats.series(outbound());
    outbound.request();
    outbound.response(&ok(Duration::from_millis(7)));
    outbound.request();
    outbound.response(&Finished {
        status: 503,
        success: false,
        grpc_status: Some(14),
        reason: Some(Reason::NoEndpoints),
        ..ok(Duration::from_secs(60))
    });
    outbound.request();
    outbound.failed(Reason::ConnectRefused);
    // Two clients make two series, but one line of each family.
    for client in ["10.0.0.3", "10.0.0.4"] {
        let inbound = telemetry.stats.series(inbound(client));
        inbound.request();
        inbound.response(&ok(Duration::from_millis(7)));
    }
}

fn count_the_rest(telemetry: &Telemetry) {
    let src = TransportLabels {
        tls: Tls::Id("web.shop".into()),
        srv: server(),
        ..TransportLabels::new(Direction::Inbound, Peer::Src, Some(addr("10.0.0.9:8080")))
    };
    let dst = TransportLabels {
        authority: Some("tax.shop:8080".into()),
        dst: labels(&[("pod", "tax-1")]),
        ..TransportLabels::new(Direction::Outbound, Peer::Dst, Some(addr("10.0.0.2:8080")))
    };
    telemetry.transport.open(&src).close(Some(104));
    let open = telemetry.transport.open(&dst);
    open.read(100);
    open.wrote(50);
    // Stays open for the rest of the process.
    std::mem::forget(open);

    let authz = AuthzLabels {
        target_addr: Some(addr("10.0.0.9:8080")),
        srv: server(),
        route: Some(Meta::Default("default".into())),
        authz: labels(&[("group", ""), ("kind", "default"), ("name", "all-unauthenticated")]),
        tls: Tls::None("no_tls_from_remote"),
    };
    telemetry.authz.http(&authz).allow.inc();
    telemetry.authz.tcp(&AuthzLabels { route: None, ..authz }).deny.inc();
    let parent = telemetry.egress.host(&"example.com".into(), 443);
    let policy = Meta::Resource(ResourceRef {
        group: "policy.meshctl.dev".into(),
        kind: "EgressPolicy".into(),
        name: "web".into(),
        namespace: "shop".into(),
        section: "allow[0]".into(),
        port: None,
    });
    let egress = EgressLabels { parent, policy };
    telemetry.egress.http(&egress).allow.inc();
    telemetry.egress.tcp(&egress).terminated.inc();
    telemetry.retries.route(&service(), &route()).overflow.inc();
    telemetry.detect.record(Direction::Inbound, Detected::Http1, Duration::from_millis(1));
    telemetry.config_rejected.inc("missing-field");
    telemetry.identity.refreshed(1_700_000_000, 1_700_086_400);
    telemetry.balancers.set_view(|| {
        let states = [EndpointState::Ready, EndpointState::Pending, EndpointState::Ejected];
        let endpoints = (1..).map(|port| ([10, 0, 0, 2], port).into()).zip(states).collect();
        vec![BalancerView { parent: service(), backend: service(), endpoints }]
    });
    telemetry.register(AccessLog::new(None));
}

fn busy() -> Arc<Telemetry> {
    let telemetry = Telemetry::new(&TelemetryConfig::default());
    count_requests(&telemetry);
    count_the_rest(&telemetry);
    telemetry
}

/// A sample line's name, labels and value.
fn sample(line: &str) -> (&str, Vec<(&str, &str)>, f64) {
    let (rest, value) = line.rsplit_once(' ').unwrap();
    let (name, labels) = rest.split_once('{').unwrap_or((rest, "}"));
    let labels = labels.strip_suffix('}').unwrap();
    // No value in these tests holds a comma.
    let pairs = labels.split(',').filter(|pair| !pair.is_empty());
    let pair = |text| {
        let (name, value) = str::split_once(text, '=').unwrap();
        (name, value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap())
    };
    (name, pairs.map(pair).collect(), value.parse().unwrap())
}

/// The value of the only sample of this name whose labels include these.
fn value(page: &str, name: &str, wanted: &[(&str, &str)]) -> f64 {
    let samples = page.lines().filter(|line| !line.starts_with('#')).map(sample);
    let found: Vec<_> = samples
        .filter(|(n, labels, _)| *n == name && wanted.iter().all(|w| labels.contains(w)))
        .collect();
    assert_eq!(found.len(), 1, "{name}{wanted:?}: {found:?}");
    found[0].2
}

/// Checks the grammar both formats have in common; returns the families with their kinds.
fn check(page: &str, counter_suffix: &str) -> BTreeMap<String, String> {
    let mut families: BTreeMap<String, String> = BTreeMap::new();
    let mut current = (String::new(), String::new());
    let mut seen = BTreeSet::new();
    let mut bucket = (String::new(), 0.0);
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(!help.is_empty() && !families.contains_key(name), "{line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(families.insert(name.into(), kind.into()).is_none(), "{name} twice");
            current = (name.into(), kind.into());
        } else if !line.starts_with('#') {
            let (name, labels, count) = sample(line);
            assert!(seen.insert(line.rsplit_once(' ').unwrap().0.to_owned()), "twice: {line}");
            let suffix = name.strip_prefix(current.0.as_str()).unwrap_or_else(|| panic!("{line}"));
            let suffixes: &[&str] = match current.1.as_str() {
                "counter" => &[counter_suffix],
                "gauge" => &[""],
                "histogram" => &["_sum", "_count", "_bucket"],
                kind => panic!("{kind}"),
            };
            assert!(suffixes.contains(&suffix), "{line} in {current:?}");
            let mut names: Vec<_> = labels.iter().map(|(name, _)| *name).collect();
            assert!(names.iter().all(|n| n.chars().all(|c| c == '_' || c.is_ascii_alphanumeric())));
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), labels.len(), "a label twice: {line}");
            if suffix == "_bucket" {
                let set = format!("{name}{:?}", &labels[..labels.len() - 1]);
                let last = if bucket.0 == set { bucket.1 } else { 0.0 };
                assert!(count >= last, "buckets are cumulative: {line}");
                bucket = (set, count);
            }
        }
    }
    families
}

#[test]
fn both_formats_are_well_formed_and_say_the_same() {
    let telemetry = busy();
    let (open, plain) = (telemetry.expose(OPEN_METRICS), telemetry.expose(None));
    assert_eq!(open.content_type, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert_eq!(plain.content_type, "text/plain; version=0.0.4; charset=utf-8");
    assert!(open.body.ends_with("# EOF\n"));
    assert!(!plain.body.contains("# EOF") && !plain.body.contains("# UNIT"));

    let named = |(name, kind): (String, String)| match kind.as_str() {
        "counter" => (format!("{name}_total"), kind),
        _ => (name, kind),
    };
    let open_families: BTreeMap<_, _> =
        check(&open.body, "_total").into_iter().map(named).collect();
    assert_eq!(open_families, check(&plain.body, ""));
    let samples = |page: &str| -> Vec<String> {
        let lines = page.lines().filter(|line| !line.starts_with('#'));
        // What the kernel says changes between two scrapes.
        lines.filter(|line| !line.starts_with("process_")).map(str::to_owned).collect()
    };
    assert_eq!(samples(&open.body), samples(&plain.body));
}

#[test]
fn names_and_labels_are_a_contract() {
    let telemetry = busy();
    let page = telemetry.expose(None).body;
    let families = check(&page, "");
    let mut lines: BTreeSet<String> =
        families.iter().map(|(name, kind)| format!("{name} {kind}")).collect();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let (name, labels, _) = sample(line);
        let names: Vec<_> = labels.iter().map(|(name, _)| *name).filter(|n| *n != "le").collect();
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix).filter(|f| families.contains_key(*f)))
            .unwrap_or(name);
        if !names.is_empty() {
            let direction = labels.iter().find(|(name, _)| *name == "direction");
            let direction = direction.map_or("", |(_, direction)| *direction);
            lines.insert(format!("{family} {} {direction}", names.join(",")).trim_end().into());
        }
    }
    let contract: Vec<_> = lines.into_iter().collect();
    insta::assert_snapshot!(contract.join("\n"));
}

#[test]
fn requests_are_counted_with_their_outcome() {
    let page = busy().expose(None).body;
    let outbound = ("direction", "outbound");
    assert_eq!(value(&page, "request_total", &[outbound]), 3.0);
    let failed = [outbound, ("status_code", "503"), ("classification", "failure")];
    let failed = [&failed[..], &[("grpc_status", "14"), ("error", "no-endpoints")]].concat();
    assert_eq!(value(&page, "response_total", &failed), 1.0);
    let refused = [outbound, ("status_code", ""), ("error", "connect-refused")];
    assert_eq!(value(&page, "response_total", &refused), 1.0);
    let inbound = ("direction", "inbound");
    assert_eq!(value(&page, "request_total", &[inbound]), 2.0, "both clients on one line");
    assert_eq!(value(&page, "response_total", &[inbound, ("status_code", "200")]), 2.0);
}

#[test]
fn latencies_fall_into_their_buckets_at_both_levels() {
    let page = busy().expose(None).body;
    let outbound = ("direction", "outbound");
    for (status, le, count) in [
        ("200", "5.0", 0.0),
        ("200", "10.0", 1.0),
        ("200", "+Inf", 1.0),
        ("503", "50000.0", 0.0),
        ("503", "+Inf", 1.0),
    ] {
        let wanted = [outbound, ("status_code", status), ("le", le)];
        assert_eq!(value(&page, "response_latency_ms_bucket", &wanted), count, "{status} {le}");
    }
    let sum = value(&page, "response_latency_ms_sum", &[outbound, ("status_code", "200")]);
    assert_eq!(sum, 7.0);

    let name = "outbound_http_route_request_duration_seconds";
    for (le, count) in [("0.05", 1.0), ("10.0", 1.0), ("+Inf", 2.0)] {
        assert_eq!(value(&page, &format!("{name}_bucket"), &[("le", le)]), count, "{le}");
    }
    assert_eq!(value(&page, &format!("{name}_sum"), &[]), 60.007);
    let statuses = "outbound_http_route_request_statuses_total";
    assert_eq!(value(&page, statuses, &[("http_status", "200"), ("error", "")]), 1.0);
    let backend = ("backend_name", "tax");
    assert_eq!(value(&page, "outbound_http_route_backend_requests_total", &[backend]), 3.0);
}

#[test]
fn a_try_that_was_given_up_is_the_backends_and_not_the_requests() {
    let telemetry = Telemetry::new(&TelemetryConfig::default());
    let series = telemetry.stats.series(outbound());
    let refused = Finished { status: 503, success: false, ..ok(Duration::from_millis(1)) };
    series.request();
    series.gave_up(&refused);
    series.request();
    series.response(&ok(Duration::from_millis(2)));
    let page = telemetry.expose(None).body;
    let failed = [("status_code", "503"), ("classification", "failure")];
    assert_eq!(value(&page, "response_total", &failed), 1.0);
    assert_eq!(value(&page, "outbound_http_route_request_statuses_total", &[]), 1.0);
    assert_eq!(value(&page, "outbound_http_route_backend_requests_total", &[]), 2.0);
    let name = "outbound_http_route_backend_response_statuses_total";
    assert_eq!(value(&page, name, &[("http_status", "503")]), 1.0);
}

#[test]
fn connections_are_open_until_they_are_closed() {
    let page = busy().expose(None).body;
    let (src, dst) = (("peer", "src"), ("peer", "dst"));
    assert_eq!(value(&page, "tcp_open_total", &[src]), 1.0);
    assert_eq!(value(&page, "tcp_open_connections", &[src]), 0.0);
    assert_eq!(value(&page, "tcp_close_total", &[src, ("errno", "ECONNRESET")]), 1.0);
    assert_eq!(value(&page, "tcp_open_connections", &[dst]), 1.0);
    assert_eq!(value(&page, "tcp_read_bytes_total", &[dst]), 100.0);
    assert_eq!(value(&page, "tcp_write_bytes_total", &[dst]), 50.0);
    assert_eq!(value(&page, "tcp_connection_duration_ms_count", &[dst]), 0.0);
}

#[test]
fn what_breakers_keep_out_is_pending() {
    let page = busy().expose(None).body;
    let name = "outbound_http_balancer_endpoints";
    assert_eq!(value(&page, name, &[("endpoint_state", "ready")]), 1.0);
    assert_eq!(value(&page, name, &[("endpoint_state", "pending")]), 2.0);
}

#[test]
fn hostile_label_values_and_names_keep_the_page_well_formed() {
    let telemetry = Telemetry::new(&TelemetryConfig::default());
    let mut spec = outbound();
    spec.labels.authority = Some("a\"} 1\nrequest_total{x=\"\\".into());
    spec.labels.dst =
        labels(&[("app.kubernetes.io/name", "one"), ("app-kubernetes-io/name", "two")]);
    telemetry.stats.series(spec).request();
    let page = telemetry.expose(None).body;
    let line = page.lines().find(|line| line.starts_with("request_total{")).unwrap();
    assert!(line.contains(r#"authority="a\"} 1\nrequest_total{x=\"\\","#), "{line}");
    assert_eq!(line.matches("dst_app_kubernetes_io_name=").count(), 1, "{line}");
    assert_eq!(page.lines().filter(|line| line.starts_with("request_total")).count(), 1);
}

#[test]
fn an_unused_proxy_has_a_valid_page() {
    let telemetry = Telemetry::new(&TelemetryConfig::default());
    let page = telemetry.expose(OPEN_METRICS).body;
    check(&page, "_total");
    assert!(!page.contains("control_identity_cert_expiration_timestamp_seconds 0"));
}

#[test]
fn what_differs_only_without_a_label_is_one_line() {
    let telemetry = Telemetry::new(&TelemetryConfig::default());
    let section = |section: &str| {
        let Meta::Resource(route) = route() else { unreachable!() };
        Meta::Resource(ResourceRef { section: section.into(), ..route })
    };
    for name in ["a", "b"] {
        // The same endpoint by two rules of a route, and two rules of a server's.
        for mut spec in [outbound(), inbound("10.0.0.3")] {
            spec.labels.route = Some(section(name));
            let series = telemetry.stats.series(spec);
            series.request();
            series.response(&ok(Duration::from_millis(7)));
        }
        let authz = AuthzLabels { route: Some(section(name)), ..AuthzLabels::default() };
        telemetry.authz.http(&authz).allow.inc();
        telemetry.retries.route(&service(), &section(name)).requests.inc();
        for key in ["a.b", "a-b"] {
            let labels = TransportLabels {
                dst: labels(&[(key, "")]),
                ..TransportLabels::new(Direction::Outbound, Peer::Dst, None)
            };
            telemetry.transport.open(&labels).close(None);
        }
    }
    let page = telemetry.expose(None).body;
    check(&page, "");
    assert_eq!(value(&page, "request_total", &[("direction", "outbound")]), 2.0);
    assert_eq!(value(&page, "response_total", &[("direction", "inbound")]), 2.0);
    assert_eq!(value(&page, "response_latency_ms_count", &[("direction", "inbound")]), 2.0);
    let name = "outbound_http_route_request_statuses_total";
    assert_eq!(value(&page, name, &[("route_name", "tax")]), 2.0);
    assert_eq!(value(&page, "inbound_http_authz_allow_total", &[]), 2.0);
    assert_eq!(value(&page, "outbound_http_route_retry_requests_total", &[]), 2.0);
    assert_eq!(value(&page, "tcp_close_total", &[("dst_a_b", ""), ("errno", "")]), 4.0);
    assert_eq!(value(&page, "tcp_connection_duration_ms_count", &[]), 4.0);
}

#[test]
fn balancers_of_several_workers_are_one() {
    use EndpointState::{Ejected, Pending, Probing, Ready};
    let telemetry = Telemetry::new(&TelemetryConfig::default());
    telemetry.balancers.set_view(|| {
        let worker = |states: [EndpointState; 3]| BalancerView {
            parent: service(),
            backend: service(),
            endpoints: (1..).map(|port| ([10, 0, 0, 1], port).into()).zip(states).collect(),
        };
        vec![worker([Ejected, Pending, Probing]), worker([Ready, Pending, Ejected])]
    });
    let page = telemetry.expose(None).body;
    check(&page, "");
    let name = "outbound_http_balancer_endpoints";
    assert_eq!(value(&page, name, &[("endpoint_state", "ready")]), 1.0);
    assert_eq!(value(&page, name, &[("endpoint_state", "pending")]), 2.0);
    let breakers: Vec<_> = telemetry.balancers.breakers().into_iter().collect();
    let breaker = |addr, state| ((service(), self::addr(addr)), state);
    assert_eq!(breakers, [breaker("10.0.0.1:1", Ejected), breaker("10.0.0.1:3", Ejected)]);
}
