//! Asks many proxies at once, each with its own deadline.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use mesh_api::client::{ControlClient, channel};
use mesh_api::ext::proxy_client::ProxyClient;
use mesh_api::ext::{self, Unreachable};
use mesh_tls::Id;
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;
use tonic::Status;
use tonic::transport::Channel;

use crate::identity::own::Own;
use crate::index::identity::MeshNames;
use crate::index::object::{Name, Pod};
use crate::state::Shared;

/// Where a proxy listens for the control plane.
const CONTROL_PORT: u16 = 4190;
/// A proxy that has not answered by then is reported as not reachable.
const DEADLINE: Duration = Duration::from_secs(2);
/// Proxies asked at the same time.
const CONCURRENT: usize = 64;
/// A proxy's bounded tables stay far below.
const MAX_REPLY: usize = 32 << 20;

/// Where a proxy is, and who it must prove to be; `None`: it is asked in the clear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    addr: SocketAddr,
    id: Option<Id>,
}

/// What is needed to ask proxies.
#[derive(Clone, Debug)]
pub(super) struct Asker {
    port: u16,
    own: Own,
    names: Option<MeshNames>,
}

impl Asker {
    pub(super) fn new(shared: &Shared) -> Self {
        let names = shared.index.read().objects().identity().cloned();
        Self { port: CONTROL_PORT, own: shared.own.clone(), names }
    }

    /// Asks proxies at another port than theirs.
    #[cfg(test)]
    pub(super) fn with_port(self, port: u16) -> Self {
        Self { port, ..self }
    }

    /// On this machine proxies are asked in the clear, and elsewhere if the mesh has no identity.
    pub(super) fn place(&self, pod: &Pod) -> Option<Place> {
        let addr = SocketAddr::new(pod.ip?, self.port);
        let names = self.names.as_ref().filter(|_| !addr.ip().is_loopback());
        let id = names.and_then(|names| names.id(&pod.name.namespace, &pod.service_account));
        Some(Place { addr, id })
    }

    /// A client of a pod's proxy, not connected yet.
    pub(super) fn client(&self, place: Place) -> ProxyClient<Channel> {
        let Place { addr, id } = place;
        let channel = match id {
            None => ControlClient::lazy_channel(addr),
            Some(id) => {
                let own = self.own.clone();
                channel(move || connect(own.clone(), addr, id.clone()))
            }
        };
        ProxyClient::new(channel).max_decoding_message_size(MAX_REPLY)
    }
}

async fn connect(own: Own, addr: SocketAddr, id: Id) -> io::Result<TlsStream<TcpStream>> {
    let no_certificate = || io::Error::other("the control plane has no certificate yet");
    let held = own.held().ok_or_else(no_certificate)?;
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let connecting = mesh_tls::connect(&held.credentials, stream, id.as_str(), id.as_str(), false);
    connecting.await.map_err(io::Error::other)
}

/// What each pod's proxy answered, in no order.
pub(super) struct Answers<T> {
    pub(super) answers: Vec<(Arc<Pod>, T)>,
    pub(super) unreachable: Vec<Unreachable>,
}

/// Asks the proxies of `pods` that have one.
pub(super) async fn ask<T, F>(
    pods: Vec<Arc<Pod>>,
    asker: &Asker,
    question: impl Fn(&Arc<Pod>, ProxyClient<Channel>) -> F,
) -> Answers<T>
where
    F: Future<Output = Result<T, Status>>,
{
    let meshed = pods.into_iter().filter(|pod| pod.meshed() && pod.running);
    let asked = meshed.map(|pod| {
        let answer = asker.place(&pod).map(|place| question(&pod, asker.client(place)));
        async move {
            let answer = match answer {
                None => Err("it has no address".to_owned()),
                Some(answer) => match tokio::time::timeout(DEADLINE, answer).await {
                    Ok(answer) => answer.map_err(|status| reason(&status)),
                    Err(_) => Err(format!("no answer within {} s", DEADLINE.as_secs())),
                },
            };
            (pod, answer)
        }
    });
    let mut told = Answers { answers: Vec::new(), unreachable: Vec::new() };
    let mut asked = stream::iter(asked).buffer_unordered(CONCURRENT);
    while let Some((pod, answer)) = asked.next().await {
        match answer {
            Ok(answer) => told.answers.push((pod, answer)),
            Err(error) => told.unreachable.push(unreachable(&pod.name, error)),
        }
    }
    told.unreachable.sort_by(|a, b| (&a.namespace, &a.pod).cmp(&(&b.namespace, &b.pod)));
    told
}

/// The figures of the pods' proxies over a window.
pub(super) async fn stats(
    pods: Vec<Arc<Pod>>,
    asker: &Asker,
    window: u32,
) -> Answers<ext::StatsReply> {
    ask(pods, asker, |_, mut client| async move {
        let request = ext::StatsRequest { window_seconds: window };
        client.stats(request).await.map(tonic::Response::into_inner)
    })
    .await
}

pub(super) fn unreachable(pod: &Name, error: String) -> Unreachable {
    Unreachable { pod: pod.name.clone(), namespace: pod.namespace.clone(), error }
}

/// Why a call failed, in a line: the innermost cause says most.
pub(super) fn reason(status: &Status) -> String {
    let mut cause: &dyn std::error::Error = status;
    while let Some(source) = cause.source() {
        cause = source;
    }
    if std::ptr::addr_eq(cause, status as &dyn std::error::Error) {
        return status.message().to_owned();
    }
    cause.to_string()
}
