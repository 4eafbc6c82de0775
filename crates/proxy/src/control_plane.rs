//! Where the control plane is, and connections to it.
//!
//! One on this machine is asked in the clear. Any other is asked over mTLS by a proxy that has an
//! identity: certificates by a visitor who has none yet, all else only with one.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use mesh_api::Workload;
use mesh_api::client::{ControlClient, channel};
use mesh_tls::{Id, Visitor};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use crate::identity::Identity;
use crate::resolve::Resolver;

/// `HOST:PORT`; a name is looked up for each connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlAddr {
    host: String,
    port: u16,
}

impl FromStr for ControlAddr {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WANTED: &str = "is not HOST:PORT, such as mesh-control.mesh-system.svc:8086";
        let authority: http::uri::Authority = text.parse().map_err(|_| WANTED)?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let port = authority.port_u16().filter(|port| *port > 0).ok_or(WANTED)?;
        if host.is_empty() || authority.as_str().contains('@') {
            return Err(WANTED);
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl From<SocketAddr> for ControlAddr {
    fn from(addr: SocketAddr) -> Self {
        Self { host: addr.ip().to_string(), port: addr.port() }
    }
}

impl fmt::Display for ControlAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.parse::<IpAddr>() {
            Ok(ip) => SocketAddr::new(ip, self.port).fmt(f),
            Err(_) => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl ControlAddr {
    fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
    }

    async fn connect(&self, resolver: &Resolver) -> io::Result<TcpStream> {
        let stream = resolver.connect(&self.host, self.port).await?;
        // Messages are small and somebody waits for each.
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// A control plane, asked by one proxy.
#[derive(Debug)]
pub(crate) struct ControlPlane<'a> {
    pub(crate) addr: &'a ControlAddr,
    pub(crate) workload: Workload,
    pub(crate) identity: &'a Identity,
    pub(crate) resolver: &'a Resolver,
}

impl ControlPlane<'_> {
    /// For all that a proxy may be told.
    pub(crate) fn client(&self) -> ControlClient {
        self.over(|secured| async move { secured.connect().await })
    }

    /// For getting certificates, with or without having one.
    pub(crate) fn visitor(&self) -> ControlClient {
        self.over(|secured| async move { secured.visit().await })
    }

    fn over<F>(&self, connect: impl Fn(Secured) -> F + Send + Sync + 'static) -> ControlClient
    where
        F: Future<Output = io::Result<TlsStream<TcpStream>>> + Send + 'static,
    {
        let (addr, resolver) = (self.addr.clone(), self.resolver.clone());
        let identity = self.identity.clone();
        let channel = match identity.control_plane().filter(|_| !addr.is_loopback()).cloned() {
            None => channel(move || {
                let (addr, resolver) = (addr.clone(), resolver.clone());
                async move { addr.connect(&resolver).await }
            }),
            Some(id) => channel(move || {
                let (addr, resolver) = (addr.clone(), resolver.clone());
                let (identity, id) = (identity.clone(), id.clone());
                connect(Secured { addr, resolver, identity, id })
            }),
        };
        ControlClient::new(channel, self.workload.clone())
    }
}

/// What a secured connection takes.
struct Secured {
    addr: ControlAddr,
    resolver: Resolver,
    identity: Identity,
    /// The control plane's.
    id: Id,
}

impl Secured {
    async fn connect(self) -> io::Result<TlsStream<TcpStream>> {
        self.identity.certified().await;
        let none = || io::Error::other("there is no certificate yet");
        let credentials = self.identity.credentials().ok_or_else(none)?;
        let (stream, id) = (self.addr.connect(&self.resolver).await?, self.id.as_str());
        let connecting = mesh_tls::connect(&credentials, stream, id, id, false);
        connecting.await.map_err(io::Error::other)
    }

    async fn visit(self) -> io::Result<TlsStream<TcpStream>> {
        let none = || io::Error::other("there is no trust bundle");
        let visitor = Visitor::new(&self.identity.bundle().ok_or_else(none)?);
        let stream = self.addr.connect(&self.resolver).await?;
        visitor.connect(stream, self.id.as_str()).await.map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_names_or_numbers_with_a_port() {
        for (text, loopback) in [
            ("127.0.0.1:8086", true),
            ("[::1]:8086", true),
            ("localhost:1", true),
            ("10.0.0.1:8086", false),
            ("mesh-control.mesh-system.svc.cluster.local:8086", false),
        ] {
            let addr: ControlAddr = text.parse().unwrap();
            assert_eq!((addr.to_string().as_str(), addr.is_loopback()), (text, loopback));
        }
        for text in ["", ":1", "host", "host:0", "host:x", "a@host:1", "http://host:1", "::1:80"] {
            assert!(text.parse::<ControlAddr>().is_err(), "{text}");
        }
    }
}
