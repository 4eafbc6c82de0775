//! What a request wishes for itself, where its rule allows that: limits and retries, in the headers and the words of
//! linkerd2-proxy.
//!
//! | header | value |
//! |---|---|
//! | `l5d-timeout`, `l5d-request-timeout` | `10s`, `500ms`; 0 is no limit; the second goes before the first |
//! | `l5d-response-timeout`, `l5d-retry-timeout` | likewise, for the response, and for one try |
//! | `l5d-retry-limit` | tries after the first |
//! | `l5d-retry-http` | `5xx`, `gateway-error`, `429`, `500-504`, several with commas |
//! | `l5d-retry-grpc` | `cancelled`, `deadline-exceeded`, `internal`, `resource-exhausted`, `unavailable` |
//!
//! What cannot be understood is ignored. Servers do not see the headers. Where no wishes are allowed, they are
//! headers like any other. The rule's budget of retries is for those that were wished for, too.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::HeaderMap;
use mesh_layers::{
    BoxError, Budget, DeadlineLayer, Request, Response, ResponseFuture, RetryLayer, RetryParams,
};
use mesh_model::outbound::Forward;
use mesh_model::route::{GrpcCodes, Retry, Timeouts};
use tower::{Layer, Service, ServiceBuilder};

use super::retry;
use crate::exchange::RouteInfo;

/// Of a list; longer ones are cut.
const MAX_CONDITIONS: usize = 32;

/// What the headers of one request say. `Some(None)` is to have no limit.
#[derive(Clone, Debug, Default, PartialEq)]
struct Wishes {
    request: Option<Option<Duration>>,
    response: Option<Option<Duration>>,
    per_try: Option<Option<Duration>>,
    retries: Option<u32>,
    statuses: Option<Vec<RangeInclusive<u16>>>,
    grpc: Option<GrpcCodes>,
}

impl Wishes {
    /// Takes them out of the headers.
    fn take(headers: &mut HeaderMap) -> Self {
        let mut text = |name| {
            let value = headers.remove(name)?;
            value.to_str().ok().map(|text| text.trim().to_owned())
        };
        let mut limit = |name| text(name).as_deref().and_then(duration);
        let (short, long) = (limit("l5d-timeout"), limit("l5d-request-timeout"));
        Self {
            request: long.or(short),
            response: limit("l5d-response-timeout"),
            per_try: limit("l5d-retry-timeout"),
            retries: text("l5d-retry-limit").and_then(|text| text.parse().ok()),
            statuses: text("l5d-retry-http").and_then(|text| statuses(&text)),
            grpc: text("l5d-retry-grpc").and_then(|text| grpc_codes(&text)),
        }
    }

    fn timeouts(&self, of_rule: Timeouts) -> Timeouts {
        Timeouts {
            request: self.request.unwrap_or(of_rule.request),
            response: self.response.unwrap_or(of_rule.response),
            ..of_rule
        }
    }

    fn retry(self, of_rule: Option<&Retry>) -> Option<Retry> {
        let wished = self.per_try.is_some()
            || self.retries.is_some()
            || self.statuses.is_some()
            || self.grpc.is_some();
        if !wished {
            return of_rule.cloned();
        }
        let usual = RetryParams::default();
        let retry = of_rule.cloned().unwrap_or(Retry {
            max_retries: usual.max_retries,
            max_request_bytes: u32::try_from(usual.max_body_bytes).unwrap_or(u32::MAX),
            statuses: Vec::new(),
            grpc: GrpcCodes::default(),
            timeout: None,
            backoff: None,
        });
        Some(Retry {
            max_retries: self.retries.unwrap_or(retry.max_retries),
            statuses: self.statuses.unwrap_or(retry.statuses),
            grpc: self.grpc.unwrap_or(retry.grpc),
            timeout: self.per_try.unwrap_or(retry.timeout),
            ..retry
        })
    }
}

/// A number with its unit. `Some(None)` is 0.
fn duration(text: &str) -> Option<Option<Duration>> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let millis = match unit {
        "" if number == 0 => 1,
        "ms" => 1,
        "s" => 1000,
        "m" => 60 * 1000,
        "h" => 60 * 60 * 1000,
        "d" => 24 * 60 * 60 * 1000,
        _ => return None,
    };
    let duration = Duration::from_millis(number.checked_mul(millis)?);
    Some((!duration.is_zero()).then_some(duration))
}

