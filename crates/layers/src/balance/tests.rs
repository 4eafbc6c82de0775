//! The balancer as a set: who is picked, who waits, who is ejected. What a request tells it is
//! tested in `service.rs`.
#![allow(clippy::unwrap_used)]

use futures_util::FutureExt;
use tokio::time::advance;

use super::*;
use crate::{Affinity, Backoff};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

type Set = Balancer<&'static str>;

fn addr(n: u8) -> SocketAddr {
    ([10, 0, 0, n], 80).into()
}

fn balancer(config: BalanceConfig, endpoints: u8) -> Set {
    let balancer = Balancer::seeded(config, 7);
    balancer.update(|set| (1..=endpoints).for_each(|n| set.insert(addr(n), 10_000, "")));
    balancer
}

fn breaking(consecutive: u32) -> BreakerConfig {
    let backoff = Backoff { min: SECOND, max: 60 * SECOND, jitter: 0.0 };
    BreakerConfig { consecutive: Some(consecutive), backoff, ..BreakerConfig::default() }
}

fn with_breaker(breaker: BreakerConfig) -> BalanceConfig {
    BalanceConfig { breaker: Some(breaker), ..BalanceConfig::default() }
}

fn with_strategy(strategy: Strategy) -> BalanceConfig {
    BalanceConfig { strategy, ..BalanceConfig::default() }
}

fn acquire_now(balancer: &Set) -> Lease<&'static str> {
    balancer.acquire(None, &[]).now_or_never().expect("available").unwrap()
}

fn is_waiting(balancer: &Set) -> bool {
    balancer.acquire(None, &[]).now_or_never().is_none()
}

fn refused(balancer: &Set) -> Unavailable {
    balancer.acquire(None, &[]).now_or_never().expect("at once").unwrap_err()
}

/// Fails one request at this endpoint.
fn fail(balancer: &Set, n: u8) {
    let others: Vec<_> = (1..=9).filter(|other| *other != n).map(addr).collect();
    let mut lease = balancer.acquire(None, &others).now_or_never().unwrap().unwrap();
    assert_eq!(lease.addr(), addr(n));
    lease.failure(None);
}

fn health(balancer: &Set, n: u8) -> Health {
    balancer.status().into_iter().find(|status| status.addr == addr(n)).unwrap().state
}

fn is_ejected(balancer: &Set, n: u8) -> bool {
    matches!(health(balancer, n), Health::Ejected { .. })
}

