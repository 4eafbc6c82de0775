//! A request of somebody outside of the mesh: what he may not say is taken away, what servers should
//! know of him is put in, and what is for inside is not told him.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use http::{HeaderMap, Method};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use mesh_layers::{Body, BoxError, Request, Response, is_grpc};
use mesh_model::Reason;
use mesh_model::matching::host_of;
use mesh_model::route::Entrance;

use super::Gateway;
use super::certificates::Table;
use super::port::Port;
use crate::error::{Failure, MESH_REASON, MeshError};
use crate::http::forward;
use crate::http::server::Version;
use crate::outbound::TargetStack;

const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Headers that begin so are between proxies.
const OF_THE_MESH: [&str; 2] = ["l5d-", "x-mesh-"];
/// Headers that begin so, or are these, tell servers who a client is. Only the gateway knows.
const OF_PROXIES: [&str; 2] = ["x-forwarded-", "x-real-ip"];

/// A connection that requests come from.
#[derive(Debug)]
pub(super) struct Front {
    client: SocketAddr,
    port: u16,
    forwarded_for: HeaderValue,
    /// The listeners of TLS, and which one of them the client asked for.
    secured: Option<(Arc<Table>, Option<usize>)>,
}

impl Front {
    pub(super) fn new(
        client: SocketAddr,
        port: &Port,
        secured: Option<(Arc<Table>, Option<usize>)>,
    ) -> Self {
        let forwarded_for = HeaderValue::from_str(&client.ip().to_string());
        let forwarded_for = forwarded_for.unwrap_or_else(|_| HeaderValue::from_static("unknown"));
        Self { client, port: port.number, forwarded_for, secured }
    }

    /// Takes a request, or refuses it.
    fn admit(&self, request: &mut Request, max_body: u64) -> Result<(), MeshError> {
        if *request.method() == Method::CONNECT {
            let message = "this is no forward proxy";
            return Err(MeshError::new(Reason::BadRequest, message));
        }
        let host = forward::authority_of(request);
        if let Some((table, asked)) = &self.secured {
            let host = host.as_ref().map(|host| host_of(host.as_str()).to_owned());
            let meant = table.listener(Some(&host.unwrap_or_default()));
            if meant.is_some() && meant != *asked {
                // Another listener's requests may take another certificate, and other rules.
                let message = "the host is not the one that the connection was made for";
                return Err(MeshError::new(Reason::Misdirected, message));
            }
        }
        let length = request.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok());
        let length = length.and_then(|length| length.parse::<u64>().ok());
        if length.is_some_and(|length| length > max_body) && !is_grpc(request.headers()) {
            return Err(too_large(max_body));
        }
        self.tell(request.headers_mut(), host.as_ref());
        request.extensions_mut().insert(self.entrance());
        Ok(())
    }

    fn entrance(&self) -> Entrance {
        Entrance { secured: self.secured.is_some(), port: self.port }
    }

    /// Has servers know the client as the gateway does.
    fn tell(&self, headers: &mut HeaderMap, host: Option<&http::uri::Authority>) {
        remove_all(headers, |name| reads_as(name, &OF_THE_MESH) || reads_as(name, &OF_PROXIES));
        headers.remove(FORWARDED);
        headers.insert(X_FORWARDED_FOR, self.forwarded_for.clone());
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(self.entrance().scheme()));
        let host = host.and_then(|host| HeaderValue::from_str(host.as_str()).ok());
        if let Some(host) = host.or_else(|| headers.get(HOST).cloned()) {
            headers.insert(X_FORWARDED_HOST, host);
        }
    }
}

impl Gateway {
    /// One request with its response.
    pub(super) async fn request(
        self: Arc<Self>,
        front: Arc<Front>,
        version: Version,
        stack: Arc<TargetStack>,
        request: http::Request<Incoming>,
    ) -> Response {
        let max = self.edge.max_body_bytes;
        let mut request = request.map(Body::from);
        let grpc = is_grpc(request.headers());
        let limit = (!request.body().is_end_stream() && !grpc).then(Arc::<AtomicBool>::default);
        if let Some(exceeded) = limit.clone() {
            let body = std::mem::take(request.body_mut());
            *request.body_mut() = Body::boxed(Limited { body, left: max, max, exceeded });
        }
        let (client, port) = (front.client, front.port);
        let admit = move |request: &mut Request| front.admit(request, max);
        let outbound = Arc::clone(&self.outbound);
        let mut response = outbound.exchange(client, port, version, stack, request, admit).await;
        let exceeded = limit.is_some_and(|exceeded| exceeded.load(Relaxed));
        if exceeded && response.headers().contains_key(MESH_REASON) {
            // That a body failed is known by then, but not always why.
            response = Failure::of(&too_large(max).into()).response(grpc);
        }
        keep_inside(&mut response);
        response
    }
}

