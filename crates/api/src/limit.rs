//! Bounds on what one message may make its reader hold. A writer that heeds them is understood.

/// Bytes of a message. 10 000 endpoints with their labels are about half of it.
pub const MESSAGE_BYTES: usize = 16 << 20;
/// Routes of one protocol.
pub const ROUTES: usize = 1_000;
/// Rules of all routes of one protocol.
pub const RULES: usize = 1_000;
/// What the linkerd2 API cannot say, of all rules of a policy.
pub const ADDITIONS: usize = 4 * RULES;
/// Endpoints of one update.
pub const ENDPOINTS: usize = 10_000;
/// Items of any other list: hosts, matches, headers, filters, backends, authorizations, certificates.
pub const ITEMS: usize = 1_000;
/// Faults of one rule, from each of route and Service, or of one port: every one costs each request.
pub const FAULTS: usize = 64;
/// Conditions of one match: every one costs each request.
pub const CONDITIONS: usize = 64;
/// Regular expressions of all routes of one protocol: each may take many times its text.
pub const PATTERNS: usize = 1_000;
/// Bytes of the roots to trust, some hundreds of certificates, or of a certificate with its key.
pub const PEM_BYTES: usize = 256 << 10;
/// Ports of a gateway.
pub const GATEWAY_PORTS: usize = 256;
