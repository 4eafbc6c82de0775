//! Connections in numbers.

use futures_util::future::join_all;
use mesh_integration::client::Connection;
use mesh_integration::wait;
use rustix::process::{Resource, getrlimit};

use super::{Memory, app, assert_served, doors, mesh};

/// What an idle connection may take, in bytes: one that never said anything, and one that was used
/// before. 100 000 of them are 1.2 and 3.2 GiB.
const SILENT: u64 = 12 << 10;
const USED: u64 = 32 << 10;

#[tokio::test]
async fn no_more_connections_are_taken_than_are_allowed() {
    const ALLOWED: usize = 50;
    let app = app().await;
    let mesh = mesh(app.addr(), &[("MAX_CONNECTIONS", "50")]).await;
    // The other way round the connections of the others would count at the second's.
    let [client, web, gateway] = doors(&mesh);
    for (_, addr) in [web, client, gateway] {
        let mut open = Vec::new();
        for _ in 0..ALLOWED {
            let mut connection = Connection::open(addr).await;
            connection.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
            assert_eq!(connection.response().await.text(), "ok");
            open.push(connection);
        }
        for _ in 0..10 {
            let mut refused = Connection::open(addr).await;
            let _ = refused.try_send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
            assert_eq!(refused.rest().await, b"", "closed at once");
        }
        // Those that are open are served as ever, and make room when they end.
        let last = open.last_mut().unwrap();
        last.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        assert_eq!(last.response().await.text(), "ok");
        open.truncate(ALLOWED / 2);
        wait::until("room for another connection", async || {
            let mut connection = Connection::open(addr).await;
            connection.try_send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await.ok()?;
            connection.try_response().await.ok()
        })
        .await;
    }
}

#[tokio::test]
async fn idle_connections_cost_little() {
    let app = app().await;
    // Until then clients of what is known to be HTTP may be silent.
    let mesh = mesh(app.addr(), &[("HEADER_TIMEOUT", "5m")]).await;
    // Both ends' descriptors have the same limit, and other tests need some of ours.
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX).saturating_sub(4_000);
    let count = usize::try_from(limit / 2).unwrap().min(5_000);
    let (sidecar, addr) = doors(&mesh)[0];
    assert_served(addr).await;
    let memory = Memory::of(sidecar);
    let mut idle = Vec::new();
    for _ in 0..count / 100 {
        idle.extend(join_all((0..100).map(|_| Connection::open(addr))).await);
    }
    let silent = memory.growth() / count as u64;
    // The others have been used once.
    let memory = Memory::of(sidecar);
    for _ in 0..count / 100 {
        let used = (0..100).map(|_| async {
            let mut connection = Connection::open(addr).await;
            connection.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
            assert_eq!(connection.response().await.text(), "ok");
            connection
        });
        idle.extend(join_all(used).await);
    }
    let used = memory.growth() / count as u64;
    assert!(sidecar.descriptors() > 2 * count, "they are all open");
    assert!(silent < SILENT && used < USED, "{silent} bytes silent, {used} used");
    assert_served(addr).await;
    drop(idle);
    wait::until("connections to be let go", async || (sidecar.descriptors() < count).then_some(()))
        .await;
}
