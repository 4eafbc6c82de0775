//! The two sides of a handshake between proxies.

use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::{Credentials, Reception, TRANSPORT_ALPN, Visitor, certificate};

/// No secure connection came about.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    #[error("TLS handshake: {0}")]
    Tls(#[from] io::Error),
    #[error("`{0}` cannot be asked for in a handshake")]
    ServerName(String),
    /// The peer is not whom the connection is for.
    #[error("the server is {got}, not {wanted}")]
    Identity { wanted: String, got: String },
    #[error("the peer's certificate has expired")]
    Expired,
    #[error("the peer's certificate names nobody")]
    Nameless,
}

/// A client that proved who it is.
#[derive(Debug)]
pub struct Accepted<Io> {
    pub io: TlsStream<Io>,
    /// Its identity.
    pub client: Arc<str>,
    /// Whether a transport header follows.
    pub transport: bool,
}

/// The server's side. Cancelling it closes the connection.
///
/// # Errors
/// When the client has no valid certificate of this mesh.
pub async fn accept<Io>(credentials: &Credentials, io: Io) -> Result<Accepted<Io>, HandshakeError>
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    let stream = TlsAcceptor::from(Arc::clone(&credentials.server)).accept(io).await?;
    let (_, session) = stream.get_ref();
    let client = client_of(session)?.ok_or(HandshakeError::Nameless)?;
    let transport = session.alpn_protocol() == Some(TRANSPORT_ALPN);
    Ok(Accepted { io: stream.into(), client, transport })
}

impl Reception {
    /// As [`accept`]; the identity is `None` for a client without a certificate.
    ///
    /// # Errors
    /// When the client has a certificate that is not a valid one of this mesh.
    pub async fn accept<Io>(
        &self,
        io: Io,
    ) -> Result<(TlsStream<Io>, Option<Arc<str>>), HandshakeError>
    where
        Io: AsyncRead + AsyncWrite + Unpin,
    {
        let stream = TlsAcceptor::from(Arc::clone(&self.server)).accept(io).await?;
        let client = client_of(stream.get_ref().1)?;
        Ok((stream.into(), client))
    }
}

fn client_of(session: &rustls::ServerConnection) -> Result<Option<Arc<str>>, HandshakeError> {
    let certificates = session.peer_certificates();
    if certificates.is_none() {
        return Ok(None);
    }
    let leaf = certificate::leaf(certificates).ok_or(HandshakeError::Nameless)?;
    // A resumed session was verified once; its certificate may have expired since.
    if leaf.not_after < SystemTime::now() {
        return Err(HandshakeError::Expired);
    }
    Ok(Some(leaf.id().ok_or(HandshakeError::Nameless)?.into()))
}

/// The client's side: asks for `server_name`, and takes only a server that proves `id` (a DNS name or
/// a URI among its names). With `transport`, a transport header is to follow.
///
/// # Errors
/// When the server is another, or of another mesh.
pub async fn connect<Io>(
    credentials: &Credentials,
    io: Io,
    id: &str,
    server_name: &str,
    transport: bool,
) -> Result<TlsStream<Io>, HandshakeError>
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    let config = if transport { &credentials.transport } else { &credentials.client };
    let stream = connect_with(config, io, id, server_name).await?;
    if transport && stream.get_ref().1.alpn_protocol() != Some(TRANSPORT_ALPN) {
        let refused = io::Error::new(io::ErrorKind::Unsupported, "it takes no transport header");
        return Err(refused.into());
    }
    Ok(stream)
}

impl Visitor {
    /// As [`connect`], to a [`Reception`].
    ///
    /// # Errors
    /// When the server is another, or of another mesh.
    pub async fn connect<Io>(&self, io: Io, id: &str) -> Result<TlsStream<Io>, HandshakeError>
    where
        Io: AsyncRead + AsyncWrite + Unpin,
    {
        connect_with(&self.client, io, id, id).await
    }
}

async fn connect_with<Io>(
    config: &Arc<rustls::ClientConfig>,
    io: Io,
    id: &str,
    server_name: &str,
) -> Result<TlsStream<Io>, HandshakeError>
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    let name = ServerName::try_from(server_name.to_owned());
    let name = name.map_err(|_| HandshakeError::ServerName(server_name.to_owned()))?;
    let stream = TlsConnector::from(Arc::clone(config)).connect(name, io).await?;
    let leaf = certificate::leaf(stream.get_ref().1.peer_certificates());
    let leaf = leaf.ok_or(HandshakeError::Nameless)?;
    if !leaf.proves(id) {
        let got = leaf.names.join(", ");
        return Err(HandshakeError::Identity { wanted: id.to_owned(), got });
    }
    if leaf.not_after < SystemTime::now() {
        return Err(HandshakeError::Expired);
    }
    Ok(stream.into())
}

#[cfg(test)]
mod tests;
