//! `finance`: figures that not everybody may see. Who may is the mesh's business: nothing here asks who calls.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use super::lifecycle::Lifecycle;
use super::server::{self, Reply, json, not_found};

pub(super) const TODAY: &str = "/reports/today";

/// The answer of `GET /reports/today`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Report {
    pub(super) cents: u64,
}

pub(super) async fn serve(listener: TcpListener, lifecycle: Lifecycle) -> io::Result<()> {
    let asked = Arc::new(AtomicU64::new(0));
    server::serve(listener, lifecycle, move |request| {
        let reply = answer(&asked, &request);
        async move { reply }
    })
    .await
}

fn answer(asked: &AtomicU64, request: &Request<Incoming>) -> Reply {
    if request.method() != Method::GET || request.uri().path() != TODAY {
        return not_found();
    }
    // Business is good: it grows each time somebody looks.
    let cents = 100_000 + asked.fetch_add(1, Ordering::Relaxed) * 25;
    json(StatusCode::OK, &Report { cents })
}
