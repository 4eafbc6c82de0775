//! Requests as an HTTP archive (HAR 1.2), which browsers and proxies can open. Written entry by entry, so that a
//! long tap needs no memory.

use std::time::Duration;

use mesh_api::ext;
use mesh_api::ext::mesh_tap_event::Tapped;
use serde::Serialize;

use super::event::{self, Event, Header, std_duration};

/// Before the first entry.
pub(super) const HEAD: &str = concat!(
    r#"{"log":{"version":"1.2","creator":{"name":"meshctl","version":""#,
    env!("CARGO_PKG_VERSION"),
    "\"},\"entries\":[\n"
);
/// After the last.
pub(super) const TAIL: &str = "]}}\n";
/// HAR's word for what is not known.
const UNKNOWN: i64 = -1;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Entry {
    started_date_time: String,
    /// Milliseconds.
    time: f64,
    request: Request,
    response: Response,
    cache: Empty,
    timings: Timings,
    /// What HAR has no words for: the event as `-o json` has it.
    #[serde(rename = "_mesh")]
    mesh: Event,
}

#[derive(Debug, Serialize)]
struct Empty {}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    method: String,
    url: String,
    http_version: &'static str,
    cookies: [Empty; 0],
    headers: Vec<Header>,
    query_string: Vec<Pair>,
    headers_size: i64,
    body_size: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    status: u32,
    status_text: String,
    http_version: &'static str,
    cookies: [Empty; 0],
    headers: Vec<Header>,
    content: Content,
    #[serde(rename = "redirectURL")]
    redirect_url: String,
    headers_size: i64,
    body_size: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Content {
    size: u64,
    mime_type: String,
}

#[derive(Debug, Serialize)]
struct Pair {
    name: String,
    value: String,
}

/// Milliseconds. The proxy does not see how long sending took.
#[derive(Debug, Serialize)]
struct Timings {
    send: f64,
    wait: f64,
    receive: f64,
}

impl Entry {
    pub(super) fn new(tapped: &Tapped) -> Self {
        let event = tapped.event.clone().unwrap_or_default();
        let total = event.duration.as_ref().map(std_duration).unwrap_or_default();
        let wait = event.first_byte.as_ref().map_or(total, std_duration);
        let header = |name: &str| {
            let found = event.response_headers.iter().find(|h| h.name.eq_ignore_ascii_case(name));
            found.map(|h| h.value.clone()).unwrap_or_default()
        };
        let status =
            u16::try_from(event.status).ok().and_then(|s| http::StatusCode::from_u16(s).ok());
        Self {
            started_date_time: event::started(&event),
            time: millis(total),
            request: Request {
                method: event.method.clone(),
                url: url(&event),
                http_version: "",
                cookies: [],
                headers: event::headers(&event.request_headers),
                query_string: query(&event.path),
                headers_size: UNKNOWN,
                body_size: event.request_bytes,
            },
            response: Response {
                status: event.status,
                status_text: status
                    .and_then(|s| s.canonical_reason())
                    .unwrap_or_default()
                    .to_owned(),
                http_version: "",
                cookies: [],
                headers: event::headers(&event.response_headers),
                content: Content { size: event.response_bytes, mime_type: header("content-type") },
                redirect_url: header("location"),
                headers_size: UNKNOWN,
                body_size: event.response_bytes,
            },
            cache: Empty {},
            timings: Timings {
                send: 0.0,
                wait: millis(wait),
                receive: millis(total.saturating_sub(wait)),
            },
            mesh: Event::new(tapped),
        }
    }
}

fn url(event: &ext::TapEvent) -> String {
    let scheme = if event.scheme.is_empty() { "http" } else { &event.scheme };
    format!("{scheme}://{}{}", event.authority, event.path)
}

fn query(path: &str) -> Vec<Pair> {
    let Some((_, query)) = path.split_once('?') else { return Vec::new() };
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Pair { name: name.to_owned(), value: value.to_owned() }
        })
        .collect()
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
