//! Reason codes: why the mesh itself failed a request or connection.
//!
//! A code is the same in the response header, the metric, the tap event, the log line and
//! `docs/troubleshooting.md`, which has one heading per code (a test compares).

use std::fmt;

macro_rules! reasons {
    ($( $(#[$doc:meta])* $variant:ident = $code:literal, )*) => {
        /// Why the mesh failed a request or connection.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason { $( $(#[$doc])* $variant, )* }

        impl Reason {
            /// Every code, in the order of documentation.
            pub const ALL: &'static [Reason] = &[ $( Reason::$variant, )* ];

            /// The stable, public name.
            pub fn code(self) -> &'static str {
                match self { $( Self::$variant => $code, )* }
            }

            /// The reason with this code.
            pub fn from_code(code: &str) -> Option<Self> {
                match code { $( $code => Some(Self::$variant), )* _ => None }
            }
        }
    };
}

reasons! {
    /// The target has no endpoints.
    NoEndpoints = "no-endpoints",
    /// Every endpoint's breaker is open.
    AllEjected = "all-ejected",
    /// Too many requests already wait for an endpoint.
    QueueFull = "queue-full",
    /// The endpoint refused the connection.
    ConnectRefused = "connect-refused",
    /// The endpoint did not accept the connection in time.
    ConnectTimeout = "connect-timeout",
    /// Connecting failed otherwise (unreachable, reset during the handshake).
    ConnectFailed = "connect-failed",
    /// No secure connection came about: one side does not trust the other's certificate.
    TlsFailed = "tls-failed",
    /// The endpoint proved to be another than the control plane said.
    IdentityMismatch = "identity-mismatch",
    /// This proxy has no certificate yet.
    IdentityPending = "identity-pending",
    /// The endpoint closed or reset the connection before its response was complete.
    ConnectionClosed = "connection-closed",
    /// The endpoint reset the HTTP/2 stream.
    StreamReset = "stream-reset",
    /// The endpoint's answer broke the protocol.
    ProtocolError = "protocol-error",
    /// The request did not complete within the route's timeout.
    RequestTimeout = "request-timeout",
    /// One try did not get a response's head in time.
    TryTimeout = "try-timeout",
    /// Nothing was sent in either direction for the route's idle timeout.
    IdleTimeout = "idle-timeout",
    /// The proxy has too many requests in flight.
    Overloaded = "overloaded",
    /// No rule of the route matches the request.
    NoRoute = "no-route",
    /// The matching rule has no usable backend.
    NoBackend = "no-backend",
    /// The rule injected this failure.
    FaultInjected = "fault-injected",
    /// No policy lets this client in.
    Unauthorized = "unauthorized",
    /// No policy lets it leave the mesh.
    EgressDenied = "egress-denied",
    /// The port's rate limit is used up.
    RateLimited = "rate-limited",
    /// The control plane has not told yet how to reach this target.
    DiscoveryTimeout = "discovery-timeout",
    /// The target is not one this proxy may or can reach.
    UnknownTarget = "unknown-target",
    /// The request came back to the proxy it left.
    LoopDetected = "loop-detected",
    /// The request is malformed or ambiguous.
    BadRequest = "bad-request",
    /// The request is for another host than its connection.
    Misdirected = "misdirected",
    /// The request's body exceeds the gateway's limit.
    BodyTooLarge = "body-too-large",
    /// The request's head or headers exceed the limits.
    HeadersTooLarge = "headers-too-large",
    /// The client did not send the request's head in time.
    HeaderTimeout = "header-timeout",
    /// The application behind this proxy refused the connection.
    LocalRefused = "local-refused",
    /// The proxy is shutting down.
    Draining = "draining",
    /// A defect in the proxy.
    Internal = "internal",
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}
