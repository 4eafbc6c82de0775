//! Filters of a rule or backend: header changes, redirects, rewrites, copies, CORS, and faults.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures_util::future::{Either, Ready, ready};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use mesh_layers::{Body, BoxError, Request, Response, ResponseFuture};
use mesh_model::Reason;
use mesh_model::route::{
    Entrance, FailureInjector, Fault, FaultKind, Filter, InjectedFailure, Redirect, Rewrite,
};
use tower::{Layer, Service};

use super::mirror::Mirror;
use crate::draws::Deck;
use crate::error::{Failure, MeshError};

/// The path prefix that the matching rule matched, for filters that replace it.
#[derive(Clone, Debug)]
pub(crate) struct MatchedPrefix(pub(crate) Arc<str>);

/// A filter, ready for use.
#[derive(Debug)]
pub(crate) enum Apply {
    Filter(Filter, Deck),
    Mirror(Mirror),
}

impl Apply {
    pub(crate) fn filter(filter: Filter) -> Self {
        Self::Filter(filter, Deck::default())
    }
}

/// Applies filters in their order. Not to be used without any: it is then only a cost.
#[derive(Clone, Debug)]
pub(crate) struct FilterLayer(Arc<[Apply]>);

impl FilterLayer {
    /// `None` without filters.
    pub(crate) fn new(filters: Vec<Apply>) -> Option<Self> {
        (!filters.is_empty()).then(|| Self(filters.into()))
    }
}

impl<S> Layer<S> for FilterLayer {
    type Service = Filtered<S>;

    fn layer(&self, inner: S) -> Filtered<S> {
        Filtered { inner, filters: Arc::clone(&self.0) }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Filtered<S> {
    inner: S,
    filters: Arc<[Apply]>,
}

impl<S> Service<Request> for Filtered<S>
where
    S: Service<Request, Response = Response, Error = BoxError> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = BoxError;
    type Future = Either<Ready<Result<Response, BoxError>>, ResponseFuture>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        let mut delay = Duration::ZERO;
        // Whatever ends the request: a browser shows no answer without the headers of CORS.
        let shares = |filter: &Apply| matches!(filter, Apply::Filter(Filter::Cors(_), _));
        let origin = match self.filters.iter().any(shares) {
            true => request.headers().get(header::ORIGIN).cloned(),
            false => None,
        };
        for filter in &*self.filters {
            let done = match filter {
                Apply::Mirror(mirror) => {
                    mirror.copy(&mut request);
                    Ok(Done::Nothing)
                }
                Apply::Filter(filter, deck) => apply(filter, &mut request, || deck.next()),
            };
            match done {
                Ok(Done::Nothing) => {}
                Ok(Done::Delay(by)) => delay += by,
                // The answer to a preflight has all that it needs.
                Ok(Done::Answer(response))
                    if matches!(filter, Apply::Filter(Filter::Cors(_), _)) =>
                {
                    return Either::Left(ready(Ok(response)));
                }
                Ok(Done::Answer(response)) => {
                    return Either::Left(ready(Ok(after(
                        &self.filters,
                        origin.as_ref(),
                        response,
                    ))));
                }
                Err(error) => return Either::Left(ready(Err(error.into()))),
            }
        }
        let filters = Arc::clone(&self.filters);
        if delay > Duration::ZERO {
            let mut inner = self.inner.clone();
            return Either::Right(Box::pin(async move {
                tokio::time::sleep(delay.min(Fault::MAX_DELAY)).await;
                Ok(after(&filters, origin.as_ref(), inner.call(request).await?))
            }));
        }
        let call = self.inner.call(request);
        Either::Right(Box::pin(async move { Ok(after(&filters, origin.as_ref(), call.await?)) }))
    }
}

/// What filters do to a response. `origin` is the request's.
fn after(filters: &[Apply], origin: Option<&HeaderValue>, mut response: Response) -> Response {
    for filter in filters {
        match filter {
            Apply::Filter(Filter::ResponseHeaders(change), _) => {
                change.apply(response.headers_mut())
            }
            Apply::Filter(Filter::Cors(cors), _) => {
                let request = origin.map(|origin| (header::ORIGIN, origin.clone()));
                let request: HeaderMap = request.into_iter().collect();
                cors.respond(&request, response.headers_mut());
            }
            _ => {}
        }
    }
    response
}

/// What a filter did before a request goes on.
#[derive(Debug)]
pub(crate) enum Done {
    Nothing,
    Delay(Duration),
    /// The request ends here.
    Answer(Response),
}

/// What filters without delays do before a request goes on; a response ends it here.
pub(crate) fn before(
    filters: &[Filter],
    request: &mut Request,
) -> Result<Option<Response>, MeshError> {
    for filter in filters {
        if let Done::Answer(response) = apply(filter, request, rand::random)? {
            return Ok(Some(response));
        }
    }
    Ok(None)
}

