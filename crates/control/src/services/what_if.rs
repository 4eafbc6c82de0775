//! `meshctl explain --what-if`: what would become of a request.
//!
//! It asks the same functions as the proxies do: the policy that the client's proxy is told, the
//! matcher that it matches with, the decision of the server's. [`effects`] is what filters do,
//! [`server`] what is behind a backend, [`egress`] what leaves the mesh.

mod effects;
mod egress;
mod server;

use http::request::Parts;
use http::{HeaderName, HeaderValue, Method};
use mesh_api::ext::{WhatIfAnswer, WhatIfAside, WhatIfMatch, WhatIfReply, WhatIfRequest};
use mesh_model::Meta;
use mesh_model::matching::{self, Candidate, Cover, Outcome, candidates, find};
use mesh_model::outbound::{Breaker, Forward, HttpPolicy, OutboundPolicy, Protocol, TcpRoute};
use mesh_model::route::{
    Distribution, GrpcCodes, GrpcMatch, HttpMatch, Retry, Route, Rule, SessionBy, is_idempotent,
};

use self::effects::{Effects, Sent};
use self::server::Client;
use super::mesh::{Failure, must_exist, problem};
use super::select::select;
use super::{analysis, words};
use crate::index::Objects;
use crate::index::lookup::{Wanted, full_name, understand_authority};
use crate::index::object::{AppProtocol, Kind, Name, RouteHead, Service};
use crate::source::Severity;
use crate::state::Shared;

/// Without a word from the route, connections that fail may be tried elsewhere.
const WITHOUT_RETRY: &str = "no retries, but connections that fail are tried elsewhere";

/// Answers a question.
///
/// # Errors
/// When it cannot be understood, or names what does not exist.
pub(super) fn what_if(shared: &Shared, request: &WhatIfRequest) -> Result<WhatIfReply, Failure> {
    let overlay = analysis::overlay(shared, &request.manifests)?;
    let problems: Vec<_> = overlay.problems.iter().map(problem).collect();
    if overlay.problems.iter().any(|problem| problem.severity == Severity::Error) {
        return Ok(WhatIfReply { problems, ..WhatIfReply::default() });
    }
    let index = shared.index.read();
    let copy;
    let objects = if overlay.is_empty() {
        index.objects()
    } else {
        copy = overlay.over(index.objects());
        &copy
    };
    let client = client(objects, request)?;
    if request.outside {
        let (notes, client_namespace) = (client.notes(), client.namespace.clone());
        let mut reply = WhatIfReply { client_namespace, problems, notes, ..WhatIfReply::default() };
        egress::answer(objects, request, &client, &mut reply)?;
        return Ok(reply);
    }
    let (service, port) = target(objects, request, &client.namespace)?;
    let head = head(request, service, port)?;
    let policy = objects.outbound_policy(&service.name, port, &client.namespace);
    let policy = policy.ok_or_else(|| no_such_port(service, port))?;
    let mut reply = WhatIfReply {
        service: policy.meta.to_string(),
        client_namespace: client.namespace.clone(),
        problems,
        notes: client.notes(),
        ..WhatIfReply::default()
    };
    let question = Question { objects, service, port, client: &client, head };
    question.answer(&policy, &mut reply);
    Ok(reply)
}

struct Question<'a> {
    objects: &'a Objects,
    service: &'a Service,
    port: u16,
    client: &'a Client,
    head: Parts,
}

fn client(objects: &Objects, request: &WhatIfRequest) -> Result<Client, Failure> {
    let none = || Failure::Invalid("the question does not say who asks".into());
    let selector = request.client.as_ref().ok_or_else(none)?;
    let selected = select(objects, selector)?;
    must_exist(&selected, std::slice::from_ref(selector))?;
    match selected.as_slice() {
        [] => Err(Failure::NotFound(format!("there is no {}", selector.kind))),
        [only] => {
            let of = &only.object;
            let namespace = if of.kind == "namespace" { &of.name } else { &of.namespace };
            Ok(Client {
                namespace: namespace.clone(),
                what: format!("{}/{}", of.kind, of.name),
                pods: only.pods.clone(),
            })
        }
        several => {
            let at: Vec<_> = several.iter().map(|s| s.object.namespace.as_str()).collect();
            Err(Failure::Invalid(format!(
                "{}/{} is in the namespaces {}; say which",
                selector.kind,
                selector.name,
                at.join(", ")
            )))
        }
    }
}

