//! Message heads that are too much.

use futures_util::future::join_all;
use mesh_integration::client::Connection;

use super::{Memory, app, assert_served, doors, mesh};

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: web\r\n";

#[tokio::test]
async fn heads_beyond_the_limits_are_refused() {
    let app = app().await;
    let mesh = mesh(app.addr(), &[]).await;
    for (sidecar, addr) in doors(&mesh) {
        let memory = Memory::of(sidecar);
        for head in [
            format!("{REQUEST}X-Large: {}\r\n\r\n", "x".repeat(1 << 20)),
            format!("{REQUEST}{}\r\n", "X-Many: 1\r\n".repeat(100_000)),
            format!("GET /{} HTTP/1.1\r\nHost: web\r\n\r\n", "p".repeat(1 << 20)),
            format!("{REQUEST}X-{}: 1\r\n\r\n", "n".repeat(1 << 20)),
        ] {
            let mut connection = Connection::open(addr).await;
            // It may be refused before all of it has been sent.
            let _ = connection.try_send(&head).await;
            if let Ok(response) = connection.try_response().await {
                assert!((400..500).contains(&response.status), "{}: {response:?}", &head[..40]);
            }
            connection.rest().await;
        }
        assert_served(addr).await;
        memory.assert_grew_less_than(8);
    }
    assert_eq!(app.requests(), doors(&mesh).len(), "only the good ones came through");
}

#[tokio::test]
async fn many_that_never_end_hold_little_memory() {
    const CLIENTS: usize = 100;
    let app = app().await;
    let mesh = mesh(app.addr(), &[]).await;
    for (sidecar, addr) in doors(&mesh) {
        let memory = Memory::of(sidecar);
        let endless = join_all((0..CLIENTS).map(|_| async move {
            let mut connection = Connection::open(addr).await;
            let _ = connection.try_send(format!("{REQUEST}X-Large: {}", "x".repeat(60_000))).await;
            connection
        }))
        .await;
        assert_served(addr).await;
        // Each may have the limit, 64 KiB, and buffers grow by doubling.
        memory.assert_grew_less_than(CLIENTS as u64 * 192 / 1024);
        drop(endless);
    }
}

#[tokio::test]
async fn what_follows_a_body_has_limits_too() {
    let app = app().await;
    let mesh = mesh(app.addr(), &[]).await;
    let chunked = "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (sidecar, addr) in doors(&mesh) {
        let memory = Memory::of(sidecar);
        for endless in [
            format!("{chunked}1;extension={}", "e".repeat(8 << 20)),
            format!("{chunked}{}", "1;e=eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee\r\nx\r\n".repeat(200_000)),
            format!("{chunked}0\r\nX-Trailer: {}", "t".repeat(8 << 20)),
            format!("{chunked}0\r\n{}", "X-Trailer: t\r\n".repeat(600_000)),
        ] {
            let mut connection = Connection::open(addr).await;
            let _ = connection.try_send(&endless).await;
            // The application has answered, perhaps; that is no reason to listen for ever.
            connection.rest().await;
        }
        assert_served(addr).await;
        memory.assert_grew_less_than(16);
    }
}
