//! From a policy to the services that carry it out: one stack per rule, built when the policy
//! comes and used by every request until the next one does.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use mesh_layers::{
    BoxError, DeadlineLayer, HttpService, Request, Response, ResponseFuture, RetryLayer,
};
use mesh_model::matching::{self, MatchRequest};
use mesh_model::outbound::{
    Breaker, Forward, GrpcRoute, HttpRoute, Protocol, RouteBackend, TcpPolicy, TcpRoute,
};
use mesh_model::route::{Distribution, Filter, PathModifier, Route, Rule};
use mesh_model::{Meta, OutboundPolicy, Reason};
use tokio::sync::watch;
use tower::{Service, ServiceBuilder};
use tracing::Instrument;
use tracing::instrument::Instrumented;

use super::backend::{BackendService, BackendStack, Backends, stable_hash};
use super::retry;
use super::session::Sessions;
use super::wishes::{WishesLayer, timeouts_of};
use crate::discovery::BackendRules;
use crate::draws::Draws;
use crate::error::MeshError;
use crate::exchange::{Exchange, RouteInfo};
use crate::http::filters::{Apply, FilterLayer, MatchedPrefix};
use crate::http::mirror::Mirror;
use crate::telemetry::Telemetry;

/// A policy ready for use.
#[derive(Debug)]
pub(crate) struct Routes {
    pub(crate) protocol: RoutedProtocol,
    pub(crate) meta: Meta,
}

/// What the target speaks, and how each is routed.
#[derive(Debug)]
pub(crate) enum RoutedProtocol {
    Detect { timeout: Duration, http1: HttpRouter, http2: HttpRouter, tcp: TcpRouter },
    Http(HttpRouter),
    Tls(TcpRouter),
    Opaque(TcpRouter),
}

impl Routes {
    pub(crate) fn build(
        policy: &OutboundPolicy,
        backends: &Backends,
        telemetry: &Telemetry,
    ) -> Self {
        let build = Build { parent: &policy.meta, backends, telemetry };
        let protocol = match &policy.protocol {
            Protocol::Detect { timeout, http1, http2, opaque } => RoutedProtocol::Detect {
                timeout: *timeout,
                http1: build.http(&http1.routes, http1.breaker),
                http2: build.http(&http2.routes, http2.breaker),
                tcp: build.tcp(opaque),
            },
            Protocol::Http1(http) | Protocol::Http2(http) => {
                RoutedProtocol::Http(build.http(&http.routes, http.breaker))
            }
            Protocol::Grpc(grpc) => RoutedProtocol::Http(HttpRouter {
                table: Table::Grpc(
                    Arc::clone(&grpc.routes),
                    build.rules(&grpc.routes, grpc.breaker),
                ),
            }),
            Protocol::Opaque(tcp) => RoutedProtocol::Opaque(build.tcp(tcp)),
            Protocol::Tls(tcp) => RoutedProtocol::Tls(build.tcp(tcp)),
        };
        Self { protocol, meta: policy.meta.clone() }
    }
}

/// Finds the rule for a request and has it carried out.
#[derive(Clone, Debug)]
pub(crate) struct HttpRouter {
    table: Table,
}

#[derive(Clone, Debug)]
enum Table {
    Http(Arc<[HttpRoute]>, Vec<Vec<RuleStack>>),
    Grpc(Arc<[GrpcRoute]>, Vec<Vec<RuleStack>>),
}

/// One rule's stack.
#[derive(Clone, Debug)]
struct RuleStack {
    service: HttpService,
    route: Arc<RouteInfo>,
    /// A filter wants to know the prefix that matched.
    wants_prefix: bool,
    /// Keeps the retry budget's figures up to date.
    _of_budget: Option<watch::Receiver<BackendRules>>,
}

impl HttpRouter {
    /// Carries a request out.
    pub(crate) fn call(&self, request: Request) -> Result<Instrumented<ResponseFuture>, MeshError> {
        match &self.table {
            Table::Http(routes, rules) => route(routes, rules, request),
            Table::Grpc(routes, rules) => route(routes, rules, request),
        }
    }
}

