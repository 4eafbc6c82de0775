//! Live requests, for those who ask: filtered, limited, redacted, and dropped rather than waited for.
//!
//! With nobody listening a request pays one relaxed load ([`TapHub::active`]).

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::SystemTime;

use http::HeaderMap;
use mesh_model::tap::{Record, TapFilter};
use mesh_model::{Direction, Reason};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant};

/// Events that wait for one reader.
const QUEUE: usize = 1_000;
/// What a limit of 0 means.
const DEFAULT_RPS: u32 = 100;
/// Headers whose value is a credential.
const SENSITIVE: [&str; 5] =
    ["authorization", "cookie", "set-cookie", "proxy-authorization", "x-api-key"];
const REDACTED: &str = "[redacted]";

/// Where finished requests are published and listened to.
#[derive(Debug)]
pub struct TapHub {
    active: Arc<AtomicBool>,
    next_id: AtomicU64,
    max: usize,
    sessions: Arc<Mutex<Vec<Session>>>,
}

/// One event of a tap.
#[derive(Clone, Debug, PartialEq)]
pub struct TapEvent {
    pub record: Record,
    /// Events left out just before this one, because of the limit or a slow reader.
    pub skipped: u64,
}

/// A connection that a policy does not allow.
#[derive(Clone, Debug)]
pub struct Refused {
    pub direction: Direction,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub parent: String,
    pub route: String,
    pub reason: Reason,
    /// The client's identity.
    pub tls: Option<String>,
    pub policy: Option<String>,
}

/// As many taps run as are allowed.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("{max} taps of this proxy are running already, which is its limit; end one of them first")]
pub struct TooManyTaps {
    pub max: usize,
}

/// On the record and its request's headers.
type Predicate = dyn Fn(&Record, Option<&HeaderMap>) -> bool + Send;

struct Session {
    id: u64,
    matches: Box<Predicate>,
    with_headers: bool,
    show_secrets: bool,
    per_second: u32,
    /// Of the running second: when it began, and what was sent in it.
    second: (Instant, u32),
    skipped: u64,
    events: mpsc::Sender<TapEvent>,
}

impl TapHub {
    pub(super) fn new(max: usize) -> Self {
        let (active, next_id, sessions) = Default::default();
        Self { active, next_id, max, sessions }
    }

    /// Whether anybody listens. Without, records need not even be made.
    pub fn active(&self) -> bool {
        self.active.load(Relaxed)
    }

    /// A number for [`Record::id`], unique within the process.
    pub fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Relaxed)
    }
}

impl TapHub {
    /// Shows a finished request to those who want to see it. Never waits.
    pub fn publish(
        &self,
        record: Record,
        request_headers: Option<HeaderMap>,
        response_headers: Option<HeaderMap>,
    ) {
        let (request, response) = (request_headers.as_ref(), response_headers.as_ref());
        for session in self.sessions.lock().iter_mut() {
            session.offer(&record, request, response);
        }
    }

    /// Shows a connection that a policy does not allow, or allows no more.
    pub fn refused(&self, refused: Refused) {
        if !self.active() {
            return;
        }
        let Refused { direction, source, destination, parent, route, reason, tls, policy } =
            refused;
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let record = Record {
            id: self.next_id(),
            started_unix_ms: since_epoch
                .ok()
                .and_then(|since| u64::try_from(since.as_millis()).ok())
                .unwrap_or_default(),
            direction,
            source,
            destination: Some(destination),
            method: String::new(),
            scheme: String::new(),
            authority: String::new(),
            path: String::new(),
            parent,
            route,
            backend: String::new(),
            status: 0,
            grpc_status: None,
            reason: Some(reason),
            attempts: 0,
            request_bytes: 0,
            response_bytes: 0,
            first_byte: None,
            duration: Duration::ZERO,
            tls,
            policy,
            request_headers: Vec::new(),
            response_headers: Vec::new(),
        };
        self.publish(record, None, None);
    }

    /// Starts a tap. More than `max_rps` events a second (0 means 100) are left out and counted.
    /// Credentials in headers are replaced unless `show_secrets`.
    pub fn subscribe(
        &self,
        filter: TapFilter,
        max_rps: u32,
        show_secrets: bool,
    ) -> Result<TapReceiver, TooManyTaps> {
        let with_headers = filter.with_headers;
        let matches = move |record: &Record, headers: Option<&HeaderMap>| {
            filter.matches(record) && has_headers(headers, &filter.headers)
        };
        self.subscribe_matching(matches, with_headers, max_rps, show_secrets)
    }

