//! What changes in a message that is passed on: hop-by-hop fields, versions, the authority.

use http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderName, HeaderValue, PROXY_AUTHORIZATION, TE,
    TRANSFER_ENCODING, UPGRADE,
};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Uri, Version};
use mesh_layers::{Request, Response};
use mesh_model::Reason;

use crate::error::MeshError;

/// Tells the far proxy which version the request had before it crossed the mesh as HTTP/2.
pub(crate) const L5D_ORIG_PROTO: HeaderName = HeaderName::from_static("l5d-orig-proto");
/// What the failing proxy says to the one before it; never passed on to applications.
pub(crate) const L5D_PROXY_ERROR: HeaderName = HeaderName::from_static("l5d-proxy-error");

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");
const ORIG_HTTP_11: HeaderValue = HeaderValue::from_static("HTTP/1.1");
const ORIG_HTTP_11_ABSOLUTE: HeaderValue = HeaderValue::from_static("HTTP/1.1; absolute-form");
const ORIG_HTTP_10: HeaderValue = HeaderValue::from_static("HTTP/1.0");
const ORIG_HTTP_10_ABSOLUTE: HeaderValue = HeaderValue::from_static("HTTP/1.0; absolute-form");

/// Removes the fields that concern one connection only (RFC 9110, 7.6.1). `TE: trailers` stays:
/// gRPC needs it and both ends of the proxy pass trailers on.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| name.trim().parse().ok())
            // What gRPC needs, and what tells where a message goes and how long it is.
            .filter(|name| ![TE, HOST, CONTENT_LENGTH].contains(name))
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    if headers.remove(TRANSFER_ENCODING).is_some() {
        // It overrides a length, which would contradict it at the next hop (RFC 9112, 6.3).
        headers.remove(CONTENT_LENGTH);
    }
    for name in [KEEP_ALIVE, PROXY_CONNECTION, UPGRADE, PROXY_AUTHORIZATION] {
        headers.remove(name);
    }
    if let Some(te) = headers.get(TE)
        && !te.as_bytes().eq_ignore_ascii_case(b"trailers")
    {
        let keeps = te.to_str().is_ok_and(|te| {
            te.split(',').any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
        });
        headers.remove(TE);
        if keeps {
            headers.insert(TE, TRAILERS);
        }
    }
}

/// Whether applications read a header's name as one that begins so: those that get headers as variables
/// (CGI, WSGI) cannot tell `-` from `_`, and some from nothing else that is no letter or digit.
pub(crate) fn reads_as_prefix(name: &HeaderName, prefix: &str) -> bool {
    let alike = |(have, wanted): (&u8, &u8)| match wanted {
        b'-' => !have.is_ascii_alphanumeric(),
        wanted => have == wanted,
    };
    let name = name.as_str().as_bytes();
    name.len() >= prefix.len() && name.iter().zip(prefix.as_bytes()).all(alike)
}

