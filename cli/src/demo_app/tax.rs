//! `tax`: one GET over HTTP/1. With `--fail-percent` it answers 500 to that share, for retries and the breaker.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use tokio::net::TcpListener;

use super::checkout::TaxReply;
use super::lifecycle::Lifecycle;
use super::server::{self, Reply, json, not_found, problem};

const RATE_PERCENT: u32 = 19;

#[derive(Debug, Clone)]
pub(super) struct Config {
    /// The share of requests answered with 500, from 0 to 100, spread evenly: 50 fails every second one.
    pub(super) fail_percent: u8,
}

pub(super) async fn serve(
    config: Config,
    listener: TcpListener,
    lifecycle: Lifecycle,
) -> io::Result<()> {
    let served = Arc::new(AtomicU64::new(0));
    server::serve(listener, lifecycle, move |request| {
        let reply = answer(&config, &served, &request);
        async move { reply }
    })
    .await
}

fn answer(config: &Config, served: &AtomicU64, request: &Request<Incoming>) -> Reply {
    if request.method() != Method::GET || request.uri().path() != "/tax" {
        return not_found();
    }
    if fails(config.fail_percent, served.fetch_add(1, Ordering::Relaxed)) {
        return problem(StatusCode::INTERNAL_SERVER_ERROR, "made to fail by --fail-percent");
    }
    let cents = request.uri().query().and_then(|query| query.strip_prefix("cents="));
    match cents.and_then(|cents| cents.parse::<u32>().ok()) {
        Some(cents) => {
            let tax = u64::from(cents) * u64::from(RATE_PERCENT) / 100;
            let cents = u32::try_from(tax).unwrap_or(u32::MAX);
            json(StatusCode::OK, &TaxReply { cents })
        }
        None => problem(StatusCode::BAD_REQUEST, "GET /tax needs ?cents=<a whole number>"),
    }
}

/// Whether the `n`th request fails: where the running total of the share passes a whole number.
fn fails(percent: u8, n: u64) -> bool {
    let percent = u64::from(percent);
    let n = n % 100;
    (n + 1) * percent / 100 > n * percent / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_the_share_fails() {
        for percent in [0, 1, 30, 50, 99, 100] {
            let failed = (0..1000).filter(|n| fails(percent, *n)).count();
            assert_eq!(failed, usize::from(percent) * 10, "{percent} %");
        }
    }
}
