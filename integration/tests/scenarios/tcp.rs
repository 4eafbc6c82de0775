//! Connections that are not HTTP, and connections that do not say yet what they are.

mod first_byte;
mod tls;

use mesh_integration::app::TcpApp;
use mesh_integration::client::Connection;
use mesh_integration::mesh::{Mesh, Pod, Service};
use mesh_integration::wait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn mesh(app: &TcpApp) -> Mesh {
    let client = Pod::new("client").upstream("db:80");
    let db = Pod::new("db").port(5000, app.addr());
    Mesh::builder().pod(client).pod(db).service(Service::new("db", 5000)).start().await
}

async fn connect(mesh: &Mesh) -> Connection {
    Connection::open(mesh.pod("client").upstream(0)).await
}

/// Says back what it hears, and ends when its client does.
async fn echo() -> TcpApp {
    TcpApp::start(|mut stream| async move {
        let (mut read, mut write) = stream.split();
        // A client may be gone before it has heard everything.
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    })
    .await
}

#[tokio::test]
async fn a_client_that_speaks_first_is_carried() {
    let app = echo().await;
    let mesh = mesh(&app).await;
    for words in [
        &b"*1\r\n$4\r\nPING\r\n"[..],
        b"\0\0\0\x08\x04\xd2\x16\x2f",
        b"x",
        b"GET ",
        b"GET key\r\nGET / HTTP/1.1\r\n",
        b"{\"request\":\"GET / HTTP/1.1\"}\n",
    ] {
        let mut connection = connect(&mesh).await;
        connection.send(words).await;
        connection.finish().await;
        assert_eq!(connection.rest().await, words);
    }
}

/// Neither is the server kept waiting for more of the client's words, nor do they have to end soon.
#[tokio::test]
async fn words_without_an_end_are_carried_as_they_come() {
    let app = echo().await;
    let mesh = mesh(&app).await;
    for words in ["ping", "hello world", "A-TOKEN-OF-MORE-THAN-24-BYTES"] {
        let mut connection = connect(&mesh).await;
        let started = std::time::Instant::now();
        for _ in 0..3 {
            connection.send(words).await;
            assert_eq!(connection.bytes(words.len()).await, words.as_bytes());
        }
        // Detection would wait for 10 s.
        assert!(started.elapsed() < std::time::Duration::from_secs(5), "{words}");
    }
}

#[tokio::test]
async fn each_direction_ends_by_itself() {
    // Answers only when the question is over.
    let app = TcpApp::start(|mut stream| async move {
        let mut question = Vec::new();
        stream.read_to_end(&mut question).await.unwrap();
        stream.write_all(format!("heard {} bytes", question.len()).as_bytes()).await.unwrap();
    })
    .await;
    let client_first = mesh(&app).await;
    let mut connection = connect(&client_first).await;
    connection.send(vec![0; 300_000]).await;
    connection.finish().await;
    assert_eq!(connection.rest().await, b"heard 300000 bytes");

    // The other way round: the server is done before the client is.
    let (heard, mut hears) = tokio::sync::mpsc::channel(1);
    let app = TcpApp::start(move |mut stream| {
        let heard = heard.clone();
        async move {
            stream.write_all(b"all I have to say").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.unwrap();
            heard.send(rest).await.unwrap();
        }
    })
    .await;
    let server_first = mesh(&app).await;
    let mut connection = connect(&server_first).await;
    assert_eq!(connection.rest().await, b"all I have to say");
    connection.send("still talking").await;
    connection.finish().await;
    assert_eq!(wait::within("the end", hears.recv()).await.unwrap(), b"still talking");
}

#[tokio::test]
async fn much_passes_both_ways_at_once() {
    const AMOUNT: usize = 20 << 20;
    let app = echo().await;
    let mesh = mesh(&app).await;
    let stream = tokio::net::TcpStream::connect(mesh.pod("client").upstream(0)).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let pattern = |at: usize| (at % 253) as u8;
    let sending = tokio::spawn(async move {
        let bytes: Vec<u8> = (0..AMOUNT).map(pattern).collect();
        write.write_all(b"\0").await.unwrap();
        write.write_all(&bytes).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut back = Vec::with_capacity(AMOUNT + 1);
    wait::within("the echo", read.read_to_end(&mut back)).await.unwrap();
    sending.await.unwrap();
    assert_eq!(back.len(), AMOUNT + 1);
    assert!(back[1..].iter().enumerate().all(|(at, byte)| *byte == pattern(at)));
}

#[tokio::test]
async fn a_server_that_is_away_closes_the_connection() {
    let app = echo().await;
    let mesh = mesh(&app).await;
    drop(app);
    let mut connection = connect(&mesh).await;
    connection.send(b"\0hello").await;
    assert_eq!(connection.rest().await, b"");
}
