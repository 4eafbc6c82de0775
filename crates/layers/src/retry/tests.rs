#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::FutureExt;
use http::StatusCode;
use parking_lot::Mutex;
use tokio::time::advance;
use tower::service_fn;

use super::*;
use crate::test_util::{body_channel, collect, grpc_trailers};
use crate::{Timeouts, find_cause};

const MS: Duration = Duration::from_millis(1);

/// Retries 5xx, gRPC 14, timeouts and "again"; a "refused" in any case; GET may be repeated.
#[derive(Clone)]
struct Policy {
    params: RetryParams,
    events: Arc<Mutex<Vec<RetryEvent>>>,
}

impl RetryPolicy for Policy {
    fn params(&self) -> &RetryParams {
        &self.params
    }

    fn may_retry(&self, request: &request::Parts) -> bool {
        request.method == http::Method::GET
    }

    fn retry_response(&self, response: &response::Parts) -> bool {
        response.status.is_server_error()
    }

    fn retry_trailers(&self, trailers: &HeaderMap) -> bool {
        crate::grpc_status(trailers) == Some(14)
    }

    fn retry_error(&self, error: &BoxError) -> RetryOn {
        match error.to_string().as_str() {
            "refused" => RetryOn::Always,
            "again" => RetryOn::Yes,
            _ if error.is::<TimedOut>() => RetryOn::Yes,
            _ => RetryOn::No,
        }
    }

    fn event(&self, event: RetryEvent) {
        self.events.lock().push(event);
    }
}

/// What the scripted server does with one try.
enum Step {
    Answer(Response),
    /// Reads the request's body first.
    ReadAndAnswer(Response),
    Fail(&'static str),
    Hang,
}

struct Bench {
    params: RetryParams,
    budget: Budget,
    events: Arc<Mutex<Vec<RetryEvent>>>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

#[derive(Debug)]
struct Seen {
    at: Instant,
    attempt: u32,
    body: String,
    try_deadline: Option<Instant>,
}

impl Bench {
    fn new(max_retries: u32) -> Self {
        let backoff = Backoff { min: 100 * MS, max: 1000 * MS, jitter: 0.0 };
        Self {
            params: RetryParams { max_retries, backoff, ..RetryParams::default() },
            budget: Budget::new(0.0, 100, Duration::from_secs(10)),
            events: Arc::default(),
            seen: Arc::default(),
        }
    }

    fn service(
        &self,
        script: Box<[Step]>,
    ) -> impl Service<Request, Response = Response, Error = BoxError, Future = ResponseFuture>
    + Clone
    + use<> {
        let script: Arc<Mutex<VecDeque<Step>>> = Arc::new(Mutex::new(script.into_vec().into()));
        let seen = Arc::clone(&self.seen);
        let server = service_fn(move |request: Request| {
            let step = script.lock().pop_front().expect("no more tries were expected");
            serve(step, request, Arc::clone(&seen))
        });
        let policy = Policy { params: self.params, events: Arc::clone(&self.events) };
        RetryLayer::new(policy, self.budget.clone()).layer(server)
    }

    async fn call(
        &self,
        request: Request,
        script: impl IntoIterator<Item = Step>,
    ) -> Result<Response, BoxError> {
        self.service(script.into_iter().collect()).call(request).await
    }

    fn events(&self) -> Vec<RetryEvent> {
        std::mem::take(&mut self.events.lock())
    }

