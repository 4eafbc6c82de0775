//! The admin port: `/live`, `/ready`, `/metrics`.

use std::convert::Infallible;
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use http::header::CONTENT_TYPE;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::identity::Authority;
use crate::serve::places::Places;
use crate::source::Severity;
use crate::state::Shared;

/// Connections at a time, and those of one peer; more are closed at once. A kubelet that finds no place
/// would have the control plane restarted.
const MAX_CONNECTIONS: (usize, usize) = (256, 16);
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Before accepting again after an error such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is told.
type Told = (Arc<Shared>, Option<Arc<Authority>>);

pub(crate) async fn serve(listener: TcpListener, told: Told, stop: CancellationToken) {
    let places = Places::new(MAX_CONNECTIONS.0, MAX_CONNECTIONS.1);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                if let Some(place) = places.take(peer.ip()) {
                    let told = told.clone();
                    tokio::spawn(async move {
                        connection(stream, told).await;
                        drop(place);
                    });
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the admin port cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, (shared, authority): Told) {
    let service = service_fn(move |request| {
        let response = respond(&request, &shared, authority.as_deref());
        async move { Ok::<_, Infallible>(response) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a connection to the admin port failed");
    }
}

fn respond(
    request: &Request<Incoming>,
    shared: &Shared,
    authority: Option<&Authority>,
) -> Response<Full<Bytes>> {
    if request.method() != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n".into());
    }
    match request.uri().path() {
        "/live" => text(StatusCode::OK, "live\n".into()),
        "/ready" if shared.is_ready() => text(StatusCode::OK, "ready\n".into()),
        "/ready" => {
            let why = "the source has not told everything yet\n";
            text(StatusCode::SERVICE_UNAVAILABLE, why.into())
        }
        "/metrics" => {
            let identity = authority.map(identity_metrics).unwrap_or_default();
            text(StatusCode::OK, metrics(shared) + &identity)
        }
        _ => text(StatusCode::NOT_FOUND, "paths: /live /ready /metrics\n".into()),
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let plain = http::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}

/// A handful of gauges, in Prometheus text.
fn metrics(shared: &Shared) -> String {
    let problems = shared.problems();
    let of = |severity| problems.iter().filter(|problem| problem.severity == severity).count();
    let index = shared.index.read();
    let (objects, streams) = (index.objects(), index.watched());
    let gauges = [
        ("mesh_control_ready", "", usize::from(shared.is_ready())),
        ("mesh_control_objects", "{kind=\"service\"}", objects.services().count()),
        ("mesh_control_objects", "{kind=\"pod\"}", objects.pods().count()),
        ("mesh_control_objects", "{kind=\"httproute\"}", objects.http_routes().count()),
        ("mesh_control_objects", "{kind=\"grpcroute\"}", objects.grpc_routes().count()),
        ("mesh_control_objects", "{kind=\"tcproute\"}", objects.tcp_routes().count()),
        ("mesh_control_problems", "{severity=\"error\"}", of(Severity::Error)),
        ("mesh_control_problems", "{severity=\"warning\"}", of(Severity::Warning)),
        ("mesh_control_watched", "{what=\"outbound\"}", streams.outbound),
        ("mesh_control_watched", "{what=\"destination\"}", streams.endpoints),
        ("mesh_control_watched", "{what=\"profile\"}", streams.profiles),
        ("mesh_control_watched", "{what=\"inbound\"}", streams.servers),
    ];
    let mut text = String::new();
    let mut family = "";
    for (name, labels, value) in gauges {
        if name != family {
            family = name;
            // Writing to a String cannot fail; the same for the line below.
            let _ = writeln!(text, "# TYPE {name} gauge");
        }
        let _ = writeln!(text, "{name}{labels} {value}");
    }
    let uptime = shared.uptime_seconds();
    let _ = writeln!(
        text,
        "# TYPE mesh_control_uptime_seconds gauge\nmesh_control_uptime_seconds {uptime}"
    );
    text
}

/// What a mesh with identity has beside that.
fn identity_metrics(authority: &Authority) -> String {
    let (issued, refused) = authority.answered();
    let mut text = format!(
        "# TYPE mesh_control_certificates_total counter\n\
         mesh_control_certificates_total{{result=\"issued\"}} {issued}\n\
         mesh_control_certificates_total{{result=\"refused\"}} {refused}\n"
    );
    if let Some(issuer) = authority.issuer() {
        let end = issuer.certificate().not_after.duration_since(UNIX_EPOCH).unwrap_or_default();
        let name = "mesh_control_issuer_expiration_timestamp_seconds";
        let _ = writeln!(text, "# TYPE {name} gauge\n{name} {}", end.as_secs());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::folder::Loaded;
    use crate::identity::tokens::LocalTokens;
    use crate::identity::{Origin, Settings};
    use crate::index::identity::MeshNames;

    #[test]
    fn a_mesh_with_identity_tells_when_its_issuer_ends() {
        let names =
            MeshNames { control_namespace: "mesh-system".into(), trust_domain: "local".into() };
        let settings =
            Settings { origin: Origin::Secret, names, lifetime: Duration::from_secs(60) };
        let tokens = LocalTokens::new("/".as_ref(), Arc::default());
        let authority = Authority::new(settings, Box::new(tokens));
        assert!(!identity_metrics(&authority).contains("expiration"));

        let day = Duration::from_secs(86_400);
        let root = mesh_tls::Root::generate("mesh", day, day).unwrap();
        let issuer = mesh_tls::Issuer::from_pem(&root.issuer, &root.issuer_key).unwrap();
        let end = issuer.certificate().not_after.duration_since(UNIX_EPOCH).unwrap().as_secs();
        authority.install(Loaded { issuer, roots: root.root });
        let text = identity_metrics(&authority);
        let line = format!("mesh_control_issuer_expiration_timestamp_seconds {end}\n");
        assert!(text.ends_with(&line), "{text}");
        assert!(text.contains("mesh_control_certificates_total{result=\"issued\"} 0\n"), "{text}");
    }
}
