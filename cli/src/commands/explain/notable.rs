//! `meshctl explain --last-errors RES` and `explain ID`: what became of requests that proxies remember.

use std::process::ExitCode;
use std::time::Duration;

use jiff::tz::TimeZone;
use mesh_api::ext;
use serde::Serialize;

use super::ExplainArgs;
use crate::commands::shared::{self, Lost, lost_notes};
use crate::commands::tap::line;
use crate::context::Context;
use crate::error::CliError;
use crate::output::table::Tone;
use crate::output::{Format, Style, clean, format};
use crate::selector::{Scope, Selectors};
use crate::units;

/// The document of `-o json`.
#[derive(Debug, Serialize)]
struct Report {
    requests: Vec<Remembered>,
    unreachable: Vec<Lost>,
}

#[derive(Debug, Serialize)]
struct Remembered {
    id: String,
    started_unix_ms: u64,
    /// `inbound` or `outbound`, seen from the pod.
    direction: &'static str,
    pod: String,
    namespace: String,
    /// `deployment/tax`, where the address is known to be its.
    peer: Option<String>,
    source: String,
    method: String,
    authority: String,
    path: String,
    /// `failed`, `denied`, `retried`, `slow`
    notable: String,
    status: Option<u32>,
    grpc_status: Option<u32>,
    reason: Option<String>,
    message: Option<String>,
    parent: Option<String>,
    route: Option<String>,
    policy: Option<String>,
    identity: Option<String>,
    duration_ms: f64,
    tries: Vec<Try>,
}

#[derive(Debug, Serialize)]
struct Try {
    backend: Option<String>,
    endpoint: Option<String>,
    status: Option<u32>,
    grpc_status: Option<u32>,
    reason: Option<String>,
    duration_ms: f64,
}

