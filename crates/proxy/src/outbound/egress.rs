//! What leaves the mesh: a target of which the control plane knows nothing.
//!
//! Each request and each connection is named (by its host, its server name, or its address), decided
//! about by `mesh_model::egress`, and counted under both. What may leave goes the way of anything else:
//! every name gets routes of its own to the same address, so that figures tell hosts apart.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use mesh_layers::Request;
use mesh_model::egress::{Departure, EgressRules, HostName};
use mesh_model::endpoint::Endpoint;
use mesh_model::stats::{SeriesKey, StatProtocol};
use mesh_model::{Direction, Meta, Reason, Target};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::route::{RoutedProtocol, Routes, TcpRouter};
use super::target::{Shared, TargetStack};
use super::tcp;
use super::{Outbound, Spoken};
use crate::detect::Detected;
use crate::discovery::{Leave, Outside, forward_to};
use crate::error::MeshError;
use crate::exchange::{Exchange, RouteInfo};
use crate::http::forward;
use crate::io::Io;
use crate::telemetry::tap::Refused;
use crate::telemetry::{EgressCounters, EgressLabels, HttpLabels, Series, SeriesSpec};

/// One place outside of the mesh, as a client asked for it.
#[derive(Debug)]
pub(crate) struct Egress {
    place: Outside,
    /// The name by which the proxy was asked to find it.
    asked: Option<HostName>,
    rules: watch::Receiver<Leave>,
    shared: Arc<Shared>,
    exits: Mutex<HashMap<Option<HostName>, Arc<Exit>>>,
}

/// What was decided about a name at a place.
#[derive(Debug)]
pub(super) struct Exit {
    /// Of these rules.
    rules: Arc<EgressRules>,
    decided: Instant,
    allowed: bool,
    policy: Meta,
    info: Arc<RouteInfo>,
    http: Arc<EgressCounters>,
    tcp: Arc<EgressCounters>,
    /// Where it goes, if it may.
    routes: Option<Arc<Routes>>,
}

/// Names at one address; beyond, the one that was decided about first is forgotten.
const MAX_EXITS: usize = 64;
/// A decision is made again after so long, so that figures know which hosts are in use.
const FRESH: Duration = Duration::from_secs(60);

impl Egress {
    pub(super) fn new(place: Outside, target: &Target, shared: &Arc<Shared>) -> Arc<Self> {
        let asked = match target {
            Target::Addr(_) => None,
            Target::Authority(authority) => name_of(authority),
        };
        let rules = shared.discovery.egress();
        Arc::new(Self { place, asked, rules, shared: Arc::clone(shared), exits: Mutex::default() })
    }

    /// The rules as of now; waits for the first ones.
    pub(super) async fn rules(&self, wait: Duration) -> Result<Arc<EgressRules>, MeshError> {
        if let Some(rules) = self.rules.borrow().clone() {
            return Ok(rules);
        }
        let mut rules = self.rules.clone();
        let known = tokio::time::timeout(wait, rules.wait_for(Option::is_some)).await;
        known.ok().and_then(Result::ok).and_then(|rules| rules.clone()).ok_or_else(|| {
            let message =
                format!("the control plane has not said within {wait:?} what may leave the mesh");
            MeshError::new(Reason::DiscoveryTimeout, message)
        })
    }

