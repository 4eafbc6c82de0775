//! The least HTTP reverse proxy hyper makes, which is what an HTTP hop costs before a mesh does anything: one upstream
//! connection for each accepted one, requests passed on as they are. `floor-http LISTEN UPSTREAM http1|http2`

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, bail};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, client, server};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [listen, upstream, protocol] = args.as_slice() else {
        bail!("usage: floor-http LISTEN UPSTREAM http1|http2");
    };
    let upstream: SocketAddr = upstream.parse().context("UPSTREAM is IP:PORT")?;
    let listener = TcpListener::bind(listen).await.context(listen.clone())?;
    let http2 = protocol == "http2";
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        tokio::spawn(async move {
            // Whoever is at the other end sees the connection close; there is nobody else to tell.
            let _ = if http2 {
                proxy_http2(socket, upstream).await
            } else {
                proxy_http1(socket, upstream).await
            };
        });
    }
}

async fn proxy_http1(socket: TcpStream, upstream: SocketAddr) -> anyhow::Result<()> {
    let io = connect(upstream).await?;
    let (sender, connection) = client::conn::http1::handshake(io).await?;
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
    Ok(server.serve_connection(TokioIo::new(socket), service).await?)
}

async fn proxy_http2(socket: TcpStream, upstream: SocketAddr) -> anyhow::Result<()> {
    let io = connect(upstream).await?;
    let client = client::conn::http2::Builder::new(TokioExecutor::new());
    let (sender, connection) = client.handshake(io).await?;
    tokio::spawn(connection);
    let service = service_fn(move |request: Request<Incoming>| {
        let mut sender = sender.clone();
        async move {
            sender.ready().await?;
            sender.send_request(request).await
        }
    });
    let server = server::conn::http2::Builder::new(TokioExecutor::new());
    Ok(server.serve_connection(TokioIo::new(socket), service).await?)
}

async fn connect(upstream: SocketAddr) -> std::io::Result<TokioIo<TcpStream>> {
    let socket = TcpStream::connect(upstream).await?;
    socket.set_nodelay(true)?;
    Ok(TokioIo::new(socket))
}
