//! `supervisor.sock`: every connection is a task that passes requests on to the loop, one at a time.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use tokio::io::BufReader;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::super::pod::PodKey;
use super::super::protocol::{self, Reply, Request};

/// More connections than this wait.
const MAX_CONNECTIONS: usize = 64;

/// What the loop is told.
#[derive(Debug)]
pub(super) enum Event {
    Request {
        request: Request,
        /// The pod this connection has joined.
        joined: Option<PodKey>,
        reply: oneshot::Sender<Reply>,
    },
    /// The connection that had joined this pod is gone.
    Left(PodKey),
    /// The control plane has said where services are.
    ClusterIps(BTreeMap<(String, String), IpAddr>),
}

/// Serves connections for ever.
pub(super) async fn accept(listener: UnixListener, events: mpsc::Sender<Event>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while let Ok(place) = places.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let events = events.clone();
                tokio::spawn(async move {
                    if let Err(error) = connection(stream, &events).await {
                        tracing::debug!(%error, "a connection of meshctl ended");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "can't accept a connection of meshctl");
                // Most likely there are no descriptors left; trying again at once would not help.
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(mut stream: UnixStream, events: &mpsc::Sender<Event>) -> io::Result<()> {
    let (read, mut write) = stream.split();
    let mut read = BufReader::new(read);
    let mut joined = None;
    let ended = converse(&mut read, &mut write, events, &mut joined).await;
    if let Some(pod) = joined {
        let _ = events.send(Event::Left(pod)).await;
    }
    ended
}

async fn converse(
    read: &mut (impl tokio::io::AsyncBufRead + Unpin),
    write: &mut (impl tokio::io::AsyncWrite + Unpin),
    events: &mpsc::Sender<Event>,
    joined: &mut Option<PodKey>,
) -> io::Result<()> {
    while let Some(request) = protocol::read::<Request>(read).await? {
        let namespace = match &request {
            Request::Join(join) => Some(join.namespace.clone()),
            _ => None,
        };
        let (reply, answer) = oneshot::channel();
        let event = Event::Request { request, joined: joined.clone(), reply };
        events.send(event).await.map_err(io::Error::other)?;
        let answer = answer.await.map_err(io::Error::other)?;
        if let (Some(namespace), Reply::Joined(pod)) = (namespace, &answer) {
            *joined = Some(PodKey { namespace, name: pod.pod.clone() });
        }
        protocol::write(write, &answer).await?;
    }
    Ok(())
}
