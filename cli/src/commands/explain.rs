//! `meshctl explain`: what a check or a reason code means. Works offline: the text is `docs/troubleshooting.md`.

use std::process::ExitCode;

use clap::Args;

use crate::completing;
use crate::context::Context;
use crate::error::CliError;
use crate::output::{Cell, Column, Table};
use crate::selector;

const DOCUMENT: &str = include_str!("../../../docs/troubleshooting.md");

/// Explain the id of a check or the reason code of a failure
#[derive(Args, Debug)]
pub struct ExplainArgs {
    /// For example no-endpoints or proxies-in-sync; without, all are listed
    #[arg(value_name = "ID", add = completing::explainable())]
    pub id: Option<String>,
}

/// One `### id` of the document and the text below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Topic {
    pub(crate) id: &'static str,
    text: &'static str,
}

pub(super) fn run(args: &ExplainArgs, cx: &mut Context) -> Result<ExitCode, CliError> {
    let style = cx.ui.out_style;
    let Some(id) = &args.id else {
        let mut table = Table::new([Column::left("ID"), Column::left("MEANING")]);
        for topic in topics() {
            table.row([Cell::from(topic.id), Cell::from(topic.meaning())]);
        }
        cx.ui.print(&table.render(style))?;
        return Ok(ExitCode::SUCCESS);
    };
    let topic = topics().find(|topic| topic.id == id).ok_or_else(|| unknown(id))?;
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
    CliError::usage(format!("there is no check or reason \"{id}\""))
        .hint(nearest.map_or_else(String::new, |topic| format!("meshctl explain {}", topic.id)))
}

#[cfg(test)]
mod tests {
    use mesh_model::Reason;

    use super::*;
    use crate::commands::check::catalog::CATALOG;
    use crate::testing::run_alone;

    #[test]
    fn every_reason_and_check_has_its_heading_and_no_other_has() {
        let documented: Vec<&str> = topics().map(|topic| topic.id).collect();
        let reasons = Reason::ALL.iter().map(|reason| reason.code());
        let known: Vec<&str> = reasons.chain(CATALOG.iter().map(|check| check.id)).collect();
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
