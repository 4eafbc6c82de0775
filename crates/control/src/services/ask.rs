//! Asks many proxies at once, each with its own deadline.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use mesh_api::client::ControlClient;
use mesh_api::ext::proxy_client::ProxyClient;
use mesh_api::ext::{self, Unreachable};
use tonic::Status;
use tonic::transport::Channel;

use crate::index::object::{Name, Pod};

/// Where a proxy listens for the control plane.
pub(super) const CONTROL_PORT: u16 = 4190;
/// A proxy that has not answered by then is reported as not reachable.
const DEADLINE: Duration = Duration::from_secs(2);
/// Proxies asked at the same time.
const CONCURRENT: usize = 64;
/// A proxy's bounded tables stay far below.
const MAX_REPLY: usize = 32 << 20;

/// A client of one pod's proxy, not connected yet.
pub(super) fn proxy(ip: IpAddr, port: u16) -> ProxyClient<Channel> {
    let channel = ControlClient::lazy_channel(SocketAddr::new(ip, port));
    ProxyClient::new(channel).max_decoding_message_size(MAX_REPLY)
}

/// What each pod's proxy answered, in no order.
pub(super) struct Answers<T> {
    pub(super) answers: Vec<(Arc<Pod>, T)>,
    pub(super) unreachable: Vec<Unreachable>,
}

/// Asks the proxies of `pods` that have one.
pub(super) async fn ask<T, F>(
    pods: Vec<Arc<Pod>>,
    port: u16,
    question: impl Fn(ProxyClient<Channel>) -> F,
) -> Answers<T>
where
    F: Future<Output = Result<T, Status>>,
{
    let meshed = pods.into_iter().filter(|pod| pod.meshed() && pod.running);
    let asked = meshed.map(|pod| {
        let answer = pod.ip.map(|ip| question(proxy(ip, port)));
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
pub(super) async fn stats(pods: Vec<Arc<Pod>>, port: u16, window: u32) -> Answers<ext::StatsReply> {
    ask(pods, port, |mut client| async move {
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
