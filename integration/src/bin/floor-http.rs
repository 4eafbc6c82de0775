//! The least HTTP reverse proxy hyper makes, which is what an HTTP hop costs before a mesh does anything: one upstream
//! connection for each accepted one, requests passed on as they are. Two of them with mTLS in between are two hops:
//! `floor-http LISTEN UPSTREAM http1|http2 [tls-upstream|tls-accepted FOLDER]`, with what [`Sides::new`] reads.

use std::sync::Arc;

use anyhow::{Context, bail};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, client, server};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_integration::floor::{Sides, Stream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [listen, upstream, protocol, secured @ ..] = args.as_slice() else {
        bail!("usage: floor-http LISTEN UPSTREAM http1|http2 [tls-upstream|tls-accepted FOLDER]");
    };
    let sides = Sides::new(upstream, secured)?;
    let listener = TcpListener::bind(listen).await.context(listen.clone())?;
    let http2 = protocol == "http2";
    loop {
        let (socket, _) = listener.accept().await?;
        let sides = sides.clone();
        tokio::spawn(async move {
            // Whoever is at the other end sees the connection close; there is nobody else to tell.
            let _ = proxy(socket, &sides, http2).await;
        });
    }
}

async fn proxy(socket: TcpStream, sides: &Sides, http2: bool) -> anyhow::Result<()> {
    let accepted = TokioIo::new(sides.accepted(socket).await?);
    let upstream = TokioIo::new(sides.connect().await?);
    if http2 {
        Box::pin(proxy_http2(accepted, upstream)).await
    } else {
        Box::pin(proxy_http1(accepted, upstream)).await
    }
}

async fn proxy_http1(accepted: TokioIo<Stream>, upstream: TokioIo<Stream>) -> anyhow::Result<()> {
    let (sender, connection) = client::conn::http1::handshake(upstream).await?;
    tokio::spawn(connection);
    let sender = Arc::new(Mutex::new(sender));
    let service = service_fn(move |request: Request<Incoming>| {
        let sender = sender.clone();
        async move {
            let mut sender = sender.lock().await;
            sender.ready().await?;
            sender.send_request(request).await
        }
    });
    let server = server::conn::http1::Builder::new();
    Ok(server.serve_connection(accepted, service).await?)
}

async fn proxy_http2(accepted: TokioIo<Stream>, upstream: TokioIo<Stream>) -> anyhow::Result<()> {
    let client = client::conn::http2::Builder::new(TokioExecutor::new());
    let (sender, connection) = client.handshake(upstream).await?;
    tokio::spawn(connection);
    let service = service_fn(move |request: Request<Incoming>| {
        let mut sender = sender.clone();
        async move {
            sender.ready().await?;
            sender.send_request(request).await
        }
    });
    let server = server::conn::http2::Builder::new(TokioExecutor::new());
    Ok(server.serve_connection(accepted, service).await?)
}
