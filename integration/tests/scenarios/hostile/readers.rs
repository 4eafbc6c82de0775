//! Peers that do not read what they asked for, or ask for more than they read.

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream;
use http::Response;
use http_body_util::BodyExt;
use hyper::body::Frame as BodyFrame;
use mesh_integration::app::HttpApp;
use mesh_integration::client::Connection;
use mesh_integration::client::http::{full, streamed};
use mesh_integration::wait;

use super::frames::{
    END_HEADERS, END_STREAM, HEADERS, INITIAL_WINDOW_SIZE, WINDOW_UPDATE, block, frame, open,
};
use super::{Memory, assert_served, doors, mesh};

/// `GET` of a path with `endless` in it never ends; a `POST` is never read, nor answered; all else
/// is `ok`.
async fn app() -> HttpApp {
    HttpApp::start(|request| async move {
        if request.uri().path() == "/endless" {
            let part = Bytes::from(vec![b'e'; 16 * 1024]);
            return Response::new(streamed(stream::repeat_with(move || {
                Ok(BodyFrame::data(part.clone()))
            })));
        }
        if request.uri().path() == "/stuck" {
            // Holds the body without reading it.
            let _request = request;
            return std::future::pending().await;
        }
        let _whole = request.into_body().collect().await;
        Response::new(full("ok"))
    })
    .await
}

/// Waits until a proxy's memory has stopped growing.
async fn until_settled(memory: &Memory<'_>) {
    let mut last = u64::MAX;
    wait::until("memory to settle", async || {
        let now = memory.growth();
        let settled = now.abs_diff(last) < 64 << 10;
        last = now;
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        settled.then_some(())
    })
    .await;
}

/// More than fit into one connection between the proxies.
const CLIENTS: usize = 100;

#[tokio::test]
async fn clients_that_do_not_read_hold_little_and_hold_nobody_up() {
    let app = app().await;
    let mesh = mesh(app.addr(), &[]).await;
    for (sidecar, addr) in doors(&mesh) {
        let memory = Memory::of(sidecar);
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            let mut connection = Connection::open(addr).await;
            connection.send("GET /endless HTTP/1.1\r\nHost: web\r\n\r\n").await;
            connection.bytes(1).await;
            clients.push(connection);
        }
        until_settled(&memory).await;
        // 64 KiB of a stream's window on the one side, and what a connection may buffer on the other.
        memory.assert_grew_less_than(CLIENTS as u64);
        assert_served(addr).await;
    }
}

#[tokio::test]
async fn streams_that_nobody_reads_hold_little_and_hold_nobody_up() {
    let app = app().await;
    let mesh = mesh(app.addr(), &[]).await;
    let mut endless = vec![0x82, 0x86];
    endless.extend(block(&[(":authority", "web"), (":path", "/endless")]));
    for (sidecar, addr) in doors(&mesh) {
        let memory = Memory::of(sidecar);
        let requests: Vec<u8> = (0..CLIENTS as u32)
            .flat_map(|number| frame(HEADERS, END_HEADERS | END_STREAM, 2 * number + 1, &endless))
            .collect();
        // Windows of a gigabyte, to be filled; and none at all.
        let wide = frame(WINDOW_UPDATE, 0, 0, &0x3fff_ffffu32.to_be_bytes());
        let greedy = [wide, requests.clone()].concat();
        let greedy = open(addr, &[(INITIAL_WINDOW_SIZE, 0x3fff_ffff)], &greedy).await;
        let closed = open(addr, &[(INITIAL_WINDOW_SIZE, 0)], &requests).await;
        until_settled(&memory).await;
        memory.assert_grew_less_than(2 * CLIENTS as u64);
        assert_served(addr).await;
        drop((greedy, closed));
    }
}

#[tokio::test]
async fn bodies_that_the_application_does_not_read_hold_nobody_up() {
    let app = app().await;
    let mesh = mesh(app.addr(), &[]).await;
    for (sidecar, addr) in doors(&mesh) {
        let memory = Memory::of(sidecar);
        let clients = join_all((0..CLIENTS).map(|_| async move {
            let mut connection = Connection::open(addr).await;
            let head = "POST /stuck HTTP/1.1\r\nHost: web\r\nContent-Length: 1000000000\r\n\r\n";
            connection.send(head).await;
            connection.send_what_is_taken().await;
            connection
        }))
        .await;
        until_settled(&memory).await;
        memory.assert_grew_less_than(CLIENTS as u64);
        // With a body, which needs its share of the windows.
        let mut connection = Connection::open(addr).await;
        let body = "b".repeat(100_000);
        connection
            .send(format!("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 100000\r\n\r\n{body}"))
            .await;
        assert_eq!(connection.response().await.text(), "ok");
        drop(clients);
    }
}
