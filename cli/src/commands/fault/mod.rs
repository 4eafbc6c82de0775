//! `meshctl fault`: failures and delays on purpose, which end by themselves.
//!
//! A fault is a BackendTrafficPolicy of its own, with the time of its end in it: the proxies keep to that,
//! whoever forgets it. Here is what people ask for; [`store`] is where it is kept, in a cluster or a local mesh.

mod store;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use k8s_openapi::jiff::Timestamp;
use mesh_api::ext::{self, Selector};
use mesh_control::source::policy::{self, Abort, BackendTrafficPolicySpec, Header, TargetRef};
use mesh_model::route::Fault;
use serde::Serialize;

use self::store::{Held, KIND, Store};
use super::shared;
use crate::completing;
use crate::connect::Mesh;
use crate::context::Context;
use crate::error::CliError;
use crate::local::unique_id;
use crate::output::{Cell, Column, Format, Table, clean, format};
use crate::selector::{Scope, Selectors};
use crate::units;

/// Have requests to a Service, or of a route, fail or take longer, for a while
#[derive(Args, Debug)]
pub struct FaultArgs {
    #[command(subcommand)]
    pub command: FaultCommand,
}

#[derive(Debug, Subcommand)]
pub enum FaultCommand {
    Add(AddArgs),
    Ls(LsArgs),
    Rm(RmArgs),
}

/// Add a fault
#[derive(Args, Debug)]
#[command(after_long_help = "\
The clients' proxies do it, so that only requests of meshed pods are hit, and of a route those that \
come in at a Gateway. It ends when --for is over, whatever becomes of meshctl, the control plane or \
the cluster. What was hit has the reason fault-injected.")]
pub struct AddArgs {
    /// The Service, svc/NAME or svc/NAME:PORT
    #[arg(value_name = "SERVICE", required_unless_present = "to")]
    pub service: Option<String>,
    /// Instead of a Service, a route: httproute/NAME or grpcroute/NAME, with :RULE one of its rules
    #[arg(long, value_name = "ROUTE", conflicts_with = "service")]
    pub to: Option<String>,
    /// Answer with this HTTP status, or grpc:CODE
    #[arg(long, value_name = "STATUS", value_parser = abort, required_unless_present = "delay",
          conflicts_with = "delay")]
    pub abort: Option<Failure>,
    /// Let requests go on only after this time
    #[arg(long, value_name = "TIME", value_parser = delay)]
    pub delay: Option<Duration>,
    /// The share of the requests that are meant, 1 to 100
    #[arg(long, value_name = "PERCENT", default_value = "100",
          value_parser = clap::value_parser!(u32).range(1..=100))]
    pub percent: u32,
    /// Only requests with this header, NAME=VALUE; several are all needed
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = header)]
    pub headers: Vec<(String, String)>,
    /// When it ends by itself
    #[arg(long = "for", value_name = "TIME", default_value = "5m", value_parser = units::parse_duration)]
    pub lasts: Duration,
    /// The namespace of the Service or route
    #[arg(long, short, value_name = "NS", add = completing::namespaces())]
    pub namespace: Option<String>,
}

/// List faults, those of policies that people wrote included
#[derive(Args, Debug)]
pub struct LsArgs {
    /// Only this namespace
    #[arg(long, short, value_name = "NS", add = completing::namespaces())]
    pub namespace: Option<String>,
    /// Output format
    #[arg(long, short, value_name = "FORMAT", default_value = "table",
          value_parser = Format::among(["table", "json", "yaml", "name"]))]
    pub output: Format,
}

/// Remove faults that `fault add` has made
#[derive(Args, Debug)]
pub struct RmArgs {
    /// Their names, as `fault ls` has them
    #[arg(value_name = "NAME", required_unless_present = "all")]
    pub names: Vec<String>,
    /// All of them
    #[arg(long, conflicts_with = "names")]
    pub all: bool,
    /// Only in this namespace
    #[arg(long, short, value_name = "NS", add = completing::namespaces())]
    pub namespace: Option<String>,
}

/// What a request is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    Http(u16),
    Grpc(u16),
}

fn abort(text: &str) -> Result<Failure, String> {
    let number = |text: &str, range: std::ops::RangeInclusive<u16>| {
        text.parse().ok().filter(|number| range.contains(number))
    };
    match text.strip_prefix("grpc:") {
        Some(code) => number(code, 1..=16).map(Failure::Grpc),
        None => number(text, 200..=599).map(Failure::Http),
    }
    .ok_or_else(|| "a status from 200 to 599, or grpc: and a code from 1 to 16".to_owned())
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("NAME=VALUE, such as x-chaos=1")?;
    http::HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| format!("`{name}` is not the name of a header"))?;
    Ok((name.to_owned(), value.to_owned()))
}

