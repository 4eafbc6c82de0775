//! What somebody on the network sees.

use std::fs;
use std::process::{Command, Stdio};

use mesh_integration::app::{HttpApp, TcpApp};
use mesh_integration::client::Connection;
use mesh_integration::client::http::{Way, full};
use mesh_integration::mesh::{Mesh, Pod, Service};
use mesh_integration::process::Process;
use mesh_integration::steady::{Load, Plan, assert_none_failed};
use mesh_integration::{programs, wait};
use rustix::process::Signal;
use tokio::io::AsyncWriteExt;

/// Nothing that is sent by chance.
const SECRET: &str = "seventeen-purple-giraffes";
const TEST: &str = "identity::wire::no_byte_between_pods_is_readable";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_byte_between_pods_is_readable() {
    let Some(tcpdump) = programs::installed("tcpdump") else {
        return programs::skipped(TEST, "tcpdump is not installed");
    };
    // Only asks the device; in a container even root often may not.
    let device = Command::new(&tcpdump).args(["-i", "lo", "-L"]).output().unwrap();
    if !device.status.success() {
        let why = String::from_utf8_lossy(&device.stderr);
        return programs::skipped(TEST, why.trim());
    }
    let app = HttpApp::start(|request| async {
        use http_body_util::BodyExt;
        let body = request.into_body().collect().await.unwrap().to_bytes();
        http::Response::builder().header("x-secret", SECRET).body(full(body)).unwrap()
    })
    .await;
    let bytes = TcpApp::start(|mut stream| async move {
        // The server speaks first.
        stream.write_all(SECRET.as_bytes()).await.unwrap();
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    })
    .await;
    let client = Pod::new("client").upstream("web:80").upstream("db:80").upstream("mysql:80");
    let web = Pod::new("web").port(8080, app.addr());
    let mesh = Mesh::builder()
        .pod(client)
        .pod(web)
        .pod(Pod::new("db").port(5000, bytes.addr()))
        .pod(Pod::new("mysql").port(3306, bytes.addr()))
        .service(Service::new("web", 8080))
        .service(Service::new("db", 5000))
        .service(Service::new("mysql", 3306))
        .start()
        .await;

    let file = mesh.folder().join("capture");
    let pods = ["web", "db", "mysql"].map(|pod| format!("host {}", mesh.pod(pod).ip()));
    let between = format!("host {} and ({})", mesh.pod("client").ip(), pods.join(" or "));
    let mut command = Command::new(tcpdump);
    command.args(["-i", "lo", "-U", "--immediate-mode", "-s", "0", "-Z", "root", "-w"]);
    command.arg(&file).arg(&between).stdin(Stdio::null());
    let mut capture = Process::start("tcpdump", command, &mesh.logs());
    wait::until("tcpdump to listen", async || {
        capture.assert_sound();
        capture.log().contains("listening on").then_some(())
    })
    .await;

    for way in
        [Way::Http1(mesh.pod("client").upstream(0)), Way::Http2(mesh.pod("client").upstream(0))]
    {
        let plan = Plan { way, authority: "web:80".to_owned(), rate: 200 };
        let mut load = Load::start(plan, |_| {
            http::Request::post(format!("/{SECRET}"))
                .header("x-secret", SECRET)
                .body(full(SECRET))
                .unwrap()
        });
        load.more(50).await;
        assert_none_failed(&load.stop().await);
    }
    for upstream in [1, 2] {
        let mut connection = Connection::open(mesh.pod("client").upstream(upstream)).await;
        assert_eq!(connection.bytes(SECRET.len()).await, SECRET.as_bytes());
        connection.send(SECRET).await;
        connection.finish().await;
        assert_eq!(connection.rest().await, SECRET.as_bytes());
    }

    capture.signal(Signal::INT);
    capture.end().await;
    let captured = fs::read(&file).unwrap();
    assert!(captured.len() > 20_000, "something was captured: {} bytes", captured.len());
    let has = |bytes: &[u8]| captured.windows(bytes.len()).any(|window| window == bytes);
    for readable in [SECRET, "x-secret", "HTTP/1.1", "PRI * HTTP/2.0", "transport.l5d.io/v1\r"] {
        assert!(!has(readable.as_bytes()), "{readable} was sent in the clear");
    }
}

/// What OpenSSL says of a proxy. It has no certificate, so all it gets is the server's.
#[tokio::test]
async fn openssl_sees_tls_1_3_only_and_both_names() {
    let Some(openssl) = programs::installed("openssl") else {
        let test = "identity::wire::openssl_sees_tls_1_3_only_and_both_names";
        return programs::skipped(test, "openssl is not installed");
    };
    let app = super::who_calls().await;
    let mesh = super::mesh(&app).await;
    let web = mesh.pod("web").inbound(8080).to_string();
    let ask = async |name: &str, version: &str| {
        let id = super::id_of("web");
        let mut command = Command::new(&openssl);
        command.args(["s_client", "-connect", &web, "-servername", &id, version, "-showcerts"]);
        command.stdin(Stdio::null());
        let mut asked = Process::start(name, command, &mesh.logs());
        asked.end().await;
        asked.log()
    };
    let told = ask("openssl-1.3", "-tls1_3").await;
    assert!(told.contains("Cipher is TLS_AES_") || told.contains("TLS_CHACHA20_"), "{told}");
    let pem = &told[told.find("-----BEGIN CERTIFICATE").expect("a certificate")..];
    let file = mesh.folder().join("leaf.pem");
    fs::write(&file, pem).unwrap();
    let mut command = Command::new(&openssl);
    command.args(["x509", "-noout", "-ext", "subjectAltName", "-in"]).arg(&file);
    let names = String::from_utf8(command.output().unwrap().stdout).unwrap();
    let dns = format!("DNS:{}", super::id_of("web"));
    let uri = "URI:spiffe://cluster.local/ns/test/sa/web";
    assert!(names.contains(&format!("{dns}, {uri}")), "{names}");
    let told = ask("openssl-1.2", "-tls1_2").await;
    assert!(told.contains("Cipher is (NONE)"), "{told}");
}