fn route<M: MatchRequest>(
    routes: &[Route<M, Forward>],
    rules: &[Vec<RuleStack>],
    request: Request,
) -> Result<Instrumented<ResponseFuture>, MeshError> {
    let span = tracing::debug_span!("outbound.route", route = tracing::field::Empty).entered();
    let (head, body) = request.into_parts();
    let found = matching::find(routes, &head).map(|found| {
        let prefix = found.prefix.filter(|_| rules[found.route][found.rule].wants_prefix);
        (&rules[found.route][found.rule], prefix.map(Arc::<str>::from))
    });
    let mut request = Request::from_parts(head, body);
    let Some((rule, prefix)) = found else {
        let message = format!("no route matches {} {}", request.method(), request.uri().path());
        return Err(MeshError::new(Reason::NoRoute, message));
    };
    if let Some(prefix) = prefix {
        request.extensions_mut().insert(MatchedPrefix(prefix));
    }
    if let Some(exchange) = Exchange::of(&request) {
        exchange.routed(&rule.route);
    }
    span.record("route", rule.route.route_text.as_ref());
    Ok(rule.service.clone().call(request).instrument(span.exit()))
}

/// What building a policy's stacks needs.
struct Build<'a> {
    parent: &'a Meta,
    backends: &'a Backends,
    telemetry: &'a Telemetry,
}

impl Build<'_> {
    fn http(&self, routes: &Arc<[HttpRoute]>, breaker: Option<Breaker>) -> HttpRouter {
        HttpRouter { table: Table::Http(Arc::clone(routes), self.rules(routes, breaker)) }
    }

    fn rules<M: MatchRequest>(
        &self,
        routes: &[Route<M, Forward>],
        breaker: Option<Breaker>,
    ) -> Vec<Vec<RuleStack>> {
        let stacks = |route: &Route<M, Forward>| {
            let info = RouteInfo::new(self.telemetry, self.parent, &route.meta);
            route.rules.iter().map(|rule| self.rule(rule, &info, breaker)).collect()
        };
        routes.iter().map(stacks).collect()
    }

    /// One rule, top to bottom in the order a request passes.
    fn rule<M: MatchRequest>(
        &self,
        rule: &Rule<M, Forward>,
        route: &Arc<RouteInfo>,
        breaker: Option<Breaker>,
    ) -> RuleStack {
        let forward = &rule.action;
        let names_methods = matching::names_methods(&rule.matches);
        let retry = retry::Policy::new(forward.retry.as_ref(), names_methods, route);
        let (budget, of_budget) = self.backends.budget(self.parent);
        let split = self.split(forward, breaker);
        let service = ServiceBuilder::new()
            // Everything below is one type to everything above.
            .layer(HttpService::layer())
            // First, so that a redirect or an injected failure costs nothing further.
            .option_layer(self.filters(&rule.filters))
            // Above what it replaces for requests that set their own limits, where the rule lets them.
            .option_layer(WishesLayer::new(forward, names_methods, &budget, route, split.clone()))
            // Above the retries: the request's time covers all of its tries.
            .layer(DeadlineLayer::new(timeouts_of(forward.timeouts)))
            // Above the split and the balancer: a retry may go to another backend and endpoint.
            .layer(RetryLayer::new(retry, budget))
            .service(split);
        RuleStack {
            service: HttpService::new(service),
            route: Arc::clone(route),
            wants_prefix: rule.filters.iter().any(wants_prefix)
                || forward.backends.backends().any(|b| b.filters.iter().any(wants_prefix)),
            _of_budget: of_budget,
        }
    }

    fn split(&self, forward: &Forward, breaker: Option<Breaker>) -> Split {
        let branch = |backend: &Arc<RouteBackend>| {
            let stack = self.backends.get(self.parent, &backend.backend, breaker);
            let service = BackendService(Arc::clone(&stack));
            let service = match self.filters(&backend.filters) {
                None => HttpService::new(service),
                Some(filters) => {
                    HttpService::new(ServiceBuilder::new().layer(filters).service(service))
                }
            };
            Branch { service, stack }
        };
        Split {
            branches: Arc::new(Spread::new(&forward.backends, branch)),
            sessions: forward.session.clone().map(Sessions::new).map(Arc::new),
        }
    }

    fn filters(&self, filters: &[Filter]) -> Option<FilterLayer> {
        let apply = |filter: &Filter| match filter {
            Filter::Mirror(mirror) => {
                let stack = self.backends.get(self.parent, &mirror.backend, None);
                Apply::Mirror(Mirror::new(HttpService::new(BackendService(stack)), mirror.ratio))
            }
            filter => Apply::filter(filter.clone()),
        };
        FilterLayer::new(filters.iter().map(apply).collect())
    }

    fn tcp(&self, policy: &TcpPolicy) -> TcpRouter {
        let routes = policy.routes.iter().map(|route| TcpRule {
            route: route.clone(),
            info: RouteInfo::new(self.telemetry, self.parent, &route.meta),
            backends: Spread::new(&route.backends, |backend| {
                self.backends.get(self.parent, backend, None)
            }),
        });
        TcpRouter { routes: Arc::new(routes.collect()) }
    }
}

