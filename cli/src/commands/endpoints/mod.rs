//! `meshctl endpoints`: the addresses behind a service, as the control plane says and as the proxies hold them.

mod authority;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

pub(super) use self::authority::{complete, unknown};
use clap::Args;
use mesh_api::ext;
use serde::Serialize;

use super::shared;
use crate::completing;
use crate::context::Context;
use crate::error::CliError;
use crate::output::table::{Tone, optional};
use crate::output::{Cell, Column, Format, Table, format};
use crate::units;

/// Show the endpoints of a service
#[derive(Args, Debug)]
#[command(after_long_help = HELP)]
pub struct EndpointsArgs {
    #[arg(
        value_name = "AUTHORITY",
        help = "NAME[.NAMESPACE][:PORT], or an address and port",
        add = completing::authorities()
    )]
    pub authority: String,
    /// The service's namespace, unless the authority names it
    #[arg(long, short, value_name = "NS", add = completing::namespaces())]
    pub namespace: Option<String>,
    /// Compare with what every proxy holds; exit code 1 if one differs
    #[arg(long)]
    pub diff: bool,
    /// Output format
    #[arg(long, short, value_name = "FORMAT", default_value = "table",
          value_parser = Format::among(["table", "wide", "json", "yaml"]))]
    pub output: Format,
}

const HELP: &str = "\
A weight of 1 is the usual one. With --diff, a proxy that has not been asked to reach the \
service holds no endpoints of it and is not listed.

JSON and YAML: {authority, service, endpoints: [{address, pod, namespace, weight, hint, \
identity}], proxies: [{namespace, pod, endpoints: [{address, state, rtt_ms, in_flight}], \
missing, stale}], in_step}.";

/// The document of `-o json`.
#[derive(Debug, Serialize)]
struct Report {
    authority: String,
    service: String,
    endpoints: Vec<Endpoint>,
    /// Only with `--diff`.
    proxies: Vec<Holder>,
    in_step: Option<bool>,
}

#[derive(Debug, Serialize)]
struct Endpoint {
    address: String,
    pod: String,
    namespace: String,
    weight: f64,
    hint: String,
    identity: String,
}

