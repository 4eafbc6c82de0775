//! Connections that leave HTTP: WebSocket and CONNECT.

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use mesh_layers::Response;

use super::server::Server;
use crate::io::Io;

/// The client's side of an upgrade, to be joined with the server's once it agreed.
#[derive(Debug)]
pub(crate) struct Upgrade(OnUpgrade);

impl Upgrade {
    /// Takes the client's side out of a request.
    pub(crate) fn of<B>(request: &mut http::Request<B>) -> Self {
        Self(hyper::upgrade::on(request))
    }

    /// Relays bytes between both sides once the response has been sent. The task ends with either
    /// connection, or with `stop`.
    pub(crate) fn join(
        self,
        response: &mut Response,
        tasks: &Server,
        stop: impl Future<Output = ()> + Send + 'static,
    ) {
        let server = hyper::upgrade::on(response);
        tasks.spawn(async move {
            let (client, server) = match tokio::try_join!(self.0, server) {
                Ok(sides) => sides,
                Err(error) => return tracing::debug!(%error, "upgrade did not complete"),
            };
            let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
            let copied = crate::relay::relay_until(&mut client, &mut server, stop).await;
            tracing::debug!(?copied, "upgraded connection ended");
        });
    }

    /// The client's connection itself, after a successful CONNECT.
    pub(crate) async fn into_io(self) -> Result<Io, hyper::Error> {
        self.0.await.map(into_io)
    }
}

fn into_io(upgraded: Upgraded) -> Io {
    match upgraded.downcast::<TokioIo<Io>>() {
        Ok(parts) => {
            let mut io = parts.io.into_inner();
            io.unread(parts.read_buf);
            io
        }
        Err(_) => unreachable!("every client connection is served over `Io`"),
    }
}
