//! Opening connections, secured where the other side is of the mesh, with a time limit and a name for
//! each way it can fail.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use mesh_model::Reason;
use mesh_model::endpoint::TlsIdentity;
use mesh_tls::{HandshakeError, TransportHeader};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tracing::Instrument;

use crate::identity::Identity;
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
    /// With whom to shake hands; `None` stays in the clear.
    pub(crate) secure: Option<Secure>,
}

/// The proxy at the other side, and this one.
#[derive(Clone, Debug)]
pub(crate) struct Secure {
    pub(crate) peer: TlsIdentity,
    pub(crate) ours: Identity,
    /// Where the other proxy takes bytes with a transport header.
    pub(crate) direct_port: Option<u16>,
    /// The same for the own pod, to which nothing is redirected: all goes there.
    pub(crate) own_port: Option<u16>,
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
        if let Some(port) = self.secure.as_ref().and_then(|secure| secure.own_port) {
            return self.open_direct(port).await;
        }
        let mut tried = self.addrs.iter();
        let mut addr = *tried.next().expect("an address to connect to");
        loop {
            match self.open_one(addr, None).await {
                Ok(io) => return Ok(io),
                Err(error) => match tried.next() {
                    Some(next) if error.reason == Reason::ConnectRefused => addr = *next,
                    _ => return Err(error),
                },
            }
        }
    }

    /// The same for a connection that carries bytes of no known protocol: the other proxy is told the
    /// port and need not find out what they are.
    ///
    /// # Errors
    /// Of the last address tried.
    pub(crate) async fn open_bytes(&self) -> Result<Io, ConnectError> {
        let direct_port = self.secure.as_ref().and_then(|secure| secure.direct_port);
        match direct_port {
            Some(port) => self.open_direct(port).await,
            None => self.open().await,
        }
    }

    async fn open_direct(&self, direct_port: u16) -> Result<Io, ConnectError> {
        let addr = self.addrs[0];
        let header = TransportHeader { port: addr.port(), name: String::new(), protocol: None };
        self.open_one(SocketAddr::new(addr.ip(), direct_port), Some(header)).await
    }

    async fn open_one(
        &self,
        addr: SocketAddr,
        header: Option<TransportHeader>,
    ) -> Result<Io, ConnectError> {
        let failed = |reason, source| ConnectError { addr, reason, source };
        let opening = async {
            let span = tracing::debug_span!("connect", %addr);
            let tcp = connect(addr, self.bind_ip).instrument(span).await.map_err(|error| {
                let refused = error.kind() == io::ErrorKind::ConnectionRefused;
                let reason = if refused { Reason::ConnectRefused } else { Reason::ConnectFailed };
                failed(reason, error)
            })?;
            let io = Io::new(tcp, self.transport.open());
            match &self.secure {
                None => Ok(io),
                Some(secure) => {
                    let secured = secure.shake(io, header);
                    let secured = secured.instrument(tracing::debug_span!("connect.tls")).await;
                    secured.map_err(|(reason, error)| failed(reason, error))
                }
            }
        };
        tokio::time::timeout(self.timeout, opening).await.unwrap_or_else(|_| {
            let after = format!("no answer within {:?}", self.timeout);
            Err(failed(Reason::ConnectTimeout, io::Error::new(io::ErrorKind::TimedOut, after)))
        })
    }
}

impl Secure {
    async fn shake(
        &self,
        io: Io,
        header: Option<TransportHeader>,
    ) -> Result<Io, (Reason, io::Error)> {
        let Some(credentials) = self.ours.credentials() else {
            let error = io::Error::other("this proxy has no certificate yet");
            return Err((Reason::IdentityPending, error));
        };
        let TlsIdentity { id, server_name } = &self.peer;
        let shaking = mesh_tls::connect(&credentials, io, id, server_name, header.is_some());
        let tls = shaking.await.map_err(|error| {
            let reason = match &error {
                HandshakeError::Identity { .. } => Reason::IdentityMismatch,
                _ => Reason::TlsFailed,
            };
            (reason, io::Error::other(error))
        })?;
        let mut io = Io::secured(tls);
        if let Some(header) = header {
            let sent = io.write_all(&header.encode()).await;
            sent.map_err(|error| (Reason::TlsFailed, error))?;
            io.flush().await.map_err(|error| (Reason::TlsFailed, error))?;
        }
        Ok(io)
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