/// A proxy and the endpoints it balances over.
#[derive(Debug, Serialize)]
struct Holder {
    namespace: String,
    pod: String,
    endpoints: Vec<Held>,
    /// What the control plane says and the proxy lacks.
    missing: Vec<String>,
    /// What the proxy still has and the control plane does not say.
    stale: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Held {
    address: String,
    state: String,
    rtt_ms: f64,
    in_flight: u32,
}

pub(super) async fn run(args: EndpointsArgs, cx: &mut Context) -> Result<ExitCode, CliError> {
    let mesh = cx.connect().await?;
    let authority = complete(&args.authority, args.namespace.as_deref(), &mesh).await?;
    let request = ext::EndpointsRequest { authority: authority.clone(), from_proxies: args.diff };
    let reply = match mesh.endpoints(request).await {
        Ok(reply) => reply,
        Err(error) => return Err(unknown(&authority, &mesh, error).await),
    };
    let report = Report::new(authority, reply, args.diff);
    match args.output {
        Format::Json => cx.ui.print(&format::json(&report)?)?,
        Format::Yaml => cx.ui.print(&format::yaml(&report)?)?,
        wanted => report.show(wanted == Format::Wide, cx)?,
    }
    let differs = report.in_step == Some(false);
    Ok(if differs { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

impl Report {
    fn new(authority: String, reply: ext::EndpointsReply, diff: bool) -> Self {
        let mut endpoints: Vec<Endpoint> =
            reply.endpoints.into_iter().map(Endpoint::from).collect();
        endpoints.sort_by(|a, b| (&a.pod, &a.address).cmp(&(&b.pod, &b.address)));
        let said: BTreeSet<String> = endpoints.iter().map(|e| e.address.clone()).collect();
        let mut proxies: Vec<Holder> =
            reply.proxies.into_iter().map(|proxy| Holder::new(proxy, &said)).collect();
        proxies.sort_by(|a, b| (&a.namespace, &a.pod).cmp(&(&b.namespace, &b.pod)));
        let in_step = diff.then(|| proxies.iter().all(Holder::is_in_step));
        Self { authority, service: reply.service, endpoints, proxies, in_step }
    }

    fn show(&self, wide: bool, cx: &mut Context) -> Result<(), CliError> {
        if self.endpoints.is_empty() && self.proxies.iter().all(|proxy| proxy.endpoints.is_empty())
        {
            cx.ui.note(&format!(
                "{} has no endpoints: no ready pod matches its selector",
                self.service
            ));
            return Ok(());
        }
        let style = cx.ui.out_style;
        let Some(in_step) = self.in_step else {
            cx.ui.print(&self.table(wide).render(style))?;
            return Ok(());
        };
        cx.ui.print(&self.comparison().render(style))?;
        for line in self.differences() {
            cx.ui.line(&Tone::Bad.paint(style, &line))?;
        }
        let proxies = match self.proxies.len() {
            1 => "1 proxy".to_owned(),
            count => format!("{count} proxies"),
        };
        cx.ui.note(&match (in_step, self.proxies.len()) {
            (_, 0) => format!("no proxy holds endpoints of {} now", self.service),
            (true, 1) => format!("{proxies} holds exactly these"),
            (true, _) => format!("{proxies} hold exactly these"),
            (false, _) => {
                let behind = self.proxies.iter().filter(|proxy| !proxy.is_in_step()).count();
                format!("{behind} of {proxies} differ from the control plane")
            }
        });
        Ok(())
    }

    fn table(&self, wide: bool) -> Table {
        let mut columns =
            vec![Column::left("ADDRESS"), Column::left("POD"), Column::left("NAMESPACE")];
        columns.extend([Column::right("WEIGHT"), Column::left("PROTOCOL")]);
        if wide {
            columns.push(Column::left("IDENTITY"));
        }
        let mut table = Table::new(columns);
        for of in &self.endpoints {
            table.row(
                [
                    Cell::from(of.address.as_str()),
                    Cell::from(of.pod.as_str()),
                    Cell::from(of.namespace.as_str()),
                    Cell::from(of.weight.to_string()),
                    Cell::from(of.hint.as_str()),
                    Cell::from(of.identity.as_str()),
                ]
                .into_iter()
                .take(if wide { 6 } else { 5 })
                .collect::<Vec<_>>(),
            );
        }
        table
    }

    /// Every address that anybody knows, and how the proxies see it.
    fn comparison(&self) -> Table {
        // By number, not by text: .9 is before .10.
        let key = |address: &'_ str| (address.parse::<SocketAddr>().ok(), address.to_owned());
        let mut rows: BTreeMap<_, Vec<&Held>> =
            self.endpoints.iter().map(|of| (key(&of.address), Vec::new())).collect();
        for held in self.proxies.iter().flat_map(|proxy| &proxy.endpoints) {
            rows.entry(key(&held.address)).or_default().push(held);
        }
        let mut table = Table::new([
            Column::left("ADDRESS"),
            Column::left("POD"),
            Column::left("CONTROL"),
            Column::right("PROXIES"),
            Column::right("READY"),
            Column::right("EJECTED"),
            Column::right("IN_FLIGHT"),
            Column::right("RTT"),
        ]);
        for ((_, address), held) in rows {
            let said = self.endpoints.iter().find(|of| of.address == address);
            let in_state = |state: &str| held.iter().filter(|h| h.state == state).count();
            let out = held.len() - in_state("ready");
            // The average of what the proxies measured; one that has not sent anything yet has measured nothing.
            let measured: Vec<f64> = held.iter().map(|h| h.rtt_ms).filter(|ms| *ms > 0.0).collect();
            let rtt = (!measured.is_empty())
                .then(|| measured.iter().sum::<f64>() / measured.len() as f64);
            let complete = held.len() == self.proxies.len();
            table.row([
                Cell::from(address),
                Cell::from(said.map(|of| of.pod.clone()).unwrap_or_default()),
                Cell::from(if said.is_some() { "yes" } else { "no" }),
                Cell::from(format!("{}/{}", held.len(), self.proxies.len())).tone(if complete {
                    Tone::Plain
                } else {
                    Tone::Warn
                }),
                Cell::from(in_state("ready").to_string()),
                Cell::from(out.to_string()).tone(if out > 0 { Tone::Warn } else { Tone::Plain }),
                Cell::from(held.iter().map(|h| u64::from(h.in_flight)).sum::<u64>().to_string()),
                optional(rtt, |ms| units::latency(Duration::from_secs_f64(ms / 1e3))),
            ]);
        }
        table
    }

    fn differences(&self) -> Vec<String> {
        let of = |proxy: &Holder, verb: &str, addresses: &[String]| {
            (!addresses.is_empty()).then(|| {
                format!("{}/{} {verb} {}", proxy.namespace, proxy.pod, addresses.join(", "))
            })
        };
        let each =
            |proxy| [of(proxy, "lacks", &proxy.missing), of(proxy, "still holds", &proxy.stale)];
        self.proxies.iter().flat_map(each).flatten().collect()
    }
}

impl From<ext::EndpointRow> for Endpoint {
    fn from(row: ext::EndpointRow) -> Self {
        Self {
            address: row.address,
            pod: row.pod,
            namespace: row.namespace,
            weight: shared::weight(row.weight),
            hint: row.hint,
            identity: row.identity,
        }
    }
}

impl Holder {
    fn new(proxy: ext::ProxyEndpoints, said: &BTreeSet<String>) -> Self {
        let endpoints: Vec<Held> = proxy
            .endpoints
            .into_iter()
            .map(|e| Held {
                address: e.address,
                state: e.state,
                rtt_ms: e.rtt_ms,
                in_flight: e.in_flight,
            })
            .collect();
        let held: BTreeSet<String> = endpoints.iter().map(|e| e.address.clone()).collect();
        Self {
            namespace: proxy.namespace,
            pod: proxy.pod,
            missing: said.difference(&held).cloned().collect(),
            stale: held.difference(said).cloned().collect(),
            endpoints,
        }
    }

    fn is_in_step(&self) -> bool {
        self.missing.is_empty() && self.stale.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use mesh_api::ext;

    use crate::testing::{FakeMesh, golden, workload};

    fn mesh() -> FakeMesh {
        let row = |address: &str, pod: &str| ext::EndpointRow {
            address: address.into(),
            pod: pod.into(),
            namespace: "shop".into(),
            weight: 10_000,
            hint: "h2".into(),
            identity: "tax.shop".into(),
        };
        let held = |address: &str, state: &str| ext::ProxyEndpoint {
            address: address.into(),
            state: state.into(),
            rtt_ms: 1.5,
            in_flight: 2,
        };
        let mut service = workload("service", "shop", "tax", 0);
        service.ports = vec![ext::Port { name: "http".into(), port: 8080, ..Default::default() }];
        FakeMesh {
            workloads: vec![service],
            endpoints: ext::EndpointsReply {
                service: "Service/shop/tax:8080".into(),
                endpoints: vec![row("127.1.0.4:8080", "tax-2"), row("127.1.0.3:8080", "tax-1")],
                proxies: vec![
                    ext::ProxyEndpoints {
                        pod: "web-1".into(),
                        namespace: "shop".into(),
                        endpoints: vec![
                            held("127.1.0.3:8080", "ready"),
                            held("127.1.0.4:8080", "ejected"),
                        ],
                    },
                    ext::ProxyEndpoints {
                        pod: "web-2".into(),
                        namespace: "shop".into(),
                        endpoints: vec![
                            held("127.1.0.3:8080", "ready"),
                            held("127.1.0.9:8080", "ready"),
                        ],
                    },
                ],
            },
            ..FakeMesh::default()
        }
    }

    #[tokio::test]
    async fn what_was_left_out_is_looked_up() {
        let ran = mesh().run("endpoints tax").await;
        assert_eq!(ran.asked.endpoints.unwrap().authority, "tax.shop:8080");
        golden("endpoints.txt", &ran.out);
        golden("endpoints-wide.txt", &mesh().run("endpoints tax.shop:8080 -o wide").await.out);
        let error = mesh().run("endpoints tex").await.result.unwrap_err();
        assert_eq!(error.message, "there is no service/tex");
    }

    #[tokio::test]
    async fn an_authority_nobody_knows_has_a_next_step() {
        let refusing = |port| FakeMesh { unknown_endpoints: true, ..mesh() }.run(port);
        let error = refusing("endpoints tax.shop:9").await.result.unwrap_err();
        assert_eq!(error.hint.as_deref(), Some("meshctl describe svc/tax, which shows its ports"));
        let error = refusing("endpoints tex.shop:8080").await.result.unwrap_err();
        assert_eq!(error.hint.as_deref(), Some("svc/tax -n shop"));
    }

    #[tokio::test]
    async fn proxies_out_of_step_are_a_finding() {
        let ran = mesh().run("endpoints tax --diff").await;
        assert_eq!(ran.result.unwrap(), std::process::ExitCode::FAILURE);
        golden("endpoints-diff.txt", &ran.out);
        golden("endpoints.json", &mesh().run("endpoints tax --diff -o json").await.out);
        assert_eq!(ran.err, "1 of 2 proxies differ from the control plane\n");
    }
}
