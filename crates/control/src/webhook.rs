//! The admission webhook: new pods get their proxy from here.
//!
//! `POST /inject` takes an AdmissionReview of a pod and answers with a JSON patch ([`review`] holds
//! all of that, without IO). A pod is never kept from being created because of a proxy it cannot have:
//! it goes without, and whoever creates it is warned; only what is no pod at all is denied. Whoever
//! reaches the port may ask, so that nothing of a review is trusted, and everything bounded. The serving certificate makes itself, see
//! [`certificate`]. What is added to a pod is [`crate::inject`]'s.
//!
//! # Rights it needs
//!
//! | in | on | verbs | for |
//! |---|---|---|---|
//! | control namespace | `secrets`, name `mesh-webhook-cert` | get, list, watch, update | the certificate |
//! | control namespace | `secrets` | create | the same, the first time |
//! | cluster | `mutatingwebhookconfigurations` (`admissionregistration.k8s.io`), name `mesh-injector` | get, list, watch, patch | its `caBundle` |
//! | cluster | `namespaces` | get | namespaces that the source has not told of yet |
//! | cluster | `events` (`events.k8s.io`) | create, patch | what is wrong with a pod, on its owner |

pub mod certificate;
mod events;
mod namespaces;
pub mod review;
mod start;

use std::convert::Infallible;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use kube::Client;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use self::certificate::Serving;
use self::events::Events;
use self::review::{Asked, BadReview};
pub use self::start::{Config, start};
use crate::inject::{self, Outcome, Settings};
use crate::serve::places::Places;
use crate::state::Shared;

pub const PATH: &str = "/inject";

/// An object has 1.5 MiB at most, and a review may hold two.
const MAX_BODY: usize = 3 << 20;
/// Connections at a time; API servers keep a few each.
const MAX_CONNECTIONS: (usize, usize) = (256, 64);
/// Bodies in memory at a time, and those of one peer.
const MAX_BODIES: (usize, usize) = (64, 48);
/// Reviews that are read and answered at a time: a body can become thirty times as large.
const MAX_READ: usize = 4;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// API servers give up after 10 s.
const DEADLINE: Duration = Duration::from_secs(8);
const MAX_STREAMS: u32 = 64;
/// Before accepting again after an error such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers reviews.
pub struct Webhook {
    shared: Arc<Shared>,
    client: Client,
    settings: Box<dyn Fn() -> Option<Settings> + Send + Sync>,
    events: Events,
    bodies: Arc<Places>,
    reading: Semaphore,
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook").finish_non_exhaustive()
    }
}

impl Webhook {
    /// The settings are asked for each pod: trust roots change. `None`: they are not known yet.
    pub fn new(
        shared: Arc<Shared>,
        client: Client,
        settings: impl Fn() -> Option<Settings> + Send + Sync + 'static,
    ) -> Self {
        let events = Events::new(client.clone());
        let bodies = Places::new(MAX_BODIES.0, MAX_BODIES.1);
        let reading = Semaphore::new(MAX_READ);
        Self { shared, client, settings: Box::new(settings), events, bodies, reading }
    }

    /// Serves until dropped.
    pub async fn serve(self, listener: TcpListener, serving: Arc<Serving>) {
        let this = Arc::new(self);
        let places = Places::new(MAX_CONNECTIONS.0, MAX_CONNECTIONS.1);
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok((stream, peer)) => (stream, peer.ip()),
                Err(error) => {
                    tracing::warn!(%error, "the webhook cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // Before there is a certificate, connections are closed and the API server tries again.
            let Some(config) = serving.config() else { continue };
            if let Some(place) = places.take(peer) {
                let this = Arc::clone(&this);
                tokio::spawn(async move {
                    this.connection(stream, peer, config.into()).await;
                    drop(place);
                });
            }
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, peer: IpAddr, acceptor: TlsAcceptor) {
        let accepted = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await;
        let stream = match accepted {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%error, "a handshake with the webhook failed"),
            Err(_) => return,
        };
        let service = service_fn(move |request| {
            let this = Arc::clone(&self);
            async move { Ok::<_, Infallible>(this.respond(request, peer).await) }
        });
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let server = auto::Builder::new(TokioExecutor::new());
        // Finding it out from what comes would wait for ever for those who say nothing.
        let mut server = if is_http2 { server.http2_only() } else { server.http1_only() };
        server.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
        server
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .keep_alive_interval(HEAD_TIMEOUT)
            .keep_alive_timeout(HANDSHAKE_TIMEOUT);
        if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
            tracing::debug!(error, "a connection to the webhook failed");
        }
    }

