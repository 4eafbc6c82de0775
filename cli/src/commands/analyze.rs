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
    /// Output format
    #[arg(long, short, value_name = "FORMAT", default_value = "table",
          value_parser = Format::among(["table", "json"]))]
    pub output: Format,
}

/// What makes the exit code 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FailOn {
    Error,
    Warning,
    Info,
}

const HELP: &str = "\
meshctl analyze -n shop
meshctl analyze --offline -f manifests/ --fail-on warning

Every finding has a code; meshctl explain CODE says more. Exit code 1 if there is one that --fail-on means.

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
        let objects = format!("{} objects", reply.objects);
        (reply.diagnoses.into_iter().map(Finding::from).collect(), objects)
    };
    let report = Report::new(findings);
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
    let objects = format!("{} objects in files", overlay.written.len());
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
        text += &if errors + warnings + infos == 0 {
            format!("{} in {looked_at}\n", Tone::Good.paint(style, "nothing wrong"))
        } else {
            let plural = |n: usize, of: &str| format!("{n} {of}{}", if n == 1 { "" } else { "s" });
            format!(
                "{}, {}, {} in {looked_at}\n",
                plural(errors, "error"),
                plural(warnings, "warning"),
                plural(infos, "info")
            )
        };
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