#[test]
fn handles_go_everywhere() {
    fn everywhere<T: Clone + Send + Sync + 'static>() {}
    everywhere::<Balancer<crate::HttpService>>();
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_for_an_endpoint() {
    let balancer = balancer(BalanceConfig::default(), 0);
    let (lease, ()) = tokio::join!(balancer.acquire(None, &[]), async {
        assert_eq!(balancer.waiting(), 1);
        advance(SECOND).await;
        balancer.insert(addr(1), 1, "one");
    });
    assert_eq!(*lease.unwrap().service(), "one");
    assert_eq!(balancer.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn without_an_endpoint_for_long_requests_fail_at_once() {
    let balancer = balancer(BalanceConfig::default(), 0);
    let start = Instant::now();
    advance(SECOND).await;
    let reason = Reason::Unresolved;
    let failed = Unavailable::FailFast { after: 3 * SECOND, reason };
    assert_eq!(balancer.acquire(None, &[]).await.unwrap_err(), failed);
    assert_eq!(start.elapsed(), 3 * SECOND, "since it became so, not since the request");
    assert_eq!(refused(&balancer), failed);

    balancer.insert(addr(1), 1, "");
    drop(acquire_now(&balancer));
    balancer.remove(&addr(1));
    assert!(is_waiting(&balancer), "the time begins anew");
}

#[tokio::test(start_paused = true)]
async fn few_enough_wait() {
    let config = BalanceConfig { capacity: 1, ..BalanceConfig::default() };
    let balancer = balancer(config, 0);
    let mut first = Box::pin(balancer.acquire(None, &[]));
    assert!(first.as_mut().now_or_never().is_none());
    let full = Unavailable::QueueFull { capacity: 1, reason: Reason::Unresolved };
    assert_eq!(refused(&balancer), full);
    drop(first);
    assert!(is_waiting(&balancer), "who goes away frees the place");
}

#[tokio::test(start_paused = true)]
async fn says_why_there_is_nothing() {
    let balancer = balancer(with_breaker(breaking(1)), 1);
    fail(&balancer, 1);
    assert!(is_waiting(&balancer), "ejected just now");
    let config = BalanceConfig { failfast_timeout: Duration::ZERO, ..with_breaker(breaking(1)) };
    let impatient = self::balancer(config, 1);
    fail(&impatient, 1);
    assert_eq!(refused(&impatient).reason(), Reason::AllEjected);
    impatient.remove(&addr(1));
    assert_eq!(refused(&impatient).reason(), Reason::NoEndpoints { exists: true });
    impatient.set_missing(Missing::NotFound);
    assert_eq!(refused(&impatient).reason(), Reason::NoEndpoints { exists: false });
    impatient.set_missing(Missing::Unresolved);
    assert_eq!(refused(&impatient).reason(), Reason::Unresolved);
}

#[tokio::test(start_paused = true)]
async fn requests_flow_around_a_slow_endpoint() {
    let balancer = balancer(BalanceConfig::default(), 3);
    let mut at_slow = 0;
    for _ in 0..300 {
        let mut lease = acquire_now(&balancer);
        let slow = lease.addr() == addr(2);
        at_slow += u32::from(slow);
        lease.success(if slow { 500 * MS } else { 5 * MS });
        drop(lease);
        advance(10 * MS).await;
    }
    assert!(at_slow <= 2, "{at_slow}");
}

#[tokio::test(start_paused = true)]
async fn requests_flow_around_a_busy_endpoint() {
    let decay = 10 * SECOND;
    for strategy in [Strategy::PeakEwma { default_rtt: 30 * MS, decay }, Strategy::LeastRequest] {
        let balancer = balancer(with_strategy(strategy), 2);
        let busy = balancer.acquire(None, &[addr(1)]).await.unwrap();
        for _ in 0..20 {
            let lease = acquire_now(&balancer);
            assert_ne!(lease.addr(), busy.addr());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_strategy_avoids_what_was_tried_and_prefers_it_to_nothing() {
    let (default_rtt, decay) = (30 * MS, 10 * SECOND);
    for strategy in [
        Strategy::PeakEwma { default_rtt, decay },
        Strategy::LeastRequest,
        Strategy::RoundRobin,
        Strategy::RingHash,
    ] {
        let balancer = balancer(with_strategy(strategy), 3);
        for _ in 0..20 {
            let lease =
                balancer.acquire(Some(Affinity::Hash(1)), &[addr(1), addr(3)]).await.unwrap();
            assert_eq!(lease.addr(), addr(2), "{strategy:?}");
        }
        let all = [addr(1), addr(2), addr(3)];
        balancer.acquire(Some(Affinity::Hash(1)), &all).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn weight_zero_gets_nothing_unless_there_is_nothing_else() {
    for strategy in [Strategy::default(), Strategy::RoundRobin, Strategy::RingHash] {
        let balancer = balancer(with_strategy(strategy), 2);
        balancer.update(|set| assert!(set.reweigh(&addr(1), 0)));
        for _ in 0..20 {
            assert_eq!(acquire_now(&balancer).addr(), addr(2));
        }
        balancer.update(|set| assert!(set.reweigh(&addr(2), 0)));
        acquire_now(&balancer);
    }
}

#[tokio::test(start_paused = true)]
async fn turns_follow_weights() {
    let balancer = balancer(with_strategy(Strategy::RoundRobin), 0);
    balancer.insert(addr(1), 3, "");
    balancer.insert(addr(2), 1, "");
    let picks = (0..400).filter(|_| acquire_now(&balancer).addr() == addr(1)).count();
    assert!((299..=301).contains(&picks), "{picks}");
}

#[tokio::test(start_paused = true)]
async fn equal_keys_meet_at_one_endpoint_and_only_its_keys_move_when_it_is_ejected() {
    let config = BalanceConfig { strategy: Strategy::RingHash, ..with_breaker(breaking(1)) };
    let balancer = balancer(config, 5);
    let owner = |key: u64| {
        balancer.acquire(Some(Affinity::Hash(key)), &[]).now_or_never().unwrap().unwrap().addr()
    };
    let before: Vec<_> = (0..200).map(owner).collect();
    assert_eq!(before, (0..200).map(owner).collect::<Vec<_>>());
    fail(&balancer, 3);
    assert!(is_ejected(&balancer, 3));
    for (before, after) in before.iter().zip((0..200).map(owner)) {
        assert_ne!(after, addr(3));
        assert!(*before == after || *before == addr(3));
    }
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_fails_is_ejected_probed_and_readmitted() {
    let events = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&events);
    let hook: BreakerHook = Arc::new(move |addr, event| log.lock().push((addr, event)));
    let config = BalanceConfig { breaker_hook: Some(hook), ..with_breaker(breaking(3)) };
    let balancer = balancer(config, 2);
    let start = Instant::now();
    (0..3).for_each(|_| fail(&balancer, 1));
    assert_eq!(health(&balancer, 1), Health::Ejected { since: start, until: start + SECOND });
    for _ in 0..20 {
        assert_eq!(acquire_now(&balancer).addr(), addr(2));
    }

    advance(SECOND).await;
    assert_eq!(health(&balancer, 1), Health::Probing);
    let mut probe = acquire_now(&balancer);
    assert_eq!(probe.addr(), addr(1), "the next request probes");
    for _ in 0..20 {
        assert_eq!(acquire_now(&balancer).addr(), addr(2), "and only that one");
    }
    probe.failure(None);
    drop(probe);
    assert!(is_ejected(&balancer, 1));

    advance(SECOND).await;
    assert!(is_ejected(&balancer, 1), "for longer now");
    advance(SECOND).await;
    let mut probe = acquire_now(&balancer);
    probe.success(5 * MS);
    assert_eq!(health(&balancer, 1), Health::Ready);

    let opened = |seconds: u32, cause| Transition::Opened { term: SECOND * seconds, cause };
    let expected = [
        opened(1, Cause::Consecutive),
        Transition::HalfOpened,
        opened(2, Cause::ProbeFailed),
        Transition::HalfOpened,
        Transition::Closed,
    ];
    assert_eq!(*events.lock(), expected.map(|event| (addr(1), event)));
}

#[tokio::test(start_paused = true)]
async fn a_retry_does_not_probe_while_there_is_somebody_better() {
    let balancer = balancer(with_breaker(breaking(1)), 3);
    fail(&balancer, 1);
    advance(SECOND).await;
    assert_eq!(balancer.acquire(None, &[addr(2)]).await.unwrap().addr(), addr(3));
    assert_eq!(acquire_now(&balancer).addr(), addr(1));
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_cancelled_is_given_to_the_next() {
    let balancer = balancer(with_breaker(breaking(1)), 2);
    fail(&balancer, 1);
    advance(SECOND).await;
    let probe = acquire_now(&balancer);
    assert_eq!(probe.addr(), addr(1));
    drop(probe);
    assert_eq!(acquire_now(&balancer).addr(), addr(1));
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_get_the_probe_or_its_success() {
    let balancer = balancer(with_breaker(breaking(1)), 1);
    fail(&balancer, 1);
    let start = Instant::now();
    let request = async || {
        let mut lease = balancer.acquire(None, &[]).await.unwrap();
        let waited = start.elapsed();
        tokio::time::sleep(500 * MS).await;
        lease.success(500 * MS);
        waited
    };
    let (one, other) = tokio::join!(request(), request());
    assert_eq!(one.min(other), SECOND, "when the term is over");
    assert_eq!(one.max(other), 1500 * MS, "when the probe came back");
}

#[tokio::test(start_paused = true)]
async fn no_more_are_ejected_than_the_floor_allows() {
    let breaker = BreakerConfig { min_ready_endpoints: 2, ..breaking(1) };
    let balancer = balancer(with_breaker(breaker), 3);
    (1..=3).for_each(|n| fail(&balancer, n));
    assert!(is_ejected(&balancer, 1));
    assert_eq!([health(&balancer, 2), health(&balancer, 3)], [Health::Ready; 2]);

    balancer.remove(&addr(3));
    assert_eq!(health(&balancer, 1), Health::Ready, "back early, for the sake of the floor");
}

#[tokio::test(start_paused = true)]
async fn without_a_floor_all_may_be_ejected() {
    let balancer = balancer(with_breaker(breaking(1)), 2);
    (1..=2).for_each(|n| fail(&balancer, n));
    assert!(is_waiting(&balancer));
}

#[tokio::test(start_paused = true)]
async fn replacing_keeps_what_is_known_of_the_unchanged() {
    let balancer = balancer(with_breaker(breaking(1)), 3);
    fail(&balancer, 1);
    fail(&balancer, 2);
    let set = [(addr(1), 5, "new"), (addr(2), 5, "new"), (addr(4), 5, "new")];
    balancer.replace(set, |unchanged| *unchanged == addr(1) || *unchanged == addr(4));
    assert!(is_ejected(&balancer, 1), "unchanged");
    assert_eq!(health(&balancer, 2), Health::Ready, "another service, another chance");
    let mut addrs: Vec<_> = balancer.status().iter().map(|s| (s.addr, s.weight)).collect();
    addrs.sort_unstable();
    assert_eq!(addrs, [(addr(1), 5), (addr(2), 5), (addr(4), 5)]);
    assert_eq!(*acquire_now(&balancer).service(), "new", "one that was not there is new anyhow");
}

#[tokio::test(start_paused = true)]
async fn a_late_failure_does_not_eject_a_successor() {
    let balancer = balancer(with_breaker(breaking(1)), 1);
    let mut old = acquire_now(&balancer);
    balancer.insert(addr(1), 1, "successor");
    old.failure(None);
    drop(old);
    assert_eq!(health(&balancer, 1), Health::Ready);
    assert_eq!(balancer.status()[0].in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn retry_after_sets_the_term() {
    let balancer =
        balancer(with_breaker(BreakerConfig { respect_retry_after: true, ..breaking(1) }), 1);
    let now = Instant::now();
    acquire_now(&balancer).failure(Some(20 * SECOND));
    assert_eq!(health(&balancer, 1), Health::Ejected { since: now, until: now + 20 * SECOND });
}

#[tokio::test(start_paused = true)]
async fn the_first_outcome_counts_and_a_lease_is_pending_until_dropped() {
    let balancer = balancer(with_breaker(breaking(1)), 1);
    let mut lease = acquire_now(&balancer);
    lease.success(5 * MS);
    lease.failure(None);
    assert_eq!(health(&balancer, 1), Health::Ready);
    assert_eq!(balancer.status()[0].in_flight, 1);
    drop(lease);
    assert_eq!(balancer.status()[0].in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn a_service_may_use_the_balancer_while_it_is_dropped() {
    struct Nosy(Balancer<Nosy>);
    impl Drop for Nosy {
        fn drop(&mut self) {
            self.0.status();
        }
    }
    let balancer: Balancer<Nosy> = Balancer::new(BalanceConfig::default());
    balancer.insert(addr(1), 1, Nosy(balancer.clone()));
    balancer.insert(addr(1), 1, Nosy(balancer.clone()));
    balancer.remove(&addr(1));
    balancer.insert(addr(2), 1, Nosy(balancer.clone()));
    balancer.set_missing(Missing::NotFound);
    assert!(balancer.status().is_empty());
}

mod set {
    use proptest::prelude::*;

    use super::{Strategy, *};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        /// Whatever happens to the set, it is the set it should be, nothing stays pending, and a
        /// request is refused only if nothing could take it.
        #[test]
        fn survives_any_history(
            steps in prop::collection::vec((0u8..6, 1u8..6, 0u32..3), 1..80),
            strategy in 0usize..4,
        ) {
            let (default_rtt, decay) = (30 * MS, 10 * SECOND);
            let strategy = [
                Strategy::PeakEwma { default_rtt, decay },
                Strategy::LeastRequest,
                Strategy::RoundRobin,
                Strategy::RingHash,
            ][strategy];
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap();
            runtime.block_on(async {
                let config = BalanceConfig { strategy, ..with_breaker(breaking(2)) };
                let balancer = balancer(config, 0);
                let mut model = std::collections::BTreeMap::new();
                let mut leases = Vec::new();
                for (step, n, weight) in steps {
                    match step {
                        0 => {
                            balancer.insert(addr(n), weight, "");
                            model.insert(addr(n), weight);
                        }
                        1 => {
                            let was_there = model.remove(&addr(n)).is_some();
                            prop_assert_eq!(balancer.remove(&addr(n)), was_there);
                        }
                        2 => advance(SECOND * u32::from(n)).await,
                        3 => {
                            if let Some(mut lease) = leases.pop() {
                                Lease::failure(&mut lease, None);
                            }
                        }
                        4 => drop(leases.pop()),
                        _ => match balancer.acquire(Some(Affinity::Hash(u64::from(n))), &[]).now_or_never() {
                            Some(Ok(lease)) => {
                                prop_assert!(model.contains_key(&lease.addr()));
                                leases.push(lease);
                            }
                            _ => {
                                let ready = |s: &EndpointStatus| s.state == Health::Ready;
                                let weighty = model.values().any(|weight| *weight > 0);
                                let usable = |s: &EndpointStatus| s.weight > 0 || !weighty;
                                let status = balancer.status();
                                prop_assert!(!status.iter().any(|s| ready(s) && usable(s)));
                            }
                        },
                    }
                }
                leases.clear();
                let status = balancer.status();
                prop_assert!(status.iter().all(|status| status.in_flight == 0));
                let set: std::collections::BTreeMap<_, _> =
                    status.iter().map(|status| (status.addr, status.weight)).collect();
                prop_assert_eq!(set, model);
                Ok(())
            })?;
        }
    }
}

#[tokio::test]
async fn the_endpoint_that_is_meant_is_taken_while_it_serves() {
    let balancer = balancer(with_strategy(Strategy::LeastRequest), 3);
    let meant = Some(Affinity::Endpoint(addr(2)));
    for _ in 0..20 {
        assert_eq!(balancer.acquire(meant, &[]).await.unwrap().addr(), addr(2));
    }
    assert_ne!(balancer.acquire(meant, &[addr(2)]).await.unwrap().addr(), addr(2), "a retry");
    assert_eq!(balancer.find(|have| have == addr(2)), Some(addr(2)));
    balancer.remove(&addr(2));
    assert_ne!(balancer.acquire(meant, &[]).await.unwrap().addr(), addr(2));
    assert_eq!(balancer.find(|have| have == addr(2)), None);
}

#[tokio::test(start_paused = true)]
async fn a_new_endpoint_gets_its_share_little_by_little() {
    for strategy in [Strategy::RoundRobin, Strategy::LeastRequest] {
        let config = BalanceConfig { slow_start: Some(10 * SECOND), ..with_strategy(strategy) };
        let balancer = balancer(config, 1);
        advance(20 * SECOND).await;
        balancer.insert(addr(2), 10_000, "");
        let share = || {
            let picks = 2_000;
            let new = (0..picks).filter(|_| acquire_now(&balancer).addr() == addr(2)).count();
            new as f64 / f64::from(picks)
        };
        // Of its weight over the sum of both.
        for (after, part) in [(0, 0.1), (5, 0.5), (5, 1.0), (5, 1.0)] {
            advance(SECOND * after).await;
            let (share, due) = (share(), part / (1.0 + part));
            assert!((share - due).abs() < 0.04, "{strategy:?}: {share}, due {due}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn endpoints_that_are_all_new_share_alike() {
    let config =
        BalanceConfig { slow_start: Some(10 * SECOND), ..with_strategy(Strategy::RoundRobin) };
    let balancer = balancer(config, 2);
    let first = (0..1_000).filter(|_| acquire_now(&balancer).addr() == addr(1)).count();
    assert!((499..=501).contains(&first), "{first}");
}