/// Takes out of a response what is for inside. Of what the mesh answered itself only the status is left.
fn keep_inside(response: &mut Response) {
    if response.headers().contains_key(MESH_REASON) {
        if response.headers().contains_key("grpc-status") {
            response.headers_mut().remove(GRPC_MESSAGE);
        } else {
            let status = response.status();
            let headers = response.headers_mut();
            headers.remove(CONTENT_LENGTH);
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
            *response.body_mut() = Body::full(format!("{status}\n"));
        }
    }
    remove_all(response.headers_mut(), |name| reads_as(name, &OF_THE_MESH));
}

fn reads_as(name: &HeaderName, prefixes: &[&str]) -> bool {
    prefixes.iter().any(|prefix| forward::reads_as_prefix(name, prefix))
}

fn remove_all(headers: &mut HeaderMap, is: impl Fn(&HeaderName) -> bool) {
    // Seldom any, so that a list of them costs nothing.
    let found: Vec<HeaderName> = headers.keys().filter(|name| is(name)).cloned().collect();
    for name in found {
        headers.remove(name);
    }
}

fn too_large(max: u64) -> MeshError {
    MeshError::new(Reason::BodyTooLarge, format!("the request's body is over {max} bytes"))
}

/// A body of so many bytes at most.
#[derive(Debug)]
struct Limited<B> {
    body: B,
    left: u64,
    max: u64,
    exceeded: Arc<AtomicBool>,
}

impl<B: HttpBody<Data = Bytes, Error = BoxError> + Unpin> HttpBody for Limited<B> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            let length = frame.data_ref().map_or(0, |data| data.len() as u64);
            match self.left.checked_sub(length) {
                Some(left) => self.left = left,
                None => {
                    self.exceeded.store(true, Relaxed);
                    return Poll::Ready(Some(Err(too_large(self.max).into())));
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    fn headers(list: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap())
        };
        list.iter().map(pair).collect()
    }

    #[test]
    fn servers_are_told_what_the_gateway_knows() {
        let front = Front {
            client: "192.0.2.1:5000".parse().unwrap(),
            port: 80,
            forwarded_for: HeaderValue::from_static("192.0.2.1"),
            secured: None,
        };
        let mut told = headers(&[
            ("host", "shop"),
            ("l5d-client-id", "admin"),
            ("x-mesh-any", "1"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-for", "10.0.0.2"),
            ("x-forwarded-user", "admin"),
            ("x-real-ip", "10.0.0.1"),
            ("forwarded", "for=10.0.0.1"),
            ("l5d_client_id", "admin"),
            ("x_mesh_any", "1"),
            ("x.mesh~any", "1"),
            ("x_forwarded_for", "10.0.0.1"),
            ("x-forwarded_for", "10.0.0.1"),
            ("x.forwarded.user", "admin"),
            ("x_real_ip", "10.0.0.1"),
            ("x-mine", "1"),
            ("x_forward", "1"),
        ]);
        front.tell(&mut told, None);
        let wanted = headers(&[
            ("host", "shop"),
            ("x-mine", "1"),
            ("x_forward", "1"),
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", "shop"),
        ]);
        assert_eq!(told, wanted);
    }

    #[tokio::test]
    async fn of_the_meshs_own_answers_the_status_is_left() {
        let failure = Failure { reason: Reason::NoEndpoints, message: "10.0.0.1 is down".into() };
        let mut response = failure.response(false);
        keep_inside(&mut response);
        let (head, body) = response.into_parts();
        assert_eq!(head.headers, headers(&[("content-type", "text/plain")]));
        let body = body.collect().await.unwrap().to_bytes();
        assert_eq!(body, "504 Gateway Timeout\n");

        let mut response = failure.response(true);
        keep_inside(&mut response);
        let wanted = headers(&[("content-type", "application/grpc"), ("grpc-status", "14")]);
        assert_eq!(*response.headers(), wanted);
    }

    #[tokio::test]
    async fn a_body_of_the_size_allowed_passes() {
        for (length, passes) in [(9, true), (10, true), (11, false)] {
            let exceeded = Arc::default();
            let body = Body::full(vec![b'x'; length]);
            let limited = Limited { body, left: 10, max: 10, exceeded: Arc::clone(&exceeded) };
            assert_eq!(limited.collect().await.is_ok(), passes, "{length}");
            assert_eq!(exceeded.load(Relaxed), !passes);
        }
    }
}
