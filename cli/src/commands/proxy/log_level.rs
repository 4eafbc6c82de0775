//! A proxy's log filter, at its admin port.

use std::future::Future;
use std::time::Duration;

use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::pod::Pod;
use crate::cluster::Cluster;
use crate::error::CliError;

const ADMIN_PORT: u16 = 4191;
const DEADLINE: Duration = Duration::from_secs(3);

/// Shows the filter, or sets it to `value`; the answer is a line for the user.
///
/// In a cluster the way to the port is a port-forward: it is on the pod's loopback, or out of our network's reach.
pub(super) async fn ask(
    pod: &Pod,
    value: Option<String>,
    cluster: Option<&Cluster>,
) -> Result<String, CliError> {
    let stream: Box<dyn Stream> = match cluster {
        Some(cluster) => Box::new(cluster.forward(&pod.namespace, &pod.name, ADMIN_PORT).await?),
        None => {
            let connecting = TcpStream::connect((pod.ip.as_str(), ADMIN_PORT));
            let connected = tokio::time::timeout(DEADLINE, connecting).await;
            let connected = connected.map_err(|_| unreachable(pod, &late()))?;
            Box::new(connected.map_err(|error| unreachable(pod, &error.to_string()))?)
        }
    };

    let set = value.clone();
    let exchange = async {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| e.to_string())?;
        let method = if value.is_some() { Method::PUT } else { Method::GET };
        let request = Request::builder()
            .method(method)
            .uri("/proxy-log-level")
            .header("host", pod.ip.as_str())
            .body(Full::new(Bytes::from(value.unwrap_or_default())))
            .map_err(|e| e.to_string())?;
        let answered = async {
            let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
            let status = response.status();
            let body = response.into_body().collect().await.map_err(|e| e.to_string())?.to_bytes();
            Ok::<_, String>((status, String::from_utf8_lossy(&body).trim().to_owned()))
        };
        alongside(connection, answered).await
    };
    match tokio::time::timeout(DEADLINE, exchange).await {
        Err(_) => Err(unreachable(pod, &late())),
        Ok(Err(why)) => Err(unreachable(pod, &why)),
        Ok(Ok((status, text))) if status.is_success() => Ok(match set {
            Some(set) => format!("{}/{}: {set}", pod.namespace, pod.name),
            None => text,
        }),
        Ok(Ok((_, text))) => {
            Err(CliError::usage(format!("the proxy refuses this log level: {text}"))
                .hint("a level such as debug, or a filter such as info,mesh_proxy=debug"))
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

fn late() -> String {
    format!("no answer within {} s", DEADLINE.as_secs())
}

fn unreachable(pod: &Pod, why: &str) -> CliError {
    CliError::unreachable(format!(
        "the admin port of {}/{} does not answer: {why}",
        pod.namespace, pod.name
    ))
    .hint("meshctl proxy status")
}

/// Drives a connection until the exchange on it is done.
async fn alongside<T>(connection: impl Future, exchange: impl Future<Output = T>) -> T {
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        _ = connection => exchange.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_nobody_listens_on_is_unreachable() {
        let pod =
            Pod { namespace: "shop".into(), name: "web-1".into(), ip: "127.254.254.253".into() };
        let error = ask(&pod, None, None).await.unwrap_err();
        assert_eq!(error.kind, crate::error::Kind::Unreachable);
        assert!(error.message.contains("shop/web-1"), "{}", error.message);
    }
}
