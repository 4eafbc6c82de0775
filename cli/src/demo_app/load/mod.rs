//! `load`: requests at a fixed rate, and exact statistics of them at `GET /stats?window=60`.
//!
//! The loop is open: a slow answer doesn't delay the next request. Of five requests three browse, one fills a cart and
//! one buys. Next: `stats.rs`.

mod stats;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::uri::Authority;
use http::{Method, Request, StatusCode, header};
use http_body_util::Full;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout};

use super::catalog::PRODUCTS;
use super::client::{BaseUrl, HttpClient};
use super::lifecycle::{DRAIN_DEADLINE, Lifecycle};
use super::server::{self, Reply, json, not_found, problem};

pub(super) use stats::Summary;
use stats::{MAX_WINDOW, Stats};

/// More than any service behind `web` allows itself.
const REQUEST_DEADLINE: Duration = Duration::from_secs(15);
/// Requests further behind schedule are skipped: after a stall there is no storm.
const MAX_BEHIND: Duration = Duration::from_secs(1);
const DEFAULT_WINDOW: u64 = 60;
pub(super) const MAX_RPS: f64 = 10_000.0;
pub(super) const MAX_CONCURRENCY: usize = 4096;

#[derive(Debug, Clone)]
pub(super) struct Config {
    pub(super) target: BaseUrl,
    pub(super) proxy: Option<Authority>,
    /// Requests a second, above 0.
    pub(super) rps: f64,
    /// The most requests in flight.
    pub(super) concurrency: usize,
    /// Stop after so many requests, instead of at the end of the lifecycle.
    pub(super) count: Option<u64>,
}

struct Load {
    config: Config,
    client: HttpClient,
    begin: Instant,
    /// Sets this run's purchases apart from those of an earlier one.
    run: u64,
    stats: Mutex<Stats>,
}

/// Sends requests, and serves the statistics, until drained.
pub(super) async fn serve(
    config: Config,
    listener: TcpListener,
    lifecycle: Lifecycle,
) -> io::Result<()> {
    let load = Arc::new(Load::new(config));
    let stats = load.clone();
    let server = server::serve(listener, lifecycle.clone(), move |request| {
        let reply = stats.answer(request.method(), request.uri());
        async move { reply }
    });
    let ((), served) = tokio::join!(load.drive(&lifecycle), server);
    served
}

/// Sends requests until `count` or the end of the lifecycle, and returns what came of them.
pub(super) async fn run(config: Config, lifecycle: &Lifecycle) -> Summary {
    let load = Arc::new(Load::new(config));
    load.clone().drive(lifecycle).await;
    let stats = load.stats.lock().unwrap_or_else(PoisonError::into_inner);
    stats.total(load.begin.elapsed())
}

