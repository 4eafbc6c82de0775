//! Backends: balancers, single addresses, queues; and the breakers and backoffs around them.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use linkerd2_proxy_api::outbound as pb;
use mesh_model::Endpoint;
use mesh_model::outbound::{Backend, BackendKind, Balance, Breaker, Penalty, Queue, SuccessRate};
use mesh_model::route::Backoff;
use pb::backend::balance_p2c::{Load, PeakEwma, PenaltyPeakEwma};
use pb::backend::endpoint_discovery::{self, DestinationGet};
use pb::backend::{BalanceP2c, EndpointDiscovery};
use pb::failure_accrual::{ConsecutiveFailures, Kind as AccrualKind, Unified};

use super::endpoint::{read_endpoint, write_endpoint};
use super::meta::{read_meta, write_meta};
use super::net::{read_duration, read_positive, write_duration};
use super::required;
use crate::error::{At, ConversionError, Result};

const DEFAULT_RTT: Duration = Duration::from_millis(30);
const DEFAULT_DECAY: Duration = Duration::from_secs(10);
const DEFAULT_PENALTY: Duration = Duration::from_secs(5);
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

pub(super) fn read_backend(proto: pb::Backend) -> Result<Backend> {
    let kind = match required(proto.kind, "kind")? {
        pb::backend::Kind::Forward(endpoint) => {
            let endpoint = read_endpoint(endpoint).at("forward")?;
            if endpoint.addr.port() == 0 {
                return Err(ConversionError::invalid("forward.addr", "the port is 0"));
            }
            BackendKind::Forward(endpoint)
        }
        pb::backend::Kind::Balancer(balancer) => {
            BackendKind::Balance(read_balance(balancer).at("balancer")?)
        }
    };
    Ok(Backend {
        meta: read_meta(proto.metadata, "metadata")?,
        queue: read_queue(proto.queue)?,
        kind,
    })
}

/// A backend that answers every request with a failure. Other control planes give it no address,
/// and as no request ever gets that far, any stands in for it.
pub(super) fn read_addressless(proto: pb::Backend) -> Result<Backend> {
    let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    Ok(Backend {
        meta: read_meta(proto.metadata, "metadata")?,
        queue: read_queue(proto.queue)?,
        kind: BackendKind::Forward(Endpoint::plain(nowhere)),
    })
}

fn read_queue(proto: Option<pb::Queue>) -> Result<Queue> {
    let proto = required(proto, "queue")?;
    let failfast_timeout = read_duration(proto.failfast_timeout, "queue.failfast_timeout")?;
    Ok(Queue { capacity: proto.capacity, failfast_timeout })
}

pub(super) fn write_backend(backend: &Backend) -> Result<pb::Backend> {
    let failfast = write_duration(backend.queue.failfast_timeout, "queue.failfast_timeout")?;
    let kind = match &backend.kind {
        BackendKind::Forward(endpoint) => {
            pb::backend::Kind::Forward(write_endpoint(endpoint).at("forward")?)
        }
        BackendKind::Balance(balance) => {
            pb::backend::Kind::Balancer(write_balance(balance).at("balancer")?)
        }
    };
    Ok(pb::Backend {
        metadata: Some(write_meta(&backend.meta)),
        queue: Some(pb::Queue {
            capacity: backend.queue.capacity,
            failfast_timeout: Some(failfast),
        }),
        kind: Some(kind),
    })
}

fn read_balance(proto: BalanceP2c) -> Result<Balance> {
    let discovery = required(required(proto.discovery, "discovery")?.kind, "discovery.kind")?;
    let endpoint_discovery::Kind::Dst(DestinationGet { path }) = discovery;
    if path.is_empty() {
        return Err(ConversionError::missing("discovery.dst.path"));
    }
    match required(proto.load, "load")? {
        Load::PeakEwma(load) => Ok(Balance {
            path,
            default_rtt: read_positive(load.default_rtt, "peak_ewma.default_rtt")?,
            decay: read_positive(load.decay, "peak_ewma.decay")?,
            penalty: None,
        }),
        Load::PenaltyPeakEwma(load) => read_penalised(path, load).at("penalty_peak_ewma"),
    }
}

/// Its durations are optional, with the defaults that the reference proxy has.
fn read_penalised(path: String, load: PenaltyPeakEwma) -> Result<Balance> {
    let or = |duration: Option<prost_types::Duration>, default: Duration, field: &str| {
        duration.map_or(Ok(default), |duration| read_duration(Some(duration), field))
    };
    let positive = |duration: Option<prost_types::Duration>, default: Duration, field: &str| {
        duration.map_or(Ok(default), |duration| read_positive(Some(duration), field))
    };
    Ok(Balance {
        path,
        default_rtt: positive(load.default_rtt, DEFAULT_RTT, "default_rtt")?,
        decay: positive(load.decay, DEFAULT_DECAY, "decay")?,
        penalty: Some(Penalty {
            penalty: or(load.penalty, DEFAULT_PENALTY, "penalty")?,
            max_retry_after: or(load.max_retry_after, MAX_RETRY_AFTER, "max_retry_after")?,
            decay: positive(load.penalty_decay, DEFAULT_DECAY, "penalty_decay")?,
        }),
    })
}

