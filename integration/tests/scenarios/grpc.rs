//! gRPC as others implement it: client and server are grpcio.

use mesh_integration::mesh::{Mesh, Pod, Service};
use mesh_integration::process::Process;
use mesh_integration::python::{self, Python};

/// A server of grpcio in a pod, and the mesh around it.
async fn mesh(python: &Python) -> (Mesh, Process) {
    let logs = tempfile::tempdir().unwrap();
    let mut server = Process::start("server", python.script("grpc/server.py"), logs.path());
    let port = python::port(&mut server).await;
    let mesh = Mesh::builder()
        .pod(Pod::new("client").upstream("echo:80"))
        .pod(Pod::new("echo").port(8080, ([127, 0, 0, 1], port).into()))
        .service(Service::new("echo", 8080))
        .start()
        .await;
    (mesh, server)
}

#[tokio::test]
async fn every_kind_of_call_passes() {
    let Some(python) = Python::find("grpc::every_kind_of_call_passes") else { return };
    let (mesh, _server) = mesh(&python).await;
    let client = mesh.pod("client");
    let mut command = python.script("grpc/client.py");
    command.arg(client.upstream(0).to_string());
    Python::run("grpc-client", command, &mesh.logs()).await;

    for (pod, direction) in [("client", "outbound"), ("echo", "inbound")] {
        let labels = [&*format!("direction=\"{direction}\""), "grpc_status=\"8\""];
        let sidecar = mesh.pod(pod);
        assert_eq!(sidecar.metric("response_total", &labels).await, 2.0, "{pod} saw both");
    }
}

#[tokio::test]
async fn a_client_that_knows_of_its_proxy_is_served() {
    let Some(python) = Python::find("grpc::a_client_that_knows_of_its_proxy_is_served") else {
        return;
    };
    let (mesh, _server) = mesh(&python).await;
    let mut command = python.script("grpc/client.py");
    command.env("grpc_proxy", format!("http://{}", mesh.pod("client").forward_proxy()));
    command.args(["echo.test:80", "unary", "bidirectional"]);
    Python::run("grpc-client", command, &mesh.logs()).await;
}
