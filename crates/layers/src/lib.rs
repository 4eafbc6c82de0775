//! Tower middleware that knows HTTP but not this mesh.
//!
//! Everything here is a [`tower::Service`] from [`Request`] to [`Response`] with [`BoxError`], and
//! differs from tower's own middleware in one decision: **every service is always ready and
//! `Clone`**. `poll_ready` answers `Ready(Ok(()))`, waiting (for an endpoint, for a backoff)
//! happens inside the future of the call, where it has a bound and an error of its own. So nothing
//! needs a `Buffer`, a clone may be called at once, and a failed endpoint can't poison a stack.
//!
//! # In the order a request meets them
//!
//! | module | what it does to a request |
//! |---|---|
//! | [`service`] | [`HttpService`]: a section of the stack with its type erased |
//! | [`track`](mod@track) | tells once how a body ended; metrics, permits and the balancer hang on it |
//! | [`limit`] | [`ConcurrencyLimit`]: at most so many exchanges at once, until the response body's end |
//! | [`deadline`] | [`DeadlineLayer`]: how long the exchange, the response and silence may last |
//! | [`retry`] | [`RetryLayer`]: tries again what a policy says, with [`budget`], [`backoff`] and a [`replay`] of the body |
//! | [`balance`] | [`Balancer`]: picks an endpoint by load, ejects failing ones, waits for one or fails fast |
//!
//! Beside them: [`body`] (the one body type), [`classify`] (what counts as a failure), [`context`]
//! (what layers tell each other in a request's extensions) and [`error`] (finding a cause along
//! `source()`).
//!
//! Nothing here knows routes, identities, metrics or reason codes: the proxy gives policies and
//! callbacks, and turns the typed errors ([`TimedOut`], [`Overloaded`], [`Unavailable`]) into
//! responses.

pub mod backoff;
pub mod balance;
pub mod body;
pub mod budget;
pub mod classify;
pub mod context;
pub mod deadline;
pub mod error;
pub mod limit;
pub mod replay;
pub mod retry;
pub mod service;
pub mod track;

#[cfg(test)]
mod test_util;

pub use backoff::Backoff;
pub use balance::{
    BalanceConfig, Balancer, BreakerConfig, Cause, EndpointStatus, Health, Lease, Missing, Penalty,
    Reason, Strategy, SuccessRate, Transition, Unavailable,
};
pub use body::Body;
pub use budget::Budget;
pub use classify::{
    Outcome, grpc_is_failure, grpc_status, is_grpc, response_outcome, status_outcome,
    trailers_outcome,
};
pub use context::{Affinity, Attempt, RequestDeadline, Tried, TryDeadline};
pub use deadline::{DeadlineLayer, TimedOut, TimeoutKind, Timeouts};
pub use error::{RequestBodyError, find_cause, is_request_body_error};
pub use limit::{ConcurrencyLimit, LimitedFuture, Overloaded};
pub use retry::{RetryEvent, RetryLayer, RetryOn, RetryParams, RetryPolicy};
pub use service::{HttpService, ResponseFuture};
pub use track::{End, Track, track};

/// Any error, as it travels between layers; [`find_cause`] looks inside.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// The request every layer takes.
pub type Request = http::Request<Body>;
/// The response every layer answers.
pub type Response = http::Response<Body>;
