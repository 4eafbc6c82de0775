//! Who may use the port: the control plane's rules, decided by `mesh_model::authz`, or where it does
//! not know our extensions, the list of those whom linkerd's policy lets in.

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use mesh_layers::Request;
use mesh_model::authz::{AuthzRequest, Basis, HttpRequest, decide};
use mesh_model::endpoint::Labels;
use mesh_model::inbound::{Authentication, Authorization};
use mesh_model::stats::StatProtocol;
use mesh_model::{Direction, Meta, Reason};

use super::{MAX_COUNTED, Port};
use crate::discovery::PortRules;
use crate::error::MeshError;
use crate::exchange::Exchange;
use crate::inbound::Client;
use crate::telemetry::tap::Refused;
use crate::telemetry::{AuthzCounters, AuthzLabels, Who};

/// What a client does.
pub(super) struct Attempt<'a> {
    pub(super) client: &'a Client,
    /// `None` is a connection carried as bytes.
    pub(super) http: Option<HttpRequest<'a>>,
    pub(super) route: Option<&'a Meta>,
    /// Linkerd's policy: whom the route lets in besides the port.
    pub(super) of_route: &'a [Authorization],
}

/// The head of a request, for decisions about a connection that it was upgraded to.
#[derive(Debug)]
pub(in crate::inbound) struct Head {
    method: http::Method,
    uri: http::Uri,
    headers: http::HeaderMap,
}

impl Head {
    pub(in crate::inbound) fn of(request: &Request) -> Self {
        Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            headers: request.headers().clone(),
        }
    }

    fn http(&self) -> HttpRequest<'_> {
        HttpRequest { method: &self.method, uri: &self.uri, headers: &self.headers }
    }
}

/// What was decided, by which object, and what is to be recorded besides.
struct Decision<'a> {
    allowed: bool,
    by: &'a Meta,
    /// A probe that the workload declares, about which policies say nothing.
    probe: bool,
    audits: Vec<&'a Meta>,
}

/// What decides where linkerd's policy lets nobody in.
static NOBODY: LazyLock<Meta> = LazyLock::new(|| Meta::Default("deny".into()));

impl Port {
    /// Whether a connection carried as bytes may be made.
    pub(in crate::inbound) fn authorize_connection(
        &self,
        rules: &PortRules,
        client: &Client,
    ) -> Result<(), MeshError> {
        let attempt = Attempt { client, http: None, route: None, of_route: &[] };
        self.permit(rules, &attempt, None).map(drop)
    }

    /// Lets a client in or not, and counts it; true is for a declared health probe. The client is not
    /// told which policy it was.
    pub(super) fn permit(
        &self,
        rules: &PortRules,
        attempt: &Attempt<'_>,
        exchange: Option<&Exchange>,
    ) -> Result<bool, MeshError> {
        let http = attempt.http.is_some();
        let decision = decision(rules, attempt);
        let client = &attempt.client.addr;
        for audit in decision.audits {
            tracing::debug!(%client, policy = %audit, allowed = decision.allowed, "audited");
            self.counters(rules, http, audit, attempt.route, attempt.client).audit.inc();
        }
        if let Some(exchange) = exchange {
            exchange.authorized(decision.by, decision.allowed);
        }
        if decision.allowed && !decision.probe {
            self.observe(attempt, exchange);
        }
        let by = (!decision.allowed).then(|| decision.by.to_string());
        let counters = self.counters(rules, http, decision.by, attempt.route, attempt.client);
        if decision.allowed {
            counters.allow.inc();
            return Ok(decision.probe);
        }
        counters.deny.inc();
        match http {
            true => tracing::debug!(%client, policy = by, "unauthorized request"),
            false => {
                tracing::info!(%client, policy = by, "unauthorized connection");
                self.tell_refused(attempt.client, by);
            }
        }
        let message = format!("this client may not do this on port {}", self.number());
        Err(MeshError::new(Reason::Unauthorized, message))
    }