    /// The same with any predicate on the record and its request's headers.
    pub fn subscribe_matching(
        &self,
        matches: impl Fn(&Record, Option<&HeaderMap>) -> bool + Send + 'static,
        with_headers: bool,
        max_rps: u32,
        show_secrets: bool,
    ) -> Result<TapReceiver, TooManyTaps> {
        let mut sessions = self.sessions.lock();
        if sessions.len() >= self.max {
            return Err(TooManyTaps { max: self.max });
        }
        let (events, receiver) = mpsc::channel(QUEUE);
        let id = self.next_id();
        sessions.push(Session {
            id,
            matches: Box::new(matches),
            with_headers,
            show_secrets,
            per_second: if max_rps == 0 { DEFAULT_RPS } else { max_rps },
            second: (Instant::now(), 0),
            skipped: 0,
            events,
        });
        self.active.store(true, Relaxed);
        let (active, sessions) = (self.active.clone(), self.sessions.clone());
        Ok(TapReceiver { id, events: receiver, active, sessions })
    }
}

/// The reading end of a tap; dropping it ends the tap.
#[derive(Debug)]
pub struct TapReceiver {
    id: u64,
    events: mpsc::Receiver<TapEvent>,
    active: Arc<AtomicBool>,
    sessions: Arc<Mutex<Vec<Session>>>,
}

impl TapReceiver {
    /// The next event; never `None` as long as the hub exists.
    pub async fn recv(&mut self) -> Option<TapEvent> {
        self.events.recv().await
    }

    /// For use as a stream.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<TapEvent>> {
        self.events.poll_recv(cx)
    }
}

impl Drop for TapReceiver {
    fn drop(&mut self) {
        let mut sessions = self.sessions.lock();
        sessions.retain(|session| session.id != self.id);
        self.active.store(!sessions.is_empty(), Relaxed);
    }
}

impl Session {
    fn offer(
        &mut self,
        record: &Record,
        request: Option<&HeaderMap>,
        response: Option<&HeaderMap>,
    ) {
        if !(self.matches)(record, request) {
            return;
        }
        let now = Instant::now();
        if now.duration_since(self.second.0) >= Duration::from_secs(1) {
            self.second = (now, 0);
        }
        if self.second.1 >= self.per_second {
            self.skipped += 1;
            return;
        }
        let Ok(slot) = self.events.try_reserve() else {
            self.skipped += 1;
            return;
        };
        self.second.1 += 1;
        let mut record = record.clone();
        if self.with_headers {
            record.request_headers = shown(request, self.show_secrets);
            record.response_headers = shown(response, self.show_secrets);
        }
        slot.send(TapEvent { record, skipped: std::mem::take(&mut self.skipped) });
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("id", &self.id).finish_non_exhaustive()
    }
}

fn has_headers(headers: Option<&HeaderMap>, wanted: &[(String, String)]) -> bool {
    wanted.iter().all(|(name, value)| {
        let mut values = headers.into_iter().flat_map(|h| h.get_all(name.as_str()));
        values.any(|have| have.as_bytes() == value.as_bytes())
    })
}

