//! The application of scenarios in which it has to be a process: it can be killed, frozen and slowed down, and keeps
//! account of what it took on.
//!
//! It listens on `$POD_IP:$PORT` and names itself in the header `x-pod` of each answer. `GET /after/MS/STATUS` answers
//! that late with that status, `POST /orders/ID` writes the ID to the file `$SCRATCH/orders/POD` and `PUT /slow/MS`
//! delays all further answers. After `PUT /hold` it answers no more, and makes the file `$SCRATCH/holding/POD` once it
//! holds a request. Where the file `$SCRATCH/stay-down/POD` exists, it does not start.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

struct App {
    pod: HeaderValue,
    orders: Mutex<File>,
    slow_millis: AtomicU64,
    holds: AtomicBool,
    holding: PathBuf,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let var = |name: &str| std::env::var(name).with_context(|| format!("${name}"));
    let (scratch, pod) = (PathBuf::from(var("SCRATCH")?), var("POD_NAME")?);
    if scratch.join("stay-down").join(&pod).exists() {
        bail!("{pod} was told to stay down");
    }
    let listener = TcpListener::bind(format!("{}:{}", var("POD_IP")?, var("PORT")?)).await?;
    let orders = folder(&scratch, "orders")?.join(&pod);
    let orders = OpenOptions::new().create(true).append(true).open(orders)?;
    let app = Arc::new(App {
        pod: pod.parse()?,
        orders: Mutex::new(orders),
        slow_millis: AtomicU64::new(0),
        holds: AtomicBool::new(false),
        holding: folder(&scratch, "holding")?.join(&pod),
    });
    serve(&app, listener).await
}

fn folder(scratch: &Path, name: &str) -> io::Result<PathBuf> {
    let folder = scratch.join(name);
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Until SIGTERM; then what was begun is finished.
async fn serve(app: &Arc<App>, listener: TcpListener) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let graceful = GracefulShutdown::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted?.0,
            _ = terminate.recv() => break,
        };
        stream.set_nodelay(true)?;
        let app = Arc::clone(app);
        let service = service_fn(move |request| {
            let app = Arc::clone(&app);
            async move { app.answer(request).await }
        });
        let server = auto::Builder::new(TokioExecutor::new());
        let connection = server.serve_connection(TokioIo::new(stream), service).into_owned();
        // A client that hangs up has its reasons.
        tokio::spawn(graceful.watch(connection));
    }
    drop(listener);
    graceful.shutdown().await;
    Ok(())
}

impl App {
    async fn answer(&self, request: Request<Incoming>) -> anyhow::Result<Response<Full<Bytes>>> {
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let path: Vec<_> = head.uri.path().split('/').skip(1).collect();
        let (status, text) = match (&head.method, path.as_slice()) {
            (&Method::PUT, ["slow", millis]) => {
                self.slow_millis.store(millis.parse()?, Relaxed);
                (StatusCode::OK, Bytes::new())
            }
            (&Method::PUT, ["hold"]) => {
                self.holds.store(true, Relaxed);
                (StatusCode::OK, Bytes::new())
            }
            (_, ["after", ..]) if self.holds.load(Relaxed) => {
                File::create(&self.holding)?;
                std::future::pending().await
            }
            (_, ["after", millis, status]) => {
                self.wait(millis.parse()?).await;
                (status.parse()?, Bytes::new())
            }
            (&Method::POST, ["orders", id]) => {
                self.take(id)?;
                self.wait(2).await;
                (StatusCode::CREATED, body)
            }
            _ => (StatusCode::NOT_FOUND, Bytes::new()),
        };
        let mut response = Response::new(Full::new(text));
        *response.status_mut() = status;
        response.headers_mut().insert("x-pod", self.pod.clone());
        Ok(response)
    }

    async fn wait(&self, millis: u64) {
        let slow = self.slow_millis.load(Relaxed);
        tokio::time::sleep(Duration::from_millis(millis + slow)).await;
    }

    fn take(&self, id: &str) -> io::Result<()> {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        orders.write_all(format!("{id}\n").as_bytes())
    }
}
