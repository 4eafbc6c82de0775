//! BackendTrafficPolicies, read.

use std::str::FromStr;
use std::time::Duration;

use http::HeaderName;
use mesh_model::outbound::{RetryBudget, Strategy, SuccessRate};
use mesh_model::route::GrpcCodes;

use super::schema::{BALANCERS, MAX_COUNT};
use super::{BackendTrafficPolicyObject, Reader, shape};
use crate::index::identity::MeshNames;
use crate::index::object::{
    Balancer, Balancing, BreakerPolicy, Kind, PolicyTarget, Retries, TrafficLimits, TrafficPolicy,
    ZonePreference,
};
use crate::index::policy::DEFAULT_BREAKER;
use crate::source::kubernetes::{Converted, name_of};

pub fn backend_traffic_policy(object: &BackendTrafficPolicyObject) -> Converted<TrafficPolicy> {
    // It names nobody.
    let names = MeshNames::default();
    let mut read = Reader::new(name_of(&object.metadata), &names);
    read.version(&object.api_version);
    let spec = &object.spec;
    let target = read.target(Some(&spec.target_ref));
    match target {
        PolicyTarget::Service { .. } => {}
        PolicyTarget::Route { .. } => read.faults_alone(spec),
        _ => {
            let message = "a BackendTrafficPolicy is about a Service, an HTTPRoute or a GRPCRoute";
            read.error("spec.targetRef.kind", message);
        }
    }
    let balancing = spec.load_balancer.as_ref().map(|balancer| read.balancing(balancer));
    let breaker = spec.circuit_breaker.as_ref().map(|breaker| read.breaker(breaker));
    let limits = spec.limits.as_ref().map(|limits| read.limits(limits));
    let retry_budget = spec.retry_budget.as_ref().map(|budget| read.budget(budget));
    let retry = spec.retry.as_ref().map(|retry| read.retries(retry));
    let zones = spec.zone_preference.as_deref().and_then(|text| read.zones(text));
    let faults = read.faults(&spec.faults, Kind::BackendTrafficPolicy);
    let says_nothing = balancing.is_none()
        && breaker.is_none()
        && limits.is_none()
        && retry_budget.is_none()
        && retry.is_none()
        && spec.zone_preference.is_none()
        && spec.faults.is_empty();
    if says_nothing {
        read.error("spec", "says nothing about its target");
    }
    let policy = TrafficPolicy {
        name: read.name,
        created: object.metadata.creation_timestamp.as_ref().map(|time| time.0.as_second()),
        target,
        balancing,
        breaker,
        limits: limits.unwrap_or_default(),
        retry_budget,
        retry,
        zones,
        faults,
    };
    (policy, read.findings)
}

