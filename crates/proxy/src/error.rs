//! What went wrong, whose fault it was, and what the client is told: one table.

use std::fmt;

use http::{HeaderName, HeaderValue, StatusCode, header};
use mesh_layers::{
    Body, BoxError, Overloaded, Reason as BalanceReason, Response, TimedOut, TimeoutKind,
    Unavailable, find_cause, is_request_body_error,
};
use mesh_model::Reason;

use crate::connect::ConnectError;
use crate::http::client::SendError;
use crate::http::forward::L5D_PROXY_ERROR;

/// The stable reason code on responses the mesh made.
pub(crate) const MESH_REASON: HeaderName = HeaderName::from_static("x-mesh-reason");

/// What a request that the mesh failed is called, for `meshctl explain`.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-mesh-request-id");

/// Why the mesh made this response, if it did.
pub(crate) fn told_reason(headers: &http::HeaderMap) -> Option<Reason> {
    Reason::from_code(headers.get(MESH_REASON)?.to_str().ok()?)
}

/// A failure the proxy itself decided on.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct MeshError {
    pub(crate) reason: Reason,
    pub(crate) message: String,
}

impl MeshError {
    pub(crate) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// The endpoint's proxy did not pass the request on to its application.
#[derive(Debug, thiserror::Error)]
#[error("the proxy of {addr} refused: {reason}")]
pub(crate) struct PeerRefused {
    pub(crate) addr: std::net::SocketAddr,
    pub(crate) reason: Reason,
}

/// Whose fault it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Downstream,
    Upstream,
    Proxy,
}

/// A failure as the client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) reason: Reason,
    pub(crate) message: String,
}

impl Failure {
    /// Names an error.
    pub(crate) fn of(error: &BoxError) -> Self {
        Self { reason: reason_of(error), message: with_causes(error) }
    }

    /// Whose fault it was.
    pub(crate) fn fault(&self) -> Fault {
        match self.reason {
            Reason::BadRequest
            | Reason::Misdirected
            | Reason::BodyTooLarge
            | Reason::HeadersTooLarge
            | Reason::HeaderTimeout
            | Reason::Unauthorized
            | Reason::EgressDenied
            | Reason::RateLimited
            | Reason::NoRoute
            | Reason::UnknownTarget
            | Reason::LoopDetected => Fault::Downstream,
            Reason::Overloaded
            | Reason::QueueFull
            | Reason::DiscoveryTimeout
            | Reason::FaultInjected
            | Reason::IdentityPending
            | Reason::Draining
            | Reason::Internal => Fault::Proxy,
            _ => Fault::Upstream,
        }
    }

    /// The HTTP status for it.
    pub(crate) fn status(&self) -> StatusCode {
        match self.reason {
            Reason::BadRequest => StatusCode::BAD_REQUEST,
            Reason::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Reason::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Reason::Unauthorized | Reason::EgressDenied => StatusCode::FORBIDDEN,
            Reason::NoRoute => StatusCode::NOT_FOUND,
            Reason::HeaderTimeout => StatusCode::REQUEST_TIMEOUT,
            Reason::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Reason::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Reason::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Reason::ConnectRefused
            | Reason::ConnectFailed
            | Reason::TlsFailed
            | Reason::IdentityMismatch
            | Reason::ConnectionClosed
            | Reason::StreamReset
            | Reason::ProtocolError
            | Reason::UnknownTarget
            | Reason::LocalRefused => StatusCode::BAD_GATEWAY,
            Reason::Overloaded
            | Reason::QueueFull
            | Reason::NoBackend
            | Reason::FaultInjected
            | Reason::IdentityPending
            | Reason::Draining => StatusCode::SERVICE_UNAVAILABLE,
            Reason::NoEndpoints
            | Reason::AllEjected
            | Reason::ConnectTimeout
            | Reason::RequestTimeout
            | Reason::TryTimeout
            | Reason::IdleTimeout
            | Reason::DiscoveryTimeout => StatusCode::GATEWAY_TIMEOUT,
            Reason::LoopDetected => StatusCode::LOOP_DETECTED,
        }
    }

    /// The gRPC status code for it.
    pub(crate) fn grpc_status(&self) -> u16 {
        match self.reason {
            Reason::BadRequest | Reason::HeadersTooLarge | Reason::Internal => 13,
            Reason::Unauthorized | Reason::EgressDenied => 7,
            Reason::NoRoute => 12,
            Reason::RateLimited | Reason::Overloaded | Reason::QueueFull => 8,
            Reason::RequestTimeout | Reason::TryTimeout | Reason::IdleTimeout => 4,
            _ => 14,
        }
    }