fn shown(headers: Option<&HeaderMap>, show_secrets: bool) -> Vec<(String, String)> {
    let pairs = headers.into_iter().flat_map(HeaderMap::iter);
    let show = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        let hide = !show_secrets && (value.is_sensitive() || SENSITIVE.contains(&name.as_str()));
        let value = match hide {
            true => REDACTED.into(),
            false => String::from_utf8_lossy(value.as_bytes()).into_owned(),
        };
        (name.as_str().to_owned(), value)
    };
    pairs.map(show).collect()
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use http::HeaderValue;
    use mesh_model::Direction;
    use tokio::time::advance;

    use super::*;

    fn record(path: &str) -> Record {
        Record {
            id: 1,
            started_unix_ms: 0,
            direction: Direction::Inbound,
            source: "10.0.0.1:4000".parse().unwrap(),
            destination: None,
            method: "GET".into(),
            scheme: "http".into(),
            authority: "tax".into(),
            path: path.into(),
            parent: String::new(),
            route: String::new(),
            backend: String::new(),
            status: 200,
            grpc_status: None,
            reason: None,
            attempts: 1,
            request_bytes: 0,
            response_bytes: 0,
            first_byte: None,
            duration: Duration::from_millis(1),
            tls: None,
            policy: None,
            request_headers: Vec::new(),
            response_headers: Vec::new(),
        }
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> Option<HeaderMap> {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (http::HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        Some(pairs.iter().map(pair).collect())
    }

    /// What waits for the reader, and how many were skipped before each.
    fn waiting(tap: &mut TapReceiver) -> Vec<(String, u64)> {
        let mut events = Vec::new();
        while let Some(Some(event)) = tokio::task::unconstrained(tap.recv()).now_or_never() {
            events.push((event.record.path, event.skipped));
        }
        events
    }

    fn path(path: &str) -> TapFilter {
        TapFilter { path: Some(path.into()), ..TapFilter::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_active_as_long_as_somebody_listens() {
        let hub = TapHub::new(8);
        assert!(!hub.active());
        let one = hub.subscribe(TapFilter::default(), 0, false).unwrap();
        let two = hub.subscribe(TapFilter::default(), 0, false).unwrap();
        drop(one);
        assert!(hub.active());
        drop(two);
        assert!(!hub.active());
        hub.publish(record("/"), None, None);
    }

    #[tokio::test(start_paused = true)]
    async fn everybody_gets_what_they_asked_for() {
        let hub = TapHub::new(8);
        let mut all = hub.subscribe(TapFilter::default(), 0, false).unwrap();
        let mut some = hub.subscribe(path("/b"), 0, false).unwrap();
        hub.publish(record("/a"), None, None);
        hub.publish(record("/b/1"), None, None);
        assert_eq!(waiting(&mut all), [("/a".into(), 0), ("/b/1".into(), 0)]);
        assert_eq!(waiting(&mut some), [("/b/1".into(), 0)]);
    }

    #[tokio::test(start_paused = true)]
    async fn headers_are_matched_by_any_of_their_values() {
        let hub = TapHub::new(8);
        let wanted = vec![("X-Team".to_owned(), "blue".to_owned())];
        let filter = TapFilter { headers: wanted, ..TapFilter::default() };
        let mut tap = hub.subscribe(filter, 0, false).unwrap();
        hub.publish(record("/none"), None, None);
        hub.publish(record("/other"), headers(&[("x-team", "red")]), None);
        hub.publish(record("/two"), headers(&[("x-team", "red"), ("x-team", "blue")]), None);
        hub.publish(record("/response"), None, headers(&[("x-team", "blue")]));
        assert_eq!(waiting(&mut tap), [("/two".into(), 0)]);
    }

    #[tokio::test(start_paused = true)]
    async fn more_than_the_limit_a_second_is_skipped_and_told() {
        let hub = TapHub::new(8);
        let mut tap = hub.subscribe(TapFilter::default(), 2, false).unwrap();
        for n in 0..5 {
            hub.publish(record(&format!("/{n}")), None, None);
        }
        assert_eq!(waiting(&mut tap), [("/0".into(), 0), ("/1".into(), 0)]);
        advance(Duration::from_secs(1)).await;
        hub.publish(record("/5"), None, None);
        hub.publish(record("/6"), None, None);
        assert_eq!(waiting(&mut tap), [("/5".into(), 3), ("/6".into(), 0)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_is_not_waited_for() {
        let hub = TapHub::new(8);
        let mut tap = hub.subscribe(TapFilter::default(), u32::MAX, false).unwrap();
        for _ in 0..QUEUE + 7 {
            hub.publish(record("/"), None, None);
        }
        let events = waiting(&mut tap);
        assert_eq!(events.len(), QUEUE);
        hub.publish(record("/last"), None, None);
        assert_eq!(waiting(&mut tap), [("/last".into(), 7)]);
    }

    #[tokio::test(start_paused = true)]
    async fn credentials_are_redacted_unless_asked_for() {
        let hub = TapHub::new(8);
        let filter = TapFilter { with_headers: true, ..TapFilter::default() };
        let mut plain = hub.subscribe(filter.clone(), 0, false).unwrap();
        let mut secrets = hub.subscribe(filter, 0, true).unwrap();
        let mut without = hub.subscribe(TapFilter::default(), 0, true).unwrap();
        let request = headers(&[
            ("authorization", "Bearer x"),
            ("cookie", "x"),
            ("proxy-authorization", "x"),
            ("x-api-key", "x"),
            ("l5d-client-id", "web"),
        ]);
        hub.publish(record("/"), request, headers(&[("set-cookie", "x"), ("server", "y")]));
        let values = |headers: &[(String, String)]| {
            headers.iter().map(|(_, value)| value.clone()).collect::<Vec<_>>()
        };
        let shown = plain.recv().await.unwrap().record;
        assert_eq!(values(&shown.request_headers), [REDACTED, REDACTED, REDACTED, REDACTED, "web"]);
        assert_eq!(values(&shown.response_headers), [REDACTED, "y"]);
        let shown = secrets.recv().await.unwrap().record;
        assert_eq!(values(&shown.request_headers), ["Bearer x", "x", "x", "x", "web"]);
        let shown = without.recv().await.unwrap().record;
        assert!(shown.request_headers.is_empty() && shown.response_headers.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn there_is_a_limit_to_the_number_of_taps() {
        let hub = TapHub::new(1);
        let first = hub.subscribe(TapFilter::default(), 0, false).unwrap();
        let error = hub.subscribe(TapFilter::default(), 0, false).unwrap_err();
        assert!(error.to_string().starts_with("1 taps of this proxy"), "{error}");
        drop(first);
        hub.subscribe(TapFilter::default(), 0, false).unwrap();
    }
}