/// Makes a request fit to be passed on. An upgrade keeps the two fields that ask for it.
pub(crate) fn prepare_request(request: &mut Request, upgrade: bool) {
    let wanted = upgrade.then(|| request.headers().get(UPGRADE).cloned()).flatten();
    strip_hop_by_hop(request.headers_mut());
    request.headers_mut().remove(L5D_PROXY_ERROR);
    if let Some(wanted) = wanted {
        request.headers_mut().insert(UPGRADE, wanted);
        request.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

/// Whether a request asks to leave HTTP (WebSocket and the like). HTTP/1.1 only. To go on as another
/// version of HTTP is none: what follows would be requests that nobody looks at.
pub(crate) fn wants_upgrade<B>(request: &http::Request<B>) -> bool {
    request.version() == Version::HTTP_11
        && request.headers().contains_key(UPGRADE)
        && !request.headers().get_all(UPGRADE).iter().any(stays_http)
        && request.headers().get_all(CONNECTION).iter().any(|value| {
            value.to_str().is_ok_and(|value| {
                value.split(',').any(|name| name.trim().eq_ignore_ascii_case("upgrade"))
            })
        })
}

/// Whether a field of `Upgrade` names HTTP, or cannot be read.
fn stays_http(value: &HeaderValue) -> bool {
    let is_http = |name: &str| {
        let name = name.trim().as_bytes();
        [&b"h2"[..], b"http"].iter().any(|http| {
            name.get(..http.len()).is_some_and(|begins| begins.eq_ignore_ascii_case(http))
        })
    };
    value.to_str().map_or(true, |value| value.split(',').any(is_http))
}

/// Refuses requests whose `Host` two readers could take for different ones (RFC 9112, 3.2; of user
/// information RFC 9110, 4.2.4).
pub(crate) fn check_host(request: &Request) -> Result<(), MeshError> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let has_user = |authority: &Authority| authority.as_str().contains('@');
    let unclear = match (hosts.next(), hosts.next(), request.uri().authority()) {
        (_, Some(_), _) => true,
        (_, None, Some(authority)) => has_user(authority),
        (Some(host), None, None) => {
            let authority = Authority::try_from(host.as_bytes());
            !host.is_empty() && authority.map_or(true, |authority| has_user(&authority))
        }
        (None, None, None) => false,
    };
    match unclear {
        true => Err(MeshError::new(Reason::BadRequest, "the request needs one host in its `Host`")),
        false => Ok(()),
    }
}

/// The authority a request is for: its URI's, else its `Host`.
pub(crate) fn authority_of<B>(request: &http::Request<B>) -> Option<Authority> {
    match request.uri().authority() {
        Some(authority) => Some(authority.clone()),
        None => Authority::from_maybe_shared(bytes::Bytes::copy_from_slice(
            request.headers().get(HOST)?.as_bytes(),
        ))
        .ok(),
    }
}

/// Has a request be for another authority.
pub(crate) fn set_authority(request: &mut Request, authority: &str) {
    let Ok(value) = HeaderValue::from_str(authority) else { return };
    if request.uri().authority().is_some() {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.authority = authority.parse().ok();
        *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
    }
    if request.version() != Version::HTTP_2 || request.headers().contains_key(HOST) {
        request.headers_mut().insert(HOST, value);
    }
}

/// Turns a request into HTTP/1.1 origin form for an endpoint. `fallback` serves requests that name
/// no host (HTTP/1.0).
pub(crate) fn to_http1(request: &mut Request, fallback: &str) {
    *request.version_mut() = Version::HTTP_11;
    let uri = std::mem::take(request.uri_mut());
    let host = match uri.authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
        None if request.headers().contains_key(HOST) => None,
        None => HeaderValue::from_str(fallback).ok(),
    };
    if let Some(host) = host {
        request.headers_mut().insert(HOST, host);
    }
    if uri.authority().is_none() && uri.scheme().is_none() {
        *request.uri_mut() = uri;
        return;
    }
    let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from(path);
}

/// Turns a request into HTTP/2: absolute URI, no `Host`.
pub(crate) fn to_http2(request: &mut Request, fallback: &str) {
    *request.version_mut() = Version::HTTP_2;
    let host = request.headers_mut().remove(HOST);
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    if parts.authority.is_none() {
        let named = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
        parts.authority = named.or_else(|| fallback.parse().ok());
    }
    parts.scheme.get_or_insert(Scheme::HTTP);
    parts.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
}

/// Marks an HTTP/1 request that crosses the mesh as HTTP/2.
pub(crate) fn mark_orig_proto(request: &mut Request) {
    let absolute = request.uri().authority().is_some();
    let value = match (request.version(), absolute) {
        (Version::HTTP_10, false) => ORIG_HTTP_10,
        (Version::HTTP_10, true) => ORIG_HTTP_10_ABSOLUTE,
        (_, false) => ORIG_HTTP_11,
        (_, true) => ORIG_HTTP_11_ABSOLUTE,
    };
    request.headers_mut().insert(L5D_ORIG_PROTO, value);
}

/// Undoes [`mark_orig_proto`] at the far side; says whether there was a mark.
pub(crate) fn restore_orig_proto(request: &mut Request) -> bool {
    let Some(mark) = request.headers_mut().remove(L5D_ORIG_PROTO) else { return false };
    if request.version() != Version::HTTP_2 {
        return false;
    }
    let mark = mark.to_str().unwrap_or_default();
    *request.version_mut() =
        if mark.starts_with("HTTP/1.0") { Version::HTTP_10 } else { Version::HTTP_11 };
    if !mark.ends_with("absolute-form") {
        let uri = std::mem::take(request.uri_mut());
        if let Some(host) = uri.authority().and_then(|a| HeaderValue::from_str(a.as_str()).ok()) {
            request.headers_mut().insert(HOST, host);
        }
        *request.uri_mut() =
            uri.path_and_query().cloned().map_or_else(|| Uri::from_static("/"), Uri::from);
    }
    true
}

