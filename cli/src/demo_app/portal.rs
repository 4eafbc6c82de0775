//! `portal`, for executives: shows the report of finance, which it asks for again and again.
//!
//! The deployment `curious` is this very program under another service account, so that the mesh refuses it what it
//! lets the portal have.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::uri::Authority;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tokio::time::{MissedTickBehavior, interval};

use super::client::{BaseUrl, HttpClient};
use super::finance::{Report, TODAY};
use super::lifecycle::Lifecycle;
use super::server::{self, Reply, json, not_found, problem};

const DEADLINE: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
pub(super) struct Config {
    pub(super) finance: BaseUrl,
    pub(super) proxy: Option<Authority>,
    /// Between two looks at finance.
    pub(super) every: Duration,
}

/// The last report, or why there is none.
type Last = Arc<Mutex<Result<Report, String>>>;

/// Asks, and serves what it was told, until drained.
pub(super) async fn serve(
    config: Config,
    listener: TcpListener,
    lifecycle: Lifecycle,
) -> io::Result<()> {
    let last: Last = Arc::new(Mutex::new(Err("not asked yet".to_owned())));
    let shown = last.clone();
    let server = server::serve(listener, lifecycle.clone(), move |request| {
        let reply = answer(&request, &shown);
        async move { reply }
    });
    let ((), served) = tokio::join!(ask(config, &last, &lifecycle), server);
    served
}

async fn ask(config: Config, last: &Last, lifecycle: &Lifecycle) {
    let client = HttpClient::new(config.proxy, DEADLINE);
    let mut turns = interval(config.every);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = lifecycle.leaving() => return,
            _ = turns.tick() => {}
        }
        let told = report(&client, &config.finance).await;
        if let Err(why) = &told {
            tracing::debug!(why, "no report");
        }
        *last.lock().unwrap_or_else(PoisonError::into_inner) = told;
    }
}

async fn report(client: &HttpClient, finance: &BaseUrl) -> Result<Report, String> {
    let request = Request::get(finance.join(TODAY)).body(Full::<Bytes>::default());
    let request = request.map_err(|error| error.to_string())?;
    let (status, content) = client.call(request).await.map_err(|error| error.to_string())?;
    if status != StatusCode::OK {
        return Err(format!("finance answered {status}"));
    }
    serde_json::from_slice(&content).map_err(|error| format!("finance: {error}"))
}

fn answer(request: &Request<Incoming>, last: &Last) -> Reply {
    if request.method() != Method::GET || request.uri().path() != "/" {
        return not_found();
    }
    match &*last.lock().unwrap_or_else(PoisonError::into_inner) {
        Ok(report) => json(StatusCode::OK, report),
        Err(why) => problem(StatusCode::BAD_GATEWAY, why),
    }
}
