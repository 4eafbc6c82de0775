//! `meshctl explain`: what an id means, what would become of a request, what became of one.
//!
//! The meaning of checks, reason codes and findings works offline: the text is `docs/troubleshooting.md`.

mod notable;
mod request;
mod what_if;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use self::request::Asked;
pub(super) use self::what_if::manifests;
use crate::completing;
use crate::context::Context;
use crate::error::CliError;
use crate::output::{Cell, Column, Format, Table};
use crate::selector;

const DOCUMENT: &str = include_str!("../../../../docs/troubleshooting.md");

/// Explain an id, what became of a request, or what would, and why
#[derive(Args, Debug)]
#[command(after_long_help = HELP)]
pub struct ExplainArgs {
    /// A check, reason code or finding (no-endpoints, MESH101), or the x-mesh-request-id of a response; without,
    /// all but requests are listed
    #[arg(value_name = "ID", add = completing::explainable(), conflicts_with_all = ["what_if", "last_errors"])]
    pub id: Option<String>,
    /// What the proxies of this remember: requests that failed, were denied, retried or slow
    #[arg(long, value_name = "RESOURCE", add = completing::resources(), conflicts_with = "what_if")]
    pub last_errors: Option<String>,
    /// At most so many, the latest
    #[arg(long, value_name = "N", default_value = "10", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,
    /// What would become of this request: 'GET /cart -H x-beta:1'
    #[arg(long, value_name = "REQUEST", value_parser = Asked::parse, requires_all = ["from", "to"])]
    pub what_if: Option<Asked>,
    /// Who asks: TYPE/NAME
    #[arg(long, value_name = "CLIENT", add = completing::resources(), requires = "what_if")]
    pub from: Option<String>,
    /// Whom: svc/NAME, NAME or NAME.NAMESPACE, with :PORT if it has several; egress/HOST:PORT outside of the mesh
    #[arg(long, value_name = "SERVICE", add = completing::authorities(), requires = "what_if")]
    pub to: Option<String>,
    /// As if these manifests were applied: files, folders, or - for standard input
    #[arg(long = "filename", short, value_name = "FILE", requires = "what_if")]
    pub files: Vec<PathBuf>,
    /// The namespace of what is named, unless it names one
    #[arg(long, short, value_name = "NS", add = completing::namespaces())]
    pub namespace: Option<String>,
    /// Output format
    #[arg(long, short, value_name = "FORMAT", default_value = "table",
          value_parser = Format::among(["table", "json", "yaml"]))]
    pub output: Format,
}

const HELP: &str = "\
meshctl explain no-endpoints
meshctl explain --last-errors deploy/web
meshctl explain --what-if 'GET /cart -H x-beta:1' --from deploy/web --to svc/checkout -f new-route.yaml
meshctl explain --what-if 'GET /' --from deploy/web --to egress/example.com:443

Each proxy remembers its last 256 requests that the mesh failed or denied, that were retried, or that had no \
answer for a second. Responses that the mesh makes name theirs in x-mesh-request-id. Of a Service, those are \
shown that its clients sent, too.

What would become of a request is asked of the functions that the proxies use: which route, rule and match \
wins and why the others do not, what its filters do, where it goes by which shares, and whether the server \
lets it in. Nothing is sent, and files are applied for the answer only. Exit code 0 if every endpoint that \
the request may reach lets it in, 1 if not or if no route takes it.

JSON and YAML of requests that were: {requests: [{id, started_unix_ms, direction, pod, namespace, peer, source, \
method, authority, path, notable, status, grpc_status, reason, message, parent, route, policy, identity, \
duration_ms, tries: [{backend, endpoint, status, grpc_status, reason, duration_ms}]}], unreachable}.

JSON and YAML of one that is not: {request, service, client_namespace, protocol, protocol_why, notes, matches: [{route, rule, \
rule_name, match, matches, wins, why}], aside: [{route, why}], filters, answer: {status, why, location}, \
limits, backends: [{backend, share, filters, answer, balancer, breaker, method, authority, path, endpoints: \
[{address, pod, namespace, identity, allowed, decided, why, limits}]}]}.";

