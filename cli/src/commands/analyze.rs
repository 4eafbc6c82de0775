//! `meshctl analyze`: what is wrong with the objects of a mesh or of files, by stable codes.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use mesh_api::ext;
use mesh_control::analyze::{Diagnosis, Level, analyze_over};
use mesh_control::index::Objects;
use mesh_control::index::identity::MeshNames;
use mesh_control::overlay::Overlay;
use serde::Serialize;

use super::explain::manifests;
use crate::context::Context;
use crate::error::CliError;
use crate::output::table::Tone;
use crate::output::{Format, Style, clean, format};
use crate::units;

/// Find what is wrong with routes, policies, labels and annotations
#[derive(Args, Debug)]
#[command(after_long_help = HELP)]
pub struct AnalyzeArgs {
    /// What these manifests would bring about if they were applied: files, folders, or - for standard input
    #[arg(long = "filename", short, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Look at the files only, without a mesh
    #[arg(long, requires = "files")]
    pub offline: bool,
    /// Only this namespace
    #[arg(long, short, value_name = "NS", conflicts_with = "all_namespaces",
          add = crate::completing::namespaces())]
    pub namespace: Option<String>,
    /// All namespaces, which is the default
    #[arg(long, short = 'A')]
    pub all_namespaces: bool,
    /// The least severe finding that makes the exit code 1
    #[arg(long, value_enum, value_name = "SEVERITY", default_value = "error")]
    pub fail_on: FailOn,
    /// The least severe finding to show
    #[arg(long, value_enum, value_name = "SEVERITY", default_value = "warning")]
    pub show: FailOn,
    /// Output format
    #[arg(long, short, value_name = "FORMAT", default_value = "table",
          value_parser = Format::among(["table", "json"]))]
    pub output: Format,
}

/// From which severity on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum FailOn {
    Error,
    Warning,
    Info,
}

impl FailOn {
    /// What makes the exit code 1 is shown.
    fn or_less(self, other: Self) -> Self {
        self.max(other)
    }

    fn means(self, severity: &str) -> bool {
        match severity {
            "error" => true,
            "warning" => self >= Self::Warning,
            _ => self == Self::Info,
        }
    }
}

const HELP: &str = "\
meshctl analyze -n shop
meshctl analyze --offline -f manifests/ --fail-on warning

Every finding has a code; meshctl explain CODE says more. Exit code 1 if there is one that --fail-on means. \
Remarks that are worth knowing and nothing wrong (severity info) are counted, and shown with --show info.

With --offline the files are all there is. A Service that they do not have is an error if they have others of \
its namespace, and a warning if they have none.

JSON: {counts: {errors, warnings, infos}, findings: [{code, severity, object, field, file, line, message, \
remedy}]}.";

/// The document of `-o json`.
#[derive(Debug, Serialize)]
struct Report {
    counts: Counts,
    findings: Vec<Finding>,
}

#[derive(Debug, Default, Serialize)]
struct Counts {
    errors: usize,
    warnings: usize,
    infos: usize,
}

/// As in `-o json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    code: String,
    severity: String,
    object: String,
    field: Option<String>,
    file: Option<String>,
    line: Option<u32>,
    message: String,
    remedy: String,
}