fn target<'a>(
    objects: &'a Objects,
    request: &WhatIfRequest,
    namespace: &str,
) -> Result<(&'a Service, u16), Failure> {
    let wanted = understand_authority(&request.authority, namespace);
    let (service, port) = match wanted.map_err(|error| Failure::Invalid(error.to_string()))? {
        Some(Wanted::Service { name, port }) => match objects.service(&name) {
            Some(service) => (service, port),
            None => return Err(Failure::NotFound(format!("Service {name} does not exist"))),
        },
        Some(Wanted::Address(addr)) => match objects.service_by_ip(addr.ip()) {
            Some(service) => (service, addr.port()),
            None => {
                return Err(Failure::NotFound(format!(
                    "{addr} is not the address of a Service: requests to it bypass all routes"
                )));
            }
        },
        None => {
            let name = &request.authority;
            return Err(Failure::NotFound(format!("{name} is not the name of a Service")));
        }
    };
    match service.port(port) {
        Some(_) => Ok((service, port)),
        None => Err(no_such_port(service, port)),
    }
}

fn no_such_port(service: &Service, port: u16) -> Failure {
    let ports: Vec<String> = service.ports.iter().map(|port| port.port.to_string()).collect();
    let ports = ports.join(", ");
    Failure::NotFound(format!("Service {} has no port {port}; it has {ports}", service.name))
}

/// The head of the request as the client's proxy sees it.
fn head(request: &WhatIfRequest, service: &Service, port: u16) -> Result<Parts, Failure> {
    let invalid = |what: &str, text: &str| Failure::Invalid(format!("`{text}` is not {what}"));
    let method = Method::from_bytes(request.method.as_bytes());
    let method = method.map_err(|_| invalid("a method", &request.method))?;
    if !request.path.starts_with('/') {
        return Err(invalid("a path; it begins with a slash", &request.path));
    }
    let mut headers = http::HeaderMap::new();
    for header in &request.headers {
        let name = HeaderName::from_bytes(header.name.as_bytes());
        let name = name.map_err(|_| invalid("the name of a header", &header.name))?;
        let value = HeaderValue::from_str(&header.value);
        let value = value.map_err(|_| invalid("the value of a header", &header.value))?;
        headers.append(name, value);
    }
    let host = headers.get(http::header::HOST).and_then(|host| host.to_str().ok());
    let host = host.map_or_else(|| format!("{}:{port}", full_name(&service.name)), str::to_owned);
    let uri = format!("http://{host}{}", request.path);
    let built = http::Request::builder().method(method).uri(&uri).body(());
    let (mut head, ()) = built.map_err(|_| invalid("a location", &uri))?.into_parts();
    head.headers = headers;
    Ok(head)
}

