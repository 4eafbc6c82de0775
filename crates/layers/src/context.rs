//! What layers tell each other in a request's extensions.
//!
//! Each is put there only by a layer that has something to say, since an extension costs an
//! allocation.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

/// When the whole exchange is given up. Put by [`crate::DeadlineLayer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestDeadline(pub Instant);

/// When this try is given up: its own timeout or the request's, whichever is sooner. Put by
/// [`crate::RetryLayer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TryDeadline(pub Instant);

/// Which try of a request this is, from 0. Put by [`crate::RetryLayer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt(pub u32);

/// Which endpoint a request should go to, if it can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Affinity {
    /// What a consistent-hash balancer hashes it by: a header, a cookie or the client's address,
    /// already hashed. Others take no notice.
    Hash(u64),
    /// This one, while it is in service.
    Endpoint(SocketAddr),
}

/// The endpoints that tries of this request went to, shared by all its tries: put by
/// [`crate::RetryLayer`], filled by [`crate::Balancer`], which prefers others. It is shared and not
/// returned because a try that timed out returns nothing.
#[derive(Clone, Debug, Default)]
pub struct Tried(pub(crate) Arc<Mutex<Vec<SocketAddr>>>);

impl Tried {
    /// The addresses so far, oldest first. At most one per try.
    pub fn addrs(&self) -> Vec<SocketAddr> {
        self.0.lock().clone()
    }

    pub(crate) fn push(&self, addr: SocketAddr) {
        self.0.lock().push(addr);
    }
}
