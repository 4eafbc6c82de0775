//! `meshctl proxy config`: what one proxy believes, as it tells itself.

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::account::Account;
use super::{log_level, pod};
use crate::commands::shared;
use crate::completing;
use crate::context::Context;
use crate::error::CliError;
use crate::output::{Format, format};

/// The part that is no part of the document but a knob.
const LOG_LEVEL: &str = "log-level";
/// The parts that have a name of their own.
const PARTS: [&str; 4] = ["routes", "endpoints", "policy", LOG_LEVEL];

/// Show what a proxy believes, or set its log level
#[derive(Args, Debug)]
#[command(after_long_help = HELP)]
pub struct ConfigArgs {
    /// POD, NAMESPACE/POD or TYPE/NAME, and the part to show
    #[arg(value_name = "POD [PART]", required = true, num_args = 1..=3, add = completing::pods())]
    pub words: Vec<String>,
    /// The pod's namespace
    #[arg(long, short, value_name = "NS", add = completing::namespaces())]
    pub namespace: Option<String>,
    /// Output format
    #[arg(long, short, value_name = "FORMAT", default_value = "table",
          value_parser = Format::among(["table", "yaml", "json"]))]
    pub output: Format,
}

const HELP: &str = "\
The parts are routes (what the pod asked for, and what the proxy was told about it), endpoints \
(with the state of their breakers), policy (who may come in where) and log-level; a part may \
stand before the pod, too. Without a part, all is shown in short. YAML and JSON have the \
proxy's own words; their top-level fields are parts, too.

meshctl proxy config POD log-level           shows the proxy's log filter
meshctl proxy config POD log-level debug     sets it until the proxy ends";

pub(super) async fn run(args: ConfigArgs, cx: &mut Context) -> Result<ExitCode, CliError> {
    let wanted = Wanted::parse(&args.words)?;
    let mesh = cx.connect().await?;
    let pod = pod::find(&wanted.pod, args.namespace.as_deref(), &mesh, cx).await?;
    if wanted.part.as_deref() == Some(LOG_LEVEL) {
        if mesh.place.local().is_some_and(shared::is_transparent) {
            let error =
                format!("the admin port of {} is in a network namespace of its own", pod.name);
            let inside = format!("curl {}:4191/proxy-log-level", pod.ip);
            return Err(CliError::unreachable(error)
                .hint(format!("as root: ip netns list, then ip netns exec NAMESPACE {inside}")));
        }
        let answer = log_level::ask(&pod, wanted.value, mesh.place.cluster()).await?;
        cx.ui.line(&answer)?;
        return Ok(ExitCode::SUCCESS);
    }
    let text = mesh.proxy_config(&pod.namespace, &pod.name).await?;
    let unreadable = |error| {
        CliError::failed(format!(
            "the proxy of {} gave an account that can't be read: {error}",
            pod.name
        ))
    };
    let whole: Value = serde_json::from_str(&text).map_err(unreadable)?;
    let part = wanted.part.as_deref();
    let style = cx.ui.out_style;
    let shown = match (args.output, part) {
        (Format::Table, None | Some("routes" | "endpoints" | "policy")) => {
            let account: Account = serde_json::from_value(whole).map_err(unreadable)?;
            match part {
                Some("routes") => account.routes(style),
                Some("endpoints") => account.endpoints().render(style),
                Some("policy") => account.policies(style),
                _ => account.summary(style),
            }
        }
        (Format::Json, part) => format::json(part_of(&whole, part)?)?,
        (_, part) => format::yaml(part_of(&whole, part)?)?,
    };
    cx.ui.print(&shown)?;
    Ok(ExitCode::SUCCESS)
}

/// The part of the document that a name stands for.
fn part_of<'a>(whole: &'a Value, part: Option<&str>) -> Result<&'a Value, CliError> {
    let Some(part) = part else { return Ok(whole) };
    let found = match part {
        "routes" => whole.pointer("/outbound/targets"),
        "endpoints" => whole.pointer("/outbound/backends"),
        "policy" => whole.pointer("/inbound/ports"),
        field => whole.get(field),
    };
    found.ok_or_else(|| {
        let fields = whole.as_object().into_iter().flat_map(|fields| fields.keys());
        let parts: Vec<&str> = PARTS.into_iter().chain(fields.map(String::as_str)).collect();
        CliError::usage(format!("the proxy tells nothing of \"{part}\""))
            .hint(format!("one of {}", parts.join(", ")))
    })
}

/// What the words mean.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    pod: String,
    part: Option<String>,
    /// The log filter to set.
    value: Option<String>,
}

impl Wanted {
    /// `POD`, `POD PART`, `PART POD`, and for the log level a value behind.
    fn parse(words: &[String]) -> Result<Self, CliError> {
        let is_part = |word: &str| PARTS.contains(&word);
        let (pod, part, value) = match words {
            [pod] => (pod, None, None),
            [part, pod] if is_part(part) => (pod, Some(part), None),
            [pod, part] => (pod, Some(part), None),
            [part, pod, value] if part == LOG_LEVEL => (pod, Some(part), Some(value)),
            [pod, part, value] if part == LOG_LEVEL => (pod, Some(part), Some(value)),
            _ => {
                return Err(CliError::usage("only the log level takes a value")
                    .hint("meshctl proxy config POD log-level debug"));
            }
        };
        Ok(Self { pod: pod.clone(), part: part.cloned(), value: value.cloned() })
    }
}