/// `None` when there is none in it.
fn statuses(text: &str) -> Option<Vec<RangeInclusive<u16>>> {
    let code = |text: &str| text.trim().parse().ok().filter(|code| (100..600).contains(code));
    let range = |text: &str| match text.split_once('-').map(|(a, b)| (code(a), code(b))) {
        Some((Some(first), Some(last))) => (first <= last).then_some(first..=last),
        Some(_) if text.eq_ignore_ascii_case("gateway-error") => Some(502..=504),
        None if text.eq_ignore_ascii_case("5xx") => Some(500..=599),
        None => code(text).map(|code| code..=code),
        Some(_) => None,
    };
    let all: Vec<_> =
        text.split(',').map(str::trim).filter_map(range).take(MAX_CONDITIONS).collect();
    (!all.is_empty()).then_some(all)
}

/// `None` when there is none in it.
fn grpc_codes(text: &str) -> Option<GrpcCodes> {
    let code = |name: &str| match name.to_ascii_lowercase().as_str() {
        "cancelled" => Some(1),
        "deadline-exceeded" => Some(4),
        "resource-exhausted" => Some(8),
        "internal" => Some(13),
        "unavailable" => Some(14),
        _ => None,
    };
    let codes = text.split(',').map(str::trim).filter_map(code).take(MAX_CONDITIONS);
    let all = codes.fold(GrpcCodes::default(), GrpcCodes::with);
    (all != GrpcCodes::default()).then_some(all)
}

/// A rule that lets requests wish. `S` is what tries are sent to.
#[derive(Clone, Debug)]
pub(crate) struct WishesLayer<S> {
    rule: Arc<RuleLimits>,
    tries: S,
}

#[derive(Debug)]
struct RuleLimits {
    timeouts: Timeouts,
    retry: Option<Retry>,
    names_methods: bool,
    budget: Budget,
    route: Arc<RouteInfo>,
}

impl<S> WishesLayer<S> {
    /// The layer of a rule, if it lets requests wish. `names_methods`: see [`retry::Policy::new`].
    pub(crate) fn new(
        forward: &Forward,
        names_methods: bool,
        budget: &Budget,
        route: &Arc<RouteInfo>,
        tries: S,
    ) -> Option<Self> {
        let rule = RuleLimits {
            timeouts: forward.timeouts,
            retry: forward.retry.clone(),
            names_methods,
            budget: budget.clone(),
            route: Arc::clone(route),
        };
        forward.allow_request_headers.then(|| Self { rule: Arc::new(rule), tries })
    }
}

impl<U, S: Clone> Layer<U> for WishesLayer<S> {
    type Service = WishesService<U, S>;

    fn layer(&self, usual: U) -> WishesService<U, S> {
        WishesService { usual, granted: self.clone() }
    }
}

/// Requests that wish for something are sent past the usual limits, under their own.
#[derive(Clone, Debug)]
pub(crate) struct WishesService<U, S> {
    /// The limits of the rule, and the tries below them.
    usual: U,
    granted: WishesLayer<S>,
}

impl<U, S> Service<Request> for WishesService<U, S>
where
    U: Service<Request, Response = Response, Error = BoxError>,
    U::Future: Send + 'static,
    S: Service<Request, Response = Response, Error = BoxError> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = BoxError;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request) -> ResponseFuture {
        let wishes = Wishes::take(request.headers_mut());
        if wishes == Wishes::default() {
            return Box::pin(self.usual.call(request));
        }
        let rule = &self.granted.rule;
        let timeouts = wishes.timeouts(rule.timeouts);
        // Who says what is to be tried again means this request, whatever its method is.
        let means_it = wishes.statuses.is_some() || wishes.grpc.is_some();
        let retry = wishes.retry(rule.retry.as_ref());
        let retry = retry::Policy::new(retry.as_ref(), rule.names_methods || means_it, &rule.route);
        // As the rule's own stack has them.
        let mut service = ServiceBuilder::new()
            .layer(DeadlineLayer::new(timeouts_of(timeouts)))
            .layer(RetryLayer::new(retry, rule.budget.clone()))
            .service(self.granted.tries.clone());
        Box::pin(service.call(request))
    }
}

/// For the layer that keeps them.
pub(crate) fn timeouts_of(timeouts: Timeouts) -> mesh_layers::Timeouts {
    mesh_layers::Timeouts {
        request: timeouts.request,
        response: timeouts.response,
        idle: timeouts.idle,
    }
}

#[cfg(test)]
mod tests;
