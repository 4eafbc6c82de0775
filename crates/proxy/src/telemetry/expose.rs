//! The text of `/metrics`: OpenMetrics when asked for, Prometheus' own 0.0.4 otherwise.
//!
//! The encoder writes OpenMetrics. The older format differs in three ways that are mended line by
//! line: a counter's family is named like its samples, there are no units and there is no end mark.

use prometheus_client::registry::Registry;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A page of metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposition {
    pub content_type: &'static str,
    pub body: String,
}

pub(super) fn render(registry: &Registry, accept: Option<&str>) -> Exposition {
    let mut body = String::new();
    // Writing to a string fails only if a collector does, which leaves a page cut short; what was
    // written up to there is still worth more than nothing.
    if let Err(error) = prometheus_client::encoding::text::encode(&mut body, registry) {
        tracing::error!(%error, "rendering metrics was cut short");
    }
    match accept.is_some_and(|accept| accept.contains("application/openmetrics-text")) {
        true => Exposition { content_type: OPEN_METRICS, body },
        false => Exposition { content_type: PROMETHEUS, body: to_prometheus(&body) },
    }
}

fn to_prometheus(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let suffix = if kind == "counter" { "_total" } else { "" };
            let what = help.take().map_or("", |(_, what)| what);
            text.push_str(&format!("# HELP {name}{suffix} {what}\n"));
            text.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}
