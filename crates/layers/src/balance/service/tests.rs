#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::FutureExt;
use http_body_util::BodyExt;
use parking_lot::Mutex;
use tokio::time::{advance, sleep};
use tower::{Layer, ServiceExt, service_fn};

use super::*;
use crate::balance::{BalanceConfig, BreakerConfig, EndpointStatus, Health, Penalty, Unavailable};
use crate::test_util::{body_channel, collect, grpc_trailers};
use crate::{Backoff, Body, DeadlineLayer, HttpService, RequestBodyError, Timeouts, find_cause};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// A balancer that ejects at the first failure, of one endpoint.
fn balancer<F, A>(serve: F) -> Balancer<HttpService>
where
    F: Fn(Request) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Result<Response, BoxError>> + Send + 'static,
{
    let backoff = Backoff { min: 10 * SECOND, max: 60 * SECOND, jitter: 0.0 };
    let breaker = BreakerConfig { consecutive: Some(1), backoff, ..BreakerConfig::default() };
    let balancer =
        Balancer::new(BalanceConfig { breaker: Some(breaker), ..BalanceConfig::default() });
    balancer.insert(addr(1), 1, HttpService::new(service_fn(serve)));
    balancer
}

fn addr(n: u8) -> SocketAddr {
    ([10, 0, 0, n], 80).into()
}

/// Answers with this, once.
fn answering(response: Response) -> Balancer<HttpService> {
    let response = Arc::new(Mutex::new(Some(response)));
    balancer(move |_| {
        let response = response.lock().take().expect("one request");
        async move { Ok(response) }
    })
}

fn status(balancer: &Balancer<HttpService>) -> EndpointStatus {
    balancer.status()[0]
}

fn is_ejected(balancer: &Balancer<HttpService>) -> bool {
    status(balancer).state != Health::Ready
}

fn request() -> Request {
    Request::new(Body::empty())
}

fn grpc(body: Body) -> Response {
    http::Response::builder().header("content-type", "application/grpc").body(body).unwrap()
}

async fn call(balancer: &Balancer<HttpService>) -> Result<Response, BoxError> {
    balancer.clone().oneshot(request()).await
}

#[tokio::test(start_paused = true)]
async fn latency_is_that_of_the_head_and_pending_lasts_as_long_as_the_body() {
    let (tx, body) = body_channel();
    let body = Arc::new(Mutex::new(Some(body)));
    let balancer = balancer(move |_| {
        let body = body.lock().take().unwrap();
        async move {
            sleep(100 * MS).await;
            Ok(Response::new(body))
        }
    });
    let response = call(&balancer).await.unwrap();
    assert_eq!(status(&balancer).rtt, 100 * MS);
    advance(SECOND).await;
    assert_eq!(status(&balancer).in_flight, 1);
    drop(tx);
    collect(response.into_body()).await.unwrap();
    assert_eq!(status(&balancer).in_flight, 0);
    assert!(!is_ejected(&balancer));
}

