//! `meshctl explain --what-if`: what would become of a request, told by the control plane.

use std::process::ExitCode;

use mesh_api::ext;
use serde::Serialize;

use super::ExplainArgs;
use super::request::Asked;
use crate::commands::local::files;
use crate::commands::{endpoints, shared};
use crate::context::Context;
use crate::error::CliError;
use crate::output::table::Tone;
use crate::output::{Cell, Column, Format, Style, Table, clean, format};
use crate::selector::{Scope, Selectors};

/// The document of `-o json`.
#[derive(Debug, Serialize)]
struct Report {
    request: String,
    service: String,
    client_namespace: String,
    protocol: String,
    protocol_why: String,
    notes: Vec<String>,
    matches: Vec<Match>,
    aside: Vec<Aside>,
    filters: Vec<String>,
    answer: Option<Answer>,
    limits: Vec<String>,
    backends: Vec<Backend>,
    #[serde(skip)]
    client: String,
}

#[derive(Debug, Serialize)]
struct Match {
    route: String,
    rule: u32,
    rule_name: Option<String>,
    r#match: String,
    matches: bool,
    wins: bool,
    why: Option<String>,
}

#[derive(Debug, Serialize)]
struct Aside {
    route: String,
    why: String,
}

#[derive(Debug, Serialize)]
struct Answer {
    status: u32,
    why: String,
    location: Option<String>,
}

#[derive(Debug, Serialize)]
struct Backend {
    backend: String,
    share: f64,
    filters: Vec<String>,
    answer: Option<Answer>,
    balancer: Option<String>,
    breaker: Option<String>,
    method: Option<String>,
    authority: Option<String>,
    path: Option<String>,
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, Serialize)]
struct Endpoint {
    address: String,
    pod: Option<String>,
    namespace: Option<String>,
    identity: Option<String>,
    allowed: Option<bool>,
    decided: Option<String>,
    why: Option<String>,
    limits: Vec<String>,
    faults: Vec<String>,
}