    fn tries(&self) -> usize {
        self.seen.lock().len()
    }
}

async fn serve(
    step: Step,
    request: Request,
    seen: Arc<Mutex<Vec<Seen>>>,
) -> Result<Response, BoxError> {
    let extensions = request.extensions();
    let index = seen.lock().len();
    seen.lock().push(Seen {
        at: Instant::now(),
        attempt: extensions.get::<Attempt>().unwrap().0,
        body: String::new(),
        try_deadline: extensions.get::<TryDeadline>().map(|deadline| deadline.0),
    });
    match step {
        Step::Answer(response) => Ok(response),
        Step::ReadAndAnswer(response) => {
            let body = collect(request.into_body()).await?;
            seen.lock()[index].body = String::from_utf8(body.to_vec()).unwrap();
            Ok(response)
        }
        Step::Fail(text) => Err(text.into()),
        Step::Hang => std::future::pending().await,
    }
}

fn get() -> Request {
    Request::new(Body::empty())
}

fn post(body: impl Into<Body>) -> Request {
    http::Request::post("/").body(body.into()).unwrap()
}

fn status(code: u16) -> Response {
    let mut response = Response::new(Body::full("body"));
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}

fn grpc(body: Body) -> Response {
    http::Response::builder().header("content-type", "application/grpc").body(body).unwrap()
}

#[tokio::test(start_paused = true)]
async fn retries_with_growing_waits_until_it_works() {
    let bench = Bench::new(3);
    let script = [Step::Answer(status(503)), Step::Fail("again"), Step::Answer(status(200))];
    let response = bench.call(get(), script).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(bench.events(), [RetryEvent::Retried, RetryEvent::Retried, RetryEvent::Succeeded]);
    let seen = bench.seen.lock();
    assert_eq!(seen.iter().map(|seen| seen.attempt).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(seen[1].at - seen[0].at, 100 * MS);
    assert_eq!(seen[2].at - seen[1].at, 200 * MS);
}

#[tokio::test]
async fn what_works_at_once_is_not_an_event() {
    let bench = Bench::new(3);
    bench.call(get(), [Step::Answer(status(404))]).await.unwrap();
    bench.call(get(), [Step::Fail("other")]).await.unwrap_err();
    assert!(bench.events().is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_last_answer_is_handed_down_as_it_is() {
    let bench = Bench::new(1);
    let script = [Step::Fail("again"), Step::Answer(status(503))];
    let response = bench.call(get(), script).await.unwrap();
    assert_eq!(response.status(), 503);
    assert_eq!(collect(response.into_body()).await.unwrap(), "body");
    assert_eq!(bench.events(), [RetryEvent::Retried, RetryEvent::LimitExceeded]);
}

#[tokio::test(start_paused = true)]
async fn what_may_have_been_processed_is_not_repeated_unless_it_never_arrived() {
    let bench = Bench::new(2);
    let response = bench.call(post("pay"), [Step::Answer(status(503))]).await.unwrap();
    assert_eq!(response.status(), 503);
    assert_eq!(bench.events(), [RetryEvent::NotIdempotent]);

    let script = [Step::Fail("refused"), Step::ReadAndAnswer(status(200))];
    bench.call(post("pay"), script).await.unwrap();
    assert_eq!(bench.events(), [RetryEvent::Retried, RetryEvent::Succeeded]);
    assert_eq!(bench.seen.lock().last().unwrap().body, "pay");
}

#[tokio::test(start_paused = true)]
async fn a_streamed_body_is_sent_again_whole() {
    let bench = Bench::new(1);
    let (tx, body) = body_channel();
    tx.data("ab");
    tx.data("cd");
    drop(tx);
    let script = [Step::ReadAndAnswer(status(503)), Step::ReadAndAnswer(status(200))];
    bench.call(Request::new(body), script).await.unwrap();
    let seen = bench.seen.lock();
    assert_eq!(seen.iter().map(|seen| seen.body.as_str()).collect::<Vec<_>>(), ["abcd", "abcd"]);
}

#[tokio::test(start_paused = true)]
async fn a_body_beyond_the_limit_is_sent_once_and_counted_only_if_it_mattered() {
    let mut bench = Bench::new(1);
    bench.params.max_body_bytes = 3;
    for (answer, events) in [(503, vec![RetryEvent::BodyTooLarge]), (200, vec![])] {
        let (tx, body) = body_channel();
        tx.data("ab");
        tx.data("cd");
        drop(tx);
        let script = [Step::ReadAndAnswer(status(answer))];
        let response = bench.call(Request::new(body), script).await.unwrap();
        assert_eq!(response.status(), answer);
        assert_eq!(bench.seen.lock().last().unwrap().body, "abcd");
        assert_eq!(bench.events(), events);
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_does_not_wait_for_the_request() {
    let bench = Bench::new(1);
    let (tx, body) = body_channel();
    let response = bench.call(post(body), [Step::Answer(status(200))]).await.unwrap();
    assert_eq!(response.status(), 200);
    drop(tx);
}

#[tokio::test]
async fn a_failed_request_body_is_not_retried() {
    let bench = Bench::new(1);
    let (tx, body) = body_channel();
    tx.error("again");
    let error =
        bench.call(Request::new(body), [Step::ReadAndAnswer(status(200))]).await.unwrap_err();
    assert!(crate::is_request_body_error(&error));
    assert!(bench.events().is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_budget_has_the_last_word() {
    let mut bench = Bench::new(3);
    bench.budget = Budget::new(1.0, 0, Duration::from_secs(10));
    let script = [Step::Answer(status(503)), Step::Answer(status(502))];
    let response = bench.call(get(), script).await.unwrap();
    assert_eq!(response.status(), 502);
    assert_eq!(bench.events(), [RetryEvent::Retried, RetryEvent::BudgetExhausted]);
}

#[tokio::test(start_paused = true)]
async fn no_wait_goes_beyond_the_deadline() {
    let bench = Bench::new(5);
    let mut request = get();
    request.extensions_mut().insert(RequestDeadline(Instant::now() + 250 * MS));
    let start = Instant::now();
    let script = [Step::Answer(status(503)), Step::Answer(status(502))];
    let response = bench.call(request, script).await.unwrap();
    assert_eq!(response.status(), 502);
    assert_eq!(start.elapsed(), 100 * MS);
    assert_eq!(bench.events(), [RetryEvent::Retried, RetryEvent::DeadlineNear]);
}

#[tokio::test(start_paused = true)]
async fn each_try_has_its_own_time() {
    let mut bench = Bench::new(1);
    bench.params.per_try = Some(300 * MS);
    let error = bench.call(get(), [Step::Hang, Step::Hang]).await.unwrap_err();
    let expected = TimedOut { kind: TimeoutKind::PerTry, after: 300 * MS };
    assert_eq!(find_cause(&error), Some(&expected));
    assert_eq!(bench.events(), [RetryEvent::Retried, RetryEvent::LimitExceeded]);
    for seen in &*bench.seen.lock() {
        assert_eq!(seen.try_deadline, Some(seen.at + 300 * MS));
    }
}

#[tokio::test(start_paused = true)]
async fn the_deadline_of_the_request_bounds_that_of_a_try() {
    let mut bench = Bench::new(1);
    bench.params.per_try = Some(300 * MS);
    let limits = Timeouts { request: Some(200 * MS), ..Timeouts::default() };
    let start = Instant::now();
    let mut service = crate::DeadlineLayer::new(limits).layer(bench.service([Step::Hang].into()));
    let error = service.call(get()).await.unwrap_err();
    assert_eq!(find_cause::<TimedOut>(&error).unwrap().kind, TimeoutKind::Request);
    assert_eq!(bench.seen.lock()[0].try_deadline, Some(start + 200 * MS));
}

#[tokio::test(start_paused = true)]
async fn grpc_trailers_that_come_with_the_head_are_asked() {
    for (code, tries) in [(14, 2), (5, 1)] {
        let bench = Bench::new(1);
        let (tx, body) = body_channel();
        tx.trailers(grpc_trailers(code));
        drop(tx);
        let script = [Step::Answer(grpc(body)), Step::Answer(grpc(Body::empty()))];
        let response = bench.call(get(), script).await.unwrap();
        assert_eq!(bench.tries(), tries);
        let trailers = http_body_util::BodyExt::collect(response.into_body()).await.unwrap();
        let handed_down = trailers.trailers().and_then(crate::grpc_status);
        assert_eq!(handed_down, (tries == 1).then_some(code), "what was looked at is not lost");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_not_held_back_for_its_trailers() {
    let bench = Bench::new(1);
    let (tx, body) = body_channel();
    let call = bench.call(get(), [Step::Answer(grpc(body))]);
    let response = call.now_or_never().expect("ready").unwrap();
    tx.data("message");
    tx.trailers(grpc_trailers(14));
    drop(tx);
    assert_eq!(collect(response.into_body()).await.unwrap(), "message");

    let (tx, body) = body_channel();
    tx.data("message");
    drop(tx);
    let response = bench.call(get(), [Step::Answer(grpc(body))]).await.unwrap();
    assert_eq!(response.body().size_hint().lower(), 7);
    assert_eq!(collect(response.into_body()).await.unwrap(), "message");
    assert!(bench.events().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_error_in_place_of_the_first_frame_is_one_of_the_try() {
    let bench = Bench::new(1);
    let (tx, body) = body_channel();
    tx.error("again");
    let script = [Step::Answer(grpc(body)), Step::Answer(status(200))];
    bench.call(get(), script).await.unwrap();
    assert_eq!(bench.tries(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_given_up_response_is_dropped_before_the_wait() {
    let bench = Bench::new(1);
    let (tx, body) = body_channel();
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    let mut service = bench.service([Step::Answer(response), Step::Answer(status(200))].into());
    let mut call = service.call(get());
    assert!(call.as_mut().now_or_never().is_none());
    assert!(tx.is_closed());
    advance(100 * MS).await;
    call.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn tries_share_the_list_of_endpoints() {
    let bench = Bench::new(1);
    let policy = Policy { params: bench.params, events: Arc::clone(&bench.events) };
    let lists = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&lists);
    let server = service_fn(move |request: Request| {
        let tried = request.extensions().get::<Tried>().unwrap();
        seen.lock().push(tried.addrs());
        tried.push(([127, 0, 0, 1], 80).into());
        async { Err::<Response, BoxError>("again".into()) }
    });
    RetryLayer::new(policy, bench.budget.clone()).layer(server).call(get()).await.unwrap_err();
    assert_eq!(*lists.lock(), [vec![], vec![([127, 0, 0, 1], 80).into()]]);
}

#[tokio::test]
async fn no_retries_is_one_try() {
    let bench = Bench::new(0);
    bench.call(get(), [Step::Answer(status(503))]).await.unwrap();
    assert_eq!(bench.events(), [RetryEvent::LimitExceeded]);
}