/// Whether it is how the mesh calls a request.
pub(super) fn is_id(text: &str) -> bool {
    text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

pub(super) async fn run(args: ExplainArgs, cx: &mut Context) -> Result<ExitCode, CliError> {
    let scope = Scope { namespace: args.namespace.clone(), ..Scope::default() };
    let selector = match &args.last_errors {
        Some(resource) => Some(Selectors::parse_one(resource, &scope)?),
        None => None,
    };
    let id = args.id.clone().filter(|_| selector.is_none()).unwrap_or_default();
    let mesh = cx.connect().await?;
    let limit = if selector.is_some() { args.limit } else { 0 };
    let request =
        ext::MeshNotableRequest { selector: selector.clone(), id: id.to_ascii_lowercase(), limit };
    let reply = match mesh.notable(request).await {
        Ok(reply) => reply,
        Err(error) => return Err(shared::propose(&mesh, &selector, error).await),
    };
    let (style, proxies) = (cx.ui.out_style, reply.proxies);
    let report = Report {
        requests: reply.requests.into_iter().filter_map(Remembered::new).collect(),
        unreachable: reply.unreachable.into_iter().map(Lost::from).collect(),
    };
    for note in lost_notes(&report.unreachable) {
        cx.ui.note(&note);
    }
    if report.requests.is_empty() && args.output == Format::Table {
        if selector.is_none() {
            return Err(CliError::missing(format!("no proxy remembers a request {id}"))
                .hint("meshctl explain --last-errors RESOURCE; each proxy keeps its last 256"));
        }
        let who = if proxies == 1 { "proxy remembers" } else { "proxies remember" };
        cx.ui.note(&format!("{proxies} {who} nothing that went wrong"));
        return Ok(ExitCode::SUCCESS);
    }
    let zone = cx.zone.clone();
    cx.ui.print(&match args.output {
        Format::Json => format::json(&report)?,
        Format::Yaml => format::yaml(&report)?,
        _ => {
            let paragraphs = report.requests.iter().map(|request| request.text(&zone, style));
            paragraphs.collect::<Vec<_>>().join("\n")
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

impl Remembered {
    fn new(of: ext::PodNotable) -> Option<Self> {
        let request = of.request?;
        let direction = match request.direction() {
            ext::Direction::Inbound => "inbound",
            _ => "outbound",
        };
        Some(Self {
            direction,
            pod: of.pod,
            namespace: of.namespace,
            peer: of.peer.map(|peer| format!("{}/{}", peer.kind, peer.name)),
            id: request.id,
            started_unix_ms: request.started_unix_ms,
            source: request.source,
            method: request.method,
            authority: request.authority,
            path: request.path,
            notable: request.notable,
            status: status(request.status),
            grpc_status: request.grpc_status,
            reason: given(request.reason),
            message: given(request.message),
            parent: given(request.parent),
            route: given(request.route),
            policy: given(request.policy),
            identity: given(request.identity),
            duration_ms: millis(request.duration),
            tries: request.tries.into_iter().map(Try::new).collect(),
        })
    }

    fn text(&self, zone: &TimeZone, style: Style) -> String {
        let started = line::clock(self.started_unix_ms, zone);
        let tone = if self.notable == "failed" || self.notable == "denied" {
            Tone::Bad
        } else {
            Tone::Warn
        };
        let Self { id, pod, namespace, .. } = self;
        let (peer, own) =
            (self.peer.as_deref().unwrap_or("somebody"), format!("{pod} in {namespace}"));
        let ends = match self.direction {
            "inbound" => format!("{peer} → {own}"),
            _ => format!("{own} → {peer}"),
        };
        let mut text = format!(
            "{} {} {} {}\n",
            style.bold(&clean(id)),
            started,
            tone.paint(style, &clean(&self.notable)),
            clean(&ends)
        );
        let asked = format!("{} {} for {}", self.method, self.path, self.authority);
        let ended = ended(self.status, self.grpc_status, self.reason.as_ref());
        text +=
            &format!("  {} → {} after {}\n", clean(&asked), clean(&ended), took(self.duration_ms));
        if let Some(message) = &self.message {
            text += &format!("  {}\n", clean(message));
        }
        let mut add = |name: &str, value: &Option<String>| {
            if let Some(value) = value {
                text += &format!("  {name:<9}{}\n", clean(value));
            }
        };
        add("seen by", &Some(format!("the proxy of {own}, {}", self.direction)));
        add("parent", &self.parent);
        add("route", &self.route);
        add("policy", &self.policy);
        add("identity", &self.identity);
        for (index, of) in self.tries.iter().enumerate() {
            let at = of.endpoint.as_deref().unwrap_or("no endpoint");
            let backend = of.backend.as_deref().map(|b| format!(" of {b}")).unwrap_or_default();
            let ended = self::ended(of.status, of.grpc_status, of.reason.as_ref());
            let tried = format!("{at}{backend}: {ended} after {}", took(of.duration_ms));
            add(&format!("try {}", index + 1), &Some(tried));
        }
        if let Some(reason) = &self.reason {
            text += &style.dim(&format!("  → meshctl explain {}", clean(reason)));
            text.push('\n');
        }
        text
    }
}

impl Try {
    fn new(of: ext::NotableTry) -> Self {
        Self {
            backend: given(of.backend),
            endpoint: given(of.endpoint),
            status: status(of.status),
            grpc_status: of.grpc_status,
            reason: given(of.reason),
            duration_ms: millis(of.duration),
        }
    }
}

/// `504 no-endpoints`
fn ended(status: Option<u32>, grpc: Option<u32>, reason: Option<&String>) -> String {
    let status = status.map(|status| status.to_string());
    let grpc = grpc.map(|code| format!("gRPC {code}"));
    let parts: Vec<String> = status.into_iter().chain(grpc).chain(reason.cloned()).collect();
    if parts.is_empty() { "no answer".to_owned() } else { parts.join(" ") }
}

fn took(millis: f64) -> String {
    units::latency(Duration::from_secs_f64(millis / 1000.0))
}

fn status(status: u32) -> Option<u32> {
    Some(status).filter(|status| *status > 0)
}

fn millis(duration: Option<prost_types::Duration>) -> f64 {
    let duration = duration.and_then(|duration| Duration::try_from(duration).ok());
    duration.unwrap_or_default().as_secs_f64() * 1000.0
}

fn given(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use std::process::ExitCode;

    use mesh_api::ext;

    use crate::testing::{FakeMesh, golden, object};

    fn mesh() -> FakeMesh {
        let millis =
            |millis: i32| Some(prost_types::Duration { seconds: 0, nanos: millis * 1_000_000 });
        let tried = |endpoint: &str, reason: &str, took| ext::NotableTry {
            backend: "Service/shop/tax:8080".into(),
            endpoint: endpoint.into(),
            status: if reason.is_empty() { 200 } else { 0 },
            reason: reason.into(),
            duration: millis(took),
            ..Default::default()
        };
        let request = ext::NotableExchange {
            id: "00c0ffee00000001".into(),
            started_unix_ms: 1_700_000_000_123,
            direction: ext::Direction::Outbound.into(),
            source: "127.101.0.1:40000".into(),
            method: "GET".into(),
            authority: "tax.shop:8080".into(),
            path: "/v1/rate".into(),
            notable: "retried".into(),
            parent: "Service/shop/tax:8080".into(),
            route: "HTTPRoute/shop/tax".into(),
            tries: vec![
                tried("127.101.0.4:8080", "connect-refused", 1),
                tried("127.101.0.5:8080", "", 12),
            ],
            status: 200,
            duration: millis(14),
            ..Default::default()
        };
        let denied = ext::NotableExchange {
            id: "00c0ffee00000000".into(),
            direction: ext::Direction::Inbound.into(),
            notable: "denied".into(),
            status: 403,
            reason: "unauthorized".into(),
            message: "this client may not".into(),
            policy: "AuthorizationPolicy/shop/finance".into(),
            tries: vec![],
            route: String::new(),
            ..request.clone()
        };
        let of = |pod: &str, peer: &str, request| ext::PodNotable {
            pod: pod.into(),
            namespace: "shop".into(),
            peer: Some(object("deployment", "shop", peer)),
            request: Some(request),
        };
        let requests = vec![of("web-1", "tax", request), of("finance-1", "curious", denied)];
        let notable = ext::MeshNotableReply { requests, unreachable: vec![], proxies: 2 };
        FakeMesh { notable, ..FakeMesh::default() }
    }

    #[tokio::test]
    async fn what_proxies_remember_is_told() {
        let ran = mesh().run("explain --last-errors deploy/web --limit 5").await;
        golden("last-errors.txt", &ran.out);
        let asked = ran.asked.notable.unwrap();
        assert_eq!((asked.limit, asked.selector.unwrap().name.as_str()), (5, "web"));
        golden(
            "last-errors.json",
            &mesh().run("explain --last-errors deploy/web -o json").await.out,
        );
        let ran = mesh().run("explain 00C0FFEE00000001").await;
        assert_eq!(ran.asked.notable.unwrap().id, "00c0ffee00000001");
    }

    #[tokio::test]
    async fn nothing_remembered_is_told_too() {
        let notable = ext::MeshNotableReply { proxies: 1, ..Default::default() };
        let mesh = FakeMesh { notable, ..FakeMesh::default() };
        let ran = mesh.clone().run("explain --last-errors deploy/web").await;
        assert_eq!(ran.result.unwrap(), ExitCode::SUCCESS);
        assert_eq!(ran.err, "1 proxy remembers nothing that went wrong\n");
        let error = mesh.run("explain 00c0ffee00000009").await.result.unwrap_err();
        assert!(error.message.contains("00c0ffee00000009"), "{error}");
    }
}