#[tokio::test(start_paused = true)]
async fn errors_and_5xx_are_failures() {
    let failing = balancer(|_| async { Err("connection reset".into()) });
    call(&failing).await.unwrap_err();
    assert!(is_ejected(&failing));

    let mut response = Response::new(Body::full("sorry"));
    *response.status_mut() = StatusCode::BAD_GATEWAY;
    let failing = answering(response);
    let response = call(&failing).await.unwrap();
    assert!(is_ejected(&failing), "known with the head");
    assert_eq!(status(&failing).in_flight, 1);
    drop(response);
    assert_eq!(status(&failing).in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn the_clients_own_failure_is_not_the_endpoints() {
    let balancer = balancer(|request: Request| async {
        collect(request.into_body()).await?;
        Ok(Response::default())
    });
    let (tx, body) = body_channel();
    tx.error("the client went away");
    let request = Request::new(body.mark_request());
    let error = balancer.clone().oneshot(request).await.unwrap_err();
    assert!(find_cause::<RequestBodyError>(&error).is_some());
    assert!(!is_ejected(&balancer));
}

#[tokio::test(start_paused = true)]
async fn a_broken_body_is_a_failure() {
    let (tx, body) = body_channel();
    let balancer = answering(Response::new(body));
    let response = call(&balancer).await.unwrap();
    tx.data("half");
    tx.error("connection reset");
    collect(response.into_body()).await.unwrap_err();
    assert!(is_ejected(&balancer));
}

#[tokio::test(start_paused = true)]
async fn grpc_is_judged_by_its_trailers() {
    for (code, ejected) in [(0, false), (5, false), (14, true)] {
        let (tx, body) = body_channel();
        let balancer = answering(grpc(body));
        let response = call(&balancer).await.unwrap();
        tx.data("message");
        tx.trailers(grpc_trailers(code));
        assert!(!is_ejected(&balancer));
        drop(tx);
        response.into_body().collect().await.unwrap();
        assert_eq!(is_ejected(&balancer), ejected, "{code}");
    }
    let silent = answering(grpc(Body::empty()));
    call(&silent).await.unwrap();
    assert!(is_ejected(&silent), "a status is owed");
}

#[tokio::test(start_paused = true)]
async fn a_request_given_up_is_a_failure_only_after_its_deadline() {
    let hanging = || balancer(|_| std::future::pending());
    let limits = Timeouts { request: Some(SECOND), ..Timeouts::default() };

    let balancer = hanging();
    let mut service = DeadlineLayer::new(limits).layer(balancer.clone());
    service.call(request()).await.unwrap_err();
    assert!(is_ejected(&balancer), "its deadline had passed");

    let balancer = hanging();
    let mut service = DeadlineLayer::new(limits).layer(balancer.clone());
    let mut call = Box::pin(service.call(request()));
    assert!(call.as_mut().now_or_never().is_none());
    assert_eq!(status(&balancer).in_flight, 1);
    advance(900 * MS).await;
    drop(call);
    assert!(!is_ejected(&balancer), "the client went away");
    assert_eq!(status(&balancer).in_flight, 0);
    assert_eq!(status(&balancer).rtt, 900 * MS, "but it can't be faster than that");
}

#[tokio::test(start_paused = true)]
async fn a_try_given_up_is_a_failure() {
    let balancer = balancer(|_| std::future::pending());
    let mut request = request();
    request.extensions_mut().insert(TryDeadline(Instant::now() + SECOND));
    let mut call = Box::pin(balancer.clone().oneshot(request));
    assert!(call.as_mut().now_or_never().is_none());
    advance(SECOND).await;
    drop(call);
    assert!(is_ejected(&balancer));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_slow_to_send_is_to_blame_itself() {
    for (reads, ejected) in [(true, false), (false, true)] {
        let balancer = balancer(move |request: Request| async move {
            if reads {
                collect(request.into_body()).await?;
            }
            std::future::pending().await
        });
        let limits = Timeouts { request: Some(SECOND), ..Timeouts::default() };
        let mut service = DeadlineLayer::new(limits).layer(balancer.clone());
        let (tx, body) = body_channel();
        tx.data("half");
        service.call(Request::new(body)).await.unwrap_err();
        assert_eq!(is_ejected(&balancer), ejected, "the endpoint reads: {reads}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_cut_by_the_deadline_is_blamed_on_who_was_waited_for() {
    for (client_reads, ejected) in [(true, true), (false, false)] {
        let (tx, body) = body_channel();
        let balancer = answering(Response::new(body));
        let mut request = request();
        request.extensions_mut().insert(RequestDeadline(Instant::now() + SECOND));
        let response = balancer.clone().oneshot(request).await.unwrap();
        tx.data("half");
        let mut body = response.into_body();
        body.frame().await.unwrap().unwrap();
        if client_reads {
            assert!(body.frame().now_or_never().is_none());
        }
        advance(SECOND).await;
        drop(body);
        assert_eq!(is_ejected(&balancer), ejected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_probe_is_over_with_the_first_sign_of_life() {
    let (tx, body) = body_channel();
    let answers = Arc::new(Mutex::new(vec![Ok(grpc(body)), Err("refused".into())]));
    let balancer = balancer(move |_| {
        let answer = answers.lock().pop().unwrap();
        async move { answer }
    });
    call(&balancer).await.unwrap_err();
    advance(10 * SECOND).await;
    let mut response = call(&balancer).await.unwrap();
    assert_eq!(status(&balancer).state, Health::Probing);
    tx.data("message");
    response.body_mut().frame().await.unwrap().unwrap();
    assert_eq!(status(&balancer).state, Health::Ready, "though the stream goes on");
    tx.trailers(grpc_trailers(0));
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_answers_429_is_spared_but_not_ejected() {
    let penalty = Penalty { penalty: SECOND, max_retry_after: 30 * SECOND, decay: 10 * SECOND };
    let config = BalanceConfig { penalty: Some(penalty), ..BalanceConfig::default() };
    let balancer = Balancer::new(config);
    let served = Arc::new(Mutex::new(Vec::new()));
    for n in [1, 2] {
        let served = Arc::clone(&served);
        let service = service_fn(move |_: Request| {
            served.lock().push(n);
            let status = if n == 1 { 429 } else { 200 };
            let response = http::Response::builder().status(status).header("retry-after", "20");
            async move { Ok(response.body(Body::empty()).unwrap()) }
        });
        balancer.insert(addr(n), 1, HttpService::new(service));
    }
    for _ in 0..100 {
        call(&balancer).await.unwrap();
        advance(50 * MS).await;
    }
    let refused = served.lock().iter().filter(|n| **n == 1).count();
    assert!(refused <= 1, "{refused}");
}

#[tokio::test(start_paused = true)]
async fn tries_go_to_different_endpoints() {
    let balancer = balancer(|_| async { Ok(Response::default()) });
    for n in 2..=4 {
        let service = service_fn(|_: Request| async { Ok::<_, BoxError>(Response::default()) });
        balancer.insert(addr(n), 1, HttpService::new(service));
    }
    let tried = Tried::default();
    for _ in 0..4 {
        let mut request = request();
        request.extensions_mut().insert(tried.clone());
        balancer.clone().oneshot(request).await.unwrap();
    }
    let mut addrs = tried.addrs();
    addrs.sort_unstable();
    assert_eq!(addrs, [1, 2, 3, 4].map(addr));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_finds_no_endpoint_waits_and_then_fails() {
    let balancer: Balancer<HttpService> = Balancer::new(BalanceConfig::default());
    let (result, ()) = tokio::join!(call(&balancer), async {
        sleep(SECOND).await;
        let service = service_fn(|_: Request| async { Ok::<_, BoxError>(Response::default()) });
        balancer.insert(addr(1), 1, HttpService::new(service));
    });
    result.unwrap();
    balancer.remove(&addr(1));
    let error = call(&balancer).await.unwrap_err();
    assert!(matches!(find_cause(&error), Some(Unavailable::FailFast { .. })));
}

#[tokio::test(start_paused = true)]
async fn who_stops_waiting_leaves_the_queue() {
    let balancer: Balancer<HttpService> = Balancer::new(BalanceConfig::default());
    let mut waiting = Box::pin(call(&balancer));
    assert!(waiting.as_mut().now_or_never().is_none());
    assert_eq!(balancer.waiting(), 1);
    drop(waiting);
    assert_eq!(balancer.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_comes_too_late_is_a_failure_to_the_breaker() {
    let backoff = Backoff { min: 10 * SECOND, max: 60 * SECOND, jitter: 0.0 };
    let latency = Some(200 * MS);
    let breaker = BreakerConfig { consecutive: Some(2), backoff, latency, ..Default::default() };
    let config = BalanceConfig { breaker: Some(breaker), ..BalanceConfig::default() };
    let balancer = Balancer::new(config);
    let take = Arc::new(Mutex::new(100 * MS));
    let takes = Arc::clone(&take);
    let serve = move |_: Request| {
        let time = *takes.lock();
        async move {
            sleep(time).await;
            Ok::<_, BoxError>(Response::new(Body::empty()))
        }
    };
    balancer.insert(addr(1), 1, HttpService::new(service_fn(serve)));
    for _ in 0..5 {
        call(&balancer).await.unwrap();
    }
    *take.lock() = 300 * MS;
    call(&balancer).await.unwrap();
    assert!(!is_ejected(&balancer));
    call(&balancer).await.unwrap();
    assert!(is_ejected(&balancer));
    // A probe that is late as well is none that helps; one that is in time is.
    for (time, ejected) in [(300 * MS, true), (100 * MS, false)] {
        advance(11 * SECOND).await;
        *take.lock() = time;
        advance(10 * SECOND).await;
        call(&balancer).await.unwrap();
        assert_eq!(is_ejected(&balancer), ejected);
    }
    // One that is given up is late, too.
    *take.lock() = 10 * SECOND;
    for _ in 0..2 {
        assert!(tokio::time::timeout(SECOND, call(&balancer)).await.is_err());
    }
    assert!(is_ejected(&balancer));
}

#[tokio::test(start_paused = true)]
async fn the_clients_time_to_send_is_not_the_endpoints_latency() {
    let backoff = Backoff { min: 10 * SECOND, max: 60 * SECOND, jitter: 0.0 };
    let latency = Some(200 * MS);
    let breaker = BreakerConfig { consecutive: Some(1), backoff, latency, ..Default::default() };
    for (client_takes, reads_after, answers_after, ejected) in [
        (300 * MS, Duration::ZERO, 100 * MS, false),
        (300 * MS, Duration::ZERO, 300 * MS, true),
        // Nobody waited for the client.
        (Duration::ZERO, 300 * MS, Duration::ZERO, true),
    ] {
        let config = BalanceConfig { breaker: Some(breaker), ..BalanceConfig::default() };
        let balancer = Balancer::new(config);
        let serve = move |request: Request| async move {
            sleep(reads_after).await;
            collect(request.into_body()).await?;
            sleep(answers_after).await;
            Ok::<_, BoxError>(Response::default())
        };
        balancer.insert(addr(1), 1, HttpService::new(service_fn(serve)));
        let (tx, body) = body_channel();
        let (answer, ()) = tokio::join!(balancer.clone().oneshot(Request::new(body)), async move {
            tx.data("half");
            sleep(client_takes).await;
            tx.data("and half");
        });
        answer.unwrap();
        assert_eq!(is_ejected(&balancer), ejected, "{client_takes:?} {answers_after:?}");
    }
    // An answer before the client has sent all; and a client that leaves without having sent it.
    for answers in [true, false] {
        let config = BalanceConfig { breaker: Some(breaker), ..BalanceConfig::default() };
        let balancer = Balancer::new(config);
        let serve = move |request: Request| async move {
            let read = collect(request.into_body());
            match answers {
                true => drop(tokio::time::timeout(300 * MS, read).await),
                false => drop(read.await),
            }
            Ok::<_, BoxError>(Response::default())
        };
        balancer.insert(addr(1), 1, HttpService::new(service_fn(serve)));
        let (tx, body) = body_channel();
        tx.data("half");
        let call = balancer.clone().oneshot(Request::new(body));
        assert_eq!(tokio::time::timeout(SECOND, call).await.is_ok(), answers);
        assert!(!is_ejected(&balancer), "{answers}");
    }
}

#[tokio::test]
async fn what_is_refused_before_the_endpoint_is_not_its_failure() {
    let balancer = balancer(|_| async {
        let reason = crate::balance::Reason::NoConnection;
        Err(Unavailable::QueueFull { capacity: 1, reason }.into())
    });
    call(&balancer).await.unwrap_err();
    assert!(!is_ejected(&balancer));
}
