//! One port of the gateway: what is served there now.

use std::sync::Arc;
use std::time::SystemTime;

use mesh_model::gateway::{GatewayPort, Https};
use mesh_model::outbound::{OutboundPolicy, Protocol};
use mesh_model::route::HostMatch;
use mesh_model::{Reason, Target};
use mesh_tls::EdgeServer;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::certificates::{Chooser, Table};
use crate::describe;
use crate::discovery::{Found, Resolution};
use crate::outbound::{Outbound, TargetStack};

#[derive(Debug)]
pub(super) struct Port {
    pub(super) number: u16,
    pub(super) http: Fed,
    pub(super) https: Fed,
    pub(super) bytes: Fed,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    wanted: GatewayPort,
    serving: Arc<Serving>,
    listening: Listening,
}

#[derive(Debug)]
enum Listening {
    Not,
    Open(CancellationToken),
    Failed(String),
}

/// What a connection that comes now finds.
#[derive(Debug, Default)]
pub(super) struct Serving {
    pub(super) http: bool,
    pub(super) secured: Option<Arc<Secured>>,
    /// Of TLS that is passed on: the names of each route. Without any it is for all.
    passed: Option<Vec<Vec<HostMatch>>>,
    /// All bytes go one way.
    pub(super) tcp: bool,
}

/// TLS that ends here.
#[derive(Debug)]
pub(super) struct Secured {
    pub(super) server: EdgeServer,
    pub(super) table: Arc<Table>,
}

/// Routes that follow what the control plane says.
#[derive(Debug)]
pub(super) struct Fed {
    policy: watch::Sender<Resolution>,
    pub(super) stack: Arc<TargetStack>,
}

impl Fed {
    fn new(outbound: &Outbound, target: &Target) -> Self {
        let (policy, resolution) = watch::channel(Some(Err(Reason::NoRoute)));
        Self { policy, stack: outbound.stack(target, resolution) }
    }

    fn set(&self, wanted: Option<&OutboundPolicy>) {
        let changed = self.policy.send_if_modified(|have| {
            let same = match (&*have, wanted) {
                (Some(Ok(Found::Mesh(have))), Some(wanted)) => **have == *wanted,
                (Some(Err(_)), None) => true,
                _ => false,
            };
            if !same {
                let found = wanted.cloned().map(|policy| Found::Mesh(Arc::new(policy)));
                *have = Some(found.ok_or(Reason::NoRoute));
            }
            !same
        });
        if changed {
            // Now, so that no request has to wait for the endpoints of its backends.
            self.stack.prepare();
        }
    }
}

impl Port {
    pub(super) fn new(number: u16, outbound: &Outbound) -> Self {
        let target = Target::Authority(format!("gateway:{number}"));
        let fed = || Fed::new(outbound, &target);
        let state = State {
            wanted: GatewayPort::default(),
            serving: Arc::default(),
            listening: Listening::Not,
        };
        Self { number, http: fed(), https: fed(), bytes: fed(), state: Mutex::new(state) }
    }

    /// Serves that from now on. Connections that are open go on, with the new routes.
    pub(super) fn set(&self, wanted: &GatewayPort) {
        let mut state = self.state.lock();
        if state.wanted == *wanted {
            return;
        }
        self.http.set(wanted.http.as_ref());
        self.https.set(wanted.https.as_ref().map(|https| &https.policy));
        self.bytes.set(wanted.bytes.as_ref());
        let certificates = |port: &GatewayPort| port.https.as_ref().map(|h| h.certificates.clone());
        let secured = match &wanted.https {
            // Sessions can be resumed as long as the certificates are the same.
            Some(_) if certificates(wanted) == certificates(&state.wanted) => {
                state.serving.secured.clone()
            }
            Some(https) => Some(Arc::new(secured(https))),
            None => None,
        };
        let bytes = wanted.bytes.as_ref().map(|policy| &policy.protocol);
        let passed = match bytes {
            Some(Protocol::Tls(tls)) => {
                Some(tls.routes.iter().map(|route| route.snis.clone()).collect())
            }
            _ => None,
        };
        let tcp = matches!(bytes, Some(Protocol::Opaque(_)));
        state.serving = Arc::new(Serving { http: wanted.http.is_some(), secured, passed, tcp });
        state.wanted = wanted.clone();
    }

    pub(super) fn serving(&self) -> Arc<Serving> {
        Arc::clone(&self.state.lock().serving)
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.state.lock().listening, Listening::Open(_))
    }

    /// It is listened on until the token is cancelled.
    pub(super) fn opened(&self, stop: CancellationToken) {
        self.state.lock().listening = Listening::Open(stop);
    }

    /// Says whether that is news.
    pub(super) fn failed(&self, error: String) -> bool {
        let mut state = self.state.lock();
        let known = matches!(&state.listening, Listening::Failed(before) if *before == error);
        state.listening = Listening::Failed(error);
        !known
    }

    /// Nobody gets in any more; who is in finds no route.
    pub(super) fn close(&self) {
        if let Listening::Open(stop) = &self.state.lock().listening {
            stop.cancel();
        }
        self.set(&GatewayPort { port: self.number, ..GatewayPort::default() });
    }

    pub(super) fn describe(&self) -> Value {
        let state = self.state.lock();
        let policy = |policy: &Option<OutboundPolicy>| {
            policy.as_ref().map(|policy| describe::outbound_protocol(&policy.protocol))
        };
        let mut described = json!({
            "port": self.number,
            "listening": matches!(state.listening, Listening::Open(_)),
        });
        if let Listening::Failed(error) = &state.listening {
            described["error"] = error.as_str().into();
        }
        if let Some(http) = policy(&state.wanted.http) {
            described["http"] = http;
        }
        if let Some(https) = &state.wanted.https {
            described["https"] = describe::outbound_protocol(&https.policy.protocol);
            let table = state.serving.secured.as_ref().map(|secured| &secured.table);
            described["certificates"] = table.map(|table| certificates(table)).into();
        }
        if let Some(bytes) = policy(&state.wanted.bytes) {
            described["bytes"] = bytes;
        }
        described
    }
}

fn secured(https: &Https) -> Secured {
    let table = Arc::new(Table::new(&https.certificates));
    Secured { server: EdgeServer::new(Chooser(Arc::clone(&table))), table }
}

fn certificates(table: &Table) -> Vec<Value> {
    let unix = |time: SystemTime| {
        time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
    };
    let of = |listener: &super::certificates::Listener| {
        let host = listener.host.as_ref().map_or("*".to_owned(), ToString::to_string);
        let of_key = move |key: &mesh_tls::EdgeKey| {
            let certificate = key.certificate();
            json!({
                "host": host,
                "names": certificate.names,
                "serial": certificate.serial,
                "not_after_unix_seconds": unix(certificate.not_after),
            })
        };
        listener.keys.iter().map(of_key).collect::<Vec<_>>()
    };
    table.listeners().iter().flat_map(of).collect()
}

impl Serving {
    /// Whether TLS for a name is passed on, and does not end here.
    pub(super) fn passes(&self, sni: Option<&str>) -> bool {
        let Some(passed) = &self.passed else { return false };
        let fits = |snis: &Vec<HostMatch>| match (snis.as_slice(), sni) {
            ([], _) => Some((0, 0)),
            (_, None) => None,
            (snis, Some(sni)) => snis.iter().filter_map(|of| of.match_host(sni)).max(),
        };
        let passed = passed.iter().filter_map(fits).max();
        let ends = self.secured.as_ref().and_then(|secured| secured.table.fits(sni));
        // Of both the closer one; what ends here where they are the same.
        passed > ends
    }
}
