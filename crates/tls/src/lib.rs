//! TLS for the mesh: who a workload is, how it proves that, and the handshakes between proxies.
//!
//! A control plane holds an [`Issuer`], whose certificate a [`Root`] signed that nobody keeps the key
//! of. A workload makes a [`Key`] that never leaves its proxy, has a request for it certified, and with
//! the trust bundle that makes its [`Credentials`]; [`accept`] and [`connect`] use these. Start reading
//! with [`id`].

mod bundle;
mod certificate;
mod credentials;
mod edge;
mod handshake;
mod hello;
pub mod id;
mod issuer;
mod key;
mod transport_header;

pub use self::bundle::{BundleError, TrustBundle};
pub use self::certificate::{Certificate, CertificateError};
pub use self::credentials::{Credentials, CredentialsError, Reception, Visitor};
pub use self::edge::{Choose, EdgeAccepted, EdgeKey, EdgeKeyError, EdgeServer};
pub use self::handshake::{Accepted, HandshakeError, accept, connect};
pub use self::hello::{ClientHello, HANDSHAKE, client_hello};
pub use self::id::{Id, IdError, WorkloadId};
pub use self::issuer::{Issued, Issuer, IssuerError, Refused, Root};
pub use self::key::Key;
pub use self::transport_header::{
    MAX_TRANSPORT_HEADER, SessionProtocol, TRANSPORT_ALPN, TransportHeader, TransportHeaderError,
};
