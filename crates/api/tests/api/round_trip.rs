//! What one end writes, the other reads as the same, and it is fit to be sent.

use std::time::Duration;

use mesh_api::{BackendExtension, RetryBudget, WholePolicy, Wire, ext, stats};
use mesh_model::outbound::Strategy as Balancing;
use mesh_model::stats::{Histogram, SeriesKey, StatProtocol, Totals};
use mesh_model::tap::{Record, StatusFilter, TapFilter};
use mesh_model::{Direction, OutboundPolicy, Reason};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use crate::strategies::{self, duration, name};

pub(crate) fn comes_back<T: Wire + PartialEq + std::fmt::Debug>(
    value: &T,
) -> Result<(), TestCaseError>
where
    T::Proto: prost::Message + Default,
{
    use prost::Message;
    let proto = value.encode().map_err(|error| TestCaseError::fail(error.to_string()))?;
    let bytes = proto.encode_to_vec();
    let proto = T::Proto::decode(&bytes[..]).map_err(|e| TestCaseError::fail(e.to_string()))?;
    let back = T::from_proto(proto).map_err(|error| TestCaseError::fail(error.to_string()))?;
    prop_assert_eq!(&back, value);
    Ok(())
}

proptest! {
    #[test]
    fn an_outbound_policy_comes_back(policy in strategies::outbound()) {
        comes_back(&policy)?;
    }

    #[test]
    fn a_whole_policy_comes_back(policy in strategies::whole_outbound()) {
        comes_back(&WholePolicy(policy))?;
    }

    #[test]
    fn readers_of_the_linkerd2_api_get_what_it_can_say(policy in strategies::whole_outbound()) {
        let proto = policy.encode().map_err(|error| TestCaseError::fail(error.to_string()))?;
        let read = OutboundPolicy::from_proto(proto);
        prop_assert!(read.is_ok(), "{read:?}");
    }

    #[test]
    fn a_server_policy_comes_back(policy in strategies::server()) {
        comes_back(&policy)?;
    }

    #[test]
    fn an_update_comes_back(update in strategies::destination()) {
        comes_back(&update)?;
    }

    #[test]
    fn a_profile_comes_back(profile in strategies::profile()) {
        comes_back(&profile)?;
    }

    #[test]
    fn an_extension_comes_back(extension in extension()) {
        comes_back(&extension)?;
    }

    #[test]
    fn a_series_comes_back(key in series_key(), totals in totals(), open in count()) {
        let series = stats::write_series(&key, &totals, open);
        prop_assert_eq!(stats::read_series(series).unwrap(), (key, totals, open));
    }

    #[test]
    fn a_record_comes_back(record in record()) {
        let back = Record::try_from(ext::TapEvent::from(&record)).unwrap();
        prop_assert_eq!(back, record);
    }

    #[test]
    fn a_filter_comes_back(filter in filter()) {
        let back = TapFilter::try_from(ext::TapFilter::from(&filter)).unwrap();
        prop_assert_eq!(back, filter);
    }
}

fn extension() -> impl Strategy<Value = BackendExtension> {
    let strategy = select(vec![
        Balancing::PeakEwma,
        Balancing::LeastRequest,
        Balancing::RoundRobin,
        Balancing::RingHash,
    ]);
    let header = name().prop_map(|name| http::HeaderName::try_from(name).unwrap());
    let time = || option::of((1u64..).prop_map(std::time::Duration::from_millis));
    let bound = || option::of(1u32..);
    let budget = option::of(
        (any::<u32>(), any::<u32>())
            .prop_map(|(percent, min_per_second)| RetryBudget { percent, min_per_second }),
    );
    (strategy, option::of(header), (time(), time()), (bound(), bound()), budget).prop_map(
        |(strategy, hash_header, (slow_start, breaker_latency), limits, retry_budget)| {
            BackendExtension {
                strategy,
                hash_header,
                slow_start,
                breaker_latency,
                max_connections: limits.0,
                max_in_flight: limits.1,
                retry_budget,
            }
        },
    )
}

fn direction() -> impl Strategy<Value = Direction> {
    select(vec![Direction::Inbound, Direction::Outbound])
}