#[cfg(test)]
mod tests {
    use super::Wanted;
    use crate::error::Kind;
    use crate::testing::{FakeMesh, golden, workload};

    fn mesh() -> FakeMesh {
        let account = serde_json::json!({
            "pod": "web-1", "namespace": "shop", "version": "0.1.0", "ready": true, "uptime_seconds": 125,
            "rss_bytes": 9 << 20, "open_connections": 2,
            "control": {"address": "127.1.0.1:8086", "streams_up": 5, "streams_wanted": 6},
            "inbound": {"ports": [
                {"listen": "127.1.1.2:8080", "forward": ["127.1.1.2:20014"], "policy": {
                    "protocol": "detect", "detect_timeout": "10s",
                    "routes": [{"name": "default/http", "rules": [
                        {"matches": [{"path": "prefix /", "method": "GET"}]},
                    ]}],
                    "authorizations": [
                        {"name": "default/all", "networks": ["0.0.0.0/0", "::/0"], "who": "anybody"},
                    ],
                }},
                {"listen": "127.1.1.2:9090", "forward": ["127.1.1.2:20015"], "policy": null},
            ]},
            "outbound": {
                "targets": [
                    {"target": "tax:8080", "policy":
                        {"state": "known", "resource": "Service/shop/tax:8080", "policy": {
                            "protocol": "http1",
                            "routes": [{"name": "HTTPRoute/shop/tax", "rules": [{
                                "backends": [
                                    {"name": "Service/shop/tax-v1:8080", "weight": 3},
                                    {"name": "Service/shop/tax-v2:8080", "weight": 1},
                                ],
                                "timeouts": {"request": "1.5s"},
                                "retry": {"max_retries": 2, "statuses": ["500-504"]},
                            }]}],
                        }}},
                    {"target": "nobody:80", "policy": {"state": "failed", "reason": "unknown-target"}},
                ],
                "backends": [{
                    "backend": "Service/shop/tax:8080", "parent": "Service/shop/tax:8080",
                    "strategy": "peak-ewma",
                    "endpoints": [
                        {"address": "127.1.1.9:8080", "state": "ready", "weight": 10_000, "in_flight": 1,
                         "rtt_ms": 1.5},
                        {"address": "127.1.1.10:8080", "state": "ejected", "weight": 10_000,
                         "consecutive_failures": 7},
                    ],
                }],
            },
        });
        FakeMesh {
            workloads: vec![workload("pod", "shop", "web", 1)],
            config: account.to_string(),
            ..FakeMesh::default()
        }
    }

    #[test]
    fn the_part_may_stand_on_either_side() {
        let parse = |line: &str| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            Wanted::parse(&words)
                .map(|w| (w.pod, w.part.unwrap_or_default(), w.value.unwrap_or_default()))
        };
        let want = |pod: &str, part: &str, value: &str| {
            (pod.to_owned(), part.to_owned(), value.to_owned())
        };
        assert_eq!(parse("web-1").unwrap(), want("web-1", "", ""));
        assert_eq!(parse("routes web-1").unwrap(), parse("web-1 routes").unwrap());
        assert_eq!(parse("web-1 log-level debug").unwrap(), want("web-1", "log-level", "debug"));
        assert_eq!(parse("log-level web-1 debug").unwrap(), want("web-1", "log-level", "debug"));
        assert_eq!(parse("web-1 routes debug").unwrap_err().kind, Kind::Usage);
    }

    #[tokio::test]
    async fn all_in_short_or_a_part() {
        golden("proxy-config.txt", &mesh().run("proxy config web").await.out);
        golden("proxy-config-routes.txt", &mesh().run("proxy config routes web").await.out);
        golden("proxy-config-policy.txt", &mesh().run("proxy config shop/web policy").await.out);
        golden("proxy-config-endpoints.txt", &mesh().run("proxy config web endpoints").await.out);
        let control = mesh().run("proxy config web control -o json").await.out;
        assert!(control.contains("\"streams_up\": 5"), "{control}");
        let endpoints = mesh().run("proxy config web endpoints -o yaml").await.out;
        assert!(endpoints.starts_with("- backend: Service/shop/tax:8080\n"), "{endpoints}");
    }

    #[tokio::test]
    async fn what_is_not_there_is_said_to() {
        let error = mesh().run("proxy config web colour").await.result.unwrap_err();
        assert!(
            error.hint.unwrap().starts_with("one of routes, endpoints, policy, log-level, control")
        );
        assert_eq!(mesh().run("proxy config wob").await.result.unwrap_err().kind, Kind::Missing);
        let garbled = FakeMesh { config: "{".into(), ..mesh() };
        assert_eq!(garbled.run("proxy config web").await.result.unwrap_err().kind, Kind::Failed);
    }
}
