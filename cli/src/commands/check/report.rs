//! What the checks found: for people by category, for programs as JSON and JUnit.

use serde::Serialize;

use super::FailOn;
use super::catalog::{Check, Outcome, Severity};
use super::runner::Done;
use crate::error::CliError;
use crate::output::table::Tone;
use crate::output::{Style, clean, format};

/// The document of `-o json`.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    version: &'static str,
    pub(super) success: bool,
    counts: Counts,
    checks: Vec<Entry>,
}

#[derive(Debug, Default, Serialize)]
struct Counts {
    passed: usize,
    warnings: usize,
    errors: usize,
    skipped: usize,
}

#[derive(Debug, Serialize)]
struct Entry {
    id: &'static str,
    category: &'static str,
    severity: &'static str,
    status: Status,
    message: String,
    objects: Vec<String>,
    /// Where more about it stands.
    hint: Option<String>,
    /// What to do.
    remedy: Option<String>,
    #[serde(skip)]
    claim: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Passed,
    Warning,
    Error,
    Skipped,
}

impl Report {
    pub(super) fn new(done: Vec<Done>, fail_on: FailOn) -> Self {
        let checks: Vec<Entry> =
            done.into_iter().map(|done| Entry::new(done.check, done.outcome)).collect();
        let count = |status| checks.iter().filter(|entry| entry.status == status).count();
        let counts = Counts {
            passed: count(Status::Passed),
            warnings: count(Status::Warning),
            errors: count(Status::Error),
            skipped: count(Status::Skipped),
        };
        let success = counts.errors == 0 && (fail_on == FailOn::Error || counts.warnings == 0);
        Self { version: env!("CARGO_PKG_VERSION"), success, counts, checks }
    }

    pub(super) fn json(&self) -> Result<String, CliError> {
        format::json(self)
    }

    /// Everything, category by category.
    pub(super) fn text(&self, style: Style) -> String {
        let mut text = String::new();
        let mut category = "";
        for entry in &self.checks {
            if entry.category != category {
                let gap = if category.is_empty() { "" } else { "\n" };
                category = entry.category;
                text += &format!("{gap}{}\n{}\n", style.bold(category), "-".repeat(category.len()));
            }
            text += &entry.lines(style);
        }
        text + "\n" + &self.verdict(style)
    }

    /// The findings, and the verdict.
    pub(super) fn short(&self, style: Style) -> String {
        let findings = self.checks.iter().filter(|entry| entry.is_finding());
        let lines: String = findings.map(|entry| entry.lines(style)).collect();
        let gap = if lines.is_empty() { "" } else { "\n" };
        lines + gap + &self.verdict(style)
    }

    fn verdict(&self, style: Style) -> String {
        let mark = if self.success { style.green("√") } else { style.red("×") };
        format!("Status check results are {mark}\n")
    }

    /// A suite per category, as CI systems read it.
    pub(super) fn junit(&self) -> String {
        let findings = self.counts.errors + self.counts.warnings;
        let mut text = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"meshctl check\" tests=\"{}\" \
             failures=\"{findings}\">\n",
            self.checks.len()
        );
        for suite in self.checks.chunk_by(|a, b| a.category == b.category) {
            let of =
                |wanted: fn(&Entry) -> bool| suite.iter().filter(|entry| wanted(entry)).count();
            text += &format!(
                "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" skipped=\"{}\">\n",
                suite[0].category,
                suite.len(),
                of(Entry::is_finding),
                of(|entry| entry.status == Status::Skipped),
            );
            suite.iter().for_each(|entry| text += &entry.junit());
            text += "  </testsuite>\n";
        }
        text + "</testsuites>\n"
    }
}

impl Entry {
    fn new(check: &'static Check, outcome: Outcome) -> Self {
        let severity = match check.severity {
            Severity::Warning => ("warning", Status::Warning),
            Severity::Error => ("error", Status::Error),
        };
        let (status, message, objects, remedy) = match outcome {
            Outcome::Passed(detail) if detail.is_empty() => {
                (Status::Passed, check.claim.to_owned(), Vec::new(), None)
            }
            Outcome::Passed(detail) => {
                (Status::Passed, format!("{} ({detail})", check.claim), Vec::new(), None)
            }
            Outcome::Skipped(why) => (Status::Skipped, why, Vec::new(), None),
            Outcome::Failed(finding) => {
                (severity.1, finding.message, finding.objects, Some(finding.remedy))
            }
        };
        let finding = remedy.is_some();
        Self {
            id: check.id,
            category: check.category,
            severity: severity.0,
            status,
            message,
            objects,
            hint: finding.then(|| format!("meshctl explain {}", check.id)),
            remedy: remedy.filter(|remedy| !remedy.is_empty()),
            claim: check.claim,
        }
    }

    fn is_finding(&self) -> bool {
        matches!(self.status, Status::Warning | Status::Error)
    }

    fn lines(&self, style: Style) -> String {
        let (mark, tone) = match self.status {
            Status::Passed => ("√", Tone::Good),
            Status::Warning => ("‼", Tone::Warn),
            Status::Error => ("×", Tone::Bad),
            Status::Skipped => ("~", Tone::Faint),
        };
        let mark = tone.paint(style, mark);
        match self.status {
            Status::Passed => return format!("{mark} {}\n", clean(&self.message)),
            Status::Skipped => {
                let why = style.dim(&format!("(skipped: {})", clean(&self.message)));
                return format!("{mark} {} {why}\n", self.claim);
            }
            Status::Warning | Status::Error => {}
        }
        let mut text = format!("{mark} {}\n    {}\n", self.claim, clean(&self.message));
        for object in &self.objects {
            text += &format!("      {}\n", clean(object));
        }
        if let Some(remedy) = &self.remedy {
            text += &format!("    try: {}\n", clean(remedy));
        }
        text + &format!("    see: meshctl explain {}\n", self.id)
    }

    fn junit(&self) -> String {
        let head = format!("    <testcase classname=\"{}\" name=\"{}\"", self.category, self.id);
        match self.status {
            Status::Passed => format!("{head}/>\n"),
            Status::Skipped => {
                format!(
                    "{head}>\n      <skipped message=\"{}\"/>\n    </testcase>\n",
                    escaped(&self.message)
                )
            }
            Status::Warning | Status::Error => {
                let mut lines = self.objects.clone();
                lines.extend(self.remedy.iter().map(|remedy| format!("try: {remedy}")));
                format!(
                    "{head}>\n      <failure type=\"{}\" message=\"{}\">{}</failure>\n    </testcase>\n",
                    self.severity,
                    escaped(&self.message),
                    escaped(&lines.join("\n")),
                )
            }
        }
    }
}

/// Text for XML. What XML can't hold at all is left out.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe += "&amp;",
            '<' => safe += "&lt;",
            '>' => safe += "&gt;",
            '"' => safe += "&quot;",
            '\n' => safe.push('\n'),
            c if c.is_control() => {}
            c => safe.push(c),
        }
    }
    safe
}