pub(super) async fn run(args: ExplainArgs, cx: &mut Context) -> Result<ExitCode, CliError> {
    let (Some(asked), Some(from), Some(to)) = (&args.what_if, &args.from, &args.to) else {
        return Err(CliError::usage("--what-if needs --from and --to"));
    };
    let manifests = manifests(&args.files)?;
    let scope = Scope { namespace: args.namespace.clone(), ..Scope::default() };
    let client = Selectors::parse_one(from, &scope)?;
    let mesh = cx.connect().await?;
    let outside = to.strip_prefix("egress/");
    let authority = match outside {
        Some(host) => host.to_owned(),
        None => endpoints::complete(to, args.namespace.as_deref(), &mesh).await?,
    };
    let request = ext::WhatIfRequest {
        client: Some(client.clone()),
        authority: authority.clone(),
        method: asked.method.to_string(),
        path: asked.path.clone(),
        headers: asked.headers(),
        manifests,
        outside: outside.is_some(),
    };
    let reply = match mesh.what_if(request).await {
        Ok(reply) => reply,
        Err(error) => {
            let error = shared::propose(&mesh, [&client], error).await;
            return Err(endpoints::unknown(&authority, &mesh, error).await);
        }
    };
    if !tell(&reply.problems, cx) {
        return Err(CliError::failed("there are errors in the manifests; nothing can be said")
            .hint("meshctl analyze --offline -f FILE"));
    }
    let report = Report::new(asked, from, reply);
    cx.ui.print(&match args.output {
        Format::Json => format::json(&report)?,
        Format::Yaml => format::yaml(&report)?,
        _ => report.text(cx.ui.out_style),
    })?;
    Ok(if report.succeeds() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What `-f` names, to be sent.
pub(in crate::commands) fn manifests(
    files: &[std::path::PathBuf],
) -> Result<Vec<ext::Manifest>, CliError> {
    let given = files::read(files)?.into_iter();
    let given: Vec<ext::Manifest> =
        given.map(|file| ext::Manifest { name: file.shown, text: file.content }).collect();
    let size: usize = given.iter().map(|manifest| manifest.text.len()).sum();
    if size > mesh_control::overlay::MAX_TEXT {
        return Err(CliError::failed(mesh_control::overlay::TooLarge.to_string()));
    }
    Ok(given)
}

/// Tells what is wrong with manifests; whether they can be used all the same.
fn tell(problems: &[ext::Problem], cx: &mut Context) -> bool {
    let style = cx.ui.err_style;
    for problem in problems {
        let error = problem.severity == "error";
        let label = if error { style.red("error:") } else { style.yellow("warning:") };
        let ext::Problem { file, line, object, field, message, .. } = problem;
        let text = format!("{file}:{line}: {object}: {field}: {message}");
        cx.ui.note(&format!("{label} {}", clean(&text)));
    }
    problems.iter().all(|problem| problem.severity != "error")
}

impl Report {
    fn new(asked: &Asked, client: &str, reply: ext::WhatIfReply) -> Self {
        let headers = asked.headers().into_iter();
        let headers: String = headers.map(|h| format!(" -H {}:{}", h.name, h.value)).collect();
        Self {
            request: format!("{} {}{headers}", asked.method, asked.path),
            client: client.to_owned(),
            service: reply.service,
            client_namespace: reply.client_namespace,
            protocol: reply.protocol,
            protocol_why: reply.protocol_why,
            notes: reply.notes,
            matches: reply.matches.into_iter().map(Match::from).collect(),
            aside: reply
                .aside
                .into_iter()
                .map(|aside| Aside { route: aside.route, why: aside.why })
                .collect(),
            filters: reply.filters,
            answer: reply.answer.map(Answer::from),
            limits: reply.limits,
            backends: reply.backends.into_iter().map(Backend::from).collect(),
        }
    }

    /// Whether the request arrives, or is answered as the route wants it.
    fn succeeds(&self) -> bool {
        let fails = |answer: &Option<Answer>| answer.as_ref().is_some_and(|a| a.status >= 400);
        let meant = |backend: &&Backend| backend.share > 0.0;
        !fails(&self.answer)
            && self.backends.iter().filter(meant).all(|backend| {
                !fails(&backend.answer)
                    && backend.endpoints.iter().all(|of| of.allowed != Some(false))
                    && (backend.answer.is_some() || !backend.endpoints.is_empty())
            })
    }

    fn text(&self, style: Style) -> String {
        let mut text = format!(
            "{} from {} in {} to {}\n",
            style.bold(&clean(&self.request)),
            clean(&self.client),
            clean(&self.client_namespace),
            clean(&self.service)
        );
        text += &format!("Protocol: {}, {}\n", clean(&self.protocol), clean(&self.protocol_why));
        for note in &self.notes {
            text += &format!("{} {}\n", Tone::Warn.paint(style, "Note:"), clean(note));
        }
        text += &shared::section("Routes, in the order of precedence", &self.routes(style));
        let aside = self.aside.iter().map(|a| format!("{}: {}\n", clean(&a.route), clean(&a.why)));
        text += &some("Routes that do not apply", &aside.collect::<String>());
        text += &some("Filters", &lines(&self.filters));
        if let Some(answer) = &self.answer {
            text += &shared::section("Answer", &answer.text(style));
        }
        text += &some("Limits", &lines(&self.limits));
        for backend in &self.backends {
            let heading =
                format!("{} of the requests to {}", percent(backend.share), backend.backend);
            text += &shared::section(&clean(&heading), &backend.text(style));
        }
        text
    }

    fn routes(&self, style: Style) -> String {
        let mut text = String::new();
        for of in &self.matches {
            let mark = if of.wins { Tone::Good.paint(style, "→") } else { " ".to_owned() };
            let name = of.rule_name.as_ref().map(|name| format!(" \"{name}\"")).unwrap_or_default();
            let head = format!("{} rule {}{name}: {}", of.route, of.rule, of.r#match);
            let head = clean(&head);
            let head = if of.wins { style.bold(&head) } else { head.into_owned() };
            text += &format!("{mark} {head}\n");
            if let Some(why) = &of.why {
                let what = if of.matches { "matches, but " } else { "" };
                text += &style.dim(&format!("    {what}{}", clean(why)));
                text.push('\n');
            }
        }
        if text.is_empty() { "none\n".to_owned() } else { text }
    }
}

impl Answer {
    fn text(&self, style: Style) -> String {
        let tone = if self.status >= 400 { Tone::Bad } else { Tone::Plain };
        let to = self.location.as_ref().map(|to| format!(" to {}", clean(to))).unwrap_or_default();
        format!("{}{to}: {}\n", tone.paint(style, &self.status.to_string()), clean(&self.why))
    }
}

impl Backend {
    fn text(&self, style: Style) -> String {
        let mut text = lines(&self.filters);
        if let Some(answer) = &self.answer {
            return text + "answered " + &answer.text(style);
        }
        if let (Some(method), Some(authority), Some(path)) =
            (&self.method, &self.authority, &self.path)
        {
            let arrives = format!("arrives as {method} {path} for {authority}");
            text += &format!("{}\n", clean(&arrives));
        }
        if let Some(balancer) = &self.balancer {
            text += &format!("balancer {}\n", clean(balancer));
        }
        if let Some(breaker) = &self.breaker {
            text += &format!("breaker {}\n", clean(breaker));
        }
        if self.endpoints.is_empty() {
            let none = "no endpoints: 504 (no-endpoints)";
            return text + &Tone::Bad.paint(style, none) + "\n";
        }
        let mut table = Table::new(["ENDPOINT", "POD", "LET IN", "BY"].map(Column::left));
        let mut notes: Vec<String> = Vec::new();
        for endpoint in &self.endpoints {
            let allowed = match endpoint.allowed {
                None => Cell::missing(),
                Some(true) => Cell::from("yes").tone(Tone::Good),
                Some(false) => Cell::from("no").tone(Tone::Bad),
            };
            table.row([
                Cell::from(endpoint.address.as_str()),
                Cell::from(endpoint.pod.clone().unwrap_or_default()),
                allowed,
                Cell::from(endpoint.decided.clone().unwrap_or_default()),
            ]);
            let why = endpoint.decided.iter().zip(&endpoint.why);
            let why = why.map(|(decided, why)| format!("{decided}: {why}"));
            let limits = endpoint.limits.iter().map(|limit| format!("rate limit {limit}"));
            let faults = endpoint.faults.iter().map(|fault| format!("fault {fault}"));
            for note in why.chain(limits).chain(faults) {
                if !notes.contains(&note) {
                    notes.push(note);
                }
            }
        }
        text + &table.render(style) + &lines(&notes)
    }
}

fn lines(all: &[String]) -> String {
    all.iter().map(|line| format!("{}\n", clean(line))).collect()
}

fn some(heading: &str, text: &str) -> String {
    if text.is_empty() { String::new() } else { shared::section(heading, text) }
}

/// `33.3%`
fn percent(share: f64) -> String {
    format!("{}%", (share * 1000.0).round() / 10.0)
}

fn given(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

impl From<ext::WhatIfMatch> for Match {
    fn from(of: ext::WhatIfMatch) -> Self {
        Self {
            route: of.route,
            rule: of.rule,
            rule_name: given(of.rule_name),
            r#match: of.r#match,
            matches: of.matches,
            wins: of.wins,
            why: given(of.why),
        }
    }
}

impl From<ext::WhatIfAnswer> for Answer {
    fn from(answer: ext::WhatIfAnswer) -> Self {
        Self { status: answer.status, why: answer.why, location: given(answer.location) }
    }
}

impl From<ext::WhatIfBackend> for Backend {
    fn from(backend: ext::WhatIfBackend) -> Self {
        Self {
            backend: backend.backend,
            share: backend.share,
            filters: backend.filters,
            answer: backend.answer.map(Answer::from),
            balancer: given(backend.balancer),
            breaker: given(backend.breaker),
            method: given(backend.method),
            authority: given(backend.authority),
            path: given(backend.path),
            endpoints: backend.endpoints.into_iter().map(Endpoint::from).collect(),
        }
    }
}

impl From<ext::WhatIfEndpoint> for Endpoint {
    fn from(of: ext::WhatIfEndpoint) -> Self {
        let verdict = of.verdict;
        Self {
            address: of.address,
            pod: given(of.pod),
            namespace: given(of.namespace),
            identity: given(of.identity),
            allowed: verdict.as_ref().map(|verdict| verdict.allowed),
            decided: verdict.as_ref().and_then(|verdict| given(verdict.decided.clone())),
            why: verdict.and_then(|verdict| given(verdict.why)),
            limits: of.limits,
            faults: of.faults,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::ExitCode;

    use mesh_api::ext;

    use crate::testing::{FakeMesh, golden};

    fn reply() -> ext::WhatIfReply {
        let found = |rule: u32, name: &str, of: &str, why: &str| ext::WhatIfMatch {
            route: "HTTPRoute/shop/checkout".into(),
            rule,
            rule_name: name.into(),
            r#match: of.into(),
            matches: why.is_empty() || why.starts_with("its"),
            wins: why.is_empty(),
            why: why.into(),
        };
        let endpoint = |pod: &str, allowed: bool| ext::WhatIfEndpoint {
            address: "127.101.0.4:8080".into(),
            pod: pod.into(),
            namespace: "shop".into(),
            verdict: Some(ext::WhatIfVerdict {
                allowed,
                decided: "AuthorizationPolicy/shop/checkout".into(),
                why: if allowed { "the policy allows it" } else { "the policy denies it" }.into(),
            }),
            ..Default::default()
        };
        let backend = |name: &str, share: f64, endpoints| ext::WhatIfBackend {
            backend: format!("Service/shop/{name}:8080"),
            share,
            balancer: "peak-ewma".into(),
            breaker: "opens after 7 failures in a row, for 1s to 60s".into(),
            method: "GET".into(),
            authority: "checkout.shop.svc.cluster.local:8080".into(),
            path: "/v2/cart".into(),
            endpoints,
            ..Default::default()
        };
        ext::WhatIfReply {
            service: "Service/shop/checkout:8080".into(),
            client_namespace: "shop".into(),
            protocol: "http".into(),
            protocol_why: "nobody declares it: the proxy sees what is spoken".into(),
            matches: vec![
                found(2, "", "PathPrefix /cart GET header x-user=1", "header x-user is not 1"),
                found(1, "beta", "PathPrefix /cart header x-beta=1", ""),
                found(0, "", "PathPrefix /", "its path is less specific"),
            ],
            aside: vec![ext::WhatIfAside {
                route: "HTTPRoute/other/theirs".into(),
                why: "is for clients in namespace other only".into(),
            }],
            filters: vec!["rewrites to prefix /v2".into()],
            limits: vec!["no timeout".into()],
            backends: vec![
                backend("checkout-v1", 0.75, vec![endpoint("checkout-v1-1", true)]),
                backend("checkout-v2", 0.25, vec![endpoint("checkout-v2-1", false)]),
            ],
            ..Default::default()
        }
    }

    const LINE: &str = "explain --what-if /cart --from deploy/web --to checkout.shop:8080";

    #[tokio::test]
    async fn the_way_of_a_request_is_told() {
        let mesh = FakeMesh { what_if: reply(), ..FakeMesh::default() };
        let ran = mesh.clone().run(LINE).await;
        golden("what-if.txt", &ran.out);
        assert_eq!(ran.result.unwrap(), ExitCode::FAILURE, "an endpoint does not let it in");
        let asked = ran.asked.what_if.unwrap();
        assert_eq!((asked.method.as_str(), asked.path.as_str()), ("GET", "/cart"));
        assert_eq!(asked.authority, "checkout.shop:8080");
        golden("what-if.json", &mesh.run(&format!("{LINE} -o json")).await.out);
    }

    #[tokio::test]
    async fn errors_in_manifests_are_told_instead() {
        let problem = ext::Problem {
            severity: "error".into(),
            object: "HTTPRoute/shop/r".into(),
            file: "new.yaml".into(),
            line: 3,
            field: "spec".into(),
            message: "is wrong".into(),
        };
        let what_if = ext::WhatIfReply { problems: vec![problem], ..Default::default() };
        let ran = FakeMesh { what_if, ..FakeMesh::default() }.run(LINE).await;
        assert!(ran.result.is_err());
        assert_eq!(ran.err, "error: new.yaml:3: HTTPRoute/shop/r: spec: is wrong\n");
    }
}