    async fn respond(&self, request: Request<Incoming>, peer: IpAddr) -> Response<Full<Bytes>> {
        if request.uri().path() != PATH {
            return text(StatusCode::NOT_FOUND, "path: /inject\n");
        }
        if request.method() != Method::POST {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "POST only\n");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
            return response;
        }
        let json = request.headers().get(CONTENT_TYPE).is_some_and(|kind| {
            let kind = kind.to_str().unwrap_or_default().split(';').next().unwrap_or_default();
            kind.trim().eq_ignore_ascii_case("application/json")
        });
        if !json {
            return text(StatusCode::UNSUPPORTED_MEDIA_TYPE, "application/json only\n");
        }
        let Some(_place) = self.bodies.take(peer) else {
            return text(StatusCode::TOO_MANY_REQUESTS, "too many reviews at a time\n");
        };
        let answer = tokio::time::timeout(DEADLINE, self.answer(request.into_body())).await;
        answer.unwrap_or_else(|_| text(StatusCode::REQUEST_TIMEOUT, "it took too long\n"))
    }

    async fn answer(&self, body: Incoming) -> Response<Full<Bytes>> {
        let body = match Limited::new(body, MAX_BODY).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => {
                return text(StatusCode::PAYLOAD_TOO_LARGE, "larger than 3 MiB\n");
            }
            Err(_) => return text(StatusCode::BAD_REQUEST, "the body did not come whole\n"),
        };
        // It is never closed.
        let Ok(_turn) = self.reading.acquire().await else {
            return text(StatusCode::SERVICE_UNAVAILABLE, "ending\n");
        };
        let asked = match Asked::read(&body) {
            Ok(asked) => asked,
            Err(BadReview::NoReview(why)) => {
                tracing::warn!(why, "refused what is no AdmissionReview");
                return text(StatusCode::BAD_REQUEST, &format!("{why}\n"));
            }
            Err(BadReview::Answered(answer)) => return json_response(answer),
        };
        // What fails here is for the webhook's `failurePolicy` to judge.
        let Some(settings) = (self.settings)() else {
            let why = "the control plane has no trust roots yet; its log says why\n";
            return text(StatusCode::SERVICE_UNAVAILABLE, why);
        };
        let namespace = match self.namespace(&asked, &settings).await {
            Ok(namespace) => namespace,
            Err(error) => {
                tracing::warn!(%error, namespace = asked.namespace, "cannot read the namespace");
                let why = format!("cannot read namespace {}: {error}\n", asked.namespace);
                return text(StatusCode::SERVICE_UNAVAILABLE, &why);
            }
        };
        let outcome = inject::inject(&asked.meta, &asked.spec, &namespace, &settings);
        self.tell(&asked, &outcome);
        json_response(asked.answer(&outcome))
    }

    /// Logs, and tells the owner of the pod what is wrong.
    fn tell(&self, asked: &Asked, outcome: &Outcome) {
        let (namespace, pod) = (&asked.namespace, asked.shown_name());
        match outcome {
            Outcome::Injected(injection) => {
                let rule = &injection.rule;
                tracing::info!(namespace, pod, rule, dry_run = asked.dry_run, "injected");
            }
            Outcome::Skipped { reason } => tracing::debug!(namespace, pod, reason, "not injected"),
            Outcome::Refused { reason } => tracing::warn!(namespace, pod, reason, "not injected"),
        }
        let warnings = review::warnings(outcome);
        if !asked.dry_run && !warnings.is_empty() {
            self.events.warn(
                asked,
                matches!(outcome, Outcome::Refused { .. }),
                warnings.join("; "),
            );
        }
    }
}

fn text(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body.to_owned()));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}

fn json_response(body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
