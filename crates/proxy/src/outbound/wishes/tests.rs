//! What is understood, and what comes of it.

use std::sync::atomic::{AtomicU32, Ordering};

use http::{HeaderName, Method, StatusCode};
use mesh_layers::{Body, TimedOut, TimeoutKind, find_cause};
use mesh_model::Meta;
use mesh_model::route::Distribution;
use tokio::time::Instant;
use tower::service_fn;

use super::*;

const MS: fn(u64) -> Duration = Duration::from_millis;

fn taken(headers: &[(&'static str, &str)]) -> Wishes {
    let all = headers.iter().map(|(name, value)| {
        (HeaderName::from_static(name), value.parse::<http::HeaderValue>().unwrap())
    });
    let mut headers: HeaderMap = all.collect();
    let wishes = Wishes::take(&mut headers);
    assert!(headers.is_empty(), "{headers:?}");
    wishes
}

#[test]
fn every_header_is_understood() {
    let wishes = taken(&[
        ("l5d-timeout", "9s"),
        ("l5d-request-timeout", "10s"),
        ("l5d-response-timeout", "0"),
        ("l5d-retry-timeout", "150ms"),
        ("l5d-retry-limit", "3"),
        ("l5d-retry-http", "5XX, 429,gateway-error,404-406"),
        ("l5d-retry-grpc", "unavailable, Internal"),
    ]);
    let expected = Wishes {
        request: Some(Some(MS(10_000))),
        response: Some(None),
        per_try: Some(Some(MS(150))),
        retries: Some(3),
        statuses: Some(vec![500..=599, 429..=429, 502..=504, 404..=406]),
        grpc: Some(GrpcCodes::default().with(13).with(14)),
    };
    assert_eq!(wishes, expected);
    assert_eq!(taken(&[("l5d-timeout", "2m")]).request, Some(Some(MS(120_000))));
}

#[test]
fn what_is_not_understood_is_no_wish() {
    let durations =
        ["", "5", "s", "-1s", "1.5s", "1 s", "1w", "99999999999999999999s", "9999999999999999d"];
    for name in ["l5d-timeout", "l5d-request-timeout", "l5d-response-timeout", "l5d-retry-timeout"]
    {
        for text in durations {
            assert_eq!(taken(&[(name, text)]), Wishes::default(), "{name}: {text}");
        }
    }
    for text in ["", "-1", "many", "4294967296", "1.0"] {
        assert_eq!(taken(&[("l5d-retry-limit", text)]), Wishes::default(), "{text}");
    }
    for text in ["", ",", "6xx", "99", "600", "505-500", "5xx-599", "a-b", "200-"] {
        assert_eq!(taken(&[("l5d-retry-http", text)]), Wishes::default(), "{text}");
    }
    for text in ["", "ok", "14", "unavailable;internal"] {
        assert_eq!(taken(&[("l5d-retry-grpc", text)]), Wishes::default(), "{text}");
    }
    // What is good in a list counts.
    assert_eq!(taken(&[("l5d-retry-http", "x,503")]).statuses, Some(vec![503..=503]));
    let long = vec!["503"; 10_000].join(",");
    assert_eq!(taken(&[("l5d-retry-http", &long)]).statuses.unwrap().len(), MAX_CONDITIONS);
}

/// Answers a request with 503 until so many tries have come, in a rule with these limits.
async fn ask(
    of_rule: (Timeouts, Option<Retry>),
    allowed: bool,
    request: http::request::Builder,
    failures: u32,
) -> (Result<Response, BoxError>, u32) {
    let tries = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&tries);
    let server = service_fn(move |request: Request| {
        let number = counter.fetch_add(1, Ordering::Relaxed);
        let silent = request.uri().path() == "/silent";
        async move {
            if silent {
                std::future::pending::<()>().await;
            }
            let status = if number < failures { 503 } else { 200 };
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::from_u16(status)?;
            let seen = request.headers().keys().filter(|name| name.as_str().starts_with("l5d-"));
            response.headers_mut().insert("x-seen", seen.count().into());
            Ok::<_, BoxError>(response)
        }
    });
    let (timeouts, retry) = of_rule;
    let forward = Forward {
        backends: Distribution::Empty,
        timeouts,
        retry: retry.clone(),
        allow_request_headers: allowed,
        session: None,
    };
    let nameless = Meta::Default(String::new());
    let route = RouteInfo::inbound(&nameless);
    let budget = Budget::new(1.0, 100, Duration::from_secs(10));
    let mut service = ServiceBuilder::new()
        .option_layer(WishesLayer::new(&forward, false, &budget, &route, server.clone()))
        .layer(DeadlineLayer::new(timeouts_of(timeouts)))
        .layer(RetryLayer::new(retry::Policy::new(retry.as_ref(), false, &route), budget))
        .service(server);
    let answer = service.call(request.body(Body::empty()).unwrap()).await;
    (answer, tries.load(Ordering::Relaxed))
}

fn none() -> (Timeouts, Option<Retry>) {
    (Timeouts::default(), None)
}

fn get(path: &str) -> http::request::Builder {
    http::Request::get(format!("http://web{path}"))
}

#[tokio::test(start_paused = true)]
async fn retries_are_granted_where_they_are_allowed() {
    let wishful = || get("/").header("l5d-retry-http", "5xx").header("l5d-retry-limit", "2");
    let (answer, tries) = ask(none(), true, wishful(), 2).await;
    let answer = answer.unwrap();
    assert_eq!((answer.status().as_u16(), tries), (200, 3));
    assert_eq!(answer.headers()["x-seen"], "0", "the server sees none of it");

    let (answer, tries) = ask(none(), false, wishful(), 2).await;
    let answer = answer.unwrap();
    assert_eq!((answer.status().as_u16(), tries), (503, 1));
    assert_eq!(answer.headers()["x-seen"], "2", "headers like any other");

    // Who does not wish has what the rule has.
    let (answer, tries) = ask(none(), true, get("/"), 2).await;
    assert_eq!((answer.unwrap().status().as_u16(), tries), (503, 1));
    let (answer, tries) = ask(none(), true, get("/").header("l5d-retry-http", "often"), 2).await;
    assert_eq!((answer.unwrap().status().as_u16(), tries), (503, 1));
}

#[tokio::test(start_paused = true)]
async fn a_wish_changes_what_it_names_of_the_rule() {
    let rule = || {
        let retry = Retry {
            max_retries: 3,
            max_request_bytes: 1024,
            statuses: vec![503..=503],
            grpc: GrpcCodes::default(),
            timeout: None,
            backoff: None,
        };
        (Timeouts::default(), Some(retry))
    };
    let (_, tries) = ask(rule(), true, get("/"), 9).await;
    assert_eq!(tries, 4);
    let (_, tries) = ask(rule(), true, get("/").header("l5d-retry-limit", "1"), 9).await;
    assert_eq!(tries, 2);
    let (_, tries) = ask(rule(), true, get("/").header("l5d-retry-limit", "0"), 9).await;
    assert_eq!(tries, 1);
    let (_, tries) = ask(rule(), true, get("/").header("l5d-retry-http", "500"), 9).await;
    assert_eq!(tries, 1);
}

#[tokio::test(start_paused = true)]
async fn whoever_names_failures_wants_its_post_tried_again() {
    let post = || get("/").method(Method::POST).header("l5d-retry-limit", "2");
    let (_, tries) = ask(none(), true, post(), 9).await;
    assert_eq!(tries, 1);
    let (_, tries) = ask(none(), true, post().header("l5d-retry-http", "503"), 9).await;
    assert_eq!(tries, 3);
}

#[tokio::test(start_paused = true)]
async fn limits_are_shorter_or_longer_as_wished() {
    let second = Timeouts { request: Some(MS(1000)), ..Timeouts::default() };
    for (wish, allowed, after) in
        [("300ms", true, 300), ("5s", true, 5000), ("300ms", false, 1000), ("soon", true, 1000)]
    {
        let begin = Instant::now();
        let silent = get("/silent").header("l5d-timeout", wish);
        let (answer, _) = ask((second, None), allowed, silent, 0).await;
        let timed_out = answer.unwrap_err();
        assert_eq!(find_cause::<TimedOut>(&timed_out).unwrap().kind, TimeoutKind::Request);
        assert_eq!(begin.elapsed().as_millis(), after, "{wish}");
    }
    let begin = Instant::now();
    let silent = get("/silent").header("l5d-retry-timeout", "100ms").header("l5d-retry-limit", "2");
    let (answer, tries) = ask((second, None), true, silent, 0).await;
    assert_eq!(find_cause::<TimedOut>(&answer.unwrap_err()).unwrap().kind, TimeoutKind::PerTry);
    assert_eq!(tries, 3);
    assert!(begin.elapsed() < MS(1000), "{:?}", begin.elapsed());
}