    /// What is decided about a name, or about what names no host.
    fn exit(&self, rules: &Arc<EgressRules>, name: Option<&HostName>) -> Arc<Exit> {
        let now = Instant::now();
        let mut exits = self.exits.lock();
        let name = name.cloned();
        let before = exits.get(&name);
        if let Some(exit) = before
            && Arc::ptr_eq(&exit.rules, rules)
            && now.duration_since(exit.decided) < FRESH
        {
            return Arc::clone(exit);
        }
        let exit = Arc::new(self.decide(rules, name.as_ref(), before.map(|exit| &**exit)));
        if exits.len() >= MAX_EXITS && before.is_none() {
            let oldest = exits.iter().min_by_key(|(_, exit)| exit.decided);
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                exits.remove(&oldest);
            }
        }
        exits.insert(name, Arc::clone(&exit));
        exit
    }

    fn decide(
        &self,
        rules: &Arc<EgressRules>,
        name: Option<&HostName>,
        before: Option<&Exit>,
    ) -> Exit {
        let Shared { backends, telemetry, .. } = &*self.shared;
        let addr = self.place.addr;
        let names: Vec<HostName> = self.asked.iter().chain(name).cloned().collect();
        let what = Departure { names: &names, ip: Some(addr.ip()), port: addr.port() };
        let verdict = rules.decide(what);
        let (allowed, policy) = (verdict.allowed, verdict.by.clone());
        let host = names.first().map(|name| Arc::from(name.as_str()));
        let host = host.unwrap_or_else(|| Arc::from(addr.ip().to_canonical().to_string()));
        let parent = telemetry.egress.host(&host, addr.port());
        let (rules, decided) = (Arc::clone(rules), Instant::now());
        // What stays the same keeps its connections.
        if let Some(exit) = before
            && (exit.allowed, &exit.policy, &exit.info.parent) == (allowed, &policy, &parent)
        {
            let Exit { info, http, tcp, routes, .. } = exit;
            let (info, routes) = (Arc::clone(info), routes.clone());
            let (http, tcp) = (Arc::clone(http), Arc::clone(tcp));
            return Exit { rules, decided, allowed, policy, info, http, tcp, routes };
        }
        let labels = EgressLabels { parent: parent.clone(), policy: policy.clone() };
        let routes = allowed.then(|| {
            let endpoint = Endpoint::plain(addr);
            let policy = forward_to(endpoint, self.place.opaque, &parent, &policy);
            Arc::new(Routes::build(&policy, backends, telemetry))
        });
        Exit {
            info: RouteInfo::new(telemetry, &parent, &policy),
            http: telemetry.egress.http(&labels),
            tcp: telemetry.egress.tcp(&labels),
            rules,
            decided,
            allowed,
            policy,
            routes,
        }
    }

    /// Whether bytes that name no host may leave.
    fn lets_bytes_out(&self, rules: &EgressRules) -> bool {
        let addr = self.place.addr;
        let names = self.asked.as_slice();
        rules.decide(Departure { names, ip: Some(addr.ip()), port: addr.port() }).allowed
    }

    /// The routes of a request, if it may leave.
    pub(super) fn request(
        &self,
        rules: &Arc<EgressRules>,
        request: &Request,
    ) -> Result<Arc<Routes>, MeshError> {
        let exit = self.exit(rules, host_of(request).as_ref());
        if let Some(exchange) = Exchange::of(request) {
            exchange.routed(&exit.info);
            exchange.authorized(&exit.policy, exit.allowed);
        }
        match &exit.routes {
            Some(routes) => {
                exit.http.allow.inc();
                Ok(Arc::clone(routes))
            }
            None => {
                exit.http.deny.inc();
                Err(exit.denied())
            }
        }
    }

    /// Waits until a change of the rules no longer lets out a connection that was: one carried as bytes,
    /// or upgraded by a request to this host.
    pub(super) async fn revoked(self: Arc<Self>, name: Option<HostName>, client: SocketAddr) {
        let mut rules = self.rules.clone();
        while rules.changed().await.is_ok() {
            let Some(now) = rules.borrow_and_update().clone() else { continue };
            let exit = self.exit(&now, name.as_ref());
            if !exit.allowed {
                tracing::info!(%client, to = %exit.info.parent, policy = %exit.policy, "connection cut");
                exit.tcp.terminated.inc();
                self.series(&exit).failed(Reason::EgressDenied);
                self.tell_refused(&exit, client);
                return;
            }
        }
        // Nobody will change the rules any more.
        std::future::pending().await
    }

    /// A connection that may not leave. It was open for a moment.
    fn refuse(&self, exit: &Exit, client: SocketAddr) {
        exit.tcp.deny.inc();
        let series = self.series(exit);
        series.opened();
        series.failed(Reason::EgressDenied);
        series.closed(0, 0);
        tracing::info!(%client, to = %exit.info.parent, policy = %exit.policy, "connection closed");
        self.tell_refused(exit, client);
    }

    fn tell_refused(&self, exit: &Exit, client: SocketAddr) {
        self.shared.telemetry.tap.refused(Refused {
            direction: Direction::Outbound,
            source: client,
            destination: self.place.addr,
            parent: exit.info.parent_text.to_string(),
            route: exit.info.route_text.to_string(),
            reason: Reason::EgressDenied,
            tls: None,
            policy: Some(exit.policy.to_string()),
        });
    }

    /// Where connections are counted that reach no endpoint.
    fn series(&self, exit: &Exit) -> Arc<Series> {
        self.shared.telemetry.stats.series(SeriesSpec {
            key: SeriesKey {
                direction: Direction::Outbound,
                protocol: StatProtocol::Tcp,
                peer: None,
                port: self.place.addr.port(),
                parent: Arc::clone(&exit.info.parent_text),
                route: Arc::clone(&exit.info.route_text),
                backend: Arc::default(),
                identity: None,
            },
            labels: HttpLabels {
                parent: Some(exit.info.parent.clone()),
                route: Some(exit.info.route.clone()),
                ..HttpLabels::default()
            },
        })
    }

    pub(super) fn describe(&self) -> serde_json::Value {
        let rules = self.rules.borrow();
        let exits = self.exits.lock();
        let mut told: Vec<_> = exits
            .values()
            .map(|exit| {
                serde_json::json!({
                    "to": exit.info.parent_text.as_ref(),
                    "allowed": exit.allowed,
                    "by": exit.policy.to_string(),
                })
            })
            .collect();
        told.sort_by_key(ToString::to_string);
        serde_json::json!({
            "state": "outside",
            "address": self.place.addr.to_string(),
            "rules": rules.as_ref().map(|rules| rules.rules.len()),
            "default": rules.as_ref().map(|rules| rules.default.action.as_str()),
            "decided": told,
        })
    }
}

