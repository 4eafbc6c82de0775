//! What of an exchange is remembered when it was notable, see [`crate::telemetry::notable`].

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue, Method, Uri, header};
use mesh_layers::Request;
use mesh_model::Direction;

use super::{Decided, Ended, Exchange, Tried, denied, name, refused};
use crate::error::REQUEST_ID;
use crate::telemetry::Series;
use crate::telemetry::notable::{Remembered, RequestId, SLOW, Try, Why};

/// What the client asked for. Shares its bytes with the request: to keep it costs no copy.
#[derive(Debug)]
pub(super) struct Asked {
    method: Method,
    uri: Uri,
    /// Where the URI has no authority.
    host: Option<HeaderValue>,
}

impl Asked {
    pub(super) fn new(request: &Request) -> Self {
        let host = match request.uri().authority() {
            Some(_) => None,
            None => request.headers().get(header::HOST).cloned(),
        };
        Self { method: request.method().clone(), uri: request.uri().clone(), host }
    }

    fn authority(&self) -> &str {
        let host = self.host.as_ref().and_then(|host| host.to_str().ok());
        self.uri.authority().map(http::uri::Authority::as_str).or(host).unwrap_or_default()
    }
}

impl From<&Tried> for Try {
    fn from(tried: &Tried) -> Self {
        Self {
            backend: tried.backend.as_ref().map(|b| Arc::clone(&b.text)).unwrap_or_default(),
            endpoint: Some(tried.endpoint),
            status: tried.status,
            grpc_status: tried.grpc_status,
            reason: tried.reason,
            duration: tried.started.elapsed(),
        }
    }
}

impl Exchange {
    /// The name of a request that the mesh failed: the one that it has, or a new one.
    pub(super) fn named(&self, headers: &mut HeaderMap) -> RequestId {
        let given = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok()?.parse().ok());
        given.unwrap_or_else(|| {
            let id = self.recorder.telemetry.notable.id();
            name(headers, id);
            id
        })
    }

    /// Remembers it if it was notable.
    pub(super) fn keep(
        &self,
        decided: &Decided,
        ended: &Ended<'_>,
        total: Duration,
        series: Option<&Series>,
    ) {
        let why = match ended.told {
            Some(reason) if denied(reason) => Why::Denied,
            Some(_) => Why::Failed,
            None if !decided.tries.is_empty() => Why::Retried,
            // Of a stream, only its beginning can be slow.
            None if ended.first_byte.unwrap_or(total) >= SLOW => Why::Slow,
            None => return,
        };
        let notable = &self.recorder.telemetry.notable;
        let (route, backend) = (decided.route.as_ref(), decided.backend.as_ref());
        let mut tries = decided.tries.clone();
        let inbound = self.direction == Direction::Inbound;
        match &decided.tried {
            // Its port's rules were against it, so that it was never passed on.
            Some(_) if inbound && ended.told.is_some_and(refused) => {}
            Some(tried) => {
                let mut last = Try::from(tried);
                // Of what the mesh answered itself, the try's own end says more. Inbound there is one
                // try, and it ends with the exchange.
                if inbound || ended.told.is_none() || last.status != 0 {
                    (last.status, last.grpc_status) = (ended.status, ended.grpc_status);
                    last.reason = ended.told;
                }
                tries.push(last);
            }
            None => tries.extend(backend.map(|backend| Try {
                backend: Arc::clone(&backend.text),
                endpoint: None,
                status: 0,
                grpc_status: None,
                reason: ended.told,
                duration: total,
            })),
        }
        notable.remember(Remembered {
            id: ended.id.unwrap_or_else(|| notable.id()),
            started: SystemTime::now() - total,
            direction: self.direction,
            source: self.client,
            method: self.asked.method.to_string(),
            authority: self.asked.authority().to_owned(),
            path: self.asked.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
            why,
            parent: route.map(|route| Arc::clone(&route.parent_text)).unwrap_or_default(),
            route: route.map(|route| Arc::clone(&route.route_text)).unwrap_or_default(),
            tries,
            status: ended.status,
            grpc_status: ended.grpc_status,
            reason: ended.told,
            message: ended.message.to_owned(),
            policy: decided.policy.clone().unwrap_or_default(),
            duration: total,
            identity: series
                .and_then(|s| s.key().identity.as_deref())
                .unwrap_or_default()
                .to_owned(),
        });
    }
}
