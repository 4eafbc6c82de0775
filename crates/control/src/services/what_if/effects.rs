//! What filters do with a request.

use std::time::SystemTime;

use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Uri};
use mesh_api::ext::WhatIfAnswer;
use mesh_model::route::{
    FaultKind, Filter, HeaderModifier, InjectedFailure, Ratio, Redirect, Rewrite,
};

use crate::services::words;

/// A request on its way.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    pub(super) head: Parts,
    /// Of the path, what the rule matched.
    prefix: String,
}

impl Sent {
    pub(super) fn new(head: &Parts, prefix: Option<&str>) -> Self {
        Self { head: head.clone(), prefix: prefix.unwrap_or("/").to_owned() }
    }

    pub(super) fn authority(&self) -> &str {
        self.head.uri.authority().map_or("", |authority| authority.as_str())
    }

    pub(super) fn path(&self) -> &str {
        self.head.uri.path_and_query().map_or("/", PathAndQuery::as_str)
    }

    fn rewrite(&mut self, rewrite: &Rewrite) {
        let mut parts = self.head.uri.clone().into_parts();
        if let Some(path) = &rewrite.path {
            let path = path.replace(self.head.uri.path(), &self.prefix);
            let query = self.head.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
            if let Ok(path) = format!("{path}{query}").parse() {
                parts.path_and_query = Some(path);
            }
        }
        let host = rewrite.host.as_ref().and_then(|host| host.to_str().ok());
        if let Some(Ok(authority)) = host.map(str::parse) {
            parts.authority = Some(authority);
        }
        if let Ok(uri) = Uri::from_parts(parts) {
            self.head.uri = uri;
        }
    }
}

/// What filters did, and whether the request ended with it.
#[derive(Debug, Default)]
pub(super) struct Effects {
    pub(super) said: Vec<String>,
    pub(super) answer: Option<WhatIfAnswer>,
}

impl Effects {
    /// Applies filters in their order, as far as that does not depend on chance.
    pub(super) fn of(filters: &[Filter], sent: &mut Sent) -> Self {
        let mut effects = Self::default();
        for filter in filters {
            effects.apply(filter, sent);
            if effects.answer.is_some() {
                break;
            }
        }
        effects
    }

    fn apply(&mut self, filter: &Filter, sent: &mut Sent) {
        match filter {
            Filter::RequestHeaders(change) => {
                change.apply(&mut sent.head.headers);
                self.said.push(format!("request headers: {}", changes(change)));
            }
            Filter::ResponseHeaders(change) => {
                self.said.push(format!("response headers: {}", changes(change)));
            }
            Filter::Rewrite(rewrite) => {
                sent.rewrite(rewrite);
                self.said.push(words::filter(filter));
            }
            Filter::Redirect(redirect) => self.redirect(redirect, sent),
            Filter::Mirror(mirror) => {
                let to = &mirror.backend.meta;
                self.said.push(format!("mirrors {} of the requests to {to}", share(mirror.ratio)));
            }
            Filter::Cors(cors) => {
                if let Some(answer) = cors.preflight(&sent.head.method, &sent.head.headers) {
                    let why = match answer.get(http::header::ACCESS_CONTROL_ALLOW_ORIGIN) {
                        Some(_) => "CORS: the preflight of an origin that may",
                        None => "CORS: the preflight of an origin that may not",
                    };
                    self.end(204, why.into());
                    return;
                }
                let mut told = HeaderMap::new();
                cors.respond(&sent.head.headers, &mut told);
                let origin = sent.head.headers.get(http::header::ORIGIN);
                self.said.push(match (origin, told.contains_key("access-control-allow-origin")) {
                    (None, _) => "CORS: the request has no Origin, so nothing is added".into(),
                    (Some(_), true) => "CORS: pages of this origin may read the answer".into(),
                    (Some(_), false) => "CORS: pages of this origin may not read the answer".into(),
                });
            }
            Filter::Fail(fail) => {
                let (status, code) = status(fail.failure);
                let what = format!("{} ({code})", fail.message);
                self.part(fail.ratio, status, what);
            }
            Filter::Fault(fault) => {
                let by = &fault.meta;
                if !fault.means(&sent.head.uri, &sent.head.headers, SystemTime::now()) {
                    let why = "is over, or for requests with other headers";
                    self.said.push(format!("the fault of {by} {why}"));
                    return;
                }
                let what = words::fault_kind(fault.kind);
                match fault.kind {
                    FaultKind::Abort(failure) => {
                        self.part(fault.ratio, status(failure).0, format!("{by} {what}"));
                    }
                    FaultKind::Delay(_) => {
                        self.said
                            .push(format!("{by} {what} {} of the requests", share(fault.ratio)));
                    }
                }
            }
        }
    }

    fn redirect(&mut self, redirect: &Redirect, sent: &Sent) {
        let port = sent.head.uri.port_u16();
        let status = redirect.status.as_u16();
        match redirect.location(&sent.head, port, &sent.prefix) {
            Ok(location) => {
                let why = "the rule redirects".into();
                self.answer = Some(WhatIfAnswer { status: status.into(), why, location });
            }
            Err(why) => self.end(400, format!("cannot redirect: {why}")),
        }
    }

    /// All requests end here, or a share of them does.
    fn part(&mut self, ratio: Ratio, status: u16, what: String) {
        if ratio.numerator >= ratio.denominator {
            self.end(status, what);
        } else {
            self.said.push(format!("{} of the requests: {what}", share(ratio)));
        }
    }

    fn end(&mut self, status: u16, why: String) {
        self.answer = Some(WhatIfAnswer { status: status.into(), why, location: String::new() });
    }
}

fn status(failure: InjectedFailure) -> (u16, String) {
    match failure {
        InjectedFailure::Http(status) => (status.as_u16(), status.as_u16().to_string()),
        InjectedFailure::Grpc(code) => (200, format!("gRPC code {code}")),
    }
}

/// `12.5%`
pub(super) fn share(ratio: Ratio) -> String {
    let share = f64::from(ratio.numerator) * 100.0 / f64::from(ratio.denominator);
    format!("{}%", (share * 100.0).round() / 100.0)
}

fn changes(change: &HeaderModifier) -> String {
    let pair = |verb: &str, (name, value): &(http::HeaderName, HeaderValue)| {
        format!("{verb} {name}: {}", String::from_utf8_lossy(value.as_bytes()))
    };
    let added = change.add.iter().map(|header| pair("adds", header));
    let set = change.set.iter().map(|header| pair("sets", header));
    let removed = change.remove.iter().map(|name| format!("removes {name}"));
    added.chain(set).chain(removed).collect::<Vec<_>>().join(", ")
}
