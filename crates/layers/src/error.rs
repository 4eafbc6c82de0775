//! Looking inside a boxed error, and the one marker that says whose fault it was.
//!
//! Errors are wrapped on their way up (hyper wraps io, layers wrap hyper), so a cause is looked for
//! along `source()`.

use std::error::Error;

use crate::BoxError;

/// The first `E` in the chain that begins with `error` itself.
pub fn find_cause<E: Error + 'static>(error: &BoxError) -> Option<&E> {
    let mut cause: Option<&(dyn Error + 'static)> = Some(&**error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

/// The body of the request failed while it was being sent: the client's doing, not the endpoint's.
#[derive(Debug, thiserror::Error)]
#[error("request body failed")]
pub struct RequestBodyError {
    #[source]
    pub source: BoxError,
}

impl RequestBodyError {
    /// Marks an error, once.
    pub(crate) fn wrap(source: BoxError) -> BoxError {
        if source.is::<Self>() { source } else { Box::new(Self { source }) }
    }
}

/// Whether an exchange failed because of its request's body.
///
/// In HTTP/1 hyper keeps the body's error as a cause and calls it the user's. In HTTP/2 it resets
/// the stream, and all that is left of the cause is who did that.
pub fn is_request_body_error(error: &BoxError) -> bool {
    find_cause::<RequestBodyError>(error).is_some()
        || find_cause::<hyper::Error>(error).is_some_and(hyper::Error::is_user)
        || find_cause::<h2::Error>(error).is_some_and(is_own_reset)
}

/// A stream that neither the peer nor the protocol's implementation reset.
fn is_own_reset(error: &h2::Error) -> bool {
    error.is_reset() && !error.is_remote() && !error.is_library()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer {
        source: BoxError,
    }

    #[test]
    fn finds_the_error_itself_and_its_causes() {
        let io = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let error: BoxError = Box::new(Outer { source: Box::new(Outer { source: io.into() }) });
        assert!(find_cause::<Outer>(&error).is_some());
        assert_eq!(
            find_cause::<std::io::Error>(&error).unwrap().kind(),
            std::io::ErrorKind::ConnectionRefused
        );
        assert!(find_cause::<std::fmt::Error>(&error).is_none());
    }

    #[test]
    fn marks_once() {
        let error = RequestBodyError::wrap(RequestBodyError::wrap("gone".into()));
        assert_eq!(error.source().unwrap().to_string(), "gone");
        assert!(is_request_body_error(&error));
        let other: BoxError = "gone".into();
        assert!(!is_request_body_error(&other));
    }
}