/// One `### id` of the document and the text below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Topic {
    pub(crate) id: &'static str,
    text: &'static str,
}

pub(super) async fn run(args: ExplainArgs, cx: &mut Context) -> Result<ExitCode, CliError> {
    if args.what_if.is_some() {
        return what_if::run(args, cx).await;
    }
    if args.last_errors.is_some() || args.id.as_deref().is_some_and(notable::is_id) {
        return notable::run(args, cx).await;
    }
    let style = cx.ui.out_style;
    let Some(id) = &args.id else {
        let mut table = Table::new([Column::left("ID"), Column::left("MEANING")]);
        for topic in topics() {
            table.row([Cell::from(topic.id), Cell::from(topic.meaning())]);
        }
        cx.ui.print(&table.render(style))?;
        return Ok(ExitCode::SUCCESS);
    };
    let topic =
        topics().find(|topic| topic.id.eq_ignore_ascii_case(id)).ok_or_else(|| unknown(id))?;
    cx.ui.print(&format!("{}\n\n{}\n", style.bold(topic.id), topic.text))?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn topics() -> impl Iterator<Item = Topic> {
    DOCUMENT.split("\n### ").skip(1).map(|section| {
        let (id, rest) = section.split_once('\n').unwrap_or((section, ""));
        // The last topic of a chapter ends where the next chapter begins.
        let text = rest.split("\n## ").next().unwrap_or_default();
        Topic { id: id.trim(), text: text.trim() }
    })
}

impl Topic {
    /// The first sentence.
    fn meaning(&self) -> String {
        let paragraph = self.text.split("\n\n").next().unwrap_or_default().replace('\n', " ");
        let end = paragraph.find(". ").map_or(paragraph.len(), |at| at + 1);
        paragraph[..end].trim_end_matches('.').to_owned()
    }
}

fn unknown(id: &str) -> CliError {
    let nearest = topics().min_by_key(|topic| selector::distance(id, topic.id));
    CliError::usage(format!("there is no check, reason or finding \"{id}\""))
        .hint(nearest.map_or_else(String::new, |topic| format!("meshctl explain {}", topic.id)))
}

#[cfg(test)]
mod tests {
    use mesh_control::analyze::Code;
    use mesh_model::Reason;

    use super::*;
    use crate::commands::check::catalog::CATALOG;
    use crate::testing::run_alone;

    #[test]
    fn every_reason_check_and_finding_has_its_heading_and_no_other_has() {
        let documented: Vec<&str> = topics().map(|topic| topic.id).collect();
        let reasons = Reason::ALL.iter().map(|reason| reason.code());
        let checks = CATALOG.iter().map(|check| check.id);
        let codes = Code::ALL.iter().map(|code| code.as_str());
        let known: Vec<&str> = reasons.chain(checks).chain(codes).collect();
        assert_eq!(documented, known);
    }

    #[test]
    fn every_topic_says_what_to_do() {
        for topic in topics() {
            assert!(topic.meaning().len() > 10, "{}: no first sentence", topic.id);
            assert!(topic.text.contains("\n\n"), "{}: no paragraph on what to do", topic.id);
        }
    }

    #[tokio::test]
    async fn a_topic_is_shown_without_a_mesh() {
        let ran = run_alone("explain no-endpoints").await;
        assert!(ran.out.starts_with("no-endpoints\n\n"), "{}", ran.out);
        assert!(!ran.out.contains("###"), "{}", ran.out);
        let error = run_alone("explain no-endpoint").await.result.unwrap_err();
        assert_eq!(error.hint.as_deref(), Some("meshctl explain no-endpoints"));
    }

    #[tokio::test]
    async fn all_of_them_fit_a_terminal() {
        let ran = run_alone("explain").await;
        assert!(ran.out.lines().count() > CATALOG.len());
        for line in ran.out.lines() {
            assert!(line.chars().count() <= 80, "{line} is {} wide", line.chars().count());
        }
    }
}
