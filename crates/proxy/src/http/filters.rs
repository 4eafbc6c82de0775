//! Filters of a rule or backend: header changes, redirects, injected failures.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::{Either, Ready, ready};
use http::{HeaderValue, Uri, header};
use mesh_layers::{Body, BoxError, Request, Response, ResponseFuture};
use mesh_model::Reason;
use mesh_model::matching::request_host;
use mesh_model::route::{FailureInjector, Filter, InjectedFailure, PathModifier, Redirect};
use tower::{Layer, Service};

use crate::error::{Failure, MeshError};

/// The path prefix that the matching rule matched, for filters that replace it.
#[derive(Clone, Debug)]
pub(crate) struct MatchedPrefix(pub(crate) Arc<str>);

/// Applies filters in their order. Not to be used without any: it is then only a cost.
#[derive(Clone, Debug)]
pub(crate) struct FilterLayer(Arc<[Filter]>);

impl FilterLayer {
    /// `None` without filters.
    pub(crate) fn new(filters: &[Filter]) -> Option<Self> {
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
    filters: Arc<[Filter]>,
}

impl<S> Service<Request> for Filtered<S>
where
    S: Service<Request, Response = Response, Error = BoxError>,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = BoxError;
    type Future = Either<Ready<Result<Response, BoxError>>, ResponseFuture>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        match before(&self.filters, &mut request) {
            Ok(None) => {}
            Ok(Some(response)) => return Either::Left(ready(Ok(response))),
            Err(error) => return Either::Left(ready(Err(error.into()))),
        }
        let (call, filters) = (self.inner.call(request), Arc::clone(&self.filters));
        Either::Right(Box::pin(async move {
            let mut response = call.await?;
            for filter in &*filters {
                if let Filter::ResponseHeaders(change) = filter {
                    change.apply(response.headers_mut());
                }
            }
            Ok(response)
        }))
    }
}

/// What filters do before the request goes on; a response ends it here.
pub(crate) fn before(
    filters: &[Filter],
    request: &mut Request,
) -> Result<Option<Response>, MeshError> {
    for filter in filters {
        match filter {
            Filter::RequestHeaders(change) => change.apply(request.headers_mut()),
            Filter::ResponseHeaders(_) => {}
            Filter::Redirect(redirect) => return redirect_to(redirect, request).map(Some),
            Filter::Fail(fault) if fault.ratio.covers(rand::random()) => {
                return Ok(Some(injected(fault, request)));
            }
            Filter::Fail(_) => {}
        }
    }
    Ok(None)
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
        bare.into_parts()
    };
    let scheme = redirect.scheme.as_deref().or(head.uri.scheme_str()).unwrap_or("http");
    let host = redirect.host.as_deref().unwrap_or_else(|| request_host(&head));
    if host.is_empty() {
        return Err(bad("the request names no host"));
    }
    let own_port = crate::http::forward::authority_of(request).and_then(|a| a.port_u16());
    // A scheme that was asked for brings its own port, unless one was asked for, too.
    let port = redirect.port.or(if redirect.scheme.is_some() { None } else { own_port });
    let authority = match (scheme, port) {
        (_, None) | ("http", Some(80)) | ("https", Some(443)) => host.to_owned(),
        (_, Some(port)) => format!("{host}:{port}"),
    };
    let path = match &redirect.path {
        None => head.uri.path().to_owned(),
        Some(PathModifier::Full(path)) => path.clone(),
        Some(PathModifier::Prefix(new)) => {
            let matched = request.extensions().get::<MatchedPrefix>().map_or("/", |p| &p.0);
            let rest = head.uri.path().strip_prefix(matched.trim_end_matches('/')).unwrap_or("");
            match format!("{}{rest}", new.trim_end_matches('/')) {
                empty if empty.is_empty() => "/".to_owned(),
                path => path,
            }
        }
    };
    let query = head.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let location: Uri = format!("{scheme}://{authority}{path}{query}")
        .parse()
        .map_err(|_| bad("the new location is not a URI"))?;
    let location = HeaderValue::from_str(&location.to_string()).map_err(|_| bad("its text"))?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = redirect.status;
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::StatusCode;
    use mesh_model::route::Ratio;

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
