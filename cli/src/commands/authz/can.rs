//! `meshctl authz can`: whether a client may do something, by which policy, and why the others did not decide.
//!
//! The rules come from the control plane, and the decision from the function that the proxy calls.

use std::net::IpAddr;
use std::process::ExitCode;

use clap::Args;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use mesh_api::{Wire, ext};
use mesh_model::authz::{AuthzRequest, Basis, HttpRequest, PortAuthz, decide, explain};
use serde::Serialize;

use super::watch;
use crate::commands::{endpoints, shared};
use crate::completing;
use crate::connect::Mesh;
use crate::context::Context;
use crate::error::CliError;
use crate::output::table::Tone;
use crate::output::{Format, Style, clean, format};
use crate::selector::{Scope, Selectors};

/// Ask whether a client may use a port, and which policy decides
#[derive(Args, Debug)]
#[command(after_long_help = HELP)]
pub struct CanArgs {
    /// Who asks: TYPE/NAME, or an IP address; may be left out with --watch
    #[arg(value_name = "CLIENT", add = completing::resources())]
    pub client: String,
    #[arg(value_name = "SERVER:PORT", add = completing::authorities(), required_unless_present = "watch",
          help = "Whom: NAME[.NAMESPACE]:PORT of a service, or an address and port")]
    pub server: Option<String>,
    /// The namespace of client and server, unless they name one
    #[arg(long, short, value_name = "NS", add = completing::namespaces())]
    pub namespace: Option<String>,
    /// The request's method
    #[arg(long, default_value = "GET", value_parser = method)]
    pub method: Method,
    /// The request's path; of a gRPC call, /package.Service/Method
    #[arg(long, default_value = "/", value_parser = path)]
    pub path: Uri,
    /// A header of the request; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = header)]
    pub header: Vec<(HeaderName, HeaderValue)>,
    /// Ask about a connection that is not HTTP
    #[arg(long, conflicts_with_all = ["method", "path", "header"])]
    pub tcp: bool,
    /// Suppose that the client proves this identity
    #[arg(long, value_name = "ID")]
    pub identity: Option<String>,
    /// Show what is refused there, as it happens
    #[arg(long, conflicts_with_all = ["method", "path", "header", "tcp", "identity"])]
    pub watch: bool,
    /// Stop watching after so many refusals
    #[arg(long, value_name = "N", requires = "watch", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Output format
    #[arg(long, short, value_name = "FORMAT", default_value = "table",
          value_parser = Format::among(["table", "json", "yaml"]))]
    pub output: Format,
}

const HELP: &str = "\
meshctl authz can deploy/web finance.shop:8080 --path /reports/today
meshctl authz can finance.shop:8080 --watch

Exit code 0 if every pod of the client may use every pod of the server, 1 if not.

JSON and YAML: {allowed, verdicts: [{client: {address, identity, pod, namespace}, server: {pod, \
namespace, port}, allowed, basis, decided, audits, rules: [{policy, action, from, to, outcome}], \
default}]}. With --watch, JSON is that of meshctl tap, a line each.";

/// The document of `-o json`.
#[derive(Debug, Serialize)]
struct Report {
    allowed: bool,
    verdicts: Vec<Verdict>,
}