fn series_key() -> impl Strategy<Value = SeriesKey> {
    let protocol = select(vec![StatProtocol::Http, StatProtocol::Grpc, StatProtocol::Tcp]);
    let peer = option::of(any::<std::net::IpAddr>());
    let identity = option::of(name().prop_filter("none is none", |name| !name.is_empty()));
    (direction(), protocol, peer, any::<u16>(), name(), name(), name(), identity).prop_map(
        |(direction, protocol, peer, port, parent, route, backend, identity)| SeriesKey {
            direction,
            protocol,
            peer,
            port,
            parent: parent.into(),
            route: route.into(),
            backend: backend.into(),
            identity: identity.map(Into::into),
        },
    )
}

fn histogram() -> impl Strategy<Value = Histogram> {
    vec(duration(), 0..20).prop_map(|durations| {
        let mut histogram = Histogram::default();
        durations.into_iter().for_each(|duration| histogram.record(duration));
        histogram
    })
}

fn count() -> impl Strategy<Value = u64> {
    0..=1u64 << 50
}

fn totals() -> impl Strategy<Value = Totals> {
    let reasons = vec((select(Reason::ALL), any::<u32>()), 0..5);
    let classes = [count(), count(), count(), count(), count()];
    (
        (count(), count(), classes, histogram(), histogram()),
        (count(), count(), count(), reasons, count(), count()),
    )
        .prop_map(
            |(
                (success, failure, classes, latency, first_byte),
                (retries, request_bytes, response_bytes, reasons, tcp_opened, tcp_closed),
            )| {
                let mut totals = Totals {
                    success,
                    failure,
                    classes,
                    latency,
                    first_byte,
                    retries,
                    request_bytes,
                    response_bytes,
                    reasons: Vec::new(),
                    tcp_opened,
                    tcp_closed,
                };
                for (reason, count) in reasons {
                    totals.add_reason(reason, u64::from(count));
                }
                totals
            },
        )
}

fn record() -> impl Strategy<Value = Record> {
    let headers = || vec((name(), ".{0,8}"), 0..3);
    let addr = || {
        (any::<std::net::IpAddr>(), any::<u16>())
            .prop_map(|(ip, port)| std::net::SocketAddr::new(ip, port))
    };
    (
        (any::<u64>(), any::<u64>(), direction(), addr(), option::of(addr())),
        (name(), name(), name(), name(), name(), name(), name()),
        (any::<u16>(), option::of(any::<u16>()), option::of(select(Reason::ALL)), any::<u32>()),
        (any::<u64>(), any::<u64>(), option::of(zero_or_more()), zero_or_more()),
        (option::of(name()), option::of(name()), headers(), headers()),
    )
        .prop_map(
            |(
                (id, started_unix_ms, direction, source, destination),
                (method, scheme, authority, path, parent, route, backend),
                (status, grpc_status, reason, attempts),
                (request_bytes, response_bytes, first_byte, duration),
                (policy, tls, request_headers, response_headers),
            )| Record {
                id,
                started_unix_ms,
                direction,
                source,
                destination,
                method,
                scheme,
                authority,
                path,
                parent,
                route,
                backend,
                status,
                grpc_status,
                reason,
                attempts,
                request_bytes,
                response_bytes,
                first_byte,
                duration,
                policy,
                tls,
                request_headers,
                response_headers,
            },
        )
}

fn zero_or_more() -> impl Strategy<Value = Duration> {
    prop_oneof![Just(Duration::ZERO), duration()]
}

fn filter() -> impl Strategy<Value = TapFilter> {
    let status = prop_oneof![
        (100u16..1000).prop_map(StatusFilter::Code),
        (1u16..=5).prop_map(StatusFilter::Class),
    ];
    (
        (option::of(direction()), option::of(name()), option::of(name()), option::of(name())),
        (option::of(status), option::of(select(Reason::ALL))),
        vec(any::<std::net::IpAddr>(), 0..3),
        vec((name(), name()), 0..3),
        any::<bool>(),
    )
        .prop_map(
            |(
                (direction, method, path, authority),
                (status, reason),
                peers,
                headers,
                with_headers,
            )| {
                TapFilter {
                    direction,
                    method,
                    path,
                    authority,
                    status,
                    reason,
                    peers,
                    headers,
                    with_headers,
                }
            },
        )
}