/// Makes a response fit for a client of `version`.
pub(crate) fn response_to(version: Version, response: &mut Response) {
    if response.status() != http::StatusCode::SWITCHING_PROTOCOLS {
        strip_hop_by_hop(response.headers_mut());
    }
    // An HTTP/1.0 client gets HTTP/1.0: hyper sees to it, and says whether the connection is kept.
    *response.version_mut() = if version == Version::HTTP_10 { Version::HTTP_11 } else { version };
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_layers::Body;

    fn request(version: Version, uri: &str, headers: &[(&str, &str)]) -> Request {
        let mut builder = http::Request::builder().version(version).uri(uri);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(Body::empty()).unwrap()
    }

    #[test]
    fn fields_of_one_connection_stay_on_it() {
        let mut req = request(
            Version::HTTP_11,
            "/",
            &[
                ("connection", "close, X-Secret, Host"),
                ("host", "web"),
                ("content-length", "4"),
                ("x-secret", "1"),
                ("keep-alive", "3"),
                ("te", "gzip, trailers"),
                ("transfer-encoding", "chunked"),
                ("x-kept", "1"),
            ],
        );
        strip_hop_by_hop(req.headers_mut());
        let mut left: Vec<_> = req.headers().keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["host", "te", "x-kept"]);
        assert_eq!(req.headers()[TE], "trailers");
    }

    #[test]
    fn absolute_form_becomes_origin_form_with_its_host() {
        let mut req =
            request(Version::HTTP_11, "http://tax:80/a?b=1", &[("host", "somewhere.else")]);
        to_http1(&mut req, "fallback");
        assert_eq!(req.uri(), "/a?b=1");
        assert_eq!(req.headers()[HOST], "tax:80");
    }

    #[test]
    fn a_host_is_one_host_or_none() {
        for (uri, hosts, fine) in [
            ("/", &["web"][..], true),
            ("/", &["web:80"], true),
            ("/", &[""], true),
            ("/", &[], true),
            ("http://web/", &["anything/at all"], true),
            ("/", &["web", "web"], false),
            ("http://web/", &["web", "other"], false),
            ("/", &["web/../x"], false),
            ("/", &["user@web"], false),
            ("http://user@web/", &["web"], false),
        ] {
            let headers: Vec<_> = hosts.iter().map(|host| ("host", *host)).collect();
            let request = request(Version::HTTP_11, uri, &headers);
            assert_eq!(check_host(&request).is_ok(), fine, "{uri} {hosts:?}");
        }
    }

    #[test]
    fn a_request_without_host_gets_the_target() {
        let mut req = request(Version::HTTP_10, "/", &[]);
        to_http1(&mut req, "tax:80");
        assert_eq!(req.headers()[HOST], "tax:80");
        assert_eq!(req.version(), Version::HTTP_11);
    }

    #[test]
    fn crossing_the_mesh_as_http2_is_invisible() {
        for (version, uri) in [
            (Version::HTTP_11, "/a?b=1"),
            (Version::HTTP_10, "/"),
            (Version::HTTP_11, "http://tax:80/a"),
        ] {
            let mut req = request(version, uri, &[("host", "tax:80")]);
            mark_orig_proto(&mut req);
            to_http2(&mut req, "fallback");
            assert_eq!(req.uri().authority().unwrap(), "tax:80");
            assert!(restore_orig_proto(&mut req));
            assert_eq!((req.version(), req.uri().to_string().as_str()), (version, uri));
        }
    }

    #[test]
    fn only_a_named_upgrade_is_one() {
        let upgrade = [("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")];
        assert!(wants_upgrade(&request(Version::HTTP_11, "/", &upgrade)));
        assert!(!wants_upgrade(&request(Version::HTTP_11, "/", &upgrade[1..])));
        assert!(!wants_upgrade(&request(Version::HTTP_10, "/", &upgrade)));
        for http in ["h2c", "websocket, H2C", "HTTP/2.0"] {
            let upgrade = [("connection", "Upgrade"), ("upgrade", http)];
            assert!(!wants_upgrade(&request(Version::HTTP_11, "/", &upgrade)), "{http}");
        }
    }
}