    /// The response that tells it: HTTP status and a line of text, or a gRPC trailers-only response.
    pub(crate) fn response(&self, grpc: bool) -> Response {
        let mut response = Response::new(Body::empty());
        let text = HeaderValue::from_str(&printable(&self.message));
        let text = text.unwrap_or_else(|_| HeaderValue::from_static(self.reason.code()));
        let headers = response.headers_mut();
        headers.insert(MESH_REASON, HeaderValue::from_static(self.reason.code()));
        headers.insert(L5D_PROXY_ERROR, text.clone());
        if grpc {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert("grpc-status", HeaderValue::from(self.grpc_status()));
            headers.insert("grpc-message", text);
            return response;
        }
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        *response.status_mut() = self.status();
        let body = format!("{}: {}\n", self.reason, self.message);
        *response.body_mut() = Body::full(body);
        response
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.message)
    }
}

/// What can stand in a header: visible ASCII, at most 200 characters.
fn printable(text: &str) -> String {
    text.chars().take(200).map(|c| if c == ' ' || c.is_ascii_graphic() { c } else { '?' }).collect()
}

fn with_causes(error: &BoxError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Many errors repeat their cause in their own text.
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

fn reason_of(error: &BoxError) -> Reason {
    if let Some(error) = find_cause::<MeshError>(error) {
        return error.reason;
    }
    if let Some(error) = find_cause::<PeerRefused>(error) {
        return error.reason;
    }
    if let Some(error) = find_cause::<ConnectError>(error) {
        return error.reason;
    }
    if let Some(error) = find_cause::<TimedOut>(error) {
        return match error.kind {
            TimeoutKind::Request | TimeoutKind::Response => Reason::RequestTimeout,
            TimeoutKind::Idle => Reason::IdleTimeout,
            TimeoutKind::PerTry => Reason::TryTimeout,
        };
    }
    if let Some(error) = find_cause::<Unavailable>(error) {
        return match error {
            Unavailable::QueueFull { .. } => Reason::QueueFull,
            Unavailable::FailFast { reason, .. } => match reason {
                BalanceReason::Unresolved => Reason::DiscoveryTimeout,
                BalanceReason::NoEndpoints { .. } => Reason::NoEndpoints,
                BalanceReason::AllEjected => Reason::AllEjected,
                BalanceReason::NoConnection => Reason::QueueFull,
            },
        };
    }
    if find_cause::<Overloaded>(error).is_some() {
        return Reason::Overloaded;
    }
    if is_request_body_error(error) {
        return Reason::BadRequest;
    }
    if let Some(error) = find_cause::<h2::Error>(error) {
        return if error.is_reset() { Reason::StreamReset } else { Reason::ConnectionClosed };
    }
    match find_cause::<hyper::Error>(error) {
        Some(error) if error.is_parse() => Reason::ProtocolError,
        Some(_) => Reason::ConnectionClosed,
        None if find_cause::<SendError>(error).is_some() => Reason::ConnectionClosed,
        None if find_cause::<std::io::Error>(error).is_some() => Reason::ConnectionClosed,
        None => Reason::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_an_answer_in_both_protocols() {
        for reason in Reason::ALL {
            let failure = Failure { reason: *reason, message: "why\nnot".into() };
            let http = failure.response(false);
            assert!(http.status().is_client_error() || http.status().is_server_error());
            assert_eq!(http.headers()[MESH_REASON], reason.code());
            let grpc = failure.response(true);
            assert_eq!(grpc.status(), StatusCode::OK);
            assert_ne!(grpc.headers()["grpc-status"], "0");
            assert_eq!(grpc.headers()["grpc-message"], "why?not");
        }
    }

    #[test]
    fn the_documented_statuses_are_these() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/troubleshooting.md");
        let text = std::fs::read_to_string(path).unwrap();
        for reason in Reason::ALL {
            let (_, section) = text.split_once(&format!("\n### {reason}\n")).unwrap();
            let told = section.trim_start().split("\n\n").next().unwrap();
            if let Some((_, status)) = told.split_once("The client got ") {
                let failure = Failure { reason: *reason, message: String::new() };
                assert!(status.starts_with(failure.status().as_str()), "{reason}: {told}");
            }
        }
    }

    #[test]
    fn causes_are_found_behind_wrappers() {
        #[derive(Debug, thiserror::Error)]
        #[error("wrapped")]
        struct Wrapped(#[source] TimedOut);
        let timed_out = TimedOut { kind: TimeoutKind::PerTry, after: Default::default() };
        let error: BoxError = Wrapped(timed_out).into();
        assert_eq!(Failure::of(&error).reason, Reason::TryTimeout);
        let other: BoxError = "nobody knows".into();
        assert_eq!(Failure::of(&other).reason, Reason::Internal);
    }
}
