//! Clients and servers that are not whom they should be get nothing.

use std::net::SocketAddr;
use std::time::Duration;

use mesh_integration::client::Connection;
use mesh_integration::mesh::{Mesh, Pod, Service, id_of};
use mesh_tls::{Credentials, Issuer, Key, Root, TrustBundle};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const HOUR: Duration = Duration::from_secs(60 * 60);

/// What a server makes of a client with these credentials: its answer, or that there is none.
async fn served(credentials: &Credentials, addr: SocketAddr, server: &str) -> Option<String> {
    let tcp = TcpStream::connect(addr).await.unwrap();
    let mut tls = mesh_tls::connect(credentials, tcp, server, server, false).await.ok()?;
    let request = b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";
    tls.write_all(request).await.ok()?;
    let mut answer = String::new();
    tls.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}

/// Credentials that the mesh's own issuer would sign, or another's.
fn credentials(issuer: &Issuer, bundle: &TrustBundle) -> Credentials {
    let (id, key) = (id_of("client").parse().unwrap(), Key::generate());
    let issued = issuer.certify(&key.request(&id), &id, HOUR).unwrap();
    Credentials::new(&id, &key, &issued.chain(), bundle).unwrap()
}

#[tokio::test]
async fn a_certificate_of_another_root_opens_nothing() {
    let app = super::who_calls().await;
    let mesh = super::mesh(&app).await;
    let (web, addr) = (id_of("web"), mesh.pod("web").inbound(8080));
    let read = |name: &str| std::fs::read_to_string(mesh.folder().join("identity").join(name));
    let roots = read("roots.pem").unwrap();
    let ours = Issuer::from_pem(&read("issuer.pem").unwrap(), &read("issuer-key.pem").unwrap());
    let ours = credentials(&ours.unwrap(), &TrustBundle::from_pem(&roots).unwrap());
    let answer = served(&ours, addr, &web).await.expect("a member of the mesh is served");
    assert!(answer.ends_with(&id_of("client")), "{answer}");

    // It trusts our server, but the server has no reason to trust it.
    let foreign = Root::generate("foreign", 24 * HOUR, HOUR).unwrap();
    let issuer = Issuer::from_pem(&foreign.issuer, &foreign.issuer_key).unwrap();
    let both = TrustBundle::from_pem(&format!("{roots}{}", foreign.root)).unwrap();
    assert_eq!(served(&credentials(&issuer, &both), addr, &web).await, None);
    assert_eq!(app.requests(), 1);
}

#[tokio::test]
async fn a_server_with_another_account_is_sent_nothing() {
    let app = super::who_calls().await;
    // Somebody else's proxy answers at the address of `web`.
    let client = Pod::new("client").upstream("web:80");
    let impostor = Pod::new("web").port(8080, app.addr()).account("impostor");
    let mesh = Mesh::builder()
        .pod(client)
        .pod(impostor)
        .pod(Pod::new("impostor"))
        .service(Service::new("web", 8080))
        .start_unready()
        .await;
    mesh.ready("client").await;
    mesh.ready("web").await;
    let mut connection = Connection::open(mesh.pod("client").upstream(0)).await;
    connection.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
    // The handshake for somebody else passes through to an application that cannot shake hands.
    let answer = connection.response().await;
    assert_eq!((answer.status, answer.header("x-mesh-reason")), (502, Some("tls-failed")));
    assert_eq!(app.requests(), 0);
}

#[tokio::test]
async fn the_direct_port_leads_to_declared_ports_of_members_only() {
    let app = super::who_calls().await;
    let mesh = super::mesh(&app).await;
    let direct = mesh.pod("web").inbound(4143);
    // In the clear nobody gets anywhere.
    let mut plain = Connection::open(direct).await;
    plain.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
    assert_eq!(plain.rest().await, b"");

    let read = |name: &str| std::fs::read_to_string(mesh.folder().join("identity").join(name));
    let issuer = Issuer::from_pem(&read("issuer.pem").unwrap(), &read("issuer-key.pem").unwrap());
    let bundle = TrustBundle::from_pem(&read("roots.pem").unwrap()).unwrap();
    let member = credentials(&issuer.unwrap(), &bundle);
    let ask = async |port: u16| {
        let tcp = TcpStream::connect(direct).await.unwrap();
        let (id, header) = (id_of("web"), transport_header(port));
        let mut tls = mesh_tls::connect(&member, tcp, &id, &id, true).await.unwrap();
        let request = "GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";
        tls.write_all(&[header, request.into()].concat()).await.unwrap();
        let mut answer = String::new();
        let _ = tls.read_to_string(&mut answer).await;
        answer
    };
    let answer = ask(8080).await;
    assert!(answer.ends_with(&id_of("client")), "{answer}");
    // The proxy's own ports, and those nobody declared.
    for port in [4191, 4190, 4143, 4140, 8081, 22] {
        assert_eq!(ask(port).await, "", "port {port}");
    }
}

fn transport_header(port: u16) -> Vec<u8> {
    mesh_tls::TransportHeader { port, name: String::new(), protocol: None }.encode()
}
