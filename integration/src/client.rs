//! Clients: [`Connection`] sends any bytes and reads HTTP/1 strictly, [`http`] speaks HTTP as an
//! application would, in each of the ways an application can reach the mesh.

mod connection;
pub mod http;

use std::net::SocketAddr;

pub use self::connection::{Broken, Connection, Response};

/// A `GET`; `None` when nobody answers.
pub async fn get(addr: SocketAddr, path: &str) -> Option<Response> {
    let mut connection = Connection::try_open(addr).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\r\n");
    connection.try_send(request).await.ok()?;
    connection.try_response().await.ok()
}