    /// Waits until a change of the rules no longer lets in a connection that was: one carried as
    /// bytes, or upgraded by the request with this head.
    pub(in crate::inbound) async fn revoked(self: Arc<Self>, client: Client, head: Option<Head>) {
        let mut rules = self.rules.clone();
        while rules.changed().await.is_ok() {
            let Some(now) = rules.borrow_and_update().clone() else { continue };
            // Of linkerd's policy it would have to be known which route it was.
            if head.is_some() && now.authz.is_none() {
                continue;
            }
            let http = head.as_ref().map(Head::http);
            let attempt = Attempt { client: &client, http, route: None, of_route: &[] };
            let decision = decision(&now, &attempt);
            if !decision.allowed {
                tracing::info!(client = %client.addr, policy = %decision.by, "connection cut");
                self.tell_refused(&client, Some(decision.by.to_string()));
                self.counters(&now, false, decision.by, None, &client).terminated.inc();
                return;
            }
        }
        // Nobody will change the rules any more.
        std::future::pending().await
    }

    fn observe(&self, attempt: &Attempt<'_>, exchange: Option<&Exchange>) {
        let client = attempt.client;
        let who = match &client.id {
            Some(id) => Who::Identity(Arc::clone(id)),
            None => Who::Address(client.addr.ip()),
        };
        let (observed, port) = (&self.recorder.telemetry.observed, &self.observed);
        match &attempt.http {
            Some(http) => {
                let protocol = exchange.map_or(StatProtocol::Http, Exchange::protocol);
                observed.request(port, who, protocol, http.method, http.uri.path());
            }
            None => observed.connection(port, who),
        }
    }

    /// Shows a connection that a policy did not allow, or allows no more, to those who tap.
    fn tell_refused(&self, client: &Client, policy: Option<String>) {
        self.recorder.telemetry.tap.refused(Refused {
            direction: Direction::Inbound,
            source: client.addr,
            destination: self.local,
            parent: String::new(),
            route: String::new(),
            reason: Reason::Unauthorized,
            tls: client.id.as_deref().map(str::to_owned),
            policy,
        });
    }

    pub(super) fn counters(
        &self,
        rules: &PortRules,
        http: bool,
        decided: &Meta,
        route: Option<&Meta>,
        client: &Client,
    ) -> Arc<AuthzCounters> {
        let mut state = self.state.lock();
        let key = (http, client.id.clone());
        if let Some(counters) = state.authz.get(decided).and_then(|of| of.get(&key, route)) {
            return Arc::clone(counters);
        }
        let labels = AuthzLabels {
            target_addr: Some(self.local),
            srv: Arc::clone(&rules.policy.labels),
            route: route.cloned(),
            authz: meta_labels(decided),
            tls: self.tls(client),
        };
        let metrics = &self.recorder.telemetry.authz;
        let counters = if http { metrics.http(&labels) } else { metrics.tcp(&labels) };
        if state.authz.values().map(|of| of.entries).sum::<usize>() >= MAX_COUNTED {
            state.authz.clear();
        }
        let of_decided = state.authz.entry(decided.clone()).or_default();
        of_decided.insert(key, route, Arc::clone(&counters));
        counters
    }
}

fn decision<'a>(rules: &'a PortRules, attempt: &Attempt<'a>) -> Decision<'a> {
    let (client, identity) = (attempt.client.addr.ip(), attempt.client.id.as_deref());
    if let Some(authz) = &rules.authz {
        let verdict = decide(authz, &AuthzRequest { client, identity, http: attempt.http });
        return Decision {
            allowed: verdict.allowed,
            by: verdict.decided,
            probe: verdict.basis == Basis::Probe,
            audits: verdict.audits,
        };
    }
    // Any authorisation of the port or of the route lets a client in.
    let mut all = attempt.of_route.iter().chain(rules.policy.authorizations.iter());
    let permit = all.find(|authorization| permits(authorization, client, identity));
    Decision {
        allowed: permit.is_some(),
        probe: false,
        by: permit.map_or(&*NOBODY, |permit| &permit.meta),
        audits: Vec::new(),
    }
}

fn permits(authorization: &Authorization, client: IpAddr, identity: Option<&str>) -> bool {
    let proven = match (&authorization.authentication, identity) {
        (Authentication::Unauthenticated, _) => true,
        (_, None) => false,
        (Authentication::MeshTls, Some(_)) => true,
        (Authentication::Identities { identities, suffixes }, Some(id)) => {
            identities.iter().any(|identity| identity.eq_ignore_ascii_case(id))
                || suffixes.iter().any(|suffix| ends_in(id, suffix))
        }
    };
    proven && authorization.networks.iter().any(|network| network.contains(client))
}

