//! Two hops with mTLS: a proxy beside the client and one beside the backend, plaintext outside, both on the proxies'
//! core. What differs is who the two are and what they speak to each other.

use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use anyhow::{Context, anyhow};

use super::certificates::Certificates;
use super::envoy::{self, Envoy};
use super::mesh::Secured;
use super::process::Process;
use super::{
    Hop, Proxy, Site, Skipped, Traffic, Watched, address_of, free_addr, linkerd, mesh, peers,
};

struct Pair {
    client: Command,
    server: Command,
    /// Where the one beside the backend takes connections.
    between: SocketAddr,
    authority: String,
    /// Where the client says whether it is secured; proxies without it serve nothing if they are not.
    admin: Option<SocketAddr>,
}

impl Site {
    /// Starts a pair and waits until it serves. `None` where it has no part in this kind of traffic.
    pub(crate) fn start_pair(
        &mut self,
        hop: Hop,
        traffic: Traffic,
    ) -> Result<Option<Proxy>, Skipped> {
        let listen = address_of(hop, traffic)?;
        let pair = match (hop, traffic) {
            (Hop::Direct, _) => return self.start(hop, traffic, Watched::No),
            (Hop::Splice | Hop::Nginx | Hop::Haproxy, _) => return Ok(None),
            // The same as another of this row.
            (Hop::FloorTcp, Traffic::Tcp) | (Hop::EnvoyH2, Traffic::Http2 | Traffic::Tcp) => {
                return Ok(None);
            }
            (Hop::Floor, _) => self.floor_pair(traffic, traffic, listen)?,
            (Hop::FloorTcp, _) => self.floor_pair(Traffic::Tcp, traffic, listen)?,
            (Hop::Envoy, _) => self.envoy_pair(traffic, traffic, listen)?,
            (Hop::EnvoyH2, _) => self.envoy_pair(traffic, Traffic::Http2, listen)?,
            (Hop::Linkerd, _) => self.linkerd_pair(traffic)?,
            (Hop::Mesh, _) => self.mesh_pair(traffic, listen)?,
        };
        let server_dir = self.next_dir(hop)?;
        let server = Process::start(pair.server, &server_dir, self.cores.proxy, self.cores.load)?;
        server.wait_until(|| Ok(TcpStream::connect(pair.between).map(drop)?))?;
        let client_dir = self.next_dir(hop)?;
        let client = Process::start(pair.client, &client_dir, self.cores.proxy, self.cores.load)?;
        let serves = client.wait_until_serving(traffic, listen, &pair.authority);
        serves.with_context(|| format!("behind it, {}", server.last_words()))?;
        pair.admin.map_or(Ok(()), mesh::ensure_secured)?;
        let processes = vec![client, server];
        Ok(Some(Proxy { addr: listen, authority: pair.authority, processes }))
    }

    /// `forwards` is what they look at, which may be less than what there is.
    fn floor_pair(
        &mut self,
        forwards: Traffic,
        traffic: Traffic,
        listen: SocketAddr,
    ) -> Result<Pair, Skipped> {
        let (between, upstream) = (free_addr()?, self.backend.of(traffic));
        let folder = self.certificates()?.folder();
        let mut client = peers::floor(forwards, listen, between);
        client.arg("tls-upstream").arg(folder);
        let mut server = peers::floor(forwards, between, upstream);
        server.arg("tls-accepted").arg(folder);
        Ok(Pair { client, server, between, authority: AUTHORITY.to_owned(), admin: None })
    }

    fn envoy_pair(
        &mut self,
        outside: Traffic,
        inside: Traffic,
        listen: SocketAddr,
    ) -> Result<Pair, Skipped> {
        let (between, upstream) = (free_addr()?, self.backend.of(outside));
        let (client_dir, server_dir) = (self.next_dir(Hop::Envoy)?, self.next_dir(Hop::Envoy)?);
        let certificates = self.certificates()?;
        let client = Envoy {
            listen,
            upstream: between,
            speaks: (outside, inside),
            secured: envoy::Secured::Upstream(certificates.certify("envoy", &client_dir)?),
        };
        let server = Envoy {
            listen: between,
            upstream,
            speaks: (inside, outside),
            secured: envoy::Secured::Accepted(certificates.certify("envoy", &server_dir)?),
        };
        let (client, server) = (client.command(&client_dir)?, server.command(&server_dir)?);
        Ok(Pair { client, server, between, authority: AUTHORITY.to_owned(), admin: None })
    }

    fn mesh_pair(&mut self, traffic: Traffic, listen: SocketAddr) -> Result<Pair, Skipped> {
        if self.secured_mesh.is_none() {
            let secured = Secured::apart(self.certificates()?);
            self.secured_mesh = Some(self.start_mesh(Some(secured))?);
        }
        let mesh = self.secured_mesh.as_ref().context("there is no control plane")?;
        let (server, between) = mesh.server(traffic)?;
        let (client, admin) = mesh.client(traffic, listen)?;
        let authority = mesh::authority(traffic);
        Ok(Pair { client, server, between, authority, admin: Some(admin) })
    }

    fn linkerd_pair(&mut self, traffic: Traffic) -> Result<Pair, Skipped> {
        let program = linkerd::program()?;
        let (client_dir, server_dir) = (self.next_dir(Hop::Linkerd)?, self.next_dir(Hop::Linkerd)?);
        if self.linkerd_mesh.is_none() {
            let pod = self.backend.http1.ip();
            let secured = Secured::beside(self.certificates()?, pod);
            self.linkerd_mesh = Some(self.start_mesh(Some(secured))?);
        }
        let mesh = self.linkerd_mesh.as_ref().context("there is no control plane")?;
        let (server, between) = linkerd::server(&program, mesh, &server_dir)?;
        let (client, admin) = linkerd::client(&program, mesh, &client_dir)?;
        let authority = mesh::authority(traffic);
        Ok(Pair { client, server, between, authority, admin: Some(admin) })
    }

    pub(super) fn certificates(&mut self) -> anyhow::Result<&Certificates> {
        if self.certificates.is_none() {
            let dir = self.dir.path().join("certificates");
            std::fs::create_dir(&dir)?;
            self.certificates = Some(Certificates::make(&dir)?);
        }
        self.certificates.as_ref().ok_or_else(|| anyhow!("there are no certificates"))
    }
}

const AUTHORITY: &str = "backend.bench";
