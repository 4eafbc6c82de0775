//! `meshctl proxy config`: what one proxy believes, as it tells itself.

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::{log_level, pod};
use crate::completing;
use crate::context::Context;
use crate::error::CliError;
use crate::output::{Format, format};

/// The part that is no part of the document but a knob.
const LOG_LEVEL: &str = "log-level";

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
    #[arg(long, short, value_name = "FORMAT", default_value = "yaml",
          value_parser = Format::among(["yaml", "json"]))]
    pub output: Format,
}

const HELP: &str = "\
Without a part, the whole document is shown. The parts are its top-level fields, for example \
routes, endpoints and policy; the part may stand before the pod, too.

meshctl proxy config POD log-level           shows the proxy's log filter
meshctl proxy config POD log-level debug     sets it until the proxy ends";

pub(super) async fn run(args: ConfigArgs, cx: &mut Context) -> Result<ExitCode, CliError> {
    let wanted = Wanted::parse(&args.words)?;
    let mesh = cx.connect().await?;
    let pod = pod::find(&wanted.pod, args.namespace.as_deref(), &mesh, cx).await?;
    if wanted.part.as_deref() == Some(LOG_LEVEL) {
        let answer = log_level::ask(&pod, wanted.value).await?;
        cx.ui.line(&answer)?;
        return Ok(ExitCode::SUCCESS);
    }
    let text = mesh.proxy_config(&pod.namespace, &pod.name).await?;
    let whole: Value = serde_json::from_str(&text).map_err(|error| {
        CliError::failed(format!("the proxy of {} sent no JSON: {error}", pod.name))
    })?;
    let shown = match &wanted.part {
        None => &whole,
        Some(part) => part_of(&whole, part)?,
    };
    cx.ui.print(&if args.output == Format::Json {
        format::json(shown)?
    } else {
        format::yaml(shown)?
    })?;
    Ok(ExitCode::SUCCESS)
}

fn part_of<'a>(whole: &'a Value, part: &str) -> Result<&'a Value, CliError> {
    whole.get(part).ok_or_else(|| {
        let fields = whole.as_object().into_iter().flat_map(|fields| fields.keys());
        let parts: Vec<&str> = fields.map(String::as_str).chain([LOG_LEVEL]).collect();
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
        let is_part = |word: &str| matches!(word, "routes" | "endpoints" | "policy" | LOG_LEVEL);
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
    use crate::testing::{FakeMesh, workload};

    fn mesh() -> FakeMesh {
        FakeMesh {
            workloads: vec![workload("pod", "shop", "web", 1)],
            config: r#"{"routes":[{"name":"tax"}],"endpoints":{}}"#.into(),
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
    async fn the_whole_or_a_part() {
        assert_eq!(
            mesh().run("proxy config web").await.out,
            "endpoints: {}\nroutes:\n- name: tax\n"
        );
        assert_eq!(
            mesh().run("proxy config shop/web routes -o json").await.out,
            "[\n  {\n    \"name\": \"tax\"\n  }\n]\n"
        );
        let error = mesh().run("proxy config web colour").await.result.unwrap_err();
        assert_eq!(error.hint.as_deref(), Some("one of endpoints, routes, log-level"));
        assert_eq!(mesh().run("proxy config wob").await.result.unwrap_err().kind, Kind::Missing);
    }
}
