//! `meshctl authz generate`: AuthorizationPolicies that allow what was seen, and nothing else.
//!
//! Clients that did the same share a policy. What no policy can allow (a path that servers read in different ways)
//! is left out and said to be.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use mesh_api::ext;
use mesh_model::authz::{PathPattern, canonical};

use crate::commands::identity::account;
use crate::commands::shared::{self, Lost};
use crate::completing;
use crate::context::Context;
use crate::error::CliError;
use crate::output::clean;
use crate::selector::{Scope, Selectors};
use crate::units;

/// Write policies that allow what was observed, and nothing else
#[derive(Args, Debug)]
#[command(after_long_help = HELP)]
pub struct GenerateArgs {
    /// The workload to be protected: TYPE/NAME
    #[arg(value_name = "RESOURCE", add = completing::resources())]
    pub resource: String,
    /// The span of time to look back, 10s to 10m
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = shared::window)]
    pub from_traffic: Duration,
    /// The namespace of the workload
    #[arg(long, short, value_name = "NS", add = completing::namespaces())]
    pub namespace: Option<String>,
}

const HELP: &str = "\
meshctl authz generate deploy/finance -n shop > finance-policy.yaml

Who called, with which methods and paths (gRPC: services and methods), as the proxies of the workload \
have seen it. Segments of paths that are numbers or long identifiers stand for all below: \
/product/*. Requests that were refused are not in it, nor are health probes, which need no policy.

Read it before it is applied: what was not asked for in that time will be refused.";

/// Kinds a policy can be about.
const WORKLOADS: [(&str, &str); 6] = [
    ("deployment", "Deployment"),
    ("statefulset", "StatefulSet"),
    ("daemonset", "DaemonSet"),
    ("replicaset", "ReplicaSet"),
    ("job", "Job"),
    ("cronjob", "CronJob"),
];
/// Lines about what was left out.
const MAX_TOLD: usize = 20;

pub(super) async fn run(args: GenerateArgs, cx: &mut Context) -> Result<ExitCode, CliError> {
    let scope = Scope { namespace: args.namespace.clone(), ..Scope::default() };
    let selector = Selectors::parse_one(&args.resource, &scope)?;
    let kind = WORKLOADS.iter().find(|(kind, _)| *kind == selector.kind).map(|(_, kind)| *kind);
    let (Some(kind), false) = (kind, selector.name.is_empty()) else {
        return Err(CliError::usage(format!("{} is not one workload", args.resource))
            .hint("TYPE/NAME, such as deploy/web"));
    };
    let mesh = cx.connect().await?;
    let window_seconds = u32::try_from(args.from_traffic.as_secs()).unwrap_or(u32::MAX);
    let request = ext::MeshObservedRequest { selector: Some(selector.clone()), window_seconds };
    let reply = match mesh.observed(request).await {
        Ok(reply) => reply,
        Err(error) => return Err(shared::propose(&mesh, [&selector], error).await),
    };
    let lost: Vec<Lost> = reply.unreachable.iter().cloned().map(Lost::from).collect();
    shared::lost_notes(&lost).for_each(|note| cx.ui.note(&note));
    let namespace = reply.pods.first().map(|pod| pod.namespace.clone());
    let Some(namespace) = namespace else {
        return Err(CliError::missing(format!("no pod of {} has told anything", args.resource))
            .hint("meshctl proxy status"));
    };
    if reply.pods.iter().any(|pod| pod.namespace != namespace) {
        let message = format!("{} is in several namespaces", args.resource);
        return Err(CliError::usage(message).hint(format!("-n {namespace}")));
    }
    let target = Target { kind, name: &selector.name, namespace: &namespace };
    let seen = Seen::new(&reply);
    if seen.ports.is_empty() {
        let window = units::age(args.from_traffic.as_secs());
        return Err(CliError::missing(format!(
            "{} was not asked for anything in the last {window}",
            args.resource
        ))
        .hint("--from-traffic 10m, which is the longest that proxies remember"));
    }
    let comment = Comment { window: args.from_traffic, now: Timestamp::now(), lost: lost.len() };
    cx.ui.print(&seen.text(&target, &comment))?;
    Ok(ExitCode::SUCCESS)
}

/// What the policies are about.
#[derive(Debug)]
struct Target<'a> {
    kind: &'a str,
    name: &'a str,
    namespace: &'a str,
}

/// What the policies were made of.
#[derive(Debug)]
struct Comment {
    window: Duration,
    now: Timestamp,
    lost: usize,
}

/// By what a client is told.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Client {
    Identity(String),
    Address(String),
}

/// Something that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Asked {
    /// A connection of bytes.
    Tcp,
    /// A path or pattern, and a method.
    Http {
        path: String,
        method: String,
    },
    Grpc {
        service: String,
        method: String,
    },
}

/// What was observed, as far as a policy can say it.
#[derive(Debug, Default)]
struct Seen {
    ports: BTreeMap<u32, BTreeMap<Client, BTreeSet<Asked>>>,
    /// Requests that no policy can allow, each once.
    unspeakable: BTreeSet<String>,
    requests: u64,
    pods: usize,
    covered: u32,
    /// Which the proxies had no room for.
    left_out: u64,
}

impl Seen {
    fn new(reply: &ext::MeshObservedReply) -> Self {
        let mut seen = Self { pods: reply.pods.len(), ..Self::default() };
        for observed in reply.pods.iter().filter_map(|pod| pod.observed.as_ref()) {
            seen.covered = seen.covered.max(observed.covered_seconds);
            seen.left_out += observed.left_out;
            observed.observations.iter().for_each(|observation| seen.add(observation));
        }
        seen
    }

    fn add(&mut self, observation: &ext::Observation) {
        self.requests += observation.count;
        let Some(asked) = Asked::of(observation) else {
            let told = format!("{} {}", observation.method, observation.path);
            self.unspeakable.insert(told);
            return;
        };
        let client = match observation.identity.as_str() {
            "" => Client::Address(observation.peer.clone()),
            identity => Client::Identity(identity.to_owned()),
        };
        let port = self.ports.entry(observation.port).or_default();
        port.entry(client).or_default().insert(asked);
    }

    fn text(&self, target: &Target<'_>, comment: &Comment) -> String {
        let mut text = self.head(target, comment);
        let mut number = 0;
        for (port, clients) in &self.ports {
            // Clients that asked for the same share a policy.
            let mut alike: BTreeMap<&BTreeSet<Asked>, Vec<&Client>> = BTreeMap::new();
            for (client, asked) in clients {
                alike.entry(asked).or_default().push(client);
            }
            for (asked, clients) in alike {
                number += 1;
                text += "---\n";
                text += &policy(target, *port, number, &clients, asked);
            }
        }
        text
    }

    fn head(&self, target: &Target<'_>, comment: &Comment) -> String {
        let Target { kind, name, namespace } = target;
        let window = units::age(comment.window.as_secs());
        let mut lines = vec![format!(
            "What {kind} {name} in {namespace} was asked for and allowed in the {window} before {:.0}.",
            comment.now
        )];
        lines.push(format!(
            "Observed: {} of {} in {}. What was not asked for in that time is refused.",
            units::plural(usize::try_from(self.requests).unwrap_or(usize::MAX), "request"),
            units::plural(self.pods, "pod"),
            units::age(self.covered.into()),
        ));
        if comment.lost > 0 {
            lines.push(format!("{} did not answer.", units::plural(comment.lost, "pod")));
        }
        if self.left_out > 0 {
            lines.push(format!("{} more had no place in the proxies' tables.", self.left_out));
        }
        if !self.unspeakable.is_empty() {
            lines.push("Left out, as servers read these paths in different ways:".to_owned());
            let told = self.unspeakable.iter().take(MAX_TOLD);
            lines.extend(told.map(|told| format!("  {}", clean(told))));
            let more = self.unspeakable.len().saturating_sub(MAX_TOLD);
            lines.extend((more > 0).then(|| format!("  and {more} more")));
        }
        lines.into_iter().map(|line| format!("# {line}\n")).collect()
    }
}

impl Asked {
    /// `None` if no policy can allow it.
    fn of(observation: &ext::Observation) -> Option<Self> {
        if observation.protocol == "tcp" {
            return Some(Self::Tcp);
        }
        let path = canonical(&observation.path).ok()?;
        // A policy's gRPC methods are POST requests, as gRPC has it.
        if observation.protocol == "grpc"
            && observation.method == "POST"
            && let Some((service, method)) = path.strip_prefix('/').and_then(|p| p.split_once('/'))
            && [service, method].into_iter().all(is_grpc_name)
        {
            return Some(Self::Grpc { service: service.to_owned(), method: method.to_owned() });
        }
        // An asterisk of the path itself stands for nothing else.
        let mut path = path.replace('*', "%2A");
        if observation.below {
            path += "/*";
        }
        PathPattern::new(&path).ok()?;
        Some(Self::Http { path, method: observation.method.clone() })
    }
}

fn is_grpc_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

fn policy(
    target: &Target<'_>,
    port: u32,
    number: usize,
    clients: &[&Client],
    asked: &BTreeSet<Asked>,
) -> String {
    let Target { kind, name, namespace } = target;
    let mut text = format!(
        "apiVersion: policy.meshctl.dev/v1alpha1\n\
         kind: AuthorizationPolicy\n\
         metadata:\n  name: {}\n  namespace: {}\n\
         spec:\n  targetRef:\n    kind: {kind}\n    name: {}\n    port: {port}\n  action: Allow\n  from:\n",
        quoted(&format!("{name}-observed-{number}")),
        quoted(namespace),
        quoted(name),
    );
    let ids = clients.iter().filter_map(|client| match client {
        Client::Identity(id) => Some(id),
        Client::Address(_) => None,
    });
    let mut ids = ids.peekable();
    if ids.peek().is_some() {
        text += "    - identities:\n";
        text.extend(ids.map(|id| format!("        - {} # {}\n", quoted(id), clean(&account(id)))));
    }
    let addresses = clients.iter().filter_map(|client| match client {
        Client::Address(address) => Some(address),
        Client::Identity(_) => None,
    });
    let mut addresses = addresses.peekable();
    if addresses.peek().is_some() {
        text += "    # These proved no identity.\n    - unauthenticated: true\n      networks:\n";
        let net = |address: &String| {
            let bits = if address.contains(':') { 128 } else { 32 };
            format!("        - {}\n", quoted(&format!("{address}/{bits}")))
        };
        text.extend(addresses.map(net));
    }
    if asked.contains(&Asked::Tcp) {
        return text + "  # Connections of bytes, which may be anything.\n";
    }
    text + "  to:\n" + &operations(asked)
}

/// One item for each set of methods that some paths were asked for with, and one for gRPC.
fn operations(asked: &BTreeSet<Asked>) -> String {
    let mut methods: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut services: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for asked in asked {
        match asked {
            Asked::Http { path, method } => _ = methods.entry(path).or_default().insert(method),
            Asked::Grpc { service, method } => {
                services.entry(service).or_default().insert(method);
            }
            Asked::Tcp => {}
        }
    }
    let mut paths: BTreeMap<BTreeSet<&str>, Vec<&str>> = BTreeMap::new();
    for (path, methods) in methods {
        paths.entry(methods).or_default().push(path);
    }
    let mut text = String::new();
    for (methods, paths) in paths {
        text += &format!("    - methods: [{}]\n      paths:\n", list(methods));
        text.extend(paths.into_iter().map(|path| format!("        - {}\n", quoted(path))));
    }
    if !services.is_empty() {
        text += "    - methods: [\"POST\"]\n      grpc:\n";
        for (service, methods) in services {
            text += &format!(
                "        - service: {}\n          methods: [{}]\n",
                quoted(service),
                list(methods)
            );
        }
    }
    text
}

fn list<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    texts.into_iter().map(quoted).collect::<Vec<_>>().join(", ")
}

/// Text of any kind for YAML, which takes JSON's strings.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method, Uri};
    use mesh_control::index::identity::MeshNames;
    use mesh_control::source::policy::{AuthorizationPolicyObject, authorization_policy};
    use mesh_model::Meta;
    use mesh_model::authz::{
        AuthorizationRule, AuthzRequest, DefaultAccess, DefaultRule, HttpRequest, PortAuthz, decide,
    };
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{FakeMesh, golden};

    fn id(account: &str) -> String {
        format!("{account}.shop.serviceaccount.identity.mesh-system.cluster.local")
    }

    fn http(account: &str, method: &str, path: &str, below: bool) -> ext::Observation {
        ext::Observation {
            port: 8080,
            identity: id(account),
            protocol: "http".into(),
            method: method.into(),
            path: path.into(),
            below,
            count: 7,
            ..ext::Observation::default()
        }
    }

    fn reply(observations: Vec<ext::Observation>) -> ext::MeshObservedReply {
        let observed = ext::ObservedReply { covered_seconds: 300, observations, left_out: 0 };
        ext::MeshObservedReply {
            pods: vec![ext::PodObserved {
                pod: "finance-1".into(),
                namespace: "shop".into(),
                observed: Some(observed),
            }],
            unreachable: vec![],
        }
    }

    fn sample() -> Vec<ext::Observation> {
        let grpc = |method: &str| ext::Observation {
            protocol: "grpc".into(),
            ..http("portal", "POST", &format!("/shop.v1.Ledger/{method}"), false)
        };
        vec![
            http("portal", "GET", "/reports/today", false),
            http("portal", "HEAD", "/reports/today", false),
            http("portal", "GET", "/orders", true),
            grpc("Get"),
            grpc("List"),
            http("audit", "GET", "/reports/today", false),
            http("clerk", "GET", "/reports/today", false),
            http("clerk", "GET", "/a/../b", false),
            ext::Observation {
                identity: String::new(),
                peer: "127.1.0.9".into(),
                ..http("", "GET", "/metrics", false)
            },
            ext::Observation {
                port: 7100,
                protocol: "tcp".into(),
                ..http("portal", "", "", false)
            },
        ]
    }

    /// The rules of a port, as the control plane reads the text.
    fn rules(text: &str, port: u32) -> PortAuthz {
        let names = MeshNames::default();
        let mut rules = Vec::new();
        let objects = serde_saphyr::from_multiple::<AuthorizationPolicyObject>(text).unwrap();
        let ports = serde_saphyr::from_multiple::<serde_json::Value>(text).unwrap();
        for (object, value) in objects.iter().zip(ports) {
            let (policy, findings) = authorization_policy(object, &names);
            assert!(findings.is_empty(), "{findings:?} in {text}");
            if value["spec"]["targetRef"]["port"] == port {
                rules.push(AuthorizationRule {
                    meta: Meta::Default(policy.name.to_string()),
                    action: policy.action,
                    route: None,
                    from: policy.from,
                    to: policy.to,
                });
            }
        }
        let default = DefaultRule {
            access: DefaultAccess::AllUnauthenticated,
            meta: Meta::Default("all".into()),
            cluster: std::sync::Arc::default(),
        };
        PortAuthz { rules: rules.into(), default, probes: std::sync::Arc::default() }
    }

    fn allows(authz: &PortAuthz, seen: &ext::Observation, path: &str) -> bool {
        let uri = Uri::builder().path_and_query(path).build().unwrap();
        let method = Method::from_bytes(seen.method.as_bytes()).unwrap_or_default();
        let http = HttpRequest { method: &method, uri: &uri, headers: &HeaderMap::new() };
        let request = AuthzRequest {
            client: seen.peer.parse().unwrap_or([127, 1, 0, 1].into()),
            identity: Some(seen.identity.as_str()).filter(|id| !id.is_empty()),
            http: (seen.protocol != "tcp").then_some(http),
        };
        decide(authz, &request).allowed
    }

    fn generate(observations: &[ext::Observation]) -> String {
        let target = Target { kind: "Deployment", name: "finance", namespace: "shop" };
        let comment = Comment {
            window: Duration::from_secs(600),
            now: "2026-11-26T12:00:00Z".parse().unwrap(),
            lost: 0,
        };
        Seen::new(&reply(observations.to_vec())).text(&target, &comment)
    }

    #[test]
    fn what_was_observed_is_allowed_and_the_rest_is_not() {
        let text = generate(&sample());
        golden("authz-generate.yaml", &text);
        for seen in sample().iter().filter(|seen| !seen.path.contains("..")) {
            let path = if seen.path.is_empty() { "/" } else { &seen.path };
            assert!(allows(&rules(&text, seen.port), seen, path), "{seen:?}");
        }
        let authz = rules(&text, 8080);
        assert!(allows(&authz, &sample()[2], "/orders/17/lines"));
        for (account, method, path) in [
            ("clerk", "HEAD", "/reports/today"),
            ("clerk", "GET", "/a/../b"),
            ("clerk", "GET", "/orders/1"),
            ("audit", "GET", "/reports/yesterday"),
            ("portal", "POST", "/orders/1"),
            ("portal", "POST", "/shop.v1.Ledger/Delete"),
            ("other", "GET", "/reports/today"),
        ] {
            assert!(!allows(&authz, &http(account, method, path, false), path), "{account} {path}");
        }
    }

    /// What no policy can allow is told in comments, whose ends not all readers of YAML see at the same place.
    #[test]
    fn no_path_can_end_its_comment() {
        for end in ['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}'] {
            let path = format!("/a/../{end}---{end}kind: ClusterRoleBinding");
            let text = generate(&[http("clerk", "GET", &path, false)]);
            let told = text.lines().find(|line| line.contains("ClusterRoleBinding"));
            let told = told.expect("it is told");
            assert!(told.starts_with("#   GET /a/../\\") && !told.contains(end), "{told:?}");
        }
    }

    #[tokio::test]
    async fn one_workload_with_traffic_is_needed() {
        let mesh = FakeMesh { observed: reply(sample()), ..FakeMesh::default() };
        let ran = mesh.clone().run("authz generate deploy/finance -n shop").await;
        assert!(
            ran.out.starts_with("# What Deployment finance in shop was asked for"),
            "{}",
            ran.out
        );
        for wrong in ["svc/finance", "deploy"] {
            assert!(mesh.clone().run(&format!("authz generate {wrong}")).await.result.is_err());
        }
        let silent = FakeMesh { observed: reply(vec![]), ..FakeMesh::default() };
        let error = silent.run("authz generate deploy/finance -n shop").await.result.unwrap_err();
        assert_eq!(error.message, "deploy/finance was not asked for anything in the last 10m");
    }

    proptest! {
        /// `authz can` and the proxy decide by the function that is asked here.
        #[test]
        fn whatever_was_observed_is_allowed_or_told_to_be_left_out(
            seen in proptest::collection::vec(
                (
                    "[a-c]",
                    prop_oneof![Just("GET"), Just("POST"), Just("X-Y")],
                    "/[a-c/.%2A*;~\\\\é\"': #-]{0,12}",
                    any::<bool>(),
                    prop_oneof![Just("http"), Just("grpc"), Just("tcp")],
                ),
                1..8,
            ),
        ) {
            let parsed = |path: &str| Uri::builder().path_and_query(path).build().is_ok();
            let seen: Vec<_> = seen
                .into_iter()
                .filter(|(_, _, path, ..)| parsed(path) && !path.contains(['?', '#']))
                .map(|(account, method, path, below, protocol)| ext::Observation {
                    protocol: protocol.into(),
                    ..http(&account, method, &path, below && protocol == "http")
                })
                .collect();
            let text = generate(&seen);
            let authz = rules(&text, 8080);
            for seen in seen.iter().filter(|seen| Asked::of(seen).is_some()) {
                prop_assert!(allows(&authz, seen, &seen.path), "{:?}\n{}", seen, text);
            }
            for (account, method) in [("z", "GET"), ("a", "DELETE")] {
                let other = http(account, method, "/a", false);
                let bytes = seen.iter().any(|s| s.protocol == "tcp" && s.identity == other.identity);
                prop_assert!(authz.rules.is_empty() || bytes || !allows(&authz, &other, "/a"));
            }
        }
    }
}
