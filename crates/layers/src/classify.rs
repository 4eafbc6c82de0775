//! What counts as a failure, everywhere in the mesh: HTTP 5xx, and gRPC status 2, 4, 7, 13, 14, 15.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};

const GRPC_STATUS: &str = "grpc-status";

/// How an exchange went, for success rates and breakers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    Success,
    Failure,
}

/// Whether headers are those of a gRPC message: `application/grpc` alone, with a `+codec` or with
/// parameters. gRPC-Web is not, since it carries its status in the body.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE) else {
        return false;
    };
    let prefix = b"application/grpc";
    let value = value.as_bytes();
    value.len() >= prefix.len()
        && value[..prefix.len()].eq_ignore_ascii_case(prefix)
        && matches!(value.get(prefix.len()), None | Some(b'+' | b';' | b' '))
}

/// The `grpc-status` of headers or trailers, if there is one and it is a number.
pub fn grpc_status(headers: &HeaderMap) -> Option<u16> {
    let value = headers.get(GRPC_STATUS)?.as_bytes();
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0u16, |code, byte| {
        let digit = byte.is_ascii_digit().then(|| u16::from(byte - b'0'))?;
        code.checked_mul(10)?.checked_add(digit)
    })
}

/// Whether a gRPC status means that the server failed: unknown, deadline exceeded, permission
/// denied, internal, unavailable, data loss.
pub fn grpc_is_failure(code: u16) -> bool {
    matches!(code, 2 | 4 | 7 | 13 | 14 | 15)
}

/// 5xx is a failure.
pub fn status_outcome(status: StatusCode) -> Outcome {
    if status.is_server_error() { Outcome::Failure } else { Outcome::Success }
}

/// The outcome as far as the head of a response tells it; `None` when it is gRPC and the status is
/// still to come in trailers.
pub fn response_outcome(status: StatusCode, headers: &HeaderMap) -> Option<Outcome> {
    if status != StatusCode::OK || !is_grpc(headers) {
        return Some(status_outcome(status));
    }
    headers.contains_key(GRPC_STATUS).then(|| trailers_outcome(Some(headers)))
}

/// The outcome of a gRPC exchange by its trailers. None, or without a readable status, is a
/// failure: clients report unknown.
pub fn trailers_outcome(trailers: Option<&HeaderMap>) -> Outcome {
    match trailers.and_then(grpc_status) {
        Some(code) if !grpc_is_failure(code) => Outcome::Success,
        _ => Outcome::Failure,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::HeaderValue;

    use super::*;

    fn header(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name.parse().unwrap(), HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn recognises_grpc_by_content_type() {
        for yes in [
            "application/grpc",
            "application/grpc+proto",
            "application/grpc; charset=utf-8",
            "Application/GRPC",
        ] {
            assert!(is_grpc(&header("content-type", yes)), "{yes}");
        }
        for no in [
            "application/grpc-web",
            "application/grpc-web+proto",
            "application/grpcx",
            "application/json",
            "application/grp",
        ] {
            assert!(!is_grpc(&header("content-type", no)), "{no}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn reads_a_status_or_nothing() {
        for (text, code) in
            [("0", Some(0)), ("14", Some(14)), ("65535", Some(65535)), ("014", Some(14))]
        {
            assert_eq!(grpc_status(&header("grpc-status", text)), code, "{text}");
        }
        for text in ["", "65536", "-1", "+1", "1 ", "ok", "99999999999999999999"] {
            assert_eq!(grpc_status(&header("grpc-status", text)), None, "{text}");
        }
    }

    #[test]
    fn failures_are_those_of_the_server() {
        let failures: Vec<u16> = (0..=17).filter(|code| grpc_is_failure(*code)).collect();
        assert_eq!(failures, [2, 4, 7, 13, 14, 15]);
        assert_eq!(status_outcome(StatusCode::NOT_FOUND), Outcome::Success);
        assert_eq!(status_outcome(StatusCode::BAD_GATEWAY), Outcome::Failure);
    }

    #[test]
    fn waits_for_trailers_only_when_the_status_is_there() {
        let mut headers = header("content-type", "application/grpc");
        assert_eq!(response_outcome(StatusCode::OK, &headers), None);
        assert_eq!(
            response_outcome(StatusCode::SERVICE_UNAVAILABLE, &headers),
            Some(Outcome::Failure)
        );
        headers.insert("grpc-status", HeaderValue::from_static("14"));
        assert_eq!(response_outcome(StatusCode::OK, &headers), Some(Outcome::Failure));
        assert_eq!(response_outcome(StatusCode::OK, &HeaderMap::new()), Some(Outcome::Success));
        assert_eq!(trailers_outcome(None), Outcome::Failure);
        assert_eq!(trailers_outcome(Some(&header("grpc-status", "5"))), Outcome::Success);
    }
}
