//! Programs that others made, unmodified, in front of the mesh and behind it. Those that are not
//! installed are skipped, and said to be.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;

use mesh_integration::app::HttpApp;
use mesh_integration::client;
use mesh_integration::client::http::full;
use mesh_integration::mesh::{Mesh, Pod, Service};
use mesh_integration::process::Process;
use mesh_integration::{programs, wait};

/// Runs a command to its end; what it printed.
async fn run(name: &str, command: Command, logs: &Path) -> String {
    let mut process = Process::start(name, command, logs);
    let status = process.end().await;
    assert!(status.success(), "{name}: {status}\n{}", process.log());
    process.log()
}

async fn mesh(app: SocketAddr) -> Mesh {
    let client = Pod::new("client").upstream("web:80");
    let web = Pod::new("web").port(8080, app);
    Mesh::builder().pod(client).pod(web).service(Service::new("web", 8080)).start().await
}

/// Says how long what it was sent is, or `hello`.
async fn app() -> HttpApp {
    HttpApp::start(|request| async {
        use http_body_util::BodyExt;
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let answer = if body.is_empty() { "hello".to_owned() } else { body.len().to_string() };
        http::Response::new(full(answer))
    })
    .await
}

#[tokio::test]
async fn curl_is_served_in_every_way_it_knows() {
    if programs::command("curl", "tools::curl_is_served_in_every_way_it_knows").is_none() {
        return;
    }
    let app = app().await;
    let mesh = mesh(app.addr()).await;
    let upload = mesh.logs().join("upload");
    fs::write(&upload, vec![b'u'; 3_000_000]).unwrap();
    let client = mesh.pod("client");
    let direct = format!("http://{}/", client.upstream(0));
    let proxy = format!("http://{}", client.forward_proxy());
    let upload = format!("@{}", upload.display());
    for (number, (options, answer)) in [
        (vec!["--http1.0", &direct], "hello"),
        (vec!["--http1.1", &direct, &direct], "hellohello"),
        // Once: curl 7.88 cannot reuse such a connection, whoever serves it.
        (vec!["--http2-prior-knowledge", &direct], "hello"),
        (vec!["--proxy", &proxy, "http://web/"], "hello"),
        (vec!["--proxy", &proxy, "--proxytunnel", "http://web.test:80/"], "hello"),
        (
            vec!["--proxy", &proxy, "--proxytunnel", "--http2-prior-knowledge", "http://web/"],
            "hello",
        ),
        // More than a megabyte: it asks with `Expect: 100-continue`.
        (vec!["--data-binary", &upload, &direct], "3000000"),
        (vec!["--http2-prior-knowledge", "--data-binary", &upload, &direct], "3000000"),
        (
            vec!["--header", "Transfer-Encoding: chunked", "--data-binary", &upload, &direct],
            "3000000",
        ),
        // Asks to be upgraded to HTTP/2, which nobody does.
        (vec!["--http2", &direct], "hello"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut command = Command::new(programs::installed("curl").unwrap());
        command.args(["--silent", "--show-error", "--fail", "--max-time", "20", "--noproxy", ""]);
        command.args(&options);
        let got = run(&format!("curl-{number}"), command, &mesh.logs()).await;
        assert_eq!(got, answer, "{options:?}");
    }
}

#[tokio::test]
async fn h2load_loses_no_request() {
    const TEST: &str = "tools::h2load_loses_no_request";
    let app = app().await;
    let mesh = mesh(app.addr()).await;
    let url = format!("http://{}/", mesh.pod("client").upstream(0));
    for protocol in ["h2c", "http/1.1"] {
        let Some(mut command) = programs::command("h2load", TEST) else { return };
        command.args(["-n", "4000", "-c", "20", "-m", "10", "-p", protocol, &url]);
        let report = run(&format!("h2load-{}", &protocol[..2]), command, &mesh.logs()).await;
        let done = "4000 total, 4000 started, 4000 done, 4000 succeeded, 0 failed, 0 errored";
        assert!(report.contains(done), "{protocol}:\n{report}");
    }
    assert_eq!(app.requests(), 8_000, "each came once");
}

#[tokio::test]
async fn wrk_sees_no_error() {
    let Some(mut command) = programs::command("wrk", "tools::wrk_sees_no_error") else { return };
    let app = app().await;
    let mesh = mesh(app.addr()).await;
    let url = format!("http://{}/", mesh.pod("client").upstream(0));
    command.args(["-t", "1", "-c", "30", "-d", "2s", &url]);
    let report = run("wrk", command, &mesh.logs()).await;
    assert!(report.contains("requests in"), "{report}");
    for error in ["Socket errors", "Non-2xx"] {
        assert!(!report.contains(error), "{report}");
    }
}

/// nginx with a few places that differ in how they answer.
fn nginx_config(dir: &Path, port: u16) -> String {
    let dir = dir.display();
    format!(
        "daemon off; master_process off; pid {dir}/pid; error_log stderr info;
        events {{ worker_connections 512; }}
        http {{
            access_log off; client_max_body_size 10m;
            client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy;
            fastcgi_temp_path {dir}/fastcgi; uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;
            server {{
                listen 127.0.0.1:{port};
                root {dir}/files; port_in_redirect off;
                location = /hello {{ return 200 'hello'; }}
                location = /moved {{ return 302 /hello; }}
                location = /small {{ client_max_body_size 1k; proxy_pass http://127.0.0.1:1; }}
                location = /gone {{ return 444; }}
                location = /short {{ keepalive_timeout 0; return 200 'hello'; }}
            }}
        }}"
    )
}

#[tokio::test]
async fn nginx_stands_behind_the_mesh() {
    let Some(mut command) = programs::command("nginx", "tools::nginx_stands_behind_the_mesh")
    else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = free.local_addr().unwrap();
    drop(free);
    let (files, config) = (dir.path().join("files"), dir.path().join("nginx.conf"));
    fs::create_dir(&files).unwrap();
    let large: Vec<u8> = (0..5_000_000u32).map(|i| (i % 251) as u8).collect();
    fs::write(files.join("large"), &large).unwrap();
    fs::write(&config, nginx_config(dir.path(), addr.port())).unwrap();
    command.arg("-p").arg(dir.path()).arg("-c").arg(&config);
    let mut nginx = Process::start("nginx", command, dir.path());
    wait::until("nginx", async || {
        nginx.assert_sound();
        client::get(addr, "/hello").await
    })
    .await;

    let mesh = mesh(addr).await;
    let upstream = mesh.pod("client").upstream(0);
    let mut connection = client::Connection::open(upstream).await;
    let mut ask = async |method: &str, path: &str, more: &str| {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: web\r\n{more}\r\n");
        connection.send(request).await;
        match method {
            "HEAD" => connection.response_to_head().await,
            _ => connection.response().await,
        }
    };
    assert_eq!(ask("GET", "/hello", "").await.text(), "hello");
    let whole = ask("GET", "/large", "").await;
    assert!(whole.body == large);
    let etag = whole.header("etag").unwrap().to_owned();
    let head = ask("HEAD", "/large", "").await;
    assert_eq!(head.header("content-length"), Some("5000000"));
    let part = ask("GET", "/large", "Range: bytes=1000-1999\r\n").await;
    assert_eq!((part.status, part.body.as_slice()), (206, &large[1000..2000]));
    let unchanged = ask("GET", "/large", &format!("If-None-Match: {etag}\r\n")).await;
    assert_eq!((unchanged.status, unchanged.body.len()), (304, 0));
    let moved = ask("GET", "/moved", "").await;
    assert_eq!(moved.header("location"), Some("http://web/hello"), "as the client named it");
    assert_eq!(ask("GET", "/missing", "").await.status, 404);
    // It closes connections as it likes; nobody notices.
    for _ in 0..50 {
        assert_eq!(ask("GET", "/short", "").await.text(), "hello");
    }
    let gone = ask("GET", "/gone", "").await;
    assert_eq!((gone.status, gone.header("x-mesh-reason")), (502, Some("connection-closed")));

    // Refused on its length, before the body was sent.
    let mut connection = client::Connection::open(upstream).await;
    let head = "POST /small HTTP/1.1\r\nHost: web\r\nContent-Length: 5000000\r\n\r\n";
    connection.send(head).await;
    assert_eq!(connection.response().await.status, 413);
}
