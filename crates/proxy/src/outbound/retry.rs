//! Which requests are tried again.
//!
//! A request that never reached a server (connection refused, stream refused) may always be tried
//! again. One that may have been processed is only tried again if its method is idempotent, if it
//! carries an `Idempotency-Key`, or if the rule says otherwise by naming the method it retries.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, request, response};
use mesh_layers::{
    Backoff, BoxError, Overloaded, RetryEvent, RetryOn, RetryParams, RetryPolicy, TimedOut,
    TimeoutKind, Unavailable, find_cause, grpc_status, is_grpc, is_request_body_error,
};
use mesh_model::route::{GrpcCodes, Retry, is_idempotent};

use crate::connect::ConnectError;
use crate::error::{MeshError, PeerRefused};
use crate::exchange::RouteInfo;
use crate::http::client::SendError;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Without a word from the route: connections that fail may be tried elsewhere, twice.
const DEFAULT_RETRIES: u32 = 2;

/// A rule's retries.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    params: RetryParams,
    statuses: Vec<std::ops::RangeInclusive<u16>>,
    grpc: GrpcCodes,
    /// The rule names the methods it matches and asks for retries: that covers all of them.
    any_method: bool,
    /// Whether failures after the request was sent are retried at all.
    on_broken: bool,
    route: Arc<RouteInfo>,
}

impl Policy {
    /// The policy of a rule. `names_methods`: every match of the rule names its method.
    pub(crate) fn new(retry: Option<&Retry>, names_methods: bool, route: &Arc<RouteInfo>) -> Self {
        let defaults = RetryParams::default();
        let params = match retry {
            None => RetryParams { max_retries: DEFAULT_RETRIES, ..defaults },
            Some(retry) => RetryParams {
                max_retries: retry.max_retries,
                max_body_bytes: retry.max_request_bytes as usize,
                per_try: retry.timeout,
                backoff: retry.backoff.map_or(defaults.backoff, |backoff| Backoff {
                    min: backoff.min,
                    max: backoff.max.max(backoff.min),
                    jitter: f64::from(backoff.jitter.max(0.0)),
                }),
            },
        };
        // Trying elsewhere after a failed connection need not wait.
        let params = match retry {
            Some(_) => params,
            None => {
                RetryParams { backoff: Backoff { min: Duration::ZERO, ..params.backoff }, ..params }
            }
        };
        Self {
            inner: Arc::new(Inner {
                params,
                statuses: retry.map(|retry| retry.statuses.clone()).unwrap_or_default(),
                grpc: retry.map(|retry| retry.grpc).unwrap_or_default(),
                any_method: retry.is_some() && names_methods,
                on_broken: params.max_retries > 0,
                route: Arc::clone(route),
            }),
        }
    }

    fn wants_grpc(&self, headers: &HeaderMap) -> bool {
        grpc_status(headers).is_some_and(|code| self.inner.grpc.contains(code))
    }
}

impl RetryPolicy for Policy {
    fn params(&self) -> &RetryParams {
        &self.inner.params
    }

    fn may_retry(&self, request: &request::Parts) -> bool {
        // Every gRPC method is a POST; a route that names codes to retry means its methods.
        let grpc = self.inner.grpc != GrpcCodes::default() && is_grpc(&request.headers);
        self.inner.any_method
            || grpc
            || is_idempotent(&request.method)
            || request.headers.contains_key(IDEMPOTENCY_KEY)
    }

    fn retry_response(&self, response: &response::Parts) -> bool {
        let status = response.status.as_u16();
        self.inner.statuses.iter().any(|range| range.contains(&status))
            || (is_grpc(&response.headers) && self.wants_grpc(&response.headers))
    }

    fn retry_trailers(&self, trailers: &HeaderMap) -> bool {
        self.wants_grpc(trailers)
    }

    fn retry_error(&self, error: &BoxError) -> RetryOn {
        if find_cause::<MeshError>(error).is_some()
            || find_cause::<Unavailable>(error).is_some()
            || find_cause::<Overloaded>(error).is_some()
            || is_request_body_error(error)
        {
            return RetryOn::No;
        }
        if find_cause::<ConnectError>(error).is_some()
            || find_cause::<PeerRefused>(error).is_some()
            || find_cause::<SendError>(error).is_some_and(|error| !error.sent)
        {
            return RetryOn::Always;
        }
        match find_cause::<TimedOut>(error).map(|timed_out| timed_out.kind) {
            Some(TimeoutKind::PerTry) => RetryOn::Yes,
            Some(_) => RetryOn::No,
            None if self.inner.on_broken => RetryOn::Yes,
            None => RetryOn::No,
        }
    }

    fn event(&self, event: RetryEvent) {
        let counters = &self.inner.route.retries;
        match event {
            RetryEvent::Retried => counters.requests.inc(),
            RetryEvent::Succeeded => counters.successes.inc(),
            RetryEvent::LimitExceeded => counters.limit_exceeded.inc(),
            RetryEvent::BudgetExhausted => counters.overflow.inc(),
            RetryEvent::BodyTooLarge => counters.body_too_large.inc(),
            RetryEvent::NotIdempotent => counters.not_idempotent.inc(),
            RetryEvent::DeadlineNear => counters.deadline_near.inc(),
        }
    }
}