pub(super) async fn run(args: AnalyzeArgs, cx: &mut Context) -> Result<ExitCode, CliError> {
    let manifests = manifests(&args.files)?;
    let namespace = args.namespace.clone().unwrap_or_default();
    let (findings, looked_at) = if args.offline {
        offline(&manifests, &namespace)?
    } else {
        let mesh = cx.connect().await?;
        let request = ext::AnalyzeRequest { namespace, manifests, selector: None };
        let reply = mesh.analyze(request).await?;
        let objects = units::plural(reply.objects as usize, "object");
        (reply.diagnoses.into_iter().map(Finding::from).collect(), objects)
    };
    let mut report = Report::new(findings);
    report.findings.retain(|finding| args.show.or_less(args.fail_on).means(&finding.severity));
    cx.ui.print(&match args.output {
        Format::Json => format::json(&report)?,
        _ => report.text(&looked_at, cx.ui.out_style),
    })?;
    Ok(if report.fails(args.fail_on) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Asks the functions that the control plane asks.
fn offline(
    manifests: &[ext::Manifest],
    namespace: &str,
) -> Result<(Vec<Finding>, String), CliError> {
    let texts = manifests.iter().map(|manifest| (manifest.name.as_str(), manifest.text.as_str()));
    let overlay = Overlay::read(texts, &MeshNames::default())
        .map_err(|error| CliError::failed(error.to_string()))?;
    let mut found = analyze_over(&Objects::default(), &[], &overlay, false);
    let of = |d: &Diagnosis| d.object.split('/').nth(1) == Some(namespace);
    found.retain(|diagnosis| namespace.is_empty() || of(diagnosis));
    let objects = format!("{} in files", units::plural(overlay.written.len(), "object"));
    Ok((found.into_iter().map(Finding::from).collect(), objects))
}

impl Report {
    fn new(findings: Vec<Finding>) -> Self {
        let count = |level: Level| {
            findings.iter().filter(|finding| finding.severity == level.as_str()).count()
        };
        let counts = Counts {
            errors: count(Level::Error),
            warnings: count(Level::Warning),
            infos: count(Level::Info),
        };
        Self { counts, findings }
    }

    fn fails(&self, on: FailOn) -> bool {
        let Counts { errors, warnings, infos } = self.counts;
        match on {
            FailOn::Error => errors > 0,
            FailOn::Warning => errors + warnings > 0,
            FailOn::Info => errors + warnings + infos > 0,
        }
    }

    fn text(&self, looked_at: &str, style: Style) -> String {
        let mut text: String = self.findings.iter().map(|of| of.text(style) + "\n").collect();
        let Counts { errors, warnings, infos } = self.counts;
        let hidden = infos > 0 && !self.findings.iter().any(|of| of.severity == "info");
        let hint = if hidden { ", which --show info shows" } else { "" };
        let infos = match infos {
            0 => String::new(),
            n => format!(", {}{hint}", units::plural(n, "remark")),
        };
        if errors + warnings == 0 {
            let nothing = Tone::Good.paint(style, "nothing wrong");
            return text + &format!("{nothing} in {looked_at}{infos}\n");
        }
        let (errors, warnings) =
            (units::plural(errors, "error"), units::plural(warnings, "warning"));
        text += &format!("{errors}, {warnings} in {looked_at}{infos}\n");
        text
    }
}

impl Finding {
    /// Three lines: what, where, and what to do.
    pub(crate) fn text(&self, style: Style) -> String {
        let tone = match self.severity.as_str() {
            "error" => Tone::Bad,
            "warning" => Tone::Warn,
            _ => Tone::Faint,
        };
        let head = format!("{} {}", self.code, self.severity);
        let place = match (&self.file, self.line) {
            (Some(file), Some(line)) => format!("  {file}:{line}"),
            (Some(file), None) => format!("  {file}"),
            _ => String::new(),
        };
        let field = self.field.as_ref().map(|field| format!("{field}: ")).unwrap_or_default();
        format!(
            "{} {}{}\n  {}{}\n  {}\n",
            tone.paint(style, &head),
            style.bold(&clean(&self.object)),
            style.dim(&clean(&place)),
            clean(&field),
            clean(&self.message),
            style.dim(&format!("→ {}", clean(&self.remedy))),
        )
    }
}

fn given(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

impl From<ext::Diagnosis> for Finding {
    fn from(of: ext::Diagnosis) -> Self {
        Self {
            code: of.code,
            severity: of.severity,
            object: of.object,
            field: given(of.field),
            file: given(of.file),
            line: Some(of.line).filter(|line| *line > 0),
            message: of.message,
            remedy: of.remedy,
        }
    }
}

impl From<Diagnosis> for Finding {
    fn from(of: Diagnosis) -> Self {
        Self {
            code: of.code.to_string(),
            severity: of.level.as_str().to_owned(),
            object: of.object,
            field: given(of.field),
            file: of.file.map(|file| file.display().to_string()),
            line: Some(of.line).filter(|line| *line > 0),
            message: of.message,
            remedy: of.code.remedy().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::ExitCode;

    use mesh_api::ext;

    use crate::testing::{FakeMesh, golden, run_alone};

    #[tokio::test]
    async fn the_sample_application_is_clean() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/demo");
        let ran = run_alone(&format!("analyze --offline -f {folder} --fail-on warning")).await;
        assert_eq!(ran.result.unwrap(), ExitCode::SUCCESS, "{}", ran.out);
        assert!(ran.out.starts_with("nothing wrong in "), "{}", ran.out);
    }

    #[tokio::test]
    async fn files_are_looked_at_without_a_mesh() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("route.yaml");
        let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata:\n  name: r\n\
                     spec:\n  parentRefs:\n    - {group: '', kind: Service, name: taxi}\n  rules:\n    \
                     - backendRefs:\n        - {name: taxi, port: 80, weight: 0}\n";
        std::fs::write(&file, route).unwrap();
        let line = format!("analyze --offline -f {}", file.display());
        let ran = run_alone(&line).await;
        assert_eq!(ran.result.unwrap(), ExitCode::FAILURE, "all weights are zero");
        golden("analyze-offline.txt", &ran.out.replace(&file.display().to_string(), "route.yaml"));
        let ran = run_alone(&format!("{line} -n other")).await;
        assert_eq!(ran.result.unwrap(), ExitCode::SUCCESS);
    }

    #[tokio::test]
    async fn a_mesh_is_asked_and_severities_decide() {
        let diagnosis = ext::Diagnosis {
            code: "MESH104".into(),
            severity: "warning".into(),
            object: "HTTPRoute/shop/tax".into(),
            field: "spec.rules[1]".into(),
            message: "no request is left for it: rule 0 takes them all".into(),
            remedy: "remove the rule".into(),
            ..Default::default()
        };
        let analysis = ext::AnalyzeReply { diagnoses: vec![diagnosis], objects: 12 };
        let mesh = FakeMesh { analysis, ..FakeMesh::default() };
        let ran = mesh.clone().run("analyze -n shop").await;
        golden("analyze.txt", &ran.out);
        assert_eq!(ran.result.unwrap(), ExitCode::SUCCESS);
        assert_eq!(ran.asked.analyze.unwrap().namespace, "shop");
        golden("analyze.json", &mesh.clone().run("analyze -o json").await.out);
        let ran = mesh.run("analyze --fail-on warning").await;
        assert_eq!(ran.result.unwrap(), ExitCode::FAILURE);
    }
}
