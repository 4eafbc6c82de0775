//! Opening TCP connections, with a time limit and a name for each way it can fail.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mesh_model::Reason;
use tokio::net::{TcpSocket, TcpStream};
use tracing::Instrument;

use crate::io::Io;
use crate::telemetry::TransportSeries;

/// How to reach one address.
#[derive(Clone, Debug)]
pub(crate) struct Connect {
    /// Tried in order while connections are refused; never empty.
    pub(crate) addrs: Vec<SocketAddr>,
    pub(crate) bind_ip: Option<IpAddr>,
    pub(crate) timeout: Duration,
    pub(crate) transport: Arc<TransportSeries>,
}

/// No connection came about; nothing was sent.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect to {addr}: {source}")]
pub(crate) struct ConnectError {
    pub(crate) addr: SocketAddr,
    pub(crate) reason: Reason,
    source: io::Error,
}

impl Connect {
    /// Connects to the first address that accepts.
    ///
    /// # Errors
    /// Of the last address tried.
    pub(crate) async fn open(&self) -> Result<Io, ConnectError> {
        let mut tried = self.addrs.iter();
        let mut addr = *tried.next().expect("an address to connect to");
        loop {
            match self.open_one(addr).await {
                Ok(tcp) => return Ok(Io::new(tcp, Bytes::new(), self.transport.open())),
                Err(error) => match tried.next() {
                    Some(next) if error.reason == Reason::ConnectRefused => addr = *next,
                    _ => return Err(error),
                },
            }
        }
    }

    async fn open_one(&self, addr: SocketAddr) -> Result<TcpStream, ConnectError> {
        let failed = |reason, source| ConnectError { addr, reason, source };
        let connect =
            connect(addr, self.bind_ip).instrument(tracing::debug_span!("connect", %addr));
        match tokio::time::timeout(self.timeout, connect).await {
            Ok(Ok(tcp)) => Ok(tcp),
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                Err(failed(Reason::ConnectRefused, error))
            }
            Ok(Err(error)) => Err(failed(Reason::ConnectFailed, error)),
            Err(_) => {
                let after = format!("no answer within {:?}", self.timeout);
                Err(failed(Reason::ConnectTimeout, io::Error::new(io::ErrorKind::TimedOut, after)))
            }
        }
    }
}

async fn connect(addr: SocketAddr, bind_ip: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_nodelay(true)?;
    if let Some(ip) = bind_ip.filter(|ip| ip.is_ipv4() == addr.is_ipv4()) {
        bind_address_no_port(&socket)?;
        socket.bind((ip, 0).into())?;
    }
    let stream = socket.connect(addr).await?;
    keep_alive(&stream)?;
    Ok(stream)
}

/// Leaves the choice of a local port to `connect`, which can share ports between destinations;
/// `bind` would use one up for each connection.
#[expect(unsafe_code, reason = "the option has no safe wrapper")]
fn bind_address_no_port(socket: &TcpSocket) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open, and `on` is an int that outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Notices peers that vanished without a word.
pub(crate) fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    let keep_alive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10));
    socket2::SockRef::from(stream).set_tcp_keepalive(&keep_alive)
}