fn delay(text: &str) -> Result<Duration, String> {
    let delay = units::parse_duration(text)?;
    match delay {
        Duration::ZERO => Err("it is nothing".to_owned()),
        delay if delay > Fault::MAX_DELAY => Err("it is longer than an hour".to_owned()),
        delay => Ok(delay),
    }
}

/// As Gateway API writes durations, which takes five digits of a unit.
fn written(delay: Duration) -> String {
    format!("{}s{}ms", delay.as_secs(), delay.subsec_millis().max(u32::from(delay.as_secs() == 0)))
}

pub(super) async fn run(args: FaultArgs, cx: &mut Context) -> Result<ExitCode, CliError> {
    match args.command {
        FaultCommand::Add(args) => add(args, cx).await,
        FaultCommand::Ls(args) => ls(args, cx).await,
        FaultCommand::Rm(args) => rm(args, cx).await,
    }
}

async fn add(args: AddArgs, cx: &mut Context) -> Result<ExitCode, CliError> {
    let mesh = cx.connect().await?;
    let Target { namespace, of } = target(&args, &mesh).await?;
    let mut store = Store::of(&mesh.place).await?;
    let now = Timestamp::now();
    let until = Timestamp::from_second(
        now.as_second()
            .saturating_add(i64::try_from(args.lasts.as_secs().max(1)).unwrap_or(i64::MAX)),
    );
    let until = until.map_err(|_| CliError::usage("--for: that is longer than there is time"))?;
    let header = |(name, value): &(String, String)| Header {
        name: name.clone(),
        value: value.clone(),
        r#type: None,
    };
    let fault = policy::Fault {
        abort: args.abort.map(|failure| match failure {
            Failure::Http(status) => Abort { http_status: Some(status), grpc_code: None },
            Failure::Grpc(code) => Abort { http_status: None, grpc_code: Some(code) },
        }),
        delay: args.delay.map(written),
        percent: Some(args.percent),
        headers: args.headers.iter().map(header).collect(),
        until: Some(until.to_string()),
    };
    let spec = BackendTrafficPolicySpec {
        target_ref: of.clone(),
        faults: vec![fault],
        ..BackendTrafficPolicySpec::default()
    };
    let short: String = of.name.iter().flat_map(|name| name.chars()).take(40).collect();
    let held =
        Held { namespace, name: format!("fault-{short}-{}", &unique_id()[..8]), ours: true, spec };
    is_about_something(&held, &mesh).await?;
    store.create(&held, cx).await?;
    // The fault is there, whatever becomes of those before it.
    if let Err(error) = sweep(&mut store, &held.namespace, now, cx).await {
        cx.ui.note(&format!("faults that are over stay in {}: {error}", clean(&held.namespace)));
    }
    mesh.refresh().await?;
    cx.ui.line(&format!("{} added, until {until}", clean(&held.name)))?;
    Ok(ExitCode::SUCCESS)
}

/// A misspelt port or rule would be hit by nobody.
async fn is_about_something(held: &Held, mesh: &Mesh) -> Result<(), CliError> {
    let manifest = ext::Manifest { name: held.name.clone(), text: held.object().to_string() };
    let request = ext::AnalyzeRequest {
        namespace: held.namespace.clone(),
        manifests: vec![manifest],
        selector: None,
    };
    let own = format!("{KIND}/{}/{}", held.namespace, held.name);
    let all = mesh.analyze(request).await?.diagnoses;
    let wrong = all.into_iter().find(|of| of.object == own && of.severity == "error");
    wrong.map_or(Ok(()), |of| Err(CliError::usage(of.message)))
}

/// Removes what is over, so that nobody finds it years later.
async fn sweep(
    store: &mut Store<'_>,
    namespace: &str,
    now: Timestamp,
    cx: &mut Context,
) -> Result<(), CliError> {
    for held in store.list(Some(namespace)).await?.iter().filter(|held| held.is_over(now)) {
        store.delete(held, cx).await?;
    }
    Ok(())
}

/// What requests are meant, and the namespace that it is in.
struct Target {
    namespace: String,
    of: TargetRef,
}