fn wants_prefix(filter: &Filter) -> bool {
    let path = match filter {
        Filter::Redirect(redirect) => &redirect.path,
        Filter::Rewrite(rewrite) => &rewrite.path,
        _ => return false,
    };
    matches!(path, Some(PathModifier::Prefix(_)))
}

/// A distribution, ready to pick from.
#[derive(Debug)]
enum Spread<B> {
    Empty,
    First(Vec<B>),
    /// Each with the sum of the weights up to and including its own.
    Random(Vec<(B, u64)>, Draws),
}

/// What [`Spread`] needs to know of a backend.
trait Available {
    fn is_available(&self) -> bool;
    /// Whether it is known that nobody is there to take anything.
    fn is_out(&self) -> bool;
}

impl<B: Available> Spread<B> {
    fn new<T>(distribution: &Distribution<T>, mut make: impl FnMut(&Arc<T>) -> B) -> Self {
        match distribution {
            Distribution::Empty => Self::Empty,
            Distribution::FirstAvailable(backends) => {
                Self::First(backends.iter().map(make).collect())
            }
            Distribution::Random(backends) => {
                let mut sum = 0;
                let weighed =
                    backends.iter().filter(|(_, weight)| *weight > 0).map(|(b, weight)| {
                        sum += u64::from(*weight);
                        (make(b), sum)
                    });
                Self::Random(weighed.collect(), Draws::default())
            }
        }
    }

    fn pick(&self) -> Option<&B> {
        match self {
            Self::Empty => None,
            Self::First(backends) => match backends.as_slice() {
                [only] => Some(only),
                all => all.iter().find(|b| b.is_available()).or(all.first()),
            },
            Self::Random(backends, draws) => match backends.as_slice() {
                [] => None,
                [(only, _)] => Some(only),
                [.., (_, sum)] => {
                    let draw = draws.below(*sum);
                    let at = backends.partition_point(|(_, upto)| *upto <= draw);
                    backends.get(at).map(|(b, _)| b)
                }
            },
        }
    }
}

impl<B: Available> Spread<B> {
    /// The one that is meant, if it still gets traffic and has anybody to take it.
    fn meant(&self, is_meant: impl Fn(&B) -> bool) -> Option<&B> {
        let found = match self {
            Self::Empty => None,
            Self::First(backends) => backends.iter().find(|b| is_meant(b)),
            Self::Random(backends, _) => backends.iter().map(|(b, _)| b).find(|b| is_meant(b)),
        };
        found.filter(|b| !b.is_out())
    }
}

/// Sends each try to one of a rule's backends.
#[derive(Clone, Debug)]
struct Split {
    branches: Arc<Spread<Branch>>,
    sessions: Option<Arc<Sessions>>,
}

#[derive(Clone, Debug)]
struct Branch {
    service: HttpService,
    stack: Arc<BackendStack>,
}

impl Branch {
    fn is_to(&self, backend: u64) -> bool {
        stable_hash(self.stack.info.text.as_ref()) == backend
    }
}

impl Available for Branch {
    fn is_available(&self) -> bool {
        self.stack.is_available()
    }

    fn is_out(&self) -> bool {
        self.stack.is_out()
    }
}

impl Available for Arc<BackendStack> {
    fn is_available(&self) -> bool {
        BackendStack::is_available(self)
    }

    fn is_out(&self) -> bool {
        BackendStack::is_out(self)
    }
}

impl Service<Request> for Split {
    type Response = Response;
    type Error = BoxError;
    type Future = Instrumented<ResponseFuture>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let found = match &self.sessions {
            None => self.branches.pick().map(|branch| (branch, request, None)),
            Some(sessions) => {
                let (meant, request, answer) = sessions.begin(request);
                let branch = meant.and_then(|backend| self.branches.meant(|b| b.is_to(backend)));
                branch
                    .or_else(|| self.branches.pick())
                    .map(|branch| (branch, request, Some(answer)))
            }
        };
        match found {
            Some((branch, mut request, answer)) => {
                let stack = &branch.stack;
                let span = tracing::debug_span!("outbound.try", backend = stack.info.text.as_ref());
                let answer = answer.map(|answer| answer.at(stack, &mut request));
                let call = span.in_scope(|| branch.service.clone().call(request));
                match answer {
                    None => call.instrument(span),
                    Some(answer) => {
                        let call: ResponseFuture =
                            Box::pin(async move { Ok(answer.respond(call.await?)) });
                        call.instrument(span)
                    }
                }
            }
            None => {
                let nowhere: ResponseFuture =
                    Box::pin(std::future::ready(Err(no_backend().into())));
                nowhere.instrument(tracing::Span::none())
            }
        }
    }
}