#[derive(Debug, Serialize)]
struct Verdict {
    client: Client,
    server: Server,
    allowed: bool,
    /// `probe`, `denied`, `allowed`, `none-matched`, `default`
    basis: &'static str,
    /// The object that decided, or the default.
    decided: String,
    /// Policies that only record it.
    audits: Vec<String>,
    rules: Vec<Rule>,
    default: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Client {
    address: String,
    identity: Option<String>,
    pod: Option<String>,
    namespace: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Server {
    pod: String,
    namespace: String,
    port: u32,
}

#[derive(Debug, PartialEq, Serialize)]
struct Rule {
    policy: String,
    action: &'static str,
    from: String,
    to: String,
    outcome: String,
}

pub(super) async fn run(args: CanArgs, cx: &mut Context) -> Result<ExitCode, CliError> {
    if args.watch && args.output == Format::Yaml {
        return Err(CliError::usage("--watch prints a line for each refusal, which -o yaml can't")
            .hint("-o json"));
    }
    let mesh = cx.connect().await?;
    // With one of them left out it is the client.
    let (client, server) = match &args.server {
        Some(server) => (Some(args.client.as_str()), server),
        None => (None, &args.client),
    };
    let authority = endpoints::complete(server, args.namespace.as_deref(), &mesh).await?;
    let reply = ask(client, args.namespace.clone(), authority, &mesh).await?;
    if args.watch {
        return watch::run(&args, &reply, &mesh, cx).await;
    }
    let report = Report::new(&args, reply)?;
    match args.output {
        Format::Json => cx.ui.print(&format::json(&report)?)?,
        Format::Yaml => cx.ui.print(&format::yaml(&report)?)?,
        _ => cx.ui.print(&report.text(cx.ui.out_style))?,
    }
    Ok(if report.allowed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn ask(
    client: Option<&str>,
    namespace: Option<String>,
    authority: String,
    mesh: &Mesh,
) -> Result<ext::PortAuthorizationsReply, CliError> {
    let scope = Scope { namespace, ..Scope::default() };
    let mut request =
        ext::PortAuthorizationsRequest { authority: authority.clone(), ..Default::default() };
    match client.map(|client| (client, client.parse::<IpAddr>())) {
        Some((_, Ok(ip))) => request.client_address = ip.to_string(),
        Some((client, Err(_))) => request.client = Some(Selectors::parse_one(client, &scope)?),
        None => {}
    }
    let client = request.client.clone();
    match mesh.port_authorizations(request).await {
        Ok(reply) => Ok(reply),
        Err(error) => {
            let error = shared::propose(mesh, client.iter(), error).await;
            Err(endpoints::unknown(&authority, mesh, error).await)
        }
    }
}

impl Report {
    fn new(args: &CanArgs, reply: ext::PortAuthorizationsReply) -> Result<Self, CliError> {
        let headers: HeaderMap = args.header.iter().cloned().collect();
        let http = HttpRequest { method: &args.method, uri: &args.path, headers: &headers };
        let mut verdicts = Vec::new();
        for port in reply.ports {
            let authz = PortAuthz::from_proto(port.authorization.unwrap_or_default());
            let authz = authz.map_err(|error| {
                CliError::failed(format!("the control plane's rules make no sense: {error}"))
                    .hint("meshctl version, to compare its version with this one's")
            })?;
            let server = Server { pod: port.pod, namespace: port.namespace, port: port.port };
            for client in &reply.clients {
                let address: IpAddr = client.address.parse().map_err(|_| {
                    CliError::failed(format!("\"{}\" is no address", client.address))
                })?;
                let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
                let client = Client {
                    address: client.address.clone(),
                    identity: args.identity.clone().or_else(|| some(&client.identity)),
                    pod: some(&client.pod),
                    namespace: some(&client.namespace),
                };
                let request = AuthzRequest {
                    client: address,
                    identity: client.identity.as_deref(),
                    http: (!args.tcp).then_some(http),
                };
                verdicts.push(Verdict::new(&authz, &request, client.clone(), server.clone()));
            }
        }
        Ok(Self { allowed: verdicts.iter().all(|verdict| verdict.allowed), verdicts })
    }

    /// Verdicts that are alike but for their pods are told once.
    fn text(&self, style: Style) -> String {
        let mut told: Vec<(&Verdict, usize)> = Vec::new();
        for verdict in &self.verdicts {
            match told.iter_mut().find(|(other, _)| other.is_like(verdict)) {
                Some((_, more)) => *more += 1,
                None => told.push((verdict, 0)),
            }
        }
        let paragraphs = told.into_iter().map(|(verdict, more)| verdict.text(more, style));
        paragraphs.collect::<Vec<_>>().join("\n")
    }
}

impl Verdict {
    fn new(authz: &PortAuthz, request: &AuthzRequest<'_>, client: Client, server: Server) -> Self {
        let verdict = decide(authz, request);
        let rules = authz.rules.iter().zip(explain(authz, request)).map(|(rule, outcome)| Rule {
            policy: rule.meta.to_string(),
            action: rule.action.as_str(),
            from: rule.describe_from(),
            to: rule.describe_to(),
            outcome: outcome.to_string(),
        });
        Self {
            client,
            server,
            allowed: verdict.allowed,
            basis: match verdict.basis {
                Basis::Probe => "probe",
                Basis::Denied => "denied",
                Basis::Allowed => "allowed",
                Basis::NoneMatched => "none-matched",
                Basis::Default => "default",
            },
            decided: verdict.decided.to_string(),
            audits: verdict.audits.iter().map(ToString::to_string).collect(),
            rules: rules.collect(),
            default: authz.default.access.as_str().to_owned(),
        }
    }

    fn is_like(&self, other: &Self) -> bool {
        self.decided == other.decided && self.allowed == other.allowed && self.rules == other.rules
    }

    fn text(&self, more: usize, style: Style) -> String {
        let decided = clean(&self.decided);
        let (word, tone) = if self.allowed { ("yes", Tone::Good) } else { ("no", Tone::Bad) };
        let why = match self.basis {
            "probe" => "it is a health probe that the workload declares".to_owned(),
            "denied" => format!("{decided} denies it"),
            "allowed" => format!("{decided} allows it"),
            "none-matched" => format!("{decided} governs, and no policy that allows applies"),
            _ => format!("no policy decides, and the default is {} ({decided})", self.default),
        };
        let mut text = format!("{}: {why}\n", tone.paint(style, word));
        text += &format!("  client  {}\n", clean(&self.client.describe()));
        let Server { pod, namespace, port } = &self.server;
        text += &format!("  server  {}\n", clean(&format!("pod/{pod}:{port} in {namespace}")));
        if more > 0 {
            text += &format!("          and {more} more alike\n");
        }
        for rule in &self.rules {
            let mark = if rule.outcome == "applies" { "→" } else { "-" };
            text +=
                &format!("  {mark} {} {}: {}\n", rule.action, clean(&rule.policy), rule.outcome);
            text += &format!("      from  {}\n", clean(&rule.from));
            text += &format!("      to    {}\n", clean(&rule.to));
        }
        for audit in &self.audits {
            text += &format!("  recorded by {}\n", clean(audit));
        }
        text
    }
}

impl Client {
    fn describe(&self) -> String {
        let of_pod = match (&self.pod, &self.namespace) {
            (Some(pod), Some(namespace)) => format!("pod/{pod} in {namespace}, "),
            _ => String::new(),
        };
        let identity = match &self.identity {
            Some(identity) => format!(", as {identity}"),
            None => ", without an identity".to_owned(),
        };
        format!("{of_pod}{}{identity}", self.address)
    }
}

fn method(text: &str) -> Result<Method, String> {
    let upper = text.to_ascii_uppercase();
    Method::from_bytes(upper.as_bytes()).map_err(|_| format!("\"{text}\" is not a method"))
}

fn path(text: &str) -> Result<Uri, String> {
    let parsed = Uri::builder().path_and_query(text).build();
    parsed
        .ok()
        .filter(|_| text.starts_with('/'))
        .ok_or_else(|| format!("\"{text}\" is not a path; it starts with / and spaces are %20"))
}

/// As for `meshctl tap`.
fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text
        .split_once([':', '='])
        .ok_or_else(|| format!("\"{text}\" is not a header; write NAME=VALUE"))?;
    let name = name.trim().parse().map_err(|_| format!("\"{name}\" can't name a header"))?;
    let value = value.trim().parse().map_err(|_| format!("\"{value}\" can't be in a header"))?;
    Ok((name, value))
}

#[cfg(test)]
mod tests {
    use std::process::ExitCode;

    use mesh_api::{Wire, ext};
    use mesh_model::authz::{
        Action, AuthorizationRule, ClientMatch, DefaultAccess, DefaultRule, Operation, PathPattern,
        PortAuthz, Source,
    };
    use mesh_model::{Meta, ResourceRef};

    use crate::testing::{FakeMesh, golden};

    const PORTAL: &str = "portal.shop.serviceaccount.identity.mesh-system.cluster.local";

    fn rule(action: Action, name: &str, paths: &[&str]) -> AuthorizationRule {
        let paths: Vec<_> = paths.iter().map(|path| PathPattern::new(path).unwrap()).collect();
        AuthorizationRule {
            meta: Meta::Resource(ResourceRef {
                group: "policy.meshctl.dev".into(),
                kind: "AuthorizationPolicy".into(),
                name: name.into(),
                namespace: "shop".into(),
                ..ResourceRef::default()
            }),
            action,
            route: None,
            from: Vec::new(),
            to: vec![Operation { paths, ..Operation::default() }],
        }
    }

    fn mesh() -> FakeMesh {
        let among = ClientMatch::Among(vec![PORTAL.parse().unwrap()]);
        let authz = PortAuthz {
            rules: Vec::from([
                rule(Action::Deny, "no-admin", &["/admin/*"]),
                AuthorizationRule {
                    from: vec![Source { client: among, networks: Vec::new() }],
                    ..rule(Action::Allow, "finance", &["/v1/*"])
                },
            ])
            .into(),
            default: DefaultRule {
                access: DefaultAccess::AllUnauthenticated,
                meta: Meta::Default("all-unauthenticated".into()),
                cluster: std::sync::Arc::default(),
            },
            probes: std::sync::Arc::default(),
        };
        let port = |pod: &str| ext::AuthorizingPort {
            pod: pod.into(),
            namespace: "shop".into(),
            port: 8080,
            authorization: Some(authz.to_proto().unwrap()),
        };
        let client = ext::AuthorizedClient {
            address: "127.101.0.4".into(),
            identity: PORTAL.into(),
            pod: "portal-1".into(),
            namespace: "shop".into(),
        };
        let port_authorizations = ext::PortAuthorizationsReply {
            clients: vec![client],
            ports: vec![port("finance-1"), port("finance-2")],
        };
        FakeMesh { port_authorizations, ..FakeMesh::default() }
    }

    #[tokio::test]
    async fn the_verdict_names_what_decided_and_why_others_did_not() {
        let ask = async |rest: &str| {
            let ran =
                mesh().run(&format!("authz can deploy/portal finance.shop:8080 {rest}")).await;
            (ran.result.unwrap(), ran.out)
        };
        let (code, out) = ask("--path /v1/books").await;
        assert_eq!(code, ExitCode::SUCCESS);
        golden("authz-can-yes.txt", &out);
        let (code, out) = ask("--path /v1/../admin --method post").await;
        assert_eq!(code, ExitCode::FAILURE);
        golden("authz-can-no.txt", &out);
        golden("authz-can.json", &ask("--path /v1 --identity other.id -o json").await.1);
        let (code, out) = ask("--tcp").await;
        assert_eq!(code, ExitCode::FAILURE);
        assert!(out.contains("this connection is carried as bytes"), "{out}");
    }

    #[tokio::test]
    async fn the_client_is_a_resource_or_an_address() {
        let ran = mesh().run("authz can 192.0.2.1 finance.shop:8080").await;
        let asked = ran.asked.port_authorizations.unwrap();
        assert_eq!((asked.client_address.as_str(), asked.client), ("192.0.2.1", None));
        assert_eq!(asked.authority, "finance.shop:8080");
        let ran = mesh().run("authz can po/web-1 finance.shop:8080 -n shop").await;
        let client = ran.asked.port_authorizations.unwrap().client.unwrap();
        let named = (client.kind.as_str(), client.name.as_str(), client.namespace.as_str());
        assert_eq!(named, ("pod", "web-1", "shop"));
        assert!(mesh().run("authz can nonsense finance.shop:8080").await.result.is_err());
    }
}