fn write_balance(balance: &Balance) -> Result<BalanceP2c> {
    let default_rtt = Some(write_duration(balance.default_rtt, "default_rtt")?);
    let decay = Some(write_duration(balance.decay, "decay")?);
    let load = match balance.penalty {
        None => Load::PeakEwma(PeakEwma { default_rtt, decay }),
        Some(penalty) => Load::PenaltyPeakEwma(PenaltyPeakEwma {
            default_rtt,
            decay,
            penalty: Some(write_duration(penalty.penalty, "penalty")?),
            max_retry_after: Some(write_duration(penalty.max_retry_after, "max_retry_after")?),
            penalty_decay: Some(write_duration(penalty.decay, "penalty_decay")?),
        }),
    };
    let dst = endpoint_discovery::Kind::Dst(DestinationGet { path: balance.path.clone() });
    Ok(BalanceP2c { discovery: Some(EndpointDiscovery { kind: Some(dst) }), load: Some(load) })
}

/// `None` when both of its conditions are disabled.
pub(super) fn read_breaker(proto: pb::FailureAccrual) -> Result<Option<Breaker>> {
    let min_ready = proto.ejection.unwrap_or_default().min_ready_endpoints;
    let set = |failures: u32| Some(failures).filter(|failures| *failures > 0);
    let (consecutive, success_rate, backoff) = match required(proto.kind, "kind")? {
        AccrualKind::ConsecutiveFailures(c) => (set(c.max_failures), None, c.backoff),
        AccrualKind::Unified(unified) => {
            let success_rate = read_success_rate(&unified).at("unified")?;
            (set(unified.max_consecutive_failures), success_rate, unified.backoff)
        }
    };
    let backoff = read_backoff(required(backoff, "backoff")?).at("backoff")?;
    let enabled = consecutive.is_some() || success_rate.is_some();
    Ok(enabled.then_some(Breaker { consecutive, success_rate, backoff, min_ready }))
}

fn read_success_rate(proto: &Unified) -> Result<Option<SuccessRate>> {
    let threshold = proto.success_rate_threshold;
    if !(0.0..=1.0).contains(&threshold) {
        let why = format!("{threshold} is not between 0 and 1");
        return Err(ConversionError::invalid("success_rate_threshold", why));
    }
    if threshold == 0.0 {
        return Ok(None);
    }
    let decay = match proto.decay {
        None => DEFAULT_DECAY,
        decay => read_positive(decay, "decay")?,
    };
    Ok(Some(SuccessRate { threshold, decay, min_requests: proto.min_requests }))
}

pub(super) fn write_breaker(breaker: &Breaker) -> Result<pb::FailureAccrual> {
    let backoff = Some(write_backoff(&breaker.backoff).at("backoff")?);
    let consecutive = breaker.consecutive.unwrap_or_default();
    let kind = match breaker.success_rate {
        None => AccrualKind::ConsecutiveFailures(ConsecutiveFailures {
            max_failures: consecutive,
            backoff,
        }),
        Some(rate) => AccrualKind::Unified(Unified {
            success_rate_threshold: rate.threshold,
            decay: Some(write_duration(rate.decay, "decay")?),
            min_requests: rate.min_requests,
            max_consecutive_failures: consecutive,
            backoff,
        }),
    };
    let ejection = (breaker.min_ready > 0)
        .then_some(pb::EjectionConfig { min_ready_endpoints: breaker.min_ready });
    Ok(pb::FailureAccrual { ejection, kind: Some(kind) })
}

pub(super) fn read_backoff(proto: pb::ExponentialBackoff) -> Result<Backoff> {
    let min = read_positive(proto.min_backoff, "min_backoff")?;
    let max = read_positive(proto.max_backoff, "max_backoff")?;
    let jitter = proto.jitter_ratio;
    if max < min {
        return Err(ConversionError::invalid("max_backoff", "is less than min_backoff"));
    }
    if !jitter.is_finite() || jitter < 0.0 {
        return Err(ConversionError::invalid("jitter_ratio", format!("{jitter} is no ratio")));
    }
    Ok(Backoff { min, max, jitter, respect_retry_after: proto.respect_retry_after_hint })
}

pub(super) fn write_backoff(backoff: &Backoff) -> Result<pb::ExponentialBackoff> {
    Ok(pb::ExponentialBackoff {
        min_backoff: Some(write_duration(backoff.min, "min_backoff")?),
        max_backoff: Some(write_duration(backoff.max, "max_backoff")?),
        jitter_ratio: backoff.jitter,
        respect_retry_after_hint: backoff.respect_retry_after,
    })
}