fn apply(
    filter: &Filter,
    request: &mut Request,
    draw: impl Fn() -> u32,
) -> Result<Done, MeshError> {
    match filter {
        Filter::RequestHeaders(change) => change.apply(request.headers_mut()),
        Filter::Redirect(redirect) => return redirect_to(redirect, request).map(Done::Answer),
        Filter::Rewrite(rewrite) => rewrite_to(rewrite, request)?,
        Filter::Fail(fault) if fault.ratio.covers(draw()) => {
            return Ok(Done::Answer(injected(fault, request)));
        }
        Filter::Fault(fault) => return Ok(hit(fault, request, draw)),
        Filter::Cors(cors) => {
            if let Some(headers) = cors.preflight(request.method(), request.headers()) {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::NO_CONTENT;
                *response.headers_mut() = headers;
                return Ok(Done::Answer(response));
            }
        }
        Filter::Fail(_) | Filter::ResponseHeaders(_) | Filter::Mirror(_) => {}
    }
    Ok(Done::Nothing)
}

pub(super) fn hit(fault: &Fault, request: &Request, draw: impl Fn() -> u32) -> Done {
    let now = SystemTime::now();
    let means = fault.means(request.uri(), request.headers(), now);
    // Those that are not meant are no part of the share.
    if !means || !fault.ratio.covers(draw()) {
        return Done::Nothing;
    }
    match fault.kind {
        // None is held up for longer than there is a fault.
        FaultKind::Delay(delay) => {
            let left = fault.until.map(|until| until.duration_since(now).unwrap_or_default());
            Done::Delay(left.map_or(delay, |left| delay.min(left)))
        }
        FaultKind::Abort(failure) => {
            let message = format!("a fault injected by {}", fault.meta);
            let ratio = fault.ratio;
            Done::Answer(injected(&FailureInjector { failure, message, ratio }, request))
        }
    }
}

fn rewrite_to(rewrite: &Rewrite, request: &mut Request) -> Result<(), MeshError> {
    if let Some(path) = &rewrite.path {
        let matched = request.extensions().get::<MatchedPrefix>().map_or("/", |p| &p.0);
        let path = path.replace(request.uri().path(), matched);
        let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
        let path: PathAndQuery = format!("{path}{query}").parse().map_err(|_| {
            MeshError::new(Reason::BadRequest, "cannot rewrite: the new path is not one")
        })?;
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.path_and_query = Some(path);
        *request.uri_mut() = Uri::from_parts(parts).map_err(|_| {
            MeshError::new(Reason::BadRequest, "cannot rewrite: the new location is not a URI")
        })?;
    }
    if let Some(host) = rewrite.host.as_ref().and_then(|host| host.to_str().ok()) {
        super::forward::set_authority(request, host);
    }
    Ok(())
}

/// The injected failure: the rule's own status in either protocol, with our reason.
fn injected(fault: &FailureInjector, request: &Request) -> Response {
    let message = match fault.message.is_empty() {
        true => "a fault injected by the route".to_owned(),
        false => fault.message.clone(),
    };
    let failure = Failure { reason: Reason::FaultInjected, message };
    let mut response = failure.response(mesh_layers::is_grpc(request.headers()));
    match fault.failure {
        InjectedFailure::Http(status) => *response.status_mut() = status,
        InjectedFailure::Grpc(code) => {
            response.headers_mut().insert("grpc-status", HeaderValue::from(code));
        }
    }
    response
}

