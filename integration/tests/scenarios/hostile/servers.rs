//! Applications and endpoints that answer with nonsense: clients are told, and never get it.

use mesh_integration::app::TcpApp;
use mesh_integration::client::{Broken, Connection};
use mesh_integration::mesh::Mesh;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Memory, doors, mesh};

/// Answers every request with the same bytes; closes then if told so.
async fn answering(bytes: impl Into<Vec<u8>>, close: bool) -> TcpApp {
    let bytes = bytes.into();
    TcpApp::start(move |mut stream| {
        let bytes = bytes.clone();
        async move {
            let mut request = Vec::new();
            while let Ok(1..) = stream.read_buf(&mut request).await {
                if !request.ends_with(b"\r\n\r\n") {
                    continue;
                }
                request.clear();
                if stream.write_all(&bytes).await.is_err() || close {
                    // Whatever may still come is read, so that nothing sent is lost by a reset.
                    let _ = stream.shutdown().await;
                }
            }
        }
    })
    .await
}

async fn get(mesh: &Mesh) -> Connection {
    let mut connection = Connection::open(mesh.pod("client").upstream(0)).await;
    connection.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
    connection
}

#[tokio::test]
async fn answers_that_are_none_are_told_as_such() {
    let large = "x".repeat(1 << 20);
    for (answer, close, reason) in [
        ("\0\x01\x02 not HTTP at all\r\n\r\n".to_owned(), false, "protocol-error"),
        ("HTTP/1.1 2000 OK\r\n\r\n".to_owned(), false, "protocol-error"),
        ("HTTP/1.1 200 OK\r\nno colon\r\n\r\n".to_owned(), false, "protocol-error"),
        ("HTTP/1.1 200 OK\r\nX-A: b\r\n folded\r\n\r\n".to_owned(), false, "protocol-error"),
        ("HTTP/1.1 200 OK\r\nX : b\r\n\r\n".to_owned(), false, "protocol-error"),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello".to_owned(),
            false,
            "protocol-error",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\nhello".to_owned(),
            false,
            "protocol-error",
        ),
        (format!("HTTP/1.1 200 OK\r\nX-Large: {large}\r\n\r\n"), false, "protocol-error"),
        (String::new(), true, "connection-closed"),
        ("HTTP/1.1 200 OK\r\nContent-".to_owned(), true, "connection-closed"),
    ] {
        let app = answering(answer.clone(), close).await;
        let mesh = mesh(app.addr(), &[]).await;
        let memories = doors(&mesh).map(|(sidecar, _)| Memory::of(sidecar));
        let response = get(&mesh).await.response().await;
        let start = &answer[..answer.len().min(40)];
        assert_eq!(response.status, 502, "{start:?}");
        assert_eq!(response.header("x-mesh-reason"), Some(reason), "{start:?}");
        for memory in memories {
            memory.assert_grew_less_than(8);
        }
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_not_taken_for_whole() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nnot all of it",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nxyz\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello!!0\r\n\r\n",
    ] {
        let app = answering(answer, true).await;
        let mesh = mesh(app.addr(), &[]).await;
        let broken = get(&mesh).await.try_response().await;
        match broken {
            Err(Broken::Closed(_) | Broken::Io(_)) => {}
            // The answer may have been found out before anything of it was passed on.
            Ok(response) => assert_eq!(response.status, 502, "{answer:?}: {response:?}"),
            Err(Broken::Malformed(what)) => panic!("{answer:?}: {what}"),
        }
    }
}

#[tokio::test]
async fn more_than_was_asked_for_is_nobodys_answer() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngoodHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        "HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\nevil",
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\nevil",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ngood\r\n0\r\n\r\nevil",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 100\r\n\r\n4\r\ngood\r\n0\r\n\r\nevil",
    ] {
        let app = answering(answer, false).await;
        let mesh = mesh(app.addr(), &[]).await;
        for _ in 0..20 {
            let response = get(&mesh).await.response().await;
            let text = response.text();
            assert!(matches!(text.as_str(), "good" | ""), "{answer:?}: {response:?}");
        }
    }
}

#[tokio::test]
async fn answers_to_what_nobody_asked_are_none() {
    // The client did not ask to switch.
    let switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
    let app = answering(switching, false).await;
    let switched = mesh(app.addr(), &[]).await;
    assert_eq!(get(&switched).await.response().await.status, 502);

    // Interim answers without end.
    let app =
        answering("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(100_000), true).await;
    let hinted = mesh(app.addr(), &[]).await;
    let memories = doors(&hinted).map(|(sidecar, _)| Memory::of(sidecar));
    assert_eq!(get(&hinted).await.response().await.status, 502);
    for memory in memories {
        memory.assert_grew_less_than(8);
    }
}