impl Question<'_> {
    fn answer(&self, policy: &OutboundPolicy, reply: &mut WhatIfReply) {
        let declared = self.service.port(self.port).map(|port| port.app_protocol);
        let declared = declared.unwrap_or_default();
        let by_port = match declared {
            AppProtocol::Unknown => "nobody declares it: the proxy sees what is spoken".to_owned(),
            of => format!("the Service's port has appProtocol {}", of.as_str()),
        };
        let (protocol, why) = match &policy.protocol {
            Protocol::Detect { http1: http, .. }
            | Protocol::Http1(http)
            | Protocol::Http2(http) => {
                self.http(http, reply);
                ("http", by_port)
            }
            Protocol::Grpc(grpc) => {
                self.routes(&grpc.routes, Kind::GrpcRoute, grpc.breaker, reply);
                let by_route = "a GRPCRoute is attached to the port".to_owned();
                ("grpc", if declared == AppProtocol::Grpc { by_port } else { by_route })
            }
            Protocol::Opaque(tcp) => {
                self.bytes(&tcp.routes, reply);
                let by_port = declared == AppProtocol::Opaque;
                let why = if by_port { "by the Service's appProtocol" } else { "by opaque ports" };
                (
                    "opaque",
                    format!("{why}: its bytes are carried unread, and no HTTP route applies"),
                )
            }
            Protocol::Tls(tcp) => {
                self.bytes(&tcp.routes, reply);
                let why = "TLSRoutes are attached to the port, which choose by server name";
                ("tls", why.to_owned())
            }
        };
        reply.protocol = protocol.into();
        reply.protocol_why = why;
        self.aside(reply);
    }

    fn http(&self, http: &HttpPolicy, reply: &mut WhatIfReply) {
        self.routes(&http.routes, Kind::HttpRoute, http.breaker, reply);
    }

    fn routes<M: Described>(
        &self,
        routes: &[Route<M, Forward>],
        kind: Kind,
        breaker: Option<Breaker>,
        reply: &mut WhatIfReply,
    ) {
        let all = candidates(routes, &self.head);
        reply.matches = self.matches(routes, kind, &all);
        let Some(found) = find(routes, &self.head) else {
            let why = "no rule matches: the client's proxy answers itself (no-route)";
            reply.answer =
                Some(WhatIfAnswer { status: 404, why: why.into(), ..Default::default() });
            return;
        };
        let rule = found.rule_ref;
        let mut sent = Sent::new(&self.head, found.prefix);
        let effects = Effects::of(&rule.filters, &mut sent);
        reply.filters = effects.said;
        reply.answer = effects.answer;
        if reply.answer.is_some() {
            return;
        }
        reply.limits = self.limits(rule);
        let (weights, total) = weights(&rule.action.backends);
        if weights.is_empty() {
            let why = "the rule has no backend that can be used (no-backend)";
            reply.answer =
                Some(WhatIfAnswer { status: 503, why: why.into(), ..Default::default() });
        }
        for (backend, weight) in weights {
            let mut sent = sent.clone();
            let effects = Effects::of(&backend.filters, &mut sent);
            let mut told = self.backend(&backend.backend.meta, breaker, Some(&sent));
            told.share = weight / total;
            told.filters = effects.said;
            if effects.answer.is_some() {
                told.endpoints.clear();
            }
            told.answer = effects.answer;
            reply.backends.push(told);
        }
    }

    fn matches<M: Described>(
        &self,
        routes: &[Route<M, Forward>],
        kind: Kind,
        all: &[Candidate<'_>],
    ) -> Vec<WhatIfMatch> {
        let name_of = |candidate: &Candidate<'_>| routes[candidate.route].meta.to_string();
        let winner = all.iter().find(|candidate| candidate.outcome == Outcome::Wins);
        let of = |candidate: &Candidate<'_>| {
            let rule = &routes[candidate.route].rules[candidate.rule];
            let found = candidate.matched.and_then(|index| rule.matches.get(index));
            let why = match (candidate.outcome, winner) {
                (Outcome::Wins, _) | (Outcome::Loses, None) => String::new(),
                (Outcome::Misses(miss), _) => miss.to_string(),
                (Outcome::Loses, Some(winner)) => {
                    match candidate.specificity.behind(winner.specificity) {
                        Some(part) => format!("{part} is less specific"),
                        None if candidate.route == winner.route => {
                            "it is as specific, and comes later in its route".into()
                        }
                        None => {
                            "it is as specific, and its route is younger, or later by name".into()
                        }
                    }
                }
            };
            WhatIfMatch {
                route: name_of(candidate),
                rule: u32::try_from(candidate.rule).unwrap_or(u32::MAX),
                rule_name: self.rule_name(kind, &routes[candidate.route].meta, candidate.rule),
                r#match: found.map_or_else(|| "any request".into(), M::describe),
                matches: !matches!(candidate.outcome, Outcome::Misses(_)),
                wins: candidate.outcome == Outcome::Wins,
                why,
            }
        };
        all.iter().map(of).collect()
    }

    fn rule_name(&self, kind: Kind, route: &Meta, rule: usize) -> String {
        let name = route.resource().map(|of| Name::new(&of.namespace, &of.name));
        let Some(name) = name else { return String::new() };
        let name = match kind {
            Kind::GrpcRoute => {
                let route = self.objects.grpc_route(&name);
                route.and_then(|route| Some(route.rules.get(rule)?.name.clone()))
            }
            _ => {
                let route = self.objects.http_route(&name);
                route.and_then(|route| Some(route.rules.get(rule)?.name.clone()))
            }
        };
        name.unwrap_or_default()
    }

    /// Timeouts, retries and sessions of a rule, for this request.
    fn limits<M: Described>(&self, rule: &Rule<M, Forward>) -> Vec<String> {
        let Forward { timeouts, retry, session, .. } = &rule.action;
        let mut limits = Vec::new();
        limits.push(match timeouts.request {
            Some(request) => format!("the request may take {request:?}, all tries together"),
            None => "no timeout".into(),
        });
        let retried = retry.as_ref().filter(|retry| retry.max_retries > 0);
        limits.push(match retried {
            None => WITHOUT_RETRY.into(),
            Some(retry) => self.retried(retry, rule),
        });
        if let Some(timeout) = retry.as_ref().and_then(|retry| retry.timeout) {
            limits.push(format!("each try may take {timeout:?}"));
        }
        if let Some(session) = session {
            let by = match session.by {
                SessionBy::Cookie { .. } => "cookie",
                SessionBy::Header => "header",
            };
            limits.push(format!("stays at one endpoint by the {by} {}", session.name));
        }
        limits
    }

    fn retried<M: Described>(&self, retry: &Retry, rule: &Rule<M, Forward>) -> String {
        let named = matching::names_methods(&rule.matches);
        let grpc = retry.grpc != GrpcCodes::default();
        let keyed = self.head.headers.contains_key("idempotency-key");
        let method = &self.head.method;
        let text = words::retry(retry);
        if named || grpc || keyed || is_idempotent(method) {
            return text;
        }
        format!(
            "{text}; not of this {method} once it was sent, as the rule does not name the method"
        )
    }

    /// Bytes have one rule, or one for each server name.
    fn bytes(&self, routes: &[TcpRoute], reply: &mut WhatIfReply) {
        let host = mesh_model::matching::request_host(&self.head);
        let fits = |route: &&TcpRoute| {
            route.snis.is_empty() || route.snis.iter().any(|sni| sni.match_host(host).is_some())
        };
        let best = |route: &&TcpRoute| {
            route.snis.iter().filter_map(|sni| sni.match_host(host)).max().unwrap_or_default()
        };
        // Of equals, the first.
        let chosen = routes.iter().rev().filter(fits).max_by_key(best);
        for route in routes {
            let names: Vec<String> = route.snis.iter().map(ToString::to_string).collect();
            let wins = chosen.is_some_and(|chosen| std::ptr::eq(chosen, route));
            reply.matches.push(WhatIfMatch {
                route: route.meta.to_string(),
                r#match: match names.as_slice() {
                    [] => "any connection".into(),
                    names => format!("TLS {}", names.join(", ")),
                },
                matches: fits(&route),
                wins,
                why: match (wins, fits(&route)) {
                    (true, _) => String::new(),
                    (false, true) => "another is more specific, or comes first".into(),
                    (false, false) => format!("the server name is not {}", names.join(" or ")),
                },
                ..WhatIfMatch::default()
            });
        }
        let Some(route) = chosen else { return };
        let (weights, total) = weights(&route.backends);
        for (backend, weight) in weights {
            let mut told = self.backend(&backend.meta, None, None);
            told.share = weight / total;
            reply.backends.push(told);
        }
    }

    /// Routes of the port that this client's requests do not go by.
    fn aside(&self, reply: &mut WhatIfReply) {
        let name = &self.service.name;
        let heads = [
            self.heads(Kind::HttpRoute, self.objects.http_routes().map(|r| &r.head)),
            self.heads(Kind::GrpcRoute, self.objects.grpc_routes().map(|r| &r.head)),
            self.heads(Kind::TlsRoute, self.objects.tls_routes().map(|r| &r.head)),
            self.heads(Kind::TcpRoute, self.objects.tcp_routes().map(|r| &r.head)),
        ];
        let client = &self.client.namespace;
        for (kind, head) in heads.into_iter().flatten() {
            let route = format!("{}/{}", kind.as_str(), head.name);
            if reply.matches.iter().any(|found| found.route == route) {
                continue;
            }
            let of = &head.name.namespace;
            let why = if of != client && *of != name.namespace {
                format!("is for clients in namespace {of} only")
            } else if of != client
                && reply.matches.iter().any(|m| m.route.contains(&format!("/{client}/")))
            {
                format!("routes of the client's namespace {client} replace it")
            } else if kind == Kind::TcpRoute && reply.protocol != "opaque" {
                "is for connections that turn out not to be HTTP".into()
            } else {
                format!("the port is {}, and other kinds of routes govern it", reply.protocol)
            };
            reply.aside.push(WhatIfAside { route, why });
        }
    }

    fn heads<'a>(
        &'a self,
        kind: Kind,
        heads: impl Iterator<Item = &'a RouteHead>,
    ) -> Vec<(Kind, &'a RouteHead)> {
        let name = &self.service.name;
        let attached = |head: &&RouteHead| self.objects.attaches(head, name, self.port);
        heads.filter(attached).map(|head| (kind, head)).collect()
    }
}

/// Backends with their weights, and the sum of these.
fn weights<B>(backends: &Distribution<B>) -> (Vec<(&B, f64)>, f64) {
    let weighed: Vec<(&B, f64)> = match backends {
        Distribution::Empty => Vec::new(),
        // The others have nothing unless the first has no endpoint.
        Distribution::FirstAvailable(backends) => {
            let share = |index| if index == 0 { 1.0 } else { 0.0 };
            backends.iter().enumerate().map(|(index, b)| (&**b, share(index))).collect()
        }
        Distribution::Random(backends) => {
            backends.iter().map(|(backend, weight)| (&**backend, f64::from(*weight))).collect()
        }
    };
    let total: f64 = weighed.iter().map(|(_, weight)| weight).sum();
    (weighed, if total > 0.0 { total } else { 1.0 })
}

/// A match in words.
trait Described: Cover {
    fn describe(&self) -> String;
}

impl Described for HttpMatch {
    fn describe(&self) -> String {
        words::http_match(self)
    }
}

impl Described for GrpcMatch {
    fn describe(&self) -> String {
        words::grpc_match(self)
    }
}
