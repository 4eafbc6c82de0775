//! Listening sockets, and where a redirected connection was going.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::connect::keep_alive;

const BACKLOG: i32 = 4_096;

/// A listener could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {addr} ({what}): {source}")]
pub(crate) struct ListenError {
    what: &'static str,
    addr: SocketAddr,
    source: io::Error,
}

/// Binds a listener. `shared` lets every worker have one of its own on the same address. `[::]` takes
/// IPv4, too, and is `0.0.0.0` on a machine without IPv6.
pub(crate) fn bind(
    what: &'static str,
    addr: SocketAddr,
    shared: bool,
) -> Result<std::net::TcpListener, ListenError> {
    let any = addr.is_ipv6() && addr.ip().is_unspecified();
    match bind_one(what, addr, shared) {
        Err(error) if any && no_ipv6(&error.source) => {
            bind_one(what, SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), addr.port()), shared)
        }
        bound => bound,
    }
}

/// Binds a listener for each address. Those of IPv6 are left out on a machine without, if any is left.
pub(crate) fn bind_all(
    what: &'static str,
    addrs: &[SocketAddr],
    shared: bool,
) -> Result<Vec<std::net::TcpListener>, ListenError> {
    let mut listeners = Vec::with_capacity(addrs.len());
    let mut left_out = None;
    for addr in addrs {
        match bind(what, *addr, shared) {
            Ok(listener) => listeners.push(listener),
            Err(error) if addr.is_ipv6() && no_ipv6(&error.source) => {
                tracing::info!(%addr, "this machine has no IPv6; not listening there");
                left_out = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    match left_out {
        Some(error) if listeners.is_empty() => Err(error),
        _ => Ok(listeners),
    }
}

/// Compiled without, switched off at boot, or on the interface.
fn no_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

fn bind_one(
    what: &'static str,
    addr: SocketAddr,
    shared: bool,
) -> Result<std::net::TcpListener, ListenError> {
    let bind = || {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        if addr.is_ipv6() {
            // The machine's default may be either.
            socket.set_only_v6(!addr.ip().is_unspecified())?;
        }
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(shared)?;
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    bind().map_err(|source| ListenError { what, addr, source })
}

/// Accepts until the drain begins. At most `max` connections are open at a time; more are closed at
/// once, so that those already open are served.
pub(crate) async fn accept(
    listener: TcpListener,
    max: usize,
    drain: &CancellationToken,
    mut serve: impl FnMut(TcpStream, SocketAddr, Open),
) {
    let open = Arc::new(AtomicUsize::new(0));
    let mut full = false;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.cancelled() => return,
        };
        let (stream, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections");
                // Out of file descriptors, most likely: some must be closed first.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let place = Open::take(&open);
        let was_full = std::mem::replace(&mut full, open.load(Relaxed) > max);
        if full {
            if !was_full {
                tracing::warn!(max, "too many connections; closing new ones");
            }
            continue;
        }
        let options = stream.set_nodelay(true).and_then(|()| keep_alive(&stream));
        if options.is_ok() {
            serve(stream, canonical(client), place);
        }
    }
}

/// The place of one open connection.
#[derive(Debug)]
pub(crate) struct Open(Arc<AtomicUsize>);

impl Open {
    fn take(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Relaxed);
        Self(Arc::clone(open))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// IPv4 as such, also where a listener of IPv6 took it.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// The address a connection came to.
pub(crate) fn local_addr(stream: &TcpStream) -> io::Result<SocketAddr> {
    stream.local_addr().map(canonical)
}

/// Where a connection was going before it was redirected here; `None` if it was not.
pub(crate) fn original_dst(stream: &TcpStream) -> Option<SocketAddr> {
    // A connection by IPv4 is asked for by IPv4's option, whatever the listener's family is.
    let local = local_addr(stream).ok()?;
    let socket = SockRef::from(stream);
    let original = match local {
        SocketAddr::V4(_) => socket.original_dst_v4(),
        SocketAddr::V6(_) => socket.original_dst_v6(),
    };
    let original = original.ok()?.as_socket()?;
    (original != local).then_some(original)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[tokio::test]
    async fn an_ipv6_listener_says_ipv4_as_ipv4() {
        let listener = bind("test", "[::]:0".parse().unwrap(), false).unwrap();
        let port = listener.local_addr().unwrap().port();
        let listener = TcpListener::from_std(listener).unwrap();
        let drain = CancellationToken::new();
        let (tell, mut told) = tokio::sync::mpsc::channel(1);
        let serve = |stream: TcpStream, client: SocketAddr, _| {
            let to = local_addr(&stream).unwrap();
            tell.try_send((client.ip(), to.ip(), original_dst(&stream))).unwrap();
        };
        let localhost: IpAddr = Ipv4Addr::LOCALHOST.into();
        let connect = async {
            let _client = TcpStream::connect((localhost, port)).await.unwrap();
            assert_eq!(told.recv().await, Some((localhost, localhost, None)));
            drain.cancel();
        };
        tokio::join!(accept(listener, 10, &drain, serve), connect);
    }

    #[test]
    fn every_address_of_a_list_is_bound() {
        let addrs = ["127.0.0.1:0", "127.0.0.2:0"].map(|addr| addr.parse().unwrap());
        assert_eq!(bind_all("test", &addrs, false).unwrap().len(), 2);
        // Not of this machine: documentation's, of both families.
        let foreign = ["192.0.2.1:0".parse().unwrap()];
        assert!(bind_all("test", &foreign, false).is_err());
        let foreign = ["[2001:db8::1]:0".parse().unwrap()];
        assert!(bind_all("test", &foreign, false).is_err(), "nothing is left to listen on");
    }
}
