//! Connections of proxies over TLS, and what each of them may ask.
//!
//! A proxy without a certificate gets its first one here, so that it is let in, but no further than
//! that: all else is for proxies of this mesh.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{BoxFuture, Either, FutureExt, TryFutureExt, ready};
use http::{Request, Response};
use http_body_util::BodyExt;
use mesh_tls::WorkloadId;
use tokio::io::{self, AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::body::Body;
use tonic::transport::server::Connected;
use tower::{Layer, Service};

use super::places::{Place, Places};
use crate::identity::own::Own;
use crate::index::identity::MeshNames;

/// Handshakes at a time, and those of one peer; who comes then is closed and tries again.
const HANDSHAKES: (usize, usize) = (512, 8);
/// Connections at a time, and those of one peer: a proxy has two.
const CONNECTIONS: (usize, usize) = (50_000, 16);
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Answers under way at a time on a connection of somebody without a certificate, who needs two.
const FOR_A_VISITOR: usize = 8;
/// Before accepting again after an error of the listener, such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// What those may ask who have no certificate.
const FOR_ANYONE: [&str; 2] =
    ["/io.linkerd.proxy.identity.Identity/Certify", "/mesh.ext.v1.Extensions/WatchTrustBundle"];

/// A secured connection.
#[derive(Debug)]
pub(super) struct Secured {
    stream: TlsStream<TcpStream>,
    client: Client,
    _place: Place,
    /// It was refused something, and the answer is on its way.
    answered: bool,
    over: bool,
}

/// Who is at the other end.
#[derive(Clone, Debug)]
pub(super) struct Client {
    /// Nobody known if there is none.
    id: Option<Arc<str>>,
    /// It asked for what needs a certificate. The connection ends with that answer: whoever has a certificate by now
    /// shows it on the next one. A linkerd2-proxy would ask on this one for ever, which it opened before it had any.
    refused: Arc<AtomicBool>,
    /// For answers, if nobody is known.
    places: Arc<Semaphore>,
}

impl Client {
    fn new(id: Option<Arc<str>>) -> Self {
        Self { id, refused: Arc::default(), places: Arc::new(Semaphore::new(FOR_A_VISITOR)) }
    }
}

impl Secured {
    fn new(stream: TlsStream<TcpStream>, id: Option<Arc<str>>, place: Place) -> Self {
        Self { stream, client: Client::new(id), _place: place, answered: false, over: false }
    }
}

/// Connections whose handshake is done. Accepting ends when nobody reads them any more.
pub(super) fn incoming(
    listener: TcpListener,
    own: Own,
    mesh: MeshNames,
) -> ReceiverStream<Result<Secured, io::Error>> {
    let (accepted, incoming) = mpsc::channel(1);
    tokio::spawn(async move {
        tokio::select! {
            () = accept(listener, own, mesh, accepted.clone()) => {}
            () = accepted.closed() => {}
        }
    });
    ReceiverStream::new(incoming)
}

async fn accept(
    listener: TcpListener,
    own: Own,
    mesh: MeshNames,
    accepted: mpsc::Sender<io::Result<Secured>>,
) {
    let handshakes = Places::new(HANDSHAKES.0, HANDSHAKES.1);
    let connections = Places::new(CONNECTIONS.0, CONNECTIONS.1);
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(connection) => connection,
            Err(error) => {
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Some(held) = own.held() else {
            tracing::warn!(%peer, "turned away: there is no issuer yet");
            continue;
        };
        let places = (handshakes.take(peer.ip()), connections.take(peer.ip()));
        let (Some(handshake), Some(place)) = places else {
            tracing::warn!(%peer, "turned away: too many connections");
            continue;
        };
        let (accepted, mesh) = (accepted.clone(), mesh.clone());
        tokio::spawn(async move {
            // Messages are small and somebody waits for each.
            let _ = stream.set_nodelay(true);
            match tokio::time::timeout(HANDSHAKE, held.reception.accept(stream)).await {
                Ok(Ok((stream, client))) => {
                    let client = client.filter(|id| is_of(id, &mesh));
                    // The receiver is gone when the server ends.
                    let _ = accepted.send(Ok(Secured::new(stream, client, place))).await;
                }
                Ok(Err(error)) => tracing::info!(%peer, %error, "no secure connection"),
                Err(_) => {
                    tracing::info!(%peer, "no secure connection: the handshake took too long")
                }
            }
            drop(handshake);
        });
    }
}

/// Whether an identity is one of this mesh: others may have the same root.
fn is_of(id: &str, mesh: &MeshNames) -> bool {
    let parts = id.parse().ok().and_then(|id| WorkloadId::of(&id));
    parts.is_some_and(|parts| {
        parts.control_namespace == mesh.control_namespace && parts.trust_domain == mesh.trust_domain
    })
}

impl Connected for Secured {
    type ConnectInfo = Client;

    fn connect_info(&self) -> Client {
        self.client.clone()
    }
}

impl AsyncRead for Secured {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.over {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Secured {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.answered |= polled.is_ready() && self.client.refused.load(Relaxed);
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        if polled.is_ready() && self.answered && !self.over {
            self.over = true;
            // The same task reads.
            cx.waker().wake_by_ref();
        }
        polled
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Answers only those who proved who they are, but for [`FOR_ANYONE`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Guard;

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Guarded<S> {
    inner: S,
}

impl<S, B> Service<Request<B>> for Guarded<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<S::Future, BoxFuture<'static, Result<Response<Body>, Infallible>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let client = request.extensions().get::<Client>();
        let Some(client) = client.filter(|client| client.id.is_none()) else {
            return Either::Left(self.inner.call(request));
        };
        let refused = |status: Status| Either::Right(ready(Ok(status.into_http())).boxed());
        if !FOR_ANYONE.contains(&request.uri().path()) {
            client.refused.store(true, Relaxed);
            return refused(Status::unauthenticated("a client certificate of this mesh is needed"));
        }
        let Ok(place) = Arc::clone(&client.places).try_acquire_owned() else {
            let why = "too many requests at a time without a client certificate";
            return refused(Status::resource_exhausted(why));
        };
        let answer = self.inner.call(request);
        // A watch is under way for as long as its body is.
        let answer = answer.map_ok(|answer| {
            answer.map(|body| Body::new(body.map_frame(move |frame| held(&place, frame))))
        });
        Either::Right(answer.boxed())
    }
}

/// What is held is there until all frames are.
fn held<T>(_place: &OwnedSemaphorePermit, frame: T) -> T {
    frame
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use mesh_api::Workload;
    use mesh_api::client::{ControlClient, channel};
    use mesh_api::server::control_plane_routes;
    use mesh_model::Target;
    use mesh_tls::{Key, Root, TrustBundle, Visitor};
    use tonic::Code;
    use tonic::transport::Server;

    use super::*;
    use crate::identity::Authority;
    use crate::identity::folder::Loaded;
    use crate::identity::tokens::{TokenError, Tokens};
    use crate::identity::{Origin, Settings};
    use crate::index::authz::Defaults;
    use crate::index::object::Name;
    use crate::services::Control;
    use crate::state::Shared;

    /// Takes every token for one of `shop/web`.
    #[derive(Debug)]
    struct Trusting;

    impl Tokens for Trusting {
        fn owner<'a>(
            &'a self,
            _: &'a str,
        ) -> futures_util::future::BoxFuture<'a, Result<Name, TokenError>> {
            Box::pin(ready(Ok(Name::new("shop", "web"))))
        }
    }

    #[test]
    fn another_mesh_below_the_same_root_is_a_stranger() {
        let mesh = MeshNames::default();
        let id = |rest: &str| format!("web.shop.serviceaccount.identity.{rest}");
        assert!(is_of(&id("mesh-system.cluster.local"), &mesh));
        for other in [id("mesh-system.example.org"), id("other.cluster.local"), "web".into()] {
            assert!(!is_of(&other, &mesh), "{other}");
        }
    }

    #[tokio::test]
    async fn a_visitor_gets_a_certificate_and_nothing_else() {
        const HOUR: Duration = Duration::from_secs(3600);
        let root = Root::generate("test", 10 * HOUR, 5 * HOUR).unwrap();
        let names = MeshNames {
            control_namespace: "mesh-system".into(),
            trust_domain: "cluster.local".into(),
        };
        let (web, control) = (names.id("shop", "web").unwrap(), names.control_plane().unwrap());
        let shared = Arc::new(Shared::new(Defaults::default(), Some(names.clone())));
        let mesh = names.clone();
        let settings = Settings { origin: Origin::Secret, names, lifetime: HOUR };
        let authority = Arc::new(Authority::new(settings, Box::new(Trusting)));
        let issuer = mesh_tls::Issuer::from_pem(&root.issuer, &root.issuer_key).unwrap();
        authority.install(Loaded { issuer, roots: root.root.clone() });
        let own = Own::default();
        tokio::spawn(own.clone().keep(Arc::clone(&authority)));
        own.certified().await;

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let routes = control_plane_routes(Control::new(shared, Some(authority)));
        let server = Server::builder().layer(Guard).add_routes(routes);
        let serving = tokio::spawn(server.serve_with_incoming(incoming(listener, own, mesh)));

        let bundle = TrustBundle::from_pem(&root.root).unwrap();
        let visitor = Visitor::new(&bundle);
        let id = control.to_string();
        let visit = move || {
            let (visitor, id) = (visitor.clone(), id.clone());
            async move {
                let stream = TcpStream::connect(addr).await?;
                visitor.connect(stream, &id).await.map_err(io::Error::other)
            }
        };
        let visiting = ControlClient::new(channel(visit.clone()), Workload::default());
        visiting.watch_trust_bundle().await.map(drop).unwrap();
        let watches: Vec<_> = {
            let watch = || visiting.watch_trust_bundle();
            futures_util::future::join_all((0..=FOR_A_VISITOR).map(|_| watch())).await
        };
        let full = watches.iter().filter_map(|watch| watch.as_ref().err()).map(Status::code);
        assert_eq!(full.collect::<Vec<_>>(), [Code::ResourceExhausted]);
        drop(watches);
        let key = Key::generate();
        let certified = visiting.certify(web.as_str(), "token", key.request(&web)).await.unwrap();

        let chain: Vec<_> = [vec![certified.leaf], certified.intermediates].concat();
        let credentials = mesh_tls::Credentials::new(&web, &key, &chain, &bundle).unwrap();
        let credentials = Arc::new(credentials);
        // The first connection is of somebody without a certificate, as a linkerd2-proxy's.
        let connections = Arc::new(AtomicU32::new(0));
        let opened = Arc::clone(&connections);
        let known = channel(move || {
            let (credentials, id) = (Arc::clone(&credentials), control.to_string());
            let (first, visit) = (opened.fetch_add(1, Relaxed) == 0, visit());
            async move {
                if first {
                    return visit.await;
                }
                let stream = TcpStream::connect(addr).await?;
                let connecting = mesh_tls::connect(&credentials, stream, &id, &id, false);
                connecting.await.map_err(io::Error::other)
            }
        });
        let known = ControlClient::new(known, Workload::default());
        let target = Target::Authority("tax.shop:80".into());
        let refused = known.watch_outbound(&target).await.map(drop).unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
        // What is asked while that connection ends may be lost with it.
        let missing = loop {
            let missing = known.watch_outbound(&target).await.map(drop).unwrap_err();
            if connections.load(Relaxed) > 1 && missing.code() != Code::Unauthenticated {
                break missing;
            }
        };
        assert_eq!(missing.code(), Code::NotFound, "asked and answered");
        serving.abort();
    }
}