fn no_backend() -> MeshError {
    MeshError::new(Reason::NoBackend, "the route has no usable backend")
}

/// Finds the backend for a connection's bytes.
#[derive(Clone, Debug)]
pub(crate) struct TcpRouter {
    routes: Arc<Vec<TcpRule>>,
}

#[derive(Debug)]
struct TcpRule {
    route: TcpRoute,
    info: Arc<RouteInfo>,
    backends: Spread<Arc<BackendStack>>,
}

impl TcpRouter {
    /// The route and backend of a connection, by its SNI if it is TLS.
    pub(crate) fn pick(
        &self,
        sni: Option<&str>,
    ) -> Result<(Arc<RouteInfo>, Arc<BackendStack>), MeshError> {
        let specificity = |rule: &&TcpRule| match (rule.route.snis.as_slice(), sni) {
            ([], _) => Some((0, 0)),
            (_, None) => None,
            (snis, Some(sni)) => snis.iter().filter_map(|pattern| pattern.match_host(sni)).max(),
        };
        let mut best: Option<(&TcpRule, (u8, usize))> = None;
        for rule in self.routes.iter() {
            if let Some(found) = specificity(&rule)
                && best.is_none_or(|(_, than)| found > than)
            {
                best = Some((rule, found));
            }
        }
        let (rule, _) = best.ok_or_else(|| {
            let name = sni.unwrap_or("a connection without server name");
            MeshError::new(Reason::NoRoute, format!("no route matches {name}"))
        })?;
        if let Some(refuse) = &rule.route.refuse {
            let message = format!("{} refuses the connection: {refuse:?}", rule.route.meta);
            return Err(MeshError::new(Reason::Unauthorized, message));
        }
        let backend = rule.backends.pick().ok_or_else(no_backend)?;
        Ok((Arc::clone(&rule.info), Arc::clone(backend)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Available for (&'static str, bool) {
        fn is_available(&self) -> bool {
            self.1
        }

        fn is_out(&self) -> bool {
            !self.1
        }
    }

    #[test]
    fn weights_are_kept() {
        let weights = [("a", 75), ("b", 25), ("never", 0)];
        let backends = weights.map(|(name, weight)| (Arc::new((name, true)), weight)).to_vec();
        let spread = Spread::new(&Distribution::Random(backends), |b| **b);
        let draws = 40_000;
        let a = (0..draws).filter(|_| spread.pick().unwrap().0 == "a").count();
        assert!((a as f64 / f64::from(draws) - 0.75).abs() < 0.001, "{a} of {draws}");
        assert!((0..1000).all(|_| spread.pick().unwrap().0 != "never"));
    }

    #[test]
    fn a_session_leaves_a_backend_that_has_nobody() {
        let backends = || [("a", false), ("b", true)].map(Arc::new);
        let weighed = backends().map(|backend| (backend, 1)).to_vec();
        for distribution in
            [Distribution::FirstAvailable(backends().to_vec()), Distribution::Random(weighed)]
        {
            let spread = Spread::new(&distribution, |b| **b);
            let meant = |name| spread.meant(|(of, _)| *of == name).map(|(of, _)| *of);
            assert_eq!((meant("a"), meant("b"), meant("c")), (None, Some("b"), None));
        }
    }

    #[test]
    fn the_first_available_comes_first() {
        let of = |backends: Vec<(&'static str, bool)>| {
            let backends = backends.into_iter().map(Arc::new).collect();
            let spread = Spread::new(&Distribution::FirstAvailable(backends), |b| **b);
            spread.pick().map(|(name, _)| *name)
        };
        assert_eq!(of(vec![("a", false), ("b", true)]), Some("b"));
        assert_eq!(of(vec![("a", false), ("b", false)]), Some("a"));
        assert_eq!(of(vec![]), None);
    }
}