impl Load {
    fn new(config: Config) -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            client: HttpClient::new(config.proxy.clone(), REQUEST_DEADLINE),
            config,
            begin: Instant::now(),
            run: u64::try_from(since_epoch.as_millis()).unwrap_or_default(),
            stats: Mutex::new(Stats::new()),
        }
    }

    /// Returns when all requests in flight have completed.
    async fn drive(self: Arc<Self>, lifecycle: &Lifecycle) {
        let room = Arc::new(Semaphore::new(self.config.concurrency));
        let mut turn = 0;
        let mut sent = 0;
        while self.config.count.is_none_or(|count| sent < count) {
            let due = async {
                sleep_until(self.due(turn)).await;
                room.clone().acquire_owned().await.expect("the semaphore is never closed")
            };
            let permit = tokio::select! {
                biased;
                () = lifecycle.leaving() => break,
                permit = due => permit,
            };
            turn = self.catch_up(turn);
            let load = self.clone();
            tokio::spawn(async move {
                load.send(sent).await;
                drop(permit);
            });
            turn += 1;
            sent += 1;
        }
        let all = u32::try_from(self.config.concurrency).unwrap_or(u32::MAX);
        if timeout(DRAIN_DEADLINE, room.acquire_many(all)).await.is_err() {
            tracing::warn!("requests in flight outlived the drain deadline");
        }
    }

    fn due(&self, turn: u64) -> Instant {
        self.begin + Duration::from_secs_f64(turn as f64 / self.config.rps)
    }

    /// The turn to take now: later than `turn` if that is too far behind.
    fn catch_up(&self, turn: u64) -> u64 {
        let behind = Instant::now().saturating_duration_since(self.due(turn));
        if behind <= MAX_BEHIND {
            return turn;
        }
        let skipped = (behind.as_secs_f64() * self.config.rps) as u64;
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).skip(skipped);
        turn + skipped
    }

    async fn send(&self, number: u64) {
        let request = self.request(number);
        let begin = Instant::now();
        let outcome = match request {
            Ok(request) => self.client.call(request).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let end = Instant::now();
        let success = match &outcome {
            Ok((status, _)) => !status.is_server_error(),
            Err(_) => false,
        };
        if !success {
            tracing::debug!(number, ?outcome, "request failed");
        }
        let mut stats = self.stats.lock().unwrap_or_else(PoisonError::into_inner);
        stats.record(end - self.begin, end - begin, success);
    }

    fn request(&self, number: u64) -> Result<Request<Full<Bytes>>, http::Error> {
        let product = PRODUCTS[(number as usize / 5) % PRODUCTS.len()].id;
        let item = format!("{{\"product\":{product},\"quantity\":1}}");
        match number % 5 {
            0 | 2 => self.get("/"),
            4 => self.get(&format!("/product/{product}")),
            1 => self.post("/cart", number, item),
            _ => self.post("/buy", number, item),
        }
    }

    fn get(&self, path: &str) -> Result<Request<Full<Bytes>>, http::Error> {
        Request::get(self.config.target.join(path)).body(Full::default())
    }

    /// With a key, so that the mesh may repeat it.
    fn post(
        &self,
        path: &str,
        number: u64,
        body: String,
    ) -> Result<Request<Full<Bytes>>, http::Error> {
        Request::post(self.config.target.join(path))
            .header("idempotency-key", format!("load-{}-{number}", self.run))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body.into()))
    }

    fn answer(&self, method: &Method, uri: &http::Uri) -> Reply {
        if method != Method::GET || uri.path() != "/stats" {
            return not_found();
        }
        let Some(window) = window(uri.query()) else {
            return problem(
                StatusCode::BAD_REQUEST,
                "GET /stats takes ?window=<seconds>, from 1 to 120",
            );
        };
        let stats = self.stats.lock().unwrap_or_else(PoisonError::into_inner);
        json(StatusCode::OK, &stats.summary(self.begin.elapsed(), window))
    }
}

/// The window asked for in seconds, or `None` where that makes no sense.
fn window(query: Option<&str>) -> Option<u64> {
    let Some(query) = query else {
        return Some(DEFAULT_WINDOW);
    };
    let window = query.strip_prefix("window=")?.parse().ok()?;
    (1..=MAX_WINDOW).contains(&window).then_some(window)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(rps: f64) -> Load {
        Load::new(Config {
            target: "http://127.0.0.1:9".parse().unwrap(),
            proxy: None,
            rps,
            concurrency: 8,
            count: None,
        })
    }

    #[test]
    fn the_mix_is_sixty_twenty_twenty() {
        let load = load(30.0);
        let (mut browse, mut cart, mut buy) = (0, 0, 0);
        for number in 0..100 {
            let request = load.request(number).unwrap();
            match (request.method(), request.uri().path()) {
                (&Method::POST, "/cart") => cart += 1,
                (&Method::POST, "/buy") => buy += 1,
                (&Method::GET, _) => browse += 1,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((browse, cart, buy), (60, 20, 20));
    }

    #[test]
    fn windows_are_bounded() {
        assert_eq!(window(None), Some(60));
        assert_eq!(window(Some("window=5")), Some(5));
        for bad in ["window=0", "window=121", "window=-1", "window=x", "x=1", ""] {
            assert_eq!(window(Some(bad)), None, "{bad}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn turns_come_at_the_rate_and_a_stall_is_skipped() {
        let load = load(30.0);
        assert_eq!(load.due(30) - load.begin, Duration::from_secs(1));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(load.catch_up(1), 1);
        tokio::time::advance(Duration::from_secs(9)).await;
        assert_eq!(load.catch_up(1), 1 + 299);
        assert_eq!(load.stats.lock().unwrap().total(Duration::from_secs(10)).skipped, 299);
    }
}