/// The one Service or route that is meant.
async fn target(args: &AddArgs, mesh: &Mesh) -> Result<Target, CliError> {
    let scope = Scope { namespace: args.namespace.clone(), ..Scope::default() };
    let (selector, what, mut of) = match (&args.to, &args.service) {
        (Some(route), _) => {
            let (selector, of) = route_of(route, &scope)?;
            (selector, "route", of)
        }
        (None, service) => {
            let (selector, of) = service_of(service.as_deref().unwrap_or_default(), &scope)?;
            (selector, "Service", of)
        }
    };
    let found = mesh.resources(selector.clone()).await?;
    let mut found = found.into_iter().filter_map(|workload| workload.r#ref);
    match (found.next(), found.next()) {
        (None, _) => Err(shared::no_such(mesh, &selector).await),
        (Some(only), None) => {
            of.name = Some(only.name);
            Ok(Target { namespace: only.namespace, of })
        }
        (Some(_), Some(_)) => {
            Err(CliError::usage(format!("there is more than one {what} {}", selector.name))
                .hint("-n, the namespace that is meant"))
        }
    }
}

fn service_of(text: &str, scope: &Scope) -> Result<(Selector, TargetRef), CliError> {
    let (word, port) = match text.rsplit_once(':') {
        Some((word, port)) => {
            let port = match port.parse::<u16>() {
                Ok(number) => policy::Port::Number(number.into()),
                Err(_) => policy::Port::Name(port.to_owned()),
            };
            (word, Some(port))
        }
        None => (text, None),
    };
    let selector = Selectors::parse_one(word, scope)?;
    if selector.kind != "service" || selector.name.is_empty() {
        return Err(CliError::usage(format!("{word} is not a Service"))
            .hint("svc/NAME; --to httproute/NAME for the requests of a route"));
    }
    Ok((selector, TargetRef { kind: "Service".into(), port, ..TargetRef::default() }))
}

/// Routes have no pods, so that other commands do not take them for resources.
fn route_of(text: &str, scope: &Scope) -> Result<(Selector, TargetRef), CliError> {
    let no_route = || {
        CliError::usage(format!("--to: \"{text}\" does not name a route"))
            .hint("httproute/NAME or grpcroute/NAME, with :RULE one of its rules")
    };
    let (kind, name) = text.split_once('/').ok_or_else(no_route)?;
    let kind = match kind.to_ascii_lowercase().as_str() {
        "httproute" | "httproutes" => "HTTPRoute",
        "grpcroute" | "grpcroutes" => "GRPCRoute",
        _ => return Err(no_route()),
    };
    let (name, rule) = match name.split_once(':') {
        Some((name, rule)) => (name, Some(rule.to_owned())),
        None => (name, None),
    };
    if name.is_empty() || rule.as_deref() == Some("") {
        return Err(no_route());
    }
    let selector = Selector {
        kind: kind.to_ascii_lowercase(),
        name: name.to_owned(),
        namespace: scope.namespace.clone().unwrap_or_default(),
        labels: String::new(),
    };
    let of = TargetRef { kind: kind.into(), section_name: rule, ..TargetRef::default() };
    Ok((selector, of))
}

/// A line of `fault ls`.
#[derive(Debug, Serialize)]
struct Row {
    namespace: String,
    name: String,
    /// `tax:8080`, or `HTTPRoute/tax:RULE`.
    target: String,
    fault: String,
    percent: u32,
    headers: Vec<String>,
    /// RFC 3339; null without an end.
    until: Option<String>,
    over: bool,
}

impl Row {
    fn new(held: &Held, fault: &policy::Fault, now: Timestamp) -> Self {
        let target = &held.spec.target_ref;
        let part = match (&target.port, &target.section_name) {
            (Some(policy::Port::Number(number)), _) => format!(":{number}"),
            (Some(policy::Port::Name(name)), _) | (None, Some(name)) => format!(":{name}"),
            (None, None) => String::new(),
        };
        let kind = match target.kind.as_str() {
            "Service" => String::new(),
            kind => format!("{kind}/"),
        };
        let target = kind + target.name.as_deref().unwrap_or_default() + &part;
        let what = match (&fault.abort, &fault.delay) {
            (Some(Abort { http_status: Some(status), .. }), _) => format!("abort {status}"),
            (Some(Abort { grpc_code: Some(code), .. }), _) => format!("abort grpc:{code}"),
            (_, Some(delay)) => format!("delay {delay}"),
            _ => String::new(),
        };
        Self {
            namespace: held.namespace.clone(),
            name: held.name.clone(),
            target,
            fault: what,
            percent: fault.percent.unwrap_or(100),
            headers: fault.headers.iter().map(|h| format!("{}={}", h.name, h.value)).collect(),
            until: fault.until.clone(),
            over: store::is_over(fault, now),
        }
    }
}

async fn ls(args: LsArgs, cx: &mut Context) -> Result<ExitCode, CliError> {
    let place = cx.place().await?;
    let mut store = Store::of(&place).await?;
    let now = Timestamp::now();
    let all = store.list(args.namespace.as_deref()).await?;
    let rows: Vec<Row> = all
        .iter()
        .flat_map(|held| held.spec.faults.iter().map(move |fault| Row::new(held, fault, now)))
        .collect();
    if rows.is_empty() && matches!(args.output, Format::Table) {
        cx.ui.note("there are no faults");
        return Ok(ExitCode::SUCCESS);
    }
    let text = match args.output {
        Format::Json => format::json(&serde_json::json!({ "faults": rows }))?,
        Format::Yaml => format::yaml(&serde_json::json!({ "faults": rows }))?,
        Format::Name => rows.iter().map(|row| format!("{}\n", clean(&row.name))).collect(),
        _ => table(&rows).render(cx.ui.out_style),
    };
    cx.ui.print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new(vec![
        Column::left("NAMESPACE"),
        Column::left("NAME"),
        Column::left("TARGET"),
        Column::left("FAULT"),
        Column::right("PERCENT"),
        Column::left("HEADERS"),
        Column::left("UNTIL"),
    ]);
    for row in rows {
        let until = match (&row.until, row.over) {
            (None, _) => Cell::missing(),
            (Some(until), false) => Cell::from(clean(until)),
            (Some(_), true) => Cell::from("over"),
        };
        let headers = if row.headers.is_empty() {
            Cell::missing()
        } else {
            Cell::from(clean(&row.headers.join(", ")))
        };
        table.row(vec![
            Cell::from(clean(&row.namespace)),
            Cell::from(clean(&row.name)),
            Cell::from(clean(&row.target)),
            Cell::from(clean(&row.fault)),
            Cell::from(row.percent.to_string()),
            headers,
            until,
        ]);
    }
    table
}

async fn rm(args: RmArgs, cx: &mut Context) -> Result<ExitCode, CliError> {
    let mesh = cx.connect().await?;
    let mut store = Store::of(&mesh.place).await?;
    let all = store.list(args.namespace.as_deref()).await?;
    let (ours, theirs): (Vec<_>, Vec<_>) = all.into_iter().partition(|held| held.ours);
    for name in &args.names {
        let has = |of: &[Held]| of.iter().any(|held| held.name == *name);
        if !has(&ours) {
            return Err(none_of_ours(name, has(&theirs)));
        }
    }
    for held in ours.iter().filter(|held| args.all || args.names.contains(&held.name)) {
        store.delete(held, cx).await?;
        cx.ui.line(&format!("{} removed", clean(&held.name)))?;
    }
    mesh.refresh().await?;
    Ok(ExitCode::SUCCESS)
}

fn none_of_ours(name: &str, written: bool) -> CliError {
    if written {
        CliError::failed(format!("{name} is a BackendTrafficPolicy that somebody wrote"))
            .hint("remove it where it comes from")
    } else {
        CliError::failed(format!("there is no fault {name}"))
            .hint("meshctl fault ls, which has their names")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_are_written_as_policies_have_them() {
        for (text, expected) in
            [("200ms", "0s200ms"), ("2m", "120s0ms"), ("1h", "3600s0ms"), ("1s500ms", "1s500ms")]
        {
            let of = delay(text).unwrap();
            assert_eq!(written(of), expected);
            let read: gateway_api::Duration = written(of).parse().unwrap();
            assert_eq!(read.as_millis(), of.as_millis());
        }
        assert!(delay("2h").is_err() && delay("0s").is_err());
    }

    #[test]
    fn services_and_routes_are_read() {
        let scope = Scope { namespace: Some("shop".into()), ..Scope::default() };
        let (selector, of) = route_of("HTTPRoute/tax:slow", &scope).unwrap();
        assert_eq!((selector.kind.as_str(), selector.name.as_str()), ("httproute", "tax"));
        assert_eq!((of.kind.as_str(), of.section_name.as_deref()), ("HTTPRoute", Some("slow")));
        assert_eq!(route_of("grpcroute/tax", &scope).unwrap().1.kind, "GRPCRoute");
        for bad in ["tax", "svc/tax", "tcproute/tax", "httproute/", "httproute/tax:"] {
            assert!(route_of(bad, &scope).is_err(), "{bad}");
        }
        let (selector, of) = service_of("svc/tax:8080", &scope).unwrap();
        assert_eq!(
            (selector.namespace.as_str(), of.port),
            ("shop", Some(policy::Port::Number(8080)))
        );
        assert!(service_of("httproute/tax", &scope).is_err());
    }

    #[test]
    fn aborts_are_read() {
        assert_eq!(abort("503"), Ok(Failure::Http(503)));
        assert_eq!(abort("grpc:14"), Ok(Failure::Grpc(14)));
        for bad in ["99", "600", "grpc:0", "grpc:17", "grpc", "x", ""] {
            assert!(abort(bad).is_err(), "{bad}");
        }
        assert_eq!(header("x-a=1=2"), Ok(("x-a".into(), "1=2".into())));
        assert!(header("x-a").is_err());
        assert!(header("x a=1").is_err());
    }
}