fn redirect_to(redirect: &Redirect, request: &Request) -> Result<Response, MeshError> {
    let bad = |what: &str| MeshError::new(Reason::BadRequest, format!("cannot redirect: {what}"));
    let (head, ()) = {
        let mut bare = http::Request::new(());
        *bare.uri_mut() = request.uri().clone();
        *bare.headers_mut() = request.headers().clone();
        if let Some(entrance) = request.extensions().get::<Entrance>() {
            bare.extensions_mut().insert(*entrance);
        }
        bare.into_parts()
    };
    let own_port = crate::http::forward::authority_of(request).and_then(|a| a.port_u16());
    let matched = request.extensions().get::<MatchedPrefix>().map_or("/", |p| &p.0);
    let location = redirect.location(&head, own_port, matched).map_err(bad)?;
    let location = HeaderValue::from_str(&location).map_err(|_| bad("its text"))?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = redirect.status;
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_model::route::{Cors, Listed, Origin, PathModifier, Ratio};

    fn request(uri: &str) -> Request {
        let request = http::Request::builder().uri(uri).header("host", "shop.example:8080");
        request.body(Body::empty()).unwrap()
    }

    fn location(redirect: &Redirect, prefix: &str) -> String {
        let mut request = request("/old/a?q=1");
        request.extensions_mut().insert(MatchedPrefix(prefix.into()));
        let response = redirect_to(redirect, &request).unwrap();
        response.headers()[header::LOCATION].to_str().unwrap().to_owned()
    }

    fn redirect() -> Redirect {
        let (scheme, host, port, path) = Default::default();
        Redirect { scheme, host, port, path, status: StatusCode::FOUND }
    }

    #[test]
    fn a_redirect_changes_only_what_it_names() {
        assert_eq!(location(&redirect(), "/"), "http://shop.example:8080/old/a?q=1");
        let https = Redirect { scheme: Some("https".into()), ..redirect() };
        assert_eq!(location(&https, "/"), "https://shop.example/old/a?q=1");
        let port = Redirect { port: Some(80), ..redirect() };
        assert_eq!(location(&port, "/"), "http://shop.example/old/a?q=1");
        let prefix = Redirect { path: Some(PathModifier::Prefix("/new".into())), ..redirect() };
        assert_eq!(location(&prefix, "/old/"), "http://shop.example:8080/new/a?q=1");
        let root = Redirect { path: Some(PathModifier::Prefix("/".into())), ..redirect() };
        assert_eq!(location(&root, "/old/a"), "http://shop.example:8080/?q=1");
    }

    #[test]
    fn at_the_edge_a_redirect_stays_at_the_listener() {
        let of = |scheme: Option<&str>, port| Redirect {
            scheme: scheme.map(Into::into),
            port,
            ..redirect()
        };
        let same = of(None, None);
        for (secured, port, redirect, expected) in [
            (true, 443, &same, "https://shop.example/"),
            (true, 8443, &same, "https://shop.example:8443/"),
            (false, 80, &same, "http://shop.example/"),
            (false, 443, &same, "http://shop.example:443/"),
            (true, 8443, &of(None, Some(443)), "https://shop.example/"),
            (true, 8443, &of(Some("http"), None), "http://shop.example/"),
            (false, 8080, &of(Some("https"), None), "https://shop.example/"),
            (false, 8080, &of(Some("app"), None), "app://shop.example:8080/"),
            (false, 8080, &of(Some("https"), Some(8443)), "https://shop.example:8443/"),
        ] {
            // Whatever the client says of both.
            for uri in ["/", "http://shop.example:9/", "https://shop.example:9/"] {
                let mut request = request(uri);
                request.extensions_mut().insert(Entrance { secured, port });
                let response = redirect_to(redirect, &request).unwrap();
                assert_eq!(response.headers()[header::LOCATION], expected, "{uri} {redirect:?}");
            }
        }
    }

    #[tokio::test]
    async fn browsers_see_an_answer_that_comes_before_cors() {
        let failure = InjectedFailure::Http(StatusCode::SERVICE_UNAVAILABLE);
        let ratio = Ratio { numerator: 1, denominator: 1 };
        let fail = Filter::Fail(FailureInjector { failure, message: String::new(), ratio });
        let cors = Filter::Cors(Cors {
            origins: vec![Origin::new("https://app.example").unwrap()],
            methods: Listed::Any,
            headers: Listed::Any,
            expose: Listed::Any,
            credentials: false,
            max_age: 5,
        });
        let filters = [fail, cors].map(|filter| Apply::Filter(filter, Deck::default())).into();
        let inner = tower::service_fn(async |_: Request| Ok(Response::default()));
        let mut filtered = FilterLayer::new(filters).unwrap().layer(inner);
        let mut request = request("/");
        request.headers_mut().insert(header::ORIGIN, "https://app.example".parse().unwrap());
        let response = filtered.call(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        let allowed = response.headers().get(header::ACCESS_CONTROL_ALLOW_ORIGIN);
        assert_eq!(allowed.unwrap(), "https://app.example");
    }

    #[test]
    fn faults_answer_with_their_own_status() {
        let always = Ratio { numerator: 1, denominator: 1 };
        let fault = |failure, ratio| {
            [Filter::Fail(FailureInjector { failure, message: "teapot".into(), ratio })]
        };
        let teapot = fault(InjectedFailure::Http(StatusCode::IM_A_TEAPOT), always);
        let response = before(&teapot, &mut request("/")).unwrap().unwrap();
        assert_eq!(response.status(), StatusCode::IM_A_TEAPOT);
        let never = Ratio { numerator: 0, denominator: 1 };
        let spared = fault(InjectedFailure::Http(StatusCode::IM_A_TEAPOT), never);
        assert!(before(&spared, &mut request("/")).unwrap().is_none());
    }
}
