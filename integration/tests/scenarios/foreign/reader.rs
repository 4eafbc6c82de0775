//! A client in Python reads our control plane and holds what it says against the rules that foreign
//! proxies depend on.

use mesh_integration::app::HttpApp;
use mesh_integration::client::http::full;
use mesh_integration::mesh::{Mesh, Pod, Service};
use mesh_integration::python::Python;
use serde_json::{Value, json};

/// One route with one of everything, a second rule whose backend does not exist, and routes of the
/// other kinds.
fn routes() -> [Value; 3] {
    let parent = |name| json!([{ "group": "", "kind": "Service", "name": name, "port": 80 }]);
    let route = |api, kind, name, spec| {
        json!({
            "apiVersion": format!("gateway.networking.k8s.io/{api}"),
            "kind": kind,
            "metadata": { "namespace": "test", "name": name },
            "spec": spec,
        })
    };
    let headers = json!({ "set": [{ "name": "x-seen", "value": "yes" }], "remove": ["x-not"] });
    let web = json!({
        "parentRefs": parent("web"),
        "rules": [{
            "matches": [{
                "path": { "type": "PathPrefix", "value": "/api" },
                "method": "GET",
                "headers": [{ "name": "x-tenant", "value": "one" }],
                "queryParams": [{ "name": "v", "value": "2" }],
            }],
            "filters": [
                { "type": "RequestHeaderModifier", "requestHeaderModifier": headers },
                { "type": "ResponseHeaderModifier", "responseHeaderModifier": headers },
            ],
            "backendRefs": [
                { "name": "web", "port": 80, "weight": 3 },
                { "name": "empty", "port": 80, "weight": 1 },
            ],
            "timeouts": { "request": "5s", "backendRequest": "1s" },
            "retry": { "codes": [503, 504], "attempts": 2, "backoff": "10ms" },
        }, {
            "matches": [{ "path": { "type": "PathPrefix", "value": "/missing" } }],
            "backendRefs": [{ "name": "missing", "port": 80 }],
        }],
    });
    let grpc = json!({
        "parentRefs": parent("typed-grpc"),
        "rules": [{
            "matches": [{ "method": { "service": "shop.Tax", "method": "Compute" } }],
            "backendRefs": [{ "name": "web", "port": 80 }],
        }],
    });
    let tcp = json!({
        "parentRefs": parent("typed-tcp"),
        "rules": [{ "backendRefs": [{ "name": "web", "port": 80 }] }],
    });
    [
        route("v1", "HTTPRoute", "web", web),
        route("v1", "GRPCRoute", "grpc", grpc),
        route("v1alpha2", "TCPRoute", "tcp", tcp),
    ]
}

#[tokio::test]
async fn our_control_plane_holds_to_the_rules() {
    let Some(python) = Python::find("foreign::our_control_plane_holds_to_the_rules") else {
        return;
    };
    let app = HttpApp::start(|_| async { http::Response::new(full("ok")) }).await;
    let typed = |name, protocol| Service::new(name, 8080).before("web").app_protocol(protocol);
    let mut builder = Mesh::builder()
        .pod(Pod::new("client").upstream("tuned:80"))
        .pod(Pod::new("web").port(8080, app.addr()))
        .service(Service::new("web", 8080))
        .service(typed("typed-http", "http"))
        .service(typed("typed-h2", "kubernetes.io/h2c"))
        .service(typed("typed-grpc", "grpc"))
        .service(typed("typed-tcp", "tcp"))
        .service(Service::new("empty", 8080))
        .manifest(json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "namespace": "test",
                "name": "tuned",
                "annotations": {
                    "config.meshctl.dev/load-balancer": "ring-hash",
                    "config.meshctl.dev/load-balancer-hash-header": "x-session",
                    "config.meshctl.dev/failure-accrual": "consecutive",
                    "config.meshctl.dev/failure-accrual-consecutive-max-failures": "3",
                },
            },
            "spec": {
                "selector": { "app": "web" },
                "ports": [{ "port": 80, "targetPort": 8080 }],
            },
        }));
    for route in routes() {
        builder = builder.manifest(route);
    }
    let mesh = builder.start().await;
    let mut command = python.script_with_messages("foreign/reader.py");
    command.arg(mesh.control_addr().to_string());
    command.arg(mesh.folder());
    command.arg(mesh.pod("client").tap().to_string());
    command.arg(mesh.pod("client").upstream(0).to_string());
    Python::run("reader", command, &mesh.logs()).await;
}