impl Reader<'_> {
    /// A route has no endpoints, and shares its Service's budget: several of its rules and other routes
    /// send to the same.
    fn faults_alone(&mut self, spec: &shape::BackendTrafficPolicySpec) {
        for (field, given) in [
            ("loadBalancer", spec.load_balancer.is_some()),
            ("circuitBreaker", spec.circuit_breaker.is_some()),
            ("limits", spec.limits.is_some()),
            ("retryBudget", spec.retry_budget.is_some()),
            ("retry", spec.retry.is_some()),
            ("zonePreference", spec.zone_preference.is_some()),
        ] {
            if given {
                let message = format!(
                    "is of a Service, not of a {}: write a policy about the Service",
                    spec.target_ref.kind
                );
                self.error(format!("spec.{field}"), message);
            }
        }
    }

    fn balancing(&mut self, of: &shape::LoadBalancer) -> Balancing {
        const AT: &str = "spec.loadBalancer";
        let strategy = BALANCERS.into_iter().find(|(name, _)| *name == of.r#type);
        let strategy = strategy.map(|(_, strategy)| strategy).unwrap_or_else(|| {
            let names = BALANCERS.map(|(name, _)| name).join(", ");
            self.error(format!("{AT}.type"), format!("`{}` is not one of {names}", of.r#type));
            Strategy::default()
        });
        let by_hash = strategy == Strategy::RingHash;
        if of.hash_header.is_some() && !by_hash {
            self.error(format!("{AT}.hashHeader"), "is for RingHash");
        }
        if of.slow_start.is_some() && by_hash {
            self.error(format!("{AT}.slowStart"), "by a hash there is no slow start");
        }
        let hash_header = of.hash_header.as_ref().and_then(|name| {
            let name = HeaderName::from_bytes(name.as_bytes()).ok();
            if name.is_none() {
                self.error(format!("{AT}.hashHeader"), "is not the name of a header");
            }
            name
        });
        Balancing {
            balancer: Balancer { strategy, hash_header },
            slow_start: self.time(&of.slow_start, &format!("{AT}.slowStart")),
        }
    }

    fn breaker(&mut self, of: &shape::CircuitBreaker) -> BreakerPolicy {
        const AT: &str = "spec.circuitBreaker";
        if of.disabled {
            if *of != (shape::CircuitBreaker { disabled: true, ..Default::default() }) {
                self.error(AT, "a breaker that is disabled has no settings");
            }
            return BreakerPolicy::Disabled;
        }
        let mut breaker = DEFAULT_BREAKER;
        if let Some(failures) = of.consecutive_failures {
            self.count(failures, &format!("{AT}.consecutiveFailures"));
        }
        breaker.success_rate = of.success_rate.as_ref().map(|rate| {
            let at = format!("{AT}.successRate");
            let threshold = rate.threshold.unwrap_or(80);
            if !(1..=100).contains(&threshold) {
                self.error(format!("{at}.threshold"), "is a percentage, from 1 to 100");
            }
            let min_requests = rate.min_requests.unwrap_or(5);
            self.count(min_requests, &format!("{at}.minRequests"));
            SuccessRate {
                threshold: f64::from(threshold) / 100.0,
                decay: self
                    .time(&rate.window, &format!("{at}.window"))
                    .unwrap_or(Duration::from_secs(10)),
                min_requests,
            }
        });
        breaker.consecutive = match breaker.success_rate {
            Some(_) => of.consecutive_failures,
            None => of.consecutive_failures.or(breaker.consecutive),
        };
        if let Some(backoff) = &of.backoff {
            let min = self.time(&backoff.min, &format!("{AT}.backoff.min"));
            let max = self.time(&backoff.max, &format!("{AT}.backoff.max"));
            breaker.backoff.min = min.unwrap_or(breaker.backoff.min);
            breaker.backoff.max = max.unwrap_or(breaker.backoff.max);
            if breaker.backoff.min > breaker.backoff.max {
                self.error(format!("{AT}.backoff.max"), "is shorter than min");
            }
        }
        if let Some(min_ready) = of.min_ready_endpoints {
            breaker.min_ready = min_ready;
            self.at_most(min_ready, MAX_COUNT, &format!("{AT}.minReadyEndpoints"));
        }
        let latency = self.time(&of.latency, &format!("{AT}.latency"));
        BreakerPolicy::Enabled { breaker, latency }
    }

    fn limits(&mut self, of: &shape::Limits) -> TrafficLimits {
        const AT: &str = "spec.limits";
        if *of == shape::Limits::default() {
            self.error(AT, "sets no limit");
        }
        let mut some = |limit: Option<u32>, field: &str| {
            limit.inspect(|limit| self.count(*limit, &format!("{AT}.{field}")))
        };
        TrafficLimits {
            connections: some(of.connections_per_endpoint, "connectionsPerEndpoint"),
            pending: some(of.pending_requests, "pendingRequests"),
            in_flight: some(of.requests_in_flight, "requestsInFlight"),
        }
    }

    fn budget(&mut self, of: &shape::RetryBudget) -> RetryBudget {
        const AT: &str = "spec.retryBudget";
        let budget = RetryBudget {
            percent: of.percent.unwrap_or(20),
            min_per_second: of.min_per_second.unwrap_or(10),
        };
        self.at_most(budget.percent, 100, &format!("{AT}.percent"));
        self.at_most(budget.min_per_second, MAX_COUNT, &format!("{AT}.minPerSecond"));
        budget
    }

    fn retries(&mut self, of: &shape::Retry) -> Retries {
        const AT: &str = "spec.retry";
        let attempts = of.attempts.unwrap_or(1);
        self.at_most(attempts, Retries::MAX, &format!("{AT}.attempts"));
        for (index, code) in of.codes.iter().enumerate() {
            if !(400..=599).contains(code) {
                let message = format!("{code} is not a status from 400 to 599");
                self.error(format!("{AT}.codes[{index}]"), message);
            }
        }
        let mut grpc = GrpcCodes::default();
        for (index, code) in of.grpc_codes.iter().enumerate() {
            match code {
                1..=16 => grpc = grpc.with(*code),
                _ => {
                    let message = format!("{code} is not a code from 1 to 16");
                    self.error(format!("{AT}.grpcCodes[{index}]"), message);
                }
            }
        }
        Retries {
            attempts,
            statuses: Retries::statuses(of.codes.iter().copied()),
            grpc,
            backoff: self.time(&of.backoff, &format!("{AT}.backoff")),
        }
    }

    fn zones(&mut self, text: &str) -> Option<ZonePreference> {
        let named = ZonePreference::ALL.into_iter().find(|preference| preference.as_str() == text);
        if named.is_none() {
            let names = ZonePreference::ALL.map(ZonePreference::as_str).join(", ");
            self.error("spec.zonePreference", format!("`{text}` is not one of {names}"));
        }
        named
    }

    fn at_most(&mut self, number: u32, most: u32, at: &str) {
        if number > most {
            self.error(at, format!("{number} is more than {most}"));
        }
    }

    pub(super) fn time(&mut self, text: &Option<String>, at: &str) -> Option<Duration> {
        let text = text.as_ref()?;
        let parsed = gateway_api::Duration::from_str(text).ok();
        let millis = parsed.and_then(|parsed| u64::try_from(parsed.as_millis()).ok());
        let time = millis.filter(|millis| *millis > 0).map(Duration::from_millis);
        if time.is_none() {
            self.error(at, format!("`{text}` is not a duration such as `500ms` or `1m30s`"));
        }
        time
    }
}