impl Exit {
    fn denied(&self) -> MeshError {
        let message = format!("{} denies what goes to {}", self.policy, self.info.parent);
        MeshError::new(Reason::EgressDenied, message)
    }

    /// What carries bytes there, if they may leave.
    fn tcp(&self) -> Option<&TcpRouter> {
        match &self.routes.as_ref()?.protocol {
            RoutedProtocol::Detect { tcp, .. }
            | RoutedProtocol::Opaque(tcp)
            | RoutedProtocol::Tls(tcp) => Some(tcp),
            RoutedProtocol::Http(_) => None,
        }
    }
}

impl Outbound {
    /// A connection that leaves the mesh, to its end.
    pub(super) async fn leaving(
        self: Arc<Self>,
        client: SocketAddr,
        mut io: Io,
        stack: Arc<TargetStack>,
        (egress, rules): (Arc<Egress>, Arc<EgressRules>),
    ) {
        let target = stack.target().clone();
        // Not before it is known that no host is named: it would be told in figures.
        let nameless = OnceLock::new();
        let nameless = || nameless.get_or_init(|| egress.exit(&rules, None));
        if egress.place.opaque {
            return self.carry_out(client, io, None, &egress, nameless()).await;
        }
        if rules.names_hosts() {
            // What is decided by name has to be looked at, however the server was known to behave.
            self.server_first.lock().remove(&target);
        }
        let limit = self.config.limits.header_timeout;
        // A server is heard first only where bytes that name no host may leave.
        let router = egress.lets_bytes_out(&rules).then_some(|| nameless().tcp());
        let detected = match self.detect(&mut io, router, limit, &target).await {
            Ok(Some(detected)) => detected,
            Ok(None) => return,
            Err(error) => return tracing::debug!(%target, %client, %error, "client connection"),
        };
        match detected {
            Spoken::First(Detected::Http(version)) => {
                self.serve(client, version, stack, io).await;
            }
            Spoken::First(Detected::Tls { sni }) => {
                let name = sni.as_deref().and_then(HostName::new);
                let rules = egress.rules.borrow().clone().unwrap_or(rules);
                let exit = egress.exit(&rules, name.as_ref());
                self.carry_out(client, io, name, &egress, &exit).await;
            }
            Spoken::First(Detected::Opaque) => {
                let rules = egress.rules.borrow().clone().unwrap_or(rules);
                let exit = egress.exit(&rules, None);
                self.carry_out(client, io, None, &egress, &exit).await;
            }
            Spoken::Server(connected) => {
                nameless().tcp.allow.inc();
                tcp::carry(io, connected, egress.revoked(None, client)).await;
            }
        }
    }

    async fn carry_out(
        &self,
        client: SocketAddr,
        io: Io,
        name: Option<HostName>,
        egress: &Arc<Egress>,
        exit: &Exit,
    ) {
        let Some(router) = exit.tcp() else { return egress.refuse(exit, client) };
        exit.tcp.allow.inc();
        let stop = Arc::clone(egress).revoked(name, client);
        if let Err(failure) = tcp::forward(router, io, None, stop).await {
            self.refuse(&exit.info.parent_text, client, &failure);
        }
    }
}

/// The host that a request is for, as its server will read it.
pub(super) fn host_of(request: &Request) -> Option<HostName> {
    name_of(forward::authority_of(request)?.as_str())
}

/// The name in an authority. `localhost` is what clients of a named upstream call the proxy itself.
fn name_of(authority: &str) -> Option<HostName> {
    let authority: http::uri::Authority = authority.parse().ok()?;
    HostName::new(authority.host()).filter(|name| name.as_str() != "localhost")
}

#[cfg(test)]
mod tests {
    use http::header::HOST;
    use mesh_layers::Body;

    use super::*;

    #[test]
    fn the_host_is_the_one_that_is_sent_on() {
        let of = |uri: &str, host: Option<&str>| {
            let mut request = http::Request::builder().uri(uri);
            if let Some(host) = host {
                request = request.header(HOST, host);
            }
            let mut request: Request = request.body(Body::empty()).unwrap();
            let host = host_of(&request);
            forward::to_http1(&mut request, "fallback.test");
            (host.map(|host| host.as_str().to_owned()), request.headers()[HOST].clone())
        };
        for (uri, host, decided, sent) in [
            ("/", Some("a.test"), Some("a.test"), "a.test"),
            ("/", Some("A.test.:8080"), Some("a.test"), "A.test.:8080"),
            ("http://b.test/", Some("a.test"), Some("b.test"), "b.test"),
            ("/", None, None, "fallback.test"),
            ("/", Some("192.0.2.1:80"), None, "192.0.2.1:80"),
            ("/", Some("[2001:db8::1]"), None, "[2001:db8::1]"),
            ("/", Some("localhost:15001"), None, "localhost:15001"),
            ("/", Some(""), None, ""),
        ] {
            let (have, went) = of(uri, host);
            assert_eq!((have.as_deref(), went), (decided, sent.parse().unwrap()), "{uri} {host:?}");
        }
    }
}