/// Whether an identity ends in these labels. No labels are any identity's end.
fn ends_in(identity: &str, suffix: &[String]) -> bool {
    let mut labels = identity.rsplit('.');
    suffix.iter().rev().all(|wanted| labels.next().is_some_and(|l| l.eq_ignore_ascii_case(wanted)))
        && labels.next().is_some()
}

fn meta_labels(meta: &Meta) -> Labels {
    let pairs = match meta {
        Meta::Default(name) => vec![("group", ""), ("kind", "default"), ("name", name.as_str())],
        Meta::Resource(r) => {
            vec![("group", r.group.as_str()), ("kind", r.kind.as_str()), ("name", r.name.as_str())]
        }
    };
    Arc::new(pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use mesh_model::authz::{DefaultAccess, DefaultRule, PortAuthz};
    use mesh_model::inbound::{Network, ServerPolicy, ServerProtocol};

    use super::*;

    const WEB: &str = "web.shop.serviceaccount.identity.mesh-system.cluster.local";

    fn rules(authentication: Authentication, networks: &[&str]) -> PortRules {
        let network = |net: &&str| Network { net: net.parse().unwrap(), except: Vec::new() };
        let authorization = Authorization {
            meta: Meta::Default("some".into()),
            networks: networks.iter().map(network).collect(),
            authentication,
            labels: Default::default(),
        };
        let policy = ServerPolicy {
            protocol: ServerProtocol::Opaque,
            authorizations: Arc::new([authorization]),
            labels: Default::default(),
        };
        PortRules::new(Arc::new(policy), None, None)
    }

    fn allowed(rules: &PortRules, ip: &str, id: Option<&str>) -> bool {
        let addr = SocketAddr::new(ip.parse().unwrap(), 1);
        let client = Client { addr, id: id.map(Into::into) };
        let attempt = Attempt { client: &client, http: None, route: None, of_route: &[] };
        decision(rules, &attempt).allowed
    }

    #[test]
    fn linkerds_policy_asks_for_networks_and_identities() {
        let anybody = rules(Authentication::Unauthenticated, &["10.0.0.0/8"]);
        assert!(allowed(&anybody, "10.0.0.1", None) && allowed(&anybody, "10.0.0.1", Some(WEB)));
        assert!(!allowed(&anybody, "192.0.2.1", Some(WEB)));
        let meshed = rules(Authentication::MeshTls, &["10.0.0.0/8"]);
        assert!(!allowed(&meshed, "10.0.0.1", None) && allowed(&meshed, "10.0.0.1", Some(WEB)));
        let among = |identity: &str, suffix: &str| {
            let suffixes = match suffix {
                "none" => vec![],
                "" => vec![vec![]],
                suffix => vec![suffix.split('.').map(str::to_owned).collect()],
            };
            let identities = vec![identity.to_owned()];
            rules(Authentication::Identities { identities, suffixes }, &["10.0.0.0/8"])
        };
        for (identity, suffix, expected) in [
            (WEB, "none", true),
            ("other", "none", false),
            ("other", "cluster.local", true),
            ("other", "luster.local", false),
            ("other", WEB, false),
            ("other", "", true),
        ] {
            let rules = among(identity, suffix);
            assert_eq!(allowed(&rules, "10.0.0.1", Some(WEB)), expected, "{identity} {suffix}");
            assert!(!allowed(&rules, "10.0.0.1", None));
        }
    }

    #[test]
    fn our_rules_go_before_linkerds() {
        let mut rules = rules(Authentication::Unauthenticated, &["0.0.0.0/0"]);
        assert!(allowed(&rules, "10.0.0.1", None));
        rules.authz = Some(Arc::new(PortAuthz {
            rules: Arc::new([]),
            default: DefaultRule {
                access: DefaultAccess::AllAuthenticated,
                meta: Meta::Default("all-authenticated".into()),
                cluster: Arc::new([]),
            },
            probes: Arc::new([]),
        }));
        assert!(!allowed(&rules, "10.0.0.1", None));
        assert!(allowed(&rules, "10.0.0.1", Some(WEB)));
    }
}
